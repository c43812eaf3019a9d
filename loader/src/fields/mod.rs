//! From the parts of a record to the fields of a row: which there are, how each is made, and the making.
//!
//! ```text
//!  record ─Schema::cut─▶ own image ─┐                         row of the slot
//!                        part "seg.png" ─┴─ Pictures ───────▶ image │ mask
//!                        part "txt" ────── variable::text ──▶ caption (padded with 0) │ its length
//!                        numbers ───────── numbers::Cast ───▶ score
//! ```
//!
//! # Promises
//! - Each field is made from one part. What a row holds is a function of the record's bytes, the fields and the
//!   [`SampleKey`]: the bytes behind a value that is shorter than its field are 0.
//! - A value that does not fit, is not what the field is, or is missing makes the whole record a bad one, by the part's
//!   name, unless the field says otherwise (`overflow`, `missing`). Nothing is cut silently.
//! - The short form (`transforms` of a pipeline, and what the source's own configuration lists) is translated into the
//!   long one here, in [`short`], and nowhere else.

mod check;
mod config;
pub(crate) mod numbers;
mod targets;
mod variable;

use fuelrail_connectors::{Cut, ElementType, FieldSpec, PartKind, Schema};
use fuelrail_transforms::{
    self as transforms, Dtype, Limits, OutputConfig, PictureConfig, Pictures, RowSpec, SampleKey, Scratch,
    What, compile_pictures, erasings_left,
};

use self::numbers::Cast;
use self::targets::Moving;
use self::variable::{Limit, Ragged};
use crate::config::{Finish, PipelineConfig};
use crate::layout::{Content, Element, Finishing, RowShape};
use crate::ring::RowWriter;

pub use self::config::{
    BoxFormat, BoxesField, BytesField, FieldConfig, GeometryField, ImageField, Invalid, KeypointsField,
    MaskDtype, MaskField, Missing, NumbersField, Overflow, ViewsField, wanted,
};

pub use self::check::check;
pub use self::variable::length;

/// Most bytes of text, and of ragged numbers, that a row may have room for.
const MAX_CAP: u64 = 64 << 20;

/// Fields of variable length may take this much whatever their share.
const MOST_PADDED: u64 = 512 << 20;

/// The same type as clients know it, who link no source.
fn element(of: ElementType) -> Element {
    match of {
        ElementType::Bool => Element::Bool,
        ElementType::U8 => Element::U8,
        ElementType::I8 => Element::I8,
        ElementType::U16 => Element::U16,
        ElementType::I16 => Element::I16,
        ElementType::U32 => Element::U32,
        ElementType::I32 => Element::I32,
        ElementType::U64 => Element::U64,
        ElementType::I64 => Element::I64,
        ElementType::F16 => Element::F16,
        ElementType::F32 => Element::F32,
        ElementType::F64 => Element::F64,
    }
}

/// The fields that a pipeline without a list of them has: the source's own image through its chain, and its numbers.
pub fn short(config: &PipelineConfig, schema: &Schema) -> Vec<FieldConfig> {
    let image = schema.image.then(|| {
        let transforms = config.transforms.clone();
        FieldConfig::Image(ImageField { name: "image".into(), part: None, transforms })
    });
    let numbers = schema.fields.iter().map(|field| {
        FieldConfig::Numbers(NumbersField {
            name: field.name.clone(),
            part: field.name.clone(),
            like: None,
            dtype: None,
            max_rows: None,
            row: None,
            overflow: Overflow::default(),
            missing: Missing::default(),
        })
    });
    image.into_iter().chain(numbers).collect()
}

fn output(config: &PipelineConfig) -> OutputConfig {
    let finish = match config.finish {
        Finish::Daemon => transforms::Finish::Here,
        Finish::Client => transforms::Finish::Later,
    };
    OutputConfig { dtype: config.dtype, layout: config.layout, finish }
}

/// Why a chain cannot stand without boxes.
const NEEDS_BOXES: &str =
    "works on boxes: give the image a field of type Boxes that follows it (like = its name), in fields";

const MIXES: &str = "mixes pictures that are turned and moved differently, so that no box or keypoint has one place on \
     the result; leave out one of the two";

/// Where the encoded image of a picture is in a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ImageAt {
    Own,
    Part(usize),
}

/// How the fields that are not pictures are made: into which of the row's fields, from what.
#[derive(Clone, Debug)]
enum Make {
    /// From a stretch of the record's numbers.
    Numbers { begin: usize, cast: Cast },
    /// From a part, with its length behind.
    Bytes { part: usize, content: Content, limit: Limit },
    /// From a part, with the number of rows behind.
    Ragged { part: usize, ragged: Ragged },
}

