//! Parquet files: the footer, and rows of a row group decoded from a few large reads.
//!
//! ```text
//!  file   [ row group 0 | row group 1 | … | footer ]
//!  row group   [ column chunk | column chunk | … ]         only the chunks of columns that are needed are read
//!  chunk       [ dictionary page | page | page | … ]       of a large row group only the pages of the rows wanted
//! ```
//!
//! - Which pages hold which rows is in the file's page index, or else learnt by hopping from page header to page header
//!   once. Columns of lists without a page index have to be read chunk by chunk.
//! - Binary columns are decoded as views into the pages: an image is copied once, from the page into its record.
//! - The library decodes under `catch_unwind`, on pages this crate has checked ([`super::pages`]). When a run of rows
//!   fails it is halved until the failure is cornered; the rows around it are delivered.

use std::collections::HashMap;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, OnceLock};

use crate::arrow::array::ArrayRef;
use crate::arrow::datatypes::{DataType, Field, Fields, SchemaRef};
use parquet::arrow::arrow_reader::{ParquetRecordBatchReader, RowGroups, RowSelection, RowSelector};
use parquet::arrow::{FieldLevels, ProjectionMask, parquet_to_arrow_field_levels, parquet_to_arrow_schema};
use parquet::basic::{Compression, Type};
use parquet::column::page::PageIterator;
use parquet::file::metadata::{
    FileMetaData, ParquetMetaData, ParquetMetaDataOptions, ParquetMetaDataReader, ParquetStatisticsPolicy,
    RowGroupMetaData,
};
use parquet::schema::types::SchemaDescPtr;

use super::fetch::{Fetched, Trouble, fetch};
use super::pages::{Allowance, MAX_UNIT_BYTES, OneChunk, Pages, Slot, cut, walk};
use super::thrift::{PageLocation, check_footer, offset_index, page_header};
use super::{LARGE_PART, Piece, RECORD, Rows, check_rows, evenly};
use crate::SourceError;
use crate::bytes::buffer::Pool;
use crate::bytes::shards::Shards;
use crate::workers::panic_text;

/// A footer is read in one piece when it is no longer than this, which nearly all are.
const TAIL: u64 = 64 << 10;

/// Times that one unit is decoded to corner its damage.
const MAX_ATTEMPTS: u32 = 256;

/// More pages than this in one column chunk are not looked for.
const MAX_PAGES: usize = 1 << 20;

/// A column of lists without a page index is read as a whole for each run of its rows, and a large dictionary is, too;
/// so up to this much such a row group is one run.
const WHOLE_BYTES: u64 = 256 << 20;

/// A dictionary of at most this is read again for each run. (Writers stop making one at a megabyte.)
const SMALL_DICTIONARY: u64 = 2 << 20;

/// What stands before and behind a Parquet file.
const MAGIC: &[u8; 4] = b"PAR1";

/// A footer as read, before it is known which columns matter.
pub(super) struct Footer {
    metadata: ParquetMetaData,
    pub schema: SchemaRef,
}

/// An open file: the places of its row groups' columns, as far as they are needed.
pub(super) struct File {
    layout: Arc<Layout>,
    groups: Vec<Group>,
}

/// What files of the same schema share.
pub(super) struct Layout {
    descr: SchemaDescPtr,
    schema: SchemaRef,
    /// The leaf columns that any view needs, ascending.
    leaves: Vec<usize>,
    views: Vec<View>,
    /// The library asks for it and uses it for nothing here.
    empty: ParquetMetaData,
}

/// Columns decoded together.
struct View {
    levels: FieldLevels,
    /// Places in [`Layout::leaves`].
    slots: Vec<usize>,
    names: Vec<String>,
}

struct Group {
    rows: u64,
    /// One for each of [`Layout::leaves`].
    chunks: Box<[Chunk]>,
}

struct Chunk {
    start: u64,
    len: u64,
    values: u64,
    uncompressed: u64,
    codec: Compression,
    /// Bytes before the first data page, as far as the footer says.
    dictionary: u64,
    /// Where the file's own page index for this chunk lies.
    index: Option<(u64, u32)>,
    /// Learnt when rows of a part of it are first wanted. Empty: it has to be read as a whole.
    pages: OnceLock<Box<[PageLocation]>>,
}

