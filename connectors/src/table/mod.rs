//! Tables: Parquet, Arrow IPC, CSV and JSONL.
//!
//! ```text
//!  files ── open ──▶ schema ── choose ──▶ columns: image · label · fields · tokens     columns.rs
//!                    parts (row groups, record batches, runs of lines) ──▶ units       here
//!  record ──▶ its unit ── decoded once, kept for a while ──▶ bytes                     reader.rs
//! ```
//!
//! A *unit* is what is decoded at once: a part, or a run of rows of a large part. The blocked order goes through the units
//! in a few lanes, and what is needed at one time fits in the reader's cache, so an epoch decodes each unit about once.
//! Any other order is served too, only slower.
//!
//! Promises
//! - Only the columns needed are read, in large reads.
//! - A damaged page, a null or a list of the wrong length makes its records bad ([`crate::ReadErrorKind::Bad`]), and only
//!   those; a damaged footer or label column makes the source an error. A file that changed is noticed.
//! - Nothing is allocated because a file says so: sizes are checked against the file and against limits first.
//! - Labels are read at open and cost 4 or 8 bytes a record; everything else of a record is read when it is wanted.
//!
//! An image column that holds *paths* makes another source of the table ([`paths`]): a list of image files, read as an
//! image folder's are, with labels and fields in memory. What this does not do: filter, join, or read nested columns
//! other than lists of numbers and Hugging Face's image struct.

pub(crate) mod columns;
mod fetch;
mod ipc;
mod labels;
mod pages;
mod parquet;
mod paths;
mod reader;
mod text;
mod thrift;
mod tokens;

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use crate::arrow::array::ArrayRef;
use crate::arrow::datatypes::SchemaRef;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::Xxh3;

use self::columns::{Choice, Image, ImageKind};
use self::fetch::Trouble;
use self::labels::Labels;
pub use self::tokens::{TokenMode, TokenTail, TokensConfig};
use crate::buffer::{Buffer, Pool};
use crate::opening::{Counted, Step};
use crate::shards::{Shards, ends_with};
use crate::{
    Blocks, CacheConfig, Extent, FieldSpec, Fingerprint, IndexedSource, ReadError, Reader, ReaderConfig,
    Schema, SourceError,
};

/// Configuration of a table.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TableConfig {
    /// The files: paths or URLs with braces, `*` and `?`, or folders.
    pub files: Vec<String>,
    /// What the files are; default: what their endings say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub format: Option<TableFormat>,
    /// The column of images: bytes, Hugging Face's struct of bytes and path, or paths of files. Default: found by metadata,
    /// type and name; `""` for none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// The column of labels: integers, bool or texts. Default: found by metadata and name; `""` for none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// Columns delivered as numeric fields: `"age"`, `"embedding[768]"` for lists, `"*"` for all that have a fixed shape.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fields: Option<Vec<String>>,
    /// The folder that paths of images start from; default: the folder of their table file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub root: Option<PathBuf>,
    /// Class names in label order. Default: what the table says, or for texts their sorted list.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub classes: Option<Vec<String>>,
    /// Deliver token sequences of one length, made of a column of lists of integers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens: Option<TokensConfig>,
    /// Where copies are kept.
    #[serde(skip_serializing_if = "CacheConfig::is_default")]
    pub cache: CacheConfig,
}

/// Formats of tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TableFormat {
    /// Apache Parquet.
    Parquet,
    /// Arrow IPC, files (Feather version 2) or streams.
    Arrow,
    /// Values separated by commas.
    Csv,
    /// Values separated by tabs.
    Tsv,
    /// A JSON object on each line.
    Jsonl,
}

const ENDINGS: [(TableFormat, &[&str]); 5] = [
    (TableFormat::Parquet, &[".parquet", ".parq", ".pq"]),
    (TableFormat::Arrow, &[".arrow", ".feather", ".ipc", ".arrows"]),
    (TableFormat::Csv, &[".csv"]),
    (TableFormat::Tsv, &[".tsv"]),
    (TableFormat::Jsonl, &[".jsonl", ".ndjson"]),
];

