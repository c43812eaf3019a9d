//! The arrays in the files: their names, types and shapes, and where their bytes begin.

use std::collections::BTreeMap;

use super::npy::{Npy, NpyError};
use super::zip::{self, Member, Method};
use super::{ArrayConfig, unpack};
use crate::bytes::shards::{Shards, ends_with};
use crate::column::Stored;
use crate::{ElementType, SourceError};

/// One array in one file, or the part of one that the file holds.
pub(super) struct Piece {
    /// The file, and the member in it.
    pub name: String,
    /// The file's name alone, without its ending.
    pub stem: String,
    pub shard: usize,
    pub npy: Npy,
    /// The first byte of the array in the file, unless it is deflated.
    pub at: Result<u64, Member>,
}

/// All arrays by name, in the order they were found.
pub(super) struct Arrays(pub Vec<(String, Vec<Piece>)>);

impl Arrays {
    pub fn find(shards: &Shards, config: &ArrayConfig) -> Result<Self, SourceError> {
        let mut arrays = Vec::new();
        let mut places: BTreeMap<String, usize> = BTreeMap::new();
        let mut add = |name: String, piece: Piece| {
            let place = *places.entry(name.clone()).or_insert_with(|| {
                arrays.push((name, Vec::new()));
                arrays.len() - 1
            });
            arrays[place].1.push(piece);
        };
        for (shard, file) in shards.files().iter().enumerate() {
            let own: &[u8] = if ends_with(&file.name, &[".npz"]) { b"PK" } else { b"\x93NUMPY" };
            let refuse = |why: String| {
                let error = SourceError::data(format!("{}: {why}", shards.display(shard)));
                shards.explain(shard, own, error)
            };
            let stem = stem(&file.name);
            let read = |offset: u64, buffer: &mut [u8]| shards.read_at(shard, offset, buffer);
            if ends_with(&file.name, &[".npz"]) {
                for member in zip::members(file.size, &read).map_err(&refuse)? {
                    let Some(name) = member.name.strip_suffix(".npy") else { continue };
                    let refuse = |why: String| refuse(format!("array {name:?}: {why}"));
                    let npy = match member.method {
                        Method::Stored => header(member.offset, member.size, &read),
                        Method::Deflated => unpack::header(&member, &read),
                        Method::Other(why) => Err(format!("it is {why}, which is not read")),
                    }
                    .map_err(&refuse)?;
                    check_size(&npy, member.size).map_err(&refuse)?;
                    let name = name.to_owned();
                    let at = if member.method == Method::Stored { Ok(member.offset) } else { Err(member) };
                    let piece = Piece {
                        name: format!("{}/{name}", file.name),
                        stem: stem.to_owned(),
                        shard,
                        npy,
                        at,
                    };
                    add(name, piece);
                }
                continue;
            }
            let npy = if ends_with(&file.name, &[".npy"]) {
                header(0, file.size, &read).map_err(&refuse)?
            } else if let Some(tokens) = &config.tokens {
                let element = tokens.stored.unwrap_or(ElementType::U16);
                let shape = vec![file.size / element.size() as u64];
                Npy { dtype: Ok(Stored { element, big: false }), fortran: false, shape, data: 0 }
            } else {
                return Err(refuse("its name ends neither in .npy nor in .npz".into()));
            };
            check_size(&npy, file.size).map_err(&refuse)?;
            let piece = Piece { name: file.name.clone(), stem: stem.to_owned(), shard, npy, at: Ok(0) };
            add(without_number(stem).to_owned(), piece);
        }
        Ok(Self(arrays))
    }

