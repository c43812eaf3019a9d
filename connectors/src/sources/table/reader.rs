//! Serves records out of decoded units: each unit is decoded once for all who wait for it, and kept while there is
//! room.
//!
//! ```text
//!  submit ──▶ unit kept?   yes ──▶ ready ──────────────────────────────▶ record made, `done` called
//!                          no  ──▶ waits for the unit ──▶ decoded by one thread, kept ──▶ all who wait are served
//! ```
//!
//! One thread only serves records whose units are there, so that a burst of decoding holds nobody up; the others
//! decode, and serve when there is nothing to decode. The bytes kept are bounded; the unit not used for longest goes
//! first.
//!
//! Units of records that are *expected* are decoded before anyone asks for them, when no unit is asked for: a consumer
//! that reaches the end of one does not wait for the next, and of a remote file several are on their way at a time. How
//! many, [`Table::plan`] says: as many as the cache has room for beside those in use.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::io;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::arrow::array::ArrayRef;

use super::fetch::Trouble;
use super::{CACHE_BYTES, Piece, Table};
use crate::bytes::buffer::{POOL_BYTES, Pool};
use crate::workers::{Meter, finish, join, lock, panic_text};
use crate::{Buffer, IndexedSource, ReadError, ReadRequest, ReadStats, Reader, SourceError};

/// Units decoded at one time. Two saturate a disk with reads of megabytes, and cores are for decoding images.
pub(super) const DECODERS: u32 = 4;

/// Idle memory for the bytes of units as they are read.
const FETCH_POOL: u64 = 32 << 20;

/// Waits between attempts to read.
const RETRIES: [Duration; 3] =
    [Duration::from_millis(10), Duration::from_millis(50), Duration::from_millis(250)];

/// Threads that decode when the largest unit takes `unit` bytes: fewer when what they have in hand would be much.
fn decoders(unit: u64) -> u32 {
    (CACHE_BYTES / 4 / unit.max(1)).clamp(1, u64::from(DECODERS)) as u32
}

/// What readers hold beside the cache when the largest unit takes `unit` bytes: each decoder has one in its hands, as
/// read and as decoded.
pub(super) fn in_hand(unit: u64) -> u64 {
    u64::from(decoders(unit)) * 2 * unit + FETCH_POOL
}

/// A unit in memory.
pub(super) struct Decoded {
    /// In order; rows are those of the table.
    pieces: Vec<Piece>,
    bytes: u64,
}

impl Decoded {
    /// The columns that hold a row of the table, and its place in them.
    pub(super) fn row(&self, row: u64) -> Result<(&[ArrayRef], usize), Arc<str>> {
        let at = self.pieces.partition_point(|piece| piece.rows.end <= row);
        match self.pieces.get(at) {
            Some(Piece { rows, columns: Ok(columns) }) if rows.start <= row => {
                Ok((columns, (row - rows.start) as usize))
            }
            Some(Piece { columns: Err(why), .. }) => Err(why.clone()),
            _ => Err("its file has no such row".into()),
        }
    }
}

/// The reader of a table.
pub(super) struct UnitReader {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared {
    table: Arc<Table>,
    state: Mutex<State>,
    /// Something is ready, to be decoded, or over.
    work: Condvar,
    /// The reader ends.
    stopping: Condvar,
    meter: Meter,
    /// For records.
    pool: Arc<Pool>,
    /// For bytes of units.
    fetch: Arc<Pool>,
}

#[derive(Default)]
struct State {
    stopped: bool,
    ready: VecDeque<Waiting>,
    queue: VecDeque<usize>,
    /// By unit, from when it is queued until it is decoded.
    waiting: HashMap<usize, Vec<Waiting>>,
    /// Units of expected records, in the order in which they will be needed.
    expected: VecDeque<usize>,
    /// Early units being decoded.
    decoding_early: u32,
    cache: Cache,
}

/// A request and the units it has so far, from the first on.
struct Waiting {
    request: ReadRequest,
    units: Range<usize>,
    got: Vec<Arc<Decoded>>,
}

impl Waiting {
    fn missing(&self) -> Option<usize> {
        let next = self.units.start + self.got.len();
        (next < self.units.end).then_some(next)
    }
}

/// Decoded units, bounded in bytes.
#[derive(Default)]
struct Cache {
    units: HashMap<usize, (Arc<Decoded>, u64)>,
    /// Last use to unit.
    uses: BTreeMap<u64, usize>,
    clock: u64,
    bytes: u64,
    /// Units decoded (or being decoded) before anyone asked for them, and not asked for yet.
    early: HashSet<usize>,
}

impl Cache {
    fn get(&mut self, unit: usize) -> Option<Arc<Decoded>> {
        self.early.remove(&unit);
        let (decoded, used) = self.units.get_mut(&unit)?;
        self.uses.remove(used);
        self.clock += 1;
        *used = self.clock;
        self.uses.insert(self.clock, unit);
        Some(decoded.clone())
    }

