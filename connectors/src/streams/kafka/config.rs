//! What a user says about a Kafka source, and what of it makes no sense.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use chrono::{DateTime, SecondsFormat, Utc};
use regex_lite::Regex;
use serde::de::{Error, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::properties::KafkaProperties;
use crate::SourceError;

/// Windows hold this many offsets unless something else is said.
pub(super) const WINDOW_RECORDS: u64 = 16_384;
/// And no more bytes than this.
pub(super) const WINDOW_BYTES: u64 = 256 << 20;
/// And at the end of the log they close after this time.
pub(super) const WINDOW_SECONDS: f64 = 10.0;
/// Larger records are bad ones.
pub(super) const MAX_RECORD_BYTES: u64 = 64 << 20;

/// A Kafka source.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct KafkaConfig {
    /// Brokers to ask first: `host:port`.
    pub servers: Vec<String>,
    /// Topics: names, patterns with `*` and `?`, or regular expressions that begin with `^`.
    pub topics: Vec<String>,
    /// Where the first epoch begins. Default: at the beginning.
    #[serde(skip_serializing_if = "KafkaPoint::is_beginning")]
    pub start: KafkaPoint,
    /// Where each epoch ends; without it there is one that never does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub end: Option<KafkaPoint>,
    /// Offsets in a window, over all partitions. Default: 16384.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub window_records: Option<u64>,
    /// Bytes in a window, at most: a number, or text such as `"256 MiB"` (the default).
    #[serde(
        skip_serializing_if = "Option::is_none",
        deserialize_with = "crate::bytes::cache::size::deserialize"
    )]
    pub window_bytes: Option<u64>,
    /// Seconds after which a window is closed with what there is, counted from its first record. Default: 10.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub window_seconds: Option<f64>,
    /// Offsets of each partition in a window, exactly: several daemons cut the same windows without talking.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub window_offsets: Option<u64>,
    /// What a message's value is.
    #[serde(skip_serializing_if = "KafkaValue::is_image")]
    pub value: KafkaValue,
    /// JSON and Arrow: the column that holds the image (in JSON as base64); `""` for none. Default: `image`, `img`,
    /// `jpg`,
    /// `jpeg`, `png`, `bytes` or `content`, whichever a record has, and none where `fields` are given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// Where the label is: `"key"`, `"header:NAME"`, or with JSON and Arrow a column; `""` or null for nowhere.
    /// Default:
    /// `"header:label"`, or the column with a usual name (`label`, `cls`, …). A record without its label is a bad one.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "crate::labels::name_or_none")]
    pub label: Option<String>,
    /// Class names in label order, where labels are texts.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "crate::texts::optional")]
    pub classes: Option<Vec<String>>,
    /// JSON and Arrow: columns delivered as numeric fields, with shape and type: `"age"`, `"box[4]"`, `"ids[128]:i64"`.
    /// Without a type f32.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "crate::texts::optional")]
    pub fields: Option<Vec<String>>,
    /// Larger records are bad records, of which only the size is kept. Default: 64 MiB.
    #[serde(
        skip_serializing_if = "Option::is_none",
        deserialize_with = "crate::bytes::cache::size::deserialize"
    )]
    pub max_record_bytes: Option<u64>,
    /// librdkafka's own properties by their own names.
    #[serde(skip_serializing_if = "KafkaProperties::is_empty")]
    pub properties: KafkaProperties,
    /// What records are to hold, by part. Filled in by a pipeline's fields.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deliver: crate::Deliver,
}

/// What the value of a message is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KafkaValue {
    /// An encoded image.
    #[default]
    Image,
    /// A JSON object.
    Json,
    /// An Arrow IPC stream or file with one row.
    Arrow,
}

impl KafkaValue {
    fn is_image(&self) -> bool {
        *self == Self::Image
    }
}

/// A place in a log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum KafkaPoint {
    /// The oldest record that is still there.
    #[default]
    Beginning,
    /// Behind the newest record at the time of opening.
    End,
    /// This offset, in each partition.
    Offset(u64),
    /// The first record that is not older than this.
    Time(DateTime<Utc>),
    /// An offset for each partition of each topic.
    Offsets(BTreeMap<String, BTreeMap<u32, u64>>),
}

impl KafkaPoint {
    fn is_beginning(&self) -> bool {
        *self == Self::Beginning
    }

    /// Whether it is the same place whenever it is asked for.
    pub(super) fn is_fixed(&self) -> bool {
        matches!(self, Self::Offset(_) | Self::Offsets(_) | Self::Time(_))
    }
}

