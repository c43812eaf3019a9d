//! One shard being written: a temporary file, its checksum, and the rename that makes it one.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use fuelrail_connectors::{ElementType, FieldSpec, shown};
use xxhash_rust::xxh3::{Xxh3, xxh3_128};

use crate::cli::Failure;

/// Everything in a tar file is a multiple of this.
const BLOCK: usize = 512;

/// Bytes of a member's name.
pub(super) const MAX_NAME: usize = 100;

/// Sizes up to here are written in octal, larger ones in base 256.
const OCTAL: u64 = 1 << 33;

/// Bytes of a member with its header and padding.
pub(super) fn member_bytes(len: usize) -> u64 {
    (BLOCK + len.next_multiple_of(BLOCK)) as u64
}

/// A shard that is not whole yet.
pub(super) struct ShardWriter {
    folder: PathBuf,
    name: String,
    temporary: PathBuf,
    file: BufWriter<File>,
    hash: Xxh3,
    bytes: u64,
    records: u64,
}

/// A whole shard.
pub(super) struct Done {
    pub name: String,
    pub records: u64,
    pub bytes: u64,
    pub xxh3: String,
    pub index_xxh3: String,
}

impl ShardWriter {
    pub fn create(folder: &Path, name: &str) -> Result<Self, Failure> {
        let temporary = folder.join(format!("{name}.tmp"));
        let file = File::create(&temporary).map_err(|error| format!("{}: {error}", shown(&temporary)))?;
        Ok(Self {
            folder: folder.to_owned(),
            name: name.to_owned(),
            temporary,
            file: BufWriter::with_capacity(1 << 20, file),
            hash: Xxh3::new(),
            bytes: 0,
            records: 0,
        })
    }

    /// Bytes written so far.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// A record is whole.
    pub fn record(&mut self) {
        self.records += 1;
    }

    /// Adds a member.
    pub fn member(&mut self, name: &str, data: &[u8]) -> Result<(), Failure> {
        self.put(&header(name, data.len() as u64))?;
        self.put(data)?;
        let padding = data.len().next_multiple_of(BLOCK) - data.len();
        self.put(&[0; BLOCK][..padding])
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.hash.update(bytes);
        self.bytes += bytes.len() as u64;
        self.file.write_all(bytes).map_err(|error| format!("{}: {error}", shown(&self.temporary)).into())
    }

    /// Ends the shard, makes its index by `index`, and gives both their names once they are on the disk.
    pub fn finish(mut self, index: impl Fn(&Path) -> Result<Vec<u8>, Failure>) -> Result<Done, Failure> {
        let result = self.end(index);
        if result.is_err() {
            self.discard();
        }
        result
    }

    fn end(&mut self, index: impl Fn(&Path) -> Result<Vec<u8>, Failure>) -> Result<Done, Failure> {
        self.put(&[0; 2 * BLOCK])?;
        let failed = |error: std::io::Error| format!("{}: {error}", shown(&self.temporary));
        self.file.flush().map_err(failed)?;
        self.file.get_ref().sync_all().map_err(failed)?;
        let index = index(&self.temporary)?;
        // The index first: one without its shard is harmless, a shard without it costs a look at all its headers.
        write_whole(&self.folder, &format!("{}.idx", self.name), &index)?;
        fs::rename(&self.temporary, self.folder.join(&self.name)).map_err(failed)?;
        sync_folder(&self.folder)?;
        Ok(Done {
            name: self.name.clone(),
            records: self.records,
            bytes: self.bytes,
            xxh3: format!("{:032x}", self.hash.digest128()),
            index_xxh3: format!("{:032x}", xxh3_128(&index)),
        })
    }

    /// Leaves nothing behind.
    pub fn discard(self) {
        // What cannot be deleted now is deleted by the next run.
        let _ = fs::remove_file(&self.temporary);
    }
}

