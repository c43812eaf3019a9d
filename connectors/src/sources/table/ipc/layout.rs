//! A message's description: how many rows, and which buffers belong to which column.

use std::ops::Range;

use crate::arrow::datatypes::DataType;
use crate::arrow::ipc::{BodyCompressionMethod, CompressionType, Message, RecordBatch};

use super::{Column, MAX_DESCRIPTION, Place, Unread, describe, refuse_at};
use crate::SourceError;

/// Reads a message's description and hands it over with the place of its body.
pub(super) fn message<T>(
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

pub(super) fn is_old(message: &Message) -> bool {
    message.version() < crate::arrow::ipc::MetadataVersion::V5
}

/// The needed columns of a batch, with every place checked.
pub(super) fn parse(
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
pub(super) fn unpacked(prefix: &[u8], len: u64) -> Result<u64, String> {
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
