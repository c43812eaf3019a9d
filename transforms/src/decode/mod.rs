//! From encoded bytes to pixels: find the format by its content, read the header, then decode what is needed.
//!
//! The result is always RGB, eight bits a channel: gray is repeated, palettes are looked up, an alpha channel is
//! dropped (not blended, as Pillow's `convert("RGB")` does), and of sixteen bits the upper eight are taken. The EXIF
//! orientation is reported as a [`Symmetry`], which the plan folds into its geometry.

pub(crate) mod exif;
pub(crate) mod jpeg;
mod other;

use crate::error::SampleError;
use crate::geometry::{Image, Rect, Symmetry};
use crate::limits::Limits;

/// What a thread keeps between images.
#[derive(Default)]
pub(crate) struct Decoders {
    jpeg: Option<jpeg::Decoder>,
    /// Pixels as the `image` crate gives them.
    raw: Vec<u8>,
}

impl Decoders {
    /// Recognises `bytes` by their first ones and reads the header.
    pub(crate) fn open<'a>(
        &'a mut self,
        bytes: &'a [u8],
        limits: &Limits,
    ) -> Result<Opened<'a>, SampleError> {
        if bytes.is_empty() {
            return Err(SampleError::malformed("empty file"));
        }
        if bytes.starts_with(&[0xFF, 0xD8, 0xFF]) {
            let decoder = self.jpeg.get_or_insert_with(jpeg::Decoder::new);
            return Ok(Opened(Inner::Jpeg(decoder.open(bytes, limits)?)));
        }
        match other::sniff(bytes) {
            Some(format) => Ok(Opened(Inner::Other(other::open(format, bytes, limits, &mut self.raw)?))),
            None => Err(SampleError::malformed(format!(
                "not an image format fuelrail knows (starts with \"{}\")",
                bytes[..bytes.len().min(12)].escape_ascii()
            ))),
        }
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

/// The name of the format of bytes that were opened.
pub(crate) fn format(bytes: &[u8]) -> &'static str {
    match other::sniff(bytes) {
        None => "jpeg",
        Some(image::ImageFormat::Pnm) => "pnm",
        Some(format) => format.extensions_str().first().copied().unwrap_or("image"),
    }
}

/// An image whose header is known and whose pixels are not decoded yet.
pub(crate) struct Opened<'a>(Inner<'a>);

enum Inner<'a> {
    Jpeg(jpeg::Session<'a>),
    Other(other::Session<'a>),
}

impl Opened<'_> {
    /// Width and height as stored; both at least 1.
    pub(crate) fn stored_size(&self) -> (usize, usize) {
        match &self.0 {
            Inner::Jpeg(session) => session.size(),
            Inner::Other(session) => session.size(),
        }
    }

    /// Whether only decoding it can tell that the file is whole.
    pub(crate) fn is_undecided(&self) -> bool {
        matches!(&self.0, Inner::Jpeg(session) if session.is_undecided())
    }

    /// What brings the stored pixels upright.
    pub(crate) fn symmetry(&self) -> Symmetry {
        match &self.0 {
            Inner::Jpeg(session) => session.symmetry(),
            Inner::Other(session) => session.symmetry(),
        }
    }

    /// Decodes at least `wanted` (in stored coordinates) into `out` and says where in `out` it lies.
    pub(crate) fn decode(self, wanted: Rect, out: &mut Image) -> Result<Rect, SampleError> {
        match self.0 {
            Inner::Jpeg(session) => session.decode(wanted, out),
            Inner::Other(session) => session.decode(wanted, out),
        }
    }
}
