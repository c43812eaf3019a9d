//! A training process's side of a feed: attach, take batches, give slots back. No thread, no async runtime.
//!
//! ```text
//!  Private (child process, control socket)        one per process, shared by its feeds, ends with the last
//!     ├── Lines (of the daemon's log)             told by whichever feed waits
//!     └── Feed (socket, cursor, generation)       one per loader
//!            └── Batch ── Arc<Lease> ── Mapping   the slot goes back when the last view of it is dropped
//! ```
//!
//! Promises
//! - [`Feed::next`] returns a batch, the end of the epoch, or a typed error by its time-out: never a silent hang;
//! - it can be interrupted (ctrl-C) within a tenth of a second;
//! - what the daemon logs is told while a call waits, before what the call waits for is taken;
//! - nothing here waits but what says so: whoever shares a feed behind a lock takes its *steps* ([`Feed::try_next`],
//!   [`Feed::answer`]) with the lock and [waits](Waiting) without;
//! - a lease keeps the mapping alive by itself: views stay readable after close, after the daemon's death, and at
//!   interpreter exit; dropped in a forked child it sends nothing;
//! - all but one slot leased: batches are handed out as owned copies, so a caller who collects images never
//!   deadlocks.

mod handshake;
mod lease;
mod lines;
mod private;
mod questions;
mod windows;

use std::collections::VecDeque;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rustix::net::RecvFlags;

use crate::plan::{Batching, Cursor};
use crate::protocol::{
    Attach, Attached, Decoder, ErrorKind, MAX_KEYS, PROTOCOL, Progress, Ready, Reply, Request, Stats,
};
use crate::ring::Mapping;
use crate::token::{Allow, Place, Token, TokenError};

use handshake::{Handshake, check};
use lease::Link;
pub use lease::{AlignedBytes, Lease, Memory};
use lines::Lines;
use private::Private;
pub use questions::Question;
use questions::{Kind, Questions};
use windows::Windows;

/// How often a waiting client looks whether it is to stop.
pub const INTERRUPT_PERIOD: Duration = Duration::from_millis(100);

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
    /// It has not come yet: [wait](Waiting::wait), then ask again.
    Pending,
}

/// A way to wait for a feed's socket without the feed, which others may use meanwhile.
#[derive(Clone, Debug)]
pub struct Waiting(Arc<Link>);

impl Waiting {
    /// Waits until something has arrived or `patience` is over; a signal ends it early.
    pub fn wait(&self, patience: Duration) {
        self.0.wait(patience);
    }

