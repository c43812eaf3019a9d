//! The resume state a client saves with its model checkpoint: small, plain JSON, and refused whenever it would not
//! continue *this* run.
//!
//! A token says where a run stands (seed, epoch, position) and of what: the *dataset* (sorted keys and sizes), the
//! *order* (seed, shuffle, blocks, on_error) and the *pixels* (transforms, dtype). Batch size, world size, threads
//! and device are not in it: changing them between save and load is legal and continues exactly. Of a stream it also
//! says which window it stands in, so that exactly these records can be read again.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use crate::plan::Cursor;

/// The one version of the token format that this build writes and reads.
pub const VERSION: u32 = 1;

/// What a run reads and how; two runs with the same identity deliver the same samples in the same order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {
    /// Fingerprint of the source: sorted keys, sizes, classes.
    pub dataset: String,
    /// Fingerprint of what decides the order: shuffle, blocks, on_error.
    pub order: String,
    /// Fingerprint of what decides the pixels: transforms, dtype.
    pub pixels: String,
    /// Seed of order and augmentation.
    pub seed: u64,
    /// Records in an epoch; none of a stream.
    #[serde(with = "samples")]
    pub samples: Option<u64>,
    /// What was chosen out of the data set and of the possible orders, by its key and in few words: so that a
    /// difference can be named.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub chosen: BTreeMap<String, String>,
}

/// How the format writes the number of samples: a stream's as the largest there is.
mod samples {
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) const OF_A_STREAM: u64 = u64::MAX;

    pub(super) fn serialize<S: Serializer>(samples: &Option<u64>, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(samples.unwrap_or(OF_A_STREAM))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
        Ok(Some(u64::deserialize(deserializer)?).filter(|samples| *samples != OF_A_STREAM))
    }
}

/// The window of a stream in or behind which a position lies, with what the source needs to read it again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Place {
    /// Epoch.
    pub epoch: u64,
    /// Number of the window in the epoch; 0 is the empty one before the first.
    pub window: u64,
    /// Position of its first record.
    pub first: u64,
    /// Records in it.
    pub count: u64,
    /// Ranges and hash, in the source's own words.
    pub state: serde_json::Value,
}

impl Place {
    /// The position behind its last record.
    pub fn end(&self) -> u64 {
        self.first.saturating_add(self.count)
    }

    /// Whether a token for this cursor may name this window. Of two that meet at the position it is the earlier, so
    /// that all ranks write the same token whatever they have seen beyond.
    pub fn holds(&self, cursor: Cursor) -> bool {
        self.epoch == cursor.epoch && (self.first..=self.end()).contains(&cursor.position)
    }
}

/// A saved place in a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Token {
    /// Version of the format.
    pub fuelrail: u32,
    /// What the place is in.
    pub identity: Identity,
    /// Epoch of the next row.
    pub epoch: u64,
    /// Position of the next row, counted over all ranks.
    pub position: u64,
    /// Of a stream: the window it lies in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stream: Option<Place>,
    /// Checksum of everything above, so that a cut or edited token is noticed.
    pub check: String,
}

/// Why a token was refused. Never repaired, never "start at 0".
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Not the JSON of a token.
    #[error("this is not a fuelrail loader state: {0}. Pass what `loader.state_dict()` returned, unchanged")]
    Malformed(String),
    /// Written by a build with another format.
    #[error(
        "the loader state has format version {0}, this build reads version {VERSION}; use the fuelrail that wrote it"
    )]
    Version(u64),
    /// The checksum does not fit the contents.
    #[error(
        "the loader state was changed after it was saved (checksum {found}, expected {expected}); it is refused rather than trusted"
    )]
    Changed {
        /// Checksum in the token.
        found: String,
        /// Checksum of its contents.
        expected: String,
    },
    /// It belongs to another run.
    #[error("the loader state belongs to another run: {0}")]
    Foreign(String),
}

/// A part of the identity that the caller may allow to differ, by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Allow {
    /// Other transforms or dtype: the same samples in the same order, with other pixels.
    Pixels,
}

impl Token {
    /// The token of a place in a run; of a stream with the window it lies in.
    pub fn new(identity: Identity, cursor: Cursor, stream: Option<Place>) -> Self {
        let Cursor { epoch, position } = cursor;
        let check = checksum(&identity, cursor, stream.as_ref());
        Self { fuelrail: VERSION, identity, epoch, position, stream, check }
    }

