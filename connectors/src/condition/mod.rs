//! Which records are wanted, as a condition on their values: `score > 0.3 and lang in ['en', 'de']`.
//!
//! ```text
//!  condition   = all { "or" all }          all = one { "and" one }          one = "not" one | test
//!  test        = "(" condition ")" | column | value operator value | value ["not"] "in" list | column "is" ["not"]
//! "null"
//!  operator    = "==" "!=" "<" "<=" ">" ">="
//!  value       = column | 12 -0.5 1e-3 | 'text' "text" | true false         list = "[" constant { "," constant } "]"
//!  column      = a name of letters, digits and _ . :, or anything in `back quotes`
//! ```
//!
//! - Words are known in any case. A column alone is a test whether it is true.
//! - A comparison with a value that a record does not have (a null, NaN, an empty cell) is false, `!=` and `not in`
//!   included; only `is null` asks for it. `not` turns false into true, so `not (score > 3)` holds where there is none.
//! - Values of different kinds are never equal, nor unequal: comparing a text with a number is an error that names the
//!   record. `and` and `or` end with the first test that decides them, so one test can guard the next.
//! - Nothing is computed, and nothing is executed.

mod parse;

use std::cmp::Ordering;
use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::values::scalar::Scalar;

/// A condition, as it was written and as it is tested.
#[derive(Clone, Debug, PartialEq)]
pub struct Condition {
    text: String,
    columns: Vec<String>,
    test: Test,
}

#[derive(Clone, Debug, PartialEq)]
enum Test {
    Any(Vec<Test>),
    All(Vec<Test>),
    Not(Box<Test>),
    Compare(Operand, Operator, Operand),
    In { value: Operand, list: Vec<Scalar<'static>>, is_in: bool },
    Null { column: usize, is_null: bool },
    True(usize),
}

/// One side of a comparison.
#[derive(Clone, Debug, PartialEq)]
enum Operand {
    /// The number of a column.
    Column(usize),
    Constant(Scalar<'static>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operator {
    Equal,
    Unequal,
    Less,
    AtMost,
    Greater,
    AtLeast,
}

impl Operator {
    const ALL: [(Self, &'static str); 6] = [
        (Self::Equal, "=="),
        (Self::Unequal, "!="),
        (Self::AtMost, "<="),
        (Self::AtLeast, ">="),
        (Self::Less, "<"),
        (Self::Greater, ">"),
    ];

    fn sign(self) -> &'static str {
        Self::ALL.iter().find(|(one, _)| *one == self).expect("all are listed").1
    }

    fn holds(self, order: Ordering) -> bool {
        match self {
            Self::Equal => order.is_eq(),
            Self::Unequal => order.is_ne(),
            Self::Less => order.is_lt(),
            Self::AtMost => order.is_le(),
            Self::Greater => order.is_gt(),
            Self::AtLeast => order.is_ge(),
        }
    }

    fn is_of_equality(self) -> bool {
        matches!(self, Self::Equal | Self::Unequal)
    }
}

/// A record's value in each column of a condition.
pub(crate) type Row<'row> = [Option<Scalar<'row>>];

impl Condition {
    /// Reads a condition.
    ///
    /// # Errors
    /// What is wrong, and at which place of the text.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (test, columns) = parse::parse(text)?;
        Ok(Self { text: text.to_owned(), columns, test })
    }

    /// The columns that it asks for, in the order of their numbers.
    pub(crate) fn columns(&self) -> &[String] {
        &self.columns
    }

    /// Whether a record is wanted.
    ///
    /// # Errors
    /// When values of different kinds are compared.
    pub(crate) fn holds(&self, row: &Row<'_>) -> Result<bool, String> {
        self.test(&self.test, row)
    }

