//! A record as the value of a message: what a Kafka source with the same `value` reads back.
//!
//! | value | what is in it |
//! |---|---|
//! | image | the encoded image, as it is; everything else is left out |
//! | json | `{"image": base64, "label": 3 or "name", each part and field under its name}` |
//! | arrow | an IPC stream of one row with the same columns; images are binary, numbers keep their type |
//!
//! | part | in JSON | in Arrow |
//! |---|---|---|
//! | text | text | utf8 |
//! | JSON | the value as it is written | utf8 |
//! | bytes | text, where they are UTF-8 | binary |
//! | image | text in base64 | binary |
//! | rows of numbers | lists | a list of numbers, or of lists of fixed length |
//!
//! A part that a record lacks is absent in JSON and null in Arrow. What would not be read back as it is in the record
//! is refused.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Number, Value};

use super::config::KafkaValue;
use crate::arrow::array::{
    Array, ArrayData, ArrayRef, BinaryArray, Int64Array, ListArray, RecordBatch, StringArray, make_array,
    new_null_array,
};
use crate::arrow::buffer::{BooleanBuffer, Buffer, OffsetBuffer};
use crate::arrow::datatypes::{DataType, Field, Schema as ArrowSchema};
use crate::arrow::ipc::writer::StreamWriter;
use crate::{Cut, ElementType, FieldSpec, PartKind, PartSpec, Schema};

/// A record's bytes (as the schema says) as a message's value; parts and fields have the schema's names. `class` stands
/// for the label, where classes have names; records without labels have neither.
///
/// # Errors
/// A sentence that says why this record cannot be written so.
pub fn encode_value(
    format: KafkaValue,
    schema: &Schema,
    bytes: &[u8],
    label: Option<i64>,
    class: Option<&str>,
) -> Result<Vec<u8>, String> {
    let Cut { image, parts, fields: values } = schema.cut(bytes).ok_or("it is shorter than its fields")?;
    let image = schema.image.then_some(image);
    let mut rest = values;
    let fields = schema.fields.iter().map(|field| {
        let (value, after) = rest.split_at(field.bytes());
        rest = after;
        (field, value)
    });
    let parts = schema.parts.iter().zip(parts);
    match format {
        KafkaValue::Image => image.map(<[u8]>::to_vec).ok_or_else(|| "it holds no image".into()),
        KafkaValue::Json => json(image, label, class, parts, fields),
        KafkaValue::Arrow => arrow(image, label, class, parts, fields),
    }
}

fn json<'record>(
    image: Option<&[u8]>,
    label: Option<i64>,
    class: Option<&str>,
    parts: impl Iterator<Item = (&'record PartSpec, Option<&'record [u8]>)>,
    fields: impl Iterator<Item = (&'record FieldSpec, &'record [u8])>,
) -> Result<Vec<u8>, String> {
    let mut object = Object::default();
    if let Some(image) = image {
        object.put("image", &STANDARD.encode(image).into());
    }
    if let Some(label) = label {
        object.put("label", &class.map_or_else(|| label.into(), Into::into));
    }
    for (part, bytes) in parts {
        let Some(bytes) = bytes else { continue };
        let named = |why: String| format!("part {:?}: {why}", part.name);
        match &part.kind {
            PartKind::Image => object.put(&part.name, &STANDARD.encode(bytes).into()),
            PartKind::Text => object.put(&part.name, &text(bytes).map_err(named)?.into()),
            PartKind::Bytes => {
                let text = std::str::from_utf8(bytes).map_err(|_| {
                    named(
                        "its bytes are not text, and JSON holds nothing else; --value arrow can hold them"
                            .into(),
                    )
                })?;
                object.put(&part.name, &text.into());
            }
            PartKind::Json => object.put_raw(&part.name, member(bytes).map_err(named)?),
            PartKind::Ragged { dtype, row } => {
                let rows = rows(part, *dtype, row, bytes)?;
                object.put(&part.name, &numbers(&rows, bytes)?);
            }
        }
    }
    for (field, bytes) in fields {
        object.put(&field.name, &numbers(field, bytes)?);
    }
    Ok(object.end())
}

/// A JSON object that is being written. Values that are JSON already stay as they are written.
#[derive(Default)]
struct Object(String);

