//! Exact bytes or a named error, whatever a server does.

mod server;

use std::collections::HashMap;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use object_store::memory::InMemory;
use object_store::{ObjectStoreExt, PutPayload};
use proptest::prelude::*;
use tempfile::TempDir;
use xxhash_rust::xxh3::xxh3_64;

use self::server::{PASSING, Server, Stored, Trouble, noise};
use super::*;
use crate::bytes::shards::{Ranges, Shards};
use crate::sources::images::Images;
use crate::{
    FolderConfig, IndexedSource, ReadErrorKind, ReadRequest, Record, Split, SplitPart, Wanted, WantedKind,
};

/// Patience of a test: the figures are small, the rules the same.
const QUICK: Patience = Patience {
    connect: Duration::from_secs(10),
    silence: Duration::from_millis(400),
    first_wait: Duration::from_millis(2),
    longest_wait: Duration::from_millis(20),
    attempts: 11,
};

fn cache_in(dir: &TempDir) -> CacheConfig {
    CacheConfig { dir: Some(dir.path().to_owned()), limit_bytes: None }
}

fn connect(server: &Server, dir: &TempDir) -> Arc<Remote> {
    let address = Address::parse(&server.address).unwrap();
    Remote::connect_with(&address.place, &cache_in(dir), QUICK).unwrap()
}

fn addresses_of(server: &Server, paths: &[&str]) -> Vec<Address> {
    paths.iter().map(|path| Address::parse(&format!("{}/{path}", server.address)).unwrap()).collect()
}

fn object(remote: &Remote, server: &Server, path: &str) -> Object {
    let found = remote.find(&addresses_of(server, &[path]), &[".tar"]).unwrap().remove(0);
    Object { path: found.path, query: found.query, size: found.size, version: found.version }
}

fn read(remote: &Arc<Remote>, object: &Object) -> Result<Vec<u8>, Fault> {
    let mut bytes = vec![0; object.size as usize];
    remote.read(object, 0, &mut bytes).map(|()| bytes)
}

/// Records that are whole files, by number.
struct Whole(Vec<u64>);

impl Ranges for Whole {
    fn locate(&self, index: u64) -> (usize, u64, u64) {
        (index as usize, 0, self.0[index as usize])
    }

    fn key(&self, index: u64) -> String {
        format!("record {index}")
    }
}

fn whole(shards: &Arc<Shards>) -> Arc<Whole> {
    Arc::new(Whole(shards.files().iter().map(|file| file.size).collect()))
}

fn submit(
    reader: &dyn Reader,
    indices: impl Iterator<Item = u64>,
) -> mpsc::Receiver<(u64, Result<Record, ReadError>)> {
    let (tell, told) = mpsc::channel();
    let request = |index| {
        let tell = tell.clone();
        ReadRequest { index, done: Box::new(move |result| tell.send((index, result)).unwrap_or(())) }
    };
    reader.submit(indices.map(request).collect());
    told
}

