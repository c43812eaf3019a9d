//! JSON and numbers as they stand in small members.

use serde_json::Value;

use crate::{ElementType, MAX_FIELD_BYTES};

/// Follows a path of keys; a number is a place in a list.
pub(super) fn find<'value>(value: &'value Value, path: &[String]) -> Option<&'value Value> {
    path.iter().try_fold(value, |value, key| match value {
        Value::Object(map) => map.get(key),
        Value::Array(list) => list.get(key.parse::<usize>().ok()?),
        _ => None,
    })
}

/// A number, or nested lists of numbers of one shape, written out flat.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Numbers {
    pub shape: Vec<u64>,
    /// Whole numbers as they are; the others as `f32`.
    pub whole: Vec<i64>,
    pub real: Vec<f32>,
    /// Whether all of them are whole.
    pub is_whole: bool,
}

impl Numbers {
    /// Reads a value.
    pub fn from_json(value: &Value) -> Result<Self, String> {
        let mut numbers = Self { is_whole: true, ..Self::default() };
        let mut first = value;
        while let Value::Array(list) = first {
            numbers.shape.push(list.len() as u64);
            match list.first() {
                Some(next) => first = next,
                None => break,
            }
        }
        numbers.add(value, 0)?;
        Ok(numbers)
    }

    fn add(&mut self, value: &Value, depth: usize) -> Result<(), String> {
        match value {
            Value::Array(list) if depth < self.shape.len() => {
                if self.shape[depth] != list.len() as u64 {
                    return Err("its lists have different lengths".into());
                }
                list.iter().try_for_each(|value| self.add(value, depth + 1))
            }
            Value::Array(_) => Err("its lists are nested differently".into()),
            _ if depth != self.shape.len() => Err("its lists are nested differently".into()),
            Value::Bool(value) => {
                self.push(Some(i64::from(*value)), 0.0);
                Ok(())
            }
            Value::Number(number) => {
                if number.is_u64() && !number.is_i64() {
                    return Err(format!("{number} is too large for a whole number of 64 bits"));
                }
                self.push(number.as_i64(), number.as_f64().unwrap_or(f64::NAN) as f32);
                Ok(())
            }
            other => Err(format!("it holds {}; numbers are expected", kind(other))),
        }
    }

