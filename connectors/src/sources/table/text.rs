//! CSV, TSV and JSON: read once at open to learn columns, types and where rows are; rows are parsed when they are
//! wanted.
//!
//! - How a CSV file is written is recognised ([`super::dialect`]). Its first record names the columns, unless it has at
//!   most two cells and one ends like an image file: then the columns are `path` and `label`.
//! - A column holds integers if all its cells do, else numbers, else texts. An empty cell of a column of numbers is a
//!   null, and so is one that says so (NA, null, None and their like), one that is missing at the end of a line, or a
//!   text that is not UTF-8. A line with too many cells is all nulls.
//! - JSON is an object on each line, or an array of objects; keys are columns. Numbers, bools, texts and lists of
//!   numbers of the same depth can be used; a key that is missing is a null. Empty lines are skipped, a line that is no
//!   object is all nulls.
//! - A column that was asked for as a field has the type that most of its values have, if those are numbers; the others
//!   are nulls, which is said ([`super::kinds`]).
//! - A record may be 16 MiB long.

use std::cell::Cell;
use std::collections::HashMap;
use std::io::{self, BufRead, BufReader, Read};
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;

use crate::arrow::array::{ArrayBuilder, new_null_array};
use crate::arrow::array::{
    ArrayRef, BinaryBuilder, BooleanBuilder, Float64Builder, Int64Builder, ListBuilder, StringBuilder,
    make_builder,
};
use crate::arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use serde_json::Value;
use serde_json::value::RawValue;

use super::dialect::{BEGINNING, Dialect, text_begins};
use super::fetch::{Trouble, fetch};
use super::kinds::{Kind, Tally, fits};
use super::{Piece, RECORD, Rows, TableFormat, columns};
use crate::bytes::buffer::Pool;
use crate::bytes::shards::Shards;
use crate::labels::is_gap;
use crate::names::is_image;
use crate::opening::Step;
use crate::values::json::members;
use crate::{SourceError, json};

/// The longest line.
const MAX_LINE: u64 = 16 << 20;

/// Bytes read at once.
const READ_BYTES: usize = 1 << 20;

/// About the text that is parsed at once.
const BLOCK_BYTES: u64 = 2 << 20;

/// More columns than this are no table for training.
const MAX_COLUMNS: usize = 10_000;

/// Marks a column whose texts all end like image files.
pub(super) const OF_IMAGES: &str = "fuelrail.images";

/// Marks a column of numbers some of whose values are none.
const WITH_OTHERS: &str = "fuelrail.others";

/// Marks a column whose values no type holds: where that is first seen.
const MIXED: &str = "fuelrail.mixed";

/// What the configuration asks for.
pub(super) struct Asked<'config> {
    /// Whether it names a column.
    pub is_named: &'config dyn Fn(&str) -> bool,
    /// Whether a column is a field and nothing else.
    pub is_field: &'config dyn Fn(&str) -> bool,
}

/// What reading a file through once has shown.
pub(super) struct Head {
    pub schema: SchemaRef,
    form: Form,
    blocks: Vec<Block>,
}

/// How records are written.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Form {
    /// Cells, as many as there are columns.
    Cells { delimiter: u8, width: usize },
    /// An object on each line.
    Lines,
    /// Objects in an array.
    Array,
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
    form: Form,
    blocks: Vec<Block>,
    /// For each view its columns: place in the line (or key), and type.
    views: Vec<Vec<Column>>,
}

struct Column {
    /// None in a file of objects none of which has the key.
    place: Option<usize>,
    key: String,
    kind: DataType,
    take: Take,
}

/// What is taken of a row.
#[derive(Clone, Copy, PartialEq)]
enum Take {
    /// A value of the column's type.
    Typed,
    /// The same; one of another kind is a null.
    Lenient,
    /// The value as it is written.
    Raw,
    /// Why no raw value of the row can be used; mostly nothing.
    Fault,
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

