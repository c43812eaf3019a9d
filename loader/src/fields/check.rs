//! What can be said of a list of fields before the source is open.

use fuelrail_connectors::{Wanted, WantedKind};
use fuelrail_transforms::MAX_VIEWS;

use super::{FieldConfig, MAX_CAP, Missing, NumbersField, Overflow, ViewsField, output};
use crate::config::PipelineConfig;
use crate::layout::Column;

/// Checks what can be checked of fields before the source is open.
///
/// # Errors
/// A sentence with the field.
pub fn check(config: &PipelineConfig) -> Result<(), String> {
    let Some(fields) = &config.fields else {
        return fuelrail_transforms::check(&config.transforms, &output(config))
            .map_err(|error| error.to_string());
    };
    if !config.transforms.is_empty() {
        return Err(
            "transforms and fields are both given: put the transforms into the field of their image, as \
                    {\"type\": \"Image\", \"name\": \"image\", \"transforms\": [...]}"
                .into(),
        );
    }
    if fields.is_empty() {
        return Err("fields is an empty list: a batch would hold nothing".into());
    }
    for (at, field) in fields.iter().enumerate() {
        let checked = name(field, &fields[..at]).and_then(|()| arguments(field, fields, config));
        checked.map_err(|why| format!("field {:?}: {why}", field.name()))?;
    }
    one_kind_of_rows(fields)
}

fn name(field: &FieldConfig, before: &[FieldConfig]) -> Result<(), String> {
    let name = field.name();
    if name.is_empty() || name.contains(|letter: char| letter.is_control()) {
        return Err("a field needs a name".into());
    }
    if Column::ALL.iter().any(|column| column.name() == name) {
        return Err("every batch has a field of this name already; choose another one".into());
    }
    if before.iter().any(|other| other.name() == name) {
        return Err("two fields have this name".into());
    }
    if field.wanted().is_some_and(|wanted| wanted.part.is_empty() && !wanted.is_own_image()) {
        return Err("its part is empty; say where the source has it".into());
    }
    Ok(())
}

fn arguments(field: &FieldConfig, fields: &[FieldConfig], config: &PipelineConfig) -> Result<(), String> {
    let chain = |transforms: &[_]| {
        fuelrail_transforms::check(transforms, &output(config)).map_err(|error| error.to_string())
    };
    match field {
        FieldConfig::Image(of) => chain(&of.transforms),
        FieldConfig::Views(ViewsField { n, .. }) if !(1..=MAX_VIEWS).contains(n) => {
            Err(format!("n = {n} is not between 1 and {MAX_VIEWS}"))
        }
        FieldConfig::Views(of) => chain(&of.transforms),
        FieldConfig::Mask(of) => is_image(&of.like, fields),
        FieldConfig::Geometry(of) => is_image(&of.of, fields),
        FieldConfig::Text(of) | FieldConfig::Bytes(of) | FieldConfig::Json(of) => {
            if !(1..=MAX_CAP).contains(&of.max_bytes) {
                return Err(format!("max_bytes = {} is not between 1 and {MAX_CAP}", of.max_bytes));
            }
            if matches!(field, FieldConfig::Json(_)) && of.overflow == Overflow::Cut {
                return Err(
                    "cut JSON is not valid JSON: overflow = \"cut\" is for Text, Bytes and Numbers".into()
                );
            }
            Ok(())
        }
        FieldConfig::Numbers(of) => numbers(of, fields),
        FieldConfig::Boxes(of) => {
            room(Some(of.max_rows))?;
            is_image(&of.like, fields)
        }
        FieldConfig::Keypoints(of) => {
            room(of.max_rows)?;
            if is_boxes(&of.like, fields) { Ok(()) } else { is_image(&of.like, fields) }
        }
    }
}

fn room(rows: Option<u64>) -> Result<(), String> {
    match rows {
        Some(rows) if !(1..=MAX_CAP).contains(&rows) => {
            Err(format!("max_rows = {rows} is not between 1 and {MAX_CAP}"))
        }
        _ => Ok(()),
    }
}

fn is_boxes(of: &str, fields: &[FieldConfig]) -> bool {
    fields.iter().any(|other| matches!(other, FieldConfig::Boxes(_)) && other.name() == of)
}

fn numbers(of: &NumbersField, fields: &[FieldConfig]) -> Result<(), String> {
    room(of.max_rows)?;
    if let Some(like) = &of.like {
        if !is_boxes(like, fields) {
            return Err(format!(
                "like = {like:?} does not name a field of type Boxes, whose rows these would follow"
            ));
        }
        if of.max_rows.is_some() || of.overflow != Overflow::Bad {
            return Err("max_rows and overflow are those of the boxes that it follows; leave them out".into());
        }
        return Ok(());
    }
    match of.max_rows {
        None if of.row.is_some() || of.overflow != Overflow::Bad || of.missing != Missing::Bad => {
            Err("row, overflow and missing apply only to numbers with a varying number of rows: set max_rows"
                .into())
        }
        _ => Ok(()),
    }
}

/// The field that a mask or a geometry follows.
fn is_image(of: &str, fields: &[FieldConfig]) -> Result<(), String> {
    match fields.iter().find(|other| other.name() == of) {
        Some(FieldConfig::Image(_)) => Ok(()),
        Some(other) => {
            Err(format!("it follows {of:?}, which is of type {}; name a field of type Image", other.kind()))
        }
        None => {
            let images = fields.iter().filter(|other| matches!(other, FieldConfig::Image(_)));
            let names: Vec<_> = images.map(|other| format!("{:?}", other.name())).collect();
            let names = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
            Err(format!("it follows the field {of:?}, which does not exist; the image fields are: {names}"))
        }
    }
}

/// A source delivers the rows of a part once, so two fields of it ask for the same.
fn one_kind_of_rows(fields: &[FieldConfig]) -> Result<(), String> {
    let wanted = fields.iter().filter_map(FieldConfig::wanted);
    let rows: Vec<Wanted> = wanted.filter(|wanted| wanted.kind == WantedKind::Ragged).collect();
    let differs = |a: &Wanted, b: &Wanted| a.part == b.part && (a.dtype, &a.row) != (b.dtype, &b.row);
    match rows.iter().find(|a| rows.iter().any(|b| differs(a, b))) {
        None => Ok(()),
        Some(one) => {
            Err(format!("two fields ask for the numbers of part {:?} with different dtype or row", one.part))
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn checked(fields: serde_json::Value) -> Result<(), String> {
        let source = json!({"type": "folder", "root": "/data"});
        check(&PipelineConfig::from_json(json!({"source": source, "fields": fields})).unwrap())
    }

    #[test]
    fn two_fields_of_one_part_may_differ_in_what_becomes_of_a_record_without_it() {
        let numbers = |name: &str, more: serde_json::Value| {
            let mut field = json!({"type": "Numbers", "name": name, "part": "json:a", "max_rows": 3});
            field.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            field
        };
        let pair = |more| checked(json!([numbers("a", json!({})), numbers("b", more)]));
        pair(json!({"missing": "empty", "max_rows": 4})).unwrap();
        assert!(pair(json!({"dtype": "i64"})).unwrap_err().contains("different dtype or row"));
        assert!(pair(json!({"row": [4]})).unwrap_err().contains("different dtype or row"));
    }

    #[test]
    fn columns_of_a_batch_are_no_names_of_fields() {
        for column in Column::ALL {
            let field = json!([{"type": "Text", "name": column.name(), "part": "txt", "max_bytes": 4}]);
            assert!(checked(field).unwrap_err().contains("of this name already"), "{}", column.name());
        }
    }
}
