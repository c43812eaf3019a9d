//! What there is when a source is opened: topics, partitions, and where reading starts and ends.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use rdkafka::Offset;
use rdkafka::consumer::Consumer as _;
use rdkafka::error::{KafkaResult, RDKafkaErrorCode};

use super::ask;
use super::client::{self, Consumer};
use super::config::{KafkaConfig, KafkaPoint, Wanted};
use super::place::{MAX_PARTITIONS, Partition};
use crate::{Opening, SourceError};

/// The brokers must have answered after this.
const DEADLINE: Duration = Duration::from_secs(10);

/// A question gets at least this long, also when there is no time left.
const LEAST: Duration = Duration::from_millis(50);

/// Time before a question that failed is asked again.
const PAUSE: Duration = Duration::from_millis(100);

/// What the brokers refuse for this long they go on refusing.
const REFUSED: Duration = Duration::from_millis(500);

/// The cluster's name has come with the first answer, if it has one.
const NAME: Duration = Duration::from_millis(500);

/// Names shown when a topic is not there.
const SHOWN: usize = 20;

/// What was found.
#[derive(Debug)]
pub(super) struct Found {
    pub partitions: Arc<[Partition]>,
    pub starts: Vec<i64>,
    /// What an epoch covers, if epochs end.
    pub bounds: Option<Vec<(i64, i64)>>,
    pub cluster: Option<String>,
}

/// Looks everything up.
pub(super) fn look(config: &KafkaConfig, opening: &Opening) -> Result<Found, SourceError> {
    let settings = client::configure(config, client::Sizes::new(&config.properties, 1))?;
    let consumer = Arc::new(client::connect(config, &settings, &[], &Arc::default())?);
    let lookup =
        Lookup { config, consumer: &consumer, opening, deadline: Cell::new(Instant::now() + DEADLINE) };
    let found = lookup.everything();
    // Closing waits for connections that may never come.
    std::thread::spawn(move || drop(consumer));
    found
}

struct Lookup<'a> {
    config: &'a KafkaConfig,
    consumer: &'a Arc<Consumer>,
    opening: &'a Opening,
    /// For the question that is being asked.
    deadline: Cell<Instant>,
}

