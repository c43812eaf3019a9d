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
//! | `file://` before any of these | the same, with `%20` and its like decoded |
//! | `~/` before any of these | below the home folder |
//!
//! Schemes are known in any case. `..` is what the system makes of it: behind a symbolic link, the folder above where
//! that leads. A name that is there is meant as it is, whatever `#`, `?`, `*`, brackets or braces are in it.
//!
//! Options are the keys of that source's configuration, so that a wrong one is named where the address was given.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::bytes::shards::{ends_with, expand_braces};
use crate::names::{is_image, is_litter, missing, shown};
use crate::sources::table::coco;
use crate::streams::kafka::address as kafka;
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

/// Endings that no source has: what such a file is, and what to do with it.
const OTHERS: [(&[&str], &str); 17] = [
    (
        &[".tar.xz", ".txz", ".tar.bz2", ".tbz", ".tbz2", ".tar.lz4"],
        "a tar with a compression other than gzip or Zstandard; unpack it, or compress it again: xz -dc x.tar.xz \
         | zstd > x.tar.zst",
    ),
    (
        &[".zip", ".7z", ".rar"],
        "an archive without random access; unpack it and give the folder, or pack that: fuelrail pack FOLDER \
         SHARDS",
    ),
    (
        &[
            ".csv.gz",
            ".tsv.gz",
            ".jsonl.gz",
            ".ndjson.gz",
            ".json.gz",
            ".csv.zst",
            ".jsonl.zst",
            ".csv.bz2",
            ".csv.xz",
        ],
        "a \
      compressed list; unpack it (gunzip, zstd -d)",
    ),
    (&[".gz", ".xz", ".bz2", ".zst", ".lz4"], "one compressed file; unpack it"),
    (&[".txt", ".lst"], "a text file with unknown columns; save it as .csv (path,label), .tsv, or .jsonl"),
    (&[".xml", ".yaml", ".yml", ".toml"], "no list of records; save one as .csv (path,label) or .jsonl"),
    (
        &[".mat"],
        "MATLAB's; save its arrays with numpy.savez (scipy.io.loadmat reads it), or as HDF5 (-v7.3) and rename it to .h5",
    ),
    (
        &[".pkl", ".pickle", ".pt", ".pth", ".ckpt", ".joblib", ".dill"],
        "Python's own: reading it runs the code in it, which \
      fuelrail never does; save arrays with numpy.savez, or tables as Parquet",
    ),
    (&[".safetensors"], "model weights; save arrays with numpy.savez"),
    (
        &[".tfrecord", ".tfrecords", ".tfrec"],
        "TensorFlow's; write the records as tar shards (NAME.jpg, NAME.cls) or Parquet",
    ),
    (
        &[".rec", ".idx", ".lmdb", ".mdb"],
        "a database of another program; write its records as tar shards (NAME.jpg, NAME.cls)",
    ),
    (
        &[".mds", ".beton"],
        "the shard of another loader; write its records as tar shards (NAME.jpg, NAME.cls) or Parquet",
    ),
    (
        &[".avro", ".orc", ".xlsx", ".xls", ".ods", ".db", ".sqlite", ".sqlite3", ".duckdb"],
        "a table of another kind; save \
      it as Parquet or .csv",
    ),
    (
        &[".nc", ".zarr", ".hdf", ".h4", ".nii", ".dcm"],
        "scientific data of another kind; save arrays as .npy, .npz or HDF5 (.h5)",
    ),
    (
        &[".mp4", ".mkv", ".avi", ".mov", ".webm", ".mpg", ".mpeg"],
        "a video; extract its frames into a folder: \
      ffmpeg -i x.mp4 frames/%06d.jpg",
    ),
    (&[".wav", ".flac", ".mp3", ".ogg"], "sound; save arrays as .npy or Parquet"),
    (
        &[
            ".heic", ".heif", ".jxl", ".jp2", ".ico", ".tga", ".svg", ".psd", ".raw", ".cr2", ".nef", ".dng",
            ".exr",
        ],
        "a picture that \
      is not decoded; convert it to JPEG or PNG, and give the folder that holds the pictures",
    ),
];

/// Schemes whose data is not on this machine.
const REMOTE: [&str; 5] = ["s3", "gs", "az", "http", "https"];

