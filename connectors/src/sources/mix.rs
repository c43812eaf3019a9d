//! Several sources as one: their records laid end to end, each source drawn as often as its weight or repeat says.
//!
//! ```text
//!  part 0: 1000 records, weight 3        an epoch of 2000: 1500 draws of part 0, 500 of part 1,
//!  part 1: 4000 records, weight 1        spread evenly; a part's own passes go on from epoch to epoch
//! ```
//!
//! - Indices run through part 0, then part 1, and so on; a key is the part's name, a slash, and the record's own key.
//! - Classes are joined by name, in order of first appearance; parts with integer labels alone can be mixed only with
//!   their like, for a number means a different thing in each list of names.
//! - All parts have the same schema.
//! - How often a part is drawn is data ([`Portion::per_epoch`]); the order of the draws is the loader's business.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::Xxh3;

use crate::{
    Blocks, Extent, Fingerprint, IndexedSource, PartKind, PartSpec, Portion, ReadRequest, ReadStats, Reader,
    ReaderConfig, Record, Schema, SourceConfig, SourceError,
};

/// Several sources drawn in proportion.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MixConfig {
    /// The parts, at most 256.
    pub parts: Vec<MixPart>,
    /// Draws in an epoch, for weights. Default: as many as there are records.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub samples_per_epoch: Option<u64>,
}

/// One source of a mixture.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MixPart {
    /// Where its records come from.
    pub source: SourceConfig,
    /// Its name in keys. Default: its number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Its share of the draws, relative to the other parts' weights.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<f64>,
    /// How often an epoch goes through it; 0.5 is half of it, each half in turn. Default, without weights: once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repeat: Option<f64>,
}

/// More parts than this are a list that should be one source.
const MAX_PARTS: usize = 256;

pub(crate) struct Mix {
    sources: Vec<Arc<dyn IndexedSource>>,
    portions: Vec<Portion>,
    /// Where each part's records begin, and their end.
    begins: Vec<u64>,
    classes: Vec<String>,
    /// Label of each part's classes.
    labels: Vec<Vec<i64>>,
    schema: Schema,
    fingerprint: Fingerprint,
}

impl Mix {
    pub(crate) fn open(config: &MixConfig) -> Result<Self, SourceError> {
        config.check()?;
        let names: Vec<String> = (0..config.parts.len())
            .map(|at| config.parts[at].name.clone().unwrap_or_else(|| at.to_string()))
            .collect();
        let mut sources = Vec::with_capacity(config.parts.len());
        for (part, name) in config.parts.iter().zip(&names) {
            let opened = crate::open(&part.source);
            let of_mixture = |error: SourceError| {
                if error.is_cancelled() {
                    error
                } else {
                    error.with(&format!(" (part {name:?} of the mixture)"))
                }
            };
            sources.push(opened.map_err(of_mixture)?);
        }
        let schema = sources[0].schema();
        let (mut classes, mut labels): (Vec<String>, Vec<Vec<i64>>) = (Vec::new(), Vec::new());
        for (source, name) in sources.iter().zip(&names) {
            if source.schema() != schema {
                let parts = (&source.schema().parts, &schema.parts);
                if let Some(why) = unlike(&names[0], parts.1, name, parts.0) {
                    return Err(SourceError::config(why));
                }
                return Err(SourceError::config(format!(
                    "part {name:?} of the mixture holds {}, part {:?} holds {}: choose fields that all parts have",
                    describe(&source.schema()),
                    names[0],
                    describe(&schema)
                )));
            }
            if source.is_labelled() != sources[0].is_labelled() {
                let (with, without) =
                    if source.is_labelled() { (name, &names[0]) } else { (&names[0], name) };
                return Err(SourceError::config(format!(
                    "part {with:?} of the mixture has labels and part {without:?} has none: say where its labels are (label), or \
                     use part {with:?} without labels (label=None)"
                )));
            }
            if source.classes().is_empty() != sources[0].classes().is_empty() {
                return Err(SourceError::config(format!(
                    "parts {:?} and {name:?} of the mixture: one has named classes and the other only numbers as \
                     labels; give classes=[...] to the one without names",
                    names[0]
                )));
            }
            let place = |class: &String| {
                let known = classes.iter().position(|other| other == class);
                known.unwrap_or_else(|| {
                    classes.push(class.clone());
                    classes.len() - 1
                }) as i64
            };
            labels.push(source.classes().iter().map(place).collect());
        }
        let lengths: Vec<u64> = sources.iter().map(|source| source.len()).collect();
        let per_epoch = config.draws(&lengths)?;
        let mut begins = vec![0];
        for len in &lengths {
            begins.push(begins[begins.len() - 1] + len);
        }
        let mut hash = Xxh3::new();
        hash.update(b"fuelrail mix 1\0");
        for (at, source) in sources.iter().enumerate() {
            hash.update(&(names[at].len() as u64).to_le_bytes());
            hash.update(names[at].as_bytes());
            hash.update(&source.fingerprint().0.to_le_bytes());
        }
        let fingerprint = Fingerprint(hash.digest128());
        let portions = (0..sources.len())
            .map(|at| Portion {
                name: names[at].clone(),
                len: lengths[at],
                blocks: sources[at].blocks(),
                per_epoch: per_epoch[at],
            })
            .collect();
        Ok(Self { sources, portions, begins, classes, labels, schema, fingerprint })
    }

