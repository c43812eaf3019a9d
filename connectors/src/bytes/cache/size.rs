//! Bytes as people write them: a number, or a string like `"100gb"` or `"1.5 TiB"`.

use std::fmt;

use serde::de::{Deserializer, Error, Unexpected, Visitor};

/// Units by their names in lower case. Without an "i" they are decimal, as disks are sold.
const UNITS: [(&str, u64); 14] = [
    ("", 1),
    ("b", 1),
    ("k", 1_000),
    ("kb", 1_000),
    ("m", 1_000_000),
    ("mb", 1_000_000),
    ("g", 1_000_000_000),
    ("gb", 1_000_000_000),
    ("t", 1_000_000_000_000),
    ("tb", 1_000_000_000_000),
    ("kib", 1 << 10),
    ("mib", 1 << 20),
    ("gib", 1 << 30),
    ("tib", 1 << 40),
];

/// Reads a number of bytes from a number or a string.
///
/// # Errors
/// The deserialiser's, naming the value and what is expected.
pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    deserializer.deserialize_any(Bytes)
}

struct Bytes;

impl<'de> Visitor<'de> for Bytes {
    type Value = Option<u64>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a number of bytes, or a string like \"100gb\" or \"512 MiB\"")
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Self::Value, E> {
        Ok(Some(value))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Self::Value, E> {
        u64::try_from(value).map(Some).map_err(|_| E::invalid_value(Unexpected::Signed(value), &self))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
        parse(text).map(Some).ok_or_else(|| E::invalid_value(Unexpected::Str(text), &self))
    }

    fn visit_none<E: Error>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

/// Digits, perhaps with a fraction, and a unit.
fn parse(text: &str) -> Option<u64> {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = (&text[..end], text[end..].trim().to_ascii_lowercase());
    let (_, factor) = UNITS.iter().find(|(name, _)| *name == unit)?;
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits = |part: &str| part.bytes().all(|b| b.is_ascii_digit());
    if whole.is_empty()
        || !digits(fraction)
        || fraction.len() > 12
        || (number.contains('.') && fraction.is_empty())
    {
        return None;
    }
    let whole: u64 = whole.parse().ok()?;
    let tenths = 10u128.pow(fraction.len() as u32);
    let rest =
        if fraction.is_empty() { 0 } else { fraction.parse::<u128>().ok()? * u128::from(*factor) / tenths };
    whole.checked_mul(*factor)?.checked_add(u64::try_from(rest).ok()?)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::CacheConfig;

    #[test]
    fn sizes_are_read_in_decimal_and_binary_units_and_written_as_numbers() {
        for (text, bytes) in [
            ("0", 0),
            ("12", 12),
            ("100gb", 100_000_000_000),
            ("500 MiB", 500 << 20),
            ("1.5 TiB", 3 << 39),
            (" 2.25k ", 2250),
            ("0.1B", 0),
            ("16G", 16_000_000_000),
        ] {
            assert_eq!(parse(text), Some(bytes), "{text}");
            let config: CacheConfig =
                serde_json::from_value(serde_json::json!({ "limit_bytes": text })).unwrap();
            assert_eq!(serde_json::to_value(&config).unwrap(), serde_json::json!({ "limit_bytes": bytes }));
        }
        for text in ["", "gb", "-1", "1e9", "1..2", ".5gb", "1.gb", "1 2", "1 parsec", "20000000 tib", "½gb"]
        {
            assert_eq!(parse(text), None, "{text}");
            let json = serde_json::json!({ "limit_bytes": text });
            let error = serde_json::from_value::<CacheConfig>(json).unwrap_err().to_string();
            assert!(error.contains("100gb") && error.contains(text), "{error}");
        }
        let config = |json: &str| serde_json::from_str::<CacheConfig>(json);
        assert_eq!(config(r#"{"limit_bytes":7}"#).unwrap().limit_bytes, Some(7));
        assert_eq!(config(r#"{"limit_bytes":null}"#).unwrap().limit_bytes, None);
        assert!(config(r#"{"limit_bytes":-7}"#).is_err());
    }

    proptest! {
        #[test]
        fn no_text_is_a_panic(text in "[0-9. kmgtibKMGTIB-]{0,24}") {
            let _ = parse(&text);
        }

        #[test]
        fn a_plain_number_is_itself(number: u64) {
            prop_assert_eq!(parse(&number.to_string()), Some(number));
        }
    }
}