impl TableConfig {
    pub(crate) fn locations(&self) -> Vec<String> {
        let root = self.root.iter().map(|root| root.to_string_lossy().into_owned());
        self.files.iter().cloned().chain(root).collect()
    }
}

/// Views of a file's columns: those of a record's bytes, and the label alone.
const RECORD: usize = 0;
const LABEL: usize = 1;

/// What a file's part holds of a view.
struct Rows {
    rows: u64,
    /// Bytes once decoded, as far as the file says.
    bytes: u64,
    /// Whether rows out of the middle can be decoded alone.
    divisible: bool,
}

/// Rows decoded, with the columns of a view in its order, or why they are bad.
struct Piece {
    rows: Range<u64>,
    columns: Result<Vec<ArrayRef>, Arc<str>>,
}

impl Piece {
    fn bad(rows: Range<u64>, why: String) -> Self {
        Self { rows, columns: Err(why.into()) }
    }
}

/// Runs of equal length, so that none is a crumb.
fn evenly(rows: u64, run: u64) -> Vec<u64> {
    let runs = rows.div_ceil(run.max(1)).max(1);
    (0..runs).map(|at| (u128::from(rows) * u128::from(at) / u128::from(runs)) as u64).collect()
}

/// More rows than a file of this size can sensibly hold are a lie, or a bomb: constant columns cost next to nothing.
fn check_rows(name: &str, rows: u64, size: u64) -> Result<(), SourceError> {
    if rows <= (1 << 20) + size.saturating_mul(64) && rows < u64::from(u32::MAX) * 64 {
        return Ok(());
    }
    Err(SourceError::data(format!("{name} claims {rows} rows in {size} bytes, which is not plausible")))
}

/// An open file of any format.
enum File {
    Parquet(parquet::File),
    Arrow(ipc::File),
    Text(text::File),
}

impl File {
    fn parts(&self) -> usize {
        match self {
            Self::Parquet(file) => file.parts(),
            Self::Arrow(file) => file.parts(),
            Self::Text(file) => file.parts(),
        }
    }

    fn part(&self, view: usize, part: usize) -> Rows {
        match self {
            Self::Parquet(file) => file.part(view, part),
            Self::Arrow(file) => file.part(view, part),
            Self::Text(file) => file.part(view, part),
        }
    }

    /// First rows of runs of about `run` rows of a part.
    fn starts(&self, part: usize, rows: u64, run: u64) -> Vec<u64> {
        match self {
            Self::Parquet(file) => file.starts(part, run),
            Self::Arrow(_) | Self::Text(_) => evenly(rows, run),
        }
    }

    fn memory(&self) -> u64 {
        match self {
            Self::Parquet(file) => file.memory(),
            Self::Arrow(file) => file.memory(),
            Self::Text(file) => file.memory(),
        }
    }

    fn decode(
        &self,
        shards: &Shards,
        shard: usize,
        view: usize,
        part: usize,
        rows: Range<u64>,
        pool: &Arc<Pool>,
    ) -> Result<Vec<Piece>, Trouble> {
        match self {
            Self::Parquet(file) => file.decode(shards, shard, view, part, rows, pool),
            Self::Arrow(file) => file.decode(shards, shard, view, part, rows, pool),
            Self::Text(file) => file.decode(shards, shard, view, part, rows, pool),
        }
    }
}

/// What a file says before columns are chosen. (Text files say it only after all of them has been read: [`open_text`].)
enum Head {
    Parquet(Box<parquet::Footer>),
    Arrow(ipc::Head),
}

impl Head {
    fn read(shards: &Shards, shard: usize, format: TableFormat) -> Result<Self, SourceError> {
        Ok(match format {
            TableFormat::Parquet => Self::Parquet(Box::new(parquet::Footer::read(shards, shard)?)),
            _ => Self::Arrow(ipc::Head::read(shards, shard)?),
        })
    }

    fn schema(&self) -> SchemaRef {
        match self {
            Self::Parquet(footer) => footer.schema.clone(),
            Self::Arrow(head) => head.schema.clone(),
        }
    }
}

