//! What records have beside the image: values of one kind, once all shards are known.
//!
//! ```text
//!  record      a      b      c      d
//!  its kind    0      0      1      none        kinds: 0 = f32 [4], 1 = f32 [5]
//!  settled     value  value  bad    bad         the field is f32 [4], as most records have it
//! ```
//!
//! One shard cannot know what the others have, so it keeps every value with its kind. [`settle`] sees all of them: the
//! commonest kind is the field's, and a record without such a value is a bad one. Where most records are, or two kinds
//! are equally common, nobody knows what was meant, and the field is refused.

use super::index::UNUSABLE;
use super::options::{From, Wanted};
use super::values::Numbers;
use crate::recognised::grouped;
use crate::values::npy::NpyHeader;
use crate::verdicts::Verdicts;
use crate::{ElementType, FieldSpec};

/// Stands for the kind of a record without a value.
pub(super) const NONE: u8 = u8::MAX;

/// Type and shape of a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Kind {
    pub dtype: ElementType,
    pub shape: Vec<u64>,
}

impl Kind {
    /// Bytes of a value.
    pub fn bytes(&self) -> usize {
        self.shape.iter().product::<u64>() as usize * self.dtype.size()
    }

    fn text(&self) -> String {
        format!("{} of shape {:?}", self.dtype, self.shape)
    }
}

/// One field of one shard.
#[derive(Debug, PartialEq)]
pub(super) struct Field {
    pub kinds: Vec<Kind>,
    /// The kind of each record's value, or [`NONE`]; empty when all records have the first kind.
    pub of: Vec<u8>,
    pub place: Place,
}

/// Where the values of a field are.
#[derive(Debug, PartialEq)]
pub(super) enum Place {
    /// Here, one after the other; records without a value have none.
    Here(Vec<u8>),
    /// In the shard, at these offsets; 0 where there is none.
    Shard(Vec<u64>),
}

impl Field {
    pub fn new(wanted: &Wanted) -> Self {
        let place = match wanted.from {
            From::Json(_) => Place::Here(Vec::new()),
            From::Npy(_) => Place::Shard(Vec::new()),
        };
        Self { kinds: Vec::new(), of: Vec::new(), place }
    }

    /// The next record's numbers.
    ///
    /// # Errors
    /// As [`kind`](Self::kind); then it has none.
    pub fn numbers(&mut self, numbers: &Numbers) -> Result<(), String> {
        let dtype = if numbers.is_whole { ElementType::I64 } else { ElementType::F32 };
        self.kind(Kind { dtype, shape: numbers.shape.clone() })?;
        let Place::Here(bytes) = &mut self.place else { unreachable!("numbers are kept here") };
        match dtype {
            ElementType::I64 => bytes.extend(numbers.whole.iter().flat_map(|n| n.to_le_bytes())),
            _ => bytes.extend(numbers.real.iter().flat_map(|n| n.to_le_bytes())),
        }
        Ok(())
    }

    /// The next record's array, whose data begin at `offset`.
    ///
    /// # Errors
    /// As [`kind`](Self::kind); then it has none.
    pub fn array(&mut self, header: &NpyHeader, offset: u64) -> Result<(), String> {
        let kind = self.kind(Kind { dtype: header.dtype, shape: header.shape.clone() });
        let Place::Shard(offsets) = &mut self.place else { unreachable!("arrays stay in the shard") };
        offsets.push(if kind.is_ok() { offset } else { 0 });
        kind
    }

    /// The next record has no value.
    pub fn nothing(&mut self) {
        self.of.push(NONE);
        if let Place::Shard(offsets) = &mut self.place {
            offsets.push(0);
        }
    }

    /// Notes the next record's kind.
    ///
    /// # Errors
    /// When there are too many kinds to tell them apart.
    fn kind(&mut self, kind: Kind) -> Result<(), String> {
        let found = self.kinds.iter().position(|other| *other == kind);
        let number = found.unwrap_or(self.kinds.len());
        if number >= usize::from(NONE) {
            self.of.push(NONE);
            return Err(format!("it is {}; most records have other shapes", kind.text()));
        }
        if found.is_none() {
            self.kinds.push(kind);
        }
        self.of.push(number as u8);
        Ok(())
    }

    /// Gives up what is not needed once the shard is known.
    pub fn shrink(&mut self) {
        if self.of.iter().all(|&kind| kind == 0) {
            self.of = Vec::new();
        }
        self.of.shrink_to_fit();
        match &mut self.place {
            Place::Here(bytes) => bytes.shrink_to_fit(),
            Place::Shard(offsets) => offsets.shrink_to_fit(),
        }
    }

    /// A record's kind.
    pub fn kind_of(&self, record: usize) -> Option<usize> {
        match self.of.get(record) {
            None => Some(0),
            Some(&NONE) => None,
            Some(&kind) => Some(usize::from(kind)),
        }
    }

    /// Bytes of each record's value, of a field that is settled.
    pub fn bytes(&self) -> usize {
        self.kinds[0].bytes()
    }