    /// Refuses arrays whose shards differ: leaving one out would go unseen.
    pub fn check_shards(&self, shards: &Shards) -> Result<(), SourceError> {
        for (name, pieces) in &self.0 {
            let first = &pieces[0];
            // Texts are as wide as the longest in their file.
            let dtype = |piece: &Piece| piece.npy.texts().is_none().then(|| piece.npy.dtype.clone());
            let row = |piece: &Piece| (dtype(piece), piece.npy.shape.get(1..).map(<[u64]>::to_vec));
            if let Some(other) = pieces.iter().find(|piece| row(piece) != row(first)) {
                let describe = |piece: &Piece| match &piece.npy.dtype {
                    Ok(stored) => format!("{} {:?}", stored.element, piece.npy.shape),
                    Err(unread) => unread.to_string(),
                };
                return Err(SourceError::data(format!(
                    "{}: the files of the array {name:?} do not fit together: {} in {}, but {} in {}; shards of \
                     one array have the same type and row shape, and other arrays another name",
                    shards.display(other.shard),
                    describe(first),
                    first.name,
                    describe(other),
                    other.name
                )));
            }
        }
        Ok(())
    }

    /// What there is, for errors.
    pub fn list(&self) -> String {
        let one = |(name, pieces): &(String, Vec<Piece>)| {
            let dtype = match &pieces[0].npy.dtype {
                Ok(stored) => stored.element.name().to_owned(),
                Err(unread) => unread.to_string(),
            };
            let more = if pieces.len() > 1 { format!(" x {} files", pieces.len()) } else { String::new() };
            format!("{name:?}: {dtype} {:?}{more}", pieces[0].npy.shape)
        };
        self.0.iter().take(30).map(one).collect::<Vec<_>>().join("; ")
    }
}

/// The last part of a name without its ending.
fn stem(name: &str) -> &str {
    let file = name.rsplit_once('/').map_or(name, |(_, file)| file);
    file.rsplit_once('.').map_or(file, |(stem, _)| stem)
}

/// `images` of `images-03`; names that are numbers alone stay.
pub(super) fn without_number(stem: &str) -> &str {
    let name = stem.trim_end_matches(|c: char| c.is_ascii_digit());
    match name.strip_suffix(['-', '_', '.']) {
        Some(rest) if name.len() < stem.len() && !rest.is_empty() => rest,
        _ => stem,
    }
}

/// Reads the header of the array that begins at `start` and has `size` bytes.
pub(super) fn header(start: u64, size: u64, read: &zip::ReadAt<'_>) -> Result<Npy, String> {
    let mut wanted = 4096.min(size) as usize;
    loop {
        let mut bytes = vec![0; wanted];
        read(start, &mut bytes).map_err(|error| error.to_string())?;
        match Npy::parse(&bytes) {
            Ok(npy) => return Ok(npy),
            Err(NpyError::Short(needed)) if needed as u64 <= size => wanted = needed,
            Err(NpyError::Short(_)) => return Err("it ends within its header".into()),
            Err(NpyError::Wrong(why)) => return Err(why),
        }
    }
}

/// Holds the header against the bytes that are there. Arrays of refused kinds have sizes that need not be known.
fn check_size(npy: &Npy, size: u64) -> Result<(), String> {
    if npy.data == 0 || (npy.dtype.is_err() && npy.texts().is_none()) {
        return Ok(());
    }
    let expected = npy.data_bytes().and_then(|bytes| bytes.checked_add(npy.data));
    if expected == Some(size) {
        return Ok(());
    }
    Err(format!(
        "its header promises shape {:?}, which takes {} bytes with the header, but {size} are there; it was cut off, or \
         something follows the array",
        npy.shape,
        expected.map_or("more than 2^64".into(), |bytes| bytes.to_string())
    ))
}

impl Piece {
    /// The first byte of its data, in the file or in the unpacked copy.
    pub fn data(&self) -> u64 {
        self.at.as_ref().map_or(0, |at| *at) + self.npy.data
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_of_a_shard_is_no_part_of_its_arrays_name() {
        for (name, expected) in [
            ("a/images-003.npy", "images"),
            ("tokens_000001.bin", "tokens"),
            ("x1.npy", "x1"),
            ("x_train.npy", "x_train"),
            ("007.npy", "007"),
            ("-1.npy", "-1"),
            ("data.v2.npy", "data.v2"),
        ] {
            assert_eq!(without_number(stem(name)), expected, "{name}");
        }
    }
}