const POINT: &str = "\"beginning\", \"end\", an offset, a time such as \"2026-01-31T08:00:00Z\", or offsets by topic and \
                     partition such as {\"topic\": {\"0\": 1200}}";

impl Serialize for KafkaPoint {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Beginning => serializer.serialize_str("beginning"),
            Self::End => serializer.serialize_str("end"),
            Self::Offset(offset) => serializer.serialize_u64(*offset),
            Self::Time(time) => serializer.serialize_str(&time.to_rfc3339_opts(SecondsFormat::AutoSi, true)),
            Self::Offsets(topics) => {
                let text = |(partition, offset): (&u32, &u64)| (partition.to_string(), *offset);
                serializer.collect_map(
                    topics.iter().map(|(topic, offsets)| {
                        (topic, offsets.iter().map(text).collect::<BTreeMap<_, _>>())
                    }),
                )
            }
        }
    }
}

impl<'de> Deserialize<'de> for KafkaPoint {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Point;

        impl<'de> Visitor<'de> for Point {
            type Value = KafkaPoint;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(POINT)
            }

            fn visit_u64<E: Error>(self, offset: u64) -> Result<Self::Value, E> {
                Ok(KafkaPoint::Offset(offset))
            }

            fn visit_i64<E: Error>(self, offset: i64) -> Result<Self::Value, E> {
                u64::try_from(offset)
                    .map(KafkaPoint::Offset)
                    .map_err(|_| E::custom(format!("it takes {POINT}, not {offset}")))
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
                match text {
                    "beginning" => Ok(KafkaPoint::Beginning),
                    "end" => Ok(KafkaPoint::End),
                    _ => match DateTime::parse_from_rfc3339(text) {
                        Ok(time) => Ok(KafkaPoint::Time(time.to_utc())),
                        Err(_) => Err(E::custom(format!("it takes {POINT}, not {text:?}"))),
                    },
                }
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut topics = BTreeMap::new();
                while let Some(topic) = map.next_key::<String>()? {
                    let mut offsets = BTreeMap::new();
                    for (partition, offset) in map.next_value::<BTreeMap<String, u64>>()? {
                        let number =
                            partition.parse::<u32>().ok().filter(|number| *number <= i32::MAX as u32);
                        let Some(number) = number else {
                            return Err(A::Error::custom(format!(
                                "{partition:?} is not the number of a partition"
                            )));
                        };
                        offsets.insert(number, offset);
                    }
                    topics.insert(topic, offsets);
                }
                Ok(KafkaPoint::Offsets(topics))
            }
        }

        deserializer.deserialize_any(Point)
    }
}

/// How windows are cut.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Cut {
    /// This many offsets over all partitions, or what there is after some time.
    Records { records: u64, patience: Duration },
    /// This many offsets of each partition.
    Offsets(u64),
}

impl KafkaConfig {
    /// What it reads, as addresses, and the files that its properties name.
    pub(crate) fn locations(&self) -> Vec<String> {
        let servers = self.servers.join(",");
        let topics = self.topics.iter().map(|topic| format!("kafka://{servers}/{topic}"));
        topics.chain(self.properties.paths().map(str::to_owned)).collect()
    }

    /// Its name in messages.
    pub(super) fn name(&self) -> String {
        format!("kafka://{}/{}", self.servers.join(","), self.topics.join(","))
    }

