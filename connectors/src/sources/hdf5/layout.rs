//! Where a dataset's elements are: in its header, in one run of bytes, or chunk by chunk.
//!
//! This runs inside of the walls that [`meta`](super::meta) describes. The shape of the chunks and their number are
//! checked before any is looked up, and each chunk's range of bytes is held against the file's size.

use hdf5_reader::messages::HdfMessage;
use hdf5_reader::messages::filter_pipeline::FilterDescription;
use hdf5_reader::messages::layout::{ChunkIndexing, DataLayout};
use hdf5_reader::{Hdf5File, btree_v1, chunk_index, extensible_array, fixed_array};

use super::chunk::{ABSENT, Chunk, Chunked, Filter, MAX_SLAB};
use super::meta::{Dataset, Kind, Layout, text};
use crate::column::product;

/// More chunks than this in one dataset are refused.
pub(super) const MAX_CHUNKS: u64 = 4 << 20;

/// # Errors
/// A sentence without the dataset's name.
pub(super) fn find(
    file: &Hdf5File,
    dataset: &hdf5_reader::Dataset,
    described: &Dataset,
    size: u64,
) -> Result<Layout, String> {
    if let Kind::Unread(_) = described.kind {
        return Ok(described.layout.clone());
    }
    let superblock = file.superblock();
    let undefined = match superblock.offset_size {
        8.. => u64::MAX,
        bytes => (1 << (8 * bytes)) - 1,
    };
    let header = file.get_or_parse_header(dataset.address()).map_err(text)?;
    let said = Said::by(&header.messages)?;
    let row = described.row_bytes().ok_or("its rows are larger than 2^64 bytes")?;
    let bytes = described.shape.first().and_then(|rows| rows.checked_mul(row));
    let bytes = bytes.ok_or("it has no axis for the records, or is larger than 2^64 bytes")?;
    let never = || Ok(Layout::Unknown("it was never written".into()));
    match said.layout.ok_or("it has no layout")? {
        DataLayout::Compact { data } if data.len() as u64 >= bytes => Ok(Layout::Held(data.clone())),
        DataLayout::Compact { data } => {
            Err(format!("it has {} bytes in its header, and {bytes} are expected", data.len()))
        }
        DataLayout::Contiguous { address, .. } if *address == undefined => never(),
        DataLayout::Contiguous { address, .. } => {
            match range(*address, superblock.base_address, bytes, size) {
                Some(start) => Ok(Layout::Contiguous(start)),
                None => Err(format!(
                    "its {bytes} bytes from byte {address} on are not all in the file, which has {size}"
                )),
            }
        }
        DataLayout::Chunked { address, .. } if *address == undefined => never(),
        DataLayout::Chunked { address, dims, chunk_indexing, .. } => {
            let dims = dims.get(..dataset.shape().len()).ok_or("its chunks have fewer axes than it has")?;
            let chunked = unplaced(described, dims, &said)?;
            let raw = chunked.chunk_bytes();
            let mut placing = Placing { file, dataset, dims, size, raw, chunked };
            placing.all(*address, chunk_indexing.as_ref())?;
            Ok(Layout::Chunked(Box::new(placing.chunked)))
        }
    }
}

/// Where so many bytes begin, if they are all in the file.
fn range(address: u64, base: u64, bytes: u64, size: u64) -> Option<u64> {
    let start = address.checked_add(base)?;
    (start.checked_add(bytes)? <= size).then_some(start)
}

/// What a dataset's header says of where its elements are.
struct Said<'a> {
    layout: Option<&'a DataLayout>,
    filters: &'a [FilterDescription],
    fill: Option<&'a [u8]>,
}

impl<'a> Said<'a> {
    fn by(messages: &'a [HdfMessage]) -> Result<Self, String> {
        let mut said = Self { layout: None, filters: &[], fill: None };
        for message in messages {
            match message {
                HdfMessage::DataLayout(message) => said.layout = Some(&message.layout),
                HdfMessage::FilterPipeline(message) => said.filters = &message.filters,
                HdfMessage::FillValue(message) => said.fill = message.value.as_deref(),
                HdfMessage::ExternalFiles(_) => {
                    return Err("its data lies in other files, which are not read".into());
                }
                _ => {}
            }
        }
        Ok(said)
    }
}

/// How a dataset is cut into chunks, as if none of them had been written.
fn unplaced(described: &Dataset, dims: &[u32], said: &Said) -> Result<Chunked, String> {
    // The element's own axes are part of every chunk.
    let mut chunk: Vec<u64> = dims.iter().map(|&n| u64::from(n)).collect();
    chunk.extend(&described.shape[dims.len()..]);
    let shape = described.shape.clone();
    if chunk.contains(&0) || shape.contains(&0) {
        return Err(format!("its chunks of shape {chunk:?} of {shape:?} hold nothing"));
    }
    let grid: Vec<u64> = shape.iter().zip(&chunk).map(|(n, c)| n.div_ceil(*c)).collect();
    let count = product(&grid).filter(|&count| count <= MAX_CHUNKS).ok_or_else(|| {
        format!(
            "it has more than {MAX_CHUNKS} chunks (of shape {chunk:?}); store it again with larger chunks"
        )
    })?;
    let raw = product(&chunk).and_then(|n| n.checked_mul(described.element as u64));
    if raw.is_none_or(|raw| raw > MAX_SLAB || raw > u64::from(u32::MAX)) {
        return Err(format!(
            "its chunks of shape {chunk:?} are larger than {} MiB; store it again with smaller ones",
            MAX_SLAB >> 20
        ));
    }
    if said.filters.len() > 32 {
        return Err(format!("it has {} filters", said.filters.len()));
    }
    let known = |filter: &FilterDescription| {
        Filter::known(filter.id, filter.name.as_deref(), &filter.client_data, described.element)
    };
    let fill = said.fill.filter(|fill| fill.len() == described.element);
    let chunked = Chunked {
        filters: said.filters.iter().map(known).collect::<Result<_, _>>()?,
        fill: fill.map_or_else(|| vec![0; described.element], <[u8]>::to_vec),
        chunks: vec![Chunk { address: ABSENT, size: 0, mask: 0 }; count as usize],
        element: described.element,
        chunk,
        grid,
        shape,
    };
    let slab = chunked.row_bytes().checked_mul(chunked.slab_rows());
    if slab.is_none_or(|slab| slab > MAX_SLAB) {
        return Err(format!(
            "{} of its rows, which lie in the same chunks, take more than {} MiB; store it again with chunks of fewer \
             rows, such as chunks=(1, ...)",
            chunked.slab_rows(),
            MAX_SLAB >> 20
        ));
    }
    Ok(chunked)
}

