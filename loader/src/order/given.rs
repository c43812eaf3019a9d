//! An order from outside: a list of record indices, the same in every epoch or one for each.

use std::sync::Arc;

use super::permutation::below;
use super::records::Records;

/// The list. An index may come more than once; each time it is a position of its own.
#[derive(Clone, Debug)]
pub(super) struct Given {
    /// Epoch by epoch.
    records: Arc<Records>,
    len: u64,
    /// Epochs that it is for; `None`: any, all alike.
    epochs: Option<u64>,
}

impl Given {
    /// `indices` are those of `epochs` epochs, or of one that stands for all. They are below `end`.
    pub fn new(indices: &[u64], epochs: Option<u64>, end: u64) -> Self {
        let len = indices.len() as u64 / epochs.unwrap_or(1);
        Self { records: Arc::new(Records::new(indices.iter().copied(), end)), len, epochs }
    }

    pub fn len(&self) -> u64 {
        self.len
    }

    pub fn epochs(&self) -> Option<u64> {
        self.epochs
    }

    pub fn memory(&self) -> u64 {
        self.records.memory()
    }

    /// Beyond the last epoch, which nobody delivers but a reader may look into, the first ones come again.
    pub fn index(&self, epoch: u64, position: u64) -> u64 {
        self.records.at(self.epochs.map_or(0, |epochs| epoch % epochs) * self.len + position)
    }

    /// Another record of the same list.
    pub fn substitute(&self, epoch: u64, draw: u64) -> u64 {
        self.index(epoch, below(draw, self.len))
    }
}
