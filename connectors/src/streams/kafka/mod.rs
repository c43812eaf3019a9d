//! Kafka: topics read in windows, exactly once, with the offsets in the model's checkpoint.
//!
//! ```text
//!  partition 0  ──▶ queue ─╮   look · take            window n                    place in the token
//!  partition 1  ──▶ queue ─┼─▶ in step, by offset ──▶ ranges [from, to)      ──▶  {"topic": [[0, from, to], …]}
//!  partition 2  ──▶ queue ─╯   until quotas or        records by (slot, offset)   count, hash
//!                              bytes are reached
//!  librdkafka's threads         reading.rs, plan.rs    place.rs
//! ```
//!
//! # Promises
//!
//! - **Offsets in the token are the truth.** Partitions are assigned explicitly, at explicit offsets: no group, no
//!   rebalance, nothing that a slow trainer could lose. The broker is told what a saved checkpoint holds, for lag
//!   monitors, and is never asked for it.
//! - **A window is complete.** It ends where every record below its ranges' ends was delivered: because a later one has
//!   come, or because librdkafka's own position says so ([`client`]), which also covers markers of transactions,
//!   aborted records and what compaction removed. Only committed records are read, unless `isolation.level` says
//!   otherwise.
//! - **Never a jump.** `auto.offset.reset` is `error`. Offsets that retention removed, a log that ends before what was
//!   read, a topic that was deleted, a window that is not the same when it is read again: each stops the run, naming
//!   partition, range and count.
//! - **Windows of what was there already are pure** ([`plan`]): a function of the place before them and what is stored.
//!   With `window_offsets` all of them are, so that several daemons agree without talking.
//! - **Who joins is read from its beginning.** An endless stream notices partitions that were added, and topics that
//!   its patterns mean ([`newcomers`]); they are part of the next window, whose place says so. Only with
//!   `window_offsets` they are not read (the log says so), since daemons that do not talk would notice them at
//!   different times.
//! - **Memory is bounded.** A partition's queue is left alone when there is no room, and librdkafka then stops fetching
//!   for it; its sizes shrink with the number of partitions. Partitions are read in step, never one far ahead.
//! - **Secrets stay where they are**: no value of a property that may be one is ever shown ([`properties`]).
//!
//! # What it does not do
//!
//! No consumer groups, no schema registry, no transactions of its own.

pub(crate) mod address;
mod arrow;
mod ask;
mod client;
mod columns;
mod config;
mod encode;
mod follow;
mod json;
mod lookup;
mod marks;
mod named;
mod newcomers;
mod place;
mod plan;
mod produce;
mod properties;
mod reading;
mod session;
mod value;

use std::sync::{Arc, PoisonError, RwLock};

use rdkafka::ClientConfig;
use xxhash_rust::xxh3::Xxh3;

use self::config::Cut;
use self::follow::Following;
use self::lookup::Found;
use self::place::{Partition, Ranges};
use self::value::Values;
use crate::{Fingerprint, Follower, Opening, Place, Schema, Sink, SourceError, StreamSource};

pub use self::config::{KafkaConfig, KafkaPoint, KafkaValue};
pub use self::encode::encode_value;
pub use self::produce::Producer;
pub use self::properties::KafkaProperties;

/// Topics of a cluster.
pub(crate) struct Kafka {
    core: Arc<Core>,
    /// By slot. Those that were there at open, or those of the place that is followed; who joins comes behind.
    partitions: RwLock<Arc<[Partition]>>,
}

/// What does not change once a source is open.
struct Core {
    config: KafkaConfig,
    client: ClientConfig,
    sizes: client::Sizes,
    cut: Cut,
    values: Values,
    found: Found,
    bounded: bool,
}

/// Opens a stream: looks for its topics and for where it starts and ends.
///
/// # Errors
/// [`SourceError`] when the configuration makes no sense, no broker answers, or a topic is not there.
pub(crate) fn open(config: &KafkaConfig, opening: &Opening) -> Result<Arc<dyn StreamSource>, SourceError> {
    let cut = config.check()?;
    let values = Values::new(config)?;
    let found = lookup::look(config, opening)?;
    let sizes = client::Sizes::new(&config.properties, found.partitions.len());
    let client = client::configure(config, sizes)?;
    let partitions = found.partitions.clone();
    let bounded = config.end.is_some();
    values.recognised().say_of_stream(&config.name());
    let core = Core { config: config.clone(), client, sizes, cut, values, found, bounded };
    Ok(Arc::new(Kafka::with_partitions(Arc::new(core), partitions)))
}

