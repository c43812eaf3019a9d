//! The folder that the paths of a list start from, and what is found there.
//!
//! The rule, for a list often comes from elsewhere: every image lies below the root. A relative path starts there; an
//! absolute one (what `find` and pandas write), or one with `..` or symbolic links in it, is fine as long as it stays
//! there, and is no path of this list otherwise. Whoever wants other files says so: `root="/"` lets a list name all
//! that the daemon may read; `fuelrail serve` holds the root itself against the folders it was given.
//!
//! A path that names no file as it is written is looked for without the blanks around it, with `/` for Windows' `\`,
//! and with its `%20` decoded.

use std::borrow::Cow;
use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use crate::names;
use crate::sources::manifest::escape;
use crate::{ReadError, SourceError};

/// Folders beside and above the root that are looked at for a hint.
const HINTS: usize = 64;

/// A root folder held open, and where it is.
pub(super) struct Root {
    /// As it was named.
    named: PathBuf,
    /// Without links.
    pub path: PathBuf,
    fd: OwnedFd,
}

/// A file below the root.
pub(super) struct Found {
    /// Relative to it.
    pub path: Vec<u8>,
    pub size: u64,
}

/// Why a path gives no image.
#[derive(Debug)]
pub(super) enum Miss {
    Absent,
    /// It lies elsewhere: there, as far as text can say.
    Outside(PathBuf),
    /// It can be no path, or not of a regular file.
    Unfit(String),
    /// Nothing is known of it: the system failed.
    Failed(String),
}

impl Root {
    /// Opens a folder.
    ///
    /// # Errors
    /// [`SourceError`] that names it.
    pub fn open(named: &Path) -> Result<Self, SourceError> {
        let refuse = |error: std::io::Error| SourceError::folder(named, &error);
        let path = named.canonicalize().map_err(refuse)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::open(&path, flags, Mode::empty()).map_err(|error| refuse(error.into()))?;
        Ok(Self { named: named.to_owned(), path, fd })
    }

    /// As it was named.
    pub fn named(&self) -> &Path {
        &self.named
    }

    /// The regular file that a path of the list names.
    pub fn find(&self, path: &[u8]) -> Result<Found, Miss> {
        let mut miss = match self.look(path) {
            Err(miss @ (Miss::Absent | Miss::Outside(_) | Miss::Unfit(_))) => miss,
            other => return other,
        };
        for spelling in spellings(path) {
            match self.look(&spelling) {
                // What is outside in another spelling says more than that the first one is nowhere.
                Err(other @ Miss::Outside(_)) => miss = other,
                Err(_) => {}
                found => return found,
            }
        }
        if (matches!(miss, Miss::Absent) || is_base64(path))
            && let Some(what) = foreign(path)
        {
            miss = Miss::Unfit(format!("\"{}\" is {what}", shown(path)));
        }
        Err(miss)
    }

    /// The file at one spelling of a path.
    fn look(&self, path: &[u8]) -> Result<Found, Miss> {
        if path.is_empty() || path.contains(&0) {
            return Err(Miss::Unfit("the path of its image is empty".into()));
        }
        let path = Path::new(OsStr::from_bytes(path));
        let relative = if path.is_absolute() { self.below(path)? } else { Cow::Borrowed(path) };
        let size = self.size(&relative)?;
        Ok(Found { path: relative.as_os_str().as_bytes().to_vec(), size })
    }

