use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::SplitPart;

fn folder(files: &[&str]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (index, file) in files.iter().enumerate() {
        let path = folder.path().join(file);
        if file.ends_with('/') {
            fs::create_dir_all(path).unwrap();
            continue;
        }
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, vec![b'x'; index]).unwrap();
    }
    folder
}

fn config(folder: &TempDir) -> FolderConfig {
    FolderConfig {
        root: folder.path().to_owned(),
        classes: None,
        label: None,
        split: None,
        deliver: None,
        cache: CacheConfig::default(),
    }
}

fn keys(folder: &Folder) -> Vec<String> {
    (0..IndexedSource::len(folder)).map(|index| IndexedSource::key(folder, index)).collect()
}

fn labels(folder: &Folder) -> Vec<i64> {
    (0..folder.len()).map(|index| folder.label(index)).collect()
}

fn error(config: &FolderConfig) -> String {
    let text = Folder::open(config).unwrap_err().to_string();
    assert!(text.contains(config.root.to_str().unwrap()), "the folder is named: {text}");
    text
}

#[test]
fn the_order_is_that_of_torchvision() {
    let files = [
        "b/z.jpg",
        "b/sub/a.jpg",
        "b/sub-2/a.jpg",
        "b/sub/deep/a.jpg",
        "b/A.jpg",
        "a/10.png",
        "a/9.png",
        "B/x.gif",
    ];
    let folder = folder(&files);
    let source = Folder::open(&config(&folder)).unwrap();
    assert_eq!(source.classes(), ["B", "a", "b"]);
    let expected = [
        "B/x.gif",
        "a/10.png",
        "a/9.png",
        "b/A.jpg",
        "b/z.jpg",
        "b/sub/a.jpg",
        "b/sub-2/a.jpg",
        "b/sub/deep/a.jpg",
    ];
    // Directories by path: "b/sub" < "b/sub-2" < "b/sub/deep", for '-' sorts before '/'.
    assert_eq!(keys(&source), expected);
    assert_eq!(labels(&source), [0, 1, 1, 2, 2, 2, 2, 2]);
    for index in 0..8 {
        let key = IndexedSource::key(&source, index);
        let size = files.iter().position(|file| *file == key).unwrap() as u64;
        assert_eq!(source.size(index), size);
        let extent = source.extent(index).unwrap();
        assert_eq!(extent, Extent { file: folder.path().join(key), offset: 0, len: size });
    }
    assert_eq!(source.blocks(), Blocks::None);
}

#[test]
fn images_are_known_by_their_ending_and_hidden_ones_are_none() {
    let images = [
        "1.jpg", "2.JPEG", "3.Png", "4.ppm", "5.PGM", "6.pnm", "7.bmp", "8.tif", "9.TIFF", "a.webp", "b.gif",
        "c.jfif", "d.jpe", "e.pbm", "f.AVIF",
    ];
    let others =
        [".x.jpg", "._1.jpg", "jpg", "x.txt", "x.jpg.bak", "Thumbs.db", ".hidden/1.jpg", "x.", "x.jpgg"];
    let files: Vec<_> = images.iter().chain(&others).map(|file| format!("a/{file}")).collect();
    let mut files: Vec<_> = files.iter().map(String::as_str).collect();
    files.push(".ipynb_checkpoints/1.jpg");
    let source = Folder::open(&config(&folder(&files))).unwrap();
    assert_eq!(source.classes(), ["a"]);
    assert_eq!(keys(&source), images.map(|image| format!("a/{image}")));
}

#[test]
fn an_empty_class_keeps_its_label() {
    let folder = folder(&["a/1.jpg", "b/", "c/1.jpg", "d/readme.txt"]);
    let source = Folder::open(&config(&folder)).unwrap();
    assert_eq!(source.classes(), ["a", "b", "c", "d"]);
    assert_eq!(labels(&source), [0, 2]);
}

#[test]
fn what_systems_leave_beside_data_is_no_class() {
    let litter =
        ["__MACOSX", "@eaDir", "lost+found", "$RECYCLE.BIN", "System Volume Information", "__pycache__"];
    let mut files: Vec<String> = litter.iter().map(|name| format!("{name}/x/1.jpg")).collect();
    files.extend(litter.iter().map(|name| format!("b/{name}/1.jpg")));
    files.extend(["a/1.jpg", "b/1.jpg", "zebra/1.jpg", "Thumbs.db", ".DS_Store"].map(str::to_owned));
    let folder = folder(&files.iter().map(String::as_str).collect::<Vec<_>>());
    let source = Folder::open(&config(&folder)).unwrap();
    assert_eq!(source.classes(), ["a", "b", "zebra"]);
    assert_eq!(keys(&source), ["a/1.jpg", "b/1.jpg", "zebra/1.jpg"]);
    // Whoever names one means it.
    let classes = ["a", "b", "zebra", "@eaDir"].map(str::to_owned).to_vec();
    let source = Folder::open(&FolderConfig { classes: Some(classes), ..config(&folder) }).unwrap();
    assert_eq!(keys(&source).last().unwrap(), "@eaDir/x/1.jpg");
}

