//! Partitions being read: a queue for each, of which the next record is taken only when it is wanted.
//!
//! Not taking from a queue is all there is to back-pressure: librdkafka fetches until the queue is full and then leaves
//! the partition alone, while its own threads keep the connections alive and events are served.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rdkafka::consumer::base_consumer::PartitionQueue;
use rdkafka::consumer::{CommitMode, Consumer as _};
use rdkafka::error::RDKafkaErrorCode;
use rdkafka::message::{BorrowedMessage, Headers as _, Message as _};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use xxhash_rust::xxh3::Xxh3;

use super::Core;
use super::ask::is_missing;
use super::client::{self, Consumer, Context, Trouble};
use super::lookup::{beyond, gone, refused};
use super::marks::{Marks, Scout};
use super::place::{Partition, id};
use super::value::Parts;
use crate::{SourceError, StreamRecord};

/// How long one look into an empty queue takes.
const LOOK: Duration = Duration::from_millis(20);

/// Whoever was let in before and is not any more has a new password, or somebody who checks them is down: that is
/// waited out for so long.
const REFUSED: Duration = Duration::from_secs(300);

/// Connections that have failed for longer, with no answer to anything meanwhile, are said to. (The marks are asked for
/// every few seconds, so that one broker of several which is away does not count.)
const SILENT: Duration = Duration::from_secs(10);

/// A contradiction between brokers is looked at twice, this much apart: a new leader may not know its own end yet.
const CONFIRM: Duration = Duration::from_secs(2);

/// Times that a partition may lose its place although the broker has the offset.
const RETRIES: u32 = 5;

/// Partitions being read.
pub(super) struct Session {
    core: Arc<Core>,
    client: ClientConfig,
    partitions: Arc<[Partition]>,
    consumer: Option<Arc<Consumer>>,
    scout: Arc<Scout>,
    trouble: Arc<Mutex<Trouble>>,
    logs: Vec<Log>,
    /// Since when the brokers do not answer, as far as the user was told.
    told_down: Option<Instant>,
    /// Whether the user was told that the brokers do not let this client in any more.
    told_refused: bool,
    /// When a mark contradicted what was read already.
    contradicted: Option<Instant>,
    retries: u32,
    served: Instant,
}

struct Log {
    queue: Option<PartitionQueue<Context>>,
    /// All records below this were taken out of the queue.
    next: i64,
    /// Where there is nothing more to read.
    hi: i64,
    /// A record that was taken out and is not in a window yet.
    head: Option<Head>,
    /// The broker does not give the next offset, and since when.
    lost: Option<(Instant, RDKafkaErrorCode)>,
}

/// A record and what a window needs to know of it.
pub(super) struct Head {
    pub offset: i64,
    pub record: StreamRecord,
    pub digest: u128,
    /// Bytes of memory it takes.
    pub cost: u64,
}

/// What looking for a record found.
pub(super) enum Look {
    /// One with this offset.
    Found(i64),
    /// None below the end that was asked for.
    Nothing,
    /// Not yet.
    Wait,
}

impl Session {
    /// Starts reading at these offsets, up to `hi`.
    pub(super) fn new(
        core: &Arc<Core>,
        client: &ClientConfig,
        partitions: &Arc<[Partition]>,
        scout: &Arc<Scout>,
        trouble: &Arc<Mutex<Trouble>>,
        starts: &[i64],
        hi: &[i64],
    ) -> Result<Self, SourceError> {
        let consumer = Arc::new(client::connect(&core.config, client, partitions, trouble)?);
        let mut session = Self {
            core: core.clone(),
            client: client.clone(),
            partitions: partitions.clone(),
            consumer: None,
            scout: scout.clone(),
            trouble: trouble.clone(),
            logs: Vec::with_capacity(starts.len()),
            told_down: None,
            told_refused: false,
            contradicted: None,
            retries: 0,
            served: Instant::now(),
        };
        for (&next, &hi) in starts.iter().zip(hi) {
            session.logs.push(Log { queue: None, next, hi, head: None, lost: None });
        }
        session.begin(consumer)?;
        Ok(session)
    }

