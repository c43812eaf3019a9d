//! Sources without a length: a stream is a sequence of *windows*, and inside a window it is an indexed source.
//!
//! ```text
//!  StreamSource ──follow(place)──▶ Follower          a thread that reads on, window after window
//!      │                              │ sink.window(Window)      fixed: ranges, records, count, hash
//!      ╰ origin(epoch) ▶ Place        ╰ asks sink.has_room() before it reads the next one
//!
//!  position   0        first              first + count            ▶ runs on over all windows of an epoch
//!             ├─ … ────┼──────────────────┼──────────────── …
//!                      ╰── window n ──────╯
//! ```
//!
//! # Promises
//!
//! - **A window is fixed once it is delivered.** Its [`Place`] says everything needed to read exactly these records
//!   again, from a process that knows nothing else. Read again, it is the same, or the follower fails and says what is
//!   missing: never a silent jump, never other records under the same numbers.
//! - **Windows of data that was there already are a pure function of the place before them** and the stored data; only
//!   at the live edge, where one closes because time is up, do they depend on arrival.
//! - **Memory is bounded by the sink.** A follower reads a window only while [`Sink::has_room`], and a window holds no
//!   more than [`StreamSource::window_bytes`], one record excepted.
//! - **A bad record is in its window**, with the reason; it has a position like any other.

pub(crate) mod kafka;

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::{Buffer, Fingerprint, ReadError, Record, Schema, SourceError};

/// A source that is read in windows instead of by index.
pub trait StreamSource: Send + Sync + 'static {
    /// What every record holds.
    fn schema(&self) -> Schema;

    /// Whether records have labels.
    fn is_labelled(&self) -> bool;

    /// Class names in label order; empty where labels are numbers.
    fn classes(&self) -> &[String];

    /// Identity of the stream and of what decides its windows; not of how much of it there is.
    fn fingerprint(&self) -> Fingerprint;

    /// Whether an epoch ends. An endless stream has one epoch, 0.
    fn is_bounded(&self) -> bool;

    /// Whether processes that do not talk to each other cut the same windows, also at the live edge.
    fn is_uniform(&self) -> bool;

    /// The place before the first record of an epoch: window 0, which is empty. The same for all epochs but for the
    /// number.
    fn origin(&self, epoch: u64) -> Place;

    /// The name of the record with this [id](Window::id); `None` where there can be none.
    fn key(&self, id: i64) -> Option<String>;

    /// Bytes of records in a window, at most (one record excepted).
    fn window_bytes(&self) -> u64;

    /// Bytes of memory that a follower holds beside its windows.
    fn memory(&self) -> u64;

    /// Checks a place that comes from outside (a token).
    ///
    /// # Errors
    /// A sentence that says why no follower can start there.
    fn check(&self, place: &Place) -> Result<(), SourceError>;

    /// Reads on from a place, on a thread of its own. With `again`, the first window delivered is `from` itself, read
    /// again and compared; else the one behind it. Behind the last window of an epoch comes an empty one of the same
    /// epoch, which says that it has ended; windows of the next epoch follow.
    ///
    /// # Errors
    /// As [`check`](Self::check); what happens later is told to the sink.
    fn follow(
        self: Arc<Self>,
        from: &Place,
        again: bool,
        sink: Arc<dyn Sink>,
    ) -> Result<Box<dyn Follower>, SourceError>;
}

/// A window without its records: where it lies, and what it must hold when it is read again.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Place {
    /// Epoch; windows never cross from one to the next.
    pub epoch: u64,
    /// Number in the epoch; 0 is the empty one before the first.
    pub window: u64,
    /// Position of its first record in the epoch.
    pub first: u64,
    /// Records in it.
    pub count: u64,
    /// Ranges and hash, in the source's own words. Plain data, about 48 bytes a partition.
    pub state: serde_json::Value,
}

impl Place {
    /// The position behind its last record.
    pub fn end(&self) -> u64 {
        self.first + self.count
    }
}

/// A bounded run of a stream, with its records in canonical order.
pub struct Window {
    /// Where it lies.
    pub place: Place,
    /// Whether its epoch ends with it. It may be empty then.
    pub last: bool,
    /// Its records.
    pub records: Vec<StreamRecord>,
    /// Names records by id.
    pub source: Arc<dyn StreamSource>,
}

/// One record of a window.
pub struct StreamRecord {
    /// Its number, unique in the stream. Delivered as `batch["index"]`; [`StreamSource::key`] turns it into a name.
    pub id: i64,
    /// Its class, or its numeric label.
    pub label: i64,
    /// Bytes it has where it is stored.
    pub stored: u64,
    /// The encoded image, then the fields; or why there is no such record.
    pub body: Result<Arc<[u8]>, Arc<str>>,
}

impl fmt::Debug for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Window").field("place", &self.place).field("last", &self.last).finish_non_exhaustive()
    }
}

impl Window {
    /// Bytes of memory its records hold.
    pub fn bytes(&self) -> u64 {
        let body =
            |record: &StreamRecord| record.body.as_ref().map_or_else(|why| why.len(), |bytes| bytes.len());
        self.records.iter().map(|record| (body(record) + size_of::<StreamRecord>()) as u64).sum()
    }

    /// The number of record `index` of the window in the stream.
    pub fn id(&self, index: u64) -> i64 {
        self.records[index as usize].id
    }

    /// The name of record `index`.
    pub fn key(&self, index: u64) -> String {
        let id = self.id(index);
        self.source.key(id).unwrap_or_else(|| id.to_string())
    }

    /// The label of record `index`.
    pub fn label(&self, index: u64) -> i64 {
        self.records[index as usize].label
    }

    /// Bytes of record `index`.
    pub fn size(&self, index: u64) -> u64 {
        self.records[index as usize].body.as_ref().map_or(0, |bytes| bytes.len() as u64)
    }

    /// Record `index`; its memory is the window's.
    ///
    /// # Errors
    /// [`ReadErrorKind::Bad`](crate::ReadErrorKind::Bad) when the stream holds no such record there.
    pub fn read(&self, index: u64) -> Result<Record, ReadError> {
        match &self.records[index as usize].body {
            Ok(bytes) => Ok(Record { index, bytes: Buffer::from(bytes.clone()) }),
            Err(why) => Err(ReadError::bad(self.key(index), why.to_string())),
        }
    }
}

/// Where a follower's windows go. Called on the follower's thread; must not block.
pub trait Sink: Send + Sync {
    /// Whether another window may be read now. Asked often.
    fn has_room(&self) -> bool;

    /// The next window.
    fn window(&self, window: Window);

    /// The stream cannot go on; nothing more comes.
    fn failed(&self, error: SourceError);
}

/// A stream being read. Dropping it ends its thread, within a second.
pub trait Follower: Send + Sync {
    /// A checkpoint holds this place: what lies before it may be told to the broker as consumed. Returns at once; a
    /// failure is logged and nothing else, for nothing is ever read back.
    fn saved(&self, place: &Place, position: u64);

    /// What it has done so far.
    fn stats(&self) -> StreamStats;
}

/// What a follower has done since it was started.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StreamStats {
    /// Number of the window last delivered.
    pub window: u64,
    /// Records received.
    pub records: u64,
    /// Bytes of these, as stored.
    pub bytes: u64,
    /// Records behind the end of the stream, by the broker's last word; `None` before the first.
    pub lag: Option<u64>,
    /// Partitions read.
    pub partitions: u64,
}
