//! Arrow IPC: the file format (Feather version 2) and the stream format.
//!
//! ```text
//!  file     ARROW1 .. | message | message | … | footer: where they are | ARROW1
//!  stream   schema | message | message | … | end
//!  message  its description (lengths of columns, places of buffers) | body: buffers of all columns
//! ```
//!
//! The descriptions are read at open, the buffers of the needed columns when their rows are. Buffers that are not
//! compressed are read only as far as the rows wanted reach, so a record batch of any size can be read in runs of rows;
//! a compressed one is unpacked as a whole. Every place and size is checked before it is used, and arrays are built
//! with Arrow's full validation.

use std::collections::VecDeque;
use std::io::Read;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use crate::arrow::array::{ArrayData, ArrayRef, make_array};
use crate::arrow::buffer::Buffer;
use crate::arrow::datatypes::{DataType, Field, SchemaRef};
use crate::arrow::ipc::{BodyCompressionMethod, CompressionType, Message, MessageHeader, RecordBatch};
use bytes::Bytes;

use super::fetch::{Fetched, Trouble, fetch};
use super::pages::MAX_UNIT_BYTES;
use super::{Piece, Rows, check_rows};
use crate::SourceError;
use crate::buffer::Pool;
use crate::shards::Shards;
use crate::workers::panic_text;

const MAGIC: &[u8; 6] = b"ARROW1";

/// A description longer than this describes no batch that could be read.
const MAX_DESCRIPTION: u64 = 64 << 20;

/// More record batches than this in one file are refused.
const MAX_BATCHES: usize = 1 << 24;

/// What a file holds, before it is known which columns matter.
pub(super) struct Head {
    pub schema: SchemaRef,
    /// Record batches, then dictionaries: where each message is, and for a batch how many dictionaries precede it.
    batches: Vec<(Place, usize)>,
    dictionaries: Vec<Place>,
}

/// Where a message is.
#[derive(Clone, Copy, Debug)]
struct Place {
    offset: u64,
    /// With its length prefix; 0 if not known.
    description: u64,
    /// 0 if not known.
    body: u64,
}

/// An open file.
pub(super) struct File {
    batches: Vec<Batch>,
    dictionaries: Vec<Dictionary>,
    /// The columns that any view needs.
    columns: Vec<Field>,
    /// Places in `columns`.
    views: Vec<Vec<usize>>,
}

struct Batch {
    rows: u64,
    columns: Box<[Column]>,
    codec: Option<CompressionType>,
    /// Dictionaries that come before it.
    dictionaries: usize,
}

struct Dictionary {
    id: i64,
    delta: bool,
    rows: u64,
    values: Column,
    codec: Option<CompressionType>,
}

/// The parts of one column in one batch.
#[derive(Default)]
struct Column {
    /// Length, and whether there are nulls.
    nodes: Box<[(u64, bool)]>,
    /// First byte in the file, bytes.
    buffers: Box<[(u64, u64)]>,
    variadic: Box<[u64]>,
    /// Bytes once unpacked.
    unpacked: u64,
}

impl Head {
    pub(super) fn read(shards: &Shards, shard: usize) -> Result<Self, SourceError> {
        let (name, size) = (shards.display(shard), shards.files()[shard].size);
        let read = |offset, len| read(shards, shard, offset, len);
        let head = |refuse: &dyn Fn(String) -> SourceError| -> Result<Self, SourceError> {
            let start = read(0, size.min(8))?;
            if start.len() >= 6 && &start[..6] == MAGIC {
                Self::of_file(&read, size, refuse)
            } else {
                Self::of_stream(&read, size, refuse)
            }
        };
        let refuse =
            |why: String| SourceError::data(format!("{name} is not an Arrow file that can be read: {why}"));
        match catch_unwind(AssertUnwindSafe(|| head(&refuse))) {
            Ok(result) => result,
            Err(panic) => Err(refuse(format!("it breaks the Arrow library ({})", panic_text(&*panic)))),
        }
    }

