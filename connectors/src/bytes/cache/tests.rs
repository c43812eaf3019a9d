//! What a cache folder survives: killed writers, several at once, a full disk, files of others.

use std::process::{Child, Command, Stdio};
use std::time::SystemTime;

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use xxhash_rust::xxh3::xxh3_64;

use super::*;

fn config(dir: &Path) -> CacheConfig {
    CacheConfig { dir: Some(dir.to_owned()), limit_bytes: None }
}

fn cache(dir: &Path, limit: u64) -> Arc<Cache> {
    open(&CacheConfig { limit_bytes: Some(limit), ..config(dir) }).unwrap()
}

fn block(object: u64, number: u32) -> BlockId {
    BlockId { object: u128::from(xxh3_64(&object.to_le_bytes())) << 64 | u128::from(object), number }
}

/// The bytes that belong to a block, so that whoever finds one knows what must be in it.
fn bytes_of(id: BlockId) -> Vec<u8> {
    let seed = id.object as u64 ^ u64::from(id.number);
    let len = xxh3_64(&seed.to_le_bytes()) % 300_000 + 1;
    (0..len.div_ceil(8))
        .flat_map(|at| xxh3_64(&[seed, at].map(u64::to_le_bytes).concat()).to_le_bytes())
        .collect()
}

/// Every block in the folder is whole; returns the bytes of all files and the number of blocks.
fn check(cache: &Cache) -> (u64, usize) {
    let (mut sum, mut blocks) = (0, 0);
    for entry in fs::read_dir(&cache.dir).unwrap() {
        let entry = entry.unwrap();
        if entry.file_name().to_string_lossy().ends_with(ENDING) {
            sum += entry.metadata().unwrap().len();
        }
        let files = if entry.path().is_dir() { fs::read_dir(entry.path()).unwrap() } else { continue };
        for file in files {
            let file = file.unwrap();
            let name = file.file_name().into_string().unwrap();
            let Some((object, number)) = name.strip_suffix(ENDING).and_then(|name| name.split_once('-'))
            else {
                continue;
            };
            let id = BlockId {
                object: u128::from_str_radix(object, 16).unwrap(),
                number: u32::from_str_radix(number, 16).unwrap(),
            };
            let expected = bytes_of(id);
            let mut found = vec![0; expected.len()];
            assert!(cache.read_block(id, expected.len(), 0, &mut found), "{name} is whole");
            assert!(found == expected, "{name} holds its own bytes");
            sum += file.metadata().unwrap().len();
            blocks += 1;
        }
    }
    (sum, blocks)
}

/// Not a test of its own: what [`writer`] starts. It writes blocks until it is killed.
#[test]
fn a_process_that_writes_until_it_is_killed() {
    let Some(task) = std::env::var("FUELRAIL_TEST_WRITER").ok() else { return };
    let mut parts = task.splitn(3, ' ');
    let mut number = || parts.next().unwrap().parse::<u64>().unwrap();
    let (seed, limit) = (number(), number());
    let cache = cache(Path::new(parts.next().unwrap()), limit);
    for at in 0u32.. {
        let id = block(seed, at);
        assert!(cache.write_block(id, &bytes_of(id)), "the folder can be written");
        // So that whoever kills knows that it has begun.
        println!("wrote {at}");
    }
}

fn writer(dir: &Path, seed: u64, limit: u64) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "bytes::cache::tests::a_process_that_writes_until_it_is_killed", "--nocapture"])
        .env("FUELRAIL_TEST_WRITER", format!("{seed} {limit} {}", dir.display()))
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// Waits until a writer has written some blocks.
fn wait_for(child: &mut Child, blocks: usize) {
    use std::io::BufRead;
    let lines = io::BufReader::new(child.stdout.as_mut().unwrap()).lines();
    let wrote = |line: &io::Result<String>| line.as_ref().is_ok_and(|line| line.contains("wrote"));
    assert_eq!(lines.filter(wrote).take(blocks).count(), blocks, "the writer writes");
}

