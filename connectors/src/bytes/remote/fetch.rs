//! Bytes over the network: one range of one version, whatever happens on the way; and each block once at a time.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::{BoxFuture, FutureExt, Shared, WeakShared};
use futures_util::stream::StreamExt;
use object_store::{GetOptions, GetRange, ObjectMeta};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{sleep, timeout};

use super::client::{Silence, Verdict, advice, cause, verdict};
use super::{BLOCK, Object, Piece, Remote, Version};
use crate::ReadErrorKind;
use crate::bytes::cache::BlockId;
use crate::error::Fault;
use crate::workers::lock;

/// Attempts for one range in all, also when each brings a few bytes.
const MOST_ATTEMPTS: u32 = 200;

/// Bytes that came. Holds its share of the memory for blocks until it is dropped.
#[derive(Debug)]
pub(super) struct Fetched {
    pub bytes: Vec<u8>,
    _share: OwnedSemaphorePermit,
}

type Flight = BoxFuture<'static, Result<Arc<Fetched>, Fault>>;

/// The blocks being fetched by anyone in this process. Whoever waits drives the work; when nobody does, it ends.
static FLIGHTS: Mutex<Option<Flights>> = Mutex::new(None);

/// By block, each with a number of its own.
type Flights = HashMap<BlockId, (u64, WeakShared<Flight>)>;

/// Takes a flight off the list when it ends, in whatever way.
struct Landing(BlockId, u64);

impl Drop for Landing {
    fn drop(&mut self) {
        if let Some(flights) = &mut *lock(&FLIGHTS)
            && flights.get(&self.0).is_some_and(|(number, _)| *number == self.1)
        {
            flights.remove(&self.0);
        }
    }
}

