//! `AutoAugment`: any of 25 pairs of operations, which were searched for on a data set.

use serde::{Deserialize, Serialize};

use super::random::NARROW;
use super::{Canvas, Drawn, Kind, Space};
use crate::error::{ConfigError, SampleError};
use crate::limits::Limits;
use crate::plan::Picture;
use crate::random::Draws;
use crate::resize::Interpolation;
use crate::steps::arguments::{At, Numbers};
use crate::steps::rotation::nearest_pixel;
use crate::steps::{State, Step, Transform};

/// Carries out one of 25 pairs of operations, each of the two with a probability of its own (arXiv 1805.09501).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AutoAugment {
    /// The data set that the pairs were found on.
    #[serde(default)]
    pub policy: AutoAugmentPolicy,
    /// `nearest`, `bilinear` or `bicubic`.
    #[serde(default = "nearest_pixel")]
    pub interpolation: Interpolation,
    /// Colour of what comes from outside: one number or one a channel.
    #[serde(default)]
    pub fill: Numbers,
}

/// The data set that the pairs of an `AutoAugment` were found on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AutoAugmentPolicy {
    /// ImageNet.
    #[default]
    ImageNet,
    /// CIFAR-10.
    Cifar10,
    /// Street View House Numbers.
    Svhn,
}

/// An operation, its probability in tenths, and the bin of its magnitude, of ten.
type Part = (Kind, u8, usize);

type Pairs = [[Part; 2]; 25];

const BINS: usize = 10;

use Kind::{
    AutoContrast as Ac, Brightness as Br, Color as Co, Contrast as Cn, Equalize as Eq, Invert as In,
    Posterize as Po, Rotate as Ro, Sharpness as Sp, ShearX as Sx, ShearY as Sy, Solarize as So,
    TranslateX as Tx, TranslateY as Ty,
};

const IMAGENET: Pairs = [
    [(Po, 4, 8), (Ro, 6, 9)],
    [(So, 6, 5), (Ac, 6, 0)],
    [(Eq, 8, 0), (Eq, 6, 0)],
    [(Po, 6, 7), (Po, 6, 6)],
    [(Eq, 4, 0), (So, 2, 4)],
    [(Eq, 4, 0), (Ro, 8, 8)],
    [(So, 6, 3), (Eq, 6, 0)],
    [(Po, 8, 5), (Eq, 10, 0)],
    [(Ro, 2, 3), (So, 6, 8)],
    [(Eq, 6, 0), (Po, 4, 6)],
    [(Ro, 8, 8), (Co, 4, 0)],
    [(Ro, 4, 9), (Eq, 6, 0)],
    [(Eq, 0, 0), (Eq, 8, 0)],
    [(In, 6, 0), (Eq, 10, 0)],
    [(Co, 6, 4), (Cn, 10, 8)],
    [(Ro, 8, 8), (Co, 10, 2)],
    [(Co, 8, 8), (So, 8, 7)],
    [(Sp, 4, 7), (In, 6, 0)],
    [(Sx, 6, 5), (Eq, 10, 0)],
    [(Co, 4, 0), (Eq, 6, 0)],
    [(Eq, 4, 0), (So, 2, 4)],
    [(So, 6, 5), (Ac, 6, 0)],
    [(In, 6, 0), (Eq, 10, 0)],
    [(Co, 6, 4), (Cn, 10, 8)],
    [(Eq, 8, 0), (Eq, 6, 0)],
];

const CIFAR10: Pairs = [
    [(In, 1, 0), (Cn, 2, 6)],
    [(Ro, 7, 2), (Tx, 3, 9)],
    [(Sp, 8, 1), (Sp, 9, 3)],
    [(Sy, 5, 8), (Ty, 7, 9)],
    [(Ac, 5, 0), (Eq, 9, 0)],
    [(Sy, 2, 7), (Po, 3, 7)],
    [(Co, 4, 3), (Br, 6, 7)],
    [(Sp, 3, 9), (Br, 7, 9)],
    [(Eq, 6, 0), (Eq, 5, 0)],
    [(Cn, 6, 7), (Sp, 6, 5)],
    [(Co, 7, 7), (Tx, 5, 8)],
    [(Eq, 3, 0), (Ac, 4, 0)],
    [(Ty, 4, 3), (Sp, 2, 6)],
    [(Br, 9, 6), (Co, 2, 8)],
    [(So, 5, 2), (In, 0, 0)],
    [(Eq, 2, 0), (Ac, 6, 0)],
    [(Eq, 2, 0), (Eq, 6, 0)],
    [(Co, 9, 9), (Eq, 6, 0)],
    [(Ac, 8, 0), (So, 2, 8)],
    [(Br, 1, 3), (Co, 7, 0)],
    [(So, 4, 5), (Ac, 9, 0)],
    [(Ty, 9, 9), (Ty, 7, 9)],
    [(Ac, 9, 0), (So, 8, 3)],
    [(Eq, 8, 0), (In, 1, 0)],
    [(Ty, 7, 9), (Ac, 9, 0)],
];

