//! JSON and numbers as they stand in small members.

use serde_json::Value;

/// Follows a path of keys; a number is a place in a list.
pub(super) fn find<'value>(value: &'value Value, path: &[String]) -> Option<&'value Value> {
    path.iter().try_fold(value, |value, key| match value {
        Value::Object(map) => map.get(key),
        Value::Array(list) => list.get(key.parse::<usize>().ok()?),
        _ => None,
    })
}

/// A number, or nested lists of numbers of one shape, written out flat.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Numbers {
    pub shape: Vec<u64>,
    /// Whole numbers as they are; the others as `f32`.
    pub whole: Vec<i64>,
    pub real: Vec<f32>,
    /// Whether all of them are whole.
    pub is_whole: bool,
}

impl Numbers {
    /// Reads a value.
    pub fn from_json(value: &Value) -> Result<Self, String> {
        let mut numbers = Self { is_whole: true, ..Self::default() };
        let mut first = value;
        while let Value::Array(list) = first {
            numbers.shape.push(list.len() as u64);
            match list.first() {
                Some(next) => first = next,
                None => break,
            }
        }
        numbers.add(value, 0)?;
        Ok(numbers)
    }

    fn add(&mut self, value: &Value, depth: usize) -> Result<(), String> {
        match value {
            Value::Array(list) if depth < self.shape.len() => {
                if self.shape[depth] != list.len() as u64 {
                    return Err("its lists have different lengths".into());
                }
                list.iter().try_for_each(|value| self.add(value, depth + 1))
            }
            Value::Array(_) => Err("its lists are nested differently".into()),
            _ if depth != self.shape.len() => Err("its lists are nested differently".into()),
            Value::Bool(value) => {
                self.push(Some(i64::from(*value)), 0.0);
                Ok(())
            }
            Value::Number(number) => {
                if number.is_u64() && !number.is_i64() {
                    return Err(format!("{number} is too large for a whole number of 64 bits"));
                }
                self.push(number.as_i64(), number.as_f64().unwrap_or(f64::NAN) as f32);
                Ok(())
            }
            other => Err(format!("it holds {}; numbers are expected", kind(other))),
        }
    }

    fn push(&mut self, whole: Option<i64>, real: f32) {
        self.is_whole &= whole.is_some();
        self.whole.push(whole.unwrap_or(0));
        self.real.push(whole.map_or(real, |whole| whole as f32));
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_numbers_have_one_shape() {
        let read = |text: &str| Numbers::from_json(&serde_json::from_str(text).unwrap());
        let box_ = read("[[1, 2], [3, 4]]").unwrap();
        assert_eq!((box_.shape, box_.whole, box_.is_whole), (vec![2, 2], vec![1, 2, 3, 4], true));
        let real = read("[1, 0.5]").unwrap();
        assert_eq!((real.real, real.is_whole), (vec![1.0, 0.5], false));
        assert_eq!(read("true").unwrap().whole, [1]);
        assert_eq!(read("[]").unwrap().shape, [0]);
        for (text, expected) in [
            ("[[1, 2], [3]]", "different lengths"),
            ("[1, [2]]", "nested"),
            ("[[1], 2]", "nested"),
            ("[1, \"a\"]", "text"),
            ("null", "null"),
            ("18446744073709551615", "too large"),
        ] {
            assert!(read(text).unwrap_err().contains(expected), "{text}");
        }
    }
}
