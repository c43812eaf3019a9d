//! The blocked shuffle: keeps reads of shards sequential.
//!
//! ```text
//!  shards permuted        [ s3 | s0 | s4 | s1 | s2 ]     laid end to end: one line of N records
//!  cut into L lanes       [ lane 0 | lane 1 | lane 2 ]   equal, the first N mod L one longer
//!  position p             row p div L of lane p mod L
//!  inside a lane          rows are permuted within windows of fixed length
//! ```

use std::sync::Arc;

use super::permutation::{Permutation, below, derive};

#[derive(Clone, Debug)]
pub(super) struct BlockedEpoch {
    len: u64,
    key: u64,
    lanes: u64,
    window: u64,
    /// Per shard in laid-out order: where it begins on the line, and the record index of its first row.
    layout: Arc<[(u64, u64)]>,
}

impl BlockedEpoch {
    pub fn new(shards: &[u64], len: u64, key: u64, lanes: u64, window: u64) -> Self {
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

    pub fn index(&self, position: u64) -> u64 {
        let (lane, row) = self.split(position);
        let (begin, rows) = self.lane(lane);
        let (first, length) = self.window_of(rows, row);
        let permutation = Permutation::new(length, derive(self.key, lane, first));
        self.record(begin + first + permutation.apply(row - first))
    }

    pub fn neighbour(&self, position: u64, draw: u64) -> u64 {
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
