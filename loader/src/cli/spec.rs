//! What `bench` and `preview` have in common: a pipeline described on the command line, and a private feed of it.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use fuelrail_connectors::{settings, shown};
use serde_json::{Value, json};

use super::{Failure, opening, parts, signals, source};
use crate::client::{Address, ClientError, Feed, News};
use crate::config::DaemonConfig;
use crate::log;
use crate::pipeline::NO_IMAGES;
use crate::plan::Cursor;
use crate::protocol::{Attach, PipelineRef};

/// A pipeline, as flags. Without others it is a training run's: shuffled, in batches of 64, as `fuelrail train` has
/// them.
#[derive(Debug, Args)]
pub(super) struct Spec {
    #[arg(value_name = "SOURCE", required_unless_present = "config", help = source::SOURCE)]
    source: Option<String>,
    /// Take a pipeline from a daemon configuration file instead
    #[arg(long, value_name = "PIPELINES.TOML", conflicts_with = "source", requires = "pipeline")]
    config: Option<PathBuf>,
    /// The pipeline of that file to use
    #[arg(long, value_name = "NAME", requires = "config")]
    pipeline: Option<String>,
    #[arg(long = "source-option", alias = "option", value_name = "KEY=VALUE", help = source::OPTION,
          conflicts_with = "config")]
    options: Vec<String>,
    /// Transforms as a JSON list such as '[{"type": "Resize", "size": [256, 256]}]', instead of a preset
    #[arg(long, value_name = "JSON")]
    transforms: Option<String>,
    #[arg(long, value_name = "JSON", conflicts_with = "transforms", help = parts::FIELDS)]
    fields: Option<String>,
    /// Ready-made transforms
    #[arg(long, alias = "task", value_enum, default_value_t = Preset::Train)]
    preset: Preset,
    /// Side of the output in pixels, of a preset
    #[arg(long, default_value_t = 224, value_name = "PIXELS", value_parser = clap::value_parser!(u32).range(1..=16_384))]
    size: u32,
    /// Rows per batch [default: 64, or that of the configuration file]
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = super::at_least::<u64, 1>)]
    batch_size: Option<u64>,
    /// Take the records in the source's order. Without it they are shuffled, as in training
    #[arg(long, conflicts_with = "config")]
    no_shuffle: bool,
    /// Worker threads [default: 0, one per core]
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = super::at_least::<u32, 0>)]
    num_workers: Option<u32>,
    /// Seed of order and augmentation [default: 0]
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = super::at_least::<u64, 0>)]
    seed: Option<u64>,
    /// How files are read: auto, io_uring or threads [default: auto]
    #[arg(long, value_name = "BACKEND")]
    read_backend: Option<String>,
    /// Concurrent reads [default: 32]
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = super::at_least::<u32, 1>)]
    read_depth: Option<u32>,
}

/// The flag of fields, and its key.
const FIELDS: (&str, &str) = ("--fields", "fields");

/// The flag of transforms, and its key.
const TRANSFORMS: (&str, &str) = ("--transforms", "transforms");

/// Transforms that have a name. The letters are those of the benchmarks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Preset {
    /// RandomResizedCrop, RandomHorizontalFlip and Normalize: floats, one plane per channel
    #[value(alias = "A")]
    Train,
    /// Resize, CenterCrop and Normalize: floats, one plane per channel
    #[value(alias = "B")]
    Eval,
    /// RandomResizedCrop and RandomHorizontalFlip: bytes, the channels of a pixel together
    #[value(alias = "C")]
    TrainU8,
}

impl Spec {
    /// The pipeline as the daemon takes it.
    pub fn pipeline(&self) -> Result<Value, Failure> {
        let mut pipeline = match (&self.config, &self.pipeline) {
            (Some(path), Some(name)) => {
                let config = DaemonConfig::from_file(path)?;
                let known = config.pipelines.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
                let found = config.pipelines.get(name);
                serde_json::to_value(found.ok_or(format!(
                    "{}: there is no pipeline '{name}'; the file has: {known}",
                    shown(&path)
                ))?)?
            }
            _ => {
                let source = self.source.as_deref().expect("clap requires a source or a config");
                let source = source::described(source, &self.options)?;
                json!({"source": source, "shuffle": !self.no_shuffle, "batch_size": 64, "transforms": self.preset_transforms()})
            }
        };
        if self.config.is_none() && self.preset == Preset::TrainU8 {
            pipeline["dtype"] = json!("u8");
            pipeline["layout"] = json!("nhwc");
        }
        if let Some(text) = &self.transforms {
            pipeline[TRANSFORMS.1] =
                serde_json::from_str(text).map_err(|error| {
                    format!("--transforms: not valid JSON: {}; write a list such as '[{{\"type\": \"CenterCrop\", \"size\": 224}}]'", settings::json_fault(&error, text.as_bytes()))
                })?;
        }
        if let Some(text) = &self.fields {
            // Images without a chain of their own take that of the preset.
            let chain = pipeline[TRANSFORMS.1].take();
            let (fields, _) = parts::read(text, |field| {
                if matches!(field["type"].as_str(), Some("Image" | "Views"))
                    && field.get(TRANSFORMS.1).is_none()
                {
                    field[TRANSFORMS.1] = chain.clone();
                }
            })?;
            pipeline[FIELDS.1] = fields;
            pipeline[TRANSFORMS.1] = json!([]);
        }
        for ((_, key), value) in self.given() {
            let place = key.split('.').fold(&mut pipeline, |table, key| &mut table[key]);
            *place = value;
        }
        Ok(pipeline)
    }

