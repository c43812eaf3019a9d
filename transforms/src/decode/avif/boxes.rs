//! The boxes of an AVIF file: which items there are, where their bytes lie, and their properties.

use crate::geometry::Symmetry;

/// Items, properties and tiles beyond this are damage: the largest pictures have a few hundred tiles.
const MOST: usize = 4096;

/// How the samples of a picture mean colours, where the file says more than the picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Colors {
    pub primaries: u16,
    pub matrix: u16,
    pub full_range: bool,
}

#[derive(Clone, Debug)]
pub(super) struct Item {
    id: u32,
    pub kind: [u8; 4],
    pub size: Option<(u32, u32)>,
    pub colors: Option<Colors>,
    /// Quarter turns against the clock.
    turns: u8,
    /// Whether the picture is mirrored: top to bottom, or left to right.
    mirror: Option<bool>,
}

impl Item {
    /// First the turn, then the mirror.
    pub(super) fn symmetry(&self) -> Symmetry {
        let turned = match self.turns {
            0 => Symmetry::IDENTITY,
            1 => Symmetry { transpose: true, flip_x: false, flip_y: true },
            2 => Symmetry { transpose: false, flip_x: true, flip_y: true },
            _ => Symmetry { transpose: true, flip_x: true, flip_y: false },
        };
        turned.then_flip(self.mirror == Some(true), self.mirror == Some(false))
    }
}

#[derive(Clone, Copy)]
enum Property {
    Size(u32, u32),
    Turns(u8),
    Mirror(bool),
    Colors(Colors),
    Other,
}

/// Stretches of a file's bytes, or of the `idat` box, that make up an item.
struct Location {
    id: u32,
    in_idat: bool,
    extents: Vec<(u64, u64)>,
}

#[derive(Default)]
pub(super) struct Container<'a> {
    bytes: &'a [u8],
    idat: &'a [u8],
    primary: Option<u32>,
    kinds: Vec<(u32, [u8; 4])>,
    locations: Vec<Location>,
    properties: Vec<Property>,
    /// Item, then its properties, counted from 1.
    associations: Vec<(u32, Vec<usize>)>,
    /// Item, then the tiles it is made of.
    tiles: Vec<(u32, Vec<u32>)>,
}

/// Reads numbers off the front of bytes.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    /// A number of up to eight bytes; none of no bytes is 0.
    fn number(&mut self, bytes: usize) -> Option<u64> {
        Some(self.take(bytes)?.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte)))
    }

    fn u8(&mut self) -> Option<u8> {
        self.number(1).map(|number| number as u8)
    }

    fn u16(&mut self) -> Option<u16> {
        self.number(2).map(|number| number as u16)
    }

    fn u32(&mut self) -> Option<u32> {
        self.number(4).map(|number| number as u32)
    }

    /// Version and flags of a box that has them.
    fn version(&mut self) -> Option<(u8, u32)> {
        let both = self.u32()?;
        Some(((both >> 24) as u8, both & 0xFF_FFFF))
    }

    /// The kind and content of the next box; the last may reach to the end.
    fn next_box(&mut self) -> Option<([u8; 4], &'a [u8])> {
        let before = self.0.len();
        let length = self.u32()?;
        let kind = self.take(4)?.try_into().ok()?;
        let length = match length {
            0 => before as u64,
            1 => self.number(8)?,
            length => length.into(),
        };
        let header = before - self.0.len();
        let content = usize::try_from(length).ok()?.checked_sub(header)?;
        // A file that was cut may still hold all of the picture.
        let content = if &kind == b"mdat" { content.min(self.0.len()) } else { content };
        Some((kind, self.take(content)?))
    }
}

impl<'a> Container<'a> {
    pub(super) fn parse(bytes: &'a [u8]) -> Option<Self> {
        let mut container = Container { bytes, ..Container::default() };
        let mut boxes = Reader(bytes);
        while !boxes.0.is_empty() {
            let (kind, content) = boxes.next_box()?;
            if &kind == b"meta" {
                container.meta(content)?;
                break;
            }
        }
        Some(container)
    }

