//! A table whose images are files: a list of paths, with labels and fields beside them.
//!
//! The images are read by the disk readers, as an image folder's are; the table itself is read once, at open, and its
//! fields stay in memory. Paths are relative to a root folder and must stay in it: absolute ones, `..` and symbolic links
//! that lead out are refused, for a table often comes from elsewhere. (The root itself may be a link.)

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use crate::arrow::array::Array;
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use xxhash_rust::xxh3::Xxh3;

use super::columns::{Choice, append, bytes_at};
use super::labels::Labels;
use super::{File, RECORD, TableConfig, UNIT_ROWS, in_parallel};
use crate::buffer::Pool;
use crate::disk::{self, Files, Span};
use crate::manifest::escape;
use crate::opening::{self, Counted, Step};
use crate::shards::Shards;
use crate::{
    Blocks, Buffer, Extent, Fingerprint, IndexedSource, ReadError, ReadRequest, ReadStats, Reader,
    ReaderConfig, Record, Schema, SourceError,
};

/// Fields of all rows may take this much memory.
const MAX_FIELDS: u64 = 4 << 30;

/// Rows whose fields are bad are listed; more than this is a wrong column.
const MAX_BAD: usize = 100_000;

/// The list.
struct PathTable {
    root: PathBuf,
    /// Paths relative to the root, one after the other, and where each ends.
    paths: Vec<u8>,
    ends: Vec<u64>,
    sizes: Vec<u64>,
    labels: Labels,
    schema: Schema,
    fields: Vec<u8>,
    bad: BTreeMap<u64, String>,
    /// Names of the table files and their first rows, for keys.
    files: Vec<(String, u64)>,
    fingerprint: Fingerprint,
}

/// The folder that the paths of a table file start from.
pub(super) fn root(
    configured: Option<&PathBuf>,
    shards: &Shards,
    shard: usize,
) -> Result<PathBuf, SourceError> {
    if let Some(root) = configured {
        return Ok(root.clone());
    }
    let folder = shards.extent(shard, 0, 0).and_then(|extent| extent.file.parent().map(Path::to_path_buf));
    folder.ok_or_else(|| {
        SourceError::config(format!(
            "{} is not on this machine, so the folder that its paths start from is not known; name it (root)",
            shards.display(shard)
        ))
    })
}

/// What one run of rows holds.
struct Run {
    paths: Vec<u8>,
    ends: Vec<u64>,
    sizes: Vec<u64>,
    fields: Vec<u8>,
    bad: Vec<(u64, String)>,
}

