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

use std::ffi::{CStr, OsStr, OsString};
use std::io;
use std::mem::MaybeUninit;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rayon::prelude::*;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, RawDir, StatxFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use crate::disk::{self, Files, Span};
use crate::manifest::{Manifest, ManifestBuilder, escape};
use crate::opening::{self, Counted, Step};
use crate::{Blocks, CacheConfig, Extent, Fingerprint, IndexedSource, Reader, ReaderConfig, SourceError};

/// Endings (without the dot, lower case) that make a file an image.
const EXTENSIONS: [&str; 11] =
    ["jpg", "jpeg", "png", "ppm", "pgm", "pnm", "bmp", "tif", "tiff", "webp", "gif"];

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
    #[serde(default, skip_serializing_if = "Option::is_none")]
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
        let manifest = pool.install(|| opening.run(|| build(config)))?;
        tracing::debug!(
            "{}: {} images of {} bytes in {} classes, the list takes {} bytes",
            config.root.display(),
            manifest.len(),
            manifest.total_bytes(),
            manifest.classes().len(),
            manifest.memory()
        );
        Ok(Self { root: config.root.clone(), manifest })
    }
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

/// The folder being walked.
struct Root {
    path: PathBuf,
    fd: OwnedFd,
    ancestors: Arc<Ancestors>,
    /// Counts the images found.
    step: Step,
}

/// The directories above one, by identity: entering one of them again would never end.
#[derive(Debug)]
struct Ancestors {
    identity: (u32, u32, u64),
    depth: usize,
    parent: Option<Arc<Ancestors>>,
}

impl Ancestors {
    fn contain(&self, identity: (u32, u32, u64)) -> bool {
        let mut at = Some(self);
        while let Some(ancestor) = at {
            if ancestor.identity == identity {
                return true;
            }
            at = ancestor.parent.as_deref();
        }
        false
    }
}

/// A directory still to be listed.
struct Pending {
    class: u32,
    folder: Subfolder,
}

#[derive(Clone, Debug)]
struct Subfolder {
    path: PathBuf,
    above: Arc<Ancestors>,
}

/// The images and folders of one directory, sorted by name.
#[derive(Debug)]
struct Listing {
    path: PathBuf,
    /// Names of the images, each with a NUL behind it, as the system wants them.
    names: Vec<u8>,
    images: Vec<Range<u32>>,
    /// Sizes of the images; `None` for what is no regular file or has vanished.
    sizes: Vec<Option<u64>>,
    folders: Vec<Subfolder>,
    counts: Counts,
}

/// What was left out, for the log.
#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    other: u64,
    hidden: u64,
    special: u64,
    dangling: u64,
    loops: u64,
}

impl Counts {
    fn add(&mut self, more: &Self) {
        self.other += more.other;
        self.hidden += more.hidden;
        self.special += more.special;
        self.dangling += more.dangling;
        self.loops += more.loops;
    }

    fn log(&self, root: &Path) {
        let Self { other, hidden, special, dangling, loops } = *self;
        if other + hidden + special + dangling + loops > 0 {
            tracing::info!(
                "ignored in {}: {other} files that are no images by their name, {hidden} hidden, {special} special files, \
                 {dangling} links to nothing, {loops} links to a folder above",
                root.display()
            );
        }
    }
}

impl Listing {
    fn len(&self) -> usize {
        self.images.len()
    }

    fn name(&self, image: &Range<u32>) -> &CStr {
        let bytes = &self.names[image.start as usize..image.end as usize];
        CStr::from_bytes_with_nul(bytes).expect("names are stored with their NUL")
    }

    /// Adds what belongs to the split and returns how many images there were before it.
    fn add_to(&self, manifest: &mut ManifestBuilder, class: u32, split: Option<&Split>) -> u64 {
        let mut path = self.path.as_os_str().as_bytes().to_vec();
        if !path.is_empty() {
            path.push(b'/');
        }
        let folder = path.len();
        let mut begun = false;
        let mut seen = 0;
        for (image, size) in self.images.iter().zip(&self.sizes) {
            let Some(size) = *size else { continue };
            seen += 1;
            let name = self.name(image).to_bytes();
            if let Some(split) = split {
                path.truncate(folder);
                path.extend_from_slice(name);
                if !split.holds(&path) {
                    continue;
                }
            }
            if !begun {
                manifest.directory(&self.path, class);
                begun = true;
            }
            manifest.file(OsStr::from_bytes(name), size);
        }
        seen
    }
}

