//! Whether a JPEG's data reach to the end of its picture, told from its last bytes.
//!
//! To know it for certain all data must be decoded, also those of rows that a crop leaves out, which would cost a
//! training run 5 to 10 % of its work. A file that was cut gives itself away cheaper: its data stop inside a block. So
//! the last kilobytes are decoded, as far as sizes go. Huffman codes find into step by themselves, whatever place one
//! begins at, and in step they must end with a whole group of blocks and fewer than eight padding bits. Whatever does
//! not end so is decoded to its end by libjpeg, whose word is final.
//!
//! What goes unnoticed here: an end marker after a cut that happens to fall between two groups of blocks with the bits
//! that padding has, about one cut in 125 (`transforms/examples/cut_jpegs.rs`), which libjpeg meets where a region
//! reaches it; and data missing inside, after which the rest is whole. These are damage inside the picture, which
//! libjpeg shows as gray or smeared blocks.

use super::markers::{self, SCAN};

/// How much of the end is looked at: first little, then more, before libjpeg is asked.
const WINDOWS: [usize; 2] = [1 << 9, 1 << 12];

/// `data` is what follows `header`, which ends with the header of the first scan.
pub(crate) fn is_whole(header: &[u8], data: &[u8]) -> bool {
    let Some(end) = data.array_windows().rposition(|pair| pair == &[0xFF, 0xD9]) else { return false };
    // Anything but one Huffman-coded scan of all components is read whole by libjpeg, or has no ends to look at.
    if !matches!(markers::frame(header), Some(0xC0 | 0xC1)) {
        return true;
    }
    let Some(scan) = Scan::parse(header) else { return false };
    let mut end = end;
    while end > 0 && data[end - 1] == 0xFF {
        end -= 1;
    }
    // A short file is soon read to its end.
    end > 2 * WINDOWS[1] && WINDOWS.iter().any(|&window| scan.ends_well(data, end - window, end))
}

/// What one scan's codes mean.
struct Scan {
    /// DC and AC table of each block of a group, in their order.
    blocks: Vec<(usize, usize)>,
    dc: [Option<Table>; 4],
    ac: [Option<Table>; 4],
    /// Groups between restart markers, 0 without these, and in all.
    restart: usize,
    groups: usize,
}

impl Scan {
    fn parse(header: &[u8]) -> Option<Self> {
        let (mut dc, mut ac) = ([const { None }; 4], [const { None }; 4]);
        let (mut restart, mut frame) = (0, &[][..]);
        for (marker, body) in markers::segments(header) {
            match marker {
                0xC4 => {
                    let mut rest = body;
                    while let Some((&[class], tables)) = rest.split_first_chunk() {
                        let (table, after) = Table::parse(tables)?;
                        let tables = if class & 0x10 == 0 { &mut dc } else { &mut ac };
                        *tables.get_mut(usize::from(class & 0xF))? = Some(table);
                        rest = after;
                    }
                }
                0xDD => restart = usize::from(u16::from_be_bytes(body.get(..2)?.try_into().ok()?)),
                SCAN => {
                    let mut scan = Self::of_components(frame, body)?;
                    (scan.dc, scan.ac, scan.restart) = (dc, ac, restart);
                    return Some(scan);
                }
                marker if markers::is_frame(marker) => frame = body,
                _ => {}
            }
        }
        None
    }

    /// The blocks of a group; `None` for a scan that has not all components.
    fn of_components(frame: &[u8], scan: &[u8]) -> Option<Self> {
        let side = |at: usize| Some(usize::from(u16::from_be_bytes(frame.get(at..at + 2)?.try_into().ok()?)));
        let (height, width) = (side(1)?, side(3)?);
        let components = frame.get(6..)?.as_chunks::<3>().0;
        let chosen = scan.get(1..)?.as_chunks::<2>().0;
        if components.len() != usize::from(*scan.first()?) || chosen.len() < components.len() {
            return None;
        }
        let single = components.len() == 1;
        let mut blocks = Vec::new();
        let (mut across, mut down) = (1, 1);
        for &[id, tables] in &chosen[..components.len()] {
            let [_, sampling, _] = components.iter().find(|component| component[0] == id)?;
            let (h, v) = (usize::from(sampling >> 4), usize::from(sampling & 0xF));
            (across, down) = (across.max(h), down.max(v));
            let count = if single { 1 } else { h * v };
            blocks.extend(std::iter::repeat_n((usize::from(tables >> 4), usize::from(tables & 0xF)), count));
        }
        if single {
            (across, down) = (1, 1);
        }
        let groups = width.div_ceil(8 * across) * height.div_ceil(8 * down);
        (1..=10).contains(&blocks.len()).then_some(Scan {
            blocks,
            dc: [const { None }; 4],
            ac: [const { None }; 4],
            restart: 0,
            groups,
        })
    }

