//! The index of each shard from wherever it is cheapest: beside the shard, from the cache, or by a walk over its headers.

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use rayon::prelude::*;
use xxhash_rust::xxh3::Xxh3;

use super::archive::{self, BLOCK, Bytes, Fault};
use super::index::{self, ShardIndex};
use super::options::{Label, Options};
use super::packed;
use super::stored;
use super::unpack::Unpacked;
use crate::opening::{self, Counted, Step};
use crate::shards::Shards;
use crate::workers::lock;
use crate::{CacheConfig, SourceError, cache};

/// The fewest bytes worth reading at a time, locally and not.
pub(super) const LEAST_LOCAL: u64 = 8 << 10;
const LEAST_REMOTE: u64 = 1 << 20;

/// Which file holds a shard: the shard itself, or its unpacked copy.
#[derive(Clone, Copy, Debug)]
pub(super) struct Location {
    /// Its number among the shards as given.
    pub shard: usize,
    /// 0: as given, 1: unpacked.
    pub lane: usize,
    /// Its number in the lane.
    pub file: usize,
}

/// The indices, and where labels turned out to be.
pub(super) struct Found {
    pub indices: Vec<(Location, ShardIndex)>,
    pub label: Option<Label>,
}

/// Gets the index of each shard from wherever it is cheapest.
pub(super) struct Indexer<'a> {
    pub given: &'a Arc<Shards>,
    pub unpacked: Option<&'a Unpacked>,
    /// Whether `fuelrail pack` left its list beside the shards, so that indices lie there, too.
    pub is_packed: bool,
    pub cache: &'a CacheConfig,
}

