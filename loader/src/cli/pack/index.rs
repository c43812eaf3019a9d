//! `index.json`: what was packed, with checksums; kept up to date after each shard, so that a run can go on.

use std::collections::BTreeSet;
use std::fs;
use std::io::Read;
use std::path::Path;

use fuelrail_connectors::{settings, shown};
use indicatif::HumanBytes;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::Xxh3;

use super::shard;
use crate::cli::bars::{Bar, counted};
use crate::cli::{Failure, signals};

/// The list beside the shards.
pub(super) const INDEX: &str = "index.json";

/// `index.json`.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(super) struct Index {
    pub format: String,
    pub version: u32,
    /// Whether all records of the source are in the shards (or among the skipped).
    pub complete: bool,
    /// Whether images were shrunk.
    pub lossy: bool,
    /// For people: where the records came from.
    pub source: String,
    #[serde(flatten)]
    pub identity: Identity,
    pub records: u64,
    pub bytes: u64,
    pub label: String,
    pub classes: Vec<String>,
    pub fields: Vec<String>,
    /// What the named parts of the source are called in the shards.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub parts: Vec<Part>,
    pub shards: Vec<Shard>,
    /// Records left out, the first ten thousand of them.
    pub skipped: Vec<Skipped>,
    pub skipped_records: u64,
}

/// A part that `--fields` asked for.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub(super) struct Part {
    /// Where the source has it.
    pub part: String,
    /// In a word: text, images.
    pub kind: String,
    /// Endings of its members: of images one of each format that was met.
    pub members: BTreeSet<String>,
}

/// What must be the same for an interrupted run to go on.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub(super) struct Identity {
    pub fingerprint: String,
    pub order: String,
    pub shard_size: u64,
    pub max_side: Option<u32>,
    pub quality: Option<u8>,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
