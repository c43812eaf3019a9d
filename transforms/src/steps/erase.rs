//! `RandomErasing`, on levels before the normalisation and on normalised values behind it; and timm's, behind it.

use serde::de::{self, Deserializer};
use serde::ser::Serializer;
use serde::{Deserialize, Serialize};

use super::arguments::{Any, AnyVisitor, At, Numbers};
use super::{State, Step, Transform};
use crate::error::{ConfigError, SampleError};
use crate::geometry::{PIXEL, Rect};
use crate::limits::Limits;
use crate::output::Pass;
use crate::plan::Picture;
use crate::random::Draws;

/// Overwrites a random rectangle with probability `p`. Behind `Normalize`, `value` is in normalised units; before
/// it, or without one, in levels 0 to 255.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RandomErasing {
    /// Probability, 0 to 1.
    #[serde(default = "half")]
    pub p: f64,
    /// Bounds of the share of the area.
    #[serde(default = "scale")]
    pub scale: [f64; 2],
    /// Bounds of the rectangle's height divided by its width.
    #[serde(default = "ratio")]
    pub ratio: [f64; 2],
    /// One number, one a channel, or "random" (behind `Normalize` only) for standard normal values.
    #[serde(default)]
    pub value: EraseValue,
}

/// timm's: overwrites some random rectangles with probability `probability`, behind `Normalize` and in normalised
/// units.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TimmRandomErasing {
    /// Probability, 0 to 1.
    #[serde(default = "half")]
    pub probability: f64,
    /// The least share of the area; each rectangle has its part of it.
    #[serde(default = "min_area")]
    pub min_area: f64,
    /// The largest share.
    #[serde(default = "max_area")]
    pub max_area: f64,
    /// The least height divided by the width.
    #[serde(default = "min_aspect")]
    pub min_aspect: f64,
    /// The largest; absent: 1 / `min_aspect`.
    #[serde(default)]
    pub max_aspect: Option<f64>,
    /// What is written.
    #[serde(default)]
    pub mode: EraseMode,
    /// The fewest rectangles.
    #[serde(default = "one")]
    pub min_count: u32,
    /// The most; absent: `min_count`.
    #[serde(default)]
    pub max_count: Option<u32>,
}

/// What timm's erasing writes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EraseMode {
    /// 0, the mean colour.
    #[default]
    Const,
    /// One colour a rectangle, of the standard normal distribution.
    Rand,
    /// Standard normal values.
    Pixel,
}

fn min_area() -> f64 {
    0.02
}

fn max_area() -> f64 {
    1.0 / 3.0
}

fn min_aspect() -> f64 {
    0.3
}

fn one() -> u32 {
    1
}

/// The most rectangles of an image.
const MOST: u32 = 64;

fn half() -> f64 {
    0.5
}

fn scale() -> [f64; 2] {
    [0.02, 0.33]
}

fn ratio() -> [f64; 2] {
    [0.3, 3.3]
}

/// What `RandomErasing` writes.
#[derive(Clone, Debug, PartialEq)]
pub enum EraseValue {
    /// One number, or one a channel.
    Numbers(Numbers),
    /// Values of the standard normal distribution.
    Random,
}

impl Default for EraseValue {
    fn default() -> Self {
        EraseValue::Numbers(Numbers::default())
    }
}

impl Serialize for EraseValue {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            EraseValue::Numbers(numbers) => numbers.serialize(serializer),
            EraseValue::Random => serializer.serialize_str("random"),
        }
    }
}

impl<'de> Deserialize<'de> for EraseValue {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        const WHAT: &str = "a number, a list of numbers or \"random\"";
        match deserializer.deserialize_any(AnyVisitor(WHAT))? {
            Any::Numbers(numbers) => Ok(EraseValue::Numbers(Numbers(numbers))),
            Any::Text(text) if text == "random" => Ok(EraseValue::Random),
            Any::Text(text) => Err(de::Error::invalid_value(de::Unexpected::Str(&text), &WHAT)),
        }
    }
}

/// An erasing in front of the normalisation.
#[derive(Debug)]
struct Erase {
    area: EraseArea,
    value: [u8; PIXEL],
}

/// An erasing behind the normalisation.
#[derive(Clone, Debug)]
pub(crate) struct Erasing {
    pub area: EraseArea,
    pub paint: Paint,
}

/// What is written behind the normalisation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Paint {
    /// A channel each.
    Fixed([f32; 3]),
    /// Standard normal values for each rectangle.
    Colour,
    /// Standard normal values for each pixel.
    Noise,
}

impl RandomErasing {
    fn area(&self, at: &At) -> Result<EraseArea, ConfigError> {
        Ok(EraseArea {
            p: at.probability(self.p)?,
            scale: at.range("scale", self.scale, 0.0, 1.0)?,
            log_ratio: at.positive_range("ratio", self.ratio)?.map(f64::ln),
            count: [1, 1],
        })
    }
}

impl Transform for RandomErasing {
    fn step(&self, at: &At, state: &mut State) -> Result<Option<Box<dyn Step>>, ConfigError> {
        let area = self.area(at)?;
        let EraseValue::Numbers(numbers) = &self.value else {
            return Err(at.error(
                "value = \"random\" draws normalised values, which only make sense after Normalize: move it there or give \
                 a level 0 to 255",
            ));
        };
        let value = at.levels("value", numbers, state.channels)?;
        Ok(Some(Box::new(Erase { area, value })))
    }

