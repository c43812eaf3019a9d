//! Datasets as named parts of records.
//!
//! | dataset, one row per record | can be |
//! |---|---|
//! | texts, of any length or a fixed one | text, bytes, JSON |
//! | bytes of any length, opaque bytes | bytes, an image |
//! | numbers of any length | rows of numbers |
//! | `uint8` pixels; gray ones of `uint16` or `bool` | an image, with its values as they are |
//! | numbers | numbers; with an axis for them, rows of numbers, as many in each record; `uint8`: bytes |

use std::borrow::Cow;

use super::meta::{Dataset, Kind};
use super::read::Records;
use crate::bytes::buffer::Buffer;
use crate::column::{self, Part, PixelLayout, Stored, product};
use crate::schema::Schema;
use crate::values::{Value, fault};
use crate::{ElementType, PartSpec, Wanted, WantedKind};

/// Named parts of records, and the columns that they are made of.
pub(super) struct Named {
    pub schema: Schema,
    /// Of each of the schema's parts: its column, and what becomes of a row; `None` for one that no record has.
    pub parts: Vec<Option<(usize, Finish)>>,
    /// Bytes of the largest record.
    pub largest: u64,
}

/// What becomes of a row as it is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Finish {
    Plain,
    /// No bytes are no image.
    Image,
    /// Zeros end it.
    Text,
    /// The same, and a text without a letter is no value.
    Json,
    /// Elements of a type, in rows of this many.
    Rows {
        stored: Stored,
        row: usize,
    },
}

/// How a dataset's rows are written, what becomes of them, and what the part is.
///
/// # Errors
/// Why it cannot be what is wanted.
pub(super) fn form(
    dataset: &Dataset,
    wanted: &Wanted,
    layout: PixelLayout,
) -> Result<(Option<Part>, Finish, PartSpec), String> {
    use WantedKind::{Bytes, Image, Json, Ragged, Text};
    let row = dataset.shape.get(1..).unwrap_or_default();
    let is_single = product(row) == Some(1);
    let plain = || wanted.spec(ElementType::U8, &[]);
    let as_text = match wanted.kind {
        Json => Finish::Json,
        _ => Finish::Text,
    };
    Ok(match (&dataset.kind, wanted.kind) {
        (Kind::Heap { text: true }, Text | Bytes | Json) => (None, as_text, plain()),
        (Kind::Heap { text: false }, Image) => (None, Finish::Image, plain()),
        (Kind::Heap { text: false }, Bytes) => (None, Finish::Plain, plain()),
        (Kind::Fixed { text: true }, Text | Bytes | Json) if is_single => {
            (Some(Part::encoded(dataset.element)), as_text, plain())
        }
        (Kind::Fixed { text: false }, Image | Bytes) if is_single => {
            (Some(Part::encoded(dataset.element)), Finish::Plain, plain())
        }
        (Kind::Sequence(stored), Ragged) => {
            let row = wanted.row.as_deref().unwrap_or_default();
            let count =
                product(row).filter(|&count| count > 0 && count < 1 << 32).ok_or("has rows of nothing")?;
            (None, Finish::Rows { stored: *stored, row: count as usize }, wanted.spec(stored.element, row))
        }
        (Kind::Numbers(stored), Image) => match Part::picture(*stored, row, layout) {
            Some(part) => (Some(part), Finish::Plain, plain()),
            None => {
                return Err(format!("holds no images: {}", column::no_picture(&dataset.path, *stored, row)));
            }
        },
        (Kind::Numbers(stored), Ragged)
            if !row.is_empty() && dataset.row_bytes().is_some_and(|bytes| bytes > 0) =>
        {
            let (part, _) = Part::field(&wanted.part, *stored, row)?;
            (Some(part), Finish::Plain, wanted.spec(stored.element, &row[1..]))
        }
        (Kind::Numbers(_), Ragged) => {
            return Err("holds one number for each record; ask for it without max_rows".into());
        }
        (Kind::Numbers(stored @ Stored { element: ElementType::U8, .. }), Bytes) => {
            let (part, _) = Part::field(&wanted.part, *stored, row)?;
            (Some(part), Finish::Plain, plain())
        }
        (_, kind) => {
            let what = match kind {
                Image => "an image",
                Bytes => "bytes",
                Text => "text",
                Json => "JSON",
                WantedKind::Numbers => "numbers of one shape",
                Ragged => "rows of numbers",
                WantedKind::Value => "a value for a condition",
            };
            return Err(format!("cannot be {what}"));
        }
    })
}

