//! The named parts of a table's records: which column each is in, whether it can be what it was asked to be, and its
//! bytes in a row.
//!
//! A part is a column (`caption`), or what lies inside one (`annotation.box`): a field of a struct, or a key of an
//! object in JSON. A column whose own name has the dots in it comes first. What can never be what was asked for is
//! refused when the table is opened; a value that is not, in one row, makes a bad record.

use std::borrow::Cow;

use super::columns::{self, Choice, ImageKind, Number, Offer, image_kind, numeric};
use crate::arrow::array::{Array, ArrayRef, AsArray};
use crate::arrow::datatypes::{DataType, Schema};
use crate::schema::wanted_parts;
use crate::values::arrow::{self, Found, Inside, is_bytes, is_json, is_text};
use crate::values::scalar::{self, Scalar};
use crate::values::{Value, fault, json, step};
use crate::{ElementType, FieldSpec, MAX_FIELD_BYTES, PartKind, PartSpec, SourceError, Wanted, WantedKind};

/// How the rows of a file are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Written {
    /// In typed columns: Parquet, Arrow.
    Typed,
    /// In cells of text: CSV, TSV.
    Cells,
    /// As objects in JSON.
    Json,
}

/// A named part of every record.
#[derive(Clone, Debug)]
pub(super) struct Named {
    pub name: String,
    /// The column, and the path inside it.
    pub column: String,
    pub inside: String,
    kind: Kind,
    /// Of an image, what the column holds of it.
    pub image: Option<ImageKind>,
    /// Whether it is a key inside a text, which nothing but values can show, and some record should have it.
    is_expected: bool,
    written: Written,
    /// Of a value for a condition, what its cells are.
    value: Option<Cells>,
}

/// What the cells of a column are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cells {
    Numbers,
    Texts,
}

/// What a row has of a part.
#[derive(Debug)]
pub(super) enum Made<'row> {
    Nothing,
    Bytes(Cow<'row, [u8]>),
    /// They are in the file of this path.
    File(Cow<'row, [u8]>),
}

impl<'row> Made<'row> {
    fn of(value: Value<'row>, is_path: bool) -> Self {
        match value {
            None => Self::Nothing,
            Some(path) if is_path => Self::File(path),
            Some(bytes) => Self::Bytes(bytes),
        }
    }

    /// The path of the file that they are in.
    pub fn file(&self) -> Option<&[u8]> {
        match self {
            Self::File(path) => Some(path),
            Self::Nothing | Self::Bytes(_) => None,
        }
    }

    /// The bytes that are here.
    pub fn bytes(&self) -> Option<&[u8]> {
        match self {
            Self::Bytes(bytes) => Some(bytes),
            Self::Nothing | Self::File(_) => None,
        }
    }
}

/// What a part is to be, as far as it is known without having seen a value.
#[derive(Clone, Debug)]
enum Kind {
    Known(PartKind),
    /// Ragged numbers; of lengths that are not known, [`None`]. No list: it is not known how many there are.
    Ragged {
        dtype: ElementType,
        row: Option<Vec<Option<u64>>>,
    },
}

/// The parts that the configuration wants.
///
/// # Errors
/// The first that no column can give, by name, with what there is instead.
pub(super) fn find(offer: &Offer<'_>, written: Written) -> Result<Vec<Named>, SourceError> {
    wanted_parts(&offer.config.deliver).map(|wanted| Named::find(offer, wanted, written)).collect()
}

/// The column that a part is in, and its path there.
pub(super) fn place<'part>(schema: &Schema, part: &'part str) -> Option<(&'part str, &'part str)> {
    let has = |name: &str| schema.field_with_name(name).is_ok();
    step(part, has).or_else(|| step(part.strip_prefix("json:")?, has))
}

