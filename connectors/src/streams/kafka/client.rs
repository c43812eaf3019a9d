//! One connection to the brokers: how librdkafka is set up, and what it reports beside messages.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::{ClientConfig, TopicPartitionList};
use serde::Deserialize;

use super::config::{KafkaConfig, check_servers};
use super::place::Partition;
use super::properties::{KafkaProperties, Role};
use crate::SourceError;

pub(super) type Consumer = BaseConsumer<Context>;

/// Memory for messages that librdkafka has fetched ahead, over all partitions, unless the user sets the sizes.
const QUEUES: u64 = 96 << 20;
/// And for the answers that are on their way.
const ANSWERS: u64 = 32 << 20;
/// What one answer should have about.
const ANSWER: u64 = 8 << 20;
/// Messages that are fetched ahead, over all partitions.
const MESSAGES: u64 = 100_000;
/// What librdkafka holds for each message beside its bytes, about.
const MESSAGE_OVERHEAD: u64 = 320;

/// Bytes and messages that librdkafka may hold.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sizes {
    queue_kbytes: u64,
    queue_messages: u64,
    partition_bytes: u64,
    answer_bytes: u64,
    wait_ms: u64,
}

impl Sizes {
    /// Sizes for so many partitions; what the user has set wins.
    pub(super) fn new(properties: &KafkaProperties, partitions: usize) -> Self {
        let share = |total: u64, least: u64, most: u64| (total / partitions.max(1) as u64).clamp(least, most);
        let of = |names: &[&str], default: u64| properties.number(names).unwrap_or(default);
        // Answers of a few megabytes: larger ones leave the caches before they are read (examples/kafka_bench.rs, 8
        // partitions on a broker here, records of 100 KB: 58 % of a bare loop with 4 MiB of each, 74 % with 1 MiB and a
        // queue of four of these).
        let piece = share(QUEUES / 2, 64 << 10, 4 << 20).min(share(ANSWER, 1 << 20, 4 << 20));
        Self {
            queue_kbytes: of(
                &["queued.max.messages.kbytes"],
                (4 * (piece >> 10)).min(share(QUEUES >> 10, 64, 16 << 10)),
            ),
            queue_messages: of(&["queued.min.messages"], share(MESSAGES, 100, 50_000)),
            partition_bytes: of(&["fetch.message.max.bytes", "max.partition.fetch.bytes"], piece),
            answer_bytes: of(&["fetch.max.bytes"], ANSWERS),
            // There is one request at a time to each broker. One that asks only for logs without anything new would
            // hold up all others for as long as the broker may wait, so it may not wait long; but with many partitions
            // a request is large, and idle ones should be few.
            wait_ms: (partitions as u64 / 8).clamp(10, 100),
        }
    }

    /// The same memory for more partitions.
    pub(super) fn spread(self, properties: &KafkaProperties, from: usize, to: usize) -> Self {
        let wanted = Self::new(properties, to);
        // What was announced stays true; what the user has set is what they want of each.
        let less = |before: u64, wanted: u64, least: u64| {
            wanted.min((before * from as u64 / to.max(1) as u64).max(least))
        };
        let set = |names: &[&str]| properties.number(names).is_some();
        let mut sizes = wanted;
        if !set(&["queued.max.messages.kbytes"]) {
            sizes.queue_kbytes = less(self.queue_kbytes, wanted.queue_kbytes, 64);
        }
        if !set(&["queued.min.messages"]) {
            sizes.queue_messages = less(self.queue_messages, wanted.queue_messages, 100);
        }
        if !set(&["fetch.message.max.bytes", "max.partition.fetch.bytes"]) {
            sizes.partition_bytes = less(self.partition_bytes, wanted.partition_bytes, 64 << 10);
        }
        sizes
    }

