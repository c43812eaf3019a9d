//! The engine of one feed: walks the order, keeps several batches under construction, hands them over in order.
//!
//! What lies ahead, it is told by a `Course`: rows, the end of an epoch, or (of a stream) nothing yet.
//!
//! All state lives in the coordinator thread and changes only when an event arrives:
//!
//! ```text
//!   Release, Seek, Stop ──┐                  ┌──▶ reader.submit(rows)  ──▶ worker ──┐
//!                         ├──▶ coordinator ──┤                                      │
//!   Row (a finished row) ─┤        ▲         └──▶ out(ready)                        │
//!   News (of a stream)  ──┘        │                                                │
//!                                  └────────────────────────────────────────────────┘
//! ```
//!
//! Promises
//! - at most `slots` batches exist at any time, and a slot is written only between its release and its `ready`;
//! - encoded bytes in flight stay within `read_ahead_bytes`, one record excepted;
//! - what is delivered is a function of (source, config, seed, cursor) alone: not of threads, delays or backends;
//! - dropping the [`Engine`] ends its threads and frees the ring, whatever the source is doing.

mod batch;
mod consumers;
mod course;
pub(crate) mod flow;
mod in_flight;
pub mod lineage;
mod lookahead;
mod shared;
mod slots;
mod stretch;
pub(crate) mod worker;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::Instant;

use crossbeam_channel::{Receiver, Sender, unbounded};
use fuelrail_connectors::{self as connectors, shown};

use crate::config::OnError;
use crate::layout::Layout;
use crate::metrics::{self, Consumer as Measured, Metrics};
use crate::pipeline::Pipeline;
use crate::plan::{Batching, Cursor};
use crate::protocol::{Attached, ErrorKind, Joined, Ready, Reply, Stats};
use crate::quarantine::{Quarantine, Refused};
use crate::refusal::Refusal;
use crate::ring::{Access, Ring};
use crate::token::Place;

use batch::{Batch, Row, Verdict};
use consumers::Consumers;
use course::{Ahead, Course, Seat, Wanted};
use in_flight::InFlight;
use shared::Laggards;
use slots::Slots;
use worker::{Job, Outcome, RowDone};

pub use consumers::{ConsumerId, FIRST, Out};

/// A running feed.
pub struct Engine {
    events: Sender<Event>,
    shared: Arc<Shared>,
    /// Whether several consumers may have it; then no one of them voids the work for all.
    is_shared: bool,
    thread: Option<JoinHandle<()>>,
}

/// What the coordinator, the workers and `stats` share.
pub(crate) struct Shared {
    pub(crate) pipeline: Arc<Pipeline>,
    pub(crate) metrics: Metrics,
    /// The generation in force; workers skip rows of older ones.
    pub(crate) generation: AtomicU64,
}

enum Event {
    Row(RowDone),
    /// A stream has something new.
    News,
    Seek {
        consumer: ConsumerId,
        generation: u64,
        cursor: Cursor,
        place: Option<Place>,
    },
    Join {
        out: Out,
        reply: Sender<Joined>,
    },
    Leave {
        consumer: ConsumerId,
    },
    Saved {
        place: Place,
        position: u64,
    },
    Release {
        consumer: ConsumerId,
        slot: u32,
    },
    Stats {
        consumer: Measured,
        reply: Box<dyn FnOnce(Stats) + Send>,
    },
    Stop,
}

