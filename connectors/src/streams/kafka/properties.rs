//! librdkafka's properties by their own names, and which of them are not the user's to set.
//!
//! A value may be a password, so none is part of a `Debug` text or a fingerprint, and of errors and log lines only
//! those are whose names say that they are none: paths of files, and what librdkafka says of a protocol or a number.

use std::collections::BTreeMap;
use std::fmt;

use rdkafka::ClientConfig;
use rdkafka::error::KafkaError;
use serde::de::{Error, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use crate::SourceError;

/// Properties of librdkafka: texts, numbers and booleans by name.
#[derive(Clone, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct KafkaProperties(BTreeMap<String, String>);

/// Who is configured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Consumer,
    Producer,
}

/// Properties that are refused, with the reason.
const REFUSED: [(&str, &str); 31] = [
    ("bootstrap.servers", SERVERS),
    ("metadata.broker.list", SERVERS),
    ("enable.auto.commit", OFFSETS),
    ("auto.commit.enable", OFFSETS),
    ("auto.commit.interval.ms", OFFSETS),
    ("enable.auto.offset.store", OFFSETS),
    ("offset.store.method", OFFSETS),
    ("offset.store.path", OFFSETS),
    ("offset.store.sync.interval.ms", OFFSETS),
    (
        "auto.offset.reset",
        "reading never jumps: `start` says where it begins, and data that is gone stops the run",
    ),
    ("enable.partition.eof", OURS),
    ("statistics.interval.ms", OURS),
    ("enabled_events", OURS),
    ("log.queue", OURS),
    ("consume.callback.max.messages", OURS),
    ("topic.metadata.propagation.max.ms", OURS),
    ("allow.auto.create.topics", "reading must not create a topic; `fuelrail produce` can"),
    ("group.instance.id", GROUP),
    ("group.protocol", GROUP),
    ("group.remote.assignor", GROUP),
    ("partition.assignment.strategy", GROUP),
    ("plugin.library.paths", CODE),
    ("interceptors", CODE),
    ("ssl.engine.location", CODE),
    ("ssl.engine.id", CODE),
    ("ssl_engine_callback_data", CODE),
    ("ssl.providers", CODE),
    ("sasl.kerberos.kinit.cmd", CODE),
    ("internal.termination.signal", "the signals of this process are not librdkafka's"),
    ("transactional.id", "records are written one by one, not in transactions"),
    ("opaque", OURS),
];

const SERVERS: &str = "the brokers are named by `servers` or by the address";
const OFFSETS: &str =
    "the offsets are in the model's checkpoint, and the broker is told only after it is saved";
const OURS: &str = "the source sets it itself and depends on it";
const GROUP: &str = "partitions are assigned explicitly and never rebalanced in a group";
const CODE: &str = "it loads or runs code";

/// What a producer may set although a consumer may not, since it means nothing to the guarantees there.
const PRODUCER_MAY: [&str; 1] = ["allow.auto.create.topics"];

/// Names of properties that a path follows.
const PATHS: [&str; 3] = [".location", ".file", ".keytab"];

/// Where tokens come from; without either, librdkafka would wait for somebody to give it one.
const TOKEN_METHOD: &str = "sasl.oauthbearer.method";
const TOKEN_UNSECURED: &str = "enable.sasl.oauthbearer.unsecure.jwt";

/// Means wherever the system keeps them.
const PROBE: &str = "probe";

impl KafkaProperties {
    /// Properties from names and values.
    pub fn new<Name: Into<String>, Value: Into<String>>(
        pairs: impl IntoIterator<Item = (Name, Value)>,
    ) -> Self {
        Self(pairs.into_iter().map(|(name, value)| (name.into(), value.into())).collect())
    }

