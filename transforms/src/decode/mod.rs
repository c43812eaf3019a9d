//! From encoded bytes to pixels: find the format by its content, read the header, then decode what is needed.
//!
//! The result is always RGB, eight bits a channel: gray is repeated, palettes are looked up, an alpha channel is
//! dropped (not blended, as Pillow's `convert("RGB")` does), and of more bits the upper eight are taken. The EXIF
//! orientation is reported as a [`Symmetry`], which the plan folds into its geometry. Of a mask the numbers that it
//! stores are wanted instead ([`Want::Values`], `values.rs`).
//!
//! No decoder outlives its image, so that none can carry anything from one to the next; buffers are overwritten whole.

mod avif;
pub(crate) mod exif;
mod expendable;
mod formats;
pub(crate) mod gif;
pub(crate) mod jpeg;
mod markers;
mod other;
mod png;
mod tail;
mod tiff;
pub(crate) mod values;

use std::panic::{AssertUnwindSafe, catch_unwind};

pub(crate) use formats::Format;
pub(crate) use values::Want;

use crate::error::SampleError;
use crate::geometry::{Image, Rect, Symmetry};
use crate::limits::Limits;

/// What a thread keeps between images.
#[derive(Default)]
pub(crate) struct Decoders {
    /// Samples as a decoder gives them; cleared before each use.
    raw: Vec<u8>,
}

/// An image whose header is known and whose pixels are not decoded yet.
trait Session {
    /// Width and height as stored; both at least 1.
    fn size(&self) -> (usize, usize);

    /// What brings the stored pixels upright.
    fn symmetry(&self) -> Symmetry;

    /// Decodes the whole image, writing every pixel of `out`, as was wanted at opening.
    fn decode(self: Box<Self>, out: &mut Image) -> Result<(), SampleError>;
}

impl Decoders {
    /// Recognises `bytes` by their first ones and reads the header. The pixels will be what is wanted.
    pub(crate) fn open<'a>(
        &'a mut self,
        bytes: &'a [u8],
        limits: &Limits,
        want: Want,
    ) -> Result<Opened<'a>, SampleError> {
        if bytes.is_empty() {
            return Err(SampleError::malformed("empty file"));
        }
        let format = Format::of(bytes)?;
        let raw = &mut self.raw;
        raw.clear();
        let inner: Box<dyn Session + 'a> = match format {
            Format::Jpeg => {
                return Ok(Opened { format, want, inner: Inner::Jpeg(jpeg::open(bytes, limits)?) });
            }
            Format::Png => Box::new(contained("PNG", || png::open(bytes, limits, want, raw))?),
            Format::Gif => Box::new(contained("GIF", || gif::open(bytes, limits, want, raw))?),
            Format::Tiff => Box::new(contained("TIFF", || tiff::open(bytes, limits, want, raw))?),
            Format::Avif => Box::new(contained("AVIF", || avif::open(bytes, limits, want))?),
            Format::Bmp | Format::Pnm | Format::WebP => {
                Box::new(contained(format.name(), || other::open(format, bytes, limits, want, raw))?)
            }
        };
        Ok(Opened { format, want, inner: Inner::Other(inner) })
    }

    pub(crate) fn bytes(&self) -> usize {
        self.raw.capacity()
    }

    pub(crate) fn shrink(&mut self, bytes: usize) {
        if self.raw.capacity() > bytes {
            self.raw = Vec::new();
        }
    }
}

/// An image whose header is known and whose pixels are not decoded yet.
pub(crate) struct Opened<'a> {
    pub format: Format,
    want: Want,
    inner: Inner<'a>,
}

/// What a header says of the geometry.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Header {
    /// Width and height as stored; both at least 1.
    pub stored: (usize, usize),
    /// What brings the stored pixels upright.
    pub symmetry: Symmetry,
}

impl Header {
    /// Width and height of the upright image.
    pub(crate) fn upright(&self) -> (usize, usize) {
        self.symmetry.size(self.stored)
    }
}

