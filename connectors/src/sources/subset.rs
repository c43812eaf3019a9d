//! A part of any source, chosen by a hash of each record's key, as [`crate::FolderConfig::split`] does for a folder.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::Xxh3;

use crate::recognised::{Recognised, grouped};
use crate::{
    Blocks, Extent, Fingerprint, IndexedSource, ReadRequest, ReadStats, Reader, ReaderConfig, Record, Schema,
    SourceConfig, SourceError, Split,
};

/// A part of a source.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SubsetConfig {
    /// The whole.
    pub source: Box<SourceConfig>,
    /// Which part of it.
    pub split: Split,
}

pub(crate) struct Subset {
    whole: Arc<dyn IndexedSource>,
    /// Indices in the whole, ascending.
    kept: Vec<u32>,
    blocks: Blocks,
    fingerprint: Fingerprint,
}

impl Subset {
    pub(crate) fn open(config: &SubsetConfig) -> Result<Self, SourceError> {
        config.split.check()?;
        let whole = crate::open(&config.source)?;
        if !whole.portions().is_empty() {
            return Err(SourceError::config(
                "set split= on the parts of a mixture, not on the mixture".into(),
            ));
        }
        let Ok(len) = u32::try_from(whole.len()) else {
            return Err(SourceError::config(format!(
                "split= is for sources below {} records; this one has {}",
                u32::MAX,
                whole.len()
            )));
        };
        let kept: Vec<u32> =
            (0..len).filter(|&at| config.split.holds(whole.key(at.into()).as_bytes())).collect();
        if kept.is_empty() {
            return Err(SourceError::data(format!(
                "split: none of the source's {len} records belongs to this part; choose another fraction"
            )));
        }
        let blocks = match whole.blocks() {
            Blocks::None => Blocks::None,
            Blocks::Lengths { lengths, lanes, window } => {
                let mut end = 0;
                let mut from = 0;
                let kept_of = lengths.iter().map(|length| {
                    end += length;
                    let to = kept.partition_point(|&at| u64::from(at) < end);
                    (to - std::mem::replace(&mut from, to)) as u64
                });
                let lengths = kept_of.filter(|&length| length > 0).collect();
                // Fewer records a block, as many blocks: the window keeps its bytes.
                let window = (window as u128 * kept.len() as u128 / u128::from(len)).max(1) as u64;
                Blocks::Lengths { lengths, lanes, window }
            }
        };
        let mut recognised = Recognised::default();
        recognised.note(format!("the split's part of {} records", grouped(len.into())));
        recognised.say(&config.source.locations().join(", "), kept.len() as u64);
        let mut hash = Xxh3::new();
        hash.update(b"fuelrail subset 1\0");
        hash.update(&whole.fingerprint().0.to_le_bytes());
        kept.iter().for_each(|at| hash.update(&at.to_le_bytes()));
        Ok(Self { whole, kept, blocks, fingerprint: Fingerprint(hash.digest128()) })
    }

    fn whole(&self, index: u64) -> u64 {
        self.kept[index as usize].into()
    }
}

impl IndexedSource for Subset {
    fn len(&self) -> u64 {
        self.kept.len() as u64
    }

    fn key(&self, index: u64) -> String {
        self.whole.key(self.whole(index))
    }

    fn label(&self, index: u64) -> i64 {
        self.whole.label(self.whole(index))
    }

    fn is_labelled(&self) -> bool {
        self.whole.is_labelled()
    }

    fn verdict(&self, index: u64) -> Option<String> {
        self.whole.verdict(self.whole(index))
    }

    fn classes(&self) -> &[String] {
        self.whole.classes()
    }

    fn schema(&self) -> Schema {
        self.whole.schema()
    }

    fn missing(&self) -> Option<String> {
        self.whole.missing()
    }

    fn no_image(&self) -> Option<String> {
        self.whole.no_image()
    }

    fn image_size(&self) -> Option<(u32, u32)> {
        self.whole.image_size()
    }

    fn size(&self, index: u64) -> u64 {
        self.whole.size(self.whole(index))
    }

    fn extent(&self, index: u64) -> Option<Extent> {
        self.whole.extent(self.whole(index))
    }

    fn blocks(&self) -> Blocks {
        self.blocks.clone()
    }

    fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    fn memory(&self) -> u64 {
        self.kept.capacity() as u64 * 4 + self.whole.memory()
    }

    fn reader_memory(&self) -> u64 {
        self.whole.reader_memory()
    }

    fn reader(self: Arc<Self>, config: &ReaderConfig) -> Result<Box<dyn Reader>, SourceError> {
        let reader = self.whole.clone().reader(config)?;
        Ok(Box::new(SubsetReader { subset: self, reader }))
    }
}

struct SubsetReader {
    subset: Arc<Subset>,
    reader: Box<dyn Reader>,
}

impl Reader for SubsetReader {
    fn submit(&self, requests: Vec<ReadRequest>) {
        let translated = requests.into_iter().map(|ReadRequest { index, done }| ReadRequest {
            index: self.subset.whole(index),
            done: Box::new(move |read| done(read.map(|record| Record { index, ..record }))),
        });
        self.reader.submit(translated.collect());
    }

    fn horizon(&self) -> u64 {
        self.reader.horizon()
    }

    fn expect(&self, indices: &[u64]) {
        let translated: Vec<u64> = indices.iter().map(|&index| self.subset.whole(index)).collect();
        self.reader.expect(&translated);
    }

    fn stats(&self) -> ReadStats {
        self.reader.stats()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{SplitPart, SyntheticConfig};

    fn open(part: SplitPart, fraction: f64) -> Result<Subset, SourceError> {
        let whole = SyntheticConfig { count: 1000, block_records: Some(100), ..SyntheticConfig::default() };
        Subset::open(&SubsetConfig {
            source: Box::new(SourceConfig::Synthetic(whole)),
            split: Split { part, fraction },
        })
    }

    #[test]
    fn two_parts_make_the_whole_and_keep_its_blocks() {
        let (train, val) = (open(SplitPart::Train, 0.2).unwrap(), open(SplitPart::Val, 0.2).unwrap());
        let mut keys: Vec<_> = [&train, &val].iter().flat_map(|s| (0..s.len()).map(|at| s.key(at))).collect();
        keys.sort();
        keys.dedup();
        assert_eq!((keys.len(), train.len() + val.len()), (1000, 1000));
        assert!((120..280).contains(&val.len()), "{}", val.len());
        let Blocks::Lengths { lengths, .. } = val.blocks() else { panic!("the whole has blocks") };
        assert_eq!((lengths.len(), lengths.iter().sum::<u64>()), (10, val.len()));
        assert_ne!(train.fingerprint(), val.fingerprint());
        assert!(open(SplitPart::Val, 0.0).err().unwrap().to_string().contains("none of the source's 1000"));
    }
}
