//! Who has which slot of a ring.
//!
//! ```text
//!          take()                hand_over(writer, consumers)             release(consumer, slot), by each of them
//!   free ─────────▶ with a writer ──────────────────────────▶ with consumers ─────────────────────▶ free
//!     ▲                  │ dropped, and all rows of it
//!     ╰──────────────────╯
//! ```
//!
//! A slot is free when nobody writes it and nobody reads it. That nobody writes it is known by the ring, whose writers
//! give back when they are dropped, wherever their rows are; so a batch that nobody wants any more is simply dropped.

use crate::ring::{Ring, SlotWriter};

use super::consumers::ConsumerId;

pub(super) struct Slots {
    ring: Ring,
    /// Of each slot, who reads it.
    holders: Vec<Vec<ConsumerId>>,
}

impl Slots {
    /// All free.
    pub fn new(ring: Ring) -> Self {
        let holders = vec![Vec::new(); ring.slots()];
        Self { ring, holders }
    }

    /// A free slot, to write.
    pub fn take(&self) -> Option<SlotWriter> {
        let free = self.holders.iter().enumerate().filter(|(_, holders)| holders.is_empty());
        free.map(|(slot, _)| slot).find_map(|slot| self.ring.slot(slot))
    }

    /// Hands a written slot to its readers; its number.
    pub fn hand_over(&mut self, written: SlotWriter, to: &[ConsumerId]) -> u32 {
        let slot = written.slot();
        self.holders[slot].extend_from_slice(to);
        slot as u32
    }

    /// A reader gives a slot back. False when it does not hold that.
    pub fn release(&mut self, consumer: ConsumerId, slot: u32) -> bool {
        let Some(holders) = self.holders.get_mut(slot as usize) else { return false };
        let held = holders.iter().position(|holder| *holder == consumer);
        held.map(|at| holders.swap_remove(at)).is_some()
    }

    /// A reader gives back whatever it holds.
    pub fn release_all(&mut self, consumer: ConsumerId) {
        self.holders.iter_mut().for_each(|holders| holders.retain(|holder| *holder != consumer));
    }

    /// How many slots a reader holds.
    pub fn held_by(&self, consumer: ConsumerId) -> usize {
        self.holders.iter().filter(|holders| holders.contains(&consumer)).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_is_free_again_when_its_writer_its_rows_and_all_its_readers_are_done() {
        let mut slots = Slots::new(Ring::create(1, 100, crate::ring::Access::ReadWrite).unwrap());
        let mut writer = slots.take().unwrap();
        assert!(slots.take().is_none());
        let rows = writer.rows(&[(0, 10)], 2).unwrap();
        drop(writer);
        assert!(slots.take().is_none(), "a row is out");
        drop(rows);
        let writer = slots.take().unwrap();
        let (one, other) = (ConsumerId(1), ConsumerId(2));
        assert_eq!(slots.hand_over(writer, &[one, other]), 0);
        assert!(slots.take().is_none());
        assert!(slots.release(one, 0) && !slots.release(one, 0), "once each");
        assert!(slots.take().is_none(), "the other still reads it");
        assert!(slots.release(other, 0) && !slots.release(other, 1));
        assert!(slots.take().is_some());
    }
}
