//! The life of a request, shared by all readers: counting, finishing, and a small pool of threads for readers whose
//! work blocks.
//!
//! Dropping [`Workers`] stops it: waits inside the work are cut short through [`Stop`], threads are joined, and
//! requests not begun are dropped uncalled.

use std::any::Any;
use std::cell::OnceCell;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::{Buffer, ReadError, ReadRequest, ReadStats, Reader, Record, SourceError};

/// Calls a request's `done`, containing whatever panics in it: a bug in a callback must not end the reads of others.
pub(crate) fn finish(request: ReadRequest, result: Result<Buffer, ReadError>) {
    let ReadRequest { index, done } = request;
    let result = result.map(|bytes| Record { index, bytes });
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| done(result))) {
        tracing::error!(index, "the callback of a read panicked: {}", panic_text(&*panic));
    }
}

pub(crate) fn panic_text(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing that can panic runs under these locks, and a poisoned one must not stop the daemon.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Counts what a reader does.
#[derive(Default)]
pub(crate) struct Meter {
    reads: AtomicU64,
    bytes: AtomicU64,
    submissions: AtomicU64,
    busy: Mutex<Busy>,
}

#[derive(Default)]
struct Busy {
    in_hand: u64,
    since: Option<Instant>,
    total: Duration,
}

impl Meter {
    /// `count` requests have come in.
    pub(crate) fn begin(&self, count: u64) {
        let mut busy = lock(&self.busy);
        if busy.in_hand == 0 && count > 0 {
            busy.since = Some(Instant::now());
        }
        busy.in_hand += count;
    }

    /// A request has ended. Called before its `done`, so that the callback sees itself counted.
    pub(crate) fn end(&self, result: &Result<Buffer, ReadError>) {
        if let Ok(buffer) = result {
            self.reads.fetch_add(1, Ordering::Relaxed);
            self.bytes.fetch_add(buffer.len() as u64, Ordering::Relaxed);
        }
        let mut busy = lock(&self.busy);
        busy.in_hand -= 1;
        if busy.in_hand == 0
            && let Some(since) = busy.since.take()
        {
            busy.total += since.elapsed();
        }
    }

    pub(crate) fn submission(&self) {
        self.submissions.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn stats(&self, backend: &'static str) -> ReadStats {
        let busy = lock(&self.busy);
        let total = busy.total + busy.since.map_or(Duration::ZERO, |since| since.elapsed());
        drop(busy);
        ReadStats {
            backend,
            submissions: self.submissions.load(Ordering::Relaxed),
            reads: self.reads.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
            busy_ns: total.as_nanos() as u64,
        }
    }
}

/// The end of a reader, as its threads see it.
#[derive(Default)]
pub(crate) struct Stop {
    queue: Mutex<Queue>,
    requests: Condvar,
    stopping: Condvar,
    ended: tokio::sync::Notify,
}

#[derive(Default)]
struct Queue {
    requests: VecDeque<ReadRequest>,
    stopped: bool,
}

impl Stop {
    /// Waits for `time`, or less when the reader ends. True if it has ended.
    pub(crate) fn wait(&self, time: Duration) -> bool {
        let deadline = Instant::now() + time;
        let mut queue = lock(&self.queue);
        while !queue.stopped {
            let Some(left) = deadline.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())
            else {
                return false;
            };
            queue = self.stopping.wait_timeout(queue, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }
}

thread_local! {
    /// The reader that this thread works for.
    static READER: OnceCell<Arc<Shared>> = const { OnceCell::new() };
}

/// Ends when the reader that this thread works for is being dropped; never on other threads. What waits for a network
/// waits for this, too, so that whoever calls it from a reader's work need not pass [`Stop`] on; an error it then
/// returns reaches no callback.
pub(crate) async fn stopped() {
    let Some(shared) = READER.with(|reader| reader.get().cloned()) else {
        return std::future::pending().await;
    };
    let mut ended = std::pin::pin!(shared.stop.ended.notified());
    // Before the look: an end between the two is not missed.
    ended.as_mut().enable();
    if !lock(&shared.stop.queue).stopped {
        ended.await;
    }
}

/// What a thread does for one request. `None` when it gave up because of [`Stop`].
pub(crate) type Work = dyn Fn(u64, &Stop) -> Option<Result<Buffer, ReadError>> + Send + Sync;

/// A reader made of threads that each work on one request at a time.
pub(crate) struct Workers {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    backend: &'static str,
}

struct Shared {
    stop: Stop,
    meter: Meter,
    work: Box<Work>,
    key: Box<dyn Fn(u64) -> String + Send + Sync>,
}

impl Workers {
    /// Starts `threads` threads. `key` names a record in the error that a panic of `work` becomes.
    pub(crate) fn start(
        backend: &'static str,
        threads: usize,
        key: Box<dyn Fn(u64) -> String + Send + Sync>,
        work: Box<Work>,
    ) -> Result<Self, SourceError> {
        let shared = Arc::new(Shared { stop: Stop::default(), meter: Meter::default(), work, key });
        let mut workers = Self { shared, threads: Vec::new(), backend };
        for number in 0..threads {
            let shared = workers.shared.clone();
            let thread = thread::Builder::new().name(format!("fuelrail-read-{number}")).spawn(move || {
                READER.with(|reader| drop(reader.set(shared.clone())));
                shared.run();
            });
            match thread {
                Ok(thread) => workers.threads.push(thread),
                // A process near its limit of threads reads more slowly instead of not at all.
                Err(error) if number > 0 => {
                    tracing::warn!("only {number} of {threads} reader threads could be started: {error}");
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
        Ok(workers)
    }
}

impl Reader for Workers {
    fn submit(&self, requests: Vec<ReadRequest>) {
        let count = requests.len();
        self.shared.meter.begin(count as u64);
        lock(&self.shared.stop.queue).requests.extend(requests);
        // One thread for each request, not all for one: with 16 threads that would be 15 wasted wake-ups a read.
        (0..count.min(self.threads.len())).for_each(|_| self.shared.stop.requests.notify_one());
    }

    fn stats(&self) -> ReadStats {
        self.shared.meter.stats(self.backend)
    }
}

impl Shared {
    fn run(&self) {
        while let Some(request) = self.next() {
            self.meter.submission();
            let work = || (self.work)(request.index, &self.stop);
            let result = match catch_unwind(AssertUnwindSafe(work)) {
                Ok(Some(result)) => result,
                Ok(None) => return,
                Err(panic) => {
                    let text =
                        format!("reading it panicked: {}; this is a bug in fuelrail", panic_text(&*panic));
                    Err(ReadError::io((self.key)(request.index), text, false))
                }
            };
            if result.is_err() && lock(&self.stop.queue).stopped {
                // Perhaps an error only because the reader ends: the request is dropped uncalled, like those not begun.
                return;
            }
            self.meter.end(&result);
            finish(request, result);
        }
    }

    fn next(&self) -> Option<ReadRequest> {
        let mut queue = lock(&self.stop.queue);
        loop {
            if queue.stopped {
                return None;
            }
            if let Some(request) = queue.requests.pop_front() {
                return Some(request);
            }
            queue = self.stop.requests.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        let mut queue = lock(&self.shared.stop.queue);
        queue.stopped = true;
        let undone = std::mem::take(&mut queue.requests);
        drop(queue);
        self.shared.stop.requests.notify_all();
        self.shared.stop.stopping.notify_all();
        self.shared.stop.ended.notify_waiters();
        // Outside the lock: what a callback owns may do anything when it goes.
        drop(undone);
        for thread in self.threads.drain(..) {
            join(thread);
        }
    }
}

/// Joins a reader's thread, unless it is this one: a callback may own the last handle of the reader it runs on, and a
/// thread that waited for itself would wait for ever.
pub(crate) fn join(thread: JoinHandle<()>) {
    if thread.thread().id() != thread::current().id() && thread.join().is_err() {
        tracing::error!("a reader thread panicked; this is a bug in fuelrail");
    }
}
