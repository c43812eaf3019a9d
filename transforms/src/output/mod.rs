//! The last pass: RGBX bytes to the row's element type and memory order, normalised, with the flips folded in.
//!
//! Every value is `x * scale + bias`, rounded after the product and after the sum, with scale = 1 / (255 std) and
//! bias = -mean / std taken in f64 and rounded once. It is within 1e-6 of torchvision's ((x / 255) - mean) / std
//! relative to 1 / std. No fused multiply-add, so that every kernel gives the same bits.

#[cfg(target_arch = "x86_64")]
mod avx2;

use half::{bf16, f16};

use crate::config::{Dtype, Layout};
use crate::decode::values;
use crate::geometry::{PIXEL, View};

/// What one row of a batch holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutputSpec {
    /// 3, or 1 behind `Grayscale`.
    pub channels: usize,
    /// Pixels.
    pub height: usize,
    /// Pixels.
    pub width: usize,
    /// Type of each element.
    pub dtype: Dtype,
    /// Memory order of the elements; the logical shape is (channels, height, width).
    pub layout: Layout,
}

impl OutputSpec {
    /// Bytes of one sample.
    pub fn row_bytes(&self) -> usize {
        self.channels * self.height * self.width * self.dtype.bytes()
    }

    /// The byte range of channel `c` of the pixel at (x, y).
    fn element(&self, x: usize, y: usize, c: usize) -> std::ops::Range<usize> {
        let index = match self.layout {
            Layout::Nchw => (c * self.height + y) * self.width + x,
            Layout::Nhwc => (y * self.width + x) * self.channels + c,
        };
        index * self.dtype.bytes()..(index + 1) * self.dtype.bytes()
    }
}

/// What is left to do to rows of u8: `x * scale + bias` in f32, rounded to `dtype`, and the erasings, each a rectangle
/// of a value, one behind the other.
#[derive(Clone, Debug, PartialEq)]
pub struct Finishing {
    /// Type of the elements then.
    pub dtype: Dtype,
    /// One a channel.
    pub scale: Vec<f32>,
    /// One a channel.
    pub bias: Vec<f32>,
    /// Of each erasing: its value, one a channel, in units of the finished row.
    pub erasings: Vec<Vec<f32>>,
}

/// The pass of one chain.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Pass {
    pub spec: OutputSpec,
    /// A channel each; not used for u8.
    pub scale: [f32; 3],
    pub bias: [f32; 3],
}

impl Pass {
    /// Writes `image`, flipped as told, into `row`.
    pub(crate) fn write(&self, image: View<'_>, flip_x: bool, flip_y: bool, row: &mut [u8]) {
        self.write_with(image, flip_x, flip_y, row, fastest());
    }

    fn write_with(&self, image: View<'_>, flip_x: bool, flip_y: bool, row: &mut [u8], kernels: Kernels) {
        assert_eq!(
            (image.w, image.h),
            (self.spec.width, self.spec.height),
            "the chain has a fixed output size"
        );
        assert_eq!(row.len(), self.spec.row_bytes(), "a row has the size that the chain announced");
        for y in 0..image.h {
            let source = image.row(if flip_y { image.h - 1 - y } else { y });
            match kernels {
                #[cfg(target_arch = "x86_64")]
                Kernels::Avx2 if image.w >= avx2::MIN_WIDTH && self.spec.dtype != Dtype::U16 => {
                    avx2::row(self, source, flip_x, y, row)
                }
                _ => self.plain_row(source, flip_x, y, row),
            }
        }
    }

