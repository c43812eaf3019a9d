//! Records out of datasets: rows read in place, unpacked from slabs, or fetched from the heap.
//!
//! Slabs of more than one row are kept in a cache of bounded size, and each is unpacked by one thread while others that
//! want it wait. [`Records::blocks`] tells the order how many slabs fit, so that each is unpacked about once an epoch.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::chunk::{ABSENT, Chunk, Chunked};
use super::heap::{Heap, HeapError, Ref};
use super::meta::Addresses;
use super::named::Named;
use crate::bytes::buffer::{POOL_BYTES, Pool};
use crate::bytes::shards::Shards;
use crate::column::Part;
use crate::workers::{Stop, Workers, lock};
use crate::{Blocks, Buffer, CacheConfig, ReadError, ReaderConfig, SourceError};

/// Bytes of unpacked slabs that a reader keeps, unless a single block of records needs more.
const CACHE: u64 = 128 << 20;

/// Bytes that all threads together may use to unpack, unless a single slab needs more.
const SCRATCH: u64 = 256 << 20;

/// Enough threads for a disk, and more than there are cores to unpack.
const MAX_THREADS: u64 = 16;

/// Bytes of records in one block of a remote file whose rows are read in place.
const BLOCK: u64 = 64 << 20;

/// Waits before another attempt at a read that failed for a reason that may pass.
const BACKOFF_MS: [u64; 3] = [10, 50, 250];

/// Rows of one dataset in one file.
pub(super) enum Place {
    /// One after the other from this byte on.
    Contiguous(u64),
    /// In memory: the file's header held them.
    Held(Vec<u8>),
    Chunked(Box<Chunked>),
    /// In the heap.
    Heap(Vec<Ref>),
}

/// One dataset in all files.
pub(super) struct Column {
    /// How a row is written; `None` for objects of the heap, which are written as they are.
    pub part: Option<Part>,
    /// By file.
    pub places: Vec<Place>,
}

/// One file's share of the records.
pub(super) struct File {
    pub shard: usize,
    pub size: u64,
    pub addresses: Addresses,
    /// Its first record.
    pub first: u64,
}

/// All records and where they are.
pub(super) struct Records {
    pub shards: Arc<Shards>,
    pub files: Vec<File>,
    /// The image first, if there is one; then the fields.
    pub columns: Vec<Column>,
    /// Path of the first column's dataset, for keys.
    pub path: String,
    pub len: u64,
    /// Where records have named parts.
    pub named: Option<Named>,
}

/// Why a record did not come.
pub(super) enum Fail {
    /// The bytes hold no such record.
    Bad(String),
    Io(io::Error),
    /// The reader has been dropped.
    Stopped,
}

impl From<HeapError> for Fail {
    fn from(error: HeapError) -> Self {
        match error {
            HeapError::Bad(why) => Self::Bad(why),
            HeapError::Io(error) => Self::Io(error),
        }
    }
}

impl Column {
    /// Bytes of the row in the record.
    fn written(&self, file: usize, row: u64) -> u64 {
        match (&self.part, &self.places[file]) {
            (Some(part), _) => part.written() as u64,
            (None, Place::Heap(refs)) => refs[row as usize].len.into(),
            (None, _) => unreachable!("rows that are not in the heap have a form"),
        }
    }

    /// Slabs that are worth keeping, in any file.
    fn cached(&self) -> impl Iterator<Item = &Chunked> {
        self.places.iter().filter_map(|place| match place {
            Place::Chunked(chunked) if chunked.slab_rows() > 1 && !in_place(chunked) => Some(&**chunked),
            _ => None,
        })
    }
}

fn in_place(chunked: &Chunked) -> bool {
    chunked.filters.is_empty() && chunked.shape[1..] == chunked.chunk[1..]
}

impl Records {
    /// The file of a record, and its row there.
    pub(super) fn locate(&self, index: u64) -> (usize, u64) {
        assert!(index < self.len, "record {index} of {}", self.len);
        let file = self.files.partition_point(|file| file.first <= index) - 1;
        (file, index - self.files[file].first)
    }