    fn push(&mut self, whole: Option<i64>, real: f32) {
        self.is_whole &= whole.is_some();
        self.whole.push(whole.unwrap_or(0));
        self.real.push(whole.map_or(real, |whole| whole as f32));
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// What the header of an npy file says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NpyHeader {
    /// Bytes before the data.
    pub len: u64,
    pub dtype: ElementType,
    pub shape: Vec<u64>,
}

/// Longest header of an npy file that is looked at; numpy's own is 128 bytes for all but odd arrays.
pub(super) const MAX_NPY_HEADER: u64 = 4 << 10;

impl NpyHeader {
    /// Reads the beginning of an npy file of `size` bytes.
    ///
    /// # Errors
    /// A sentence: not an npy file, another byte or element order, or data of another length than its shape says.
    pub fn parse(start: &[u8], size: u64) -> Result<Self, String> {
        let damaged = || "it is no npy file, or a damaged one".to_owned();
        let version = *start.strip_prefix(b"\x93NUMPY").and_then(|rest| rest.first()).ok_or_else(damaged)?;
        let (begin, len) = match (version, start) {
            (1, [_, _, _, _, _, _, _, _, a, b, ..]) => (10, usize::from(u16::from_le_bytes([*a, *b]))),
            (2 | 3, [_, _, _, _, _, _, _, _, a, b, c, d, ..]) => {
                (12, u32::from_le_bytes([*a, *b, *c, *d]) as usize)
            }
            _ => return Err(damaged()),
        };
        let text = begin_at(start, begin, len).ok_or_else(damaged)?;
        let text = std::str::from_utf8(text).map_err(|_| damaged())?;
        let after = |key: &str| text.split_once(key).map(|(_, rest)| rest.trim_start_matches([':', ' ']));
        let descr = after("'descr'").and_then(|rest| rest.strip_prefix('\'')?.split('\'').next());
        let descr = descr.ok_or("its elements are no plain numbers")?;
        let dtype = match descr {
            "|b1" => ElementType::Bool,
            "|u1" => ElementType::U8,
            "|i1" => ElementType::I8,
            "<u2" => ElementType::U16,
            "<i2" => ElementType::I16,
            "<u4" => ElementType::U32,
            "<i4" => ElementType::I32,
            "<u8" => ElementType::U64,
            "<i8" => ElementType::I64,
            "<f2" => ElementType::F16,
            "<f4" => ElementType::F32,
            "<f8" => ElementType::F64,
            other => {
                return Err(format!(
                    "its elements are of type '{other}'; little-endian numbers are expected (array.astype('<f4'))"
                ));
            }
        };
        let fortran = after("'fortran_order'").ok_or_else(damaged)?;
        let shape =
            after("'shape'").and_then(|rest| rest.strip_prefix('(')?.split_once(')')).ok_or_else(damaged)?.0;
        let shape = shape.split(',').map(str::trim).filter(|part| !part.is_empty());
        let shape = shape.map(|part| part.parse().map_err(|_| damaged())).collect::<Result<Vec<u64>, _>>()?;
        if fortran.starts_with("True") && shape.len() > 1 {
            return Err("it is stored in Fortran order; save numpy.ascontiguousarray(array)".into());
        }
        let bytes = shape.iter().try_fold(dtype.size() as u64, |bytes, &n| bytes.checked_mul(n));
        let bytes = bytes.filter(|&bytes| bytes <= MAX_FIELD_BYTES);
        let bytes = bytes.ok_or_else(|| format!("its shape {shape:?} is too large for a field"))?;
        let len = (begin + len) as u64;
        if size != len + bytes {
            return Err(format!("it has {size} bytes; its header says {}", len + bytes));
        }
        Ok(Self { len, dtype, shape })
    }
}

fn begin_at(bytes: &[u8], begin: usize, len: usize) -> Option<&[u8]> {
    bytes.get(begin..begin.checked_add(len)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn npy(header: &str, data: usize) -> Vec<u8> {
        let mut bytes = b"\x93NUMPY\x01\0".to_vec();
        bytes.extend((header.len() as u16).to_le_bytes());
        bytes.extend(header.as_bytes());
        bytes.resize(bytes.len() + data, 7);
        bytes
    }

    #[test]
    fn an_npy_header_says_where_the_numbers_are() {
        let bytes = npy("{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }   \n", 24);
        let header = NpyHeader::parse(&bytes, bytes.len() as u64).unwrap();
        assert_eq!(
            (header.dtype, header.shape, header.len),
            (ElementType::F32, vec![2, 3], bytes.len() as u64 - 24)
        );
        let bytes = npy("{'descr': '|u1', 'fortran_order': False, 'shape': (), }\n", 1);
        assert_eq!(NpyHeader::parse(&bytes, bytes.len() as u64).unwrap().shape, Vec::<u64>::new());
        for (header, data, expected) in [
            ("{'descr': '>f4', 'fortran_order': False, 'shape': (2,), }", 8, "'>f4'"),
            ("{'descr': '|O', 'fortran_order': False, 'shape': (2,), }", 8, "'|O'"),
            ("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (2,), }", 8, "plain numbers"),
            ("{'descr': '<f4', 'fortran_order': True, 'shape': (2, 1), }", 8, "Fortran"),
            ("{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }", 9, "its header says"),
            (
                "{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999999, 99999999), }",
                9,
                "too large",
            ),
            ("{'descr': '<f4', 'fortran_order': False, 'shape': (x,), }", 9, "damaged"),
            ("", 0, "plain numbers"),
        ] {
            let bytes = npy(header, data);
            let error = NpyHeader::parse(&bytes, bytes.len() as u64).unwrap_err();
            assert!(error.contains(expected), "{header}: {error}");
        }
        for cut in 0..10 {
            assert!(NpyHeader::parse(&npy("", 0)[..cut], 10).is_err());
        }
    }

    #[test]
    fn lists_of_numbers_have_one_shape() {
        let read = |text: &str| Numbers::from_json(&serde_json::from_str(text).unwrap());
        let box_ = read("[[1, 2], [3, 4]]").unwrap();
        assert_eq!((box_.shape, box_.whole, box_.is_whole), (vec![2, 2], vec![1, 2, 3, 4], true));
        let real = read("[1, 0.5]").unwrap();
        assert_eq!((real.real, real.is_whole), (vec![1.0, 0.5], false));
        assert_eq!(read("true").unwrap().whole, [1]);
        assert_eq!(read("[]").unwrap().shape, [0]);
        for (text, expected) in [
            ("[[1, 2], [3]]", "different lengths"),
            ("[1, [2]]", "nested"),
            ("[[1], 2]", "nested"),
            ("[1, \"a\"]", "text"),
            ("null", "null"),
            ("18446744073709551615", "too large"),
        ] {
            assert!(read(text).unwrap_err().contains(expected), "{text}");
        }
    }
}
