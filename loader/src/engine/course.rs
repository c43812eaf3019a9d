//! One rank's way through its source: the rows of its next batch, the end of an epoch, or nothing that is known yet;
//! and the records of these rows.
//!
//! An indexed source knows all of it at once, epoch after epoch, and reads records when they are asked for. A stream
//! knows it window by window, learns that an epoch has ended with its last one, and has the records of a window in
//! memory.

use std::collections::VecDeque;
use std::sync::Arc;

use fuelrail_connectors::{
    Done, IndexedSource, Place, ReadRequest, Reader, ReaderConfig, SourceError, StreamStats,
};

use super::flow::{Flows, Member, Notify};
use super::lookahead::Lookahead;
use super::stretch::Stretch;
use crate::order::{Order, derive};
use crate::pipeline::Supply;
use crate::plan::{Batching, Cursor};
use crate::protocol::{ErrorKind, Stats, StreamCounters};
use crate::refusal::Refusal;

/// A row of a batch to come.
pub(super) struct PlannedRow {
    pub position: u64,
    pub index: u64,
    pub stretch: Arc<Stretch>,
}

/// What comes next.
pub(super) enum Ahead {
    /// A batch: this rank's rows, and where the next one begins.
    Batch { rows: Vec<PlannedRow>, next: Cursor },
    /// The epoch has this many records, and no further batch.
    EpochEnds { len: u64 },
    /// Not known yet.
    Unknown,
    /// Nothing, ever.
    Failed(Refusal),
}

/// A record that is to be fetched, and who takes it.
pub(super) struct Wanted {
    pub stretch: Arc<Stretch>,
    pub index: u64,
    pub done: Done,
}

/// Whose rows of each global batch they are.
#[derive(Clone, Copy)]
pub(super) struct Seat {
    pub rank: u64,
    pub batching: Batching,
}

/// A rank's way through its source.
pub(super) enum Course {
    Indexed(IndexedCourse),
    Stream(StreamCourse),
}

pub(super) struct IndexedCourse {
    seat: Seat,
    source: Arc<dyn IndexedSource>,
    order: Order,
    /// The cursor's epoch.
    current: Option<Arc<Stretch>>,
    /// Absent as long as nobody wants more than to know which records come.
    reading: Option<Reading>,
}

struct Reading {
    reader: Box<dyn Reader>,
    /// What the reader is told beyond the open batches.
    lookahead: Lookahead,
}

pub(super) struct StreamCourse {
    seat: Seat,
    flows: Arc<Flows>,
    seed: u64,
    shuffle: bool,
    notify: Notify,
    /// Absent before the first seek: a client that loads a state would have what comes before it read for nothing.
    member: Option<Member>,
    /// Windows that are not wholly behind the cursor.
    windows: VecDeque<Arc<Stretch>>,
    /// Epochs whose last window has come, with their lengths.
    ends: VecDeque<(u64, u64)>,
    /// Places that the client has not been told of.
    news: Vec<Place>,
}

impl Supply {
    /// The way of one rank. `notify` is called when a stream has something new.
    pub(super) fn course(&self, seat: Seat, notify: Notify) -> Course {
        match self {
            Self::Indexed { source, order } => Course::Indexed(IndexedCourse {
                seat,
                source: source.clone(),
                order: order.clone(),
                current: None,
                reading: None,
            }),
            &Self::Stream { ref flows, seed, shuffle } => Course::Stream(StreamCourse {
                seat,
                flows: flows.clone(),
                seed,
                shuffle,
                notify,
                member: None,
                windows: VecDeque::new(),
                ends: VecDeque::new(),
                news: Vec::new(),
            }),
        }
    }
}

impl Course {
    /// Makes ready to [`fetch`](Self::fetch).
    pub fn start_reading(&mut self, config: &ReaderConfig) -> Result<(), Refusal> {
        let Self::Indexed(course) = self else { return Ok(()) };
        let reader = course.source.clone().reader(config);
        let reader = reader.map_err(|error| Refusal::new(ErrorKind::Source, error.to_string()))?;
        let lookahead = Lookahead::new(course.order.clone(), reader.horizon());
        course.reading = Some(Reading { reader, lookahead });
        Ok(())
    }

