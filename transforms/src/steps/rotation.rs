//! Rotation, as Pillow's `Image.rotate` does it.

use serde::{Deserialize, Serialize};

use super::arguments::{At, Numbers};
use super::pad::VOID;
use super::{State, Step, Transform};
use crate::error::{ConfigError, SampleError};
use crate::geometry::{Image, PIXEL, Symmetry, View};
use crate::limits::Limits;
use crate::plan::Picture;
use crate::random::Draws;
use crate::resize::Interpolation;

/// Rotates by a random angle, counter-clockwise for positive ones.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RandomRotation {
    /// [least, most] in degrees, or one number d for [-d, d].
    pub degrees: Numbers,
    /// `nearest` or `bilinear`.
    #[serde(default = "nearest_pixel")]
    pub interpolation: Interpolation,
    /// Grows the image so that all of it stays visible; the size then depends on the angle, and a crop or resize
    /// has to follow. `center` is ignored, as torchvision does.
    #[serde(default)]
    pub expand: bool,
    /// [x, y] of the point that stays; the middle where absent.
    #[serde(default)]
    pub center: Option<[f64; 2]>,
    /// Colour of the corners: one number or one a channel.
    #[serde(default)]
    pub fill: Numbers,
}

fn nearest_pixel() -> Interpolation {
    Interpolation::Nearest
}

#[derive(Clone, Debug)]
struct Turn {
    degrees: [f64; 2],
    rotation: Rotation,
}

impl Transform for RandomRotation {
    fn step(&self, at: &At, state: &mut State) -> Result<Option<Box<dyn Step>>, ConfigError> {
        let &RandomRotation { interpolation, expand, center, .. } = self;
        at.check(matches!(interpolation, Interpolation::Nearest | Interpolation::Bilinear), || {
            "interpolation must be nearest or bilinear".to_owned()
        })?;
        let range = match self.degrees.0[..] {
            [d] => {
                at.check(d >= 0.0, || format!("degrees as a single number must not be negative, not {d}"))?;
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
        if expand && degrees != [0.0, 0.0] {
            state.size = None;
            state.culprit = Some(format!("{} with expand grows the image with the angle", at.text()));
        }
        let fill = at.levels("fill", &self.fill, state.channels)?;
        if degrees == [0.0, 0.0] {
            return Ok(None);
        }
        let bilinear = interpolation == Interpolation::Bilinear;
        Ok(Some(Box::new(Turn { degrees, rotation: Rotation { bilinear, expand, center, fill } })))
    }
}

impl Step for Turn {
    fn apply(&self, picture: &mut Picture<'_>, draws: &mut Draws, _: &Limits) -> Result<(), SampleError> {
        let degrees = draws.range(self.degrees[0], self.degrees[1]);
        let (before, size) = (picture.size(), self.rotation.size(picture.size(), degrees));
        let forward = self.rotation.affine(before, degrees).0.inverse();
        picture.carry(size, |[x, y]| forward.at(x, y).into());
        picture.replace("the rotated image", size, |image, out| self.rotation.apply(image, degrees, out))
    }

    /// By the image's own map, so that the two lie on each other.
    fn like_mask(&self) -> Option<Box<dyn Step>> {
        let rotation = Rotation { bilinear: false, fill: VOID, ..self.rotation };
        Some(Box::new(Turn { rotation, ..*self }))
    }

    fn keeps_rectangles(&self) -> bool {
        false
    }
}

/// A rotation by one angle, as Pillow's `Image.rotate` does it.
#[derive(Clone, Debug, PartialEq)]
struct Rotation {
    bilinear: bool,
    expand: bool,
    center: Option<[f64; 2]>,
    fill: [u8; PIXEL],
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

    /// The map from the source to the result. A rotation's determinant is never 0.
    fn inverse(&self) -> Affine {
        let [a, b, c, d, e, f] = self.0;
        let by = a * e - b * d;
        Affine([e, -b, b * f - c * e, -d, a, c * d - a * f].map(|value| value / by))
    }
}

impl Rotation {
    /// The size of the result, which an expanding rotation computes from the angle.
    fn size(&self, size: (usize, usize), degrees: f64) -> (usize, usize) {
        match self.right_angle(size, degrees) {
            Some(symmetry) => symmetry.size(size),
            None => self.affine(size, degrees).1,
        }
    }

    /// Rotates `source` by `degrees` into `out`.
    fn apply(&self, source: View<'_>, degrees: f64, out: &mut Image) {
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

#[cfg(test)]
mod tests {
    use super::*;

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