    /// Properties as they stand in a file for Kafka's own clients: `NAME=VALUE` a line, `#` before what is none.
    ///
    /// # Errors
    /// Which line is something else, without what it holds.
    pub fn from_lines(text: &str) -> Result<Self, SourceError> {
        let mut properties = BTreeMap::new();
        for (number, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with(['#', '!']) {
                continue;
            }
            let pair = line.split_once('=').map(|(name, value)| (name.trim(), value.trim()));
            let Some((name, value)) = pair.filter(|(name, _)| !name.is_empty() && !line.contains('\0'))
            else {
                return Err(SourceError::config(format!(
                    "line {} is not of the form NAME=VALUE",
                    number + 1
                )));
            };
            if properties.insert(name.to_owned(), value.to_owned()).is_some() {
                return Err(SourceError::config(format!("line {}: {name} is set twice", number + 1)));
            }
        }
        Ok(Self(properties))
    }

    /// All of them, by name.
    pub fn into_pairs(self) -> impl Iterator<Item = (String, String)> {
        self.0.into_iter()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// A number that the user has set under one of a property's names.
    pub(super) fn number(&self, names: &[&str]) -> Option<u64> {
        names.iter().find_map(|name| self.get(name)?.parse().ok())
    }

    /// The files and folders that librdkafka would read.
    pub(super) fn paths(&self) -> impl Iterator<Item = &str> {
        self.0.iter().filter(|(name, _)| is_path(name)).map(|(_, value)| value.as_str())
    }

    /// Puts them over what is there already.
    ///
    /// # Errors
    /// A sentence that names the property that is refused or that does not exist.
    pub(super) fn apply(&self, role: Role, config: &mut ClientConfig) -> Result<(), SourceError> {
        for (name, value) in &self.0 {
            let refused = REFUSED.iter().find(|(refused, _)| refused == name);
            if let Some((_, why)) = refused
                && !(role == Role::Producer && PRODUCER_MAY.contains(&name.as_str()))
            {
                return Err(SourceError::config(format!(
                    "the property {name:?} cannot be set: {why}; leave it out"
                )));
            }
            // OpenSSL would only say that something of the system's failed.
            let file = is_path(name) && !value.is_empty() && value != PROBE;
            if file && let Err(error) = std::fs::metadata(value) {
                return Err(SourceError::config(format!(
                    "the file {value:?} that the property {name:?} names cannot be read: {error}"
                )));
            }
            config.set(name, value);
        }
        let mechanism = ["sasl.mechanism", "sasl.mechanisms"].iter().find_map(|name| self.get(name));
        let asked = [TOKEN_METHOD, TOKEN_UNSECURED].iter().any(|name| self.get(name).is_some());
        if mechanism == Some("OAUTHBEARER") && !asked {
            return Err(SourceError::config(format!(
                "OAUTHBEARER needs a source of tokens: set {TOKEN_METHOD} to \"oidc\", and \
                 sasl.oauthbearer.client.id, sasl.oauthbearer.client.secret and \
                 sasl.oauthbearer.token.endpoint.url"
            )));
        }
        config.create_native_config().map(drop).map_err(|error| self.explain(&error))
    }

    /// Why librdkafka refuses a configuration, without the values in it.
    pub(super) fn explain(&self, error: &KafkaError) -> SourceError {
        let KafkaError::ClientConfig(_, why, name, value) = error else {
            return SourceError::config(format!(
                "librdkafka refuses these properties: {}",
                self.without_values(&error.to_string())
            ));
        };
        let exists = KNOWN.contains(&name.as_str());
        if !exists && why.contains("No such configuration property") {
            let near = KNOWN
                .iter()
                .map(|known| (strsim::damerau_levenshtein(name, known), known))
                .min()
                .filter(|(distance, known)| *distance <= 3.max(known.len() / 4));
            let near = near.map_or(String::new(), |(_, known)| format!("; did you mean {known:?}?"));
            return SourceError::config(format!(
                "there is no property {name:?} in librdkafka{near} (all are listed in its CONFIGURATION.md)"
            ));
        }
        let about_the_value = !why.contains("not supported in this build");
        let why = if (is_secret(name) || value.is_empty()) && about_the_value {
            String::new()
        } else {
            format!(": {}", self.without_values(why))
        };
        SourceError::config(format!("librdkafka refuses the value of the property {name:?}{why}"))
    }

    /// A text of librdkafka's without what may be a password.
    pub(super) fn without_values(&self, text: &str) -> String {
        let secrets = self.0.iter().filter(|(name, value)| is_secret(name) && value.len() > 2);
        secrets.fold(text.to_owned(), |text, (_, value)| text.replace(value.as_str(), "…"))
    }
}

/// Whether the value is the path of a file or folder.
pub(super) fn is_path(name: &str) -> bool {
    PATHS.iter().any(|ending| name.ends_with(ending))
}

/// Whether the value must not be shown.
fn is_secret(name: &str) -> bool {
    [
        "password",
        "passphrase",
        "secret",
        "pem",
        "key",
        "oauthbearer.config",
        "token",
        "username",
        "extensions",
    ]
    .iter()
    .any(|part| name.contains(part))
}

impl fmt::Debug for KafkaProperties {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

impl<'de> Deserialize<'de> for KafkaProperties {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Properties;