impl Finish {
    fn apply(self, row: &[u8]) -> Result<Value<'_>, String> {
        let text = || row.split(|&byte| byte == 0).next().unwrap_or_default();
        Ok(match self {
            Self::Plain => Some(Cow::Borrowed(row)),
            Self::Image => (!row.is_empty()).then_some(Cow::Borrowed(row)),
            Self::Text => Some(Cow::Borrowed(text())),
            Self::Json => Some(Cow::Borrowed(text())).filter(|text| !text.trim_ascii().is_empty()),
            Self::Rows { stored, row: count } => {
                let size = stored.element.size();
                if !row.len().is_multiple_of(size * count) {
                    let found = row.len() / size;
                    return Err(format!("has {found} numbers, which do not divide into rows of {count}"));
                }
                if !stored.big || size == 1 {
                    return Ok(Some(Cow::Borrowed(row)));
                }
                let turned = row.chunks_exact(size).flat_map(|element| element.iter().rev().copied());
                Some(Cow::Owned(turned.collect()))
            }
        })
    }
}

impl Named {
    /// A record of its rows, which lie one after the other with these lengths.
    ///
    /// # Errors
    /// What is wrong with one.
    pub fn join(
        &self,
        lengths: impl Iterator<Item = u64>,
        stored: &[u8],
        take: impl FnOnce(usize) -> Option<Buffer>,
    ) -> Result<Option<Buffer>, String> {
        let mut rows: Vec<&[u8]> = Vec::new();
        let mut rest = stored;
        for length in lengths {
            let (row, after) = rest.split_at(length as usize);
            rows.push(row);
            rest = after;
        }
        let schema = &self.schema;
        let image: &[u8] = if schema.image { rows[0] } else { &[] };
        let mut parts = Vec::with_capacity(self.parts.len());
        for (spec, part) in schema.parts.iter().zip(&self.parts) {
            let made = part.map_or(Ok(None), |(column, finish)| finish.apply(rows[column]));
            parts.push(made.map_err(|why| fault(&spec.name, &why))?);
        }
        let fields = rows[rows.len() - schema.fields.len()..].concat();
        let lengths = parts.iter().map(|part| part.as_ref().map(|part| part.len()));
        let size = schema.record_bytes(image.len(), lengths);
        let Some(mut buffer) = take(size) else { return Ok(None) };
        let record = &mut buffer.storage()[..size];
        schema.join(image, parts.iter().map(|part| part.as_deref()), &fields, record);
        buffer.set_len(size);
        Ok(Some(buffer))
    }
}

impl Records {
    /// Whether a column is the source's own image.
    pub(super) fn is_image(&self, column: usize) -> bool {
        self.named.as_ref().is_none_or(|named| named.schema.image && column == 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_become_what_was_asked_for() {
        let big = Stored { element: ElementType::I16, big: true };
        let rows = |count| Finish::Rows { stored: big, row: count };
        let made = |finish: Finish, row: &[u8]| finish.apply(row).map(|made| made.map(Cow::into_owned));
        assert_eq!(made(rows(1), &[0, 1, 0, 2]), Ok(Some(vec![1, 0, 2, 0])));
        assert_eq!(made(rows(2), &[]), Ok(Some(vec![])));
        assert_eq!(made(rows(2), &[0; 6]), Err("has 3 numbers, which do not divide into rows of 2".into()));
        assert_eq!(made(Finish::Text, b"ab\0\0"), Ok(Some(b"ab".to_vec())));
        assert_eq!(made(Finish::Json, b" \0"), Ok(None));
        assert_eq!((made(Finish::Image, b""), made(Finish::Plain, b"")), (Ok(None), Ok(Some(vec![]))));
    }
}
