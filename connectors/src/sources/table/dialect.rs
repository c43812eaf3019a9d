//! How a CSV file is written: what separates its cells, and where its records begin.
//!
//! - The separator is the one that `delimiter` names, or that Excel's first line `sep=;` does, or the one of comma,
//!   tab, semicolon and bar that gives every line at the beginning the same number of cells, at least two. If several
//!   do, the one that makes a usual name of a column counts; if that leaves several, the file is refused with their
//!   names.
//! - A byte order mark is passed over. UTF-16, and files that are no text, are refused by name.
//! - Lines at the beginning that start with `#` are comments, but for one that has as many cells as the records that
//!   follow: it names the columns (`np.savetxt` writes it so).

use crate::{SourceError, mistaken};

/// What is looked at.
pub(super) const BEGINNING: usize = 64 << 10;

/// Lines that are compared.
const SAMPLE: usize = 200;

const SEPARATORS: [(u8, &str); 4] = [(b',', "comma"), (b'\t', "tab"), (b';', "semicolon"), (b'|', "pipe")];

/// How a CSV file is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Dialect {
    pub delimiter: u8,
    /// Bytes and lines before the first record.
    pub skip: usize,
    pub lines: u64,
}

/// The separator that a configuration names.
///
/// # Errors
/// What it may be.
pub(super) fn separator(text: &str) -> Result<u8, SourceError> {
    let named = SEPARATORS.iter().chain(&[(b' ', "space")]).find(|(_, name)| text.eq_ignore_ascii_case(name));
    match (named, text.as_bytes()) {
        (Some((byte, _)), _) => Ok(*byte),
        (None, b"\\t") => Ok(b'\t'),
        (None, &[byte])
            if byte.is_ascii() && !byte.is_ascii_alphanumeric() && !b"\"\r\n\0.".contains(&byte) =>
        {
            Ok(byte)
        }
        _ => Err(SourceError::config(format!(
            "delimiter = {text:?} separates no cells; it is one character such as \",\", \";\", \"|\" or \"\\t\", or comma, \
             tab, semicolon, pipe or space"
        ))),
    }
}

/// Bytes of the mark at the beginning of a text.
///
/// # Errors
/// When this is no text, or not in UTF-8.
pub(super) fn text_begins(beginning: &[u8]) -> Result<usize, String> {
    let utf16 =
        "it is UTF-16 text; save it as UTF-8 (in Excel: \"CSV UTF-8\"; iconv -f UTF-16 -t UTF-8 old > new)";
    if beginning.starts_with(b"\xff\xfe") || beginning.starts_with(b"\xfe\xff") {
        return Err(utf16.into());
    }
    if let Some(what) = mistaken::what(beginning) {
        return Err(format!("it is {what}"));
    }
    if beginning.contains(&0) {
        return Err(
            "there are zero bytes in it: it is not text, or it is UTF-16, which must be saved as UTF-8"
                .into(),
        );
    }
    Ok(if beginning.starts_with("\u{feff}".as_bytes()) { 3 } else { 0 })
}

impl Dialect {
    /// Recognises it. `whole` says that `beginning` is all of the file, `usual` that a name is one that a column has,
    /// `tabs` that its ending promises tabs.
    ///
    /// # Errors
    /// A sentence, when several separators are as good.
    pub fn recognise(
        beginning: &[u8],
        whole: bool,
        delimiter: Option<u8>,
        tabs: bool,
        usual: &dyn Fn(&str) -> bool,
    ) -> Result<Self, String> {
        let mut skip = text_begins(beginning)?;
        let mut lines = 0;
        let mut named = delimiter;
        let (first, after) = line(&beginning[skip..]);
        if let Some(byte) = first.strip_prefix(b"sep=").filter(|rest| rest.len() == 1) {
            named = named.or(Some(byte[0]));
            (skip, lines) = (skip + after, lines + 1);
        }
        let comments = Comments::find(&beginning[skip..]);
        let text = &beginning[skip + comments.bytes..];
        let delimiter = match named {
            Some(byte) => byte,
            None => Self::separator(text, whole, tabs, usual)?,
        };
        // A line of as many cells as the next one names the columns, unless that does.
        let cells = |text: &[u8]| sample(text, delimiter, true).into_iter().next().unwrap_or_default();
        let own = cells(&beginning[skip + comments.last..skip + comments.bytes]);
        let next = cells(text);
        let is_header = own.len() > 1 && own.len() == next.len() && !next.iter().any(|cell| usual(cell));
        let comments = if is_header {
            Comments { bytes: comments.last, lines: comments.lines - 1, last: 0 }
        } else {
            comments
        };
        Ok(Self { delimiter, skip: skip + comments.bytes, lines: lines + comments.lines })
    }

    fn separator(text: &[u8], whole: bool, tabs: bool, usual: &dyn Fn(&str) -> bool) -> Result<u8, String> {
        let preferred = if tabs { b'\t' } else { b',' };
        let mut possible: Vec<(u8, &str, bool)> = Vec::new();
        // Where lines differ, the share of those that are as long as the first.
        let mut most = (0, preferred);
        for (byte, name) in SEPARATORS {
            let rows = sample(text, byte, whole);
            let Some(first) = rows.first().filter(|first| first.len() > 1) else { continue };
            let same = rows.iter().filter(|row| row.len() == first.len()).count();
            let share = same * 1000 / rows.len() * 2 + usize::from(byte == preferred);
            most = most.max((share, byte));
            if same == rows.len() {
                possible.push((byte, name, first.iter().any(|cell| usual(cell))));
            }
        }
        if possible.len() > 1 && possible.iter().any(|(.., usual)| *usual) {
            possible.retain(|(.., usual)| *usual);
        }
        match possible[..] {
            [] if most.0 > 0 => Ok(most.1),
            [] => Ok(preferred),
            [(byte, ..)] => Ok(byte),
            _ => {
                let names: Vec<&str> = possible.iter().map(|(_, name, _)| *name).collect();
                Err(format!(
                    "its delimiter is not clear: {0} would work; say which (delimiter=\"{1}\")",
                    names.join(" and "),
                    names[0]
                ))
            }
        }
    }
}

