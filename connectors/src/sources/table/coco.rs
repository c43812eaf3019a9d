//! COCO's annotations (`instances_*.json`, `person_keypoints_*.json`, `captions_*.json`) as a table: a row an image,
//! with what belongs to it in lists.
//!
//! | column | |
//! |---|---|
//! | `path` | `file_name` of the image, below the source's `root` |
//! | `image_id`, `width`, `height` | as in the file |
//! | `boxes` | left, top, right, bottom of each annotation (the file has left, top, width, height) |
//! | `classes` | its category as a number from 0 on, by the order of the ids; names in the source's classes |
//! | `category_id`, `area`, `iscrowd`, `annotation_id` | of each, as in the file |
//! | `keypoints` | x, y, visibility of each point, where the file has some |
//! | `captions` | a JSON list of texts, where the file has some |
//!
//! Images are in the file's order, and so are the annotations of each. An image without annotations is a row with empty
//! lists. Outlines (`segmentation`) are not read.

use std::borrow::Cow;
use std::collections::HashMap;
use std::io::{BufReader, Read};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;

use super::text::OF_IMAGES;
use super::{Piece, Rows};
use crate::arrow::array::{
    ArrayRef, FixedSizeListBuilder, Float64Builder, Int64Builder, ListBuilder, RecordBatch, StringBuilder,
};
use crate::arrow::datatypes::{Field, Schema, SchemaRef};
use crate::bytes::shards::Shards;
use crate::opening::Step;
use crate::{SourceError, json};

/// The column of the images' paths.
pub(super) const PATH: &str = "path";

/// Annotations of one image beyond this are a mistake.
const MOST_EACH: usize = 1 << 20;

/// Bytes in which the first image's name is looked for.
const LOOKED_AT: u64 = 1 << 20;

/// Most numbers of the keypoints of one annotation.
const MOST_KEYPOINTS: usize = 3 * 4096;

/// Whether the object that a file begins with has the keys of such a file, as far as it is known: all of it, or its
/// beginning.
pub(super) fn has_its_keys(keys: &[String], whole: bool) -> bool {
    let has = |key: &str| keys.iter().any(|known| known == key);
    let others = has("annotations") || has("categories") || has("info") || has("licenses");
    others && (has("images") || (!whole && has("annotations")))
}

/// Where the images of such a file probably are, by where its first one is: beside it, or in a folder of the part of
/// the data set that the file is of (`annotations/instances_val2017.json` with `val2017`).
pub(crate) fn root_of(file: &Path) -> Option<PathBuf> {
    let mut beginning = Vec::new();
    std::fs::File::open(file).ok()?.take(LOOKED_AT).read_to_end(&mut beginning).ok()?;
    let text = String::from_utf8_lossy(&beginning);
    let text = text.trim_start_matches('\u{feff}').trim_start();
    let rest = text.strip_prefix('{').and_then(|_| text.split_once("\"file_name\""))?.1;
    let quoted = rest.trim_start().strip_prefix(':')?.trim_start();
    let first = serde_json::Deserializer::from_str(quoted).into_iter::<String>().next()?.ok()?;
    let folder = file.parent()?;
    let stem = file.file_stem()?.to_string_lossy().into_owned();
    let part = stem.rsplit_once('_').map_or(stem.as_str(), |(_, part)| part);
    let above = folder.parent().unwrap_or(folder);
    let candidates = [
        folder.to_path_buf(),
        folder.join("images"),
        above.join(part),
        above.join("images").join(part),
        above.join("images"),
        above.to_path_buf(),
    ];
    candidates.into_iter().find(|root| root.join(&first).is_file())
}

#[derive(Deserialize)]
struct Document<'a> {
    #[serde(borrow)]
    images: Vec<Image<'a>>,
    #[serde(borrow, default)]
    annotations: Option<Vec<Annotation<'a>>>,
    #[serde(borrow, default)]
    categories: Vec<Category<'a>>,
}

#[derive(Deserialize)]
struct Image<'a> {
    #[serde(borrow)]
    id: Id<'a>,
    #[serde(borrow)]
    file_name: Cow<'a, str>,
    #[serde(default)]
    width: Option<i64>,
    #[serde(default)]
    height: Option<i64>,
}

