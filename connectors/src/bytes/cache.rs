//! The cache folder on the local disk: copies that can be made again, bounded in bytes, written so that no crash leaves
//! half of one.
//!
//! ```text
//!  <dir>/fuelrail-cache/           <dir> is the user's; nothing outside this sub-folder is ever touched
//!  ├── CACHEDIR.TAG                says that the folder is ours (and tells backup programs to skip it)
//!  ├── USAGE                       bytes in use; its lock is held while room is made
//!  ├── NAME.fuelrail               an entry: a header with length and hash, then the bytes
//!  ├── 3f/3f…-00000007.fuelrail    a block of a remote object (see `blocks`)
//!  └── tmp-PID-NUMBER.fuelrail     a file being written
//! ```
//!
//! # Promises
//!
//! - **What is read is what was written**: length and hash are verified at every read; a file that is short or damaged
//!   counts as absent.
//! - **kill -9 at any moment leaves a whole file or none**: a temporary file and a rename. What a killed process left
//!   of a temporary file is deleted by whoever looks next.
//! - **The folder stays below its limit**, over all processes that use it: room is taken under a lock before a byte is
//!   written, and the files not read for the longest time go first. A file that is being read may be deleted; its
//!   reader has it open and does not notice.
//! - **Only files with our names inside our sub-folder are deleted**, and a folder with other files in it is not taken
//!   for ours.
//! - **A cache that cannot be written is a warning** (one) and never an error: whoever uses it makes the bytes again.
//!   After a failure (a full disk) writing is tried again once a minute.

mod blocks;
mod room;
pub(crate) mod size;
#[cfg(test)]
pub(crate) mod tests;

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use xxhash_rust::xxh3::xxh3_128;

pub(crate) use blocks::BlockId;
pub(crate) use size::deserialize as deserialize_limit;

use crate::names::shown;
use crate::workers::lock;
use crate::{CacheConfig, SourceError};

/// The sub-folder of the user's cache folder that is ours.
const FOLDER: &str = "fuelrail-cache";

/// The marker, by the convention of <https://bford.info/cachedir/>.
const MARKER: &str = "CACHEDIR.TAG";
const SIGNATURE: &str = "Signature: 8a477f597d28d172789f06886806bc55";
const MARKER_TEXT: &str = "Signature: 8a477f597d28d172789f06886806bc55\n\
# Copies of data that fuelrail can fetch or make again. This folder may be deleted when no fuelrail runs.\n";

/// The ending of every file of ours but the marker and the count of bytes.
const ENDING: &str = ".fuelrail";

/// Bytes that a cache may hold when the configuration does not say.
const DEFAULT_LIMIT: u64 = 100_000_000_000;

/// After a failed write none is tried for this long: a full disk is not asked for every block.
const PAUSE: Duration = Duration::from_secs(60);

/// An entry begins with this, its length and the hash of its bytes.
const MAGIC: &[u8; 8] = b"frcache1";
const HEADER: usize = 32;

/// One cache folder, shared by everything in this process that uses it.
#[derive(Debug)]
pub(crate) struct Cache {
    dir: PathBuf,
    limit: AtomicU64,
    /// Held while room is made: the lock of the file keeps out other processes, this keeps out other threads.
    making_room: Mutex<()>,
    paused: Mutex<Option<Instant>>,
    warned: AtomicBool,
}

/// The folders in use, by path. They are few and small, and stay until the process ends.
static OPEN: Mutex<BTreeMap<PathBuf, Arc<Cache>>> = Mutex::new(BTreeMap::new());

/// The cache that the configuration names: its folder, or `fuelrail` in the user's cache folder, made with mode 0700 if
/// it is not there. The limit given last counts for the whole process.
///
/// # Errors
/// [`SourceError`] that names the folder and the key to set when it cannot be made or is somebody else's.
pub(crate) fn open(config: &CacheConfig) -> Result<Arc<Cache>, SourceError> {
    let base = match &config.dir {
        Some(dir) if dir.is_absolute() => dir.clone(),
        Some(dir) => {
            return Err(SourceError::config(format!(
                "cache.dir is {}; it must be an absolute path",
                shown(&dir)
            )));
        }
        None => default_dir().ok_or_else(|| {
            SourceError::config(
                "no folder for the cache: neither XDG_CACHE_HOME nor HOME is set; set cache.dir".into(),
            )
        })?,
    };
    let folder = base.join(FOLDER);
    take(&folder)?;
    let limit = config.limit_bytes.unwrap_or(DEFAULT_LIMIT);
    let cache = lock(&OPEN).entry(folder.clone()).or_insert_with(|| Arc::new(Cache::new(folder))).clone();
    cache.limit.store(limit, Ordering::Relaxed);
    Ok(cache)
}

/// The folder of the cache that the configuration names, which is fuelrail's alone.
///
/// # Errors
/// As [`open`].
pub(crate) fn dir(config: &CacheConfig) -> Result<PathBuf, SourceError> {
    Ok(open(config)?.dir.clone())
}

