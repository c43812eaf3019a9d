//! Tar shards in WebDataset's naming: `0001.jpg`, `0001.cls`, `0001.json`, one record after the other.
//!
//! ```text
//!  open:    shards ─▶ [unpack .gz .zst into the cache] ─▶ index of each: beside it, from the cache, or by a walk ─▶ Tar
//!  reading: record ─▶ part (binary search) ─▶ byte ranges of the shard itself ─▶ pieces compared ─▶ image, fields
//! ```
//!
//! # Promises
//!
//! - A record is read straight from its shard. No member is ever written to disk, under whatever name.
//! - The members are those that Python's `tarfile` finds ([`archive`]), grouped as WebDataset does ([`index`]).
//! - What a record of the index was made of ([`proof`]: the headers of its image, its label, its numbers) is read with
//!   it and compared: a shard that was replaced is noticed even when its size is the same. [`stored`] says which index
//!   is believed in the first place.
//! - A record that lacks a field, or whose field is of another kind than most have, is one bad record ([`fields`]).
//! - An index is 20 bytes a record, its name and its label (and 8 for each array field, the numbers of `json` fields,
//!   and 6 for each member whose place beside the image is not always the same). It is made once for each shard and
//!   kept in the cache folder, or beside the shard by `fuelrail pack`.
//!
//! # What it does not do
//!
//! It reads no links, devices or sparse members (which are passed over and counted), runs no command (`pipe:`) and
//! unpickles nothing.

mod archive;
mod fields;
mod index;
mod indexer;
mod losses;
mod options;
mod packed;
mod parts;
mod proof;
mod reader;
mod stored;
mod unpack;
mod values;

use std::io;
use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::Xxh3;

use self::archive::Bytes;
use self::fields::Unsettled;
use self::index::{OTHER, ShardIndex};
use self::indexer::{Indexer, LEAST_LOCAL, Location};
use self::losses::Losses;
use self::options::{Label, Options};
use self::packed::Packed;
use self::unpack::Unpacked;
use crate::bytes::shards::{Shards, ends_with};
use crate::labels::{self, Context, Labels};
use crate::names::shown;
use crate::recognised::{Recognised, grouped};
use crate::sources::manifest::escape;
use crate::values::file::Part;
use crate::verdicts::Verdicts;
use crate::{
    Blocks, CacheConfig, Extent, Fingerprint, IndexedSource, Reader, ReaderConfig, Schema, SourceError,
};

/// Files of a folder that are shards.
const ENDINGS: [&str; 5] = [".tar", ".tar.gz", ".tgz", ".tar.zst", ".tar.zstd"];

/// Configuration of tar shards.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TarConfig {
    /// The shards: paths or URLs with braces, `*` and `?`, or folders.
    #[serde(deserialize_with = "crate::texts::list")]
    pub shards: Vec<String>,
    /// Endings of images, the first one that a record has counts; `["jpg;png"]` is the same as `["jpg", "png"]`.
    /// Default: all that can be decoded.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "crate::texts::optional")]
    pub image: Option<Vec<String>>,
    /// Where labels are: `"cls"` or `"txt"` (the member's text: a whole number or a class name), `"json:path.to.key"`,
    /// `"folder"` (the first folder in the member's name); `""`, null or `"none"` for none. Default: `cls` if there is
    /// such a member, else a usual name (`label`, `cls`, …) in the `json`, else none.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "labels::name_or_none")]
    pub label: Option<String>,
    /// Numeric fields: `"json:box"` (numbers, or lists of them), `"emb.npy"` (an array); `"name=json:box"` renames.
    /// Default: none, or those that `fuelrail pack` wrote.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "crate::texts::optional")]
    pub fields: Option<Vec<String>>,
    /// Class names in label order; a record whose label is not in it is a bad one. Default: the names found, sorted.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "crate::texts::optional")]
    pub classes: Option<Vec<String>>,
    /// What records are to hold, by part. Filled in by a pipeline's fields.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deliver: crate::Deliver,
    /// What the same records are to hold instead: those that there are without this, and nothing but these parts of
    /// them.
    #[serde(skip)]
    pub instead: crate::Deliver,
    /// Where indices and unpacked shards are kept.
    #[serde(skip_serializing_if = "CacheConfig::is_default")]
    pub cache: CacheConfig,
}

