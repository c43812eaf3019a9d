//! Pillow's `ImageFilter.GaussianBlur`: three box blurs in each direction, whose boxes have a fraction of a pixel at
//! their ends. In integers, to the last bit.

use crate::geometry::{Image, PIXEL};

const PASSES: usize = 3;

/// Blurs `image` by a Gaussian of this standard deviation, or nearly.
pub(crate) fn gaussian(image: &mut Image, sigma: f64) {
    let reach = Box::of(sigma as f32);
    let (w, h) = image.size();
    if w == 0 || h == 0 {
        return;
    }
    let mut line = vec![[0; PIXEL]; w.max(h)];
    for y in 0..h {
        for _ in 0..PASSES {
            let pixels = image.row_mut(y).as_chunks_mut::<PIXEL>().0;
            line[..w].copy_from_slice(pixels);
            reach.blur(&line[..w], pixels.iter_mut());
        }
    }
    for x in 0..w {
        for _ in 0..PASSES {
            let pixels = image.pixels_mut();
            for (to, from) in line.iter_mut().zip(pixels[x..].iter().step_by(w)) {
                *to = *from;
            }
            reach.blur(&line[..h], pixels[x..].iter_mut().step_by(w));
        }
    }
}

/// A box: whole pixels on both sides of the middle, and the weights of those and of the ends, of 2^24 in all.
#[derive(Clone, Copy)]
struct Box {
    radius: usize,
    whole: u32,
    ends: u32,
}

impl Box {
    /// That of which three blurs are a Gaussian (Gwosdek and others, 2011), in Pillow's mixture of f32 and f64.
    fn of(sigma: f32) -> Self {
        let sigma2 = sigma * sigma / PASSES as f32;
        let length = (12.0 * f64::from(sigma2) + 1.0).sqrt() as f32;
        let l = ((f64::from(length) - 1.0) / 2.0).floor() as f32;
        let a = (2.0 * l + 1.0) * (l * (l + 1.0) - 3.0 * sigma2);
        let radius = l + a / (6.0 * (sigma2 - (l + 1.0) * (l + 1.0)));
        let whole = ((1u32 << 24) as f32 / (radius * 2.0 + 1.0)) as u32;
        let ends = ((1 << 24) - (radius as u32 * 2 + 1) * whole) / 2;
        Box { radius: radius as usize, whole, ends }
    }

    /// Writes the blur of `line`, whose first and last pixel are repeated beyond it.
    fn blur<'a>(&self, line: &[[u8; PIXEL]], out: impl Iterator<Item = &'a mut [u8; PIXEL]>) {
        let last = line.len() - 1;
        let at = |place: isize| line[place.clamp(0, last as isize) as usize];
        let radius = self.radius as isize;
        let mut sums = [0u32; PIXEL];
        // The box before the first pixel.
        for place in -radius - 1..radius {
            sums.iter_mut().zip(at(place)).for_each(|(sum, level)| *sum += u32::from(level));
        }
        for (x, to) in (0..).zip(out) {
            let (left, enters, right) = (at(x - radius - 1), at(x + radius), at(x + radius + 1));
            for c in 0..PIXEL {
                sums[c] = sums[c] + u32::from(enters[c]) - u32::from(left[c]);
                let ends = u32::from(left[c]) + u32::from(right[c]);
                to[c] = ((sums[c] * self.whole + ends * self.ends + (1 << 23)) >> 24) as u8;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blur_keeps_flat_images_and_spreads_a_point_evenly() {
        let mut image = Image::default();
        image.reset(21, 17);
        image.pixels_mut().fill([9, 200, 255, 255]);
        gaussian(&mut image, 2.0);
        assert!(image.pixels().iter().all(|pixel| *pixel == [9, 200, 255, 255]));
        image.pixels_mut().fill([0; 4]);
        image.pixels_mut()[8 * 21 + 10] = [255; 4];
        gaussian(&mut image, 1.0);
        let level = |x: usize, y: usize| image.view().pixel(x, y)[0];
        assert_eq!((level(9, 8), level(10, 7)), (level(11, 8), level(10, 9)));
        // A Gaussian of this deviation has 1 / (2 pi) in the middle.
        assert!(level(10, 8).abs_diff(41) < 4, "{}", level(10, 8));
    }
}
