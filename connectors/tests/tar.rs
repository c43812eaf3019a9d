//! Tar shards: the same members as Python's `tarfile` finds, whatever wrote them, and errors for what is no shard.

use std::collections::HashMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, mpsc};

use fuelrail_connectors::{
    Backend, Blocks, CacheConfig, ElementType, IndexedSource, ReadError, ReadErrorKind, ReadRequest,
    ReaderConfig, SourceConfig, SourceError, TarConfig, open, tar_sidecar,
};

mod conformance;
#[path = "tar/peers.rs"]
mod peers;

use conformance::{Sizes, read_all};

/// The suite, for a tar: its shards are blocks.
fn conforms(config: &SourceConfig) {
    let (source, _) = conformance::conforms(config, Sizes::Bounds);
    assert!(matches!(source.blocks(), Blocks::Lengths { .. }), "shards are blocks");
}

/// A folder with shards in it and a cache of its own.
struct Shards {
    root: tempfile::TempDir,
}

impl Shards {
    fn new() -> Self {
        Self { root: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.path().join("shards").join(name)
    }

    fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, bytes).unwrap();
        path
    }

    fn config(&self) -> TarConfig {
        TarConfig {
            shards: vec![self.path("").display().to_string()],
            cache: CacheConfig { dir: Some(self.root.path().join("cache")), limit_bytes: None },
            ..TarConfig::default()
        }
    }

    fn open(&self) -> Result<Arc<dyn IndexedSource>, SourceError> {
        open(&SourceConfig::Tar(self.config()))
    }

    fn error(&self) -> String {
        self.open().err().expect("an error").to_string()
    }

    fn cached(&self) -> Vec<PathBuf> {
        let folder = self.root.path().join("cache/fuelrail-cache");
        let entries = fs::read_dir(folder).map(|entries| entries.map(|entry| entry.unwrap().path()));
        let is_index = |path: &PathBuf| path.to_string_lossy().contains(".index");
        entries.map(|paths| paths.filter(is_index).collect()).unwrap_or_default()
    }
}

/// A ustar header and its data.
fn member(name: &str, data: &[u8]) -> Vec<u8> {
    raw_member(name.as_bytes(), b'0', data.len() as u64, data)
}

fn raw_member(name: &[u8], kind: u8, size: u64, data: &[u8]) -> Vec<u8> {
    let mut header = [0u8; 512];
    header[..name.len()].copy_from_slice(name);
    header[100..108].copy_from_slice(b"0000644\0");
    header[124..136].copy_from_slice(format!("{size:011o}\0").as_bytes());
    header[136..148].copy_from_slice(b"00000000000\0");
    header[156] = kind;
    header[257..265].copy_from_slice(b"ustar\x0000");
    sum(&mut header);
    let mut bytes = header.to_vec();
    bytes.extend_from_slice(data);
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

fn sum(header: &mut [u8]) {
    header[148..156].fill(b' ');
    let sum: u32 = header[..512].iter().map(|&b| u32::from(b)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

fn archive(members: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = members.concat();
    bytes.resize(bytes.len() + 1024, 0);
    bytes
}

fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    std::iter::repeat_with(next).take(len).collect()
}

fn npy(descr: &str, shape: &str, data: &[u8]) -> Vec<u8> {
    let header = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}");
    let header = format!("{header:<117}\n");
    [b"\x93NUMPY\x01\0".as_slice(), &(header.len() as u16).to_le_bytes(), header.as_bytes(), data].concat()
}

/// A program's output, or `None` (said on stderr) when it is not there.
fn run(program: &str, arguments: &[&str], input: &str) -> Option<Vec<u8>> {
    let child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn();
    let Ok(mut child) = child else {
        eprintln!("skipped: there is no {program}");
        return None;
    };
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}");
    Some(output.stdout)
}

/// Keys, labels and bytes.
fn contents(source: &Arc<dyn IndexedSource>) -> Vec<(String, i64, Vec<u8>)> {
    let bytes = read_all(source, Backend::Auto, 8);
    bytes
        .into_iter()
        .enumerate()
        .map(|(at, bytes)| (source.key(at as u64), source.label(at as u64), bytes))
        .collect()
}

#[test]
fn shards_of_images_and_labels_conform() {
    let shards = Shards::new();
    let mut number = 0u32;
    for shard in 0..5 {
        let mut members = Vec::new();
        // One of them has no records at all.
        for _ in 0..[40, 0, 1, 200, 59][shard] {
            let key = format!("n{:03}/{number:06}", number % 7);
            members.push(member(&format!("{key}.cls"), (number % 7).to_string().as_bytes()));
            members.push(member(&format!("{key}.jpg"), &noise(number.into(), (number as usize * 37) % 5000)));
            number += 1;
        }
        shards.write(&format!("train-{shard:03}.tar"), &archive(&members));
    }
    conforms(&SourceConfig::Tar(shards.config()));
    let source = shards.open().unwrap();
    assert_eq!((source.len(), source.label(3), source.label(299)), (300, 3, 299 % 7));
    assert_eq!(source.key(0), "train-000.tar/n000/000000.jpg");
    let Blocks::Lengths { lengths, .. } = source.blocks() else { panic!("blocks") };
    assert_eq!(*lengths, [40, 1, 200, 59]);
    // Of what was written just now no index is kept: it may change again without its times showing it.
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while shards.cached().len() < 5 {
        assert!(std::time::Instant::now() < deadline, "no index is kept");
        std::thread::sleep(std::time::Duration::from_millis(50));
        shards.open().unwrap();
    }
    // What is kept gives the same source, and damaging it is noticed.
    for path in shards.cached() {
        fs::write(path, b"rubbish").unwrap();
    }
    assert_eq!(shards.open().unwrap().fingerprint(), source.fingerprint());
}

#[test]
fn a_record_costs_no_more_than_32_bytes_and_its_name() {
    let shards = Shards::new();
    let record = |n| [member(&format!("{n:08}.cls"), b"3"), member(&format!("{n:08}.jpg"), b"x")];
    let members: Vec<_> = (0..20_000).flat_map(record).collect();
    shards.write("a.tar", &archive(&members));
    let source = shards.open().unwrap();
    let each = (source.memory() - 4096) as f64 / source.len() as f64;
    assert!(each <= 32.0 + 12.0, "{each} bytes a record");
}

