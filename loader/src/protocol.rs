//! The messages between a client and the daemon, and how they lie on the wire.
//!
//! ```text
//! ┌────────────┬──────────────────────────┐
//! │ u32 LE len │ len bytes of JSON        │   one frame; at most MAX_FRAME bytes
//! └────────────┴──────────────────────────┘   a descriptor (ring, adopted socket) travels with a frame's first byte
//! ```
//!
//! Ownership of a slot moves only by these messages: `ready` gives it to the client, `release` gives it back. Every
//! `ready` carries the generation of the `seek` it answers; the client releases those of an older one unseen. JSON is
//! enough: a few hundred messages a second cost nothing measurable, and a person can read a capture.
//!
//! ```text
//! client                                daemon
//!   adopt {} + socket ───────────────────▶                               of a private daemon: one more connection
//!   hello {protocol, pid} ───────────────▶
//!   ◀─────────────────────────────────── welcome {protocol} | refused {kind, message}
//!   attach {pipeline, rank, …} ──────────▶
//!   ◀─────────────────────────────────── progress {what, done, total}    while the source is being opened
//!   ◀───────────────── attached {layout, …} + memfd | refused
//!   ◀─────────────────────────────────── ready {generation, slot, epoch, position, rows}   as long as slots are free
//!   release {slot} ──────────────────────▶
//!   seek {generation, epoch, position} ──▶                               (of a stream with the window it lies in)
//!   ◀─────────────────────────────────── window {place}, end {epoch, len}     of a stream: what a token needs to know
//!   saved {place, position} ─────────────▶                               a checkpoint holds this place of a stream
//!   ◀─────────────────────────────────── failed {generation, kind, message}   nothing more comes before a seek
//!   keys {indices} ──────────────────────▶
//!   ◀─────────────────────────────────── keys {keys}
//!   stats {…} ───────────────────────────▶
//!   ◀─────────────────────────────────── stats {…}
//!   ◀─────────────────────────────────── log {level, text}               at any time
//!   end-of-file (or the client's death) ─▶  everything of this feed is freed
//! ```

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags,
};
use serde::{Deserialize, Serialize};

use crate::layout::Layout;
use crate::plan::{Batching, Cursor};
use crate::token::{Identity, Place};

/// Version of the messages; both sides must have the same.
pub const PROTOCOL: u32 = 8;

/// Longest frame: a pipeline with a long class list is the largest thing ever sent.
pub const MAX_FRAME: usize = 16 << 20;

/// Most keys asked for, and given, in one message.
pub const MAX_KEYS: usize = 1 << 16;

/// What a client says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "say", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// First message of a connection.
    Hello {
        /// [`PROTOCOL`].
        protocol: u32,
        /// The client's process.
        pid: u32,
    },
    /// Take over the socket that travels with this frame as a connection of its own.
    Adopt,
    /// Become a feed of a pipeline.
    Attach(Box<Attach>),
    /// Go on from elsewhere: everything of older generations is void.
    Seek {
        /// Counts up with every seek; `ready` echoes it.
        generation: u64,
        /// Where to go on.
        cursor: Cursor,
        /// Of a stream: the window in or behind which that lies; may be left out at the start of an epoch.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        place: Option<Place>,
    },
    /// A checkpoint is safe that holds this place of a stream: what lies before it may be told to the broker.
    Saved {
        /// The token's window.
        place: Place,
        /// The token's position.
        position: u64,
    },
    /// A slot is no longer used.
    Release {
        /// Which.
        slot: u32,
    },
    /// Ask for the keys of records.
    Keys {
        /// Record indices.
        indices: Vec<i64>,
    },
    /// Ask for counters and the verdict, which also needs what the client measured.
    Stats {
        /// Nanoseconds spent waiting in `next()`.
        data_wait_ns: u64,
        /// Nanoseconds between the first `next()` of an epoch and its end.
        iteration_ns: u64,
    },
}

/// The wish to become a feed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Attach {
    /// Name of one of the daemon's pipelines, or a pipeline of the client's own.
    pub pipeline: PipelineRef,
    /// This client's rank.
    #[serde(default)]
    pub rank: u64,
    /// Number of ranks.
    #[serde(default = "one")]
    pub world_size: u64,
    /// Where to start.
    #[serde(default)]
    pub start: Cursor,
    /// Which of a job's processes this is, where they share the daemon of their node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub member: Option<Member>,
}

/// One of the processes of a job, and which of its Loaders attaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Member {
    /// Its number in the job. Processes that are replicas have numbers of their own and the same rank.
    pub process: u64,
    /// Processes of the job.
    pub processes: u64,
    /// Those of them on this node.
    pub here: u64,
    /// Which of the Loaders that the process has made: the other processes' of this number must be the same. `None` of
    /// one that has nothing to do with them.
    pub loader: Option<u64>,
}