/// Opens tar shards: finds them, unpacks the compressed ones, indexes those that no index is found for.
///
/// # Errors
/// [`SourceError`] that names the shard, the member and the byte, or the key of the configuration.
pub(crate) fn open(config: &TarConfig) -> Result<Arc<dyn IndexedSource>, SourceError> {
    let given = Shards::open(&config.shards, &ENDINGS, &config.cache)?;
    let packed = Packed::find(&given, &config.cache)?;
    let mut settled = config.clone();
    if config.deliver.is_some() || config.instead.is_some() {
        settled.fields = Some(Vec::new());
    }
    if let Some(packed) = &packed {
        packed.complete(&mut settled);
    }
    let mut options = Options::new(&settled)?;
    let compressed: Vec<usize> = (0..given.files().len())
        .filter(|&shard| !ends_with(&given.files()[shard].name, &ENDINGS[..1]))
        .filter(|&shard| ends_with(&given.files()[shard].name, &ENDINGS))
        .collect();
    let unpacked =
        if compressed.is_empty() { None } else { Some(unpack::unpack(&given, &compressed, &config.cache)?) };
    let mut places: Vec<Location> =
        (0..given.files().len()).map(|shard| Location { shard, lane: 0, file: shard }).collect();
    for (file, &shard) in compressed.iter().enumerate() {
        places[shard] = Location { shard, lane: 1, file };
    }
    let indexer = Indexer {
        given: &given,
        unpacked: unpacked.as_ref(),
        is_packed: packed.is_some(),
        cache: &config.cache,
    };
    if options.label.is_none() {
        for &place in &places {
            options.label = indexer
                .with(place, None, |bytes| index::detect(bytes, &options))
                .map_err(|fault| indexer.error(place, &fault))?;
            if options.label.is_some() {
                break;
            }
        }
    }
    if options.label.is_none() {
        // No record anywhere; the walk finds out what there is instead.
        options.label = Some(Label::Absent);
    }
    let found = indexer.all(&places, &options)?;
    options.label = found.label;
    let indices = found.indices;
    let notes = indices.iter().map(|(place, index)| (given.display(place.shard), index.notes.clone()));
    let losses = Losses::of(notes);
    for warning in [&losses.missing, &losses.imageless].into_iter().flatten() {
        tracing::warn!("{warning}");
    }
    let mut tar = Tar::merge(given.clone(), indices);
    tar.merge_fields(&options, &|place, offset| {
        let described = indexer.with(place, None, |bytes| index::describe(bytes, &options, offset));
        described.ok().flatten().unwrap_or_default()
    })?;
    tar.merge_labels(&options, settled.classes.as_deref())?;
    tar.merge_parts(&options, &indexer)?;
    tar.unpacked = unpacked;
    tar.finish(if config.instead.is_some() { &config.instead } else { &config.deliver })?;
    tar.losses = losses;
    tar.options = Some(options.clone());
    tar.recognised(&options).say(&given.describe(), tar.len);
    Ok(Arc::new(tar))
}

/// The index of a shard as the file to be put beside it, as `x.tar.idx`. `config` says what is wanted of its records;
/// its label must be set.
///
/// # Errors
/// [`SourceError`] when the shard cannot be read or holds something else.
pub fn tar_sidecar(shard: &Path, config: &TarConfig) -> Result<Vec<u8>, SourceError> {
    let options = Options::new(config)?;
    if options.label.is_none() {
        return Err(SourceError::config("label must be set to make an index".into()));
    }
    let failed = |error: io::Error| SourceError::data(format!("{} cannot be read: {error}", shown(&shard)));
    let file = std::fs::File::open(shard).map_err(failed)?;
    let bytes = FileBytes { size: file.metadata().map_err(failed)?.len(), file };
    let built = index::build(&bytes, &options).map_err(|fault| {
        SourceError::data(format!("{}, byte {}: {}", shown(&shard), fault.offset, fault.why))
    })?;
    Ok(stored::encode(&built.index, &options, bytes.size))
}

/// A file on the local disk that is no source's shard yet.
struct FileBytes {
    file: std::fs::File,
    size: u64,
}

impl Bytes for FileBytes {
    fn len(&self) -> u64 {
        self.size
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        std::os::unix::fs::FileExt::read_exact_at(&self.file, buffer, offset)
    }

    fn least(&self) -> u64 {
        LEAST_LOCAL
    }
}

/// Tar shards, open.
struct Tar {
    given: Arc<Shards>,
    unpacked: Option<Unpacked>,
    shards: Vec<Shard>,
    len: u64,
    labels: Labels,
    schema: Schema,
    /// Each of the schema's parts.
    parts: Vec<Part>,
    /// What was asked for, once that is settled.
    options: Option<Options>,
    /// Bytes of the fields of a record.
    fields_bytes: u64,
    /// Records that are bad for another reason than their label.
    bad: Verdicts,
    fingerprint: Fingerprint,
    largest: u64,
    losses: Losses,
}

