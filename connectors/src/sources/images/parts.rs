//! Objects that are parts of the images of a folder in a bucket: beside them, or where a template leads.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use super::{Image, Images, Other};
use crate::bytes::buffer::Buffer;
use crate::bytes::remote::{Address, Object, Remote, Version};
use crate::gather::{self, Room};
use crate::names::shown;
use crate::sources::folder::parts::{Look, NONE, Parts, Plan};
use crate::sources::folder::template;
use crate::sources::manifest::Manifest;
use crate::{FolderConfig, IndexedSource, ReadError, Reader, ReaderConfig, SourceError};

/// What is read for parts.
#[derive(Debug)]
pub(super) struct Beside {
    pub plan: Plan,
    /// Of each of the plan's files: what comes before its path in the name of its object.
    pub prefixes: Vec<String>,
    /// What comes before paths of records.
    prefix: String,
    /// Folders of parts below the root, with a slash at the end: no record is in them.
    pub left_out: Vec<String>,
}

impl Beside {
    /// # Errors
    /// [`SourceError`] for a template that leads out of the bucket.
    pub fn new(config: &FolderConfig, plan: Plan, prefix: &str) -> Result<Self, SourceError> {
        let mut prefixes = vec![prefix.to_owned(); plan.files.len()];
        let mut left_out = Vec::new();
        for (file, template) in plan.templates() {
            let place =
                template::below(&config.root.to_string_lossy(), template.folder()).ok_or_else(|| {
                    SourceError::config(format!(
                        "{} does not lead from {} to a place in the same bucket",
                        shown(template.folder()),
                        shown(&config.root)
                    ))
                })?;
            let path = Address::parse(&place)?.path;
            let folder = if path.is_empty() { path } else { format!("{path}/") };
            if let Some(below) = folder.strip_prefix(prefix).filter(|below| !below.is_empty()) {
                left_out.push(below.to_owned());
            }
            prefixes[file] = folder;
        }
        Ok(Self { plan, prefixes, prefix: prefix.to_owned(), left_out })
    }

    /// The name of an object, of the path that the [`Parts`] make.
    fn object(&self, file: usize, path: &[u8]) -> String {
        let below = match self.plan.templates().find(|(other, _)| *other == file) {
            Some((_, template)) => &path[template.folder().len().min(path.len())..],
            None => path,
        };
        // Names of objects are UTF-8, so nothing is lost.
        format!("{}{}", self.prefixes[file], String::from_utf8_lossy(below))
    }

    /// Puts images and what lies beside them together.
    pub fn couple(&self, mut all: Vec<Image>, counts: &mut (u64, u64)) -> Vec<Image> {
        all.sort_unstable_by(|a, b| a.folder_and_name().cmp(&b.folder_and_name()));
        let mut records = Vec::with_capacity(all.len());
        for folder in all.chunk_by(|a, b| a.folder_and_name().0 == b.folder_and_name().0) {
            let names: Vec<&[u8]> = folder.iter().map(|image| image.folder_and_name().1.as_bytes()).collect();
            let coupled = self.plan.couple(&names);
            (counts.0, counts.1) = (counts.0 + coupled.images, counts.1 + coupled.alone);
            let other = |&at: &u32| {
                let image = (at != NONE).then(|| &folder[at as usize])?;
                let name = image.folder_and_name().1;
                let ending = name[self.plan.stem_of_part(name.as_bytes())? + 1..].to_owned();
                Some(Other { ending, size: image.size, version: image.version })
            };
            let beside = coupled.beside.chunks(self.plan.files.len().max(1));
            for (&record, beside) in coupled.records.iter().zip(beside) {
                let image = &folder[record as usize];
                let beside = beside.iter().map(other).collect();
                records.push(Image { path: image.path.clone(), beside, ..*image });
            }
        }
        records
    }

