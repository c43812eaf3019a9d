//! Configuration in, sentences out: reads a configuration from plain data, and says of one that is wrong where it is
//! wrong, what was given and what it takes.
//!
//! ```text
//!  serde_json::Value ──read()──▶ a configuration
//!                       └──────▶ Wrong: "transforms[1] Resize: unknown key "sze"; did you mean "size"? It takes …"
//! ```
//!
//! The types say what they take by their own `Deserialize`, so that there is no second list of keys. What serde reports
//! is caught as data (`Why`), for its words are for programmers. It does not report where; that is found by leaving
//! parts of the value out until the fault changes, which works through tagged enums and flattened tables alike.

use std::fmt;

use serde::de::value::{MapDeserializer, SeqDeserializer};
use serde::de::{DeserializeOwned, Deserializer, Error, Expected, IntoDeserializer, Unexpected, Visitor};
use serde::forward_to_deserialize_any;
use serde_json::Value;

pub use crate::json::{fault as json_fault, plain as json_plain};
use crate::sources::DELIVER;
use crate::{ArrayConfig, FolderConfig, Hdf5Config, KafkaConfig, SyntheticConfig, TableConfig, TarConfig};

/// A table with more keys is not searched for the wrong one; its own name has to do.
const SEARCHED_KEYS: usize = 1000;

/// Longer texts are cut where they are shown.
const SHOWN: usize = 60;

/// Reads a configuration.
///
/// # Errors
/// [`Wrong`], whose text names the key, what was given and what it takes.
pub fn read<T: DeserializeOwned>(value: &Value) -> Result<T, Wrong> {
    T::deserialize(Given(value)).map_err(|wrong| locate::<T>(value, wrong.why))
}

/// One step into a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Of a table.
    Key(String),
    /// Of a list, from 0.
    Index(usize),
}

/// What is wrong in a configuration, and where.
#[derive(Clone, Debug, PartialEq)]
pub struct Wrong {
    why: Why,
    steps: Vec<Step>,
    place: String,
}

/// What is wrong with a value.
#[derive(Clone, Debug, PartialEq)]
enum Why {
    Takes { takes: String, given: String },
    Length(String),
    Unknown { key: String, known: &'static [&'static str], hint: String },
    Choice { given: String, known: &'static [&'static str] },
    Missing(&'static str),
    Said(String),
}

impl Wrong {
    /// The way to the key that is wrong.
    pub fn steps(&self) -> &[Step] {
        &self.steps
    }

    fn new(why: Why) -> Self {
        Self { why, steps: Vec::new(), place: String::new() }
    }
}

impl std::error::Error for Wrong {}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.place.is_empty() {
            write!(f, "{}: ", self.place)?;
        }
        match &self.why {
            Why::Takes { takes, given } => write!(f, "it takes {takes}, not {given}"),
            Why::Length(said) | Why::Said(said) => f.write_str(said),
            Why::Unknown { key, hint, .. } if !hint.is_empty() => write!(f, "unknown key {key:?}; {hint}"),
            Why::Unknown { key, known, .. } => write!(f, "unknown key {key:?}; {}", known_keys(key, known)),
            Why::Choice { given, known } => {
                let near = given.trim_matches('"');
                let near = similar(near, known.iter().copied())
                    .map_or(String::new(), |near| format!("; did you mean {near:?}?"));
                write!(f, "{given} is not one of {}{near}", quoted(known))
            }
            Why::Missing(key) => write!(f, "the key {key:?} is missing"),
        }
    }
}

/// "did you mean "size"? It takes size, max_size".
fn known_keys(key: &str, known: &[&str]) -> String {
    let near =
        similar(key, known.iter().copied()).map_or(String::new(), |near| format!("did you mean {near:?}? "));
    match known {
        [] => format!("{near}it takes none"),
        known => format!("{near}known keys: {}", known.join(", ")),
    }
}

fn quoted(words: &[&str]) -> String {
    words.iter().map(|word| format!("{word:?}")).collect::<Vec<_>>().join(", ")
}

/// The one of `known` that was probably meant.
pub fn similar<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let plain = |text: &str| text.to_lowercase().replace('-', "_");
    let word = plain(word);
    let near = |name: &str| {
        let name = plain(name);
        let apart = strsim::damerau_levenshtein(&word, &name);
        let (short, long) = if word.len() < name.len() { (&word, &name) } else { (&name, &word) };
        // `label_column` for `label`, but not every word with an "a" in it for `a`.
        let holds = short.len() >= 4 && (long.starts_with(short.as_str()) || long.ends_with(short.as_str()));
        let close = apart <= (short.len() / 3).max(1) && apart < short.len();
        (close || holds).then_some(apart)
    };
    known.into_iter().filter_map(|name| near(name).map(|apart| (apart, name))).min().map(|(_, name)| name)
}