/// The fields of a pipeline, for records of one schema.
#[derive(Clone, Debug)]
pub struct Fields {
    schema: Schema,
    rows: Vec<RowShape>,
    /// Each with its place among the row's fields.
    makes: Vec<(usize, Make)>,
    pictures: Option<Pictures>,
    /// The encoded images that pictures are made from.
    images: Vec<ImageAt>,
    /// Parts that are only masks which may be missing.
    may_lack: Vec<usize>,
    /// Of each picture: its place among the row's fields.
    places: Vec<usize>,
    /// What moves with pictures.
    moving: Moving,
    /// Of each picture: its part, for errors; absent for the source's own image.
    parts: Vec<Option<String>>,
}

impl Fields {
    /// Resolves the fields of a pipeline whose source delivers `schema`, images of one `size` if they have one.
    ///
    /// # Errors
    /// A sentence with the field.
    pub fn compile(
        config: &PipelineConfig,
        schema: &Schema,
        size: Option<(u32, u32)>,
    ) -> Result<Self, String> {
        let short = config.fields.is_none().then(|| short(config, schema));
        let fields = config.fields.as_deref().or(short.as_deref()).expect("one of the two");
        let mut made = Self {
            schema: schema.clone(),
            rows: Vec::new(),
            makes: Vec::new(),
            pictures: None,
            images: Vec::new(),
            may_lack: Vec::new(),
            places: Vec::new(),
            moving: Moving::default(),
            parts: Vec::new(),
        };
        let mut placed = Vec::new();
        let mut pictures: Vec<(&str, PictureConfig)> = Vec::new();
        for field in fields {
            let name = field.name().to_owned();
            let named = |error: String| format!("field {name:?}: {error}");
            let picture = made.picture(field, &pictures, config).map_err(named)?;
            if let Some(picture) = picture {
                let erased = made.erased(&picture, pictures.len());
                for picture in std::iter::once(picture).chain(erased) {
                    made.places.push(made.rows.len());
                    // What it is is known when all of them are compiled.
                    made.rows.push(RowShape::dense(name.clone(), Element::U8, Vec::new()));
                    pictures.push((field.name(), picture));
                }
                continue;
            }
            let place = made.rows.len();
            if targets::moves(field) {
                // What they are is known when all images are.
                let rows = RowShape::variable(name.clone(), Content::Ragged, Element::F32, Vec::new());
                made.rows.extend(rows);
                placed.push((place, field));
                continue;
            }
            let (rows, make) = made.other(field).map_err(named)?;
            made.rows.extend(rows);
            made.makes.push((place, make));
        }
        made.may_lack = made.may_lack(fields);
        let names: Vec<&str> = pictures.iter().map(|(name, _)| *name).collect();
        let (moving, rows) = Moving::compile(&placed, fields, schema, &names)?;
        made.moving = moving;
        for (place, shapes) in rows {
            made.rows.splice(place..place + 2, shapes);
        }
        if !pictures.is_empty() {
            let sizes: Vec<_> = made.images.iter().map(|at| size.filter(|_| *at == ImageAt::Own)).collect();
            let limits = Limits { max_sample_bytes: config.max_sample_bytes, truncated: config.truncated };
            let (names, configs): (Vec<_>, Vec<_>) = pictures.into_iter().unzip();
            let compiled = compile_pictures(&configs, limits, &sizes).map_err(|error| match short {
                Some(_) => error.to_string(),
                None => format!("field {:?}: {error}", names[error.picture]),
            })?;
            for ((picture, &place), spec) in configs.iter().zip(&made.places).zip(compiled.outputs()) {
                made.rows[place] = picture_row(&made.rows[place].name, picture, spec);
            }
            for (picture, config) in configs.iter().enumerate() {
                let lacking = compiled.needs_boxes(picture).filter(|_| !made.moving.has_boxes(picture));
                let mixing = compiled.mixes(picture).filter(|_| made.moving.has_any(picture));
                for (place, why) in [(lacking, NEEDS_BOXES), (mixing, MIXES)] {
                    let Some(place) = place else { continue };
                    let step = format!("transforms[{place}] {} {why}", config.transforms[place].name());
                    return Err(match short {
                        Some(_) => step,
                        None => format!("field {:?}: {step}", names[picture]),
                    });
                }
            }
            made.pictures = Some(compiled);
        }
        Ok(made)
    }

