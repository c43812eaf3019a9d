//! Which columns of a table become the image, the label and the fields, and how a row of them becomes a record's bytes.
//!
//! | wanted | default | may be |
//! |---|---|---|
//! | image | the column that Hugging Face's metadata calls an image, else `image`, `img`, `jpg`, `jpeg`, `png`, `bytes` or `content` if it holds bytes | binary; struct of `bytes` and `path`; text (paths of files) when named |
//! | label | the column that this metadata calls a class label, else one with a usual name ([`crate::labels`]) | whole numbers (also as floats), bool, text |
//! | fields | none | numbers, and lists of them with a fixed shape |

use crate::arrow::array::{Array, ArrayRef, AsArray};
use crate::arrow::datatypes::{self as types, DataType, Schema, TimeUnit};

use super::TableConfig;
use super::named::{self, Named, Written};
use super::text::OF_IMAGES;
use crate::labels::{self, candidates, refusal};
use crate::recognised::Recognised;
use crate::schema::{wanted_numbers, wants_image};
use crate::values::arrow::{Inside, type_at};
use crate::{ElementType, FieldSpec, RESERVED, SourceError};

/// Names that an image column may have without being named.
const IMAGES: [&str; 7] = ["image", "img", "jpg", "jpeg", "png", "bytes", "content"];

/// Names that a column of paths may have in a text file without being named, in any case. Behind them comes a column of
/// which all texts end like image files, if it is the only one.
const PATHS: [&str; 23] = [
    "path",
    "file",
    "filepath",
    "file_path",
    "filename",
    "file_name",
    "image",
    "img",
    "image_path",
    "img_path",
    "imagepath",
    "image_file",
    "image_name",
    "image_filename",
    "imagefile",
    "imagename",
    "img_file",
    "img_name",
    "paths",
    "files",
    "filenames",
    "images",
    "image_paths",
];

/// Names that a column of tokens may have without being named.
const TOKENS: [&str; 3] = ["tokens", "input_ids", "token_ids"];

/// Which columns are used, by name.
#[derive(Debug)]
pub(super) struct Choice {
    pub image: Option<Image>,
    pub label: Option<String>,
    /// Whether it could be a field as well.
    pub label_is_number: bool,
    /// Whether it holds categories that have an order of their own.
    pub label_is_ordered: bool,
    /// Names of integer labels, where the table knows them.
    pub label_names: Option<Vec<String>>,
    pub fields: Vec<Number>,
    pub parts: Vec<Named>,
    pub tokens: Option<String>,
    written: Written,
}

/// A field, and where its numbers are.
#[derive(Clone, Debug)]
pub(super) struct Number {
    pub column: String,
    /// The path inside the column.
    pub inside: String,
    pub spec: FieldSpec,
    /// Whether it is read out of a text, where each value shows by itself what it is.
    pub is_raw: bool,
}

/// The image column.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Image {
    pub column: String,
    pub kind: ImageKind,
}

/// What an image column holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ImageKind {
    /// Encoded images.
    Bytes,
    /// Paths of image files.
    Path,
    /// Hugging Face's struct of `bytes` and `path`.
    Struct,
}

impl Choice {
    /// Chooses from a schema. In that of a text file a column of paths may be found by name.
    pub(super) fn new(
        schema: &Schema,
        config: &TableConfig,
        name: &str,
        written: Written,
    ) -> Result<Self, SourceError> {
        let offer = Offer { schema, config, name, features: features(schema) };
        let image = offer.image(written != Written::Typed)?;
        let label = offer.label(image.as_ref())?;
        let field = label.as_ref().and_then(|label| schema.field_with_name(label).ok());
        let mut choice = Self {
            label_is_number: field.is_some_and(|field| numeric(field.data_type()).is_some()),
            label_is_ordered: field.is_some_and(|field| field.dict_is_ordered() == Some(true)),
            label_names: label.as_ref().and_then(|label| offer.class_names(label)),
            tokens: offer.tokens()?,
            fields: Vec::new(),
            parts: named::find(&offer, written)?,
            written,
            image,
            label,
        };
        choice.fields = choice.fields(&offer)?;
        choice.fields.extend(offer.numbers(written)?);
        Ok(choice)
    }

