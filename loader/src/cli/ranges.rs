//! What `fuelrail inspect` finds in the numbers of records: the least and the most of each field.

use fuelrail_connectors::{ElementType, FieldSpec};
use serde_json::{Value, json};

use crate::fields::numbers::{Number, read};

/// The numbers of one field, of one record or of many.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Range {
    ends: Option<(Number, Number)>,
    /// How many are NaN or infinite.
    not_finite: u64,
}

impl Range {
    /// Those of one record: `bytes` are the field's.
    fn of(dtype: ElementType, bytes: &[u8]) -> Self {
        let mut range = Self::default();
        for element in bytes.chunks_exact(dtype.size()) {
            match read(dtype, element) {
                Number::Real(value) if !value.is_finite() => range.not_finite += 1,
                number => range.widen(number, number),
            }
        }
        range
    }

    fn widen(&mut self, from: Number, to: Number) {
        let (least, most) = self.ends.unwrap_or((from, to));
        // All are of one kind, and none is NaN.
        self.ends = Some((if from < least { from } else { least }, if to > most { to } else { most }));
    }

    fn add(&mut self, other: Self) {
        self.not_finite += other.not_finite;
        if let Some((from, to)) = other.ends {
            self.widen(from, to);
        }
    }

    fn json(self, field: &FieldSpec) -> Value {
        let ends = self.ends.map(|(least, most)| (written(least), written(most)));
        json!({
            "field": field.name,
            "min": ends.as_ref().map(|(least, _)| least),
            "max": ends.as_ref().map(|(_, most)| most),
            "not_finite": self.not_finite,
        })
    }
}

fn written(number: Number) -> Value {
    match number {
        Number::Whole(value) => i64::try_from(value).map_or_else(|_| json!(value as u64), Value::from),
        Number::Real(value) => json!(value),
    }
}

/// Takes the numbers of another record in; there is a range for each field.
pub(super) fn add(ranges: &mut Vec<Range>, record: &[Range]) {
    ranges.resize(record.len(), Range::default());
    ranges.iter_mut().zip(record).for_each(|(range, other)| range.add(*other));
}

/// The range of each field in one record, whose numbers are `values`.
pub(super) fn look(fields: &[FieldSpec], mut values: &[u8]) -> Vec<Range> {
    let range = |field: &FieldSpec| {
        let (own, rest) = values.split_at(field.bytes());
        values = rest;
        Range::of(field.dtype, own)
    };
    fields.iter().map(range).collect()
}

pub(super) fn json(fields: &[FieldSpec], ranges: &[Range]) -> Vec<Value> {
    fields.iter().zip(ranges).map(|(field, range)| range.json(field)).collect()
}

pub(super) fn print(fields: &[FieldSpec], ranges: &[Range]) {
    for (at, (field, range)) in fields.iter().zip(ranges).enumerate() {
        let ends = match range.ends {
            Some((least, most)) => format!("{} to {}", written(least), written(most)),
            None => "no numbers".into(),
        };
        let rest = match range.not_finite {
            0 => String::new(),
            count => format!("; {count} are NaN or infinite"),
        };
        say!("{:<15} {:?} {ends}{rest}", if at == 0 { "numbers" } else { "" }, field.name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_those_of_every_type_of_number() {
        let ends = |dtype, bytes: &[u8]| {
            let range = Range::of(dtype, bytes);
            range.ends.map(|(least, most)| (written(least), written(most)))
        };
        assert_eq!(ends(ElementType::I8, &[255, 3, 128]), Some((json!(-128), json!(3))));
        assert_eq!(ends(ElementType::U8, &[255, 3, 128]), Some((json!(3), json!(255))));
        assert_eq!(ends(ElementType::I32, &(-7i32).to_le_bytes()), Some((json!(-7), json!(-7))));
        assert_eq!(ends(ElementType::U64, &[255; 8]), Some((json!(u64::MAX), json!(u64::MAX))));
        let half = half::f16::from_f32(0.5).to_le_bytes();
        assert_eq!(ends(ElementType::F16, &half), Some((json!(0.5), json!(0.5))));
        assert_eq!(ends(ElementType::F64, &[]), None);
    }

    #[test]
    fn what_is_no_number_is_counted_apart() {
        let bytes: Vec<u8> =
            [1.5f32, f32::NAN, -2.0, f32::INFINITY].iter().flat_map(|value| value.to_le_bytes()).collect();
        let field = |name: &str| FieldSpec { name: name.into(), dtype: ElementType::F32, shape: vec![2] };
        let fields = [field("a"), field("b")];
        let mut ranges = Vec::new();
        add(&mut ranges, &look(&fields, &bytes));
        add(&mut ranges, &look(&fields, &bytes[8..].repeat(2)));
        assert_eq!(
            json(&fields, &ranges),
            [
                json!({"field": "a", "min": -2.0, "max": 1.5, "not_finite": 2}),
                json!({"field": "b", "min": -2.0, "max": -2.0, "not_finite": 2}),
            ]
        );
    }
}
