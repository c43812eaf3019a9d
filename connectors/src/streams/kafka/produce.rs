//! Writing records to a topic, for `fuelrail produce`.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::{ClientContext, DefaultClientContext};
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _, ProducerContext};

use super::properties::{KafkaProperties, Role};
use super::{ask, client};
use crate::SourceError;

/// How long the brokers may take to answer questions about the topic.
const ANSWER: Duration = Duration::from_secs(10);

/// Writes records to one topic: acknowledged by all replicas in sync, without duplicates and in order per partition.
///
/// What is sent is on its way, not yet there: only [`flush`](Self::flush) says that all of it has arrived.
pub struct Producer {
    producer: Arc<BaseProducer<Deliveries>>,
    config: ClientConfig,
    properties: KafkaProperties,
    servers: String,
    topic: String,
    stop: fn() -> bool,
}

#[derive(Clone, Default)]
struct Deliveries(Arc<State>);

#[derive(Default)]
struct State {
    delivered: AtomicU64,
    failed: AtomicU64,
    /// Why the first one failed.
    reason: Mutex<Option<String>>,
    /// The last thing that librdkafka complained about.
    trouble: Mutex<Option<String>>,
}

impl ClientContext for Deliveries {
    fn log(&self, _: RDKafkaLogLevel, facility: &str, message: &str) {
        tracing::debug!(target: "librdkafka", "{facility}: {message}");
        // A connection that fails before anybody was recognised is told here only, with the probable cause.
        if facility == "FAIL" {
            let mut trouble = self.0.trouble.lock().unwrap_or_else(PoisonError::into_inner);
            trouble.get_or_insert_with(|| client::closed(message));
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(target: "librdkafka", "{error}: {reason}");
        // It says how many of them are down, and not why.
        if error.rdkafka_error_code() == Some(RDKafkaErrorCode::AllBrokersDown) {
            return;
        }
        *self.0.trouble.lock().unwrap_or_else(PoisonError::into_inner) = Some(reason.to_owned());
    }
}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        match result {
            Ok(_) => {
                self.0.delivered.fetch_add(1, Ordering::Relaxed);
            }
            Err((error, message)) => {
                self.0.failed.fetch_add(1, Ordering::Relaxed);
                let bytes = message.payload_len() + message.key_len();
                let mut reason = self.0.reason.lock().unwrap_or_else(PoisonError::into_inner);
                reason.get_or_insert_with(|| {
                    let size = error.rdkafka_error_code() == Some(RDKafkaErrorCode::MessageSizeTooLarge);
                    let advice = if size {
                        "; raise message.max.bytes (property here, and max.message.bytes of the topic)"
                    } else {
                        ""
                    };
                    format!("a record of {bytes} bytes: {error}{advice}")
                });
            }
        }
    }
}

impl Producer {
    /// A producer for this topic. Connects in the background.
    ///
    /// # Errors
    /// A sentence that names the property that is refused.
    pub fn open(servers: &[String], topic: &str, properties: &KafkaProperties) -> Result<Self, SourceError> {
        let servers = super::config::check_servers(servers)?;
        super::config::check_topic(topic)?;
        let mut config = ClientConfig::new();
        config.set_log_level(RDKafkaLogLevel::Info);
        config
            .set("bootstrap.servers", &servers)
            .set("client.id", "fuelrail")
            .set("acks", "all")
            .set("enable.idempotence", "true")
            .set("compression.type", "none")
            // Filling batches costs no latency that a bulk load would notice.
            .set("linger.ms", "20")
            // Records here are images: bounded by bytes, not by the default of a million kilobytes.
            .set("queue.buffering.max.kbytes", "131072");
        properties.apply(Role::Producer, &mut config)?;
        let state = Deliveries::default();
        let producer = config.create_with_context(state).map_err(|error| properties.explain(&error))?;
        let (properties, topic) = (properties.clone(), topic.to_owned());
        Ok(Self { producer: Arc::new(producer), config, properties, servers, topic, stop: || false })
    }

    /// From now on [`send`](Self::send) and [`flush`](Self::flush) wait no longer once this says so.
    pub fn set_stop(&mut self, stop: fn() -> bool) {
        self.stop = stop;
    }

    /// The topic that is written to.
    pub fn topic(&self) -> &str {
        &self.topic
    }

