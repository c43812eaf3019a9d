//! Gray and jitter.

use serde::{Deserialize, Serialize};

use super::arguments::{At, Numbers};
use super::{State, Step, Transform};
use crate::color::{self, blend_table};
use crate::error::{ConfigError, SampleError};
use crate::limits::Limits;
use crate::plan::Picture;
use crate::random::Draws;

/// Makes the image gray (ITU-R 601 luma).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Grayscale {
    /// 1, or 3 for the gray value three times.
    #[serde(default = "one")]
    pub num_output_channels: u32,
}

/// Makes the image gray with probability `p`, keeping its number of channels.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RandomGrayscale {
    /// Probability, 0 to 1.
    #[serde(default = "tenth")]
    pub p: f64,
}

/// Changes brightness, contrast, saturation and hue by random factors in a random order. Each is a number v for
/// a factor in [max(0, 1 - v), 1 + v] (hue: [-v, v]), or [least, most].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ColorJitter {
    /// Factor on all values.
    #[serde(default)]
    pub brightness: Option<Numbers>,
    /// Factor on the distance from the mean gray.
    #[serde(default)]
    pub contrast: Option<Numbers>,
    /// Factor on the distance from the pixel's own gray.
    #[serde(default)]
    pub saturation: Option<Numbers>,
    /// Shift of the hue in turns, within [-0.5, 0.5].
    #[serde(default)]
    pub hue: Option<Numbers>,
}

fn one() -> u32 {
    1
}

fn tenth() -> f64 {
    0.1
}

/// The ranges of a `ColorJitter`; `None` leaves that property alone.
#[derive(Clone, Debug, PartialEq)]
struct Jitter {
    brightness: Option<[f64; 2]>,
    contrast: Option<[f64; 2]>,
    saturation: Option<[f64; 2]>,
    hue: Option<[f64; 2]>,
}

#[derive(Debug)]
struct Gray {
    p: f64,
}

impl Transform for Grayscale {
    fn step(&self, at: &At, state: &mut State) -> Result<Option<Box<dyn Step>>, ConfigError> {
        let channels = self.num_output_channels;
        at.check(matches!(channels, 1 | 3), || {
            format!("num_output_channels must be 1 or 3, not {channels}")
        })?;
        state.channels = channels as usize;
        Ok(Some(Box::new(Gray { p: 1.0 })))
    }
}

impl Transform for RandomGrayscale {
    fn step(&self, at: &At, _: &mut State) -> Result<Option<Box<dyn Step>>, ConfigError> {
        Ok(Some(Box::new(Gray { p: at.probability(self.p)? })))
    }
}

impl Step for Gray {
    fn apply(&self, picture: &mut Picture<'_>, draws: &mut Draws, _: &Limits) -> Result<(), SampleError> {
        if draws.chance(self.p) { picture.each_pixel(color::gray) } else { Ok(()) }
    }

    fn like_mask(&self) -> Option<Box<dyn Step>> {
        None
    }
}

impl ColorJitter {
    /// The range of a property: one number for the half-width of a range around `center`, or the range.
    pub(super) fn factor(
        at: &At,
        argument: &str,
        numbers: Option<&Numbers>,
        center: f64,
        low: f64,
        high: f64,
    ) -> Result<Option<[f64; 2]>, ConfigError> {
        let range = match numbers.map(|numbers| &numbers.0[..]) {
            None => return Ok(None),
            Some(&[v]) => {
                at.check(v >= 0.0, || {
                    format!("{argument} as a single number must not be negative, not {v}")
                })?;
                // Only factors are cut off at 0; a hue beyond its bounds is an error.
                [if center > 0.0 { (center - v).max(0.0) } else { center - v }, center + v]
            }
            Some(&[a, b]) => [a, b],
            Some(other) => {
                return Err(at.error(format!(
                    "{argument} must be one number or [least, most], not {} numbers",
                    other.len()
                )));
            }
        };
        let range = at.range(argument, range, low, high)?;
        Ok((range != [center; 2]).then_some(range))
    }
}

impl Transform for ColorJitter {
    fn step(&self, at: &At, _: &mut State) -> Result<Option<Box<dyn Step>>, ConfigError> {
        let factor = |argument, numbers: &Option<Numbers>| {
            Self::factor(at, argument, numbers.as_ref(), 1.0, 0.0, f64::INFINITY)
        };
        let jitter = Jitter {
            brightness: factor("brightness", &self.brightness)?,
            contrast: factor("contrast", &self.contrast)?,
            saturation: factor("saturation", &self.saturation)?,
            hue: Self::factor(at, "hue", self.hue.as_ref(), 0.0, -0.5, 0.5)?,
        };
        let nothing = [jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue] == [None; 4];
        Ok(if nothing { None } else { Some(Box::new(jitter)) })
    }
}

pub(super) fn brightness(picture: &mut Picture<'_>, factor: f64) -> Result<(), SampleError> {
    picture.look_up(|_| [blend_table(0, factor); 3])
}

pub(super) fn contrast(picture: &mut Picture<'_>, factor: f64) -> Result<(), SampleError> {
    picture.look_up(|seen| [blend_table(seen.mean_gray(), factor); 3])
}

pub(super) fn saturation(picture: &mut Picture<'_>, factor: f64) -> Result<(), SampleError> {
    picture.each_pixel(|pixels| color::saturation(pixels, factor))
}

pub(super) fn hue(picture: &mut Picture<'_>, turns: f64) -> Result<(), SampleError> {
    picture.each_pixel(|pixels| color::hue(pixels, turns))
}

pub(super) fn sharpness(picture: &mut Picture<'_>, factor: f64) -> Result<(), SampleError> {
    let size = picture.size();
    picture.replace("the sharpened image", size, |image, out| color::sharpen(image, factor, out))
}

impl Step for Jitter {
    fn apply(&self, picture: &mut Picture<'_>, draws: &mut Draws, _: &Limits) -> Result<(), SampleError> {
        let ranges = [self.brightness, self.contrast, self.saturation, self.hue];
        // The order is drawn whatever is set, then a factor for each: adding one does not change another's.
        let order = draws.order::<4>();
        let factors = ranges.map(|range| {
            let unit = draws.unit();
            range.map(|[low, high]| low + (high - low) * unit)
        });
        for property in order {
            let Some(factor) = factors[property] else { continue };
            match property {
                0 => brightness(picture, factor)?,
                1 => contrast(picture, factor)?,
                2 => saturation(picture, factor)?,
                _ => hue(picture, factor)?,
            }
        }
        Ok(())
    }

    fn like_mask(&self) -> Option<Box<dyn Step>> {
        None
    }
}
