//! Rotation, as Pillow's `Image.rotate` does it.

use serde::{Deserialize, Serialize};

use super::arguments::{At, Numbers};
use super::pad::MASK;
use super::{State, Step, Transform};
use crate::error::{ConfigError, SampleError};
use crate::geometry::{Image, Symmetry, View};
use crate::limits::Limits;
use crate::plan::Picture;
use crate::random::Draws;
use crate::resize::Interpolation;
use crate::warp::{Look, Map};

/// Rotates by a random angle, counter-clockwise for positive ones.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RandomRotation {
    /// [least, most] in degrees, or one number d for [-d, d].
    pub degrees: Numbers,
    /// `nearest`, `bilinear` or `bicubic`.
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

pub(super) fn nearest_pixel() -> Interpolation {
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
        let degrees = at.angles("degrees", &self.degrees.0)?;
        at.center(center)?;
        if expand && degrees != [0.0, 0.0] {
            state.size = None;
            state.culprit = Some(format!("{} with expand grows the image with the angle", at.text()));
        }
        let look = at.look(interpolation, &self.fill, state.channels)?;
        if degrees == [0.0, 0.0] {
            return Ok(None);
        }
        Ok(Some(Box::new(Turn { degrees, rotation: Rotation { look, expand, center } })))
    }
}

impl Step for Turn {
    fn apply(&self, picture: &mut Picture<'_>, draws: &mut Draws, _: &Limits) -> Result<(), SampleError> {
        self.rotation.turn(picture, draws.range(self.degrees[0], self.degrees[1]))
    }

    /// By the image's own map, so that the two lie on each other.
    fn like_mask(&self) -> Option<Box<dyn Step>> {
        let rotation = Rotation { look: MASK, ..self.rotation };
        Some(Box::new(Turn { rotation, ..*self }))
    }

    fn keeps_rectangles(&self) -> bool {
        false
    }
}

/// A rotation by one angle, as Pillow's `Image.rotate` does it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Rotation {
    pub look: Look,
    pub expand: bool,
    pub center: Option<[f64; 2]>,
}

/// Python's `round(x, 15)`, which Pillow applies so that right angles have exact sines.
fn round_15(x: f64) -> f64 {
    // Formatting rounds correctly in decimal, which arithmetic would not.
    format!("{x:.15}").parse().unwrap_or(x)
}

impl Rotation {
    pub(super) fn turn(&self, picture: &mut Picture<'_>, degrees: f64) -> Result<(), SampleError> {
        let (before, size) = (picture.size(), self.size(picture.size(), degrees));
        picture.follow(&self.map(before, degrees).0, size);
        picture.replace("the rotated image", size, |image, out| self.apply(image, degrees, out))
    }

    /// The size of the result, which an expanding rotation computes from the angle.
    fn size(&self, size: (usize, usize), degrees: f64) -> (usize, usize) {
        match self.right_angle(size, degrees) {
            Some(symmetry) => symmetry.size(size),
            None => self.map(size, degrees).1,
        }
    }

    /// Rotates `source` by `degrees` into `out`.
    fn apply(&self, source: View<'_>, degrees: f64, out: &mut Image) {
        if let Some(symmetry) = self.right_angle((source.w, source.h), degrees) {
            symmetry.apply(source, out);
            return;
        }
        let (map, size) = self.map((source.w, source.h), degrees);
        self.look.draw(source, &map, size, out);
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

    /// Where pixels come from, and the size of the result.
    fn map(&self, (w, h): (usize, usize), degrees: f64) -> (Map, (usize, usize)) {
        let (fw, fh) = (w as f64, h as f64);
        // torchvision ignores the centre where the image is expanded.
        let [cx, cy] = self.center.filter(|_| !self.expand).unwrap_or([fw / 2.0, fh / 2.0]);
        let angle = -degrees.rem_euclid(360.0).to_radians();
        let (sin, cos) = (round_15(angle.sin()), round_15(angle.cos()));
        let mut map = Map::affine([cos, sin, 0.0, round_15(-angle.sin()), cos, 0.0]);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::warp::Filter;

    #[test]
    fn right_angles_are_exact_and_turn_counter_clockwise() {
        let mut image = Image::default();
        image.reset(3, 2);
        for (i, pixel) in image.pixels_mut().iter_mut().enumerate() {
            *pixel = [i as u8; 4];
        }
        let look = Look { filter: Filter::Nearest, fill: [0; 4] };
        let rotation = Rotation { look, expand: true, center: None };
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
