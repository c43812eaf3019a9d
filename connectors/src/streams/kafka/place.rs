//! A window's place, as it is written into a token: the ranges of offsets and the hash of what was in them.
//!
//! ```json
//! {"partitions": [{"images": [[0, 1200, 1213], [1, 1187, 1200]]}], "hash": "…"}
//! ```
//!
//! Each range is `[partition, from, to]`, and of a bounded stream `[partition, from, to, lo, hi]`: `lo` to `hi` is what
//! an epoch covers, found once, so that no later epoch and no resume asks for a timestamp again.
//!
//! The list has one element, and one more for each time that partitions have joined an endless stream. A partition's
//! *slot* is its index among all of a place: those of the first element, sorted by topic and number, then those of the
//! second, and so on, so that it never changes. It is part of a record's id.

use std::collections::{BTreeMap, BTreeSet};
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
    /// The slots at which partitions that joined later begin.
    joined: Vec<usize>,
}

/// What is written.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    partitions: Vec<BTreeMap<String, Vec<Vec<i64>>>>,
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
        let ranges = starts.iter().enumerate().map(range).collect();
        Self { partitions, ranges, hash: 0, joined: Vec::new() }
    }

    /// Has more partitions from the next window on, each from an offset on. They must be sorted, and new.
    pub(super) fn join(&mut self, found: &[(Partition, i64)]) {
        self.joined.push(self.ranges.len());
        self.ranges.extend(found.iter().map(|&(_, from)| Range { from, to: from, bounds: None }));
        let found = found.iter().map(|(partition, _)| partition.clone());
        self.partitions = self.partitions.iter().cloned().chain(found).collect();
    }

    /// As a place's state.
    pub(super) fn write(&self) -> serde_json::Value {
        let mut partitions = vec![BTreeMap::<String, Vec<Vec<i64>>>::new(); 1 + self.joined.len()];
        for (slot, (partition, range)) in self.partitions.iter().zip(&self.ranges).enumerate() {
            let mut row = vec![i64::from(partition.number), range.from, range.to];
            row.extend(range.bounds.iter().flat_map(|&(lo, hi)| [lo, hi]));
            let group = self.joined.partition_point(|&first| first <= slot);
            partitions[group].entry(partition.topic.to_string()).or_default().push(row);
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
        let mut joined = Vec::new();
        let mut known = BTreeSet::new();
        for (group, topics) in state.partitions.iter().enumerate() {
            if group > 0 {
                joined.push(partitions.len());
            }
            for (topic, rows) in topics {
                super::config::check_topic(topic)?;
                let topic: Arc<str> = topic.as_str().into();
                let mut last = -1;
                for row in rows {
                    let (number, range) = range(row, bounded).map_err(refuse)?;
                    if number <= last {
                        return Err(refuse(format!("the range {row:?} of {topic:?} is not possible")));
                    }
                    last = number;
                    let partition = Partition { topic: topic.clone(), number: number as i32 };
                    if !known.insert(partition.clone()) {
                        return Err(refuse(format!("{partition} is in it twice")));
                    }
                    partitions.push(partition);
                    ranges.push(range);
                }
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
        Ok(Self { partitions: partitions.into(), ranges, hash, joined })
    }
}

/// Reads one partition's number and range, or says what is wrong.
fn range(row: &[i64], bounded: bool) -> Result<(i64, Range), String> {
    let (number, range) = match (row, bounded) {
        (&[number, from, to], false) => (number, Range { from, to, bounds: None }),
        (&[number, from, to, lo, hi], true) => (number, Range { from, to, bounds: Some((lo, hi)) }),
        (_, true) => return Err("it has no bounds, but this stream has an end; was `end` added?".into()),
        (_, false) => return Err("it has bounds, but this stream has no end; was `end` left out?".into()),
    };
    let (lo, hi) = range.bounds.unwrap_or((0, OFFSETS));
    let ordered = 0 <= lo && lo <= range.from && range.from <= range.to && range.to <= hi && hi <= OFFSETS;
    if !ordered || !(0..=i64::from(i32::MAX)).contains(&number) {
        return Err(format!("the range {row:?} is not possible"));
    }
    Ok((number, range))
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
        Ranges { ranges: vec![range; partitions.len()], partitions, hash: 0x0123, joined: Vec::new() }
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
            (serde_json::json!({"partitions": [{"t": [[0, 0, 1]]}], "hash": "12"}), "hash"),
            (serde_json::json!({"partitions": [{}], "hash": hash}), "0 partitions"),
            (serde_json::json!({"partitions": [{"a/b": [[0, 0, 1]]}], "hash": hash}), "a/b"),
            (serde_json::json!({"partitions": [{"t": [[0, 5, 1]]}], "hash": hash}), "[0, 5, 1]"),
            (serde_json::json!({"partitions": [{"t": [[0, -1, 1]]}], "hash": hash}), "-1"),
            (
                serde_json::json!({"partitions": [{"t": [[1, 0, 1], [1, 0, 1]]}], "hash": hash}),
                "not possible",
            ),
            (serde_json::json!({"partitions": [{"t": [[1, 0, 1, 0, 9]]}], "hash": hash}), "bounds"),
            (serde_json::json!({"partitions": [{"t": [[1, 0, i64::MAX]]}], "hash": hash}), "not possible"),
            (serde_json::json!({"partitions": [{"t": [[1, 0, 1]]}], "hash": hash}), "3 records in 1 offsets"),
            (
                serde_json::json!({"partitions": [{"t": [[1, 0, 1]]}, {"t": [[1, 0, 1]]}], "hash": hash}),
                "t/1 is in it twice",
            ),
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
        fn whoever_joins_comes_behind_and_changes_nobodys_slot(
            first in 1usize..5, groups in prop::collection::vec((0usize..3, 1usize..4, 0i64..1 << 40), 0..4),
        ) {
            let mut ranges = ranges(2, first, Range { from: 3, to: 9, bounds: None });
            let mut numbers = [first as i32; 3];
            for (topic, more, from) in groups {
                let before = ranges.partitions.clone();
                // Also a topic that was not there, and one that comes before the others by name.
                let name: Arc<str> = ["topic-000", "topic-001", "a"][topic].into();
                let number = &mut numbers[topic];
                let found: Vec<_> = (*number..*number + more as i32)
                    .map(|number| (Partition { topic: name.clone(), number }, from))
                    .collect();
                *number += more as i32;
                ranges.join(&found);
                prop_assert_eq!(&ranges.partitions[..before.len()], &*before);
                prop_assert_eq!(ranges.partitions.len(), before.len() + more);
                prop_assert_eq!(ranges.ranges.last(), Some(&Range { from, to: from, bounds: None }));
            }
            prop_assert_eq!(Ranges::read(&place(ranges.write(), 0), false).unwrap(), ranges);
        }

        #[test]
        fn an_id_names_its_record(slot in 0usize..MAX_PARTITIONS, offset in 0..=OFFSETS) {
            prop_assert!(id(slot, offset) >= 0);
            prop_assert_eq!(of_id(id(slot, offset)), Some((slot, offset)));
        }
    }
}