pub(super) fn open(
    config: &TableConfig,
    shards: Arc<Shards>,
    files: &[File],
    choice: &Choice,
    labels: Labels,
) -> Result<Arc<dyn IndexedSource>, SourceError> {
    let schema = Schema { image: true, fields: choice.fields.clone() };
    schema.check().map_err(|why| SourceError::config(format!("{}: {why}", shards.describe())))?;
    let columns = choice.record_columns();
    let place = |name: &str| columns.iter().position(|column| column == name).expect("it is one of them");
    let image = place(&choice.image.as_ref().expect("this is a table of images").column);
    let fields: Vec<_> = choice.fields.iter().map(|field| (place(&field.name), field)).collect();

    // One root for each folder of table files, and the folder that they share.
    let mut roots: Vec<PathBuf> = Vec::with_capacity(files.len());
    for shard in 0..files.len() {
        let root = root(config.root.as_ref(), &shards, shard)?;
        roots.push(canonical(&root)?);
    }
    let mut common = roots[0].clone();
    while !roots.iter().all(|root| root.starts_with(&common)) {
        assert!(common.pop(), "absolute paths share the root");
    }
    let config_root = config.root.clone();
    let mut runs = Vec::new();
    let (mut first, mut names) = (0, Vec::new());
    for (shard, file) in files.iter().enumerate() {
        names.push((shards.files()[shard].name.clone(), first));
        for part in 0..file.parts() {
            let what = file.part(RECORD, part);
            let step = if what.divisible { UNIT_ROWS.min(1 << 15) } else { what.rows.max(1) };
            let mut row = 0;
            while row < what.rows {
                let end = (row + step).min(what.rows);
                runs.push((shard, part, row..end, first + row));
                row = end;
            }
            first += what.rows;
        }
    }
    let each = schema.fields_bytes();
    if first.saturating_mul(each as u64) > MAX_FIELDS {
        return Err(SourceError::config(format!(
            "{}: the fields of {first} rows take {} MiB; beside paths of images they are kept in memory, and the limit is {} \
             MiB; put the images into the table, or name fewer fields",
            shards.describe(),
            first.saturating_mul(each as u64) >> 20,
            MAX_FIELDS >> 20
        )));
    }
    let opened: Vec<Root> = roots.iter().map(|root| Root::open(root)).collect::<Result<_, _>>()?;
    let prefixes: Vec<&Path> =
        roots.iter().map(|root| root.strip_prefix(&common).expect("it is a parent")).collect();
    let pool = Pool::new(32 << 20);
    let step = Step::begin("looking at files", Counted::Files, Some(first));
    let parts = in_parallel(&step, runs.len(), |at| {
        let (shard, part, rows, first) = runs[at].clone();
        let pieces = files[shard].decode(&shards, shard, RECORD, part, rows.clone(), &pool);
        let pieces = pieces.map_err(|trouble| trouble.at_open(&shards.display(shard)))?;
        let mut run = Run {
            paths: Vec::new(),
            ends: Vec::new(),
            sizes: Vec::new(),
            fields: Vec::new(),
            bad: Vec::new(),
        };
        for piece in pieces {
            let begin = first + (piece.rows.start - rows.start);
            let at = |row: usize| super::labels::key(&shards, files, begin + row as u64);
            let columns = piece.columns.map_err(|why| SourceError::data(format!("{}: {why}", at(0))))?;
            for row in 0..columns[image].len() {
                opening::check()?;
                step.add(1);
                let path = bytes_at(columns[image].as_ref(), row).ok_or_else(|| {
                    SourceError::data(format!("{}: the path of its image is missing", at(row)))
                })?;
                let size = opened[shard]
                    .size(path)
                    .map_err(|why| SourceError::data(format!("{}: {why}", at(row))))?;
                let prefix = prefixes[shard].as_os_str().as_bytes();
                run.paths.extend_from_slice(prefix);
                if !prefix.is_empty() {
                    run.paths.push(b'/');
                }
                run.paths.extend_from_slice(path);
                run.ends.push(run.paths.len() as u64);
                run.sizes.push(size);
                let before = run.fields.len();
                for (column, spec) in &fields {
                    if let Err(why) = append(columns[*column].as_ref(), row, spec, &mut run.fields) {
                        run.bad.push((begin + row as u64, why));
                        break;
                    }
                }
                run.fields.resize(before + each, 0);
            }
        }
        Ok(run)
    })?;
    let mut table = PathTable {
        root: common,
        paths: Vec::with_capacity(parts.iter().map(|run| run.paths.len()).sum()),
        ends: Vec::with_capacity(first as usize),
        sizes: Vec::with_capacity(first as usize),
        labels,
        schema,
        fields: Vec::with_capacity(first as usize * each),
        bad: BTreeMap::new(),
        files: names,
        fingerprint: Fingerprint(0),
    };
    for run in parts {
        let base = table.paths.len() as u64;
        table.paths.extend_from_slice(&run.paths);
        table.ends.extend(run.ends.iter().map(|end| base + end));
        table.sizes.extend_from_slice(&run.sizes);
        table.fields.extend_from_slice(&run.fields);
        table.bad.extend(run.bad);
        if table.bad.len() > MAX_BAD {
            let (row, why) = table.bad.first_key_value().expect("there are many");
            return Err(SourceError::data(format!(
                "the fields of more than {MAX_BAD} rows are bad, the first is {}: {why}; name other fields",
                IndexedSource::key(&table, *row)
            )));
        }
    }
    if table.ends.len() as u64 != first {
        return Err(SourceError::data(format!("{} has fewer rows than it claims", shards.describe())));
    }
    table.fingerprint = table.hash();
    let table = Arc::new(table);
    let (weak, here) = (Arc::downgrade(&table), roots[0].clone());
    opening::depends_on(move || {
        let now = root(config_root.as_ref(), &shards, 0).and_then(|root| canonical(&root));
        now.is_ok_and(|now| now == here) && weak.upgrade().is_some_and(|table| table.has_its_images())
    });
    Ok(table)
}

fn canonical(root: &Path) -> Result<PathBuf, SourceError> {
    root.canonicalize().map_err(|error| SourceError::folder(root, &error))
}

/// A root folder held open, and where it is.
struct Root {
    path: PathBuf,
    fd: OwnedFd,
}

