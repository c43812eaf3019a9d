//! `--fields` of the commands, and what `fuelrail inspect` finds in named parts: how many records have them, and how
//! long they are.

use std::collections::BTreeMap;

use fuelrail_connectors::{
    ElementType, PartKind, PartSpec, Schema, SourceConfig, Wanted, WantedKind, settings,
};
use fuelrail_transforms::{ImageInfo, Limits, Scratch};
use indicatif::HumanCount;
use serde_json::{Value, json};

use super::Failure;
use crate::fields::{self, FieldConfig};

/// The help of `--fields`.
pub(super) const FIELDS: &str = "What a batch holds, as a JSON list like the key fields of pipelines.toml, such as \
    '[{\"type\": \"Text\", \"name\": \"caption\", \"part\": \"txt\", \"max_bytes\": 512}]'";

/// The list that `--fields` has, as a pipeline takes it. `complete` fills in what may be left out.
pub(super) fn read(text: &str, complete: impl Fn(&mut Value)) -> Result<(Value, Vec<FieldConfig>), Failure> {
    let mut list: Value = serde_json::from_str(text).map_err(|error| {
        format!(
            "--fields: not valid JSON: {}; write a list such as '[{{\"type\": \"Text\", \"name\": \"caption\", \
             \"part\": \"txt\", \"max_bytes\": 512}}]'",
            settings::json_fault(&error, text.as_bytes())
        )
    })?;
    list.as_array_mut().into_iter().flatten().for_each(complete);
    let fields = settings::read(&list).map_err(|wrong| format!("--fields{wrong}"))?;
    Ok((list, fields))
}

/// A source that delivers what `--fields` asks for. Caps may be left out: nothing is cut here.
pub(super) fn asked(source: SourceConfig, text: Option<&str>) -> Result<SourceConfig, Failure> {
    let Some(text) = text else { return Ok(source) };
    Ok(source.delivering(&fields::wanted(&completed(text)?)))
}

/// The fields of `--fields`, where caps and names may be left out. One without a name is called as its part is.
fn completed(text: &str) -> Result<Vec<FieldConfig>, Failure> {
    let (_, fields) = read(text, |field| {
        let cap = match field["type"].as_str() {
            Some("Text" | "Bytes" | "Json") => Some("max_bytes"),
            Some("Boxes") => Some("max_rows"),
            _ => None,
        };
        if let Some(cap) = cap.filter(|cap| field.get(cap).is_none()) {
            field[cap] = json!(1);
        }
        if field.get("name").is_none() {
            field["name"] = match field.get("part").map(|part| (part, part.as_str())) {
                Some((_, Some(part))) => json!(unprefixed(part)),
                Some((part, None)) => part.clone(),
                None => json!("image"),
            };
        }
    })?;
    Ok(fields)
}

/// A place inside JSON without the word that says so.
fn unprefixed(part: &str) -> &str {
    part.strip_prefix("json:").filter(|path| !path.is_empty()).unwrap_or(part)
}

/// A schema whose parts and numbers are called as the fields of `--fields` that are made of them. (The first, where
/// several are made of one.)
pub(super) fn named(mut schema: Schema, text: Option<&str>) -> Result<Schema, Failure> {
    let fields = text.map_or_else(|| Ok(Vec::new()), completed)?;
    let name = |is: &dyn Fn(&Wanted) -> bool| {
        let mut made = fields.iter().filter(|field| field.wanted().is_some_and(|wanted| is(&wanted)));
        made.next().map(|field| field.name().to_owned())
    };
    for part in &mut schema.parts {
        let is = |wanted: &Wanted| {
            let spec = wanted.spec(ElementType::F32, &[]);
            wanted.is_part()
                && spec.name == part.name
                && std::mem::discriminant(&spec.kind) == std::mem::discriminant(&part.kind)
        };
        part.name = name(&is).unwrap_or_else(|| part.name.clone());
    }
    for field in &mut schema.fields {
        let is = |wanted: &Wanted| wanted.kind == WantedKind::Numbers && wanted.part == field.name;
        field.name = name(&is).unwrap_or_else(|| field.name.clone());
    }
    Ok(schema)
}

/// What one record has of a part: its length and what it is as an image, or what is wrong with it.
pub(super) type Seen = Option<Result<(u64, Option<ImageInfo>), String>>;

/// Looks at a part of a record.
pub(super) fn look(part: &PartSpec, bytes: Option<&[u8]>, scratch: &mut Scratch) -> Seen {
    let bytes = bytes?;
    Some(match &part.kind {
        PartKind::Image => ImageInfo::read(bytes, &Limits::default(), scratch)
            .map(|info| (bytes.len() as u64, Some(info)))
            .map_err(|error| error.to_string()),
        kind => fields::length(kind, bytes).map(|length| (length, None)),
    })
}

/// What was found out about one part.
#[derive(Debug, Default)]
pub(super) struct Found {
    missing: u64,
    lengths: Vec<u64>,
    /// Of images.
    formats: BTreeMap<&'static str, u64>,
    sides: [Vec<u32>; 2],
    /// How many cannot be used, and the first.
    wrong: u64,
    first_wrong: Option<(String, String)>,
}