/// Works on files or runs of rows side by side, a few at a time; the order of the results stays. Ends early when the
/// opening that `step` belongs to is cancelled.
fn in_parallel<T: Send>(
    step: &Step,
    count: usize,
    work: impl Fn(usize) -> Result<T, SourceError> + Send + Sync,
) -> Result<Vec<T>, SourceError> {
    // Waiting for disks: more threads than cores.
    let threads = std::thread::available_parallelism().map_or(2, usize::from).clamp(4, 16).min(count.max(1));
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .thread_name(|number| format!("fuelrail-table-{number}"))
        .build()
        .map_err(|error| SourceError::backend(format!("no threads to read the table's files: {error}")))?;
    pool.install(|| (0..count).into_par_iter().map(|at| step.run(|| work(at))).collect())
}

pub(crate) fn open(config: &TableConfig) -> Result<Arc<dyn IndexedSource>, SourceError> {
    let endings: Vec<&str> = match config.format {
        Some(format) => {
            ENDINGS.iter().filter(|(kind, _)| *kind == format).flat_map(|(_, all)| all.to_vec()).collect()
        }
        None => ENDINGS.iter().flat_map(|(_, all)| all.to_vec()).collect(),
    };
    if let Some(tokens) = &config.tokens {
        tokens.check()?;
    }
    let shards = Shards::open(&config.files, &endings, &config.cache)?;
    let format = |shard: usize| {
        let name = &shards.files()[shard].name;
        config
            .format
            .or_else(|| ENDINGS.iter().find(|(_, all)| ends_with(name, all)).map(|(format, _)| *format))
            .ok_or_else(|| {
                SourceError::config(format!(
                    "{} has none of the endings {}; say what it is (format)",
                    shards.display(shard),
                    endings.join(", ")
                ))
            })
    };
    let first_format = format(0)?;
    for shard in 1..shards.files().len() {
        if format(shard)? != first_format {
            return Err(SourceError::data(format!(
                "{} and {} are tables of different formats; give files of one format",
                shards.display(0),
                shards.display(shard)
            )));
        }
    }
    let (choice, files) = match first_format {
        TableFormat::Csv | TableFormat::Tsv | TableFormat::Jsonl => open_text(config, &shards, first_format)?,
        format => open_binary(config, &shards, format)?,
    };
    let rows: u64 = files
        .iter()
        .map(|file| (0..file.parts()).map(|part| file.part(RECORD, part).rows).sum::<u64>())
        .sum();
    if rows == 0 {
        return Err(SourceError::data(format!("{} has no rows", describe(&shards))));
    }
    let labels = Labels::read(&shards, &files, &choice, config)?;
    if let Some(Image { kind: ImageKind::Path, .. }) = &choice.image {
        return paths::open(config, shards, &files, &choice, labels);
    }
    Ok(Arc::new(Table::new(config, shards, files, choice, labels)?))
}

/// The files in a few words.
fn describe(shards: &Shards) -> String {
    match shards.files().len() {
        1 => shards.display(0),
        count => format!("{} and {} more files", shards.display(0), count - 1),
    }
}

fn open_binary(
    config: &TableConfig,
    shards: &Arc<Shards>,
    format: TableFormat,
) -> Result<(Choice, Vec<File>), SourceError> {
    let first = Head::read(shards, 0, format)?;
    let schema = first.schema();
    let choice = Choice::new(&schema, config, &shards.display(0), false)?;
    let views = views(&choice);
    let layout = match &first {
        Head::Parquet(footer) => Some(parquet::Layout::new(footer, &views, &shards.display(0))?),
        _ => None,
    };
    let count = shards.files().len();
    let step = Step::begin("reading the heads of tables", Counted::Files, Some(count as u64));
    let files = in_parallel(&step, count, |shard| {
        step.add(1);
        let head = Head::read(shards, shard, format)?;
        choice.check(&schema, &head.schema(), &shards.display(0), &shards.display(shard))?;
        Ok(match &head {
            Head::Parquet(footer) => {
                let layout = match &layout {
                    Some(layout) if layout.fits(footer) => layout.clone(),
                    _ => parquet::Layout::new(footer, &views, &shards.display(shard))?,
                };
                File::Parquet(parquet::File::new(footer, layout, shards, shard)?)
            }
            Head::Arrow(head) => File::Arrow(ipc::File::new(head, &views, shards, shard)?),
        })
    })?;
    Ok((choice, files))
}

