//! A list of numbers from an npy file: weights, one a record.

use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use crate::names::shown;
use crate::sources::array::{MAX_HEADER, Npy, NpyError};
use crate::{ElementType, SourceError};

/// Reads a one-dimensional npy array of `count` numbers of any width. Nothing but the header is read of a file that
/// holds another number of them.
///
/// # Errors
/// [`SourceError`] that names the file and what it holds instead.
pub fn read_numbers(path: &Path, count: u64) -> Result<Vec<f64>, SourceError> {
    let refuse = |why: &str| SourceError::data(format!("{}: {why}", shown(&path)));
    let unreadable = |error: std::io::Error| refuse(&format!("cannot be read: {error}"));
    let mut file = std::fs::File::open(path).map_err(unreadable)?;
    let size = file.metadata().map_err(unreadable)?.len();
    let mut header = Vec::new();
    (&mut file).take(MAX_HEADER as u64 + 12).read_to_end(&mut header).map_err(unreadable)?;
    let npy = Npy::parse(&header).map_err(|error| match error {
        NpyError::Short(_) => refuse("ends within its header"),
        NpyError::Wrong(why) => refuse(&format!("is not a readable npy file: {why}")),
    })?;
    let stored =
        npy.dtype.clone().map_err(|unread| refuse(&format!("holds {unread}; numbers are needed")))?;
    if npy.shape != [count] {
        let shape = &npy.shape;
        return Err(refuse(&format!(
            "has shape {shape:?}; one number for each of {count} records is needed"
        )));
    }
    let Some(bytes) = npy.data_bytes().filter(|bytes| npy.data + bytes == size) else {
        return Err(refuse(&format!("is {size} bytes long, which is not what its header says")));
    };
    file.seek(SeekFrom::Start(npy.data)).map_err(unreadable)?;
    let mut data = Vec::new();
    file.take(bytes).read_to_end(&mut data).map_err(unreadable)?;
    if data.len() as u64 != bytes {
        return Err(refuse("was cut while it was read"));
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

    fn read(descr: &str, shape: &str, data: &[u8], count: u64) -> Result<Vec<f64>, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("w.npy");
        let header = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}\n");
        let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
        bytes.extend((header.len() as u16).to_le_bytes());
        bytes.extend(header.as_bytes());
        bytes.extend(data);
        std::fs::write(&path, bytes).unwrap();
        read_numbers(&path, count).map_err(|error| error.to_string())
    }

    #[test]
    fn numbers_of_every_width_are_read() {
        assert_eq!(
            read("<f8", "(2,)", &[1.5f64.to_le_bytes(), (-2f64).to_le_bytes()].concat(), 2).unwrap(),
            [1.5, -2.0]
        );
        assert_eq!(read(">f4", "(1,)", &0.25f32.to_be_bytes(), 1).unwrap(), [0.25]);
        assert_eq!(read("|u1", "(3,)", &[0, 1, 255], 3).unwrap(), [0.0, 1.0, 255.0]);
        assert_eq!(read("<i8", "(1,)", &(-7i64).to_le_bytes(), 1).unwrap(), [-7.0]);
    }

    #[test]
    fn what_is_no_list_of_numbers_is_refused_by_name() {
        for (descr, shape, data, why) in [
            ("<f8", "(1, 1)", &[0u8; 8][..], "shape [1, 1]"),
            ("<f8", "(1,)", &[0; 9], "not what its header says"),
            ("<f8", "(2,)", &[0; 16], "each of 1 records"),
            ("|O", "(1,)", &[0; 8], "numbers are needed"),
        ] {
            let error = read(descr, shape, data, 1).unwrap_err();
            assert!(error.contains("w.npy") && error.contains(why), "{error}");
        }
    }
}
