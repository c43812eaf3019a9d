//! What arguments of transforms are made of, and how they are checked.

use std::fmt;

use serde::de::{self, Deserializer, SeqAccess, Visitor};
use serde::ser::{SerializeSeq, Serializer};
use serde::{Deserialize, Serialize};

use crate::error::ConfigError;
use crate::geometry::PIXEL;
use crate::resize::Interpolation;
use crate::warp::{Filter, Look};

/// The longest side that a transform may ask for; libjpeg's own bound, and far beyond any training image.
pub(super) const MAX_SIDE: u32 = 65_500;

/// [height, width], or one number whose meaning the transform says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    /// One number (or a list of one, as torchvision allows).
    One(u32),
    /// [height, width].
    Both(u32, u32),
}

impl Size {
    /// (height, width) where one number means a square.
    pub(crate) fn square(self) -> (u32, u32) {
        match self {
            Size::One(edge) => (edge, edge),
            Size::Both(h, w) => (h, w),
        }
    }
}

impl Serialize for Size {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Size::One(edge) => serializer.serialize_u32(*edge),
            Size::Both(h, w) => [h, w].serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let numbers = whole_numbers(deserializer, "a whole number or [height, width]")?;
        match numbers[..] {
            [edge] => Ok(Size::One(edge)),
            [h, w] => Ok(Size::Both(h, w)),
            _ => Err(de::Error::invalid_length(numbers.len(), &"a whole number or [height, width]")),
        }
    }
}

/// Border widths in pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sides {
    /// Columns on the left.
    pub left: u32,
    /// Rows on top.
    pub top: u32,
    /// Columns on the right.
    pub right: u32,
    /// Rows at the bottom.
    pub bottom: u32,
}

impl Sides {
    /// (width, height) of an image of `(w, h)` with these borders.
    pub(crate) fn around(self, (w, h): (usize, usize)) -> (usize, usize) {
        (w + (self.left + self.right) as usize, h + (self.top + self.bottom) as usize)
    }
}

impl Serialize for Sides {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        [self.left, self.top, self.right, self.bottom].serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Sides {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        const WHAT: &str = "a whole number, [left/right, top/bottom] or [left, top, right, bottom]";
        let numbers = whole_numbers(deserializer, WHAT)?;
        match numbers[..] {
            [all] => Ok(Sides { left: all, top: all, right: all, bottom: all }),
            [x, y] => Ok(Sides { left: x, top: y, right: x, bottom: y }),
            [left, top, right, bottom] => Ok(Sides { left, top, right, bottom }),
            _ => Err(de::Error::invalid_length(numbers.len(), &WHAT)),
        }
    }
}

/// One number, or a list of them.
#[derive(Clone, Debug, PartialEq)]
pub struct Numbers(pub Vec<f64>);

impl Default for Numbers {
    fn default() -> Self {
        Numbers(vec![0.0])
    }
}

impl Serialize for Numbers {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serialize_numbers(&self.0, serializer)
    }
}

impl<'de> Deserialize<'de> for Numbers {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        const WHAT: &str = "a number or a list of numbers";
        match deserializer.deserialize_any(AnyVisitor(WHAT))? {
            Any::Numbers(numbers) => Ok(Numbers(numbers)),
            Any::Text(text) => Err(de::Error::invalid_type(de::Unexpected::Str(&text), &WHAT)),
        }
    }
}

fn serialize_numbers<S: Serializer>(numbers: &[f64], serializer: S) -> Result<S::Ok, S::Error> {
    if let [number] = numbers {
        return serializer.serialize_f64(*number);
    }
    let mut seq = serializer.serialize_seq(Some(numbers.len()))?;
    for number in numbers {
        seq.serialize_element(number)?;
    }
    seq.end()
}

fn whole_numbers<'de, D: Deserializer<'de>>(
    deserializer: D,
    what: &'static str,
) -> Result<Vec<u32>, D::Error> {
    let numbers = match deserializer.deserialize_any(AnyVisitor(what))? {
        Any::Numbers(numbers) => numbers,
        Any::Text(text) => return Err(de::Error::invalid_type(de::Unexpected::Str(&text), &what)),
    };
    numbers
        .iter()
        .map(|&number| {
            if number.fract() == 0.0 && (0.0..=f64::from(u32::MAX)).contains(&number) {
                Ok(number as u32)
            } else {
                Err(de::Error::invalid_value(de::Unexpected::Float(number), &what))
            }
        })
        .collect()
}

pub(super) enum Any {
    Numbers(Vec<f64>),
    Text(String),
}

