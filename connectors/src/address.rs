//! A source as a user types it, resolved to what it is.
//!
//! | address | source |
//! |---|---|
//! | `data/train` with class folders or images in it | folder |
//! | `data/train` with shards directly in it | what their ending says, as below |
//! | `train-{000..127}.tar`, `*.tar.gz`, `*.tgz`, `*.tar.zst` | tar |
//! | `*.parquet`, `*.arrow`, `*.feather`, `*.csv`, `*.tsv`, `*.jsonl`, `*.ndjson`, `*.json` | table |
//! | `*.h5`, `*.hdf5` | hdf5 |
//! | `*.npy`, `*.npz`, `*.bin` with `tokens` | array |
//! | `synthetic://?count=1000&width=500` | synthetic |
//! | `kafka://host:9092,host2:9092/topic,topic2` | kafka |
//! | `s3://`, `gs://`, `az://`, `http://`, `https://` before any of these | the same, read through the cache |
//! | `file://` before any of these | the same |
//!
//! Options are the keys of that source's configuration, so that a wrong one is named where the address was given.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::kafka::address as kafka;
use crate::shards::ends_with;
use crate::{SourceConfig, SourceError, settings};

/// An address with the options of whatever source it turns out to be.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AddressConfig {
    /// As typed; several of one kind make one source.
    #[serde(deserialize_with = "crate::texts::list")]
    pub address: Vec<String>,
    /// The folder that a relative path starts from. Default: the process's current one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<PathBuf>,
    /// Keys of the source's own configuration.
    #[serde(flatten)]
    pub options: serde_json::Map<String, serde_json::Value>,
}

/// Which source an ending means.
const KINDS: [(&str, &str, &[&str]); 4] = [
    ("tar", "shards", &[".tar", ".tar.gz", ".tgz", ".tar.zst", ".tar.zstd"]),
    (
        "table",
        "files",
        &[
            ".parquet", ".parq", ".pq", ".arrow", ".arrows", ".feather", ".ipc", ".csv", ".tsv", ".jsonl",
            ".ndjson", ".json",
        ],
    ),
    ("hdf5", "files", &[".h5", ".hdf5"]),
    ("array", "files", &[".npy", ".npz"]),
];

/// Schemes whose data is not on this machine.
const REMOTE: [&str; 5] = ["s3", "gs", "az", "http", "https"];

impl AddressConfig {
    /// The local paths and URLs, absolute.
    pub(crate) fn locations(&self) -> Vec<String> {
        self.address
            .iter()
            .filter(|address| !address.starts_with("synthetic://"))
            .flat_map(
                |one| if kafka::is_kafka(one) { kafka::locations(one) } else { vec![self.absolute(one)] },
            )
            .collect()
    }

    fn absolute(&self, address: &str) -> String {
        let path = address.strip_prefix("file://").unwrap_or(address);
        if scheme(path).is_some() {
            return path.to_owned();
        }
        let base =
            self.base.clone().or_else(|| std::env::current_dir().ok()).unwrap_or_else(|| PathBuf::from("/"));
        normal(&if path.starts_with('/') { path.to_owned() } else { format!("{}/{path}", base.display()) })
    }