/// What serde calls a type, for people.
fn plain(expected: &dyn Expected) -> String {
    let text = expected.to_string();
    let whole = |most: u64| format!("a whole number from 0 to {most}");
    let list = |len: &str| format!("a list of {len} values");
    match text.as_str() {
        "u8" => whole(u64::from(u8::MAX)),
        "u16" => whole(u64::from(u16::MAX)),
        "u32" => whole(u64::from(u32::MAX)),
        "u64" | "usize" => "a whole number, 0 or more".into(),
        "i8" | "i16" | "i32" | "i64" | "isize" => "a whole number".into(),
        "f32" | "f64" => "a number".into(),
        "a boolean" => "true or false".into(),
        "a string" | "string" | "path string" | "string or map" | "a character" => "text".into(),
        "a sequence" => "a list".into(),
        "a map" => "a table of keys with values".into(),
        "variant identifier" => "a name".into(),
        other => {
            if let Some(len) =
                other.strip_prefix("an array of length ").or(other.strip_prefix("a tuple of size "))
            {
                list(len)
            } else if other.starts_with("internally tagged enum ") {
                "a table with the key \"type\"".into()
            } else if other.starts_with("struct ") || other.starts_with("enum ") {
                "a table of keys with values".into()
            } else if let Some(len) =
                other.strip_suffix(" elements in sequence").or(other.strip_suffix(" element in sequence"))
            {
                list(len)
            } else {
                text
            }
        }
    }
}

fn given(unexpected: Unexpected<'_>) -> String {
    match unexpected {
        Unexpected::Bool(truth) => truth.to_string(),
        Unexpected::Unsigned(number) => number.to_string(),
        Unexpected::Signed(number) => number.to_string(),
        Unexpected::Float(number) => format!("{number:?}"),
        Unexpected::Char(one) => shown(&one.to_string()),
        Unexpected::Str(text) => format!("the text {}", shown(text)),
        Unexpected::Unit | Unexpected::Option => "null".into(),
        Unexpected::Seq => "a list".into(),
        Unexpected::Map | Unexpected::NewtypeStruct => "a table".into(),
        Unexpected::Other(what) => what.into(),
        _ => "a value of another type".into(),
    }
}

/// A text in quotes, escaped, and cut when it is long.
fn shown(text: &str) -> String {
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{:?}…", &text[..end]),
        None => format!("{text:?}"),
    }
}

fn shown_value(value: &Value) -> String {
    match value {
        Value::String(text) => shown(text),
        Value::Array(_) => "a list".into(),
        Value::Object(_) => "a table".into(),
        other => other.to_string(),
    }
}

impl Error for Wrong {
    fn custom<T: fmt::Display>(said: T) -> Self {
        Self::new(Why::Said(said.to_string()))
    }

    fn invalid_type(unexpected: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::new(Why::Takes { takes: plain(expected), given: given(unexpected) })
    }

    fn invalid_value(unexpected: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::invalid_type(unexpected, expected)
    }

    fn invalid_length(len: usize, expected: &dyn Expected) -> Self {
        Self::new(Why::Length(format!("it takes {}, not {len} of them", plain(expected))))
    }

    fn unknown_variant(variant: &str, expected: &'static [&'static str]) -> Self {
        Self::new(Why::Choice { given: shown(variant), known: expected })
    }

    fn unknown_field(field: &str, expected: &'static [&'static str]) -> Self {
        Self::new(Why::Unknown { key: field.to_owned(), known: expected, hint: String::new() })
    }

    fn missing_field(field: &'static str) -> Self {
        Self::new(Why::Missing(field))
    }
}

/// Plain data as it was given, for serde.
#[derive(Clone, Copy)]
struct Given<'a>(&'a Value);

impl<'de> IntoDeserializer<'de, Wrong> for Given<'de> {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

