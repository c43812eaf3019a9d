//! What a batch holds, as plain data: one entry a field, in the order in which a batch has them.
//!
//! ```json
//! [{"type": "Image", "name": "image", "transforms": [{"type": "RandomResizedCrop", "size": 224}]},
//!  {"type": "Mask", "name": "mask", "part": "seg.png", "like": "image"},
//!  {"type": "Text", "name": "caption", "part": "txt", "max_bytes": 512}]
//! ```

use fuelrail_connectors::{ElementType, Wanted, WantedKind};
use fuelrail_transforms::TransformConfig;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// An image: one chain, one tensor of shape (C, H, W) a row.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageField {
    /// Its name in the batch.
    pub name: String,
    /// Where the source has it. Absent: the image that the source finds by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub part: Option<String>,
    /// What is done to it, in order.
    #[serde(default)]
    pub transforms: Vec<TransformConfig>,
}

/// Several views of an image, each with draws of its own: (N, C, H, W) a row.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ViewsField {
    /// Its name in the batch.
    pub name: String,
    /// Views of each image, 1 to 64.
    pub n: u32,
    /// As of an image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub part: Option<String>,
    /// What is done for each view, in order.
    #[serde(default)]
    pub transforms: Vec<TransformConfig>,
}

/// A map of class numbers that goes with an image: cropped, flipped and turned with it, (H, W) a row.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MaskField {
    /// Its name in the batch.
    pub name: String,
    /// Where the source has it.
    pub part: String,
    /// The field of the image that it goes with.
    #[serde(default = "image")]
    pub like: String,
    /// Type of the numbers.
    #[serde(default)]
    pub dtype: MaskDtype,
    /// What becomes of a record without it: empty is 255 everywhere.
    #[serde(default)]
    pub missing: Missing,
}

/// Types of class numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MaskDtype {
    /// 0 to 255, where 255 is what lies outside.
    #[default]
    U8,
    /// 0 to 65,535, of masks with 16 bits.
    U16,
}

/// Text, JSON or bytes, of as many bytes as the record has up to a limit.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BytesField {
    /// Its name in the batch.
    pub name: String,
    /// Where the source has it.
    pub part: String,
    /// Bytes that a row has room for.
    pub max_bytes: u64,
    /// What becomes of a longer one.
    #[serde(default)]
    pub overflow: Overflow,
    /// What becomes of a record without it.
    #[serde(default)]
    pub missing: Missing,
}

/// Numbers: of one shape in every record, or with `max_rows` as many rows of them as the record has.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NumbersField {
    /// Its name in the batch.
    pub name: String,
    /// Where the source has them.
    pub part: String,
    /// Their type in the batch. Absent: as the source has them; f32 from JSON lists of differing length.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dtype: Option<ElementType>,
    /// Rows that there is room for, where records have different numbers of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_rows: Option<u64>,
    /// Shape of one such row, where the source does not know it and the first records should not decide.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub row: Option<Vec<u64>>,
    /// What becomes of a record with more rows.
    #[serde(default)]
    pub overflow: Overflow,
    /// What becomes of a record without them, where they have differing length.
    #[serde(default)]
    pub missing: Missing,
}

/// Where an image was cropped: (top, left, height, width, flip_x, flip_y, original height, original width), f32 each.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GeometryField {
    /// Its name in the batch.
    pub name: String,
    /// The field of the image.
    #[serde(default = "image")]
    pub of: String,
}

fn image() -> String {
    "image".into()
}

/// What becomes of a value that is longer than its field.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Overflow {
    /// The record is bad.
    #[default]
    Bad,
    /// Its beginning is delivered: whole characters of text, whole rows of numbers.
    Cut,
}

/// What becomes of a record that lacks a part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Missing {
    /// The record is bad.
    #[default]
    Bad,
    /// The value is empty.
    Empty,
}

/// One field of a batch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", remote = "Self")]
pub enum FieldConfig {
    /// An image.
    Image(ImageField),
    /// Several views of an image.
    Views(ViewsField),
    /// A map of class numbers.
    Mask(MaskField),
    /// Text, in UTF-8.
    Text(BytesField),
    /// Bytes as they are.
    Bytes(BytesField),
    /// JSON, parsed by who uses it.
    Json(BytesField),
    /// Numbers.
    Numbers(NumbersField),
    /// The crop of an image.
    Geometry(GeometryField),
}

impl BytesField {
    fn wanted(&self, kind: WantedKind) -> Wanted {
        Wanted { optional: self.missing == Missing::Empty, ..Wanted::new(&self.part, kind) }
    }
}

impl FieldConfig {
    /// Its name in the batch.
    pub fn name(&self) -> &str {
        match self {
            Self::Image(field) => &field.name,
            Self::Views(field) => &field.name,
            Self::Mask(field) => &field.name,
            Self::Text(field) | Self::Bytes(field) | Self::Json(field) => &field.name,
            Self::Numbers(field) => &field.name,
            Self::Geometry(field) => &field.name,
        }
    }

    /// Its kind, as in `type`.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Image(_) => "Image",
            Self::Views(_) => "Views",
            Self::Mask(_) => "Mask",
            Self::Text(_) => "Text",
            Self::Bytes(_) => "Bytes",
            Self::Json(_) => "Json",
            Self::Numbers(_) => "Numbers",
            Self::Geometry(_) => "Geometry",
        }
    }

    /// What it is made of; nothing of its own for a geometry.
    pub fn wanted(&self) -> Option<Wanted> {
        let image = |part: &Option<String>| match part {
            Some(part) => Wanted::new(part, WantedKind::Image),
            None => Wanted::own_image(),
        };
        Some(match self {
            Self::Image(field) => image(&field.part),
            Self::Views(field) => image(&field.part),
            Self::Mask(field) => Wanted {
                optional: field.missing == Missing::Empty,
                ..Wanted::new(&field.part, WantedKind::Image)
            },
            Self::Text(field) => field.wanted(WantedKind::Text),
            Self::Bytes(field) => field.wanted(WantedKind::Bytes),
            Self::Json(field) => field.wanted(WantedKind::Json),
            Self::Numbers(field) if field.max_rows.is_some() => Wanted {
                dtype: field.dtype,
                row: field.row.clone(),
                optional: field.missing == Missing::Empty,
                ..Wanted::new(&field.part, WantedKind::Ragged)
            },
            Self::Numbers(field) => Wanted::new(&field.part, WantedKind::Numbers),
            Self::Geometry(_) => return None,
        })
    }
}

impl Serialize for FieldConfig {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        FieldConfig::serialize(self, serializer)
    }
}

impl<'de> Deserialize<'de> for FieldConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        FieldConfig::deserialize(deserializer)
    }
}

/// What a source is asked for by these fields: each part once, in the order of the fields.
pub fn wanted(fields: &[FieldConfig]) -> Vec<Wanted> {
    let mut list: Vec<Wanted> = Vec::new();
    for wanted in fields.iter().filter_map(FieldConfig::wanted) {
        match list.iter_mut().find(|other| (&other.part, other.kind) == (&wanted.part, wanted.kind)) {
            // Who cannot do without it decides.
            Some(other) => other.optional &= wanted.optional,
            None => list.push(wanted),
        }
    }
    list
}