    /// The part that a record is of, and its index there.
    fn locate(&self, index: u64) -> (usize, u64) {
        assert!(index < self.len(), "record {index} of a source of {}", self.len());
        let part = self.begins.partition_point(|&begin| begin <= index) - 1;
        (part, index - self.begins[part])
    }
}

impl MixConfig {
    fn check(&self) -> Result<(), SourceError> {
        let refuse = |text: String| Err(SourceError::config(text));
        if self.parts.is_empty() || self.parts.len() > MAX_PARTS {
            return refuse(format!("a mixture has 1 to {MAX_PARTS} parts, not {}", self.parts.len()));
        }
        let weighted = self.parts.iter().filter(|part| part.weight.is_some()).count();
        if weighted > 0
            && (weighted < self.parts.len() || self.parts.iter().any(|part| part.repeat.is_some()))
        {
            return refuse("the parts of a mixture have either all a weight or none: a weight is a share of the draws, a \
                           repeat a number of passes"
                .into());
        }
        if self.samples_per_epoch.is_some() && weighted == 0 {
            return refuse(
                "samples_per_epoch needs weights; with repeats they determine the length of an epoch".into(),
            );
        }
        if self.samples_per_epoch == Some(0) {
            return refuse("samples_per_epoch is 0; it must be at least 1".into());
        }
        let mut names = std::collections::HashSet::new();
        for (at, part) in self.parts.iter().enumerate() {
            for (key, value) in [("weight", part.weight), ("repeat", part.repeat)] {
                if value.is_some_and(|value| !value.is_finite() || value <= 0.0 || value > 1e9) {
                    return refuse(format!(
                        "parts[{at}].{key} is {}; it must be above 0",
                        value.expect("just seen")
                    ));
                }
            }
            let name = part.name.clone().unwrap_or_else(|| at.to_string());
            if name.is_empty() || name.contains('/') {
                return refuse(format!("parts[{at}].name {name:?} must not be empty or have a \"/\" in it"));
            }
            if !names.insert(name.clone()) {
                return refuse(format!("two parts of the mixture are called {name:?}"));
            }
            if matches!(part.source, SourceConfig::Mix(_)) {
                return refuse(format!("parts[{at}] is a mixture itself; list its parts instead"));
            }
        }
        Ok(())
    }

    /// Draws from each part in an epoch.
    fn draws(&self, lengths: &[u64]) -> Result<Vec<u64>, SourceError> {
        let weights: Option<Vec<f64>> = self.parts.iter().map(|part| part.weight).collect();
        let Some(weights) = weights else {
            let times = |(part, &len): (&MixPart, &u64)| {
                ((part.repeat.unwrap_or(1.0) * len as f64).round() as u64).max(1)
            };
            return Ok(self.parts.iter().zip(lengths).map(times).collect());
        };
        let total = self.samples_per_epoch.unwrap_or_else(|| lengths.iter().sum());
        let draws = apportion(total, &weights);
        match draws.iter().position(|&draws| draws == 0) {
            None => Ok(draws),
            Some(at) => Err(SourceError::config(format!(
                "parts[{at}].weight is so small that an epoch of {total} draws would contain none of it; raise \
                 it or samples_per_epoch"
            ))),
        }
    }
}

