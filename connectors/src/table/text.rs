//! CSV, TSV and JSONL: read once at open to learn columns, types and where rows are; rows are parsed when they are wanted.
//!
//! - The first line of a CSV or TSV file names its columns, unless it has at most two cells and the first ends like an image
//!   file: then the columns are `path` and `label`.
//! - A column holds integers if all its cells do, else numbers, else texts. An empty cell of a column of numbers is a null.
//! - Each line of a JSONL file is an object; keys are columns. Numbers, bools, texts and lists of numbers of the same depth
//!   can be used; a key that is missing is a null. Empty lines are skipped.
//! - A line may be 16 MiB long.

use std::cell::Cell;
use std::io::{self, BufRead, BufReader, Read};
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;

use crate::arrow::array::{ArrayBuilder, new_null_array};
use crate::arrow::array::{
    ArrayRef, BooleanBuilder, Float64Builder, Int64Builder, ListBuilder, StringBuilder, make_builder,
};
use crate::arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use serde_json::Value;

use super::fetch::{Trouble, fetch};
use super::{Piece, Rows, TableFormat};
use crate::SourceError;
use crate::buffer::Pool;
use crate::opening::Step;
use crate::shards::Shards;

/// The longest line.
const MAX_LINE: u64 = 16 << 20;

/// Bytes read at once.
const READ_BYTES: usize = 1 << 20;

/// About the text that is parsed at once.
const BLOCK_BYTES: u64 = 2 << 20;

/// More columns than this are no table for training.
const MAX_COLUMNS: usize = 10_000;

/// What reading a file through once has shown.
pub(super) struct Head {
    pub schema: SchemaRef,
    format: TableFormat,
    blocks: Vec<Block>,
}

/// A run of whole lines.
#[derive(Clone, Copy)]
struct Block {
    offset: u64,
    len: u64,
    rows: u64,
    /// Number of its first line, counted from 1.
    line: u64,
}

/// An open text file.
pub(super) struct File {
    format: TableFormat,
    blocks: Vec<Block>,
    /// For each view its columns: place in the line (or key), and type.
    views: Vec<Vec<Column>>,
}

struct Column {
    place: usize,
    key: String,
    kind: DataType,
}

/// What the cells of a column have been so far.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Kind {
    /// Nothing but nulls.
    Nothing,
    Bool,
    Int,
    Float,
    Text,
    List(Box<Kind>),
    /// No type for all of them.
    Mixed,
}

impl Kind {
    fn join(self, other: Self) -> Self {
        match (self, other) {
            (Self::Nothing, kind) | (kind, Self::Nothing) => kind,
            (Self::Int, Self::Float) | (Self::Float, Self::Int) => Self::Float,
            (Self::List(a), Self::List(b)) => Self::List(Box::new(a.join(*b))),
            (a, b) if a == b => a,
            _ => Self::Mixed,
        }
    }

    fn of_json(value: &Value, depth: usize) -> Self {
        match value {
            Value::Null => Self::Nothing,
            Value::Bool(_) => Self::Bool,
            Value::Number(number) if number.is_i64() => Self::Int,
            Value::Number(_) => Self::Float,
            Value::String(_) => Self::Text,
            Value::Array(values) if depth < 8 => Self::List(Box::new(
                values.iter().map(|value| Self::of_json(value, depth + 1)).fold(Self::Nothing, Self::join),
            )),
            Value::Array(_) | Value::Object(_) => Self::Mixed,
        }
    }

    fn of_cell(cell: &[u8]) -> Self {
        let text = match std::str::from_utf8(cell) {
            Ok(text) => text.trim(),
            Err(_) => return Self::Text,
        };
        if text.is_empty() {
            Self::Nothing
        } else if text.parse::<i64>().is_ok() {
            Self::Int
        } else if text.parse::<f64>().is_ok() {
            Self::Float
        } else {
            Self::Text
        }
    }

