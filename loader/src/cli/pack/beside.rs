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
//! The shards are read back with the same fields under these names, which `pack` prints and index.json has. A record
//! that lacks a part lacks the member. Invalid UTF-8 and invalid JSON cannot be written, as a damaged image cannot.

use std::collections::{BTreeSet, HashSet};

use fuelrail_connectors::{FieldSpec, PartKind, PartSpec, Schema};

use super::index::Part;
use super::shard;
use super::shrink::look;
use crate::fields;

/// Letters that a field's or a part's name has at most in that of a member.
const MAX_NAME: usize = 60;

/// The same of a format with its dot: ".webp", ".tiff".
const MAX_FORMAT: usize = 5;

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
    name.chars().map(plain).take(MAX_NAME).collect()
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

    /// Letters of the longest ending, at least those of an image's own.
    pub fn longest(&self) -> usize {
        let names = self.parts.iter().zip(&self.names);
        let lengths = names.map(|(part, name)| match part.kind {
            PartKind::Image => name.len() + MAX_FORMAT,
            _ => name.len(),
        });
        lengths.max().unwrap_or(0).max(MAX_FORMAT)
    }

    /// What the parts are called in the shards, as far as that is known before the first record.
    pub fn listed(&self) -> Vec<Part> {
        let parts = self.parts.iter().zip(&self.names).map(|(part, name)| Part {
            part: part.name.clone(),
            kind: match part.kind {
                PartKind::Image => "images",
                PartKind::Bytes => "bytes",
                PartKind::Text => "text",
                PartKind::Json => "JSON",
                PartKind::Ragged { .. } => "rows of numbers",
            }
            .into(),
            members: if part.kind == PartKind::Image { BTreeSet::new() } else { [name.clone()].into() },
        });
        parts.collect()
    }

    /// The members of one record: which part, ending and content.
    ///
    /// # Errors
    /// Which part cannot be written, and why.
    pub fn members(&self, values: &[Option<&[u8]>]) -> Result<Vec<Member>, String> {
        let mut members = Vec::new();
        for (at, ((part, name), value)) in self.parts.iter().zip(&self.names).zip(values).enumerate() {
            let Some(value) = value else { continue };
            let (ending, content) =
                member(part, name, value).map_err(|why| format!("part {:?}: {why}", part.name))?;
            members.push(Member { part: at, ending, content });
        }
        Ok(members)
    }
}

/// A part of a record.
pub(super) struct Member {
    pub part: usize,
    pub ending: String,
    pub content: Vec<u8>,
}

fn member(part: &PartSpec, name: &str, value: &[u8]) -> Result<(String, Vec<u8>), String> {
    if part.kind == PartKind::Image {
        return Ok((format!("{name}.{}", look(value, None)?.0), value.to_vec()));
    }
    let length = fields::length(&part.kind, value)?;
    let PartKind::Ragged { dtype, row } = &part.kind else { return Ok((name.to_owned(), value.to_vec())) };
    let shape = std::iter::once(length).chain(row.iter().copied()).collect();
    let field = FieldSpec { name: name.to_owned(), dtype: *dtype, shape };
    if field.bytes() != value.len() {
        return Err(format!("its {} bytes are not rows of {dtype} {row:?}", value.len()));
    }
    Ok((name.to_owned(), shard::npy(&field, value)))
}

/// Says what each part is called in the shards.
pub(super) fn print(parts: &[Part]) {
    for Part { part, members, .. } in parts {
        match members.iter().map(String::as_str).collect::<Vec<_>>().join(";") {
            none if none.is_empty() => say!("no record has the part {part:?}"),
            members => say!("part {part:?} is {members:?} in the shards"),
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
        let endings: Vec<_> = members.iter().map(|member| member.ending.as_str()).collect();
        assert_eq!(endings, ["txt", "json", "seg.pnm", "json_boxes2.npy", "blob.bin"]);
        assert!(String::from_utf8_lossy(&members[3].content).contains("'shape': (3, 2)"));
        for (at, wrong, why) in [
            (0, &b"\xff"[..], "part \"caption\": it is not UTF-8"),
            (2, b"{", "part \"json\": it is not JSON"),
            (3, b"no", "part \"seg.png\": "),
            (4, &[0; 17], "part \"json:boxes\": its 17 bytes are not rows"),
        ] {
            let mut values: [Option<&[u8]>; 6] = [None; 6];
            values[at] = Some(wrong);
            let error = beside.members(&values).err().unwrap();
            assert!(error.starts_with(why), "{error}");
        }
        assert_eq!(beside.longest(), "json_boxes2.npy".len());
        assert!(beside.listed()[3].members.is_empty(), "nobody knows the format before the first record");
        assert_eq!(beside.listed()[4].members, ["json_boxes2.npy".to_owned()].into());
    }
}
