//! A run of positions whose records are known: an epoch of an indexed source, or a window of a stream.

use std::sync::Arc;

use fuelrail_connectors::{IndexedSource, Window};

use super::flow::Hold;
use crate::order::EpochOrder;

/// Positions `first..first + len` of an epoch. Every row keeps the stretch it is drawn from; of a stream the memory of
/// the window goes when the last of them does.
pub(super) struct Stretch {
    pub epoch: u64,
    pub first: u64,
    pub len: u64,
    order: EpochOrder,
    records: Records,
}

enum Records {
    Indexed(Arc<dyn IndexedSource>),
    Window { window: Arc<Window>, _hold: Hold },
}

impl Stretch {
    /// A whole epoch.
    pub fn epoch(epoch: u64, order: EpochOrder, source: Arc<dyn IndexedSource>) -> Self {
        Self { epoch, first: 0, len: order.len(), order, records: Records::Indexed(source) }
    }

    /// One window; `order` is over its records.
    pub fn of_window(order: EpochOrder, window: Arc<Window>, hold: Hold) -> Self {
        let (epoch, first) = (window.place.epoch, window.place.first);
        Self { epoch, first, len: order.len(), order, records: Records::Window { window, _hold: hold } }
    }

    /// The position behind the last.
    pub fn end(&self) -> u64 {
        self.first + self.len
    }

    /// The record at a position.
    pub fn index(&self, position: u64) -> u64 {
        self.order.index(position - self.first)
    }

    /// The record that stands in for a bad one.
    pub fn substitute(&self, position: u64, attempt: u32) -> u64 {
        self.order.substitute(position - self.first, attempt)
    }

    /// The window, if it is one: its records are in memory.
    pub fn window(&self) -> Option<&Window> {
        match &self.records {
            Records::Indexed(_) => None,
            Records::Window { window, .. } => Some(window),
        }
    }

    /// A record's number in the whole source.
    pub fn id(&self, index: u64) -> i64 {
        match &self.records {
            Records::Indexed(_) => index as i64,
            Records::Window { window, .. } => window.id(index),
        }
    }

    /// A record's name.
    pub fn key(&self, index: u64) -> String {
        match &self.records {
            Records::Indexed(source) => source.key(index),
            Records::Window { window, .. } => window.key(index),
        }
    }

    /// A record's label.
    pub fn label(&self, index: u64) -> i64 {
        match &self.records {
            Records::Indexed(source) => source.label(index),
            Records::Window { window, .. } => window.label(index),
        }
    }

    /// Why a record is bad, as far as it is known before it is read.
    pub fn verdict(&self, index: u64) -> Option<String> {
        match &self.records {
            Records::Indexed(source) => source.verdict(index),
            // Of a window, each record says so itself.
            Records::Window { .. } => None,
        }
    }

    /// A record's encoded bytes, before it is read.
    pub fn size(&self, index: u64) -> u64 {
        match &self.records {
            Records::Indexed(source) => source.size(index),
            Records::Window { window, .. } => window.size(index),
        }
    }

    /// Number of the part of a mixture that a record is from.
    pub fn part(&self, index: u64) -> Option<i64> {
        let Records::Indexed(source) = &self.records else { return None };
        let mut end = 0;
        let part = source.portions().iter().position(|part| {
            end += part.len;
            index < end
        });
        part.map(|part| part as i64)
    }
}
