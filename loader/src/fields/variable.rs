//! Values of which one record has more than another: text, bytes, JSON and rows of numbers.

use fuelrail_connectors::PartKind;
use fuelrail_connectors::settings::{json_fault, json_plain};

use super::config::{Missing, Overflow};
use super::numbers::Cast;
use crate::layout::Content;

/// Why a record is bad that lacks a part.
pub(super) const MISSING: &str = "the record does not have it";

/// The same where a field may be empty.
pub(super) const MAY_BE_EMPTY: &str =
    "the record does not have it; missing=\"empty\" delivers an empty value instead";

/// JSON may be nested this deep, as deep as Python's own parser goes without trouble.
const MAX_DEPTH: usize = 128;

/// How much there is room for, and what becomes of what does not fit or is not there.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limit {
    /// Bytes, or rows of numbers.
    pub most: u64,
    pub overflow: Overflow,
    pub missing: Missing,
}

impl Limit {
    /// How many of `have` are taken.
    pub(super) fn take(self, have: u64, what: &str, key: &str) -> Result<u64, String> {
        match self.overflow {
            _ if have <= self.most => Ok(have),
            Overflow::Cut => Ok(self.most),
            Overflow::Bad => Err(format!(
                "{have} {what}, and the field has room for {} ({key}); raise {key}, or set overflow=\"cut\"",
                self.most
            )),
        }
    }
}

/// Writes a value and zeros behind it; gives its length.
pub(super) fn bytes(
    value: Option<&[u8]>,
    content: Content,
    limit: Limit,
    row: &mut [u8],
) -> Result<i64, String> {
    let value = match (value, limit.missing) {
        (Some(value), _) => value,
        (None, Missing::Empty) => &[],
        (None, Missing::Bad) => return Err(MAY_BE_EMPTY.into()),
    };
    // A byte order mark is none of JSON's.
    let value = match content {
        Content::Json => value.strip_prefix("\u{feff}".as_bytes()).unwrap_or(value),
        _ => value,
    };
    let mut length = limit.take(value.len() as u64, "bytes", "max_bytes")? as usize;
    match content {
        Content::Text => {
            length = text(value)?.floor_char_boundary(length);
        }
        Content::Json if !value.is_empty() => json(value)?,
        _ => {}
    }
    row[..length].copy_from_slice(&value[..length]);
    row[length..].fill(0);
    Ok(length as i64)
}

/// How long a part's value is, in the unit of its field's cap.
///
/// # Errors
/// Why no field can have it.
pub fn length(kind: &PartKind, value: &[u8]) -> Result<u64, String> {
    match kind {
        PartKind::Image | PartKind::Bytes => {}
        PartKind::Text => drop(text(value)?),
        PartKind::Json => json(value)?,
        PartKind::Ragged { dtype, row } => {
            let bytes = row.iter().product::<u64>() * dtype.size() as u64;
            return Ok(value.len() as u64 / bytes.max(1));
        }
    }
    Ok(value.len() as u64)
}

fn text(value: &[u8]) -> Result<&str, String> {
    std::str::from_utf8(value).map_err(|error| {
        format!("it is not UTF-8 (byte {}); ask for it as Bytes, or convert it", error.valid_up_to())
    })
}