    /// Reads a file. `delimiter` is the one that was named.
    pub(super) fn read(
        shards: &Shards,
        shard: usize,
        format: TableFormat,
        delimiter: Option<u8>,
        asked: &Asked<'_>,
        step: &Step,
    ) -> Result<Self, SourceError> {
        let name = shards.display(shard);
        let refuse = |why: String| SourceError::data(format!("{name}: {why}"));
        let size = shards.files()[shard].size;
        let mut beginning = vec![0; size.min(BEGINNING as u64) as usize];
        if !beginning.is_empty() {
            shards.read_at(shard, 0, &mut beginning).map_err(|error| SourceError::data(error.to_string()))?;
        }
        let allowed = Rc::new(Cell::new(MAX_LINE));
        let stream =
            |at: usize| Stream { shards, shard, at: at as u64, size, allowed: allowed.clone(), step };
        let whole = beginning.len() as u64 == size;
        let head = match format {
            TableFormat::Jsonl => {
                let skip = text_begins(&beginning).map_err(refuse)?;
                match json_form(&beginning[skip..], whole).map_err(refuse)? {
                    Form::Array => Self::array(stream(skip), &allowed, &name, asked)?,
                    _ => Self::jsonl(stream(skip), &allowed, &name, asked)?,
                }
            }
            format => {
                let tabs = format == TableFormat::Tsv;
                let usual = |cell: &str| columns::is_usual(cell) || (asked.is_named)(cell);
                let dialect = Dialect::recognise(&beginning, whole, delimiter, tabs, &usual);
                Self::csv(stream, &allowed, &name, dialect.map_err(refuse)?, asked)?
            }
        };
        match shards.unchanged(shard) {
            Ok(true) => Ok(head),
            Ok(false) => Err(SourceError::data(format!("{name} changed while it was opened; try again"))),
            Err(error) => Err(SourceError::data(error.to_string())),
        }
    }

