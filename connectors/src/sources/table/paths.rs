//! A table whose images are files: a list of paths, with labels and fields beside them.
//!
//! The images are read by the disk readers, as an image folder's are; the table itself is read once, at open, and its
//! fields and named parts stay in memory. Paths stay below a root folder ([`root`](super::root) has the rule). A row
//! whose path names no file there when the list is opened is a bad record; a file that goes later is a broken
//! environment. A list of which less than one row in ten names a file is refused, for then the root is another one.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::arrow::array::ArrayRef;
use crate::names;
use xxhash_rust::xxh3::Xxh3;

use super::columns::{Choice, bytes_at};
use super::label;
use super::named::{self, Made, Maker};
use super::root::{Found, Miss, Root, joined, shared, shown};
use super::{File, RECORD, TableConfig, UNIT_ROWS, in_parallel};
use crate::bytes::buffer::Pool;
use crate::bytes::disk::{self, Files, Span};
use crate::bytes::shards::Shards;
use crate::gather;
use crate::labels::Labels;
use crate::opening::{self, Counted, Step};
use crate::recognised::Recognised;
use crate::{
    Blocks, Buffer, Cut, Extent, Fingerprint, IndexedSource, MAX_PART_BYTES, ReadError, ReadRequest,
    ReadStats, Reader, ReaderConfig, Record, Schema, SourceError,
};

/// Fields and named parts of all rows may take this much memory.
const MAX_FIELDS: u64 = 4 << 30;

/// Stands for the size of a file that a record does not have.
const ABSENT: u64 = u64::MAX;

/// Shares that are looked through for a list with anything in it.
const SEARCHED: usize = 64;

/// Rows whose fields are bad are listed; more than this is a wrong column.
const MAX_BAD: usize = 100_000;

/// The list.
struct PathTable {
    root: PathBuf,
    /// The images of a record: its own, as nothing, or the named part of this number.
    images: Vec<Option<usize>>,
    /// Paths relative to the root, one after the other, and where each ends: those of a record's images together.
    paths: Vec<u8>,
    ends: Vec<u64>,
    sizes: Vec<u64>,
    labels: Labels,
    schema: Schema,
    /// What follows the image in each record, one after the other; and where each ends, if there are named parts.
    tails: Vec<u8>,
    tail_ends: Vec<u64>,
    /// Rows that give no record.
    bad: BTreeMap<u64, Bad>,
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

/// The root of each table file, one for those that share a folder, and the folder that all roots share.
fn roots(config: &TableConfig, shards: &Shards) -> Result<(Vec<Arc<Root>>, PathBuf), SourceError> {
    let mut roots: Vec<Arc<Root>> = Vec::with_capacity(shards.files().len());
    for shard in 0..shards.files().len() {
        let named = root(config.root.as_ref(), shards, shard)?;
        roots.push(match roots.last() {
            Some(last) if last.named() == named => last.clone(),
            _ => Arc::new(Root::open(&named)?),
        });
    }
    let mut common = roots[0].path.clone();
    while !roots.iter().all(|root| root.path.starts_with(&common)) {
        assert!(common.pop(), "absolute paths share the root");
    }
    Ok((roots, common))
}

/// Rows that one thread looks at.
struct Share {
    shard: usize,
    part: usize,
    rows: Range<u64>,
    /// The number of the first of them in the whole list.
    first: u64,
}

/// All rows in shares, and the first row of each file with the number of all at the end.
fn shares(files: &[File]) -> (Vec<Share>, Vec<u64>) {
    let (mut shares, mut firsts, mut first) = (Vec::new(), vec![0], 0);
    for (shard, file) in files.iter().enumerate() {
        for part in 0..file.parts() {
            let what = file.part(RECORD, part);
            let step = if what.divisible { UNIT_ROWS.min(1 << 15) } else { what.rows.max(1) };
            let mut row = 0;
            while row < what.rows {
                let end = (row + step).min(what.rows);
                shares.push(Share { shard, part, rows: row..end, first: first + row });
                row = end;
            }
            first += what.rows;
        }
        firsts.push(first);
    }
    (shares, firsts)
}

/// What a share of the rows holds.
#[derive(Default)]
struct Run {
    paths: Vec<u8>,
    ends: Vec<u64>,
    sizes: Vec<u64>,
    tails: Vec<u8>,
    tail_ends: Vec<u64>,
    bad: Vec<(u64, Bad)>,
    /// The folder that absolute paths outside the root share.
    outside: Option<PathBuf>,
}

/// Why a row gives no record.
enum Bad {
    /// The path of this one of its images names no file.
    Path(usize, Miss),
    /// A field of it cannot be used.
    Field(String),
}

/// How rows are looked at.
struct Look<'a> {
    shards: &'a Shards,
    files: &'a [File],
    /// For each file its root, and what leads to it from the folder that all share.
    roots: Vec<(&'a Root, &'a Path)>,
    /// The column of paths of the own image, and which images a record has.
    image: usize,
    images: &'a [Option<usize>],
    maker: &'a Maker,
    schema: &'a Schema,
    /// Bytes of fields and parts so far.
    kept: AtomicU64,
    pool: Arc<Pool>,
    step: &'a Step,
}