/// Text files say what their columns are only after all of them has been read.
fn open_text(
    config: &TableConfig,
    shards: &Arc<Shards>,
    format: TableFormat,
) -> Result<(Choice, Vec<File>), SourceError> {
    let total = shards.files().iter().map(|file| file.size).sum();
    let step = Step::begin("reading tables", Counted::Bytes, Some(total));
    let heads =
        in_parallel(&step, shards.files().len(), |shard| text::Head::read(shards, shard, format, &step))?;
    drop(step);
    if heads.iter().all(text::Head::is_empty) {
        return Err(SourceError::data(format!("{} has no rows", describe(shards))));
    }
    let schema = text::unify(&heads);
    let choice = Choice::new(&schema, config, &shards.display(0), true)?;
    let views = views(&choice);
    let files = heads
        .into_iter()
        .enumerate()
        .map(|(shard, head)| {
            choice.check(
                &schema,
                &text::promoted(&head, &schema),
                &shards.display(0),
                &shards.display(shard),
            )?;
            Ok(File::Text(text::File::new(head, &schema, &views)))
        })
        .collect::<Result<_, SourceError>>()?;
    Ok((choice, files))
}

fn views(choice: &Choice) -> [Vec<String>; 2] {
    [choice.record_columns(), choice.label.iter().cloned().collect()]
}

/// What is decoded at once.
#[derive(Clone, Copy, Debug)]
struct Unit {
    file: u32,
    part: u32,
    /// Its first row in the part, in the file, and in the table.
    in_part: u64,
    in_file: u64,
    first: u64,
}

/// A part that takes more than this is decoded in runs.
const LARGE_PART: u64 = 16 << 20;

/// What a run takes, about.
const RUN_BYTES: u64 = 8 << 20;

/// A unit has no more rows than this, so that memory per row stays small.
const UNIT_ROWS: u64 = 1 << 18;

/// What a reader may keep decoded.
const CACHE_BYTES: u64 = 256 << 20;

/// The most lanes that are worth it.
const MAX_LANES: u64 = 32;

/// An open table whose records are made of its rows.
struct Table {
    shards: Arc<Shards>,
    files: Vec<File>,
    units: Vec<Unit>,
    rows: u64,
    /// The image's column in the record view.
    image: Option<ImageKind>,
    /// Columns of the fields in the record view.
    fields: Vec<(usize, FieldSpec)>,
    tokens: Option<tokens::Tokens>,
    labels: Labels,
    schema: Schema,
    blocks: Blocks,
    cache_bytes: u64,
    /// Units that may be decoded before anyone asks for them, and how many records ahead that is about.
    early_units: u64,
    horizon: u64,
    largest_unit: u64,
    root: Option<PathBuf>,
    fingerprint: Fingerprint,
}

impl Table {
    fn new(
        config: &TableConfig,
        shards: Arc<Shards>,
        files: Vec<File>,
        choice: Choice,
        labels: Labels,
    ) -> Result<Self, SourceError> {
        let (units, rows) = units(&shards, &files)?;
        let columns = choice.record_columns();
        let place = |name: &str| columns.iter().position(|column| column == name).expect("it is one of them");
        let fields: Vec<(usize, FieldSpec)> =
            choice.fields.iter().map(|field| (place(&field.name), field.clone())).collect();
        let mut specs: Vec<FieldSpec> = choice.fields.clone();
        let mut table = Self {
            image: choice.image.as_ref().map(|image| image.kind),
            fields,
            tokens: None,
            labels,
            schema: Schema::default(),
            blocks: Blocks::None,
            cache_bytes: 0,
            early_units: 0,
            horizon: 0,
            largest_unit: 0,
            root: config.root.clone(),
            fingerprint: Fingerprint(0),
            shards,
            files,
            units,
            rows,
        };
        if let (Some(wanted), Some(column)) = (&config.tokens, &choice.tokens) {
            let tokens = tokens::Tokens::open(wanted, place(column), &table, &config.cache)?;
            specs.extend(tokens.specs());
            table.tokens = Some(tokens);
        }
        table.schema = Schema { image: choice.image.is_some(), fields: specs };
        table
            .schema
            .check()
            .map_err(|why| SourceError::config(format!("{}: {why}", describe(&table.shards))))?;
        table.plan();
        table.fingerprint = table.hash();
        Ok(table)
    }

