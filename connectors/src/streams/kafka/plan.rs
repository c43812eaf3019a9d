//! Which offsets a window holds: arithmetic on offsets and sizes, without a broker.
//!
//! ```text
//!  start      quota          a window of 10 offsets over three logs, of which one is short
//!  p0  ├■■■■┤─────────▶      4      water-filling: the level rises until the sum is reached,
//!  p1  ├■■┤                  2      a log that has less gives what it has, and what is left over
//!  p2  ├■■■■┤───▶            4      goes to the first ones in order
//! ```
//!
//! Then bytes cut: records in the order of (offset - start, slot) are taken until the next one would be too much. Both
//! are pure functions of what is stored, so that whoever starts at the same place cuts the same windows.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// How many offsets of each log a window of `records` offsets takes, given how many there are.
pub(super) fn quotas(available: &[u64], records: u64) -> Vec<u64> {
    let total: u128 = available.iter().map(|&available| u128::from(available)).sum();
    if total <= u128::from(records) {
        return available.to_vec();
    }
    let level = level(available, records);
    let mut quotas: Vec<u64> = available.iter().map(|&available| available.min(level)).collect();
    let mut left = records - quotas.iter().sum::<u64>();
    for (quota, &available) in quotas.iter_mut().zip(available) {
        if left > 0 && available > level {
            *quota += 1;
            left -= 1;
        }
    }
    quotas
}

/// The highest level to which all logs can be filled with no more than `records` in all; there are more than these.
fn level(available: &[u64], records: u64) -> u64 {
    let mut sorted = available.to_vec();
    sorted.sort_unstable();
    let mut left = records;
    let mut logs = sorted.len() as u64;
    for available in sorted {
        // Filling every log that is left to the height of this one would be too much.
        if u128::from(available) * u128::from(logs) > u128::from(left) {
            return left / logs;
        }
        left -= available;
        logs -= 1;
    }
    unreachable!("there are more offsets than wanted")
}

/// Whether the quotas would be others if some logs were longer than they are known to be.
pub(super) fn depends_on_more(available: &[u64], complete: &[bool], records: u64) -> bool {
    let quotas = quotas(available, records);
    let highest = quotas.iter().copied().max().unwrap_or(0);
    available
        .iter()
        .zip(complete)
        .zip(&quotas)
        .any(|((&available, &complete), &quota)| !complete && quota == available && available <= highest)
}

/// Walks through the offsets of a window in the order in which they are taken, and says which log is next.
///
/// A log is *asked* for the first record at or behind its next offset; when it is known, it is *taken*, unless the
/// window is full. So at most one record of each log is held outside of the window, and none where there are no gaps.
#[derive(Debug)]
pub(super) struct Taking {
    starts: Vec<i64>,
    ends: Vec<i64>,
    /// The least offset, counted from the start, that can come next from each log that is not done.
    next: BinaryHeap<Reverse<(i64, usize)>>,
    left: u64,
    taken: u64,
}

impl Taking {
    /// A window from `starts` to `ends`, of `bytes` at most.
    pub(super) fn new(starts: Vec<i64>, ends: Vec<i64>, bytes: u64) -> Self {
        let next = (0..starts.len())
            .filter(|&slot| starts[slot] < ends[slot])
            .map(|slot| Reverse((0, slot)))
            .collect();
        Self { starts, ends, next, left: bytes, taken: 0 }
    }

    /// The log to ask: it holds the next record, if it has one at this offset. `None` when the window is complete.
    pub(super) fn log(&self) -> Option<(usize, i64)> {
        self.next.peek().map(|&Reverse((offset, slot))| (slot, self.starts[slot] + offset))
    }

    /// Where the window ends in a log.
    pub(super) fn end(&self, slot: usize) -> i64 {
        self.ends[slot]
    }

    /// The log's next record has this offset, which lies in the window. Says whether it is the next of all.
    pub(super) fn found(&mut self, slot: usize, offset: i64) -> bool {
        let found = (offset - self.starts[slot], slot);
        if let Some(mut first) = self.next.peek_mut()
            && first.0.1 == slot
        {
            *first = Reverse(found);
        }
        self.next.peek() == Some(&Reverse(found))
    }

    /// The log has no further record in the window.
    pub(super) fn finished(&mut self, slot: usize) {
        if self.next.peek().is_some_and(|Reverse((_, first))| *first == slot) {
            self.next.pop();
        } else {
            self.next.retain(|Reverse((_, other))| *other != slot);
        }
    }

    /// Takes the next record, which costs so many bytes. `false` when the window is full: it ends before it.
    pub(super) fn take(&mut self, cost: u64) -> bool {
        let Some(&Reverse((offset, slot))) = self.next.peek() else { return false };
        if cost > self.left && self.taken > 0 {
            self.cut((offset, slot));
            return false;
        }
        self.left = self.left.saturating_sub(cost);
        self.taken += 1;
        let next = offset + 1;
        if self.starts[slot] + next < self.ends[slot] {
            if let Some(mut first) = self.next.peek_mut() {
                *first = Reverse((next, slot));
            }
        } else {
            self.next.pop();
        }
        true
    }

