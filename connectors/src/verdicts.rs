//! Which records an index knows to be bad, and why: few rows of many, whose reasons repeat.

use xxhash_rust::xxh3::Xxh3;

/// Different reasons that are kept apart.
const MAX_REASONS: usize = 64;

/// Bad rows, ascending, and which reason each has.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Verdicts {
    pub rows: Vec<(u64, u32)>,
    pub reasons: Vec<String>,
}

impl Verdicts {
    /// Adds a row, which comes after all that were added before. `otherwise` is said of rows whose reasons are too many
    /// to be kept apart.
    pub fn push(&mut self, row: u64, why: &str, otherwise: &str) {
        let reasons = &mut self.reasons;
        let reason = match reasons.iter().position(|other| other == why) {
            Some(reason) => reason,
            None if reasons.len() < MAX_REASONS => {
                reasons.push(why.to_owned());
                reasons.len() - 1
            }
            None => {
                reasons[MAX_REASONS - 1] = otherwise.to_owned();
                MAX_REASONS - 1
            }
        };
        self.rows.push((row, reason as u32));
    }

    /// Why a row is bad, if it is.
    pub fn get(&self, row: u64) -> Option<&str> {
        let at = self.rows.binary_search_by_key(&row, |&(row, _)| row).ok()?;
        Some(&self.reasons[self.rows[at].1 as usize])
    }

    /// All rows with their reasons.
    pub fn iter(&self) -> impl Iterator<Item = (u64, &str)> {
        self.rows.iter().map(|&(row, why)| (row, self.reasons[why as usize].as_str()))
    }

    /// Number of bad rows.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether no row is bad.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Whether it is what [`push`](Self::push) could have made of so many rows: it may come from a file.
    pub fn is_sound(&self, rows: u64) -> bool {
        let known = |&(row, why): &(u64, u32)| row < rows && (why as usize) < self.reasons.len();
        self.rows.is_sorted_by(|a, b| a.0 < b.0) && self.rows.iter().all(known)
    }

    /// Adds the rows to a fingerprint, as what they are `without`; that changes nothing where there are none.
    pub fn hash(&self, hash: &mut Xxh3, without: &[u8]) {
        if !self.is_empty() {
            hash.update(without);
            self.rows.iter().for_each(|(row, _)| hash.update(&row.to_le_bytes()));
        }
    }

    pub fn memory(&self) -> u64 {
        let texts: usize = self.reasons.iter().map(|text| text.capacity() + size_of::<String>()).sum();
        (texts + self.rows.capacity() * 16) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_repeat_and_the_last_one_stands_for_what_are_too_many() {
        let mut bad = Verdicts::default();
        for row in 0..200u64 {
            bad.push(row * 2, &format!("reason {}", row % 100), "for another reason");
        }
        assert_eq!((bad.len(), bad.reasons.len()), (200, MAX_REASONS));
        assert_eq!((bad.get(4), bad.get(204), bad.get(5)), (Some("reason 2"), Some("reason 2"), None));
        assert_eq!(bad.get(2 * 99), Some("for another reason"));
        assert!(bad.is_sound(399) && !bad.is_sound(398));
        bad.rows.swap(0, 1);
        assert!(!bad.is_sound(399));
    }
}