    /// The configuration of a picture, if the field is one.
    fn picture(
        &mut self,
        field: &FieldConfig,
        before: &[(&str, PictureConfig)],
        config: &PipelineConfig,
    ) -> Result<Option<PictureConfig>, String> {
        let like = |of: &str| {
            let found = before.iter().position(|(name, _)| *name == of);
            found.ok_or_else(|| {
                format!("it follows {of:?}, which comes after it in the list of fields; move it before")
            })
        };
        let (part, what, transforms, output) = match field {
            FieldConfig::Image(of) => (of.part.as_deref(), What::Image, &of.transforms[..], output(config)),
            FieldConfig::Views(of) => {
                (of.part.as_deref(), What::Views(of.n), &of.transforms[..], output(config))
            }
            FieldConfig::Mask(of) => {
                let dtype = Some(match of.dtype {
                    MaskDtype::U8 => Dtype::U8,
                    MaskDtype::U16 => Dtype::U16,
                });
                let output = OutputConfig { dtype, ..OutputConfig::default() };
                (Some(of.part.as_str()), What::Mask { like: like(&of.like)? }, &[][..], output)
            }
            FieldConfig::Geometry(of) => {
                let of = like(&of.of)?;
                self.parts.push(self.parts[of].clone());
                let (image, output) = (before[of].1.image, OutputConfig::default());
                let what = What::Geometry { of };
                return Ok(Some(PictureConfig { image, what, transforms: Vec::new(), output }));
            }
            _ => return Ok(None),
        };
        let at = match part {
            None if self.schema.image => ImageAt::Own,
            None => return Err("the source has no image of its own; name its part".into()),
            Some(part) => ImageAt::Part(self.part(part, |kind| *kind == PartKind::Image)?),
        };
        let known = self.images.iter().position(|&other| other == at);
        let image = known.unwrap_or_else(|| {
            self.images.push(at);
            self.images.len() - 1
        });
        self.parts.push(part.map(str::to_owned));
        Ok(Some(PictureConfig { image, what, transforms: transforms.to_vec(), output }))
    }

    /// The picture behind number `of` that tells what the client is to erase in it, where that is left to it.
    fn erased(&mut self, of: &PictureConfig, number: usize) -> Option<PictureConfig> {
        let is_own = matches!(of.what, What::Image | What::Views(_));
        // What is wrong with the chain is said when it is compiled.
        if !is_own || erasings_left(&of.transforms, &of.output).unwrap_or(0) == 0 {
            return None;
        }
        self.parts.push(self.parts[number].clone());
        let what = What::Erased { of: number };
        Some(PictureConfig { what, transforms: Vec::new(), output: OutputConfig::default(), ..*of })
    }

    /// The image parts of which every field is a mask that may be missing.
    fn may_lack(&self, fields: &[FieldConfig]) -> Vec<usize> {
        let is_needed = |name: &str| {
            fields.iter().any(|field| match field {
                FieldConfig::Mask(of) => of.part == name && of.missing == Missing::Bad,
                FieldConfig::Image(of) => of.part.as_deref() == Some(name),
                FieldConfig::Views(of) => of.part.as_deref() == Some(name),
                _ => false,
            })
        };
        let parts = self.schema.parts.iter().enumerate();
        parts
            .filter(|(_, part)| part.kind == PartKind::Image && !is_needed(&part.name))
            .map(|(at, _)| at)
            .collect()
    }

    /// A part of the schema.
    fn part(&self, name: &str, is_wanted: impl Fn(&PartKind) -> bool) -> Result<usize, String> {
        let found = self.schema.parts.iter().position(|part| part.name == name && is_wanted(&part.kind));
        found.ok_or_else(|| format!("the source does not deliver the part {name:?}"))
    }

    /// The rows of a field that is no picture, and how it is made.
    fn other(&self, field: &FieldConfig) -> Result<(Vec<RowShape>, Make), String> {
        let (of, content, kind) = match field {
            FieldConfig::Text(of) => (of, Content::Text, PartKind::Text),
            FieldConfig::Bytes(of) => (of, Content::Bytes, PartKind::Bytes),
            FieldConfig::Json(of) => (of, Content::Json, PartKind::Json),
            FieldConfig::Numbers(of) => return self.numbers(of),
            _ => unreachable!("pictures are made elsewhere"),
        };
        let part = self.part(&of.part, |other| *other == kind)?;
        let limit = Limit { most: of.max_bytes, overflow: of.overflow, missing: of.missing };
        let rows = RowShape::variable(of.name.clone(), content, Element::U8, vec![of.max_bytes]);
        Ok((rows.into(), Make::Bytes { part, content, limit }))
    }

