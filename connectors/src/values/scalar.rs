//! One value of a record as a condition compares it: a truth, a number, a text, or something else.
//!
//! | value | is |
//! |---|---|
//! | a null, NaN, an empty cell, a key that is missing | nothing: no scalar |
//! | a whole number of any width | exact, up to 128 bits |
//! | `float16`, `float32` | the number that its shortest decimal digits are, as people write it: 0.3 is 0.3 |
//! | a date or a time | text as in ISO 8601, which sorts as the times do |
//! | a cell of a CSV file | a number where the whole column is of numbers, else text |

use std::borrow::Cow;
use std::cmp::Ordering;
use std::fmt;

use super::arrow::{Found, find};
use super::json;
use crate::arrow::array::{Array, AsArray};
use crate::arrow::datatypes::DataType;
use crate::labels::is_gap;
use crate::sources::table::columns::{append_rows, bytes_at, numeric};
use crate::{ElementType, MAX_PART_BYTES};

/// A value.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Scalar<'value> {
    Truth(bool),
    Whole(i128),
    Real(f64),
    Text(Cow<'value, str>),
    /// What cannot be compared, in words.
    Other(Cow<'value, str>),
}

impl<'value> Scalar<'value> {
    /// A number from its digits.
    pub fn number(digits: &str) -> Option<Self> {
        match digits.parse() {
            Ok(whole) => Some(Self::Whole(whole)),
            Err(_) => digits.parse().ok().map(Self::Real),
        }
    }

    /// A value in JSON.
    pub fn of_json(text: &'value str) -> Option<Self> {
        let text = text.trim_ascii();
        match text.as_bytes().first()? {
            b'n' => None,
            b't' => Some(Self::Truth(true)),
            b'f' => Some(Self::Truth(false)),
            b'"' => Some(match json::text(text) {
                Some(text) => Self::Text(text),
                None => Self::Other("a text with an escape in it that is no character".into()),
            }),
            b'{' | b'[' => Some(Self::Other(json::kind(text).into())),
            _ => Self::number(text),
        }
    }

    /// A cell of a text file. `is_number`: all cells of its column are numbers, or say that they are none.
    ///
    /// # Errors
    /// When it is no text.
    pub fn of_cell(cell: &'value [u8], is_number: bool) -> Result<Option<Self>, String> {
        let text = std::str::from_utf8(cell).map_err(|_| "is not UTF-8")?;
        let inner = text.trim();
        if inner.is_empty() || is_number && is_gap(inner) {
            return Ok(None);
        }
        if !is_number {
            return Ok(Some(Self::Text(text.into())));
        }
        let number = Self::number(inner).ok_or_else(|| format!("is {inner:?}, which is no number"))?;
        Ok(Some(number).filter(Scalar::is_value))
    }

    /// The value at a path in a row of a column.
    ///
    /// # Errors
    /// When there is no such place in the value, or it is of a type that has no meaning here.
    pub fn of_row(array: &'value dyn Array, row: usize, path: &str) -> Result<Option<Self>, String> {
        let (array, row) = match find(array, row, path)? {
            Found::None => return Ok(None),
            Found::Json(text) => return Ok(Self::of_json(text)),
            Found::Row(array, row) => (array, row),
        };
        if array.is_null(row) || *array.data_type() == DataType::Null {
            return Ok(None);
        }
        if let Some(bytes) = bytes_at(array, row) {
            return Ok(Some(match std::str::from_utf8(bytes) {
                Ok(text) => Self::Text(text.into()),
                Err(_) => Self::Other("bytes".into()),
            }));
        }
        let made = match array.data_type() {
            DataType::Float16 | DataType::Float32 | DataType::Float64 => Some(Self::Real(real(array, row)?)),
            kind if numeric(kind).is_some_and(|(_, shape)| shape.is_empty()) || is_decimal(kind) => {
                let mut text = Vec::new();
                super::arrow::write(array, row, &mut text, 0)?;
                let text = String::from_utf8(text).map_err(|_| "is not UTF-8")?;
                Scalar::of_json(&text).map(Scalar::into_owned)
            }
            DataType::List(_) | DataType::LargeList(_) | DataType::FixedSizeList(..) => {
                Some(Self::Other("a list".into()))
            }
            kind if array.as_struct_opt().is_some() => {
                Some(Self::Other(format!("an object ({kind})").into()))
            }
            kind => Some(Self::Other(format!("a value of type {kind}").into())),
        };
        Ok(made.filter(Scalar::is_value))
    }

    /// NaN is no value.
    fn is_value(&self) -> bool {
        !matches!(self, Self::Real(number) if number.is_nan())
    }

    pub fn into_owned(self) -> Scalar<'static> {
        match self {
            Self::Truth(truth) => Scalar::Truth(truth),
            Self::Whole(whole) => Scalar::Whole(whole),
            Self::Real(real) => Scalar::Real(real),
            Self::Text(text) => Scalar::Text(text.into_owned().into()),
            Self::Other(what) => Scalar::Other(what.into_owned().into()),
        }
    }

    /// What kind of value it is, in words.
    pub fn kind(&self) -> &str {
        match self {
            Self::Truth(_) => "true or false",
            Self::Whole(_) | Self::Real(_) => "a number",
            Self::Text(_) => "a text",
            Self::Other(what) => what,
        }
    }

    /// How it lies to another one of its kind; `None` where they are of different kinds. Numbers are compared exactly,
    /// texts by their code points.
    pub fn compare(&self, other: &Scalar<'_>) -> Option<Ordering> {
        Some(match (self, other) {
            (Self::Whole(a), Scalar::Whole(b)) => a.cmp(b),
            (Self::Real(a), Scalar::Real(b)) => a.partial_cmp(b)?,
            (Self::Whole(a), Scalar::Real(b)) => whole_to_real(*a, *b),
            (Self::Real(a), Scalar::Whole(b)) => whole_to_real(*b, *a).reverse(),
            (Self::Text(a), Scalar::Text(b)) => a.cmp(b),
            (Self::Truth(a), Scalar::Truth(b)) => a.cmp(b),
            _ => return None,
        })
    }

    /// As the bytes of a part.
    ///
    /// # Errors
    /// When it is larger than a part may be.
    pub fn encode(&self) -> Result<Vec<u8>, String> {
        let (tag, bytes): (u8, Cow<'_, [u8]>) = match self {
            Self::Truth(truth) => (b'b', vec![u8::from(*truth)].into()),
            Self::Whole(whole) => (b'i', whole.to_le_bytes().to_vec().into()),
            Self::Real(real) => (b'f', real.to_le_bytes().to_vec().into()),
            Self::Text(text) => (b't', text.as_bytes().into()),
            Self::Other(what) => (b'o', what.as_bytes().into()),
        };
        if bytes.len() as u64 >= MAX_PART_BYTES {
            return Err(format!("is larger than {} MiB", MAX_PART_BYTES >> 20));
        }
        Ok([&[tag], &*bytes].concat())
    }

    /// The same back.
    ///
    /// # Panics
    /// When nothing was encoded so.
    pub fn decode(bytes: &'value [u8]) -> Self {
        let (tag, rest) = bytes.split_first().expect("a scalar has a tag");
        let text = || std::str::from_utf8(rest).expect("it was text").into();
        let number = "a number has its bytes";
        match tag {
            b'b' => Self::Truth(rest == [1]),
            b'i' => Self::Whole(i128::from_le_bytes(rest.try_into().expect(number))),
            b'f' => Self::Real(f64::from_le_bytes(rest.try_into().expect(number))),
            b't' => Self::Text(text()),
            _ => Self::Other(text()),
        }
    }
}

