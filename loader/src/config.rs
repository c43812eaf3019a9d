//! What a pipeline is, as plain data: the same structs in `pipelines.toml`, on the socket and in Python.
//!
//! Unknown keys are refused, units are in the names, and [`Default`] is the list of defaults.

mod file;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use fuelrail_connectors::settings::{self, Wrong};
use fuelrail_connectors::{Blocks, ReaderConfig, SourceConfig};
use fuelrail_transforms::{Dtype, Layout, Limits, TransformConfig, Truncated};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use serde_json::Value;
use xxhash_rust::xxh3::xxh3_128;

use crate::fields::{self, FieldConfig};

/// The daemon's configuration file.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DaemonConfig {
    /// Pipelines by name.
    #[serde(default)]
    pub pipelines: BTreeMap<String, PipelineConfig>,
    /// Folders from which clients may read with a pipeline of their own; none: only the named pipelines.
    #[serde(default)]
    pub roots: Vec<PathBuf>,
}

/// One pipeline: a source, a transform chain, and how batches are made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PipelineConfig {
    /// Where the records come from: an address as text, or a source of a type with its keys.
    pub source: SourceConfig,
    /// What is done to each image, in order; without a list of fields.
    #[serde(default)]
    pub transforms: Vec<TransformConfig>,
    /// What a batch holds, field by field. Absent: the image that the source finds by itself, through `transforms`, and
    /// the numbers that the source's own keys list.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fields: Option<Vec<FieldConfig>>,
    /// Rows per batch and rank.
    #[serde(default = "one")]
    pub batch_size: u64,
    /// Whether a last batch that is not full is left out.
    #[serde(default)]
    pub drop_last: bool,
    /// Whether every epoch has a new order.
    #[serde(default)]
    pub shuffle: bool,
    /// Seed of order and augmentation.
    #[serde(default)]
    pub seed: u64,
    /// Draws classes or records in chosen proportions, or in a given order, instead of each record once an epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sampling: Option<Sampling>,
    /// Blocked order: keeps the reads of sharded sources sequential. Absent: the source's own hint decides.
    #[serde(default)]
    pub blocked: Option<BlockedConfig>,
    /// Element type of images; absent: f32 with a Normalize, u8 without.
    #[serde(default)]
    pub dtype: Option<Dtype>,
    /// Memory order of images.
    #[serde(default = "nchw")]
    pub layout: Layout,
    /// Who makes floats of images: the daemon, or its clients of the bytes that it sends.
    #[serde(default)]
    pub finish: Finish,
    /// Worker threads; 0 = one per core that the process may use.
    #[serde(default)]
    pub num_workers: u32,
    /// Finished batches kept ahead of the consumer.
    #[serde(default = "two")]
    pub prefetch_factor: u32,
    /// How files are read.
    #[serde(default)]
    pub read: ReaderConfig,
    /// Encoded bytes in flight: read ahead, waiting for a worker, or with one.
    #[serde(default = "read_ahead")]
    pub read_ahead_bytes: u64,
    /// Most decoded bytes of one sample, at four bytes a pixel; a larger one is a bad record. The default, 256 MiB, is
    /// 67 million pixels; Pillow warns of decompression bombs from 89 million on.
    #[serde(default = "max_sample")]
    pub max_sample_bytes: u64,
    /// What becomes of an image whose data end before its picture does.
    #[serde(default)]
    pub truncated: Truncated,
    /// What a bad record leads to.
    #[serde(default)]
    pub on_error: OnError,
    /// Bad records tolerated: a share of the source (0.01 or "1%"), or a number of records (5).
    #[serde(default)]
    pub error_budget: ErrorBudget,
    /// Where refused records are listed (JSON lines, appended).
    #[serde(default)]
    pub quarantine: Option<PathBuf>,
    /// Several clients get every batch, from one decode. Absent: each client's batches are made for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub share: Option<ShareConfig>,
}