    /// One row past the unit's last, in the table.
    fn unit_end(&self, unit: usize) -> u64 {
        self.units.get(unit + 1).map_or(self.rows, |next| next.first)
    }

    fn unit_rows(&self, unit: usize) -> u64 {
        self.unit_end(unit) - self.units[unit].first
    }

    /// The unit that holds a row.
    fn unit_of(&self, row: u64) -> usize {
        self.units.partition_point(|unit| unit.first <= row) - 1
    }

    /// Bytes that a unit takes once decoded, as far as its file says.
    fn unit_bytes(&self, unit: usize) -> u64 {
        let at = self.units[unit];
        let part = self.files[at.file as usize].part(RECORD, at.part as usize);
        (u128::from(part.bytes) * u128::from(self.unit_rows(unit)) / u128::from(part.rows.max(1))) as u64
    }

    /// Decodes a unit's columns of a record.
    fn decode(&self, unit: usize, pool: &Arc<Pool>) -> Result<Vec<Piece>, Trouble> {
        let at = self.units[unit];
        let rows = at.in_part..at.in_part + self.unit_rows(unit);
        self.files[at.file as usize].decode(
            &self.shards,
            at.file as usize,
            RECORD,
            at.part as usize,
            rows,
            pool,
        )
    }

    /// The key of a row: its file and its number in it, counted from 0.
    fn row_key(&self, row: u64) -> String {
        let unit = self.units[self.unit_of(row)];
        format!("{}:{}", self.shards.files()[unit.file as usize].name, unit.in_file + (row - unit.first))
    }

    /// Chooses lanes and window such that what is needed at one time fits in the cache: see [`Blocks`].
    fn plan(&mut self) {
        let bytes: Vec<u64> = (0..self.units.len()).map(|unit| self.unit_bytes(unit).max(1)).collect();
        let total: u64 = bytes.iter().sum();
        self.largest_unit = bytes.iter().copied().max().unwrap_or(0);
        let lengths = self.lengths();
        let records: u64 = lengths.iter().sum();
        // A table that fits is shuffled as a whole.
        let slack = |bytes: u64| bytes + bytes / 4 + (1 << 20);
        let mut sorted = lengths.clone();
        sorted.sort_unstable();
        let usual = sorted.get(sorted.len() / 2).copied().unwrap_or(0);
        let (lanes, window, cache) = if slack(total) <= CACHE_BYTES {
            // All of it stays: what is decoded early is never in the way.
            self.early_units = u64::from(reader::DECODERS);
            (1, records, slack(total))
        } else {
            // With a window of half a unit a lane touches two units at a time, and where there is room a third may linger.
            let fit = CACHE_BYTES / slack(self.largest_unit);
            let most = (fit / 3).clamp(1, MAX_LANES).min(lengths.len() as u64);
            let lanes = 1 << most.ilog2();
            // What is left over goes into wider windows.
            let per_lane = (fit / lanes).max(2);
            // Beside the two units that a lane touches there is room for the next one.
            self.early_units = if per_lane >= 3 { lanes } else { 0 };
            let window = if per_lane > 3 { (per_lane - 2) * usual } else { (usual / 2).max(1) };
            (lanes, window, (lanes * per_lane * slack(self.largest_unit)).max(slack(self.largest_unit)))
        };
        self.cache_bytes = cache;
        self.horizon = (self.early_units * usual).min(records);
        self.blocks = Blocks::Lengths { lengths: lengths.into(), lanes, window };
    }

