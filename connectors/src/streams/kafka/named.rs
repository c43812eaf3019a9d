//! The named parts of a message.
//!
//! | part | what it is |
//! |---|---|
//! | `key`, `value` | the message's key and value as they are |
//! | `header:NAME` | the last header of this name |
//! | any other name, or `json:` and a path | a column of the value, or what lies inside one (`meta.caption`) |
//!
//! Nothing of a stream is known before it is read: rows of numbers are of the shape and type that were asked for (f32),
//! and what is not is a bad record.

use super::columns::read_field;
use super::config::{KafkaConfig, KafkaValue};
use super::json::base64_into;
use crate::arrow::array::{AsArray, RecordBatch};
use crate::schema::{wanted_numbers, wanted_parts};
use crate::sources::table::columns::{append_rows, bytes_at, numeric};
use crate::values::arrow::{self, Found};
use crate::values::json::{self, Members};
use crate::values::{fault, step};
use crate::{ElementType, FieldSpec, PartKind, PartSpec, SourceError, Wanted, WantedKind};

/// Parts and numbers of every record, as a pipeline asks for them.
#[derive(Debug, Default)]
pub(super) struct Named {
    parts: Vec<(PartSpec, Source)>,
    /// Each with its path in the value.
    fields: Vec<(FieldSpec, String)>,
    /// The headers that parts are in.
    headers: Vec<String>,
}

/// Where a part is.
#[derive(Debug)]
enum Source {
    Key,
    Value,
    /// Which of [`Named::headers`].
    Header(usize),
    /// At this path in the value.
    Inside(String),
}

/// The fields and the parts of a message.
pub(super) type Read = (Vec<u8>, Vec<Option<Vec<u8>>>);

/// The value of a message, opened.
pub(super) enum Opened<'message> {
    Image,
    Json(Members<'message>),
    Arrow(RecordBatch),
}

impl Named {
    pub fn new(config: &KafkaConfig) -> Result<Self, SourceError> {
        let mut named = Self::default();
        for wanted in wanted_parts(&config.deliver) {
            let part = named.part(wanted, config.value)?;
            named.parts.push(part);
        }
        for wanted in wanted_numbers(&config.deliver) {
            if config.value == KafkaValue::Image {
                return Err(SourceError::config(no_columns(wanted)));
            }
            let spec = read_field(wanted)?;
            let path = spec.name.strip_prefix("json:").unwrap_or(&spec.name).to_owned();
            named.fields.push((FieldSpec { name: wanted.to_owned(), ..spec }, path));
        }
        Ok(named)
    }

    fn part(&mut self, wanted: &Wanted, value: KafkaValue) -> Result<(PartSpec, Source), SourceError> {
        let name = &wanted.part;
        let refuse = |why: String| Err(SourceError::config(why));
        let source = match (name.as_str(), name.strip_prefix("header:")) {
            ("key", _) => Source::Key,
            ("value", _) => Source::Value,
            (_, Some("")) => return refuse("the part \"header:\" names no header".into()),
            (_, Some(header)) => {
                let known = self.headers.iter().position(|other| other == header);
                Source::Header(known.unwrap_or_else(|| {
                    self.headers.push(header.to_owned());
                    self.headers.len() - 1
                }))
            }
            _ if value == KafkaValue::Image => return refuse(no_columns(name)),
            _ => Source::Inside(name.strip_prefix("json:").unwrap_or(name).to_owned()),
        };
        if matches!(source, Source::Value) && value == KafkaValue::Arrow && wanted.kind != WantedKind::Bytes {
            return refuse(
                "the part \"value\" is an Arrow message, which is bytes; ask for a column of it".into(),
            );
        }
        let row = match (wanted.kind, &wanted.row) {
            (WantedKind::Ragged, None) => {
                return refuse(format!(
                    "the part {name:?}: the shape of its rows is not known before a stream is read; give it \
                     (row), () for single numbers"
                ));
            }
            (_, row) => row.as_deref().unwrap_or_default(),
        };
        Ok((wanted.spec(wanted.dtype.unwrap_or(ElementType::F32), row), source))
    }

    pub fn is_empty(&self) -> bool {
        self.parts.is_empty() && self.fields.is_empty()
    }

    pub fn headers(&self) -> &[String] {
        &self.headers
    }

    pub fn parts(&self) -> Vec<PartSpec> {
        self.parts.iter().map(|(spec, _)| spec.clone()).collect()
    }

    pub fn fields(&self) -> Vec<FieldSpec> {
        self.fields.iter().map(|(spec, _)| spec.clone()).collect()
    }

