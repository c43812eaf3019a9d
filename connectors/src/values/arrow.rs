//! Values in a row of an Arrow column.

use std::borrow::Cow;

use serde_json::value::RawValue;

use super::{Value, json, step};
use crate::arrow::array::{Array, ArrayRef, AsArray};
use crate::arrow::datatypes::{self as types, DataType, TimeUnit};
use crate::sources::table::columns::{append_rows, bytes_at, dictionary_at, list_at, numeric};
use crate::{ElementType, MAX_PART_BYTES, PartKind};

/// Columns in each other are written as JSON up to this depth.
const MAX_DEPTH: usize = 64;

/// What lies inside a column's type.
#[derive(Debug, PartialEq)]
pub(crate) enum Inside<'kind> {
    /// A column of this type.
    Typed(&'kind DataType),
    /// A member of the JSON that texts hold.
    Json,
}

/// The type at a path inside a column.
///
/// # Errors
/// The names that are there instead, where the path goes astray.
pub(crate) fn type_at<'kind>(kind: &'kind DataType, path: &str) -> Result<Inside<'kind>, Vec<&'kind str>> {
    match kind {
        kind if path.is_empty() => Ok(Inside::Typed(kind)),
        kind if is_text(kind) => Ok(Inside::Json),
        DataType::Struct(fields) => match step(path, |name| fields.find(name).is_some()) {
            Some((name, rest)) => type_at(fields.find(name).expect("it was found").1.data_type(), rest),
            None => Err(fields.iter().map(|field| field.name().as_str()).collect()),
        },
        _ => Err(Vec::new()),
    }
}

pub(crate) fn is_text(kind: &DataType) -> bool {
    match kind {
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => true,
        DataType::Dictionary(_, values) => is_text(values),
        _ => false,
    }
}

pub(crate) fn is_bytes(kind: &DataType) -> bool {
    match kind {
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView | DataType::FixedSizeBinary(_) => {
            true
        }
        DataType::Dictionary(_, values) => is_bytes(values),
        _ => false,
    }
}

/// Whether values of a type can be written as JSON.
pub(crate) fn is_json(kind: &DataType) -> bool {
    match kind {
        DataType::Null
        | DataType::Boolean
        | DataType::Float16
        | DataType::Float32
        | DataType::Float64
        | DataType::Utf8
        | DataType::LargeUtf8
        | DataType::Utf8View => true,
        DataType::Dictionary(_, inner) => is_json(inner),
        DataType::List(inner)
        | DataType::LargeList(inner)
        | DataType::FixedSizeList(inner, _)
        | DataType::Map(inner, _) => is_json(inner.data_type()),
        DataType::Struct(fields) => fields.iter().all(|field| is_json(field.data_type())),
        DataType::Decimal32(..) | DataType::Decimal64(..) | DataType::Decimal128(..) => true,
        other => numeric(other).is_some(),
    }
}

/// What a part is made of: a row of a column, or a text in JSON.
pub(crate) enum Found<'array> {
    None,
    Row(&'array dyn Array, usize),
    Json(&'array str),
}

/// The bytes of a part made of what is at a path in a row of a column.
///
/// # Errors
/// What is wrong with the value.
pub(crate) fn value<'array>(
    array: &'array dyn Array,
    row: usize,
    path: &str,
    wanted: &PartKind,
) -> Result<Value<'array>, String> {
    let made = match find(array, row, path)? {
        Found::None => None,
        Found::Json(text) => json::value(text, wanted)?,
        Found::Row(array, row) => of_row(array, row, wanted)?,
    };
    match &made {
        Some(bytes) if bytes.len() as u64 > MAX_PART_BYTES => Err(too_large()),
        _ => Ok(made),
    }
}

fn too_large() -> String {
    format!("is larger than {} MiB", MAX_PART_BYTES >> 20)
}

/// What is at a path in a row of a column.
///
/// # Errors
/// When a text on the way is no JSON.
pub(crate) fn find<'array>(
    array: &'array dyn Array,
    row: usize,
    path: &str,
) -> Result<Found<'array>, String> {
    let (mut array, mut row, mut rest) = (array, row, path);
    loop {
        if array.is_null(row) {
            return Ok(Found::None);
        }
        if let DataType::Dictionary(..) = array.data_type() {
            let Some((values, at)) = dictionary_at(array, row) else { return Ok(Found::None) };
            (array, row) = (values, at);
            continue;
        }
        if rest.is_empty() {
            return Ok(Found::Row(array, row));
        }
        let Some(inner) = array.as_struct_opt() else {
            let json = json_of(array, row).ok_or("holds no text that is JSON")?;
            return Ok(json::find(json, rest)?.map_or(Found::None, Found::Json));
        };
        let has = |name: &str| inner.column_by_name(name).is_some();
        let Some((name, behind)) = step(rest, has) else { return Ok(Found::None) };
        (array, rest) = (&**inner.column_by_name(name).expect("it was found"), behind);
    }
}