impl Kafka {
    fn with_partitions(core: Arc<Core>, partitions: Arc<[Partition]>) -> Self {
        Self { core, partitions: RwLock::new(partitions) }
    }

    /// Names these from now on.
    fn learn(&self, partitions: Arc<[Partition]>) {
        *self.partitions.write().unwrap_or_else(PoisonError::into_inner) = partitions;
    }

    fn read_place(&self, place: &Place) -> Result<Ranges, SourceError> {
        if !self.core.bounded && place.epoch != 0 {
            return Err(SourceError::config(format!(
                "epoch {} of a stream without an end: it has one epoch, 0; was `end` left out?",
                place.epoch
            )));
        }
        let ranges = Ranges::read(place, self.core.bounded)?;
        let wanted = self.core.config.topics.iter().map(|topic| config::Wanted::parse(topic));
        let wanted = wanted.collect::<Result<Vec<_>, _>>()?;
        for partition in &*ranges.partitions {
            if !wanted.iter().any(|wanted| wanted.means(&partition.topic)) {
                return Err(SourceError::config(format!(
                    "the checkpoint read topic {:?}, which is not one of {}; give the same topics",
                    partition.topic,
                    self.core.config.topics.join(", ")
                )));
            }
        }
        Ok(ranges)
    }
}

impl StreamSource for Kafka {
    fn schema(&self) -> Schema {
        self.core.values.schema()
    }

    fn classes(&self) -> &[String] {
        self.core.values.classes()
    }

    fn is_labelled(&self) -> bool {
        self.core.values.is_labelled()
    }

    fn fingerprint(&self) -> Fingerprint {
        let config = &self.core.config;
        // Everything but the servers, which are only a way to the cluster, and the properties, which may hold secrets.
        let told =
            KafkaConfig { servers: Vec::new(), properties: KafkaProperties::default(), ..config.clone() };
        let mut hasher = Xxh3::new();
        hasher.update(b"kafka 1");
        hasher.update(self.core.found.cluster.as_deref().unwrap_or_default().as_bytes());
        hasher.update(&serde_json::to_vec(&told).expect("a configuration is JSON"));
        hasher.update(config.properties.get("isolation.level").unwrap_or_default().as_bytes());
        Fingerprint(hasher.digest128())
    }

    fn is_bounded(&self) -> bool {
        self.core.bounded
    }

    fn is_uniform(&self) -> bool {
        let config = &self.core.config;
        match self.core.cut {
            Cut::Offsets(_) => config.start.is_fixed() || config.start == KafkaPoint::Beginning,
            Cut::Records { .. } => {
                config.end.as_ref().is_some_and(KafkaPoint::is_fixed)
                    && (config.start.is_fixed() || config.start == KafkaPoint::Beginning)
            }
        }
    }

    fn origin(&self, epoch: u64) -> Place {
        let found = &self.core.found;
        let ranges = Ranges::origin(found.partitions.clone(), &found.starts, found.bounds.as_deref());
        Place { epoch, window: 0, first: 0, count: 0, state: ranges.write() }
    }

    fn key(&self, id: i64) -> Option<String> {
        let (slot, offset) = place::of_id(id)?;
        let partitions = self.partitions.read().unwrap_or_else(PoisonError::into_inner);
        Some(format!("{}/{offset}", partitions.get(slot)?))
    }

    fn window_bytes(&self) -> u64 {
        self.core.config.window_bytes()
    }

    fn memory(&self) -> u64 {
        self.core.sizes.memory(self.core.found.partitions.len())
    }

    fn check(&self, place: &Place) -> Result<(), SourceError> {
        self.read_place(place).map(drop)
    }

    fn follow(
        self: Arc<Self>,
        from: &Place,
        again: bool,
        sink: Arc<dyn Sink>,
    ) -> Result<Box<dyn Follower>, SourceError> {
        let ranges = self.read_place(from)?;
        self.learn(ranges.partitions.clone());
        let following = Following::start(self, from.clone(), ranges, again, sink)?;
        Ok(Box::new(following))
    }
}