    /// Ends the window before this one in the order.
    fn cut(&mut self, (offset, slot): (i64, usize)) {
        for (other, end) in self.ends.iter_mut().enumerate() {
            let cut = self.starts[other] + offset + i64::from(other < slot);
            *end = cut.min(*end);
        }
        self.next.clear();
    }

    /// Where the window ends in each log.
    pub(super) fn into_ends(self) -> Vec<i64> {
        self.ends
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_window_takes_from_all_logs_alike() {
        assert_eq!(quotas(&[100, 2, 100], 10), [4, 2, 4]);
        assert_eq!(quotas(&[100, 100, 100], 10), [4, 3, 3]);
        assert_eq!(quotas(&[3, 0, 2], 10), [3, 0, 2]);
        assert_eq!(quotas(&[u64::MAX, u64::MAX], 5), [3, 2]);
        assert_eq!(quotas(&[5], 5), [5]);
        assert_eq!(quotas(&[], 5), [0u64; 0]);
    }

    #[test]
    fn only_a_short_log_has_to_be_asked_again() {
        assert!(!depends_on_more(&[100, 50], &[false, false], 10));
        assert!(depends_on_more(&[100, 2], &[false, false], 10));
        assert!(!depends_on_more(&[100, 2], &[false, true], 10));
        assert!(depends_on_more(&[3, 2], &[true, false], 10));
    }

    /// Offsets and sizes of a log, with gaps.
    fn log() -> impl Strategy<Value = Vec<(i64, u64)>> {
        proptest::collection::vec((1i64..4, 1u64..50), 0..40).prop_map(|steps| {
            let next = |offset: &mut i64, (step, size): (i64, u64)| {
                *offset += step;
                Some((*offset - 1, size))
            };
            steps.into_iter().scan(0, next).collect()
        })
    }

    /// Takes a window as a follower does, and says which records it got.
    fn take(
        logs: &[Vec<(i64, u64)>],
        starts: &[i64],
        ends: &[i64],
        bytes: u64,
    ) -> (Vec<(usize, i64, u64)>, Vec<i64>) {
        let mut taking = Taking::new(starts.to_vec(), ends.to_vec(), bytes);
        let mut got = Vec::new();
        while let Some((slot, next)) = taking.log() {
            match logs[slot].iter().find(|(offset, _)| *offset >= next) {
                Some(&(offset, size)) if offset < taking.end(slot) => {
                    if taking.found(slot, offset) && taking.take(size) {
                        got.push((slot, offset, size));
                    }
                }
                _ => taking.finished(slot),
            }
        }
        (got, taking.into_ends())
    }

    proptest! {
        #[test]
        fn quotas_add_up_and_are_level(available in proptest::collection::vec(0u64..100, 1..8), records in 0u64..300) {
            let quotas = quotas(&available, records);
            prop_assert_eq!(quotas.iter().sum::<u64>(), records.min(available.iter().sum()));
            let highest = quotas.iter().copied().max().unwrap();
            for (at, (&quota, &available)) in quotas.iter().zip(&available).enumerate() {
                prop_assert!(quota <= available);
                prop_assert!(quota == available || quota + 1 >= highest, "{} of {}: {:?}", at, available, quotas);
            }
        }

        #[test]
        fn windows_hold_every_record_once_and_no_more_bytes_than_allowed(
            logs in proptest::collection::vec(log(), 1..5), bytes in 1u64..300, records in 1u64..60,
        ) {
            let hi: Vec<i64> = logs.iter().map(|log| log.last().map_or(0, |last| last.0 + 1)).collect();
            let mut starts = vec![0; logs.len()];
            let mut all = Vec::new();
            while starts != hi {
                let available: Vec<u64> = starts.iter().zip(&hi).map(|(start, hi)| (hi - start) as u64).collect();
                let quotas = quotas(&available, records);
                let ends: Vec<i64> = starts.iter().zip(&quotas).map(|(start, quota)| start + *quota as i64).collect();
                let (got, cut) = take(&logs, &starts, &ends, bytes);
                prop_assert!(got.len() <= 1 || got.iter().map(|(.., size)| size).sum::<u64>() <= bytes);
                for &(slot, offset, _) in &got {
                    prop_assert!((starts[slot]..cut[slot]).contains(&offset));
                }
                // What was planned again from the ranges alone is the same, whatever the limit.
                let (again, same) = take(&logs, &starts, &cut, u64::MAX);
                prop_assert_eq!(&again, &got);
                prop_assert_eq!(&same, &cut);
                prop_assert!(cut != starts, "a window must not be empty");
                all.extend(got);
                starts = cut;
            }
            all.sort_unstable();
            let expected: Vec<_> =
                logs.iter().enumerate().flat_map(|(slot, log)| log.iter().map(move |&(at, size)| (slot, at, size))).collect();
            prop_assert_eq!(all, expected);
        }
    }
}
