//! npy and npz files through the public interface.

mod conformance;

use std::fs;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use fuelrail_connectors::{
    ArrayConfig, ArrayTokensConfig, CacheConfig, ElementType, IndexedSource, PartKind, SourceConfig,
    SourceError, Wanted, WantedKind, open,
};

fn conforms(config: &SourceConfig) -> (Arc<dyn IndexedSource>, Vec<Vec<u8>>) {
    conformance::conforms(config, conformance::Sizes::Bounds)
}

/// An npy file as numpy writes it.
fn npy(descr: &str, shape: &[u64], data: &[u8]) -> Vec<u8> {
    let axes: String = shape.iter().map(|n| format!("{n}, ")).collect();
    let mut header = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({axes}), }}");
    while !(10 + header.len() + 1).is_multiple_of(64) {
        header.push(' ');
    }
    header.push('\n');
    let length = (header.len() as u16).to_le_bytes();
    [b"\x93NUMPY\x01\x00", &length[..], header.as_bytes(), data].concat()
}

/// A zip file of stored or deflated members.
fn npz(members: &[(&str, Vec<u8>)], deflated: bool) -> Vec<u8> {
    let (mut file, mut directory) = (Vec::new(), Vec::new());
    for (name, bytes) in members {
        let mut crc = flate2::Crc::new();
        crc.update(bytes);
        let packed = if deflated {
            let mut encoder = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(bytes).unwrap();
            encoder.finish().unwrap()
        } else {
            bytes.clone()
        };
        let at = file.len() as u32;
        let method = if deflated { 8u16 } else { 0 };
        let mut common = vec![20, 0, 0, 0];
        common.extend(method.to_le_bytes());
        common.extend([0; 4]);
        for value in [crc.sum(), packed.len() as u32, bytes.len() as u32] {
            common.extend(value.to_le_bytes());
        }
        common.extend((name.len() as u16).to_le_bytes());
        file.extend(b"PK\x03\x04");
        file.extend(&common);
        file.extend([0; 2]);
        file.extend(name.as_bytes());
        file.extend(packed);
        directory.extend(b"PK\x01\x02\x14\x00");
        directory.extend(&common);
        directory.extend([0; 12]);
        directory.extend(at.to_le_bytes());
        directory.extend(name.as_bytes());
    }
    let at = file.len() as u32;
    file.extend(&directory);
    file.extend(b"PK\x05\x06\0\0\0\0");
    for value in [members.len() as u16; 2] {
        file.extend(value.to_le_bytes());
    }
    file.extend((directory.len() as u32).to_le_bytes());
    file.extend(at.to_le_bytes());
    file.extend([0; 2]);
    file
}

fn config(root: &Path, file: &str) -> ArrayConfig {
    ArrayConfig {
        files: vec![format!("{}/{file}", root.display())],
        cache: CacheConfig { dir: Some(root.join("cache")), limit_bytes: None },
        ..ArrayConfig::default()
    }
}

fn fails(config: ArrayConfig) -> SourceError {
    match open(&SourceConfig::Array(config)) {
        Ok(_) => panic!("it opened"),
        Err(error) => error,
    }
}

