//! Values in JSON.
//!
//! A value is handled as the text that it is written in ([`RawValue`]), so that what is passed on is passed on exactly,
//! and a number is what its digits say.

use std::borrow::Cow;
use std::collections::HashMap;

use half::f16;
use serde_json::value::RawValue;

use super::{Value, step};
use crate::{ElementType, MAX_PART_BYTES, PartKind};

/// Lists in each other are looked into so far for the shape of a row.
const MAX_DIMENSIONS: usize = 8;

/// The members of an object, each as it is written.
pub(crate) type Members<'json> = HashMap<Cow<'json, str>, &'json RawValue>;

/// Whether a text is JSON.
pub(crate) fn is_valid(text: &str) -> bool {
    serde_json::from_str::<&RawValue>(text).is_ok()
}

/// The members of an object. `None` when the text is no object.
pub(crate) fn members(text: &str) -> Option<Members<'_>> {
    serde_json::from_str(text).ok()
}

/// The value at a path of keys inside another; `None` where there is none, or a null.
///
/// # Errors
/// When something on the way is neither an object nor null.
pub(crate) fn find<'json>(value: &'json str, path: &str) -> Result<Option<&'json str>, String> {
    let (mut value, mut rest) = (value, path);
    while !rest.is_empty() && !is_null(value) {
        let Some(object) = members(value) else {
            return Err(format!("is looked for as {rest:?} in {}, which is not an object", kind(value)));
        };
        let Some((name, behind)) = step(rest, |name| object.contains_key(name)) else { return Ok(None) };
        (value, rest) = (object[name].get(), behind);
    }
    Ok((!is_null(value)).then_some(value))
}

/// The same inside an object.
pub(crate) fn find_in<'json>(object: &Members<'json>, path: &str) -> Result<Option<&'json str>, String> {
    match step(path, |name| object.contains_key(name)) {
        Some((name, rest)) => find(object[name].get(), rest),
        None => Ok(None),
    }
}

/// Whether the objects at a path have the key that it ends in; `None` where there is no such object.
pub(crate) fn shows(value: &str, path: &str) -> Option<bool> {
    let (mut value, mut rest) = (value, path);
    loop {
        let object = members(value)?;
        let Some((name, behind)) = step(rest, |name| object.contains_key(name)) else { return Some(false) };
        if behind.is_empty() {
            return Some(true);
        }
        (value, rest) = (object[name].get(), behind);
    }
}

/// The bytes of a part made of a value. (An image is what its text says, in whatever way: see the callers.)
///
/// # Errors
/// What is wrong with the value.
pub(crate) fn value<'json>(value: &'json str, wanted: &PartKind) -> Result<Value<'json>, String> {
    if is_null(value) {
        return Ok(None);
    }
    let bytes = match wanted {
        PartKind::Json => Cow::Borrowed(value.as_bytes()),
        PartKind::Ragged { dtype, row } => Cow::Owned(rows(value, *dtype, row)?),
        PartKind::Text | PartKind::Bytes | PartKind::Image => match text(value) {
            Some(Cow::Borrowed(text)) => Cow::Borrowed(text.as_bytes()),
            Some(Cow::Owned(text)) => Cow::Owned(text.into_bytes()),
            None if kind(value) == "a text" => return Err("has an escape in it that is no character".into()),
            None => return Err(format!("is {}; {} is expected", kind(value), expected(wanted))),
        },
    };
    if bytes.len() as u64 > MAX_PART_BYTES {
        return Err(format!("is larger than {} MiB", MAX_PART_BYTES >> 20));
    }
    Ok(Some(bytes))
}

fn expected(wanted: &PartKind) -> &'static str {
    match wanted {
        PartKind::Text => "text",
        PartKind::Image => "an image, as a text,",
        _ => "bytes, which are a text in JSON,",
    }
}

fn is_null(value: &str) -> bool {
    value.trim_ascii() == "null"
}

/// The text that a value is.
pub(crate) fn text(value: &str) -> Option<Cow<'_, str>> {
    if !value.trim_ascii_start().starts_with('"') {
        return None;
    }
    match serde_json::from_str::<&str>(value) {
        Ok(text) => Some(Cow::Borrowed(text)),
        Err(_) => serde_json::from_str::<String>(value).ok().map(Cow::Owned),
    }
}

