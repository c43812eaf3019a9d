//! `fuelrail produce`: a topic filled from any source.
//!
//! | of a record | in the message |
//! |---|---|
//! | image, parts and fields | value: the encoded image, or one JSON object or Arrow IPC stream with everything (`--value`) |
//! | its key | key: so a record always goes to the same partition |
//! | its label | header `label`: the class number as decimal text, or with `--label-names` the class name |
//! | its class name | header `class`, where the source has classes |
//!
//! # Promises
//!
//! - What the last line counts as written was acknowledged by all replicas in sync, once each, in order per partition.
//! - The rate is kept by a schedule: a pause is not made up for by a burst.
//! - Memory is bounded: 256 records or 256 MiB ahead, and librdkafka's own queue (`queue.buffering.max.kbytes`).

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use fuelrail_connectors::{
    Buffer, IndexedSource, KafkaProducer, KafkaProperties, KafkaValue, ReadError, ReadErrorKind, Record,
    Schema, encode_kafka_value,
};
use indicatif::HumanBytes;

use super::bars::{Bar, counted, grouped, rounded};
use super::{Failure, parts, read, signals, source};
use crate::client::ClientError;
use crate::fields;
use crate::order::Order;

/// How long the brokers have for the last records.
const LAST: Duration = Duration::from_secs(60);

/// The same after ctrl-C: who pressed it waits.
const LAST_INTERRUPTED: Duration = Duration::from_secs(5);

/// Records left out that are named; all are counted.
const LISTED: usize = 20;