    /// The place.
    pub fn cursor(&self) -> Cursor {
        Cursor { epoch: self.epoch, position: self.position }
    }

    /// The JSON that goes into a checkpoint.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("a token is plain data")
    }

    /// Reads a token back and checks that it is whole; [`Token::verify`] then checks that it is ours.
    ///
    /// # Errors
    /// [`TokenError::Malformed`], [`TokenError::Version`], [`TokenError::Changed`].
    pub fn from_json(text: &str) -> Result<Self, TokenError> {
        let value: serde_json::Value =
            serde_json::from_str(text).map_err(|error| TokenError::Malformed(fault(&error)))?;
        let version = value
            .as_object()
            .ok_or_else(|| TokenError::Malformed("it is not a dictionary".into()))?
            .get("fuelrail")
            .and_then(serde_json::Value::as_u64)
            .ok_or_else(|| {
                TokenError::Malformed("it has no format version under the key 'fuelrail'".into())
            })?;
        if version != u64::from(VERSION) {
            return Err(TokenError::Version(version));
        }
        let token: Self =
            serde_json::from_value(value).map_err(|error| TokenError::Malformed(fault(&error)))?;
        let expected = checksum(&token.identity, token.cursor(), token.stream.as_ref());
        if token.check != expected {
            return Err(TokenError::Changed { found: token.check, expected });
        }
        Ok(token)
    }

    /// Checks that the token continues the run described by `ours`.
    ///
    /// # Errors
    /// [`TokenError::Foreign`] with the difference.
    pub fn verify(&self, ours: &Identity, allow: &[Allow]) -> Result<(), TokenError> {
        let theirs = &self.identity;
        let mut differences = Vec::new();
        if theirs.dataset != ours.dataset {
            let named = named(theirs, ours, |key| OF_DATA.contains(&key));
            let samples =
                |of: &Identity| of.samples.map_or("a stream".into(), |samples| format!("{samples} samples"));
            let otherwise = format!(
                "the dataset differs (saved with {}, fingerprint {}; now {}, fingerprint {}): files were added, removed or \
                 changed, or it is another folder",
                samples(theirs),
                theirs.dataset,
                samples(ours),
                ours.dataset
            );
            differences.push(named.unwrap_or(otherwise));
        }
        if theirs.seed != ours.seed {
            differences.push(format!("the seed differs (saved {}, now {})", theirs.seed, ours.seed));
        }
        if theirs.order != ours.order {
            let named = named(theirs, ours, |key| !OF_DATA.contains(&key));
            let otherwise = || "the order differs (shuffle, blocks or on_error was changed)".into();
            differences.push(named.unwrap_or_else(otherwise));
        }
        if theirs.pixels != ours.pixels && !allow.contains(&Allow::Pixels) {
            differences.push(
                "the pixels differ (transforms or dtype were changed; allow it with load_state_dict(..., allow=[\"pixels\"]))"
                    .into(),
            );
        }
        match (&self.stream, ours.samples) {
            (None, None) => {
                differences.push("it was saved from an indexed source, and this is a stream".into())
            }
            (Some(_), Some(_)) => {
                differences.push("it was saved from a stream, and this is an indexed source".into());
            }
            (Some(place), _) if !place.holds(self.cursor()) => {
                differences.push(format!("its position {} does not lie in its window", self.position));
            }
            _ => {}
        }
        if let Some(samples) =
            ours.samples.filter(|samples| differences.is_empty() && self.position > *samples)
        {
            differences
                .push(format!("its position {} is after the last of {samples} samples", self.position));
        }
        if differences.is_empty() { Ok(()) } else { Err(TokenError::Foreign(differences.join("; "))) }
    }
}

/// Choices of data; the others are of an order.
const OF_DATA: [&str; 2] = ["split", "where"];

