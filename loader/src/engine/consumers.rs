//! Who a feed's batches go to, and how they are told.
//!
//! A set, since a batch may be made once for several readers; a slot is free when all of them have given it back.

use crate::protocol::Reply;

/// Where the messages for a consumer go. Must not block: their number is bounded by slots and errors.
pub type Out = Box<dyn Fn(Reply) + Send>;

/// A consumer's number in its feed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ConsumerId(pub u32);

/// The consumer that a feed is started for.
pub(super) const FIRST: ConsumerId = ConsumerId(0);

pub(super) struct Consumers(Vec<Consumer>);

struct Consumer {
    id: ConsumerId,
    out: Out,
    /// It released a slot that it did not hold, and was told so.
    forgery_seen: bool,
}

impl Consumers {
    pub fn new(first: Out) -> Self {
        Self(vec![Consumer { id: FIRST, out: first, forgery_seen: false }])
    }

    pub fn ids(&self) -> impl Iterator<Item = ConsumerId> {
        self.0.iter().map(|consumer| consumer.id)
    }

    /// Tells all of them.
    pub fn say(&self, reply: &Reply) {
        self.0.iter().for_each(|consumer| (consumer.out)(reply.clone()));
    }

    /// Tells all of them a line for their log.
    pub fn warn(&self, text: String) {
        self.say(&Reply::Log { level: "warn".into(), text });
    }

    /// Tells the one that released what it does not hold; once, so that a client which goes on with it fills no memory
    /// of ours with complaints.
    pub fn complain(&mut self, of: ConsumerId, slot: u32) {
        let Some(consumer) = self.0.iter_mut().find(|consumer| consumer.id == of) else { return };
        if !std::mem::replace(&mut consumer.forgery_seen, true) {
            let text = format!("the client released slot {slot}, which it does not hold; ignored");
            (consumer.out)(Reply::Log { level: "warn".into(), text });
        }
    }
}
