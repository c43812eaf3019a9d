//! `fuelrail pack`: any source written as tar shards, in WebDataset's naming, with an index beside each.
//!
//! ```text
//!  DST/shard-000000.tar       000000017_n01440764_18.cls   .npy of each field   .jpg     (ustar, times and owners zero)
//!  DST/shard-000000.tar.idx   where each record lies, so that opening reads no shard
//!  DST/index.json             shards with checksums, classes, fields, the source and the options
//! ```
//!
//! # Promises
//!
//! - Read back, the shards give the images (byte for byte, unless `--max-side` shrank one), labels, classes and fields
//!   of the source, in its order or in the pure one of `--shuffle`. The same source and options give the same bytes.
//! - A shard appears whole: written under another name, synced, renamed. Interrupted anywhere, the next run goes on
//!   behind the last whole shard; with another source or other options it refuses and names the difference.
//! - Memory is bounded: 256 records or 256 MiB ahead, whichever is less.

mod beside;
mod index;
mod shard;
mod shrink;

use std::collections::{BTreeSet, HashSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::{Args, ValueEnum};
use fuelrail_connectors::{
    Cut, IndexedSource, PartKind, ReadError, ReadErrorKind, Record, Schema, TarConfig, shown, tar_sidecar,
};
use indicatif::HumanBytes;

use self::beside::{Beside, Member, plain};
use self::index::{INDEX, Identity, Index, Shard, Skipped, difference, read_index, verify, write_index};
use self::shard::ShardWriter;
use self::shrink::Shrink;
use super::bars::{Bar, counted as count, grouped};
use super::{Failure, parts, read, signals, source};
use crate::order::Order;

/// Records that were left out are named up to this many; all are counted.
const MAX_LISTED: usize = 10_000;

#[derive(Debug, Args)]
pub(super) struct Pack {
    #[arg(value_name = "SOURCE", required_unless_present = "verify", help = source::SOURCE)]
    source: Option<String>,
    /// The folder for the shards; created if it does not exist
    #[arg(value_name = "FOLDER", required_unless_present = "verify")]
    folder: Option<PathBuf>,
    /// Check the shards in this folder against their checksums instead
    #[arg(long, value_name = "FOLDER", conflicts_with_all = ["source", "folder"])]
    verify: Option<PathBuf>,
    #[arg(long = "source-option", alias = "option", short_alias = 'o', value_name = "KEY=VALUE", help = source::OPTION)]
    options: Vec<String>,
    #[arg(long, value_name = "JSON", help = parts::FIELDS)]
    fields: Option<String>,
    /// Name the shards NAME-000000.tar and so on
    #[arg(long, default_value = "shard")]
    name: String,
    /// Approximate size of a shard: 256mb, 1gib
    #[arg(long, default_value = "256mb", value_parser = human_bytes, value_name = "BYTES")]
    shard_size: u64,
    /// Write the records in random order instead of the order of the source
    #[arg(long)]
    shuffle: bool,
    /// Seed of the random order
    #[arg(long, default_value_t = 0, value_name = "N", allow_negative_numbers = true, value_parser = super::at_least::<u64, 0>)]
    seed: u64,
    /// Shrink images whose longer side is above N pixels to N pixels, and re-encode them as JPEG: this is lossy and
    /// drops their metadata (the EXIF orientation is applied). All other images are kept as they are
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=65_535))]
    max_side: Option<u32>,
    /// JPEG quality of images that are shrunk
    #[arg(long, default_value_t = 90, value_name = "Q", value_parser = clap::value_parser!(u8).range(1..=100), requires = "max_side")]
    quality: u8,
    /// What to do with a record whose image cannot be read
    #[arg(long, value_enum, default_value_t = OnError::Fail)]
    on_error: OnError,
    /// Start over: delete the shards of this name that are in the folder
    #[arg(long)]
    force: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum OnError {
    /// Stop and name it
    Fail,
    /// Leave it out, and list it in index.json
    Skip,
}