    /// Refuses what makes no sense, and says how windows are cut.
    pub(super) fn check(&self) -> Result<Cut, SourceError> {
        let refuse = |text: String| Err(SourceError::config(text));
        check_servers(&self.servers)?;
        if self.topics.is_empty() {
            return refuse(
                "a Kafka source needs at least one topic: kafka://host:9092/topic, or topics = [\"…\"]"
                    .into(),
            );
        }
        for topic in &self.topics {
            Wanted::parse(topic)?;
        }
        if self.end == Some(KafkaPoint::Beginning) {
            return refuse(
                "end is \"beginning\", so there is nothing to read; give an offset, a time or \"end\"".into(),
            );
        }
        if let (KafkaPoint::Time(start), Some(KafkaPoint::Time(end))) = (&self.start, &self.end)
            && start >= end
        {
            return refuse(format!("start ({start}) is not before end ({end})"));
        }
        if self.start == KafkaPoint::End && self.end == Some(KafkaPoint::End) {
            return refuse(
                "start and end are both \"end\", so there is nothing to read; leave out end".into(),
            );
        }
        if self.window_bytes == Some(0) {
            return refuse("window_bytes is 0; a window needs room; leave it out (256 MiB)".into());
        }
        if self.max_record_bytes == Some(0) {
            return refuse(
                "max_record_bytes is 0, so that every record would be too large; leave it out (64 MiB)"
                    .into(),
            );
        }
        let count = |name: &str, count: u64| {
            if (1..=1 << 32).contains(&count) {
                return Ok(count);
            }
            Err(SourceError::config(format!("{name} is {count}; it must be 1 to {}", 1u64 << 32)))
        };
        let seconds = self.window_seconds.unwrap_or(WINDOW_SECONDS);
        if !(0.0..=86_400.0).contains(&seconds) {
            return refuse(format!("window_seconds is {seconds}; it must be 0 to 86400"));
        }
        if let Some(offsets) = self.window_offsets {
            let also = [
                ("window_records", self.window_records.is_some()),
                ("window_seconds", self.window_seconds.is_some()),
            ];
            if let Some((other, _)) = also.iter().find(|(_, given)| *given) {
                return refuse(format!(
                    "window_offsets and {other} are both given: a window closes after exactly N offsets of each \
                     partition or by other limits, not both; leave one of them out"
                ));
            }
            return Ok(Cut::Offsets(count("window_offsets", offsets)?));
        }
        let records = count("window_records", self.window_records.unwrap_or(WINDOW_RECORDS))?;
        Ok(Cut::Records { records, patience: Duration::from_secs_f64(seconds) })
    }

    /// Bytes of records in a window, at most.
    pub(super) fn window_bytes(&self) -> u64 {
        self.window_bytes.unwrap_or(WINDOW_BYTES)
    }

    /// Bytes of a record, at most.
    pub(super) fn max_record_bytes(&self) -> u64 {
        self.max_record_bytes.unwrap_or(MAX_RECORD_BYTES)
    }
}

/// Topics that are asked for.
#[derive(Debug)]
pub(super) enum Wanted {
    Name(String),
    Pattern(Regex),
}

impl Wanted {
    pub(super) fn parse(text: &str) -> Result<Self, SourceError> {
        let regex = if text.starts_with('^') {
            text.to_owned()
        } else if text.contains(['*', '?']) {
            check_topic(&text.replace(['*', '?'], "x"))?;
            format!("^{}$", regex_lite::escape(text).replace(r"\*", ".*").replace(r"\?", "."))
        } else {
            check_topic(text)?;
            return Ok(Self::Name(text.to_owned()));
        };
        Regex::new(&regex).map(Self::Pattern).map_err(|error| {
            SourceError::config(format!("the topic pattern {text:?} cannot be used: {error}"))
        })
    }

    /// Whether a topic is meant. A pattern means none of Kafka's own, which begin with two underscores.
    pub(super) fn means(&self, topic: &str) -> bool {
        match self {
            Self::Name(name) => name == topic,
            Self::Pattern(regex) => !topic.starts_with("__") && regex.is_match(topic),
        }
    }
}

/// Brokers as librdkafka wants them.
pub(super) fn check_servers(servers: &[String]) -> Result<String, SourceError> {
    if servers.is_empty() {
        return Err(SourceError::config(
            "Kafka needs the address of a broker: kafka://host:9092/topic, or servers = [\"host:9092\"]"
                .into(),
        ));
    }
    for server in servers {
        if server.contains('@') {
            return Err(SourceError::config(
                "a name and a password do not belong in the address of a broker; they are the properties sasl.username and \
                 sasl.password"
                    .into(),
            ));
        }
        let (host, port) = match server.rsplit_once(':') {
            // An IPv6 address without a port has colons too.
            Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
            _ => (server.as_str(), None),
        };
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        let good_host = match bare {
            Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
            None => {
                !host.is_empty()
                    && host.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'))
            }
        };
        let good_port = port.is_none_or(|port| port.parse::<u16>().is_ok_and(|port| port > 0));
        if !good_host || !good_port {
            return Err(SourceError::config(format!(
                "{server:?} is not the address of a broker; host:port is expected, such as \"kafka1:9092\""
            )));
        }
    }
    Ok(servers.join(","))
}

