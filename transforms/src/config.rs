//! The transforms as plain data: torchvision v2's names, arguments and defaults.
//!
//! One entry of a chain is a table with a `type`, in TOML or JSON alike:
//!
//! ```json
//! {"type": "RandomResizedCrop", "size": 224, "scale": [0.08, 1.0]}
//! ```
//!
//! Unknown types and arguments are refused; who reads a configuration says which are known. Ranges are checked by
//! [`compile`](crate::compile()), which knows the place in the chain.

use std::fmt;

use serde::de::{self, Deserializer, SeqAccess, Visitor};
use serde::ser::{SerializeSeq, Serializer};
use serde::{Deserialize, Serialize};

pub use crate::resize::Interpolation;

/// One transform of a chain.
///
/// Pixels are `u8` after each of them, rounded as Pillow does. Sizes are in pixels, (height, width); factors and
/// probabilities have no unit; `fill` is in levels 0 to 255.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", deny_unknown_fields, remote = "Self")]
pub enum TransformConfig {
    /// Resizes the whole image. `size` is [height, width], or one number for the shorter edge, which keeps the aspect;
    /// without `size` the longer edge becomes `max_size`.
    Resize {
        /// [height, width], or the length of the shorter edge.
        #[serde(default)]
        size: Option<Size>,
        /// How new pixels are computed.
        #[serde(default = "bilinear")]
        interpolation: Interpolation,
        /// With one number as `size`: the longest the longer edge may become; the shorter one then shrinks with it.
        #[serde(default)]
        max_size: Option<u32>,
        /// Widens the filter when shrinking, as Pillow always does. False (bilinear and bicubic only) samples as
        /// torchvision does on tensors without antialiasing.
        #[serde(default = "yes")]
        antialias: bool,
    },
    /// Cuts the middle out; a smaller image is first padded with black on both sides.
    CenterCrop {
        /// [height, width], or one number for a square.
        size: Size,
    },
    /// Cuts a window of fixed size out at a random place. An image that is too small is an error of that sample
    /// unless `pad_if_needed`.
    RandomCrop {
        /// [height, width], or one number for a square.
        size: Size,
        /// Padding around the image before the cut: all sides; [left and right, top and bottom]; or
        /// [left, top, right, bottom].
        #[serde(default)]
        padding: Option<Sides>,
        /// Pads both sides of an image that is smaller than `size`.
        #[serde(default)]
        pad_if_needed: bool,
        /// Colour of constant padding: one number or one a channel.
        #[serde(default)]
        fill: Numbers,
        /// What padding is made of.
        #[serde(default)]
        padding_mode: PaddingMode,
    },
    /// Cuts out a random share of the image at a random aspect and resizes it to `size`.
    RandomResizedCrop {
        /// [height, width], or one number for a square.
        size: Size,
        /// Bounds of the share of the image's area that is cut out.
        #[serde(default = "crop_scale")]
        scale: [f64; 2],
        /// Bounds of the cut's width divided by its height.
        #[serde(default = "crop_ratio")]
        ratio: [f64; 2],
        /// How new pixels are computed.
        #[serde(default = "bilinear")]
        interpolation: Interpolation,
        /// As for `Resize`.
        #[serde(default = "yes")]
        antialias: bool,
    },
    /// Mirrors left and right with probability `p`.
    RandomHorizontalFlip {
        /// Probability, 0 to 1.
        #[serde(default = "half")]
        p: f64,
    },
    /// Mirrors top and bottom with probability `p`.
    RandomVerticalFlip {
        /// Probability, 0 to 1.
        #[serde(default = "half")]
        p: f64,
    },
    /// Rotates by a random angle, counter-clockwise for positive ones.
    RandomRotation {
        /// [least, most] in degrees, or one number d for [-d, d].
        degrees: Numbers,
        /// `nearest` or `bilinear`.
        #[serde(default = "nearest")]
        interpolation: Interpolation,
        /// Grows the image so that all of it stays visible; the size then depends on the angle, and a crop or resize
        /// has to follow. `center` is ignored, as torchvision does.
        #[serde(default)]
        expand: bool,
        /// [x, y] of the point that stays; the middle where absent.
        #[serde(default)]
        center: Option<[f64; 2]>,
        /// Colour of the corners: one number or one a channel.
        #[serde(default)]
        fill: Numbers,
    },
    /// Makes the image gray (ITU-R 601 luma).
    Grayscale {
        /// 1, or 3 for the gray value three times.
        #[serde(default = "one")]
        num_output_channels: u32,
    },
    /// Makes the image gray with probability `p`, keeping its number of channels.
    RandomGrayscale {
        /// Probability, 0 to 1.
        #[serde(default = "tenth")]
        p: f64,
    },
    /// Changes brightness, contrast, saturation and hue by random factors in a random order. Each is a number v for
    /// a factor in [max(0, 1 - v), 1 + v] (hue: [-v, v]), or [least, most].
    ColorJitter {
        /// Factor on all values.
        #[serde(default)]
        brightness: Option<Numbers>,
        /// Factor on the distance from the mean gray.
        #[serde(default)]
        contrast: Option<Numbers>,
        /// Factor on the distance from the pixel's own gray.
        #[serde(default)]
        saturation: Option<Numbers>,
        /// Shift of the hue in turns, within [-0.5, 0.5].
        #[serde(default)]
        hue: Option<Numbers>,
    },
    /// Blurs with a Gaussian kernel; borders are reflected.
    GaussianBlur {
        /// Odd width of the kernel in pixels: one number, or two, which torchvision uses as [x, y].
        kernel_size: Size,
        /// Standard deviation in pixels: fixed, or [least, most].
        #[serde(default = "blur_sigma")]
        sigma: Numbers,
    },
    /// Adds a border.
    Pad {
        /// All sides; [left and right, top and bottom]; or [left, top, right, bottom].
        padding: Sides,
        /// Colour of constant padding: one number or one a channel.
        #[serde(default)]
        fill: Numbers,
        /// What padding is made of.
        #[serde(default)]
        padding_mode: PaddingMode,
    },
    /// Adds normally distributed noise; mean and standard deviation are on the scale where white is 1. Values are
    /// rounded to the nearest level and clipped to [0, 255].
    GaussianNoise {
        /// Mean of the noise.
        #[serde(default)]
        mean: f64,
        /// Standard deviation of the noise.
        #[serde(default = "tenth")]
        sigma: f64,
        /// Must be true: pixels are `u8`, which would wrap around.
        #[serde(default = "yes")]
        clip: bool,
    },
    /// Overwrites a random rectangle with probability `p`. Behind `Normalize`, `value` is in normalised units; before
    /// it, or without one, in levels 0 to 255.
    RandomErasing {
        /// Probability, 0 to 1.
        #[serde(default = "half")]
        p: f64,
        /// Bounds of the share of the area.
        #[serde(default = "erase_scale")]
        scale: [f64; 2],
        /// Bounds of the rectangle's height divided by its width.
        #[serde(default = "erase_ratio")]
        ratio: [f64; 2],
        /// One number, one a channel, or "random" (behind `Normalize` only) for standard normal values.
        #[serde(default)]
        value: EraseValue,
    },
    /// Subtracts the mean and divides by the standard deviation, both a channel and on the scale where white is 1.
    /// Only `RandomErasing` may follow.
    Normalize {
        /// One number a channel, or one for all.
        mean: Vec<f64>,
        /// One number a channel, or one for all; none may be 0.
        std: Vec<f64>,
    },
}

