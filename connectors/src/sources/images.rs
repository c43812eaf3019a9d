//! An image folder in a bucket: objects below a path, with the order, labels and keys that the same files have on disk.
//!
//! What a bucket does not have: empty folders (a class without any object is no class unless `classes` names it),
//! links, names that are not UTF-8. Everything else is as [`crate::sources::folder`] says.

mod parts;

use std::collections::{BTreeSet, HashMap};
use std::ffi::OsStr;
use std::path::Path;
use std::sync::Arc;

use xxhash_rust::xxh3::{xxh3_64, xxh3_128};

use self::parts::{Beside, InBucket};
use crate::bytes::remote::list::addresses;
use crate::bytes::remote::{self, MEMORY, Object, Remote, Version};
use crate::gather;
use crate::names::{hidden, is_image, is_litter, shown};
use crate::sources::folder::parts::{Column, Parts, Plan, coupled_notes};
use crate::sources::folder::{
    all_are_parts, check_level, check_split, class_labels, extensions, recognised_as,
};
use crate::sources::manifest::{Manifest, ManifestBuilder, escape};
use crate::{
    Blocks, Extent, Fingerprint, FolderConfig, IndexedSource, Reader, ReaderConfig, Schema, SourceError,
    Split,
};

/// Parts of a path below the class's folder; more are a loop that somebody copied.
const MAX_DEPTH: usize = 64;

/// Endings of other objects that are kept for a message.
const MOST_ENDINGS: usize = 64;

/// An open image folder in a bucket: 26 bytes and a name per record as on disk, and eight for the version.
#[derive(Debug)]
pub(crate) struct Images {
    remote: Arc<Remote>,
    /// What comes before the keys in the objects' names: empty, or with a slash at the end.
    prefix: String,
    manifest: Manifest,
    versions: Vec<u64>,
    parts: Option<(Parts, Beside)>,
    /// Of each of the plan's files: the version for each record.
    beside_versions: Vec<Vec<u64>>,
    is_labelled: bool,
    split: Option<Split>,
    notes: Vec<String>,
}

/// An image while the list is put in order.
struct Image {
    /// Below the root.
    path: String,
    size: u64,
    version: u64,
    /// Of each of the plan's files.
    beside: Vec<Option<Other>>,
}

/// An object that belongs to an image.
#[derive(Clone)]
struct Other {
    ending: String,
    size: u64,
    version: u64,
}

/// What a listing found.
struct Found {
    images: Vec<Image>,
    /// Of classes.
    folders: BTreeSet<String>,
    /// Of other objects.
    endings: BTreeSet<String>,
    notes: Vec<String>,
}

impl Image {
    fn class(&self) -> &str {
        self.path.split_once('/').map_or("", |(class, _)| class)
    }

    fn folder_and_name(&self) -> (&str, &str) {
        self.path.rsplit_once('/').unwrap_or(("", &self.path))
    }
}

impl Images {
    /// Lists the objects below the root and makes the manifest.
    ///
    /// # Errors
    /// [`SourceError`] as for a folder on disk, and for a bucket that cannot be listed.
    pub(crate) fn open(config: &FolderConfig) -> Result<Self, SourceError> {
        let images = Self::list(config)?;
        let parts = images.parts.as_ref().map(|(parts, _)| parts);
        let mut recognised = recognised_as(&images.manifest, parts, images.is_labelled);
        images.notes.iter().for_each(|note| recognised.note(note));
        recognised.say(&shown(&config.root).to_string(), images.manifest.len());
        let (config_then, then) = (config.clone(), images.state());
        // A server that tells no version tells no change.
        let is_told = images.versions.iter().all(|&version| version != xxh3_64(b""));
        crate::opening::depends_on(move || {
            is_told && Self::list(&config_then).is_ok_and(|now| now.state() == then)
        });
        Ok(images)
    }

    fn list(config: &FolderConfig) -> Result<Self, SourceError> {
        Self::open_with(config, |place| Remote::connect(place, &config.cache))
    }

    /// What is there, and which versions of it.
    fn state(&self) -> (Fingerprint, u128) {
        let all = self.beside_versions.iter().flatten().chain(&self.versions);
        let versions: Vec<u8> = all.flat_map(|version| version.to_le_bytes()).collect();
        (IndexedSource::fingerprint(self), xxh3_128(&versions))
    }

