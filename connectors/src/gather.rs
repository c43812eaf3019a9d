//! A reader for records whose parts lie in several places: pixels in one array, numbers in another.
//!
//! ```text
//!  record ──┬─ part 0: range of a shard ──▶ Shards::reader ──┐
//!           ├─ part 1: range of a shard ──▶ Shards::reader ──┼─ all there? ──▶ join() ──▶ done(Record)
//!           └─ part 2: …                                     ┘
//! ```
//!
//! Each part is a request of its own to the readers below, so parts are fetched side by side, locally or not, and
//! nothing here waits. When the last part of a record has come, the thread that brought it joins them into one buffer.
//! Memory beside the parts themselves is one record for each thread that joins, and a pool of idle buffers: [`memory`].
//!
//! A record one of whose parts failed fails with the error of its first such part, whatever order they came in.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use crate::bytes::buffer::{POOL_BYTES, Pool};
use crate::bytes::shards::{Ranges, Shards};
use crate::workers::{Meter, finish, lock, panic_text};
use crate::{Buffer, ReadError, ReadRequest, ReadStats, Reader, ReaderConfig, SourceError};

/// Threads of the readers below that may join records at the same time: two readers of 16.
const JOINERS: u64 = 32;

/// Where one part of a record lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// Which of the [`Shards`] given to [`open`].
    pub store: usize,
    /// Which of its files.
    pub shard: usize,
    pub offset: u64,
    pub len: u64,
}

/// Records made of a fixed number of parts.
pub(crate) trait Parts: Send + Sync + 'static {
    /// Parts of every record, at least 1.
    fn parts(&self) -> usize;

    /// Where a part lies.
    fn locate(&self, index: u64, part: usize) -> Place;

    /// Whether the record has a part. One that it has not is not asked for, and comes as no bytes.
    fn has(&self, index: u64, part: usize) -> bool {
        let _ = (index, part);
        true
    }

    /// What becomes of a part that could not be read, for parts of which that was known before.
    ///
    /// # Errors
    /// That of the record.
    fn failed(&self, index: u64, part: usize, error: ReadError) -> Result<Buffer, ReadError> {
        let _ = (index, part);
        Err(error)
    }

    /// Makes the record of its parts, in memory from `room`.
    ///
    /// # Errors
    /// What is wrong with the bytes.
    fn join(&self, index: u64, parts: &[Buffer], room: &Room<'_>) -> Result<Buffer, ReadError>;

    /// The record's key, for errors.
    fn key(&self, index: u64) -> String;
}

/// Where the memory of a joined record comes from.
pub(crate) struct Room<'shared> {
    shared: &'shared Shared,
    index: u64,
}

impl Room<'_> {
    /// A record of `size` bytes, which `write` fills; their content is left over.
    ///
    /// # Errors
    /// What `write` says is wrong, or that there is no memory.
    pub fn record(
        &self,
        size: u64,
        write: impl FnOnce(&mut [u8]) -> Result<(), String>,
    ) -> Result<Buffer, ReadError> {
        let key = || self.shared.parts.key(self.index);
        let buffer = usize::try_from(size).ok().and_then(|size| self.shared.pool.take(size));
        let mut buffer = buffer
            .ok_or_else(|| ReadError::io(key(), format!("no memory for a record of {size} bytes"), true))?;
        write(&mut buffer.storage()[..size as usize]).map_err(|detail| ReadError::bad(key(), detail))?;
        buffer.set_len(size as usize);
        Ok(buffer)
    }
}

/// Bytes of memory that a gathering reader holds beside the records in flight and the pool of the readers below.
pub(crate) fn memory(largest_record: u64) -> u64 {
    POOL_BYTES + JOINERS * largest_record
}

/// Starts a reader over `stores`.
///
/// # Errors
/// As [`crate::IndexedSource::reader`].
pub(crate) fn open(
    parts: Arc<dyn Parts>,
    stores: &[Arc<Shards>],
    config: &ReaderConfig,
) -> Result<Box<dyn Reader>, SourceError> {
    let below = stores
        .iter()
        .map(|store| store.clone().reader(Arc::new(PartRanges(parts.clone())), config))
        .collect::<Result<_, _>>()?;
    Ok(over(parts, below))
}

