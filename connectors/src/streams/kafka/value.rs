//! From a message to a record: its label and its bytes, or why it is a bad one.
//!
//! | value | body | label |
//! |---|---|---|
//! | `image` | the value, unseen: the decoder judges it | header, key |
//! | `json` | an object's base64 image, then its numbers | column, header |
//! | `arrow` | a row's image, then its numbers | column, header |
//!
//! Where a pipeline asks for named parts ([`super::named`]), they stand between image and numbers.
//!
//! Nothing here depends on anything but the message, so a record that is bad is bad at every attempt.

use std::sync::Arc;

use super::columns::{Columns, ImageColumn, LabelColumn, read_field};
use super::config::{KafkaConfig, KafkaValue};
use super::named::{Named, Opened};
use super::{arrow, json};
use crate::labels::{Known, MISSING, Raw};
use crate::recognised::{self, Recognised};
use crate::schema::wants_image;
use crate::values::json::members;
use crate::{Schema, SourceError};

/// Where a label is looked for when nothing is said.
const LABEL: &str = "label";

/// What a message holds, as far as it matters here.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Parts<'message> {
    pub key: Option<&'message [u8]>,
    pub value: Option<&'message [u8]>,
    /// The header that [`Values::header`] asks for: whether there is one, and whether it has a value.
    pub header: Option<Option<&'message [u8]>>,
    /// Those that [`Values::part_headers`] asks for.
    pub headers: &'message [Option<&'message [u8]>],
}

/// How messages become records.
#[derive(Debug)]
pub(super) struct Values {
    kind: KafkaValue,
    label: Label,
    classes: Known,
    columns: Columns,
    named: Named,
    schema: Schema,
    limit: u64,
}

/// Where the label is.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Label {
    None,
    Key,
    Header(String),
    Column(LabelColumn),
}

/// What a record is made of.
pub(super) type Body = Result<Arc<[u8]>, Arc<str>>;

impl Values {
    pub(super) fn new(config: &KafkaConfig) -> Result<Self, SourceError> {
        let refuse = |text: String| Err(SourceError::config(text));
        let kind = config.value;
        let label = match config.label.as_deref() {
            Some("") => Label::None,
            Some(text) => match text.strip_prefix("header:") {
                Some("") => {
                    return refuse(
                        "label is \"header:\" without a name; \"header:label\" is the default".into(),
                    );
                }
                Some(name) => Label::Header(name.to_owned()),
                None if kind == KafkaValue::Image && text == "key" => Label::Key,
                None if kind == KafkaValue::Image => {
                    return refuse(format!(
                        "label is {text:?}; for a message whose value is an image it is \"key\", \
                         \"header:NAME\", or \"\" for none"
                    ));
                }
                None => Label::Column(LabelColumn::Named(text.to_owned())),
            },
            None if kind == KafkaValue::Image => Label::Header(LABEL.into()),
            None => Label::Column(LabelColumn::Usual),
        };
        if kind == KafkaValue::Image {
            for (name, given) in [("image", config.image.is_some()), ("fields", config.fields.is_some())] {
                if given {
                    return refuse(format!(
                        "{name} names a column, but the value of a message is an image; set value to \"json\" or \"arrow\", or \
                         leave it out"
                    ));
                }
            }
        }
        let fields =
            config.fields.iter().flatten().map(|field| read_field(field)).collect::<Result<Vec<_>, _>>()?;
        let image = match (kind, config.image.as_deref()) {
            (KafkaValue::Image, _) => ImageColumn::None,
            _ if !wants_image(&config.deliver) => ImageColumn::None,
            (_, Some("")) if config.deliver.is_some() => {
                return refuse(
                    "image is \"\", for none, and a field of the pipeline asks for the image".into(),
                );
            }
            (_, Some("")) => ImageColumn::None,
            (_, Some(name)) => ImageColumn::Named(name.to_owned()),
            (_, None) if config.fields.is_some() => ImageColumn::None,
            (_, None) => ImageColumn::Usual,
        };
        let classes = Known::new(config.classes.as_deref().unwrap_or_default())?;
        if label == Label::None && config.classes.is_some() {
            return refuse(
                "classes are given, but label is \"\"; name where the label is, or leave out classes".into(),
            );
        }
        let column = match &label {
            Label::Column(column) => column.clone(),
            _ => LabelColumn::None,
        };
        let has_image = match kind {
            KafkaValue::Image => wants_image(&config.deliver),
            _ => image != ImageColumn::None,
        };
        let named = Named::new(config)?;
        let all = fields.iter().cloned().chain(named.fields()).collect();
        let schema = Schema { image: has_image, parts: named.parts(), fields: all };
        schema.check_for(&config.deliver, label != Label::None).map_err(SourceError::config)?;
        let columns = Columns { image, label: column, fields };
        Ok(Self { kind, label, classes, columns, named, schema, limit: config.max_record_bytes() })
    }

