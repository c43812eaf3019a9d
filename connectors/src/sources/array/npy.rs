//! The header of an npy file, versions 1 to 3.
//!
//! ```text
//!  \x93NUMPY | major minor | length, u16 or u32 | {'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), } … \n | data
//! ```
//!
//! The header is a Python dictionary. It is read by a grammar of exactly these three keys, never evaluated, and nothing
//! in it can ask for more memory than the header itself has.

use std::borrow::Cow;
use std::fmt;

use crate::ElementType;
use crate::column::{Part, PixelLayout, Stored, product};

/// A longer header is no header: numpy itself stops at 10,000 bytes unless told otherwise.
pub(crate) const MAX_HEADER: usize = 64 << 10;

/// numpy's own limit on the number of axes.
const MAX_AXES: usize = 64;

/// What a header says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Npy {
    /// How elements are stored, or the name of a kind that is not read.
    pub dtype: Result<Stored, Unread>,
    /// Whether the first axis runs fastest.
    pub fortran: bool,
    pub shape: Vec<u64>,
    /// The first byte of the data.
    pub data: u64,
}

/// Kinds of elements that are known and no numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Unread {
    what: String,
    /// How the texts are stored, if they are: class names of labels.
    pub texts: Option<Texts>,
}

/// Texts of one width, padded with zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Texts {
    /// Characters of four bytes (numpy's `U`), or bytes (`S`).
    pub width: u64,
    pub wide: bool,
    /// Big-endian characters.
    pub big: bool,
}

impl Texts {
    /// Bytes of one.
    pub fn size(self) -> u64 {
        self.width.saturating_mul(if self.wide { 4 } else { 1 })
    }

    /// The bytes of these without their padding; texts of wide characters in UTF-8.
    pub fn bytes(self, stored: &[u8]) -> Result<Cow<'_, [u8]>, &'static str> {
        if !self.wide {
            let end = stored.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1);
            return Ok(Cow::Borrowed(&stored[..end]));
        }
        let mut text = self.text(stored).map_err(|_| "has a character that does not exist")?;
        text.truncate(text.trim_end_matches('\0').len());
        Ok(Cow::Owned(text.into_bytes()))
    }

    /// The text of these bytes, or why there is none.
    pub fn text(self, bytes: &[u8]) -> Result<String, &'static str> {
        if !self.wide {
            return String::from_utf8(bytes.to_vec()).map_err(|_| "its label is not UTF-8 text");
        }
        let code =
            |four: &[u8; 4]| if self.big { u32::from_be_bytes(*four) } else { u32::from_le_bytes(*four) };
        let characters = bytes.as_chunks().0.iter().map(|four| char::from_u32(code(four)));
        characters.collect::<Option<String>>().ok_or("its label is not text: a character does not exist")
    }
}

impl From<String> for Unread {
    fn from(what: String) -> Self {
        Self { what, texts: None }
    }
}

impl fmt::Display for Unread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

impl Unread {
    /// What else can be done, as the end of a sentence.
    pub(crate) fn remedy(&self) -> &'static str {
        if self.what.starts_with("Python objects") {
            ": images of one size are one array of numbers (np.stack), others are files"
        } else if self.what.starts_with("a structured type") {
            ": save each of its columns as an array of its own (a[\"name\"])"
        } else {
            ""
        }
    }
}

/// Why there is no header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum NpyError {
    /// It needs this many bytes from the start of the file.
    Short(usize),
    /// It is not one.
    Wrong(String),
}

impl Npy {
    /// Bytes of the data, if a u64 can say it; of a refused kind unknown.
    pub(crate) fn data_bytes(&self) -> Option<u64> {
        let size = match &self.dtype {
            Ok(stored) => stored.element.size() as u64,
            Err(unread) => unread.texts?.size(),
        };
        product(&self.shape)?.checked_mul(size)
    }

    /// How its texts are stored, if that is what it holds.
    pub(crate) fn texts(&self) -> Option<Texts> {
        self.dtype.as_ref().err()?.texts
    }

