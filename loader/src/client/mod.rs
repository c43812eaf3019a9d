//! A training process's side of a feed: attach, take batches, give slots back. No thread, no async runtime.
//!
//! ```text
//!  Private (child process, control socket)        one per process, shared by its feeds, ends with the last
//!     ├── Lines (of the daemon's log)             told by whichever feed waits
//!     └── Feed (cursor, windows, token)           one per loader
//!            ├── Conversation (socket)            what is sent, and what has arrived, sorted
//!            └── Batch ── Arc<Lease> ── Mapping   the slot goes back when the last view of it is dropped
//! ```
//!
//! Promises
//! - [`Feed::next`] returns a batch, the end of the epoch, or a typed error by its time-out: never a silent hang;
//! - it can be interrupted (ctrl-C) within a tenth of a second;
//! - what the daemon logs is told while a call waits, before what the call waits for is taken;
//! - a call is steps with a wait between them, in one loop ([`until`]): whoever shares a feed behind a lock is a
//!   [`Caller`] of its own, takes the steps with the lock and [waits](Waiting) without;
//! - a lease keeps the mapping alive by itself: views stay readable after close, after the daemon's death, and at
//!   interpreter exit; dropped in a forked child it sends nothing;
//! - all but one slot leased: batches are handed out as owned copies, so a caller who collects images never
//!   deadlocks (not with an `Uploader`, which gives slots back by itself).

mod conversation;
mod handshake;
mod lease;
mod lines;
mod node;
mod private;
mod questions;
#[cfg(feature = "cuda")]
mod upload;
mod waiting;
mod windows;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::plan::{Batching, Cursor};
use crate::protocol::{Attach, Attached, ErrorKind, Progress, Ready, Reply, Request, Stats};
use crate::ring::{Access, Mapping};
use crate::token::{Allow, Place, Token, TokenError};

use conversation::{Conversation, Told};
use handshake::Opened;
pub use lease::{AlignedBytes, Lease, Memory};
use questions::{Kind, Question};
pub use questions::{keys, stats};
#[cfg(feature = "cuda")]
pub use upload::{Copied, Part, Pin, Uploader};
use waiting::Alone;
pub use waiting::{Caller, INTERRUPT_PERIOD, Steps, Waiting, Wanted, until};
use windows::Windows;

/// Slots that stay with the daemon however many batches the caller holds: with one, work goes on.
const SLOTS_KEPT: usize = 1;

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The daemon refused or stopped; its words.
    #[error("{message}")]
    Daemon {
        /// Whose fault.
        kind: ErrorKind,
        /// What and what to do.
        message: String,
    },
    /// The daemon is gone.
    #[error("{0}")]
    Died(String),
    /// Nothing came in time.
    #[error("{0}")]
    Timeout(String),
    /// The caller wants to stop.
    #[error("interrupted")]
    Interrupted,
    /// Used in a forked child or after close.
    #[error("{0}")]
    Misuse(String),
    /// A state that cannot be loaded.
    #[error(transparent)]
    Token(#[from] TokenError),
}

impl ClientError {
    /// The error of a feed that is used in another process than the one that made it.
    pub fn forked() -> Self {
        Self::Misuse(
            "this Loader was made in the parent process; a forked child must make its own (or start with 'spawn')"
                .into(),
        )
    }

    fn protocol(message: impl Into<String>) -> Self {
        Self::Daemon { kind: ErrorKind::Protocol, message: message.into() }
    }
}

/// Asked now and then while waiting: true to give up.
pub type Interrupt<'a> = &'a mut dyn FnMut() -> bool;