impl Named {
    fn find(offer: &Offer<'_>, wanted: &Wanted, written: Written) -> Result<Self, SourceError> {
        let (name, table) = (&wanted.part, offer.name);
        // A key is in the schema if any object has it.
        let may_lack = wanted.optional && written == Written::Json;
        let found = place(offer.schema, name).or(may_lack.then_some((name.as_str(), "")));
        let Some((column, inside)) = found else {
            return Err(SourceError::config(format!(
                "the part {name:?} is not a column of {table}; it has {}",
                columns::list(offer.schema)
            )));
        };
        let kind = match offer.schema.field_with_name(column) {
            Err(_) if may_lack => &DataType::Null,
            _ => offer.field(column, "a part")?.data_type(),
        };
        let image = match (written, arrow::type_at(kind, inside)) {
            _ if wanted.kind != WantedKind::Image => None,
            (Written::Typed, Ok(Inside::Typed(kind))) => Some(image_kind(kind).unwrap_or(ImageKind::Bytes)),
            _ => Some(ImageKind::Path),
        };
        let is_key = match (written, arrow::type_at(kind, inside)) {
            (Written::Typed, there) => there == Ok(Inside::Json),
            (Written::Cells | Written::Json, _) => !inside.is_empty(),
        };
        let value = (wanted.kind == WantedKind::Value).then_some(match kind {
            DataType::Int64 | DataType::Float64 => Cells::Numbers,
            _ => Cells::Texts,
        });
        let kind = match written {
            Written::Typed => typed(kind, wanted, column, inside, table)?,
            Written::Cells | Written::Json => untyped(wanted),
        };
        if let Kind::Ragged { row: Some(row), .. } = &kind
            && let Some(row) = row.iter().copied().collect::<Option<Vec<u64>>>()
        {
            check_row(name, &row)?;
        }
        let (column, inside) = (column.to_owned(), inside.to_owned());
        let is_expected = is_key && !wanted.optional;
        Ok(Self { name: name.clone(), column, inside, kind, image, is_expected, written, value })
    }

    /// The part in the schema. Rows whose shape nobody has learnt are single numbers.
    pub fn spec(&self) -> PartSpec {
        let kind = match &self.kind {
            Kind::Known(kind) => kind.clone(),
            Kind::Ragged { dtype, row } => {
                let row = row.iter().flatten().map(|length| length.unwrap_or(0)).collect();
                PartKind::Ragged { dtype: *dtype, row }
            }
        };
        PartSpec { name: self.name.clone(), kind }
    }

    /// Whether a value has to be seen to know the shape of its rows.
    pub fn is_open(&self) -> bool {
        match &self.kind {
            Kind::Known(_) => false,
            Kind::Ragged { row, .. } => row.as_ref().is_none_or(|row| row.contains(&None)),
        }
    }

    /// Learns the shape of a row from one that has any. Says what it made of it.
    ///
    /// # Errors
    /// When the row is larger than any may be.
    pub fn learn(&mut self, array: &dyn Array, row: usize) -> Result<Option<String>, SourceError> {
        let found = match self.written {
            Written::Typed => arrow::shape_of_rows(array, row, &self.inside),
            Written::Cells | Written::Json => {
                raw_text(array, row, &self.inside).ok().flatten().and_then(json::shape_of_rows)
            }
        };
        let Kind::Ragged { dtype, row } = &mut self.kind else { return Ok(None) };
        let Some(found) = found else { return Ok(None) };
        check_row(&self.name, &found)?;
        let said = format!("part {:?} ({dtype}, rows of shape {found:?} as in the first)", self.name);
        *row = Some(found.into_iter().map(Some).collect());
        Ok(Some(said))
    }