impl<'de> Deserializer<'de> for Given<'de> {
    type Error = Wrong;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Wrong> {
        match self.0 {
            Value::Null => visitor.visit_unit(),
            Value::Bool(truth) => visitor.visit_bool(*truth),
            Value::Number(number) => match (number.as_u64(), number.as_i64()) {
                (Some(number), _) => visitor.visit_u64(number),
                (_, Some(number)) => visitor.visit_i64(number),
                _ => visitor.visit_f64(number.as_f64().unwrap_or(f64::NAN)),
            },
            Value::String(text) => visitor.visit_borrowed_str(text),
            Value::Array(list) => {
                let mut list = SeqDeserializer::new(list.iter().map(Given));
                let read = visitor.visit_seq(&mut list)?;
                list.end().map(|()| read)
            }
            Value::Object(table) => {
                let mut table =
                    MapDeserializer::new(table.iter().map(|(key, value)| (key.as_str(), Given(value))));
                let read = visitor.visit_map(&mut table)?;
                table.end().map(|()| read)
            }
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Wrong> {
        if self.0.is_null() { visitor.visit_none() } else { visitor.visit_some(self) }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Wrong> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Wrong> {
        // serde would take a list for a table, by the order of its keys.
        if self.0.is_array() {
            return Err(Wrong::invalid_type(Unexpected::Seq, &visitor));
        }
        self.deserialize_any(visitor)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Wrong> {
        match self.0 {
            Value::String(name) => visitor.visit_enum(name.as_str().into_deserializer()),
            other => Err(Wrong::new(Why::Choice { given: shown_value(other), known: variants })),
        }
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 u8 u16 u32 u64 f32 f64 char str string bytes byte_buf unit unit_struct seq tuple
        tuple_struct map identifier ignored_any
    }
}

/// The fault with the way to it.
fn locate<T: DeserializeOwned>(value: &Value, why: Why) -> Wrong {
    let mut whole = value.clone();
    let mut steps = Vec::new();
    while let Some(step) = culprit::<T>(&mut whole, &steps, &why) {
        steps.push(step);
    }
    let (mut why, mut around) = (why, &steps[..]);
    if let Why::Unknown { key, known, hint } = &mut why {
        // The key is named by the sentence itself.
        let is_last = matches!(steps.last(), Some(Step::Key(last)) if last == key);
        around = &steps[..steps.len() - usize::from(is_last)];
        let table = at(value, around);
        let kind = table.and_then(|table| table.get("type")).and_then(Value::as_str).unwrap_or_default();
        if SOURCES.iter().any(|source| source.kind == kind) {
            *hint = source_hint(kind, key, known);
        }
    }
    let place = place(value, around);
    Wrong { why, place, steps }
}

/// The part of what lies at `steps` without which the fault would be another one.
fn culprit<T: DeserializeOwned>(whole: &mut Value, steps: &[Step], why: &Why) -> Option<Step> {
    let node = at(whole, steps)?.clone();
    let mut with = |other: Value| {
        *at_mut(whole, steps).expect("it was there") = other;
        let found = T::deserialize(Given(whole)).err().map(|wrong| wrong.why);
        *at_mut(whole, steps).expect("it is there still") = node.clone();
        found
    };
    match &node {
        Value::Object(table) if table.len() <= SEARCHED_KEYS => {
            if let Why::Missing(key) = why {
                let mut more = table.clone();
                more.insert((*key).to_owned(), Value::Null);
                // Where it is known, it is missing here.
                match with(more.into()) {
                    Some(Why::Unknown { key: unknown, .. }) if unknown == *key => {}
                    other if other.as_ref() != Some(why) => return None,
                    _ => {}
                }
            }
            let mut needed = None;
            for key in table.keys().filter(|key| *key != "type") {
                let mut less = table.clone();
                less.remove(key);
                match with(less.into()) {
                    Some(Why::Missing(missing)) if missing == key => {
                        needed.get_or_insert(key);
                    }
                    Some(Why::Missing(_)) => {}
                    other if other.as_ref() != Some(why) => return Some(Step::Key(key.clone())),
                    _ => {}
                }
            }
            // Without its type a table is wrong in any case.
            let is_type = table.get("type").is_some_and(|kind| match why {
                Why::Choice { given, .. } => *given == shown_value(kind),
                Why::Takes { .. } => !kind.is_string(),
                _ => false,
            });
            needed.map(|key| Step::Key(key.clone())).or(is_type.then(|| Step::Key("type".into())))
        }
        Value::Array(list) => {
            let mut same = |len: usize| with(list[..len].to_vec().into()).as_ref() == Some(why);
            if same(0) {
                return None;
            }
            // Elements are read in order: the first that is wrong decides.
            let (mut good, mut bad) = (0, list.len());
            while bad - good > 1 {
                let middle = good + (bad - good) / 2;
                if same(middle) { bad = middle } else { good = middle }
            }
            let of_the_list = matches!(why, Why::Length(_))
                && !matches!(list.get(good), Some(Value::Array(_) | Value::Object(_)));
            (!list.is_empty() && !of_the_list).then_some(Step::Index(good))
        }
        _ => None,
    }
}

fn at<'a>(value: &'a Value, steps: &[Step]) -> Option<&'a Value> {
    steps.iter().try_fold(value, |value, step| match step {
        Step::Key(key) => value.get(key),
        Step::Index(index) => value.get(index),
    })
}

fn at_mut<'a>(value: &'a mut Value, steps: &[Step]) -> Option<&'a mut Value> {
    steps.iter().try_fold(value, |value, step| match step {
        Step::Key(key) => value.get_mut(key),
        Step::Index(index) => value.get_mut(index),
    })
}