/// `total` cut in proportion to `weights`, by largest remainders (Hamilton's method); ties go to the earlier one.
pub fn apportion(total: u64, weights: &[f64]) -> Vec<u64> {
    let sum: f64 = weights.iter().sum();
    let ideal: Vec<f64> = weights.iter().map(|weight| total as f64 * (weight / sum)).collect();
    let mut shares: Vec<u64> = ideal.iter().map(|ideal| ideal.floor() as u64).collect();
    let mut by_remainder: Vec<usize> = (0..weights.len()).collect();
    by_remainder.sort_by(|&a, &b| (ideal[b].fract()).total_cmp(&ideal[a].fract()).then(a.cmp(&b)));
    let missing = total.saturating_sub(shares.iter().sum());
    for at in by_remainder.into_iter().cycle().take(missing as usize) {
        shares[at] += 1;
    }
    shares
}

fn describe(schema: &Schema) -> String {
    let image = schema.image.then(|| "an image".to_owned());
    let parts = schema.parts.iter().map(|part| format!("{:?}", part.name));
    let fields =
        schema.fields.iter().map(|field| format!("{} {} {:?}", field.name, field.dtype, field.shape));
    image.into_iter().chain(parts).chain(fields).collect::<Vec<_>>().join(", ")
}

/// How named parts that both have differ, if they do, and what to do.
fn unlike(first: &str, parts: &[PartSpec], other: &str, others: &[PartSpec]) -> Option<String> {
    let (a, b) = parts.iter().zip(others).find(|(a, b)| a.name == b.name && a.kind != b.kind)?;
    let rows = |part: &PartSpec| match &part.kind {
        PartKind::Ragged { dtype, row } => format!("rows of {dtype} of shape {row:?}"),
        _ => "something else".to_owned(),
    };
    Some(format!(
        "{:?} is {} in part {first:?} of the mixture and {} in part {other:?}: say what it is in all of them \
         with dtype and row (row=(4,) for boxes), or store it the same way",
        a.name,
        rows(a),
        rows(b),
    ))
}

impl IndexedSource for Mix {
    fn len(&self) -> u64 {
        self.begins[self.begins.len() - 1]
    }

    fn key(&self, index: u64) -> String {
        let (part, index) = self.locate(index);
        format!("{}/{}", self.portions[part].name, self.sources[part].key(index))
    }

    fn label(&self, index: u64) -> i64 {
        let (part, index) = self.locate(index);
        let label = self.sources[part].label(index);
        if self.classes.is_empty() || !self.is_labelled() { label } else { self.labels[part][label as usize] }
    }

    fn is_labelled(&self) -> bool {
        self.sources[0].is_labelled()
    }

    fn verdict(&self, index: u64) -> Option<String> {
        let (part, index) = self.locate(index);
        self.sources[part].verdict(index)
    }

    fn classes(&self) -> &[String] {
        &self.classes
    }

    fn schema(&self) -> Schema {
        self.schema.clone()
    }

    fn missing(&self) -> Option<String> {
        self.sources.iter().find_map(|source| source.missing())
    }

    fn chosen(&self) -> Vec<(&'static str, String)> {
        let parts = self.portions().iter().zip(&self.sources);
        let chosen: Vec<_> = parts
            .flat_map(|(part, source)| {
                let of_part = |(key, choice)| (key, format!("{}: {choice}", part.name));
                source.chosen().into_iter().map(of_part)
            })
            .collect();
        let mut keys: Vec<&'static str> = chosen.iter().map(|(key, _)| *key).collect();
        keys.dedup();
        let all = |key| {
            let of_key = chosen.iter().filter(|(other, _)| *other == key);
            of_key.map(|(_, choice)| choice.as_str()).collect::<Vec<_>>().join("; ")
        };
        keys.into_iter().map(|key| (key, all(key))).collect()
    }

    fn no_image(&self) -> Option<String> {
        self.sources.iter().find_map(|source| source.no_image())
    }