#[test]
fn many_objects_through_many_faults_are_exact_or_named() {
    let gate = std::env::var_os("FUELRAIL_GATE").is_some();
    let (objects, faults, share) = if gate { (5000u64, 1000u64, 0.22) } else { (200, 100, 0.45) };
    let seed = std::env::var("FUELRAIL_SEED")
        .map_or_else(|_| std::process::id() as u64, |seed| seed.parse().unwrap());
    println!("FUELRAIL_SEED={seed}");
    let random = move |what: u64, of: u64| xxh3_64(&[seed, what, of].map(u64::to_le_bytes).concat());

    let (server, dir) = (Server::start(), tempfile::tempdir().unwrap());
    let size = |index: u64| match random(1, index) % 100 {
        0 => 0,
        1 => 1,
        2 => BLOCK as usize,
        // Several blocks, in some of the objects only: the test is about requests and not about memory.
        3 if index < 400 => 2 * BLOCK as usize + 12345,
        n => (random(2, index) % (1000 * n)) as usize + 2,
    };
    let name = |index: u64| format!("data/{index:05}.bin");
    let bytes = |index: u64, version: u64| noise(index * 2 + version, size(index));
    for index in 0..objects {
        server.put(&name(index), &format!("\"v0-{index}\""), bytes(index, 0));
    }
    let names: Vec<_> = (0..objects).map(name).collect();
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    let remote = connect(&server, &dir);
    let shards = Shards::open_remote(remote.clone(), &addresses_of(&server, &names), &[]).unwrap();

    // One in ten is replaced after it was listed; some of these vanish.
    // (An empty one is read without a request, so what became of it is nobody's business.)
    let replaced = |index: u64| random(3, index).is_multiple_of(10) && size(index) > 0;
    let gone = |index: u64| replaced(index) && random(4, index).is_multiple_of(4);
    for index in (0..objects).filter(|&index| replaced(index)) {
        if gone(index) {
            server.remove(&name(index));
        } else {
            server.put(&name(index), &format!("\"v1-{index}\""), bytes(index, 1));
        }
    }
    let state = Mutex::new((0, HashMap::<String, u32>::new()));
    server.plan(move |number, path| {
        let mut state = lock(&state);
        let (injected, in_a_row) = &mut *state;
        let in_a_row = in_a_row.entry(path.to_owned()).or_default();
        // Never more in a row than a reader bears, so that what is asserted does not hang on luck.
        let wanted = (random(5, number) as f64) < share * u64::MAX as f64 && *in_a_row < 6;
        if !wanted || *injected >= faults {
            *in_a_row = 0;
            return None;
        }
        (*injected, *in_a_row) = (*injected + 1, *in_a_row + 1);
        Some(PASSING[random(6, number) as usize % PASSING.len()])
    });

    let reader = shards.clone().reader(whole(&shards), &ReaderConfig::default()).unwrap();
    let mut ended = 0;
    for (index, result) in submit(&*reader, 0..objects).iter().take(objects as usize) {
        ended += 1;
        let address = format!("{}/{}", server.address, name(index));
        match result {
            Ok(record) => {
                assert!(!replaced(index), "record {index} is of the version listed");
                assert!(*record.bytes == *bytes(index, 0), "record {index} is exact");
            }
            Err(error) => {
                assert!(replaced(index), "{error}");
                let text = error.to_string();
                assert!(text.contains(&address), "{text}");
                if gone(index) {
                    assert_eq!(error.kind(), ReadErrorKind::Gone, "{text}");
                } else {
                    assert_eq!(error.kind(), ReadErrorKind::Changed, "{text}");
                    // What is there instead is asked for once more; with faults on a busy machine that may have no
                    // answer.
                    let instead = [format!("version v1-{index} found"), "another one found".into()];
                    assert!(
                        text.contains(&format!("v0-{index} expected"))
                            && instead.iter().any(|instead| text.contains(instead)),
                        "{text}"
                    );
                }
            }
        }
    }
    assert_eq!(ended, objects);
    let troubles = server.troubles();
    println!("{} requests, troubles {troubles:?}", server.requests());
    assert_eq!(troubles.values().sum::<u64>(), faults, "all faults were met: {troubles:?}");
    drop(reader);

    // Everything that could be read is on disk now, also for another process.
    server.plan(|_, _| Some(Trouble::Status(500)));
    let before = server.requests();
    let reader = shards.clone().reader(whole(&shards), &ReaderConfig::default()).unwrap();
    let kept = (0..objects).filter(|&index| !replaced(index) && size(index) > 0);
    for (index, result) in submit(&*reader, kept.clone()).iter().take(kept.count()) {
        assert!(*result.unwrap().bytes == *bytes(index, 0));
    }
    assert_eq!(server.requests(), before, "no request for what is on disk");
}

#[test]
fn every_passing_trouble_is_passed_over_in_small_and_large_objects() {
    for trouble in PASSING {
        let (server, dir) = (Server::start(), tempfile::tempdir().unwrap());
        let remote = connect(&server, &dir);
        for (path, len) in [("small", 100_000), ("large", BLOCK as usize + 100_000)] {
            server.put(path, "\"1\"", noise(1, len));
            let object = object(&remote, &server, path);
            let first = server.requests();
            server.plan(move |number, _| (number < first + 3).then_some(trouble));
            assert!(read(&remote, &object).unwrap() == noise(1, len), "{trouble:?} {path}");
            server.plan(|_, _| None);
        }
        assert!(server.troubles()[&trouble] >= 4, "{trouble:?} was met");
    }
}

#[test]
fn what_came_before_a_reset_is_not_fetched_again() {
    let (server, dir) = (Server::start(), tempfile::tempdir().unwrap());
    let remote = connect(&server, &dir);
    let len = BLOCK as usize;
    server.put("x", "\"1\"", noise(1, 2 * len));
    let object = object(&remote, &server, "x");
    let first = server.requests();
    server.plan(move |number, _| (number == first).then_some(Trouble::Short));
    let mut bytes = vec![0; len];
    remote.read(&object, 0, &mut bytes).unwrap();
    assert!(bytes == noise(1, 2 * len)[..len]);
    // The short answer counts in full, though half of it was sent; the second one asks for the other half.
    assert!(server.bytes() <= (len + len / 2 + 1) as u64, "{}", server.bytes());
}

