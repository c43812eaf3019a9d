//! What a source's records hold: an image or not, and which numeric fields beside it.
//!
//! ```text
//!  record bytes   | encoded image (any length; none in a table of numbers) | field 0 | field 1 | … |
//!                                                                          ╰── Schema::fields_bytes ──╯
//! ```
//!
//! Fields have fixed shapes, so the end of the image is known from the length alone and one buffer carries it all.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What every record of a source holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Schema {
    /// Whether a record begins with an encoded image.
    pub image: bool,
    /// The numeric fields that follow it, in this order, without gaps.
    pub fields: Vec<FieldSpec>,
}

/// One numeric field: the same type and shape in every record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FieldSpec {
    /// Its name in the batch.
    pub name: String,
    /// Type of its elements, little-endian.
    pub dtype: ElementType,
    /// Shape of one record's value; empty for a scalar. C order.
    pub shape: Vec<u64>,
}

/// Element types of fields, by numpy's short names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs, reason = "the names say it")]
pub enum ElementType {
    Bool,
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    U64,
    I64,
    F16,
    F32,
    F64,
}

/// Names that a batch uses itself.
pub const RESERVED: [&str; 6] = ["image", "label", "index", "position", "substituted", "part"];

/// A field of one record may not be larger than this; a larger one is a mistake in the shape, not a sample.
pub const MAX_FIELD_BYTES: u64 = 64 << 20;

impl Schema {
    /// Encoded images without further fields.
    pub fn images() -> Self {
        Self { image: true, fields: Vec::new() }
    }

    /// Bytes of all fields of one record.
    pub fn fields_bytes(&self) -> usize {
        self.fields.iter().map(FieldSpec::bytes).sum()
    }

    /// Cuts a record's bytes into the image and the fields. `None` when they are shorter than the fields.
    pub fn split<'bytes>(&self, bytes: &'bytes [u8]) -> Option<(&'bytes [u8], &'bytes [u8])> {
        bytes.split_at_checked(bytes.len().checked_sub(self.fields_bytes())?)
    }

    /// Refuses names that clash or shapes without end. Where records have no labels, a field may be called `label`.
    ///
    /// # Errors
    /// A sentence that names the field.
    pub fn check(&self, is_labelled: bool) -> Result<(), String> {
        for (at, field) in self.fields.iter().enumerate() {
            if field.name == "label" {
                if is_labelled {
                    return Err(
                        "the field \"label\" has the name of the label, which is delivered already; leave it out of fields, \
                         or use the records without labels (label=None)"
                            .into(),
                    );
                }
            } else if RESERVED.contains(&field.name.as_str()) {
                return Err(format!(
                    "the field {:?} has the name of a field that every batch has; choose other fields or rename it",
                    field.name
                ));
            }
            if self.fields[..at].iter().any(|other| other.name == field.name) {
                return Err(format!("the field {:?} is named twice", field.name));
            }
            let bytes =
                field.shape.iter().try_fold(field.dtype.size() as u64, |product, &n| product.checked_mul(n));
            if bytes.is_none_or(|bytes| bytes > MAX_FIELD_BYTES) {
                return Err(format!(
                    "the field {:?} of shape {:?} is larger than {} MiB a record",
                    field.name,
                    field.shape,
                    MAX_FIELD_BYTES >> 20
                ));
            }
        }
        if !self.image && self.fields.is_empty() {
            return Err("a record would hold nothing: no image and no fields".into());
        }
        Ok(())
    }
}

impl FieldSpec {
    /// Bytes of one record's value.
    pub fn bytes(&self) -> usize {
        self.shape.iter().product::<u64>() as usize * self.dtype.size()
    }
}

impl ElementType {
    /// Bytes of one element.
    pub fn size(self) -> usize {
        match self {
            Self::Bool | Self::U8 | Self::I8 => 1,
            Self::U16 | Self::I16 | Self::F16 => 2,
            Self::U32 | Self::I32 | Self::F32 => 4,
            Self::U64 | Self::I64 | Self::F64 => 8,
        }
    }

    /// The name in configuration and messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bool => "bool",
            Self::U8 => "u8",
            Self::I8 => "i8",
            Self::U16 => "u16",
            Self::I16 => "i16",
            Self::U32 => "u32",
            Self::I32 => "i32",
            Self::U64 => "u64",
            Self::I64 => "i64",
            Self::F16 => "f16",
            Self::F32 => "f32",
            Self::F64 => "f64",
        }
    }
}

impl fmt::Display for ElementType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field(name: &str, shape: &[u64]) -> FieldSpec {
        FieldSpec { name: name.into(), dtype: ElementType::F32, shape: shape.to_vec() }
    }

    #[test]
    fn a_record_is_its_image_and_then_its_fields() {
        let schema = Schema { image: true, fields: vec![field("box", &[4]), field("age", &[])] };
        schema.check(true).unwrap();
        assert_eq!(schema.fields_bytes(), 20);
        let bytes: Vec<u8> = (0..23).collect();
        let (image, fields) = schema.split(&bytes).unwrap();
        assert_eq!((image.len(), fields.len(), fields[0]), (3, 20, 3));
        assert!(schema.split(&bytes[..19]).is_none());
    }

    #[test]
    fn names_that_clash_and_shapes_without_end_are_refused() {
        let check = |fields| Schema { image: true, fields }.check(true).unwrap_err();
        assert!(check(vec![field("label", &[])]).contains("\"label\""));
        Schema { image: true, fields: vec![field("label", &[])] }.check(false).unwrap();
        assert!(check(vec![field("index", &[])]).contains("\"index\""));
        assert!(check(vec![field("a", &[]), field("a", &[2])]).contains("twice"));
        assert!(check(vec![field("a", &[1 << 40, 1 << 40])]).contains("larger than 64 MiB"));
        assert!(Schema::default().check(false).unwrap_err().contains("nothing"));
    }
}
