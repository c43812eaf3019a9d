//! The walk over a folder: its directories level by level, and the sizes of the images in them.

use std::cmp::Reverse;
use std::collections::BTreeMap;
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

use super::parts::{Column, Plan};
use super::{FILES_PER_TASK, MAX_DEPTH, MAX_DIRECTORIES};
use crate::SourceError;
use crate::names::{hidden, is_image, is_litter, shown};
use crate::opening::{self, Counted, Step};
use crate::sources::manifest::ManifestBuilder;
use crate::split::Split;

/// The folder being walked.
pub(super) struct Root<'plan> {
    pub path: PathBuf,
    pub fd: OwnedFd,
    pub ancestors: Arc<Ancestors>,
    /// Counts the images found.
    pub step: Step,
    /// What belongs to the images, where that is wanted.
    pub plan: Option<&'plan Plan>,
    /// Folders that hold parts and no records, relative to the root.
    pub left_out: Vec<Vec<u8>>,
}

/// The directories above one, by identity: entering one of them again would never end.
#[derive(Debug)]
pub(super) struct Ancestors {
    pub identity: (u32, u32, u64),
    pub depth: usize,
    pub parent: Option<Arc<Ancestors>>,
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
pub(super) struct Pending {
    pub class: u32,
    pub folder: Subfolder,
}

#[derive(Clone, Debug)]
pub(super) struct Subfolder {
    pub path: PathBuf,
    pub above: Arc<Ancestors>,
}

/// The images and folders of one directory, sorted by name.
#[derive(Debug)]
pub(super) struct Listing {
    pub path: PathBuf,
    /// Names of the images, each with a NUL behind it, as the system wants them.
    pub names: Vec<u8>,
    pub images: Vec<Range<u32>>,
    /// Sizes of the images; `None` for what is no regular file or has vanished.
    pub sizes: Vec<Option<u64>>,
    /// For each image and each of the plan's files.
    pub beside: Vec<Option<Found>>,
    pub folders: Vec<Subfolder>,
    pub counts: Counts,
}

/// A file beside an image.
#[derive(Clone, Debug)]
pub(super) struct Found {
    /// Among the names of the listing.
    name: Range<u32>,
    /// Where its ending begins.
    ending: u32,
    size: Option<u64>,
}

/// What was left out, for the log.
#[derive(Clone, Debug, Default)]
pub(super) struct Counts {
    /// Files that are no images by their ending, by that.
    pub other: BTreeMap<String, u64>,
    pub special: u64,
    pub dangling: u64,
    pub loops: u64,
    /// Files whose names begin with a dot.
    pub hidden: u64,
    /// Images that are parts of others, and files of parts that belong to none.
    pub images: u64,
    pub alone: u64,
}

/// Endings that are counted one by one, and those that are named.
const MOST_ENDINGS: usize = 64;
const NAMED_ENDINGS: usize = 6;

impl Counts {
    pub fn add(&mut self, more: &Self) {
        for (ending, count) in &more.other {
            self.note(ending.clone(), *count);
        }
        self.special += more.special;
        self.dangling += more.dangling;
        self.loops += more.loops;
        self.hidden += more.hidden;
        self.images += more.images;
        self.alone += more.alone;
    }

    fn other(&mut self, name: &[u8]) {
        let name = shown(OsStr::from_bytes(name)).to_string();
        let ending = match name.rsplit_once('.') {
            Some((before, ending)) if !before.is_empty() && !ending.is_empty() && ending.len() <= 12 => {
                format!(".{}", ending.to_lowercase())
            }
            _ => String::new(),
        };
        self.note(ending, 1);
    }

    fn note(&mut self, ending: String, count: u64) {
        let known = self.other.len() < MOST_ENDINGS || self.other.contains_key(&ending);
        *self.other.entry(if known { ending } else { String::new() }).or_default() += count;
    }

    /// "15 files of other endings were passed over (.txt 12, .heic 3)", if there were any.
    pub fn passed_over(&self) -> Option<String> {
        let mut endings: Vec<_> = self.other.iter().filter(|(ending, _)| !ending.is_empty()).collect();
        let all: u64 = self.other.values().sum();
        endings.sort_by_key(|&(ending, &count)| (Reverse(count), ending));
        let named: Vec<String> =
            endings.iter().take(NAMED_ENDINGS).map(|(ending, count)| format!("{ending} {count}")).collect();
        let more = if endings.len() > NAMED_ENDINGS { ", …" } else { "" };
        let list = if named.is_empty() { String::new() } else { format!(" ({}{more})", named.join(", ")) };
        match all {
            0 => None,
            1 => Some(format!("1 file of another ending was skipped{list}")),
            all => Some(format!("{all} files of other endings were skipped{list}")),
        }
    }

    /// Why there is no image, as far as these files say it: "; all 3 files there are hidden …".
    pub fn instead(&self) -> String {
        let parts = [self.passed_over(), hidden(self.hidden, self.other.is_empty())];
        parts.into_iter().flatten().map(|part| format!("; {part}")).collect()
    }

