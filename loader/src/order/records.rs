//! Lists of record indices, in half the memory where they fit.

use std::sync::Arc;

/// Record indices, 4 or 8 bytes each.
#[derive(Debug)]
pub(super) enum Records {
    Small(Box<[u32]>),
    Large(Box<[u64]>),
}

impl Records {
    /// The indices below `end`, in an order of their own.
    pub fn new(indices: impl Iterator<Item = u64>, end: u64) -> Self {
        match u32::try_from(end) {
            Ok(_) => Self::Small(indices.map(|index| index as u32).collect()),
            Err(_) => Self::Large(indices.collect()),
        }
    }

    pub fn at(&self, place: u64) -> u64 {
        match self {
            Self::Small(records) => records[place as usize].into(),
            Self::Large(records) => records[place as usize],
        }
    }

    pub fn memory(&self) -> u64 {
        match self {
            Self::Small(records) => records.len() as u64 * 4,
            Self::Large(records) => records.len() as u64 * 8,
        }
    }
}

/// The records of a source, sorted by class.
#[derive(Clone, Debug)]
pub(super) struct Sorted {
    /// Class by class.
    records: Arc<Records>,
    /// Where each class begins in `records`, and the end.
    begins: Arc<[u64]>,
}

impl Sorted {
    /// Sorts the records below `len`, each of which is of one of `classes` classes.
    pub fn new(len: u64, class: impl Fn(u64) -> usize, classes: usize) -> Self {
        let mut begins = vec![0u64; classes + 1];
        (0..len).for_each(|index| begins[class(index) + 1] += 1);
        for at in 1..begins.len() {
            begins[at] += begins[at - 1];
        }
        let mut next = begins.clone();
        let mut place = |index| {
            let at = &mut next[class(index)];
            *at += 1;
            (*at - 1) as usize
        };
        let records = if u32::try_from(len).is_ok() {
            let mut records = vec![0; len as usize];
            (0..len).for_each(|index| records[place(index)] = index as u32);
            Records::Small(records.into())
        } else {
            let mut records = vec![0; len as usize];
            (0..len).for_each(|index| records[place(index)] = index);
            Records::Large(records.into())
        };
        Self { records: Arc::new(records), begins: begins.into() }
    }

    /// How many records a class has.
    pub fn len(&self, class: usize) -> u64 {
        self.begins[class + 1] - self.begins[class]
    }

    /// A record of a class.
    pub fn at(&self, class: usize, place: u64) -> u64 {
        self.records.at(self.begins[class] + place)
    }

    pub fn memory(&self) -> u64 {
        self.records.memory() + self.begins.len() as u64 * 8
    }
}
