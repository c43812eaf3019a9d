//! Images drawn through a map of the plane, as Pillow's `Image.transform` does it.
//!
//! A [`Map`] says where each point of the result comes from. Pixels are squares: the middle of the first one is at
//! (0.5, 0.5).

use crate::geometry::{Image, PIXEL, View};

type Pixel = [u8; PIXEL];

/// A projective map of points: x' = (a x + b y + c) / (g x + h y + 1), y' = (d x + e y + f) / (g x + h y + 1), with
/// the numbers from a to h.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Map(pub [f64; 8]);

impl Map {
    pub(crate) const IDENTITY: Map = Map([1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0]);

    pub(crate) fn affine([a, b, c, d, e, f]: [f64; 6]) -> Self {
        Map([a, b, c, d, e, f, 0.0, 0.0])
    }

    /// The map the other way round: where a point of the source goes. `None` where the plane becomes a line.
    pub(crate) fn inverse(&self) -> Option<Self> {
        let [a, b, c, d, e, f, g, h] = self.0;
        // The cofactors of the 3 x 3 matrix whose last number is 1.
        let inverse = [
            e - f * h,
            c * h - b,
            b * f - c * e,
            f * g - d,
            a - c * g,
            c * d - a * f,
            d * h - e * g,
            b * g - a * h,
        ];
        let last = a * e - b * d;
        let map = Map(inverse.map(|number| number / last));
        map.0.iter().all(|number| number.is_finite()).then_some(map)
    }

    fn is_affine(&self) -> bool {
        self.0[6..] == [0.0, 0.0]
    }

    /// Where the point (x, y) of the result comes from.
    pub(crate) fn at(&self, x: f64, y: f64) -> (f64, f64) {
        let [a, b, c, d, e, f, g, h] = self.0;
        let (x_of, y_of) = (a * x + b * y + c, d * x + e * y + f);
        if self.is_affine() {
            return (x_of, y_of);
        }
        let w = g * x + h * y + 1.0;
        (x_of / w, y_of / w)
    }
}

/// How a pixel is made of those around the point that it comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Filter {
    Nearest,
    Bilinear,
    Bicubic,
}

/// How an image is drawn through a map: the filter, and the colour of what comes from outside.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Look {
    pub filter: Filter,
    pub fill: Pixel,
}

impl Look {
    /// Writes `source`, drawn through `map`, into `out`, an image of `(w, h)`.
    pub(crate) fn draw(&self, source: View<'_>, map: &Map, (w, h): (usize, usize), out: &mut Image) {
        out.reset(w, h);
        out.pixels_mut().fill(self.fill);
        match self.filter {
            Filter::Nearest if map.is_affine() => nearest_affine(source, map, out),
            Filter::Nearest => {
                each(map, out, |x, y| inside(source, x, y).then(|| source.pixel(x as usize, y as usize)))
            }
            Filter::Bilinear => each(map, out, |x, y| inside(source, x, y).then(|| bilinear(source, x, y))),
            Filter::Bicubic => each(map, out, |x, y| inside(source, x, y).then(|| bicubic(source, x, y))),
        }
    }
}

fn each(map: &Map, out: &mut Image, pixel_at: impl Fn(f64, f64) -> Option<Pixel>) {
    let (_, h) = out.size();
    for y in 0..h {
        for (x, pixel) in (0i32..).zip(out.row_mut(y).as_chunks_mut::<PIXEL>().0) {
            let (from_x, from_y) = map.at(f64::from(x) + 0.5, y as f64 + 0.5);
            if let Some(value) = pixel_at(from_x, from_y) {
                *pixel = value;
            }
        }
    }
}

/// False for what is not a number, too.
fn inside(source: View<'_>, x: f64, y: f64) -> bool {
    x >= 0.0 && y >= 0.0 && x < source.w as f64 && y < source.h as f64
}