/// A shard with records.
struct Shard {
    /// Number of its first record.
    first: u64,
    place: Location,
    index: ShardIndex,
}

impl Tar {
    fn merge(given: Arc<Shards>, indices: Vec<(Location, ShardIndex)>) -> Self {
        let mut shards = Vec::new();
        let mut len = 0;
        for (place, index) in indices {
            if index.len() > 0 {
                let first = len;
                len += index.len() as u64;
                shards.push(Shard { first, place, index });
            }
        }
        Self {
            given,
            unpacked: None,
            shards,
            len,
            labels: Labels::default(),
            schema: Schema::images(),
            parts: Vec::new(),
            options: None,
            fields_bytes: 0,
            bad: Verdicts::default(),
            fingerprint: Fingerprint(0),
            largest: 0,
            losses: Losses::default(),
        }
    }

    /// Computes what follows from the labels and fields.
    fn finish(&mut self, deliver: &crate::Deliver) -> Result<(), SourceError> {
        let checked = self.schema.check_for(deliver, self.labels.is_some());
        checked.map_err(|why| SourceError::config(format!("fields: {why}")))?;
        self.fingerprint = self.hash();
        self.largest = (0..self.len).map(|index| self.size(index)).max().unwrap_or_default();
        Ok(())
    }

    /// Settles the fields, and which records are bad for want of them. `describe` says what members the record has
    /// whose image lies at an offset of a shard.
    fn merge_fields(
        &mut self,
        options: &Options,
        describe: &dyn Fn(Location, u64) -> String,
    ) -> Result<(), SourceError> {
        let own = self.shards.iter_mut().map(|part| (part.first, std::mem::take(&mut part.index.bad)));
        let mut verdicts: Vec<(u64, Verdicts)> = own.collect();
        for (at, wanted) in options.fields.iter().enumerate() {
            let list = self.shards.iter_mut().map(|part| {
                let records = part.index.len();
                (&mut part.index.fields[at], records)
            });
            let settled = fields::settle(wanted, &mut list.collect::<Vec<_>>());
            let settled = settled.map_err(|unsettled| {
                let own = &verdicts[..self.shards.len()];
                let (what, row) = self.unsettled(&unsettled, own);
                let has = row.map_or_else(String::new, |row| {
                    let (part, record) = self.part(row);
                    let members = describe(part.place, part.index.offsets[record]);
                    format!(" (that record has the members {members})")
                });
                SourceError::data(format!(
                    "field \"{}\" ({}) of {} {what}{has}. Name another place (fields=[\"emb.npy\"] or [\"json:box\"]), or \
                     leave the field out",
                    wanted.name,
                    wanted.from,
                    self.given.describe()
                ))
            })?;
            verdicts.push((0, settled.odd));
            self.schema.fields.push(settled.spec);
        }
        self.fields_bytes = self.schema.fields_bytes() as u64;
        self.judge(&verdicts)
    }

    /// Settles the named parts: what they hold, and that there are some.
    ///
    /// # Errors
    /// When no record has one of them.
    fn merge_parts(&mut self, options: &Options, indexer: &Indexer<'_>) -> Result<(), SourceError> {
        self.schema.image = options.has_image;
        for part in &options.parts.all {
            let name = &part.wanted.part;
            if !self.shards.iter().any(|shard| shard.index.members[part.file].is_there())
                && !part.wanted.optional
            {
                let (first, record) = self.part(0);
                let offset = first.index.offsets[record];
                let described =
                    indexer.with(first.place, None, |bytes| index::describe(bytes, options, offset));
                let has = described.ok().flatten().unwrap_or_default();
                return Err(SourceError::data(format!(
                    "part {name:?}: no record of {} has a member ending in .{}; the first has the members {has}",
                    self.given.describe(),
                    options.parts.members[part.file].join(" or .")
                )));
            }
            self.schema.parts.push(part.settle(|| self.first(part, indexer), &self.given.describe())?);
            self.parts.push(part.clone());
        }
        Ok(())
    }

