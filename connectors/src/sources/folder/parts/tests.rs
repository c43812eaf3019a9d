use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::{Arc, mpsc};

use proptest::prelude::*;
use tempfile::TempDir;

use super::{NONE, Plan};
use crate::sources::folder::Folder;
use crate::{
    Backend, CacheConfig, ElementType, FolderConfig, IndexedSource, PartKind, ReadError, ReadErrorKind,
    ReadRequest, ReaderConfig, SourceConfig, Wanted, WantedKind,
};

/// A folder `root` in another one, with these files in it; each holds its own path, or the text that is given.
fn folder(files: &[(&str, &str)]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (file, text) in files {
        let path = folder.path().join("root").join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, if text.is_empty() { file } else { text }).unwrap();
    }
    folder
}

fn config(folder: &TempDir, wanted: &[Wanted]) -> FolderConfig {
    FolderConfig {
        root: folder.path().join("root"),
        classes: None,
        label: None,
        split: None,
        deliver: Some(wanted.to_vec()),
        cache: CacheConfig::default(),
    }
}

fn open(folder: &TempDir, wanted: &[Wanted]) -> Arc<Folder> {
    Arc::new(Folder::open(&config(folder, wanted)).unwrap_or_else(|error| panic!("{error}")))
}

fn refused(folder: &TempDir, wanted: &[Wanted]) -> String {
    Folder::open(&config(folder, wanted)).unwrap_err().to_string()
}

fn image() -> Wanted {
    Wanted::own_image()
}

fn text(part: &str) -> Wanted {
    Wanted::new(part, WantedKind::Text)
}

fn want(part: &str, kind: WantedKind) -> Wanted {
    Wanted::new(part, kind)
}

fn keys(folder: &Arc<Folder>) -> Vec<String> {
    (0..IndexedSource::len(&**folder)).map(|index| IndexedSource::key(&**folder, index)).collect()
}

type Read = Result<(Vec<u8>, Vec<Option<Vec<u8>>>, Vec<u8>), ReadError>;

fn read(source: &Arc<Folder>) -> Vec<Read> {
    let reader = source.clone().reader(&ReaderConfig { backend: Backend::Threads, depth: 3 }).unwrap();
    let (tell, told) = mpsc::channel();
    let request = |index| {
        let tell = tell.clone();
        ReadRequest { index, done: Box::new(move |result| tell.send((index, result)).unwrap()) }
    };
    reader.submit((0..IndexedSource::len(&**source)).map(request).collect());
    drop(tell);
    let mut all: Vec<_> = told.iter().collect();
    all.sort_by_key(|(index, _)| *index);
    let schema = source.schema();
    let cut = |(index, result): (u64, Result<crate::Record, ReadError>)| {
        let bytes = result?.bytes;
        assert!(bytes.len() as u64 <= source.size(index));
        let cut = schema.cut(&bytes).unwrap();
        let parts = cut.parts.into_iter().map(|part| part.map(<[u8]>::to_vec)).collect();
        Ok((cut.image.to_vec(), parts, cut.fields.to_vec()))
    };
    all.into_iter().map(cut).collect()
}

fn parts(source: &Arc<Folder>) -> Vec<Vec<Option<String>>> {
    let text = |part: Option<Vec<u8>>| part.map(|part| String::from_utf8(part).unwrap());
    read(source).into_iter().map(|read| read.unwrap().1.into_iter().map(text).collect()).collect()
}

fn some(text: &str) -> Option<String> {
    Some(text.to_owned())
}

#[test]
fn files_belong_to_the_image_with_the_same_stem_whatever_their_case() {
    let files = [
        "c/a.jpg",
        "c/a.txt",
        "c/b.b.PNG",
        "c/b.b.TXT",
        "c/b.txt",
        "d/a.jpg",
        "d/A.txt",
        "d/e.webp",
        "d/e.caption",
    ];
    let folder = folder(&files.map(|file| (file, "")));
    let source = open(&folder, &[image(), text("txt;.caption")]);
    assert_eq!(keys(&source), ["c/a.jpg", "c/b.b.PNG", "d/a.jpg", "d/e.webp"]);
    assert_eq!(parts(&source), [[some("c/a.txt")], [some("c/b.b.TXT")], [None], [some("d/e.caption")]]);
    assert_eq!(read(&source)[1].as_ref().unwrap().0, b"c/b.b.PNG");
    assert_eq!(source.schema().parts[0].name, "txt;.caption");
    assert_eq!(source.schema().parts[0].kind, PartKind::Text);
    // The spelling that was asked for comes first.
    fs::write(folder.path().join("root/c/a.TXT"), "other").unwrap();
    assert_eq!(parts(&open(&folder, &[image(), text("txt")]))[0], [some("c/a.txt")]);
}

