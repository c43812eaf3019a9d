//! The closed list of sources, and how one is opened. Each is a file or a folder beside this one; streams are in
//! [`crate::streams`].

pub(crate) mod address;
pub(crate) mod array;
pub(crate) mod folder;
pub(crate) mod hdf5;
pub(crate) mod images;
mod manifest;
pub(crate) mod mix;
pub(crate) mod subset;
pub(crate) mod synthetic;
pub(crate) mod table;
pub(crate) mod tar;
mod values;

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::bytes::remote::is_url;
use crate::{
    AddressConfig, ArrayConfig, FolderConfig, Hdf5Config, IndexedSource, KafkaConfig, MixConfig, MixPart,
    Opening, SourceError, StreamSource, SubsetConfig, SyntheticConfig, TableConfig, TarConfig, Wanted,
};

/// The key of every source that says what its records are to hold.
pub(crate) const DELIVER: &str = "deliver";

/// Which records there are: the closed list of sources, as plain data.
///
/// In JSON a source is an object with a `type`: `{"type": "folder", "root": "/data/train"}`. Unknown keys are refused.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum SourceConfig {
    /// A folder of class folders with images in them.
    Folder(FolderConfig),
    /// Procedural images of chosen size, cost and faults, made on the fly.
    Synthetic(SyntheticConfig),
    /// Tar shards in WebDataset's naming.
    Tar(TarConfig),
    /// Parquet, Arrow, CSV and JSONL tables.
    Table(TableConfig),
    /// HDF5 files.
    Hdf5(Hdf5Config),
    /// npy and npz files.
    Array(ArrayConfig),
    /// Topics of Kafka: a stream.
    Kafka(KafkaConfig),
    /// A part of another source.
    Subset(SubsetConfig),
    /// Several sources drawn in proportion.
    Mix(MixConfig),
    /// An address as a user types it; resolved to one of the others when it is opened.
    Address(AddressConfig),
}

impl SourceConfig {
    /// The same with every address in it replaced by what it stands for; looks at the files to find out.
    ///
    /// # Errors
    /// As [`AddressConfig::resolve`].
    pub fn resolve(&self) -> Result<Self, SourceError> {
        Ok(match self {
            Self::Address(config) => config.resolve()?,
            Self::Subset(config) => {
                Self::Subset(SubsetConfig { source: Box::new(config.source.resolve()?), ..config.clone() })
            }
            Self::Mix(config) => {
                let part = |part: &MixPart| Ok(MixPart { source: part.source.resolve()?, ..part.clone() });
                let parts = config.parts.iter().map(part).collect::<Result<_, SourceError>>()?;
                Self::Mix(MixConfig { parts, ..config.clone() })
            }
            resolved => resolved.clone(),
        })
    }

    /// The same, asked to deliver these parts.
    #[must_use]
    pub fn delivering(mut self, wanted: &[Wanted]) -> Self {
        match &mut self {
            Self::Folder(FolderConfig { deliver, .. })
            | Self::Synthetic(SyntheticConfig { deliver, .. })
            | Self::Tar(TarConfig { deliver, .. })
            | Self::Table(TableConfig { deliver, .. })
            | Self::Hdf5(Hdf5Config { deliver, .. })
            | Self::Array(ArrayConfig { deliver, .. })
            | Self::Kafka(KafkaConfig { deliver, .. }) => *deliver = Some(wanted.to_vec()),
            Self::Subset(config) => *config.source = config.source.clone().delivering(wanted),
            Self::Mix(config) => {
                for part in &mut config.parts {
                    part.source = part.source.clone().delivering(wanted);
                }
            }
            Self::Address(config) => {
                let list = serde_json::to_value(wanted).expect("configuration is plain data");
                config.options.insert(DELIVER.into(), list);
            }
        }
        self
    }

    /// Refuses keys that list what records hold beside the list of a pipeline's fields.
    fn said_once(&self) -> Result<(), SourceError> {
        let listed = |fields: &Option<Vec<String>>| fields.as_ref().is_some_and(|fields| !fields.is_empty());
        let (deliver, keys) = match self {
            Self::Tar(config) => (&config.deliver, vec![("fields", listed(&config.fields))]),
            Self::Hdf5(config) => (&config.deliver, vec![("fields", listed(&config.fields))]),
            Self::Kafka(config) => (&config.deliver, vec![("fields", listed(&config.fields))]),
            Self::Table(config) => {
                let keys = vec![("fields", listed(&config.fields)), ("tokens", config.tokens.is_some())];
                (&config.deliver, keys)
            }
            Self::Array(config) => {
                let keys = vec![("fields", listed(&config.fields)), ("tokens", config.tokens.is_some())];
                (&config.deliver, keys)
            }
            // Each source of a mixture is asked when it is opened.
            _ => return Ok(()),
        };
        match keys.iter().find(|(_, is_given)| deliver.is_some() && *is_given) {
            None => Ok(()),
            Some((key, _)) => Err(SourceError::config(format!(
                "{key} of the source and fields of the pipeline are both given: leave {key} out, and list \
                 everything in the pipeline's fields"
            ))),
        }
    }

