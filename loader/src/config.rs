//! What a pipeline is, as plain data: the same structs in `pipelines.toml`, on the socket and in Python.
//!
//! Unknown keys are refused, units are in the names, and [`Default`] is the list of defaults.

use std::collections::BTreeMap;
use std::path::PathBuf;

use fuelrail_connectors::{Blocks, ReaderConfig, SourceConfig};
use fuelrail_transforms::{Dtype, Layout, TransformConfig};
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_128;

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
    #[serde(deserialize_with = "source")]
    pub source: SourceConfig,
    /// What is done to each, in order.
    #[serde(default)]
    pub transforms: Vec<TransformConfig>,
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
    /// Draws classes or records in chosen proportions instead of each record once an epoch.
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
    /// Most decoded bytes of one sample; a larger one is a bad record. The default, 256 MiB, is the 89 million RGB
    /// pixels at which Pillow starts to warn of decompression bombs.
    #[serde(default = "max_sample")]
    pub max_sample_bytes: u64,
    /// What a bad record leads to.
    #[serde(default)]
    pub on_error: OnError,
    /// Bad records tolerated: below 1 a share of the source, else a number of records.
    #[serde(default = "budget")]
    pub error_budget: f64,
    /// Where refused records are listed (JSON lines, appended).
    #[serde(default)]
    pub quarantine: Option<PathBuf>,
}

/// A source is written as plain text or as a table; of a table without a type, the address says what it is.
fn source<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<SourceConfig, D::Error> {
    use serde::de::Error;
    let mut value = serde_json::Value::deserialize(deserializer)?;
    if let serde_json::Value::String(address) = value {
        value = serde_json::json!({"type": "address", "address": address});
    } else if let Some(table) = value.as_object_mut()
        && table.contains_key("address")
        && !table.contains_key("type")
    {
        table.insert("type".into(), "address".into());
    }
    serde_json::from_value(value).map_err(Error::custom)
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
    256 << 20
}
fn budget() -> f64 {
    0.01
}

/// How an epoch draws records by weight. The order is random in any case.
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
    /// Records by weights of their own.
    Weights {
        /// A .npy file with one number a record, in index order: its expected number of draws, relative to the others.
        file: PathBuf,
        /// Draws in an epoch. Default: the number of records.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        samples_per_epoch: Option<u64>,
    },
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

impl PipelineConfig {
    /// Reads a pipeline from JSON, naming the key that is wrong.
    ///
    /// # Errors
    /// A sentence with the key.
    pub fn from_json(value: serde_json::Value) -> Result<Self, String> {
        // serde's own message says what is wrong, but not under which key.
        let config: Self = serde_path_to_error::deserialize(value).map_err(|error| {
            let path = error.path().to_string();
            let error = error.into_inner();
            if path == "." { error.to_string() } else { format!("{path}: {error}") }
        })?;
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
        if self.num_workers > 1024 {
            return Err(format!(
                "num_workers = {} is more than 1024; 0 means one per core",
                self.num_workers
            ));
        }
        if self.read.depth == 0 || self.read.depth > 4096 {
            return Err(format!("read.depth = {} is not between 1 and 4096", self.read.depth));
        }
        if self.error_budget.is_nan() || self.error_budget < 0.0 {
            return Err(format!(
                "error_budget = {} is not a share (below 1) or a number of records (1 and more)",
                self.error_budget
            ));
        }
        Ok(())
    }

    /// Bad records tolerated in a source of `len` records. A share is rounded up, and never below 16, so that one bad
    /// file in a small folder does not end a run.
    pub fn error_limit(&self, len: u64) -> u64 {
        if self.error_budget == 0.0 {
            0
        } else if self.error_budget < 1.0 {
            ((len as f64 * self.error_budget).ceil() as u64).max(16)
        } else {
            self.error_budget as u64
        }
    }

    /// Fingerprint of everything that decides the pixels.
    pub fn pixels_fingerprint(&self, dtype: Option<Dtype>) -> String {
        fingerprint(&(&self.transforms, dtype))
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
                "transforms[1]",
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
        assert!(error.starts_with("read.backend") && error.contains("`magic`, expected one of"), "{error}");
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
        let limit = |budget, len| {
            PipelineConfig { error_budget: budget, ..PipelineConfig::from_json(minimal()).unwrap() }
                .error_limit(len)
        };
        assert_eq!((limit(0.01, 10_000), limit(0.01, 10), limit(5.0, 10), limit(0.0, 10)), (100, 16, 5, 0));
    }

    #[test]
    fn the_example_file_is_a_configuration() {
        let daemon: DaemonConfig = toml::from_str(include_str!("../../examples/pipelines.toml")).unwrap();
        assert_eq!(daemon.pipelines.keys().collect::<Vec<_>>(), ["train", "val"]);
        for pipeline in daemon.pipelines.values() {
            pipeline.check().unwrap();
        }
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
        let daemon: DaemonConfig = toml::from_str(toml).unwrap();
        let json = json!({"batch_size": 4, "shuffle": true, "source": {"type": "folder", "root": "/data"},
            "transforms": [{"type": "RandomHorizontalFlip", "p": 0.5}]});
        assert_eq!(daemon.pipelines["train"], PipelineConfig::from_json(json).unwrap());
    }
}