/// Checks that a value is JSON, as Python writes and reads it (`NaN` is a number there), and one that a parser which
/// calls itself can take.
fn json(value: &[u8]) -> Result<(), String> {
    let (mut depth, mut deepest, mut in_text, mut escaped) = (0usize, 0, false, false);
    for &byte in value {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_text => escaped = true,
            b'"' => in_text = !in_text,
            b'[' | b'{' if !in_text => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b']' | b'}' if !in_text => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    if deepest > MAX_DEPTH {
        return Err(format!("its JSON is nested {deepest} deep; the maximum is {MAX_DEPTH}"));
    }
    if std::str::from_utf8(value).is_err() {
        return Err("it is not JSON: it is not UTF-8".into());
    }
    let is_json = |text: &[u8]| serde_json::from_slice::<serde::de::IgnoredAny>(text).map(drop);
    match is_json(value).or_else(|error| is_json(&json_plain(value)).map_err(|_| error)) {
        Ok(()) => Ok(()),
        Err(error) => Err(format!("it is not JSON: {}", json_fault(&error, value))),
    }
}

/// Rows of numbers.
#[derive(Clone, Debug)]
pub(super) struct Ragged {
    pub limit: Limit,
    /// Of one row.
    pub cast: Cast,
}

impl Ragged {
    /// Writes the rows and zeros behind them; gives their number.
    pub fn write(&self, value: Option<&[u8]>, row: &mut [u8]) -> Result<i64, String> {
        let value = match (value, self.limit.missing) {
            (Some(value), _) => value,
            (None, Missing::Empty) => &[],
            (None, Missing::Bad) => return Err(MAY_BE_EMPTY.into()),
        };
        let stored = self.cast.stored_bytes().max(1);
        if !value.len().is_multiple_of(stored) {
            return Err(format!("its {} bytes are not rows of {stored}", value.len()));
        }
        let rows = self.limit.take((value.len() / stored) as u64, "rows", "max_rows")? as usize;
        let bytes = self.cast.bytes();
        for at in 0..rows {
            self.cast.write(&value[at * stored..], &mut row[at * bytes..][..bytes])?;
        }
        row[rows * bytes..].fill(0);
        Ok(rows as i64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BAD: Limit = Limit { most: 8, overflow: Overflow::Bad, missing: Missing::Bad };
    const CUT: Limit = Limit { overflow: Overflow::Cut, ..BAD };
    const EMPTY: Limit = Limit { missing: Missing::Empty, ..BAD };

    fn made(value: Option<&[u8]>, content: Content, limit: Limit) -> Result<Vec<u8>, String> {
        let mut row = [7; 8];
        let length = bytes(value, content, limit, &mut row)?;
        let (value, behind) = row.split_at(length as usize);
        assert!(behind.iter().all(|&byte| byte == 0), "{row:?}");
        Ok(value.to_vec())
    }

    #[test]
    fn a_value_is_delivered_whole_or_the_record_is_bad() {
        assert_eq!(made(Some(b"12345678"), Content::Text, BAD).unwrap(), b"12345678");
        assert_eq!(made(Some(b""), Content::Text, BAD).unwrap(), b"");
        let error = made(Some(b"123456789"), Content::Text, BAD).unwrap_err();
        assert!(error.contains("9 bytes") && error.contains("max_bytes"), "{error}");
        assert!(made(None, Content::Text, BAD).unwrap_err().contains("does not have it"));
        assert_eq!(made(None, Content::Json, EMPTY).unwrap(), b"");
    }

    #[test]
    fn text_is_cut_between_characters() {
        assert_eq!(made(Some("abcdefgé".as_bytes()), Content::Text, CUT).unwrap(), b"abcdefg");
        assert_eq!(made(Some("abcdefgé".as_bytes()), Content::Bytes, CUT).unwrap(), b"abcdefg\xc3");
        let error = made(Some(b"ab\xffc"), Content::Text, CUT).unwrap_err();
        assert!(error.contains("not UTF-8 (byte 2)"), "{error}");
    }

    #[test]
    fn json_is_one_value_that_can_be_parsed() {
        assert_eq!(made(Some(b"{\"a\":1}"), Content::Json, BAD).unwrap(), b"{\"a\":1}");
        assert_eq!(made(Some("\u{feff}[NaN]".as_bytes()), Content::Json, BAD).unwrap(), b"[NaN]");
        for wrong in [&b"{\"a\":"[..], b"1 2", b"\"\xff\"", b"nan"] {
            assert!(made(Some(wrong), Content::Json, BAD).unwrap_err().contains("not JSON"), "{wrong:?}");
        }
        let bomb = "[".repeat(1 << 20) + &"]".repeat(1 << 20);
        let limit = Limit { most: 1 << 22, ..BAD };
        assert!(
            bytes(Some(bomb.as_bytes()), Content::Json, limit, &mut [])
                .unwrap_err()
                .contains("nested 1048576")
        );
        // What looks like one but is text.
        let text = format!("\"{}\"", "[\\\"".repeat(1000));
        let mut row = vec![0; 1 << 13];
        bytes(Some(text.as_bytes()), Content::Json, limit, &mut row).unwrap();
    }
}
