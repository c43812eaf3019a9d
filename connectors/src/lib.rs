//! Where fuelrail's records come from.
//!
//! A *source* is a list of records with a known length and random access: an image folder, a synthetic generator, later
//! tar shards, Parquet files and object stores. A *record* is one sample as stored: its encoded bytes, its label and its
//! key. This crate knows what is stored where and fetches bytes; it never looks inside them, so a broken image is none
//! of its business, while a file that vanished is.
//!
//! ```text
//!  SourceConfig ──open()──▶ IndexedSource ──reader()──▶ Reader
//!  plain data               what there is:              fetches bytes:
//!                           len, key, label, size,      submit(indices) ─▶ done(Record | ReadError)
//!                           extent, blocks,             io_uring, or threads where that is refused
//!                           fingerprint
//! ```
//!
//! # Promises
//!
//! - **A source does not change after `open`.** Index, key, label and size of a record are fixed; they depend on the
//!   stored data only, never on the order in which a file system lists it, the number of threads or the time.
//! - **A record's bytes are the bytes that were promised.** The disk readers notice a file that shrank, grew or vanished
//!   since `open` and say so ([`ReadErrorKind`]); bytes of two versions are never delivered as one record. A
//!   shard is also noticed when another file took its name, and a record of a tar shard when its headers, label or fields are
//!   others than those that were indexed. (An image that was rewritten in place with exactly the same length cannot be told
//!   apart, for the modification time is no part of a data set's identity; and a record above 2 GiB takes several reads.)
//! - **Every request ends exactly once**: its `done` is called with a record or an error, or, when the [`Reader`] is
//!   dropped first, `done` itself is dropped uncalled. Requests end in any order.
//! - **Retries happen inside the reader.** An error that reaches `done` has been retried where that can help. A failed
//!   read is a broken environment, not bad data: only what a decoder says about *bytes* may be substituted. A container
//!   format's own verdict on a record (a null, a damaged page) is such a verdict: [`ReadErrorKind::Bad`].
//! - **Memory is bounded by the caller.** A reader holds what was submitted and not yet dropped, plus at most
//!   [`POOL_BYTES`] of idle buffers. The caller submits no more than its byte budget allows ([`IndexedSource::size`] says
//!   what a record will cost before it is read).
//!
//! # What a source tells the order
//!
//! Reads from a folder are cheap in any order; reads from a tar shard, a Parquet row group or an object are cheap only in
//! sequence. [`IndexedSource::blocks`] gives the lengths of the stretches that want to be read together, and
//! [`IndexedSource::extent`] the byte range of each record. The disk readers work on ranges alone (open, read at an
//! offset, close), so a tar source is a manifest with offsets and needs no reader of its own.
//!
//! # What this crate does not do
//!
//! It decodes nothing and shuffles nothing, and of local files it caches nothing (the page cache does). Unbounded sources are a different type
//! with a different life, not a flag on this one.

mod address;
mod array;
mod arrow;
mod buffer;
mod cache;
mod column;
mod disk;
mod error;
mod folder;
mod gather;
mod hdf5;
mod json;
mod kafka;
mod labels;
mod manifest;
mod mistaken;
mod mix;
mod names;
mod numbers;
mod opening;
mod recognised;
mod remote;
mod schema;
pub mod settings;
mod shards;
mod split;
mod stream;
mod subset;
mod synthetic;
mod table;
mod tar;
mod texts;
mod verdicts;
mod workers;

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

