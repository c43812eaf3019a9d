//! Image folder: one folder per class, images in it at any depth.
//!
//! ```text
//!  root/cat/0001.jpg            label 0   key "cat/0001.jpg"
//!  root/cat/kittens/7.png       label 0   key "cat/kittens/7.png"
//!  root/dog/0001.jpg            label 1   key "dog/0001.jpg"
//! ```
//!
//! - Classes are the folders directly under the root, sorted by name; the order of records is torchvision's
//!   `ImageFolder` order (class, then directory path, then file name, compared as bytes), so that indices can be
//!   compared.
//! - A class folder without images keeps its class, with a warning: labels do not shift because one folder is empty.
//!   (torchvision raises there.) A source without a single image is refused.
//! - Folders that systems and programs leave beside data (`__MACOSX`, `@eaDir`, `lost+found`, … ) are no classes,
//!   unless
//!   `classes` names them.
//! - Folders that are all called like parts of a data set (`train`, `val2017`) are no classes either: that is refused,
//!   and
//!   `classes` says otherwise.
//! - With `classes` given, that list is the mapping: a class without a folder is fine, a folder not in the list is an
//!   error.
//! - Images are recognised by their extension, in any case; other files are passed over and counted by their endings,
//!   hidden files and folders (leading dot) without a word. Of special files (pipes, devices, sockets) none is ever
//!   opened.
//! - Symbolic links are followed, to files and to folders. A folder that contains itself is entered once.
//! - A folder with images directly under it and no folders at all is an *unlabelled* source: no label, no classes. Next
//!   to class folders such images have no class; they are ignored, with a warning.
//!
//! The walk goes level by level and in parallel: first all directories of a level are listed, then the sizes of their
//! files are asked for, in pieces, so that one directory with a million files is as parallel as a thousand small ones.
//! Never more than one descriptor per thread is open.

mod local;
pub(crate) mod parts;
pub(crate) mod template;
mod walk;

use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use self::parts::{Column, Parts, Plan, coupled_notes};
use self::walk::{Counts, Listing, Pending, Root, Subfolder};
use crate::bytes::disk::{self, Files, Span};
use crate::bytes::remote::is_url;
use crate::gather;
use crate::labels;
use crate::names::{IMAGES, is_litter, shown};
use crate::opening;
use crate::recognised::{self, Recognised};
use crate::sources::manifest::{Manifest, ManifestBuilder, escape};
use crate::split::Split;
use crate::{
    Blocks, CacheConfig, Extent, Fingerprint, IndexedSource, Reader, ReaderConfig, Schema, SourceError,
};

/// Names of folders that are parts of a data set and no classes, also with numbers behind them.
const PARTS: [&str; 10] =
    ["train", "training", "val", "valid", "validation", "test", "testing", "dev", "eval", "holdout"];

/// Names of folders that lie beside parts and hold none.
const BESIDE_PARTS: [&str; 6] = ["annotations", "docs", "labels", "meta", "metadata", "splits"];

/// Directories may be nested this deep below the root.
const MAX_DEPTH: usize = 64;

/// A walk that meets more directories than this has run into links that multiply.
const MAX_DIRECTORIES: usize = 4 << 20;

/// Files whose sizes one task asks for.
const FILES_PER_TASK: usize = 2048;

/// Configuration of an image folder.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FolderConfig {
    /// The folder that holds the class folders: a path, or `s3://bucket/path` (also gs, az).
    pub root: PathBuf,
    /// Class names in label order. Default: the names of the class folders, sorted.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "crate::texts::optional")]
    pub classes: Option<Vec<String>>,
    /// `""` or null: the images without labels. Default: the class folders are the labels, if there are any.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "labels::name_or_none")]
    pub label: Option<String>,
    /// Use only a part of the records.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub split: Option<Split>,
    /// What records are to hold, by part. Filled in by a pipeline's fields.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deliver: crate::Deliver,
    /// Where copies are kept when the root is in a bucket.
    #[serde(default, skip_serializing_if = "CacheConfig::is_default")]
    pub cache: CacheConfig,
}

