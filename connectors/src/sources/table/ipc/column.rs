//! Rows of one column: its buffers read and unpacked as far as the rows reach, and built into an array.

use std::collections::VecDeque;
use std::io::Read;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use super::Column;
use super::layout::unpacked;
use crate::arrow::array::{ArrayData, ArrayRef, make_array};
use crate::arrow::buffer::Buffer;
use crate::arrow::datatypes::DataType;
use crate::arrow::ipc::CompressionType;
use crate::bytes::buffer::Pool;
use crate::bytes::shards::Shards;
use crate::sources::table::fetch::{Fetched, Trouble, fetch};

/// Why an array is not there.
pub(super) enum Stop {
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
pub(super) struct Source<'unit> {
    pub shards: &'unit Shards,
    pub shard: usize,
    pub pool: &'unit Arc<Pool>,
    pub fetched: Option<&'unit Fetched>,
    pub codec: Option<CompressionType>,
    /// Bytes that may still be unpacked or read.
    pub left: &'unit mut u64,
}

/// The parts of a column not yet used.
struct Parts<'column> {
    nodes: VecDeque<&'column (u64, bool)>,
    buffers: VecDeque<&'column (u64, u64)>,
    variadic: VecDeque<&'column u64>,
}

impl Source<'_> {
    /// The array of a column's rows.
    ///
    /// # Errors
    /// [`Stop`]: what is wrong with the bytes, or that they cannot be had.
    pub fn column(
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
            DataType::List(field) | DataType::LargeList(field) | DataType::Map(field, _) => {
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
