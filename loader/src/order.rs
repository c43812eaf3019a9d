//! Which record comes at which position: a pure function of (seed, epoch, position).
//!
//! Promises
//! - a bijection: over one epoch every record of the source is named exactly once;
//! - O(1) memory and O(1) seek for the plain shuffle, O(shards) memory and O(log shards) seek for the blocked one;
//! - nothing else goes in: neither batch size, nor world size, nor threads, nor what was read before.
//!
//! The plain shuffle is a keyed permutation: an alternating Feistel network over the smallest power of two that
//! holds the source, *cycle-walked* (Black & Rogaway, "Ciphers with Arbitrary Finite Domains", 2002): a value that
//! falls outside is enciphered again until it falls inside, which keeps it a bijection and takes less than two
//! rounds on average.
//!
//! The blocked shuffle keeps reads of shards sequential:
//!
//! ```text
//!  shards permuted        [ s3 | s0 | s4 | s1 | s2 ]     laid end to end: one line of N records
//!  cut into L lanes       [ lane 0 | lane 1 | lane 2 ]   equal, the first N mod L one longer
//!  position p             row p div L of lane p mod L
//!  inside a lane          rows are permuted within windows of fixed length
//! ```

use std::sync::Arc;

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

    /// Records in one epoch.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether there is nothing to order.
    pub fn is_empty(&self) -> bool {
        self.len == 0
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
}

impl EpochOrder {
    /// The record at `position` (`0..len`).
    pub fn index(&self, position: u64) -> u64 {
        assert!(position < self.len, "position {position} is not below {}", self.len);
        match &self.map {
            Map::Sequential => position,
            Map::Shuffled(permutation) => permutation.apply(position),
            Map::Blocked(blocked) => blocked.index(position),
        }
    }

    /// The record that stands in for the one at `position` when its bytes are bad: drawn from the same window
    /// (blocked) or from the whole source, by (seed, epoch, position, attempt), so that a resume draws it again.
    pub fn substitute(&self, position: u64, attempt: u32) -> u64 {
        let draw = derive(self.key, position, 1 + u64::from(attempt));
        match &self.map {
            Map::Sequential | Map::Shuffled(_) => below(draw, self.len),
            Map::Blocked(blocked) => blocked.neighbour(position, draw),
        }
    }
}

#[derive(Clone, Debug)]
struct BlockedEpoch {
    len: u64,
    key: u64,
    lanes: u64,
    window: u64,
    /// Per shard in laid-out order: where it begins on the line, and the record index of its first row.
    layout: Arc<[(u64, u64)]>,
}

impl BlockedEpoch {
    fn new(shards: &[u64], len: u64, key: u64, lanes: u64, window: u64) -> Self {
        let mut first_record = Vec::with_capacity(shards.len());
        let mut total = 0;
        for &rows in shards {
            first_record.push(total);
            total += rows;
        }
        let permutation = Permutation::new(shards.len() as u64, derive(key, 0, u64::MAX));
        let mut begin = 0;
        let layout = (0..shards.len() as u64)
            .map(|place| {
                let shard = permutation.apply(place) as usize;
                let entry = (begin, first_record[shard]);
                begin += shards[shard];
                entry
            })
            .collect();
        Self { len, key, lanes, window, layout }
    }

    /// Lane, row in the lane.
    fn split(&self, position: u64) -> (u64, u64) {
        (position % self.lanes, position / self.lanes)
    }

    /// Where a lane begins on the line and how many rows it has.
    fn lane(&self, lane: u64) -> (u64, u64) {
        let (quotient, rest) = (self.len / self.lanes, self.len % self.lanes);
        (lane * quotient + lane.min(rest), quotient + u64::from(lane < rest))
    }

    /// First row and length of the window of a lane in which `row` lies.
    fn window_of(&self, rows: u64, row: u64) -> (u64, u64) {
        let first = row / self.window * self.window;
        (first, self.window.min(rows - first))
    }

    fn index(&self, position: u64) -> u64 {
        let (lane, row) = self.split(position);
        let (begin, rows) = self.lane(lane);
        let (first, length) = self.window_of(rows, row);
        let permutation = Permutation::new(length, derive(self.key, lane, first));
        self.record(begin + first + permutation.apply(row - first))
    }

    fn neighbour(&self, position: u64, draw: u64) -> u64 {
        let (lane, row) = self.split(position);
        let (begin, rows) = self.lane(lane);
        let (first, length) = self.window_of(rows, row);
        self.record(begin + first + below(draw, length))
    }

    /// The record at a place on the line.
    fn record(&self, place: u64) -> u64 {
        // Empty shards share their begin with the next one; the last with `begin <= place` is the one that has it.
        let shard = self.layout.partition_point(|&(begin, _)| begin <= place) - 1;
        let (begin, first_record) = self.layout[shard];
        first_record + (place - begin)
    }
}

/// A keyed permutation of `0..len`.
#[derive(Clone, Copy, Debug)]
struct Permutation {
    len: u64,
    key: u64,
    rounds: u64,
    left_bits: u32,
    right_bits: u32,
}

impl Permutation {
    fn new(len: u64, key: u64) -> Self {
        let bits = if len <= 2 { 2 } else { (len - 1).ilog2() + 1 };
        // Half-rounds. Eight are twice what Luby and Rackoff need for a pseudorandom permutation; but their bound grows
        // useless when a half has a few bits only, and there (up to 4096 records) many more are needed to be fair.
        let rounds = if bits <= 12 { 32 } else { 8 };
        Self { len, key, rounds, left_bits: bits / 2, right_bits: bits - bits / 2 }
    }

    fn apply(&self, value: u64) -> u64 {
        if self.len <= 1 {
            return value;
        }
        let mut value = value;
        loop {
            value = self.encipher(value);
            if value < self.len {
                return value;
            }
        }
    }

    fn encipher(&self, value: u64) -> u64 {
        let (left_mask, right_mask) = ((1u64 << self.left_bits) - 1, (1u64 << self.right_bits) - 1);
        let (mut left, mut right) = ((value >> self.right_bits) & left_mask, value & right_mask);
        let mut round = 0;
        while round < self.rounds {
            left ^= derive(self.key, right, round) & left_mask;
            right ^= derive(self.key, left, round + 1) & right_mask;
            round += 2;
        }
        left << self.right_bits | right
    }
}

/// A well-mixed 64-bit value of three: two rounds of the SplitMix64 finaliser (Steele, Lea & Flood, 2014), each with
/// its own odd constant between the inputs, so that neighbouring inputs share nothing.
pub(crate) fn derive(a: u64, b: u64, c: u64) -> u64 {
    let mut value = a ^ b.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    value = finalise(value.wrapping_add(0x2545_f491_4f6c_dd1d));
    finalise(value ^ c.wrapping_mul(0xd1b5_4a32_d192_ed03).wrapping_add(0x8cb9_2ba7_2f3d_8dd7))
}

fn finalise(mut value: u64) -> u64 {
    value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// A 64-bit draw scaled to `0..len` (Lemire's multiplication; its bias of len/2^64 is far below what can be seen).
fn below(draw: u64, len: u64) -> u64 {
    ((u128::from(draw) * u128::from(len)) >> 64) as u64
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