#[derive(Deserialize)]
struct Annotation<'a> {
    #[serde(borrow, default)]
    id: Option<Id<'a>>,
    #[serde(borrow)]
    image_id: Id<'a>,
    #[serde(borrow, default)]
    category_id: Option<Id<'a>>,
    #[serde(default)]
    bbox: Option<Vec<Option<f64>>>,
    #[serde(default)]
    area: Option<f64>,
    #[serde(default)]
    iscrowd: Option<Flag>,
    #[serde(default)]
    keypoints: Option<Vec<Option<f64>>>,
    #[serde(borrow, default)]
    caption: Option<Cow<'a, str>>,
}

#[derive(Deserialize)]
struct Category<'a> {
    #[serde(borrow)]
    id: Id<'a>,
    #[serde(borrow)]
    name: Cow<'a, str>,
}

/// Some tools write numbers as texts.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[serde(untagged)]
enum Id<'a> {
    Number(i64),
    #[serde(borrow)]
    Text(Cow<'a, str>),
}

impl Id<'_> {
    /// As a number: a text has none of its own.
    fn number(&self) -> i64 {
        match self {
            Id::Number(number) => *number,
            Id::Text(text) => text.parse().unwrap_or(-1),
        }
    }
}

impl std::fmt::Display for Id<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Id::Number(number) => write!(f, "{number}"),
            Id::Text(text) => write!(f, "{text:?}"),
        }
    }
}

#[derive(Clone, Copy, Deserialize)]
#[serde(untagged)]
enum Flag {
    Number(i64),
    Bool(bool),
}

/// A file's rows, made when it was opened.
pub(super) struct File {
    batch: RecordBatch,
    /// For each view its columns.
    views: Vec<Vec<usize>>,
}

/// What a file says.
pub(super) struct Head {
    batch: RecordBatch,
    /// Names of the categories, by the order of their ids.
    pub classes: Vec<String>,
    /// What was recognised in it.
    pub facts: Vec<String>,
}

impl Head {
    /// Reads a file.
    pub fn read(shards: &Shards, shard: usize, step: &Step) -> Result<Self, SourceError> {
        let name = shards.display(shard);
        let refuse = |why: String| SourceError::data(format!("{name}: {why}"));
        let size = shards.files()[shard].size;
        let mut text = Vec::new();
        let room = usize::try_from(size).ok().is_some_and(|size| text.try_reserve_exact(size).is_ok());
        if !room {
            return Err(refuse(format!("there is no memory for its {} MiB", size >> 20)));
        }
        let stream = Stream { shards, shard, at: 0, size, step };
        BufReader::with_capacity(1 << 20, stream)
            .read_to_end(&mut text)
            .map_err(|error| SourceError::data(error.to_string()))?;
        let body = text.strip_prefix("\u{feff}".as_bytes()).unwrap_or(&text);
        let plain = json::plain(body);
        let document: Document<'_> = serde_json::from_slice(&plain).map_err(|error| {
            refuse(format!(
                "these COCO annotations cannot be read: {error}; \"images\" is a list of objects with id and \
                 file_name, and \"annotations\" one of objects with image_id, category_id and bbox"
            ))
        })?;
        document.head().map_err(refuse)
    }

    pub fn schema(&self) -> SchemaRef {
        self.batch.schema()
    }

    pub fn is_empty(&self) -> bool {
        self.batch.num_rows() == 0
    }
}

struct Stream<'shards> {
    shards: &'shards Shards,
    shard: usize,
    at: u64,
    size: u64,
    step: &'shards Step,
}

impl Read for Stream<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let len = (buffer.len() as u64).min(self.size - self.at) as usize;
        if len > 0 {
            self.shards.read_at(self.shard, self.at, &mut buffer[..len])?;
            self.at += len as u64;
            self.step.add(len as u64);
        }
        Ok(len)
    }
}

/// Numbers by id, each once.
fn numbered<'a, 'doc: 'a>(
    what: &str,
    ids: impl Iterator<Item = &'a Id<'doc>>,
) -> Result<HashMap<&'a Id<'doc>, usize>, String> {
    let mut known = HashMap::new();
    for (at, id) in ids.enumerate() {
        if known.insert(id, at).is_some() {
            return Err(format!("two {what} have the id {id}; ids must be unique"));
        }
    }
    Ok(known)
}

