//! `TimmAutoAugment`: timm's policies by their configuration strings, as `rand-m9-mstd0.5-inc1`.
//!
//! ```text
//!  rand-m9-n3-p0.5-mstd0.5-mmax10-inc1-tweights    operations of a list; 15 of them, or weighted
//!  augmix-m5-w4-d2-a1-mstd1                        mixtures of chains of them
//!  original, originalr, v0, v0r, 3a [-mstd0.5]     one of the sets that were found on ImageNet
//! ```
//!
//! The meaning is that of timm 1.0's `auto_augment.py`, with what its `create_transform` passes: the fill is the mean
//! colour of ImageNet, and bilinear or bicubic interpolation is drawn for each operation. Sections that timm would
//! ignore without a word are refused.

use serde::{Deserialize, Serialize};

use super::{Canvas, Operation};
use crate::error::{ConfigError, SampleError};
use crate::limits::Limits;
use crate::plan::Picture;
use crate::random::Draws;
use crate::resize::Interpolation;
use crate::steps::arguments::{At, Numbers};
use crate::steps::levels::Change;
use crate::steps::{State, Step, Transform};
use crate::warp::{Filter, Map};

/// A policy of timm, by its configuration string.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TimmAutoAugment {
    /// `rand-…`, `augmix-…`, `original`, `originalr`, `v0`, `v0r` or `3a`, with sections as timm has them.
    pub config_str: String,
    /// Colour of what comes from outside: one number or one a channel.
    #[serde(default = "mean_of_imagenet")]
    pub fill: Numbers,
    /// `nearest`, `bilinear` or `bicubic`; absent: bilinear or bicubic, drawn for each operation.
    #[serde(default)]
    pub interpolation: Option<Interpolation>,
    /// The share of the width or height that an image is moved by at magnitude 10; absent: 0.45, or 0.3 of `augmix`.
    #[serde(default)]
    pub translate_pct: Option<f64>,
}

fn mean_of_imagenet() -> Numbers {
    Numbers(vec![124.0, 116.0, 104.0])
}

/// timm's operations; `Up` are those that grow stronger with the magnitude.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Named {
    AutoContrast,
    Equalize,
    Invert,
    Rotate,
    Posterize,
    PosterizeUp,
    PosterizeOriginal,
    Solarize,
    SolarizeUp,
    SolarizeAdd,
    Color,
    ColorUp,
    Contrast,
    ContrastUp,
    Brightness,
    BrightnessUp,
    Sharpness,
    SharpnessUp,
    ShearX,
    ShearY,
    TranslateX,
    TranslateY,
    Desaturate,
    Blur,
    BlurRand,
}

use Named::*;

const RAND: [Named; 15] = [
    AutoContrast,
    Equalize,
    Invert,
    Rotate,
    Posterize,
    Solarize,
    SolarizeAdd,
    Color,
    Contrast,
    Brightness,
    Sharpness,
    ShearX,
    ShearY,
    TranslateX,
    TranslateY,
];

const RAND_UP: [Named; 15] = [
    AutoContrast,
    Equalize,
    Invert,
    Rotate,
    PosterizeUp,
    SolarizeUp,
    SolarizeAdd,
    ColorUp,
    ContrastUp,
    BrightnessUp,
    SharpnessUp,
    ShearX,
    ShearY,
    TranslateX,
    TranslateY,
];

const THREE: [Named; 3] = [SolarizeUp, Desaturate, Blur];

const WEIGHTED: [(Named, f64); 15] = [
    (Rotate, 3.0),
    (ShearX, 2.0),
    (ShearY, 2.0),
    (TranslateX, 1.0),
    (TranslateY, 1.0),
    (ColorUp, 0.25),
    (SharpnessUp, 0.25),
    (AutoContrast, 0.25),
    (SolarizeUp, 0.05),
    (SolarizeAdd, 0.05),
    (ContrastUp, 0.05),
    (BrightnessUp, 0.05),
    (Equalize, 0.05),
    (PosterizeUp, 0.05),
    (Invert, 0.05),
];