impl Footer {
    pub(super) fn read(shards: &Shards, shard: usize) -> Result<Self, SourceError> {
        let name = shards.display(shard);
        let size = shards.files()[shard].size;
        let refuse =
            |why: String| SourceError::data(format!("{name} is not a Parquet file that can be read: {why}"));
        if size < 12 {
            return Err(refuse(format!("it has only {size} bytes")));
        }
        let read = |offset: u64, len: u64| -> Result<Vec<u8>, SourceError> {
            let mut bytes = Vec::new();
            let len = usize::try_from(len).map_err(|_| refuse("its footer is too large".into()))?;
            bytes
                .try_reserve_exact(len)
                .map_err(|_| refuse(format!("there is no memory for its footer of {len} bytes")))?;
            bytes.resize(len, 0);
            shards
                .read_at(shard, offset, &mut bytes)
                .map_err(|error| SourceError::data(error.to_string()))?;
            Ok(bytes)
        };
        let tail_len = size.min(TAIL);
        let mut tail = read(size - tail_len, tail_len)?;
        let end = tail.len() - 8;
        match &tail[end + 4..] {
            b"PARE" => return Err(refuse("it is encrypted; decrypt it first".into())),
            magic if magic != MAGIC => {
                return Err(refuse("it does not end in PAR1; it may be cut short".into()));
            }
            _ => {}
        }
        let len = u64::from(u32::from_le_bytes(tail[end..end + 4].try_into().expect("four bytes")));
        if len + 12 > size {
            return Err(refuse(format!("its footer claims {len} bytes of the file's {size}")));
        }
        if len + 8 > tail_len {
            tail = read(size - 8 - len, len + 8)?;
        }
        let bytes = &tail[tail.len() - 8 - len as usize..tail.len() - 8];
        check_footer(bytes).map_err(|flaw| refuse(format!("in its footer {flaw}")))?;
        let options = ParquetMetaDataOptions::new()
            .with_column_stats_policy(ParquetStatisticsPolicy::SkipAll)
            .with_encoding_stats_policy(ParquetStatisticsPolicy::SkipAll)
            .with_size_stats_policy(ParquetStatisticsPolicy::SkipAll);
        let parse = || -> Result<Self, parquet::errors::ParquetError> {
            let metadata = ParquetMetaDataReader::decode_metadata_with_options(bytes, Some(&options))?;
            let file = metadata.file_metadata();
            // A schema of Arrow's own beside Parquet's tells fixed-size lists from lists; when it is damaged, do
            // without.
            let (descr, key_values) = (file.schema_descr(), file.key_value_metadata());
            let schema = parquet_to_arrow_schema(descr, key_values)
                .or_else(|_| parquet_to_arrow_schema(descr, None))?;
            Ok(Self { metadata, schema: Arc::new(schema) })
        };
        match catch_unwind(AssertUnwindSafe(parse)) {
            Ok(Ok(footer)) => Ok(footer),
            Ok(Err(error)) => Err(refuse(error.to_string())),
            Err(panic) => {
                Err(refuse(format!("its footer breaks the Parquet library ({})", panic_text(&*panic))))
            }
        }
    }
}