/// Kafka's rule for names of topics.
pub(super) fn check_topic(topic: &str) -> Result<(), SourceError> {
    let good = (1..=249).contains(&topic.len())
        && topic != "."
        && topic != ".."
        && topic.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'));
    if good {
        return Ok(());
    }
    Err(SourceError::config(format!(
        "{topic:?} is not the name of a topic: letters, digits, '.', '-' and '_' are allowed, at most 249 of \
         them"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(options: serde_json::Value) -> Result<KafkaConfig, String> {
        let mut all = serde_json::json!({"servers": ["a:9092"], "topics": ["x"]});
        all.as_object_mut().unwrap().extend(options.as_object().unwrap().clone());
        let config: KafkaConfig = serde_json::from_value(all).map_err(|error| error.to_string())?;
        config.check().map_err(|error| error.to_string())?;
        Ok(config)
    }

    #[test]
    fn a_configuration_survives_a_round_trip_also_inside_of_a_source() {
        let text = r#"{"type":"kafka","servers":["a:9092"],"topics":["x","y-*"],"start":{"x":{"0":12,"10":7}},"end":"2026-01-31T08:00:00Z","window_bytes":1000000,"value":"json","fields":["box[4]"],"properties":{"fetch.max.bytes":"1000"}}"#;
        let source: crate::SourceConfig = serde_json::from_str(text).unwrap();
        assert_eq!(serde_json::to_string(&source).unwrap(), text);
        let small = config(serde_json::json!({"window_bytes": "1 MiB", "start": 5})).unwrap();
        assert_eq!((small.window_bytes(), small.start), (1 << 20, KafkaPoint::Offset(5)));
    }

    #[test]
    fn how_windows_are_cut_is_one_of_two() {
        let cut = |options| config(options).unwrap().check().unwrap();
        let patience = Duration::from_secs_f64(WINDOW_SECONDS);
        assert_eq!(cut(serde_json::json!({})), Cut::Records { records: WINDOW_RECORDS, patience });
        assert_eq!(cut(serde_json::json!({"window_offsets": 7})), Cut::Offsets(7));
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_what_to_do() {
        for (options, why) in [
            (serde_json::json!({"servers": []}), "kafka://host:9092/topic"),
            (serde_json::json!({"servers": ["a:b"]}), "host:port"),
            (serde_json::json!({"servers": ["a:0"]}), "host:port"),
            (serde_json::json!({"servers": ["a b:9092"]}), "host:port"),
            (serde_json::json!({"servers": ["[::z]:9092"]}), "host:port"),
            (serde_json::json!({"servers": ["me:secret@a:9092"]}), "sasl.password"),
            (serde_json::json!({"topics": []}), "at least one topic"),
            (serde_json::json!({"topics": ["a/b"]}), "a/b"),
            (serde_json::json!({"topics": ["^("]}), "^("),
            (serde_json::json!({"start": -1}), "-1"),
            (serde_json::json!({"start": "now"}), "now"),
            (serde_json::json!({"start": {"x": {"a": 1}}}), "\"a\""),
            (serde_json::json!({"end": "beginning"}), "nothing to read"),
            (serde_json::json!({"start": "end", "end": "end"}), "nothing to read"),
            (
                serde_json::json!({"start": "2026-01-02T00:00:00Z", "end": "2026-01-01T00:00:00Z"}),
                "not before",
            ),
            (serde_json::json!({"window_records": 0}), "window_records is 0"),
            (serde_json::json!({"window_offsets": 0}), "window_offsets is 0"),
            (serde_json::json!({"window_offsets": 5, "window_records": 5}), "window_records"),
            (serde_json::json!({"window_offsets": 5, "window_seconds": 5}), "window_seconds"),
            (serde_json::json!({"window_seconds": -1}), "window_seconds is -1"),
            (serde_json::json!({"window_bytes": 0}), "window_bytes is 0"),
            (serde_json::json!({"max_record_bytes": 0}), "max_record_bytes is 0"),
            (serde_json::json!({"window_byte": 1}), "window_byte"),
            (serde_json::json!({"value": "avro"}), "avro"),
        ] {
            let error = config(options.clone()).unwrap_err();
            assert!(error.contains(why) && !error.contains("secret"), "{options}: {error}");
        }
    }

    #[test]
    fn patterns_mean_topics_but_none_of_kafkas_own() {
        let means = |pattern: &str, topic: &str| Wanted::parse(pattern).unwrap().means(topic);
        assert!(means("images", "images") && !means("images", "images2"));
        assert!(means("im*s", "images") && !means("im*s", "images2"));
        assert!(means("a.b-?", "a.b-1") && !means("a.b-?", "acb-1") && !means("a.b-?", "a.b-12"));
        assert!(means("^im", "images") && means("^(a|b)$", "b") && !means("^(a|b)$", "ab"));
        assert!(!means("*", "__consumer_offsets") && means("__consumer_offsets", "__consumer_offsets"));
    }
}
