//! Rotation and padding: the geometry steps that need the pixels at hand.

use crate::config::{PaddingMode, Sides};
use crate::geometry::{Image, PIXEL, Symmetry, View};

/// A rotation by one angle, as Pillow's `Image.rotate` does it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Rotation {
    pub bilinear: bool,
    pub expand: bool,
    pub center: Option<[f64; 2]>,
    pub fill: [u8; PIXEL],
}

/// Python's `round(x, 15)`, which Pillow applies so that right angles have exact sines.
fn round_15(x: f64) -> f64 {
    // Formatting rounds correctly in decimal, which arithmetic would not.
    format!("{x:.15}").parse().unwrap_or(x)
}

/// The map from a pixel of the result to the source: x' = a x + b y + c, y' = d x + e y + f.
struct Affine([f64; 6]);

impl Affine {
    fn at(&self, x: f64, y: f64) -> (f64, f64) {
        let [a, b, c, d, e, f] = self.0;
        (a * x + b * y + c, d * x + e * y + f)
    }
}

impl Rotation {
    /// The size of the result, which an expanding rotation computes from the angle.
    pub(crate) fn size(&self, size: (usize, usize), degrees: f64) -> (usize, usize) {
        match self.right_angle(size, degrees) {
            Some(symmetry) => symmetry.size(size),
            None => self.affine(size, degrees).1,
        }
    }

    /// Rotates `source` by `degrees` into `out`.
    pub(crate) fn apply(&self, source: View<'_>, degrees: f64, out: &mut Image) {
        if let Some(symmetry) = self.right_angle((source.w, source.h), degrees) {
            symmetry.apply(source, out);
            return;
        }
        let (map, (w, h)) = self.affine((source.w, source.h), degrees);
        out.reset(w, h);
        out.pixels_mut().fill(self.fill);
        if self.bilinear {
            for y in 0..h {
                for (x, pixel) in out.row_mut(y).as_chunks_mut::<PIXEL>().0.iter_mut().enumerate() {
                    let (from_x, from_y) = map.at(x as f64 + 0.5, y as f64 + 0.5);
                    if let Some(value) = bilinear(source, from_x, from_y) {
                        *pixel = value;
                    }
                }
            }
        } else {
            nearest(source, &map, out);
        }
    }

    /// Pillow transposes instead where the result is the same.
    fn right_angle(&self, (w, h): (usize, usize), degrees: f64) -> Option<Symmetry> {
        if self.center.is_some() && !self.expand {
            return None;
        }
        let degrees = degrees.rem_euclid(360.0);
        let quarter = self.expand || w == h;
        if degrees == 0.0 {
            Some(Symmetry::IDENTITY)
        } else if degrees == 180.0 {
            Some(Symmetry { transpose: false, flip_x: true, flip_y: true })
        } else if degrees == 90.0 && quarter {
            Some(Symmetry { transpose: true, flip_x: false, flip_y: true })
        } else if degrees == 270.0 && quarter {
            Some(Symmetry { transpose: true, flip_x: true, flip_y: false })
        } else {
            None
        }
    }

    fn affine(&self, (w, h): (usize, usize), degrees: f64) -> (Affine, (usize, usize)) {
        let (fw, fh) = (w as f64, h as f64);
        // torchvision ignores the centre where the image is expanded.
        let [cx, cy] = self.center.filter(|_| !self.expand).unwrap_or([fw / 2.0, fh / 2.0]);
        let angle = -degrees.rem_euclid(360.0).to_radians();
        let (sin, cos) = (round_15(angle.sin()), round_15(angle.cos()));
        let mut map = Affine([cos, sin, 0.0, round_15(-angle.sin()), cos, 0.0]);
        let (c, f) = map.at(-cx, -cy);
        map.0[2] = c + cx;
        map.0[5] = f + cy;
        if !self.expand {
            return (map, (w, h));
        }
        let corners = [(0.0, 0.0), (fw, 0.0), (fw, fh), (0.0, fh)].map(|(x, y)| map.at(x, y));
        let extent = |values: [f64; 4]| {
            let high = values.iter().fold(f64::NEG_INFINITY, |a, b| a.max(*b)).ceil();
            high - values.iter().fold(f64::INFINITY, |a, b| a.min(*b)).floor()
        };
        let (nw, nh) = (extent(corners.map(|(x, _)| x)), extent(corners.map(|(_, y)| y)));
        let (c, f) = map.at(-(nw - fw) / 2.0, -(nh - fh) / 2.0);
        map.0[2] = c;
        map.0[5] = f;
        (map, (nw as usize, nh as usize))
    }
}

fn nearest(source: View<'_>, map: &Affine, out: &mut Image) {
    let [a, b, _, d, e, _] = map.0;
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
            if x >= 0.0 && y_ >= 0.0 && (x as usize) < source.w && (y_ as usize) < source.h {
                *pixel = source.pixel(x as usize, y_ as usize);
            }
            x += a;
            y_ += d;
        }
        row_x += b;
        row_y += e;
    }
}

