//! The members of a tar archive: where their bytes lie.
//!
//! ```text
//!  │ header 512 │ data, padded to 512 │ header │ data │ … │ zero block │ zero block │
//!    name, size, checksum, type
//!    x: PAX records for the next member   g: for all   L: GNU's long name   K: long link
//! ```
//!
//! Formats: v7, ustar (prefix), PAX (path, size, global headers), GNU (long names, sizes in base 256).
//!
//! # Promises
//!
//! - What is accepted is what Python's `tarfile` finds: the same members, names and bytes. Where `tarfile` stops in
//!   silence at a damaged header, this is an error: a shard that loses its second half must not train.
//! - Links, devices, volume labels and sparse members are passed over and counted: a record is a stretch of bytes, and
//!   these are none.
//! - An archive that ends without its end blocks, as one that was cut off between two members does, and one that is
//!   followed by more ([`Notes`]) is read as `tarfile` reads it, and said.
//! - A hostile archive costs an error. Names are at most [`MAX_NAME`] bytes, extension headers at most
//!   [`MAX_EXTENSION`]; nothing is allocated because a header says so.
//! - Only headers are read, and what lies beside them: members are jumped over.

use std::io;

use super::proof::digest;
use crate::mistaken;

/// Everything in a tar file is a multiple of this.
pub(super) const BLOCK: u64 = 512;

/// Longest name of a member; the longest path of Linux is 4 KiB.
const MAX_NAME: usize = 16 << 10;

/// Longest extension header (PAX records, GNU names). Access lists and the like come in kilobytes.
const MAX_EXTENSION: u64 = 1 << 20;

/// Extension headers before one member; writers use three at most.
const MAX_EXTENSIONS: usize = 16;

/// A file that can be read anywhere.
pub(super) trait Bytes: Sync {
    /// Its length.
    fn len(&self) -> u64;

    /// Fills `buffer` from `offset`.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()>;

    /// The fewest bytes worth reading at a time: a piece of a local file is cheap, one of an object is not.
    fn least(&self) -> u64;
}

/// Where and why an archive cannot be read.
#[derive(Debug)]
pub(super) struct Fault {
    pub offset: u64,
    pub why: String,
}

impl Fault {
    pub fn new(offset: u64, why: impl Into<String>) -> Self {
        Self { offset, why: why.into() }
    }
}

/// A regular member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Member {
    pub name: Vec<u8>,
    /// First byte of its first header; long names and the like have several.
    pub start: u64,
    /// First byte of its data, after its last header.
    pub offset: u64,
    pub size: u64,
    /// A hash of its headers.
    pub digest: u64,
    /// What it is, where its data is no stretch of bytes.
    pub unread: Option<&'static str>,
}

/// What is worth saying of an archive that was walked over.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Notes {
    /// Links, devices and the like, and what the first one is.
    pub skipped: u64,
    pub example: String,
    /// The archive ends without end blocks after so many members.
    pub unended: Option<u64>,
    /// Bytes behind the end that begin with a member again.
    pub behind: u64,
    /// Keys without an image, and a member of the first one.
    pub imageless: u64,
    pub imageless_example: String,
}

/// Bytes behind the end of an archive in which another one is looked for; writers pad to 10 KiB, and at most to 2 MiB.
const PADDING: u64 = 2 << 20;

/// Walks over the members of an archive.
pub(super) struct Archive<'a> {
    window: Window<'a>,
    at: u64,
    ended: bool,
    members: u64,
    pub notes: Notes,
}

/// What extension headers say of the next member. The first one wins, as in `tarfile`.
#[derive(Default)]
struct Extension {
    name: Option<Vec<u8>>,
    size: Option<u64>,
    is_sparse: bool,
}