    fn csv<'shards>(
        stream: impl Fn(usize) -> Stream<'shards>,
        allowed: &Cell<u64>,
        name: &str,
        dialect: Dialect,
        asked: &Asked<'_>,
    ) -> Result<Self, SourceError> {
        let from = stream(dialect.skip);
        let size = from.size;
        let mut reader = csv_reader(dialect.delimiter).buffer_capacity(READ_BYTES).from_reader(from);
        let mut record = csv::ByteRecord::new();
        let mut blocks = Blocks::default();
        let mut columns: Option<Columns> = None;
        let mut odd = Odd::default();
        // In a column that nobody asks for it does no harm.
        let mut foreign = Odd::default();
        let mut last = (0, 0, 0);
        loop {
            let offset = dialect.skip as u64 + reader.position().byte();
            let line = dialect.lines + reader.position().line();
            allowed.set(offset + MAX_LINE + READ_BYTES as u64);
            let more = reader
                .read_byte_record(&mut record)
                .map_err(|error| SourceError::data(format!("{name}:{line}: {}", csv_error(&error))))?;
            if !more {
                break;
            }
            let end = dialect.skip as u64 + reader.position().byte();
            let next = dialect.lines + reader.position().line();
            last = (line, offset, next);
            let refuse = |why: String| SourceError::data(format!("{name}:{line}: {why}"));
            let columns = match &mut columns {
                Some(columns) => columns,
                None => {
                    let (found, is_record) = Columns::of_first(&record, asked).map_err(refuse)?;
                    let columns = columns.insert(found);
                    if !is_record {
                        continue;
                    }
                    columns
                }
            };
            let cells = cells(&record, columns.names.len());
            if cells != columns.names.len() {
                let said = format!("{} cells where the first line has {}", record.len(), columns.names.len());
                if next > line + 1 {
                    return Err(refuse(format!(
                        "the record that begins here continues to line {next} in a quoted cell, and has {said}; a quote is \
                         missing, or one within a cell is not doubled"
                    )));
                }
                odd.add(line, said);
            }
            if record.iter().any(|cell| std::str::from_utf8(cell).is_err()) {
                foreign.add(
                    line,
                    "a cell is not UTF-8, which counts as empty; save the file as UTF-8 (iconv -f LATIN1 -t UTF-8 old > new)".into(),
                );
            }
            columns.take(&record, cells, line);
            blocks.row(offset, line, end);
        }
        odd.warn(name, blocks.rows())?;
        foreign.say(name, blocks.rows());
        let (line, offset, next) = last;
        if next > line + 1 && quotes(stream(offset as usize))? % 2 == 1 {
            return Err(SourceError::data(format!(
                "{name}:{line}: a quoted cell that begins here does not end before the file does; a quote is missing, or one \
                 within a cell is not doubled"
            )));
        }
        let columns = columns.unwrap_or_default();
        let form = Form::Cells { delimiter: dialect.delimiter, width: columns.names.len() };
        Ok(Self { schema: columns.schema(name, blocks.rows()), form, blocks: blocks.finish(size) })
    }

    fn jsonl(
        stream: Stream,
        allowed: &Cell<u64>,
        name: &str,
        asked: &Asked<'_>,
    ) -> Result<Self, SourceError> {
        let size = stream.size;
        let mut offset = stream.at;
        let mut reader = BufReader::with_capacity(READ_BYTES, stream);
        let mut blocks = Blocks::default();
        let mut columns = Columns::default();
        let mut odd = Odd::default();
        let (mut line, mut number) = (Vec::new(), 0u64);
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
            columns
                .object(&line, number, &mut odd, asked)
                .map_err(|why| SourceError::data(format!("{name}:{number}: {why}")))?;
            blocks.row(begin, number, offset);
        }
        odd.warn(name, blocks.rows())?;
        let schema = columns.schema(name, blocks.rows());
        Ok(Self { schema, form: Form::Lines, blocks: blocks.finish(size) })
    }

    fn array(
        stream: Stream,
        allowed: &Cell<u64>,
        name: &str,
        asked: &Asked<'_>,
    ) -> Result<Self, SourceError> {
        let size = stream.size;
        let mut blocks = Blocks::default();
        let mut columns = Columns::default();
        let mut odd = Odd::default();
        let mut elements = Elements::new(stream, allowed);
        while let Some((offset, line)) =
            elements.next().map_err(|(line, why)| SourceError::data(format!("{name}:{line}: {why}")))?
        {
            let refuse = |why: String| SourceError::data(format!("{name}:{line}: {why}"));
            columns.object(&elements.text, line, &mut odd, asked).map_err(refuse)?;
            blocks.row(offset, line, elements.offset);
        }
        odd.warn(name, blocks.rows())?;
        let schema = columns.schema(name, blocks.rows());
        Ok(Self { schema, form: Form::Array, blocks: blocks.finish(size) })
    }
}

/// Cells of a record, without empty ones that are more than there are columns.
fn cells(record: &csv::ByteRecord, width: usize) -> usize {
    let extra = (width..record.len()).rev().find(|&at| !record[at].trim_ascii().is_empty());
    extra.map_or(record.len().min(width), |at| at + 1)
}

/// Quote signs up to the end.
fn quotes(stream: Stream) -> Result<usize, SourceError> {
    stream.allowed.set(u64::MAX);
    let mut reader = BufReader::with_capacity(READ_BYTES, stream);
    let mut count = 0;
    loop {
        let bytes = reader.fill_buf().map_err(|error| SourceError::data(error.to_string()))?;
        if bytes.is_empty() {
            return Ok(count);
        }
        count += bytes.iter().filter(|&&byte| byte == b'"').count();
        let len = bytes.len();
        reader.consume(len);
    }
}

/// What the columns are, as far as it has been read.
#[derive(Default)]
struct Columns {
    names: Vec<String>,
    kinds: Vec<Kind>,
    /// Of those that are fields, how often each kind comes.
    tallies: Vec<Option<Tally>>,
    /// Of those whose values no type holds, where that is first seen.
    mixed: HashMap<usize, String>,
    /// Whether all texts so far end like image files.
    of_images: Vec<bool>,
    places: HashMap<String, usize>,
}

