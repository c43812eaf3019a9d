//! Tables: Parquet, Arrow IPC, CSV and JSONL.
//!
//! ```text
//!  files ── open ──▶ schema ── choose ──▶ columns: image · label · fields · tokens     columns.rs
//!                    parts (row groups, record batches, runs of lines) ──▶ units       here
//!  record ──▶ its unit ── decoded once, kept for a while ──▶ bytes                     reader.rs
//! ```
//!
//! A *unit* is what is decoded at once: a part, or a run of rows of a large part. The blocked order goes through the
//! units in a few lanes, and what is needed at one time fits in the reader's cache, so an epoch decodes each unit about
//! once. Any other order is served too, only slower.
//!
//! Promises
//! - Only the columns needed are read, in large reads.
//! - A damaged page, a null or a list of the wrong length makes its records bad ([`crate::ReadErrorKind::Bad`]), and
//!   only those, and so does a missing label; a damaged footer or label column makes the source an error. A file that
//!   changed is noticed.
//! - Nothing is allocated because a file says so: sizes are checked against the file and against limits first.
//! - Labels are read at open and cost 4 or 8 bytes a record; everything else of a record is read when it is wanted.
//!
//! Images that are all *paths* make another source of the table ([`paths`]): a list of image files, read as an image
//! folder's are, with labels, fields and named parts in memory. Which columns named parts are in, and what lies inside
//! them, [`named`] says. What this does not do: filter or join.

pub(crate) mod coco;
pub(crate) mod columns;
mod dialect;
mod fetch;
mod ipc;
mod kinds;
pub(crate) mod label;
mod named;
mod pages;
mod parquet;
mod paths;
mod reader;
mod root;
mod source;
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

use self::columns::Choice;
use self::fetch::Trouble;
use self::named::Written;
use self::source::Table;
pub use self::tokens::{TokenMode, TokenTail, TokensConfig};
use crate::bytes::buffer::Pool;
use crate::bytes::shards::{Shards, ends_with};
use crate::labels;
use crate::opening::{Counted, Step};
use crate::schema::wanted_numbers;
use crate::{CacheConfig, IndexedSource, SourceError};

/// Configuration of a table.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TableConfig {
    /// The files: paths or URLs with braces, `*` and `?`, or folders.
    #[serde(deserialize_with = "crate::texts::list")]
    pub files: Vec<String>,
    /// What the files are; default: what their endings say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub format: Option<TableFormat>,
    /// The column of images: bytes, Hugging Face's struct of bytes and path, or paths of files. Default: found by
    /// metadata, type and name; `""` for none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// The column of labels: whole numbers, bool or texts. Default: found by metadata and name; `""` or null for none.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "labels::name_or_none")]
    pub label: Option<String>,
    /// Columns delivered as numeric fields: `"age"`, `"embedding[768]"` for lists, `"*"` for all that have a fixed
    /// shape.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "crate::texts::optional")]
    pub fields: Option<Vec<String>>,
    /// The folder that paths of images start from; default: the folder of their table file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub root: Option<PathBuf>,
    /// What separates the cells of a CSV file: a character, or `comma`, `tab`, `semicolon`, `pipe`, `space`. Default:
    /// what its first lines show.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub delimiter: Option<String>,
    /// Class names in label order. Default: what the table says, or for texts their sorted list.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "crate::texts::optional")]
    pub classes: Option<Vec<String>>,
    /// Deliver token sequences of one length, made of a column of lists of integers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens: Option<TokensConfig>,
    /// What records are to hold, by part. Filled in by a pipeline's fields.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deliver: crate::Deliver,
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
    /// A JSON object on each line, or an array of objects.
    #[serde(alias = "json")]
    Jsonl,
    /// COCO's annotations, which are also recognised.
    Coco,
}

