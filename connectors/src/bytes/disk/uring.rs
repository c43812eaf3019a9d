//! The disk reader on io_uring: one thread that keeps many reads in flight.
//!
//! Each read is a chain of three operations that the kernel runs by itself, one after the other:
//!
//! ```text
//!  open (relative to the root, into slot n) ──▶ read (slot n, into the record's buffer) ──▶ close (slot n)
//! ```
//!
//! - The file lives in a slot of the ring's own table, not in the process's: no descriptor is used up.
//! - The links are *hard*: a read of one byte more than the file has always comes back short, which would break a soft
//!   link and lose the close; and if the open fails, read and close fail after it, harmlessly.
//! - A slot of this reader has one chain at a time and is used again when all three of its completions have come. Hence
//!   each number in the table means one file at any moment, and memory lent to the kernel is back before it is touched.
//! - [`Uring::submit`] puts requests into a queue and wakes the thread through an event counter, of which a read is
//!   always in flight in the ring: the thread waits for disk and for work in one place.
//!
//! It is the default for what it leaves alone, not for its speed: one thread reads, so the cores stay with the workers,
//! and a disk sees `depth` requests at once. On warm files a pool of threads reads more per second (they copy in
//! parallel) at about the same CPU time per file; `cargo run --release -p fuelrail-connectors --example manifest` times
//! both on any folder.

#![allow(unsafe_code)]

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Arc, Mutex, mpsc};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use io_uring::types::{CancelBuilder, DestinationSlot, Fd, Fixed, SubmitArgs, Timespec};
use io_uring::{IoUring, Probe, opcode, squeue};
use rustix::event::EventfdFlags;
use rustix::fs::OFlags;
use rustix::io::Errno;

use super::{Opened, Span, retry};
use crate::bytes::buffer::{POOL_BYTES, Pool};
use crate::workers::{Meter, finish, join, lock};
use crate::{Buffer, ReadError, ReadRequest, ReadStats, Reader};

/// Makes a ring for reads of the given depth, or says why there cannot be one.
pub(super) type Setup = fn(u32) -> io::Result<IoUring>;

/// The kernel reads at most this much at once.
const MAX_READ: u64 = 0x7fff_f000;

/// Completions carry `slot * 4 + step`, or one of these.
const WAKE: u64 = u64::MAX;
const CANCEL: u64 = u64::MAX - 1;

/// The steps of a chain.
const OPEN: usize = 0;
const READ: usize = 1;
const CLOSE: usize = 2;

/// The real [`Setup`]: a ring that can do all that is used here.
pub(super) fn setup(depth: u32) -> io::Result<IoUring> {
    // Three entries per chain, one for the wake-up, some for cancelling. The completion queue is twice as long, so it
    // cannot overflow.
    let entries = (depth * 3 + 8).next_power_of_two();
    // Completions are handled when this thread asks for them, not by interrupting it (Linux 6.1).
    let ring =
        IoUring::builder().setup_single_issuer().setup_defer_taskrun().setup_submit_all().build(entries);
    let ring = match ring {
        Err(error) if error.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => IoUring::new(entries),
        ring => ring,
    }?;
    let unsupported = |what: &str| {
        Err(io::Error::new(
            io::ErrorKind::Unsupported,
            format!("this kernel's io_uring does not support {what} (Linux 5.19 does)"),
        ))
    };
    let features = ring.params();
    if !features.is_feature_nodrop() || !features.is_feature_ext_arg() {
        return unsupported("waiting with a time limit");
    }
    if !features.is_feature_linked_file() {
        return unsupported("files that are opened inside a chain");
    }
    let mut probe = Probe::new();
    ring.submitter().register_probe(&mut probe)?;
    let operations =
        [opcode::OpenAt::CODE, opcode::Read::CODE, opcode::Close::CODE, opcode::AsyncCancel::CODE];
    if !operations.iter().all(|&operation| probe.is_supported(operation)) {
        return unsupported("open, read, close and cancel");
    }
    ring.submitter().register_files_sparse(depth)?;
    Ok(ring)
}

/// The handle: a queue of requests and the thread that serves it.
pub(super) struct Uring {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    queue: Mutex<Queue>,
    /// Counts up when there is something new for the thread.
    wake: OwnedFd,
    meter: Meter,
}

#[derive(Default)]
struct Queue {
    requests: Vec<ReadRequest>,
    stopped: bool,
}