    /// Records of each unit; a record belongs to the unit in which it begins. None is 0.
    fn lengths(&self) -> Vec<u64> {
        match &self.tokens {
            Some(tokens) => tokens.lengths(self),
            None => (0..self.units.len()).map(|unit| self.unit_rows(unit)).collect(),
        }
    }

    /// The units that a record is made of.
    fn units_of(&self, record: u64) -> Range<usize> {
        let rows = match &self.tokens {
            Some(tokens) => tokens.rows(record),
            None => record..record + 1,
        };
        self.unit_of(rows.start)..self.unit_of(rows.end - 1) + 1
    }

    /// Makes a record of its decoded units.
    fn record(
        &self,
        record: u64,
        units: &[Arc<reader::Decoded>],
        pool: &Arc<Pool>,
    ) -> Result<Buffer, ReadError> {
        let bad = |why: String| ReadError::bad(self.key(record), why);
        let mut fields = Vec::with_capacity(self.schema.fields_bytes());
        let mut image: &[u8] = &[];
        let mut file = Vec::new();
        if let Some(tokens) = &self.tokens {
            tokens.append(self, record, units, &mut fields).map_err(bad)?;
        } else {
            let (columns, row) = units[0].row(record).map_err(|why| bad(why.to_string()))?;
            match self.image {
                Some(ImageKind::Struct) => match struct_image(columns[0].as_ref(), row).map_err(&bad)? {
                    Ok(bytes) => image = bytes,
                    Err(path) => {
                        let unit = self.units[self.unit_of(record)].file as usize;
                        let root = paths::root(self.root.as_ref(), &self.shards, unit)
                            .map_err(|error| ReadError::io(self.key(record), error.to_string(), false))?;
                        file = paths::read(&root, path, || self.key(record))?;
                        image = &file;
                    }
                },
                Some(_) => {
                    image = columns::bytes_at(columns[0].as_ref(), row)
                        .ok_or_else(|| bad("its image is null".into()))?;
                }
                None => {}
            }
            for (column, spec) in &self.fields {
                columns::append(columns[*column].as_ref(), row, spec, &mut fields).map_err(&bad)?;
            }
        }
        let len = image.len() + fields.len();
        let mut buffer = pool.take(len).ok_or_else(|| {
            ReadError::io(self.key(record), format!("there is no memory for its {len} bytes"), true)
        })?;
        let storage = buffer.storage();
        storage[..image.len()].copy_from_slice(image);
        storage[image.len()..len].copy_from_slice(&fields);
        buffer.set_len(len);
        drop(file);
        Ok(buffer)
    }

    fn hash(&self) -> Fingerprint {
        let mut hash = Xxh3::new();
        let number = |hash: &mut Xxh3, value: u64| hash.update(&value.to_le_bytes());
        hash.update(b"fuelrail table 1\0");
        number(&mut hash, self.shards.files().len() as u64);
        for (shard, file) in self.shards.files().iter().zip(&self.files) {
            number(&mut hash, shard.name.len() as u64);
            hash.update(shard.name.as_bytes());
            number(&mut hash, shard.size);
            for part in 0..file.parts() {
                number(&mut hash, file.part(RECORD, part).rows);
            }
        }
        self.labels.hash(&mut hash);
        let schema = serde_json::to_vec(&self.schema).expect("a schema is plain data");
        hash.update(&schema);
        if let Some(tokens) = &self.tokens {
            tokens.hash(&mut hash);
        }
        Fingerprint(hash.digest128())
    }
}

/// The bytes of Hugging Face's struct, or the path where they are null.
fn struct_image(array: &dyn crate::arrow::array::Array, row: usize) -> Result<Result<&[u8], &[u8]>, String> {
    use crate::arrow::array::AsArray;
    let image = array.as_struct();
    if array.is_null(row) {
        return Err("its image is null".into());
    }
    if let Some(bytes) =
        image.column_by_name("bytes").and_then(|column| columns::bytes_at(column.as_ref(), row))
    {
        return Ok(Ok(bytes));
    }
    match image.column_by_name("path").and_then(|column| columns::bytes_at(column.as_ref(), row)) {
        Some(path) => Ok(Err(path)),
        None => Err("its image has neither bytes nor a path".into()),
    }
}

