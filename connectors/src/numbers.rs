//! Lists of numbers from an npy file: weights, one a record, and the records of an order.

use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use crate::column::Stored;
use crate::names::shown;
use crate::sources::array::{MAX_HEADER, Npy, NpyError};
use crate::{ElementType, SourceError};

/// An array, as it is stored.
struct Numbers {
    npy: Npy,
    stored: Stored,
    data: Vec<u8>,
}

impl Numbers {
    /// Reads a file. Nothing but the header is read of one whose shape does not `fit`.
    fn read(path: &Path, fit: impl FnOnce(&[u64]) -> Result<(), String>) -> Result<Self, SourceError> {
        let refuse = |why: &str| refuse(path, why);
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
        fit(&npy.shape).map_err(|why| refuse(&why))?;
        let Some(bytes) = npy.data_bytes().filter(|bytes| npy.data + bytes == size) else {
            return Err(refuse(&format!("is {size} bytes long, which is not what its header says")));
        };
        file.seek(SeekFrom::Start(npy.data)).map_err(unreadable)?;
        let mut data = Vec::new();
        file.take(bytes).read_to_end(&mut data).map_err(unreadable)?;
        if data.len() as u64 != bytes {
            return Err(refuse("was cut while it was read"));
        }
        Ok(Self { npy, stored, data })
    }
}

fn refuse(path: &Path, why: &str) -> SourceError {
    SourceError::data(format!("{}: {why}", shown(&path)))
}

/// Reads a one-dimensional npy array of `count` numbers of any width. Nothing but the header is read of a file that
/// holds another number of them.
///
/// # Errors
/// [`SourceError`] that names the file and what it holds instead.
pub fn read_numbers(path: &Path, count: u64) -> Result<Vec<f64>, SourceError> {
    let Numbers { stored, data, .. } = Numbers::read(path, |shape| match shape {
        [found] if *found == count => Ok(()),
        shape => Err(format!("has shape {shape:?}; one number for each of {count} records is needed")),
    })?;
    let number = |bytes: &[u8]| {
        if stored.is_integer() {
            return stored.integer(bytes) as f64;
        }
        let mut little = [0; 8];
        little[..bytes.len()].copy_from_slice(bytes);
        if stored.big {
            little[..bytes.len()].reverse();
        }
        match stored.element {
            ElementType::F64 => f64::from_le_bytes(little),
            ElementType::F32 => f32::from_le_bytes([little[0], little[1], little[2], little[3]]).into(),
            ElementType::F16 => half::f16::from_le_bytes([little[0], little[1]]).into(),
            _ => f64::from(little[0]),
        }
    };
    Ok(data.chunks_exact(stored.element.size()).map(number).collect())
}

/// Reads the numbers of records below `records`: a row of them, or a row for each epoch. Returns them row by row, and
/// how many epochs they are for, if not for any.
///
/// # Errors
/// [`SourceError`] that names the file, and the first number that is none of a record.
pub fn read_indices(path: &Path, records: u64) -> Result<(Vec<u64>, Option<u64>), SourceError> {
    let Numbers { npy, stored, data } = Numbers::read(path, |shape| match shape {
        [] | [_, _, _, ..] => {
            Err(format!("has shape {shape:?}; record numbers have the shape (n,), or (epochs, n)"))
        }
        shape if shape.contains(&0) => Err(format!("has shape {shape:?}, so it holds no record number")),
        _ => Ok(()),
    })?;
    if !stored.is_integer() {
        let remedy = match stored.element {
            ElementType::Bool => "a mask becomes numbers by numpy.flatnonzero(mask)",
            _ => "convert them with .astype(numpy.int64)",
        };
        let why = format!("holds {} and record numbers are whole numbers; {remedy}", stored.element);
        return Err(refuse(path, &why));
    }
    let (epochs, len) = match npy.shape[..] {
        [epochs, len] => (Some(epochs), len),
        _ => (None, npy.shape[0]),
    };
    let size = stored.element.size();
    let mut indices = Vec::with_capacity(data.len() / size);
    for epoch in 0..epochs.unwrap_or(1) {
        for position in 0..len {
            let place =
                if npy.fortran { position * epochs.unwrap_or(1) + epoch } else { epoch * len + position };
            let number = stored.integer(&data[place as usize * size..][..size]);
            let Some(index) = u64::try_from(number).ok().filter(|index| *index < records) else {
                let place = epochs.map_or(format!("[{position}]"), |_| format!("[{epoch}, {position}]"));
                let last = records - 1;
                let why =
                    format!("the number at {place} is {number}; the source has the records 0 to {last}");
                return Err(refuse(path, &why));
            };
            indices.push(index);
        }
    }
    Ok((indices, epochs))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(folder: &Path, descr: &str, shape: &str, data: &[u8]) -> std::path::PathBuf {
        let path = folder.join("w.npy");
        let header = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}\n");
        let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
        bytes.extend((header.len() as u16).to_le_bytes());
        bytes.extend(header.as_bytes());
        bytes.extend(data);
        std::fs::write(&path, bytes).unwrap();
        path
    }

    fn read(descr: &str, shape: &str, data: &[u8], count: u64) -> Result<Vec<f64>, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = write(folder.path(), descr, shape, data);
        read_numbers(&path, count).map_err(|error| error.to_string())
    }

    fn indices(descr: &str, shape: &str, data: &[u8]) -> Result<(Vec<u64>, Option<u64>), String> {
        let folder = tempfile::tempdir().unwrap();
        let path = write(folder.path(), descr, shape, data);
        read_indices(&path, 10).map_err(|error| error.to_string())
    }

    #[test]
    fn record_numbers_are_one_row_or_a_row_for_each_epoch() {
        assert_eq!(indices("|u1", "(3,)", &[9, 0, 9]).unwrap(), (vec![9, 0, 9], None));
        assert_eq!(indices("|i1", "(2, 3)", &[0, 1, 2, 3, 4, 5]).unwrap(), (vec![0, 1, 2, 3, 4, 5], Some(2)));
        assert_eq!(indices(">i2", "(1, 2)", &[0, 1, 0, 2]).unwrap(), (vec![1, 2], Some(1)));
    }

    #[test]
    fn what_is_no_record_number_is_named_with_its_place() {
        for (descr, shape, data, why) in [
            ("|u1", "(3,)", &[1u8, 10, 2][..], "the number at [1] is 10; the source has the records 0 to 9"),
            (
                "|i1",
                "(2, 2)",
                &[1, 2, 3, 255],
                "the number at [1, 1] is -1; the source has the records 0 to 9",
            ),
            ("<u8", "(1,)", &[255; 8], "is 18446744073709551615"),
            ("<f4", "(1,)", &[0; 4], "holds f32 and record numbers are whole numbers; convert"),
            ("|b1", "(2,)", &[0, 1], "numpy.flatnonzero"),
            ("|u1", "(0,)", &[], "no record number"),
            ("|u1", "(3, 0)", &[], "no record number"),
            ("|u1", "(1, 1, 1)", &[0], "(epochs, n)"),
            ("|u1", "()", &[0], "(epochs, n)"),
            ("|O", "(1,)", &[0; 8], "numbers are needed"),
        ] {
            let error = indices(descr, shape, data).unwrap_err();
            assert!(error.contains("w.npy") && error.contains(why), "{error}");
        }
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
