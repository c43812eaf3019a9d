//! What a source's records hold: an image or not, parts of any length, and numbers of fixed shape.
//!
//! ```text
//!  record bytes   | own image | part 0 | part 1 | … | field 0 | field 1 | … | length of each part, u32 |
//!                   any length, as the part has it    ╰── Schema::fields_bytes ──╯ (no parts: nothing)
//! ```
//!
//! One buffer carries it all. The lengths of the parts stand at the end, so that a record without parts (an image, or
//! an image and numbers) is nothing but its image and its numbers. A record that lacks a part has [`ABSENT`] for its
//! length.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What every record of a source holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Schema {
    /// Whether a record begins with the encoded image that the source finds by itself.
    pub image: bool,
    /// The parts of variable length that were asked for, in that order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub parts: Vec<PartSpec>,
    /// The numeric fields that follow, in this order, without gaps.
    pub fields: Vec<FieldSpec>,
}

/// A part whose length differs from record to record, and which a record may lack.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartSpec {
    /// Where the source has it, as it was asked for: an ending, a column, a path of keys.
    pub name: String,
    /// What its bytes are.
    pub kind: PartKind,
}

/// What the bytes of a part are. Nobody has looked whether they are what they should be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PartKind {
    /// An encoded image.
    Image,
    /// Anything.
    Bytes,
    /// Text, in UTF-8.
    Text,
    /// One JSON value, in UTF-8.
    Json,
    /// Rows of numbers without gaps, little-endian, in C order.
    Ragged {
        /// Type of the elements.
        dtype: ElementType,
        /// Shape of one row; empty where a row is one number.
        row: Vec<u64>,
    },
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

/// What a source is asked to deliver in each record, instead of its own image and the numbers that its configuration
/// lists.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wanted {
    /// Where it is: an ending (`"txt"`), a column, a path of keys (`"json:a.b"`), each in the source's own words. Empty
    /// for the image that the source finds by itself.
    #[serde(default)]
    pub part: String,
    /// What it is to be.
    pub kind: WantedKind,
    /// Of ragged numbers: their type where the source does not know it, as in JSON. Default there: f32.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dtype: Option<ElementType>,
    /// Of ragged numbers: the shape of one row where the source does not know it. Default there: as the first records
    /// have it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub row: Option<Vec<u64>>,
    /// Whether the source may have it in no record at all.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub optional: bool,
}

/// What a part is asked to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WantedKind {
    /// An encoded image.
    Image,
    /// The bytes as they are.
    Bytes,
    /// Text.
    Text,
    /// A JSON value.
    Json,
    /// Numbers of the same shape in every record: one of [`Schema::fields`].
    Numbers,
    /// Numbers of which one record has more than another.
    Ragged,
    /// One value for a condition to compare, whatever it is; nothing that a configuration could ask for.
    #[serde(skip)]
    Value,
}

/// The list of what is wanted, as a key of a source's configuration. Absent: the source's own image, and the numbers
/// that its other keys list.
pub type Deliver = Option<Vec<Wanted>>;

impl Wanted {
    /// The image that the source finds by itself.
    pub fn own_image() -> Self {
        Self::new("", WantedKind::Image)
    }

    /// A part at a place.
    pub fn new(part: &str, kind: WantedKind) -> Self {
        Self { part: part.to_owned(), kind, dtype: None, row: None, optional: false }
    }

    /// Whether this is the image that the source finds by itself.
    pub fn is_own_image(&self) -> bool {
        self.kind == WantedKind::Image && self.part.is_empty()
    }

    /// Whether this is one of the [`Schema::parts`].
    pub fn is_part(&self) -> bool {
        !self.is_own_image() && self.kind != WantedKind::Numbers
    }

    /// The part in the schema. Ragged numbers are of the type and the row given.
    pub fn spec(&self, dtype: ElementType, row: &[u64]) -> PartSpec {
        let kind = match self.kind {
            WantedKind::Image => PartKind::Image,
            WantedKind::Bytes | WantedKind::Value => PartKind::Bytes,
            WantedKind::Text => PartKind::Text,
            WantedKind::Json => PartKind::Json,
            WantedKind::Numbers | WantedKind::Ragged => PartKind::Ragged { dtype, row: row.to_vec() },
        };
        PartSpec { name: self.part.clone(), kind }
    }
}

/// Whether the source's own image is wanted.
pub fn wants_image(deliver: &Deliver) -> bool {
    deliver.as_ref().is_none_or(|list| list.iter().any(Wanted::is_own_image))
}