const ENDINGS: [(TableFormat, &[&str]); 6] = [
    (TableFormat::Parquet, &[".parquet", ".parq", ".pq"]),
    (TableFormat::Arrow, &[".arrow", ".feather", ".ipc", ".arrows"]),
    (TableFormat::Csv, &[".csv"]),
    (TableFormat::Tsv, &[".tsv"]),
    (TableFormat::Jsonl, &[".jsonl", ".ndjson", ".json"]),
    (TableFormat::Coco, &[".json"]),
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
    Coco(coco::File),
}

impl File {
    fn parts(&self) -> usize {
        match self {
            Self::Parquet(file) => file.parts(),
            Self::Arrow(file) => file.parts(),
            Self::Text(file) => file.parts(),
            Self::Coco(_) => 1,
        }
    }

    fn part(&self, view: usize, part: usize) -> Rows {
        match self {
            Self::Parquet(file) => file.part(view, part),
            Self::Arrow(file) => file.part(view, part),
            Self::Text(file) => file.part(view, part),
            Self::Coco(file) => file.part(),
        }
    }

    /// First rows of runs of about `run` rows of a part.
    fn starts(&self, part: usize, rows: u64, run: u64) -> Vec<u64> {
        match self {
            Self::Parquet(file) => file.starts(part, run),
            Self::Arrow(_) | Self::Text(_) | Self::Coco(_) => evenly(rows, run),
        }
    }

