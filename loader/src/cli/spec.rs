//! What `bench` and `preview` have in common: a pipeline described on the command line, and a private feed of it.

use std::path::PathBuf;

use clap::Args;
use fuelrail_connectors::KafkaProperties;
use serde_json::{Value, json};

use super::{Failure, opening, signals};
use crate::client::{Address, Feed, News};
use crate::config::DaemonConfig;
use crate::plan::Cursor;
use crate::protocol::{Attach, PipelineRef};

/// A pipeline, as flags.
#[derive(Debug, Args)]
pub(super) struct Spec {
    /// A folder, shards like train-{000..127}.tar or "*.parquet", an .h5, .npy or .csv file, an s3://, gs://, az:// or
    /// https:// URL of these, kafka://broker:9092/topic, or synthetic://?count=10000&width=500&height=375
    #[arg(value_name = "SOURCE", required_unless_present = "config")]
    source: Option<String>,
    /// Take a pipeline from a daemon configuration file instead
    #[arg(long, value_name = "PIPELINES.TOML", conflicts_with = "source", requires = "pipeline")]
    config: Option<PathBuf>,
    /// Which pipeline of that file
    #[arg(long, value_name = "NAME", requires = "config")]
    pipeline: Option<String>,
    /// An option of the source, like image=jpg, label=class or fields='["box"]' (JSON or text); may be given repeatedly.
    /// properties=@client.properties takes Kafka's from a file
    #[arg(long = "source-option", value_name = "KEY=VALUE")]
    options: Vec<String>,
    /// Transforms as JSON: a list like [{"type": "Resize", "size": 256}, …]; overrides --task
    #[arg(long, value_name = "JSON")]
    transforms: Option<String>,
    /// A: RandomResizedCrop + flip + normalise, f32 NCHW. B: Resize + CenterCrop + normalise. C: as A, u8 NHWC
    #[arg(long, default_value = "A", value_parser = ["A", "B", "C"])]
    task: String,
    /// Side of the output in pixels
    #[arg(long, default_value_t = 224)]
    size: u32,
    /// Rows per batch
    #[arg(long)]
    batch_size: Option<u64>,
    /// Worker threads; 0 = one per core
    #[arg(long)]
    num_workers: Option<u32>,
    /// Seed of order and augmentation
    #[arg(long)]
    seed: Option<u64>,
    /// How files are read: auto, io_uring or threads
    #[arg(long, value_name = "BACKEND")]
    read_backend: Option<String>,
    /// Reads in flight at a time
    #[arg(long, value_name = "N")]
    read_depth: Option<u32>,
}

impl Spec {
    /// The pipeline as the daemon takes it.
    pub fn pipeline(&self) -> Result<Value, Failure> {
        let mut pipeline = match (&self.config, &self.pipeline) {
            (Some(path), Some(name)) => {
                let text =
                    std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
                let config: DaemonConfig =
                    toml::from_str(&text).map_err(|error| format!("{}: {error}", path.display()))?;
                let known = config.pipelines.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
                let found = config.pipelines.get(name);
                serde_json::to_value(
                    found.ok_or(format!("there is no pipeline '{name}'; the file has: {known}"))?,
                )?
            }
            _ => {
                let source = self.source.as_deref().expect("clap requires a source or a config");
                json!({"source": source_value(source, &self.options)?, "shuffle": true, "batch_size": 64, "transforms": self.task_transforms()})
            }
        };
        if self.config.is_none() && self.task == "C" {
            pipeline["dtype"] = json!("u8");
            pipeline["layout"] = json!("nhwc");
        }
        if let Some(text) = &self.transforms {
            pipeline["transforms"] =
                serde_json::from_str(text).map_err(|error| format!("--transforms: {error}"))?;
        }
        let mut set = |key: &str, value: Option<Value>| {
            if let Some(value) = value {
                pipeline[key] = value;
            }
        };
        set("batch_size", self.batch_size.map(Value::from));
        set("num_workers", self.num_workers.map(Value::from));
        set("seed", self.seed.map(Value::from));
        if let Some(backend) = &self.read_backend {
            pipeline["read"]["backend"] = json!(backend);
        }
        if let Some(depth) = self.read_depth {
            pipeline["read"]["depth"] = json!(depth);
        }
        Ok(pipeline)
    }

    /// Whether it comes from flags and not from a file.
    pub fn is_of_flags(&self) -> bool {
        self.config.is_none()
    }

    /// Whether the seed was given.
    pub fn has_seed(&self) -> bool {
        self.seed.is_some()
    }

    fn task_transforms(&self) -> Value {
        let size = self.size;
        let normalize =
            json!({"type": "Normalize", "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]});
        let augment = [
            json!({"type": "RandomResizedCrop", "size": [size, size]}),
            json!({"type": "RandomHorizontalFlip"}),
        ];
        match self.task.as_str() {
            "B" => json!([
                {"type": "Resize", "size": size * 256 / 224},
                {"type": "CenterCrop", "size": [size, size]},
                normalize
            ]),
            "C" => json!(augment),
            _ => json!([augment[0], augment[1], normalize]),
        }
    }
}

/// A source as typed, relative to the current folder, with its options.
pub(super) fn source_value(source: &str, options: &[String]) -> Result<Value, Failure> {
    let mut value = json!({"type": "address", "address": source, "base": std::env::current_dir()?});
    for option in options {
        let (key, text) = option
            .split_once('=')
            .ok_or_else(|| format!("--source-option {option}: it is not of the form KEY=VALUE"))?;
        if ["type", "address", "base"].contains(&key) {
            return Err(format!("--source-option {option}: {key} is no option of a source").into());
        }
        value[key] = match (key, text.strip_prefix('@')) {
            ("properties", Some(path)) => serde_json::to_value(properties_file(path)?)?,
            _ => serde_json::from_str(text).unwrap_or_else(|_| json!(text)),
        };
    }
    Ok(value)
}

/// Kafka's properties from a file. On the command line itself everybody on the machine could read a password.
pub(super) fn properties_file(path: &str) -> Result<KafkaProperties, Failure> {
    let text = std::fs::read_to_string(path).map_err(|error| format!("{path}: {error}"))?;
    Ok(KafkaProperties::from_lines(&text).map_err(|error| format!("{path}: {error}"))?)
}

/// A feed of a daemon of our own: this same binary, as a child.
pub(super) fn private_feed(pipeline: Value) -> Result<Feed, Failure> {
    let address = Address::Private(std::env::current_exe()?);
    let attach =
        Attach { pipeline: PipelineRef::Inline(pipeline), rank: 0, world_size: 1, start: Cursor::default() };
    let mut display = opening::Display::new();
    Ok(Feed::attach(&address, attach, None, &mut signals::interrupted, &mut |news| match news {
        News::Progress(progress) => display.show(progress),
        News::Log { level, text } => display.log(level, text),
    })?)
}