    /// Tells the lines of the daemon's log that have arrived, (level, text), each once and in order, with nothing held. While
    /// somebody is being told, nobody else is. After an error the rest waits for the next time.
    ///
    /// # Errors
    /// That of `tell`.
    pub fn tell<E>(&self, tell: impl FnMut(&str, &str) -> Result<(), E>) -> Result<(), E> {
        self.0.lines.tell(tell)
    }
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
    link: Arc<Link>,
    private: Option<Arc<Private>>,
    daemon_pid: u32,
    decoder: Decoder,
    attached: Attached,
    mapping: Arc<Mapping>,
    generation: u64,
    /// What the daemon works on next, as far as this side knows: a seek is needed only when that is not what is wanted.
    /// `None`: on nothing; it begins to read a stream when it is told where.
    incoming: Option<Cursor>,
    /// The next row to hand out; what a token says.
    cursor: Cursor,
    ready: VecDeque<Ready>,
    /// Of a stream: what is known of it.
    windows: Option<Windows>,
    /// A failure that is due once `ready` is handed out.
    pending_failure: Option<(ErrorKind, String)>,
    questions: Questions,
    /// How the connection ended, once it has.
    ended: Option<String>,
    counters: Counters,
    iterating_since: Option<Instant>,
    closed: bool,
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
        match Self::connect(address, attach, timeout, interrupt, watch) {
            // In the first moments of its life, before it has a process group of its own, the daemon hears the terminal's
            // ctrl-C too. What happened then is the ctrl-C.
            Err(ClientError::Died(_)) if interrupt() => Err(ClientError::Interrupted),
            other => other,
        }
    }

    fn connect(
        address: &Address,
        attach: Attach,
        timeout: Option<Duration>,
        interrupt: Interrupt<'_>,
        watch: Watch<'_>,
    ) -> Result<Self, ClientError> {
        let (socket, private) = match address {
            Address::Private(binary) => {
                let private = Private::get(binary)?;
                let socket = private
                    .connect()
                    .map_err(|error| ClientError::Died(format!("the daemon is gone: {error}")))?;
                (socket, Some(private))
            }
            Address::Socket(path) => {
                let socket = UnixStream::connect(path).map_err(|error| {
                    ClientError::Died(format!(
                        "no daemon answers at {path:?}: {error}; start one with `fuelrail serve --socket {path:?}`"
                    ))
                })?;
                (socket, None)
            }
        };
        let start = attach.start;
        let lines = private.as_ref().map_or_else(|| Arc::new(Lines::new(None)), |private| private.lines());
        let link = Link::new(socket, lines)
            .map_err(|error| ClientError::Died(format!("the daemon is gone: {error}")))?;
        let mut handshake = Handshake { link, private, decoder: Decoder::default(), daemon_pid: 0 };
        handshake.send(&Request::Hello { protocol: PROTOCOL, pid: std::process::id() })?;
        match handshake.reply(timeout, interrupt, watch)? {
            Reply::Welcome { protocol, version, pid } => {
                if protocol != PROTOCOL {
                    return Err(ClientError::protocol(format!(
                        "the daemon (version {version}) speaks protocol {protocol}, this client protocol {PROTOCOL}: \
                         install the same version of fuelrail on both sides"
                    )));
                }
                handshake.daemon_pid = pid;
            }
            other => return Err(ClientError::protocol(format!("the daemon greeted with {other:?}"))),
        }
        handshake.send(&Request::Attach(Box::new(attach)))?;
        let attached = match handshake.reply(timeout, interrupt, watch)? {
            Reply::Attached(attached) => *attached,
            other => return Err(ClientError::protocol(format!("the daemon answered attach with {other:?}"))),
        };
        let ring = handshake
            .decoder
            .take_fd()
            .ok_or_else(|| ClientError::protocol("the daemon sent no shared memory with 'attached'"))?;
        check(&attached)?;
        let mapping =
            Mapping::new(ring.as_fd(), attached.slots as usize * attached.layout.slot_bytes as usize)
                .map_err(|error| {
                    ClientError::protocol(format!("the shared memory cannot be mapped: {error}"))
                })?;
        let cursor = attached.batching.settle(start);
        let windows = attached.stream.clone().map(Windows::new);
        let Handshake { link, private, decoder, daemon_pid } = handshake;
        Ok(Self {
            link: Arc::new(link),
            private,
            daemon_pid,
            decoder,
            mapping: Arc::new(mapping),
            generation: 0,
            incoming: windows.is_none().then_some(cursor),
            cursor: start,
            ready: VecDeque::new(),
            windows,
            pending_failure: None,
            questions: Questions::default(),
            ended: None,
            counters: Counters::default(),
            iterating_since: None,
            closed: false,
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
        self.link.leased.load(Ordering::Relaxed)
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
        token.stream.map_or(Ok(()), |place| self.request(&Request::Saved { place, position }))
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
        let next =
            self.ready.front().map(|ready| ready.cursor).or(self.incoming).map(|next| self.settle(next));
        if next == Some(settled) && self.pending_failure.is_none() {
            return Ok(());
        }
        // Of the next epoch nobody has told the window yet, but it begins like all others.
        let place = if settled == cursor { place } else { self.place(settled)? };
        if let (Some(windows), Some(place)) = (&mut self.windows, &place) {
            windows.restart(place.clone());
        }
        self.generation += 1;
        for ready in std::mem::take(&mut self.ready) {
            self.give_back(&ready)?;
        }
        self.pending_failure = None;
        self.incoming = Some(settled);
        self.request(&Request::Seek { generation: self.generation, cursor: settled, place })
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
        let mut before = Duration::ZERO;
        self.until(timeout, interrupt, watch, "a batch", |feed, waited| {
            feed.waited_for_data(waited - before);
            before = waited;
            Ok(match feed.try_next()? {
                Next::Batch(batch) => Some(Some(*batch)),
                Next::End => Some(None),
                Next::Pending => None,
            })
        })
    }

    /// Takes in what has arrived: batches, answers, lines of the log. Does not wait, and hands out nothing, so that the lines
    /// are [told](Waiting::tell) before whoever hears them could keep a batch from its caller.
    ///
    /// # Errors
    /// When the feed cannot be used, or the daemon says what it never should.
    pub fn look(&mut self) -> Result<(), ClientError> {
        self.usable()?;
        let taken = self.take_in();
        // Last: a line that was written before an answer is here when the answer is.
        self.link.lines.take_in();
        taken
    }

    /// Hands out the next batch, if a [look](Self::look) has taken it in. Does not wait.
    ///
    /// # Errors
    /// [`ClientError::Died`] once everything that was finished before the daemon's death is handed out; what the daemon
    /// stopped for, after what was finished before.
    pub fn try_next(&mut self) -> Result<Next, ClientError> {
        self.usable()?;
        if self.incoming.is_none() {
            self.seek(self.cursor)?;
        }
        if self.batches_left() != Some(0) {
            self.iterating_since.get_or_insert_with(Instant::now);
        } else {
            // The end of a stream's epoch may have come in one piece with the first batch of the next, which stays where it is.
            self.pause();
            return Ok(Next::End);
        }
        let Some(ready) = self.ready.pop_front() else {
            return match (&self.pending_failure, &self.ended) {
                (Some((kind, message)), _) => {
                    Err(ClientError::Daemon { kind: *kind, message: message.clone() })
                }
                (None, Some(how)) => Err(self.died(how)),
                (None, None) => Ok(Next::Pending),
            };
        };
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

    /// The caller has waited this long for a batch.
    pub fn waited_for_data(&mut self, time: Duration) {
        self.counters.data_wait_ns += time.as_nanos() as u64;
    }

    /// A way to wait without the feed.
    pub fn waiting(&self) -> Waiting {
        Waiting(self.link.clone())
    }

    /// Takes steps until one gives something, and waits between them. A step is told how long it has waited so far.
    fn until<T>(
        &mut self,
        timeout: Option<Duration>,
        interrupt: Interrupt<'_>,
        watch: Watch<'_>,
        what: &str,
        mut step: impl FnMut(&mut Self, Duration) -> Result<Option<T>, ClientError>,
    ) -> Result<T, ClientError> {
        let asked = Instant::now();
        loop {
            let looked = self.look();
            self.link.lines.heard(watch);
            looked?;
            if let Some(found) = step(self, asked.elapsed())? {
                return Ok(found);
            }
            if interrupt() {
                return Err(ClientError::Interrupted);
            }
            match timeout {
                Some(timeout) if asked.elapsed() >= timeout => return Err(self.timed_out(timeout, what)),
                Some(timeout) => self.link.wait(INTERRUPT_PERIOD.min(timeout - asked.elapsed())),
                None => self.link.wait(INTERRUPT_PERIOD),
            }
        }
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
        let leased = self.link.leased.fetch_add(1, Ordering::Relaxed);
        let lease = Lease { link: self.link.clone(), mapping: self.mapping.clone(), slot: ready.slot, base };
        let memory = if leased + SLOTS_KEPT >= self.attached.slots as usize {
            self.counters.copies += 1;
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
        let questions = self.ask_keys(&indices)?;
        let mut keys = Vec::with_capacity(indices.len());
        for (at, &question) in questions.iter().enumerate() {
            let answer = self.until(timeout, interrupt, watch, "an answer", |feed, _| feed.answer(question));
            let answer =
                answer.inspect_err(|_| questions[at..].iter().for_each(|&late| self.forget(late)))?;
            keys.extend(into_keys(answer)?);
        }
        Ok(keys)
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
        let question = self.ask_stats()?;
        let answer = self.until(timeout, interrupt, watch, "an answer", |feed, _| feed.answer(question));
        into_stats(answer.inspect_err(|_| self.forget(question))?)
    }

    /// Asks for keys; the answers are those of these questions, one after the other. Does not wait.
    ///
    /// # Errors
    /// When the daemon is gone.
    pub fn ask_keys(&mut self, indices: &[i64]) -> Result<Vec<Question>, ClientError> {
        indices
            .chunks(MAX_KEYS)
            .map(|indices| self.ask(Kind::Keys, &Request::Keys { indices: indices.to_vec() }))
            .collect()
    }

    /// Asks for the daemon's counters. Does not wait.
    ///
    /// # Errors
    /// When the daemon is gone.
    pub fn ask_stats(&mut self) -> Result<Question, ClientError> {
        let Counters { data_wait_ns, iteration_ns, .. } = self.counters();
        self.ask(Kind::Stats, &Request::Stats { data_wait_ns, iteration_ns })
    }

    fn ask(&mut self, kind: Kind, request: &Request) -> Result<Question, ClientError> {
        self.usable()?;
        self.request(request)?;
        Ok(self.questions.ask(kind))
    }

    /// Hands out the answer to a question, if a [look](Self::look) has taken it in. Does not wait.
    ///
    /// # Errors
    /// When the daemon is gone or the feed closed.
    pub fn answer(&mut self, question: Question) -> Result<Option<Reply>, ClientError> {
        self.usable()?;
        match (self.questions.take(question), &self.ended) {
            (None, Some(how)) => Err(self.died(how)),
            (answer, _) => Ok(answer),
        }
    }

    /// Nobody waits for this answer any more.
    pub fn forget(&mut self, question: Question) {
        self.questions.forget(question);
    }

    /// Ends the feed: the daemon frees everything of it; a private daemon without feeds ends too. Views of batches
    /// stay readable. Calling it again does nothing.
    pub fn close(&mut self) {
        if self.closed || self.link.pid != std::process::id() {
            return;
        }
        self.closed = true;
        self.ready.clear();
        // What was said before is still told.
        let _ = self.take_in();
        let _ = self.link.socket.shutdown(std::net::Shutdown::Both);
        self.private = None;
        self.link.lines.take_in();
    }

    /// Whether it can be used.
    ///
    /// # Errors
    /// [`ClientError::Misuse`] after close, and in a forked child.
    pub fn usable(&self) -> Result<(), ClientError> {
        if self.link.pid != std::process::id() {
            return Err(ClientError::forked());
        }
        if self.closed {
            return Err(ClientError::Misuse("this Loader is closed; make a new one".into()));
        }
        Ok(())
    }

    fn request(&self, request: &Request) -> Result<(), ClientError> {
        self.link.send(request).map_err(|error| self.died(&error.to_string()))
    }

    /// Files every message that has arrived. Does not wait.
    fn take_in(&mut self) -> Result<(), ClientError> {
        loop {
            // What came in one piece with an earlier message is here already: the socket will not say so.
            while let Some(reply) =
                self.decoder.message().map_err(|error| ClientError::protocol(error.to_string()))?
            {
                self.sort(reply)?;
            }
            if self.ended.is_some() {
                return Ok(());
            }
            match self.decoder.receive(self.link.socket.as_fd(), RecvFlags::DONTWAIT) {
                Ok(0) => self.ended = Some("it closed the connection".into()),
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => self.ended = Some(error.to_string()),
            }
        }
    }

    /// The error of a wait that took too long, with what is stuck.
    pub fn timed_out(&self, timeout: Duration, what: &str) -> ClientError {
        ClientError::Timeout(self.timeout_text(timeout, what))
    }

    fn timeout_text(&self, timeout: Duration, what: &str) -> String {
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
                "the daemon is alive (state {state}); {leased} of {} slots are held by this process; the usual reasons are a disk, \
                 file system or server that does not answer (what is tried again is in the log), one very slow record, or a machine \
                 that is short of memory or processors",
                self.attached.slots
            ),
        };
        format!("{what} did not come within {:.0} s (timeout): {stuck}", timeout.as_secs_f64())
    }

    fn sort(&mut self, reply: Reply) -> Result<(), ClientError> {
        match reply {
            Reply::Ready(ready) if ready.generation != self.generation => self.give_back(&ready)?,
            Reply::Ready(ready) => {
                if ready.slot >= self.attached.slots
                    || u64::from(ready.rows) > self.attached.batching.most_rows()
                {
                    return Err(ClientError::protocol(format!(
                        "the daemon sent an impossible batch: {ready:?}"
                    )));
                }
                self.incoming = Some(ready.next);
                self.ready.push_back(ready);
            }
            Reply::Log { level, text } => self.link.lines.push(level, text),
            Reply::Failed { generation, kind, message } => {
                // Due where it happened: after the batches that were finished before it.
                if generation == self.generation {
                    self.pending_failure = Some((kind, message));
                }
            }
            Reply::Window { generation, place } => {
                if let Some(windows) = self.windows.as_mut().filter(|_| generation == self.generation) {
                    windows.arrived(place);
                }
            }
            Reply::End { generation, epoch, len } => {
                if let Some(windows) = self.windows.as_mut().filter(|_| generation == self.generation) {
                    windows.ended(epoch, len);
                }
            }
            Reply::Refused { kind, message } => return Err(ClientError::Daemon { kind, message }),
            other => {
                if let Some(other) = self.questions.file(other) {
                    return Err(ClientError::protocol(format!("the daemon said {other:?} unasked")));
                }
            }
        }
        Ok(())
    }

    fn give_back(&self, ready: &Ready) -> Result<(), ClientError> {
        self.request(&Request::Release { slot: ready.slot })
    }

    fn died(&self, how: &str) -> ClientError {
        let pid = self.daemon_pid;
        let obituary = self.private.as_ref().and_then(|private| private.wait_for_obituary());
        ClientError::Died(match obituary {
            Some(obituary) => format!(
                "the fuelrail daemon (pid {pid}) died: {obituary}. Make a new Loader and load the state of your last \
                 checkpoint to go on exactly"
            ),
            None => format!(
                "the fuelrail daemon (pid {pid}) is gone: {how}. Start it again, make a new Loader and load the state of \
                 your last checkpoint to go on exactly"
            ),
        })
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        self.close();
    }
}

/// The keys in an answer to [`Feed::ask_keys`].
///
/// # Errors
/// When it is another.
pub fn into_keys(answer: Reply) -> Result<Vec<String>, ClientError> {
    match answer {
        Reply::Keys { keys } => Ok(keys),
        other => Err(ClientError::protocol(format!("the daemon answered keys with {other:?}"))),
    }
}

/// The counters in an answer to [`Feed::ask_stats`].
///
/// # Errors
/// When it is another.
pub fn into_stats(answer: Reply) -> Result<Stats, ClientError> {
    match answer {
        Reply::Stats(stats) => Ok(*stats),
        other => Err(ClientError::protocol(format!("the daemon answered stats with {other:?}"))),
    }
}

/// The state letter of a process, as in ps; `None` when it is gone or a zombie.
fn process_state(pid: u32) -> Option<char> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.chars().next().filter(|&state| state != 'Z')
}
