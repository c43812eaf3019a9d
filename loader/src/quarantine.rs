//! The list of refused records: one JSON line each, appended, once per record.

use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::PathBuf;

use serde::Serialize;

/// Why a record was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Its index in the source.
    pub index: u64,
    /// What is wrong with it.
    pub reason: String,
    /// Bytes of the record.
    pub bytes: u64,
    /// xxh3-64 of these bytes, in hex.
    pub hash: String,
}

#[derive(Serialize)]
struct Line<'a> {
    key: &'a str,
    index: u64,
    stage: &'static str,
    reason: &'a str,
    bytes: u64,
    xxh3_64: &'a str,
    dataset: &'a str,
    epoch: u64,
}

/// Refusals that are logged one by one, and named when a run ends over its budget.
const NAMED: usize = 10;

/// Counts refused records against the budget and writes them down.
#[derive(Debug)]
pub struct Quarantine {
    path: Option<PathBuf>,
    file: Option<File>,
    dataset: String,
    limit: u64,
    seen: HashSet<u64>,
    keys: Vec<String>,
}

/// The budget is used up.
#[derive(Debug)]
pub struct OverBudget {
    /// How many distinct records were refused.
    pub refused: u64,
    /// How many were tolerated.
    pub limit: u64,
    /// The first of them, with their reasons.
    pub first: Vec<String>,
}

impl Quarantine {
    /// An empty list for a run over `dataset`; nothing is created on disk before the first refusal.
    pub fn new(path: Option<PathBuf>, dataset: String, limit: u64) -> Self {
        Self { path, file: None, dataset, limit, seen: HashSet::new(), keys: Vec::new() }
    }

    /// Notes a refusal. `Some(line)` for the log while the record is one of the first in this run.
    ///
    /// # Errors
    /// [`OverBudget`] when one more than is tolerated was refused.
    pub fn note(&mut self, key: &str, epoch: u64, refused: &Refused) -> Result<Option<String>, OverBudget> {
        if !self.seen.insert(refused.index) {
            return Ok(None);
        }
        let Refused { index, reason, bytes, hash } = refused;
        let line = Line {
            key,
            index: *index,
            stage: "decode",
            reason,
            bytes: *bytes,
            xxh3_64: hash,
            dataset: &self.dataset,
            epoch,
        };
        let mut line = serde_json::to_vec(&line).expect("a line is plain data");
        line.push(b'\n');
        let mut said = format!("{key}: {reason}");
        if let Err(error) = self.write(&line) {
            said.push_str(&format!(" (could not be written to the quarantine list: {error})"));
        }
        if self.keys.len() < NAMED {
            self.keys.push(said.clone());
        }
        let refused = self.seen.len() as u64;
        if refused > self.limit {
            return Err(OverBudget { refused, limit: self.limit, first: self.keys.clone() });
        }
        Ok(match (self.seen.len(), &self.path) {
            (count, _) if count <= NAMED => Some(said),
            (count, Some(path)) if count == NAMED + 1 => {
                Some(format!("{said}; further ones are only listed in {}", path.display()))
            }
            (count, None) if count == NAMED + 1 => {
                Some(format!("{said}; further ones are only counted (quarantine=FILE would list them)"))
            }
            _ => None,
        })
    }

    fn write(&mut self, line: &[u8]) -> std::io::Result<()> {
        let Some(path) = &self.path else { return Ok(()) };
        if self.file.is_none() {
            if let Some(folder) = path.parent() {
                std::fs::create_dir_all(folder)?;
            }
            self.file = Some(OpenOptions::new().create(true).append(true).open(path)?);
        }
        self.file.as_mut().expect("opened above").write_all(line)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_listed_once_and_the_budget_ends_the_run_with_the_list() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run/quarantine.jsonl");
        let mut quarantine = Quarantine::new(Some(path.clone()), "d".into(), 2);
        let refused = |index| Refused { index, reason: "truncated".into(), bytes: 3, hash: "00".into() };
        assert!(quarantine.note("a.jpg", 0, &refused(1)).unwrap().unwrap().contains("a.jpg"));
        assert_eq!(quarantine.note("a.jpg", 1, &refused(1)).unwrap(), None);
        assert!(quarantine.note("b.jpg", 1, &refused(2)).unwrap().is_some());
        let over = quarantine.note("c.jpg", 1, &refused(3)).unwrap_err();
        assert_eq!((over.refused, over.limit, over.first.len()), (3, 2, 3));
        let lines = std::fs::read_to_string(path).unwrap();
        assert_eq!(lines.lines().count(), 3);
        assert!(lines.contains(r#""key":"b.jpg""#));
    }
}
