//! The structure of a TIFF file: its first directory and the numbers there. Whatever lies outside the file is absent.

/// The tags that are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tag(u16);

impl Tag {
    pub(super) const WIDTH: Tag = Tag(256);
    pub(super) const HEIGHT: Tag = Tag(257);
    pub(super) const BITS: Tag = Tag(258);
    pub(super) const COMPRESSION: Tag = Tag(259);
    pub(super) const PHOTOMETRIC: Tag = Tag(262);
    pub(super) const FILL_ORDER: Tag = Tag(266);
    pub(super) const STRIP_OFFSETS: Tag = Tag(273);
    pub(super) const ORIENTATION: Tag = Tag(274);
    pub(super) const SAMPLES: Tag = Tag(277);
    pub(super) const ROWS: Tag = Tag(278);
    pub(super) const STRIP_COUNTS: Tag = Tag(279);
    pub(super) const PLANAR: Tag = Tag(284);
    pub(super) const T4_OPTIONS: Tag = Tag(292);
    pub(super) const PREDICTOR: Tag = Tag(317);
    pub(super) const COLOR_MAP: Tag = Tag(320);
    pub(super) const TILE_WIDTH: Tag = Tag(322);
    pub(super) const TILE_HEIGHT: Tag = Tag(323);
    pub(super) const TILE_OFFSETS: Tag = Tag(324);
    pub(super) const TILE_COUNTS: Tag = Tag(325);
    pub(super) const FORMAT: Tag = Tag(339);
    pub(super) const JPEG_TABLES: Tag = Tag(347);
    pub(super) const SUBSAMPLING: Tag = Tag(530);
    pub(super) const XMP: Tag = Tag(700);
}

pub(super) struct File<'a> {
    pub data: &'a [u8],
    pub big_endian: bool,
    /// Offsets of eight bytes.
    big: bool,
}

/// Where the values of a tag lie.
#[derive(Clone, Copy)]
struct Entry {
    tag: u16,
    bytes: usize,
    count: usize,
    at: usize,
}

pub(super) struct Directory(Vec<Entry>);

impl Directory {
    pub(super) fn has(&self, tag: Tag) -> bool {
        self.entry(tag).is_some()
    }

    fn entry(&self, tag: Tag) -> Option<&Entry> {
        self.0.iter().find(|entry| entry.tag == tag.0)
    }
}

impl<'a> File<'a> {
    pub(super) fn open(data: &'a [u8]) -> Option<Self> {
        let big_endian = data.starts_with(b"MM");
        let mut file = File { data, big_endian, big: false };
        file.big = file.read(2, 2)? == 43;
        Some(file)
    }

    /// A number of `bytes` bytes at `at`.
    fn read(&self, at: usize, bytes: usize) -> Option<u64> {
        let data = self.data.get(at..at.checked_add(bytes)?)?;
        let number = |sum: u64, byte: &u8| sum << 8 | u64::from(*byte);
        Some(if self.big_endian { data.iter().fold(0, number) } else { data.iter().rev().fold(0, number) })
    }

    /// The first directory. Tags of unknown types and those whose values lie outside the file are left out.
    pub(super) fn directory(&self) -> Option<Directory> {
        let (word, counter, entry) = if self.big { (8, 8, 20) } else { (4, 2, 12) };
        let start = usize::try_from(self.read(if self.big { 8 } else { 4 }, word)?).ok()?;
        let count = usize::try_from(self.read(start, counter)?).ok()?;
        let first = start.checked_add(counter)?;
        // No more than the file has room for.
        let count = count.min(self.data.len().saturating_sub(first) / entry);
        let entries = (0..count).filter_map(|index| {
            let at = first + index * entry;
            let bytes = match self.read(at + 2, 2)? {
                1 | 2 | 6 | 7 => 1,
                3 | 8 => 2,
                4 | 9 | 11 | 13 => 4,
                5 | 10 | 12 | 16..=18 => 8,
                _ => return None,
            };
            let count = usize::try_from(self.read(at + 4, word)?).ok()?;
            let place = at + 4 + word;
            let length = count.checked_mul(bytes)?;
            let values =
                if length <= word { place } else { usize::try_from(self.read(place, word)?).ok()? };
            self.data.get(values..values.checked_add(length)?)?;
            Some(Entry { tag: self.read(at, 2)? as u16, bytes, count, at: values })
        });
        Some(Directory(entries.collect()))
    }

    /// The `index`th number of a tag.
    pub(super) fn nth(&self, directory: &Directory, tag: Tag, index: usize) -> Option<u64> {
        let entry = directory.entry(tag).filter(|entry| index < entry.count)?;
        self.read(entry.at + index * entry.bytes, entry.bytes)
    }

    pub(super) fn number(&self, directory: &Directory, tag: Tag) -> Option<u64> {
        self.nth(directory, tag, 0)
    }

    /// All numbers of a tag, but at most `most`.
    pub(super) fn numbers(&self, directory: &Directory, tag: Tag, most: usize) -> Vec<u64> {
        (0..most.max(64)).map_while(|index| self.nth(directory, tag, index)).collect()
    }

    /// A tag's values as bytes.
    pub(super) fn bytes(&self, directory: &Directory, tag: Tag) -> Option<Vec<u8>> {
        let entry = directory.entry(tag)?;
        self.data.get(entry.at..entry.at + entry.count * entry.bytes).map(<[u8]>::to_vec)
    }
}
