//! Names of files: how they are shown, which of them are nobody's data, and what somebody who mistyped one may have
//! meant.
//!
//! A name may hold anything but a slash and a NUL: line breaks that forge a line of a log, escape codes that rewrite a
//! terminal, marks that reverse the text behind them, bytes that are no text. [`printable`] is the one function that
//! makes such a text safe to be shown; every error and every line of a log goes through it. Keys of records stay as
//! they are: they are data.

use std::borrow::Cow;
use std::ffi::OsStr;
use std::fmt::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Folders that systems and programs leave beside data, in lower case. Hidden ones (a leading dot) need no list.
const LITTER: [&str; 15] = [
    "$recycle.bin",
    "#recycle",
    "#snapshot",
    "@eadir",
    "@recently-snapshot",
    "@recycle",
    "@sharebin",
    "@tmp",
    "__macosx",
    "__pycache__",
    "cvs",
    "found.000",
    "lost+found",
    "recycler",
    "system volume information",
];

/// Endings of images, without the dot, in lower case. Where a record of a shard has several, the first of these counts.
pub(crate) const IMAGES: [&str; 15] = [
    "jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "ppm", "pgm", "pnm", "avif", "jpe", "jfif",
    "pbm",
];

/// Names looked at for one that is like another.
const MOST_LIKE: usize = 10_000;

/// Names that a message lists.
const MOST_NAMED: usize = 5;

/// A path as it is shown: bytes that are no text as `\xNN`, and nothing that a terminal or a log would obey.
pub fn shown(path: &(impl AsRef<OsStr> + ?Sized)) -> Shown<'_> {
    Shown(path.as_ref())
}

/// See [`shown`].
#[derive(Clone, Copy, Debug)]
pub struct Shown<'a>(&'a OsStr);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for chunk in self.0.as_bytes().utf8_chunks() {
            f.write_str(&printable(chunk.valid()))?;
            for byte in chunk.invalid() {
                write!(f, "\\x{byte:02x}")?;
            }
        }
        Ok(())
    }
}

/// A text with everything escaped that would not show as itself: line breaks, escape codes, marks of direction, and the
/// replacements of surrogates. A text without these is itself.
pub fn printable(text: &str) -> Cow<'_, str> {
    if !text.chars().any(is_unprintable) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for character in text.chars() {
        match character {
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            _ if is_unprintable(character) && u32::from(character) < 0x100 => {
                let _ = write!(out, "\\x{:02x}", u32::from(character));
            }
            _ if is_unprintable(character) => {
                let _ = write!(out, "\\u{{{:x}}}", u32::from(character));
            }
            _ => out.push(character),
        }
    }
    Cow::Owned(out)
}

