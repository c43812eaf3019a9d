//! Which record comes at which position: a pure function of (seed, epoch, position).
//!
//! Promises
//! - a bijection, unless the order is given, or says otherwise: over one epoch every record is named exactly once;
//! - an order given from outside is that order: 4 or 8 bytes a position;
//! - repeated, each record stands at so many positions next to each other;
//! - drawn by weight, an epoch names each part, class or record as often as its share says, and no record of a part or
//!   class again before all others of it;
//! - O(1) memory and O(1) seek for the plain shuffle, O(shards) and O(log shards) for the blocked one, 4 or 8 bytes a
//!   record and O(log) where classes or records are weighted;
//! - nothing else goes in: neither batch size, nor world size, nor threads, nor what was read before.

mod blocked;
mod given;
mod mixed;
mod per_class;
mod permutation;
mod records;
mod sampled;

use std::sync::Arc;

use blocked::BlockedEpoch;
use given::Given;
use mixed::{MixedEpoch, MixedPart};
use per_class::PerClass;
pub use per_class::Rounds;
use permutation::{Permutation, below};
use records::Sorted;
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
    Given(Given),
    Repeated { each: Arc<Order>, times: u64 },
    PerClass(Arc<PerClass>),
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

    /// The records with these indices, which are below `end`: those of each of `epochs` epochs one after the other, or
    /// of one epoch that stands for all.
    ///
    /// # Panics
    /// When they do not divide into the epochs.
    pub fn given(indices: &[u64], epochs: Option<u64>, end: u64) -> Self {
        assert!((indices.len() as u64).is_multiple_of(epochs.unwrap_or(1)), "epochs are of one length");
        let given = Given::new(indices, epochs, end);
        Self { len: given.len(), seed: 0, kind: Kind::Given(given) }
    }

    /// Another order with each record at `times` positions next to each other, up to `len` positions.
    ///
    /// # Panics
    /// When that is more than there are.
    pub fn repeated(each: Self, times: u64, len: u64) -> Self {
        assert!(len.div_ceil(times) <= each.len, "{len} positions in {times} times {}", each.len);
        Self { len, seed: each.seed, kind: Kind::Repeated { each: Arc::new(each), times } }
    }

    /// Records of a source of `records`, in rounds of different classes with so many records of each. `counts` says
    /// how many records each class has; a `class` that is not among them is never drawn.
    ///
    /// # Panics
    /// When there are fewer classes than a round needs.
    pub fn per_class(
        records: u64,
        class: impl Fn(u64) -> usize,
        counts: &[u64],
        rounds: Rounds,
        seed: u64,
    ) -> Self {
        let classes = (0..counts.len()).filter(|&class| counts[class] > 0).collect();
        let order = PerClass::new(Sorted::new(records, class, counts.len() + 1), classes, rounds, seed);
        Self { len: order.len(), seed, kind: Kind::PerClass(Arc::new(order)) }
    }

    /// Epochs that there is an order for, if not any.
    pub fn epochs(&self) -> Option<u64> {
        match &self.kind {
            Kind::Given(given) => given.epochs(),
            _ => None,
        }
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
            Kind::Given(given) => given.memory(),
            Kind::Repeated { each, .. } => each.memory(),
            Kind::PerClass(order) => order.memory(),
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
            Kind::Given(given) => Map::Given(given.clone(), epoch),
            Kind::Repeated { each, times } => Map::Repeated(Box::new(each.epoch(epoch)), *times),
            Kind::PerClass(order) => Map::PerClass(order.clone(), epoch),
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
    Given(Given, u64),
    Repeated(Box<EpochOrder>, u64),
    PerClass(Arc<PerClass>, u64),
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
            Map::Given(given, epoch) => given.index(*epoch, position),
            Map::Repeated(each, times) => each.index(position / times),
            Map::PerClass(order, epoch) => order.index(*epoch, position),
        }
    }

    /// The record that stands in for the one at `position` when its bytes are bad: drawn from the same window
    /// (blocked), part, class or given list, or else from the whole source, by (seed, epoch, position, attempt), so
    /// that a resume draws it again.
    pub fn substitute(&self, position: u64, attempt: u32) -> u64 {
        let draw = derive(self.key, position, 1 + u64::from(attempt));
        match &self.map {
            Map::Sequential | Map::Shuffled(_) => below(draw, self.len),
            Map::Blocked(blocked) => blocked.neighbour(position, draw),
            Map::Mixed(mixed) => mixed.substitute(position, attempt),
            Map::Classes(classes, _) => classes.substitute(self.key, position, draw),
            Map::Weights(weights) => weights.substitute(draw),
            Map::Given(given, epoch) => given.substitute(*epoch, draw),
            // One record for all positions of a bad one: they stay views of the same.
            Map::Repeated(each, times) => each.substitute(position / times, attempt),
            Map::PerClass(order, epoch) => order.substitute(*epoch, position, draw),
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

    proptest! {
        #[test]
        fn a_given_order_is_that_order_in_every_epoch_or_in_its_own(
            rows in prop::collection::vec(prop::collection::vec(0u64..50, 7), 1..5), epoch in 0u64..5,
        ) {
            let order = Order::given(&rows.concat(), Some(rows.len() as u64), 50);
            let row = &rows[epoch as usize % rows.len()];
            let found: Vec<u64> = (0..7).map(|position| order.epoch(epoch % rows.len() as u64).index(position)).collect();
            prop_assert_eq!(&found, row);
            let alike = Order::given(row, None, 50);
            prop_assert_eq!((0..7).map(|at| alike.epoch(epoch).index(at)).collect::<Vec<_>>(), row.clone());
            prop_assert!((0..7).all(|at| row.contains(&alike.epoch(epoch).substitute(at, 3))), "a bad record's too");
            prop_assert_eq!((order.epochs(), alike.epochs()), (Some(rows.len() as u64), None));
        }

        #[test]
        fn a_repeated_order_is_the_order_with_each_record_so_often(
            len in 1u64..300, times in 1u64..6, cut in 0u64..5, seed: u64, epoch in 0u64..9, at: u64,
        ) {
            let each = Order::shuffled(len, seed);
            let whole = (len * times).saturating_sub(cut).max(1);
            let order = Order::repeated(each.clone(), times, whole);
            prop_assert_eq!(order.len(), whole);
            let (order, each) = (order.epoch(epoch), each.epoch(epoch));
            let at = at % whole;
            prop_assert_eq!(order.index(at), each.index(at / times));
            prop_assert_eq!(order.substitute(at, 1), order.substitute(at / times * times, 1), "one stands in for all");
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