    /// The key by which this would write files where its configuration says, if it does. What is cached in the user's
    /// own cache folder is no such thing. Of an address only what was typed, as with [`locations`](Self::locations).
    pub fn writes(&self) -> Option<&'static str> {
        const CACHE: &str = "cache";
        let cache = match self {
            Self::Folder(config) => !config.cache.is_default(),
            Self::Tar(config) => !config.cache.is_default(),
            Self::Table(config) => !config.cache.is_default(),
            Self::Hdf5(config) => !config.cache.is_default(),
            Self::Array(config) => !config.cache.is_default(),
            Self::Synthetic(_) | Self::Kafka(_) => false,
            Self::Subset(config) => return config.source.writes(),
            Self::Mix(config) => return config.parts.iter().find_map(|part| part.source.writes()),
            Self::Address(config) => config.options.contains_key(CACHE),
        };
        cache.then_some(CACHE)
    }

    /// The files, folders and URLs that opening this would read, as configured; braces, `*` and `?` may be in them. Of
    /// an address only what was typed: what its options name is known once it is [resolved](Self::resolve).
    pub fn locations(&self) -> Vec<String> {
        match self {
            Self::Folder(config) => config.locations(),
            Self::Synthetic(_) => Vec::new(),
            Self::Tar(config) => config.shards.clone(),
            Self::Table(config) => config.locations(),
            Self::Hdf5(config) => config.files.clone(),
            Self::Array(config) => config.locations(),
            Self::Kafka(config) => config.locations(),
            Self::Subset(config) => config.source.locations(),
            Self::Mix(config) => config.parts.iter().flat_map(|part| part.source.locations()).collect(),
            Self::Address(config) => config.locations(),
        }
    }
}

/// Opens a source: walks the folder, builds the manifest, checks the configuration.
///
/// # Errors
/// [`SourceError`] when the configuration makes no sense or the data is not there; its text names the folder or the key
/// and says what to do.
pub fn open(config: &SourceConfig) -> Result<Arc<dyn IndexedSource>, SourceError> {
    config.said_once()?;
    match config {
        SourceConfig::Folder(config) if is_url(&config.root.to_string_lossy()) => {
            Ok(Arc::new(images::Images::open(config)?))
        }
        SourceConfig::Folder(config) => Ok(Arc::new(folder::Folder::open(config)?)),
        SourceConfig::Synthetic(config) => Ok(Arc::new(synthetic::Synthetic::open(config)?)),
        SourceConfig::Tar(config) => tar::open(config),
        SourceConfig::Table(config) => table::open(config),
        SourceConfig::Hdf5(config) => hdf5::open(config),
        SourceConfig::Array(config) => array::open(config),
        SourceConfig::Kafka(config) => Err(SourceError::config(format!(
            "{} is a stream: it has no length and no record by number, so it cannot be split, mixed or opened as a data set; train \
             from it with a Loader, or try it with fuelrail bench",
            config.locations().first().map_or("kafka", String::as_str)
        ))),
        SourceConfig::Subset(config) => Ok(Arc::new(subset::Subset::open(config)?)),
        SourceConfig::Mix(config) => Ok(Arc::new(mix::Mix::open(config)?)),
        SourceConfig::Address(config) => open(&config.resolve()?),
    }
}

/// As [`open`], for someone who watches it or may cancel it from another thread.
///
/// # Errors
/// As [`open`]; and once it was cancelled, with one that [`SourceError::is_cancelled`], even if it had just ended well.
pub fn open_watched(config: &SourceConfig, opening: &Opening) -> Result<Arc<dyn IndexedSource>, SourceError> {
    let opened = opening.run(|| open(config));
    // Whatever a part of it that was stopped made of that.
    if opening.is_cancelled() { Err(SourceError::cancelled()) } else { opened }
}