/// "pipelines.train.transforms[1] Resize: size".
fn place(value: &Value, steps: &[Step]) -> String {
    let mut text = String::new();
    let mut is_transform = false;
    for (depth, step) in steps.iter().enumerate() {
        match step {
            Step::Key(key) => {
                let is_plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
                let key = if !key.is_empty() && key.chars().all(is_plain) { key.clone() } else { shown(key) };
                let between = if is_transform {
                    ": "
                } else if text.is_empty() {
                    ""
                } else {
                    "."
                };
                text += between;
                text += &key;
                is_transform = false;
            }
            Step::Index(index) => {
                text += &format!("[{index}]");
                let name =
                    at(value, &steps[..=depth]).and_then(|one| one.get("type")).and_then(Value::as_str);
                is_transform = matches!(depth.checked_sub(1).map(|before| &steps[before]), Some(Step::Key(key)) if key == "transforms")
                    && name.is_some_and(|name| name.chars().all(|c| c.is_ascii_alphanumeric()));
                // A type that is wrong itself names nothing.
                if is_transform && steps.get(depth + 1) != Some(&Step::Key("type".into())) {
                    text += &format!(" {}", name.unwrap_or_default());
                } else {
                    is_transform = false;
                }
            }
        }
    }
    text
}

/// A kind of source, for suggestions.
struct Source {
    /// Its `type`.
    kind: &'static str,
    /// What it is called in a sentence.
    name: &'static str,
    /// The keys that an address fills in.
    address: &'static [&'static str],
    /// All its keys.
    keys: fn() -> &'static [&'static str],
}

const SOURCES: [Source; 7] = [
    Source { kind: "folder", name: "image folders", address: &["root"], keys: keys::<FolderConfig> },
    Source { kind: "tar", name: "tar shards", address: &["shards"], keys: keys::<TarConfig> },
    Source {
        kind: "table",
        name: "tables (Parquet, Arrow, CSV, JSONL)",
        address: &["files"],
        keys: keys::<TableConfig>,
    },
    Source { kind: "hdf5", name: "HDF5 files", address: &["files"], keys: keys::<Hdf5Config> },
    Source { kind: "array", name: "NumPy arrays", address: &["files"], keys: keys::<ArrayConfig> },
    Source {
        kind: "kafka",
        name: "Kafka topics",
        address: &["servers", "topics"],
        keys: keys::<KafkaConfig>,
    },
    Source { kind: "synthetic", name: "synthetic sources", address: &[], keys: keys::<SyntheticConfig> },
];

/// What to say of a key that a source of this kind does not know.
fn source_hint(kind: &str, key: &str, known: &[&str]) -> String {
    let source = SOURCES.iter().find(|source| source.kind == kind);
    let (name, address) = source.map_or(("this source", &[][..]), |source| (source.name, source.address));
    // Whoever is told what it takes has written the address already.
    let options: Vec<_> =
        known.iter().copied().filter(|key| !address.contains(key) && *key != DELIVER).collect();
    let others: Vec<_> = SOURCES
        .iter()
        .filter(|other| other.kind != kind && (other.keys)().contains(&key) && !other.address.contains(&key))
        .map(|other| other.name)
        .collect();
    let takes = format!("{name} take {}", options.join(", "));
    match similar(key, known.iter().copied()) {
        Some(near) => format!("did you mean {near:?}? {takes}"),
        None if others.is_empty() => takes,
        None => {
            let (last, before) = others.split_last().expect("not empty");
            let all = if before.is_empty() {
                (*last).to_owned()
            } else {
                format!("{} and {last}", before.join(", "))
            };
            format!("it belongs to {all}; {takes}")
        }
    }
}

