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
    /// The field of the boxes that they belong to, a row each box: what removes a box removes its row.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub like: Option<String>,
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

/// Boxes that move with an image: (max_rows, 4) f32 a row, and how many there are.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BoxesField {
    /// Their name in the batch.
    pub name: String,
    /// Where the source has them.
    pub part: String,
    /// The field of the image that they are in.
    #[serde(default = "image")]
    pub like: String,
    /// What their four numbers are in the source.
    #[serde(default)]
    pub format: BoxFormat,
    /// What they are in the batch. Absent: the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<BoxFormat>,
    /// Boxes that a row has room for.
    pub max_rows: u64,
    /// What becomes of a record with more of them left.
    #[serde(default)]
    pub overflow: Overflow,
    /// What becomes of a record without them.
    #[serde(default)]
    pub missing: Missing,
    /// What becomes of a box that is none.
    #[serde(default)]
    pub invalid: Invalid,
}

/// Points that move with an image: (max_rows, points, 2 or 3) f32 a row, and how many rows there are.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeypointsField {
    /// Their name in the batch.
    pub name: String,
    /// Where the source has them.
    pub part: String,
    /// The field of the boxes that they belong to, a row each box; or that of their image.
    #[serde(default = "image")]
    pub like: String,
    /// Rows that there is room for. Absent: as for the boxes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_rows: Option<u64>,
    /// Where the point of each place comes from when the image is mirrored: left and right change places.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flip_indices: Option<Vec<u64>>,
    /// What becomes of a record with more rows.
    #[serde(default)]
    pub overflow: Overflow,
    /// What becomes of a record without them.
    #[serde(default)]
    pub missing: Missing,
}

/// A share larger than this is none: annotations reach out of an image, but not by its size.
const MOST_SHARE: f64 = 2.0;

/// What the four numbers of a box are; in pixels, or with `n` as shares of the image's width and height.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BoxFormat {
    /// Left, top, right, bottom.
    #[default]
    Xyxy,
    /// Left, top, width, height (COCO).
    Xywh,
    /// The middle, width, height.
    Cxcywh,
    /// As `xyxy`, in shares.
    Xyxyn,
    /// As `xywh`, in shares.
    Xywhn,
    /// As `cxcywh`, in shares (YOLO).
    Cxcywhn,
}

impl BoxFormat {
    /// As in configuration.
    pub fn name(self) -> &'static str {
        match self {
            Self::Xyxy => "xyxy",
            Self::Xywh => "xywh",
            Self::Cxcywh => "cxcywh",
            Self::Xyxyn => "xyxyn",
            Self::Xywhn => "xywhn",
            Self::Cxcywhn => "cxcywhn",
        }
    }

    /// Whether the numbers are shares.
    pub fn is_relative(self) -> bool {
        matches!(self, Self::Xyxyn | Self::Xywhn | Self::Cxcywhn)
    }

    /// Left, top, right, bottom of such a box.
    ///
    /// # Errors
    /// Why it is none.
    pub fn edges(self, four: [f64; 4]) -> Result<[f64; 4], String> {
        if !four.iter().all(|number| number.is_finite()) {
            return Err("its numbers are not finite".into());
        }
        if self.is_relative() && four.iter().any(|number| number.abs() > MOST_SHARE) {
            let pixels = self.name().trim_end_matches('n');
            return Err(format!("shares of the image are at most 1; of pixels the format is {pixels:?}"));
        }
        let is_share = |number: &f64| (0.0..=1.0).contains(number);
        if !self.is_relative() && four.iter().all(is_share) && four.iter().any(|number| number.fract() != 0.0)
        {
            return Err(format!(
                "it is smaller than a pixel; of shares of the image the format is \"{}n\"",
                self.name()
            ));
        }
        let [a, b, c, d] = four;
        let [left, top, right, bottom] = match self {
            Self::Xyxy | Self::Xyxyn => four,
            Self::Xywh | Self::Xywhn => [a, b, a + c, b + d],
            Self::Cxcywh | Self::Cxcywhn => [a - c / 2.0, b - d / 2.0, a + c / 2.0, b + d / 2.0],
        };
        match (right < left, bottom < top) {
            (true, _) => Err("its right edge is left of its left one; is its format another one?".into()),
            (_, true) => Err("its lower edge is above its upper one; is its format another one?".into()),
            _ => Ok([left, top, right, bottom]),
        }
    }

    /// The box with these edges in pixels, in an image of this size (width, height).
    pub fn of(self, [left, top, right, bottom]: [f64; 4], (w, h): (f64, f64)) -> [f64; 4] {
        let (w, h) = if self.is_relative() { (w, h) } else { (1.0, 1.0) };
        let (left, top, right, bottom) = (left / w, top / h, right / w, bottom / h);
        match self {
            Self::Xyxy | Self::Xyxyn => [left, top, right, bottom],
            Self::Xywh | Self::Xywhn => [left, top, right - left, bottom - top],
            Self::Cxcywh | Self::Cxcywhn => {
                [(left + right) / 2.0, (top + bottom) / 2.0, right - left, bottom - top]
            }
        }
    }
}

/// What becomes of a box whose numbers are not finite, or whose edges have changed places.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Invalid {
    /// The record is bad.
    #[default]
    Bad,
    /// It is left out, with what belongs to it.
    Drop,
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
    /// Boxes.
    Boxes(BoxesField),
    /// Points.
    Keypoints(KeypointsField),
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
            Self::Boxes(field) => &field.name,
            Self::Keypoints(field) => &field.name,
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
            Self::Boxes(_) => "Boxes",
            Self::Keypoints(_) => "Keypoints",
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
            Self::Boxes(field) => Wanted {
                row: Some(vec![4]),
                optional: field.missing == Missing::Empty,
                ..Wanted::new(&field.part, WantedKind::Ragged)
            },
            Self::Keypoints(field) => Wanted {
                optional: field.missing == Missing::Empty,
                ..Wanted::new(&field.part, WantedKind::Ragged)
            },
            Self::Numbers(field) if field.max_rows.is_some() || field.like.is_some() => Wanted {
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

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [BoxFormat; 6] = [
        BoxFormat::Xyxy,
        BoxFormat::Xywh,
        BoxFormat::Cxcywh,
        BoxFormat::Xyxyn,
        BoxFormat::Xywhn,
        BoxFormat::Cxcywhn,
    ];

    #[test]
    fn a_box_is_the_same_in_every_format() {
        let edges = [10.0, 20.0, 50.0, 40.0];
        for format in ALL {
            let size = (100.0, 80.0);
            let (w, h) = if format.is_relative() { size } else { (1.0, 1.0) };
            let [left, top, right, bottom] = format.edges(format.of(edges, size)).unwrap();
            for (found, edge) in [left * w, top * h, right * w, bottom * h].into_iter().zip(edges) {
                assert!((found - edge).abs() < 1e-9, "{}", format.name());
            }
            assert_eq!(serde_json::to_value(format).unwrap(), format.name());
        }
    }

    #[test]
    fn numbers_that_are_no_box_are_refused_in_every_format() {
        for format in ALL {
            for number in [f64::NAN, f64::INFINITY] {
                assert!(format.edges([0.0, 0.0, number, 1.0]).unwrap_err().contains("not finite"));
            }
            let inverted = if format.is_relative() { [0.9, 0.5, -0.1, 0.6] } else { [9.0, 5.0, -1.0, 6.0] };
            assert!(format.edges(inverted).unwrap_err().contains("right edge"), "{}", format.name());
            assert!(format.edges([0.0, 0.0, 0.0, 0.0]).is_ok(), "an empty box is one");
        }
    }
}