    /// The fields that the configuration lists.
    fn fields(&self, offer: &Offer) -> Result<Vec<Number>, SourceError> {
        let mut fields = Vec::new();
        for wanted in offer.config.fields.iter().flatten() {
            if wanted != "*" {
                fields.push(offer.number(wanted)?);
                continue;
            }
            let used = |column: &String| {
                Some(column) == self.label.as_ref()
                    || self.image.as_ref().is_some_and(|image| image.column == *column)
                    || RESERVED.contains(&column.as_str())
            };
            for field in offer.schema.fields().iter().filter(|field| !used(field.name())) {
                if let Some((dtype, shape)) = numeric(field.data_type())
                    && let Some(shape) = shape.into_iter().collect()
                {
                    fields.push(Number::of_column(FieldSpec { name: field.name().clone(), dtype, shape }));
                }
            }
        }
        Ok(fields)
    }

    /// What was chosen, but for the label.
    pub(super) fn recognised(&self) -> Recognised {
        let mut recognised = Recognised::default();
        if let Some(Image { column, kind }) = &self.image {
            let kind = match kind {
                ImageKind::Bytes => "bytes",
                ImageKind::Path => "paths",
                ImageKind::Struct => "bytes and paths",
            };
            recognised.note(format!("image = column {column:?} ({kind})"));
        }
        if let Some(column) = &self.tokens {
            recognised.note(format!("tokens = column {column:?}"));
        }
        for Number { spec: FieldSpec { name, dtype, shape }, .. } in &self.fields {
            recognised.note(format!("field {name:?} ({dtype} {shape:?})"));
        }
        recognised
    }

    /// The typed columns of a record's bytes: image, then fields, then tokens, then parts.
    pub(super) fn record_columns(&self) -> Vec<String> {
        let image = self.image.iter().map(|image| image.column.clone());
        let fields = self.fields.iter().filter(|field| self.is_typed() || !field.is_raw);
        let fields = fields.map(|field| field.column.clone());
        let parts = self.parts.iter().filter(|_| self.is_typed()).map(|part| part.column.clone());
        unique(image.chain(fields).chain(self.tokens.clone()).chain(parts))
    }

    /// The columns of a text file that are taken as they are written.
    pub(super) fn raw_columns(&self) -> Vec<String> {
        let fields = self.fields.iter().filter(|field| field.is_raw).map(|field| &field.column);
        let all = fields.chain(self.parts.iter().map(|part| &part.column));
        unique(all.filter(|_| !self.is_typed()).cloned())
    }

    /// Whether records have images, and all of them are files.
    pub(super) fn is_of_paths(&self) -> bool {
        let own = self.image.iter().map(|image| image.kind);
        let mut images = own.chain(self.parts.iter().filter_map(|part| part.image)).peekable();
        images.peek().is_some() && images.all(|kind| kind == ImageKind::Path)
    }

    pub(super) fn is_typed(&self) -> bool {
        self.written == Written::Typed
    }

