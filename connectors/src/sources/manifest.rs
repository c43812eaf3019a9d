//! The list of a folder's records: which files, of what size, of which class, in a fixed order.
//!
//! A data set of 1.3 million files must cost little memory, so nothing is a `String` or a `PathBuf` per record. A file
//! name is stored once, without its directory; a directory is stored once, with the number of its first record; a
//! record is eight bytes and its name:
//!
//! ```text
//!  directories   path "cat/tabby" │ class 3 │ first record 4211 │ its names begin at byte 90113     (40 bytes each)
//!                                                   │
//!  name_ends     ... │   9  │  20  │  29  │ ...     ▼  u32 each: end of the name, counted from the directory's begin
//!  names         ...  7431.jpg 10000.jpeg 7433.jpg  ...
//!  sizes         ... │ 98213│  7731│  MAX │ ...        u32 each; MAX: 4 GiB or more, look in `large`
//! ```
//!
//! Finding a record's directory is a binary search over the directories. The order is that of torchvision's
//! `ImageFolder`: classes by name, then directories by path, then files by name, all compared as bytes.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use xxhash_rust::xxh3::Xxh3;

use crate::Fingerprint;

/// A list of files with sizes and labels. Built by [`ManifestBuilder`].
#[derive(Debug)]
pub(crate) struct Manifest {
    classes: Vec<String>,
    directories: Vec<Directory>,
    paths: Vec<u8>,
    names: Vec<u8>,
    name_ends: Vec<u32>,
    sizes: Vec<u32>,
    /// (record, size) of the records of 4 GiB and more, ascending.
    large: Vec<(u64, u64)>,
    total_bytes: u64,
    fingerprint: Fingerprint,
}

/// A run of records in one directory.
#[derive(Clone, Copy, Debug)]
struct Directory {
    first: u64,
    names: u64,
    path: u64,
    path_len: u32,
    class: u32,
}

/// Marks a size that does not fit in its column.
const LARGE: u32 = u32::MAX;

impl Manifest {
    /// Number of records.
    pub(crate) fn len(&self) -> u64 {
        self.sizes.len() as u64
    }

    /// Whether there are no records at all.
    pub(crate) fn is_empty(&self) -> bool {
        self.sizes.is_empty()
    }

    /// Class names in label order.
    pub(crate) fn classes(&self) -> &[String] {
        &self.classes
    }

    /// Sum of all sizes.
    pub(crate) fn total_bytes(&self) -> u64 {
        self.total_bytes
    }

    /// Class of a record: an index into [`classes`](Self::classes), or 0 where there are none.
    ///
    /// # Panics
    /// Here and below, when `index` is not less than [`len`](Self::len).
    pub(crate) fn label(&self, index: u64) -> u32 {
        self.directory(index).class
    }

    /// Size of a record's file in bytes.
    pub(crate) fn size(&self, index: u64) -> u64 {
        match self.sizes[index as usize] {
            LARGE => {
                let found = self.large.binary_search_by_key(&index, |&(record, _)| record);
                self.large[found.expect("a size marked large is in the list")].1
            }
            size => u64::from(size),
        }
    }

    /// Appends a record's path, relative to the root and as stored, to `path`.
    pub(crate) fn path(&self, index: u64, path: &mut Vec<u8>) {
        let directory = self.directory(index);
        let folder = &self.paths[directory.path as usize..][..directory.path_len as usize];
        path.extend_from_slice(folder);
        if !folder.is_empty() {
            path.push(b'/');
        }
        let index = index as usize;
        let begin = if index as u64 == directory.first { 0 } else { self.name_ends[index - 1] };
        let names = &self.names[directory.names as usize..];
        path.extend_from_slice(&names[begin as usize..self.name_ends[index] as usize]);
    }

    /// A record's path as text: a backslash becomes `\\` and a byte that is not UTF-8 `\xNN`, so that different paths
    /// stay different.
    pub(crate) fn key(&self, index: u64) -> String {
        let mut path = Vec::with_capacity(128);
        self.path(index, &mut path);
        escape(&path)
    }

