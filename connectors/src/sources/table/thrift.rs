//! The little of Thrift's compact protocol that a Parquet file has to be read with before anything is trusted.
//!
//! Two users: the footer is walked once, so that a list that claims more elements than the file has bytes, or groups
//! nested without end, are refused before a library allocates for them; and page headers are read here, because their
//! sizes decide what is allocated next.

/// Structures inside structures deeper than this are no Parquet.
const MAX_DEPTH: u32 = 32;

/// Columns may be nested this deep. (Libraries walk a schema by recursion.)
const MAX_GROUPS: usize = 64;

/// What is wrong with the bytes.
pub(super) type Flaw = &'static str;

/// A cursor over compact Thrift.
pub(super) struct Thrift<'bytes> {
    bytes: &'bytes [u8],
    at: usize,
}

const STOP: u8 = 0;
const TRUE: u8 = 1;
const FALSE: u8 = 2;
const BYTE: u8 = 3;
const I16: u8 = 4;
const I32: u8 = 5;
const I64: u8 = 6;
const DOUBLE: u8 = 7;
const BINARY: u8 = 8;
const LIST: u8 = 9;
const SET: u8 = 10;
const MAP: u8 = 11;
const STRUCT: u8 = 12;
const UUID: u8 = 13;

impl<'bytes> Thrift<'bytes> {
    pub(super) fn new(bytes: &'bytes [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    /// Bytes read so far.
    pub(super) fn position(&self) -> usize {
        self.at
    }

    fn byte(&mut self) -> Result<u8, Flaw> {
        let byte = *self.bytes.get(self.at).ok_or("it ends in the middle of a structure")?;
        self.at += 1;
        Ok(byte)
    }

    fn take(&mut self, len: u64) -> Result<&'bytes [u8], Flaw> {
        let end = usize::try_from(len).ok().and_then(|len| self.at.checked_add(len));
        let taken = end.and_then(|end| self.bytes.get(self.at..end)).ok_or("a length runs past its end")?;
        self.at += taken.len();
        Ok(taken)
    }

    fn varint(&mut self) -> Result<u64, Flaw> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err("a number is too long")
    }

    pub(super) fn integer(&mut self) -> Result<i64, Flaw> {
        let value = self.varint()?;
        Ok((value >> 1) as i64 ^ -((value & 1) as i64))
    }

    /// Calls `visit` with the number and type of each field of a structure; it reads the field or says false, and then
    /// the field is skipped.
    pub(super) fn structure(
        &mut self,
        mut visit: impl FnMut(&mut Self, i16, u8) -> Result<bool, Flaw>,
    ) -> Result<(), Flaw> {
        let mut number = 0i16;
        loop {
            let head = self.byte()?;
            let kind = head & 15;
            if head == STOP {
                return Ok(());
            }
            number = match head >> 4 {
                0 => self.integer()? as i16,
                step => number.wrapping_add(i16::from(step)),
            };
            if !visit(self, number, kind)? {
                self.skip(kind, 0)?;
            }
        }
    }

    /// Type and number of a list's elements. Each takes a byte at least, so more than there are bytes is a lie.
    pub(super) fn list(&mut self) -> Result<(u8, u64), Flaw> {
        let head = self.byte()?;
        let count = if head >> 4 == 15 { self.varint()? } else { u64::from(head >> 4) };
        if count > (self.bytes.len() - self.at) as u64 {
            return Err("a list claims more elements than there are bytes");
        }
        Ok((head & 15, count))
    }

    fn skip(&mut self, kind: u8, depth: u32) -> Result<(), Flaw> {
        if depth > MAX_DEPTH {
            return Err("structures are nested too deep");
        }
        match kind {
            // As a field a boolean is its own type.
            TRUE | FALSE => Ok(()),
            BYTE => self.take(1).map(drop),
            I16 | I32 | I64 => self.varint().map(drop),
            DOUBLE => self.take(8).map(drop),
            UUID => self.take(16).map(drop),
            BINARY => {
                let len = self.varint()?;
                self.take(len).map(drop)
            }
            LIST | SET => {
                let (kind, count) = self.list()?;
                (0..count).try_for_each(|_| self.skip_element(kind, depth + 1))
            }
            MAP => {
                let count = self.varint()?;
                if count == 0 {
                    return Ok(());
                }
                let kinds = self.byte()?;
                for _ in 0..count {
                    self.skip_element(kinds >> 4, depth + 1)?;
                    self.skip_element(kinds & 15, depth + 1)?;
                }
                Ok(())
            }
            STRUCT => loop {
                let head = self.byte()?;
                if head == STOP {
                    return Ok(());
                }
                if head >> 4 == 0 {
                    self.varint()?;
                }
                self.skip(head & 15, depth + 1)?;
            },
            _ => Err("a field has an unknown type"),
        }
    }

    /// In a list a boolean is a byte.
    fn skip_element(&mut self, kind: u8, depth: u32) -> Result<(), Flaw> {
        if matches!(kind, TRUE | FALSE) { self.take(1).map(drop) } else { self.skip(kind, depth) }
    }
}