#[test]
fn another_version_is_never_delivered_whatever_the_server_heeds() {
    for (conditional, tag, resume) in [
        (true, "\"1\"", false),
        (false, "\"1\"", false),
        (false, "\"1\"", true),
        (true, "W/\"1\"", true),
        (true, "", true),
    ] {
        let (server, dir) = (Server::start(), tempfile::tempdir().unwrap());
        server.forget(conditional, true);
        let remote = connect(&server, &dir);
        let len = BLOCK as usize + 1000;
        server.put("x", tag, noise(1, len));
        let object = object(&remote, &server, "x");
        assert!(read(&remote, &object).unwrap() == noise(1, len), "{tag} itself is read");

        let fresh = tempfile::tempdir().unwrap();
        let remote = connect(&server, &fresh);
        let first = server.requests();
        // In the middle of an object, or even of a block.
        server.plan(move |number, _| match (number - first, resume) {
            (0, true) => Some(Trouble::Short),
            (1, true) | (0, false) => Some(Trouble::OtherVersion),
            _ => None,
        });
        let fault = read(&remote, &object).unwrap_err();
        assert_eq!(fault.kind, ReadErrorKind::Changed, "{conditional} {tag}: {fault}");
        assert!(fault.detail.contains(&format!("{}/x", server.address)), "{fault}");
        assert!(server.troubles()[&Trouble::OtherVersion] == 1);
    }
}

#[test]
fn an_object_that_shrank_or_grew_has_changed() {
    for len in [10, 100_000, BLOCK as usize * 2] {
        let (server, dir) = (Server::start(), tempfile::tempdir().unwrap());
        let remote = connect(&server, &dir);
        server.put("x", "", noise(1, BLOCK as usize + 1));
        let object = object(&remote, &server, "x");
        server.put("x", "", noise(1, len));
        let fault = read(&remote, &object).unwrap_err();
        assert_eq!(fault.kind, ReadErrorKind::Changed, "{fault}");
        assert!(fault.detail.contains(&format!("{len} bytes")), "{fault}");
    }
}

#[test]
fn a_server_without_versions_is_read_and_its_copies_are_not_used_by_another_run() {
    let (server, dir) = (Server::start(), tempfile::tempdir().unwrap());
    let put =
        |seed| server.put_as("x", Stored { bytes: Arc::new(noise(seed, 1000)), tag: None, modified: None });
    put(1);
    let remote = connect(&server, &dir);
    let object = object(&remote, &server, "x");
    assert!(read(&remote, &object).unwrap() == noise(1, 1000));
    put(2);
    // The same folder, from another run.
    let other = Remote { runtime: Arc::new(Network::start().unwrap()), ..Arc::into_inner(remote).unwrap() };
    assert!(read(&Arc::new(other), &object).unwrap() == noise(2, 1000));
    let versioned = Object { version: Version::Text("1".into()), ..object };
    let identity = |server| connect(server, &dir).identity(&versioned);
    assert_eq!(identity(&server), identity(&server));
}

#[test]
fn a_version_is_the_same_with_and_without_quotes() {
    let version = |tag: &str| {
        Version::of(&object_store::ObjectMeta {
            location: "x".into(),
            last_modified: Default::default(),
            size: 1,
            e_tag: Some(tag.into()),
            version: None,
        })
    };
    // The last is a hash in base64, as lists of Google's store have it.
    for tag in ["0x8DB", "79vPdm4J/W7DTZmREwhQ==", "W/79vPdm4J/W7DTZmREwhQ=="] {
        assert_eq!(version(tag), Version::Text(tag.into()));
        assert_eq!(version(&format!("\"{tag}\"")), Version::Text(tag.into()));
    }
    assert_eq!(version("W/\"a\""), Version::Text("a@0".into()), "weak");
}

#[test]
fn a_full_disk_is_read_past() {
    let Some(disk) = crate::bytes::cache::tests::SmallDisk::mount(BLOCK + 1_000_000) else {
        eprintln!("skipped: this user may not mount a small disk");
        return;
    };
    let server = Server::start();
    let len = 4 * BLOCK as usize + 777;
    server.put("x", "\"1\"", noise(1, len));
    let config = CacheConfig { dir: Some(disk.path().to_owned()), limit_bytes: None };
    let remote =
        Remote::connect_with(&Address::parse(&server.address).unwrap().place, &config, QUICK).unwrap();
    let object = object(&remote, &server, "x");
    for _ in 0..2 {
        assert!(read(&remote, &object).unwrap() == noise(1, len));
    }
}