/// What a value is, in words.
pub(crate) fn kind(value: &str) -> &'static str {
    match value.trim_ascii_start().as_bytes().first() {
        Some(b'"') => "a text",
        Some(b'{') => "an object",
        Some(b'[') => "a list",
        Some(b't' | b'f') => "true or false",
        Some(b'n') => "null",
        Some(b'-' | b'0'..=b'9') => "a number",
        _ => "no JSON",
    }
}

/// The shape of the first row of a list, if it has one.
pub(crate) fn shape_of_rows(value: &str) -> Option<Vec<u64>> {
    let mut shape = Vec::new();
    let mut value = value;
    while value.trim_ascii_start().starts_with('[') && shape.len() <= MAX_DIMENSIONS {
        let elements: Vec<&RawValue> = serde_json::from_str(value).ok()?;
        shape.push(elements.len() as u64);
        match elements.first() {
            Some(first) => value = first.get(),
            None => return None,
        }
    }
    // The first length is that of the list itself.
    (!shape.is_empty()).then(|| shape.split_off(1))
}

/// Numbers of any count of rows, each of this shape.
fn rows(value: &str, dtype: ElementType, row: &[u64]) -> Result<Vec<u8>, String> {
    let mut scan = Scan { rest: value.as_bytes(), dtype, out: Vec::new() };
    if !scan.begins(b'[') {
        return Err(format!("is {}; a list is expected", kind(value)));
    }
    let mut count = 0u64;
    while !scan.begins(b']') {
        if count > 0 && !scan.begins(b',') {
            return Err("is not JSON".into());
        }
        scan.value(row)?;
        count += 1;
    }
    scan.end()
}

/// Numbers of one shape.
///
/// # Errors
/// What is wrong with the value.
pub(crate) fn fixed(value: &str, dtype: ElementType, shape: &[u64]) -> Result<Vec<u8>, String> {
    let mut scan = Scan { rest: value.as_bytes(), dtype, out: Vec::new() };
    scan.value(shape)?;
    scan.end()
}

/// Lists of numbers, read from left to right.
struct Scan<'json> {
    rest: &'json [u8],
    dtype: ElementType,
    out: Vec<u8>,
}

impl Scan<'_> {
    /// Whether this sign comes next; then it is taken.
    fn begins(&mut self, sign: u8) -> bool {
        self.rest = self.rest.trim_ascii_start();
        let rest = self.rest.strip_prefix(&[sign]);
        self.rest = rest.unwrap_or(self.rest);
        rest.is_some()
    }

    fn end(self) -> Result<Vec<u8>, String> {
        if !self.rest.trim_ascii().is_empty() {
            return Err("is not JSON".into());
        }
        Ok(self.out)
    }

    /// A value of this shape. How deep this goes is what the shape says, not the JSON.
    fn value(&mut self, shape: &[u64]) -> Result<(), String> {
        let Some((&length, inner)) = shape.split_first() else { return self.number() };
        if !self.begins(b'[') {
            return Err(format!("has {} in it where a list of {length} is expected", self.next()));
        }
        for at in 0..length {
            let is_short = || format!("has a list of {at} where {length} are expected");
            if at > 0 && !self.begins(b',') {
                return Err(is_short());
            }
            self.rest = self.rest.trim_ascii_start();
            if self.rest.first() == Some(&b']') {
                return Err(is_short());
            }
            self.value(inner)?;
        }
        if self.begins(b']') { Ok(()) } else { Err(format!("has a list of more than {length}")) }
    }

    /// What comes next, in words.
    fn next(&self) -> &'static str {
        match self.rest.trim_ascii_start().first() {
            Some(b'"') => "a text",
            Some(b'{') => "an object",
            Some(b'[') => "a list",
            Some(b't' | b'f') => "true or false",
            Some(b'n') => "a null",
            Some(b'-' | b'0'..=b'9') => "a number",
            _ => "an end",
        }
    }

    /// Writes one number, little-endian.
    fn number(&mut self) -> Result<(), String> {
        if self.out.len() as u64 >= MAX_PART_BYTES {
            return Err(format!("is larger than {} MiB", MAX_PART_BYTES >> 20));
        }
        self.rest = self.rest.trim_ascii_start();
        for (word, digit) in [("true", "1"), ("false", "0")] {
            if let Some(rest) = self.rest.strip_prefix(word.as_bytes()) {
                self.rest = rest;
                return put(digit, self.dtype, &mut self.out);
            }
        }
        let is_part = |byte: &u8| matches!(byte, b'-' | b'+' | b'.' | b'e' | b'E' | b'0'..=b'9');
        let length = self.rest.iter().take_while(|byte| is_part(byte)).count();
        let (digits, rest) = self.rest.split_at(length);
        match std::str::from_utf8(digits) {
            Ok(digits) if !digits.is_empty() => put(digits, self.dtype, &mut self.out)?,
            _ => return Err(format!("has {} in it where a number is expected", self.next())),
        }
        self.rest = rest;
        Ok(())
    }
}

