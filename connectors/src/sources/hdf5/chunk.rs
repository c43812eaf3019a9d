//! Chunked storage: where the chunks of a dataset lie, and how the rows of one are unpacked.
//!
//! ```text
//!  first axis ─▶  slab 0 │ chunk 0,0 │ chunk 0,1 │ …     a slab: all chunks with the same place on the first axis.
//!                 slab 1 │ chunk 1,0 │ chunk 1,1 │ …     It is what is unpacked, and kept, at once: whole rows.
//! ```
//!
//! A chunk's filters are undone in memory of the size that the chunk has unpacked, known from the dataset's shape; a
//! stream that would grow past it is damaged. Deflate, shuffle, Fletcher-32 and LZF are known.

use flate2::{Decompress, FlushDecompress, Status};
use hdf5_reader::checksum::fletcher32;

/// A slab larger than this is refused when the source is opened.
pub(super) const MAX_SLAB: u64 = 256 << 20;

/// Marks a chunk that was never written: its elements are the fill value.
pub(super) const ABSENT: u64 = u64::MAX;

/// Where one chunk lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Chunk {
    /// First byte in the file, or [`ABSENT`].
    pub address: u64,
    /// Bytes as stored.
    pub size: u32,
    /// Bit i is set when filter i was not applied.
    pub mask: u32,
}

/// A step of the pipeline that made a chunk's stored bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Filter {
    Deflate,
    /// The first bytes of all elements of this size, then the second bytes, …
    Shuffle(usize),
    Fletcher32,
    Lzf,
}

impl Filter {
    /// The filter of an HDF5 number, or its name for the refusal.
    pub(super) fn known(id: u16, name: Option<&str>, values: &[u32], element: usize) -> Result<Self, String> {
        match id {
            1 => Ok(Self::Deflate),
            2 => Ok(Self::Shuffle(values.first().map_or(element, |&size| size as usize).max(1))),
            3 => Ok(Self::Fletcher32),
            32000 => Ok(Self::Lzf),
            _ => {
                let known = match id {
                    4 => "szip",
                    5 => "nbit",
                    6 => "scaleoffset",
                    32001 => "blosc",
                    32004 => "lz4",
                    32008 => "bitshuffle",
                    32015 => "zstd",
                    _ => name.unwrap_or("unknown"),
                };
                Err(format!(
                    "it is compressed with the filter {known} (number {id}), and only gzip, lzf, shuffle and fletcher32 are \
                     read; store it again with one of these, for example with h5repack -f GZIP=1"
                ))
            }
        }
    }
}

/// How a dataset is cut into chunks, and where they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Chunked {
    /// Length of each axis of the dataset, then of an element's own axes (as one).
    pub shape: Vec<u64>,
    /// Length of a chunk on each axis; it may hang over the dataset's edge.
    pub chunk: Vec<u64>,
    /// Chunks on each axis.
    pub grid: Vec<u64>,
    /// Bytes of an element.
    pub element: usize,
    /// All chunks in C order of the grid.
    pub chunks: Vec<Chunk>,
    pub filters: Vec<Filter>,
    /// One element.
    pub fill: Vec<u8>,
}

impl Chunked {
    /// Rows of a whole slab.
    pub(super) fn slab_rows(&self) -> u64 {
        self.chunk[0].min(self.shape[0])
    }

    /// Bytes of one row.
    pub(super) fn row_bytes(&self) -> u64 {
        self.shape[1..].iter().product::<u64>() * self.element as u64
    }

    /// Bytes of one chunk, unpacked.
    pub(super) fn chunk_bytes(&self) -> u64 {
        self.chunk.iter().product::<u64>() * self.element as u64
    }

    /// Chunks of one slab.
    pub(super) fn slab_chunks(&self) -> u64 {
        self.grid[1..].iter().product()
    }

