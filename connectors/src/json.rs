//! JSON as people write it: Python's `json.dumps` leaves `NaN` and `Infinity` in it, which no other reader takes.

use std::borrow::Cow;

use serde_json::Value;

use crate::settings::json_fault;

/// Reads a value; `NaN`, `Infinity` and `-Infinity` outside of texts are nulls. A byte order mark before it is no part of it.
///
/// # Errors
/// What is wrong, with the column of the text.
pub(crate) fn parse(text: &[u8]) -> Result<Value, String> {
    let text = text.strip_prefix("\u{feff}".as_bytes()).unwrap_or(text);
    match serde_json::from_slice(text) {
        Ok(value) => Ok(value),
        Err(error) => match without_nan(text) {
            Cow::Owned(text) => serde_json::from_slice(&text).map_err(|error| json_fault(&error)),
            Cow::Borrowed(_) => Err(json_fault(&error)),
        },
    }
}

fn without_nan(text: &[u8]) -> Cow<'_, [u8]> {
    const WORDS: [&[u8]; 3] = [b"-Infinity", b"Infinity", b"NaN"];
    let mut out = Vec::new();
    let (mut at, mut kept, mut in_text) = (0, 0, false);
    while at < text.len() {
        match text[at] {
            b'"' => in_text = !in_text,
            b'\\' if in_text => at += 1,
            b'N' | b'I' | b'-' if !in_text => {
                if let Some(word) = WORDS.iter().find(|word| text[at..].starts_with(word)) {
                    out.extend_from_slice(&text[kept..at]);
                    out.extend_from_slice(b"null");
                    at += word.len();
                    kept = at;
                    continue;
                }
            }
            _ => {}
        }
        at += 1;
    }
    if kept == 0 {
        return Cow::Borrowed(text);
    }
    out.extend_from_slice(&text[kept..]);
    Cow::Owned(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_python_writes_is_read_and_texts_stay_as_they_are() {
        let value = parse(br#"{"a": NaN, "b": [-Infinity, Infinity, -1], "c": "NaN \" NaN"}"#).unwrap();
        assert_eq!(value, serde_json::json!({"a": null, "b": [null, null, -1], "c": "NaN \" NaN"}));
        for wrong in ["{", "{\"a\": nan}", "NaNa", "{'a': 1}", "\"\\", ""] {
            let why = parse(wrong.as_bytes()).unwrap_err();
            let has_place = why.contains("column") || why == "it ends too early";
            assert!(has_place && !why.contains("line"), "{wrong}: {why}");
        }
    }
}
