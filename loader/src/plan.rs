//! Cutting an epoch into batches: which positions are in a batch, and which of its rows belong to a rank.
//!
//! A *global batch* is `batch_size x world_size` consecutive positions; its row `j` belongs to rank `j mod world_size`.
//! (Where a batch is made of rows that belong together, a rank gets them all: the first `batch_size` rows are rank
//! 0's.) All ranks get the same number of batches, and in each of them row counts differ by at most one. A last batch
//! of fewer rows than ranks would leave ranks with none, and a mean loss of nothing is nan: the batch before it gives
//! up some of its rows, so that every rank has one. What remains are ranks without a row where a rank's batch is a
//! single row, where an epoch has fewer records than ranks, and at the end of a stream, which nobody knows beforehand.
//! Batches are counted from wherever the epoch was entered, so a resume at any position, at any world size, goes on
//! exactly. Daemon and client share this file, so neither has to tell the other when an epoch ends.

use serde::{Deserialize, Serialize};

/// A place in the endless sequence of epochs: the next row to hand out, counted over all ranks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Cursor {
    /// Epoch, from 0.
    pub epoch: u64,
    /// Position in the epoch, `0..=len`.
    pub position: u64,
}

/// How epochs are cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Batching {
    /// Records in an epoch; of a stream it is known once its last window has come.
    pub len: Option<u64>,
    /// Rows a rank gets in a full batch.
    pub batch_size: u64,
    /// Number of ranks.
    pub world_size: u64,
    /// Whether a global batch that would not be full is left out.
    pub drop_last: bool,
    /// Whether the end of an epoch is known from its beginning; of a stream it is not.
    pub foreseen: bool,
    /// Whether the rows of a rank's batch are consecutive positions, which belong together.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub together: bool,
    /// Epochs that there are, if not any number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epochs: Option<u64>,
}

impl Batching {
    /// Refuses an epoch beyond the last.
    ///
    /// # Errors
    /// What to do.
    pub fn check_epoch(&self, epoch: u64) -> Result<(), String> {
        match self.epochs {
            Some(epochs) if epoch >= epochs => Err(format!(
                "order has the records of {epochs} {}, and this would be epoch {epoch}, counted from 0: give a row for \
                 each epoch, or one row for all of them",
                if epochs == 1 { "epoch" } else { "epochs" }
            )),
            _ => Ok(()),
        }
    }

    /// Positions in a full global batch.
    pub fn global_batch(&self) -> u64 {
        self.batch_size * self.world_size
    }

    /// Rows of the largest batch that a rank can get: fewer than `batch_size` where an epoch has fewer for it.
    pub fn most_rows(&self) -> u64 {
        let of_epoch = self.len.map_or(u64::MAX, |len| len.div_ceil(self.world_size));
        self.batch_size.min(of_epoch).max(1)
    }

    /// Batches from `position` to the end of the epoch, the same on every rank; `None` as long as nobody knows where it
    /// ends.
    pub fn batches_from(&self, position: u64) -> Option<u64> {
        let rest = self.len?.saturating_sub(position);
        Some(if self.drop_last { rest / self.global_batch() } else { rest.div_ceil(self.global_batch()) })
    }

    /// The cursor itself, or the start of the next epoch when no batch is left in this one.
    pub fn settle(&self, cursor: Cursor) -> Cursor {
        if self.batches_from(cursor.position) == Some(0) {
            Cursor { epoch: cursor.epoch + 1, position: 0 }
        } else {
            cursor
        }
    }

    /// The position behind the global batch that begins at `position`.
    pub fn after(&self, position: u64) -> u64 {
        let end = position.saturating_add(self.global_batch());
        let Some(len) = self.len else { return end };
        let tail = len.saturating_sub(end);
        let is_shared = self.foreseen && !self.drop_last && self.batch_size > 1;
        if is_shared && 0 < tail && tail < self.world_size { len - self.world_size } else { len.min(end) }
    }