impl Root {
    fn open(path: &Path) -> Result<Self, SourceError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::open(path, flags, Mode::empty())
            .map_err(|error| SourceError::folder(path, &error.into()))?;
        Ok(Self { path: path.to_owned(), fd })
    }

    /// The size of the regular file at `path`, which stays below the root.
    fn size(&self, path: &[u8]) -> Result<u64, String> {
        let shown = escape(path);
        let relative = inside(path)?;
        let refuse = |error: Errno| match error {
            Errno::NOENT | Errno::NOTDIR => format!(
                "{shown} does not exist in {}; say which folder the paths start from (root)",
                self.path.display()
            ),
            Errno::XDEV => {
                format!("{shown} leads out of {} by a symbolic link, which is refused", self.path.display())
            }
            error => format!("{shown} in {} cannot be read: {error}", self.path.display()),
        };
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let stat = match rustix::fs::openat2(&self.fd, relative, flags, Mode::empty(), ResolveFlags::BENEATH)
        {
            Ok(file) => rustix::fs::fstat(&file).map_err(refuse)?,
            // Kernels before 5.6 and some sandboxes do not have it.
            Err(Errno::NOSYS | Errno::PERM | Errno::AGAIN) => {
                let found = self.path.join(relative).canonicalize();
                let found =
                    found.map_err(|error| refuse(Errno::from_io_error(&error).unwrap_or(Errno::IO)))?;
                if !found.starts_with(&self.path) {
                    return Err(refuse(Errno::XDEV));
                }
                rustix::fs::stat(&found).map_err(refuse)?
            }
            Err(error) => return Err(refuse(error)),
        };
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(format!("{shown} in {} is not a regular file", self.path.display()));
        }
        Ok(stat.st_size as u64)
    }
}

/// A path that is relative and has no `..`.
fn inside(path: &[u8]) -> Result<&Path, String> {
    let shown = escape(path);
    let path = Path::new(OsStr::from_bytes(path));
    if path.as_os_str().is_empty() || path.as_os_str().as_bytes().contains(&0) {
        return Err("the path of its image is empty".into());
    }
    if !path.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir)) {
        return Err(format!(
            "{shown} is not a path below the table's root: it is absolute or has \"..\" in it"
        ));
    }
    Ok(path)
}

/// Reads one image that a row names instead of holding it.
pub(super) fn read(root: &Path, path: &[u8], key: impl Fn() -> String) -> Result<Vec<u8>, ReadError> {
    let bad = |why: String| ReadError::bad(key(), why);
    let relative = inside(path).map_err(bad)?;
    let full = root.join(relative);
    let canonical = root.canonicalize().and_then(|root| Ok((root, full.canonicalize()?)));
    let (root, found) = canonical.map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => {
            bad(format!("it holds no image, only the path {}, which does not exist", full.display()))
        }
        _ => ReadError::io(key(), format!("{} cannot be read: {error}", full.display()), false),
    })?;
    if !found.starts_with(&root) {
        return Err(bad(format!(
            "{} leads out of {} by a symbolic link, which is refused",
            full.display(),
            root.display()
        )));
    }
    let fail = |error: std::io::Error| {
        ReadError::io(key(), format!("{} cannot be read: {error}", full.display()), false)
    };
    let meta = std::fs::metadata(&found).map_err(fail)?;
    if !meta.is_file() || meta.len() > super::pages::MAX_UNIT_BYTES {
        return Err(bad(format!("{} is not a regular file of at most 1 GiB", full.display())));
    }
    std::fs::read(&found).map_err(fail)
}

impl PathTable {
    /// Whether every image is there and has the size that it had. Their bytes are read when they are wanted.
    fn has_its_images(&self) -> bool {
        let step = Step::begin("looking at files", Counted::Files, Some(self.sizes.len() as u64));
        let runs = self.sizes.len().div_ceil(UNIT_ROWS as usize);
        in_parallel(&step, runs, |run| {
            let first = run as u64 * UNIT_ROWS;
            for index in first..(first + UNIT_ROWS).min(self.sizes.len() as u64) {
                opening::check()?;
                step.add(1);
                let file = self.root.join(OsStr::from_bytes(self.path(index)));
                // One that was missing has the size 0.
                if std::fs::metadata(&file).map_or(0, |meta| meta.len()) != self.sizes[index as usize] {
                    return Err(SourceError::data(format!("{} has changed", file.display())));
                }
            }
            Ok(())
        })
        .is_ok()
    }

    fn path(&self, index: u64) -> &[u8] {
        let index = index as usize;
        let begin = if index == 0 { 0 } else { self.ends[index - 1] };
        &self.paths[begin as usize..self.ends[index] as usize]
    }

    fn fields(&self, index: u64) -> &[u8] {
        let each = self.schema.fields_bytes();
        &self.fields[index as usize * each..][..each]
    }