/// Walks a whole Parquet footer (`FileMetaData`): every length and count in it is true, and its schema is not too deep.
pub(super) fn check_footer(bytes: &[u8]) -> Result<(), Flaw> {
    let mut thrift = Thrift::new(bytes);
    thrift.structure(|thrift, number, kind| {
        if (number, kind) != (2, LIST) {
            return Ok(false);
        }
        let (kind, count) = thrift.list()?;
        if kind != STRUCT {
            return Err("its schema is no list of structures");
        }
        // Children left to come of each group that is open.
        let mut open: Vec<i64> = Vec::new();
        for _ in 0..count {
            while open.last() == Some(&0) {
                open.pop();
            }
            if let Some(left) = open.last_mut() {
                *left -= 1;
            }
            let mut children = 0;
            thrift.structure(|thrift, number, kind| {
                if (number, kind) != (5, I32) {
                    return Ok(false);
                }
                children = thrift.integer()?;
                Ok(true)
            })?;
            if children > 0 {
                open.push(children);
            }
            if open.len() > MAX_GROUPS {
                return Err("its columns are nested more than 64 levels deep");
            }
        }
        Ok(true)
    })
}

/// A page header, as far as it is used. Numbers are as they stand in the file: not yet judged.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct PageHeader {
    pub kind: i64,
    pub uncompressed: i64,
    pub compressed: i64,
    pub crc: Option<i64>,
    /// Of whichever kind the page is.
    pub values: i64,
    pub encoding: i64,
    pub def_encoding: i64,
    pub rep_encoding: i64,
    pub sorted: bool,
    /// Version 2 only.
    pub nulls: i64,
    pub rows: Option<i64>,
    pub def_bytes: i64,
    pub rep_bytes: i64,
    pub is_compressed: bool,
}

pub(super) const DATA_PAGE: i64 = 0;
pub(super) const DICTIONARY_PAGE: i64 = 2;
pub(super) const DATA_PAGE_V2: i64 = 3;