    /// Bytes that are held at most, but for single batches that are larger than what is asked for.
    pub(super) fn memory(&self, partitions: usize) -> u64 {
        let each = (self.queue_kbytes << 10)
            .saturating_add(self.partition_bytes)
            .saturating_add(self.queue_messages.saturating_mul(MESSAGE_OVERHEAD));
        each.saturating_mul(partitions as u64).saturating_add(2 * self.answer_bytes)
    }
}

/// Sets librdkafka up for reading.
pub(super) fn configure(config: &KafkaConfig, sizes: Sizes) -> Result<ClientConfig, SourceError> {
    let mut client = ClientConfig::new();
    // At this level it says why a connection was closed.
    client.set_log_level(RDKafkaLogLevel::Info);
    client
        .set("bootstrap.servers", check_servers(&config.servers)?)
        .set("client.id", "fuelrail")
        .set("group.id", "fuelrail")
        .set("isolation.level", "read_committed")
        // Where the broker cannot give what is asked for, it is an error and never a jump.
        .set("auto.offset.reset", "error")
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        .set("enable.partition.eof", "false")
        .set("allow.auto.create.topics", "false")
        .set("check.crcs", "true")
        .set("statistics.interval.ms", "200")
        // A full queue is looked at again soon: with the default of a second, small queues would run dry.
        .set("fetch.queue.backoff.ms", "5")
        .set("fetch.error.backoff.ms", "100")
        .set("fetch.wait.max.ms", sizes.wait_ms.to_string())
        .set("reconnect.backoff.max.ms", "2000")
        .set("topic.metadata.refresh.interval.ms", "5000")
        .set("topic.metadata.propagation.max.ms", "5000")
        .set("queued.max.messages.kbytes", sizes.queue_kbytes.to_string())
        .set("queued.min.messages", sizes.queue_messages.to_string())
        .set("fetch.message.max.bytes", sizes.partition_bytes.to_string())
        .set("fetch.max.bytes", sizes.answer_bytes.to_string());
    // An alias would be a second value for the same thing.
    if config.properties.get("max.partition.fetch.bytes").is_some() {
        client.remove("fetch.message.max.bytes");
    }
    config.properties.apply(Role::Consumer, &mut client)?;
    Ok(client)
}

/// Connects; where the brokers are not there it goes on trying.
pub(super) fn connect(
    config: &KafkaConfig,
    client: &ClientConfig,
    partitions: &[Partition],
    trouble: &Arc<Mutex<Trouble>>,
) -> Result<Consumer, SourceError> {
    let context = Context::new(partitions, config.properties.clone(), trouble.clone());
    client.create_with_context(context).map_err(|error| config.properties.explain(&error))
}

/// What librdkafka reports beside messages.
pub(super) struct Context {
    properties: KafkaProperties,
    /// Slots by topic and number.
    slots: HashMap<String, HashMap<i32, usize>>,
    /// The next offset that librdkafka will ask the broker for, by slot. See [`Context::delivered`].
    next: Vec<AtomicI64>,
    /// Whether somebody wants to know that. Reading statistics costs time.
    wanted: AtomicBool,
    /// Shared by all connections of a follower.
    trouble: Arc<Mutex<Trouble>>,
}

/// What has gone wrong since the brokers last answered.
#[derive(Clone, Debug, Default)]
pub(super) struct Trouble {
    /// The last reason.
    pub reason: Option<String>,
    /// A reason that trying again will not help against, and since when it has been there.
    pub refused: Option<(Instant, String)>,
    /// All brokers are down, as librdkafka counts; it leaves out what it has never been connected to.
    pub down: bool,
    /// Since when connections have been failing, with no answer from anybody.
    pub lost: Option<Instant>,
    /// librdkafka cannot go on.
    pub fatal: Option<String>,
}