    /// The members that a part is made of, of the records that have one.
    fn first<'tar>(
        &'tar self,
        part: &'tar Part,
        indexer: &'tar Indexer<'_>,
    ) -> impl Iterator<Item = Vec<u8>> + 'tar {
        let records =
            self.shards.iter().flat_map(|shard| (0..shard.index.len()).map(move |record| (shard, record)));
        records.filter_map(|(shard, record)| {
            let index = &shard.index;
            let (at, len) = index.members[part.file].get(record, index.offsets[record])?;
            let mut bytes = vec![0; len as usize];
            let read = indexer.with(shard.place, None, |shard| shard.read_at(at, &mut bytes));
            read.ok().map(|()| bytes)
        })
    }

    /// What is wrong with a field, in words, and with which record first. `own` are the verdicts of each part.
    fn unsettled(&self, unsettled: &Unsettled, own: &[(u64, Verdicts)]) -> (String, Option<u64>) {
        match unsettled {
            Unsettled::Even(kinds) => (format!("is {kinds}; all must be alike"), None),
            Unsettled::Most(count, row, odd) => {
                let part = own.iter().rfind(|(first, _)| first <= row);
                let own = part.and_then(|(first, bad)| bad.get(row - first));
                let what = format!(
                    "has no usable value in {} of {} records; the first: {}: {}",
                    grouped(*count),
                    grouped(self.len),
                    self.key(*row),
                    odd.as_deref().or(own).unwrap_or_default()
                );
                (what, Some(*row))
            }
        }
    }

    /// Takes verdicts in, each list with the number of its first row.
    ///
    /// # Errors
    /// When most records are bad.
    fn judge(&mut self, verdicts: &[(u64, Verdicts)]) -> Result<(), SourceError> {
        let mut all: Vec<(u64, &str)> = Vec::new();
        for (first, bad) in verdicts {
            all.extend(bad.iter().map(|(row, why)| (first + row, why)));
        }
        // Of several reasons the first one counts: equal rows stay in their order.
        all.sort_by_key(|&(row, _)| row);
        all.dedup_by_key(|(row, _)| *row);
        if let Some(&(row, why)) = all.first().filter(|_| all.len() as u64 * 2 > self.len) {
            return Err(SourceError::data(format!(
                "{} of {} records of {} cannot be used; the first: {}: {why}",
                grouped(all.len() as u64),
                grouped(self.len),
                self.given.describe(),
                self.key(row)
            )));
        }
        for (row, why) in all {
            self.bad.push(row, why, index::UNUSABLE);
        }
        Ok(())
    }

    /// Makes one column of the labels and settles the classes.
    fn merge_labels(&mut self, options: &Options, classes: Option<&[String]>) -> Result<(), SourceError> {
        let Some(place) = options.label.as_ref().and_then(Label::place) else {
            return match classes {
                Some(_) => Err(SourceError::config(format!(
                    "classes are given, but the records of {} have no labels; say where they are (label), or leave out classes",
                    self.given.describe()
                ))),
                None => Ok(()),
            };
        };
        let runs = self.shards.iter_mut().filter_map(|part| part.index.labels.take()).collect();
        let field = match &options.label {
            Some(Label::Json(path)) => Some(format!("json:{}", path.join("."))),
            _ => None,
        };
        let context = Context {
            what: format!("the {place} of {}", self.given.describe()),
            field: field.as_deref(),
            other: OTHER,
            classes,
            names: None,
            names_of_numbers: false,
            key: &|row| self.key(row),
        };
        self.labels = Labels::join(runs, &context)?;
        Ok(())
    }

    /// What an opening made of the shards.
    fn recognised(&self, options: &Options) -> Recognised {
        let mut recognised = Recognised::default();
        let first = &self.shards[0].index;
        if self.schema.image {
            recognised.note(format!("image = members like \"{}\"", escape(first.name(0))));
        }
        let place = options.label.as_ref().and_then(Label::place);
        recognised.note(self.labels.recognised(place.as_deref()));
        for part in &options.parts.all {
            recognised.note(format!("part {:?}", part.wanted.part));
        }
        for field in &options.fields {
            recognised.note(format!("field \"{}\" = {}", field.name, field.from));
        }
        if let Some(skipped) = &self.losses.skipped {
            recognised.note(skipped);
        }
        recognised
    }

    fn hash(&self) -> Fingerprint {
        let mut hash = Xxh3::new();
        let text = |hash: &mut Xxh3, text: &[u8]| {
            hash.update(&(text.len() as u64).to_le_bytes());
            hash.update(text);
        };
        hash.update(b"fuelrail tar 1\0");
        hash.update(&(self.labels.classes.len() as u64).to_le_bytes());
        self.labels.classes.iter().for_each(|class| text(&mut hash, class.as_bytes()));
        hash.update(&(self.schema.fields.len() as u64).to_le_bytes());
        for field in &self.schema.fields {
            text(&mut hash, format!("{} {} {:?}", field.name, field.dtype, field.shape).as_bytes());
        }
        if !self.parts.is_empty() || !self.schema.image {
            text(&mut hash, format!("{} {:?}", self.schema.image, self.schema.parts).as_bytes());
        }
        for part in &self.shards {
            text(&mut hash, self.given.files()[part.place.shard].name.as_bytes());
            hash.update(&(part.index.len() as u64).to_le_bytes());
            for record in 0..part.index.len() {
                text(&mut hash, part.index.name(record));
                hash.update(&part.index.size(record).to_le_bytes());
                let offset = part.index.offsets[record];
                for members in &part.index.members {
                    let size = members.get(record, offset).map_or(u64::MAX, |(_, size)| size);
                    hash.update(&size.to_le_bytes());
                }
                hash.update(&self.label(part.first + record as u64).to_le_bytes());
            }
        }
        self.labels.hash_bad(&mut hash);
        self.bad.hash(&mut hash, b"without fields");
        Fingerprint(hash.digest128())
    }

    /// The shard of a record, and its number there.
    fn part(&self, index: u64) -> (&Shard, usize) {
        assert!(index < self.len, "record {index} of a source of {}", self.len);
        let part = &self.shards[self.shards.partition_point(|part| part.first <= index) - 1];
        (part, (index - part.first) as usize)
    }

    fn lane(&self, lane: usize) -> Option<&Arc<Shards>> {
        match lane {
            0 => Some(&self.given),
            _ => self.unpacked.as_ref().map(|unpacked| &unpacked.shards),
        }
    }
}