/// The choices of a kind that differ, by name, if any do: they explain why all else differs.
fn named(theirs: &Identity, ours: &Identity, is_of_kind: impl Fn(&str) -> bool) -> Option<String> {
    let (theirs, ours) = (&theirs.chosen, &ours.chosen);
    let keys = theirs.keys().chain(ours.keys().filter(|key| !theirs.contains_key(*key)));
    let differing = keys.filter(|key| is_of_kind(key) && theirs.get(*key) != ours.get(*key));
    let shown = |of: &BTreeMap<String, String>, key: &String| {
        // A part by a fraction has no name here.
        let none = || if key == "split" { "another or none" } else { "none" }.to_owned();
        of.get(key).map_or_else(none, |value| format!("\"{value}\""))
    };
    let said: Vec<String> = differing
        .map(|key| format!("{key} differs (saved with {}, now {})", shown(theirs, key), shown(ours, key)))
        .collect();
    (!said.is_empty()).then(|| said.join("; "))
}

/// A choice in few words: long ones are cut, with a hash of the whole.
pub fn in_few_words(choice: &str) -> String {
    const LONGEST: usize = 120;
    match choice.char_indices().nth(LONGEST) {
        None => choice.to_owned(),
        Some((at, _)) => format!("{}… {:016x}", &choice[..at], xxh3_64(choice.as_bytes())),
    }
}

fn checksum(identity: &Identity, cursor: Cursor, stream: Option<&Place>) -> String {
    let Identity { dataset, order, pixels, seed, samples, chosen } = identity;
    let samples = samples.unwrap_or(samples::OF_A_STREAM);
    let Cursor { epoch, position } = cursor;
    let mut text = format!("{VERSION}|{dataset}|{order}|{pixels}|{seed}|{samples}|{epoch}|{position}");
    if !chosen.is_empty() {
        text.push_str(&format!("|{chosen:?}"));
    }
    if let Some(place) = stream {
        text.push('|');
        text.push_str(&serde_json::to_string(place).expect("a place is plain data"));
    }
    format!("{:016x}", xxh3_64(text.as_bytes()))
}

