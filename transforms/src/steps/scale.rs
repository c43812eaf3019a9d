//! Sizes that follow the image's own: letterboxes and the random scales of detection.

use serde::{Deserialize, Serialize};

use super::arguments::{At, MAX_SIDE, Numbers, Sides, Size};
use super::pad::{PaddingMode, VOID, add_border};
use super::resize::{antialiased, bilinear};
use super::{State, Step, Transform};
use crate::error::{ConfigError, SampleError};
use crate::geometry::PIXEL;
use crate::limits::Limits;
use crate::plan::Picture;
use crate::random::Draws;
use crate::resize::{Interpolation, Resize};

/// Resizes the whole image, in its aspect, to fit into a frame of `size`, and fills the rest of the frame (Ultralytics'
/// LetterBox).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Letterbox {
    /// [height, width] of the frame, or one number for a square.
    pub size: Size,
    /// Colour of the rest: one number or one a channel.
    #[serde(default = "gray")]
    pub fill: Numbers,
    /// Whether an image that is smaller than the frame grows.
    #[serde(default = "yes")]
    pub scaleup: bool,
    /// Whether the image is put into the middle; else into the upper left corner.
    #[serde(default = "yes")]
    pub center: bool,
    /// How new pixels are computed.
    #[serde(default = "bilinear")]
    pub interpolation: Interpolation,
    /// As for `Resize`.
    #[serde(default = "antialiased")]
    pub antialias: bool,
}

/// Resizes the whole image by a random factor: 1 fits it into a frame of `target_size` (torchvision's, arXiv
/// 2012.07177). The size then depends on the image, so a RandomCrop with `pad_if_needed` or the like has to follow.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScaleJitter {
    /// [width, height] of the frame, in this order, as torchvision reads it.
    pub target_size: Size,
    /// Bounds of the factor.
    #[serde(default = "scale_range")]
    pub scale_range: [f64; 2],
    /// How new pixels are computed.
    #[serde(default = "bilinear")]
    pub interpolation: Interpolation,
    /// As for `Resize`.
    #[serde(default = "antialiased")]
    pub antialias: bool,
}

/// Resizes the whole image so that its shorter edge has one of several lengths. The size then depends on the image, so
/// a Letterbox or the like has to follow.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RandomShortestSize {
    /// The lengths, in pixels: one number or several.
    pub min_size: Numbers,
    /// The longest that the longer edge may become; the shorter one then shrinks with it.
    #[serde(default)]
    pub max_size: Option<u32>,
    /// How new pixels are computed.
    #[serde(default = "bilinear")]
    pub interpolation: Interpolation,
    /// As for `Resize`.
    #[serde(default = "antialiased")]
    pub antialias: bool,
}

/// Puts some images at a random place of a larger one (SSD, arXiv 1512.02325). The size then depends on the image, so
/// a Resize has to follow.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RandomZoomOut {
    /// Colour of the rest: one number or one a channel.
    #[serde(default)]
    pub fill: Numbers,
    /// Bounds of the factor of both sides.
    #[serde(default = "side_range")]
    pub side_range: [f64; 2],
    /// Share of images that it happens to.
    #[serde(default = "half")]
    pub p: f64,
}

fn gray() -> Numbers {
    Numbers(vec![114.0])
}

fn yes() -> bool {
    true
}

fn scale_range() -> [f64; 2] {
    [0.1, 2.0]
}

fn side_range() -> [f64; 2] {
    [1.0, 4.0]
}

fn half() -> f64 {
    0.5
}

/// The largest factor of a side.
const MOST: f64 = 64.0;

#[derive(Clone, Copy, Debug)]
struct Frame {
    to: Resize,
    fill: [u8; PIXEL],
    scaleup: bool,
    center: bool,
}

impl Transform for Letterbox {
    fn step(&self, at: &At, state: &mut State) -> Result<Option<Box<dyn Step>>, ConfigError> {
        let &Letterbox { scaleup, center, interpolation, antialias, .. } = self;
        at.interpolation(interpolation, antialias)?;
        let (w, h) = at.square(self.size)?;
        let fill = at.levels("fill", &self.fill, state.channels)?;
        state.size = Some((w, h));
        let to = Resize { w, h, interpolation, antialias, corner: false };
        Ok(Some(Box::new(Frame { to, fill, scaleup, center })))
    }
}