const THREE_WEIGHTED: [(Named, f64); 14] = [
    (SolarizeUp, 6.0),
    (Desaturate, 6.0),
    (Blur, 6.0),
    (Rotate, 3.0),
    (ShearX, 2.0),
    (ShearY, 2.0),
    (PosterizeUp, 1.0),
    (AutoContrast, 1.0),
    (ColorUp, 1.0),
    (SharpnessUp, 1.0),
    (ContrastUp, 1.0),
    (BrightnessUp, 1.0),
    (Equalize, 1.0),
    (Invert, 1.0),
];

const AUGMIX: [Named; 13] = [
    AutoContrast,
    ColorUp,
    ContrastUp,
    BrightnessUp,
    SharpnessUp,
    Equalize,
    Rotate,
    PosterizeUp,
    SolarizeUp,
    ShearX,
    ShearY,
    TranslateX,
    TranslateY,
];

/// An operation, its probability in tenths, and its magnitude.
type Part = (Named, u8, u8);

/// `Posterize` is that of the policy: of `v0r` and `originalr` it is `PosterizeUp`.
const V0: [[Part; 2]; 25] = [
    [(Equalize, 8, 1), (ShearY, 8, 4)],
    [(Color, 4, 9), (Equalize, 6, 3)],
    [(Color, 4, 1), (Rotate, 6, 8)],
    [(Solarize, 8, 3), (Equalize, 4, 7)],
    [(Solarize, 4, 2), (Solarize, 6, 2)],
    [(Color, 2, 0), (Equalize, 8, 8)],
    [(Equalize, 4, 8), (SolarizeAdd, 8, 3)],
    [(ShearX, 2, 9), (Rotate, 6, 8)],
    [(Color, 6, 1), (Equalize, 10, 2)],
    [(Invert, 4, 9), (Rotate, 6, 0)],
    [(Equalize, 10, 9), (ShearY, 6, 3)],
    [(Color, 4, 7), (Equalize, 6, 0)],
    [(Posterize, 4, 6), (AutoContrast, 4, 7)],
    [(Solarize, 6, 8), (Color, 6, 9)],
    [(Solarize, 2, 4), (Rotate, 8, 9)],
    [(Rotate, 10, 7), (TranslateY, 8, 9)],
    [(ShearX, 0, 0), (Solarize, 8, 4)],
    [(ShearY, 8, 0), (Color, 6, 4)],
    [(Color, 10, 0), (Rotate, 6, 2)],
    [(Equalize, 8, 4), (Equalize, 0, 8)],
    [(Equalize, 10, 4), (AutoContrast, 6, 2)],
    [(ShearY, 4, 7), (SolarizeAdd, 6, 7)],
    [(Posterize, 8, 2), (Solarize, 6, 10)],
    [(Solarize, 6, 8), (Equalize, 6, 1)],
    [(Color, 8, 6), (Rotate, 4, 5)],
];

const ORIGINAL: [[Part; 2]; 25] = [
    [(PosterizeOriginal, 4, 8), (Rotate, 6, 9)],
    [(Solarize, 6, 5), (AutoContrast, 6, 5)],
    [(Equalize, 8, 8), (Equalize, 6, 3)],
    [(PosterizeOriginal, 6, 7), (PosterizeOriginal, 6, 6)],
    [(Equalize, 4, 7), (Solarize, 2, 4)],
    [(Equalize, 4, 4), (Rotate, 8, 8)],
    [(Solarize, 6, 3), (Equalize, 6, 7)],
    [(PosterizeOriginal, 8, 5), (Equalize, 10, 2)],
    [(Rotate, 2, 3), (Solarize, 6, 8)],
    [(Equalize, 6, 8), (PosterizeOriginal, 4, 6)],
    [(Rotate, 8, 8), (Color, 4, 0)],
    [(Rotate, 4, 9), (Equalize, 6, 2)],
    [(Equalize, 0, 7), (Equalize, 8, 8)],
    [(Invert, 6, 4), (Equalize, 10, 8)],
    [(Color, 6, 4), (Contrast, 10, 8)],
    [(Rotate, 8, 8), (Color, 10, 2)],
    [(Color, 8, 8), (Solarize, 8, 7)],
    [(Sharpness, 4, 7), (Invert, 6, 8)],
    [(ShearX, 6, 5), (Equalize, 10, 9)],
    [(Color, 4, 0), (Equalize, 6, 3)],
    [(Equalize, 4, 7), (Solarize, 2, 4)],
    [(Solarize, 6, 5), (AutoContrast, 6, 5)],
    [(Invert, 6, 4), (Equalize, 10, 8)],
    [(Color, 6, 4), (Contrast, 10, 8)],
    [(Equalize, 8, 8), (Equalize, 6, 3)],
];