impl Root {
    fn open(path: &Path) -> Result<Self, SourceError> {
        let open = || -> Result<_, Errno> {
            let fd =
                rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
            let stat = rustix::fs::statx(&fd, "", AtFlags::EMPTY_PATH, StatxFlags::INO)?;
            Ok((fd, (stat.stx_dev_major, stat.stx_dev_minor, stat.stx_ino)))
        };
        let (fd, identity) = open().map_err(|error| SourceError::folder(path, &error.into()))?;
        let ancestors = Arc::new(Ancestors { identity, depth: 0, parent: None });
        let step = Step::begin("walking the folder", Counted::Files, None);
        Ok(Self { path: path.to_owned(), fd, ancestors, step })
    }

    fn open_folder(&self, path: &Path) -> Result<OwnedFd, Errno> {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        rustix::fs::openat(&self.fd, path, flags, Mode::empty())
    }

    fn error(&self, path: &Path, error: Errno) -> SourceError {
        SourceError::folder(&self.path.join(path), &io::Error::from(error))
    }

    /// Lists all directories below `level`, and these.
    fn walk(&self, mut level: Vec<Pending>) -> Result<Vec<(u32, Listing)>, SourceError> {
        let mut done = Vec::new();
        while !level.is_empty() {
            let list = |Pending { class, folder }: &Pending| {
                self.step.run(|| Ok((*class, self.list(&folder.path, &folder.above)?)))
            };
            let mut listings = level.par_iter().map(list).collect::<Result<Vec<_>, _>>()?;
            self.measure(&mut listings)?;
            level = Vec::new();
            for (class, listing) in &mut listings {
                let folders = std::mem::take(&mut listing.folders);
                level.extend(folders.into_iter().map(|folder| Pending { class: *class, folder }));
            }
            done.append(&mut listings);
            if done.len() + level.len() > MAX_DIRECTORIES {
                return Err(SourceError::data(format!(
                    "{} has more than {MAX_DIRECTORIES} directories; look for symbolic links that lead into each other",
                    self.path.display()
                )));
            }
        }
        Ok(done)
    }

    /// Lists one directory. `above` are the directories it lies in, and for the root the root itself.
    fn list(&self, path: &Path, above: &Arc<Ancestors>) -> Result<Listing, SourceError> {
        let fd = self.open_folder(path).map_err(|error| self.error(path, error))?;
        let mut listing = Listing {
            path: path.to_owned(),
            names: Vec::new(),
            images: Vec::new(),
            sizes: Vec::new(),
            folders: Vec::new(),
            counts: Counts::default(),
        };
        let here = if path.as_os_str().is_empty() {
            above.clone()
        } else {
            let stat = rustix::fs::statx(&fd, "", AtFlags::EMPTY_PATH, StatxFlags::INO)
                .map_err(|error| self.error(path, error))?;
            let identity = (stat.stx_dev_major, stat.stx_dev_minor, stat.stx_ino);
            if above.contain(identity) {
                listing.counts.loops += 1;
                return Ok(listing);
            }
            if above.depth >= MAX_DEPTH {
                return Err(SourceError::data(format!(
                    "{} is nested deeper than {MAX_DEPTH} folders; give a folder further down",
                    self.path.join(path).display()
                )));
            }
            Arc::new(Ancestors { identity, depth: above.depth + 1, parent: Some(above.clone()) })
        };

        let mut folders: Vec<OsString> = Vec::new();
        let mut space = vec![MaybeUninit::uninit(); 64 << 10];
        let mut entries = RawDir::new(&fd, &mut space);
        while let Some(entry) = entries.next() {
            opening::check()?;
            let entry = entry.map_err(|error| self.error(path, error))?;
            let name = entry.file_name();
            let bytes = name.to_bytes();
            if bytes == b"." || bytes == b".." {
                continue;
            }
            if bytes.starts_with(b".") {
                listing.counts.hidden += 1;
                continue;
            }
            let mut kind = entry.file_type();
            if matches!(kind, FileType::Symlink | FileType::Unknown) {
                // A link is what it leads to.
                kind = match rustix::fs::statx(&fd, name, AtFlags::empty(), StatxFlags::TYPE) {
                    Ok(stat) => FileType::from_raw_mode(stat.stx_mode.into()),
                    Err(_) => {
                        listing.counts.dangling += 1;
                        continue;
                    }
                };
            }
            match kind {
                FileType::Directory => folders.push(OsStr::from_bytes(bytes).to_owned()),
                FileType::RegularFile if is_image(bytes) => {
                    let begin = listing.names.len();
                    listing.names.extend_from_slice(name.to_bytes_with_nul());
                    let end = u32::try_from(listing.names.len()).map_err(|_| {
                        let shown = self.path.join(path);
                        SourceError::data(format!(
                            "{} has 4 GiB of file names; spread its files",
                            shown.display()
                        ))
                    })?;
                    listing.images.push(begin as u32..end);
                }
                FileType::RegularFile => listing.counts.other += 1,
                _ => listing.counts.special += 1,
            }
        }
        folders.sort_unstable();
        listing.folders =
            folders.iter().map(|name| Subfolder { path: path.join(name), above: here.clone() }).collect();
        let names = &listing.names;
        // The NUL at the end sorts before every other byte, so a name sorts before its extensions, as without it.
        listing.images.par_sort_unstable_by(|a, b| {
            names[a.start as usize..a.end as usize].cmp(&names[b.start as usize..b.end as usize])
        });
        Ok(listing)
    }

