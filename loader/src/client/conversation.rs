//! The conversation with the daemon over one socket: what is sent, and what has arrived, sorted.
//!
//! ```text
//!            send, ask, seek                       take_in (never waits)
//!  Feed ───────────────────────▶ Link ▶ socket ▶ Decoder ▶ sort ─┬▶ ready     batches, then a failure, then the end
//!                                  ▲                             ├▶ windows   where a stream's epochs lie
//!  Lease ──── release ─────────────┤                             ├▶ answers   each to its question
//!                                  │                             ├▶ progress  of opening the source
//!          stale batches ◀─────────┴─────────────────────────────┴▶ lines     of the log, told by whoever waits
//! ```
//!
//! Promises
//! - nothing here waits for a message or calls anybody: [`until`](super::waiting::until) waits;
//! - what was said of the run before the last [`seek`](Conversation::seek) is never handed out: its slots go back
//!   unseen;
//! - what the daemon said before it ended is handed out before the end is reported;
//! - a line of the log stands before what was said after it;
//! - a forked child, where it is not [usable](Conversation::usable), ends nothing by dropping it.
//!
//! It knows no rows: which batch is due, what a slot holds and what a token says is the [`Feed`](super::Feed)'s.

use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use rustix::net::RecvFlags;

use super::ClientError;
use super::lease::Link;
use super::lines::Lines;
use super::node::Node;
use super::private::Private;
use super::questions::{Kind, Question, Questions};
use super::waiting::Waiting;
use crate::plan::Cursor;
use crate::protocol::{Decoder, ErrorKind, Progress, Ready, Reply, Request};
use crate::token::Place;

/// What the daemon tells of a stream.
#[derive(Debug)]
pub(super) enum Told {
    /// A window has come.
    Window(Place),
    /// An epoch has ended, and has this length.
    End { epoch: u64, len: u64 },
}

/// The daemon that a process has, or has a part in.
#[derive(Debug)]
pub(super) enum Own {
    Private(Arc<Private>),
    Node(Arc<Node>),
}

impl Own {
    fn wait_for_obituary(&self, daemon: Option<u32>) -> Option<String> {
        match self {
            Self::Private(private) => private.wait_for_obituary(),
            Self::Node(node) => node.wait_for_obituary(daemon),
        }
    }
}

#[derive(Debug)]
pub(super) struct Conversation {
    link: Arc<Link>,
    own: Option<Own>,
    decoder: Decoder,
    /// The daemon's process, once it has let this client in: from then on, a death costs a run.
    daemon: Option<u32>,
    questions: Questions,
    progress: VecDeque<Progress>,
    /// Which run the daemon is to speak of: seeks so far.
    generation: u64,
    /// What the daemon works on next, as far as this side knows. `None`: on nothing; it begins to read a stream when it
    /// is told where.
    incoming: Option<Cursor>,
    ready: VecDeque<Ready>,
    windows: VecDeque<Told>,
    /// What stopped the run; due once `ready` is handed out.
    failure: Option<(ErrorKind, String)>,
    /// How the connection ended, once it has.
    ended: Option<String>,
    closed: bool,
}

impl Conversation {
    /// Over a connected socket, with the daemon that it keeps alive if that is this process's.
    pub fn new(socket: UnixStream, own: Option<Own>) -> Result<Self, ClientError> {
        let lines = match &own {
            Some(Own::Private(private)) => private.lines(),
            _ => Arc::new(Lines::new(None)),
        };
        let link = Link::new(socket, lines)
            .map_err(|error| ClientError::Died(format!("the daemon is gone: {error}")))?;
        Ok(Self {
            link: Arc::new(link),
            own,
            decoder: Decoder::default(),
            daemon: None,
            questions: Questions::default(),
            progress: VecDeque::new(),
            generation: 0,
            incoming: None,
            ready: VecDeque::new(),
            windows: VecDeque::new(),
            failure: None,
            ended: None,
            closed: false,
        })
    }