impl FolderConfig {
    /// The root, and the folders that templates of parts lead into.
    pub(crate) fn locations(&self) -> Vec<String> {
        let root = self.root.to_string_lossy();
        let parts = self.deliver.iter().flatten().filter(|wanted| wanted.part.contains('{'));
        let folders = parts.map(|wanted| template::folder(&wanted.part)).filter(|folder| !folder.is_empty());
        let place = |folder: &str| match is_url(&root) {
            // What leads out of the bucket is refused when it is opened.
            true => template::below(&root, folder).unwrap_or_else(|| format!("{root}/{folder}")),
            false => self.root.join(folder).to_string_lossy().into_owned(),
        };
        std::iter::once(root.clone().into_owned()).chain(folders.map(place)).collect()
    }

    /// Whether the images have labels.
    pub(crate) fn is_labelled(&self, manifest: &Manifest) -> Result<bool, SourceError> {
        let is_unwanted =
            labels::only_none(self.label.as_deref(), "the labels of an image folder are its class folders")?;
        Ok(!is_unwanted && !manifest.classes().is_empty())
    }
}

/// An open image folder.
#[derive(Debug)]
pub(crate) struct Folder {
    root: PathBuf,
    manifest: Manifest,
    parts: Option<Parts>,
    is_labelled: bool,
    split: Option<Split>,
}

impl Folder {
    pub(crate) fn open(config: &FolderConfig) -> Result<Self, SourceError> {
        if let Some(split) = &config.split {
            split.check()?;
        }
        let plan = Plan::new(config)?;
        let walked = list(config, plan.as_ref())?;
        let then = walked.state();
        let Walked { manifest, columns, counts, warnings, left_out } = walked;
        for warning in warnings {
            tracing::warn!("{warning}");
        }
        tracing::debug!(
            "{}: {} images of {} bytes in {} classes, the list takes {} bytes",
            shown(&config.root),
            manifest.len(),
            manifest.total_bytes(),
            manifest.classes().len(),
            manifest.memory()
        );
        let is_labelled = config.is_labelled(&manifest)?;
        let look = local::Local { root: &config.root, manifest: &manifest, counts: &counts };
        let parts = plan.clone().map(|plan| Parts::new(plan, columns, &look)).transpose()?;
        let mut recognised = recognised_as(&manifest, parts.as_ref(), is_labelled);
        coupled_notes(counts.images, counts.alone, &left_out)
            .into_iter()
            .for_each(|note| recognised.note(note));
        if let Some(passed_over) = counts.passed_over() {
            recognised.note(passed_over);
        }
        recognised.say(&shown(&config.root).to_string(), manifest.len());
        let config_then = config.clone();
        // The list again: names, sizes and classes are all that is kept of a folder. An image's bytes are read when
        // they are wanted.
        opening::depends_on(move || list(&config_then, plan.as_ref()).is_ok_and(|now| now.state() == then));
        Ok(Self { root: config.root.clone(), manifest, parts, is_labelled, split: config.split })
    }
}

/// What a walk made of an image folder.
pub(crate) fn recognised_as(manifest: &Manifest, parts: Option<&Parts>, is_labelled: bool) -> Recognised {
    let mut recognised = Recognised::default();
    if parts.is_none_or(|parts| parts.schema.image) {
        recognised.note("image = files");
    }
    parts.into_iter().flat_map(Parts::notes).for_each(|note| recognised.note(note));
    let place = is_labelled.then_some("class folders");
    recognised.note(recognised::label(place, manifest.classes()));
    recognised
}