/// Opens a stream: looks for its topics, and for where it starts and ends.
///
/// # Errors
/// [`SourceError`] when the configuration makes no sense, no broker answers within ten seconds, or a topic is not
/// there.
pub fn open_stream(config: &KafkaConfig) -> Result<Arc<dyn StreamSource>, SourceError> {
    open_stream_watched(config, &Opening::new())
}

/// As [`open_stream`], for someone who may cancel it from another thread.
///
/// # Errors
/// As [`open_stream`]; and once it was cancelled, with one that [`SourceError::is_cancelled`].
pub fn open_stream_watched(
    config: &KafkaConfig,
    opening: &Opening,
) -> Result<Arc<dyn StreamSource>, SourceError> {
    SourceConfig::Kafka(config.clone()).said_once()?;
    crate::streams::kafka::open(config, opening)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ReaderConfig, SyntheticFormat};

    fn parse(json: &str) -> Result<SourceConfig, String> {
        serde_json::from_str(json).map_err(|error| error.to_string())
    }

    #[test]
    fn a_configuration_survives_a_round_trip() {
        let text =
            r#"{"type":"folder","root":"/data","classes":["a","b"],"split":{"part":"val","fraction":0.1}}"#;
        let config = parse(text).unwrap();
        assert_eq!(serde_json::to_string(&config).unwrap(), text);
        assert_eq!(
            serde_json::to_string(&parse(r#"{"type":"folder","root":"x"}"#).unwrap()).unwrap().len(),
            28
        );
        let config = parse(r#"{"type":"synthetic","count":3,"format":"jpeg"}"#).unwrap();
        let expected =
            SyntheticConfig { count: 3, format: SyntheticFormat::Jpeg, ..SyntheticConfig::default() };
        assert_eq!(config, SourceConfig::Synthetic(expected));
        assert_eq!(parse(&serde_json::to_string(&config).unwrap()).unwrap(), config);
    }

    #[test]
    fn what_records_hold_is_said_by_the_source_or_by_the_pipeline_and_not_by_both() {
        for (source, key) in [
            (r#"{"type":"tar","shards":["x.tar"],"fields":["json:a"]}"#, "fields"),
            (r#"{"type":"table","files":["x.csv"],"fields":["a"]}"#, "fields"),
            (r#"{"type":"table","files":["x.csv"],"tokens":{"column":"a","length":3}}"#, "tokens"),
            (r#"{"type":"hdf5","files":["x.h5"],"fields":["a"]}"#, "fields"),
            (r#"{"type":"array","files":["x.npy"],"tokens":{"length":3}}"#, "tokens"),
            (r#"{"type":"kafka","servers":["a:1"],"topics":["t"],"fields":["a"]}"#, "fields"),
            (
                r#"{"type":"mix","parts":[{"source":{"type":"tar","shards":["x.tar"],"fields":["a.npy"]}}]}"#,
                "fields",
            ),
        ] {
            for wanted in [Wanted::own_image(), Wanted::new("txt", crate::WantedKind::Text)] {
                let error = match parse(source).unwrap().delivering(&[wanted]) {
                    SourceConfig::Kafka(config) => open_stream(&config).err().unwrap(),
                    config => open(&config).err().unwrap(),
                };
                let said = format!("{key} of the source and fields of the pipeline are both given");
                assert!(error.to_string().contains(&said), "{source}: {error}");
            }
        }
    }

    #[test]
    fn a_misspelt_or_missing_key_is_named() {
        let cases = [
            (r#"{"type":"folder","rooot":"/data"}"#, "rooot"),
            (r#"{"type":"folder","root":"/data","clases":[]}"#, "clases"),
            (r#"{"type":"folder"}"#, "root"),
            (r#"{"type":"folder","root":"/","split":{"part":"val","fractoin":0.1}}"#, "fractoin"),
            (r#"{"type":"folder","root":"/","split":{"part":"test","fraction":0.1}}"#, "test"),
            (r#"{"type":"synthetic","delay_ms":1}"#, "delay_ms"),
            (r#"{"type":"synthetic","format":"gif"}"#, "gif"),
            (r#"{"type":"fodler","root":"/"}"#, "fodler"),
            (r#"{"root":"/"}"#, "type"),
        ];
        for (text, name) in cases {
            let error = parse(text).unwrap_err();
            assert!(error.contains(name), "{text}: {error}");
        }
        let error =
            serde_json::from_str::<ReaderConfig>(r#"{"backend":"auto","dept":1}"#).unwrap_err().to_string();
        assert!(error.contains("dept"), "{error}");
    }
}
