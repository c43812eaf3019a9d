//! A named part that is made of a whole file: one beside an image, or a member of a tar shard.
//!
//! ```text
//!  asked for   "txt"      "json:meta.caption"     "boxes.npy" as rows of numbers
//!  made of     the file   a value in its JSON     the file without its header
//! ```
//!
//! What JSON and arrays hold shows when the first records are looked into, at opening: the shape of rows, and whether
//! there is such a key at all.

use std::borrow::Cow;
use std::collections::BTreeSet;

use super::npy::NpyHeader;
use super::scalar::{self, Scalar};
use super::yolo::Taken;
use super::{fault, json};
use crate::json::plain;
use crate::schema::{PartKind, PartSpec, Wanted, WantedKind};
use crate::settings::similar;
use crate::{ElementType, SourceError};

/// Records whose files are looked into.
pub(crate) const LOOKED_AT: usize = 64;

/// Names that a message lists.
pub(crate) const MOST_NAMED: usize = 8;

/// A part that is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    pub wanted: Wanted,
    /// Which of the files of a record, by the source's own list.
    pub file: usize,
    /// Where in its JSON.
    pub path: Option<String>,
    /// What of YOLO's labels; then there is no path.
    pub labels: Option<Taken>,
}

impl Part {
    /// A part of file `file`, all whose names `end` in a word or not.
    ///
    /// # Errors
    /// [`SourceError`] when nothing in such a file can be meant.
    pub fn new(
        wanted: &Wanted,
        file: usize,
        path: Option<String>,
        end: impl Fn(&str) -> bool,
    ) -> Result<Self, SourceError> {
        let name = &wanted.part;
        let of_labels = path.as_deref().filter(|_| end("txt")).and_then(Taken::of);
        if let Some(taken) = of_labels {
            if wanted.kind != WantedKind::Ragged {
                return Err(SourceError::config(format!(
                    "part {name:?}: the labels of an image are rows of numbers: ask for them as Boxes, Keypoints, or \
                     Numbers with max_rows or like"
                )));
            }
            if let Some(dtype) = wanted.dtype.filter(|dtype| *dtype != taken.dtype()) {
                // It is cast when it is delivered.
                tracing::debug!("part {name:?} is read as {} and delivered as {dtype}", taken.dtype());
            }
            return Ok(Self { wanted: wanted.clone(), file, path: None, labels: Some(taken) });
        }
        if let Some(path) = &path
            && end("txt")
        {
            let words = super::yolo::WORDS.map(|(word, _)| format!("\"txt:{word}\"")).join(", ");
            return Err(SourceError::config(format!(
                "part {name:?}: a text file has no {path:?}; of labels in YOLO's form there are {words}"
            )));
        }
        if let Some(path) = &path
            && (!end("json") || path.split('.').any(str::is_empty) || wanted.kind == WantedKind::Image)
        {
            return Err(SourceError::config(format!(
                "part {name:?}: this is no place in JSON; write one like \"json:annotation.box\"{}",
                if wanted.kind == WantedKind::Image { ", for text, JSON or numbers" } else { "" }
            )));
        }
        let is_numbers = matches!(wanted.kind, WantedKind::Ragged | WantedKind::Numbers);
        if is_numbers && path.is_none() && !end("npy") {
            return Err(SourceError::config(format!(
                "part {name:?}: such a file holds no numbers; name a place in JSON (\"json:boxes\") or an array \
                 (\"boxes.npy\")"
            )));
        }
        Ok(Self { wanted: wanted.clone(), file, path, labels: None })
    }