    /// Its bytes in a row of its column.
    ///
    /// # Errors
    /// What is wrong with the value, by the part's name.
    fn value<'array>(
        &self,
        array: &'array ArrayRef,
        row: usize,
        kind: &PartKind,
    ) -> Result<Made<'array>, String> {
        if let Some(cells) = self.value {
            let made =
                self.scalar(array.as_ref(), row, cells).and_then(|scalar| scalar::encoded(scalar.as_ref()));
            return made
                .map(|value| Made::of(value.map(Cow::Owned), false))
                .map_err(|why| fault(&self.name, &why));
        }
        let is_path = self.image == Some(ImageKind::Path);
        let made = match (self.written, kind) {
            (Written::Typed, _) if self.image == Some(ImageKind::Struct) => {
                return self.of_struct(array.as_ref(), row).map_err(|why| fault(&self.name, &why));
            }
            (Written::Typed, _) => arrow::value(array.as_ref(), row, &self.inside, kind),
            // A cell is text as it is written.
            (Written::Cells, kind) if self.inside.is_empty() && !matches!(kind, PartKind::Ragged { .. }) => {
                arrow::value(array.as_ref(), row, "", kind).map(|cell| match kind {
                    PartKind::Json | PartKind::Image => cell.filter(|cell| !cell.trim_ascii().is_empty()),
                    _ => cell,
                })
            }
            _ => match raw_text(array.as_ref(), row, &self.inside) {
                Ok(Some(text)) => json::value(text, kind),
                Ok(None) => Ok(None),
                Err(why) => Err(why),
            },
        };
        made.map(|value| Made::of(value, is_path)).map_err(|why| fault(&self.name, &why))
    }

    /// The value for a condition.
    fn scalar<'array>(
        &self,
        array: &'array dyn Array,
        row: usize,
        cells: Cells,
    ) -> Result<Option<Scalar<'array>>, String> {
        match self.written {
            Written::Typed => Scalar::of_row(array, row, &self.inside),
            Written::Cells if self.inside.is_empty() => match columns::bytes_at(array, row) {
                Some(cell) => Scalar::of_cell(cell, cells == Cells::Numbers),
                None => Ok(None),
            },
            Written::Cells | Written::Json => {
                Ok(raw_text(array, row, &self.inside)?.and_then(Scalar::of_json))
            }
        }
    }

    /// Of a struct of bytes and path the bytes, or the path where they are null.
    fn of_struct<'array>(&self, array: &'array dyn Array, row: usize) -> Result<Made<'array>, String> {
        let Found::Row(array, row) = arrow::find(array, row, &self.inside)? else { return Ok(Made::Nothing) };
        for (name, is_path) in [("bytes", false), ("path", true)] {
            let column = array.as_struct().column_by_name(name);
            if let Some(bytes) = column.and_then(|column| columns::bytes_at(column.as_ref(), row)) {
                return Ok(Made::of(Some(Cow::Borrowed(bytes)), is_path));
            }
        }
        Ok(Made::Nothing)
    }
}

/// Makes the named parts and the fields of records out of decoded rows.
pub(super) struct Maker {
    /// Each with its column's place in the view of records.
    fields: Vec<(usize, Number)>,
    parts: Vec<(usize, Named, PartKind)>,
    /// The column of a text file that says what is wrong with a row.
    fault: Option<usize>,
    is_typed: bool,
}

impl Maker {
    pub fn new(choice: &Choice) -> Self {
        let (typed, raw) = (choice.record_columns(), choice.raw_columns());
        let place = |name: &str, is_raw: bool| {
            let (before, columns) = if is_raw { (typed.len(), &raw) } else { (0, &typed) };
            before + columns.iter().position(|column| column == name).expect("it is one of them")
        };
        let is_text = !choice.is_typed();
        let field = |field: &Number| (place(&field.column, is_text && field.is_raw), field.clone());
        let part = |part: &Named| (place(&part.column, is_text), part.clone(), part.spec().kind);
        Self {
            fields: choice.fields.iter().map(field).collect(),
            parts: choice.parts.iter().map(part).collect(),
            fault: (!raw.is_empty()).then_some(typed.len() + raw.len()),
            is_typed: !is_text,
        }
    }

    /// What records hold, beside these further fields.
    pub fn schema(&self, image: bool, more: Vec<FieldSpec>) -> crate::Schema {
        let fields = self.fields.iter().map(|(_, field)| field.spec.clone()).chain(more).collect();
        crate::Schema { image, parts: self.parts.iter().map(|(_, part, _)| part.spec()).collect(), fields }
    }

    pub fn has_parts(&self) -> bool {
        !self.parts.is_empty()
    }

