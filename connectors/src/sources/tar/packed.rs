//! What `fuelrail pack` leaves beside its shards: `index.json` with the classes and fields, and small files in general.

use serde::Deserialize;

use super::TarConfig;
use crate::bytes::shards::Shards;
use crate::{CacheConfig, SourceError};

/// `index.json`; keys that are of no use here are passed over.
#[derive(Debug, Deserialize)]
pub(super) struct Packed {
    format: String,
    version: u32,
    #[serde(default)]
    complete: bool,
    #[serde(default)]
    label: Option<String>,
    #[serde(default)]
    classes: Vec<String>,
    #[serde(default)]
    fields: Vec<String>,
}

/// A data set of 1.3 million records has an index.json of a few hundred kilobytes, as it lists shards, not records.
const MOST: u64 = 64 << 20;

impl Packed {
    /// Looks for `index.json` beside the first shard. A file of that name that is not `fuelrail pack`'s is passed over.
    ///
    /// # Errors
    /// When it was written by a later version.
    pub fn find(given: &Shards, cache: &CacheConfig) -> Result<Option<Self>, SourceError> {
        let shard = given.display(0);
        let Some((folder, _)) = shard.rsplit_once('/') else { return Ok(None) };
        let path = format!("{folder}/index.json");
        let Some(bytes) = read_small(&path, MOST, cache) else { return Ok(None) };
        let Ok(packed) = serde_json::from_slice::<Self>(&bytes) else { return Ok(None) };
        match (packed.format.as_str(), packed.version) {
            ("fuelrail-pack", 1) => {
                if !packed.complete {
                    tracing::warn!(
                        "packing these shards was interrupted, so records are missing: rerun the same fuelrail \
                         pack command ({path})"
                    );
                }
                Ok(Some(packed))
            }
            ("fuelrail-pack", version) => Err(SourceError::data(format!(
                "{path} was written by a later version of fuelrail (format {version}, this one reads 1); update \
                 fuelrail, or delete the file to read the shards without class names"
            ))),
            _ => Ok(None),
        }
    }

    /// Fills in what the configuration leaves open.
    pub fn complete(&self, config: &mut TarConfig) {
        if config.label.is_none() {
            config.label.clone_from(&self.label);
            if config.classes.is_none() && !self.classes.is_empty() {
                config.classes = Some(self.classes.clone());
            }
        }
        if config.fields.is_none() {
            config.fields = Some(self.fields.clone());
        }
    }
}

/// A whole small file, if it is there and no longer than `most`.
pub(super) fn read_small(location: &str, most: u64, cache: &CacheConfig) -> Option<Vec<u8>> {
    let shards = Shards::open(&[location.to_owned()], &[], cache).ok()?;
    let [file] = shards.files() else { return None };
    let size = usize::try_from(file.size).ok().filter(|_| file.size <= most)?;
    let mut bytes = Vec::new();
    bytes.try_reserve_exact(size).ok()?;
    bytes.resize(size, 0);
    shards.read_at(0, 0, &mut bytes).ok()?;
    Some(bytes)
}
