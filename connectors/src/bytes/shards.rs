//! The files of a sharded source: found from patterns, in a fixed order, each with its size and version.
//!
//! ```text
//!  "data/train-{000..127}.tar"   braces: every name written out; one that is missing is an error
//!  "data/*.parquet"              * and ? within one folder, sorted by name
//!  "data/"                       every file below it that has one of the source's endings, sorted by path
//!  "a [1]{x}.tar"                a file that is there under exactly this name is meant by it
//!  "s3://bucket/x-{000..127}.tar"   all of these also in buckets; web servers list nothing, so there only with braces
//! ```
//!
//! Sources read shards in two ways: a record that *is* a byte range is fetched by [`Shards::reader`], which is the disk
//! readers of this crate; formats that have to be understood first are read by [`Shards::read_at`], which blocks.

use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_128;

use crate::bytes::disk::{self, Files, Span};
use crate::bytes::remote::{self, Object, Remote, Version};
use crate::names::{hidden, is_litter, missing, shown};
use crate::opening::{self, Counted, Step};
use crate::{Extent, ReadError, Reader, ReaderConfig, SourceError};

/// Where copies of remote and unpacked shards are kept.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CacheConfig {
    /// The folder; default: `fuelrail` in the user's cache folder (`$XDG_CACHE_HOME`, else `~/.cache`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dir: Option<PathBuf>,
    /// Most bytes it may hold; default 100 GB. A number, or a string like `"500 MiB"`.
    #[serde(
        skip_serializing_if = "Option::is_none",
        deserialize_with = "crate::bytes::cache::deserialize_limit"
    )]
    pub limit_bytes: Option<u64>,
}

impl CacheConfig {
    /// Whether nothing was said.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// More files than this are a pattern that went wrong.
const MAX_SHARDS: usize = 4 << 20;

/// Folders may be nested this deep below a pattern.
const MAX_DEPTH: usize = 64;

/// A file changed less than this ago may change again without its times showing it: clocks of file systems are coarse,
/// of some 2 s.
const SETTLED: Duration = Duration::from_secs(2);

/// One file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Shard {
    /// Its path relative to the folder that all shards share, with `/`: part of keys and of the fingerprint.
    pub name: String,
    /// Its size in bytes.
    pub size: u64,
    /// Changes whenever its content may have: modification time and inode here, the ETag of an object. Never part of a
    /// fingerprint.
    pub version: String,
}

/// The files of a source, in order.
#[derive(Debug)]
pub(crate) struct Shards {
    place: Place,
    files: Vec<Shard>,
    /// A digest of all that is known of the files' state; `None` when they may change without its showing.
    state: Option<u128>,
}

/// Where the names of the files begin.
#[derive(Debug)]
enum Place {
    Local {
        root: PathBuf,
    },
    Remote {
        remote: Arc<Remote>,
        /// Empty, or with a slash at the end.
        root: String,
        /// What follows each path in an http address; empty where nothing does.
        queries: Vec<String>,
    },
}

/// Which range of which shard a record is.
pub(crate) trait Ranges: Send + Sync + 'static {
    /// The shard's number, the first byte and the number of bytes.
    fn locate(&self, index: u64) -> (usize, u64, u64);

    /// The record's key, for errors.
    fn key(&self, index: u64) -> String;
}

impl Shards {
    /// Finds the files that `patterns` name, in the order of the patterns. `endings` (lower case, with the dot, like
    /// ".tar") choose the files of a folder; a file named outright may be called anything. The opening that this
    /// belongs to [depends](opening::depends_on) on what was found.
    ///
    /// # Errors
    /// [`SourceError`] that names the pattern: nothing there, a brace that does not close, a file that cannot be read.
    pub(crate) fn open(
        patterns: &[String],
        endings: &[&str],
        cache: &CacheConfig,
    ) -> Result<Arc<Self>, SourceError> {
        let found = Self::find(patterns, endings, cache);
        let (patterns, cache) = (patterns.to_vec(), cache.clone());
        let endings: Vec<String> = endings.iter().map(|&ending| ending.to_owned()).collect();
        let was = found.as_ref().map(|shards| shards.state).map_err(drop);
        opening::depends_on(move || {
            let endings: Vec<&str> = endings.iter().map(String::as_str).collect();
            let now = Self::find(&patterns, &endings, &cache).map(|shards| shards.state).map_err(drop);
            now == was && now != Ok(None)
        });
        found
    }