fn end(mut child: Child) {
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn a_writer_killed_at_any_moment_leaves_whole_blocks_and_the_next_goes_on() {
    let rounds = if std::env::var_os("FUELRAIL_GATE").is_some() { 300 } else { 12 };
    let root = tempfile::tempdir().unwrap();
    let limit = 4_000_000;
    let own = cache(root.path(), limit);
    let mut seen = 0;
    for round in 0..rounds {
        let mut child = writer(root.path(), round, limit);
        wait_for(&mut child, 1 + (xxh3_64(&round.to_le_bytes()) % 20) as usize);
        end(child);
        let (sum, blocks) = check(&own);
        assert!(sum <= limit, "{sum} bytes");
        seen = seen.max(blocks);
        // What a killed writer has left is in nobody's way, and counted until it is old enough to go.
        let id = block(1000 + round, 0);
        assert!(own.write_block(id, &bytes_of(id)));
    }
    assert!(seen > 3);
    for entry in fs::read_dir(&own.dir).unwrap() {
        let path = entry.unwrap().path();
        if path.file_name().unwrap().to_string_lossy().starts_with("tmp-") {
            let hours_ago = SystemTime::now() - Duration::from_secs(7200);
            fs::File::options().write(true).open(path).unwrap().set_modified(hours_ago).unwrap();
        }
    }
    fs::remove_file(own.dir.join("USAGE")).unwrap();
    let id = block(2000, 0);
    assert!(own.write_block(id, &bytes_of(id)));
    let left = fs::read_dir(&own.dir)
        .unwrap()
        .filter(|entry| entry.as_ref().unwrap().file_name().to_string_lossy().starts_with("tmp-"));
    assert_eq!(left.count(), 0, "what killed writers left is deleted");
}

#[test]
fn processes_that_share_a_folder_stay_below_its_limit_together() {
    let root = tempfile::tempdir().unwrap();
    let limit = 5_000_000;
    let own = cache(root.path(), limit);
    let mut children = [writer(root.path(), 1, limit), writer(root.path(), 2, limit)];
    for round in 0..10 {
        for child in &mut children {
            wait_for(child, 8);
        }
        let id = block(3, round);
        assert!(own.write_block(id, &bytes_of(id)));
        // Files change their names while they are counted, so everybody stands still.
        let pids = children.each_ref().map(Pid::from_child);
        for pid in pids {
            kill_process(pid, Signal::STOP).unwrap();
            // Every thread of it: one in a system call goes on to its end.
            let is_stopped = |thread: fs::DirEntry| {
                let stat = fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
                stat.rsplit(')').next().unwrap().trim_start().starts_with('T')
            };
            let stopped = || {
                let threads = fs::read_dir(format!("/proc/{}/task", pid.as_raw_nonzero())).unwrap();
                threads.flatten().all(is_stopped)
            };
            while !stopped() {
                std::thread::yield_now();
            }
        }
        let (sum, blocks) = check(&own);
        assert!(sum <= limit, "{sum} bytes");
        assert!(blocks > 3);
        pids.into_iter().for_each(|pid| kill_process(pid, Signal::CONT).unwrap());
    }
    children.into_iter().for_each(end);
}

#[test]
fn files_of_others_survive_beside_and_inside() {
    let root = tempfile::tempdir().unwrap();
    let limit = 2_000_000;
    let own = cache(root.path(), limit);
    let others = [
        "data/photo.jpg",
        "data/ab/0.fuelrail",
        "0.fuelrail",
        "fuelrail-cache/notes.txt",
        "fuelrail-cache/ab/notes.txt",
        "fuelrail-cache/data/1.fuelrail",
    ];
    for other in others {
        let path = root.path().join(other);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, vec![7; 400_000]).unwrap();
        fs::File::options().write(true).open(path).unwrap().set_modified(SystemTime::UNIX_EPOCH).unwrap();
    }
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("x.fuelrail"), "precious").unwrap();
    std::os::unix::fs::symlink(outside.path(), own.dir.join("cd")).unwrap();
    std::os::unix::fs::symlink(outside.path().join("x.fuelrail"), own.dir.join("y.fuelrail")).unwrap();
    for at in 0..100 {
        let id = block(1, at);
        assert!(own.write_block(id, &bytes_of(id)));
    }
    assert!(others.iter().all(|other| fs::read(root.path().join(other)).unwrap() == vec![7; 400_000]));
    assert_eq!(fs::read(outside.path().join("x.fuelrail")).unwrap(), b"precious");
}

#[test]
fn the_files_read_least_recently_go_first() {
    let root = tempfile::tempdir().unwrap();
    let own = cache(root.path(), 1_000_000);
    let bytes = vec![1; 200_000];
    let ids: [BlockId; 5] = std::array::from_fn(|at| block(at as u64, 0));
    let mut out = [0; 1];
    for (at, id) in ids.iter().enumerate().take(4) {
        assert!(own.write_block(*id, &bytes));
        let path = own.dir.join(format!("{:02x}/{:032x}-00000000.fuelrail", id.object >> 120, id.object));
        let age = Duration::from_secs(3000 - at as u64);
        fs::File::options().write(true).open(path).unwrap().set_modified(SystemTime::now() - age).unwrap();
    }
    assert!(own.read_block(ids[0], bytes.len(), 0, &mut out));
    assert!(own.write_block(ids[4], &bytes));
    let there = ids.map(|id| own.read_block(id, bytes.len(), 0, &mut out));
    assert_eq!(there, [true, false, true, true, true]);
    assert!(!own.write_block(block(9, 0), &vec![1; 300_000]), "a file that is most of the cache is not kept");
    put(&own.dir, "index", &bytes);
    assert_eq!(get(&own.dir, "index", 1 << 20).unwrap(), bytes);
    assert!(check_sum(&own) <= 1_000_000);
}

