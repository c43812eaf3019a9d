//! What rows are made of: the element type and the memory order of the last pass.

use serde::{Deserialize, Serialize};

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
    /// Unsigned numbers of two bytes: for masks only.
    U16,
}

impl Dtype {
    /// Bytes of one element.
    pub fn bytes(self) -> usize {
        match self {
            Dtype::U8 => 1,
            Dtype::F16 | Dtype::Bf16 | Dtype::U16 => 2,
            Dtype::F32 => 4,
        }
    }

    /// The name in configuration: "u8", "f32", "f16", "bf16" or "u16".
    pub fn name(self) -> &'static str {
        match self {
            Dtype::U8 => "u8",
            Dtype::F32 => "f32",
            Dtype::F16 => "f16",
            Dtype::Bf16 => "bf16",
            Dtype::U16 => "u16",
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

/// Who makes floats of pixels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Finish {
    /// The last pass: rows are what was asked for.
    #[default]
    Here,
    /// Whoever takes the rows, which are u8, by the [`Finishing`](crate::Finishing) that goes with them. Where only the
    /// last pass can do it (an erasing with random values), it does.
    Later,
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
    /// Who makes floats of pixels.
    #[serde(default)]
    pub finish: Finish,
}