fn bilinear(source: View<'_>, x: f64, y: f64) -> Option<[u8; PIXEL]> {
    if x < 0.0 || y < 0.0 || x >= source.w as f64 || y >= source.h as f64 {
        return None;
    }
    let (x, y) = (x - 0.5, y - 0.5);
    let (floor_x, floor_y) = (x.floor(), y.floor());
    let (dx, dy) = (x - floor_x, y - floor_y);
    // Half a pixel around the border repeats it.
    let clamp = |v: f64, len: usize| v.clamp(0.0, (len - 1) as f64) as usize;
    let (x0, x1) = (clamp(floor_x, source.w), clamp(floor_x + 1.0, source.w));
    let (y0, y1) = (clamp(floor_y, source.h), clamp(floor_y + 1.0, source.h));
    let (a, b) = (source.pixel(x0, y0), source.pixel(x1, y0));
    let (c, d) = (source.pixel(x0, y1), source.pixel(x1, y1));
    Some(std::array::from_fn(|i| {
        let mix = |from: f64, to: f64, by: f64| from + (to - from) * by;
        let top = mix(a[i].into(), b[i].into(), dx);
        let bottom = mix(c[i].into(), d[i].into(), dx);
        // Cut off, not rounded, as Pillow does here.
        mix(top, bottom, dy) as u8
    }))
}

/// Writes `source` with a border into `out`. For the mirroring modes a border may be wider than the image, which is
/// then mirrored again and again.
pub(crate) fn pad(source: View<'_>, sides: Sides, mode: PaddingMode, fill: [u8; PIXEL], out: &mut Image) {
    let (left, top) = (sides.left as usize, sides.top as usize);
    let (w, h) = (source.w + left + sides.right as usize, source.h + top + sides.bottom as usize);
    out.reset(w, h);
    for y in 0..h {
        let row = out.row_mut(y).as_chunks_mut::<PIXEL>().0;
        let inner = (top..top + source.h).contains(&y);
        if mode == PaddingMode::Constant && !inner {
            row.fill(fill);
            continue;
        }
        let from = source.row(place(y as isize - top as isize, source.h, mode)).as_chunks::<PIXEL>().0;
        row[left..left + source.w].copy_from_slice(from);
        for x in (0..left).chain(left + source.w..w) {
            row[x] = match mode {
                PaddingMode::Constant => fill,
                _ => from[place(x as isize - left as isize, source.w, mode)],
            };
        }
    }
}

/// Which pixel of a line of `len` stands at `at`, as numpy's `pad` has it.
fn place(at: isize, len: usize, mode: PaddingMode) -> usize {
    let len = len as isize;
    (match mode {
        PaddingMode::Constant | PaddingMode::Edge => at.clamp(0, len - 1),
        PaddingMode::Reflect if len == 1 => 0,
        PaddingMode::Reflect => {
            let at = at.rem_euclid(2 * (len - 1));
            if at < len { at } else { 2 * (len - 1) - at }
        }
        PaddingMode::Symmetric => {
            let at = at.rem_euclid(2 * len);
            if at < len { at } else { 2 * len - 1 - at }
        }
    }) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(mode: PaddingMode, len: usize, side: u32) -> Vec<u8> {
        let mut image = Image::default();
        image.reset(len, 1);
        for (x, pixel) in image.pixels_mut().iter_mut().enumerate() {
            *pixel = [x as u8 + 1; 4];
        }
        let mut out = Image::default();
        pad(image.view(), Sides { left: side, top: 0, right: side, bottom: 0 }, mode, [9; 4], &mut out);
        out.pixels().iter().map(|pixel| pixel[0]).collect()
    }

    #[test]
    fn the_examples_of_torchvisions_documentation() {
        assert_eq!(line(PaddingMode::Constant, 4, 2), [9, 9, 1, 2, 3, 4, 9, 9]);
        assert_eq!(line(PaddingMode::Edge, 4, 2), [1, 1, 1, 2, 3, 4, 4, 4]);
        assert_eq!(line(PaddingMode::Reflect, 4, 2), [3, 2, 1, 2, 3, 4, 3, 2]);
        assert_eq!(line(PaddingMode::Symmetric, 4, 2), [2, 1, 1, 2, 3, 4, 4, 3]);
        assert_eq!(line(PaddingMode::Reflect, 1, 2), [1, 1, 1, 1, 1]);
        assert_eq!(line(PaddingMode::Symmetric, 2, 3), [2, 2, 1, 1, 2, 2, 1, 1]);
    }

    #[test]
    fn right_angles_are_exact_and_turn_counter_clockwise() {
        let mut image = Image::default();
        image.reset(3, 2);
        for (i, pixel) in image.pixels_mut().iter_mut().enumerate() {
            *pixel = [i as u8; 4];
        }
        let rotation = Rotation { bilinear: false, expand: true, center: None, fill: [0; 4] };
        let mut out = Image::default();
        let mut turned = |degrees| {
            rotation.apply(image.view(), degrees, &mut out);
            assert_eq!(out.size(), rotation.size((3, 2), degrees));
            out.pixels().iter().map(|pixel| pixel[0]).collect::<Vec<_>>()
        };
        assert_eq!(turned(0.0), [0, 1, 2, 3, 4, 5]);
        assert_eq!(turned(90.0), [2, 5, 1, 4, 0, 3]);
        assert_eq!(turned(180.0), [5, 4, 3, 2, 1, 0]);
        assert_eq!(turned(-90.0), [3, 0, 4, 1, 5, 2]);
    }
}