/// Refuses a target inside of its source: what is packed would be part of it, and a folder with shards is no image
/// folder.
fn apart(address: &str, folder: &Path) -> Result<(), Failure> {
    let Ok(source) = Path::new(address.strip_prefix("file://").unwrap_or(address)).canonicalize() else {
        // A pattern, or a URL: not a folder.
        return Ok(());
    };
    // What there is of the target.
    let target = std::path::absolute(folder)?;
    let there = target.ancestors().find_map(|folder| folder.canonicalize().ok());
    if source.is_dir() && there.is_some_and(|there| there.starts_with(&source)) {
        return Err(format!(
            "{} is inside {address}, which is the source; choose a folder outside it",
            shown(&folder)
        )
        .into());
    }
    Ok(())
}

/// "256mb" and the like.
fn human_bytes(text: &str) -> Result<u64, String> {
    let wrong = || "not a size in bytes; write one like 256mb, 1gib or 100000000".to_owned();
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let factor: u64 = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kb" => 1000,
        "m" | "mb" => 1_000_000,
        "g" | "gb" => 1_000_000_000,
        "t" | "tb" => 1_000_000_000_000,
        "kib" => 1 << 10,
        "mib" => 1 << 20,
        "gib" => 1 << 30,
        "tib" => 1 << 40,
        _ => return Err(wrong()),
    };
    let bytes = number.parse::<f64>().map_err(|_| wrong())? * factor as f64;
    if (1.0..1e18).contains(&bytes) { Ok(bytes as u64) } else { Err(wrong()) }
}

/// One record, ready to be written, or why there is none.
enum Prepared {
    Whole {
        /// With its ending.
        image: Option<(Image, &'static str)>,
        fields: Vec<Vec<u8>>,
        parts: Vec<Member>,
    },
    Unreadable(String),
    /// The environment is broken: no record's fault.
    Failed(String),
}

enum Image {
    Kept(fuelrail_connectors::Buffer, usize),
    Shrunk(Vec<u8>),
}

impl Image {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Kept(buffer, len) => &buffer[..*len],
            Self::Shrunk(bytes) => bytes,
        }
    }
}

impl Pack {
    pub fn run(self) -> Result<(), Failure> {
        signals::watch()?;
        if let Some(folder) = &self.verify {
            return verify(folder);
        }
        let address = self.source.as_deref().expect("clap requires a source");
        let folder = self.folder.as_deref().expect("clap requires a folder");
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_".contains(&b);
        if self.name.is_empty() || !self.name.bytes().all(plain) {
            return Err(format!("--name {}: letters, digits, - and _ only", self.name).into());
        }
        if folder.exists() && !folder.is_dir() {
            return Err(format!("{} is a file; name a folder for the shards", shown(&folder)).into());
        }
        apart(address, folder)?;
        let source = read::open(address, &self.options, self.fields.as_deref())?;
        let schema = source.schema();
        if self.max_side.is_some() && schema.parts.iter().any(|part| part.kind == PartKind::Image) {
            return Err(
                "--max-side shrinks only the main image of a record, and its other images would no longer \
                        match it. Leave it out, or pack the image alone"
                    .into(),
            );
        }
        if !schema.image && self.fields.is_none() {
            return Err(format!(
                "{address} holds no images; say what to pack instead with --fields, such as \
                 '[{{\"type\": \"Text\", \"part\": \"txt\"}}]'"
            )
            .into());
        }
        fs::create_dir_all(folder).map_err(|error| format!("{}: {error}", shown(&folder)))?;
        self.write(address, folder, &source, &schema)
    }

    fn identity(&self, source: &Arc<dyn IndexedSource>) -> Identity {
        Identity {
            fingerprint: source.fingerprint().to_string(),
            order: if self.shuffle { format!("shuffled with seed {}", self.seed) } else { "source".into() },
            shard_size: self.shard_size,
            max_side: self.max_side,
            quality: self.max_side.map(|_| self.quality),
        }
    }

