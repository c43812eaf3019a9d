//! Image folder: one folder per class, images in it at any depth.
//!
//! ```text
//!  root/cat/0001.jpg            label 0   key "cat/0001.jpg"
//!  root/cat/kittens/7.png       label 0   key "cat/kittens/7.png"
//!  root/dog/0001.jpg            label 1   key "dog/0001.jpg"
//! ```
//!
//! - Classes are the folders directly under the root, sorted by name; the order of records is torchvision's `ImageFolder`
//!   order (class, then directory path, then file name, compared as bytes), so that indices can be compared.
//! - A class folder without images keeps its class: labels do not shift because one folder is empty. (torchvision raises
//!   there.) A source without a single image is refused.
//! - With `classes` given, that list is the mapping: a class without a folder is fine, a folder not in the list is an error.
//! - Images are recognised by their extension, in any case; other files, and hidden files and folders (leading dot), are
//!   ignored and counted in the log. Of special files (pipes, devices, sockets) none is ever opened.
//! - Symbolic links are followed, to files and to folders. A folder that contains itself is entered once.
//! - A folder with images directly under it and no folders at all is an *unlabelled* source: label 0, no classes. Next to
//!   class folders such images have no class; they are ignored, with a warning.
//!
//! The walk goes level by level and in parallel: first all directories of a level are listed, then the sizes of their files
//! are asked for, in pieces, so that one directory with a million files is as parallel as a thousand small ones. Never
//! more than one descriptor per thread is open.

mod walk;

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use self::walk::{Listing, Pending, Root, Subfolder};
use crate::disk::{self, Files, Span};
use crate::manifest::{Manifest, ManifestBuilder, escape};
use crate::opening;
use crate::recognised::{self, Recognised};
use crate::{Blocks, CacheConfig, Extent, Fingerprint, IndexedSource, Reader, ReaderConfig, SourceError};

/// Endings (without the dot, lower case) that make a file an image.
const EXTENSIONS: [&str; 12] =
    ["jpg", "jpeg", "png", "ppm", "pgm", "pnm", "bmp", "tif", "tiff", "webp", "gif", "avif"];

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
    /// Use only a part of the records.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub split: Option<Split>,
    /// Where copies are kept when the root is in a bucket.
    #[serde(default, skip_serializing_if = "CacheConfig::is_default")]
    pub cache: CacheConfig,
}

/// A part of a source, chosen by a hash of each record's key.
///
/// The hash depends on the relative path alone: adding a file moves no other file from one part to the other, and every
/// machine agrees. Both parts have the same classes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Split {
    /// The part wanted.
    pub part: SplitPart,
    /// Fraction of keys that belong to `val`, from 0 to 1; the others belong to `train`.
    pub fraction: f64,
}

/// The parts of a split.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SplitPart {
    /// Keys whose hash, taken as a fraction, is not below [`Split::fraction`].
    Train,
    /// Keys whose hash, taken as a fraction, is below [`Split::fraction`].
    Val,
}

impl Split {
    pub(crate) fn check(&self) -> Result<(), SourceError> {
        if (0.0..=1.0).contains(&self.fraction) {
            return Ok(());
        }
        Err(SourceError::config(format!(
            "split.fraction is {}; it must be from 0 to 1 (the fraction of records that belong to \"val\")",
            self.fraction
        )))
    }

    /// Whether the record with this relative path belongs to the part.
    pub(crate) fn holds(&self, path: &[u8]) -> bool {
        // 53 bits, so that the fraction is exact in f64 and always below 1: with fraction 1 nothing is left for train.
        let fraction = (xxh3_64(path) >> 11) as f64 / (1u64 << 53) as f64;
        match self.part {
            SplitPart::Val => fraction < self.fraction,
            SplitPart::Train => fraction >= self.fraction,
        }
    }
}

/// An open image folder.
#[derive(Debug)]
pub(crate) struct Folder {
    root: PathBuf,
    manifest: Manifest,
}

impl Folder {
    pub(crate) fn open(config: &FolderConfig) -> Result<Self, SourceError> {
        if let Some(split) = &config.split {
            split.check()?;
        }
        let manifest = list(config)?;
        tracing::debug!(
            "{}: {} images of {} bytes in {} classes, the list takes {} bytes",
            config.root.display(),
            manifest.len(),
            manifest.total_bytes(),
            manifest.classes().len(),
            manifest.memory()
        );
        recognised_as(&manifest).say(&config.root.to_string_lossy(), manifest.len());
        let (config_then, then) = (config.clone(), manifest.fingerprint());
        // The list again: names, sizes and classes are all that is kept of a folder. An image's bytes are read when they are
        // wanted.
        opening::depends_on(move || list(&config_then).is_ok_and(|now| now.fingerprint() == then));
        Ok(Self { root: config.root.clone(), manifest })
    }
}

/// What a walk made of an image folder.
pub(crate) fn recognised_as(manifest: &Manifest) -> Recognised {
    let mut recognised = Recognised::default();
    recognised.note("image = files");
    let place = (!manifest.classes().is_empty()).then_some("class folders");
    recognised.note(recognised::label(place, manifest.classes()));
    recognised
}

