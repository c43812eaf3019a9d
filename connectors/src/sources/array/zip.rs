//! Which members a zip file has and where their bytes lie: as much of the format as npz files use.
//!
//! ```text
//!  local header | name | extra | data … ×n | central directory | [zip64 end, locator] | end
//! ```
//!
//! Read strictly: the end record is the last thing in the file, the directory lies before it, and every member's data
//! lies before the directory. Names are looked at and never used as paths. Self-extracting, split and encrypted
//! archives are refused.

use std::io;

/// More members than this are no data set in arrays.
const MAX_MEMBERS: u64 = 1 << 16;

/// Bytes of the directory: 64 Ki members with names and extras of a kilobyte.
const MAX_DIRECTORY: u64 = 64 << 20;

/// The end record with the longest comment.
const MAX_END: u64 = 22 + 0xffff;

/// Reads a range of the file.
pub(crate) type ReadAt<'read> = dyn Fn(u64, &mut [u8]) -> io::Result<()> + 'read;

/// One file in the archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Member {
    pub name: String,
    pub method: Method,
    pub crc32: u32,
    /// Bytes in the archive.
    pub packed: u64,
    /// Bytes of the member itself, as the directory says.
    pub size: u64,
    /// The first byte of its data.
    pub offset: u64,
}

/// How a member is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Method {
    Stored,
    Deflated,
    /// Encrypted, or with a method that numpy does not write.
    Other(&'static str),
}

/// The members in the directory's order, or what is wrong with the archive. Members that are no regular use to anybody
/// (folders) are left out.
///
/// # Errors
/// A sentence without the file's name.
pub(crate) fn members(size: u64, read: &ReadAt<'_>) -> Result<Vec<Member>, String> {
    let (directory, bytes, count) = find_directory(size, read)?;
    let mut rest = &load(read, directory, bytes)?[..];
    let mut members = Vec::new();
    for number in 0..count {
        let entry = Entry::parse(&mut rest)
            .ok_or_else(|| format!("entry {number} of its directory is damaged or cut off"))?;
        let Ok(name) = std::str::from_utf8(entry.name) else {
            return Err(format!("the name of entry {number} is not UTF-8"));
        };
        if name.ends_with('/') {
            continue;
        }
        let offset = data_offset(read, directory, &entry, name)?;
        if members.iter().any(|member: &Member| member.name == name) {
            return Err(format!("{name:?} is in it twice"));
        }
        members.push(Member {
            name: name.to_owned(),
            method: match (entry.flags & 0x41, entry.method) {
                (1.., _) => Method::Other("encrypted"),
                (_, 0) if entry.packed != entry.size => {
                    return Err(format!("{name:?} is stored with two sizes"));
                }
                (_, 0) => Method::Stored,
                (_, 8) => Method::Deflated,
                _ => Method::Other("packed by a method other than deflate"),
            },
            crc32: entry.crc32,
            packed: entry.packed,
            size: entry.size,
            offset,
        });
    }
    Ok(members)
}

/// Where the directory begins, its bytes, and its number of entries.
fn find_directory(size: u64, read: &ReadAt<'_>) -> Result<(u64, u64, u64), String> {
    let cut = "it has no end record: it is cut off or not a zip file";
    let start = size.saturating_sub(MAX_END);
    let tail = load(read, start, size - start)?;
    let is_end = |at: &usize| {
        let end = &tail[*at..];
        end.starts_with(b"PK\x05\x06") && end.len() == 22 + usize::from(u16_at(end, 20).unwrap_or(0))
    };
    let at = (0..tail.len().saturating_sub(21)).rev().find(is_end).ok_or(cut)?;
    let end = &tail[at..];
    let field16 = |at| u64::from(u16_at(end, at).expect("22 bytes"));
    let field32 = |at| u64::from(u32_at(end, at).expect("22 bytes"));
    if field16(4) != 0 && field16(4) != 0xffff {
        return Err("it is one part of a split archive".into());
    }
    let (mut count, mut bytes, mut directory) = (field16(10), field32(12), field32(16));
    let mut end_at = start + at as u64;
    if count == 0xffff || bytes == 0xffff_ffff || directory == 0xffff_ffff {
        let locator = match end_at.checked_sub(20) {
            Some(place) => load(read, place, 20)?,
            None => return Err(cut.into()),
        };
        if !locator.starts_with(b"PK\x06\x07") {
            return Err("its zip64 end record is missing".into());
        }
        let place = u64_at(&locator, 8).expect("20 bytes");
        if place.checked_add(56 + 20).is_none_or(|end| end > end_at) {
            return Err("its zip64 end record is outside of it".into());
        }
        let wide = load(read, place, 56)?;
        if !wide.starts_with(b"PK\x06\x06") {
            return Err("its zip64 end record is damaged".into());
        }
        let field = |at| u64_at(&wide, at).expect("56 bytes");
        (count, bytes, directory) = (field(32), field(40), field(48));
        end_at = place;
    }
    if directory.checked_add(bytes) != Some(end_at) {
        return Err("its directory does not end where its end record begins".into());
    }
    if count > MAX_MEMBERS || bytes > MAX_DIRECTORY {
        return Err(format!("it has {count} members in a directory of {bytes} bytes, which is too many"));
    }
    Ok((directory, bytes, count))
}

