//! Which record comes at which position: a pure function of (seed, epoch, position).
//!
//! Promises
//! - a bijection, unless parts, classes or records are drawn by weight: over one epoch every record is named exactly
//!   once;
//! - drawn by weight, an epoch names each part, class or record as often as its share says, and no record of a part or
//!   class again before all others of it;
//! - O(1) memory and O(1) seek for the plain shuffle, O(shards) and O(log shards) for the blocked one, 4 or 8 bytes a
//!   record and O(log) where classes or records are weighted;
//! - nothing else goes in: neither batch size, nor world size, nor threads, nor what was read before.

mod blocked;
mod mixed;
mod permutation;
mod sampled;

use std::sync::Arc;

use blocked::BlockedEpoch;
use mixed::{MixedEpoch, MixedPart};
use permutation::{Permutation, below};
use sampled::{Classes, Weights};

pub(crate) use permutation::derive;

/// How positions map to records, as configured. Built once per feed; [`Order::epoch`] gives the mapping itself.
#[derive(Clone, Debug)]
pub struct Order {
    len: u64,
    seed: u64,
    kind: Kind,
}

#[derive(Clone, Debug)]
enum Kind {
    Sequential,
    Shuffled,
    Blocked { shards: Arc<[u64]>, lanes: u64, window: u64 },
    Mixed { parts: Arc<[MixedPart]>, shuffle: bool },
    Classes(Classes),
    Weights(Weights),
}

impl Order {
    /// Records in the source's own order, the same in every epoch.
    pub fn sequential(len: u64, seed: u64) -> Self {
        Self { len, seed, kind: Kind::Sequential }
    }

    /// A new permutation of all records in every epoch.
    pub fn shuffled(len: u64, seed: u64) -> Self {
        Self { len, seed, kind: Kind::Shuffled }
    }

    /// The blocked shuffle over shards of the given lengths (records), with `lanes` parallel readers and windows of
    /// `window` rows. Zero lanes or windows count as one.
    pub fn blocked(shards: Arc<[u64]>, seed: u64, lanes: u64, window: u64) -> Self {
        let len = shards.iter().sum::<u64>();
        Self {
            len,
            seed,
            kind: Kind::Blocked { shards, lanes: lanes.clamp(1, len.max(1)), window: window.max(1) },
        }
    }

    /// Several orders over consecutive stretches of records, each drawn the given number of times in an epoch.
    /// `part` makes the order of one from a seed of its own.
    ///
    /// # Panics
    /// When a part is empty or never drawn.
    pub fn mixed(draws: &[u64], seed: u64, shuffle: bool, part: impl Fn(usize, u64) -> Self) -> Self {
        let mut first = 0;
        let parts: Arc<[MixedPart]> = draws
            .iter()
            .enumerate()
            .map(|(at, &draws)| {
                // Parts of equal length would otherwise be shuffled alike.
                let order = part(at, derive(seed, at as u64, u64::MAX - 3));
                assert!(!order.is_empty() && draws > 0, "part {at} of a mixture has records and is drawn");
                let begin = first;
                first += order.len();
                MixedPart { order, first: begin, draws }
            })
            .collect();
        Self { len: draws.iter().sum(), seed, kind: Kind::Mixed { parts, shuffle } }
    }

    /// Records of a source of `records` drawn class by class: `draws[class]` times an epoch, in a new order in each.
    ///
    /// # Panics
    /// When a class without records is drawn.
    pub fn by_class(records: u64, class: impl Fn(u64) -> usize, draws: &[u64], seed: u64) -> Self {
        let classes = Classes::new(records, class, draws, seed);
        Self { len: classes.len(), seed, kind: Kind::Classes(classes) }
    }

    /// Records drawn by weights of their own, `len` times an epoch. The weights are finite, not negative, and not all
    /// 0.
    pub fn by_weight(weights: impl Iterator<Item = f64>, len: u64, seed: u64) -> Self {
        Self { len, seed, kind: Kind::Weights(Weights::new(weights, len)) }
    }

