//! The first page of a TIFF or BigTIFF file: strips or tiles, together or a plane a sample, of 1 to 16 bits, in gray,
//! RGB, CMYK, YCbCr, Lab or with a palette; without compression, with PackBits, LZW, deflate, Zstandard, LZMA, the fax
//! codes, or JPEG, whose streams go to the JPEG decoder with the file's tables before them.
//!
//! Pixels are those of Pillow's `convert("RGB")`, but that of more than eight bits the upper eight are taken, and
//! premultiplied colours stay so. Floats, 32-bit integers and other kinds of Lab are refused by name.
//! Where a file without compression is cut, what is there can be delivered, and the rest is zero, as in Pillow.

mod file;
mod lab;
mod unpack;

use self::file::{Directory, File, Tag};
use self::unpack::{Compression, unpack};
use super::{Session, Want, check_size, exif, jpeg, truncated, values};
use crate::error::SampleError;
use crate::geometry::{Image, Rect, Symmetry};
use crate::limits::{Limits, Truncated};

/// What the samples of a pixel mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Colors {
    Gray { inverted: bool },
    Rgb,
    Palette,
    Cmyk,
    YCbCr,
    Lab,
}

impl Colors {
    /// Samples of a pixel that are used.
    fn samples(self) -> usize {
        match self {
            Colors::Gray { .. } | Colors::Palette => 1,
            Colors::Rgb | Colors::YCbCr | Colors::Lab => 3,
            Colors::Cmyk => 4,
        }
    }
}

struct Tiff<'a> {
    file: File<'a>,
    directory: Directory,
    limits: Limits,
    size: (usize, usize),
    symmetry: Symmetry,
    colors: Colors,
    bits: usize,
    /// Samples of a pixel in the file.
    samples: usize,
    planar: bool,
    compression: Compression,
    /// Samples are stored as differences.
    differences: bool,
    /// Width and height of a strip or tile.
    chunk: (usize, usize),
    /// Luma samples to a chroma sample, across and down, where the samples lie so in the file.
    subsampling: (usize, usize),
    want: Want,
    raw: &'a mut Vec<u8>,
}

pub(crate) fn open<'a>(
    bytes: &'a [u8],
    limits: &Limits,
    want: Want,
    raw: &'a mut Vec<u8>,
) -> Result<impl Session + 'a, SampleError> {
    let file = File::open(bytes).ok_or_else(|| malformed("the file has no directory of its first image"))?;
    let directory = file.directory().ok_or_else(|| truncated("TIFF"))?;
    let number = |tag, default| file.number(&directory, tag).unwrap_or(default);
    let side = |tag| u32::try_from(number(tag, 0)).unwrap_or(u32::MAX);
    let size = check_size("TIFF", (side(Tag::WIDTH), side(Tag::HEIGHT)), limits)?;
    let samples = number(Tag::SAMPLES, 1) as usize;
    let bits = file.numbers(&directory, Tag::BITS, 1);
    let formats = file.numbers(&directory, Tag::FORMAT, 1);
    let bits = check_samples(samples, &bits, &formats)?;
    let compression = Compression::of(number(Tag::COMPRESSION, 1))?;
    let photometric = number(Tag::PHOTOMETRIC, u64::from(samples >= 3) * 2);
    let colors = match photometric {
        0 | 1 => Colors::Gray { inverted: photometric == 0 },
        2 => Colors::Rgb,
        3 => Colors::Palette,
        5 => Colors::Cmyk,
        6 => Colors::YCbCr,
        8 if samples == 3 && bits == 8 => Colors::Lab,
        8..=10 => {
            return Err(unsupported(
                "Lab colours of this kind (only CIE Lab of 8 bits is)",
                "convert it to RGB",
            ));
        }
        other => {
            return Err(unsupported(&format!("photometric interpretation {other}"), "convert it to RGB"));
        }
    };
    if samples < colors.samples() {
        return Err(malformed(&format!("{samples} samples a pixel are too few for {colors:?}")));
    }
    let planar = number(Tag::PLANAR, 1) == 2 && samples > 1;
    let differences = match number(Tag::PREDICTOR, 1) {
        2 if bits == 8 || bits == 16 => true,
        2 | 3 => return Err(unsupported(&format!("a predictor with {bits}-bit samples"), CONVERT)),
        _ => false,
    };
    let packed_ycbcr = colors == Colors::YCbCr && compression != Compression::Jpeg;
    let mut subsampling = (1, 1);
    if packed_ycbcr {
        if bits != 8 || samples != 3 || planar {
            return Err(unsupported("YCbCr colours of this layout", "convert it to RGB"));
        }
        let sampling = file.numbers(&directory, Tag::SUBSAMPLING, 2);
        subsampling = match sampling[..] {
            [x @ (1 | 2 | 4), y @ (1 | 2 | 4)] => (x as usize, y as usize),
            _ => (2, 2),
        };
    }
    let tiled = directory.has(Tag::TILE_WIDTH);
    let chunk = if tiled {
        (number(Tag::TILE_WIDTH, 0) as usize, number(Tag::TILE_HEIGHT, 0) as usize)
    } else {
        (size.0, (number(Tag::ROWS, u64::MAX).min(size.1 as u64)) as usize)
    };
    if chunk.0 == 0 || chunk.1 == 0 {
        return Err(malformed("a strip or tile without pixels"));
    }
    limits.check_pixels("a tile of the image", chunk.0 as u64, chunk.1 as u64)?;
    let memory = (chunk.0 as u64 * chunk.1 as u64).saturating_mul((samples * bits).div_ceil(8) as u64);
    if memory > limits.max_sample_bytes {
        return Err(SampleError::too_large(format!(
            "TIFF: a strip or tile takes {memory} bytes when unpacked, and the limit is {} bytes",
            limits.max_sample_bytes
        )));
    }
    let xmp = file.bytes(&directory, Tag::XMP);
    let symmetry = match file.number(&directory, Tag::ORIENTATION) {
        Some(value) => exif::symmetry(value as u16),
        None => exif::of_metadata(None, xmp.as_deref()),
    };
    Ok(Tiff {
        file,
        directory,
        limits: *limits,
        size,
        symmetry,
        colors,
        bits,
        samples,
        planar,
        compression,
        differences,
        chunk,
        subsampling,
        want,
        raw,
    })
}

