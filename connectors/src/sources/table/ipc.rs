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

mod column;
mod layout;

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use self::column::{Source, Stop};
use self::layout::{is_old, message, parse};
use super::fetch::{Trouble, fetch};
use super::pages::MAX_UNIT_BYTES;
use super::{Piece, Rows, check_rows};
use crate::SourceError;
use crate::arrow::array::ArrayRef;
use crate::arrow::datatypes::{DataType, Field, SchemaRef};
use crate::arrow::ipc::{CompressionType, MessageHeader};
use crate::bytes::buffer::Pool;
use crate::bytes::shards::Shards;
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
        DataType::List(field)
        | DataType::LargeList(field)
        | DataType::FixedSizeList(field, _)
        | DataType::Map(field, _) => divisible(field.data_type()),
        DataType::Struct(fields) => fields.iter().all(|field| divisible(field.data_type())),
        _ => true,
    }
}