    pub(super) fn key(&self, index: u64) -> String {
        let (file, row) = self.locate(index);
        format!("{}/{}/{row}", self.shards.files()[self.files[file].shard].name, self.path)
    }

    /// Bytes of a record, at most.
    pub(super) fn size(&self, index: u64) -> u64 {
        let lengths = self.named.as_ref().map_or(0, |named| named.schema.parts.len() * 4);
        self.rows_bytes(index) + lengths as u64
    }

    /// Bytes of all rows of a record.
    fn rows_bytes(&self, index: u64) -> u64 {
        let (file, row) = self.locate(index);
        self.columns.iter().map(|column| column.written(file, row)).sum()
    }

    /// Bytes of memory held.
    pub(super) fn memory(&self) -> u64 {
        let places = self.columns.iter().flat_map(|column| &column.places);
        let places = places.map(|place| match place {
            Place::Contiguous(_) => 0,
            Place::Held(bytes) => bytes.capacity(),
            Place::Chunked(chunked) => chunked.chunks.capacity() * size_of::<Chunk>() + size_of::<Chunked>(),
            Place::Heap(refs) => refs.capacity() * size_of::<Ref>(),
        });
        let files = self.files.capacity() * size_of::<File>();
        (files + places.map(|bytes| bytes + size_of::<Place>()).sum::<usize>()) as u64 + self.shards.memory()
    }

    /// The slabs of one column that decide what lies together: those with the most bytes.
    fn leading(&self) -> Option<&Column> {
        let total =
            |column: &&Column| column.cached().map(|slabs| slabs.shape[0] * slabs.row_bytes()).sum::<u64>();
        self.columns.iter().filter(|column| column.cached().next().is_some()).max_by_key(total)
    }

    /// Bytes of all slabs that `rows` records in a row touch.
    fn touched(&self, rows: u64) -> u64 {
        let of = |slabs: &Chunked| {
            let count = if slabs.slab_rows() == rows { 1 } else { rows.div_ceil(slabs.slab_rows()) + 1 };
            count * slabs.slab_rows() * slabs.row_bytes()
        };
        self.columns.iter().map(|column| column.cached().map(of).max().unwrap_or(0)).sum()
    }

    /// Bytes of slabs that a reader keeps.
    fn cache_bytes(&self) -> u64 {
        let rows = self.leading().into_iter().flat_map(Column::cached).map(Chunked::slab_rows).max();
        rows.map_or(0, |rows| CACHE.max(3 * self.touched(rows)))
    }

    /// Bytes that one thread needs to unpack.
    fn scratch_bytes(&self) -> u64 {
        let chunked = self.columns.iter().flat_map(|column| &column.places).filter_map(|place| match place {
            Place::Chunked(chunked) => {
                Some(chunked.slab_rows() * chunked.row_bytes() + 4 * chunked.chunk_bytes())
            }
            _ => None,
        });
        chunked.max().unwrap_or(0)
    }

    fn threads(&self, depth: u32) -> u64 {
        let most = (SCRATCH / self.scratch_bytes().max(1)).max(1);
        u64::from(depth).min(MAX_THREADS).min(most)
    }

    /// Bytes of memory that a reader holds beside records and its pool.
    pub(super) fn reader_memory(&self) -> u64 {
        let joined = self.named.as_ref().map_or(0, |named| named.largest);
        let threads = self.threads(u32::MAX) * (self.scratch_bytes() + joined + (64 << 10));
        self.cache_bytes() + threads + self.shards.reader_memory()
    }

