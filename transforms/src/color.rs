//! Colour: gray, saturation, hue, sharpness and blur, with Pillow's arithmetic (but torchvision's for the blur).
//!
//! Half of the time of a chain with a `ColorJitter` goes by here, so the loops over pixels avoid what costs most in
//! them: branches that follow the colours, and calls for rounding, which the processors we build for do not all have as
//! an instruction.

use crate::geometry::{Image, PIXEL, View};
use crate::levels::{Table, table};

type Pixel = [u8; PIXEL];

/// Pillow's gray of an RGB pixel: ITU-R 601-2 luma in 16-bit fixed point.
pub(crate) fn luma([r, g, b, _]: Pixel) -> u8 {
    ((u32::from(r) * 19595 + u32::from(g) * 38470 + u32::from(b) * 7471 + 0x8000) >> 16) as u8
}

/// Makes every pixel gray.
pub(crate) fn gray(pixels: &mut [Pixel]) {
    for pixel in pixels {
        let value = luma(*pixel);
        *pixel = [value, value, value, 255];
    }
}

/// Pillow's `Image.blend` of two values: f32, cut off rather than rounded, clipped where `factor` extrapolates.
#[expect(clippy::manual_clamp, reason = "clamp keeps the NaN of an infinite factor, which must become 0")]
fn blend(from: u8, to: u8, factor: f32) -> u8 {
    let value = f32::from(from) + factor * (f32::from(to) - f32::from(from));
    cut_f32(value.max(0.0).min(255.0))
}

/// Numbers that have no room for fractions: a value that is added to one is rounded to the nearest whole number, halves
/// to even, and stands in the lowest bits. Unlike `as`, which asks for bounds and NaN, that needs no branch.
const NO_FRACTION_F32: f32 = (1u32 << 23) as f32;
const NO_FRACTION_F64: f64 = (1u64 << 52) as f64;

/// `x as u8`, for values of 0 to 255.
fn cut_f32(x: f32) -> u8 {
    let rounded = x + NO_FRACTION_F32;
    (rounded.to_bits() as u8).wrapping_sub(u8::from(rounded - NO_FRACTION_F32 > x))
}

/// `x as u8`, for values of 0 to 255.
fn cut(x: f64) -> u8 {
    let rounded = x + NO_FRACTION_F64;
    (rounded.to_bits() as u8).wrapping_sub(u8::from(rounded - NO_FRACTION_F64 > x))
}

/// The nearest level, halves up, for values of 0 to 255.
fn round(x: f64) -> u8 {
    let rounded = x + NO_FRACTION_F64;
    (rounded.to_bits() as u8).wrapping_add(u8::from(x - (rounded - NO_FRACTION_F64) == 0.5))
}

/// The table of a blend of each level with the level `from`: with 0 it changes the brightness, with the mean gray the
/// contrast.
pub(crate) fn blend_table(from: u8, factor: f64) -> Table {
    table(|to| blend(from, to, factor as f32))
}

pub(crate) fn saturation(pixels: &mut [Pixel], factor: f64) {
    let factor = factor as f32;
    for pixel in pixels {
        let from = luma(*pixel);
        // The fourth byte, which means nothing, goes along: four are one vector.
        *pixel = pixel.map(|to| blend(from, to, factor));
    }
}

/// Turns the hue by `turns`, through Pillow's 8-bit HSV.
pub(crate) fn hue(pixels: &mut [Pixel], turns: f64) {
    // torchvision: int32(turns * 255), then modulo 256.
    let shift = (turns * 255.0) as i32 as u8;
    for pixel in pixels {
        let [h, s, v] = hsv(*pixel);
        let [r, g, b] = rgb([h.wrapping_add(shift), s, v]);
        *pixel = [r, g, b, 255];
    }
}