impl Columns {
    /// The columns that the first record of a CSV file names, and whether it is a record itself.
    fn of_first(record: &csv::ByteRecord, asked: &Asked<'_>) -> Result<(Self, bool), String> {
        if record.len() > MAX_COLUMNS {
            return Err(format!("there are more than {MAX_COLUMNS} columns"));
        }
        let names: Vec<String> =
            record.iter().map(|cell| String::from_utf8_lossy(cell).trim().to_owned()).collect();
        let image = names.iter().position(|cell| is_image(cell.as_bytes()));
        let names: Vec<String> = match (image, names.len()) {
            (None, _) => names,
            (Some(0), 1) => vec!["path".into()],
            (Some(0), 2) => vec!["path".into(), "label".into()],
            (Some(1), 2) => vec!["label".into(), "path".into()],
            (Some(at), _) => {
                return Err(format!(
                    "the first line should name the columns, and {:?} looks like an image; put a line like \
                     \"path,label,…\" before it",
                    names[at]
                ));
            }
        };
        let columns = Self {
            kinds: vec![Kind::Nothing; names.len()],
            of_images: vec![true; names.len()],
            tallies: names.iter().map(|name| (asked.is_field)(name).then(Tally::default)).collect(),
            names,
            ..Self::default()
        };
        Ok((columns, image.is_some()))
    }

    /// Takes in the cells of a record; of one with too many, none.
    fn take(&mut self, record: &csv::ByteRecord, cells: usize, line: u64) {
        if cells > self.names.len() {
            return;
        }
        for (tally, cell) in self.tallies.iter_mut().zip(record) {
            if let Some(tally) = tally {
                tally.take(Kind::of_cell(cell), line);
            }
        }
        for ((kind, of_images), cell) in self.kinds.iter_mut().zip(&mut self.of_images).zip(record) {
            if *kind != Kind::Text {
                let found = Kind::of_cell(cell);
                // Cells are texts first: numbers among texts are texts.
                *kind = match std::mem::replace(kind, Kind::Nothing).join(found) {
                    Kind::Mixed => Kind::Text,
                    kind => kind,
                };
            }
            if *of_images {
                let cell = cell.trim_ascii();
                *of_images = cell.is_empty() || is_image(cell);
            }
        }
    }

    /// Takes in an object; what is none is `odd`.
    fn object(&mut self, text: &[u8], line: u64, odd: &mut Odd, asked: &Asked<'_>) -> Result<(), String> {
        let object = match json::parse(text) {
            Ok(Value::Object(object)) => object,
            Ok(_) => {
                odd.add(line, "a record must be a JSON object, like {\"path\": \"a.jpg\"}".into());
                return Ok(());
            }
            Err(why) => {
                odd.add(line, why);
                return Ok(());
            }
        };
        for (key, value) in object {
            let place = *self.places.entry(key).or_insert_with_key(|key: &String| {
                self.names.push(key.clone());
                self.tallies.push((asked.is_field)(key).then(Tally::default));
                self.kinds.push(Kind::Nothing);
                self.of_images.push(true);
                self.names.len() - 1
            });
            if self.names.len() > MAX_COLUMNS {
                return Err(format!("there are more than {MAX_COLUMNS} different keys"));
            }
            let found = Kind::of_json(&value, 0);
            if let Some(tally) = &mut self.tallies[place] {
                tally.take(found.clone(), line);
            }
            let before = std::mem::replace(&mut self.kinds[place], Kind::Nothing);
            let (was, name) = (before.text(), &self.names[place]);
            let was_one = before != Kind::Nothing && !before.is_mixed();
            let joined = before.join(found);
            if joined.is_mixed() && was_one {
                self.mixed.entry(place).or_insert_with(|| {
                    format!(":{line}: {name:?} is {}, and {was} before", shortened(&value))
                });
            }
            self.kinds[place] = joined;
            if let Value::String(text) = &value {
                self.of_images[place] &= is_image(text.trim().as_bytes());
            }
        }
        Ok(())
    }

