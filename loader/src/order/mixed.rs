//! Several parts drawn in proportion: which part a position belongs to, and which draw of that part it is.
//!
//! ```text
//!  part 0, 3 draws:   .   x   .   x   .   x   .      the j-th of n draws lies at (j + 1/2) / n of the epoch
//!  part 1, 2 draws:   .     x     .     x     .
//!  merged by time:        0   1   0   1   0          position → (part, j), by counting instead of merging
//! ```
//!
//! Each part goes through its own order, pass after pass, and goes on where the last epoch left it: no record of a part
//! comes again before all others of the part have come. Positions are permuted within short windows first, or parts of
//! equal weight would alternate strictly and a rank of two would see one of them only.

use std::sync::{Arc, OnceLock};

use super::permutation::{Permutation, derive};
use super::{EpochOrder, Order};

/// Positions permuted together, to break the regular pattern without losing locality.
const WINDOW: u64 = 512;

/// One part, as the order sees it.
#[derive(Clone, Debug)]
pub(super) struct MixedPart {
    /// Its own order.
    pub order: Order,
    /// Index of its first record in the whole.
    pub first: u64,
    /// Draws in an epoch.
    pub draws: u64,
}

impl MixedPart {
    /// Draws of this part before the `draw`th of an epoch, since the first epoch.
    fn drawn(&self, epoch: u64, draw: u64) -> u128 {
        u128::from(epoch) * u128::from(self.draws) + u128::from(draw)
    }

    /// The pass through the part that a draw belongs to.
    fn pass_of(&self, epoch: u64, draw: u64) -> u128 {
        self.drawn(epoch, draw) / u128::from(self.order.len())
    }
}

/// One epoch of a mixture.
#[derive(Clone, Debug)]
pub(super) struct MixedEpoch {
    parts: Arc<[MixedPart]>,
    epoch: u64,
    len: u64,
    /// Absent without shuffling.
    key: Option<u64>,
    /// Per part, the passes that this epoch touches, each laid out when it is first needed. None for a part of more
    /// than [`MAX_PASSES`], which is so short that laying it out anew costs nothing.
    passes: Arc<[Box<[OnceLock<EpochOrder>]>]>,
}

/// Passes of one part in one epoch whose layouts are kept.
const MAX_PASSES: u128 = 1024;

impl MixedEpoch {
    pub fn new(parts: &Arc<[MixedPart]>, epoch: u64, key: Option<u64>) -> Self {
        let passes = parts.iter().map(|part| {
            let count = part.pass_of(epoch, part.draws - 1) - part.pass_of(epoch, 0) + 1;
            (0..if count > MAX_PASSES { 0 } else { count }).map(|_| OnceLock::new()).collect()
        });
        let len = parts.iter().map(|part| part.draws).sum();
        Self { passes: passes.collect(), parts: parts.clone(), epoch, len, key }
    }

    pub fn index(&self, position: u64) -> u64 {
        let (part, draw) = self.draw(position);
        self.parts[part].first + self.with_pass(part, draw, |pass, at| pass.index(at))
    }

    pub fn substitute(&self, position: u64, attempt: u32) -> u64 {
        let (part, draw) = self.draw(position);
        self.parts[part].first + self.with_pass(part, draw, |pass, at| pass.substitute(at, attempt))
    }

    /// Calls `ask` with the pass of a part that its `draw`th draw of this epoch belongs to, and the position in it.
    fn with_pass(&self, number: usize, draw: u64, ask: impl FnOnce(&EpochOrder, u64) -> u64) -> u64 {
        let part = &self.parts[number];
        let pass = part.pass_of(self.epoch, draw);
        let at = (part.drawn(self.epoch, draw) % u128::from(part.order.len())) as u64;
        // Passes beyond 64 bits are none that a run reaches; they repeat the first ones.
        let lay_out = || part.order.epoch(pass as u64);
        match self.passes[number].get((pass - part.pass_of(self.epoch, 0)) as usize) {
            Some(kept) => ask(kept.get_or_init(lay_out), at),
            None => ask(&lay_out(), at),
        }
    }

    /// The part of a position and which draw of it that is.
    fn draw(&self, position: u64) -> (usize, u64) {
        let place = match self.key {
            None => position,
            Some(key) => {
                let first = position / WINDOW * WINDOW;
                let window = Permutation::new(WINDOW.min(self.len - first), derive(key, first, u64::MAX - 1));
                first + window.apply(position - first)
            }
        };
        locate(&self.parts, self.len, place)
    }
}