/// Walks the folder on threads of its own.
fn list(config: &FolderConfig, plan: Option<&Plan>) -> Result<Walked, SourceError> {
    // Asking for sizes waits for the disk or the network when the directory cache is cold: more threads than cores.
    let threads = std::thread::available_parallelism().map_or(2, usize::from).clamp(8, 32);
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .thread_name(|number| format!("fuelrail-walk-{number}"))
        .build()
        .map_err(|error| {
            SourceError::backend(format!("no threads to read {}: {error}", shown(&config.root)))
        })?;
    let opening = opening::current().unwrap_or_default();
    pool.install(|| opening.run(|| build(config, plan)))
}

impl IndexedSource for Folder {
    fn len(&self) -> u64 {
        self.manifest.len()
    }

    fn key(&self, index: u64) -> String {
        self.manifest.key(index)
    }

    fn label(&self, index: u64) -> i64 {
        i64::from(self.manifest.label(index))
    }

    fn is_labelled(&self) -> bool {
        self.is_labelled
    }

    fn classes(&self) -> &[String] {
        if self.is_labelled { self.manifest.classes() } else { &[] }
    }

    fn chosen(&self) -> Vec<(&'static str, String)> {
        self.split.iter().filter_map(Split::chosen).collect()
    }

    fn schema(&self) -> Schema {
        self.parts.as_ref().map_or_else(Schema::images, |parts| parts.schema.clone())
    }

    fn size(&self, index: u64) -> u64 {
        match &self.parts {
            None => self.manifest.size(index),
            Some(parts) => parts.size(&self.manifest, index),
        }
    }

    fn extent(&self, index: u64) -> Option<Extent> {
        if self.parts.is_some() {
            return None;
        }
        let mut path = Vec::new();
        self.manifest.path(index, &mut path);
        Some(Extent {
            file: self.root.join(OsStr::from_bytes(&path)),
            offset: 0,
            len: self.manifest.size(index),
        })
    }

    fn blocks(&self) -> Blocks {
        Blocks::None
    }

    fn fingerprint(&self) -> Fingerprint {
        self.parts.as_ref().map_or_else(|| self.manifest.fingerprint(), Parts::fingerprint)
    }

    fn memory(&self) -> u64 {
        self.manifest.memory() + self.parts.as_ref().map_or(0, Parts::memory)
    }

    fn reader_memory(&self) -> u64 {
        self.parts.as_ref().map_or(0, |parts| gather::memory(parts.largest()))
    }

    fn reader(self: Arc<Self>, config: &ReaderConfig) -> Result<Box<dyn Reader>, SourceError> {
        match self.parts {
            None => disk::open(self, config),
            Some(_) => local::reader(self, config),
        }
    }
}

impl Files for Folder {
    fn root(&self) -> &Path {
        &self.root
    }

    fn locate(&self, index: u64, file: &mut Vec<u8>) -> Span {
        self.manifest.path(index, file);
        Span { offset: 0, len: self.manifest.size(index), whole: true }
    }

    fn key(&self, index: u64) -> String {
        self.manifest.key(index)
    }
}

/// What a walk found, and what is to be said of it.
struct Walked {
    manifest: Manifest,
    /// One for each of the plan's files.
    columns: Vec<Column>,
    counts: Counts,
    warnings: Vec<String>,
    /// Folders that hold parts and no records.
    left_out: Vec<String>,
}

impl Walked {
    /// Equal for equal lists.
    fn state(&self) -> (Fingerprint, u128) {
        (self.manifest.fingerprint(), parts::state(&self.columns))
    }
}