/// Named so where it can be filled.
pub(super) const UNCOMPRESSED: &str = "uncompressed TIFF";

const CONVERT: &str = "convert it to 8-bit RGB, for example with `magick in.tif -depth 8 out.png`";

fn check_samples(samples: usize, bits: &[u64], formats: &[u64]) -> Result<usize, SampleError> {
    if !(1..=64).contains(&samples) {
        return Err(malformed(&format!("{samples} samples a pixel")));
    }
    let first = bits.first().copied().unwrap_or(1);
    if bits.iter().any(|other| *other != first) {
        return Err(unsupported("samples of different sizes", CONVERT));
    }
    match formats.first() {
        Some(3) => return Err(unsupported(&format!("{first}-bit float samples"), CONVERT)),
        Some(2) => return Err(unsupported(&format!("{first}-bit signed samples"), CONVERT)),
        Some(5 | 6) => return Err(unsupported("complex samples", CONVERT)),
        _ => {}
    }
    match first {
        1 | 2 | 4 | 8 | 12 | 16 => Ok(first as usize),
        _ => Err(unsupported(&format!("{first}-bit samples"), CONVERT)),
    }
}

fn malformed(what: &str) -> SampleError {
    SampleError::malformed(format!("TIFF: {what}"))
}

fn unsupported(what: &str, remedy: &str) -> SampleError {
    SampleError::unsupported(format!("TIFF: {what}, which are not decoded; {remedy}"))
}

impl Session for Tiff<'_> {
    fn size(&self) -> (usize, usize) {
        self.size
    }

    fn symmetry(&self) -> Symmetry {
        self.symmetry
    }

    fn decode(self: Box<Self>, out: &mut Image) -> Result<(), SampleError> {
        let (w, h) = self.size;
        let across = w.div_ceil(self.chunk.0);
        let down = h.div_ceil(self.chunk.1);
        if self.compression == Compression::Jpeg && !self.planar {
            self.jpeg(across, down, out)?;
            return if self.want.is_values() { values::of_colors("TIFF", out) } else { Ok(()) };
        }
        let used = self.colors.samples();
        let planes = if self.planar { used } else { 1 };
        let mut raw = std::mem::take(self.raw);
        // Used samples of all pixels, eight bits each (or all the bits of a mask); a palette's indices as they are.
        raw.resize(w * h * used * self.sample_bytes(), 0);
        let mut data = Vec::new();
        for plane in 0..planes {
            for index in 0..across * down {
                self.unpacked(plane * across * down + index, index / across, &mut data)?;
                let (x, y) = (index % across * self.chunk.0, index / across * self.chunk.1);
                self.place(&mut data, (x, y), plane, &mut raw);
            }
        }
        let done = if self.want.is_values() {
            self.numbers(&raw, out)
        } else {
            self.convert(&raw, out.pixels_mut())
        };
        *self.raw = raw;
        done
    }
}