/// Pillow's rgb2hsv, with its mixture of f32 and f64.
fn hsv([r, g, b, _]: Pixel) -> [u8; 3] {
    let max = r.max(g).max(b);
    let min = r.min(g).min(b);
    if max == min {
        return [0, 0, max];
    }
    let range = f32::from(max - min);
    let s = range / f32::from(max);
    // Pillow subtracts in f32 where red is the largest. In f64 it is the same: these differences are exact.
    let (third, plus, minus) = if r == max {
        (0.0, b, g)
    } else if g == max {
        (2.0, r, b)
    } else {
        (4.0, g, r)
    };
    let share = |of: u8| f64::from(f32::from(max - of) / range);
    let h = (third + share(plus) - share(minus)) as f32;
    // Modulo 1, of what lies between 0 and 2.
    let turns = f64::from(h) / 6.0 + 1.0;
    let h = (if turns >= 1.0 { turns - 1.0 } else { turns }) as f32;
    [cut(f64::from(h) * 255.0), cut(f64::from(s) * 255.0), max]
}

/// Of each hue in 8 bits: the sixth of the circle it lies in, and how far in it.
const SIXTHS: [(usize, f64); 256] = {
    let mut all = [(0, 0.0); 256];
    let mut h = 0;
    while h < 256 {
        let at = h as f64 * 6.0 / 255.0;
        // The last hue begins the circle again.
        all[h] = (at as usize % 6, at - (at as usize) as f64);
        h += 1;
    }
    all
};

/// In each sixth, which of value, p, q and t are red, green and blue.
const ORDERS: [[usize; 3]; 6] = [[0, 3, 1], [2, 0, 1], [1, 0, 3], [1, 2, 0], [3, 1, 0], [0, 1, 2]];

/// Pillow's hsv2rgb.
fn rgb([h, s, v]: [u8; 3]) -> [u8; 3] {
    if s == 0 {
        return [v; 3];
    }
    let (sixth, f) = SIXTHS[usize::from(h)];
    let (s, value) = (f64::from(s) / 255.0, f64::from(v));
    let p = round(value * (1.0 - s));
    let q = round(value * (1.0 - s * f));
    let t = round(value * (1.0 - s * (1.0 - f)));
    let (levels, [r, g, b]) = ([v, p, q, t], ORDERS[sixth]);
    [levels[r], levels[g], levels[b]]
}

/// Writes Pillow's `ImageEnhance.Sharpness` of `source` into `out`: a blend of it with a smoothed copy.
pub(crate) fn sharpen(source: View<'_>, factor: f64, out: &mut Image) {
    let (w, h) = (source.w, source.h);
    source.copy_to(out);
    if w < 3 || h < 3 {
        return;
    }
    let factor = factor as f32;
    // The border stays as it is.
    for y in 1..h - 1 {
        let [above, here, below] = [y - 1, y, y + 1].map(|y| source.row(y));
        let (to, whole) = (&mut out.row_mut(y)[PIXEL..(w - 1) * PIXEL], PIXEL..(w - 1) * PIXEL);
        for (to, at) in to.iter_mut().zip(whole) {
            let mut sum = 4 * u32::from(here[at]);
            for row in [above, here, below] {
                sum += u32::from(row[at - PIXEL]) + u32::from(row[at]) + u32::from(row[at + PIXEL]);
            }
            // Thirteenths are never halves: rounding has one meaning.
            let smooth = ((2 * sum + 13) / 26) as u8;
            *to = blend(smooth, here[at], factor);
        }
    }
}

/// Memory of the blur, kept between images.
#[derive(Default)]
pub(crate) struct Blur {
    kernel: Vec<f32>,
    padded: Vec<f32>,
    between: Vec<f32>,
}

impl Blur {
    /// Blurs `image` with a Gaussian of `kernel` = (width, height) taps; half of each must be smaller than the image's
    /// side. Borders are reflected without repeating the border pixel. Sums are f32, as torchvision's are, in two
    /// passes instead of its one, rounded to the nearest even level.
    pub(crate) fn apply(&mut self, image: &mut Image, (kernel_w, kernel_h): (usize, usize), sigma: f64) {
        let (w, h) = image.size();
        let row = w * PIXEL;
        let (rx, ry) = (kernel_w / 2, kernel_h / 2);
        debug_assert!(rx < w && ry < h);
        self.weights(kernel_w, sigma);
        self.between.resize(row * h, 0.0);
        self.padded.resize((w + 2 * rx) * PIXEL, 0.0);
        for (source, out) in image.view_rows().zip(self.between.chunks_exact_mut(row)) {
            let pixels = source.as_chunks::<PIXEL>().0;
            for (x, to) in self.padded.as_chunks_mut::<PIXEL>().0.iter_mut().enumerate() {
                *to = pixels[reflect(x as isize - rx as isize, w)].map(f32::from);
            }
            let padded = &self.padded;
            weighted_sum(&self.kernel, |tap| &padded[tap * PIXEL..], out);
        }
        self.weights(kernel_h, sigma);
        self.padded.resize(row, 0.0);
        for y in 0..h {
            let from = |tap| reflect((y + tap) as isize - ry as isize, h) * row;
            weighted_sum(&self.kernel, |tap| &self.between[from(tap)..], &mut self.padded);
            for (to, sum) in image.row_mut(y).iter_mut().zip(&self.padded) {
                *to = (sum.min(255.0) + NO_FRACTION_F32).to_bits() as u8;
            }
        }
    }