    pub fn memory(&self) -> usize {
        let place = match &self.place {
            Place::Here(bytes) => bytes.capacity(),
            Place::Shard(offsets) => offsets.capacity() * 8,
        };
        place + self.of.capacity() + self.kinds.capacity() * size_of::<Kind>() + size_of::<Self>()
    }

    /// Whether a value of `kind` can be delivered as one of `wanted`: whole numbers of JSON as `f32`.
    fn fits(&self, kind: usize, wanted: &Kind) -> bool {
        let kind = &self.kinds[kind];
        kind == wanted || (matches!(self.place, Place::Here(_)) && kind.shape == wanted.shape)
    }

    /// Makes all `records` values those of `wanted`; those that cannot be are zeros, or at no offset.
    fn make(&mut self, wanted: &Kind, records: usize) {
        let is_wanted = self.of.is_empty() && self.kinds.first() == Some(wanted);
        if !is_wanted {
            let kinds: Vec<_> = (0..records).map(|record| self.kind_of(record)).collect();
            let fits: Vec<_> = (0..self.kinds.len()).map(|kind| self.fits(kind, wanted)).collect();
            match &mut self.place {
                Place::Shard(offsets) => {
                    for (offset, kind) in offsets.iter_mut().zip(kinds) {
                        *offset *= u64::from(kind.is_some_and(|kind| fits[kind]));
                    }
                }
                Place::Here(bytes) => {
                    let mut made = Vec::with_capacity(records * wanted.bytes());
                    let mut rest = bytes.as_slice();
                    for kind in kinds {
                        let (value, after) = rest.split_at(kind.map_or(0, |kind| self.kinds[kind].bytes()));
                        rest = after;
                        match kind.filter(|&kind| fits[kind]) {
                            None => made.resize(made.len() + wanted.bytes(), 0),
                            Some(kind) if self.kinds[kind] == *wanted => made.extend_from_slice(value),
                            Some(_) => made.extend(
                                value
                                    .as_chunks()
                                    .0
                                    .iter()
                                    .flat_map(|&whole| (i64::from_le_bytes(whole) as f32).to_le_bytes()),
                            ),
                        }
                    }
                    *bytes = made;
                }
            }
        }
        self.kinds = vec![wanted.clone()];
        self.of = Vec::new();
    }
}

/// A field of all shards.
#[derive(Debug)]
pub(super) struct Settled {
    pub spec: FieldSpec,
    /// Records whose value is of another kind.
    pub odd: Verdicts,
}

/// Why there is no such field.
#[derive(Debug, PartialEq)]
pub(super) enum Unsettled {
    /// So many records have no value of use; the first of them, and what is wrong with the value it has.
    Most(u64, u64, Option<String>),
    /// Two kinds are equally common.
    Even(String),
}