    /// Positions in one epoch.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether there is nothing to order.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes of memory held, one epoch's layout included.
    pub fn memory(&self) -> u64 {
        match &self.kind {
            Kind::Sequential | Kind::Shuffled => 0,
            Kind::Blocked { shards, .. } => shards.len() as u64 * 24,
            Kind::Mixed { parts, .. } => parts.iter().map(|part| part.order.memory()).sum(),
            Kind::Classes(classes) => classes.memory(),
            Kind::Weights(weights) => weights.memory(),
        }
    }

    /// The mapping of one epoch.
    pub fn epoch(&self, epoch: u64) -> EpochOrder {
        let key = derive(self.seed, epoch, 0);
        let map = match &self.kind {
            Kind::Sequential => Map::Sequential,
            Kind::Shuffled => Map::Shuffled(Permutation::new(self.len, key)),
            Kind::Blocked { shards, lanes, window } => {
                Map::Blocked(BlockedEpoch::new(shards, self.len, key, *lanes, *window))
            }
            Kind::Mixed { parts, shuffle } => {
                Map::Mixed(MixedEpoch::new(parts, epoch, shuffle.then_some(key)))
            }
            Kind::Classes(classes) => Map::Classes(classes.clone(), epoch),
            Kind::Weights(weights) => Map::Weights(weights.clone()),
        };
        EpochOrder { len: self.len, key, map }
    }
}

/// The order of one epoch; cheap for everything but the blocked kind, which lays its shards out (O(shards)).
#[derive(Clone, Debug)]
pub struct EpochOrder {
    len: u64,
    key: u64,
    map: Map,
}

#[derive(Clone, Debug)]
enum Map {
    Sequential,
    Shuffled(Permutation),
    Blocked(BlockedEpoch),
    Mixed(MixedEpoch),
    Classes(Classes, u64),
    Weights(Weights),
}

impl EpochOrder {
    /// Positions in it.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether there is nothing to order.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The record at `position` (`0..len`).
    pub fn index(&self, position: u64) -> u64 {
        assert!(position < self.len, "position {position} is not below {}", self.len);
        match &self.map {
            Map::Sequential => position,
            Map::Shuffled(permutation) => permutation.apply(position),
            Map::Blocked(blocked) => blocked.index(position),
            Map::Mixed(mixed) => mixed.index(position),
            Map::Classes(classes, epoch) => classes.index(*epoch, self.key, position),
            Map::Weights(weights) => weights.index(self.key, position),
        }
    }

