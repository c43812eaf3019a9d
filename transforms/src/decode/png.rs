//! PNG by the `png` crate, row by row, so that a picture that is all there is known from one that is not: a file may
//! end after its last row, without the chunks that should follow.

use std::io::{self, Cursor};

use flate2::read::ZlibDecoder;
use png::{BitDepth, ColorType, DecodingError, InterlaceInfo, Transformations};

use super::{Session, Want, check_size, exif, fill, truncated, values};
use crate::error::SampleError;
use crate::geometry::{Image, Symmetry};
use crate::limits::{Limits, Truncated};

struct Png<'a> {
    reader: png::Reader<Cursor<&'a [u8]>>,
    size: (usize, usize),
    symmetry: Symmetry,
    truncated: Truncated,
    want: Want,
    raw: &'a mut Vec<u8>,
}

pub(crate) fn open<'a>(
    bytes: &'a [u8],
    limits: &Limits,
    want: Want,
    raw: &'a mut Vec<u8>,
) -> Result<impl Session + 'a, SampleError> {
    let memory = usize::try_from(limits.max_sample_bytes).unwrap_or(usize::MAX);
    let mut decoder = png::Decoder::new_with_limits(Cursor::new(bytes), png::Limits { bytes: memory });
    // None of these changes a pixel.
    decoder.set_ignore_text_chunk(true);
    decoder.set_ignore_iccp_chunk(true);
    let info = decoder.read_header_info().map_err(refuse)?;
    let size = check_size("PNG", info.size(), limits)?;
    // Of a picture, fewer than eight bits become eight, palettes colours; a mask stays as it is.
    let expand = if want.is_values() { Transformations::IDENTITY } else { Transformations::EXPAND };
    decoder.set_transformations(expand);
    let reader = decoder.read_info().map_err(refuse)?;
    let bytes_needed = reader.output_buffer_size().unwrap_or(usize::MAX);
    if bytes_needed as u64 > limits.max_sample_bytes {
        return Err(SampleError::too_large(format!(
            "the image is {} x {} pixels, {bytes_needed} bytes when decoded, and the limit is {} bytes",
            size.0, size.1, limits.max_sample_bytes
        )));
    }
    Ok(Png { reader, size, symmetry: orientation(bytes), truncated: limits.truncated, want, raw })
}

impl Session for Png<'_> {
    fn size(&self) -> (usize, usize) {
        self.size
    }

    fn symmetry(&self) -> Symmetry {
        self.symmetry
    }

    fn decode(mut self: Box<Self>, out: &mut Image) -> Result<(), SampleError> {
        let (color, depth) = self.reader.output_color_type();
        let stride = self.reader.output_line_size(self.size.0 as u32).unwrap_or(0);
        self.raw.resize(stride * self.size.1, 0);
        match self.rows(stride, color.samples() as u8 * depth as u8) {
            Err(DecodingError::IoError(error)) if error.kind() == io::ErrorKind::UnexpectedEof => {
                if self.truncated == Truncated::Bad {
                    return Err(truncated("PNG"));
                }
            }
            result => result.map_err(refuse)?,
        }
        if self.want.is_values() {
            return numbers((color, depth), self.size.0, &self.raw[..], stride, out.pixels_mut());
        }
        let (raw, pixels) = (&self.raw[..], out.pixels_mut());
        match (color, depth) {
            (ColorType::Grayscale, BitDepth::Eight) => fill(pixels, raw, |&[v]| [v; 3]),
            (ColorType::GrayscaleAlpha, BitDepth::Eight) => fill(pixels, raw, |&[v, _]| [v; 3]),
            (ColorType::Rgb, BitDepth::Eight) => fill(pixels, raw, |&rgb: &[u8; 3]| rgb),
            (ColorType::Rgba, BitDepth::Eight) => fill(pixels, raw, |&[r, g, b, _]| [r, g, b]),
            // The upper byte comes first.
            (ColorType::Grayscale, BitDepth::Sixteen) => fill(pixels, raw, |&[v, _]| [v; 3]),
            (ColorType::GrayscaleAlpha, BitDepth::Sixteen) => fill(pixels, raw, |&[v, _, _, _]| [v; 3]),
            (ColorType::Rgb, BitDepth::Sixteen) => fill(pixels, raw, |&[r, _, g, _, b, _]| [r, g, b]),
            (ColorType::Rgba, BitDepth::Sixteen) => {
                fill(pixels, raw, |&[r, _, g, _, b, ..]: &[u8; 8]| [r, g, b])
            }
            other => return Err(SampleError::unsupported(format!("PNG: pixels of type {other:?}"))),
        }
        Ok(())
    }
}