    /// As [`open`](Self::open), for files that no opening depends on: copies of our own.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub(crate) fn find(
        patterns: &[String],
        endings: &[&str],
        cache: &CacheConfig,
    ) -> Result<Arc<Self>, SourceError> {
        if patterns.iter().any(|pattern| remote::is_url(pattern)) {
            let addresses = remote::addresses(patterns)?;
            let Some(first) = addresses.first() else { return Err(nothing()) };
            return Self::open_remote(Remote::connect(&first.place, cache)?, &addresses, endings);
        }
        let mut paths = Vec::new();
        for pattern in patterns {
            for text in names_of(pattern)? {
                find(Path::new(&text), pattern, endings, &mut paths)?;
                if paths.len() > MAX_SHARDS {
                    return Err(SourceError::config(format!("{pattern} names more than {MAX_SHARDS} files")));
                }
            }
        }
        let Some(first) = paths.first() else { return Err(nothing()) };
        let mut root = first.parent().unwrap_or(Path::new("/")).to_path_buf();
        while !paths.iter().all(|path| path.starts_with(&root)) {
            assert!(root.pop(), "absolute paths share the root");
        }
        let mut files = Vec::with_capacity(paths.len());
        let step = Step::begin("looking at files", Counted::Files, Some(paths.len() as u64));
        let settled = SystemTime::now().checked_sub(SETTLED).unwrap_or(SystemTime::UNIX_EPOCH);
        let (mut states, mut is_settled) = (Vec::new(), true);
        for path in &paths {
            opening::check()?;
            step.add(1);
            let meta = std::fs::metadata(path).map_err(|error| unreadable(path, &error))?;
            if !meta.is_file() {
                return Err(SourceError::data(format!("{} is not a regular file", shown(path))));
            }
            let name = path.strip_prefix(&root).expect("the root is a parent of all");
            let Some(name) = name.to_str() else {
                return Err(SourceError::data(format!("{}: names of shards must be UTF-8", shown(path))));
            };
            // Its size is in the list anyway. The time of its last change of any kind shows one that was rewritten in
            // place and given its old time back.
            states.extend_from_slice(path.as_os_str().as_bytes());
            states.push(0);
            for number in [meta.dev(), meta.ino(), meta.len()] {
                states.extend(number.to_le_bytes());
            }
            for number in [meta.mtime(), meta.mtime_nsec(), meta.ctime(), meta.ctime_nsec()] {
                states.extend(number.to_le_bytes());
            }
            let changed = meta.mtime().max(meta.ctime());
            let changed = u64::try_from(changed).unwrap_or_default();
            is_settled &= SystemTime::UNIX_EPOCH + Duration::from_secs(changed) < settled;
            files.push(Shard { name: name.to_owned(), size: meta.len(), version: version(&meta) });
        }
        let state = is_settled.then(|| xxh3_128(&states));
        Self { place: Place::Local { root }, files, state }.checked()
    }

    /// The objects that addresses of one place name.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub(crate) fn open_remote(
        remote: Arc<Remote>,
        addresses: &[remote::Address],
        endings: &[&str],
    ) -> Result<Arc<Self>, SourceError> {
        let found = remote.find(addresses, endings)?;
        let Some(first) = found.first() else { return Err(nothing()) };
        let mut root = first.path[..first.path.rfind('/').map_or(0, |at| at + 1)].to_owned();
        while !found.iter().all(|object| object.path.starts_with(&root)) {
            root.truncate(root[..root.len() - 1].rfind('/').map_or(0, |at| at + 1));
        }
        let mut queries: Vec<_> = found.iter().map(|object| object.query.clone()).collect();
        if queries.iter().all(String::is_empty) {
            queries = Vec::new();
        }
        let shard = |object: remote::Listed| Shard {
            name: object.path[root.len()..].to_owned(),
            size: object.size,
            version: object.version.text(),
        };
        let files: Vec<Shard> = found.into_iter().map(shard).collect();
        // A server that tells no version tells no change.
        let is_told = files.iter().all(|file| !file.version.is_empty());
        let state = is_told.then(|| {
            let line = |file: &Shard| format!("{root}{}\0{}\0{}\0", file.name, file.size, file.version);
            xxh3_128(files.iter().map(line).collect::<String>().as_bytes())
        });
        Self { place: Place::Remote { remote, root, queries }, files, state }.checked()
    }

    /// Whether a change of the files would show: they are no longer being written, as far as their times tell.
    pub(crate) fn is_settled(&self) -> bool {
        self.state.is_some()
    }

    /// Refuses a file that is there twice.
    fn checked(self) -> Result<Arc<Self>, SourceError> {
        let mut seen = std::collections::HashSet::new();
        if let Some(twice) = self.files.iter().position(|file| !seen.insert(&file.name)) {
            return Err(SourceError::config(format!("{} is named twice", self.display(twice))));
        }
        Ok(Arc::new(self))
    }

    /// All files.
    pub(crate) fn files(&self) -> &[Shard] {
        &self.files
    }

    /// Where a file is, in full, for messages.
    pub(crate) fn display(&self, shard: usize) -> String {
        let name = &self.files[shard].name;
        match &self.place {
            Place::Local { root } => shown(&root.join(name)).to_string(),
            Place::Remote { remote, root, .. } => remote.display(&format!("{root}{name}")),
        }
    }

    /// All files in a few words.
    pub(crate) fn describe(&self) -> String {
        match self.files.len() {
            1 => self.display(0),
            2 => format!("{} and 1 more file", self.display(0)),
            count => format!("{} and {} more files", self.display(0), count - 1),
        }
    }

    /// Where a range lies on the local disk, if it does.
    pub(crate) fn extent(&self, shard: usize, offset: u64, len: u64) -> Option<Extent> {
        match &self.place {
            Place::Local { root } => Some(Extent { file: root.join(&self.files[shard].name), offset, len }),
            Place::Remote { .. } => None,
        }
    }

    /// An error of understanding a file, or a better one when it is evidently something else. `own` is how the file's
    /// own kind begins.
    pub(crate) fn explain(&self, shard: usize, own: &[u8], error: SourceError) -> SourceError {
        let mut beginning = vec![0; self.files[shard].size.min(512) as usize];
        if beginning.is_empty()
            || self.read_at(shard, 0, &mut beginning).is_err()
            || beginning.starts_with(own)
        {
            return error;
        }
        match crate::mistaken::what(&beginning) {
            Some(what) => SourceError::data(format!("{}: it is {what}", self.display(shard))),
            None => error,
        }
    }

    /// Fills `buffer` from a place in a file; blocks. Fewer bytes than that are an error: the file was cut short.
    /// On a thread of a reader that is being dropped, or of an opening that is cancelled, reading ends with an error:
    /// from the network at once, from a disk before the next call.
    ///
    /// # Errors
    /// The system's, with the file's name and what to do in its text; [`crate::ReadError::of_remote`] keeps its kind.
    pub(crate) fn read_at(&self, shard: usize, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        opening::check().map_err(io::Error::other)?;
        let path = match &self.place {
            Place::Local { root } => root.join(&self.files[shard].name),
            Place::Remote { remote, .. } => return Ok(remote.read(&self.object(shard), offset, buffer)?),
        };
        let file = std::fs::File::open(&path).map_err(|error| named(&path, &error))?;
        file.read_exact_at(buffer, offset).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => io::Error::new(
                error.kind(),
                format!(
                    "{} ends before byte {}: it has changed or was cut",
                    shown(&path),
                    offset + buffer.len() as u64
                ),
            ),
            _ => named(&path, &error),
        })
    }

    /// A remote file, as it was found.
    ///
    /// # Panics
    /// When the files are local.
    fn object(&self, shard: usize) -> Object {
        let Place::Remote { root, queries, .. } = &self.place else {
            unreachable!("a local file is no object")
        };
        let file = &self.files[shard];
        Object {
            path: format!("{root}{}", file.name),
            query: queries.get(shard).cloned().unwrap_or_default(),
            size: file.size,
            version: Version::Text(file.version.clone()),
        }
    }

    /// Whether a file is still the one that was opened: of the same size and version.
    ///
    /// # Errors
    /// The system's, with the file's name.
    pub(crate) fn unchanged(&self, shard: usize) -> io::Result<bool> {
        // Every range of an object is asked for by its version.
        let Place::Local { root } = &self.place else { return Ok(true) };
        let file = &self.files[shard];
        let path = root.join(&file.name);
        let meta = std::fs::metadata(&path).map_err(|error| named(&path, &error))?;
        Ok(meta.len() == file.size && version(&meta) == file.version)
    }

    /// Bytes of memory held.
    pub(crate) fn memory(&self) -> u64 {
        let texts: usize = self.files.iter().map(|file| file.name.capacity() + file.version.capacity()).sum();
        let queries = match &self.place {
            Place::Local { .. } => 0,
            Place::Remote { queries, .. } => {
                queries.iter().map(|query| query.capacity() + size_of::<String>()).sum()
            }
        };
        (self.files.capacity() * size_of::<Shard>() + texts + queries) as u64
    }

    /// Bytes of memory for blocks on their way from the network; 0 for local files.
    pub(crate) fn reader_memory(&self) -> u64 {
        match self.place {
            Place::Local { .. } => 0,
            Place::Remote { .. } => remote::MEMORY,
        }
    }

    /// Starts a reader for records that are byte ranges.
    ///
    /// # Errors
    /// As [`crate::IndexedSource::reader`].
    pub(crate) fn reader(
        self: Arc<Self>,
        ranges: Arc<dyn Ranges>,
        config: &ReaderConfig,
    ) -> Result<Box<dyn Reader>, SourceError> {
        match &self.place {
            Place::Local { root } => {
                let root = root.clone();
                disk::open(Arc::new(OnDisk { root, shards: self, ranges }), config)
            }
            Place::Remote { remote, .. } => {
                let keys = ranges.clone();
                let (remote, shards) = (remote.clone(), self.clone());
                remote.reader(
                    config,
                    move |index| keys.key(index),
                    move |index| {
                        let (shard, offset, len) = ranges.locate(index);
                        (shards.object(shard), offset, len)
                    },
                )
            }
        }
    }
}