impl Look<'_> {
    fn share(&self, share: &Share) -> Result<Run, SourceError> {
        let Share { shard, ref rows, first, .. } = *share;
        let pieces = decode(self.shards, self.files, share, &self.pool)?;
        let mut run = Run::default();
        for piece in pieces {
            let begin = first + (piece.rows.start - rows.start);
            let key = |row: usize| label::key(self.shards, self.files, begin + row as u64);
            let columns = piece.columns.map_err(|why| SourceError::data(format!("{}: {why}", key(0))))?;
            for row in 0..columns.first().map_or(0, |column| column.len()) {
                opening::check()?;
                self.step.add(1);
                let bad = self.row(shard, &columns, row, &mut run);
                let bad = bad.map_err(|why| SourceError::data(format!("{}: {why}", key(row))))?;
                run.bad.extend(bad.map(|bad| (begin + row as u64, bad)));
            }
            self.check_size(run.tails.len() as u64)?;
        }
        self.kept.fetch_add(run.tails.len() as u64, Ordering::Relaxed);
        Ok(run)
    }

    /// Refuses what would take too much memory with so much more.
    fn check_size(&self, more: u64) -> Result<(), SourceError> {
        let kept = self.kept.load(Ordering::Relaxed) + more;
        if kept <= MAX_FIELDS { Ok(()) } else { Err(too_large(self.shards, kept, "more than ")) }
    }

    /// Appends a row: the paths of its images from the folder that all share, the sizes of their files, and what
    /// follows its own image. Returns why it is bad.
    ///
    /// # Errors
    /// When the environment is broken, and not the row.
    fn row(
        &self,
        shard: usize,
        columns: &[ArrayRef],
        row: usize,
        run: &mut Run,
    ) -> Result<Option<Bad>, String> {
        let parts = self.maker.parts(columns, row);
        let mut bad = None;
        for (at, image) in self.images.iter().enumerate() {
            let path = match (image, &parts) {
                (None, _) => bytes_at(columns[self.image].as_ref(), row),
                (Some(part), Ok(parts)) => parts[*part].file(),
                (Some(_), Err(_)) => None,
            };
            if let Some(miss) = self.file(shard, path, image.is_some(), run)? {
                bad.get_or_insert(Bad::Path(at, miss));
            }
        }
        let begin = run.tails.len();
        bad = match (bad, parts) {
            (None, Ok(parts)) => self.tail(columns, row, &parts, &mut run.tails).err().map(Bad::Field),
            (None, Err(why)) => Some(Bad::Field(why)),
            (bad, _) => bad,
        };
        if self.schema.parts.is_empty() {
            run.tails.resize(begin + self.schema.fields_bytes(), 0);
        } else {
            run.tail_ends.push(run.tails.len() as u64);
        }
        Ok(bad)
    }

    /// Appends one image's path and the size of its file. Returns why it cannot be had.
    fn file(
        &self,
        shard: usize,
        path: Option<&[u8]>,
        is_part: bool,
        run: &mut Run,
    ) -> Result<Option<Miss>, String> {
        let (root, prefix) = self.roots[shard];
        let found = match path {
            Some(path) => root.find(path),
            // A part may be absent.
            None if is_part => Ok(Found { path: Vec::new(), size: ABSENT }),
            None => Err(Miss::Unfit("the path of its image is missing".into())),
        };
        let found = found.and_then(|found| match is_part && (MAX_PART_BYTES..ABSENT).contains(&found.size) {
            true => Err(Miss::Unfit(format!("it is larger than {} MiB", MAX_PART_BYTES >> 20))),
            false => Ok(found),
        });
        let named = path.unwrap_or_default().to_vec();
        let (path, size, miss) = match found {
            Ok(found) if found.size == ABSENT => (found.path, ABSENT, None),
            Ok(found) => (joined(prefix, found.path), found.size, None),
            Err(Miss::Failed(why)) => return Err(why),
            Err(Miss::Absent) => (joined(prefix, named), 0, Some(Miss::Absent)),
            Err(miss) => (named, 0, Some(miss)),
        };
        run.paths.extend_from_slice(&path);
        run.ends.push(run.paths.len() as u64);
        run.sizes.push(size);
        if let Some(Miss::Outside(file)) = &miss {
            run.outside = Some(shared(run.outside.take(), file));
        }
        Ok(miss)
    }

    /// Appends what follows its own image in a record, without the bytes of files.
    fn tail(
        &self,
        columns: &[ArrayRef],
        row: usize,
        parts: &[Made<'_>],
        out: &mut Vec<u8>,
    ) -> Result<(), String> {
        if self.schema.parts.is_empty() {
            return self.maker.fields(columns, row, out);
        }
        let mut fields = Vec::with_capacity(self.schema.fields_bytes());
        self.maker.fields(columns, row, &mut fields)?;
        let lengths = parts.iter().map(|part| part.bytes().map(<[u8]>::len));
        let begin = out.len();
        out.resize(begin + self.schema.record_bytes(0, lengths), 0);
        self.schema.join(&[], parts.iter().map(Made::bytes), &fields, &mut out[begin..]);
        Ok(())
    }
}