/// The parts of variable length that are wanted.
pub fn wanted_parts(deliver: &Deliver) -> impl Iterator<Item = &Wanted> {
    deliver.iter().flatten().filter(|wanted| wanted.is_part())
}

/// The places of the numbers that are wanted beside those that a source's own key lists.
pub fn wanted_numbers(deliver: &Deliver) -> impl Iterator<Item = &str> {
    let numbers = deliver.iter().flatten().filter(|wanted| wanted.kind == WantedKind::Numbers);
    numbers.map(|wanted| wanted.part.as_str())
}

/// A record's bytes cut apart.
#[derive(Debug, PartialEq, Eq)]
pub struct Cut<'bytes> {
    /// The source's own image; empty where the schema has none.
    pub image: &'bytes [u8],
    /// Each part, `None` where the record lacks it.
    pub parts: Vec<Option<&'bytes [u8]>>,
    /// All numeric fields.
    pub fields: &'bytes [u8],
}

/// Length of a part that a record does not have.
const ABSENT: u32 = u32::MAX;

/// Bytes of the length of a part.
const LENGTH: usize = size_of::<u32>();

/// A part of one record may not be larger than this.
pub const MAX_PART_BYTES: u64 = 1 << 30;

/// Names that a batch uses itself.
pub const RESERVED: [&str; 6] = ["image", "label", "index", "position", "substituted", "part"];

/// A field of one record may not be larger than this; a larger one is a mistake in the shape, not a sample.
pub const MAX_FIELD_BYTES: u64 = 64 << 20;

impl Schema {
    /// Encoded images without further fields.
    pub fn images() -> Self {
        Self { image: true, ..Self::default() }
    }

    /// The source's own image, or none, and numbers.
    pub fn of(image: bool, fields: Vec<FieldSpec>) -> Self {
        Self { image, parts: Vec::new(), fields }
    }

    /// Bytes of all fields of one record.
    pub fn fields_bytes(&self) -> usize {
        self.fields.iter().map(FieldSpec::bytes).sum()
    }

    /// Bytes that every record has beside its image and its parts.
    pub fn fixed_bytes(&self) -> usize {
        self.fields_bytes() + self.parts.len() * LENGTH
    }