    /// The daemon has let this client in; `begins` where it begins by itself.
    pub fn let_in(&mut self, daemon: u32, begins: Option<Cursor>) {
        self.daemon = Some(daemon);
        // A batch may have come in one piece with that.
        self.incoming = self.incoming.or(begins);
    }

    /// The sending side, which a lease keeps.
    pub fn link(&self) -> &Arc<Link> {
        &self.link
    }

    /// A way to wait without the conversation.
    pub fn waiting(&self) -> Waiting {
        Waiting(self.link.clone())
    }

    /// Whether it can be used.
    pub fn usable(&self) -> Result<(), ClientError> {
        if self.link.pid != std::process::id() {
            return Err(ClientError::forked());
        }
        if self.closed {
            return Err(ClientError::Misuse("this Loader is closed; make a new one".into()));
        }
        Ok(())
    }

    pub fn send(&self, request: &Request) -> Result<(), ClientError> {
        self.link.send(request).map_err(|error| self.died(&error.to_string()))
    }

    /// Sends a question.
    pub fn ask(&mut self, kind: Kind, request: &Request) -> Result<Question, ClientError> {
        self.send(request)?;
        Ok(self.questions.ask(kind))
    }

    /// Hands out the answer to a question, once it is here.
    pub fn answer(&mut self, question: Question) -> Result<Option<Reply>, ClientError> {
        match (self.questions.take(question), &self.ended) {
            (Some(Reply::Refused { kind, message }), _) => Err(ClientError::Daemon { kind, message }),
            (None, Some(how)) => Err(self.died(how)),
            (answer, _) => Ok(answer),
        }
    }

    /// Nobody waits for this answer any more.
    pub fn forget(&mut self, question: Question) {
        self.questions.forget(question);
    }

    /// Makes the daemon go on from elsewhere. What it said of the run until then is void.
    pub fn seek(&mut self, cursor: Cursor, place: Option<Place>) -> Result<(), ClientError> {
        self.generation += 1;
        for ready in std::mem::take(&mut self.ready) {
            self.give_back(&ready)?;
        }
        self.windows.clear();
        self.failure = None;
        self.incoming = Some(cursor);
        self.send(&Request::Seek { generation: self.generation, cursor, place })
    }

    /// Whether the daemon has been told where to begin, or knows.
    pub fn begun(&self) -> bool {
        self.incoming.is_some()
    }

    /// Where the next batch begins, without a seek; `None` when none will come.
    pub fn due(&self) -> Option<Cursor> {
        if self.failure.is_some() {
            return None;
        }
        self.ready.front().map(|ready| ready.cursor).or(self.incoming)
    }

    /// Hands out the next batch, once it is here; after the last of them, what the daemon stopped for, or that it is
    /// gone.
    pub fn ready(&mut self) -> Result<Option<Ready>, ClientError> {
        match (self.ready.pop_front(), &self.failure, &self.ended) {
            (Some(ready), ..) => Ok(Some(ready)),
            (None, Some((kind, message)), _) => {
                Err(ClientError::Daemon { kind: *kind, message: message.clone() })
            }
            (None, None, Some(how)) => Err(self.died(how)),
            (None, None, None) => Ok(None),
        }
    }

    /// Hands out what has been told of a stream.
    pub fn windows(&mut self) -> impl Iterator<Item = Told> + use<> {
        std::mem::take(&mut self.windows).into_iter()
    }

    /// Hands out the oldest word on how far opening has come.
    pub fn progress(&mut self) -> Option<Progress> {
        self.progress.pop_front()
    }

    /// Hands out the descriptor that came with a message.
    pub fn descriptor(&mut self) -> Option<OwnedFd> {
        self.decoder.take_fd()
    }

    /// Takes in every message that has arrived, and every line of the log. Does not wait.
    pub fn take_in(&mut self) -> Result<(), ClientError> {
        let taken = self.messages();
        // Last: a line that was written before an answer is here when the answer is.
        self.link.lines.take_in();
        taken
    }

