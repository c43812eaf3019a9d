//! Boxes and keypoints that move with an image: torchvision's `BoundingBoxes` and `KeyPoints`.
//!
//! A [`Picture`](crate::plan::Picture) carries the targets of its image, and whatever changes its geometry changes them
//! in the same place, before a pixel is decoded. Steps that decide by boxes ([`RandomIoUCrop`](crate::RandomIoUCrop))
//! and steps that remove some ([`SanitizeBoundingBoxes`](crate::SanitizeBoundingBoxes)) see them as they are there.
//!
//! Coordinates are in pixels of the upright image, from its upper left corner: the whole image is the box
//! `0, 0, width, height`. Keypoints are flipped as torchvision flips them, to `width - 1 - x`: there a whole number is
//! the middle of a pixel.

/// What moves with one image of a record.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Targets {
    /// Independent of each other: no set says anything of what is left of another one.
    pub sets: Vec<TargetSet>,
}

/// Boxes, and keypoints that belong to them; or keypoints alone.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TargetSet {
    /// Left, top, right, bottom of each. Empty where the set has keypoints only.
    pub boxes: Vec<[f64; 4]>,
    /// Lists of points, each with as many for every row: x, y.
    pub points: Vec<Points>,
    /// Of each row that is left, its number at the beginning.
    pub rows: Vec<u32>,
    /// Whether the rows are boxes, so that some may be removed.
    pub has_boxes: bool,
    /// Whether boxes and points come as shares of the image's sides.
    pub relative: bool,
}

/// Points of all rows of a set.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Points {
    /// Points of one row.
    pub each: usize,
    /// x, y and visibility of all points, row by row. The visibility is the user's own number and goes with its point.
    pub points: Vec<[f64; 3]>,
    /// Where the point of each place comes from when the image is mirrored; empty where all stay.
    pub mirrored: Vec<usize>,
}

impl TargetSet {
    /// These boxes, with all that belongs to them; `points` have as many rows.
    pub fn of_boxes(boxes: Vec<[f64; 4]>, points: Vec<Points>) -> Self {
        let rows = (0..boxes.len() as u32).collect();
        TargetSet { boxes, points, rows, has_boxes: true, relative: false }
    }

    /// Keypoints alone, so many rows.
    pub fn of_points(points: Points, rows: u32) -> Self {
        TargetSet { points: vec![points], rows: (0..rows).collect(), ..TargetSet::default() }
    }

    /// Keeps the rows of which `keep` says so.
    fn retain(&mut self, keep: impl Fn(&[f64; 4]) -> bool) {
        if !self.has_boxes {
            return;
        }
        let kept: Vec<bool> = self.boxes.iter().map(keep).collect();
        if kept.iter().all(|kept| *kept) {
            return;
        }
        fn only<T>(kept: &[bool], of: &mut Vec<T>, each: usize) {
            let mut at = 0..;
            of.retain(|_| kept[at.next().expect("endless") / each.max(1)]);
        }
        only(&kept, &mut self.boxes, 1);
        only(&kept, &mut self.rows, 1);
        for points in &mut self.points {
            only(&kept, &mut points.points, points.each);
        }
    }
}

impl Targets {
    fn boxes_mut(&mut self) -> impl Iterator<Item = &mut [f64; 4]> {
        self.sets.iter_mut().flat_map(|set| &mut set.boxes)
    }

    fn points_mut(&mut self) -> impl Iterator<Item = &mut [f64; 3]> {
        self.sets.iter_mut().flat_map(|set| &mut set.points).flat_map(|points| &mut points.points)
    }

    /// The same in pixels of an image of this size (width, height).
    pub(crate) fn in_pixels(&self, size: (usize, usize)) -> Self {
        let mut targets = self.clone();
        for set in targets.sets.iter_mut().filter(|set| set.relative) {
            let mut alone = Targets { sets: vec![std::mem::take(set)] };
            alone.scale((1, 1), size);
            *set = TargetSet { relative: false, ..alone.sets.remove(0) };
        }
        targets
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.sets.is_empty()
    }

    /// All boxes of the image.
    pub(crate) fn boxes(&self) -> impl Iterator<Item = &[f64; 4]> {
        self.sets.iter().flat_map(|set| &set.boxes)
    }

    /// Keeps the boxes of which `keep` says so, with what belongs to them.
    pub(crate) fn retain(&mut self, keep: impl Fn(&[f64; 4]) -> bool) {
        self.sets.iter_mut().for_each(|set| set.retain(&keep));
    }

    /// Boxes of which `hit` says so become 0, 0, 0, 0, for a step behind to remove.
    pub(crate) fn void(&mut self, mut hit: impl FnMut(&[f64; 4]) -> bool) {
        self.boxes_mut().filter(|one| hit(one)).for_each(|one| *one = [0.0; 4]);
    }

    /// The image's origin moves: `x` and `y` are added.
    pub(crate) fn shift(&mut self, x: f64, y: f64) {
        self.boxes_mut().for_each(|[left, top, right, bottom]| {
            *left += x;
            *top += y;
            *right += x;
            *bottom += y;
        });
        self.points_mut().for_each(|point| {
            point[0] += x;
            point[1] += y;
        });
    }

