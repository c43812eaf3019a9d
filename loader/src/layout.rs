//! How a batch lies in a slot: the one description that the daemon writes by and a client reads by.
//!
//! ```text
//!  slot   │ field 0: rows × row_bytes │ field 1 │ … │ column "index": rows × 8 │ "position" │ …│
//!         ╰───── what records hold, handed out as views ─────╯╰──── small, handed out as copies ────╯
//! ```
//!
//! Each begins at a multiple of [`ALIGNMENT`]. A *field* is made from a record; a *column* is what the engine knows of
//! a row, and the list of them is closed.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A cache line, and what consumers of DLPack expect of data pointers.
pub const ALIGNMENT: u64 = 64;

/// Type of an element, little-endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs, reason = "the names say it")]
pub enum Element {
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
    Bf16,
    F32,
    F64,
}

impl Element {
    /// Bytes of one.
    pub fn size(self) -> u64 {
        match self {
            Self::Bool | Self::U8 | Self::I8 => 1,
            Self::U16 | Self::I16 | Self::F16 | Self::Bf16 => 2,
            Self::U32 | Self::I32 | Self::F32 => 4,
            Self::U64 | Self::I64 | Self::F64 => 8,
        }
    }

    /// The name on the wire and in reports.
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
            Self::Bf16 => "bf16",
            Self::F32 => "f32",
            Self::F64 => "f64",
        }
    }
}

impl fmt::Display for Element {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What the values of a field are, beside their type.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Content {
    /// Numbers: all of a row counts.
    #[default]
    Dense,
    /// An image, or views of one.
    Image,
    /// Class numbers of an image's pixels.
    Mask,
    /// Text in UTF-8: so many bytes of a row count as the field behind this one says, the others are 0.
    Text,
    /// Bytes, likewise.
    Bytes,
    /// A JSON value in UTF-8, likewise; no bytes where the record has none.
    Json,
    /// Rows of numbers: so many of the first axis count as the field behind this one says, the others are 0.
    Ragged,
    /// How much counts of each row of the field before this one.
    Lengths,
    /// A crop: top, left, height, width, flip_x, flip_y, height and width of the whole image.
    Geometry,
    /// Of the field before this one, whose [`Finishing`] has erasings: top, left, height and width of each.
    Erased,
}

impl Content {
    /// Whether the field behind says how much of it counts.
    pub fn is_variable(self) -> bool {
        matches!(self, Self::Text | Self::Bytes | Self::Json | Self::Ragged)
    }

    fn is_dense(&self) -> bool {
        *self == Self::Dense
    }
}

/// What the engine itself knows of each row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Column {
    /// The record's label; where records have labels.
    Label,
    /// The record's number in the source.
    Index,
    /// The row's position in the epoch.
    Position,
    /// Whether another record stands in for a bad one.
    Substituted,
    /// Number of the record's part of a mixture; of mixtures.
    Part,
}

impl Column {
    /// All there are.
    pub const ALL: [Self; 5] = [Self::Label, Self::Index, Self::Position, Self::Substituted, Self::Part];

    /// Its name in a batch.
    pub fn name(self) -> &'static str {
        match self {
            Self::Label => "label",
            Self::Index => "index",
            Self::Position => "position",
            Self::Substituted => "substituted",
            Self::Part => "part",
        }
    }

    /// What it is made of: one element a row.
    pub fn dtype(self) -> Element {
        match self {
            Self::Label | Self::Index | Self::Position | Self::Part => Element::I64,
            Self::Substituted => Element::Bool,
        }
    }
}

/// What is left to the client to do to a field of u8: `x * scale + bias` in f32, rounded to `dtype`; then for each
/// erasing its value in a rectangle of each row, which the [`Content::Erased`] behind the field tells, if there are
/// erasings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Finishing {
    /// Type of the elements then: f32, f16 or bf16.
    pub dtype: Element,
    /// One a channel.
    pub scale: Vec<f32>,
    /// One a channel.
    pub bias: Vec<f32>,
    /// Of each erasing its value, one a channel.
    pub erasings: Vec<Vec<f32>>,
}

/// A row's shape and type, before it has its place.
#[derive(Clone, Debug, PartialEq)]
pub struct RowShape {
    /// Name in the batch.
    pub name: String,
    /// Type of its elements.
    pub dtype: Element,
    /// Shape of one row.
    pub shape: Vec<u64>,
    /// Strides of one row, in elements.
    pub strides: Vec<u64>,
    /// What its values are.
    pub content: Content,
    /// What is left to the client.
    pub finishing: Option<Finishing>,
}