    fn of_file(
        read: &dyn Fn(u64, u64) -> Result<Vec<u8>, SourceError>,
        size: u64,
        refuse: &dyn Fn(String) -> SourceError,
    ) -> Result<Self, SourceError> {
        let tail = read(size.saturating_sub(10), size.min(10))?;
        if tail.len() < 10 || &tail[4..] != MAGIC {
            return Err(refuse("it does not end in ARROW1; it may be cut short".into()));
        }
        let len = u64::from(u32::from_le_bytes(tail[..4].try_into().expect("four bytes")));
        if len + 18 > size {
            return Err(refuse(format!("its footer claims {len} bytes of the file's {size}")));
        }
        let bytes = read(size - 10 - len, len)?;
        let footer = crate::arrow::ipc::root_as_footer(&bytes).map_err(|error| refuse(error.to_string()))?;
        let schema = footer.schema().ok_or_else(|| refuse("its footer has no schema".into()))?;
        let schema = schema_of(schema, refuse)?;
        let place = |block: &crate::arrow::ipc::Block| {
            let numbers = (
                u64::try_from(block.offset()),
                u64::try_from(block.metaDataLength()),
                u64::try_from(block.bodyLength()),
            );
            let (Ok(offset), Ok(description), Ok(body)) = numbers else {
                return Err(refuse("a record batch lies at a negative place".into()));
            };
            Ok(Place { offset, description, body })
        };
        let dictionaries: Vec<Place> =
            footer.dictionaries().into_iter().flatten().map(place).collect::<Result<_, _>>()?;
        let batches = footer.recordBatches().into_iter().flatten();
        let batches = batches
            .map(|block| Ok((place(block)?, dictionaries.len())))
            .collect::<Result<_, SourceError>>()?;
        Ok(Self { schema, batches, dictionaries })
    }

    fn of_stream(
        read: &dyn Fn(u64, u64) -> Result<Vec<u8>, SourceError>,
        size: u64,
        refuse: &dyn Fn(String) -> SourceError,
    ) -> Result<Self, SourceError> {
        let mut at = 0;
        let mut schema = None;
        let (mut batches, mut dictionaries) = (Vec::new(), Vec::new());
        while at < size {
            let Some((bytes, description)) =
                describe(read, at, size).map_err(&|why| refuse_at(why, refuse))?
            else {
                break;
            };
            let message =
                crate::arrow::ipc::root_as_message(&bytes).map_err(|error| refuse(error.to_string()))?;
            let body =
                u64::try_from(message.bodyLength()).ok().filter(|&body| body <= size - at - description);
            let body = body.ok_or_else(|| {
                refuse(format!("the message at byte {at} runs past its end; it may be cut short"))
            })?;
            let place = Place { offset: at, description, body };
            match message.header_type() {
                MessageHeader::Schema if schema.is_none() => {
                    let found =
                        message.header_as_schema().ok_or_else(|| refuse("it has no schema".into()))?;
                    schema = Some(schema_of(found, refuse)?);
                }
                MessageHeader::RecordBatch if schema.is_some() => batches.push((place, dictionaries.len())),
                MessageHeader::DictionaryBatch if schema.is_some() => dictionaries.push(place),
                other => {
                    return Err(refuse(format!(
                        "a message of the unexpected kind {other:?} is at byte {at}"
                    )));
                }
            }
            if batches.len() + dictionaries.len() > MAX_BATCHES {
                return Err(refuse("it has too many record batches".into()));
            }
            at += description + body;
        }
        let schema =
            schema.ok_or_else(|| refuse("it has neither Arrow's magic bytes nor a schema".into()))?;
        Ok(Self { schema, batches, dictionaries })
    }
}

fn refuse_at(why: Unread, refuse: &dyn Fn(String) -> SourceError) -> SourceError {
    match why {
        Unread::Source(error) => error,
        Unread::Flaw(why) => refuse(why),
    }
}

enum Unread {
    Source(SourceError),
    Flaw(String),
}

/// The description of the message at `at`, and its length with the prefix. `None` at the end of a stream.
fn describe(
    read: &dyn Fn(u64, u64) -> Result<Vec<u8>, SourceError>,
    at: u64,
    size: u64,
) -> Result<Option<(Vec<u8>, u64)>, Unread> {
    let start = read(at, (size - at).min(4096)).map_err(Unread::Source)?;
    let number = |from: usize| {
        start.get(from..from + 4).map(|bytes| i32::from_le_bytes(bytes.try_into().expect("four bytes")))
    };
    // Files from before 0.15 have no marker before the length.
    let (len, prefix) = match number(0) {
        Some(-1) => (number(4), 8u64),
        len => (len, 4),
    };
    // An end without its mark is an end all the same.
    let Some(len) = len else { return Ok(None) };
    if len == 0 {
        return Ok(None);
    }
    let len = u64::try_from(len).ok().filter(|&len| len <= MAX_DESCRIPTION && prefix + len <= size - at);
    let len =
        len.ok_or_else(|| Unread::Flaw(format!("the message at byte {at} has an impossible length")))?;
    let bytes = match start.get(prefix as usize..(prefix + len) as usize) {
        Some(bytes) => bytes.to_vec(),
        None => read(at + prefix, len).map_err(Unread::Source)?,
    };
    Ok(Some((bytes, prefix + len)))
}