/// Cuts all parts into units. Returns them with the number of rows.
fn units(shards: &Shards, files: &[File]) -> Result<(Vec<Unit>, u64), SourceError> {
    let mut units = Vec::new();
    let mut first = 0;
    for (number, file) in files.iter().enumerate() {
        let mut in_file = 0;
        for part in 0..file.parts() {
            let Rows { rows, bytes, divisible } = file.part(RECORD, part);
            let share = |some: u64| (u128::from(bytes) * u128::from(some) / u128::from(rows.max(1))) as u64;
            let mut starts = vec![0];
            if divisible {
                let mut run = rows;
                if bytes > LARGE_PART {
                    run = (u128::from(rows) * u128::from(RUN_BYTES) / u128::from(bytes)).max(1) as u64;
                }
                starts = file.starts(part, rows, run.min(UNIT_ROWS));
            }
            for (at, &in_part) in starts.iter().enumerate() {
                let end = starts.get(at + 1).copied().unwrap_or(rows);
                parquet::check_unit(&shards.display(number), part, share(end - in_part))?;
                units.push(Unit {
                    file: number as u32,
                    part: part as u32,
                    in_part,
                    in_file: in_file + in_part,
                    first: first + in_part,
                });
            }
            in_file += rows;
            first += rows;
        }
    }
    units.shrink_to_fit();
    Ok((units, first))
}

impl IndexedSource for Table {
    fn len(&self) -> u64 {
        self.tokens.as_ref().map_or(self.rows, |tokens| tokens.len(self.rows))
    }

    fn key(&self, index: u64) -> String {
        assert!(index < self.len(), "record {index} of a source of {}", self.len());
        match &self.tokens {
            Some(tokens) => tokens.key(self, index),
            None => self.row_key(index),
        }
    }

    fn label(&self, index: u64) -> i64 {
        assert!(index < self.len(), "record {index} of a source of {}", self.len());
        match &self.tokens {
            Some(tokens) if tokens.is_packed() => 0,
            _ => self.labels.get(index),
        }
    }

    fn classes(&self) -> &[String] {
        &self.labels.classes
    }

    fn schema(&self) -> Schema {
        self.schema.clone()
    }

    fn size(&self, index: u64) -> u64 {
        assert!(index < self.len(), "record {index} of a source of {}", self.len());
        let fields = self.schema.fields_bytes() as u64;
        if self.image.is_none() {
            return fields;
        }
        // The average of its unit: the sizes of single images are known only once it is decoded.
        let unit = self.unit_of(index);
        self.unit_bytes(unit).div_ceil(self.unit_rows(unit).max(1)).max(fields + 1)
    }

    fn extent(&self, _: u64) -> Option<Extent> {
        None
    }

    fn blocks(&self) -> Blocks {
        self.blocks.clone()
    }

    fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    fn memory(&self) -> u64 {
        let blocks = match &self.blocks {
            Blocks::Lengths { lengths, .. } => size_of_val(&**lengths),
            Blocks::None => 0,
        };
        let files: u64 = self.files.iter().map(|file| size_of::<File>() as u64 + file.memory()).sum();
        size_of::<Self>() as u64
            + self.shards.memory()
            + files
            + (self.units.capacity() * size_of::<Unit>() + blocks) as u64
            + self.labels.memory()
            + self.tokens.as_ref().map_or(0, tokens::Tokens::memory)
    }

    fn reader_memory(&self) -> u64 {
        // Buffers of many sizes come and go on several threads: a third more is what the allocator was seen to hold.
        (self.cache_bytes + reader::in_hand(self.largest_unit)) * 4 / 3 + self.shards.reader_memory()
    }

    fn reader(self: Arc<Self>, config: &ReaderConfig) -> Result<Box<dyn Reader>, SourceError> {
        config.check()?;
        Ok(Box::new(reader::UnitReader::start(self, config.depth)?))
    }
}