impl Context {
    fn new(partitions: &[Partition], properties: KafkaProperties, trouble: Arc<Mutex<Trouble>>) -> Self {
        let mut slots: HashMap<String, HashMap<i32, usize>> = HashMap::new();
        for (slot, partition) in partitions.iter().enumerate() {
            slots.entry(partition.topic.to_string()).or_default().insert(partition.number, slot);
        }
        let next = partitions.iter().map(|_| AtomicI64::new(-1)).collect();
        Self { properties, slots, next, wanted: AtomicBool::new(false), trouble }
    }

    fn lock(&self) -> MutexGuard<'_, Trouble> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn trouble(&self) -> Trouble {
        self.lock().clone()
    }

    /// The brokers have answered.
    pub(super) fn answered(&self) {
        let fatal = self.lock().fatal.take();
        *self.lock() = Trouble { fatal, ..Trouble::default() };
    }

    /// Asks for statistics to be read.
    pub(super) fn want_delivered(&self, wanted: bool) {
        self.wanted.store(wanted, Ordering::Relaxed);
    }

    /// Whether every record of a log below `offset` is in its queue, or was.
    ///
    /// A log may hold no record at its end: markers of transactions, aborted records, what compaction removed.
    /// librdkafka passes over these silently, but not unnoticed: `next_offset` of its statistics is the position of the
    /// next request, as the thread that fills the queue saw it when it was done with all answers before
    /// (`rd_kafka_toppar_fetch_decide` copies it). Until the consumer is pointed elsewhere, which never happens to one
    /// of ours, it only grows, so one look suffices, and a queue that is found empty *after* it has nothing below it.
    pub(super) fn delivered(&self, slot: usize, offset: i64) -> bool {
        self.next[slot].load(Ordering::Relaxed) >= offset
    }
}

/// The part of librdkafka's statistics that matters.
#[derive(Deserialize)]
struct Statistics {
    #[serde(default)]
    topics: HashMap<String, Topic>,
}

#[derive(Deserialize)]
struct Topic {
    #[serde(default)]
    partitions: HashMap<i32, Next>,
}

#[derive(Deserialize)]
struct Next {
    next_offset: i64,
}

