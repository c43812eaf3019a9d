//! Tar shards in WebDataset's naming.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::{CacheConfig, IndexedSource, SourceError};

/// Configuration of this source.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TarConfig {
    /// The shards: paths or URLs with braces, `*` and `?`, or folders.
    pub shards: Vec<String>,
    /// Where copies are kept.
    #[serde(skip_serializing_if = "CacheConfig::is_default")]
    pub cache: CacheConfig,
}

pub(crate) fn open(_config: &TarConfig) -> Result<Arc<dyn IndexedSource>, SourceError> {
    Err(SourceError::config("this source is not built yet".into()))
}
