//! The cache folder on the local disk: small files that can be made again, written so that no crash leaves half of one.
//!
//! ```text
//!  <dir>/fuelrail-cache/           <dir> is the user's; nothing outside this sub-folder is ever touched
//!  ├── CACHEDIR.TAG                says that the folder is ours (and tells backup programs to skip it)
//!  ├── NAME.fuelrail               an entry: 32 bytes of header, then the bytes
//!  └── tmp-PID-NUMBER.fuelrail     an entry being written
//! ```
//!
//! Every entry carries its length and a hash of its bytes; one that is short or damaged counts as absent. Writing is a
//! temporary file and a rename. A cache that cannot be written is a warning and never an error: whoever uses it makes the
//! bytes again.

use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use xxhash_rust::xxh3::xxh3_128;

use crate::{CacheConfig, SourceError};

/// The sub-folder of the user's cache folder that is ours.
const FOLDER: &str = "fuelrail-cache";

/// The marker, by the convention of <https://bford.info/cachedir/>.
const MARKER: &str = "CACHEDIR.TAG";
const MARKER_TEXT: &[u8] = b"Signature: 8a477f597d28d172789f06886806bc55\n\
# Copies of data that fuelrail can fetch or make again. This folder may be deleted when no fuelrail runs.\n";

/// The ending of every file of ours but the marker.
const ENDING: &str = ".fuelrail";

/// An entry begins with this, its length and the hash of its bytes.
const MAGIC: &[u8; 8] = b"frcache1";
const HEADER: usize = 32;

/// The folder for copies: the one configured or `fuelrail` in the user's cache folder, made with mode 0700 if it is not
/// there; the folder returned is a sub-folder of it that is fuelrail's alone.
///
/// # Errors
/// [`SourceError`] that names the folder and the key to set when it cannot be made or is somebody else's.
pub(crate) fn dir(config: &CacheConfig) -> Result<PathBuf, SourceError> {
    let base = match &config.dir {
        Some(dir) if dir.is_absolute() => dir.clone(),
        Some(dir) => {
            return Err(SourceError::config(format!(
                "cache.dir is {}; it must be an absolute path",
                dir.display()
            )));
        }
        None => default_dir().ok_or_else(|| {
            SourceError::config(
                "there is no place for the cache: neither XDG_CACHE_HOME nor HOME is set; set cache.dir"
                    .into(),
            )
        })?,
    };
    let folder = base.join(FOLDER);
    let failed = |error: io::Error| {
        SourceError::data(format!(
            "the cache folder {} cannot be used: {error}; set cache.dir to a folder that this user may write",
            folder.display()
        ))
    };
    fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder).map_err(failed)?;
    match fs::read(folder.join(MARKER)) {
        Ok(text) if text.starts_with(&MARKER_TEXT[..43]) => return Ok(folder),
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(error)),
    }
    for entry in fs::read_dir(&folder).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        // Without a marker only what a first start that was killed may have left is taken for ours.
        if !name.to_string_lossy().ends_with(ENDING) && name != MARKER {
            return Err(SourceError::config(format!(
                "{} holds files that fuelrail did not put there ({}); set cache.dir to another folder",
                folder.display(),
                name.display()
            )));
        }
    }
    write_atomic(&folder, MARKER, &[MARKER_TEXT]).map_err(failed)?;
    Ok(folder)
}

/// By the XDG rules: a relative `XDG_CACHE_HOME` counts as unset.
fn default_dir() -> Option<PathBuf> {
    let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let caches = absolute("XDG_CACHE_HOME").or_else(|| absolute("HOME").map(|home| home.join(".cache")))?;
    Some(caches.join("fuelrail"))
}

/// Keeps `bytes` under `name` (letters, digits, `-`, `_` and `.`), replacing what was there. A failure is logged (once) and
/// leaves what was there.
pub(crate) fn put(dir: &Path, name: &str, bytes: &[u8]) {
    let mut header = [0; HEADER];
    header[..8].copy_from_slice(MAGIC);
    header[8..16].copy_from_slice(&(bytes.len() as u64).to_le_bytes());
    header[16..].copy_from_slice(&xxh3_128(bytes).to_le_bytes());
    if let Err(error) = write_atomic(dir, &entry(name), &[&header, bytes]) {
        warn_once(dir, &error);
    }
}

