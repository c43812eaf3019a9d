//! How far the logs reach: asked for all partitions at once, on a thread of its own, because it takes as long as the
//! network, and over a connection of its own, because on the one that fetches an answer waits behind megabytes of
//! records.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::Offset;
use rdkafka::consumer::Consumer as _;
use rdkafka::error::RDKafkaErrorCode;

use super::ask::{ANSWER, is_missing, offsets};
use super::client::{self, Consumer};
use super::newcomers::Newcomers;
use super::place::Partition;

/// Where nobody asks, the ends are looked up so often: for lag, and to notice early what retention does.
const IDLE: Duration = Duration::from_secs(3);

/// Answers to two questions asked less than this apart may be equally old on the broker's side.
const CONFIRM: Duration = Duration::from_secs(1);

/// How far the logs reach, by slot.
#[derive(Clone, Debug)]
pub(super) struct Marks {
    /// When this was asked. What was written before is in it.
    pub asked: Instant,
    pub low: Vec<i64>,
    pub end: Vec<i64>,
}

/// Asks again and again.
pub(super) struct Scout {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    wake: Condvar,
}

#[derive(Default)]
struct State {
    asked: bool,
    stop: bool,
    marks: Option<Arc<Marks>>,
    /// Partitions that are to be read too. Known before the first marks are.
    newcomers: Vec<(Partition, i64)>,
    /// A topic or partition that is not there, and when that was first said without a word to the contrary since.
    missing: Option<(Instant, Instant, String)>,
    trouble: Option<String>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Scout {
    /// Starts asking through this consumer, which nobody else uses.
    pub(super) fn new(
        consumer: Consumer,
        partitions: Arc<[Partition]>,
        newcomers: Option<Newcomers>,
    ) -> Self {
        let shared = Arc::new(Shared { state: Mutex::default(), wake: Condvar::new() });
        let theirs = shared.clone();
        // Not joined: a question on its way ends by itself, and the consumer with it.
        std::thread::Builder::new()
            .name("kafka-marks".into())
            .spawn(move || theirs.run(&consumer, &partitions, newcomers))
            .expect("a thread can be started");
        Self { shared }
    }

    /// The last answer.
    pub(super) fn marks(&self) -> Option<Arc<Marks>> {
        self.shared.lock().marks.clone()
    }

    /// Partitions that are to be read too, each from an offset on.
    pub(super) fn newcomers(&self) -> Option<Vec<(Partition, i64)>> {
        let state = self.shared.lock();
        (!state.newcomers.is_empty()).then(|| state.newcomers.clone())
    }

    /// Wants an answer that is younger than the last one.
    pub(super) fn ask(&self) {
        self.shared.lock().asked = true;
        self.shared.wake.notify_one();
    }

    /// What is gone for good, if the brokers have said so for a while.
    pub(super) fn missing(&self) -> Option<String> {
        let state = self.shared.lock();
        let (first, last, name) = state.missing.as_ref()?;
        (last.duration_since(*first) >= 2 * CONFIRM).then(|| name.clone())
    }

    /// Why there is no answer.
    pub(super) fn trouble(&self) -> Option<String> {
        self.shared.lock().trouble.clone()
    }
}

impl Drop for Scout {
    fn drop(&mut self) {
        self.shared.lock().stop = true;
        self.shared.wake.notify_one();
    }
}

impl Shared {
    fn run(&self, consumer: &Consumer, partitions: &[Partition], mut newcomers: Option<Newcomers>) {
        loop {
            let looked =
                newcomers.as_mut().map_or(Ok(None), |newcomers| newcomers.look(consumer, partitions));
            let newcomers_known = newcomers.as_ref().is_none_or(Newcomers::has_looked);
            let asked = Instant::now();
            let answer = match &looked {
                // Windows do not depend on how long the first look takes.
                Err(error) if !newcomers_known => Err(error.clone()),
                _ => offsets(consumer, partitions, Offset::Beginning, ANSWER)
                    .and_then(|low| Ok((low, offsets(consumer, partitions, Offset::End, ANSWER)?))),
            };
            // Nobody else does it. What is fatal to the one that fetches is told there.
            if let Err(error) = client::serve(consumer) {
                tracing::debug!("{error}");
            }
            let mut state = self.lock();
            if state.stop {
                return;
            }
            match looked {
                Ok(Some(found)) => state.newcomers = found,
                Ok(None) => {}
                Err(error) => {
                    tracing::debug!("Kafka: no answer to whether there are new partitions: {error}")
                }
            }
            match answer {
                Ok((low, end)) => {
                    let failed = |(slot, answer): (usize, &Result<i64, _>)| {
                        answer.as_ref().err().map(|code| (slot, *code))
                    };
                    let first = low.iter().enumerate().chain(end.iter().enumerate()).find_map(failed);
                    match first {
                        None => {
                            let plain = |answers: Vec<Result<i64, _>>| {
                                answers.into_iter().map(Result::unwrap_or_default).collect()
                            };
                            state.marks = Some(Arc::new(Marks { asked, low: plain(low), end: plain(end) }));
                            state.missing = None;
                            state.trouble = None;
                            consumer.client().context().answered();
                        }
                        Some((slot, code)) => state.failed(partitions[slot].to_string(), code),
                    }
                }
                Err(error) => {
                    let code = error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Unknown);
                    drop(state);
                    // Which of them it is about has to be found out.
                    let name = if is_missing(code) { find_missing(consumer, partitions) } else { None };
                    state = self.lock();
                    match name {
                        Some(name) => state.failed(name, RDKafkaErrorCode::UnknownTopicOrPartition),
                        None => state.trouble = Some(error.to_string()),
                    }
                }
            }
            if state.trouble.is_some() {
                drop(state);
                refresh(consumer, partitions);
                state = self.lock();
            }
            // After a failure not at once again.
            let pause =
                if state.trouble.is_some() || state.missing.is_some() { CONFIRM / 2 } else { Duration::ZERO };
            let ready = |state: &mut State| !state.stop && (!state.asked || asked.elapsed() < pause);
            let (mut next, _) = self
                .wake
                .wait_timeout_while(state, if pause.is_zero() { IDLE } else { pause }, ready)
                .unwrap_or_else(PoisonError::into_inner);
            if next.stop {
                return;
            }
            next.asked = false;
        }
    }
}