impl Object {
    fn put(&mut self, name: &str, value: &Value) {
        self.put_raw(name, &value.to_string());
    }

    fn put_raw(&mut self, name: &str, json: &str) {
        self.0.push(if self.0.is_empty() { '{' } else { ',' });
        self.0.push_str(&Value::from(name).to_string());
        self.0.push(':');
        self.0.push_str(json);
    }

    fn end(mut self) -> Vec<u8> {
        if self.0.is_empty() {
            self.0.push('{');
        }
        self.0.push('}');
        self.0.into_bytes()
    }
}

fn text(bytes: &[u8]) -> Result<&str, String> {
    std::str::from_utf8(bytes).map_err(|error| format!("it is not UTF-8 (byte {})", error.valid_up_to()))
}

/// A JSON value that a member of an object can be: a reader takes it for the value that it is.
fn member(bytes: &[u8]) -> Result<&str, String> {
    let text = text(bytes)?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let why = match text.trim_ascii() {
        "" => "it is empty",
        "null" => "it is null, which means in a message that there is none",
        // Read as a reader will: what is inside an object may be one level less deep.
        _ => match serde_json::from_str::<Map<String, Value>>(&format!("{{\"\":{text}}}")) {
            Ok(_) => return Ok(text),
            Err(_) => "it is not JSON that every reader takes (such as NaN, or nested too deep)",
        },
    };
    Err(format!("{why}; --value arrow can hold it"))
}

/// Rows of numbers as one field: how many there are is its first length.
fn rows(part: &PartSpec, dtype: ElementType, row: &[u64], bytes: &[u8]) -> Result<FieldSpec, String> {
    let one = row.iter().product::<u64>() as usize * dtype.size();
    if one == 0 || !bytes.len().is_multiple_of(one) {
        let (name, len) = (&part.name, bytes.len());
        return Err(format!("part {name:?}: its {len} bytes are not rows of {dtype} {row:?}"));
    }
    let shape = std::iter::once((bytes.len() / one) as u64).chain(row.iter().copied()).collect();
    Ok(FieldSpec { name: part.name.clone(), dtype, shape })
}

/// The numbers of a field, as lists in lists.
fn numbers(field: &FieldSpec, bytes: &[u8]) -> Result<Value, String> {
    let mut elements = bytes.chunks_exact(field.dtype.size()).map(|element| number(field, element));
    nested(&field.shape, &mut elements)
}

/// Elements as lists in lists.
fn nested(
    shape: &[u64],
    elements: &mut impl Iterator<Item = Result<Value, String>>,
) -> Result<Value, String> {
    match shape {
        [] => elements.next().unwrap_or_else(|| Err("a field is too short".into())),
        [len, inner @ ..] => (0..*len).map(|_| nested(inner, elements)).collect(),
    }
}

fn number(field: &FieldSpec, bytes: &[u8]) -> Result<Value, String> {
    let mut eight = [0; 8];
    eight[..bytes.len()].copy_from_slice(bytes);
    let unsigned = u64::from_le_bytes(eight);
    let shift = 64 - 8 * bytes.len() as u32;
    let float = |value: f64| {
        Number::from_f64(value).map(Value::Number).ok_or_else(|| {
            format!(
                "its field {:?} holds {value}, which JSON cannot express; --value arrow can hold it",
                field.name
            )
        })
    };
    match field.dtype {
        ElementType::Bool => Ok((unsigned != 0).into()),
        ElementType::U8 | ElementType::U16 | ElementType::U32 | ElementType::U64 => Ok(unsigned.into()),
        // Shifted up and back, so that the sign is carried down.
        ElementType::I8 | ElementType::I16 | ElementType::I32 | ElementType::I64 => {
            Ok(((unsigned << shift).cast_signed() >> shift).into())
        }
        ElementType::F16 => float(half::f16::from_bits(unsigned as u16).into()),
        ElementType::F32 => float(f32::from_bits(unsigned as u32).into()),
        ElementType::F64 => float(f64::from_bits(unsigned)),
    }
}