fn schema_of(
    schema: crate::arrow::ipc::Schema,
    refuse: &dyn Fn(String) -> SourceError,
) -> Result<SchemaRef, SourceError> {
    if schema.endianness() != crate::arrow::ipc::Endianness::Little {
        return Err(refuse("its numbers are big-endian".into()));
    }
    let schema =
        crate::arrow::ipc::convert::try_fb_to_schema(schema).map_err(|error| refuse(error.to_string()))?;
    Ok(Arc::new(schema))
}

fn read(shards: &Shards, shard: usize, offset: u64, len: u64) -> Result<Vec<u8>, SourceError> {
    let mut bytes = Vec::new();
    let fits = usize::try_from(len).is_ok_and(|len| bytes.try_reserve_exact(len).is_ok());
    if !fits {
        return Err(SourceError::data(format!(
            "{}: there is no memory for {len} bytes of it",
            shards.display(shard)
        )));
    }
    bytes.resize(len as usize, 0);
    shards.read_at(shard, offset, &mut bytes).map_err(|error| SourceError::data(error.to_string()))?;
    Ok(bytes)
}

impl File {
    pub(super) fn new(
        head: &Head,
        views: &[Vec<String>],
        shards: &Shards,
        shard: usize,
    ) -> Result<Self, SourceError> {
        let (name, size) = (shards.display(shard), shards.files()[shard].size);
        let refuse = |why: String| SourceError::data(format!("{name}: {why}"));
        let fields = head.schema.fields();
        let needed: Vec<usize> = (0..fields.len())
            .filter(|&at| views.iter().any(|view| view.contains(fields[at].name())))
            .collect();
        let place = |name: &String| {
            needed.iter().position(|&at| fields[at].name() == name).expect("columns are checked")
        };
        let views = views.iter().map(|view| view.iter().map(place).collect()).collect();
        let read = |offset, len| read(shards, shard, offset, len);

        let build = || -> Result<Self, SourceError> {
            let mut batches = Vec::with_capacity(head.batches.len());
            let mut total = 0;
            for (number, (place, dictionaries)) in head.batches.iter().enumerate() {
                let refuse = |why: String| refuse(format!("record batch {number} {why}"));
                let batch = message(&read, *place, size, &refuse, |message, body| {
                    let batch =
                        message.header_as_record_batch().ok_or_else(|| refuse("is something else".into()))?;
                    let kinds: Vec<&DataType> = fields.iter().map(|field| field.data_type()).collect();
                    let (rows, columns, codec) = parse(batch, is_old(message), &kinds, &needed, body, &read)
                        .map_err(|why| refuse_at(why, &refuse))?;
                    Ok(Batch { rows, columns: columns.into(), codec, dictionaries: *dictionaries })
                })?;
                total += batch.rows;
                check_rows(&name, total, size)?;
                if batch.rows > 0 {
                    batches.push(batch);
                }
            }
            let columns: Vec<Field> = needed.iter().map(|&at| fields[at].as_ref().clone()).collect();
            let mut dictionaries = Vec::new();
            for place in &head.dictionaries {
                let refuse = |why: String| refuse(format!("a dictionary {why}"));
                dictionaries.push(message(&read, *place, size, &refuse, |message, body| {
                    let batch = message
                        .header_as_dictionary_batch()
                        .ok_or_else(|| refuse("is something else".into()))?;
                    let none = Dictionary {
                        id: batch.id(),
                        delta: batch.isDelta(),
                        rows: 0,
                        values: Column::default(),
                        codec: None,
                    };
                    // One that no needed column uses is of no interest, but later ones count from it.
                    let Some(kind) = columns.iter().find_map(|field| values_of(field, batch.id())) else {
                        return Ok(none);
                    };
                    let data = batch.data().ok_or_else(|| refuse("is empty".into()))?;
                    let (rows, columns, codec) = parse(data, is_old(message), &[kind], &[0], body, &read)
                        .map_err(|why| refuse_at(why, &refuse))?;
                    check_rows(&name, rows, size)?;
                    let values = columns.into_iter().next().expect("one column was asked for");
                    Ok(Dictionary { rows, values, codec, ..none })
                })?);
            }
            Ok(Self { batches, dictionaries, columns, views })
        };
        match catch_unwind(AssertUnwindSafe(build)) {
            Ok(result) => result,
            Err(panic) => Err(refuse(format!("it breaks the Arrow library ({})", panic_text(&*panic)))),
        }
    }

    pub(super) fn parts(&self) -> usize {
        self.batches.len()
    }

