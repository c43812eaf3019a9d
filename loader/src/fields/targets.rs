//! Boxes, keypoints and the numbers that belong to them: read from a record, moved with their image, written to a row.
//!
//! ```text
//!  image ◀── like ── boxes ◀── like ── keypoints, classes, areas …
//!    ▲                                 a row each box; what removes a box removes its rows
//!    └────── like ── keypoints         alone: all of them stay
//! ```

use fuelrail_connectors::{Cut, PartKind, Schema};
use fuelrail_transforms::{Points, TargetSet, Targets};

use super::config::{BoxFormat, BoxesField, FieldConfig, Invalid, KeypointsField, Missing, NumbersField};
use super::numbers::{self, Cast, Number};
use super::variable::{Limit, MAY_BE_EMPTY};
use crate::layout::{Content, Element, RowShape};
use crate::ring::RowWriter;

/// Where numbers are in a record: a part, and the shape of its rows.
#[derive(Clone, Debug)]
struct Stored {
    part: usize,
    /// A whole row as numbers of one type.
    cast: Cast,
    row: Vec<u64>,
}

#[derive(Clone, Debug)]
struct Boxes {
    stored: Stored,
    place: usize,
    format: BoxFormat,
    to: BoxFormat,
    invalid: Invalid,
    limit: Limit,
}

#[derive(Clone, Debug)]
struct Keypoints {
    stored: Stored,
    place: usize,
    /// Points of a row.
    each: usize,
    /// Numbers of a point: x and y, or also whether it is seen.
    dims: usize,
    mirrored: Vec<usize>,
    limit: Limit,
}

#[derive(Clone, Debug)]
struct Numbers {
    stored: Stored,
    place: usize,
    limit: Limit,
}

/// Boxes with what belongs to them, or keypoints alone.
#[derive(Clone, Debug)]
struct Set {
    /// The number of its image among the pictures.
    picture: usize,
    /// The field that the others of the set follow.
    name: String,
    boxes: Option<Boxes>,
    points: Vec<Keypoints>,
    numbers: Vec<Numbers>,
}

/// What moves with the pictures of a record.
#[derive(Clone, Debug, Default)]
pub(super) struct Moving {
    sets: Vec<Set>,
}

/// What fields of a row are, each with its place among them.
pub(super) type Shapes = Vec<(usize, [RowShape; 2])>;

/// A field that moves with an image, with its place among the row's fields.
pub(super) type Placed<'a> = (usize, &'a FieldConfig);

/// Whether a field moves with an image.
pub(super) fn moves(field: &FieldConfig) -> bool {
    match field {
        FieldConfig::Boxes(_) | FieldConfig::Keypoints(_) => true,
        FieldConfig::Numbers(of) => of.like.is_some(),
        _ => false,
    }
}

fn stored(schema: &Schema, part: &str) -> Result<Stored, String> {
    let rows = |kind: &PartKind| match kind {
        PartKind::Ragged { dtype, row } => Some((*dtype, row.clone())),
        _ => None,
    };
    let mut parts = schema.parts.iter().enumerate().filter(|(_, other)| other.name == part);
    let found = parts.find_map(|(at, part)| Some((at, rows(&part.kind)?)));
    let (part, (dtype, row)) =
        found.ok_or_else(|| format!("the source does not deliver the part {part:?}"))?;
    let cast = Cast::new(dtype, dtype, row.iter().product())?;
    Ok(Stored { part, cast, row })
}