/// How clients share a feed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShareConfig {
    /// Which feed: clients that name the same one share it.
    pub name: String,
    /// The first batch waits for so many clients.
    #[serde(default = "one_client")]
    pub clients: u32,
    /// What becomes of a client that holds up the others.
    #[serde(default)]
    pub laggards: OnLag,
    /// How long it is waited for before it is detached, in seconds.
    #[serde(default = "a_minute")]
    pub patience_s: u64,
}

/// What becomes of a client that holds up the others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnLag {
    /// They wait.
    #[default]
    Wait,
    /// It is let go, with an error that says so.
    Detach,
}

fn one_client() -> u32 {
    1
}
fn a_minute() -> u64 {
    60
}

/// Who makes floats of images.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Finish {
    /// The daemon: batches are what was asked for.
    #[default]
    Daemon,
    /// The client, on its device: bytes are sent, a quarter of the floats. Erasing with random values stays the
    /// daemon's.
    Client,
}

fn one() -> u64 {
    1
}
fn two() -> u32 {
    2
}
fn nchw() -> Layout {
    Layout::Nchw
}
fn read_ahead() -> u64 {
    64 << 20
}
fn max_sample() -> u64 {
    Limits::default().max_sample_bytes
}

/// How an epoch draws records. The order is random in any case but those of `Order` and `Repeated`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum Sampling {
    /// Every class equally often.
    ClassBalanced {
        /// Draws in an epoch, rounded up to a multiple of the classes. Default: the number of records.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        samples_per_epoch: Option<u64>,
    },
    /// Classes in these shares.
    ClassShares {
        /// Each class's share of the draws, relative to the others; every class that has records is in it.
        shares: BTreeMap<String, f64>,
        /// Draws in an epoch. Default: the number of records.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        samples_per_epoch: Option<u64>,
    },
    /// Records in an order from outside: the same in every epoch, or one for each.
    Order {
        /// A .npy file of record numbers: a row of them, or a row for each epoch.
        indices: PathBuf,
    },
    /// Each record at several positions next to each other.
    Repeated {
        /// How many.
        repeats: u32,
        /// Positions in an epoch. Default: all of them.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        samples_per_epoch: Option<u64>,
    },
    /// So many records of a class in every batch that has the class.
    PerClass {
        /// How many; they divide a batch.
        per_class: u64,
        /// Rows in an epoch, rounded down to whole batches. Default: the number of records.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        samples_per_epoch: Option<u64>,
    },
    /// Records by weights of their own.
    Weights {
        /// A .npy file with one number a record, in index order: its expected number of draws, relative to the others.
        file: PathBuf,
        /// Draws in an epoch. Default: the number of records.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        samples_per_epoch: Option<u64>,
    },
}

impl Sampling {
    /// The file that it is made of, and its key.
    pub fn file(&self) -> Option<(&'static str, &Path)> {
        match self {
            Self::Weights { file, .. } => Some(("file", file)),
            Self::Order { indices } => Some(("indices", indices)),
            _ => None,
        }
    }
}

/// The blocked order's two figures.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BlockedConfig {
    /// Parallel sequential readers.
    #[serde(default = "lanes")]
    pub lanes: u64,
    /// Rows shuffled together within a lane.
    #[serde(default = "window")]
    pub window: u64,
}

fn lanes() -> u64 {
    Blocks::LANES
}
fn window() -> u64 {
    Blocks::WINDOW
}

/// What a bad record leads to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnError {
    /// Another record takes its row, flagged in `batch["substituted"]`; shapes and counts stay.
    #[default]
    Substitute,
    /// Its row is left out; the batch is shorter.
    Drop,
    /// The run stops.
    Fail,
}

/// How many bad records a run may meet.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum ErrorBudget {
    /// This share of the source, from 0 to 1.
    Share(f64),
    /// This many records.
    Count(u64),
}

impl Default for ErrorBudget {
    fn default() -> Self {
        Self::Share(0.01)
    }
}