impl Found {
    pub fn add(&mut self, seen: Seen, key: impl Fn() -> String) {
        match seen {
            None => self.missing += 1,
            Some(Ok((length, info))) => {
                self.lengths.push(length);
                if let Some(info) = info {
                    *self.formats.entry(info.format).or_default() += 1;
                    self.sides[0].push(info.width);
                    self.sides[1].push(info.height);
                }
            }
            Some(Err(why)) => {
                self.wrong += 1;
                self.first_wrong.get_or_insert_with(|| (key(), why));
            }
        }
    }

    pub fn json(&self, part: &PartSpec) -> Value {
        let lengths = spread(&self.lengths)
            .map(|[min, median, most, max]| json!({"min": min, "median": median, "99.9%": most, "max": max}));
        let sides = |at: usize| {
            spread(&self.sides[at])
                .map(|[min, median, _, max]| json!({"min": min, "median": median, "max": max}))
        };
        let mut found = json!({
            "part": part.name,
            "kind": part.kind,
            "records": self.lengths.len(),
            "missing": self.missing,
            "unusable": self.wrong,
            "first_unusable": self.first_wrong.as_ref().map(|(key, why)| json!({"key": key, "why": why})),
            "lengths": lengths,
        });
        if part.kind == PartKind::Image {
            found["formats"] = json!(self.formats);
            (found["width"], found["height"]) = (json!(sides(0)), json!(sides(1)));
        }
        found
    }

    pub fn print(&self, part: &PartSpec) {
        let (kind, unit, cap) = match &part.kind {
            PartKind::Image => ("images".to_owned(), "bytes", None),
            PartKind::Bytes => ("bytes".to_owned(), "bytes", Some("max_bytes")),
            PartKind::Text => ("text".to_owned(), "bytes", Some("max_bytes")),
            PartKind::Json => ("JSON".to_owned(), "bytes", Some("max_bytes")),
            PartKind::Ragged { dtype, row } => (format!("rows of {dtype} {row:?}"), "rows", Some("max_rows")),
        };
        let count = HumanCount(self.lengths.len() as u64 + self.wrong);
        say!(
            "part {:<10} {kind}, in {count} records; {} have none",
            format!("{:?}", part.name),
            HumanCount(self.missing)
        );
        if let Some([min, median, most, max]) = spread(&self.lengths) {
            let cap =
                cap.map_or_else(String::new, |cap| format!("; {cap}={} holds 99.9% of them", most.max(1)));
            say!("  {unit:<13} {min} to {max}, median {median}{cap}");
        }
        if !self.formats.is_empty() {
            let formats = self.formats.iter().map(|(name, count)| format!("{name} {}", HumanCount(*count)));
            say!("  {:<13} {}", "formats", formats.collect::<Vec<_>>().join(", "));
        }
        for (what, sides) in ["width", "height"].iter().zip(&self.sides) {
            if let Some([min, median, _, max]) = spread(sides) {
                say!("  {what:<13} {min} to {max} pixels, median {median}");
            }
        }
        if let Some((key, why)) = &self.first_wrong {
            say!("  unusable      {}; the first: {key}: {why}", HumanCount(self.wrong));
        }
    }
}

/// Least, middle, 99.9th percentile and most.
pub(super) fn spread<T: Copy + Ord>(values: &[T]) -> Option<[T; 4]> {
    let mut sorted = values.to_vec();
    sorted.sort_unstable();
    let at = |share: f64| sorted[((sorted.len() as f64 * share).ceil() as usize).clamp(1, sorted.len()) - 1];
    (!sorted.is_empty()).then(|| [sorted[0], at(0.5), at(0.999), sorted[sorted.len() - 1]])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cap_that_is_named_holds_all_but_one_of_a_thousand() {
        let mut found = Found::default();
        (1..=1000).for_each(|length| found.add(Some(Ok((length, None))), String::new));
        assert_eq!(spread(&found.lengths), Some([1, 500, 999, 1000]));
        found.add(None, String::new);
        found.add(Some(Err("no".into())), || "a".into());
        let part = PartSpec { name: "txt".into(), kind: PartKind::Text };
        assert_eq!(found.json(&part)["missing"], 1);
        assert_eq!(found.json(&part)["first_unusable"], json!({"key": "a", "why": "no"}));
    }

    #[test]
    fn a_list_of_fields_that_is_wrong_is_named_with_its_flag() {
        let refused =
            |text: &str| asked(SourceConfig::Tar(Default::default()), Some(text)).unwrap_err().to_string();
        assert!(refused("[").starts_with("--fields: not valid JSON"));
        assert!(
            refused(r#"[{"type": "Txt", "part": "txt"}]"#).starts_with("--fields[0]"),
            "{}",
            refused(r#"[{"type": "Txt"}]"#)
        );
        let nameless = r#"[{"type": "Image"}, {"type": "Text", "part": "txt"}]"#;
        assert!(asked(SourceConfig::Tar(Default::default()), Some(nameless)).is_ok());
    }
}