fn decode(
    shards: &Shards,
    files: &[File],
    share: &Share,
    pool: &Arc<Pool>,
) -> Result<Vec<super::Piece>, SourceError> {
    let Share { shard, part, ref rows, .. } = *share;
    let pieces = files[shard].decode(shards, shard, RECORD, part, rows.clone(), pool);
    pieces.map_err(|trouble| trouble.at_open(&shards.display(shard)))
}

fn too_large(shards: &Shards, bytes: u64, more: &str) -> SourceError {
    SourceError::config(format!(
        "{}: the fields and parts of its rows take {more}{} MiB; beside paths of images they are kept in memory, and \
         the limit is {} MiB; put the images into the table, or name fewer fields",
        shards.describe(),
        bytes >> 20,
        MAX_FIELDS >> 20
    ))
}

/// Learns the shape of ragged rows from the first that has any. Returns what it learnt.
fn learn(
    maker: &mut Maker,
    shards: &Shards,
    files: &[File],
    shares: &[Share],
) -> Result<Vec<String>, SourceError> {
    let (mut said, pool) = (Vec::new(), Pool::new(32 << 20));
    if let Some(first) = shares.first().filter(|_| maker.has_parts()) {
        let pieces = decode(shards, files, first, &pool)?;
        let good = pieces.iter().filter_map(|piece| piece.columns.as_ref().ok());
        maker.check_keys(good, &shards.describe())?;
    }
    for share in shares.iter().take(SEARCHED) {
        if maker.open().is_none() {
            return Ok(said);
        }
        for columns in decode(shards, files, share, &pool)?.into_iter().flat_map(|piece| piece.columns) {
            for row in 0..columns.first().map_or(0, |column| column.len()) {
                opening::check()?;
                if maker.open().is_some() {
                    said.extend(maker.learn(&columns, row)?);
                }
            }
        }
    }
    match maker.open() {
        Some(name) if shares.len() > SEARCHED => Err(named::no_rows(name, &shards.describe())),
        _ => Ok(said),
    }
}

