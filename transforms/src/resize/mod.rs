//! Resizing with Pillow's arithmetic, for any part of the result.
//!
//! Promises:
//! - **Bit-identical to `Image.resize` of Pillow 13** for its six older filters: the same windows and weights in f64,
//!   rounded to 22 fractional bits, two passes with rounding to u8 between them, in the same order: the vertical one
//!   first where the height shrinks by more than twice as many pixels as the width. (Before Pillow 13 the horizontal
//!   pass always came first; for such shapes the results differ by a level.)
//! - A part of the result is bit-identical to that part of the whole result, and needs only the part of the source
//!   that [`Axis::source`] names. That is what lets a plan fuse a resize and the crops around it.
//! - The AVX2 kernels and the plain ones give the same bytes.
//!
//! Why not fast_image_resize, which is faster: it quantises weights to 16 bits with a precision chosen from the largest
//! weight of the call, so a part need not equal the same part of the whole, nor Pillow. Integer weights of 22 bits fit
//! a 32-bit multiply, which AVX2 has. Measured on one core of an AMD EPYC (Zen 4), 316 x 316 to 224 x 224, bilinear,
//! medians of 7 interleaved runs: 141 us here, 109 us there; about 3 % of a photograph's whole chain for the exactness.

#[cfg(target_arch = "x86_64")]
mod avx2;

use std::f64::consts::PI;
use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::geometry::{Image, PIXEL, Rect, View};

/// How a resized pixel is computed from its neighbours; the names are torchvision's and Pillow's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Interpolation {
    /// The pixel under the centre of the new one, as Pillow picks it (torchvision's "nearest-exact").
    #[serde(alias = "nearest-exact")]
    Nearest,
    /// A triangle, widened by the scale when shrinking (antialias).
    Bilinear,
    /// Cubic convolution with a = -0.5.
    Bicubic,
    /// Lanczos windowed sinc with three lobes.
    Lanczos,
    /// The mean of the pixels covered.
    Box,
    /// Hamming windowed sinc with one lobe.
    Hamming,
}

impl Interpolation {
    fn support(self) -> f64 {
        match self {
            Interpolation::Nearest => 0.0,
            Interpolation::Box => 0.5,
            Interpolation::Bilinear | Interpolation::Hamming => 1.0,
            Interpolation::Bicubic => 2.0,
            Interpolation::Lanczos => 3.0,
        }
    }

    fn weight(self, x: f64) -> f64 {
        match self {
            Interpolation::Nearest => 0.0,
            Interpolation::Box => {
                if x > -0.5 && x <= 0.5 {
                    1.0
                } else {
                    0.0
                }
            }
            Interpolation::Bilinear => (1.0 - x.abs()).max(0.0),
            Interpolation::Hamming => {
                let x = x.abs();
                if x == 0.0 {
                    1.0
                } else if x >= 1.0 {
                    0.0
                } else {
                    let x = x * PI;
                    // Pillow's constants are f32, which shows.
                    x.sin() / x * (f64::from(0.54f32) + f64::from(0.46f32) * x.cos())
                }
            }
            Interpolation::Bicubic => cubic(x, -0.5),
            Interpolation::Lanczos => {
                let sinc = |x: f64| if x == 0.0 { 1.0 } else { (x * PI).sin() / (x * PI) };
                if (-3.0..3.0).contains(&x) { sinc(x) * sinc(x / 3.0) } else { 0.0 }
            }
        }
    }
}

fn cubic(x: f64, a: f64) -> f64 {
    let x = x.abs();
    if x < 1.0 {
        ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        (((x - 5.0) * x + 8.0) * x - 4.0) * a
    } else {
        0.0
    }
}

/// A resize of a whole image or region to `w` x `h`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Resize {
    pub w: usize,
    pub h: usize,
    pub interpolation: Interpolation,
    /// False: two (bilinear) or four (bicubic) taps even when shrinking, as torchvision does on tensors.
    pub antialias: bool,
    /// Nearest only: the pixel under the new one's upper left corner, as torchvision takes it for masks.
    pub corner: bool,
}

impl Resize {
    /// The same for a mask: torchvision's nearest neighbour where the image is filtered; where the image is not, the
    /// very pixels that it takes (torchvision's "nearest-exact").
    pub(crate) fn like_mask(self) -> Self {
        let corner = self.interpolation != Interpolation::Nearest;
        Resize { interpolation: Interpolation::Nearest, antialias: true, corner, ..self }
    }
}