impl Uring {
    /// Starts the thread, which makes the ring: a ring is best used by one thread only, its maker.
    pub(super) fn start(opened: Arc<Opened>, depth: u32, setup: Setup) -> io::Result<Self> {
        // Not non-blocking: the ring would then see "try again" instead of waiting.
        let wake = rustix::event::eventfd(0, EventfdFlags::CLOEXEC)?;
        let shared = Arc::new(Shared { queue: Mutex::default(), wake, meter: Meter::default() });
        let (tell, told) = mpsc::sync_channel(1);
        let thread = thread::Builder::new().name("fuelrail-uring".to_owned()).spawn({
            let shared = shared.clone();
            move || match setup(depth) {
                Ok(ring) => {
                    let driver = Driver::new(ring, opened, shared, depth);
                    let _ = tell.send(Ok(()));
                    driver.run();
                }
                Err(error) => {
                    let _ = tell.send(Err(error));
                }
            }
        })?;
        match told.recv() {
            Ok(Ok(())) => Ok(Self { shared, thread: Some(thread) }),
            Ok(Err(error)) => {
                join(thread);
                Err(error)
            }
            Err(_) => {
                join(thread);
                Err(io::Error::other("the thread that should have made it is gone"))
            }
        }
    }
}

impl Reader for Uring {
    fn submit(&self, requests: Vec<ReadRequest>) {
        if requests.is_empty() {
            return;
        }
        self.shared.meter.begin(requests.len() as u64);
        let mut queue = lock(&self.shared.queue);
        // If there was something in the queue already, the thread has been woken for it and not come yet.
        let wake = queue.requests.is_empty();
        queue.requests.extend(requests);
        drop(queue);
        if wake {
            self.shared.wake();
        }
    }

    fn stats(&self) -> ReadStats {
        self.shared.meter.stats("io_uring")
    }
}

impl Drop for Uring {
    fn drop(&mut self) {
        let mut queue = lock(&self.shared.queue);
        queue.stopped = true;
        let undone = std::mem::take(&mut queue.requests);
        drop(queue);
        self.shared.wake();
        // Outside the lock: what a callback owns may do anything when it goes.
        drop(undone);
        if let Some(thread) = self.thread.take() {
            join(thread);
        }
    }
}

impl Shared {
    fn wake(&self) {
        // Adding one to a counter that is read all the time fails only when interrupted.
        while rustix::io::write(&self.wake, &1u64.to_ne_bytes()) == Err(Errno::INTR) {}
    }

    fn end(&self, request: ReadRequest, result: Result<Buffer, ReadError>) {
        self.meter.end(&result);
        finish(request, result);
    }
}

/// A request on its way.
struct Job {
    request: ReadRequest,
    span: Span,
    /// Failures so far.
    attempt: u32,
    /// The record's memory, once there has been a first try, and how much of it is filled.
    buffer: Option<Buffer>,
    filled: usize,
}

/// A chain in flight, and the memory it is lent.
struct Slot {
    /// Path of the file with its NUL. Lent to the kernel while `chain` is there.
    file: Vec<u8>,
    chain: Option<Chain>,
}

struct Chain {
    /// Its buffer is lent to the kernel, from `filled` on.
    job: Job,
    /// Completions still to come.
    missing: u32,
    results: [i32; 3],
}

/// What the thread owns.
///
/// The invariant all of its unsafe code rests on: **memory that an operation in flight refers to is neither freed,
/// moved nor touched until the completion of that operation has been taken from the ring.** It is kept so:
/// - `Slot::file` and the storage of `Chain::job.buffer` are heap blocks of `Vec`s that are not touched while
///   `Slot::chain` is there, and a chain is taken out only when `missing` has reached 0; the kernel posts exactly one
///   completion for each entry it was given, failed and cancelled ones included;
/// - `wake_word` is touched by nobody while `wake_armed`;
/// - dropping the driver first waits for all completions, and if the ring fails so badly that they cannot be had, leaks
///   the memory instead of freeing it.
struct Driver {
    ring: IoUring,
    opened: Arc<Opened>,
    shared: Arc<Shared>,
    pool: Arc<Pool>,
    slots: Vec<Slot>,
    free: Vec<usize>,
    pending: VecDeque<Job>,
    delayed: Vec<(Instant, Job)>,
    /// Where the kernel puts the event counter's value.
    wake_word: Vec<u8>,
    wake_armed: bool,
    /// Cancelling operations in flight.
    cancels: u32,
}