/// Appends the number that digits say.
///
/// # Errors
/// When the type does not hold it: a whole number exactly, any other as near as it goes.
fn put(digits: &str, dtype: ElementType, out: &mut Vec<u8>) -> Result<(), String> {
    use ElementType::*;
    let whole: Option<i128> = digits.parse().ok().or_else(|| {
        let number: f64 = digits.parse().ok()?;
        (number.fract() == 0.0 && number.abs() < 9e15).then_some(number as i128)
    });
    macro_rules! integer {
        ($kind:ty) => {
            match whole.and_then(|number| <$kind>::try_from(number).ok()) {
                Some(number) => out.extend(number.to_le_bytes()),
                None => return Err(format!("has {} in it, which is not a valid {dtype}", cut(digits))),
            }
        };
    }
    match dtype {
        Bool => match whole {
            Some(number @ (0 | 1)) => out.push(number as u8),
            _ => return Err(format!("has {} in it, which is not a valid bool", cut(digits))),
        },
        U8 => integer!(u8),
        I8 => integer!(i8),
        U16 => integer!(u16),
        I16 => integer!(i16),
        U32 => integer!(u32),
        I32 => integer!(i32),
        U64 => integer!(u64),
        I64 => integer!(i64),
        F16 | F32 | F64 => {
            let number: f64 =
                digits.parse().map_err(|_| format!("has {digits} in it, which is not a number"))?;
            let held = match dtype {
                F16 => f64::from(f16::from_f64(number)),
                F32 => f64::from(number as f32),
                _ => number,
            };
            let is_written_whole = digits.bytes().all(|byte| byte == b'-' || byte.is_ascii_digit());
            if is_written_whole && whole.is_none_or(|whole| held as i128 != whole) {
                let wider = if dtype == F64 { "i64" } else { "i64 or f64" };
                return Err(format!(
                    "has the whole number {} in it, which {dtype} does not hold exactly; say dtype={wider}",
                    cut(digits)
                ));
            }
            if held.is_infinite() {
                return Err(format!("has {} in it, which is too large for {dtype}", cut(digits)));
            }
            match dtype {
                F16 => out.extend(f16::from_f64(number).to_le_bytes()),
                F32 => out.extend((number as f32).to_le_bytes()),
                _ => out.extend(number.to_le_bytes()),
            }
        }
    }
    Ok(())
}

