//! Colours as detectors are trained with: `RandomPhotometricDistort` and `RandomChannelPermutation`.

use serde::{Deserialize, Serialize};

use super::arguments::At;
use super::color::{brightness, contrast, hue, saturation};
use super::{State, Step, Transform};
use crate::error::{ConfigError, SampleError};
use crate::limits::Limits;
use crate::plan::Picture;
use crate::random::Draws;

/// Puts the channels into a random order.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RandomChannelPermutation {}

/// Changes brightness, contrast, saturation, hue and the order of the channels, each with probability `p`; contrast
/// either before or after saturation and hue.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RandomPhotometricDistort {
    /// Bounds of the factor on all values.
    #[serde(default = "eighth")]
    pub brightness: [f64; 2],
    /// Bounds of the factor on the distance from the mean gray.
    #[serde(default = "around_one")]
    pub contrast: [f64; 2],
    /// Bounds of the factor on the distance from the pixel's own gray.
    #[serde(default = "around_one")]
    pub saturation: [f64; 2],
    /// Bounds of the shift of the hue in turns, within [-0.5, 0.5].
    #[serde(default = "slight")]
    pub hue: [f64; 2],
    /// Probability of each change, 0 to 1.
    #[serde(default = "half")]
    pub p: f64,
}

fn eighth() -> [f64; 2] {
    [0.875, 1.125]
}

fn around_one() -> [f64; 2] {
    [0.5, 1.5]
}

fn slight() -> [f64; 2] {
    [-0.05, 0.05]
}

fn half() -> f64 {
    0.5
}

#[derive(Debug)]
struct Permute;

/// Which channel comes to each place.
fn permute(picture: &mut Picture<'_>, order: [usize; 3]) -> Result<(), SampleError> {
    picture.each_pixel(|pixels| {
        for pixel in pixels {
            *pixel = [pixel[order[0]], pixel[order[1]], pixel[order[2]], pixel[3]];
        }
    })
}

impl Transform for RandomChannelPermutation {
    fn step(&self, _: &At, _: &mut State) -> Result<Option<Box<dyn Step>>, ConfigError> {
        Ok(Some(Box::new(Permute)))
    }
}

impl Step for Permute {
    fn apply(&self, picture: &mut Picture<'_>, draws: &mut Draws, _: &Limits) -> Result<(), SampleError> {
        permute(picture, draws.order())
    }

    fn like_mask(&self) -> Option<Box<dyn Step>> {
        None
    }
}

#[derive(Debug)]
struct Distort {
    /// Of brightness, contrast, saturation and hue.
    ranges: [[f64; 2]; 4],
    p: f64,
}

impl Transform for RandomPhotometricDistort {
    fn step(&self, at: &At, _: &mut State) -> Result<Option<Box<dyn Step>>, ConfigError> {
        let factor = |argument, range| at.range(argument, range, 0.0, f64::INFINITY);
        let ranges = [
            factor("brightness", self.brightness)?,
            factor("contrast", self.contrast)?,
            factor("saturation", self.saturation)?,
            at.range("hue", self.hue, -0.5, 0.5)?,
        ];
        Ok(Some(Box::new(Distort { ranges, p: at.probability(self.p)? })))
    }
}

impl Step for Distort {
    fn apply(&self, picture: &mut Picture<'_>, draws: &mut Draws, _: &Limits) -> Result<(), SampleError> {
        // All is drawn, whatever of it is done.
        let changes = self.ranges.map(|[low, high]| {
            let is_done = draws.chance(self.p);
            let factor = draws.range(low, high);
            is_done.then_some(factor)
        });
        let contrast_first = draws.chance(0.5);
        let is_permuted = draws.chance(self.p);
        let order = draws.order();
        let mut change = |which: usize, how: fn(&mut Picture<'_>, f64) -> Result<(), SampleError>| {
            changes[which].map_or(Ok(()), |factor| how(picture, factor))
        };
        change(0, brightness)?;
        if contrast_first {
            change(1, contrast)?;
        }
        change(2, saturation)?;
        change(3, hue)?;
        if !contrast_first {
            change(1, contrast)?;
        }
        if is_permuted { permute(picture, order) } else { Ok(()) }
    }

    fn like_mask(&self) -> Option<Box<dyn Step>> {
        None
    }
}