    /// The fields and the parts of a message.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn read(&self, message: super::value::Parts<'_>, opened: &Opened<'_>) -> Result<Read, String> {
        let mut fields = Vec::new();
        for (spec, path) in &self.fields {
            let bytes = number(opened, path, spec);
            fields.extend(bytes.map_err(|why| format!("its field {:?} {why}", spec.name))?);
        }
        let mut parts = Vec::with_capacity(self.parts.len());
        for (spec, source) in &self.parts {
            let made = match source {
                Source::Key => outside(message.key, &spec.kind),
                Source::Value => outside(message.value, &spec.kind),
                Source::Header(at) => outside(message.headers.get(*at).copied().flatten(), &spec.kind),
                Source::Inside(path) => inside(opened, path, &spec.kind),
            };
            parts.push(made.map_err(|why| fault(&spec.name, &why))?);
        }
        Ok((fields, parts))
    }
}

fn no_columns(name: &str) -> String {
    format!(
        "the part {name:?} would be a column of the value, and the value of a message is an image; its parts are \
         \"key\", \"value\" and \"header:NAME\", and with value=\"json\" or \"arrow\" its columns"
    )
}

/// A part that is all of these bytes.
fn outside(bytes: Option<&[u8]>, kind: &PartKind) -> Result<Option<Vec<u8>>, String> {
    let (PartKind::Ragged { .. }, Some(text)) = (kind, bytes) else { return Ok(bytes.map(<[u8]>::to_vec)) };
    let text = std::str::from_utf8(text).ok().filter(|text| json::is_valid(text));
    Ok(json::value(text.ok_or("is not a list of numbers in JSON")?, kind)?.map(Into::into))
}

/// A part that is at a path in the value.
fn inside(opened: &Opened<'_>, path: &str, kind: &PartKind) -> Result<Option<Vec<u8>>, String> {
    match opened {
        Opened::Image => Ok(None),
        Opened::Json(members) => {
            let Some(text) = json::find_in(members, path)? else { return Ok(None) };
            let value = json::value(text, kind)?;
            let (PartKind::Image, Some(text)) = (kind, &value) else { return Ok(value.map(Into::into)) };
            let mut image = Vec::new();
            let text = std::str::from_utf8(text).map_err(|_| "is not UTF-8")?;
            base64_into(text, &mut image).map_err(|error| format!("is not base64: {error}"))?;
            Ok(Some(image))
        }
        Opened::Arrow(row) => {
            let Some((name, rest)) = step(path, |name| row.column_by_name(name).is_some()) else {
                return Ok(None);
            };
            let array = row.column_by_name(name).expect("it was found").as_ref();
            let found = arrow::find(array, 0, rest)?;
            if let (PartKind::Image, Found::Row(array, at)) = (kind, &found)
                && let Some(parts) = array.as_struct_opt()
            {
                let bytes = parts.column_by_name("bytes").and_then(|bytes| bytes_at(bytes.as_ref(), *at));
                return Ok(bytes.map(<[u8]>::to_vec));
            }
            if let (PartKind::Ragged { dtype, row }, Found::Row(array, _)) = (kind, &found)
                && let Some((found, shape)) = numeric(array.data_type())
                && !shape.is_empty()
                && (found != *dtype || shape.len() != row.len() + 1)
            {
                return Err(format!(
                    "holds lists of {found} in {} dimensions, and lists of {dtype} in {} are expected; say \
                     dtype={found}, and the shape of a row (row)",
                    shape.len(),
                    row.len() + 1
                ));
            }
            Ok(arrow::value(array, 0, rest, kind)?.map(Into::into))
        }
    }
}