    /// Whether the codes of `data[start..end]` end with a whole group.
    fn ends_well(&self, data: &[u8], start: usize, end: usize) -> bool {
        let restart =
            data[start..end].array_windows().rposition(|&[a, b]| a == 0xFF && (0xD0..=0xD7).contains(&b));
        let (start, expected) = match restart {
            // After a restart marker everything is known: which it must be, and how many groups follow.
            Some(at) if self.restart > 0 => {
                let intervals = self.groups.div_ceil(self.restart);
                let number = usize::from(data[start + at + 1] & 7);
                if intervals < 2 || number != (intervals - 2) % 8 {
                    return false;
                }
                (start + at + 2, Some(self.groups - (intervals - 1) * self.restart))
            }
            Some(_) => return false,
            None => (start, None),
        };
        let mut bits = Bits::new(&data[start..end]);
        let mut groups = 0;
        'groups: loop {
            if bits.is_padding() && (groups > 0 || expected == Some(0)) {
                return expected.is_none_or(|expected| groups == expected);
            }
            for &(dc, ac) in &self.blocks {
                let (Some(dc), Some(ac)) = (&self.dc[dc & 3], &self.ac[ac & 3]) else { return false };
                match bits.block(dc, ac) {
                    Step::Done => {}
                    Step::Empty => return false,
                    // Not in step yet.
                    Step::NoCode if expected.is_none() => {
                        bits.skip(1);
                        continue 'groups;
                    }
                    Step::NoCode => return false,
                }
            }
            groups += 1;
        }
    }
}

/// A Huffman table by the first eight bits of a code.
struct Table {
    /// Length of the code and its symbol; a length of 0 where the code is longer.
    short: [(u8, u8); 256],
    /// For each length, the first code behind those of this length, left-aligned to 16 bits; and the index of its
    /// first symbol less its first code.
    limits: [u32; 17],
    offsets: [i32; 17],
    symbols: Vec<u8>,
}

impl Table {
    /// The table at the start of `bytes`, and what follows it.
    fn parse(bytes: &[u8]) -> Option<(Self, &[u8])> {
        let (counts, rest) = bytes.split_first_chunk::<16>()?;
        let total = counts.iter().map(|&count| usize::from(count)).sum();
        let symbols = rest.get(..total)?;
        let mut table =
            Table { short: [(0, 0); 256], limits: [0; 17], offsets: [0; 17], symbols: symbols.to_vec() };
        let (mut code, mut index) = (0u32, 0usize);
        for length in 1..=16usize {
            table.offsets[length] = index as i32 - code as i32;
            for _ in 0..counts[length - 1] {
                if code >= 1 << length {
                    return None;
                }
                if length <= 8 {
                    let first = (code << (8 - length)) as usize;
                    table.short[first..first + (1 << (8 - length))].fill((length as u8, symbols[index]));
                }
                (code, index) = (code + 1, index + 1);
            }
            table.limits[length] = code << (16 - length);
            code <<= 1;
        }
        Some((table, &rest[total..]))
    }

    /// Length and symbol of the code at the start of 16 bits.
    fn look_up(&self, bits: u16) -> Option<(u8, u8)> {
        let (length, symbol) = self.short[usize::from(bits >> 8)];
        if length > 0 {
            return Some((length, symbol));
        }
        let bits = u32::from(bits);
        let length = (9..=16).find(|&length| bits < self.limits[length])?;
        let index = (bits >> (16 - length)) as i32 + self.offsets[length];
        Some((length as u8, *self.symbols.get(usize::try_from(index).ok()?)?))
    }
}

enum Step {
    Done,
    Empty,
    NoCode,
}

/// Entropy-coded bits, without the zero that follows each FF.
struct Bits<'a> {
    rest: &'a [u8],
    held: u64,
    count: u32,
}

impl<'a> Bits<'a> {
    fn new(mut rest: &'a [u8]) -> Self {
        // Whether it follows an FF is not known; without the zero it is right in any case.
        if let [0, after @ ..] = rest {
            rest = after;
        }
        Bits { rest, held: 0, count: 0 }
    }

    fn fill(&mut self) {
        while self.count <= 48 {
            let Some((&byte, mut after)) = self.rest.split_first() else { return };
            if byte == 0xFF
                && let [0, behind @ ..] = after
            {
                after = behind;
            }
            self.rest = after;
            self.held = self.held << 8 | u64::from(byte);
            self.count += 8;
        }
    }

    /// The next 16 bits; zeros stand for those that are not there.
    fn peek(&self) -> u16 {
        if self.count >= 16 {
            (self.held >> (self.count - 16)) as u16
        } else {
            (self.held << (16 - self.count)) as u16
        }
    }

    /// False where there are not so many.
    fn skip(&mut self, bits: u32) -> bool {
        if bits > self.count {
            self.fill();
        }
        let enough = bits <= self.count;
        self.count -= bits.min(self.count);
        enough
    }

    /// Whether nothing is left but the ones that fill up the last byte.
    fn is_padding(&self) -> bool {
        let mask = (1u64 << self.count.min(8)) - 1;
        self.rest.is_empty() && self.count < 8 && self.held & mask == mask
    }

    fn block(&mut self, dc: &Table, ac: &Table) -> Step {
        let mut place = 0;
        while place < 64 {
            self.fill();
            let table = if place == 0 { dc } else { ac };
            let Some((length, symbol)) = table.look_up(self.peek()) else {
                return if self.count < 16 { Step::Empty } else { Step::NoCode };
            };
            let (run, size) = (usize::from(symbol >> 4), u32::from(symbol & 0xF));
            if !self.skip(u32::from(length)) || !self.skip(size) {
                return Step::Empty;
            }
            place += match (place, run, size) {
                (0, ..) => 1,
                (_, 15, 0) => 16,
                (_, _, 0) => break,
                (_, run, _) => run + 1,
            };
        }
        Step::Done
    }
}