pub use address::AddressConfig;
pub use array::{ArrayConfig, TokensConfig as ArrayTokensConfig};
pub use buffer::{Buffer, POOL_BYTES};
pub use column::PixelLayout;
pub use error::{ReadError, ReadErrorKind, SourceError};
pub use folder::FolderConfig;
pub use hdf5::Hdf5Config;
pub use kafka::{
    KafkaConfig, KafkaPoint, KafkaProperties, KafkaValue, Producer as KafkaProducer,
    encode_value as encode_kafka_value,
};
pub use mix::{MixConfig, MixPart, Part, apportion};
pub use names::{Shown, printable, shown};
pub use numbers::read_numbers;
pub use opening::{Counted, Opening, Progress};
pub use recognised::RECOGNISED;
pub use schema::{ElementType, FieldSpec, MAX_FIELD_BYTES, RESERVED, Schema};
pub use shards::CacheConfig;
pub use split::{Split, SplitPart};
pub use stream::{Follower, Place, Sink, StreamRecord, StreamSource, StreamStats, Window};
pub use subset::SubsetConfig;
pub use synthetic::{SyntheticConfig, SyntheticFormat};
pub use table::{TableConfig, TableFormat, TokenMode, TokenTail, TokensConfig};
pub use tar::{TarConfig, tar_sidecar};

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
                Self::Subset(SubsetConfig { source: Box::new(config.source.resolve()?), split: config.split })
            }
            Self::Mix(config) => {
                let part = |part: &MixPart| Ok(MixPart { source: part.source.resolve()?, ..part.clone() });
                let parts = config.parts.iter().map(part).collect::<Result<_, SourceError>>()?;
                Self::Mix(MixConfig { parts, ..config.clone() })
            }
            resolved => resolved.clone(),
        })
    }

    /// The key by which this would write files where its configuration says, if it does. What is cached in the user's own
    /// cache folder is no such thing. Of an address only what was typed, as with [`locations`](Self::locations).
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

    /// The files, folders and URLs that opening this would read, as configured; braces, `*` and `?` may be in them. Of an
    /// address only what was typed: what its options name is known once it is [resolved](Self::resolve).
    pub fn locations(&self) -> Vec<String> {
        match self {
            Self::Folder(config) => vec![config.root.to_string_lossy().into_owned()],
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
    match config {
        SourceConfig::Folder(config) if remote::is_url(&config.root.to_string_lossy()) => {
            Ok(Arc::new(remote::Images::open(config)?))
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
/// [`SourceError`] when the configuration makes no sense, no broker answers within ten seconds, or a topic is not there.
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
    kafka::open(config, opening)
}

/// A list of records with a known length and random access. Immutable once open; shared by all feeds of a pipeline.
///
/// Methods that take an index panic when it is not below [`len`](Self::len): indices come from the order, and one out of
/// range is a bug.
pub trait IndexedSource: Send + Sync + 'static {
    /// Number of records, at least 1.
    fn len(&self) -> u64;

    /// Never true: an empty source is refused by [`open`].
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The record's name: its path relative to the source with `/` between parts, unique within the source.
    /// A backslash is written `\\` and a byte that is not UTF-8 `\xNN`.
    fn key(&self, index: u64) -> String;

    /// Whether records have labels. Where they have none, a batch has no `label`.
    fn is_labelled(&self) -> bool;

    /// The record's label: an index into [`classes`](Self::classes), or a whole number of its own where there are none. Without
    /// a meaning where the source has no labels, and in records that [`verdict`](Self::verdict) judges.
    fn label(&self, index: u64) -> i64;

    /// Why a record is a bad one, as far as the index knows: it has no label that is of use, say. Such a record keeps its index
    /// and is not worth reading. Default: never.
    fn verdict(&self, index: u64) -> Option<String> {
        let _ = index;
        None
    }

    /// The [`verdict`](Self::verdict) in the form of a read that ended.
    fn refused(&self, index: u64) -> Option<ReadError> {
        self.verdict(index).map(|why| ReadError::bad(self.key(index), why))
    }

    /// Class names in label order; empty for an unlabelled source, or where labels are numbers.
    fn classes(&self) -> &[String];

    /// What every record holds. Default: an encoded image and nothing else.
    fn schema(&self) -> Schema {
        Schema::images()
    }

    /// What is known to be missing from the data, as a sentence, for those who would rather have none of it then.
    fn missing(&self) -> Option<String> {
        None
    }

    /// Why there is no image in its records, where something in it may have been meant for one.
    fn no_image(&self) -> Option<String> {
        None
    }

    /// Width and height of every image, where the source itself fixes them: pixels of arrays, not files. `None` otherwise.
    fn image_size(&self) -> Option<(u32, u32)> {
        None
    }

    /// Bytes of a record, its fields included: exact where it is stored, an upper bound where it is made (synthetic),
    /// the mean of its block where that has to be decoded to know (tables of images). Known without reading, for budgets.
    ///
    /// What a budget makes of a mean: records whose means add up to `b` bytes take `b` bytes when they are whole blocks. Out
    /// of blocks whose sizes scatter they may take more, at most what those blocks take, which is what
    /// [`reader_memory`](Self::reader_memory) counts for the blocks themselves. No block takes more than 1 GiB.
    fn size(&self, index: u64) -> u64;

    /// Where the record's bytes lie, if they lie in a file.
    fn extent(&self, index: u64) -> Option<Extent>;

    /// Stretches of records that should be read together.
    fn blocks(&self) -> Blocks;

    /// The stretches of records that an epoch draws from in proportion, in index order; empty when it draws each record
    /// once. Where there are parts, their blocks count and [`blocks`](Self::blocks) is [`Blocks::None`].
    fn parts(&self) -> &[Part] {
        &[]
    }

    /// Identity of the data: equal for equal keys, sizes and classes, wherever the data lies.
    fn fingerprint(&self) -> Fingerprint;

    /// Bytes of memory that the source's index holds.
    fn memory(&self) -> u64;

    /// Bytes of memory that one reader holds beside the records in flight and [`POOL_BYTES`]: decoded blocks, say.
    fn reader_memory(&self) -> u64 {
        0
    }

    /// Starts a reader for this source. Each reader has its own threads and buffers; one per pipeline is enough.
    ///
    /// # Errors
    /// [`SourceError`] when the backend asked for is refused by the kernel, or the data has gone since [`open`].
    fn reader(self: Arc<Self>, config: &ReaderConfig) -> Result<Box<dyn Reader>, SourceError>;
}

/// A byte range in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extent {
    /// The file, absolute if the source's root is.
    pub file: PathBuf,
    /// First byte.
    pub offset: u64,
    /// Number of bytes.
    pub len: u64,
}

/// Stretches of records that lie together, as a hint for the blocked order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Blocks {
    /// Every record costs the same in any order.
    None,
    /// Consecutive blocks, and how they are best shuffled.
    Lengths {
        /// Lengths in records, none of them 0; they add up to the source's length.
        lengths: Arc<[u64]>,
        /// Blocks read side by side.
        lanes: u64,
        /// Records of one lane that are shuffled together. With a reader that keeps decoded blocks, lanes x window
        /// records (and a block more a lane) must fit in what it keeps.
        window: u64,
    },
}

