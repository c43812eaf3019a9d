//! The thread that reads windows, one after the other.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use xxhash_rust::xxh3::Xxh3;

use super::client::{self, Trouble};
use super::config::Cut;
use super::marks::Scout;
use super::newcomers::{self, Newcomers};
use super::place::{Partition, Range, Ranges};
use super::plan::{self, Taking};
use super::session::{Look, Session};
use super::{Core, Kafka};
use crate::{Place, Sink, SourceError, StreamStats, Window};

/// How long a thread that waits sleeps before it looks again.
const NAP: Duration = Duration::from_millis(20);

/// The ends of logs are not asked for more often than this, and with many partitions less often.
const ASK: Duration = Duration::from_millis(100);
const ASK_EACH: Duration = Duration::from_micros(200);

/// Time between two lines in the log about how far a stream has come; of every window there is one for debugging.
const TOLD: Duration = Duration::from_secs(30);

/// What the thread and its owner share.
#[derive(Default)]
pub(super) struct Shared {
    stop: AtomicBool,
    stats: Mutex<StreamStats>,
    /// What is to be committed, if anything new is.
    saved: Mutex<Option<Vec<(Partition, i64)>>>,
}

impl Shared {
    pub(super) fn new(stats: StreamStats) -> Self {
        Self { stats: Mutex::new(stats), ..Self::default() }
    }

    /// What has been done so far.
    pub(super) fn stats(&self) -> MutexGuard<'_, StreamStats> {
        self.stats.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// These are to be committed.
    pub(super) fn save(&self, offsets: Vec<(Partition, i64)>) {
        *self.saved() = Some(offsets);
    }

    fn saved(&self) -> MutexGuard<'_, Option<Vec<(Partition, i64)>>> {
        self.saved.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the thread to end.
    pub(super) fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

/// Has glibc keep the memory of a window for the next one. By default it gives 128 KiB and more back to the system at
/// once, and every page that comes back costs a fault: a tenth of the time of reading records of 100 KB
/// (examples/kafka_bench.rs). A large block that is freed raises its thresholds, to this and to twice as much
/// (mallopt(3), "dynamic mmap threshold"); elsewhere it does nothing.
fn keep_freed_memory() {
    drop(std::hint::black_box(Vec::<u8>::with_capacity(31 << 20)));
}

/// Settings for reading so many partitions in the memory that was announced.
fn client_for(core: &Core, partitions: usize) -> Result<ClientConfig, SourceError> {
    let announced = core.found.partitions.len();
    if partitions <= announced {
        return Ok(core.client.clone());
    }
    client::configure(&core.config, core.sizes.spread(&core.config.properties, announced, partitions))
}

/// Starts asking how far these reach, and who else is there.
fn scout(
    core: &Core,
    client: &ClientConfig,
    partitions: &Arc<[Partition]>,
    trouble: &Arc<Mutex<Trouble>>,
) -> Result<Arc<Scout>, SourceError> {
    let mut settings = client.clone();
    // It is in no group and fetches nothing.
    settings.remove("group.id").set("statistics.interval.ms", "0");
    let consumer = client::connect(&core.config, &settings, partitions, trouble)?;
    // What comes later lies behind the end of a stream that has one.
    let join = matches!(core.cut, Cut::Records { .. });
    let newcomers = (!core.bounded).then(|| Newcomers::new(&core.config, join));
    Ok(Arc::new(Scout::new(consumer, partitions.clone(), newcomers)))
}

/// The thread's own state.
pub(super) struct Reading {
    core: Arc<Core>,
    client: ClientConfig,
    /// Names records for those who have no window.
    opened: Arc<Kafka>,
    /// Names those of the next window.
    source: Arc<Kafka>,
    /// The last window.
    place: Place,
    ranges: Ranges,
    scout: Arc<Scout>,
    trouble: Arc<Mutex<Trouble>>,
    shared: Arc<Shared>,
    sink: Arc<dyn Sink>,
    began: Instant,
    /// When the log was last told how far it has come.
    told: Option<Instant>,
}

/// The thread has been told to end.
struct Stopped;

/// What a step of the thread ends with: a value, an error for the sink, or the end.
type Step<T> = Result<Result<T, Stopped>, SourceError>;

/// A value, or the way out when the thread has been told to end.
macro_rules! go_on {
    ($step:expr) => {
        match $step? {
            Ok(value) => value,
            Err(Stopped) => return Ok(Err(Stopped)),
        }
    };
}

impl Reading {
    pub(super) fn new(
        opened: Arc<Kafka>,
        from: Place,
        ranges: Ranges,
        shared: Arc<Shared>,
        sink: Arc<dyn Sink>,
    ) -> Result<Self, SourceError> {
        let core = opened.core.clone();
        let source = Arc::new(Kafka::with_partitions(core.clone(), ranges.partitions.clone()));
        let trouble = Arc::default();
        let client = client_for(&core, ranges.partitions.len())?;
        let scout = scout(&core, &client, &ranges.partitions, &trouble)?;
        let (began, told) = (Instant::now(), None);
        Ok(Self {
            core,
            client,
            opened,
            source,
            place: from,
            ranges,
            scout,
            trouble,
            shared,
            sink,
            began,
            told,
        })
    }