        impl<'de> Visitor<'de> for Properties {
            type Value = KafkaProperties;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("librdkafka's properties: texts, numbers or booleans by name")
            }

            // What was written instead is not shown: it may hold a secret.
            fn visit_str<E: Error>(self, _: &str) -> Result<Self::Value, E> {
                Err(E::custom(
                    "it takes librdkafka's properties by name, like {\"fetch.max.bytes\": 1000}, not a text",
                ))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut properties = BTreeMap::new();
                while let Some((name, value)) = map.next_entry::<String, serde_json::Value>()? {
                    let text = match value {
                        serde_json::Value::String(text) => text,
                        serde_json::Value::Number(number) => number.to_string(),
                        serde_json::Value::Bool(truth) => truth.to_string(),
                        // The value is not shown: it may hold a secret.
                        _ => {
                            return Err(A::Error::custom(format!(
                                "the property {name:?} must be a text, a number or a boolean"
                            )));
                        }
                    };
                    if name.contains('\0') || text.contains('\0') {
                        return Err(A::Error::custom(format!("the property {name:?} has a NUL in it")));
                    }
                    if properties.insert(name.clone(), text).is_some() {
                        return Err(A::Error::custom(format!("the property {name:?} is set twice")));
                    }
                }
                Ok(KafkaProperties(properties))
            }
        }

        deserializer.deserialize_any(Properties)
    }
}

