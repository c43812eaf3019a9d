//! Kafka.

mod config;
mod produce;
mod properties;

pub use config::{KafkaConfig, KafkaPoint, KafkaValue};
pub use produce::Producer;
pub use properties::KafkaProperties;
