//! The columns of a JSON object or an Arrow row, and what is looked for in them.

use crate::labels::candidates;
use crate::{ElementType, FieldSpec, SourceError};

/// Names that an image column may have without being named, as in tables.
pub(super) const IMAGES: [&str; 7] = ["image", "img", "jpg", "jpeg", "png", "bytes", "content"];

/// The columns of a JSON object or an Arrow row.
#[derive(Debug)]
pub(super) struct Columns {
    pub image: ImageColumn,
    pub label: LabelColumn,
    pub fields: Vec<FieldSpec>,
}

/// Which column is the image.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum ImageColumn {
    None,
    Named(String),
    /// Any of [`IMAGES`].
    Usual,
}

/// Which column is the label.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum LabelColumn {
    None,
    Named(String),
    /// Any with a usual name.
    Usual,
}

impl LabelColumn {
    /// The column of a record that has these; `None` where no label is wanted.
    ///
    /// # Errors
    /// When the record has no such column.
    pub(super) fn find<'name>(
        &'name self,
        columns: impl Iterator<Item = &'name str> + Clone,
    ) -> Result<Option<&'name str>, String> {
        match self {
            Self::None => Ok(None),
            Self::Named(name) => match columns.into_iter().any(|column| column == name) {
                true => Ok(Some(name)),
                false => Err(format!("it has no {name:?}, which is its label")),
            },
            Self::Usual => match candidates(columns, &[]).first() {
                Some(name) => Ok(Some(name)),
                None => {
                    Err("it has no label (looked for label, cls and the like); if messages have none, set \
                         label=None"
                        .into())
                }
            },
        }
    }
}

/// `name`, `name[2,3]`, and either with `:type`.
pub(super) fn read_field(text: &str) -> Result<FieldSpec, SourceError> {
    let refuse = |why: &str| {
        Err(SourceError::config(format!(
            "the field {text:?} {why}; a name, a shape and a type are expected, such as \"age\", \"box[4]\" or \"ids[128]:i64\""
        )))
    };
    let (rest, dtype) = match text.rsplit_once(':') {
        Some((rest, name)) => match serde_json::from_value::<ElementType>(name.into()) {
            Ok(dtype) => (rest, dtype),
            Err(_) => {
                return refuse("has an unknown type (known: bool, u8 to u64, i8 to i64, f16, f32, f64)");
            }
        },
        None => (text, ElementType::F32),
    };
    let (name, shape) = match rest.split_once('[') {
        Some((name, shape)) => {
            let Some(shape) = shape.strip_suffix(']') else { return refuse("has no ']' at its end") };
            let parsed: Result<Vec<u64>, _> = shape.split(',').map(|part| part.trim().parse()).collect();
            match parsed {
                Ok(shape) if shape.iter().all(|&length| length > 0) => (name, shape),
                _ => return refuse("has a shape that is not a list of lengths"),
            }
        }
        None => (rest, Vec::new()),
    };
    if name.is_empty() || name == "*" {
        return refuse("has no name, and the contents of a message are not known before it is read");
    }
    Ok(FieldSpec { name: name.to_owned(), dtype, shape })
}