impl Layout {
    /// What it takes to read `views`, each a list of columns, from files like this one. With `texts`, texts of records
    /// are views, too.
    pub(super) fn new(
        footer: &Footer,
        views: &[Vec<String>],
        texts: bool,
        name: &str,
    ) -> Result<Arc<Self>, SourceError> {
        let descr = footer.metadata.file_metadata().schema_descr_ptr();
        let refuse = |error: &dyn std::fmt::Display| SourceError::data(format!("{name}: {error}"));
        let mut all = Vec::new();
        let mut made = Vec::new();
        for (view, names) in views.iter().enumerate() {
            let texts = texts && view == RECORD;
            let wanted = |root: usize| names.contains(footer.schema.field(root).name());
            let leaves: Vec<usize> =
                (0..descr.num_columns()).filter(|&leaf| wanted(descr.get_column_root_idx(leaf))).collect();
            let hint: Fields = footer
                .schema
                .fields()
                .iter()
                .map(|field| {
                    if names.contains(field.name()) {
                        Arc::new(field.as_ref().clone().with_data_type(as_views(field.data_type(), texts)))
                    } else {
                        field.clone()
                    }
                })
                .collect();
            let mask = || ProjectionMask::leaves(&descr, leaves.iter().copied());
            let levels =
                catch_unwind(AssertUnwindSafe(|| parquet_to_arrow_field_levels(&descr, mask(), Some(&hint))))
                    .map_err(|panic| refuse(&panic_text(&*panic)))?
                    .map_err(|error| refuse(&error))?;
            all.extend_from_slice(&leaves);
            made.push((levels, leaves, names.clone()));
        }
        all.sort_unstable();
        all.dedup();
        let place = |leaf: &usize| all.binary_search(leaf).expect("all leaves are in the list");
        let views = made
            .into_iter()
            .map(|(levels, leaves, names)| View { levels, slots: leaves.iter().map(place).collect(), names })
            .collect();
        let empty =
            ParquetMetaData::new(FileMetaData::new(2, 0, None, None, descr.clone(), None), Vec::new());
        Ok(Arc::new(Self { descr, schema: footer.schema.clone(), leaves: all, views, empty }))
    }

    /// Whether a file with this footer is laid out in the same way.
    pub(super) fn fits(&self, footer: &Footer) -> bool {
        self.schema == footer.schema
            && self.descr.root_schema() == footer.metadata.file_metadata().schema_descr().root_schema()
    }
}

impl File {
    pub(super) fn new(
        footer: &Footer,
        layout: Arc<Layout>,
        shards: &Shards,
        shard: usize,
    ) -> Result<Self, SourceError> {
        let (name, size) = (shards.display(shard), shards.files()[shard].size);
        let mut groups = Vec::with_capacity(footer.metadata.num_row_groups());
        let mut total = 0u64;
        for (number, group) in footer.metadata.row_groups().iter().enumerate() {
            let refuse = |why: &str| SourceError::data(format!("{name}: row group {number} {why}"));
            let rows =
                u64::try_from(group.num_rows()).map_err(|_| refuse("has a negative number of rows"))?;
            total = total.saturating_add(rows);
            check_rows(&name, total, size)?;
            if rows == 0 {
                continue;
            }
            let chunk = |&leaf: &usize| {
                let column = group.column(leaf);
                let path = column.column_path();
                if column.file_path().is_some() {
                    return Err(refuse(&format!(
                        "keeps its column {path} in another file, which is not supported"
                    )));
                }
                // Some writers say "no dictionary" by a zero.
                let start = match column.dictionary_page_offset() {
                    Some(offset) if offset > 0 && offset < column.data_page_offset() => offset,
                    _ => column.data_page_offset(),
                };
                let numbers = (u64::try_from(start), u64::try_from(column.compressed_size()));
                let (Ok(start), Ok(len)) = numbers else {
                    return Err(refuse(&format!("has its column {path} at a negative place")));
                };
                if start.checked_add(len).is_none_or(|end| end > size) {
                    return Err(refuse(&format!(
                        "has its column {path} outside the file; it may be cut short"
                    )));
                }
                let values = u64::try_from(column.num_values());
                let (Ok(values), Ok(uncompressed)) = (values, u64::try_from(column.uncompressed_size()))
                else {
                    return Err(refuse(&format!("has a column {path} of negative size")));
                };
                if column.column_descr().max_rep_level() > 0 && len > MAX_UNIT_BYTES {
                    return Err(refuse(&format!(
                        "has a column {path} of {} MiB that is read as a whole; write the file again with smaller row groups",
                        len >> 20
                    )));
                }
                let index = match (column.offset_index_offset(), column.offset_index_length()) {
                    (Some(offset), Some(len)) => u64::try_from(offset).ok().zip(u32::try_from(len).ok()),
                    _ => None,
                };
                let index = index.filter(|&(offset, len)| offset.saturating_add(u64::from(len)) <= size);
                Ok(Chunk {
                    start,
                    len,
                    values,
                    uncompressed,
                    codec: column.compression(),
                    dictionary: (column.data_page_offset().max(0) as u64).saturating_sub(start),
                    index,
                    pages: OnceLock::new(),
                })
            };
            let chunks = layout.leaves.iter().map(chunk).collect::<Result<_, _>>()?;
            groups.push(Group { rows, chunks });
        }
        let file = Self { layout, groups };
        file.learn_pages(shards, shard)?;
        Ok(file)
    }