    /// Stretches of records that share slabs, and how many fit in the cache.
    pub(super) fn blocks(&self) -> Blocks {
        let counts = self
            .files
            .iter()
            .enumerate()
            .map(|(at, file)| self.files.get(at + 1).map_or(self.len, |next| next.first) - file.first);
        let cut = |rows: u64| -> Arc<[u64]> {
            counts
                .clone()
                .flat_map(|count| (0..count.div_ceil(rows)).map(move |block| rows.min(count - block * rows)))
                .collect()
        };
        let local = self.files.iter().all(|file| self.shards.extent(file.shard, 0, 0).is_some());
        let kept = self.columns.iter().flat_map(Column::cached);
        let all: u64 =
            kept.map(|slabs| slabs.shape[0].next_multiple_of(slabs.slab_rows()) * slabs.row_bytes()).sum();
        let cache = self.cache_bytes();
        match self.leading() {
            Some(leading) if all > cache => {
                let rows = leading.cached().map(Chunked::slab_rows).max().expect("it has slabs");
                let fit = (cache / self.touched(rows)).max(3);
                // A lane needs its window and one block more.
                let lanes = (fit / 3).clamp(1, Blocks::LANES);
                let window = ((fit / lanes - 1) * rows).clamp(1, Blocks::WINDOW.max(rows));
                Blocks::Lengths { lengths: cut(rows), lanes, window }
            }
            _ if local => Blocks::None,
            _ => {
                let size: u64 = (0..self.len.min(64)).map(|at| self.size(at * (self.len / 64).max(1))).sum();
                let size = (size / self.len.min(64)).max(1);
                Blocks::seekable(cut((BLOCK / size).max(1)).iter().copied())
            }
        }
    }

    /// Starts a reader.
    pub(super) fn reader(self: Arc<Self>, config: &ReaderConfig) -> Result<Workers, SourceError> {
        config.check()?;
        let cache = Slabs { limit: self.cache_bytes(), state: Mutex::default() };
        let pool = Pool::new(POOL_BYTES);
        let (records, named) = (self.clone(), self.clone());
        Workers::start(
            "threads",
            self.threads(config.depth) as usize,
            Box::new(move |index| named.key(index)),
            Box::new(move |index, stop| records.read(index, stop, &cache, &pool)),
        )
    }

    fn read(
        &self,
        index: u64,
        stop: &Stop,
        cache: &Slabs,
        pool: &Arc<Pool>,
    ) -> Option<Result<Buffer, ReadError>> {
        let size = self.rows_bytes(index);
        let key = || self.key(index);
        let Some(mut buffer) = usize::try_from(size).ok().and_then(|size| pool.take(size)) else {
            return Some(Err(ReadError::io(key(), format!("no memory for a record of {size} bytes"), true)));
        };
        for attempt in 0.. {
            let error = match self.fetch(index, stop, cache, &mut buffer.storage()[..size as usize]) {
                Ok(()) => {
                    buffer.set_len(size as usize);
                    return Some(self.joined(index, buffer, pool));
                }
                Err(Fail::Stopped) => return None,
                Err(Fail::Bad(why)) => return Some(Err(self.verdict(index, why))),
                Err(Fail::Io(error)) => error,
            };
            let shard = self.files[self.locate(index).0].shard;
            let path = self.shards.display(shard);
            if let Some(remote) = ReadError::of_remote(&key(), &error) {
                return Some(Err(remote));
            }
            match (error.kind(), BACKOFF_MS.get(attempt)) {
                (io::ErrorKind::NotFound, _) => return Some(Err(ReadError::gone(key(), Path::new(&path)))),
                (io::ErrorKind::UnexpectedEof, _) => {
                    let size = self.shards.files()[shard].size;
                    return Some(Err(ReadError::changed(key(), Path::new(&path), size, "fewer")));
                }
                (_, Some(&delay)) => {
                    if stop.wait(Duration::from_millis(delay)) {
                        return None;
                    }
                }
                (_, None) => {
                    return Some(Err(ReadError::io(key(), format!("{error}, also on a second try"), true)));
                }
            }
        }
        unreachable!("attempts end")
    }

    /// A record of its rows.
    fn joined(&self, index: u64, rows: Buffer, pool: &Arc<Pool>) -> Result<Buffer, ReadError> {
        let Some(named) = &self.named else { return Ok(rows) };
        let (file, row) = self.locate(index);
        let lengths = self.columns.iter().map(|column| column.written(file, row));
        match named.join(lengths, &rows, |size| pool.take(size)) {
            Ok(Some(record)) => Ok(record),
            Ok(None) => Err(ReadError::io(self.key(index), "no memory for the record".into(), true)),
            Err(why) => Err(self.verdict(index, why)),
        }
    }

