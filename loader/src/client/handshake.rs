//! How a conversation begins: greeting, attaching, and what the daemon announces.

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use super::conversation::{Conversation, Own};
use super::node::Node;
use super::private::Private;
use super::questions::{Kind, Question};
use super::waiting::{Alone, Caller, Steps, Wanted, until};
use super::{Address, ClientError, Interrupt, News, Watch};
use crate::protocol::{Attach, Attached, PROTOCOL, Progress, Reply, Request};
use crate::ring::{Access, Mapping};

/// Connections that are made to a job's daemon before one is greeted.
const TRIES: u32 = 50;

/// A conversation that stands.
pub(super) struct Opened {
    pub conversation: Conversation,
    pub daemon_pid: u32,
    pub attached: Attached,
    pub mapping: Mapping,
}

/// Connects and attaches.
pub(super) fn open(
    address: &Address,
    attach: Attach,
    timeout: Option<Duration>,
    interrupt: Interrupt<'_>,
    watch: Watch<'_>,
) -> Result<Opened, ClientError> {
    let start = attach.start;
    let hello = Request::Hello { protocol: PROTOCOL, pid: std::process::id() };
    let mut tries = 0;
    let (mut opening, welcome) = loop {
        tries += 1;
        let (conversation, node) = connect(address)?;
        let mut opening = Opening { conversation, stands: None };
        match (opening.ask(Kind::Hello, &hello, timeout, interrupt, watch), node) {
            // A job's daemon that was about to end, or one that somebody else could not start.
            (Err(ClientError::Died(_)), Some(node)) if tries < TRIES && !interrupt() => {
                if let Some(error) = node.why_not_started() {
                    return Err(error);
                }
            }
            (welcome, _) => break (opening, welcome?),
        }
    };
    let daemon_pid = match welcome {
        Reply::Welcome { protocol: PROTOCOL, pid, .. } => pid,
        Reply::Welcome { protocol, version, .. } => {
            return Err(ClientError::protocol(format!(
                "the daemon (version {version}) speaks protocol {protocol}, this client protocol {PROTOCOL}: \
                 install the same version of fuelrail on both sides"
            )));
        }
        other => return Err(ClientError::protocol(format!("the daemon greeted with {other:?}"))),
    };
    let attach = Request::Attach(Box::new(attach));
    let attached = match opening.ask(Kind::Attach, &attach, timeout, interrupt, watch)? {
        Reply::Attached(attached) => *attached,
        other => return Err(ClientError::protocol(format!("the daemon answered attach with {other:?}"))),
    };
    let Opening { mut conversation, .. } = opening;
    let ring = conversation
        .descriptor()
        .ok_or_else(|| ClientError::protocol("the daemon sent no shared memory with 'attached'"))?;
    check(&attached)?;
    let access = if attached.share.is_some() { Access::ReadOnly } else { Access::ReadWrite };
    let mapping =
        Mapping::new(ring.as_fd(), attached.slots as usize * attached.layout.slot_bytes as usize, access)
            .map_err(|error| ClientError::protocol(format!("the shared memory cannot be mapped: {error}")))?;
    let start = attached.share.map_or(start, |joined| joined.start);
    let begins = attached.stream.is_none().then(|| attached.batching.settle(start));
    conversation.let_in(daemon_pid, begins);
    Ok(Opened { conversation, daemon_pid, attached, mapping })
}

/// A connection, and this process's part in the job whose daemon it is.
fn connect(address: &Address) -> Result<(Conversation, Option<Arc<Node>>), ClientError> {
    let conversation = match address {
        Address::Job(binary, job) => {
            let node = Node::get(job);
            let conversation = Conversation::new(node.connect(binary)?, Some(Own::Node(node.clone())))?;
            return Ok((conversation, Some(node)));
        }
        Address::Private(binary) => {
            let private = Private::get(binary)?;
            let socket = private
                .connect()
                .map_err(|error| ClientError::Died(format!("the daemon is gone: {error}")))?;
            Conversation::new(socket, Some(Own::Private(private)))
        }
        Address::Socket(path) => {
            let socket = UnixStream::connect(path).map_err(|error| {
                ClientError::Died(format!(
                    "no daemon answers at {path:?}: {error}; start one with `fuelrail serve --socket {path:?}`"
                ))
            })?;
            Conversation::new(socket, None)
        }
    };
    Ok((conversation?, None))
}

/// A conversation before there is a feed.
struct Opening {
    conversation: Conversation,
    /// How far the daemon said last that it is.
    stands: Option<String>,
}

/// What the daemon says while it opens a source.
enum Word {
    Progress(Progress),
    Answer(Reply),
}

impl Opening {
    /// Asks and waits for the answer. As long as there is progress, time does not run out.
    fn ask(
        &mut self,
        kind: Kind,
        request: &Request,
        timeout: Option<Duration>,
        interrupt: Interrupt<'_>,
        watch: Watch<'_>,
    ) -> Result<Reply, ClientError> {
        let question = self.conversation.ask(kind, request)?;
        loop {
            let waiting = self.conversation.waiting();
            let mut caller = Alone { of: self, waiting, interrupt, watch };
            let word = until(&mut caller, Wanted::Opening, timeout, |caller| {
                caller.step(|opening| opening.word(question))
            });
            match word {
                Ok(Word::Answer(answer)) => return Ok(answer),
                Ok(Word::Progress(progress)) => {
                    watch(News::Progress(&progress));
                    self.stands = Some(progress.to_string());
                }
                Err(error) => {
                    // Its last words may have come while it died.
                    if matches!(error, ClientError::Died(_)) {
                        caller.step(Steps::look).and_then(|()| caller.tell())?;
                    }
                    return Err(error);
                }
            }
        }
    }

    fn word(&mut self, question: Question) -> Result<Option<Word>, ClientError> {
        if let Some(progress) = self.conversation.progress() {
            return Ok(Some(Word::Progress(progress)));
        }
        Ok(self.conversation.answer(question)?.map(Word::Answer))
    }
}

impl Steps for Opening {
    fn look(&mut self) -> Result<(), ClientError> {
        self.conversation.take_in()
    }

    fn waited(&mut self, _: Wanted, _: Duration) {}

    fn timed_out(&self, _: Wanted, _: Duration) -> ClientError {
        ClientError::Timeout(match &self.stands {
            None => "the daemon did not begin to open the source within the timeout: a disk, file system or \
                     server that does not answer, or a machine that is short of memory or processors (raise \
                     timeout= to wait longer)"
                .into(),
            Some(stands) => format!(
                "opening the source made no progress within the timeout; it stopped at \"{stands}\": a disk, \
                 file system or server that does not answer (the log lists the retries), or a machine that is \
                 short of memory or processors (raise timeout= to wait longer)"
            ),
        })
    }
}

/// What the daemon announces is checked before any address is computed from it.
fn check(attached: &Attached) -> Result<(), ClientError> {
    let Attached { layout, slots, batching, .. } = attached;
    if batching.batch_size == 0
        || batching.world_size == 0
        || !layout.fits(batching.most_rows())
        || u64::from(*slots).checked_mul(layout.slot_bytes).is_none()
    {
        return Err(ClientError::protocol("the daemon announced a batch layout that does not fit its slots"));
    }
    Ok(())
}