impl Moving {
    /// Resolves the fields that move with images. `pictures` are the names of all pictures, in their order, and `all`
    /// all fields.
    pub fn compile(
        placed: &[Placed<'_>],
        all: &[FieldConfig],
        schema: &Schema,
        pictures: &[&str],
    ) -> Result<(Self, Shapes), String> {
        let picture = |like: &str| {
            let found = pictures.iter().position(|name| *name == like);
            found.ok_or_else(|| format!("it follows {like:?}, which is not an image"))
        };
        let (mut moving, mut rows) = (Self::default(), Shapes::new());
        for (place, field) in placed {
            let FieldConfig::Boxes(of) = field else { continue };
            let named = |why: String| format!("field {:?}: {why}", of.name);
            let boxes = boxes(of, schema, *place).map_err(named)?;
            rows.push((*place, shape(&of.name, &[of.max_rows, 4], Element::F32)?));
            moving.sets.push(Set {
                picture: picture(&of.like).map_err(named)?,
                name: of.name.clone(),
                boxes: Some(boxes),
                points: Vec::new(),
                numbers: Vec::new(),
            });
        }
        for (place, field) in placed {
            let named = |why: String| format!("field {:?}: {why}", field.name());
            match field {
                FieldConfig::Keypoints(of) => {
                    let points = keypoints(of, all, schema, *place).map_err(named)?;
                    let dims = [points.limit.most].into_iter().chain(points.stored.row.iter().copied());
                    rows.push((*place, shape(&of.name, &dims.collect::<Vec<_>>(), Element::F32)?));
                    match moving.sets.iter_mut().find(|set| set.boxes.is_some() && set.name == of.like) {
                        Some(set) => set.points.push(points),
                        None => moving.sets.push(Set {
                            picture: picture(&of.like).map_err(named)?,
                            name: of.name.clone(),
                            boxes: None,
                            points: vec![points],
                            numbers: Vec::new(),
                        }),
                    }
                }
                FieldConfig::Numbers(of) => {
                    let like = of.like.as_deref().expect("it moves with boxes");
                    let set = moving.sets.iter_mut().find(|set| set.boxes.is_some() && set.name == like);
                    let set =
                        set.ok_or_else(|| named(format!("it follows {like:?}, which is no Boxes field")))?;
                    let boxes = set.boxes.as_ref().expect("a set of boxes");
                    let numbers = following(of, schema, *place, boxes.limit).map_err(named)?;
                    let dims = [numbers.limit.most].into_iter().chain(numbers.stored.row.iter().copied());
                    let element = super::element(numbers.stored.cast.to());
                    rows.push((*place, shape(&of.name, &dims.collect::<Vec<_>>(), element)?));
                    set.numbers.push(numbers);
                }
                _ => {}
            }
        }
        Ok((moving, rows))
    }

    pub fn is_empty(&self) -> bool {
        self.sets.is_empty()
    }

    /// Whether boxes move with this picture.
    pub fn has_boxes(&self, picture: usize) -> bool {
        self.sets.iter().any(|set| set.picture == picture && set.boxes.is_some())
    }

    /// Whether anything moves with this picture.
    pub fn has_any(&self, picture: usize) -> bool {
        self.sets.iter().any(|set| set.picture == picture)
    }

    /// What the record has, for each picture that something moves with.
    pub fn read(&self, schema: &Schema, cut: &Cut<'_>) -> Result<Vec<(usize, Targets)>, String> {
        let mut found: Vec<(usize, Targets)> = Vec::new();
        for set in &self.sets {
            let read =
                set.read(cut).map_err(|(part, why)| format!("part {:?}: {why}", schema.parts[part].name))?;
            match found.iter_mut().find(|(picture, _)| *picture == set.picture) {
                Some((_, targets)) => targets.sets.push(read),
                None => found.push((set.picture, Targets { sets: vec![read] })),
            }
        }
        Ok(found)
    }

    /// Writes what was read and has moved since. `size` gives width and height of a picture.
    pub fn write(
        &self,
        schema: &Schema,
        cut: &Cut<'_>,
        moved: &[(usize, Targets)],
        size: impl Fn(usize) -> (f64, f64),
        writer: &mut RowWriter,
    ) -> Result<(), String> {
        for (at, set) in self.sets.iter().enumerate() {
            let of = moved.iter().find(|(picture, _)| *picture == set.picture).expect("it was read");
            let before = self.sets[..at].iter().filter(|other| other.picture == set.picture).count();
            let named = |(part, why): (usize, String)| format!("part {:?}: {why}", schema.parts[part].name);
            set.write(cut, &of.1.sets[before], size(set.picture), writer).map_err(named)?;
        }
        Ok(())
    }
}

fn shape(name: &str, dims: &[u64], dtype: Element) -> Result<[RowShape; 2], String> {
    let bytes = dims.iter().try_fold(dtype.size(), |bytes, dim| bytes.checked_mul(*dim));
    if bytes.is_none_or(|bytes| bytes > super::MAX_CAP) {
        return Err(format!(
            "field {name:?}: {} rows of shape {:?} are more than {} MiB; lower max_rows",
            dims[0],
            &dims[1..],
            super::MAX_CAP >> 20
        ));
    }
    Ok(RowShape::variable(name.to_owned(), Content::Ragged, dtype, dims.to_vec()))
}

fn boxes(of: &BoxesField, schema: &Schema, place: usize) -> Result<Boxes, String> {
    let stored = stored(schema, &of.part)?;
    if stored.row != [4] {
        return Err(format!(
            "a box is four numbers, and the part {:?} has rows of shape {:?}; lists of boxes have rows of shape [4]",
            of.part, stored.row
        ));
    }
    let limit = Limit { most: of.max_rows, overflow: of.overflow, missing: of.missing };
    let (format, to) = (of.format, of.to.unwrap_or(of.format));
    Ok(Boxes { stored, place, format, to, invalid: of.invalid, limit })
}

fn keypoints(
    of: &KeypointsField,
    all: &[FieldConfig],
    schema: &Schema,
    place: usize,
) -> Result<Keypoints, String> {
    let stored = stored(schema, &of.part)?;
    let (each, dims) = match stored.row[..] {
        [each, dims @ (2 | 3)] if each > 0 => (each, dims),
        [dims @ (2 | 3)] => (1, dims),
        // COCO's: x, y, v of each point, one after the other.
        [flat] if flat.is_multiple_of(3) && flat > 0 => (flat / 3, 3),
        _ => {
            return Err(format!(
                "keypoints have rows of shape [points, 2], [points, 3] (x, y, visibility), or [3 * points]; the part \
                 {:?} has rows of shape {:?}",
                of.part, stored.row
            ));
        }
    };
    let mirrored: Vec<usize> = of.flip_indices.iter().flatten().map(|&at| at as usize).collect();
    let mut sorted = mirrored.clone();
    sorted.sort_unstable();
    if !mirrored.is_empty() && sorted != (0..each as usize).collect::<Vec<_>>() {
        return Err(format!(
            "flip_indices must have each of the {each} points once, as [0, 2, 1, ...]: where the point of each \
             place comes from in a mirrored image"
        ));
    }
    let owner = all.iter().find_map(|field| match field {
        FieldConfig::Boxes(boxes) if boxes.name == of.like => Some(boxes),
        _ => None,
    });
    let limit = match (owner, of.max_rows) {
        (Some(boxes), None) => Limit { most: boxes.max_rows, overflow: boxes.overflow, missing: of.missing },
        (Some(_), Some(_)) => {
            return Err("max_rows is that of the boxes that it follows; leave it out".into());
        }
        (None, Some(most)) => Limit { most, overflow: of.overflow, missing: of.missing },
        (None, None) => return Err("max_rows is missing: most rows of keypoints that a record has".into()),
    };
    let (each, dims) = (each as usize, dims as usize);
    Ok(Keypoints { stored, place, each, dims, mirrored, limit })
}

fn following(of: &NumbersField, schema: &Schema, place: usize, boxes: Limit) -> Result<Numbers, String> {
    let plain = stored(schema, &of.part)?;
    let wanted = of.dtype.unwrap_or(plain.cast.to());
    let cast = Cast::new(plain.cast.to(), wanted, plain.row.iter().product())?;
    let limit = Limit { missing: of.missing, ..boxes };
    Ok(Numbers { stored: Stored { cast, ..plain }, place, limit })
}

/// A part of the record and why it is wrong.
type Fault = (usize, String);

impl Stored {
    /// The rows' bytes, none of a record that lacks them and may.
    fn rows<'a>(&self, cut: &Cut<'a>, missing: Missing) -> Result<std::slice::ChunksExact<'a, u8>, Fault> {
        let bytes = match (cut.parts[self.part], missing) {
            (Some(bytes), _) => bytes,
            (None, Missing::Empty) => &[],
            (None, Missing::Bad) => return Err((self.part, MAY_BE_EMPTY.into())),
        };
        let each = self.cast.stored_bytes().max(1);
        if !bytes.len().is_multiple_of(each) {
            return Err((self.part, format!("its {} bytes are not rows of {each}", bytes.len())));
        }
        Ok(bytes.chunks_exact(each))
    }

    fn numbers(&self, row: &[u8]) -> Vec<f64> {
        let each = self.cast.from().size();
        let number = |bytes| match numbers::read(self.cast.from(), bytes) {
            Number::Whole(number) => number as f64,
            Number::Real(number) => number,
        };
        row.chunks_exact(each).map(number).collect()
    }

    /// That there are as many rows as the set has.
    fn check_count(&self, have: usize, of: usize, name: &str) -> Result<(), Fault> {
        if have == of {
            return Ok(());
        }
        Err((
            self.part,
            format!("it has {have} rows, and {name:?}, which it follows, has {of}: one row each is needed"),
        ))
    }
}

