//! HDF5 files through the public interface: files that h5py wrote, files that are damaged, files made to do harm.

mod conformance;

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use fuelrail_connectors::{
    Backend, Hdf5Config, IndexedSource, ReadErrorKind, ReadRequest, ReaderConfig, SourceConfig, Wanted,
    WantedKind, open,
};
use proptest::prelude::*;
use serde::Deserialize;

fn conforms(config: &SourceConfig) -> (Arc<dyn IndexedSource>, Vec<Vec<u8>>) {
    conformance::conforms(config, conformance::Sizes::Bounds)
}

/// One case of `arrays/hdf5_cases.py`.
#[derive(Deserialize)]
struct Case {
    name: String,
    files: Vec<CaseFile>,
    config: serde_json::Map<String, serde_json::Value>,
    sizes: Vec<usize>,
    records: String,
    labels: Vec<i64>,
    classes: Vec<String>,
}

#[derive(Deserialize)]
struct CaseFile {
    name: String,
    hex: String,
}

fn unpack(hex: &str) -> Vec<u8> {
    let packed: Vec<u8> =
        (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).expect("hex")).collect();
    let mut bytes = Vec::new();
    flate2::read::ZlibDecoder::new(&packed[..]).read_to_end(&mut bytes).expect("zlib");
    bytes
}

fn committed() -> Vec<Case> {
    serde_json::from_str(include_str!("arrays/hdf5_cases.json")).expect("cases")
}

impl Case {
    fn config(&self, root: &Path) -> Hdf5Config {
        for file in &self.files {
            fs::write(root.join(&file.name), unpack(&file.hex)).expect("a file");
        }
        let mut config = self.config.clone();
        config.insert("files".into(), serde_json::json!([root]));
        serde_json::from_value(config.into()).expect("a configuration")
    }

    fn check(&self) {
        println!("{}", self.name);
        let root = tempfile::tempdir().expect("a folder");
        let (source, records) = conforms(&SourceConfig::Hdf5(self.config(root.path())));
        let expected = unpack(&self.records);
        let mut rest = &expected[..];
        assert_eq!(records.len(), self.sizes.len(), "{}", self.name);
        for (index, (record, size)) in records.iter().zip(&self.sizes).enumerate() {
            let (now, later) = rest.split_at(*size);
            assert!(record == now, "{}: record {index} is {record:?}, and {now:?} is expected", self.name);
            assert_eq!(source.label(index as u64), self.labels[index], "{}: label {index}", self.name);
            rest = later;
        }
        assert_eq!(source.classes(), self.classes, "{}", self.name);
    }
}

fn case(name: &str) -> Case {
    committed().into_iter().find(|case| case.name == name).expect("a case of this name")
}

#[test]
fn files_of_h5py_are_read_as_h5py_reads_them() {
    committed().iter().for_each(Case::check);
}

#[test]
fn every_combination_of_h5py_is_read_where_it_has_been_made() {
    let Ok(path) = std::env::var("FUELRAIL_HDF5_CASES") else {
        println!("skipped: FUELRAIL_HDF5_CASES names no file made by arrays/hdf5_cases.py --all");
        return;
    };
    let text = fs::read_to_string(path).expect("the file of cases");
    let cases: Vec<Case> = serde_json::from_str(&text).expect("cases");
    cases.iter().for_each(Case::check);
}

#[test]
fn a_part_that_a_file_cannot_give_is_refused_by_name() {
    let root = tempfile::tempdir().unwrap();
    let named = committed().into_iter().find(|case| case.name.starts_with("named")).expect("a case");
    let config = named.config(root.path());
    let refused = |part: &str, kind| {
        error(Hdf5Config { deliver: Some(vec![Wanted::new(part, kind)]), image: None, ..config.clone() })
    };
    for (part, kind, why) in [
        ("train/captoin", WantedKind::Text, "; did you mean \"train/caption\"?"),
        ("train/caption", WantedKind::Ragged, "cannot be rows of numbers (train/caption: text [9])"),
        ("train/boxes", WantedKind::Text, "cannot be text (train/boxes: f32 of any length [9])"),
        ("train/padded", WantedKind::Image, "holds no images"),
        ("train/score", WantedKind::Ragged, "without max_rows"),
        ("train/caption", WantedKind::Numbers, "only numbers can be fields"),
    ] {
        let text = refused(part, kind);
        assert!(text.contains(why) && text.contains(part), "{text}");
    }
    let odd = Wanted { row: Some(vec![3]), ..Wanted::new("train/boxes", WantedKind::Ragged) };
    let config = Hdf5Config { deliver: Some(vec![odd]), ..config };
    let source = open(&SourceConfig::Hdf5(config)).unwrap();
    let records = conformance::try_all(&source, Backend::Threads, 2);
    let error = records[1].as_ref().unwrap_err().to_string();
    assert!(
        error.contains("part \"train/boxes\": it has 4 numbers, which do not divide into rows of 3"),
        "{error}"
    );
    assert!(records[0].is_ok() && records[3].is_ok());
}

