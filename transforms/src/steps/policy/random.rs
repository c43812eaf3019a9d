//! `RandAugment` and `TrivialAugmentWide`: any operations of a list.

use serde::{Deserialize, Serialize};

use super::{Canvas, Drawn, Kind, Reach, Space};
use crate::error::{ConfigError, SampleError};
use crate::limits::Limits;
use crate::plan::Picture;
use crate::random::Draws;
use crate::resize::Interpolation;
use crate::steps::arguments::{At, Numbers};
use crate::steps::rotation::nearest_pixel;
use crate::steps::{State, Step, Transform};

/// Carries out `num_ops` operations, each any of fourteen, with one magnitude (arXiv 1909.13719).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RandAugment {
    /// How many operations.
    #[serde(default = "two")]
    pub num_ops: u32,
    /// The bin of their magnitude, from 0.
    #[serde(default = "nine")]
    pub magnitude: u32,
    /// How many bins there are.
    #[serde(default = "thirty_one")]
    pub num_magnitude_bins: u32,
    /// `nearest`, `bilinear` or `bicubic`.
    #[serde(default = "nearest_pixel")]
    pub interpolation: Interpolation,
    /// Colour of what comes from outside: one number or one a channel.
    #[serde(default)]
    pub fill: Numbers,
}

/// Carries out one operation, any of fourteen, with any magnitude of a wide range (arXiv 2103.10158).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrivialAugmentWide {
    /// How many magnitudes there are.
    #[serde(default = "thirty_one")]
    pub num_magnitude_bins: u32,
    /// `nearest`, `bilinear` or `bicubic`.
    #[serde(default = "nearest_pixel")]
    pub interpolation: Interpolation,
    /// Colour of what comes from outside: one number or one a channel.
    #[serde(default)]
    pub fill: Numbers,
}

fn two() -> u32 {
    2
}

fn nine() -> u32 {
    9
}

fn thirty_one() -> u32 {
    31
}

const KINDS: [Kind; 14] = [
    Kind::Identity,
    Kind::ShearX,
    Kind::ShearY,
    Kind::TranslateX,
    Kind::TranslateY,
    Kind::Rotate,
    Kind::Brightness,
    Kind::Color,
    Kind::Contrast,
    Kind::Sharpness,
    Kind::Posterize,
    Kind::Solarize,
    Kind::AutoContrast,
    Kind::Equalize,
];

/// Of AutoAugment, too.
pub(super) const NARROW: Space = Space {
    kinds: &KINDS,
    bins: 31,
    shear: 0.3,
    translate: Reach::Share(|side| 150.0 / 331.0 * side),
    degrees: 30.0,
    factor: 0.9,
    bits: [8.0, 4.0],
};

const WIDE: Space = Space {
    kinds: &KINDS,
    bins: 31,
    shear: 0.99,
    translate: Reach::Pixels(32.0),
    degrees: 135.0,
    factor: 0.99,
    bits: [8.0, 6.0],
};

/// The most operations, and bins.
const MOST: u32 = 1000;

fn bins(at: &At, bins: u32) -> Result<usize, ConfigError> {
    at.check((2..=MOST).contains(&bins), || {
        format!("num_magnitude_bins must be between 2 and {MOST}, not {bins}")
    })?;
    Ok(bins as usize)
}

#[derive(Clone, Copy, Debug)]
struct Rand {
    operations: u32,
    /// Drawn where there is none.
    bin: Option<usize>,
    space: Space,
    canvas: Canvas,
}