impl RowShape {
    /// Numbers in C order: the last axis is dense.
    pub fn dense(name: String, dtype: Element, shape: Vec<u64>) -> Self {
        let strides = (1..=shape.len()).map(|axis| shape[axis..].iter().product()).collect();
        Self { name, dtype, shape, strides, content: Content::Dense, finishing: None }
    }

    /// In C order, of which not all counts; and the field that says how much.
    pub fn variable(name: String, content: Content, dtype: Element, shape: Vec<u64>) -> [Self; 2] {
        let lengths =
            Self { content: Content::Lengths, ..Self::dense(name.clone(), Element::I64, Vec::new()) };
        [Self { content, ..Self::dense(name, dtype, shape) }, lengths]
    }
}

/// What records hold, as it lies in a slot.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Field {
    /// Name in the batch, e.g. "image".
    pub name: String,
    /// Type of its elements.
    pub dtype: Element,
    /// Shape of one row (without the batch dimension).
    pub shape: Vec<u64>,
    /// Strides of one row, in elements; differs from C order for "nhwc" images, whose shape is (C, H, W) all the same.
    pub strides: Vec<u64>,
    /// Byte offset in the slot, a multiple of [`ALIGNMENT`].
    pub offset: u64,
    /// Bytes of one row.
    pub row_bytes: u64,
    /// What its values are.
    #[serde(default, skip_serializing_if = "Content::is_dense")]
    pub content: Content,
    /// What is left to the client; absent where nothing is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finishing: Option<Finishing>,
}

/// A column, as it lies in a slot.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlacedColumn {
    /// Which.
    pub name: Column,
    /// Type of its elements, [`Column::dtype`].
    pub dtype: Element,
    /// Byte offset in the slot, a multiple of [`ALIGNMENT`].
    pub offset: u64,
}

/// Where everything of a batch lies in its slot.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Layout {
    /// What records hold, in the order of the source; an image is the first. Handed out as views of the slot.
    pub fields: Vec<Field>,
    /// What the engine knows of each row. Handed out as copies.
    pub columns: Vec<PlacedColumn>,
    /// Bytes of a slot, in which there is room for all of it.
    pub slot_bytes: u64,
}

impl Layout {
    /// Places fields and columns of at most `rows` rows one after the other.
    pub fn new(rows: u64, fields: Vec<RowShape>, columns: &[Column]) -> Self {
        let mut end = 0;
        let mut place = |row_bytes: u64| {
            let offset = end;
            end = (offset + row_bytes * rows).next_multiple_of(ALIGNMENT);
            offset
        };
        let fields = fields
            .into_iter()
            .map(|RowShape { name, dtype, shape, strides, content, finishing }| {
                let row_bytes = shape.iter().product::<u64>() * dtype.size();
                Field { name, dtype, shape, strides, offset: place(row_bytes), row_bytes, content, finishing }
            })
            .collect();
        let columns = columns
            .iter()
            .map(|&name| {
                let dtype = name.dtype();
                PlacedColumn { name, dtype, offset: place(dtype.size()) }
            })
            .collect();
        Self { fields, columns, slot_bytes: end }
    }

    /// Whether all of it lies within a slot, for batches of at most `rows` rows: what a client asks before it computes
    /// an address from what another process says.
    pub fn fits(&self, rows: u64) -> bool {
        let within = |offset: u64, row_bytes: u64| {
            let end = rows.checked_mul(row_bytes).and_then(|bytes| bytes.checked_add(offset));
            offset.is_multiple_of(ALIGNMENT) && end.is_some_and(|end| end <= self.slot_bytes)
        };
        let field = |field: &Field| {
            // Of the largest element that the strides reach.
            let reach =
                field.shape.iter().zip(&field.strides).try_fold(field.dtype.size(), |reach, (n, stride)| {
                    n.saturating_sub(1)
                        .checked_mul(*stride)?
                        .checked_mul(field.dtype.size())?
                        .checked_add(reach)
                });
            within(field.offset, field.row_bytes)
                && field.shape.len() == field.strides.len()
                && field.row_bytes.is_multiple_of(field.dtype.size())
                && (field.shape.contains(&0) || reach.is_some_and(|reach| reach <= field.row_bytes))
        };
        let column = |column: &PlacedColumn| {
            column.dtype == column.name.dtype() && within(column.offset, column.dtype.size())
        };
        !self.fields.is_empty()
            && self.fields.iter().all(field)
            && self.columns.iter().all(column)
            && self.has_lengths()
            && self.has_erased()
    }