impl Lookup<'_> {
    fn everything(&self) -> Result<Found, SourceError> {
        let partitions = self.partitions()?;
        let cluster = self.consumer.client().fetch_cluster_id(NAME);
        self.answered();
        let low = self.ask(&partitions, Offset::Beginning)?;
        self.answered();
        let end = self.ask(&partitions, Offset::End)?;
        self.answered();
        let starts = self.resolve("start", &self.config.start, &partitions, &low, &end)?;
        for (slot, partition) in partitions.iter().enumerate() {
            // A start that retention has passed by since is no error here: a run that goes on from a token is beyond
            // it. Who does begin there hears of it when reading begins.
            if starts[slot] > end[slot] {
                return Err(SourceError::data(format!(
                    "start: {partition} ends at offset {}, before {}; give an offset that exists, or \"end\"",
                    end[slot], starts[slot]
                )));
            }
        }
        let bounds = match &self.config.end {
            None => None,
            Some(point) => {
                let ends = self.resolve("end", point, &partitions, &low, &end)?;
                let mut more = 0;
                let mut bounds = Vec::with_capacity(ends.len());
                for (slot, partition) in partitions.iter().enumerate() {
                    if ends[slot] < starts[slot] {
                        // A time or one offset for all may lie before a partition's start; named offsets must not.
                        if let KafkaPoint::Offsets(_) = point {
                            return Err(SourceError::config(format!(
                                "end is offset {} of {partition}, before its start ({})",
                                ends[slot], starts[slot]
                            )));
                        }
                    }
                    let hi = ends[slot].max(starts[slot]);
                    more += hi.saturating_sub(end[slot]).max(0);
                    bounds.push((starts[slot], hi));
                }
                if bounds.iter().all(|(lo, hi)| lo == hi) {
                    return Err(SourceError::data(format!(
                        "{} has no record between start and end; its partitions hold {}",
                        self.config.name(),
                        extents(&partitions, &low, &end)
                    )));
                }
                if more > 0 {
                    tracing::warn!(
                        "{}: {more} of the offsets before `end` are not written yet; the epoch continues when they are",
                        self.config.name()
                    );
                }
                Some(bounds)
            }
        };
        Ok(Found { partitions, starts, bounds, cluster })
    }

    /// All partitions of the topics that are meant, in order.
    fn partitions(&self) -> Result<Arc<[Partition]>, SourceError> {
        let wanted =
            self.config.topics.iter().map(|topic| Wanted::parse(topic)).collect::<Result<Vec<_>, _>>()?;
        let mut counts: BTreeMap<String, usize> = BTreeMap::new();
        let mut unknown = BTreeSet::new();
        let patterns = wanted.iter().any(|wanted| matches!(wanted, Wanted::Pattern(_)));
        for wanted in &wanted {
            if let Wanted::Name(name) = wanted {
                match self.topic(Some(name))?.remove(name) {
                    Some(count) if count > 0 => drop(counts.insert(name.clone(), count)),
                    _ => drop(unknown.insert(name.clone())),
                }
            }
        }
        if patterns || !unknown.is_empty() {
            let there = self.topic(None)?;
            if let Some(name) = unknown.first() {
                return Err(self.unknown(&format!("topic {name:?}"), name, &there));
            }
            for (pattern, wanted) in self.config.topics.iter().zip(&wanted) {
                let before = counts.len();
                let mut matched = there.iter().filter(|(name, _)| wanted.means(name)).peekable();
                if matched.peek().is_none() && before == counts.len() && matches!(wanted, Wanted::Pattern(_))
                {
                    return Err(self.unknown(&format!("topic that matches {pattern:?}"), pattern, &there));
                }
                counts.extend(matched.map(|(name, count)| (name.clone(), *count)));
            }
        }
        let total: usize = counts.values().sum();
        if total >= MAX_PARTITIONS {
            return Err(SourceError::config(format!(
                "{} has {total} partitions; at most {} can be read by one loader, so name fewer topics",
                self.config.name(),
                MAX_PARTITIONS - 1
            )));
        }
        Ok(counts
            .into_iter()
            .flat_map(|(topic, count)| {
                let topic: Arc<str> = topic.into();
                (0..count).map(move |number| Partition { topic: topic.clone(), number: number as i32 })
            })
            .collect())
    }

    fn unknown(&self, what: &str, name: &str, there: &BTreeMap<String, usize>) -> SourceError {
        let visible: Vec<&str> =
            there.keys().map(String::as_str).filter(|name| !name.starts_with("__")).collect();
        let near = visible
            .iter()
            .map(|known| (strsim::damerau_levenshtein(name, known), known))
            .min()
            .filter(|(distance, known)| *distance <= 2.max(known.len() / 4));
        let near = near.map_or(String::new(), |(_, known)| format!("; did you mean {known:?}?"));
        let listed = match visible.len() {
            0 => "this user may see none".to_owned(),
            count => {
                let more = if count > SHOWN { format!(" and {} more", count - SHOWN) } else { String::new() };
                format!("there are {}{more}", visible[..count.min(SHOWN)].join(", "))
            }
        };
        SourceError::data(format!("no {what} on {}{near} ({listed})", self.config.servers.join(",")))
    }

    /// Partitions by topic.
    fn topic(&self, name: Option<&str>) -> Result<BTreeMap<String, usize>, SourceError> {
        loop {
            let asked = name.map(str::to_owned);
            let topics = self.until(move |consumer, patience| {
                let metadata = consumer.fetch_metadata(asked.as_deref(), patience)?;
                let topic = |topic: &rdkafka::metadata::MetadataTopic| {
                    let error = topic.error().map(RDKafkaErrorCode::from);
                    (topic.name().to_owned(), topic.partitions().len(), error)
                };
                Ok(metadata.topics().iter().map(topic).collect::<Vec<_>>())
            })?;
            let mut counts = BTreeMap::new();
            let mut waiting = false;
            for (topic, count, error) in topics {
                match error {
                    None => drop(counts.insert(topic, count)),
                    Some(error @ RDKafkaErrorCode::TopicAuthorizationFailed) => {
                        return Err(SourceError::data(format!(
                            "topic {topic:?} may not be read by this user ({error}); grant DESCRIBE and READ to \
                             it, or use another user (sasl.username)"
                        )));
                    }
                    // It is being created, or its leader elected.
                    Some(RDKafkaErrorCode::LeaderNotAvailable) if name.is_some() => waiting = true,
                    Some(_) => {}
                }
            }
            if !waiting || self.left().is_zero() {
                return Ok(counts);
            }
            self.again()?;
        }
    }

    /// One offset of each partition.
    fn ask(&self, partitions: &[Partition], which: Offset) -> Result<Vec<i64>, SourceError> {
        loop {
            let asked = partitions.to_vec();
            let answers =
                self.until(move |consumer, patience| ask::offsets(consumer, &asked, which, patience))?;
            match answers.iter().position(Result::is_err) {
                None => return Ok(answers.into_iter().map(Result::unwrap_or_default).collect()),
                Some(slot) if self.left().is_zero() => {
                    let code = answers[slot].err().unwrap_or(RDKafkaErrorCode::Unknown);
                    return Err(SourceError::data(format!(
                        "cannot get the offsets of {}: {code}",
                        partitions[slot]
                    )));
                }
                // A leader has moved.
                Some(_) => self.again()?,
            }
        }
    }

    fn resolve(
        &self,
        what: &str,
        point: &KafkaPoint,
        partitions: &[Partition],
        low: &[i64],
        end: &[i64],
    ) -> Result<Vec<i64>, SourceError> {
        Ok(match point {
            KafkaPoint::Beginning => low.to_vec(),
            KafkaPoint::End => end.to_vec(),
            KafkaPoint::Offset(offset) => vec![offset_of(*offset)?; partitions.len()],
            KafkaPoint::Time(time) => {
                let now: DateTime<Utc> = std::time::SystemTime::now().into();
                if *time > now {
                    return Err(SourceError::config(format!(
                        "{what} is {time}, which is in the future (it is {now}); an epoch ends where records are \
                         already: give a time that has passed, or leave out `end` to train without one"
                    )));
                }
                let found = self.ask(partitions, Offset::Offset(time.timestamp_millis().max(0)))?;
                // Where no record is as young as that, everything is older.
                found.iter().zip(end).map(|(&found, &end)| if found < 0 { end } else { found }).collect()
            }
            KafkaPoint::Offsets(topics) => {
                let known = |topic: &str, number: u32| {
                    partitions.iter().any(|known| &*known.topic == topic && known.number as u32 == number)
                };
                for (topic, offsets) in topics {
                    if let Some(number) = offsets.keys().find(|&&number| !known(topic, number)) {
                        return Err(SourceError::config(format!(
                            "{what} names {topic}/{number}, which is not read; there are {}",
                            extents(partitions, low, end)
                        )));
                    }
                }
                let offset = |partition: &Partition| {
                    let offset = topics
                        .get(&*partition.topic)
                        .and_then(|offsets| offsets.get(&(partition.number as u32)));
                    offset.copied().ok_or_else(|| {
                        SourceError::config(format!(
                            "{what} names no offset of {partition}; name one of each partition"
                        ))
                    })
                };
                partitions.iter().map(|partition| offset_of(offset(partition)?)).collect::<Result<_, _>>()?
            }
        })
    }

    /// A moment before a question is asked again.
    fn again(&self) -> Result<(), SourceError> {
        std::thread::sleep(PAUSE);
        self.going_on()
    }

    /// Nobody has cancelled it, and the brokers let this client in.
    fn going_on(&self) -> Result<(), SourceError> {
        if self.opening.is_cancelled() {
            return Err(SourceError::cancelled());
        }
        client::serve(self.consumer)?;
        match &self.consumer.client().context().trouble().refused {
            Some((since, reason)) if since.elapsed() > REFUSED => Err(refused(self.config, reason)),
            _ => Ok(()),
        }
    }

    /// The next question has as much time as this one had.
    fn answered(&self) {
        self.deadline.set(Instant::now() + DEADLINE);
    }

    fn left(&self) -> Duration {
        self.deadline.get().saturating_duration_since(Instant::now())
    }

    /// Tries until the deadline, or until it is clear that it is in vain.
    fn until<T: Send + 'static>(
        &self,
        question: impl Fn(&Consumer, Duration) -> KafkaResult<T> + Clone + Send + 'static,
    ) -> Result<T, SourceError> {
        loop {
            let (consumer, question) = (self.consumer.clone(), question.clone());
            let patience = self.left().max(LEAST);
            let asked = move |patience| question(&consumer, patience);
            match ask::patiently(patience, asked, || self.going_on())? {
                Ok(answer) => return Ok(answer),
                Err(error) if self.left().is_zero() => {
                    let trouble = self.consumer.client().context().trouble();
                    let why = trouble.reason.unwrap_or_else(|| error.to_string());
                    return Err(SourceError::data(format!(
                        "no Kafka broker answers at {} within {} s: {why}; check the address and the port, that the broker's \
                         advertised.listeners can be reached from here, and security.protocol",
                        self.config.servers.join(","),
                        DEADLINE.as_secs()
                    )));
                }
                Err(_) => self.again()?,
            }
        }
    }
}

