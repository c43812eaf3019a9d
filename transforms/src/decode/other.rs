//! BMP, PNM and WebP by the `image` crate.
//!
//! The indices of a BMP with a palette are had by giving it one in which every index is its own gray.

use std::borrow::Cow;
use std::io::Cursor;

use image::error::{ImageError, ImageFormatHint, LimitErrorKind};
use image::{ColorType, ExtendedColorType, ImageDecoder, ImageFormat, ImageReader};

use super::{Format, Session, Want, check_size, exif, fill, values};
use crate::error::SampleError;
use crate::geometry::{Image, Symmetry};
use crate::limits::Limits;

struct Other<'a> {
    decoder: Box<dyn ImageDecoder + 'a>,
    size: (usize, usize),
    name: &'static str,
    symmetry: Symmetry,
    want: Want,
    raw: &'a mut Vec<u8>,
}

pub(crate) fn open<'a>(
    format: Format,
    bytes: &'a [u8],
    limits: &Limits,
    want: Want,
    raw: &'a mut Vec<u8>,
) -> Result<impl Session + 'a, SampleError> {
    let name = format.name();
    let (of_image, bytes) = match format {
        Format::Bmp if want.is_values() => (ImageFormat::Bmp, with_indices(windows_bmp(bytes))),
        Format::Bmp => (ImageFormat::Bmp, windows_bmp(bytes)),
        Format::WebP => (ImageFormat::WebP, bytes.into()),
        _ => (ImageFormat::Pnm, bytes.into()),
    };
    let mut reader = ImageReader::with_format(Cursor::new(bytes), of_image);
    let mut bounds = image::Limits::default();
    bounds.max_alloc = Some(limits.max_sample_bytes);
    reader.limits(bounds);
    let mut decoder = reader.into_decoder().map_err(|error| refuse(name, error))?;
    let size = check_size(name, decoder.dimensions(), limits)?;
    if decoder.total_bytes() > limits.max_sample_bytes {
        return Err(SampleError::too_large(format!(
            "the image is {} x {} pixels, {} bytes when decoded, and the limit is {} bytes",
            size.0,
            size.1,
            decoder.total_bytes(),
            limits.max_sample_bytes
        )));
    }
    // Broken metadata are no error: the picture is whole without them.
    let exif = decoder.exif_metadata().ok().flatten();
    let xmp = decoder.xmp_metadata().ok().flatten();
    let symmetry = exif::of_metadata(exif.as_deref(), xmp.as_deref());
    Ok(Other { decoder: Box::new(decoder), size, name, symmetry, want, raw })
}

/// The second version of OS/2's header begins as that of Windows does, but is longer; it is made one.
fn windows_bmp(bytes: &[u8]) -> Cow<'_, [u8]> {
    const FILE: usize = 14;
    const OS2: u32 = 64;
    const WINDOWS: u32 = 40;
    let u32_at =
        |at: usize| bytes.get(at..at + 4).map(|bytes| u32::from_le_bytes(bytes.try_into().expect("four")));
    let (Some(offset), Some(OS2), Some(compression)) = (u32_at(10), u32_at(FILE), u32_at(FILE + 16)) else {
        return bytes.into();
    };
    // In OS/2's own way of counting 3 and 4 are compressions of its own.
    if compression > 2 || offset < OS2 + FILE as u32 || bytes.len() < FILE + OS2 as usize {
        return bytes.into();
    }
    let mut out = bytes[..FILE + WINDOWS as usize].to_vec();
    out[10..FILE].copy_from_slice(&(offset - (OS2 - WINDOWS)).to_le_bytes());
    out[FILE..FILE + 4].copy_from_slice(&WINDOWS.to_le_bytes());
    out.extend(&bytes[FILE + OS2 as usize..]);
    out.into()
}