/// Makes the folder ours, or finds that it is.
fn take(folder: &Path) -> Result<(), SourceError> {
    let failed = |error: io::Error| {
        SourceError::data(format!(
            "the cache folder {} cannot be used: {error}; set cache.dir to a folder that this user may write",
            shown(&folder)
        ))
    };
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(failed)?;
    match fs::read(folder.join(MARKER)) {
        Ok(text) if text.starts_with(SIGNATURE.as_bytes()) => return Ok(()),
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(error)),
    }
    for entry in fs::read_dir(folder).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        // Without a marker only what a first start that was killed may have left is taken for ours.
        if !name.to_string_lossy().starts_with("tmp-") || !name.to_string_lossy().ends_with(ENDING) {
            return Err(SourceError::config(format!(
                "{} holds files that fuelrail did not put there ({}); set cache.dir to another folder",
                shown(&folder),
                shown(&name)
            )));
        }
    }
    let (temporary, mut file) = temporary(folder).map_err(failed)?;
    file.write_all(MARKER_TEXT.as_bytes())
        .and_then(|()| fs::rename(&temporary, folder.join(MARKER)))
        .map_err(failed)
}

/// By the XDG rules: a relative `XDG_CACHE_HOME` counts as unset.
fn default_dir() -> Option<PathBuf> {
    let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let caches = absolute("XDG_CACHE_HOME").or_else(|| absolute("HOME").map(|home| home.join(".cache")))?;
    Some(caches.join("fuelrail"))
}

/// Keeps `bytes` under `name` (letters, digits, `-`, `_` and `.`) in a folder from [`dir`], replacing what was there. A
/// failure is logged (once) and leaves what was there.
pub(crate) fn put(dir: &Path, name: &str, bytes: &[u8]) {
    let mut header = [0; HEADER];
    header[..8].copy_from_slice(MAGIC);
    header[8..16].copy_from_slice(&(bytes.len() as u64).to_le_bytes());
    header[16..].copy_from_slice(&xxh3_128(bytes).to_le_bytes());
    let cache = lock(&OPEN).get(dir).cloned().unwrap_or_else(|| Arc::new(Cache::new(dir.to_owned())));
    cache.keep(&entry(name), &[&header, bytes]);
}

/// What [`put`] kept under `name`, if it is there, whole, and not longer than `max_bytes`.
pub(crate) fn get(dir: &Path, name: &str, max_bytes: u64) -> Option<Vec<u8>> {
    let mut file = fs::File::open(dir.join(entry(name))).ok()?;
    let mut header = [0; HEADER];
    file.read_exact(&mut header).ok()?;
    let len = u64::from_le_bytes(header[8..16].try_into().expect("eight bytes"));
    let meta = file.metadata().ok()?;
    if &header[..8] != MAGIC || len > max_bytes || meta.len() != HEADER as u64 + len {
        return None;
    }
    touch(&file, &meta);
    let mut bytes = Vec::new();
    bytes.try_reserve_exact(usize::try_from(len).ok()?).ok()?;
    file.take(len).read_to_end(&mut bytes).ok()?;
    let whole = bytes.len() as u64 == len && xxh3_128(&bytes).to_le_bytes() == header[16..];
    whole.then_some(bytes)
}

fn entry(name: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
    assert!(!name.is_empty() && !name.starts_with('.') && name.bytes().all(plain), "{name:?} names no entry");
    format!("{name}{ENDING}")
}

impl Cache {
    fn new(dir: PathBuf) -> Self {
        Self {
            dir,
            limit: AtomicU64::new(DEFAULT_LIMIT),
            making_room: Mutex::new(()),
            paused: Mutex::new(None),
            warned: AtomicBool::new(false),
        }
    }

    /// Whether a file of this size would be kept, as far as is known before trying.
    pub(crate) fn accepts(&self, bytes: u64) -> bool {
        // A file that is most of the cache would push out everything, itself included at the next one.
        bytes <= self.limit.load(Ordering::Relaxed) / 4
            && lock(&self.paused).is_none_or(|since| since.elapsed() >= PAUSE)
    }

    /// Writes a file of the folder, whole or not at all. False when it was not kept, for whatever reason.
    fn keep(&self, name: &str, parts: &[&[u8]]) -> bool {
        let bytes = parts.iter().map(|part| part.len() as u64).sum();
        if !self.accepts(bytes) {
            return false;
        }
        let Err(error) = self.write(name, parts, bytes) else { return true };
        *lock(&self.paused) = Some(Instant::now());
        if !self.warned.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                "cannot write to the cache in {} ({error}); continuing without new copies (reported once)",
                shown(&self.dir)
            );
        }
        false
    }

    fn write(&self, name: &str, parts: &[&[u8]], bytes: u64) -> io::Result<()> {
        let (temporary, mut file) = self.make_room(bytes)?;
        let mut write = || {
            parts.iter().try_for_each(|part| file.write_all(part))?;
            let path = self.dir.join(name);
            match fs::rename(&temporary, &path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    let folder = path.parent().expect("a file is in a folder");
                    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
                    fs::rename(&temporary, &path)
                }
                other => other,
            }
        };
        write().inspect_err(|_| {
            // Nothing to add to the first error when this fails, too.
            let _ = fs::remove_file(&temporary);
        })
    }
}

/// A new file with a name of ours that nobody else writes.
fn temporary(dir: &Path) -> io::Result<(PathBuf, fs::File)> {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    loop {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = dir.join(format!("tmp-{}-{number}{ENDING}", std::process::id()));
        match fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path) {
            // Of a process that had this number before us, or has it in another container.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            other => return Ok((path, other?)),
        }
    }
}

/// Notes that a file was read, at most once a minute: the order in which files go.
fn touch(file: &fs::File, meta: &fs::Metadata) {
    let old = |time: std::time::SystemTime| time.elapsed().is_ok_and(|age| age > Duration::from_secs(60));
    if meta.modified().is_ok_and(old) {
        // A cache on a read-only file system can still be read.
        let _ = file.set_modified(std::time::SystemTime::now());
    }
}