    fn image_size(&self) -> Option<(u32, u32)> {
        let first = self.sources.first()?.image_size()?;
        self.sources.iter().all(|source| source.image_size() == Some(first)).then_some(first)
    }

    fn size(&self, index: u64) -> u64 {
        let (part, index) = self.locate(index);
        self.sources[part].size(index)
    }

    fn extent(&self, index: u64) -> Option<Extent> {
        let (part, index) = self.locate(index);
        self.sources[part].extent(index)
    }

    fn blocks(&self) -> Blocks {
        // Each part has its own: see `portions`.
        Blocks::None
    }

    fn portions(&self) -> &[Portion] {
        &self.portions
    }

    fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    fn memory(&self) -> u64 {
        let own = self.labels.iter().map(|labels| labels.capacity() * 8).sum::<usize>()
            + self.classes.iter().map(|class| class.capacity() + size_of::<String>()).sum::<usize>();
        own as u64 + self.sources.iter().map(|source| source.memory()).sum::<u64>()
    }

    fn reader_memory(&self) -> u64 {
        // Each part's reader has a pool of its own; the first is counted by the pipeline.
        let pools = crate::POOL_BYTES * (self.sources.len() as u64 - 1);
        pools + self.sources.iter().map(|source| source.reader_memory()).sum::<u64>()
    }

    fn reader(self: Arc<Self>, config: &ReaderConfig) -> Result<Box<dyn Reader>, SourceError> {
        let readers =
            self.sources.iter().map(|source| source.clone().reader(config)).collect::<Result<_, _>>()?;
        Ok(Box::new(MixReader { mix: self, readers }))
    }
}

/// Passes each request to its part's reader.
struct MixReader {
    mix: Arc<Mix>,
    readers: Vec<Box<dyn Reader>>,
}

impl Reader for MixReader {
    fn submit(&self, requests: Vec<ReadRequest>) {
        let mut by_part: Vec<Vec<ReadRequest>> = self.readers.iter().map(|_| Vec::new()).collect();
        for ReadRequest { index, done } in requests {
            let (part, inner) = self.mix.locate(index);
            let done =
                Box::new(move |read: Result<Record, _>| done(read.map(|record| Record { index, ..record })));
            by_part[part].push(ReadRequest { index: inner, done });
        }
        for (reader, requests) in self.readers.iter().zip(by_part) {
            if !requests.is_empty() {
                reader.submit(requests);
            }
        }
    }

    fn horizon(&self) -> u64 {
        self.readers.iter().map(|reader| reader.horizon()).max().unwrap_or(0)
    }

    fn expect(&self, indices: &[u64]) {
        let mut by_part: Vec<Vec<u64>> = self.readers.iter().map(|_| Vec::new()).collect();
        for &index in indices {
            let (part, inner) = self.mix.locate(index);
            by_part[part].push(inner);
        }
        for (reader, indices) in self.readers.iter().zip(by_part) {
            reader.expect(&indices);
        }
    }