/// Walks the folder and makes the manifest.
fn build(config: &FolderConfig, plan: Option<&Plan>) -> Result<Walked, SourceError> {
    let mut root = Root::open(&config.root, plan)?;
    if let Some(plan) = plan {
        root.left_out = local::folders_of_parts(&config.root, plan);
    }
    let mut top = root.list(Path::new(""), &root.ancestors)?;
    let named = |folder: &Subfolder| {
        let name = escape(folder.path.as_os_str().as_bytes());
        config.classes.as_ref().is_some_and(|classes| classes.contains(&name))
    };
    top.folders.retain(|folder| !is_litter(folder.path.as_os_str().as_bytes()) || named(folder));
    if top.folders.is_empty() {
        return unlabelled(config, &root, top);
    }
    let folders = class_folders(config, &top)?;
    let names: Vec<String> = folders.iter().map(|(name, ..)| name.clone()).collect();
    let labels: Vec<u32> = folders.iter().map(|(_, label, _)| *label).collect();
    let mut counts = top.counts.clone();

    let level = folders.into_iter().map(|(_, class, folder)| Pending { class, folder }).collect();
    let mut listings = root.walk(level)?;
    if let Some(plan) = plan {
        local::leave_out_files_of_templates(plan, &mut listings);
    }
    // Classes by label; within one class by the path of the directory, as torchvision does.
    // (Bytes, not `Path`s: those compare part by part, which puts "a/b/c" before "a/b-c".)
    listings.par_sort_unstable_by(|(a_class, a), (b_class, b)| {
        (a_class, a.path.as_os_str().as_bytes()).cmp(&(b_class, b.path.as_os_str().as_bytes()))
    });

    let records = listings.iter().map(|(_, listing)| listing.len()).sum();
    let name_bytes = listings.iter().map(|(_, listing)| listing.names.len()).sum();
    let mut manifest = ManifestBuilder::with_capacity(records, name_bytes);
    let mut columns = columns(plan);
    let mut classes: Vec<Class> = names
        .into_iter()
        .zip(labels)
        .map(|(name, label)| Class { name, label, images: 0, deeper: 0 })
        .collect();
    let places: HashMap<u32, usize> =
        classes.iter().enumerate().map(|(at, class)| (class.label, at)).collect();
    let mut seen = 0;
    for (label, listing) in listings {
        counts.add(&listing.counts);
        let images = listing.add_to(&mut manifest, &mut columns, label, config.split.as_ref());
        let class = &mut classes[places[&label]];
        let is_deeper = listing.path.components().count() > 1;
        class.images += images;
        class.deeper +=
            usize::from(is_deeper && images > 0) + usize::from(!is_deeper && images > 0) * usize::MAX / 2;
        seen += images;
    }
    let manifest = manifest.build(match &config.classes {
        Some(classes) => classes.clone(),
        None => classes.iter().map(|class| class.name.clone()).collect(),
    });
    if seen == 0 {
        let what = records_are(plan);
        let mut message = format!(
            "no {what} in the {} class folders of {} ({what} end in {}){}{}",
            classes.len(),
            shown(&config.root),
            records_end_in(plan),
            counts.instead(),
            all_are_parts(counts.alone),
        );
        if top.len() > 0 {
            message += &format!(
                "; {} images lie directly in it: move them into class folders, or remove the empty folders to use them \
                 without labels",
                top.len()
            );
        }
        return Err(SourceError::data(message));
    }
    let with_images: Vec<&str> =
        classes.iter().filter(|class| class.images > 0).map(|class| class.name.as_str()).collect();
    check_level(config, &with_images)?;
    check_split(config, &manifest, seen)?;
    let mut warnings = counts.warnings(&config.root);
    if top.len() > 0 {
        warnings.push(format!(
            "{} images directly in {} have no class and are ignored; move them into class folders",
            top.len(),
            shown(&config.root)
        ));
    }
    warnings.extend(doubts(config, &classes));
    if let Some(plan) = plan {
        local::measure_templates(&root, plan, &manifest, &mut columns)?;
    }
    Ok(Walked { manifest, columns, counts, warnings, left_out: root.left_out() })
}

fn records_are(plan: Option<&Plan>) -> &'static str {
    if plan.is_none_or(|plan| plan.has_image) { "images" } else { "records" }
}

