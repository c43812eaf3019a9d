//! The header of an npy file that is a part or a field of one record.

use crate::{ElementType, MAX_FIELD_BYTES};

/// What the header of an npy file says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NpyHeader {
    /// Bytes before the data.
    pub len: u64,
    pub dtype: ElementType,
    pub shape: Vec<u64>,
}

/// Longest header of an npy file that is looked at; numpy's own is 128 bytes for all but odd arrays.
pub(crate) const MAX_NPY_HEADER: u64 = 4 << 10;

impl NpyHeader {
    /// Reads the header of a whole file.
    ///
    /// # Errors
    /// As [`parse`](Self::parse).
    pub fn of(file: &[u8]) -> Result<Self, String> {
        let start = &file[..file.len().min(MAX_NPY_HEADER as usize)];
        Self::parse(start, file.len() as u64).map_err(|why| format!("cannot be read: {why}"))
    }

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
}