impl Boxes {
    /// Left, top, right, bottom of each; `None` of one that is to be dropped.
    fn read(&self, cut: &Cut<'_>) -> Result<Vec<Option<[f64; 4]>>, Fault> {
        let rows = self.stored.rows(cut, self.limit.missing)?;
        let edges = rows.enumerate().map(|(at, row)| {
            let four = self.stored.numbers(row);
            let four = [four[0], four[1], four[2], four[3]];
            match (self.format.edges(four), self.invalid) {
                (Ok(edges), _) => Ok(Some(edges)),
                (Err(_), Invalid::Drop) => Ok(None),
                (Err(why), Invalid::Bad) => Err((
                    self.stored.part,
                    format!(
                        "box {at} is {four:?} ({}): {why}; invalid=\"drop\" leaves such boxes out",
                        self.format.name()
                    ),
                )),
            }
        });
        edges.collect()
    }
}

impl Set {
    fn read(&self, cut: &Cut<'_>) -> Result<TargetSet, Fault> {
        let boxes = self.boxes.as_ref().map(|boxes| boxes.read(cut)).transpose()?;
        let count = boxes.as_ref().map(Vec::len);
        let is_kept = |at: usize| boxes.as_ref().is_none_or(|boxes| boxes[at].is_some());
        let (mut lists, mut alone) = (Vec::new(), 0);
        for points in &self.points {
            let rows = points.stored.rows(cut, points.limit.missing)?;
            if let Some(count) = count {
                points.stored.check_count(rows.len(), count, &self.name)?;
            }
            alone = rows.len();
            let kept = rows.enumerate().filter(|(at, _)| is_kept(*at));
            let mut list = Vec::new();
            for (at, row) in kept {
                for point in points.stored.numbers(row).chunks_exact(points.dims) {
                    if !point.iter().all(|number| number.is_finite()) {
                        return Err((
                            points.stored.part,
                            format!("row {at} has the point {point:?}, which is not finite"),
                        ));
                    }
                    list.push([point[0], point[1], point.get(2).copied().unwrap_or(1.0)]);
                }
            }
            lists.push(Points { each: points.each, points: list, mirrored: points.mirrored.clone() });
        }
        for numbers in &self.numbers {
            let rows = numbers.stored.rows(cut, numbers.limit.missing)?;
            numbers.stored.check_count(rows.len(), count.unwrap_or(0), &self.name)?;
        }
        let Some(boxes) = boxes else {
            let points = lists.pop().expect("keypoints alone are one list");
            return Ok(TargetSet::of_points(points, alone as u32));
        };
        let rows = (0..boxes.len() as u32).filter(|at| boxes[*at as usize].is_some()).collect();
        let relative = self.boxes.as_ref().is_some_and(|boxes| boxes.format.is_relative());
        Ok(TargetSet { rows, relative, ..TargetSet::of_boxes(boxes.into_iter().flatten().collect(), lists) })
    }