pub(super) fn open(
    config: &TableConfig,
    shards: Arc<Shards>,
    files: &[File],
    choice: &Choice,
    labels: Labels,
    recognised: &mut Recognised,
) -> Result<Arc<dyn IndexedSource>, SourceError> {
    let (shares, firsts) = shares(files);
    let mut maker = Maker::new(choice);
    learn(&mut maker, &shards, files, &shares)?.into_iter().for_each(|fact| recognised.note(fact));
    let schema = maker.schema(choice.image.is_some(), Vec::new());
    let own = choice.image.iter().map(|_| None);
    let images: Vec<Option<usize>> = own.chain(maker.files().map(|(part, _)| Some(part))).collect();
    schema
        .check_for(&config.deliver, labels.is_some())
        .map_err(|why| SourceError::config(format!("{}: {why}", shards.describe())))?;
    let columns = choice.record_columns();
    let place = |name: &str| columns.iter().position(|column| column == name).expect("it is one of them");
    let (roots, common) = roots(config, &shards)?;
    let rows = firsts[files.len()];
    let least = rows.saturating_mul(schema.fixed_bytes() as u64);
    if least > MAX_FIELDS {
        return Err(too_large(&shards, least, ""));
    }
    let step = Step::begin("looking at files", Counted::Files, Some(rows));
    let look = Look {
        shards: &shards,
        files,
        roots: roots
            .iter()
            .map(|root| (&**root, root.path.strip_prefix(&common).expect("it is a parent")))
            .collect(),
        image: choice.image.as_ref().map_or(0, |image| place(&image.column)),
        images: &images,
        maker: &maker,
        schema: &schema,
        kept: AtomicU64::new(0),
        pool: Pool::new(32 << 20),
        step: &step,
    };
    let runs = in_parallel(&step, shares.len(), |at| look.share(&shares[at]))?;
    let names = shards.files().iter().map(|file| file.name.clone());
    let mut table = PathTable {
        root: common,
        images: images.clone(),
        paths: Vec::new(),
        ends: Vec::new(),
        sizes: Vec::new(),
        labels,
        schema,
        tails: Vec::new(),
        tail_ends: Vec::new(),
        bad: BTreeMap::new(),
        files: names.zip(firsts).collect(),
        fingerprint: Fingerprint(0),
    };
    let outside = table.fill(runs);
    if table.len() != rows {
        return Err(SourceError::data(format!("{} has fewer rows than it claims", shards.describe())));
    }
    table.judge(config, &shards, &roots, outside.as_deref())?;
    table.fingerprint = table.hash();
    let table = Arc::new(table);
    let (weak, here) = (Arc::downgrade(&table), roots[0].path.clone());
    let config_root = config.root.clone();
    opening::depends_on(move || {
        let now = root(config_root.as_ref(), &shards, 0).and_then(|root| canonical(&root));
        now.is_ok_and(|now| now == here) && weak.upgrade().is_some_and(|table| table.has_its_images())
    });
    Ok(table)
}

fn canonical(root: &Path) -> Result<PathBuf, SourceError> {
    root.canonicalize().map_err(|error| SourceError::folder(root, &error))
}

impl Bad {
    /// Why the path of this image names no file, if that is why.
    fn miss(&self, at: usize) -> Option<&Miss> {
        match self {
            Self::Path(other, miss) if *other == at => Some(miss),
            _ => None,
        }
    }
}

impl PathTable {
    /// Whether a record has its own image and no other.
    fn is_single(&self) -> bool {
        self.images == [None]
    }