/// Schemes of other programs, and what to write instead.
const ELSEWHERE: [(&[&str], &str); 6] = [
    (&["s3a", "s3n"], "write s3://"),
    (&["gcs"], "write gs://"),
    (
        &["azure", "abfs", "abfss", "wasb", "wasbs", "adl"],
        "write az://CONTAINER/PATH, with the account in AZURE_STORAGE_ACCOUNT_NAME",
    ),
    (
        &["hf"],
        "download it (huggingface-cli download --repo-type dataset NAME), or name its files: \
      https://huggingface.co/datasets/NAME/resolve/main/FILE.parquet",
    ),
    (&["gdrive", "gd", "dropbox", "onedrive", "kaggle"], "download it and give the path"),
    (
        &["hdfs", "dbfs", "ftp", "sftp", "scp", "ssh", "smb", "nfs"],
        "mount it, or copy the files here, and give the path",
    ),
];

/// Names of a folder that are looked at to find out what it holds.
const MOST_NAMES: usize = 10_000;

impl AddressConfig {
    /// The local paths and URLs, absolute.
    pub(crate) fn locations(&self) -> Vec<String> {
        self.address
            .iter()
            .filter(|address| scheme(address).as_deref() != Some("synthetic"))
            .flat_map(
                |one| if kafka::is_kafka(one) { kafka::locations(one) } else { vec![self.absolute(one)] },
            )
            .collect()
    }

    fn absolute(&self, address: &str) -> String {
        let address = match scheme(address).as_deref() {
            Some("file") => match of_file_url(address) {
                Some(path) => path,
                None => return address.to_owned(),
            },
            Some(scheme) => return format!("{scheme}{}", &address[scheme.len()..]),
            None => address.to_owned(),
        };
        let path = Path::new(&address);
        if path.is_absolute() {
            return resolved(path);
        }
        let typed = self.base().join(path);
        // The shell knows the home folder's short name, programs do not; a file of that name comes first.
        if let (Ok(rest), Some(home)) = (path.strip_prefix("~"), std::env::var_os("HOME"))
            && std::fs::symlink_metadata(&typed).is_err()
        {
            return resolved(&PathBuf::from(home).join(rest));
        }
        resolved(&typed)
    }

    fn base(&self) -> PathBuf {
        self.base.clone().or_else(|| std::env::current_dir().ok()).unwrap_or_else(|| PathBuf::from("/"))
    }