/// Fractional bits of a weight; 8 bits of pixel and 2 of sign and overshoot complete the 32.
const PRECISION: u32 = 32 - 8 - 2;

/// The windows and weights of one axis for a range of its outputs, kept between images for its memory.
#[derive(Default)]
pub(crate) struct Axis {
    /// For each output of the range: first source pixel of its window.
    first: Vec<u32>,
    /// Weights of each output, `taps` each, zeros at the end (or, at the right border, the start).
    weights: Vec<i32>,
    taps: usize,
    /// The source pixels that the range needs.
    source: Range<usize>,
    /// The axis changes nothing: the pass is skipped.
    identity: bool,
    window: Vec<f64>,
}

impl Axis {
    /// Plans outputs `range` of a resize of `from` pixels to `to`. With `pairs` the taps are even in number, for
    /// kernels that load two pixels at a time (only where the source has two).
    fn plan(&mut self, from: usize, to: usize, range: Range<usize>, resize: &Resize, pairs: bool) {
        self.first.clear();
        self.weights.clear();
        self.identity = from == to;
        if self.identity {
            self.source = range;
            return;
        }
        if resize.corner {
            // In f32, as torch has it.
            let scale = from as f32 / to as f32;
            self.first.extend(range.map(|output| ((output as f32 * scale) as usize).min(from - 1) as u32));
            self.one_tap();
            return;
        }
        if resize.interpolation == Interpolation::Nearest {
            // Pillow walks the axis by adding the scale, so that the rounding of the sum decides: walk it likewise.
            let scale = from as f64 / to as f64;
            let mut at = scale * 0.5;
            for output in 0..range.end {
                if output >= range.start {
                    self.first.push((at as usize).min(from - 1) as u32);
                }
                at += scale;
            }
            self.one_tap();
            return;
        }
        let scale = from as f64 / to as f64;
        let filter_scale = if resize.antialias { scale.max(1.0) } else { 1.0 };
        let support = resize.interpolation.support() * filter_scale;
        let cubic_taps = resize.interpolation == Interpolation::Bicubic;
        // PyTorch's align_corners=False: sample at the centre, taps beyond the border repeat its pixel.
        let sample = |output: usize| {
            let at = (output as f64 + 0.5) * scale - 0.5;
            if cubic_taps { at } else { at.max(0.0) }
        };
        let clamp = |x: f64, offset: i64| (x as i64 + offset).clamp(0, from as i64 - 1) as usize;
        let reach = if cubic_taps { -1..3 } else { 0..2 };
        let bounds = |output: usize| {
            if resize.antialias {
                let center = (output as f64 + 0.5) * scale;
                ((center - support + 0.5).max(0.0) as usize, ((center + support + 0.5) as usize).min(from))
            } else {
                let floor = sample(output).floor();
                (clamp(floor, reach.start), clamp(floor, reach.end - 1) + 1)
            }
        };
        // The widest window there is, not the bound that Pillow allocates for, which is up to twice that.
        let most = range.clone().map(bounds).map(|(start, end)| end - start).max().unwrap_or(0);
        self.taps = if pairs { (most + most % 2).min(from) } else { most };
        // Windows move to the right only. Some may be padded with zero weights up to `taps` pixels, which are then
        // part of the source too, so that a kernel need not know what is padding.
        let (begin, end) =
            if range.is_empty() { (0, 0) } else { (bounds(range.start).0, bounds(range.end - 1).1) };
        let end = end.max(begin + self.taps).min(from);
        let begin = begin.min(end - self.taps);
        self.source = begin..end;
        for output in range {
            let (start, end) = bounds(output);
            self.window.clear();
            if resize.antialias {
                let center = (output as f64 + 0.5) * scale;
                let step = 1.0 / filter_scale;
                let mut sum = 0.0;
                for x in start..end {
                    let weight = resize.interpolation.weight((x as f64 - center + 0.5) * step);
                    self.window.push(weight);
                    sum += weight;
                }
                if sum != 0.0 {
                    self.window.iter_mut().for_each(|weight| *weight /= sum);
                }
            } else {
                let floor = sample(output).floor();
                let t = sample(output) - floor;
                self.window.resize(end - start, 0.0);
                for offset in reach.clone() {
                    let distance = t - offset as f64;
                    let weight = if cubic_taps { cubic(distance, -0.75) } else { 1.0 - distance.abs() };
                    self.window[clamp(floor, offset) - start] += weight;
                }
            }
            // Zero weights fill the window up to `taps`, to the right where there are pixels, else to the left.
            let padded = start.min(self.source.end - self.taps);
            self.first.push(padded as u32);
            self.weights.resize(self.weights.len() + (start - padded), 0);
            self.weights.extend(self.window.iter().map(|weight| fixed(*weight)));
            self.weights.resize(self.first.len() * self.taps, 0);
        }
    }

