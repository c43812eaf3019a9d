//! Several pictures of one record, made on shared draws: images, views, and what goes with an image.
//!
//! **Draws.** Each image and each view is a stream of draws of its own, numbered in the order of the list, so that the
//! first image draws what it draws alone. A mask and a geometry have none: they repeat their image's.
//!
//! **One decode.** Where several chains start from one encoded image, their geometry is followed without pixels first,
//! which says what each needs; the rectangle around all of it is decoded once, and each chain begins with these pixels.
//! A row is the same, byte for byte, as if its chain had the image for itself. Only the verdict on a rare cut JPEG can
//! differ, where one picture reaches what is missing: then the record is bad for all.

use std::sync::Arc;

use crate::compile::{Program, Stream};
use crate::config::{Dtype, Layout, OutputConfig};
use crate::decode::{Header, Want};
use crate::error::{ConfigError, SampleError};
use crate::geometry::Rect;
use crate::limits::Limits;
use crate::output::{Finishing, OutputSpec};
use crate::plan::{Picture, Sketch};
use crate::steps::{At, TransformConfig};
use crate::targets::Targets;
use crate::{SampleKey, Scratch, compile_program};

/// One picture that a record's row is to hold.
#[derive(Clone, Debug, PartialEq)]
pub struct PictureConfig {
    /// Which of the record's encoded images it is made from.
    pub image: usize,
    /// What it is.
    pub what: What,
    /// Its chain; empty for a mask and a geometry, which follow the chain of their image.
    pub transforms: Vec<TransformConfig>,
    /// Element type and memory order of its row.
    pub output: OutputConfig,
}

/// What a picture is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// The image through one chain: a row of (C, H, W).
    Image,
    /// The chain so many times, each with draws of its own: a row of (N, C, H, W).
    Views(u32),
    /// A map of classes that goes with an image, with the geometry of that image's chain and its draws: a row of
    /// (H, W), of u8 or u16.
    Mask {
        /// The place in the list of the [`What::Image`] that it goes with.
        like: usize,
    },
    /// Where an image comes from, a row of eight f32: top, left, height and width of the crop in the upright original,
    /// flip_x and flip_y (0 or 1), height and width of the original.
    Geometry {
        /// The place in the list of that [`What::Image`].
        of: usize,
    },
    /// What is to be erased of an image or of views, where that is left to whoever takes the rows: for each of the
    /// chain's erasings four f32 (top, left, height, width; 0 0 0 0 erases nothing), a row of (erasings, 4), or of
    /// (N, erasings, 4).
    Erased {
        /// The place in the list of the [`What::Image`] or [`What::Views`].
        of: usize,
    },
}

/// Type, shape and memory order of one row of a picture.
#[derive(Clone, Debug, PartialEq)]
pub struct RowSpec {
    /// Type of each element.
    pub dtype: Dtype,
    /// Elements along each dimension; (C, H, W) for an image whatever the memory order.
    pub shape: Vec<usize>,
    /// How far apart neighbours along each dimension lie, in elements.
    pub strides: Vec<usize>,
    /// What is left to whoever takes the rows.
    pub finishing: Option<Arc<Finishing>>,
}

impl RowSpec {
    /// Bytes of one row.
    pub fn row_bytes(&self) -> usize {
        self.shape.iter().product::<usize>() * self.dtype.bytes()
    }

    fn of_image(spec: &OutputSpec) -> Self {
        let OutputSpec { channels: c, height: h, width: w, dtype, layout } = *spec;
        let strides = match layout {
            Layout::Nchw => vec![h * w, w, 1],
            Layout::Nhwc => vec![1, w * c, c],
        };
        RowSpec { dtype, shape: vec![c, h, w], strides, finishing: None }
    }

    /// Numbers in C order.
    fn dense(dtype: Dtype, shape: Vec<usize>) -> Self {
        let strides = (1..=shape.len()).map(|axis| shape[axis..].iter().product()).collect();
        RowSpec { dtype, shape, strides, finishing: None }
    }
}

/// A picture that cannot be made as configured.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{error}")]
pub struct PictureError {
    /// Its place in the list.
    pub picture: usize,
    /// Why.
    pub error: ConfigError,
}

/// A picture that cannot be made of a record.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{error}")]
pub struct PictureFault {
    /// Its place in the list.
    pub picture: usize,
    /// Why.
    pub error: SampleError,
}

/// The most views of one picture.
pub const MAX_VIEWS: u32 = 64;

