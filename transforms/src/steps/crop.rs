//! Crops: from the middle, at a random place, and of a random size.

use serde::{Deserialize, Serialize};

use super::arguments::{At, Numbers, Sides, Size};
use super::pad::{PaddingMode, VOID, add_border};
use super::resize::{antialiased, bilinear};
use super::{State, Step, Transform};
use crate::error::{ConfigError, SampleError};
use crate::geometry::{PIXEL, Rect};
use crate::limits::Limits;
use crate::plan::Picture;
use crate::random::Draws;
use crate::resize::{Interpolation, Resize};

/// Cuts the middle out; a smaller image is first padded with black on both sides.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CenterCrop {
    /// [height, width], or one number for a square.
    pub size: Size,
}

/// Cuts a window of fixed size out at a random place. An image that is too small is an error of that sample
/// unless `pad_if_needed`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RandomCrop {
    /// [height, width], or one number for a square.
    pub size: Size,
    /// Padding around the image before the cut: all sides; [left and right, top and bottom]; or
    /// [left, top, right, bottom].
    #[serde(default)]
    pub padding: Option<Sides>,
    /// Pads both sides of an image that is smaller than `size`.
    #[serde(default)]
    pub pad_if_needed: bool,
    /// Colour of constant padding: one number or one a channel.
    #[serde(default)]
    pub fill: Numbers,
    /// What padding is made of.
    #[serde(default)]
    pub padding_mode: PaddingMode,
}

/// Cuts out a random share of the image at a random aspect and resizes it to `size`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RandomResizedCrop {
    /// [height, width], or one number for a square.
    pub size: Size,
    /// Bounds of the share of the image's area that is cut out.
    #[serde(default = "scale")]
    pub scale: [f64; 2],
    /// Bounds of the cut's width divided by its height.
    #[serde(default = "ratio")]
    pub ratio: [f64; 2],
    /// How new pixels are computed.
    #[serde(default = "bilinear")]
    pub interpolation: Interpolation,
    /// As for `Resize`.
    #[serde(default = "antialiased")]
    pub antialias: bool,
}

fn scale() -> [f64; 2] {
    [0.08, 1.0]
}

fn ratio() -> [f64; 2] {
    [3.0 / 4.0, 4.0 / 3.0]
}

#[derive(Clone, Copy, Debug)]
struct Center {
    w: usize,
    h: usize,
    /// Of the border around an image that is too small.
    fill: [u8; PIXEL],
}

impl Transform for CenterCrop {
    fn step(&self, at: &At, state: &mut State) -> Result<Option<Box<dyn Step>>, ConfigError> {
        let (w, h) = at.square(self.size)?;
        state.size = Some((w, h));
        Ok(Some(Box::new(Center { w, h, fill: [0, 0, 0, 255] })))
    }
}

impl Step for Center {
    fn apply(&self, picture: &mut Picture<'_>, _: &mut Draws, _: &Limits) -> Result<(), SampleError> {
        let (w, h) = picture.size();
        if self.w > w || self.h > h {
            let (more_w, more_h) = (self.w.saturating_sub(w) as u32, self.h.saturating_sub(h) as u32);
            let sides = Sides {
                left: more_w / 2,
                top: more_h / 2,
                right: more_w.div_ceil(2),
                bottom: more_h.div_ceil(2),
            };
            add_border(picture, sides, PaddingMode::Constant, self.fill)?;
        }
        picture.crop(center(picture.size(), self.w, self.h));
        Ok(())
    }

    fn like_mask(&self) -> Option<Box<dyn Step>> {
        Some(Box::new(Center { fill: VOID, ..*self }))
    }
}

/// The place and size of a crop from the centre; an image that is smaller has been padded.
fn center((w, h): (usize, usize), crop_w: usize, crop_h: usize) -> Rect {
    // Python's int(round(x / 2)): halves go to the even neighbour.
    let middle = |room: usize| (room as f64 / 2.0).round_ties_even() as usize;
    Rect { x: middle(w - crop_w), y: middle(h - crop_h), w: crop_w, h: crop_h }
}

#[derive(Clone, Copy, Debug)]
struct Window {
    w: usize,
    h: usize,
    padding: Sides,
    if_needed: bool,
    mode: PaddingMode,
    fill: [u8; PIXEL],
}

impl Transform for RandomCrop {
    fn step(&self, at: &At, state: &mut State) -> Result<Option<Box<dyn Step>>, ConfigError> {
        let (w, h) = at.square(self.size)?;
        let none = Sides { left: 0, top: 0, right: 0, bottom: 0 };
        let padding = self.padding.map_or(Ok(none), |sides| at.sides("padding", sides))?;
        if let (Some(size), false) = (state.size, self.pad_if_needed) {
            let (padded_w, padded_h) = padding.around(size);
            at.check(w <= padded_w && h <= padded_h, || {
                format!(
                    "size = [{h}, {w}] is larger than the image, which is {padded_w} x {padded_h} here (width x \
                     height, padding included); set pad_if_needed or ask for less"
                )
            })?;
        }
        state.size = Some((w, h));
        let fill = at.levels("fill", &self.fill, state.channels)?;
        let (if_needed, mode) = (self.pad_if_needed, self.padding_mode);
        Ok(Some(Box::new(Window { w, h, padding, if_needed, mode, fill })))
    }
}