    /// The type of a column; an empty struct where no type holds all cells, which nothing can be made of.
    fn arrow(&self) -> DataType {
        match self {
            Self::Nothing => DataType::Null,
            Self::Bool => DataType::Boolean,
            Self::Int => DataType::Int64,
            Self::Float => DataType::Float64,
            Self::Text => DataType::Utf8,
            Self::List(inner) => DataType::List(Arc::new(Field::new_list_field(
                match **inner {
                    // Lists that are all empty.
                    Self::Nothing => DataType::Int64,
                    ref inner => inner.arrow(),
                },
                true,
            ))),
            Self::Mixed => DataType::Struct(Default::default()),
        }
    }
}

/// A shard as a stream that stops when a line does not end.
struct Stream<'shards> {
    shards: &'shards Shards,
    shard: usize,
    at: u64,
    size: u64,
    /// Reading beyond this place means that a line is too long.
    allowed: Rc<Cell<u64>>,
    step: &'shards Step,
}

impl Read for Stream<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.at >= self.allowed.get() {
            return Err(io::Error::other(format!("a line is longer than {} MiB", MAX_LINE >> 20)));
        }
        let len = (buffer.len() as u64).min(self.size - self.at) as usize;
        if len > 0 {
            self.shards.read_at(self.shard, self.at, &mut buffer[..len])?;
            self.at += len as u64;
            self.step.add(len as u64);
        }
        Ok(len)
    }
}

impl Head {
    /// Whether there is no row.
    pub(super) fn is_empty(&self) -> bool {
        self.blocks.is_empty()
    }

    pub(super) fn read(
        shards: &Shards,
        shard: usize,
        format: TableFormat,
        step: &Step,
    ) -> Result<Self, SourceError> {
        let allowed = Rc::new(Cell::new(MAX_LINE));
        let stream =
            Stream { shards, shard, at: 0, size: shards.files()[shard].size, allowed: allowed.clone(), step };
        let name = shards.display(shard);
        let head = match format {
            TableFormat::Jsonl => Self::jsonl(stream, &allowed, &name)?,
            format => Self::csv(stream, &allowed, &name, format)?,
        };
        match shards.unchanged(shard) {
            Ok(true) => Ok(head),
            Ok(false) => Err(SourceError::data(format!("{name} changed while it was opened; try again"))),
            Err(error) => Err(SourceError::data(error.to_string())),
        }
    }

    fn csv(
        stream: Stream,
        allowed: &Cell<u64>,
        name: &str,
        format: TableFormat,
    ) -> Result<Self, SourceError> {
        let size = stream.size;
        let mut reader = csv_reader(format).buffer_capacity(READ_BYTES).from_reader(stream);
        let mut record = csv::ByteRecord::new();
        let mut blocks = Blocks::default();
        let (mut names, mut kinds): (Vec<String>, Vec<Kind>) = (Vec::new(), Vec::new());
        loop {
            let (offset, line) = (reader.position().byte(), reader.position().line());
            allowed.set(offset + MAX_LINE + READ_BYTES as u64);
            let more = reader
                .read_byte_record(&mut record)
                .map_err(|error| SourceError::data(format!("{name}:{line}: {}", csv_error(&error))))?;
            if !more {
                break;
            }
            if names.is_empty() {
                if record.len() > MAX_COLUMNS {
                    return Err(SourceError::data(format!("{name} has more than {MAX_COLUMNS} columns")));
                }
                let headless = record.len() <= 2
                    && record.get(0).is_some_and(|cell| {
                        let cell = String::from_utf8_lossy(cell).to_ascii_lowercase();
                        [".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"]
                            .iter()
                            .any(|end| cell.ends_with(end))
                    });
                kinds = vec![Kind::Nothing; record.len()];
                if headless {
                    names = ["path", "label"][..record.len()].iter().map(|&name| name.to_owned()).collect();
                } else {
                    let cells = record.iter().enumerate().map(|(at, cell)| {
                        // Excel's mark at the begin of a file is no part of a name.
                        let cell = if at == 0 {
                            cell.strip_prefix("\u{feff}".as_bytes()).unwrap_or(cell)
                        } else {
                            cell
                        };
                        String::from_utf8_lossy(cell).trim().to_owned()
                    });
                    names = cells.collect();
                    continue;
                }
            }
            for (kind, cell) in kinds.iter_mut().zip(&record) {
                if *kind != Kind::Text {
                    let found = Kind::of_cell(cell);
                    // Cells are texts first: numbers among texts are texts.
                    *kind = match std::mem::replace(kind, Kind::Nothing).join(found) {
                        Kind::Mixed => Kind::Text,
                        kind => kind,
                    };
                }
            }
            blocks.row(offset, line, reader.position().byte());
        }
        let fields: Vec<Field> =
            names.into_iter().zip(&kinds).map(|(name, kind)| Field::new(name, kind.arrow(), true)).collect();
        Ok(Self { schema: Arc::new(Schema::new(fields)), format, blocks: blocks.finish(size) })
    }