    /// The record that stands in for the one at `position` when its bytes are bad: drawn from the same window
    /// (blocked), part or class, or else from the whole source, by (seed, epoch, position, attempt), so that a resume
    /// draws it again.
    pub fn substitute(&self, position: u64, attempt: u32) -> u64 {
        let draw = derive(self.key, position, 1 + u64::from(attempt));
        match &self.map {
            Map::Sequential | Map::Shuffled(_) => below(draw, self.len),
            Map::Blocked(blocked) => blocked.neighbour(position, draw),
            Map::Mixed(mixed) => mixed.substitute(position, attempt),
            Map::Classes(classes, _) => classes.substitute(self.key, position, draw),
            Map::Weights(weights) => weights.substitute(draw),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn assert_every_record_once(order: &Order, epoch: u64) {
        let epoch = order.epoch(epoch);
        let mut seen = vec![false; order.len() as usize];
        for position in 0..order.len() {
            let index = epoch.index(position) as usize;
            assert!(!seen[index], "record {index} came twice");
            seen[index] = true;
        }
    }

    proptest! {
        #[test]
        fn every_record_comes_once_an_epoch(len in 1u64..3000, seed: u64, epoch in 0u64..1000) {
            assert_every_record_once(&Order::shuffled(len, seed), epoch);
        }

        #[test]
        fn every_record_comes_once_an_epoch_when_blocked(
            shards in prop::collection::vec(0u64..200, 1..20), seed: u64, epoch in 0u64..9,
            lanes in 0u64..9, window in 0u64..99,
        ) {
            assert_every_record_once(&Order::blocked(shards.into(), seed, lanes, window), epoch);
        }

        #[test]
        fn a_substitute_is_a_record_of_the_source(len in 1u64..500, seed: u64, at: u64, attempt in 0u32..9) {
            let order = Order::shuffled(len, seed).epoch(3);
            prop_assert!(order.substitute(at % len, attempt) < len);
        }
    }

    #[test]
    fn ten_million_records_need_no_memory_and_any_position_at_once() {
        let order = Order::shuffled(10_000_019, 7).epoch(2);
        let first: Vec<u64> = (0..5).map(|position| order.index(position)).collect();
        let last = order.index(10_000_018);
        assert!(first.iter().all(|&index| index < 10_000_019) && last < 10_000_019);
        assert_ne!(first, [0, 1, 2, 3, 4]);
    }

    #[test]
    fn epochs_and_seeds_differ_and_repeat() {
        let ids = |seed, epoch| -> Vec<u64> {
            let order = Order::shuffled(1000, seed).epoch(epoch);
            (0..1000).map(|position| order.index(position)).collect()
        };
        assert_eq!(ids(1, 0), ids(1, 0));
        assert_ne!(ids(1, 0), ids(1, 1));
        assert_ne!(ids(1, 0), ids(2, 0));
    }

    /// Every place is taken by every record equally often: chi-squared over keys, for sizes from tiny upwards.
    #[test]
    fn small_sources_are_shuffled_fairly() {
        for len in [2u64, 3, 5, 8, 13, 64] {
            let keys = 20_000u64;
            let mut counts = vec![0u64; (len * len) as usize];
            for key in 0..keys {
                let order = Order::shuffled(len, key).epoch(0);
                for position in 0..len {
                    counts[(position * len + order.index(position)) as usize] += 1;
                }
            }
            let expected = keys as f64 / len as f64;
            let chi2: f64 = counts.iter().map(|&count| (count as f64 - expected).powi(2) / expected).sum();
            let freedom = ((len - 1) * (len - 1)) as f64;
            // Five standard deviations of a chi-squared distribution (mean `freedom`, variance 2 x freedom).
            assert!(
                chi2 < freedom + 5.0 * (2.0 * freedom).sqrt() + 5.0,
                "len {len}: chi2 {chi2} for {freedom}"
            );
        }
    }

    #[test]
    fn neighbours_do_not_stay_neighbours() {
        let order = Order::shuffled(100_000, 0).epoch(0);
        let near = (1..100_000).filter(|&p| order.index(p).abs_diff(order.index(p - 1)) <= 10).count();
        assert!(near < 60, "{near} of 100,000 neighbours stayed within 10 records; 20 are expected");
    }

    #[test]
    fn a_blocked_epoch_reads_each_lane_in_windows_of_one_place() {
        let shards: Arc<[u64]> = vec![1000; 10].into();
        let order = Order::blocked(shards, 5, 4, 64).epoch(1);
        // The first 64 rows of lane 0 come from one run of 64 consecutive records, in another order.
        let mut rows: Vec<u64> = (0..64).map(|row| order.index(row * 4)).collect();
        let as_read = rows.clone();
        rows.sort_unstable();
        assert_eq!(rows[63] - rows[0], 63);
        assert_ne!(as_read, rows);
    }

    #[test]
    fn a_blocked_substitute_stays_in_its_window() {
        let order = Order::blocked(vec![100, 100].into(), 5, 1, 10).epoch(0);
        for position in 0..200 {
            let window: Vec<u64> =
                (position / 10 * 10..position / 10 * 10 + 10).map(|p| order.index(p)).collect();
            assert!((0..8).all(|attempt| window.contains(&order.substitute(position, attempt))));
        }
    }
}
