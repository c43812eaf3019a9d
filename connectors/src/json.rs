//! JSON as people write it: Python's `json.dumps` leaves `NaN` and `Infinity` in it, which no other reader takes.

use std::borrow::Cow;

use serde_json::Value;
use serde_json::error::Category;

/// A word in an error is cut here.
const SHOWN: usize = 20;

/// Reads a value; `NaN`, `Infinity` and `-Infinity` outside of texts are nulls. A byte order mark before it is no part
/// of it.
///
/// # Errors
/// What is wrong, as [`fault`] says it.
pub(crate) fn parse(text: &[u8]) -> Result<Value, String> {
    let text = text.strip_prefix("\u{feff}".as_bytes()).unwrap_or(text);
    match serde_json::from_slice(text) {
        Ok(value) => Ok(value),
        Err(error) => match without_nan(text) {
            Cow::Owned(text) => serde_json::from_slice(&text).map_err(|error| fault(&error, &text)),
            Cow::Borrowed(_) => Err(fault(&error, text)),
        },
    }
}

/// The text that `parse` reads, without what it passes over. It is JSON if `parse` says so.
pub fn plain(text: &[u8]) -> Cow<'_, [u8]> {
    let text = text.strip_prefix("\u{feff}".as_bytes()).unwrap_or(text);
    if serde_json::from_slice::<&serde_json::value::RawValue>(text).is_ok() {
        return Cow::Borrowed(text);
    }
    without_nan(text)
}

/// What serde_json says of JSON that is none, and what that means. Its words are for programmers.
const FAULTS: [(&str, &str); 17] = [
    ("expected `:`", "a key has no colon after it"),
    ("expected `,` or `]`", "a list has neither a comma nor its closing ] here"),
    ("expected `,` or `}`", "an object has neither a comma nor its closing } here"),
    ("expected ident", "only true, false and null are written without quotes"),
    ("expected value", "here is no value (texts go in double quotes)"),
    ("expected `\"`", "here is no text in double quotes"),
    ("invalid escape", "no such escape (a backslash itself is written \\\\)"),
    ("invalid number", "not a number as JSON writes it"),
    ("number out of range", "a number is too large"),
    ("invalid unicode code point", "a text holds bytes or an escape that are no character"),
    (
        "control character (\\u0000-\\u001F) found while parsing a string",
        "a text holds a line break or another control character (written \\n, \\t, …)",
    ),
    ("key must be a string", "a key is not in double quotes"),
    ("lone leading surrogate in hex escape", "an escape is one half of a character of two"),
    ("unexpected end of hex escape", "an escape is one half of a character of two"),
    ("trailing comma", "a comma has nothing after it"),
    ("trailing characters", "something comes after its end"),
    ("recursion limit exceeded", "lists and objects lie too deep in each other"),
];

/// Why a text is not the JSON that was wanted: what is wrong, what was found there, and where that is.
pub fn fault(error: &serde_json::Error, text: &[u8]) -> String {
    let said = error.to_string();
    let said = said.split_once(" at line ").map_or(&said[..], |(said, _)| said);
    let what = match error.classify() {
        Category::Data => return "it holds another kind of value".into(),
        _ if text.trim_ascii().is_empty() => return "it is empty".into(),
        Category::Eof => "it ends too early",
        _ => FAULTS.iter().find(|(theirs, _)| *theirs == said).map_or("this is not JSON", |(_, ours)| *ours),
    };
    let (mut line, mut column) = (error.line(), error.column());
    if column == 0 && line > 1 {
        // It is the break at the end of the line before.
        line -= 1;
        column = text.split(|&byte| byte == b'\n').nth(line - 1).map_or(0, <[u8]>::len) + 1;
    }
    let found = match error.classify() {
        Category::Eof => String::new(),
        _ => found(text, line, column).map_or(String::new(), |found| format!("; found {found}")),
    };
    match line {
        0 | 1 => format!("{what}{found} (column {column})"),
        _ => format!("{what}{found} (line {line}, column {column})"),
    }
}

