//! How long a folder takes to open, and what its manifest costs.
//!
//! `cargo run --release -p fuelrail-connectors --example manifest -- FOLDER [READS [BACKEND [DEPTH]]]`
//!
//! With READS, so many records spread over the source are read as well, by `auto`, `io_uring` or `threads`.

use std::env;
use std::error::Error;
use std::sync::mpsc;
use std::time::Instant;

use fuelrail_connectors::{
    Backend, CacheConfig, FolderConfig, ReadRequest, ReaderConfig, SourceConfig, open,
};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = env::args().skip(1);
    let root = arguments.next().ok_or("give a folder")?;
    let reads: u64 = arguments.next().map_or(Ok(0), |reads| reads.parse())?;
    let backend = match arguments.next().as_deref() {
        None | Some("auto") => Backend::Auto,
        Some("io_uring") => Backend::IoUring,
        Some("threads") => Backend::Threads,
        Some(other) => return Err(format!("no backend {other}: auto, io_uring or threads").into()),
    };
    let depth = arguments.next().map_or(Ok(32), |depth| depth.parse())?;

    let begin = Instant::now();
    let source = open(&SourceConfig::Folder(FolderConfig {
        root: root.into(),
        classes: None,
        label: None,
        split: None,
        deliver: None,
        cache: CacheConfig::default(),
    }))?;
    println!(
        "{} records in {} classes, opened in {:.3} s, {:.1} bytes each, fingerprint {}",
        source.len(),
        source.classes().len(),
        begin.elapsed().as_secs_f64(),
        source.memory() as f64 / source.len() as f64,
        source.fingerprint()
    );
    if reads == 0 {
        return Ok(());
    }

    let reader = source.clone().reader(&ReaderConfig { backend, depth })?;
    let (tell, told) = mpsc::sync_channel(256);
    let len = source.len();
    let request = |number: u64| {
        let tell = tell.clone();
        // A stride near the golden section visits the source evenly, and each record once if the two have no divisor.
        let index = (number * ((len * 618 / 1000) | 1)) % len;
        ReadRequest { index, done: Box::new(move |result| drop(tell.send(result))) }
    };
    let begin = Instant::now();
    for first in (0..reads).step_by(128) {
        // At most 128 in flight: what a pipeline's byte budget does.
        let requests: Vec<_> = (first..reads.min(first + 128)).map(request).collect();
        let count = requests.len();
        reader.submit(requests);
        for _ in 0..count {
            told.recv()??;
        }
    }
    let seconds = begin.elapsed().as_secs_f64();
    let stats = reader.stats();
    println!(
        "{}: {} reads in {seconds:.3} s, {:.0} a second, {:.0} MB/s, {:.1} reads per submission, busy {:.0} %",
        stats.backend,
        stats.reads,
        stats.reads as f64 / seconds,
        stats.bytes as f64 / seconds / 1e6,
        stats.reads as f64 / stats.submissions as f64,
        stats.busy_ns as f64 / seconds / 1e7
    );
    Ok(())
}