impl<'a> Archive<'a> {
    /// An archive from its beginning.
    ///
    /// # Errors
    /// When it is empty, or evidently compressed.
    pub fn open(bytes: &'a dyn Bytes) -> Result<Self, Fault> {
        let mut window = Window::new(bytes);
        if bytes.len() == 0 {
            return Err(Fault::new(
                0,
                "the file is empty; an archive without members has at least one block",
            ));
        }
        let start = window.get(0, bytes.len().min(64) as usize)?;
        for (magic, ending) in [(&b"\x1f\x8b"[..], ".gz"), (b"\x28\xb5\x2f\xfd", ".zst")] {
            if start.starts_with(magic) {
                let why = format!("it is compressed; let its name end in .tar{ending} to have it unpacked");
                return Err(Fault::new(0, why));
            }
        }
        if let Some(what) = mistaken::what(start) {
            return Err(Fault::new(0, format!("it is {what}")));
        }
        Ok(Self { window, at: 0, ended: false, members: 0, notes: Notes::default() })
    }

    /// The headers of a member that was just found and at least the first `len` bytes of its data, in whole blocks.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn blocks(&mut self, member: &Member, len: u64) -> Result<&[u8], Fault> {
        let data = len.min(member.size).next_multiple_of(BLOCK);
        self.window.get(member.start, (member.offset - member.start + data) as usize)
    }

    /// The next member with a name; `None` at the end. Folders are passed over, and what is unread is counted.
    ///
    /// # Errors
    /// The first thing that is wrong; the archive is of no use after that.
    pub fn next(&mut self) -> Result<Option<Member>, Fault> {
        loop {
            if self.ended {
                return Ok(None);
            }
            if let Some(member) = self.step()? {
                self.members += 1;
                if let Some(what) = member.unread {
                    self.notes.skipped += 1;
                    if self.notes.example.is_empty() {
                        self.notes.example = format!("\"{}\", {what}", member.name.escape_ascii());
                    }
                }
                return Ok(Some(member));
            }
        }
    }

    /// One member with its extension headers; `None` when it is no file, or at the end.
    fn step(&mut self) -> Result<Option<Member>, Fault> {
        let mut extension = Extension::default();
        let start = self.at;
        for count in 0.. {
            let at = self.at;
            let len = self.window.bytes.len();
            if at >= len && count == 0 {
                // Without end blocks: some writers forget them, and tarfile does not mind.
                self.ended = true;
                self.notes.unended = Some(self.members);
                return Ok(None);
            }
            if len.saturating_sub(at) < BLOCK {
                return Err(Fault::new(at, "the archive is cut off inside a header; fetch or pack it again"));
            }
            let block: [u8; 512] = self.window.get(at, 512)?.try_into().expect("a block");
            if block.iter().all(|&b| b == 0) {
                if count > 0 {
                    return Err(Fault::new(at, "the archive ends where a member should follow its headers"));
                }
                self.ended = true;
                self.notes.behind = self.behind(at + BLOCK)?;
                return Ok(None);
            }
            let header = Header::parse(&block).map_err(|why| Fault::new(at, why))?;
            match header.kind {
                b'x' | b'X' | b'g' | b'L' | b'K' => {
                    if count == MAX_EXTENSIONS {
                        return Err(Fault::new(
                            at,
                            "too many headers for one member; the archive is damaged",
                        ));
                    }
                    self.extend(&header, &mut extension)?;
                }
                _ => return self.member(start, header, &block, extension),
            }
        }
        unreachable!("the loop is left by returning")
    }

    /// The member of a header.
    fn member(
        &mut self,
        start: u64,
        header: Header,
        block: &[u8; 512],
        extension: Extension,
    ) -> Result<Option<Member>, Fault> {
        let at = self.at;
        let offset = at + BLOCK;
        let name = extension.name.unwrap_or(header.name);
        let size = extension.size.unwrap_or(header.size);
        let unread = match header.kind {
            b'0' | b'\0' | b'7' => extension.is_sparse.then_some("stored as a sparse file"),
            b'5' => {
                self.at = offset;
                return Ok(None);
            }
            b'1' => Some("a hard link"),
            b'2' => Some("a symbolic link"),
            b'3' | b'4' => Some("a device"),
            b'6' => Some("a pipe"),
            b'S' => Some("stored as a sparse file"),
            b'V' => Some("the label of a volume"),
            b'M' => Some("the rest of a file from another volume"),
            b'D' => Some("the list of a folder"),
            _ => Some("of a type that is not known"),
        };
        if name.len() > MAX_NAME {
            return Err(Fault::new(at, format!("the name of a member is longer than {MAX_NAME} bytes")));
        }
        let begin = match header.kind {
            b'S' => self.after_map(offset, block[482])?,
            _ => offset,
        };
        // What these have in their size is no data.
        let is_empty = matches!(header.kind, b'1' | b'2' | b'3' | b'4' | b'6');
        self.at = if is_empty { offset } else { self.after(begin, size)? };
        let digest = if start == at {
            digest(block)
        } else {
            digest(self.window.get(start, (offset - start) as usize)?)
        };
        Ok(Some(Member { name, start, offset, size, digest, unread }))
    }

    /// The place behind the map of an old sparse member, which goes on while `more` is set.
    fn after_map(&mut self, mut offset: u64, mut more: u8) -> Result<u64, Fault> {
        while more != 0 {
            more = self.window.get(offset, BLOCK as usize)?[504];
            offset += BLOCK;
        }
        Ok(offset)
    }

    /// Bytes from the first member behind the end of the archive on; 0 if there is none.
    fn behind(&mut self, mut at: u64) -> Result<u64, Fault> {
        let len = self.window.bytes.len();
        let most = len.min(at + PADDING);
        while at + BLOCK <= most {
            let block: [u8; 512] = self.window.get(at, 512)?.try_into().expect("a block");
            if block.iter().any(|&b| b != 0) {
                return Ok(if Header::parse(&block).is_ok() { len - at } else { 0 });
            }
            at += BLOCK;
        }
        Ok(0)
    }

    /// The place behind data of this size.
    fn after(&self, offset: u64, size: u64) -> Result<u64, Fault> {
        let len = self.window.bytes.len();
        let end = size.checked_next_multiple_of(BLOCK).and_then(|padded| offset.checked_add(padded));
        end.filter(|&end| end <= len).ok_or_else(|| {
            Fault::new(
                self.at,
                format!(
                    "the archive is cut off: a member of {size} bytes begins at byte {offset} of {len}; fetch or \
                     pack it again"
                ),
            )
        })
    }

    /// Takes in an extension header.
    fn extend(&mut self, header: &Header, extension: &mut Extension) -> Result<(), Fault> {
        let at = self.at;
        let fault = |why: String| Fault::new(at, why);
        if header.size > MAX_EXTENSION {
            return Err(fault(format!(
                "an extension header says it has {} bytes; more than {MAX_EXTENSION} are a sign of damage",
                header.size
            )));
        }
        let next = self.after(at + BLOCK, header.size)?;
        // tarfile looks at the padding, too.
        let data = self.window.get(at + BLOCK, (next - at - BLOCK) as usize)?;
        match header.kind {
            b'L' => {
                extension.name.get_or_insert_with(|| until_nul(data).to_vec());
            }
            b'K' => {}
            kind => {
                let mut found = Extension::default();
                let mut sparse = None;
                for record in Records(data) {
                    let (key, value) = record.map_err(fault)?;
                    match key {
                        b"path" => {
                            let end = value.iter().rposition(|&b| b != b'/').map_or(0, |last| last + 1);
                            found.name = Some(value[..end].to_vec());
                        }
                        b"size" => {
                            let size = std::str::from_utf8(value)
                                .ok()
                                .filter(|text| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()));
                            found.size = Some(size.and_then(|text| text.parse().ok()).ok_or_else(|| {
                                Fault::new(at, "a PAX header gives a size that is not a number")
                            })?);
                        }
                        b"GNU.sparse.name" => {
                            found.is_sparse = true;
                            sparse = Some(value.to_vec());
                        }
                        _ if key.starts_with(b"GNU.sparse.") => found.is_sparse = true,
                        _ => {}
                    }
                }
                found.name = sparse.or(found.name);
                if kind == b'g' {
                    if found.name.is_some() || found.size.is_some() {
                        return Err(Fault::new(at, "a global header gives all members one name or size"));
                    }
                } else {
                    extension.name = extension.name.take().or(found.name);
                    extension.size = extension.size.or(found.size);
                    extension.is_sparse |= found.is_sparse;
                }
            }
        }
        self.at = next;
        Ok(())
    }
}