/// Told what happens while a call waits.
pub type Watch<'a> = &'a mut dyn FnMut(News<'_>);

/// What happens while a call waits.
#[derive(Clone, Copy, Debug)]
pub enum News<'a> {
    /// How far opening the source has come; about ten times a second while it makes progress.
    Progress(&'a Progress),
    /// A line of the daemon's log.
    Log {
        /// "error", "warn", "info" or "debug".
        level: &'a str,
        /// What it says.
        text: &'a str,
    },
}

/// Which daemon.
#[derive(Clone, Debug)]
pub enum Address {
    /// A daemon of this process's own, started from this binary when there is none yet.
    Private(PathBuf),
    /// The daemon of a job on this node, started from this binary when there is none yet.
    Job(PathBuf, String),
    /// A daemon that listens on a socket.
    Socket(PathBuf),
}

/// One batch.
#[derive(Debug)]
pub struct Batch {
    /// Its fields' bytes.
    pub memory: Memory,
    /// Its columns' bytes, copied out, in the order of [`Layout::columns`](crate::layout::Layout::columns).
    pub columns: Vec<Vec<u8>>,
    /// What the daemon said of it.
    pub ready: Ready,
}

/// What a step towards the next batch led to.
#[derive(Debug)]
pub enum Next {
    /// Here it is.
    Batch(Box<Batch>),
    /// The epoch has no more.
    End,
    /// It has not come yet: [wait](until), then ask again.
    Pending,
}

/// What a feed counted on this side.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counters {
    /// Nanoseconds spent waiting for `ready`.
    pub data_wait_ns: u64,
    /// Nanoseconds between the first `next` of an epoch and its end.
    pub iteration_ns: u64,
    /// Batches taken.
    pub batches: u64,
    /// Rows taken.
    pub rows: u64,
    /// Batches handed out as owned copies.
    pub copies: u64,
}

/// One loader's attachment to a pipeline.
#[derive(Debug)]
pub struct Feed {
    conversation: Conversation,
    daemon_pid: u32,
    attached: Attached,
    mapping: Arc<Mapping>,
    /// The next row to hand out; what a token says.
    cursor: Cursor,
    /// Of a stream: what is known of it.
    windows: Option<Windows>,
    counters: Counters,
    iterating_since: Option<Instant>,
    /// Slots go back by themselves, whatever the caller holds: an [`Uploader`] has them.
    slots_return: bool,
}

impl Feed {
    /// Connects and attaches.
    ///
    /// # Errors
    /// When the daemon cannot be reached, speaks another protocol, or refuses.
    pub fn attach(
        address: &Address,
        attach: Attach,
        timeout: Option<Duration>,
        interrupt: Interrupt<'_>,
        watch: Watch<'_>,
    ) -> Result<Self, ClientError> {
        let asked = attach.start;
        let Opened { conversation, daemon_pid, attached, mapping } =
            match handshake::open(address, attach, timeout, interrupt, watch) {
                // In the first moments of its life, before it has a process group of its own, the daemon hears the
                // terminal's ctrl-C too. What happened then is the ctrl-C.
                Err(ClientError::Died(_)) if interrupt() => return Err(ClientError::Interrupted),
                opened => opened?,
            };
        let start = attached.share.map_or(asked, |joined| joined.start);
        Ok(Self {
            conversation,
            daemon_pid,
            mapping: Arc::new(mapping),
            cursor: start,
            windows: attached.stream.clone().map(Windows::new),
            counters: Counters::default(),
            iterating_since: None,
            slots_return: false,
            attached,
        })
    }

    /// What the daemon told about the feed.
    pub fn attached(&self) -> &Attached {
        &self.attached
    }

    /// The daemon's process.
    pub fn daemon_pid(&self) -> u32 {
        self.daemon_pid
    }

    /// The next row to hand out. At the end of an epoch `position` stays where the last batch ended until
    /// [`Feed::seek`] moves on.
    pub fn cursor(&self) -> Cursor {
        self.cursor
    }

    /// A way to a GPU for the batches of this feed.
    ///
    /// # Errors
    /// As [`Uploader::open`].
    #[cfg(feature = "cuda")]
    pub fn uploader(&mut self, ordinal: i32, pin: Pin) -> Result<Uploader, String> {
        let uploader = Uploader::open(ordinal, &self.mapping, pin)?;
        self.slots_return = true;
        Ok(uploader)
    }

    /// What was counted on this side.
    pub fn counters(&self) -> Counters {
        let mut counters = self.counters;
        if let Some(since) = self.iterating_since {
            counters.iteration_ns += since.elapsed().as_nanos() as u64;
        }
        counters
    }