impl Driver {
    fn new(ring: IoUring, opened: Arc<Opened>, shared: Arc<Shared>, depth: u32) -> Self {
        Self {
            ring,
            opened,
            shared,
            pool: Pool::new(POOL_BYTES),
            slots: (0..depth).map(|_| Slot { file: Vec::new(), chain: None }).collect(),
            free: (0..depth as usize).rev().collect(),
            pending: VecDeque::new(),
            delayed: Vec::new(),
            wake_word: vec![0; 8],
            wake_armed: false,
            cancels: 0,
        }
    }

    fn run(mut self) {
        loop {
            if self.take_requests() {
                return;
            }
            self.fill_ring();
            let until = self.delayed.iter().map(|(due, _)| *due).min();
            if let Err(error) = self.enter(until.map(|due| due.saturating_duration_since(Instant::now()))) {
                return self.refuse_all(&error);
            }
            self.reap();
        }
    }

    /// Moves new requests, and delayed ones that are due, to `pending`. True when the reader is being dropped.
    fn take_requests(&mut self) -> bool {
        let mut queue = lock(&self.shared.queue);
        if queue.stopped {
            return true;
        }
        let requests = std::mem::take(&mut queue.requests);
        drop(queue);
        self.pending.extend(requests.into_iter().map(|request| Job {
            // Located when its turn comes, so that a long queue costs little.
            span: Span { offset: 0, len: 0, whole: true },
            request,
            attempt: 0,
            buffer: None,
            filled: 0,
        }));
        if !self.delayed.is_empty() {
            let now = Instant::now();
            let due = self.delayed.extract_if(.., |(due, _)| *due <= now);
            // Due ones go first: they have waited longest.
            due.for_each(|(_, job)| self.pending.push_front(job));
        }
        false
    }

    /// Turns pending jobs into chains while there are free slots, and sees to it that the wake-up is armed.
    fn fill_ring(&mut self) {
        if !self.wake_armed {
            let word = self.wake_word.as_mut_ptr();
            let read = opcode::Read::new(Fd(self.shared.wake.as_raw_fd()), word, 8).build().user_data(WAKE);
            // SAFETY: `wake_word` is 8 bytes on the heap, not touched while `wake_armed` (see `Driver`); the descriptor
            // is open as long as `shared`, which the driver holds.
            self.wake_armed = unsafe { self.ring.submission().push(&read) }.is_ok();
        }
        while let Some(&slot) = self.free.last()
            && let Some(job) = self.pending.pop_front()
        {
            match self.push_chain(slot, job) {
                Pushed::Yes => {
                    self.free.pop();
                }
                Pushed::Failed(job, error) => self.failed(slot, job, error),
                Pushed::Full(job) => {
                    self.pending.push_front(job);
                    return;
                }
            }
        }
    }

    fn push_chain(&mut self, number: usize, mut job: Job) -> Pushed {
        let slot = &mut self.slots[number];
        debug_assert!(slot.chain.is_none(), "a free slot has no chain");
        slot.file.clear();
        job.span = self.opened.files.locate(job.request.index, &mut slot.file);
        slot.file.push(0);
        let Ok(wanted) = usize::try_from(job.span.wanted()) else { return Pushed::Failed(job, Errno::NOMEM) };
        let buffer = match &mut job.buffer {
            Some(buffer) => buffer,
            none => match self.pool.take(wanted) {
                Some(buffer) => none.insert(buffer),
                None => return Pushed::Failed(job, Errno::NOMEM),
            },
        };
        let space = &mut buffer.storage()[job.filled..wanted];
        let (address, len) = (space.as_mut_ptr(), (space.len() as u64).min(MAX_READ) as u32);
        let offset = job.span.offset.saturating_add(job.filled as u64);

        // No CLOEXEC: the kernel refuses it for files that are in no process's table. No NONBLOCK either: older kernels
        // would then fail a read that has to wait for the disk.
        let flags = (OFlags::RDONLY | OFlags::NOCTTY).bits() as i32;
        let into = DestinationSlot::try_from_slot_target(number as u32).expect("a slot number is small");
        let token = |step: usize| (number as u64) << 2 | step as u64;
        let chain = [
            opcode::OpenAt::new(Fd(self.opened.root.as_raw_fd()), slot.file.as_ptr().cast())
                .flags(flags)
                .file_index(Some(into))
                .build()
                .flags(squeue::Flags::IO_HARDLINK)
                .user_data(token(OPEN)),
            opcode::Read::new(Fixed(number as u32), address, len)
                .offset(offset)
                .build()
                .flags(squeue::Flags::IO_HARDLINK)
                .user_data(token(READ)),
            opcode::Close::new(Fixed(number as u32)).build().user_data(token(CLOSE)),
        ];
        // SAFETY: the path is NUL-terminated and lies, like the `len` bytes at `address`, in a heap block of a `Vec`
        // that is not touched while the slot has a chain, which it has from here on if the push succeeds (see
        // `Driver`). The slot's earlier chain is complete, so its number in the file table is free. The root's
        // descriptor is open as long as
        // `opened`, which the driver holds. `push_multiple` takes all entries or none.
        match unsafe { self.ring.submission().push_multiple(&chain) } {
            Ok(()) => {
                self.slots[number].chain = Some(Chain { job, missing: 3, results: [0; 3] });
                Pushed::Yes
            }
            Err(_) => Pushed::Full(job),
        }
    }