#[test]
fn fields_come_after_the_image_wherever_their_members_are() {
    for far in [0, 100_000] {
        let shards = Shards::new();
        for shard in 0..3u64 {
            let mut members = Vec::new();
            for record in 0..30u64 {
                let key = format!("{shard}-{record:02}");
                let array: Vec<u8> = (0..6u16).flat_map(|n| (n + record as u16).to_le_bytes()).collect();
                let score = if (shard, record) == (2, 7) { "0.5".to_owned() } else { record.to_string() };
                let json = format!(
                    r#"{{"label": {}, "deep": {{"box": [[{record}, 2], [3, -4]]}}, "score": {score}}}"#,
                    record % 4
                );
                members.push(member(&format!("{key}.EMB.npy"), &npy("<u2", "(2, 3)", &array)));
                members.push(member(&format!("{key}.bin"), &noise(record, far)));
                members.push(member(&format!("{key}.json"), json.as_bytes()));
                members
                    .push(member(&format!("{key}.jpg"), &noise(record + 100, 1000 + record as usize * 300)));
                members.push(member(&format!("{key}.tail.npy"), &npy("|u1", "(1,)", &[record as u8])));
            }
            shards.write(&format!("{shard}.tar"), &archive(&members));
        }
        let mut config = shards.config();
        let fields = ["json:deep.box", "emb.npy", "s=json:score", "tail.npy"];
        config.fields = Some(fields.map(str::to_owned).to_vec());
        conforms(&SourceConfig::Tar(config.clone()));
        let source = open(&SourceConfig::Tar(config)).unwrap();
        let schema = source.schema();
        let specs: Vec<_> =
            schema.fields.iter().map(|f| (f.name.as_str(), f.dtype, f.shape.as_slice())).collect();
        use ElementType::{F32, I64, U8, U16};
        assert_eq!(
            specs,
            [("box", I64, &[2, 2][..]), ("emb", U16, &[2, 3]), ("s", F32, &[]), ("tail", U8, &[1])]
        );
        for (at, (_, label, bytes)) in contents(&source).into_iter().enumerate() {
            let (shard, record) = (at / 30, at as u64 % 30);
            assert_eq!(label as u64, record % 4);
            let fuelrail_connectors::Cut { image, fields, .. } = schema.cut(&bytes).unwrap();
            assert!(image == noise(record + 100, 1000 + record as usize * 300));
            let mut expected: Vec<u8> =
                [record as i64, 2, 3, -4].iter().flat_map(|n| n.to_le_bytes()).collect();
            expected.extend((0..6u16).flat_map(|n| (n + record as u16).to_le_bytes()));
            let score = if (shard, record) == (2, 7) { 0.5 } else { record as f32 };
            expected.extend(score.to_le_bytes());
            expected.push(record as u8);
            assert_eq!(fields, expected, "record {at}");
        }
    }
}