/// Settles the kind of a field, whose shards have so many records each.
///
/// # Errors
/// When no kind is the one that most records have.
pub(super) fn settle(wanted: &Wanted, shards: &mut [(&mut Field, usize)]) -> Result<Settled, Unsettled> {
    let total: usize = shards.iter().map(|(_, records)| records).sum();
    let mut counts: Vec<(Kind, usize)> = Vec::new();
    for (field, records) in shards.iter() {
        let mut own = vec![0; field.kinds.len()];
        (0..*records).filter_map(|record| field.kind_of(record)).for_each(|kind| own[kind] += 1);
        for (at, kind) in field.kinds.iter().enumerate().filter(|&(at, _)| own[at] > 0) {
            match counts.iter_mut().find(|(other, _)| field.fits(at, other)) {
                Some((other, count)) => {
                    *count += own[at];
                    // One value with a fraction makes the field one of fractions.
                    if kind.dtype != ElementType::I64 {
                        other.dtype = kind.dtype;
                    }
                }
                None => counts.push((kind.clone(), own[at])),
            }
        }
    }
    counts.sort_by_key(|&(_, count)| std::cmp::Reverse(count));
    if let [(first, count), (second, other), ..] = counts.as_slice()
        && count == other
    {
        return Err(Unsettled::Even(format!(
            "{} in {} of {} records and {} in as many",
            first.text(),
            grouped(*count as u64),
            grouped(total as u64),
            second.text()
        )));
    }
    let (kind, count) = counts.into_iter().next().map_or((None, 0), |(kind, count)| (Some(kind), count));
    let what = |field: &Field, at: usize| {
        let most = kind.as_ref().map_or_else(String::new, Kind::text);
        format!(
            "field \"{}\" ({}): it is {}; most records have {most}",
            wanted.name,
            wanted.from,
            field.kinds[at].text()
        )
    };
    let mut odd = Verdicts::default();
    let mut first_bad = None;
    let mut first = 0;
    for (field, records) in shards.iter().filter(|_| count < total) {
        for record in 0..*records {
            let row = first + record as u64;
            let found = field.kind_of(record);
            if found.is_some_and(|at| kind.as_ref().is_some_and(|kind| field.fits(at, kind))) {
                continue;
            }
            let why = found.map(|at| what(field, at));
            first_bad.get_or_insert_with(|| (row, why.clone()));
            if let Some(why) = why {
                odd.push(row, &why, UNUSABLE);
            }
        }
        first += *records as u64;
    }
    let unusable = (total - count) as u64;
    match (kind, first_bad) {
        (Some(kind), _) if count * 2 >= total => {
            shards.iter_mut().for_each(|(field, records)| field.make(&kind, *records));
            let spec = FieldSpec { name: wanted.name.clone(), dtype: kind.dtype, shape: kind.shape };
            Ok(Settled { spec, odd })
        }
        (_, first) => {
            let (row, why) = first.expect("a record without a value of use");
            Err(Unsettled::Most(unusable, row, why))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted() -> Wanted {
        Wanted { name: "box".into(), from: From::Json(vec!["box".into()]) }
    }

    /// A shard of these values of JSON; `null` for none.
    fn shard(values: &[&str]) -> Field {
        let mut field = Field::new(&wanted());
        for text in values {
            match Numbers::from_json(&serde_json::from_str(text).unwrap()) {
                Ok(numbers) => field.numbers(&numbers).unwrap(),
                Err(_) => field.nothing(),
            }
        }
        field.shrink();
        field
    }

    fn settled(shards: &[&[&str]]) -> Result<(Settled, Vec<Vec<u8>>), Unsettled> {
        let mut fields: Vec<Field> = shards.iter().map(|values| shard(values)).collect();
        let mut list: Vec<_> =
            fields.iter_mut().zip(shards).map(|(field, values)| (field, values.len())).collect();
        let settled = settle(&wanted(), &mut list)?;
        let bytes = fields.into_iter().map(|field| match field.place {
            Place::Here(bytes) => bytes,
            Place::Shard(_) => unreachable!("values of JSON"),
        });
        Ok((settled, bytes.collect()))
    }

    #[test]
    fn the_commonest_kind_of_all_shards_is_the_fields() {
        // Its own shard would have it that [3, 4] is the odd one.
        let (settled, bytes) =
            settled(&[&["[1]", "[2]", "[3, 4]"], &["[5, 6]", "[7, 8]", "[9, 10]"]]).unwrap();
        assert_eq!((settled.spec.dtype, settled.spec.shape), (ElementType::I64, vec![2]));
        assert_eq!(settled.odd.iter().map(|odd| odd.0).collect::<Vec<_>>(), [0, 1]);
        let why = settled.odd.get(0).unwrap();
        assert!(why.contains("field \"box\"") && why.contains("[1]") && why.contains("[2]"), "{why}");
        let values: Vec<u8> = [0i64, 0, 0, 0, 3, 4].iter().flat_map(|n| n.to_le_bytes()).collect();
        assert_eq!(bytes[0], values);
    }

    #[test]
    fn a_fraction_makes_fractions_of_all_unless_it_is_of_another_shape() {
        let (settled_, bytes) = settled(&[&["1", "2"], &["0.5"]]).unwrap();
        assert_eq!(settled_.spec.dtype, ElementType::F32);
        assert_eq!(bytes, [[1f32, 2.0].map(f32::to_le_bytes).concat(), 0.5f32.to_le_bytes().to_vec()]);
        let (settled, _) = settled(&[&["1", "2", "[0.5]", "null"]]).unwrap();
        assert_eq!((settled.spec.dtype, settled.odd.len()), (ElementType::I64, 1));
    }

    #[test]
    fn what_most_records_lack_or_what_is_even_is_no_field() {
        assert_eq!(settled(&[&["null", "1", "null"]]).unwrap_err(), Unsettled::Most(2, 0, None));
        assert_eq!(settled(&[&["null"], &["null"]]).unwrap_err(), Unsettled::Most(2, 0, None));
        let Unsettled::Most(3, 1, Some(why)) = settled(&[&["1", "[1]", "1", "[2, 3]", "[[4]]"]]).unwrap_err()
        else {
            panic!("most are odd")
        };
        assert!(why.contains("shape [1]") && why.contains("shape []"), "{why}");
        let Unsettled::Even(what) = settled(&[&["[1]", "[1, 2]"]]).unwrap_err() else { panic!("even") };
        assert!(what.contains("[1]") && what.contains("[2]") && what.contains("1 of 2"), "{what}");
        assert!(settled(&[&["null", "1"]]).is_ok(), "half of them, as with labels");
    }

    #[test]
    fn more_kinds_than_can_be_told_apart_are_bad_one_by_one() {
        let list = |len: usize| format!("{:?}", vec![1; len]);
        let values: Vec<String> = (0..300).map(list).collect();
        let mut field = Field::new(&wanted());
        let odd = values.iter().filter(|text| {
            field.numbers(&Numbers::from_json(&serde_json::from_str(text).unwrap()).unwrap()).is_err()
        });
        assert_eq!((odd.count(), field.kinds.len(), field.of.len()), (300 - 255, 255, 300));
    }
}