    /// What should not be there.
    pub fn warnings(&self, root: &Path) -> Vec<String> {
        let Self { special, dangling, loops, .. } = *self;
        let kinds = [
            (special, "special files (pipes, devices, sockets)"),
            (dangling, "links to nothing"),
            (loops, "links to a folder above"),
        ];
        let found: Vec<String> = kinds
            .iter()
            .filter(|(count, _)| *count > 0)
            .map(|(count, what)| format!("{count} {what}"))
            .collect();
        if found.is_empty() {
            Vec::new()
        } else {
            vec![format!("ignored in {}: {}", shown(root), found.join(", "))]
        }
    }
}

impl Listing {
    pub fn len(&self) -> usize {
        self.images.len()
    }

    fn name(&self, image: &Range<u32>) -> &CStr {
        let bytes = &self.names[image.start as usize..image.end as usize];
        CStr::from_bytes_with_nul(bytes).expect("names are stored with their NUL")
    }

    /// Puts images and what belongs to them together, as `plan` says.
    fn couple(&mut self, plan: &Plan) {
        let names: Vec<&[u8]> = self.images.iter().map(|image| self.name(image).to_bytes()).collect();
        let coupled = plan.couple(&names);
        let found = |at: &u32| {
            let name = self.images.get(*at as usize)?.clone();
            let ending = plan.stem_of_part(names[*at as usize])? + 1;
            Some(Found { ending: name.start + ending as u32, name, size: None })
        };
        self.beside = coupled.beside.iter().map(found).collect();
        self.images = coupled.records.iter().map(|&at| self.images[at as usize].clone()).collect();
        self.counts.images += coupled.images;
        self.counts.alone += coupled.alone;
    }

    /// Leaves out images that are files of others.
    pub fn leave_out(&mut self, is_left_out: impl Fn(&[u8]) -> bool) {
        let each = self.beside.len() / self.images.len().max(1);
        let mut path = Vec::new();
        let kept: Vec<usize> = (0..self.images.len())
            .filter(|&at| {
                path.clear();
                self.path_of(at, &mut path);
                !is_left_out(&path)
            })
            .collect();
        self.counts.images += (self.images.len() - kept.len()) as u64;
        self.beside = kept.iter().flat_map(|&at| self.beside[at * each..][..each].to_vec()).collect();
        self.sizes = kept.iter().map(|&at| self.sizes[at]).collect();
        self.images = kept.iter().map(|&at| self.images[at].clone()).collect();
    }

    /// Appends the path of an image, relative to the root.
    pub fn path_of(&self, at: usize, path: &mut Vec<u8>) {
        path.extend_from_slice(self.path.as_os_str().as_bytes());
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(self.name(&self.images[at]).to_bytes());
    }

    /// Adds what belongs to the split and returns how many images there were before it.
    pub fn add_to(
        &self,
        manifest: &mut ManifestBuilder,
        columns: &mut [Column],
        class: u32,
        split: Option<&Split>,
    ) -> u64 {
        let mut path = self.path.as_os_str().as_bytes().to_vec();
        if !path.is_empty() {
            path.push(b'/');
        }
        let folder = path.len();
        let mut begun = false;
        let mut seen = 0;
        for (at, (image, size)) in self.images.iter().zip(&self.sizes).enumerate() {
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
            let each = columns.len();
            for (column, found) in columns.iter_mut().zip(&self.beside[at * each..]) {
                let ending = |found: &Found| &self.names[found.ending as usize..found.name.end as usize - 1];
                column.push(found.as_ref().and_then(|found| Some((found.size?, ending(found)))));
            }
        }
        seen
    }
}

impl<'plan> Root<'plan> {
    pub fn open(path: &Path, plan: Option<&'plan Plan>) -> Result<Self, SourceError> {
        let open = || -> Result<_, Errno> {
            let fd =
                rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
            let stat = rustix::fs::statx(&fd, "", AtFlags::EMPTY_PATH, StatxFlags::INO)?;
            Ok((fd, (stat.stx_dev_major, stat.stx_dev_minor, stat.stx_ino)))
        };
        let (fd, identity) = open().map_err(|error| SourceError::folder(path, &error.into()))?;
        let ancestors = Arc::new(Ancestors { identity, depth: 0, parent: None });
        let step = Step::begin("walking the folder", Counted::Files, None);
        Ok(Self { path: path.to_owned(), fd, ancestors, step, plan, left_out: Vec::new() })
    }