    /// Refuses a further file whose columns are others.
    pub(super) fn check(
        &self,
        first: &Schema,
        schema: &Schema,
        first_name: &str,
        name: &str,
    ) -> Result<(), SourceError> {
        // A key that no object of a file has is one that each of them lacks.
        let raw = if self.written == Written::Cells { self.raw_columns() } else { Vec::new() };
        let typed = self.record_columns().len() + usize::from(self.label.is_some());
        for (at, column) in self.record_columns().iter().chain(&self.label).chain(&raw).enumerate() {
            let expected = first.field_with_name(column).expect("the choice was made from it").data_type();
            let mut found = schema.fields().iter().filter(|field| field.name() == column);
            let refuse = |why: String| {
                Err(SourceError::data(format!("{name}: {why}; all files of a table need the same columns")))
            };
            match (found.next(), found.next()) {
                (None, _) => return refuse(format!("the column {column:?} of {first_name} is missing")),
                (Some(_), Some(_)) => {
                    return Err(SourceError::data(format!(
                        "{name} has several columns {column:?}; rename all but one"
                    )));
                }
                (Some(field), None) if at < typed && !same(field.data_type(), expected) => {
                    return refuse(format!(
                        "the column {column:?} is of type {}, in {first_name} of type {expected}",
                        field.data_type()
                    ));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

impl Number {
    /// Of the column that it is called by.
    fn of_column(spec: FieldSpec) -> Self {
        Self { column: spec.name.clone(), inside: String::new(), spec, is_raw: false }
    }
}

/// Each once.
fn unique(columns: impl Iterator<Item = String>) -> Vec<String> {
    let mut seen = std::collections::HashSet::new();
    columns.filter(|column| seen.insert(column.clone())).collect()
}

/// What is chosen from: a table's columns, with what the configuration says of them.
pub(super) struct Offer<'a> {
    pub schema: &'a Schema,
    pub config: &'a TableConfig,
    /// The table's, for errors.
    pub name: &'a str,
    /// Hugging Face's description of the columns.
    features: Option<serde_json::Map<String, serde_json::Value>>,
}

impl<'a> Offer<'a> {
    /// A column that the configuration names under a key.
    pub fn field(&self, column: &str, key: &str) -> Result<&'a types::Field, SourceError> {
        let name = self.name;
        if self.schema.fields().iter().filter(|field| field.name() == column).count() > 1 {
            return Err(SourceError::data(format!(
                "{name} has several columns {column:?}; rename all but one"
            )));
        }
        self.schema.field_with_name(column).map_err(|_| {
            SourceError::config(format!(
                "{key} is {column:?}, but {name} has no such column; it has {}",
                list(self.schema)
            ))
        })
    }

    /// The column that the features say is of a kind.
    fn of_type(&self, kind: &str) -> Option<String> {
        let found = self.features.as_ref()?.iter().find(|(_, feature)| feature["_type"] == kind)?;
        self.schema.field_with_name(found.0).ok().map(|field| field.name().clone())
    }

    /// The names that the features have for integer labels.
    fn class_names(&self, label: &str) -> Option<Vec<String>> {
        let names = self.features.as_ref()?.get(label)?["names"].as_array()?;
        names.iter().map(|name| name.as_str().map(str::to_owned)).collect()
    }

    /// A field that is asked for by its column, with its shape where the column does not say it.
    fn number(&self, wanted: &str) -> Result<Number, SourceError> {
        let (column, declared) = match self.schema.field_with_name(wanted) {
            Ok(_) => (wanted, None),
            Err(_) => with_shape(wanted)?,
        };
        let kind = self.field(column, "a name in fields")?.data_type();
        let (dtype, shape) = self.shape(wanted, column, kind, declared)?;
        Ok(Number::of_column(FieldSpec { name: column.to_owned(), dtype, shape }))
    }

    /// The numbers that a pipeline's fields ask for.
    fn numbers(&self, written: Written) -> Result<Vec<Number>, SourceError> {
        wanted_numbers(&self.config.deliver).map(|wanted| self.number_at(wanted, written)).collect()
    }

    fn number_at(&self, wanted: &str, written: Written) -> Result<Number, SourceError> {
        let (path, declared) = match named::place(self.schema, wanted) {
            Some(_) => (wanted, None),
            None => with_shape(wanted)?,
        };
        let Some((column, inside)) = named::place(self.schema, path) else {
            return Err(SourceError::config(format!(
                "the numbers {path:?} are not a column of {}; it has {}",
                self.name,
                list(self.schema)
            )));
        };
        let kind = self.field(column, "a field")?.data_type();
        let (column, inside) = (column.to_owned(), inside.to_owned());
        let (name, is_text) = (wanted.to_owned(), written != Written::Typed && !inside.is_empty());
        let there = type_at(kind, &inside);
        let kind = match there {
            _ if is_text => Inside::Json,
            Ok(kind) => kind,
            Err(there) => {
                return Err(SourceError::config(format!(
                    "the numbers {path:?} are not in the column {column:?} of {}, which holds {}{}",
                    self.name,
                    holds(kind),
                    if there.is_empty() { String::new() } else { format!(": {}", there.join(", ")) }
                )));
            }
        };
        match kind {
            Inside::Json => {
                let spec = FieldSpec { name, dtype: ElementType::F32, shape: declared.unwrap_or_default() };
                Ok(Number { column, inside, spec, is_raw: true })
            }
            Inside::Typed(kind) => {
                let (dtype, shape) = self.shape(wanted, path, kind, declared)?;
                Ok(Number { column, inside, spec: FieldSpec { name, dtype, shape }, is_raw: false })
            }
        }
    }

    /// The type and the shape of a field whose values are of a kind.
    fn shape(
        &self,
        wanted: &str,
        column: &str,
        kind: &DataType,
        declared: Option<Vec<u64>>,
    ) -> Result<(ElementType, Vec<u64>), SourceError> {
        let name = self.name;
        let Some((dtype, found)) = numeric(kind) else {
            return Err(SourceError::config(format!(
                "the column {column:?} of {name} holds {}, not numbers; a batch has it by a field of another type, \
                 such as fields={{\"{column}\": fields.Text(\"{column}\", max_bytes=512)}}",
                holds(kind)
            )));
        };
        let shape: Option<Vec<u64>> = match declared {
            None => found.iter().copied().collect(),
            Some(shape) => {
                let agrees = shape.len() == found.len()
                    && shape
                        .iter()
                        .zip(&found)
                        .all(|(declared, found)| found.is_none_or(|found| found == *declared));
                if !agrees {
                    return Err(SourceError::config(format!(
                        "the field {wanted:?} does not fit its column, which is of type {kind} in {name}"
                    )));
                }
                Some(shape)
            }
        };
        let Some(shape) = shape else {
            return Err(SourceError::config(format!(
                "the column {column:?} of {name} has lists of any length; say which shape every record has, \
                 \"{column}[{}]\", or how many rows there is room for, fields.Numbers(\"{column}\", max_rows=N)",
                vec!["N"; found.len()].join(",")
            )));
        };
        Ok((dtype, shape))
    }

    fn image(&self, text: bool) -> Result<Option<Image>, SourceError> {
        match self.config.image.as_deref() {
            _ if !wants_image(&self.config.deliver) => Ok(None),
            Some("") => Ok(None),
            Some(column) if self.config.tokens.is_some() => Err(SourceError::config(format!(
                "image is {column:?}, but records of tokens have no image; leave one of image and tokens out"
            ))),
            None if self.config.tokens.is_some() => Ok(None),
            Some(column) => {
                let kind = self.field(column, "image")?.data_type();
                let kind = image_kind(kind).ok_or_else(|| {
                    SourceError::config(format!(
                        "image is {column:?}, a column of type {kind} in {}; an image column holds bytes, a struct of \
                         bytes and path, or the paths of image files",
                        self.name
                    ))
                })?;
                Ok(Some(Image { column: column.to_owned(), kind }))
            }
            None => self.guess_image(text),
        }
    }

    /// The image's column by metadata and name.
    ///
    /// # Errors
    /// When there is none, and no fields that a record could be made of.
    fn guess_image(&self, text: bool) -> Result<Option<Image>, SourceError> {
        let found = self.of_type("Image").and_then(|column| self.as_image(&column));
        let found = found.or_else(|| self.image_by_name());
        let found = found.or_else(|| if text { self.paths_by_name() } else { None });
        if found.is_none() && self.config.fields.is_none() {
            let tokens = self.usual_tokens().map_or(String::new(), |column| {
                format!(", or say how to cut its {column} (tokens={{\"length\": 1024, \"mode\": \"pack\"}})")
            });
            return Err(SourceError::config(format!(
                "{} has no column that is clearly an image; name it (image=\"…\"), or the columns of numbers that a \
                 record is made of (fields=[\"…\"]){tokens}; it has {}",
                self.name,
                list(self.schema)
            )));
        }
        Ok(found)
    }

    /// A column as that of the images, if it holds bytes.
    fn as_image(&self, column: &str) -> Option<Image> {
        let kind = image_kind(self.schema.field_with_name(column).ok()?.data_type())?;
        (kind != ImageKind::Path).then(|| Image { column: column.to_owned(), kind })
    }

    /// The column of images that has a usual name: one in lower case first.
    fn image_by_name(&self) -> Option<Image> {
        let exact = IMAGES.iter().find_map(|column| self.as_image(column));
        exact.or_else(|| {
            let is_usual = |name: &str| IMAGES.iter().any(|usual| usual.eq_ignore_ascii_case(name));
            let mut all = self.schema.fields().iter().filter(|field| is_usual(field.name()));
            all.find_map(|field| self.as_image(field.name()))
        })
    }

    /// The column of paths that has a usual name, or is the only one whose texts end like image files.
    fn paths_by_name(&self) -> Option<Image> {
        let is_text = |field: &&types::Field| image_kind(field.data_type()) == Some(ImageKind::Path);
        let all = || self.schema.fields().iter().map(AsRef::as_ref).filter(is_text);
        let exact = PATHS.iter().find_map(|name| all().find(|field| field.name() == name));
        let named = exact.or_else(|| {
            PATHS.iter().find_map(|name| all().find(|field| field.name().eq_ignore_ascii_case(name)))
        });
        let mut of_images = all().filter(|field| field.metadata().contains_key(OF_IMAGES));
        let only = of_images.next().filter(|_| of_images.next().is_none());
        let column = named.or(only)?.name().clone();
        Some(Image { column, kind: ImageKind::Path })
    }

    fn label(&self, image: Option<&Image>) -> Result<Option<String>, SourceError> {
        match self.config.label.as_deref() {
            Some("") => Ok(None),
            Some(column) => {
                let kind = self.field(column, "label")?.data_type();
                if !is_label(kind) && !is_float(kind) {
                    return Err(SourceError::config(unlabelled(column, kind, self.name)));
                }
                Ok(Some(column.to_owned()))
            }
            None if self.config.tokens.is_some() => Ok(None),
            None => {
                let used = image.map(|image| &image.column);
                guess_label(self.schema, self.config, self.name, used, self.of_type("ClassLabel"))
            }
        }
    }

    fn tokens(&self) -> Result<Option<String>, SourceError> {
        let Some(tokens) = &self.config.tokens else { return Ok(None) };
        let name = self.name;
        let column = match tokens.column.as_deref().or_else(|| self.usual_tokens()) {
            Some(column) => column,
            None => {
                return Err(SourceError::config(format!(
                    "{name} has no column of tokens with a usual name; name it (tokens.column); it has {}",
                    list(self.schema)
                )));
            }
        };
        let kind = self.field(column, "tokens.column")?.data_type();
        let inner = match kind {
            DataType::List(inner) | DataType::LargeList(inner) | DataType::FixedSizeList(inner, _) => {
                Some(inner)
            }
            _ => None,
        };
        if !inner.is_some_and(|inner| inner.data_type().is_integer()) {
            return Err(SourceError::config(format!(
                "tokens.column is {column:?}, a column of type {kind} in {name}; tokens are lists of integers"
            )));
        }
        Ok(Some(column.to_owned()))
    }

    fn usual_tokens(&self) -> Option<&'static str> {
        TOKENS.into_iter().find(|column| self.schema.field_with_name(column).is_ok())
    }
}

/// The label's column by metadata and name: one whose type leaves no doubt, else one of floats, which may be whole
/// numbers.
///
/// # Errors
/// When there are columns with the name of a label, and none of them can be it.
fn guess_label(
    schema: &Schema,
    config: &TableConfig,
    name: &str,
    image: Option<&String>,
    of_type: Option<String>,
) -> Result<Option<String>, SourceError> {
    let kind = |column: &str| schema.field_with_name(column).ok().map(types::Field::data_type);
    let is_asked = |column: &str| {
        let asked = config.fields.iter().flatten();
        asked
            .map(|field| field.split('[').next().unwrap_or(field))
            .any(|field| field == column || (field == "*" && !RESERVED.contains(&column)))
    };
    let is_part = |column: &str| config.deliver.iter().flatten().any(|wanted| wanted.part == column);
    // Beside an x that is a number, y is a coordinate.
    let is_place = kind("x").is_some_and(|kind| numeric(kind).is_some_and(|(_, shape)| shape.is_empty()));
    let names = schema.fields().iter().map(|field| field.name().as_str());
    let names =
        names.filter(|column| !(is_place && *column == "y") && image.is_none_or(|image| image != column));
    let mut all = candidates(names, &[]);
    if let Some(column) = of_type.as_deref() {
        all.retain(|other| *other != column);
        all.insert(0, column);
    }
    // A column that is wanted as a field is one; of a class's number both may be meant.
    let is_sure =
        |column: &&&str| kind(column).is_some_and(is_label) && !(**column == "label" && is_asked(column));
    let is_other = |column: &str| is_asked(column) || is_part(column);
    let is_likely = |column: &&&str| kind(column).is_some_and(is_float) && !is_other(column);
    if let Some(found) = all.iter().find(is_sure).or_else(|| all.iter().find(is_likely)) {
        return Ok(Some((*found).to_owned()));
    }
    match all.iter().find(|column| !is_other(column)) {
        None => Ok(None),
        Some(column) => {
            let kind = kind(column).unwrap_or(&DataType::Null);
            Err(SourceError::config(unlabelled(column, kind, name)))
        }
    }
}

/// Why a column holds no labels.
fn unlabelled(column: &str, kind: &DataType, name: &str) -> String {
    let what = format!("the column {column:?} of {name}");
    refusal(&what, &holds(kind), numeric(kind).map(|_| column), "name another column (label=\"…\")")
}

/// A column's values in words.
pub(super) fn holds(kind: &DataType) -> String {
    match kind {
        DataType::Null => "nothing but empty cells".into(),
        kind if is_float(kind) => "floats".into(),
        kind if kind.is_integer() => "whole numbers".into(),
        DataType::Boolean => "true and false".into(),
        DataType::Date32 | DataType::Date64 => "dates".into(),
        DataType::Timestamp(..) | DataType::Time32(_) | DataType::Time64(_) | DataType::Duration(_) => {
            "times".into()
        }
        kind if kind.is_decimal() => "decimal numbers".into(),
        DataType::List(_) | DataType::LargeList(_) | DataType::FixedSizeList(..) => "lists".into(),
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView | DataType::FixedSizeBinary(_) => {
            "bytes".into()
        }
        DataType::Struct(fields) if fields.is_empty() => "values of different kinds".into(),
        DataType::Struct(_) | DataType::Map(..) => "objects".into(),
        DataType::Dictionary(_, values) => holds(values),
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => "texts".into(),
        other => format!("values of type {other}"),
    }
}

/// Whether two types are the same but for names and nullability inside them.
fn same(a: &DataType, b: &DataType) -> bool {
    a.equals_datatype(b)
}

/// Whether a column of this name means something without being named.
pub(super) fn is_usual(name: &str) -> bool {
    let known = IMAGES.iter().chain(&PATHS).chain(&labels::NAMES).chain(&TOKENS);
    known.into_iter().any(|known| name.eq_ignore_ascii_case(known))
}

pub(super) fn list(schema: &Schema) -> String {
    let mut names: Vec<String> = schema
        .fields()
        .iter()
        .take(40)
        .map(|field| format!("{} ({})", field.name(), field.data_type()))
        .collect();
    if schema.fields().len() > names.len() {
        names.push(format!("… {} in all", schema.fields().len()));
    }
    if names.is_empty() { "no columns".into() } else { names.join(", ") }
}

/// The features in Hugging Face's metadata.
fn features(schema: &Schema) -> Option<serde_json::Map<String, serde_json::Value>> {
    let text = schema.metadata().get("huggingface")?;
    let mut value: serde_json::Value = serde_json::from_str(text).ok()?;
    match value["info"]["features"].take() {
        serde_json::Value::Object(features) => Some(features),
        _ => None,
    }
}

pub(super) fn image_kind(kind: &DataType) -> Option<ImageKind> {
    match kind {
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView => Some(ImageKind::Bytes),
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => Some(ImageKind::Path),
        DataType::Dictionary(_, values) => image_kind(values).filter(|kind| *kind != ImageKind::Struct),
        DataType::Struct(fields) => {
            let (_, bytes) = fields.find("bytes")?;
            (image_kind(bytes.data_type()) == Some(ImageKind::Bytes)).then_some(ImageKind::Struct)
        }
        _ => None,
    }
}

fn is_label(kind: &DataType) -> bool {
    match kind {
        DataType::Dictionary(_, values) => is_label(values),
        DataType::Boolean | DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => true,
        other => other.is_integer(),
    }
}

/// Whether a column holds floats, which are labels if they are whole numbers.
fn is_float(kind: &DataType) -> bool {
    match kind {
        DataType::Dictionary(_, values) => is_float(values),
        other => other.is_floating(),
    }
}

/// Element type and dimensions of a column of numbers; a dimension that varies is `None`.
pub(crate) fn numeric(kind: &DataType) -> Option<(ElementType, Vec<Option<u64>>)> {
    let scalar = |dtype| Some((dtype, Vec::new()));
    match kind {
        DataType::Boolean => scalar(ElementType::Bool),
        DataType::UInt8 => scalar(ElementType::U8),
        DataType::Int8 => scalar(ElementType::I8),
        DataType::UInt16 => scalar(ElementType::U16),
        DataType::Int16 => scalar(ElementType::I16),
        DataType::UInt32 => scalar(ElementType::U32),
        DataType::Int32 | DataType::Date32 | DataType::Time32(_) => scalar(ElementType::I32),
        DataType::UInt64 => scalar(ElementType::U64),
        DataType::Int64
        | DataType::Date64
        | DataType::Time64(_)
        | DataType::Timestamp(..)
        | DataType::Duration(_) => scalar(ElementType::I64),
        DataType::Float16 => scalar(ElementType::F16),
        DataType::Float32 => scalar(ElementType::F32),
        DataType::Float64 => scalar(ElementType::F64),
        DataType::Dictionary(_, values) => numeric(values).filter(|(_, shape)| shape.is_empty()),
        DataType::FixedSizeList(field, len) => {
            let (dtype, mut shape) = numeric(field.data_type())?;
            shape.insert(0, Some(u64::try_from(*len).ok()?));
            Some((dtype, shape))
        }
        DataType::List(field) | DataType::LargeList(field) => {
            let (dtype, mut shape) = numeric(field.data_type())?;
            shape.insert(0, None);
            Some((dtype, shape))
        }
        _ => None,
    }
}

/// `box[2,4]` as a name and a shape.
fn with_shape(text: &str) -> Result<(&str, Option<Vec<u64>>), SourceError> {
    let Some((name, rest)) = text.split_once('[') else { return Ok((text, None)) };
    let shape = rest.strip_suffix(']').and_then(|inside| {
        inside
            .split(',')
            .map(|number| number.trim().parse().ok().filter(|&number| number > 0))
            .collect::<Option<Vec<u64>>>()
    });
    match shape {
        Some(shape) if !name.is_empty() => Ok((name, Some(shape))),
        _ => Err(SourceError::config(format!(
            "{text:?} in fields is neither a name nor a name with a shape like \"box[4]\""
        ))),
    }
}

/// The bytes at a row of a column of bytes or texts; `None` for a null.
pub(crate) fn bytes_at(array: &dyn Array, row: usize) -> Option<&[u8]> {
    if array.is_null(row) {
        return None;
    }
    match array.data_type() {
        DataType::Binary => Some(array.as_binary::<i32>().value(row)),
        DataType::LargeBinary => Some(array.as_binary::<i64>().value(row)),
        DataType::BinaryView => Some(array.as_binary_view().value(row)),
        DataType::Utf8 => Some(array.as_string::<i32>().value(row).as_bytes()),
        DataType::LargeUtf8 => Some(array.as_string::<i64>().value(row).as_bytes()),
        DataType::Utf8View => Some(array.as_string_view().value(row).as_bytes()),
        DataType::Dictionary(..) => {
            let array = array.as_any_dictionary();
            let keys = array.normalized_keys_at(row)?;
            bytes_at(array.values().as_ref(), keys)
        }
        _ => None,
    }
}

/// The values of a dictionary array, and the place of a row's in them.
pub(crate) fn dictionary_at(array: &dyn Array, row: usize) -> Option<(&dyn Array, usize)> {
    let array = array.as_any_dictionary_opt()?;
    Some((array.values().as_ref(), array.normalized_keys_at(row)?))
}

/// A key of a dictionary array as a place in its values.
trait KeyAt {
    fn normalized_keys_at(&self, row: usize) -> Option<usize>;
}

impl KeyAt for dyn crate::arrow::array::AnyDictionaryArray + '_ {
    fn normalized_keys_at(&self, row: usize) -> Option<usize> {
        let key = integer_at(self.keys(), row)?;
        usize::try_from(key).ok().filter(|&key| key < self.values().len())
    }
}

/// The integer at a row; `None` for a null or a number beyond i64.
pub(crate) fn integer_at(array: &dyn Array, row: usize) -> Option<i64> {
    if array.is_null(row) {
        return None;
    }
    Some(match array.data_type() {
        DataType::Boolean => i64::from(array.as_boolean().value(row)),
        DataType::Int8 => i64::from(array.as_primitive::<types::Int8Type>().value(row)),
        DataType::Int16 => i64::from(array.as_primitive::<types::Int16Type>().value(row)),
        DataType::Int32 => i64::from(array.as_primitive::<types::Int32Type>().value(row)),
        DataType::Int64 => array.as_primitive::<types::Int64Type>().value(row),
        DataType::UInt8 => i64::from(array.as_primitive::<types::UInt8Type>().value(row)),
        DataType::UInt16 => i64::from(array.as_primitive::<types::UInt16Type>().value(row)),
        DataType::UInt32 => i64::from(array.as_primitive::<types::UInt32Type>().value(row)),
        DataType::UInt64 => i64::try_from(array.as_primitive::<types::UInt64Type>().value(row)).ok()?,
        DataType::Dictionary(..) => {
            let array = array.as_any_dictionary();
            let key = array.normalized_keys_at(row)?;
            return integer_at(array.values().as_ref(), key);
        }
        _ => return None,
    })
}

/// A list's elements at a row: the array they are in, the first and their number. `None` for a null.
pub(crate) fn list_at(array: &dyn Array, row: usize) -> Option<(&ArrayRef, usize, usize)> {
    if array.is_null(row) {
        return None;
    }
    match array.data_type() {
        DataType::List(_) => {
            let list = array.as_list::<i32>();
            let offsets = list.value_offsets();
            Some((list.values(), offsets[row] as usize, (offsets[row + 1] - offsets[row]) as usize))
        }
        DataType::LargeList(_) => {
            let list = array.as_list::<i64>();
            let offsets = list.value_offsets();
            Some((list.values(), offsets[row] as usize, (offsets[row + 1] - offsets[row]) as usize))
        }
        DataType::FixedSizeList(..) => {
            let list = array.as_fixed_size_list();
            let len = list.value_length() as usize;
            Some((list.values(), list.value_offset_at(row), len))
        }
        _ => None,
    }
}

/// Appends a field's value at a row.
///
/// # Errors
/// A verdict on the row: a null, a list of another length.
pub(crate) fn append(
    array: &dyn Array,
    row: usize,
    spec: &FieldSpec,
    out: &mut Vec<u8>,
) -> Result<(), String> {
    append_dimensions(array, row, &spec.shape, out).map_err(|why| format!("the field {:?} {why}", spec.name))
}

/// Appends rows of numbers of this shape.
///
/// # Errors
/// As [`append`], without the name.
pub(crate) fn append_rows(
    array: &dyn Array,
    first: usize,
    rows: usize,
    shape: &[u64],
    out: &mut Vec<u8>,
) -> Result<(), String> {
    if shape.is_empty() {
        return elements(array, first, rows, out);
    }
    (first..first + rows).try_for_each(|row| append_dimensions(array, row, shape, out))
}

fn append_dimensions(array: &dyn Array, row: usize, shape: &[u64], out: &mut Vec<u8>) -> Result<(), String> {
    let Some((&len, inner)) = shape.split_first() else { return elements(array, row, 1, out) };
    let (values, first, found) = list_at(array, row).ok_or("is null")?;
    if found as u64 != len {
        return Err(format!("has a list of {found} where {len} are expected"));
    }
    if inner.is_empty() {
        return elements(values.as_ref(), first, found, out);
    }
    (first..first + found).try_for_each(|row| append_dimensions(values.as_ref(), row, inner, out))
}

/// Appends numbers, little-endian.
fn elements(array: &dyn Array, first: usize, len: usize, out: &mut Vec<u8>) -> Result<(), String> {
    if let Some(nulls) = array.nulls()
        && nulls.slice(first, len).null_count() > 0
    {
        return Err("is null".into());
    }
    // Arrow's buffers are little-endian as this machine is, so numbers are copied as they lie.
    macro_rules! copy {
        ($($kind:pat => $type:ty),* $(,)?) => {
            match array.data_type() {
                $($kind => {
                    let width = size_of::<<$type as types::ArrowPrimitiveType>::Native>();
                    let bytes = array.as_primitive::<$type>().values().inner();
                    out.extend_from_slice(&bytes.as_slice()[first * width..(first + len) * width]);
                })*
                DataType::Boolean => {
                    let array = array.as_boolean();
                    out.extend((first..first + len).map(|row| u8::from(array.value(row))));
                }
                DataType::Dictionary(..) => {
                    let array = array.as_any_dictionary();
                    for row in first..first + len {
                        let key = array.normalized_keys_at(row).ok_or("is null")?;
                        elements(array.values().as_ref(), key, 1, out)?;
                    }
                }
                other => return Err(format!("is of type {other}")),
            }
        };
    }
    copy! {
        DataType::Int8 => types::Int8Type,
        DataType::Int16 => types::Int16Type,
        DataType::Int32 => types::Int32Type,
        DataType::Int64 => types::Int64Type,
        DataType::UInt8 => types::UInt8Type,
        DataType::UInt16 => types::UInt16Type,
        DataType::UInt32 => types::UInt32Type,
        DataType::UInt64 => types::UInt64Type,
        DataType::Float16 => types::Float16Type,
        DataType::Float32 => types::Float32Type,
        DataType::Float64 => types::Float64Type,
        DataType::Date32 => types::Date32Type,
        DataType::Date64 => types::Date64Type,
        DataType::Time32(TimeUnit::Second) => types::Time32SecondType,
        DataType::Time32(TimeUnit::Millisecond) => types::Time32MillisecondType,
        DataType::Time64(TimeUnit::Microsecond) => types::Time64MicrosecondType,
        DataType::Time64(TimeUnit::Nanosecond) => types::Time64NanosecondType,
        DataType::Timestamp(TimeUnit::Second, _) => types::TimestampSecondType,
        DataType::Timestamp(TimeUnit::Millisecond, _) => types::TimestampMillisecondType,
        DataType::Timestamp(TimeUnit::Microsecond, _) => types::TimestampMicrosecondType,
        DataType::Timestamp(TimeUnit::Nanosecond, _) => types::TimestampNanosecondType,
        DataType::Duration(TimeUnit::Second) => types::DurationSecondType,
        DataType::Duration(TimeUnit::Millisecond) => types::DurationMillisecondType,
        DataType::Duration(TimeUnit::Microsecond) => types::DurationMicrosecondType,
        DataType::Duration(TimeUnit::Nanosecond) => types::DurationNanosecondType,
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shape_is_read_from_a_field() {
        assert_eq!(with_shape("a").unwrap(), ("a", None));
        assert_eq!(with_shape("a[4]").unwrap(), ("a", Some(vec![4])));
        assert_eq!(with_shape("a[2, 3]").unwrap(), ("a", Some(vec![2, 3])));
        for wrong in ["a[", "a[]", "a[x]", "a[0]", "[4]", "a[4]b", "a[-1]"] {
            assert!(with_shape(wrong).unwrap_err().is_config(), "{wrong}");
        }
    }
}
