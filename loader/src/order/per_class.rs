//! So many records of each class in every batch, as pytorch-metric-learning's `MPerClassSampler` has them.
//!
//! ```text
//!  round 0              round 1                           a round: `batch` positions, batch / each classes, all
//! different
//!  [ a a a | d d d ]    [ c c c | b b b ]  | [ d d d …    a pass: rounds until no class is left for another one
//!    `each` records, all different
//! ```
//!
//! A pass takes the classes in a new order; those that are left over at its end, too few for a round, are left out of
//! it. A class gives its records in an order of their own in the same way, `each` at a time; one that has fewer gives
//! some of them more than once. Passes and rounds are counted over all epochs, so position → record is arithmetic.

use std::sync::Arc;

use super::permutation::{Permutation, below, derive};
use super::records::Sorted;

/// Keeps the orders of classes apart from other uses of the seed.
const PASS: u64 = u64::MAX - 11;

/// How an epoch is made of rounds.
#[derive(Clone, Copy, Debug)]
pub struct Rounds {
    /// Records of a class in a round.
    pub each: u64,
    /// Positions in a round: a multiple of `each`.
    pub batch: u64,
    /// Rounds in an epoch.
    pub count: u64,
}

/// Records by class, and how rounds are made of them.
#[derive(Clone, Debug)]
pub(super) struct PerClass {
    records: Sorted,
    /// The classes that have records.
    classes: Arc<[usize]>,
    rounds: Rounds,
    seed: u64,
}

impl PerClass {
    pub fn new(records: Sorted, classes: Vec<usize>, rounds: Rounds, seed: u64) -> Self {
        let Rounds { each, batch, .. } = rounds;
        assert!(
            batch.is_multiple_of(each) && batch / each <= classes.len() as u64,
            "a round has its classes"
        );
        Self { records, classes: classes.into(), rounds, seed }
    }

    pub fn len(&self) -> u64 {
        self.rounds.count * self.rounds.batch
    }

    pub fn memory(&self) -> u64 {
        self.records.memory() + self.classes.len() as u64 * 8
    }

    /// The class of a position, how many passes went before, and which of the class's records in the round it is.
    fn class(&self, epoch: u64, position: u64) -> (usize, u64, u64) {
        let Rounds { each, batch, count } = self.rounds;
        let in_round = batch / each;
        let in_pass = self.classes.len() as u64 / in_round;
        // Rounds beyond 64 bits are none that a run reaches.
        let round = epoch.wrapping_mul(count).wrapping_add(position / batch);
        let (pass, within) = (round / in_pass, position % batch);
        let place = round % in_pass * in_round + within / each;
        let classes = Permutation::new(self.classes.len() as u64, derive(self.seed, pass, PASS));
        (self.classes[classes.apply(place) as usize], pass, within % each)
    }

    pub fn index(&self, epoch: u64, position: u64) -> u64 {
        let (class, pass, number) = self.class(epoch, position);
        let records = self.records.len(class);
        // Times that the class is asked for before its records come in another order.
        let each = self.rounds.each;
        let times = (records / each).max(1);
        let order = Permutation::new(records, derive(self.seed, class as u64, pass / times));
        self.records.at(class, order.apply((pass % times * each + number) % records))
    }

    /// Another record of the same class.
    pub fn substitute(&self, epoch: u64, position: u64, draw: u64) -> u64 {
        let (class, ..) = self.class(epoch, position);
        self.records.at(class, below(draw, self.records.len(class)))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_round_has_different_classes_with_so_many_different_records_of_each(
            labels in prop::collection::vec(0usize..9, 1..200), each in 1u64..5, wanted in 1u64..9, rounds in 1u64..30,
            seed: u64,
        ) {
            let present: Vec<usize> = (0..9).filter(|class| labels.contains(class)).collect();
            let in_round = wanted.min(present.len() as u64);
            let records = Sorted::new(labels.len() as u64, |index| labels[index as usize], 9);
            let order = PerClass::new(
                records.clone(), present.clone(), Rounds { each, batch: each * in_round, count: rounds }, seed,
            );
            prop_assert_eq!(order.len(), each * in_round * rounds);
            let mut times = HashMap::new();
            for epoch in 0..3 {
                for round in 0..rounds {
                    let mut classes: HashMap<usize, Vec<u64>> = HashMap::new();
                    for within in 0..each * in_round {
                        let index = order.index(epoch, round * each * in_round + within);
                        classes.entry(labels[index as usize]).or_default().push(index);
                    }
                    prop_assert_eq!(classes.len() as u64, in_round);
                    for (class, mut found) in classes {
                        *times.entry(class).or_insert(0u64) += 1;
                        prop_assert_eq!(found.len() as u64, each);
                        found.sort_unstable();
                        found.dedup();
                        prop_assert_eq!(found.len() as u64, each.min(records.len(class)));
                    }
                }
            }
            // Passes go through nearly all classes: none comes much more often than a pass allows.
            let passes = (3 * rounds).div_ceil(present.len() as u64 / in_round);
            prop_assert!(times.values().all(|&times| times <= passes));
        }
    }

    #[test]
    fn every_record_of_a_class_comes_before_any_comes_again() {
        // Two classes of 12 and 8 records, both in every round.
        let records = Sorted::new(20, |index| usize::from(index >= 12), 2);
        let order = PerClass::new(records, vec![0, 1], Rounds { each: 4, batch: 8, count: 6 }, 5);
        let mut counts = [0; 20];
        (0..order.len()).for_each(|position| counts[order.index(0, position) as usize] += 1);
        assert_eq!(counts[..12], [2; 12]);
        assert_eq!(counts[12..], [3; 8]);
        let epochs = [0, 1].map(|epoch| (0..48).map(|at| order.index(epoch, at)).collect::<Vec<_>>());
        assert_ne!(epochs[0], epochs[1]);
    }

    #[test]
    fn a_substitute_is_of_the_same_class() {
        let records = Sorted::new(30, |index| (index % 3) as usize, 3);
        let order = PerClass::new(records, vec![0, 1, 2], Rounds { each: 2, batch: 4, count: 9 }, 1);
        for position in 0..order.len() {
            let (own, other) = (order.index(2, position), order.substitute(2, position, position << 50));
            assert_eq!(own % 3, other % 3);
        }
    }
}