    /// Slots in the caller's hands.
    pub fn leased(&self) -> usize {
        self.conversation.link().leased.load(Ordering::Relaxed)
    }

    /// Makes the next batch begin at `cursor`. Costs nothing when that is what comes next anyway; otherwise whatever
    /// is on its way is void and its slots go back unseen.
    ///
    /// # Errors
    /// When the daemon is gone, or the cursor lies in a window of a stream that this client knows nothing of.
    pub fn seek(&mut self, cursor: Cursor) -> Result<(), ClientError> {
        self.usable()?;
        let place = self.place(cursor)?;
        self.go_to(cursor, place)
    }

    /// Makes the next batch begin where a token says, after checking that it continues this run.
    ///
    /// # Errors
    /// [`ClientError::Token`]; as [`seek`](Self::seek).
    pub fn load(&mut self, token: Token, allow: &[Allow]) -> Result<Cursor, ClientError> {
        self.usable()?;
        token.verify(&self.attached.identity, allow)?;
        let cursor = token.cursor();
        self.go_to(cursor, token.stream)?;
        Ok(cursor)
    }

    /// The token of a place in this run.
    ///
    /// # Errors
    /// When it lies in a window of a stream that this client knows nothing of.
    pub fn token(&self, cursor: Cursor) -> Result<Token, ClientError> {
        Ok(Token::new(self.attached.identity.clone(), cursor, self.place(cursor)?))
    }

    /// Tells the daemon that a checkpoint with this token is safe: what lies before it may be committed to a stream's
    /// broker. Does nothing for other sources.
    ///
    /// # Errors
    /// [`ClientError::Token`] when the token is of another run; when the daemon is gone.
    pub fn saved(&mut self, token: Token) -> Result<(), ClientError> {
        self.usable()?;
        token.verify(&self.attached.identity, &[Allow::Pixels])?;
        let position = token.position;
        token.stream.map_or(Ok(()), |place| self.conversation.send(&Request::Saved { place, position }))
    }

    /// The window of a stream that holds a cursor.
    fn place(&self, cursor: Cursor) -> Result<Option<Place>, ClientError> {
        let Some(windows) = &self.windows else { return Ok(None) };
        let place = windows.place(cursor).ok_or_else(|| {
            ClientError::Misuse(format!(
                "position {} of epoch {} lies in a window of the stream that this loader does not know: load the state that \
                 was saved there",
                cursor.position, cursor.epoch
            ))
        });
        place.map(Some)
    }

    fn go_to(&mut self, cursor: Cursor, place: Option<Place>) -> Result<(), ClientError> {
        self.pause();
        self.cursor = cursor;
        let settled = self.settle(cursor);
        if self.conversation.due().map(|due| self.settle(due)) == Some(settled) {
            return Ok(());
        }
        // Of the next epoch nobody has told the window yet, but it begins like all others.
        let place = if settled == cursor { place } else { self.place(settled)? };
        if let (Some(windows), Some(place)) = (&mut self.windows, &place) {
            windows.restart(place.clone());
        }
        self.conversation.seek(settled, place)
    }

    /// Batches left in the cursor's epoch; `None` of a stream that has not ended.
    pub fn batches_left(&self) -> Option<u64> {
        self.batching(self.cursor.epoch).batches_from(self.cursor.position)
    }

    /// How an epoch is cut.
    pub fn batching(&self, epoch: u64) -> Batching {
        let known = self.windows.as_ref().and_then(|windows| windows.len(epoch));
        Batching { len: known.or(self.attached.batching.len), ..self.attached.batching }
    }

    fn settle(&self, cursor: Cursor) -> Cursor {
        self.batching(cursor.epoch).settle(cursor)
    }