    fn write(
        &self,
        cut: &Cut<'_>,
        after: &TargetSet,
        size: (f64, f64),
        writer: &mut RowWriter,
    ) -> Result<(), Fault> {
        if let Some(boxes) = &self.boxes {
            let all = after.boxes.iter().map(|edges| boxes.to.of(*edges, size));
            write_rows(
                boxes.place,
                boxes.limit,
                boxes.stored.part,
                all.map(|four| four.map(|n| n as f32)),
                writer,
            )?;
        }
        for (points, moved) in self.points.iter().zip(&after.points) {
            let rows = moved.points.chunks_exact(points.each).map(|row| points.row(row, size));
            write_rows(points.place, points.limit, points.stored.part, rows, writer)?;
        }
        for numbers in &self.numbers {
            let stored: Vec<&[u8]> = numbers.stored.rows(cut, numbers.limit.missing)?.collect();
            let fault = |why| (numbers.stored.part, why);
            let rows =
                numbers.limit.take(after.rows.len() as u64, "rows", "max_rows").map_err(fault)? as usize;
            let (bytes, each) = (writer.bytes(numbers.place), numbers.stored.cast.bytes());
            for (at, row) in after.rows[..rows].iter().enumerate() {
                numbers
                    .stored
                    .cast
                    .write(stored[*row as usize], &mut bytes[at * each..][..each])
                    .map_err(fault)?;
            }
            bytes[rows * each..].fill(0);
            writer.bytes(numbers.place + 1).copy_from_slice(&(rows as i64).to_le_bytes());
        }
        Ok(())
    }
}

