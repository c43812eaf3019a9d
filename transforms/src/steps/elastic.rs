//! `ElasticTransform`: each pixel moves by a smooth random field.

use serde::{Deserialize, Serialize};

use super::arguments::{At, Numbers};
use super::pad::MASK;
use super::resize::bilinear;
use super::{State, Step, Transform};
use crate::color::reflect;
use crate::error::{ConfigError, SampleError};
use crate::geometry::{Image, PIXEL, View};
use crate::limits::Limits;
use crate::plan::Picture;
use crate::random::Draws;
use crate::resize::Interpolation;
use crate::warp::{Filter, Look};

/// Moves each pixel by noise that is blurred and scaled.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ElasticTransform {
    /// How far pixels move: one number, or [x, y]. Noise of -1 to 1 is blurred, then multiplied by half of it.
    #[serde(default = "alpha")]
    pub alpha: Numbers,
    /// Standard deviation of the blur in pixels: one number, or [x, y]; 0 does not blur.
    #[serde(default = "sigma")]
    pub sigma: Numbers,
    /// `nearest` or `bilinear`.
    #[serde(default = "bilinear")]
    pub interpolation: Interpolation,
    /// Colour of what comes from outside: one number or one a channel.
    #[serde(default)]
    pub fill: Numbers,
}

fn alpha() -> Numbers {
    Numbers(vec![50.0])
}

fn sigma() -> Numbers {
    Numbers(vec![5.0])
}

#[derive(Clone, Copy, Debug)]
struct Elastic {
    alpha: [f64; 2],
    sigma: [f64; 2],
    look: Look,
}

impl Transform for ElasticTransform {
    fn step(&self, at: &At, state: &mut State) -> Result<Option<Box<dyn Step>>, ConfigError> {
        let pair = |argument: &str, numbers: &Numbers| match numbers.0[..] {
            [one] => Ok([one, one]),
            [x, y] => Ok([x, y]),
            _ => Err(at.error(format!("{argument} must be one number or [x, y]"))),
        };
        let (alpha, sigma) = (pair("alpha", &self.alpha)?, pair("sigma", &self.sigma)?);
        at.check(alpha.iter().all(|alpha| alpha.is_finite()), || {
            format!("alpha must be finite, not {alpha:?}")
        })?;
        at.check(sigma == [0.0; 2] || sigma.iter().all(|sigma| *sigma > 0.0 && *sigma <= 1e3), || {
            format!("sigma must be above 0 in both directions, or 0 in both, and at most 1000, not {sigma:?}")
        })?;
        let look = at.look(self.interpolation, &self.fill, state.channels)?;
        at.check(look.filter != Filter::Bicubic, || "interpolation must be nearest or bilinear".to_owned())?;
        Ok(Some(Box::new(Elastic { alpha, sigma, look })))
    }
}

/// The taps of the blur of the field along one axis, as torchvision counts them: an odd number.
fn taps(sigma: f64) -> usize {
    (8.0 * sigma + 1.0) as usize | 1
}

impl Step for Elastic {
    fn apply(
        &self,
        picture: &mut Picture<'_>,
        draws: &mut Draws,
        limits: &Limits,
    ) -> Result<(), SampleError> {
        let (w, h) = picture.size();
        let reach = self.sigma.map(|sigma| taps(sigma) / 2);
        let most = reach[0].max(reach[1]);
        if self.sigma != [0.0; 2] && most >= w.min(h) {
            return Err(SampleError::unsupported(format!(
                "the image is {w} x {h} pixels here and ElasticTransform reflects {most} beyond its borders (four \
                 times sigma); put a Resize before it or lower sigma"
            )));
        }
        // Three planes of f32.
        limits.check_pixels("the field of ElasticTransform, in f32,", w as u64, 3 * h as u64)?;
        if picture.has_pixels() || !picture.targets().is_empty() {
            let field = [0, 1].map(|axis| self.field(axis, (w, h), draws));
            // The field says where a pixel comes from. Where it goes is nearly the other way, as torchvision takes it.
            picture.carry((w, h), |[x, y]| {
                let at = |of: f64, len: usize| of.clamp(0.0, (len - 1) as f64) as usize;
                let there = at(y, h) * w + at(x, w);
                [x - f64::from(field[0][there]), y - f64::from(field[1][there])]
            });
            return picture
                .replace("the warped image", (w, h), |image, out| draw(image, &field, self.look, out));
        }
        picture.replace("the warped image", (w, h), |_, _| ())
    }

    fn like_mask(&self) -> Option<Box<dyn Step>> {
        Some(Box::new(Elastic { look: MASK, ..*self }))
    }

    fn keeps_rectangles(&self) -> bool {
        false
    }
}