/// The JSON that a row's text is.
pub(crate) fn json_of(array: &dyn Array, row: usize) -> Option<&str> {
    let text = std::str::from_utf8(bytes_at(array, row)?).ok()?;
    serde_json::from_str::<&RawValue>(text).ok().map(RawValue::get)
}

fn of_row<'array>(array: &'array dyn Array, row: usize, wanted: &PartKind) -> Result<Value<'array>, String> {
    if *array.data_type() == DataType::Null {
        return Ok(None);
    }
    let bytes = match array.data_type() {
        DataType::FixedSizeBinary(_) => Some(array.as_fixed_size_binary().value(row)),
        _ => bytes_at(array, row),
    };
    match (wanted, bytes) {
        (PartKind::Ragged { .. }, Some(text)) if text.trim_ascii().is_empty() => Ok(None),
        (PartKind::Ragged { .. }, Some(_)) => {
            let text = json_of(array, row).ok_or("is a text that is not a list of numbers in JSON")?;
            json::value(text, wanted).map(|made| made.map(|bytes| Cow::Owned(bytes.into_owned())))
        }
        (PartKind::Ragged { row: shape, .. }, None) => {
            rows(array, row, shape).map(|made| made.map(Cow::Owned))
        }
        (_, Some(bytes)) => Ok(Some(Cow::Borrowed(bytes))),
        (PartKind::Json, None) => {
            let mut out = Vec::new();
            write(array, row, &mut out, 0)?;
            Ok(Some(Cow::Owned(out)))
        }
        (PartKind::Image | PartKind::Text | PartKind::Bytes, None) => {
            Err(format!("is of type {}; texts or bytes are expected", array.data_type()))
        }
    }
}

/// The rows of numbers in a list; `None` for a null.
fn rows(array: &dyn Array, row: usize, shape: &[u64]) -> Result<Option<Vec<u8>>, String> {
    if !matches!(array.data_type(), DataType::List(_) | DataType::LargeList(_) | DataType::FixedSizeList(..))
    {
        return Err(format!("is of type {}; a list of numbers is expected", array.data_type()));
    }
    let Some((values, first, length)) = list_at(array, row) else { return Ok(None) };
    let mut out = Vec::new();
    append_rows(values.as_ref(), first, length, shape, &mut out)
        .map_err(|why| if why == "is null" { "has a null in it".into() } else { why })?;
    Ok(Some(out))
}

/// The shape of the first row of the list at a path, if it has one.
pub(crate) fn shape_of_rows(array: &dyn Array, row: usize, path: &str) -> Option<Vec<u64>> {
    match find(array, row, path).ok()? {
        Found::None => None,
        Found::Json(text) => json::shape_of_rows(text),
        Found::Row(array, row) => match json_of(array, row) {
            Some(text) => json::shape_of_rows(text),
            None => {
                let (mut values, mut first, mut length) = list_at(array, row)?;
                let mut shape = Vec::new();
                while length > 0 {
                    let Some(inner) = numeric(values.data_type()).filter(|(_, shape)| !shape.is_empty())
                    else {
                        return Some(shape);
                    };
                    debug_assert!(inner.1.len() < 64, "types are as deep as their schema");
                    (values, first, length) = list_at(values.as_ref(), first)?;
                    shape.push(length as u64);
                }
                None
            }
        },
    }
}

/// Writes a value as JSON.
pub(super) fn write(array: &dyn Array, row: usize, out: &mut Vec<u8>, depth: usize) -> Result<(), String> {
    if depth > MAX_DEPTH {
        return Err(format!("has columns nested more than {MAX_DEPTH} levels deep"));
    }
    if out.len() as u64 > MAX_PART_BYTES {
        return Err(too_large());
    }
    if array.is_null(row) || array.data_type() == &DataType::Null {
        out.extend_from_slice(b"null");
        return Ok(());
    }
    match array.data_type() {
        DataType::Dictionary(..) => match dictionary_at(array, row) {
            Some((values, at)) => return write(values, at, out, depth + 1),
            None => out.extend_from_slice(b"null"),
        },
        DataType::Struct(_) => return write_struct(array, row, out, depth),
        DataType::Map(..) => return write_map(array, row, out, depth),
        DataType::List(_) | DataType::LargeList(_) | DataType::FixedSizeList(..) => {
            let (values, first, length) = list_at(array, row).ok_or("is null")?;
            return write_list(values, first..first + length, out, depth);
        }
        kind if is_text(kind) => {
            let text = std::str::from_utf8(bytes_at(array, row).ok_or("is null")?);
            put(text.map_err(|_| "has a text in it that is not UTF-8")?, out);
        }
        _ => write_number(array, row, out)?,
    }
    Ok(())
}

/// Appends a value that JSON has itself.
fn put<T: serde::Serialize + ?Sized>(value: &T, out: &mut Vec<u8>) {
    serde_json::to_writer(out, value).expect("memory takes everything");
}

