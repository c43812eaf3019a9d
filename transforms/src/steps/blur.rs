//! `GaussianBlur`.

use serde::{Deserialize, Serialize};

use super::arguments::{At, MAX_SIDE, Numbers, Size};
use super::{State, Step, Transform};
use crate::error::{ConfigError, SampleError};
use crate::limits::Limits;
use crate::plan::Picture;
use crate::random::Draws;

/// Blurs with a Gaussian kernel; borders are reflected.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GaussianBlur {
    /// Odd width of the kernel in pixels: one number, or two, which torchvision uses as [x, y].
    pub kernel_size: Size,
    /// Standard deviation in pixels: fixed, or [least, most].
    #[serde(default = "sigma")]
    pub sigma: Numbers,
}

fn sigma() -> Numbers {
    Numbers(vec![0.1, 2.0])
}

#[derive(Debug)]
struct Blur {
    kernel: (usize, usize),
    sigma: [f64; 2],
}

impl Transform for GaussianBlur {
    fn step(&self, at: &At, state: &mut State) -> Result<Option<Box<dyn Step>>, ConfigError> {
        // torchvision hands the pair on in this order, first x, then y.
        let (x, y) = self.kernel_size.square();
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
        let range = match self.sigma.0[..] {
            [one] => [one, one],
            [a, b] => [a, b],
            _ => return Err(at.error("sigma must be one number or [least, most]")),
        };
        let sigma = at.positive_range("sigma", range)?;
        Ok(Some(Box::new(Blur { kernel: (x as usize, y as usize), sigma })))
    }
}

impl Step for Blur {
    fn apply(
        &self,
        picture: &mut Picture<'_>,
        draws: &mut Draws,
        limits: &Limits,
    ) -> Result<(), SampleError> {
        let ((w, h), kernel) = (picture.size(), self.kernel);
        let sigma = draws.range(self.sigma[0], self.sigma[1]);
        if kernel.0 / 2 >= w || kernel.1 / 2 >= h {
            return Err(SampleError::unsupported(format!(
                "the image is {w} x {h} pixels here and GaussianBlur reflects {} x {} beyond its borders; put a \
                 Resize before it",
                kernel.0 / 2,
                kernel.1 / 2
            )));
        }
        // Two planes of four f32 a pixel.
        limits.check_pixels("the image to blur, in f32,", w as u64, 4 * h as u64)?;
        picture.in_place(|image, blur| blur.apply(image, kernel, sigma))
    }

    fn like_mask(&self) -> Option<Box<dyn Step>> {
        None
    }
}