/// One entry of the directory.
struct Entry<'bytes> {
    flags: u16,
    method: u16,
    crc32: u32,
    packed: u64,
    size: u64,
    name: &'bytes [u8],
    header: u64,
}

impl<'bytes> Entry<'bytes> {
    fn parse(rest: &mut &'bytes [u8]) -> Option<Self> {
        let fixed = *rest;
        if !fixed.starts_with(b"PK\x01\x02") || fixed.len() < 46 {
            return None;
        }
        let length = |at| u16_at(fixed, at).map(usize::from);
        let (name_len, extra_len, comment_len) = (length(28)?, length(30)?, length(32)?);
        let name = fixed.get(46..46 + name_len)?;
        let extra = fixed.get(46 + name_len..46 + name_len + extra_len)?;
        *rest = fixed.get(46 + name_len + extra_len + comment_len..)?;
        let mut entry = Self {
            flags: u16_at(fixed, 8)?,
            method: u16_at(fixed, 10)?,
            crc32: u32_at(fixed, 16)?,
            packed: u32_at(fixed, 20)?.into(),
            size: u32_at(fixed, 24)?.into(),
            name,
            header: u32_at(fixed, 42)?.into(),
        };
        // The zip64 extra holds, in this order, exactly the values that did not fit.
        let mut wide = zip64(extra);
        for value in [&mut entry.size, &mut entry.packed, &mut entry.header] {
            if *value == 0xffff_ffff {
                let (now, later) = wide?.split_at_checked(8)?;
                *value = u64_at(now, 0)?;
                wide = Some(later);
            }
        }
        Some(entry)
    }
}

fn zip64(mut extra: &[u8]) -> Option<&[u8]> {
    loop {
        let (kind, len) = (u16_at(extra, 0)?, usize::from(u16_at(extra, 2)?));
        let body = extra.get(4..4 + len)?;
        if kind == 1 {
            return Some(body);
        }
        extra = &extra[4 + len..];
    }
}

/// Where a member's data begins: after its local header, whose name must be the directory's.
fn data_offset(read: &ReadAt<'_>, directory: u64, entry: &Entry<'_>, name: &str) -> Result<u64, String> {
    let outside = || format!("{name:?} lies outside of it");
    if entry.header.checked_add(30 + entry.name.len() as u64).is_none_or(|end| end > directory) {
        return Err(outside());
    }
    let local = load(read, entry.header, 30 + entry.name.len() as u64)?;
    let lengths = (u16_at(&local, 26), u16_at(&local, 28));
    match lengths {
        (Some(name_len), Some(extra))
            if local.starts_with(b"PK\x03\x04")
                && usize::from(name_len) == entry.name.len()
                && local[30..] == *entry.name =>
        {
            let offset = entry.header + local.len() as u64 + u64::from(extra);
            let end = offset.checked_add(entry.packed);
            if end.is_some_and(|end| end <= directory) { Ok(offset) } else { Err(outside()) }
        }
        _ => Err(format!("{name:?} has a local header that differs from the directory")),
    }
}