    /// Refuses what is relative to a folder that is gone.
    fn has_base(&self) -> Result<(), SourceError> {
        let relative = |address: &&String| scheme(address).is_none() && !address.starts_with(['/', '~']);
        let Some(address) = self.address.iter().find(relative).filter(|_| self.base.is_none()) else {
            return Ok(());
        };
        let why = match std::env::current_dir() {
            Ok(folder) if folder.to_str().is_some() => return Ok(()),
            Ok(folder) => format!("the current folder, {}, is not UTF-8", shown(&folder)),
            Err(_) => "the current folder is gone".to_owned(),
        };
        Err(SourceError::config(format!("{address} is a relative path, and {why}; give an absolute path")))
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
            if kafka::is_kafka(address) {
                kafka::shown(address)
            } else {
                crate::bytes::remote::shown(address)
            }
        };
        let name = self.address.iter().map(shown).collect::<Vec<_>>().join(", ");
        if self.address.iter().any(|address| address.trim().is_empty()) {
            return Err(SourceError::config(
                "an address is empty; give the path or URL of the data (\".\" is the current folder)".into(),
            ));
        }
        self.has_base()?;
        let location = self.absolute(first);
        let mut value = self.options.clone();
        let kind = match scheme(&location).as_deref() {
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
            Some(remote) if REMOTE.contains(&remote) => of_url(&location, &name)?,
            Some("file") => {
                return Err(SourceError::config(format!(
                    "{name}: file:// is for files of this machine: file:///folder/file has three slashes"
                )));
            }
            Some(other) => {
                let instead = ELSEWHERE.iter().find(|(schemes, _)| schemes.contains(&other));
                return Err(SourceError::config(format!(
                    "{name}: no source of this kind ({other}://){}; known are paths, synthetic://, kafka://, {}://",
                    instead.map(|(_, instead)| format!("; {instead}")).unwrap_or_default(),
                    REMOTE.join("://, ")
                )));
            }
            // Raw token ids, as .bin files hold them, are known by nothing but that tokens are asked for.
            None if location.ends_with(".bin") && value.contains_key("tokens") => "array",
            None => self.of_path(&location, &name)?,
        };
        self.is_of_one_kind(kind)?;
        let split = part_of(kind, &mut value, &location)?;
        let condition = value.remove("where");
        if kind == "kafka" && condition.is_some() {
            return Err(SourceError::config(format!(
                "{name}: where chooses records when a source is opened, and those of a stream are not known then; \
                 leave it out, and choose rows of each batch, or produce the records wanted into a topic of their own"
            )));
        }
        if kind == "folder" {
            if self.address.len() > 1 {
                return Err(SourceError::config(format!(
                    "{name}: several image folders are a mixture (fuelrail.Mix, or type = \"mix\"), which says how they \
                     are drawn"
                )));
            }
            let root = value.remove("root").unwrap_or_else(|| location.into());
            value.insert("root".into(), root);
        } else if let Some((_, key, _)) = KINDS.iter().find(|(name, ..)| *name == kind) {
            value.insert((*key).into(), self.locations().into());
        }
        // The one option that is a path of its own: it starts where the address does.
        if kind == "table"
            && let Some(root) = value.get("root").and_then(|root| root.as_str())
        {
            let root = self.absolute(root);
            value.insert("root".into(), root.into());
        } else if kind == "table"
            && let [file] = &self.locations()[..]
            && ends_with(file, &[".json"])
            && scheme(file).is_none()
            && let Some(root) = coco::root_of(Path::new(file))
        {
            value.insert("root".into(), root.to_string_lossy().into_owned().into());
        }
        value.insert("type".into(), kind.into());
        // By itself first, so that what is said of an option has the option's own name.
        let mut value = serde_json::Value::from(value);
        let mut source = settings::read(&value);
        if (split.is_some() || condition.is_some()) && source.is_ok() {
            value = serde_json::json!({"type": "subset", "source": value});
            let keys = [("split", split), ("where", condition)];
            for (key, given) in keys.into_iter().filter_map(|(key, given)| Some((key, given?))) {
                value[key] = given;
            }
            source = settings::read(&value);
        }
        source.map_err(|wrong| SourceError::config(format!("{name}: {wrong}")))
    }
}