    /// Looks for the objects of templates, and leaves out the images that are such.
    ///
    /// # Errors
    /// When they cannot be listed.
    pub fn find(
        &self,
        remote: &Arc<Remote>,
        images: &mut Vec<Image>,
        parts: &mut u64,
    ) -> Result<(), SourceError> {
        let mut taken = HashSet::new();
        for (file, template) in self.plan.templates() {
            let folder = &self.prefixes[file];
            let listed = remote.list(folder.trim_end_matches('/'), |meta| {
                let below = meta.location.as_ref().strip_prefix(folder.as_str())?;
                Some((below.to_owned(), (meta.size, Version::of(&meta).hash())))
            });
            let there: HashMap<String, (u64, u64)> = remote.wait(listed)?.into_iter().collect();
            for image in images.iter_mut() {
                let stem = self.plan.stem(image.path.as_bytes());
                let Some(made) = template.expand(image.path.as_bytes(), stem) else { continue };
                let below = String::from_utf8_lossy(&made[template.folder().len()..]);
                let Some(&(size, version)) = there.get(&*below) else { continue };
                image.beside[file] = Some(Other { ending: String::new(), size, version });
                let whole = format!("{folder}{below}");
                if let Some(below) = whole.strip_prefix(&self.prefix).filter(|below| *below != image.path) {
                    taken.insert(below.to_owned());
                }
            }
        }
        let before = images.len();
        images.retain(|image| !taken.contains(&image.path));
        *parts += (before - images.len()) as u64;
        Ok(())
    }
}

/// The bucket, for what has to be seen in it.
pub(super) struct InBucket<'listed> {
    pub config: &'listed FolderConfig,
    pub remote: &'listed Arc<Remote>,
    pub manifest: &'listed Manifest,
    pub beside: &'listed Beside,
    pub versions: &'listed [Vec<u64>],
    pub endings: &'listed BTreeSet<String>,
}

impl Look for InBucket<'_> {
    fn place(&self) -> String {
        shown(&self.config.root).to_string()
    }

    fn manifest(&self) -> &Manifest {
        self.manifest
    }

    fn read(&self, index: u64, file: usize, path: &[u8], size: u64) -> Option<Vec<u8>> {
        let version = Version::Hash(self.versions[file][index as usize]);
        let object = Object { path: self.beside.object(file, path), query: String::new(), size, version };
        let mut bytes = vec![0; size as usize];
        self.remote.read(&object, 0, &mut bytes).ok().map(|()| bytes)
    }

    fn missing(&self, file: usize, path: &[u8]) -> String {
        format!("there is no object {}", self.remote.display(&self.beside.object(file, path)))
    }

    fn others(&self) -> Vec<&str> {
        self.endings.iter().map(String::as_str).collect()
    }
}

/// Starts a reader of records with parts.
pub(super) fn reader(images: Arc<Images>, config: &ReaderConfig) -> Result<Box<dyn Reader>, SourceError> {
    let joined = Arc::new(Joined(images));
    let (keys, objects) = (joined.clone(), joined.clone());
    let stride = joined.parts().plan.stride();
    let below = joined.0.remote.clone().reader(
        config,
        move |number| gather::Parts::key(&*keys, number / stride),
        move |number| {
            let object = objects.object(number / stride, number % stride);
            let size = object.size;
            (object, 0, size)
        },
    )?;
    Ok(gather::over(joined, vec![below]))
}

/// The objects of all records: object `at` of record `r` is number `r * stride + at`.
struct Joined(Arc<Images>);

impl Joined {
    fn parts(&self) -> &Parts {
        &self.0.parts.as_ref().expect("it is made for a folder that has some").0
    }

    fn object(&self, index: u64, at: u64) -> Object {
        let (parts, beside) = self.0.parts.as_ref().expect("it is made for a folder that has some");
        let Some(file) = parts.file(at) else { return self.0.object(index) };
        let mut path = Vec::new();
        parts.path(&self.0.manifest, index, file, &mut path);
        Object {
            path: beside.object(file, &path),
            query: String::new(),
            size: parts.file_size(index, file).unwrap_or(0),
            version: Version::Hash(self.0.beside_versions[file][index as usize]),
        }
    }
}

impl gather::Parts for Joined {
    fn parts(&self) -> usize {
        self.parts().plan.stride() as usize
    }

    fn locate(&self, _index: u64, _at: usize) -> gather::Place {
        gather::Place { store: 0, shard: 0, offset: 0, len: 0 }
    }

    fn has(&self, index: u64, at: usize) -> bool {
        self.parts().file(at as u64).is_none_or(|file| self.parts().file_size(index, file).is_some())
    }

    fn join(&self, index: u64, objects: &[Buffer], room: &Room<'_>) -> Result<Buffer, ReadError> {
        self.parts().join(index, objects, || gather::Parts::key(self, index), room)
    }

    fn key(&self, index: u64) -> String {
        IndexedSource::key(&*self.0, index)
    }
}