/// A header block.
struct Header {
    name: Vec<u8>,
    size: u64,
    kind: u8,
}

impl Header {
    fn parse(block: &[u8; 512]) -> Result<Self, String> {
        let unsigned: u64 = block.iter().map(|&b| u64::from(b)).sum();
        let signed: i64 = block.iter().map(|&b| i64::from(b as i8)).sum();
        // The checksum is taken with spaces in its own place.
        let own: u64 = block[148..156].iter().map(|&b| u64::from(b)).sum();
        let own_signed: i64 = block[148..156].iter().map(|&b| i64::from(b as i8)).sum();
        let stored = number(&block[148..156]);
        if stored != Some((unsigned - own + 256) as i64) && stored != Some(signed - own_signed + 256) {
            return Err(
                "bad checksum of a header: this is not a tar file, or it is damaged; fetch or pack it \
                        again"
                    .into(),
            );
        }
        let kind = block[156];
        // Numbers nobody needs are looked at, too: tarfile ends the archive at one it cannot read.
        for (range, what) in [
            (100..108, "mode"),
            (108..116, "user"),
            (116..124, "group"),
            (136..148, "time"),
            (329..337, "device"),
            (337..345, "device"),
        ] {
            if number(&block[range]).is_none() {
                return Err(format!("the {what} of a member is not a number; the header is damaged"));
            }
        }
        let size = number(&block[124..136]).and_then(|size| u64::try_from(size).ok());
        let size = size.ok_or("the size of a member is not a number; the header is damaged")?;
        let name = until_nul(&block[..100]);
        // Before ustar a folder was a file whose name ends in a slash.
        let kind = if kind == 0 && name.ends_with(b"/") { b'5' } else { kind };
        let prefix = until_nul(&block[345..500]);
        let name = match kind {
            b'L' | b'K' | b'S' => name.to_vec(),
            _ if prefix.is_empty() => name.to_vec(),
            _ => [prefix, b"/", name].concat(),
        };
        Ok(Self { name, size, kind })
    }
}