    fn after_normalize(&self, at: &At, state: &State) -> Result<Erasing, ConfigError> {
        let area = self.area(at)?;
        let paint = match &self.value {
            EraseValue::Random => Paint::Noise,
            EraseValue::Numbers(numbers) => {
                Paint::Fixed(at.per_channel("value", &numbers.0, state.channels)?.map(|v| v as f32))
            }
        };
        Ok(Erasing { area, paint })
    }
}

impl Transform for TimmRandomErasing {
    fn step(&self, at: &At, _: &mut State) -> Result<Option<Box<dyn Step>>, ConfigError> {
        Err(at.error(
            "it writes normalised values, which only make sense after Normalize: move it there, or use RandomErasing \
             with a level from 0 to 255",
        ))
    }

    fn after_normalize(&self, at: &At, _: &State) -> Result<Erasing, ConfigError> {
        let (least, most) = (self.min_count, self.max_count.unwrap_or(self.min_count));
        at.check(least >= 1 && least <= most && most <= MOST, || {
            format!(
                "min_count and max_count must be between 1 and {MOST}, the first not above the second; they are \
                 {least} and {most}"
            )
        })?;
        let aspects = [self.min_aspect, self.max_aspect.unwrap_or(1.0 / self.min_aspect)];
        let area = EraseArea {
            p: at.probability(self.probability)?,
            scale: at.range("[min_area, max_area]", [self.min_area, self.max_area], 0.0, 1.0)?,
            log_ratio: at.positive_range("[min_aspect, max_aspect]", aspects)?.map(f64::ln),
            count: [least, most],
        };
        let paint = match self.mode {
            EraseMode::Const => Paint::Fixed([0.0; 3]),
            EraseMode::Rand => Paint::Colour,
            EraseMode::Pixel => Paint::Noise,
        };
        Ok(Erasing { area, paint })
    }
}

impl Step for Erase {
    fn apply(&self, picture: &mut Picture<'_>, draws: &mut Draws, _: &Limits) -> Result<(), SampleError> {
        let (w, h) = picture.size();
        let [rect] = self.area.draw(w, h, draws)[..] else { return Ok(()) };
        picture.in_place(|image, _| {
            for y in rect.y..rect.y + rect.h {
                image.row_mut(y).as_chunks_mut::<PIXEL>().0[rect.x..rect.x + rect.w].fill(self.value);
            }
        })
    }

    /// torchvision passes masks through: what is behind the rectangle stays to be found.
    fn like_mask(&self) -> Option<Box<dyn Step>> {
        None
    }
}

impl Erasing {
    /// Overwrites the rectangles in a row that has been written.
    pub fn apply(&self, pass: &Pass, draws: &mut Draws, row: &mut [u8]) {
        let rects = self.area.draw(pass.spec.width, pass.spec.height, draws);
        let mut spare = None;
        let mut normal = || {
            spare.take().unwrap_or_else(|| {
                let (a, b) = draws.normal_pair();
                spare = Some(b);
                a
            })
        };
        for rect in rects {
            for c in 0..pass.spec.channels {
                let colour = match self.paint {
                    Paint::Fixed(values) => Some(values[c]),
                    Paint::Colour => Some(normal()),
                    Paint::Noise => None,
                };
                for y in rect.y..rect.y + rect.h {
                    for x in rect.x..rect.x + rect.w {
                        pass.put(x, y, c, colour.unwrap_or_else(&mut normal), row);
                    }
                }
            }
        }
    }

    /// What is written into each rectangle there may be, where that is the same for all images.
    pub fn fixed(&self) -> Option<Vec<[f32; 3]>> {
        match self.paint {
            Paint::Fixed(values) => Some(vec![values; self.area.most()]),
            Paint::Colour | Paint::Noise => None,
        }
    }
}

/// Where an erasing erases.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct EraseArea {
    p: f64,
    scale: [f64; 2],
    log_ratio: [f64; 2],
    /// The fewest and the most rectangles.
    count: [u32; 2],
}

impl EraseArea {
    /// The most rectangles of an image.
    pub(crate) fn most(&self) -> usize {
        self.count[1] as usize
    }

    /// The rectangles to erase in an image of `w` x `h`, as torchvision draws one and timm several; none to leave the
    /// image alone.
    pub(crate) fn draw(&self, w: usize, h: usize, draws: &mut Draws) -> Vec<Rect> {
        if !draws.chance(self.p) {
            return Vec::new();
        }
        let [least, most] = self.count;
        let count =
            if least == most { least } else { least + draws.below(u64::from(most - least + 1)) as u32 };
        (0..count).filter_map(|_| self.one(w, h, count, draws)).collect()
    }

    /// One of `count`, if ten draws find one that fits.
    fn one(&self, w: usize, h: usize, count: u32, draws: &mut Draws) -> Option<Rect> {
        for _ in 0..10 {
            let area = (w * h) as f64 * draws.range(self.scale[0], self.scale[1]) / f64::from(count);
            let ratio = draws.range(self.log_ratio[0], self.log_ratio[1]).exp();
            let erase_h = (area * ratio).sqrt().round_ties_even() as usize;
            let erase_w = (area / ratio).sqrt().round_ties_even() as usize;
            if erase_h < h && erase_w < w {
                let y = draws.below((h - erase_h + 1) as u64) as usize;
                let x = draws.below((w - erase_w + 1) as u64) as usize;
                return Some(Rect { x, y, w: erase_w, h: erase_h });
            }
        }
        None
    }
}