    /// The list of an earlier run that this one goes on with, or a fresh one.
    fn begin(
        &self,
        address: &str,
        folder: &Path,
        source: &Arc<dyn IndexedSource>,
        schema: &Schema,
    ) -> Result<Index, Failure> {
        let endings = field_endings(schema);
        let parts = Beside::new(schema, &endings).listed();
        let fresh = Index {
            format: "fuelrail-pack".into(),
            version: 1,
            complete: false,
            lossy: false,
            source: address.into(),
            identity: self.identity(source),
            records: 0,
            bytes: 0,
            label: if source.is_labelled() { "cls" } else { "none" }.into(),
            classes: source.classes().to_vec(),
            fields: schema
                .fields
                .iter()
                .zip(&endings)
                .map(|(field, ending)| format!("{}={ending}", field.name))
                .collect(),
            parts,
            shards: Vec::new(),
            skipped: Vec::new(),
            skipped_records: 0,
        };
        if let Some(field) =
            schema.fields.iter().find(|field| field.name.contains('=') || field.name.trim() != field.name)
        {
            return Err(format!(
                "the field {:?} cannot be packed: rename it to one without '=' and spaces around",
                field.name
            )
            .into());
        }
        let path = folder.join(INDEX);
        let here = |entry: &Path| {
            let name = entry.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let number =
                name.strip_prefix(&format!("{}-", self.name)).and_then(|rest| rest.split('.').next());
            let is_ours = number.is_some_and(|n| n.len() >= 6 && n.bytes().all(|b| b.is_ascii_digit()));
            is_ours && [".tar", ".tar.idx", ".tmp"].iter().any(|ending| name.ends_with(ending))
        };
        let mut own = Vec::new();
        for entry in fs::read_dir(folder)? {
            let entry = entry?.path();
            if here(&entry) {
                own.push(entry);
            }
        }
        if self.force {
            own.push(path.clone());
            own.iter().filter(|path| path.exists()).try_for_each(fs::remove_file)?;
            return Ok(fresh);
        }
        for temporary in own.iter().filter(|path| path.extension().is_some_and(|ending| ending == "tmp")) {
            fs::remove_file(temporary)?;
        }
        if !path.exists() {
            if let Some(other) =
                own.iter().find(|path| path.extension().is_some_and(|ending| ending == "tar"))
            {
                return Err(format!(
                    "{} exists, but there is no {INDEX} that describes it; choose another folder or --name, or start over \
                     with --force",
                    shown(&other)
                )
                .into());
            }
            return Ok(fresh);
        }
        let old = read_index(folder)?;
        if let Some(difference) = difference(&old, &fresh, &self.name) {
            return Err(format!(
                "{} holds different shards: {difference}. Choose another folder, or start over with --force",
                shown(&folder)
            )
            .into());
        }
        for shard in &old.shards {
            let path = folder.join(&shard.name);
            let size = fs::metadata(&path).map(|meta| meta.len());
            if size.as_ref().ok() != Some(&shard.bytes)
                || !folder.join(format!("{}.idx", shard.name)).exists()
            {
                return Err(format!(
                    "{} has changed since it was written; start over with --force",
                    shown(&path)
                )
                .into());
            }
        }
        Ok(Index { source: address.into(), ..old })
    }

    /// Says what that is called in the shards which `--fields` asked for.
    fn print_parts(&self, index: &Index) {
        let numbers = index.fields.iter().filter_map(|listed| listed.rsplit_once('='));
        for (part, ending) in numbers.filter(|_| self.fields.is_some()) {
            say!("part {part:?} is {ending:?} in the shards");
        }
        beside::print(&index.parts);
    }