    fn jsonl(stream: Stream, allowed: &Cell<u64>, name: &str) -> Result<Self, SourceError> {
        let size = stream.size;
        let mut reader = BufReader::with_capacity(READ_BYTES, stream);
        let mut blocks = Blocks::default();
        let mut columns: Vec<(String, Kind)> = Vec::new();
        let mut places = std::collections::HashMap::new();
        let (mut line, mut offset, mut number) = (Vec::new(), 0u64, 0u64);
        loop {
            line.clear();
            number += 1;
            allowed.set(offset + MAX_LINE + READ_BYTES as u64);
            let len = reader
                .read_until(b'\n', &mut line)
                .map_err(|error| SourceError::data(format!("{name}:{number}: {error}")))?;
            if len == 0 {
                break;
            }
            let begin = offset;
            offset += len as u64;
            if line.trim_ascii().is_empty() {
                continue;
            }
            let refuse = |why: &dyn std::fmt::Display| SourceError::data(format!("{name}:{number}: {why}"));
            let value: Value = serde_json::from_slice(&line).map_err(|error| refuse(&error))?;
            let Value::Object(object) = value else { return Err(refuse(&"each line must be a JSON object")) };
            for (key, value) in object {
                let place = *places.entry(key).or_insert_with_key(|key: &String| {
                    columns.push((key.clone(), Kind::Nothing));
                    columns.len() - 1
                });
                if columns.len() > MAX_COLUMNS {
                    return Err(refuse(&format!("there are more than {MAX_COLUMNS} different keys")));
                }
                let kind = std::mem::replace(&mut columns[place].1, Kind::Nothing);
                columns[place].1 = kind.join(Kind::of_json(&value, 0));
            }
            blocks.row(begin, number, offset);
        }
        let fields: Vec<Field> =
            columns.iter().map(|(name, kind)| Field::new(name, kind.arrow(), true)).collect();
        Ok(Self {
            schema: Arc::new(Schema::new(fields)),
            format: TableFormat::Jsonl,
            blocks: blocks.finish(size),
        })
    }
}

fn csv_reader(format: TableFormat) -> csv::ReaderBuilder {
    let mut builder = csv::ReaderBuilder::new();
    builder.has_headers(false).delimiter(if format == TableFormat::Tsv { b'\t' } else { b',' });
    builder
}

/// The library's words without its own place, which counts within a block.
fn csv_error(error: &csv::Error) -> String {
    match error.kind() {
        csv::ErrorKind::UnequalLengths { expected_len, len, .. } => {
            format!("this line has {len} cells where the first has {expected_len}")
        }
        csv::ErrorKind::Io(error) => error.to_string(),
        _ => error.to_string(),
    }
}

/// Collects blocks row by row.
#[derive(Default)]
struct Blocks(Vec<Block>);

impl Blocks {
    fn row(&mut self, offset: u64, line: u64, end: u64) {
        match self.0.last_mut() {
            Some(block) if end - block.offset <= BLOCK_BYTES => {
                block.rows += 1;
                block.len = end - block.offset;
            }
            _ => self.0.push(Block { offset, len: end - offset, rows: 1, line }),
        }
    }

    fn finish(mut self, size: u64) -> Vec<Block> {
        self.0.shrink_to_fit();
        debug_assert!(self.0.iter().all(|block| block.offset + block.len <= size));
        self.0
    }
}

