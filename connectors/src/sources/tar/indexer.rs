//! The index of each shard from wherever it is cheapest: beside the shard, from the cache, or by a walk over its
//! headers.

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use rayon::prelude::*;
use xxhash_rust::xxh3::Xxh3;

use super::archive::{Bytes, Fault};
use super::index::{self, ShardIndex};
use super::options::{Label, Options};
use super::packed;
use super::proof::{digest, seal};
use super::stored;
use super::unpack::Unpacked;
use crate::bytes::cache;
use crate::bytes::shards::Shards;
use crate::opening::{self, Counted, Step};
use crate::recognised::grouped;
use crate::workers::lock;
use crate::{CacheConfig, SourceError};

/// The fewest bytes worth reading at a time, locally and not.
pub(super) const LEAST_LOCAL: u64 = 8 << 10;
const LEAST_REMOTE: u64 = 1 << 20;

/// Records of a local shard that are compared with the index beside it.
const COMPARED: usize = 16;

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
                tracing::warn!("could not save the indices of shards: {error}");
                None
            }
        };
        let total = places.iter().map(|&place| self.lane(place).files()[place.file].size).sum();
        let step = Step::begin("indexing shards", Counted::Bytes, Some(total));
        let unused = Mutex::new(Vec::new());
        let late = Mutex::new(None);
        let found: Result<Vec<_>, SourceError> = places
            .par_iter()
            .map(|&place| {
                step.run(|| {
                    let size = self.lane(place).files()[place.file].size;
                    let kept = Kept::new(self.given, place.shard, options);
                    let beside = self.beside(place, options).unwrap_or_else(|why| {
                        lock(&unused).push((place.shard, why));
                        None
                    });
                    let at_hand = beside.or_else(|| kept.get(folder.as_deref()?, options, size));
                    if let Some(index) = at_hand {
                        step.add(size);
                        return Ok((place, index));
                    }
                    let built = self.with(place, Some(&step), |bytes| index::build(bytes, options));
                    let built = built.map_err(|fault| self.error(place, &fault))?;
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
        self.say_unused(unused.into_inner().unwrap_or_default());
        if found.iter().all(|(_, index)| index.len() == 0) {
            let count: u64 = found.iter().map(|(_, index)| index.notes.imageless).sum();
            let example = found.iter().find(|(_, index)| index.notes.imageless > 0);
            let example = example.map_or("", |(_, index)| &index.notes.imageless_example);
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
        Ok(Found { indices: found, label: options.label.clone() })
    }

    /// The index that lies beside a shard, if there is one that fits; [`stored`] has the rules.
    ///
    /// # Errors
    /// Why the one that is there is not used.
    fn beside(&self, place: Location, options: &Options) -> Result<Option<ShardIndex>, Why> {
        let shards = self.lane(place);
        let local = shards.extent(place.file, 0, 0).map(|extent| extent.file);
        // What lies beside was made for no parts, and is not worth a word.
        let has_parts = !options.parts.members.is_empty();
        if has_parts || place.lane == 1 || !(local.is_some() || self.is_packed) {
            return Ok(None);
        }
        let size = self.given.files()[place.shard].size;
        let beside = packed::read_small(&self.beside_name(place.shard), stored::most_bytes(size), self.cache);
        let Some(bytes) = beside else { return Ok(None) };
        let index = stored::decode(&bytes, options, size).map_err(Why::Unfit)?;
        if local.as_deref().is_some_and(is_older_beside) {
            return Err(Why::Older);
        }
        let compared = if local.is_some() { COMPARED } else { 2 }.min(index.len());
        let last = index.len().saturating_sub(1);
        let mut records = (0..compared).map(|at| at * last / (compared - 1).max(1));
        let fits = records.all(|record| {
            let digests = index.proof(record).map(|(offset, len)| {
                let mut bytes = vec![0; len as usize];
                shards.read_at(place.file, offset, &mut bytes).is_ok().then(|| digest(&bytes))
            });
            let digests: Option<Vec<u64>> = digests.collect();
            digests.is_some_and(|digests| seal(digests) == index.checks[record])
        });
        match fits {
            true => Ok(Some(index)),
            false if opening::check().is_err() => Ok(None),
            false => Err(Why::Unfit("the shard has changed since it was made")),
        }
    }

    fn beside_name(&self, shard: usize) -> String {
        format!("{}.idx", self.given.display(shard))
    }

    /// Says which indices beside shards were not used: once for each reason.
    fn say_unused(&self, mut unused: Vec<(usize, Why)>) {
        unused.sort_unstable();
        while let Some(&(shard, why)) = unused.first() {
            let all = unused.len();
            unused.retain(|&(_, other)| other != why);
            let name = self.beside_name(shard);
            let others = match all - unused.len() - 1 {
                0 => String::new(),
                count => format!(" (and {} more like it)", grouped(count as u64)),
            };
            match why {
                Why::Older => tracing::info!(
                    "the index {name}{others} is older than its shard and is not used; the shard is read once \
                     instead. If they belong together (copying may change the times), touch the index"
                ),
                Why::Unfit(why) => tracing::warn!(
                    "the index {name}{others} is not used: {why}; the shard is read instead. Delete it, or pack the shard \
                     again"
                ),
            }
        }
    }
}

/// Why an index beside a shard is not used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Why {
    Older,
    Unfit(&'static str),
}

/// Whether the index beside a shard was written before the shard was.
fn is_older_beside(shard: &Path) -> bool {
    let mut beside = shard.as_os_str().to_owned();
    beside.push(".idx");
    let time = |path: &Path| std::fs::metadata(path).and_then(|meta| meta.modified()).ok();
    time(Path::new(&beside)) < time(shard)
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
        hash.update(&stored::VERSION.to_le_bytes());
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