    /// An absolute path as one that starts at the root.
    fn below<'path>(&self, path: &'path Path) -> Result<Cow<'path, Path>, Miss> {
        for root in [&self.named, &self.path] {
            if let Ok(relative) = path.strip_prefix(root)
                && !relative.as_os_str().is_empty()
            {
                return Ok(Cow::Borrowed(relative));
            }
        }
        // Perhaps by another way, over a link.
        let real = path.canonicalize().ok();
        match real.as_deref().and_then(|real| real.strip_prefix(&self.path).ok()) {
            Some(relative) => Ok(Cow::Owned(relative.to_owned())),
            None => Err(Miss::Outside(plain(path))),
        }
    }

    /// The size of the regular file at `relative`, which stays below the root.
    fn size(&self, relative: &Path) -> Result<u64, Miss> {
        let shown = || shown(relative.as_os_str().as_bytes());
        let miss = |error: Errno| match error {
            Errno::NOENT | Errno::NOTDIR => Miss::Absent,
            Errno::XDEV => Miss::Outside(plain(&self.path.join(relative))),
            Errno::NAMETOOLONG | Errno::LOOP | Errno::ACCESS | Errno::INVAL => Miss::Unfit(format!(
                "\"{}\" in {} cannot be read: {error}",
                shown(),
                names::shown(&self.path)
            )),
            error => Miss::Failed(format!(
                "\"{}\" in {} cannot be read: {error}",
                shown(),
                names::shown(&self.path)
            )),
        };
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let stat = match rustix::fs::openat2(&self.fd, relative, flags, Mode::empty(), ResolveFlags::BENEATH)
        {
            Ok(file) => rustix::fs::fstat(&file).map_err(miss)?,
            // Kernels before 5.6 and some sandboxes do not have it; and it takes an absolute link for one that leads
            // out.
            Err(Errno::NOSYS | Errno::PERM | Errno::AGAIN | Errno::XDEV) => {
                let found = self.path.join(relative).canonicalize();
                let found = found.map_err(|error| miss(Errno::from_io_error(&error).unwrap_or(Errno::IO)))?;
                if !found.starts_with(&self.path) {
                    return Err(miss(Errno::XDEV));
                }
                rustix::fs::stat(&found).map_err(miss)?
            }
            Err(error) => return Err(miss(error)),
        };
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(Miss::Unfit(format!(
                "\"{}\" in {} is not a regular file",
                shown(),
                names::shown(&self.path)
            )));
        }
        Ok(stat.st_size as u64)
    }

    /// Where a path that is absent here would be found, as advice.
    pub fn hint(&self, path: &[u8]) -> String {
        let spelling = spellings(path).last().unwrap_or_else(|| path.to_vec());
        let path = Path::new(OsStr::from_bytes(&spelling));
        let above = self.path.ancestors().skip(1).map(Path::to_path_buf);
        let beside = std::fs::read_dir(&self.path).into_iter().flatten().flatten();
        let mut beside: Vec<PathBuf> = beside
            .take(HINTS * 16)
            .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
            .take(HINTS)
            .map(|entry| entry.path())
            .collect();
        beside.sort_unstable();
        let found = beside.into_iter().chain(above.take(HINTS)).find(|folder| folder.join(path).is_file());
        if let Some(folder) = found {
            return format!("; it is in {0}: say root={0:?}", names::shown(&folder).to_string());
        }
        let mut rest = path.components();
        while rest.next().is_some() {
            if self.path.join(rest.as_path()).is_file() {
                return format!(
                    "; without its beginning it does, as \"{}\": remove that from the paths, or rename the \
                     folder to it and give the one above as root",
                    shown(rest.as_path().as_os_str().as_bytes())
                );
            }
        }
        let whole = self.path.join(path);
        for ending in ["jpg", "jpeg", "png", "JPG", "JPEG", "webp", "tif", "dcm"] {
            let name = [whole.as_os_str().as_bytes(), b".", ending.as_bytes()].concat();
            if Path::new(OsStr::from_bytes(&name)).is_file() {
                return format!(
                    "; with .{ending} at its end it does: write the paths into the list as they are, with their endings"
                );
            }
        }
        "; say which folder the paths start from (root)".into()
    }
}

impl Miss {
    /// A sentence about a path.
    pub fn text(&self, path: &[u8], root: &Path) -> String {
        match self {
            Self::Absent => format!("\"{}\" does not exist in {}", shown(path), names::shown(&root)),
            Self::Outside(_) => format!(
                "\"{}\" lies outside {}, the folder that the paths of the list have to stay in (root)",
                shown(path),
                names::shown(&root)
            ),
            Self::Unfit(why) | Self::Failed(why) => why.clone(),
        }
    }
}