/// A number of a header: octal digits, or in base 256 when its first byte has the top bit.
fn number(field: &[u8]) -> Option<i64> {
    if let 0x80 | 0xff = field[0] {
        let negative = field[0] == 0xff;
        let (high, low) = field[1..].split_at(field.len().saturating_sub(9));
        if high.iter().any(|&b| b != if negative { 0xff } else { 0 }) {
            return None;
        }
        let value = low.iter().fold(if negative { -1i64 } else { 0 }, |value, &b| value << 8 | i64::from(b));
        return ((value < 0) == negative).then_some(value);
    }
    let digits = until_nul(field).trim_ascii();
    if digits.is_empty() {
        return Some(0);
    }
    let octal = digits.iter().all(|b| (b'0'..=b'7').contains(b));
    octal.then(|| digits.iter().fold(0, |value, &b| value << 3 | i64::from(b - b'0')))
}

fn until_nul(text: &[u8]) -> &[u8] {
    &text[..text.iter().position(|&b| b == 0).unwrap_or(text.len())]
}

/// The `length key=value\n` records of a PAX header.
struct Records<'a>(&'a [u8]);

impl<'a> Iterator for Records<'a> {
    type Item = Result<(&'a [u8], &'a [u8]), String>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.first().is_none_or(|&b| b == 0) {
            return None;
        }
        let record = self.parse();
        if record.is_none() {
            self.0 = &[];
        }
        Some(record.ok_or_else(|| "a PAX header is damaged".into()))
    }
}

impl<'a> Records<'a> {
    fn parse(&mut self) -> Option<(&'a [u8], &'a [u8])> {
        let space = self.0.iter().take(21).position(|&b| b == b' ')?;
        let digits = std::str::from_utf8(&self.0[..space]).ok()?;
        if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        let (record, rest) = self.0.split_at_checked(digits.parse().ok()?)?;
        let text = record.get(space + 1..)?.strip_suffix(b"\n")?;
        let equals = text.iter().position(|&b| b == b'=').filter(|&at| at > 0)?;
        self.0 = rest;
        Some((&text[..equals], &text[equals + 1..]))
    }
}

