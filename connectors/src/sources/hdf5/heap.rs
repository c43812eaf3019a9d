//! Objects of variable length: JPEGs and texts in the file's global heap.
//!
//! ```text
//!  collection  "GCOL" 1 0 0 0 | size        | object | object | …
//!  object      index u16 | refs u16 | 0 u32 | size   | bytes, padded to 8
//! ```
//!
//! A dataset of variable-length elements holds a [`Ref`] for each; the object is found by walking its collection, which
//! has at most 65,535 of them.

use std::io;

/// Where an object is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ref {
    /// The collection's first byte in the file.
    pub collection: u64,
    /// Bytes.
    pub len: u32,
    pub index: u16,
}

/// An object may not be larger than this.
const MAX_OBJECT: u32 = 1 << 30;

/// Bytes read at once to look for an object.
const WINDOW: u64 = 4096;

/// Both headers are padded to multiples of eight, so that they have this size for lengths of 4 and of 8 bytes.
const HEADER: u64 = 16;

/// What went wrong.
#[derive(Debug)]
pub(super) enum HeapError {
    /// The bytes hold no such object.
    Bad(String),
    Io(io::Error),
}

impl Ref {
    /// Bytes of a stored reference.
    pub(super) fn stored(offset_size: u8) -> usize {
        8 + usize::from(offset_size)
    }

    /// Reads a stored reference to elements of so many bytes; addresses count from `base`. A null becomes one of length
    /// 0.
    ///
    /// # Errors
    /// A sentence when it points nowhere.
    pub(super) fn parse(bytes: &[u8], element: u32, base: u64, file_size: u64) -> Result<Self, String> {
        let (len, rest) = bytes.split_at(4);
        let (address, index) = rest.split_at(rest.len() - 4);
        let count = u32::from_le_bytes(len.try_into().expect("four bytes"));
        let len = count.saturating_mul(element);
        let index = u32::from_le_bytes(index.try_into().expect("four bytes"));
        if len == 0 {
            return Ok(Self { collection: 0, len: 0, index: 0 });
        }
        let mut wide = [0; 8];
        wide[..address.len()].copy_from_slice(address);
        let collection = u64::from_le_bytes(wide).checked_add(base);
        match (collection, u16::try_from(index)) {
            (Some(collection), Ok(index)) if collection < file_size && len <= MAX_OBJECT && index > 0 => {
                Ok(Self { collection, len, index })
            }
            _ => Err(format!(
                "it points to object {index} of {len} bytes at {wide:x?}, which is outside of the file"
            )),
        }
    }
}

/// What looking at one object's header costs, and reading a window. A crafted heap could make every search the longest.
const STEP: u64 = 1;
const READ: u64 = 1024;

/// The object found last.
#[derive(Clone, Copy)]
struct Found {
    collection: u64,
    /// The first byte after the collection.
    end: u64,
    index: u16,
    at: u64,
}

/// Finds objects; keeps the bytes it read last and where it found the last object, since neighbours are often in the
/// same collection.
pub(super) struct Heap {
    start: u64,
    window: Vec<u8>,
    last: Option<Found>,
    /// What is left of the searches allowed.
    left: u64,
}

impl Heap {
    /// For one object: the longest walk that a heap of the format allows.
    pub(super) fn once() -> Self {
        Self::with(1 << 27)
    }

    /// For all objects of a file: some seconds of searching, which no library's files come near, since it writes
    /// objects in the order of their rows.
    pub(super) fn all() -> Self {
        Self::with(1 << 32)
    }

    fn with(left: u64) -> Self {
        Self { start: 0, window: Vec::new(), last: None, left }
    }