fn one() -> u64 {
    1
}

/// Which pipeline.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PipelineRef {
    /// One from the daemon's configuration.
    Name(String),
    /// The client's own; parsed by the daemon, which knows sources and transforms (a client does not link them).
    Inline(serde_json::Value),
}

/// What the daemon says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "say", rename_all = "snake_case", deny_unknown_fields)]
pub enum Reply {
    /// The connection stands.
    Welcome {
        /// [`PROTOCOL`].
        protocol: u32,
        /// Version of the daemon's build.
        version: String,
        /// The daemon's process.
        pid: u32,
    },
    /// The last request cannot be met; after `hello` or `attach` the connection ends.
    Refused {
        /// Whose fault, for the client's error type.
        kind: ErrorKind,
        /// What and what to do.
        message: String,
    },
    /// How far opening the source has come, between `attach` and its answer; at most ten times a second.
    Progress(Progress),
    /// The feed stands; the ring's descriptor travels with this frame.
    Attached(Box<Attached>),
    /// A batch is finished and now belongs to the client.
    Ready(Ready),
    /// The run cannot go on from this batch; a `seek` starts anew.
    Failed {
        /// Generation it belongs to.
        generation: u64,
        /// Whose fault.
        kind: ErrorKind,
        /// What and what to do.
        message: String,
    },
    /// A window of a stream has come; said before any batch that begins or ends in it.
    Window {
        /// Generation it belongs to.
        generation: u64,
        /// Where it lies.
        place: Place,
    },
    /// The last window of an epoch of a stream has come.
    End {
        /// Generation it belongs to.
        generation: u64,
        /// The epoch.
        epoch: u64,
        /// Records in it.
        len: u64,
    },
    /// Answer to `keys`, in the same order.
    Keys {
        /// Keys of the records asked for.
        keys: Vec<String>,
    },
    /// Answer to `stats`.
    Stats(Box<Stats>),
    /// A line for the client's log.
    Log {
        /// "error", "warn", "info" or "debug".
        level: String,
        /// The line.
        text: String,
    },
}

/// How far an opening has come with what it is doing now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Progress {
    /// What it is doing, such as "indexing shards".
    pub what: String,
    /// How much of it is done.
    pub done: u64,
    /// How much there is, where that is known.
    pub total: Option<u64>,
    /// What is counted: "bytes", "files", "objects" or "rows".
    pub counted: String,
}

#[cfg(feature = "daemon")]
impl From<fuelrail_connectors::Progress> for Progress {
    fn from(progress: fuelrail_connectors::Progress) -> Self {
        use fuelrail_connectors::Counted;
        let counted = match progress.counted {
            Counted::Bytes => "bytes",
            Counted::Files => "files",
            Counted::Objects => "objects",
            Counted::Rows => "rows",
        };
        Self { what: progress.what, done: progress.done, total: progress.total, counted: counted.into() }
    }
}

impl fmt::Display for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { what, done, total, counted } = self;
        let megabytes = |bytes: u64| bytes as f64 / 1e6;
        match (counted.as_str(), total) {
            ("bytes", Some(total)) => {
                write!(f, "{what}: {:.1} of {:.1} MB", megabytes(*done), megabytes(*total))
            }
            ("bytes", None) => write!(f, "{what}: {:.1} MB", megabytes(*done)),
            (things, Some(total)) => write!(f, "{what}: {done} of {total} {things}"),
            (things, None) => write!(f, "{what}: {done} {things}"),
        }
    }
}

/// Whose fault an error is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorKind {
    /// Wrong argument or configuration.
    Config,
    /// The source is missing, empty, unreadable or changed.
    Source,
    /// Too many bad records, or one and `on_error = "fail"`.
    Data,
    /// The other side does not follow the protocol, or has another version.
    Protocol,
    /// The daemon's own environment: memory, descriptors.
    Environment,
    /// A client of a shared feed that held up the others, and was let go.
    Detached,
}

/// What a feed is told about itself: the batch layout as data, the ring, the run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Attached {
    /// How a batch lies in a slot.
    pub layout: Layout,
    /// Slots in the ring.
    pub slots: u32,
    /// How epochs are cut.
    pub batching: Batching,
    /// What the run is, for tokens.
    pub identity: Identity,
    /// Class names; label i is `classes[i]`.
    pub classes: Vec<String>,
    /// Worker threads.
    pub threads: u32,
    /// The bytes this feed may use, one line per owner, and their sum under "total".
    pub budget: BTreeMap<String, u64>,
    /// Where refused records are listed, if anywhere.
    pub quarantine: Option<String>,
    /// Of a stream: what kind.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stream: Option<StreamKind>,
    /// Of a shared feed: this client's place in it. Its ring can be read only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub share: Option<Joined>,
}