const THREE_SINGLE: [[Part; 1]; 3] = [[(Solarize, 10, 5)], [(Desaturate, 10, 10)], [(BlurRand, 10, 10)]];

/// The magnitude that stands for the whole of a range.
const WHOLE: f64 = 10.0;

/// How the magnitude of an operation is drawn around its own.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Noise {
    /// Standard deviation; infinite for any magnitude up to its own.
    deviation: f64,
    most: f64,
}

/// What a string says.
#[derive(Clone, Debug, PartialEq)]
enum Policy {
    /// So many operations of a list; with weights no operation twice.
    Rand {
        list: Vec<(Named, f64)>,
        weighted: bool,
        layers: usize,
        p: f64,
        magnitude: f64,
    },
    Mix {
        width: usize,
        depth: Option<u32>,
        alpha: f64,
        magnitude: f64,
    },
    /// One of these sets.
    Sets(Vec<Vec<Part>>),
}

const KNOWN: &str = "rand-…, augmix-…, original, originalr, v0, v0r and 3a, such as \"rand-m9-mstd0.5-inc1\"";

/// The most layers, copies, and operations of a chain.
const MOST: u32 = 64;

/// Reads the sections of a policy.
struct Sections<'a> {
    at: &'a At,
    known: &'static str,
}

impl Sections<'_> {
    /// The key and the number of a section, as "m9".
    fn split<'a>(&self, section: &'a str) -> Result<(&'a str, &'a str), ConfigError> {
        let digit = section.find(|c: char| c.is_ascii_digit()).unwrap_or(section.len());
        let (key, value) = section.split_at(digit);
        if key.is_empty() || value.is_empty() {
            return Err(self.unknown(section));
        }
        Ok((key, value))
    }

    fn unknown(&self, section: &str) -> ConfigError {
        self.at.error(format!("config_str: section {section:?} is not one of {}", self.known))
    }

    fn number(&self, section: &str, value: &str) -> Result<f64, ConfigError> {
        value
            .parse()
            .map_err(|_| self.at.error(format!("config_str: section {section:?} does not end with a number")))
    }

    fn whole(&self, section: &str, value: &str, low: u32, high: u32) -> Result<u32, ConfigError> {
        match value.parse() {
            Ok(number) if (low..=high).contains(&number) => Ok(number),
            _ => Err(self.at.error(format!(
                "config_str: section {section:?} must end with a whole number between {low} and {high}"
            ))),
        }
    }
}

/// The policy of a string, and how magnitudes are drawn.
fn parse(at: &At, text: &str) -> Result<(Policy, Noise), ConfigError> {
    let mut sections = text.split('-');
    let name = sections.next().unwrap_or_default();
    match name {
        "rand" => parse_rand(at, sections),
        "augmix" => parse_augmix(at, sections),
        _ => {
            let up = |sets: &[[Part; 2]], from: Named| {
                let swap = |(named, p, m)| (if named == from { PosterizeUp } else { named }, p, m);
                sets.iter().map(|set| set.map(swap).to_vec()).collect()
            };
            let sets: Vec<Vec<Part>> = match name {
                "v0" => V0.iter().map(|set| set.to_vec()).collect(),
                "v0r" => up(&V0, Posterize),
                "original" => ORIGINAL.iter().map(|set| set.to_vec()).collect(),
                "originalr" => up(&ORIGINAL, PosterizeOriginal),
                "3a" => THREE_SINGLE.iter().map(|set| set.to_vec()).collect(),
                _ => {
                    return Err(at.error(format!("config_str = {text:?} is no policy; there are {KNOWN}")));
                }
            };
            let read = Sections { at, known: "mstd" };
            let mut noise = Noise { deviation: 0.0, most: WHOLE };
            for section in sections {
                match read.split(section)? {
                    ("mstd", value) => noise.deviation = read.number(section, value)?,
                    _ => return Err(read.unknown(section)),
                }
            }
            Ok((Policy::Sets(sets), noise))
        }
    }
}

