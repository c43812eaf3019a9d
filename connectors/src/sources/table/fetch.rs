//! Byte ranges of one file in a few large reads.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use crate::SourceError;
use crate::bytes::buffer::Pool;
use crate::bytes::shards::Shards;

/// Ranges closer than this are read as one: reading on is cheaper than a second read.
const GAP: u64 = 64 << 10;

/// No unit needs more than this in one piece.
const MAX_READ: u64 = 2 << 30;

/// What kept a unit from being read: nothing about its records.
#[derive(Debug)]
pub(super) enum Trouble {
    /// The system's word.
    Io(io::Error),
    /// The file is another one than was opened.
    Changed,
    /// There is no memory for this many bytes.
    Memory(u64),
}

impl Trouble {
    /// As the error of a source that is being opened.
    pub(super) fn at_open(self, name: &str) -> SourceError {
        SourceError::data(match self {
            Self::Io(error) => error.to_string(),
            Self::Changed => format!("{name} changed while it was opened; try again"),
            Self::Memory(bytes) => format!("{name}: there is no memory for {bytes} bytes of it"),
        })
    }
}

/// The bytes of some ranges.
pub(super) struct Fetched(Vec<(u64, Bytes)>);

impl Fetched {
    /// A range that was asked for, or that lies inside one.
    pub(super) fn get(&self, range: Range<u64>) -> Bytes {
        if range.is_empty() {
            return Bytes::new();
        }
        let at = self.0.partition_point(|(start, _)| *start <= range.start) - 1;
        let (start, bytes) = &self.0[at];
        bytes.slice((range.start - start) as usize..(range.end - start) as usize)
    }
}

/// Reads `ranges` of a file, and makes sure that it is still the file that was opened: bytes of two versions would
/// decode to nonsense, or worse, to sense.
pub(super) fn fetch(
    shards: &Shards,
    shard: usize,
    mut ranges: Vec<Range<u64>>,
    pool: &Arc<Pool>,
) -> Result<Fetched, Trouble> {
    ranges.retain(|range| !range.is_empty());
    ranges.sort_unstable_by_key(|range| range.start);
    let mut runs: Vec<Range<u64>> = Vec::new();
    for range in ranges {
        match runs.last_mut() {
            Some(last) if range.start <= last.end.saturating_add(GAP) => last.end = last.end.max(range.end),
            _ => runs.push(range),
        }
    }
    let mut fetched = Vec::with_capacity(runs.len());
    for run in runs {
        let len = run.end - run.start;
        if len > MAX_READ {
            return Err(Trouble::Memory(len));
        }
        let buffer = usize::try_from(len).ok().and_then(|len| pool.take(len).map(|buffer| (buffer, len)));
        let (mut buffer, len) = buffer.ok_or(Trouble::Memory(len))?;
        let read = shards.read_at(shard, run.start, &mut buffer.storage()[..len]);
        if let Err(error) = read {
            // A file that was cut is a file that changed.
            return Err(match shards.unchanged(shard) {
                Ok(false) => Trouble::Changed,
                _ => Trouble::Io(error),
            });
        }
        buffer.set_len(len);
        fetched.push((run.start, Bytes::from_owner(buffer)));
    }
    match shards.unchanged(shard) {
        Ok(true) => Ok(Fetched(fetched)),
        Ok(false) => Err(Trouble::Changed),
        Err(error) => Err(Trouble::Io(error)),
    }
}