/// The columns of all files: where some hold integers and others numbers, numbers.
pub(super) fn unify(heads: &[Head]) -> SchemaRef {
    let mut fields: Vec<Field> =
        heads[0].schema.fields().iter().map(|field| field.as_ref().clone()).collect();
    for field in &mut fields {
        for head in &heads[1..] {
            if let Ok(other) = head.schema.field_with_name(field.name()) {
                field.set_data_type(promote(field.data_type(), other.data_type()));
            }
        }
    }
    Arc::new(Schema::new(fields))
}

/// A file's schema with its types widened to those of all files.
pub(super) fn promoted(head: &Head, all: &Schema) -> Schema {
    let widen = |field: &Arc<Field>| {
        let mut field = field.as_ref().clone();
        if let Ok(other) = all.field_with_name(field.name()) {
            field.set_data_type(promote(field.data_type(), other.data_type()));
        }
        field
    };
    Schema::new(head.schema.fields().iter().map(widen).collect::<Vec<_>>())
}

fn promote(a: &DataType, b: &DataType) -> DataType {
    match (a, b) {
        (DataType::Null, kind) | (kind, DataType::Null) => kind.clone(),
        (DataType::Int64, DataType::Float64) | (DataType::Float64, DataType::Int64) => DataType::Float64,
        (DataType::List(a), DataType::List(b)) => {
            DataType::List(Arc::new(Field::new_list_field(promote(a.data_type(), b.data_type()), true)))
        }
        _ => a.clone(),
    }
}

impl File {
    pub(super) fn new(head: Head, all: &Schema, views: &[Vec<String>]) -> Self {
        let column = |name: &String| Column {
            place: head.schema.index_of(name).expect("columns are checked"),
            key: name.clone(),
            kind: all.field_with_name(name).expect("columns are checked").data_type().clone(),
        };
        let views = views.iter().map(|view| view.iter().map(column).collect()).collect();
        Self { format: head.format, blocks: head.blocks, views }
    }

    pub(super) fn parts(&self) -> usize {
        self.blocks.len()
    }

    pub(super) fn part(&self, _: usize, part: usize) -> Rows {
        let block = &self.blocks[part];
        // Numbers take up to eight bytes; most are written with fewer characters than that, and a separator.
        Rows { rows: block.rows, bytes: block.len * 4, divisible: false }
    }

    pub(super) fn memory(&self) -> u64 {
        (self.blocks.capacity() * size_of::<Block>()) as u64
    }

    /// Decodes a block. (Parts are not divisible, so the rows are all of it.)
    pub(super) fn decode(
        &self,
        shards: &Shards,
        shard: usize,
        view: usize,
        part: usize,
        rows: Range<u64>,
        pool: &Arc<Pool>,
    ) -> Result<Vec<Piece>, Trouble> {
        let block = self.blocks[part];
        let range = block.offset..block.offset + block.len;
        let bytes = fetch(shards, shard, vec![range.clone()], pool)?.get(range);
        let columns = &self.views[view];
        let parsed = match self.format {
            TableFormat::Jsonl => jsonl_rows(&bytes, columns),
            format => csv_rows(&bytes, columns, format),
        };
        let parsed = parsed.and_then(|columns| {
            let fits = columns.iter().all(|column| column.len() as u64 == block.rows);
            if fits { Ok(columns) } else { Err("the block has another number of lines than at open".into()) }
        });
        let shown = |why: String| format!("in the lines from {} on {why}", block.line);
        Ok(vec![match parsed {
            Ok(columns) => Piece { rows, columns: Ok(columns) },
            Err(why) => Piece::bad(rows, shown(why)),
        }])
    }
}

