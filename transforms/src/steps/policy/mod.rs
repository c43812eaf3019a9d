//! Policies: steps that draw operations from a list, each with a magnitude.
//!
//! ```text
//!  draws --policy--> Drawn (which, how much) --its space--> Operation --Canvas--> the image, or its mask
//! ```
//!
//! What is drawn is torchvision's, table by table ([`Space`]) and bin by bin ([`linspace`]); what an operation does is
//! Pillow's, in the rooms of the steps that do the same. A mask takes part in the operations that move pixels.

mod auto;
mod mix;
mod random;
mod timm;

use super::affine::{inverse_affine, warp};
use super::arguments::{At, Numbers};
use super::color::{brightness, contrast, saturation};
use super::levels::Change;
use super::pad::MASK;
use super::rotation::Rotation;
use crate::error::{ConfigError, SampleError};
use crate::plan::Picture;
use crate::random::Draws;
use crate::resize::Interpolation;
use crate::smooth;
use crate::warp::{Look, Map};

pub use auto::{AutoAugment, AutoAugmentPolicy};
pub use mix::AugMix;
pub use random::{RandAugment, TrivialAugmentWide};
pub use timm::TimmAutoAugment;

/// One operation, with all its numbers.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Operation {
    Nothing,
    Warp(Map),
    /// Degrees, counter-clockwise.
    Rotate(f64),
    /// A factor, as for the next two.
    Brightness(f64),
    Saturation(f64),
    Contrast(f64),
    Change(Change),
    /// Standard deviation in pixels.
    Blur(f64),
}

/// What operations are carried out on.
#[derive(Clone, Copy, Debug)]
struct Canvas {
    look: Look,
    is_mask: bool,
}

impl Canvas {
    fn new(
        at: &At,
        interpolation: Interpolation,
        fill: &Numbers,
        channels: usize,
    ) -> Result<Self, ConfigError> {
        Ok(Canvas { look: at.look(interpolation, fill, channels)?, is_mask: false })
    }

    const MASK: Canvas = Canvas { look: MASK, is_mask: true };

    fn carry_out(&self, operation: Operation, picture: &mut Picture<'_>) -> Result<(), SampleError> {
        match operation {
            Operation::Warp(map) => warp(picture, &map, self.look),
            Operation::Rotate(degrees) => {
                Rotation { look: self.look, expand: false, center: None }.turn(picture, degrees)
            }
            _ if self.is_mask => Ok(()),
            Operation::Nothing => Ok(()),
            Operation::Brightness(factor) => brightness(picture, factor),
            Operation::Saturation(factor) => saturation(picture, factor),
            Operation::Contrast(factor) => contrast(picture, factor),
            Operation::Change(change) => change.apply(picture),
            Operation::Blur(sigma) => picture.in_place(|image, _| smooth::gaussian(image, sigma)),
        }
    }
}

/// The operations that torchvision's policies draw from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Kind {
    Identity,
    ShearX,
    ShearY,
    TranslateX,
    TranslateY,
    Rotate,
    Brightness,
    Color,
    Contrast,
    Sharpness,
    Posterize,
    Solarize,
    AutoContrast,
    Equalize,
    Invert,
}

/// How far an image is moved at most.
#[derive(Clone, Copy, Debug)]
enum Reach {
    Pixels(f64),
    /// Of the width or the height.
    Share(fn(f64) -> f64),
}

/// What the bins of a magnitude mean: torchvision's `_AUGMENTATION_SPACE`.
#[derive(Clone, Copy, Debug)]
struct Space {
    kinds: &'static [Kind],
    bins: usize,
    shear: f64,
    translate: Reach,
    degrees: f64,
    /// The most that is added to a factor of 1, or subtracted.
    factor: f64,
    /// Bits at the first bin, and how many fewer at the last.
    bits: [f32; 2],
}

/// A choice among operations.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Drawn {
    kind: Kind,
    magnitude: f64,
}

/// The value of a bin of `bins`, evenly from `start` to `end`, as torch.linspace has it, to the last bit: f32, from
/// both ends to the middle, the product and the sum rounded once (on processors with AVX2).
fn linspace(start: f64, end: f64, bins: usize, bin: usize) -> f64 {
    let (start, end) = (start as f32, end as f32);
    let step = (end - start) / (bins - 1) as f32;
    f64::from(if bin < bins / 2 {
        step.mul_add(bin as f32, start)
    } else {
        (-step).mul_add((bins - 1 - bin) as f32, end)
    })
}

impl Space {
    /// The magnitude of a bin, for an image of `size`, and whether its sign is drawn. `None` where there are no
    /// magnitudes.
    fn magnitude(&self, kind: Kind, bin: usize, size: (usize, usize)) -> Option<(f64, bool)> {
        let even = |start, end| linspace(start, end, self.bins, bin);
        let reach = |side: usize| match self.translate {
            Reach::Pixels(pixels) => pixels,
            Reach::Share(of) => of(side as f64),
        };
        Some(match kind {
            Kind::Identity | Kind::AutoContrast | Kind::Equalize | Kind::Invert => return None,
            Kind::ShearX | Kind::ShearY => (even(0.0, self.shear), true),
            Kind::TranslateX => (even(0.0, reach(size.0)), true),
            Kind::TranslateY => (even(0.0, reach(size.1)), true),
            Kind::Rotate => (even(0.0, self.degrees), true),
            Kind::Brightness | Kind::Color | Kind::Contrast | Kind::Sharpness => {
                (even(0.0, self.factor), true)
            }
            Kind::Posterize => {
                let [first, fewer] = self.bits;
                let each = ((self.bins - 1) as f64 / f64::from(fewer)) as f32;
                (f64::from((first - bin as f32 / each).round_ties_even()), false)
            }
            Kind::Solarize => (even(1.0, 0.0), false),
        })
    }

