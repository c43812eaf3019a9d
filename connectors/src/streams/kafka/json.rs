//! A JSON object as a record.

use std::borrow::Cow;

use base64::Engine as _;
use base64::alphabet;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};
use half::f16;
use serde_json::{Map, Value};

use super::columns::{Columns, IMAGES, ImageColumn};
use crate::labels::Raw;
use crate::settings::json_fault;
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
    label: impl FnOnce(Raw<'_>) -> Result<(), String>,
) -> Result<(), String> {
    let object: Map<String, Value> = serde_json::from_slice(bytes)
        .map_err(|error| format!("its value is not a JSON object: {}", json_fault(&error, bytes)))?;
    let image = match &columns.image {
        ImageColumn::None => None,
        ImageColumn::Named(name) => Some((name.as_str(), object.get(name))),
        ImageColumn::Usual => {
            let found = IMAGES.iter().find_map(|name| Some((*name, object.get(*name)?)));
            let Some((name, value)) = found else {
                return Err(format!("it has no image (looked for {})", IMAGES.join(", ")));
            };
            Some((name, Some(value)))
        }
    };
    if let Some((name, value)) = image {
        let Some(Value::String(text)) = value else {
            return Err(format!("its image {name:?} is {}; a text in base64 is expected", kind(value)));
        };
        base64_into(text, body).map_err(|error| format!("its image {name:?} is not base64: {error}"))?;
    }
    for field in &columns.fields {
        let value = object.get(&field.name);
        let mut left = field.shape.iter().product::<u64>();
        let end = body.len() + field.bytes();
        write(value.unwrap_or(&Value::Null), &field.shape, field, &mut left, body)?;
        debug_assert!(left == 0 && body.len() == end, "the shape was checked at every depth");
    }
    match columns.label.find(object.keys().map(String::as_str))? {
        Some(name) => label(Raw::json(&object[name])),
        None => Ok(()),
    }
}