    fn write(
        &self,
        address: &str,
        folder: &Path,
        source: &Arc<dyn IndexedSource>,
        schema: &Schema,
    ) -> Result<(), Failure> {
        let mut index = self.begin(address, folder, source, schema)?;
        let len = source.len();
        let begin = index.shards.last().map_or(0, |shard| shard.end);
        if index.complete {
            say!(
                "{} is already packed: {} in {}",
                shown(&folder),
                count(index.records, "record"),
                count(index.shards.len() as u64, "shard")
            );
            self.print_parts(&index);
            return Ok(());
        }
        if begin > 0 {
            let last = &index.shards[index.shards.len() - 1].name;
            say!("continuing after {last}, at record {} of {}", grouped(begin), grouped(len));
        }
        // Before the first shard: from now on whatever is in the folder says what it is.
        write_index(folder, &index)?;
        if let Some(side) = self.max_side {
            eprintln!(
                "note: images whose longer side is above {side} pixels are shrunk and encoded as JPEG at quality {}: \
                 this is lossy",
                self.quality
            );
        }
        let order = if self.shuffle { Order::shuffled(len, self.seed) } else { Order::sequential(len, 0) };
        let order = order.epoch(0);
        let bar =
            Bar::new(Some(len), "packing {wide_bar} {human_pos} of {human_len}  {rate}  {msg}  {eta} left");
        bar.set_position(begin);
        bar.reset_eta();
        let endings = field_endings(schema);
        let beside = Beside::new(schema, &endings);
        let longest = endings.iter().map(String::len).max().unwrap_or(0).max(beside.longest());
        let mut writer = Writer {
            pack: self,
            folder,
            source,
            endings,
            longest,
            index: &mut index,
            open: None,
            shrunk: 0,
            members: BTreeSet::new(),
            skipped: Vec::new(),
        };
        let shrink = self.max_side.map(|side| Shrink { side, quality: self.quality });
        let cut = schema.clone();
        let is_labelled = source.is_labelled();
        let prepare = move |_: u64, result: Result<Record, ReadError>| {
            match prepare(result, &cut, &beside, shrink) {
                // It would have no member at all, and nobody would find it.
                Prepared::Whole { image: None, fields, parts }
                    if fields.is_empty() && parts.is_empty() && !is_labelled =>
                {
                    Prepared::Unreadable("it has no part that --fields asks for".into())
                }
                prepared => prepared,
            }
        };
        let written = read::in_order(
            source,
            len - begin,
            |at| order.index(begin + at),
            prepare,
            |at, prepared| {
                let position = begin + at;
                writer.record(position, order.index(position), prepared)?;
                bar.inc(1);
                if position.is_multiple_of(64) {
                    bar.set_message(writer.message());
                }
                Ok(())
            },
        );
        if let Err(error) = written {
            drop(bar);
            writer.give_up();
            let whole = writer.index.shards.len();
            eprintln!(
                "stopped: {} complete in {}; rerun the same command to continue",
                count(whole as u64, "shard"),
                shown(&folder)
            );
            return Err(error);
        }
        writer.close(len)?;
        if writer.index.shards.is_empty() {
            let first =
                writer.index.skipped.first().map(|skipped| format!("{}: {}", skipped.key, skipped.why));
            return Err(
                format!("no record could be read; the first error is {}", first.unwrap_or_default()).into()
            );
        }
        writer.index.complete = true;
        write_index(folder, writer.index)?;
        drop(bar);
        self.print_parts(&index);
        report(folder, &index);
        Ok(())
    }
}

/// Says what was packed.
fn report(folder: &Path, index: &Index) {
    let shrunk: u64 = index.shards.iter().map(|shard| shard.shrunk).sum();
    say!(
        "{} in {}, {}, in {}",
        count(index.records, "record"),
        count(index.shards.len() as u64, "shard"),
        HumanBytes(index.bytes),
        shown(&folder)
    );
    if shrunk > 0 {
        say!("{} shrunk and re-encoded", count(shrunk, "image"));
    }
    if index.skipped_records > 0 {
        say!("{} left out because they could not be read:", count(index.skipped_records, "record"));
        index.skipped.iter().take(20).for_each(|skipped| say!("  {}: {}", skipped.key, skipped.why));
        if index.skipped_records > 20 {
            say!("  … (the list is in {})", shown(&folder.join(INDEX)));
        }
    }
}

/// The ending of each field's member: its name in lower case, in plain letters, no two alike.
fn field_endings(schema: &Schema) -> Vec<String> {
    let mut taken = HashSet::new();
    schema
        .fields
        .iter()
        .map(|field| {
            let stem = plain(&field.name);
            let numbered = (2..).map(|number| format!("{stem}{number}.npy"));
            let mut names = std::iter::once(format!("{stem}.npy")).chain(numbered);
            names.find(|name| taken.insert(name.clone())).expect("numbers do not end")
        })
        .collect()
}