/// Takes a number, a list of numbers or a text; serde's untagged enums would do it too, but with errors that do not
/// say what was expected.
pub(super) struct AnyVisitor(pub &'static str);

impl<'de> Visitor<'de> for AnyVisitor {
    type Value = Any;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }

    fn visit_i64<E: de::Error>(self, v: i64) -> Result<Any, E> {
        Ok(Any::Numbers(vec![v as f64]))
    }

    fn visit_u64<E: de::Error>(self, v: u64) -> Result<Any, E> {
        Ok(Any::Numbers(vec![v as f64]))
    }

    fn visit_f64<E: de::Error>(self, v: f64) -> Result<Any, E> {
        Ok(Any::Numbers(vec![v]))
    }

    fn visit_str<E: de::Error>(self, v: &str) -> Result<Any, E> {
        Ok(Any::Text(v.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Any, A::Error> {
        let mut numbers = Vec::new();
        while let Some(number) = seq.next_element()? {
            numbers.push(number);
        }
        Ok(Any::Numbers(numbers))
    }
}

/// The arguments of one transform, for errors that say where they are.
pub(crate) struct At {
    text: String,
}

impl At {
    pub fn new(place: usize, name: &'static str) -> Self {
        At { text: format!("transforms[{place}] {name}") }
    }

    /// Of a transform inside this one.
    pub fn inside(&self, place: usize, name: &'static str) -> Self {
        At { text: format!("{}: transforms[{place}] {name}", self.text) }
    }

    /// The place and the name, as errors have them.
    pub fn text(&self) -> &str {
        &self.text
    }

    pub fn error(&self, message: impl fmt::Display) -> ConfigError {
        ConfigError(format!("{}: {message}", self.text))
    }

    pub fn check(&self, holds: bool, message: impl FnOnce() -> String) -> Result<(), ConfigError> {
        if holds { Ok(()) } else { Err(self.error(message())) }
    }

    pub fn probability(&self, p: f64) -> Result<f64, ConfigError> {
        self.check((0.0..=1.0).contains(&p), || format!("p must be between 0 and 1, not {p}"))?;
        Ok(p)
    }

    pub fn side(&self, argument: &str, side: u32) -> Result<usize, ConfigError> {
        self.check((1..=MAX_SIDE).contains(&side), || {
            format!("{argument} must be between 1 and {MAX_SIDE} pixels, not {side}")
        })?;
        Ok(side as usize)
    }

    /// (width, height).
    pub fn square(&self, size: Size) -> Result<(usize, usize), ConfigError> {
        let (h, w) = size.square();
        Ok((self.side("size", w)?, self.side("size", h)?))
    }

    pub fn range(
        &self,
        argument: &str,
        range: [f64; 2],
        low: f64,
        high: f64,
    ) -> Result<[f64; 2], ConfigError> {
        let [a, b] = range;
        self.check(a <= b && low <= a && b <= high && a.is_finite() && b.is_finite(), || {
            let bounds = match (low.is_finite(), high.is_finite()) {
                (true, true) => format!(" within {low} and {high}"),
                (true, false) => format!(" of at least {low}"),
                _ => String::new(),
            };
            format!("{argument} must be [least, most]{bounds}, not [{a}, {b}]")
        })?;
        Ok(range)
    }

    pub fn positive_range(&self, argument: &str, range: [f64; 2]) -> Result<[f64; 2], ConfigError> {
        let [a, b] = range;
        self.check(a > 0.0 && a <= b && b.is_finite(), || {
            format!("{argument} must be [least, most], both above 0, not [{a}, {b}]")
        })?;
        Ok(range)
    }

    pub fn interpolation(&self, interpolation: Interpolation, antialias: bool) -> Result<(), ConfigError> {
        use Interpolation::*;
        self.check(antialias || matches!(interpolation, Nearest | Bilinear | Bicubic), || {
            "antialias = false is only known for bilinear and bicubic interpolation; leave it true".to_owned()
        })
    }

    pub fn sides(&self, argument: &str, sides: Sides) -> Result<Sides, ConfigError> {
        for side in [sides.left, sides.top, sides.right, sides.bottom] {
            self.check(side <= MAX_SIDE, || {
                format!("{argument} must be at most {MAX_SIDE} pixels a side, not {side}")
            })?;
        }
        Ok(sides)
    }

    /// A colour in levels, as Pillow takes it: cut off to whole levels.
    pub fn levels(
        &self,
        argument: &str,
        numbers: &Numbers,
        channels: usize,
    ) -> Result<[u8; PIXEL], ConfigError> {
        for value in &numbers.0 {
            self.check((0.0..=255.0).contains(value), || {
                format!("{argument} is a level from 0 to 255, not {value}")
            })?;
        }
        let [r, g, b] = self.per_channel(argument, &numbers.0, channels)?.map(|value| value as u8);
        Ok([r, g, b, 255])
    }

    /// How an image is drawn through a map.
    pub fn look(
        &self,
        interpolation: Interpolation,
        fill: &Numbers,
        channels: usize,
    ) -> Result<Look, ConfigError> {
        let filter = match interpolation {
            Interpolation::Nearest => Filter::Nearest,
            Interpolation::Bilinear => Filter::Bilinear,
            Interpolation::Bicubic => Filter::Bicubic,
            _ => return Err(self.error("interpolation must be nearest, bilinear or bicubic")),
        };
        Ok(Look { filter, fill: self.levels("fill", fill, channels)? })
    }

    /// [least, most] from one number d for [-d, d], or two.
    pub fn angles(&self, argument: &str, numbers: &[f64]) -> Result<[f64; 2], ConfigError> {
        let range = match *numbers {
            [d] => {
                self.check(d >= 0.0, || {
                    format!("{argument} as a single number must not be negative, not {d}")
                })?;
                [-d, d]
            }
            [a, b] => [a, b],
            _ => return Err(self.error(format!("{argument} must be one number or [least, most]"))),
        };
        self.range(argument, range, f64::NEG_INFINITY, f64::INFINITY)
    }

    pub fn center(&self, center: Option<[f64; 2]>) -> Result<(), ConfigError> {
        let Some([x, y]) = center else { return Ok(()) };
        self.check(x.abs() <= 1e6 && y.abs() <= 1e6, || {
            format!("center must be [x, y] in pixels, not [{x}, {y}]")
        })
    }

    pub fn per_channel(
        &self,
        argument: &str,
        values: &[f64],
        channels: usize,
    ) -> Result<[f64; 3], ConfigError> {
        for value in values {
            self.check(value.is_finite(), || {
                format!("{argument} holds {value}, which is not a finite number")
            })?;
        }
        match *values {
            [one] => Ok([one; 3]),
            [r, g, b] if channels == 3 => Ok([r, g, b]),
            _ => Err(self.error(format!(
                "{argument} has {} numbers, but the image has {channels} channel{} here: give one number or {channels}",
                values.len(),
                if channels == 1 { "" } else { "s" }
            ))),
        }
    }
}
