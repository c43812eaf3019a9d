//! The disk reader for systems without io_uring: threads that open, read and close with plain system calls.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::{Opened, Span, retry};
use crate::bytes::buffer::{POOL_BYTES, Pool};
use crate::workers::{Stop, Workers};
use crate::{Buffer, ReadError, SourceError};

/// Enough requests at once for a disk; more would only fight the workers for cores.
const MAX_THREADS: u32 = 16;

/// Starts the threads, one per read in flight.
pub(super) fn start(opened: Arc<Opened>, depth: u32) -> Result<Workers, SourceError> {
    let pool = Pool::new(POOL_BYTES);
    let files = opened.files.clone();
    Workers::start(
        "threads",
        depth.min(MAX_THREADS) as usize,
        Box::new(move |index| files.key(index)),
        Box::new(move |index, stop| read(&opened, &pool, index, stop)),
    )
}

fn read(opened: &Opened, pool: &Arc<Pool>, index: u64, stop: &Stop) -> Option<Result<Buffer, ReadError>> {
    let mut file = Vec::with_capacity(128);
    let span = opened.files.locate(index, &mut file);
    for attempt in 0.. {
        let error = match read_once(opened, pool, index, &file, span) {
            Ok(result) => return Some(result),
            Err(error) => error,
        };
        match retry(error, attempt) {
            Some(delay) if stop.wait(delay) => return None,
            Some(_) => {}
            None => return Some(Err(opened.failed(index, &file, error))),
        }
    }
    unreachable!("retries end")
}

/// One attempt: a system error, or the verdict on the record.
fn read_once(
    opened: &Opened,
    pool: &Arc<Pool>,
    index: u64,
    file: &[u8],
    span: Span,
) -> Result<Result<Buffer, ReadError>, Errno> {
    // NONBLOCK only matters if a named pipe has taken the file's place: opening it must not hang.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK;
    let fd: OwnedFd = rustix::fs::openat(&opened.root, OsStr::from_bytes(file), flags, Mode::empty())?;
    let wanted = usize::try_from(span.wanted()).map_err(|_| Errno::NOMEM)?;
    let mut buffer = pool.take(wanted).ok_or(Errno::NOMEM)?;
    let mut filled = 0;
    while filled < wanted {
        let offset = span.offset.saturating_add(filled as u64);
        match rustix::io::pread(&fd, &mut buffer.storage()[filled..wanted], offset)? {
            0 => break,
            read => filled += read,
        }
        if span.whole && filled as u64 == span.len {
            // Asked for one byte more and got none: that is the end of the file.
            break;
        }
    }
    if filled as u64 != span.len {
        return Ok(Err(opened.changed(index, file, span, filled as u64)));
    }
    buffer.set_len(filled);
    Ok(opened.whole(index, span, buffer))
}
