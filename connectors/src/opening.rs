//! An opening under way: how far it has come, for whoever waits, and the wish that it stop.
//!
//! Walking a folder, listing a bucket, indexing shards, unpacking them, reading a column of labels: each may take
//! minutes. Whoever opens a source may hold an [`Opening`] beside it, look at its [`progress`](Opening::progress) as
//! often as it likes, and [`cancel`](Opening::cancel) it from another thread.
//!
//! ```text
//!  watcher   opening.progress() ─▶ "indexing shards", 3.1 GB of 10 GB        opening.cancel()
//!                 ▲                                                               │
//!  opener    open_watched(config, &opening) ─▶ Step::begin(…) ─▶ step.add(…) ─▶ check() ─▶ an error, its files deleted
//! ```
//!
//! # Promises
//!
//! - A cancelled opening ends with an error that [`SourceError::is_cancelled`], after the read in hand: of the network
//!   at once, of a disk within a megabyte or a row group. What it was writing into the cache is deleted, what was whole
//!   stays.
//! - Watching costs the opener an addition per step; nothing is formatted or sent for who does not look.
//!
//! # Whether it is still what lies there
//!
//! Whatever an opening looks at, it notes how to look again ([`depends_on`]): files by size, time and inode, folders by
//! walking them, objects by version. So whoever shares an open source between feeds can ask [`Opening::is_current`]
//! first, and a source opened after its data has changed is a new one.
//!
//! The opening that a thread works for is known to the thread ([`Opening::run`]), like the reader in
//! [`crate::workers`], so that it need not be passed through every function that reads a byte. Work that is spread over
//! threads takes it along with [`Step::run`].

use std::cell::RefCell;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use serde::{Deserialize, Serialize};

use crate::SourceError;
use crate::workers::lock;

/// How far an opening has come with what it is doing now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Progress {
    /// What it is doing, such as "indexing shards".
    pub what: String,
    /// How much of it is done.
    pub done: u64,
    /// How much there is, where that is known.
    pub total: Option<u64>,
    /// What is counted.
    pub counted: Counted,
}

/// What progress counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Counted {
    /// Bytes of files.
    Bytes,
    /// Files on disk.
    Files,
    /// Objects of a store.
    Objects,
    /// Rows of a table.
    Rows,
}

/// An opening that can be watched and cancelled; a handle that is cheap to clone.
#[derive(Clone, Default)]
pub struct Opening(Arc<Shared>);

#[derive(Default)]
struct Shared {
    cancelled: AtomicBool,
    waking: tokio::sync::Notify,
    /// The steps under way, the one begun last at the end.
    steps: Mutex<Vec<Arc<Count>>>,
    /// What it looked at: each says whether that is still the same.
    looks: Mutex<Vec<Look>>,
    /// One that it waits for.
    awaited: Mutex<Option<Opening>>,
}

/// Looks at something again.
type Look = Box<dyn Fn() -> bool + Send + Sync>;

struct Count {
    what: &'static str,
    counted: Counted,
    done: AtomicU64,
    total: Option<u64>,
}

thread_local! {
    /// The opening that this thread works for.
    static OPENING: RefCell<Option<Opening>> = const { RefCell::new(None) };
}

impl Opening {
    /// One that nobody watches yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Asks it to stop. It does so soon, by an error; calling this again, or after it has ended, does nothing.
    pub fn cancel(&self) {
        self.0.cancelled.store(true, Ordering::Relaxed);
        self.0.waking.notify_waiters();
    }

    /// Whether it was asked to stop.
    pub fn is_cancelled(&self) -> bool {
        self.0.cancelled.load(Ordering::Relaxed)
    }

    /// How far it has come; `None` before the first step that takes long, and between steps.
    pub fn progress(&self) -> Option<Progress> {
        if let Some(awaited) = &*lock(&self.0.awaited) {
            return awaited.progress();
        }
        let steps = lock(&self.0.steps);
        let Count { what, counted, done, total } = &**steps.last()?;
        let done = done.load(Ordering::Relaxed);
        // What grows while it is read is not more than all of it.
        let total = total.map(|total| total.max(done));
        Some(Progress { what: (*what).to_owned(), done, total, counted: *counted })
    }

    /// As long as it waits for another to open the same, that one's progress is its own.
    pub fn awaits(&self, other: Option<Self>) {
        *lock(&self.0.awaited) = other;
    }

    /// Whether opening it again would find the same: looks at all that was looked at, and reads none of it. Takes part
    /// in
    /// `asking`, who may be cancelled; then it says no.
    pub fn is_current(&self, asking: &Opening) -> bool {
        asking.run(|| lock(&self.0.looks).iter().all(|look| check().is_ok() && look()))
    }

    /// Does some of its work on this thread.
    pub(crate) fn run<T>(&self, work: impl FnOnce() -> T) -> T {
        let _back = Back(OPENING.replace(Some(self.clone())));
        work()
    }

