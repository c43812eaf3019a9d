//! `AugMix`: the image mixed with what several chains of operations make of it.

use serde::{Deserialize, Serialize};

use super::random::NARROW;
use super::{Canvas, Drawn, Kind, Reach, Space};
use crate::error::{ConfigError, SampleError};
use crate::limits::Limits;
use crate::plan::Picture;
use crate::random::Draws;
use crate::resize::Interpolation;
use crate::steps::arguments::{At, Numbers};
use crate::steps::resize::bilinear;
use crate::steps::{State, Step, Transform};

/// Mixes the image with `mixture_width` copies, each of which has gone through a chain of operations; the weights are
/// drawn (arXiv 1912.02781).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AugMix {
    /// Magnitudes are drawn from so many bins of ten.
    #[serde(default = "three")]
    pub severity: u32,
    /// How many copies.
    #[serde(default = "three")]
    pub mixture_width: u32,
    /// How many operations a chain has; 0 or less: 1 to 3, drawn for each.
    #[serde(default = "drawn_depth")]
    pub chain_depth: i32,
    /// Of the Dirichlet and Beta distributions that weights are drawn from.
    #[serde(default = "alpha")]
    pub alpha: f64,
    /// Whether brightness, contrast, colour and sharpness are among the operations.
    #[serde(default = "all")]
    pub all_ops: bool,
    /// `nearest`, `bilinear` or `bicubic`.
    #[serde(default = "bilinear")]
    pub interpolation: Interpolation,
    /// Colour of what comes from outside: one number or one a channel.
    #[serde(default)]
    pub fill: Numbers,
}

fn three() -> u32 {
    3
}

fn drawn_depth() -> i32 {
    -1
}

fn alpha() -> f64 {
    1.0
}

fn all() -> bool {
    true
}

/// The last four are those of `all_ops`.
const KINDS: [Kind; 13] = [
    Kind::ShearX,
    Kind::ShearY,
    Kind::TranslateX,
    Kind::TranslateY,
    Kind::Rotate,
    Kind::Posterize,
    Kind::Solarize,
    Kind::AutoContrast,
    Kind::Equalize,
    Kind::Brightness,
    Kind::Color,
    Kind::Contrast,
    Kind::Sharpness,
];

const SPACE: Space =
    Space { kinds: &KINDS, bins: 10, translate: Reach::Share(|side| side / 3.0), bits: [4.0, 4.0], ..NARROW };

/// The most copies, and operations of a chain.
const MOST: u32 = 64;

#[derive(Clone, Copy, Debug)]
struct Mix {
    severity: u64,
    width: u32,
    depth: Option<u32>,
    alpha: f64,
    space: Space,
    canvas: Canvas,
}

impl Transform for AugMix {
    fn step(&self, at: &At, state: &mut State) -> Result<Option<Box<dyn Step>>, ConfigError> {
        let &AugMix { severity, mixture_width: width, chain_depth, alpha, all_ops, interpolation, .. } = self;
        at.check((1..=10).contains(&severity), || {
            format!("severity must be between 1 and 10, not {severity}")
        })?;
        at.check((1..=MOST).contains(&width), || {
            format!("mixture_width must be between 1 and {MOST}, not {width}")
        })?;
        at.check(chain_depth <= MOST as i32, || {
            format!("chain_depth must be at most {MOST}, or -1 for 1 to 3 at random, not {chain_depth}")
        })?;
        at.check(alpha > 0.0 && alpha.is_finite(), || format!("alpha must be above 0, not {alpha}"))?;
        let canvas = Canvas::new(at, interpolation, &self.fill, state.channels)?;
        let space = if all_ops { SPACE } else { Space { kinds: &KINDS[..9], ..SPACE } };
        let depth = (chain_depth > 0).then_some(chain_depth as u32);
        Ok(Some(Box::new(Mix { severity: severity.into(), width, depth, alpha, space, canvas })))
    }
}

impl Mix {
    fn draw(&self, size: (usize, usize), draws: &mut Draws) -> Drawn {
        let kind = self.space.any(draws);
        let bin = draws.below(self.severity) as usize;
        self.space.drawn(kind, bin, size, draws)
    }
}

impl Step for Mix {
    fn apply(&self, picture: &mut Picture<'_>, draws: &mut Draws, _: &Limits) -> Result<(), SampleError> {
        let size = picture.size();
        let [own, mixed] = draws.dirichlet(self.alpha, 2)[..] else { unreachable!("two weights") };
        let weights: Vec<f32> = draws
            .dirichlet(self.alpha, self.width as usize)
            .iter()
            .map(|weight| (weight * mixed) as f32)
            .collect();
        let chain = |number: usize, picture: &mut Picture<'_>| {
            // Each copy has draws of its own: how many one takes does not change the others'.
            let mut draws = draws.child(number as u64);
            let depth = self.depth.unwrap_or_else(|| 1 + draws.below(3) as u32);
            for _ in 0..depth {
                self.canvas.carry_out(self.draw(size, &mut draws).operation(size), picture)?;
            }
            Ok(())
        };
        // Cut off, as torchvision does.
        picture.mix(own as f32, &weights, chain, |_, sum| sum as u8)
    }

    fn like_mask(&self) -> Option<Box<dyn Step>> {
        None
    }

    fn keeps_rectangles(&self) -> bool {
        false
    }

    fn takes_masks(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::distribution;
    use super::*;

    #[test]
    fn operations_and_their_magnitudes_come_alike() {
        let size = (224, 160);
        for all_ops in [true, false] {
            let space = if all_ops { SPACE } else { Space { kinds: &KINDS[..9], ..SPACE } };
            let policy = Mix { severity: 3, width: 3, depth: None, alpha: 1.0, space, canvas: Canvas::MASK };
            let mut expected: std::collections::HashMap<(Kind, u64), f64> = Default::default();
            for &kind in space.kinds {
                for bin in 0..3 {
                    let (magnitude, signed) = space.magnitude(kind, bin, size).unwrap_or((0.0, false));
                    let signs = if signed { vec![-magnitude, magnitude] } else { vec![magnitude] };
                    for value in &signs {
                        let share = 1.0 / (space.kinds.len() * 3 * signs.len()) as f64;
                        *expected.entry((kind, value.to_bits())).or_default() += share;
                    }
                }
            }
            let expected: Vec<_> = expected.into_iter().collect();
            distribution(&expected, |draws| {
                let Drawn { kind, magnitude } = policy.draw(size, draws);
                (kind, magnitude.to_bits())
            });
        }
    }
}