impl ErrorBudget {
    /// Bad records tolerated in a source of `len` records. A share is rounded up, and never below 16, so that one bad
    /// file in a small folder does not end a run.
    pub fn limit(self, len: u64) -> u64 {
        match self {
            Self::Share(0.0) => 0,
            Self::Share(share) => ((len as f64 * share).ceil() as u64).max(16),
            Self::Count(count) => count,
        }
    }

    /// 0.01 is a share and 5 a count, also when it is written 5.0. But 1.0 may be meant as everything or as one record.
    fn of_number(number: f64) -> Result<Self, String> {
        if number == 1.0 {
            return Err(
                "1.0 may mean one record or all of them; write 1 for one record, \"100%\" for all".into()
            );
        }
        if number < 0.0 || number.is_nan() || (number > 1.0 && number.fract() != 0.0) {
            return Err(format!("it takes {BUDGET}, not {number}"));
        }
        Ok(if number < 1.0 { Self::Share(number) } else { Self::Count(number as u64) })
    }

    fn of_text(text: &str) -> Result<Self, String> {
        let percent = text.trim().strip_suffix('%').and_then(|number| number.trim().parse::<f64>().ok());
        match percent {
            Some(percent) if (0.0..=100.0).contains(&percent) => Ok(Self::Share(percent / 100.0)),
            _ => Err(format!("it takes {BUDGET}, not the text {text:?}")),
        }
    }
}

const BUDGET: &str = "a share of the records below 1 (0.01, or \"1%\"), or a whole number of records";

impl Serialize for ErrorBudget {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Share(share) if *share < 1.0 => serializer.serialize_f64(*share),
            Self::Share(_) => serializer.serialize_str("100%"),
            Self::Count(count) => serializer.serialize_u64(*count),
        }
    }
}

impl<'de> Deserialize<'de> for ErrorBudget {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl de::Visitor<'_> for Visitor {
            type Value = ErrorBudget;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(BUDGET)
            }

            fn visit_u64<E: de::Error>(self, count: u64) -> Result<ErrorBudget, E> {
                Ok(ErrorBudget::Count(count))
            }

            fn visit_f64<E: de::Error>(self, number: f64) -> Result<ErrorBudget, E> {
                ErrorBudget::of_number(number).map_err(E::custom)
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<ErrorBudget, E> {
                ErrorBudget::of_text(text).map_err(E::custom)
            }
        }

        deserializer.deserialize_any(Visitor)
    }
}

/// A source is written as plain text or as a table; of a table without a type, the address says what it is.
fn complete(pipeline: &mut Value) {
    let Some(source) = pipeline.get_mut("source") else { return };
    if source.is_string() || source.is_array() {
        *source = serde_json::json!({"type": "address", "address": source});
    } else if let Some(table) = source.as_object_mut() {
        if table.contains_key("address") && !table.contains_key("type") {
            table.insert("type".into(), "address".into());
        }
        // A part of a mixture has its source under the same key.
        if let Some(parts) = table.get_mut("parts").and_then(Value::as_array_mut) {
            parts.iter_mut().for_each(complete);
        }
    }
}

impl DaemonConfig {
    fn from_value(mut value: Value) -> Result<Self, Wrong> {
        if let Some(pipelines) = value.get_mut("pipelines").and_then(Value::as_object_mut) {
            pipelines.values_mut().for_each(complete);
        }
        settings::read(&value)
    }
}

impl PipelineConfig {
    /// Reads a pipeline from JSON, naming the key that is wrong.
    ///
    /// # Errors
    /// A sentence with the key.
    pub fn from_json(mut value: Value) -> Result<Self, String> {
        complete(&mut value);
        let config: Self = settings::read(&value).map_err(|wrong| wrong.to_string())?;
        config.check()?;
        Ok(config)
    }

