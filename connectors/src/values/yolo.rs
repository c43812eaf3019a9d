//! Labels in YOLO's text form: a line each object, numbers separated by blanks.
//!
//! ```text
//!  class  centre x  centre y  width  height  [x y visibility]…      boxes, and keypoints of pose data
//!  class  x y  x y  x y …                                           outlines
//! ```
//!
//! All but classes and visibilities are shares of the image's width and height. Nothing in a line says which of the two
//! it is, so that a part has to.

use crate::ElementType;

/// What is taken of each line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Taken {
    Classes,
    /// The box of a line of five numbers.
    Boxes,
    /// The box of a line with keypoints behind it.
    Pose,
    /// The keypoints behind the box.
    Keypoints,
    /// The box around an outline.
    Outlines,
}

/// Its words, as they stand behind the colon of a part.
pub(crate) const WORDS: [(&str, Taken); 5] = [
    ("classes", Taken::Classes),
    ("boxes", Taken::Boxes),
    ("pose", Taken::Pose),
    ("keypoints", Taken::Keypoints),
    ("outlines", Taken::Outlines),
];

/// More numbers in a line are no label.
const MOST_NUMBERS: usize = 1 << 16;

impl Taken {
    pub fn of(word: &str) -> Option<Self> {
        WORDS.iter().find(|(known, _)| *known == word).map(|(_, taken)| *taken)
    }

    pub fn dtype(self) -> ElementType {
        if self == Self::Classes { ElementType::I64 } else { ElementType::F32 }
    }

    /// The shape of a row, where no line has to be seen for it.
    pub fn row(self) -> Option<Vec<u64>> {
        match self {
            Self::Classes => Some(Vec::new()),
            Self::Boxes | Self::Pose | Self::Outlines => Some(vec![4]),
            Self::Keypoints => None,
        }
    }

    /// The shape of a row as the first line has it.
    pub fn row_in(self, file: &[u8]) -> Option<Vec<u64>> {
        self.row().or_else(|| {
            let line = lines(file).next()?.1;
            let count = line.split_ascii_whitespace().count();
            (count > 5).then(|| vec![count as u64 - 5])
        })
    }

    /// The bytes of all rows, of [`Taken::dtype`] and this shape.
    ///
    /// # Errors
    /// The line that is none, and why.
    pub fn rows(self, file: &[u8], row: &[u64]) -> Result<Vec<u8>, String> {
        if std::str::from_utf8(file).is_err() {
            return Err("is no text".into());
        }
        let mut bytes = Vec::new();
        for (number, line) in lines(file) {
            let numbers = numbers(line).and_then(|numbers| self.of_line(&numbers, row));
            match numbers.map_err(|why| format!("cannot be read: line {number} {why}"))? {
                Row::Class(class) => bytes.extend(class.to_le_bytes()),
                Row::Numbers(numbers) => numbers.iter().for_each(|&n| bytes.extend((n as f32).to_le_bytes())),
            }
        }
        Ok(bytes)
    }

    fn of_line(self, numbers: &[f64], row: &[u64]) -> Result<Row, String> {
        let count = numbers.len();
        let (&class, rest) = numbers.split_first().ok_or("is empty")?;
        match self {
            Self::Classes if class.fract() == 0.0 && class.abs() < 1e15 => Ok(Row::Class(class as i64)),
            Self::Classes => Err(format!("begins with {class}, which is no class number")),
            Self::Boxes if count == 5 => Ok(Row::Numbers(rest.to_vec())),
            Self::Boxes if count > 5 => Err(format!(
                "has {count} numbers, not five (class and box): of outlines the part is \"txt:outlines\", of boxes \
                 with keypoints \"txt:pose\""
            )),
            Self::Pose if count > 5 => Ok(Row::Numbers(rest[..4].to_vec())),
            Self::Keypoints if count == 5 + row.iter().product::<u64>() as usize => {
                Ok(Row::Numbers(rest[4..].to_vec()))
            }
            Self::Keypoints if count > 5 => Err(format!(
                "has {} numbers of keypoints, where others have {}",
                count - 5,
                row.iter().product::<u64>()
            )),
            Self::Outlines if count >= 7 && rest.len().is_multiple_of(2) => {
                let axis = |first: usize| rest.iter().skip(first).step_by(2).copied();
                let least = |first| axis(first).fold(f64::INFINITY, f64::min);
                let most = |first| axis(first).fold(f64::NEG_INFINITY, f64::max);
                let ([left, top], [right, bottom]) = ([least(0), least(1)], [most(0), most(1)]);
                let middle = |a: f64, b: f64| (a + b) / 2.0;
                Ok(Row::Numbers(vec![middle(left, right), middle(top, bottom), right - left, bottom - top]))
            }
            Self::Outlines => Err(format!("has {count} numbers, not a class and three points or more")),
            Self::Boxes | Self::Pose | Self::Keypoints => Err(format!(
                "has {count} numbers; a class, a box of four{} are expected",
                match self {
                    Self::Boxes => "",
                    _ => ", and keypoints",
                }
            )),
        }
    }
}