/// A client's place in a shared feed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Joined {
    /// Its number, from 0 in the order of joining.
    pub member: u32,
    /// Where its first batch begins.
    pub start: Cursor,
}

/// What a client needs to know of a stream before it has seen a window of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StreamKind {
    /// Whether an epoch ends.
    pub bounded: bool,
    /// The place before its first record.
    pub origin: Place,
}

/// A finished batch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ready {
    /// Generation it belongs to.
    pub generation: u64,
    /// Where it lies.
    pub slot: u32,
    /// Where its global batch begins.
    pub cursor: Cursor,
    /// Where the next global batch begins; the epoch is settled (see [`Batching::settle`]).
    pub next: Cursor,
    /// Rows in it (fewer than `batch_size` in a tail or after a drop, possibly 0).
    pub rows: u32,
    /// Rows that hold a substitute.
    pub substituted: u32,
    /// Rows that were dropped.
    pub dropped: u32,
}

/// Counters of a feed since it was attached; times in nanoseconds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stats {
    /// Since attach.
    pub wall_ns: u64,
    /// Batches handed over.
    pub batches: u64,
    /// Rows handed over.
    pub rows: u64,
    /// Rows that held a substitute.
    pub substituted: u64,
    /// Rows dropped.
    pub dropped: u64,
    /// Encoded bytes read.
    pub read_bytes: u64,
    /// Records read.
    pub reads: u64,
    /// Submissions to the kernel that these reads took (io_uring_enter calls, or one per read).
    pub submissions: u64,
    /// "io_uring", "threads" or "generated".
    pub backend: String,
    /// Sum over records of the time from request to bytes.
    pub read_ns: u64,
    /// Sum over records of the time that bytes waited for a worker.
    pub queue_ns: u64,
    /// Sum over records of the time in the transform chain.
    pub transform_ns: u64,
    /// Time in which no slot was free: the consumer was the limit.
    pub ring_full_ns: u64,
    /// Time in which workers had nothing to do while a slot was free and records were being read.
    pub starved_ns: u64,
    /// Worker threads.
    pub threads: u32,
    /// Peak resident bytes of the daemon (VmHWM), ring included.
    pub peak_rss_bytes: u64,
    /// CPU time of the daemon, user and system.
    pub cpu_ns: u64,
    /// Largest sum of encoded bytes in flight.
    pub peak_in_flight_bytes: u64,
    /// Of a stream: how far it has been read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stream: Option<StreamCounters>,
    /// Which stage was the limit: "read", "transform" or "train".
    pub limit: String,
    /// The same as a sentence with the figures.
    pub verdict: String,
}

/// How far a stream has been read, since it was last begun.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StreamCounters {
    /// Number of the window last received.
    pub window: u64,
    /// Records received.
    pub records: u64,
    /// Bytes of these, as stored.
    pub bytes: u64,
    /// Records behind the end of the stream, by the broker's last word.
    pub lag: Option<u64>,
    /// Partitions read.
    pub partitions: u64,
}

/// One message as a frame.
pub fn encode<T: Serialize>(message: &T) -> Vec<u8> {
    let mut frame = vec![0; 4];
    serde_json::to_writer(&mut frame, message).expect("messages are plain data");
    let len = (frame.len() - 4) as u32;
    frame[..4].copy_from_slice(&len.to_le_bytes());
    frame
}

/// Collects bytes and descriptors from a socket and gives whole messages.
#[derive(Debug, Default)]
pub struct Decoder {
    bytes: Vec<u8>,
    fds: Vec<OwnedFd>,
}

/// The peer sent something that is not a message.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct FrameError(pub String);

impl Decoder {
    /// One `recvmsg`; returns the number of bytes, 0 at end-of-file.
    ///
    /// # Errors
    /// The socket's, `WouldBlock` included.
    pub fn receive(&mut self, socket: BorrowedFd<'_>, flags: RecvFlags) -> io::Result<usize> {
        let mut chunk = [0u8; 16 << 10];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received = rustix::io::retry_on_intr(|| {
            rustix::net::recvmsg(
                socket,
                &mut [io::IoSliceMut::new(&mut chunk)],
                &mut control,
                flags | RecvFlags::CMSG_CLOEXEC,
            )
        })?;
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = message {
                self.fds.extend(fds);
            }
        }
        // A peer that floods descriptors loses them: at most one is ever expected at a time.
        self.fds.truncate(4);
        self.bytes.extend_from_slice(&chunk[..received.bytes]);
        Ok(received.bytes)
    }

    /// The next whole message, if it is here.
    ///
    /// # Errors
    /// When the bytes are not a frame of a known message.
    pub fn message<T: for<'de> Deserialize<'de>>(&mut self) -> Result<Option<T>, FrameError> {
        let Some(header) = self.bytes.first_chunk::<4>() else { return Ok(None) };
        let len = u32::from_le_bytes(*header) as usize;
        if len > MAX_FRAME {
            return Err(FrameError(format!(
                "a message of {len} bytes is longer than the limit of {MAX_FRAME}"
            )));
        }
        if self.bytes.len() < 4 + len {
            return Ok(None);
        }
        let message = serde_json::from_slice(&self.bytes[4..4 + len])
            .map_err(|error| FrameError(format!("not a message of protocol {PROTOCOL}: {error}")));
        self.bytes.drain(..4 + len);
        message.map(Some)
    }

    /// The oldest descriptor that came with a frame.
    pub fn take_fd(&mut self) -> Option<OwnedFd> {
        if self.fds.is_empty() { None } else { Some(self.fds.remove(0)) }
    }
}