proptest! {
    #[test]
    fn whatever_lies_in_a_folder_is_a_record_or_belongs_to_one_or_is_alone(
        names in prop::collection::btree_set("[ab.]{1,3}\\.(jpg|png|PNG|txt|seg\\.png|TXT)", 1..25),
        with_image in any::<bool>(),
    ) {
        let mut wanted = vec![text("txt"), want("seg.png;png", WantedKind::Image)];
        if with_image {
            wanted.push(image());
        }
        let config = FolderConfig { deliver: Some(wanted), ..config(&tempfile::tempdir().unwrap(), &[]) };
        let plan = Plan::new(&config).unwrap().unwrap();
        let names: Vec<&[u8]> = names.iter().map(String::as_bytes).filter(|name| plan.takes(name)).collect();
        let coupled = plan.couple(&names);
        prop_assert_eq!(coupled.beside.len(), 2 * coupled.records.len());
        prop_assert!(coupled.records.is_sorted_by(|a, b| a < b));
        // What an image is called without its ending, and what a part is called without its own.
        let own = |name: &[u8]| name[..name.iter().rposition(|&byte| byte == b'.').unwrap()].to_vec();
        let of_part = |name: &[u8]| {
            let lower = name.to_ascii_lowercase();
            let ends = |ending: &str| lower.ends_with(ending.as_bytes()).then(|| name.len() - ending.len());
            ends(".seg.png").filter(|&stem| stem > 0).or(ends(".png")).or(ends(".txt")).filter(|&stem| stem > 0)
        };
        let mut used: Vec<u32> = coupled.beside.iter().copied().filter(|&at| at != NONE).collect();
        for (record, beside) in coupled.records.iter().zip(coupled.beside.chunks(2)) {
            let name = names[*record as usize];
            let stem = if with_image { own(name) } else { name[..of_part(name).unwrap()].to_vec() };
            prop_assert_eq!(with_image, of_part(name).is_none());
            for (file, endings) in [&["txt"][..], &["seg.png", "png"]].iter().enumerate() {
                let best = endings.iter().find_map(|ending| {
                    let is_it = |other: &&[u8]| {
                        let at = of_part(other);
                        at.is_some_and(|at| {
                            other[..at] == stem[..] && other[at + 1..].eq_ignore_ascii_case(ending.as_bytes())
                        })
                    };
                    let mut all: Vec<&[u8]> = names.iter().copied().filter(|name| is_it(name)).collect();
                    all.sort_by_key(|name| (!name.ends_with(ending.as_bytes()), *name));
                    all.first().copied()
                });
                let found = (beside[file] != NONE).then(|| names[beside[file] as usize]);
                prop_assert_eq!(found, best);
            }
        }
        used.sort_unstable();
        used.dedup();
        let parts = names.iter().filter(|name| of_part(name).is_some()).count() as u64;
        prop_assert_eq!(coupled.alone, parts - used.len() as u64);
    }
}

#[test]
fn an_image_that_is_a_part_is_no_record() {
    let files = ["c/a.jpg", "c/a.seg.png", "c/a.png", "c/b.jpg", "c/b.seg.png", "c/x.seg.png"];
    let folder = folder(&files.map(|file| (file, "")));
    let mask = want("seg.png", WantedKind::Image);
    let source = open(&folder, &[image(), mask.clone()]);
    assert_eq!(keys(&source), ["c/a.jpg", "c/a.png", "c/b.jpg"]);
    assert_eq!(parts(&source), [[some("c/a.seg.png")], [some("c/a.seg.png")], [some("c/b.seg.png")]]);
    let source = open(&folder, &[image(), mask, want("png", WantedKind::Image)]);
    assert_eq!(keys(&source), ["c/a.jpg", "c/b.jpg"]);
    assert_eq!(
        parts(&source),
        [[some("c/a.seg.png"), some("c/a.png")], [some("c/b.seg.png"), None]],
        "the longer ending decides whose part a file is"
    );
    let text = refused(&folder, &[image(), want("png;jpg", WantedKind::Image)]);
    assert!(text.contains("no images") && text.contains("no images of their own"), "{text}");
}