    /// Settles the types; says where values are of another. `file` has so many rows.
    fn schema(self, file: &str, rows: u64) -> SchemaRef {
        let columns = self.names.into_iter().zip(self.kinds).zip(self.of_images).zip(self.tallies);
        let field = |(((name, kind), of_images), tally): (((String, Kind), bool), Option<Tally>)| {
            if let Some(most) = tally.and_then(|tally| tally.settle()) {
                let why = format!("{name:?} is not {} as in most records", most.kind.text());
                Odd { count: most.others, first: Some((most.line, why)) }.say(file, rows);
                let marks = HashMap::from([(WITH_OTHERS.to_owned(), String::new())]);
                return Field::new(name, most.kind.arrow(), true).with_metadata(marks);
            }
            let is_marked = of_images && kind == Kind::Text && !is_image(name.as_bytes());
            let mixed = self.places.get(&name).and_then(|place| self.mixed.get(place));
            let marks = mixed.map(|place| (MIXED.to_owned(), format!("{file}{place}")));
            let marks = marks.into_iter().chain(is_marked.then(|| (OF_IMAGES.to_owned(), String::new())));
            Field::new(name, kind.arrow(), true).with_metadata(marks.collect::<HashMap<_, _>>())
        };
        Arc::new(Schema::new(columns.map(field).collect::<Vec<_>>()))
    }
}

/// A refusal of columns, with the places of those it names whose values no type holds.
pub(super) fn with_places(error: SourceError, schema: &Schema) -> SourceError {
    let said = error.to_string();
    let named = |name: &str| said.contains(&format!("{name:?}")) || said.contains(&format!(" {name} ("));
    let places = schema.fields().iter().filter(|field| named(field.name()));
    let places: Vec<&str> = places.filter_map(|field| Some(field.metadata().get(MIXED)?.as_str())).collect();
    if places.is_empty() { error } else { error.with(&format!(" ({})", places.join("; "))) }
}

/// Records that are not as they should be: bad ones, if not all of them are.
#[derive(Default)]
struct Odd {
    count: u64,
    first: Option<(u64, String)>,
}

impl Odd {
    fn add(&mut self, line: u64, why: String) {
        self.count += 1;
        self.first.get_or_insert((line, why));
    }

    /// Says it, or refuses a file of which most records are like that.
    fn warn(self, name: &str, rows: u64) -> Result<(), SourceError> {
        if let Some((line, why)) = self.first.as_ref().filter(|_| self.count * 2 > rows) {
            return Err(SourceError::data(format!(
                "{name}:{line}: {why}; {} of {rows} records are like that",
                self.count
            )));
        }
        self.say(name, rows);
        Ok(())
    }

    fn say(self, name: &str, rows: u64) {
        let Some((line, why)) = self.first else { return };
        tracing::warn!(
            "{name}:{line}: {why}; {} of {rows} records are like that, and missing cells count as empty",
            self.count
        );
    }
}

/// How the JSON at the beginning of a file is written.
/// Whether a file holds COCO's annotations.
pub(super) fn is_coco(shards: &Shards, shard: usize) -> Result<bool, SourceError> {
    let size = shards.files()[shard].size;
    let mut beginning = vec![0; size.min(BEGINNING as u64) as usize];
    if beginning.is_empty() {
        return Ok(false);
    }
    shards.read_at(shard, 0, &mut beginning).map_err(|error| SourceError::data(error.to_string()))?;
    let Ok(skip) = text_begins(&beginning) else { return Ok(false) };
    let text = beginning[skip..].trim_ascii_start();
    Ok(text.starts_with(b"{") && super::coco::has_its_keys(&outer_keys(text), beginning.len() as u64 == size))
}

fn json_form(beginning: &[u8], whole: bool) -> Result<Form, String> {
    let text = beginning.trim_ascii_start();
    if text.first() == Some(&b'[') {
        return Ok(Form::Array);
    }
    let advice = "a list of records is an object on each line, or an array of objects (pandas: df.to_json(path, \
                  orient=\"records\", lines=True))";
    let line = text.split(|&b| b == b'\n').next().unwrap_or_default();
    let rest = text.get(line.len()..).unwrap_or_default().trim_ascii();
    let alone = whole && rest.is_empty();
    let is_cut = !whole && line.len() == text.len();
    let is_object = matches!(json::parse(line), Ok(Value::Object(_)));
    // A line that is damaged is one record, unless the object goes on in the next one.
    if !text.starts_with(b"{") || !alone && !is_cut && (is_object || rest.starts_with(b"{")) {
        return Ok(Form::Lines);
    }
    let keys = outer_keys(text);
    let has = |key: &str| keys.iter().any(|known| known == key);
    // A line that goes on beyond what is known may be a long record.
    if is_cut || alone && is_object && !has("columns") && !has("data") {
        return Ok(Form::Lines);
    }
    let shown: Vec<String> = keys.iter().take(6).map(|key| format!("{key:?}")).collect();
    Err(format!("it is one JSON object (with {}); {advice}", shown.join(", ")))
}

