//! What every source promises, asked through the public interface. Each kind's tests run it on every variant they make.
#![allow(dead_code, reason = "each test program uses a part of it")]

use std::collections::HashSet;
use std::fs;
use std::sync::{Arc, mpsc};

use fuelrail_connectors::{
    Backend, Blocks, IndexedSource, PartKind, ReadError, ReadRequest, Reader, ReaderConfig, Record, Schema,
    SourceConfig, open,
};

/// Asks for records and returns what became of them, in the order in which they ended.
pub fn ask(
    reader: &dyn Reader,
    indices: impl IntoIterator<Item = u64>,
) -> Vec<(u64, Result<Record, ReadError>)> {
    let (tell, told) = mpsc::channel();
    let request = |index| {
        let tell = tell.clone();
        ReadRequest { index, done: Box::new(move |result| tell.send((index, result)).expect("the test")) }
    };
    reader.submit(indices.into_iter().map(request).collect());
    drop(tell);
    told.iter().collect()
}

/// What becomes of each record, by index, when all are asked for in a mixed order.
pub fn try_all(
    source: &Arc<dyn IndexedSource>,
    backend: Backend,
    depth: u32,
) -> Vec<Result<Vec<u8>, ReadError>> {
    let reader = source.clone().reader(&ReaderConfig { backend, depth }).expect("a reader");
    let len = source.len();
    assert!(!len.is_multiple_of(7919), "so that the numbers below are a permutation");
    let mut all: Vec<Option<Result<Vec<u8>, ReadError>>> = (0..len).map(|_| None).collect();
    for (index, result) in ask(&*reader, (0..len).map(|number| number * 7919 % len)) {
        if let Ok(record) = &result {
            assert_eq!(record.index, index);
        }
        let old = all[index as usize].replace(result.map(|record| record.bytes.to_vec()));
        assert!(old.is_none(), "record {index} came twice");
    }
    let good = all.iter().flatten().filter(|result| result.is_ok()).count() as u64;
    assert_eq!(reader.stats().reads, good);
    all.into_iter().map(|result| result.expect("every request ended")).collect()
}

/// The bytes of all records, by index.
pub fn read_all(source: &Arc<dyn IndexedSource>, backend: Backend, depth: u32) -> Vec<Vec<u8>> {
    try_all(source, backend, depth).into_iter().map(|result| result.expect("a record")).collect()
}

/// Whether [`IndexedSource::size`] says what a single record has, or what the records of a block have on average.
#[derive(Clone, Copy, PartialEq)]
pub enum Sizes {
    /// Each is exact or an upper bound.
    Bounds,
    /// Their sum is an upper bound (tables).
    Estimates,
}

/// Whether a record is cut apart again into what its schema says.
fn has_the_parts_it_should(schema: &Schema, bytes: &[u8]) {
    let cut = schema.cut(bytes).expect("a record of the schema");
    assert_eq!((cut.parts.len(), cut.fields.len()), (schema.parts.len(), schema.fields_bytes()));
    let lengths = cut.parts.iter().map(|part| part.map(<[u8]>::len));
    assert_eq!(schema.record_bytes(cut.image.len(), lengths), bytes.len());
    for (spec, part) in schema.parts.iter().zip(&cut.parts) {
        let Some(part) = part else { continue };
        if let PartKind::Ragged { dtype, row } = &spec.kind {
            let bytes = row.iter().product::<u64>() as usize * dtype.size();
            assert_eq!(part.len() % bytes.max(1), 0, "{spec:?}: rows are whole");
        }
    }
    let mut record = vec![0; bytes.len()];
    schema.join(cut.image, cut.parts.iter().copied(), cut.fields, &mut record);
    assert_eq!(record, bytes);
}

/// The named parts of records.
pub fn parts_of(schema: &Schema, records: &[Vec<u8>]) -> Vec<Vec<Option<Vec<u8>>>> {
    let own = |part: Option<&[u8]>| part.map(<[u8]>::to_vec);
    let parts = |record: &Vec<u8>| {
        schema.cut(record).expect("a record of the schema").parts.into_iter().map(own).collect()
    };
    records.iter().map(parts).collect()
}

/// The suite. Hands the source and its records back.
pub fn conforms(config: &SourceConfig, sizes: Sizes) -> (Arc<dyn IndexedSource>, Vec<Vec<u8>>) {
    let source = open(config).expect("a source");
    let again = open(config).expect("a source");
    let len = source.len();
    assert!(len > 0 && !source.is_empty());
    assert_eq!((len, source.fingerprint()), (again.len(), again.fingerprint()));
    assert!(source.memory() > 0);
    source.schema().check(source.is_labelled()).expect("a schema");

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
    if let Blocks::Lengths { lengths, lanes, window } = source.blocks() {
        assert_eq!(lengths.iter().sum::<u64>(), len);
        assert!(lengths.iter().all(|&length| length > 0) && lanes > 0 && window > 0);
    }

    let threads = read_all(&source, Backend::Threads, 3);
    for (index, bytes) in threads.iter().enumerate() {
        let index = index as u64;
        assert!(sizes == Sizes::Estimates || bytes.len() as u64 <= source.size(index));
        has_the_parts_it_should(&source.schema(), bytes);
        if let Some(extent) = source.extent(index) {
            let file = fs::read(&extent.file).expect("the file of an extent");
            assert_eq!(*bytes, file[extent.offset as usize..][..extent.len as usize]);
        }
    }
    let total: u64 = threads.iter().map(|bytes| bytes.len() as u64).sum();
    assert!(total <= (0..len).map(|index| source.size(index)).sum());
    for depth in [1, 64] {
        let other = read_all(&again, Backend::Auto, depth);
        assert!(threads == other, "the bytes depend on no backend and no depth");
    }
    (source, threads)
}
