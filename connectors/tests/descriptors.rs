//! Readers use a constant number of descriptors and leave none behind. Alone in its process, for it counts them all.

use std::fs;
use std::sync::mpsc;

use fuelrail_connectors::{
    Backend, CacheConfig, FolderConfig, ReadRequest, ReaderConfig, SourceConfig, open,
};

fn descriptors() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

#[test]
fn readers_leave_no_descriptor_open() {
    let root = tempfile::tempdir().unwrap();
    fs::create_dir(root.path().join("a")).unwrap();
    for index in 0..100 {
        fs::write(root.path().join(format!("a/{index}.jpg")), vec![1; 10_000]).unwrap();
    }
    let config = SourceConfig::Folder(FolderConfig {
        root: root.path().to_owned(),
        classes: None,
        label: None,
        split: None,
        deliver: None,
        cache: CacheConfig::default(),
    });
    let source = open(&config).unwrap();
    let before = descriptors();
    for round in 0..40 {
        for backend in [Backend::Auto, Backend::Threads] {
            let reader = source.clone().reader(&ReaderConfig { backend, depth: 16 }).unwrap();
            let (tell, told) = mpsc::channel();
            let request = |number: u64| {
                let tell = tell.clone();
                let done = move |result: Result<_, _>| tell.send(result.is_ok()).unwrap_or(());
                ReadRequest { index: number % 100, done: Box::new(done) }
            };
            reader.submit((0..1000).map(request).collect());
            assert!(told.iter().take(round * 20).all(|read| read));
            // One for the root, at most two for the ring and its wake-up, and files in 16 threads.
            assert!(descriptors() <= before + 1 + 16, "{} from {before}", descriptors());
            drop(reader);
        }
    }
    // The kernel takes down a ring a little after its last descriptor is closed; the descriptor itself goes at once.
    assert_eq!(descriptors(), before);
}
