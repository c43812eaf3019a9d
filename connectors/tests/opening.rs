//! An opening that takes long says how far it has come, and ends soon when it is told to stop, with nothing half done
//! left.

use std::fs;
use std::io::Write;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use flate2::Compression;
use flate2::write::GzEncoder;
use fuelrail_connectors::{
    CacheConfig, Counted, FolderConfig, IndexedSource, Opening, Progress, SourceConfig, SourceError,
    TableConfig, TarConfig, open, open_watched,
};

/// Promised within a second; a watchdog, not a measurement.
const SOON: Duration = Duration::from_secs(10);

fn tar(shards: &Path, root: &Path) -> SourceConfig {
    SourceConfig::Tar(TarConfig {
        shards: vec![shards.display().to_string()],
        cache: CacheConfig { dir: Some(root.join("cache")), limit_bytes: None },
        ..TarConfig::default()
    })
}

/// A tar file of so many images of this size, written to `out`.
fn write_tar(out: &mut dyn Write, members: usize, size: usize) {
    let padded = size.next_multiple_of(512);
    for number in 0..members {
        let mut header = [0u8; 512];
        let name = format!("{number:08}.jpg");
        header[..name.len()].copy_from_slice(name.as_bytes());
        header[100..108].copy_from_slice(b"0000644\0");
        header[124..136].copy_from_slice(format!("{size:011o}\0").as_bytes());
        header[136..148].copy_from_slice(b"00000000000\0");
        header[148..156].fill(b' ');
        header[156] = b'0';
        header[257..265].copy_from_slice(b"ustar\x0000");
        let sum: u32 = header.iter().map(|&b| u32::from(b)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        out.write_all(&header).unwrap();
        out.write_all(&vec![b'x'; padded]).unwrap();
    }
    out.write_all(&[0; 1024]).unwrap();
}

/// What becomes of an opening, and everything that it said meanwhile; `look` may cancel it. Opens again until something
/// was seen: on a machine that is busy a whole opening may pass between two looks.
fn watch(
    config: &SourceConfig,
    forget: &dyn Fn(),
    look: impl Fn(&Opening, &Progress),
) -> (Result<Arc<dyn IndexedSource>, SourceError>, Vec<Progress>) {
    loop {
        let opening = Opening::new();
        let (tell, told) = mpsc::channel();
        let mut seen: Vec<Progress> = Vec::new();
        let result = thread::scope(|scope| {
            scope.spawn(|| tell.send(open_watched(config, &opening)).unwrap());
            loop {
                match told.try_recv() {
                    Ok(result) => return result,
                    Err(_) => thread::yield_now(),
                }
                if let Some(progress) = opening.progress()
                    && seen.last() != Some(&progress)
                {
                    look(&opening, &progress);
                    seen.push(progress);
                }
            }
        });
        if !seen.is_empty() {
            return (result, seen);
        }
        drop(result);
        forget();
    }
}

/// Every file below a folder.
fn files(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let paths = entries.map(|entry| entry.unwrap().path());
    paths.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

/// Names in a cache that somebody was in the middle of.
fn half_done(root: &Path) -> Vec<PathBuf> {
    let is_half = |path: &PathBuf| {
        let name = path.file_name().unwrap().to_string_lossy();
        name.starts_with("tmp-") || name.ends_with(".tmp") || name.ends_with(".lease")
    };
    files(&root.join("cache")).into_iter().filter(is_half).collect()
}

/// A place that takes requests and answers none.
struct Silent {
    address: String,
    connections: Arc<Mutex<Vec<TcpStream>>>,
}

impl Silent {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let connections = Arc::new(Mutex::new(Vec::new()));
        let kept = connections.clone();
        // It ends with the test's process.
        thread::spawn(move || {
            listener.incoming().flatten().for_each(|stream| kept.lock().unwrap().push(stream))
        });
        Self { address, connections }
    }

    fn wait_for_one(&self) {
        let begun = Instant::now();
        while self.connections.lock().unwrap().is_empty() {
            assert!(begun.elapsed() < SOON, "nobody asks");
            thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Drop for Silent {
    fn drop(&mut self) {
        for stream in self.connections.lock().unwrap().iter() {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

#[test]
fn a_shard_with_many_members_tells_how_far_its_index_is() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("train.tar");
    write_tar(&mut std::io::BufWriter::new(fs::File::create(&path).unwrap()), 60_000, 100);
    let size = fs::metadata(&path).unwrap().len();
    let forget = || fs::remove_dir_all(root.path().join("cache")).unwrap();
    let (source, seen) = watch(&tar(&path, root.path()), &forget, |_, _| {});
    assert_eq!(source.unwrap().len(), 60_000);
    let indexing: Vec<&Progress> = seen.iter().filter(|now| now.what == "indexing shards").collect();
    assert!(!indexing.is_empty(), "{seen:?}");
    assert!(indexing.iter().all(|now| now.total == Some(size) && now.counted == Counted::Bytes), "{seen:?}");
    assert!(indexing.windows(2).all(|pair| pair[0].done <= pair[1].done), "{seen:?}");
    assert!(indexing.iter().all(|now| now.done <= size), "{seen:?}");
}

#[test]
fn an_index_that_is_cancelled_is_not_kept_and_the_next_opening_makes_it() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("train.tar");
    write_tar(&mut std::io::BufWriter::new(fs::File::create(&path).unwrap()), 60_000, 100);
    let config = tar(&path, root.path());
    let forget = || fs::remove_dir_all(root.path().join("cache")).unwrap();
    let (result, seen) = watch(&config, &forget, |opening, _| opening.cancel());
    let error = result.err().expect("it was cancelled");
    assert!(error.is_cancelled(), "{error}; {seen:?}");
    assert!(half_done(root.path()).is_empty(), "{:?}", half_done(root.path()));
    assert_eq!(open(&config).unwrap().len(), 60_000);
}

#[test]
fn unpacking_that_is_cancelled_leaves_no_piece_of_a_shard() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("train.tar.gz");
    let mut packed = GzEncoder::new(fs::File::create(&path).unwrap(), Compression::fast());
    write_tar(&mut packed, 40, 4 << 20);
    packed.finish().unwrap();
    let config = tar(&path, root.path());
    let forget = || fs::remove_dir_all(root.path().join("cache")).unwrap();
    let unpacking = |now: &Progress| now.what == "unpacking shards";
    let (result, seen) = watch(&config, &forget, |opening, now| {
        if unpacking(now) && now.done > 0 {
            opening.cancel();
        }
    });
    assert!(seen.iter().any(unpacking), "{seen:?}");
    assert!(result.err().expect("it was cancelled").is_cancelled(), "{seen:?}");
    assert!(half_done(root.path()).is_empty(), "{:?}", half_done(root.path()));
    assert!(!files(root.path()).iter().any(|path| path.extension().is_some_and(|ending| ending == "tar")));
    assert_eq!(open(&config).unwrap().len(), 40);
}

#[test]
fn whoever_waits_for_another_that_unpacks_can_be_cancelled() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("train.tar.gz");
    let mut packed = GzEncoder::new(fs::File::create(&path).unwrap(), Compression::fast());
    write_tar(&mut packed, 1, 10);
    packed.finish().unwrap();
    let config = tar(&path, root.path());
    open(&config).unwrap();
    let lock = root.path().join("cache/fuelrail-cache/unpacked.fuelrail/lock");
    let held = fs::File::options().write(true).open(lock).unwrap();
    rustix::fs::flock(&held, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let (result, seen) = watch(&config, &|| (), |opening, now| {
        // Not before: looking at the files comes first.
        if now.what.contains("another process") {
            opening.cancel();
        }
    });
    assert!(seen.iter().any(|now| now.what.contains("another process")), "{seen:?}");
    assert!(result.err().expect("it was cancelled").is_cancelled(), "{seen:?}");
    drop(held);
    assert_eq!(open(&config).unwrap().len(), 1);
}

#[test]
fn a_server_that_does_not_answer_does_not_hold_up_the_end() {
    let root = tempfile::tempdir().unwrap();
    let cache = CacheConfig { dir: Some(root.path().join("cache")), limit_bytes: None };
    for name in ["x.tar", "x.tar.gz", "x.parquet", "x.csv"] {
        let server = Silent::start();
        let url = vec![format!("{}/{name}", server.address)];
        let config = if name.contains(".tar") {
            SourceConfig::Tar(TarConfig { shards: url, cache: cache.clone(), ..TarConfig::default() })
        } else {
            SourceConfig::Table(TableConfig { files: url, cache: cache.clone(), ..TableConfig::default() })
        };
        let opening = Opening::new();
        thread::scope(|scope| {
            let opener = scope.spawn(|| open_watched(&config, &opening).err().expect("it was cancelled"));
            server.wait_for_one();
            let cancelled = Instant::now();
            opening.cancel();
            assert!(opener.join().unwrap().is_cancelled(), "{name}");
            assert!(cancelled.elapsed() < SOON, "{name}: {:?}", cancelled.elapsed());
        });
        assert!(half_done(root.path()).is_empty(), "{name}: {:?}", half_done(root.path()));
    }
}

#[test]
fn folders_and_tables_count_what_they_read_and_stop() {
    let root = tempfile::tempdir().unwrap();
    for class in 0..40 {
        fs::create_dir_all(root.path().join(format!("images/{class}"))).unwrap();
        for image in 0..100 {
            fs::write(root.path().join(format!("images/{class}/{image}.jpg")), b"x").unwrap();
        }
    }
    let mut text = String::from("value,label\n");
    (0..400_000).for_each(|row| text.push_str(&format!("{row},{}\n", row % 10)));
    fs::write(root.path().join("table.csv"), text).unwrap();
    let folder = FolderConfig {
        root: root.path().join("images"),
        classes: None,
        label: None,
        split: None,
        deliver: None,
        cache: CacheConfig::default(),
    };
    let table = TableConfig {
        files: vec![root.path().join("table.csv").display().to_string()],
        fields: Some(vec!["value".into()]),
        ..TableConfig::default()
    };
    for (config, len, what) in [
        (SourceConfig::Folder(folder), 4000, "walking the folder"),
        (SourceConfig::Table(table), 400_000, "reading t"),
    ] {
        let (source, seen) = watch(&config, &|| (), |_, _| {});
        assert_eq!(source.unwrap().len(), len);
        assert!(seen.iter().any(|now| now.what.starts_with(what)), "{seen:?}");
        let (result, seen) = watch(&config, &|| (), |opening, _| opening.cancel());
        assert!(result.err().expect("it was cancelled").is_cancelled(), "{what}: {seen:?}");
    }
}