    /// The part's bytes of its file's.
    ///
    /// # Errors
    /// What is wrong with them, after the part's name.
    pub fn make<'file>(
        &self,
        file: &'file [u8],
        kind: &PartKind,
    ) -> Result<Option<Cow<'file, [u8]>>, String> {
        let named = |why: String| fault(&self.wanted.part, &why);
        if let (Some(taken), PartKind::Ragged { row, .. }) = (self.labels, kind) {
            return Ok(Some(Cow::Owned(taken.rows(file, row).map_err(named)?)));
        }
        if let Some(path) = &self.path {
            let made = self.value(file, path, |value| match value {
                Some(value) if self.wanted.kind == WantedKind::Value => {
                    scalar::encoded(Scalar::of_json(value).as_ref())
                }
                Some(value) => Ok(json::value(value, kind)?.map(Cow::into_owned)),
                None => Ok(None),
            });
            return Ok(made.map_err(named)?.map(Cow::Owned));
        }
        match kind {
            _ if self.wanted.kind == WantedKind::Value => {
                let text = Scalar::of_cell(file.trim_ascii(), false).map_err(named)?;
                Ok(scalar::encoded(text.as_ref()).map_err(named)?.map(Cow::Owned))
            }
            PartKind::Ragged { dtype, row } => {
                let header = NpyHeader::of(file).map_err(named)?;
                let rows = header.shape.split_first().map(|(_, row)| row);
                if header.dtype != *dtype || rows != Some(row) {
                    return Err(named(format!(
                        "is {} of shape {:?}; rows of {dtype} {row:?} are expected",
                        header.dtype, header.shape
                    )));
                }
                Ok(Some(Cow::Borrowed(&file[header.len as usize..])))
            }
            _ => Ok(Some(Cow::Borrowed(file))),
        }
    }

    /// Does something with the value at a path of the file's JSON, which is an object.
    ///
    /// # Errors
    /// What is wrong with the file, and what `then` says.
    pub fn value<T>(
        &self,
        file: &[u8],
        path: &str,
        then: impl FnOnce(Option<&str>) -> Result<T, String>,
    ) -> Result<T, String> {
        if let Some(object) = std::str::from_utf8(file).ok().and_then(json::members) {
            return then(json::find_in(&object, path)?);
        }
        // With Python's NaN in it, or a mark before it, perhaps.
        let plain = plain(file);
        let text =
            std::str::from_utf8(&plain).map_err(|_| "cannot be read: its JSON is not UTF-8".to_owned())?;
        let object = json::members(text)
            .ok_or_else(|| format!("cannot be found: its JSON is {}, not an object", json::kind(text)))?;
        then(json::find_in(&object, path)?)
    }

    /// Bytes that the part has at most, of a file of this size.
    pub fn most_bytes(&self, size: u64) -> u64 {
        match (self.path.is_some() || self.labels.is_some(), self.wanted.kind) {
            // "1," becomes a number of eight bytes at most.
            (true, WantedKind::Ragged) => size * 4,
            _ => size,
        }
    }

    /// Settles what the part holds. `first` gives the files of the first records that have one, `place` is what the
    /// source is called.
    ///
    /// # Errors
    /// When none of them has the key, or rows of numbers.
    pub fn settle<Files: Iterator<Item = Vec<u8>>>(
        &self,
        first: impl Fn() -> Files,
        place: &str,
    ) -> Result<PartSpec, SourceError> {
        self.has_key(first(), place)?;
        let dtype = self.wanted.dtype.unwrap_or(ElementType::F32);
        if self.wanted.kind != WantedKind::Ragged {
            return Ok(self.wanted.spec(dtype, &[]));
        }
        if let Some((taken, row)) = self.labels.and_then(|taken| Some((taken, taken.row()?))) {
            return Ok(self.wanted.spec(taken.dtype(), &row));
        }
        if let Some(row) = self.wanted.row.as_ref().filter(|_| self.path.is_some()) {
            return Ok(self.wanted.spec(dtype, row));
        }
        let name = &self.wanted.part;
        let mut is_there = false;
        let found = first().take(LOOKED_AT).inspect(|_| is_there = true).find_map(|file| self.rows(&file));
        if let Some((dtype, row)) = found {
            tracing::info!(
                "part {name:?}: rows of {dtype}, each of shape {row:?}, as the first records have them"
            );
            return Ok(self.wanted.spec(dtype, &row));
        }
        if self.wanted.optional && !is_there {
            return Ok(self.wanted.spec(dtype, self.wanted.row.as_deref().unwrap_or_default()));
        }
        Err(SourceError::data(format!(
            "part {name:?}: none of the first {LOOKED_AT} records of {place} that have it holds rows of numbers there, \
             so nobody knows the shape of one; say it with row (() for numbers, (4,) for boxes)"
        )))
    }

    /// Refuses a key that none of the first files has.
    ///
    /// # Errors
    /// That, with the keys there are.
    pub fn has_key(&self, first: impl Iterator<Item = Vec<u8>>, place: &str) -> Result<(), SourceError> {
        let Some(path) = self.path.as_ref().filter(|_| !self.wanted.optional) else { return Ok(()) };
        let (mut names, mut count, mut odd) = (None, 0, None);
        for file in first.take(LOOKED_AT) {
            count += 1;
            names.get_or_insert_with(|| keys(&file));
            match self.value(&file, path, |value| Ok(value.is_some())) {
                Ok(true) => return Ok(()),
                Ok(false) => {}
                Err(why) => odd = odd.or(Some(why)),
            }
        }
        let names = names.unwrap_or_default();
        let near = similar(path, names.iter().map(String::as_str));
        let near = near.map_or(String::new(), |near| format!("; did you mean {near:?}?"));
        let listed =
            names.iter().take(MOST_NAMED).map(|key| format!("{key:?}")).collect::<Vec<_>>().join(", ");
        let why = match (odd, listed.is_empty()) {
            (Some(why), true) => format!("the first: it {why}"),
            (_, true) => "the first has no keys".into(),
            (_, false) => format!("the first has the keys {listed}{near}"),
        };
        Err(SourceError::data(format!(
            "part {:?}: none of the first {count} records of {place} has {path:?} in its JSON; {why}. If later ones \
             have it, say missing=\"empty\"",
            self.wanted.part,
        )))
    }

    /// Type and row of the rows in a file, if they show there.
    fn rows(&self, file: &[u8]) -> Option<(ElementType, Vec<u64>)> {
        if let Some(taken) = self.labels {
            return Some((taken.dtype(), taken.row_in(file)?));
        }
        match &self.path {
            Some(path) => {
                let shape = |value: Option<&str>| Ok(value.and_then(json::shape_of_rows));
                let row = self.value(file, path, shape).ok()??;
                Some((self.wanted.dtype.unwrap_or(ElementType::F32), row))
            }
            None => {
                let header = NpyHeader::of(file).ok()?;
                Some((header.dtype, header.shape.split_first()?.1.to_vec()))
            }
        }
    }
}

