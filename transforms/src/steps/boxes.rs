//! Steps that decide by the boxes of an image, or change them: torchvision's, for detection.

use serde::{Deserialize, Serialize};

use super::arguments::At;
use super::{State, Step, Transform};
use crate::error::{ConfigError, SampleError};
use crate::geometry::Rect;
use crate::limits::Limits;
use crate::plan::Picture;
use crate::random::Draws;

/// Cuts out a random part of the image that holds the middle of a box and overlaps a box by a random least amount, or
/// nothing (SSD, arXiv 1512.02325). Boxes whose middle is cut off become 0, 0, 0, 0: SanitizeBoundingBoxes has to
/// follow. The size then depends on the image, so a Resize has to follow too. Without boxes the image stays whole.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RandomIoUCrop {
    /// Least share of the width, and of the height.
    #[serde(default = "min_scale")]
    pub min_scale: f64,
    /// Largest share of them.
    #[serde(default = "max_scale")]
    pub max_scale: f64,
    /// Least width of the part divided by its height.
    #[serde(default = "min_aspect_ratio")]
    pub min_aspect_ratio: f64,
    /// Largest of it.
    #[serde(default = "max_aspect_ratio")]
    pub max_aspect_ratio: f64,
    /// Overlaps (intersection over union) that are drawn from; 1 or more leaves the image whole.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sampler_options: Option<Vec<f64>>,
    /// Parts that are tried for an overlap before the next one is drawn.
    #[serde(default = "trials")]
    pub trials: u32,
}

fn min_scale() -> f64 {
    0.3
}

fn max_scale() -> f64 {
    1.0
}

fn min_aspect_ratio() -> f64 {
    0.5
}

fn max_aspect_ratio() -> f64 {
    2.0
}

fn trials() -> u32 {
    40
}

const OPTIONS: [f64; 7] = [0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0];

/// Overlaps that are drawn before the image is left whole. torchvision goes on for ever where no option is 1 or more.
const ROUNDS: usize = 100;

/// Most trials of one overlap.
const MOST_TRIALS: u32 = 10_000;

#[derive(Clone, Debug)]
struct Cut {
    scale: [f64; 2],
    ratio: [f64; 2],
    options: Vec<f64>,
    trials: u32,
}

impl Transform for RandomIoUCrop {
    fn step(&self, at: &At, state: &mut State) -> Result<Option<Box<dyn Step>>, ConfigError> {
        let scale = at.positive_range("[min_scale, max_scale]", [self.min_scale, self.max_scale])?;
        at.check(scale[1] <= 1.0, || format!("max_scale must be at most 1, not {}", scale[1]))?;
        let bounds = [self.min_aspect_ratio, self.max_aspect_ratio];
        let ratio = at.positive_range("[min_aspect_ratio, max_aspect_ratio]", bounds)?;
        let options = self.sampler_options.clone().unwrap_or_else(|| OPTIONS.to_vec());
        at.check(!options.is_empty() && options.iter().all(|option| *option >= 0.0), || {
            "sampler_options must be a list of overlaps of at least 0; 1 leaves the image whole".to_owned()
        })?;
        at.check((1..=MOST_TRIALS).contains(&self.trials), || {
            format!("trials must be between 1 and {MOST_TRIALS}, not {}", self.trials)
        })?;
        state.size = None;
        state.culprit = Some(format!("{} cuts out a part of random size", at.text()));
        Ok(Some(Box::new(Cut { scale, ratio, options, trials: self.trials })))
    }
}

impl Cut {
    /// torchvision's choice, in its order of draws; `None` leaves the image whole.
    fn draw(&self, picture: &Picture<'_>, draws: &mut Draws) -> Option<Rect> {
        let (w, h) = picture.size();
        for _ in 0..ROUNDS {
            let least = self.options[draws.below(self.options.len() as u64) as usize];
            if least >= 1.0 {
                return None;
            }
            for _ in 0..self.trials {
                let part = |whole: usize, share: f64| (whole as f64 * share) as usize;
                let new_w = part(w, draws.range(self.scale[0], self.scale[1]));
                let new_h = part(h, draws.range(self.scale[0], self.scale[1]));
                let aspect = new_w as f64 / new_h as f64;
                // Not of an empty part either, whose aspect is no number.
                if !(self.ratio[0] <= aspect && aspect <= self.ratio[1]) || new_w == 0 {
                    continue;
                }
                let (x, y) = (part(w - new_w, draws.unit()), part(h - new_h, draws.unit()));
                let rect = Rect { x, y, w: new_w, h: new_h };
                let inside = picture.targets().boxes().filter(|one| has_middle_of(rect, one));
                if inside.map(|one| overlap(rect, one)).any(|found| found >= least) {
                    return Some(rect);
                }
            }
        }
        None
    }
}