/// What [`put`] kept under `name`, if it is there, whole, and not longer than `max_bytes`.
pub(crate) fn get(dir: &Path, name: &str, max_bytes: u64) -> Option<Vec<u8>> {
    let mut file = fs::File::open(dir.join(entry(name))).ok()?;
    let mut header = [0; HEADER];
    file.read_exact(&mut header).ok()?;
    let len = u64::from_le_bytes(header[8..16].try_into().expect("eight bytes"));
    if &header[..8] != MAGIC || len > max_bytes || file.metadata().ok()?.len() != HEADER as u64 + len {
        return None;
    }
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

/// A temporary file in the same folder, then a rename: after a crash there is the old file, the new one, or none.
fn write_atomic(dir: &Path, name: &str, parts: &[&[u8]]) -> io::Result<()> {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let temporary = dir.join(format!("tmp-{}-{number}{ENDING}", std::process::id()));
    let write = || {
        // A left-over of a process that had this number before us is overwritten.
        let mut file =
            fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        parts.iter().try_for_each(|part| file.write_all(part))?;
        fs::rename(&temporary, dir.join(name))
    };
    write().inspect_err(|_| {
        // Nothing to add to the first error when this fails, too.
        let _ = fs::remove_file(&temporary);
    })
}

fn warn_once(dir: &Path, error: &io::Error) {
    static WARNED: AtomicBool = AtomicBool::new(false);
    if !WARNED.swap(true, Ordering::Relaxed) {
        tracing::warn!(
            "the cache in {} cannot be written ({error}); going on without it (said once)",
            dir.display()
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(dir: &Path) -> CacheConfig {
        CacheConfig { dir: Some(dir.to_owned()), limit_bytes: None }
    }

    #[test]
    fn what_was_put_is_got_and_a_damaged_entry_is_absent() {
        let root = tempfile::tempdir().unwrap();
        let dir = dir(&config(&root.path().join("a/b"))).unwrap();
        assert_eq!(get(&dir, "x.index", 100), None);
        put(&dir, "x.index", b"first");
        put(&dir, "x.index", b"bytes");
        assert_eq!(get(&dir, "x.index", 5).as_deref(), Some(&b"bytes"[..]));
        assert_eq!(get(&dir, "x.index", 4), None, "longer than the caller can use");
        let file = dir.join("x.index.fuelrail");
        let whole = fs::read(&file).unwrap();
        for at in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 1;
            fs::write(&file, &damaged).unwrap();
            assert_eq!(get(&dir, "x.index", 100), None, "byte {at}");
            fs::write(&file, &whole[..at]).unwrap();
            assert_eq!(get(&dir, "x.index", 100), None, "cut at {at}");
        }
    }

    #[test]
    fn a_folder_with_files_of_others_is_refused_and_one_of_ours_is_taken_again() {
        let root = tempfile::tempdir().unwrap();
        let ours = dir(&config(root.path())).unwrap();
        assert_eq!(dir(&config(root.path())).unwrap(), ours);
        fs::remove_file(ours.join(MARKER)).unwrap();
        fs::write(ours.join("thesis.tex"), "years of work").unwrap();
        let error = dir(&config(root.path())).unwrap_err();
        assert!(error.is_config() && error.to_string().contains("thesis.tex"), "{error}");
        assert!(dir(&config(Path::new("relative"))).unwrap_err().to_string().contains("absolute"));
    }

    #[test]
    fn a_cache_that_cannot_be_written_is_no_error() {
        let root = tempfile::tempdir().unwrap();
        let gone = root.path().join("gone");
        put(&gone, "x", b"bytes");
        assert_eq!(get(&gone, "x", 100), None);
    }
}