fn records_end_in(plan: Option<&Plan>) -> String {
    plan.map_or_else(extensions, Plan::records_end_in)
}

/// That files which may be images are asked for as parts of others.
pub(crate) fn all_are_parts(alone: u64) -> String {
    match alone {
        0 => String::new(),
        alone => format!(
            "; {alone} files there end as parts do that are asked for, and are no images of their own"
        ),
    }
}

/// Room for what belongs to records.
fn columns(plan: Option<&Plan>) -> Vec<Column> {
    vec![Column::default(); plan.map_or(0, |plan| plan.files.len())]
}

/// A class folder and what was found in it.
struct Class {
    name: String,
    label: u32,
    images: u64,
    /// Folders below it that hold images; as good as without end when it holds some itself.
    deeper: usize,
}

/// What may be wrong with class folders that are usable.
fn doubts(config: &FolderConfig, classes: &[Class]) -> Vec<String> {
    let root = shown(&config.root);
    let mut doubts = Vec::new();
    let empty: Vec<String> =
        classes.iter().filter(|class| class.images == 0).map(|class| class.name.clone()).collect();
    if !empty.is_empty() {
        doubts.push(format!(
            "{root}: {} of {} class folders hold no image and remain classes: {}",
            empty.len(),
            classes.len(),
            some(&empty)
        ));
    }
    let mut lower: Vec<(String, &str)> =
        classes.iter().map(|class| (class.name.to_lowercase(), class.name.as_str())).collect();
    lower.sort_unstable();
    for pair in lower.windows(2).filter(|pair| pair[0].0 == pair[1].0) {
        doubts.push(format!(
            "{root}: \"{}\" and \"{}\" are two classes that differ only in case",
            pair[0].1, pair[1].1
        ));
    }
    if let [class] = classes
        && (2..usize::MAX / 2).contains(&class.deeper)
        && config.classes.is_none()
    {
        doubts.push(format!(
            "{root}: its one class folder, {0}, holds {1} folders with images; if these are the classes, give {2}",
            class.name,
            class.deeper,
            shown(&config.root.join(&class.name))
        ));
    }
    doubts
}

/// A folder without folders: its images, without labels.
fn unlabelled(config: &FolderConfig, root: &Root<'_>, top: Listing) -> Result<Walked, SourceError> {
    let place = shown(&config.root);
    if top.len() == 0 {
        return Err(SourceError::data(format!(
            "no {} in {place}: it has no class folders and no files that end in {}{}{}; give the folder that holds one \
             folder per class",
            records_are(root.plan),
            records_end_in(root.plan),
            top.counts.instead(),
            all_are_parts(top.counts.alone),
        )));
    }
    if config.classes.is_some() {
        return Err(SourceError::data(format!(
            "{place} has no class folders, only images, but classes are given; move the images into one folder per class, \
             or leave out classes to use them without labels"
        )));
    }
    let mut listings = vec![(0, top)];
    root.measure(&mut listings)?;
    if let Some(plan) = root.plan {
        local::leave_out_files_of_templates(plan, &mut listings);
    }
    let (_, top) = listings.pop().expect("the one listing");
    let mut manifest = ManifestBuilder::with_capacity(top.len(), top.names.len());
    let mut columns = columns(root.plan);
    let seen = top.add_to(&mut manifest, &mut columns, 0, config.split.as_ref());
    let manifest = manifest.build(Vec::new());
    check_split(config, &manifest, seen)?;
    if let Some(plan) = root.plan {
        local::measure_templates(root, plan, &manifest, &mut columns)?;
    }
    let warnings = top.counts.warnings(&config.root);
    Ok(Walked { manifest, columns, counts: top.counts, warnings, left_out: root.left_out() })
}

