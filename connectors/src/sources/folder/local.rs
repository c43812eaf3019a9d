//! Files of parts on the local disk: those of templates, and how all of them are read.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rayon::prelude::*;
use xxhash_rust::xxh3::xxh3_128;

use super::Folder;
use super::parts::{Column, Look, Parts, Plan};
use super::walk::{Counts, Listing, Root};
use crate::bytes::buffer::Buffer;
use crate::bytes::disk::{self, Files, Span};
use crate::gather::{self, Room};
use crate::names::{missing, shown};
use crate::sources::manifest::Manifest;
use crate::{IndexedSource, ReadError, Reader, ReaderConfig, SourceError};

/// Records whose files of a template one task asks for.
const RECORDS_PER_TASK: usize = 2048;

/// Folders below the root that templates lead into: no record is in them.
pub(super) fn folders_of_parts(root: &Path, plan: &Plan) -> Vec<Vec<u8>> {
    let Ok(top) = root.canonicalize() else { return Vec::new() };
    let below = |folder: &str| {
        let folder = root.join(folder).canonicalize().ok()?;
        let below = folder.strip_prefix(&top).ok()?.as_os_str().as_bytes().to_vec();
        (!below.is_empty()).then_some(below)
    };
    plan.templates().filter_map(|(_, template)| below(template.folder())).collect()
}

/// Leaves out the images that are other images' files by a template.
pub(super) fn leave_out_files_of_templates(plan: &Plan, listings: &mut [(u32, Listing)]) {
    if plan.templates().next().is_none() {
        return;
    }
    let files_of = |listing: &Listing| {
        let mut files = Vec::new();
        let mut path = Vec::new();
        for at in 0..listing.len() {
            path.clear();
            listing.path_of(at, &mut path);
            let stem = plan.stem(&path);
            let made = plan.templates().filter_map(|(_, template)| template.expand(&path, stem));
            files.extend(made.filter(|file| *file != path).map(|file| xxh3_128(&file)));
        }
        files
    };
    let files: HashSet<u128> = listings.par_iter().flat_map_iter(|(_, listing)| files_of(listing)).collect();
    listings.par_iter_mut().for_each(|(_, listing)| {
        listing.leave_out(|path| files.contains(&xxh3_128(path)));
    });
}

/// Asks for the files of templates.
pub(super) fn measure_templates(
    root: &Root<'_>,
    plan: &Plan,
    manifest: &Manifest,
    columns: &mut [Column],
) -> Result<(), SourceError> {
    for (file, template) in plan.templates() {
        let size = |index: u64| {
            let mut path = Vec::new();
            manifest.path(index, &mut path);
            let stem = plan.stem(&path);
            crate::opening::check()?;
            template.expand(&path, stem).map_or(Ok(None), |made| root.size_at(&made))
        };
        let all: Vec<u64> = (0..manifest.len()).collect();
        let measure = |records: &[u64]| {
            root.step
                .run(|| records.iter().map(|&index| size(index)).collect::<Result<Vec<_>, SourceError>>())
        };
        let sizes = all.par_chunks(RECORDS_PER_TASK).map(measure).collect::<Result<Vec<_>, _>>()?;
        columns[file] = Column::default();
        for size in sizes.into_iter().flatten() {
            columns[file].push(size.map(|size| (size, &b""[..])));
        }
    }
    Ok(())
}

/// The folder, for what has to be seen in it.
pub(super) struct Local<'walked> {
    pub root: &'walked Path,
    pub manifest: &'walked Manifest,
    pub counts: &'walked Counts,
}

impl Local<'_> {
    fn at(&self, path: &[u8]) -> PathBuf {
        self.root.join(OsStr::from_bytes(path))
    }
}

impl Look for Local<'_> {
    fn place(&self) -> String {
        shown(self.root).to_string()
    }

    fn manifest(&self) -> &Manifest {
        self.manifest
    }

    fn read(&self, _index: u64, _file: usize, path: &[u8], size: u64) -> Option<Vec<u8>> {
        let path = self.at(path);
        let is_sound = fs::metadata(&path).is_ok_and(|file| file.is_file() && file.len() == size);
        is_sound.then(|| fs::read(path).ok()).flatten()
    }

    fn missing(&self, _file: usize, path: &[u8]) -> String {
        missing(&self.at(path))
    }

    fn others(&self) -> Vec<&str> {
        self.counts.other.keys().map(String::as_str).filter(|ending| !ending.is_empty()).collect()
    }
}

/// Starts a reader of records with parts.
pub(super) fn reader(folder: Arc<Folder>, config: &ReaderConfig) -> Result<Box<dyn Reader>, SourceError> {
    let files = disk::open(Arc::new(Beside(folder.clone())), config)?;
    Ok(gather::over(Arc::new(Beside(folder)), vec![files]))
}

/// The files of all records: file `at` of record `r` is number `r * stride + at`.
struct Beside(Arc<Folder>);

impl Beside {
    fn parts(&self) -> &Parts {
        self.0.parts.as_ref().expect("it is made for a folder that has some")
    }

    fn size(&self, index: u64, at: u64) -> Option<u64> {
        match self.parts().file(at) {
            None => Some(self.0.manifest.size(index)),
            Some(file) => self.parts().file_size(index, file),
        }
    }
}

impl Files for Beside {
    fn root(&self) -> &Path {
        &self.0.root
    }

    fn locate(&self, index: u64, path: &mut Vec<u8>) -> Span {
        let (parts, stride) = (self.parts(), self.parts().plan.stride());
        let (index, at) = (index / stride, index % stride);
        match parts.file(at) {
            None => self.0.manifest.path(index, path),
            Some(file) => {
                parts.path(&self.0.manifest, index, file, path);
            }
        }
        Span { offset: 0, len: self.size(index, at).unwrap_or(0), whole: true }
    }

    fn key(&self, index: u64) -> String {
        IndexedSource::key(&*self.0, index / self.parts().plan.stride())
    }
}

impl gather::Parts for Beside {
    fn parts(&self) -> usize {
        self.parts().plan.stride() as usize
    }

    fn locate(&self, index: u64, at: usize) -> gather::Place {
        gather::Place { store: 0, shard: 0, offset: 0, len: self.size(index, at as u64).unwrap_or(0) }
    }

    fn has(&self, index: u64, at: usize) -> bool {
        self.size(index, at as u64).is_some()
    }

    fn join(&self, index: u64, files: &[Buffer], room: &Room<'_>) -> Result<Buffer, ReadError> {
        self.parts().join(index, files, || gather::Parts::key(self, index), room)
    }

    fn key(&self, index: u64) -> String {
        IndexedSource::key(&*self.0, index)
    }
}
