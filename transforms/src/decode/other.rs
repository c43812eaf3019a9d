//! BMP, PNM and WebP by the `image` crate.

use std::borrow::Cow;
use std::io::Cursor;

use image::error::{ImageError, ImageFormatHint, LimitErrorKind};
use image::{ColorType, ImageDecoder, ImageFormat, ImageReader};

use super::{Format, Session, check_size, exif, fill};
use crate::error::SampleError;
use crate::geometry::{Image, Symmetry};
use crate::limits::Limits;

struct Other<'a> {
    decoder: Box<dyn ImageDecoder + 'a>,
    size: (usize, usize),
    name: &'static str,
    symmetry: Symmetry,
    raw: &'a mut Vec<u8>,
}

pub(crate) fn open<'a>(
    format: Format,
    bytes: &'a [u8],
    limits: &Limits,
    raw: &'a mut Vec<u8>,
) -> Result<impl Session + 'a, SampleError> {
    let name = format.name();
    let (of_image, bytes) = match format {
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
    Ok(Other { decoder: Box::new(decoder), size, name, symmetry, raw })
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

impl Session for Other<'_> {
    fn size(&self) -> (usize, usize) {
        self.size
    }

    fn symmetry(&self) -> Symmetry {
        self.symmetry
    }

    fn decode(self: Box<Self>, out: &mut Image) -> Result<(), SampleError> {
        let Other { decoder, size: (w, h), name, raw, .. } = *self;
        let color = decoder.color_type();
        raw.resize(w * h * usize::from(color.bytes_per_pixel()), 0);
        decoder.read_image_boxed(raw).map_err(|error| refuse(name, error))?;
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
            other => {
                return Err(SampleError::unsupported(format!(
                    "{name}: pixels of type {other:?}; only 8 and 16 bit integers are decoded"
                )));
            }
        }
        Ok(())
    }
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