    /// Points a new consumer at where the old one was.
    fn begin(&mut self, consumer: Arc<Consumer>) -> Result<(), SourceError> {
        let mut list = TopicPartitionList::with_capacity(self.logs.len());
        for (log, partition) in self.logs.iter_mut().zip(&*self.partitions) {
            log.lost = None;
            log.queue = None;
            if log.next >= log.hi {
                continue;
            }
            // Before it is assigned: a queue that is the application's by then is never forwarded into the common one.
            log.queue = consumer.split_partition_queue(&partition.topic, partition.number);
            let added =
                list.add_partition_offset(&partition.topic, partition.number, Offset::Offset(log.next));
            if let (Err(error), _) | (Ok(()), Err(error)) =
                (added, log.queue.as_ref().map(drop).ok_or(rdkafka::error::KafkaError::NoMessageReceived))
            {
                return Err(SourceError::data(format!("{partition} cannot be read: {error}")));
            }
        }
        if list.count() > 0 {
            consumer.assign(&list).map_err(|error| {
                SourceError::data(format!("{} cannot be read: {error}", self.core.config.name()))
            })?;
        }
        self.close_old(Some(consumer));
        Ok(())
    }

    /// Closes the consumer on a thread of its own: it waits for connections.
    fn close_old(&mut self, new: Option<Arc<Consumer>>) {
        if let Some(old) = std::mem::replace(&mut self.consumer, new) {
            std::thread::spawn(move || drop(old));
        }
    }

    fn consumer(&self) -> &Arc<Consumer> {
        self.consumer.as_ref().expect("a session has a consumer until it is dropped")
    }

    /// How far the logs reach, as far as known.
    pub(super) fn marks(&self) -> Option<Arc<Marks>> {
        self.scout.marks()
    }

    /// Wants to know how far they reach now.
    pub(super) fn ask(&self) {
        self.scout.ask();
    }