fn check_sum(cache: &Cache) -> u64 {
    let files =
        |dir: &Path| fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect::<Vec<_>>();
    let all =
        files(&cache.dir).into_iter().flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] });
    all.filter(|path| path.to_string_lossy().ends_with(ENDING))
        .map(|path| path.metadata().unwrap().len())
        .sum()
}

/// A small disk of its own, where this user may mount one.
pub(crate) struct SmallDisk(TempDir);

impl SmallDisk {
    pub(crate) fn mount(bytes: u64) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={bytes}"), "tmpfs"])
            .arg(dir.path())
            .stderr(Stdio::null())
            .status();
        mounted.is_ok_and(|status| status.success()).then(|| Self(dir))
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg(self.0.path()).status();
        assert!(unmounted.is_ok_and(|status| status.success()), "the small disk is unmounted");
    }
}

#[test]
fn a_full_disk_is_no_error_and_what_is_there_stays_readable() {
    let Some(disk) = SmallDisk::mount(1_000_000) else {
        eprintln!("skipped: this user may not mount a small disk");
        return;
    };
    let own = cache(disk.path(), 100_000_000);
    let id = block(0, 0);
    assert!(own.write_block(id, &bytes_of(id)));
    let kept = (1..20).filter(|&at| own.write_block(block(at, 0), &vec![9; 100_000])).count();
    assert!((3..10).contains(&kept), "{kept}");
    assert!(!own.accepts(1), "it is not tried for a while");
    put(&own.dir, "index", &[1; 100_000]);
    assert_eq!(get(&own.dir, "index", 1 << 20), None);
    let mut out = vec![0; bytes_of(id).len()];
    assert!(own.read_block(id, out.len(), 0, &mut out) && out == bytes_of(id));
    assert!(
        fs::read_dir(&own.dir).unwrap().all(|entry| !entry
            .unwrap()
            .path()
            .to_string_lossy()
            .contains("tmp-"))
    );
    *lock(&own.paused) = None;
    fs::remove_file(own.dir.join(format!("{:02x}/{:032x}-00000000.fuelrail", id.object >> 120, id.object)))
        .unwrap();
    let small = block(50, 0);
    assert!(own.write_block(small, b"fits again"));
}

#[test]
fn what_was_put_is_got_and_a_damaged_entry_is_absent() {
    let root = tempfile::tempdir().unwrap();
    let dir = dir(&config(&root.path().join("a/b"))).unwrap();
    assert_eq!(get(&dir, "x.index", 100), None);
    put(&dir, "x.index", b"first");
    put(&dir, "x.index", b"bytes");
    assert_eq!(get(&dir, "x.index", 5).as_deref(), Some(&b"bytes"[..]));
    assert_eq!(get(&dir, "x.index", 4), None, "longer than the caller can use");
    let file = dir.join("x.index.fuelrail");
    let whole = fs::read(&file).unwrap();
    for at in 0..whole.len() {
        let mut damaged = whole.clone();
        damaged[at] ^= 1;
        fs::write(&file, &damaged).unwrap();
        assert_eq!(get(&dir, "x.index", 100), None, "byte {at}");
        fs::write(&file, &whole[..at]).unwrap();
        assert_eq!(get(&dir, "x.index", 100), None, "cut at {at}");
    }
}

#[test]
fn a_folder_with_files_of_others_is_refused_and_one_of_ours_is_taken_again() {
    let root = tempfile::tempdir().unwrap();
    let ours = dir(&config(root.path())).unwrap();
    assert_eq!(dir(&config(root.path())).unwrap(), ours);
    fs::remove_file(ours.join(MARKER)).unwrap();
    fs::write(ours.join("thesis.tex"), "years of work").unwrap();
    let error = dir(&config(root.path())).unwrap_err();
    assert!(error.is_config() && error.to_string().contains("thesis.tex"), "{error}");
    assert!(dir(&config(Path::new("relative"))).unwrap_err().to_string().contains("absolute"));
}

#[test]
fn a_cache_that_cannot_be_written_is_no_error() {
    let root = tempfile::tempdir().unwrap();
    let gone = root.path().join("gone");
    put(&gone, "x", b"bytes");
    assert_eq!(get(&gone, "x", 100), None);
}