    /// Whether fields that the client erases in and the rectangles stand in pairs.
    fn has_erased(&self) -> bool {
        (0..self.fields.len()).all(|at| {
            let left = self.fields[at].finishing.as_ref().map_or(0, |left| left.erasings.len());
            let behind = self.fields.get(at + 1).filter(|field| field.content == Content::Erased);
            let is_behind = self.fields[at].content != Content::Erased
                || (at > 0 && self.fields[at - 1].finishing.is_some());
            is_behind && (left > 0) == behind.is_some()
        })
    }

    /// Whether fields and their lengths stand in pairs.
    fn has_lengths(&self) -> bool {
        let is_lengths = |field: Option<&Field>| {
            field.is_some_and(|field| {
                field.content == Content::Lengths && field.dtype == Element::I64 && field.shape.is_empty()
            })
        };
        (0..self.fields.len()).all(|at| match self.fields[at].content {
            Content::Lengths => at > 0 && self.fields[at - 1].content.is_variable(),
            content => content.is_variable() == is_lengths(self.fields.get(at + 1)),
        })
    }

    /// Bytes from the slot's beginning to the end of the fields of `rows` rows.
    pub fn fields_bytes(&self, rows: u64) -> u64 {
        self.fields.last().map_or(0, |last| last.offset + rows * last.row_bytes)
    }

    /// A column, if the batch has it.
    pub fn column(&self, name: Column) -> Option<&PlacedColumn> {
        self.columns.iter().find(|column| column.name == name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout() -> Layout {
        let image = RowShape {
            name: "image".into(),
            dtype: Element::F16,
            shape: vec![3, 2, 5],
            strides: vec![1, 15, 3],
            content: Content::Dense,
            finishing: None,
        };
        let [text, lengths] = RowShape::variable("text".into(), Content::Text, Element::U8, vec![9]);
        let fields = vec![image, RowShape::dense("box".into(), Element::F32, vec![2, 4]), text, lengths];
        Layout::new(7, fields, &[Column::Index, Column::Substituted])
    }

    #[test]
    fn what_is_placed_is_aligned_disjoint_and_within_the_slot() {
        let layout = layout();
        let ends: Vec<_> = layout
            .fields
            .iter()
            .map(|field| (field.offset, field.row_bytes))
            .chain(layout.columns.iter().map(|column| (column.offset, column.dtype.size())))
            .collect();
        assert_eq!(ends[..2], [(0, 60), (448, 32)]);
        for (before, after) in ends.iter().zip(&ends[1..]) {
            assert!(before.0 + 7 * before.1 <= after.0 && after.0.is_multiple_of(ALIGNMENT), "{ends:?}");
        }
        assert_eq!(layout.fields[1].strides, [4, 1]);
        assert!(layout.fits(7) && !layout.fits(70));
        assert_eq!(layout.fields_bytes(2), layout.fields[3].offset + 16);
        assert_eq!(layout.column(Column::Substituted).map(|column| column.dtype), Some(Element::Bool));
        assert!(layout.column(Column::Label).is_none());
    }

    #[test]
    fn a_layout_that_would_lead_out_of_the_slot_does_not_fit() {
        type Change = fn(&mut Layout);
        let changes: [Change; 11] = [
            |layout| layout.fields[0].offset = 1,
            |layout| layout.fields[0].row_bytes = u64::MAX,
            |layout| layout.fields[0].offset = u64::MAX - 63,
            |layout| layout.fields[0].strides[1] = 16,
            |layout| layout.fields[0].strides[0] = u64::MAX,
            |layout| layout.fields[1].strides.push(1),
            |layout| layout.columns[1].dtype = Element::I64,
            |layout| layout.fields.clear(),
            |layout| layout.fields[1].content = Content::Ragged,
            |layout| layout.fields.truncate(3),
            |layout| layout.fields[3].dtype = Element::F64,
        ];
        for (at, change) in changes.iter().enumerate() {
            let mut layout = layout();
            change(&mut layout);
            assert!(!layout.fits(7), "change {at}");
        }
    }

    #[test]
    fn names_on_the_wire_are_those_of_reports() {
        for dtype in [Element::Bool, Element::U8, Element::Bf16, Element::F64] {
            assert_eq!(serde_json::to_value(dtype).unwrap(), dtype.name());
        }
        for column in Column::ALL {
            assert_eq!(serde_json::to_value(column).unwrap(), column.name());
        }
    }
}