/// Ranges of local shards, as the disk readers ask for them.
struct OnDisk {
    root: PathBuf,
    shards: Arc<Shards>,
    ranges: Arc<dyn Ranges>,
}

impl Files for OnDisk {
    fn root(&self) -> &Path {
        &self.root
    }

    fn locate(&self, index: u64, file: &mut Vec<u8>) -> Span {
        let (shard, offset, len) = self.ranges.locate(index);
        file.extend_from_slice(self.shards.files[shard].name.as_bytes());
        Span { offset, len, whole: false }
    }

    fn key(&self, index: u64) -> String {
        self.ranges.key(index)
    }

    fn stale(&self, index: u64) -> Option<ReadError> {
        let (shard, _, _) = self.ranges.locate(index);
        let file = &self.shards.files[shard];
        let path = self.root.join(&file.name);
        // About 1 us. After the read, so that a file replaced meanwhile is seen, too.
        let Ok(now) = std::fs::metadata(&path) else {
            return Some(ReadError::gone(self.ranges.key(index), &path));
        };
        let found = if now.len() != file.size {
            format!("{} bytes", now.len())
        } else if !file.version.ends_with(&format!("-{}", now.ino())) {
            // The time of change is not asked: an unpacked copy in the cache is touched by each run that uses it.
            "another file of this name".to_owned()
        } else {
            return None;
        };
        Some(ReadError::changed(self.ranges.key(index), &path, file.size, &found))
    }
}