fn is_unprintable(character: char) -> bool {
    // Controls, line and paragraph separators, and what changes the direction of the text around it.
    character.is_control()
        || matches!(character, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

/// Whether a folder of this name is no part of anybody's data: hidden, or left there by a system or a program.
pub(crate) fn is_litter(name: &[u8]) -> bool {
    name.starts_with(b".") || LITTER.iter().any(|litter| name.eq_ignore_ascii_case(litter.as_bytes()))
}

/// Whether a file of this name is an image.
pub(crate) fn is_image(name: &[u8]) -> bool {
    let Some(dot) = name.iter().rposition(|&byte| byte == b'.') else { return false };
    IMAGES.iter().any(|ending| name[dot + 1..].eq_ignore_ascii_case(ending.as_bytes()))
}

/// Of files that were passed over because their names begin with a dot: how many, and what to do. `all` says that
/// nothing else is there.
pub(crate) fn hidden(count: u64, all: bool) -> Option<String> {
    let begin = "begins with a dot";
    let what = match (count, all) {
        (0, _) => return None,
        (1, true) => format!(
            "the only file there is hidden (its name {begin}), and hidden files are not read: rename it"
        ),
        (1, false) => {
            format!("1 file there is hidden (its name {begin}) and not read: rename it if it is data")
        }
        (count, true) => format!(
            "all {count} files there are hidden (their names begin with a dot), and hidden files are not read: rename them"
        ),
        (count, false) => format!(
            "{count} files there are hidden (their names begin with a dot) and not read: rename those that are data"
        ),
    };
    Some(what)
}

/// Files directly in a folder whose names begin with a dot, as far as anybody looks.
fn count_hidden(folder: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(folder) else { return 0 };
    let is_hidden = |entry: &std::fs::DirEntry| {
        entry.file_name().as_bytes().starts_with(b".") && !entry.file_type().is_ok_and(|kind| kind.is_dir())
    };
    entries.flatten().take(MOST_LIKE).filter(is_hidden).count() as u64
}

/// That something is not there: how far the path exists, and what has a name like the one that is missing.
pub(crate) fn missing(path: &Path) -> String {
    let mut last = path;
    let mut nearest = path.parent();
    while let Some(folder) = nearest {
        if std::fs::metadata(folder).is_ok() {
            break;
        }
        (last, nearest) = (folder, folder.parent());
    }
    let (Some(folder), Some(name)) = (nearest, last.file_name()) else {
        return format!("{} does not exist; check the path", shown(path));
    };
    let wanted = shown(Path::new(name)).to_string();
    let mut text = format!("{} does not exist", shown(path));
    if !folder.is_dir() {
        let _ = write!(text, ": {} is a file, not a folder", shown(folder));
        return text;
    }
    let (names, like) = alike(folder, &wanted);
    if last != path {
        let _ = write!(text, ": {} has no \"{wanted}\"", shown(folder));
    }
    match (&like[..], &names[..]) {
        ([], []) => {
            let _ = match hidden(count_hidden(folder), true) {
                Some(hidden) => write!(text, "; {}: {hidden}", shown(folder)),
                None => write!(text, "; {} is empty", shown(folder)),
            };
        }
        ([], _) if names.len() <= MOST_NAMED => {
            let _ = write!(text, "; {} has {}", shown(folder), names.join(", "));
        }
        ([], _) => text.push_str("; check the path"),
        _ => {
            let _ = write!(text, "; did you mean {}?", like.join(" or "));
        }
    }
    text
}

/// The names in a folder, and those among them that are like another one, as shown.
fn alike(folder: &Path, wanted: &str) -> (Vec<String>, Vec<String>) {
    let Ok(entries) = std::fs::read_dir(folder) else { return (Vec::new(), Vec::new()) };
    let mut names: Vec<String> = entries
        .flatten()
        .take(MOST_LIKE)
        .filter(|entry| !is_litter(entry.file_name().as_bytes()))
        .map(|entry| shown(Path::new(&entry.file_name())).to_string())
        .collect();
    names.sort_unstable();
    let plain = |text: &str| text.to_lowercase().chars().filter(|c| c.is_alphanumeric()).collect::<Vec<_>>();
    let target = plain(wanted);
    let mut like: Vec<(usize, &String)> = names
        .iter()
        .map(|name| (distance(&plain(name), &target), name))
        .filter(|(far, _)| *far <= (target.len() / 4).clamp(1, 3) && *far < target.len())
        .collect();
    like.sort();
    let like = like.into_iter().take(2).map(|(_, name)| folder.join(name)).collect::<Vec<PathBuf>>();
    let like = like.iter().map(|path| shown(path).to_string()).collect();
    (names, like)
}

/// How many letters have to be changed, added, left out or swapped with their neighbour; names that cannot be alike are
/// not compared.
fn distance(a: &[char], b: &[char]) -> usize {
    let is_far = a.len().abs_diff(b.len()) > 3 || a.len().max(b.len()) > 256;
    if is_far { usize::MAX } else { strsim::generic_damerau_levenshtein(a, b) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_a_terminal_obeys_is_shown_as_it_is() {
        assert!(matches!(printable("caf\u{e9}/\u{1f600} x.jpg"), Cow::Borrowed(_)));
        assert_eq!(printable("a\nb\r\t\u{1b}[31m\u{9b}\u{202e}"), "a\\nb\\r\\t\\x1b[31m\\x9b\\u{202e}");
        let path = Path::new(OsStr::from_bytes(b"caf\xe9\n/\xff.jpg"));
        assert_eq!(shown(path).to_string(), "caf\\xe9\\n/\\xff.jpg");
    }

    #[test]
    fn what_is_missing_is_named_with_what_is_like_it() {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        assert!(missing(&at("x")).ends_with("is empty"), "{}", missing(&at("x")));
        std::fs::write(at(".hidden"), "").unwrap();
        assert!(missing(&at("x")).contains("the only file there is hidden"), "{}", missing(&at("x")));
        for name in ["Train", "val", "labels.csv", "shard-000.tar"] {
            std::fs::create_dir(at(name)).unwrap();
        }
        std::fs::write(at("file"), "").unwrap();
        for (name, expected) in [
            ("train", "did you mean"),
            ("tarin/cat", "has no \"tarin\"; did you mean"),
            ("label.csv", "labels.csv?"),
            ("something", "has Train, file, labels.csv, shard-000.tar, val"),
            ("file/x", "file is a file, not a folder"),
        ] {
            let text = missing(&at(name));
            assert!(text.contains("does not exist") && text.contains(expected), "{text}");
        }
        assert!(
            is_litter(b"__MACOSX") && is_litter(b".git") && is_litter(b"lost+found") && !is_litter(b"cat")
        );
    }
}