    /// Hands over what was pushed and waits for at least one completion, for at most `limit`.
    fn enter(&mut self, limit: Option<Duration>) -> io::Result<()> {
        let time = limit.map(|limit| Timespec::new().sec(limit.as_secs()).nsec(limit.subsec_nanos()));
        let mut args = SubmitArgs::new();
        if let Some(time) = &time {
            args = args.timespec(time);
        }
        self.shared.meter.submission();
        let Err(error) = self.ring.submitter().submit_with_args(1, &args) else { return Ok(()) };
        match Errno::from_io_error(&error) {
            Some(Errno::TIME | Errno::INTR) => Ok(()),
            // The kernel is out of memory for more, or wants completions taken first: take them and come again.
            Some(Errno::AGAIN | Errno::BUSY | Errno::NOMEM) => {
                thread::sleep(Duration::from_millis(1));
                Ok(())
            }
            _ => Err(error),
        }
    }

    /// Takes all completions there are.
    fn reap(&mut self) {
        loop {
            // One at a time, for ending a request needs the whole driver and runs foreign code.
            let Some(entry) = self.ring.completion().next() else { return };
            match entry.user_data() {
                WAKE => self.wake_armed = false,
                CANCEL => self.cancels -= 1,
                token => {
                    let (number, step) = ((token >> 2) as usize, (token & 3) as usize);
                    let slot = &mut self.slots[number];
                    let chain = slot.chain.as_mut().expect("a completion belongs to a chain in flight");
                    chain.results[step] = entry.result();
                    chain.missing -= 1;
                    if chain.missing == 0
                        && let Some(Chain { job, results, .. }) = slot.chain.take()
                    {
                        self.complete(number, job, results);
                        self.free.push(number);
                    }
                }
            }
        }
    }

    /// Judges a chain whose completions have all come.
    fn complete(&mut self, slot: usize, mut job: Job, results: [i32; 3]) {
        if lock(&self.shared.queue).stopped {
            // The reader was dropped, perhaps by a callback on this very thread: no more calls.
            return;
        }
        let read = match outcome(results) {
            Ok(read) => read as usize,
            Err(error) => return self.failed(slot, job, error),
        };
        job.filled += read;
        let (filled, span) = (job.filled as u64, job.span);
        if read > 0 && filled < span.wanted() && !(span.whole && filled == span.len) {
            // The kernel gave less than there is, as it does above 2 GiB: go on from there.
            return self.pending.push_front(job);
        }
        let result = if filled == span.len {
            let mut buffer = job.buffer.take().expect("a job that has read has its buffer");
            buffer.set_len(job.filled);
            self.opened.whole(job.request.index, span, buffer)
        } else {
            Err(self.opened.changed(job.request.index, self.file(slot), span, filled))
        };
        self.shared.end(job.request, result);
    }

    /// Tries a failed job again later, or ends it.
    fn failed(&mut self, slot: usize, mut job: Job, error: Errno) {
        match retry(error, job.attempt) {
            Some(delay) => {
                job.attempt += 1;
                // From the start: the file may have been replaced meanwhile.
                job.filled = 0;
                self.delayed.push((Instant::now() + delay, job));
            }
            None => {
                let error = self.opened.failed(job.request.index, self.file(slot), error);
                self.shared.end(job.request, Err(error));
            }
        }
    }

    /// The path in a slot, without its NUL. It is that of the slot's last chain, until the next one is pushed.
    fn file(&self, slot: usize) -> &[u8] {
        let file = &self.slots[slot].file;
        file.strip_suffix(b"\0").unwrap_or(file)
    }