/// A scalar, or none, as a part's bytes.
pub(crate) fn encoded(scalar: Option<&Scalar<'_>>) -> Result<Option<Vec<u8>>, String> {
    scalar.map(Scalar::encode).transpose()
}

fn is_decimal(kind: &DataType) -> bool {
    matches!(kind, DataType::Decimal32(..) | DataType::Decimal64(..) | DataType::Decimal128(..))
}

/// A number of a column of floats, as its shortest digits say.
fn real(array: &dyn Array, row: usize) -> Result<f64, String> {
    let mut bytes = Vec::with_capacity(8);
    append_rows(array, row, 1, &[], &mut bytes)?;
    let of_digits = |number: f32| number.to_string().parse().expect("digits of a number");
    Ok(match numeric(array.data_type()) {
        Some((ElementType::F16, _)) => {
            // Its shortest digits are those that lead back to it.
            let half = half::f16::from_le_bytes([bytes[0], bytes[1]]);
            let digits = (0..=5).map(|digits| format!("{:.digits$e}", half.to_f32()));
            let shortest = digits.filter_map(|digits| digits.parse::<f64>().ok());
            let back = |number: &f64| half::f16::from_f64(*number) == half;
            shortest.into_iter().find(back).unwrap_or_else(|| half.to_f64())
        }
        Some((ElementType::F32, _)) => {
            of_digits(f32::from_le_bytes(bytes.try_into().map_err(|_| "has another width")?))
        }
        _ => f64::from_le_bytes(bytes.try_into().map_err(|_| "has another width")?),
    })
}