fn error(config: Hdf5Config) -> String {
    match open(&SourceConfig::Hdf5(config)) {
        Ok(_) => panic!("it opened"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn what_cannot_be_chosen_is_said_with_a_list_of_what_there_is() {
    let root = tempfile::tempdir().unwrap();
    let config = case("train earliest").config(root.path());
    let with = |change: &dyn Fn(&mut Hdf5Config)| {
        let mut config = config.clone();
        change(&mut config);
        error(config)
    };
    let path = |path: &str| Some(path.to_owned());
    for (text, expected) in [
        (with(&|config| config.image = path("train/none")), "train/none"),
        (with(&|config| config.image = path("train/boxes")), "f32 [9, 2, 2]"),
        (with(&|config| config.label = path("train/boxes")), "a label is a whole number"),
        (with(&|config| config.fields = Some(vec!["train/names".into()])), "text [9]"),
        (with(&|config| config.fields = Some(vec!["train/other".into()])), "different numbers of rows"),
        (with(&|config| config.classes = Some(vec!["a".into()])), "but there is 1 class"),
        (with(&|config| config.fields = Some(vec!["train/flags".into(); 2])), "twice"),
    ] {
        assert!(text.contains("0.h5") && text.contains(expected), "{text}");
    }
    fs::copy(root.path().join("0.h5"), root.path().join("1.h5")).unwrap();
    conforms(&SourceConfig::Hdf5(config.clone()));
    let other = unpack(&case("planes").files[0].hex);
    fs::write(root.path().join("1.h5"), other).unwrap();
    let text = error(config);
    assert!(text.contains("1.h5") && text.contains("train"), "{text}");
}

fn read(source: &Arc<dyn IndexedSource>) -> Vec<Result<Vec<u8>, (ReadErrorKind, String)>> {
    let reader = source.clone().reader(&ReaderConfig { backend: Backend::Auto, depth: 8 }).expect("a reader");
    let (tell, told) = mpsc::channel();
    // What a crafted file says of its records may be large; the caller bounds what is outstanding.
    let mut bytes = 0;
    let fits = |index: &u64| {
        bytes += source.size(*index);
        bytes <= 32 << 20
    };
    let count = ((0..source.len().min(300)).take_while(fits).count() as u64).max(1);
    let request = |index| {
        let tell = tell.clone();
        ReadRequest { index, done: Box::new(move |result| tell.send((index, result)).expect("the test")) }
    };
    reader.submit((0..count).map(request).collect());
    drop(tell);
    let mut all: Vec<_> = (0..count).map(|_| None).collect();
    for (index, result) in told {
        let result = result.map(|record| record.bytes.to_vec());
        all[index as usize] = Some(result.map_err(|error| (error.kind(), error.to_string())));
    }
    all.into_iter().map(|result| result.expect("every request ends")).collect()
}

#[test]
fn a_damaged_chunk_is_the_end_of_its_own_records_only_and_a_changed_file_is_no_verdict() {
    let root = tempfile::tempdir().unwrap();
    let config = case("train earliest").config(root.path());
    let path = root.path().join("0.h5");
    let whole = fs::read(&path).unwrap();
    let config = SourceConfig::Hdf5(Hdf5Config { fields: Some(vec![]), ..config });
    let source = open(&config).unwrap();
    let good = read(&source);
    // The first chunk of the images that is found by its zlib header; the fletcher32 at its end tells.
    let at =
        whole.windows(2).position(|two| two == [0x78, 0x5e] || two == [0x78, 0x9c]).expect("a gzip chunk");
    let mut damaged = whole.clone();
    damaged[at + 12] ^= 0x10;
    fs::write(&path, &damaged).unwrap();
    let changed = read(&source);
    let kinds: Vec<_> =
        changed.iter().filter_map(|result| result.as_ref().err()).map(|(kind, _)| *kind).collect();
    assert!(!kinds.is_empty() && kinds.iter().all(|kind| *kind == ReadErrorKind::Changed), "{changed:?}");
    let results = read(&open(&config).unwrap());
    let mut bad = 0;
    for (index, (result, good)) in results.iter().zip(&good).enumerate() {
        match result {
            Ok(bytes) => assert_eq!(Ok(bytes), good.as_ref()),
            Err((kind, text)) => {
                bad += 1;
                assert_eq!(*kind, ReadErrorKind::Bad);
                assert!(text.contains(&format!("0.h5/train/images/{index}: the chunk at byte")), "{text}");
            }
        }
    }
    assert_eq!(bad, 2, "a chunk has two rows");
    fs::remove_file(&path).unwrap();
    let gone = open(&config).err().map(|error| error.to_string());
    assert!(gone.is_some_and(|text| text.contains("no file there")));
    assert!(read(&source).iter().all(|result| matches!(result, Err((ReadErrorKind::Gone, _)))));
}

/// Peak memory of this process, in bytes.
fn peak() -> u64 {
    let status = fs::read_to_string("/proc/self/status").expect("/proc");
    let line = status.lines().find(|line| line.starts_with("VmHWM")).expect("VmHWM");
    line.split_whitespace().nth(1).and_then(|text| text.parse::<u64>().ok()).expect("a number") << 10
}

/// Opens a file in the ways a user might and reads what there is: whatever it is, that ends soon, and in the memory
/// that the source says it needs.
fn survive(path: &Path) {
    let before = peak();
    let mut allowed = 192 << 20;
    let began = Instant::now();
    let files = vec![path.to_str().expect("UTF-8").to_owned()];
    let config = Hdf5Config { files, ..Hdf5Config::default() };
    let mut tries = |config: Hdf5Config| {
        if let Ok(source) = open(&SourceConfig::Hdf5(config.clone())) {
            let record = 2 * source.size(0);
            allowed = allowed.max((192 << 20) + source.memory() + source.reader_memory() + record);
            read(&source);
        }
        let grown = peak().saturating_sub(before);
        assert!(grown < allowed, "{}: {grown} bytes more with {config:?}", path.display());
    };
    tries(config.clone());
    // What the error lists is what could be asked for next.
    let text = match open(&SourceConfig::Hdf5(config.clone())) {
        Ok(_) => String::new(),
        Err(error) => error.to_string(),
    };
    let listed = text.split_once('(').map_or("", |(_, list)| list);
    for path in listed.split("; ").filter_map(|one| one.split_once(": ")).map(|(path, _)| path).take(12) {
        tries(Hdf5Config { fields: Some(vec![path.to_owned()]), ..config.clone() });
        tries(Hdf5Config { image: Some(path.to_owned()), fields: Some(vec![]), ..config.clone() });
        for kind in [WantedKind::Text, WantedKind::Ragged, WantedKind::Image] {
            tries(Hdf5Config { deliver: Some(vec![Wanted::new(path, kind)]), ..config.clone() });
        }
    }
    let took = began.elapsed();
    assert!(took < Duration::from_secs(30), "{}: took {took:?}", path.display());
}

/// All files that somebody found to crash an HDF5 library, where the test data is.
fn malformed() -> Vec<PathBuf> {
    let data = std::env::var_os("FUELRAIL_DATA").map(PathBuf::from);
    let data = data.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data"));
    let files = fs::read_dir(data.join("malformed/cve_hdf5")).into_iter().flatten().flatten();
    let mut files: Vec<_> = files.map(|entry| entry.path()).collect();
    files.sort();
    if files.is_empty() {
        println!("skipped: {} has no malformed HDF5 files (FUELRAIL_DATA)", data.display());
    }
    files
}

#[test]
fn files_that_crashed_other_readers_end_in_an_error_or_in_records() {
    malformed().iter().for_each(|path| survive(path));
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: std::env::var("FUELRAIL_HDF5_MUTATIONS").ok().and_then(|text| text.parse().ok()).unwrap_or(200),
        max_shrink_iters: 50,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn mutated_files_do_no_harm(
        which: prop::sample::Index,
        damage in prop::collection::vec((any::<prop::sample::Index>(), 0usize..8, any::<u64>()), 1..12),
        cut in prop::option::weighted(0.1, any::<prop::sample::Index>()),
    ) {
        thread_local! {
            static FILES: Vec<Vec<u8>> = {
                let committed = committed();
                let made = committed.iter().flat_map(|case| &case.files).map(|file| unpack(&file.hex));
                made.chain(malformed().iter().map(|path| fs::read(path).expect("a file"))).collect()
            };
        }
        let mut bytes = FILES.with(|files| files[which.index(files.len())].clone());
        for (at, kind, value) in damage {
            // Structures are dense at the start of these files, and their fields are aligned: half of the damage goes
            // there.
            let range = if kind % 2 == 0 { bytes.len().min(4096) } else { bytes.len() };
            let at = at.index(range);
            let end = bytes.len().min(at + [1, 1, 2, 4, 8, 8, 1, 2][kind]);
            let value = if kind == 5 { u64::MAX } else { value };
            for (byte, new) in bytes[at..end].iter_mut().zip(value.to_le_bytes()) {
                *byte = new;
            }
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()) + 1);
        }
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("x.h5");
        fs::write(&path, bytes).unwrap();
        survive(&path);
    }
}