fn noise(len: usize) -> Vec<u8> {
    (0..len as u64).map(|i| (i.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as u8).collect()
}

#[test]
fn images_of_every_layout_conform_and_come_as_pnm() {
    let root = tempfile::tempdir().unwrap();
    let data = noise(20 * 60);
    for (name, shape, header) in [
        ("gray", &[20, 10, 6][..], "P5\n6 10\n255\n"),
        ("one", &[20, 10, 6, 1], "P5\n6 10\n255\n"),
        ("rgb", &[20, 10, 2, 3], "P6\n2 10\n255\n"),
        ("planes", &[20, 3, 10, 2], "P6\n2 10\n255\n"),
        ("rgba", &[20, 3, 5, 4], "P7\nWIDTH 5\nHEIGHT 3\n"),
    ] {
        let file = format!("{name}.npy");
        fs::write(root.path().join(&file), npy("|u1", shape, &data)).unwrap();
        let (source, records) = conforms(&SourceConfig::Array(config(root.path(), &file)));
        assert_eq!(source.len(), 20);
        assert_eq!(source.key(3), format!("{file}/3"));
        for (index, record) in records.iter().enumerate() {
            assert!(record.starts_with(header.as_bytes()), "{name}");
            let (row, pixels) = (&data[60 * index..][..60], &record[record.len() - 60..]);
            match name {
                "planes" => assert_eq!(pixels[..4], [row[0], row[20], row[40], row[1]]),
                _ => assert_eq!(pixels, row),
            }
        }
    }
}

#[test]
fn an_npz_gives_images_labels_and_fields_stored_or_deflated() {
    let root = tempfile::tempdir().unwrap();
    let pixels = noise(30 * 12);
    let labels: Vec<u8> = (0..30i32).flat_map(|i| (i % 3).to_be_bytes()).collect();
    let boxes: Vec<u8> = (0..60).flat_map(|i| (i as f32).to_be_bytes()).collect();
    let flags: Vec<u8> = (0..30).map(|i| i * 7 % 5).collect();
    let mut fingerprints = Vec::new();
    for deflated in [false, true] {
        let members = [
            ("x.npy", npy("|u1", &[30, 4, 3], &pixels)),
            ("y.npy", npy(">i4", &[30], &labels)),
            ("boxes.npy", npy(">f4", &[30, 2], &boxes)),
            ("flag.npy", npy("|b1", &[30], &flags)),
            ("names.npy", npy("<U1", &[30], &[0; 120])),
            ("objects.npy", npy("|O", &[30], b"\x80\x04.")),
            ("scalar.npy", npy("<f8", &[], &[0; 8])),
            ("other.npy", npy("<f8", &[2], &[0; 16])),
            ("notes.txt", b"no array".to_vec()),
        ];
        fs::write(root.path().join("data.npz"), npz(&members, deflated)).unwrap();
        let mut config = config(root.path(), "data.npz");
        let (source, records) = conforms(&SourceConfig::Array(config.clone()));
        let schema = source.schema();
        let fields: Vec<_> = schema.fields.iter().map(|field| (field.name.as_str(), field.dtype)).collect();
        assert_eq!(fields, [("boxes", ElementType::F32), ("flag", ElementType::Bool)]);
        assert_eq!(source.key(29), "data.npz/x/29");
        for (index, record) in records.iter().enumerate() {
            assert_eq!(source.label(index as u64), index as i64 % 3);
            let expected: Vec<u8> = [
                b"P5\n3 4\n255\n",
                &pixels[12 * index..][..12],
                &(2.0 * index as f32).to_le_bytes(),
                &(2.0 * index as f32 + 1.0).to_le_bytes(),
                &[u8::from(flags[index] != 0)],
            ]
            .concat();
            assert_eq!(*record, expected);
        }
        fingerprints.push(source.fingerprint());

        config.classes = Some(["a", "b", "c"].map(String::from).to_vec());
        config.fields = Some(vec!["flag".into()]);
        let (source, _) = conforms(&SourceConfig::Array(config.clone()));
        assert_eq!((source.schema().fields.len(), source.classes().len()), (1, 3));
        config.classes = Some(vec!["a".into(), "b".into()]);
        let source = open(&SourceConfig::Array(config.clone())).unwrap();
        assert!((0..30).all(|index| source.verdict(index).is_some() == (index % 3 == 2)));
        assert!(source.verdict(2).unwrap().contains("its label is 2, but there are 2 classes"));
        config.classes = Some(vec!["a".into()]);
        let error = fails(config.clone()).to_string();
        assert!(error.contains("20 of 30 records") && error.contains("data.npz/x/1"), "{error}");

        config.classes = None;
        for (name, expected) in [
            ("names", "texts"),
            ("objects", "pickle"),
            ("scalar", "single number"),
            ("none", "no array \"none\""),
        ] {
            config.fields = Some(vec![name.into()]);
            let error = fails(config.clone()).to_string();
            assert!(
                error.contains("data.npz") && error.contains(name) && error.contains(expected),
                "{error}"
            );
        }
        config.fields = Some(vec!["other".into()]);
        assert!(fails(config).to_string().contains("\"other\" has 2 rows and \"x\" has 30"));
    }
    assert_eq!(fingerprints[0], fingerprints[1], "how it is packed is no part of the data");
}

#[test]
fn shards_are_strung_together_with_those_of_their_labels() {
    let root = tempfile::tempdir().unwrap();
    let mut all = Vec::new();
    for (shard, rows) in [(0, 5), (1, 0), (2, 8)] {
        let data: Vec<u8> = (0..rows * 4).map(|i| i as u8 ^ shard << 5).collect();
        all.extend(data.chunks(4).map(<[u8]>::to_vec));
        let labels: Vec<u8> = (0..rows as u8).map(|row| row + 10 * shard).collect();
        let file = |name: &str| root.path().join(format!("{name}-{shard:02}.npy"));
        fs::write(file("images"), npy("|u1", &[rows, 2, 2], &data)).unwrap();
        fs::write(file("labels"), npy("|u1", &[rows], &labels)).unwrap();
    }
    let (source, records) = conforms(&SourceConfig::Array(config(root.path(), "")));
    assert_eq!(source.len(), 13);
    assert!(records.iter().zip(&all).all(|(record, row)| record.ends_with(row)));
    assert_eq!((source.key(4), source.key(5)), ("images-00.npy/4".into(), "images-02.npy/0".into()));
    assert_eq!((source.label(4), source.label(5)), (4, 20));

    // The same by a pattern, with the labels named by their path.
    let mut named = config(root.path(), "images-{00,02}.npy");
    named.label = Some("labels-00.npy".into());
    let error = fails(named).to_string();
    assert!(error.contains("5 rows, not one for each of 13 records"), "{error}");
    fs::write(root.path().join("images-03.npy"), npy("|u1", &[1, 2, 3], &[0; 6])).unwrap();
    let error = fails(config(root.path(), "images-*.npy")).to_string();
    assert!(error.contains("images-03.npy") && error.contains("[1, 2, 3]"), "{error}");
}

#[test]
fn labels_beside_one_file_are_found_and_fields_can_be_files() {
    let root = tempfile::tempdir().unwrap();
    fs::write(root.path().join("train.npy"), npy("|u1", &[6, 2, 2], &noise(24))).unwrap();
    fs::write(root.path().join("labels.npy"), npy("<i8", &[6], &[3, 0, 0, 0, 0, 0, 0, 0].repeat(6))).unwrap();
    fs::write(root.path().join("weight.npy"), npy("<f2", &[6], &[7; 12])).unwrap();
    let (source, _) = conforms(&SourceConfig::Array(config(root.path(), "train.npy")));
    assert_eq!((source.label(5), source.schema().fields.len()), (3, 0));
    let mut config = config(root.path(), "train.npy");
    config.fields = Some(vec!["weight.npy".into()]);
    let (source, records) = conforms(&SourceConfig::Array(config.clone()));
    assert_eq!(source.schema().fields[0].name, "weight");
    assert!(records.iter().all(|record| record.ends_with(&[7, 7])));
    config.label = Some("weight.npy".into());
    let error = fails(config).to_string();
    assert!(error.contains("\"weight\" holds floats such as") && error.contains("label=None"), "{error}");
}

#[test]
fn arrays_without_images_are_fields_and_one_plain_array_lies_in_its_file() {
    let root = tempfile::tempdir().unwrap();
    let data = noise(40 * 8 * 4);
    fs::write(root.path().join("features.npy"), npy("<f4", &[40, 8], &data)).unwrap();
    let (source, records) = conforms(&SourceConfig::Array(config(root.path(), "features.npy")));
    assert!(!source.schema().image && source.extent(1).is_some());
    assert_eq!(records.concat(), data);
}

#[test]
fn tokens_are_cut_from_npy_and_raw_files() {
    let root = tempfile::tempdir().unwrap();
    let tokens: Vec<u16> = (0..1003).map(|i| (i * 77) as u16).collect();
    let bytes: Vec<u8> = tokens.iter().flat_map(|token| token.to_le_bytes()).collect();
    fs::write(root.path().join("train.bin"), &bytes).unwrap();
    fs::write(root.path().join("t_000.npy"), npy("<u2", &[1003], &bytes)).unwrap();
    fs::write(root.path().join("t_001.npy"), npy("<u2", &[10], &bytes[..20])).unwrap();
    let cut = |length, stride| Some(ArrayTokensConfig { length, stride, stored: None, dtype: None });
    for (file, length, stride, expected) in [
        ("train.bin", 10, None, 100),
        ("train.bin", 11, Some(10), 100),
        ("t_*.npy", 10, None, 101),
        ("train.bin", 1003, None, 1),
    ] {
        let mut config = config(root.path(), file);
        config.tokens = cut(length, stride);
        let (source, records) = conforms(&SourceConfig::Array(config));
        assert_eq!(source.len(), expected, "{file}");
        assert_eq!(
            (source.schema().fields[0].name.as_str(), source.schema().fields[0].shape[0]),
            ("tokens", length)
        );
        for (index, record) in records.iter().enumerate().take(100) {
            let start = index * stride.unwrap_or(length) as usize;
            let expected: Vec<u8> = tokens[start..][..length as usize]
                .iter()
                .flat_map(|&token| i64::from(token).to_le_bytes())
                .collect();
            assert_eq!(*record, expected);
        }
    }
    let mut config = config(root.path(), "train.bin");
    config.tokens = cut(2000, None);
    assert!(fails(config.clone()).to_string().contains("fewer than tokens.length"));
    config.tokens = cut(0, None);
    assert!(fails(config).is_config());
}

#[test]
fn files_that_are_damaged_or_ask_for_too_much_are_refused_by_name() {
    let root = tempfile::tempdir().unwrap();
    let good = npy("|u1", &[4, 2, 2], &[1; 16]);
    let huge = npy("|u1", &[1 << 40, 1 << 20, 1 << 20], &[]);
    let empty_rows = npy("<f4", &[1 << 60, 0], &[]);
    for (bytes, expected) in [
        (good[..good.len() - 1].to_vec(), "promises shape [4, 2, 2]"),
        ([&good[..], b"x"].concat(), "something follows"),
        (huge, "more than 2^64"),
        (empty_rows, "can be a record's"),
        (good[..50].to_vec(), "ends within its header"),
        (Vec::new(), "ends within its header"),
        (npy("|u1", &[0, 2, 2], &[]), "can be a record's"),
        (good.iter().map(|b| if *b == b'F' { b'T' } else { *b }).collect(), "not understood"),
    ] {
        fs::write(root.path().join("x.npy"), bytes).unwrap();
        let error = fails(config(root.path(), "x.npy")).to_string();
        assert!(error.contains("x.npy") && error.contains(expected), "{error}");
    }
    let text = String::from_utf8_lossy(&good).replace("False", "True ");
    let fortran = [&good[..10], &text.as_bytes()[text.len() - (good.len() - 10)..]].concat();
    fs::write(root.path().join("x.npy"), fortran).unwrap();
    let mut asked = config(root.path(), "x.npy");
    asked.image = Some("x".into());
    assert!(fails(asked).to_string().contains("ascontiguousarray"));
    fs::write(root.path().join("x.npz"), npz(&[("x.npy", good.clone())], false)).unwrap();
    let whole = fs::read(root.path().join("x.npz")).unwrap();
    for cut in (0..whole.len()).step_by(7) {
        fs::write(root.path().join("x.npz"), &whole[..cut]).unwrap();
        assert!(fails(config(root.path(), "x.npz")).to_string().contains("x.npz"));
    }
}

/// Texts of one width in four bytes a character, as numpy's `U`.
fn wide(texts: &[&str], width: usize) -> Vec<u8> {
    let text = |text: &&str| {
        let mut codes: Vec<u32> = text.chars().map(u32::from).collect();
        codes.resize(width, 0);
        codes.into_iter().flat_map(u32::to_le_bytes).collect::<Vec<u8>>()
    };
    texts.iter().flat_map(text).collect()
}

#[test]
fn arrays_of_texts_masks_and_boxes_are_named_parts() {
    let root = tempfile::tempdir().unwrap();
    let captions = ["käse", "", "a cat 🐈", "dog"];
    let mask: Vec<u8> = (0..4 * 6u16).flat_map(|value| (value * 1000).to_le_bytes()).collect();
    let boxes: Vec<u8> = (0..4 * 2 * 4).flat_map(|value| (value as f32).to_le_bytes()).collect();
    let members = |range: std::ops::Range<usize>| {
        let of = |bytes: &[u8]| bytes[range.start * bytes.len() / 4..range.end * bytes.len() / 4].to_vec();
        let n = range.len() as u64;
        let width = captions[range.clone()].iter().map(|text| text.chars().count()).max().unwrap();
        vec![
            ("images.npy", npy("|u1", &[n, 2, 3, 3], &of(&noise(4 * 18)))),
            ("caption.npy", npy(&format!("<U{width}"), &[n], &wide(&captions[range.clone()], width))),
            ("meta.npy", npy("|S7", &[n, 1], &of(b"{}\0\0\0\0\0       [1]\0\0\0\0\"\xff\"\0\0\0\0"))),
            ("mask.npy", npy("<u2", &[n, 2, 3], &of(&mask))),
            ("boxes.npy", npy("<f4", &[n, 2, 4], &of(&boxes))),
            ("score.npy", npy(">f4", &[n], &of(&[0x3f, 0x80, 0, 0].repeat(4)))),
            ("labels.npy", npy("|u1", &[n], &of(&[3, 1, 2, 0]))),
        ]
    };
    for deflated in [false, true] {
        fs::write(root.path().join("0.npz"), npz(&members(0..2), deflated)).unwrap();
        fs::write(root.path().join("1.npz"), npz(&members(2..4), deflated)).unwrap();
        let wanted = [
            Wanted::own_image(),
            Wanted::new("caption", WantedKind::Text),
            Wanted::new("mask", WantedKind::Image),
            Wanted::new("meta", WantedKind::Json),
            Wanted::new("boxes", WantedKind::Ragged),
            Wanted { optional: true, ..Wanted::new("none", WantedKind::Text) },
            Wanted::new("score", WantedKind::Numbers),
        ];
        let source = |wanted: &[Wanted]| SourceConfig::Array(config(root.path(), "*.npz")).delivering(wanted);
        let (opened, records) = conforms(&source(&wanted));
        let schema = opened.schema();
        assert_eq!(schema.parts[3].kind, PartKind::Ragged { dtype: ElementType::F32, row: vec![4] });
        assert_eq!((opened.len(), opened.label(0), opened.image_size()), (4, 3, Some((3, 2))));
        for (index, parts) in conformance::parts_of(&schema, &records).into_iter().enumerate() {
            let [caption, of_mask, meta, of_boxes, none] = &parts[..] else { panic!("{parts:?}") };
            assert_eq!(caption.as_deref(), Some(captions[index].as_bytes()));
            let value = (index * 6 * 1000) as u16;
            let of_mask = of_mask.as_ref().unwrap();
            assert_eq!(of_mask[..13], *b"P5\n3 2\n65535\n");
            assert_eq!(of_mask[13..15], value.to_be_bytes());
            let json: [Option<&[u8]>; 4] = [Some(b"{}"), None, Some(b"[1]"), Some(b"\"\xff\"")];
            assert_eq!((meta.as_deref(), none), (json[index], &None));
            assert_eq!(of_boxes.as_deref(), Some(&boxes[index * 32..][..32]));
            assert_eq!(*schema.cut(&records[index]).unwrap().fields, 1f32.to_le_bytes());
        }
        let (alone, _) = conforms(&source(&wanted[1..2]));
        assert!(alone.schema().parts.len() == 1 && !alone.schema().image);
        let refused = |name: &str, kind: WantedKind| match open(&source(&[Wanted::new(name, kind)])) {
            Ok(_) => panic!("{name} opened"),
            Err(error) => error.to_string(),
        };
        for (name, kind, why) in [
            ("captions", WantedKind::Text, "did you mean \"caption\"?"),
            ("caption", WantedKind::Image, "holds texts"),
            ("score", WantedKind::Ragged, "without max_rows"),
            ("boxes", WantedKind::Image, "holds no images"),
            ("boxes", WantedKind::Text, "which is not text"),
            ("caption", WantedKind::Numbers, "only numbers are read"),
        ] {
            let text = refused(name, kind);
            assert!(text.contains(why) && text.contains(&format!("{name:?}")), "{text}");
        }
    }
}

#[test]
fn a_text_with_a_character_that_does_not_exist_is_one_bad_record() {
    let root = tempfile::tempdir().unwrap();
    let codes: Vec<u8> = [65u32, 0xD800, 66].into_iter().flat_map(u32::to_le_bytes).collect();
    fs::write(root.path().join("x.npy"), npy("<U1", &[3], &codes)).unwrap();
    let config = SourceConfig::Array(config(root.path(), "x.npy"));
    let source = open(&config.delivering(&[Wanted::new("x", WantedKind::Text)])).unwrap();
    let records = conformance::try_all(&source, fuelrail_connectors::Backend::Threads, 2);
    let error = records[1].as_ref().unwrap_err().to_string();
    assert!(error.contains("part \"x\": it has a character that does not exist"), "{error}");
    assert!(records[0].is_ok() && records[2].is_ok());
}

#[test]
fn a_mask_that_is_too_large_for_a_part_is_refused_by_name() {
    let root = tempfile::tempdir().unwrap();
    let side = 1u64 << 15;
    let path = root.path().join("x.npy");
    let header = npy("|u1", &[1, side, side], &[]);
    fs::write(&path, &header).unwrap();
    // Only its size is looked at: no byte of it is on the disk.
    fs::File::options().write(true).open(&path).unwrap().set_len(header.len() as u64 + side * side).unwrap();
    let config = SourceConfig::Array(config(root.path(), "x.npy"));
    let error = match open(&config.delivering(&[Wanted::new("x", WantedKind::Image)])) {
        Ok(_) => panic!("it opened"),
        Err(error) => error.to_string(),
    };
    assert!(error.contains("part \"x\"") && error.contains("1024 MiB or more"), "{error}");
}
