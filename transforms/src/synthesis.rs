//! Noise and erasing.

use crate::geometry::{PIXEL, Rect};
use crate::random::Draws;

/// Adds normal noise to every channel, or the same to all three of a gray image; mean and sigma are in levels.
pub(crate) fn noise(pixels: &mut [[u8; PIXEL]], mean: f32, sigma: f32, gray: bool, draws: &mut Draws) {
    // `as` saturates, so this is the clip too.
    let add =
        |value: &mut u8, normal: f32| *value = (f32::from(*value) + mean + sigma * normal).round() as u8;
    let mut pairs = pixels.chunks_exact_mut(2);
    let mut both = |first: &mut [u8; PIXEL], second: &mut [u8; PIXEL]| {
        if gray {
            let (a, b) = draws.normal_pair();
            add(&mut first[0], a);
            add(&mut second[0], b);
            *first = [first[0], first[0], first[0], 255];
            *second = [second[0], second[0], second[0], 255];
        } else {
            for c in 0..3 {
                let (a, b) = draws.normal_pair();
                add(&mut first[c], a);
                add(&mut second[c], b);
            }
        }
    };
    for pair in &mut pairs {
        let [first, second] = pair else { continue };
        both(first, second);
    }
    if let [last] = pairs.into_remainder() {
        both(last, &mut [0; PIXEL]);
    }
}

/// Where a `RandomErasing` erases.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct EraseArea {
    pub p: f64,
    pub scale: [f64; 2],
    pub log_ratio: [f64; 2],
}

impl EraseArea {
    /// The rectangle to erase in an image of `w` x `h`, as torchvision draws it; `None` to leave the image alone.
    pub(crate) fn draw(&self, w: usize, h: usize, draws: &mut Draws) -> Option<Rect> {
        if !draws.chance(self.p) {
            return None;
        }
        for _ in 0..10 {
            let area = (w * h) as f64 * draws.range(self.scale[0], self.scale[1]);
            let ratio = draws.range(self.log_ratio[0], self.log_ratio[1]).exp();
            let erase_h = (area * ratio).sqrt().round_ties_even() as usize;
            let erase_w = (area / ratio).sqrt().round_ties_even() as usize;
            if erase_h < h && erase_w < w {
                let y = draws.below((h - erase_h + 1) as u64) as usize;
                let x = draws.below((w - erase_w + 1) as u64) as usize;
                return Some(Rect { x, y, w: erase_w, h: erase_h });
            }
        }
        None
    }
}