    fn numbers(&self, of: &NumbersField) -> Result<(Vec<RowShape>, Make), String> {
        let Some(most) = of.max_rows else {
            let at = self.schema.fields.iter().position(|field| field.name == of.part);
            let at = at.ok_or_else(|| format!("the source does not deliver the numbers {:?}", of.part))?;
            let begin = self.schema.fields[..at].iter().map(FieldSpec::bytes).sum();
            let FieldSpec { dtype, shape, .. } = &self.schema.fields[at];
            let cast = Cast::new(*dtype, of.dtype.unwrap_or(*dtype), shape.iter().product())?;
            let row = RowShape::dense(of.name.clone(), element(cast.to()), shape.clone());
            return Ok((vec![row], Make::Numbers { begin, cast }));
        };
        let part = self.part(&of.part, |kind| matches!(kind, PartKind::Ragged { .. }))?;
        let PartKind::Ragged { dtype, row } = &self.schema.parts[part].kind else {
            unreachable!("just found")
        };
        if of.row.as_ref().is_some_and(|wanted| wanted != row) {
            return Err(format!(
                "row = {:?} was asked for, and the source has rows of shape {row:?}",
                of.row
            ));
        }
        let cast = Cast::new(*dtype, of.dtype.unwrap_or(*dtype), row.iter().product())?;
        if most.checked_mul(cast.bytes() as u64).is_none_or(|bytes| bytes > MAX_CAP) {
            return Err(format!(
                "{most} rows of shape {row:?} are more than {} MiB; lower max_rows",
                MAX_CAP >> 20
            ));
        }
        let limit = Limit { most, overflow: of.overflow, missing: of.missing };
        let shape = std::iter::once(most).chain(row.iter().copied()).collect();
        let rows = RowShape::variable(of.name.clone(), Content::Ragged, element(cast.to()), shape);
        Ok((rows.into(), Make::Ragged { part, ragged: Ragged { limit, cast } }))
    }

    /// Fields that are probably boxes or keypoints, by their names, and stay as they are while images move.
    pub fn left_behind(&self) -> Vec<&str> {
        let moves = self.pictures.as_ref().is_some_and(Pictures::moves);
        let numbers =
            self.makes.iter().filter(|(_, make)| matches!(make, Make::Numbers { .. } | Make::Ragged { .. }));
        let is_place = |row: &&RowShape| {
            let name = row.name.to_ascii_lowercase();
            let last = row.shape.last().copied();
            let is_box = name.contains("box") && last == Some(4);
            is_box
                || (["keypoint", "landmark"].iter().any(|word| name.contains(word))
                    && matches!(last, Some(2 | 3)))
        };
        let rows = numbers.map(|(place, _)| &self.rows[*place]).filter(is_place);
        rows.filter(|_| moves).map(|row| row.name.as_str()).collect()
    }

    /// The fields of a row, lengths included.
    pub fn rows(&self) -> &[RowShape] {
        &self.rows
    }

    /// The element type of images, where there are any.
    pub fn image_dtype(&self) -> Option<Dtype> {
        let first = self.pictures.as_ref().and_then(|pictures| pictures.outputs().first());
        first.map(|spec| spec.finishing.as_ref().map_or(spec.dtype, |left| left.dtype))
    }

    /// Refuses fields of variable length that take more than half of a large ring: nearly all of that is padding.
    ///
    /// # Errors
    /// A sentence with the field and its share.
    pub fn check_room(&self, rows: u64, slots: u64) -> Result<(), String> {
        let bytes = |row: &RowShape| rows * slots * row.shape.iter().product::<u64>() * row.dtype.size();
        let all: u64 = self.rows.iter().map(bytes).sum();
        let variable = || self.rows.iter().filter(|row| row.content.is_variable());
        let padded: u64 = variable().map(bytes).sum();
        if padded <= MOST_PADDED || padded * 2 <= all {
            return Ok(());
        }
        let largest = variable().max_by_key(|row| bytes(row)).expect("there is one");
        let cap = if largest.content == Content::Ragged { "max_rows" } else { "max_bytes" };
        Err(format!(
            "field {:?}: {cap} = {} makes room for {} MiB in {slots} batches of {rows} rows, more than half of all \
             that they hold: lower {cap} (fuelrail inspect shows what 99.9% of the records need), batch_size or \
             prefetch_factor",
            largest.name,
            largest.shape[0],
            bytes(largest) >> 20
        ))
    }