#[derive(Debug, Args)]
pub(super) struct Produce {
    #[arg(value_name = "SOURCE", help = source::SOURCE)]
    source: String,
    /// The topic to write to, as kafka://host:9092/topic; more brokers are separated by commas
    #[arg(value_name = "TOPIC")]
    topic: String,
    #[arg(long = "source-option", alias = "option", short_alias = 'o', value_name = "KEY=VALUE", help = source::OPTION)]
    options: Vec<String>,
    #[arg(long, value_name = "JSON", help = parts::FIELDS)]
    fields: Option<String>,
    /// The value of a message [default: json if --fields asks for more than the image, or if the source has no images;
    /// else image]
    #[arg(long, value_enum)]
    value: Option<Format>,
    /// The header `label` holds the class name instead of its number
    #[arg(long)]
    label_names: bool,
    /// Create the topic with N partitions if it does not exist
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = super::at_least::<u32, 1>)]
    partitions: Option<u32>,
    /// Replicas of each partition, if the topic is created
    #[arg(long, value_name = "N", default_value_t = 1, allow_negative_numbers = true, value_parser = super::at_least::<u32, 1>,
          requires = "partitions")]
    replication: u32,
    /// Write at most this many records per second, minute or hour: 500/s, 30000/min, 0.5/s
    #[arg(long, value_name = "N/s", value_parser = rate)]
    rate: Option<f64>,
    /// Stop after N records
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = super::at_least::<u64, 1>)]
    limit: Option<u64>,
    /// Write the source N times
    #[arg(long, value_name = "N", default_value_t = 1, allow_negative_numbers = true, value_parser = super::at_least::<u64, 1>)]
    repeat: u64,
    /// Write the source again and again, until ctrl-C or --limit
    #[arg(long, conflicts_with = "repeat")]
    forever: bool,
    /// Write the records in random order, a new one for each pass over the source
    #[arg(long)]
    shuffle: bool,
    /// Seed of the random order
    #[arg(long, default_value_t = 0, value_name = "N", allow_negative_numbers = true, value_parser = super::at_least::<u64, 0>)]
    seed: u64,
    /// Compression of messages. Encoded images hardly shrink
    #[arg(long, value_enum, default_value_t = Compression::None)]
    compression: Compression,
    /// A property of librdkafka, such as security.protocol=SSL, or @client.properties to read them from a file, where
    /// passwords belong; can be repeated, and the last value counts
    #[arg(long = "property", value_name = "NAME=VALUE")]
    properties: Vec<String>,
    /// What to do with a record that cannot be read
    #[arg(long, value_enum, default_value_t = OnError::Fail)]
    on_error: OnError,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// The encoded image
    Image,
    /// A JSON object: image (base64), label, and each field by its name
    Json,
    /// An Arrow IPC stream of one row: image, label, and each field by its name
    Arrow,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Compression {
    None,
    Gzip,
    Snappy,
    Lz4,
    Zstd,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum OnError {
    /// Stop and name it
    Fail,
    /// Leave it out, and name it at the end
    Skip,
}

/// "500/s" in records a second.
fn rate(text: &str) -> Result<f64, String> {
    let wrong = || "not a rate; write one like 500/s, 30000/min or 0.5/s".to_owned();
    let (number, unit) = text.split_once('/').unwrap_or((text, "s"));
    let seconds = match unit.trim() {
        "s" | "sec" | "second" => 1.0,
        "m" | "min" | "minute" => 60.0,
        "h" | "hour" => 3600.0,
        _ => return Err(wrong()),
    };
    let rate = number.trim().parse::<f64>().map_err(|_| wrong())? / seconds;
    if rate.is_finite() && (1e-6..=1e9).contains(&rate) { Ok(rate) } else { Err(wrong()) }
}

impl Produce {
    pub fn run(self) -> Result<(), Failure> {
        signals::watch()?;
        let source = read::open(&self.source, &self.options, self.fields.as_deref())?;
        let format = self.format(&source.schema())?;
        let schema = self.members(&source, format)?;
        if self.label_names && source.classes().is_empty() {
            return Err(format!("--label-names: the labels of {} have no names", self.source).into());
        }
        let producer = self.producer()?;
        let created = self.topic(&producer)?;
        Run {
            produce: &self,
            producer,
            created,
            format,
            schema,
            sent: 0,
            bytes: 0,
            skipped: Vec::new(),
            skipped_records: 0,
            began: Instant::now(),
            due: Instant::now(),
        }
        .write(&source)
    }

    fn format(&self, schema: &Schema) -> Result<KafkaValue, Failure> {
        let has_others = !schema.parts.is_empty() || !schema.fields.is_empty();
        let is_image = schema.image && !(self.fields.is_some() && has_others);
        let format = self.value.unwrap_or(if is_image { Format::Image } else { Format::Json });
        if format == Format::Image && !schema.image {
            return Err(format!("--value image: {} holds no images; use json or arrow", self.source).into());
        }
        if format == Format::Image && has_others {
            let names = schema.parts.iter().map(|part| &part.name);
            let names: Vec<_> = names.chain(schema.fields.iter().map(|field| &field.name)).cloned().collect();
            let names = names.join(", ");
            if self.fields.is_some() {
                return Err(format!(
                    "--value image writes the images alone, and --fields also asks for {names}; use json or arrow, or \
                     leave them out of --fields"
                )
                .into());
            }
            eprintln!("note: only the images are written; --value json or arrow also holds {names}");
        }
        Ok(match format {
            Format::Image => KafkaValue::Image,
            Format::Json => KafkaValue::Json,
            Format::Arrow => KafkaValue::Arrow,
        })
    }

    /// The source's schema, with the names that parts and fields have in the messages.
    fn members(&self, source: &Arc<dyn IndexedSource>, format: KafkaValue) -> Result<Schema, Failure> {
        let schema = source.schema();
        if format == KafkaValue::Image {
            return Ok(schema);
        }
        let named = parts::named(schema.clone(), self.fields.as_deref())?;
        let mut taken = HashSet::new();
        taken.extend(named.image.then_some("image"));
        taken.extend(source.is_labelled().then_some("label"));
        let parts = named.parts.iter().map(|part| part.name.as_str());
        for name in parts.chain(named.fields.iter().map(|field| field.name.as_str())) {
            if !taken.insert(name) {
                return Err(format!(
                    "two values of a message would be called {name:?}; give one of them another name in --fields \
                     (\"name\")"
                )
                .into());
            }
        }
        if let Some(field) = named.fields.iter().find(|field| field.name.contains(['[', ':'])) {
            return Err(format!(
                "the numbers {:?} cannot be read back under this name, since '[' and ':' begin a shape and a type; \
                 give them another one in --fields (\"name\")",
                field.name
            )
            .into());
        }
        for (asked, part) in schema.parts.iter().zip(&named.parts) {
            let spelled = spelled(&part.name);
            if spelled != asked.name {
                eprintln!("note: part {:?} is {spelled:?} in the messages", asked.name);
            }
        }
        Ok(named)
    }

    fn producer(&self) -> Result<KafkaProducer, Failure> {
        let mut pairs =
            vec![("compression.type".to_owned(), format!("{:?}", self.compression).to_lowercase())];
        for property in &self.properties {
            if let Some(path) = property.strip_prefix('@') {
                pairs.extend(source::properties_file(path)?.into_pairs());
                continue;
            }
            let (name, value) = property.split_once('=').ok_or_else(|| {
                format!("--property {property}: write NAME=VALUE, such as linger.ms=50, or @FILE")
            })?;
            pairs.push((name.trim().to_owned(), value.to_owned()));
        }
        let address = self.topic.strip_prefix("kafka://").and_then(|address| address.split_once('/'));
        let Some((servers, topic)) = address else {
            return Err(format!("{}: write the topic as kafka://host:9092/topic", self.topic).into());
        };
        let servers: Vec<_> = servers.split(',').map(str::to_owned).collect();
        let mut producer = KafkaProducer::open(&servers, topic, &KafkaProperties::new(pairs))?;
        producer.set_stop(signals::interrupted);
        Ok(producer)
    }

    /// Sees to it that the topic is there; whether it was created.
    fn topic(&self, producer: &KafkaProducer) -> Result<bool, Failure> {
        let topic = producer.topic();
        let there = producer.partitions().map_err(|error| interrupted_or(error.to_string()))?;
        match (there, self.partitions) {
            (None, Some(partitions)) => Ok(producer.create_topic(partitions, self.replication)?),
            (None, None) => Err(format!(
                "there is no topic {topic:?}; create it with --partitions N (readers share the work by partition; 8 is a good \
                 number)"
            )
            .into()),
            (Some(there), Some(wanted)) if there != wanted => {
                eprintln!(
                    "note: topic {topic:?} already exists with {}; ignoring --partitions {wanted}",
                    counted(there.into(), "partition")
                );
                Ok(false)
            }
            (Some(_), _) => Ok(false),
        }
    }
}

/// Writing, and how far it is.
struct Run<'a> {
    produce: &'a Produce,
    producer: KafkaProducer,
    created: bool,
    format: KafkaValue,
    schema: Schema,
    sent: u64,
    /// Of the values.
    bytes: u64,
    skipped: Vec<String>,
    skipped_records: u64,
    began: Instant,
    /// When the next record may be sent.
    due: Instant,
}