    /// The folders that hold no records, for the log.
    pub fn left_out(&self) -> Vec<String> {
        self.left_out.iter().map(|folder| shown(OsStr::from_bytes(folder)).to_string()).collect()
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
    pub fn walk(&self, mut level: Vec<Pending>) -> Result<Vec<(u32, Listing)>, SourceError> {
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
                    shown(&self.path)
                )));
            }
        }
        Ok(done)
    }

    /// Lists one directory. `above` are the directories it lies in, and for the root the root itself.
    pub fn list(&self, path: &Path, above: &Arc<Ancestors>) -> Result<Listing, SourceError> {
        let fd = self.open_folder(path).map_err(|error| self.error(path, error))?;
        let mut listing = Listing {
            path: path.to_owned(),
            names: Vec::new(),
            images: Vec::new(),
            sizes: Vec::new(),
            beside: Vec::new(),
            folders: Vec::new(),
            counts: Counts::default(),
        };
        // Those at the top may be named as classes.
        let at_top = path.as_os_str().is_empty();
        let here = if at_top {
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
                    shown(&self.path.join(path))
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
                listing.counts.hidden += u64::from(entry.file_type() != FileType::Directory);
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
                FileType::Directory if is_litter(bytes) && !at_top => {}
                FileType::Directory
                    if !self.left_out.is_empty()
                        && self.left_out.iter().any(|folder| {
                            path.join(OsStr::from_bytes(bytes)).as_os_str().as_bytes() == folder
                        }) => {}
                FileType::Directory => folders.push(OsStr::from_bytes(bytes).to_owned()),
                FileType::RegularFile
                    if self.plan.map_or_else(|| is_image(bytes), |plan| plan.takes(bytes)) =>
                {
                    let begin = listing.names.len();
                    listing.names.extend_from_slice(name.to_bytes_with_nul());
                    let end = u32::try_from(listing.names.len()).map_err(|_| {
                        let shown = self.path.join(path);
                        SourceError::data(format!(
                            "{} has 4 GiB of file names; spread its files",
                            crate::names::shown(&shown)
                        ))
                    })?;
                    listing.images.push(begin as u32..end);
                }
                FileType::RegularFile => listing.counts.other(bytes),
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
        if let Some(plan) = self.plan {
            listing.couple(plan);
        }
        Ok(listing)
    }

    /// Asks for the sizes of all images of `listings`.
    pub fn measure(&self, listings: &mut [(u32, Listing)]) -> Result<(), SourceError> {
        for (_, listing) in listings.iter_mut() {
            listing.sizes = vec![None; listing.images.len()];
        }
        let mut tasks = Vec::new();
        for (_, listing) in listings.iter_mut() {
            let Listing { path, names, images, sizes, beside, .. } = listing;
            for (images, sizes) in images.chunks(FILES_PER_TASK).zip(sizes.chunks_mut(FILES_PER_TASK)) {
                tasks.push((&*path, &*names, Files::Images(images, sizes)));
            }
            for beside in beside.chunks_mut(FILES_PER_TASK) {
                tasks.push((&*path, &*names, Files::Beside(beside)));
            }
        }
        tasks.into_par_iter().try_for_each(|(path, names, files)| {
            self.step.run(|| {
                let fd = self.open_folder(path).map_err(|error| self.error(path, error))?;
                let size = |file: &Range<u32>| {
                    let name = CStr::from_bytes_with_nul(&names[file.start as usize..file.end as usize])
                        .expect("names are stored with their NUL");
                    self.size(&fd, path, name)
                };
                match files {
                    Files::Images(images, sizes) => {
                        for (image, of_image) in images.iter().zip(sizes) {
                            *of_image = size(image)?;
                            self.step.add(1);
                        }
                    }
                    Files::Beside(beside) => {
                        for found in beside.iter_mut().flatten() {
                            found.size = size(&found.name)?;
                        }
                    }
                }
                Ok(())
            })
        })
    }

    /// The size of a file in an open folder, if it is a regular one.
    fn size(&self, fd: &OwnedFd, path: &Path, name: &CStr) -> Result<Option<u64>, SourceError> {
        opening::check()?;
        match rustix::fs::statx(fd, name, AtFlags::empty(), StatxFlags::SIZE | StatxFlags::TYPE) {
            Ok(stat) => {
                let is_file = FileType::from_raw_mode(stat.stx_mode.into()) == FileType::RegularFile;
                Ok(is_file.then_some(stat.stx_size))
            }
            // It has vanished, or become something else, since it was listed a moment ago.
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(self.error(&path.join(OsStr::from_bytes(name.to_bytes())), error)),
        }
    }

    /// The size of a file by its path from the root. `None` where there is none.
    pub fn size_at(&self, path: &[u8]) -> Result<Option<u64>, SourceError> {
        let path = Path::new(OsStr::from_bytes(path));
        match rustix::fs::statx(&self.fd, path, AtFlags::empty(), StatxFlags::SIZE | StatxFlags::TYPE) {
            Ok(stat) => {
                let is_file = FileType::from_raw_mode(stat.stx_mode.into()) == FileType::RegularFile;
                Ok(is_file.then_some(stat.stx_size))
            }
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::NAMETOOLONG) => Ok(None),
            Err(error) => Err(self.error(path, error)),
        }
    }
}

/// Files whose sizes one task asks for.
enum Files<'listing> {
    Images(&'listing [Range<u32>], &'listing mut [Option<u64>]),
    Beside(&'listing mut [Option<Found>]),
}