/// Checks pictures and compiles their chains. `sizes` are width and height of each encoded image where all records have
/// the same; an image that is not in the list has no known size.
///
/// # Errors
/// As [`crate::compile`], and for a picture that cannot follow the one it names, has transforms where it follows those
/// of an image, or has a type that cannot hold it.
pub fn compile_pictures(
    pictures: &[PictureConfig],
    limits: Limits,
    sizes: &[Option<(u32, u32)>],
) -> Result<Pictures, PictureError> {
    let at = |picture| move |error| PictureError { picture, error };
    let mut chains = Vec::with_capacity(pictures.len());
    let mut streams = 0;
    for (picture, config) in pictures.iter().enumerate() {
        let views = match config.what {
            What::Image => 1,
            What::Views(views) => check_views(views).map_err(at(picture))?,
            What::Mask { .. } | What::Geometry { .. } | What::Erased { .. } => {
                chains.push(None);
                continue;
            }
        };
        let size = sizes.get(config.image).copied().flatten();
        let program =
            compile_program(&config.transforms, &config.output, limits, size).map_err(at(picture))?;
        chains.push(Some(Chain { picture, program, first: streams, views }));
        streams += views;
    }
    let mut plan = Pictures { groups: Vec::new(), erased: Vec::new(), outputs: Vec::new(), limits };
    for (picture, config) in pictures.iter().enumerate() {
        let spec = match (config.what, &chains[picture]) {
            (What::Mask { like }, _) => {
                let image = followed("mask", config, like, pictures, &chains).map_err(at(picture))?;
                check_mask(&pictures[like], image).map_err(at(picture))?;
                let dtype = mask_dtype(&config.output).map_err(at(picture))?;
                let program = image.program.like_mask(dtype);
                let spec = program.pass.spec.clone();
                let member =
                    Member { picture, chain: Chain { program, ..*image }, like: Some(pictures[like].image) };
                let wide = dtype == Dtype::U16;
                plan.group(config.image, Want::Values { wide }).members.push(member);
                RowSpec::dense(dtype, vec![spec.height, spec.width])
            }
            (What::Geometry { of }, _) => {
                let image = followed("geometry", config, of, pictures, &chains).map_err(at(picture))?;
                check_geometry(config, &pictures[of], image).map_err(at(picture))?;
                let member = Member { picture, chain: image.clone(), like: None };
                plan.group(pictures[of].image, Want::Colors).geometries.push(member);
                RowSpec::dense(Dtype::F32, vec![GEOMETRY])
            }
            (What::Erased { of }, _) => {
                let chain = chains.get(of).and_then(Option::as_ref).ok_or_else(|| {
                    at(picture)(ConfigError("the field it names has no chain of its own".to_owned()))
                })?;
                let member = Member { picture, chain: chain.clone(), like: None };
                let each = chain.program.finishing.as_ref().map_or(0, |left| left.erasings.len());
                let views = matches!(pictures[of].what, What::Views(_)).then_some(chain.views as usize);
                plan.erased.push(member);
                RowSpec::dense(Dtype::F32, views.into_iter().chain([each, RECT]).collect())
            }
            (what, Some(chain)) => {
                let member = Member { picture, chain: chain.clone(), like: None };
                plan.group(config.image, Want::Colors).members.push(member);
                let mut spec = RowSpec::of_image(&chain.program.pass.spec);
                spec.finishing = chain.program.finishing.clone();
                if let What::Views(views) = what {
                    spec.strides.insert(0, spec.shape.iter().product());
                    spec.shape.insert(0, views as usize);
                }
                spec
            }
            (What::Image | What::Views(_), None) => {
                unreachable!("a picture with draws of its own has a chain")
            }
        };
        plan.outputs.push(spec);
    }
    // A mask is compared with the image it goes with, whose header must have been read.
    plan.groups.sort_by_key(|group| group.want.is_values());
    Ok(plan)
}

fn check_views(views: u32) -> Result<u32, ConfigError> {
    if (1..=MAX_VIEWS).contains(&views) {
        return Ok(views);
    }
    Err(ConfigError(format!("the number of views must be between 1 and {MAX_VIEWS}, not {views}")))
}