    /// Finds the pages of the largest column of each large row group, for that is where it can be cut: a page is
    /// unpacked as a whole, and writers make pages of a megabyte or of a thousand images.
    fn learn_pages(&self, shards: &Shards, shard: usize) -> Result<(), SourceError> {
        for (part, group) in self.groups.iter().enumerate() {
            if self.part(RECORD, part).bytes <= LARGE_PART {
                continue;
            }
            if let Some(slot) = self.largest(group) {
                let found = self.pages(shards, shard, group, &group.chunks[slot], self.flat(slot));
                found.map_err(|trouble| trouble.at_open(&shards.display(shard)))?;
            }
        }
        Ok(())
    }

    /// Which column of a record takes most.
    fn largest(&self, group: &Group) -> Option<usize> {
        self.layout.views[RECORD].slots.iter().copied().max_by_key(|&slot| group.chunks[slot].uncompressed)
    }

    /// Whether a column has one value a row.
    fn flat(&self, slot: usize) -> bool {
        self.layout.descr.column(self.layout.leaves[slot]).max_rep_level() == 0
    }

    /// First rows of runs of about `run` rows of a part; at the borders of pages where they are known.
    pub(super) fn starts(&self, part: usize, run: u64) -> Vec<u64> {
        let group = &self.groups[part];
        let pages = self.largest(group).and_then(|slot| group.chunks[slot].pages.get());
        let Some(pages) = pages.filter(|pages| !pages.is_empty()) else { return evenly(group.rows, run) };
        let mut starts = vec![0];
        for page in &**pages {
            let last = starts[starts.len() - 1];
            if page.first_row >= last + run && page.first_row < group.rows {
                starts.push(page.first_row);
            }
        }
        starts
    }

    pub(super) fn parts(&self) -> usize {
        self.groups.len()
    }

    /// Rows of a part, the bytes that the columns of a view take once decoded, and whether rows out of the middle can
    /// be decoded without reading all.
    pub(super) fn part(&self, view: usize, part: usize) -> Rows {
        let group = &self.groups[part];
        let mut bytes = 0u64;
        for &slot in &self.layout.views[view].slots {
            let (chunk, column) = (&group.chunks[slot], self.layout.descr.column(self.layout.leaves[slot]));
            let width = match column.physical_type() {
                Type::BOOLEAN => 1,
                Type::INT32 | Type::FLOAT => 4,
                Type::INT64 | Type::DOUBLE => 8,
                Type::INT96 => 16,
                // The pages stay; each value is a view.
                Type::BYTE_ARRAY => 16,
                Type::FIXED_LEN_BYTE_ARRAY => column.type_length().max(0) as u64,
            };
            let pages = if column.physical_type() == Type::BYTE_ARRAY { chunk.uncompressed } else { 0 };
            bytes = bytes.saturating_add(chunk.values.saturating_mul(width)).saturating_add(pages);
        }
        let divisible = bytes > WHOLE_BYTES
            || self.layout.views[view].slots.iter().all(|&slot| {
                let chunk = &group.chunks[slot];
                (self.flat(slot) || chunk.index.is_some()) && chunk.dictionary <= SMALL_DICTIONARY
            });
        Rows { rows: group.rows, bytes, divisible }
    }

