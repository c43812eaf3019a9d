//! The first frame of a GIF, on a canvas that holds it: the screen, or more where the frame reaches beyond it, as
//! Pillow does it.

use std::io::Cursor;

use gif::{ColorOutput, DecodeOptions, DecodingError};

use super::{Session, check_size, truncated};
use crate::error::SampleError;
use crate::geometry::{Image, Symmetry};
use crate::limits::{Limits, Truncated};

const BYTES: usize = 4;

struct Gif<'a> {
    decoder: gif::Decoder<Cursor<&'a [u8]>>,
    size: (usize, usize),
    truncated: Truncated,
    raw: &'a mut Vec<u8>,
}

pub(crate) fn open<'a>(
    bytes: &'a [u8],
    limits: &Limits,
    raw: &'a mut Vec<u8>,
) -> Result<impl Session + 'a, SampleError> {
    let mut options = DecodeOptions::new();
    options.set_color_output(ColorOutput::RGBA);
    let mut decoder = options.read_info(Cursor::new(bytes)).map_err(refuse)?;
    let screen = (u32::from(decoder.width()), u32::from(decoder.height()));
    let Some(frame) = decoder.next_frame_info().map_err(refuse)? else {
        return Err(SampleError::malformed("GIF: a file without a frame"));
    };
    let right = u32::from(frame.left) + u32::from(frame.width);
    let bottom = u32::from(frame.top) + u32::from(frame.height);
    let size = check_size("GIF", (screen.0.max(right), screen.1.max(bottom)), limits)?;
    Ok(Gif { decoder, size, truncated: limits.truncated, raw })
}

impl Session for Gif<'_> {
    fn size(&self) -> (usize, usize) {
        self.size
    }

    fn symmetry(&self) -> Symmetry {
        Symmetry::IDENTITY
    }

    fn decode(mut self: Box<Self>, out: &mut Image) -> Result<(), SampleError> {
        let Some(frame) = self.decoder.current_frame_info() else { return Err(truncated("GIF")) };
        let (left, top) = (usize::from(frame.left), usize::from(frame.top));
        let (w, h) = (usize::from(frame.width), usize::from(frame.height));
        self.raw.resize(w * h * BYTES, 0);
        match self.decoder.read_into_buffer(self.raw) {
            Ok(()) => {}
            Err(_) if self.truncated == Truncated::Fill => {}
            Err(error) => return Err(refuse(error)),
        }
        // Where the frame leaves the canvas open it is black.
        let pixels = out.pixels_mut();
        pixels.fill([0, 0, 0, 255]);
        for (y, row) in self.raw.chunks_exact((w * BYTES).max(1)).enumerate() {
            let row = row.as_chunks::<BYTES>().0;
            let at = (top + y) * self.size.0 + left;
            for (pixel, [r, g, b, _]) in pixels[at..at + w].iter_mut().zip(row) {
                *pixel = [*r, *g, *b, 255];
            }
        }
        Ok(())
    }
}

fn refuse(error: DecodingError) -> SampleError {
    match error {
        DecodingError::UnexpectedEof => truncated("GIF"),
        DecodingError::OutOfMemory | DecodingError::MemoryLimit => {
            SampleError::too_large("GIF: decoding needs more memory than the limit")
        }
        other => SampleError::malformed(format!("GIF: {other}")),
    }
}