/// Reads one image that a row names instead of holding it. `what` is said of one that cannot be found.
pub(super) fn read(
    root: &Path,
    path: &[u8],
    what: &str,
    key: impl Fn() -> String,
) -> Result<Vec<u8>, ReadError> {
    let fail = |why: String| ReadError::io(key(), why, false);
    let root = Root::open(root).map_err(|error| fail(error.to_string()))?;
    let found = root.find(path).map_err(|miss| match miss {
        Miss::Failed(why) => fail(why),
        miss => ReadError::bad(key(), format!("{what}: {}", miss.text(path, &root.path))),
    })?;
    let full = root.path.join(OsStr::from_bytes(&found.path));
    if found.size > super::pages::MAX_UNIT_BYTES {
        return Err(ReadError::bad(key(), format!("{} is larger than 1 GiB", names::shown(&full))));
    }
    std::fs::read(&full).map_err(|error| fail(format!("{} cannot be read: {error}", names::shown(&full))))
}

/// Without `.` and `..`, by text alone.
fn plain(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => {
                plain.pop();
            }
            Component::CurDir => {}
            part => plain.push(part),
        }
    }
    plain
}

/// How else a path may have been meant, each once, from the smallest change on.
fn spellings(path: &[u8]) -> impl Iterator<Item = Vec<u8>> {
    let trimmed = path.trim_ascii().to_vec();
    let local = match trimmed.strip_prefix(b"file://") {
        // A host's name, mostly none, ends at the first slash.
        Some(rest) => rest[rest.iter().position(|&b| b == b'/').unwrap_or(0)..].to_vec(),
        None => trimmed.clone(),
    };
    let slashed: Vec<u8> = local.iter().map(|&b| if b == b'\\' { b'/' } else { b }).collect();
    let decoded = decoded(&slashed);
    let mut all = vec![path.to_vec()];
    for next in [trimmed, local, slashed, decoded] {
        if all.last() != Some(&next) {
            all.push(next);
        }
    }
    all.into_iter().skip(1)
}

/// With each `%20` as the byte it stands for.
fn decoded(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&first, after)) = rest.split_first() {
        let byte = (first == b'%')
            .then(|| std::str::from_utf8(after.get(..2)?).ok())
            .flatten()
            .filter(|digits| digits.bytes().all(|b| b.is_ascii_hexdigit()))
            .and_then(|digits| u8::from_str_radix(digits, 16).ok());
        out.push(byte.unwrap_or(first));
        rest = if byte.is_some() { &after[2..] } else { after };
    }
    out
}

/// A path in a message: a column of something else may hold megabytes.
pub(super) fn shown(path: &[u8]) -> String {
    const MOST: usize = 200;
    if path.len() > MOST { format!("{}…", escape(&path[..MOST])) } else { escape(path) }
}

/// Whether a text begins as images in base64 do.
fn is_base64(text: &[u8]) -> bool {
    const BEGINNINGS: [&[u8]; 5] = [b"/9j/", b"iVBORw0KGgo", b"R0lGOD", b"UklGR", b"data:image/"];
    text.len() > 64 && BEGINNINGS.iter().any(|beginning| text.starts_with(beginning))
}

/// What a path is that is none of this machine's.
fn foreign(path: &[u8]) -> Option<&'static str> {
    let path = path.trim_ascii();
    if is_base64(path) {
        return Some(
            "an image in base64, which is not read from a table: store its bytes in a column of bytes",
        );
    }
    let scheme = path.windows(3).position(|three| three == b"://").unwrap_or(0);
    if scheme > 0 && path[..scheme].iter().all(u8::is_ascii_alphanumeric) && !path.starts_with(b"file:") {
        return Some("a URL; the images of a list are files: download them and list their paths");
    }
    if path.starts_with(b"~") {
        return Some("a path with ~, which only a shell expands; write it out");
    }
    let is_drive = path.len() > 2 && path[0].is_ascii_alphabetic() && path[1] == b':';
    if is_drive || path.starts_with(b"\\\\") {
        return Some(
            "a path of a Windows machine; write relative ones, and the folder they start from as root",
        );
    }
    None
}

/// The folder that files share, one more of them known.
pub(super) fn shared(folder: Option<PathBuf>, file: &Path) -> PathBuf {
    let parent = file.parent().unwrap_or(Path::new("/"));
    let Some(folder) = folder else { return parent.to_owned() };
    let same = folder.components().zip(parent.components()).take_while(|(a, b)| a == b);
    same.map(|(part, _)| part).collect()
}

