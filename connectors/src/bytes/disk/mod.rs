//! Reading byte ranges of files: io_uring where the kernel allows it, threads where not.
//!
//! Both backends do the same for each request (open relative to the root, read the range, close) and judge the outcome
//! by the same rules in this file, so that they cannot be told apart by what they deliver.
//!
//! A record that is a *whole file* is read with one byte more than its size: a short read then proves that the file has
//! not grown, without asking for its size. A record that is a *part* of a file is read exactly, and the source is asked
//! whether the file is still the one that was indexed: in another version, other bytes may lie in its place.

mod threads;
mod uring;

use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::Once;
use std::time::Duration;

use rustix::fs::{AtFlags, Mode, OFlags, StatxFlags};
use rustix::io::Errno;

use crate::names::shown;
use crate::{Backend, Buffer, ReadError, Reader, ReaderConfig, SourceError};

/// What the disk readers need to know of a source: which range of which file a record is.
pub(crate) trait Files: Send + Sync + 'static {
    /// The folder that all files are relative to.
    fn root(&self) -> &Path;

    /// Appends the record's file, relative to the root, to `file` and returns its range.
    fn locate(&self, index: u64, file: &mut Vec<u8>) -> Span;

    /// The record's key, for errors.
    fn key(&self, index: u64) -> String;

    /// Asked after a part of a file was read: the error that it has become when the file is no longer the one that was
    /// indexed. What a part holds cannot say so itself.
    fn stale(&self, index: u64) -> Option<ReadError> {
        let _ = index;
        None
    }
}

/// A range of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    pub offset: u64,
    pub len: u64,
    /// The range is the whole file, so a longer file has changed.
    pub whole: bool,
}

impl Span {
    /// Bytes to ask for.
    fn wanted(&self) -> u64 {
        self.len.saturating_add(u64::from(self.whole))
    }
}

/// The files of a source, with the root held open: it is found once, even if it is renamed later.
struct Opened {
    files: Arc<dyn Files>,
    root: OwnedFd,
}

/// Starts a reader.
pub(crate) fn open(files: Arc<dyn Files>, config: &ReaderConfig) -> Result<Box<dyn Reader>, SourceError> {
    open_with(files, config, uring::setup)
}

/// As [`open`], with the function that makes the ring passed in, so that a refusal can be tested.
fn open_with(
    files: Arc<dyn Files>,
    config: &ReaderConfig,
    setup: uring::Setup,
) -> Result<Box<dyn Reader>, SourceError> {
    config.check()?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(files.root(), flags, Mode::empty())
        .map_err(|error| SourceError::folder(files.root(), &error.into()))?;
    let opened = Arc::new(Opened { files, root });
    if config.backend != Backend::Threads {
        match uring::Uring::start(opened.clone(), config.depth, setup) {
            Ok(reader) => return Ok(Box::new(reader)),
            Err(error) if config.backend == Backend::IoUring => {
                return Err(SourceError::backend(format!(
                    "the reading backend \"io_uring\" was asked for, but the kernel refuses it: {error} (containers often \
                     forbid io_uring); choose \"auto\" or \"threads\""
                )));
            }
            Err(error) => {
                static SAID: Once = Once::new();
                SAID.call_once(|| {
                    tracing::info!(
                        "io_uring is not available here ({error}); files are read by threads instead, which costs speed \
                         only while files are not in the page cache"
                    );
                });
            }
        }
    }
    Ok(Box::new(threads::start(opened, config.depth)?))
}

impl Opened {
    fn path(&self, file: &[u8]) -> PathBuf {
        self.files.root().join(OsStr::from_bytes(file))
    }

    /// The error that a system error has become after its retries.
    fn failed(&self, index: u64, file: &[u8], error: Errno) -> ReadError {
        let key = self.files.key(index);
        let path = self.path(file);
        // A parent that is a file now is as gone as a name that is missing.
        if matches!(error, Errno::NOENT | Errno::NOTDIR) {
            return ReadError::gone(key, &path);
        }
        let tried = if retry(error, 0).is_some() { ", also when tried again" } else { "" };
        let advice = match error {
            Errno::MFILE | Errno::NFILE => "; raise the limit on open files (ulimit -n)",
            Errno::ACCESS | Errno::PERM => "; allow this user to read it",
            Errno::IO => "; look for disk errors in the kernel's log",
            Errno::NOMEM => "; the record does not fit in memory",
            _ => "",
        };
        let detail = format!("{} cannot be read: {}{tried}{advice}", shown(&path), io::Error::from(error));
        ReadError::io(key, detail, retry(error, 0).is_some())
    }

