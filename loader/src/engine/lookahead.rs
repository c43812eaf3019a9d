//! Which records a feed will need once the batches under construction are done: told to readers that decode whole
//! blocks, so that the next block is under way before its first record is asked for.

use crate::order::{EpochOrder, Order};
use crate::plan::{Batching, Cursor};

/// Walks ahead of a feed's cursor, at most as far as its reader has use for.
pub(super) struct Lookahead {
    order: Order,
    /// Records of this rank.
    horizon: u64,
    /// Where the next batch to be told begins.
    at: Cursor,
    /// Records between the feed's cursor and there, on this rank.
    distance: u64,
    cursor: Cursor,
    epoch: Option<(u64, EpochOrder)>,
}

impl Lookahead {
    /// `horizon`: what [`fuelrail_connectors::Reader::horizon`] says.
    pub fn new(order: Order, horizon: u64) -> Self {
        let start = Cursor::default();
        Self { order, horizon, at: start, distance: 0, cursor: start, epoch: None }
    }

    /// The records that have come into sight since the last call, as the cursor has moved on. Across the end of an
    /// epoch it looks into the next.
    pub fn beyond(&mut self, cursor: Cursor, batching: &Batching, rank: u64) -> Vec<u64> {
        let mut found = Vec::new();
        if self.horizon == 0 {
            return found;
        }
        // Batches that have been opened since.
        while self.distance > 0 && self.cursor != cursor {
            self.distance = self.distance.saturating_sub(batching.batch_size);
            self.cursor = next(self.cursor, batching);
        }
        if self.cursor != cursor || self.distance == 0 {
            // A seek, or the first call.
            (self.cursor, self.at, self.distance) = (cursor, cursor, 0);
        }
        while self.distance < self.horizon {
            let order = match &self.epoch {
                Some((epoch, order)) if *epoch == self.at.epoch => order,
                _ => &self.epoch.insert((self.at.epoch, self.order.epoch(self.at.epoch))).1,
            };
            found.extend(batching.rows(self.at.position, rank).map(|position| order.index(position)));
            self.at = next(self.at, batching);
            // A last batch that is not full counts as if it were: what matters is that this ends.
            self.distance += batching.batch_size;
        }
        found
    }
}

fn next(cursor: Cursor, batching: &Batching) -> Cursor {
    batching.settle(Cursor { position: batching.after(cursor.position), ..cursor })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batching(len: u64) -> Batching {
        Batching {
            len: Some(len),
            batch_size: 10,
            world_size: 2,
            drop_last: false,
            foreseen: true,
            together: false,
            epochs: None,
        }
    }

    #[test]
    fn every_record_comes_into_sight_once_and_before_it_is_needed() {
        let (batching, order) = (batching(95), Order::shuffled(95, 3));
        let mut ahead = Lookahead::new(order.clone(), 30);
        let (mut cursor, mut told) = (Cursor::default(), Vec::new());
        for _ in 0..12 {
            told.extend(ahead.beyond(cursor, &batching, 1));
            cursor = next(cursor, &batching);
        }
        // Those of the batches that were passed and of the three in sight behind the last.
        let (mut at, mut expected) = (Cursor::default(), Vec::new());
        for _ in 0..11 + 3 {
            let epoch = order.epoch(at.epoch);
            expected.extend(batching.rows(at.position, 1).map(|position| epoch.index(position)));
            at = next(at, &batching);
        }
        assert_eq!(told, expected);
    }

    #[test]
    fn a_seek_begins_anew_and_no_horizon_means_nothing() {
        let (batching, order) = (batching(1000), Order::sequential(1000, 0));
        let mut ahead = Lookahead::new(order.clone(), 20);
        let at = |position| Cursor { epoch: 0, position };
        assert_eq!(ahead.beyond(at(0), &batching, 0).len(), 20);
        assert!(ahead.beyond(at(0), &batching, 0).is_empty());
        assert_eq!(ahead.beyond(at(20), &batching, 0), (40..60).step_by(2).collect::<Vec<_>>());
        assert_eq!(ahead.beyond(at(500), &batching, 0)[0], 500);
        assert_eq!(ahead.beyond(at(0), &batching, 0)[0], 0);
        assert!(Lookahead::new(order, 0).beyond(at(0), &batching, 0).is_empty());
    }
}