impl AddressConfig {
    /// Which source a path of this machine is.
    fn of_path(&self, location: &str, name: &str) -> Result<&'static str, SourceError> {
        let path = Path::new(location);
        let refuse = |text: String| Err(SourceError::config(format!("{name}: {text}")));
        match std::fs::metadata(path) {
            Ok(meta) if meta.is_dir() => return by_content(path),
            Ok(_) => {
                return match by_ending(location) {
                    Some(kind) => Ok(kind),
                    None => Err(SourceError::data(format!("{name}: {}", of_another_kind(location)))),
                };
            }
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {}
            // The system's reason comes when it is opened.
            Err(_) => return Ok(by_ending(location).unwrap_or("folder")),
        }
        // What is wrong with the braces comes first: cut off, they have lost the ending.
        let names = expand_braces(location)?;
        if let Some(kind) = by_ending(&names[0]) {
            return Ok(kind);
        }
        if location.contains(['{', '*', '?']) {
            return refuse(
                "cannot tell what these files are; end the pattern as the files end, such as .tar or .parquet".into(),
            );
        }
        let typed = self.address.first().map_or("", String::as_str);
        let from = if typed.starts_with('/') || scheme(typed).is_some() {
            String::new()
        } else {
            format!(" (\"{typed}\" starts in {})", shown(&self.base()))
        };
        Err(SourceError::data(format!("{}{from}", missing(path))))
    }

    /// Refuses addresses of several kinds.
    fn is_of_one_kind(&self, kind: &str) -> Result<(), SourceError> {
        if KINDS.iter().all(|(known, ..)| *known != kind) {
            return Ok(());
        }
        for address in &self.address[1..] {
            match by_ending(address) {
                Some(other) if other != kind => {
                    return Err(SourceError::config(format!(
                        "{} is of another kind than {}: files of one kind make one source; mix several (fuelrail.Mix, or type = \
                         \"mix\")",
                        crate::bytes::remote::shown(address),
                        crate::bytes::remote::shown(&self.address[0])
                    )));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// The part before "://" in lower case. `file:/path` is a way to write `file:///path`.
fn scheme(text: &str) -> Option<String> {
    if text.len() > 6 && text.as_bytes()[..6].eq_ignore_ascii_case(b"file:/") {
        return Some("file".to_owned());
    }
    let (scheme, _) = text.split_once("://")?;
    let named = !scheme.is_empty() && scheme.bytes().all(|b| b.is_ascii_alphanumeric());
    named.then(|| scheme.to_ascii_lowercase())
}

/// The path in a `file:` URL, decoded; none when it names another machine.
fn of_file_url(address: &str) -> Option<String> {
    let rest = &address["file:".len()..];
    let path = match rest.strip_prefix("//") {
        // What people wrote before there was a host in it: file:// and a path.
        Some(rest) => {
            rest.strip_prefix("localhost/").map_or_else(|| rest.to_owned(), |rest| format!("/{rest}"))
        }
        None => rest.to_owned(),
    };
    if !path.starts_with('/') {
        return None;
    }
    match percent_decoded(&path) {
        Some(decoded) if std::fs::symlink_metadata(&path).is_err() => Some(decoded),
        _ => Some(path),
    }
}

fn percent_decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        let digit = |at: usize| char::from(*after.get(at)?).to_digit(16);
        match (*first, digit(0), digit(1)) {
            (b'%', Some(high), Some(low)) => {
                bytes.push((high * 16 + low) as u8);
                rest = &after[2..];
            }
            (byte, ..) => {
                bytes.push(byte);
                rest = after;
            }
        }
    }
    String::from_utf8(bytes).ok().filter(|text| !text.contains('\0'))
}

/// An absolute path without ".", doubled slashes, and "..": that is the folder above where a link leads. Where there is
/// nothing to be above of it stays, to be refused by whoever opens it.
fn resolved(path: &Path) -> String {
    use std::path::Component;
    let mut kept = PathBuf::from("/");
    for part in path.components() {
        match part {
            Component::Normal(part) => kept.push(part),
            Component::ParentDir => {
                let is_link = std::fs::symlink_metadata(&kept).is_ok_and(|meta| meta.is_symlink());
                if is_link && let Ok(real) = kept.canonicalize() {
                    kept = real;
                }
                if kept.is_dir() {
                    kept.pop();
                } else {
                    kept.push("..");
                }
            }
            _ => {}
        }
    }
    kept.to_string_lossy().into_owned()
}

/// Which source a file is by its name.
fn by_ending(location: &str) -> Option<&'static str> {
    let location = match scheme(location).as_deref() {
        Some("http" | "https") => location.split(['?', '#']).next().unwrap_or_default(),
        _ => location,
    };
    let location = location.trim_end_matches(['*', '}', '/']);
    KINDS.iter().find(|(_, _, endings)| ends_with(location, endings)).map(|(kind, ..)| *kind)
}

/// Which source a URL is: what is not known by its ending is a folder of images, but not what is known to be something
/// else.
fn of_url(location: &str, name: &str) -> Result<&'static str, SourceError> {
    if let Some(kind) = by_ending(location) {
        return Ok(kind);
    }
    let path = location.split(['?', '#']).next().unwrap_or_default();
    let is_other = OTHERS.iter().any(|(endings, _)| ends_with(path, endings)) || is_image(path.as_bytes());
    if is_other && !path.ends_with('/') {
        return Err(SourceError::config(format!("{name}: {}", of_another_kind(path))));
    }
    Ok("folder")
}

/// What a file is that no source is made of.
fn of_another_kind(location: &str) -> String {
    if is_image(location.as_bytes()) {
        return "one picture is not a data set; give the folder that holds it, or a .csv list of pictures \
                (path,label)"
            .into();
    }
    if let Some((_, what)) = OTHERS.iter().find(|(endings, _)| ends_with(location, endings)) {
        return format!("this is {what}");
    }
    let known: Vec<&str> = KINDS.iter().flat_map(|(_, _, endings)| endings.iter().copied()).collect();
    format!(
        "cannot tell what this file is by its ending (known are {}); give the folder that holds the class \
         folders, or rename the file",
        known.join(" ")
    )
}

/// What lies directly in a folder that could be the data, and what is found of images.
#[derive(Default)]
struct Content {
    /// For each kind, the names of its files.
    shards: [Vec<String>; KINDS.len()],
    /// Images directly in it.
    images: usize,
    /// Folders that may be classes.
    folders: Vec<PathBuf>,
}