    /// Whether its rows would be images, if they lay together.
    pub(crate) fn is_image_in_fortran_order(&self, layout: PixelLayout) -> bool {
        let (Ok(stored), Some(row)) = (&self.dtype, self.shape.get(1..)) else { return false };
        self.fortran && Part::pixels(stored.element, row, layout).is_some()
    }

    /// Reads the header at the start of `bytes`.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, NpyError> {
        let wrong = |why: &str| Err(NpyError::Wrong(why.to_owned()));
        let Some((start, rest)) = bytes.split_at_checked(8) else { return Err(NpyError::Short(12)) };
        if start[..6] != *b"\x93NUMPY" {
            return wrong("it does not begin as an npy file");
        }
        let (length, before) = match (start[6], rest) {
            (1, [a, b, ..]) => (usize::from(u16::from_le_bytes([*a, *b])), 10),
            (2 | 3, [a, b, c, d, ..]) => (u32::from_le_bytes([*a, *b, *c, *d]) as usize, 12),
            (1..=3, _) => return Err(NpyError::Short(12)),
            (version, _) => return Err(NpyError::Wrong(format!("npy version {version} is not known"))),
        };
        if length > MAX_HEADER {
            return wrong("its header is longer than 64 KiB");
        }
        let Some(header) = bytes.get(before..before + length) else {
            return Err(NpyError::Short(before + length));
        };
        let Ok(text) = std::str::from_utf8(header) else { return wrong("its header is not UTF-8") };
        let mut parser = Parser(text);
        match parser.header() {
            Ok((dtype, fortran, shape)) => Ok(Self { dtype, fortran, shape, data: (before + length) as u64 }),
            Err(why) => {
                let at = text.len() - parser.0.len();
                Err(NpyError::Wrong(format!("its header is not understood at character {at}: {why}")))
            }
        }
    }
}

struct Parser<'text>(&'text str);

type Header = (Result<Stored, Unread>, bool, Vec<u64>);

impl<'text> Parser<'text> {
    fn header(&mut self) -> Result<Header, &'static str> {
        let (mut descr, mut fortran, mut shape) = (None, None, None);
        self.expect('{')?;
        while !self.accept('}') {
            let key = self.string()?;
            self.expect(':')?;
            let fresh = match key {
                "descr" => descr.replace(self.descr()?).is_none(),
                "fortran_order" => fortran.replace(self.boolean()?).is_none(),
                "shape" => shape.replace(self.shape()?).is_none(),
                _ => return Err("a key other than descr, fortran_order and shape"),
            };
            if !fresh {
                return Err("a key comes twice");
            }
            if !self.accept(',') {
                self.expect('}')?;
                break;
            }
        }
        self.space();
        match (descr, fortran, shape) {
            _ if !self.0.is_empty() => Err("something follows the dictionary"),
            (Some(descr), Some(fortran), Some(shape)) => Ok((descr, fortran, shape)),
            _ => Err("descr, fortran_order or shape is missing"),
        }
    }

    fn space(&mut self) {
        self.0 = self.0.trim_start_matches([' ', '\n', '\t', '\r']);
    }

    fn accept(&mut self, wanted: char) -> bool {
        self.space();
        let rest = self.0.strip_prefix(wanted);
        self.0 = rest.unwrap_or(self.0);
        rest.is_some()
    }

    fn expect(&mut self, wanted: char) -> Result<(), &'static str> {
        if self.accept(wanted) { Ok(()) } else { Err("a brace, colon, comma or bracket is missing") }
    }

    fn string(&mut self) -> Result<&'text str, &'static str> {
        self.space();
        let Some(quote @ ('\'' | '"')) = self.0.chars().next() else {
            return Err("a quoted text is missing");
        };
        let (text, rest) = self.0[1..].split_once(quote).ok_or("a quote is not closed")?;
        if text.contains('\\') {
            return Err("a text with a backslash");
        }
        self.0 = rest;
        Ok(text)
    }

    fn boolean(&mut self) -> Result<bool, &'static str> {
        self.space();
        for (text, value) in [("True", true), ("False", false)] {
            if let Some(rest) = self.0.strip_prefix(text) {
                self.0 = rest;
                return Ok(value);
            }
        }
        Err("True or False is missing")
    }

    fn shape(&mut self) -> Result<Vec<u64>, &'static str> {
        let mut shape = Vec::new();
        self.expect('(')?;
        while !self.accept(')') {
            self.space();
            let end = self.0.find(|c: char| !c.is_ascii_digit()).unwrap_or(self.0.len());
            let number =
                self.0[..end].parse().map_err(|_| "a length of an axis is not a number below 2^64")?;
            // Python 2 wrote long integers with an L.
            self.0 = self.0[end..].strip_prefix('L').unwrap_or(&self.0[end..]);
            shape.push(number);
            if shape.len() > MAX_AXES {
                return Err("more than 64 axes");
            }
            if !self.accept(',') {
                self.expect(')')?;
                break;
            }
        }
        Ok(shape)
    }

    fn descr(&mut self) -> Result<Result<Stored, Unread>, &'static str> {
        self.space();
        if !self.0.starts_with('[') {
            return dtype(self.string()?);
        }
        // A structured type: brackets are skipped to the one that closes it, quoted texts as such.
        let mut depth = 0usize;
        while let Some(next) = self.0.chars().next() {
            match next {
                '\'' | '"' => {
                    self.string()?;
                    continue;
                }
                '[' | '(' => depth += 1,
                ']' | ')' => depth = depth.checked_sub(1).ok_or("brackets do not match")?,
                _ => {}
            }
            self.0 = &self.0[next.len_utf8()..];
            if depth == 0 {
                return Ok(Err("a structured type (records with named columns)".to_owned().into()));
            }
        }
        Err("brackets do not match")
    }
}