/// What an image and its fields become.
fn prepare(
    result: Result<Record, ReadError>,
    schema: &Schema,
    beside: &Beside,
    shrink: Option<Shrink>,
) -> Prepared {
    let record = match result {
        Ok(record) => record,
        Err(error) if error.kind() == ReadErrorKind::Bad => {
            return Prepared::Unreadable(error.detail().to_owned());
        }
        Err(error) => return Prepared::Failed(error.to_string()),
    };
    let Some(Cut { image, parts, fields: values }) = schema.cut(&record.bytes) else {
        return Prepared::Unreadable("it is shorter than its fields".into());
    };
    let parts = match beside.members(&parts) {
        Ok(parts) => parts,
        Err(why) => return Prepared::Unreadable(why),
    };
    let mut values = values;
    let mut fields = Vec::new();
    for field in &schema.fields {
        let (value, rest) = values.split_at(field.bytes());
        fields.push(shard::npy(field, value));
        values = rest;
    }
    if !schema.image {
        return Prepared::Whole { image: None, fields, parts };
    }
    let (len, found) = (image.len(), shrink::look(image, shrink));
    let (image, ending) = match found {
        Err(why) => return Prepared::Unreadable(why),
        Ok((ending, None)) => (Image::Kept(record.bytes, len), ending),
        Ok((ending, Some(bytes))) => (Image::Shrunk(bytes), ending),
    };
    Prepared::Whole { image: Some((image, ending)), fields, parts }
}

/// Writes shards, and their list after each.
struct Writer<'a> {
    pack: &'a Pack,
    folder: &'a Path,
    source: &'a Arc<dyn IndexedSource>,
    endings: Vec<String>,
    /// Letters of the longest ending.
    longest: usize,
    index: &'a mut Index,
    open: Option<ShardWriter>,
    /// Of the open shard.
    shrunk: u64,
    /// Of the open shard: which parts have members of which endings.
    members: BTreeSet<(usize, String)>,
    skipped: Vec<Skipped>,
}

impl Writer<'_> {
    fn record(&mut self, position: u64, record: u64, prepared: Prepared) -> Result<(), Failure> {
        let (image, fields, parts) = match prepared {
            Prepared::Whole { image, fields, parts } => (image, fields, parts),
            Prepared::Failed(why) => return Err(why.into()),
            Prepared::Unreadable(why) if self.pack.on_error == OnError::Skip => {
                let key = self.source.key(record);
                self.skipped.push(Skipped { key, why });
                return Ok(());
            }
            Prepared::Unreadable(why) => {
                let key = self.source.key(record);
                return Err(format!(
                    "{key}: {why}. Repair or remove it, or skip such records with --on-error skip"
                )
                .into());
            }
        };
        let label = self.source.is_labelled().then(|| self.source.label(record).to_string());
        let of_parts = parts.iter().map(|member| member.content.len());
        let of_image = image.iter().map(|(image, _)| image.bytes().len());
        let sizes = fields.iter().map(Vec::len).chain(of_image).chain(of_parts);
        let sizes = sizes.chain(label.as_ref().map(String::len));
        let size: u64 = sizes.map(shard::member_bytes).sum();
        if self.open.as_ref().is_some_and(|open| open.bytes() + size > self.pack.shard_size) {
            self.close(position)?;
        }
        let open = match &mut self.open {
            Some(open) => open,
            None => {
                let name = format!("{}-{:06}.tar", self.pack.name, self.index.shards.len());
                self.open.insert(ShardWriter::create(self.folder, &name)?)
            }
        };
        let stem = stem(record, &self.source.key(record), self.longest);
        if let Some(label) = label {
            open.member(&format!("{stem}.cls"), label.as_bytes())?;
        }
        for (name, bytes) in self.endings.iter().zip(&fields) {
            open.member(&format!("{stem}.{name}"), bytes)?;
        }
        for Member { part, ending, content } in parts {
            open.member(&format!("{stem}.{ending}"), &content)?;
            self.members.insert((part, ending));
        }
        if let Some((image, ending)) = &image {
            open.member(&format!("{stem}.{ending}"), image.bytes())?;
        }
        open.record();
        self.shrunk += u64::from(matches!(image, Some((Image::Shrunk(_), _))));
        Ok(())
    }

    /// Finishes the open shard: positions below `end` are in it, in those before, or skipped.
    fn close(&mut self, end: u64) -> Result<(), Failure> {
        let Some(open) = self.open.take() else { return self.take_skipped() };
        let wanted = TarConfig {
            label: Some(self.index.label.clone()),
            fields: Some(self.index.fields.clone()),
            ..TarConfig::default()
        };
        let done = open.finish(|path| Ok(tar_sidecar(path, &wanted)?))?;
        self.index.records += done.records;
        self.index.bytes += done.bytes;
        self.index.lossy |= self.shrunk > 0;
        for (part, ending) in std::mem::take(&mut self.members) {
            self.index.parts[part].members.insert(ending);
        }
        self.index.shards.push(Shard {
            name: done.name,
            records: done.records,
            bytes: done.bytes,
            xxh3: done.xxh3,
            index_xxh3: done.index_xxh3,
            end,
            shrunk: std::mem::take(&mut self.shrunk),
        });
        self.take_skipped()?;
        write_index(self.folder, self.index)
    }

    fn take_skipped(&mut self) -> Result<(), Failure> {
        self.index.skipped_records += self.skipped.len() as u64;
        let room = MAX_LISTED.saturating_sub(self.index.skipped.len());
        let skipped = std::mem::take(&mut self.skipped);
        self.index.skipped.extend(skipped.into_iter().take(room));
        Ok(())
    }

    fn give_up(&mut self) {
        if let Some(open) = self.open.take() {
            open.discard();
        }
    }

    fn message(&self) -> String {
        let open = self.open.as_ref().map_or(0, ShardWriter::bytes);
        format!("{}, shard {}", HumanBytes(self.index.bytes + open), self.index.shards.len())
    }
}