    /// The image of `from` pixels (width, height) becomes one of `to`.
    pub(crate) fn scale(&mut self, from: (usize, usize), to: (usize, usize)) {
        let (x, y) = (to.0 as f64 / from.0 as f64, to.1 as f64 / from.1 as f64);
        self.boxes_mut().for_each(|[left, top, right, bottom]| {
            *left *= x;
            *top *= y;
            *right *= x;
            *bottom *= y;
        });
        self.points_mut().for_each(|point| {
            point[0] *= x;
            point[1] *= y;
        });
    }

    /// An image of this size (width, height) is flipped.
    pub(crate) fn flip(&mut self, (w, h): (usize, usize), x: bool, y: bool) {
        let (w, h) = (w as f64, h as f64);
        self.boxes_mut().for_each(|[left, top, right, bottom]| {
            if x {
                (*left, *right) = (w - *right, w - *left);
            }
            if y {
                (*top, *bottom) = (h - *bottom, h - *top);
            }
        });
        self.points_mut().for_each(|point| {
            if x {
                point[0] = w - 1.0 - point[0];
            }
            if y {
                point[1] = h - 1.0 - point[1];
            }
        });
        if x != y {
            self.mirror();
        }
    }

    /// Left and right of what is shown change places.
    fn mirror(&mut self) {
        for points in self.sets.iter_mut().flat_map(|set| &mut set.points) {
            if points.mirrored.is_empty() {
                continue;
            }
            for row in points.points.chunks_exact_mut(points.each) {
                let before = row.to_vec();
                for (to, &from) in row.iter_mut().zip(&points.mirrored) {
                    *to = before[from];
                }
            }
        }
    }

    /// Every point goes where `forward` says; a box becomes the one around its corners.
    pub(crate) fn carry(&mut self, forward: impl Fn([f64; 2]) -> [f64; 2]) {
        self.boxes_mut().for_each(|one| {
            let [left, top, right, bottom] = *one;
            let corners = [[left, top], [right, top], [right, bottom], [left, bottom]].map(&forward);
            let least = |axis: usize| corners.iter().fold(f64::INFINITY, |least, at| least.min(at[axis]));
            let most = |axis: usize| corners.iter().fold(f64::NEG_INFINITY, |most, at| most.max(at[axis]));
            *one = [least(0), least(1), most(0), most(1)];
        });
        self.points_mut().for_each(|[x, y, _]| [*x, *y] = forward([*x, *y]));
    }

    /// Boxes end where the image (width, height) does.
    pub(crate) fn clamp(&mut self, (w, h): (usize, usize)) {
        let (w, h) = (w as f64, h as f64);
        self.boxes_mut().for_each(|[left, top, right, bottom]| {
            *left = left.clamp(0.0, w);
            *top = top.clamp(0.0, h);
            *right = right.clamp(0.0, w);
            *bottom = bottom.clamp(0.0, h);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(boxes: &[[f64; 4]]) -> Targets {
        let points = Points {
            each: 2,
            points: boxes.iter().flat_map(|b| [[b[0], b[1], 1.0], [b[2], b[3], 2.0]]).collect(),
            mirrored: vec![1, 0],
        };
        Targets { sets: vec![TargetSet::of_boxes(boxes.to_vec(), vec![points])] }
    }

    #[test]
    fn what_belongs_to_a_box_that_is_removed_is_removed_with_it() {
        let mut targets = set(&[[0.0, 0.0, 2.0, 2.0], [5.0, 5.0, 5.0, 9.0], [1.0, 2.0, 3.0, 4.0]]);
        targets.retain(|[left, _, right, _]| right > left);
        let set = &targets.sets[0];
        assert_eq!(set.rows, [0, 2]);
        assert_eq!(set.boxes, [[0.0, 0.0, 2.0, 2.0], [1.0, 2.0, 3.0, 4.0]]);
        assert_eq!(
            set.points[0].points,
            [[0.0, 0.0, 1.0], [2.0, 2.0, 2.0], [1.0, 2.0, 1.0], [3.0, 4.0, 2.0]]
        );
    }

    #[test]
    fn keypoints_alone_are_not_removed_with_boxes() {
        let points = Points { each: 1, points: vec![[1.0, 1.0, 0.0]], mirrored: Vec::new() };
        let mut targets = Targets { sets: vec![TargetSet::of_points(points, 1)] };
        targets.retain(|_| false);
        assert_eq!(targets.sets[0].rows, [0]);
    }

    #[test]
    fn left_and_right_change_places_in_a_mirror_and_not_in_a_half_turn() {
        let mut targets = set(&[[1.0, 2.0, 3.0, 4.0]]);
        targets.flip((10, 10), true, false);
        assert_eq!(targets.sets[0].boxes, [[7.0, 2.0, 9.0, 4.0]]);
        assert_eq!(targets.sets[0].points[0].points, [[6.0, 4.0, 2.0], [8.0, 2.0, 1.0]]);
        targets.flip((10, 10), true, true);
        assert_eq!(targets.sets[0].points[0].points, [[3.0, 5.0, 2.0], [1.0, 7.0, 1.0]]);
    }
}
