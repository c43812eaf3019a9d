//! `Resize`: the whole image to a size, or to a length of one edge.

use serde::{Deserialize, Serialize};

use super::arguments::{At, Size};
use super::{State, Step, Transform};
use crate::error::{ConfigError, SampleError};
use crate::limits::Limits;
use crate::plan::Picture;
use crate::random::Draws;
use crate::resize::{self, Interpolation};

/// Resizes the whole image. `size` is [height, width], or one number for the shorter edge, which keeps the aspect;
/// without `size` the longer edge becomes `max_size`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Resize {
    /// [height, width], or the length of the shorter edge.
    #[serde(default)]
    pub size: Option<Size>,
    /// How new pixels are computed.
    #[serde(default = "bilinear")]
    pub interpolation: Interpolation,
    /// With one number as `size`: the longest the longer edge may become; the shorter one then shrinks with it.
    #[serde(default)]
    pub max_size: Option<u32>,
    /// Widens the filter when shrinking, as Pillow always does. False (bilinear and bicubic only) samples as
    /// torchvision does on tensors without antialiasing.
    #[serde(default = "antialiased")]
    pub antialias: bool,
}

pub(super) fn bilinear() -> Interpolation {
    Interpolation::Bilinear
}

pub(super) fn antialiased() -> bool {
    true
}

#[derive(Clone, Copy, Debug)]
enum To {
    Fixed(usize, usize),
    /// The shorter edge, and the most that the longer one may be.
    Shorter(usize, Option<usize>),
    Longer(usize),
}

#[derive(Clone, Copy, Debug)]
struct ResizeStep {
    to: To,
    interpolation: Interpolation,
    antialias: bool,
    mask: bool,
}

impl To {
    /// (width, height) for an image of `(w, h)`, as torchvision computes it.
    fn size(self, (w, h): (usize, usize)) -> (usize, usize) {
        let (short, long) = if w <= h { (w, h) } else { (h, w) };
        // Python's int(a * b / c): the product is exact, the quotient rounded once, then cut off.
        let scaled = |a: usize, b: usize, c: usize| (((a * b) as f64 / c as f64) as usize).max(1);
        let (short, long) = match self {
            To::Fixed(w, h) => return (w, h),
            To::Longer(long_to) => (scaled(long_to, short, long), long_to),
            To::Shorter(short_to, most) => {
                let long_to = scaled(short_to, long, short);
                match most {
                    Some(most) if long_to > most => (scaled(most, short_to, long_to), most),
                    _ => (short_to, long_to),
                }
            }
        };
        if w <= h { (short, long) } else { (long, short) }
    }
}

impl Resize {
    fn to(&self, at: &At) -> Result<To, ConfigError> {
        let most = self.max_size.map(|side| at.side("max_size", side)).transpose()?;
        match (self.size, most) {
            (Some(Size::Both(h, w)), None) => Ok(To::Fixed(at.side("size", w)?, at.side("size", h)?)),
            (Some(Size::Both(..)), Some(_)) => Err(at
                .error("max_size goes with one number as size (the shorter edge), not with [height, width]")),
            (Some(Size::One(edge)), most) => {
                let edge = at.side("size", edge)?;
                if let Some(most) = most {
                    at.check(most > edge, || {
                        format!("max_size = {most} must be greater than size = {edge}, the shorter edge")
                    })?;
                }
                Ok(To::Shorter(edge, most))
            }
            (None, Some(most)) => Ok(To::Longer(most)),
            (None, None) => Err(at.error("size is missing: give a number or [height, width]")),
        }
    }
}

impl Transform for Resize {
    fn step(&self, at: &At, state: &mut State) -> Result<Option<Box<dyn Step>>, ConfigError> {
        let &Resize { interpolation, antialias, .. } = self;
        at.interpolation(interpolation, antialias)?;
        let to = self.to(at)?;
        state.size = match (to, state.size) {
            (To::Fixed(w, h), _) => Some((w, h)),
            (to, Some(size)) => Some(to.size(size)),
            (to, None) => {
                let place = at.text();
                state.culprit = Some(match to {
                    To::Longer(edge) => format!("{place} keeps the aspect (max_size = {edge})"),
                    To::Shorter(edge, _) | To::Fixed(edge, _) => {
                        format!("{place}({edge}) keeps the aspect of each image")
                    }
                });
                None
            }
        };
        Ok(Some(Box::new(ResizeStep { to, interpolation, antialias, mask: false })))
    }
}

impl Step for ResizeStep {
    fn apply(&self, picture: &mut Picture<'_>, _: &mut Draws, _: &Limits) -> Result<(), SampleError> {
        let (w, h) = self.to.size(picture.size());
        let (interpolation, antialias) = (self.interpolation, self.antialias);
        let to = resize::Resize { w, h, interpolation, antialias, corner: false };
        picture.resize(if self.mask { to.like_mask() } else { to })
    }

    fn like_mask(&self) -> Option<Box<dyn Step>> {
        Some(Box::new(ResizeStep { mask: true, ..*self }))
    }
}
