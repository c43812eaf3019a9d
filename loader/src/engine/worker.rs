//! One row's way from its bytes to its place in the slot, on a worker thread.

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use crossbeam_channel::Sender;
use fuelrail_connectors::{ReadError, ReadErrorKind, Record};
use fuelrail_transforms::{SampleKey, Scratch};
use xxhash_rust::xxh3::xxh3_64;

use super::batch::Row;
use super::in_flight::Share;
use super::{Event, Shared};
use crate::metrics;
use crate::protocol::ErrorKind;
use crate::quarantine::Refused;
use crate::refusal::Refusal;

/// Threads that workers run on.
///
/// # Errors
/// When the system gives no more threads.
pub(crate) fn pool(threads: usize) -> Result<Arc<rayon::ThreadPool>, Refusal> {
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .thread_name(|worker| format!("fuelrail-work{worker}"))
        .build();
    pool.map(Arc::new).map_err(|error| {
        let message = format!("could not start {threads} worker threads: {error}");
        Refusal::new(ErrorKind::Environment, message)
    })
}

/// A row on its way.
pub(super) struct Job {
    pub shared: Arc<Shared>,
    pub events: Sender<Event>,
    pub generation: u64,
    pub batch: u64,
    pub epoch: u64,
    pub share: Share,
    pub row: Row,
    pub requested: Instant,
}

/// A row that came back.
pub(super) struct RowDone {
    pub batch: u64,
    pub row: Row,
    pub share: Share,
    pub outcome: Outcome,
}

/// What became of a row.
pub(super) enum Outcome {
    /// Its bytes are in the slot.
    Written,
    /// The record is bad; a verdict on its bytes, the same at every attempt.
    Bad(Refused),
    /// The environment failed; the run cannot go on.
    Fatal(Refusal),
    /// A seek made it void.
    Skipped,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

impl Job {
    /// Called by the reader when the bytes are here (or not): passes them to a worker.
    pub fn start(self, read: Result<Record, ReadError>, pool: &rayon::ThreadPool) {
        metrics::add(&self.shared.metrics.read_ns, self.requested.elapsed());
        match read {
            Ok(record) => {
                let queued = Instant::now();
                // First in, first out: the oldest batch is finished first.
                pool.spawn_fifo(move || {
                    metrics::add(&self.shared.metrics.queue_ns, queued.elapsed());
                    self.work(record);
                });
            }
            // The source's own verdict on the record's bytes.
            Err(error) if error.kind() == ReadErrorKind::Bad => {
                let refused = self.refused(error.detail().to_string(), None);
                self.finish(Outcome::Bad(refused));
            }
            Err(error) => {
                let fatal = Outcome::Fatal(Refusal::new(ErrorKind::Source, error.to_string()));
                self.finish(fatal);
            }
        }
    }

    fn work(mut self, record: Record) {
        if self.shared.generation.load(Relaxed) != self.generation {
            drop(record);
            return self.finish(Outcome::Skipped);
        }
        let since = Instant::now();
        let pipeline = &self.shared.pipeline;
        let key = SampleKey { seed: pipeline.config.seed, epoch: self.epoch, position: self.row.position };
        let row = &mut self.row;
        let reason = SCRATCH.with_borrow_mut(|scratch| {
            let applied = catch_unwind(AssertUnwindSafe(|| {
                pipeline.fields.write(&record.bytes, key, scratch, &mut row.writer)
            }));
            match applied {
                Ok(applied) => applied.err(),
                Err(panic) => {
                    // Whatever the panic left in the scratch is not trusted again.
                    *scratch = Scratch::default();
                    Some(format!(
                        "the decoder panicked ({}): please report this file",
                        panic_text(panic.as_ref())
                    ))
                }
            }
        });
        metrics::add(&self.shared.metrics.transform_ns, since.elapsed());
        let outcome = match reason {
            None => Outcome::Written,
            Some(reason) => Outcome::Bad(self.refused(reason, Some(&record.bytes))),
        };
        // Back to the reader's pool before the coordinator asks for more.
        drop(record);
        self.finish(outcome);
    }

    fn refused(&self, reason: String, bytes: Option<&[u8]>) -> Refused {
        let hash = bytes.map_or_else(String::new, |bytes| format!("{:016x}", xxh3_64(bytes)));
        self.row.refused(reason, bytes.map_or(0, |bytes| bytes.len() as u64), hash)
    }

    fn finish(self, outcome: Outcome) {
        let Self { events, batch, row, share, .. } = self;
        // The coordinator may be gone: then so is everything that wanted this row.
        let _ = events.send(Event::Row(RowDone { batch, row, share, outcome }));
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_string());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "without a message".into())
}
