//! A part of a source, as it is written and as it is decided.
//!
//! ```text
//!  "train[:90%]"    nine of ten records, by a hash of each key
//!  "train[90%:]"    the others: what is held out of that
//!  "fold 2/5"       the second fifth, by the same hash: what is held out in the second of five rounds
//!  "not fold 2/5"   the other four
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
#[serde(into = "Plain")]
pub struct Split {
    /// The part wanted.
    pub part: SplitPart,
    /// Which keys belong to `val`; the others belong to `train`.
    pub held_out: HeldOut,
}

/// The parts of a split.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SplitPart {
    /// Keys that are not held out.
    Train,
    /// Keys that are.
    Val,
}

/// Which keys are held out, by their hash taken as a fraction.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum HeldOut {
    /// Those below this fraction, from 0 to 1.
    Fraction(f64),
    /// Those in one of several equal stretches, which are counted from 1.
    Fold {
        /// Its number.
        fold: u32,
        /// How many there are.
        folds: u32,
    },
}

/// The same as data.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Plain {
    part: SplitPart,
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "some")]
    fraction: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "some")]
    fold: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "some")]
    folds: Option<u32>,
}

/// A key that is given has a value.
fn some<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

impl From<Split> for Plain {
    fn from(Split { part, held_out }: Split) -> Self {
        match held_out {
            HeldOut::Fraction(fraction) => Self { part, fraction: Some(fraction), fold: None, folds: None },
            HeldOut::Fold { fold, folds } => {
                Self { part, fraction: None, fold: Some(fold), folds: Some(folds) }
            }
        }
    }
}

impl<'de> Deserialize<'de> for Split {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextOrData;

        impl<'de> Visitor<'de> for TextOrData {
            type Value = Split;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("text like \"train[:90%]\", \"train[90%:]\" or \"fold 2/5\"")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Split, E> {
                let split = Named::parse(text).and_then(|named| named.split(false));
                split.map_err(E::custom)?.ok_or_else(|| E::custom(refusal(text, "it is all of it")))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Split, A::Error> {
                let Plain { part, fraction, fold, folds } =
                    Plain::deserialize(MapAccessDeserializer::new(map))?;
                let held_out = match (fraction, fold, folds) {
                    (Some(fraction), None, None) => HeldOut::Fraction(fraction),
                    (None, Some(fold), Some(folds)) => HeldOut::Fold { fold, folds },
                    (None, None, None) => return Err(A::Error::missing_field("fraction")),
                    (None, None, _) => return Err(A::Error::missing_field("fold")),
                    (None, _, None) => return Err(A::Error::missing_field("folds")),
                    _ => return Err(A::Error::custom("it has a fraction or a fold, not both")),
                };
                Ok(Split { part, held_out })
            }
        }

        deserializer.deserialize_any(TextOrData)
    }
}

impl fmt::Display for Split {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.part, self.held_out) {
            (SplitPart::Val, HeldOut::Fold { fold, folds }) => write!(f, "fold {fold}/{folds}"),
            (SplitPart::Train, HeldOut::Fold { fold, folds }) => write!(f, "not fold {fold}/{folds}"),
            (part, HeldOut::Fraction(fraction)) => {
                let percent = ((1.0 - fraction) * 1e9).round() / 1e7;
                match part {
                    SplitPart::Train => write!(f, "train[:{percent}%]"),
                    SplitPart::Val => write!(f, "train[{percent}%:]"),
                }
            }
        }
    }
}

/// More folds than this leave too few records in each.
const MOST_FOLDS: u32 = 1000;

/// Bits of the hash that are used, so that a fraction is exact in `f64`, and always below 1: with fraction 1 nothing is
/// left for train.
const BITS: u32 = 53;

impl Split {
    /// A part by a fraction of the keys.
    pub fn fraction(part: SplitPart, held_out: f64) -> Self {
        Self { part, held_out: HeldOut::Fraction(held_out) }
    }

    /// The choice as a token names it. A part by a fraction was never named there.
    pub(crate) fn chosen(&self) -> Option<(&'static str, String)> {
        matches!(self.held_out, HeldOut::Fold { .. }).then(|| ("split", self.to_string()))
    }

    pub(crate) fn check(&self) -> Result<(), SourceError> {
        match self.held_out {
            HeldOut::Fraction(fraction) if !(0.0..=1.0).contains(&fraction) => {
                Err(SourceError::config(format!(
                    "split.fraction is {fraction}; it must be from 0 to 1 (the fraction of records that belong to \
                     \"val\")"
                )))
            }
            HeldOut::Fold { fold, folds } => match why_no_fold(fold, folds) {
                Some(why) => Err(SourceError::config(format!("split: {why}"))),
                None => Ok(()),
            },
            HeldOut::Fraction(_) => Ok(()),
        }
    }

