//! Parquet pages out of memory: found, checked, decompressed within bounds, and handed to the decoder one by one.
//!
//! The library's own page reader trusts a page's header: it allocates what the header says, and gzip, brotli and lz4
//! pages grow as far as their data goes. Here every size is checked first, against the bytes that are there and against
//! [`MAX_UNIT_BYTES`], and decompression stops at the size announced. A page that fails is an error when it is *read*;
//! skipping it works as long as its header is sound, so the rows before and behind it are delivered.

use std::collections::VecDeque;
use std::io::Read;

use bytes::Bytes;
use parquet::basic::{Compression, Encoding};
use parquet::column::page::{Page, PageIterator, PageMetadata, PageReader};
use parquet::errors::{ParquetError, Result};

use super::thrift::{DATA_PAGE, DATA_PAGE_V2, DICTIONARY_PAGE, PageHeader, page_header};

/// A unit of decoding may unpack to this much; one that says more is refused.
pub(super) const MAX_UNIT_BYTES: u64 = 1 << 30;

/// Pages of one column that are read at once.
const MAX_SLOTS: usize = 1 << 18;

/// One page, or the place of one.
#[derive(Clone)]
pub(super) enum Slot {
    /// A page with a sound header.
    Page { header: PageHeader, body: Bytes, rows: Option<u64> },
    /// A page that was not fetched, since no row of it is wanted.
    Elsewhere { rows: u64 },
    /// A page that cannot be read. Where its number of rows is known it can be skipped.
    Broken { why: &'static str, rows: Option<u64> },
}

/// What the pages of one unit may still unpack to.
pub(super) struct Allowance(u64);

impl Allowance {
    pub(super) fn new() -> Self {
        Self(MAX_UNIT_BYTES)
    }
}

/// Cuts one page off the front of `bytes`. Returns it with its length.
pub(super) fn cut(
    bytes: &Bytes,
    allowance: &mut Allowance,
) -> std::result::Result<(PageHeader, Bytes, usize), &'static str> {
    let (header, header_len) = page_header(bytes)?;
    let body_len = usize::try_from(header.compressed).map_err(|_| "a page has a negative size")?;
    let end = header_len.checked_add(body_len).filter(|&end| end <= bytes.len());
    let end = end.ok_or("a page runs past the end of its column")?;
    let uncompressed = u64::try_from(header.uncompressed).map_err(|_| "a page has a negative size")?;
    if header.values < 0 || header.nulls < 0 || header.rows.is_some_and(|rows| rows < 0) {
        return Err("a page has a negative number of values");
    }
    let (def, rep) = (header.def_bytes, header.rep_bytes);
    if def < 0 || rep < 0 || def + rep > header.uncompressed || def + rep > header.compressed {
        return Err("a page's levels are larger than the page");
    }
    // Each entry of a dictionary takes a byte at least (an empty text takes four), and memory is set aside by the
    // number.
    if header.kind == DICTIONARY_PAGE && header.values as u64 > uncompressed {
        return Err("a dictionary claims more entries than it has bytes");
    }
    allowance.0 = allowance.0.checked_sub(uncompressed).ok_or("its pages unpack to more than 1 GiB")?;
    Ok((header, bytes.slice(header_len..end), end))
}

/// All pages of a column chunk, up to the first whose header is broken. `values` is what the chunk claims to hold.
pub(super) fn walk(mut chunk: Bytes, mut values: u64, allowance: &mut Allowance) -> Vec<Slot> {
    let mut slots = Vec::new();
    while !chunk.is_empty() {
        if slots.len() > MAX_SLOTS {
            slots.push(Slot::Broken { why: "it has too many pages", rows: None });
            return slots;
        }
        match cut(&chunk, allowance) {
            Ok((header, body, len)) => {
                if header.kind != DICTIONARY_PAGE {
                    match values.checked_sub(header.values as u64) {
                        Some(left) => values = left,
                        None => {
                            let why = "its pages hold more values than the column claims";
                            slots.push(Slot::Broken { why, rows: None });
                            return slots;
                        }
                    }
                }
                chunk = chunk.slice(len..);
                // Index pages are in the format and nowhere else.
                if matches!(header.kind, DATA_PAGE | DATA_PAGE_V2 | DICTIONARY_PAGE) {
                    let rows = header.rows.map(|rows| rows as u64);
                    slots.push(Slot::Page { header, body, rows });
                }
            }
            Err(why) => {
                slots.push(Slot::Broken { why, rows: None });
                return slots;
            }
        }
    }
    slots
}

/// The pages of one column chunk, in order.
pub(super) struct Pages {
    slots: VecDeque<Slot>,
    codec: Compression,
    /// A dictionary that was skipped and is still needed by the pages behind it.
    dictionary: Option<Slot>,
}

impl Pages {
    pub(super) fn new(slots: Vec<Slot>, codec: Compression) -> Self {
        Self { slots: slots.into(), codec, dictionary: None }
    }

