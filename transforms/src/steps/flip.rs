//! Mirrors.

use serde::{Deserialize, Serialize};

use super::arguments::At;
use super::{State, Step, Transform};
use crate::error::{ConfigError, SampleError};
use crate::limits::Limits;
use crate::plan::Picture;
use crate::random::Draws;

/// Mirrors left and right with probability `p`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RandomHorizontalFlip {
    /// Probability, 0 to 1.
    #[serde(default = "half")]
    pub p: f64,
}

/// Mirrors top and bottom with probability `p`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RandomVerticalFlip {
    /// Probability, 0 to 1.
    #[serde(default = "half")]
    pub p: f64,
}

fn half() -> f64 {
    0.5
}

#[derive(Clone, Copy, Debug)]
struct Flip {
    p: f64,
    x: bool,
    y: bool,
}

impl Transform for RandomHorizontalFlip {
    fn step(&self, at: &At, _: &mut State) -> Result<Option<Box<dyn Step>>, ConfigError> {
        Ok(Some(Box::new(Flip { p: at.probability(self.p)?, x: true, y: false })))
    }
}

impl Transform for RandomVerticalFlip {
    fn step(&self, at: &At, _: &mut State) -> Result<Option<Box<dyn Step>>, ConfigError> {
        Ok(Some(Box::new(Flip { p: at.probability(self.p)?, x: false, y: true })))
    }
}

impl Step for Flip {
    fn apply(&self, picture: &mut Picture<'_>, draws: &mut Draws, _: &Limits) -> Result<(), SampleError> {
        if draws.chance(self.p) {
            picture.flip(self.x, self.y);
        }
        Ok(())
    }

    fn like_mask(&self) -> Option<Box<dyn Step>> {
        Some(Box::new(*self))
    }
}