/// The chain that a mask or a geometry follows.
fn followed<'a>(
    what: &str,
    config: &PictureConfig,
    like: usize,
    pictures: &[PictureConfig],
    chains: &'a [Option<Chain>],
) -> Result<&'a Chain, ConfigError> {
    if !config.transforms.is_empty() {
        return Err(ConfigError(format!(
            "a {what} has no transforms of its own: it follows those of its image; leave them out"
        )));
    }
    match (pictures.get(like).map(|other| other.what), chains.get(like)) {
        (Some(What::Image), Some(Some(chain))) => Ok(chain),
        (Some(What::Views(_)), _) => Err(ConfigError(format!(
            "a {what} follows one image, and the field it names has several views, each with its own crop: add \
             an Image field for it to follow"
        ))),
        _ => Err(ConfigError(format!("a {what} follows an image, and the field it names is not an image"))),
    }
}

fn mask_dtype(output: &OutputConfig) -> Result<Dtype, ConfigError> {
    match output.dtype.unwrap_or(Dtype::U8) {
        dtype @ (Dtype::U8 | Dtype::U16) => Ok(dtype),
        other => Err(ConfigError(format!(
            "a mask holds the numbers of its file, of dtype u8 or u16, not {}",
            other.name()
        ))),
    }
}

fn check_mask(image: &PictureConfig, chain: &Chain) -> Result<(), ConfigError> {
    match chain.program.mixes() {
        None => Ok(()),
        Some(place) => Err(At::new(place, image.transforms[place].name()).error(
            "mixes pictures that are turned and moved differently, so that no mask can lie on the result; leave out \
             one of the two",
        )),
    }
}

fn check_geometry(config: &PictureConfig, image: &PictureConfig, chain: &Chain) -> Result<(), ConfigError> {
    if let Some(dtype) = config.output.dtype.filter(|dtype| *dtype != Dtype::F32) {
        return Err(ConfigError(format!("a geometry is eight f32, not {}", dtype.name())));
    }
    match chain.program.turns() {
        None => Ok(()),
        Some(place) => Err(At::new(place, image.transforms[place].name()).error(
            "turns or warps the image, so that the crop is no longer an upright rectangle of the original, which is \
             all a geometry can describe; leave out one of the two",
        )),
    }
}

/// Numbers of a geometry.
const GEOMETRY: usize = 8;

/// Numbers of a rectangle.
const RECT: usize = 4;

/// Compiled pictures, shared by all threads.
#[derive(Clone, Debug)]
pub struct Pictures {
    groups: Vec<Group>,
    /// Pictures that say what is to be erased, each with the chain that it is about.
    erased: Vec<Member>,
    outputs: Vec<RowSpec>,
    limits: Limits,
}

/// What is made from one encoded image with one decode.
#[derive(Clone, Debug)]
struct Group {
    image: usize,
    want: Want,
    members: Vec<Member>,
    geometries: Vec<Member>,
}

#[derive(Clone, Debug)]
struct Member {
    picture: usize,
    chain: Chain,
    /// The encoded image whose size it must have: of a mask.
    like: Option<usize>,
}

/// A program, run once or as views, each with the next stream of draws.
#[derive(Clone, Debug)]
struct Chain {
    /// The picture whose own chain it is.
    picture: usize,
    program: Program,
    first: u32,
    views: u32,
}

impl Chain {
    fn streams(&self, key: SampleKey) -> impl Iterator<Item = Stream> + use<> {
        (self.first..self.first + self.views).map(move |number| Stream { key, number })
    }
}

impl Pictures {
    fn group(&mut self, image: usize, want: Want) -> &mut Group {
        let found = self.groups.iter().position(|group| (group.image, group.want) == (image, want));
        let at = found.unwrap_or_else(|| {
            self.groups.push(Group { image, want, members: Vec::new(), geometries: Vec::new() });
            self.groups.len() - 1
        });
        &mut self.groups[at]
    }

    /// What the row of each picture is.
    pub fn outputs(&self) -> &[RowSpec] {
        &self.outputs
    }

    /// Makes all pictures of a record. `encoded` are the record's images (a record may lack one that is only a mask,
    /// all of which is then 255, the value of what lies outside), `rows` a row each picture, all of which is written.
    /// On an error the content of the rows is unspecified.
    ///
    /// # Errors
    /// As [`crate::Chain::apply`], with the picture that cannot be made; and for a mask that is not of its image's
    /// size, has colours, or numbers that its row cannot hold.
    ///
    /// # Panics
    /// If an image or a row is missing, or a row has another length: a bug of the caller.
    pub fn apply(
        &self,
        encoded: &[Option<&[u8]>],
        key: SampleKey,
        scratch: &mut Scratch,
        rows: &mut [&mut [u8]],
    ) -> Result<(), PictureFault> {
        self.apply_with(encoded, key, scratch, rows, &mut [])
    }