/// The keys of the object that a text begins with, as far as it goes.
fn outer_keys(text: &[u8]) -> Vec<String> {
    let (mut keys, mut depth, mut at) = (Vec::new(), 0usize, 0);
    while at < text.len() {
        match text[at] {
            b'{' | b'[' => depth += 1,
            b'}' | b']' if depth <= 1 => break,
            b'}' | b']' => depth -= 1,
            b'"' => {
                let begin = at + 1;
                at = begin;
                while at < text.len() && text[at] != b'"' {
                    at += if text[at] == b'\\' { 2 } else { 1 };
                }
                let is_key = text.get(at + 1..).is_some_and(|rest| rest.trim_ascii_start().starts_with(b":"));
                if depth == 1 && is_key && keys.len() < 64 {
                    keys.push(String::from_utf8_lossy(&text[begin..at]).into_owned());
                }
            }
            _ => {}
        }
        at += 1;
    }
    keys
}

/// The elements of an array, one after the other.
struct Elements<'stream> {
    reader: BufReader<Stream<'stream>>,
    allowed: &'stream Cell<u64>,
    /// Place of the next byte.
    offset: u64,
    line: u64,
    /// The element that was just found.
    text: Vec<u8>,
    state: Within,
}

#[derive(Clone, Copy, PartialEq)]
enum Within {
    /// Before the bracket.
    Nothing,
    /// Behind the bracket or a comma.
    Array,
    /// Behind an element.
    Behind,
    /// Behind the closing bracket.
    End,
}

impl<'stream> Elements<'stream> {
    fn new(stream: Stream<'stream>, allowed: &'stream Cell<u64>) -> Self {
        let offset = stream.at;
        let reader = BufReader::with_capacity(READ_BYTES, stream);
        Self { reader, allowed, offset, line: 1, text: Vec::new(), state: Within::Nothing }
    }

    /// Reads the next one into `text`. Returns where it begins, and its line.
    fn next(&mut self) -> Result<Option<(u64, u64)>, (u64, String)> {
        loop {
            let Some(byte) = self.peek()? else {
                let line = self.line;
                return match self.state {
                    Within::End => Ok(None),
                    _ => Err((line, "the array is cut off here; fetch or write the file again".into())),
                };
            };
            self.state = match (self.state, byte) {
                (_, b' ' | b'\t' | b'\r' | b'\n') => {
                    self.eat(byte);
                    continue;
                }
                (Within::Nothing, b'[') | (Within::Behind, b',') => Within::Array,
                (Within::Array | Within::Behind, b']') => Within::End,
                (Within::Array, _) => {
                    let begin = (self.offset, self.line);
                    self.element()?;
                    self.state = Within::Behind;
                    return Ok(Some(begin));
                }
                (Within::End, _) => return Err((self.line, "something follows the array".into())),
                _ => return Err((self.line, "a comma is missing between two records".into())),
            };
            self.eat(byte);
        }
    }

    /// One element, up to the comma or bracket behind it.
    fn element(&mut self) -> Result<(), (u64, String)> {
        self.text.clear();
        self.allowed.set(self.offset + MAX_LINE + READ_BYTES as u64);
        let (mut depth, mut in_text) = (0u32, false);
        while let Some(byte) = self.peek()? {
            if in_text {
                if byte == b'\\' {
                    self.take(byte);
                    if let Some(escaped) = self.peek()? {
                        self.take(escaped);
                    }
                    continue;
                }
                in_text = byte != b'"';
            } else {
                match byte {
                    b'"' => in_text = true,
                    b'{' | b'[' => depth += 1,
                    b',' | b'}' | b']' if depth == 0 => return Ok(()),
                    b'}' | b']' => {
                        depth -= 1;
                        if depth == 0 {
                            self.take(byte);
                            return Ok(());
                        }
                    }
                    _ => {}
                }
            }
            self.take(byte);
        }
        Err((self.line, "the array is cut off here; fetch or write the file again".into()))
    }