    /// Makes a row of a record.
    ///
    /// # Errors
    /// Why the record is a bad one, with the part.
    pub fn write(
        &self,
        bytes: &[u8],
        key: SampleKey,
        scratch: &mut Scratch,
        writer: &mut RowWriter,
    ) -> Result<(), String> {
        let Some(cut) = self.schema.cut(bytes) else {
            return Err(format!(
                "its {} bytes are fewer than the {} of its fields",
                bytes.len(),
                self.schema.fixed_bytes()
            ));
        };
        for (place, make) in &self.makes {
            let named =
                |part: &usize, why: String| format!("part {:?}: {why}", self.schema.parts[*part].name);
            match make {
                Make::Numbers { begin, cast } => {
                    let stored = &cut.fields[*begin..];
                    let name = &self.rows[*place].name;
                    cast.write(stored, writer.bytes(*place))
                        .map_err(|why| format!("field {name:?}: {why}"))?;
                }
                Make::Bytes { part, content, limit } => {
                    let made = variable::bytes(cut.parts[*part], *content, *limit, writer.bytes(*place));
                    let length = made.map_err(|why| named(part, why))?;
                    writer.bytes(place + 1).copy_from_slice(&length.to_le_bytes());
                }
                Make::Ragged { part, ragged } => {
                    let made = ragged.write(cut.parts[*part], writer.bytes(*place));
                    let length = made.map_err(|why| named(part, why))?;
                    writer.bytes(place + 1).copy_from_slice(&length.to_le_bytes());
                }
            }
        }
        match &self.pictures {
            Some(pictures) => self.draw(pictures, &cut, key, scratch, writer),
            None => Ok(()),
        }
    }

    fn draw(
        &self,
        pictures: &Pictures,
        cut: &Cut<'_>,
        key: SampleKey,
        scratch: &mut Scratch,
        writer: &mut RowWriter,
    ) -> Result<(), String> {
        if let ([place], [ImageAt::Own], true) = (&self.places[..], &self.images[..], self.moving.is_empty())
        {
            let drawn = pictures.apply(&[Some(cut.image)], key, scratch, &mut [writer.bytes(*place)]);
            return drawn.map_err(|error| error.to_string());
        }
        let image = |at: &ImageAt| match at {
            ImageAt::Own => Some(cut.image),
            ImageAt::Part(part) => cut.parts[*part],
        };
        let mut encoded = Vec::with_capacity(self.images.len());
        for at in &self.images {
            let bytes = image(at);
            if let (None, ImageAt::Part(part)) = (bytes, at)
                && !self.may_lack.contains(part)
            {
                let name = &self.schema.parts[*part].name;
                return Err(format!("part {name:?}: {}", variable::MISSING));
            }
            encoded.push(bytes);
        }
        let mut rows: Vec<_> = writer.all().into_iter().map(Some).collect();
        let mut own: Vec<&mut [u8]> =
            self.places.iter().map(|&place| rows[place].take().expect("each has its own place")).collect();
        let mut moved = self.moving.read(&self.schema, cut)?;
        let drawn = pictures.apply_with(&encoded, key, scratch, &mut own, &mut moved);
        drawn.map_err(|error| match &self.parts[error.picture] {
            None => error.to_string(),
            Some(part) => format!("part {part:?}: {error}"),
        })?;
        let size = |picture: usize| {
            // (C, H, W)
            let shape = &self.rows[self.places[picture]].shape;
            (shape[2] as f64, shape[1] as f64)
        };
        self.moving.write(&self.schema, cut, &moved, size, writer)
    }
}

/// The row of a picture: of an image (C, H, W) whatever the memory order.
fn picture_row(name: &str, picture: &PictureConfig, spec: &RowSpec) -> RowShape {
    let element = |dtype| match dtype {
        Dtype::U8 => Element::U8,
        Dtype::U16 => Element::U16,
        Dtype::F32 => Element::F32,
        Dtype::F16 => Element::F16,
        Dtype::Bf16 => Element::Bf16,
    };
    let finishing = spec.finishing.as_ref().map(|left| Finishing {
        dtype: element(left.dtype),
        scale: left.scale.clone(),
        bias: left.bias.clone(),
        erasings: left.erasings.clone(),
    });
    let numbers = |list: &[usize]| list.iter().map(|&number| number as u64).collect();
    let content = match picture.what {
        What::Image | What::Views(_) => Content::Image,
        What::Mask { .. } => Content::Mask,
        What::Geometry { .. } => Content::Geometry,
        What::Erased { .. } => Content::Erased,
    };
    RowShape {
        name: name.to_owned(),
        dtype: element(spec.dtype),
        shape: numbers(&spec.shape),
        strides: numbers(&spec.strides),
        content,
        finishing,
    }
}
