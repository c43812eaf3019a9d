//! Named parts: which members they are made of, where those lie, and the making.
//!
//! ```text
//!  asked for       "txt"        "jpg;png"       "json:meta.caption"     "boxes.npy" as rows of numbers
//!  made of         member txt   the first one   a value in member json  member boxes.npy, without its header
//!                               that is there
//! ```
//!
//! The index keeps where each of these members lies, 8 bytes a record and member; what is in them is read with the record.
//! A record without the member lacks the part. Where a member lies is compared as the image's place is
//! ([`super::proof`]): by its headers.

use std::borrow::Cow;

use super::archive::{BLOCK, Member};
use super::index::ShardIndex;
use super::values::{MAX_NPY_HEADER, NpyHeader};
use crate::schema::{PartKind, Wanted, WantedKind};
use crate::values::{fault, json};
use crate::{ElementType, MAX_PART_BYTES, PartSpec, SourceError};

/// Records whose parts are looked into for the shape of rows.
pub(super) const LOOKED_AT: usize = 256;

/// Stands for the size of a member that a record does not have.
const ABSENT: u32 = u32::MAX;

/// A part that is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    pub wanted: Wanted,
    /// Which of [`Parts::members`].
    pub member: usize,
    /// Where in its JSON.
    pub path: Option<String>,
}

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
        if let Some(path) = &path {
            let is_json = endings.iter().all(|ending| ending == "json" || ending.ends_with(".json"));
            if !is_json || path.split('.').any(str::is_empty) || wanted.kind == WantedKind::Image {
                return Err(SourceError::config(format!(
                    "part {:?} is no place in a JSON member; write one like \"json:annotation.box\"{}",
                    wanted.part,
                    if wanted.kind == WantedKind::Image { ", for text, JSON or numbers" } else { "" },
                )));
            }
        }
        let is_npy = endings.iter().all(|ending| ending == "npy" || ending.ends_with(".npy"));
        if wanted.kind == WantedKind::Ragged && path.is_none() && !is_npy {
            return Err(SourceError::config(format!(
                "part {:?} holds no rows of numbers; name a place in a JSON member (\"json:boxes\") or an array (\"boxes.npy\")",
                wanted.part
            )));
        }
        let known = self.members.iter().position(|other| *other == endings);
        let member = known.unwrap_or_else(|| {
            self.members.push(endings);
            self.members.len() - 1
        });
        self.all.push(Part { wanted: wanted.clone(), member, path });
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
        images.flat_map(|part| self.members[part.member].iter().map(String::as_str))
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

impl Part {
    /// The part's bytes of its member's.
    ///
    /// # Errors
    /// What is wrong with them, after the part's name.
    pub fn make<'member>(
        &self,
        member: &'member [u8],
        kind: &PartKind,
    ) -> Result<Option<Cow<'member, [u8]>>, String> {
        let named = |why: String| fault(&self.wanted.part, &why);
        if let Some(path) = &self.path {
            let value = self.value(member, path).map_err(named)?;
            return value.map_or(Ok(None), |value| json::value(value, kind)).map_err(named);
        }
        match kind {
            PartKind::Ragged { dtype, row } => {
                let header = npy(member).map_err(named)?;
                let rows = header.shape.split_first().map(|(_, row)| row);
                if header.dtype != *dtype || rows != Some(row) {
                    return Err(named(format!(
                        "is {} of shape {:?}; rows of {dtype} {row:?} are expected",
                        header.dtype, header.shape
                    )));
                }
                Ok(Some(Cow::Borrowed(&member[header.len as usize..])))
            }
            _ => Ok(Some(Cow::Borrowed(member))),
        }
    }

    pub fn value<'member>(&self, member: &'member [u8], path: &str) -> Result<Option<&'member str>, String> {
        let text =
            std::str::from_utf8(member).map_err(|_| "cannot be read: its JSON is not UTF-8".to_owned())?;
        if json::members(text).is_none() {
            return Err(format!("cannot be found: its JSON is {}, not an object", json::kind(text)));
        }
        json::find(text, path)
    }

    /// Bytes that the part has at most, of a member of this size.
    pub fn most_bytes(&self, size: u64) -> u64 {
        match (&self.path, self.wanted.kind) {
            // "1," becomes a number of eight bytes at most.
            (Some(_), WantedKind::Ragged) => size * 4,
            _ => size,
        }
    }

    /// Type and row of the rows in a member, if they show there.
    pub fn rows(&self, member: &[u8]) -> Option<(ElementType, Vec<u64>)> {
        match &self.path {
            Some(path) => {
                let row = json::shape_of_rows(self.value(member, path).ok()??)?;
                Some((self.wanted.dtype.unwrap_or(ElementType::F32), row))
            }
            None => {
                let header = npy(member).ok()?;
                Some((header.dtype, header.shape.split_first()?.1.to_vec()))
            }
        }
    }

    /// What is known of the part before any record was read; `None` where records have to show it.
    pub fn spec(&self) -> Option<PartSpec> {
        if self.wanted.kind != WantedKind::Ragged {
            return Some(self.wanted.spec(ElementType::U8, &[]));
        }
        let row = self.wanted.row.as_ref().filter(|_| self.path.is_some())?;
        Some(self.wanted.spec(self.wanted.dtype.unwrap_or(ElementType::F32), row))
    }
}

pub(crate) fn npy(member: &[u8]) -> Result<NpyHeader, String> {
    let start = &member[..member.len().min(MAX_NPY_HEADER as usize)];
    NpyHeader::parse(start, member.len() as u64).map_err(|why| format!("cannot be read: {why}"))
}