/// A BMP of at most eight bits a pixel with a whole palette in which every index is its own gray.
fn with_indices(bytes: Cow<'_, [u8]>) -> Cow<'_, [u8]> {
    const FILE: usize = 14;
    /// The oldest header, whose palette has three bytes a colour.
    const CORE: usize = 12;
    const COLORS_USED: std::ops::Range<usize> = 46..50;
    let u32_at =
        |at: usize| bytes.get(at..at + 4).map(|bytes| u32::from_le_bytes(bytes.try_into().expect("four")));
    let (Some(offset), Some(header)) = (u32_at(10), u32_at(FILE)) else { return bytes };
    let (offset, header) = (offset as usize, header as usize);
    let bits = bytes.get(if header == CORE { 24 } else { 28 }).copied().unwrap_or(u8::MAX);
    if bits > 8 || header > 1 << 10 || offset < FILE + header || offset > bytes.len() {
        return bytes;
    }
    let mut out = bytes[..FILE + header].to_vec();
    if header > CORE {
        let Some(used) = out.get_mut(COLORS_USED) else { return bytes };
        used.fill(0);
    }
    for index in 0..1u16 << bits {
        out.extend(&[index as u8; 4][..if header == CORE { 3 } else { 4 }]);
    }
    let start = (out.len() as u32).to_le_bytes();
    out[10..FILE].copy_from_slice(&start);
    out.extend(&bytes[offset..]);
    out.into()
}

impl Session for Other<'_> {
    fn size(&self) -> (usize, usize) {
        self.size
    }

    fn symmetry(&self) -> Symmetry {
        self.symmetry
    }

    fn decode(self: Box<Self>, out: &mut Image) -> Result<(), SampleError> {
        let Other { decoder, size: (w, h), name, want, raw, .. } = *self;
        let color = decoder.color_type();
        let bits = matches!(decoder.original_color_type(), ExtendedColorType::L1 | ExtendedColorType::La1);
        raw.resize(w * h * usize::from(color.bytes_per_pixel()), 0);
        decoder.read_image_boxed(raw).map_err(|error| refuse(name, error))?;
        if want.is_values() {
            return numbers(name, color, bits, w, raw, out.pixels_mut());
        }
        let pixels = out.pixels_mut();
        // `image` gives sixteen-bit samples in native byte order.
        let high = |pair: &[u8]| (u16::from_ne_bytes([pair[0], pair[1]]) >> 8) as u8;
        match color {
            ColorType::L8 => fill(pixels, raw, |&[v]| [v; 3]),
            ColorType::La8 => fill(pixels, raw, |&[v, _]| [v; 3]),
            ColorType::Rgb8 => fill(pixels, raw, |&rgb: &[u8; 3]| rgb),
            ColorType::Rgba8 => fill(pixels, raw, |&[r, g, b, _]| [r, g, b]),
            ColorType::L16 => fill(pixels, raw, |v: &[u8; 2]| [high(v); 3]),
            ColorType::La16 => fill(pixels, raw, |v: &[u8; 4]| [high(v); 3]),
            ColorType::Rgb16 => fill(pixels, raw, |v: &[u8; 6]| [high(v), high(&v[2..]), high(&v[4..])]),
            ColorType::Rgba16 => fill(pixels, raw, |v: &[u8; 8]| [high(v), high(&v[2..]), high(&v[4..])]),
            other => return Err(no_integers(name, other)),
        }
        Ok(())
    }
}

/// The numbers of a mask; `bits` where black and white stand for 0 and 1.
fn numbers(
    name: &str,
    color: ColorType,
    bits: bool,
    width: usize,
    raw: &[u8],
    pixels: &mut [[u8; 4]],
) -> Result<(), SampleError> {
    // `image` gives sixteen-bit samples in native byte order.
    let wide = |pair: &[u8]| u16::from_ne_bytes([pair[0], pair[1]]);
    let narrow = |v: u8| u16::from(if bits { v.min(1) } else { v });
    match color {
        ColorType::L8 => values::fill(pixels, raw, |&[v]| narrow(v)),
        ColorType::La8 => values::fill(pixels, raw, |&[v, _]| narrow(v)),
        ColorType::L16 => values::fill(pixels, raw, |v: &[u8; 2]| wide(v)),
        ColorType::La16 => values::fill(pixels, raw, |v: &[u8; 4]| wide(v)),
        ColorType::Rgb8 => {
            values::fill_gray(name, width, pixels, raw, |rgb: &[u8; 3]| rgb.map(u16::from))?;
        }
        ColorType::Rgba8 => {
            values::fill_gray(name, width, pixels, raw, |&[r, g, b, _]| [r, g, b].map(u16::from))?;
        }
        ColorType::Rgb16 => {
            values::fill_gray(name, width, pixels, raw, |v: &[u8; 6]| {
                [wide(v), wide(&v[2..]), wide(&v[4..])]
            })?;
        }
        ColorType::Rgba16 => {
            values::fill_gray(name, width, pixels, raw, |v: &[u8; 8]| {
                [wide(v), wide(&v[2..]), wide(&v[4..])]
            })?;
        }
        other => return Err(no_integers(name, other)),
    }
    Ok(())
}

fn no_integers(name: &str, color: ColorType) -> SampleError {
    SampleError::unsupported(format!(
        "{name}: pixels of type {color:?}; only 8 and 16 bit integers are decoded"
    ))
}

fn refuse(name: &str, error: ImageError) -> SampleError {
    match error {
        ImageError::Limits(error) => SampleError::too_large(match error.kind() {
            LimitErrorKind::InsufficientMemory => {
                format!("{name}: decoding needs more memory than the limit")
            }
            _ => format!("{name}: {error}"),
        }),
        ImageError::Unsupported(error) => match error.format_hint() {
            // `image` repeats the format's name in its own words.
            ImageFormatHint::Exact(_) => SampleError::unsupported(error.to_string()),
            _ => SampleError::unsupported(format!("{name}: {error}")),
        },
        other => SampleError::malformed(format!("{name}: {other}")),
    }
}