impl Elastic {
    /// How far each pixel of an image of `(w, h)` is moved along an axis (0: x), in pixels.
    fn field(&self, axis: usize, (w, h): (usize, usize), draws: &mut Draws) -> Vec<f32> {
        let mut field: Vec<f32> = (0..w * h).map(|_| (draws.unit() * 2.0 - 1.0) as f32).collect();
        if self.sigma[axis] > 0.0 {
            // As many taps in both directions, of the axis' own sigma; the weights are each direction's.
            let taps = taps(self.sigma[axis]);
            let mut between = vec![0.0; w * h];
            for (row, out) in field.chunks_exact(w).zip(between.chunks_exact_mut(w)) {
                let weights = weights(taps, self.sigma[0]);
                let padded: Vec<f32> =
                    (0..w + taps - 1).map(|x| row[reflect(x as isize - (taps / 2) as isize, w)]).collect();
                add_up(&weights, |tap| &padded[tap..tap + w], out);
            }
            let weights = weights(taps, self.sigma[1]);
            for (y, out) in field.chunks_exact_mut(w).enumerate() {
                let from = |tap: usize| reflect((y + tap) as isize - (taps / 2) as isize, h) * w;
                add_up(&weights, |tap| &between[from(tap)..][..w], out);
            }
        }
        // torchvision's field is in units of half the image.
        let scale = (self.alpha[axis] / 2.0) as f32;
        field.iter_mut().for_each(|moved| *moved *= scale);
        field
    }
}

fn weights(taps: usize, sigma: f64) -> Vec<f32> {
    let half = (taps as f64 - 1.0) / 2.0;
    let weights: Vec<f64> = (0..taps).map(|i| (-0.5 * ((i as f64 - half) / sigma).powi(2)).exp()).collect();
    let sum: f64 = weights.iter().sum();
    weights.into_iter().map(|weight| (weight / sum) as f32).collect()
}

fn add_up<'a>(weights: &[f32], source: impl Fn(usize) -> &'a [f32], out: &mut [f32]) {
    out.fill(0.0);
    for (tap, weight) in weights.iter().enumerate() {
        out.iter_mut().zip(source(tap)).for_each(|(sum, value)| *sum += weight * value);
    }
}

/// Writes `source` with each pixel taken from where `field` says, as torch's `grid_sample` does.
fn draw(source: View<'_>, field: &[Vec<f32>; 2], look: Look, out: &mut Image) {
    let (w, h) = (source.w, source.h);
    out.reset(w, h);
    for y in 0..h {
        for (x, pixel) in out.row_mut(y).as_chunks_mut::<PIXEL>().0.iter_mut().enumerate() {
            // Here the middle of the first pixel is at 0.
            let from = (x as f32 + field[0][y * w + x], y as f32 + field[1][y * w + x]);
            *pixel = match look.filter {
                Filter::Nearest => {
                    let (x, y) = (from.0.round_ties_even(), from.1.round_ties_even());
                    pixel_at(source, x, y).unwrap_or(look.fill)
                }
                _ => smooth(source, from, look.fill),
            };
        }
    }
}

fn pixel_at(source: View<'_>, x: f32, y: f32) -> Option<[u8; PIXEL]> {
    let inside = x >= 0.0 && y >= 0.0 && x < source.w as f32 && y < source.h as f32;
    inside.then(|| source.pixel(x as usize, y as usize))
}

/// Bilinear, with black outside; then torchvision mixes the fill in by the share that lies inside.
fn smooth(source: View<'_>, (x, y): (f32, f32), fill: [u8; PIXEL]) -> [u8; PIXEL] {
    let (left, top) = (x.floor(), y.floor());
    let (dx, dy) = (x - left, y - top);
    let mut sums = [0.0f32; PIXEL];
    let mut share = 0.0;
    for (x, y, weight) in [
        (left, top, (1.0 - dx) * (1.0 - dy)),
        (left + 1.0, top, dx * (1.0 - dy)),
        (left, top + 1.0, (1.0 - dx) * dy),
        (left + 1.0, top + 1.0, dx * dy),
    ] {
        if let Some(pixel) = pixel_at(source, x, y) {
            share += weight;
            sums.iter_mut().zip(pixel).for_each(|(sum, value)| *sum += weight * f32::from(value));
        }
    }
    std::array::from_fn(|i| {
        let fill = f32::from(fill[i]);
        ((sums[i] - fill) * share + fill).round_ties_even() as u8
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SampleKey;

    #[test]
    fn a_field_has_the_deviation_that_blurred_noise_has() {
        let look = MASK;
        let size = (120, 100);
        for (alpha, sigma) in [([50.0, 20.0], [5.0, 5.0]), ([10.0, 40.0], [2.0, 4.0])] {
            let step = Elastic { alpha, sigma, look };
            for (axis, alpha) in alpha.into_iter().enumerate() {
                let key = SampleKey { seed: 5, epoch: 0, position: 1 };
                let field = step.field(axis, size, &mut Draws::new(key, 0));
                let mean = field.iter().sum::<f32>() / field.len() as f32;
                let variance = field.iter().map(|v| (v - mean).powi(2)).sum::<f32>() / field.len() as f32;
                // The squares of a Gaussian's weights sum to 1 / (4 pi s s) in the plane; noise has a variance of 1/3.
                let blurred = 1.0 / (3.0 * 4.0 * std::f64::consts::PI * sigma[0] * sigma[1]);
                let expected = (alpha / 2.0).powi(2) * blurred;
                let ratio = f64::from(variance) / expected;
                assert!((0.7..1.3).contains(&ratio), "{sigma:?} {axis}: {ratio}");
            }
        }
    }

    #[test]
    fn an_alpha_of_0_moves_nothing() {
        let image = crate::resize::tests::noise(30, 20, 1);
        let mut out = Image::default();
        for filter in [Filter::Nearest, Filter::Bilinear] {
            let field = [vec![0.0; 600], vec![0.0; 600]];
            draw(image.view(), &field, Look { filter, fill: [9; 4] }, &mut out);
            assert_eq!(out.pixels(), image.pixels());
        }
    }
}