impl Remote {
    /// A whole block: joins whoever is fetching it, or fetches it and keeps it in the cache.
    pub(super) async fn block(
        self: &Arc<Self>,
        object: &Object,
        piece: Piece,
    ) -> Result<Arc<Fetched>, Fault> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let flight: Shared<Flight> = {
            let mut flights = lock(&FLIGHTS);
            let flights = flights.get_or_insert_default();
            match flights.get(&piece.id).and_then(|(_, flight)| flight.upgrade()) {
                Some(flight) => flight,
                None => {
                    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
                    let landing = Landing(piece.id, number);
                    let (remote, object) = (self.clone(), object.clone());
                    let flight = async move {
                        let _landing = landing;
                        remote.bring(&object, piece).await.map(Arc::new)
                    };
                    let flight = flight.boxed().shared();
                    if let Some(weak) = flight.downgrade() {
                        flights.insert(piece.id, (number, weak));
                    }
                    flight
                }
            }
        };
        flight.await
    }

    async fn bring(&self, object: &Object, piece: Piece) -> Result<Fetched, Fault> {
        let share = self.share().await;
        // Another thread may have kept it between this one's look at the disk and its take-off.
        let mut bytes = vec![0; piece.len];
        if self.cache.read_block(piece.id, piece.len, 0, &mut bytes) {
            return Ok(Fetched { bytes, _share: share });
        }
        drop(bytes);
        let range = piece.begin..piece.begin + piece.len as u64;
        let bytes = self.range(object, range).await?;
        self.cache.write_block(piece.id, &bytes);
        Ok(Fetched { bytes, _share: share })
    }

    /// One range of an object, at most [`BLOCK`] long, which is not kept.
    pub(super) async fn fetch(&self, object: &Object, range: Range<u64>) -> Result<Fetched, Fault> {
        let share = self.share().await;
        Ok(Fetched { bytes: self.range(object, range).await?, _share: share })
    }

    async fn share(&self) -> OwnedSemaphorePermit {
        self.permits.clone().acquire_owned().await.expect("the semaphore is never closed")
    }

    async fn range(&self, object: &Object, range: Range<u64>) -> Result<Vec<u8>, Fault> {
        assert!(range.end - range.start <= BLOCK, "the caller asks for pieces");
        let len = (range.end - range.start) as usize;
        let mut bytes = Vec::new();
        if bytes.try_reserve_exact(len).is_err() {
            return Err(Fault::io(format!("there is no memory for {len} bytes"), true));
        }
        let mut attempts = Attempts::new(self);
        let mut whole = range.start == 0 && range.end == object.size;
        loop {
            let before = bytes.len();
            let Err(trouble) = self.attempt(object, &range, whole, &mut bytes).await else {
                return Ok(bytes);
            };
            if bytes.len() > before {
                attempts.progress();
            }
            match trouble {
                Verdict::NoRange if range.start == 0 && range.end == object.size => {
                    // The rest cannot be asked for: all of it again.
                    (bytes, whole) = (Vec::with_capacity(len), true);
                    attempts
                        .next(&object.path, "the server does not answer range requests".into(), None)
                        .await?;
                }
                Verdict::Again(text, wait) => {
                    if object.version == Version::Text(String::new()) {
                        // The rest might be of another version; nothing would tell.
                        bytes.clear();
                    }
                    attempts.next(&object.path, text, wait).await?;
                }
                Verdict::NoRange => {
                    let text = "the server did not answer a range request with that range".into();
                    attempts.next(&object.path, text, None).await?;
                }
                Verdict::Changed => return Err(self.changed(object).await),
                other => return Err(self.fault(&object.path, other)),
            }
        }
    }

    /// One request; appends what comes, until everything has.
    async fn attempt(
        &self,
        object: &Object,
        range: &Range<u64>,
        whole: bool,
        bytes: &mut Vec<u8>,
    ) -> Result<(), Verdict> {
        let begin = range.start + bytes.len() as u64;
        let all = whole && bytes.is_empty();
        let options = GetOptions {
            if_match: object.version.strong(),
            range: (!all).then_some(GetRange::Bounded(begin..range.end)),
            ..GetOptions::default()
        };
        let asked = async {
            let (store, path) = self.client.object(&object.path, &object.query)?;
            store.get_opts(&path, options).await
        };
        let answer = asked.await.map_err(|error| verdict(&error))?;
        let version = Version::of(&answer.meta);
        if version.hash() != object.version.hash() || answer.meta.size != object.size {
            return Err(Verdict::Changed);
        }
        if answer.range != (if all { 0..object.size } else { begin..range.end }) {
            return Err(Verdict::NoRange);
        }
        let silence = self.patience.silence;
        let mut body = answer.into_stream();
        loop {
            let left = (range.end - range.start) as usize - bytes.len();
            if left == 0 {
                return Ok(());
            }
            match timeout(silence, body.next()).await {
                Err(_) => return Err(Verdict::Again(Silence(silence).to_string(), None)),
                Ok(None) => return Err(Verdict::Again(format!("the body ended {left} bytes early"), None)),
                Ok(Some(Err(error))) => return Err(Verdict::Again(cause(&error), None)),
                Ok(Some(Ok(piece))) if piece.len() > left => {
                    return Err(Verdict::Never("the body is longer than was asked for".into()));
                }
                Ok(Some(Ok(piece))) => bytes.extend_from_slice(&piece),
            }
        }
    }

    /// What is there instead of the version wanted.
    async fn changed(&self, object: &Object) -> Fault {
        let address = self.display(&object.path);
        let found = match self.head(&object.path, &object.query).await {
            Ok(found) => format!("{} bytes, version {} found", found.size, found.version.shown()),
            Err(fault) if fault.kind == ReadErrorKind::Gone => return fault,
            Err(_) => "another one found".into(),
        };
        Fault {
            kind: ReadErrorKind::Changed,
            detail: format!(
                "{address} has changed since the source was opened: {} bytes, version {} expected, {found}; keep the data \
                 set unchanged while it is in use, or start again",
                object.size,
                object.version.shown()
            ),
            transient: false,
        }
    }

    /// A verdict in words, with the address.
    pub(super) fn fault(&self, path: &str, verdict: Verdict) -> Fault {
        let address = self.display(path);
        match verdict {
            Verdict::Gone(text) => Fault {
                kind: ReadErrorKind::Gone,
                detail: format!("{address} does not exist (any more): {text}; check the address"),
                transient: false,
            },
            Verdict::Changed => Fault {
                kind: ReadErrorKind::Changed,
                detail: format!("{address} has changed since the source was opened"),
                transient: false,
            },
            Verdict::Denied(text) => {
                Fault::io(format!("{address} may not be read: {text}; {}", advice(self.place.scheme)), false)
            }
            Verdict::NoRange => {
                Fault::io(format!("{address}: the server does not answer range requests"), false)
            }
            Verdict::Again(text, _) => Fault::io(format!("{address} cannot be read: {text}"), true),
            Verdict::Never(text) => Fault::io(format!("{address} cannot be read: {text}"), false),
        }
    }
}