    /// Refuses a key inside texts that the first objects do not have.
    ///
    /// # Errors
    /// The part that there is not, with the keys that there are.
    pub fn check_keys<'rows>(
        &self,
        rows: impl Iterator<Item = &'rows Vec<ArrayRef>> + Clone,
        table: &str,
    ) -> Result<(), SourceError> {
        for (column, part, _) in self.parts.iter().filter(|(_, part, _)| part.is_expected) {
            let arrays = rows.clone().map(|columns| columns[*column].as_ref());
            let texts = arrays.flat_map(|array| (0..array.len()).map(move |row| raw_text(array, row, "")));
            let mut without = None;
            let mut shown = texts.flatten().flatten().filter_map(|text| {
                let shows = json::shows(text, &part.inside)?;
                without = without.or(Some(text).filter(|_| !shows));
                Some(shows)
            });
            if shown.any(|shows| shows) {
                continue;
            }
            drop(shown);
            if let Some(names) = without.and_then(json::members) {
                let mut names: Vec<String> = names.into_keys().map(Cow::into_owned).collect();
                names.sort_unstable();
                names.truncate(20);
                return Err(SourceError::config(format!(
                    "the part {:?} is not in the first records of {table}; {:?} has {} there",
                    part.name,
                    part.column,
                    names.join(", ")
                )));
            }
        }
        Ok(())
    }

    /// The parts that are images in files, by place and name.
    pub fn files(&self) -> impl Iterator<Item = (usize, &str)> {
        let all = self.parts.iter().enumerate();
        all.filter(|(_, (_, part, _))| part.image == Some(ImageKind::Path))
            .map(|(at, (_, part, _))| (at, part.name.as_str()))
    }

    /// Whether a value has to be seen to know the shape of a part's rows: the name of such a part.
    pub fn open(&self) -> Option<&str> {
        self.parts.iter().find(|(_, part, _)| part.is_open()).map(|(_, part, _)| part.name.as_str())
    }

    /// Learns what is not known yet. Says what it made of it.
    ///
    /// # Errors
    /// When a row is larger than any may be.
    pub fn learn(&mut self, columns: &[ArrayRef], row: usize) -> Result<Vec<String>, SourceError> {
        let mut said = Vec::new();
        for (column, part, kind) in self.parts.iter_mut().filter(|(_, part, _)| part.is_open()) {
            said.extend(part.learn(columns[*column].as_ref(), row)?);
            *kind = part.spec().kind;
        }
        Ok(said)
    }

    /// Appends the fields of a row.
    ///
    /// # Errors
    /// A verdict on the row.
    pub fn fields(&self, columns: &[ArrayRef], row: usize, out: &mut Vec<u8>) -> Result<(), String> {
        let fault = self.fault.and_then(|at| columns[at].as_string_opt::<i32>());
        if let Some(faults) = fault.filter(|faults| faults.is_valid(row)) {
            return Err(faults.value(row).to_owned());
        }
        for (column, Number { inside, spec, is_raw, .. }) in &self.fields {
            let array = columns[*column].as_ref();
            if inside.is_empty() && !is_raw {
                columns::append(array, row, spec, out)?;
                continue;
            }
            let bytes = self.inside(array, row, inside, spec);
            out.extend(bytes.map_err(|why| format!("the field {:?} {why}", spec.name))?);
        }
        Ok(())
    }

    /// The numbers at a path inside a column.
    fn inside(&self, array: &dyn Array, row: usize, path: &str, spec: &FieldSpec) -> Result<Vec<u8>, String> {
        let text = if self.is_typed {
            match arrow::find(array, row, path)? {
                Found::None => return Err("is null".into()),
                Found::Json(text) => text,
                Found::Row(array, row) => match arrow::json_of(array, row) {
                    Some(text) => text,
                    None => {
                        let mut bytes = Vec::with_capacity(spec.bytes());
                        columns::append_rows(array, row, 1, &spec.shape, &mut bytes)?;
                        return Ok(bytes);
                    }
                },
            }
        } else {
            raw_text(array, row, path)?.ok_or("is missing")?
        };
        json::fixed(text, spec.dtype, &spec.shape)
    }

    /// The named parts of a row.
    ///
    /// # Errors
    /// A verdict on the row.
    pub fn parts<'row>(&self, columns: &'row [ArrayRef], row: usize) -> Result<Vec<Made<'row>>, String> {
        self.parts.iter().map(|(column, part, kind)| part.value(&columns[*column], row, kind)).collect()
    }
}

/// The value in JSON at a path in a row of a text file's column.
fn raw_text<'array>(array: &'array dyn Array, row: usize, path: &str) -> Result<Option<&'array str>, String> {
    let Some(bytes) = columns::bytes_at(array, row).filter(|bytes| !bytes.trim_ascii().is_empty()) else {
        return Ok(None);
    };
    let text = std::str::from_utf8(bytes).map_err(|_| "is not UTF-8")?;
    // Of a file of objects it is JSON; of a cell nobody knows.
    if !json::is_valid(text) {
        return Err("is no JSON".into());
    }
    json::find(text, path)
}

/// Why the shape of a part's rows is not known.
pub(super) fn no_rows(name: &str, table: &str) -> SourceError {
    SourceError::config(format!(
        "the part {name:?} of {table} has only empty lists in the first records; give the shape of its rows \
         (row)"
    ))
}

fn check_row(name: &str, row: &[u64]) -> Result<(), SourceError> {
    let bytes = row.iter().try_fold(8u64, |product, &length| product.checked_mul(length));
    if bytes.is_some_and(|bytes| bytes <= MAX_FIELD_BYTES) {
        return Ok(());
    }
    Err(SourceError::config(format!(
        "the part {name:?} has rows of shape {row:?}, which are larger than {} MiB",
        MAX_FIELD_BYTES >> 20
    )))
}

