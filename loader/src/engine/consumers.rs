//! Who a feed's batches go to, and how they are told.
//!
//! A set, since a batch may be made once for several readers; a slot is free when all of them have given it back. Each
//! has a place of its own: the batch that it wants next, which is the feed's place or lies ahead of it.

use crate::plan::Cursor;
use crate::protocol::Reply;

/// Where the messages for a consumer go. Must not block: their number is bounded by slots and errors.
pub type Out = Box<dyn Fn(Reply) + Send>;

/// A consumer's number in its feed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConsumerId(pub u32);

/// The consumer that a feed is started for.
pub const FIRST: ConsumerId = ConsumerId(0);

pub(super) struct Consumers {
    list: Vec<Consumer>,
    next: u32,
}

pub(super) struct Consumer {
    pub id: ConsumerId,
    out: Out,
    /// Which of its seeks it hears of.
    pub generation: u64,
    /// The batch that it is to get next; `None` until it seeks again, where its last seek was refused.
    pub wants: Option<Cursor>,
    /// It released a slot that it did not hold, and was told so.
    forgery_seen: bool,
}

impl Consumer {
    fn new(id: ConsumerId, out: Out, wants: Cursor) -> Self {
        Self { id, out, generation: 0, wants: Some(wants), forgery_seen: false }
    }

    pub fn say(&self, reply: Reply) {
        (self.out)(reply);
    }
}

impl Consumers {
    pub fn new(first: Out, wants: Cursor) -> Self {
        Self { list: vec![Consumer::new(FIRST, first, wants)], next: FIRST.0 + 1 }
    }

    pub fn join(&mut self, out: Out, wants: Cursor) -> ConsumerId {
        let id = ConsumerId(self.next);
        self.next += 1;
        self.list.push(Consumer::new(id, out, wants));
        id
    }

    pub fn leave(&mut self, id: ConsumerId) {
        self.list.retain(|consumer| consumer.id != id);
    }

    pub fn get(&mut self, id: ConsumerId) -> Option<&mut Consumer> {
        self.list.iter_mut().find(|consumer| consumer.id == id)
    }

    pub fn len(&self) -> usize {
        self.list.len()
    }

    pub fn ids(&self) -> impl Iterator<Item = ConsumerId> {
        self.list.iter().map(|consumer| consumer.id)
    }

    /// Tells the others that one of them was let go.
    pub fn warn_others(&self, of: ConsumerId) {
        let text = format!("client {} of the shared feed held up the others and was detached", of.0);
        let others = self.list.iter().filter(|consumer| consumer.id != of);
        others.for_each(|consumer| consumer.say(Reply::Log { level: "warn".into(), text: text.clone() }));
    }

    /// The place of whoever is furthest behind.
    pub fn wanted(&self) -> Option<Cursor> {
        self.list.iter().filter_map(|consumer| consumer.wants).min()
    }

    /// Those who want the batch that begins at `cursor`, and now the one at `next`.
    pub fn served(&mut self, cursor: Cursor, next: Cursor) -> Vec<ConsumerId> {
        let wanting = self.list.iter_mut().filter(|consumer| consumer.wants == Some(cursor));
        wanting
            .map(|consumer| {
                consumer.wants = Some(next);
                consumer.id
            })
            .collect()
    }

    /// Tells all of them, each with the generation that it hears of.
    pub fn say(&self, reply: impl Fn(u64) -> Reply) {
        self.list.iter().for_each(|consumer| consumer.say(reply(consumer.generation)));
    }

    /// Tells some of them.
    pub fn say_to(&self, ids: &[ConsumerId], reply: impl Fn(u64) -> Reply) {
        let told = self.list.iter().filter(|consumer| ids.contains(&consumer.id));
        told.for_each(|consumer| consumer.say(reply(consumer.generation)));
    }

    /// Tells all of them a line for their log.
    pub fn warn(&self, text: &str) {
        self.say(|_| Reply::Log { level: "warn".into(), text: text.to_owned() });
    }

    /// Tells the one that released what it does not hold; once, so that a client which goes on with it fills no memory
    /// of ours with complaints.
    pub fn complain(&mut self, of: ConsumerId, slot: u32) {
        let Some(consumer) = self.get(of) else { return };
        if !std::mem::replace(&mut consumer.forgery_seen, true) {
            let text = format!("the client released slot {slot}, which it does not hold; ignored");
            consumer.say(Reply::Log { level: "warn".into(), text });
        }
    }
}