fn write_list(
    values: &ArrayRef,
    range: std::ops::Range<usize>,
    out: &mut Vec<u8>,
    depth: usize,
) -> Result<(), String> {
    out.push(b'[');
    for at in range.clone() {
        if at > range.start {
            out.push(b',');
        }
        write(values.as_ref(), at, out, depth + 1)?;
    }
    out.push(b']');
    Ok(())
}

fn write_struct(array: &dyn Array, row: usize, out: &mut Vec<u8>, depth: usize) -> Result<(), String> {
    let array = array.as_struct();
    out.push(b'{');
    for (at, (field, column)) in array.fields().iter().zip(array.columns()).enumerate() {
        if at > 0 {
            out.push(b',');
        }
        put(field.name(), out);
        out.push(b':');
        write(column.as_ref(), row, out, depth + 1)?;
    }
    out.push(b'}');
    Ok(())
}

/// A map with texts for keys is an object, any other a list of pairs.
fn write_map(array: &dyn Array, row: usize, out: &mut Vec<u8>, depth: usize) -> Result<(), String> {
    let map = array.as_map();
    let offsets = map.value_offsets();
    let entries = offsets[row] as usize..offsets[row + 1] as usize;
    let is_object = is_text(map.keys().data_type());
    out.push(if is_object { b'{' } else { b'[' });
    for at in entries.clone() {
        if at > entries.start {
            out.push(b',');
        }
        if !is_object {
            out.push(b'[');
        }
        write(map.keys().as_ref(), at, out, depth + 1)?;
        out.push(if is_object { b':' } else { b',' });
        write(map.values().as_ref(), at, out, depth + 1)?;
        if !is_object {
            out.push(b']');
        }
    }
    out.push(if is_object { b'}' } else { b']' });
    Ok(())
}

/// Numbers, and what is stored as one. What JSON has no number for is null: NaN and the infinities.
fn write_number(array: &dyn Array, row: usize, out: &mut Vec<u8>) -> Result<(), String> {
    let decimal = match array.data_type() {
        DataType::Decimal32(..) => Some(array.as_primitive::<types::Decimal32Type>().value_as_string(row)),
        DataType::Decimal64(..) => Some(array.as_primitive::<types::Decimal64Type>().value_as_string(row)),
        DataType::Decimal128(..) => Some(array.as_primitive::<types::Decimal128Type>().value_as_string(row)),
        _ => None,
    };
    if let Some(decimal) = decimal {
        out.extend_from_slice(decimal.as_bytes());
        return Ok(());
    }
    macro_rules! time {
        ($type:ty, $get:ident, $format:literal) => {
            match array.as_primitive::<$type>().$get(row) {
                Some(time) => put(&time.format($format).to_string(), out),
                None => out.extend_from_slice(b"null"),
            }
        };
    }
    match array.data_type() {
        DataType::Date32 => time!(types::Date32Type, value_as_date, "%Y-%m-%d"),
        DataType::Date64 => time!(types::Date64Type, value_as_date, "%Y-%m-%d"),
        DataType::Timestamp(unit, zone) => {
            macro_rules! stamp {
                ($type:ty) => {
                    match zone {
                        // A time with a zone is stored in UTC.
                        Some(_) => time!($type, value_as_datetime, "%Y-%m-%dT%H:%M:%S%.fZ"),
                        None => time!($type, value_as_datetime, "%Y-%m-%dT%H:%M:%S%.f"),
                    }
                };
            }
            match unit {
                TimeUnit::Second => stamp!(types::TimestampSecondType),
                TimeUnit::Millisecond => stamp!(types::TimestampMillisecondType),
                TimeUnit::Microsecond => stamp!(types::TimestampMicrosecondType),
                TimeUnit::Nanosecond => stamp!(types::TimestampNanosecondType),
            }
        }
        kind => {
            let (dtype, _) = numeric(kind).ok_or_else(|| format!("is of type {kind}, which JSON has not"))?;
            let mut bytes = Vec::with_capacity(8);
            append_rows(array, row, 1, &[], &mut bytes)?;
            write_element(&bytes, dtype, out);
        }
    }
    Ok(())
}

/// One element, little-endian, as JSON.
fn write_element(bytes: &[u8], dtype: ElementType, out: &mut Vec<u8>) {
    macro_rules! number {
        ($kind:ty) => {
            <$kind>::from_le_bytes(bytes.try_into().expect("the bytes of one element"))
        };
    }
    match dtype {
        ElementType::Bool => put(&(bytes[0] != 0), out),
        ElementType::U8 => put(&number!(u8), out),
        ElementType::I8 => put(&number!(i8), out),
        ElementType::U16 => put(&number!(u16), out),
        ElementType::I16 => put(&number!(i16), out),
        ElementType::U32 => put(&number!(u32), out),
        ElementType::I32 => put(&number!(i32), out),
        ElementType::U64 => put(&number!(u64), out),
        ElementType::I64 => put(&number!(i64), out),
        ElementType::F16 => put(&number!(half::f16).to_f32(), out),
        ElementType::F32 => put(&number!(f32), out),
        ElementType::F64 => put(&number!(f64), out),
    }
}