/// A piece of the file in memory. It grows while reading goes straight on and is small after a jump: headers between
/// large members must not cost the members.
struct Window<'a> {
    bytes: &'a dyn Bytes,
    piece: Vec<u8>,
    start: u64,
    ahead: u64,
}

/// Read at once when reading goes straight on.
const MOST: u64 = 1 << 20;

impl<'a> Window<'a> {
    fn new(bytes: &'a dyn Bytes) -> Self {
        Self { bytes, piece: Vec::new(), start: 0, ahead: bytes.least() }
    }

    /// A piece of the file. The caller has bounded `len`.
    fn get(&mut self, offset: u64, len: usize) -> Result<&[u8], Fault> {
        let end = self.start + self.piece.len() as u64;
        let inside = |start: u64, end: u64| offset >= start && offset + len as u64 <= end;
        if !inside(self.start, end) {
            let straight_on = offset >= self.start && offset <= end;
            self.ahead = if straight_on { (self.ahead * 2).min(MOST) } else { self.bytes.least() };
            let size = self.ahead.max(len as u64).min(self.bytes.len().saturating_sub(offset));
            if size < len as u64 {
                return Err(Fault::new(offset, "the archive is cut off; fetch or pack it again"));
            }
            self.piece.resize(size as usize, 0);
            self.start = offset;
            if let Err(error) = self.bytes.read_at(offset, &mut self.piece) {
                self.piece.clear();
                return Err(Fault::new(offset, error.to_string()));
            }
        }
        Ok(&self.piece[(offset - self.start) as usize..][..len])
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use proptest::prelude::*;

    use super::*;

    /// An archive in memory that counts what is read of it.
    struct Memory {
        bytes: Vec<u8>,
        read: AtomicU64,
    }

    impl Memory {
        fn new(bytes: Vec<u8>) -> Self {
            Self { bytes, read: AtomicU64::new(0) }
        }
    }

    impl Bytes for Memory {
        fn len(&self) -> u64 {
            self.bytes.len() as u64
        }

        fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
            self.read.fetch_add(buffer.len() as u64, Ordering::Relaxed);
            let from = &self.bytes[offset as usize..];
            buffer.copy_from_slice(from.get(..buffer.len()).ok_or(io::ErrorKind::UnexpectedEof)?);
            Ok(())
        }

        fn least(&self) -> u64 {
            2048
        }
    }

    fn block(name: &[u8], kind: u8, size: u64, prefix: &[u8], binary: bool) -> Vec<u8> {
        let mut header = [0u8; 512];
        header[..name.len()].copy_from_slice(name);
        if binary {
            header[124] = 0x80;
            header[128..136].copy_from_slice(&size.to_be_bytes());
        } else {
            header[124..136].copy_from_slice(format!("{:011o} ", size & 0o77777777777).as_bytes());
        }
        header[156] = kind;
        header[257..262].copy_from_slice(b"ustar");
        header[345..345 + prefix.len()].copy_from_slice(prefix);
        header[148..156].fill(b' ');
        let sum: u32 = header.iter().map(|&b| u32::from(b)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        header.to_vec()
    }

    fn with_data(mut header: Vec<u8>, data: &[u8]) -> Vec<u8> {
        header.extend_from_slice(data);
        header.resize(header.len().next_multiple_of(512), 0);
        header
    }

    fn pax(records: &[(&str, &[u8])], kind: u8) -> Vec<u8> {
        let mut text = Vec::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let mut len = rest + 1;
            while len != rest + len.to_string().len() {
                len = rest + len.to_string().len();
            }
            text.extend_from_slice(format!("{len} {key}=").as_bytes());
            text.extend_from_slice(value);
            text.push(b'\n');
        }
        with_data(block(b"pax", kind, text.len() as u64, b"", false), &text)
    }

    /// How one member is written.
    #[derive(Clone, Debug)]
    enum Form {
        Plain,
        Prefix(Vec<u8>),
        GnuName,
        Pax { size_too: bool },
        Binary,
        PaxInsideGnu,
    }