    /// What bad bytes mean: a bad record, unless the file is not the one that was opened.
    fn verdict(&self, index: u64, why: String) -> ReadError {
        let shard = self.files[self.locate(index).0].shard;
        let (path, then) = (self.shards.display(shard), &self.shards.files()[shard]);
        match Shards::open(std::slice::from_ref(&path), &[".h5", ".hdf5"], &CacheConfig::default()) {
            Ok(now) if (now.files()[0].size, &now.files()[0].version) != (then.size, &then.version) => {
                let found = format!("another version with {}", now.files()[0].size);
                ReadError::changed(self.key(index), Path::new(&path), then.size, &found)
            }
            _ => ReadError::bad(self.key(index), why),
        }
    }

    fn fetch(&self, index: u64, stop: &Stop, cache: &Slabs, mut record: &mut [u8]) -> Result<(), Fail> {
        let (at, row) = self.locate(index);
        let file = &self.files[at];
        for (number, column) in self.columns.iter().enumerate() {
            let (body, rest) = record.split_at_mut(column.written(at, row) as usize);
            let write = |bytes: &[u8], body: &mut [u8]| match &column.part {
                Some(part) => part.write(bytes, body).map_err(Fail::Bad),
                None => unreachable!("objects of the heap are read where they belong"),
            };
            let stored = column.part.as_ref().map_or(0, Part::stored) as u64;
            let read_row = |offset: u64, body: &mut [u8]| {
                let mut bytes = vec![0; stored as usize];
                self.read_at(file, offset, &mut bytes)?;
                write(&bytes, body)
            };
            match &column.places[at] {
                Place::Contiguous(start) => read_row(start + row * stored, body)?,
                Place::Held(bytes) => write(&bytes[(row * stored) as usize..][..stored as usize], body)?,
                Place::Heap(refs) => {
                    let object = refs[row as usize];
                    if object.len == 0 && self.is_image(number) {
                        return Err(Fail::Bad("it holds no bytes".into()));
                    }
                    let mut read =
                        |offset: u64, buffer: &mut [u8]| self.shards.read_at(file.shard, offset, buffer);
                    Heap::once().read(object, file.addresses.length_size, file.size, body, &mut read)?;
                }
                Place::Chunked(chunked) => match chunked.direct(row) {
                    Some(offset) => read_row(offset, body)?,
                    None => {
                        let slab = row / chunked.chunk[0];
                        let unpack = || self.unpack(file, chunked, slab, stop);
                        let bytes = if chunked.slab_rows() > 1 && !in_place(chunked) {
                            let size = chunked.slab_rows() * chunked.row_bytes();
                            cache.get((at as u32, number as u32, slab), size, unpack)?
                        } else if chunked.filters.is_empty() && in_place(chunked) {
                            // Never written: one row of the fill value, not a slab of them.
                            write(&chunked.fill.repeat(stored as usize / chunked.element), body)?;
                            record = rest;
                            continue;
                        } else {
                            Arc::new(unpack()?)
                        };
                        let from = (row % chunked.chunk[0] * stored) as usize;
                        write(&bytes[from..from + stored as usize], body)?;
                    }
                },
            }
            record = rest;
        }
        Ok(())
    }

    fn unpack(&self, file: &File, chunked: &Chunked, slab: u64, stop: &Stop) -> Result<Vec<u8>, Fail> {
        chunked.slab(slab, Fail::Bad, |chunk| {
            if stop.wait(Duration::ZERO) {
                return Err(Fail::Stopped);
            }
            let mut bytes = vec![0; chunk.size as usize];
            self.read_at(file, chunk.address, &mut bytes)?;
            Ok(bytes)
        })
    }

    fn read_at(&self, file: &File, offset: u64, buffer: &mut [u8]) -> Result<(), Fail> {
        self.shards.read_at(file.shard, offset, buffer).map_err(Fail::Io)
    }
}