impl Blocks {
    /// Lanes for blocks whose records can be fetched one by one, as from a tar file.
    pub const LANES: u64 = 8;
    /// The window for these.
    pub const WINDOW: u64 = 4096;

    /// Blocks whose records can be fetched one by one at the price of a seek.
    pub(crate) fn seekable(lengths: impl IntoIterator<Item = u64>) -> Self {
        Self::Lengths { lengths: lengths.into_iter().collect(), lanes: Self::LANES, window: Self::WINDOW }
    }
}

/// 128-bit identity of a data set: keys, sizes and classes in order; not the root, not modification times.
///
/// Shown, and serialised, as 32 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Fingerprint(pub u128);

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl FromStr for Fingerprint {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let valid = text.len() == 32 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        match u128::from_str_radix(text, 16) {
            Ok(value) if valid => Ok(Self(value)),
            _ => Err(format!("{text:?} is not a fingerprint: 32 lower-case hexadecimal digits are expected")),
        }
    }
}

impl Serialize for Fingerprint {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Fingerprint {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// How a reader fetches bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ReaderConfig {
    /// Which kernel interface to use. Sources that read no files ignore it.
    pub backend: Backend,
    /// Reads in flight at once, 1 to 1024. More hides more latency of a cold disk; warm files need few.
    pub depth: u32,
}

impl Default for ReaderConfig {
    fn default() -> Self {
        Self { backend: Backend::Auto, depth: 32 }
    }
}

impl ReaderConfig {
    /// Refuses a depth that is zero or that no kernel queue would hold.
    pub(crate) fn check(&self) -> Result<(), SourceError> {
        if (1..=1024).contains(&self.depth) {
            return Ok(());
        }
        Err(SourceError::config(format!("reader depth is {}; it must be 1 to 1024 (default 32)", self.depth)))
    }
}

/// The kernel interface of a disk reader.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Backend {
    /// io_uring, or threads where the kernel refuses it (said once in the log).
    Auto,
    /// io_uring or an error.
    IoUring,
    /// A pool of threads with plain system calls.
    Threads,
}