impl Run<'_> {
    fn write(mut self, source: &Arc<dyn IndexedSource>) -> Result<(), Failure> {
        let len = source.len();
        let passes = if self.produce.forever { u64::MAX } else { self.produce.repeat };
        let total = len.saturating_mul(passes).min(self.produce.limit.unwrap_or(u64::MAX));
        let bar = bar(total);
        let order = if self.produce.shuffle {
            Order::shuffled(len, self.produce.seed)
        } else {
            Order::sequential(len, 0)
        };
        let mut done = 0;
        while done < total {
            let order = order.epoch(done / len);
            let encode = Encode {
                source: source.clone(),
                schema: self.schema.clone(),
                format: self.format,
                names: self.produce.label_names,
            };
            let written = read::in_order(
                source,
                len.min(total - done),
                |at| order.index(at),
                move |index, result| encode.prepare(index, result),
                |at, prepared| {
                    self.record(source, order.index(at), prepared)?;
                    bar.inc(1);
                    bar.set_message(HumanBytes(self.bytes).to_string());
                    Ok(())
                },
            );
            if let Err(error) = written {
                drop(bar);
                return Err(self.give_up(error));
            }
            done += len.min(total - done);
        }
        let flushed = self.producer.flush(LAST);
        drop(bar);
        if let Err(error) = flushed {
            return Err(self.give_up(if signals::interrupted() {
                ClientError::Interrupted.into()
            } else {
                error.into()
            }));
        }
        self.report();
        Ok(())
    }

    fn record(
        &mut self,
        source: &Arc<dyn IndexedSource>,
        index: u64,
        prepared: Prepared,
    ) -> Result<(), Failure> {
        let message = match prepared {
            Prepared::Message(message) => message,
            Prepared::Failed(why) => return Err(why.into()),
            Prepared::Unreadable(why) => {
                let line = format!("{}: {why}", source.key(index));
                if self.produce.on_error == OnError::Fail {
                    return Err(format!(
                        "{line}. Repair or remove it, or skip such records with --on-error skip"
                    )
                    .into());
                }
                self.skipped_records += 1;
                if self.skipped.len() < LISTED {
                    self.skipped.push(line);
                }
                return Ok(());
            }
        };
        self.wait()?;
        let key = source.key(index);
        let label = source.is_labelled().then(|| source.label(index));
        let class = label.and_then(|label| class(source, label));
        let label = match class {
            Some(class) if self.produce.label_names => Some(class.to_owned()),
            _ => label.map(|label| label.to_string()),
        };
        let mut headers: Vec<_> = label.iter().map(|label| ("label", label.as_bytes())).collect();
        headers.extend(class.map(|class| ("class", class.as_bytes())));
        let value = message.bytes();
        self.producer
            .send(Some(key.as_bytes()), Some(value), &headers)
            .map_err(|error| interrupted_or(format!("{key}: {error}")))?;
        self.sent += 1;
        self.bytes += value.len() as u64;
        Ok(())
    }

    /// Until the rate allows another record.
    fn wait(&mut self) -> Result<(), Failure> {
        let Some(rate) = self.produce.rate else { return Ok(()) };
        loop {
            let now = Instant::now();
            if now >= self.due {
                // A tenth of a second is made up for: sleeping is not that precise.
                let earliest = now.checked_sub(Duration::from_millis(100)).unwrap_or(now);
                self.due = self.due.max(earliest) + Duration::from_secs_f64(1.0 / rate);
                return Ok(());
            }
            if signals::interrupted() {
                return Err(ClientError::Interrupted.into());
            }
            std::thread::sleep((self.due - now).min(Duration::from_millis(100)));
        }
    }

    /// Says what has arrived, and hands the error on.
    fn give_up(&self, error: Failure) -> Failure {
        // Why it may fail is known already.
        let _ = self.producer.flush(LAST_INTERRUPTED);
        eprintln!(
            "stopped: {} of {} acknowledged by topic {:?}",
            grouped(self.producer.delivered()),
            counted(self.sent, "record"),
            self.producer.topic()
        );
        error
    }

    fn report(&self) {
        let seconds = self.began.elapsed().as_secs_f64();
        say!(
            "{}, {}, in topic {:?}{}: {:.1} s, {} records/s, {}/s",
            counted(self.producer.delivered(), "record"),
            HumanBytes(self.bytes),
            self.producer.topic(),
            if self.created { " (created)" } else { "" },
            seconds,
            rounded(self.sent as f64 / seconds),
            HumanBytes((self.bytes as f64 / seconds) as u64)
        );
        if self.skipped_records > 0 {
            say!("{} left out because they could not be read:", counted(self.skipped_records, "record"));
            self.skipped.iter().for_each(|line| say!("  {line}"));
            if self.skipped_records > self.skipped.len() as u64 {
                say!("  …");
            }
        }
    }
}