/// Chunks, while the file's index of them is read.
struct Placing<'a> {
    file: &'a Hdf5File,
    dataset: &'a hdf5_reader::Dataset,
    /// Length of a chunk on each of the dataset's axes.
    dims: &'a [u32],
    /// The file's.
    size: u64,
    /// Bytes of a chunk, unpacked.
    raw: u64,
    chunked: Chunked,
}

impl Placing<'_> {
    /// Places all chunks of an index of any kind.
    fn all(&mut self, address: u64, indexing: Option<&ChunkIndexing>) -> Result<(), String> {
        let (file, dims, shape) = (self.file, self.dims, self.dataset.shape());
        let storage = file.storage();
        let (offset_size, length_size) = (file.superblock().offset_size, file.superblock().length_size);
        let entries = match indexing {
            None => return self.tree(address),
            Some(ChunkIndexing::SingleChunk { filtered_size, filters }) => {
                return self.one(address, *filtered_size, *filters, &vec![0; dims.len()]);
            }
            Some(ChunkIndexing::Implicit) => return self.in_order(address),
            Some(ChunkIndexing::FixedArray { .. }) => fixed_array::collect_fixed_array_chunk_entries_storage(
                storage,
                address,
                offset_size,
                length_size,
                shape,
                dims,
                None,
            ),
            Some(ChunkIndexing::ExtensibleArray { .. }) => {
                extensible_array::collect_extensible_array_chunk_entries_storage(
                    storage,
                    address,
                    offset_size,
                    length_size,
                    shape,
                    self.dataset.max_dims(),
                    dims,
                    None,
                )
            }
            Some(ChunkIndexing::BTreeV2) => chunk_index::collect_v2_chunk_entries_storage(
                storage,
                address,
                offset_size,
                length_size,
                dims.len() as u32,
                dims,
                None,
            ),
        };
        for entry in entries.map_err(text)? {
            if entry.offsets.len() != dims.len() {
                return Err("its index of chunks has other axes than it has".into());
            }
            self.one(entry.address, entry.size, entry.filter_mask, &entry.offsets)?;
        }
        Ok(())
    }

    /// Places the chunks of a B-tree of version 1.
    fn tree(&mut self, address: u64) -> Result<(), String> {
        let superblock = self.file.superblock();
        let leaves = btree_v1::collect_btree_v1_leaves_storage(
            self.file.storage(),
            address,
            superblock.offset_size,
            superblock.length_size,
            Some(self.dims.len() as u32),
            self.dims,
            None,
        );
        for (key, address) in leaves.map_err(text)? {
            let btree_v1::BTreeV1Key::RawData { chunk_size, filter_mask, offsets } = key else {
                return Err("its index of chunks is one of names".into());
            };
            if offsets.len() < self.dims.len() {
                return Err("its index of chunks has fewer axes than it has".into());
            }
            self.one(address, chunk_size.into(), filter_mask, &offsets)?;
        }
        Ok(())
    }

    /// Places chunks that lie one after the other, without an index.
    fn in_order(&mut self, address: u64) -> Result<(), String> {
        let shape = self.dataset.shape();
        let mut offsets = vec![0; self.dims.len()];
        for number in 0..self.chunked.chunks.len() as u64 {
            let mut rest = number;
            for axis in (0..self.dims.len()).rev() {
                let chunks = shape[axis].div_ceil(u64::from(self.dims[axis]));
                offsets[axis] = rest % chunks * u64::from(self.dims[axis]);
                rest /= chunks;
            }
            self.one(address.saturating_add(number * self.raw), self.raw, 0, &offsets)?;
        }
        Ok(())
    }

    /// Places the chunk whose first element has these offsets.
    fn one(&mut self, address: u64, stored: u64, mask: u32, offsets: &[u64]) -> Result<(), String> {
        let chunked = &mut self.chunked;
        let mut place = 0u64;
        for axis in 0..self.dims.len() {
            let (at, rest) = (offsets[axis] / chunked.chunk[axis], offsets[axis] % chunked.chunk[axis]);
            if rest != 0 {
                return Err(format!("a chunk lies across others, at {offsets:?}"));
            }
            if at >= chunked.grid[axis] {
                // What is left of a dataset that was made smaller.
                return Ok(());
            }
            place = place * chunked.grid[axis] + at;
        }
        let stored = if stored == 0 || chunked.filters.is_empty() { self.raw } else { stored };
        let start = range(address, self.file.superblock().base_address, stored, self.size);
        // No filter makes a chunk more than a little larger.
        let Some(start) = start.filter(|_| stored <= 2 * self.raw + (64 << 10)) else {
            return Err(format!(
                "the chunk at {offsets:?} ({stored} bytes from byte {address} on) is not in the file"
            ));
        };
        chunked.chunks[place as usize] = Chunk { address: start, size: stored as u32, mask };
        Ok(())
    }
}