    /// The magnitude of a bin, with its sign drawn if it has one.
    fn drawn(&self, kind: Kind, bin: usize, size: (usize, usize), draws: &mut Draws) -> Drawn {
        let magnitude = match self.magnitude(kind, bin, size) {
            None => 0.0,
            Some((magnitude, true)) if draws.chance(0.5) => -magnitude,
            Some((magnitude, _)) => magnitude,
        };
        Drawn { kind, magnitude }
    }

    fn any(&self, draws: &mut Draws) -> Kind {
        self.kinds[draws.below(self.kinds.len() as u64) as usize]
    }
}

impl Drawn {
    /// What is to be done to an image of `size`.
    fn operation(self, (w, h): (usize, usize)) -> Operation {
        let Drawn { kind, magnitude } = self;
        // torchvision shears by angles, about the upper left corner.
        let shear = |by: [f64; 2]| {
            Operation::Warp(inverse_affine([0.0; 2], 0.0, [0.0; 2], 1.0, by.map(|by| by.atan().to_degrees())))
        };
        let moved = |by: [f64; 2]| {
            let middle = [w as f64 * 0.5, h as f64 * 0.5];
            Operation::Warp(inverse_affine(middle, 0.0, by.map(f64::trunc), 1.0, [0.0; 2]))
        };
        match kind {
            Kind::Identity => Operation::Nothing,
            Kind::ShearX => shear([magnitude, 0.0]),
            Kind::ShearY => shear([0.0, magnitude]),
            Kind::TranslateX => moved([magnitude, 0.0]),
            Kind::TranslateY => moved([0.0, magnitude]),
            Kind::Rotate => Operation::Rotate(magnitude),
            Kind::Brightness => Operation::Brightness(1.0 + magnitude),
            Kind::Color => Operation::Saturation(1.0 + magnitude),
            Kind::Contrast => Operation::Contrast(1.0 + magnitude),
            Kind::Sharpness => Operation::Change(Change::Sharpness(1.0 + magnitude)),
            Kind::Posterize => Operation::Change(Change::Posterize(magnitude as u32)),
            Kind::Solarize => Operation::Change(Change::Solarize(255.0 * magnitude)),
            Kind::AutoContrast => Operation::Change(Change::Autocontrast),
            Kind::Equalize => Operation::Change(Change::Equalize),
            Kind::Invert => Operation::Change(Change::Invert),
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::collections::HashMap;
    use std::hash::Hash;

    use super::*;
    use crate::SampleKey;

    /// Draws `draw` 100,000 times and compares how often each outcome comes with its probability, by the chi-squared
    /// test: wrong once in a million seeds, of which there is one.
    pub fn distribution<T: Hash + Eq + std::fmt::Debug>(
        expected: &[(T, f64)],
        mut draw: impl FnMut(&mut Draws) -> T,
    ) {
        const COUNT: u32 = 100_000;
        const SEED: u64 = 11;
        let mut counts: HashMap<T, u32> = HashMap::new();
        for position in 0..u64::from(COUNT) {
            let mut draws = Draws::new(SampleKey { seed: SEED, epoch: 0, position }, 0);
            *counts.entry(draw(&mut draws)).or_default() += 1;
        }
        let total: f64 = expected.iter().map(|(_, probability)| probability).sum();
        assert!((total - 1.0).abs() < 1e-9, "the probabilities sum to {total}");
        let mut statistic = 0.0;
        for (outcome, probability) in expected {
            let due = probability * f64::from(COUNT);
            let found = f64::from(counts.remove(outcome).unwrap_or(0));
            if due == 0.0 {
                assert_eq!(found, 0.0, "{outcome:?} never comes");
            } else {
                statistic += (found - due).powi(2) / due;
            }
        }
        assert!(counts.is_empty(), "seed {SEED}: unexpected {counts:?}");
        let freedom = expected.len() as f64 - 1.0;
        // Wilson and Hilferty: the cube root is nearly normal; 4.9 deviations.
        let spread = 2.0 / (9.0 * freedom);
        let bound = freedom * (1.0 - spread + 4.9 * spread.sqrt()).powi(3);
        assert!(
            statistic < bound,
            "seed {SEED}: {statistic} of {freedom} degrees of freedom, at most {bound}"
        );
    }

    #[test]
    fn bins_are_those_of_torch_to_the_last_bit() {
        // Printed by torch 2.15 on a processor with AVX-512.
        let bits = |start, end, bins, bin| (linspace(start, end, bins, bin) as f32).to_bits();
        assert_eq!(bits(1.0, 0.0, 10, 3), 0x3F2AAAAB);
        assert_eq!(bits(1.0, 0.0, 10, 6), 0x3EAAAAAB);
        assert_eq!(bits(0.0, 0.3, 31, 9), 0x3DB851EC);
        assert_eq!(bits(0.0, 135.0, 31, 30), 135f32.to_bits());
    }
}
