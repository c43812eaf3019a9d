//! Named parts: which members they are made of, and where those lie. What becomes of a member is
//! [`crate::values::file`]'s.
//!
//! ```text
//!  asked for       "txt"        "jpg;png"       "json:meta.caption"     "boxes.npy" as rows of numbers
//!  made of         member txt   the first one   a value in member json  member boxes.npy, without its header
//!                               that is there
//! ```
//!
//! The index keeps where each of these members lies, 8 bytes a record and member; what is in them is read with the
//! record. A record without the member lacks the part. Where a member lies is compared as the image's place is
//! ([`super::proof`]): by its headers.

use super::archive::{BLOCK, Member};
use super::index::ShardIndex;
use crate::schema::{Wanted, WantedKind};
use crate::values::file::Part;
use crate::{MAX_PART_BYTES, SourceError};

/// Stands for the size of a member that a record does not have.
const ABSENT: u32 = u32::MAX;

/// The parts that are asked for, and the members that they are made of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Parts {
    pub all: Vec<Part>,
    /// The endings of each, the first that a record has counts.
    pub members: Vec<Vec<String>>,
}

impl Parts {
    /// Takes a part in. `ending` checks and tidies one.
    ///
    /// # Errors
    /// [`SourceError`] when nothing in a tar file can be meant.
    pub fn push(
        &mut self,
        wanted: &Wanted,
        ending: impl Fn(&str) -> Result<String, SourceError>,
    ) -> Result<(), SourceError> {
        let (endings, path) = match wanted.part.split_once(':') {
            Some((member, path)) => (member, Some(path.to_owned())),
            None => (wanted.part.as_str(), None),
        };
        let endings = endings.split(';').map(ending).collect::<Result<Vec<_>, _>>()?;
        let known = self.members.iter().position(|other| *other == endings);
        let member = known.unwrap_or_else(|| {
            self.members.push(endings);
            self.members.len() - 1
        });
        let end = |word: &str| {
            let ends = |ending: &String| ending == word || ending.ends_with(&format!(".{word}"));
            self.members[member].iter().all(ends)
        };
        let part = Part::new(wanted, member, path, end)?;
        self.all.push(part);
        Ok(())
    }

    /// Which member an ending is of, and how many endings go before it; one may be of several.
    pub fn members_of<'all>(&'all self, ending: &'all [u8]) -> impl Iterator<Item = (usize, usize)> + 'all {
        self.members.iter().enumerate().filter_map(move |(member, endings)| {
            let rank = endings.iter().position(|other| other.as_bytes() == ending)?;
            Some((member, rank))
        })
    }

    /// Endings of members that are images by their own name.
    pub fn images(&self) -> impl Iterator<Item = &str> {
        let images = self.all.iter().filter(|part| part.wanted.kind == WantedKind::Image);
        images.flat_map(|part| self.members[part.file].iter().map(String::as_str))
    }
}

/// Where one member of each record lies.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Members {
    /// First byte, in blocks from that of the image.
    pub at: Vec<i32>,
    pub sizes: Vec<u32>,
}

impl Members {
    /// The next record's member, for an image at `offset`.
    ///
    /// # Errors
    /// When it is too large, or too far away.
    pub fn push(&mut self, offset: u64, member: Option<&Member>) -> Result<(), String> {
        let place = member.map(|member| {
            let at = (member.offset as i64 - offset as i64) / BLOCK as i64;
            let at = i32::try_from(at).ok();
            (at, (member.size <= MAX_PART_BYTES).then_some(member.size as u32))
        });
        match place {
            Some((Some(at), Some(size))) => {
                self.at.push(at);
                self.sizes.push(size);
                return Ok(());
            }
            _ => {
                self.at.push(0);
                self.sizes.push(ABSENT);
            }
        }
        match place {
            None => Ok(()),
            Some((_, None)) => Err(format!("is larger than {} MiB", MAX_PART_BYTES >> 20)),
            Some(_) => Err("lies more than a terabyte from its image".into()),
        }
    }

    /// Its first byte and its size, for an image at `offset`.
    pub fn get(&self, record: usize, offset: u64) -> Option<(u64, u64)> {
        let size = self.sizes[record];
        let at = offset.checked_add_signed(i64::from(self.at[record]) * BLOCK as i64)?;
        (size != ABSENT).then_some((at, u64::from(size)))
    }

    /// Whether any record has it.
    pub fn is_there(&self) -> bool {
        self.sizes.iter().any(|&size| size != ABSENT)
    }

    /// Whether all that is kept of it is inside a shard of `size` bytes.
    pub fn is_sound(&self, index: &ShardIndex, size: u64) -> bool {
        let inside = |record: usize| {
            let place = self.get(record, index.offsets[record]);
            match place {
                Some((at, len)) => at >= BLOCK && at.checked_add(len).is_some_and(|end| end <= size),
                None => self.sizes[record] == ABSENT,
            }
        };
        self.at.len() == index.len() && self.sizes.len() == index.len() && (0..index.len()).all(inside)
    }

    pub fn shrink(&mut self) {
        self.at.shrink_to_fit();
        self.sizes.shrink_to_fit();
    }

    pub fn memory(&self) -> usize {
        self.at.capacity() * 4 + self.sizes.capacity() * 4 + size_of::<Self>()
    }
}
