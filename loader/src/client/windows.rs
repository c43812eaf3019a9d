//! What a client knows of a stream: the windows around its cursor, and where epochs have ended.

use std::collections::{BTreeMap, VecDeque};

use crate::plan::Cursor;
use crate::protocol::StreamKind;
use crate::token::Place;

#[derive(Debug)]
pub(super) struct Windows {
    kind: StreamKind,
    /// Those that do not lie wholly before the cursor, in order.
    places: VecDeque<Place>,
    /// Epochs whose length is known.
    ends: BTreeMap<u64, u64>,
}

impl Windows {
    pub fn new(kind: StreamKind) -> Self {
        Self { kind, places: VecDeque::new(), ends: BTreeMap::new() }
    }

    /// The length of an epoch, once its last window has come.
    pub fn len(&self, epoch: u64) -> Option<u64> {
        self.ends.get(&epoch).copied()
    }

    /// The window that a token for this cursor names; `None` when the daemon has not told of it.
    pub fn place(&self, cursor: Cursor) -> Option<Place> {
        if cursor.position == 0 {
            // Epochs begin alike.
            return Some(Place { epoch: cursor.epoch, ..self.kind.origin.clone() });
        }
        self.places.iter().find(|place| place.holds(cursor)).cloned()
    }

    /// The daemon tells of a window.
    pub fn arrived(&mut self, place: Place) {
        self.places.push_back(place);
    }

    /// The daemon tells where an epoch ends.
    pub fn ended(&mut self, epoch: u64, len: u64) {
        self.ends.insert(epoch, len);
    }

    /// The run goes on from elsewhere: only this window is known there.
    pub fn restart(&mut self, place: Place) {
        self.places = VecDeque::from([place]);
    }

    /// The cursor has moved on.
    pub fn passed(&mut self, cursor: Cursor) {
        while self
            .places
            .front()
            .is_some_and(|place| (place.epoch, place.end()) < (cursor.epoch, cursor.position))
        {
            self.places.pop_front();
        }
        self.ends.retain(|&epoch, _| epoch >= cursor.epoch);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(epoch: u64, window: u64, first: u64, count: u64) -> Place {
        Place { epoch, window, first, count, state: serde_json::Value::Null }
    }

    fn at(epoch: u64, position: u64) -> Cursor {
        Cursor { epoch, position }
    }

    #[test]
    fn a_position_between_two_windows_belongs_to_the_earlier_whatever_else_is_known() {
        let mut windows = Windows::new(StreamKind { bounded: true, origin: place(0, 0, 0, 0) });
        assert_eq!(windows.place(at(3, 0)), Some(place(3, 0, 0, 0)));
        assert_eq!(windows.place(at(0, 5)), None);
        windows.arrived(place(0, 1, 0, 5));
        let known = windows.place(at(0, 5));
        assert_eq!(known, Some(place(0, 1, 0, 5)));
        windows.arrived(place(0, 2, 5, 7));
        assert_eq!(windows.place(at(0, 5)), known);
        windows.passed(at(0, 5));
        assert_eq!(windows.place(at(0, 5)), known);
        windows.passed(at(0, 6));
        assert_eq!(
            (windows.place(at(0, 5)), windows.place(at(0, 12))),
            (Some(place(0, 2, 5, 7)), Some(place(0, 2, 5, 7)))
        );
    }
}
