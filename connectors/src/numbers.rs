//! A list of numbers from a .npy file: weights, one a record.

use std::path::Path;

use crate::SourceError;

/// Reads a one-dimensional .npy array of `<f8` as numbers.
///
/// # Errors
/// [`SourceError`] that names the file and what it holds instead.
pub fn read_numbers(path: &Path) -> Result<Vec<f64>, SourceError> {
    let refuse = |why: &str| SourceError::data(format!("{}: {why}", path.display()));
    let bytes = std::fs::read(path).map_err(|error| refuse(&format!("cannot be read: {error}")))?;
    let length = bytes.get(8..10).map(|two| usize::from(u16::from_le_bytes([two[0], two[1]])) + 10);
    let data = length.and_then(|length| bytes.get(length..));
    match (data, bytes.starts_with(b"\x93NUMPY\x01")) {
        (Some(data), true) => {
            Ok(data.chunks_exact(8).map(|b| f64::from_le_bytes(b.try_into().expect("8"))).collect())
        }
        _ => Err(refuse("is no .npy file")),
    }
}
