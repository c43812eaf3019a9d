//! Named parts as members of a packed record, beside its image.
//!
//! | part | member |
//! |---|---|
//! | text | `txt` of the first, `name.txt` of others |
//! | JSON | `json` of the first, `name.json` of others |
//! | bytes | `name.bin` |
//! | rows of numbers | `name.npy`, an array of (rows, ...) |
//! | image | `name.png`, `name.jpg`, … by its content |
//!
//! The shards are read back with the same fields under these names, which `pack` prints. A record that lacks a part lacks the
//! member.

use std::collections::HashSet;

use fuelrail_connectors::{FieldSpec, PartKind, PartSpec, Schema};

use super::shard;
use super::shrink::look;

/// The members that parts become.
#[derive(Clone)]
pub(super) struct Beside {
    parts: Vec<PartSpec>,
    /// Ending of each; of an image, what stands before the ending of its format.
    names: Vec<String>,
}

/// A name in plain, lower-case letters.
pub(super) fn plain(name: &str) -> String {
    let plain = |c: char| {
        if c.is_ascii_alphanumeric() || c == '_' || c == '-' { c.to_ascii_lowercase() } else { '_' }
    };
    name.chars().map(plain).collect()
}

impl Beside {
    /// `taken` are the endings that the numbers of records have.
    pub fn new(schema: &Schema, taken: &[String]) -> Self {
        let mut taken: HashSet<String> = taken.iter().cloned().chain(["cls".into()]).collect();
        let names = schema.parts.iter().map(|part| {
            // What it was called before, without an ending that says what it is.
            let name = part.name.split(';').next().unwrap_or_default();
            let name =
                name.rsplit_once('.').filter(|(_, ending)| ending.len() <= 4).map_or(name, |(stem, _)| stem);
            let name = plain(name);
            let (first, suffix) = match part.kind {
                PartKind::Text => (Some("txt"), ".txt"),
                PartKind::Json => (Some("json"), ".json"),
                PartKind::Bytes => (None, ".bin"),
                PartKind::Ragged { .. } => (None, ".npy"),
                PartKind::Image => (None, ""),
            };
            let numbered = (2..).map(|number| format!("{name}{number}{suffix}"));
            let names =
                first.map(str::to_owned).into_iter().chain([format!("{name}{suffix}")]).chain(numbered);
            let mut free = names.filter(|name| taken.insert(name.clone()));
            free.next().expect("numbers do not end")
        });
        let names = names.collect();
        Self { parts: schema.parts.clone(), names }
    }

    /// The members of one record: ending and content.
    ///
    /// # Errors
    /// Which part cannot be written, and why.
    pub fn members(&self, values: &[Option<&[u8]>]) -> Result<Vec<(String, Vec<u8>)>, String> {
        let mut members = Vec::new();
        for ((part, name), value) in self.parts.iter().zip(&self.names).zip(values) {
            let Some(value) = value else { continue };
            members.push(match &part.kind {
                PartKind::Image => {
                    let looked = look(value, None).map_err(|why| format!("part {:?}: {why}", part.name))?;
                    (format!("{name}.{}", looked.0), value.to_vec())
                }
                PartKind::Ragged { dtype, row } => {
                    let one = row.iter().product::<u64>() * dtype.size() as u64;
                    let rows = value.len() as u64 / one.max(1);
                    let shape = std::iter::once(rows).chain(row.iter().copied()).collect();
                    let field = FieldSpec { name: name.clone(), dtype: *dtype, shape };
                    (name.clone(), shard::npy(&field, value))
                }
                PartKind::Text | PartKind::Json | PartKind::Bytes => (name.clone(), value.to_vec()),
            });
        }
        Ok(members)
    }

    /// What each part is called in the shards, whose members have these endings.
    pub fn print(&self, endings: &HashSet<String>) {
        for (part, name) in self.parts.iter().zip(&self.names) {
            let mut found: Vec<&str> = match part.kind {
                PartKind::Image => {
                    let is_of = |ending: &&String| {
                        ending.strip_prefix(name.as_str()).is_some_and(|rest| rest.starts_with('.'))
                    };
                    endings.iter().filter(is_of).map(String::as_str).collect()
                }
                _ => vec![name],
            };
            found.sort_unstable();
            say!("part {:?} is {:?} in the shards", part.name, found.join(";"));
        }
    }
}

#[cfg(test)]
mod tests {
    use fuelrail_connectors::ElementType;

    use super::*;

    #[test]
    fn parts_become_members_that_say_what_they_are_and_no_two_are_alike() {
        let part = |name: &str, kind: PartKind| PartSpec { name: name.into(), kind };
        let rows = PartKind::Ragged { dtype: ElementType::I64, row: vec![2] };
        let parts = vec![
            part("caption", PartKind::Text),
            part("json:alt", PartKind::Text),
            part("json", PartKind::Json),
            part("seg.png", PartKind::Image),
            part("json:boxes", rows),
            part("blob", PartKind::Bytes),
        ];
        let schema = Schema { parts, ..Schema::images() };
        let beside = Beside::new(&schema, &["json_boxes.npy".into()]);
        assert_eq!(beside.names, ["txt", "json_alt.txt", "json", "seg", "json_boxes2.npy", "blob.bin"]);
        let values: [Option<&[u8]>; 6] =
            [Some(b"a"), None, Some(b"{}"), Some(b"P5 1 1 255 x"), Some(&[0; 48]), Some(b"")];
        let members = beside.members(&values).unwrap();
        let endings: Vec<_> = members.iter().map(|(ending, _)| ending.as_str()).collect();
        assert_eq!(endings, ["txt", "json", "seg.pnm", "json_boxes2.npy", "blob.bin"]);
        assert!(String::from_utf8_lossy(&members[3].1).contains("'shape': (3, 2)"));
        assert!(
            beside.members(&[None, None, None, Some(b"no"), None, None]).unwrap_err().contains("seg.png")
        );
    }
}