fn nothing() -> SourceError {
    SourceError::config("a source needs at least one file".into())
}

fn version(meta: &std::fs::Metadata) -> String {
    format!("{}.{:09}-{}", meta.mtime(), meta.mtime_nsec(), meta.ino())
}

fn named(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{} cannot be read: {error}", shown(path)))
}

fn unreadable(path: &Path, error: &io::Error) -> SourceError {
    SourceError::data(match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => missing(path),
        _ => format!("{} cannot be read: {error}", shown(path)),
    })
}

/// The names that a pattern of local files stands for, its braces written out; one that is there as it is stands for
/// itself.
///
/// # Errors
/// As [`expand_braces`].
pub(crate) fn names_of(pattern: &str) -> Result<Vec<String>, SourceError> {
    if std::fs::symlink_metadata(pattern).is_ok() {
        return Ok(vec![pattern.to_owned()]);
    }
    expand_braces(pattern)
}

/// `a{00..11}b` and `a{x,y}b` written out, from left to right; `..` counts with the digits of its first number.
///
/// # Errors
/// When a brace does not close, a range runs backwards, or there are too many names.
pub(crate) fn expand_braces(pattern: &str) -> Result<Vec<String>, SourceError> {
    let refuse = |why: &str| Err(SourceError::config(format!("{pattern}: {why}")));
    let Some(open) = pattern.find('{') else { return Ok(vec![pattern.to_owned()]) };
    let Some(close) = pattern[open..].find('}').map(|at| at + open) else {
        return refuse("a brace is not closed; write {000..127} or {train,val}");
    };
    let inside = &pattern[open + 1..close];
    let middles: Vec<String> = if let Some((from, to)) = inside.split_once("..") {
        let digits =
            |text: &str| !text.is_empty() && text.len() <= 18 && text.bytes().all(|b| b.is_ascii_digit());
        if !digits(from) || !digits(to) {
            return refuse("a range of braces is written {000..127}");
        }
        let (first, last): (u64, u64) = (from.parse().expect("digits"), to.parse().expect("digits"));
        if last < first {
            return refuse("a range of braces runs from the smaller to the larger number");
        }
        if last - first >= MAX_SHARDS as u64 {
            return refuse("a range of braces names too many files");
        }
        (first..=last).map(|number| format!("{number:0width$}", width = from.len())).collect()
    } else {
        inside.split(',').map(str::to_owned).collect()
    };
    let rest = expand_braces(&pattern[close + 1..])?;
    if middles.len().saturating_mul(rest.len()) > MAX_SHARDS {
        return refuse("the braces name too many files");
    }
    let join = |middle: &String| {
        let before = format!("{}{middle}", &pattern[..open]);
        rest.iter().map(move |rest| format!("{before}{rest}")).collect::<Vec<_>>()
    };
    Ok(middles.iter().flat_map(join).collect())
}