    /// As [`Pictures::apply`], with the `targets` that move with pictures: each with the place in the list of its
    /// [`What::Image`], which no two share. They come in pixels of the upright original, and leave in pixels of the
    /// picture.
    ///
    /// # Errors
    /// As [`Pictures::apply`].
    ///
    /// # Panics
    /// As [`Pictures::apply`].
    pub fn apply_with(
        &self,
        encoded: &[Option<&[u8]>],
        key: SampleKey,
        scratch: &mut Scratch,
        rows: &mut [&mut [u8]],
        targets: &mut [(usize, Targets)],
    ) -> Result<(), PictureFault> {
        assert_eq!(rows.len(), self.outputs.len(), "a row for each picture");
        for (row, spec) in rows.iter().zip(&self.outputs) {
            assert_eq!(row.len(), spec.row_bytes(), "a row has the size that its picture announced");
        }
        for member in &self.erased {
            member.write_erased(key, rows[member.picture]);
        }
        let mut sizes = Vec::new();
        let mut moved = Vec::with_capacity(targets.len());
        let result = self.groups.iter().try_for_each(|group| {
            let Some(encoded) = encoded[group.image] else {
                group.absent(rows);
                return Ok(());
            };
            let mut record = Record { key, limits: &self.limits, sizes: &sizes, targets, moved: &mut moved };
            let header = group.run(encoded, &mut record, scratch, rows)?;
            sizes.push((group.image, header.upright()));
            Ok(())
        });
        scratch.settle();
        for (picture, after) in moved {
            let place = targets.iter().position(|(of, _)| *of == picture).expect("they were there before");
            targets[place].1 = after;
        }
        result
    }

    /// The place of the first step in the chain of a picture that needs boxes, if there is one.
    pub fn needs_boxes(&self, picture: usize) -> Option<usize> {
        self.members().find(|member| member.picture == picture)?.chain.program.needs_boxes()
    }

    /// Whether some chain may move what its image shows.
    pub fn moves(&self) -> bool {
        self.members().any(|member| member.chain.program.moves())
    }

    fn members(&self) -> impl Iterator<Item = &Member> {
        self.groups.iter().flat_map(|group| &group.members)
    }

    /// The place of a step of a picture's chain on whose result nothing that moves with the picture has one place.
    pub fn mixes(&self, picture: usize) -> Option<usize> {
        self.members().find(|member| member.picture == picture)?.chain.program.mixes()
    }
}

/// What the pictures of one record have in common.
struct Record<'a> {
    key: SampleKey,
    limits: &'a Limits,
    sizes: &'a Sizes,
    /// Before any step.
    targets: &'a [(usize, Targets)],
    /// After all of them.
    moved: &'a mut Vec<(usize, Targets)>,
}

impl Record<'_> {
    /// The targets that a chain decides by.
    fn targets_for(&self, chain: &Chain, header: Header) -> Targets {
        match self.targets.iter().find(|(picture, _)| *picture == chain.picture) {
            Some((_, targets)) if chain.program.needs_boxes().is_some() => {
                targets.in_pixels(header.upright())
            }
            _ => Targets::default(),
        }
    }
}

/// Width and height of the upright images whose headers have been read.
type Sizes = [(usize, (usize, usize))];

impl Group {
    /// Masks of a record that has none.
    fn absent(&self, rows: &mut [&mut [u8]]) {
        assert!(self.want.is_values() && self.geometries.is_empty(), "only masks may be lacking");
        let wide = self.want == Want::Values { wide: true };
        for member in &self.members {
            let row = &mut *rows[member.picture];
            row.fill(u8::MAX);
            if wide {
                row.as_chunks_mut().0.iter_mut().for_each(|value| *value = u16::from(u8::MAX).to_le_bytes());
            }
        }
    }