/// The word or the character at a place, as it is shown.
fn found(text: &[u8], line: usize, column: usize) -> Option<String> {
    let begin: usize = text.split_inclusive(|&byte| byte == b'\n').take(line - 1).map(<[u8]>::len).sum();
    let (at, is_word) =
        (begin + column.checked_sub(1)?, |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'_');
    let rest = text.get(at..).filter(|rest| !rest.is_empty())?;
    if !is_word(&rest[0]) {
        let chunk = rest.utf8_chunks().next()?;
        return Some(match chunk.valid().chars().next() {
            Some(character) => format!("{:?}", character.to_string()),
            None => chunk.invalid().iter().map(|byte| format!("\\x{byte:02x}")).collect(),
        });
    }
    let from = at - text[..at].iter().rev().take_while(|byte| is_word(byte)).count();
    let word: Vec<u8> = text[from..].iter().copied().take_while(is_word).collect();
    let cut = if word.len() > SHOWN { "…" } else { "" };
    Some(format!("{:?}{cut}", String::from_utf8_lossy(&word[..word.len().min(SHOWN)])))
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
            let has_place = why.contains("(column") || wrong.is_empty();
            assert!(has_place && !why.contains("(line"), "{wrong}: {why}");
        }
    }

    #[test]
    fn whatever_is_wrong_is_said_in_plain_words_with_what_was_found_and_where() {
        let deep = "[".repeat(200);
        let menu: [(&[u8], &str); 30] = [
            (b"", "it is empty"),
            (b" \n ", "it is empty"),
            (b"{", "it ends too early (column 1)"),
            (b"[1,", "it ends too early (column 3)"),
            (b"{\"a\": \"b", "it ends too early (column 8)"),
            (b"tr", "it ends too early (column 2)"),
            (b"{\"a\" 1}", "a key has no colon after it; found \"1\" (column 6)"),
            (b"[1 2]", "a list has neither a comma nor its closing ] here; found \"2\" (column 4)"),
            (
                b"{\"a\": 1 \"b\": 2}",
                "an object has neither a comma nor its closing } here; found \"\\\"\" (column 9)",
            ),
            (b"nil", "only true, false and null are written without quotes; found \"nil\" (column 2)"),
            (b"[True]", "here is no value (texts go in double quotes); found \"True\" (column 2)"),
            (b"hello", "here is no value (texts go in double quotes); found \"hello\" (column 1)"),
            (b"[\xff]", "here is no value (texts go in double quotes); found \\xff (column 2)"),
            ("[é]".as_bytes(), "here is no value (texts go in double quotes); found \"é\" (column 2)"),
            (b"{'a': 1}", "a key is not in double quotes; found \"'\" (column 2)"),
            (b"{a: 1}", "a key is not in double quotes; found \"a\" (column 2)"),
            (b"{\n \"a\": 1,\n 5: 2}", "a key is not in double quotes; found \"5\" (line 3, column 2)"),
            (b"\"\\q\"", "no such escape (a backslash itself is written \\\\); found \"q\" (column 3)"),
            (b"01", "not a number as JSON writes it; found \"01\" (column 2)"),
            (b"1.x", "not a number as JSON writes it; found \"x\" (column 3)"),
            (b"-", "it ends too early (column 1)"),
            (b"1e999", "a number is too large; found \"1e999\" (column 5)"),
            (b"\"\xff\"", "a text holds bytes or an escape that are no character"),
            (
                b"\"a\tb\"",
                "a text holds a line break or another control character (written \\n, \\t, …); found \"\\t\" (column 3)",
            ),
            (
                b"\"a\nb\"",
                "a text holds a line break or another control character (written \\n, \\t, …); found \"\\n\" (column 3)",
            ),
            (b"\"\\ud800x\"", "an escape is one half of a character of two"),
            (b"\"\\ud800\\u0041\"", "an escape is one half of a character of two"),
            (b"[1,]", "a comma has nothing after it; found \"]\" (column 4)"),
            (b"{} {}", "something comes after its end; found \"{\" (column 4)"),
            (deep.as_bytes(), "lists and objects lie too deep in each other"),
        ];
        for (text, expected) in menu {
            let why = parse(text).unwrap_err();
            let shown = String::from_utf8_lossy(text);
            assert!(why.starts_with(expected), "{shown}\n{why}");
            for theirs in
                FAULTS.iter().map(|(theirs, _)| *theirs).chain(["EOF", "while parsing", "at line", "ident"])
            {
                assert!(!why.contains(theirs), "{shown}\n{why}");
            }
        }
    }

    #[test]
    fn no_cut_and_no_change_of_a_text_brings_up_a_foreign_word() {
        let text = br#"{"a": [1, -2.5e3, true, null, "x\\ \u00e9"], "b": {"c": "d"}}"#;
        for at in 0..text.len() {
            for byte in *b"\"'{}[],:\\x0-\n\xff\x01" {
                for changed in [
                    text[..at].to_vec(),
                    [&text[..at], &[byte], &text[at..]].concat(),
                    [&text[..at], &[byte], &text[at + 1..]].concat(),
                ] {
                    let Err(why) = parse(&changed) else { continue };
                    let is_ours =
                        why.starts_with("it ") || FAULTS.iter().any(|(_, ours)| why.starts_with(ours));
                    assert!(is_ours, "{}\n{why}", String::from_utf8_lossy(&changed));
                }
            }
        }
    }
}