    fn stats(&self) -> ReadStats {
        let mut total = self.readers[0].stats();
        for reader in &self.readers[1..] {
            let stats = reader.stats();
            total.submissions += stats.submissions;
            total.reads += stats.reads;
            total.bytes += stats.bytes;
            // They work side by side: the busiest says how close the disk is to its limit.
            total.busy_ns = total.busy_ns.max(stats.busy_ns);
        }
        total
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{SyntheticConfig, Wanted, WantedKind};

    fn part(count: u64) -> MixPart {
        let source = SourceConfig::Synthetic(SyntheticConfig { count, ..SyntheticConfig::default() });
        MixPart { source, name: None, weight: None, repeat: None }
    }

    fn draws(parts: Vec<MixPart>, samples_per_epoch: Option<u64>) -> Vec<u64> {
        let mix = Mix::open(&MixConfig { parts, samples_per_epoch }).unwrap();
        mix.portions().iter().map(|part| part.per_epoch).collect()
    }

    #[test]
    fn weights_are_shares_and_repeats_are_passes() {
        let weighted = |count, weight| MixPart { weight: Some(weight), ..part(count) };
        assert_eq!(draws(vec![weighted(1000, 3.0), weighted(3000, 1.0)], None), [3000, 1000]);
        assert_eq!(draws(vec![weighted(10, 1.0), weighted(10, 2.0)], Some(100)), [33, 67]);
        assert_eq!(draws(vec![MixPart { repeat: Some(2.5), ..part(100) }, part(7)], None), [250, 7]);
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        let open =
            |parts| Mix::open(&MixConfig { parts, samples_per_epoch: None }).err().unwrap().to_string();
        assert!(open(vec![]).contains("1 to 256 parts"));
        let weight = |weight| MixPart { weight: Some(weight), ..part(10) };
        assert!(open(vec![weight(1.0), part(10)]).contains("all a weight or none"));
        assert!(open(vec![weight(0.0)]).contains("parts[0].weight is 0"));
        assert!(open(vec![weight(1e-9), weight(1e9)]).contains("parts[0].weight is so small"));
        let named = MixPart { name: Some("1".into()), ..part(10) };
        assert!(open(vec![named, part(10)]).contains("two parts"));
        let classes = |classes| SyntheticConfig { classes, ..SyntheticConfig::default() };
        let other = MixPart { source: SourceConfig::Synthetic(classes(20)), ..part(1) };
        let mix = Mix::open(&MixConfig { parts: vec![part(10), other], samples_per_epoch: None }).unwrap();
        assert!(mix.classes().len() > 10, "classes are joined by name: {:?}", mix.classes());
    }

    #[test]
    fn all_sources_of_a_mixture_have_the_parts_that_are_asked_for() {
        let root = tempfile::tempdir().unwrap();
        let folder = |name: &str, json: &str| {
            let class = root.path().join(name).join("c");
            std::fs::create_dir_all(&class).unwrap();
            std::fs::write(class.join("1.jpg"), "x").unwrap();
            std::fs::write(class.join("1.json"), json).unwrap();
            let root = root.path().join(name).to_string_lossy().into_owned();
            let source = serde_json::json!({"type": "folder", "root": root});
            MixPart { name: Some(name.into()), source: serde_json::from_value(source).unwrap(), ..part(1) }
        };
        let open = |wanted: Wanted, parts: Vec<MixPart>| {
            let config = SourceConfig::Mix(MixConfig { parts, samples_per_epoch: None });
            let source = crate::open(&config.delivering(&[Wanted::own_image(), wanted]));
            source.map(|source| source.schema()).map_err(|error| error.to_string())
        };
        let boxes = || Wanted::new("json:boxes", WantedKind::Ragged);
        let four = || folder("a", r#"{"boxes": [[1, 2, 3, 4]]}"#);
        let none = || folder("none", r#"{"boxes": []}"#);
        let single = folder("b", r#"{"boxes": [1, 2]}"#);
        let schema = open(boxes(), vec![four(), folder("c", r#"{"boxes": [[5, 6, 7, 8.5]]}"#)]).unwrap();
        assert_eq!(schema.parts.len(), 1);
        let text = open(boxes(), vec![four(), single]).unwrap_err();
        assert!(text.contains("\"json:boxes\" is rows of f32 of shape [4] in part \"a\""), "{text}");
        assert!(text.contains("shape [] in part \"b\": say") && text.contains("row=(4,)"), "{text}");
        let row = Wanted { row: Some(vec![4]), ..boxes() };
        open(row, vec![four(), none()]).unwrap();
        let lacking = folder("lacking", "{}");
        let text = open(boxes(), vec![four(), lacking.clone()]).unwrap_err();
        assert!(text.contains("json:boxes") && text.contains("(part \"lacking\" of the mixture)"), "{text}");
        open(Wanted { row: Some(vec![4]), optional: true, ..boxes() }, vec![four(), lacking]).unwrap();
    }

    proptest! {
        #[test]
        fn shares_add_up_and_are_off_by_less_than_one(
            total in 0u64..1_000_000, weights in prop::collection::vec(0.001f64..1000.0, 1..40),
        ) {
            let shares = apportion(total, &weights);
            prop_assert_eq!(shares.iter().sum::<u64>(), total);
            let sum: f64 = weights.iter().sum();
            for (share, weight) in shares.iter().zip(&weights) {
                prop_assert!((*share as f64 - total as f64 * weight / sum).abs() < 1.0 + 1e-6);
            }
        }
    }
}