    /// Asks for the sizes of all images of `listings`.
    fn measure(&self, listings: &mut [(u32, Listing)]) -> Result<(), SourceError> {
        for (_, listing) in listings.iter_mut() {
            listing.sizes = vec![None; listing.images.len()];
        }
        let mut tasks = Vec::new();
        for (_, listing) in listings.iter_mut() {
            let Listing { path, names, images, sizes, .. } = listing;
            for (images, sizes) in images.chunks(FILES_PER_TASK).zip(sizes.chunks_mut(FILES_PER_TASK)) {
                tasks.push((&*path, &*names, images, sizes));
            }
        }
        tasks.into_par_iter().try_for_each(|(path, names, images, sizes)| {
            self.step.run(|| {
                let fd = self.open_folder(path).map_err(|error| self.error(path, error))?;
                for (image, size) in images.iter().zip(sizes) {
                    opening::check()?;
                    self.step.add(1);
                    let name = CStr::from_bytes_with_nul(&names[image.start as usize..image.end as usize])
                        .expect("names are stored with their NUL");
                    match rustix::fs::statx(&fd, name, AtFlags::empty(), StatxFlags::SIZE | StatxFlags::TYPE)
                    {
                        Ok(stat)
                            if FileType::from_raw_mode(stat.stx_mode.into()) == FileType::RegularFile =>
                        {
                            *size = Some(stat.stx_size);
                        }
                        // It has vanished, or become something else, since it was listed a moment ago.
                        Ok(_) | Err(Errno::NOENT) => {}
                        Err(error) => {
                            let file = path.join(OsStr::from_bytes(name.to_bytes()));
                            return Err(self.error(&file, error));
                        }
                    }
                }
                Ok(())
            })
        })
    }
}