    /// Each output is one source pixel, in order.
    fn one_tap(&mut self) {
        self.taps = 1;
        self.source = match (self.first.first(), self.first.last()) {
            (Some(&first), Some(&last)) => first as usize..last as usize + 1,
            _ => 0..0,
        };
    }

    /// The source pixels that the planned outputs depend on.
    pub(crate) fn source(&self) -> Range<usize> {
        self.source.clone()
    }

    fn bytes(&self) -> usize {
        self.first.capacity() * 4 + self.weights.capacity() * 4 + self.window.capacity() * 8
    }
}

fn fixed(weight: f64) -> i32 {
    let scaled = weight * f64::from(1u32 << PRECISION);
    (if scaled < 0.0 { scaled - 0.5 } else { scaled + 0.5 }) as i32
}

/// A resize of which a rectangle of the result is wanted: both axes, and the pass between them.
#[derive(Default)]
pub(crate) struct Resizer {
    x: Axis,
    y: Axis,
    vertical_first: bool,
    between: Image,
}

impl Resizer {
    /// Plans `out` (in the coordinates of the whole result) of resizing `from`, and says which rectangle of `from`
    /// has to be given to [`Resizer::run`].
    pub(crate) fn plan(&mut self, from: (usize, usize), resize: &Resize, out: Rect) -> Rect {
        self.x.plan(from.0, resize.w, out.x..out.x + out.w, resize, true);
        self.y.plan(from.1, resize.h, out.y..out.y + out.h, resize, false);
        // Decided by the whole resize, never by the part, or a part would differ from the whole.
        let shrinks = |from: usize, to: usize| from as i64 - to as i64;
        let height = shrinks(from.1, resize.h);
        // Without antialiasing torch is the model, which always goes horizontally first.
        self.vertical_first = resize.antialias && height > 0 && height > 2 * shrinks(from.0, resize.w);
        let (x, y) = (self.x.source(), self.y.source());
        Rect { x: x.start, y: y.start, w: x.len(), h: y.len() }
    }

    /// (width, height) of what lies between the two passes of the plan.
    pub(crate) fn between_size(&self, out: Rect) -> (usize, usize) {
        if self.vertical_first { (self.x.source.len(), out.h) } else { (out.w, self.y.source.len()) }
    }

    /// Resizes what was planned. `source` is the rectangle of the source that `plan` named.
    pub(crate) fn run(&mut self, source: View<'_>, resize: &Resize, out: &mut Image) {
        self.run_with(source, resize, out, fastest());
    }

    fn run_with(&mut self, source: View<'_>, resize: &Resize, out: &mut Image, kernels: Kernels) {
        let w = if self.x.identity { source.w } else { self.x.first.len() };
        let h = if self.y.identity { source.h } else { self.y.first.len() };
        let (x0, y0) = (self.x.source.start, self.y.source.start);
        if resize.interpolation == Interpolation::Nearest {
            out.reset(w, h);
            for y in 0..h {
                let from_y = if self.y.identity { y } else { self.y.first[y] as usize - y0 };
                let from = source.row(from_y).as_chunks::<PIXEL>().0;
                let to = out.row_mut(y).as_chunks_mut::<PIXEL>().0;
                if self.x.identity {
                    to.copy_from_slice(from);
                } else {
                    for (pixel, x) in to.iter_mut().zip(&self.x.first) {
                        *pixel = from[*x as usize - x0];
                    }
                }
            }
            return;
        }
        match (self.x.identity, self.y.identity) {
            (true, true) => source.copy_to(out),
            (false, true) => horizontal(source, &self.x, out, kernels),
            (true, false) => vertical(source, &self.y, out, kernels),
            (false, false) if self.vertical_first => {
                vertical(source, &self.y, &mut self.between, kernels);
                horizontal(self.between.view(), &self.x, out, kernels);
            }
            (false, false) => {
                horizontal(source, &self.x, &mut self.between, kernels);
                vertical(self.between.view(), &self.y, out, kernels);
            }
        }
    }