impl Step for Window {
    fn apply(&self, picture: &mut Picture<'_>, draws: &mut Draws, _: &Limits) -> Result<(), SampleError> {
        let &Window { w: crop_w, h: crop_h, padding: mut sides, if_needed, mode, fill } = self;
        let mut padded = sides.around(picture.size());
        if if_needed {
            // torchvision pads both sides by what is missing in all.
            let missing = crop_w.saturating_sub(padded.0);
            sides.left += missing as u32;
            sides.right += missing as u32;
            padded.0 += 2 * missing;
            let missing = crop_h.saturating_sub(padded.1);
            sides.top += missing as u32;
            sides.bottom += missing as u32;
            padded.1 += 2 * missing;
        }
        if padded.0 < crop_w || padded.1 < crop_h {
            return Err(SampleError::unsupported(format!(
                "the image is {} x {} pixels here and RandomCrop needs {crop_w} x {crop_h}; set pad_if_needed \
                 or put a Resize before it",
                padded.0, padded.1
            )));
        }
        if padded != picture.size() {
            add_border(picture, sides, mode, fill)?;
        }
        let y = draws.below((padded.1 - crop_h + 1) as u64) as usize;
        let x = draws.below((padded.0 - crop_w + 1) as u64) as usize;
        picture.crop(Rect { x, y, w: crop_w, h: crop_h });
        Ok(())
    }

    fn like_mask(&self) -> Option<Box<dyn Step>> {
        Some(Box::new(Window { fill: VOID, ..*self }))
    }
}

#[derive(Clone, Copy, Debug)]
struct Resized {
    scale: [f64; 2],
    ratio: [f64; 2],
    to: Resize,
}

impl Transform for RandomResizedCrop {
    fn step(&self, at: &At, state: &mut State) -> Result<Option<Box<dyn Step>>, ConfigError> {
        let &RandomResizedCrop { size, scale, ratio, interpolation, antialias } = self;
        at.interpolation(interpolation, antialias)?;
        let (w, h) = at.square(size)?;
        state.size = Some((w, h));
        Ok(Some(Box::new(Resized {
            scale: at.range("scale", scale, 0.0, f64::INFINITY)?,
            ratio: at.positive_range("ratio", ratio)?,
            to: Resize { w, h, interpolation, antialias, corner: false },
        })))
    }
}

impl Step for Resized {
    fn apply(&self, picture: &mut Picture<'_>, draws: &mut Draws, _: &Limits) -> Result<(), SampleError> {
        picture.crop(resized_crop(picture.size(), self.scale, self.ratio, draws));
        picture.resize(self.to)
    }

    fn like_mask(&self) -> Option<Box<dyn Step>> {
        Some(Box::new(Resized { to: self.to.like_mask(), ..*self }))
    }
}

/// torchvision's choice of a crop: ten draws of area and aspect, then the largest centred crop of an allowed aspect.
pub(crate) fn resized_crop(
    (w, h): (usize, usize),
    scale: [f64; 2],
    ratio: [f64; 2],
    draws: &mut Draws,
) -> Rect {
    let log_ratio = ratio.map(f64::ln);
    for _ in 0..10 {
        let area = (w * h) as f64 * draws.range(scale[0], scale[1]);
        let aspect = draws.range(log_ratio[0], log_ratio[1]).exp();
        let crop_w = (area * aspect).sqrt().round_ties_even() as usize;
        let crop_h = (area / aspect).sqrt().round_ties_even() as usize;
        if (1..=w).contains(&crop_w) && (1..=h).contains(&crop_h) {
            let y = draws.below((h - crop_h + 1) as u64) as usize;
            let x = draws.below((w - crop_w + 1) as u64) as usize;
            return Rect { x, y, w: crop_w, h: crop_h };
        }
    }
    let aspect = w as f64 / h as f64;
    let rounded = |v: f64, most: usize| (v.round_ties_even() as usize).clamp(1, most);
    let (crop_w, crop_h) = if aspect < ratio[0] {
        (w, rounded(w as f64 / ratio[0], h))
    } else if aspect > ratio[1] {
        (rounded(h as f64 * ratio[1], w), h)
    } else {
        (w, h)
    };
    Rect { x: (w - crop_w) / 2, y: (h - crop_h) / 2, w: crop_w, h: crop_h }
}