    /// Looks for the next record of a log below `end`.
    pub(super) fn look(&mut self, slot: usize, end: i64) -> Result<Look, SourceError> {
        // Events of a busy stream are served now and then, of a waiting one below.
        if self.served.elapsed() > LOOK {
            self.serve(Duration::ZERO)?;
        }
        let consumer = self.consumer.as_ref().expect("a session has a consumer until it is dropped");
        let context = consumer.client().context();
        let log = &mut self.logs[slot];
        let mut patience = Duration::ZERO;
        while log.head.is_none() && log.next < end {
            let Some(queue) = &log.queue else { break };
            // In this order: what was delivered by then is in the queue.
            let delivered = context.delivered(slot, end);
            match queue.poll(patience) {
                Some(Ok(message)) => {
                    // An answer may come twice when a leader has moved.
                    if message.offset() < log.next {
                        continue;
                    }
                    log.head = Some(read(&self.core, slot, &message));
                    log.next = message.offset() + 1;
                    self.retries = 0;
                    context.want_delivered(false);
                }
                Some(Err(error)) => {
                    let code = error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Unknown);
                    self.failed(slot, code)?;
                    return Ok(Look::Wait);
                }
                None if delivered => log.next = end,
                None if patience.is_zero() => patience = LOOK,
                None => {
                    context.want_delivered(true);
                    self.waiting(slot)?;
                    return Ok(Look::Wait);
                }
            }
        }
        Ok(match &log.head {
            Some(head) if head.offset < end => Look::Found(head.offset),
            _ => Look::Nothing,
        })
    }

    /// Takes the record that was found.
    pub(super) fn take(&mut self, slot: usize) -> Head {
        self.logs[slot].head.take().expect("a record was found")
    }

    /// The cost of the record that was found.
    pub(super) fn cost(&self, slot: usize) -> u64 {
        self.logs[slot].head.as_ref().map_or(0, |head| head.cost)
    }

    /// Serves events, waiting for one if there is none, and looks whether all is well.
    pub(super) fn serve(&mut self, wait: Duration) -> Result<(), SourceError> {
        if !wait.is_zero() {
            // Not on the queue of events: they are few, and a message that does not belong there must not be lost in
            // it.
            std::thread::sleep(wait);
        }
        self.served = Instant::now();
        client::serve(self.consumer())?;
        if let Some(name) = self.scout.missing() {
            return Err(SourceError::data(format!(
                "{name} is no longer there: it was deleted while it was read. What was read before is not \
                 affected; a run cannot continue without it"
            )));
        }
        let context = self.consumer().client().context().clone();
        let trouble = context.trouble();
        match &trouble.refused {
            Some((since, reason)) if since.elapsed() > REFUSED => {
                return Err(refused(&self.core.config, reason));
            }
            Some((_, reason)) if !self.told_refused => {
                self.told_refused = true;
                tracing::warn!(
                    "Kafka: {} no longer authorises this client ({reason}); retrying for {} minutes",
                    self.core.config.servers.join(","),
                    REFUSED.as_secs() / 60
                );
            }
            Some(_) => {}
            None => self.told_refused = false,
        }
        let is_down = trouble.down || trouble.lost.is_some_and(|since| since.elapsed() > SILENT);
        match (is_down, self.told_down) {
            (true, None) => {
                self.told_down = Some(Instant::now());
                let why = trouble
                    .reason
                    .or_else(|| self.scout.trouble())
                    .unwrap_or_else(|| "no reason given".into());
                tracing::warn!(
                    "Kafka: no broker of {} answers ({why}); retrying until one does",
                    self.core.config.servers.join(",")
                );
                self.scout.ask();
            }
            (false, Some(since)) => {
                self.told_down = None;
                tracing::info!(
                    "Kafka: a broker of {} answers again, after {:.0} s",
                    self.core.config.servers.join(","),
                    since.elapsed().as_secs_f64()
                );
            }
            _ => {}
        }
        self.contradiction()
    }

    /// Looks whether a log ends before what was read of it.
    fn contradiction(&mut self) -> Result<(), SourceError> {
        let Some(marks) = self.scout.marks() else { return Ok(()) };
        let Some(slot) = (0..self.logs.len()).find(|&slot| marks.end[slot] < self.logs[slot].next) else {
            self.contradicted = None;
            return Ok(());
        };
        let since = *self.contradicted.get_or_insert_with(Instant::now);
        if marks.asked < since + CONFIRM {
            // Mostly what was read is only younger than the marks.
            if marks.asked.elapsed() > CONFIRM / 4 {
                self.scout.ask();
            }
            return Ok(());
        }
        Err(beyond(&self.partitions[slot], self.logs[slot].next, marks.low[slot], marks.end[slot]))
    }

    /// Nothing comes from this log: looks whether anything ever will.
    fn waiting(&mut self, slot: usize) -> Result<(), SourceError> {
        self.serve(Duration::ZERO)?;
        let log = &self.logs[slot];
        if let Some(marks) = self.scout.marks()
            && marks.low[slot] > log.next
            && !self.consumer().client().context().delivered(slot, marks.low[slot])
        {
            return Err(gone(&self.partitions[slot], log.next, marks.low[slot]));
        }
        let Some((since, code)) = log.lost else { return Ok(()) };
        // The marks will tell why; when they do not, the broker has the offset after all.
        match self.scout.marks() {
            Some(marks) if marks.asked > since => {}
            _ => {
                self.scout.ask();
                return Ok(());
            }
        }
        if self.contradicted.is_some() {
            return Ok(());
        }
        self.retries += 1;
        if self.retries > RETRIES {
            return Err(SourceError::data(format!(
                "{} cannot be read from offset {}: {code}",
                self.partitions[slot], log.next
            )));
        }
        tracing::warn!(
            "Kafka: {} lost its place at offset {} ({code}); asking for it again",
            self.partitions[slot],
            log.next
        );
        let consumer = client::connect(&self.core.config, &self.client, &self.partitions, &self.trouble)?;
        self.begin(Arc::new(consumer))
    }

    /// The queue of a log holds an error.
    fn failed(&mut self, slot: usize, code: RDKafkaErrorCode) -> Result<(), SourceError> {
        use RDKafkaErrorCode as Code;
        let partition = &self.partitions[slot];
        let next = self.logs[slot].next;
        let advice = match code {
            Code::AutoOffsetReset | Code::OffsetOutOfRange | Code::LogTruncation => {
                self.logs[slot].lost = Some((Instant::now(), code));
                self.scout.ask();
                return Ok(());
            }
            // Deleted, or a broker that has just started: the scout finds out.
            code if is_missing(code) => {
                self.scout.ask();
                return Ok(());
            }
            Code::TopicAuthorizationFailed => "grant READ to this user",
            Code::MessageSizeTooLarge => {
                "raise the properties fetch.message.max.bytes and receive.message.max.bytes"
            }
            Code::BadMessage => {
                "the batch is damaged on the broker or on its way (its checksum is wrong); records in it cannot be \
                                 counted, so nothing is skipped: start a new run after it, or have the broker's disk checked"
            }
            Code::BadCompression => {
                "the batch cannot be unpacked; nothing is skipped: start a new run after it"
            }
            Code::NotImplemented => "it is written in a format or compression that librdkafka does not know",
            _ => {
                tracing::warn!("Kafka: {partition} at offset {next}: {code}; retrying");
                return Ok(());
            }
        };
        Err(SourceError::data(format!("{partition} cannot be read at offset {next}: {code}; {advice}")))
    }

    /// Tells the broker what was consumed.
    pub(super) fn commit(&self, offsets: &[(Partition, i64)]) {
        let mut list = TopicPartitionList::with_capacity(offsets.len());
        for (partition, offset) in offsets {
            let added =
                list.add_partition_offset(&partition.topic, partition.number, Offset::Offset(*offset));
            added.expect("an offset of a place is one");
        }
        if let Err(error) = self.consumer().commit(&list, CommitMode::Async) {
            tracing::warn!("Kafka: cannot commit the offsets of a checkpoint: {error}");
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // Queues hold the consumer too.
        let logs = std::mem::take(&mut self.logs);
        let consumer = self.consumer.take();
        std::thread::spawn(move || drop((logs, consumer)));
    }
}