/// What librdkafka 2.12 knows, for suggestions.
const KNOWN: [&str; 165] = [
    "acks",
    "allow.auto.create.topics",
    "api.version.fallback.ms",
    "api.version.request",
    "api.version.request.timeout.ms",
    "auto.commit.enable",
    "auto.commit.interval.ms",
    "auto.offset.reset",
    "batch.num.messages",
    "batch.size",
    "bootstrap.servers",
    "broker.address.family",
    "broker.address.ttl",
    "broker.version.fallback",
    "builtin.features",
    "check.crcs",
    "client.dns.lookup",
    "client.id",
    "client.rack",
    "compression.codec",
    "compression.level",
    "compression.type",
    "connections.max.idle.ms",
    "consume.callback.max.messages",
    "coordinator.query.interval.ms",
    "debug",
    "delivery.report.only.error",
    "delivery.timeout.ms",
    "enable.auto.commit",
    "enable.auto.offset.store",
    "enable.gapless.guarantee",
    "enable.idempotence",
    "enable.metrics.push",
    "enable.partition.eof",
    "enable.random.seed",
    "enable.sasl.oauthbearer.unsecure.jwt",
    "enable.ssl.certificate.verification",
    "fetch.error.backoff.ms",
    "fetch.max.bytes",
    "fetch.message.max.bytes",
    "fetch.min.bytes",
    "fetch.queue.backoff.ms",
    "fetch.wait.max.ms",
    "group.id",
    "group.instance.id",
    "group.protocol",
    "group.protocol.type",
    "group.remote.assignor",
    "heartbeat.interval.ms",
    "https.ca.location",
    "https.ca.pem",
    "interceptors",
    "internal.termination.signal",
    "isolation.level",
    "linger.ms",
    "log.connection.close",
    "log.queue",
    "log.thread.name",
    "log_level",
    "max.in.flight",
    "max.in.flight.requests.per.connection",
    "max.partition.fetch.bytes",
    "max.poll.interval.ms",
    "message.copy.max.bytes",
    "message.max.bytes",
    "message.send.max.retries",
    "message.timeout.ms",
    "metadata.broker.list",
    "metadata.max.age.ms",
    "metadata.recovery.rebootstrap.trigger.ms",
    "metadata.recovery.strategy",
    "offset.store.method",
    "offset.store.path",
    "offset.store.sync.interval.ms",
    "opaque",
    "partition.assignment.strategy",
    "partitioner",
    "plugin.library.paths",
    "produce.offset.report",
    "queue.buffering.backpressure.threshold",
    "queue.buffering.max.kbytes",
    "queue.buffering.max.messages",
    "queue.buffering.max.ms",
    "queued.max.messages.kbytes",
    "queued.min.messages",
    "queuing.strategy",
    "receive.message.max.bytes",
    "reconnect.backoff.jitter.ms",
    "reconnect.backoff.max.ms",
    "reconnect.backoff.ms",
    "request.required.acks",
    "request.timeout.ms",
    "retries",
    "retry.backoff.max.ms",
    "retry.backoff.ms",
    "sasl.kerberos.keytab",
    "sasl.kerberos.kinit.cmd",
    "sasl.kerberos.min.time.before.relogin",
    "sasl.kerberos.principal",
    "sasl.kerberos.service.name",
    "sasl.mechanism",
    "sasl.mechanisms",
    "sasl.oauthbearer.assertion.algorithm",
    "sasl.oauthbearer.assertion.claim.aud",
    "sasl.oauthbearer.assertion.claim.exp.seconds",
    "sasl.oauthbearer.assertion.claim.iss",
    "sasl.oauthbearer.assertion.claim.jti.include",
    "sasl.oauthbearer.assertion.claim.nbf.seconds",
    "sasl.oauthbearer.assertion.claim.sub",
    "sasl.oauthbearer.assertion.file",
    "sasl.oauthbearer.assertion.jwt.template.file",
    "sasl.oauthbearer.assertion.private.key.file",
    "sasl.oauthbearer.assertion.private.key.passphrase",
    "sasl.oauthbearer.assertion.private.key.pem",
    "sasl.oauthbearer.client.credentials.client.id",
    "sasl.oauthbearer.client.credentials.client.secret",
    "sasl.oauthbearer.client.id",
    "sasl.oauthbearer.client.secret",
    "sasl.oauthbearer.config",
    "sasl.oauthbearer.extensions",
    "sasl.oauthbearer.grant.type",
    "sasl.oauthbearer.metadata.authentication.type",
    "sasl.oauthbearer.method",
    "sasl.oauthbearer.scope",
    "sasl.oauthbearer.token.endpoint.url",
    "sasl.password",
    "sasl.username",
    "security.protocol",
    "session.timeout.ms",
    "socket.blocking.max.ms",
    "socket.connection.setup.timeout.ms",
    "socket.keepalive.enable",
    "socket.max.fails",
    "socket.nagle.disable",
    "socket.receive.buffer.bytes",
    "socket.send.buffer.bytes",
    "socket.timeout.ms",
    "ssl.ca.certificate.stores",
    "ssl.ca.location",
    "ssl.ca.pem",
    "ssl.certificate.location",
    "ssl.certificate.pem",
    "ssl.cipher.suites",
    "ssl.crl.location",
    "ssl.curves.list",
    "ssl.endpoint.identification.algorithm",
    "ssl.engine.id",
    "ssl.engine.location",
    "ssl.key.location",
    "ssl.key.password",
    "ssl.key.pem",
    "ssl.keystore.location",
    "ssl.keystore.password",
    "ssl.providers",
    "ssl.sigalgs.list",
    "statistics.interval.ms",
    "sticky.partitioning.linger.ms",
    "topic.blacklist",
    "topic.metadata.propagation.max.ms",
    "topic.metadata.refresh.fast.cnt",
    "topic.metadata.refresh.fast.interval.ms",
    "topic.metadata.refresh.interval.ms",
    "topic.metadata.refresh.sparse",
    "transaction.timeout.ms",
    "transactional.id",
];