    fn messages(&mut self) -> Result<(), ClientError> {
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

    fn sort(&mut self, reply: Reply) -> Result<(), ClientError> {
        match reply {
            Reply::Ready(ready) if ready.generation != self.generation => self.give_back(&ready)?,
            Reply::Ready(ready) => {
                self.incoming = Some(ready.next);
                self.ready.push_back(ready);
            }
            // Due where it happened: after the batches that were finished before it.
            Reply::Failed { generation, kind, message } if generation == self.generation => {
                self.failure = Some((kind, message));
            }
            Reply::Window { generation, place } if generation == self.generation => {
                self.windows.push_back(Told::Window(place));
            }
            Reply::End { generation, epoch, len } if generation == self.generation => {
                self.windows.push_back(Told::End { epoch, len });
            }
            Reply::Failed { .. } | Reply::Window { .. } | Reply::End { .. } => {}
            Reply::Log { level, text } => {
                // One that was written before this, to a private daemon's log, is here when this is.
                self.link.lines.take_in();
                self.link.lines.push(level, text);
            }
            Reply::Progress(progress) if self.daemon.is_none() => self.progress.push_back(progress),
            other => match self.questions.file(other) {
                None => {}
                Some(Reply::Refused { kind, message }) => return Err(ClientError::Daemon { kind, message }),
                Some(other) => {
                    return Err(ClientError::protocol(format!("the daemon sent an unexpected {other:?}")));
                }
            },
        }
        Ok(())
    }

    fn give_back(&self, ready: &Ready) -> Result<(), ClientError> {
        self.send(&Request::Release { slot: ready.slot })
    }

    fn died(&self, how: &str) -> ClientError {
        let obituary = self.own.as_ref().and_then(|own| own.wait_for_obituary(self.daemon));
        ClientError::Died(match (self.daemon, obituary) {
            (None, obituary) => {
                format!("the fuelrail daemon is gone: {}", obituary.as_deref().unwrap_or(how))
            }
            (Some(pid), Some(obituary)) => format!(
                "the fuelrail daemon (pid {pid}) died: {obituary}. Make a new Loader and load the state of your last \
                 checkpoint to continue exactly"
            ),
            (Some(pid), None) if matches!(self.own, Some(Own::Node(_))) => format!(
                "the fuelrail daemon (pid {pid}) of this job is gone: {how}. Make a new Loader in all its processes \
                 and load the state of your last checkpoint to continue exactly"
            ),
            (Some(pid), None) => format!(
                "the fuelrail daemon (pid {pid}) is gone: {how}. Start it again, make a new Loader and load the state of \
                 your last checkpoint to continue exactly"
            ),
        })
    }

    /// Ends it: the daemon frees everything of it; a private daemon without feeds ends too. Calling it again does
    /// nothing.
    pub fn end(&mut self) {
        if self.usable().is_err() {
            return;
        }
        self.closed = true;
        // What was said before is still told.
        let _ = self.take_in();
        let _ = self.link.socket.shutdown(std::net::Shutdown::Both);
        self.own = None;
        self.link.lines.take_in();
    }
}

impl Drop for Conversation {
    fn drop(&mut self) {
        self.end();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol;

    /// A conversation and the daemon's end of it.
    fn pair() -> (Conversation, UnixStream, Decoder) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (Conversation::new(ours, None).unwrap(), theirs, Decoder::default())
    }

    fn at(position: u64) -> Cursor {
        Cursor { epoch: 0, position }
    }

    fn ready(generation: u64, slot: u32, position: u64) -> Reply {
        Reply::Ready(Ready {
            generation,
            slot,
            cursor: at(position),
            next: at(position + 4),
            rows: 4,
            substituted: 0,
            dropped: 0,
        })
    }

    fn say(daemon: &UnixStream, replies: &[Reply]) {
        replies.iter().for_each(|reply| protocol::send_all(daemon, reply, None).unwrap());
    }

    fn heard(daemon: &UnixStream, decoder: &mut Decoder) -> Vec<Request> {
        while decoder.receive(daemon.as_fd(), RecvFlags::DONTWAIT).is_ok_and(|count| count > 0) {}
        std::iter::from_fn(|| decoder.message().unwrap()).collect()
    }