    fn memory(&self) -> u64 {
        match self {
            Self::Parquet(file) => file.memory(),
            Self::Arrow(file) => file.memory(),
            Self::Text(file) => file.memory(),
            Self::Coco(file) => file.memory(),
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
            Self::Coco(file) => Ok(file.decode(view, rows)),
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
        let explain = |own: &'static [u8]| move |error| shards.explain(shard, own, error);
        Ok(match format {
            TableFormat::Parquet => {
                let footer = parquet::Footer::read(shards, shard).map_err(explain(b"PAR1"))?;
                Self::Parquet(Box::new(footer))
            }
            _ => Self::Arrow(ipc::Head::read(shards, shard).map_err(explain(b"ARROW1"))?),
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
    // What they have to say is said where the caller's is.
    let log = tracing::dispatcher::get_default(Clone::clone);
    let run = |at| tracing::dispatcher::with_default(&log, || step.run(|| work(at)));
    pool.install(|| (0..count).into_par_iter().map(run).collect())
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
    let delimiter = config.delimiter.as_deref().map(dialect::separator).transpose()?;
    // What lies beside tables as .json describes them, so one counts only if it is named.
    let of_folder: Vec<&str> =
        endings.iter().copied().filter(|&ending| ending != ".json" || config.format.is_some()).collect();
    // So do texts in a folder of Parquet or Arrow files.
    let binary: Vec<&str> = ENDINGS[..2].iter().flat_map(|(_, all)| all.to_vec()).collect();
    let found = match config.format {
        None => Shards::open(&config.files, &binary, &config.cache).ok(),
        Some(_) => None,
    };
    let shards = match found {
        Some(shards) => shards,
        None => Shards::open(&config.files, &of_folder, &config.cache)?,
    };
    let format = |shard: usize| {
        let name = &shards.files()[shard].name;
        config
            .format
            .or_else(|| ENDINGS.iter().find(|(_, all)| ends_with(name, all)).map(|(format, _)| *format))
            .ok_or_else(|| {
                SourceError::config(format!(
                    "{} does not have one of the endings {}; say what it is (format)",
                    shards.display(shard),
                    endings.join(", ")
                ))
            })
    };
    let partitions = partitions(&shards);
    for (key, folder) in &partitions {
        let is_key = |name: &String| name.split('[').next() == Some(key);
        if config.label.iter().chain(config.fields.iter().flatten()).chain(&config.image).any(is_key) {
            return Err(SourceError::config(format!(
                "{key:?} is part of the names of folders ({folder:?}) and no column: folders give no columns, so write it into the \
                 files"
            )));
        }
    }
    let mut first_format = format(0)?;
    for shard in 1..shards.files().len() {
        if format(shard)? != first_format {
            return Err(SourceError::data(format!(
                "{} and {} are tables of different formats; give files of one format",
                shards.display(0),
                shards.display(shard)
            )));
        }
    }
    if first_format == TableFormat::Jsonl && text::is_coco(&shards, 0)? {
        first_format = TableFormat::Coco;
    }
    let mut categories = Vec::new();
    let mut facts = Vec::new();
    let (choice, files) = match first_format {
        TableFormat::Coco => {
            let opened = open_coco(config, &shards)?;
            (categories, facts) = (opened.categories, opened.facts);
            (opened.choice, opened.files)
        }
        TableFormat::Csv | TableFormat::Tsv | TableFormat::Jsonl => {
            open_text(config, &shards, first_format, delimiter)?
        }
        format => open_binary(config, &shards, format)?,
    };
    let rows: u64 = files
        .iter()
        .map(|file| (0..file.parts()).map(|part| file.part(RECORD, part).rows).sum::<u64>())
        .sum();
    if rows == 0 {
        return Err(SourceError::data(format!("{} has no rows", shards.describe())));
    }
    let mut labels = label::read(&shards, &files, &choice, config)?;
    if labels.classes.is_empty() {
        labels.classes = categories;
    }
    let mut recognised = choice.recognised();
    facts.into_iter().for_each(|fact| recognised.note(fact));
    if let File::Text(file) = &files[0] {
        file.recognised(first_format).into_iter().for_each(|fact| recognised.note(fact));
    }
    for (_, folder) in &partitions {
        recognised.note(format!("folders like {folder:?} give no column"));
    }
    let place = choice.label.as_ref().map(|column| format!("column {column:?}"));
    recognised.note(labels.recognised(place.as_deref()));
    if choice.label_is_ordered && config.classes.is_none() {
        recognised.note("categories in sorted order, not in their own, which classes=[…] would keep");
    }
    if choice.is_of_paths() {
        let list = paths::open(config, shards.clone(), &files, &choice, labels, &mut recognised)?;
        recognised.say(&shards.describe(), list.len());
        return Ok(list);
    }
    let table = Table::new(config, shards.clone(), files, choice, labels, &mut recognised)?;
    recognised.say(&shards.describe(), table.len());
    Ok(Arc::new(table))
}

/// The keys of folders named `key=value`, as Hive and Spark name them, each with an example.
fn partitions(shards: &Shards) -> Vec<(String, String)> {
    let mut found: Vec<(String, String)> = Vec::new();
    for shard in 0..shards.files().len() {
        let path = shards.display(shard);
        let folders = path.rsplit_once('/').map_or("", |(folders, _)| folders);
        for folder in folders.split('/') {
            if let Some((key, _)) = folder.split_once('=')
                && !key.is_empty()
                && found.len() < 8
                && found.iter().all(|(known, _)| known != key)
            {
                found.push((key.to_owned(), folder.to_owned()));
            }
        }
    }
    found
}

fn open_binary(
    config: &TableConfig,
    shards: &Arc<Shards>,
    format: TableFormat,
) -> Result<(Choice, Vec<File>), SourceError> {
    let first = Head::read(shards, 0, format)?;
    let schema = first.schema();
    let choice = Choice::new(&schema, config, &shards.display(0), Written::Typed)?;
    let (views, has_parts) = (views(&choice), !choice.parts.is_empty());
    let layout = match &first {
        Head::Parquet(footer) => Some(parquet::Layout::new(footer, &views, has_parts, &shards.display(0))?),
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
                    _ => parquet::Layout::new(footer, &views, has_parts, &shards.display(shard))?,
                };
                File::Parquet(parquet::File::new(footer, layout, shards, shard)?)
            }
            Head::Arrow(head) => File::Arrow(ipc::File::new(head, &views, shards, shard)?),
        })
    })?;
    Ok((choice, files))
}