#[test]
fn parts_of_a_data_set_are_no_classes() {
    for names in [
        &["train/cat/1.jpg", "val/cat/1.jpg"][..],
        &["Train/1.jpg"],
        &["train2017/1.jpg", "val2017/1.jpg", "annotations/x.json"],
        &["test_images/1.jpg", "train_images/1.jpg"],
    ] {
        let root = folder(names);
        let text = error(&config(&root));
        assert!(text.contains("parts of a data set") && text.contains("classes=["), "{text}");
    }
    let cars = folder(&["train/1.jpg", "bus/1.jpg"]);
    assert_eq!(Folder::open(&config(&cars)).unwrap().classes(), ["bus", "train"]);
    let classes = Some(["val", "train"].map(str::to_owned).to_vec());
    let named = folder(&["train/1.jpg", "val/1.jpg"]);
    assert_eq!(labels(&Folder::open(&FolderConfig { classes, ..config(&named) }).unwrap()), [0, 1]);
}

#[test]
fn what_is_doubtful_is_said() {
    let doubts = |names: &[&str]| build(&config(&folder(names)), None).unwrap().warnings.join("\n");
    assert_eq!(doubts(&["a/1.jpg", "b/1.jpg"]), "");
    assert!(
        doubts(&["a/1.jpg", "b/", "c/x.txt"])
            .contains("2 of 3 class folders hold no image and remain classes: b, c")
    );
    assert!(doubts(&["Cat/1.jpg", "cat/1.jpg"]).contains("differ only in case"));
    assert!(
        doubts(&["set/a/1.jpg", "set/b/1.jpg"])
            .contains("its one class folder, set, holds 2 folders with images")
    );
    assert_eq!(doubts(&["set/a/1.jpg", "set/b/1.jpg", "set/1.jpg"]), "");
    assert!(doubts(&["a/1.jpg", "1.jpg"]).contains("1 images directly in"));
    let counts =
        build(&config(&folder(&["a/1.jpg", "a/1.txt", "a/2.TXT", "a/3.heic", "a/x"])), None).unwrap().counts;
    assert_eq!(counts.passed_over().unwrap(), "4 files of other endings were skipped (.txt 2, .heic 1)");
}

#[test]
fn given_classes_are_the_mapping() {
    let folder = folder(&["cat/1.jpg", "dog/1.jpg"]);
    let with = |classes: &[&str]| FolderConfig {
        classes: Some(classes.iter().map(|&class| class.to_owned()).collect()),
        label: None,
        ..config(&folder)
    };
    let source = Folder::open(&with(&["dog", "bird", "cat"])).unwrap();
    assert_eq!(source.classes(), ["dog", "bird", "cat"]);
    assert_eq!(keys(&source), ["dog/1.jpg", "cat/1.jpg"]);
    assert_eq!(labels(&source), [0, 2]);
    let text = error(&with(&["cat", "bird"]));
    assert!(text.contains("/dog is not in the list of classes (cat, bird)"), "{text}");
    let text = Folder::open(&with(&["cat", "dog", "cat"])).unwrap_err().to_string();
    assert!(text.contains("\"cat\" twice"), "{text}");
    assert!(error(&with(&[])).contains("which is empty"));
}

#[test]
fn a_folder_of_images_alone_is_unlabelled() {
    let folder = folder(&["2.jpg", "1.png", "notes.txt"]);
    let source = Folder::open(&config(&folder)).unwrap();
    assert_eq!(keys(&source), ["1.png", "2.jpg"]);
    assert_eq!(labels(&source), [0, 0]);
    assert!(source.classes().is_empty());
    let text = error(&FolderConfig { classes: Some(vec!["a".to_owned()]), label: None, ..config(&folder) });
    assert!(text.contains("no class folders"), "{text}");
}

#[test]
fn images_beside_class_folders_are_left_out() {
    let beside = folder(&["preview.jpg", "a/1.jpg"]);
    assert_eq!(keys(&Folder::open(&config(&beside)).unwrap()), ["a/1.jpg"]);
    let text = error(&config(&folder(&["1.jpg", "2.jpg", "a/"])));
    assert!(text.contains("2 images lie directly in it"), "{text}");
}

