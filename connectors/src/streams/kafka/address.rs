//! `kafka://host:9092,host2:9092/topic,topic2?window_offsets=100`, taken apart.

use serde_json::{Map, Value};

use super::properties::is_path;
use crate::SourceError;

/// Before everything else.
const SCHEME: &str = "kafka://";

/// What addresses say.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Address {
    servers: Vec<String>,
    topics: Vec<String>,
    options: Map<String, Value>,
}

/// Whether it is one of Kafka's.
pub(crate) fn is_kafka(address: &str) -> bool {
    address.starts_with(SCHEME)
}

/// As it may be shown: an option may be a secret.
pub(crate) fn shown(address: &str) -> String {
    let text = address.split('?').next().unwrap_or_default();
    let rest = text.strip_prefix(SCHEME).unwrap_or(text);
    format!("{SCHEME}{}", rest.rsplit_once('@').map_or(rest, |(_, rest)| rest))
}

/// Each topic's own address.
pub(crate) fn locations(address: &str) -> Vec<String> {
    let shown = shown(address);
    let (servers, topics) = shown[SCHEME.len()..].split_once('/').unwrap_or((&shown[SCHEME.len()..], ""));
    topics.split(',').map(|topic| format!("{SCHEME}{servers}/{topic}")).collect()
}

impl Address {
    /// Takes addresses apart; several are topics of one cluster.
    ///
    /// # Errors
    /// A sentence that shows no secret.
    pub(crate) fn parse(addresses: &[String]) -> Result<Self, SourceError> {
        let mut all = Self::default();
        for address in addresses {
            let one = Self::parse_one(address)?;
            if !all.servers.is_empty() && one.servers != all.servers {
                return Err(SourceError::config(format!(
                    "{} and {} name other brokers; topics of one source are those of one cluster",
                    shown(&addresses[0]),
                    shown(address)
                )));
            }
            all.servers = one.servers;
            all.topics.extend(one.topics);
            for (key, value) in one.options {
                if all.options.insert(key.clone(), value).is_some() {
                    return Err(SourceError::config(format!("{} sets {key} a second time", shown(address))));
                }
            }
        }
        Ok(all)
    }

    fn parse_one(address: &str) -> Result<Self, SourceError> {
        let refuse = |why: &str| SourceError::config(format!("{}: {why}", shown(address)));
        let rest =
            address.strip_prefix(SCHEME).ok_or_else(|| refuse("the other addresses are topics of Kafka"))?;
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        if rest.contains('@') {
            return Err(refuse(
                "a name and a password do not belong in an address; they are the properties sasl.username and sasl.password",
            ));
        }
        let (servers, topics) = rest.split_once('/').unwrap_or((rest, ""));
        let list = |text: &str| -> Vec<String> {
            text.split(',').map(str::trim).filter(|part| !part.is_empty()).map(str::to_owned).collect()
        };
        let mut options = Map::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, text) =
                pair.split_once('=').ok_or_else(|| refuse("an option is not of the form key=value"))?;
            let value = serde_json::from_str(text).unwrap_or_else(|_| text.into());
            if options.insert(key.to_owned(), value).is_some() {
                return Err(refuse(&format!("{key} is set twice")));
            }
        }
        let (servers, topics) = (list(servers), list(topics));
        if servers.is_empty() || topics.is_empty() {
            return Err(refuse("brokers and topics are expected: kafka://host:9092/topic"));
        }
        Ok(Self { servers, topics, options })
    }

    /// Adds what the addresses say to options that were given beside them. `absolute` completes paths.
    ///
    /// # Errors
    /// When both say the same thing.
    pub(crate) fn add_to(
        self,
        options: &mut Map<String, Value>,
        absolute: impl Fn(&str) -> String,
    ) -> Result<(), SourceError> {
        let own = [("servers", self.servers.into()), ("topics", self.topics.into())]
            .map(|(key, value)| (key.to_owned(), value));
        for (key, value) in own.into_iter().chain(self.options) {
            if options.insert(key.clone(), value).is_some() {
                return Err(SourceError::config(format!(
                    "{key} is set both in the address and as an option; leave one out"
                )));
            }
        }
        if let Some(properties) = options.get_mut("properties").and_then(Value::as_object_mut) {
            for (name, value) in properties {
                if is_path(name)
                    && let Some(path) = value.as_str()
                {
                    *value = absolute(path).into();
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{AddressConfig, KafkaConfig, SourceConfig};

    fn resolve(addresses: &[&str], options: Value) -> Result<KafkaConfig, String> {
        let address = addresses.iter().map(|address| (*address).to_owned()).collect();
        let options = options.as_object().unwrap().clone();
        let config = AddressConfig { address, base: Some("/base".into()), options };
        match config.resolve().map_err(|error| error.to_string())? {
            SourceConfig::Kafka(config) => Ok(config),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn an_address_names_brokers_topics_and_options() {
        let config = resolve(
            &["kafka://a:9092,[::1]:9093/x,y-*?window_offsets=100&start=2026-01-31T08:00:00Z&value=json"],
            serde_json::json!({"properties": {"ssl.ca.location": "ca.pem", "sasl.username": "me"}}),
        )
        .unwrap();
        assert_eq!(config.servers, ["a:9092", "[::1]:9093"]);
        assert_eq!(config.topics, ["x", "y-*"]);
        assert_eq!(config.window_offsets, Some(100));
        config.check().unwrap();
        assert_eq!(
            config.locations(),
            ["kafka://a:9092,[::1]:9093/x", "kafka://a:9092,[::1]:9093/y-*", "/base/ca.pem"]
        );
        let two = resolve(&["kafka://a:9092/x", "kafka://a:9092/y?end=end"], serde_json::json!({})).unwrap();
        assert_eq!(two.topics, ["x", "y"]);
        let address = AddressConfig {
            address: vec!["kafka://u:secret@a:9092/x,y?properties={}".into()],
            base: None,
            options: Map::new(),
        };
        assert_eq!(SourceConfig::Address(address).locations(), ["kafka://a:9092/x", "kafka://a:9092/y"]);
    }

    #[test]
    fn a_wrong_address_is_refused_without_showing_a_secret() {
        for (addresses, options, why) in [
            (&["kafka://a:9092"][..], serde_json::json!({}), "kafka://host:9092/topic"),
            (&["kafka:///x"], serde_json::json!({}), "kafka://host:9092/topic"),
            (&["kafka://me:secret@a:9092/x"], serde_json::json!({}), "sasl.password"),
            (
                &["kafka://a/x?properties={\"sasl.password\":\"secret\"}&b"],
                serde_json::json!({}),
                "key=value",
            ),
            (&["kafka://a/x?end=1&end=2"], serde_json::json!({}), "end is set twice"),
            (&["kafka://a/x?end=1"], serde_json::json!({"end": 2}), "end is set both in the address"),
            (&["kafka://a/x", "kafka://b/x"], serde_json::json!({}), "other brokers"),
            (&["kafka://a/x", "y.tar"], serde_json::json!({}), "topics of Kafka"),
            (&["kafka://a/x"], serde_json::json!({"widnow_offsets": 2}), "widnow_offsets"),
            (&["kafka://a/x?start=yesterday"], serde_json::json!({}), "yesterday"),
            (
                &["kafka://a/x"],
                serde_json::json!({"properties": {"sasl.password": ["secret"]}}),
                "sasl.password",
            ),
        ] {
            let error = resolve(addresses, options).unwrap_err();
            assert!(error.contains(why) && !error.contains("secret"), "{addresses:?}: {error}");
        }
    }
}
