//! Token sequences of one length, out of a column of lists of integers: a document a row.
//!
//! ```text
//!  pad    record i = document i        [ t t t t t · · · ]   cut or padded to the length
//!  pack   documents end to end         [ d0 d0 d0 e | d1 d1 e d2 | d2 d2 d2 d2 | … ]   record i = tokens i·L to (i+1)·L
//! ```
//!
//! | field | shape | what |
//! |---|---|---|
//! | `tokens` | (L,) | the tokens |
//! | `length` (pad) | () i64 | how many of them are the document's |
//! | `document` (pack) | (L,) i32 | the document each belongs to, counted from 0 in the record; -1 behind the last |
//! | `token_position` (pack) | (L,) i32 | its place in its document |
//!
//! To pack, the lengths of all documents are read at open: 8 bytes a document in memory, and kept in the cache folder,
//! for in Parquet finding them means reading the column once.

use std::ops::Range;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::Xxh3;

use super::columns::{integer_at, list_at};
use super::reader::Decoded;
use super::{Table, in_parallel};
use crate::bytes::buffer::Pool;
use crate::bytes::cache;
use crate::opening::{Counted, Step};
use crate::{CacheConfig, ElementType, FieldSpec, SourceError};

/// How token sequences are made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, expecting = "tokens to be keys with values, like {\"length\": 1024}")]
pub struct TokensConfig {
    /// The column of lists. Default: `tokens`, `input_ids` or `token_ids`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub column: Option<String>,
    /// Tokens in a record.
    pub length: u64,
    /// One document a record, or documents end to end.
    pub mode: TokenMode,
    /// What stands behind a document that is too short.
    pub pad_id: i64,
    /// A token put behind every document (pack only).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eos_id: Option<i64>,
    /// Type of the field `tokens`: an integer type.
    pub dtype: ElementType,
    /// What becomes of the last tokens when they do not fill a record (pack only).
    pub tail: TokenTail,
}

/// How documents become records.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TokenMode {
    /// A record is a document, cut or padded.
    Pad,
    /// Records are cut from all documents laid end to end.
    Pack,
}

/// What becomes of a rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TokenTail {
    /// Left out.
    Drop,
    /// Padded.
    Pad,
}

impl Default for TokensConfig {
    fn default() -> Self {
        Self {
            column: None,
            length: 0,
            mode: TokenMode::Pad,
            pad_id: 0,
            eos_id: None,
            dtype: ElementType::I64,
            tail: TokenTail::Drop,
        }
    }
}

impl TokensConfig {
    pub(super) fn check(&self) -> Result<(), SourceError> {
        let refuse = |why: String| Err(SourceError::config(why));
        if self.length == 0 || self.length > 1 << 24 {
            return refuse(format!("tokens.length is {}; it must be from 1 to {}", self.length, 1 << 24));
        }
        if !matches!(
            self.dtype,
            ElementType::I64
                | ElementType::I32
                | ElementType::I16
                | ElementType::U16
                | ElementType::U32
                | ElementType::U8
        ) {
            return refuse(format!(
                "tokens.dtype is {}; it must be i64, i32, i16, u32, u16 or u8",
                self.dtype
            ));
        }
        for (key, id) in [("pad_id", Some(self.pad_id)), ("eos_id", self.eos_id)] {
            if let Some(id) = id
                && !put(id, self.dtype, &mut Vec::new())
            {
                return refuse(format!("tokens.{key} is {id}, which does not fit in {}", self.dtype));
            }
        }
        if self.mode == TokenMode::Pad && self.eos_id.is_some() {
            return refuse(
                "tokens.eos_id is for mode \"pack\"; in mode \"pad\" documents stay as they are".into(),
            );
        }
        Ok(())
    }
}

/// Token sequences of an open table.
pub(super) struct Tokens {
    config: TokensConfig,
    /// The column in the record view.
    column: usize,
    /// Pack: where each document begins on the line of all tokens, and where the last ends.
    starts: Vec<u64>,
}

impl Tokens {
    pub(super) fn open(
        config: &TokensConfig,
        column: usize,
        table: &Table,
        cache: &CacheConfig,
    ) -> Result<Self, SourceError> {
        let mut tokens = Self { config: config.clone(), column, starts: Vec::new() };
        if config.mode == TokenMode::Pad {
            return Ok(tokens);
        }
        let lengths = tokens.lengths_of_documents(table, cache)?;
        let mut at = 0u64;
        tokens.starts.reserve_exact(lengths.len() + 1);
        tokens.starts.push(0);
        for length in lengths {
            at += u64::from(length) + u64::from(config.eos_id.is_some());
            tokens.starts.push(at);
        }
        if tokens.len(table.rows) == 0 {
            return Err(SourceError::data(format!(
                "{}: all documents together have {at} tokens, fewer than tokens.length {}",
                table.shards.describe(),
                config.length
            )));
        }
        Ok(tokens)
    }