    /// The next batch of the cursor's epoch; `None` when it has ended.
    ///
    /// # Errors
    /// As [`try_next`](Self::try_next); [`ClientError::Timeout`], [`ClientError::Interrupted`].
    pub fn next(
        &mut self,
        timeout: Option<Duration>,
        interrupt: Interrupt<'_>,
        watch: Watch<'_>,
    ) -> Result<Option<Batch>, ClientError> {
        until(&mut self.alone(interrupt, watch), Wanted::Batch, timeout, |caller| {
            caller.step(|feed| {
                Ok(match feed.try_next()? {
                    Next::Batch(batch) => Some(Some(*batch)),
                    Next::End => Some(None),
                    Next::Pending => None,
                })
            })
        })
    }

    /// Hands out the next batch, if a [look](Steps::look) has taken it in. Does not wait.
    ///
    /// # Errors
    /// [`ClientError::Died`] once everything that was finished before the daemon's death is handed out; what the daemon
    /// stopped for, after what was finished before.
    pub fn try_next(&mut self) -> Result<Next, ClientError> {
        self.usable()?;
        if !self.conversation.begun() {
            self.seek(self.cursor)?;
        }
        let in_order = self.attached.batching.check_epoch(self.cursor.epoch);
        in_order.map_err(|message| ClientError::Daemon { kind: ErrorKind::Config, message })?;
        if self.batches_left() != Some(0) {
            self.iterating_since.get_or_insert_with(Instant::now);
        } else {
            // The end of a stream's epoch may have come in one piece with the first batch of the next, which stays
            // where it is.
            self.pause();
            return Ok(Next::End);
        }
        let Some(ready) = self.conversation.ready()? else { return Ok(Next::Pending) };
        if ready.slot >= self.attached.slots || u64::from(ready.rows) > self.attached.batching.most_rows() {
            return Err(ClientError::protocol(format!("the daemon sent an impossible batch: {ready:?}")));
        }
        if ready.cursor != self.settle(self.cursor) {
            return Err(ClientError::protocol(format!(
                "the daemon sent the batch at {:?} where {:?} was due",
                ready.cursor, self.cursor
            )));
        }
        // Not `ready.next`: at the end of an epoch the token still names this epoch, until the caller moves on.
        self.cursor = Cursor {
            epoch: ready.cursor.epoch,
            position: self.batching(ready.cursor.epoch).after(ready.cursor.position),
        };
        if let Some(windows) = &mut self.windows {
            // A stream's daemon never settles: it tells of an epoch's end, and that may come later than the last batch.
            self.cursor = ready.next;
            windows.passed(self.cursor);
        }
        self.counters.batches += 1;
        self.counters.rows += u64::from(ready.rows);
        Ok(Next::Batch(Box::new(self.lease(ready))))
    }

    /// A way to wait without the feed.
    pub fn waiting(&self) -> Waiting {
        self.conversation.waiting()
    }