impl Frame {
    /// The image's own size in the frame, and the borders around it.
    fn fit(&self, (w, h): (usize, usize)) -> ((usize, usize), Sides) {
        let factor = (self.to.h as f64 / h as f64).min(self.to.w as f64 / w as f64);
        let factor = if self.scaleup { factor } else { factor.min(1.0) };
        // Python's round; never less than a pixel.
        let side =
            |of: usize, most: usize| ((of as f64 * factor).round_ties_even() as usize).clamp(1, most) as u32;
        let (new_w, new_h) = (side(w, self.to.w), side(h, self.to.h));
        let (rest_w, rest_h) = (self.to.w as u32 - new_w, self.to.h as u32 - new_h);
        // Of an odd rest the larger half is on the right and at the bottom.
        let (left, top) = if self.center { (rest_w / 2, rest_h / 2) } else { (0, 0) };
        let sides = Sides { left, top, right: rest_w - left, bottom: rest_h - top };
        ((new_w as usize, new_h as usize), sides)
    }
}

impl Step for Frame {
    fn apply(&self, picture: &mut Picture<'_>, _: &mut Draws, _: &Limits) -> Result<(), SampleError> {
        let ((w, h), sides) = self.fit(picture.size());
        picture.resize(Resize { w, h, ..self.to })?;
        if sides.around((0, 0)) != (0, 0) {
            add_border(picture, sides, PaddingMode::Constant, self.fill)?;
        }
        Ok(())
    }

    fn like_mask(&self) -> Option<Box<dyn Step>> {
        Some(Box::new(Frame { to: self.to.like_mask(), fill: VOID, ..*self }))
    }
}

/// Resizes to a size that is drawn for an image.
#[derive(Clone, Debug)]
struct Scaled {
    to: To,
    how: Resize,
}

#[derive(Clone, Debug)]
enum To {
    /// Into a frame (width, height), times a factor within bounds.
    Frame((usize, usize), [f64; 2]),
    /// The shorter edge, and the most that the longer one may be.
    Shorter(Vec<usize>, Option<usize>),
}

fn how(interpolation: Interpolation, antialias: bool) -> Resize {
    Resize { w: 1, h: 1, interpolation, antialias, corner: false }
}

impl Transform for ScaleJitter {
    fn step(&self, at: &At, state: &mut State) -> Result<Option<Box<dyn Step>>, ConfigError> {
        let &ScaleJitter { interpolation, antialias, .. } = self;
        at.interpolation(interpolation, antialias)?;
        let (w, h) = self.target_size.square();
        let frame = (at.side("target_size", w)?, at.side("target_size", h)?);
        let range = at.positive_range("scale_range", self.scale_range)?;
        at.check(range[1] <= MOST, || format!("scale_range must be at most {MOST}, not {}", range[1]))?;
        state.size = None;
        state.culprit = Some(format!("{} resizes by a random factor", at.text()));
        Ok(Some(Box::new(Scaled { to: To::Frame(frame, range), how: how(interpolation, antialias) })))
    }
}

impl Transform for RandomShortestSize {
    fn step(&self, at: &At, state: &mut State) -> Result<Option<Box<dyn Step>>, ConfigError> {
        let &RandomShortestSize { interpolation, antialias, .. } = self;
        at.interpolation(interpolation, antialias)?;
        let side = |value: &f64| {
            let whole = value.fract() == 0.0 && (1.0..=f64::from(MAX_SIDE)).contains(value);
            at.check(whole, || {
                format!("min_size must be whole numbers between 1 and {MAX_SIDE} pixels, not {value}")
            })?;
            Ok(*value as usize)
        };
        at.check(!self.min_size.0.is_empty(), || "min_size is an empty list".to_owned())?;
        let sides = self.min_size.0.iter().map(side).collect::<Result<_, ConfigError>>()?;
        let most = self.max_size.map(|side| at.side("max_size", side)).transpose()?;
        state.size = None;
        state.culprit = Some(format!("{} keeps the aspect of each image", at.text()));
        Ok(Some(Box::new(Scaled { to: To::Shorter(sides, most), how: how(interpolation, antialias) })))
    }
}