#[test]
fn a_server_without_ranges_serves_small_objects_and_is_named_for_large_ones() {
    let (server, dir) = (Server::start(), tempfile::tempdir().unwrap());
    server.forget(true, false);
    let remote = connect(&server, &dir);
    server.put("small", "\"1\"", noise(1, 100_000));
    server.put("large", "\"1\"", noise(1, BLOCK as usize + 1));
    let small = object(&remote, &server, "small");
    let first = server.requests();
    server.plan(move |number, _| (number == first).then_some(Trouble::Short));
    assert!(read(&remote, &small).unwrap() == noise(1, 100_000));
    let fault = read(&remote, &object(&remote, &server, "large")).unwrap_err();
    assert!(fault.detail.contains("/large") && fault.detail.contains("range"), "{fault}");
}

#[test]
fn a_body_in_chunks_is_read_or_refused_at_once() {
    let (server, dir) = (Server::start(), tempfile::tempdir().unwrap());
    let remote = connect(&server, &dir);
    server.chunk();
    server.put("small", "\"1\"", noise(1, 100_000));
    server.put("large", "\"1\"", noise(1, 2 * BLOCK as usize + 1));
    for name in ["small", "large"] {
        let object = object(&remote, &server, name);
        assert!(read(&remote, &object).unwrap() == noise(1, object.size as usize), "{name}");
    }
    let other = tempfile::tempdir().unwrap();
    let remote = connect(&server, &other);
    server.forget(true, false);
    let small = object(&remote, &server, "small");
    assert!(read(&remote, &small).unwrap() == noise(1, 100_000));
    let large = object(&remote, &server, "large");
    let before = server.requests();
    let fault = read(&remote, &large).unwrap_err();
    assert!(fault.detail.contains("range requests") && !fault.transient, "{fault}");
    assert!(server.requests() - before <= 3, "it is not tried again and again");
}

#[test]
fn troubles_without_end_become_an_error_that_names_the_address_and_no_secret() {
    let (server, dir) = (Server::start(), tempfile::tempdir().unwrap());
    let remote = connect(&server, &dir);
    server.put("x", "\"1\"", noise(1, 1000));
    let address = format!("{}/x?X-Amz-Signature=secret", server.address);
    let found = remote.find(&[Address::parse(&address).unwrap()], &[]).unwrap().remove(0);
    let object = Object { path: found.path, query: found.query, size: found.size, version: found.version };
    for (trouble, words, transient) in [
        (Trouble::Status(503), "status 503", true),
        (Trouble::Silence, "no answer within 0.4 s", true),
        (Trouble::Garbage, "times in a row", true),
        (Trouble::Status(403), "signature in the address has expired", false),
        (Trouble::Status(401), "may not be read", false),
        (Trouble::Status(418), "status 418", false),
    ] {
        server.plan(move |_, _| Some(trouble));
        let fault = read(&remote, &object).unwrap_err();
        let text = fault.to_string();
        assert_eq!((fault.kind, fault.transient), (ReadErrorKind::Io, transient), "{text}");
        assert!(text.contains(words) && text.contains(&format!("{}/x", server.address)), "{text}");
        assert!(!text.contains("secret"), "{text}");
        let error = remote.find(&[Address::parse(&address).unwrap()], &[]).unwrap_err().to_string();
        assert!(error.contains(words) && !error.contains("secret"), "{error}");
    }
    server.plan(|_, _| None);
    server.remove("x");
    let fault = read(&remote, &object).unwrap_err();
    assert_eq!(fault.kind, ReadErrorKind::Gone);
    assert!(fault.detail.contains("/x does not exist (any more): status 404"), "{fault}");
    let gone = std::io::Error::from(read(&remote, &object).unwrap_err());
    assert_eq!(ReadError::of_remote("key", &gone).unwrap().kind(), ReadErrorKind::Gone);
    let (host, port) = ("127.0.0.1", 1);
    let nobody = Address::parse(&format!("http://{host}:{port}/x")).unwrap();
    let remote = Remote::connect_with(&nobody.place, &cache_in(&dir), QUICK).unwrap();
    let error = remote.find(&[nobody], &[]).unwrap_err().to_string();
    assert!(error.contains("http://127.0.0.1:1/x") && error.contains("refused"), "{error}");
}

#[test]
fn one_block_wanted_by_many_is_fetched_once() {
    let (server, dir) = (Server::start(), tempfile::tempdir().unwrap());
    // Two stores over the same folder, as two pipelines have them.
    let remotes = [connect(&server, &dir), connect(&server, &dir)];
    server.put("x", "\"1\"", noise(1, BLOCK as usize));
    let object = object(&remotes[0], &server, "x");
    let first = server.requests();
    std::thread::scope(|scope| {
        for number in 0..24 {
            let (remote, object) = (&remotes[number % 2], &object);
            scope.spawn(move || {
                let mut bytes = [0; 1000];
                let at = number * 100_000;
                remote.read(object, at as u64, &mut bytes).unwrap();
                assert!(bytes == noise(1, BLOCK as usize)[at..at + 1000]);
            });
        }
    });
    assert_eq!(server.requests() - first, 1);
}