    fn weights(&mut self, taps: usize, sigma: f64) {
        let half = (taps as f64 - 1.0) / 2.0;
        self.kernel.clear();
        self.kernel.extend((0..taps).map(|i| (-0.5 * ((i as f64 - half) / sigma).powi(2)).exp() as f32));
        let sum: f32 = self.kernel.iter().sum();
        self.kernel.iter_mut().for_each(|weight| *weight /= sum);
    }

    pub(crate) fn bytes(&self) -> usize {
        4 * (self.kernel.capacity() + self.padded.capacity() + self.between.capacity())
    }

    pub(crate) fn shrink(&mut self, bytes: usize) {
        if self.bytes() > bytes {
            *self = Blur::default();
        }
    }
}

/// Sums up what `source` has for each tap, times its weight, in the order of the taps.
fn weighted_sum<'a>(kernel: &[f32], source: impl Fn(usize) -> &'a [f32], out: &mut [f32]) {
    /// Sums that are under way at once: as many as fit registers, so that they are written once.
    const LANES: usize = 32;
    let (blocks, rest) = out.as_chunks_mut::<LANES>();
    let whole = blocks.len() * LANES;
    for (block, sums) in blocks.iter_mut().enumerate() {
        let mut under_way = [0.0f32; LANES];
        for (tap, weight) in kernel.iter().enumerate() {
            let values = &source(tap)[block * LANES..][..LANES];
            for (sum, value) in under_way.iter_mut().zip(values) {
                *sum += value * weight;
            }
        }
        *sums = under_way;
    }
    rest.fill(0.0);
    for (tap, weight) in kernel.iter().enumerate() {
        for (sum, value) in rest.iter_mut().zip(&source(tap)[whole..]) {
            *sum += value * weight;
        }
    }
}