fn parse_rand<'a>(at: &At, sections: impl Iterator<Item = &'a str>) -> Result<(Policy, Noise), ConfigError> {
    let read = Sections { at, known: "m, n, p, mstd, mmax, inc and t (tweights, t3a, t3aw)" };
    let (mut magnitude, mut layers, mut p, mut increasing, mut set) = (WHOLE, 2, 0.5, false, None);
    let mut noise = Noise { deviation: 0.0, most: WHOLE };
    for section in sections {
        if let Some(name) = section.strip_prefix('t') {
            set = Some(match name {
                "weights" => (WEIGHTED.to_vec(), true),
                "3aw" => (THREE_WEIGHTED.to_vec(), true),
                "3a" => (THREE.map(|named| (named, 1.0)).to_vec(), false),
                _ => return Err(read.unknown(section)),
            });
            continue;
        }
        let (key, value) = read.split(section)?;
        match key {
            "m" => magnitude = read.whole(section, value, 0, 1000)?.into(),
            "n" => layers = read.whole(section, value, 0, MOST)? as usize,
            "p" => p = at.probability(read.number(section, value)?)?,
            "mstd" => {
                let deviation = read.number(section, value)?;
                noise.deviation = if deviation > 100.0 { f64::INFINITY } else { deviation };
            }
            "mmax" => noise.most = read.whole(section, value, 1, 1000)?.into(),
            "inc" => increasing = read.whole(section, value, 0, 1)? == 1,
            _ => return Err(read.unknown(section)),
        }
    }
    let (list, weighted) = set.unwrap_or_else(|| {
        (if increasing { RAND_UP } else { RAND }.map(|named| (named, 1.0)).to_vec(), false)
    });
    at.check(!weighted || layers <= list.len(), || {
        format!(
            "config_str: n = {layers}, and there are {} weighted operations, none of which comes twice",
            list.len()
        )
    })?;
    Ok((Policy::Rand { list, weighted, layers, p, magnitude }, noise))
}

fn parse_augmix<'a>(
    at: &At,
    sections: impl Iterator<Item = &'a str>,
) -> Result<(Policy, Noise), ConfigError> {
    let read = Sections { at, known: "m, w, d, a and mstd" };
    let (mut magnitude, mut width, mut depth, mut alpha) = (3.0, 3, None, 1.0);
    let mut noise = Noise { deviation: f64::INFINITY, most: WHOLE };
    for section in sections {
        let (key, value) = read.split(section)?;
        match key {
            "m" => magnitude = read.whole(section, value, 0, 1000)?.into(),
            "w" => width = read.whole(section, value, 1, MOST)? as usize,
            "d" => depth = Some(read.whole(section, value, 1, MOST)?),
            "a" => alpha = read.number(section, value)?,
            "mstd" => noise.deviation = read.number(section, value)?,
            "b" if value == "0" => {}
            "b" => {
                return Err(
                    at.error("config_str: the blended mode of augmix (b1) is not known here; leave b1 out")
                );
            }
            _ => return Err(read.unknown(section)),
        }
    }
    at.check(alpha > 0.0, || format!("config_str: a must be above 0, not {alpha}"))?;
    Ok((Policy::Mix { width, depth, alpha, magnitude }, noise))
}

#[derive(Clone, Debug)]
struct Timm {
    policy: Policy,
    noise: Noise,
    translate: f64,
    /// Drawn where there is none.
    filter: Option<Filter>,
    canvas: Canvas,
}