fn bilinear() -> Interpolation {
    Interpolation::Bilinear
}
fn nearest() -> Interpolation {
    Interpolation::Nearest
}
fn yes() -> bool {
    true
}
fn one() -> u32 {
    1
}
fn half() -> f64 {
    0.5
}
fn tenth() -> f64 {
    0.1
}
fn crop_scale() -> [f64; 2] {
    [0.08, 1.0]
}
fn crop_ratio() -> [f64; 2] {
    [3.0 / 4.0, 4.0 / 3.0]
}
fn erase_scale() -> [f64; 2] {
    [0.02, 0.33]
}
fn erase_ratio() -> [f64; 2] {
    [0.3, 3.3]
}
fn blur_sigma() -> Numbers {
    Numbers(vec![0.1, 2.0])
}

/// The names of all transforms, in the order of the list above.
pub const TRANSFORM_NAMES: [&str; 15] = [
    "Resize",
    "CenterCrop",
    "RandomCrop",
    "RandomResizedCrop",
    "RandomHorizontalFlip",
    "RandomVerticalFlip",
    "RandomRotation",
    "Grayscale",
    "RandomGrayscale",
    "ColorJitter",
    "GaussianBlur",
    "Pad",
    "GaussianNoise",
    "RandomErasing",
    "Normalize",
];