/// Appends the files that one path stands for: itself, those of a folder, or those that match `*` and `?` in its last
/// part.
fn find(path: &Path, pattern: &str, endings: &[&str], paths: &mut Vec<PathBuf>) -> Result<(), SourceError> {
    if !path.is_absolute() {
        return Err(SourceError::config(format!("{pattern} must be an absolute path")));
    }
    if path.components().any(|part| part == Component::ParentDir) {
        // What is there was resolved as the system does.
        return Err(SourceError::data(missing(path)));
    }
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let (before, mut hiding) = (paths.len(), 0);
    let folder = path.parent().unwrap_or(Path::new("/"));
    if folder.to_string_lossy().contains(['*', '?']) && !folder.exists() {
        return Err(SourceError::config(format!(
            "{pattern}: * and ? stand for names in the last part of a path only; give the folder above (all files below it that \
             have one of the endings {} are read), or a list of paths",
            endings.join(", ")
        )));
    }
    if name.contains(['*', '?']) && !path.exists() {
        for entry in std::fs::read_dir(folder).map_err(|error| unreadable(folder, &error))? {
            let entry = entry.map_err(|error| unreadable(folder, &error))?;
            let found = entry.file_name();
            let is_one = |name_found: &[u8]| matches(name.as_bytes(), name_found);
            match found.as_bytes().strip_prefix(b".") {
                None if is_one(found.as_bytes()) => paths.push(entry.path()),
                Some(bare) => hiding += u64::from(is_one(found.as_bytes()) || is_one(bare)),
                None => {}
            }
        }
        if paths.len() == before {
            return Err(SourceError::data(format!(
                "{pattern}: no file in {} matches{}",
                shown(folder),
                hidden(hiding, false).map_or(String::new(), |hidden| format!("; {hidden}"))
            )));
        }
    } else if path.is_dir() {
        walk(path, endings, 0, paths, &mut hiding)?;
        if paths.len() == before {
            let kinds = endings.join(", ");
            return Err(SourceError::data(format!(
                "{pattern}: no file there has one of the endings {kinds}{}",
                hidden(hiding, false).map_or(String::new(), |hidden| format!("; {hidden}"))
            )));
        }
    } else {
        paths.push(path.to_path_buf());
        return Ok(());
    }
    paths[before..].sort_unstable_by(|a, b| a.as_os_str().as_bytes().cmp(b.as_os_str().as_bytes()));
    Ok(())
}