impl Transform for RandAugment {
    fn step(&self, at: &At, state: &mut State) -> Result<Option<Box<dyn Step>>, ConfigError> {
        let &RandAugment { num_ops, magnitude, num_magnitude_bins, interpolation, .. } = self;
        at.check(num_ops <= MOST, || format!("num_ops must be at most {MOST}, not {num_ops}"))?;
        let bins = bins(at, num_magnitude_bins)?;
        at.check((magnitude as usize) < bins, || {
            format!(
                "magnitude must be below num_magnitude_bins = {bins}, which count from 0; it is {magnitude}"
            )
        })?;
        let canvas = Canvas::new(at, interpolation, &self.fill, state.channels)?;
        if num_ops == 0 {
            return Ok(None);
        }
        let space = Space { bins, ..NARROW };
        Ok(Some(Box::new(Rand { operations: num_ops, bin: Some(magnitude as usize), space, canvas })))
    }
}

impl Transform for TrivialAugmentWide {
    fn step(&self, at: &At, state: &mut State) -> Result<Option<Box<dyn Step>>, ConfigError> {
        let bins = bins(at, self.num_magnitude_bins)?;
        let canvas = Canvas::new(at, self.interpolation, &self.fill, state.channels)?;
        Ok(Some(Box::new(Rand { operations: 1, bin: None, space: Space { bins, ..WIDE }, canvas })))
    }
}

impl Rand {
    fn draw(&self, size: (usize, usize), draws: &mut Draws) -> Drawn {
        let kind = self.space.any(draws);
        let bin = self.bin.unwrap_or_else(|| draws.below(self.space.bins as u64) as usize);
        self.space.drawn(kind, bin, size, draws)
    }
}

impl Step for Rand {
    fn apply(&self, picture: &mut Picture<'_>, draws: &mut Draws, _: &Limits) -> Result<(), SampleError> {
        let size = picture.size();
        for _ in 0..self.operations {
            self.canvas.carry_out(self.draw(size, draws).operation(size), picture)?;
        }
        Ok(())
    }

    fn like_mask(&self) -> Option<Box<dyn Step>> {
        Some(Box::new(Rand { canvas: Canvas::MASK, ..*self }))
    }

    fn keeps_rectangles(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::distribution;
    use super::*;

    const SIZE: (usize, usize) = (224, 160);

    fn rand(space: Space, bin: Option<usize>) -> Rand {
        Rand { operations: 1, bin, space, canvas: Canvas::MASK }
    }

    #[test]
    fn rand_augment_draws_each_operation_alike_and_each_sign_half_of_the_time() {
        let policy = rand(NARROW, Some(9));
        let mut expected = Vec::new();
        for kind in KINDS {
            match NARROW.magnitude(kind, 9, SIZE) {
                Some((magnitude, true)) => {
                    expected.push(((kind, (-magnitude).to_bits()), 1.0 / 28.0));
                    expected.push(((kind, magnitude.to_bits()), 1.0 / 28.0));
                }
                other => expected.push(((kind, other.map_or(0.0, |(m, _)| m).to_bits()), 1.0 / 14.0)),
            }
        }
        distribution(&expected, |draws| {
            let Drawn { kind, magnitude } = policy.draw(SIZE, draws);
            (kind, magnitude.to_bits())
        });
    }

    #[test]
    fn trivial_augment_draws_every_bin_of_every_operation_alike() {
        let policy = rand(WIDE, None);
        let mut expected: HashMapOf = HashMapOf::new();
        for kind in KINDS {
            for bin in 0..31 {
                let (magnitude, signed) = WIDE.magnitude(kind, bin, SIZE).unwrap_or((0.0, false));
                let signs = if signed { vec![-magnitude, magnitude] } else { vec![magnitude] };
                for value in &signs {
                    *expected.entry((kind, value.to_bits())).or_default() +=
                        1.0 / (14.0 * 31.0 * signs.len() as f64);
                }
            }
        }
        let expected: Vec<_> = expected.into_iter().collect();
        distribution(&expected, |draws| {
            let Drawn { kind, magnitude } = policy.draw(SIZE, draws);
            (kind, magnitude.to_bits())
        });
    }

    type HashMapOf = std::collections::HashMap<(Kind, u64), f64>;
}
