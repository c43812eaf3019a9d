//! PNG, WebP, GIF (its first frame), BMP, TIFF and PNM by the `image` crate: decoded whole, then cropped by the plan.

use std::io::Cursor;
use std::panic::{AssertUnwindSafe, catch_unwind};

use image::error::{ImageError, ImageFormatHint, LimitErrorKind};
use image::{ColorType, ImageDecoder, ImageFormat, ImageReader};

use crate::error::SampleError;
use crate::geometry::{Image, Rect, Symmetry};
use crate::limits::Limits;

/// The format that the first bytes announce.
pub(crate) fn sniff(bytes: &[u8]) -> Option<ImageFormat> {
    match bytes {
        [0x89, b'P', b'N', b'G', 0x0D, 0x0A, 0x1A, 0x0A, ..] => Some(ImageFormat::Png),
        [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => Some(ImageFormat::WebP),
        [b'G', b'I', b'F', b'8', b'7' | b'9', b'a', ..] => Some(ImageFormat::Gif),
        [b'B', b'M', ..] => Some(ImageFormat::Bmp),
        [b'I', b'I', b'*', 0, ..] | [b'M', b'M', 0, b'*', ..] => Some(ImageFormat::Tiff),
        [b'P', b'1'..=b'7', b' ' | b'\n' | b'\r' | b'\t' | b'#', ..] => Some(ImageFormat::Pnm),
        _ => None,
    }
}

/// One image whose header is known.
pub(crate) struct Session<'a> {
    decoder: Box<dyn ImageDecoder + 'a>,
    name: &'static str,
    symmetry: Symmetry,
    raw: &'a mut Vec<u8>,
}

pub(crate) fn open<'a>(
    format: ImageFormat,
    bytes: &'a [u8],
    limits: &Limits,
    raw: &'a mut Vec<u8>,
) -> Result<Session<'a>, SampleError> {
    let name = format.extensions_str().first().map_or("image", |extension| match *extension {
        "png" => "PNG",
        "webp" => "WebP",
        "gif" => "GIF",
        "bmp" => "BMP",
        "tiff" => "TIFF",
        _ => "PNM",
    });
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    let mut bounds = image::Limits::default();
    bounds.max_alloc = Some(limits.max_sample_bytes);
    reader.limits(bounds);
    let mut decoder = contained(name, || reader.into_decoder())?;
    let (w, h) = decoder.dimensions();
    if w == 0 || h == 0 {
        return Err(SampleError::malformed(format!("{name}: an image of {w} x {h} pixels")));
    }
    limits.check_pixels("the image", w.into(), h.into())?;
    if decoder.total_bytes() > limits.max_sample_bytes {
        return Err(SampleError::too_large(format!(
            "the image is {w} x {h} pixels, {} bytes when decoded, and the limit is {} bytes",
            decoder.total_bytes(),
            limits.max_sample_bytes
        )));
    }
    // Broken EXIF data is no error: the picture is whole without it.
    let symmetry = decoder
        .orientation()
        .map_or(Symmetry::IDENTITY, |orientation| super::exif::symmetry(orientation.to_exif().into()));
    Ok(Session { decoder: Box::new(decoder), name, symmetry, raw })
}

impl Session<'_> {
    pub(crate) fn size(&self) -> (usize, usize) {
        let (w, h) = self.decoder.dimensions();
        (w as usize, h as usize)
    }

    pub(crate) fn symmetry(&self) -> Symmetry {
        self.symmetry
    }

    pub(crate) fn decode(self, wanted: Rect, out: &mut Image) -> Result<Rect, SampleError> {
        let (w, h) = self.size();
        let color = self.decoder.color_type();
        let bytes = w * h * usize::from(color.bytes_per_pixel());
        self.raw.clear();
        self.raw.resize(bytes, 0);
        let Session { decoder, name, raw, .. } = self;
        contained(name, || decoder.read_image(raw))?;
        out.reset(w, h);
        let pixels = out.pixels_mut();
        // `image` gives sixteen-bit samples in native byte order.
        let high = |pair: &[u8]| (u16::from_ne_bytes([pair[0], pair[1]]) >> 8) as u8;
        fn fill<const N: usize>(pixels: &mut [[u8; 4]], raw: &[u8], rgb: impl Fn(&[u8; N]) -> [u8; 3]) {
            for (pixel, raw) in pixels.iter_mut().zip(raw.as_chunks::<N>().0) {
                let [r, g, b] = rgb(raw);
                *pixel = [r, g, b, 255];
            }
        }
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
                    "{}: pixels of type {other:?}; only 8 and 16 bit integers are decoded",
                    name
                )));
            }
        }
        Ok(wanted)
    }
}

/// Runs a step of a decoder that is not ours, and takes a panic for what it is: bytes that its author did not expect.
///
/// Some do panic: the `tiff` crate 0.11.3 asserts on the strip sizes of a file in the test corpus. Nothing of ours is in
/// an odd state then: the decoder is dropped by the unwinding, and `raw` is cleared before it is used again.
fn contained<T>(name: &str, step: impl FnOnce() -> image::ImageResult<T>) -> Result<T, SampleError> {
    match catch_unwind(AssertUnwindSafe(step)) {
        Ok(result) => result.map_err(|error| refuse(name, error)),
        Err(_) => Err(SampleError::malformed(format!("{name}: the decoder gave up on these bytes"))),
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