impl IndexedSource for Tar {
    fn len(&self) -> u64 {
        self.len
    }

    fn key(&self, index: u64) -> String {
        let (part, record) = self.part(index);
        let shard = escape(self.given.files()[part.place.shard].name.as_bytes());
        format!("{shard}/{}", escape(part.index.name(record)))
    }

    fn label(&self, index: u64) -> i64 {
        assert!(index < self.len, "record {index} of a source of {}", self.len);
        self.labels.get(index)
    }

    fn is_labelled(&self) -> bool {
        self.labels.is_some()
    }

    fn verdict(&self, index: u64) -> Option<String> {
        self.bad.get(index).map(str::to_owned).or_else(|| self.labels.verdict(index))
    }

    fn classes(&self) -> &[String] {
        &self.labels.classes
    }

    fn schema(&self) -> Schema {
        self.schema.clone()
    }

    fn missing(&self) -> Option<String> {
        self.losses.missing.clone()
    }

    fn beside(&self) -> Option<String> {
        let cache = CacheConfig::default();
        let indexer =
            Indexer { given: &self.given, unpacked: self.unpacked.as_ref(), is_packed: false, cache: &cache };
        let first = self.shards.first()?;
        let (options, offset) = (self.options.as_ref()?, *first.index.offsets.first()?);
        indexer.with(first.place, None, |bytes| index::describe(bytes, options, offset)).ok()?
    }

    fn size(&self, index: u64) -> u64 {
        let (part, record) = self.part(index);
        let offset = part.index.offsets[record];
        let image = if self.schema.image { part.index.size(record) } else { 0 };
        let of_part = |of: &Part| {
            let place = part.index.members[of.file].get(record, offset);
            place.map_or(0, |(_, size)| of.most_bytes(size))
        };
        image + self.parts.iter().map(of_part).sum::<u64>() + self.schema.fixed_bytes() as u64
    }

    fn extent(&self, index: u64) -> Option<Extent> {
        if self.schema != Schema::images() {
            return None;
        }
        let (part, record) = self.part(index);
        let shards = self.lane(part.place.lane)?;
        shards.extent(part.place.file, part.index.offsets[record], part.index.size(record))
    }

    fn blocks(&self) -> Blocks {
        Blocks::seekable(self.shards.iter().map(|part| part.index.len() as u64))
    }

    fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    fn memory(&self) -> u64 {
        let parts: u64 = self.shards.iter().map(|part| size_of::<Shard>() as u64 + part.index.memory()).sum();
        let shards: u64 =
            [0, 1].into_iter().filter_map(|lane| self.lane(lane)).map(|lane| lane.memory()).sum();
        parts + size_of::<Self>() as u64 + self.labels.memory() + self.bad.memory() + shards
    }

    fn reader_memory(&self) -> u64 {
        let remote =
            [0, 1].into_iter().filter_map(|lane| self.lane(lane)).map(|lane| lane.reader_memory()).max();
        remote.unwrap_or(0) + reader::memory(self)
    }

    fn reader(self: Arc<Self>, config: &ReaderConfig) -> Result<Box<dyn Reader>, SourceError> {
        reader::start(self, config)
    }
}