    /// Where a row lies in the file, if it lies there as it is.
    pub(super) fn direct(&self, row: u64) -> Option<u64> {
        if !self.filters.is_empty() || self.shape[1..] != self.chunk[1..] {
            return None;
        }
        let chunk = self.chunks[(row / self.chunk[0]) as usize];
        (chunk.address != ABSENT).then(|| chunk.address + row % self.chunk[0] * self.row_bytes())
    }

    /// Unpacks a slab; `read` gives a chunk's stored bytes.
    ///
    /// # Errors
    /// `read`'s, or through `bad` what is wrong with the bytes.
    pub(super) fn slab<E>(
        &self,
        slab: u64,
        bad: impl Fn(String) -> E,
        mut read: impl FnMut(Chunk) -> Result<Vec<u8>, E>,
    ) -> Result<Vec<u8>, E> {
        let first = slab * self.chunk[0];
        let rows = self.chunk[0].min(self.shape[0] - first);
        let count = self.slab_chunks();
        let chunks = &self.chunks[(slab * count) as usize..][..count as usize];
        let len = (rows * self.row_bytes()) as usize;
        // Memory that is zero to begin with costs nothing until it is written.
        let filled = self.fill.iter().any(|&b| b != 0) && chunks.iter().any(|chunk| chunk.address == ABSENT);
        let mut out = if filled { self.fill.repeat(len / self.element) } else { vec![0; len] };
        let mut corner = vec![0; self.shape.len()];
        for number in 0..count {
            let mut rest = number;
            for axis in (1..self.shape.len()).rev() {
                corner[axis] = rest % self.grid[axis] * self.chunk[axis];
                rest /= self.grid[axis];
            }
            let chunk = chunks[number as usize];
            if chunk.address == ABSENT {
                continue;
            }
            let bytes = self.unpack(chunk, read(chunk)?).map_err(|why| {
                bad(format!("the chunk at byte {} of the file is damaged: {why}", chunk.address))
            })?;
            self.place(&bytes, rows, &corner, &mut out);
        }
        Ok(out)
    }

    /// Undoes the filters, last to first.
    fn unpack(&self, chunk: Chunk, mut bytes: Vec<u8>) -> Result<Vec<u8>, String> {
        let whole = self.chunk_bytes() as usize;
        // A checksum may be inside of a compressed stream.
        let limit = whole + 4 * self.filters.len();
        for (at, filter) in self.filters.iter().enumerate().rev() {
            if chunk.mask >> at & 1 == 1 {
                continue;
            }
            bytes = match *filter {
                Filter::Deflate => inflate(&bytes, limit)?,
                Filter::Lzf => lzf(&bytes, limit).ok_or("its lzf stream is damaged")?,
                Filter::Shuffle(size) => unshuffle(&bytes, size),
                Filter::Fletcher32 => {
                    let (body, sum) =
                        bytes.split_last_chunk::<4>().ok_or("it is shorter than its checksum")?;
                    if fletcher32(body) != u32::from_le_bytes(*sum) {
                        return Err("its checksum (fletcher32) does not match".into());
                    }
                    body.to_vec()
                }
            };
        }
        if bytes.len() == whole {
            return Ok(bytes);
        }
        Err(format!("it has {} bytes unpacked, and {whole} are expected", bytes.len()))
    }

    /// Copies a chunk's rows to their place in the slab; what hangs over the dataset's edge is left out.
    fn place(&self, chunk: &[u8], rows: u64, corner: &[u64], out: &mut [u8]) {
        let last = self.shape.len() - 1;
        if last == 0 || (self.chunk[1..] == self.shape[1..]) {
            let len = out.len();
            out.copy_from_slice(&chunk[..len]);
            return;
        }
        // Elements that lie in the dataset, on each axis; runs along the last axis are copied whole.
        let inside: Vec<u64> = (0..=last)
            .map(|axis| if axis == 0 { rows } else { self.chunk[axis].min(self.shape[axis] - corner[axis]) })
            .collect();
        let run = inside[last] as usize * self.element;
        let mut at = vec![0u64; last];
        loop {
            let (mut from, mut to) = (0, 0);
            for axis in 0..last {
                from = from * self.chunk[axis] + at[axis];
                let corner = if axis == 0 { 0 } else { corner[axis] };
                to = to * if axis == 0 { rows } else { self.shape[axis] } + corner + at[axis];
            }
            let from = (from * self.chunk[last]) as usize * self.element;
            let to = (to * self.shape[last] + corner[last]) as usize * self.element;
            out[to..to + run].copy_from_slice(&chunk[from..from + run]);
            let Some(axis) = (0..last).rev().find(|&axis| at[axis] + 1 < inside[axis]) else { return };
            at[axis] += 1;
            at[axis + 1..].fill(0);
        }
    }
}