    fn test(&self, test: &Test, row: &Row<'_>) -> Result<bool, String> {
        match test {
            Test::Any(tests) => {
                for one in tests {
                    if self.test(one, row)? {
                        return Ok(true);
                    }
                }
                Ok(false)
            }
            Test::All(tests) => {
                for one in tests {
                    if !self.test(one, row)? {
                        return Ok(false);
                    }
                }
                Ok(true)
            }
            Test::Not(test) => Ok(!self.test(test, row)?),
            Test::Null { column, is_null } => Ok(row[*column].is_none() == *is_null),
            Test::True(column) => match &row[*column] {
                None => Ok(false),
                Some(Scalar::Truth(truth)) => Ok(*truth),
                Some(value) => Err(format!(
                    "{} is {}, and stands alone as if it were true or false: compare it with something",
                    self.shown(*column, value),
                    value.kind()
                )),
            },
            Test::In { value, list, is_in } => {
                let Some(found) = value.of(row) else { return Ok(false) };
                for one in list {
                    if self.compare(value, Operator::Equal, found, &Operand::Constant(one.clone()), one)? {
                        return Ok(*is_in);
                    }
                }
                Ok(!is_in)
            }
            Test::Compare(left, operator, right) => match (left.of(row), right.of(row)) {
                (Some(a), Some(b)) => self.compare(left, *operator, a, right, b),
                _ => Ok(false),
            },
        }
    }

    fn compare(
        &self,
        left: &Operand,
        operator: Operator,
        a: &Scalar<'_>,
        right: &Operand,
        b: &Scalar<'_>,
    ) -> Result<bool, String> {
        let order = a.compare(b);
        let is_truth = matches!((a, b), (Scalar::Truth(_), _) | (_, Scalar::Truth(_)));
        match order {
            Some(order) if operator.is_of_equality() || !is_truth => Ok(operator.holds(order)),
            Some(_) => Err(format!(
                "{} {} {}: true and false have no order; compare them with == or !=",
                self.named(left),
                operator.sign(),
                self.named(right)
            )),
            None => {
                let side = |operand: &Operand, value: &Scalar<'_>| match operand {
                    Operand::Column(column) => format!("{} ({})", self.shown(*column, value), value.kind()),
                    Operand::Constant(value) => format!("{value} ({})", value.kind()),
                };
                Err(format!("it compares {} with {}", side(left, a), side(right, b)))
            }
        }
    }

    /// A column with its value.
    fn shown(&self, column: usize, value: &Scalar<'_>) -> String {
        let mut text = value.to_string();
        if let Some((at, _)) = text.char_indices().nth(60) {
            text.truncate(at);
            text.push('…');
        }
        match value {
            Scalar::Other(_) => self.columns[column].clone(),
            _ => format!("{} = {text}", self.columns[column]),
        }
    }

    fn named(&self, operand: &Operand) -> String {
        match operand {
            Operand::Column(column) => quoted(&self.columns[*column]),
            Operand::Constant(value) => value.to_string(),
        }
    }

    fn write(&self, test: &Test, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let several = |tests: &[Test], word: &str, f: &mut fmt::Formatter<'_>| {
            f.write_str("(")?;
            for (at, test) in tests.iter().enumerate() {
                f.write_str(if at > 0 { word } else { "" })?;
                self.write(test, f)?;
            }
            f.write_str(")")
        };
        match test {
            Test::Any(tests) => several(tests, " or ", f),
            Test::All(tests) => several(tests, " and ", f),
            Test::Not(test) => {
                f.write_str("not ")?;
                self.write(test, f)
            }
            Test::Compare(left, operator, right) => {
                write!(f, "{} {} {}", self.named(left), operator.sign(), self.named(right))
            }
            Test::In { value, list, is_in } => {
                let list: Vec<String> = list.iter().map(Scalar::to_string).collect();
                let word = if *is_in { "in" } else { "not in" };
                write!(f, "{} {word} [{}]", self.named(value), list.join(", "))
            }
            Test::Null { column, is_null } => {
                let word = if *is_null { "is null" } else { "is not null" };
                write!(f, "{} {word}", quoted(&self.columns[*column]))
            }
            Test::True(column) => f.write_str(&quoted(&self.columns[*column])),
        }
    }
}

/// The condition in one form, whatever spaces and quotes it was written with.
impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write(&self.test, f)
    }
}

impl Operand {
    fn of<'row>(&'row self, row: &'row Row<'_>) -> Option<&'row Scalar<'row>> {
        match self {
            Self::Column(column) => row[*column].as_ref(),
            Self::Constant(value) => Some(value),
        }
    }
}

/// A column's name as it is written in a condition.
fn quoted(column: &str) -> String {
    if parse::is_bare(column) { column.to_owned() } else { format!("`{column}`") }
}

impl Serialize for Condition {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

impl<'de> Deserialize<'de> for Condition {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;

        impl serde::de::Visitor<'_> for Text {
            type Value = Condition;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("text like \"score > 0.3 and lang == 'en'\"")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Condition, E> {
                Condition::parse(text).map_err(E::custom)
            }
        }

