//! The daemon's configuration file. What is wrong in it is said with its line and column.

use std::ops::Range;
use std::path::Path;

use fuelrail_connectors::settings::Step;
use serde_json::{Map, Value};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::DaemonConfig;
use fuelrail_connectors::shown;

impl DaemonConfig {
    /// Reads a configuration file, and checks its pipelines.
    ///
    /// # Errors
    /// `FILE:LINE:COLUMN: ` and a sentence with the key, or why the file cannot be read.
    pub fn from_file(path: &Path) -> Result<Self, String> {
        let file = shown(&path);
        let text = std::fs::read_to_string(path).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => format!("{file}: there is no such file"),
            std::io::ErrorKind::InvalidData => format!("{file}: it is not a text in UTF-8"),
            _ if path.is_dir() => format!("{file}: it is a folder, not a file"),
            _ => format!("{file}: cannot be read: {error}"),
        })?;
        Self::from_toml(&text).map_err(|error| {
            let between = if error.starts_with(|first: char| first.is_ascii_digit()) { ":" } else { ": " };
            format!("{file}{between}{error}")
        })
    }

    /// As [`from_file`](Self::from_file), of its text.
    pub(super) fn from_toml(text: &str) -> Result<Self, String> {
        let table = DeTable::parse(text).map_err(|error| {
            // What the parser found may have several lines.
            let message = error.message().split_whitespace().collect::<Vec<_>>().join(" ");
            placed(text, error.span(), &message)
        })?;
        let value = plain_table(table.get_ref()).map_err(|(span, why)| placed(text, Some(span), &why))?;
        let config = Self::from_value(value)
            .map_err(|wrong| placed(text, span_of(&table, wrong.steps()), &wrong.to_string()))?;
        for (name, pipeline) in &config.pipelines {
            pipeline.check().map_err(|error| {
                let steps = ["pipelines", name].map(|key| Step::Key(key.into()));
                // A check names its key first.
                let keys = error.split([' ', ':']).next().unwrap_or_default().split('.');
                let steps: Vec<_> =
                    steps.into_iter().chain(keys.map(|key| Step::Key(key.to_owned()))).collect();
                placed(text, span_of(&table, &steps), &format!("pipelines.{name}.{error}"))
            })?;
        }
        Ok(config)
    }
}

/// "12:5: " and the message.
fn placed(text: &str, span: Option<Range<usize>>, message: &str) -> String {
    let Some(before) = span.and_then(|span| text.get(..span.start)) else { return message.to_owned() };
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
    format!("{line}:{column}: {message}")
}

/// The same as plain data, or what cannot be.
fn plain(value: &Spanned<DeValue<'_>>) -> Result<Value, (Range<usize>, String)> {
    let refuse = |why: String| Err((value.span(), why));
    Ok(match value.get_ref() {
        DeValue::String(text) => text.as_ref().into(),
        DeValue::Boolean(truth) => (*truth).into(),
        DeValue::Datetime(time) => time.to_string().into(),
        DeValue::Integer(number) => {
            let digits = number.as_str();
            let signed = i64::from_str_radix(digits, number.radix()).map(Value::from);
            match signed.or_else(|_| u64::from_str_radix(digits, number.radix()).map(Value::from)) {
                Ok(number) => number,
                Err(_) => return refuse(format!("{digits} is too large for a whole number")),
            }
        }
        DeValue::Float(number) => match number.as_str().parse::<f64>() {
            // What has no bound is as much as there is.
            Ok(number) if !number.is_nan() => number.clamp(f64::MIN, f64::MAX).into(),
            _ => return refuse(format!("{} is not a number", number.as_str())),
        },
        DeValue::Array(list) => list.iter().map(plain).collect::<Result<Vec<_>, _>>()?.into(),
        DeValue::Table(table) => plain_table(table)?,
    })
}

fn plain_table(table: &DeTable<'_>) -> Result<Value, (Range<usize>, String)> {
    let entries = table.iter().map(|(key, value)| Ok((key.get_ref().to_string(), plain(value)?)));
    entries.collect::<Result<Map<_, _>, _>>().map(Value::Object)
}

/// Where the last of these steps that is in the file is written: its value, or of a table its name.
fn span_of(table: &Spanned<DeTable<'_>>, steps: &[Step]) -> Option<Range<usize>> {
    fn entry<'a, 'i>(table: &'a DeTable<'i>, key: &str) -> Option<(Range<usize>, &'a Spanned<DeValue<'i>>)> {
        let (name, value) = table.get_key_value(key)?;
        Some((if value.get_ref().is_table() { name.span() } else { value.span() }, value))
    }

    let [Step::Key(first), rest @ ..] = steps else { return None };
    let (mut span, mut value) = entry(table.get_ref(), first)?;
    for step in rest {
        let next = match step {
            Step::Key(key) => value.get_ref().as_table().and_then(|table| entry(table, key)),
            Step::Index(index) => {
                value.get_ref().as_array().and_then(|list| list.get(*index)).map(|one| (one.span(), one))
            }
        };
        let Some(next) = next else { break };
        (span, value) = next;
    }
    Some(span)
}