    fn lengths_of_documents(&self, table: &Table, cache: &CacheConfig) -> Result<Vec<u32>, SourceError> {
        let mut hash = Xxh3::new();
        hash.update(b"fuelrail document lengths 1\0");
        for shard in table.shards.files() {
            for text in [&shard.name, &shard.version] {
                hash.update(&(text.len() as u64).to_le_bytes());
                hash.update(text.as_bytes());
            }
            hash.update(&shard.size.to_le_bytes());
        }
        hash.update(self.config.column.as_deref().unwrap_or_default().as_bytes());
        let name = format!("documents-{:032x}", hash.digest128());
        // Without a place for it nothing is kept, unless the place was chosen.
        let folder = match cache::dir(cache) {
            Ok(folder) => Some(folder),
            Err(error) if cache.dir.is_some() => return Err(error),
            Err(error) => {
                tracing::warn!("could not save the lengths of documents: {error}");
                None
            }
        };
        let expected = table.rows * 4;
        if let Some(bytes) = folder.as_ref().and_then(|folder| cache::get(folder, &name, expected))
            && bytes.len() as u64 == expected
        {
            let length = |bytes: &[u8]| u32::from_le_bytes(bytes.try_into().expect("four bytes"));
            return Ok(bytes.chunks_exact(4).map(length).collect());
        }
        let pool = Pool::new(32 << 20);
        let step = Step::begin("counting tokens", Counted::Rows, Some(table.rows));
        let parts = in_parallel(&step, table.units.len(), |unit| {
            let file = table.shards.display(table.units[unit].file as usize);
            let pieces = table.decode(unit, &pool).map_err(|trouble| trouble.at_open(&file))?;
            let mut lengths = Vec::new();
            for piece in pieces {
                let row = piece.rows.start;
                let columns = piece.columns.map_err(|why| {
                    SourceError::data(format!(
                        "{file}: the documents from row {row} of a part on cannot be read ({why}), so the place \
                         of the tokens after them is unknown; repair the file, or use tokens.mode \"pad\""
                    ))
                })?;
                let array = columns[self.column].as_ref();
                for row in 0..array.len() {
                    // A null is a document without tokens.
                    let length = list_at(array, row).map_or(0, |(_, _, length)| length);
                    lengths.push(u32::try_from(length).map_err(|_| {
                        SourceError::data(format!(
                            "{file}: a document has {length} tokens, which is not plausible"
                        ))
                    })?);
                }
            }
            step.add(lengths.len() as u64);
            Ok(lengths)
        })?;
        let lengths = parts.concat();
        if let Some(folder) = folder {
            let bytes: Vec<u8> = lengths.iter().flat_map(|length| length.to_le_bytes()).collect();
            cache::put(&folder, &name, &bytes);
        }
        Ok(lengths)
    }

    pub(super) fn is_packed(&self) -> bool {
        self.config.mode == TokenMode::Pack
    }

    pub(super) fn specs(&self) -> Vec<FieldSpec> {
        let field =
            |name: &str, dtype, shape: &[u64]| FieldSpec { name: name.into(), dtype, shape: shape.to_vec() };
        let length = [self.config.length];
        let tokens = field("tokens", self.config.dtype, &length);
        match self.config.mode {
            TokenMode::Pad => vec![tokens, field("length", ElementType::I64, &[])],
            TokenMode::Pack => vec![
                tokens,
                field("document", ElementType::I32, &length),
                field("token_position", ElementType::I32, &length),
            ],
        }
    }

    /// Number of records in a table of so many rows.
    pub(super) fn len(&self, rows: u64) -> u64 {
        let total = match self.starts.last() {
            None => return rows,
            Some(total) => *total,
        };
        match self.config.tail {
            TokenTail::Drop => total / self.config.length,
            TokenTail::Pad => total.div_ceil(self.config.length),
        }
    }

    /// Where on the line of all tokens a record lies.
    fn span(&self, record: u64) -> Range<u64> {
        let total = self.starts.last().copied().unwrap_or(0);
        let begin = record * self.config.length;
        begin..(begin + self.config.length).min(total)
    }

    /// The rows that a record is made of.
    pub(super) fn rows(&self, record: u64) -> Range<u64> {
        if !self.is_packed() {
            return record..record + 1;
        }
        let span = self.span(record);
        let first = self.starts.partition_point(|&start| start <= span.start) - 1;
        let end = self.starts.partition_point(|&start| start < span.end);
        first as u64..end as u64
    }