impl Engine {
    /// Starts a feed at a cursor: makes its ring, its reader and its threads, and begins to work. `workers` are threads
    /// that it shares with other feeds, as many as the pipeline says; without, it has its own.
    ///
    /// # Errors
    /// When memory, threads or the reader cannot be had, or the pipeline does not fit the rank.
    pub fn start(
        pipeline: Arc<Pipeline>,
        rank: u64,
        world_size: u64,
        start: Cursor,
        workers: Option<Arc<rayon::ThreadPool>>,
        out: Out,
    ) -> Result<(Self, Attached, Ring), Refusal> {
        let batching = pipeline.batching(world_size)?;
        if rank >= world_size {
            return Err(Refusal::new(
                ErrorKind::Config,
                format!("rank = {rank} is not below world_size = {world_size}"),
            ));
        }
        let budget = pipeline.budget(batching.most_rows())?;
        let environment = |error: String| Refusal::new(ErrorKind::Environment, error);
        let layout = pipeline.layout(batching.most_rows());
        let share = pipeline.config.share.clone();
        let access = if share.is_some() { Access::ReadOnly } else { Access::ReadWrite };
        let ring = Ring::create(pipeline.slots(), layout.slot_bytes as usize, access)
            .map_err(|error| environment(error.to_string()))?;
        let (events, inbox) = unbounded();
        let notify = {
            let events = events.clone();
            Arc::new(move || {
                let _ = events.send(Event::News);
            })
        };
        let mut course = pipeline.supply.course(Seat { rank, batching }, notify);
        course.start_reading(&pipeline.config.read)?;
        let pool = workers.map_or_else(|| worker::pool(pipeline.threads), Ok)?;
        let attached = Attached {
            // In whole pages.
            layout: Layout { slot_bytes: ring.slot_bytes() as u64, ..layout },
            slots: ring.slots() as u32,
            batching,
            identity: pipeline.identity.clone(),
            classes: pipeline.supply.classes().to_vec(),
            threads: pipeline.threads as u32,
            budget,
            quarantine: pipeline.config.quarantine.as_ref().map(|path| shown(&path).to_string()),
            stream: pipeline.supply.stream_kind(),
            share: share.is_some().then(|| Joined { member: FIRST.0, start: batching.settle(start) }),
        };
        let in_flight = InFlight::new(pipeline.config.read_ahead_bytes);
        let quarantine =
            Quarantine::new(pipeline.config.quarantine.clone(), pipeline.identity.dataset.clone());
        let shared =
            Arc::new(Shared { pipeline, metrics: Metrics::default(), generation: AtomicU64::new(0) });
        let handed_ring = ring.share().map_err(|error| environment(error.to_string()))?;
        let coordinator = Coordinator {
            shared: shared.clone(),
            batching,
            attached: attached.clone(),
            slots: Slots::new(ring),
            pool,
            inbox,
            events: events.clone(),
            consumers: Consumers::new(out, batching.settle(start)),
            laggards: Laggards::new(share.as_ref()),
            is_shared: share.is_some(),
            quarantine,
            cursor: batching.settle(start),
            course,
            open: VecDeque::new(),
            in_flight,
            next_batch: 0,
            halted: false,
            generation: 0,
        };
        let thread = std::thread::Builder::new()
            .name("fuelrail-feed".into())
            .spawn(move || coordinator.run())
            .map_err(|error| environment(format!("could not start a thread: {error}")))?;
        let is_shared = share.is_some();
        Ok((Self { events, shared, is_shared, thread: Some(thread) }, attached, handed_ring))
    }

    /// Takes in one more consumer of a shared feed: its number, and where it begins.
    ///
    /// # Errors
    /// When the feed has just ended.
    pub fn join(&self, out: Out) -> Result<Joined, Refusal> {
        let (reply, joined) = unbounded();
        let _ = self.events.send(Event::Join { out, reply });
        joined
            .recv()
            .map_err(|_| Refusal::new(ErrorKind::Environment, "the shared feed has just ended; try again"))
    }

    /// A consumer is gone; what it held of a shared feed is free. A feed of one ends with it, and its slots are not
    /// written any more: the client's views of them outlive the connection.
    pub fn leave(&self, consumer: ConsumerId) {
        if self.is_shared {
            let _ = self.events.send(Event::Leave { consumer });
        }
    }

    /// A consumer goes on from elsewhere; everything of older generations of it is void.
    pub fn seek(&self, consumer: ConsumerId, generation: u64, cursor: Cursor, place: Option<Place>) {
        if !self.is_shared {
            // Set here as well as by the coordinator, so that workers stop wasting time on void rows at once.
            self.shared.generation.fetch_max(generation, Relaxed);
        }
        let _ = self.events.send(Event::Seek { consumer, generation, cursor, place });
    }

    /// A checkpoint is safe that holds this place of the stream.
    pub fn saved(&self, place: Place, position: u64) {
        let _ = self.events.send(Event::Saved { place, position });
    }

    /// A consumer gives a slot back. One that it does not hold is ignored with a warning.
    pub fn release(&self, consumer: ConsumerId, slot: u32) {
        let _ = self.events.send(Event::Release { consumer, slot });
    }

