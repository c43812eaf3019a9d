//! A record as the value of a message: what a Kafka source with the same `value` reads back.
//!
//! | value | what is in it |
//! |---|---|
//! | image | the encoded image, as it is; fields are left out |
//! | json | `{"image": base64, "label": 3 or "name", each field: a number or nested lists}` |
//! | arrow | an IPC stream of one row with the same columns; images are binary, fields keep their type |

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Number, Value};

use super::config::KafkaValue;
use crate::arrow::array::{
    ArrayData, ArrayRef, BinaryArray, Int64Array, RecordBatch, StringArray, make_array,
};
use crate::arrow::buffer::{BooleanBuffer, Buffer};
use crate::arrow::datatypes::{DataType, Field, Schema as ArrowSchema};
use crate::arrow::ipc::writer::StreamWriter;
use crate::{Cut, ElementType, FieldSpec, Schema};

/// A record's bytes (image, then fields, as the schema says) as a message's value. `class` stands for the label, where
/// classes have names; records without labels have neither.
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
    let Cut { image, fields: values, .. } = schema.cut(bytes).ok_or("it is shorter than its fields")?;
    let image = schema.image.then_some(image);
    let mut rest = values;
    let fields = schema.fields.iter().map(|field| {
        let (value, behind) = rest.split_at(field.bytes());
        rest = behind;
        (field, value)
    });
    match format {
        KafkaValue::Image => image.map(<[u8]>::to_vec).ok_or_else(|| "it holds no image".into()),
        KafkaValue::Json => json(image, label, class, fields),
        KafkaValue::Arrow => arrow(image, label, class, fields).map_err(|error| error.to_string()),
    }
}

fn json<'record>(
    image: Option<&[u8]>,
    label: Option<i64>,
    class: Option<&str>,
    fields: impl Iterator<Item = (&'record FieldSpec, &'record [u8])>,
) -> Result<Vec<u8>, String> {
    let mut object = Map::new();
    if let Some(image) = image {
        object.insert("image".into(), STANDARD.encode(image).into());
    }
    if let Some(label) = label {
        object.insert("label".into(), class.map_or_else(|| label.into(), Into::into));
    }
    for (field, bytes) in fields {
        let mut elements = bytes.chunks_exact(field.dtype.size()).map(|element| number(field, element));
        object.insert(field.name.clone(), nested(&field.shape, &mut elements)?);
    }
    Ok(Value::Object(object).to_string().into_bytes())
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
            format!("its field {:?} holds {value}, which JSON cannot express; Arrow can", field.name)
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
    fields: impl Iterator<Item = (&'record FieldSpec, &'record [u8])>,
) -> Result<Vec<u8>, arrow_schema::ArrowError> {
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
    for (field, bytes) in fields {
        columns.push((field.name.clone(), make_array(array(field, bytes)?)));
    }
    let schema = columns.iter().map(|(name, array)| Field::new(name, array.data_type().clone(), false));
    let schema = Arc::new(ArrowSchema::new(schema.collect::<Vec<_>>()));
    let batch = RecordBatch::try_new(schema.clone(), columns.into_iter().map(|(_, array)| array).collect())?;
    let mut writer = StreamWriter::try_new(Vec::new(), &schema)?;
    writer.write(&batch)?;
    writer.into_inner()
}

/// One row: the elements, in as many lists of fixed length as the shape has axes.
fn array(field: &FieldSpec, bytes: &[u8]) -> Result<ArrayData, arrow_schema::ArrowError> {
    let (kind, buffer) = match field.dtype {
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
    let mut len = bytes.len() / field.dtype.size();
    let mut data = ArrayData::builder(kind).len(len).add_buffer(buffer).build()?;
    for &axis in field.shape.iter().rev() {
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

    #[test]
    fn a_record_shorter_than_its_fields_is_refused() {
        for format in [KafkaValue::Image, KafkaValue::Json, KafkaValue::Arrow] {
            assert!(encode_value(format, &schema(), b"short", Some(0), None).is_err());
        }
    }
}