/// Pillow has three ways, which differ in how the steps from pixel to pixel are rounded.
fn nearest_affine(source: View<'_>, map: &Map, out: &mut Image) {
    let [a, b, _, d, e, ..] = map.0;
    if b == 0.0 && d == 0.0 {
        return nearest_scaled(source, map, out);
    }
    let (w, h) = out.size();
    let corners = [(0.0, 0.0), (w as f64, h as f64), (0.0, h as f64), (w as f64, 0.0)];
    let fits = corners.iter().all(|&(x, y)| {
        let (x, y) = map.at(x, y);
        x.abs() < 32768.0 && y.abs() < 32768.0
    });
    let (x0, y0) = (map.0[2] + a * 0.5 + b * 0.5, map.0[5] + d * 0.5 + e * 0.5);
    if fits {
        // Pillow steps through the source in 16.16 fixed point, so that the rounding of the steps shows.
        let fix = |v: f64| (v * 65536.0 + 0.5).floor() as i32;
        let (a, b, d, e) = (fix(a), fix(b), fix(d), fix(e));
        let (mut row_x, mut row_y) = (fix(x0), fix(y0));
        for y in 0..h {
            let (mut x, mut y_) = (row_x, row_y);
            for pixel in out.row_mut(y).as_chunks_mut::<PIXEL>().0 {
                let (from_x, from_y) = ((x >> 16) as usize, (y_ >> 16) as usize);
                // A negative coordinate is a huge one here.
                if from_x < source.w && from_y < source.h {
                    *pixel = source.pixel(from_x, from_y);
                }
                x = x.wrapping_add(a);
                y_ = y_.wrapping_add(d);
            }
            row_x = row_x.wrapping_add(b);
            row_y = row_y.wrapping_add(e);
        }
        return;
    }
    let (mut row_x, mut row_y) = (x0, y0);
    for y in 0..h {
        let (mut x, mut y_) = (row_x, row_y);
        for pixel in out.row_mut(y).as_chunks_mut::<PIXEL>().0 {
            if inside(source, x, y_) {
                *pixel = source.pixel(x as usize, y_ as usize);
            }
            x += a;
            y_ += d;
        }
        row_x += b;
        row_y += e;
    }
}

/// Columns stay columns and rows stay rows.
fn nearest_scaled(source: View<'_>, map: &Map, out: &mut Image) {
    let [a, _, c, _, e, f, ..] = map.0;
    let (w, h) = out.size();
    let place = |at: f64, len: usize| (at >= 0.0 && at < len as f64).then_some(at as usize);
    // Added up, as Pillow does, rather than multiplied.
    let mut at = c + a * 0.5;
    let columns: Vec<(usize, usize)> = (0..w)
        .filter_map(|x| {
            let from = place(at, source.w);
            at += a;
            Some((x, from?))
        })
        .collect();
    let mut at = f + e * 0.5;
    for y in 0..h {
        if let Some(from_y) = place(at, source.h) {
            let from = source.row(from_y).as_chunks::<PIXEL>().0;
            let row = out.row_mut(y).as_chunks_mut::<PIXEL>().0;
            for &(x, from_x) in &columns {
                row[x] = from[from_x];
            }
        }
        at += e;
    }
}

/// The whole number below `at`, and what is above it, for -1 < `at` < 2^31: without `floor`, which is a call on the
/// processors that we build for.
fn split(at: f64) -> (isize, f64) {
    let cut = at as i32;
    let below = cut - i32::from(f64::from(cut) > at);
    (below as isize, at - f64::from(below))
}

/// `N` neighbours along a row or in a column, from `first` on; beyond the border it is repeated.
fn neighbours<const N: usize>(first: isize, len: usize) -> [usize; N] {
    std::array::from_fn(|n| (first + n as isize).clamp(0, len as isize - 1) as usize)
}

/// `N` pixels of a row, side by side where the border is far.
fn pixels<const N: usize>(row: &[Pixel], first: isize) -> [Pixel; N] {
    let side_by_side = usize::try_from(first).ok().and_then(|first| row.get(first..)?.first_chunk());
    side_by_side.copied().unwrap_or_else(|| neighbours(first, row.len()).map(|x| row[x]))
}

/// `of` for each channel. Differences of levels are whole numbers there, and so exact, with fewer conversions; the
/// fourth byte of a pixel is not computed, which costs a quarter of the time.
fn three<T>(of: impl FnMut(usize) -> T) -> [T; 3] {
    std::array::from_fn(of)
}

fn bilinear(source: View<'_>, x: f64, y: f64) -> Pixel {
    let ((left, dx), (top, dy)) = (split(x - 0.5), split(y - 0.5));
    let across = neighbours::<2>(top, source.h).map(|y| {
        let [a, b] = pixels(source.row(y).as_chunks().0, left).map(|pixel: Pixel| pixel.map(i32::from));
        three(|i| f64::from(a[i]) + f64::from(b[i] - a[i]) * dx)
    });
    let [top, bottom] = across;
    // Cut off, not rounded, as Pillow does here.
    let [r, g, b] = three(|i| (top[i] + (bottom[i] - top[i]) * dy) as i32 as u8);
    [r, g, b, 255]
}