    /// What comes at a cursor. `idle`: the feed has nothing in hand and can only wait.
    pub fn ahead(&mut self, cursor: Cursor, idle: bool) -> Ahead {
        match self {
            Self::Indexed(course) => course.ahead(cursor),
            Self::Stream(course) => course.ahead(cursor, idle),
        }
    }

    /// Fetches records, in this order of urgency. Returns at once.
    pub fn fetch(&self, wanted: Vec<Wanted>) {
        match self {
            Self::Indexed(IndexedCourse { reading, .. }) if !wanted.is_empty() => {
                let request = |Wanted { index, done, .. }: Wanted| ReadRequest { index, done };
                let reading = reading.as_ref().expect("reading was started");
                reading.reader.submit(wanted.into_iter().map(request).collect());
            }
            Self::Indexed(_) => {}
            Self::Stream(_) => {
                for Wanted { stretch, index, done } in wanted {
                    done(stretch.window().expect("a stream is read in windows").read(index));
                }
            }
        }
    }

    /// Tells a reader that decodes blocks what comes behind a cursor.
    pub fn look_ahead(&mut self, cursor: Cursor) {
        let Self::Indexed(IndexedCourse { seat, reading: Some(reading), .. }) = self else { return };
        let expected = reading.lookahead.beyond(cursor, &seat.batching, seat.rank);
        if !expected.is_empty() {
            reading.reader.expect(&expected);
        }
    }

    /// Goes on from elsewhere. Of a stream, `place` is the window in or behind which the cursor lies; it may be left
    /// out at the start of an epoch.
    pub fn seek(&mut self, cursor: Cursor, place: Option<Place>) -> Result<(), Refusal> {
        match self {
            // Its stretches are whole epochs, found by the cursor alone.
            Self::Indexed(_) => Ok(()),
            Self::Stream(course) => course.seek(cursor, place),
        }
    }

    /// Places that a client needs to know before it can say where it stands.
    pub fn take_news(&mut self) -> Vec<Place> {
        match self {
            Self::Indexed(_) => Vec::new(),
            Self::Stream(course) => std::mem::take(&mut course.news),
        }
    }

    /// A checkpoint holds this place.
    pub fn saved(&self, place: &Place, position: u64) {
        if let Self::Stream(StreamCourse { member: Some(member), .. }) = self {
            member.saved(place, position);
        }
    }

    /// Adds what was read so far.
    pub fn count(&self, stats: &mut Stats) {
        match self {
            Self::Indexed(IndexedCourse { reading, .. }) => {
                let Some(read) = reading.as_ref().map(|reading| reading.reader.stats()) else { return };
                stats.backend = read.backend.to_string();
                (stats.reads, stats.read_bytes) = (read.reads, read.bytes);
                stats.submissions = read.submissions;
            }
            Self::Stream(StreamCourse { member, .. }) => {
                let Some(member) = member else { return };
                let StreamStats { window, records, bytes, lag, partitions } = member.stats();
                stats.backend = "stream".into();
                (stats.reads, stats.read_bytes) = (records, bytes);
                stats.stream = Some(StreamCounters { window, records, bytes, lag, partitions });
            }
        }
    }
}

impl IndexedCourse {
    fn ahead(&mut self, cursor: Cursor) -> Ahead {
        let Seat { rank, batching } = self.seat;
        let stretch = match &self.current {
            Some(stretch) if stretch.epoch == cursor.epoch => stretch,
            _ => {
                let order = self.order.epoch(cursor.epoch);
                let stretch = Stretch::epoch(cursor.epoch, order, self.source.clone());
                self.current.insert(Arc::new(stretch))
            }
        };
        let row =
            |position| PlannedRow { position, index: stretch.index(position), stretch: stretch.clone() };
        let rows = batching.rows(cursor.position, rank).map(row).collect();
        let behind = Cursor { position: batching.after(cursor.position), ..cursor };
        Ahead::Batch { rows, next: batching.settle(behind) }
    }
}