#[test]
fn labels_are_found_where_they_are() {
    let image = |name: &str| member(&format!("{name}.jpg"), b"image");
    let text = |name: &str, ending: &str, text: &str| member(&format!("{name}.{ending}"), text.as_bytes());
    let labels = |members: &[Vec<u8>], label: Option<&str>, classes: Option<&[&str]>| {
        let shards = Shards::new();
        shards.write("a.tar", &archive(members));
        let mut config = shards.config();
        config.label = label.map(str::to_owned);
        config.classes = classes.map(|classes| classes.iter().map(|&class| class.to_owned()).collect());
        open(&SourceConfig::Tar(config))
            .map(|source| {
                let labels: Vec<_> = (0..source.len()).map(|index| source.label(index)).collect();
                (labels, source.classes().to_vec())
            })
            .map_err(|error| error.to_string())
    };
    let verdicts = |members: &[Vec<u8>], label: Option<&str>| {
        let shards = Shards::new();
        shards.write("a.tar", &archive(members));
        let mut config = shards.config();
        config.label = label.map(str::to_owned);
        // Twice: from the shard, and from the index that was kept of it.
        let again = |config: &TarConfig| {
            let source = open(&SourceConfig::Tar(config.clone())).expect("a source");
            let verdicts: Vec<_> = (0..source.len()).map(|index| source.verdict(index)).collect();
            (
                source.is_labelled(),
                (0..source.len()).map(|index| source.label(index)).collect::<Vec<_>>(),
                verdicts,
            )
        };
        let found = again(&config);
        assert_eq!(found, again(&config));
        found
    };
    let names = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>();
    let numbers = [image("a"), text("a", "cls", "7\n"), text("b", "cls", "-2"), image("b")];
    assert_eq!(labels(&numbers, None, None), Ok((vec![7, -2], vec![])));
    assert!(labels(&numbers, None, Some(&["x", "y"])).unwrap_err().contains("a.jpg: its label is 7"));
    assert_eq!(labels(&numbers, Some("none"), None), Ok((vec![0, 0], vec![])));
    let words = [
        image("a"),
        text("a", "cls", "emu"),
        image("b"),
        text("b", "cls", "12"),
        image("c"),
        text("c", "cls", "cat"),
    ];
    assert_eq!(labels(&words, None, None), Ok((vec![2, 0, 1], names(&["12", "cat", "emu"]))));
    assert_eq!(labels(&words, None, Some(&["emu", "cat", "12"])).unwrap().0, [0, 2, 1]);
    let error = labels(&words, None, Some(&["emu"])).unwrap_err();
    assert!(error.contains("2 of 3 records") && error.contains("a.tar/b.jpg: its label is 12"), "{error}");
    assert!(labels(&words, None, Some(&["a", "a"])).unwrap_err().contains("twice"));
    let json = [image("a"), text("a", "json", r#"{"cls": 3, "x": {"y": ["no", "yes"]}}"#)];
    assert_eq!(labels(&json, None, None).unwrap().0, [3]);
    assert_eq!(labels(&json, Some("json:x.y.1"), None).unwrap().1, ["yes"]);
    assert!(labels(&json, Some("json:x"), None).unwrap_err().contains("is an object"));
    assert!(labels(&json, Some("json:z"), None).unwrap_err().contains("has no \"z\""));
    let folders = [image("./dog/1"), image("cat/small/2"), image("dog/3")];
    assert_eq!(labels(&folders, None, None), Ok((vec![0, 0, 0], vec![])));
    assert_eq!(labels(&folders, Some("folder"), None), Ok((vec![1, 0, 1], names(&["cat", "dog"]))));
    assert!(labels(&[image("a")], Some("folder"), None).unwrap_err().contains("no folder"));
    let txt = [image("a"), text("a", "txt", "a caption"), text("a", "cls", "1")];
    assert_eq!(labels(&txt, Some("txt"), None).unwrap().1, ["a caption"]);
    let lack = [image("a"), text("a", "cls", "1"), image("b")];
    let (_, found, verdicts_) = verdicts(&lack, None);
    assert_eq!((found, &verdicts_[0]), (vec![1, 0], &None));
    assert!(
        verdicts_[1].as_ref().unwrap().contains("it has no member with the ending \"cls\""),
        "{verdicts_:?}"
    );
    // The first record may be the one that lacks it.
    let first =
        [image("a"), image("b"), text("b", "cls", "4"), image("c"), text("c", "cls", "\u{feff}5\r\n")];
    let (is_labelled, found, verdicts_) = verdicts(&first, None);
    assert_eq!((is_labelled, found), (true, vec![0, 4, 5]));
    assert_eq!(verdicts_.iter().map(Option::is_some).collect::<Vec<_>>(), [true, false, false]);
    let odd = [
        image("a"),
        text("a", "cls", "1"),
        image("b"),
        text("b", "cls", " \n"),
        image("c"),
        member("c.cls", b"\xff"),
        image("d"),
        text("d", "cls", "10"),
        image("e"),
        text("e", "cls", "2"),
    ];
    let (_, found, verdicts_) = verdicts(&odd, None);
    assert_eq!(found, [1, 0, 0, 10, 2]);
    assert!(verdicts_[1].as_ref().unwrap().contains("no label"), "{verdicts_:?}");
    assert!(verdicts_[2].as_ref().unwrap().contains("not UTF-8"), "{verdicts_:?}");
    // What is not needed is not read, and what Python writes for NaN is a gap.
    let beside = [image("a"), text("a", "cls", "1"), text("a", "json", "{\"x\": NaN")];
    assert_eq!(labels(&beside, None, None).unwrap().0, [1]);
    let gap = [image("a"), text("a", "json", r#"{"label": 3, "x": NaN}"#)];
    assert_eq!(labels(&gap, None, None).unwrap().0, [3]);
    let without = [image("a"), text("a", "json", r#"{"width": 3}"#)];
    assert_eq!(verdicts(&without, None), (false, vec![0], vec![None]));
    let list = [image("a"), text("a", "json", r#"{"labels": [3, 4]}"#)];
    let error = labels(&list, None, None).unwrap_err();
    assert!(error.contains("\"labels\"") && error.contains("holds a list; a label is"), "{error}");
    let floats = [image("a"), text("a", "cls", "0.5"), image("b"), text("b", "cls", "2.5")];
    assert!(labels(&floats, None, None).unwrap_err().contains("holds floats"));
    let mixed: Vec<_> = ["1", "2", "x"].iter().flat_map(|cls| [image(cls), text(cls, "cls", cls)]).collect();
    let error = labels(&mixed, None, None).unwrap_err();
    assert!(error.contains("numbers and texts") && error.contains("x.jpg"), "{error}");
    // All images first, then all labels: what belongs together does not stand together.
    let apart = [image("a"), image("b"), text("a", "cls", "1"), text("b", "cls", "2")];
    let error = labels(&apart, None, None).unwrap_err();
    assert!(error.contains("are not next to each other") && error.contains("--sort=name"), "{error}");
    assert_eq!(labels(&apart, Some("none"), None).unwrap().0, [0, 0]);
}

#[test]
fn members_of_nobody_are_passed_over_and_names_stay_unique() {
    let shards = Shards::new();
    shards.write(
        "a.tar",
        &archive(&[
            member("__meta__/x.jpg", b"meta"),
            member("b.JPG", b"1"),
            member("dir/._b.jpg", b"finder's"),
            member("README", b"text"),
            member("readme.md", b"text"),
            member("b.jpg", b"2"),
            member("c.seg.png", b"mask"),
            member("c.png", b"3"),
            member("c.jpg", b"4"),
            member("b.jpg", b"5"),
            member("b.jpg#2", b"no image"),
            raw_member(b"d/", b'5', 0, b""),
            raw_member(b"e/", 0, 0, b""),
            member("z.tif", b"7"),
            member("b.jpg", b"6"),
        ]),
    );
    let found: Vec<_> =
        contents(&shards.open().unwrap()).into_iter().map(|(key, _, bytes)| (key, bytes)).collect();
    let expected = [
        ("b.JPG", b"1"),
        ("b.jpg", b"2"),
        ("c.jpg", b"4"),
        ("b.jpg#2", b"5"),
        ("z.tif", b"7"),
        ("b.jpg#3", b"6"),
    ];
    assert_eq!(found, expected.map(|(key, bytes)| (format!("a.tar/{key}"), bytes.to_vec())));
    shards.write("a.tar", &archive(&[member("b.JPG", b"1"), member("b.jpg", b"2")]));
    let error = shards.error();
    assert!(error.contains("two members with the ending \"jpg\""), "{error}");
}

#[test]
fn what_is_no_record_is_refused_with_its_place() {
    let image = || member("a.jpg", b"image");
    let cut = |mut bytes: Vec<u8>, len: usize| {
        bytes.truncate(len);
        bytes
    };
    let flipped = |at: usize| {
        let mut bytes = archive(&[image(), member("b.jpg", b"image")]);
        bytes[at] ^= 1;
        bytes
    };
    let pax = |text: &str| raw_member(b"pax", b'x', text.len() as u64, text.as_bytes());
    let base_256 = |value: [u8; 12]| {
        let mut bytes = archive(&[image()]);
        bytes[124..136].copy_from_slice(&value);
        sum(&mut bytes);
        bytes
    };
    let long = "x".repeat(20_000);
    let cases: Vec<(&str, Vec<u8>, &str)> = vec![
        ("an empty file", vec![], "empty"),
        ("gzip", b"\x1f\x8b\x08rest".to_vec(), ".tar.gz"),
        ("zip", b"PK\x03\x04rest".to_vec(), "zip"),
        ("text", b"not a tar file".repeat(100), "bad checksum"),
        ("a short file", b"not a tar file".to_vec(), "cut off inside a header"),
        ("a bit of a header", flipped(1024 + 3), "byte 1024: bad checksum"),
        ("cut in a header", cut(archive(&[image(), image()]), 1100), "byte 1024: the archive is cut off"),
        ("cut in data", cut(archive(&[member("a.jpg", &[1; 2000])]), 1500), "byte 0: the archive is cut off"),
        ("cut in padding", cut(archive(&[member("a.jpg", &[1; 2000])]), 2530), "cut off"),
        ("only a hard link", archive(&[raw_member(b"l.jpg", b'1', 0, b"")]), "l.jpg, a hard link"),
        ("only a symbolic link", archive(&[raw_member(b"l.jpg", b'2', 0, b"")]), "l.jpg, a symbolic link"),
        ("only a device", archive(&[raw_member(b"l.jpg", b'3', 0, b"")]), "l.jpg, a device"),
        ("only a pipe", archive(&[raw_member(b"l.jpg", b'6', 0, b"")]), "l.jpg, a pipe"),
        ("only an old sparse file", archive(&[raw_member(b"l.jpg", b'S', 0, b"")]), "sparse"),
        ("only an unknown type", archive(&[raw_member(b"l.jpg", b'Z', 0, b"")]), "type that is not known"),
        ("only a sparse file", archive(&[pax("22 GNU.sparse.major=1\n"), image()]), "sparse"),
        ("a long name of 4 GB", raw_member(b"././@LongLink", b'L', 0o37777777777, b""), "extension header"),
        (
            "a long name",
            archive(&[raw_member(b"L", b'L', long.len() as u64, long.as_bytes()), image()]),
            "longer than",
        ),
        ("a damaged PAX header", archive(&[pax("99 path=b.jpg\n"), image()]), "PAX header is damaged"),
        ("a PAX size", archive(&[pax("12 size=xyz\n"), image()]), "not a number"),
        ("a PAX size beyond all", archive(&[pax("29 size=18446744073709551615\n"), image()]), "cut off"),
        ("a name for all", archive(&[raw_member(b"g", b'g', 14, b"14 path=b.jpg\n"), image()]), "global"),
        ("headers without end", pax("6 a=b\n").repeat(40), "too many headers"),
        ("a header for nothing", archive(&[pax("8 a=bcd\n")]), "the archive ends"),
        ("a negative size", base_256([0xff; 12]), "not a number"),
        ("a size of 2^80", base_256([0x80, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]), "not a number"),
        (
            "a size of 2^63",
            base_256([0x80, 0, 0, 0, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]),
            "cut off",
        ),
        ("no images", archive(&[member("a.txt", b"x"), member("b.txt", b"x")]), "members like \"a.txt\""),
        ("nothing", archive(&[]), "hold no images"),
    ];
    for (what, bytes, expected) in cases {
        let shards = Shards::new();
        shards.write("bad.tar", &bytes);
        let error = shards.error();
        assert!(error.contains(expected) && error.contains("bad.tar"), "{what}: {error}");
    }
}

#[test]
fn a_configuration_that_makes_no_sense_is_named() {
    let shards = Shards::new();
    shards.write(
        "a.tar",
        &archive(&[member("a.jpg", b"x"), member("a.json", br#"{"box": [1, 2], "big": 1}"#)]),
    );
    let error = |change: &dyn Fn(&mut TarConfig)| {
        let mut config = shards.config();
        change(&mut config);
        open(&SourceConfig::Tar(config)).err().expect("an error").to_string()
    };
    let fields = |field: &'static str| error(&move |config| config.fields = Some(vec![field.to_owned()]));
    assert!(error(&|config| config.image = Some(vec![])).contains("image"));
    assert!(error(&|config| config.image = Some(vec!["a/b".into()])).contains("a/b"));
    assert!(error(&|config| config.label = Some("json:a..b".into())).contains("label: \"json:a..b\""));
    assert!(fields("box").contains("neither"));
    assert!(fields("emb.npy").contains("no member ending in \"emb.npy\""));
    let boxes = fields("json:boxes");
    for part in [
        "field \"boxes\" (\"boxes\" in member \".json\")",
        "no usable value in 1 of 1 records; the first: a.tar/a.jpg: it has no \"boxes\"",
        "the members .jpg, .json (the keys of its json are \"big\", \"box\")",
        "leave the field out",
    ] {
        assert!(boxes.contains(part), "{part}: {boxes}");
    }
    let labelled = error(&|config| {
        config.label = Some("json:big".into());
        config.fields = Some(vec!["label=json:box".into()]);
    });
    assert!(labelled.contains("\"label\""), "{labelled}");
    let parsed = serde_json::from_str::<TarConfig>(r#"{"shards": [], "lable": "cls"}"#);
    assert!(parsed.unwrap_err().to_string().contains("lable"));
}

#[test]
fn fields_of_which_no_kind_is_the_commonest_are_refused_across_shards_and_within_one() {
    let record = |name: &str, json: &str| {
        [member(&format!("{name}.jpg"), b"x"), member(&format!("{name}.json"), json.as_bytes())].concat()
    };
    for together in [true, false] {
        let shards = Shards::new();
        let (a, b) = (record("a", r#"{"box": [1, 2]}"#), record("b", r#"{"box": [1, 2, 3]}"#));
        if together {
            shards.write("a.tar", &archive(&[a, b]));
        } else {
            shards.write("a.tar", &archive(&[a]));
            shards.write("b.tar", &archive(&[b]));
        }
        let mut config = shards.config();
        config.fields = Some(vec!["json:box".into()]);
        let error = open(&SourceConfig::Tar(config)).err().unwrap().to_string();
        assert!(error.contains("[2]") && error.contains("[3]"), "{error}");
    }
}

/// What reading each record gave.
fn read_each(source: &Arc<dyn IndexedSource>) -> HashMap<u64, Result<Vec<u8>, ReadError>> {
    let reader = source.clone().reader(&ReaderConfig::default()).unwrap();
    let (tell, told) = mpsc::channel();
    let requests = (0..source.len()).map(|index| {
        let tell = tell.clone();
        ReadRequest { index, done: Box::new(move |result| tell.send((index, result)).unwrap()) }
    });
    reader.submit(requests.collect());
    drop(tell);
    told.iter().map(|(index, result)| (index, result.map(|record| record.bytes.to_vec()))).collect()
}

/// The verdict on each record, by its key in the shard.
fn verdicts(source: &Arc<dyn IndexedSource>) -> Vec<(String, Option<String>)> {
    (0..source.len()).map(|index| (source.key(index), source.verdict(index))).collect()
}

#[test]
fn a_record_whose_members_are_wrong_is_one_bad_record_and_moves_no_other() {
    let array = |n: u8| npy("|u1", "(3,)", &[n; 3]);
    let json = |n: u8| format!(r#"{{"box": [{n}, 1], "n": {n}}}"#);
    let record = |n: u8, emb: Vec<Vec<u8>>, json: Option<&str>| {
        let mut members = emb;
        members.push(member(&format!("{n:02}.jpg"), &noise(n.into(), 300)));
        members.extend(json.map(|json| member(&format!("{n:02}.json"), json.as_bytes())));
        members.concat()
    };
    let emb = |n: u8, bytes: &[u8]| vec![member(&format!("{n:02}.emb.npy"), bytes)];
    let good = |n: u8| record(n, emb(n, &array(n)), Some(&json(n)));
    let broken = |n: u8, text: &str| record(n, emb(n, &array(n)), Some(text));
    let twice = |n: u8| {
        let two = [emb(n, &array(n)), vec![member(&format!("{n:02}.EMB.npy"), &array(7))]].concat();
        record(n, two, Some(&json(n)))
    };
    let huge = format!("{{\"box\": [1, 2], \"more\": \"{}\"}}", "x".repeat(1 << 20));
    let many = format!("{{\"box\": {:?}}}", vec![1; 600]);
    let wrong: Vec<(Vec<u8>, &str)> = vec![
        (record(1, vec![], Some(&json(1))), "it has no member ending in \"emb.npy\", so no field \"emb\""),
        (
            record(2, emb(2, b"text"), Some(&json(2))),
            "field \"emb\" (member \".emb.npy\"): it is no npy file",
        ),
        (
            record(3, emb(3, &npy("|u1", "(4,)", &[1; 4])), Some(&json(3))),
            "it is u8 of shape [4]; most records have u8",
        ),
        (
            record(4, emb(4, &npy("<f4", "(3,)", &[1; 12])), Some(&json(4))),
            "it is f32 of shape [3]; most records have u8",
        ),
        (record(5, emb(5, &npy(">f4", "(3,)", &[1; 12])), Some(&json(5))), "'>f4'"),
        (record(6, emb(6, &array(6)), None), "it has no \"box\" in a json member, so no field \"box\""),
        (broken(7, r#"{"n": 3}"#), "it has no \"box\" in a json member"),
        (broken(8, r#"{"box": null}"#), "field \"box\" (\"box\" in member \".json\"): it holds null"),
        (broken(9, r#"{"box": "1 2"}"#), "it holds text"),
        (broken(10, r#"{"box": [1, 2, 3]}"#), "it is i64 of shape [3]; most records have i64 of shape [2]"),
        (broken(11, r#"{"box": [0.5]}"#), "it is f32 of shape [1]"),
        (broken(12, r#"{"box": [1, [2]]}"#), "nested"),
        (broken(13, r#"{"box": [1, 2]"#), "its json member is not JSON"),
        (broken(14, &huge), "the maximum is 1,048,576"),
        (broken(15, &many), "more than 512 numbers"),
        (twice(16), "two members with the ending \"emb.npy\""),
    ];
    let shards = Shards::new();
    let mut members = vec![good(0)];
    members.extend(wrong.iter().map(|(bytes, _)| bytes.clone()));
    shards.write("a.tar", &archive(&members));
    shards.write("b.tar", &archive(&(40..60).map(good).collect::<Vec<_>>()));
    let config = TarConfig {
        fields: Some(vec!["emb.npy".into(), "json:box".into()]),
        label: Some("json:n".into()),
        ..shards.config()
    };
    for is_stored in [false, true] {
        if is_stored {
            for name in ["a.tar", "b.tar"] {
                let bytes = tar_sidecar(&shards.path(name), &config).unwrap();
                shards.write(&format!("{name}.idx"), &bytes);
            }
        }
        let source = open(&SourceConfig::Tar(config.clone())).unwrap();
        let found = verdicts(&source);
        assert_eq!(found.len(), 17 + 20, "every record keeps its place");
        for (at, (key, verdict)) in found.iter().enumerate() {
            let (shard, number) = if at < 17 { ("a", at) } else { ("b", at - 17 + 40) };
            assert_eq!(*key, format!("{shard}.tar/{number:02}.jpg"));
            match wrong.get(at.wrapping_sub(1)) {
                Some((_, expected)) => {
                    let why = verdict.as_deref().unwrap_or_default();
                    assert!(why.contains(expected), "{key}: {why:?}, expected {expected:?}");
                }
                None => assert_eq!(*verdict, None, "{key}"),
            }
        }
        let specs: Vec<_> = source.schema().fields.iter().map(|f| (f.dtype, f.shape.clone())).collect();
        assert_eq!(
            specs,
            [(ElementType::U8, vec![3]), (ElementType::I64, vec![2])],
            "no fraction of a bad record"
        );
        for (index, result) in read_each(&source) {
            match source.verdict(index) {
                Some(why) => {
                    let error = result.unwrap_err();
                    assert_eq!((error.kind(), error.detail()), (ReadErrorKind::Bad, why.as_str()));
                }
                None => {
                    let number = if index < 17 { index } else { index - 17 + 40 };
                    let fields: Vec<u8> = [number as i64, 1].iter().flat_map(|n| n.to_le_bytes()).collect();
                    let expected = [noise(number, 300), vec![number as u8; 3], fields].concat();
                    assert!(result.unwrap() == expected, "{number}");
                    assert_eq!(source.label(index) as u64, number);
                }
            }
        }
    }
}

#[test]
fn a_record_whose_members_are_apart_is_one_bad_record_unless_most_are() {
    let pair = |n: u8| [member(&format!("{n}.cls"), b"1"), member(&format!("{n}.jpg"), &[n])].concat();
    let shards = Shards::new();
    let apart = [member("9.jpg", b"9"), pair(1), pair(2), member("9.cls", b"2")];
    shards.write("a.tar", &archive(&apart));
    let found = verdicts(
        &open(&SourceConfig::Tar(TarConfig { label: Some("cls".into()), ..shards.config() })).unwrap(),
    );
    assert_eq!(found.iter().map(|found| found.1.is_some()).collect::<Vec<_>>(), [true, false, false]);
    let why = found[0].1.as_deref().unwrap();
    assert!(why.contains("are not next to each other") && why.contains("--sort=name"), "{why}");
}

#[test]
fn records_that_lack_a_field_change_the_fingerprint_and_nothing_else_does() {
    let record = |n: u8, json: &str| {
        [member(&format!("{n}.jpg"), b"x"), member(&format!("{n}.json"), json.as_bytes())].concat()
    };
    let fingerprint = |first: &str| {
        let shards = Shards::new();
        shards.write("a.tar", &archive(&[record(1, first), record(2, r#"{"n": 7}"#)]));
        let config =
            TarConfig { fields: Some(vec!["json:n".into()]), label: Some("none".into()), ..shards.config() };
        open(&SourceConfig::Tar(config)).unwrap().fingerprint()
    };
    assert_eq!(fingerprint(r#"{"n": 1}"#), fingerprint(r#"{"n": 2}"#));
    assert_ne!(fingerprint(r#"{"n": 1}"#), fingerprint(r#"{"m": 2}"#));
}

/// A shard of so many records with a label and a number each, packed without times, as `fuelrail pack` and others do.
fn packed(count: u32, label: impl Fn(u32) -> u32, number: impl Fn(u32) -> u32) -> Vec<u8> {
    let members = (0..count).flat_map(|n| {
        [
            member(&format!("{n:03}.cls"), format!("{}", label(n)).as_bytes()),
            member(&format!("{n:03}.jpg"), &noise(n.into(), 900)),
            member(&format!("{n:03}.json"), format!("{{\"n\": {}}}", number(n)).as_bytes()),
        ]
    });
    archive(&members.collect::<Vec<_>>())
}

fn set_age(path: &Path, seconds: u64) {
    let time = std::time::SystemTime::now() - std::time::Duration::from_secs(seconds);
    fs::File::options().write(true).open(path).unwrap().set_modified(time).unwrap();
}

/// A shard that was written anew, with the same size and the same first and last record, beside the index of the old
/// one.
#[test]
fn an_index_of_what_the_shard_was_before_never_gives_old_labels_or_numbers() {
    const COUNT: u32 = 100;
    // Between the records that are compared when it is opened.
    const ODD: u32 = 50;
    let old = |n: u32| n % 10;
    let changed = |n: u32| if n == ODD { (n + 1) % 10 } else { n % 10 };
    for is_label in [true, false] {
        let (before, after) = match is_label {
            true => (packed(COUNT, old, old), packed(COUNT, changed, old)),
            false => (packed(COUNT, old, old), packed(COUNT, old, changed)),
        };
        assert_eq!(before.len(), after.len());
        let shards = Shards::new();
        let config =
            TarConfig { label: Some("cls".into()), fields: Some(vec!["json:n".into()]), ..shards.config() };
        let path = shards.write("a.tar", &before);
        let beside = shards.write("a.tar.idx", &tar_sidecar(&path, &config).unwrap());
        shards.write("a.tar", &after);
        let read = || {
            let source = open(&SourceConfig::Tar(config.clone())).unwrap();
            let mut refused = Vec::new();
            for (index, result) in read_each(&source) {
                match result {
                    Ok(record) => {
                        let (_, number) = record.split_at(900);
                        let found = (source.label(index), i64::from_le_bytes(number.try_into().unwrap()));
                        let n = index as u32;
                        let expected = if is_label { (changed(n), old(n)) } else { (old(n), changed(n)) };
                        assert_eq!(found, (expected.0.into(), expected.1.into()), "record {n}");
                    }
                    Err(error) => {
                        assert_eq!(error.kind(), ReadErrorKind::Changed);
                        assert!(
                            error.to_string().contains("delete") && error.to_string().contains("a.tar.idx"),
                            "{error}"
                        );
                        refused.push(index);
                    }
                }
            }
            refused
        };
        // The shard is newer: it is read instead of the index.
        set_age(&beside, 3600);
        assert!(read().is_empty());
        // Nothing tells that it is newer: the record that differs is an error, and no other.
        set_age(&path, 7200);
        assert_eq!(read(), [u64::from(ODD)]);
    }
}

#[test]
fn an_index_of_an_older_version_is_made_again() {
    let shards = Shards::new();
    let config = TarConfig { label: Some("cls".into()), ..shards.config() };
    let path = shards.write("a.tar", &packed(3, |n| n, |n| n));
    let mut bytes = tar_sidecar(&path, &config).unwrap();
    assert_eq!(bytes[8..12], 3u32.to_le_bytes());
    for version in [0u32, 1, 2, 4] {
        bytes[8..12].copy_from_slice(&version.to_le_bytes());
        shards.write("a.tar.idx", &bytes);
        let source = open(&SourceConfig::Tar(config.clone())).unwrap();
        assert_eq!((0..3).map(|index| source.label(index)).collect::<Vec<_>>(), [0, 1, 2]);
    }
}

#[test]
fn a_long_name_that_changes_is_a_change_of_its_record() {
    // The name is in a header of its own, before the one with the size.
    let long = |letter: &str| {
        let name = format!("{}.jpg", letter.repeat(120));
        let text = format!("{} path={name}\n", name.len() + 10);
        [raw_member(b"pax", b'x', text.len() as u64, text.as_bytes()), member("cut.jpg", b"x")].concat()
    };
    let make = |letter: &str| {
        let others = |name: &str| member(name, &noise(1, 100));
        let many = (0..40).map(|n| others(&format!("{n:02}.jpg")));
        archive(
            &many
                .chain([long(letter)])
                .chain((60..100).map(|n| others(&format!("{n}.jpg"))))
                .collect::<Vec<_>>(),
        )
    };
    let shards = Shards::new();
    let config = TarConfig { label: Some("none".into()), ..shards.config() };
    let path = shards.write("a.tar", &make("a"));
    let source = open(&SourceConfig::Tar(config)).unwrap();
    assert!(source.key(40).starts_with("a.tar/aaaa"));
    // In place: the file stays the same one.
    fs::File::options().write(true).open(&path).unwrap().write_all(&make("b")).unwrap();
    for (index, result) in read_each(&source) {
        match result {
            Ok(_) => assert_ne!(index, 40),
            Err(error) => assert_eq!((index, error.kind()), (40, ReadErrorKind::Changed)),
        }
    }
}

#[test]
fn a_long_json_member_is_compared_too() {
    let make = |letter: &str| {
        let record = |n: u32| {
            let letter = if n == 50 { letter } else { "a" };
            let json = format!("{{\"n\": {}, \"text\": \"{}\"}}", n, letter.repeat(100_000));
            [
                member(&format!("{n:02}.jpg"), &noise(n.into(), 500)),
                member(&format!("{n:02}.json"), json.as_bytes()),
            ]
        };
        archive(&(10..90).flat_map(record).collect::<Vec<_>>())
    };
    let shards = Shards::new();
    let path = shards.write("a.tar", &make("a"));
    let config =
        TarConfig { fields: Some(vec!["json:n".into()]), label: Some("none".into()), ..shards.config() };
    let source = open(&SourceConfig::Tar(config)).unwrap();
    for (index, result) in read_each(&source) {
        let expected = [noise(index + 10, 500), (index + 10).to_le_bytes().to_vec()].concat();
        assert!(result.unwrap() == expected, "{index}");
    }
    fs::File::options().write(true).open(&path).unwrap().write_all(&make("b")).unwrap();
    for (index, result) in read_each(&source) {
        assert_eq!(result.is_err(), index == 40, "{index}");
    }
}

#[test]
fn an_image_may_have_any_ending_that_images_have_elsewhere() {
    let shards = Shards::new();
    let endings = [
        "jpg", "jpeg", "jpe", "jfif", "png", "webp", "gif", "bmp", "tif", "tiff", "avif", "ppm", "pgm",
        "pnm", "pbm",
    ];
    let members: Vec<_> =
        endings.iter().enumerate().map(|(n, ending)| member(&format!("{n}.{ending}"), b"x")).collect();
    shards.write("a.tar", &archive(&members));
    assert_eq!(shards.open().unwrap().len(), endings.len() as u64);
}

#[test]
fn a_shard_that_changes_is_an_error_and_never_other_bytes() {
    let make = |seed: u64| {
        let members: Vec<_> = (0..50)
            .map(|n| {
                member(&format!("{n:02}.jpg"), &noise(seed + n, 3000 + (seed as usize + n as usize) % 7))
            })
            .collect();
        archive(&members)
    };
    let shards = Shards::new();
    shards.write("a.tar", &make(0));
    let source = shards.open().unwrap();
    // Cut short, or another shard of the same length: of another version nothing is delivered, wherever it lies.
    let whole = make(0);
    let mut other = make(0);
    other.rotate_left(512);
    for bytes in [&whole[..whole.len() / 2], &other] {
        shards.write("a.tar", bytes);
        for (index, result) in read_each(&source) {
            let error = result.unwrap_err();
            assert_eq!(error.kind(), ReadErrorKind::Changed, "{index}: {error}");
            assert!(error.key() == format!("a.tar/{index:02}.jpg"), "{error}");
            assert!(error.to_string().contains("a.tar has changed since"), "{error}");
        }
    }
    fs::remove_file(shards.path("a.tar")).unwrap();
    assert_eq!(read_each(&source)[&0].as_ref().unwrap_err().kind(), ReadErrorKind::Gone);
    // Opened again, the new content counts, not what the cache remembers of the old.
    shards.write("a.tar", &make(3));
    let source = shards.open().unwrap();
    assert!(contents(&source)[0].2 == noise(3, 3003));
}

#[test]
fn a_reader_that_is_dropped_drops_what_it_did_not_do() {
    let shards = Shards::new();
    let members: Vec<_> = (0..300)
        .flat_map(|n| {
            [
                member(&format!("{n:03}.e.npy"), &npy("|u1", "(4,)", &[1; 4])),
                member(&format!("{n:03}.bin"), &noise(n, 60_000)),
                member(&format!("{n:03}.jpg"), &noise(n, 30_000)),
            ]
        })
        .collect();
    shards.write("a.tar", &archive(&members));
    for fields in [None, Some(vec!["e.npy".to_owned()])] {
        let source = open(&SourceConfig::Tar(TarConfig { fields, ..shards.config() })).unwrap();
        for wait_for in [0, 1, 100] {
            let reader = source.clone().reader(&ReaderConfig::default()).unwrap();
            let alive = Arc::new(());
            let (tell, told) = mpsc::channel();
            let requests = (0..20_000u64).map(|number| {
                let (alive, tell) = (alive.clone(), tell.clone());
                let done = move |result: Result<_, _>| {
                    let _alive = alive;
                    let _ =
                        tell.send(result.map(|record: fuelrail_connectors::Record| record.index).unwrap());
                };
                ReadRequest { index: number % 300, done: Box::new(done) }
            });
            reader.submit(requests.collect());
            told.iter().take(wait_for).for_each(drop);
            drop(reader);
            assert_eq!(Arc::strong_count(&alive), 1, "every callback is gone, called or not");
        }
    }
}

#[test]
fn an_index_beside_the_shard_is_used_when_it_fits_and_not_otherwise() {
    let shards = Shards::new();
    let make = |content: u64| {
        archive(&[
            member("a.cls", b"1"),
            member("a.jpg", &noise(content, 700)),
            member("b.cls", b"2"),
            member("b.jpg", b"b"),
        ])
    };
    let path = shards.write("a.tar", &make(1));
    let config = TarConfig { label: Some("cls".into()), ..shards.config() };
    let fingerprint = shards.open().unwrap().fingerprint();
    fs::remove_dir_all(shards.root.path().join("cache")).unwrap();
    let bytes = tar_sidecar(&path, &config).unwrap();
    let beside = shards.write("a.tar.idx", &bytes);
    assert_eq!(shards.open().unwrap().fingerprint(), fingerprint);
    assert!(shards.cached().is_empty(), "nothing had to be indexed");
    conforms(&SourceConfig::Tar(config.clone()));
    // Other settings, damage, another shard: the shard itself is looked at.
    let none = TarConfig { label: Some("none".into()), ..shards.config() };
    assert_eq!(open(&SourceConfig::Tar(none)).unwrap().label(0), 0);
    for (at, bit) in [(0, 1), (9, 1), (13, 1), (60, 4), (bytes.len() - 20, 1), (bytes.len() - 1, 1)] {
        let mut damaged = bytes.clone();
        damaged[at] ^= bit;
        fs::write(&beside, damaged).unwrap();
        assert_eq!(shards.open().unwrap().fingerprint(), fingerprint, "byte {at}");
    }
    for len in [0, 5, 60, bytes.len() / 2, bytes.len() - 1] {
        fs::write(&beside, &bytes[..len]).unwrap();
        assert_eq!(shards.open().unwrap().fingerprint(), fingerprint, "cut at {len}");
    }
    fs::write(&beside, &bytes).unwrap();
    shards.write(
        "a.tar",
        &archive(&[
            member("a.cls", b"5"),
            member("c.jpg", b"c"),
            member("c.cls", b"1"),
            member("b.jpg", &[3; 700]),
        ])[..make(1).len()],
    );
    assert!(shards.open().is_err() || shards.open().unwrap().key(0) != "a.tar/a.jpg");
}

#[test]
fn compressed_shards_are_unpacked_once_and_make_room_for_each_other() {
    let shards = Shards::new();
    let make = |seed: u64| {
        let members: Vec<_> = (0..40)
            .flat_map(|n| {
                [member(&format!("{n:03}.cls"), b"4"), member(&format!("{n:03}.jpg"), &noise(seed + n, 2000))]
            })
            .collect();
        archive(&members)
    };
    let gzip = |bytes: &[u8]| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    };
    let (a, b, c) = (make(1), make(2), make(3));
    let half = a.len() / 2;
    // Two gzip members and padding, as tapes have it.
    shards.write("a.tar.gz", &[gzip(&a[..half]), gzip(&a[half..]), vec![0; 3000]].concat());
    shards.write("b.tar", &b);
    shards.write("c.tar.zst", &zstd::encode_all(&c[..], 1).unwrap());
    conforms(&SourceConfig::Tar(shards.config()));
    let source = shards.open().unwrap();
    let found = contents(&source);
    assert_eq!((found.len(), found[80].0.as_str()), (120, "c.tar.zst/000.jpg"));
    assert!(found[0].2 == noise(1, 2000) && found[40].2 == noise(2, 2000) && found[119].2 == noise(42, 2000));
    let unpacked = || {
        let folder = shards.root.path().join("cache/fuelrail-cache/unpacked.fuelrail");
        let mut names: Vec<_> = fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.retain(|name| name.ends_with(".tar"));
        names.sort();
        names
    };
    let both = unpacked();
    assert_eq!(both.len(), 2);
    // A cache with room for one more only: what is open stays, and the limit is an error.
    let only = |name: &str, limit: u64| {
        let config = TarConfig { shards: vec![shards.path(name).display().to_string()], ..shards.config() };
        open(&SourceConfig::Tar(TarConfig {
            cache: CacheConfig { limit_bytes: Some(limit), ..config.cache.clone() },
            ..config
        }))
    };
    shards.write("later/d.tar.gz", &gzip(&make(4)));
    let limit = 2 * a.len() as u64 + 1000;
    let error = only("later/d.tar.gz", limit).err().unwrap().to_string();
    assert!(error.contains("d.tar.gz") && error.contains("cache.limit_bytes"), "{error}");
    assert_eq!(unpacked(), both);
    drop(source);
    let later = only("later/d.tar.gz", limit).unwrap();
    assert_eq!(unpacked().len(), 2, "one made room");
    assert!(contents(&later)[0].2 == noise(4, 2000));
    // A bomb, and damage.
    fs::remove_dir_all(shards.path("later")).unwrap();
    shards.write(
        "bomb.tar.zst",
        &zstd::encode_all(std::io::Read::take(std::io::repeat(0), 1 << 28), 1).unwrap(),
    );
    assert!(only("bomb.tar.zst", 1 << 24).err().unwrap().to_string().contains("limit_bytes"));
    let whole = gzip(&a);
    shards.write("cut.tar.gz", &whole[..whole.len() / 2]);
    let error = only("cut.tar.gz", 1 << 30).err().unwrap().to_string();
    assert!(error.contains("cut.tar.gz cannot be unpacked") && error.contains("damaged"), "{error}");
    shards.write("no.tar.gz", b"plain text");
    assert!(only("no.tar.gz", 1 << 30).err().unwrap().to_string().contains("no.tar.gz"));
    let left = fs::read_dir(shards.root.path().join("cache/fuelrail-cache/unpacked.fuelrail")).unwrap();
    assert!(
        left.map(|entry| entry.unwrap().file_name()).all(|name| !name.to_string_lossy().ends_with(".tmp"))
    );
}