/// Whether a file name has the ending of an image.
pub(crate) fn is_image(name: &[u8]) -> bool {
    let Some(dot) = name.iter().rposition(|&byte| byte == b'.') else { return false };
    let ending = &name[dot + 1..];
    EXTENSIONS.iter().any(|extension| ending.eq_ignore_ascii_case(extension.as_bytes()))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use proptest::prelude::*;
    use tempfile::TempDir;

    use super::*;

    fn folder(files: &[&str]) -> TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (index, file) in files.iter().enumerate() {
            let path = folder.path().join(file);
            if file.ends_with('/') {
                fs::create_dir_all(path).unwrap();
                continue;
            }
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, vec![b'x'; index]).unwrap();
        }
        folder
    }

    fn config(folder: &TempDir) -> FolderConfig {
        FolderConfig {
            root: folder.path().to_owned(),
            classes: None,
            split: None,
            cache: CacheConfig::default(),
        }
    }

    fn keys(folder: &Folder) -> Vec<String> {
        (0..IndexedSource::len(folder)).map(|index| IndexedSource::key(folder, index)).collect()
    }

    fn labels(folder: &Folder) -> Vec<i64> {
        (0..folder.len()).map(|index| folder.label(index)).collect()
    }

    fn error(config: &FolderConfig) -> String {
        let text = Folder::open(config).unwrap_err().to_string();
        assert!(text.contains(config.root.to_str().unwrap()), "the folder is named: {text}");
        text
    }

    #[test]
    fn the_order_is_that_of_torchvision() {
        let files = [
            "b/z.jpg",
            "b/sub/a.jpg",
            "b/sub-2/a.jpg",
            "b/sub/deep/a.jpg",
            "b/A.jpg",
            "a/10.png",
            "a/9.png",
            "B/x.gif",
        ];
        let folder = folder(&files);
        let source = Folder::open(&config(&folder)).unwrap();
        assert_eq!(source.classes(), ["B", "a", "b"]);
        let expected = [
            "B/x.gif",
            "a/10.png",
            "a/9.png",
            "b/A.jpg",
            "b/z.jpg",
            "b/sub/a.jpg",
            "b/sub-2/a.jpg",
            "b/sub/deep/a.jpg",
        ];
        // Directories by path: "b/sub" < "b/sub-2" < "b/sub/deep", for '-' sorts before '/'.
        assert_eq!(keys(&source), expected);
        assert_eq!(labels(&source), [0, 1, 1, 2, 2, 2, 2, 2]);
        for index in 0..8 {
            let key = IndexedSource::key(&source, index);
            let size = files.iter().position(|file| *file == key).unwrap() as u64;
            assert_eq!(source.size(index), size);
            let extent = source.extent(index).unwrap();
            assert_eq!(extent, Extent { file: folder.path().join(key), offset: 0, len: size });
        }
        assert_eq!(source.blocks(), Blocks::None);
    }

    #[test]
    fn images_are_known_by_their_ending_and_hidden_ones_are_none() {
        let images = [
            "1.jpg", "2.JPEG", "3.Png", "4.ppm", "5.PGM", "6.pnm", "7.bmp", "8.tif", "9.TIFF", "a.webp",
            "b.gif",
        ];
        let others =
            [".x.jpg", "._1.jpg", "jpg", "x.txt", "x.jpg.bak", "Thumbs.db", ".hidden/1.jpg", "x.", "x.jpgg"];
        let files: Vec<_> = images.iter().chain(&others).map(|file| format!("a/{file}")).collect();
        let mut files: Vec<_> = files.iter().map(String::as_str).collect();
        files.push(".ipynb_checkpoints/1.jpg");
        let source = Folder::open(&config(&folder(&files))).unwrap();
        assert_eq!(source.classes(), ["a"]);
        assert_eq!(keys(&source), images.map(|image| format!("a/{image}")));
    }

    #[test]
    fn an_empty_class_keeps_its_label() {
        let folder = folder(&["a/1.jpg", "b/", "c/1.jpg", "d/readme.txt"]);
        let source = Folder::open(&config(&folder)).unwrap();
        assert_eq!(source.classes(), ["a", "b", "c", "d"]);
        assert_eq!(labels(&source), [0, 2]);
    }

    #[test]
    fn given_classes_are_the_mapping() {
        let folder = folder(&["cat/1.jpg", "dog/1.jpg"]);
        let with = |classes: &[&str]| FolderConfig {
            classes: Some(classes.iter().map(|&class| class.to_owned()).collect()),
            ..config(&folder)
        };
        let source = Folder::open(&with(&["dog", "bird", "cat"])).unwrap();
        assert_eq!(source.classes(), ["dog", "bird", "cat"]);
        assert_eq!(keys(&source), ["dog/1.jpg", "cat/1.jpg"]);
        assert_eq!(labels(&source), [0, 2]);
        let text = error(&with(&["cat", "bird"]));
        assert!(text.contains("/dog is not in the list of classes (cat, bird)"), "{text}");
        let text = Folder::open(&with(&["cat", "dog", "cat"])).unwrap_err().to_string();
        assert!(text.contains("\"cat\" twice"), "{text}");
        assert!(error(&with(&[])).contains("which is empty"));
    }

    #[test]
    fn a_folder_of_images_alone_is_unlabelled() {
        let folder = folder(&["2.jpg", "1.png", "notes.txt"]);
        let source = Folder::open(&config(&folder)).unwrap();
        assert_eq!(keys(&source), ["1.png", "2.jpg"]);
        assert_eq!(labels(&source), [0, 0]);
        assert!(source.classes().is_empty());
        let text = error(&FolderConfig { classes: Some(vec!["a".to_owned()]), ..config(&folder) });
        assert!(text.contains("no class folders"), "{text}");
    }

    #[test]
    fn images_beside_class_folders_are_left_out() {
        let beside = folder(&["preview.jpg", "a/1.jpg"]);
        assert_eq!(keys(&Folder::open(&config(&beside)).unwrap()), ["a/1.jpg"]);
        let text = error(&config(&folder(&["1.jpg", "2.jpg", "a/"])));
        assert!(text.contains("2 images lie directly in it"), "{text}");
    }

    #[test]
    fn folders_that_cannot_be_used_are_named_with_what_to_do() {
        let root = folder(&["file.jpg", "empty/", "texts/a/1.txt", "classes/a/"]);
        let at = |name: &str| FolderConfig {
            root: root.path().join(name),
            classes: None,
            split: None,
            cache: CacheConfig::default(),
        };
        assert!(error(&at("missing")).contains("does not exist"));
        assert!(error(&at("file.jpg")).contains("is not a directory"));
        assert!(error(&at("file.jpg/deeper")).contains("is not a directory"));
        assert!(error(&at("empty")).contains("it has no class folders and no files that end in .jpg"));
        assert!(error(&at("texts")).contains("no images in the 1 class folders"));
        assert!(error(&at("classes")).contains("no images in the 1 class folders"));
        assert!(Folder::open(&at("missing")).unwrap_err().is_data());
    }

    #[test]
    fn a_class_folder_that_cannot_be_read_is_an_error_and_not_an_empty_class() {
        let root = folder(&["a/1.jpg", "b/1.jpg"]);
        let locked = root.path().join("b");
        fs::set_permissions(&locked, fs::Permissions::from_mode(0o000)).unwrap();
        if fs::read_dir(&locked).is_ok() {
            eprintln!("skipped: this user may read everything");
            return;
        }
        let text = error(&config(&root));
        fs::set_permissions(&locked, fs::Permissions::from_mode(0o755)).unwrap();
        assert!(text.contains("/b cannot be read"), "{text}");
    }

    #[test]
    fn links_are_followed_once_round_and_special_files_are_not_opened() {
        let root = folder(&["a/1.jpg", "a/sub/2.jpg", "elsewhere/x/3.jpg", "elsewhere/4.jpg"]);
        let outside = root.path().join("elsewhere");
        let path = root.path().join("root");
        fs::create_dir(&path).unwrap();
        fs::rename(root.path().join("a"), path.join("a")).unwrap();
        symlink(&outside, path.join("b")).unwrap();
        symlink(path.join("a"), path.join("a/sub/loop")).unwrap();
        symlink("..", path.join("a/sub/up")).unwrap();
        symlink(".", path.join("a/self")).unwrap();
        symlink(&path, path.join("a/root")).unwrap();
        symlink(outside.join("4.jpg"), path.join("a/link.jpg")).unwrap();
        symlink("nowhere", path.join("a/dangling.jpg")).unwrap();
        let fifo = path.join("a/pipe.jpg");
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, FileType::Fifo, Mode::RUSR, 0).unwrap();
        symlink(&fifo, path.join("a/to-pipe.jpg")).unwrap();
        let source = Folder::open(&FolderConfig {
            root: path,
            classes: None,
            split: None,
            cache: CacheConfig::default(),
        })
        .unwrap();
        assert_eq!(keys(&source), ["a/1.jpg", "a/link.jpg", "a/sub/2.jpg", "b/4.jpg", "b/x/3.jpg"]);
        assert_eq!(source.size(1), 3, "the size of what the link leads to");
    }

    #[test]
    fn folders_nested_without_end_are_refused() {
        let root = folder(&["a/1.jpg"]);
        fs::create_dir_all(root.path().join("a/".repeat(MAX_DEPTH + 2))).unwrap();
        assert!(error(&config(&root)).contains("nested deeper"));
    }

    #[test]
    fn names_that_are_not_utf8_are_records_like_others() {
        let root = folder(&["a/1.jpg"]);
        let class = root.path().join(OsStr::from_bytes(b"caf\xe9"));
        fs::create_dir(&class).unwrap();
        fs::write(class.join(OsStr::from_bytes(b"\xff.jpg")), b"bytes").unwrap();
        let source = Folder::open(&config(&root)).unwrap();
        assert_eq!(source.classes(), ["a", "caf\\xe9"]);
        assert_eq!(keys(&source), ["a/1.jpg", "caf\\xe9/\\xff.jpg"]);
        assert_eq!(fs::read(source.extent(1).unwrap().file).unwrap(), b"bytes");
    }

    #[test]
    fn the_fingerprint_is_of_the_data_and_not_of_the_place() {
        let files = ["a/1.jpg", "a/2.jpg", "b/1.jpg"];
        let (one, two) = (folder(&files), folder(&files));
        let fingerprint = |folder| Folder::open(&config(folder)).unwrap().fingerprint();
        assert_eq!(fingerprint(&one), fingerprint(&two));
        fs::write(two.path().join("b/notes.txt"), b"no image").unwrap();
        assert_eq!(fingerprint(&one), fingerprint(&two));
        fs::write(two.path().join("b/1.jpg"), b"another size").unwrap();
        assert_ne!(fingerprint(&one), fingerprint(&two));
        fs::create_dir(one.path().join("c")).unwrap();
        assert_ne!(fingerprint(&one), fingerprint(&folder(&files)));
    }

    #[test]
    fn a_split_cuts_by_key_and_keeps_the_classes() {
        let files: Vec<_> = (0..1000).map(|index| format!("{}/{index}.jpg", ["a", "b"][index % 2])).collect();
        let mut files: Vec<_> = files.iter().map(String::as_str).collect();
        files.push("c/");
        let root = folder(&files);
        let part = |part, fraction| {
            Folder::open(&FolderConfig { split: Some(Split { part, fraction }), ..config(&root) })
        };
        let (train, val) = (part(SplitPart::Train, 0.1).unwrap(), part(SplitPart::Val, 0.1).unwrap());
        assert_eq!(train.classes(), ["a", "b", "c"]);
        assert_eq!(val.classes(), train.classes());
        assert!((70..130).contains(&IndexedSource::len(&val)), "{}", IndexedSource::len(&val));
        let mut both: Vec<_> = keys(&train).into_iter().chain(keys(&val)).collect();
        both.sort_unstable();
        let whole = Folder::open(&config(&root)).unwrap();
        assert_eq!(both, keys(&whole));
        assert_ne!(train.fingerprint(), val.fingerprint());
        // One more file moves none of the others.
        fs::write(root.path().join("a/new.jpg"), b"").unwrap();
        let mut grown = keys(&part(SplitPart::Val, 0.1).unwrap());
        grown.retain(|key| key != "a/new.jpg");
        assert_eq!(grown, keys(&val));

        assert_eq!(IndexedSource::len(&part(SplitPart::Val, 1.0).unwrap()), 1001);
        assert_eq!(IndexedSource::len(&part(SplitPart::Train, 0.0).unwrap()), 1001);
        let text = part(SplitPart::Val, 0.0).unwrap_err().to_string();
        assert!(text.contains("the val part of") && text.contains("1001 images"), "{text}");
        for fraction in [-0.1, 1.1, f64::NAN] {
            let error = part(SplitPart::Val, fraction).unwrap_err();
            assert!(error.is_config() && error.to_string().contains("split.fraction"), "{error}");
        }
    }

    #[test]
    fn the_hash_of_a_key_never_changes() {
        // A saved run must find its validation set again: these are fixed for ever.
        let holds = |key: &str| Split { part: SplitPart::Val, fraction: 0.5 }.holds(key.as_bytes());
        let keys = ["cat/1.jpg", "cat/2.jpg", "cat/3.jpg", "dog/1.jpg", "dog/2.jpg", "dog/3.jpg"];
        assert_eq!(keys.map(holds), [false, false, true, true, false, false]);
        assert_eq!(xxh3_64(b""), 0x2d06_8005_38d3_94c2, "the published value");
    }

    #[test]
    fn a_directory_larger_than_one_task_is_measured_whole() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("a")).unwrap();
        let original = root.path().join("original");
        fs::write(&original, b"12345").unwrap();
        let count = FILES_PER_TASK * 2 + 3;
        for index in 0..count {
            fs::hard_link(&original, root.path().join(format!("a/{index:05}.jpg"))).unwrap();
        }
        let source = Folder::open(&config(&root)).unwrap();
        assert_eq!(IndexedSource::len(&source), count as u64);
        assert!((0..count as u64).all(|index| source.size(index) == 5));
        assert!(keys(&source).is_sorted());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn any_tree_is_listed_once_and_in_order(
            files in prop::collection::btree_set("[ab]{1,2}(/[a-c-]{1,2}){0,2}/[a-d]{1,2}\\.(jpg|PNG)", 1..40),
        ) {
            let list: Vec<_> = files.iter().map(String::as_str).collect();
            let source = Folder::open(&config(&folder(&list))).unwrap();
            // The order stated again, in the plainest way.
            let mut expected: Vec<_> = files
                .iter()
                .map(|file| {
                    let (class, _) = file.split_once('/').unwrap();
                    let (directory, name) = file.rsplit_once('/').unwrap();
                    (class, directory, name)
                })
                .collect();
            expected.sort_unstable();
            let expected: Vec<_> = expected.iter().map(|(_, directory, name)| format!("{directory}/{name}")).collect();
            prop_assert_eq!(keys(&source), expected);
        }
    }
}