    pub(crate) fn open_with(
        config: &FolderConfig,
        connect: impl FnOnce(&remote::Place) -> Result<Arc<Remote>, SourceError>,
    ) -> Result<Self, SourceError> {
        if let Some(split) = &config.split {
            split.check()?;
        }
        let root = config.root.to_string_lossy().into_owned();
        let [address] = &addresses(&[root])?[..] else {
            return Err(SourceError::config(format!(
                "{} has braces; the root of an image folder is one folder",
                shown(&config.root)
            )));
        };
        if address.place.scheme.is_http() {
            return Err(SourceError::config(format!(
                "{}/{}: a web server does not list its files, so it cannot be an image folder; pack the images into tar \
                 shards, or use a bucket",
                address.place, address.path
            )));
        }
        let plan = Plan::new(config)?;
        let remote = connect(&address.place)?;
        let below = address.path.trim_end_matches('/');
        let prefix = if below.is_empty() { String::new() } else { format!("{below}/") };

        let beside = plan.map(|plan| Beside::new(config, plan, &prefix)).transpose()?;

        let Found { mut images, folders, endings, notes } =
            Self::find(config, &remote, below, &prefix, beside.as_ref())?;
        let place = shown(&config.root);
        let names: Vec<String> = folders.iter().map(|name| escape(name.as_bytes())).collect();
        if names.is_empty() && config.classes.is_some() {
            return Err(SourceError::data(format!(
                "{place} has no class folders, only images, but classes are given; move the images into one folder per \
                 class, or leave out classes to use them without labels"
            )));
        }
        let labels = class_labels(config, &names)?;
        if !names.is_empty() {
            let before = images.len();
            images.retain(|image| !image.class().is_empty());
            if images.len() < before {
                tracing::warn!(
                    "{} images directly in {place} have no class and are ignored; move them into class folders",
                    before - images.len()
                );
            }
        }
        let by_name: HashMap<&str, u32> =
            folders.iter().map(String::as_str).zip(labels.iter().copied()).collect();
        let label = |image: &Image| by_name.get(image.class()).copied().unwrap_or(0);
        images.sort_unstable_by(|a, b| (label(a), a.folder_and_name()).cmp(&(label(b), b.folder_and_name())));

        let mut manifest = ManifestBuilder::with_capacity(images.len(), 0);
        let mut versions = Vec::with_capacity(images.len());
        let files = beside.as_ref().map_or(0, |beside| beside.plan.files.len());
        let (mut columns, mut beside_versions) = (vec![Column::default(); files], vec![Vec::new(); files]);
        let mut current = None;
        let seen = images.len() as u64;
        for image in &images {
            if config.split.as_ref().is_some_and(|split| !split.holds(image.path.as_bytes())) {
                continue;
            }
            let (folder, name) = image.folder_and_name();
            if current != Some(folder) {
                manifest.directory(Path::new(folder), label(image));
                current = Some(folder);
            }
            manifest.file(OsStr::new(name), image.size);
            versions.push(image.version);
            for ((column, versions), other) in columns.iter_mut().zip(&mut beside_versions).zip(&image.beside)
            {
                column.push(other.as_ref().map(|other| (other.size, other.ending.as_bytes())));
                versions.push(other.as_ref().map_or(0, |other| other.version));
            }
        }
        versions.shrink_to_fit();
        beside_versions.iter_mut().for_each(Vec::shrink_to_fit);
        let manifest = manifest.build(match &config.classes {
            Some(classes) => classes.clone(),
            None => names,
        });
        check_split(config, &manifest, seen)?;
        let with_images: BTreeSet<&str> =
            images.iter().map(Image::class).filter(|class| !class.is_empty()).collect();
        check_level(config, &with_images.into_iter().collect::<Vec<_>>())?;
        let is_labelled = config.is_labelled(&manifest)?;
        let parts = beside.map(|beside| {
            let look = InBucket {
                config,
                remote: &remote,
                manifest: &manifest,
                beside: &beside,
                versions: &beside_versions,
                endings: &endings,
            };
            Ok::<_, SourceError>((Parts::new(beside.plan.clone(), columns, &look)?, beside))
        });
        let parts = parts.transpose()?;
        Ok(Self {
            remote,
            prefix,
            manifest,
            versions,
            parts,
            beside_versions,
            is_labelled,
            split: config.split,
            notes,
        })
    }