impl Png<'_> {
    /// Reads all rows into `raw`, then the rest of the image's data.
    fn rows(&mut self, stride: usize, bits: u8) -> Result<(), DecodingError> {
        let rows = if self.reader.info().interlaced { passes(self.size).sum() } else { self.size.1 };
        let mut done = 0;
        loop {
            match self.reader.next_interlaced_row() {
                Ok(Some(row)) => match row.interlace() {
                    InterlaceInfo::Adam7(pass) => {
                        png::expand_interlaced_row(self.raw, stride, row.data(), pass, bits);
                    }
                    InterlaceInfo::Null(_) => {
                        if let Some(to) = self.raw.get_mut(done * stride..(done + 1) * stride) {
                            to.copy_from_slice(row.data());
                        }
                    }
                },
                Ok(None) => return Ok(()),
                // Only what should follow the last row is missing.
                Err(DecodingError::IoError(error))
                    if done >= rows && error.kind() == io::ErrorKind::UnexpectedEof =>
                {
                    return Ok(());
                }
                Err(error) => return Err(error),
            }
            done += 1;
        }
    }
}

/// The numbers of a mask, from rows as they are stored, `stride` bytes apart.
fn numbers(
    (color, depth): (ColorType, BitDepth),
    width: usize,
    raw: &[u8],
    stride: usize,
    pixels: &mut [[u8; 4]],
) -> Result<(), SampleError> {
    let wide = |high: u8, low: u8| u16::from_be_bytes([high, low]);
    match (color, depth) {
        (ColorType::Grayscale | ColorType::Indexed, BitDepth::Eight) => {
            values::fill(pixels, raw, |&[v]| v.into());
        }
        (ColorType::Grayscale | ColorType::Indexed, BitDepth::One | BitDepth::Two | BitDepth::Four) => {
            let bits = depth as usize;
            // Gray of two and four bits is spread to eight; an index, and a single bit, stay as they are.
            let factor = match (color, bits) {
                (ColorType::Indexed, _) | (_, 1) => 1,
                _ => 255 / ((1 << bits) - 1),
            };
            for (row, pixels) in raw.chunks_exact(stride).zip(pixels.chunks_exact_mut(width)) {
                for (x, pixel) in pixels.iter_mut().enumerate() {
                    let at = x * bits;
                    let value = row[at / 8] >> (8 - bits - at % 8) & ((1 << bits) - 1);
                    *pixel = values::pixel(u16::from(value) * factor);
                }
            }
        }
        (ColorType::Grayscale, BitDepth::Sixteen) => values::fill(pixels, raw, |&[h, l]| wide(h, l)),
        (ColorType::GrayscaleAlpha, BitDepth::Eight) => values::fill(pixels, raw, |&[v, _]| v.into()),
        (ColorType::GrayscaleAlpha, BitDepth::Sixteen) => {
            values::fill(pixels, raw, |&[h, l, _, _]| wide(h, l));
        }
        (ColorType::Rgb, BitDepth::Eight) => {
            values::fill_gray("PNG", width, pixels, raw, |rgb: &[u8; 3]| rgb.map(u16::from))?;
        }
        (ColorType::Rgba, BitDepth::Eight) => {
            values::fill_gray("PNG", width, pixels, raw, |&[r, g, b, _]| [r, g, b].map(u16::from))?;
        }
        (ColorType::Rgb, BitDepth::Sixteen) => {
            values::fill_gray("PNG", width, pixels, raw, |&[r, s, g, h, b, c]| {
                [wide(r, s), wide(g, h), wide(b, c)]
            })?;
        }
        (ColorType::Rgba, BitDepth::Sixteen) => {
            values::fill_gray("PNG", width, pixels, raw, |&[r, s, g, h, b, c, _, _]| {
                [wide(r, s), wide(g, h), wide(b, c)]
            })?;
        }
        other => return Err(SampleError::unsupported(format!("PNG: pixels of type {other:?}"))),
    }
    Ok(())
}

