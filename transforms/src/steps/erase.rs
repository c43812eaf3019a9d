//! `RandomErasing`, on levels before the normalisation and on normalised values behind it.

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
    /// A channel each; `None` for random values.
    pub value: Option<[f32; 3]>,
}

impl RandomErasing {
    fn area(&self, at: &At) -> Result<EraseArea, ConfigError> {
        Ok(EraseArea {
            p: at.probability(self.p)?,
            scale: at.range("scale", self.scale, 0.0, 1.0)?,
            log_ratio: at.positive_range("ratio", self.ratio)?.map(f64::ln),
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
        let value = match &self.value {
            EraseValue::Random => None,
            EraseValue::Numbers(numbers) => {
                Some(at.per_channel("value", &numbers.0, state.channels)?.map(|v| v as f32))
            }
        };
        Ok(Erasing { area, value })
    }
}

impl Step for Erase {
    fn apply(&self, picture: &mut Picture<'_>, draws: &mut Draws, _: &Limits) -> Result<(), SampleError> {
        let (w, h) = picture.size();
        let Some(rect) = self.area.draw(w, h, draws) else { return Ok(()) };
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
    /// Overwrites the rectangle in a row that has been written.
    pub fn apply(&self, pass: &Pass, draws: &mut Draws, row: &mut [u8]) {
        let Some(rect) = self.area.draw(pass.spec.width, pass.spec.height, draws) else { return };
        let mut spare = None;
        for c in 0..pass.spec.channels {
            for y in rect.y..rect.y + rect.h {
                for x in rect.x..rect.x + rect.w {
                    let value = match self.value {
                        Some(values) => values[c],
                        None => spare.take().unwrap_or_else(|| {
                            let (a, b) = draws.normal_pair();
                            spare = Some(b);
                            a
                        }),
                    };
                    pass.put(x, y, c, value, row);
                }
            }
        }
    }
}

/// Where a `RandomErasing` erases.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct EraseArea {
    p: f64,
    scale: [f64; 2],
    log_ratio: [f64; 2],
}

impl EraseArea {
    /// The rectangle to erase in an image of `w` x `h`, as torchvision draws it; `None` to leave the image alone.
    pub(crate) fn draw(&self, w: usize, h: usize, draws: &mut Draws) -> Option<Rect> {
        if !draws.chance(self.p) {
            return None;
        }
        for _ in 0..10 {
            let area = (w * h) as f64 * draws.range(self.scale[0], self.scale[1]);
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