/// Writes a file so that there is the old one, the new one or none, whatever crashes.
pub(super) fn write_whole(folder: &Path, name: &str, bytes: &[u8]) -> Result<(), Failure> {
    let temporary = folder.join(format!("{name}.tmp"));
    let write = || {
        let mut file = File::create(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, folder.join(name))
    };
    write().map_err(|error: std::io::Error| {
        // Nothing to add to the first error when this fails, too.
        let _ = fs::remove_file(&temporary);
        format!("{}: {error}", shown(&folder.join(name)))
    })?;
    sync_folder(folder)
}

/// Makes renames last.
fn sync_folder(folder: &Path) -> Result<(), Failure> {
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(|error| format!("{}: {error}", shown(&folder)).into())
}

/// A ustar header: no times, no owners, so that the same members are the same bytes.
fn header(name: &str, size: u64) -> [u8; BLOCK] {
    let mut header = [0; BLOCK];
    header[..name.len()].copy_from_slice(name.as_bytes());
    header[100..108].copy_from_slice(b"0000644\0");
    header[108..116].copy_from_slice(b"0000000\0");
    header[116..124].copy_from_slice(b"0000000\0");
    if size < OCTAL {
        header[124..136].copy_from_slice(format!("{size:011o}\0").as_bytes());
    } else {
        header[124] = 0x80;
        header[128..136].copy_from_slice(&size.to_be_bytes());
    }
    header[136..148].copy_from_slice(b"00000000000\0");
    header[148..156].fill(b' ');
    header[156] = b'0';
    header[257..265].copy_from_slice(b"ustar\x0000");
    let sum: u32 = header.iter().map(|&b| u32::from(b)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    header
}

/// A value as an npy file, version 1.
pub(super) fn npy(field: &FieldSpec, value: &[u8]) -> Vec<u8> {
    let descr = match field.dtype {
        ElementType::Bool => "|b1",
        ElementType::U8 => "|u1",
        ElementType::I8 => "|i1",
        ElementType::U16 => "<u2",
        ElementType::I16 => "<i2",
        ElementType::U32 => "<u4",
        ElementType::I32 => "<i4",
        ElementType::U64 => "<u8",
        ElementType::I64 => "<i8",
        ElementType::F16 => "<f2",
        ElementType::F32 => "<f4",
        ElementType::F64 => "<f8",
    };
    // As Python writes tuples: a comma behind the only one, too.
    let shape: String = field.shape.iter().map(|n| format!("{n}, ")).collect();
    let shape = if field.shape.len() == 1 { shape.trim_end() } else { shape.trim_end_matches(", ") };
    let header = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({shape}), }}");
    // Padded so that the numbers begin at a multiple of 64.
    let len = (10 + header.len() + 1).next_multiple_of(64) - 10;
    let header = format!("{header:<width$}\n", width = len - 1);
    [b"\x93NUMPY\x01\0", &(len as u16).to_le_bytes()[..], header.as_bytes(), value].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_one_of_ustar() {
        let plain = header("a.jpg", 300);
        assert_eq!(&plain[124..136], b"00000000454\0");
        let sum: u32 = plain
            .iter()
            .enumerate()
            .map(|(at, &b)| u32::from(if (148..156).contains(&at) { b' ' } else { b }))
            .sum();
        assert_eq!(&plain[148..155], format!("{sum:06o}\0").as_bytes());
        assert_eq!(header("a.jpg", OCTAL)[124..136], [0x80, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0]);
        assert_eq!((member_bytes(0), member_bytes(1), member_bytes(512)), (512, 1024, 1024));
    }

    #[test]
    fn an_npy_file_has_pythons_tuples() {
        let text = |shape: &[u64]| {
            let field = FieldSpec { name: "x".into(), dtype: ElementType::F32, shape: shape.to_vec() };
            let bytes = npy(&field, b"data");
            assert_eq!((bytes.len() - 4) % 64, 0);
            String::from_utf8_lossy(&bytes[10..]).into_owned()
        };
        assert!(text(&[]).contains("'shape': (), }"));
        assert!(text(&[3]).contains("'shape': (3,), }"));
        assert!(text(&[2, 3]).contains("'shape': (2, 3), }"));
    }
}