/// Digits in a message.
fn cut(digits: &str) -> String {
    match digits.char_indices().nth(24) {
        Some((at, _)) => format!("{}…", &digits[..at]),
        None => digits.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ragged(dtype: ElementType, row: &[u64]) -> PartKind {
        PartKind::Ragged { dtype, row: row.to_vec() }
    }

    fn made(text: &str, wanted: &PartKind) -> Result<Option<Vec<u8>>, String> {
        value(text, wanted).map(|bytes| bytes.map(Cow::into_owned))
    }

    #[test]
    fn a_value_is_found_by_its_path_and_names_may_have_dots() {
        let json =
            r#"{"a": {"b.c": {"d": 1}, "b": {"c.d": 2}}, "x.y": {"e": 3}, "x": {"y": {"e": 4}}, "t": "x"}"#;
        for (path, expected) in [
            ("a.b.c.d", Ok(Some("1"))),
            ("a.b.c", Ok(Some(r#"{"d": 1}"#))),
            ("x.y.e", Ok(Some("3"))),
            ("a.x", Ok(None)),
            ("t", Ok(Some("\"x\""))),
            ("nowhere", Ok(None)),
        ] {
            assert_eq!(find(json, path), expected, "{path}");
        }
        assert!(find(json, "t.x").unwrap_err().contains("a text, which is not an object"));
        assert_eq!(find(r#"{"a": null}"#, "a.b"), Ok(None));
    }

    #[test]
    fn texts_lose_their_escapes_and_json_is_as_it_was_written() {
        let text = r#""a\n\"é\" \ud83d\ude00""#;
        assert_eq!(made(text, &PartKind::Text).unwrap().unwrap(), "a\n\"é\" 😀".as_bytes());
        assert_eq!(made(r#""plain""#, &PartKind::Bytes).unwrap().unwrap(), b"plain");
        let json = r#"{"b": 1.0, "a": 1e400, "n": 123456789012345678901234567890}"#;
        assert_eq!(made(json, &PartKind::Json).unwrap().unwrap(), json.as_bytes());
        assert_eq!(made(" null ", &PartKind::Json), Ok(None));
        assert_eq!(made("5", &PartKind::Text).unwrap_err(), "is a number; text is expected");
    }

    #[test]
    fn lists_of_numbers_are_rows_of_one_shape() {
        let le =
            |numbers: &[f32]| numbers.iter().flat_map(|number| number.to_le_bytes()).collect::<Vec<u8>>();
        let f32s = |row: &[u64]| ragged(ElementType::F32, row);
        assert_eq!(made("[1, -2.5 ,3e2,true]", &f32s(&[])).unwrap().unwrap(), le(&[1., -2.5, 300., 1.]));
        assert_eq!(made("[[1,2],[3,4]]", &f32s(&[2])).unwrap().unwrap(), le(&[1., 2., 3., 4.]));
        assert_eq!(made(" [ ] ", &f32s(&[4])), Ok(Some(Vec::new())));
        assert_eq!(made("[9007199254740993]", &ragged(ElementType::I64, &[])).unwrap().unwrap().len(), 8);
        for (text, wanted, why) in [
            ("3", f32s(&[]), "is a number; a list is expected"),
            ("[1, \"a\"]", f32s(&[]), "has a text in it where a number"),
            ("[1, null]", f32s(&[]), "has a null in it"),
            ("[[1], 2]", f32s(&[]), "has a list in it"),
            ("[[1, 2], [3]]", f32s(&[2]), "has a list of 1 where 2"),
            ("[[1, 2], [3, 4, 5]]", f32s(&[2]), "has a list of more than 2"),
            ("[[]]", f32s(&[2]), "has a list of 0 where 2"),
            ("[1, 2]", f32s(&[2]), "has a number in it where a list of 2"),
            (
                "[16777217]",
                f32s(&[]),
                "16777217 in it, which f32 does not hold exactly; say dtype=i64 or f64",
            ),
            ("[1e39]", f32s(&[]), "too large for f32"),
            ("[9007199254740993]", ragged(ElementType::F64, &[]), "say dtype=i64"),
            ("[256]", ragged(ElementType::U8, &[]), "256 in it, which is not a valid u8"),
            ("[1.5]", ragged(ElementType::I32, &[]), "not a valid i32"),
            ("[2]", ragged(ElementType::Bool, &[]), "not a valid bool"),
        ] {
            let found = made(text, &wanted).unwrap_err();
            assert!(found.contains(why), "{text}: {found}");
        }
    }

    #[test]
    fn the_shape_of_a_row_is_that_of_the_first() {
        for (text, expected) in [
            ("[1, 2]", Some(vec![])),
            ("[[1, 2], [3, 4]]", Some(vec![2])),
            ("[[[1], [2], [3]]]", Some(vec![3, 1])),
            ("[]", None),
            ("[[]]", None),
            ("5", None),
        ] {
            assert_eq!(shape_of_rows(text), expected, "{text}");
        }
    }

    proptest! {
        #[test]
        fn numbers_come_back(rows in prop::collection::vec([any::<i64>(), any::<i64>()], 0..9)) {
            let text = serde_json::to_string(&rows).unwrap();
            let expected: Vec<u8> = rows.iter().flatten().flat_map(|number| number.to_le_bytes()).collect();
            prop_assert_eq!(made(&text, &ragged(ElementType::I64, &[2])), Ok(Some(expected)));
        }

        #[test]
        fn no_json_is_a_panic(text in "[\\[\\]{}\":,0-9a-z.\\-]{0,40}", row in prop::collection::vec(0u64..4, 0..3)) {
            if let Ok(raw) = serde_json::from_str::<&RawValue>(&text) {
                for wanted in [PartKind::Text, PartKind::Json, ragged(ElementType::U8, &row)] {
                    let _ = (made(raw.get(), &wanted), find(raw.get(), "a.b"), shape_of_rows(raw.get()));
                }
            }
            let _ = rows(&text, ElementType::F32, &row);
        }
    }
}
