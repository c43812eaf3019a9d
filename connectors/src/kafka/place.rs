//! A window's place, as it is written into a token: the ranges of offsets and the hash of what was in them.
//!
//! ```json
//! {"partitions": {"images": [[0, 1200, 1213], [1, 1187, 1200]]}, "hash": "…"}
//! ```
//!
//! Each range is `[partition, from, to]`, and of a bounded stream `[partition, from, to, lo, hi]`: `lo` to `hi` is what an
//! epoch covers, found once, so that no later epoch and no resume asks for a timestamp again.
//!
//! A partition's *slot* is its index among all of a place, sorted by topic and number. It is part of a record's id.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::{Place, SourceError};

/// Offsets use the low bits of a record's id.
const OFFSET_BITS: u32 = 48;

/// More partitions do not fit into the other bits.
pub(super) const MAX_PARTITIONS: usize = 1 << 15;

/// Bits of the offset.
const OFFSETS: i64 = (1 << OFFSET_BITS) - 1;

/// A partition of a topic.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Partition {
    pub topic: Arc<str>,
    pub number: i32,
}

impl fmt::Display for Partition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.topic, self.number)
    }
}

/// Which offsets of a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Range {
    pub from: i64,
    pub to: i64,
    /// What an epoch covers.
    pub bounds: Option<(i64, i64)>,
}

/// The ranges of a window by slot, and its hash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Ranges {
    pub partitions: Arc<[Partition]>,
    pub ranges: Vec<Range>,
    pub hash: u128,
}

/// What is written.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    partitions: BTreeMap<String, Vec<Vec<i64>>>,
    hash: String,
}

impl Ranges {
    /// Before the first record of an epoch.
    pub(super) fn origin(
        partitions: Arc<[Partition]>,
        starts: &[i64],
        bounds: Option<&[(i64, i64)]>,
    ) -> Self {
        let range = |(slot, &start): (usize, &i64)| Range {
            from: start,
            to: start,
            bounds: bounds.map(|bounds| bounds[slot]),
        };
        Self { partitions, ranges: starts.iter().enumerate().map(range).collect(), hash: 0 }
    }

    /// As a place's state.
    pub(super) fn write(&self) -> serde_json::Value {
        let mut partitions: BTreeMap<String, Vec<Vec<i64>>> = BTreeMap::new();
        for (partition, range) in self.partitions.iter().zip(&self.ranges) {
            let mut row = vec![i64::from(partition.number), range.from, range.to];
            row.extend(range.bounds.iter().flat_map(|&(lo, hi)| [lo, hi]));
            partitions.entry(partition.topic.to_string()).or_default().push(row);
        }
        serde_json::to_value(State { partitions, hash: format!("{:032x}", self.hash) })
            .expect("numbers and texts are JSON")
    }

    /// Reads a place that comes from anywhere.
    ///
    /// # Errors
    /// A sentence that says what is wrong with it.
    pub(super) fn read(place: &Place, bounded: bool) -> Result<Self, SourceError> {
        let refuse =
            |why: String| SourceError::config(format!("this place is not one of a Kafka source: {why}"));
        let state = State::deserialize(&place.state).map_err(|error| refuse(error.to_string()))?;
        let hash = u128::from_str_radix(&state.hash, 16)
            .ok()
            .filter(|_| state.hash.len() == 32 && !state.hash.starts_with('+'))
            .ok_or_else(|| refuse("its hash is not 32 hexadecimal digits".into()))?;
        let mut partitions = Vec::new();
        let mut ranges = Vec::new();
        for (topic, rows) in &state.partitions {
            super::config::check_topic(topic)?;
            let topic: Arc<str> = topic.as_str().into();
            let mut last = -1;
            for row in rows {
                let (number, range) = match (row.as_slice(), bounded) {
                    (&[number, from, to], false) => (number, Range { from, to, bounds: None }),
                    (&[number, from, to, lo, hi], true) => {
                        (number, Range { from, to, bounds: Some((lo, hi)) })
                    }
                    (_, true) => {
                        return Err(refuse(
                            "it has no bounds, but this stream has an end; was `end` added?".into(),
                        ));
                    }
                    (_, false) => {
                        return Err(refuse(
                            "it has bounds, but this stream has no end; was `end` left out?".into(),
                        ));
                    }
                };
                let (lo, hi) = range.bounds.unwrap_or((0, OFFSETS));
                let ordered =
                    0 <= lo && lo <= range.from && range.from <= range.to && range.to <= hi && hi <= OFFSETS;
                if !ordered || number <= last || number > i64::from(i32::MAX) {
                    return Err(refuse(format!("the range {row:?} of {topic:?} is not possible")));
                }
                last = number;
                partitions.push(Partition { topic: topic.clone(), number: number as i32 });
                ranges.push(range);
            }
        }
        if partitions.is_empty() || partitions.len() >= MAX_PARTITIONS {
            return Err(refuse(format!("it has {} partitions", partitions.len())));
        }
        let offsets: i64 = ranges
            .iter()
            .map(|range| range.to - range.from)
            .try_fold(0, i64::checked_add)
            .unwrap_or(i64::MAX);
        if place.count > offsets as u64 || place.first.checked_add(place.count).is_none() {
            return Err(refuse(format!("it says {} records in {offsets} offsets", place.count)));
        }
        Ok(Self { partitions: partitions.into(), ranges, hash })
    }
}