/// Reads a page header and says how many bytes it took.
pub(super) fn page_header(bytes: &[u8]) -> Result<(PageHeader, usize), Flaw> {
    let mut header = PageHeader {
        kind: -1,
        uncompressed: -1,
        compressed: -1,
        is_compressed: true,
        ..PageHeader::default()
    };
    let mut thrift = Thrift::new(bytes);
    thrift.structure(|thrift, number, kind| {
        match (number, kind) {
            (1, I32) => header.kind = thrift.integer()?,
            (2, I32) => header.uncompressed = thrift.integer()?,
            (3, I32) => header.compressed = thrift.integer()?,
            (4, I32) => header.crc = Some(thrift.integer()?),
            (5, STRUCT) => thrift.structure(|thrift, number, kind| {
                match (number, kind) {
                    (1, I32) => header.values = thrift.integer()?,
                    (2, I32) => header.encoding = thrift.integer()?,
                    (3, I32) => header.def_encoding = thrift.integer()?,
                    (4, I32) => header.rep_encoding = thrift.integer()?,
                    _ => return Ok(false),
                }
                Ok(true)
            })?,
            (7, STRUCT) => thrift.structure(|thrift, number, kind| {
                match (number, kind) {
                    (1, I32) => header.values = thrift.integer()?,
                    (2, I32) => header.encoding = thrift.integer()?,
                    (3, TRUE | FALSE) => header.sorted = kind == TRUE,
                    _ => return Ok(false),
                }
                Ok(true)
            })?,
            (8, STRUCT) => thrift.structure(|thrift, number, kind| {
                match (number, kind) {
                    (1, I32) => header.values = thrift.integer()?,
                    (2, I32) => header.nulls = thrift.integer()?,
                    (3, I32) => header.rows = Some(thrift.integer()?),
                    (4, I32) => header.encoding = thrift.integer()?,
                    (5, I32) => header.def_bytes = thrift.integer()?,
                    (6, I32) => header.rep_bytes = thrift.integer()?,
                    (7, TRUE | FALSE) => header.is_compressed = kind == TRUE,
                    _ => return Ok(false),
                }
                Ok(true)
            })?,
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    Ok((header, thrift.position()))
}

/// Where a page lies: first byte, bytes with its header, first row of the row group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PageLocation {
    pub offset: u64,
    pub len: u32,
    pub first_row: u64,
}

/// Reads an `OffsetIndex`.
pub(super) fn offset_index(bytes: &[u8]) -> Result<Vec<PageLocation>, Flaw> {
    let mut pages = Vec::new();
    Thrift::new(bytes).structure(|thrift, number, kind| {
        if (number, kind) != (1, LIST) {
            return Ok(false);
        }
        let (kind, count) = thrift.list()?;
        if kind != STRUCT {
            return Err("its pages are no list of structures");
        }
        for _ in 0..count {
            let (mut offset, mut len, mut row) = (-1, -1, -1);
            thrift.structure(|thrift, number, kind| {
                match (number, kind) {
                    (1, I64) => offset = thrift.integer()?,
                    (2, I32) => len = thrift.integer()?,
                    (3, I64) => row = thrift.integer()?,
                    _ => return Ok(false),
                }
                Ok(true)
            })?;
            let (Ok(offset), Ok(len), Ok(first_row)) = (offset.try_into(), len.try_into(), row.try_into())
            else {
                return Err("a page lies at a negative place");
            };
            pages.push(PageLocation { offset, len, first_row });
        }
        Ok(true)
    })?;
    Ok(pages)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_page_header_is_read_field_by_field() {
        // v1 data page: type 0, 300 bytes, 120 compressed, no crc, 7 values PLAIN with RLE levels.
        let bytes = [
            0x15, 0x00, 0x15, 0xd8, 0x04, 0x15, 0xf0, 0x01, 0x2c, 0x15, 0x0e, 0x15, 0x00, 0x15, 0x06, 0x15,
            0x06, 0x00, 0x00, 0xff,
        ];
        let (header, len) = page_header(&bytes).unwrap();
        assert_eq!((header.kind, header.uncompressed, header.compressed), (DATA_PAGE, 300, 120));
        assert_eq!((header.values, header.encoding, header.def_encoding), (7, 0, 3));
        assert_eq!(len, bytes.len() - 1);
        for cut in 0..len {
            assert!(page_header(&bytes[..cut]).is_err(), "cut at {cut}");
        }
    }

    #[test]
    fn a_schema_without_end_and_a_list_that_lies_are_refused() {
        // Field 2: a list of `count` groups with one child each.
        let chain = |count: u8| {
            let mut bytes = vec![0x29, 0xfc, count];
            bytes.extend([0x55, 0x02, 0x00].repeat(count as usize));
            bytes.push(0);
            bytes
        };
        check_footer(&chain(60)).unwrap();
        assert!(check_footer(&chain(100)).unwrap_err().contains("64 levels"));
        // Field 4 (row groups): a list of 2^34 structures in a few bytes.
        let lie = [0x49, 0xfc, 0xff, 0xff, 0xff, 0xff, 0x7f, 0x00, 0x00];
        assert!(check_footer(&lie).unwrap_err().contains("more elements"));
        // Lists in lists in lists.
        let deep: Vec<u8> = std::iter::once(0x19).chain(std::iter::repeat_n(0x19, 1000)).collect();
        assert!(check_footer(&deep).unwrap_err().contains("too deep"));
    }

    proptest! {
        #[test]
        fn no_bytes_hang_or_crash(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            let _ = check_footer(&bytes);
            if let Ok((_, len)) = page_header(&bytes) {
                prop_assert!(len <= bytes.len());
            }
            if let Ok(pages) = offset_index(&bytes) {
                prop_assert!(pages.len() <= bytes.len());
            }
        }
    }
}
