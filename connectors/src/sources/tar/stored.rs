//! A shard's index as a file: in the cache, or beside the shard as `x.tar.idx`.
//!
//! ```text
//!  "frtaridx" │ version u32 │ shard's size u64 │ options u128 │ records u64 │ columns … │ xxh3-128 of all before
//!                                                              each column: its bytes u64, then they; little-endian
//! ```
//!
//! # Whose index it is
//!
//! An index is not believed because it lies there. It is used for a shard when all of these hold, and else the shard is
//! read again, which is said:
//!
//! - it is of this version, for these options and for a shard of this size;
//! - on a local disk, the shard was not written after it (a shard that is newer than the index beside it may have other
//!   labels in the same places; copies keep their times, or cost one walk over the headers);
//! - of some of its records (the first and the last; of a local shard some between them) the [pieces](super::proof)
//!   that they were made of are there, byte for byte.
//!
//! And whatever was believed when it was opened, every record that is read is compared with its pieces, label and
//! numbers included ([`reader`](super::reader)): where another record, another label or another array is now, reading
//! ends with an error and never with what was there before. A remote shard is not read through for that.
//!
//! What none of this sees: that a shard of the same size, whose records are all still the same, got one more where
//! before there was a member without an image; and, in a shard written anew with an old time, that a bad record is
//! mended.
//!
//! Such a file comes from outside like any other: every length is checked against the bytes that are there before
//! anything is allocated, and every offset against the size of the shard.

use xxhash_rust::xxh3::xxh3_128;

use super::archive::{BLOCK, Notes};
use super::fields::{Field, Kind, NONE, Place};
use super::index::{MAX_JSON_FIELDS, ShardIndex};
use super::options::{From, Options};
use super::parts::Members;
use super::proof::{Piece, Pieces};
use crate::labels::{Column, Run};
use crate::verdicts::Verdicts;
use crate::{ElementType, MAX_FIELD_BYTES};

const MAGIC: &[u8; 8] = b"frtaridx";
/// Those before 3 knew neither records without a field nor what a record was made of; they are not read.
pub(super) const VERSION: u32 = 3;

/// An index file of a shard of `size` bytes is never longer: a record has two blocks at least, and the numbers of a
/// json member take up to eight bytes for two of text.
pub(super) fn most_bytes(size: u64) -> u64 {
    (1 << 20) + size.saturating_mul(4)
}

/// Writes an index.
pub(super) fn encode(index: &ShardIndex, options: &Options, size: u64) -> Vec<u8> {
    let mut out = Vec::with_capacity(index.memory() as usize + 1024);
    out.extend_from_slice(MAGIC);
    out.extend(VERSION.to_le_bytes());
    out.extend(size.to_le_bytes());
    out.extend(options.hash().to_le_bytes());
    out.extend((index.len() as u64).to_le_bytes());
    column(&mut out, index.names.iter().map(|&b| [b]));
    column(&mut out, index.name_ends.iter().map(|n| n.to_le_bytes()));
    column(&mut out, index.offsets.iter().map(|n| n.to_le_bytes()));
    column(&mut out, index.sizes.iter().map(|n| n.to_le_bytes()));
    column(&mut out, index.large.iter().map(|n| u64::from(n.0).to_le_bytes()));
    column(&mut out, index.large.iter().map(|n| n.1.to_le_bytes()));
    for pieces in &index.pieces {
        column(&mut out, pieces.all.iter().map(|piece| piece.at.to_le_bytes()));
        column(&mut out, pieces.all.iter().map(|piece| piece.len.to_le_bytes()));
    }
    column(&mut out, index.checks.iter().map(|n| n.to_le_bytes()));
    match index.labels.as_ref().map(|run| &run.column) {
        None => out.push(0),
        Some(Column::Numbers(numbers)) => {
            out.push(1);
            column(&mut out, numbers.iter().map(|n| n.to_le_bytes()));
        }
        Some(Column::Texts(names, of)) => {
            out.push(2);
            texts(&mut out, names);
            column(&mut out, of.iter().map(|n| n.to_le_bytes()));
        }
    }
    for bad in index.labels.iter().map(|run| &run.bad).chain([&index.bad]) {
        texts(&mut out, &bad.reasons);
        column(&mut out, bad.rows.iter().map(|(row, _)| row.to_le_bytes()));
        column(&mut out, bad.rows.iter().map(|(_, why)| why.to_le_bytes()));
    }
    for field in &index.fields {
        out.push(field.kinds.len() as u8);
        for kind in &field.kinds {
            out.push(dtype_number(kind.dtype));
            column(&mut out, kind.shape.iter().map(|n| n.to_le_bytes()));
        }
        column(&mut out, field.of.iter().map(|&kind| [kind]));
        match &field.place {
            Place::Here(bytes) => {
                out.push(0);
                column(&mut out, bytes.iter().map(|&b| [b]));
            }
            Place::Shard(offsets) => {
                out.push(1);
                column(&mut out, offsets.iter().map(|n| n.to_le_bytes()));
            }
        }
    }
    for members in &index.members {
        column(&mut out, members.at.iter().map(|n| n.to_le_bytes()));
        column(&mut out, members.sizes.iter().map(|n| n.to_le_bytes()));
    }
    // Most shards have nothing to be said of.
    if index.notes != Notes::default() {
        let notes = &index.notes;
        out.extend(notes.skipped.to_le_bytes());
        column(&mut out, notes.example.bytes().map(|b| [b]));
        out.extend(notes.unended.unwrap_or(u64::MAX).to_le_bytes());
        out.extend(notes.behind.to_le_bytes());
        out.extend(notes.imageless.to_le_bytes());
        column(&mut out, notes.imageless_example.bytes().map(|b| [b]));
    }
    let sum = xxh3_128(&out);
    out.extend(sum.to_le_bytes());
    out
}