impl Document<'_> {
    fn head(&self) -> Result<Head, String> {
        let images = numbered("images", self.images.iter().map(|image| &image.id))?;
        let mut sorted: Vec<&Category<'_>> = self.categories.iter().collect();
        sorted.sort_by_key(|category| &category.id);
        let categories = numbered("categories", sorted.iter().map(|category| &category.id))?;
        let annotations = self.annotations.as_deref().unwrap_or_default();
        let with_ids = annotations.iter().filter_map(|annotation| annotation.id.as_ref());
        drop(numbered("annotations", with_ids)?);
        let mut of_image: Vec<Vec<usize>> = vec![Vec::new(); self.images.len()];
        for (at, annotation) in annotations.iter().enumerate() {
            let named = || match &annotation.id {
                Some(id) => format!("annotation {id}"),
                None => format!("annotations[{at}]"),
            };
            let image = images.get(&annotation.image_id).ok_or_else(|| {
                format!(
                    "{}: image_id {} is none of the {} images",
                    named(),
                    annotation.image_id,
                    images.len()
                )
            })?;
            if let Some(category) = &annotation.category_id
                && !categories.contains_key(category)
            {
                return Err(format!(
                    "{}: category_id {category} is none of the {} categories",
                    named(),
                    categories.len()
                ));
            }
            if let Some(found) = annotation.bbox.as_ref().map(Vec::len).filter(|found| *found != 4) {
                return Err(format!(
                    "{}: bbox has {found} numbers, not 4 (left, top, width, height)",
                    named()
                ));
            }
            of_image[*image].push(at);
            if of_image[*image].len() > MOST_EACH {
                return Err(format!("image {} has more than {MOST_EACH} annotations", annotation.image_id));
            }
        }
        let captions = annotations.iter().any(|annotation| annotation.caption.is_some());
        let mut columns: Vec<(Field, ArrayRef)> = self.of_images();
        if !captions || annotations.iter().any(|annotation| annotation.bbox.is_some()) {
            columns.extend(boxes(annotations, &of_image, &categories)?);
        }
        if captions {
            let texts = of_image.iter().map(|list| {
                let texts = list.iter().filter_map(|&at| annotations[at].caption.as_deref());
                serde_json::to_string(&texts.collect::<Vec<_>>()).expect("texts are JSON")
            });
            let mut builder = StringBuilder::new();
            texts.for_each(|text| builder.append_value(text));
            columns.push(named("captions", Arc::new(builder.finish())));
        }
        let empty = of_image.iter().filter(|list| list.is_empty()).count();
        let mut facts = vec![format!(
            "COCO: {} images, {} annotations, {} categories",
            self.images.len(),
            annotations.len(),
            sorted.len()
        )];
        if empty > 0 {
            facts.push(format!("{empty} images have no annotations and are records with empty lists"));
        }
        let (fields, arrays): (Vec<Field>, Vec<ArrayRef>) = columns.into_iter().unzip();
        let batch =
            RecordBatch::try_new(Arc::new(Schema::new(fields)), arrays).map_err(|error| error.to_string())?;
        let classes = sorted.iter().map(|category| category.name.clone().into_owned()).collect();
        Ok(Head { batch, classes, facts })
    }

    fn of_images(&self) -> Vec<(Field, ArrayRef)> {
        let (mut paths, mut ids) = (StringBuilder::new(), Int64Builder::new());
        let (mut widths, mut heights) = (Int64Builder::new(), Int64Builder::new());
        for image in &self.images {
            paths.append_value(&image.file_name);
            ids.append_value(image.id.number());
            widths.append_option(image.width);
            heights.append_option(image.height);
        }
        let (path, paths) = named(PATH, Arc::new(paths.finish()));
        let mark = [(OF_IMAGES.to_owned(), String::new())];
        vec![
            (path.with_metadata(HashMap::from(mark)), paths),
            named("image_id", Arc::new(ids.finish())),
            named("width", Arc::new(widths.finish())),
            named("height", Arc::new(heights.finish())),
        ]
    }
}

fn named(name: &str, array: ArrayRef) -> (Field, ArrayRef) {
    (Field::new(name, array.data_type().clone(), true), array)
}