impl Transform for TimmAutoAugment {
    fn step(&self, at: &At, state: &mut State) -> Result<Option<Box<dyn Step>>, ConfigError> {
        let (policy, noise) = parse(at, &self.config_str)?;
        let interpolation = self.interpolation.unwrap_or(Interpolation::Bilinear);
        // The default has a number for each channel, whatever the image has.
        let gray = state.channels == 1 && self.fill == mean_of_imagenet();
        let fill = if gray { &Numbers(vec![117.0]) } else { &self.fill };
        let canvas = Canvas::new(at, interpolation, fill, state.channels)?;
        let filter = self.interpolation.map(|_| canvas.look.filter);
        let usual = if matches!(policy, Policy::Mix { .. }) { 0.3 } else { 0.45 };
        let translate = self.translate_pct.unwrap_or(usual);
        at.check((0.0..=1.0).contains(&translate), || {
            format!("translate_pct must be between 0 and 1, not {translate}")
        })?;
        Ok(Some(Box::new(Timm { policy, noise, translate, filter, canvas })))
    }
}

impl Timm {
    /// What comes of an operation of this probability and magnitude.
    fn draw(
        &self,
        named: Named,
        p: f64,
        magnitude: f64,
        size: (usize, usize),
        draws: &mut Draws,
    ) -> Option<Operation> {
        if p < 1.0 && !draws.chance(p) {
            return None;
        }
        let Noise { deviation, most } = self.noise;
        let magnitude = if deviation == f64::INFINITY {
            draws.range(0.0, magnitude)
        } else if deviation > 0.0 {
            magnitude + deviation * f64::from(draws.normal_pair().0)
        } else {
            magnitude
        };
        Some(self.operation(named, magnitude.clamp(0.0, most) / WHOLE, size, draws))
    }

    /// timm's functions from a level, of which 1 is the whole, to an operation; some draw a sign.
    fn operation(&self, named: Named, level: f64, (w, h): (usize, usize), draws: &mut Draws) -> Operation {
        let mut signed = |value: f64| if draws.chance(0.5) { value } else { -value };
        let warp = |numbers| Operation::Warp(Map::affine(numbers));
        let factor = level * 1.8 + 0.1;
        let bits = |bits: f64| Operation::Change(Change::Posterize(bits.clamp(0.0, 8.0) as u32));
        let threshold = (level * 256.0).floor().min(256.0);
        match named {
            AutoContrast => Operation::Change(Change::Autocontrast),
            Equalize => Operation::Change(Change::Equalize),
            Invert => Operation::Change(Change::Invert),
            Rotate => Operation::Rotate(signed(level * 30.0)),
            Posterize => bits((level * 4.0).floor()),
            PosterizeUp => bits(4.0 - (level * 4.0).floor()),
            PosterizeOriginal => bits((level * 4.0).floor() + 4.0),
            Solarize => Operation::Change(Change::Solarize(threshold)),
            SolarizeUp => Operation::Change(Change::Solarize(256.0 - threshold)),
            SolarizeAdd => Operation::Change(Change::SolarizeAdd((level * 110.0).floor().min(128.0) as u8)),
            Color => Operation::Saturation(factor),
            Contrast => Operation::Contrast(factor),
            Brightness => Operation::Brightness(factor),
            Sharpness => Operation::Change(Change::Sharpness(factor)),
            ColorUp => Operation::Saturation((1.0 + signed(level * 0.9)).max(0.1)),
            ContrastUp => Operation::Contrast((1.0 + signed(level * 0.9)).max(0.1)),
            BrightnessUp => Operation::Brightness((1.0 + signed(level * 0.9)).max(0.1)),
            SharpnessUp => Operation::Change(Change::Sharpness((1.0 + signed(level * 0.9)).max(0.1))),
            ShearX => warp([1.0, signed(level * 0.3), 0.0, 0.0, 1.0, 0.0]),
            ShearY => warp([1.0, 0.0, 0.0, signed(level * 0.3), 1.0, 0.0]),
            TranslateX => warp([1.0, 0.0, signed(level * self.translate) * w as f64, 0.0, 1.0, 0.0]),
            TranslateY => warp([1.0, 0.0, 0.0, 0.0, 1.0, signed(level * self.translate) * h as f64]),
            Desaturate => Operation::Saturation(1.0 - (0.5 + 0.5 * level).clamp(0.5, 1.0)),
            Blur => Operation::Blur((0.1 + 1.9 * level).clamp(0.1, 2.0)),
            BlurRand => Operation::Blur(draws.range(0.1, 2.0 * level.clamp(0.0, 1.0))),
        }
    }