    fn meta(&mut self, content: &'a [u8]) -> Option<()> {
        let mut boxes = Reader(content);
        boxes.version()?;
        while !boxes.0.is_empty() {
            let (kind, content) = boxes.next_box()?;
            let mut reader = Reader(content);
            match &kind {
                b"pitm" => {
                    let (version, _) = reader.version()?;
                    self.primary = Some(if version == 0 { reader.u16()?.into() } else { reader.u32()? });
                }
                b"idat" => self.idat = content,
                b"iinf" => self.kinds(reader)?,
                b"iloc" => self.locations(reader)?,
                b"iref" => self.references(reader)?,
                b"iprp" => {
                    while !reader.0.is_empty() {
                        let (kind, content) = reader.next_box()?;
                        match &kind {
                            b"ipco" => self.properties(Reader(content))?,
                            b"ipma" => self.associations(Reader(content))?,
                            _ => {}
                        }
                    }
                }
                _ => {}
            }
        }
        Some(())
    }

    fn kinds(&mut self, mut reader: Reader<'a>) -> Option<()> {
        let (version, _) = reader.version()?;
        let count = reader.number(if version == 0 { 2 } else { 4 })?;
        for _ in 0..count {
            let (kind, content) = reader.next_box()?;
            let mut entry = Reader(content);
            let (version, _) = entry.version()?;
            if &kind != b"infe" || version < 2 {
                continue;
            }
            let id = if version == 2 { entry.u16()?.into() } else { entry.u32()? };
            entry.u16()?;
            self.kinds.push((id, entry.take(4)?.try_into().ok()?));
            (self.kinds.len() <= MOST).then_some(())?;
        }
        Some(())
    }

    fn locations(&mut self, mut reader: Reader<'a>) -> Option<()> {
        let (version, _) = reader.version()?;
        let sizes = reader.u16()?;
        let [offset, length, base, index] = [12, 8, 4, 0].map(|shift| usize::from(sizes >> shift & 0xF));
        if offset > 8 || length > 8 || base > 8 || index > 8 {
            return None;
        }
        let count = reader.number(if version < 2 { 2 } else { 4 })?;
        for _ in 0..count {
            let id = if version < 2 { reader.u16()?.into() } else { reader.u32()? };
            let method = if version > 0 { reader.u16()? & 0xF } else { 0 };
            reader.u16()?;
            let base = reader.number(base)?;
            let extents = (0..reader.u16()?)
                .map(|_| {
                    if version > 0 {
                        reader.number(index)?;
                    }
                    Some((base.checked_add(reader.number(offset)?)?, reader.number(length)?))
                })
                .collect::<Option<Vec<_>>>()?;
            // Two more methods exist, which no AVIF file uses.
            if method < 2 {
                self.locations.push(Location { id, in_idat: method == 1, extents });
            }
            (self.locations.len() <= MOST).then_some(())?;
        }
        Some(())
    }

    fn references(&mut self, mut reader: Reader<'a>) -> Option<()> {
        let (version, _) = reader.version()?;
        let word = if version == 0 { 2 } else { 4 };
        while !reader.0.is_empty() {
            let (kind, content) = reader.next_box()?;
            let mut reference = Reader(content);
            let from = reference.number(word)? as u32;
            let count = reference.u16()?;
            let to =
                (0..count).map(|_| reference.number(word).map(|id| id as u32)).collect::<Option<Vec<_>>>()?;
            if &kind == b"dimg" && to.len() <= MOST {
                self.tiles.push((from, to));
            }
            (self.tiles.len() <= MOST).then_some(())?;
        }
        Some(())
    }