    /// Cancels what is in flight and waits until the kernel has given back all memory. False when that cannot be done.
    fn drain(&mut self) -> bool {
        let mut patience = 1000;
        loop {
            while let Some(entry) = self.ring.completion().next() {
                match entry.user_data() {
                    WAKE => self.wake_armed = false,
                    CANCEL => self.cancels -= 1,
                    token => {
                        let slot = &mut self.slots[(token >> 2) as usize];
                        // None where a broken ring has had its memory leaked already.
                        let Some(chain) = &mut slot.chain else { continue };
                        chain.missing -= 1;
                        if chain.missing == 0 {
                            slot.chain = None;
                        }
                    }
                }
            }
            if !self.wake_armed && self.cancels == 0 && self.slots.iter().all(|slot| slot.chain.is_none()) {
                return true;
            }
            if self.cancels == 0 {
                // Again in each round: the next step of a chain may wait as the one before did.
                let cancel = opcode::AsyncCancel2::new(CancelBuilder::any()).build().user_data(CANCEL);
                // SAFETY: cancelling refers to no memory.
                self.cancels += u32::from(unsafe { self.ring.submission().push(&cancel) }.is_ok());
            }
            if self.enter(Some(Duration::from_millis(5))).is_err() {
                patience -= 1;
                if patience == 0 {
                    return false;
                }
                thread::sleep(Duration::from_millis(1));
            }
        }
    }

    /// The ring has failed in a way that no retry mends. Requests keep their promise: each ends, with the reason.
    fn refuse_all(mut self, error: &io::Error) {
        tracing::error!("io_uring failed: {error}; choose the reading backend \"threads\"");
        let refuse = |driver: &Self, request: ReadRequest| {
            let detail = format!(
                "it was not read because io_uring failed: {error}; choose the reading backend \"threads\""
            );
            let error = ReadError::io(driver.opened.files.key(request.index), detail, false);
            driver.shared.end(request, Err(error));
        };
        for number in 0..self.slots.len() {
            let Some(Chain { job, .. }) = self.slots[number].chain.take() else { continue };
            // The kernel may still write to these; nobody can know. They are never freed.
            std::mem::forget(job.buffer);
            std::mem::forget(std::mem::take(&mut self.slots[number].file));
            refuse(&self, job.request);
        }
        if std::mem::take(&mut self.wake_armed) {
            std::mem::forget(std::mem::take(&mut self.wake_word));
        }
        loop {
            if self.take_requests() {
                return;
            }
            let delayed = std::mem::take(&mut self.delayed).into_iter().map(|(_, job)| job);
            let jobs: Vec<_> = std::mem::take(&mut self.pending).into_iter().chain(delayed).collect();
            jobs.into_iter().for_each(|job| refuse(&self, job.request));
            // The ring's own read of the counter may have taken a wake-up, hence the look from time to time.
            thread::sleep(Duration::from_millis(5));
        }
    }
}

enum Pushed {
    Yes,
    /// The submission queue has no room.
    Full(Job),
    /// It could not be prepared.
    Failed(Job, Errno),
}

/// What a chain has come to: the bytes read, or the error that counts.
fn outcome([open, read, _close]: [i32; 3]) -> Result<i32, Errno> {
    // If the kernel cut a chain in two for lack of memory, its parts may have run in any order, with no harm but these.
    let chain_broke =
        |error| if matches!(error, Errno::CANCELED | Errno::BADF) { Errno::AGAIN } else { error };
    match (open, read) {
        (..0, _) => Err(chain_broke(Errno::from_raw_os_error(-open))),
        (_, ..0) => Err(chain_broke(Errno::from_raw_os_error(-read))),
        _ => Ok(read),
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        if !self.drain() {
            // Better to lose a few buffers than to let the kernel write into memory that belongs to somebody else.
            tracing::error!("io_uring does not give back its buffers; they are leaked");
            std::mem::forget(std::mem::take(&mut self.slots));
            std::mem::forget(std::mem::take(&mut self.wake_word));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_error_that_counts_is_the_one_that_came_first() {
        let [enoent, ebadf, ecanceled, eio] =
            [Errno::NOENT, Errno::BADF, Errno::CANCELED, Errno::IO].map(|error| -error.raw_os_error());
        assert_eq!(outcome([0, 17, 0]), Ok(17));
        assert_eq!(outcome([0, 17, ebadf]), Ok(17), "a failed close loses no data");
        assert_eq!(outcome([enoent, ebadf, ebadf]), Err(Errno::NOENT));
        assert_eq!(outcome([0, eio, 0]), Err(Errno::IO));
        assert_eq!(outcome([0, ebadf, 0]), Err(Errno::AGAIN), "a chain cut in two is tried again");
        assert_eq!(outcome([ecanceled; 3]), Err(Errno::AGAIN));
    }
}