/// The columns of lists: an entry each annotation that has a box.
fn boxes(
    annotations: &[Annotation<'_>],
    of_image: &[Vec<usize>],
    categories: &HashMap<&Id<'_>, usize>,
) -> Result<Vec<(Field, ArrayRef)>, String> {
    let points = annotations.iter().filter_map(|one| one.keypoints.as_ref()).map(Vec::len).max();
    let points = points.filter(|points| *points > 0);
    if let Some(points) = points.filter(|points| *points % 3 != 0 || *points > MOST_KEYPOINTS) {
        return Err(format!(
            "an annotation has {points} numbers of keypoints, which are not triples of x, y, visibility"
        ));
    }
    let whole = || ListBuilder::new(Int64Builder::new());
    let mut edges = ListBuilder::new(FixedSizeListBuilder::new(Float64Builder::new(), 4));
    let mut areas = ListBuilder::new(Float64Builder::new());
    let [mut classes, mut ids, mut crowds, mut own] = [whole(), whole(), whole(), whole()];
    let each = points.unwrap_or(1);
    let mut keypoints = ListBuilder::new(FixedSizeListBuilder::new(Float64Builder::new(), each as i32));
    for list in of_image {
        for annotation in list.iter().map(|&at| &annotations[at]) {
            let Some(&[a, b, c, d]) = annotation.bbox.as_deref() else { continue };
            // What is no number makes a box that is none.
            let [left, top, width, height] =
                [a, b, c, d].map(|number: Option<f64>| number.unwrap_or(f64::NAN));
            let four = [left, top, left + width, top + height];
            edges.values().values().append_slice(&four);
            edges.values().append(true);
            let category = annotation.category_id.as_ref();
            let class = category.and_then(|category| categories.get(category));
            classes.values().append_value(class.map_or(-1, |class| *class as i64));
            ids.values().append_value(category.map_or(-1, Id::number));
            areas.values().append_value(annotation.area.unwrap_or(width * height));
            crowds.values().append_value(match annotation.iscrowd {
                Some(Flag::Number(number)) => number,
                Some(Flag::Bool(flag)) => i64::from(flag),
                None => 0,
            });
            own.values().append_value(annotation.id.as_ref().map_or(-1, Id::number));
            let found = annotation.keypoints.as_deref().unwrap_or_default();
            if !found.is_empty() && found.len() != each {
                let id = annotation.id.as_ref().map_or("?".to_owned(), Id::to_string);
                return Err(format!(
                    "annotation {id} has {} numbers of keypoints, where others have {each}",
                    found.len()
                ));
            }
            // Without keypoints of its own it has none that are there.
            let row = (0..each).map(|at| found.get(at).map_or(0.0, |number| number.unwrap_or(f64::NAN)));
            row.for_each(|number| keypoints.values().values().append_value(number));
            keypoints.values().append(true);
        }
        edges.append(true);
        areas.append(true);
        keypoints.append(true);
        for builder in [&mut classes, &mut ids, &mut crowds, &mut own] {
            builder.append(true);
        }
    }
    let mut columns = vec![
        named("boxes", Arc::new(edges.finish())),
        named("classes", Arc::new(classes.finish())),
        named("category_id", Arc::new(ids.finish())),
        named("area", Arc::new(areas.finish())),
        named("iscrowd", Arc::new(crowds.finish())),
        named("annotation_id", Arc::new(own.finish())),
    ];
    if points.is_some() {
        columns.push(named("keypoints", Arc::new(keypoints.finish())));
    }
    Ok(columns)
}

impl File {
    pub fn new(head: Head, views: &[Vec<String>; 2]) -> Self {
        let schema = head.batch.schema();
        let place = |name: &String| schema.index_of(name).expect("the columns were chosen from it");
        let views = views.iter().map(|view| view.iter().map(place).collect()).collect();
        Self { batch: head.batch, views }
    }

    pub fn part(&self) -> Rows {
        let bytes = self.batch.get_array_memory_size() as u64;
        Rows { rows: self.batch.num_rows() as u64, bytes, divisible: true }
    }

    pub fn memory(&self) -> u64 {
        self.batch.get_array_memory_size() as u64
    }

    pub fn decode(&self, view: usize, rows: Range<u64>) -> Vec<Piece> {
        let (from, len) = (rows.start as usize, (rows.end - rows.start) as usize);
        let columns = self.views[view].iter().map(|&at| self.batch.column(at).slice(from, len)).collect();
        vec![Piece { rows, columns: Ok(columns) }]
    }
}