    /// Takes over all rows. Returns the folder that absolute paths outside the root share.
    fn fill(&mut self, runs: Vec<Run>) -> Option<PathBuf> {
        let files = runs.iter().map(|run| run.ends.len()).sum();
        self.paths.reserve_exact(runs.iter().map(|run| run.paths.len()).sum());
        self.ends.reserve_exact(files);
        self.sizes.reserve_exact(files);
        self.tails.reserve_exact(runs.iter().map(|run| run.tails.len()).sum());
        self.tail_ends.reserve_exact(runs.iter().map(|run| run.tail_ends.len()).sum());
        let mut outside = None;
        for run in runs {
            let base = self.paths.len() as u64;
            self.paths.extend_from_slice(&run.paths);
            self.ends.extend(run.ends.iter().map(|end| base + end));
            self.sizes.extend_from_slice(&run.sizes);
            let base = self.tails.len() as u64;
            self.tails.extend_from_slice(&run.tails);
            self.tail_ends.extend(run.tail_ends.iter().map(|end| base + end));
            self.bad.extend(run.bad);
            if let Some(folder) = run.outside {
                outside = Some(shared(outside.take(), &folder.join("a file in it")));
            }
        }
        outside
    }

    /// Whether every image is there and has the size that it had. Their bytes are read when they are wanted.
    fn has_its_images(&self) -> bool {
        let step = Step::begin("looking at files", Counted::Files, Some(self.sizes.len() as u64));
        let runs = self.sizes.len().div_ceil(UNIT_ROWS as usize);
        in_parallel(&step, runs, |run| {
            let first = run as u64 * UNIT_ROWS;
            for file in first..(first + UNIT_ROWS).min(self.sizes.len() as u64) {
                opening::check()?;
                step.add(1);
                let (index, at) = (file / self.images.len() as u64, file as usize % self.images.len());
                // Of paths that can be none nothing changes that; a part may be absent.
                let miss = self.bad.get(&index).and_then(|bad| bad.miss(at));
                let size = self.size_of(index, at);
                if miss.is_some_and(|miss| !matches!(miss, Miss::Absent)) || size.is_none() {
                    continue;
                }
                let file = self.root.join(OsStr::from_bytes(self.path(index, at)));
                // One that was missing has the size 0.
                if Some(std::fs::metadata(&file).map_or(0, |meta| meta.len())) != size {
                    return Err(SourceError::data(format!("{} has changed", names::shown(&file))));
                }
            }
            Ok(())
        })
        .is_ok()
    }

    /// The path of one of a record's images.
    fn path(&self, index: u64, at: usize) -> &[u8] {
        let file = index as usize * self.images.len() + at;
        let begin = if file == 0 { 0 } else { self.ends[file - 1] };
        &self.paths[begin as usize..self.ends[file] as usize]
    }

    /// The size of its file; `None` where the record does not have it.
    fn size_of(&self, index: u64, at: usize) -> Option<u64> {
        Some(self.sizes[index as usize * self.images.len() + at]).filter(|&size| size != ABSENT)
    }

    /// Refuses a list that is wrong as a whole, and says how many of its rows are bad otherwise.
    fn judge(
        &self,
        config: &TableConfig,
        shards: &Shards,
        roots: &[Arc<Root>],
        outside: Option<&Path>,
    ) -> Result<(), SourceError> {
        let Some((&first, _)) = self.bad.first_key_value() else { return Ok(()) };
        let (list, rows) = (shards.describe(), self.len() as usize);
        let fields = self.bad.values().filter(|bad| matches!(bad, Bad::Field(_))).count();
        if fields > MAX_BAD {
            let mut all = self.bad.iter().filter(|(_, bad)| matches!(bad, Bad::Field(_)));
            let (&row, _) = all.next().expect("there are many");
            return Err(SourceError::data(format!(
                "{list}: the fields of more than {MAX_BAD} rows are bad, the first is row {row}: {}; name other fields",
                self.why(row).unwrap_or_default()
            )));
        }
        let missed: Vec<(u64, usize, &Miss)> = (self.bad.iter())
            .filter_map(
                |(&row, bad)| if let Bad::Path(at, miss) = bad { Some((row, *at, miss)) } else { None },
            )
            .collect();
        // Below this the list and its folder do not belong together.
        let Some(&(row, at, miss)) = missed.first().filter(|_| (rows - missed.len()) * 10 < rows) else {
            tracing::warn!(
                "{list}: {} of {rows} rows give no record, the first is row {first}: {}",
                self.bad.len(),
                self.why(first).unwrap_or_default()
            );
            return Ok(());
        };
        let shard = self.files.partition_point(|(_, first)| *first <= row) - 1;
        let root = &roots[shard];
        let place = if config.root.is_some() { "root" } else { "the folder of the list" };
        let count = format!("{} of {rows} rows name no image", missed.len());
        Err(SourceError::data(match (miss, outside) {
            (Miss::Outside(_), Some(folder)) => format!(
                "{list}: {count}: \"{}\" (row {row}) lies outside {} ({place}); say root={:?}, the folder that such \
                 paths share",
                shown(self.path(row, at)),
                names::shown(&root.path),
                names::shown(&folder).to_string()
            ),
            (Miss::Absent, _) => format!(
                "{list}: {count}: \"{}\" (row {row}) does not exist in {} ({place}){}",
                shown(self.path(row, at)),
                names::shown(&root.path),
                root.hint(self.path(row, at))
            ),
            (miss, _) => format!("{list}: {count}; row {row}: {}", miss.text(self.path(row, at), &root.path)),
        }))
    }