fn load(read: &ReadAt<'_>, offset: u64, len: u64) -> Result<Vec<u8>, String> {
    let mut bytes = vec![0; len as usize];
    read(offset, &mut bytes).map_err(|error| error.to_string())?;
    Ok(bytes)
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A zip file with these members, packed already: name, method, bytes as packed, size, checksum.
    pub(crate) fn archive(members: &[(&str, u16, &[u8], u32, u32)], zip64: bool) -> Vec<u8> {
        let (mut bytes, mut directory) = (Vec::new(), Vec::new());
        for &(name, method, packed, size, crc32) in members {
            let header = bytes.len() as u32;
            bytes.extend(b"PK\x03\x04\x2d\0\0\0");
            bytes.extend(method.to_le_bytes());
            bytes.extend([0; 4]);
            for value in [crc32, packed.len() as u32, size] {
                bytes.extend(value.to_le_bytes());
            }
            bytes.extend((name.len() as u16).to_le_bytes());
            bytes.extend(4u16.to_le_bytes());
            bytes.extend(name.as_bytes());
            bytes.extend([0xff, 0xff, 0, 0]);
            bytes.extend(packed);
            directory.extend(b"PK\x01\x02\x2d\0\x2d\0\0\0");
            directory.extend(method.to_le_bytes());
            directory.extend([0; 4]);
            let narrow = |value| if zip64 { u32::MAX } else { value };
            for value in [crc32, narrow(packed.len() as u32), narrow(size)] {
                directory.extend(value.to_le_bytes());
            }
            let extra: Vec<u8> = [1u64 | 24 << 16, u64::from(size), packed.len() as u64, u64::from(header)]
                .iter()
                .enumerate()
                .flat_map(|(at, value)| value.to_le_bytes()[..if at == 0 { 4 } else { 8 }].to_vec())
                .collect();
            directory.extend((name.len() as u16).to_le_bytes());
            directory.extend((if zip64 { extra.len() as u16 } else { 0 }).to_le_bytes());
            directory.extend([0; 10]);
            directory.extend(narrow(header).to_le_bytes());
            directory.extend(name.as_bytes());
            directory.extend(if zip64 { &extra[..] } else { &[] });
        }
        let (at, count) = (bytes.len(), members.len());
        bytes.extend(&directory);
        let end = bytes.len();
        if zip64 {
            bytes.extend(b"PK\x06\x06");
            bytes.extend(44u64.to_le_bytes());
            bytes.extend([0; 12]);
            for value in [count, count, directory.len(), at] {
                bytes.extend((value as u64).to_le_bytes());
            }
            bytes.extend(b"PK\x06\x07\0\0\0\0");
            bytes.extend((end as u64).to_le_bytes());
            bytes.extend(1u32.to_le_bytes());
        }
        bytes.extend(b"PK\x05\x06\0\0\0\0");
        for _ in 0..2 {
            bytes.extend((if zip64 { 0xffff } else { count as u16 }).to_le_bytes());
        }
        for value in [directory.len() as u32, at as u32] {
            bytes.extend((if zip64 { u32::MAX } else { value }).to_le_bytes());
        }
        bytes.extend([0; 2]);
        bytes
    }

    fn list(bytes: &[u8]) -> Result<Vec<Member>, String> {
        members(bytes.len() as u64, &|offset, buffer| {
            let end = offset as usize + buffer.len();
            let range = bytes.get(offset as usize..end).ok_or(io::ErrorKind::UnexpectedEof)?;
            buffer.copy_from_slice(range);
            Ok(())
        })
    }

    #[test]
    fn members_are_found_with_and_without_zip64() {
        for zip64 in [false, true] {
            let bytes = archive(
                &[("x.npy", 0, b"abc", 3, 7), ("folder/", 0, b"", 0, 0), ("y.npy", 8, b"de", 900, 8)],
                zip64,
            );
            let found = list(&bytes).unwrap();
            assert_eq!(found.len(), 2);
            assert_eq!(
                (found[0].name.as_str(), found[0].method, found[0].size),
                ("x.npy", Method::Stored, 3)
            );
            assert_eq!(&bytes[found[0].offset as usize..][..3], b"abc");
            assert_eq!((found[1].method, found[1].packed, found[1].size), (Method::Deflated, 2, 900));
            assert_eq!(&bytes[found[1].offset as usize..][..2], b"de");
        }
    }

    #[test]
    fn archives_that_contradict_themselves_are_refused() {
        let whole = archive(&[("x.npy", 0, b"abc", 3, 7)], false);
        for (bytes, expected) in [
            (Vec::new(), "no end record"),
            (whole[..whole.len() - 1].to_vec(), "no end record"),
            (whole[1..].to_vec(), "does not end where"),
            (archive(&[("x.npy", 0, b"abc", 4, 7)], false), "two sizes"),
            (archive(&[("x.npy", 0, b"", 0, 7), ("x.npy", 0, b"", 0, 7)], false), "twice"),
        ] {
            let error = list(&bytes).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
        let mut renamed = whole.clone();
        renamed[30] = b'z';
        assert!(list(&renamed).unwrap_err().contains("local header"));
    }

    proptest! {
        #[test]
        fn no_damage_can_panic_it(zip64: bool, damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6), cut: prop::sample::Index) {
            let mut bytes = archive(&[("x.npy", 0, b"abcdefgh", 8, 7), ("y.npy", 8, b"defg", 900, 8)], zip64);
            for (at, value) in damage {
                let at = at.index(bytes.len());
                bytes[at] = value;
            }
            for member in list(&bytes).into_iter().flatten() {
                prop_assert!(member.offset + member.packed <= bytes.len() as u64);
            }
            bytes.truncate(cut.index(bytes.len()));
            let _ = list(&bytes);
        }
    }
}