    /// Lists what is there, and puts together what belongs together.
    fn find(
        config: &FolderConfig,
        remote: &Arc<Remote>,
        below: &str,
        prefix: &str,
        beside: Option<&Beside>,
    ) -> Result<Found, SourceError> {
        let given = config.classes.as_deref().unwrap_or_default();
        let litter = |name: &str| is_litter(name.as_bytes()) && !given.iter().any(|class| class == name);
        let (mut others, mut hiding, mut folders) = (0u64, 0u64, BTreeSet::new());
        let mut endings = BTreeSet::new();
        let mut images = remote.wait(remote.list(below, |meta| {
            let path = meta.location.as_ref().strip_prefix(prefix)?;
            if beside.iter().flat_map(|beside| &beside.left_out).any(|folder| path.starts_with(folder)) {
                return None;
            }
            // A class keeps its label when all that is in it is hidden or no image.
            if let Some((class, _)) = path.split_once('/')
                && !litter(class)
                && !folders.contains(class)
            {
                folders.insert(class.to_owned());
            }
            let name = path.rsplit('/').next().unwrap_or_default();
            if path.is_empty() || path.split('/').any(litter) {
                hiding += u64::from(name.starts_with('.'));
                return None;
            }
            let name_bytes = name.as_bytes();
            if !beside.map_or_else(|| is_image(name_bytes), |beside| beside.plan.takes(name_bytes)) {
                others += 1;
                if let Some((_, ending)) = name.rsplit_once('.').filter(|_| endings.len() < MOST_ENDINGS) {
                    endings.insert(format!(".{}", ending.to_lowercase()));
                }
                return None;
            }
            let version = Version::of(&meta).hash();
            Some(Image { path: path.to_owned(), size: meta.size, version, beside: Vec::new() })
        }))?;
        if let Some(deep) = images.iter().find(|image| image.path.split('/').count() > MAX_DEPTH) {
            return Err(SourceError::data(format!(
                "folders are nested deeper than {MAX_DEPTH} at {}",
                deep.path
            )));
        }
        let mut counts = (0, 0);
        if let Some(beside) = beside {
            images = beside.couple(images, &mut counts);
            beside.find(remote, &mut images, &mut counts.0)?;
        }
        let place = shown(&config.root);
        if images.is_empty() {
            let plan = beside.map(|beside| &beside.plan);
            return Err(SourceError::data(format!(
                "no {} below {place}: no object there ends in {}{}{}; give the path that holds one folder per class",
                if plan.is_none_or(|plan| plan.has_image) { "images" } else { "records" },
                plan.map_or_else(extensions, Plan::records_end_in),
                all_are_parts(counts.1),
                hidden(hiding, others == 0).map_or(String::new(), |hidden| format!("; {hidden}"))
            )));
        }
        if others > 0 {
            tracing::info!("ignored in {place}: {others} objects that are not named like images");
        }
        let left_out = beside.map_or(&[][..], |beside| &beside.left_out);
        let notes = coupled_notes(counts.0, counts.1, left_out);
        Ok(Found { images, folders, endings, notes })
    }

    fn object(&self, index: u64) -> Object {
        let mut path = self.prefix.clone().into_bytes();
        self.manifest.path(index, &mut path);
        Object {
            // Names of objects are UTF-8, so nothing is lost.
            path: String::from_utf8_lossy(&path).into_owned(),
            query: String::new(),
            size: self.manifest.size(index),
            version: Version::Hash(self.versions[index as usize]),
        }
    }
}

impl IndexedSource for Images {
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
        self.parts.as_ref().map_or_else(Schema::images, |(parts, _)| parts.schema.clone())
    }

    fn size(&self, index: u64) -> u64 {
        match &self.parts {
            None => self.manifest.size(index),
            Some((parts, _)) => parts.size(&self.manifest, index),
        }
    }

    fn extent(&self, _index: u64) -> Option<Extent> {
        None
    }

    fn blocks(&self) -> Blocks {
        Blocks::None
    }

    fn fingerprint(&self) -> Fingerprint {
        self.parts.as_ref().map_or_else(|| self.manifest.fingerprint(), |(parts, _)| parts.fingerprint())
    }

    fn memory(&self) -> u64 {
        let parts = self.parts.as_ref().map_or(0, |(parts, _)| parts.memory());
        let versions: usize = self.beside_versions.iter().chain([&self.versions]).map(Vec::capacity).sum();
        self.manifest.memory() + parts + (versions * 8 + self.prefix.capacity()) as u64
    }

    fn reader_memory(&self) -> u64 {
        MEMORY + self.parts.as_ref().map_or(0, |(parts, _)| gather::memory(parts.largest()))
    }

    fn reader(self: Arc<Self>, config: &ReaderConfig) -> Result<Box<dyn Reader>, SourceError> {
        if self.parts.is_some() {
            return parts::reader(self, config);
        }
        let keys = self.clone();
        self.remote.clone().reader(
            config,
            move |index| IndexedSource::key(&*keys, index),
            move |index| {
                let object = self.object(index);
                let size = object.size;
                (object, 0, size)
            },
        )
    }
}