    /// Cuts a record's bytes apart. `None` when they are not what a record of this schema is.
    pub fn cut<'bytes>(&self, bytes: &'bytes [u8]) -> Option<Cut<'bytes>> {
        let (before, lengths) =
            bytes.split_at_checked(bytes.len().checked_sub(self.parts.len() * LENGTH)?)?;
        let (values, fields) = before.split_at_checked(before.len().checked_sub(self.fields_bytes())?)?;
        let lengths = lengths.as_chunks::<LENGTH>().0.iter().map(|&length| u32::from_le_bytes(length));
        let length = |length: u32| if length == ABSENT { 0 } else { length as usize };
        let of_parts: usize = lengths.clone().map(length).sum();
        let (image, mut rest) = values.split_at_checked(values.len().checked_sub(of_parts)?)?;
        let mut parts = Vec::with_capacity(self.parts.len());
        for of_part in lengths {
            let (part, after) = rest.split_at(length(of_part));
            parts.push((of_part != ABSENT).then_some(part));
            rest = after;
        }
        (self.image || image.is_empty()).then_some(Cut { image, parts, fields })
    }

    /// Bytes of a record that has an image and parts of these lengths.
    pub fn record_bytes(&self, image: usize, parts: impl IntoIterator<Item = Option<usize>>) -> usize {
        image + parts.into_iter().flatten().sum::<usize>() + self.fixed_bytes()
    }

    /// Puts a record together; `record` has [`record_bytes`](Self::record_bytes).
    ///
    /// # Panics
    /// When it has not, or a part is larger than [`MAX_PART_BYTES`].
    pub fn join<'bytes>(
        &self,
        image: &[u8],
        parts: impl Iterator<Item = Option<&'bytes [u8]>> + Clone,
        fields: &[u8],
        record: &mut [u8],
    ) {
        let mut rest = record;
        let mut put = |bytes: &[u8]| {
            let (here, after) = std::mem::take(&mut rest).split_at_mut(bytes.len());
            here.copy_from_slice(bytes);
            rest = after;
        };
        put(image);
        parts.clone().flatten().for_each(&mut put);
        put(fields);
        for part in parts {
            let length = part.map_or(ABSENT, |part| {
                assert!(part.len() as u64 <= MAX_PART_BYTES, "a part of {} bytes", part.len());
                part.len() as u32
            });
            put(&length.to_le_bytes());
        }
        assert!(rest.is_empty(), "a record has the size that was announced");
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
        }
        self.check_shapes()
    }

    /// Refuses names and shapes that cannot be: names only where they are those of a batch. Numbers that a pipeline's
    /// fields ask for have names of their own there.
    ///
    /// # Errors
    /// As [`check`](Self::check).
    pub(crate) fn check_for(&self, deliver: &Deliver, is_labelled: bool) -> Result<(), String> {
        match deliver {
            Some(_) => self.check_shapes(),
            None => self.check(is_labelled),
        }
    }

    /// Refuses shapes without end, and records of nothing.
    ///
    /// # Errors
    /// A sentence that names the field.
    pub fn check_shapes(&self) -> Result<(), String> {
        for field in &self.fields {
            let bytes =
                field.shape.iter().try_fold(field.dtype.size() as u64, |product, &n| product.checked_mul(n));
            if bytes.is_none_or(|bytes| bytes > MAX_FIELD_BYTES) {
                return Err(format!(
                    "the field {:?} of shape {:?} is larger than {} MiB per record",
                    field.name,
                    field.shape,
                    MAX_FIELD_BYTES >> 20
                ));
            }
        }
        if !self.image && self.parts.is_empty() && self.fields.is_empty() {
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
    use proptest::prelude::*;

    use super::*;

    fn field(name: &str, shape: &[u64]) -> FieldSpec {
        FieldSpec { name: name.into(), dtype: ElementType::F32, shape: shape.to_vec() }
    }

    #[test]
    fn a_record_is_its_image_and_then_its_fields() {
        let schema = Schema::of(true, vec![field("box", &[4]), field("age", &[])]);
        schema.check(true).unwrap();
        assert_eq!(schema.fields_bytes(), 20);
        let bytes: Vec<u8> = (0..23).collect();
        let cut = schema.cut(&bytes).unwrap();
        assert_eq!((cut.image.len(), cut.fields.len(), cut.fields[0]), (3, 20, 3));
        assert!(schema.cut(&bytes[..19]).is_none());
    }

    fn with_parts(image: bool, parts: usize) -> Schema {
        let part = |at: usize| PartSpec { name: at.to_string(), kind: PartKind::Bytes };
        Schema { image, parts: (0..parts).map(part).collect(), fields: vec![field("age", &[])] }
    }

    proptest! {
        #[test]
        fn what_is_joined_is_cut_apart_again(
            image in prop::option::of(prop::collection::vec(any::<u8>(), 0..20)),
            parts in prop::collection::vec(prop::option::of(prop::collection::vec(any::<u8>(), 0..20)), 0..5),
            age: [u8; 4],
        ) {
            let schema = with_parts(image.is_some(), parts.len());
            let image = image.unwrap_or_default();
            let lengths = parts.iter().map(|part| part.as_ref().map(Vec::len));
            let mut record = vec![0; schema.record_bytes(image.len(), lengths)];
            let slices: Vec<Option<&[u8]>> = parts.iter().map(Option::as_deref).collect();
            schema.join(&image, slices.iter().copied(), &age, &mut record);
            prop_assert_eq!(schema.cut(&record), Some(Cut { image: &image, parts: slices, fields: &age }));
        }

        #[test]
        fn bytes_from_outside_are_cut_or_refused(
            bytes in prop::collection::vec(any::<u8>(), 0..40), image: bool, parts in 0usize..5,
        ) {
            if let Some(cut) = with_parts(image, parts).cut(&bytes) {
                let of_parts: usize = cut.parts.iter().flatten().map(|part| part.len()).sum();
                prop_assert_eq!(cut.image.len() + of_parts + 4 + parts * LENGTH, bytes.len());
            }
        }
    }

    #[test]
    fn names_that_clash_and_shapes_without_end_are_refused() {
        let check = |fields| Schema::of(true, fields).check(true).unwrap_err();
        assert!(check(vec![field("label", &[])]).contains("\"label\""));
        Schema::of(true, vec![field("label", &[])]).check(false).unwrap();
        assert!(check(vec![field("index", &[])]).contains("\"index\""));
        assert!(check(vec![field("a", &[]), field("a", &[2])]).contains("twice"));
        assert!(check(vec![field("a", &[1 << 40, 1 << 40])]).contains("larger than 64 MiB"));
        assert!(Schema::default().check(false).unwrap_err().contains("nothing"));
    }
}