/// A whole number against a real one, exactly: rounding never changes sides, so only equality has to be looked into.
fn whole_to_real(whole: i128, real: f64) -> Ordering {
    match (whole as f64).partial_cmp(&real) {
        Some(Ordering::Equal) => whole.cmp(&(real as i128)),
        Some(order) => order,
        None => Ordering::Equal,
    }
}

impl fmt::Display for Scalar<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Truth(truth) => write!(f, "{truth}"),
            Self::Whole(whole) => write!(f, "{whole}"),
            Self::Real(real) => write!(f, "{real:?}"),
            Self::Text(text) => write!(f, "'{}'", text.replace('\\', "\\\\").replace('\'', "\\'")),
            Self::Other(what) => f.write_str(what),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;
    use crate::arrow::array::{Float32Array, Float64Array, StringArray, UInt64Array};

    fn json(text: &str) -> Scalar<'_> {
        Scalar::of_json(text).unwrap()
    }

    #[test]
    fn numbers_are_compared_exactly_whatever_their_types() {
        for (a, b, order) in [
            ("9007199254740993", "9007199254740992.0", Ordering::Greater),
            ("9007199254740993", "9007199254740994.0", Ordering::Less),
            ("18446744073709551615", "18446744073709551615", Ordering::Equal),
            ("1", "1.0", Ordering::Equal),
            ("1e300", "5", Ordering::Greater),
            ("-0.5", "-1", Ordering::Greater),
            ("\"a\"", "\"B\"", Ordering::Greater),
            ("false", "true", Ordering::Less),
        ] {
            assert_eq!(json(a).compare(&json(b)), Some(order), "{a} and {b}");
            assert_eq!(json(b).compare(&json(a)), Some(order.reverse()), "{b} and {a}");
        }
        for (a, b) in [("1", "\"1\""), ("true", "1"), ("[1]", "1"), ("\"true\"", "true")] {
            assert_eq!(json(a).compare(&json(b)), None, "{a} and {b}");
        }
    }

    #[test]
    fn a_float32_is_what_people_write_and_nan_is_nothing() {
        let column = Float32Array::from(vec![Some(0.3), None, Some(f32::NAN), Some(f32::INFINITY)]);
        let row = |row| Scalar::of_row(&column, row, "").unwrap();
        assert_eq!(row(0), Some(Scalar::Real(0.3)));
        assert_eq!((row(1), row(2)), (None, None));
        assert_eq!(row(3).unwrap().compare(&json("1e308")), Some(Ordering::Greater));
        assert_eq!(Scalar::of_row(&Float64Array::from(vec![0.1]), 0, "").unwrap(), Some(Scalar::Real(0.1)));
        let largest = UInt64Array::from(vec![u64::MAX]);
        assert_eq!(Scalar::of_row(&largest, 0, "").unwrap(), Some(Scalar::Whole(u64::MAX.into())));
        let half = crate::arrow::array::Float16Array::from(vec![half::f16::from_f32(0.1)]);
        assert_eq!(Scalar::of_row(&half, 0, "").unwrap(), Some(Scalar::Real(0.1)));
    }

    #[test]
    fn a_cell_is_a_number_where_its_whole_column_is() {
        let cell = |text: &'static str, is_number| Scalar::of_cell(text.as_bytes(), is_number).unwrap();
        assert_eq!(cell(" 7 ", true), Some(Scalar::Whole(7)));
        assert_eq!(cell("007", false), Some(Scalar::Text("007".into())));
        assert_eq!((cell("NA", true), cell("nan", true), cell(" ", false)), (None, None, None));
        assert_eq!(cell("NA", false), Some(Scalar::Text("NA".into())));
        assert!(Scalar::of_cell(b"x", true).unwrap_err().contains("no number"));
        let texts: Arc<dyn Array> = Arc::new(StringArray::from(vec!["{\"a\": {\"b\": 2}}", "x"]));
        assert_eq!(Scalar::of_row(&texts, 0, "a.b").unwrap(), Some(Scalar::Whole(2)));
        assert_eq!(Scalar::of_row(&texts, 0, "a.c").unwrap(), None);
        assert!(Scalar::of_row(&texts, 1, "a").is_err());
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(whole: i128, real: f64, text: String, truth: bool) {
            for scalar in [
                Scalar::Whole(whole), Scalar::Real(if real.is_nan() { 0.0 } else { real }),
                Scalar::Text((&text).into()), Scalar::Truth(truth), Scalar::Other("a list".into()),
            ] {
                let bytes = scalar.encode().unwrap();
                prop_assert_eq!(&Scalar::decode(&bytes), &scalar);
            }
        }
    }
}