    fn write(name: &[u8], data: &[u8], form: &Form) -> (Vec<u8>, Vec<u8>) {
        let size = data.len() as u64;
        let short = &name[..name.len().min(100)];
        let gnu = || {
            let long = [name, b"\0"].concat();
            with_data(block(b"././@LongLink", b'L', long.len() as u64, b"", false), &long)
        };
        match form {
            Form::Plain => (short.to_vec(), with_data(block(short, b'0', size, b"", false), data)),
            Form::Binary => (short.to_vec(), with_data(block(short, 0, size, b"", true), data)),
            Form::Prefix(prefix) => {
                let whole = [prefix, &b"/"[..], short].concat();
                (whole, with_data(block(short, b'7', size, prefix, false), data))
            }
            Form::GnuName => {
                (name.to_vec(), [gnu(), with_data(block(b"cut", b'0', size, b"", false), data)].concat())
            }
            Form::Pax { size_too } => {
                let text = size.to_string();
                let mut records = vec![("mtime", &b"1.5"[..]), ("path", name)];
                if *size_too {
                    records.push(("size", text.as_bytes()));
                }
                let stored = if *size_too { 0 } else { size };
                let member = with_data(block(b"cut", b'0', stored, b"", false), data);
                (name.to_vec(), [pax(&records, b'x'), member].concat())
            }
            Form::PaxInsideGnu => {
                let member = with_data(block(b"cut", b'0', size, b"", false), data);
                (name.to_vec(), [gnu(), pax(&[("path", b"another")], b'x'), member].concat())
            }
        }
    }

    fn form() -> impl Strategy<Value = Form> {
        prop_oneof![
            Just(Form::Plain),
            Just(Form::Binary),
            prop::collection::vec(1u8..=255, 1..150).prop_map(Form::Prefix),
            Just(Form::GnuName),
            any::<bool>().prop_map(|size_too| Form::Pax { size_too }),
            Just(Form::PaxInsideGnu),
        ]
    }

    type NameAndData = (Vec<u8>, Vec<u8>);

    /// All members that are read, or what is wrong.
    fn walk(bytes: &Memory) -> Result<Vec<NameAndData>, Fault> {
        let mut archive = Archive::open(bytes)?;
        let mut found = Vec::new();
        while let Some(member) = archive.next()? {
            if member.unread.is_some() {
                continue;
            }
            let data = bytes.bytes[member.offset as usize..][..member.size as usize].to_vec();
            let blocks = archive.blocks(&member, u64::MAX)?;
            let head = (member.offset - member.start) as usize;
            assert_eq!(blocks[head..][..data.len()], data);
            assert!(blocks.len() % 512 == 0 && member.digest == digest(&blocks[..head]));
            found.push((member.name, data));
        }
        Ok(found)
    }

    proptest! {
        #[test]
        fn what_a_writer_wrote_is_found_again(
            members in prop::collection::vec(
                (prop::collection::vec(1u8..=255, 1..300), prop::collection::vec(any::<u8>(), 0..3000), form()),
                0..20,
            ),
            global in any::<bool>(),
            end_blocks in 0usize..4,
        ) {
            let mut bytes = if global { pax(&[("comment", b"all")], b'g') } else { Vec::new() };
            let mut expected = Vec::new();
            for (name, data, form) in &members {
                // A slash at the end makes a folder of it, and PAX drops it.
                let name: Vec<u8> = name.iter().map(|&b| if b == b'/' { b'_' } else { b }).collect();
                let (name, written) = write(&name, data, form);
                bytes.extend(written);
                expected.push((name, data.clone()));
            }
            bytes.resize(bytes.len() + end_blocks * 512, 0);
            // A global header alone is no archive, to tarfile either.
            prop_assume!(!(bytes.is_empty() || global && members.is_empty()));
            let found = walk(&Memory::new(bytes)).map_err(|fault| TestCaseError::fail(fault.why))?;
            prop_assert_eq!(found, expected);
        }

        #[test]
        fn whatever_the_bytes_are_there_is_an_end(
            blocks in prop::collection::vec((any::<[u8; 16]>(), prop::sample::select(&b"0\x0057xXgLK1S"[..]), any::<u64>(), 0u32..40), 1..30),
            cut in any::<prop::sample::Index>(),
        ) {
            let mut bytes = Vec::new();
            for (name, kind, size, shift) in &blocks {
                bytes.extend(block(name, *kind, size >> shift, b"", *shift < 30));
                bytes.extend_from_slice(b"12 path=abc\n");
                bytes.resize(bytes.len().next_multiple_of(512), 0);
            }
            bytes.truncate(cut.index(bytes.len()) + 1);
            let _ = walk(&Memory::new(bytes));
        }
    }