    /// What it stands for: looks at the ending or, for a folder, at what lies in it.
    ///
    /// # Errors
    /// [`SourceError`] when the scheme is unknown or an option does not belong to the source.
    pub fn resolve(&self) -> Result<SourceConfig, SourceError> {
        let Some(first) = self.address.first() else {
            return Err(SourceError::config("a source needs at least one address".into()));
        };
        // Shown without the query of a URL, which may be a signature.
        let shown = |address: &String| {
            if kafka::is_kafka(address) { kafka::shown(address) } else { crate::remote::shown(address) }
        };
        let name = self.address.iter().map(shown).collect::<Vec<_>>().join(", ");
        if self.address.iter().any(|address| address.trim().is_empty()) {
            return Err(SourceError::config(
                "an address is empty; give the path or URL of the data (\".\" is the current folder)".into(),
            ));
        }
        let location = self.absolute(first);
        let mut value = self.options.clone();
        let kind = match scheme(&location) {
            Some("synthetic") => {
                let query = location.split_once('?').map_or("", |(_, query)| query);
                for pair in query.split('&').filter(|pair| !pair.is_empty()) {
                    let (key, text) = pair.split_once('=').ok_or_else(|| {
                        SourceError::config(format!("{name}: '{pair}' is not of the form key=value"))
                    })?;
                    let number = serde_json::from_str(text).unwrap_or_else(|_| text.into());
                    value.insert(key.to_owned(), number);
                }
                "synthetic"
            }
            Some("kafka") => {
                kafka::Address::parse(&self.address)?.add_to(&mut value, |path| self.absolute(path))?;
                "kafka"
            }
            Some(remote) if REMOTE.contains(&remote) => by_ending(&location).unwrap_or("folder"),
            Some(other) => {
                return Err(SourceError::config(format!(
                    "{name}: no source of this kind ({other}://); known are paths, synthetic://, kafka://, {}://",
                    REMOTE.join("://, ")
                )));
            }
            // Raw token ids, as .bin files hold them, are known by nothing but that tokens are asked for.
            None if location.ends_with(".bin") && value.contains_key("tokens") => "array",
            None => match by_ending(&location) {
                Some(kind) if !Path::new(&location).is_dir() => kind,
                None if !Path::new(&location).exists() && location.contains(['{', '*']) => {
                    // What is wrong with the braces comes first: cut off, they have lost the ending.
                    crate::shards::expand_braces(&location)?;
                    return Err(SourceError::config(format!(
                        "{name}: what these files are is not known; a pattern ends like the files it names, such as .tar \
                         or .parquet"
                    )));
                }
                _ => by_content(Path::new(&location)),
            },
        };
        // A folder splits itself, by the same rule; the others are split from outside.
        let split = if kind == "folder" { None } else { value.remove("split") };
        if kind == "folder" {
            if self.address.len() > 1 {
                return Err(SourceError::config(format!(
                    "{name}: several image folders are a mixture (fuelrail.Mix, or type = \"mix\"), which says how they \
                     are drawn"
                )));
            }
            value.insert("root".into(), location.into());
        } else if let Some((_, key, _)) = KINDS.iter().find(|(name, ..)| *name == kind) {
            value.insert((*key).into(), self.locations().into());
        }
        // The one option that is a path of its own: it starts where the address does.
        if kind == "table"
            && let Some(root) = value.get("root").and_then(|root| root.as_str())
        {
            let root = self.absolute(root);
            value.insert("root".into(), root.into());
        }
        value.insert("type".into(), kind.into());
        // By itself first, so that what is said of an option has the option's own name.
        let mut value = serde_json::Value::from(value);
        let mut source = settings::read(&value);
        if let (Some(split), true) = (split, source.is_ok()) {
            value = serde_json::json!({"type": "subset", "source": value, "split": split});
            source = settings::read(&value);
        }
        source.map_err(|wrong| SourceError::config(format!("{name}: {wrong}")))
    }
}

/// The part before "://".
fn scheme(text: &str) -> Option<&str> {
    let (scheme, _) = text.split_once("://")?;
    let named = !scheme.is_empty() && scheme.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    named.then_some(scheme)
}

/// Without "." and doubled slashes; ".." is left to be refused or resolved by whoever opens it.
fn normal(path: &str) -> String {
    let parts: Vec<_> = path.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    let mut kept: Vec<&str> = Vec::new();
    for part in parts {
        if part == ".." && kept.last().is_some_and(|last| *last != "..") {
            kept.pop();
        } else if part != ".." {
            kept.push(part);
        }
    }
    format!("/{}", kept.join("/"))
}

fn by_ending(location: &str) -> Option<&'static str> {
    let location = location.split(['?', '#']).next().unwrap_or_default();
    let location = location.trim_end_matches(['*', '}', '/']);
    KINDS.iter().find(|(_, _, endings)| ends_with(location, endings)).map(|(kind, ..)| *kind)
}