#[test]
fn a_reader_that_is_dropped_stops_at_once_whatever_the_server_does() {
    let (server, dir) = (Server::start(), tempfile::tempdir().unwrap());
    let address = Address::parse(&server.address).unwrap();
    let patience = Patience { silence: Duration::from_secs(600), ..QUICK };
    let remote = Remote::connect_with(&address.place, &cache_in(&dir), patience).unwrap();
    for path in ["a", "b", "c"] {
        server.put(path, "\"1\"", noise(1, 100_000));
    }
    let shards = Shards::open_remote(remote, &addresses_of(&server, &["a", "b", "c"]), &[]).unwrap();
    server.plan(|_, path| Some(if path == "a" { Trouble::Stall } else { Trouble::Silence }));
    let reader =
        shards.clone().reader(whole(&shards), &ReaderConfig { depth: 2, ..ReaderConfig::default() }).unwrap();
    let before = server.requests();
    let told = submit(&*reader, 0..3);
    while server.requests() < before + 2 {
        std::thread::yield_now();
    }
    let begin = Instant::now();
    drop(reader);
    // Milliseconds are promised; the test is a watchdog.
    assert!(begin.elapsed() < Duration::from_secs(2), "{:?}", begin.elapsed());
    assert!(told.recv().is_err(), "requests not done are dropped uncalled");
}

#[test]
fn a_damaged_copy_is_fetched_again() {
    let (server, dir) = (Server::start(), tempfile::tempdir().unwrap());
    let remote = connect(&server, &dir);
    server.put("x", "\"1\"", noise(1, 200_000));
    let object = object(&remote, &server, "x");
    read(&remote, &object).unwrap();
    let mut damaged = 0;
    for folder in std::fs::read_dir(dir.path().join("fuelrail-cache")).unwrap() {
        let folder = folder.unwrap().path();
        for file in std::fs::read_dir(&folder).into_iter().flatten() {
            let file = file.unwrap().path();
            let mut bytes = std::fs::read(&file).unwrap();
            *bytes.last_mut().unwrap() ^= 1;
            std::fs::write(&file, bytes).unwrap();
            damaged += 1;
        }
    }
    assert_eq!(damaged, 1);
    let before = server.requests();
    assert!(read(&remote, &object).unwrap() == noise(1, 200_000));
    assert_eq!(server.requests(), before + 1);
    assert!(read(&remote, &object).unwrap() == noise(1, 200_000));
    assert_eq!(server.requests(), before + 1);
}

#[test]
fn without_a_cache_exactly_the_bytes_asked_for_are_fetched() {
    let (server, dir) = (Server::start(), tempfile::tempdir().unwrap());
    let address = Address::parse(&server.address).unwrap();
    let config = CacheConfig { limit_bytes: Some(0), ..cache_in(&dir) };
    let remote = Remote::connect_with(&address.place, &config, QUICK).unwrap();
    server.put("x", "\"1\"", noise(1, 3 * BLOCK as usize));
    let object = object(&remote, &server, "x");
    let mut bytes = vec![0; 50_000];
    let at = BLOCK as usize - 20_000;
    remote.read(&object, at as u64, &mut bytes).unwrap();
    assert!(bytes == noise(1, 3 * BLOCK as usize)[at..at + 50_000]);
    assert_eq!(server.bytes(), 50_000);
    let fault = remote.read(&object, object.size - 1, &mut bytes).unwrap_err();
    assert!(fault.detail.contains("ends at byte"), "{fault}");
}

#[test]
fn a_web_server_is_not_asked_for_lists_and_places_are_not_mixed() {
    let open = |patterns: &[&str]| {
        let patterns: Vec<_> = patterns.iter().map(|&pattern| pattern.to_owned()).collect();
        let dir = tempfile::tempdir().unwrap();
        Shards::open(&patterns, &[".tar"], &cache_in(&dir)).unwrap_err().to_string()
    };
    for (patterns, words) in [
        (&["http://127.0.0.1:1/data/"][..], "does not list its files"),
        (&["http://127.0.0.1:1/data/*.tar"], "braces"),
        (&["http://127.0.0.1:1/a.tar", "/data/b.tar"], "/data/b.tar is a local path"),
        (&["http://127.0.0.1:1/a.tar", "http://127.0.0.1:2/b.tar"], "two places"),
        (&["http://me:secret@127.0.0.1:1/a.tar"], "password"),
        (&["http://127.0.0.1:1/{a,b.tar"], "not closed"),
    ] {
        let error = open(patterns);
        assert!(error.contains(words) && !error.contains("secret"), "{error}");
    }
    let config = FolderConfig { root: "https://127.0.0.1/images/?sig=secret".into(), ..folder("") };
    let error = Images::open(&config).unwrap_err().to_string();
    assert!(error.contains("does not list") && !error.contains("secret"), "{error}");
}

