//! Bytes of objects in stores and on web servers, read through the cache folder.
//!
//! ```text
//!  read(object, range) ─▶ blocks of 4 MiB ─▶ on disk? ──────────────────────────────▶ verified, copied out
//!                                              └─ no ─▶ being fetched by anyone? ─ yes ─▶ wait for that
//!                                                          └─ no ─▶ GET the block, If-Match ─▶ cache folder
//! ```
//!
//! # Promises
//!
//! - **Exact bytes of one version, or an error that names the address.** The version (ETag; else the time of change)
//!   and the size are fixed when the source is opened. Every answer must carry them; requests also ask for that version
//!   (`If-Match`). A block on disk is filed under its version.
//! - **Faults that pass are waited out**: server errors, 429 with `Retry-After`, resets, silence, bodies that end
//!   early. What came is kept and the rest asked for. The attempts are bounded ([`Patience`]).
//! - **Memory is bounded**: at most [`FETCHES`] blocks are in memory at a time for one store ([`MEMORY`]).
//! - **A reader that is dropped stops within milliseconds**, whatever the server does.
//! - **Without a cache folder that can be written** (a full disk) exactly the bytes asked for are fetched, each time.
//!
//! # What this does not do
//!
//! It reads no credentials from files of its own and shows none; it writes to no store; a web server lists nothing.

mod client;
mod fetch;
pub(crate) mod list;
#[cfg(test)]
mod tests;
mod url;

use std::sync::{Arc, Mutex, Weak};

use futures_util::stream::{self, StreamExt, TryStreamExt};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::Semaphore;
use xxhash_rust::xxh3::{xxh3_64, xxh3_128};

pub(crate) use self::client::Patience;
pub(crate) use self::list::{Listed, addresses};
pub(crate) use self::url::{Address, Place, is_url, shown};

use self::client::Client;
use crate::bytes::buffer::Pool;
use crate::bytes::cache::{BlockId, Cache};
use crate::error::Fault;
use crate::opening;
use crate::workers::{self, Workers, lock};
use crate::{CacheConfig, POOL_BYTES, ReadError, Reader, ReaderConfig, SourceError};

/// Objects are fetched and kept in pieces of this many bytes.
pub(crate) const BLOCK: u64 = 4 << 20;

/// Blocks of one store being fetched at a time.
const FETCHES: usize = 16;

/// Bytes of memory for the blocks of one store: those being fetched, and what the connections hold.
pub(crate) const MEMORY: u64 = FETCHES as u64 * (BLOCK + (512 << 10));

/// Blocks that one read waits for at a time.
const BLOCKS_PER_READ: usize = 4;

/// More threads of one reader than this wait for the same network.
const MAX_THREADS: u32 = 32;

/// One bucket, container or web server, with its cache.
#[derive(Debug)]
pub(crate) struct Remote {
    place: Place,
    client: Client,
    patience: Patience,
    /// Tells apart stores of different endpoints in the cache.
    endpoint: String,
    cache: Arc<Cache>,
    permits: Arc<Semaphore>,
    runtime: Arc<Network>,
}

/// Which object, and which version of it.
#[derive(Clone, Debug)]
pub(crate) struct Object {
    /// Its key in the bucket, or its path on the server.
    pub path: String,
    /// What follows the path in an http address, with its `?`.
    pub query: String,
    pub size: u64,
    pub version: Version,
}

/// The version of an object: its ETag without quotes; `@` and a time where it has none (or a weak one before that);
/// empty when the server tells nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Version {
    Text(String),
    /// The hash of the text, where millions are kept.
    Hash(u64),
}

impl Version {
    /// Eight bytes that stand for it.
    pub(crate) fn hash(&self) -> u64 {
        match self {
            Self::Text(text) => xxh3_64(text.as_bytes()),
            Self::Hash(hash) => *hash,
        }
    }

    /// The text, or the hash in its place.
    pub(crate) fn text(&self) -> String {
        match self {
            Self::Text(text) => text.clone(),
            Self::Hash(hash) => format!("{hash:016x}"),
        }
    }
}

impl Remote {
    /// Prepares for reading from a place; asks the network nothing.
    ///
    /// # Errors
    /// [`SourceError`] about the environment or the cache folder.
    pub(crate) fn connect(place: &Place, cache: &CacheConfig) -> Result<Arc<Self>, SourceError> {
        Self::connect_with(place, cache, Patience::READ)
    }

    fn connect_with(
        place: &Place,
        cache: &CacheConfig,
        patience: Patience,
    ) -> Result<Arc<Self>, SourceError> {
        Ok(Arc::new(Self {
            place: place.clone(),
            client: Client::connect(place, patience)?,
            patience,
            endpoint: client::endpoint(place),
            cache: crate::bytes::cache::open(cache)?,
            permits: Arc::new(Semaphore::new(FETCHES)),
            runtime: Network::shared()?,
        }))
    }

    /// The address of an object, as it may be shown.
    pub(crate) fn display(&self, path: &str) -> String {
        format!("{}/{path}", self.place)
    }

