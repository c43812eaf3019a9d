//! Room for the next file: how many bytes the folder holds, over all processes, and which files go when it is full.
//!
//! The file `USAGE` counts the bytes. Under its lock a writer adds the size of its new file, deletes old ones when that
//! passes the limit, and makes the temporary file *with its full length*, so that a count of the folder made at any
//! moment includes files being written. Whoever is killed leaves the count too high, never too low; it is counted anew
//! whenever the limit is reached, and once an hour.
//!
//! Choosing what to delete takes memory for the distinct seconds in which files were last read, not for the files.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::fs::FlockOperation;
use rustix::io::Errno;
use xxhash_rust::xxh3::xxh3_64;

use super::{Cache, ENDING, temporary};
use crate::names::shown;
use crate::workers::lock;

/// The file with the count.
const USAGE: &str = "USAGE";
const MAGIC: &[u8; 8] = b"frusage1";

/// The count is trusted for this long.
const TRUSTED: Duration = Duration::from_secs(3600);

/// A temporary file older than this belongs to nobody: writing one takes seconds.
const ABANDONED: Duration = Duration::from_secs(600);

/// Another process makes room for at most this long, or is stopped with the lock in its hands.
const PATIENCE: Duration = Duration::from_secs(5);

impl Cache {
    /// A new file for `bytes` bytes, which the folder has room for.
    ///
    /// # Errors
    /// The system's; `StorageFull` when deleting cannot make the room; `WouldBlock` when the lock is not to be had.
    pub(super) fn make_room(&self, bytes: u64) -> io::Result<(PathBuf, fs::File)> {
        let _threads = lock(&self.making_room);
        let usage = Usage::lock(&self.dir)?;
        let limit = self.limit.load(Ordering::Relaxed);
        let mut used = match usage.read() {
            Some(used) if used.saturating_add(bytes) <= limit => used,
            _ => {
                let mut used = self.count()?;
                if used.saturating_add(bytes) > limit {
                    // A tenth more than needed, so that the folder is not listed for every file.
                    used -= self.evict(used - (limit - limit / 10).saturating_sub(bytes).min(used))?;
                }
                usage.write(used, true)?;
                used
            }
        };
        used = used.saturating_add(bytes);
        if used > limit {
            return Err(io::Error::new(
                io::ErrorKind::StorageFull,
                format!("its limit of {limit} bytes leaves no room for {bytes}"),
            ));
        }
        usage.write(used, false)?;
        let (path, file) = temporary(&self.dir)?;
        if let Err(error) = file.set_len(bytes) {
            let _ = fs::remove_file(&path);
            return Err(error);
        }
        Ok((path, file))
    }

    /// Bytes of all our files. Deletes temporary ones that nobody writes any more.
    fn count(&self) -> io::Result<u64> {
        let mut used = 0;
        self.visit(&mut |path, meta| {
            let abandoned = is_temporary(path) && age(meta) > ABANDONED;
            if !(abandoned && fs::remove_file(path).is_ok()) {
                used += meta.len();
            }
            true
        })?;
        Ok(used)
    }

    /// Deletes the files read least recently until `wanted` bytes are free; returns how many were.
    fn evict(&self, wanted: u64) -> io::Result<u64> {
        let mut by_time: BTreeMap<i64, u64> = BTreeMap::new();
        self.visit(&mut |path, meta| {
            if !is_temporary(path) {
                *by_time.entry(meta.mtime()).or_default() += meta.len();
            }
            true
        })?;
        let mut sum = 0;
        let last = by_time.iter().find(|(_, bytes)| {
            sum += **bytes;
            sum >= wanted
        });
        let last = last.map_or(i64::MAX, |(time, _)| *time);
        let (mut freed, mut files) = (0, 0u64);
        // Twice: everything older than the last second of those that go, then of that second as much as is needed.
        for only_older in [true, false] {
            self.visit(&mut |path, meta| {
                let goes = if only_older { meta.mtime() < last } else { meta.mtime() == last };
                if goes && !is_temporary(path) && fs::remove_file(path).is_ok() {
                    freed += meta.len();
                    files += 1;
                }
                freed < wanted
            })?;
        }
        tracing::debug!("the cache in {} gave up {files} files of {freed} bytes", shown(&self.dir));
        Ok(freed)
    }

