//! An image folder in a bucket: objects below a path, with the order, labels and keys that the same files have on disk.
//!
//! What a bucket does not have: empty folders (a class without any object is no class unless `classes` names it),
//! links, names that are not UTF-8. Everything else is as [`crate::sources::folder`] says.

use std::collections::{BTreeSet, HashMap};
use std::ffi::OsStr;
use std::path::Path;
use std::sync::Arc;

use xxhash_rust::xxh3::{xxh3_64, xxh3_128};

use crate::bytes::remote::list::addresses;
use crate::bytes::remote::{self, MEMORY, Object, Remote, Version};
use crate::names::{hidden, is_image, is_litter, shown};
use crate::sources::folder::{check_level, check_split, class_labels, extensions, recognised_as};
use crate::sources::manifest::{Manifest, ManifestBuilder, escape};
use crate::{Blocks, Extent, Fingerprint, FolderConfig, IndexedSource, Reader, ReaderConfig, SourceError};

/// Parts of a path below the class's folder; more are a loop that somebody copied.
const MAX_DEPTH: usize = 64;

/// An open image folder in a bucket: 26 bytes and a name per record as on disk, and eight for the version.
#[derive(Debug)]
pub(crate) struct Images {
    remote: Arc<Remote>,
    /// What comes before the keys in the objects' names: empty, or with a slash at the end.
    prefix: String,
    manifest: Manifest,
    versions: Vec<u64>,
    is_labelled: bool,
}

/// An image while the list is put in order.
struct Image {
    /// Below the root.
    path: String,
    size: u64,
    version: u64,
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
        if config.deliver.is_some() {
            return Err(SourceError::config(
                "records of image folders in buckets have no named parts yet".into(),
            ));
        }
        let images = Self::list(config)?;
        recognised_as(&images.manifest, None, images.is_labelled)
            .say(&shown(&config.root).to_string(), images.manifest.len());
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
        let versions: Vec<u8> = self.versions.iter().flat_map(|version| version.to_le_bytes()).collect();
        (self.manifest.fingerprint(), xxh3_128(&versions))
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
        let remote = connect(&address.place)?;
        let below = address.path.trim_end_matches('/');
        let prefix = if below.is_empty() { String::new() } else { format!("{below}/") };

        let given = config.classes.as_deref().unwrap_or_default();
        let litter = |name: &str| is_litter(name.as_bytes()) && !given.iter().any(|class| class == name);
        let (mut others, mut hiding, mut folders) = (0u64, 0u64, BTreeSet::new());
        let mut images = remote.wait(remote.list(below, |meta| {
            let path = meta.location.as_ref().strip_prefix(&prefix)?;
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
            if !is_image(name.as_bytes()) {
                others += 1;
                return None;
            }
            Some(Image { path: path.to_owned(), size: meta.size, version: Version::of(&meta).hash() })
        }))?;
        if let Some(deep) = images.iter().find(|image| image.path.split('/').count() > MAX_DEPTH) {
            return Err(SourceError::data(format!(
                "folders are nested deeper than {MAX_DEPTH} at {}",
                deep.path
            )));
        }
        let place = shown(&config.root);
        if images.is_empty() {
            return Err(SourceError::data(format!(
                "no images below {place}: no object there ends in {}{}; give the path that holds one folder per class",
                extensions(),
                hidden(hiding, others == 0).map_or(String::new(), |hidden| format!("; {hidden}"))
            )));
        }
        if others > 0 {
            tracing::info!("ignored in {place}: {others} objects that are no images by their name");
        }

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
        }
        versions.shrink_to_fit();
        let manifest = manifest.build(match &config.classes {
            Some(classes) => classes.clone(),
            None => names,
        });
        check_split(config, &manifest, seen)?;
        let with_images: BTreeSet<&str> =
            images.iter().map(Image::class).filter(|class| !class.is_empty()).collect();
        check_level(config, &with_images.into_iter().collect::<Vec<_>>())?;
        let is_labelled = config.is_labelled(&manifest)?;
        Ok(Self { remote, prefix, manifest, versions, is_labelled })
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

    fn size(&self, index: u64) -> u64 {
        self.manifest.size(index)
    }

    fn extent(&self, _index: u64) -> Option<Extent> {
        None
    }

    fn blocks(&self) -> Blocks {
        Blocks::None
    }

    fn fingerprint(&self) -> Fingerprint {
        self.manifest.fingerprint()
    }

    fn memory(&self) -> u64 {
        self.manifest.memory() + (self.versions.capacity() * 8 + self.prefix.capacity()) as u64
    }

    fn reader_memory(&self) -> u64 {
        MEMORY
    }

    fn reader(self: Arc<Self>, config: &ReaderConfig) -> Result<Box<dyn Reader>, SourceError> {
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