    pub(super) fn memory(&self) -> u64 {
        let pages = |chunk: &Chunk| chunk.pages.get().map_or(0, |pages| size_of_val(&**pages));
        let chunks = |group: &Group| {
            size_of_val(&*group.chunks) + group.chunks.iter().map(pages).sum::<usize>() + size_of::<Group>()
        };
        self.groups.iter().map(|group| chunks(group) as u64).sum()
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
        let (layout, group) = (&*self.layout, &self.groups[part]);
        let view = &layout.views[view];
        let whole = rows == (0..group.rows);
        // First which bytes, then all of them in a few reads, then the pages.
        let mut plans = Vec::with_capacity(view.slots.len());
        let mut ranges = Vec::new();
        for &slot in &view.slots {
            let chunk = &group.chunks[slot];
            let pages =
                if whole { &[][..] } else { self.pages(shards, shard, group, chunk, self.flat(slot))? };
            let wanted = wanted(pages, group.rows, &rows);
            match (pages.first(), wanted.clone().next()) {
                (Some(first), Some(_)) => {
                    if first.offset > chunk.start {
                        ranges.push(chunk.start..first.offset);
                    }
                    ranges.extend(
                        wanted
                            .clone()
                            .map(|at| pages[at].offset..pages[at].offset + u64::from(pages[at].len)),
                    );
                }
                _ if chunk.len > 0 => ranges.push(chunk.start..chunk.start + chunk.len),
                _ => {}
            }
            plans.push((slot, pages, wanted));
        }
        let fetched = fetch(shards, shard, ranges, pool)?;
        let mut allowance = Allowance::new();
        let mut chunks = HashMap::new();
        for (slot, pages, wanted) in plans {
            let (chunk, leaf) = (&group.chunks[slot], layout.leaves[slot]);
            let slots = if pages.is_empty() {
                walk(fetched.get(chunk.start..chunk.start + chunk.len), chunk.values, &mut allowance)
            } else {
                chosen(chunk, pages, wanted, group.rows, self.flat(slot), &fetched, &mut allowance)
            };
            chunks.insert(leaf, (slots, chunk.codec));
        }
        let unit = Unit { rows: group.rows as usize, chunks, empty: &layout.empty };
        let mut pieces = Vec::new();
        let mut attempts = MAX_ATTEMPTS;
        unit.decode(view, rows, &mut attempts, &mut pieces);
        Ok(pieces)
    }

    /// Where the pages of a chunk lie; empty when it is not known which rows they hold.
    fn pages<'file>(
        &self,
        shards: &Shards,
        shard: usize,
        group: &Group,
        chunk: &'file Chunk,
        flat: bool,
    ) -> Result<&'file [PageLocation], Trouble> {
        if let Some(pages) = chunk.pages.get() {
            return Ok(pages);
        }
        let mut found = None;
        if let Some((offset, len)) = chunk.index {
            let mut bytes = vec![0; len as usize];
            shards.read_at(shard, offset, &mut bytes).map_err(Trouble::Io)?;
            found = offset_index(&bytes).ok().filter(|pages| sound(pages, chunk, group.rows));
        }
        let pages = match found {
            Some(pages) => pages,
            None => hop(shards, shard, chunk, group.rows, flat)?,
        };
        Ok(chunk.pages.get_or_init(|| pages.into_boxed_slice()))
    }
}

/// The type with its binary parts as views, which are decoded without copying; and its texts, if that is asked: one
/// that comes again and again is in memory once.
fn as_views(kind: &DataType, texts: bool) -> DataType {
    match kind {
        DataType::Binary | DataType::LargeBinary => DataType::BinaryView,
        DataType::Utf8 | DataType::LargeUtf8 if texts => DataType::Utf8View,
        DataType::Struct(fields) => {
            let view = |field: &Arc<Field>| {
                Arc::new(field.as_ref().clone().with_data_type(as_views(field.data_type(), texts)))
            };
            DataType::Struct(fields.iter().map(view).collect())
        }
        other => other.clone(),
    }
}