/// Lines at the beginning that start with `#`.
#[derive(Default)]
struct Comments {
    bytes: usize,
    lines: u64,
    /// Where the last of them begins.
    last: usize,
}

impl Comments {
    fn find(text: &[u8]) -> Self {
        let mut found = Self::default();
        while text[found.bytes..].starts_with(b"#") {
            let (_, after) = line(&text[found.bytes..]);
            if found.bytes + after >= text.len() {
                // Nothing follows, so this is all there is.
                return Self::default();
            }
            found = Self { bytes: found.bytes + after, lines: found.lines + 1, last: found.bytes };
        }
        found
    }
}

/// The first line, and the bytes up to the second.
fn line(text: &[u8]) -> (&[u8], usize) {
    let end = text.iter().position(|&b| b == b'\n').unwrap_or(text.len());
    (text[..end].strip_suffix(b"\r").unwrap_or(&text[..end]), (end + 1).min(text.len()))
}

/// The records at the beginning, cut by a separator. The last one counts only if the text is `whole`.
fn sample(text: &[u8], delimiter: u8, whole: bool) -> Vec<Vec<String>> {
    let mut reader = csv::ReaderBuilder::new();
    reader.has_headers(false).flexible(true).delimiter(delimiter);
    let mut reader = reader.from_reader(text);
    let (mut rows, mut record) = (Vec::new(), csv::ByteRecord::new());
    while rows.len() < SAMPLE && reader.read_byte_record(&mut record).unwrap_or(false) {
        if !whole && reader.position().byte() as usize >= text.len() && !rows.is_empty() {
            break;
        }
        rows.push(record.iter().map(|cell| String::from_utf8_lossy(cell).trim().to_owned()).collect());
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recognise(text: &str) -> Result<Dialect, String> {
        let usual = |name: &str| ["path", "label"].contains(&name.to_lowercase().as_str());
        Dialect::recognise(text.as_bytes(), true, None, false, &usual)
    }

    #[test]
    fn the_separator_is_the_one_that_cuts_all_lines_alike() {
        for (text, expected) in [
            ("path,label\na.jpg,1\n", b','),
            ("path;label\na.jpg;1\n", b';'),
            ("path\tlabel\r\na.jpg\t1\r\n", b'\t'),
            ("path|label\na.jpg|1\n", b'|'),
            ("a.jpg;1\nb.jpg;2\n", b';'),
            // Commas in cells, decimal commas, and quoted separators.
            ("path;label;weight\na.jpg;1;0,5\nb.jpg;2;0,25\n", b';'),
            ("path,tags\na.jpg,x;y\nb.jpg,z\n", b','),
            ("path,tags\n\"a;b.jpg\",\"x,y;\nz\"\n", b','),
            ("\"path\";\"label\"\n\"a,b.jpg\";1\n", b';'),
            // Both cut alike, and only one makes a usual name.
            ("path,x;y\na,b;c\n", b','),
            ("path;x,y\na;b,c\n", b';'),
            // One column, none, nothing at all; a line with a cell too few.
            ("path\na.jpg\n", b','),
            ("path;label\na.jpg;1\nb.jpg\nc.jpg;2\n", b';'),
            ("path,label\na.jpg,1\nb.jpg\nc.jpg,2\n", b','),
            ("", b','),
            ("sep=|\npath,x|label\n", b'|'),
            ("sep=\t\r\npath,x\tlabel\r\n", b'\t'),
        ] {
            assert_eq!(recognise(text).unwrap().delimiter, expected, "{text:?}");
        }
        let why = recognise("a,b;c\n1,2;3\n").unwrap_err();
        assert!(why.contains("comma and semicolon") && why.contains("delimiter=\"comma\""), "{why}");
    }

    #[test]
    fn marks_and_comments_before_the_first_record_are_passed_over() {
        for (text, skip, lines) in [
            ("\u{feff}path,label\n", 3, 0),
            ("\u{feff}sep=;\r\npath;label\n", 10, 1),
            ("# made by x\n# on Monday, at noon\npath,label\na,1\n", 33, 2),
            ("# made by x\npath\na.jpg\n", 12, 1),
            ("#path,label\na.jpg,1\n", 0, 0),
            ("# one\n#path,label\na.jpg,1\n", 6, 1),
            ("# only\n", 0, 0),
        ] {
            let found = recognise(text).unwrap();
            assert_eq!((found.skip, found.lines), (skip, lines), "{text:?}");
        }
        for (bytes, expected) in [
            (&b"\xff\xfep\0"[..], "UTF-16"),
            (b"p\0a\0", "UTF-16"),
            (b"\x1f\x8b\x08", "gzip"),
            (b"PK\x03\x04", "Excel"),
            (b"PAR1", ".parquet"),
        ] {
            assert!(text_begins(bytes).unwrap_err().contains(expected), "{expected}");
        }
    }

    #[test]
    fn a_separator_may_be_named() {
        for (text, expected) in
            [(";", b';'), ("\t", b'\t'), ("\\t", b'\t'), ("Tab", b'\t'), (" ", b' '), ("pipe", b'|')]
        {
            assert_eq!(separator(text).unwrap(), expected);
        }
        for wrong in ["", ",,", "a", "\"", "\n", "é"] {
            assert!(separator(wrong).unwrap_err().to_string().contains("comma"), "{wrong:?}");
        }
    }
}