    fn hash(&self) -> Fingerprint {
        let mut hash = Xxh3::new();
        let number = |hash: &mut Xxh3, value: u64| hash.update(&value.to_le_bytes());
        hash.update(b"fuelrail table of paths 1\0");
        number(&mut hash, self.files.len() as u64);
        for (name, first) in &self.files {
            number(&mut hash, name.len() as u64);
            hash.update(name.as_bytes());
            number(&mut hash, *first);
        }
        number(&mut hash, self.ends.len() as u64);
        for index in 0..self.ends.len() as u64 {
            let path = self.path(index);
            number(&mut hash, path.len() as u64);
            hash.update(path);
            number(&mut hash, self.sizes[index as usize]);
        }
        self.labels.hash(&mut hash);
        hash.update(&serde_json::to_vec(&self.schema).expect("a schema is plain data"));
        hash.update(&self.fields);
        Fingerprint(hash.digest128())
    }
}

impl IndexedSource for PathTable {
    fn len(&self) -> u64 {
        self.ends.len() as u64
    }

    fn key(&self, index: u64) -> String {
        let file = self.files.partition_point(|(_, first)| *first <= index) - 1;
        let (name, first) = &self.files[file];
        format!("{name}:{}", index - first)
    }

    fn label(&self, index: u64) -> i64 {
        assert!(index < self.len(), "record {index} of a source of {}", self.len());
        self.labels.get(index)
    }

    fn classes(&self) -> &[String] {
        &self.labels.classes
    }

    fn schema(&self) -> Schema {
        self.schema.clone()
    }

    fn size(&self, index: u64) -> u64 {
        self.sizes[index as usize] + self.schema.fields_bytes() as u64
    }

    fn extent(&self, index: u64) -> Option<Extent> {
        // With fields the record is not what lies in the file.
        let file = self.root.join(OsStr::from_bytes(self.path(index)));
        self.schema.fields.is_empty().then(|| Extent { file, offset: 0, len: self.sizes[index as usize] })
    }

    fn blocks(&self) -> Blocks {
        Blocks::None
    }

    fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    fn memory(&self) -> u64 {
        let bad: usize = self.bad.values().map(|why| why.capacity() + 48).sum();
        let names: usize = self.files.iter().map(|(name, _)| name.capacity() + 32).sum();
        let columns = self.paths.capacity()
            + (self.ends.capacity() + self.sizes.capacity()) * 8
            + self.fields.capacity();
        (size_of::<Self>() + columns + bad + names) as u64 + self.labels.memory()
    }

    fn reader(self: Arc<Self>, config: &ReaderConfig) -> Result<Box<dyn Reader>, SourceError> {
        let inner = disk::open(self.clone(), config)?;
        if self.schema.fields.is_empty() && self.bad.is_empty() {
            return Ok(inner);
        }
        Ok(Box::new(WithFields { inner, table: self }))
    }
}

impl Files for PathTable {
    fn root(&self) -> &Path {
        &self.root
    }

    fn locate(&self, index: u64, file: &mut Vec<u8>) -> Span {
        file.extend_from_slice(self.path(index));
        Span { offset: 0, len: self.sizes[index as usize], whole: true }
    }

    fn key(&self, index: u64) -> String {
        IndexedSource::key(self, index)
    }
}

/// Puts the fields behind the images.
struct WithFields {
    inner: Box<dyn Reader>,
    table: Arc<PathTable>,
}

impl Reader for WithFields {
    fn submit(&self, requests: Vec<ReadRequest>) {
        let with_fields = |request: ReadRequest| {
            let ReadRequest { index, done } = request;
            let table = self.table.clone();
            let done = move |result: Result<Record, ReadError>| {
                done(result.and_then(|record| match table.bad.get(&index) {
                    Some(why) => Err(ReadError::bad(IndexedSource::key(&*table, index), why.clone())),
                    None => Ok(Record { index, bytes: extended(record.bytes, table.fields(index)) }),
                }));
            };
            ReadRequest { index, done: Box::new(done) }
        };
        self.inner.submit(requests.into_iter().map(with_fields).collect());
    }

    fn stats(&self) -> ReadStats {
        self.inner.stats()
    }
}

/// A record with bytes behind it: in its own storage where there is room, as there mostly is.
fn extended(mut bytes: Buffer, more: &[u8]) -> Buffer {
    let (len, end) = (bytes.len(), bytes.len() + more.len());
    if end > bytes.capacity() {
        return Buffer::from([&*bytes, more].concat());
    }
    bytes.storage()[len..end].copy_from_slice(more);
    bytes.set_len(end);
    bytes
}