    /// How many partitions the topic has; `None` where there is no such topic.
    ///
    /// # Errors
    /// When no broker answers, or it does not allow to look.
    pub fn partitions(&self) -> Result<Option<u32>, SourceError> {
        let deadline = Instant::now() + ANSWER;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let (producer, name) = (self.producer.clone(), self.topic.clone());
            let question = move |patience| {
                let metadata = producer.client().fetch_metadata(Some(&name), patience)?;
                let topic = metadata.topics().iter().find(|topic| topic.name() == name);
                Ok(topic.map(|topic| {
                    (topic.partitions().len() as u32, topic.error().map(RDKafkaErrorCode::from))
                }))
            };
            let watch = || {
                // Serves the events that say why.
                self.producer.poll(Duration::ZERO);
                if (self.stop)() { Err(SourceError::cancelled()) } else { Ok(()) }
            };
            use RDKafkaErrorCode as Code;
            match ask::patiently(left.max(Duration::from_millis(50)), question, watch)? {
                Ok(None | Some((_, Some(Code::UnknownTopicOrPartition | Code::UnknownTopic)))) => {
                    return Ok(None);
                }
                Ok(Some((count, None))) => return Ok((count > 0).then_some(count)),
                Ok(Some((_, Some(Code::LeaderNotAvailable)))) if !left.is_zero() => {}
                Ok(Some((_, Some(error)))) => {
                    return Err(SourceError::data(format!(
                        "topic {:?} on {}: {error}",
                        self.topic, self.servers
                    )));
                }
                Err(error) if left.is_zero() => return Err(self.unreachable(&error)),
                Err(_) => {}
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Creates the topic unless it is there; says whether it did. A topic that is there keeps its partitions.
    ///
    /// # Errors
    /// What the broker says against it.
    pub fn create_topic(&self, partitions: u32, replication: u32) -> Result<bool, SourceError> {
        if self.partitions()?.is_some() {
            return Ok(false);
        }
        let count = |what: &str, number: u32| {
            i32::try_from(number)
                .ok()
                .filter(|&number| number > 0)
                .ok_or_else(|| SourceError::config(format!("{what} is {number}; it must be at least 1")))
        };
        let topic = NewTopic::new(
            &self.topic,
            count("partitions", partitions)?,
            TopicReplication::Fixed(count("replication", replication)?),
        );
        let admin: AdminClient<DefaultClientContext> =
            self.config.create().map_err(|error| self.properties.explain(&error))?;
        let options = AdminOptions::new().operation_timeout(Some(ANSWER)).request_timeout(Some(ANSWER));
        // rdkafka's administration is asynchronous only; this thread may itself be one of a runtime.
        let results = std::thread::scope(|scope| {
            let created = || {
                let runtime = tokio::runtime::Builder::new_current_thread().build();
                runtime.map(|runtime| runtime.block_on(admin.create_topics([&topic], &options)))
            };
            scope.spawn(created).join().expect("creating a topic does not panic")
        });
        let results = results.map_err(|error| SourceError::backend(format!("no runtime: {error}")))?;
        let results = results.map_err(|error| {
            SourceError::data(format!(
                "topic {:?} cannot be created on {}: {error}",
                self.topic, self.servers
            ))
        })?;
        match results.into_iter().next() {
            Some(Err((_, RDKafkaErrorCode::TopicAlreadyExists))) => Ok(false),
            Some(Err((_, error))) => {
                let advice = match error {
                    RDKafkaErrorCode::InvalidReplicationFactor => {
                        "; there are fewer brokers than replicas asked for: lower the replication"
                    }
                    RDKafkaErrorCode::TopicAuthorizationFailed
                    | RDKafkaErrorCode::ClusterAuthorizationFailed => {
                        "; this user may not create topics: have it created, or name another user"
                    }
                    _ => "",
                };
                Err(SourceError::data(format!(
                    "topic {:?} cannot be created on {}: {error}{advice}",
                    self.topic, self.servers
                )))
            }
            _ => Ok(true),
        }
    }

    /// Sends one record; waits while librdkafka's queue is full. Without a value it is a tombstone.
    ///
    /// # Errors
    /// When an earlier record has failed, when this one is larger than allowed, or when the brokers cannot be reached
    /// for longer than `message.timeout.ms`.
    pub fn send(
        &self,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        headers: &[(&str, &[u8])],
    ) -> Result<(), SourceError> {
        self.send_to(None, key, value, headers)
    }

    /// As [`send`](Self::send), to a partition of choice instead of the one that the key's hash says.
    ///
    /// # Errors
    /// As [`send`](Self::send).
    pub fn send_to(
        &self,
        partition: Option<u32>,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        headers: &[(&str, &[u8])],
    ) -> Result<(), SourceError> {
        let mut record: BaseRecord<'_, [u8], [u8]> = BaseRecord::to(&self.topic);
        record.partition = partition.and_then(|partition| i32::try_from(partition).ok());
        record.key = key;
        record.payload = value;
        if !headers.is_empty() {
            let with = |all: OwnedHeaders, &(key, value): &(&str, &[u8])| {
                all.insert(Header { key, value: Some(value) })
            };
            record.headers = Some(headers.iter().fold(OwnedHeaders::new(), with));
        }
        // Serves delivery reports, which also make room.
        self.producer.poll(Duration::ZERO);
        self.check()?;
        loop {
            record = match self.producer.send(record) {
                Ok(()) => return Ok(()),
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), record)) => record,
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::MessageSizeTooLarge), _)) => {
                    return Err(SourceError::config(format!(
                        "a record of {} bytes is larger than message.max.bytes ({}); raise that property, and \
                         max.message.bytes of the topic",
                        value.map_or(0, <[u8]>::len) + key.map_or(0, <[u8]>::len),
                        self.config.get("message.max.bytes").unwrap_or("1000000"),
                    )));
                }
                Err((error, _)) => {
                    return Err(SourceError::data(format!(
                        "topic {:?} on {}: {error}",
                        self.topic, self.servers
                    )));
                }
            };
            self.producer.poll(Duration::from_millis(100));
            self.check()?;
            if (self.stop)() {
                return Err(SourceError::data(format!(
                    "stopped; {} does not take records as fast as they come",
                    self.servers
                )));
            }
        }
    }

    /// Waits until everything sent has arrived.
    ///
    /// # Errors
    /// When something has not: how much, and the first reason.
    pub fn flush(&self, timeout: Duration) -> Result<(), SourceError> {
        let deadline = Instant::now() + timeout;
        let flushed = loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let flushed = self.producer.flush(left.min(Duration::from_millis(100)));
            if flushed.is_ok() || left.is_zero() || (self.stop)() {
                break flushed;
            }
        };
        self.check()?;
        flushed.map_err(|_| {
            let waiting = self.producer.in_flight_count();
            let trouble =
                self.trouble().map_or(String::new(), |trouble| format!("; the last error: {trouble}"));
            SourceError::data(format!(
                "{waiting} records have not arrived at {} within {} s{trouble}",
                self.servers,
                timeout.as_secs()
            ))
        })
    }

    /// Records that have arrived.
    pub fn delivered(&self) -> u64 {
        self.producer.context().0.delivered.load(Ordering::Relaxed)
    }

    /// The first failed delivery, if there was one.
    fn check(&self) -> Result<(), SourceError> {
        let state = &self.producer.context().0;
        let failed = state.failed.load(Ordering::Relaxed);
        if failed == 0 {
            return Ok(());
        }
        let reason = state.reason.lock().unwrap_or_else(PoisonError::into_inner).clone().unwrap_or_default();
        let trouble = self.trouble().map_or(String::new(), |trouble| format!(" ({trouble})"));
        Err(SourceError::data(format!(
            "{failed} records could not be written to topic {:?} on {}; the first: {reason}{trouble}",
            self.topic, self.servers
        )))
    }

    fn trouble(&self) -> Option<String> {
        let trouble =
            self.producer.context().0.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone();
        trouble.map(|text| self.properties.without_values(&text))
    }

    fn unreachable(&self, error: &KafkaError) -> SourceError {
        let why = self.trouble().unwrap_or_else(|| error.to_string());
        SourceError::data(format!(
            "no Kafka broker answers at {} within {} s: {why}; check the address, and that the broker's advertised.listeners \
             can be reached from here",
            self.servers,
            ANSWER.as_secs()
        ))
    }
}