fn walk(
    folder: &Path,
    endings: &[&str],
    depth: usize,
    paths: &mut Vec<PathBuf>,
    hiding: &mut u64,
) -> Result<(), SourceError> {
    if depth > MAX_DEPTH {
        return Err(SourceError::data(format!(
            "folders are nested deeper than {MAX_DEPTH} at {}",
            shown(folder)
        )));
    }
    for entry in std::fs::read_dir(folder).map_err(|error| unreadable(folder, &error))? {
        opening::check()?;
        let entry = entry.map_err(|error| unreadable(folder, &error))?;
        let (path, name) = (entry.path(), entry.file_name());
        if name.as_bytes().starts_with(b".") {
            *hiding += u64::from(ends_with(&name.to_string_lossy(), endings));
            continue;
        }
        let kind = std::fs::metadata(&path).map_err(|error| unreadable(&path, &error))?;
        if kind.is_dir() {
            if is_litter(name.as_bytes()) {
                continue;
            }
            walk(&path, endings, depth + 1, paths, hiding)?;
        } else if kind.is_file() && ends_with(&name.to_string_lossy(), endings) {
            paths.push(path);
            if paths.len() > MAX_SHARDS {
                return Err(SourceError::config(format!("{} holds too many files", shown(folder))));
            }
        }
    }
    Ok(())
}

/// Whether a name has one of the endings, in any case.
pub(crate) fn ends_with(name: &str, endings: &[&str]) -> bool {
    let name = name.to_ascii_lowercase();
    endings.iter().any(|ending| name.ends_with(ending))
}