    /// The verdict on a range that came whole.
    fn whole(&self, index: u64, span: Span, bytes: Buffer) -> Result<Buffer, ReadError> {
        if !span.whole
            && let Some(error) = self.files.stale(index)
        {
            return Err(error);
        }
        Ok(bytes)
    }

    /// The verdict when a range ended early or a whole file did not end where it should.
    fn changed(&self, index: u64, file: &[u8], span: Span, read: u64) -> ReadError {
        let path = self.path(file);
        // The size as it is now says more than where the read happened to stop.
        let found = match rustix::fs::statx(
            &self.root,
            OsStr::from_bytes(file),
            AtFlags::empty(),
            StatxFlags::SIZE,
        ) {
            Ok(now) if span.whole && now.stx_size != span.len => format!("{} bytes", now.stx_size),
            _ if read > span.len => format!("at least {read} bytes"),
            _ => format!("{read} bytes"),
        };
        ReadError::changed(self.files.key(index), &path, span.len, &found)
    }
}

/// How long to wait before trying again after the `attempt`th failure (from 0); `None` when trying is over or useless.
///
/// An interrupted call is repeated at once. A disk error or a lack of descriptors or memory may pass, and gets three
/// more chances over a third of a second; longer would only hide a broken disk.
fn retry(error: Errno, attempt: u32) -> Option<Duration> {
    const BACKOFF_MS: [u64; 3] = [10, 50, 250];
    let patient = |attempt: u32| BACKOFF_MS.get(attempt as usize).copied().map(Duration::from_millis);
    match error {
        Errno::INTR | Errno::AGAIN if attempt < 3 => Some(Duration::ZERO),
        Errno::INTR | Errno::AGAIN => patient(attempt - 3),
        Errno::IO | Errno::MFILE | Errno::NFILE | Errno::NOMEM | Errno::STALE | Errno::TIMEDOUT => {
            patient(attempt)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::fs;
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::sync::mpsc;
    use std::time::Instant;

    use proptest::prelude::*;
    use tempfile::TempDir;

    use super::*;
    use crate::{ReadErrorKind, ReadRequest, Record};

    const BACKENDS: [Backend; 2] = [Backend::IoUring, Backend::Threads];

    /// Files in a temporary folder, each read whole or in part.
    struct Fixture {
        folder: TempDir,
        records: Vec<(String, Span)>,
    }

    impl Fixture {
        fn new() -> Self {
            Self { folder: tempfile::tempdir().unwrap(), records: Vec::new() }
        }

        fn whole(&mut self, name: &str, bytes: &[u8]) {
            let path = self.folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
            self.records.push((name.to_owned(), Span { offset: 0, len: bytes.len() as u64, whole: true }));
        }

        fn part(&mut self, name: &str, offset: u64, len: u64) {
            self.records.push((name.to_owned(), Span { offset, len, whole: false }));
        }

        fn share(self) -> Arc<Self> {
            Arc::new(self)
        }
    }

    impl Files for Fixture {
        fn root(&self) -> &Path {
            self.folder.path()
        }

        fn locate(&self, index: u64, file: &mut Vec<u8>) -> Span {
            let (name, span) = &self.records[index as usize];
            file.extend_from_slice(name.as_bytes());
            *span
        }

        fn key(&self, index: u64) -> String {
            self.records[index as usize].0.clone()
        }
    }

    fn reader(files: &Arc<Fixture>, backend: Backend, depth: u32) -> Option<Box<dyn Reader>> {
        match open(files.clone(), &ReaderConfig { backend, depth }) {
            Ok(reader) => Some(reader),
            Err(error) if backend == Backend::IoUring => {
                eprintln!("skipped for io_uring: {error}");
                None
            }
            Err(error) => panic!("{error}"),
        }
    }

    type Outcome = Result<Buffer, ReadError>;

    fn read_all(reader: &dyn Reader, indices: impl IntoIterator<Item = u64>) -> HashMap<u64, Outcome> {
        let (tell, told) = mpsc::channel();
        let request = |index| {
            let tell = tell.clone();
            let done = move |result: Result<Record, ReadError>| {
                if let Ok(record) = &result {
                    assert_eq!(record.index, index);
                }
                tell.send((index, result.map(|record| record.bytes))).unwrap();
            };
            ReadRequest { index, done: Box::new(done) }
        };
        let requests: Vec<_> = indices.into_iter().map(request).collect();
        let count = requests.len();
        reader.submit(requests);
        drop(tell);
        let results: HashMap<_, _> = told.iter().collect();
        assert_eq!(results.len(), count, "each request ends exactly once");
        results
    }

    /// Bytes that differ between files and within one.
    fn noise(seed: u64, len: usize) -> Vec<u8> {
        let mut bytes: Vec<u8> = (0..len as u64 / 8 + 1)
            .flat_map(|block| {
                (block ^ seed << 32).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(29).to_le_bytes()
            })
            .collect();
        bytes.truncate(len);
        bytes
    }

    #[test]
    fn both_backends_deliver_the_bytes_of_thousands_of_files() {
        let mut files = Fixture::new();
        for index in 0..3000 {
            let len = (index * index * 7919) % 30_011;
            files.whole(&format!("class{}/{index}.jpg", index % 7), &noise(index as u64, len));
        }
        let files = files.share();
        for backend in BACKENDS {
            for depth in [1, 32, 100] {
                let Some(reader) = reader(&files, backend, depth) else { continue };
                let mut total = 0;
                for (index, outcome) in read_all(&*reader, 0..3000) {
                    let bytes = outcome.unwrap();
                    total += bytes.len() as u64;
                    assert_eq!(
                        *bytes,
                        *fs::read(files.folder.path().join(files.key(index))).unwrap(),
                        "{index}"
                    );
                }
                let stats = reader.stats();
                assert_eq!((stats.reads, stats.bytes), (3000, total));
                assert!(stats.busy_ns > 0 && stats.submissions > 0);
            }
        }
    }

    #[test]
    fn sizes_around_the_limits_of_buffers_come_whole() {
        let mut files = Fixture::new();
        let sizes = [0, 1, 4095, 4096, 4097, 16383, 16384, 16385, 1 << 20, 5 << 20, (5 << 20) + 1];
        for (index, &size) in sizes.iter().enumerate() {
            files.whole(&format!("{index}"), &noise(index as u64, size));
        }
        let files = files.share();
        for backend in BACKENDS {
            let Some(reader) = reader(&files, backend, 4) else { continue };
            for _ in 0..3 {
                for (index, outcome) in read_all(&*reader, 0..sizes.len() as u64) {
                    assert!(
                        *outcome.unwrap() == *noise(index, sizes[index as usize]),
                        "{}",
                        sizes[index as usize]
                    );
                }
            }
        }
    }

    #[test]
    fn files_that_shrink_grow_or_vanish_are_named() {
        for backend in BACKENDS {
            let mut files = Fixture::new();
            for name in ["same", "shorter", "longer", "empty-longer", "emptied", "gone", "in/gone", "folder"]
            {
                files.whole(name, if name == "empty-longer" { b"" } else { b"0123456789" });
            }
            let root = files.folder.path().to_owned();
            fs::write(root.join("shorter"), b"012").unwrap();
            fs::write(root.join("longer"), b"0123456789abc").unwrap();
            fs::write(root.join("empty-longer"), b"0").unwrap();
            fs::write(root.join("emptied"), b"").unwrap();
            fs::remove_file(root.join("gone")).unwrap();
            fs::remove_dir_all(root.join("in")).unwrap();
            fs::remove_file(root.join("folder")).unwrap();
            fs::create_dir(root.join("folder")).unwrap();
            let files = files.share();
            let Some(reader) = reader(&files, backend, 8) else { continue };
            let mut results = read_all(&*reader, 0..8);
            assert_eq!(*results.remove(&0).unwrap().unwrap(), *b"0123456789");
            let mut error = |index| results.remove(&index).unwrap().unwrap_err();
            for (index, sizes) in
                [(1, "10 bytes were expected, 3 bytes found"), (2, "10 bytes were expected, 13 bytes found")]
            {
                let error = error(index);
                assert_eq!(error.kind(), ReadErrorKind::Changed);
                assert_eq!(error.key(), files.key(index));
                let text = error.to_string();
                assert!(text.contains(sizes) && text.contains(root.to_str().unwrap()), "{text}");
            }
            assert!(error(3).to_string().contains("0 bytes were expected, 1 bytes found"));
            assert!(error(4).to_string().contains("10 bytes were expected, 0 bytes found"));
            for index in [5, 6] {
                let error = error(index);
                assert_eq!(error.kind(), ReadErrorKind::Gone);
                assert!(!error.is_transient());
                assert!(error.to_string().contains(root.join(files.key(index)).to_str().unwrap()), "{error}");
            }
            assert_eq!(error(7).kind(), ReadErrorKind::Io);
            assert_eq!(reader.stats().reads, 1);
        }
    }

    #[test]
    fn parts_of_a_file_are_read_exactly() {
        let mut files = Fixture::new();
        let bytes = noise(1, 100_000);
        fs::write(files.folder.path().join("shard.tar"), &bytes).unwrap();
        let parts: Vec<(u64, u64)> = (0..500).map(|part| (part * 197, (part * 31) % 900)).collect();
        for &(offset, len) in &parts {
            files.part("shard.tar", offset, len);
        }
        files.part("shard.tar", 99_990, 11);
        let files = files.share();
        for backend in BACKENDS {
            let Some(reader) = reader(&files, backend, 32) else { continue };
            let mut results = read_all(&*reader, 0..501);
            let past_the_end = results.remove(&500).unwrap().unwrap_err();
            assert_eq!(past_the_end.kind(), ReadErrorKind::Changed);
            assert!(
                past_the_end.to_string().contains("11 bytes were expected, 10 bytes found"),
                "{past_the_end}"
            );
            for (index, outcome) in results {
                let (offset, len) = parts[index as usize];
                assert_eq!(*outcome.unwrap(), bytes[offset as usize..][..len as usize]);
            }
        }
    }

    #[test]
    fn a_root_that_is_renamed_is_still_read() {
        for backend in BACKENDS {
            let mut files = Fixture::new();
            files.whole("root/a", b"a");
            let parent = files.folder.path().to_owned();
            struct Inner(PathBuf, Arc<Fixture>);
            impl Files for Inner {
                fn root(&self) -> &Path {
                    &self.0
                }
                fn locate(&self, _: u64, file: &mut Vec<u8>) -> Span {
                    file.push(b'a');
                    Span { offset: 0, len: 1, whole: true }
                }
                fn key(&self, _: u64) -> String {
                    "a".to_owned()
                }
            }
            let inner = Arc::new(Inner(parent.join("root"), files.share()));
            let config = ReaderConfig { backend, depth: 2 };
            let Ok(reader) = open(inner.clone(), &config) else { continue };
            fs::rename(parent.join("root"), parent.join("renamed")).unwrap();
            assert_eq!(**read_all(&*reader, [0])[&0].as_ref().unwrap(), *b"a");
            assert!(inner.1.folder.path().exists());
        }
    }

    #[test]
    fn dropping_a_reader_drops_what_is_not_done_and_returns_soon() {
        let mut files = Fixture::new();
        for index in 0..200 {
            files.whole(&format!("{index}"), &noise(index, 50_000));
        }
        let files = files.share();
        for backend in BACKENDS {
            for wait_for in [0, 1, 50, 500] {
                let Some(reader) = reader(&files, backend, 32) else { continue };
                let (tell, told) = mpsc::channel();
                let alive = Arc::new(());
                let request = |number: u64| {
                    let (tell, alive) = (tell.clone(), alive.clone());
                    let done = move |result: Result<Record, ReadError>| {
                        let _alive = alive;
                        let _ = tell.send(result.unwrap().index);
                    };
                    ReadRequest { index: number % 200, done: Box::new(done) }
                };
                reader.submit((0..20_000).map(request).collect());
                told.iter().take(wait_for).for_each(drop);
                let begin = Instant::now();
                drop(reader);
                // A watchdog, not a speed: the promise is milliseconds.
                assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
                assert_eq!(Arc::strong_count(&alive), 1, "every callback is gone, called or not");
            }
        }
    }

    #[test]
    fn a_pipe_in_place_of_a_file_hangs_nothing() {
        for backend in BACKENDS {
            let mut files = Fixture::new();
            files.whole("pipe", b"0123");
            files.whole("file", b"0123");
            let path = files.folder.path().join("pipe");
            fs::remove_file(&path).unwrap();
            rustix::fs::mknodat(
                rustix::fs::CWD,
                &path,
                rustix::fs::FileType::Fifo,
                Mode::RUSR | Mode::WUSR,
                0,
            )
            .unwrap();
            let files = files.share();
            let Some(reader) = reader(&files, backend, 4) else { continue };
            let (tell, told) = mpsc::channel();
            let alive = Arc::new(());
            let held = alive.clone();
            reader.submit(vec![ReadRequest { index: 0, done: Box::new(move |_| drop(held)) }]);
            reader.submit(vec![ReadRequest {
                index: 1,
                done: Box::new(move |result| tell.send(result).unwrap()),
            }]);
            assert_eq!(*told.recv().unwrap().unwrap().bytes, *b"0123");
            drop(reader);
            assert_eq!(Arc::strong_count(&alive), 1);
        }
    }

    #[test]
    fn a_panic_in_a_callback_stops_nobody_else() {
        let mut files = Fixture::new();
        files.whole("a", b"a");
        let files = files.share();
        for backend in BACKENDS {
            let Some(reader) = reader(&files, backend, 4) else { continue };
            for _ in 0..20 {
                reader.submit(vec![ReadRequest {
                    index: 0,
                    done: Box::new(|_| panic!("a bug in a test's callback")),
                }]);
            }
            assert!(read_all(&*reader, [0])[&0].is_ok());
        }
    }

    #[test]
    fn a_callback_may_submit_and_may_drop_the_reader() {
        let mut files = Fixture::new();
        files.whole("a", b"a");
        let files = files.share();
        for backend in BACKENDS {
            let Some(reader) = reader(&files, backend, 2) else { continue };
            let reader = Arc::new(reader);
            let (tell, told) = mpsc::channel();
            let last = Arc::new(Mutex::new(None));
            let (again, own) = (reader.clone(), last.clone());
            let second = ReadRequest {
                index: 0,
                done: Box::new(move |result| {
                    drop(own.lock().unwrap().take());
                    tell.send(result.is_ok()).unwrap();
                }),
            };
            let first = ReadRequest { index: 0, done: Box::new(move |_| again.submit(vec![second])) };
            *last.lock().unwrap() = Some(reader.clone());
            reader.submit(vec![first]);
            drop(reader);
            assert!(told.recv().unwrap());
        }
    }

    #[test]
    fn two_hundred_thousand_requests_in_small_and_large_portions_all_end() {
        let mut files = Fixture::new();
        for index in 0..64 {
            files.whole(&format!("{index}"), &noise(index, 100 + index as usize));
        }
        let files = files.share();
        for backend in BACKENDS {
            let Some(reader) = reader(&files, backend, 64) else { continue };
            let done = Arc::new(AtomicU64::new(0));
            let (tell, told) = mpsc::channel::<()>();
            std::thread::scope(|scope| {
                for part in 0..4u64 {
                    let (reader, done, tell) = (&reader, &done, tell.clone());
                    scope.spawn(move || {
                        let mut sent = 0;
                        while sent < 50_000 {
                            let portion = (1 + (sent * 7 + part) % 300).min(50_000 - sent);
                            let request = |number| {
                                let (done, tell) = (done.clone(), tell.clone());
                                let check = move |result: Result<Record, ReadError>| {
                                    let record = result.unwrap();
                                    assert_eq!(record.bytes.len() as u64, 100 + record.index);
                                    done.fetch_add(1, Ordering::Relaxed);
                                    drop(tell);
                                };
                                ReadRequest { index: number % 64, done: Box::new(check) }
                            };
                            reader.submit((sent..sent + portion).map(request).collect());
                            sent += portion;
                        }
                    });
                }
            });
            drop(tell);
            assert!(told.recv().is_err(), "the last callback has gone");
            assert_eq!(done.load(Ordering::Relaxed), 200_000);
            assert_eq!(reader.stats().reads, 200_000);
        }
    }

    #[test]
    fn a_record_larger_than_memory_is_an_error() {
        let mut files = Fixture::new();
        files.whole("a", b"a");
        files.part("a", 0, u64::MAX);
        files.part("a", 0, 1 << 60);
        let files = files.share();
        for backend in BACKENDS {
            let Some(reader) = reader(&files, backend, 4) else { continue };
            let results = read_all(&*reader, 0..3);
            assert!(results[&0].is_ok());
            for index in [1, 2] {
                let error = results[&index].as_ref().unwrap_err();
                assert!(error.to_string().contains("does not fit in memory"), "{error}");
            }
        }
    }

    fn refused(_: u32) -> io::Result<io_uring::IoUring> {
        Err(Errno::PERM.into())
    }

    #[test]
    fn a_refused_ring_falls_back_to_threads_unless_it_was_demanded() {
        let mut files = Fixture::new();
        files.whole("a", b"abc");
        let files = files.share();
        let config = |backend| ReaderConfig { backend, depth: 8 };
        let reader = open_with(files.clone(), &config(Backend::Auto), refused).unwrap();
        assert_eq!(reader.stats().backend, "threads");
        assert_eq!(**read_all(&*reader, [0])[&0].as_ref().unwrap(), *b"abc");
        let error = open_with(files.clone(), &config(Backend::IoUring), refused).err().unwrap();
        let text = error.to_string();
        assert!(error.is_backend());
        assert!(text.contains("Operation not permitted") && text.contains("\"threads\""), "{text}");
        assert_eq!(open_with(files, &config(Backend::Threads), refused).unwrap().stats().backend, "threads");
    }

    #[test]
    fn a_depth_that_cannot_be_is_refused() {
        let mut files = Fixture::new();
        files.whole("a", b"abc");
        let files = files.share();
        for depth in [0, 1025] {
            let error = open(files.clone(), &ReaderConfig { backend: Backend::Auto, depth }).err().unwrap();
            assert!(error.is_config() && error.to_string().contains("between 1 and 1024"), "{error}");
        }
        for backend in BACKENDS {
            let Some(reader) = reader(&files, backend, 1024) else { continue };
            assert_eq!(read_all(&*reader, std::iter::repeat_n(0, 1)).len(), 1);
        }
    }

    #[test]
    fn a_missing_root_is_named() {
        let files = Fixture::new();
        fs::remove_dir(files.folder.path()).unwrap();
        let path = files.folder.path().to_str().unwrap().to_owned();
        let error = open(files.share(), &ReaderConfig::default()).err().unwrap();
        assert!(error.is_data() && error.to_string().contains(&path), "{error}");
    }

    #[test]
    fn only_errors_that_may_pass_are_tried_again_and_not_for_ever() {
        let schedule = |error| {
            (0..20).map_while(|attempt| retry(error, attempt)).map(|delay| delay.as_millis()).collect()
        };
        let waits: [(Errno, Vec<u128>); 6] = [
            (Errno::IO, vec![10, 50, 250]),
            (Errno::MFILE, vec![10, 50, 250]),
            (Errno::INTR, vec![0, 0, 0, 10, 50, 250]),
            (Errno::AGAIN, vec![0, 0, 0, 10, 50, 250]),
            (Errno::NOENT, vec![]),
            (Errno::ACCESS, vec![]),
        ];
        for (error, expected) in waits {
            let found: Vec<u128> = schedule(error);
            assert_eq!(found, expected, "{error:?}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn any_list_of_files_is_read_as_written_by_both(
            sizes in prop::collection::vec(0usize..70_000, 1..40),
            depth in 1u32..40,
            order in prop::collection::vec(any::<prop::sample::Index>(), 1..80),
        ) {
            let mut files = Fixture::new();
            for (index, &size) in sizes.iter().enumerate() {
                files.whole(&format!("d{}/{index}", index % 3), &noise(index as u64, size));
            }
            let files = files.share();
            for backend in BACKENDS {
                let Some(reader) = reader(&files, backend, depth) else { continue };
                // The same record may be asked for several times at once.
                let (tell, told) = mpsc::channel();
                let request = |pick: &prop::sample::Index| {
                    let tell = tell.clone();
                    let done = move |result: Result<Record, ReadError>| tell.send(result.unwrap()).unwrap();
                    ReadRequest { index: pick.index(sizes.len()) as u64, done: Box::new(done) }
                };
                reader.submit(order.iter().map(request).collect());
                drop(tell);
                let records: Vec<_> = told.iter().collect();
                prop_assert_eq!(records.len(), order.len());
                for record in records {
                    prop_assert!(*record.bytes == *noise(record.index, sizes[record.index as usize]));
                }
            }
        }
    }
}