/// The same over readers of its own, whose records are the parts of all records: `index * parts + part`.
pub(crate) fn over(parts: Arc<dyn Parts>, below: Vec<Box<dyn Reader>>) -> Box<dyn Reader> {
    let shared = Arc::new(Shared { pool: Pool::new(POOL_BYTES), meter: Meter::default(), parts });
    Box::new(Gather { below, shared })
}

/// The parts of all records as records of the readers below: `index * parts + part`.
struct PartRanges(Arc<dyn Parts>);

impl PartRanges {
    fn cut(&self, index: u64) -> (u64, usize) {
        let parts = self.0.parts() as u64;
        (index / parts, (index % parts) as usize)
    }
}

impl Ranges for PartRanges {
    fn locate(&self, index: u64) -> (usize, u64, u64) {
        let (index, part) = self.cut(index);
        let place = self.0.locate(index, part);
        (place.shard, place.offset, place.len)
    }

    fn key(&self, index: u64) -> String {
        self.0.key(self.cut(index).0)
    }
}

struct Gather {
    below: Vec<Box<dyn Reader>>,
    shared: Arc<Shared>,
}

struct Shared {
    parts: Arc<dyn Parts>,
    pool: Arc<Pool>,
    meter: Meter,
}

/// A record whose parts are on their way. Dropped unfinished, it drops its request uncalled.
struct Pending {
    shared: Arc<Shared>,
    missing: AtomicUsize,
    state: Mutex<State>,
}

struct State {
    request: Option<ReadRequest>,
    parts: Vec<Option<Result<Buffer, ReadError>>>,
}

impl Reader for Gather {
    fn submit(&self, requests: Vec<ReadRequest>) {
        let parts = self.shared.parts.parts();
        self.shared.meter.begin(requests.len() as u64);
        let mut below: Vec<Vec<ReadRequest>> = self.below.iter().map(|_| Vec::new()).collect();
        for request in requests {
            let index = request.index;
            let pending = Arc::new(Pending {
                shared: self.shared.clone(),
                missing: AtomicUsize::new(parts),
                state: Mutex::new(State {
                    request: Some(request),
                    parts: (0..parts).map(|_| None).collect(),
                }),
            });
            for part in (0..parts).filter(|&part| !self.shared.parts.has(index, part)) {
                pending.arrived(index, part, Ok(Buffer::from(Vec::new())));
            }
            for part in (0..parts).filter(|&part| self.shared.parts.has(index, part)) {
                let pending = pending.clone();
                below[self.shared.parts.locate(index, part).store].push(ReadRequest {
                    index: index * parts as u64 + part as u64,
                    done: Box::new(move |result| {
                        pending.arrived(index, part, result.map(|record| record.bytes))
                    }),
                });
            }
        }
        for (reader, requests) in self.below.iter().zip(below) {
            if !requests.is_empty() {
                reader.submit(requests);
            }
        }
    }

    fn stats(&self) -> ReadStats {
        let below: Vec<_> = self.below.iter().map(|reader| reader.stats()).collect();
        let backend = below.first().map_or("threads", |stats| stats.backend);
        let submissions = below.iter().map(|stats| stats.submissions).sum();
        ReadStats { submissions, ..self.shared.meter.stats(backend) }
    }
}