/// Counts failures and waits between attempts.
pub(super) struct Attempts<'remote> {
    remote: &'remote Remote,
    failures: u32,
    all: u32,
    most: u32,
}

impl<'remote> Attempts<'remote> {
    pub(super) fn new(remote: &'remote Remote) -> Self {
        Self { remote, failures: 0, all: 0, most: remote.patience.attempts }
    }

    /// With fewer attempts than usual.
    pub(super) fn at_most(self, most: u32) -> Self {
        Self { most: most.min(self.most), ..self }
    }

    /// Bytes came: the next failure is the first again.
    pub(super) fn progress(&mut self) {
        self.failures = 0;
    }

    /// Waits before another attempt, or says that there have been enough.
    pub(super) async fn next(
        &mut self,
        path: &str,
        text: String,
        wait: Option<Duration>,
    ) -> Result<(), Fault> {
        (self.failures, self.all) = (self.failures + 1, self.all + 1);
        let patience = &self.remote.patience;
        if self.failures >= self.most || self.all >= MOST_ATTEMPTS {
            return Err(Fault::io(
                format!(
                    "{} cannot be read: {text}, {} times in a row",
                    self.remote.display(path),
                    self.failures
                ),
                true,
            ));
        }
        let wait = patience.wait(self.failures, wait);
        let (address, attempt) = (self.remote.display(path), self.failures + 1);
        // One failure is an everyday matter; several in a row are what a person who waits wants to know.
        if self.failures == 2 || self.failures.is_multiple_of(5) {
            tracing::warn!(
                "{address}: {text}; attempt {attempt} of {} in {} ms",
                self.most,
                wait.as_millis()
            );
        } else {
            tracing::debug!(
                "{address}: {text}; attempt {attempt} of {} in {} ms",
                self.most,
                wait.as_millis()
            );
        }
        sleep(wait).await;
        Ok(())
    }
}

impl Version {
    /// The version in an answer or a list.
    pub(crate) fn of(meta: &ObjectMeta) -> Self {
        let tag = meta.e_tag.as_deref().unwrap_or_default();
        // Lists of some stores leave out the quotes, and a tag that is a hash in base64 may begin with W/ itself.
        let weak = tag.starts_with("W/\"");
        let tag = if weak { &tag[2..] } else { tag }.trim_matches('"');
        let time = meta.last_modified.timestamp();
        Self::Text(match (tag.is_empty(), time) {
            (false, _) if !weak => tag.to_owned(),
            (true, 0) => String::new(),
            // A weak tag and a time in full seconds may both miss a change; together they are the best there is.
            _ => format!("{tag}@{time}"),
        })
    }

    /// As `If-Match` wants it; `None` where that would never match.
    fn strong(&self) -> Option<String> {
        match self {
            Self::Text(text) if !text.is_empty() && !text.contains('@') => Some(format!("\"{text}\"")),
            _ => None,
        }
    }

    fn shown(&self) -> String {
        match self {
            Self::Text(text) if text.is_empty() => "unknown".into(),
            Self::Text(text) => text.chars().filter(|c| !c.is_control()).take(100).collect(),
            Self::Hash(hash) => format!("(hash) {hash:016x}"),
        }
    }
}