/// What happens when a request has ended.
pub type Done = Box<dyn FnOnce(Result<Record, ReadError>) + Send>;

/// One record to fetch.
pub struct ReadRequest {
    /// Index of the record in the source.
    pub index: u64,
    /// Called once, on a thread of the reader, as soon as the request has ended; so it should hand over and return. It may
    /// submit more. A panic in it is logged and goes no further.
    pub done: Done,
}

impl fmt::Debug for ReadRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReadRequest").field("index", &self.index).finish_non_exhaustive()
    }
}

/// One sample as stored.
#[derive(Debug)]
pub struct Record {
    /// Index of the record in the source.
    pub index: u64,
    /// The encoded image, then the fields; [`Schema::split`] cuts them apart. The memory goes back to the reader's pool when this is dropped.
    pub bytes: Buffer,
}

/// Fetches records in the background.
///
/// Dropping a reader cancels what is outstanding and joins its threads: reads in flight are awaited or cancelled,
/// within milliseconds unless the kernel itself hangs on a dead disk, and requests not done are dropped uncalled.
pub trait Reader: Send + Sync {
    /// Asks for records, in this order of urgency. Returns at once; the caller bounds what is outstanding.
    fn submit(&self, requests: Vec<ReadRequest>);

    /// How many records beyond those submitted [`expect`](Self::expect) is of use for; 0, the default, for readers that
    /// fetch records one by one.
    fn horizon(&self) -> u64 {
        0
    }

    /// Says what will be submitted soon, in this order: a reader that decodes blocks may begin with theirs. A hint that
    /// binds nobody. Returns at once.
    fn expect(&self, indices: &[u64]) {
        let _ = indices;
    }

    /// What the reader has done so far.
    fn stats(&self) -> ReadStats;
}

/// What a reader has done since it was started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct ReadStats {
    /// `"io_uring"`, `"threads"`, `"remote"` or `"synthetic"`.
    pub backend: &'static str,
    /// Times the kernel was entered to hand over work: `io_uring_enter` calls, or one per read with threads.
    pub submissions: u64,
    /// Records read.
    pub reads: u64,
    /// Bytes of these records.
    pub bytes: u64,
    /// Nanoseconds in which at least one request was in hand. Close to the elapsed time, and the disk is the limit.
    pub busy_ns: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

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

    #[test]
    fn the_backends_have_the_names_that_users_write() {
        for (name, backend) in
            [("auto", Backend::Auto), ("io_uring", Backend::IoUring), ("threads", Backend::Threads)]
        {
            assert_eq!(serde_json::to_string(&backend).unwrap(), format!("\"{name}\""));
            assert_eq!(serde_json::from_str::<Backend>(&format!("\"{name}\"")).unwrap(), backend);
        }
    }

    #[test]
    fn a_fingerprint_is_32_digits_and_nothing_else() {
        let fingerprint = Fingerprint(0x0123_4567_89ab_cdef);
        let text = fingerprint.to_string();
        assert_eq!(text, "00000000000000000123456789abcdef");
        assert_eq!(text.parse(), Ok(fingerprint));
        assert_eq!(serde_json::to_string(&fingerprint).unwrap(), format!("\"{text}\""));
        for wrong in
            ["", "123", "+0000000000000000123456789abcdef", &text.to_uppercase(), &format!("{text}0")]
        {
            assert!(wrong.parse::<Fingerprint>().is_err(), "{wrong}");
        }
    }
}
