//! `Normalize`, which the output pass carries out.

use serde::{Deserialize, Serialize};

use super::arguments::At;
use super::erase::Erasing;
use super::{State, Step, Transform};
use crate::error::ConfigError;

/// Subtracts the mean and divides by the standard deviation, both a channel and on the scale where white is 1.
/// Only `RandomErasing` may follow.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Normalize {
    /// One number a channel, or one for all.
    pub mean: Vec<f64>,
    /// One number a channel, or one for all; none may be 0.
    pub std: Vec<f64>,
}

impl Transform for Normalize {
    fn step(&self, at: &At, state: &mut State) -> Result<Option<Box<dyn Step>>, ConfigError> {
        let std = at.per_channel("std", &self.std, state.channels)?;
        at.check(std.iter().all(|std| *std > 0.0), || {
            format!("std must be above 0 in every channel, not {:?}", self.std)
        })?;
        state.normalize = Some((at.per_channel("mean", &self.mean, state.channels)?, std));
        Ok(None)
    }

    fn after_normalize(&self, at: &At, _: &State) -> Result<Erasing, ConfigError> {
        Err(at.error("there is a Normalize before; merge the two"))
    }
}