    /// The reference for [`avx2::row`].
    fn plain_row(&self, source: &[u8], flip_x: bool, y: usize, row: &mut [u8]) {
        let pixels = source.as_chunks::<PIXEL>().0;
        for x in 0..self.spec.width {
            let pixel = pixels[if flip_x { self.spec.width - 1 - x } else { x }];
            for c in 0..self.spec.channels {
                let out = &mut row[self.spec.element(x, y, c)];
                match self.spec.dtype {
                    Dtype::U8 => out[0] = pixel[c],
                    // A mask's, whose pixel is one number.
                    Dtype::U16 => out.copy_from_slice(&values::value(pixel).to_ne_bytes()),
                    _ => store(self.spec.dtype, f32::from(pixel[c]) * self.scale[c] + self.bias[c], out),
                }
            }
        }
    }

    /// Sets an element of a finished row to a value in normalised units.
    pub(crate) fn put(&self, x: usize, y: usize, c: usize, value: f32, row: &mut [u8]) {
        store(self.spec.dtype, value, &mut row[self.spec.element(x, y, c)]);
    }
}

fn store(dtype: Dtype, value: f32, out: &mut [u8]) {
    match dtype {
        Dtype::U8 => out[0] = value as u8,
        Dtype::F32 => out.copy_from_slice(&value.to_ne_bytes()),
        Dtype::F16 => out.copy_from_slice(&f16::from_f32(value).to_ne_bytes()),
        Dtype::Bf16 => out.copy_from_slice(&bf16::from_f32(value).to_ne_bytes()),
        Dtype::U16 => out.copy_from_slice(&(value as u16).to_ne_bytes()),
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kernels {
    Plain,
    #[cfg(target_arch = "x86_64")]
    Avx2,
}

fn fastest() -> Kernels {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("f16c") {
        return Kernels::Avx2;
    }
    Kernels::Plain
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resize::tests::noise;

    fn pass(channels: usize, (width, height): (usize, usize), dtype: Dtype, layout: Layout) -> Pass {
        Pass {
            spec: OutputSpec { channels, height, width, dtype, layout },
            scale: [1.0 / (255.0 * 0.229), 1.0 / (255.0 * 0.224), 1.0 / (255.0 * 0.225)],
            bias: [-0.485 / 0.229, -0.456 / 0.224, -0.406 / 0.225],
        }
    }

    #[test]
    fn every_kernel_writes_the_same_bytes_for_every_type_layout_flip_and_width() {
        for (width, height) in (1..40).map(|w| (w, 3)).chain([(224, 2)]) {
            let image = noise(width, height, width as u64);
            for dtype in [Dtype::U8, Dtype::F32, Dtype::F16, Dtype::Bf16] {
                for layout in [Layout::Nchw, Layout::Nhwc] {
                    for channels in [1, 3] {
                        let pass = pass(channels, (width, height), dtype, layout);
                        for flips in 0..4 {
                            let mut plain = vec![1; pass.spec.row_bytes()];
                            let mut fast = vec![2; pass.spec.row_bytes()];
                            let (flip_x, flip_y) = (flips & 1 != 0, flips & 2 != 0);
                            pass.write_with(image.view(), flip_x, flip_y, &mut plain, Kernels::Plain);
                            pass.write_with(image.view(), flip_x, flip_y, &mut fast, fastest());
                            assert_eq!(plain, fast, "{:?} flips {flips}", pass.spec);
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn the_arithmetic_is_that_of_torchvision_within_1e_5() {
        let pass = pass(3, (256, 1), Dtype::F32, Layout::Nhwc);
        let mut image = crate::geometry::Image::default();
        image.reset(256, 1);
        for (v, pixel) in image.pixels_mut().iter_mut().enumerate() {
            *pixel = [v as u8; 4];
        }
        let mut row = vec![0; pass.spec.row_bytes()];
        pass.write(image.view(), false, false, &mut row);
        let (mean, std) = ([0.485f32, 0.456, 0.406], [0.229f32, 0.224, 0.225]);
        for (i, bytes) in row.as_chunks::<4>().0.iter().enumerate() {
            let expected = ((i / 3) as f32 / 255.0 - mean[i % 3]) / std[i % 3];
            assert!((f32::from_ne_bytes(*bytes) - expected).abs() < 1e-6, "{i}");
        }
    }
}