/// Hands over all rows of a place in order, some at a time; not for the heap.
///
/// # Errors
/// A sentence: the file cannot be read, a chunk is damaged or was never written, or what `take` says.
pub(super) fn scan(
    shards: &Shards,
    shard: usize,
    place: &Place,
    bytes: u64,
    row: u64,
    take: &mut dyn FnMut(&[u8]) -> Result<(), String>,
) -> Result<(), String> {
    let read = |offset: u64, len: u64| {
        let mut buffer = vec![0; len as usize];
        shards.read_at(shard, offset, &mut buffer).map_err(|error| error.to_string())?;
        Ok::<_, String>(buffer)
    };
    match place {
        Place::Contiguous(start) => {
            let piece = ((8 << 20) / row).max(1) * row;
            let mut at = 0;
            while at < bytes {
                let len = piece.min(bytes - at);
                take(&read(start + at, len)?)?;
                at += len;
            }
            Ok(())
        }
        Place::Held(held) => take(&held[..bytes as usize]),
        Place::Chunked(chunked) => {
            if chunked.chunks.iter().any(|chunk| chunk.address == ABSENT) {
                return Err("parts of it were never written".into());
            }
            for slab in 0..chunked.grid[0] {
                take(&chunked.slab(slab, |why| why, |chunk| read(chunk.address, chunk.size.into()))?)?;
            }
            Ok(())
        }
        Place::Heap(_) => unreachable!("objects of the heap are read one by one"),
    }
}

/// File, column and number.
type SlabKey = (u32, u32, u64);

/// A slab, or what is wrong with its bytes, or nothing yet; locked while one thread makes it.
type Making = Arc<Mutex<Option<Result<Arc<Vec<u8>>, String>>>>;

/// Unpacked slabs: the ones used last, up to a number of bytes.
struct Slabs {
    limit: u64,
    state: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    slots: HashMap<SlabKey, Slot>,
    /// The slabs by when they were used last.
    used: BTreeMap<u64, SlabKey>,
    clock: u64,
    bytes: u64,
}

struct Slot {
    slab: Making,
    used: u64,
    bytes: u64,
}

impl Slabs {
    /// The slab, unpacked by this thread or by another that was asked first. What is wrong with its bytes is kept like
    /// the bytes themselves; other failures are not.
    fn get(
        &self,
        key: SlabKey,
        bytes: u64,
        unpack: impl FnOnce() -> Result<Vec<u8>, Fail>,
    ) -> Result<Arc<Vec<u8>>, Fail> {
        let (slab, evicted) = lock(&self.state).slot(key, bytes, self.limit);
        drop(evicted);
        let mut slab = lock(&slab);
        if let Some(known) = &*slab {
            return known.clone().map_err(Fail::Bad);
        }
        match unpack() {
            Ok(bytes) => {
                let bytes = Arc::new(bytes);
                *slab = Some(Ok(bytes.clone()));
                Ok(bytes)
            }
            Err(Fail::Bad(why)) => {
                *slab = Some(Err(why.clone()));
                Err(Fail::Bad(why))
            }
            Err(other) => Err(other),
        }
    }
}

