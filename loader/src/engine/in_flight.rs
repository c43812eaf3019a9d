//! What is between the order and the slots: rows that were asked for and are not back, and their encoded bytes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

/// Most rows in flight, however small: bounds the bookkeeping, not the bytes.
const MAX_ROWS: usize = 4096;

/// The count, and its bounds.
pub(super) struct InFlight {
    most_bytes: u64,
    count: Arc<Count>,
}

#[derive(Default)]
struct Count {
    rows: AtomicUsize,
    bytes: AtomicU64,
}

/// One row's share. Travels with the row; dropping it gives it back.
pub(super) struct Share {
    bytes: u64,
    count: Arc<Count>,
}

impl InFlight {
    /// None yet, of at most so many bytes.
    pub fn new(most_bytes: u64) -> Self {
        Self { most_bytes, count: Arc::default() }
    }

    /// Encoded bytes.
    pub fn bytes(&self) -> u64 {
        self.count.bytes.load(Relaxed)
    }

    /// Whether there is nothing.
    pub fn is_empty(&self) -> bool {
        self.rows() == 0
    }

    fn rows(&self) -> usize {
        self.count.rows.load(Relaxed)
    }

    /// Whether there is room for a run of rows: they are topped up in runs rather than one by one, so that many reads
    /// share one submission to the kernel.
    pub fn has_room(&self) -> bool {
        self.bytes() <= self.most_bytes / 4 * 3 && self.rows() <= MAX_ROWS / 4 * 3
    }

    /// Room for one row of `bytes` bytes. One alone may exceed the bound, or nothing would ever move.
    pub fn admit(&self, bytes: u64) -> Option<Share> {
        let over = self.bytes() + bytes > self.most_bytes || self.rows() >= MAX_ROWS;
        (!over || self.rows() == 0).then(|| {
            self.count.rows.fetch_add(1, Relaxed);
            self.count.bytes.fetch_add(bytes, Relaxed);
            Share { bytes, count: self.count.clone() }
        })
    }
}

impl Share {
    /// Keeps the place of a row and gives its bytes back: there is nothing to read.
    pub fn without_bytes(mut self) -> Self {
        self.count.bytes.fetch_sub(std::mem::take(&mut self.bytes), Relaxed);
        self
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.count.bytes.fetch_sub(self.bytes, Relaxed);
        self.count.rows.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_dropped_makes_room_and_one_row_alone_may_exceed_the_bound() {
        let flight = InFlight::new(100);
        let large = flight.admit(1000).expect("alone");
        assert!(flight.admit(1).is_none() && !flight.has_room());
        drop(large);
        let shares: Vec<_> = (0..4).map(|_| flight.admit(25).unwrap()).collect();
        assert!(flight.admit(0).is_some() && flight.admit(1).is_none() && !flight.has_room());
        let mut shares = shares.into_iter();
        let kept = shares.next().unwrap().without_bytes();
        assert_eq!(flight.bytes(), 75);
        drop((kept, shares));
        assert_eq!((flight.bytes(), flight.rows()), (0, 0));
    }

    #[test]
    fn rows_without_bytes_are_bounded_by_their_number() {
        let flight = InFlight::new(100);
        let shares: Vec<_> = std::iter::from_fn(|| flight.admit(0)).collect();
        assert_eq!(shares.len(), MAX_ROWS);
    }
}