/// The rows of each pass of an interlaced image.
fn passes((w, h): (usize, usize)) -> impl Iterator<Item = usize> {
    // First column, columns apart, first row, rows apart.
    const PASSES: [[usize; 4]; 7] =
        [[0, 8, 0, 8], [4, 8, 0, 8], [0, 4, 4, 8], [2, 4, 0, 4], [0, 2, 2, 4], [1, 2, 0, 2], [0, 1, 1, 2]];
    PASSES.into_iter().map(move |[x, _, y, dy]| if x < w { h.saturating_sub(y).div_ceil(dy) } else { 0 })
}

/// The EXIF orientation, wherever the file keeps it: chunks may stand before the picture or after it.
fn orientation(bytes: &[u8]) -> Symmetry {
    let (mut exif, mut profile, mut xmp) = (None, None, None);
    for (kind, data) in chunks(bytes) {
        match kind {
            b"eXIf" => exif = exif.or(Some(data)),
            b"tEXt" | b"zTXt" | b"iTXt" => {
                let Some((name, text)) = keyword(data) else { continue };
                if name.starts_with(b"Raw profile type ") && profile.is_none() {
                    profile = text_of(kind, text).and_then(|text| raw_profile(&text));
                } else if name == b"XML:com.adobe.xmp" && xmp.is_none() {
                    xmp = text_of(kind, text);
                }
            }
            _ => {}
        }
    }
    exif::of_metadata(exif.or(profile.as_deref()), xmp.as_deref())
}

/// Kind and content of each chunk, as far as the file is in order.
fn chunks(bytes: &[u8]) -> impl Iterator<Item = (&[u8; 4], &[u8])> {
    let mut rest = bytes.get(8..).unwrap_or_default();
    std::iter::from_fn(move || {
        let (length, after) = rest.split_first_chunk::<4>()?;
        let (kind, after) = after.split_first_chunk::<4>()?;
        let data = after.get(..u32::from_be_bytes(*length) as usize)?;
        rest = after.get(data.len() + 4..).unwrap_or_default();
        Some((kind, data))
    })
}

fn keyword(data: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = data.iter().take(80).position(|byte| *byte == 0)?;
    Some((&data[..end], &data[end + 1..]))
}

/// The text of a chunk of text, at most as much of it as an orientation can lie behind.
fn text_of(kind: &[u8; 4], text: &[u8]) -> Option<Vec<u8>> {
    const MOST: u64 = 1 << 20;
    let (packed, text) = match kind {
        b"tEXt" => (false, text),
        b"zTXt" => (true, text.get(1..)?),
        _ => {
            let (&[packed, _], rest) = text.split_first_chunk()?;
            let language = rest.iter().position(|byte| *byte == 0)?;
            let rest = &rest[language + 1..];
            let translated = rest.iter().position(|byte| *byte == 0)?;
            (packed != 0, &rest[translated + 1..])
        }
    };
    if !packed {
        return Some(text[..text.len().min(MOST as usize)].to_vec());
    }
    let mut plain = Vec::new();
    // What could be unpacked before an error is enough.
    let _ = io::Read::read_to_end(&mut io::Read::take(ZlibDecoder::new(text), MOST), &mut plain);
    Some(plain)
}

/// ImageMagick's way to keep EXIF data as text: a name, a length, then hexadecimal digits.
fn raw_profile(text: &[u8]) -> Option<Vec<u8>> {
    let mut lines = text.trim_ascii_start().split(|byte| *byte == b'\n');
    let name = lines.next()?.trim_ascii();
    if !(name.eq_ignore_ascii_case(b"exif") || name.eq_ignore_ascii_case(b"app1")) {
        return None;
    }
    lines.next()?;
    let digits: Vec<u8> =
        lines.flatten().filter_map(|byte| (*byte as char).to_digit(16)).map(|digit| digit as u8).collect();
    Some(digits.as_chunks::<2>().0.iter().map(|[high, low]| high << 4 | low).collect())
}

fn refuse(error: DecodingError) -> SampleError {
    match error {
        DecodingError::LimitsExceeded => {
            SampleError::too_large("PNG: decoding needs more memory than the limit")
        }
        DecodingError::IoError(error) if error.kind() == io::ErrorKind::UnexpectedEof => truncated("PNG"),
        other => SampleError::malformed(format!("PNG: {other}")),
    }
}