impl Kept {
    /// The place of a slab, now the last used, and what had to make room for it.
    fn slot(&mut self, key: SlabKey, bytes: u64, limit: u64) -> (Making, Vec<Slot>) {
        self.clock += 1;
        let now = self.clock;
        let mut evicted = Vec::new();
        if let Some(slot) = self.slots.get_mut(&key) {
            self.used.remove(&slot.used);
            slot.used = now;
        } else {
            while self.bytes + bytes > limit
                && let Some((_, oldest)) = self.used.pop_first()
            {
                let slot = self.slots.remove(&oldest).expect("what was used is there");
                self.bytes -= slot.bytes;
                evicted.push(slot);
            }
            self.bytes += bytes;
            self.slots.insert(key, Slot { slab: Arc::default(), used: now, bytes });
        }
        self.used.insert(now, key);
        (self.slots[&key].slab.clone(), evicted)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::super::chunk::Filter;
    use super::*;
    use crate::ElementType;
    use crate::column::PixelLayout;

    /// Records of 64 x 64 RGB pixels in gzip chunks of `rows`, and 16 bytes more each in chunks of `more`.
    fn records(len: u64, rows: u64, more: u64) -> (tempfile::TempDir, Records) {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("x.h5");
        std::fs::write(&path, "x").unwrap();
        let pattern = path.to_str().unwrap().to_owned();
        let shards = Shards::open(&[pattern], &[".h5"], &CacheConfig::default()).unwrap();
        let column = |shape: &[u64], rows: u64| {
            let shape = [&[len], shape].concat();
            let chunk = [&[rows], &shape[1..]].concat();
            let part = Part::pixels(ElementType::U8, &shape[1..], PixelLayout::Hwc).unwrap();
            let grid: Vec<u64> = shape.iter().zip(&chunk).map(|(n, c)| n.div_ceil(*c)).collect();
            let chunks = vec![Chunk { address: ABSENT, size: 0, mask: 0 }; grid[0] as usize];
            let filters = vec![Filter::Deflate];
            let chunked = Chunked { shape, chunk, grid, element: 1, chunks, filters, fill: vec![0] };
            Column { part: Some(part), places: vec![Place::Chunked(Box::new(chunked))] }
        };
        let addresses = Addresses { base: 0, length_size: 8 };
        let columns = vec![column(&[64, 64, 3], rows), column(&[4, 4, 1], more)];
        let files = vec![File { shard: 0, size: 1, addresses, first: 0 }];
        (root, Records { shards, files, columns, path: "x".into(), len, named: None })
    }

    #[test]
    fn blocks_are_slabs_and_those_needed_at_one_time_fit_in_the_cache() {
        for (rows, more) in [(256, 256), (256, 1000), (4, 4096), (2000, 3), (20_000, 20_000)] {
            let (_root, records) = records(100_000, rows, more);
            let Blocks::Lengths { lengths, lanes, window } = records.blocks() else { panic!("1.2 GB fit?") };
            assert_eq!(lengths[0], rows);
            assert_eq!(lengths.iter().sum::<u64>(), 100_000);
            let needed = records.touched(rows) * lanes * (window / rows + 1);
            let cache = records.cache_bytes();
            assert!(needed <= cache, "{rows} {more}: {lanes} lanes of {window} need {needed} of {cache}");
            assert!(records.reader_memory() >= cache);
        }
        // One row a chunk, or all of it in the cache: any order is as good.
        assert_eq!(records(100_000, 1, 4096).1.blocks(), Blocks::None);
        assert_eq!(records(5000, 256, 256).1.blocks(), Blocks::None);
    }

    #[test]
    fn a_slab_is_unpacked_once_and_the_one_used_longest_ago_goes_first() {
        let cache = Slabs { limit: 30, state: Mutex::default() };
        let made = AtomicUsize::new(0);
        let get = |slab: u64| {
            let unpack = || {
                made.fetch_add(1, Ordering::Relaxed);
                Ok(vec![slab as u8; 10])
            };
            match cache.get((0, 0, slab), 10, unpack) {
                Ok(bytes) => assert_eq!(*bytes, [slab as u8; 10]),
                Err(_) => panic!("it was made"),
            }
            made.load(Ordering::Relaxed)
        };
        assert_eq!((get(1), get(2), get(3), get(1)), (1, 2, 3, 3));
        assert_eq!((get(4), get(1), get(3)), (4, 4, 4), "2 was used longest ago");
        assert_eq!(get(2), 5);
        assert_eq!(lock(&cache.state).bytes, 30);
        std::thread::scope(|scope| {
            (0..8).for_each(|_| {
                scope.spawn(|| get(9));
            });
        });
        assert_eq!(made.load(Ordering::Relaxed), 6, "eight threads wanted it at once");
    }

    #[test]
    fn a_verdict_is_kept_and_another_failure_is_not() {
        let cache = Slabs { limit: 30, state: Mutex::default() };
        let stopped = cache.get((0, 0, 0), 10, || Err(Fail::Stopped));
        assert!(matches!(stopped, Err(Fail::Stopped)));
        assert!(matches!(cache.get((0, 0, 0), 10, || Err(Fail::Bad("x".into()))), Err(Fail::Bad(_))));
        assert!(matches!(cache.get((0, 0, 0), 10, || Ok(vec![])), Err(Fail::Bad(_))));
    }
}