/// Whether page locations make sense: in order, inside the chunk, from row 0 on.
fn sound(pages: &[PageLocation], chunk: &Chunk, rows: u64) -> bool {
    let Some(first) = pages.first() else { return false };
    let end = chunk.start + chunk.len;
    first.first_row == 0
        && first.offset >= chunk.start
        && pages.windows(2).all(|pair| {
            pair[0].first_row <= pair[1].first_row
                && pair[0].offset + u64::from(pair[0].len) <= pair[1].offset
        })
        && pages.last().is_some_and(|last| last.first_row <= rows && last.offset + u64::from(last.len) <= end)
}

/// Learns page locations from the page headers. Empty if a page does not say how many rows it has.
fn hop(
    shards: &Shards,
    shard: usize,
    chunk: &Chunk,
    rows: u64,
    flat: bool,
) -> Result<Vec<PageLocation>, Trouble> {
    let mut pages = Vec::new();
    let (mut at, end) = (chunk.start, chunk.start + chunk.len);
    let mut row = 0;
    let mut bytes = Vec::new();
    while at < end && row < rows {
        let mut len = 512;
        let (header, header_len) = loop {
            bytes.resize(len.min((end - at) as usize), 0);
            shards.read_at(shard, at, &mut bytes).map_err(Trouble::Io)?;
            match page_header(&bytes) {
                Ok(found) => break found,
                // Statistics of long texts make long headers.
                Err(_) if bytes.len() == len && len < 1 << 20 => len *= 16,
                // The pages before it can be read.
                Err(_) => return Ok(ended(pages, at, row)),
            }
        };
        let page_len =
            u64::try_from(header.compressed).ok().and_then(|body| body.checked_add(header_len as u64));
        let Some(page_len) = page_len.filter(|&len| len <= end - at && len <= u64::from(u32::MAX)) else {
            return Ok(ended(pages, at, row));
        };
        if header.kind == super::thrift::DATA_PAGE || header.kind == super::thrift::DATA_PAGE_V2 {
            let Some(held) =
                header.rows.or(flat.then_some(header.values)).and_then(|held| u64::try_from(held).ok())
            else {
                return Ok(Vec::new());
            };
            pages.push(PageLocation { offset: at, len: page_len as u32, first_row: row });
            row = row.saturating_add(held);
            if pages.len() > MAX_PAGES {
                return Ok(ended(pages, at + page_len, row));
            }
        }
        at += page_len;
    }
    Ok(if row < rows { ended(pages, at, row) } else { pages })
}

/// Marks where the pages end before the rows do: a page that is not there, for the rows that are not.
fn ended(mut pages: Vec<PageLocation>, offset: u64, first_row: u64) -> Vec<PageLocation> {
    pages.push(PageLocation { offset, len: 0, first_row });
    pages
}

/// The numbers of the pages that hold some of `rows`.
fn wanted(pages: &[PageLocation], total: u64, rows: &Range<u64>) -> Range<usize> {
    let first = pages.partition_point(|page| page.first_row <= rows.start).saturating_sub(1);
    let end = pages.partition_point(|page| page.first_row < rows.end.min(total));
    first..end.max(first)
}

/// The pages of a chunk of which only some were fetched.
fn chosen(
    chunk: &Chunk,
    pages: &[PageLocation],
    wanted: Range<usize>,
    total: u64,
    flat: bool,
    fetched: &Fetched,
    allowance: &mut Allowance,
) -> Vec<Slot> {
    let mut slots = Vec::with_capacity(wanted.end + 1);
    if pages[0].offset > chunk.start {
        slots.push(match cut(&fetched.get(chunk.start..pages[0].offset), allowance) {
            Ok((header, body, _)) => Slot::Page { header, body, rows: None },
            Err(why) => Slot::Broken { why, rows: None },
        });
    }
    for (at, page) in pages.iter().enumerate().take(wanted.end) {
        let rows = pages.get(at + 1).map_or(total, |next| next.first_row) - page.first_row;
        if !wanted.contains(&at) {
            slots.push(Slot::Elsewhere { rows });
            continue;
        }
        slots.push(match cut(&fetched.get(page.offset..page.offset + u64::from(page.len)), allowance) {
            Ok((header, ..)) if flat && header.values as u64 != rows => {
                Slot::Broken { why: "the page index and the pages disagree", rows: Some(rows) }
            }
            Ok((header, body, _)) => Slot::Page { header, body, rows: Some(rows) },
            Err(why) => Slot::Broken { why, rows: Some(rows) },
        });
    }
    slots
}