    fn properties(&mut self, mut reader: Reader<'a>) -> Option<()> {
        while !reader.0.is_empty() {
            let (kind, content) = reader.next_box()?;
            let mut value = Reader(content);
            let property = match &kind {
                b"ispe" => {
                    value.version()?;
                    Property::Size(value.u32()?, value.u32()?)
                }
                b"irot" => Property::Turns(value.u8()? & 3),
                b"imir" => Property::Mirror(value.u8()? & 1 == 1),
                b"colr" if value.take(4)? == b"nclx" => {
                    let primaries = value.u16()?;
                    value.u16()?;
                    let matrix = value.u16()?;
                    Property::Colors(Colors { primaries, matrix, full_range: value.u8()? & 0x80 != 0 })
                }
                _ => Property::Other,
            };
            self.properties.push(property);
            (self.properties.len() <= MOST).then_some(())?;
        }
        Some(())
    }

    fn associations(&mut self, mut reader: Reader<'a>) -> Option<()> {
        let (version, flags) = reader.version()?;
        for _ in 0..reader.u32()? {
            let id = if version == 0 { reader.u16()?.into() } else { reader.u32()? };
            let count = reader.u8()?;
            // The highest bit says that a property is essential.
            let index = |reader: &mut Reader<'_>| {
                Some(
                    if flags & 1 == 1 { reader.u16()? & 0x7FFF } else { u16::from(reader.u8()? & 0x7F) }
                        .into(),
                )
            };
            let indices = (0..count).map(|_| index(&mut reader)).collect::<Option<Vec<usize>>>()?;
            self.associations.push((id, indices));
            (self.associations.len() <= MOST).then_some(())?;
        }
        Some(())
    }

    fn item(&self, id: u32) -> Option<Item> {
        let kind = self.kinds.iter().find(|(other, _)| *other == id)?.1;
        let mut item = Item { id, kind, size: None, colors: None, turns: 0, mirror: None };
        let of_item =
            self.associations.iter().filter(|(other, _)| *other == id).flat_map(|(_, indices)| indices);
        for property in of_item.filter_map(|index| self.properties.get(index.checked_sub(1)?)) {
            match *property {
                Property::Size(w, h) => item.size = Some((w, h)),
                Property::Turns(turns) => item.turns = turns,
                Property::Mirror(across) => item.mirror = Some(across),
                Property::Colors(colors) => item.colors = Some(colors),
                Property::Other => {}
            }
        }
        Some(item)
    }

    pub(super) fn primary(&self) -> Option<Item> {
        self.item(self.primary?)
    }

    pub(super) fn tiles(&self, item: &Item) -> Vec<Item> {
        let found = self.tiles.iter().find(|(id, _)| *id == item.id);
        found.map_or(Vec::new(), |(_, ids)| ids.iter().filter_map(|id| self.item(*id)).collect())
    }

    /// An item's bytes; `None` if some lie beyond the file.
    pub(super) fn data(&self, item: &Item) -> Option<Vec<u8>> {
        let location = self.locations.iter().find(|location| location.id == item.id)?;
        let source = if location.in_idat { self.idat } else { self.bytes };
        let mut data = Vec::new();
        for &(at, length) in &location.extents {
            let rest = source.get(usize::try_from(at).ok()?..)?;
            let length = if length == 0 { rest.len() } else { usize::try_from(length).ok()? };
            data.extend(rest.get(..length)?);
            // Stretches that lie on each other cannot make more than the file is long.
            (data.len() <= self.bytes.len()).then_some(())?;
        }
        Some(data)
    }
}

/// How tiles make up a picture.
pub(super) struct Grid {
    pub columns: usize,
    pub rows: usize,
    pub size: (usize, usize),
}

impl Grid {
    pub(super) fn parse(data: &[u8]) -> Option<Self> {
        let mut reader = Reader(data);
        reader.u8()?;
        let bytes = if reader.u8()? & 1 == 0 { 2 } else { 4 };
        let rows = usize::from(reader.u8()?) + 1;
        let columns = usize::from(reader.u8()?) + 1;
        let size = (reader.number(bytes)? as usize, reader.number(bytes)? as usize);
        Some(Grid { columns, rows, size })
    }
}