    /// Identity of the list: classes, keys and sizes in order.
    pub(crate) fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    /// Bytes of memory held.
    pub(crate) fn memory(&self) -> u64 {
        let classes: usize = self.classes.iter().map(|class| class.capacity() + size_of::<String>()).sum();
        let columns = self.directories.capacity() * size_of::<Directory>()
            + self.paths.capacity()
            + self.names.capacity()
            + (self.name_ends.capacity() + self.sizes.capacity()) * size_of::<u32>()
            + self.large.capacity() * size_of::<(u64, u64)>();
        (size_of::<Self>() + classes + columns) as u64
    }

    fn directory(&self, index: u64) -> &Directory {
        assert!(index < self.len(), "record {index} of a source of {}", self.len());
        &self.directories[self.directories.partition_point(|directory| directory.first <= index) - 1]
    }

    fn hash(&self) -> Fingerprint {
        let mut hash = Xxh3::new();
        let number = |hash: &mut Xxh3, value: usize| hash.update(&(value as u64).to_le_bytes());
        hash.update(b"fuelrail manifest 1\0");
        number(&mut hash, self.classes.len());
        for class in &self.classes {
            number(&mut hash, class.len());
            hash.update(class.as_bytes());
        }
        number(&mut hash, self.sizes.len());
        let mut path = Vec::new();
        for index in 0..self.len() {
            path.clear();
            self.path(index, &mut path);
            number(&mut hash, path.len());
            hash.update(&path);
            // The label follows from the path only where class folders make it; with a given class list it does not.
            number(&mut hash, self.label(index) as usize);
            number(&mut hash, self.size(index) as usize);
        }
        Fingerprint(hash.digest128())
    }
}

/// Writes a path as text without losing what distinguishes it.
pub(crate) fn escape(path: &[u8]) -> String {
    let mut text = String::with_capacity(path.len());
    for chunk in path.utf8_chunks() {
        for character in chunk.valid().chars() {
            if character == '\\' {
                text.push('\\');
            }
            text.push(character);
        }
        for byte in chunk.invalid() {
            text.push_str(&format!("\\x{byte:02x}"));
        }
    }
    text
}

/// Collects a [`Manifest`]. Directories come in their final order, and so do the files of each.
#[derive(Debug, Default)]
pub(crate) struct ManifestBuilder {
    directories: Vec<Directory>,
    paths: Vec<u8>,
    names: Vec<u8>,
    name_ends: Vec<u32>,
    sizes: Vec<u32>,
    large: Vec<(u64, u64)>,
    total_bytes: u64,
}

impl ManifestBuilder {
    /// Room for `records` records whose names have `name_bytes` bytes together.
    pub(crate) fn with_capacity(records: usize, name_bytes: usize) -> Self {
        Self {
            names: Vec::with_capacity(name_bytes),
            name_ends: Vec::with_capacity(records),
            sizes: Vec::with_capacity(records),
            ..Self::default()
        }
    }

    /// The next files are in `path` (relative to the root, empty for the root itself) and belong to `class`.
    pub(crate) fn directory(&mut self, path: &Path, class: u32) {
        let path = path.as_os_str().as_bytes();
        let begin = self.paths.len() as u64;
        self.paths.extend_from_slice(path);
        self.run(Directory { path: begin, path_len: path.len() as u32, class, first: 0, names: 0 });
    }

    /// Adds a file of the current directory.
    ///
    /// # Panics
    /// When no directory was given before.
    pub(crate) fn file(&mut self, name: &OsStr, size: u64) {
        let directory = *self.directories.last().expect("a file is in a directory");
        self.names.extend_from_slice(name.as_bytes());
        let mut end = self.names.len() as u64 - directory.names;
        if end > u64::from(u32::MAX) {
            // More than 4 GiB of names in one directory: it goes on as a second run with the same path.
            self.names.truncate(self.names.len() - name.len());
            self.run(directory);
            self.names.extend_from_slice(name.as_bytes());
            end = name.len() as u64;
        }
        self.name_ends.push(end as u32);
        if size >= u64::from(LARGE) {
            self.large.push((self.sizes.len() as u64, size));
        }
        self.sizes.push(size.min(u64::from(LARGE)) as u32);
        self.total_bytes += size;
    }