impl Pending {
    fn arrived(&self, index: u64, part: usize, result: Result<Buffer, ReadError>) {
        let result = match result {
            Err(error) => self.shared.parts.failed(index, part, error),
            read => read,
        };
        lock(&self.state).parts[part] = Some(result);
        if self.missing.fetch_sub(1, Ordering::AcqRel) != 1 {
            return;
        }
        let (request, parts) = {
            let mut state = lock(&self.state);
            (state.request.take(), std::mem::take(&mut state.parts))
        };
        let request = request.expect("a record is joined once");
        let parts: Result<Vec<Buffer>, ReadError> =
            parts.into_iter().map(|part| part.expect("every part has come")).collect();
        let result = parts.and_then(|parts| {
            let room = Room { shared: &self.shared, index };
            let join = || self.shared.parts.join(index, &parts, &room);
            catch_unwind(AssertUnwindSafe(join)).unwrap_or_else(|panic| {
                let text = format!("joining it panicked: {}; this is a bug in fuelrail", panic_text(&*panic));
                Err(ReadError::io(self.shared.parts.key(index), text, false))
            })
        });
        self.shared.meter.end(&result);
        finish(request, result);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;
    use crate::{Backend, CacheConfig, ReadErrorKind};

    /// Record i is byte i of the first file and bytes 2i, 2i+1 of the second.
    struct Pairs;

    impl Parts for Pairs {
        fn parts(&self) -> usize {
            2
        }

        fn locate(&self, index: u64, part: usize) -> Place {
            let len = part as u64 + 1;
            Place { store: part, shard: 0, offset: index * len, len }
        }

        fn has(&self, index: u64, part: usize) -> bool {
            index != 9 && (index != 10 || part == 0)
        }

        fn join(&self, index: u64, parts: &[Buffer], room: &Room<'_>) -> Result<Buffer, ReadError> {
            room.record(parts.iter().map(|part| part.len() as u64).sum(), |mut record| {
                for part in parts {
                    let (here, rest) = record.split_at_mut(part.len());
                    here.copy_from_slice(part);
                    record = rest;
                }
                match index {
                    7 => Err("seven is bad".into()),
                    8 => panic!("eight"),
                    _ => Ok(()),
                }
            })
        }

        fn key(&self, index: u64) -> String {
            format!("pair {index}")
        }
    }

    fn stores(short: usize) -> (tempfile::TempDir, Vec<Arc<Shards>>) {
        let root = tempfile::tempdir().unwrap();
        let bytes: Vec<u8> = (0..=255).collect();
        let open = |name: &str, bytes: &[u8]| {
            let path = root.path().join(name);
            std::fs::write(&path, bytes).unwrap();
            let pattern = path.to_str().unwrap().to_owned();
            Shards::open(&[pattern], &[".npy"], &CacheConfig::default()).unwrap()
        };
        let stores = vec![open("a", &bytes), open("b", &bytes[..short])];
        (root, stores)
    }

    #[test]
    fn parts_of_several_files_come_as_one_record_and_errors_end_only_their_own() {
        let (_root, stores) = stores(200);
        for backend in [Backend::Auto, Backend::Threads] {
            let reader = open(Arc::new(Pairs), &stores, &ReaderConfig { backend, depth: 4 }).unwrap();
            let (tell, told) = mpsc::channel();
            let request = |index| {
                let tell = tell.clone();
                ReadRequest { index, done: Box::new(move |result| tell.send((index, result)).unwrap()) }
            };
            reader.submit((0..128).map(request).collect());
            drop(tell);
            let mut count = 0;
            for (index, result) in told {
                count += 1;
                match (index, result) {
                    (7, Err(error)) => {
                        assert_eq!(error.kind(), ReadErrorKind::Bad);
                        assert_eq!(error.to_string(), "pair 7: seven is bad");
                    }
                    (8, Err(error)) => assert!(error.detail().contains("panicked: eight"), "{error}"),
                    // Parts that a record has not are not asked for.
                    (9, read) => assert!(read.unwrap().bytes.is_empty()),
                    (10, read) => assert_eq!(*read.unwrap().bytes, [10]),
                    (100.., Err(error)) => assert_eq!(error.kind(), ReadErrorKind::Changed, "{error}"),
                    (index, result) => {
                        let index = index as u8;
                        assert_eq!(*result.unwrap().bytes, [index, 2 * index, 2 * index + 1]);
                    }
                }
            }
            assert_eq!(count, 128, "each request ends once");
            assert_eq!(reader.stats().reads, 98);
        }
    }

    #[test]
    fn a_dropped_reader_drops_what_it_has_not_done() {
        let (_root, stores) = stores(256);
        let reader =
            open(Arc::new(Pairs), &stores, &ReaderConfig { backend: Backend::Threads, depth: 1 }).unwrap();
        let (tell, told) = mpsc::channel();
        let request = |index| {
            let tell = tell.clone();
            ReadRequest {
                index: index % 100,
                done: Box::new(move |_| {
                    let _ = tell.send(());
                }),
            }
        };
        reader.submit((0..100_000u64).map(request).collect());
        drop((reader, tell));
        // Every sender is gone, or this would wait for ever.
        assert!(told.iter().count() <= 100_000);
    }
}