/// A path as it is stored, below a folder that several roots share.
pub(super) fn joined(prefix: &Path, path: Vec<u8>) -> Vec<u8> {
    if prefix.as_os_str().is_empty() {
        return path;
    }
    prefix.join(OsStr::from_bytes(&path)).into_os_string().into_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_found_however_it_is_written_and_stays_below_the_root() {
        let folder = tempfile::tempdir().unwrap();
        let base = folder.path().canonicalize().unwrap();
        let root_path = base.join("root");
        std::fs::create_dir_all(root_path.join("a b/c")).unwrap();
        std::fs::write(root_path.join("a b/c/x.jpg"), b"12345").unwrap();
        std::fs::write(root_path.join("50%25.jpg"), b"1").unwrap();
        std::fs::write(base.join("secret.jpg"), b"1").unwrap();
        std::os::unix::fs::symlink(&root_path, base.join("way")).unwrap();
        std::os::unix::fs::symlink(root_path.join("a b/c/x.jpg"), root_path.join("inside.jpg")).unwrap();
        std::os::unix::fs::symlink(base.join("secret.jpg"), root_path.join("out.jpg")).unwrap();
        let root = Root::open(&root_path).unwrap();
        let absolute = format!("{}/a b/c/x.jpg", root_path.display());
        for (path, expected) in [
            ("a b/c/x.jpg", "a b/c/x.jpg"),
            ("./a b/c/x.jpg", "./a b/c/x.jpg"),
            ("a b/../a b/c/x.jpg", "a b/../a b/c/x.jpg"),
            (&absolute, "a b/c/x.jpg"),
            (&format!("{}/way/a b/c/x.jpg", base.display()), "a b/c/x.jpg"),
            (&format!("file://{}", absolute.replace(' ', "%20")), "a b/c/x.jpg"),
            (&format!("file://localhost{absolute}"), "a b/c/x.jpg"),
            (" a b/c/x.jpg\t", "a b/c/x.jpg"),
            ("a b\\c\\x.jpg", "a b/c/x.jpg"),
            ("a%20b/c/x.jpg", "a b/c/x.jpg"),
            ("50%25.jpg", "50%25.jpg"),
            ("inside.jpg", "inside.jpg"),
        ] {
            let found = root.find(path.as_bytes()).unwrap_or_else(|miss| panic!("{path}: {miss:?}"));
            assert_eq!(found.path, expected.as_bytes(), "{path}");
        }
        for (path, expected) in [
            ("none.jpg", "does not exist"),
            ("a b", "not a regular file"),
            ("", "empty"),
            ("a\0b", "empty"),
            ("../secret.jpg", "outside"),
            ("out.jpg", "outside"),
            (&format!("{}/secret.jpg", base.display()), "outside"),
            ("/nowhere/x.jpg", "outside"),
            ("https://host/x.jpg", "URL"),
            ("s3://bucket/x.jpg", "URL"),
            ("C:\\images\\x.jpg", "Windows"),
            ("~/x.jpg", "only a shell expands"),
        ] {
            let miss = root.find(path.as_bytes()).err().unwrap_or_else(|| panic!("{path} was found"));
            let text = miss.text(path.as_bytes(), &root.path);
            assert!(text.contains(expected), "{path}: {text}");
        }
        assert!(root.hint(b"root/a b/c/x.jpg").contains(&format!("root={:?}", base.display().to_string())));
        assert!(root.hint(b"c/x.jpg").contains("a b\""));
        assert!(root.hint(b"data/sub/a b/c/x.jpg").contains("as \"a b/c/x.jpg\""));
        let long = [&b"/9j/"[..], &[b'A'; 5000]].concat();
        let text = root.find(&long).err().unwrap().text(&long, &root.path);
        assert!(text.contains("base64") && text.len() < 500, "{text}");
        assert!(root.hint(b"a b/c/x").contains(".jpg"));
    }

    #[test]
    fn files_share_a_folder() {
        let all = ["/data/a/1.jpg", "/data/a/2.jpg", "/data/ab/3.jpg"];
        let folder = all.iter().fold(None, |folder, file| Some(shared(folder, Path::new(file))));
        assert_eq!(folder.unwrap(), Path::new("/data"));
    }
}