fn interrupted_or(text: String) -> Failure {
    if signals::interrupted() { ClientError::Interrupted.into() } else { text.into() }
}

/// One record, ready to be sent, or why there is none.
enum Prepared {
    Message(Message),
    Unreadable(String),
    /// The environment is broken: no record's fault.
    Failed(String),
}

enum Message {
    /// So many bytes of the record, as they are.
    Kept(Buffer, usize),
    Encoded(Vec<u8>),
}

impl Message {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Kept(buffer, len) => &buffer[..*len],
            Self::Encoded(bytes) => bytes,
        }
    }
}

/// What each record becomes.
struct Encode {
    source: Arc<dyn IndexedSource>,
    schema: Schema,
    format: KafkaValue,
    /// Classes by name.
    names: bool,
}

impl Encode {
    fn prepare(&self, index: u64, result: Result<Record, ReadError>) -> Prepared {
        let record = match result {
            Ok(record) => record,
            Err(error) if error.kind() == ReadErrorKind::Bad => {
                return Prepared::Unreadable(error.detail().to_owned());
            }
            Err(error) => return Prepared::Failed(error.to_string()),
        };
        if self.format == KafkaValue::Image {
            let image = self.schema.cut(&record.bytes).map(|cut| cut.image.len());
            return match image {
                Some(len) => Prepared::Message(Message::Kept(record.bytes, len)),
                None => Prepared::Unreadable("it is shorter than its fields".into()),
            };
        }
        let label = self.source.is_labelled().then(|| self.source.label(index));
        let class = label.and_then(|label| class(&self.source, label)).filter(|_| self.names);
        if let Err(why) = self.judge(&record.bytes) {
            return Prepared::Unreadable(why);
        }
        match encode_kafka_value(self.format, &self.schema, &record.bytes, label, class) {
            Ok(value) => Prepared::Message(Message::Encoded(value)),
            Err(why) => Prepared::Unreadable(why),
        }
    }

