//! Noise.

use serde::{Deserialize, Serialize};

use super::arguments::At;
use super::{State, Step, Transform};
use crate::error::{ConfigError, SampleError};
use crate::geometry::PIXEL;
use crate::limits::Limits;
use crate::plan::Picture;
use crate::random::Draws;

/// Adds normally distributed noise; mean and standard deviation are on the scale where white is 1. Values are
/// rounded to the nearest level and clipped to [0, 255].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GaussianNoise {
    /// Mean of the noise.
    #[serde(default)]
    pub mean: f64,
    /// Standard deviation of the noise.
    #[serde(default = "tenth")]
    pub sigma: f64,
    /// Must be true: pixels are `u8`, which would wrap around.
    #[serde(default = "clipped")]
    pub clip: bool,
}

fn tenth() -> f64 {
    0.1
}

fn clipped() -> bool {
    true
}

/// Mean and standard deviation in levels.
#[derive(Debug)]
struct Noise {
    mean: f32,
    sigma: f32,
    gray: bool,
}

impl Transform for GaussianNoise {
    fn step(&self, at: &At, state: &mut State) -> Result<Option<Box<dyn Step>>, ConfigError> {
        let &GaussianNoise { mean, sigma, clip } = self;
        at.check(clip, || {
            "clip = false would let u8 pixels wrap around; leave it true (the default)".to_owned()
        })?;
        at.check(mean.is_finite(), || format!("mean must be a finite number, not {mean}"))?;
        at.check(sigma >= 0.0 && sigma.is_finite(), || format!("sigma must not be negative, not {sigma}"))?;
        let levels = |v: f64| (v * 255.0) as f32;
        Ok(Some(Box::new(Noise { mean: levels(mean), sigma: levels(sigma), gray: state.channels == 1 })))
    }
}

impl Step for Noise {
    fn apply(&self, picture: &mut Picture<'_>, draws: &mut Draws, _: &Limits) -> Result<(), SampleError> {
        picture.in_place(|image, _| noise(image.pixels_mut(), self.mean, self.sigma, self.gray, draws))
    }

    fn like_mask(&self) -> Option<Box<dyn Step>> {
        None
    }
}

/// Adds normal noise to every channel, or the same to all three of a gray image; mean and sigma are in levels.
fn noise(pixels: &mut [[u8; PIXEL]], mean: f32, sigma: f32, gray: bool, draws: &mut Draws) {
    // `as` saturates, so this is the clip too.
    let add =
        |value: &mut u8, normal: f32| *value = (f32::from(*value) + mean + sigma * normal).round() as u8;
    let mut pairs = pixels.chunks_exact_mut(2);
    let mut both = |first: &mut [u8; PIXEL], second: &mut [u8; PIXEL]| {
        if gray {
            let (a, b) = draws.normal_pair();
            add(&mut first[0], a);
            add(&mut second[0], b);
            *first = [first[0], first[0], first[0], 255];
            *second = [second[0], second[0], second[0], 255];
        } else {
            for c in 0..3 {
                let (a, b) = draws.normal_pair();
                add(&mut first[c], a);
                add(&mut second[c], b);
            }
        }
    };
    for pair in &mut pairs {
        let [first, second] = pair else { continue };
        both(first, second);
    }
    if let [last] = pairs.into_remainder() {
        both(last, &mut [0; PIXEL]);
    }
}