impl ClientContext for Context {
    fn log(&self, _: RDKafkaLogLevel, facility: &str, message: &str) {
        // What matters comes as an error too; at each attempt to connect these would be many lines.
        let message = self.properties.without_values(message);
        tracing::debug!(target: "librdkafka", "{facility}: {message}");
        // A connection that fails before anybody was recognised is told here only, with the probable cause.
        if facility == "FAIL" {
            self.lock().reason.get_or_insert_with(|| closed(&message));
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        let reason = self.properties.without_values(reason);
        tracing::debug!(target: "librdkafka", "{error}: {reason}");
        use RDKafkaErrorCode as Code;
        let code = error.rdkafka_error_code();
        let refused = matches!(
            code,
            Some(
                Code::Authentication
                    | Code::SaslAuthenticationFailed
                    | Code::SSL
                    | Code::ClusterAuthorizationFailed
                    | Code::UnsupportedSASLMechanism,
            )
        );
        let mut trouble = self.lock();
        match code {
            Some(Code::AllBrokersDown) => trouble.down = true,
            // By an alert the broker says that it does not like the client's certificate, or that it has none.
            _ if refused || reason.contains("SSL alert") => {
                let since = trouble.refused.as_ref().map_or_else(Instant::now, |(since, _)| *since);
                trouble.refused = Some((since, reason));
            }
            Some(Code::BrokerTransportFailure) => {
                trouble.lost.get_or_insert_with(Instant::now);
                trouble.reason = Some(reason);
            }
            Some(Code::Fatal) => trouble.fatal = Some(reason),
            _ => trouble.reason = Some(reason),
        }
    }

    fn stats_raw(&self, statistics: &[u8]) {
        if !self.wanted.load(Ordering::Relaxed) {
            return;
        }
        let statistics: Statistics = match serde_json::from_slice(statistics) {
            Ok(statistics) => statistics,
            Err(error) => {
                tracing::debug!("librdkafka's statistics cannot be read: {error}");
                return;
            }
        };
        for (topic, read) in &statistics.topics {
            let Some(slots) = self.slots.get(topic) else { continue };
            for (number, next) in &read.partitions {
                if let Some(&slot) = slots.get(number) {
                    self.next[slot].fetch_max(next.next_offset, Ordering::Relaxed);
                }
            }
        }
    }
}

impl ConsumerContext for Context {
    fn commit_callback(&self, result: KafkaResult<()>, _: &TopicPartitionList) {
        if let Err(error) = result {
            tracing::warn!(
                "Kafka: could not commit the offsets of a checkpoint ({error}); this affects lag monitors only, \
                 not training"
            );
        }
    }
}

/// What librdkafka logs of a connection that was closed, and what that mostly means.
pub(super) fn closed(message: &str) -> String {
    // The thread's name comes first.
    let message = message.rsplit_once("]: ").map_or(message, |(_, message)| message);
    if message.contains("Disconnected") && message.contains("APIVERSION_QUERY") {
        return format!("{message}: probably this port speaks TLS, and security.protocol says otherwise");
    }
    message.to_owned()
}

/// Serves what the brokers report. There must be no message in it: every partition has a queue of its own.
pub(super) fn serve(consumer: &Consumer) -> Result<(), SourceError> {
    // Some at most, so that a flood of errors does not keep records from being read. There being none is no different
    // from one that was served, so all are tried; that takes microseconds.
    for _ in 0..32 {
        match consumer.poll(Duration::ZERO) {
            None => {}
            Some(Ok(message)) => {
                use rdkafka::Message as _;
                return Err(SourceError::data(format!(
                    "librdkafka delivered offset {} of {}/{} outside of its queue; this is a bug, please report it",
                    message.offset(),
                    message.topic(),
                    message.partition()
                )));
            }
            // Told to the context too, with the reason.
            Some(Err(error)) => tracing::debug!(target: "librdkafka", "{error}"),
        }
    }
    match consumer.client().context().trouble().fatal {
        Some(reason) => Err(SourceError::data(format!("librdkafka cannot continue: {reason}"))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_joins_gets_a_share_of_the_memory_that_was_announced() {
        let none = KafkaProperties::default();
        for from in [1, 2, 8, 64, 500] {
            let announced = Sizes::new(&none, from);
            for to in [2, 3, 8, 31].map(|times| from * times) {
                let (was, is) = (from as u64, to as u64);
                // Below these sizes nothing can be read at a sensible pace.
                let parts = [
                    (was * (announced.queue_kbytes << 10)).max(is * (64 << 10)),
                    (was * announced.partition_bytes).max(is * (64 << 10)),
                    (was * announced.queue_messages).max(is * 100) * MESSAGE_OVERHEAD,
                    2 * ANSWERS,
                ];
                let held = announced.spread(&none, from, to).memory(to);
                assert!(held <= parts.iter().sum(), "{from} to {to}: {held} of {parts:?}");
            }
        }
    }

    #[test]
    fn what_the_user_has_set_of_each_stays_also_when_some_join() {
        let set = KafkaProperties::new([
            ("queued.max.messages.kbytes", "2048"),
            ("fetch.message.max.bytes", "1000000"),
        ]);
        let spread = Sizes::new(&set, 1).spread(&set, 1, 100);
        assert_eq!((spread.queue_kbytes, spread.partition_bytes), (2048, 1_000_000));
    }

    #[test]
    fn a_connection_that_is_closed_at_once_is_explained() {
        let logged = "[thrd:a:1/bootstrap]: a:1/bootstrap: Disconnected: closed by peer (after 0ms in state APIVERSION_QUERY)";
        let said = closed(logged);
        assert!(said.starts_with("a:1/bootstrap: Disconnected") && said.contains("TLS"), "{said}");
        assert_eq!(closed("a:1: Connect failed: refused"), "a:1: Connect failed: refused");
    }
}