    /// Records that begin in each unit, without the units in which none does.
    pub(super) fn lengths(&self, table: &Table) -> Vec<u64> {
        let rows = |unit: usize| table.units[unit].first..table.unit_end(unit);
        if !self.is_packed() {
            return (0..table.units.len()).map(|unit| table.unit_rows(unit)).collect();
        }
        let len = self.len(table.rows);
        let before = |row: u64| self.starts[row as usize].div_ceil(self.config.length).min(len);
        (0..table.units.len())
            .map(|unit| before(rows(unit).end) - before(rows(unit).start))
            .filter(|&n| n > 0)
            .collect()
    }

    pub(super) fn key(&self, table: &Table, record: u64) -> String {
        if !self.is_packed() {
            return table.row_key(record);
        }
        let row = self.rows(record).start;
        format!("{}@{}", table.row_key(row), self.span(record).start - self.starts[row as usize])
    }

    pub(super) fn memory(&self) -> u64 {
        (self.starts.capacity() * 8) as u64
    }

    pub(super) fn hash(&self, hash: &mut Xxh3) {
        hash.update(&serde_json::to_vec(&self.config).expect("the configuration is plain data"));
        self.starts.iter().for_each(|start| hash.update(&start.to_le_bytes()));
    }

    /// Appends the fields of a record.
    pub(super) fn append(
        &self,
        table: &Table,
        record: u64,
        units: &[Arc<Decoded>],
        out: &mut Vec<u8>,
    ) -> Result<(), String> {
        let length = self.config.length as usize;
        let write = |token: i64, out: &mut Vec<u8>| {
            if put(token, self.config.dtype, out) {
                return Ok(());
            }
            Err(format!("the token {token} does not fit in {}", self.config.dtype))
        };
        if !self.is_packed() {
            let (columns, row) = units[0].row(record).map_err(|why| why.to_string())?;
            let (values, first, found) =
                list_at(columns[self.column].as_ref(), row).ok_or("its tokens are null")?;
            let found = found.min(length);
            for at in first..first + found {
                write(integer_at(values.as_ref(), at).ok_or("one of its tokens is null")?, out)?;
            }
            for _ in found..length {
                write(self.config.pad_id, out)?;
            }
            out.extend_from_slice(&(found as i64).to_le_bytes());
            return Ok(());
        }
        let (span, rows) = (self.span(record), self.rows(record));
        let first_unit = table.unit_of(rows.start);
        let (mut documents, mut positions) = (Vec::with_capacity(length), Vec::with_capacity(length));
        let mut number = 0;
        for row in rows {
            let (start, end) = (self.starts[row as usize], self.starts[row as usize + 1]);
            let (from, to) = (span.start.max(start), span.end.min(end));
            if from >= to {
                continue;
            }
            let (columns, at) =
                units[table.unit_of(row) - first_unit].row(row).map_err(|why| why.to_string())?;
            let eos = u64::from(self.config.eos_id.is_some());
            let (values, first, found) = match list_at(columns[self.column].as_ref(), at) {
                Some((values, first, found)) => (Some(values), first, found as u64),
                None => (None, 0, 0),
            };
            if found + eos != end - start {
                return Err(format!(
                    "a document has {found} tokens instead of {}: the file has changed",
                    end - start - eos
                ));
            }
            for place in from - start..to - start {
                let token = if place == found {
                    self.config.eos_id.ok_or("a document is too short")?
                } else {
                    let values = values.ok_or("its tokens are null")?;
                    integer_at(values.as_ref(), first + place as usize).ok_or("one of its tokens is null")?
                };
                write(token, out)?;
                documents.push(number);
                positions.push(i32::try_from(place).unwrap_or(i32::MAX));
            }
            number += 1;
        }
        for _ in documents.len()..length {
            write(self.config.pad_id, out)?;
            documents.push(-1);
            positions.push(0);
        }
        for number in documents.into_iter().chain(positions) {
            out.extend_from_slice(&i32::to_le_bytes(number));
        }
        Ok(())
    }
}

/// Appends an integer; false if it does not fit.
fn put(value: i64, dtype: ElementType, out: &mut Vec<u8>) -> bool {
    macro_rules! as_type {
        ($type:ty) => {
            <$type>::try_from(value).map(|value| out.extend_from_slice(&value.to_le_bytes())).is_ok()
        };
    }
    match dtype {
        ElementType::U8 => as_type!(u8),
        ElementType::I16 => as_type!(i16),
        ElementType::U16 => as_type!(u16),
        ElementType::I32 => as_type!(i32),
        ElementType::U32 => as_type!(u32),
        _ => as_type!(i64),
    }
}