/// Texts that are wider are no class names.
const MAX_WIDTH: u64 = 1 << 12;

/// A numpy type string such as `<f4`.
fn dtype(text: &str) -> Result<Result<Stored, Unread>, &'static str> {
    use ElementType::*;
    let mut chars = text.chars();
    let big = match chars.next() {
        Some('<' | '|' | '=') => false,
        Some('>') => true,
        _ => return Err("a type does not begin with <, >, | or ="),
    };
    let element = match chars.as_str() {
        "b1" => Bool,
        "u1" => U8,
        "i1" => I8,
        "u2" => U16,
        "i2" => I16,
        "u4" => U32,
        "i4" => I32,
        "u8" => U64,
        "i8" => I64,
        "f2" => F16,
        "f4" => F32,
        "f8" => F64,
        other => {
            let kind = match other.chars().next() {
                Some('O') => "Python objects, which only pickle can load, and pickle runs code",
                Some('U' | 'S' | 'a') => "texts",
                Some('c') => "complex numbers",
                Some('M' | 'm') => "times",
                Some('V') => "opaque bytes",
                Some('f') => "long floating-point numbers",
                _ => return Err("a type that numpy does not have"),
            };
            let width = other.strip_prefix(['U', 'S', 'a']).and_then(|width| width.parse().ok());
            let texts = width.filter(|width| (1..=MAX_WIDTH).contains(width));
            let texts = texts.map(|width| Texts { width, wide: other.starts_with('U'), big });
            return Ok(Err(Unread { what: format!("{kind} ({text})"), texts }));
        }
    };
    Ok(Ok(Stored { element, big }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn file(version: u8, header: &str) -> Vec<u8> {
        let mut bytes = vec![0x93];
        bytes.extend(b"NUMPY");
        bytes.extend([version, 0]);
        match version {
            1 => bytes.extend((header.len() as u16).to_le_bytes()),
            _ => bytes.extend((header.len() as u32).to_le_bytes()),
        }
        bytes.extend(header.as_bytes());
        bytes
    }

    #[test]
    fn headers_of_all_versions_are_read() {
        let text = "{'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }          \n";
        for version in 1..=3 {
            let bytes = file(version, text);
            let npy = Npy::parse(&bytes).unwrap();
            assert_eq!(npy.dtype, Ok(Stored { element: ElementType::F32, big: false }));
            assert_eq!((npy.shape.clone(), npy.fortran, npy.data), (vec![3, 4], false, bytes.len() as u64));
            assert_eq!(npy.data_bytes(), Some(48));
        }
        let npy = Npy::parse(&file(1, "{\"shape\":(7L,),'fortran_order':True,'descr':'>i2'}")).unwrap();
        assert_eq!(npy.dtype, Ok(Stored { element: ElementType::I16, big: true }));
        assert_eq!((npy.shape, npy.fortran), (vec![7], true));
        assert_eq!(
            Npy::parse(&file(1, "{'descr':'|u1','fortran_order':False,'shape':()}")).unwrap().shape,
            [0u64; 0]
        );
    }

    #[test]
    fn kinds_that_are_not_numbers_are_named() {
        for (descr, expected) in [
            ("'|O'", "pickle"),
            ("'<U7'", "texts"),
            ("'|S3'", "texts"),
            ("'<c8'", "complex"),
            ("'<M8[ns]'", "times"),
            ("'|V5'", "opaque"),
            ("'<f16'", "long"),
            ("[('a', '<f4'), ('b]', '<i8', (2,))]", "structured"),
        ] {
            let text = format!("{{'descr': {descr}, 'fortran_order': False, 'shape': (2,), }}\n");
            let unread = Npy::parse(&file(1, &text)).unwrap().dtype.unwrap_err().to_string();
            assert!(unread.contains(expected), "{unread}");
        }
    }

    #[test]
    fn anything_else_is_refused_in_words() {
        for text in [
            "",
            "{}",
            "{'descr': '<f4', 'fortran_order': False}",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (1,), 'x': 1}",
            "{'descr': '<f4', 'descr': '<f4', 'fortran_order': False, 'shape': (1,)}",
            "{'descr': '<f4', 'fortran_order': 0, 'shape': (1,)}",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (-1,)}",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999999999999,)}",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (1,)} print(1)",
            "{'descr': '<q4', 'fortran_order': False, 'shape': (1,)}",
            "{'descr': [[[[', 'fortran_order': False, 'shape': (1,)}",
        ] {
            assert!(matches!(Npy::parse(&file(1, text)), Err(NpyError::Wrong(_))), "{text}");
        }
        let axes = "1,".repeat(65);
        let text = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({axes})}}");
        assert!(matches!(Npy::parse(&file(1, &text)), Err(NpyError::Wrong(why)) if why.contains("64 axes")));
        assert!(matches!(Npy::parse(b"PK\x03\x04........"), Err(NpyError::Wrong(_))));
        assert_eq!(Npy::parse(b"\x93NUMPY"), Err(NpyError::Short(12)));
        assert!(matches!(Npy::parse(b"\x93NUMPY\x02\x00\xff\xff\xff\xff"), Err(NpyError::Wrong(_))));
        assert!(matches!(Npy::parse(b"\x93NUMPY\x01\x00\x10\x00{"), Err(NpyError::Short(26))));
    }

    proptest! {
        #[test]
        fn no_bytes_can_panic_it(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = Npy::parse(&bytes);
        }

        #[test]
        fn no_header_can_panic_it(text in "[\\{\\}\\[\\]\\(\\)':,a-z0-9<>| \"Lé]{0,60}") {
            let _ = Npy::parse(&file(3, &text));
            let _ = Npy::parse(&file(1, &format!("{{'descr': {text}, 'fortran_order': False, 'shape': (1,)}}")));
        }

        #[test]
        fn what_numpy_writes_is_read(shape in prop::collection::vec(0u64..1 << 40, 0..6), fortran: bool, big: bool) {
            let axes: String = shape.iter().map(|n| format!("{n}, ")).collect();
            let (order, flag) = (if big { '>' } else { '<' }, if fortran { "True" } else { "False" });
            let text = format!("{{'descr': '{order}i4', 'fortran_order': {flag}, 'shape': ({axes}), }}\n");
            let npy = Npy::parse(&file(1, &text)).unwrap();
            prop_assert_eq!(npy.data_bytes(), product(&shape).and_then(|n| n.checked_mul(4)));
            prop_assert_eq!((npy.shape, npy.fortran, npy.dtype.unwrap().big), (shape, fortran, big));
        }
    }
}
