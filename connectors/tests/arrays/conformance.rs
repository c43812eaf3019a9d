//! What `sources.rs` asks of every source, with the source and its records handed back.
use std::collections::HashSet;
use std::fs;
use std::sync::{Arc, mpsc};

use fuelrail_connectors::{Backend, Blocks, IndexedSource, ReadRequest, ReaderConfig, SourceConfig, open};

/// Reads all records in a mixed order and returns them by index.
pub fn read_all(source: &Arc<dyn IndexedSource>, backend: Backend, depth: u32) -> Vec<Vec<u8>> {
    let reader = source.clone().reader(&ReaderConfig { backend, depth }).expect("a reader");
    let (tell, told) = mpsc::channel();
    let len = source.len();
    let request = |number: u64| {
        let (index, tell) = (number * 7919 % len, tell.clone());
        ReadRequest {
            index,
            done: Box::new(move |result| tell.send(result.expect("a record")).expect("the test")),
        }
    };
    assert!(!len.is_multiple_of(7919), "so that the numbers above are a permutation");
    reader.submit((0..len).map(request).collect());
    drop(tell);
    let mut all = vec![None; len as usize];
    for record in told {
        let old = all[record.index as usize].replace(record.bytes.to_vec());
        assert!(old.is_none(), "record {} came twice", record.index);
    }
    assert_eq!(reader.stats().reads, len);
    all.into_iter().map(|bytes| bytes.expect("every record came")).collect()
}

pub fn conforms(config: &SourceConfig) -> (Arc<dyn IndexedSource>, Vec<Vec<u8>>) {
    let source = open(config).expect("a source");
    let again = open(config).expect("a source");
    let len = source.len();
    assert!(len > 0 && !source.is_empty());
    assert_eq!(len, again.len());
    assert_eq!(source.fingerprint(), again.fingerprint());
    assert!(source.memory() > 0);
    source.schema().check().expect("a schema");
    let mut keys = HashSet::new();
    for index in 0..len {
        let key = source.key(index);
        assert_eq!(key, again.key(index));
        assert_eq!((source.label(index), source.size(index)), (again.label(index), again.size(index)));
        if !source.classes().is_empty() {
            assert!((0..source.classes().len() as i64).contains(&source.label(index)));
        }
        if let Some(extent) = source.extent(index) {
            assert_eq!(extent.len, source.size(index));
        }
        assert!(keys.insert(key), "keys are unique");
    }
    if let Blocks::Lengths { lengths, .. } = source.blocks() {
        assert_eq!(lengths.iter().sum::<u64>(), len);
        assert!(lengths.iter().all(|&length| length > 0));
    }
    let threads = read_all(&source, Backend::Threads, 3);
    for (index, bytes) in threads.iter().enumerate() {
        let index = index as u64;
        assert!(bytes.len() as u64 <= source.size(index));
        assert!(source.schema().split(bytes).is_some());
        if let Some(extent) = source.extent(index) {
            let file = fs::read(&extent.file).expect("the file of an extent");
            assert_eq!(*bytes, file[extent.offset as usize..][..extent.len as usize]);
        }
    }
    for depth in [1, 64] {
        assert!(
            threads == read_all(&again, Backend::Auto, depth),
            "the bytes depend on no backend and no depth"
        );
    }
    (source, threads)
}