fn texts(out: &mut Vec<u8>, texts: &[String]) {
    out.extend((texts.len() as u64).to_le_bytes());
    for text in texts {
        column(out, text.bytes().map(|b| [b]));
    }
}

fn column<const N: usize>(out: &mut Vec<u8>, values: impl ExactSizeIterator<Item = [u8; N]>) {
    out.extend(((values.len() * N) as u64).to_le_bytes());
    values.for_each(|value| out.extend(value));
}

/// Reads an index.
///
/// # Errors
/// Why it is of no use here: of another shard, other options or another version, or damaged.
pub(super) fn decode(bytes: &[u8], options: &Options, size: u64) -> Result<ShardIndex, &'static str> {
    const DAMAGED: &str = "it is damaged";
    let (bytes, sum) = bytes.split_last_chunk::<16>().ok_or(DAMAGED)?;
    let mut from = Rest(bytes);
    if from.take(8) != Some(MAGIC) {
        return Err("it is not an index of fuelrail's");
    }
    if from.u32() != Some(VERSION) {
        return Err("another version of fuelrail wrote it");
    }
    if xxh3_128(bytes).to_le_bytes() != *sum {
        return Err(DAMAGED);
    }
    if from.u64() != Some(size) {
        return Err("it is for a shard of another size");
    }
    if from.take(16) != Some(&options.hash().to_le_bytes()[..]) {
        return Err("it was made for other settings of image, label and fields");
    }
    let mut index = from.index(options).ok_or(DAMAGED)?;
    if !from.0.is_empty() {
        index.notes = from.notes().ok_or(DAMAGED)?;
    }
    if !from.0.is_empty() || !sound(&index, size) {
        return Err(DAMAGED);
    }
    Ok(index)
}

/// Bytes yet to be read.
struct Rest<'a>(&'a [u8]);