#[test]
fn folders_that_cannot_be_used_are_named_with_what_to_do() {
    let root = folder(&["file.jpg", "empty/", "texts/a/1.txt", "classes/a/"]);
    let at = |name: &str| FolderConfig {
        root: root.path().join(name),
        classes: None,
        label: None,
        split: None,
        deliver: None,
        cache: CacheConfig::default(),
    };
    assert!(error(&at("missing")).contains("does not exist"));
    assert!(error(&at("file.jpg")).contains("is not a directory"));
    assert!(error(&at("file.jpg/deeper")).contains("is not a directory"));
    assert!(error(&at("empty")).contains("it has no class folders and no files that end in .jpg"));
    let text = error(&at("texts"));
    assert!(text.contains("no images in the 1 class folders") && text.contains("skipped (.txt 1)"), "{text}");
    assert!(error(&at("classes")).contains("no images in the 1 class folders"));
    assert!(Folder::open(&at("missing")).unwrap_err().is_data());
}

#[test]
fn a_class_folder_that_cannot_be_read_is_an_error_and_not_an_empty_class() {
    let root = folder(&["a/1.jpg", "b/1.jpg"]);
    let locked = root.path().join("b");
    fs::set_permissions(&locked, fs::Permissions::from_mode(0o000)).unwrap();
    if fs::read_dir(&locked).is_ok() {
        eprintln!("skipped: this user may read everything");
        return;
    }
    let text = error(&config(&root));
    fs::set_permissions(&locked, fs::Permissions::from_mode(0o755)).unwrap();
    assert!(text.contains("/b cannot be read"), "{text}");
}

#[test]
fn links_are_followed_once_round_and_special_files_are_not_opened() {
    let root = folder(&["a/1.jpg", "a/sub/2.jpg", "elsewhere/x/3.jpg", "elsewhere/4.jpg"]);
    let outside = root.path().join("elsewhere");
    let path = root.path().join("root");
    fs::create_dir(&path).unwrap();
    fs::rename(root.path().join("a"), path.join("a")).unwrap();
    symlink(&outside, path.join("b")).unwrap();
    symlink(path.join("a"), path.join("a/sub/loop")).unwrap();
    symlink("..", path.join("a/sub/up")).unwrap();
    symlink(".", path.join("a/self")).unwrap();
    symlink(&path, path.join("a/root")).unwrap();
    symlink(outside.join("4.jpg"), path.join("a/link.jpg")).unwrap();
    symlink("nowhere", path.join("a/dangling.jpg")).unwrap();
    let fifo = path.join("a/pipe.jpg");
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0)
        .unwrap();
    symlink(&fifo, path.join("a/to-pipe.jpg")).unwrap();
    let source = Folder::open(&FolderConfig {
        root: path,
        classes: None,
        label: None,
        split: None,
        deliver: None,
        cache: CacheConfig::default(),
    })
    .unwrap();
    assert_eq!(keys(&source), ["a/1.jpg", "a/link.jpg", "a/sub/2.jpg", "b/4.jpg", "b/x/3.jpg"]);
    assert_eq!(source.size(1), 3, "the size of what the link leads to");
}

#[test]
fn folders_nested_without_end_are_refused() {
    let root = folder(&["a/1.jpg"]);
    fs::create_dir_all(root.path().join("a/".repeat(MAX_DEPTH + 2))).unwrap();
    assert!(error(&config(&root)).contains("nested deeper"));
}

#[test]
fn names_that_are_not_utf8_are_records_like_others() {
    let root = folder(&["a/1.jpg"]);
    let class = root.path().join(OsStr::from_bytes(b"caf\xe9"));
    fs::create_dir(&class).unwrap();
    fs::write(class.join(OsStr::from_bytes(b"\xff.jpg")), b"bytes").unwrap();
    let source = Folder::open(&config(&root)).unwrap();
    assert_eq!(source.classes(), ["a", "caf\\xe9"]);
    assert_eq!(keys(&source), ["a/1.jpg", "caf\\xe9/\\xff.jpg"]);
    assert_eq!(fs::read(source.extent(1).unwrap().file).unwrap(), b"bytes");
}

#[test]
fn the_fingerprint_is_of_the_data_and_not_of_the_place() {
    let files = ["a/1.jpg", "a/2.jpg", "b/1.jpg"];
    let (one, two) = (folder(&files), folder(&files));
    let fingerprint = |folder| Folder::open(&config(folder)).unwrap().fingerprint();
    assert_eq!(fingerprint(&one), fingerprint(&two));
    fs::write(two.path().join("b/notes.txt"), b"no image").unwrap();
    assert_eq!(fingerprint(&one), fingerprint(&two));
    fs::write(two.path().join("b/1.jpg"), b"another size").unwrap();
    assert_ne!(fingerprint(&one), fingerprint(&two));
    fs::create_dir(one.path().join("c")).unwrap();
    assert_ne!(fingerprint(&one), fingerprint(&folder(&files)));
}