    /// Whether the record with this relative path belongs to the part.
    pub(crate) fn holds(&self, path: &[u8]) -> bool {
        let hash = xxh3_64(path) >> (u64::BITS - BITS);
        let is_held_out = match self.held_out {
            HeldOut::Fraction(share) => (hash as f64 / (1u64 << BITS) as f64) < share,
            HeldOut::Fold { fold, folds } => {
                (u128::from(hash) * u128::from(folds)) >> BITS == u128::from(fold - 1)
            }
        };
        is_held_out == (self.part == SplitPart::Val)
    }
}

/// Why there is no such fold, if there is none.
fn why_no_fold(fold: u32, folds: u32) -> Option<String> {
    if !(2..=MOST_FOLDS).contains(&folds) {
        return Some(format!("there are 2 to {MOST_FOLDS} folds, not {folds}"));
    }
    let known = 1..=folds;
    (!known.contains(&fold))
        .then(|| format!("folds are counted from 1: \"fold 1/{folds}\" to \"fold {folds}/{folds}\""))
}

/// What a text like `"train[:90%]"` says.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Named {
    text: String,
    /// What is before the bracket, or before the fold.
    pub name: String,
    /// What is wanted of it; `None` for all.
    cut: Option<Split>,
}

fn refusal(text: &str, why: &str) -> String {
    format!(
        "split={text:?}: {why}; write \"train[:90%]\" for one part and \"train[90%:]\" for what is held out of it, or \
         \"fold 2/5\" for the second of five folds and \"not fold 2/5\" for the other four (a sample's part is decided \
         by a hash of its key)"
    )
}

impl Named {
    /// Takes the text apart.
    ///
    /// # Errors
    /// When it is of no form that is understood.
    pub fn parse(text: &str) -> Result<Self, SourceError> {
        let refuse = |why: &str| Err(SourceError::config(refusal(text, why)));
        if let Some((fold, folds)) = text.split_once('/') {
            return match of_fold(fold, folds) {
                Ok((name, cut)) => Ok(Self { text: text.to_owned(), name, cut: Some(cut) }),
                Err(why) => refuse(&why),
            };
        }
        if text.split_whitespace().any(|word| word == "fold") {
            return refuse("a fold is written with a bar between its number and how many there are");
        }
        let plain: String = text.chars().filter(|c| !c.is_whitespace()).collect();
        let (name, range) = match plain.split_once('[') {
            None => (plain.as_str(), None),
            Some((name, rest)) => match rest.strip_suffix(']') {
                Some(range) => (name, Some(range)),
                None => return refuse("its bracket is not closed"),
            },
        };
        if !is_name(name) {
            return refuse("it is not understood");
        }
        let named = |cut| Ok(Self { text: text.to_owned(), name: name.to_owned(), cut });
        let Some(range) = range else { return named(None) };
        let Some((from, to)) = range.split_once(':') else { return refuse("there is no : in its bracket") };
        let (number, part) = match (from, to) {
            ("", "") => return named(None),
            ("", to) => (to, SplitPart::Train),
            (from, "") => (from, SplitPart::Val),
            _ => {
                return refuse(
                    "a part from the middle is not supported, only one before or after a percentage",
                );
            }
        };
        let Some(percent) = number.strip_suffix('%') else {
            return refuse("only a percentage can be taken, not a number of records or a fraction without %");
        };
        let percent = match percent.parse::<f64>() {
            // As Hugging Face counts from the end.
            Ok(percent) if (-100.0..0.0).contains(&percent) || percent == 0.0 && number.starts_with('-') => {
                100.0 + percent
            }
            Ok(percent) if (0.0..=100.0).contains(&percent) => percent,
            _ => return refuse("the percentage is not from 0 to 100"),
        };
        let fraction = ((1.0 - percent / 100.0) * 1e9).round() / 1e9;
        named(Some(Split::fraction(part, fraction)))
    }

    /// The part that is meant; `None` for all of it. `is_place`: the name is that of a folder, which was taken.
    ///
    /// # Errors
    /// When the name means nothing.
    pub fn split(&self, is_place: bool) -> Result<Option<Split>, SourceError> {
        let refuse = |why: String| Err(SourceError::config(refusal(&self.text, &why)));
        let is_whole = self.name == "train" || self.name.is_empty();
        if !is_place && !is_whole {
            return refuse(format!(
                "there is no part \"{}\", only the one set, called \"train\" here, to cut; the held-out part of \"train[:90%]\" is \
                 \"train[90%:]\"",
                self.name
            ));
        }
        match self.cut {
            None if !is_place => refuse("for all of it leave out split=".into()),
            cut => Ok(cut),
        }
    }
}

fn is_name(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_alphanumeric() || "_-.".contains(c))
}