    /// What is looked for in a message.
    pub(super) fn recognised(&self) -> Recognised {
        let mut recognised = Recognised::default();
        recognised.note(match &self.columns.image {
            _ if self.kind == KafkaValue::Image && self.schema.image => "image = value".into(),
            ImageColumn::None => "no image".into(),
            ImageColumn::Named(name) => format!("image = {name:?} in the value"),
            ImageColumn::Usual => "image = found by name in each value".into(),
        });
        let place = match &self.label {
            Label::None => None,
            Label::Key => Some("key".to_owned()),
            Label::Header(name) => Some(format!("header {name:?}")),
            Label::Column(LabelColumn::Named(name)) => Some(format!("{name:?} in the value")),
            Label::Column(_) => Some("found by name in each value".into()),
        };
        recognised.note(recognised::label(place.as_deref(), &self.classes.names));
        recognised
    }

    pub(super) fn schema(&self) -> Schema {
        self.schema.clone()
    }

    /// The headers that named parts are in.
    pub(super) fn part_headers(&self) -> &[String] {
        self.named.headers()
    }

    pub(super) fn classes(&self) -> &[String] {
        &self.classes.names
    }

    pub(super) fn is_labelled(&self) -> bool {
        self.label != Label::None
    }

    /// The header that holds the label.
    pub(super) fn header(&self) -> Option<&str> {
        match &self.label {
            Label::Header(name) => Some(name),
            _ => None,
        }
    }

    /// The label and the body of a message. The label of a bad record is 0.
    pub(super) fn read(&self, parts: Parts<'_>) -> (i64, Body) {
        match self.try_read(parts) {
            Ok((label, body)) => (label, Ok(body)),
            Err(why) => (0, Err(why.into())),
        }
    }

    fn try_read(&self, parts: Parts<'_>) -> Result<(i64, Arc<[u8]>), String> {
        let Some(value) = parts.value else {
            return Err("it has no value (a tombstone)".into());
        };
        if value.len() as u64 > self.limit {
            return Err(format!("it has {} bytes; max_record_bytes allows {}", value.len(), self.limit));
        }
        let outside = match &self.label {
            Label::None => Some(0),
            Label::Key => match parts.key {
                Some(key) => Some(label_of(Raw::bytes(key), &self.classes)?),
                None => return Err("it has no key, which is its label".into()),
            },
            Label::Header(name) => match parts.header.flatten() {
                Some(header) => Some(label_of(Raw::bytes(header), &self.classes)?),
                None => {
                    return Err(format!(
                        "it has no header {name:?}, which is its label; if messages have none, set label=None"
                    ));
                }
            },
            Label::Column(_) => None,
        };
        if self.kind == KafkaValue::Image {
            let body = if self.named.is_empty() {
                value.into()
            } else {
                self.joined(if self.schema.image { value } else { &[] }, parts, &Opened::Image)?
            };
            return Ok((outside.unwrap_or(0), body));
        }
        let mut body = Vec::new();
        let mut inside = None;
        let label = |raw: Raw<'_>| {
            inside = Some(label_of(raw, &self.classes)?);
            Ok(())
        };
        let opened = match self.kind {
            KafkaValue::Json => {
                json::read(value, &self.columns, &mut body, label)?;
                // What is an object is text.
                let text = std::str::from_utf8(value).unwrap_or_default();
                Opened::Json((!self.named.is_empty()).then(|| members(text)).flatten().unwrap_or_default())
            }
            _ => {
                let row = arrow::open(value, self.limit)?;
                arrow::read(&row, &self.columns, &mut body, label)?;
                Opened::Arrow(row)
            }
        };
        let body = if self.named.is_empty() { body.into() } else { self.joined(&body, parts, &opened)? };
        Ok((outside.or(inside).unwrap_or(0), body))
    }

    /// A record with named parts.
    fn joined(&self, image: &[u8], message: Parts<'_>, opened: &Opened<'_>) -> Result<Arc<[u8]>, String> {
        let (fields, parts) = self.named.read(message, opened)?;
        let schema = &self.schema;
        let size = schema.record_bytes(image.len(), parts.iter().map(|part| part.as_ref().map(Vec::len)));
        let mut record = vec![0; size];
        schema.join(image, parts.iter().map(Option::as_deref), &fields, &mut record);
        Ok(record.into())
    }
}