    /// The stream's name in messages.
    pub(super) fn name(&self) -> String {
        self.core.config.name()
    }

    /// Reads until it is told to end.
    pub(super) fn run(&mut self, again: bool) -> Result<(), SourceError> {
        keep_freed_memory();
        self.windows(again).map(drop)
    }

    /// Reads windows until the end of time.
    fn windows(&mut self, again: bool) -> Step<()> {
        let mut session = None;
        if again && self.place.window > 0 {
            let starts: Vec<i64> = self.ranges.ranges.iter().map(|range| range.from).collect();
            let logs = self.begin(&mut session, &starts)?;
            go_on!(self.room(logs));
            go_on!(self.again(logs));
        } else if self.place.window > 0 && self.is_last() {
            // Whoever begins behind the last window of an epoch hears that it has ended.
            let ends: Vec<i64> = self.ranges.ranges.iter().map(|range| range.to).collect();
            let nothing =
                Read { records: Vec::new(), ends: ends.clone(), hash: Xxh3::new().digest128(), bytes: 0 };
            self.deliver(&ends, nothing)?;
        }
        loop {
            if self.is_last() {
                // The next epoch covers the same offsets, and begins with a consumer that knows nothing of this one's
                // end.
                session = None;
                for range in &mut self.ranges.ranges {
                    let lo = range.bounds.map_or(range.to, |(lo, _)| lo);
                    (range.from, range.to) = (lo, lo);
                }
                self.place = Place {
                    epoch: self.place.epoch + 1,
                    window: 0,
                    first: 0,
                    count: 0,
                    ..self.place.clone()
                };
            }
            let starts: Vec<i64> = self.ranges.ranges.iter().map(|range| range.to).collect();
            // Before there is room: it fetches ahead, knows the lag, and tells the broker what was saved.
            let logs = self.begin(&mut session, &starts)?;
            go_on!(self.room(logs));
            let Some(ends) = go_on!(self.plan(logs, &starts)) else {
                // A new session takes all up where this one is.
                session = None;
                let found = self.scout.newcomers().unwrap_or_default();
                self.join(&found)?;
                continue;
            };
            let taking = Taking::new(starts.clone(), ends, self.core.config.window_bytes());
            let read = go_on!(self.read(logs, taking));
            self.deliver(&starts, read)?;
        }
    }