    fn decode(&self, slot: Slot) -> Result<Page> {
        match slot {
            Slot::Page { header, body, .. } => {
                page(&header, &body, self.codec).map_err(ParquetError::General)
            }
            Slot::Broken { why, .. } => Err(ParquetError::General(why.into())),
            Slot::Elsewhere { .. } => Err(ParquetError::General("a page was not fetched".into())),
        }
    }
}

impl PageReader for Pages {
    fn get_next_page(&mut self) -> Result<Option<Page>> {
        self.slots.pop_front().map(|slot| self.decode(slot)).transpose()
    }

    fn peek_next_page(&mut self) -> Result<Option<PageMetadata>> {
        let metadata = |num_rows: Option<u64>, num_levels: Option<i64>, is_dict| PageMetadata {
            num_rows: num_rows.map(|rows| rows as usize),
            num_levels: num_levels.map(|levels| levels as usize),
            is_dict,
        };
        Ok(match self.slots.front() {
            None => None,
            Some(Slot::Page { header, .. }) if header.kind == DICTIONARY_PAGE => {
                Some(metadata(None, None, true))
            }
            Some(Slot::Page { header, rows, .. }) => Some(metadata(*rows, Some(header.values), false)),
            Some(Slot::Elsewhere { rows }) | Some(Slot::Broken { rows: Some(rows), .. }) => {
                Some(metadata(Some(*rows), None, false))
            }
            Some(Slot::Broken { why, rows: None }) => return Err(ParquetError::General((*why).into())),
        })
    }

    fn skip_next_page(&mut self) -> Result<()> {
        let slot = self.slots.pop_front();
        if let Some(Slot::Page { header, .. }) = &slot
            && header.kind == DICTIONARY_PAGE
        {
            self.dictionary = slot;
        }
        Ok(())
    }

    fn supports_deferred_dictionary(&self) -> bool {
        true
    }

    fn take_deferred_dictionary(&mut self) -> Result<Option<Page>> {
        self.dictionary.take().map(|slot| self.decode(slot)).transpose()
    }
}

impl Iterator for Pages {
    type Item = Result<Page>;

    fn next(&mut self) -> Option<Self::Item> {
        self.get_next_page().transpose()
    }
}

/// One column chunk as the "iterator over chunks" that the decoder wants.
pub(super) struct OneChunk(pub Option<Pages>);

impl Iterator for OneChunk {
    type Item = Result<Box<dyn PageReader>>;

    fn next(&mut self) -> Option<Self::Item> {
        self.0.take().map(|pages| Ok(Box::new(pages) as Box<dyn PageReader>))
    }
}

impl PageIterator for OneChunk {}

fn page(header: &PageHeader, body: &Bytes, codec: Compression) -> std::result::Result<Page, String> {
    if let Some(expected) = header.crc {
        let mut crc = flate2::Crc::new();
        crc.update(body);
        if crc.sum() != expected as u32 {
            return Err("a page's checksum does not match: its bytes are damaged".into());
        }
    }
    let size = usize::try_from(header.uncompressed).map_err(|_| "a page has a negative size")?;
    // Of a version 2 page the levels are never compressed.
    let levels = if header.kind == DATA_PAGE_V2 { (header.def_bytes + header.rep_bytes) as usize } else { 0 };
    // parquet-cpp before 2.0 packed version 2 pages and said that it had not; an unpacked page has the size it says.
    let plain = header.kind == DATA_PAGE_V2 && !header.is_compressed && body.len() == size;
    let packed = codec != Compression::UNCOMPRESSED && !plain;
    let buf = if !packed {
        body.clone()
    } else {
        let mut out = Vec::new();
        out.try_reserve_exact(size).map_err(|_| format!("there is no memory for a page of {size} bytes"))?;
        out.extend_from_slice(&body[..levels]);
        // A page without any value may have nothing behind its levels.
        if size > levels {
            decompress(codec, &body[levels..], &mut out, size - levels)?;
        }
        if out.len() != size {
            return Err(format!("a page unpacks to {} bytes instead of {size}", out.len()));
        }
        Bytes::from(out)
    };
    let encoding = encoding(header.encoding)?;
    Ok(match header.kind {
        DICTIONARY_PAGE => {
            Page::DictionaryPage { buf, num_values: header.values as u32, encoding, is_sorted: header.sorted }
        }
        DATA_PAGE => Page::DataPage {
            buf,
            num_values: header.values as u32,
            encoding,
            def_level_encoding: self::encoding(header.def_encoding)?,
            rep_level_encoding: self::encoding(header.rep_encoding)?,
            statistics: None,
        },
        DATA_PAGE_V2 => Page::DataPageV2 {
            buf,
            num_values: header.values as u32,
            encoding,
            num_nulls: header.nulls as u32,
            num_rows: header.rows.unwrap_or(0) as u32,
            def_levels_byte_len: header.def_bytes as u32,
            rep_levels_byte_len: header.rep_bytes as u32,
            is_compressed: header.is_compressed,
            statistics: None,
        },
        other => return Err(format!("a page is of the unknown kind {other}")),
    })
}

