//! A source as typed on the command line, with its options: for every command the same.

use serde_json::{Map, Value, json};

use fuelrail_connectors::KafkaProperties;

use super::Failure;

/// The help of the argument SOURCE.
pub(super) const SOURCE: &str = "A folder, shards like train-{000..127}.tar or \"*.parquet\", an .h5, .npy or .csv file, \
    an s3://, gs://, az:// or https:// URL of these, kafka://broker:9092/topic, or synthetic://?count=10000&width=500&height=375";

/// The help of `--source-option`.
pub(super) const OPTION: &str = "An option of the source, such as label=folder, image=jpg or fields='[\"json:box\"]' (JSON or \
    text); can be repeated. properties=@client.properties reads Kafka's from a file";

/// The configuration of a source: its address, resolved against the current directory, with its options.
pub(super) fn described(address: &str, options: &[String]) -> Result<Map<String, Value>, Failure> {
    if address == "-" {
        return Err("a source cannot be read from standard input; give the path or URL of the data".into());
    }
    let base = std::env::current_dir().map_err(|error| {
        format!("the current directory cannot be used: {error}; change to one that exists")
    })?;
    let base =
        base.to_str().ok_or("the name of the current directory is not UTF-8; change to another one")?;
    let mut table = Map::new();
    for option in options {
        let (key, text) = option
            .split_once('=')
            .filter(|(key, _)| !key.is_empty())
            .ok_or_else(|| format!("--source-option {option}: write KEY=VALUE, such as label=folder"))?;
        if ["type", "address", "base"].contains(&key) {
            return Err(format!("--source-option {option}: {key} is not an option of a source").into());
        }
        let value = match (key, text.strip_prefix('@')) {
            ("properties", Some(path)) => serde_json::to_value(properties_file(path)?)?,
            _ => serde_json::from_str(text).unwrap_or_else(|_| json!(text)),
        };
        if table.insert(key.to_owned(), value).is_some() {
            return Err(format!("--source-option {key} is given twice").into());
        }
    }
    table.insert("type".into(), json!("address"));
    table.insert("address".into(), json!(address));
    table.insert("base".into(), json!(base));
    Ok(table)
}

/// Kafka's properties from a file. On the command line itself everybody on the machine could read a password.
pub(super) fn properties_file(path: &str) -> Result<KafkaProperties, Failure> {
    let text = std::fs::read_to_string(path).map_err(|error| format!("{path}: {error}"))?;
    Ok(KafkaProperties::from_lines(&text).map_err(|error| format!("{path}: {error}"))?)
}