fn arrow<'record>(
    image: Option<&[u8]>,
    label: Option<i64>,
    class: Option<&str>,
    parts: impl Iterator<Item = (&'record PartSpec, Option<&'record [u8]>)>,
    fields: impl Iterator<Item = (&'record FieldSpec, &'record [u8])>,
) -> Result<Vec<u8>, String> {
    let mut columns: Vec<(String, ArrayRef)> = Vec::new();
    if let Some(image) = image {
        columns.push(("image".into(), Arc::new(BinaryArray::from(vec![image]))));
    }
    if let Some(label) = label {
        let label: ArrayRef = match class {
            Some(class) => Arc::new(StringArray::from(vec![class])),
            None => Arc::new(Int64Array::from(vec![label])),
        };
        columns.push(("label".into(), label));
    }
    for (part, bytes) in parts {
        columns.push((part.name.clone(), column(part, bytes)?));
    }
    for (field, bytes) in fields {
        columns
            .push((field.name.clone(), make_array(array(field, bytes).map_err(|error| error.to_string())?)));
    }
    row(columns).map_err(|error| error.to_string())
}

/// An IPC stream of one row.
fn row(columns: Vec<(String, ArrayRef)>) -> Result<Vec<u8>, arrow_schema::ArrowError> {
    let schema = columns
        .iter()
        .map(|(name, array)| Field::new(name, array.data_type().clone(), array.null_count() > 0));
    let schema = Arc::new(ArrowSchema::new(schema.collect::<Vec<_>>()));
    let batch = RecordBatch::try_new(schema.clone(), columns.into_iter().map(|(_, array)| array).collect())?;
    let mut writer = StreamWriter::try_new(Vec::new(), &schema)?;
    writer.write(&batch)?;
    writer.into_inner()
}

/// One row of a part: a null where the record lacks it.
fn column(part: &PartSpec, bytes: Option<&[u8]>) -> Result<ArrayRef, String> {
    Ok(match (&part.kind, bytes) {
        (PartKind::Image | PartKind::Bytes, bytes) => Arc::new(BinaryArray::from(vec![bytes])),
        (PartKind::Text | PartKind::Json, bytes) => {
            let text = bytes.map(text).transpose().map_err(|why| format!("part {:?}: {why}", part.name))?;
            Arc::new(StringArray::from(vec![text]))
        }
        (PartKind::Ragged { dtype, row }, bytes) => {
            let wrong = |error: arrow_schema::ArrowError| error.to_string();
            let numbers = bytes.unwrap_or_default();
            rows(part, *dtype, row, numbers)?;
            let items = elements(*dtype, numbers).and_then(|data| lists(data, row)).map_err(wrong)?;
            let item = Arc::new(Field::new_list_field(items.data_type().clone(), false));
            let list = DataType::List(item.clone());
            if bytes.is_none() {
                return Ok(new_null_array(&list, 1));
            }
            let offsets = OffsetBuffer::from_lengths([items.len()]);
            Arc::new(ListArray::try_new(item, offsets, make_array(items), None).map_err(wrong)?)
        }
    })
}

/// One row of a field.
fn array(field: &FieldSpec, bytes: &[u8]) -> Result<ArrayData, arrow_schema::ArrowError> {
    lists(elements(field.dtype, bytes)?, &field.shape)
}

fn elements(dtype: ElementType, bytes: &[u8]) -> Result<ArrayData, arrow_schema::ArrowError> {
    let (kind, buffer) = match dtype {
        ElementType::Bool => {
            (DataType::Boolean, bytes.iter().map(|&byte| byte != 0).collect::<BooleanBuffer>().into_inner())
        }
        ElementType::U8 => (DataType::UInt8, Buffer::from(bytes)),
        ElementType::I8 => (DataType::Int8, Buffer::from(bytes)),
        ElementType::U16 => (DataType::UInt16, Buffer::from(bytes)),
        ElementType::I16 => (DataType::Int16, Buffer::from(bytes)),
        ElementType::U32 => (DataType::UInt32, Buffer::from(bytes)),
        ElementType::I32 => (DataType::Int32, Buffer::from(bytes)),
        ElementType::U64 => (DataType::UInt64, Buffer::from(bytes)),
        ElementType::I64 => (DataType::Int64, Buffer::from(bytes)),
        ElementType::F16 => (DataType::Float16, Buffer::from(bytes)),
        ElementType::F32 => (DataType::Float32, Buffer::from(bytes)),
        ElementType::F64 => (DataType::Float64, Buffer::from(bytes)),
    };
    ArrayData::builder(kind).len(bytes.len() / dtype.size()).add_buffer(buffer).build()
}

