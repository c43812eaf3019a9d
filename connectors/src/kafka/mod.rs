//! Kafka.

mod config;
mod encode;
mod produce;
mod properties;

pub use config::{KafkaConfig, KafkaPoint, KafkaValue};
pub use encode::encode_value;
pub use produce::Producer;
pub use properties::KafkaProperties;