/// Shell-like matching with `*` and `?`, in time O(pattern x name).
pub(crate) fn matches(pattern: &[u8], name: &[u8]) -> bool {
    let (mut p, mut n, mut star) = (0, 0, None);
    while n < name.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, n));
                p += 1;
            }
            Some(&b) if b == b'?' || b == name[n] => {
                p += 1;
                n += 1;
            }
            _ => match star {
                Some((at, from)) => {
                    star = Some((at, from + 1));
                    p = at + 1;
                    n = from + 1;
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|&b| b == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn braces_are_written_out_from_left_to_right() {
        let all = |pattern| expand_braces(pattern).unwrap();
        assert_eq!(all("a{08..11}"), ["a08", "a09", "a10", "a11"]);
        assert_eq!(all("{x,y}-{1..2}"), ["x-1", "x-2", "y-1", "y-2"]);
        assert_eq!(all("plain"), ["plain"]);
        for wrong in ["a{1..", "a{2..1}", "a{1..x}", "{0..9999999}{0..9}", "a{0..99999999999999999999}"] {
            assert!(expand_braces(wrong).unwrap_err().is_config(), "{wrong}");
        }
    }

    #[test]
    fn stars_match_as_in_a_shell() {
        for (pattern, name, expected) in [
            ("*.tar", "a.tar", true),
            ("*.tar", "a.tar.gz", false),
            ("a?c*", "abcd", true),
            ("*a*b*", "xxaxxbxx", true),
            ("*a*b", "ab-ba", false),
            ("", "", true),
        ] {
            assert_eq!(matches(pattern.as_bytes(), name.as_bytes()), expected, "{pattern} {name}");
        }
    }

    #[test]
    fn an_opening_knows_whether_its_files_are_what_they_were() {
        let opened = |patterns: &[String]| {
            let opening = opening::Opening::new();
            let found = opening.run(|| Shards::open(patterns, &[".toml"], &CacheConfig::default()));
            (opening, found)
        };
        let current = |opening: &opening::Opening| opening.is_current(&opening::Opening::new());
        // A file that nobody has written for a while.
        let (opening, found) = opened(&[format!("{}/Cargo.toml", env!("CARGO_MANIFEST_DIR"))]);
        assert!(found.is_ok() && current(&opening));
        let cancelled = opening::Opening::new();
        cancelled.cancel();
        assert!(!opening.is_current(&cancelled));
        // One that may be written again within the same tick of its file system's clock.
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("a.toml");
        let pattern = [path.to_str().unwrap().to_owned()];
        let (absent, found) = opened(&pattern);
        assert!(found.is_err() && current(&absent), "what is not there stays so");
        std::fs::write(&path, "1").unwrap();
        assert!(!current(&absent));
        let (opening, found) = opened(&pattern);
        assert!(found.is_ok() && !current(&opening));
    }

    #[test]
    fn a_folder_gives_its_files_sorted_and_names_are_relative() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("b")).unwrap();
        for name in ["b/1.tar", "a.tar", "c.TAR", "notes.txt", ".hidden.tar"] {
            std::fs::write(root.path().join(name), name).unwrap();
        }
        let at = |text: &str| format!("{}/{text}", root.path().display());
        let open = |patterns: &[String]| Shards::open(patterns, &[".tar"], &CacheConfig::default());
        let shards = open(&[at("")]).unwrap();
        let names: Vec<_> = shards.files().iter().map(|file| file.name.as_str()).collect();
        assert_eq!(names, ["a.tar", "b/1.tar", "c.TAR"]);
        let mut bytes = [0; 3];
        shards.read_at(1, 2, &mut bytes).unwrap();
        assert_eq!(&bytes, b"1.t");
        assert!(
            shards.read_at(1, 6, &mut bytes).unwrap_err().to_string().contains("b/1.tar ends before byte 9")
        );
        assert_eq!(open(&[at("{a,b/1}.tar")]).unwrap().files().len(), 2);
        assert_eq!(open(&[at("*.tar")]).unwrap().files().len(), 1);
        // A name that is there is meant, whatever is in it.
        for name in ["x{0,1}.tar", "y[1]?.tar", "z*.tar", "{.tar"] {
            std::fs::write(root.path().join(name), name).unwrap();
            assert_eq!(open(&[at(name)]).unwrap().files()[0].name, name);
        }
        assert!(open(&[at("*/x.tar")]).unwrap_err().to_string().contains("last part"));
        for (patterns, expected) in [
            (vec![at("{a,x}.tar")], "x.tar does not exist"),
            (vec![at("*.zip")], ".zip: no file in"),
            (vec![at("a.tar"), at("a.tar")], "named twice"),
            (vec!["relative.tar".into()], "absolute"),
            (vec![], "at least one"),
        ] {
            let error = open(&patterns).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }
}
