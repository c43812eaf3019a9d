//! What a record of an index was made of, so that whoever reads it later sees whether that is still there.
//!
//! ```text
//!  │ header │ cls │ header │ image │ header │ json │ header │ npy header, numbers │
//!  ╰──── piece ───╯╰ piece ╯       ╰──── piece ────╯╰────── piece ──────╯            one hash of all, 32 bits a record
//! ```
//!
//! A piece is whole blocks: the headers of a member (all of them, long names included) and as much of its content as
//! was understood. They lie beside the image nearly always, so reading them with it costs nothing that can be measured.

use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use super::archive::BLOCK;

/// A stretch of a shard, in blocks; from the first byte of the record's image on, or back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Piece {
    pub at: i32,
    /// 0: there is none.
    pub len: u16,
}

impl Piece {
    /// A stretch from `start` to `end` for an image at `offset`; `None` when it is too far away or too long.
    pub fn new(offset: u64, start: u64, end: u64) -> Option<Self> {
        let at = (start as i64 - offset as i64) / BLOCK as i64;
        Some(Self { at: at.try_into().ok()?, len: ((end - start) / BLOCK).try_into().ok()? })
    }

    /// Its first byte and length, for an image at `offset`.
    pub fn range(self, offset: u64) -> Option<(u64, u64)> {
        let start = offset.checked_add_signed(i64::from(self.at) * BLOCK as i64)?;
        (self.len > 0).then_some((start, u64::from(self.len) * BLOCK))
    }
}

/// One piece of each record.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Pieces {
    /// A single one stands for those of all records.
    pub all: Vec<Piece>,
}

impl Pieces {
    pub fn get(&self, record: usize) -> Piece {
        if self.all.len() == 1 { self.all[0] } else { self.all[record] }
    }

    /// Bytes of the longest.
    pub fn longest(&self) -> u64 {
        u64::from(self.all.iter().map(|piece| piece.len).max().unwrap_or(0)) * BLOCK
    }

    /// Keeps one where all are the same, as in shards that a program wrote.
    pub fn shrink(&mut self) {
        if self.all.iter().all(|piece| *piece == self.all[0]) {
            self.all.truncate(1);
        }
        self.all.shrink_to_fit();
    }

    pub fn memory(&self) -> usize {
        self.all.capacity() * size_of::<Piece>() + size_of::<Self>()
    }
}

/// The hash of a piece.
pub(super) fn digest(bytes: &[u8]) -> u64 {
    xxh3_64(bytes)
}

/// The hash of all pieces of a record.
pub(super) fn seal(digests: impl IntoIterator<Item = u64>) -> u32 {
    let mut hash = Xxh3::new();
    digests.into_iter().for_each(|digest| hash.update(&digest.to_le_bytes()));
    hash.digest() as u32
}
