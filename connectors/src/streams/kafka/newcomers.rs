//! Partitions that come later: of topics that have got more of them, and of new topics that a pattern means.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use rdkafka::Offset;
use rdkafka::consumer::Consumer as _;
use rdkafka::error::KafkaResult;

use super::ask::{ANSWER, offsets};
use super::client::Consumer;
use super::config::{KafkaConfig, Wanted};
use super::place::{MAX_PARTITIONS, Partition};

/// Looked for this often, unless the user says otherwise by the property of librdkafka that is meant for it.
const EVERY: Duration = Duration::from_secs(30);
const EVERY_PROPERTY: &str = "topic.metadata.refresh.interval.ms";

/// Names shown in a message.
const SHOWN: usize = 8;

/// Looks for partitions that are meant and not read yet.
pub(super) struct Newcomers {
    wanted: Vec<Wanted>,
    /// `None`: once and never again.
    every: Option<Duration>,
    /// Whether they are to be read.
    join: bool,
    looked: Option<Instant>,
    /// Those that a message has named.
    told: BTreeSet<Partition>,
}

impl Newcomers {
    /// Nobody has looked yet.
    pub(super) fn new(config: &KafkaConfig, join: bool) -> Self {
        let wanted = config.topics.iter().filter_map(|topic| Wanted::parse(topic).ok()).collect();
        let every = config.properties.get(EVERY_PROPERTY).and_then(|text| text.trim().parse::<i64>().ok());
        let every = match every {
            Some(millis) => u64::try_from(millis).ok().map(Duration::from_millis),
            None => Some(EVERY),
        };
        Self { wanted, every, join, looked: None, told: BTreeSet::new() }
    }

    /// Those that are to be read too, sorted, each with its first offset; `None` when it is not time to look.
    ///
    /// # Errors
    /// When the brokers did not answer.
    pub(super) fn look(
        &mut self,
        consumer: &Consumer,
        known: &[Partition],
    ) -> KafkaResult<Option<Vec<(Partition, i64)>>> {
        let due = match (self.looked, self.every) {
            (None, _) => true,
            (Some(looked), Some(every)) => looked.elapsed() >= every,
            (Some(_), None) => false,
        };
        if !due {
            return Ok(None);
        }
        let known: BTreeSet<&Partition> = known.iter().collect();
        let mut new = self.there(consumer)?;
        new.retain(|partition| !known.contains(partition));
        if known.len() + new.len() >= MAX_PARTITIONS {
            self.warn(&new, &format!("at most {} can be read by one loader", MAX_PARTITIONS - 1));
            new.clear();
        }
        if !self.join {
            self.warn(
                &new,
                "with window_offsets all daemons must cut the same windows without talking to each other, so \
                 none of them may add partitions on its own. Start a new run to read them too",
            );
            new.clear();
        }
        let new: Vec<Partition> = new.into_iter().collect();
        let found = if new.is_empty() {
            Vec::new()
        } else {
            let first = offsets(consumer, &new, Offset::Beginning, ANSWER)?;
            // One whose leader is not elected yet is there next time.
            new.into_iter()
                .zip(first)
                .filter_map(|(partition, first)| Some((partition, first.ok()?)))
                .collect()
        };
        self.looked = Some(Instant::now());
        Ok(Some(found))
    }

    /// Whether it is known who was there at the beginning.
    pub(super) fn has_looked(&self) -> bool {
        self.looked.is_some()
    }

    /// All that are meant.
    fn there(&self, consumer: &Consumer) -> KafkaResult<BTreeSet<Partition>> {
        let mut there = BTreeSet::new();
        let patterns = self.wanted.iter().any(|wanted| matches!(wanted, Wanted::Pattern(_)));
        let names = self.wanted.iter().filter_map(|wanted| match wanted {
            Wanted::Name(name) => Some(Some(name.as_str())),
            Wanted::Pattern(_) => None,
        });
        for asked in names.chain(patterns.then_some(None)) {
            let metadata = consumer.fetch_metadata(asked, ANSWER)?;
            let meant = |name: &str| self.wanted.iter().any(|wanted| wanted.means(name));
            for topic in
                metadata.topics().iter().filter(|topic| topic.error().is_none() && meant(topic.name()))
            {
                let numbers = topic.partitions().iter().map(|partition| partition.id());
                there.extend(numbers.map(|number| Partition { topic: topic.name().into(), number }));
            }
        }
        Ok(there)
    }

    /// Says once that these are not read.
    fn warn(&mut self, new: &BTreeSet<Partition>, why: &str) {
        let untold: Vec<&Partition> = new.difference(&self.told).collect();
        if untold.is_empty() {
            return;
        }
        tracing::warn!("Kafka: new partitions are NOT read ({}): {why}", names(untold.into_iter()));
        self.told.extend(new.iter().cloned());
    }
}

/// The first few names.
pub(super) fn names<'a>(partitions: impl ExactSizeIterator<Item = &'a Partition>) -> String {
    let more = partitions.len().saturating_sub(SHOWN);
    let shown: Vec<String> = partitions.take(SHOWN).map(ToString::to_string).collect();
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("{}{more}", shown.join(", "))
}