/// Appends what a text in base64 says.
pub(super) fn base64_into(text: &str, body: &mut Vec<u8>) -> Result<(), base64::DecodeError> {
    // "data:image/png;base64,…" is how the web writes it.
    let text = match text.strip_prefix("data:") {
        Some(rest) => rest.split_once(";base64,").map_or(text, |(_, data)| data),
        None => text,
    };
    BASE64.decode_vec(standard(text).as_bytes(), body)
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
    let wrong = || {
        format!("its field {:?} is {}, which is not a valid {}", field.name, kind(Some(value)), field.dtype)
    };
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

/// Base64 without line breaks (as MIME has them), and with the letters of URLs as the usual ones.
fn standard(text: &str) -> Cow<'_, str> {
    let is_usual = |c: char| !c.is_ascii_whitespace() && c != '-' && c != '_';
    if text.chars().all(is_usual) {
        return text.into();
    }
    let letter = |c: char| match c {
        '-' => '+',
        '_' => '/',
        other => other,
    };
    text.chars().filter(|c| !c.is_ascii_whitespace()).map(letter).collect::<String>().into()
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;
    use serde_json::json;

    use crate::streams::kafka::value::{Parts, Values};

    fn values(config: Value) -> Values {
        let mut all = json!({"value": "json"});
        all.as_object_mut().unwrap().extend(config.as_object().unwrap().clone());
        Values::new(&serde_json::from_value(all).unwrap()).unwrap()
    }

    use serde_json::Value;

    fn record(config: Value, value: &str) -> Result<(i64, Arc<[u8]>), String> {
        let (label, body) = values(config).read(Parts { value: Some(value.as_bytes()), ..Parts::default() });
        body.map(|body| (label, body)).map_err(|why| why.to_string())
    }

    #[test]
    fn an_object_becomes_a_record() {
        let (label, body) = record(json!({}), r#"{"image": "aGVsbG8=", "label": 3, "other": {}}"#).unwrap();
        assert_eq!((label, &*body), (3, &b"hello"[..]));
        for text in ["aGVsbG8", "data:image/png;base64,aGVsbG8="] {
            let (label, body) = record(json!({}), &json!({"jpg": text, "Class": 4.0}).to_string()).unwrap();
            assert_eq!((label, &*body), (4, &b"hello"[..]));
        }
        for text in [
            "+/+/+/+/",
            "-_-_-_-_",
            "+/+/\r\n+/+/\n",
            " -_+/-_+/ ",
            "data:image/png;charset=x;base64,-_-_\n-_-_",
        ] {
            let (_, body) = record(json!({"label": ""}), &json!({ "jpg": text }).to_string()).unwrap();
            assert_eq!(&*body, [0xfb, 0xff, 0xbf, 0xfb, 0xff, 0xbf], "{text:?}");
        }
        let fields = json!({"fields": ["box[2,2]", "n:i16", "ok:bool", "h:f16", "id:u64"], "label": "kind", "classes": ["a", "b"]});
        let object = r#"{"box": [[1, 2.5], [-3, 4e2]], "n": -7.0, "ok": true, "h": 0.5, "id": 18446744073709551615, "kind": "b"}"#;
        let (label, body) = record(fields.clone(), object).unwrap();
        assert_eq!((label, body.len()), (1, values(fields.clone()).schema().fields_bytes()));
        assert_eq!(body[4..8], 2.5f32.to_le_bytes());
        assert_eq!(body[16..18], (-7i16).to_le_bytes());
        assert_eq!((body[18], &body[21..]), (1, &[0xff; 8][..]));
    }

    #[test]
    fn what_does_not_fit_is_a_bad_record_with_the_reason() {
        let image = json!({});
        let field = || json!({"fields": ["box[2]"]});
        let byte = || json!({"fields": ["n:u8"]});
        for (config, value, why) in [
            (image.clone(), "", "not a JSON object"),
            (image.clone(), "[1]", "not a JSON object"),
            (image.clone(), r#"{"label": 1}"#, "no image"),
            (image.clone(), r#"{"image": 5}"#, "\"image\" is 5"),
            (image.clone(), r#"{"image": "!!"}"#, "base64"),
            (image.clone(), r#"{"image": "", "label": 1.5}"#, "label is 1.5"),
            (image.clone(), r#"{"image": "", "label": "dog"}"#, "classes"),
            (image.clone(), r#"{"image": "", "label": [1]}"#, "label is a list"),
            (image.clone(), r#"{"image": "", "label": null}"#, "no label"),
            (image.clone(), r#"{"image": ""}"#, "looked for label, cls and the like"),
            (json!({"label": "kind"}), r#"{"image": ""}"#, "\"kind\""),
            (json!({"image": "photo"}), r#"{"image": ""}"#, "\"photo\" is missing"),
            (field(), r#"{"box": [1, 2, 3]}"#, "a list of 3 where 2"),
            (field(), r#"{"box": 1}"#, "is 1 where a list"),
            (field(), r#"{"box": [1, "2"]}"#, "a text"),
            (field(), r#"{}"#, "missing"),
            (byte(), r#"{"n": 256}"#, "256, which is not a valid u8"),
            (byte(), r#"{"n": -1}"#, "not a valid u8"),
            (byte(), r#"{"n": 1.5}"#, "not a valid u8"),
        ] {
            let found = record(config.clone(), value).unwrap_err();
            assert!(found.contains(why), "{config} {value}: {found}");
        }
        let deep = format!(r#"{{"image": {}{}}}"#, "[".repeat(100_000), "]".repeat(100_000));
        assert!(record(image, &deep).unwrap_err().contains("too deep"));
    }

    proptest! {
        #[test]
        fn no_bytes_are_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), text in "[\\[\\]{}\":,0-9a-z]{0,60}") {
            let values = values(json!({"fields": ["a[2]:i32"], "image": "image"}));
            for value in [&bytes[..], text.as_bytes()] {
                let (_, body) = values.read(Parts { value: Some(value), ..Parts::default() });
                if let Ok(body) = body {
                    prop_assert!(values.schema().cut(&body).is_some());
                }
            }
        }
    }
}
