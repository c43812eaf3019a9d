//! Reading byte ranges of files: io_uring where the kernel allows it, threads where not.
//!
//! Both backends do the same for each request (open relative to the root, read the range, close) and judge the outcome by
//! the same rules in this file, so that they cannot be told apart by what they deliver.
//!
//! A record that is a *whole file* is read with one byte more than its size: a short read then proves that the file has
//! not grown, without asking for its size. A record that is a *part* of a file is read exactly.

mod threads;
mod uring;

use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::Once;
use std::time::Duration;

use rustix::fs::{AtFlags, Mode, OFlags, StatxFlags};
use rustix::io::Errno;

use crate::{Backend, ReadError, Reader, ReaderConfig, SourceError};

/// What the disk readers need to know of a source: which range of which file a record is.
pub(crate) trait Files: Send + Sync + 'static {
    /// The folder that all files are relative to.
    fn root(&self) -> &Path;

    /// Appends the record's file, relative to the root, to `file` and returns its range.
    fn locate(&self, index: u64, file: &mut Vec<u8>) -> Span;

    /// The record's key, for errors.
    fn key(&self, index: u64) -> String;
}

/// A range of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    pub offset: u64,
    pub len: u64,
    /// The range is the whole file, so a longer file has changed.
    pub whole: bool,
}

impl Span {
    /// Bytes to ask for.
    fn wanted(&self) -> u64 {
        self.len.saturating_add(u64::from(self.whole))
    }
}

/// The files of a source, with the root held open: it is found once, even if it is renamed later.
struct Opened {
    files: Arc<dyn Files>,
    root: OwnedFd,
}

/// Starts a reader.
pub(crate) fn open(files: Arc<dyn Files>, config: &ReaderConfig) -> Result<Box<dyn Reader>, SourceError> {
    open_with(files, config, uring::setup)
}

/// As [`open`], with the function that makes the ring passed in, so that a refusal can be tested.
fn open_with(
    files: Arc<dyn Files>,
    config: &ReaderConfig,
    setup: uring::Setup,
) -> Result<Box<dyn Reader>, SourceError> {
    config.check()?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(files.root(), flags, Mode::empty())
        .map_err(|error| SourceError::folder(files.root(), &error.into()))?;
    let opened = Arc::new(Opened { files, root });
    if config.backend != Backend::Threads {
        match uring::Uring::start(opened.clone(), config.depth, setup) {
            Ok(reader) => return Ok(Box::new(reader)),
            Err(error) if config.backend == Backend::IoUring => {
                return Err(SourceError::backend(format!(
                    "the reading backend \"io_uring\" was asked for, but the kernel refuses it: {error} (containers often \
                     forbid io_uring); choose \"auto\" or \"threads\""
                )));
            }
            Err(error) => {
                static SAID: Once = Once::new();
                SAID.call_once(|| {
                    tracing::info!(
                        "io_uring is not available here ({error}); files are read by threads instead, which costs speed \
                         only while files are not in the page cache"
                    );
                });
            }
        }
    }
    Ok(Box::new(threads::start(opened, config.depth)?))
}

impl Opened {
    fn path(&self, file: &[u8]) -> PathBuf {
        self.files.root().join(OsStr::from_bytes(file))
    }

    /// The error that a system error has become after its retries.
    fn failed(&self, index: u64, file: &[u8], error: Errno) -> ReadError {
        let key = self.files.key(index);
        let path = self.path(file);
        // A parent that is a file now is as gone as a name that is missing.
        if matches!(error, Errno::NOENT | Errno::NOTDIR) {
            return ReadError::gone(key, &path);
        }
        let tried = if retry(error, 0).is_some() { ", also when tried again" } else { "" };
        let advice = match error {
            Errno::MFILE | Errno::NFILE => "; raise the limit on open files (ulimit -n)",
            Errno::ACCESS | Errno::PERM => "; allow this user to read it",
            Errno::IO => "; look for disk errors in the kernel's log",
            Errno::NOMEM => "; the record does not fit in memory",
            _ => "",
        };
        let detail = format!("{} cannot be read: {}{tried}{advice}", path.display(), io::Error::from(error));
        ReadError::io(key, detail, retry(error, 0).is_some())
    }

    /// The verdict when a range ended early or a whole file did not end where it should.
    fn changed(&self, index: u64, file: &[u8], span: Span, read: u64) -> ReadError {
        let path = self.path(file);
        // The size as it is now says more than where the read happened to stop.
        let found = match rustix::fs::statx(
            &self.root,
            OsStr::from_bytes(file),
            AtFlags::empty(),
            StatxFlags::SIZE,
        ) {
            Ok(now) if span.whole && now.stx_size != span.len => format!("{} bytes", now.stx_size),
            _ if read > span.len => format!("at least {read} bytes"),
            _ => format!("{read} bytes"),
        };
        ReadError::changed(self.files.key(index), &path, span.len, &found)
    }
}

/// How long to wait before trying again after the `attempt`th failure (from 0); `None` when trying is over or useless.
///
/// An interrupted call is repeated at once. A disk error or a lack of descriptors or memory may pass, and gets three more
/// chances over a third of a second; longer would only hide a broken disk.
fn retry(error: Errno, attempt: u32) -> Option<Duration> {
    const BACKOFF_MS: [u64; 3] = [10, 50, 250];
    let patient = |attempt: u32| BACKOFF_MS.get(attempt as usize).copied().map(Duration::from_millis);
    match error {
        Errno::INTR | Errno::AGAIN if attempt < 3 => Some(Duration::ZERO),
        Errno::INTR | Errno::AGAIN => patient(attempt - 3),
        Errno::IO | Errno::MFILE | Errno::NFILE | Errno::NOMEM | Errno::STALE | Errno::TIMEDOUT => {
            patient(attempt)
        }
        _ => None,
    }
}
