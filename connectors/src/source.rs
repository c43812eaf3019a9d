//! What a source is: records with a known length and random access.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::{ReadError, Reader, ReaderConfig, Schema, SourceError};

/// A list of records with a known length and random access. Immutable once open; shared by all feeds of a pipeline.
///
/// Methods that take an index panic when it is not below [`len`](Self::len): indices come from the order, and one out
/// of range is a bug.
pub trait IndexedSource: Send + Sync + 'static {
    /// Number of records, at least 1.
    fn len(&self) -> u64;

    /// Never true: an empty source is refused by [`open`](crate::open).
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The record's name: its path relative to the source with `/` between parts, unique within the source.
    /// A backslash is written `\\` and a byte that is not UTF-8 `\xNN`.
    fn key(&self, index: u64) -> String;

    /// Whether records have labels. Where they have none, a batch has no `label`.
    fn is_labelled(&self) -> bool;

    /// The record's label: an index into [`classes`](Self::classes), or a whole number of its own where there are none.
    /// Without a meaning where the source has no labels, and in records that [`verdict`](Self::verdict) judges.
    fn label(&self, index: u64) -> i64;

    /// Why a record is a bad one, as far as the index knows: it has no label that is of use, say. Such a record keeps
    /// its index and is not worth reading. Default: never.
    fn verdict(&self, index: u64) -> Option<String> {
        let _ = index;
        None
    }

    /// The [`verdict`](Self::verdict) in the form of a read that ended.
    fn refused(&self, index: u64) -> Option<ReadError> {
        self.verdict(index).map(|why| ReadError::bad(self.key(index), why))
    }

    /// Class names in label order; empty for an unlabelled source, or where labels are numbers.
    fn classes(&self) -> &[String];

    /// What every record holds. Default: an encoded image and nothing else.
    fn schema(&self) -> Schema {
        Schema::images()
    }

    /// What is known to be missing from the data, as a sentence, for those who would rather have none of it then.
    fn missing(&self) -> Option<String> {
        None
    }

    /// How its records were chosen out of more, in the words of whoever chose them; nothing if it has them all.
    fn chosen(&self) -> Vec<(&'static str, String)> {
        Vec::new()
    }

    /// Why there is no image in its records, where something in it may have been meant for one.
    fn no_image(&self) -> Option<String> {
        None
    }

    /// What records have besides what they deliver, as the first of them shows, in words: for those who wonder what
    /// could be asked for. May read a little. Default: nobody knows.
    fn beside(&self) -> Option<String> {
        None
    }

    /// Width and height of every image, where the source itself fixes them: pixels of arrays, not files. `None`
    /// otherwise.
    fn image_size(&self) -> Option<(u32, u32)> {
        None
    }

    /// Bytes of a record, its fields included: exact where it is stored, an upper bound where it is made (synthetic),
    /// the mean of its block where that has to be decoded to know (tables of images). Known without reading, for
    /// budgets.
    ///
    /// What a budget makes of a mean: records whose means add up to `b` bytes take `b` bytes when they are whole
    /// blocks. Out of blocks whose sizes scatter they may take more, at most what those blocks take, which is what
    /// [`reader_memory`](Self::reader_memory) counts for the blocks themselves. No block takes more than 1 GiB.
    fn size(&self, index: u64) -> u64;

    /// Where the record's bytes lie, if they lie in a file.
    fn extent(&self, index: u64) -> Option<Extent>;

    /// Stretches of records that should be read together.
    fn blocks(&self) -> Blocks;

    /// The stretches of records that an epoch draws from in proportion, in index order; empty when it draws each record
    /// once. Where there are such portions, their blocks count and [`blocks`](Self::blocks) is [`Blocks::None`].
    fn portions(&self) -> &[Portion] {
        &[]
    }

    /// Identity of the data: equal for equal keys, sizes and classes, wherever the data lies.
    fn fingerprint(&self) -> Fingerprint;

    /// Bytes of memory that the source's index holds.
    fn memory(&self) -> u64;

    /// Bytes of memory that one reader holds beside the records in flight and [`POOL_BYTES`](crate::POOL_BYTES):
    /// decoded blocks, say.
    fn reader_memory(&self) -> u64 {
        0
    }

    /// Starts a reader for this source. Each reader has its own threads and buffers; one per pipeline is enough.
    ///
    /// # Errors
    /// [`SourceError`] when the backend asked for is refused by the kernel, or the data has gone since
    /// [`open`](crate::open).
    fn reader(self: Arc<Self>, config: &ReaderConfig) -> Result<Box<dyn Reader>, SourceError>;
}

/// A byte range in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extent {
    /// The file, absolute if the source's root is.
    pub file: PathBuf,
    /// First byte.
    pub offset: u64,
    /// Number of bytes.
    pub len: u64,
}

/// Stretches of records that lie together, as a hint for the blocked order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Blocks {
    /// Every record costs the same in any order.
    None,
    /// Consecutive blocks, and how they are best shuffled.
    Lengths {
        /// Lengths in records, none of them 0; they add up to the source's length.
        lengths: Arc<[u64]>,
        /// Blocks read side by side.
        lanes: u64,
        /// Records of one lane that are shuffled together. With a reader that keeps decoded blocks, lanes x window
        /// records (and a block more a lane) must fit in what it keeps.
        window: u64,
    },
}

impl Blocks {
    /// Lanes for blocks whose records can be fetched one by one, as from a tar file.
    pub const LANES: u64 = 8;
    /// The window for these.
    pub const WINDOW: u64 = 4096;

    /// Blocks whose records can be fetched one by one at the price of a seek.
    pub(crate) fn seekable(lengths: impl IntoIterator<Item = u64>) -> Self {
        Self::Lengths { lengths: lengths.into_iter().collect(), lanes: Self::LANES, window: Self::WINDOW }
    }
}

/// 128-bit identity of a data set: keys, sizes and classes in order; not the root, not modification times.
///
/// Shown, and serialised, as 32 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Fingerprint(pub u128);

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl FromStr for Fingerprint {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let valid = text.len() == 32 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        match u128::from_str_radix(text, 16) {
            Ok(value) if valid => Ok(Self(value)),
            _ => Err(format!("{text:?} is not a fingerprint: 32 lower-case hexadecimal digits are expected")),
        }
    }
}

impl Serialize for Fingerprint {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Fingerprint {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// A stretch of a source's records and how often an epoch draws from it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Portion {
    /// Its name in keys.
    pub name: String,
    /// Records in it.
    pub len: u64,
    /// Its own blocks.
    pub blocks: Blocks,
    /// Draws from it in an epoch.
    pub per_epoch: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fingerprint_is_32_digits_and_nothing_else() {
        let fingerprint = Fingerprint(0x0123_4567_89ab_cdef);
        let text = fingerprint.to_string();
        assert_eq!(text, "00000000000000000123456789abcdef");
        assert_eq!(text.parse(), Ok(fingerprint));
        assert_eq!(serde_json::to_string(&fingerprint).unwrap(), format!("\"{text}\""));
        for wrong in
            ["", "123", "+0000000000000000123456789abcdef", &text.to_uppercase(), &format!("{text}0")]
        {
            assert!(wrong.parse::<Fingerprint>().is_err(), "{wrong}");
        }
    }
}
