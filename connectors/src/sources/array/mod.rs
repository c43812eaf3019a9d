//! npy and npz files: arrays whose first axis is the record.
//!
//! ```text
//!  files ─▶ arrays (name, dtype, shape) ─▶ which is the image, which the label, which are fields ─▶ rows = byte ranges
//! ```
//!
//! What the arrays are called: a member of an npz file by its name, an npy file by its own without ending and without a
//! trailing number, so that `images-00.npy` and `images-01.npy` are two shards of `images`. Shards of one array have
//! the same type and row shape and are strung together along the first axis.
//!
//! What is taken for what, unless the configuration says:
//! - the **image**: the only array of u8 whose rows have the shape of pixels; of several, the one called `images`,
//!   `image` or `x`. Without one, records are fields alone;
//! - the **label**: an array with a usual name ([`crate::labels`]) and one whole number a record, which may be an npy
//!   file beside the only one named. Labels are held in memory, all else is read when asked for;
//! - the **fields**: all other arrays with a row for each record.
//!
//! # Promises
//! - A header is parsed by a grammar, never evaluated; pickled objects are refused by name and never loaded.
//! - A row is read straight from the file at its place. Deflated members of npz files are unpacked once into the cache.
//! - What the headers say is held against the sizes of the files before anything is allocated.
//!
//! # What it does not do
//! It reads no array in Fortran order with more than one axis (rows are not contiguous there), no structured types, and
//! texts only as named parts ([`named`]).

mod choose;
mod find;
mod named;
mod npy;
mod source;
mod unpack;
mod zip;

use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use self::choose::Opened;
use self::find::Arrays;
use crate::bytes::shards::{Shards, ends_with};
use crate::column::PixelLayout;
use crate::labels;
use crate::schema::ElementType;
use crate::{CacheConfig, IndexedSource, SourceError};
pub(crate) use npy::{MAX_HEADER, Npy, NpyError};

/// Configuration of arrays as records.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ArrayConfig {
    /// The files: paths or URLs with braces, `*` and `?`, or folders.
    #[serde(deserialize_with = "crate::texts::list")]
    pub files: Vec<String>,
    /// Name of the array of images.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// Name of the array of labels, one whole number a record; `""` or null for none. An npy file may be named by its
    /// path, which starts where the first file is.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "labels::name_or_none")]
    pub label: Option<String>,
    /// Names of the arrays that become fields, in this order; npy files as with `label`. Default: all that have a row
    /// for each record.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "crate::texts::optional")]
    pub fields: Option<Vec<String>>,
    /// What the axes of the image array are.
    #[serde(skip_serializing_if = "PixelLayout::is_default")]
    pub layout: PixelLayout,
    /// Names of the classes, in label order; every label must be below their number.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "crate::texts::optional")]
    pub classes: Option<Vec<String>>,
    /// The files hold one long line of tokens, to be cut into records.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens: Option<TokensConfig>,
    /// What records are to hold, by part. Filled in by a pipeline's fields.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deliver: crate::Deliver,
    /// Where unpacked and remote files are kept.
    #[serde(skip_serializing_if = "CacheConfig::is_default")]
    pub cache: CacheConfig,
}

/// How a line of tokens is cut: record i is the tokens from `i * stride` on, `length` of them. What is left over at the
/// end of a file is not used; no record spans two files.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, expecting = "tokens to be keys with values, like {\"length\": 1024}")]
pub struct TokensConfig {
    /// Tokens of a record.
    pub length: u64,
    /// Tokens from the start of one record to the next; default `length`. A model that predicts the next token wants a
    /// length of one more than the stride.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stride: Option<u64>,
    /// Type of the tokens in `.bin` files, little-endian; default u16. An npy file says it itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stored: Option<ElementType>,
    /// Type of the tokens in records; default i64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dtype: Option<ElementType>,
}

impl ArrayConfig {
    pub(crate) fn locations(&self) -> Vec<String> {
        let paths = self.label.iter().chain(self.fields.iter().flatten()).filter(|name| is_path(name));
        let paths = paths.filter(|name| name.starts_with('/') || name.contains("://"));
        self.files.iter().chain(paths).cloned().collect()
    }
}

/// Whether a name in the configuration is a file's and not an array's.
fn is_path(name: &str) -> bool {
    name.contains('/') || ends_with(name, &[".npy"])
}

/// Bytes of an array in one block of a remote source.
const BLOCK_BYTES: u64 = 64 << 20;

/// Labels read at once.
const LABEL_PIECE: usize = 8 << 20;

/// Names that mean the image where several arrays could be it.
const IMAGE_NAMES: [&str; 3] = ["images", "image", "x"];

pub(crate) fn open(config: &ArrayConfig) -> Result<Arc<dyn IndexedSource>, SourceError> {
    let endings: &[&str] =
        if config.tokens.is_some() { &[".npy", ".npz", ".bin"] } else { &[".npy", ".npz"] };
    let mut patterns = config.files.clone();
    let shards = Shards::open(&patterns, endings, &config.cache)?;
    let first = shards.display(0);
    let folder = first.rsplit_once('/').map_or("", |(folder, _)| folder);
    for name in config.label.iter().chain(config.fields.iter().flatten()).filter(|name| is_path(name)) {
        let path = if name.starts_with('/') || name.contains("://") {
            name.clone()
        } else {
            format!("{folder}/{name}")
        };
        if !patterns.contains(&path) && !(0..shards.files().len()).any(|shard| shards.display(shard) == path)
        {
            patterns.push(path);
        }
    }
    let alone = shards.files().len() == 1 && config.tokens.is_none() && ends_with(&first, &[".npy"]);
    if alone && config.label.is_none() && shards.extent(0, 0, 0).is_some() {
        let names = labels::OF_ARRAYS.iter().map(|name| format!("{folder}/{name}.npy"));
        let names: Vec<String> = names.filter(|path| *path != first).collect();
        let beside = move || names.iter().find(|path| Path::new(path).is_file()).cloned();
        let found = beside();
        patterns.extend(found.clone());
        // One that comes later would be the label of whoever opens it then.
        crate::opening::depends_on(move || beside() == found);
    }
    let shards = if patterns.len() > config.files.len() {
        Shards::open(&patterns, endings, &config.cache)?
    } else {
        shards
    };
    let arrays = Arrays::find(&shards, config)?;
    arrays.check_shards(&shards)?;
    let source = Opened { shards: shards.clone(), arrays, config }.choose()?;
    source.recognised.say(&shards.describe(), source.len);
    Ok(Arc::new(source))
}