    /// Checks what the types cannot.
    ///
    /// # Errors
    /// A sentence with the key and what to do.
    pub fn check(&self) -> Result<(), String> {
        if self.batch_size == 0 || self.batch_size > 1 << 20 {
            return Err(format!("batch_size = {} is not between 1 and {}", self.batch_size, 1 << 20));
        }
        if self.prefetch_factor == 0 || self.prefetch_factor > 64 {
            return Err(format!("prefetch_factor = {} is not between 1 and 64", self.prefetch_factor));
        }
        if let Some(share) = &self.share {
            let range = |name: &str, value: u64, most: u64| match (1..=most).contains(&value) {
                true => Ok(()),
                false => Err(format!("share.{name} = {value} is not between 1 and {most}")),
            };
            range("clients", u64::from(share.clients), 256)?;
            range("patience_s", share.patience_s, 86_400)?;
            if share.name.is_empty() || share.name.len() > 100 {
                return Err("share.name is the name of a feed, of 1 to 100 bytes".into());
            }
        }
        if self.num_workers > 1024 {
            return Err(format!(
                "num_workers = {} is more than 1024; 0 means one per core",
                self.num_workers
            ));
        }
        self.read.check().map_err(|error| format!("read.{error}"))
    }

    /// The source, asked for what the fields are made of.
    pub fn source_of_fields(&self) -> SourceConfig {
        match &self.fields {
            Some(fields) => self.source.clone().delivering(&fields::wanted(fields)),
            None => self.source.clone(),
        }
    }

    /// Fingerprint of everything that decides the pixels, and whatever else a row holds.
    pub fn pixels_fingerprint(&self, dtype: Option<Dtype>) -> String {
        if let Some(fields) = &self.fields {
            return fingerprint(&(fields, dtype, self.truncated));
        }
        match self.truncated {
            // As it was before there was a choice, so that older tokens fit.
            Truncated::Bad => fingerprint(&(&self.transforms, dtype)),
            Truncated::Fill => fingerprint(&(&self.transforms, dtype, self.truncated)),
        }
    }
}

