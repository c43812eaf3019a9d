//! The pixels of a mask: of each the number that the file stores, not a colour.
//!
//! A palette gives its indices and gray its levels: of one bit 0 and 1, of two and four bits spread to eight, as
//! Pillow's mode L has them, of more than eight as they are. Colours are taken where red, green and blue are equal in
//! every pixel, which is how some tools store a gray mask; any other colour is a picture and no mask.
//!
//! A pixel's number lies in its first two bytes, the lower one first, so that all geometry of images is that of masks.

use crate::error::SampleError;
use crate::geometry::{Image, PIXEL};

/// What pixels are to hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Want {
    /// Red, green and blue.
    Colors,
    /// The number that is stored: of one byte, or of two where `wide`.
    Values { wide: bool },
}

impl Want {
    pub(crate) fn is_values(self) -> bool {
        self != Want::Colors
    }
}

/// The pixel of a number.
pub(super) fn pixel(value: u16) -> [u8; PIXEL] {
    let [low, high] = value.to_le_bytes();
    [low, high, 0, 255]
}

/// The number of a pixel.
pub(crate) fn value([low, high, ..]: [u8; PIXEL]) -> u16 {
    u16::from_le_bytes([low, high])
}

/// Writes pixels from numbers that lie as `N` bytes a pixel.
pub(super) fn fill<const N: usize>(pixels: &mut [[u8; PIXEL]], raw: &[u8], value: impl Fn(&[u8; N]) -> u16) {
    for (to, raw) in pixels.iter_mut().zip(raw.as_chunks::<N>().0) {
        *to = pixel(value(raw));
    }
}

/// As [`fill`], from colours, which must be gray.
pub(super) fn fill_gray<const N: usize>(
    name: &str,
    width: usize,
    pixels: &mut [[u8; PIXEL]],
    raw: &[u8],
    rgb: impl Fn(&[u8; N]) -> [u16; 3],
) -> Result<(), SampleError> {
    for (at, (to, raw)) in pixels.iter_mut().zip(raw.as_chunks::<N>().0).enumerate() {
        *to = pixel(gray(name, width, at, rgb(raw))?);
    }
    Ok(())
}

/// Makes numbers of an image's colours, which must be gray.
pub(super) fn of_colors(name: &str, image: &mut Image) -> Result<(), SampleError> {
    let width = image.size().0;
    for (at, to) in image.pixels_mut().iter_mut().enumerate() {
        let [r, g, b, _] = *to;
        *to = pixel(gray(name, width, at, [r, g, b].map(u16::from))?);
    }
    Ok(())
}

fn gray(name: &str, width: usize, at: usize, [r, g, b]: [u16; 3]) -> Result<u16, SampleError> {
    if r == g && g == b {
        return Ok(r);
    }
    Err(SampleError::unsupported(format!(
        "{name}: the mask has colours, such as ({r}, {g}, {b}) at column {}, row {}, where one number per pixel \
         is needed: save the numbers as a palette or gray PNG, for example with Pillow's \
         Image.fromarray(numbers). For a picture in colour use an Image field",
        at % width,
        at / width
    )))
}

/// Refuses numbers that one byte does not hold.
pub(super) fn check_narrow(name: &str, image: &mut Image) -> Result<(), SampleError> {
    let width = image.size().0;
    match image.pixels_mut().iter().enumerate().find(|(_, pixel)| pixel[1] != 0) {
        None => Ok(()),
        Some((at, pixel)) => Err(SampleError::unsupported(format!(
            "{name}: the mask holds {} at column {}, row {}, and its dtype is u8, whose maximum is 255: ask for \
             dtype \"u16\"",
            value(*pixel),
            at % width,
            at / width
        ))),
    }
}

#[cfg(test)]
mod tests;