impl<'a> Rest<'a> {
    fn take(&mut self, len: u64) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(usize::try_from(len).ok()?)?;
        self.0 = rest;
        Some(taken)
    }

    fn byte(&mut self) -> Option<u8> {
        self.take(1).map(|b| b[0])
    }

    fn u32(&mut self) -> Option<u32> {
        Some(u32::from_le_bytes(self.take(4)?.try_into().ok()?))
    }

    fn u64(&mut self) -> Option<u64> {
        Some(u64::from_le_bytes(self.take(8)?.try_into().ok()?))
    }

    /// A column; its memory is no more than the bytes that are there.
    fn column<const N: usize, T>(&mut self, value: impl Fn([u8; N]) -> T) -> Option<Vec<T>> {
        let len = self.u64()?;
        let (values, rest) = self.take(len)?.as_chunks::<N>();
        rest.is_empty().then(|| values.iter().map(|&bytes| value(bytes)).collect())
    }

    fn notes(&mut self) -> Option<Notes> {
        Some(Notes {
            skipped: self.u64()?,
            example: String::from_utf8(self.column(|[b]| b)?).ok()?,
            unended: Some(self.u64()?).filter(|&members| members != u64::MAX),
            behind: self.u64()?,
            imageless: self.u64()?,
            imageless_example: String::from_utf8(self.column(|[b]| b)?).ok()?,
        })
    }

    /// Texts; their memory is no more than a few times the bytes that are there.
    fn texts(&mut self) -> Option<Vec<String>> {
        let count = self.u64()?;
        // Each takes eight bytes at least.
        let texts = (0..count.min(self.0.len() as u64 / 8 + 1))
            .map(|_| String::from_utf8(self.column(u8::from_le_bytes)?).ok())
            .collect::<Option<Vec<_>>>()?;
        (texts.len() as u64 == count).then_some(texts)
    }

    fn pieces(&mut self, records: u64) -> Option<Pieces> {
        let (at, len) = (self.column(i32::from_le_bytes)?, self.column(u16::from_le_bytes)?);
        let is_whole =
            at.len() == len.len() && (at.len() as u64 == records || (at.len() == 1 && records > 0));
        let all = at.into_iter().zip(len).map(|(at, len)| Piece { at, len });
        is_whole.then(|| Pieces { all: all.collect() })
    }

    fn verdicts(&mut self, records: u64) -> Option<Verdicts> {
        let reasons = self.texts()?;
        let (rows, why) = (self.column(u64::from_le_bytes)?, self.column(u32::from_le_bytes)?);
        (rows.len() == why.len()).then_some(())?;
        let verdicts = Verdicts { rows: rows.into_iter().zip(why).collect(), reasons };
        verdicts.is_sound(records).then_some(verdicts)
    }

    fn field(&mut self, from: &From, records: u64) -> Option<Field> {
        let kinds = (0..self.byte()?).map(|_| {
            let kind = Kind { dtype: dtype_of(self.byte()?)?, shape: self.column(u64::from_le_bytes)? };
            let bytes =
                kind.shape.iter().try_fold(kind.dtype.size() as u64, |bytes, &n| bytes.checked_mul(n))?;
            let most = if matches!(from, From::Json(_)) { MAX_JSON_FIELDS } else { MAX_FIELD_BYTES };
            (bytes <= most).then_some(kind)
        });
        let kinds = kinds.collect::<Option<Vec<_>>>()?;
        let of = self.column(u8::from_le_bytes)?;
        let is_known = |&kind: &u8| kind == NONE || usize::from(kind) < kinds.len();
        let is_whole = of.len() as u64 == records || (of.is_empty() && !kinds.is_empty());
        ((is_whole || records == 0) && of.iter().all(is_known)).then_some(())?;
        let place = match (self.byte()?, from) {
            (0, From::Json(_)) => Place::Here(self.column(u8::from_le_bytes)?),
            (1, From::Npy(_)) => Place::Shard(self.column(u64::from_le_bytes)?),
            _ => return None,
        };
        let field = Field { kinds, of, place };
        let kinds = (0..records as usize).filter_map(|record| field.kind_of(record));
        let is_full = match &field.place {
            Place::Here(values) => {
                values.len() as u64 == kinds.map(|kind| field.kinds[kind].bytes() as u64).sum::<u64>()
            }
            Place::Shard(offsets) => offsets.len() as u64 == records,
        };
        is_full.then_some(field)
    }

    fn index(&mut self, options: &Options) -> Option<ShardIndex> {
        let records = self.u64()?;
        let whole = |len: usize| (len as u64 == records).then_some(());
        let names = self.column(u8::from_le_bytes)?;
        let name_ends = self.column(u32::from_le_bytes)?;
        let offsets = self.column(u64::from_le_bytes)?;
        let sizes = self.column(u32::from_le_bytes)?;
        let large_records = self.column(u64::from_le_bytes)?;
        let large_sizes = self.column(u64::from_le_bytes)?;
        let large = large_records.into_iter().zip(large_sizes);
        let large = large.map(|(record, size)| Some((u32::try_from(record).ok()?, size)));
        let large = large.collect::<Option<Vec<_>>>()?;
        let pieces = (0..1 + options.asked() + options.parts.members.len())
            .map(|_| self.pieces(records))
            .collect::<Option<Vec<_>>>()?;
        let checks = self.column(u32::from_le_bytes)?;
        for len in [name_ends.len(), offsets.len(), sizes.len(), checks.len()] {
            whole(len)?;
        }
        let labels = match self.byte()? {
            0 => None,
            1 => Some(Column::Numbers(self.column(i64::from_le_bytes)?)),
            2 => Some(Column::Texts(self.texts()?, self.column(u32::from_le_bytes)?)),
            _ => return None,
        };
        let mut labels = labels.map(|column| Run { column, ..Run::default() });
        if let Some(run) = &mut labels {
            run.bad = self.verdicts(records)?;
            whole(run.len())?;
            run.is_sound().then_some(())?;
        }
        let bad = self.verdicts(records)?;
        let fields = options.fields.iter().map(|wanted| self.field(&wanted.from, records));
        let fields = fields.collect::<Option<Vec<_>>>()?;
        let members = options.parts.members.iter().map(|_| {
            Some(Members { at: self.column(i32::from_le_bytes)?, sizes: self.column(u32::from_le_bytes)? })
        });
        let members = members.collect::<Option<Vec<_>>>()?;
        let notes = Notes::default();
        Some(ShardIndex {
            names,
            name_ends,
            offsets,
            sizes,
            large,
            pieces,
            checks,
            labels,
            fields,
            members,
            bad,
            notes,
        })
    }
}

