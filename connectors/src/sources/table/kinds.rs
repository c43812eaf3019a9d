//! What type a column of text has, found out value by value.
//!
//! A column has the type that holds all of its values ([`Kind::join`]). One that was asked for as a field has the type
//! that most of them have ([`Tally`]): among numbers one text is one bad record, not a column of texts.

use std::sync::Arc;

use serde_json::Value;

use crate::arrow::datatypes::{DataType, Field};
use crate::labels::is_gap;

/// Kinds of values that are counted apart; what is of none of these is counted with the rest.
const MAX_CLASSES: usize = 16;

/// What the cells of a column have been so far.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Nothing but nulls.
    Nothing,
    /// Texts that stand for nulls among numbers, and are texts among texts.
    Gap,
    Bool,
    Int,
    Float,
    Text,
    List(Box<Kind>),
    /// No type for all of them.
    Mixed,
}

impl Kind {
    pub fn join(self, other: Self) -> Self {
        match (self, other) {
            (Self::Nothing, kind) | (kind, Self::Nothing) => kind,
            (Self::Gap, kind @ (Self::Int | Self::Float | Self::Text))
            | (kind @ (Self::Int | Self::Float | Self::Text), Self::Gap) => kind,
            (Self::Int, Self::Float) | (Self::Float, Self::Int) => Self::Float,
            (Self::List(a), Self::List(b)) => Self::List(Box::new(a.join(*b))),
            (a, b) if a == b => a,
            _ => Self::Mixed,
        }
    }

    /// Whether no type holds all values, here or within lists.
    pub fn is_mixed(&self) -> bool {
        match self {
            Self::Mixed => true,
            Self::List(inner) => inner.is_mixed(),
            _ => false,
        }
    }

    /// What one value is, in words.
    pub fn text(&self) -> &'static str {
        match self {
            Self::Bool => "true or false",
            Self::Int => "a whole number",
            Self::Float => "a number",
            Self::List(inner) if inner.is_numeric() => "a list of numbers",
            Self::List(_) => "a list",
            Self::Text | Self::Gap => "a text",
            Self::Nothing | Self::Mixed => "a value",
        }
    }

    /// Whether it is of numbers, or lists of them.
    fn is_numeric(&self) -> bool {
        match self {
            Self::Bool | Self::Int | Self::Float => true,
            Self::List(inner) => inner.is_numeric(),
            _ => false,
        }
    }

    pub fn of_json(value: &Value, depth: usize) -> Self {
        match value {
            Value::Null => Self::Nothing,
            Value::Bool(_) => Self::Bool,
            Value::Number(number) if number.is_i64() => Self::Int,
            Value::Number(_) => Self::Float,
            Value::String(_) => Self::Text,
            Value::Array(values) if depth < 8 => Self::List(Box::new(
                values.iter().map(|value| Self::of_json(value, depth + 1)).fold(Self::Nothing, Self::join),
            )),
            Value::Array(_) | Value::Object(_) => Self::Mixed,
        }
    }

    pub fn of_cell(cell: &[u8]) -> Self {
        let text = match std::str::from_utf8(cell) {
            Ok(text) => text.trim(),
            Err(_) => return Self::Text,
        };
        if text.is_empty() {
            Self::Nothing
        } else if text.parse::<i64>().is_ok() {
            Self::Int
        } else if text.parse::<f64>().is_ok() {
            Self::Float
        } else if is_gap(text) {
            Self::Gap
        } else {
            Self::Text
        }
    }

    /// The type of a column; an empty struct where no type holds all cells, which nothing can be made of.
    pub fn arrow(&self) -> DataType {
        match self {
            Self::Nothing => DataType::Null,
            Self::Bool => DataType::Boolean,
            Self::Int => DataType::Int64,
            Self::Float => DataType::Float64,
            Self::Text | Self::Gap => DataType::Utf8,
            Self::List(inner) => DataType::List(Arc::new(Field::new_list_field(
                match **inner {
                    // Lists that are all empty.
                    Self::Nothing => DataType::Int64,
                    ref inner => inner.arrow(),
                },
                true,
            ))),
            Self::Mixed => DataType::Struct(Default::default()),
        }
    }
}