/// The number of a record, unique in the stream.
pub(super) fn id(slot: usize, offset: i64) -> i64 {
    (slot as i64) << OFFSET_BITS | offset
}

/// What a record's number says. Slots come from a place, so there may be no such one.
pub(super) fn of_id(id: i64) -> Option<(usize, i64)> {
    (id >= 0).then_some(((id >> OFFSET_BITS) as usize, id & OFFSETS))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn place(state: serde_json::Value, count: u64) -> Place {
        Place { epoch: 0, window: 1, first: 7, count, state }
    }

    fn ranges(topics: usize, partitions: usize, range: Range) -> Ranges {
        let all = (0..topics).flat_map(|topic| {
            let topic: Arc<str> = format!("topic-{topic:03}").into();
            (0..partitions).map(move |number| Partition { topic: topic.clone(), number: number as i32 })
        });
        let partitions: Arc<[Partition]> = all.collect();
        Ranges { ranges: vec![range; partitions.len()], partitions, hash: 0x0123 }
    }

    #[test]
    fn a_thousand_partitions_fit_in_a_token() {
        let range =
            Range { from: 9_876_543_210, to: 9_876_559_594, bounds: Some((9_000_000_000, 9_999_999_999)) };
        let written = ranges(10, 100, range).write().to_string();
        assert!(written.len() < 64 << 10, "{} bytes", written.len());
        let endless = ranges(10, 100, Range { bounds: None, ..range }).write().to_string();
        assert!(endless.len() < 40 << 10, "{} bytes", endless.len());
    }

    #[test]
    fn a_foreign_place_is_refused_with_the_reason() {
        let hash = "0".repeat(32);
        let cases = [
            (serde_json::json!({"offset": 3}), "offset"),
            (serde_json::json!({"partitions": {"t": [[0, 0, 1]]}, "hash": "12"}), "hash"),
            (serde_json::json!({"partitions": {}, "hash": hash}), "0 partitions"),
            (serde_json::json!({"partitions": {"a/b": [[0, 0, 1]]}, "hash": hash}), "a/b"),
            (serde_json::json!({"partitions": {"t": [[0, 5, 1]]}, "hash": hash}), "[0, 5, 1]"),
            (serde_json::json!({"partitions": {"t": [[0, -1, 1]]}, "hash": hash}), "-1"),
            (serde_json::json!({"partitions": {"t": [[1, 0, 1], [1, 0, 1]]}, "hash": hash}), "not possible"),
            (serde_json::json!({"partitions": {"t": [[1, 0, 1, 0, 9]]}, "hash": hash}), "bounds"),
            (serde_json::json!({"partitions": {"t": [[1, 0, i64::MAX]]}, "hash": hash}), "not possible"),
            (serde_json::json!({"partitions": {"t": [[1, 0, 1]]}, "hash": hash}), "3 records in 1 offsets"),
        ];
        for (state, why) in cases {
            let error = Ranges::read(&place(state.clone(), 3), false).unwrap_err().to_string();
            assert!(error.contains(why), "{state}: {error}");
        }
    }

    proptest! {
        #[test]
        fn what_was_written_is_read(
            topics in 1usize..4, partitions in 1usize..5, from in 0i64..1 << 40, length in 0i64..1000, bounded: bool,
        ) {
            let to = from + length;
            let bounds = bounded.then_some((from / 2, to * 2));
            let ranges = ranges(topics, partitions, Range { from, to, bounds });
            prop_assert_eq!(Ranges::read(&place(ranges.write(), length as u64), bounded).unwrap(), ranges);
        }

        #[test]
        fn an_id_names_its_record(slot in 0usize..MAX_PARTITIONS, offset in 0..=OFFSETS) {
            prop_assert!(id(slot, offset) >= 0);
            prop_assert_eq!(of_id(id(slot, offset)), Some((slot, offset)));
        }
    }
}