    #[test]
    fn members_are_jumped_over_and_not_read() {
        let member = |n: usize| {
            with_data(block(format!("{n}.jpg").as_bytes(), b'0', 200_000, b"", false), &[7; 200_000])
        };
        let bytes = Memory::new((0..50).flat_map(member).collect());
        let mut archive = Archive::open(&bytes).unwrap();
        let mut count = 0;
        while archive.next().unwrap().is_some() {
            count += 1;
        }
        assert_eq!(count, 50);
        let read = bytes.read.load(Ordering::Relaxed);
        assert!(read < 50 * 10_000, "{read} bytes of 10 MB");
    }

    #[test]
    fn what_is_no_file_is_passed_over_and_counted_and_the_end_is_looked_at() {
        let file = |name: &str| with_data(block(name.as_bytes(), b'0', 3, b"", false), b"abc");
        let odd = |kind: u8| block(b"odd.jpg", kind, 0, b"", false);
        let mut map = block(b"sparse.jpg", b'S', 3, b"", false);
        // Another block of its map follows; the checksum is made again for that.
        map[482] = 1;
        map[148..156].fill(b' ');
        let sum: u32 = map.iter().map(|&b| u32::from(b)).sum();
        map[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        map.extend([0; 512]);
        let sparse = pax(&[("GNU.sparse.major", b"1"), ("GNU.sparse.name", b"hole.jpg")], b'x');
        let end = vec![0; 1024];
        let all = [
            odd(b'V'),
            file("1.jpg"),
            odd(b'1'),
            odd(b'2'),
            odd(b'3'),
            odd(b'6'),
            with_data(map, b"abc"),
            sparse,
            file("GNUSparseFile.1/hole.jpg"),
            file("2.jpg"),
        ]
        .concat();
        let notes = |bytes: Vec<u8>| {
            let bytes = Memory::new(bytes);
            let mut archive = Archive::open(&bytes).unwrap();
            let mut names = Vec::new();
            while let Some(member) = archive.next().unwrap() {
                if member.unread.is_none() {
                    names.push(member.name);
                }
            }
            assert_eq!(names, [b"1.jpg", b"2.jpg"]);
            archive.notes
        };
        let whole = notes([&all[..], &end].concat());
        assert_eq!((whole.skipped, whole.example.as_str()), (7, "\"odd.jpg\", the label of a volume"));
        assert_eq!((whole.unended, whole.behind), (None, 0));
        assert_eq!(notes(all.clone()).unended, Some(9));
        // Padding is no more than that; a second archive is.
        assert_eq!(notes([&all[..], &[0; 10240]].concat()).behind, 0);
        assert_eq!(notes([&all[..], &end, &file("3.jpg"), &end].concat()).behind, 2048);
        assert_eq!(notes([&all[..], &end, &[7; 2000]].concat()).behind, 0);
    }

    #[test]
    fn numbers_are_octal_or_binary() {
        for (field, expected) in [
            (&b"0000644\0"[..], Some(0o644)),
            (b"   644 \0", Some(0o644)),
            (b"\0\0\0\0\0\0\0\0", Some(0)),
            (b"        ", Some(0)),
            (b"77777777", Some(0o77777777)),
            (b"0000648\0", None),
            (b"-000644\0", None),
            (b"\x80\0\0\0\0\0\x01\x02", Some(258)),
            (b"\xff\xff\xff\xff\xff\xff\xff\xfe", Some(-2)),
            (b"\x80\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", None),
            (b"\x81\0\0\0\0\0\0\0", None),
        ] {
            assert_eq!(number(field), expected, "{}", field.escape_ascii());
        }
    }
}