    /// Keeps a unit; what has to go is returned, to be freed outside the lock.
    fn put(&mut self, unit: usize, decoded: Arc<Decoded>, limit: u64) -> Vec<Arc<Decoded>> {
        let mut gone = Vec::new();
        while self.bytes + decoded.bytes > limit
            && let Some((_, oldest)) = self.uses.pop_first()
        {
            let (old, _) = self.units.remove(&oldest).expect("both maps have the same units");
            self.bytes -= old.bytes;
            self.early.remove(&oldest);
            gone.push(old);
        }
        self.clock += 1;
        self.bytes += decoded.bytes;
        self.uses.insert(self.clock, unit);
        if let Some((old, used)) = self.units.insert(unit, (decoded, self.clock)) {
            self.uses.remove(&used);
            self.bytes -= old.bytes;
            gone.push(old);
        }
        gone
    }
}

impl State {
    /// Puts a request where it belongs: ready, or waiting for its next unit.
    fn place(&mut self, mut waiting: Waiting) {
        while let Some(unit) = waiting.missing() {
            // A request for one unit takes it when it is served, so that a long queue pins no memory.
            if waiting.units.len() == 1 && self.cache.units.contains_key(&unit) {
                self.cache.early.remove(&unit);
                break;
            }
            match self.cache.get(unit) {
                Some(decoded) => waiting.got.push(decoded),
                None => {
                    for later in unit..waiting.units.end {
                        self.want(later);
                    }
                    self.waiting.get_mut(&unit).expect("it was just wanted").push(waiting);
                    return;
                }
            }
        }
        self.ready.push_back(waiting);
    }

    fn want(&mut self, unit: usize) {
        self.cache.early.remove(&unit);
        if !self.cache.units.contains_key(&unit) && !self.waiting.contains_key(&unit) {
            self.waiting.insert(unit, Vec::new());
            self.queue.push_back(unit);
        }
    }

    /// The next unit to decode before anyone asks for it, out of at most `most` of them. One decoder is kept for those
    /// that are asked for.
    fn early(&mut self, most: u64, decoders: u32) -> Option<usize> {
        if self.decoding_early >= decoders.saturating_sub(1).max(1) || self.cache.early.len() as u64 >= most {
            return None;
        }
        loop {
            let unit = self.expected.pop_front()?;
            if !self.cache.units.contains_key(&unit) && !self.waiting.contains_key(&unit) {
                self.cache.early.insert(unit);
                // Whoever asks for it from now on waits for it.
                self.waiting.insert(unit, Vec::new());
                self.decoding_early += 1;
                return Some(unit);
            }
        }
    }
}

impl UnitReader {
    pub(super) fn start(table: Arc<Table>, depth: u32) -> Result<Self, SourceError> {
        let shared = Arc::new(Shared {
            table,
            state: Mutex::default(),
            work: Condvar::new(),
            stopping: Condvar::new(),
            meter: Meter::default(),
            pool: Pool::new(POOL_BYTES),
            fetch: Pool::new(FETCH_POOL),
        });
        let mut reader = Self { shared, threads: Vec::new() };
        for number in 0..=depth.min(decoders(reader.shared.table.largest_unit)) {
            let shared = reader.shared.clone();
            let name =
                if number == 0 { "fuelrail-rows".to_owned() } else { format!("fuelrail-unit-{number}") };
            match thread::Builder::new().name(name).spawn(move || shared.run(number > 0)) {
                Ok(thread) => reader.threads.push(thread),
                // With one that decodes and one that serves there is progress.
                Err(error) if number > 1 => {
                    tracing::warn!("only {number} reader threads could be started: {error}");
                    break;
                }
                Err(error) => {
                    return Err(SourceError::backend(format!(
                        "no reader thread could be started: {error}; raise the limit on processes (ulimit -u, or the \
                         container's pids limit)"
                    )));
                }
            }
        }
        Ok(reader)
    }
}

impl Reader for UnitReader {
    fn submit(&self, requests: Vec<ReadRequest>) {
        self.shared.meter.begin(requests.len() as u64);
        let mut state = lock(&self.shared.state);
        for request in requests {
            let units = self.shared.table.units_of(request.index);
            state.place(Waiting { request, units, got: Vec::new() });
        }
        drop(state);
        self.shared.work.notify_all();
    }

