//! Steps that change levels by a table, and `RandomAdjustSharpness`: each with probability `p`.

use serde::{Deserialize, Serialize};

use super::arguments::At;
use super::color::sharpness;
use super::{State, Step, Transform};
use crate::error::{ConfigError, SampleError};
use crate::levels;
use crate::limits::Limits;
use crate::plan::Picture;
use crate::random::Draws;

/// Inverts all levels of at least `threshold`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RandomSolarize {
    /// The lowest level that is inverted.
    pub threshold: f64,
    /// Probability, 0 to 1.
    #[serde(default = "half")]
    pub p: f64,
}

/// Keeps the upper `bits` bits of each level.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RandomPosterize {
    /// 0 to 8.
    pub bits: u32,
    /// Probability, 0 to 1.
    #[serde(default = "half")]
    pub p: f64,
}

/// Spreads the levels of each channel so that all occur about equally often.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RandomEqualize {
    /// Probability, 0 to 1.
    #[serde(default = "half")]
    pub p: f64,
}

/// Stretches the levels of each channel to the whole range.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RandomAutocontrast {
    /// Probability, 0 to 1.
    #[serde(default = "half")]
    pub p: f64,
}

/// Makes a negative.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RandomInvert {
    /// Probability, 0 to 1.
    #[serde(default = "half")]
    pub p: f64,
}

/// Sharpens or blurs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RandomAdjustSharpness {
    /// 0 blurs, 1 changes nothing, more than 1 sharpens.
    pub sharpness_factor: f64,
    /// Probability, 0 to 1.
    #[serde(default = "half")]
    pub p: f64,
}

fn half() -> f64 {
    0.5
}

/// What is done to the levels of an image.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Change {
    Solarize(f64),
    SolarizeAdd(u8),
    Posterize(u32),
    Equalize,
    Autocontrast,
    Invert,
    Sharpness(f64),
}

impl Change {
    pub(super) fn apply(self, picture: &mut Picture<'_>) -> Result<(), SampleError> {
        let table = match self {
            Change::Solarize(threshold) => levels::solarize(threshold),
            Change::SolarizeAdd(add) => levels::solarize_add(add),
            Change::Posterize(bits) => levels::posterize(bits),
            Change::Invert => levels::invert(),
            Change::Equalize => return picture.look_up(|seen| seen.by_counts(levels::equalize)),
            Change::Autocontrast => return picture.look_up(|seen| seen.by_counts(levels::autocontrast)),
            Change::Sharpness(factor) => return sharpness(picture, factor),
        };
        picture.look_up(|_| [table; 3])
    }
}

#[derive(Debug)]
struct Sometimes {
    p: f64,
    change: Change,
}

fn sometimes(at: &At, p: f64, change: Change) -> Result<Option<Box<dyn Step>>, ConfigError> {
    Ok(Some(Box::new(Sometimes { p: at.probability(p)?, change })))
}

impl Step for Sometimes {
    fn apply(&self, picture: &mut Picture<'_>, draws: &mut Draws, _: &Limits) -> Result<(), SampleError> {
        if draws.chance(self.p) { self.change.apply(picture) } else { Ok(()) }
    }

    fn like_mask(&self) -> Option<Box<dyn Step>> {
        None
    }
}

impl Transform for RandomSolarize {
    fn step(&self, at: &At, _: &mut State) -> Result<Option<Box<dyn Step>>, ConfigError> {
        let threshold = self.threshold;
        at.check(threshold.is_finite(), || format!("threshold must be a level, not {threshold}"))?;
        sometimes(at, self.p, Change::Solarize(threshold))
    }
}

impl Transform for RandomPosterize {
    fn step(&self, at: &At, _: &mut State) -> Result<Option<Box<dyn Step>>, ConfigError> {
        at.check(self.bits <= 8, || format!("bits must be between 0 and 8, not {}", self.bits))?;
        sometimes(at, self.p, Change::Posterize(self.bits))
    }
}

impl Transform for RandomEqualize {
    fn step(&self, at: &At, _: &mut State) -> Result<Option<Box<dyn Step>>, ConfigError> {
        sometimes(at, self.p, Change::Equalize)
    }
}

impl Transform for RandomAutocontrast {
    fn step(&self, at: &At, _: &mut State) -> Result<Option<Box<dyn Step>>, ConfigError> {
        sometimes(at, self.p, Change::Autocontrast)
    }
}

impl Transform for RandomInvert {
    fn step(&self, at: &At, _: &mut State) -> Result<Option<Box<dyn Step>>, ConfigError> {
        sometimes(at, self.p, Change::Invert)
    }
}

impl Transform for RandomAdjustSharpness {
    fn step(&self, at: &At, _: &mut State) -> Result<Option<Box<dyn Step>>, ConfigError> {
        let factor = self.sharpness_factor;
        at.check(factor >= 0.0 && factor.is_finite(), || {
            format!("sharpness_factor must not be negative, not {factor}")
        })?;
        sometimes(at, self.p, Change::Sharpness(factor))
    }
}