/// Elements in as many lists of fixed length as a shape has axes.
fn lists(mut data: ArrayData, shape: &[u64]) -> Result<ArrayData, arrow_schema::ArrowError> {
    let mut len = data.len();
    for &axis in shape.iter().rev() {
        let axis = axis as usize;
        len = len.checked_div(axis).unwrap_or(1);
        let item = Field::new_list_field(data.data_type().clone(), false);
        let kind = DataType::FixedSizeList(Arc::new(item), axis as i32);
        data = ArrayData::builder(kind).len(len).add_child_data(data).build()?;
    }
    Ok(data)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schema() -> Schema {
        let field =
            |name: &str, dtype, shape: &[u64]| FieldSpec { name: name.into(), dtype, shape: shape.into() };
        let fields = vec![
            field("box", ElementType::F32, &[2, 2]),
            field("depth", ElementType::I16, &[]),
            field("seen", ElementType::Bool, &[3]),
        ];
        Schema::of(true, fields)
    }

    fn record(first: f32) -> Vec<u8> {
        let mut bytes = b"picture".to_vec();
        [first, 0.5, -2.0, 3.0].iter().for_each(|value| bytes.extend(value.to_le_bytes()));
        bytes.extend((-7i16).to_le_bytes());
        bytes.extend([1, 0, 1]);
        bytes
    }

    #[test]
    fn an_image_is_written_as_it_is() {
        let value = encode_value(KafkaValue::Image, &schema(), &record(1.0), Some(3), None);
        assert_eq!(value.unwrap(), b"picture");
    }

    #[test]
    fn json_holds_everything_in_the_shape_it_has() {
        let value = encode_value(KafkaValue::Json, &schema(), &record(1.5), Some(3), Some("cat")).unwrap();
        let value: Value = serde_json::from_slice(&value).unwrap();
        let expected = serde_json::json!({
            "image": STANDARD.encode("picture"), "label": "cat", "box": [[1.5, 0.5], [-2.0, 3.0]], "depth": -7,
            "seen": [true, false, true],
        });
        assert_eq!(value, expected);
    }

    #[test]
    fn what_json_cannot_express_names_the_field() {
        let error = encode_value(KafkaValue::Json, &schema(), &record(f32::NAN), Some(3), None).unwrap_err();
        assert!(error.contains("\"box\" holds NaN"), "{error}");
        assert!(encode_value(KafkaValue::Arrow, &schema(), &record(f32::NAN), Some(3), None).is_ok());
    }

    #[test]
    fn arrow_holds_one_row_with_the_same_types() {
        use crate::arrow::array::AsArray;
        use crate::arrow::ipc::reader::StreamReader;
        let value = encode_value(KafkaValue::Arrow, &schema(), &record(1.5), Some(3), None).unwrap();
        let batches =
            StreamReader::try_new(value.as_slice(), None).unwrap().collect::<Result<Vec<_>, _>>().unwrap();
        let [batch] = batches.as_slice() else { panic!("one batch") };
        assert_eq!(batch.num_rows(), 1);
        assert_eq!(batch["image"].as_binary::<i32>().value(0), b"picture");
        let rows = batch["box"].as_fixed_size_list().value(0);
        let values = rows.as_fixed_size_list().values().clone();
        use crate::arrow::datatypes::{Float32Type, Int16Type};
        assert_eq!(values.as_primitive::<Float32Type>().values().as_ref(), [1.5, 0.5, -2.0, 3.0]);
        assert_eq!(batch["depth"].as_primitive::<Int16Type>().value(0), -7);
        let seen = batch["seen"].as_fixed_size_list().value(0);
        assert_eq!(seen.as_boolean().iter().flatten().collect::<Vec<_>>(), [true, false, true]);
    }

    fn with_parts(kinds: &[PartKind]) -> Schema {
        let part = |(at, kind): (usize, &PartKind)| PartSpec { name: format!("p{at}"), kind: kind.clone() };
        Schema { image: true, parts: kinds.iter().enumerate().map(part).collect(), fields: Vec::new() }
    }

    fn parted(schema: &Schema, parts: &[Option<&[u8]>]) -> Vec<u8> {
        let size = schema.record_bytes(7, parts.iter().map(|part| part.map(<[u8]>::len)));
        let mut record = vec![0; size];
        schema.join(b"picture", parts.iter().copied(), &[], &mut record);
        record
    }

    #[test]
    fn a_message_is_read_back_as_the_parts_that_it_was_made_of() {
        use crate::streams::kafka::value::{Parts, Values};
        let ragged = |row: &[u64]| PartKind::Ragged { dtype: ElementType::I16, row: row.to_vec() };
        let kinds = [
            PartKind::Text,
            PartKind::Json,
            PartKind::Bytes,
            PartKind::Image,
            ragged(&[]),
            ragged(&[2]),
            PartKind::Text,
        ];
        let schema = with_parts(&kinds);
        let numbers = [1i16, -2, 3, 4].map(i16::to_le_bytes).concat();
        let all = [
            Some(&b"a \"cat\" \xc3\xa9"[..]),
            Some(b" [1.50, {\"a\": 123456789012345678901234567890}]"),
            Some(b"plain"),
            Some(b"\x89PNG\0"),
            Some(&numbers),
            Some(&numbers[..0]),
            None,
        ];
        let deliver = serde_json::json!([
            {"part": "", "kind": "image"}, {"part": "p0", "kind": "text"}, {"part": "p1", "kind": "json"},
            {"part": "p2", "kind": "bytes"}, {"part": "p3", "kind": "image"},
            {"part": "p4", "kind": "ragged", "dtype": "i16", "row": []},
            {"part": "p5", "kind": "ragged", "dtype": "i16", "row": [2]}, {"part": "p6", "kind": "text"},
        ]);
        for (format, name) in [(KafkaValue::Json, "json"), (KafkaValue::Arrow, "arrow")] {
            let value = encode_value(format, &schema, &parted(&schema, &all), None, None).unwrap();
            let config = serde_json::json!({"value": name, "label": "", "deliver": deliver.clone()});
            let values = Values::new(&serde_json::from_value(config).unwrap()).unwrap();
            let (_, body) = values.read(Parts { value: Some(&value), ..Parts::default() });
            let (body, read) = (body.unwrap(), values.schema());
            let cut = read.cut(&body).unwrap();
            assert_eq!(cut.image, b"picture");
            let trimmed: Vec<_> = cut.parts.iter().map(|part| part.map(<[u8]>::trim_ascii)).collect();
            let expected: Vec<_> = all.iter().map(|part| part.map(<[u8]>::trim_ascii)).collect();
            assert_eq!(trimmed, expected, "{name}");
        }
    }

    #[test]
    fn what_json_would_change_is_refused_by_name_and_arrow_holds_it() {
        let deep = [b"[".repeat(127), b"]".repeat(127)].concat();
        for (kind, bytes, why) in [
            (PartKind::Bytes, &b"\xff"[..], "its bytes are not text"),
            (PartKind::Json, b"", "empty"),
            (PartKind::Json, b"null ", "null"),
            (PartKind::Json, b"[NaN]", "NaN"),
            (PartKind::Json, &deep, "nested too deep"),
        ] {
            let schema = with_parts(&[kind]);
            let record = parted(&schema, &[Some(bytes)]);
            let error = encode_value(KafkaValue::Json, &schema, &record, None, None).unwrap_err();
            assert!(error.starts_with("part \"p0\": ") && error.contains(why), "{error}");
            assert!(error.contains("--value arrow"), "{error}");
            assert!(encode_value(KafkaValue::Arrow, &schema, &record, None, None).is_ok());
        }
        for format in [KafkaValue::Json, KafkaValue::Arrow] {
            let schema = with_parts(&[PartKind::Text]);
            let error = encode_value(format, &schema, &parted(&schema, &[Some(b"a\xff")]), None, None);
            assert_eq!(error, Err("part \"p0\": it is not UTF-8 (byte 1)".into()));
        }
    }

    #[test]
    fn a_record_shorter_than_its_fields_is_refused() {
        for format in [KafkaValue::Image, KafkaValue::Json, KafkaValue::Arrow] {
            assert!(encode_value(format, &schema(), b"short", Some(0), None).is_err());
        }
    }
}