fn inflate(packed: &[u8], limit: usize) -> Result<Vec<u8>, String> {
    let mut out = Vec::with_capacity(limit + 1);
    let mut inflater = Decompress::new(true);
    match inflater.decompress_vec(packed, &mut out, FlushDecompress::Finish) {
        Ok(Status::StreamEnd) if out.len() <= limit => Ok(out),
        Ok(Status::StreamEnd) => Err("its gzip stream is longer than a chunk".into()),
        Ok(_) if out.len() > limit => Err("its gzip stream is longer than a chunk".into()),
        Ok(_) => Err("its gzip stream is cut off".into()),
        Err(_) => Err("its gzip stream is damaged".into()),
    }
}

fn unshuffle(bytes: &[u8], size: usize) -> Vec<u8> {
    let count = bytes.len() / size;
    if size <= 1 || count <= 1 {
        return bytes.to_vec();
    }
    let mut out = vec![0; bytes.len()];
    let (planes, rest) = bytes.split_at(count * size);
    for (byte, plane) in planes.chunks_exact(count).enumerate() {
        out[byte..].iter_mut().step_by(size).zip(plane).for_each(|(to, from)| *to = *from);
    }
    out[count * size..].copy_from_slice(rest);
    out
}

/// `000LLLLL`: L + 1 bytes as they are. `LLLooooo oooooooo`: L + 2 bytes from o + 1 back; L = 7 adds a byte to L.
fn lzf(packed: &[u8], limit: usize) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(limit);
    let mut rest = packed.iter();
    while let Some(&control) = rest.next() {
        let control = usize::from(control);
        if control < 32 {
            let (literal, after) = rest.as_slice().split_at_checked(control + 1)?;
            out.extend_from_slice(literal);
            rest = after.iter();
        } else {
            let mut len = control >> 5;
            if len == 7 {
                len += usize::from(*rest.next()?);
            }
            let back = (control & 0x1f) << 8 | usize::from(*rest.next()?);
            let start = out.len().checked_sub(back + 1)?;
            for at in start..start + len + 2 {
                out.push(out[at]);
            }
        }
        if out.len() > limit {
            return None;
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn chunked(shape: &[u64], chunk: &[u64], filters: Vec<Filter>) -> Chunked {
        let grid: Vec<u64> = shape.iter().zip(chunk).map(|(n, c)| n.div_ceil(*c)).collect();
        let count: u64 = grid.iter().product();
        let chunks = (0..count).map(|n| Chunk { address: n, size: 0, mask: 0 }).collect();
        Chunked {
            shape: shape.to_vec(),
            chunk: chunk.to_vec(),
            grid,
            element: 2,
            chunks,
            filters,
            fill: vec![9, 9],
        }
    }

    /// The bytes of chunk `number` of a dataset whose element number n is n as u16.
    fn pack(dataset: &Chunked, number: u64) -> Vec<u8> {
        let (mut rest, mut corner) = (number, vec![0; dataset.shape.len()]);
        for axis in (0..corner.len()).rev() {
            corner[axis] = rest % dataset.grid[axis] * dataset.chunk[axis];
            rest /= dataset.grid[axis];
        }
        let count: u64 = dataset.chunk.iter().product();
        let element = |mut n: u64| {
            let mut place = vec![0; corner.len()];
            for axis in (0..corner.len()).rev() {
                place[axis] = corner[axis] + n % dataset.chunk[axis];
                n /= dataset.chunk[axis];
            }
            if place.iter().zip(&dataset.shape).any(|(at, n)| at >= n) {
                return [0xee; 2];
            }
            let linear = place.iter().zip(&dataset.shape).fold(0, |sum, (at, n)| sum * n + at);
            (linear as u16).to_le_bytes()
        };
        (0..count).flat_map(element).collect()
    }

    proptest! {
        #[test]
        fn rows_come_out_of_chunks_of_any_shape(
            axes in prop::collection::vec((1u64..9, 1u64..12), 1..4),
            shuffled: bool,
        ) {
            let shape: Vec<u64> = axes.iter().map(|(n, _)| *n).collect();
            let chunk: Vec<u64> = axes.iter().map(|(_, c)| *c).collect();
            let filters = if shuffled { vec![Filter::Shuffle(2), Filter::Deflate] } else { vec![] };
            let dataset = chunked(&shape, &chunk, filters);
            let read = |chunk: Chunk| {
                let bytes = pack(&dataset, chunk.address);
                if !shuffled {
                    return Ok(bytes);
                }
                let planes: Vec<u8> =
                    (0..2).flat_map(|byte| bytes.iter().skip(byte).step_by(2).copied()).collect();
                let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
                std::io::Write::write_all(&mut encoder, &planes).unwrap();
                Ok(encoder.finish().unwrap())
            };
            let mut all: Vec<u8> = Vec::new();
            for slab in 0..dataset.grid[0] {
                all.extend(dataset.slab::<String>(slab, |why| why, read).unwrap());
            }
            let count: u64 = shape.iter().product();
            let expected: Vec<u8> = (0..count).flat_map(|n| (n as u16).to_le_bytes()).collect();
            prop_assert_eq!(all, expected);
        }

        #[test]
        fn no_stream_can_panic_or_outgrow_its_chunk(bytes in prop::collection::vec(any::<u8>(), 0..300), limit in 0usize..500) {
            prop_assert!(lzf(&bytes, limit).is_none_or(|out| out.len() <= limit));
            prop_assert!(inflate(&bytes, limit).is_ok_and(|out| out.len() <= limit) || inflate(&bytes, limit).is_err());
            unshuffle(&bytes, limit.max(1));
        }
    }

    #[test]
    fn a_damaged_chunk_is_named_and_an_absent_one_is_the_fill_value() {
        let mut dataset = chunked(&[4, 2], &[2, 2], vec![Filter::Deflate, Filter::Fletcher32]);
        let error = dataset.slab::<String>(1, |why| why, |_| Ok(vec![1, 2, 3, 4, 5])).unwrap_err();
        assert_eq!(
            error,
            "the chunk at byte 1 of the file is damaged: its checksum (fletcher32) does not match"
        );
        dataset.filters = vec![];
        let error = dataset.slab::<String>(0, |why| why, |_| Ok(vec![0; 7])).unwrap_err();
        assert!(error.contains("7 bytes unpacked, and 8 are expected"), "{error}");
        dataset.chunks[0].address = ABSENT;
        assert_eq!(dataset.slab::<String>(0, |why| why, |_| unreachable!()), Ok(vec![9; 8]));
        assert_eq!((dataset.direct(0), dataset.direct(3)), (None, Some(1 + 4)));
    }

    #[test]
    fn lzf_streams_are_read_as_libhdf5_writes_them() {
        // "abcabcabcabcz": three letters, nine from three back, one letter.
        assert_eq!(
            lzf(&[2, b'a', b'b', b'c', 0xe0, 0, 2, 0, b'z'], 13).as_deref(),
            Some(&b"abcabcabcabcz"[..])
        );
        assert_eq!(lzf(&[2, b'a', b'b', b'c', 0xe0, 0, 2, 0, b'z'], 12), None);
        assert_eq!(lzf(&[0x20, 0], 100), None, "back past the start");
    }
}