    #[test]
    fn what_was_finished_before_a_failure_or_the_end_is_handed_out_before_it() {
        let (mut conversation, daemon, _) = pair();
        conversation.let_in(7, Some(at(0)));
        let failed = Reply::Failed { generation: 0, kind: ErrorKind::Environment, message: "no disk".into() };
        say(&daemon, &[failed, ready(0, 0, 0), ready(0, 1, 4)]);
        drop(daemon);
        conversation.take_in().unwrap();
        assert_eq!(conversation.due(), None, "what failed goes on by a seek alone");
        for slot in 0..2 {
            assert_eq!(conversation.ready().unwrap().map(|ready| ready.slot), Some(slot));
        }
        assert!(matches!(conversation.ready(), Err(ClientError::Daemon { .. })));
        conversation.failure = None;
        assert!(matches!(conversation.ready(), Err(ClientError::Died(_))));
    }

    #[test]
    fn a_seek_voids_what_is_here_and_what_is_on_its_way_and_their_slots_go_back() {
        let (mut conversation, daemon, mut decoder) = pair();
        conversation.let_in(7, Some(at(0)));
        say(&daemon, &[ready(0, 0, 0)]);
        conversation.take_in().unwrap();
        assert_eq!(conversation.due(), Some(at(0)));
        conversation.seek(at(40), None).unwrap();
        say(
            &daemon,
            &[
                ready(0, 1, 4),
                Reply::Failed { generation: 0, kind: ErrorKind::Environment, message: "old".into() },
                Reply::End { generation: 0, epoch: 0, len: 8 },
                ready(1, 2, 40),
            ],
        );
        conversation.take_in().unwrap();
        assert_eq!(conversation.ready().unwrap().map(|ready| ready.slot), Some(2));
        assert!(conversation.ready().unwrap().is_none());
        assert_eq!((conversation.due(), conversation.windows().count()), (Some(at(44)), 0));
        let seek = Request::Seek { generation: 1, cursor: at(40), place: None };
        let back = |slot| Request::Release { slot };
        assert_eq!(heard(&daemon, &mut decoder), [back(0), seek, back(1)]);
    }

    #[test]
    fn a_refusal_answers_the_question_that_opens_and_what_was_said_before_it_is_here() {
        let (mut conversation, daemon, _) = pair();
        let attach = conversation.ask(Kind::Attach, &Request::Adopt).unwrap();
        let refused = || Reply::Refused { kind: ErrorKind::Source, message: "no such file".into() };
        let progress = Progress { what: "listing".into(), done: 1, total: None, counted: "files".into() };
        let line = Reply::Log { level: "warn".into(), text: "slow".into() };
        say(&daemon, &[Reply::Progress(progress.clone()), line, refused()]);
        conversation.take_in().unwrap();
        assert_eq!(conversation.progress(), Some(progress));
        let mut told = Vec::new();
        let Ok(()) = conversation.waiting().tell(|_, text| {
            told.push(text.to_owned());
            Ok::<_, std::convert::Infallible>(())
        });
        assert_eq!(told, ["slow"]);
        assert!(matches!(conversation.answer(attach), Err(ClientError::Daemon { .. })));
        // Later a refusal answers nothing in particular: the next look reports it.
        say(&daemon, &[refused()]);
        assert!(matches!(conversation.take_in(), Err(ClientError::Daemon { .. })));
    }

    #[test]
    fn a_conversation_that_has_ended_has_said_so_to_the_daemon_and_tells_its_last_lines() {
        let (mut conversation, daemon, mut decoder) = pair();
        say(&daemon, &[Reply::Log { level: "warn".into(), text: "last words".into() }]);
        conversation.end();
        assert!(matches!(conversation.usable(), Err(ClientError::Misuse(_))));
        assert_eq!(decoder.receive(daemon.as_fd(), RecvFlags::DONTWAIT).unwrap(), 0);
        assert_eq!(conversation.waiting().tell(|_, text| Err(text.to_owned())), Err("last words".into()));
    }
}
