//! From configuration to a checked list of steps, and the steps' meaning on one sample.

use crate::SampleKey;
use crate::color::{self, Jitter};
use crate::config::{
    Dtype, EraseValue, Interpolation, Numbers, OutputConfig, PaddingMode, Sides, Size, TransformConfig,
};
use crate::error::{ConfigError, SampleError};
use crate::geometry::{PIXEL, Rect};
use crate::limits::Limits;
use crate::output::{OutputSpec, Pass};
use crate::plan::Picture;
use crate::random::Draws;
use crate::resize::Resize;
use crate::rotate::{Rotation, pad};
use crate::synthesis::{self, EraseArea};

/// The longest side that a transform may ask for; libjpeg's own bound, and far beyond any training image.
const MAX_SIDE: u32 = 65_500;

/// A compiled chain before its output pass.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Program {
    /// Each with its place in the configuration, which its randomness depends on.
    steps: Vec<(usize, Step)>,
    pub pass: Pass,
    erasings: Vec<(usize, Erasing)>,
}

#[derive(Clone, Debug, PartialEq)]
enum Step {
    Resize {
        to: ResizeTo,
        interpolation: Interpolation,
        antialias: bool,
    },
    CenterCrop {
        w: usize,
        h: usize,
    },
    RandomCrop {
        w: usize,
        h: usize,
        padding: Sides,
        if_needed: bool,
        mode: PaddingMode,
        fill: [u8; PIXEL],
    },
    RandomResizedCrop {
        w: usize,
        h: usize,
        scale: [f64; 2],
        ratio: [f64; 2],
        interpolation: Interpolation,
        antialias: bool,
    },
    Flip {
        p: f64,
        x: bool,
    },
    Rotation {
        degrees: [f64; 2],
        rotation: Rotation,
    },
    Gray {
        p: f64,
    },
    Jitter(Jitter),
    Blur {
        kernel: (usize, usize),
        sigma: [f64; 2],
    },
    Pad {
        sides: Sides,
        mode: PaddingMode,
        fill: [u8; PIXEL],
    },
    Noise {
        mean: f32,
        sigma: f32,
        gray: bool,
    },
    Erase {
        area: EraseArea,
        value: [u8; PIXEL],
    },
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum ResizeTo {
    Fixed(usize, usize),
    /// The shorter edge, and the most that the longer one may be.
    Shorter(usize, Option<usize>),
    Longer(usize),
}

/// An erasing behind the normalisation.
#[derive(Clone, Debug, PartialEq)]
struct Erasing {
    area: EraseArea,
    /// A channel each; `None` for random values.
    value: Option<[f32; 3]>,
}

impl ResizeTo {
    /// (width, height) for an image of `(w, h)`, as torchvision computes it.
    fn size(self, (w, h): (usize, usize)) -> (usize, usize) {
        let (short, long) = if w <= h { (w, h) } else { (h, w) };
        // Python's int(a * b / c): the product is exact, the quotient rounded once, then cut off.
        let scaled = |a: usize, b: usize, c: usize| (((a * b) as f64 / c as f64) as usize).max(1);
        let (short, long) = match self {
            ResizeTo::Fixed(w, h) => return (w, h),
            ResizeTo::Longer(long_to) => (scaled(long_to, short, long), long_to),
            ResizeTo::Shorter(short_to, most) => {
                let long_to = scaled(short_to, long, short);
                match most {
                    Some(most) if long_to > most => (scaled(most, short_to, long_to), most),
                    _ => (short_to, long_to),
                }
            }
        };
        if w <= h { (short, long) } else { (long, short) }
    }
}

/// What is known of the image at a place in the chain.
struct State {
    /// (width, height) where every image has the same.
    size: Option<(usize, usize)>,
    channels: usize,
    /// The last transform that made the size depend on the image.
    culprit: Option<String>,
    normalize: Option<([f64; 3], [f64; 3])>,
}

/// The arguments of one transform, for errors that say where they are.
struct At(usize, &'static str);

impl At {
    fn error(&self, message: impl std::fmt::Display) -> ConfigError {
        ConfigError::at(self.0, self.1, message)
    }

    fn check(&self, holds: bool, message: impl FnOnce() -> String) -> Result<(), ConfigError> {
        if holds { Ok(()) } else { Err(self.error(message())) }
    }

    fn probability(&self, p: f64) -> Result<f64, ConfigError> {
        self.check((0.0..=1.0).contains(&p), || format!("p must be between 0 and 1, not {p}"))?;
        Ok(p)
    }

    fn side(&self, argument: &str, side: u32) -> Result<usize, ConfigError> {
        self.check((1..=MAX_SIDE).contains(&side), || {
            format!("{argument} must be between 1 and {MAX_SIDE} pixels, not {side}")
        })?;
        Ok(side as usize)
    }

    /// (width, height).
    fn square(&self, size: Size) -> Result<(usize, usize), ConfigError> {
        let (h, w) = size.square();
        Ok((self.side("size", w)?, self.side("size", h)?))
    }

    fn range(&self, argument: &str, range: [f64; 2], low: f64, high: f64) -> Result<[f64; 2], ConfigError> {
        let [a, b] = range;
        self.check(a <= b && low <= a && b <= high && a.is_finite() && b.is_finite(), || {
            let bounds = match (low.is_finite(), high.is_finite()) {
                (true, true) => format!(" within {low} and {high}"),
                (true, false) => format!(" of at least {low}"),
                _ => String::new(),
            };
            format!("{argument} must be [least, most]{bounds}, not [{a}, {b}]")
        })?;
        Ok(range)
    }

    fn positive_range(&self, argument: &str, range: [f64; 2]) -> Result<[f64; 2], ConfigError> {
        let [a, b] = range;
        self.check(a > 0.0 && a <= b && b.is_finite(), || {
            format!("{argument} must be [least, most], both above 0, not [{a}, {b}]")
        })?;
        Ok(range)
    }

    fn interpolation(&self, interpolation: Interpolation, antialias: bool) -> Result<(), ConfigError> {
        use Interpolation::*;
        self.check(antialias || matches!(interpolation, Nearest | Bilinear | Bicubic), || {
            "antialias = false is only known for bilinear and bicubic interpolation; leave it true".to_owned()
        })
    }

    fn sides(&self, argument: &str, sides: Sides) -> Result<Sides, ConfigError> {
        for side in [sides.left, sides.top, sides.right, sides.bottom] {
            self.check(side <= MAX_SIDE, || {
                format!("{argument} must be at most {MAX_SIDE} pixels a side, not {side}")
            })?;
        }
        Ok(sides)
    }

    /// A colour in levels, as Pillow takes it: cut off to whole levels.
    fn levels(&self, argument: &str, numbers: &Numbers, channels: usize) -> Result<[u8; PIXEL], ConfigError> {
        for value in &numbers.0 {
            self.check((0.0..=255.0).contains(value), || {
                format!("{argument} is in levels 0 to 255, and {value} is not among them")
            })?;
        }
        let [r, g, b] = self.per_channel(argument, &numbers.0, channels)?.map(|value| value as u8);
        Ok([r, g, b, 255])
    }

    fn per_channel(&self, argument: &str, values: &[f64], channels: usize) -> Result<[f64; 3], ConfigError> {
        for value in values {
            self.check(value.is_finite(), || format!("{argument} holds {value}, which is no finite number"))?;
        }
        match *values {
            [one] => Ok([one; 3]),
            [r, g, b] if channels == 3 => Ok([r, g, b]),
            _ => Err(self.error(format!(
                "{argument} has {} numbers, but the image has {channels} channel{} here: give one number or {channels}",
                values.len(),
                if channels == 1 { "" } else { "s" }
            ))),
        }
    }

    /// A factor around `center`: one number for the half-width of its range, or the range.
    fn factor(
        &self,
        argument: &str,
        numbers: &Option<Numbers>,
        center: f64,
        low: f64,
        high: f64,
    ) -> Result<Option<[f64; 2]>, ConfigError> {
        let range = match numbers.as_ref().map(|numbers| &numbers.0[..]) {
            None => return Ok(None),
            Some(&[v]) => {
                self.check(v >= 0.0, || {
                    format!("{argument} as a single number must not be negative, not {v}")
                })?;
                // Only factors are cut off at 0; a hue beyond its bounds is an error.
                [if center > 0.0 { (center - v).max(0.0) } else { center - v }, center + v]
            }
            Some(&[a, b]) => [a, b],
            Some(other) => {
                return Err(self.error(format!(
                    "{argument} must be one number or [least, most], not {} numbers",
                    other.len()
                )));
            }
        };
        let range = self.range(argument, range, low, high)?;
        Ok((range != [center; 2]).then_some(range))
    }

    fn erase_area(&self, p: f64, scale: [f64; 2], ratio: [f64; 2]) -> Result<EraseArea, ConfigError> {
        Ok(EraseArea {
            p: self.probability(p)?,
            scale: self.range("scale", scale, 0.0, 1.0)?,
            log_ratio: self.positive_range("ratio", ratio)?.map(f64::ln),
        })
    }
}

/// `transforms` checked, for images of one size if there is a `size` (width, height).
pub(crate) fn program(
    transforms: &[TransformConfig],
    output: &OutputConfig,
    size: Option<(usize, usize)>,
) -> Result<Program, ConfigError> {
    let Resolved { steps, erasings, state, dtype } = resolve(transforms, output, size)?;
    let Some((width, height)) = state.size else {
        return Err(ConfigError(match state.culprit {
            Some(culprit) => format!(
                "the chain has no fixed output size, which a batch needs: {culprit}. Add CenterCrop or RandomCrop \
                 behind it, or a Resize with size = [height, width]"
            ),
            None => "the chain has no fixed output size, which a batch needs: it keeps the size of each image. Add \
                     RandomResizedCrop, CenterCrop or Resize with size = [height, width]"
                .to_owned(),
        }));
    };
    let (mean, std) = state.normalize.unwrap_or(([0.0; 3], [1.0; 3]));
    let spec = OutputSpec { channels: state.channels, height, width, dtype, layout: output.layout };
    let pass = Pass {
        spec,
        scale: std.map(|std| (1.0 / (255.0 * std)) as f32),
        bias: std::array::from_fn(|c| (-mean[c] / std[c]) as f32),
    };
    Ok(Program { steps, pass, erasings })
}

/// A chain of which all is known but perhaps the size of what comes out.
pub(crate) struct Resolved {
    steps: Vec<(usize, Step)>,
    erasings: Vec<(usize, Erasing)>,
    state: State,
    dtype: Dtype,
}

/// Checks `transforms` and resolves them into steps.
pub(crate) fn resolve(
    transforms: &[TransformConfig],
    output: &OutputConfig,
    size: Option<(usize, usize)>,
) -> Result<Resolved, ConfigError> {
    let mut state = State { size, channels: 3, culprit: None, normalize: None };
    let mut steps = Vec::new();
    let mut erasings = Vec::new();
    for (place, transform) in transforms.iter().enumerate() {
        let at = At(place, transform.name());
        if state.normalize.is_some() {
            match transform {
                TransformConfig::RandomErasing { p, scale, ratio, value } => {
                    let area = at.erase_area(*p, *scale, *ratio)?;
                    let value = match value {
                        EraseValue::Random => None,
                        EraseValue::Numbers(numbers) => {
                            Some(at.per_channel("value", &numbers.0, state.channels)?.map(|v| v as f32))
                        }
                    };
                    erasings.push((place, Erasing { area, value }));
                    continue;
                }
                TransformConfig::Normalize { .. } => {
                    return Err(at.error("there is a Normalize before; merge the two"));
                }
                _ => {
                    return Err(at.error(
                        "stands behind Normalize, where only RandomErasing may; pixels are u8 up to Normalize, so move \
                         it in front",
                    ));
                }
            }
        }
        if let Some(step) = step(&at, transform, &mut state)? {
            steps.push((place, step));
        }
    }
    let dtype = output.dtype.unwrap_or(if state.normalize.is_some() { Dtype::F32 } else { Dtype::U8 });
    if dtype == Dtype::U8 && state.normalize.is_some() {
        return Err(ConfigError(
            "dtype u8 cannot hold normalised values: ask for f32, f16 or bf16, or leave Normalize out"
                .to_owned(),
        ));
    }
    Ok(Resolved { steps, erasings, state, dtype })
}

/// One transform in front of the normalisation; `None` where it changes no pixel.
fn step(at: &At, transform: &TransformConfig, state: &mut State) -> Result<Option<Step>, ConfigError> {
    let step = match transform {
        TransformConfig::Resize { size, interpolation, max_size, antialias } => {
            at.interpolation(*interpolation, *antialias)?;
            let most = max_size.map(|side| at.side("max_size", side)).transpose()?;
            let to = match (size, most) {
                (Some(Size::Both(h, w)), None) => ResizeTo::Fixed(at.side("size", *w)?, at.side("size", *h)?),
                (Some(Size::Both(..)), Some(_)) => {
                    return Err(at.error(
                        "max_size goes with one number as size (the shorter edge), not with [height, width]",
                    ));
                }
                (Some(Size::One(edge)), most) => {
                    let edge = at.side("size", *edge)?;
                    if let Some(most) = most {
                        at.check(most > edge, || {
                            format!("max_size = {most} must be greater than size = {edge}, the shorter edge")
                        })?;
                    }
                    ResizeTo::Shorter(edge, most)
                }
                (None, Some(most)) => ResizeTo::Longer(most),
                (None, None) => return Err(at.error("size is missing: give a number or [height, width]")),
            };
            state.size = match (to, state.size) {
                (ResizeTo::Fixed(w, h), _) => Some((w, h)),
                (to, Some(size)) => Some(to.size(size)),
                (to, None) => {
                    state.culprit = Some(match to {
                        ResizeTo::Longer(edge) => {
                            format!("transforms[{}] Resize keeps the aspect (max_size = {edge})", at.0)
                        }
                        ResizeTo::Shorter(edge, _) | ResizeTo::Fixed(edge, _) => {
                            format!("transforms[{}] Resize({edge}) keeps the aspect of each image", at.0)
                        }
                    });
                    None
                }
            };
            Step::Resize { to, interpolation: *interpolation, antialias: *antialias }
        }
        TransformConfig::CenterCrop { size } => {
            let (w, h) = at.square(*size)?;
            state.size = Some((w, h));
            Step::CenterCrop { w, h }
        }
        TransformConfig::RandomCrop { size, padding, pad_if_needed, fill, padding_mode } => {
            let (w, h) = at.square(*size)?;
            let none = Sides { left: 0, top: 0, right: 0, bottom: 0 };
            let padding = padding.map_or(Ok(none), |sides| at.sides("padding", sides))?;
            if let (Some((from_w, from_h)), false) = (state.size, *pad_if_needed) {
                let padded_w = from_w + (padding.left + padding.right) as usize;
                let padded_h = from_h + (padding.top + padding.bottom) as usize;
                at.check(w <= padded_w && h <= padded_h, || {
                    format!(
                        "size = [{h}, {w}] is larger than the image, which is {padded_w} x {padded_h} here (width x \
                         height, padding included); set pad_if_needed or ask for less"
                    )
                })?;
            }
            state.size = Some((w, h));
            Step::RandomCrop {
                w,
                h,
                padding,
                if_needed: *pad_if_needed,
                mode: *padding_mode,
                fill: at.levels("fill", fill, state.channels)?,
            }
        }
        TransformConfig::RandomResizedCrop { size, scale, ratio, interpolation, antialias } => {
            at.interpolation(*interpolation, *antialias)?;
            let (w, h) = at.square(*size)?;
            state.size = Some((w, h));
            Step::RandomResizedCrop {
                w,
                h,
                scale: at.range("scale", *scale, 0.0, f64::INFINITY)?,
                ratio: at.positive_range("ratio", *ratio)?,
                interpolation: *interpolation,
                antialias: *antialias,
            }
        }
        TransformConfig::RandomHorizontalFlip { p } => Step::Flip { p: at.probability(*p)?, x: true },
        TransformConfig::RandomVerticalFlip { p } => Step::Flip { p: at.probability(*p)?, x: false },
        TransformConfig::RandomRotation { degrees, interpolation, expand, center, fill } => {
            at.check(matches!(interpolation, Interpolation::Nearest | Interpolation::Bilinear), || {
                "interpolation must be nearest or bilinear".to_owned()
            })?;
            let range = match degrees.0[..] {
                [d] => {
                    at.check(d >= 0.0, || {
                        format!("degrees as a single number must not be negative, not {d}")
                    })?;
                    [-d, d]
                }
                [a, b] => [a, b],
                _ => return Err(at.error("degrees must be one number or [least, most]")),
            };
            let degrees = at.range("degrees", range, f64::NEG_INFINITY, f64::INFINITY)?;
            if let Some([x, y]) = center {
                at.check(x.abs() <= 1e6 && y.abs() <= 1e6, || {
                    format!("center must be [x, y] in pixels, not [{x}, {y}]")
                })?;
            }
            if *expand && degrees != [0.0, 0.0] {
                state.size = None;
                state.culprit = Some(format!(
                    "transforms[{}] RandomRotation with expand grows the image with the angle",
                    at.0
                ));
            }
            let rotation = Rotation {
                bilinear: *interpolation == Interpolation::Bilinear,
                expand: *expand,
                center: *center,
                fill: at.levels("fill", fill, state.channels)?,
            };
            Step::Rotation { degrees, rotation }
        }
        TransformConfig::Grayscale { num_output_channels } => {
            at.check(matches!(num_output_channels, 1 | 3), || {
                format!("num_output_channels must be 1 or 3, not {num_output_channels}")
            })?;
            state.channels = *num_output_channels as usize;
            Step::Gray { p: 1.0 }
        }
        TransformConfig::RandomGrayscale { p } => Step::Gray { p: at.probability(*p)? },
        TransformConfig::ColorJitter { brightness, contrast, saturation, hue } => {
            let most = f64::INFINITY;
            let jitter = Jitter {
                brightness: at.factor("brightness", brightness, 1.0, 0.0, most)?,
                contrast: at.factor("contrast", contrast, 1.0, 0.0, most)?,
                saturation: at.factor("saturation", saturation, 1.0, 0.0, most)?,
                hue: at.factor("hue", hue, 0.0, -0.5, 0.5)?,
            };
            if [jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue] == [None; 4] {
                return Ok(None);
            }
            Step::Jitter(jitter)
        }
        TransformConfig::GaussianBlur { kernel_size, sigma } => {
            // torchvision hands the pair on in this order, first x, then y.
            let (x, y) = kernel_size.square();
            for taps in [x, y] {
                at.check(taps % 2 == 1 && taps <= MAX_SIDE, || {
                    format!("kernel_size must be odd and positive, not {taps}")
                })?;
            }
            if let Some((w, h)) = state.size {
                at.check((x / 2) < w as u32 && (y / 2) < h as u32, || {
                    format!(
                        "kernel_size = [{x}, {y}] reaches beyond the image, which is {w} x {h} here: half of it must \
                         be smaller than the image"
                    )
                })?;
            }
            let range = match sigma.0[..] {
                [one] => [one, one],
                [a, b] => [a, b],
                _ => return Err(at.error("sigma must be one number or [least, most]")),
            };
            Step::Blur { kernel: (x as usize, y as usize), sigma: at.positive_range("sigma", range)? }
        }
        TransformConfig::Pad { padding, fill, padding_mode } => {
            let sides = at.sides("padding", *padding)?;
            state.size = state.size.map(|(w, h)| {
                (w + (sides.left + sides.right) as usize, h + (sides.top + sides.bottom) as usize)
            });
            Step::Pad { sides, mode: *padding_mode, fill: at.levels("fill", fill, state.channels)? }
        }
        TransformConfig::GaussianNoise { mean, sigma, clip } => {
            at.check(*clip, || {
                "clip = false would let u8 pixels wrap around; leave it true (the default)".to_owned()
            })?;
            at.check(mean.is_finite(), || format!("mean must be a finite number, not {mean}"))?;
            at.check(*sigma >= 0.0 && sigma.is_finite(), || {
                format!("sigma must not be negative, not {sigma}")
            })?;
            let levels = |v: f64| (v * 255.0) as f32;
            Step::Noise { mean: levels(*mean), sigma: levels(*sigma), gray: state.channels == 1 }
        }
        TransformConfig::RandomErasing { p, scale, ratio, value } => {
            let area = at.erase_area(*p, *scale, *ratio)?;
            let EraseValue::Numbers(numbers) = value else {
                return Err(at.error(
                    "value = \"random\" draws normalised values, which only fit behind Normalize: move it there or give \
                     a level 0 to 255",
                ));
            };
            Step::Erase { area, value: at.levels("value", numbers, state.channels)? }
        }
        TransformConfig::Normalize { mean, std } => {
            let std_values = at.per_channel("std", std, state.channels)?;
            at.check(std_values.iter().all(|std| *std > 0.0), || {
                format!("std must be above 0 in every channel, not {std:?}")
            })?;
            state.normalize = Some((at.per_channel("mean", mean, state.channels)?, std_values));
            return Ok(None);
        }
    };
    Ok(Some(step))
}

impl Program {
    /// Brings `picture` through all steps. With `stepwise`, each is carried out before the next one begins, which must
    /// give the same bytes.
    pub(crate) fn run(
        &self,
        mut picture: Picture<'_>,
        key: SampleKey,
        stepwise: bool,
        limits: &Limits,
        row: &mut [u8],
    ) -> Result<(), SampleError> {
        if stepwise {
            picture.settle_flips()?;
        }
        for (place, step) in &self.steps {
            let mut draws = Draws::new(key, *place as u64);
            step.apply(&mut picture, &mut draws, limits)?;
            if stepwise {
                picture.settle_flips()?;
            }
        }
        let (image, flip_x, flip_y) = picture.finish()?;
        self.pass.write(image, flip_x, flip_y, row);
        for (place, erasing) in &self.erasings {
            erasing.apply(&self.pass, &mut Draws::new(key, *place as u64), row);
        }
        Ok(())
    }
}

impl Erasing {
    fn apply(&self, pass: &Pass, draws: &mut Draws, row: &mut [u8]) {
        let Some(rect) = self.area.draw(pass.spec.width, pass.spec.height, draws) else { return };
        let mut spare = None;
        for c in 0..pass.spec.channels {
            for y in rect.y..rect.y + rect.h {
                for x in rect.x..rect.x + rect.w {
                    let value = match self.value {
                        Some(values) => values[c],
                        None => spare.take().unwrap_or_else(|| {
                            let (a, b) = draws.normal_pair();
                            spare = Some(b);
                            a
                        }),
                    };
                    pass.put(x, y, c, value, row);
                }
            }
        }
    }
}

/// The place and size of a crop from the centre; an image that is smaller has been padded.
fn center((w, h): (usize, usize), crop_w: usize, crop_h: usize) -> Rect {
    // Python's int(round(x / 2)): halves go to the even neighbour.
    let middle = |room: usize| (room as f64 / 2.0).round_ties_even() as usize;
    Rect { x: middle(w - crop_w), y: middle(h - crop_h), w: crop_w, h: crop_h }
}

/// torchvision's choice of a crop: ten draws of area and aspect, then the largest centred crop of an allowed aspect.
pub(crate) fn resized_crop(
    (w, h): (usize, usize),
    scale: [f64; 2],
    ratio: [f64; 2],
    draws: &mut Draws,
) -> Rect {
    let log_ratio = ratio.map(f64::ln);
    for _ in 0..10 {
        let area = (w * h) as f64 * draws.range(scale[0], scale[1]);
        let aspect = draws.range(log_ratio[0], log_ratio[1]).exp();
        let crop_w = (area * aspect).sqrt().round_ties_even() as usize;
        let crop_h = (area / aspect).sqrt().round_ties_even() as usize;
        if (1..=w).contains(&crop_w) && (1..=h).contains(&crop_h) {
            let y = draws.below((h - crop_h + 1) as u64) as usize;
            let x = draws.below((w - crop_w + 1) as u64) as usize;
            return Rect { x, y, w: crop_w, h: crop_h };
        }
    }
    let aspect = w as f64 / h as f64;
    let rounded = |v: f64, most: usize| (v.round_ties_even() as usize).clamp(1, most);
    let (crop_w, crop_h) = if aspect < ratio[0] {
        (w, rounded(w as f64 / ratio[0], h))
    } else if aspect > ratio[1] {
        (rounded(h as f64 * ratio[1], w), h)
    } else {
        (w, h)
    };
    Rect { x: (w - crop_w) / 2, y: (h - crop_h) / 2, w: crop_w, h: crop_h }
}

impl Step {
    fn apply(
        &self,
        picture: &mut Picture<'_>,
        draws: &mut Draws,
        limits: &Limits,
    ) -> Result<(), SampleError> {
        let (w, h) = picture.size();
        match self {
            Step::Resize { to, interpolation, antialias } => {
                let (w, h) = to.size((w, h));
                picture.resize(Resize { w, h, interpolation: *interpolation, antialias: *antialias })
            }
            Step::CenterCrop { w: crop_w, h: crop_h } => {
                if *crop_w > w || *crop_h > h {
                    let (more_w, more_h) = (crop_w.saturating_sub(w) as u32, crop_h.saturating_sub(h) as u32);
                    let sides = Sides {
                        left: more_w / 2,
                        top: more_h / 2,
                        right: more_w.div_ceil(2),
                        bottom: more_h.div_ceil(2),
                    };
                    let size = ((*crop_w).max(w), (*crop_h).max(h));
                    picture.replace("the padded image", size, |image, out| {
                        pad(image, sides, PaddingMode::Constant, [0, 0, 0, 255], out);
                    })?;
                }
                picture.crop(center(picture.size(), *crop_w, *crop_h));
                Ok(())
            }
            Step::RandomCrop { w: crop_w, h: crop_h, padding, if_needed, mode, fill } => {
                let mut sides = *padding;
                let mut padded =
                    (w + (sides.left + sides.right) as usize, h + (sides.top + sides.bottom) as usize);
                if *if_needed {
                    // torchvision pads both sides by what is missing in all.
                    let missing = crop_w.saturating_sub(padded.0);
                    sides.left += missing as u32;
                    sides.right += missing as u32;
                    padded.0 += 2 * missing;
                    let missing = crop_h.saturating_sub(padded.1);
                    sides.top += missing as u32;
                    sides.bottom += missing as u32;
                    padded.1 += 2 * missing;
                }
                if padded.0 < *crop_w || padded.1 < *crop_h {
                    return Err(SampleError::unsupported(format!(
                        "the image is {} x {} pixels here and RandomCrop needs {crop_w} x {crop_h}; set pad_if_needed \
                         or put a Resize in front",
                        padded.0, padded.1
                    )));
                }
                if padded != (w, h) {
                    picture.replace("the padded image", padded, |image, out| {
                        pad(image, sides, *mode, *fill, out);
                    })?;
                }
                let y = draws.below((padded.1 - crop_h + 1) as u64) as usize;
                let x = draws.below((padded.0 - crop_w + 1) as u64) as usize;
                picture.crop(Rect { x, y, w: *crop_w, h: *crop_h });
                Ok(())
            }
            Step::RandomResizedCrop { w: to_w, h: to_h, scale, ratio, interpolation, antialias } => {
                picture.crop(resized_crop((w, h), *scale, *ratio, draws));
                picture.resize(Resize {
                    w: *to_w,
                    h: *to_h,
                    interpolation: *interpolation,
                    antialias: *antialias,
                })
            }
            Step::Flip { p, x } => {
                if draws.chance(*p) {
                    picture.flip(*x, !*x);
                }
                Ok(())
            }
            Step::Rotation { degrees, rotation } => {
                let degrees = draws.range(degrees[0], degrees[1]);
                let size = rotation.size((w, h), degrees);
                picture.replace("the rotated image", size, |image, out| rotation.apply(image, degrees, out))
            }
            Step::Gray { p } => {
                if !draws.chance(*p) {
                    return Ok(());
                }
                picture.each_pixel(color::gray)
            }
            Step::Jitter(jitter) => picture.each_pixel(|pixels| jitter.apply(pixels, draws)),
            Step::Blur { kernel, sigma } => {
                let sigma = draws.range(sigma[0], sigma[1]);
                if kernel.0 / 2 >= w || kernel.1 / 2 >= h {
                    return Err(SampleError::unsupported(format!(
                        "the image is {w} x {h} pixels here and GaussianBlur reflects {} x {} beyond its borders; put a \
                         Resize in front",
                        kernel.0 / 2,
                        kernel.1 / 2
                    )));
                }
                // Two planes of four f32 a pixel.
                limits.check_pixels("the image to blur, in f32,", w as u64, 4 * h as u64)?;
                picture.in_place(|image, blur| blur.apply(image, *kernel, sigma))
            }
            Step::Pad { sides, mode, fill } => {
                let size = (w + (sides.left + sides.right) as usize, h + (sides.top + sides.bottom) as usize);
                picture.replace("the padded image", size, |image, out| pad(image, *sides, *mode, *fill, out))
            }
            Step::Noise { mean, sigma, gray } => {
                picture.in_place(|image, _| synthesis::noise(image.pixels_mut(), *mean, *sigma, *gray, draws))
            }
            Step::Erase { area, value } => {
                let Some(rect) = area.draw(w, h, draws) else { return Ok(()) };
                picture.in_place(|image, _| {
                    for y in rect.y..rect.y + rect.h {
                        image.row_mut(y).as_chunks_mut::<PIXEL>().0[rect.x..rect.x + rect.w].fill(*value);
                    }
                })
            }
        }
    }
}
