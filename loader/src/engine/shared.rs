//! A feed of several consumers, each of which gets every batch: who joins where, who waits for whom.
//!
//! ```text
//!  A wants 12 ──┐                       batch 12 ──▶ A, B         C, who is ahead, sits out until 20
//!  B wants 12 ──┼─▶ the feed is at 12 ─┤
//!  C wants 20 ──┘                       batch 16 ──▶ A, B
//! ```
//!
//! The feed is where the consumer is that is furthest behind, so a batch is made once for all who want it then.
//! Promises
//! - each consumer gets the batches from its own place on, in order, each once: its token is exact, whoever comes and
//!   goes;
//! - who joins, begins with the epoch that begins next; nobody is moved for it;
//! - a consumer that does not give slots back holds up the others, or (`laggards = "detach"`) is let go by name.

use std::time::{Duration, Instant};

use crossbeam_channel::{RecvTimeoutError, Sender};

use super::{ConsumerId, Coordinator, Event, Out};
use crate::config::{OnLag, ShareConfig};
use crate::plan::Cursor;
use crate::protocol::{ErrorKind, Joined, Reply};

/// How a shared feed deals with consumers that hold up the others.
pub(super) struct Laggards {
    /// How long they are waited for; `None`: as long as it takes.
    patience: Option<Duration>,
    /// Consumers that must be there before the first batch is handed over.
    awaited: usize,
    /// When a batch was handed over last.
    last: Instant,
}

impl Laggards {
    pub fn new(share: Option<&ShareConfig>) -> Self {
        let detach = share.filter(|share| share.laggards == OnLag::Detach);
        Self {
            patience: detach.map(|share| Duration::from_secs(share.patience_s)),
            awaited: share.map_or(1, |share| share.clients as usize),
            last: Instant::now(),
        }
    }

    pub fn handed_over(&mut self) {
        self.last = Instant::now();
    }
}

impl Coordinator {
    /// The next event; `None` when there will be none. Looks after laggards meanwhile.
    pub(super) fn next_event(&mut self) -> Option<Event> {
        let Some(patience) = self.laggards.patience else { return self.inbox.recv().ok() };
        loop {
            match self.inbox.recv_timeout(patience / 4) {
                Ok(event) => return Some(event),
                Err(RecvTimeoutError::Disconnected) => return None,
                Err(RecvTimeoutError::Timeout) => {
                    if self.detach_laggards(patience) {
                        // What they held is free: there is work.
                        return Some(Event::News);
                    }
                }
            }
        }
    }

    /// Whether as many consumers have joined as are awaited; once they have, it stays so.
    pub(super) fn has_begun(&mut self) -> bool {
        if self.consumers.len() >= self.laggards.awaited {
            self.laggards.awaited = 0;
        }
        self.laggards.awaited == 0
    }

    /// Where the next batch begins that is handed over.
    fn stands(&self) -> Cursor {
        self.open.front().map_or(self.cursor, |batch| batch.cursor)
    }

    pub(super) fn join(&mut self, out: Out, reply: &Sender<Joined>) {
        let at = self.stands();
        let start = match at.position {
            0 => at,
            // In the middle of an epoch, or where those who are there have gone on from.
            _ => Cursor { epoch: at.epoch + 1, position: 0 },
        };
        let consumer = self.consumers.join(out, start);
        if reply.send(Joined { member: consumer.0, start }).is_err() {
            self.leave(consumer);
        }
    }

    pub(super) fn leave(&mut self, consumer: ConsumerId) {
        self.slots.release_all(consumer);
        self.consumers.leave(consumer);
        self.align();
    }

    pub(super) fn seek_shared(&mut self, consumer: ConsumerId, generation: u64, cursor: Cursor) {
        let (at, alone) = (self.stands(), self.consumers.len() == 1);
        let Some(seeking) = self.consumers.get(consumer) else { return };
        seeking.generation = generation;
        if cursor.epoch < at.epoch && !alone {
            let message = format!(
                "the shared feed is at epoch {}, position {}, and the place that is to be gone to is of epoch {}: the \
                 others would have to wait for all that lies between. Load the state in a Loader without share=, which \
                 continues exactly, or begin anew: a Loader that joins starts with the next epoch",
                at.epoch, at.position, cursor.epoch
            );
            // Nothing is due to it before it seeks again, and nobody waits for it.
            seeking.wants = None;
            seeking.say(Reply::Failed { generation, kind: ErrorKind::Config, message });
            return self.align();
        }
        seeking.wants = Some(cursor);
        self.align();
    }

    /// Brings the feed to whoever is furthest behind, if it is not there.
    fn align(&mut self) {
        let Some(wanted) = self.consumers.wanted() else { return };
        if wanted != self.stands() || self.halted {
            self.go_to(self.generation + 1, wanted, None);
        }
    }

    /// Lets consumers go that hold slots which others have given back, for longer than `patience`; whether there were
    /// any.
    fn detach_laggards(&mut self, patience: Duration) -> bool {
        if self.laggards.last.elapsed() < patience || self.slots.take().is_some() || self.consumers.len() < 2
        {
            return false;
        }
        let held: Vec<(ConsumerId, usize)> =
            self.consumers.ids().map(|consumer| (consumer, self.slots.held_by(consumer))).collect();
        let most = held.iter().map(|(_, slots)| *slots).max().unwrap_or(0);
        let lagging: Vec<_> = held.iter().filter(|(_, slots)| *slots == most).collect();
        // Where all hold the same, nobody waits for another.
        if lagging.len() == held.len() {
            return false;
        }
        for (consumer, slots) in lagging {
            let message = format!(
                "this client was detached from the shared feed: it held {slots} batches for {} s, and the others \
                 waited for it (laggards = \"detach\"; \"wait\" waits as long as it takes, patience_s is how long). A \
                 new Loader joins with the next epoch",
                patience.as_secs()
            );
            let detached = |generation| Reply::Failed {
                generation,
                kind: ErrorKind::Detached,
                message: message.clone(),
            };
            self.consumers.say_to(&[*consumer], detached);
            self.consumers.warn_others(*consumer);
            self.leave(*consumer);
        }
        self.laggards.handed_over();
        true
    }
}