fn fingerprint<T: Serialize>(value: &T) -> String {
    format!("{:032x}", xxh3_128(&serde_json::to_vec(value).expect("configuration is plain data")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn minimal() -> serde_json::Value {
        json!({"source": {"type": "folder", "root": "/data"}})
    }

    #[test]
    fn truncated_images_are_bad_unless_asked_for_and_only_then_the_fingerprint_changes() {
        let parse = |value: &str| {
            let mut config = minimal();
            config["truncated"] = json!(value);
            PipelineConfig::from_json(config)
        };
        let default = PipelineConfig::from_json(minimal()).unwrap();
        assert_eq!(default.truncated, Truncated::Bad);
        let fingerprint = default.pixels_fingerprint(None);
        assert_eq!(fingerprint, super::fingerprint(&(&default.transforms, None::<Dtype>)));
        assert_eq!(parse("bad").unwrap().pixels_fingerprint(None), fingerprint);
        assert_ne!(parse("fill").unwrap().pixels_fingerprint(None), fingerprint);
        assert!(parse("fine").unwrap_err().to_string().contains("truncated"));
    }

    #[test]
    fn a_source_alone_is_a_pipeline() {
        let config = PipelineConfig::from_json(minimal()).unwrap();
        assert_eq!((config.batch_size, config.prefetch_factor, config.on_error), (1, 2, OnError::Substitute));
    }

    #[test]
    fn a_misspelt_key_is_named() {
        let mut value = minimal();
        value["batchsize"] = json!(3);
        assert!(PipelineConfig::from_json(value).unwrap_err().contains("batchsize"));
    }

    #[test]
    fn a_value_of_the_wrong_type_is_named_with_its_key() {
        for (key, bad, named) in [
            ("batch_size", json!(-1), "batch_size"),
            ("layout", json!("chw"), "layout"),
            (
                "transforms",
                json!([{"type": "RandomHorizontalFlip"}, {"type": "Resize", "sze": 3}]),
                "transforms[1] Resize",
            ),
        ] {
            let mut value = minimal();
            value[key] = bad;
            let error = PipelineConfig::from_json(value).unwrap_err();
            assert!(error.starts_with(&format!("{named}: ")), "{error}");
        }
    }

    #[test]
    fn a_wrong_value_is_named_by_its_key() {
        let mut value = minimal();
        value["read"] = json!({"backend": "magic"});
        let error = PipelineConfig::from_json(value).unwrap_err();
        assert!(
            error.starts_with("read.backend") && error.contains("\"magic\" is not one of \"auto\""),
            "{error}"
        );
        let mut value = minimal();
        value["batch_size"] = json!("many");
        assert!(PipelineConfig::from_json(value).unwrap_err().starts_with("batch_size: "));
    }

    #[test]
    fn values_out_of_range_are_named() {
        for (key, bad) in
            [("batch_size", json!(0)), ("prefetch_factor", json!(0)), ("error_budget", json!(-1.0))]
        {
            let mut value = minimal();
            value[key] = bad;
            assert!(PipelineConfig::from_json(value).unwrap_err().contains(key), "{key}");
        }
    }

    #[test]
    fn the_error_budget_is_a_share_or_a_count() {
        let budget = |value: Value| {
            let mut pipeline = minimal();
            pipeline["error_budget"] = value;
            let config = PipelineConfig::from_json(pipeline)?;
            let again = PipelineConfig::from_json(serde_json::to_value(&config).unwrap()).unwrap();
            assert_eq!(config, again);
            Ok::<_, String>(config.error_budget)
        };
        for (value, len, limit) in [
            (json!(0.01), 10_000, 100),
            (json!(0.01), 10, 16),
            (json!("1%"), 10_000, 100),
            (json!("2.5 %"), 10_000, 250),
            (json!("100%"), 10_000, 10_000),
            (json!(5), 10, 5),
            (json!(5.0), 10, 5),
            (json!(1), 10_000, 1),
            (json!(0), 10, 0),
            (json!(0.0), 10, 0),
        ] {
            assert_eq!(budget(value.clone()).unwrap().limit(len), limit, "{value}");
        }
        for wrong in
            [json!(1.0), json!(1.5), json!(-1), json!(-0.5), json!("many"), json!("101%"), json!(null)]
        {
            let error = budget(wrong.clone()).unwrap_err();
            assert!(error.starts_with("error_budget: ") && error.contains("record"), "{wrong}: {error}");
        }
        assert!(budget(json!(1.0)).unwrap_err().contains("write 1 for one record, \"100%\" for all"));
    }

    #[test]
    fn the_example_file_is_a_configuration() {
        let daemon = DaemonConfig::from_toml(include_str!("../../examples/pipelines.toml")).unwrap();
        assert_eq!(daemon.pipelines.keys().collect::<Vec<_>>(), ["train", "val"]);
        for pipeline in daemon.pipelines.values() {
            pipeline.check().unwrap();
        }
    }

    /// A pipeline with every key.
    fn whole() -> Value {
        json!({
            "source": {"type": "mix", "parts": [{"source": "a.tar", "weight": 1, "name": "a"}, {"source": {"address": "b"}}]},
            "transforms": [
                {"type": "Resize", "size": [8, 8], "interpolation": "bilinear", "antialias": true},
                {"type": "RandomResizedCrop", "size": 8, "scale": [0.1, 1.0], "ratio": [0.5, 2.0]},
                {"type": "ColorJitter", "brightness": 0.1, "hue": [-0.1, 0.1]},
                {"type": "Pad", "padding": [1, 2], "fill": [0], "padding_mode": "edge"},
                {"type": "RandomErasing", "p": 0.5, "value": "random"},
                {"type": "Normalize", "mean": [0.5], "std": [0.5]},
            ],
            "batch_size": 4, "drop_last": true, "shuffle": true, "seed": 1,
            "sampling": {"type": "class_shares", "shares": {"a": 1.0}, "samples_per_epoch": 5},
            "blocked": {"lanes": 2, "window": 3}, "dtype": "f32", "layout": "nchw", "finish": "client", "num_workers": 1,
            "prefetch_factor": 2, "read": {"backend": "auto", "depth": 3}, "read_ahead_bytes": 1000,
            "max_sample_bytes": 1000, "truncated": "fill", "on_error": "drop", "error_budget": 0.1, "quarantine": "/tmp/x",
            "share": {"name": "trials", "clients": 2, "laggards": "detach", "patience_s": 5},
        })
    }

    /// Puts `wrong` in the place of every value below `value`, one after the other, and calls `check` with the whole.
    fn spoil(whole: &mut Value, at: &str, wrong: &Value, check: &mut impl FnMut(&Value, &str)) {
        let node = whole.pointer(at).unwrap().clone();
        let children: Vec<String> = match &node {
            Value::Object(table) => table.keys().cloned().collect(),
            Value::Array(list) => (0..list.len()).map(|at| at.to_string()).collect(),
            _ => Vec::new(),
        };
        for child in children {
            spoil(whole, &format!("{at}/{child}"), wrong, check);
        }
        *whole.pointer_mut(at).unwrap() = wrong.clone();
        check(whole, at);
        *whole.pointer_mut(at).unwrap() = node;
    }

    #[test]
    fn a_wrong_value_at_any_place_is_named_with_its_place_and_without_serdes_words() {
        let mut value = whole();
        PipelineConfig::from_json(value.clone()).unwrap();
        let wrongs = [
            json!(true),
            json!(-3),
            json!(2.5),
            json!("text"),
            json!([true]),
            json!({"b": true}),
            json!(null),
        ];
        let mut refused = 0;
        for wrong in &wrongs {
            spoil(&mut value, "", wrong, &mut |spoilt, at| {
                let Err(error) = PipelineConfig::from_json(spoilt.clone()) else { return };
                refused += 1;
                for word in [
                    "invalid type",
                    "invalid value",
                    "expected",
                    "unknown field",
                    "unknown variant",
                    "missing field",
                    "did not match",
                    "at line",
                    "struct ",
                    "enum ",
                    "u64",
                ] {
                    assert!(!error.contains(word), "{at} = {wrong} says: {error}");
                }
                let first = at.split('/').nth(1).unwrap_or_default();
                assert!(error.starts_with(first), "{at} = {wrong} says: {error}");
            });
        }
        assert!(refused > 250, "{refused}");
    }

    #[test]
    fn errors_of_transforms_and_samplings_are_sentences() {
        for (key, bad, said) in [
            ("batch_size", json!("8"), "batch_size: it takes a whole number, 0 or more, not the text \"8\""),
            (
                "batchsize",
                json!(8),
                "unknown key \"batchsize\"; did you mean \"batch_size\"? known keys: source, ",
            ),
            (
                "transforms",
                json!([{"type": "Resise"}]),
                "transforms[0].type: \"Resise\" is not one of \"Resize\", ",
            ),
            ("transforms", json!([{"size": 3}]), "transforms[0]: the key \"type\" is missing"),
            (
                "transforms",
                json!(["Resize"]),
                "transforms[0]: it takes a table with the key \"type\", not the text \"Resize\"",
            ),
            ("transforms", json!({"type": "Resize"}), "transforms: it takes a list, not a table"),
            (
                "transforms",
                json!([{"type": "Resize", "sise": 3}]),
                "transforms[0] Resize: unknown key \"sise\"; did you mean \"size\"?",
            ),
            (
                "transforms",
                json!([{"type": "Resize", "size": "big"}]),
                "transforms[0] Resize: size: it takes a whole number or [height, width], not the text \"big\"",
            ),
            (
                "transforms",
                json!([{"type": "Normalize", "mean": [0.5]}]),
                "transforms[0] Normalize: the key \"std\" is missing",
            ),
            (
                "transforms",
                json!([{"type": "RandomHorizontalFlip"}, {"type": "RandomVerticalFlip", "p": "x"}]),
                "transforms[1] RandomVerticalFlip: p: it takes a number, not the text \"x\"",
            ),
            (
                "transforms",
                json!([{"type": "RandomResizedCrop", "size": 8, "scale": [0.5]}]),
                "transforms[0] RandomResizedCrop: scale: it takes a list of 2 values, not 1 of them",
            ),
            ("sampling", json!({"type": "weights"}), "sampling: the key \"file\" is missing"),
            (
                "sampling",
                json!("balanced"),
                "sampling: it takes a table with the key \"type\", not the text \"balanced\"",
            ),
            (
                "layout",
                json!("chw"),
                "layout: \"chw\" is not one of \"nchw\", \"nhwc\"; did you mean \"nchw\"?",
            ),
            (
                "read",
                json!({"backend": "magic"}),
                "read.backend: \"magic\" is not one of \"auto\", \"io_uring\", \"threads\"",
            ),
            ("source", json!(5), "source: it takes a table with the key \"type\", not 5"),
        ] {
            let mut value = minimal();
            value[key] = bad;
            let error = PipelineConfig::from_json(value).unwrap_err();
            assert!(error.starts_with(said), "{error}\ndoes not begin with {said}");
        }
    }

    #[test]
    fn an_error_in_the_file_has_its_line_and_column() {
        for (text, said) in [
            (
                "[pipelines.a]\nsource = \"x\"\nbatch_size = \"8\"\n",
                "3:14: pipelines.a.batch_size: it takes a whole number, 0 or more, not the text \"8\"",
            ),
            (
                "[pipelines.a]\nsource = \"x\"\n\nbatchsize = 8\n",
                "4:13: pipelines.a: unknown key \"batchsize\"",
            ),
            (
                "[pipelines.a]\nsource = \"x\"\nbatch_size = 0\n",
                "3:14: pipelines.a.batch_size = 0 is not between 1 and",
            ),
            (
                "[pipelines.a]\nsource = {type = \"tar\", shards = [\"x\", 3]}\n",
                "2:40: pipelines.a.source.shards[1]: it takes text, not 3",
            ),
            ("[pipelines.a]\nbatch_size = 3\n", "1:12: pipelines.a: the key \"source\" is missing"),
            ("[piplines.a]\nsource = \"x\"\n", "1:2: unknown key \"piplines\"; did you mean \"pipelines\"?"),
            ("roots = \"/data\"\n", "1:9: roots: it takes a list, not the text \"/data\""),
            ("[pipelines.a\n", "1:13: "),
            (
                "[pipelines.a]\nsource = \"x\"\nerror_budget = 1.0\n",
                "3:16: pipelines.a.error_budget: 1.0 may mean",
            ),
            ("[pipelines.a]\nsource = \"x\"\nerror_budget = nan\n", "3:16: nan is not a number"),
        ] {
            let error = DaemonConfig::from_toml(text).unwrap_err();
            assert!(error.starts_with(said), "{error}\ndoes not begin with {said}");
        }
        let endless = DaemonConfig::from_toml("[pipelines.a]\nsource = \"x\"\nerror_budget = inf\n").unwrap();
        assert!(endless.pipelines["a"].error_budget.limit(1) > 1 << 60);
    }

    #[test]
    fn toml_and_json_are_the_same_pipeline() {
        let toml = r#"
            [pipelines.train]
            batch_size = 4
            shuffle = true
            source = { type = "folder", root = "/data" }
            [[pipelines.train.transforms]]
            type = "RandomHorizontalFlip"
            p = 0.5
        "#;
        let daemon = DaemonConfig::from_toml(toml).unwrap();
        let json = json!({"batch_size": 4, "shuffle": true, "source": {"type": "folder", "root": "/data"},
            "transforms": [{"type": "RandomHorizontalFlip", "p": 0.5}]});
        assert_eq!(daemon.pipelines["train"], PipelineConfig::from_json(json).unwrap());
    }
}