    pub(super) fn part(&self, view: usize, part: usize) -> Rows {
        let batch = &self.batches[part];
        let columns = &self.views[view];
        let bytes = columns.iter().map(|&at| batch.columns[at].unpacked).fold(0, u64::saturating_add);
        let divisible =
            batch.codec.is_none() && columns.iter().all(|&at| divisible(self.columns[at].data_type()));
        Rows { rows: batch.rows, bytes, divisible }
    }

    pub(super) fn memory(&self) -> u64 {
        let column = |column: &Column| {
            size_of::<Column>()
                + (2 * column.nodes.len() + 2 * column.buffers.len() + column.variadic.len()) * 8
        };
        let batches = self
            .batches
            .iter()
            .map(|batch| size_of::<Batch>() + batch.columns.iter().map(column).sum::<usize>());
        let dictionaries =
            self.dictionaries.iter().map(|entry| size_of::<Dictionary>() + column(&entry.values));
        (batches.sum::<usize>() + dictionaries.sum::<usize>()) as u64
    }

    /// Decodes rows of a part.
    pub(super) fn decode(
        &self,
        shards: &Shards,
        shard: usize,
        view: usize,
        part: usize,
        rows: Range<u64>,
        pool: &Arc<Pool>,
    ) -> Result<Vec<Piece>, Trouble> {
        let batch = &self.batches[part];
        let mut columns: Vec<ArrayRef> = Vec::with_capacity(self.views[view].len());
        let whole = rows == (0..batch.rows);
        // Of a whole batch everything is fetched at once; of a part, what its offsets turn out to say.
        let mut ranges = Vec::new();
        if whole || batch.codec.is_some() {
            let all = self.views[view].iter().flat_map(|&at| batch.columns[at].buffers.iter());
            ranges.extend(all.filter(|buffer| buffer.1 > 0).map(|&(offset, len)| offset..offset + len));
        }
        let fetched = if ranges.is_empty() { None } else { Some(fetch(shards, shard, ranges, pool)?) };
        let mut left = MAX_UNIT_BYTES;
        for &at in &self.views[view] {
            let field = &self.columns[at];
            let work = || -> Result<ArrayRef, Stop> {
                let mut values = None;
                if let DataType::Dictionary(_, kind) = field.data_type() {
                    values = Some(self.values(shards, shard, field, kind, batch.dictionaries, pool)?);
                }
                let source = Source {
                    shards,
                    shard,
                    pool,
                    fetched: fetched.as_ref(),
                    codec: batch.codec,
                    left: &mut left,
                };
                source.column(&batch.columns[at], field.data_type(), rows.clone(), values)
            };
            match catch_unwind(AssertUnwindSafe(work)) {
                Ok(Ok(array)) => columns.push(array),
                Ok(Err(Stop::Trouble(trouble))) => return Err(trouble),
                Ok(Err(Stop::Flaw(why))) => {
                    return Ok(vec![Piece::bad(rows, format!("column {:?}: {why}", field.name()))]);
                }
                Err(panic) => return Ok(vec![Piece::bad(rows, panic_text(&*panic).to_owned())]),
            }
        }
        Ok(vec![Piece { rows, columns: Ok(columns) }])
    }

    /// The values that a dictionary column points into, as they are before a batch.
    fn values(
        &self,
        shards: &Shards,
        shard: usize,
        field: &Field,
        kind: &DataType,
        before: usize,
        pool: &Arc<Pool>,
    ) -> Result<ArrayRef, Stop> {
        #[allow(deprecated, reason = "the number is how IPC ties dictionaries to columns")]
        let id = field.dict_id();
        let known = self
            .dictionaries
            .get(..before)
            .ok_or_else(|| Stop::Flaw("its dictionaries are missing".into()))?;
        let first = known.iter().rposition(|entry| Some(entry.id) == id && !entry.delta);
        // A column of nulls may come without its dictionary.
        let Some(first) = first else { return Ok(crate::arrow::array::new_empty_array(kind)) };
        let mut arrays = Vec::new();
        for entry in known[first..].iter().filter(|entry| Some(entry.id) == id) {
            let mut left = MAX_UNIT_BYTES;
            let source = Source { shards, shard, pool, fetched: None, codec: entry.codec, left: &mut left };
            arrays.push(source.column(&entry.values, kind, 0..entry.rows, None)?);
        }
        let all: Vec<&dyn crate::arrow::array::Array> = arrays.iter().map(|array| &**array).collect();
        crate::arrow::compute::concat(&all).map_err(|error| Stop::Flaw(error.to_string()))
    }
}