/// The names in a JSON object, sorted.
fn keys(bytes: &[u8]) -> Vec<String> {
    let plain = plain(bytes);
    let object = std::str::from_utf8(&plain).ok().and_then(json::members);
    let keys: BTreeSet<String> = object.into_iter().flatten().map(|(key, _)| key.into_owned()).collect();
    keys.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(text: &str, kind: WantedKind, optional: bool) -> Part {
        let path = text.split_once(':').map(|(_, path)| path.to_owned());
        Part { wanted: Wanted { optional, ..Wanted::new(text, kind) }, file: 0, path, labels: None }
    }

    fn settled(part: &Part, files: &[&str]) -> Result<PartSpec, String> {
        let first = || files.iter().map(|file| file.as_bytes().to_vec());
        part.settle(first, "x").map_err(|error| error.to_string())
    }

    #[test]
    fn a_key_that_the_first_files_lack_is_refused_with_those_there_are() {
        let text = |optional| part("json:captoin", WantedKind::Text, optional);
        let error = settled(&text(false), &[r#"{"caption": 1, "b": 2}"#, "{}"]).unwrap_err();
        assert!(error.contains("first 2 records of x has \"captoin\""), "{error}");
        assert!(error.contains("the keys \"b\", \"caption\"; did you mean \"caption\"?"), "{error}");
        assert!(settled(&text(false), &["[1]"]).unwrap_err().contains("its JSON is a list, not an object"));
        assert_eq!(settled(&text(true), &["{}"]).unwrap().kind, PartKind::Text);
        assert!(settled(&text(false), &["{}", r#"{"captoin": null, "c": 0}"#]).is_err());
        assert!(
            settled(&text(false), &["{}", r#"{"captoin": 5}"#]).is_ok(),
            "what it is shows with the record"
        );
    }

    #[test]
    fn json_may_be_as_python_writes_it() {
        let file = "\u{feff}{\"score\": NaN, \"caption\": \"a\", \"boxes\": [[1, 2]], \"none\": -Infinity}";
        let made = |text: &str, wanted, kind: &PartKind| {
            part(text, wanted, false).make(file.as_bytes(), kind).map(|made| made.map(Cow::into_owned))
        };
        assert_eq!(made("json:caption", WantedKind::Text, &PartKind::Text), Ok(Some(b"a".to_vec())));
        assert_eq!(made("json:none", WantedKind::Json, &PartKind::Json), Ok(None), "no number is no value");
        assert!(settled(&part("json:boxes", WantedKind::Ragged, false), &[file]).is_ok());
        let error = settled(&part("json:x", WantedKind::Text, false), &[file]).unwrap_err();
        assert!(error.contains("the keys \"boxes\", \"caption\""), "{error}");
    }

    #[test]
    fn rows_are_what_the_first_files_show_and_nothing_is_known_of_what_nobody_has() {
        let rows = |optional| part("json:a", WantedKind::Ragged, optional);
        let kind = |row: &[u64]| PartKind::Ragged { dtype: ElementType::F32, row: row.to_vec() };
        assert_eq!(settled(&rows(false), &[r#"{"a": []}"#, r#"{"a": [[1, 2]]}"#]).unwrap().kind, kind(&[2]));
        assert_eq!(settled(&rows(true), &[]).unwrap().kind, kind(&[]));
        assert!(settled(&rows(true), &[r#"{"a": []}"#]).unwrap_err().contains("say it with row"));
    }
}
