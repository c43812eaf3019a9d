//! Deflated members of npz files, unpacked once into the cache folder so that their rows can be read at random.
//!
//! The copy is named by a hash of where the member came from and which version of the file that was; it is written to a
//! temporary file and renamed, so it is there whole or not at all. The member's own name is never a path. It may not
//! grow past what its array header says, which in turn must be what the archive's directory says.

use std::fs;
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use flate2::{Crc, Decompress, FlushDecompress, Status};
use xxhash_rust::xxh3::xxh3_128;

use super::npy::{MAX_HEADER, Npy, NpyError};
use super::zip::{Member, ReadAt};
use crate::names::shown;
use crate::opening::{self, Counted, Step};
use crate::{CacheConfig, SourceError};

/// Bytes read and written at once.
const PIECE: usize = 1 << 20;

/// A piece that has not grown for so long belongs to nobody.
const ABANDONED: Duration = Duration::from_secs(600);

/// The cache's default limit.
const DEFAULT_LIMIT: u64 = 100_000_000_000;

/// The array header of a deflated member, from its first bytes.
///
/// # Errors
/// A sentence without the member's name.
pub(super) fn header(member: &Member, read: &ReadAt<'_>) -> Result<Npy, String> {
    let mut start = Vec::new();
    let mut wanted = 4096;
    loop {
        inflate(member, read, &mut |bytes| {
            start.extend_from_slice(bytes);
            start.len() < wanted
        })?;
        match Npy::parse(&start) {
            Ok(npy) => return Ok(npy),
            Err(NpyError::Short(needed)) if start.len() < needed && wanted < needed => {
                wanted = needed.min(MAX_HEADER + 12);
                start.clear();
            }
            Err(NpyError::Short(_)) => return Err("it ends within its header".into()),
            Err(NpyError::Wrong(why)) => return Err(why),
        }
    }
}

/// The unpacked copy of a member whose header has been read: made now, or found from an earlier time.
///
/// # Errors
/// [`SourceError`] that names the member and what to do.
pub(super) fn unpack(
    cache: &CacheConfig,
    identity: &str,
    what: &str,
    member: &Member,
    read: &ReadAt<'_>,
) -> Result<PathBuf, SourceError> {
    let folder = crate::bytes::cache::dir(cache)?.join("unpacked");
    let target = folder.join(format!("{:032x}.npy", xxh3_128(identity.as_bytes())));
    if fs::metadata(&target).is_ok_and(|meta| meta.is_file() && meta.len() == member.size) {
        return Ok(target);
    }
    let failed = |error: &io::Error| {
        SourceError::data(format!(
            "{what} is compressed and cannot be unpacked into {}: {error}; make room, set cache.dir to another folder, or \
             save the arrays with np.savez instead of np.savez_compressed",
            shown(&folder)
        ))
    };
    fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder).map_err(|error| failed(&error))?;
    let held = held(&folder).map_err(|error| failed(&error))?;
    let limit = cache.limit_bytes.unwrap_or(DEFAULT_LIMIT);
    if held.saturating_add(member.size) > limit {
        return Err(SourceError::data(format!(
            "{what} is compressed and needs {} bytes unpacked, and {} holds {held} of at most {limit} (cache.limit_bytes); \
             delete what is not needed there, raise the limit, or save the arrays with np.savez",
            member.size,
            shown(&folder)
        )));
    }
    tracing::info!("unpacking {what} ({} bytes) into {}, once", member.size, shown(&folder));
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let temporary = folder.join(format!("tmp-{}-{number}", std::process::id()));
    let result =
        write(&temporary, member, read).and_then(|()| fs::rename(&temporary, &target).map_err(Failure::Disk));
    result.map_err(|failure| {
        // Nothing to add to the first error when this fails, too.
        let _ = fs::remove_file(&temporary);
        match failure {
            Failure::Disk(error) => failed(&error),
            Failure::Member(why) => SourceError::data(format!("{what} cannot be unpacked: {why}")),
        }
    })?;
    Ok(target)
}

enum Failure {
    Disk(io::Error),
    Member(String),
}

fn write(temporary: &Path, member: &Member, read: &ReadAt<'_>) -> Result<(), Failure> {
    let file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(temporary);
    let mut file = BufWriter::with_capacity(PIECE, file.map_err(Failure::Disk)?);
    let (mut crc, mut size, mut failure) = (Crc::new(), 0u64, None);
    let step = Step::begin("unpacking arrays", Counted::Bytes, Some(member.size));
    let result = inflate(member, read, &mut |bytes| {
        if opening::check().is_err() {
            return false;
        }
        size += bytes.len() as u64;
        step.add(bytes.len() as u64);
        crc.update(bytes);
        if size > member.size {
            return false;
        }
        failure = file.write_all(bytes).err();
        failure.is_none()
    });
    if let Some(error) = failure {
        return Err(Failure::Disk(error));
    }
    result.map_err(Failure::Member)?;
    opening::check().map_err(|cancelled| Failure::Member(cancelled.to_string()))?;
    if size != member.size || crc.sum() != member.crc32 {
        return Err(Failure::Member(format!(
            "its bytes are not those that the archive's directory promises ({} of them, with another checksum or number)",
            member.size
        )));
    }
    file.into_inner().map_err(|error| Failure::Disk(error.into_error()))?;
    Ok(())
}