/// Walks the folder on threads of its own.
fn list(config: &FolderConfig) -> Result<Manifest, SourceError> {
    // Asking for sizes waits for the disk or the network when the directory cache is cold: more threads than cores.
    let threads = std::thread::available_parallelism().map_or(2, usize::from).clamp(8, 32);
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .thread_name(|number| format!("fuelrail-walk-{number}"))
        .build()
        .map_err(|error| {
            SourceError::backend(format!("no threads to read {}: {error}", config.root.display()))
        })?;
    let opening = opening::current().unwrap_or_default();
    pool.install(|| opening.run(|| build(config)))
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

    fn classes(&self) -> &[String] {
        self.manifest.classes()
    }

    fn size(&self, index: u64) -> u64 {
        self.manifest.size(index)
    }

    fn extent(&self, index: u64) -> Option<Extent> {
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
        self.manifest.fingerprint()
    }

    fn memory(&self) -> u64 {
        self.manifest.memory()
    }

    fn reader(self: Arc<Self>, config: &ReaderConfig) -> Result<Box<dyn Reader>, SourceError> {
        disk::open(self, config)
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

/// Walks the folder and makes the manifest.
fn build(config: &FolderConfig) -> Result<Manifest, SourceError> {
    let root = Root::open(&config.root)?;
    let top = root.list(Path::new(""), &root.ancestors)?;
    if top.folders.is_empty() {
        return unlabelled(config, &root, top);
    }
    let folders = class_folders(config, &top)?;
    let classes = match &config.classes {
        Some(classes) => classes.clone(),
        None => folders.iter().map(|(name, ..)| name.clone()).collect(),
    };
    let mut counts = top.counts;
    counts.other += top.len() as u64;
    if top.len() > 0 {
        tracing::warn!(
            "{} images directly in {} have no class and are ignored; move them into class folders",
            top.len(),
            config.root.display()
        );
    }

    let level = folders.into_iter().map(|(_, class, folder)| Pending { class, folder }).collect();
    let mut listings = root.walk(level)?;
    // Classes by label; within one class by the path of the directory, as torchvision does.
    // (Bytes, not `Path`s: those compare part by part, which puts "a/b/c" before "a/b-c".)
    listings.par_sort_unstable_by(|(a_class, a), (b_class, b)| {
        (a_class, a.path.as_os_str().as_bytes()).cmp(&(b_class, b.path.as_os_str().as_bytes()))
    });

    let records = listings.iter().map(|(_, listing)| listing.len()).sum();
    let name_bytes = listings.iter().map(|(_, listing)| listing.names.len()).sum();
    let mut manifest = ManifestBuilder::with_capacity(records, name_bytes);
    let mut seen = 0;
    for (class, listing) in listings {
        counts.add(&listing.counts);
        seen += listing.add_to(&mut manifest, class, config.split.as_ref());
    }
    counts.log(&config.root);
    let manifest = manifest.build(classes);
    if seen == 0 {
        let mut message = format!(
            "no images in the {} class folders of {} (images end in {})",
            manifest.classes().len(),
            config.root.display(),
            extensions()
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
    check_split(config, &manifest, seen)?;
    hint_at_wrong_level(&config.root, manifest.classes());
    Ok(manifest)
}

/// A folder without folders: its images, without labels.
fn unlabelled(config: &FolderConfig, root: &Root, top: Listing) -> Result<Manifest, SourceError> {
    let shown = config.root.display();
    if top.len() == 0 {
        return Err(SourceError::data(format!(
            "no images in {shown}: it has no class folders and no files that end in {}; give the folder that holds one \
             folder per class",
            extensions()
        )));
    }
    if config.classes.is_some() {
        return Err(SourceError::data(format!(
            "{shown} has no class folders, only images, but classes are given; move the images into one folder per class, \
             or leave out classes to use them without labels"
        )));
    }
    let mut listings = vec![(0, top)];
    root.measure(&mut listings)?;
    let (_, top) = listings.pop().expect("the one listing");
    top.counts.log(&config.root);
    let mut manifest = ManifestBuilder::with_capacity(top.len(), top.names.len());
    let seen = top.add_to(&mut manifest, 0, config.split.as_ref());
    let manifest = manifest.build(Vec::new());
    check_split(config, &manifest, seen)?;
    Ok(manifest)
}

pub(crate) fn check_split(config: &FolderConfig, manifest: &Manifest, seen: u64) -> Result<(), SourceError> {
    match config.split {
        Some(split) if manifest.is_empty() => Err(SourceError::config(format!(
            "the {} part of {} is empty: split.fraction is {} and the folder has {seen} images; choose another fraction",
            match split.part {
                SplitPart::Train => "train",
                SplitPart::Val => "val",
            },
            config.root.display(),
            split.fraction
        ))),
        _ if manifest.is_empty() => Err(SourceError::data(format!(
            "all images of {} vanished while it was read; try again",
            config.root.display()
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
            config.root.join(name).display(),
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
    EXTENSIONS.map(|extension| format!(".{extension}")).join(" ")
}

/// `train` and `val` as classes are almost always a path that is one level too high.
pub(crate) fn hint_at_wrong_level(root: &Path, classes: &[String]) {
    let parts = ["train", "training", "val", "valid", "validation", "test", "testing"];
    if !classes.is_empty() && classes.iter().all(|class| parts.contains(&class.as_str())) {
        tracing::warn!(
            "the class folders of {} are named {}; if these are parts of the data set and not classes, give one of them as \
             the folder",
            root.display(),
            classes.join(", ")
        );
    }
}

/// Whether a file name has the ending of an image.
pub(crate) fn is_image(name: &[u8]) -> bool {
    let Some(dot) = name.iter().rposition(|&byte| byte == b'.') else { return false };
    let ending = &name[dot + 1..];
    EXTENSIONS.iter().any(|extension| ending.eq_ignore_ascii_case(extension.as_bytes()))
}

#[cfg(test)]
mod tests;