/// Whether everything it points at is inside the shard, and inside itself.
fn sound(index: &ShardIndex, size: u64) -> bool {
    let inside =
        |offset: u64, len: u64| offset >= BLOCK && offset.checked_add(len).is_some_and(|end| end <= size);
    let ends = index.name_ends.is_sorted()
        && index.name_ends.last().map_or(0, |&end| end as usize) == index.names.len();
    let records = || 0..index.len();
    let arrays = index.fields.iter().all(|field| match &field.place {
        Place::Here(_) => true,
        Place::Shard(offsets) => records().all(|record| {
            let kind = field.kind_of(record);
            kind.is_none_or(|kind| inside(offsets[record], field.kinds[kind].bytes() as u64))
        }),
    });
    let pieces = index.pieces.iter().all(|pieces| {
        records().all(|record| {
            let (offset, piece) = (index.offsets[record], pieces.get(record));
            let range = piece.range(offset);
            let is_there = range.is_some_and(|(at, len)| at.checked_add(len).is_some_and(|end| end <= size));
            piece.len == 0 || is_there
        })
    });
    ends && pieces
        && arrays
        && index.members.iter().all(|members| members.is_sound(index, size))
        && index.large_is_whole()
        && records().all(|record| inside(index.offsets[record], index.size(record)))
}

const DTYPES: [ElementType; 12] = [
    ElementType::Bool,
    ElementType::U8,
    ElementType::I8,
    ElementType::U16,
    ElementType::I16,
    ElementType::U32,
    ElementType::I32,
    ElementType::U64,
    ElementType::I64,
    ElementType::F16,
    ElementType::F32,
    ElementType::F64,
];

fn dtype_number(dtype: ElementType) -> u8 {
    DTYPES.iter().position(|&other| other == dtype).expect("all are listed") as u8
}