/// Sends as much of `bytes` as the socket takes, with a descriptor beside the first byte; never raises SIGPIPE.
///
/// # Errors
/// The socket's, `WouldBlock` included.
pub fn send(socket: BorrowedFd<'_>, bytes: &[u8], fd: Option<BorrowedFd<'_>>) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds = fd.map(|fd| [fd]);
    if let Some(fds) = &fds {
        assert!(control.push(SendAncillaryMessage::ScmRights(fds)), "the buffer holds one descriptor");
    }
    let sent = rustix::io::retry_on_intr(|| {
        rustix::net::sendmsg(socket, &[io::IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)
    })?;
    Ok(sent)
}

/// Sends a whole message over a blocking socket.
///
/// # Errors
/// The socket's.
pub fn send_all<S: AsFd, T: Serialize>(
    socket: &S,
    message: &T,
    fd: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    let frame = encode(message);
    let mut sent = send(socket.as_fd(), &frame, fd)?;
    while sent < frame.len() {
        sent += send(socket.as_fd(), &frame[sent..], None)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::os::unix::net::UnixStream;

    #[test]
    fn a_message_and_its_descriptor_arrive_together() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let gift = std::fs::File::open("/dev/null").unwrap();
        send_all(&ours, &Request::Adopt, Some(gift.as_fd())).unwrap();
        send_all(&ours, &Request::Release { slot: 7 }, None).unwrap();
        let mut decoder = Decoder::default();
        let mut seen = Vec::new();
        while seen.len() < 2 {
            decoder.receive(theirs.as_fd(), RecvFlags::empty()).unwrap();
            while let Some(message) = decoder.message::<Request>().unwrap() {
                seen.push(message);
            }
        }
        assert_eq!(seen, [Request::Adopt, Request::Release { slot: 7 }]);
        assert!(decoder.take_fd().is_some() && decoder.take_fd().is_none());
    }

    #[test]
    fn progress_reads_like_a_sentence() {
        let progress = |what: &str, done, total, counted: &str| {
            Progress { what: what.into(), done, total, counted: counted.into() }.to_string()
        };
        assert_eq!(
            progress("indexing shards", 3_140_000, Some(10_000_000), "bytes"),
            "indexing shards: 3.1 of 10.0 MB"
        );
        assert_eq!(progress("listing", 5, None, "objects"), "listing: 5 objects");
        assert_eq!(progress("reading labels", 5, Some(7), "rows"), "reading labels: 5 of 7 rows");
    }

    #[test]
    fn oversized_and_unknown_messages_are_refused() {
        let mut decoder = Decoder { bytes: u32::MAX.to_le_bytes().to_vec(), fds: vec![] };
        assert!(decoder.message::<Request>().unwrap_err().to_string().contains("longer"));
        let mut decoder = Decoder { bytes: encode(&serde_json::json!({"say": "dance"})), fds: vec![] };
        assert!(decoder.message::<Request>().unwrap_err().to_string().contains("dance"));
        let mut decoder =
            Decoder { bytes: encode(&serde_json::json!({"say": "release", "slots": 1})), fds: vec![] };
        assert!(decoder.message::<Request>().is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_give_messages_or_errors_never_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut decoder = Decoder { bytes, fds: vec![] };
            while let Ok(Some(_)) = decoder.message::<Request>() {}
        }

        #[test]
        fn a_frame_may_arrive_in_any_pieces(cuts in prop::collection::vec(1usize..9, 0..40)) {
            let message = Request::Seek { generation: 3, cursor: Cursor { epoch: 1, position: 99 }, place: None };
            let frame = encode(&message);
            let mut decoder = Decoder::default();
            let mut at = 0;
            for cut in cuts.into_iter().chain([frame.len()]) {
                let end = (at + cut).min(frame.len());
                decoder.bytes.extend_from_slice(&frame[at..end]);
                at = end;
                if at < frame.len() {
                    prop_assert_eq!(decoder.message::<Request>().unwrap(), None);
                }
            }
            prop_assert_eq!(decoder.message::<Request>().unwrap(), Some(message));
        }
    }
}