    /// Ends when it is asked to stop.
    async fn cancelled(&self) {
        let mut waking = std::pin::pin!(self.0.waking.notified());
        // Before the look: a wish between the two is not missed.
        waking.as_mut().enable();
        if !self.is_cancelled() {
            waking.await;
        }
    }
}

impl fmt::Debug for Opening {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Opening")
            .field("cancelled", &self.is_cancelled())
            .field("progress", &self.progress())
            .finish()
    }
}

/// Gives a thread back to whom it worked for before, also when the work panics.
struct Back(Option<Opening>);

impl Drop for Back {
    fn drop(&mut self) {
        OPENING.set(self.0.take());
    }
}

/// The opening that this thread works for.
pub(crate) fn current() -> Option<Opening> {
    OPENING.with_borrow(Clone::clone)
}

/// Whether the opening that this thread works for is to go on. Elsewhere always.
///
/// # Errors
/// When it was cancelled.
pub(crate) fn check() -> Result<(), SourceError> {
    let stop = OPENING.with_borrow(|opening| opening.as_ref().is_some_and(Opening::is_cancelled));
    if stop { Err(SourceError::cancelled()) } else { Ok(()) }
}

/// Notes how to look again at something that the opening that this thread works for has found out. Costs nothing
/// elsewhere. What `look` captures lives as long as the opening: no source, or only weakly.
pub(crate) fn depends_on(look: impl Fn() -> bool + Send + Sync + 'static) {
    OPENING.with_borrow(|opening| {
        if let Some(opening) = opening {
            lock(&opening.0.looks).push(Box::new(look));
        }
    });
}

/// Ends when the opening that this thread works for is cancelled; never on other threads.
pub(crate) async fn cancelled() {
    match current() {
        Some(opening) => opening.cancelled().await,
        None => std::future::pending().await,
    }
}

/// Something that takes long, counted. Shared by the threads that do it; over when it is dropped.
pub(crate) struct Step {
    opening: Option<Opening>,
    count: Arc<Count>,
}

impl Step {
    /// Begins a step of the opening that this thread works for.
    pub(crate) fn begin(what: &'static str, counted: Counted, total: Option<u64>) -> Self {
        let opening = current();
        let count = Arc::new(Count { what, counted, done: AtomicU64::new(0), total });
        if let Some(opening) = &opening {
            lock(&opening.0.steps).push(count.clone());
        }
        Self { opening, count }
    }

    /// So much more is done.
    pub(crate) fn add(&self, more: u64) {
        self.count.done.fetch_add(more, Ordering::Relaxed);
    }

    /// So much is done.
    pub(crate) fn reached(&self, done: u64) {
        self.count.done.store(done, Ordering::Relaxed);
    }

    /// Does some of its work on this thread, whichever began it.
    ///
    /// # Errors
    /// Those of the work; and without doing it, when the opening was cancelled.
    pub(crate) fn run<T>(&self, work: impl FnOnce() -> Result<T, SourceError>) -> Result<T, SourceError> {
        match &self.opening {
            None => work(),
            Some(opening) if opening.is_cancelled() => Err(SourceError::cancelled()),
            Some(opening) => opening.run(work),
        }
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        if let Some(opening) = &self.opening {
            lock(&opening.0.steps).retain(|count| !Arc::ptr_eq(count, &self.count));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn progress(what: &str, done: u64, total: Option<u64>, counted: Counted) -> Progress {
        Progress { what: what.into(), done, total, counted }
    }

    #[test]
    fn progress_is_that_of_the_step_begun_last_and_ends_with_it() {
        let opening = Opening::new();
        assert_eq!(opening.progress(), None);
        opening.run(|| {
            let outer = Step::begin("walking", Counted::Files, None);
            outer.add(3);
            assert_eq!(opening.progress(), Some(progress("walking", 3, None, Counted::Files)));
            {
                let inner = Step::begin("reading", Counted::Bytes, Some(10));
                std::thread::scope(|scope| {
                    // A thread of its own knows whom it works for once it is told.
                    scope.spawn(|| {
                        assert!(current().is_none());
                        assert!(inner.run(|| Ok(current().is_some())).unwrap());
                        inner.add(12);
                    });
                });
                assert_eq!(opening.progress(), Some(progress("reading", 12, Some(12), Counted::Bytes)));
            }
            assert_eq!(opening.progress(), Some(progress("walking", 3, None, Counted::Files)));
        });
        assert_eq!(opening.progress(), None);
        assert!(current().is_none());
    }

    #[test]
    fn a_cancelled_opening_does_no_more_work_and_others_go_on() {
        let (one, other) = (Opening::new(), Opening::new());
        one.run(|| {
            let step = Step::begin("indexing", Counted::Bytes, None);
            assert!(check().is_ok());
            one.cancel();
            assert!(check().is_err());
            let work = || -> Result<(), _> { panic!("it was cancelled before") };
            assert!(step.run(work).unwrap_err().is_cancelled());
            other.run(|| assert!(check().is_ok()));
            assert!(check().is_err());
        });
        assert!(check().is_ok());
    }
}