/// What one call of the library decodes.
struct Unit<'layout> {
    rows: usize,
    chunks: HashMap<usize, (Vec<Slot>, Compression)>,
    empty: &'layout ParquetMetaData,
}

impl RowGroups for Unit<'_> {
    fn num_rows(&self) -> usize {
        self.rows
    }

    fn column_chunks(&self, leaf: usize) -> parquet::errors::Result<Box<dyn PageIterator>> {
        let (slots, codec) = &self.chunks[&leaf];
        Ok(Box::new(OneChunk(Some(Pages::new(slots.clone(), *codec)))))
    }

    fn row_groups(&self) -> Box<dyn Iterator<Item = &RowGroupMetaData> + '_> {
        Box::new(std::iter::empty())
    }

    fn metadata(&self) -> &ParquetMetaData {
        self.empty
    }
}

impl Unit<'_> {
    /// Decodes rows; where that fails, halves of them.
    fn decode(&self, view: &View, rows: Range<u64>, attempts: &mut u32, pieces: &mut Vec<Piece>) {
        *attempts = attempts.saturating_sub(1);
        let begun = pieces.len();
        let work = || self.attempt(view, rows.clone(), pieces);
        let result = match catch_unwind(AssertUnwindSafe(work)) {
            Ok(result) => result.map_err(|error| error.to_string()),
            Err(panic) => Err(panic_text(&*panic).to_owned()),
        };
        let Err(why) = result else { return };
        pieces.truncate(begun);
        let len = rows.end - rows.start;
        if len == 1 || *attempts == 0 {
            pieces.push(Piece::bad(rows, why));
            return;
        }
        let middle = rows.start + len / 2;
        self.decode(view, rows.start..middle, attempts, pieces);
        self.decode(view, middle..rows.end, attempts, pieces);
    }

    fn attempt(
        &self,
        view: &View,
        rows: Range<u64>,
        pieces: &mut Vec<Piece>,
    ) -> Result<(), Box<dyn std::error::Error>> {
        let (skip, select) = (rows.start as usize, (rows.end - rows.start) as usize);
        let selection = (select < self.rows)
            .then(|| RowSelection::from(vec![RowSelector::skip(skip), RowSelector::select(select)]));
        let reader =
            ParquetRecordBatchReader::try_new_with_row_groups(&view.levels, self, select, selection)?;
        let mut row = rows.start;
        for batch in reader {
            let batch = batch?;
            let columns: Option<Vec<ArrayRef>> =
                view.names.iter().map(|name| batch.column_by_name(name).cloned()).collect();
            let columns = columns.ok_or("a column is missing")?;
            let end = row + batch.num_rows() as u64;
            if end > rows.end {
                return Err("it holds more rows than it claims".into());
            }
            if end > row {
                pieces.push(Piece { rows: row..end, columns: Ok(columns) });
            }
            row = end;
        }
        if row < rows.end {
            // Rows that are claimed and not there: of a longer run only the end is bad.
            if row == rows.start {
                return Err("its pages end before this row".into());
            }
            pieces.push(Piece::bad(row..rows.end, "its pages end before this row".into()));
        }
        Ok(())
    }
}

/// Refuses units that no memory should be spent on.
pub(super) fn check_unit(name: &str, part: usize, bytes: u64) -> Result<(), SourceError> {
    if bytes <= MAX_UNIT_BYTES {
        return Ok(());
    }
    Err(SourceError::data(format!(
        "{name}: part {part} (a row group or record batch) unpacks to {} MiB, more than the {} MiB that are decoded at \
         once; write the file again with smaller row groups",
        bytes >> 20,
        MAX_UNIT_BYTES >> 20
    )))
}