impl Content {
    fn of(folder: &Path) -> Self {
        let mut content = Self::default();
        let Ok(entries) = std::fs::read_dir(folder) else { return content };
        for entry in entries.flatten() {
            let name = shown(&entry.file_name()).to_string();
            if is_litter(name.as_bytes()) {
                continue;
            }
            // A table of labels beside class folders describes them and is not the data.
            let is_list = ends_with(&name, &[".csv", ".tsv", ".jsonl", ".ndjson", ".json"]);
            let kind =
                KINDS.iter().position(|(_, _, endings)| ends_with(&name, endings)).filter(|_| !is_list);
            if entry.path().is_dir() {
                if content.folders.len() < MOST_NAMES {
                    content.folders.push(entry.path());
                }
            } else if let Some(kind) = kind {
                content.shards[kind].push(name);
            } else if is_image(name.as_bytes()) {
                content.images += 1;
            }
        }
        content
    }
}

/// Whether a folder named `key=value` holds Parquet or Arrow files, or the next folder of that kind does.
fn holds_a_partition(folder: &Path) -> bool {
    let mut folder = folder.to_path_buf();
    // Each key is one folder deeper.
    for _ in 0..8 {
        let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.split_once('=').is_none_or(|(key, _)| key.is_empty()) {
            return false;
        }
        let Ok(entries) = std::fs::read_dir(&folder) else { return false };
        let mut next = None;
        for entry in entries.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if ends_with(&name, &[".parquet", ".parq", ".pq", ".arrow", ".feather", ".ipc"]) {
                return true;
            }
            if next.is_none() && name.contains('=') && entry.path().is_dir() {
                next = Some(entry.path());
            }
        }
        let Some(deeper) = next else { return false };
        folder = deeper;
    }
    false
}

/// Whether there is an image somewhere below; looks at a bounded number of names.
fn holds_an_image(folder: &Path, depth: usize, left: &mut usize) -> bool {
    let Ok(entries) = std::fs::read_dir(folder) else { return false };
    let mut below = Vec::new();
    for entry in entries.flatten() {
        if *left == 0 {
            return false;
        }
        *left -= 1;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with('.') || is_litter(name.as_bytes()) {
            continue;
        }
        if is_image(name.as_bytes()) {
            return true;
        }
        if depth > 0 && entry.path().is_dir() {
            below.push(entry.path());
        }
    }
    below.iter().any(|folder| holds_an_image(folder, depth - 1, left))
}

/// What a local folder holds. Images in class folders come before a few files beside them; where both could be the
/// data, it is refused by name.
fn by_content(folder: &Path) -> Result<&'static str, SourceError> {
    let content = Content::of(folder);
    let files: usize = content.shards.iter().map(Vec::len).sum();
    if files == 0 {
        // The files of one table, in folders named key=value as Hive and Spark name them.
        if content.folders.iter().any(|folder| holds_a_partition(folder)) {
            return Ok("table");
        }
        // Anything else is an image folder, which says what is missing.
        return Ok("folder");
    }
    let mut left = MOST_NAMES;
    let classes: Vec<String> = content
        .folders
        .iter()
        .filter(|folder| holds_an_image(folder, 3, &mut left))
        .map(|folder| shown(Path::new(folder.file_name().unwrap_or_default())).to_string())
        .collect();
    let first = content.shards.iter().flatten().min().expect("there are files");
    let some = |names: &[String]| {
        let mut names = names.to_vec();
        names.sort_unstable();
        let more = if names.len() > 3 { ", …" } else { "" };
        format!("{}{more}", names.iter().take(3).cloned().collect::<Vec<_>>().join(", "))
    };
    let pictures = if classes.is_empty() { content.images } else { classes.len() };
    if pictures >= 2 && files < pictures {
        tracing::warn!(
            "{}: the images in it are used; ignoring {} beside them{}",
            shown(folder),
            some(&content.shards.concat()),
            if files > 1 { format!(" ({files} files)") } else { String::new() }
        );
        return Ok("folder");
    }
    if pictures > 0 {
        let images = if classes.is_empty() {
            format!("{pictures} images")
        } else {
            format!("folders with images ({})", some(&classes))
        };
        return Err(SourceError::config(format!(
            "{} holds {images} and {}, so it is not clear which are the data: give the files themselves ({}), or move them out of \
             the folder",
            shown(folder),
            some(&content.shards.concat()),
            shown(&folder.join(first))
        )));
    }
    let most = (0..KINDS.len()).rev().max_by_key(|&at| content.shards[at].len()).expect("there are kinds");
    let others: Vec<String> =
        (0..KINDS.len()).filter(|&at| at != most).flat_map(|at| content.shards[at].iter().cloned()).collect();
    if !others.is_empty() && others.len() >= content.shards[most].len() {
        return Err(SourceError::config(format!(
            "{} holds {} and {}, so it is not clear which are the data: give the files themselves",
            shown(folder),
            some(&content.shards[most]),
            some(&others)
        )));
    }
    if !others.is_empty() {
        tracing::warn!(
            "{}: the {} files of kind {} are used; ignoring {} beside them",
            shown(folder),
            content.shards[most].len(),
            KINDS[most].0,
            some(&others)
        );
    }
    Ok(KINDS[most].0)
}