    /// Partitions have joined the stream.
    fn join(&mut self, found: &[(Partition, i64)]) -> Result<(), SourceError> {
        tracing::info!(
            "Kafka: {} partitions have joined {} and are read from window {} on ({})",
            found.len(),
            self.core.config.name(),
            self.place.window + 1,
            newcomers::names(found.iter().map(|(partition, _)| partition))
        );
        self.ranges.join(found);
        let partitions = &self.ranges.partitions;
        self.client = client_for(&self.core, partitions.len())?;
        self.scout = scout(&self.core, &self.client, partitions, &self.trouble)?;
        self.source = Arc::new(Kafka::with_partitions(self.core.clone(), partitions.clone()));
        self.opened.learn(partitions.clone());
        self.shared.stats().partitions = partitions.len() as u64;
        Ok(())
    }

    /// The session, started if there is none.
    fn begin<'session>(
        &self,
        session: &'session mut Option<Session>,
        starts: &[i64],
    ) -> Result<&'session mut Session, SourceError> {
        if session.is_none() {
            let hi: Vec<i64> =
                self.ranges.ranges.iter().map(|range| range.bounds.map_or(i64::MAX, |(_, hi)| hi)).collect();
            *session = Some(Session::new(
                &self.core,
                &self.client,
                &self.ranges.partitions,
                &self.scout,
                &self.trouble,
                starts,
                &hi,
            )?);
        }
        Ok(session.as_mut().expect("it was started"))
    }

    /// Looks after everything but reading.
    fn tend(&self, session: &mut Session, nap: Duration) -> Step<()> {
        if self.shared.is_stopped() {
            return Ok(Err(Stopped));
        }
        session.serve(nap)?;
        if let Some(offsets) = self.shared.saved().take() {
            session.commit(&offsets);
        }
        self.shared.stats().lag = self.lag();
        Ok(Ok(()))
    }

    /// Records between the last window and the end of the stream or of the epoch, by the brokers' last word.
    fn lag(&self) -> Option<u64> {
        let marks = self.scout.marks()?;
        let behind = |(&end, range): (&i64, &Range)| {
            (range.bounds.map_or(end, |(_, hi)| hi.min(end)) - range.to).max(0) as u64
        };
        Some(marks.end.iter().zip(&self.ranges.ranges).map(behind).sum())
    }

    /// Waits until another window may be read.
    fn room(&self, session: &mut Session) -> Step<()> {
        go_on!(self.tend(session, Duration::ZERO));
        while !self.sink.has_room() {
            go_on!(self.tend(session, NAP));
        }
        Ok(Ok(()))
    }

    /// Waits until it is known where the next window ends, but for its bytes; `None` when partitions are to join first.
    fn plan(&self, session: &mut Session, starts: &[i64]) -> Step<Option<Vec<i64>>> {
        let began = Instant::now();
        let mut first = None;
        let pace = ASK + ASK_EACH * starts.len() as u32;
        loop {
            if let Some(marks) = session.marks() {
                if self.scout.newcomers().is_some() {
                    return Ok(Ok(None));
                }
                let hi = |slot: usize| self.ranges.ranges[slot].bounds.map(|(_, hi)| hi);
                let known = |slot: usize| hi(slot).map_or(marks.end[slot], |hi| hi.min(marks.end[slot]));
                let slots = 0..starts.len();
                let available: Vec<u64> =
                    slots.clone().map(|slot| (known(slot) - starts[slot]).max(0) as u64).collect();
                let complete: Vec<bool> =
                    slots.clone().map(|slot| hi(slot).is_some_and(|hi| marks.end[slot] >= hi)).collect();
                let total: u64 = available.iter().sum();
                let quotas = match self.core.cut {
                    Cut::Offsets(each) => {
                        let wanted =
                            |slot: usize| hi(slot).map_or(each, |hi| each.min((hi - starts[slot]) as u64));
                        let wanted: Vec<u64> = slots.map(wanted).collect();
                        wanted
                            .iter()
                            .zip(&available)
                            .all(|(wanted, available)| wanted <= available)
                            .then_some(wanted)
                    }
                    Cut::Records { records, .. } if total >= records => {
                        // A short log may have become longer since it was asked for, and then it has a larger share.
                        let fresh =
                            marks.asked >= began || !plan::depends_on_more(&available, &complete, records);
                        fresh.then(|| plan::quotas(&available, records))
                    }
                    Cut::Records { .. } if complete.iter().all(|complete| *complete) => Some(available),
                    Cut::Records { patience, .. } if total > 0 => {
                        let first: Instant = *first.get_or_insert_with(Instant::now);
                        (first.elapsed() >= patience).then_some(available)
                    }
                    Cut::Records { .. } => None,
                };
                if let Some(quotas) = quotas {
                    let end = |(start, quota): (&i64, u64)| start + quota as i64;
                    return Ok(Ok(Some(starts.iter().zip(quotas).map(end).collect())));
                }
                if marks.asked.elapsed() > pace {
                    session.ask();
                }
            }
            go_on!(self.tend(session, NAP / 4));
        }
    }

    /// Reads the records of a window.
    fn read(&self, session: &mut Session, mut taking: Taking) -> Step<Read> {
        let mut records = Vec::new();
        let mut tended = Instant::now();
        while let Some((slot, _)) = taking.log() {
            match session.look(slot, taking.end(slot))? {
                Look::Nothing => taking.finished(slot),
                Look::Found(offset) => {
                    if taking.found(slot, offset) && taking.take(session.cost(slot)) {
                        records.push(session.take(slot));
                    }
                }
                Look::Wait => tended -= NAP,
            }
            if tended.elapsed() >= NAP {
                go_on!(self.tend(session, Duration::ZERO));
                tended = Instant::now();
            }
        }
        // Into the canonical order: by slot, then by offset.
        records.sort_unstable_by_key(|head| head.record.id);
        let mut hasher = Xxh3::new();
        records.iter().for_each(|head| hasher.update(&head.digest.to_le_bytes()));
        let bytes = records.iter().map(|head| head.record.stored).sum();
        let records = records.into_iter().map(|head| head.record).collect();
        Ok(Ok(Read { records, ends: taking.into_ends(), hash: hasher.digest128(), bytes }))
    }

    /// Reads the last window again and compares it.
    fn again(&mut self, session: &mut Session) -> Step<()> {
        let starts: Vec<i64> = self.ranges.ranges.iter().map(|range| range.from).collect();
        let ends: Vec<i64> = self.ranges.ranges.iter().map(|range| range.to).collect();
        let taking = Taking::new(starts.clone(), ends.clone(), self.core.config.window_bytes());
        let read = go_on!(self.read(session, taking));
        if read.records.len() as u64 != self.place.count || read.hash != self.ranges.hash || read.ends != ends
        {
            return Err(self.changed(&read));
        }
        let last = self.is_last();
        self.hand_over(read, last);
        Ok(Ok(()))
    }

    /// Says what is not as it was.
    fn changed(&self, read: &Read) -> SourceError {
        let found = |slot: usize| read.records.iter().filter(|record| record.id >> 48 == slot as i64).count();
        let slots = || {
            (0..self.ranges.ranges.len())
                .filter(|&slot| self.ranges.ranges[slot].from < self.ranges.ranges[slot].to)
        };
        let describe = |slot: usize| {
            let range = &self.ranges.ranges[slot];
            format!(
                "{} offsets {} to {} ({} records now)",
                self.ranges.partitions[slot],
                range.from,
                range.to - 1,
                found(slot)
            )
        };
        // Where offsets are missing, records were removed; where none is, something was written anew.
        let gaps: Vec<usize> = slots()
            .filter(|&slot| {
                (found(slot) as i64) < self.ranges.ranges[slot].to - self.ranges.ranges[slot].from
            })
            .collect();
        let named: Vec<usize> = if gaps.is_empty() { slots().collect() } else { gaps };
        let more = if named.len() > 4 { format!(" and {} more", named.len() - 4) } else { String::new() };
        let named: Vec<String> = named.into_iter().take(4).map(describe).collect();
        SourceError::data(format!(
            "window {} of epoch {} is not what it was when the checkpoint was made: {} records instead of {}{}: \
             {}{more}. Compaction, retention or a re-created topic changed it, so training cannot continue \
             exactly from there; start a new run, and read topics whose cleanup.policy is \"delete\"",
            self.place.window,
            self.place.epoch,
            read.records.len(),
            self.place.count,
            if read.records.len() as u64 == self.place.count { " with other contents" } else { "" },
            named.join(", ")
        ))
    }

    /// Whether nothing comes behind the last window in its epoch.
    fn is_last(&self) -> bool {
        self.ranges.ranges.iter().all(|range| range.bounds.is_some_and(|(_, hi)| range.to == hi))
    }

    /// Makes what was read the last window, and delivers it.
    fn deliver(&mut self, starts: &[i64], read: Read) -> Result<(), SourceError> {
        for ((range, &from), &to) in self.ranges.ranges.iter_mut().zip(starts).zip(&read.ends) {
            (range.from, range.to) = (from, to);
        }
        self.ranges.hash = read.hash;
        let last = self.is_last();
        if read.records.is_empty() && !last {
            // Markers, aborted records: offsets without anything in them. The position does not move.
            return Ok(());
        }
        if read.records.is_empty() && self.place.end() == 0 {
            return Err(SourceError::data(format!(
                "{} has no record between start and end: its offsets hold transaction markers, aborted or compacted records only",
                self.core.config.name()
            )));
        }
        self.place = Place {
            epoch: self.place.epoch,
            window: self.place.window + 1,
            first: self.place.end(),
            count: read.records.len() as u64,
            state: self.ranges.write(),
        };
        self.hand_over(read, last);
        Ok(())
    }

    fn hand_over(&mut self, read: Read, last: bool) {
        let stats = {
            let mut stats = self.shared.stats();
            stats.window = self.place.window;
            stats.lag = self.lag().or(stats.lag);
            stats.records += read.records.len() as u64;
            stats.bytes += read.bytes;
            stats.clone()
        };
        self.tell(&stats);
        let source = self.source.clone();
        self.sink.window(Window { place: self.place.clone(), last, records: read.records, source });
    }
}