impl Indexer<'_> {
    fn lane(&self, place: Location) -> &Shards {
        match self.unpacked {
            Some(unpacked) if place.lane == 1 => &unpacked.shards,
            _ => self.given,
        }
    }

    /// Does something with a shard's bytes; how far it was read is counted by `step`.
    pub fn with<T>(&self, place: Location, step: Option<&Step>, work: impl FnOnce(&dyn Bytes) -> T) -> T {
        let shards = self.lane(place);
        let is_local = shards.extent(place.file, 0, 0).is_some();
        work(&ShardBytes {
            shards,
            file: place.file,
            least: if is_local { LEAST_LOCAL } else { LEAST_REMOTE },
            step,
            reached: AtomicU64::new(0),
        })
    }

    pub fn error(&self, place: Location, fault: &Fault) -> SourceError {
        let name = self.given.display(place.shard);
        SourceError::data(format!("{name}, byte {}: {}", fault.offset, fault.why))
    }

    pub fn all(&self, places: &[Location], options: &Options) -> Result<Found, SourceError> {
        let folder = match cache::dir(self.cache) {
            Ok(folder) => Some(folder),
            Err(error) if self.cache.dir.is_some() => return Err(error),
            Err(error) => {
                tracing::warn!("indices of shards are not kept: {error}");
                None
            }
        };
        let total = places.iter().map(|&place| self.lane(place).files()[place.file].size).sum();
        let step = Step::begin("indexing shards", Counted::Bytes, Some(total));
        let passed_over = Mutex::new((0, None));
        let late = Mutex::new(None);
        let found: Result<Vec<_>, SourceError> = places
            .par_iter()
            .map(|&place| {
                step.run(|| {
                    let size = self.lane(place).files()[place.file].size;
                    let kept = Kept::new(self.given, place.shard, options);
                    let at_hand =
                        self.beside(place, options).or_else(|| kept.get(folder.as_deref()?, options, size));
                    if let Some(index) = at_hand {
                        step.add(size);
                        return Ok((place, index));
                    }
                    let built = self.with(place, Some(&step), |bytes| index::build(bytes, options));
                    let built = built.map_err(|fault| self.error(place, &fault))?;
                    if built.imageless > 0 {
                        let mut all = lock(&passed_over);
                        all.0 += built.imageless;
                        all.1 = all.1.take().or(built.example);
                    }
                    // One that is still being written may change without its name in the cache changing.
                    let folder = folder.as_ref().filter(|_| self.given.is_settled());
                    if let Some(found) = built.late {
                        lock(&late).get_or_insert(found);
                    } else if let Some(folder) = folder {
                        cache::put(folder, &kept.0, &stored::encode(&built.index, options, size));
                    }
                    Ok((place, built.index))
                })
            })
            .collect();
        let found = found?;
        if let Some(label) = late.into_inner().unwrap_or_default() {
            // The first record has no label, and others have: it is the one that lacks something.
            return self.all(places, &Options { label: Some(label), ..options.clone() });
        }
        let (count, example) = passed_over.into_inner().unwrap_or_default();
        let example = example.unwrap_or_default();
        if found.iter().all(|(_, index)| index.len() == 0) {
            let what = match example.rsplit_once('.') {
                Some((key, last)) if options.images.iter().any(|image| last.eq_ignore_ascii_case(image)) => {
                    let key = key.rsplit('/').next().unwrap_or(key);
                    let ending =
                        key.split_once('.').map_or(last.to_owned(), |(_, rest)| format!("{rest}.{last}"));
                    format!(
                        "; they have members like \"{example}\", whose ending is \"{ending}\", all that follows the first \
                         dot, as in WebDataset: rename them"
                    )
                }
                _ if count > 0 => format!("; they have members like \"{example}\""),
                _ => String::new(),
            };
            return Err(SourceError::data(format!(
                "{} and its neighbours hold no images: no member ends in {}{what}; set image to the endings of yours",
                self.given.display(0),
                options.images.join(", "),
            )));
        }
        if count > 0 {
            tracing::warn!(
                "{count} keys in the shards have no image and are passed over, among them \"{example}\"; set image to \
                 their ending if they should be records"
            );
        }
        Ok(Found { indices: found, label: options.label.clone() })
    }

    /// The index that lies beside a shard, if there is one that fits.
    fn beside(&self, place: Location, options: &Options) -> Option<ShardIndex> {
        let shards = self.lane(place);
        let is_local = shards.extent(place.file, 0, 0).is_some();
        if place.lane == 1 || !(is_local || self.is_packed) {
            return None;
        }
        let path = format!("{}.idx", self.given.display(place.shard));
        let size = self.given.files()[place.shard].size;
        let bytes = packed::read_small(&path, stored::most_bytes(size), self.cache)?;
        let refuse = |why: &str| {
            tracing::warn!(
                "the index {path} is not used: {why}; the shard is read instead. Delete it, or pack the shard again"
            );
        };
        let index = match stored::decode(&bytes, options, size) {
            Ok(index) => index,
            Err(why) => {
                refuse(why);
                return None;
            }
        };
        // Its first and last record are looked up: one of an older shard of the same size is found out here.
        let mut ends = [0, index.len().saturating_sub(1)].into_iter().take(index.len());
        let fits = ends.all(|record| {
            let mut header = [0; BLOCK as usize];
            let read = shards.read_at(place.file, index.offsets[record] - BLOCK, &mut header);
            read.is_ok() && archive::check(&header) == index.checks[record]
        });
        if !fits && opening::check().is_ok() {
            refuse("the shard has changed since it was made");
        }
        fits.then_some(index)
    }
}

/// The name of an index in the cache.
struct Kept(String);

impl Kept {
    fn new(given: &Shards, shard: usize, options: &Options) -> Self {
        let file = &given.files()[shard];
        let mut hash = Xxh3::new();
        for text in [given.display(shard).as_str(), &file.size.to_string(), &file.version] {
            hash.update(text.as_bytes());
            hash.update(b"\0");
        }
        hash.update(&options.hash().to_le_bytes());
        // Builds before had other rules for labels.
        hash.update(b"labels 2");
        Self(format!("tar-{:032x}.index", hash.digest128()))
    }

    fn get(&self, folder: &Path, options: &Options, size: u64) -> Option<ShardIndex> {
        let bytes = cache::get(folder, &self.0, stored::most_bytes(size))?;
        stored::decode(&bytes, options, size).ok()
    }
}

/// A shard as the archive reader takes it.
struct ShardBytes<'a> {
    shards: &'a Shards,
    file: usize,
    least: u64,
    step: Option<&'a Step>,
    /// How far it has been read.
    reached: AtomicU64,
}

impl Bytes for ShardBytes<'_> {
    fn len(&self) -> u64 {
        self.shards.files()[self.file].size
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.shards.read_at(self.file, offset, buffer)?;
        if let Some(step) = self.step {
            let end = offset + buffer.len() as u64;
            step.add(end.saturating_sub(self.reached.fetch_max(end, Ordering::Relaxed)));
        }
        Ok(())
    }

    fn least(&self) -> u64 {
        self.least
    }
}