/// The brokers do not let this user or this client in.
pub(super) fn refused(config: &KafkaConfig, reason: &str) -> SourceError {
    SourceError::data(format!(
        "{} refuses this client: {reason}; check security.protocol, sasl.mechanism, the user and the password, \
         and with TLS ssl.ca.location",
        config.servers.join(",")
    ))
}

/// Offsets that retention has removed.
pub(super) fn gone(partition: &Partition, from: i64, low: i64) -> SourceError {
    SourceError::data(format!(
        "{partition}: offsets {from} to {} ({}) are gone: retention removed them before they were read. Nothing \
         was skipped: to continue without them, start a new run at \"beginning\"; to avoid losing data again, \
         raise the topic's retention.ms or retention.bytes, or train faster than it is written",
        low - 1,
        low - from
    ))
}

/// Offsets that were never written, or not in this log.
pub(super) fn beyond(partition: &Partition, from: i64, low: i64, end: i64) -> SourceError {
    SourceError::data(format!(
        "{partition}: offset {from} is beyond the end of the log, which holds {low} to {}: the topic was re-created or \
         truncated, so {} offsets that were read are no longer there. Start a new run, or read the topic that the checkpoint \
         was made with",
        end - 1,
        from - end
    ))
}

fn offset_of(offset: u64) -> Result<i64, SourceError> {
    i64::try_from(offset)
        .ok()
        .filter(|offset| *offset < 1 << 47)
        .ok_or_else(|| SourceError::config(format!("{offset} is larger than any offset")))
}

/// The first few partitions with what they hold.
fn extents(partitions: &[Partition], low: &[i64], end: &[i64]) -> String {
    let one = |slot: usize| format!("{} with offsets {} to {}", partitions[slot], low[slot], end[slot] - 1);
    let some = |slot: usize| {
        if low[slot] == end[slot] { format!("{} (empty)", partitions[slot]) } else { one(slot) }
    };
    let shown: Vec<_> = (0..partitions.len().min(8)).map(some).collect();
    let more =
        if partitions.len() > 8 { format!(" and {} more", partitions.len() - 8) } else { String::new() };
    format!("{}{more}", shown.join(", "))
}