    fn horizon(&self) -> u64 {
        self.shared.table.horizon
    }

    fn expect(&self, indices: &[u64]) {
        let table = &self.shared.table;
        let mut state = lock(&self.shared.state);
        // More than this is no order that the table proposed; then units come when they are asked for.
        let most = 4 * table.early_units as usize;
        let mut last = None;
        for &index in indices {
            for unit in table.units_of(index) {
                if last.replace(unit) != Some(unit)
                    && state.expected.len() < most
                    && !state.cache.units.contains_key(&unit)
                    && !state.waiting.contains_key(&unit)
                    && !state.expected.contains(&unit)
                {
                    state.expected.push_back(unit);
                }
            }
        }
        drop(state);
        self.shared.work.notify_all();
    }

    fn stats(&self) -> ReadStats {
        self.shared.meter.stats("table")
    }
}

impl Drop for UnitReader {
    fn drop(&mut self) {
        let mut state = lock(&self.shared.state);
        state.stopped = true;
        let undone = (std::mem::take(&mut state.ready), std::mem::take(&mut state.waiting));
        state.queue.clear();
        state.expected.clear();
        drop(state);
        self.shared.work.notify_all();
        self.shared.stopping.notify_all();
        // Outside the lock: what a callback owns may do anything when it goes.
        drop(undone);
        for thread in self.threads.drain(..) {
            join(thread);
        }
    }
}

enum Job {
    Serve(Waiting, Arc<Decoded>),
    /// It has all its units in its hands.
    ServeMany(Waiting),
    Decode(usize),
    /// Before anyone has asked for it.
    DecodeEarly(usize),
}

impl Shared {
    fn run(&self, decodes: bool) {
        while let Some(job) = self.next(decodes) {
            match job {
                Job::Serve(waiting, unit) => self.serve(waiting.request, &[unit]),
                Job::ServeMany(waiting) => self.serve(waiting.request, &waiting.got),
                Job::Decode(unit) => {
                    if !self.decode(unit) {
                        return;
                    }
                }
                Job::DecodeEarly(unit) => {
                    let goes_on = self.decode(unit);
                    lock(&self.state).decoding_early -= 1;
                    self.work.notify_all();
                    if !goes_on {
                        return;
                    }
                }
            }
        }
    }

    fn next(&self, decodes: bool) -> Option<Job> {
        let mut state = lock(&self.state);
        loop {
            if state.stopped {
                return None;
            }
            if decodes && let Some(unit) = state.queue.pop_front() {
                return Some(Job::Decode(unit));
            }
            if let Some(waiting) = state.ready.pop_front() {
                let Some(unit) = waiting.missing() else { return Some(Job::ServeMany(waiting)) };
                match state.cache.get(unit) {
                    Some(decoded) => return Some(Job::Serve(waiting, decoded)),
                    None => {
                        // It had to go in the meantime.
                        state.place(waiting);
                        self.work.notify_all();
                        continue;
                    }
                }
            }
            let table = &self.table;
            if decodes && let Some(unit) = state.early(table.early_units, decoders(table.largest_unit)) {
                return Some(Job::DecodeEarly(unit));
            }
            state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Decodes a unit and serves those who wait for it. False when the reader ends.
    fn decode(&self, unit: usize) -> bool {
        let mut attempt = 0;
        let result = loop {
            self.meter.submission();
            let work = || self.table.decode(unit, &self.fetch);
            let result = catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
                let text = format!("decoding panicked: {}; this is a bug in fuelrail", panic_text(&*panic));
                Err(Trouble::Io(io::Error::other(text)))
            });
            match result {
                Err(Trouble::Io(error)) if retry(&error) && attempt < RETRIES.len() => {
                    if self.wait(RETRIES[attempt]) {
                        return false;
                    }
                    attempt += 1;
                }
                other => break other,
            }
        };
        match result {
            Ok(mut pieces) => {
                let at = self.table.units[unit];
                // From rows of the part to rows of the table.
                for piece in &mut pieces {
                    let shift = |row: u64| row - at.in_part + at.first;
                    piece.rows = shift(piece.rows.start)..shift(piece.rows.end);
                }
                let columns = pieces.iter().filter_map(|piece| piece.columns.as_ref().ok()).flatten();
                let bytes = columns.map(|column| column.get_array_memory_size() as u64).sum::<u64>() + 1024;
                let decoded = Arc::new(Decoded { pieces, bytes });
                let mut state = lock(&self.state);
                let gone = state.cache.put(unit, decoded.clone(), self.table.cache_bytes);
                let served = state.waiting.remove(&unit).unwrap_or_default();
                if !served.is_empty() {
                    state.cache.early.remove(&unit);
                }
                let mut complete = Vec::with_capacity(served.len());
                for mut waiting in served {
                    waiting.got.push(decoded.clone());
                    if waiting.missing().is_none() { complete.push(waiting) } else { state.place(waiting) }
                }
                drop(state);
                self.work.notify_all();
                drop(gone);
                for waiting in complete {
                    if lock(&self.state).stopped {
                        return false;
                    }
                    self.serve(waiting.request, &waiting.got);
                }
            }
            Err(trouble) => {
                let mut state = lock(&self.state);
                state.cache.early.remove(&unit);
                let failed = state.waiting.remove(&unit).unwrap_or_default();
                drop(state);
                for waiting in failed {
                    let error = self.error(waiting.request.index, unit, &trouble, attempt > 0);
                    self.end(waiting.request, Err(error));
                }
            }
        }
        true
    }

