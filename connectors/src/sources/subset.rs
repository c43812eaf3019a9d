//! A part of any source: by a hash of each record's key, as [`crate::FolderConfig::split`] does for a folder, by a
//! condition on its values, or both.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::Xxh3;

use super::values;
use crate::recognised::{Recognised, grouped};
use crate::{
    Blocks, Condition, Extent, Fingerprint, IndexedSource, ReadRequest, ReadStats, Reader, ReaderConfig,
    Record, Schema, SourceConfig, SourceError, Split,
};

/// A part of a source.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SubsetConfig {
    /// The whole.
    pub source: Box<SourceConfig>,
    /// Which part of it, by a hash of each key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub split: Option<Split>,
    /// Which of its records, by their values.
    #[serde(rename = "where", default, skip_serializing_if = "Option::is_none")]
    pub condition: Option<Condition>,
}

pub(crate) struct Subset {
    whole: Arc<dyn IndexedSource>,
    /// Indices in the whole, ascending.
    kept: Vec<u32>,
    blocks: Blocks,
    fingerprint: Fingerprint,
    chosen: Vec<(&'static str, String)>,
    /// What is to be said of records that no condition could be tested on.
    untested: Option<String>,
}

impl Subset {
    pub(crate) fn open(config: &SubsetConfig) -> Result<Self, SourceError> {
        let keys = match (&config.split, &config.condition) {
            (None, None) => {
                return Err(SourceError::config(
                    "a subset takes split, where, or both; it has neither".into(),
                ));
            }
            (Some(_), None) => "split",
            (None, Some(_)) => "where",
            (Some(_), Some(_)) => "split and where",
        };
        if let Some(split) = &config.split {
            split.check()?;
        }
        let source = config.source.resolve()?;
        if matches!(source, SourceConfig::Mix(_)) {
            return Err(SourceError::config(format!(
                "set {keys} on the parts of a mixture, not on the mixture"
            )));
        }
        // Before the source, whose opening may take long.
        if let Some(condition) = &config.condition {
            values::check(&source, condition)?;
        }
        let whole = crate::open(&source)?;
        let Ok(len) = u32::try_from(whole.len()) else {
            return Err(SourceError::config(format!(
                "{keys}: only for sources below {} records; this one has {}",
                u32::MAX,
                whole.len()
            )));
        };
        let mut kept: Vec<u32> = (0..len).collect();
        if let Some(split) = &config.split {
            kept.retain(|&at| split.holds(whole.key(at.into()).as_bytes()));
            if kept.is_empty() {
                return Err(SourceError::data(format!(
                    "split: none of the source's {len} records belongs to the part \"{split}\"; choose another one"
                )));
            }
        }
        let mut untested = None;
        if let Some(condition) = &config.condition {
            let candidates = kept.len();
            untested = values::select(&source, condition, whole.len(), &mut kept)?;
            if kept.is_empty() {
                return Err(SourceError::data(format!(
                    "where: none of {candidates} records fulfils the condition \"{condition}\"{}",
                    untested.map(|why| format!(" ({why})")).unwrap_or_default()
                )));
            }
        }
        kept.shrink_to_fit();
        let mut recognised = Recognised::default();
        recognised.note(format!("{keys}: a part of {} records", grouped(len.into())));
        recognised.say(&source.locations().join(", "), kept.len() as u64);
        if let Some(why) = &untested {
            tracing::warn!("{}: {why}", source.locations().join(", "));
        }
        let mut hash = Xxh3::new();
        hash.update(b"fuelrail subset 1\0");
        hash.update(&whole.fingerprint().0.to_le_bytes());
        kept.iter().for_each(|at| hash.update(&at.to_le_bytes()));
        if let Some(condition) = &config.condition {
            hash.update(format!("where {condition}").as_bytes());
        }
        let split = config.split.as_ref().and_then(Split::chosen);
        let condition = config.condition.as_ref().map(|condition| ("where", condition.to_string()));
        let chosen = whole.chosen().into_iter().chain(split).chain(condition).collect();
        let blocks = blocks(&*whole, &kept);
        let fingerprint = Fingerprint(hash.digest128());
        Ok(Self { whole, kept, blocks, fingerprint, chosen, untested })
    }

    fn whole(&self, index: u64) -> u64 {
        self.kept[index as usize].into()
    }
}

/// The blocks of a source, of which these records are kept.
fn blocks(whole: &dyn IndexedSource, kept: &[u32]) -> Blocks {
    match whole.blocks() {
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
            let window = (window as u128 * kept.len() as u128 / u128::from(whole.len())).max(1) as u64;
            Blocks::Lengths { lengths, lanes, window }
        }
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
        let all: Vec<String> = self.whole.missing().into_iter().chain(self.untested.clone()).collect();
        (!all.is_empty()).then(|| all.join("; "))
    }