fn values_of(field: &Field, id: i64) -> Option<&DataType> {
    #[allow(deprecated, reason = "the number is how IPC ties dictionaries to columns")]
    match field.data_type() {
        DataType::Dictionary(_, values) if field.dict_id() == Some(id) => Some(values),
        _ => None,
    }
}

/// Whether rows out of the middle can be read on their own.
fn divisible(kind: &DataType) -> bool {
    match kind {
        DataType::BinaryView | DataType::Utf8View => false,
        DataType::List(field) | DataType::LargeList(field) | DataType::FixedSizeList(field, _) => {
            divisible(field.data_type())
        }
        DataType::Struct(fields) => fields.iter().all(|field| divisible(field.data_type())),
        _ => true,
    }
}

/// Reads a message's description and hands it over with the place of its body.
fn message<T>(
    read: &dyn Fn(u64, u64) -> Result<Vec<u8>, SourceError>,
    place: Place,
    size: u64,
    refuse: &dyn Fn(String) -> SourceError,
    then: impl FnOnce(&Message, Range<u64>) -> Result<T, SourceError>,
) -> Result<T, SourceError> {
    let end = place.offset.checked_add(place.description).and_then(|end| end.checked_add(place.body));
    if place.description < 8 || place.description > MAX_DESCRIPTION || end.is_none_or(|end| end > size) {
        return Err(refuse("lies outside the file; it may be cut short".into()));
    }
    let described = describe(read, place.offset, size).map_err(|why| refuse_at(why, refuse))?;
    let (bytes, _) = described.ok_or_else(|| refuse("is empty".into()))?;
    let message = crate::arrow::ipc::root_as_message(&bytes).map_err(|error| refuse(error.to_string()))?;
    let body = place.offset + place.description;
    then(&message, body..body + place.body)
}

fn is_old(message: &Message) -> bool {
    message.version() < crate::arrow::ipc::MetadataVersion::V5
}

/// The needed columns of a batch, with every place checked.
fn parse(
    batch: RecordBatch,
    old: bool,
    kinds: &[&DataType],
    needed: &[usize],
    body: Range<u64>,
    read: &dyn Fn(u64, u64) -> Result<Vec<u8>, SourceError>,
) -> Result<(u64, Vec<Column>, Option<CompressionType>), Unread> {
    let flaw = |why: &str| Unread::Flaw(why.to_owned());
    let rows = u64::try_from(batch.length()).map_err(|_| flaw("has a negative number of rows"))?;
    let codec = match batch.compression() {
        None => None,
        Some(how) if how.method() == BodyCompressionMethod::BUFFER => match how.codec() {
            codec @ (CompressionType::LZ4_FRAME | CompressionType::ZSTD) => Some(codec),
            _ => return Err(flaw("is compressed in an unknown way")),
        },
        Some(_) => return Err(flaw("is compressed in an unknown way")),
    };
    let mut nodes = batch.nodes().into_iter().flatten();
    let mut buffers = batch.buffers().into_iter().flatten();
    let mut variadic = batch.variadicBufferCounts().into_iter().flatten();
    let mut columns = Vec::with_capacity(needed.len());
    for (at, kind) in kinds.iter().enumerate() {
        let mut counts = Counts { old, ..Counts::default() };
        count(kind, &mut counts, &mut variadic, 0).map_err(|why| flaw(&why))?;
        let mut column = Column { variadic: counts.variadic.into(), ..Column::default() };
        let mut found = Vec::new();
        for _ in 0..counts.nodes {
            let node = nodes.next().ok_or_else(|| flaw("describes fewer columns than the schema"))?;
            let len = u64::try_from(node.length()).map_err(|_| flaw("has a column of negative length"))?;
            found.push((len, node.null_count() != 0));
        }
        column.nodes = found.into();
        let mut found = Vec::new();
        for _ in 0..counts.buffers {
            let buffer = buffers.next().ok_or_else(|| flaw("describes fewer buffers than the schema"))?;
            let place = u64::try_from(buffer.offset()).ok().zip(u64::try_from(buffer.length()).ok());
            let place = place.and_then(|(offset, len)| Some((body.start.checked_add(offset)?, len)));
            let inside =
                place.filter(|&(offset, len)| offset.checked_add(len).is_some_and(|end| end <= body.end));
            found.push(inside.ok_or_else(|| flaw("has a buffer outside its body"))?);
        }
        if needed.contains(&at) {
            if column.nodes.first().map(|node| node.0) != Some(rows) {
                return Err(flaw("has columns of different lengths"));
            }
            column.unpacked = match codec {
                None => found.iter().map(|buffer| buffer.1).sum(),
                Some(_) => {
                    let mut sum = 0u64;
                    for &(offset, len) in found.iter().filter(|buffer| buffer.1 > 0) {
                        let prefix = read(offset, len.min(8)).map_err(Unread::Source)?;
                        sum = sum.saturating_add(unpacked(&prefix, len).map_err(|why| flaw(&why))?);
                    }
                    sum
                }
            };
            column.buffers = found.into();
            columns.push(column);
        }
    }
    Ok((rows, columns, codec))
}