        deserializer.deserialize_str(Text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a condition says of a record given as JSON, by column.
    fn says(text: &str, record: &serde_json::Value) -> Result<bool, String> {
        let condition = Condition::parse(text)?;
        let texts: Vec<String> =
            condition.columns().iter().map(|column| record[column.as_str()].to_string()).collect();
        let row: Vec<_> = texts.iter().map(|text| Scalar::of_json(text)).collect();
        condition.holds(&row)
    }

    #[test]
    fn comparisons_lists_and_words_are_what_they_say() {
        let record = serde_json::json!({
            "score": 0.5, "lang": "en", "n": 7, "ok": true, "none": null, "a.b": 1, "odd name": "x", "json:a.b": 2,
            "quote": "it's", "list": [1],
        });
        for (text, expected) in [
            ("score > 0.3 and lang == 'en'", true),
            ("score>0.3 AND lang==\"en\"", true),
            ("score > 0.3 and lang == 'de'", false),
            ("score > 0.9 or lang == 'en' and n == 7", true),
            ("(score > 0.9 or lang == 'en') and n != 7", false),
            ("n == 7.0 and n >= 7 and n <= 7 and not n > 7 and not n < 7", true),
            ("7 == n", true),
            ("n in [1, 7]", true),
            ("n IN (1, 2)", false),
            ("n not in [1, 2]", true),
            ("lang in ['de', 'en',]", true),
            ("lang not in ['en']", false),
            ("ok", true),
            ("not ok", false),
            ("ok == true and ok != False", true),
            ("none is null and lang is not null", true),
            ("`none` Is None", true),
            ("none > 3", false),
            ("none != 3", false),
            ("none in [3]", false),
            ("none not in [3]", false),
            ("not (none > 3)", true),
            ("not none", true),
            ("missing is null", true),
            ("list is not null", true),
            ("a.b == 1 and json:a.b == 2", true),
            ("`odd name` == 'x'", true),
            ("quote == 'it\\'s' and quote == \"it's\"", true),
            ("n > score", true),
            ("n == -7 or n == +7", true),
            ("score == 5e-1 and score == .5 and n < 1_000", true),
            ("not not ok", true),
            ("lang < 'f' and lang > 'EN'", true),
            ("lang == 'de' and lang > 3", false),
            ("lang == 'en' or lang > 3", true),
            ("notable is null", true),
        ] {
            assert_eq!(says(text, &record), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_cannot_be_compared_is_said_with_the_value() {
        let record = serde_json::json!({"score": 0.5, "lang": "en", "ok": true, "list": [1]});
        for (text, expected) in [
            ("lang > 3", "it compares lang = 'en' (a text) with 3 (a number)"),
            ("score == '0.5'", "it compares score = 0.5 (a number) with '0.5' (a text)"),
            ("score in ['a']", "it compares score = 0.5 (a number) with 'a' (a text)"),
            ("ok == 1", "it compares ok = true (true or false) with 1 (a number)"),
            ("ok > false", "true and false have no order"),
            ("list == 1", "it compares list (a list) with 1 (a number)"),
            ("score", "score = 0.5 is a number, and stands alone"),
            ("lang == score", "it compares lang = 'en' (a text) with score = 0.5 (a number)"),
        ] {
            let error = says(text, &record).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }

    #[test]
    fn one_form_for_all_ways_to_write_it_which_reads_as_itself() {
        for (text, form) in [
            ("score>0.3   and lang==\"en\"", "(score > 0.3 and lang == 'en')"),
            ("a in (1,2) OR NOT b is not null", "(a in [1, 2] or not b is not null)"),
            ("(((a == 1)))", "a == 1"),
            ("a == 'it\\'s' and (b or c)", "(a == 'it\\'s' and (b or c))"),
            ("`a b` != 1e3 and `and` is null", "(`a b` != 1000.0 and `and` is null)"),
        ] {
            let condition = Condition::parse(text).unwrap();
            assert_eq!(condition.to_string(), form);
            assert_eq!(Condition::parse(form).unwrap().to_string(), form);
        }
        let condition: Condition = serde_json::from_str("\"a  ==  1\"").unwrap();
        assert_eq!(serde_json::to_string(&condition).unwrap(), "\"a  ==  1\"", "as it was written");
    }
}