    fn chosen(&self) -> Vec<(&'static str, String)> {
        self.chosen.clone()
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
            split: Some(Split::fraction(part, fraction)),
            condition: None,
        })
    }

    /// A table in a folder of its own, and the keys of the records that a condition leaves of it.
    fn chosen(file: &str, text: &str, condition: &str) -> Result<Vec<u64>, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(file);
        std::fs::write(&path, text).unwrap();
        let source = serde_json::json!({"type": "subset", "where": condition, "source": {
            "type": "table", "files": [path], "fields": ["n"], "label": null}});
        let source: SourceConfig = serde_json::from_value(source).map_err(|error| error.to_string())?;
        let source = crate::open(&source).map_err(|error| error.to_string())?;
        let row = |index| source.key(index).rsplit([' ', ':', '#']).next().unwrap().parse().unwrap();
        Ok((0..source.len()).map(row).collect())
    }

    const CELLS: &str =
        "n,score,lang,zip,tag\n0,0.1,en,007,a\n1,0.5,de,008,7\n2,,en,009,\n3,0.9,,010,NA\n4,1e3,fr,011,x\n";

    #[test]
    fn a_condition_chooses_rows_of_cells() {
        let first = chosen("x.csv", CELLS, "n == 0").unwrap()[0];
        for (condition, expected) in [
            ("score > 0.3", &[1, 3, 4][..]),
            ("score > 0.3 and lang == 'de'", &[1]),
            ("score is null or lang is null", &[2, 3]),
            ("not (score > 0.3)", &[0, 2]),
            ("score != 0.5", &[0, 3, 4]),
            ("lang not in ['en', 'de']", &[4]),
            ("zip >= 9", &[2, 3, 4]),
            ("tag == '7' or tag == 'NA'", &[1, 3]),
            ("n < 3 and n > score", &[1]),
        ] {
            let rows: Vec<u64> =
                chosen("x.csv", CELLS, condition).unwrap().iter().map(|row| row - first).collect();
            assert_eq!(rows, expected, "{condition}");
        }
    }

    #[test]
    fn a_condition_chooses_objects_and_looks_inside_them() {
        let text = r#"{"n": 0, "meta": {"score": 0.5, "ok": true}, "tags": ["a"]}
{"n": 1, "meta": {"score": "high"}, "late": 3}
{"n": 2, "meta": null}
{"n": 3, "meta": {"score": 9007199254740993, "ok": false}}
"#;
        let first = chosen("x.jsonl", text, "n == 0").unwrap()[0];
        for (condition, expected) in [
            ("n < 1 and meta.score > 0.3", &[0][..]),
            ("meta.ok", &[0]),
            ("late == 3", &[1]),
            ("meta is null", &[2]),
            ("meta.score is null", &[2]),
            ("n == 3 and meta.score == 9007199254740993", &[3]),
            ("tags is not null", &[0]),
        ] {
            let rows: Vec<u64> =
                chosen("x.jsonl", text, condition).unwrap().iter().map(|row| row - first).collect();
            assert_eq!(rows, expected, "{condition}");
        }
        let error = chosen("x.jsonl", text, "meta.score > 0.3").unwrap_err();
        assert!(error.contains("meta.score = 'high' (a text) with 0.3 (a number)"), "{error}");
        let error = chosen("x.jsonl", text, "tags == 'a'").unwrap_err();
        assert!(error.contains("it compares tags (a list) with 'a' (a text)"), "{error}");
    }

    #[test]
    fn what_a_condition_cannot_be_is_said_by_name() {
        for (condition, expected) in [
            ("scor > 0.3", "where: the part \"scor\" is not a column of"),
            ("scor is null", "it has n"),
            ("score > 1e9", "where: none of 5 records fulfils the condition \"score > 1000000000.0\""),
            ("score == 'a'", "it compares score = 0.1 (a number) with 'a' (a text)"),
            ("lang > 3", "(a text) with 3 (a number)"),
            ("score >", "a value is missing"),
        ] {
            let error = chosen("x.csv", CELLS, condition).unwrap_err();
            assert!(error.contains(expected), "{condition}: {error}");
        }
        let refused = |source: serde_json::Value| {
            let source = serde_json::json!({"type": "subset", "where": "a > 1", "source": source});
            crate::open(&serde_json::from_value(source).unwrap()).err().unwrap().to_string()
        };
        let folder = refused(serde_json::json!({"type": "folder", "root": "/nowhere"}));
        assert!(folder.contains("where: an image folder has no values"), "{folder}");
        let synthetic = refused(serde_json::json!({"type": "synthetic", "count": 3}));
        assert!(synthetic.contains("where: synthetic images have no values"), "{synthetic}");
        let mix =
            serde_json::json!({"type": "mix", "parts": [{"source": {"type": "synthetic", "count": 3}}]});
        assert!(refused(mix).contains("set where on the parts of a mixture"));
        let neither = serde_json::json!({"type": "subset", "source": {"type": "synthetic", "count": 3}});
        let error = crate::open(&serde_json::from_value(neither).unwrap()).err().unwrap();
        assert!(error.to_string().contains("split, where, or both"));
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