    /// Writes an object's first `out.len()` bytes, which are at most those of the reference.
    pub(super) fn read(
        &mut self,
        object: Ref,
        length_size: u8,
        file_size: u64,
        out: &mut [u8],
        read: &mut dyn FnMut(u64, &mut [u8]) -> io::Result<()>,
    ) -> Result<(), HeapError> {
        if out.is_empty() {
            return Ok(());
        }
        let bad = |why: &str| {
            HeapError::Bad(format!(
                "object {} of the heap at byte {}: {why}",
                object.index, object.collection
            ))
        };
        let onward =
            self.last.filter(|last| last.collection == object.collection && last.index < object.index);
        let (mut at, end) = match onward {
            Some(last) => (last.at, last.end),
            None => {
                // An object that is alone in its collection comes with one read.
                let guess = 2 * HEADER + u64::from(object.len).next_multiple_of(8);
                let header = self.get(object.collection, HEADER, guess.max(WINDOW), file_size, read)?;
                let header = header.ok_or_else(|| bad("the file ends there"))?;
                if header[..5] != *b"GCOL\x01" {
                    return Err(bad("there is no heap"));
                }
                let size = length(&header[8..], length_size);
                let end =
                    object.collection.checked_add(size).filter(|&end| end <= file_size && size >= HEADER);
                let end = end.ok_or_else(|| bad("the heap is longer than the file or too short"))?;
                (object.collection + HEADER, end)
            }
        };
        for _ in 0..=u16::MAX {
            self.left =
                self.left.checked_sub(STEP).ok_or_else(|| bad("searching the heap takes too long"))?;
            if end - at < HEADER {
                break;
            }
            let header =
                self.get(at, HEADER, WINDOW, file_size, read)?.ok_or_else(|| bad("the file ends there"))?;
            let index = u16::from_le_bytes([header[0], header[1]]);
            let size = length(&header[8..], length_size);
            let body = at + HEADER;
            if size > end - body {
                return Err(bad("an object is longer than its heap"));
            }
            if index == object.index {
                self.last = Some(Found { collection: object.collection, end, index, at });
                if size < out.len() as u64 {
                    return Err(bad("it is shorter than the dataset says"));
                }
                match self.held(body, out.len() as u64) {
                    Some(bytes) => out.copy_from_slice(bytes),
                    None => read(body, out).map_err(HeapError::Io)?,
                }
                return Ok(());
            }
            if index == 0 {
                // Free space is the last thing in a collection.
                break;
            }
            at = (body + size.next_multiple_of(8)).min(end);
        }
        if onward.is_some() {
            // It lies before the last one: from the start, once.
            self.last = None;
            return self.read(object, length_size, file_size, out, read);
        }
        Err(bad("it is not there"))
    }

    /// `len` bytes at a place, if the file has them; reads `ahead` bytes when they are not held.
    fn get(
        &mut self,
        at: u64,
        len: u64,
        ahead: u64,
        file_size: u64,
        read: &mut dyn FnMut(u64, &mut [u8]) -> io::Result<()>,
    ) -> Result<Option<&[u8]>, HeapError> {
        if self.held(at, len).is_none() {
            let available = file_size.saturating_sub(at);
            if available < len {
                return Ok(None);
            }
            self.left = self.left.saturating_sub(READ);
            self.window.clear();
            self.window.resize(ahead.max(len).min(available) as usize, 0);
            self.start = at;
            if let Err(error) = read(at, &mut self.window) {
                self.window.clear();
                return Err(HeapError::Io(error));
            }
        }
        Ok(self.held(at, len))
    }

    fn held(&self, at: u64, len: u64) -> Option<&[u8]> {
        let from = usize::try_from(at.checked_sub(self.start)?).ok()?;
        self.window.get(from..from.checked_add(len as usize)?)
    }
}