/// What the two sides of the bar in `"train not fold 2/5"` say: the name, which may be left out, and the part.
fn of_fold(before: &str, folds: &str) -> Result<(String, Split), String> {
    let before = before.trim_end();
    let words = before.trim_end_matches(|c: char| c.is_ascii_digit());
    let number = &before[words.len()..];
    let words: Vec<&str> = words.split_whitespace().collect();
    let (name, part) = match words[..] {
        ["fold"] => ("", SplitPart::Val),
        ["not", "fold"] => ("", SplitPart::Train),
        [name, "fold"] if is_name(name) => (name, SplitPart::Val),
        [name, "not", "fold"] if is_name(name) => (name, SplitPart::Train),
        _ => return Err("it is not understood".into()),
    };
    let (Ok(fold), Ok(folds)) = (number.parse(), folds.trim().parse()) else {
        return Err("a fold is two whole numbers".into());
    };
    match why_no_fold(fold, folds) {
        Some(why) => Err(why),
        None => Ok((name.to_owned(), Split { part, held_out: HeldOut::Fold { fold, folds } })),
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
            assert_eq!(split(text), Split::fraction(part, fraction), "{text}");
        }
    }

    #[test]
    fn folds_are_disjoint_and_cover_and_each_has_its_complement() {
        let split = |text: &str| Named::parse(text).unwrap().split(false).unwrap().unwrap();
        for folds in [2, 3, 5, 7, 10, 1000] {
            let all: Vec<(Split, Split)> = (1..=folds)
                .map(|fold| {
                    (split(&format!("fold {fold}/{folds}")), split(&format!("not fold {fold}/{folds}")))
                })
                .collect();
            let mut counts = vec![0; folds];
            for key in 0..5000 {
                let key = format!("class/{key}.jpg");
                let of: Vec<usize> = (0..folds).filter(|&at| all[at].0.holds(key.as_bytes())).collect();
                assert_eq!(of.len(), 1, "{key} of {folds}");
                assert!((0..folds).all(|at| all[at].1.holds(key.as_bytes()) != (at == of[0])));
                counts[of[0]] += 1;
            }
            let fair = 5000 / folds;
            assert!(folds > 10 || counts.iter().all(|&count| count > fair * 3 / 4), "{folds}: {counts:?}");
        }
        // The first fold is what a fraction holds out: one hash decides both.
        let (fold, fraction) = (split("fold 1/5"), split("train[80%:]"));
        assert!(
            (0..999)
                .map(|key| format!("{key}"))
                .all(|k| fold.holds(k.as_bytes()) == fraction.holds(k.as_bytes()))
        );
    }

    #[test]
    fn a_fold_is_written_with_or_without_the_name_of_a_folder_and_shown_as_it_is_written() {
        for (text, name, shown) in [
            ("fold 2/5", "", "fold 2/5"),
            (" fold 2 / 5 ", "", "fold 2/5"),
            ("fold2/5", "", "fold 2/5"),
            ("not fold 2/5", "", "not fold 2/5"),
            ("train fold 2/5", "train", "fold 2/5"),
            ("val not fold 1/10", "val", "not fold 1/10"),
        ] {
            let named = Named::parse(text).unwrap();
            let split = named.split(true).unwrap().unwrap();
            assert_eq!((named.name.as_str(), split.to_string().as_str()), (name, shown), "{text}");
            let data = serde_json::to_value(split).unwrap();
            assert_eq!(serde_json::from_value::<Split>(data).unwrap(), split);
        }
        assert_eq!(Split::fraction(SplitPart::Val, 0.1).to_string(), "train[90%:]");
        assert_eq!(Split::fraction(SplitPart::Train, 0.667).to_string(), "train[:33.3%]");
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
            ("fold 0/5", "\"fold 1/5\" to \"fold 5/5\""),
            ("fold 6/5", "counted from 1"),
            ("fold 1/1", "2 to 1000 folds, not 1"),
            ("fold 1/0", "2 to 1000 folds"),
            ("fold -1/5", "not understood"),
            ("fold /5", "two whole numbers"),
            ("fold 1/", "two whole numbers"),
            ("fold 1/5/2", "two whole numbers"),
            ("fold 1.5/5", "not understood"),
            ("2/5", "not understood"),
            ("fold two/5", "not understood"),
            ("fold 2 of 5", "with a bar between"),
            ("folds 2/5", "not understood"),
            ("val fold 2/5", "no part \"val\""),
        ] {
            let error = Named::parse(text).and_then(|named| named.split(false)).unwrap_err().to_string();
            assert!(error.contains(why) && error.contains("\"train[90%:]\""), "{text}: {error}");
        }
        assert_eq!(Named::parse("val").unwrap().split(true).unwrap(), None);
        let data: Split = serde_json::from_str(r#"{"part":"val","fraction":0.1}"#).unwrap();
        assert_eq!(data, serde_json::from_str("\"train[90%:]\"").unwrap());
        for (text, why) in [
            (r#"{"part":"val"}"#, "fraction"),
            (r#"{"part":"val","fold":1}"#, "folds"),
            (r#"{"part":"val","folds":5}"#, "`fold`"),
            (r#"{"part":"val","fold":1,"folds":5,"fraction":0.1}"#, "not both"),
        ] {
            assert!(serde_json::from_str::<Split>(text).unwrap_err().to_string().contains(why), "{text}");
        }
        let data: Split = serde_json::from_str(r#"{"part":"val","fold":9,"folds":5}"#).unwrap();
        assert!(data.check().unwrap_err().to_string().contains("counted from 1"));
    }
}
