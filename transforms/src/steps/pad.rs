//! Borders.

use serde::{Deserialize, Serialize};

use super::arguments::{At, Numbers, Sides};
use super::{State, Step, Transform};
use crate::error::{ConfigError, SampleError};
use crate::geometry::{Image, PIXEL, View};
use crate::limits::Limits;
use crate::plan::Picture;
use crate::random::Draws;
use crate::warp::{Filter, Look};

/// Adds a border.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pad {
    /// All sides; [left and right, top and bottom]; or [left, top, right, bottom].
    pub padding: Sides,
    /// Colour of constant padding: one number or one a channel.
    #[serde(default)]
    pub fill: Numbers,
    /// What padding is made of.
    #[serde(default)]
    pub padding_mode: PaddingMode,
}

/// What a border is made of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PaddingMode {
    /// `fill`.
    #[default]
    Constant,
    /// The border pixel, repeated.
    Edge,
    /// The image mirrored at its border pixels, which are not repeated.
    Reflect,
    /// The image mirrored at its border, whose pixels are repeated.
    Symmetric,
}

#[derive(Clone, Copy, Debug)]
struct Border {
    sides: Sides,
    mode: PaddingMode,
    fill: [u8; PIXEL],
}

impl Transform for Pad {
    fn step(&self, at: &At, state: &mut State) -> Result<Option<Box<dyn Step>>, ConfigError> {
        let sides = at.sides("padding", self.padding)?;
        state.size = state.size.map(|size| sides.around(size));
        let fill = at.levels("fill", &self.fill, state.channels)?;
        Ok(Some(Box::new(Border { sides, mode: self.padding_mode, fill })))
    }
}

impl Step for Border {
    fn apply(&self, picture: &mut Picture<'_>, _: &mut Draws, _: &Limits) -> Result<(), SampleError> {
        add_border(picture, self.sides, self.mode, self.fill)
    }

    fn like_mask(&self) -> Option<Box<dyn Step>> {
        Some(Box::new(Border { fill: VOID, ..*self }))
    }
}

/// What constant borders and the corners of rotations are in a mask, whatever colour they have in the image: 255, the
/// class that losses leave out by custom. A border that repeats the image repeats the mask.
pub(super) const VOID: [u8; PIXEL] = [255, 0, 0, 255];

/// How a mask is drawn through the map of its image.
pub(super) const MASK: Look = Look { filter: Filter::Nearest, fill: VOID };

/// Puts a border around `picture`.
pub(super) fn add_border(
    picture: &mut Picture<'_>,
    sides: Sides,
    mode: PaddingMode,
    fill: [u8; PIXEL],
) -> Result<(), SampleError> {
    let size = sides.around(picture.size());
    picture.widen(sides);
    picture.replace("the padded image", size, |image, out| pad(image, sides, mode, fill, out))
}

/// Writes `source` with a border into `out`. For the mirroring modes a border may be wider than the image, which is
/// then mirrored again and again.
fn pad(source: View<'_>, sides: Sides, mode: PaddingMode, fill: [u8; PIXEL], out: &mut Image) {
    let (left, top) = (sides.left as usize, sides.top as usize);
    let (w, h) = (source.w + left + sides.right as usize, source.h + top + sides.bottom as usize);
    out.reset(w, h);
    for y in 0..h {
        let row = out.row_mut(y).as_chunks_mut::<PIXEL>().0;
        let inner = (top..top + source.h).contains(&y);
        if mode == PaddingMode::Constant && !inner {
            row.fill(fill);
            continue;
        }
        let from = source.row(place(y as isize - top as isize, source.h, mode)).as_chunks::<PIXEL>().0;
        row[left..left + source.w].copy_from_slice(from);
        for x in (0..left).chain(left + source.w..w) {
            row[x] = match mode {
                PaddingMode::Constant => fill,
                _ => from[place(x as isize - left as isize, source.w, mode)],
            };
        }
    }
}

/// Which pixel of a line of `len` stands at `at`, as numpy's `pad` has it.
fn place(at: isize, len: usize, mode: PaddingMode) -> usize {
    let len = len as isize;
    (match mode {
        PaddingMode::Constant | PaddingMode::Edge => at.clamp(0, len - 1),
        PaddingMode::Reflect if len == 1 => 0,
        PaddingMode::Reflect => {
            let at = at.rem_euclid(2 * (len - 1));
            if at < len { at } else { 2 * (len - 1) - at }
        }
        PaddingMode::Symmetric => {
            let at = at.rem_euclid(2 * len);
            if at < len { at } else { 2 * len - 1 - at }
        }
    }) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(mode: PaddingMode, len: usize, side: u32) -> Vec<u8> {
        let mut image = Image::default();
        image.reset(len, 1);
        for (x, pixel) in image.pixels_mut().iter_mut().enumerate() {
            *pixel = [x as u8 + 1; 4];
        }
        let mut out = Image::default();
        pad(image.view(), Sides { left: side, top: 0, right: side, bottom: 0 }, mode, [9; 4], &mut out);
        out.pixels().iter().map(|pixel| pixel[0]).collect()
    }

    #[test]
    fn the_examples_of_torchvisions_documentation() {
        assert_eq!(line(PaddingMode::Constant, 4, 2), [9, 9, 1, 2, 3, 4, 9, 9]);
        assert_eq!(line(PaddingMode::Edge, 4, 2), [1, 1, 1, 2, 3, 4, 4, 4]);
        assert_eq!(line(PaddingMode::Reflect, 4, 2), [3, 2, 1, 2, 3, 4, 3, 2]);
        assert_eq!(line(PaddingMode::Symmetric, 4, 2), [2, 1, 1, 2, 3, 4, 4, 3]);
        assert_eq!(line(PaddingMode::Reflect, 1, 2), [1, 1, 1, 1, 1]);
        assert_eq!(line(PaddingMode::Symmetric, 2, 3), [2, 2, 1, 1, 2, 2, 1, 1]);
    }
}