fn dtype_of(number: u8) -> Option<ElementType> {
    DTYPES.get(usize::from(number)).copied()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::sources::tar::TarConfig;

    fn options() -> Options {
        let config = TarConfig {
            label: Some("cls".into()),
            fields: Some(vec!["json:box".into(), "emb.npy".into()]),
            ..TarConfig::default()
        };
        Options::new(&config).unwrap()
    }

    fn index() -> ShardIndex {
        let piece = |at, len| Piece { at, len };
        let one = || Pieces { all: vec![piece(-1, 1)] };
        let kind = |dtype, shape: &[u64]| Kind { dtype, shape: shape.to_vec() };
        ShardIndex {
            names: b"a.jpgbb.jpgc.jpg".to_vec(),
            members: Vec::new(),
            name_ends: vec![5, 11, 16],
            offsets: vec![512, 4096, 1 << 33],
            sizes: vec![100, u32::MAX, 0],
            large: vec![(1, 5 << 30)],
            pieces: vec![
                one(),
                one(),
                Pieces { all: vec![piece(5, 2), Piece::default(), piece(-3, 2)] },
                one(),
            ],
            checks: vec![1, 2, 3],
            labels: Some(Run {
                column: Column::Texts(vec!["cat".into(), "".into()], vec![0, u32::MAX, 1]),
                bad: Verdicts { rows: vec![(1, 0)], reasons: vec!["it has no label".into()] },
            }),
            fields: vec![
                Field {
                    kinds: vec![kind(ElementType::F32, &[2]), kind(ElementType::I64, &[])],
                    of: vec![1, NONE, 0],
                    place: Place::Here(vec![7; 16]),
                },
                Field {
                    kinds: vec![kind(ElementType::U16, &[])],
                    of: vec![],
                    place: Place::Shard(vec![600, 700, 800]),
                },
            ],
            bad: Verdicts { rows: vec![(1, 0)], reasons: vec!["it has no box".into()] },
            notes: Notes::default(),
        }
    }

    const SIZE: u64 = 1 << 34;

    #[test]
    fn what_is_written_is_read() {
        let bytes = encode(&index(), &options(), SIZE);
        assert_eq!(decode(&bytes, &options(), SIZE), Ok(index()));
        let mut other = options();
        other.fields.pop();
        assert!(decode(&bytes, &other, SIZE).unwrap_err().contains("other settings"));
        assert!(decode(&bytes, &options(), SIZE + 1).unwrap_err().contains("another size"));
        let numbers = Run { column: Column::Numbers(vec![-1, i64::MAX, 0]), ..Run::default() };
        for labels in [None, Some(numbers)] {
            let index = ShardIndex { labels, ..index() };
            assert_eq!(decode(&encode(&index, &options(), SIZE), &options(), SIZE), Ok(index));
        }
        for unended in [None, Some(0), Some(17)] {
            let (example, imageless_example) = ("\"a\", a link".into(), "b.txt".into());
            let notes = Notes { skipped: 2, example, unended, behind: 512, imageless: 3, imageless_example };
            let index = ShardIndex { notes, ..index() };
            assert_eq!(decode(&encode(&index, &options(), SIZE), &options(), SIZE), Ok(index));
        }
        let fields = options().fields.iter().map(Field::new).collect();
        let empty = ShardIndex { pieces: vec![Pieces::default(); 4], fields, ..ShardIndex::default() };
        assert_eq!(decode(&encode(&empty, &options(), SIZE), &options(), SIZE), Ok(empty));
    }

    proptest! {
        #[test]
        fn a_forged_index_is_sound_or_refused(
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<[u8; 8]>(), 1usize..9), 1..4),
            cut in prop::option::of(any::<prop::sample::Index>()),
        ) {
            let mut bytes = encode(&index(), &options(), SIZE);
            bytes.truncate(bytes.len() - 16);
            if let Some(cut) = cut {
                bytes.truncate(cut.index(bytes.len()) + 1);
            }
            // Behind what says whose it is; and with a checksum that is right.
            for (place, new, len) in changes {
                let at = 36 + place.index(bytes.len().max(37) - 36);
                for (byte, new) in bytes.iter_mut().skip(at).zip(&new[..len]) {
                    *byte = *new;
                }
            }
            let sum = xxh3_128(&bytes);
            bytes.extend(sum.to_le_bytes());
            if let Ok(index) = decode(&bytes, &options(), SIZE) {
                for record in 0..index.len() {
                    prop_assert!(index.offsets[record] + index.size(record) <= SIZE);
                    prop_assert!(index.name(record).len() <= index.names.len());
                    for range in index.pieces.iter().filter_map(|pieces| pieces.get(record).range(index.offsets[record])) {
                        prop_assert!(range.0 + range.1 <= SIZE);
                    }
                }
            }
        }
    }
}