/// What the eight bytes before a compressed buffer say.
fn unpacked(prefix: &[u8], len: u64) -> Result<u64, String> {
    let prefix = prefix.get(..8).ok_or("a compressed buffer is too short")?;
    match i64::from_le_bytes(prefix.try_into().expect("eight bytes")) {
        -1 => Ok(len - 8),
        size => u64::try_from(size).map_err(|_| "a compressed buffer has a negative size".into()),
    }
}

#[derive(Default)]
struct Counts {
    /// Written before version 5 of the format, where unions had a validity buffer.
    old: bool,
    nodes: usize,
    buffers: usize,
    variadic: Vec<u64>,
}

/// How many nodes and buffers a column of a type takes.
fn count(
    kind: &DataType,
    counts: &mut Counts,
    variadic: &mut dyn Iterator<Item = i64>,
    depth: usize,
) -> Result<(), String> {
    if depth > 64 {
        return Err("has columns nested more than 64 levels deep".into());
    }
    counts.nodes += 1;
    match kind {
        DataType::Null => {}
        DataType::Utf8 | DataType::Binary | DataType::LargeUtf8 | DataType::LargeBinary => {
            counts.buffers += 3
        }
        DataType::Utf8View | DataType::BinaryView => {
            let extra =
                variadic.next().and_then(|extra| u64::try_from(extra).ok()).filter(|&extra| extra < 1 << 20);
            let extra = extra.ok_or("has no number of data buffers for a column of views")?;
            counts.buffers += 2 + extra as usize;
            counts.variadic.push(extra);
        }
        DataType::List(field) | DataType::LargeList(field) | DataType::Map(field, _) => {
            counts.buffers += 2;
            count(field.data_type(), counts, variadic, depth + 1)?;
        }
        DataType::ListView(field) | DataType::LargeListView(field) => {
            counts.buffers += 3;
            count(field.data_type(), counts, variadic, depth + 1)?;
        }
        DataType::FixedSizeList(field, _) => {
            counts.buffers += 1;
            count(field.data_type(), counts, variadic, depth + 1)?;
        }
        DataType::Struct(fields) => {
            counts.buffers += 1;
            for field in fields {
                count(field.data_type(), counts, variadic, depth + 1)?;
            }
        }
        DataType::RunEndEncoded(ends, values) => {
            count(ends.data_type(), counts, variadic, depth + 1)?;
            count(values.data_type(), counts, variadic, depth + 1)?;
        }
        DataType::Union(fields, mode) => {
            counts.buffers += usize::from(counts.old);
            counts.buffers += if *mode == crate::arrow::datatypes::UnionMode::Dense { 2 } else { 1 };
            for (_, field) in fields.iter() {
                count(field.data_type(), counts, variadic, depth + 1)?;
            }
        }
        // Validity and values; of a dictionary, its numbers.
        _ => counts.buffers += 2,
    }
    Ok(())
}

/// Why an array is not there.
enum Stop {
    /// Nothing about the data.
    Trouble(Trouble),
    /// A verdict on the bytes.
    Flaw(String),
}

impl From<&str> for Stop {
    fn from(why: &str) -> Self {
        Self::Flaw(why.to_owned())
    }
}

/// Where the buffers of one column come from.
struct Source<'unit> {
    shards: &'unit Shards,
    shard: usize,
    pool: &'unit Arc<Pool>,
    fetched: Option<&'unit Fetched>,
    codec: Option<CompressionType>,
    /// Bytes that may still be unpacked or read.
    left: &'unit mut u64,
}

/// The parts of a column not yet used.
struct Parts<'column> {
    nodes: VecDeque<&'column (u64, bool)>,
    buffers: VecDeque<&'column (u64, u64)>,
    variadic: VecDeque<&'column u64>,
}