const SVHN: Pairs = [
    [(Sx, 9, 4), (In, 2, 0)],
    [(Sy, 9, 8), (In, 7, 0)],
    [(Eq, 6, 0), (So, 6, 6)],
    [(In, 9, 0), (Eq, 6, 0)],
    [(Eq, 6, 0), (Ro, 9, 3)],
    [(Sx, 9, 4), (Ac, 8, 0)],
    [(Sy, 9, 8), (In, 4, 0)],
    [(Sy, 9, 5), (So, 2, 6)],
    [(In, 9, 0), (Ac, 8, 0)],
    [(Eq, 6, 0), (Ro, 9, 3)],
    [(Sx, 9, 4), (So, 3, 3)],
    [(Sy, 8, 8), (In, 7, 0)],
    [(Eq, 9, 0), (Ty, 6, 6)],
    [(In, 9, 0), (Eq, 6, 0)],
    [(Cn, 3, 3), (Ro, 8, 4)],
    [(In, 8, 0), (Ty, 0, 2)],
    [(Sy, 7, 6), (So, 4, 8)],
    [(In, 6, 0), (Ro, 8, 4)],
    [(Sy, 3, 7), (Tx, 9, 3)],
    [(Sx, 1, 6), (In, 6, 0)],
    [(So, 7, 2), (Ty, 6, 7)],
    [(Sy, 8, 4), (In, 8, 0)],
    [(Sx, 7, 9), (Ty, 8, 3)],
    [(Sy, 8, 5), (Ac, 7, 0)],
    [(Sx, 7, 2), (In, 1, 0)],
];

const SPACE: Space = Space { bins: BINS, ..NARROW };

#[derive(Clone, Copy, Debug)]
struct Auto {
    pairs: &'static Pairs,
    canvas: Canvas,
}

impl Transform for AutoAugment {
    fn step(&self, at: &At, state: &mut State) -> Result<Option<Box<dyn Step>>, ConfigError> {
        let pairs = match self.policy {
            AutoAugmentPolicy::ImageNet => &IMAGENET,
            AutoAugmentPolicy::Cifar10 => &CIFAR10,
            AutoAugmentPolicy::Svhn => &SVHN,
        };
        let canvas = Canvas::new(at, self.interpolation, &self.fill, state.channels)?;
        Ok(Some(Box::new(Auto { pairs, canvas })))
    }
}

impl Auto {
    fn draw(&self, size: (usize, usize), draws: &mut Draws) -> [Option<Drawn>; 2] {
        let pair = self.pairs[draws.below(self.pairs.len() as u64) as usize];
        pair.map(|(kind, tenths, bin)| {
            draws.chance(f64::from(tenths) / 10.0).then(|| SPACE.drawn(kind, bin, size, draws))
        })
    }
}

impl Step for Auto {
    fn apply(&self, picture: &mut Picture<'_>, draws: &mut Draws, _: &Limits) -> Result<(), SampleError> {
        let size = picture.size();
        let both = self.draw(size, draws).into_iter().flatten();
        for drawn in both {
            self.canvas.carry_out(drawn.operation(size), picture)?;
        }
        Ok(())
    }

    fn like_mask(&self) -> Option<Box<dyn Step>> {
        Some(Box::new(Auto { canvas: Canvas::MASK, ..*self }))
    }

    fn keeps_rectangles(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::super::tests::distribution;
    use super::*;

    const SIZE: (usize, usize) = (224, 160);

    type Outcome = [Option<(Kind, u64)>; 2];

    /// What comes of a part, with its probability.
    fn outcomes((kind, tenths, bin): Part) -> Vec<(Option<(Kind, u64)>, f64)> {
        let p = f64::from(tenths) / 10.0;
        let done = |magnitude: f64| Some((kind, magnitude.to_bits()));
        let mut all = vec![(None, 1.0 - p)];
        match SPACE.magnitude(kind, bin, SIZE) {
            Some((magnitude, true)) => all.extend([(done(magnitude), p / 2.0), (done(-magnitude), p / 2.0)]),
            other => all.push((done(other.map_or(0.0, |(magnitude, _)| magnitude)), p)),
        }
        all
    }

    #[test]
    fn each_pair_and_each_of_its_outcomes_comes_with_its_probability() {
        for pairs in [&IMAGENET, &CIFAR10, &SVHN] {
            let mut expected: HashMap<Outcome, f64> = HashMap::new();
            for [first, second] in pairs {
                for (a, p) in outcomes(*first) {
                    for (b, q) in outcomes(*second) {
                        *expected.entry([a, b]).or_default() += p * q / 25.0;
                    }
                }
            }
            let expected: Vec<_> = expected.into_iter().collect();
            let policy = Auto { pairs, canvas: Canvas::MASK };
            distribution(&expected, |draws| {
                policy
                    .draw(SIZE, draws)
                    .map(|drawn| drawn.map(|Drawn { kind, magnitude }| (kind, magnitude.to_bits())))
            });
        }
    }
}