/// The keys of a configuration, from its own `Deserialize`.
fn keys<T: DeserializeOwned>() -> &'static [&'static str] {
    struct Asked;

    impl<'de> Deserializer<'de> for Asked {
        type Error = Wrong;

        fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Wrong> {
            Err(Wrong::unknown_field("", &[]))
        }

        fn deserialize_struct<V: Visitor<'de>>(
            self,
            _: &'static str,
            fields: &'static [&'static str],
            _: V,
        ) -> Result<V::Value, Wrong> {
            Err(Wrong::unknown_field("", fields))
        }

        forward_to_deserialize_any! {
            bool i8 i16 i32 i64 u8 u16 u32 u64 f32 f64 char str string bytes byte_buf option unit unit_struct
            newtype_struct seq tuple tuple_struct map enum identifier ignored_any
        }
    }

    match T::deserialize(Asked) {
        Err(Wrong { why: Why::Unknown { known, .. }, .. }) => known,
        _ => &[],
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{AddressConfig, SourceConfig};

    /// What only programmers say.
    const FOREIGN: [&str; 12] = [
        "invalid type",
        "invalid value",
        "invalid length",
        "expected one of",
        "unknown field",
        "unknown variant",
        "missing field",
        "did not match any variant",
        "at line",
        "struct ",
        "enum ",
        "u64",
    ];

    fn refusal(value: Value) -> String {
        let error = read::<SourceConfig>(&value).unwrap_err().to_string();
        for word in FOREIGN {
            assert!(!error.contains(word), "{value}\nsays: {error}");
        }
        error
    }

    #[test]
    fn a_wrong_value_of_any_key_of_any_source_is_named_without_serdes_words() {
        let wrong = [
            json!(true),
            json!(-5),
            json!(1.5),
            json!(1u64 << 40),
            json!("text"),
            json!([]),
            json!([true]),
            json!(["a", 5]),
            json!({"a": 1}),
            json!(null),
        ];
        let mut refused = 0;
        for source in &SOURCES {
            for key in (source.keys)() {
                for value in &wrong {
                    let mut table = json!({"type": source.kind});
                    for needed in source.address {
                        table[*needed] = if *needed == "root" { json!("x") } else { json!(["x"]) };
                    }
                    table[*key] = value.clone();
                    if read::<SourceConfig>(&table).is_err() {
                        let error = refusal(table.clone());
                        assert!(error.starts_with(key), "{table}\nsays: {error}");
                        refused += 1;
                    }
                }
            }
        }
        assert!(refused > 200, "{refused}");
    }

    #[test]
    fn an_error_says_where_what_was_given_and_what_it_takes() {
        for (value, said) in [
            (json!({"type": "tar", "shards": 5}), "shards: it takes a text, or a list of texts, not 5"),
            (json!({"type": "tar", "shards": ["x", 5, 5]}), "shards[1]: it takes text, not 5"),
            (json!({"type": "folder"}), "the key \"root\" is missing"),
            (json!({"type": "folder", "root": 5}), "root: it takes text, not 5"),
            (
                json!({"type": "synthetic", "count": "8"}),
                "count: it takes a whole number, 0 or more, not the text \"8\"",
            ),
            (
                json!({"type": "synthetic", "width": -1}),
                "width: it takes a whole number from 0 to 4294967295, not -1",
            ),
            (
                json!({"type": "synthetic", "count": 1.5}),
                "count: it takes a whole number, 0 or more, not 1.5",
            ),
            (json!({"type": "synthetic", "fail_rate": true}), "fail_rate: it takes a number, not true"),
            (
                json!({"type": "synthetic", "format": "jpg"}),
                "format: \"jpg\" is not one of \"bmp\", \"pnm\", \"png\", \"jpeg\"; did you mean \"jpeg\"?",
            ),
            (json!({"type": "synthetic", "format": 3}), "format: it takes text, not 3"),
            (
                json!({"type": "folder", "root": "x", "split": {"part": "test", "fraction": 0.1}}),
                "split.part: \"test\" is not one of \"train\", \"val\"",
            ),
            (
                json!({"type": "folder", "root": "x", "split": {"part": "val"}}),
                "split: the key \"fraction\" is missing",
            ),
            (
                json!({"type": "folder", "root": "x", "split": {"part": "val", "frac": 1}}),
                "split: unknown key \"frac\"; did you mean \"fraction\"? known keys: part, fraction, fold, folds",
            ),
            (
                json!({"type": "fodler"}),
                "type: \"fodler\" is not one of \"folder\", \"synthetic\", \"tar\", \"table\", \"hdf5\", \"array\", \
                 \"kafka\", \"subset\", \"mix\", \"address\"; did you mean \"folder\"?",
            ),
            (json!({"type": true}), "type: it takes a name, not true"),
            (json!({"root": "x"}), "the key \"type\" is missing"),
            (json!(5), "it takes a table with the key \"type\", not 5"),
            (
                json!({"type": "mix", "parts": [{"source": {"type": "tar", "shards": ["x"]}, "weight": "2"}]}),
                "parts[0].weight: it takes a number, not the text \"2\"",
            ),
            (
                json!({"type": "mix", "parts": [
                    {"source": {"type": "tar", "shards": ["x"]}}, {"source": {"type": "tar", "shards": [], "label": 3}}]}),
                "parts[1].source.label: it takes text, not 3",
            ),
            (
                json!({"type": "subset", "source": {"type": "tar", "shards": []}, "split": 3}),
                "split: it takes text like \"train[:90%]\", \"train[90%:]\" or \"fold 2/5\", not 3",
            ),
            (
                json!({"type": "table", "files": [], "cache": {"limit_bytes": "much"}}),
                "cache.limit_bytes: it takes a number of bytes, or a string like \"100gb\" or \"512 MiB\", not the text \"much\"",
            ),
        ] {
            assert_eq!(refusal(value.clone()), said, "{value}");
        }
    }

    #[test]
    fn a_key_of_another_source_says_whose_it_is_and_a_typo_what_was_meant() {
        let tar = |key: &str| refusal(json!({"type": "tar", "shards": [], (key): 1}));
        assert_eq!(
            tar("root"),
            "unknown key \"root\"; it belongs to tables (Parquet, Arrow, CSV, JSONL); tar shards take image, label, fields, \
             classes, cache"
        );
        assert!(
            tar("lable").starts_with("unknown key \"lable\"; did you mean \"label\"? tar shards take "),
            "{}",
            tar("lable")
        );
        assert!(tar("label_column").contains("did you mean \"label\"?"));
        assert!(tar("zzz").starts_with("unknown key \"zzz\"; tar shards take "));
        assert!(tar("window_records").contains("it belongs to Kafka topics"));
    }

    #[test]
    fn what_may_be_a_secret_is_not_shown() {
        for properties in
            [json!("sasl.password=hunter2"), json!({"sasl.password": ["hunter2"]}), json!(["hunter2"])]
        {
            let error = refusal(
                json!({"type": "kafka", "servers": ["a:1"], "topics": ["t"], "properties": properties}),
            );
            assert!(error.starts_with("properties") && !error.contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn the_wrong_one_of_many_is_found_fast() {
        let mut classes = vec![json!("a"); 100_000];
        classes[54_321] = json!(5);
        let error = refusal(json!({"type": "folder", "root": "x", "classes": classes}));
        assert_eq!(error, "classes[54321]: it takes text, not 5");
        let many: serde_json::Map<_, _> = (0..50_000).map(|at| (at.to_string(), json!(at))).collect();
        let error = refusal(json!({"type": "kafka", "servers": [], "topics": [], "start": many}));
        assert!(error.starts_with("start: "), "{error}");
    }

    #[test]
    fn an_address_and_its_options_are_read_by_the_same_rules() {
        let read = |value: Value| read::<AddressConfig>(&value).map_err(|wrong| wrong.to_string());
        assert_eq!(read(json!({"address": "x", "label": 5})).unwrap().options["label"], 5);
        let error = read(json!({"address": 5})).unwrap_err();
        assert_eq!(error, "address: it takes a text, or a list of texts, not 5");
        assert_eq!(read(json!({"address": "x", "base": 5})).unwrap_err(), "base: it takes text, not 5");
    }

    #[test]
    fn what_was_meant_is_what_looks_alike() {
        for (word, near) in [
            ("batchsize", Some("batch_size")),
            ("batch-size", Some("batch_size")),
            ("Seed", Some("seed")),
            ("sede", Some("seed")),
            ("shufle", Some("shuffle")),
            ("p", None),
            ("workers", Some("num_workers")),
            ("zebra", None),
        ] {
            let known = ["batch_size", "seed", "shuffle", "num_workers"];
            assert_eq!(similar(word, known), near, "{word}");
        }
    }
}