impl Reading {
    /// Says in the log how far it has come.
    fn tell(&mut self, stats: &StreamStats) {
        let due = self.told.is_none_or(|told| told.elapsed() >= TOLD);
        if !due && !tracing::enabled!(tracing::Level::DEBUG) {
            return;
        }
        let ranges =
            self.ranges.partitions.iter().zip(&self.ranges.ranges).filter(|(_, range)| range.from < range.to);
        let shown: Vec<String> = ranges
            .clone()
            .take(4)
            .map(|(partition, range)| format!("{partition} {} to {}", range.from, range.to - 1))
            .collect();
        let more = ranges.count().saturating_sub(shown.len());
        let more = if more > 0 { format!(" and {more} partitions more") } else { String::new() };
        let behind = stats
            .lag
            .map_or_else(|| "the end is not known yet".into(), |lag| format!("{lag} behind the end"));
        let rate = stats.records as f64 / self.began.elapsed().as_secs_f64().max(1e-3);
        let Place { window, epoch, count, .. } = self.place;
        let line = format!(
            "Kafka: window {window} of epoch {epoch} has {count} records (offsets of {}{more}); {} records so far, {rate:.0}/s, \
             {behind}",
            shown.join(", "),
            stats.records
        );
        if due {
            self.told = Some(Instant::now());
            tracing::info!("{line}");
        } else {
            tracing::debug!("{line}");
        }
    }
}

/// The records of a window and where it ends.
struct Read {
    records: Vec<crate::StreamRecord>,
    ends: Vec<i64>,
    hash: u128,
    bytes: u64,
}