impl Source<'_> {
    fn column(
        mut self,
        column: &Column,
        kind: &DataType,
        rows: Range<u64>,
        dictionary: Option<ArrayRef>,
    ) -> Result<ArrayRef, Stop> {
        let mut parts = Parts {
            nodes: column.nodes.iter().collect(),
            buffers: column.buffers.iter().collect(),
            variadic: column.variadic.iter().collect(),
        };
        let data = self.build(&mut parts, kind, rows, dictionary)?;
        Ok(make_array(data))
    }

    /// Bytes of a buffer, counted from its begin (unpacked).
    fn bytes(&mut self, buffer: (u64, u64), range: Range<u64>) -> Result<Bytes, Stop> {
        if range.is_empty() {
            return Ok(Bytes::new());
        }
        let (offset, len) = buffer;
        let get = |this: &Self, range: Range<u64>| match this.fetched {
            Some(fetched) => Ok(fetched.get(range)),
            None => fetch(this.shards, this.shard, vec![range.clone()], this.pool)
                .map(|fetched| fetched.get(range))
                .map_err(Stop::Trouble),
        };
        let charge = |left: &mut u64, bytes: u64| {
            *left = left.checked_sub(bytes).ok_or("it unpacks to more than 1 GiB")?;
            Ok::<_, Stop>(())
        };
        let Some(codec) = self.codec else {
            if range.end > len {
                return Err("a buffer is shorter than its column".into());
            }
            if self.fetched.is_none() {
                charge(self.left, range.end - range.start)?;
            }
            return get(self, offset + range.start..offset + range.end);
        };
        if len == 0 {
            return Err("a buffer is shorter than its column".into());
        }
        let packed = get(self, offset..offset + len)?;
        let size = unpacked(&packed, len).map_err(Stop::Flaw)?;
        if range.end > size {
            return Err("a buffer is shorter than its column".into());
        }
        let body = packed.slice(8..);
        if i64::from_le_bytes(packed[..8].try_into().expect("eight bytes")) == -1 {
            return Ok(body.slice(range.start as usize..range.end as usize));
        }
        charge(self.left, size)?;
        let mut out = Vec::new();
        out.try_reserve_exact(size as usize).map_err(|_| Stop::Trouble(Trouble::Memory(size)))?;
        let done = match codec {
            CompressionType::ZSTD => {
                out.resize(size as usize, 0);
                zstd::bulk::decompress_to_buffer(&body, &mut out).map(|len| out.truncate(len))
            }
            _ => lz4_flex::frame::FrameDecoder::new(&body[..]).take(size + 1).read_to_end(&mut out).map(drop),
        };
        done.map_err(|error| Stop::Flaw(format!("a buffer cannot be unpacked: {error}")))?;
        if out.len() as u64 != size {
            return Err("a buffer unpacks to another size than it says".into());
        }
        Ok(Bytes::from(out).slice(range.start as usize..range.end as usize))
    }

    /// Elements of an array. They are read from a multiple of eight on, where validity bits begin with a byte.
    fn build(
        &mut self,
        parts: &mut Parts,
        kind: &DataType,
        wanted: Range<u64>,
        dictionary: Option<ArrayRef>,
    ) -> Result<ArrayData, Stop> {
        let (node, nulls) = *parts.nodes.pop_front().ok_or("its description is too short")?;
        if wanted.end > node {
            return Err("a column inside it is shorter than it says".into());
        }
        let begin = wanted.start & !7;
        let (skip, len) = ((wanted.start - begin) as usize, (wanted.end - begin) as usize);
        let mut builder = ArrayData::builder(kind.clone()).len(len).align_buffers(true);
        if !matches!(kind, DataType::Null) {
            // Without nulls the bits may be left out.
            let validity = *parts.buffers.pop_front().ok_or("its description is too short")?;
            let bits = begin / 8..wanted.end.div_ceil(8);
            if nulls {
                builder = builder.null_bit_buffer(Some(Buffer::from(self.bytes(validity, bits)?)));
            }
        }
        let next = |parts: &mut Parts| {
            parts.buffers.pop_front().copied().ok_or(Stop::from("its description is too short"))
        };
        match kind {
            DataType::Null => {}
            DataType::Boolean => {
                let values = next(parts)?;
                builder = builder.add_buffer(self.bytes(values, begin / 8..wanted.end.div_ceil(8))?.into());
            }
            DataType::Utf8 | DataType::Binary | DataType::LargeUtf8 | DataType::LargeBinary => {
                let (offsets, values) = (next(parts)?, next(parts)?);
                let large = matches!(kind, DataType::LargeUtf8 | DataType::LargeBinary);
                let (offsets, range) = self.offsets(offsets, begin..wanted.end, large)?;
                builder = builder.add_buffer(offsets).add_buffer(self.bytes(values, range)?.into());
            }
            DataType::Utf8View | DataType::BinaryView => {
                let views = next(parts)?;
                builder = builder.add_buffer(self.bytes(views, begin * 16..wanted.end * 16)?.into());
                for _ in 0..*parts.variadic.pop_front().ok_or("its description is too short")? {
                    let data = next(parts)?;
                    let len = match self.codec {
                        None => data.1,
                        Some(_) if data.1 == 0 => 0,
                        Some(_) => self.unpacked(data)?,
                    };
                    builder = builder.add_buffer(self.bytes(data, 0..len)?.into());
                }
            }
            DataType::List(field) | DataType::LargeList(field) => {
                let offsets = next(parts)?;
                let large = matches!(kind, DataType::LargeList(_));
                let (offsets, range) = self.offsets(offsets, begin..wanted.end, large)?;
                let child = self.build(parts, field.data_type(), range, None)?;
                builder = builder.add_buffer(offsets).add_child_data(child);
            }
            DataType::FixedSizeList(field, each) => {
                let each = u64::try_from(*each).map_err(|_| "its lists have a negative length")?;
                let range = begin.checked_mul(each).zip(wanted.end.checked_mul(each));
                let (from, to) = range.ok_or("its lists are too long")?;
                builder = builder.add_child_data(self.build(parts, field.data_type(), from..to, None)?);
            }
            DataType::Struct(fields) => {
                for field in fields {
                    builder = builder.add_child_data(self.build(
                        parts,
                        field.data_type(),
                        begin..wanted.end,
                        None,
                    )?);
                }
            }
            DataType::Dictionary(keys, _) => {
                let values = next(parts)?;
                let width = keys.primitive_width().ok_or("its dictionary has odd keys")? as u64;
                let dictionary = dictionary.ok_or("dictionaries inside other columns are not supported")?;
                builder = builder
                    .add_buffer(self.bytes(values, begin * width..wanted.end * width)?.into())
                    .add_child_data(dictionary.to_data());
            }
            DataType::FixedSizeBinary(width) => {
                let width = u64::try_from(*width).map_err(|_| "its values have a negative length")?;
                let range = begin.checked_mul(width).zip(wanted.end.checked_mul(width));
                let (from, to) = range.ok_or("its values are too long")?;
                let values = next(parts)?;
                builder = builder.add_buffer(self.bytes(values, from..to)?.into());
            }
            other => {
                let Some(width) = other.primitive_width() else {
                    return Err(Stop::Flaw(format!("columns of type {other} are not supported")));
                };
                let values = next(parts)?;
                let width = width as u64;
                builder = builder.add_buffer(self.bytes(values, begin * width..wanted.end * width)?.into());
            }
        }
        let data = builder.build().map_err(|error| Stop::Flaw(error.to_string()))?;
        Ok(data.slice(skip, len - skip))
    }

    fn unpacked(&mut self, buffer: (u64, u64)) -> Result<u64, Stop> {
        let (offset, len) = buffer;
        let range = offset..offset + len.min(8);
        let prefix = match self.fetched {
            Some(fetched) => fetched.get(range),
            None => fetch(self.shards, self.shard, vec![range.clone()], self.pool)
                .map_err(Stop::Trouble)?
                .get(range),
        };
        unpacked(&prefix, len).map_err(Stop::Flaw)
    }

    /// The offsets of some elements, counted from the first, and the range of what they point to.
    fn offsets(
        &mut self,
        buffer: (u64, u64),
        wanted: Range<u64>,
        large: bool,
    ) -> Result<(Buffer, Range<u64>), Stop> {
        let width = if large { 8 } else { 4 };
        if wanted.is_empty() {
            // Writers may leave the one offset of an empty column out.
            return Ok((Buffer::from_vec(vec![0u8; width as usize]), 0..0));
        }
        let bytes = self.bytes(buffer, wanted.start * width..(wanted.end + 1) * width)?;
        let mut offsets: Vec<i64> = if large {
            bytes
                .chunks_exact(8)
                .map(|bytes| i64::from_le_bytes(bytes.try_into().expect("eight bytes")))
                .collect()
        } else {
            let number = |bytes: &[u8]| i32::from_le_bytes(bytes.try_into().expect("four bytes"));
            bytes.chunks_exact(4).map(|bytes| i64::from(number(bytes))).collect()
        };
        let (first, last) = (offsets[0], offsets[offsets.len() - 1]);
        if first < 0 || offsets.windows(2).any(|pair| pair[0] > pair[1]) {
            return Err("its offsets run backwards".into());
        }
        offsets.iter_mut().for_each(|offset| *offset -= first);
        let buffer = if large {
            Buffer::from_vec(offsets)
        } else {
            Buffer::from_vec(offsets.into_iter().map(|offset| offset as i32).collect::<Vec<_>>())
        };
        Ok((buffer, first as u64..last as u64))
    }
}
