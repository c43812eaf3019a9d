//! Questions to the brokers.

use std::collections::HashMap;
use std::sync::mpsc;
use std::time::Duration;

use rdkafka::consumer::Consumer as _;
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::{Offset, TopicPartitionList};

use super::client::Consumer;
use super::place::Partition;
use crate::SourceError;

/// Who asks again and again gives the brokers this long to answer.
pub(super) const ANSWER: Duration = Duration::from_secs(4);

/// Who waits for an answer looks around this often.
const WATCH: Duration = Duration::from_millis(50);

/// Asks a question that the brokers may take this long to answer, on a thread of its own, and calls `watch` meanwhile,
/// which may end the waiting with an error.
///
/// The question is not cut into short ones: where a round trip takes seconds, none of those would ever be answered. (A
/// first answer takes four: the broker's versions and its name, and then both again under that name.)
///
/// # Errors
/// That of `watch`; inside, that of the question.
pub(super) fn patiently<T: Send + 'static>(
    patience: Duration,
    question: impl FnOnce(Duration) -> KafkaResult<T> + Send + 'static,
    mut watch: impl FnMut() -> Result<(), SourceError>,
) -> Result<KafkaResult<T>, SourceError> {
    let (answer, answered) = mpsc::sync_channel(1);
    std::thread::Builder::new()
        .name("kafka-ask".into())
        .spawn(move || {
            // Nobody listens any more when `watch` has ended the waiting.
            let _ = answer.send(question(patience));
        })
        .map_err(|error| SourceError::backend(format!("could not start a thread to query Kafka: {error}")))?;
    loop {
        match answered.recv_timeout(WATCH) {
            Ok(answer) => return Ok(answer),
            Err(mpsc::RecvTimeoutError::Timeout) => watch()?,
            Err(mpsc::RecvTimeoutError::Disconnected) => {
                return Err(SourceError::backend(
                    "querying Kafka panicked; this is a bug, please report it".into(),
                ));
            }
        }
    }
}

/// Asks for one offset of each partition: `Beginning`, `End` (of what is committed, unless the user reads everything),
/// or the first at a time in milliseconds.
pub(super) fn offsets(
    consumer: &Consumer,
    partitions: &[Partition],
    which: Offset,
    timeout: Duration,
) -> Result<Vec<Result<i64, RDKafkaErrorCode>>, KafkaError> {
    let mut list = TopicPartitionList::with_capacity(partitions.len());
    for partition in partitions {
        list.add_partition_offset(&partition.topic, partition.number, which)?;
    }
    // The timestamp is in the place of the offset; -1 and -2 mean the end and the beginning in both.
    let list = consumer.offsets_for_times(list, timeout)?;
    let slots: HashMap<(&str, i32), usize> =
        partitions.iter().enumerate().map(|(slot, of)| ((&*of.topic, of.number), slot)).collect();
    let mut found = vec![Err(RDKafkaErrorCode::UnknownPartition); partitions.len()];
    for element in list.elements() {
        let Some(&slot) = slots.get(&(element.topic(), element.partition())) else { continue };
        found[slot] = match (element.error(), element.offset()) {
            (Err(error), _) => Err(error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Unknown)),
            (Ok(()), Offset::Offset(offset)) => Ok(offset),
            // No record is as young as that.
            (Ok(()), _) => Ok(-1),
        };
    }
    Ok(found)
}

/// Whether there is no such topic or partition, as far as a broker knows.
pub(super) fn is_missing(code: RDKafkaErrorCode) -> bool {
    use RDKafkaErrorCode as Code;
    matches!(
        code,
        Code::UnknownTopicOrPartition | Code::UnknownTopic | Code::UnknownPartition | Code::InvalidTopic
    )
}
