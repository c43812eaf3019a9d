//! A list of numbers from an npy file: weights, one a record.

use std::io::Read;
use std::path::Path;

use crate::array::{Npy, NpyError};
use crate::{ElementType, SourceError};

/// A longer list is no list of weights.
const MAX_BYTES: u64 = 8 << 30;

/// Reads a one-dimensional npy array of numbers of any width.
///
/// # Errors
/// [`SourceError`] that names the file and what it holds instead.
pub fn read_numbers(path: &Path) -> Result<Vec<f64>, SourceError> {
    let refuse = |why: &str| SourceError::data(format!("{}: {why}", path.display()));
    let unreadable = |error: std::io::Error| refuse(&format!("cannot be read: {error}"));
    let file = std::fs::File::open(path).map_err(unreadable)?;
    let size = file.metadata().map_err(unreadable)?.len();
    if size > MAX_BYTES {
        return Err(refuse(&format!("{size} bytes are more than a list of weights has")));
    }
    let mut bytes = Vec::new();
    file.take(MAX_BYTES).read_to_end(&mut bytes).map_err(unreadable)?;
    let npy = Npy::parse(&bytes).map_err(|error| match error {
        NpyError::Short(_) => refuse("ends within its header"),
        NpyError::Wrong(why) => refuse(&format!("is no npy file that can be read: {why}")),
    })?;
    let stored =
        npy.dtype.clone().map_err(|unread| refuse(&format!("holds {unread}; numbers are needed")))?;
    let [len] = npy.shape[..] else {
        return Err(refuse(&format!("has shape {:?}; one number a record is needed", npy.shape)));
    };
    let data = bytes.get(npy.data as usize..).unwrap_or_default();
    if npy.data_bytes() != Some(data.len() as u64) {
        return Err(refuse(&format!(
            "holds {} bytes of data, not the {len} numbers of its header",
            data.len()
        )));
    }
    let element = stored.element;
    let number = |bytes: &[u8]| {
        if stored.is_integer() {
            return stored.integer(bytes) as f64;
        }
        let mut little = [0; 8];
        little[..bytes.len()].copy_from_slice(bytes);
        if stored.big {
            little[..bytes.len()].reverse();
        }
        match element {
            ElementType::F64 => f64::from_le_bytes(little),
            ElementType::F32 => f32::from_le_bytes([little[0], little[1], little[2], little[3]]).into(),
            ElementType::F16 => half::f16::from_le_bytes([little[0], little[1]]).into(),
            _ => f64::from(little[0]),
        }
    };
    Ok(data.chunks_exact(element.size()).map(number).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(descr: &str, shape: &str, data: &[u8]) -> Result<Vec<f64>, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("w.npy");
        let header = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}\n");
        let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
        bytes.extend((header.len() as u16).to_le_bytes());
        bytes.extend(header.as_bytes());
        bytes.extend(data);
        std::fs::write(&path, bytes).unwrap();
        read_numbers(&path).map_err(|error| error.to_string())
    }

    #[test]
    fn numbers_of_every_width_are_read() {
        assert_eq!(
            read("<f8", "(2,)", &[1.5f64.to_le_bytes(), (-2f64).to_le_bytes()].concat()).unwrap(),
            [1.5, -2.0]
        );
        assert_eq!(read(">f4", "(1,)", &0.25f32.to_be_bytes()).unwrap(), [0.25]);
        assert_eq!(read("|u1", "(3,)", &[0, 1, 255]).unwrap(), [0.0, 1.0, 255.0]);
        assert_eq!(read("<i8", "(1,)", &(-7i64).to_le_bytes()).unwrap(), [-7.0]);
    }

    #[test]
    fn what_is_no_list_of_numbers_is_refused_by_name() {
        for (descr, shape, data, why) in [
            ("<f8", "(1, 1)", &[0u8; 8][..], "shape [1, 1]"),
            ("<f8", "(2,)", &[0; 8], "8 bytes of data"),
            ("|O", "(1,)", &[0; 8], "numbers are needed"),
        ] {
            let error = read(descr, shape, data).unwrap_err();
            assert!(error.contains("w.npy") && error.contains(why), "{error}");
        }
    }
}