    /// Fills `out` from a place in an object; blocks.
    ///
    /// # Errors
    /// [`Fault`] that names the address. When this is a reader's thread and the reader is being dropped, any fault at
    /// once.
    pub(crate) fn read(self: &Arc<Self>, object: &Object, offset: u64, out: &mut [u8]) -> Result<(), Fault> {
        let end = offset.checked_add(out.len() as u64);
        if end.is_none_or(|end| end > object.size) {
            return Err(Fault::io(
                format!(
                    "{} ends at byte {}, before byte {}",
                    self.display(&object.path),
                    object.size,
                    offset.saturating_add(out.len() as u64)
                ),
                false,
            ));
        }
        let id = self.identity(object);
        let mut missing = Vec::new();
        let (mut rest, mut at) = (out, offset);
        while !rest.is_empty() {
            let number = at / BLOCK;
            let begin = number * BLOCK;
            let len = BLOCK.min(object.size - begin) as usize;
            let inside = (at - begin) as usize;
            let count = rest.len().min(len - inside);
            let (part, later) = std::mem::take(&mut rest).split_at_mut(count);
            let Ok(number) = u32::try_from(number) else {
                return Err(Fault::io(format!("{} is too large", self.display(&object.path)), false));
            };
            let piece = Piece { id: BlockId { object: id, number }, begin, len, inside };
            if !self.cache.read_block(piece.id, len, inside, part) {
                missing.push((piece, part));
            }
            (rest, at) = (later, at + count as u64);
        }
        if missing.is_empty() {
            return Ok(());
        }
        self.wait(stream::iter(missing).map(Ok).try_for_each_concurrent(
            BLOCKS_PER_READ,
            |(piece, part)| async move {
                if self.cache.accepts(piece.len as u64) {
                    let block = self.block(object, piece).await?;
                    part.copy_from_slice(&block.bytes[piece.inside..][..part.len()]);
                } else {
                    let begin = piece.begin + piece.inside as u64;
                    let fetched = self.fetch(object, begin..begin + part.len() as u64).await?;
                    part.copy_from_slice(&fetched.bytes);
                }
                Ok(())
            },
        ))
    }

    /// The hash under which the blocks of this version of an object are kept.
    fn identity(&self, object: &Object) -> u128 {
        use std::fmt::Write;
        let mut text = format!("{}\0{}\0{}{}\0", self.endpoint, self.place, object.path, object.query);
        let _ = write!(text, "{:016x}\0{}", object.version.hash(), object.size);
        if object.version.hash() == xxh3_64(b"") {
            // Without any version, what an earlier run kept may be of another.
            let _ = write!(text, "\0{}", std::process::id() as u64 ^ self.runtime.number);
        }
        xxh3_128(text.as_bytes())
    }

    /// Runs a future on this thread until it is done, the reader that this thread belongs to is being dropped, or the
    /// opening that it works for is cancelled.
    pub(crate) fn wait<T>(&self, work: impl Future<Output = Result<T, Fault>>) -> Result<T, Fault> {
        self.runtime.block_on(async {
            tokio::select! {
                biased;
                result = work => result,
                () = workers::stopped() => Err(Fault::io("the reader was dropped".into(), true)),
                () = opening::cancelled() => Err(Fault::io(SourceError::cancelled().to_string(), true)),
            }
        })
    }

    /// Starts a reader for records that are ranges of objects. `locate` gives the object, the first byte and the
    /// length.
    ///
    /// # Errors
    /// As [`crate::IndexedSource::reader`].
    pub(crate) fn reader(
        self: Arc<Self>,
        config: &ReaderConfig,
        key: impl Fn(u64) -> String + Clone + Send + Sync + 'static,
        locate: impl Fn(u64) -> (Object, u64, u64) + Send + Sync + 'static,
    ) -> Result<Box<dyn Reader>, SourceError> {
        config.check()?;
        let pool = Pool::new(POOL_BYTES);
        let name = key.clone();
        let work = move |index, _: &workers::Stop| {
            let (object, offset, len) = locate(index);
            let buffer = usize::try_from(len).ok().and_then(|len| pool.take(len));
            let Some(mut buffer) = buffer else {
                let detail = format!("there is no memory for its {len} bytes");
                return Some(Err(ReadError::io(key(index), detail, true)));
            };
            let read = self.read(&object, offset, &mut buffer.storage()[..len as usize]);
            buffer.set_len(len as usize);
            Some(read.map(|()| buffer).map_err(|fault| ReadError::remote(key(index), fault)))
        };
        let threads = config.depth.min(MAX_THREADS) as usize;
        Ok(Box::new(Workers::start("remote", threads, Box::new(name), Box::new(work))?))
    }
}

/// A part of a read that lies in one block.
#[derive(Clone, Copy, Debug)]
struct Piece {
    id: BlockId,
    /// Where the block begins in the object, and its length.
    begin: u64,
    len: usize,
    /// Where the part begins in the block.
    inside: usize,
}

/// The threads that wait for the network: two for the whole process, while anything remote is open.
#[derive(Debug)]
struct Network {
    runtime: Option<Runtime>,
    /// Random, another one in each process.
    number: u64,
}

impl Network {
    fn shared() -> Result<Arc<Self>, SourceError> {
        static SHARED: Mutex<Weak<Network>> = Mutex::new(Weak::new());
        let mut shared = lock(&SHARED);
        if let Some(network) = shared.upgrade() {
            return Ok(network);
        }
        let network = Arc::new(Self::start()?);
        *shared = Arc::downgrade(&network);
        Ok(network)
    }

    fn start() -> Result<Self, SourceError> {
        use std::hash::{BuildHasher, Hasher};
        let runtime = Builder::new_multi_thread()
            .worker_threads(2)
            // For the names of hosts.
            .max_blocking_threads(4)
            .thread_name("fuelrail-net")
            .enable_all()
            .build()
            .map_err(|error| SourceError::backend(format!("no threads for the network: {error}")))?;
        let number = std::hash::RandomState::new().build_hasher().finish();
        Ok(Self { runtime: Some(runtime), number })
    }

    fn block_on<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime.as_ref().expect("it runs until it is dropped").block_on(work)
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        // The last handle may go on any thread; waiting here could be waiting for oneself.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}