impl Step for Scaled {
    fn apply(&self, picture: &mut Picture<'_>, draws: &mut Draws, _: &Limits) -> Result<(), SampleError> {
        let (w, h) = picture.size();
        let (fw, fh) = (w as f64, h as f64);
        let factor = match &self.to {
            To::Frame(frame, range) => {
                let scale = draws.range(range[0], range[1]);
                (frame.1 as f64 / fh).min(frame.0 as f64 / fw) * scale
            }
            To::Shorter(sides, most) => {
                let side = sides[draws.below(sides.len() as u64) as usize];
                let factor = side as f64 / fw.min(fh);
                most.map_or(factor, |most| factor.min(most as f64 / fw.max(fh)))
            }
        };
        // torchvision cuts off; a side of nothing is an error there and one pixel here.
        let side = |of: f64| ((of * factor) as usize).max(1);
        picture.resize(Resize { w: side(fw), h: side(fh), ..self.how })
    }

    fn like_mask(&self) -> Option<Box<dyn Step>> {
        Some(Box::new(Scaled { to: self.to.clone(), how: self.how.like_mask() }))
    }
}

#[derive(Clone, Copy, Debug)]
struct Zoom {
    range: [f64; 2],
    p: f64,
    fill: [u8; PIXEL],
}

impl Transform for RandomZoomOut {
    fn step(&self, at: &At, state: &mut State) -> Result<Option<Box<dyn Step>>, ConfigError> {
        let range = at.range("side_range", self.side_range, 1.0, MOST)?;
        let fill = at.levels("fill", &self.fill, state.channels)?;
        state.size = None;
        state.culprit = Some(format!("{} makes some images larger", at.text()));
        Ok(Some(Box::new(Zoom { range, p: at.probability(self.p)?, fill })))
    }
}

impl Step for Zoom {
    fn apply(&self, picture: &mut Picture<'_>, draws: &mut Draws, _: &Limits) -> Result<(), SampleError> {
        if !draws.chance(self.p) {
            return Ok(());
        }
        let (w, h) = picture.size();
        let factor = draws.range(self.range[0], self.range[1]);
        let more = |side: usize| ((side as f64 * factor) as usize).saturating_sub(side);
        let (more_w, more_h) = (more(w), more(h));
        let share = |more: usize, part: f64| (more as f64 * part) as u32;
        let (left, top) = (share(more_w, draws.unit()), share(more_h, draws.unit()));
        let sides = Sides { left, top, right: more_w as u32 - left, bottom: more_h as u32 - top };
        if sides.around((0, 0)) == (0, 0) {
            return Ok(());
        }
        add_border(picture, sides, PaddingMode::Constant, self.fill)
    }

    fn like_mask(&self) -> Option<Box<dyn Step>> {
        Some(Box::new(Zoom { fill: VOID, ..*self }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_letterbox_fits_the_image_into_the_middle_of_its_frame() {
        let to = how(Interpolation::Bilinear, true);
        let frame = Frame { to: Resize { w: 64, h: 64, ..to }, fill: VOID, scaleup: true, center: true };
        for (size, fits, [left, top, right, bottom]) in [
            ((640, 480), (64, 48), [0, 8, 0, 8]),
            ((480, 640), (48, 64), [8, 0, 8, 0]),
            ((100, 33), (64, 21), [0, 21, 0, 22]),
            ((10_000, 1), (64, 1), [0, 31, 0, 32]),
            ((32, 16), (64, 32), [0, 16, 0, 16]),
        ] {
            assert_eq!(frame.fit(size), (fits, Sides { left, top, right, bottom }), "{size:?}");
        }
        let fixed = Frame { scaleup: false, center: false, ..frame };
        assert_eq!(fixed.fit((32, 16)), ((32, 16), Sides { left: 0, top: 0, right: 32, bottom: 48 }));
    }
}