enum Row {
    Class(i64),
    Numbers(Vec<f64>),
}

/// Lines with anything in them, counted from 1.
fn lines(file: &[u8]) -> impl Iterator<Item = (usize, &str)> {
    let text = std::str::from_utf8(file).unwrap_or_default().trim_start_matches('\u{feff}');
    text.lines().enumerate().map(|(at, line)| (at + 1, line)).filter(|(_, line)| !line.trim().is_empty())
}

fn numbers(line: &str) -> Result<Vec<f64>, String> {
    let words = line.split_ascii_whitespace();
    if words.clone().nth(MOST_NUMBERS).is_some() {
        return Err(format!("has more than {MOST_NUMBERS} numbers"));
    }
    words
        .map(|word| match word.parse::<f64>() {
            Ok(number) if number.is_finite() => Ok(number),
            _ => {
                Err(format!("has {:?} where a number is expected", word.chars().take(20).collect::<String>()))
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn floats(taken: Taken, text: &str) -> Result<Vec<f32>, String> {
        let row = taken.row_in(text.as_bytes()).unwrap_or_default();
        let bytes = taken.rows(text.as_bytes(), &row)?;
        Ok(bytes.as_chunks::<4>().0.iter().map(|four| f32::from_le_bytes(*four)).collect())
    }

    #[test]
    fn each_line_is_an_object_and_blank_ones_are_none() {
        let text = "\u{feff}3 0.5 0.25 0.125 0.5\r\n\n 0  0.5\t0.5 1 1 \n";
        assert_eq!(floats(Taken::Boxes, text).unwrap(), [0.5, 0.25, 0.125, 0.5, 0.5, 0.5, 1.0, 1.0]);
        let classes = Taken::Classes.rows(text.as_bytes(), &[]).unwrap();
        assert_eq!(classes, [3i64.to_le_bytes(), 0i64.to_le_bytes()].concat());
        assert!(floats(Taken::Boxes, "").unwrap().is_empty(), "an image without objects");
    }

    #[test]
    fn longer_lines_are_outlines_or_poses_as_the_part_says() {
        let line = "1 0.5 0.25 0.75 0.5 0.25 1.0";
        assert_eq!(floats(Taken::Outlines, line).unwrap(), [0.5, 0.625, 0.5, 0.75]);
        let pose = "1 0.5 0.5 1 1 0.25 0.25 2 0 0 0";
        assert_eq!(floats(Taken::Pose, pose).unwrap(), [0.5, 0.5, 1.0, 1.0]);
        assert_eq!(floats(Taken::Keypoints, pose).unwrap(), [0.25, 0.25, 2.0, 0.0, 0.0, 0.0]);
        let error = floats(Taken::Boxes, pose).unwrap_err();
        assert!(error.contains("line 1 has 11 numbers") && error.contains("txt:outlines"), "{error}");
    }

    #[test]
    fn a_line_that_is_none_is_named() {
        for (taken, text, says) in [
            (Taken::Boxes, "0 0.5 0.5 1 1\n0 0.5 x 1 1", "line 2 has \"x\""),
            (Taken::Boxes, "0 0.5 0.5 1", "line 1 has 4 numbers"),
            (Taken::Boxes, "0 nan 0.5 1 1", "\"nan\""),
            (Taken::Classes, "0.5 0.5 0.5 1 1", "no class number"),
            (Taken::Outlines, "0 0.5 0.5 1 1", "three points"),
            (Taken::Keypoints, "0 1 1 1 1 1 1 2\n0 1 1 1 1 1 1 2 1 1 2", "line 2 has 6 numbers of keypoints"),
        ] {
            let error = floats(taken, text).unwrap_err();
            assert!(error.contains(says), "{error}");
        }
    }
}