/// What is wrong with a token, without the words of the JSON reader.
fn fault(error: &serde_json::Error) -> String {
    if error.is_syntax() || error.is_eof() {
        return "it is not JSON, or was cut off".into();
    }
    // The reader names keys in back quotes.
    let text = error.to_string();
    match text.split('`').nth(1) {
        Some(key) => format!("its key {key:?} is missing or has another type"),
        None => "one of its values has another type".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn identity() -> Identity {
        Identity {
            dataset: "d1".into(),
            order: "o1".into(),
            pixels: "p1".into(),
            seed: 3,
            samples: Some(1000),
            chosen: BTreeMap::new(),
        }
    }

    fn chosen(key: &str, value: &str) -> Identity {
        let both = format!("{key} {value}");
        let (dataset, order) = if key == "order" { ("d1".into(), both) } else { (both, "o1".into()) };
        Identity { dataset, order, chosen: [(key.to_owned(), value.to_owned())].into(), ..identity() }
    }

    fn token() -> Token {
        Token::new(identity(), Cursor { epoch: 4, position: 128 }, None)
    }

    fn of_stream() -> Token {
        let state = serde_json::json!({"partitions": {"t": [[0, 5, 25], [1, 0, 20]]}, "hash": "00"});
        let place = Place { epoch: 0, window: 3, first: 100, count: 40, state };
        let identity = Identity { samples: None, ..identity() };
        Token::new(identity, Cursor { epoch: 0, position: 128 }, Some(place))
    }

    #[test]
    fn a_token_of_a_stream_names_the_window_it_lies_in() {
        let token = of_stream();
        let back = Token::from_json(&token.to_json()).unwrap();
        assert_eq!(back, token);
        back.verify(&token.identity, &[]).unwrap();
        let elsewhere =
            Token::new(token.identity.clone(), Cursor { epoch: 0, position: 141 }, token.stream.clone());
        let error = elsewhere.verify(&token.identity, &[]).unwrap_err().to_string();
        assert!(error.contains("does not lie in its window"), "{error}");
        let without = Token::new(token.identity.clone(), token.cursor(), None);
        assert!(without.verify(&token.identity, &[]).unwrap_err().to_string().contains("this is a stream"));
        let error = token.verify(&identity(), &[]).unwrap_err().to_string();
        assert!(error.contains("it was saved from a stream"), "{error}");
    }

    #[test]
    fn a_token_comes_back_whole_and_is_small() {
        let json = token().to_json();
        assert!(json.len() < 512, "{json}");
        let back = Token::from_json(&json).unwrap();
        assert_eq!(back, token());
        back.verify(&identity(), &[]).unwrap();
    }

    #[test]
    fn a_token_of_another_run_is_refused_with_the_difference() {
        let refuse = |ours: Identity| token().verify(&ours, &[]).unwrap_err().to_string();
        assert!(
            refuse(Identity { dataset: "d2".into(), samples: Some(999), ..identity() })
                .contains("1000 samples")
        );
        assert!(refuse(Identity { seed: 4, ..identity() }).contains("saved 3, now 4"));
        assert!(refuse(Identity { order: "o2".into(), ..identity() }).contains("on_error"));
        assert!(refuse(Identity { pixels: "p2".into(), ..identity() }).contains("allow"));
        token().verify(&Identity { pixels: "p2".into(), ..identity() }, &[Allow::Pixels]).unwrap();
    }

    #[test]
    fn what_was_chosen_otherwise_is_named_in_place_of_what_follows_from_it() {
        let token = Token::new(chosen("where", "score > 0.3"), Cursor::default(), None);
        let read = Token::from_json(&token.to_json()).unwrap();
        assert_eq!(read, token);
        let error = read.verify(&chosen("where", "score > 0.5"), &[]).unwrap_err().to_string();
        assert!(
            error.ends_with("where differs (saved with \"score > 0.3\", now \"score > 0.5\")"),
            "{error}"
        );
        let error = read.verify(&identity(), &[]).unwrap_err().to_string();
        assert!(error.contains("where differs (saved with \"score > 0.3\", now none)"), "{error}");
        let error = self::token().verify(&chosen("split", "fold 1/5"), &[]).unwrap_err().to_string();
        assert!(error.contains("split differs (saved with another or none, now \"fold 1/5\")"), "{error}");
        let of_order = Token::new(chosen("order", "4 records"), Cursor::default(), None);
        let error = of_order.verify(&chosen("order", "3 records"), &[]).unwrap_err().to_string();
        assert!(
            error.ends_with("run: order differs (saved with \"4 records\", now \"3 records\")"),
            "{error}"
        );
        let elsewhere = Identity { dataset: "d2".into(), ..chosen("order", "3 records") };
        assert!(of_order.verify(&elsewhere, &[]).unwrap_err().to_string().contains("the dataset differs"));
        // A token from before choices had names.
        let older =
            Token::new(Identity { chosen: BTreeMap::new(), ..chosen("split", "a") }, Cursor::default(), None);
        older.verify(&chosen("split", "a"), &[]).unwrap();
        let edited = token.to_json().replace("score > 0.3", "score > 0.4");
        assert!(matches!(Token::from_json(&edited), Err(TokenError::Changed { .. })));
        let long = in_few_words(&"x".repeat(10_000));
        assert!(long.len() < 150 && long != in_few_words(&"x".repeat(10_001)));
    }

    #[test]
    fn other_versions_and_other_things_are_refused() {
        assert_eq!(Token::from_json(r#"{"fuelrail": 2}"#), Err(TokenError::Version(2)));
        assert!(matches!(Token::from_json(r#"{"epoch": 2}"#), Err(TokenError::Malformed(_))));
        assert!(matches!(Token::from_json("[1]"), Err(TokenError::Malformed(_))));
        let mut cut: serde_json::Value = serde_json::from_str(&token().to_json()).unwrap();
        cut.as_object_mut().unwrap().remove("epoch");
        for (text, said) in [
            (cut.to_string(), "its key \"epoch\" is missing or has another type"),
            (token().to_json()[..40].to_owned(), "it is not JSON, or was cut off"),
        ] {
            let error = Token::from_json(&text).unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        }
        assert!(matches!(Token::from_json(""), Err(TokenError::Malformed(_))));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn a_mutated_token_is_refused(at: prop::sample::Index, byte: u8) {
            for token in [token(), of_stream(), Token::new(chosen("where", "a > 1"), Cursor::default(), None)] {
                let mut bytes = token.to_json().into_bytes();
                let at = at.index(bytes.len());
                bytes[at] = byte;
                if let Ok(text) = String::from_utf8(bytes)
                    && let Ok(read) = Token::from_json(&text)
                {
                    prop_assert_eq!(read, token, "a changed token was accepted: {}", text);
                }
            }
        }

        #[test]
        fn a_cut_token_is_refused(at: prop::sample::Index) {
            let json = token().to_json();
            prop_assert!(Token::from_json(&json[..at.index(json.len())]).is_err());
        }
    }
}