    /// What is wrong with a row that gives no record.
    fn why(&self, index: u64) -> Option<String> {
        Some(match self.bad.get(&index)? {
            Bad::Path(at, miss) => {
                let why = miss.text(self.path(index, *at), &self.root);
                match self.images[*at] {
                    Some(part) => format!("part {:?}: {why}", self.schema.parts[part].name),
                    None => why,
                }
            }
            Bad::Field(why) => why.clone(),
        })
    }

    /// What follows the image in a record.
    fn tail(&self, index: u64) -> &[u8] {
        let index = index as usize;
        if self.schema.parts.is_empty() {
            let each = self.schema.fields_bytes();
            return &self.tails[index * each..][..each];
        }
        let begin = if index == 0 { 0 } else { self.tail_ends[index - 1] };
        &self.tails[begin as usize..self.tail_ends[index] as usize]
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
        for (index, at) in (0..self.len()).flat_map(|index| (0..self.images.len()).map(move |at| (index, at)))
        {
            let path = self.path(index, at);
            number(&mut hash, path.len() as u64);
            hash.update(path);
            let is_missed = self.bad.get(&index).is_some_and(|bad| bad.miss(at).is_some());
            let size = self.size_of(index, at).filter(|_| !is_missed);
            number(&mut hash, size.unwrap_or(u64::MAX));
        }
        label::hash(&self.labels, &mut hash);
        hash.update(&serde_json::to_vec(&self.schema).expect("a schema is plain data"));
        hash.update(&self.tails);
        Fingerprint(hash.digest128())
    }
}

impl IndexedSource for PathTable {
    fn len(&self) -> u64 {
        (self.ends.len() / self.images.len()) as u64
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

    fn is_labelled(&self) -> bool {
        self.labels.is_some()
    }

    fn verdict(&self, index: u64) -> Option<String> {
        self.labels.verdict(index)
    }

    fn classes(&self) -> &[String] {
        &self.labels.classes
    }

    fn schema(&self) -> Schema {
        self.schema.clone()
    }

    fn size(&self, index: u64) -> u64 {
        let files = (0..self.images.len()).filter_map(|at| self.size_of(index, at));
        files.sum::<u64>() + self.tail(index).len() as u64
    }

    fn extent(&self, index: u64) -> Option<Extent> {
        // With anything behind it the record is not what lies in the file.
        let file = self.root.join(OsStr::from_bytes(self.path(index, 0)));
        let is_whole = self.schema.fixed_bytes() == 0 && !self.bad.contains_key(&index);
        is_whole.then(|| Extent { file, offset: 0, len: self.sizes[index as usize] })
    }

    fn blocks(&self) -> Blocks {
        Blocks::None
    }

    fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    fn memory(&self) -> u64 {
        let text = |bad: &Bad| match bad {
            Bad::Field(why) | Bad::Path(_, Miss::Unfit(why) | Miss::Failed(why)) => why.capacity(),
            Bad::Path(_, Miss::Outside(path)) => path.capacity(),
            Bad::Path(_, Miss::Absent) => 0,
        };
        let bad: usize = self.bad.values().map(|bad| text(bad) + 64).sum();
        let names: usize = self.files.iter().map(|(name, _)| name.capacity() + 32).sum();
        let columns = self.paths.capacity()
            + (self.ends.capacity() + self.sizes.capacity()) * 8
            + self.tails.capacity()
            + self.tail_ends.capacity() * 8;
        (size_of::<Self>() + columns + bad + names) as u64 + self.labels.memory()
    }

    fn reader_memory(&self) -> u64 {
        if self.is_single() {
            return 0;
        }
        gather::memory((0..self.len()).map(|index| self.size(index)).max().unwrap_or(0))
    }

    fn reader(self: Arc<Self>, config: &ReaderConfig) -> Result<Box<dyn Reader>, SourceError> {
        let inner = disk::open(self.clone(), config)?;
        if !self.is_single() {
            return Ok(gather::over(self, vec![inner]));
        }
        if self.schema.fixed_bytes() == 0 && self.bad.is_empty() {
            return Ok(inner);
        }
        Ok(Box::new(WithTails { inner, table: self }))
    }
}

impl Files for PathTable {
    fn root(&self) -> &Path {
        &self.root
    }