fn edges(Rect { x, y, w, h }: Rect) -> [f64; 4] {
    [x as f64, y as f64, (x + w) as f64, (y + h) as f64]
}

fn has_middle_of(rect: Rect, [left, top, right, bottom]: &[f64; 4]) -> bool {
    let [x0, y0, x1, y1] = edges(rect);
    let (x, y) = (0.5 * (left + right), 0.5 * (top + bottom));
    x0 < x && x < x1 && y0 < y && y < y1
}

/// Intersection over union.
fn overlap(rect: Rect, [left, top, right, bottom]: &[f64; 4]) -> f64 {
    let [x0, y0, x1, y1] = edges(rect);
    let side = |a: f64, b: f64| (b - a).max(0.0);
    let both = side(x0.max(*left), x1.min(*right)) * side(y0.max(*top), y1.min(*bottom));
    both / (side(x0, x1) * side(y0, y1) + side(*left, *right) * side(*top, *bottom) - both)
}

impl Step for Cut {
    fn apply(&self, picture: &mut Picture<'_>, draws: &mut Draws, _: &Limits) -> Result<(), SampleError> {
        let Some(rect) = self.draw(picture, draws) else { return Ok(()) };
        // Cut first, so that a box that is marked stays so; the middles are those from before.
        let inside: Vec<bool> = picture.targets().boxes().map(|one| has_middle_of(rect, one)).collect();
        picture.crop(rect);
        let mut inside = inside.into_iter();
        picture.targets_mut().void(|_| !inside.next().expect("as many as there were"));
        Ok(())
    }

    fn like_mask(&self) -> Option<Box<dyn Step>> {
        Some(Box::new(self.clone()))
    }

    fn needs_boxes(&self) -> bool {
        true
    }
}

/// Cuts boxes off where the image ends. Crops, borders and turns do so by themselves.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClampBoundingBoxes {}

#[derive(Debug)]
struct Clamp;

impl Transform for ClampBoundingBoxes {
    fn step(&self, _: &At, _: &mut State) -> Result<Option<Box<dyn Step>>, ConfigError> {
        Ok(Some(Box::new(Clamp)))
    }
}

impl Step for Clamp {
    fn apply(&self, picture: &mut Picture<'_>, _: &mut Draws, _: &Limits) -> Result<(), SampleError> {
        let size = picture.size();
        picture.targets_mut().clamp(size);
        Ok(())
    }

    fn like_mask(&self) -> Option<Box<dyn Step>> {
        Some(Box::new(Clamp))
    }

    fn needs_boxes(&self) -> bool {
        true
    }
}

/// Removes boxes that are too small or reach out of the image, and with each the keypoints and numbers that belong to
/// it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SanitizeBoundingBoxes {
    /// Least width and height, in pixels.
    #[serde(default = "one")]
    pub min_size: f64,
    /// Least area, in pixels.
    #[serde(default = "one")]
    pub min_area: f64,
}

fn one() -> f64 {
    1.0
}

#[derive(Clone, Copy, Debug)]
struct Sanitize {
    min_size: f64,
    min_area: f64,
}

impl Transform for SanitizeBoundingBoxes {
    fn step(&self, at: &At, _: &mut State) -> Result<Option<Box<dyn Step>>, ConfigError> {
        let &SanitizeBoundingBoxes { min_size, min_area } = self;
        for (name, value) in [("min_size", min_size), ("min_area", min_area)] {
            at.check(value >= 1.0 && value.is_finite(), || {
                format!("{name} must be at least 1 pixel, not {value}")
            })?;
        }
        Ok(Some(Box::new(Sanitize { min_size, min_area })))
    }
}

impl Step for Sanitize {
    fn apply(&self, picture: &mut Picture<'_>, _: &mut Draws, _: &Limits) -> Result<(), SampleError> {
        let (w, h) = picture.size();
        let (w, h) = (w as f64, h as f64);
        picture.targets_mut().retain(|&[left, top, right, bottom]| {
            let (wide, high) = (right - left, bottom - top);
            let large = wide >= self.min_size && high >= self.min_size && wide * high >= self.min_area;
            large && left >= 0.0 && top >= 0.0 && right <= w && bottom <= h
        });
        Ok(())
    }

    fn like_mask(&self) -> Option<Box<dyn Step>> {
        Some(Box::new(*self))
    }

    fn needs_boxes(&self) -> bool {
        true
    }
}