/// Makes a record of a message.
fn read(core: &Core, slot: usize, message: &BorrowedMessage<'_>) -> Head {
    let (key, value) = (message.key(), message.payload());
    let header = |name: &str| {
        // As Kafka's own clients do it, the last of several counts.
        let found = message.headers()?.iter().filter(|header| header.key == name).last()?;
        Some(found.value)
    };
    let headers: Vec<Option<&[u8]>> =
        core.values.part_headers().iter().map(|name| header(name).flatten()).collect();
    let header = core.values.header().and_then(header);
    let (label, body) = core.values.read(Parts { key, value, header, headers: &headers });
    let mut hasher = Xxh3::new();
    let length = |part: Option<&[u8]>| part.map_or(u64::MAX, |part| part.len() as u64);
    hasher.update(&(slot as u64).to_le_bytes());
    hasher.update(&message.offset().to_le_bytes());
    for part in [key, value] {
        hasher.update(&length(part).to_le_bytes());
        hasher.update(part.unwrap_or_default());
    }
    let stored = (key.map_or(0, <[u8]>::len) + value.map_or(0, <[u8]>::len)) as u64;
    let held = body.as_ref().map_or_else(|why| why.len(), |bytes| bytes.len()) + size_of::<StreamRecord>();
    Head {
        offset: message.offset(),
        record: StreamRecord { id: id(slot, message.offset()), label, stored, body },
        digest: hasher.digest128(),
        cost: held as u64,
    }
}