#[test]
fn a_split_cuts_by_key_and_keeps_the_classes() {
    let files: Vec<_> = (0..1000).map(|index| format!("{}/{index}.jpg", ["a", "b"][index % 2])).collect();
    let mut files: Vec<_> = files.iter().map(String::as_str).collect();
    files.push("c/");
    let root = folder(&files);
    let part = |part, fraction| {
        Folder::open(&FolderConfig { split: Some(Split::fraction(part, fraction)), ..config(&root) })
    };
    let (train, val) = (part(SplitPart::Train, 0.1).unwrap(), part(SplitPart::Val, 0.1).unwrap());
    assert_eq!(train.classes(), ["a", "b", "c"]);
    assert_eq!(val.classes(), train.classes());
    assert!((70..130).contains(&IndexedSource::len(&val)), "{}", IndexedSource::len(&val));
    let mut both: Vec<_> = keys(&train).into_iter().chain(keys(&val)).collect();
    both.sort_unstable();
    let whole = Folder::open(&config(&root)).unwrap();
    assert_eq!(both, keys(&whole));
    assert_ne!(train.fingerprint(), val.fingerprint());
    // One more file moves none of the others.
    fs::write(root.path().join("a/new.jpg"), b"").unwrap();
    let mut grown = keys(&part(SplitPart::Val, 0.1).unwrap());
    grown.retain(|key| key != "a/new.jpg");
    assert_eq!(grown, keys(&val));

    assert_eq!(IndexedSource::len(&part(SplitPart::Val, 1.0).unwrap()), 1001);
    assert_eq!(IndexedSource::len(&part(SplitPart::Train, 0.0).unwrap()), 1001);
    let text = part(SplitPart::Val, 0.0).unwrap_err().to_string();
    assert!(text.contains("none of the 1001 images") && text.contains("\"train[100%:]\""), "{text}");
    for fraction in [-0.1, 1.1, f64::NAN] {
        let error = part(SplitPart::Val, fraction).unwrap_err();
        assert!(error.is_config() && error.to_string().contains("split.fraction"), "{error}");
    }
}

#[test]
fn the_hash_of_a_key_never_changes() {
    // A saved run must find its validation set again: these are fixed for ever.
    let holds = |key: &str| Split::fraction(SplitPart::Val, 0.5).holds(key.as_bytes());
    let keys = ["cat/1.jpg", "cat/2.jpg", "cat/3.jpg", "dog/1.jpg", "dog/2.jpg", "dog/3.jpg"];
    assert_eq!(keys.map(holds), [false, false, true, true, false, false]);
    assert_eq!(xxhash_rust::xxh3::xxh3_64(b""), 0x2d06_8005_38d3_94c2, "the published value");
}

#[test]
fn a_directory_larger_than_one_task_is_measured_whole() {
    let root = tempfile::tempdir().unwrap();
    fs::create_dir(root.path().join("a")).unwrap();
    let original = root.path().join("original");
    fs::write(&original, b"12345").unwrap();
    let count = FILES_PER_TASK * 2 + 3;
    for index in 0..count {
        fs::hard_link(&original, root.path().join(format!("a/{index:05}.jpg"))).unwrap();
    }
    let source = Folder::open(&config(&root)).unwrap();
    assert_eq!(IndexedSource::len(&source), count as u64);
    assert!((0..count as u64).all(|index| source.size(index) == 5));
    assert!(keys(&source).is_sorted());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn any_tree_is_listed_once_and_in_order(
        files in prop::collection::btree_set("[ab]{1,2}(/[a-c-]{1,2}){0,2}/[a-d]{1,2}\\.(jpg|PNG)", 1..40),
    ) {
        let list: Vec<_> = files.iter().map(String::as_str).collect();
        let source = Folder::open(&config(&folder(&list))).unwrap();
        // The order stated again, in the plainest way.
        let mut expected: Vec<_> = files
            .iter()
            .map(|file| {
                let (class, _) = file.split_once('/').unwrap();
                let (directory, name) = file.rsplit_once('/').unwrap();
                (class, directory, name)
            })
            .collect();
        expected.sort_unstable();
        let expected: Vec<_> = expected.iter().map(|(_, directory, name)| format!("{directory}/{name}")).collect();
        prop_assert_eq!(keys(&source), expected);
    }
}