    fn error(&self, index: u64, unit: usize, trouble: &Trouble, tried_again: bool) -> ReadError {
        let (key, shard) = (self.table.key(index), self.table.units[unit].file as usize);
        let (path, size) = (self.table.shards.display(shard), self.table.shards.files()[shard].size);
        match trouble {
            Trouble::Changed => ReadError::changed(key, Path::new(&path), size, "another version of it was"),
            Trouble::Io(error) if error.kind() == io::ErrorKind::NotFound => {
                ReadError::gone(key, Path::new(&path))
            }
            Trouble::Io(error) => {
                if let Some(remote) = ReadError::of_remote(&key, error) {
                    return remote;
                }
                let again = if tried_again { ", also when tried again" } else { "" };
                ReadError::io(key, format!("{error}{again}"), retry(error))
            }
            Trouble::Memory(bytes) => {
                ReadError::io(key, format!("there is no memory for {bytes} bytes of {path}"), true)
            }
        }
    }

    fn serve(&self, request: ReadRequest, units: &[Arc<Decoded>]) {
        let work = || self.table.record(request.index, units, &self.pool);
        let result = catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
            let text = format!("reading it panicked: {}; this is a bug in fuelrail", panic_text(&*panic));
            Err(ReadError::io(self.table.key(request.index), text, false))
        });
        self.end(request, result);
    }

    fn end(&self, request: ReadRequest, result: Result<Buffer, ReadError>) {
        self.meter.end(&result);
        finish(request, result);
    }

    /// Waits, or less when the reader ends. True if it has ended.
    fn wait(&self, time: Duration) -> bool {
        let deadline = Instant::now() + time;
        let mut state = lock(&self.state);
        while !state.stopped {
            let Some(left) = deadline.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())
            else {
                return false;
            };
            state = self.stopping.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }
}

/// Whether reading again may help.
fn retry(error: &io::Error) -> bool {
    !matches!(
        error.kind(),
        io::ErrorKind::NotFound
            | io::ErrorKind::PermissionDenied
            | io::ErrorKind::InvalidInput
            | io::ErrorKind::NotADirectory
            | io::ErrorKind::Other
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unit(bytes: u64) -> Arc<Decoded> {
        Arc::new(Decoded { pieces: Vec::new(), bytes })
    }

    #[test]
    fn the_cache_keeps_within_its_bound_what_was_used_last() {
        let mut cache = Cache::default();
        for number in 0..10 {
            assert!(cache.put(number, unit(10), 100).is_empty());
        }
        assert!(cache.get(0).is_some());
        let gone = cache.put(10, unit(25), 100);
        assert_eq!((gone.len(), cache.bytes), (3, 95));
        let kept: Vec<usize> = (0..11).filter(|number| cache.units.contains_key(number)).collect();
        assert_eq!(kept, [0, 4, 5, 6, 7, 8, 9, 10]);
        // One that is larger than the cache is kept alone: else each of its records would decode it again.
        assert_eq!(cache.put(11, unit(1000), 100).len(), 8);
        assert!(cache.get(11).is_some() && cache.uses.len() == 1);
        assert_eq!(cache.put(11, unit(7), 100).len(), 1);
        assert_eq!((cache.bytes, cache.units.len(), cache.uses.len()), (7, 1, 1));
    }
}