/// Learns who leads each partition now: what is known of that is kept for a quarter of a minute, and asked for again
/// only by those who fetch.
fn refresh(consumer: &Consumer, partitions: &[Partition]) {
    // One that joined later asks for its topic again; that does not matter.
    for of_topic in partitions.chunk_by(|a, b| a.topic == b.topic) {
        if consumer.fetch_metadata(Some(&of_topic[0].topic), CONFIRM).is_err() {
            return;
        }
    }
}

impl State {
    fn failed(&mut self, name: String, code: RDKafkaErrorCode) {
        let now = Instant::now();
        if is_missing(code) {
            let first = self.missing.as_ref().map_or(now, |(first, ..)| *first);
            self.missing = Some((first, now, name));
        } else {
            self.trouble = Some(format!("{name}: {code}"));
        }
    }
}

/// The first topic or partition that the brokers do not know.
fn find_missing(consumer: &Consumer, partitions: &[Partition]) -> Option<String> {
    for of_topic in partitions.chunk_by(|a, b| a.topic == b.topic) {
        let topic = &of_topic[0].topic;
        let metadata = consumer.fetch_metadata(Some(topic), ANSWER).ok()?;
        let found = metadata.topics().iter().find(|found| found.name() == &**topic);
        let error = found.and_then(|found| found.error()).map(RDKafkaErrorCode::from);
        let Some(found) = found.filter(|_| !error.is_some_and(is_missing)) else {
            return Some(format!("topic {topic}"));
        };
        if error.is_none() {
            let there = |number: i32| found.partitions().iter().any(|partition| partition.id() == number);
            if let Some(gone) = of_topic.iter().find(|partition| !there(partition.number)) {
                return Some(format!("partition {gone}"));
            }
        }
    }
    None
}
