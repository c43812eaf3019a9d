//! Compressed shards, unpacked once into the cache folder: random access into a gzip or Zstandard stream is not to be
//! had.
//!
//! ```text
//!  <cache>/unpacked.fuelrail/
//!  ├── lock                    held while somebody unpacks or makes room; one at a time
//!  ├── HASH.tar                a shard, whole; HASH is over its name, size and version. Its time says when it was last used
//!  ├── HASH.tmp                one being written; left over by a crash if nobody holds the lock
//!  └── PID-NUMBER.lease        names in use by an open source, one a line; locked while it is open
//! ```
//!
//! # Promises
//!
//! - The folder never holds more than the cache's limit: the least recently used shards that nobody uses make room, and
//!   a stream that would go beyond (a bomb, or a limit too small) ends in an error, its piece deleted.
//! - A shard is there whole or not at all, whatever crashes. No member is written under a name of its own.

use std::collections::{BTreeSet, HashSet};
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use flate2::bufread::GzDecoder;
use rayon::prelude::*;
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use xxhash_rust::xxh3::Xxh3;

use crate::bytes::cache;
use crate::bytes::shards::{Shards, ends_with};
use crate::names::shown;
use crate::opening::{self, Counted, Step};
use crate::workers::lock;
use crate::{CacheConfig, SourceError};

/// Default of [`CacheConfig::limit_bytes`].
const LIMIT: u64 = 100_000_000_000;

/// Bytes between two looks at the limit.
const STRIDE: usize = 1 << 20;

/// Bytes written between two calls that wait for the disk, so that neither a cancelled opening nor the last of these
/// calls waits for gigabytes.
const SYNCED: u64 = 64 << 20;

/// Time between two looks at a lock that somebody holds.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// Streams unpacked side by side: each may hold a window of 128 MiB.
const SIDE_BY_SIDE: usize = 4;

/// Unpacked shards, kept from being deleted as long as this lives.
pub(super) struct Unpacked {
    pub shards: Arc<Shards>,
    _lease: Lease,
}

/// Unpacks the shards with these numbers, in this order, unless they lie unpacked already.
///
/// # Errors
/// [`SourceError`] that names the shard: damaged, larger than the limit, or the disk is full.
pub(super) fn unpack(
    given: &Arc<Shards>,
    which: &[usize],
    config: &CacheConfig,
) -> Result<Unpacked, SourceError> {
    let folder = cache::dir(config)?.join("unpacked.fuelrail");
    let failed = |error: io::Error| {
        SourceError::data(format!(
            "shards cannot be unpacked into {}: {error}; set cache.dir",
            shown(&folder)
        ))
    };
    fs::create_dir_all(&folder).map_err(failed)?;
    let names: Vec<String> = which.iter().map(|&shard| name(given, shard)).collect();
    let lock_file = open_lock(&folder.join("lock")).map_err(failed)?;
    // The lease comes first, under the lock, so that nobody makes room with what is wanted here.
    let lease = Lease::new(&folder, &names).map_err(failed)?;
    let space = Space::new(&folder, &names, config.limit_bytes.unwrap_or(LIMIT)).map_err(failed)?;
    let missing: Vec<(usize, &String)> =
        which.iter().copied().zip(&names).filter(|(_, name)| !folder.join(name).exists()).collect();
    let total = missing.iter().map(|&(shard, _)| given.files()[shard].size).sum();
    let step = Step::begin("unpacking shards", Counted::Bytes, Some(total));
    let stop = AtomicBool::new(false);
    let work = || {
        missing.par_iter().try_for_each(|&(shard, name)| {
            let job = Job { given, shard, folder: &folder, space: &space, step: &step, stop: &stop };
            step.run(|| job.run(name)).inspect_err(|_| stop.store(true, Ordering::Relaxed))
        })
    };
    if !missing.is_empty() {
        let pool =
            rayon::ThreadPoolBuilder::new().num_threads(SIDE_BY_SIDE.min(rayon::current_num_threads()));
        match pool.build() {
            Ok(pool) => pool.install(work)?,
            Err(_) => work()?,
        }
    }
    let now = SystemTime::now();
    for name in &names {
        // What was used last is deleted last; a time that cannot be set costs no more than that order.
        let _ = File::options().append(true).open(folder.join(name)).and_then(|file| file.set_modified(now));
    }
    drop(lock_file);
    let paths: Vec<String> =
        names.iter().map(|name| folder.join(name).to_string_lossy().into_owned()).collect();
    // Their times change with every use, so the opening does not depend on them.
    Ok(Unpacked { shards: Shards::find(&paths, &[], config)?, _lease: lease })
}