fn bicubic(source: View<'_>, x: f64, y: f64) -> Pixel {
    let ((left, dx), (top, dy)) = (split(x - 0.5), split(y - 0.5));
    let across = neighbours::<4>(top - 1, source.h).map(|y| {
        let [v1, v2, v3, v4] =
            pixels(source.row(y).as_chunks().0, left - 1).map(|pixel: Pixel| pixel.map(i32::from));
        let p2 = three(|i| f64::from(v3[i] - v1[i]));
        let p3 = three(|i| f64::from(2 * (v1[i] - v2[i]) + v3[i] - v4[i]));
        let p4 = three(|i| f64::from(v2[i] - v1[i] - v3[i] + v4[i]));
        three(|i| f64::from(v2[i]) + dx * (p2[i] + dx * (p3[i] + dx * p4[i])))
    });
    let [v1, v2, v3, v4] = across;
    let sums = three(|i| {
        let p2 = -v1[i] + v3[i];
        let p3 = 2.0 * (v1[i] - v2[i]) + v3[i] - v4[i];
        let p4 = -v1[i] + v2[i] - v3[i] + v4[i];
        v2[i] + dy * (p2 + dy * (p3 + dy * p4))
    });
    let [r, g, b] = sums.map(|sum| sum.clamp(0.0, 255.0) as i32 as u8);
    [r, g, b, 255]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drawn(look: Look, map: Map, size: (usize, usize)) -> Vec<u8> {
        let mut image = Image::default();
        image.reset(4, 3);
        for (i, pixel) in image.pixels_mut().iter_mut().enumerate() {
            *pixel = [i as u8 * 10; 4];
        }
        let mut out = Image::default();
        look.draw(image.view(), &map, size, &mut out);
        out.pixels().iter().map(|pixel| pixel[0]).collect()
    }

    const FILTERS: [Filter; 3] = [Filter::Nearest, Filter::Bilinear, Filter::Bicubic];

    #[test]
    fn the_map_that_changes_nothing_changes_nothing_with_any_filter() {
        let same: Vec<u8> = (0..12).map(|i| i * 10).collect();
        // The second is no affine map by its numbers, and takes the other way.
        for map in [Map::IDENTITY, Map([1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 1e-18])] {
            for filter in FILTERS {
                assert_eq!(drawn(Look { filter, fill: [9; 4] }, map, (4, 3)), same, "{filter:?}");
            }
        }
    }

    #[test]
    fn a_map_and_its_inverse_bring_every_point_back() {
        let maps = [
            Map::IDENTITY,
            Map::affine([0.8, -0.3, 4.0, 0.2, 1.1, -9.0]),
            Map([0.9, 0.1, 3.0, -0.2, 1.2, 5.0, 1e-3, -2e-3]),
        ];
        for map in maps {
            let back = map.inverse().unwrap();
            for (x, y) in [(0.0, 0.0), (100.0, 3.0), (20.0, 77.0)] {
                let (from_x, from_y) = map.at(x, y);
                let (again_x, again_y) = back.at(from_x, from_y);
                assert!(
                    (again_x - x).abs() < 1e-9 && (again_y - y).abs() < 1e-9,
                    "{map:?}: {again_x} {again_y}"
                );
            }
        }
        assert_eq!(Map::affine([1.0, 2.0, 0.0, 2.0, 4.0, 0.0]).inverse(), None);
    }

    #[test]
    fn what_comes_from_outside_has_the_colour_of_the_fill() {
        let right = Map::affine([1.0, 0.0, -2.0, 0.0, 1.0, 0.0]);
        let slanted = Map::affine([1.0, 1e-9, -2.0, 0.0, 1.0, 0.0]);
        for (map, filter) in [(right, Filter::Nearest), (slanted, Filter::Nearest), (right, Filter::Bilinear)]
        {
            let row = &drawn(Look { filter, fill: [7; 4] }, map, (4, 3))[..4];
            assert_eq!(row, [7, 7, 0, 10], "{map:?} {filter:?}");
        }
        for filter in FILTERS {
            let nowhere = Map([f64::NAN; 8]);
            assert_eq!(drawn(Look { filter, fill: [7; 4] }, nowhere, (2, 1)), [7, 7]);
        }
    }
}