#[allow(deprecated, reason = "old files have levels packed this way")]
fn encoding(number: i64) -> std::result::Result<Encoding, String> {
    Ok(match number {
        0 => Encoding::PLAIN,
        2 => Encoding::PLAIN_DICTIONARY,
        3 => Encoding::RLE,
        4 => Encoding::BIT_PACKED,
        5 => Encoding::DELTA_BINARY_PACKED,
        6 => Encoding::DELTA_LENGTH_BYTE_ARRAY,
        7 => Encoding::DELTA_BYTE_ARRAY,
        8 => Encoding::RLE_DICTIONARY,
        9 => Encoding::BYTE_STREAM_SPLIT,
        _ => return Err(format!("a page has the unknown encoding {number}")),
    })
}

/// Appends `size` unpacked bytes to `out`, never more.
fn decompress(
    codec: Compression,
    input: &[u8],
    out: &mut Vec<u8>,
    size: usize,
) -> std::result::Result<(), String> {
    let failed = |error: &dyn std::fmt::Display| format!("a page cannot be unpacked: {error}");
    let start = out.len();
    // One byte more than announced shows that there is more.
    let read = |reader: &mut dyn Read, out: &mut Vec<u8>| {
        reader.take(size as u64 + 1).read_to_end(out).map(drop).map_err(|error| failed(&error))
    };
    match codec {
        Compression::SNAPPY => {
            out.resize(start + size, 0);
            let len = snap::raw::Decoder::new()
                .decompress(input, &mut out[start..])
                .map_err(|error| failed(&error))?;
            out.truncate(start + len);
        }
        Compression::ZSTD(_) => {
            out.resize(start + size, 0);
            let len =
                zstd::bulk::decompress_to_buffer(input, &mut out[start..]).map_err(|error| failed(&error))?;
            out.truncate(start + len);
        }
        Compression::LZ4_RAW => {
            out.resize(start + size, 0);
            let len =
                lz4_flex::block::decompress_into(input, &mut out[start..]).map_err(|error| failed(&error))?;
            out.truncate(start + len);
        }
        Compression::LZ4 => {
            // Three things have been called LZ4: Hadoop's frames, the frames of lz4 itself, and blocks.
            out.resize(start + size, 0);
            if hadoop(input, &mut out[start..]).is_some() {
                return Ok(());
            }
            out.truncate(start);
            if read(&mut lz4_flex::frame::FrameDecoder::new(input), out).is_ok() && out.len() == start + size
            {
                return Ok(());
            }
            out.truncate(start);
            return decompress(Compression::LZ4_RAW, input, out, size);
        }
        Compression::GZIP(_) => read(&mut flate2::read::MultiGzDecoder::new(input), out)?,
        Compression::BROTLI(_) => read(&mut brotli::Decompressor::new(input, 64 << 10), out)?,
        other => return Err(format!("its pages are compressed with {other}, which is not supported")),
    }
    Ok(())
}

/// Frames of (unpacked size, packed size) in big endian and a block; fills `out` exactly or fails.
fn hadoop(mut input: &[u8], mut out: &mut [u8]) -> Option<()> {
    while !input.is_empty() {
        let (head, rest) = input.split_at_checked(8)?;
        let number = |bytes: &[u8]| u32::from_be_bytes(bytes.try_into().expect("four bytes")) as usize;
        let (packed, rest) = rest.split_at_checked(number(&head[4..]))?;
        let (target, behind) = std::mem::take(&mut out).split_at_mut_checked(number(&head[..4]))?;
        if lz4_flex::block::decompress_into(packed, target).ok()? != target.len() {
            return None;
        }
        (input, out) = (rest, behind);
    }
    out.is_empty().then_some(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn a_bomb_stops_at_the_size_it_announced() {
        let zeros = vec![0; 50 << 20];
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&zeros).unwrap();
        let mut frame = lz4_flex::frame::FrameEncoder::new(Vec::new());
        frame.write_all(&zeros).unwrap();
        for (codec, packed) in [
            (Compression::GZIP(Default::default()), gzip.finish().unwrap()),
            (Compression::LZ4, frame.finish().unwrap()),
            (Compression::ZSTD(Default::default()), zstd::bulk::compress(&zeros, 1).unwrap()),
            (Compression::SNAPPY, snap::raw::Encoder::new().compress_vec(&zeros).unwrap()),
            (Compression::LZ4_RAW, lz4_flex::block::compress(&zeros)),
        ] {
            let mut out = Vec::new();
            let small = decompress(codec, &packed, &mut out, 1000);
            assert!(small.is_err() || out.len() != 1000, "{codec}");
            assert!(out.capacity() < 1 << 20, "{codec}: {}", out.capacity());
            let mut out = Vec::new();
            decompress(codec, &packed, &mut out, zeros.len()).unwrap();
            assert!(out == zeros, "{codec}");
        }
    }
}
