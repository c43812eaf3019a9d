//! Blocks of remote objects: files from which a part can be read and verified without reading all of it.
//!
//! ```text
//!  "frblock1" │ length u64 │ object u128 │ block number u32 │ chunks u32 │ hash u128 │ a hash (u64) per chunk │ bytes …
//!                                        the hash is of all of the header but itself
//! ```
//!
//! A chunk is 64 KiB, so a record of 100 KB costs three chunks and not the whole block of some MiB.

use std::fs;
use std::os::unix::fs::FileExt;

use xxhash_rust::xxh3::{xxh3_64, xxh3_128};

use super::{Cache, ENDING, touch};

const MAGIC: &[u8; 8] = b"frblock1";
const FIXED: usize = 56;
const CHUNK: usize = 64 << 10;

/// Chunks read from the file at once, which bounds the memory of a read.
const CHUNKS_AT_ONCE: usize = 16;

/// A block: the hash of everything that makes an object's bytes what they are (address, version, size), and its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct BlockId {
    pub object: u128,
    pub number: u32,
}

impl BlockId {
    fn name(self) -> String {
        // A folder per first byte: a data set of small objects has a million blocks.
        format!("{:02x}/{:032x}-{:08x}{ENDING}", self.object >> 120, self.object, self.number)
    }
}

impl Cache {
    /// Fills `out` from the place `offset` of a block of `len` bytes. False when the block is not there or anything
    /// about it is wrong; `out` then holds anything.
    pub(crate) fn read_block(&self, id: BlockId, len: usize, offset: usize, out: &mut [u8]) -> bool {
        debug_assert!(offset + out.len() <= len, "inside the block");
        self.try_read(id, len, offset, out).is_some()
    }

    fn try_read(&self, id: BlockId, len: usize, offset: usize, mut out: &mut [u8]) -> Option<()> {
        let file = fs::File::open(self.dir.join(id.name())).ok()?;
        let meta = file.metadata().ok()?;
        let mut header = vec![0; header_len(len)];
        if meta.len() != (header.len() + len) as u64 {
            return None;
        }
        file.read_exact_at(&mut header, 0).ok()?;
        if header[..FIXED] != fixed(id, len, &header[FIXED..]) {
            return None;
        }
        let mut at = offset;
        let mut pieces = Vec::new();
        while !out.is_empty() {
            let first = at / CHUNK;
            let last = (at + out.len()).div_ceil(CHUNK).min(first + CHUNKS_AT_ONCE);
            let (begin, end) = (first * CHUNK, (last * CHUNK).min(len));
            pieces.resize(end - begin, 0);
            file.read_exact_at(&mut pieces, (header.len() + begin) as u64).ok()?;
            let hashes = header[FIXED + first * 8..].chunks_exact(8);
            if !pieces.chunks(CHUNK).zip(hashes).all(|(chunk, hash)| xxh3_64(chunk).to_le_bytes() == hash) {
                return None;
            }
            let count = out.len().min(end - at);
            let (now, later) = out.split_at_mut(count);
            now.copy_from_slice(&pieces[at - begin..][..count]);
            (out, at) = (later, at + count);
        }
        touch(&file, &meta);
        Some(())
    }

    /// Keeps a block. False when it was not kept, for whatever reason.
    pub(crate) fn write_block(&self, id: BlockId, bytes: &[u8]) -> bool {
        let hashes: Vec<u8> = bytes.chunks(CHUNK).flat_map(|chunk| xxh3_64(chunk).to_le_bytes()).collect();
        self.keep(&id.name(), &[&fixed(id, bytes.len(), &hashes), &hashes, bytes])
    }
}

fn header_len(len: usize) -> usize {
    FIXED + len.div_ceil(CHUNK) * 8
}

/// The part of the header before the hashes of the chunks.
fn fixed(id: BlockId, len: usize, hashes: &[u8]) -> [u8; FIXED] {
    let mut header = Vec::with_capacity(FIXED + hashes.len());
    header.extend_from_slice(MAGIC);
    header.extend_from_slice(&(len as u64).to_le_bytes());
    header.extend_from_slice(&id.object.to_le_bytes());
    header.extend_from_slice(&id.number.to_le_bytes());
    header.extend_from_slice(&((hashes.len() / 8) as u32).to_le_bytes());
    let end = header.len();
    header.extend_from_slice(hashes);
    let hash = xxh3_128(&header);
    let mut fixed = [0; FIXED];
    fixed[..end].copy_from_slice(&header[..end]);
    fixed[end..].copy_from_slice(&hash.to_le_bytes());
    fixed
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::CacheConfig;
    use crate::bytes::cache::open;

    const ID: BlockId = BlockId { object: 0xabcd << 112, number: 7 };

    fn noise(len: usize) -> Vec<u8> {
        (0..len as u64).map(|at| xxh3_64(&at.to_le_bytes()) as u8).collect()
    }

    fn cache(dir: &std::path::Path) -> std::sync::Arc<Cache> {
        open(&CacheConfig { dir: Some(dir.to_owned()), limit_bytes: None }).unwrap()
    }

    #[test]
    fn any_damage_makes_a_block_absent_where_it_matters() {
        let root = tempfile::tempdir().unwrap();
        let cache = cache(root.path());
        let bytes = noise(3 * CHUNK + 5);
        let mut out = vec![0; bytes.len()];
        assert!(!cache.read_block(ID, bytes.len(), 0, &mut out));
        assert!(cache.write_block(ID, &bytes));
        assert!(cache.read_block(ID, bytes.len(), 0, &mut out) && out == bytes);
        assert!(!cache.read_block(ID, bytes.len() - 1, 0, &mut out[..9]), "of another length");
        let file = cache.dir.join(ID.name());
        let whole = std::fs::read(&file).unwrap();
        let header = header_len(bytes.len());
        for at in (0..header).chain([header, header + 2 * CHUNK, whole.len() - 1]) {
            let mut damaged = whole.clone();
            damaged[at] ^= 0x10;
            std::fs::write(&file, &damaged).unwrap();
            assert!(!cache.read_block(ID, bytes.len(), 0, &mut out), "byte {at}");
            let hit = cache.read_block(ID, bytes.len(), CHUNK + 3, &mut out[..10]);
            assert_eq!(hit, at >= header, "only the chunks read are looked at: byte {at}");
        }
        for end in [0, 10, header, whole.len() - 1] {
            std::fs::write(&file, &whole[..end]).unwrap();
            assert!(!cache.read_block(ID, bytes.len(), 0, &mut out[..1]), "cut at {end}");
        }
        // A file under the name of another block.
        let other = BlockId { number: 8, ..ID };
        std::fs::write(cache.dir.join(other.name()), &whole).unwrap();
        assert!(!cache.read_block(other, bytes.len(), 0, &mut out[..1]));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn any_part_of_a_block_is_read_as_written(len in 1usize..40 * CHUNK, from: prop::sample::Index, to: prop::sample::Index) {
            let root = tempfile::tempdir().unwrap();
            let cache = cache(root.path());
            let bytes = noise(len);
            prop_assert!(cache.write_block(ID, &bytes));
            let (a, b) = (from.index(len + 1), to.index(len + 1));
            let range = a.min(b)..a.max(b);
            let mut out = vec![0; range.len()];
            prop_assert!(cache.read_block(ID, len, range.start, &mut out));
            prop_assert!(out == bytes[range]);
        }
    }
}
