//! A part of a source, as it is written and as it is decided.
//!
//! ```text
//!  "train[:90%]"    nine of ten records, by a hash of each key
//!  "train[90%:]"    the others: what is held out of that
//! ```

use std::fmt;

use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserializer, Error, MapAccess, Visitor};
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use crate::SourceError;

/// A part of a source, chosen by a hash of each record's key.
///
/// The hash depends on the relative path alone: adding a file moves no other file from one part to the other, and every
/// machine agrees. Both parts have the same classes. Written as data, or as text like `"train[:90%]"`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Split {
    /// The part wanted.
    pub part: SplitPart,
    /// Fraction of keys that belong to `val`, from 0 to 1; the others belong to `train`.
    pub fraction: f64,
}

/// The parts of a split.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SplitPart {
    /// Keys whose hash, taken as a fraction, is not below [`Split::fraction`].
    Train,
    /// Keys whose hash, taken as a fraction, is below [`Split::fraction`].
    Val,
}

impl<'de> Deserialize<'de> for Split {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Plain {
            part: SplitPart,
            fraction: f64,
        }

        struct TextOrData;

        impl<'de> Visitor<'de> for TextOrData {
            type Value = Split;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("text like \"train[:90%]\" or \"train[90%:]\"")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Split, E> {
                let split = Named::parse(text).and_then(|named| named.split(false));
                split.map_err(E::custom)?.ok_or_else(|| E::custom(refusal(text, "it is all of it")))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Split, A::Error> {
                let Plain { part, fraction } = Plain::deserialize(MapAccessDeserializer::new(map))?;
                Ok(Split { part, fraction })
            }
        }

        deserializer.deserialize_any(TextOrData)
    }
}

impl Split {
    pub(crate) fn check(&self) -> Result<(), SourceError> {
        if (0.0..=1.0).contains(&self.fraction) {
            return Ok(());
        }
        Err(SourceError::config(format!(
            "split.fraction is {}; it must be from 0 to 1 (the fraction of records that belong to \"val\")",
            self.fraction
        )))
    }

    /// Whether the record with this relative path belongs to the part.
    pub(crate) fn holds(&self, path: &[u8]) -> bool {
        // 53 bits, so that the fraction is exact in f64 and always below 1: with fraction 1 nothing is left for train.
        let fraction = (xxh3_64(path) >> 11) as f64 / (1u64 << 53) as f64;
        match self.part {
            SplitPart::Val => fraction < self.fraction,
            SplitPart::Train => fraction >= self.fraction,
        }
    }
}

/// What a text like `"train[:90%]"` says.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Named {
    text: String,
    /// What is before the bracket.
    pub name: String,
    /// The percentage at which it is cut, and whether what is before it is wanted; `None` without a bracket.
    cut: Option<(f64, bool)>,
}

fn refusal(text: &str, why: &str) -> String {
    format!(
        "split={text:?}: {why}; write \"train[:90%]\" for one part and \"train[90%:]\" for what is held out of it (a sample's part \
         is decided by a hash of its key)"
    )
}

impl Named {
    /// Takes the text apart.
    ///
    /// # Errors
    /// When it is of no form that is understood.
    pub fn parse(text: &str) -> Result<Self, SourceError> {
        let refuse = |why: &str| Err(SourceError::config(refusal(text, why)));
        let plain: String = text.chars().filter(|c| !c.is_whitespace()).collect();
        let (name, range) = match plain.split_once('[') {
            None => (plain.as_str(), None),
            Some((name, rest)) => match rest.strip_suffix(']') {
                Some(range) => (name, Some(range)),
                None => return refuse("its bracket is not closed"),
            },
        };
        if name.is_empty() || !name.chars().all(|c| c.is_alphanumeric() || "_-.".contains(c)) {
            return refuse("it is not understood");
        }
        let named = |cut| Ok(Self { text: text.to_owned(), name: name.to_owned(), cut });
        let Some(range) = range else { return named(None) };
        let Some((from, to)) = range.split_once(':') else { return refuse("there is no : in its bracket") };
        let (number, before) = match (from, to) {
            ("", "") => return named(None),
            ("", to) => (to, true),
            (from, "") => (from, false),
            _ => {
                return refuse(
                    "a part from the middle is not supported, only one before or after a percentage",
                );
            }
        };
        let Some(percent) = number.strip_suffix('%') else {
            return refuse("only a percentage can be taken, not a number of records or a fraction without %");
        };
        match percent.parse::<f64>() {
            // As Hugging Face counts from the end.
            Ok(percent) if (-100.0..0.0).contains(&percent) || percent == 0.0 && number.starts_with('-') => {
                named(Some((100.0 + percent, before)))
            }
            Ok(percent) if (0.0..=100.0).contains(&percent) => named(Some((percent, before))),
            _ => refuse("the percentage is not from 0 to 100"),
        }
    }

    /// The part that is meant; `None` for all of it. `is_place`: the name is that of a folder, which was taken.
    ///
    /// # Errors
    /// When the name means nothing.
    pub fn split(&self, is_place: bool) -> Result<Option<Split>, SourceError> {
        let refuse = |why: String| Err(SourceError::config(refusal(&self.text, &why)));
        if !is_place && self.name != "train" {
            return refuse(format!(
                "there is no part \"{}\", only the one set, called \"train\" here, to cut; the held-out part of \"train[:90%]\" is \
                 \"train[90%:]\"",
                self.name
            ));
        }
        match self.cut {
            None if is_place => Ok(None),
            None => refuse("for all of it leave out split=".into()),
            Some((percent, before)) => {
                let fraction = ((1.0 - percent / 100.0) * 1e9).round() / 1e9;
                let part = if before { SplitPart::Train } else { SplitPart::Val };
                Ok(Some(Split { part, fraction }))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_two_parts_are_what_their_texts_say() {
        let split = |text: &str| Named::parse(text).unwrap().split(false).unwrap().unwrap();
        let (train, val) = (SplitPart::Train, SplitPart::Val);
        for (text, part, fraction) in [
            ("train[:90%]", train, 0.1),
            ("train[90%:]", val, 0.1),
            (" train[ : 90% ] ", train, 0.1),
            ("train[:-10%]", train, 0.1),
            ("train[-10%:]", val, 0.1),
            ("train[:33.3%]", train, 0.667),
            ("train[0%:]", val, 1.0),
        ] {
            assert_eq!(split(text), Split { part, fraction }, "{text}");
        }
    }

    #[test]
    fn what_is_not_understood_is_refused_by_name() {
        for (text, why) in [
            ("val[:10%]", "no part \"val\""),
            ("test", "no part \"test\""),
            ("train", "all of it"),
            ("train[:]", "all of it"),
            ("train[:0.9]", "without %"),
            ("train[:100]", "number of records"),
            ("train[10%:20%]", "from the middle"),
            ("train[:190%]", "from 0 to 100"),
            ("train[:-110%]", "from 0 to 100"),
            ("train[90%]", "no : in"),
            ("train[:90%", "not closed"),
            ("[:90%]", "not understood"),
            ("train+test", "not understood"),
            ("", "not understood"),
        ] {
            let error = Named::parse(text).and_then(|named| named.split(false)).unwrap_err().to_string();
            assert!(error.contains(why) && error.contains("\"train[90%:]\""), "{text}: {error}");
        }
        assert_eq!(Named::parse("val").unwrap().split(true).unwrap(), None);
        let data: Split = serde_json::from_str(r#"{"part":"val","fraction":0.1}"#).unwrap();
        assert_eq!(data, serde_json::from_str("\"train[90%:]\"").unwrap());
    }
}