fn length(bytes: &[u8], size: u8) -> u64 {
    let mut wide = [0; 8];
    let size = usize::from(size.min(8));
    wide[..size].copy_from_slice(&bytes[..size]);
    u64::from_le_bytes(wide)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn collection(objects: &[(u16, &[u8])]) -> Vec<u8> {
        let mut body = Vec::new();
        for (index, bytes) in objects {
            body.extend(index.to_le_bytes());
            body.extend([1, 0, 0, 0, 0, 0]);
            body.extend((bytes.len() as u64).to_le_bytes());
            body.extend(*bytes);
            body.resize(body.len().next_multiple_of(8), 0);
        }
        let size = (body.len() as u64 + 16).to_le_bytes();
        [b"GCOL\x01\0\0\0", &size[..], &body].concat()
    }

    fn find(file: &[u8], object: Ref) -> Result<Vec<u8>, HeapError> {
        let mut out = vec![0; object.len as usize];
        let mut read = |at: u64, buffer: &mut [u8]| {
            buffer.copy_from_slice(&file[at as usize..][..buffer.len()]);
            Ok(())
        };
        Heap::once().read(object, 8, file.len() as u64, &mut out, &mut read).map(|()| out)
    }

    #[test]
    fn objects_are_found_wherever_they_lie_and_absent_ones_are_named() {
        let large = vec![7; 10_000];
        let file = [&[0; 24][..], &collection(&[(1, b"abc"), (3, &large), (2, b"defgh"), (0, b"")])].concat();
        let at = |index, len| Ref { collection: 24, len, index };
        assert_eq!(find(&file, at(1, 3)).unwrap(), b"abc");
        assert_eq!(find(&file, at(2, 4)).unwrap(), b"defg");
        assert_eq!(find(&file, at(3, 10_000)).unwrap(), large);
        for (object, expected) in [
            (at(4, 1), "not there"),
            (at(1, 4), "shorter"),
            (Ref { collection: 0, ..at(1, 3) }, "no heap"),
            (Ref { collection: file.len() as u64 - 3, ..at(1, 3) }, "ends"),
        ] {
            match find(&file, object) {
                Err(HeapError::Bad(why)) => assert!(why.contains(expected), "{why}"),
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn many_objects_are_found_in_any_order_and_a_search_that_does_not_end_is_ended() {
        let names: Vec<String> = (0..500).map(|i| format!("object {i}")).collect();
        let objects: Vec<(u16, &[u8])> = (1..).zip(names.iter().map(String::as_bytes)).collect();
        let file = collection(&objects);
        let mut read = |at: u64, buffer: &mut [u8]| {
            buffer.copy_from_slice(&file[at as usize..][..buffer.len()]);
            Ok(())
        };
        let mut find = |heap: &mut Heap, number: usize| {
            let name = &names[number];
            let object = Ref { collection: 0, len: name.len() as u32, index: number as u16 + 1 };
            let mut out = vec![0; name.len()];
            heap.read(object, 8, file.len() as u64, &mut out, &mut read)
                .map(|()| assert_eq!(out, name.as_bytes()))
        };
        let mut heap = Heap::all();
        (0..500).for_each(|number| find(&mut heap, number).unwrap());
        assert!((1 << 32) - heap.left < 40 * READ, "in order, each is found from the one before");
        (0..500).for_each(|number| find(&mut heap, number * 7919 % 500).unwrap());
        let mut heap = Heap::with(100_000);
        let refused = (0..500).rev().find_map(|number| find(&mut heap, number).err());
        assert!(matches!(refused, Some(HeapError::Bad(why)) if why.contains("too long")));
    }

    #[test]
    fn references_that_point_nowhere_are_refused() {
        let stored = |len: u32, address: u64, index: u32| {
            [&len.to_le_bytes()[..], &address.to_le_bytes(), &index.to_le_bytes()].concat()
        };
        assert_eq!(Ref::parse(&stored(5, 90, 2), 1, 8, 99), Ok(Ref { collection: 98, len: 5, index: 2 }));
        assert_eq!(Ref::parse(&stored(0, u64::MAX, 0), 1, 8, 99).unwrap().len, 0);
        for (len, address, index) in
            [(5, 91, 2), (5, u64::MAX, 2), (5, 1, 0), (5, 1, 1 << 16), (u32::MAX, 1, 1)]
        {
            Ref::parse(&stored(len, address, index), 1, 8, 99).unwrap_err();
        }
    }

    proptest! {
        #[test]
        fn no_heap_can_panic_it(damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..5), index in 1u16..5, cut: prop::sample::Index) {
            let mut file = collection(&[(1, b"abc"), (3, &[7; 300]), (2, b"defgh"), (0, b"")]);
            for (at, value) in damage {
                let at = at.index(file.len());
                file[at] = value;
            }
            file.truncate(cut.index(file.len()) + 1);
            let _ = find(&file, Ref { collection: 0, len: 3, index });
        }
    }
}