    /// Refuses parts that no reader could use: text that is not UTF-8, JSON that is none.
    fn judge(&self, record: &[u8]) -> Result<(), String> {
        let cut = self.schema.cut(record).ok_or("it is shorter than its fields")?;
        for (part, bytes) in self.schema.parts.iter().zip(cut.parts) {
            // Whether an empty value is JSON depends on the format of the message.
            if let Some(bytes) = bytes.filter(|bytes| !bytes.is_empty()) {
                fields::length(&part.kind, bytes).map_err(|why| format!("part {:?}: {why}", part.name))?;
            }
        }
        Ok(())
    }
}

/// A part's name as a reader of the messages writes it: what would mean something else there gets the word in front
/// that says that it is a place in the value.
fn spelled(name: &str) -> String {
    let is_other =
        ["key", "value"].contains(&name) || ["header:", "json:"].iter().any(|word| name.starts_with(word));
    if is_other { format!("json:{name}") } else { name.to_owned() }
}

fn class(source: &Arc<dyn IndexedSource>, label: i64) -> Option<&str> {
    source.classes().get(usize::try_from(label).ok()?).map(String::as_str)
}

fn bar(total: u64) -> Bar {
    if total == u64::MAX {
        Bar::new(None, "producing {spinner} {human_pos} records  {rate}  {msg}  {elapsed}")
    } else {
        Bar::new(Some(total), "producing {wide_bar} {human_pos} of {human_len}  {rate}  {msg}  {eta} left")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_records_in_a_time() {
        assert_eq!(rate("500/s"), Ok(500.0));
        assert_eq!(rate("500"), Ok(500.0));
        assert_eq!(rate("30000/min"), Ok(500.0));
        assert_eq!(rate("0.5 / s"), Ok(0.5));
        for wrong in ["", "fast", "0/s", "-1/s", "1/day", "inf/s", "NaN", "1e300/s"] {
            assert!(rate(wrong).is_err(), "{wrong}");
        }
    }
}