    fn peek(&mut self) -> Result<Option<u8>, (u64, String)> {
        let bytes = self.reader.fill_buf().map_err(|error| (self.line, error.to_string()))?;
        Ok(bytes.first().copied())
    }

    fn eat(&mut self, byte: u8) {
        self.reader.consume(1);
        self.offset += 1;
        self.line += u64::from(byte == b'\n');
    }

    fn take(&mut self, byte: u8) {
        self.text.push(byte);
        self.eat(byte);
    }
}

fn csv_reader(delimiter: u8) -> csv::ReaderBuilder {
    let mut builder = csv::ReaderBuilder::new();
    builder.has_headers(false).flexible(true).delimiter(delimiter);
    builder
}

/// The library's words without its own place, which counts within a block.
fn csv_error(error: &csv::Error) -> String {
    match error.kind() {
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

    fn rows(&self) -> u64 {
        self.0.iter().map(|block| block.rows).sum()
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
    /// Views of typed columns; that of records has, behind them, the `raw` ones and what is wrong with their rows.
    pub(super) fn new(head: Head, all: &Schema, views: &[Vec<String>], raw: &[String]) -> Self {
        let own = |name: &String| head.schema.field_with_name(name).expect("columns are checked");
        let is_lenient = |name: &String| own(name).metadata().contains_key(WITH_OTHERS);
        let column = |name: &String| Column {
            place: head.schema.index_of(name).ok(),
            key: name.clone(),
            kind: all.field_with_name(name).expect("columns are checked").data_type().clone(),
            take: if is_lenient(name) { Take::Lenient } else { Take::Typed },
        };
        let mut views: Vec<Vec<Column>> =
            views.iter().map(|view| view.iter().map(column).collect()).collect();
        if !raw.is_empty() {
            let as_written = |name: &String| {
                let place = head.schema.index_of(name).ok();
                Column { place, key: name.clone(), kind: DataType::Binary, take: Take::Raw }
            };
            views[RECORD].extend(raw.iter().map(as_written));
            let key = String::new();
            views[RECORD].push(Column { place: None, key, kind: DataType::Utf8, take: Take::Fault });
        }
        Self { form: head.form, blocks: head.blocks, views }
    }

    /// How its records are written, where its ending does not say so.
    pub(super) fn recognised(&self, format: TableFormat) -> Option<String> {
        match (self.form, format) {
            (Form::Cells { delimiter: b',', .. }, TableFormat::Csv)
            | (Form::Cells { delimiter: b'\t', .. }, TableFormat::Tsv)
            | (Form::Lines, _) => None,
            (Form::Cells { delimiter, .. }, _) => Some(format!("delimiter {:?}", char::from(delimiter))),
            (Form::Array, _) => Some("one JSON array".into()),
        }
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
        let parsed = match self.form {
            Form::Lines => {
                let lines = bytes.split(|&byte| byte == b'\n').filter(|line| !line.trim_ascii().is_empty());
                json_rows(lines.map(|line| (json::parse(line).unwrap_or_default(), line)), columns)
            }
            Form::Array => json_array(&[b"[", &bytes[..], b"]"].concat(), columns),
            Form::Cells { delimiter, width } => csv_rows(&bytes, columns, delimiter, width),
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

fn csv_rows(bytes: &[u8], columns: &[Column], delimiter: u8, width: usize) -> Result<Vec<ArrayRef>, String> {
    let mut builders: Vec<_> = columns.iter().map(|column| make_builder(&column.kind, 1024)).collect();
    let mut rows = 0;
    let mut record = csv::ByteRecord::new();
    let mut reader = csv_reader(delimiter).from_reader(bytes);
    while reader.read_byte_record(&mut record).map_err(|error| csv_error(&error))? {
        rows += 1;
        let found = cells(&record, width);
        let is_long = found > width;
        for (builder, column) in builders.iter_mut().zip(columns) {
            let cell = column.place.and_then(|place| record.get(place)).filter(|_| !is_long);
            match column.take {
                Take::Raw => {
                    builder_of::<BinaryBuilder>(builder)?.append_option(cell);
                    continue;
                }
                Take::Fault => {
                    let why =
                        is_long.then(|| format!("its line has {found} cells where the first has {width}"));
                    builder_of::<StringBuilder>(builder)?.append_option(why);
                    continue;
                }
                Take::Typed | Take::Lenient => {}
            }
            let cell = cell.filter(|cell| !cell.trim_ascii().is_empty());
            let text = cell.and_then(|cell| std::str::from_utf8(cell).ok());
            match &column.kind {
                DataType::Int64 => {
                    let value = text.map(|text| number_or_gap(text, column)).transpose()?.flatten();
                    builder_of::<Int64Builder>(builder)?.append_option(value);
                }
                DataType::Float64 => {
                    let value = text.map(|text| number_or_gap(text, column)).transpose()?.flatten();
                    builder_of::<Float64Builder>(builder)?.append_option(value);
                }
                DataType::Utf8 => builder_of::<StringBuilder>(builder)?.append_option(text),
                _ => {}
            }
        }
    }
    finish(builders, columns, rows)
}

/// A cell of a column of numbers; `None` for a gap.
fn number_or_gap<T: std::str::FromStr>(cell: &str, column: &Column) -> Result<Option<T>, String> {
    match cell.trim().parse() {
        Ok(number) => Ok(Some(number)),
        Err(_) if column.take == Take::Lenient || is_gap(cell) => Ok(None),
        Err(_) => Err(format!("a cell of {:?} is not a number", column.key)),
    }
}

/// Rows of the values of an array.
fn json_array(text: &[u8], columns: &[Column]) -> Result<Vec<ArrayRef>, String> {
    let Ok(Value::Array(values)) = json::parse(text) else {
        return Err("the block is not part of an array".into());
    };
    if !has_raw(columns) {
        return json_rows(values.into_iter().map(|value| (value, &[][..])), columns);
    }
    let plain = json::plain(text);
    let texts: Vec<&RawValue> = serde_json::from_slice(&plain).unwrap_or_default();
    let texts = texts.into_iter().map(|text| text.get().as_bytes());
    json_rows(values.into_iter().zip(texts), columns)
}

fn has_raw(columns: &[Column]) -> bool {
    columns.iter().any(|column| column.take == Take::Raw)
}

/// Rows of values, each an object or else a row of nulls; and the texts that they are written in.
fn json_rows<'text>(
    values: impl Iterator<Item = (Value, &'text [u8])>,
    columns: &[Column],
) -> Result<Vec<ArrayRef>, String> {
    let mut builders: Vec<_> = columns.iter().map(|column| make_builder(&column.kind, 1024)).collect();
    let has_raw = has_raw(columns);
    let mut rows = 0;
    for (value, text) in values {
        rows += 1;
        // Nobody looks into what is no object: it may be nested without end.
        let plain = (has_raw && value.is_object()).then(|| json::plain(text));
        let text = plain.as_deref().and_then(|text| std::str::from_utf8(text).ok());
        let members = text.and_then(members);
        for (builder, column) in builders.iter_mut().zip(columns) {
            match column.take {
                Take::Raw => {
                    let raw = members.as_ref().and_then(|members| members.get(&*column.key));
                    builder_of::<BinaryBuilder>(builder)?.append_option(raw.map(|raw| raw.get()));
                    continue;
                }
                Take::Fault => {
                    let why = members.is_none().then_some("it is not a JSON object");
                    builder_of::<StringBuilder>(builder)?.append_option(why);
                    continue;
                }
                Take::Typed | Take::Lenient => {}
            }
            let value = value.get(&column.key).unwrap_or(&Value::Null);
            let is_other = column.take == Take::Lenient && !fits(&column.kind, value);
            let value = if is_other { &Value::Null } else { value };
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