    /// The flags that were given and are one key of the pipeline, which has another name: (flag, key), value. The one
    /// list of them: the pipeline is made by it, and what is said of a key is said of its flag.
    fn given(&self) -> Vec<((&'static str, &'static str), Value)> {
        let all = [
            (("--batch-size", "batch_size"), self.batch_size.map(Value::from)),
            (("--num-workers", "num_workers"), self.num_workers.map(Value::from)),
            (("--seed", "seed"), self.seed.map(Value::from)),
            (("--read-backend", "read.backend"), self.read_backend.clone().map(Value::from)),
            (("--read-depth", "read.depth"), self.read_depth.map(Value::from)),
        ];
        all.into_iter().filter_map(|(names, value)| Some((names, value?))).collect()
    }

    /// Why the pipeline was refused, in the names of the flags that were given.
    pub fn refused(&self, failure: Failure) -> Failure {
        let said = failure.to_string();
        let names = self.given().into_iter().map(|(names, _)| names);
        let named = names.chain(self.transforms.as_ref().map(|_| TRANSFORMS));
        let named = named.chain(self.fields.as_ref().map(|_| FIELDS)).find_map(|(flag, key)| {
            let rest = said.strip_prefix(key)?;
            let is_it = !rest.starts_with(|next: char| next.is_alphanumeric() || next == '_');
            is_it.then(|| Failure::from(format!("{flag}{rest}")))
        });
        named.unwrap_or(failure)
    }

    /// Says so when a batch that was asked for is larger than the source.
    pub fn warn_of_batch(&self, samples: u64) {
        if let Some(batch) = self.batch_size.filter(|batch| *batch > samples) {
            eprintln!("note: --batch-size {batch} is more than the {samples} samples of the source");
        }
    }

    /// Whether it comes from flags and not from a file.
    pub fn is_of_flags(&self) -> bool {
        self.config.is_none()
    }

    /// Whether the transforms are those of a preset.
    fn is_preset(&self) -> bool {
        self.config.is_none() && self.transforms.is_none() && self.fields.is_none()
    }

    /// Whether the seed was given.
    pub fn has_seed(&self) -> bool {
        self.seed.is_some()
    }

    fn preset_transforms(&self) -> Value {
        let size = self.size;
        let normalize =
            json!({"type": "Normalize", "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]});
        let augment = [
            json!({"type": "RandomResizedCrop", "size": [size, size]}),
            json!({"type": "RandomHorizontalFlip"}),
        ];
        match self.preset {
            Preset::Eval => json!([
                {"type": "Resize", "size": u64::from(size) * 256 / 224},
                {"type": "CenterCrop", "size": [size, size]},
                normalize
            ]),
            Preset::TrainU8 => json!(augment),
            Preset::Train => json!([augment[0], augment[1], normalize]),
        }
    }
}

/// Shows a line of the daemon's log, unless it is about the daemon's inner life.
pub(super) fn show(level: &str, text: &str) {
    if log::is_for_people(text) {
        eprintln!("{level}: {text}");
    }
}

/// What a feed tells while it waits: only lines of the log.
pub(super) fn lines(mut tell: impl FnMut(&str, &str)) -> impl FnMut(News<'_>) {
    move |news| {
        if let News::Log { level, text } = news {
            tell(level, text);
        }
    }
}

/// A feed of a daemon of our own: this same binary, as a child. Where the source has no images, the transforms that
/// nobody asked for are left out.
pub(super) fn private_feed(spec: &Spec, mut pipeline: Value) -> Result<Feed, Failure> {
    let address = Address::Private(std::env::current_exe()?);
    match attach(&address, pipeline.clone()) {
        Err(ClientError::Daemon { message, .. }) if spec.is_preset() && message.starts_with(NO_IMAGES) => {
            pipeline[TRANSFORMS.1] = json!([]);
            for key in ["dtype", "layout"] {
                pipeline.as_object_mut().map(|pipeline| pipeline.remove(key));
            }
            attach(&address, pipeline)
        }
        attached => attached,
    }
    .map_err(|error| spec.refused(error.into()))
}

fn attach(address: &Address, pipeline: Value) -> Result<Feed, ClientError> {
    let attach = Attach {
        pipeline: PipelineRef::Inline(pipeline),
        rank: 0,
        world_size: 1,
        start: Cursor::default(),
        member: None,
    };
    let mut display = opening::Display::new();
    Feed::attach(address, attach, None, &mut signals::interrupted, &mut |news| match news {
        News::Progress(progress) => display.show(progress),
        News::Log { level, text } => display.log(level, text),
    })
}