impl Tiff<'_> {
    /// The packed bytes of a strip or tile.
    fn packed(&self, index: usize) -> Result<&[u8], SampleError> {
        let tiled = self.directory.has(Tag::TILE_WIDTH);
        let (offsets, counts) = if tiled {
            (Tag::TILE_OFFSETS, Tag::TILE_COUNTS)
        } else {
            (Tag::STRIP_OFFSETS, Tag::STRIP_COUNTS)
        };
        let at = self.file.nth(&self.directory, offsets, index).ok_or_else(|| truncated("TIFF"))?;
        let rest = usize::try_from(at).ok().and_then(|at| self.file.data.get(at..)).unwrap_or_default();
        // Old writers left the lengths out.
        let count = self.file.nth(&self.directory, counts, index).filter(|count| *count > 0);
        let count = count.map_or(rest.len(), |count| count.min(rest.len() as u64) as usize);
        Ok(&rest[..count])
    }

    /// Samples of a pixel that lie together.
    fn together(&self) -> usize {
        if self.planar { 1 } else { self.samples }
    }

    /// Bytes of a sample among those of all pixels: a mask keeps all bits.
    fn sample_bytes(&self) -> usize {
        if self.want.is_values() && self.bits > 8 { 2 } else { 1 }
    }

    /// Bytes of a row of a strip or tile; with subsampled chroma, of a row of its units.
    fn row_bytes(&self) -> usize {
        let (x, y) = self.subsampling;
        if (x, y) != (1, 1) {
            return self.chunk.0.div_ceil(x) * (x * y + 2);
        }
        (self.chunk.0 * self.together() * self.bits).div_ceil(8)
    }

    /// Rows of a strip or tile in the `row`th row of these, as they are stored.
    fn rows(&self, row: usize) -> usize {
        if self.directory.has(Tag::TILE_WIDTH) {
            self.chunk.1
        } else {
            self.chunk.1.min(self.size.1 - row * self.chunk.1)
        }
    }

    /// Unpacks a strip or tile into `data`.
    fn unpacked(&self, index: usize, row: usize, data: &mut Vec<u8>) -> Result<(), SampleError> {
        let rows = self.rows(row).div_ceil(self.subsampling.1);
        data.clear();
        data.resize(self.row_bytes() * rows, 0);
        let reversed = self.file.number(&self.directory, Tag::FILL_ORDER) == Some(2);
        let options = self.file.number(&self.directory, Tag::T4_OPTIONS).unwrap_or(0);
        let packed = self.packed(index)?;
        let width = self.chunk.0;
        if self.compression == Compression::None && packed.len() < data.len() {
            if self.limits.truncated == Truncated::Bad {
                return Err(truncated(UNCOMPRESSED));
            }
            let whole = packed.len() - packed.len() % self.row_bytes();
            data[..whole].copy_from_slice(&packed[..whole]);
            if self.colors == (Colors::Gray { inverted: true }) {
                data[whole..].fill(255);
            }
            return Ok(());
        }
        if !unpack(self.compression, packed, reversed, options, width, data)? {
            return Err(truncated("TIFF"));
        }
        Ok(())
    }

    /// Puts the samples of a strip or tile, whose first pixel is at (x, y), where they belong in `raw`.
    fn place(&self, data: &mut [u8], (x, y): (usize, usize), plane: usize, raw: &mut [u8]) {
        let (w, h) = self.size;
        let used = self.colors.samples();
        let together = self.together();
        let columns = self.chunk.0.min(w - x);
        let row_bytes = self.row_bytes();
        let bytes = self.sample_bytes();
        if self.subsampling != (1, 1) {
            return self.place_units(data, (x, y), raw);
        }
        for (row, data) in data.chunks_exact_mut(row_bytes).take(h - y).enumerate() {
            if self.differences {
                self.sum_up(data, together);
            }
            let to = &mut raw[((y + row) * w + x) * used * bytes..][..columns * used * bytes];
            if self.bits == 8 && together == used {
                to.copy_from_slice(&data[..columns * used]);
                continue;
            }
            for column in 0..columns {
                for sample in 0..together.min(used) {
                    let (from, to_at) = (column * together + sample, column * used + plane + sample);
                    if bytes == 2 {
                        to.as_chunks_mut::<2>().0[to_at] = self.all_bits(data, from).to_le_bytes();
                    } else {
                        to[to_at] = self.sample(data, from);
                    }
                }
            }
        }
    }

    /// The `index`th sample of a row: its upper eight bits, or spread to eight; a palette's index as it is.
    fn sample(&self, row: &[u8], index: usize) -> u8 {
        match self.bits {
            8 => row[index],
            16 => row[2 * index + usize::from(!self.file.big_endian)],
            12 => {
                let at = index * 12;
                let pair = u16::from_be_bytes([row[at / 8], row.get(at / 8 + 1).copied().unwrap_or(0)]);
                (if at.is_multiple_of(8) { pair >> 8 } else { pair >> 4 }) as u8
            }
            bits => {
                let at = index * bits;
                let value = row[at / 8] >> (8 - bits - at % 8) & ((1 << bits) - 1);
                if self.colors == Colors::Palette { value } else { value * (255 / ((1 << bits) - 1)) }
            }
        }
    }

    /// The `index`th sample of a row of 12 or 16 bits.
    fn all_bits(&self, row: &[u8], index: usize) -> u16 {
        let at = index * self.bits / 8;
        let pair = [row[at], row.get(at + 1).copied().unwrap_or(0)];
        match self.bits {
            16 if self.file.big_endian => u16::from_be_bytes(pair),
            16 => u16::from_le_bytes(pair),
            _ if index.is_multiple_of(2) => u16::from_be_bytes(pair) >> 4,
            _ => u16::from_be_bytes(pair) & 0xFFF,
        }
    }

    /// Turns a row of differences into samples.
    fn sum_up(&self, row: &mut [u8], together: usize) {
        if self.bits == 8 {
            for at in together..row.len() {
                row[at] = row[at].wrapping_add(row[at - together]);
            }
            return;
        }
        let big = self.file.big_endian;
        let samples = row.as_chunks_mut::<2>().0;
        for at in together..samples.len() {
            let read = |pair: [u8; 2]| if big { u16::from_be_bytes(pair) } else { u16::from_le_bytes(pair) };
            let sum = read(samples[at]).wrapping_add(read(samples[at - together]));
            samples[at] = if big { sum.to_be_bytes() } else { sum.to_le_bytes() };
        }
    }

    /// As `place`, for chroma that several pixels share: each unit holds their luma, then one pair of chroma.
    fn place_units(&self, data: &[u8], (x, y): (usize, usize), raw: &mut [u8]) {
        let (w, h) = self.size;
        let (across, down) = self.subsampling;
        let unit = across * down + 2;
        for (row, data) in data.chunks_exact(self.row_bytes()).enumerate() {
            for (column, unit) in data.chunks_exact(unit).enumerate() {
                for (at, luma) in unit[..across * down].iter().enumerate() {
                    let (px, py) = (x + column * across + at % across, y + row * down + at / across);
                    if px < w.min(x + self.chunk.0) && py < h {
                        let to = (py * w + px) * 3;
                        raw[to..to + 3].copy_from_slice(&[
                            *luma,
                            unit[across * down],
                            unit[across * down + 1],
                        ]);
                    }
                }
            }
        }
    }

    fn convert(&self, raw: &[u8], pixels: &mut [[u8; 4]]) -> Result<(), SampleError> {
        match self.colors {
            Colors::Gray { inverted: false } => super::fill(pixels, raw, |&[v]| [v; 3]),
            Colors::Gray { inverted: true } => super::fill(pixels, raw, |&[v]| [255 - v; 3]),
            Colors::Rgb => super::fill(pixels, raw, |&rgb: &[u8; 3]| rgb),
            Colors::Cmyk => super::fill(pixels, raw, |&inks| {
                let [r, g, b, _] = rgb_from_cmyk(inks);
                [r, g, b]
            }),
            Colors::YCbCr => super::fill(pixels, raw, ycbcr),
            Colors::Lab => super::fill(pixels, raw, lab::to_rgb),
            Colors::Palette => {
                let colors = 1 << self.bits.min(8);
                let map = self.file.numbers(&self.directory, Tag::COLOR_MAP, 3 << self.bits);
                if self.bits > 8 || map.len() < 3 * colors {
                    return Err(malformed("a palette that does not fit its samples"));
                }
                let color = |index: u8, plane: usize| (map[plane * colors + usize::from(index)] >> 8) as u8;
                super::fill(pixels, raw, |&[v]| [color(v, 0), color(v, 1), color(v, 2)]);
            }
        }
        Ok(())
    }

    /// The numbers of a mask. As in Pillow, gray of more than eight bits is not inverted where a file says that 0 is
    /// white.
    fn numbers(&self, raw: &[u8], out: &mut Image) -> Result<(), SampleError> {
        let (width, wide) = (self.size.0, self.sample_bytes() == 2);
        match self.colors {
            Colors::Gray { .. } | Colors::Palette if wide => {
                values::fill(out.pixels_mut(), raw, |pair: &[u8; 2]| u16::from_le_bytes(*pair));
            }
            Colors::Rgb if wide => {
                let number = |pair: &[u8]| u16::from_le_bytes([pair[0], pair[1]]);
                values::fill_gray("TIFF", width, out.pixels_mut(), raw, |v: &[u8; 6]| {
                    [number(v), number(&v[2..]), number(&v[4..])]
                })?;
            }
            _ if wide => return Err(unsupported("a mask in these colours with more than 8 bits", CONVERT)),
            Colors::Palette => values::fill(out.pixels_mut(), raw, |&[v]| v.into()),
            Colors::Gray { inverted } => {
                let last = if self.bits == 1 { 1 } else { 255 };
                values::fill(out.pixels_mut(), raw, |&[v]| {
                    u16::from(if inverted { last - v.min(last) } else { v.min(last) })
                });
            }
            _ => {
                self.convert(raw, out.pixels_mut())?;
                values::of_colors("TIFF", out)?;
            }
        }
        Ok(())
    }

    /// A JPEG stream in each strip or tile.
    fn jpeg(&self, across: usize, down: usize, out: &mut Image) -> Result<(), SampleError> {
        // What four components are: the stream itself says only whether they are converted.
        let four: fn([u8; 4]) -> [u8; 4] = match (self.colors, self.samples) {
            (Colors::Gray { inverted: false }, 1) | (Colors::Rgb | Colors::YCbCr, 3) => |pixel| pixel,
            (Colors::Rgb, 4) => |[r, g, b, _]| [r, g, b, 255],
            (Colors::Cmyk, 4) => rgb_from_cmyk,
            _ => return Err(unsupported("JPEG streams of these colours", CONVERT)),
        };
        let tables = self.file.bytes(&self.directory, Tag::JPEG_TABLES).unwrap_or_default();
        let tables = tables.strip_prefix(&[0xFF, 0xD8]).unwrap_or(&tables);
        let tables = tables.strip_suffix(&[0xFF, 0xD9]).unwrap_or(tables);
        // An Adobe segment says what the file says elsewhere: whether the components are YCbCr or as they are.
        let adobe = |transform: u8| [&b"\xFF\xEE\0\x0EAdobe\0\x64\0\0\0\0"[..], &[transform]].concat();
        let adobe = adobe(u8::from(self.colors == Colors::YCbCr));
        let (w, h) = self.size;
        let mut part = Image::default();
        for index in 0..across * down {
            let packed = self.packed(index)?;
            let stream = packed
                .strip_prefix(&[0xFF, 0xD8])
                .ok_or_else(|| malformed("a strip that is no JPEG stream"))?;
            let bytes = [&[0xFF, 0xD8], &adobe[..], tables, stream].concat();
            let session = jpeg::open(&bytes, &self.limits)?.converting(four);
            if session.has_four() != (self.samples == 4) {
                return Err(malformed("a JPEG stream with other components than its file says"));
            }
            let (x, y) = (index % across * self.chunk.0, index / across * self.chunk.1);
            let (columns, rows) = (self.chunk.0.min(w - x), self.chunk.1.min(h - y));
            let (part_w, part_h) = session.size();
            if part_w < columns || part_h < rows {
                return Err(malformed("a JPEG stream that is smaller than its strip or tile"));
            }
            let at = session.decode(Rect::sized(columns, rows), &mut part)?;
            let stride = part.size().0;
            let (from, to) = (part.pixels_mut(), out.pixels_mut());
            for row in 0..rows {
                let from = &from[(at.y + row) * stride + at.x..][..columns];
                to[(y + row) * w + x..][..columns].copy_from_slice(from);
            }
        }
        Ok(())
    }
}

/// Inks as they are, where a JPEG file has them inverted.
fn rgb_from_cmyk(inks: [u8; 4]) -> [u8; 4] {
    jpeg::rgb_from_inverted_cmyk(inks.map(|ink| 255 - ink))
}

/// libtiff's conversion with its default coefficients, as JPEG has them.
fn ycbcr(&[y, cb, cr]: &[u8; 3]) -> [u8; 3] {
    let (y, cb, cr) = (f32::from(y), f32::from(cb) - 128.0, f32::from(cr) - 128.0);
    // `as` saturates.
    [y + 1.402 * cr, y - 0.344_136 * cb - 0.714_136 * cr, y + 1.772 * cb].map(|value| (value + 0.5) as u8)
}