impl StreamCourse {
    fn ahead(&mut self, cursor: Cursor, idle: bool) -> Ahead {
        let Seat { rank, batching } = self.seat;
        if self.member.is_none() {
            return Ahead::Unknown;
        }
        self.take_in();
        let Cursor { epoch, position } = cursor;
        while self.windows.front().is_some_and(|window| window.epoch < epoch) {
            self.windows.pop_front();
        }
        self.ends.retain(|(of, _)| *of >= epoch);
        let len = self.ends.front().filter(|(of, _)| *of == epoch).map(|(_, len)| *len);
        let batching = Batching { len: len.or(batching.len), ..batching };
        if let Some(len) = len
            && batching.batches_from(position) == Some(0)
        {
            if position == 0 {
                // Epochs without a batch would be gone through for ever.
                return Ahead::Failed(Refusal::new(
                    ErrorKind::Config,
                    format!(
                        "drop_last leaves no batch: the {len} records of the range are fewer than batch_size {} x world_size {}",
                        batching.batch_size, batching.world_size
                    ),
                ));
            }
            return Ahead::EpochEnds { len };
        }
        let until = batching.after(position);
        let known =
            self.windows.iter().filter(|window| window.epoch == epoch).map(|window| window.end()).max();
        if known.unwrap_or(position) < until {
            return self.why_unknown(batching.global_batch(), idle);
        }
        let rows = batching.rows(position, rank).map(|position| {
            let holds = |window: &&Arc<Stretch>| window.epoch == epoch && position < window.end();
            let stretch = self.windows.iter().find(holds).expect("known as far as the batch reaches");
            PlannedRow { position, index: stretch.index(position), stretch: stretch.clone() }
        });
        let rows = rows.collect();
        while self.windows.front().is_some_and(|window| window.epoch == epoch && window.end() <= until) {
            self.windows.pop_front();
        }
        Ahead::Batch { rows, next: Cursor { epoch, position: until } }
    }

    fn why_unknown(&self, global_batch: u64, idle: bool) -> Ahead {
        let member = self.member.as_ref().expect("checked by the caller");
        if let Some(error) = member.failed() {
            return Ahead::Failed(refusal(&error));
        }
        if idle && member.is_stuck() {
            let mib = self.flows.window_memory() >> 20;
            return Ahead::Failed(Refusal::new(
                ErrorKind::Config,
                format!(
                    "the {global_batch} records of one batch over all ranks do not fit into {mib} MiB, twice window_bytes: \
                     raise window_bytes, or lower batch_size"
                ),
            ));
        }
        Ahead::Unknown
    }

    /// Takes the flow's new windows over.
    fn take_in(&mut self) {
        let Some(member) = &self.member else { return };
        for (window, hold) in member.take() {
            let place = window.place.clone();
            if window.last {
                self.ends.push_back((place.epoch, place.end()));
            }
            if place.count > 0 {
                let order = match self.shuffle {
                    true => Order::shuffled(place.count, derive(self.seed, place.window, WINDOW)),
                    false => Order::sequential(place.count, self.seed),
                };
                self.windows.push_back(Arc::new(Stretch::of_window(order.epoch(place.epoch), window, hold)));
            }
            self.news.push(place);
        }
    }

    fn seek(&mut self, cursor: Cursor, place: Option<Place>) -> Result<(), Refusal> {
        self.windows.clear();
        self.ends.clear();
        self.news.clear();
        self.member = None;
        let source = self.flows.source();
        if cursor.epoch > 0 && !source.is_bounded() {
            return Err(Refusal::new(
                ErrorKind::Config,
                format!("epoch {} does not exist: a stream without an end has one epoch, 0", cursor.epoch),
            ));
        }
        let place = match place {
            Some(place) => place,
            None if cursor.position == 0 => source.origin(cursor.epoch),
            None => {
                return Err(Refusal::new(
                    ErrorKind::Protocol,
                    format!("position {} of a stream was asked for without its window", cursor.position),
                ));
            }
        };
        if place.epoch != cursor.epoch || !(place.first..=place.end()).contains(&cursor.position) {
            return Err(Refusal::new(
                ErrorKind::Protocol,
                format!("position {} does not lie in the window that came with it", cursor.position),
            ));
        }
        let again = cursor.position < place.end();
        let Seat { rank, batching } = self.seat;
        let joined = self.flows.join(&place, again, rank, batching.world_size, self.notify.clone());
        self.member = Some(joined.map_err(|error| refusal(&error))?);
        // So that a token can be written before the first window has come.
        self.news.push(place);
        Ok(())
    }
}

/// Keeps the orders of windows apart from other uses of the seed.
const WINDOW: u64 = u64::MAX - 7;

fn refusal(error: &SourceError) -> Refusal {
    let kind = if error.is_config() { ErrorKind::Config } else { ErrorKind::Source };
    Refusal::new(kind, error.to_string())
}