    /// A caller who has the feed to itself.
    fn alone<'a>(&'a mut self, interrupt: Interrupt<'a>, watch: Watch<'a>) -> Alone<'a, Self> {
        let waiting = self.waiting();
        Alone { of: self, waiting, interrupt, watch }
    }

    /// Stops the clock of the iteration: what the caller does between epochs is not the consumer's time.
    fn pause(&mut self) {
        if let Some(since) = self.iterating_since.take() {
            self.counters.iteration_ns += since.elapsed().as_nanos() as u64;
        }
    }

    fn lease(&mut self, ready: Ready) -> Batch {
        let layout = &self.attached.layout;
        let base = ready.slot as usize * layout.slot_bytes as usize;
        let columns = layout
            .columns
            .iter()
            .map(|column| {
                let mut bytes = vec![0; ready.rows as usize * column.dtype.size() as usize];
                self.mapping.copy_to(base + column.offset as usize, &mut bytes);
                bytes
            })
            .collect();
        let link = self.conversation.link();
        let leased = link.leased.fetch_add(1, Ordering::Relaxed);
        let lease = Lease { link: link.clone(), mapping: self.mapping.clone(), slot: ready.slot, base };
        let is_short = leased + SLOTS_KEPT >= self.attached.slots as usize;
        // A view of what others read too could be written: torch ignores a read-only mark.
        let is_shared = self.mapping.access() == Access::ReadOnly;
        let memory = if !self.slots_return && (is_short || is_shared) {
            self.counters.copies += u64::from(is_short);
            // From the slot's beginning, so that fields lie at the offsets they have there.
            let len = layout.fields_bytes(u64::from(ready.rows));
            let bytes = AlignedBytes::copy(&self.mapping, base, len as usize);
            Memory::Owned(Arc::new(bytes))
        } else {
            Memory::Slot(Arc::new(lease))
        };
        Batch { memory, columns, ready }
    }

    /// The keys of records.
    ///
    /// # Errors
    /// As [`Feed::next`].
    pub fn keys(
        &mut self,
        indices: Vec<i64>,
        timeout: Option<Duration>,
        interrupt: Interrupt<'_>,
        watch: Watch<'_>,
    ) -> Result<Vec<String>, ClientError> {
        keys(&mut self.alone(interrupt, watch), &indices, timeout)
    }

    /// The daemon's counters and the verdict.
    ///
    /// # Errors
    /// As [`Feed::next`].
    pub fn stats(
        &mut self,
        timeout: Option<Duration>,
        interrupt: Interrupt<'_>,
        watch: Watch<'_>,
    ) -> Result<Stats, ClientError> {
        stats(&mut self.alone(interrupt, watch), timeout)
    }

    fn ask(&mut self, kind: Kind, request: &Request) -> Result<Question, ClientError> {
        self.usable()?;
        self.conversation.ask(kind, request)
    }

    fn answer(&mut self, question: Question) -> Result<Option<Reply>, ClientError> {
        self.usable()?;
        self.conversation.answer(question)
    }

    fn forget(&mut self, question: Question) {
        self.conversation.forget(question);
    }

    /// Ends the feed: the daemon frees everything of it; a private daemon without feeds ends too. Views of batches
    /// stay readable. Calling it again does nothing.
    pub fn close(&mut self) {
        self.conversation.end();
    }

    /// Whether it can be used.
    ///
    /// # Errors
    /// [`ClientError::Misuse`] after close, and in a forked child.
    pub fn usable(&self) -> Result<(), ClientError> {
        self.conversation.usable()
    }

    fn timeout_text(&self, what: &str, timeout: Duration) -> String {
        let state = process_state(self.daemon_pid);
        let leased = self.leased();
        let stuck = match state {
            Some('T' | 't') => "the daemon is stopped (SIGSTOP or a debugger)".to_string(),
            None => "the daemon's process is gone".to_string(),
            Some(_) if self.windows.is_some() => "the stream's next window is not complete: nothing new is produced, its broker \
                 does not answer, or other ranks are waited for (the daemon's log says so; stats()[\"stream\"] has the lag); \
                 timeout=None waits as long as it takes"
                .to_string(),
            Some(state) => format!(
                "the daemon is alive (state {state}); {leased} of {} slots are held by this process; the usual \
                 reasons are a disk, file system or server that does not answer (the log lists the retries), one \
                 very slow record, or a machine that is short of memory or processors",
                self.attached.slots
            ),
        };
        format!("{what} did not come within {:.0} s (timeout): {stuck}", timeout.as_secs_f64())
    }
}

impl Steps for Feed {
    fn look(&mut self) -> Result<(), ClientError> {
        self.usable()?;
        let taken = self.conversation.take_in();
        for told in self.conversation.windows() {
            match (&mut self.windows, told) {
                (None, _) => {}
                (Some(windows), Told::Window(place)) => windows.arrived(place),
                (Some(windows), Told::End { epoch, len }) => windows.ended(epoch, len),
            }
        }
        taken
    }

    fn waited(&mut self, wanted: Wanted, time: Duration) {
        if wanted == Wanted::Batch {
            self.counters.data_wait_ns += time.as_nanos() as u64;
        }
    }

    fn timed_out(&self, wanted: Wanted, timeout: Duration) -> ClientError {
        let what = if wanted == Wanted::Batch { "a batch" } else { "an answer" };
        ClientError::Timeout(self.timeout_text(what, timeout))
    }
}

/// The state letter of a process, as in ps; `None` when it is gone or a zombie.
fn process_state(pid: u32) -> Option<char> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.chars().next().filter(|&state| state != 'Z')
}