/// The `place`th of all draws in the order of their times; ties go to the earlier part.
fn locate(parts: &[MixedPart], len: u64, place: u64) -> (usize, u64) {
    // Draws of each part before time place / len: j < (2 n place - len) / (2 len). Rounding leaves their sum off by at
    // most half the number of parts, which single steps make up for.
    let before = |part: &MixedPart| {
        let doubled = 2 * u128::from(part.draws) * u128::from(place);
        doubled.saturating_sub(len.into()).div_ceil(2 * u128::from(len)) as u64
    };
    let mut taken: Vec<u64> = parts.iter().map(before).collect();
    let mut sum: u64 = taken.iter().sum();
    // (2 j + 1) / 2 n of part a against part b, exactly.
    let earlier = |a: (usize, u64), b: (usize, u64)| {
        let time = |(_, draw): (usize, u64), other: usize| {
            (2 * u128::from(draw) + 1) * u128::from(parts[other].draws)
        };
        (time(a, b.0), a.0) < (time(b, a.0), b.0)
    };
    while sum > place {
        let last = (0..parts.len())
            .filter(|&part| taken[part] > 0)
            .reduce(|a, b| if earlier((a, taken[a] - 1), (b, taken[b] - 1)) { b } else { a })
            .expect("something was taken");
        taken[last] -= 1;
        sum -= 1;
    }
    loop {
        let next = (0..parts.len())
            .filter(|&part| taken[part] < parts[part].draws)
            .reduce(|a, b| if earlier((a, taken[a]), (b, taken[b])) { a } else { b })
            .expect("a place below the length is some part's");
        if sum == place {
            return (next, taken[next]);
        }
        taken[next] += 1;
        sum += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parts(draws: &[u64], shuffle: bool) -> Arc<[MixedPart]> {
        let mut first = 0;
        draws
            .iter()
            .enumerate()
            .map(|(at, &draws)| {
                let len = 1 + draws * (at as u64 % 3 + 1) / 2;
                let order = if shuffle { Order::shuffled(len, at as u64) } else { Order::sequential(len, 0) };
                first += len;
                MixedPart { order, first: first - len, draws }
            })
            .collect()
    }

    proptest! {
        #[test]
        fn counting_gives_what_merging_gives(draws in prop::collection::vec(1u64..60, 1..12)) {
            let parts = parts(&draws, false);
            let len: u64 = draws.iter().sum();
            // Times over a common denominator, merged in the plainest way.
            let mut events: Vec<(u128, usize, u64)> = Vec::new();
            let product: u128 = draws.iter().map(|&n| u128::from(n)).product();
            for (part, &n) in draws.iter().enumerate() {
                events.extend((0..n).map(|j| (u128::from(2 * j + 1) * (product / u128::from(n)), part, j)));
            }
            events.sort_unstable();
            for (place, &(_, part, j)) in events.iter().enumerate() {
                prop_assert_eq!(locate(&parts, len, place as u64), (part, j));
            }
        }

        #[test]
        fn every_part_is_drawn_as_often_as_it_should_and_passes_are_whole(
            draws in prop::collection::vec(1u64..80, 1..6), key: u64,
        ) {
            let parts = parts(&draws, true);
            let len: u64 = draws.iter().sum();
            let mut counts = vec![0u64; parts.iter().map(|part| part.order.len()).sum::<u64>() as usize];
            let mut drawn = vec![0u64; parts.len()];
            for epoch in 0..4 {
                let mixed = MixedEpoch::new(&parts, epoch, Some(key));
                for position in 0..len {
                    let index = mixed.index(position);
                    counts[index as usize] += 1;
                    drawn[parts.iter().rposition(|part| part.first <= index).unwrap()] += 1;
                }
            }
            for (at, part) in parts.iter().enumerate() {
                prop_assert_eq!(drawn[at], 4 * part.draws);
                // A record's count differs from another's of the part by one at most: passes are never left early.
                let of_part = &counts[part.first as usize..][..part.order.len() as usize];
                prop_assert!(of_part.iter().max().unwrap() - of_part.iter().min().unwrap() <= 1);
            }
        }
    }

    #[test]
    fn a_stretch_of_positions_holds_the_parts_in_proportion() {
        let parts = parts(&[9000, 3000, 1], true);
        let mixed = MixedEpoch::new(&parts, 0, Some(3));
        for begin in (0..12000).step_by(1024) {
            let ones = (begin..(begin + 1024).min(12001))
                .filter(|&position| mixed.draw(position).0 == 1)
                .count() as u64;
            let expected = (begin + 1024).min(12001) - begin;
            assert!(ones.abs_diff(expected / 4) <= 2, "{ones} of {expected} at {begin}");
        }
        // Of two equal parts, each rank of two gets both.
        let equal = self::parts(&[4096, 4096], true);
        let mixed = MixedEpoch::new(&equal, 0, Some(3));
        let even = (0..4096).step_by(2).filter(|&position| mixed.draw(position).0 == 0).count();
        assert!((800..1250).contains(&even), "{even}");
    }
}