    /// The positions of `rank`'s rows in the global batch that begins at `position`.
    pub fn rows(&self, position: u64, rank: u64) -> impl Iterator<Item = u64> + use<> {
        let (first, step) = match self.together {
            true => (rank * self.batch_size, 1),
            false => (rank, self.world_size),
        };
        let end = if self.together { position.saturating_add(first + self.batch_size) } else { u64::MAX };
        (position.saturating_add(first)..self.after(position).min(end)).step_by(step as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn of(len: u64) -> Batching {
        Batching {
            len: Some(len),
            batch_size: 1,
            world_size: 1,
            drop_last: false,
            foreseen: true,
            together: false,
            epochs: None,
        }
    }

    fn epoch_rows(batching: &Batching, start: u64, rank: u64) -> Vec<Vec<u64>> {
        let mut position = start;
        (0..batching.batches_from(start).unwrap())
            .map(|_| {
                let rows = batching.rows(position, rank).collect();
                position = batching.after(position);
                rows
            })
            .collect()
    }

    proptest! {
        #[test]
        fn ranks_together_are_the_rows_of_one_rank_in_as_many_batches(
            len in 1u64..500, batch_size in 1u64..20, world in 1u64..9, start in 0u64..500, drop_last: bool, foreseen: bool,
        ) {
            let start = start % (len + 1);
            let many = Batching { batch_size, world_size: world, drop_last, foreseen, ..of(len) };
            let one = Batching { batch_size: batch_size * world, world_size: 1, ..many };
            let ranks: Vec<_> = (0..world).map(|rank| epoch_rows(&many, start, rank)).collect();
            let whole = epoch_rows(&one, start, 0);
            prop_assert!(ranks.iter().all(|rank| rank.len() == whole.len()));
            let full = whole.len().saturating_sub(2);
            let mut all = Vec::new();
            for at in 0..whole.len() {
                let mut joined: Vec<u64> = ranks.iter().flat_map(|rank| rank[at].iter().copied()).collect();
                joined.sort_unstable();
                if at < full {
                    prop_assert_eq!(&joined, &whole[at]);
                }
                all.extend(joined);
                let counts: Vec<usize> = ranks.iter().map(|rank| rank[at].len()).collect();
                prop_assert!(counts.iter().max().unwrap() - counts.iter().min().unwrap() <= 1);
                prop_assert!(counts.iter().all(|&rows| rows as u64 <= many.most_rows()));
                let has_enough = foreseen && batch_size > 1 && len - start >= world;
                prop_assert!(!has_enough || counts.iter().all(|&rows| rows > 0), "{:?}", counts);
            }
            prop_assert_eq!(all, whole.concat());
            if !drop_last {
                prop_assert_eq!(whole.concat(), (start..len).collect::<Vec<_>>());
            }
        }

        #[test]
        fn a_resume_in_the_middle_sees_the_complement(len in 1u64..500, first in 1u64..20, then in 1u64..20, cut in 0u64..40) {
            let before =
                Batching { batch_size: first, world_size: 3, ..of(len) };
            let mut position = 0;
            let mut seen = Vec::new();
            for _ in 0..cut.min(before.batches_from(0).unwrap()) {
                seen.extend(position..before.after(position));
                position = before.after(position);
            }
            let after = Batching { batch_size: then, world_size: 1, ..before };
            seen.extend(epoch_rows(&after, position, 0).concat());
            prop_assert_eq!(seen, (0..len).collect::<Vec<_>>());
        }
    }

    #[test]
    fn rows_that_belong_together_go_to_one_rank_and_a_resume_deals_out_the_rest() {
        let batching = Batching { batch_size: 4, world_size: 3, drop_last: true, together: true, ..of(28) };
        let ranks: Vec<_> = (0..3).map(|rank| epoch_rows(&batching, 0, rank)).collect();
        assert_eq!(ranks[0], [vec![0, 1, 2, 3], vec![12, 13, 14, 15]]);
        assert_eq!(ranks[2], [vec![8, 9, 10, 11], vec![20, 21, 22, 23]]);
        let two = Batching { world_size: 2, ..batching };
        assert_eq!(epoch_rows(&two, 12, 1), [vec![16, 17, 18, 19], vec![24, 25, 26, 27]]);
    }

    #[test]
    fn a_batch_larger_than_the_epoch_has_the_rows_that_there_are() {
        let batching = Batching { batch_size: 1_000_000, world_size: 3, ..of(64) };
        assert_eq!((batching.most_rows(), batching.rows(0, 0).count()), (22, 22));
        assert_eq!(Batching { batch_size: 8, ..batching }.most_rows(), 8);
        assert_eq!(Batching { len: None, ..batching }.most_rows(), 1_000_000);
    }

    #[test]
    fn the_end_of_an_epoch_is_the_start_of_the_next() {
        let batching = Batching { batch_size: 4, drop_last: true, ..of(10) };
        assert_eq!(batching.settle(Cursor { epoch: 2, position: 8 }), Cursor { epoch: 3, position: 0 });
        assert_eq!(batching.settle(Cursor { epoch: 2, position: 4 }), Cursor { epoch: 2, position: 4 });
    }
}