#[test]
fn without_the_image_each_stem_with_a_part_is_a_record() {
    let files = ["c/a.jpg", "c/a.txt", "c/b.txt", "c/d.json", "e/f.txt"];
    let folder = folder(&files.map(|file| (file, "")));
    let source = open(&folder, &[text("txt"), want("json", WantedKind::Json)]);
    assert_eq!(
        (keys(&source), source.classes()),
        (
            vec!["c/a.txt".to_owned(), "c/b.txt".into(), "c/d.json".into(), "e/f.txt".into()],
            &["c".to_owned(), "e".into()][..]
        )
    );
    assert_eq!(parts(&source)[1..3], [[some("c/b.txt"), None], [None, some("c/d.json")]]);
    assert!(!source.schema().image);
    let alternatives = open(&folder, &[want("png;jpg", WantedKind::Image), text("txt")]);
    assert_eq!(keys(&alternatives), ["c/a.jpg", "c/b.txt", "e/f.txt"]);
    let source = open(&folder, &[text("txt")]);
    assert_ne!(source.fingerprint(), alternatives.fingerprint());
    let refused = refused(&folder, &[want("m/{stem}.png", WantedKind::Image)]);
    assert!(refused.contains("which files are the records"), "{refused}");
}

#[test]
fn templates_lead_to_files_elsewhere() {
    let folder =
        folder(&[("x/a.jpg", ""), ("x/y/b.jpg", ""), ("../masks/x/a.png", "A"), ("../masks/x/y/b.png", "B")]);
    let mask = want("../masks/{path}.png", WantedKind::Image);
    let source = open(&folder, &[image(), mask.clone()]);
    assert_eq!(parts(&source), [[some("A")], [some("B")]]);
    let locations = SourceConfig::Folder(config(&folder, &[image(), mask])).locations();
    assert!(Path::new(&locations[1]).ends_with("root/../masks"), "{locations:?}");
    let absolute = format!("{}/masks/x/{{stem}}.png", folder.path().display());
    let source = open(&folder, &[image(), want(&absolute, WantedKind::Image)]);
    assert_eq!(parts(&source), [[some("A")], [None]]);
    for (template, why) in [("../maks/{path}.png", "did you mean"), ("../masks/{path}.gif", "x has a.png, y")]
    {
        let text = refused(&folder, &[image(), want(template, WantedKind::Image)]);
        assert!(text.contains(template) && text.contains(why), "{text}");
    }
    let text = refused(&folder, &[image(), want("{dir}/../{stem}.png", WantedKind::Image)]);
    assert!(text.contains("only come at the beginning"), "{text}");
}

#[test]
fn a_folder_of_parts_is_no_class_and_files_of_a_template_are_no_records() {
    let files = ["x/a.jpg", "y/b.jpg", "masks/x/a.png", "masks/y/b.png"];
    let folder_inside = folder(&files.map(|file| (file, "")));
    let source = open(&folder_inside, &[image(), want("masks/{path}.png", WantedKind::Image)]);
    assert_eq!((keys(&source), source.classes().len()), (vec!["x/a.jpg".into(), "y/b.jpg".into()], 2));
    assert_eq!(parts(&source), [[some("masks/x/a.png")], [some("masks/y/b.png")]]);
    let files = ["x/images/a.jpg", "x/masks/a.jpg", "x/images/b.jpg"];
    let beside = folder(&files.map(|file| (file, "")));
    let source = open(&beside, &[image(), want("{path:images=masks}.jpg", WantedKind::Image)]);
    assert_eq!(keys(&source), ["x/images/a.jpg", "x/images/b.jpg"]);
    assert_eq!(parts(&source), [[some("x/masks/a.jpg")], [None]]);
    let flat = folder(&[("a.jpg", ""), ("a_mask.png", ""), ("b.jpg", "")]);
    let source = open(&flat, &[image(), want("{stem}_mask.png", WantedKind::Image)]);
    assert_eq!((keys(&source), source.is_labelled()), (vec!["a.jpg".into(), "b.jpg".into()], false));
    assert_eq!(parts(&source), [[some("a_mask.png")], [None]]);
}

