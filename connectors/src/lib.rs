//! Where fuelrail's records come from.
//!
//! A *record* is one sample as stored: an encoded image or none, then numeric fields; with its key and label. An
//! *indexed source* is a list of records with a known length and random access: an image folder, tar shards, tables,
//! arrays, HDF5 files, here or in an object store, a mixture of these, or images made on the fly. A *stream* is read in
//! windows: topics of Kafka. This crate knows what is stored where and fetches it; images stay encoded, so a broken one
//! is none of its business, while a file that vanished is.
//!
//! ```text
//!  SourceConfig ──open()──▶ IndexedSource ──reader()──▶ Reader
//!  plain data               what there is:              fetches records:
//!                           len, key, label, size,      submit(indices) ─▶ done(Record | ReadError)
//!                           extent, blocks,             io_uring, or threads where that is refused
//!                           fingerprint
//!
//!  sources/   one file or folder a source, and the list of them
//!  streams/   the frame of streams, and Kafka
//!  bytes/     byte ranges of files and objects, the cache folder, the memory they travel in
//!  (here)     what these stand on: what a source and a reader are, labels, schemas, names, errors, openings
//! ```
//!
//! # Promises
//!
//! - **A source does not change after `open`.** Index, key, label and size of a record are fixed; they depend on the
//!   stored data only, never on the order in which a file system lists it, the number of threads or the time.
//! - **A record's bytes are the bytes that were promised.** The disk readers notice a file that shrank, grew or
//!   vanished since `open` and say so ([`ReadErrorKind`]); bytes of two versions are never delivered as one record. A
//!   shard is also noticed when another file took its name, and a record of a tar shard when its headers, label or
//!   fields are others than those that were indexed. (An image that was rewritten in place with exactly the same length
//!   cannot be told apart, for the modification time is no part of a data set's identity; and a record above 2 GiB
//!   takes several reads.)
//! - **Every request ends exactly once**: its `done` is called with a record or an error, or, when the [`Reader`] is
//!   dropped first, `done` itself is dropped uncalled. Requests end in any order.
//! - **Retries happen inside the reader.** An error that reaches `done` has been retried where that can help. A failed
//!   read is a broken environment, not bad data: only what a decoder says about *bytes* may be substituted. A container
//!   format's own verdict on a record (a null, a damaged page) is such a verdict: [`ReadErrorKind::Bad`].
//! - **Memory is bounded by the caller.** A reader holds what was submitted and not yet dropped, plus at most
//!   [`POOL_BYTES`] of idle buffers. The caller submits no more than its byte budget allows ([`IndexedSource::size`]
//!   says what a record will cost before it is read).
//!
//! # What a source tells the order
//!
//! Reads from a folder are cheap in any order; reads from a tar shard, a Parquet row group or an object are cheap only
//! in sequence. [`IndexedSource::blocks`] gives the lengths of the stretches that want to be read together, and
//! [`IndexedSource::extent`] the byte range of each record. The disk readers work on ranges alone (open, read at an
//! offset, close), so a tar source is a manifest with offsets and needs no reader of its own.
//!
//! # What this crate does not do
//!
//! It decodes no image and shuffles nothing, and of local files it caches nothing (the page cache does). Unbounded
//! sources are a different type with a different life, not a flag on this one.

mod arrow;
mod bytes;
mod column;
mod condition;
mod error;
mod gather;
mod json;
mod labels;
mod mistaken;
mod names;
mod numbers;
mod opening;
mod reader;
mod recognised;
mod schema;
pub mod settings;
mod source;
mod sources;
mod split;
mod streams;
mod texts;
mod values;
mod verdicts;
mod workers;

pub use bytes::buffer::{Buffer, POOL_BYTES};
pub use bytes::shards::CacheConfig;
pub use column::PixelLayout;
pub use condition::Condition;
pub use error::{ReadError, ReadErrorKind, SourceError};
pub use names::{Shown, printable, shown};
pub use numbers::{read_indices, read_numbers};
pub use opening::{Counted, Opening, Progress};
pub use recognised::RECOGNISED;
pub use schema::{
    Cut, Deliver, ElementType, FieldSpec, MAX_FIELD_BYTES, MAX_PART_BYTES, PartKind, PartSpec, RESERVED,
    Schema, Wanted, WantedKind,
};
pub use sources::address::AddressConfig;
pub use sources::array::{ArrayConfig, TokensConfig as ArrayTokensConfig};
pub use sources::folder::FolderConfig;
pub use sources::hdf5::Hdf5Config;
pub use sources::mix::{MixConfig, MixPart, apportion};
pub use sources::subset::SubsetConfig;
pub use sources::synthetic::{SyntheticConfig, SyntheticFormat};
pub use sources::table::{TableConfig, TableFormat, TokenMode, TokenTail, TokensConfig};
pub use sources::tar::{TarConfig, tar_sidecar};
pub use split::{HeldOut, Split, SplitPart};
pub use streams::kafka::{
    KafkaConfig, KafkaPoint, KafkaProperties, KafkaValue, Producer as KafkaProducer,
    encode_value as encode_kafka_value,
};
pub use streams::{Follower, Place, Sink, StreamRecord, StreamSource, StreamStats, Window};

pub use reader::{Backend, Done, ReadRequest, ReadStats, Reader, ReaderConfig, Record};
pub use source::{Blocks, Extent, Fingerprint, IndexedSource, Portion};
pub use sources::{SourceConfig, open, open_stream, open_stream_watched, open_watched};