fn folder(root: &str) -> FolderConfig {
    FolderConfig {
        root: root.into(),
        classes: None,
        label: None,
        split: None,
        deliver: None,
        cache: CacheConfig::default(),
    }
}

/// A bucket in memory, in the place of a real one.
fn bucket(files: &[(String, Vec<u8>)], dir: &TempDir) -> (Arc<InMemory>, Arc<Remote>) {
    let store = Arc::new(InMemory::new());
    let runtime = Network::shared().unwrap();
    runtime.block_on(join_all(files.iter().map(|(path, bytes)| {
        let (store, path) = (store.clone(), object_store::path::Path::parse(path).unwrap());
        async move { store.put(&path, PutPayload::from(bytes.clone())).await.unwrap() }
    })));
    let remote = Remote {
        place: Place { scheme: url::Scheme::S3, host: "bucket".into() },
        client: Client::Store(store.clone()),
        patience: QUICK,
        endpoint: dir.path().display().to_string(),
        cache: crate::bytes::cache::open(&cache_in(dir)).unwrap(),
        permits: Arc::new(Semaphore::new(FETCHES)),
        runtime,
    };
    (store, Arc::new(remote))
}

#[test]
fn listing_and_looking_tell_how_far_they_are_and_can_be_cancelled() {
    let dir = tempfile::tempdir().unwrap();
    let files: Vec<_> = (0..50).map(|number| (format!("d/{number:02}.tar"), vec![0; number])).collect();
    let (_, remote) = bucket(&files, &dir);
    let opening = crate::Opening::new();
    opening.run(|| {
        let mut seen = Vec::new();
        let listed = remote.wait(remote.list("d", |meta| {
            seen.push(opening.progress().expect("a step is under way"));
            Some(meta.size)
        }));
        assert_eq!(listed.unwrap().len(), 50);
        let done: Vec<u64> = seen.iter().map(|now| now.done).collect();
        assert_eq!(done, (1..=50).collect::<Vec<_>>());
        assert!(seen.iter().all(|now| now.what == "listing objects" && now.total.is_none()));
        opening.cancel();
        let fault = remote.wait(std::future::pending::<Result<(), Fault>>()).unwrap_err();
        assert!(fault.to_string().contains("cancelled"), "{fault}");
    });
    // Elsewhere the same place goes on.
    assert!(remote.wait(remote.list("d", Some)).is_ok());
}

