//! Sampling by weight: classes in chosen proportions, or records by weights of their own.
//!
//! *Classes*: an epoch has a fixed number of draws of each class; within a class, records come in passes as in a
//! mixture, so that no record of it comes again before all others have. One `u32` or `u64` a record lists them by
//! class.
//!
//! *Weights*: systematic resampling (Madow 1949). The epoch's M draws are M equidistant points, shifted by one random
//! number an epoch, on the line of cumulated weights; a record is drawn as often as points fall on it, which is its
//! expected number of draws rounded down or up. One `f64` a record holds the line.

use std::sync::Arc;

use super::permutation::{Permutation, below, derive};
use super::records::Sorted;

/// Records by class, and how often an epoch draws from each.
#[derive(Clone, Debug)]
pub(super) struct Classes {
    records: Sorted,
    /// Where each class's draws begin, and the number of all.
    draws: Arc<[u64]>,
    seed: u64,
}

impl Classes {
    /// Sorts records by class. `draws[class]` is how often an epoch draws from it; 0 for a class without records.
    pub fn new(len: u64, class: impl Fn(u64) -> usize, draws: &[u64], seed: u64) -> Self {
        let records = Sorted::new(len, class, draws.len());
        let mut ends = vec![0];
        ends.extend(draws.iter().scan(0, |sum, &draws| {
            *sum += draws;
            Some(*sum)
        }));
        Self { records, draws: ends.into(), seed }
    }

    pub fn len(&self) -> u64 {
        self.draws[self.draws.len() - 1]
    }

    pub fn memory(&self) -> u64 {
        self.records.memory() + self.draws.len() as u64 * 8
    }

    /// The class of a position, which draw of the class it is in this epoch, and the draws of the class in an epoch.
    fn draw(&self, key: u64, position: u64) -> (usize, u64, u64) {
        let place = Permutation::new(self.len(), key).apply(position);
        let class = self.draws.partition_point(|&begin| begin <= place) - 1;
        (class, place - self.draws[class], self.draws[class + 1] - self.draws[class])
    }

    pub fn index(&self, epoch: u64, key: u64, position: u64) -> u64 {
        let (class, draw, draws) = self.draw(key, position);
        let records = self.records.len(class);
        let drawn = u128::from(epoch) * u128::from(draws) + u128::from(draw);
        let (pass, at) = ((drawn / u128::from(records)) as u64, (drawn % u128::from(records)) as u64);
        let pass = Permutation::new(records, derive(self.seed, class as u64, pass));
        self.records.at(class, pass.apply(at))
    }

    /// Another record of the same class.
    pub fn substitute(&self, key: u64, position: u64, draw: u64) -> u64 {
        let (class, ..) = self.draw(key, position);
        self.records.at(class, below(draw, self.records.len(class)))
    }
}

/// The line of cumulated weights.
#[derive(Clone, Debug)]
pub(super) struct Weights {
    /// `ends[i]` is the sum of the weights up to and with record i.
    ends: Arc<[f64]>,
    len: u64,
}

impl Weights {
    /// `len` draws an epoch from records of these weights, whose sum must be finite and above 0.
    pub fn new(weights: impl Iterator<Item = f64>, len: u64) -> Self {
        let ends = weights.scan(0.0, |sum, weight| {
            *sum += weight;
            Some(*sum)
        });
        Self { ends: ends.collect(), len }
    }

    pub fn memory(&self) -> u64 {
        self.ends.len() as u64 * 8
    }

    pub fn index(&self, key: u64, position: u64) -> u64 {
        let point = Permutation::new(self.len, key).apply(position);
        self.at((point as f64 + unit(derive(key, 0, u64::MAX - 2))) / self.len as f64)
    }

    /// A record drawn by weight, independently of the points.
    pub fn substitute(&self, draw: u64) -> u64 {
        self.at(unit(draw))
    }

    /// The record at a share of the line.
    fn at(&self, share: f64) -> u64 {
        let sum = self.ends[self.ends.len() - 1];
        let place = share * sum;
        // Strictly beyond: a record of weight 0 has no length and is never found, except by rounding at the very end.
        let found = self.ends.partition_point(|&end| end <= place);
        let last = || self.ends.partition_point(|&end| end < sum);
        (if found < self.ends.len() { found } else { last() }) as u64
    }
}

/// 53 bits of a draw as a number from 0 to below 1.
fn unit(draw: u64) -> f64 {
    (draw >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn classes_are_drawn_as_told_and_no_record_twice_before_its_class_is_through(
            labels in prop::collection::vec(0usize..5, 1..200), draws in prop::collection::vec(1u64..40, 5), seed: u64,
        ) {
            let present: Vec<bool> = (0..5).map(|class| labels.contains(&class)).collect();
            let draws: Vec<u64> = draws.iter().zip(&present).map(|(&d, &p)| if p { d } else { 0 }).collect();
            let classes = Classes::new(labels.len() as u64, |index| labels[index as usize], &draws, seed);
            prop_assert_eq!(classes.len(), draws.iter().sum::<u64>());
            let mut counts = vec![0u64; labels.len()];
            for epoch in 0..5 {
                let mut drawn = vec![0u64; 5];
                for position in 0..classes.len() {
                    let index = classes.index(epoch, derive(seed, epoch, 9), position) as usize;
                    counts[index] += 1;
                    drawn[labels[index]] += 1;
                }
                prop_assert_eq!(&drawn, &draws);
            }
            for class in 0..5 {
                let of: Vec<u64> = (0..labels.len()).filter(|&i| labels[i] == class).map(|i| counts[i]).collect();
                if let (Some(max), Some(min)) = (of.iter().max(), of.iter().min()) {
                    prop_assert!(max - min <= 1, "class {class}: {of:?}");
                }
            }
        }

        #[test]
        fn a_record_is_drawn_as_often_as_its_weight_says_give_or_take_one(
            weights in prop::collection::vec(0u32..1000, 1..100), len in 1u64..500, key: u64,
        ) {
            let sum: u32 = weights.iter().sum();
            prop_assume!(sum > 0);
            let line = Weights::new(weights.iter().map(|&weight| weight.into()), len);
            let mut counts = vec![0u64; weights.len()];
            (0..len).for_each(|position| counts[line.index(key, position) as usize] += 1);
            for (count, weight) in counts.iter().zip(&weights) {
                let expected = len as f64 * f64::from(*weight) / f64::from(sum);
                prop_assert!((*count as f64 - expected).abs() < 1.0 + 1e-6, "{count} for {expected}");
            }
            prop_assert!(weights[line.substitute(key) as usize] > 0);
        }
    }
}
