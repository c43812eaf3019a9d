//! `RandomPerspective`: the image as seen from the side.

use serde::{Deserialize, Serialize};

use super::affine::warp;
use super::arguments::{At, Numbers};
use super::pad::MASK;
use super::resize::bilinear;
use super::{State, Step, Transform};
use crate::error::{ConfigError, SampleError};
use crate::limits::Limits;
use crate::plan::Picture;
use crate::random::Draws;
use crate::resize::Interpolation;
use crate::warp::{Look, Map};

/// Moves the four corners inwards by random amounts, with probability `p`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RandomPerspective {
    /// How far a corner may move: 1 is half of the image.
    #[serde(default = "half")]
    pub distortion_scale: f64,
    /// Probability, 0 to 1.
    #[serde(default = "half")]
    pub p: f64,
    /// `nearest`, `bilinear` or `bicubic`.
    #[serde(default = "bilinear")]
    pub interpolation: Interpolation,
    /// Colour of what comes from outside: one number or one a channel.
    #[serde(default)]
    pub fill: Numbers,
}

fn half() -> f64 {
    0.5
}

#[derive(Clone, Copy, Debug)]
struct Perspective {
    distortion: f64,
    p: f64,
    look: Look,
}

impl Transform for RandomPerspective {
    fn step(&self, at: &At, state: &mut State) -> Result<Option<Box<dyn Step>>, ConfigError> {
        let distortion = self.distortion_scale;
        at.check((0.0..=1.0).contains(&distortion), || {
            format!("distortion_scale must be between 0 and 1, not {distortion}")
        })?;
        let look = at.look(self.interpolation, &self.fill, state.channels)?;
        Ok(Some(Box::new(Perspective { distortion, p: at.probability(self.p)?, look })))
    }
}

/// Clockwise from the upper left, in whole pixels.
type Corners = [[f64; 2]; 4];

impl Perspective {
    /// Where the pixels of an image of `size` come from. Corners so close that there is no such map leave the image as
    /// it is; that takes an image of a few pixels.
    fn map(&self, (w, h): (usize, usize), draws: &mut Draws) -> Map {
        let bound = |side: usize| (self.distortion * (side / 2) as f64) as usize + 1;
        let mut near = |side: usize| draws.below(bound(side) as u64) as usize;
        let mut corner = |right: bool, low: bool| {
            let x = near(w) + if right { w - bound(w) } else { 0 };
            let y = near(h) + if low { h - bound(h) } else { 0 };
            [x as f64, y as f64]
        };
        let to = [corner(false, false), corner(true, false), corner(true, true), corner(false, true)];
        let [right, low] = [(w - 1) as f64, (h - 1) as f64];
        map_of_corners([[0.0, 0.0], [right, 0.0], [right, low], [0.0, low]], to).unwrap_or(Map::IDENTITY)
    }
}

/// The map that takes the corners `to` of the result back to those `from` which they come.
fn map_of_corners(from: Corners, to: Corners) -> Option<Map> {
    // Eight equations, each with its right side behind it.
    let mut rows = [[0.0; 9]; 8];
    for (n, ([x, y], [from_x, from_y])) in to.into_iter().zip(from).enumerate() {
        rows[2 * n] = [x, y, 1.0, 0.0, 0.0, 0.0, -from_x * x, -from_x * y, from_x];
        rows[2 * n + 1] = [0.0, 0.0, 0.0, x, y, 1.0, -from_y * x, -from_y * y, from_y];
    }
    for column in 0..8 {
        let pivot = (column..8).max_by(|a, b| rows[*a][column].abs().total_cmp(&rows[*b][column].abs()))?;
        rows.swap(column, pivot);
        let first = rows[column];
        if first[column].abs() < 1e-9 {
            return None;
        }
        for (_, row) in rows.iter_mut().enumerate().filter(|(n, _)| *n != column) {
            let share = row[column] / first[column];
            row.iter_mut().zip(first).for_each(|(value, first)| *value -= share * first);
        }
    }
    // torchvision rounds them to f32.
    Some(Map(std::array::from_fn(|n| f64::from((rows[n][8] / rows[n][n]) as f32))))
}

impl Step for Perspective {
    fn apply(&self, picture: &mut Picture<'_>, draws: &mut Draws, _: &Limits) -> Result<(), SampleError> {
        if !draws.chance(self.p) {
            return Ok(());
        }
        warp(picture, &self.map(picture.size(), draws), self.look)
    }

    fn like_mask(&self) -> Option<Box<dyn Step>> {
        Some(Box::new(Perspective { look: MASK, ..*self }))
    }

    fn keeps_rectangles(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn corners_come_from_where_they_were_and_coinciding_ones_are_no_map() {
        let from = [[0.0, 0.0], [99.0, 0.0], [99.0, 49.0], [0.0, 49.0]];
        let to = [[3.0, 8.0], [90.0, 2.0], [80.0, 44.0], [20.0, 49.0]];
        let map = map_of_corners(from, to).unwrap();
        for (from, to) in from.into_iter().zip(to) {
            let (x, y) = map.at(to[0], to[1]);
            assert!((x - from[0]).abs() < 1e-3 && (y - from[1]).abs() < 1e-3, "{x} {y} {from:?}");
        }
        assert_eq!(map_of_corners(from, [[0.0, 0.0]; 4]), None);
    }

    #[test]
    fn images_of_any_size_have_a_map() {
        let look = MASK;
        for (w, h) in [(1, 1), (1, 40), (2, 2), (3, 2), (2, 500)] {
            for position in 0..200 {
                let key = crate::SampleKey { seed: 1, epoch: 0, position };
                let step = Perspective { distortion: 1.0, p: 1.0, look };
                let map = step.map((w, h), &mut Draws::new(key, 0));
                assert!(map.0.iter().all(|number| number.is_finite()), "{w} x {h}: {map:?}");
            }
        }
    }
}