pub(super) struct Shard {
    pub name: String,
    pub records: u64,
    pub bytes: u64,
    /// xxh3-128 of the file.
    pub xxh3: String,
    /// The same of its index.
    pub index_xxh3: String,
    /// Positions in the order up to here are done.
    pub end: u64,
    /// Images of it that were shrunk.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub shrunk: u64,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

#[derive(Clone, Debug, Deserialize, Serialize)]
pub(super) struct Skipped {
    pub key: String,
    pub why: String,
}

pub(super) fn read_index(folder: &Path) -> Result<Index, Failure> {
    let path = folder.join(INDEX);
    let bytes = fs::read(&path)
        .map_err(|error| format!("{}: {error}; is this a folder that fuelrail pack made?", shown(&path)))?;
    let foreign = |why: String| format!("{} was not written by fuelrail pack: {why}", shown(&path));
    let value =
        serde_json::from_slice(&bytes).map_err(|error| foreign(settings::json_fault(&error, &bytes)))?;
    let index: Index = settings::read(&value).map_err(|wrong| foreign(wrong.to_string()))?;
    if index.format != "fuelrail-pack" || index.version != 1 {
        return Err(format!(
            "{} has the format {} {}; this version reads fuelrail-pack 1",
            shown(&path),
            index.format,
            index.version
        )
        .into());
    }
    // Names come from outside and are put behind the folder: nothing but a name may be in them.
    let is_name =
        |name: &str| !name.is_empty() && !name.contains(['/', '\\', '\0']) && !name.starts_with('.');
    if let Some(shard) = index.shards.iter().find(|shard| !is_name(&shard.name)) {
        return Err(format!("{}: \"{}\" is not the name of a shard", shown(&path), shard.name).into());
    }
    Ok(index)
}

pub(super) fn write_index(folder: &Path, index: &Index) -> Result<(), Failure> {
    let mut text = serde_json::to_vec_pretty(index)?;
    text.push(b'\n');
    shard::write_whole(folder, INDEX, &text)
}

/// How an earlier run differs from this one.
pub(super) fn difference(old: &Index, new: &Index, name: &str) -> Option<String> {
    let (was, is) = (&old.identity, &new.identity);
    let tell = |what: &str, was: String, is: String| Some(format!("{what} was {was} and is {is} now"));
    let or_none = |value: Option<String>| value.unwrap_or_else(|| "not given".into());
    // Before the fingerprint, which differs then, too.
    let asked = |index: &Index| {
        let parts: Vec<_> =
            index.parts.iter().map(|part| format!("{:?} ({})", part.part, part.kind)).collect();
        if parts.is_empty() { "for no parts".to_owned() } else { format!("for {}", parts.join(", ")) }
    };
    let (asked_before, asked_now) = (asked(old), asked(new));
    if asked_before != asked_now {
        return tell("--fields", asked_before, asked_now);
    }
    if was.fingerprint != is.fingerprint {
        let (was, is) = (&was.fingerprint, &is.fingerprint);
        return Some(format!(
            "the source is another one, or has changed (\"{}\" with fingerprint {was}, now \"{}\" with {is})",
            old.source, new.source
        ));
    }
    if was.order != is.order {
        return tell("the order", was.order.clone(), is.order.clone());
    }
    if was.shard_size != is.shard_size {
        return tell("--shard-size", was.shard_size.to_string(), is.shard_size.to_string());
    }
    if was.max_side != is.max_side {
        return tell(
            "--max-side",
            or_none(was.max_side.map(|n| n.to_string())),
            or_none(is.max_side.map(|n| n.to_string())),
        );
    }
    if was.quality != is.quality {
        return tell(
            "--quality",
            or_none(was.quality.map(|n| n.to_string())),
            or_none(is.quality.map(|n| n.to_string())),
        );
    }
    let prefix = format!("{name}-");
    if let Some(other) = old.shards.iter().find(|shard| !shard.name.starts_with(&prefix)) {
        return tell("--name", format!("that of {}", other.name), name.to_owned());
    }
    (old.fields != new.fields || old.classes != new.classes).then(|| "classes or fields differ".into())
}

/// Reads every shard and compares.
pub(super) fn verify(folder: &Path) -> Result<(), Failure> {
    let index = read_index(folder)?;
    let total = index.shards.iter().map(|shard| shard.bytes).sum();
    let bar =
        Bar::new(Some(total), "checking {wide_bar} {bytes} of {total_bytes}  {bytes_per_sec}  {eta} left");
    let mut wrong = Vec::new();
    for shard in &index.shards {
        let path = folder.join(&shard.name);
        match hash_file(&path, &bar) {
            Ok((_, bytes)) if bytes != shard.bytes => {
                wrong.push(format!("{} has {bytes} bytes, {} were written", shard.name, shard.bytes));
            }
            Ok((hash, _)) if hash != shard.xxh3 => wrong.push(format!("{} is damaged", shard.name)),
            Ok(_) => {}
            Err(error) if signals::interrupted() => return Err(error),
            Err(error) => wrong.push(format!("{}: {error}", shard.name)),
        }
        let name = format!("{}.idx", shard.name);
        match hash_file(&folder.join(&name), &Bar::hidden(None, "{msg}")) {
            Ok((hash, _)) if hash != shard.index_xxh3 => {
                wrong.push(format!("{name} is damaged; delete it, and the shard is read instead"));
            }
            Ok(_) => {}
            Err(error) => wrong.push(format!("{name}: {error}")),
        }
    }
    bar.finish_and_clear();
    if !index.complete {
        wrong.push(
            "shards are missing because packing was interrupted; rerun the same command to continue".into(),
        );
    }
    if !wrong.is_empty() {
        wrong.iter().for_each(|line| say!("{line}"));
        return Err(format!(
            "{} of {} shards or their indices differ from what was written",
            wrong.len(),
            index.shards.len()
        )
        .into());
    }
    say!(
        "{}, {}, {}: all intact",
        counted(index.shards.len() as u64, "shard"),
        counted(index.records, "record"),
        HumanBytes(index.bytes)
    );
    Ok(())
}

fn hash_file(path: &Path, bar: &Bar) -> Result<(String, u64), Failure> {
    let mut file = fs::File::open(path)?;
    let (mut hash, mut bytes, mut piece) = (Xxh3::new(), 0, vec![0; 1 << 20]);
    loop {
        if signals::interrupted() {
            return Err(crate::client::ClientError::Interrupted.into());
        }
        let len = file.read(&mut piece)?;
        if len == 0 {
            return Ok((format!("{:032x}", hash.digest128()), bytes));
        }
        hash.update(&piece[..len]);
        bytes += len as u64;
        bar.inc(len as u64);
    }
}
