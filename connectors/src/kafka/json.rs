//! A JSON object as a record.

use base64::Engine as _;
use base64::alphabet;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};
use half::f16;
use serde_json::{Map, Value};

use super::value::{Columns, Found, IMAGES, ImageColumn};
use crate::{ElementType, FieldSpec};

/// Base64 as it is found: with padding or without.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Writes an object's image and fields, and hands over its label.
pub(super) fn read(
    bytes: &[u8],
    columns: &Columns,
    body: &mut Vec<u8>,
    label: impl FnOnce(Found<'_>) -> Result<(), String>,
) -> Result<(), String> {
    let object: Map<String, Value> =
        serde_json::from_slice(bytes).map_err(|error| format!("its value is no JSON object: {error}"))?;
    let image = match &columns.image {
        ImageColumn::None => None,
        ImageColumn::Named(name) => Some((name.as_str(), object.get(name))),
        ImageColumn::Usual => {
            let found = IMAGES.iter().find_map(|name| Some((*name, object.get(*name)?)));
            let Some((name, value)) = found else {
                return Err(format!("it has no image: none of {}", IMAGES.join(", ")));
            };
            Some((name, Some(value)))
        }
    };
    if let Some((name, value)) = image {
        let Some(Value::String(text)) = value else {
            return Err(format!("its image {name:?} is {}; a text in base64 is expected", kind(value)));
        };
        // "data:image/png;base64,…" is how the web writes it.
        let text = match text.strip_prefix("data:") {
            Some(rest) => rest.split_once(";base64,").map_or(text.as_str(), |(_, data)| data),
            None => text,
        };
        BASE64
            .decode_vec(text, body)
            .map_err(|error| format!("its image {name:?} is not base64: {error}"))?;
    }
    for field in &columns.fields {
        let value = object.get(&field.name);
        let mut left = field.shape.iter().product::<u64>();
        let end = body.len() + field.bytes();
        write(value.unwrap_or(&Value::Null), &field.shape, field, &mut left, body)?;
        debug_assert!(left == 0 && body.len() == end, "the shape was checked at every depth");
    }
    label(match columns.label.as_ref().and_then(|(name, _)| object.get(name)) {
        None | Some(Value::Null) => columns.no_label()?,
        Some(Value::String(text)) => Found::Text(text),
        Some(Value::Bool(truth)) => Found::Number(i64::from(*truth)),
        Some(value) => Found::Number(value.as_i64().ok_or_else(|| {
            format!("its label is {}; an integer or a text is expected", kind(Some(value)))
        })?),
    })
}

/// Writes a value of this shape, which is what is left of the field's.
fn write(
    value: &Value,
    shape: &[u64],
    field: &FieldSpec,
    left: &mut u64,
    body: &mut Vec<u8>,
) -> Result<(), String> {
    let Some((&length, inner)) = shape.split_first() else {
        *left -= 1;
        return number(value, field, body);
    };
    let Value::Array(values) = value else {
        return Err(format!(
            "its field {:?} is {} where a list is expected ({:?})",
            field.name,
            kind(Some(value)),
            field.shape
        ));
    };
    if values.len() as u64 != length {
        return Err(format!(
            "its field {:?} has a list of {} where {length} are expected ({:?})",
            field.name,
            values.len(),
            field.shape
        ));
    }
    values.iter().try_for_each(|value| write(value, inner, field, left, body))
}

/// Writes one number, little-endian.
fn number(value: &Value, field: &FieldSpec, body: &mut Vec<u8>) -> Result<(), String> {
    use ElementType::*;
    let wrong =
        || format!("its field {:?} is {}, which is no {}", field.name, kind(Some(value)), field.dtype);
    let integer = || match value {
        Value::Bool(truth) => Some(i128::from(*truth)),
        Value::Number(number) => {
            let whole = number.as_i64().map(i128::from).or_else(|| number.as_u64().map(i128::from));
            whole
                .or_else(|| number.as_f64().filter(|f| f.fract() == 0.0 && f.abs() < 9e15).map(|f| f as i128))
        }
        _ => None,
    };
    let float = || match value {
        Value::Bool(truth) => Some(f64::from(u8::from(*truth))),
        value => value.as_f64(),
    };
    macro_rules! put {
        ($kind:ty) => {
            body.extend(<$kind>::try_from(integer().ok_or_else(wrong)?).map_err(|_| wrong())?.to_le_bytes())
        };
    }
    match field.dtype {
        Bool => match integer() {
            Some(number @ (0 | 1)) => body.push(number as u8),
            _ => return Err(wrong()),
        },
        U8 => put!(u8),
        I8 => put!(i8),
        U16 => put!(u16),
        I16 => put!(i16),
        U32 => put!(u32),
        I32 => put!(i32),
        U64 => put!(u64),
        I64 => put!(i64),
        F16 => body.extend(f16::from_f64(float().ok_or_else(wrong)?).to_le_bytes()),
        F32 => body.extend((float().ok_or_else(wrong)? as f32).to_le_bytes()),
        F64 => body.extend(float().ok_or_else(wrong)?.to_le_bytes()),
    }
    Ok(())
}

/// What a value is, in words.
fn kind(value: Option<&Value>) -> String {
    match value {
        None | Some(Value::Null) => "missing".into(),
        Some(Value::Bool(truth)) => truth.to_string(),
        Some(Value::Number(number)) => number.to_string(),
        Some(Value::String(_)) => "a text".into(),
        Some(Value::Array(values)) => format!("a list of {}", values.len()),
        Some(Value::Object(_)) => "an object".into(),
    }
}