    /// Draws the filter of an operation that needs one, and carries it out.
    fn carry_out(
        &self,
        operation: Operation,
        picture: &mut Picture<'_>,
        draws: &mut Draws,
    ) -> Result<(), SampleError> {
        let mut canvas = self.canvas;
        if matches!(operation, Operation::Warp(_) | Operation::Rotate(_)) && self.filter.is_none() {
            let smooth = if draws.chance(0.5) { Filter::Bilinear } else { Filter::Bicubic };
            canvas.look.filter = if canvas.is_mask { canvas.look.filter } else { smooth };
        }
        canvas.carry_out(operation, picture)
    }

    fn one(
        &self,
        (named, p, magnitude): (Named, f64, f64),
        picture: &mut Picture<'_>,
        draws: &mut Draws,
    ) -> Result<(), SampleError> {
        match self.draw(named, p, magnitude, picture.size(), draws) {
            Some(operation) => self.carry_out(operation, picture, draws),
            None => Ok(()),
        }
    }

    fn mix(
        &self,
        (width, depth, alpha, magnitude): (usize, Option<u32>, f64, f64),
        picture: &mut Picture<'_>,
        draws: &mut Draws,
    ) -> Result<(), SampleError> {
        let weights: Vec<f32> = draws.dirichlet(alpha, width).iter().map(|weight| *weight as f32).collect();
        let share = draws.dirichlet(alpha, 2)[0] as f32;
        let chain = |number: usize, picture: &mut Picture<'_>| {
            let mut draws = draws.child(number as u64);
            let depth = depth.unwrap_or_else(|| 1 + draws.below(3) as u32);
            let chosen: Vec<Named> =
                (0..depth).map(|_| AUGMIX[draws.below(AUGMIX.len() as u64) as usize]).collect();
            chosen.into_iter().try_for_each(|named| self.one((named, 1.0, magnitude), picture, &mut draws))
        };
        // The mixture is cut off to whole levels before it is blended with the image.
        picture.mix(0.0, &weights, chain, |own, sum| {
            let (own, mixed) = (f32::from(own), f32::from(sum as u8));
            (own + share * (mixed - own)) as u8
        })
    }
}

impl Step for Timm {
    fn apply(&self, picture: &mut Picture<'_>, draws: &mut Draws, _: &Limits) -> Result<(), SampleError> {
        match &self.policy {
            Policy::Rand { list, weighted, layers, p, magnitude } => {
                let mut weights: Vec<f64> = list.iter().map(|(_, weight)| *weight).collect();
                // All are chosen first, as in timm.
                let chosen: Vec<Named> = (0..*layers)
                    .map(|_| {
                        let at = draws.weighted(&weights);
                        if *weighted {
                            weights[at] = 0.0;
                        }
                        list[at].0
                    })
                    .collect();
                chosen.into_iter().try_for_each(|named| self.one((named, *p, *magnitude), picture, draws))
            }
            &Policy::Mix { width, depth, alpha, magnitude } => {
                self.mix((width, depth, alpha, magnitude), picture, draws)
            }
            Policy::Sets(sets) => {
                let set = &sets[draws.below(sets.len() as u64) as usize];
                set.iter().try_for_each(|&(named, tenths, magnitude)| {
                    let part = (named, f64::from(tenths) / 10.0, f64::from(magnitude));
                    self.one(part, picture, draws)
                })
            }
        }
    }

    fn like_mask(&self) -> Option<Box<dyn Step>> {
        if !self.takes_masks() {
            return None;
        }
        Some(Box::new(Timm { canvas: Canvas::MASK, ..self.clone() }))
    }

    fn keeps_rectangles(&self) -> bool {
        false
    }