impl TransformConfig {
    /// The transform's name, as in `type`.
    pub fn name(&self) -> &'static str {
        match self {
            TransformConfig::Resize { .. } => "Resize",
            TransformConfig::CenterCrop { .. } => "CenterCrop",
            TransformConfig::RandomCrop { .. } => "RandomCrop",
            TransformConfig::RandomResizedCrop { .. } => "RandomResizedCrop",
            TransformConfig::RandomHorizontalFlip { .. } => "RandomHorizontalFlip",
            TransformConfig::RandomVerticalFlip { .. } => "RandomVerticalFlip",
            TransformConfig::RandomRotation { .. } => "RandomRotation",
            TransformConfig::Grayscale { .. } => "Grayscale",
            TransformConfig::RandomGrayscale { .. } => "RandomGrayscale",
            TransformConfig::ColorJitter { .. } => "ColorJitter",
            TransformConfig::GaussianBlur { .. } => "GaussianBlur",
            TransformConfig::Pad { .. } => "Pad",
            TransformConfig::GaussianNoise { .. } => "GaussianNoise",
            TransformConfig::RandomErasing { .. } => "RandomErasing",
            TransformConfig::Normalize { .. } => "Normalize",
        }
    }
}

impl Serialize for TransformConfig {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        TransformConfig::serialize(self, serializer)
    }
}

impl<'de> Deserialize<'de> for TransformConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        TransformConfig::deserialize(deserializer)
    }
}

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

/// What a border is made of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PaddingMode {
    /// `fill`.
    #[default]
    Constant,
    /// The border pixel, repeated.
    Edge,
    /// The image mirrored at its border pixels, which are not repeated.
    Reflect,
    /// The image mirrored at its border, whose pixels are repeated.
    Symmetric,
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

/// What `RandomErasing` writes.
#[derive(Clone, Debug, PartialEq)]
pub enum EraseValue {
    /// One number, or one a channel.
    Numbers(Numbers),
    /// Values of the standard normal distribution.
    Random,
}

impl Default for EraseValue {
    fn default() -> Self {
        EraseValue::Numbers(Numbers::default())
    }
}

impl Serialize for EraseValue {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            EraseValue::Numbers(numbers) => numbers.serialize(serializer),
            EraseValue::Random => serializer.serialize_str("random"),
        }
    }
}

impl<'de> Deserialize<'de> for EraseValue {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        const WHAT: &str = "a number, a list of numbers or \"random\"";
        match deserializer.deserialize_any(AnyVisitor(WHAT))? {
            Any::Numbers(numbers) => Ok(EraseValue::Numbers(Numbers(numbers))),
            Any::Text(text) if text == "random" => Ok(EraseValue::Random),
            Any::Text(text) => Err(de::Error::invalid_value(de::Unexpected::Str(&text), &WHAT)),
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

enum Any {
    Numbers(Vec<f64>),
    Text(String),
}

/// Takes a number, a list of numbers or a text; serde's untagged enums would do it too, but with errors that do not
/// say what was expected.
struct AnyVisitor(&'static str);

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

/// The element type of the output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    /// Unsigned bytes, 0 to 255.
    U8,
    /// IEEE single precision.
    F32,
    /// IEEE half precision, rounded to nearest even.
    F16,
    /// The upper half of a single, rounded to nearest even.
    Bf16,
}

impl Dtype {
    /// Bytes of one element.
    pub fn bytes(self) -> usize {
        match self {
            Dtype::U8 => 1,
            Dtype::F16 | Dtype::Bf16 => 2,
            Dtype::F32 => 4,
        }
    }

    /// The name in configuration: "u8", "f32", "f16" or "bf16".
    pub fn name(self) -> &'static str {
        match self {
            Dtype::U8 => "u8",
            Dtype::F32 => "f32",
            Dtype::F16 => "f16",
            Dtype::Bf16 => "bf16",
        }
    }
}

/// How the elements of a row lie in memory; the logical shape is (channels, height, width) either way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Layout {
    /// One plane a channel.
    #[default]
    Nchw,
    /// The channels of a pixel together.
    Nhwc,
}

/// What the last pass writes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OutputConfig {
    /// Absent: f32 where the chain has a `Normalize`, else u8. A float without `Normalize` means values in [0, 1].
    #[serde(default)]
    pub dtype: Option<Dtype>,
    /// Memory order.
    #[serde(default)]
    pub layout: Layout,
}