    fn run(
        &self,
        encoded: &[u8],
        record: &mut Record<'_>,
        scratch: &mut Scratch,
        rows: &mut [&mut [u8]],
    ) -> Result<Header, PictureFault> {
        let fault = |picture| move |error| PictureFault { picture, error };
        let Scratch { decoders, buffers } = scratch;
        let (key, limits) = (record.key, record.limits);
        let first = self.members[0].picture;
        let opened = decoders.open(encoded, limits, self.want).map_err(fault(first))?;
        let header = opened.header();
        for member in &self.members {
            member.check_size(header, record.sizes).map_err(fault(member.picture))?;
            if let Some((_, targets)) = record.targets.iter().find(|(of, _)| *of == member.picture) {
                let stream = Stream { key, number: member.chain.first };
                let targets = targets.in_pixels(header.upright());
                let picture = Picture::sketch(header, buffers, *limits).with(targets);
                let sketch = member.chain.program.sketch(picture, stream, limits);
                record.moved.push((member.picture, sketch.map_err(fault(member.picture))?.targets));
            }
        }
        for geometry in &self.geometries {
            let row = &mut *rows[geometry.picture];
            for stream in geometry.chain.streams(key) {
                let targets = record.targets_for(&geometry.chain, header);
                let picture = Picture::sketch(header, buffers, *limits).with(targets);
                let sketch = geometry.chain.program.sketch(picture, stream, limits);
                write_geometry(&sketch.map_err(fault(geometry.picture))?, header.upright(), row);
            }
        }
        if let [member] = &self.members[..]
            && member.chain.views == 1
        {
            // Alone it decodes what it needs by itself, and into the buffer where it goes on.
            let targets = record.targets_for(&member.chain, header);
            let picture = Picture::encoded(opened, buffers, *limits).with(targets);
            let stream = Stream { key, number: member.chain.first };
            let done = member.chain.program.run(picture, stream, false, limits, rows[member.picture]);
            return done.map(|()| header).map_err(fault(member.picture));
        }
        let mut needed: Option<Rect> = None;
        for member in &self.members {
            for stream in member.chain.streams(key) {
                let targets = record.targets_for(&member.chain, header);
                let picture = Picture::sketch(header, buffers, *limits).with(targets);
                let sketch = member.chain.program.sketch(picture, stream, limits);
                let stored = sketch.map_err(fault(member.picture))?.stored;
                needed = Some(needed.map_or(stored, |needed| needed.around(stored)));
            }
        }
        let needed = needed.expect("a group has members");
        let shared = buffers.share(opened, needed).map_err(fault(first))?;
        for member in &self.members {
            let Chain { program, .. } = &member.chain;
            let parts = rows[member.picture].chunks_exact_mut(program.pass.spec.row_bytes());
            for (stream, row) in member.chain.streams(key).zip(parts) {
                let targets = record.targets_for(&member.chain, header);
                let picture = Picture::shared(shared, buffers, *limits).with(targets);
                program.run(picture, stream, false, limits, row).map_err(fault(member.picture))?;
            }
        }
        Ok(header)
    }
}

impl Member {
    fn write_erased(&self, key: SampleKey, row: &mut [u8]) {
        let rects = self.chain.streams(key).flat_map(|stream| self.chain.program.erased(stream));
        for (to, rect) in row.as_chunks_mut::<{ 4 * RECT }>().0.iter_mut().zip(rects) {
            let numbers = rect.map_or([0; RECT], |rect| [rect.y, rect.x, rect.h, rect.w]);
            for (to, number) in to.as_chunks_mut::<4>().0.iter_mut().zip(numbers) {
                *to = (number as f32).to_ne_bytes();
            }
        }
    }

    /// A mask's pixels stand for those of its image.
    fn check_size(&self, header: Header, sizes: &Sizes) -> Result<(), SampleError> {
        let (w, h) = header.upright();
        let of_image = self.like.and_then(|like| sizes.iter().find(|(image, _)| *image == like));
        match of_image {
            Some((_, (image_w, image_h))) if (*image_w, *image_h) != (w, h) => {
                Err(SampleError::unsupported(format!(
                    "the mask is {w} x {h} pixels and its image {image_w} x {image_h} (width x height, upright): \
                     they must be the same size"
                )))
            }
            _ => Ok(()),
        }
    }
}

fn write_geometry(sketch: &Sketch, (w, h): (usize, usize), row: &mut [u8]) {
    let origin = &sketch.origin;
    let flag = |flip| if flip { 1.0 } else { 0.0 };
    let numbers: [f64; GEOMETRY] = [
        origin.y,
        origin.x,
        origin.h,
        origin.w,
        flag(origin.flip_x),
        flag(origin.flip_y),
        h as f64,
        w as f64,
    ];
    for (to, number) in row.as_chunks_mut::<4>().0.iter_mut().zip(numbers) {
        *to = (number as f32).to_ne_bytes();
    }
}

#[cfg(test)]
mod targets;
#[cfg(test)]
mod tests;