    /// `index` is the number of a file.
    fn locate(&self, index: u64, file: &mut Vec<u8>) -> Span {
        let (index, at) = (index / self.images.len() as u64, index as usize % self.images.len());
        // A bad row has no file; whatever comes of asking for none is turned into what is known of the row.
        if !self.bad.contains_key(&index) {
            file.extend_from_slice(self.path(index, at));
        }
        Span { offset: 0, len: self.size_of(index, at).unwrap_or(0), whole: true }
    }

    fn key(&self, index: u64) -> String {
        IndexedSource::key(self, index / self.images.len() as u64)
    }
}

/// Records of several files.
impl gather::Parts for PathTable {
    fn parts(&self) -> usize {
        self.images.len()
    }

    fn locate(&self, index: u64, at: usize) -> gather::Place {
        gather::Place { store: 0, shard: 0, offset: 0, len: self.size_of(index, at).unwrap_or(0) }
    }

    /// Of a record that is bad, and of a part that it does not have, there was no file to read.
    fn failed(&self, index: u64, at: usize, error: ReadError) -> Result<Buffer, ReadError> {
        match self.why(index) {
            Some(why) => Err(ReadError::bad(IndexedSource::key(self, index), why)),
            None if self.size_of(index, at).is_none() => Ok(Buffer::from(Vec::new())),
            None => Err(error),
        }
    }

    fn join(&self, index: u64, files: &[Buffer], room: &gather::Room<'_>) -> Result<Buffer, ReadError> {
        let tail = Schema { image: false, ..self.schema.clone() };
        let Cut { mut parts, fields, .. } = tail.cut(self.tail(index)).expect("it was made of this schema");
        let mut own: &[u8] = &[];
        for (at, (image, file)) in self.images.iter().zip(files).enumerate() {
            match image {
                None => own = file,
                Some(part) => parts[*part] = self.size_of(index, at).map(|_| &**file),
            }
        }
        room.record(IndexedSource::size(self, index), |record| {
            self.schema.join(own, parts.into_iter(), fields, record);
            Ok(())
        })
    }

    fn key(&self, index: u64) -> String {
        IndexedSource::key(self, index)
    }
}

/// Puts what follows them behind the images, and says what is wrong with rows that are bad.
struct WithTails {
    inner: Box<dyn Reader>,
    table: Arc<PathTable>,
}

impl Reader for WithTails {
    fn submit(&self, requests: Vec<ReadRequest>) {
        let with_tail = |request: ReadRequest| {
            let ReadRequest { index, done } = request;
            let table = self.table.clone();
            let done = move |result: Result<Record, ReadError>| {
                done(match table.why(index) {
                    Some(why) => Err(ReadError::bad(IndexedSource::key(&*table, index), why)),
                    None => result
                        .map(|record| Record { index, bytes: extended(record.bytes, table.tail(index)) }),
                });
            };
            ReadRequest { index, done: Box::new(done) }
        };
        self.inner.submit(requests.into_iter().map(with_tail).collect());
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