enum Inner<'a> {
    /// Decodes regions.
    Jpeg(jpeg::Session<'a>),
    Other(Box<dyn Session + 'a>),
}

impl Opened<'_> {
    /// Width and height as stored; both at least 1.
    pub(crate) fn stored_size(&self) -> (usize, usize) {
        match &self.inner {
            Inner::Jpeg(session) => session.size(),
            Inner::Other(session) => session.size(),
        }
    }

    /// Whether only decoding it can tell that the file is whole.
    pub(crate) fn is_undecided(&self) -> bool {
        matches!(&self.inner, Inner::Jpeg(session) if session.is_undecided())
    }

    /// Size and orientation.
    pub(crate) fn header(&self) -> Header {
        Header { stored: self.stored_size(), symmetry: self.symmetry() }
    }

    /// What brings the stored pixels upright.
    pub(crate) fn symmetry(&self) -> Symmetry {
        match &self.inner {
            Inner::Jpeg(session) => session.symmetry(),
            Inner::Other(session) => session.symmetry(),
        }
    }

    /// Decodes at least `wanted` (in stored coordinates) into `out` and says where in `out` it lies.
    pub(crate) fn decode(self, wanted: Rect, out: &mut Image) -> Result<Rect, SampleError> {
        let name = self.format.name();
        let at = match self.inner {
            Inner::Jpeg(session) if self.want.is_values() => {
                // Whether its colours are gray everywhere must not depend on the region.
                let (w, h) = session.size();
                let needed = if session.is_gray() { wanted } else { Rect::sized(w, h) };
                let at = session.decode(needed, out)?;
                values::of_colors(name, out)?;
                at.sub(Rect { x: wanted.x - needed.x, y: wanted.y - needed.y, ..wanted })
            }
            Inner::Jpeg(session) => session.decode(wanted, out)?,
            Inner::Other(session) => {
                let (w, h) = session.size();
                out.reset(w, h);
                contained(name, || session.decode(out))?;
                wanted
            }
        };
        if self.want == (Want::Values { wide: false }) {
            values::check_narrow(name, out)?;
        }
        Ok(at)
    }
}

/// Runs a step of a decoder that is not ours, and takes a panic for what it is: bytes that its author did not expect.
///
/// Nothing of ours is in an odd state then: the decoder is dropped by the unwinding, and buffers are overwritten before
/// they are read again.
fn contained<T>(name: &str, step: impl FnOnce() -> Result<T, SampleError>) -> Result<T, SampleError> {
    catch_unwind(AssertUnwindSafe(step)).unwrap_or_else(|_| Err(gave_up(name)))
}

/// The error of a decoder that panicked.
fn gave_up(name: &str) -> SampleError {
    SampleError::malformed(format!("{name}: the decoder gave up on these bytes"))
}

/// The error of a picture that is not all there.
fn truncated(name: &str) -> SampleError {
    let remedy = match name {
        "JPEG" | "PNG" | "GIF" | tiff::UNCOMPRESSED => {
            " (truncated=\"fill\" delivers the part that is there)"
        }
        _ => "",
    };
    SampleError::malformed(format!("{name}: truncated: the file ends before its picture does{remedy}"))
}

/// Checks a size that a header gives against what may be decoded.
fn check_size(name: &str, (w, h): (u32, u32), limits: &Limits) -> Result<(usize, usize), SampleError> {
    if w == 0 || h == 0 {
        return Err(SampleError::malformed(format!("{name}: an image of {w} x {h} pixels")));
    }
    limits.check_pixels("the image", w.into(), h.into())?;
    Ok((w as usize, h as usize))
}

/// Writes pixels from samples that lie as `N` bytes a pixel.
fn fill<const N: usize>(pixels: &mut [[u8; 4]], raw: &[u8], rgb: impl Fn(&[u8; N]) -> [u8; 3]) {
    for (pixel, raw) in pixels.iter_mut().zip(raw.as_chunks::<N>().0) {
        let [r, g, b] = rgb(raw);
        *pixel = [r, g, b, 255];
    }
}