#[test]
fn shards_of_a_bucket_are_found_by_name_star_and_path_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let names = [
        "d/train-0.tar",
        "d/train-1.tar",
        "d/val-0.tar",
        "d/deep/x.TAR",
        "d/.hidden.tar",
        "d/notes.txt",
        "e.tar",
    ];
    let files: Vec<_> = names.iter().map(|name| (name.to_string(), name.as_bytes().to_vec())).collect();
    let (_store, remote) = bucket(&files, &dir);
    let open = |patterns: &[&str]| {
        let patterns: Vec<_> = patterns.iter().map(|pattern| format!("s3://bucket/{pattern}")).collect();
        Shards::open_remote(remote.clone(), &addresses(&patterns)?, &[".tar"])
    };
    let found = |patterns: &[&str]| {
        let shards = open(patterns).unwrap();
        shards.files().iter().map(|file| file.name.clone()).collect::<Vec<_>>()
    };
    assert_eq!(found(&["d/train-{1,0}.tar"]), ["train-1.tar", "train-0.tar"]);
    assert_eq!(found(&["d/*.tar"]), ["train-0.tar", "train-1.tar", "val-0.tar"]);
    assert_eq!(found(&["d/val-?.tar", "d/train-*"]), ["val-0.tar", "train-0.tar", "train-1.tar"]);
    for folder in ["d/", "d"] {
        assert_eq!(found(&[folder]), ["deep/x.TAR", "train-0.tar", "train-1.tar", "val-0.tar"]);
    }
    assert_eq!(found(&[""]), ["d/deep/x.TAR", "d/train-0.tar", "d/train-1.tar", "d/val-0.tar", "e.tar"]);
    assert_eq!(found(&["d/notes.txt"]), ["notes.txt"]);
    for (patterns, words) in [
        (&["d/train-{0..2}.tar"][..], "s3://bucket/d/train-2.tar: there is no such object"),
        (&["d/*.zip"], "no object there matches"),
        (&["f/"], "no object below it"),
        (&["e.tar", "e.tar"], "named twice"),
    ] {
        let error = open(patterns).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
    let shards = open(&["d/"]).unwrap();
    assert_eq!(shards.display(0), "s3://bucket/d/deep/x.TAR");
    let mut bytes = [0; 4];
    shards.read_at(3, 2, &mut bytes).unwrap();
    assert_eq!(&bytes, b"val-");
    assert!(shards.read_at(3, 10, &mut bytes).unwrap_err().to_string().contains("val-0.tar ends at byte 11"));
    assert!(shards.extent(0, 0, 1).is_none() && shards.reader_memory() > 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn an_image_folder_in_a_bucket_is_the_one_on_disk(
        names in prop::collection::btree_set("[ab.]?[ab-]{1,2}(/[.a-c-]{1,2}){0,2}/[a-d]{1,2}\\.(jpg|PNG|txt)", 1..40),
        flat in any::<bool>(),
        split in any::<bool>(),
    ) {
        let usable = |name: &&String| name.split('/').all(|part| part != "." && part != "..");
        let mut files: Vec<(String, Vec<u8>)> = names
            .iter()
            .filter(usable)
            .enumerate()
            .map(|(index, name)| {
                let name = if flat { name.replace('/', "-") } else { name.clone() };
                (name, noise(index as u64, index * 1000))
            })
            .collect();
        files.sort();
        files.dedup_by(|a, b| a.0 == b.0);
        let (disk, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        for (name, bytes) in &files {
            let path = disk.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, bytes).unwrap();
        }
        let with_prefix: Vec<_> = files.iter().map(|(name, bytes)| (format!("p/q/{name}"), bytes.clone())).collect();
        let (_store, remote) = bucket(&with_prefix, &dir);
        let split = split.then_some(Split::fraction(SplitPart::Train, 0.3));
        let on_disk = crate::sources::folder::Folder::open(&FolderConfig { split, ..folder(disk.path().to_str().unwrap()) });
        let images = Images::open_with(&FolderConfig { split, ..folder("s3://bucket/p/q/") }, |_| Ok(remote.clone()));
        let (on_disk, images) = match (on_disk, images) {
            (Ok(on_disk), Ok(images)) => (on_disk, Arc::new(images)),
            (Err(_), Err(_)) => return Ok(()),
            (on_disk, images) => panic!("{:?} on disk, {:?} in the bucket", on_disk.err(), images.err()),
        };
        prop_assert_eq!(on_disk.fingerprint(), images.fingerprint());
        prop_assert_eq!(on_disk.classes(), images.classes());
        prop_assert_eq!(IndexedSource::len(&on_disk), images.len());
        let reader = images.clone().reader(&ReaderConfig::default()).unwrap();
        let told = submit(&*reader, 0..images.len());
        for (index, record) in told.iter().take(images.len() as usize) {
            prop_assert_eq!(IndexedSource::key(&on_disk, index), IndexedSource::key(&*images, index));
            prop_assert_eq!(on_disk.label(index), images.label(index));
            let path = on_disk.extent(index).unwrap().file;
            prop_assert!(*record.unwrap().bytes == std::fs::read(path).unwrap());
        }
    }
}

#[test]
fn an_image_folder_with_parts_in_a_bucket_is_the_one_on_disk() {
    let (disk, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut files: Vec<(String, Vec<u8>)> = Vec::new();
    for index in 0..40u64 {
        let class = ["a", "b/c"][index as usize % 2];
        files.push((format!("p/q/{class}/{index}.jpg"), noise(index, 100 * index as usize)));
        files
            .push((format!("p/q/{class}/{index}.{}", ["txt", "TXT"][index as usize / 20]), noise(index, 10)));
        files.push((format!("p/q/{class}/{index}.seg.png"), noise(index, 33)));
        files.push((
            format!("p/q/{class}/{index}.json"),
            format!("{{\"n\": {index}, \"l\": [1.5]}}").into_bytes(),
        ));
        files.push((format!("p/q/masks/{class}/{index}.png"), noise(index, 44)));
        if index % 3 > 0 {
            files.push((format!("p/depth/{class}/{index}.png"), noise(index, 55)));
        }
    }
    files.sort();
    for (name, bytes) in &files {
        let path = disk.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }
    let (store, remote) = bucket(&files, &dir);
    let wanted = [
        Wanted::own_image(),
        Wanted::new("txt", WantedKind::Bytes),
        Wanted::new("seg.png", WantedKind::Image),
        Wanted::new("masks/{path}.png", WantedKind::Image),
        Wanted::new("../depth/{path}.png", WantedKind::Image),
        Wanted::new("json:l", WantedKind::Ragged),
        Wanted::new("json:n", WantedKind::Numbers),
    ];
    for wanted in [&wanted[..], &wanted[1..]] {
        let config = |root: &str| FolderConfig { deliver: Some(wanted.to_vec()), ..folder(root) };
        let on_disk =
            crate::sources::folder::Folder::open(&config(disk.path().join("p/q").to_str().unwrap()));
        let on_disk = Arc::new(on_disk.unwrap());
        let images =
            Arc::new(Images::open_with(&config("s3://bucket/p/q/"), |_| Ok(remote.clone())).unwrap());
        assert_eq!((on_disk.fingerprint(), on_disk.schema()), (images.fingerprint(), images.schema()));
        assert_eq!((IndexedSource::len(&*on_disk), on_disk.classes()), (40, images.classes()));
        let read = |reader: Box<dyn Reader>| {
            let told = submit(&*reader, 0..40);
            let mut all: Vec<_> =
                told.iter().take(40).map(|(index, record)| (index, record.unwrap().bytes.to_vec())).collect();
            all.sort();
            all
        };
        let all = read(images.clone().reader(&ReaderConfig::default()).unwrap());
        assert!(all == read(on_disk.clone().reader(&ReaderConfig::default()).unwrap()));
        let schema = images.schema();
        for (index, bytes) in &all {
            let parts = schema.cut(bytes).unwrap().parts;
            let lacking: Vec<usize> = (0..parts.len()).filter(|&at| parts[at].is_none()).collect();
            let n = IndexedSource::key(&*images, *index)
                .rsplit('/')
                .next()
                .unwrap()
                .split('.')
                .next()
                .unwrap()
                .parse::<u64>();
            assert_eq!(lacking, if n.unwrap() % 3 > 0 { vec![] } else { vec![3] });
        }
    }
    let config = |part: &str| FolderConfig {
        deliver: Some(vec![Wanted::own_image(), Wanted::new(part, WantedKind::Image)]),
        ..folder("s3://bucket/p/q")
    };
    let open = |part: &str| Images::open_with(&config(part), |_| Ok(remote.clone()));
    for (part, why) in [
        ("../../../{stem}.png", "same bucket"),
        ("../nothing/{stem}.png", "there is no object s3://bucket/p/nothing/0.png"),
        ("png", "other files there end in .json .txt"),
    ] {
        let error = open(part).err().unwrap().to_string();
        assert!(error.contains(why), "{error}");
    }
    // One that nobody has read, so that no cache has it.
    let put = |seed| {
        let path = object_store::path::Path::from("p/depth/a/0.png");
        remote.runtime.block_on(async { store.put(&path, PutPayload::from(noise(seed, 55))).await.unwrap() })
    };
    put(1);
    let images = Arc::new(open("../depth/{path}.png").unwrap());
    put(2);
    let index = (0..80).find(|&index| IndexedSource::key(&*images, index) == "a/0.jpg").unwrap();
    let reader = images.clone().reader(&ReaderConfig::default()).unwrap();
    let (_, result) = submit(&*reader, index..index + 1).recv().unwrap();
    assert_eq!(result.unwrap_err().kind(), ReadErrorKind::Changed);
}

#[test]
fn an_image_replaced_after_the_list_was_made_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let files: Vec<_> = (0..3).map(|index| (format!("a/{index}.jpg"), noise(index, 1000))).collect();
    let (store, remote) = bucket(&files, &dir);
    let images = Images::open_with(&folder("s3://bucket"), |_| Ok(remote.clone())).unwrap();
    let images = Arc::new(images);
    remote.runtime.block_on(async {
        store
            .put(&object_store::path::Path::from("a/1.jpg"), PutPayload::from(noise(9, 1000)))
            .await
            .unwrap();
        store.delete(&object_store::path::Path::from("a/2.jpg")).await.unwrap();
    });
    let reader = images.clone().reader(&ReaderConfig::default()).unwrap();
    for (index, result) in submit(&*reader, 0..3).iter().take(3) {
        match (index, result) {
            (0, Ok(record)) => assert!(*record.bytes == *noise(0, 1000)),
            (1, Err(error)) => {
                assert_eq!(error.kind(), ReadErrorKind::Changed);
                assert!(error.to_string().starts_with("a/1.jpg: s3://bucket/a/1.jpg has changed"), "{error}");
            }
            (2, Err(error)) => assert_eq!(error.kind(), ReadErrorKind::Gone),
            (index, result) => panic!("{index}: {result:?}"),
        }
    }
    let classes = FolderConfig { classes: Some(vec!["b".into()]), label: None, ..folder("s3://bucket") };
    let error = Images::open_with(&classes, |_| Ok(remote.clone())).unwrap_err().to_string();
    assert!(error.contains("bucket/a is not in the list of classes (b)"), "{error}");
    let error =
        Images::open_with(&folder("s3://bucket/none/"), |_| Ok(remote.clone())).unwrap_err().to_string();
    assert!(error.contains("no images below s3://bucket/none/"), "{error}");
}
