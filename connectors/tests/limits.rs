//! What happens when the process runs out of descriptors. Alone in its process, for it lowers the limit of all of it.

use std::fs;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use fuelrail_connectors::{
    Backend, CacheConfig, FolderConfig, ReadError, ReadErrorKind, ReadRequest, Reader, ReaderConfig, Record,
    SourceConfig, open,
};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

fn submit(reader: &dyn Reader, count: u64) -> mpsc::Receiver<Result<Record, ReadError>> {
    let (tell, told) = mpsc::channel();
    let request = |index| {
        let tell = tell.clone();
        ReadRequest { index, done: Box::new(move |result| tell.send(result).unwrap()) }
    };
    reader.submit((0..count).map(request).collect());
    told
}

#[test]
fn a_lack_of_descriptors_is_waited_for_then_reported_and_does_not_touch_io_uring() {
    let root = tempfile::tempdir().unwrap();
    fs::create_dir(root.path().join("a")).unwrap();
    for index in 0..20 {
        fs::write(root.path().join(format!("a/{index:02}.jpg")), [index]).unwrap();
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
    let reader = |backend| source.clone().reader(&ReaderConfig { backend, depth: 4 });
    let (ring, threads) = (reader(Backend::IoUring), reader(Backend::Threads).unwrap());

    let usual = getrlimit(Resource::Nofile);
    // Descriptors are given out from the lowest free number, so no new one fits below 3 once 0 to 2 are taken.
    setrlimit(Resource::Nofile, Rlimit { current: Some(3), ..usual }).unwrap();
    match &ring {
        Ok(ring) => assert_eq!(submit(&**ring, 20).iter().map(Result::unwrap).count(), 20),
        Err(error) => eprintln!("skipped for io_uring: {error}"),
    }

    let error = submit(&*threads, 1).recv().unwrap().unwrap_err();
    assert_eq!((error.kind(), error.is_transient()), (ReadErrorKind::Io, true));
    let text = error.to_string();
    assert!(text.starts_with("a/00.jpg: ") && text.contains("also when tried again"), "{text}");
    assert!(text.contains("ulimit -n"), "{text}");

    let threads: Arc<dyn Reader> = Arc::from(threads);
    let told = submit(&*threads, 4);
    thread::sleep(Duration::from_millis(20));
    setrlimit(Resource::Nofile, usual).unwrap();
    assert_eq!(told.iter().map(Result::unwrap).count(), 4, "a shortage that passes is not noticed");
}