/// Numbers of one shape at a path in the value.
fn number(opened: &Opened<'_>, path: &str, spec: &FieldSpec) -> Result<Vec<u8>, String> {
    match opened {
        Opened::Image => Err("is missing".into()),
        Opened::Json(members) => {
            json::fixed(json::find_in(members, path)?.ok_or("is missing")?, spec.dtype, &spec.shape)
        }
        Opened::Arrow(row) => {
            let found = step(path, |name| row.column_by_name(name).is_some());
            let (name, rest) = found.ok_or("is missing")?;
            let array = row.column_by_name(name).expect("it was found").as_ref();
            match arrow::find(array, 0, rest)? {
                Found::None => Err("is null".into()),
                Found::Json(text) => json::fixed(text, spec.dtype, &spec.shape),
                Found::Row(array, at) => {
                    match numeric(array.data_type()) {
                        Some((found, shape)) if found == spec.dtype && shape.len() == spec.shape.len() => {}
                        Some((found, _)) => {
                            return Err(format!(
                                "is of type {} and not {} of shape {:?}; say its type (\":{found}\") and shape",
                                array.data_type(),
                                spec.dtype,
                                spec.shape
                            ));
                        }
                        None => {
                            return Err(format!("is of type {}, which is not a number", array.data_type()));
                        }
                    }
                    let mut bytes = Vec::with_capacity(spec.bytes());
                    append_rows(array, at, 1, &spec.shape, &mut bytes)?;
                    Ok(bytes)
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;
    use serde_json::json;

    use super::super::value::{Parts, Values};
    use super::*;
    use crate::arrow::array::{
        ArrayRef, BinaryArray, Float64Array, Int64Array, ListArray, StringArray, StructArray,
    };
    use crate::arrow::datatypes::{DataType, Field, Fields, Float64Type};
    use crate::arrow::ipc::writer::StreamWriter;

    fn values(config: serde_json::Value) -> Result<Values, String> {
        let mut all = json!({"label": ""});
        all.as_object_mut().unwrap().extend(config.as_object().unwrap().clone());
        Values::new(&serde_json::from_value(all).unwrap()).map_err(|error| error.to_string())
    }

    fn wanted(part: &str, kind: &str) -> serde_json::Value {
        json!({"part": part, "kind": kind})
    }

    /// What is cut out of a record.
    type Found = (Vec<u8>, Vec<Option<Vec<u8>>>, Vec<u8>);

    /// The image, the parts and the fields.
    fn read(values: &Values, parts: Parts<'_>) -> Result<Found, String> {
        let (_, body) = values.read(parts);
        let body = body.map_err(|why| why.to_string())?;
        let schema = values.schema();
        let cut = schema.cut(&body).expect("a record of the schema");
        let own = |part: Option<&[u8]>| part.map(<[u8]>::to_vec);
        Ok((cut.image.to_vec(), cut.parts.into_iter().map(own).collect(), cut.fields.to_vec()))
    }

    fn some(text: &str) -> Option<Vec<u8>> {
        Some(text.as_bytes().to_vec())
    }

    #[test]
    fn key_value_and_headers_are_parts_beside_an_image() {
        let config = json!({"deliver": [
            wanted("header:caption", "text"), wanted("", "image"), wanted("key", "bytes"), wanted("value", "bytes"),
            wanted("header:meta", "json"), {"part": "header:box", "kind": "ragged", "dtype": "u8", "row": []},
        ]});
        let values = values(config).unwrap();
        assert_eq!(values.part_headers(), ["caption", "meta", "box"]);
        let headers = [Some(&b"a cat"[..]), None, Some(b"[1, 2]")];
        let parts = Parts { key: None, value: Some(b"jpeg"), header: None, headers: &headers };
        let expected = vec![some("a cat"), None, some("jpeg"), None, Some(vec![1, 2])];
        assert_eq!(read(&values, parts), Ok((b"jpeg".to_vec(), expected, vec![])));
        let headers = [None, None, Some(&b"[1, 256]"[..])];
        let why = read(&values, Parts { headers: &headers, ..parts }).unwrap_err();
        assert_eq!(why, "part \"header:box\": it has 256 in it, which is not a valid u8");
    }

    #[test]
    fn what_lies_inside_json_is_a_part_as_it_is_written() {
        let config = json!({"value": "json", "deliver": [
            wanted("meta.caption", "text"), wanted("json:meta", "json"), wanted("mask", "image"),
            {"part": "boxes", "kind": "ragged", "row": [2]}, wanted("size[2]:i16", "numbers"),
            wanted("meta.age", "numbers"), wanted("", "image"), wanted("value", "json"),
        ]});
        let values = values(config).unwrap();
        let value = r#"{"image": "aGk=", "meta": {"caption": "\u00e9", "age": 7}, "mask": "bWFzaw", "boxes": [[1, 2.5]],
            "size": [3, 4]}"#;
        let (image, parts, fields) =
            read(&values, Parts { value: Some(value.as_bytes()), ..Parts::default() }).unwrap();
        let boxes = [1f32, 2.5].iter().flat_map(|number| number.to_le_bytes()).collect();
        let meta = some(r#"{"caption": "\u00e9", "age": 7}"#);
        assert_eq!(image, b"hi");
        assert_eq!(parts, [some("é"), meta, some("mask"), Some(boxes), some(value)]);
        assert_eq!(fields, [&[3, 0, 4, 0][..], &7f32.to_le_bytes()].concat());
        let with = |from: &str, to: &str| {
            let value = value.replace(from, to);
            read(&values, Parts { value: Some(value.as_bytes()), ..Parts::default() })
        };
        assert_eq!(with("\"mask\": \"bWFzaw\"", "\"mask\": null").unwrap().1[2], None);
        for (from, to, why) in [
            ("\"bWFzaw\"", "\"!\"", "part \"mask\": it is not base64"),
            ("\"bWFzaw\"", "5", "part \"mask\": it is a number"),
            ("\"\\u00e9\"", "[]", "part \"meta.caption\": it is a list; text is expected"),
            ("[[1, 2.5]]", "[[1]]", "part \"boxes\": it has a list of 1 where 2"),
            ("[3, 4]", "[3, 40000]", "its field \"size[2]:i16\" has 40000"),
            ("\"age\": 7", "\"a\": 7", "its field \"meta.age\" is missing"),
        ] {
            let found = with(from, to).unwrap_err();
            assert!(found.contains(why), "{to}: {found}");
        }
    }

    #[test]
    fn columns_of_an_arrow_row_are_parts() {
        let scores = ListArray::from_iter_primitive::<Float64Type, _, _>([Some([Some(0.5), Some(1.5)])]);
        let fields = Fields::from(vec![Field::new("caption", DataType::Utf8, true)]);
        let meta = StructArray::new(fields, vec![Arc::new(StringArray::from(vec!["a cat"]))], None);
        let image = Fields::from(vec![Field::new("bytes", DataType::Binary, true)]);
        let image = StructArray::new(image, vec![Arc::new(BinaryArray::from_vec(vec![b"png"]))], None);
        let columns: Vec<(&str, ArrayRef)> = vec![
            ("meta", Arc::new(meta)),
            ("scores", Arc::new(scores)),
            ("mask", Arc::new(image)),
            ("age", Arc::new(Int64Array::from(vec![7]))),
            ("x", Arc::new(Float64Array::from(vec![0.5]))),
        ];
        let row = RecordBatch::try_from_iter(columns).unwrap();
        let mut writer = StreamWriter::try_new(Vec::new(), &row.schema()).unwrap();
        writer.write(&row).unwrap();
        let bytes = writer.into_inner().unwrap();
        let list = json!({"part": "scores", "kind": "ragged", "dtype": "f64", "row": []});
        let parts = |deliver: serde_json::Value| {
            let values = values(json!({"value": "arrow", "deliver": deliver})).unwrap();
            read(&values, Parts { value: Some(&bytes), ..Parts::default() })
        };
        let all = json!([
            wanted("meta.caption", "text"),
            wanted("meta", "json"),
            list,
            wanted("mask", "image"),
            wanted("nowhere", "text"),
            wanted("age:i64", "numbers")
        ]);
        let scores = [0.5f64, 1.5].iter().flat_map(|number| number.to_le_bytes()).collect();
        let expected = vec![some("a cat"), some(r#"{"caption":"a cat"}"#), Some(scores), some("png"), None];
        assert_eq!(parts(all), Ok((vec![], expected, 7i64.to_le_bytes().to_vec())));
        for (wanted, why) in [
            (json!({"part": "scores", "kind": "ragged", "row": []}), "say dtype=f64"),
            (json!({"part": "scores", "kind": "ragged", "dtype": "f64", "row": [2]}), "the shape of a row"),
            (wanted("age", "text"), "part \"age\": it is of type Int64"),
            (wanted("age", "numbers"), "say its type (\":i64\")"),
            (wanted("nowhere", "numbers"), "is missing"),
        ] {
            let found = parts(json!([wanted])).unwrap_err();
            assert!(found.contains(why), "{wanted}: {found}");
        }
    }

    #[test]
    fn what_can_never_be_a_part_is_refused() {
        for (config, why) in [
            (json!({"deliver": [wanted("caption", "text")]}), "\"header:NAME\""),
            (json!({"deliver": [wanted("age", "numbers")]}), "\"header:NAME\""),
            (json!({"deliver": [wanted("header:", "text")]}), "names no header"),
            (json!({"deliver": [wanted("header:box", "ragged")]}), "give it (row)"),
            (json!({"value": "json", "deliver": [wanted("box", "ragged")]}), "give it (row)"),
            (json!({"value": "arrow", "deliver": [wanted("value", "text")]}), "ask for a column"),
            (json!({"value": "json", "image": "", "deliver": [wanted("", "image")]}), "image is \"\""),
            (json!({"deliver": []}), "nothing"),
        ] {
            let found = values(config.clone()).unwrap_err();
            assert!(found.contains(why), "{config}: {found}");
        }
    }

    proptest! {
        #[test]
        fn no_message_is_a_panic(
            bytes in prop::collection::vec(any::<u8>(), 0..60), text in "[\\[\\]{}\":,0-9a-c]{0,60}",
        ) {
            let deliver = json!([wanted("a.b", "text"), wanted("value", "bytes"), wanted("b", "image"),
                {"part": "c", "kind": "ragged", "row": [2]}, {"part": "header:a", "kind": "ragged", "row": []}]);
            for kind in ["json", "arrow"] {
                let values = values(json!({"value": kind, "deliver": deliver.clone()})).unwrap();
                for value in [&bytes[..], text.as_bytes()] {
                    let headers = [Some(value)];
                    let parts = Parts { key: None, value: Some(value), header: None, headers: &headers };
                    let _ = read(&values, parts);
                }
            }
        }
    }
}