#[cfg(test)]
mod tests {
    use super::*;

    fn apply(properties: &str, role: Role) -> Result<ClientConfig, String> {
        let properties: KafkaProperties =
            serde_json::from_str(properties).map_err(|error| error.to_string())?;
        let mut config = ClientConfig::new();
        properties.apply(role, &mut config).map_err(|error| error.to_string())?;
        Ok(config)
    }

    #[test]
    fn properties_reach_librdkafka_by_their_own_names() {
        let config = apply(
            r#"{"fetch.max.bytes": 1000000, "socket.keepalive.enable": true, "client.rack": "a"}"#,
            Role::Consumer,
        )
        .unwrap();
        assert_eq!(config.get("fetch.max.bytes"), Some("1000000"));
        assert_eq!(config.get("socket.keepalive.enable"), Some("true"));
    }

    #[test]
    fn what_is_ours_or_dangerous_is_refused_by_name_with_the_reason() {
        for (name, why) in REFUSED {
            let error = apply(&format!(r#"{{"{name}": "secret1"}}"#), Role::Consumer).unwrap_err();
            assert!(error.contains(name) && error.contains(why) && !error.contains("secret1"), "{error}");
        }
        for (name, why) in [
            ("fetch.max.byte", "did you mean \"fetch.max.bytes\""),
            ("sasl.pasword", "did you mean \"sasl.password\""),
            ("there.is.none", "no property"),
            ("sasl.kerberos.keytab", "sasl.kerberos.keytab"),
            ("fetch.wait.max.ms", "fetch.wait.max.ms"),
            ("isolation.level", "isolation.level"),
            ("dr_cb", "dr_cb"),
        ] {
            let error = apply(&format!(r#"{{"{name}": "secret1"}}"#), Role::Consumer).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
        let error =
            apply(r#"{"security.protocol": "SASL_SSL", "sasl.mechanism": "OAUTHBEARER"}"#, Role::Consumer)
                .unwrap_err();
        assert!(error.contains("sasl.oauthbearer.token.endpoint.url"), "{error}");
        let error = apply(r#"{"sasl.password": ["secret1"]}"#, Role::Producer).unwrap_err();
        assert!(error.contains("sasl.password") && !error.contains("secret1"), "{error}");
        assert!(apply(r#"{"allow.auto.create.topics": true}"#, Role::Producer).is_ok());
    }

    #[test]
    fn a_file_of_kafkas_own_clients_is_read_and_its_mistakes_are_named_by_line() {
        let text = "# a comment\nsecurity.protocol=SASL_SSL\n\n sasl.password = a=b c \n! another\nssl.ca.location=\n";
        let read: Vec<_> = KafkaProperties::from_lines(text).unwrap().into_pairs().collect();
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!(
            read,
            [
                pair("sasl.password", "a=b c"),
                pair("security.protocol", "SASL_SSL"),
                pair("ssl.ca.location", "")
            ]
        );
        for (text, why) in
            [("a=1\nsecret1", "line 2"), ("=secret1", "line 1"), ("a=secret1\n\na=2", "line 3: a")]
        {
            let error = KafkaProperties::from_lines(text).unwrap_err().to_string();
            assert!(error.contains(why) && !error.contains("secret1"), "{error}");
        }
    }

    #[test]
    fn no_value_is_shown() {
        let properties = KafkaProperties::new([("sasl.password", "secret1"), ("ssl.key.pem", "secret2")]);
        let shown =
            format!("{properties:?} {}", properties.without_values("SASL failed: secret1 and secret2"));
        assert!(
            shown.contains("sasl.password") && !shown.contains("secret1") && !shown.contains("secret2"),
            "{shown}"
        );
    }
}