    /// The finished manifest, in as little memory as it needs.
    pub(crate) fn build(mut self, classes: Vec<String>) -> Manifest {
        self.drop_empty_run();
        self.directories.shrink_to_fit();
        self.paths.shrink_to_fit();
        self.names.shrink_to_fit();
        self.name_ends.shrink_to_fit();
        self.sizes.shrink_to_fit();
        self.large.shrink_to_fit();
        let mut manifest = Manifest {
            classes,
            directories: self.directories,
            paths: self.paths,
            names: self.names,
            name_ends: self.name_ends,
            sizes: self.sizes,
            large: self.large,
            total_bytes: self.total_bytes,
            fingerprint: Fingerprint(0),
        };
        manifest.fingerprint = manifest.hash();
        manifest
    }

    /// Starts a run of records here.
    fn run(&mut self, directory: Directory) {
        self.drop_empty_run();
        let (first, names) = (self.sizes.len() as u64, self.names.len() as u64);
        self.directories.push(Directory { first, names, ..directory });
    }

    /// The search for a record's directory wants each run to have a record.
    fn drop_empty_run(&mut self) {
        if self.directories.last().is_some_and(|last| last.first == self.sizes.len() as u64) {
            self.directories.pop();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    fn path(manifest: &Manifest, index: u64) -> Vec<u8> {
        let mut path = Vec::new();
        manifest.path(index, &mut path);
        path
    }

    /// The names and number of files of ImageNet's training set.
    fn imagenet() -> Manifest {
        let mut builder = ManifestBuilder::default();
        for class in 0..1000u32 {
            let folder = format!("n{:08}", 1_440_764 + class * 13_577);
            builder.directory(Path::new(&folder), class);
            for file in 0..1300u64 {
                builder.file(OsStr::new(&format!("{folder}_{file}.JPEG")), 50_000 + file * 97);
            }
        }
        builder.build((0..1000).map(|class| format!("n{class:08}")).collect())
    }

    #[test]
    fn one_point_three_million_records_cost_less_than_a_hundred_bytes_each() {
        let manifest = imagenet();
        assert_eq!(manifest.len(), 1_300_000);
        let each = manifest.memory() as f64 / manifest.len() as f64;
        assert!(each < 40.0, "{each} bytes per record");
        // Also when every record has a long name and a folder of its own.
        let mut builder = ManifestBuilder::default();
        for index in 0..100_000u64 {
            builder.directory(Path::new(&format!("class/{index:016}")), 0);
            builder.file(OsStr::new("image.jpg"), index);
        }
        let manifest = builder.build(vec!["class".to_owned()]);
        let each = manifest.memory() as f64 / manifest.len() as f64;
        assert!(each < 100.0, "{each} bytes per record");
    }

    #[test]
    fn sizes_of_4_gib_and_more_are_kept() {
        let sizes = [0, u64::from(LARGE) - 1, 7, u64::from(LARGE), u64::from(LARGE) + 1, 3, 1 << 40];
        let mut builder = ManifestBuilder::default();
        builder.directory(Path::new("a"), 0);
        for (index, &size) in sizes.iter().enumerate() {
            builder.file(OsStr::new(&index.to_string()), size);
        }
        let manifest = builder.build(vec!["a".to_owned()]);
        assert_eq!((0..7).map(|index| manifest.size(index)).collect::<Vec<_>>(), sizes);
        assert_eq!(manifest.total_bytes(), sizes.iter().sum::<u64>());
    }

    #[test]
    fn the_fingerprint_sees_every_change_and_nothing_else() {
        let build = |folder: &str, names: [&str; 2], sizes: [u64; 2], class: u32, classes: &[&str]| {
            let mut builder = ManifestBuilder::default();
            builder.directory(Path::new("an empty one leaves no trace"), 0);
            builder.directory(Path::new(folder), class);
            for (name, size) in names.into_iter().zip(sizes) {
                builder.file(OsStr::new(name), size);
            }
            builder.build(classes.iter().map(|&class| class.to_owned()).collect()).fingerprint()
        };
        let same = build("a", ["b", "c"], [1, 2], 0, &["a", "x"]);
        assert_eq!(same, build("a", ["b", "c"], [1, 2], 0, &["a", "x"]));
        let others = [
            build("aa", ["b", "c"], [1, 2], 0, &["a", "x"]),
            build("a", ["bc", "c"], [1, 2], 0, &["a", "x"]),
            build("a", ["c", "b"], [1, 2], 0, &["a", "x"]),
            build("a", ["b", "c"], [1, 3], 0, &["a", "x"]),
            build("a", ["b", "c"], [1, 2], 1, &["a", "x"]),
            build("a", ["b", "c"], [1, 2], 0, &["a", "y"]),
            build("a", ["b", "c"], [1, 2], 0, &["ax"]),
        ];
        let distinct: HashSet<_> = others.iter().chain([&same]).collect();
        assert_eq!(distinct.len(), 8);
        // Written into tokens: a change of this value makes every saved token foreign.
        assert_eq!(same.to_string(), "861974420f68a89a289acc3e70ca6b23");
    }

    #[test]
    fn keys_of_different_names_differ_whatever_their_bytes() {
        let names: [&[u8]; 7] = [b"a.jpg", b"\\xff", b"\xff", b"\\\\xff", b"\xc3\xa9", b"\xe9", b"\\xe9"];
        let keys: HashSet<_> = names.iter().map(|name| escape(name)).collect();
        assert_eq!(keys.len(), names.len());
        assert_eq!(escape(b"a/\xc3\xa9\xff\\.jpg"), "a/\u{e9}\\xff\\\\.jpg");
    }

    #[test]
    #[should_panic(expected = "record 1 of a source of 1")]
    fn an_index_beyond_the_end_is_a_bug() {
        let mut builder = ManifestBuilder::default();
        builder.directory(Path::new("a"), 0);
        builder.file(OsStr::new("b"), 1);
        builder.build(Vec::new()).label(1);
    }

    proptest! {
        #[test]
        fn what_goes_in_comes_out(
            folders in prop::collection::vec(
                ("[a-z/]{0,12}", 0u32..5, prop::collection::vec((prop::collection::vec(1u8..=255, 1..20), any::<u64>()), 0..20)),
                0..20,
            ),
        ) {
            let mut builder = ManifestBuilder::default();
            let mut expected = Vec::new();
            for (folder, class, files) in &folders {
                builder.directory(Path::new(folder), *class);
                for (name, size) in files {
                    let size = size >> 8 >> (size % 40);
                    builder.file(OsStr::from_bytes(name), size);
                    let slash = if folder.is_empty() { "" } else { "/" };
                    expected.push(([folder.as_bytes(), slash.as_bytes(), name].concat(), *class, size));
                }
            }
            let manifest = builder.build(Vec::new());
            prop_assert_eq!(manifest.len(), expected.len() as u64);
            for (index, (name, class, size)) in expected.into_iter().enumerate() {
                let index = index as u64;
                prop_assert_eq!(path(&manifest, index), name);
                prop_assert_eq!(manifest.label(index), class);
                prop_assert_eq!(manifest.size(index), size);
            }
        }

        #[test]
        fn escaping_loses_nothing(a in prop::collection::vec(any::<u8>(), 0..12), b in prop::collection::vec(any::<u8>(), 0..12)) {
            prop_assert_eq!(a == b, escape(&a) == escape(&b));
        }
    }
}