/// The label that a value means.
fn label_of(raw: Raw<'_>, classes: &Known) -> Result<i64, String> {
    match raw {
        Raw::Number(number) if classes.names.is_empty() => Ok(number),
        Raw::Number(number) => classes.number(number),
        Raw::Text(text) if !classes.names.is_empty() => classes.label(text),
        Raw::Text(text) => match text.parse::<f64>().map(Raw::float) {
            Ok(Raw::Number(number)) => Ok(number),
            _ => {
                let shown: String = text.chars().take(40).collect();
                Err(format!(
                    "its label {shown:?} is a text; list the classes (classes=[…]) to map texts to numbers"
                ))
            }
        },
        Raw::Missing => Err(MISSING.into()),
        Raw::Fraction(number) => {
            Err(format!("its label is {number}; a whole number or a class name is expected"))
        }
        Raw::Wrong(why) => Err(format!("{why}; a whole number or a class name is expected")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(config: serde_json::Value) -> Result<Values, String> {
        Values::new(&serde_json::from_value(config).unwrap()).map_err(|error| error.to_string())
    }

    #[test]
    fn an_image_is_passed_on_unseen_with_its_label() {
        let parts = Parts { key: Some(b"7"), value: Some(b"jpeg"), header: Some(Some(b"3")), headers: &[] };
        let read = |config, parts| {
            let (label, body) = values(config).unwrap().read(parts);
            body.map(|body| (label, body.to_vec())).map_err(|why| why.to_string())
        };
        assert_eq!(read(serde_json::json!({}), parts), Ok((3, b"jpeg".to_vec())));
        assert_eq!(read(serde_json::json!({"label": "key"}), parts), Ok((7, b"jpeg".to_vec())));
        assert_eq!(read(serde_json::json!({"label": ""}), parts), Ok((0, b"jpeg".to_vec())));
        let bare = Parts { value: Some(b""), ..Parts::default() };
        assert_eq!(read(serde_json::json!({"label": null}), bare), Ok((0, Vec::new())));
        let named = serde_json::json!({"label": "header:class", "classes": ["cat", "3"]});
        assert_eq!(values(named.clone()).unwrap().header(), Some("class"));
        assert_eq!(read(named.clone(), parts), Ok((1, b"jpeg".to_vec())));
        let cat = Parts { header: Some(Some(b"cat")), ..parts };
        assert_eq!(read(named.clone(), cat), Ok((0, b"jpeg".to_vec())));

        for (config, parts, why) in [
            (serde_json::json!({}), Parts { value: None, ..parts }, "tombstone"),
            (serde_json::json!({"max_record_bytes": 3}), parts, "4 bytes"),
            (named.clone(), bare, "no header \"class\""),
            (named.clone(), Parts { header: Some(None), ..parts }, "no header \"class\""),
            (named.clone(), Parts { header: Some(Some(b"dog")), ..parts }, "not one of the 2"),
            (named, Parts { header: Some(Some(b"2")), ..parts }, "its label is 2, but there are 2 classes"),
            (
                serde_json::json!({}),
                bare,
                "it has no header \"label\", which is its label; if messages have none",
            ),
            (serde_json::json!({"label": "key"}), Parts { key: None, ..parts }, "no key"),
            (serde_json::json!({"label": "key"}), Parts { key: Some(b"dog"), ..parts }, "list the classes"),
            (serde_json::json!({"label": "key"}), Parts { key: Some(&[0xff]), ..parts }, "UTF-8"),
        ] {
            let found = read(config.clone(), parts).unwrap_err();
            assert!(found.contains(why), "{config}: {found}");
        }
    }

    #[test]
    fn a_configuration_that_cannot_be_meant_is_refused() {
        for (config, why) in [
            (serde_json::json!({"label": "class"}), "header:NAME"),
            (serde_json::json!({"label": "header:"}), "without a name"),
            (serde_json::json!({"image": "photo"}), "value"),
            (serde_json::json!({"fields": ["a"]}), "value"),
            (serde_json::json!({"classes": ["a", "a"]}), "twice"),
            (serde_json::json!({"classes": ["a"], "label": ""}), "classes"),
            (serde_json::json!({"value": "json", "fields": ["a[0]"]}), "a[0]"),
            (serde_json::json!({"value": "json", "fields": ["a:f99"]}), "f99"),
            (serde_json::json!({"value": "json", "fields": ["*"]}), "no name"),
            (serde_json::json!({"value": "json", "fields": ["a", "a"]}), "twice"),
            (serde_json::json!({"value": "json", "fields": ["label"]}), "label"),
            (serde_json::json!({"value": "json", "fields": []}), "nothing"),
        ] {
            let found = values(config.clone()).unwrap_err();
            assert!(found.contains(why), "{config}: {found}");
        }
    }
}