/// How often a column that was asked for as a field has values of each kind.
#[derive(Debug, Default)]
pub(super) struct Tally {
    /// Kinds that no type holds together, how many values are of each, and the line of the first.
    classes: Vec<(Kind, u64, u64)>,
    /// Values of further kinds.
    rest: u64,
}

/// The kind that most values of a column have.
#[derive(Debug, PartialEq)]
pub(super) struct Most {
    pub kind: Kind,
    /// Values of other kinds, and the line of the first.
    pub others: u64,
    pub line: u64,
}

impl Tally {
    /// Counts a value; gaps are none.
    pub fn take(&mut self, kind: Kind, line: u64) {
        if matches!(kind, Kind::Nothing | Kind::Gap) {
            return;
        }
        for (class, count, _) in &mut self.classes {
            if *class != kind {
                let both = class.clone().join(kind.clone());
                if both.is_mixed() {
                    continue;
                }
                *class = both;
            }
            *count += 1;
            return;
        }
        if self.classes.len() < MAX_CLASSES {
            self.classes.push((kind, 1, line));
        } else {
            self.rest += 1;
        }
    }

    /// The kind of more than half of the values, if they are numbers and not all of one kind.
    pub fn settle(&self) -> Option<Most> {
        let total = self.classes.iter().map(|class| class.1).sum::<u64>() + self.rest;
        let (kind, count, _) = self.classes.iter().max_by_key(|class| class.1)?;
        let others = total - count;
        let line = self.classes.iter().filter(|(other, ..)| other != kind).map(|class| class.2).min();
        let is_most = others > 0 && others < *count && kind.is_numeric();
        is_most.then(|| Most { kind: kind.clone(), others, line: line.unwrap_or_default() })
    }
}

/// Whether a value is null or of a type.
pub(super) fn fits(kind: &DataType, value: &Value) -> bool {
    value.is_null()
        || match kind {
            DataType::Boolean => value.is_boolean(),
            DataType::Int64 => value.is_i64(),
            DataType::Float64 => value.is_number(),
            DataType::List(inner) => value
                .as_array()
                .is_some_and(|values| values.iter().all(|value| fits(inner.data_type(), value))),
            _ => false,
        }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn most(values: &[&str]) -> Option<(String, u64, u64)> {
        let mut tally = Tally::default();
        for (line, text) in values.iter().enumerate() {
            tally.take(Kind::of_json(&serde_json::from_str(text).unwrap(), 0), line as u64);
        }
        tally.settle().map(|most| (most.kind.arrow().to_string(), most.others, most.line))
    }

    #[test]
    fn the_kind_of_most_values_is_the_columns_if_they_are_numbers() {
        assert_eq!(most(&["1", "\"a\"", "2", "null"]), Some(("Int64".into(), 1, 1)));
        assert_eq!(
            most(&["[1]", "1", "[0.5, null]", "[[1]]", "[]"]).map(|most| (most.1, most.2)),
            Some((2, 1))
        );
        assert_eq!(most(&["1", "0.5"]), None, "one type holds them all");
        assert_eq!(most(&["1", "\"a\""]), None, "as many of each");
        assert_eq!(most(&["\"a\"", "\"b\"", "1"]), None, "texts are no numbers");
        assert_eq!(most(&["{}", "{}", "1"]), None);
        let lists: Vec<String> =
            (1..40).map(|depth| format!("{}1{}", "[".repeat(depth % 7), "]".repeat(depth % 7))).collect();
        assert_eq!(most(&lists.iter().map(String::as_str).collect::<Vec<_>>()), None);
    }

    #[test]
    fn what_fits_a_type_can_be_made_of_it() {
        let read = |text: &str| serde_json::from_str::<Value>(text).unwrap();
        let list = Kind::List(Box::new(Kind::Int)).arrow();
        for text in ["[1, 2]", "[]", "null", "[null]"] {
            assert!(fits(&list, &read(text)), "{text}");
        }
        for text in ["1", "[0.5]", "[\"a\"]", "[[1]]", "{}", "true"] {
            assert!(!fits(&list, &read(text)), "{text}");
        }
        assert!(
            fits(&DataType::Float64, &read("3")) && !fits(&DataType::Int64, &read("18446744073709551615"))
        );
    }
}