/// A name for the members of a record that is unique and tells where it came from: its number in the source and the
/// last part of its key, in plain letters. With an ending of `longest` letters it fits in a header.
fn stem(record: u64, key: &str, longest: usize) -> String {
    let base = key.rsplit('/').next().unwrap_or(key);
    let base = base.split('.').next().unwrap_or(base);
    let plain = |c: char| if c.is_ascii_alphanumeric() || c == '_' || c == '-' { c } else { '_' };
    let number = format!("{record:09}_");
    let room = (shard::MAX_NAME - 1).saturating_sub(longest + number.len());
    number + &base.chars().map(plain).take(room.min(48)).collect::<String>()
}

#[cfg(test)]
mod tests {
    use fuelrail_connectors::{ElementType, FieldSpec};

    use super::*;

    #[test]
    fn sizes_are_written_as_people_do() {
        for (text, bytes) in [
            ("256mb", 256_000_000),
            ("1GiB", 1 << 30),
            ("1.5k", 1500),
            ("10", 10),
            ("2 tb", 2_000_000_000_000),
        ] {
            assert_eq!(human_bytes(text), Ok(bytes), "{text}");
        }
        for text in ["", "mb", "0", "-1", "1xb", "1e99", "1..2m", "99999999tb"] {
            assert!(human_bytes(text).is_err(), "{text}");
        }
    }

    #[test]
    fn members_have_plain_names_of_their_own() {
        assert_eq!(stem(7, "train/n01/a b.c.jpg", 5), "000000007_a_b");
        assert_eq!(stem(7, "é/漢字.png", 5), "000000007___");
        let long = "x".repeat(500);
        assert_eq!(stem(7, &long, 41).len(), 10 + 48);
        let field = |name: &str| FieldSpec { name: name.into(), dtype: ElementType::F32, shape: vec![] };
        let schema = Schema::of(true, vec![field("Box"), field("box"), field("a/b.c")]);
        assert_eq!(field_endings(&schema), ["box.npy", "box2.npy", "a_b_c.npy"]);
        let endings = field_endings(&Schema::of(true, vec![field(&long), field(&long.to_uppercase())]));
        let longest = endings.iter().map(String::len).max().unwrap_or_default();
        assert!(stem(u64::MAX, &long, longest).len() > 21, "something of the key is left");
        assert!(stem(u64::MAX, &long, longest).len() < shard::MAX_NAME - longest);
    }
}