/// The unpacked file of a shard: another one when the shard has changed.
fn name(given: &Shards, shard: usize) -> String {
    let file = &given.files()[shard];
    let mut hash = Xxh3::new();
    for text in [given.display(shard).as_str(), &file.size.to_string(), &file.version] {
        hash.update(text.as_bytes());
        hash.update(b"\0");
    }
    format!("{:032x}.tar", hash.digest128())
}

fn open_lock(path: &Path) -> io::Result<File> {
    let file = File::options().create(true).truncate(false).write(true).open(path)?;
    if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
        tracing::info!("waiting for another process that unpacks shards ({})", shown(&path));
        let _step = Step::begin("waiting for another process that unpacks shards", Counted::Files, None);
        // Asked for again and again: a call that waits for the lock could not be cancelled.
        while let Err(error) = flock(&file, FlockOperation::NonBlockingLockExclusive) {
            if error != Errno::WOULDBLOCK && error != Errno::INTR {
                return Err(error.into());
            }
            opening::check().map_err(io::Error::other)?;
            std::thread::sleep(LOOK_AGAIN);
        }
    }
    Ok(file)
}

/// The promise of others not to delete what is used here.
struct Lease {
    path: PathBuf,
    /// Locked; the lock ends with the process, however it ends.
    _file: File,
}

impl Lease {
    fn new(folder: &Path, names: &[String]) -> io::Result<Self> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = folder.join(format!("{}-{number}.lease", std::process::id()));
        let mut file = File::create(&path)?;
        flock(&file, FlockOperation::NonBlockingLockExclusive)?;
        file.write_all(names.join("\n").as_bytes())?;
        Ok(Self { path, _file: file })
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        // One that stays is found unlocked and deleted by the next process that makes room.
        let _ = fs::remove_file(&self.path);
    }
}

/// What the folder may hold, and what may be deleted for it.
struct Space {
    folder: PathBuf,
    limit: u64,
    state: Mutex<SpaceState>,
}

struct SpaceState {
    used: u64,
    /// Shards that nobody uses: last use, bytes, name.
    idle: BTreeSet<(SystemTime, u64, String)>,
}

impl Space {
    /// Looks at the folder; the lock must be held. Deletes what a crash left.
    fn new(folder: &Path, wanted: &[String], limit: u64) -> io::Result<Self> {
        let mut in_use: HashSet<String> = wanted.iter().cloned().collect();
        let mut whole = Vec::new();
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            let Ok(name) = entry.file_name().into_string() else { continue };
            if name.ends_with(".tmp") {
                fs::remove_file(entry.path())?;
            } else if name.ends_with(".lease") {
                // Read with a bound: a name is 36 bytes.
                let mut file = File::open(entry.path())?;
                if flock(&file, FlockOperation::NonBlockingLockShared).is_ok() {
                    let _ = fs::remove_file(entry.path());
                    continue;
                }
                let mut text = String::new();
                (&mut file).take(1 << 28).read_to_string(&mut text)?;
                in_use.extend(text.lines().map(str::to_owned));
            } else if name.ends_with(".tar") {
                let meta = entry.metadata()?;
                whole.push((meta.modified()?, meta.len(), name));
            }
        }
        let used = whole.iter().map(|(_, len, _)| len).sum();
        let idle = whole.into_iter().filter(|(_, _, name)| !in_use.contains(name)).collect();
        Ok(Self { folder: folder.to_owned(), limit, state: Mutex::new(SpaceState { used, idle }) })
    }

    /// Room for so many bytes more. False when there is none to be made.
    fn claim(&self, bytes: u64) -> bool {
        let mut state = lock(&self.state);
        while state.used + bytes > self.limit {
            let Some((_, len, name)) = state.idle.pop_first() else { return false };
            if fs::remove_file(self.folder.join(&name)).is_ok() {
                tracing::debug!("deleted the unpacked shard {name}, which was not used for longest");
                state.used -= len;
            }
        }
        state.used += bytes;
        true
    }

    fn give_back(&self, bytes: u64) {
        lock(&self.state).used -= bytes;
    }
}

/// One shard to unpack.
struct Job<'a> {
    given: &'a Arc<Shards>,
    shard: usize,
    folder: &'a Path,
    space: &'a Space,
    step: &'a Step,
    /// Another one failed.
    stop: &'a AtomicBool,
}