#[test]
fn values_in_json_beside_the_image_are_parts() {
    let a =
        r#"{"caption": "a \"cat\"", "boxes": [[1, 2, 3, 4], [5, 6, 7, 8]], "meta": {"score": 0.5, "id": 7}}"#;
    let b = r#"{"boxes": [], "meta": {"score": 1, "id": 8}}"#;
    let folder =
        folder(&[("c/a.jpg", ""), ("c/a.json", a), ("c/b.jpg", ""), ("c/b.json", b), ("c/d.jpg", "")]);
    let wanted = [
        image(),
        text("json:caption"),
        want("json:boxes", WantedKind::Ragged),
        want("json:meta", WantedKind::Json),
        want("json:meta.score", WantedKind::Numbers),
        want("json:meta.id", WantedKind::Numbers),
    ];
    let source = open(&folder, &wanted);
    let schema = source.schema();
    assert_eq!(schema.parts[1].kind, PartKind::Ragged { dtype: ElementType::F32, row: vec![4] });
    let fields: Vec<_> = schema.fields.iter().map(|field| (field.name.as_str(), field.dtype)).collect();
    assert_eq!(fields, [("json:meta.score", ElementType::F32), ("json:meta.id", ElementType::I64)]);
    let read = read(&source);
    let (_, parts, fields) = read[0].as_ref().unwrap();
    assert_eq!(parts[0].as_deref(), Some(&b"a \"cat\""[..]));
    assert_eq!(parts[1].as_ref().unwrap().len(), 32);
    assert_eq!(parts[2].as_deref(), Some(&br#"{"score": 0.5, "id": 7}"#[..]));
    assert_eq!(fields[..], [&0.5f32.to_le_bytes()[..], &7i64.to_le_bytes()].concat());
    let (_, parts, _) = read[1].as_ref().unwrap();
    assert_eq!((&parts[0], parts[1].as_deref()), (&None, Some(&b""[..])));
    let error = read[2].as_ref().unwrap_err();
    assert_eq!(
        (error.kind(), error.detail()),
        (ReadErrorKind::Bad, "part \"json:meta.score\": it is missing")
    );
    let without = open(&folder, &wanted[..4]);
    assert_eq!(self::read(&without)[2].as_ref().unwrap().1, [None, None, None]);

    let text = refused(&folder, &[image(), want("json:boxe", WantedKind::Ragged)]);
    assert!(text.contains("keys \"boxes\", \"caption\", \"meta\"; did you mean \"boxes\"?"), "{text}");
    let optional = Wanted { optional: true, ..want("json:box", WantedKind::Json) };
    assert_eq!(self::parts(&open(&folder, &[image(), optional]))[0], [None]);
    let text = refused(&folder, &[image(), want("json:caption", WantedKind::Ragged)]);
    assert!(text.contains("say it with row"), "{text}");
}

#[test]
fn a_value_that_cannot_be_what_was_asked_for_is_one_bad_record() {
    let bomb = "[".repeat(100_000);
    let good = r#"{"boxes": [[1, 2]]}"#;
    let files = [
        ("c/a.jpg", ""),
        ("c/a.json", good),
        ("c/b.jpg", ""),
        ("c/b.json", r#"{"boxes": "none"}"#),
        ("c/c.jpg", ""),
        ("c/c.json", &bomb),
        ("c/d.jpg", ""),
        ("c/d.json", "5"),
        ("c/e.jpg", ""),
        ("c/e.json", "\u{0}"),
        ("c/f.jpg", ""),
        ("c/f.json", r#"{"boxes": [[1]]}"#),
    ];
    let folder = folder(&files);
    fs::write(folder.path().join("root/c/e.json"), "").unwrap();
    let source = open(&folder, &[image(), want("json:boxes", WantedKind::Ragged)]);
    let read = read(&source);
    assert!(read[0].is_ok());
    for (at, why) in [
        (1, "it is a text; a list is expected"),
        (2, "not an object"),
        (3, "a number, not an object"),
        (4, "no JSON"),
        (5, "it has a list of 1 where 2 are expected"),
    ] {
        let error = read[at].as_ref().unwrap_err();
        assert_eq!(error.kind(), ReadErrorKind::Bad, "{error}");
        assert!(
            error.to_string().contains(why) && error.detail().starts_with("part \"json:boxes\": "),
            "{error}"
        );
    }
}

#[test]
fn what_is_no_file_is_no_part() {
    let folder =
        folder(&[("c/a.jpg", ""), ("c/b.jpg", ""), ("c/d.jpg", ""), ("c/e.jpg", ""), ("c/e.txt", "")]);
    let at = |name: &str| folder.path().join("root").join(name);
    fs::create_dir(at("c/a.txt")).unwrap();
    symlink("nowhere", at("c/b.txt")).unwrap();
    fs::write(at("c/d.txt"), "").unwrap();
    let wanted = [image(), text("txt")];
    assert_eq!(parts(&open(&folder, &wanted)), [[None], [None], [some("")], [some("c/e.txt")]]);
    let wanted = [image(), text("{path}.txt")];
    assert_eq!(parts(&open(&folder, &wanted)), [[None], [None], [some("")], [some("c/e.txt")]]);
}

#[test]
fn a_part_of_more_than_a_gibibyte_is_one_bad_record() {
    let folder = folder(&[("c/a.jpg", ""), ("c/a.txt", ""), ("c/b.jpg", ""), ("c/b.txt", "")]);
    let file = fs::File::options().write(true).open(folder.path().join("root/c/a.txt")).unwrap();
    file.set_len((1 << 30) + 1).unwrap();
    let source = open(&folder, &[image(), text("txt")]);
    let read = read(&source);
    let error = read[0].as_ref().unwrap_err();
    assert_eq!(
        (error.kind(), error.detail()),
        (ReadErrorKind::Bad, "part \"txt\": it is larger than 1024 MiB")
    );
    assert!(read[1].is_ok());
}

#[test]
fn a_part_that_changed_or_went_is_noticed() {
    let folder = folder(&[("c/a.jpg", ""), ("c/a.txt", ""), ("c/b.jpg", ""), ("c/b.txt", "")]);
    let source = open(&folder, &[image(), text("txt")]);
    let again = open(&folder, &[image(), text("txt")]);
    assert_eq!(source.fingerprint(), again.fingerprint());
    fs::write(folder.path().join("root/c/a.txt"), "longer than it was").unwrap();
    fs::remove_file(folder.path().join("root/c/b.txt")).unwrap();
    let read = read(&source);
    let kinds: Vec<_> = read.into_iter().map(|read| read.unwrap_err().kind()).collect();
    assert_eq!(kinds, [ReadErrorKind::Changed, ReadErrorKind::Gone]);
    assert_ne!(open(&folder, &[image(), text("txt")]).fingerprint(), source.fingerprint());
}

#[test]
fn a_part_that_no_image_has_is_refused_with_what_there_is() {
    let folder = folder(&[("c/a.jpg", ""), ("c/a.txts", ""), ("c/a.json", "")]);
    let text_of = |part: &str| refused(&folder, &[image(), text(part)]);
    let message = text_of("txt");
    assert!(
        message.contains("ends in .txt; other files there end in .json .txts; did you mean \"txts\"?"),
        "{message}"
    );
    let optional = Wanted { optional: true, ..text("txt") };
    assert_eq!(parts(&open(&folder, &[image(), optional])), [[None]]);
    for (part, kind, why) in [
        ("txt;", WantedKind::Text, "an ending is missing"),
        ("sub/a.txt", WantedKind::Text, "same for every image"),
        ("txt:a", WantedKind::Text, "a text file has no \"a\""),
        ("json:a..b", WantedKind::Text, "no place in JSON"),
        ("json:a", WantedKind::Image, "for text, JSON or numbers"),
        ("txt", WantedKind::Ragged, "holds no numbers"),
        ("txt:boxes", WantedKind::Text, "rows of numbers"),
        ("s3://b/{path}.png", WantedKind::Image, "an address"),
    ] {
        let message = refused(&folder, &[image(), want(part, kind)]);
        assert!(message.contains(why) && message.contains(part), "{message}");
    }
}

#[test]
fn only_the_image_is_what_it_always_was() {
    let folder = folder(&[("c/a.jpg", ""), ("c/a.txt", "")]);
    let plain = Arc::new(Folder::open(&FolderConfig { deliver: None, ..config(&folder, &[]) }).unwrap());
    let asked = open(&folder, &[image()]);
    assert_eq!((plain.fingerprint(), plain.extent(0)), (asked.fingerprint(), asked.extent(0)));
}