/// `x` mirrored into 0..len at the border pixels, for x in -len < x < 2 * len - 1.
pub(crate) fn reflect(x: isize, len: usize) -> usize {
    let last = len as isize - 1;
    let x = x.abs();
    (if x > last { 2 * last - x } else { x }) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    // Values printed by Pillow 13.0. Gray, brightness, contrast, saturation and hue were also compared with it and
    // torchvision 0.29 on an image of all 2^24 colours, several factors each, with no byte differing.
    #[test]
    fn gray_and_hsv_are_pillows() {
        for (pixel, as_hsv, back, gray) in [
            ([255, 0, 0], [0, 255, 255], [255, 0, 0], 76),
            ([0, 255, 0], [85, 255, 255], [0, 255, 0], 150),
            ([10, 20, 200], [167, 242, 200], [10, 24, 200], 38),
            ([200, 30, 31], [254, 216, 200], [200, 31, 35], 81),
            ([1, 2, 3], [148, 170, 3], [1, 2, 3], 2),
        ] {
            let [r, g, b] = pixel;
            assert_eq!(hsv([r, g, b, 0]), as_hsv);
            assert_eq!(rgb(as_hsv), back);
            assert_eq!(luma([r, g, b, 0]), gray);
        }
    }

    #[test]
    fn rounding_without_branches_is_that_of_the_language() {
        for step in 0..=255 * 512 {
            // Halves and whole numbers, and their neighbours.
            let x = f64::from(step) / 512.0;
            for x in [x, x.next_up().min(255.0), x.next_down().max(0.0)] {
                assert_eq!((cut(x), round(x)), (x as u8, x.round() as u8), "{x}");
            }
            let x = x as f32;
            for x in [x, x.next_up().min(255.0), x.next_down().max(0.0)] {
                assert_eq!(cut_f32(x), x as u8, "{x}");
            }
        }
        for factor in [0.0, 0.3, 1.0, 1.37, 40.0, f32::MAX, f32::INFINITY] {
            for (from, to) in (0..=255u8).flat_map(|from| (0..=255u8).map(move |to| (from, to))) {
                let value = f32::from(from) + factor * (f32::from(to) - f32::from(from));
                assert_eq!(blend(from, to, factor), value as u8, "{from} {to} {factor}");
            }
        }
    }

    #[test]
    fn a_weighted_sum_is_taken_in_the_order_of_the_taps() {
        let values: Vec<f32> = (0..200u16).map(|at| f32::from(at * 7 % 256)).collect();
        let kernel = [0.1f32, 0.2, 0.4, 0.2, 0.1];
        for len in [1, 31, 32, 33, 100] {
            let mut found = vec![9.0; len];
            weighted_sum(&kernel, |tap| &values[tap * 4..], &mut found);
            let expected: Vec<f32> = (0..len)
                .map(|at| kernel.iter().enumerate().fold(0.0, |sum, (tap, w)| sum + values[tap * 4 + at] * w))
                .collect();
            assert_eq!(found, expected);
        }
    }

    #[test]
    fn factors_of_1_and_shifts_of_0_change_nothing_but_hsv_rounding() {
        let original: Vec<Pixel> = (0..255u8).map(|i| [i, i.wrapping_mul(7), 255 - i, 255]).collect();
        let mut pixels = original.clone();
        saturation(&mut pixels, 1.0);
        assert_eq!(pixels, original);
        for from in [0, 77, 255] {
            assert_eq!(blend_table(from, 1.0), table(|level| level));
        }
    }

    #[test]
    fn a_gray_image_has_nothing_to_saturate_or_turn() {
        let original: Vec<Pixel> = (0..=255u8).map(|i| [i, i, i, 255]).collect();
        let mut pixels = original.clone();
        saturation(&mut pixels, 3.0);
        hue(&mut pixels, 0.4);
        assert_eq!(pixels, original);
    }

    #[test]
    fn a_blur_of_one_tap_is_no_blur_and_of_a_flat_image_too() {
        let mut image = crate::resize::tests::noise(9, 8, 1);
        let before = image.pixels().to_vec();
        Blur::default().apply(&mut image, (1, 1), 3.0);
        assert_eq!(image.pixels(), before);
        image.pixels_mut().fill([200, 100, 0, 255]);
        Blur::default().apply(&mut image, (15, 13), 3.0);
        assert!(image.pixels().iter().all(|pixel| *pixel == [200, 100, 0, 255]));
    }

    #[test]
    fn sharpening_by_1_changes_nothing_and_smoothing_is_a_weighted_mean() {
        let image = crate::resize::tests::noise(9, 8, 1);
        let mut out = Image::default();
        sharpen(image.view(), 1.0, &mut out);
        assert_eq!(out.pixels(), image.pixels());
        sharpen(image.view(), 0.0, &mut out);
        for y in 0..8usize {
            for x in 0..9usize {
                let border = x % 8 == 0 || y % 7 == 0;
                let around = (0..9usize).map(|n| {
                    image
                        .view()
                        .pixel((x + n % 3).saturating_sub(1).min(8), (y + n / 3).saturating_sub(1).min(7))
                });
                let sum: f64 = around.map(|pixel| f64::from(pixel[1])).sum();
                let here = f64::from(image.view().pixel(x, y)[1]);
                let expected = if border { here } else { ((sum + 4.0 * here) / 13.0).round() };
                assert_eq!(f64::from(out.view().pixel(x, y)[1]), expected, "{x} {y}");
            }
        }
        let thin = crate::resize::tests::noise(9, 2, 1);
        sharpen(thin.view(), 5.0, &mut out);
        assert_eq!(out.pixels(), thin.pixels());
    }

    #[test]
    fn reflection_does_not_repeat_the_border() {
        let mirrored: Vec<usize> = (-3..7).map(|x| reflect(x, 4)).collect();
        assert_eq!(mirrored, [3, 2, 1, 0, 1, 2, 3, 2, 1, 0]);
    }
}