fn csv_rows(bytes: &[u8], columns: &[Column], format: TableFormat) -> Result<Vec<ArrayRef>, String> {
    let mut builders: Vec<_> = columns.iter().map(|column| make_builder(&column.kind, 1024)).collect();
    let mut rows = 0;
    let mut record = csv::ByteRecord::new();
    let mut reader = csv_reader(format).from_reader(bytes);
    while reader.read_byte_record(&mut record).map_err(|error| csv_error(&error))? {
        rows += 1;
        for (builder, column) in builders.iter_mut().zip(columns) {
            let cell = record.get(column.place).ok_or("a line has too few cells")?;
            let text =
                || std::str::from_utf8(cell).map_err(|_| format!("a cell of {:?} is not UTF-8", column.key));
            let number = || format!("a cell of {:?} is no number", column.key);
            let empty = cell.trim_ascii().is_empty();
            match &column.kind {
                DataType::Int64 => {
                    let value =
                        if empty { None } else { Some(text()?.trim().parse().map_err(|_| number())?) };
                    builder_of::<Int64Builder>(builder)?.append_option(value);
                }
                DataType::Float64 => {
                    let value =
                        if empty { None } else { Some(text()?.trim().parse().map_err(|_| number())?) };
                    builder_of::<Float64Builder>(builder)?.append_option(value);
                }
                DataType::Utf8 => builder_of::<StringBuilder>(builder)?.append_option(if empty {
                    None
                } else {
                    Some(text()?)
                }),
                _ => {}
            }
        }
    }
    finish(builders, columns, rows)
}

fn jsonl_rows(bytes: &[u8], columns: &[Column]) -> Result<Vec<ArrayRef>, String> {
    let mut builders: Vec<_> = columns.iter().map(|column| make_builder(&column.kind, 1024)).collect();
    let mut rows = 0;
    for line in bytes.split(|&byte| byte == b'\n').filter(|line| !line.trim_ascii().is_empty()) {
        rows += 1;
        let object: serde_json::Map<String, Value> =
            serde_json::from_slice(line).map_err(|error| error.to_string())?;
        for (builder, column) in builders.iter_mut().zip(columns) {
            let value = object.get(&column.key).unwrap_or(&Value::Null);
            append(builder.as_mut(), &column.kind, value).map_err(|why| format!("{:?} {why}", column.key))?;
        }
    }
    finish(builders, columns, rows)
}

fn finish(
    mut builders: Vec<Box<dyn ArrayBuilder>>,
    columns: &[Column],
    rows: usize,
) -> Result<Vec<ArrayRef>, String> {
    let array = |(builder, column): (&mut Box<dyn ArrayBuilder>, &Column)| match column.kind {
        DataType::Null => new_null_array(&DataType::Null, rows),
        _ => builder.finish(),
    };
    Ok(builders.iter_mut().zip(columns).map(array).collect())
}

fn builder_of<B: ArrayBuilder>(builder: &mut dyn ArrayBuilder) -> Result<&mut B, String> {
    builder.as_any_mut().downcast_mut().ok_or_else(|| "is of an unexpected type".into())
}

fn append(builder: &mut dyn ArrayBuilder, kind: &DataType, value: &Value) -> Result<(), String> {
    let wrong = || format!("is {}, which is not of type {kind}", shortened(value));
    let is_null = value.is_null();
    macro_rules! scalar {
        ($builder:ty, $get:expr) => {{
            let value = if is_null { None } else { Some($get.ok_or_else(wrong)?) };
            builder_of::<$builder>(builder)?.append_option(value);
        }};
    }
    match kind {
        DataType::Boolean => scalar!(BooleanBuilder, value.as_bool()),
        DataType::Int64 => scalar!(Int64Builder, value.as_i64()),
        DataType::Float64 => scalar!(Float64Builder, value.as_f64()),
        DataType::Utf8 => scalar!(StringBuilder, value.as_str()),
        DataType::List(inner) => {
            let list = builder_of::<ListBuilder<Box<dyn ArrayBuilder>>>(builder)?;
            if is_null {
                list.append(false);
                return Ok(());
            }
            for value in value.as_array().ok_or_else(wrong)? {
                append(list.values().as_mut(), inner.data_type(), value)?;
            }
            list.append(true);
        }
        _ => {}
    }
    Ok(())
}

fn shortened(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(40) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text,
    }
}