    /// Shows every file that is ours until `each` returns false. Links are not followed; what vanishes is passed over.
    fn visit(&self, each: &mut dyn FnMut(&Path, &fs::Metadata) -> bool) -> io::Result<()> {
        let mut folders = vec![self.dir.clone()];
        let top = self.dir.as_os_str();
        while let Some(folder) = folders.pop() {
            let is_top = folder.as_os_str() == top;
            let entries = match fs::read_dir(&folder) {
                Err(error) if !is_top && error.kind() == io::ErrorKind::NotFound => continue,
                entries => entries?,
            };
            for entry in entries {
                let entry = entry?;
                let name = entry.file_name();
                let Some(name) = name.to_str() else { continue };
                // Of an entry this does not follow links.
                let Ok(meta) = entry.metadata() else { continue };
                if meta.is_dir() && is_top && name.len() == 2 && name.bytes().all(|b| b.is_ascii_hexdigit()) {
                    folders.push(entry.path());
                } else if meta.is_file() && name.ends_with(ENDING) && !each(&entry.path(), &meta) {
                    return Ok(());
                }
            }
        }
        Ok(())
    }
}

fn is_temporary(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("tmp-"))
}

fn age(meta: &fs::Metadata) -> Duration {
    meta.modified().ok().and_then(|time| time.elapsed().ok()).unwrap_or_default()
}

/// The locked count. The lock goes with the descriptor, so also with the process.
struct Usage(fs::File);

impl Usage {
    fn lock(dir: &Path) -> io::Result<Self> {
        let file = fs::OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(dir.join(USAGE))?;
        let begin = Instant::now();
        let mut wait = Duration::from_micros(100);
        loop {
            match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(Self(file)),
                Err(Errno::WOULDBLOCK) if begin.elapsed() < PATIENCE => thread::sleep(wait),
                Err(Errno::WOULDBLOCK) => {
                    return Err(io::Error::new(
                        io::ErrorKind::WouldBlock,
                        format!("another process has held the lock of {USAGE} for {} s", PATIENCE.as_secs()),
                    ));
                }
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            wait = (wait * 2).min(Duration::from_millis(20));
        }
    }

    /// The bytes in use, if the count is whole and recent.
    fn read(&self) -> Option<u64> {
        let (bytes, counted) = self.parts()?;
        let now = now();
        // A clock set back makes a count from the future; that one is not trusted either.
        (counted <= now && now - counted < TRUSTED.as_secs()).then_some(bytes)
    }

    fn parts(&self) -> Option<(u64, u64)> {
        let mut text = [0; 32];
        self.0.read_exact_at(&mut text, 0).ok()?;
        let number = |at: usize| u64::from_le_bytes(text[at..at + 8].try_into().expect("eight bytes"));
        (&text[..8] == MAGIC && number(24) == xxh3_64(&text[..24])).then(|| (number(8), number(16)))
    }

    /// Notes the bytes in use, and whether they were counted just now.
    fn write(&self, bytes: u64, counted: bool) -> io::Result<()> {
        let time = if counted { now() } else { self.parts().map_or(0, |(_, time)| time) };
        let mut text = [0; 32];
        text[..8].copy_from_slice(MAGIC);
        text[8..16].copy_from_slice(&bytes.to_le_bytes());
        text[16..24].copy_from_slice(&time.to_le_bytes());
        let hash = xxh3_64(&text[..24]);
        text[24..].copy_from_slice(&hash.to_le_bytes());
        self.0.write_all_at(&text, 0)
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}