impl Job<'_> {
    fn run(&self, name: &str) -> Result<(), SourceError> {
        let temporary = self.folder.join(name).with_extension("tmp");
        let mut claimed = 0;
        let written = self.write(&temporary, &mut claimed).and_then(|()| {
            fs::rename(&temporary, self.folder.join(name)).map_err(|error| self.failed(&error.to_string()))
        });
        written.inspect_err(|_| {
            // Nothing to add to the first error when this fails, too.
            let _ = fs::remove_file(&temporary);
            self.space.give_back(claimed);
        })
    }

    fn failed(&self, why: &str) -> SourceError {
        SourceError::data(format!("{} cannot be unpacked: {why}", self.given.display(self.shard)))
    }

    fn write(&self, path: &Path, claimed: &mut u64) -> Result<(), SourceError> {
        let failed = |error: io::Error| self.failed(&error.to_string());
        let mut stream = self.stream().map_err(failed)?;
        let mut file = File::create(path).map_err(failed)?;
        let mut piece = vec![0; STRIDE];
        loop {
            let len = fill(&mut *stream, &mut piece).map_err(|error| {
                self.failed(&format!(
                    "{error}; it is damaged or cut off, or not what its ending says: fetch it again"
                ))
            })?;
            if len == 0 {
                break;
            }
            if self.stop.load(Ordering::Relaxed) {
                return Err(self.failed("another shard could not be unpacked"));
            }
            if !self.space.claim(len as u64) {
                return Err(self.failed(&format!(
                    "unpacked shards would take more than {} bytes, the limit of the cache in {}; raise \
                     cache.limit_bytes, or unpack the shards where there is room and use those",
                    self.space.limit,
                    shown(&self.folder)
                )));
            }
            let before = *claimed;
            *claimed += len as u64;
            let mut written = file.write_all(&piece[..len]);
            if before / SYNCED < *claimed / SYNCED {
                written = written.and_then(|()| file.sync_data());
            }
            written.map_err(|error| {
                self.failed(&format!("{error}, writing to {}; set cache.dir", shown(&self.folder)))
            })?;
        }
        file.sync_data().map_err(failed)
    }

    fn stream(&self) -> io::Result<Box<dyn Read + Send + '_>> {
        let bytes = BufReader::with_capacity(
            STRIDE,
            ShardRead { given: self.given, shard: self.shard, at: 0, step: self.step },
        );
        let name = &self.given.files()[self.shard].name;
        if ends_with(name, &[".zst", ".zstd"]) {
            // Windows above 128 MiB are refused by the library's own default.
            return Ok(Box::new(zstd::stream::read::Decoder::with_buffer(bytes)?));
        }
        Ok(Box::new(Gzip { member: Some(GzDecoder::new(bytes)) }))
    }
}

/// Fills as much of `piece` as there is.
fn fill(stream: &mut dyn Read, piece: &mut [u8]) -> io::Result<usize> {
    let mut len = 0;
    while len < piece.len() {
        match stream.read(&mut piece[len..]) {
            Ok(0) => break,
            Ok(read) => len += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(len)
}

/// A shard from its beginning.
struct ShardRead<'a> {
    given: &'a Shards,
    shard: usize,
    at: u64,
    step: &'a Step,
}

impl Read for ShardRead<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.given.files()[self.shard].size - self.at;
        let len = left.min(buffer.len() as u64) as usize;
        if len > 0 {
            self.given.read_at(self.shard, self.at, &mut buffer[..len])?;
            self.at += len as u64;
            self.step.add(len as u64);
        }
        Ok(len)
    }
}

/// gzip members one after the other; zeros after the last one are padding, as in Python's `gzip`.
struct Gzip<R: BufRead> {
    member: Option<GzDecoder<R>>,
}

impl<R: BufRead> Read for Gzip<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while let Some(member) = &mut self.member {
            let len = member.read(buffer)?;
            if len > 0 || buffer.is_empty() {
                return Ok(len);
            }
            let mut rest = self.member.take().expect("just looked at").into_inner();
            loop {
                let ahead = rest.fill_buf()?;
                if ahead.is_empty() {
                    return Ok(0);
                }
                let zeros = ahead.iter().take_while(|&&b| b == 0).count();
                let is_next = zeros < ahead.len();
                rest.consume(zeros);
                if is_next {
                    break;
                }
            }
            self.member = Some(GzDecoder::new(rest));
        }
        Ok(0)
    }
}