    fn takes_masks(&self) -> bool {
        !matches!(self.policy, Policy::Mix { .. })
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::distribution;
    use super::*;

    fn parsed(text: &str) -> Result<(Policy, Noise), String> {
        parse(&At::new(0, "TimmAutoAugment"), text).map_err(|error| error.to_string())
    }

    #[test]
    fn strings_mean_what_they_mean_in_timm() {
        let (policy, noise) = parsed("rand-m9-mstd0.5-inc1").unwrap();
        let Policy::Rand { list, weighted, layers, p, magnitude } = policy else { panic!("{policy:?}") };
        assert_eq!(
            (list[4].0, list.len(), weighted, layers, p, magnitude),
            (PosterizeUp, 15, false, 2, 0.5, 9.0)
        );
        assert_eq!(noise, Noise { deviation: 0.5, most: 10.0 });
        let (policy, noise) = parsed("rand-n3-p0.7-mstd101-mmax20-tweights").unwrap();
        let Policy::Rand { list, weighted, layers, p, magnitude } = policy else { panic!("{policy:?}") };
        assert_eq!((list[0], weighted, layers, p, magnitude), ((Rotate, 3.0), true, 3, 0.7, 10.0));
        assert_eq!(noise, Noise { deviation: f64::INFINITY, most: 20.0 });
        let (policy, noise) = parsed("augmix-m5-w4-d2").unwrap();
        assert_eq!(policy, Policy::Mix { width: 4, depth: Some(2), alpha: 1.0, magnitude: 5.0 });
        assert_eq!(noise.deviation, f64::INFINITY);
        for name in ["original", "originalr-mstd0.5", "v0", "v0r", "3a"] {
            assert!(matches!(parsed(name), Ok((Policy::Sets(_), _))), "{name}");
        }
        assert_ne!(parsed("v0"), parsed("v0r"));
    }

    #[test]
    fn strings_that_mean_nothing_are_refused_with_what_is_known() {
        for (text, words) in [
            ("randaugment", &["randaugment", "rand-…", "augmix-…", "original", "3a"][..]),
            ("", &["no policy"]),
            ("rand-m9-x3", &["\"x3\"", "m, n, p, mstd"]),
            ("rand-m", &["\"m\"", "m, n, p"]),
            ("rand-m9.5", &["\"m9.5\"", "whole number"]),
            ("rand-mstdinf", &["\"mstdinf\""]),
            ("rand-p1.5", &["p must be between 0 and 1"]),
            ("rand-n16-tweights", &["n = 16", "15 weighted"]),
            ("rand-tbest", &["\"tbest\"", "tweights"]),
            ("augmix-b1", &["b1", "leave"]),
            ("original-m9", &["\"m9\"", "mstd"]),
        ] {
            let error = parsed(text).unwrap_err();
            assert!(words.iter().all(|word| error.contains(word)), "{text}: {error}");
        }
    }

    #[test]
    fn operations_come_with_their_probabilities_and_weighted_ones_not_twice() {
        let step = |text: &str| {
            let (policy, noise) = parsed(text).unwrap();
            Timm { policy, noise, translate: 0.45, filter: None, canvas: Canvas::MASK }
        };
        // Of two layers of weighted operations, the first follows the weights.
        let Policy::Rand { list, .. } = step("rand-tweights").policy else { panic!("a list") };
        let sum: f64 = list.iter().map(|(_, weight)| weight).sum();
        let weights: Vec<f64> = list.iter().map(|(_, weight)| *weight).collect();
        let expected: Vec<(usize, f64)> = weights.iter().map(|weight| weight / sum).enumerate().collect();
        distribution(&expected, |draws| draws.weighted(&weights));
        // An operation is left out half of the time, and its sign is either.
        let turned = step("rand-m9");
        let degrees = 27f64.to_bits();
        let expected = [(None, 0.5), (Some(degrees), 0.25), (Some((-27f64).to_bits()), 0.25)];
        distribution(&expected, |draws| {
            turned.draw(Rotate, 0.5, 9.0, (10, 10), draws).map(|operation| match operation {
                Operation::Rotate(degrees) => degrees.to_bits(),
                other => panic!("{other:?}"),
            })
        });
    }
}
