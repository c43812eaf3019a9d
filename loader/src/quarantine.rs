//! The list of refused records: one JSON line each, appended, once per record.

use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::PathBuf;

use fuelrail_connectors::{printable, shown};
use serde::Serialize;

/// Why a record was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Its name.
    pub key: String,
    /// Its number in the source.
    pub index: i64,
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
    index: i64,
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
    seen: HashSet<i64>,
    keys: Vec<String>,
}

/// The budget is used up.
#[derive(Debug, PartialEq, Eq)]
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
    pub fn new(path: Option<PathBuf>, dataset: String) -> Self {
        Self { path, file: None, dataset, seen: HashSet::new(), keys: Vec::new() }
    }

    /// Notes a refusal, of which `limit` are tolerated. `Some(line)` for the log while the record is one of the first
    /// in this run.
    ///
    /// # Errors
    /// [`OverBudget`] when one more than is tolerated was refused.
    pub fn note(&mut self, epoch: u64, refused: &Refused, limit: u64) -> Result<Option<String>, OverBudget> {
        if !self.seen.insert(refused.index) {
            // Met again, after a seek or in another epoch: the budget is as used up as before.
            return self.within(limit).map(|()| None);
        }
        let Refused { key, index, reason, bytes, hash } = refused;
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
        let mut said = printable(&format!("{key}: {reason}")).into_owned();
        if let Err(error) = self.write(&line) {
            said.push_str(&format!(" (could not be written to the quarantine list: {error})"));
        }
        if self.keys.len() < NAMED {
            self.keys.push(said.clone());
        }
        self.within(limit)?;
        Ok(match (self.seen.len(), &self.path) {
            (count, _) if count <= NAMED => Some(said),
            (count, Some(path)) if count == NAMED + 1 => {
                Some(format!("{said}; further warnings suppressed, all are listed in {}", shown(&path)))
            }
            (count, None) if count == NAMED + 1 => {
                Some(format!("{said}; further warnings suppressed; set quarantine=FILE to log all"))
            }
            _ => None,
        })
    }

    fn within(&self, limit: u64) -> Result<(), OverBudget> {
        let refused = self.seen.len() as u64;
        if refused > limit { Err(OverBudget { refused, limit, first: self.keys.clone() }) } else { Ok(()) }
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
        let mut quarantine = Quarantine::new(Some(path.clone()), "d".into());
        let refused = |key: &str, index| {
            let reason = "truncated".into();
            Refused { key: key.into(), index, reason, bytes: 3, hash: "00".into() }
        };
        assert!(quarantine.note(0, &refused("a.jpg", 1), 2).unwrap().unwrap().contains("a.jpg"));
        assert_eq!(quarantine.note(1, &refused("a.jpg", 1), 2).unwrap(), None);
        assert!(quarantine.note(1, &refused("b.jpg", 2), 2).unwrap().is_some());
        let over = quarantine.note(1, &refused("c.jpg", 3), 2).unwrap_err();
        assert_eq!((over.refused, over.limit, over.first.len()), (3, 2, 3));
        assert_eq!(
            quarantine.note(1, &refused("c.jpg", 3), 2).unwrap_err(),
            over,
            "and so it is when it is met again"
        );
        let lines = std::fs::read_to_string(path).unwrap();
        assert_eq!(lines.lines().count(), 3);
        assert!(lines.contains(r#""key":"b.jpg""#));
    }
}