/// An open file of COCO's annotations.
struct OpenedCoco {
    choice: Choice,
    files: Vec<File>,
    /// Names in the order of their numbers.
    categories: Vec<String>,
    facts: Vec<String>,
}

fn open_coco(config: &TableConfig, shards: &Arc<Shards>) -> Result<OpenedCoco, SourceError> {
    if shards.files().len() > 1 {
        return Err(SourceError::config(format!(
            "{} are {} files of COCO annotations, whose ids may mean different things: give one, or mix them \
             (sources=[…])",
            shards.describe(),
            shards.files().len()
        )));
    }
    let step = Step::begin("reading annotations", Counted::Bytes, Some(shards.files()[0].size));
    let head = coco::Head::read(shards, 0, &step)?;
    drop(step);
    if head.is_empty() {
        return Err(SourceError::data(format!("{} has no images", shards.describe())));
    }
    // Its images are nowhere else, and what it says of an image is no label of it.
    let image = config.image.clone().or_else(|| Some(coco::PATH.to_owned()));
    let label = config.label.clone().or_else(|| Some(String::new()));
    let wanted = TableConfig { image, label, ..config.clone() };
    let choice = Choice::new(&head.schema(), &wanted, &shards.display(0), Written::Typed)?;
    let (categories, facts) = (head.classes.clone(), head.facts.clone());
    let files = vec![File::Coco(coco::File::new(head, &views(&choice)))];
    Ok(OpenedCoco { choice, files, categories, facts })
}

/// Text files say what their columns are only after all of them has been read.
fn open_text(
    config: &TableConfig,
    shards: &Arc<Shards>,
    format: TableFormat,
    delimiter: Option<u8>,
) -> Result<(Choice, Vec<File>), SourceError> {
    let total = shards.files().iter().map(|file| file.size).sum();
    let step = Step::begin("reading tables", Counted::Bytes, Some(total));
    let wanted = |cell: &str| {
        let parts = config.deliver.iter().flatten().map(|wanted| &wanted.part);
        let named = config.image.iter().chain(&config.label).chain(config.fields.iter().flatten());
        named.chain(parts).map(|name| name.split('[').next().unwrap_or(name)).any(|name| name == cell)
    };
    // A column that may be the label, too, keeps what every one of its cells says.
    let is_unlabelled = matches!(config.label.as_deref(), Some("" | "none"));
    let is_field = |column: &str| {
        let may_be_label = config.label.as_deref() == Some(column)
            || labels::NAMES.iter().any(|name| name.eq_ignore_ascii_case(column));
        let fields = config.fields.iter().flatten().map(String::as_str);
        let mut fields = fields.chain(wanted_numbers(&config.deliver));
        let mut named = || fields.any(|field| field.split('[').next() == Some(column));
        (is_unlabelled || !may_be_label) && named()
    };
    let heads = in_parallel(&step, shards.files().len(), |shard| {
        let asked = text::Asked { is_named: &wanted, is_field: &is_field };
        text::Head::read(shards, shard, format, delimiter, &asked, &step)
    })?;
    drop(step);
    if heads.iter().all(text::Head::is_empty) {
        return Err(SourceError::data(format!("{} has no rows", shards.describe())));
    }
    let schema = text::unify(&heads);
    let written = if format == TableFormat::Jsonl { Written::Json } else { Written::Cells };
    let choice = Choice::new(&schema, config, &shards.display(0), written)
        .map_err(|error| text::with_places(error, &schema))?;
    let (views, raw) = (views(&choice), choice.raw_columns());
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
            Ok(File::Text(text::File::new(head, &schema, &views, &raw)))
        })
        .collect::<Result<_, SourceError>>()?;
    Ok((choice, files))
}

fn views(choice: &Choice) -> [Vec<String>; 2] {
    [choice.record_columns(), choice.label.iter().cloned().collect()]
}