/// Takes a split out of the options: of a folder it stays there, others are split from outside. A name that is the name
/// of a folder of parts means that folder; any other but "train" is refused.
fn part_of(
    kind: &str,
    value: &mut serde_json::Map<String, serde_json::Value>,
    location: &str,
) -> Result<Option<serde_json::Value>, SourceError> {
    let Some(split) = value.remove("split") else { return Ok(None) };
    let split = match split.as_str() {
        None => Some(split),
        Some(text) => {
            let named = crate::split::Named::parse(text)?;
            let folder = if kind == "folder" {
                crate::sources::folder::part(Path::new(location), &named.name)
            } else {
                None
            };
            if let Some(folder) = &folder {
                tracing::info!("split=\"{text}\": using the folder {}", shown(folder));
                value.insert("root".into(), folder.to_string_lossy().into());
            }
            let split = named.split(folder.is_some())?;
            split.map(|split| serde_json::to_value(split).expect("plain data"))
        }
    };
    if kind == "folder" {
        if let Some(split) = split {
            value.insert("split".into(), split);
        }
        return Ok(None);
    }
    Ok(split)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn resolve_at(
        base: &Path,
        address: &str,
        options: serde_json::Value,
    ) -> Result<SourceConfig, SourceError> {
        let options = options.as_object().unwrap().clone();
        AddressConfig { address: vec![address.into()], base: Some(base.into()), options }.resolve()
    }

    fn resolve(address: &str, options: serde_json::Value) -> Result<SourceConfig, SourceError> {
        resolve_at(Path::new("/base"), address, options)
    }

    fn value(address: &str) -> serde_json::Value {
        serde_json::to_value(resolve(address, serde_json::json!({})).unwrap()).unwrap()
    }

    fn refused(address: &str) -> String {
        resolve(address, serde_json::json!({})).unwrap_err().to_string()
    }

    /// Makes files (and folders, whose names end in a slash).
    fn files(root: &Path, names: &[&str]) {
        for name in names {
            let path = root.join(name);
            std::fs::create_dir_all(if name.ends_with('/') { &path } else { path.parent().unwrap() })
                .unwrap();
            if !name.ends_with('/') {
                std::fs::write(path, "x").unwrap();
            }
        }
    }

    #[test]
    fn an_ending_says_what_it_is() {
        assert_eq!(value("x/{000..010}.tar")["shards"][0], "/base/x/{000..010}.tar");
        assert_eq!(value("s3://bucket/a.tar.zst")["shards"][0], "s3://bucket/a.tar.zst");
        assert_eq!(value("S3://Bucket/A.tar")["shards"][0], "s3://Bucket/A.tar");
        for (address, kind) in [
            ("/a/b.parquet", "table"),
            ("file:///a/b.jsonl", "table"),
            ("FILE:/a/b.jsonl", "table"),
            ("https://host/b.h5?version=3", "hdf5"),
            ("HTTPS://host/b.h5?x=y.tar", "hdf5"),
            ("a.NPY", "array"),
            ("x-???.tar", "tar"),
            ("s3://bucket/x-???.tar", "tar"),
            ("{a,b}.parquet", "table"),
            ("{a.tar,b.tar}", "tar"),
            ("gs://bucket/images/", "folder"),
            ("gs://bucket", "folder"),
            ("synthetic://?count=3", "synthetic"),
            ("Synthetic://?count=3", "synthetic"),
        ] {
            assert_eq!(value(address)["type"], kind, "{address}");
        }
        assert_eq!(value("synthetic://?count=3&format=jpeg")["format"], "jpeg");
        let error = refused("ftp://x");
        assert!(error.contains("ftp://") && error.contains("s3://") && error.contains("mount it"), "{error}");
    }

    #[test]
    fn an_address_that_names_nothing_is_refused() {
        for (address, expected) in [
            ("", "empty"),
            (" ", "empty"),
            ("x-{000..", "not closed"),
            ("x-{000..010}", "such as .tar"),
            ("s3a://b/x", "write s3://"),
            ("hf://datasets/x", "huggingface.co/datasets"),
            ("file://host/x.tar", "of this machine"),
            ("s3://b/x.zip", "unpack it"),
            ("https://host/cat.jpg", "one picture"),
        ] {
            let error = resolve(address, serde_json::json!({})).unwrap_err();
            assert!(error.is_config() && error.to_string().contains(expected), "{address}: {error}");
        }
        let error = refused("nowhere/train");
        assert!(error.contains("does not exist") && error.contains("starts in /base"), "{error}");
        let mixed = AddressConfig {
            address: vec!["/a.tar".into(), "/b.parquet".into()],
            base: None,
            options: serde_json::Map::new(),
        };
        assert!(mixed.resolve().unwrap_err().to_string().contains("another kind"));
    }

    #[test]
    fn a_file_of_another_kind_is_named_with_what_to_do() {
        let root = tempfile::tempdir().unwrap();
        for (name, expected) in [
            ("x.tar.xz", "Zstandard"),
            ("x.tar.bz2", "Zstandard"),
            ("x.zip", "unpack it"),
            ("x.txt", "save it as .csv"),
            ("x.mat", "numpy.savez"),
            ("x.pkl", "runs the code"),
            ("x.pt", "runs the code"),
            ("x.tfrecord", "tar shards"),
            ("x.rec", "tar shards"),
            ("x.lmdb", "tar shards"),
            ("x.mds", "tar shards"),
            ("x.beton", "tar shards"),
            ("x.avro", "Parquet"),
            ("x.orc", "Parquet"),
            ("x.xlsx", "Parquet"),
            ("x.mp4", "ffmpeg"),
            ("x.jpg", "one picture"),
            ("x.avif", "one picture"),
            ("x.heic", "convert it"),
            ("x", "what this file is by its ending"),
            ("x.unheard-of", "what this file is by its ending"),
        ] {
            files(root.path(), &[name]);
            let error = refused(root.path().join(name).to_str().unwrap());
            assert!(error.contains(name) && error.contains(expected), "{name}: {error}");
        }
    }

    #[test]
    fn paths_are_what_the_system_makes_of_them() {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name).to_str().unwrap().to_owned();
        files(
            root.path(),
            &["real/deep/", "real/x/cat/1.jpg", "x/dog/1.jpg", "with space#1?/a/1.jpg", "~/a/1.jpg"],
        );
        symlink(root.path().join("real/deep"), root.path().join("link")).unwrap();
        let folder = |address: &str| {
            serde_json::to_value(resolve_at(root.path(), address, serde_json::json!({})).unwrap()).unwrap()
        };
        for (address, expected) in [
            ("x", "x"),
            ("./x/", "x"),
            ("x/../x", "x"),
            ("real/../x", "x"),
            // The folder above where the link leads.
            ("link/../x", "real/x"),
            ("with space#1?", "with space#1?"),
            ("~", "~"),
        ] {
            assert_eq!(folder(address)["root"], at(expected), "{address}");
        }
        let url = format!("file://{}", at("with%20space%231%3F"));
        assert_eq!(folder(&url)["root"], at("with space#1?"));
        let url = format!("file://localhost{}", at("x"));
        assert_eq!(folder(&url)["root"], at("x"));
        // Nothing is above what is not there.
        let error = resolve_at(root.path(), "nowhere/../x", serde_json::json!({})).unwrap_err().to_string();
        assert!(error.contains("does not exist"), "{error}");
        if let Some(home) = std::env::var_os("HOME") {
            let config = resolve("~/x.tar", serde_json::json!({})).unwrap();
            assert_eq!(config.locations(), [PathBuf::from(home).join("x.tar").to_str().unwrap()]);
        }
    }

    #[test]
    fn a_folder_is_what_lies_in_it() {
        let kind = |names: &[&str]| {
            let root = tempfile::tempdir().unwrap();
            files(root.path(), names);
            let config = resolve(root.path().to_str().unwrap(), serde_json::json!({}));
            config.map(|config| serde_json::to_value(config).unwrap()["type"].as_str().unwrap().to_owned())
        };
        for (names, expected) in [
            (&["cat/", "labels.csv"][..], "folder"),
            (&["cat/1.jpg", "dog/1.jpg"], "folder"),
            (&["0.tar", "1.tar"], "tar"),
            (&["0.tar", "empty/", "labels.csv"], "tar"),
            (&["0.parquet", "__MACOSX/1.jpg"], "table"),
            // One file beside class folders is not the data.
            (&["cat/1.jpg", "dog/a/1.jpg", "backup.tar"], "folder"),
            (&["cat/1.jpg", "dog/1.jpg", "mean.npy"], "folder"),
            (&["cat/1.jpg", "dog/1.jpg", "metadata.parquet"], "folder"),
            (&["cat/1.jpg", "dog/1.jpg", "model.h5"], "folder"),
            (&["cat/1.jpg", "._x.tar"], "folder"),
            (&["1.jpg", "2.jpg", "mean.npy"], "folder"),
            (&["0.tar", "1.tar", "meta.parquet"], "tar"),
        ] {
            assert_eq!(kind(names).unwrap(), expected, "{names:?}");
        }
        for (names, expected) in [
            (&["cat/1.jpg", "backup.tar"][..], ["(cat)", "backup.tar"]),
            (&["cat/1.jpg", "dog/1.jpg", "a.tar", "b.tar"], ["(cat, dog)", "a.tar, b.tar"]),
            (&["1.jpg", "a.tar"], ["1 images", "a.tar"]),
            (&["a.tar", "a.parquet"], ["a.tar", "a.parquet"]),
        ] {
            let error = kind(names).unwrap_err().to_string();
            assert!(expected.iter().all(|part| error.contains(part)), "{names:?}: {error}");
        }
    }

    #[test]
    fn a_split_means_the_folder_of_that_name_or_is_refused() {
        let root = tempfile::tempdir().unwrap();
        files(
            root.path(),
            &["parts/train/cat/1.jpg", "parts/val/cat/1.jpg", "parts/annotations/", "cars/train/1.jpg"],
        );
        files(root.path(), &["cars/bus/1.jpg"]);
        let split = |folder: &str, split: &str| {
            let path = root.path().join(folder);
            let config = resolve(path.to_str().unwrap(), serde_json::json!({ "split": split }))?;
            let value = serde_json::to_value(config).unwrap();
            let root = value["root"].as_str().unwrap().rsplit('/').next().unwrap().to_owned();
            Ok::<_, SourceError>((root, value["split"]["part"].as_str().map(str::to_owned)))
        };
        let part = |text: &str| Some(text.to_owned());
        assert_eq!(split("parts", "val").unwrap(), ("val".into(), None));
        assert_eq!(split("parts", "val[:10%]").unwrap(), ("val".into(), part("train")));
        assert_eq!(split("parts", "train[90%:]").unwrap(), ("train".into(), part("val")));
        // A class that is called like a part.
        assert_eq!(split("cars", "train[90%:]").unwrap(), ("cars".into(), part("val")));
        assert!(split("cars", "val[:10%]").unwrap_err().to_string().contains("train[90%:]"));
        assert!(split("parts", "test").unwrap_err().to_string().contains("no part \"test\""));
    }

    #[test]
    fn an_option_of_another_source_is_named() {
        let config = resolve("a.csv", serde_json::json!({"root": "images"})).unwrap();
        assert_eq!(config.locations(), ["/base/a.csv", "/base/images"]);
        for split in [serde_json::json!({"part": "val", "fraction": 0.5}), serde_json::json!("train[50%:]")] {
            let config = resolve("a.tar", serde_json::json!({ "split": split })).unwrap();
            assert!(matches!(config, SourceConfig::Subset(_)), "{config:?}");
        }
        let error = resolve("a.tar", serde_json::json!({"root": "/x"})).unwrap_err().to_string();
        assert!(error.starts_with("a.tar: unknown key \"root\"; it belongs to tables"), "{error}");
        assert!(error.contains("tar shards take image, label"), "{error}");
    }
}