impl Keypoints {
    /// A row as it is delivered. Where the record says of each point whether it is there, one that was not, or has left
    /// the picture, is 0, 0, 0, as COCO has it.
    fn row(&self, moved: &[[f64; 3]], (w, h): (f64, f64)) -> Vec<f32> {
        let is_there =
            |[x, y, seen]: &[f64; 3]| *seen > 0.0 && (0.0..=w).contains(x) && (0.0..=h).contains(y);
        let point = |point: &[f64; 3]| match self.dims {
            3 if !is_there(point) => [0.0; 3],
            _ => point.map(|number| number as f32),
        };
        moved.iter().flat_map(|at| point(at).into_iter().take(self.dims)).collect()
    }
}

fn write_rows<R: AsRef<[f32]>>(
    place: usize,
    limit: Limit,
    part: usize,
    rows: impl ExactSizeIterator<Item = R>,
    writer: &mut RowWriter,
) -> Result<(), Fault> {
    let count = limit.take(rows.len() as u64, "rows", "max_rows").map_err(|why| (part, why))? as usize;
    let bytes = writer.bytes(place);
    let mut at = 0;
    for number in rows.take(count).flat_map(|row| row.as_ref().to_vec()) {
        bytes[at..at + 4].copy_from_slice(&number.to_le_bytes());
        at += 4;
    }
    bytes[at..].fill(0);
    writer.bytes(place + 1).copy_from_slice(&(count as i64).to_le_bytes());
    Ok(())
}