/// Refuses class folders that are all called like parts of a data set.
pub(crate) fn check_level(config: &FolderConfig, with_images: &[&str]) -> Result<(), SourceError> {
    if config.classes.is_some() || with_images.is_empty() || !with_images.iter().all(|name| is_part(name)) {
        return Ok(());
    }
    let quoted: Vec<String> = with_images.iter().map(|name| format!("{name:?}")).collect();
    Err(SourceError::data(format!(
        "the folders in {} are named like parts of a data set ({}), not like classes: give one of them as the \
         folder, such as {}; if they are classes, say so with classes=[{}]",
        shown(&config.root),
        with_images.join(", "),
        shown(&config.root.join(with_images[0])),
        quoted.join(", ")
    )))
}

/// Whether a folder is called like a part of a data set: `train`, `Val`, `test2017`, `train_images`.
fn is_part(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    let name = name.strip_suffix("_images").or_else(|| name.strip_suffix("_set")).unwrap_or(&name);
    PARTS.contains(&name.trim_end_matches(|c: char| c.is_ascii_digit() || c == '_' || c == '-'))
}

/// The folder of this name in one that holds nothing but parts of a data set.
pub(crate) fn part(root: &Path, name: &str) -> Option<PathBuf> {
    let mut found = None;
    for entry in std::fs::read_dir(root).ok()?.flatten() {
        let folder = entry.file_name();
        if is_litter(folder.as_bytes()) || !entry.path().is_dir() {
            continue;
        }
        let folder = folder.to_string_lossy();
        if folder == name && is_part(name) {
            found = Some(entry.path());
        } else if !is_part(&folder) && !BESIDE_PARTS.contains(&&*folder.to_lowercase()) {
            return None;
        }
    }
    found
}

pub(crate) fn check_split(config: &FolderConfig, manifest: &Manifest, seen: u64) -> Result<(), SourceError> {
    match config.split {
        Some(split) if manifest.is_empty() => Err(SourceError::config(format!(
            "split: none of the {seen} images of {} belongs to the part \"{split}\"; choose another one",
            shown(&config.root),
        ))),
        _ if manifest.is_empty() => Err(SourceError::data(format!(
            "all images of {} vanished while it was read; try again",
            shown(&config.root)
        ))),
        _ => Ok(()),
    }
}

/// The class folders with their names and labels, in order.
fn class_folders(config: &FolderConfig, top: &Listing) -> Result<Vec<(String, u32, Subfolder)>, SourceError> {
    let names: Vec<_> = top.folders.iter().map(|folder| escape(folder.path.as_os_str().as_bytes())).collect();
    let labels = class_labels(config, &names)?;
    let folders = top.folders.iter().cloned();
    Ok(names
        .into_iter()
        .zip(labels)
        .zip(folders)
        .map(|((name, label), folder)| (name, label, folder))
        .collect())
}

/// The labels of class folders whose names come sorted.
pub(crate) fn class_labels(config: &FolderConfig, names: &[String]) -> Result<Vec<u32>, SourceError> {
    let Some(classes) = &config.classes else { return Ok((0..names.len() as u32).collect()) };
    let mut sorted: Vec<_> = classes.iter().collect();
    sorted.sort_unstable();
    if let Some(pair) = sorted.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(SourceError::config(format!("classes lists {:?} twice; remove one", pair[0])));
    }
    let label = |name: &String| match classes.iter().position(|class| class == name) {
        Some(class) => Ok(class as u32),
        None => Err(SourceError::data(format!(
            "folder {} is not in the list of classes ({}); add {name:?} to classes or move the folder away",
            shown(&config.root.join(name)),
            some(classes)
        ))),
    };
    names.iter().map(label).collect()
}

/// The first few names of a long list.
fn some(names: &[String]) -> String {
    match names.len() {
        0 => "which is empty".to_owned(),
        1..=8 => names.join(", "),
        len => format!("{}, … {} in all", names[..8].join(", "), len),
    }
}

pub(crate) fn extensions() -> String {
    IMAGES.map(|ending| format!(".{ending}")).join(" ")
}

#[cfg(test)]
mod tests;
