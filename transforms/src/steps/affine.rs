//! `RandomAffine`: rotation, translation, scale and shear in one map.

use serde::{Deserialize, Serialize};

use super::arguments::{At, Numbers};
use super::pad::MASK;
use super::rotation::nearest_pixel;
use super::{State, Step, Transform};
use crate::error::{ConfigError, SampleError};
use crate::limits::Limits;
use crate::plan::Picture;
use crate::random::Draws;
use crate::resize::Interpolation;
use crate::warp::{Look, Map};

/// Rotates, moves, scales and shears by random amounts; the size stays, and the middle too without `translate`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RandomAffine {
    /// Rotation: [least, most] in degrees, or one number d for [-d, d]; positive is clockwise, as in torchvision.
    pub degrees: Numbers,
    /// The most that the image is moved, as shares of its width and height.
    #[serde(default)]
    pub translate: Option<[f64; 2]>,
    /// Bounds of the scale.
    #[serde(default)]
    pub scale: Option<[f64; 2]>,
    /// Shear in degrees: along x one number s for [-s, s] or [least, most], or [least, most] along x and then along y.
    #[serde(default)]
    pub shear: Option<Numbers>,
    /// `nearest`, `bilinear` or `bicubic`.
    #[serde(default = "nearest_pixel")]
    pub interpolation: Interpolation,
    /// Colour of what comes from outside: one number or one a channel.
    #[serde(default)]
    pub fill: Numbers,
    /// [x, y] of the point that stays; the middle where absent.
    #[serde(default)]
    pub center: Option<[f64; 2]>,
}

#[derive(Clone, Copy, Debug)]
struct Affine {
    degrees: [f64; 2],
    translate: [f64; 2],
    scale: [f64; 2],
    shear: [[f64; 2]; 2],
    center: Option<[f64; 2]>,
    look: Look,
}

impl Transform for RandomAffine {
    fn step(&self, at: &At, state: &mut State) -> Result<Option<Box<dyn Step>>, ConfigError> {
        let degrees = at.angles("degrees", &self.degrees.0)?;
        let translate = self.translate.unwrap_or_default();
        at.check(translate.iter().all(|share| (0.0..=1.0).contains(share)), || {
            format!("translate must be [x, y] between 0 and 1, shares of width and height, not {translate:?}")
        })?;
        let scale = self.scale.map_or(Ok([1.0, 1.0]), |scale| at.positive_range("scale", scale))?;
        let shear = match self.shear.as_ref().map(|shear| &shear.0[..]) {
            None => [[0.0; 2]; 2],
            Some(&[x0, x1, y0, y1]) => {
                let range = |range| at.range("shear", range, -90.0, 90.0);
                [range([x0, x1])?, range([y0, y1])?]
            }
            Some(x) => [at.angles("shear", x)?, [0.0; 2]],
        };
        at.center(self.center)?;
        let look = at.look(self.interpolation, &self.fill, state.channels)?;
        Ok(Some(Box::new(Affine { degrees, translate, scale, shear, center: self.center, look })))
    }
}

impl Affine {
    /// Where the pixels of an image of `size` come from.
    fn map(&self, size: (usize, usize), draws: &mut Draws) -> Map {
        let [w, h] = [size.0 as f64, size.1 as f64];
        // All are drawn whatever is set: setting one does not change another's.
        let mut draw = |[low, high]: [f64; 2]| draws.range(low, high);
        let degrees = draw(self.degrees);
        let moved =
            [self.translate[0] * w, self.translate[1] * h].map(|most| draw([-most, most]).round_ties_even());
        let scale = draw(self.scale);
        let shear = self.shear.map(draw);
        inverse_affine(self.center.unwrap_or([w * 0.5, h * 0.5]), degrees, moved, scale, shear)
    }
}

/// torchvision's `_get_inverse_affine_matrix`: where pixels come from, of an image that is sheared, scaled and rotated
/// about `center` and then moved. Angles are in degrees.
pub(super) fn inverse_affine(
    [cx, cy]: [f64; 2],
    degrees: f64,
    [tx, ty]: [f64; 2],
    scale: f64,
    shear: [f64; 2],
) -> Map {
    let turn = degrees.to_radians();
    let [shear_x, shear_y] = shear.map(f64::to_radians);
    // [[a, b], [c, d]] has determinant 1.
    let a = (turn - shear_y).cos() / shear_y.cos();
    let b = -(a * shear_x.tan() + turn.sin());
    let c = (turn - shear_y).sin() / shear_y.cos();
    let d = turn.cos() - c * shear_x.tan();
    let mut map = [d / scale, -b / scale, 0.0, -c / scale, a / scale, 0.0];
    map[2] += cx - map[0] * (cx + tx) - map[1] * (cy + ty);
    map[5] += cy - map[3] * (cx + tx) - map[4] * (cy + ty);
    Map::affine(map)
}

/// Draws `picture` through `map`, at its own size.
pub(super) fn warp(picture: &mut Picture<'_>, map: &Map, look: Look) -> Result<(), SampleError> {
    let size = picture.size();
    picture.follow(map, size);
    picture.replace("the warped image", size, |image, out| look.draw(image, map, size, out))
}

impl Step for Affine {
    fn apply(&self, picture: &mut Picture<'_>, draws: &mut Draws, _: &Limits) -> Result<(), SampleError> {
        warp(picture, &self.map(picture.size(), draws), self.look)
    }

    fn like_mask(&self) -> Option<Box<dyn Step>> {
        Some(Box::new(Affine { look: MASK, ..*self }))
    }

    fn keeps_rectangles(&self) -> bool {
        false
    }
}