/// Bytes of all copies. Deletes pieces that nobody writes any more: whoever did was killed.
fn held(folder: &Path) -> io::Result<u64> {
    let mut total = 0;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        // A copy that another process has just renamed or removed is not there to be counted.
        let Ok(meta) = entry.metadata() else { continue };
        let is_temporary = entry.file_name().to_string_lossy().starts_with("tmp-");
        let age = meta.modified().ok().and_then(|time| time.elapsed().ok());
        let abandoned = is_temporary && age.is_some_and(|age| age > ABANDONED);
        if !(abandoned && fs::remove_file(entry.path()).is_ok()) {
            total += meta.len();
        }
    }
    Ok(total)
}

/// Hands a member's unpacked bytes over piece by piece, until `take` says no.
fn inflate(member: &Member, read: &ReadAt<'_>, take: &mut dyn FnMut(&[u8]) -> bool) -> Result<(), String> {
    let damaged = || "its compressed data is damaged".to_owned();
    let mut inflater = Decompress::new(false);
    let mut packed = vec![0; PIECE.min(member.packed as usize).max(1)];
    let mut out = vec![0; 256 << 10];
    let mut fetched = 0;
    while fetched < member.packed {
        let len = packed.len().min((member.packed - fetched) as usize);
        read(member.offset + fetched, &mut packed[..len]).map_err(|error| error.to_string())?;
        fetched += len as u64;
        let mut rest = &packed[..len];
        loop {
            let (consumed, made) = (inflater.total_in(), inflater.total_out());
            let status = inflater.decompress(rest, &mut out, FlushDecompress::None).map_err(|_| damaged())?;
            let (consumed, made) = (inflater.total_in() - consumed, (inflater.total_out() - made) as usize);
            rest = &rest[consumed as usize..];
            if made > 0 && !take(&out[..made]) {
                return Ok(());
            }
            match status {
                Status::StreamEnd => return Ok(()),
                // No progress on this input: it wants more.
                _ if consumed == 0 && made == 0 => break,
                _ if rest.is_empty() && made < out.len() => break,
                _ => {}
            }
        }
        if !rest.is_empty() {
            return Err(damaged());
        }
    }
    Err("its compressed data is cut off".into())
}

#[cfg(test)]
mod tests {
    use flate2::write::DeflateEncoder;

    use super::super::zip::Method;
    use super::*;

    fn member(bytes: &[u8]) -> (Member, Vec<u8>) {
        let mut encoder = DeflateEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        let packed = encoder.finish().unwrap();
        let mut crc = Crc::new();
        crc.update(bytes);
        let member = Member {
            name: "../../x.npy".into(),
            method: Method::Deflated,
            crc32: crc.sum(),
            packed: packed.len() as u64,
            size: bytes.len() as u64,
            offset: 0,
        };
        (member, packed)
    }

    fn run(cache: &CacheConfig, member: &Member, packed: &[u8]) -> Result<PathBuf, SourceError> {
        unpack(cache, &format!("{member:?}"), "x", member, &|offset, buffer| {
            buffer.copy_from_slice(&packed[offset as usize..][..buffer.len()]);
            Ok(())
        })
    }

    #[test]
    fn a_member_is_unpacked_once_and_bombs_and_damage_are_refused() {
        let root = tempfile::tempdir().unwrap();
        let mut cache = CacheConfig { dir: Some(root.path().to_owned()), limit_bytes: Some(20 << 20) };
        let bytes: Vec<u8> = (0..3u32 << 20).flat_map(|i| (i / 5).to_le_bytes()).collect();
        let (good, packed) = member(&bytes);
        let path = run(&cache, &good, &packed).unwrap();
        assert!(path.starts_with(root.path()) && fs::read(&path).unwrap() == bytes);
        // Found again without reading the archive.
        assert_eq!(run(&cache, &good, &[]).unwrap(), path);
        let error =
            run(&cache, &Member { size: good.size - 1, ..good.clone() }, &packed).unwrap_err().to_string();
        assert!(error.contains("limit_bytes"), "12 MiB are held, 12 more are asked for: {error}");
        cache.limit_bytes = None;
        for wrong in [
            Member { size: good.size - 1, ..good.clone() },
            Member { size: good.size + 1, ..good.clone() },
            Member { crc32: good.crc32 ^ 1, ..good.clone() },
            Member { packed: good.packed - 9, ..good.clone() },
        ] {
            run(&cache, &wrong, &packed).unwrap_err();
        }
        let mut damaged = packed.clone();
        damaged[packed.len() / 2..][..64].fill(0xff);
        run(&cache, &Member { crc32: 1, ..good }, &damaged).unwrap_err();
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "nothing is left behind");
        // What somebody who was killed left is deleted once it is old; what is being written is not.
        let piece = |name: &str, age: u64| {
            let file = fs::File::create(path.with_file_name(name)).unwrap();
            file.set_modified(std::time::SystemTime::now() - Duration::from_secs(age)).unwrap();
        };
        piece("tmp-1-0", 3600);
        piece("tmp-2-0", 0);
        held(path.parent().unwrap()).unwrap();
        assert!(!path.with_file_name("tmp-1-0").exists() && path.with_file_name("tmp-2-0").exists());
    }
}