/// What a part of a text file is to be, where each value shows by itself what it is.
fn untyped(wanted: &Wanted) -> Kind {
    match wanted.kind {
        WantedKind::Ragged => Kind::Ragged {
            dtype: wanted.dtype.unwrap_or(ElementType::F32),
            row: wanted.row.as_ref().map(|row| row.iter().copied().map(Some).collect()),
        },
        _ => Kind::Known(wanted.spec(ElementType::F32, &[]).kind),
    }
}

/// What a part of a typed column is to be.
///
/// # Errors
/// When the type cannot be that.
fn typed(
    kind: &DataType,
    wanted: &Wanted,
    column: &str,
    inside: &str,
    table: &str,
) -> Result<Kind, SourceError> {
    let name = &wanted.part;
    let kind = match arrow::type_at(kind, inside) {
        Ok(Inside::Json) => return Ok(untyped(wanted)),
        Ok(Inside::Typed(kind)) => kind,
        Err(there) if there.is_empty() => {
            return Err(SourceError::config(format!(
                "the part {name:?} would lie inside the column {column:?} of {table}, which holds {}",
                columns::holds(kind)
            )));
        }
        Err(there) => {
            return Err(SourceError::config(format!(
                "the part {name:?} is not in the column {column:?} of {table}; it has {}",
                there.join(", ")
            )));
        }
    };
    let refuse = |remedy: &str| {
        Err(SourceError::config(format!(
            "the part {name:?} of {table} holds {}{remedy}",
            columns::holds(kind)
        )))
    };
    let shape = numeric(kind).map(|(_, shape)| shape);
    let is_number = shape.as_ref().is_some_and(Vec::is_empty);
    let is_list = shape.as_ref().is_some_and(|shape| !shape.is_empty());
    let is_readable = is_text(kind) || is_bytes(kind) || *kind == DataType::Null;
    match wanted.kind {
        // What cannot be compared is said when it is.
        WantedKind::Value => {}
        WantedKind::Text | WantedKind::Bytes if is_readable => {}
        WantedKind::Text | WantedKind::Bytes if is_number => {
            return refuse(&format!("; ask for numbers: Numbers({name:?})"));
        }
        WantedKind::Text | WantedKind::Bytes if is_list => {
            return refuse(&format!(
                "; ask for numbers, Numbers({name:?}, max_rows=…), or for Json({name:?}, …)"
            ));
        }
        WantedKind::Text | WantedKind::Bytes => {
            return refuse(&format!("; ask for Json({name:?}, …), or for a value inside it"));
        }
        WantedKind::Json if is_json(kind) || is_readable => {}
        WantedKind::Json => return refuse(", which cannot be written as JSON"),
        WantedKind::Image if image_kind(kind).is_some() || is_readable => {}
        WantedKind::Image => {
            return refuse("; an image is bytes, a struct of bytes and path, or the path of a file");
        }
        WantedKind::Ragged if is_text(kind) || *kind == DataType::Null => return Ok(untyped(wanted)),
        WantedKind::Ragged if is_number => {
            return refuse(&format!(", one in each record; ask for Numbers({name:?}) without max_rows"));
        }
        WantedKind::Ragged | WantedKind::Numbers => {
            let Some((dtype, shape)) = numeric(kind) else {
                return refuse("; lists of numbers are expected");
            };
            return Ok(Kind::Ragged { dtype, row: Some(fitted(&shape[1..], wanted, kind, table)?) });
        }
    }
    Ok(untyped(wanted))
}

/// The shape of rows that a type has, with the lengths that were told.
fn fitted(
    found: &[Option<u64>],
    wanted: &Wanted,
    kind: &DataType,
    table: &str,
) -> Result<Vec<Option<u64>>, SourceError> {
    let Some(told) = &wanted.row else { return Ok(found.to_vec()) };
    let agrees = told.len() == found.len()
        && told.iter().zip(found).all(|(told, found)| found.is_none_or(|found| found == *told));
    if !agrees {
        return Err(SourceError::config(format!(
            "the part {:?} should have rows of shape {told:?}, but its column in {table} is of type {kind}",
            wanted.part
        )));
    }
    Ok(told.iter().copied().map(Some).collect())
}