    /// Asks for the counters; `reply` is called from the coordinator.
    pub fn stats(&self, consumer: Measured, reply: impl FnOnce(Stats) + Send + 'static) {
        let _ = self.events.send(Event::Stats { consumer, reply: Box::new(reply) });
    }

    /// The pipeline it runs.
    pub fn pipeline(&self) -> &Arc<Pipeline> {
        &self.shared.pipeline
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.shared.generation.store(u64::MAX, Relaxed);
        let _ = self.events.send(Event::Stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Coordinator {
    shared: Arc<Shared>,
    batching: Batching,
    attached: Attached,
    slots: Slots,
    pool: Arc<rayon::ThreadPool>,
    inbox: Receiver<Event>,
    events: Sender<Event>,
    consumers: Consumers,
    /// Of a shared feed: when it began to wait, and for how long.
    laggards: Laggards,
    /// Whether several consumers may have it.
    is_shared: bool,
    quarantine: Quarantine,
    /// Where the next batch to open begins.
    cursor: Cursor,
    /// What comes there.
    course: Course,
    /// Batches under construction, in delivery order, all of the generation in force.
    open: VecDeque<Batch>,
    /// Rows that were asked for and are not back, those of batches that a seek made void among them.
    in_flight: InFlight,
    next_batch: u64,
    /// A batch failed; nothing goes on before a seek.
    halted: bool,
    /// The generation of `open`. The shared one runs ahead of it between a client's seek and the event that tells of
    /// it, and a batch of the old place must not go out under the new number.
    generation: u64,
}

impl Coordinator {
    fn run(mut self) {
        loop {
            self.open_batches();
            self.submit_rows();
            self.course.look_ahead(self.cursor);
            self.deliver();
            let idle = self.open.is_empty() && !self.halted;
            let since = Instant::now();
            let Some(event) = self.next_event() else { return };
            if idle {
                metrics::add(&self.shared.metrics.ring_full_ns, since.elapsed());
            }
            if self.handle(event).is_break() {
                return;
            }
            // Whatever else has arrived is taken in before deciding anew.
            while let Ok(event) = self.inbox.try_recv() {
                if self.handle(event).is_break() {
                    return;
                }
            }
        }
    }

    fn handle(&mut self, event: Event) -> std::ops::ControlFlow<()> {
        match event {
            Event::Row(done) => self.row_done(done),
            // What it is, the course finds out.
            Event::News => {}
            Event::Seek { consumer, generation, cursor, place } => {
                self.seek(consumer, generation, cursor, place);
            }
            Event::Join { out, reply } => self.join(out, &reply),
            Event::Leave { consumer } => self.leave(consumer),
            Event::Saved { place, position } => self.course.saved(&place.into(), position),
            Event::Release { consumer, slot } => self.release(consumer, slot),
            Event::Stats { consumer, reply } => reply(self.stats(consumer)),
            Event::Stop => return std::ops::ControlFlow::Break(()),
        }
        std::ops::ControlFlow::Continue(())
    }

    fn open_batches(&mut self) {
        while !self.halted {
            let Some(mut writer) = self.slots.take() else { return };
            let idle = self.open.is_empty() && self.in_flight.is_empty();
            let ahead = self.course.ahead(self.cursor, idle);
            self.tell_news();
            let (rows, next) = match ahead {
                Ahead::Batch { rows, next } => (rows, next),
                Ahead::EpochEnds { len } => {
                    let epoch = self.cursor.epoch;
                    self.cursor = Cursor { epoch: epoch + 1, position: 0 };
                    self.consumers.say(|generation| Reply::End { generation, epoch, len });
                    continue;
                }
                Ahead::Unknown => return,
                // Due when what came before has been handed over.
                Ahead::Failed(_) if !self.open.is_empty() => return,
                Ahead::Failed(refusal) => return self.halt(refusal),
            };
            let parts: Vec<_> = self
                .attached
                .layout
                .fields
                .iter()
                .map(|field| (field.offset as usize, field.row_bytes as usize))
                .collect();
            let writers = writer.rows(&parts, rows.len()).expect("nothing of a fresh slot is out");
            self.open.push_back(Batch::new(self.next_batch, self.cursor, next, writer, rows, writers));
            self.next_batch += 1;
            self.cursor = next;
        }
    }

    /// The client hears of a window before any batch that ends in it.
    fn tell_news(&mut self) {
        for place in self.course.take_news() {
            let place: Place = place.into();
            self.consumers.say(|generation| Reply::Window { generation, place: place.clone() });
        }
    }

    /// Asks for as many rows as the byte budget allows, oldest batch first.
    fn submit_rows(&mut self) {
        if !self.in_flight.has_room() {
            return;
        }
        let mut wanted = Vec::new();
        for batch in &mut self.open {
            while let Some(row) = batch.peek() {
                let size = row.stretch.size(row.index);
                let Some(share) = self.in_flight.admit(size) else { break };
                let row = batch.take();
                // Not even read: what the index knows of it is enough.
                if let Some(refused) = judged(&row, size, self.shared.pipeline.config.max_sample_bytes) {
                    let outcome = Outcome::Bad(refused);
                    let _ = self.events.send(Event::Row(RowDone {
                        batch: batch.id,
                        row,
                        share: share.without_bytes(),
                        outcome,
                    }));
                    continue;
                }
                let job = Job {
                    shared: self.shared.clone(),
                    events: self.events.clone(),
                    generation: self.generation,
                    batch: batch.id,
                    epoch: batch.cursor.epoch,
                    share,
                    row,
                    requested: Instant::now(),
                };
                let pool = Arc::downgrade(&self.pool);
                wanted.push(Wanted {
                    stretch: job.row.stretch.clone(),
                    index: job.row.index,
                    done: Box::new(move |read| {
                        if let Some(pool) = pool.upgrade() {
                            job.start(read, &pool);
                        }
                    }),
                });
            }
            if batch.peek().is_some() {
                break;
            }
        }
        let peak = &self.shared.metrics.peak_in_flight_bytes;
        peak.fetch_max(self.in_flight.bytes(), Relaxed);
        self.course.fetch(wanted);
    }

    fn row_done(&mut self, done: RowDone) {
        let RowDone { batch: id, row, share, outcome } = done;
        drop(share);
        // A row of a batch that a seek made void; with the last of them its slot is free.
        let Some(at) = self.open.front().and_then(|front| id.checked_sub(front.id)) else { return };
        let batch = &mut self.open[at as usize];
        batch.came_back();
        match outcome {
            Outcome::Written => batch.written(row),
            Outcome::Bad(refused) => batch.refused(row, refused, self.shared.pipeline.config.on_error),
            Outcome::Fatal(refusal) => batch.fail(refusal),
            // A seek is on its way whose event is still behind this one. Should the batch be judged before it, then as
            // failed, under a generation that the client no longer listens to.
            Outcome::Skipped => {
                batch.fail(Refusal::new(ErrorKind::Environment, "void: the client went elsewhere"))
            }
        }
    }

    /// Hands over finished batches from the front; stops at the first that is not finished.
    fn deliver(&mut self) {
        while !self.halted && self.has_begun() && self.open.front().is_some_and(Batch::is_finished) {
            let batch = self.open.pop_front().expect("just seen");
            self.hand_over(batch);
        }
    }

    fn hand_over(&mut self, mut batch: Batch) {
        if let Err(refusal) = self.judge(&mut batch) {
            self.halt(refusal);
            return;
        }
        let counts = batch.finish(&self.attached.layout);
        let metrics = &self.shared.metrics;
        metrics.batches.fetch_add(1, Relaxed);
        metrics.rows.fetch_add(u64::from(counts.rows), Relaxed);
        metrics.substituted.fetch_add(u64::from(counts.substituted), Relaxed);
        metrics.dropped.fetch_add(u64::from(counts.dropped), Relaxed);
        let (cursor, next) = (batch.cursor, batch.next);
        let to = match self.is_shared {
            true => self.consumers.served(cursor, next),
            false => self.consumers.ids().collect(),
        };
        let slot = self.slots.hand_over(batch.into_slot(), &to);
        self.laggards.handed_over();
        self.consumers.say_to(&to, |generation| {
            Reply::Ready(Ready {
                generation,
                slot,
                cursor,
                next,
                rows: counts.rows,
                substituted: counts.substituted,
                dropped: counts.dropped,
            })
        });
    }

    /// Books the batch's refused records in delivery order, so that the budget ends a run at the same batch each time.
    fn judge(&mut self, batch: &mut Batch) -> Result<(), Refusal> {
        // Of a stream the share counts from its beginning, for nobody knows how much will come.
        let seen = self.shared.pipeline.supply.len().unwrap_or(batch.next.position);
        let limit = self.shared.pipeline.config.error_budget.limit(seen);
        for (_, refused) in batch.take_refused() {
            if self.shared.pipeline.config.on_error == OnError::Fail {
                let _ = self.quarantine.note(batch.cursor.epoch, &refused, limit);
                let (key, reason) = (&refused.key, &refused.reason);
                return Err(Refusal::new(
                    ErrorKind::Data,
                    format!(
                        "bad record {key}: {reason}; on_error=\"fail\" stops the run (\"substitute\" would continue)"
                    ),
                ));
            }
            match self.quarantine.note(batch.cursor.epoch, &refused, limit) {
                Ok(Some(line)) => {
                    let did = match self.shared.pipeline.config.on_error {
                        OnError::Substitute => "using another sample instead",
                        OnError::Drop => "its row is left out",
                        OnError::Fail => unreachable!("returned above"),
                    };
                    self.consumers.warn(&format!("bad record: {line}; {did}"));
                }
                Ok(None) => {}
                Err(over) => {
                    // The one message of several lines; each of them is printable.
                    let message = format!(
                        "{} bad records exceed the limit of {} (error_budget). The first of them:\n  {}",
                        over.refused,
                        over.limit,
                        over.first.join("\n  ")
                    );
                    return Err(Refusal { kind: ErrorKind::Data, message });
                }
            }
        }
        match batch.verdict() {
            Verdict::Good => Ok(()),
            Verdict::Failed(refusal) => Err(refusal.clone()),
        }
    }

    fn halt(&mut self, refusal: Refusal) {
        self.halted = true;
        self.open.clear();
        let Refusal { kind, message } = refusal;
        self.consumers.say(|generation| Reply::Failed { generation, kind, message: message.clone() });
    }

    fn seek(&mut self, consumer: ConsumerId, generation: u64, cursor: Cursor, place: Option<Place>) {
        let cursor = self.batching.settle(cursor);
        if self.is_shared {
            return self.seek_shared(consumer, generation, cursor);
        }
        if let Some(consumer) = self.consumers.get(consumer) {
            (consumer.generation, consumer.wants) = (generation, Some(cursor));
        }
        self.go_to(generation, cursor, place);
    }

    /// Goes on from elsewhere.
    fn go_to(&mut self, generation: u64, cursor: Cursor, place: Option<Place>) {
        self.open.clear();
        self.generation = generation;
        self.shared.generation.fetch_max(generation, Relaxed);
        self.cursor = cursor;
        self.halted = false;
        if let Err(refusal) = self.course.seek(self.cursor, place.map(Into::into)) {
            self.halt(refusal);
        }
        self.tell_news();
    }

    fn release(&mut self, consumer: ConsumerId, slot: u32) {
        if !self.slots.release(consumer, slot) {
            self.consumers.complain(consumer, slot);
        }
    }

    fn stats(&self, consumer: Measured) -> Stats {
        let Pipeline { threads, sharers, .. } = *self.shared.pipeline;
        let mut stats = self.shared.metrics.stats(threads, sharers);
        self.course.count(&mut stats);
        (stats.limit, stats.verdict) = metrics::verdict(&stats, sharers, consumer);
        stats
    }
}

/// The refusal of a row's record that need not be read: the source says that it is a bad one, or no buffer of its size
/// is ever asked for.
fn judged(row: &Row, bytes: u64, limit: u64) -> Option<Refused> {
    let oversized = || {
        (bytes > limit)
            .then(|| format!("{bytes} encoded bytes are more than the limit of {limit} (max_sample_bytes)"))
    };
    let reason = row.stretch.verdict(row.index).or_else(oversized)?;
    Some(row.refused(reason, bytes, String::new()))
}

/// The client knows places by the token's type, sources by their own; they are the same data.
impl From<connectors::Place> for Place {
    fn from(place: connectors::Place) -> Self {
        let connectors::Place { epoch, window, first, count, state } = place;
        Self { epoch, window, first, count, state }
    }
}

impl From<Place> for connectors::Place {
    fn from(place: Place) -> Self {
        let Place { epoch, window, first, count, state } = place;
        Self { epoch, window, first, count, state }
    }
}

#[cfg(test)]
mod tests;