    pub(crate) fn bytes(&self) -> usize {
        self.x.bytes() + self.y.bytes() + self.between.capacity()
    }

    pub(crate) fn shrink(&mut self, bytes: usize) {
        self.between.shrink(bytes);
        for axis in [&mut self.x, &mut self.y] {
            if axis.bytes() > bytes {
                *axis = Axis::default();
            }
        }
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
    if std::arch::is_x86_feature_detected!("avx2") {
        return Kernels::Avx2;
    }
    Kernels::Plain
}

fn horizontal(source: View<'_>, axis: &Axis, out: &mut Image, kernels: Kernels) {
    out.reset(axis.first.len(), source.h);
    let windows =
        Windows { first: &axis.first, offset: axis.source.start, weights: &axis.weights, taps: axis.taps };
    match kernels {
        // Odd only where the source itself has an odd number of pixels and every window covers it.
        #[cfg(target_arch = "x86_64")]
        Kernels::Avx2 if axis.taps.is_multiple_of(2) => avx2::horizontal(source, &windows, out),
        _ => {
            for y in 0..source.h {
                plain_horizontal(source.row(y), &windows, out.row_mut(y));
            }
        }
    }
}

fn vertical(source: View<'_>, axis: &Axis, out: &mut Image, kernels: Kernels) {
    out.reset(source.w, axis.first.len());
    let windows =
        Windows { first: &axis.first, offset: axis.source.start, weights: &axis.weights, taps: axis.taps };
    match kernels {
        #[cfg(target_arch = "x86_64")]
        Kernels::Avx2 if source.w * PIXEL >= avx2::VERTICAL_BYTES => avx2::vertical(source, &windows, out),
        _ => {
            for y in 0..axis.first.len() {
                plain_vertical(source, &windows, y, out.row_mut(y));
            }
        }
    }
}

/// The windows of one pass, over a source that begins at pixel or row `offset` of the axis.
struct Windows<'a> {
    first: &'a [u32],
    offset: usize,
    weights: &'a [i32],
    taps: usize,
}

impl Windows<'_> {
    /// The weights of an output, and where its window begins in the source given.
    fn of(&self, output: usize) -> (usize, &[i32]) {
        let weights = &self.weights[output * self.taps..(output + 1) * self.taps];
        (self.first[output] as usize - self.offset, weights)
    }

    /// Whether every window lies inside `len` source pixels.
    #[cfg(target_arch = "x86_64")]
    fn inside(&self, len: usize) -> bool {
        self.first
            .iter()
            .all(|&first| first as usize >= self.offset && first as usize - self.offset + self.taps <= len)
    }
}

const ROUND: i32 = 1 << (PRECISION - 1);

fn clip(sum: i32) -> u8 {
    (sum >> PRECISION).clamp(0, 255) as u8
}

/// The reference for [`avx2::horizontal`].
fn plain_horizontal(source: &[u8], windows: &Windows<'_>, out: &mut [u8]) {
    let source = source.as_chunks::<PIXEL>().0;
    for (x, pixel) in out.as_chunks_mut::<PIXEL>().0.iter_mut().enumerate() {
        let (start, weights) = windows.of(x);
        let mut sums = [ROUND; PIXEL];
        for (from, weight) in source[start..].iter().zip(weights) {
            for (sum, value) in sums.iter_mut().zip(from) {
                *sum += i32::from(*value) * weight;
            }
        }
        *pixel = sums.map(clip);
    }
}