/// What a local folder holds: shards directly in it decide, anything else is an image folder (which says what is missing).
fn by_content(folder: &Path) -> &'static str {
    let Ok(entries) = std::fs::read_dir(folder) else { return "folder" };
    let mut kinds = [0usize; KINDS.len()];
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if let Some(at) = KINDS.iter().position(|(_, _, endings)| ends_with(&name, endings)) {
            // A table of labels beside class folders describes them and is not the data.
            kinds[at] += usize::from(!ends_with(&name, &[".csv", ".tsv", ".jsonl", ".ndjson", ".json"]));
        }
    }
    let most = (0..KINDS.len()).rev().max_by_key(|&at| kinds[at]).expect("there are kinds");
    if kinds[most] == 0 { "folder" } else { KINDS[most].0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(address: &str, options: serde_json::Value) -> Result<SourceConfig, SourceError> {
        let options = options.as_object().unwrap().clone();
        AddressConfig { address: vec![address.into()], base: Some("/base".into()), options }.resolve()
    }

    fn value(address: &str) -> serde_json::Value {
        serde_json::to_value(resolve(address, serde_json::json!({})).unwrap()).unwrap()
    }

    #[test]
    fn an_ending_says_what_it_is() {
        assert_eq!(value("x/{000..010}.tar")["shards"][0], "/base/x/{000..010}.tar");
        assert_eq!(value("s3://bucket/a.tar.zst")["shards"][0], "s3://bucket/a.tar.zst");
        for (address, kind) in [
            ("/a/b.parquet", "table"),
            ("file:///a/b.jsonl", "table"),
            ("https://host/b.h5?version=3", "hdf5"),
            ("a.NPY", "array"),
            ("gs://bucket/images/", "folder"),
            ("a/./../images", "folder"),
            ("synthetic://?count=3", "synthetic"),
        ] {
            assert_eq!(value(address)["type"], kind, "{address}");
        }
        assert_eq!(value("a/./../images//x")["root"], "/base/images/x");
        assert_eq!(value("synthetic://?count=3&format=jpeg")["format"], "jpeg");
        let error = resolve("ftp://x", serde_json::json!({})).unwrap_err().to_string();
        assert!(error.contains("ftp://") && error.contains("s3://"), "{error}");
    }

    #[test]
    fn an_address_that_names_nothing_is_refused() {
        for (address, expected) in
            [("", "empty"), (" ", "empty"), ("x-{000..", "not closed"), ("x-{000..010}", "such as .tar")]
        {
            let error = resolve(address, serde_json::json!({})).unwrap_err();
            assert!(error.is_config() && error.to_string().contains(expected), "{address}: {error}");
        }
    }

    #[test]
    fn a_folder_is_what_lies_in_it() {
        let root = tempfile::tempdir().unwrap();
        let kind = || value(root.path().to_str().unwrap())["type"].as_str().unwrap().to_owned();
        std::fs::create_dir(root.path().join("cat")).unwrap();
        std::fs::write(root.path().join("labels.csv"), "").unwrap();
        assert_eq!(kind(), "folder");
        std::fs::write(root.path().join("0.tar"), "").unwrap();
        assert_eq!(kind(), "tar");
    }

    #[test]
    fn an_option_of_another_source_is_named() {
        let config = resolve("a.csv", serde_json::json!({"root": "images"})).unwrap();
        assert_eq!(config.locations(), ["/base/a.csv", "/base/images"]);
        let split = serde_json::json!({"split": {"part": "val", "fraction": 0.5}});
        let config = resolve("a.tar", split).unwrap();
        assert!(matches!(config, SourceConfig::Subset(_)), "{config:?}");
        let error = resolve("a.tar", serde_json::json!({"root": "/x"})).unwrap_err().to_string();
        assert!(error.starts_with("a.tar: unknown key \"root\"; it belongs to tables"), "{error}");
        assert!(error.contains("tar shards take image, label"), "{error}");
    }
}