/// The reference for [`avx2::vertical`].
fn plain_vertical(source: View<'_>, windows: &Windows<'_>, y: usize, out: &mut [u8]) {
    let (start, weights) = windows.of(y);
    for (x, pixel) in out.as_chunks_mut::<PIXEL>().0.iter_mut().enumerate() {
        let mut sums = [ROUND; PIXEL];
        for (row, weight) in (start..source.h).zip(weights) {
            for (sum, value) in sums.iter_mut().zip(source.pixel(x, row)) {
                *sum += i32::from(value) * weight;
            }
        }
        *pixel = sums.map(clip);
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    pub(crate) fn noise(w: usize, h: usize, seed: u64) -> Image {
        let mut image = Image::default();
        image.reset(w, h);
        let mut draws = crate::random::Draws::new(crate::SampleKey { seed, epoch: 0, position: 0 }, 0);
        for pixel in image.pixels_mut() {
            *pixel = (draws.next_u64() as u32).to_le_bytes();
        }
        image
    }

    const ALL: [Interpolation; 6] = [
        Interpolation::Nearest,
        Interpolation::Bilinear,
        Interpolation::Bicubic,
        Interpolation::Lanczos,
        Interpolation::Box,
        Interpolation::Hamming,
    ];

    fn run(image: &Image, resize: &Resize, out: Rect, kernels: Kernels) -> Vec<[u8; 4]> {
        let mut resizer = Resizer::default();
        let needed = resizer.plan(image.size(), resize, out);
        let mut result = Image::default();
        resizer.run_with(image.view().crop(needed), resize, &mut result, kernels);
        assert_eq!(result.size(), (out.w, out.h));
        result.pixels().to_vec()
    }

    proptest! {
        #[test]
        fn a_part_is_bit_identical_to_that_part_of_the_whole_in_every_kernel(
            w in 1usize..90, h in 1usize..70, to_w in 1usize..90, to_h in 1usize..70,
            filter in 0usize..6, antialias: bool, seed: u64, cut in any::<[u16; 4]>(),
        ) {
            let interpolation = ALL[filter];
            let antialias =
                antialias || !matches!(interpolation, Interpolation::Bilinear | Interpolation::Bicubic);
            let resize = Resize { w: to_w, h: to_h, interpolation, antialias, corner: false };
            let image = noise(w, h, seed);
            let whole = run(&image, &resize, Rect::sized(to_w, to_h), Kernels::Plain);
            prop_assert_eq!(&run(&image, &resize, Rect::sized(to_w, to_h), fastest()), &whole);
            let x = usize::from(cut[0]) % to_w;
            let y = usize::from(cut[1]) % to_h;
            let out = Rect { x, y, w: 1 + usize::from(cut[2]) % (to_w - x), h: 1 + usize::from(cut[3]) % (to_h - y) };
            let expected: Vec<_> =
                (y..y + out.h).flat_map(|y| whole[y * to_w + x..y * to_w + x + out.w].to_vec()).collect();
            for kernels in [Kernels::Plain, fastest()] {
                prop_assert_eq!(&run(&image, &resize, out, kernels), &expected);
            }
        }
    }

    /// Values printed by torchvision 0.29's `resize` of a `tv_tensors.Mask`; on 700 masks of random sizes no pixel
    /// differed.
    #[test]
    fn a_mask_takes_the_pixels_that_torchvision_takes() {
        for (from, to, expected) in [
            (5, 3, &[0, 1, 3][..]),
            (3, 5, &[0, 0, 1, 1, 2]),
            (7, 4, &[0, 1, 3, 5]),
            (10, 7, &[0, 1, 2, 4, 5, 7, 8]),
        ] {
            let mut image = Image::default();
            image.reset(from, 1);
            image.pixels_mut().iter_mut().enumerate().for_each(|(x, pixel)| *pixel = [x as u8; 4]);
            let (w, h, antialias) = (to, 1, true);
            let of_image = Resize { w, h, interpolation: Interpolation::Bilinear, antialias, corner: false };
            let found = run(&image, &of_image.like_mask(), Rect::sized(w, h), fastest());
            assert_eq!(found.iter().map(|pixel| pixel[0]).collect::<Vec<_>>(), expected);
        }
    }

    #[test]
    fn a_flat_image_stays_flat() {
        for interpolation in ALL {
            let mut image = Image::default();
            image.reset(37, 23);
            image.pixels_mut().fill([255, 128, 1, 9]);
            for (w, h) in [(5, 4), (90, 70), (37, 10), (1, 1)] {
                let resize = Resize { w, h, interpolation, antialias: true, corner: false };
                for pixel in run(&image, &resize, Rect::sized(w, h), fastest()) {
                    assert_eq!(pixel, [255, 128, 1, 9], "{interpolation:?} {w} x {h}");
                }
            }
        }
    }
}
