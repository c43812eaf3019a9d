//! Named parts of an image folder's records: files that belong to an image by their name or their path.
//!
//! ```text
//!  cat/7.jpg          the record                         "cat/7.jpg"
//!  cat/7.txt          part "txt"                         7.seg.png   part "seg.png"
//!  cat/7.json         part "json:boxes": what it has under that key
//!  ../masks/cat/7.png part "../masks/{path}.png"
//! ```
//!
//! - An ending belongs to the image with the same stem, its name without its last ending. Of several ("jpg;png") the
//!   first that is there counts. A file with an ending that was asked for is a part and no image of its own.
//! - Without the source's own image, files with one of the endings are the records: each stem once.
//! - What a file was called and how large it was is found out when the folder is listed: four bytes a record and file.
//!   Its bytes are read with the record.

use std::borrow::Cow;

use xxhash_rust::xxh3::Xxh3;

use super::FolderConfig;
use super::template::{self, Template};
use crate::bytes::buffer::Buffer;
use crate::gather::Room;
use crate::names::{is_image, shown};
use crate::schema::{FieldSpec, wants_image};
use crate::settings::similar;
use crate::sources::manifest::Manifest;
use crate::values::file::{LOOKED_AT, MOST_NAMED, Part};
use crate::values::npy::NpyHeader;
use crate::values::{fault, json};
use crate::{ElementType, Fingerprint, MAX_PART_BYTES, PartKind, ReadError, Schema, SourceError, Wanted};

/// Stands for the size of a file that a record does not have, and of one that is too large.
const ABSENT: u32 = u32::MAX;
const TOO_LARGE: u32 = u32::MAX - 1;

/// Stands for a name that there is none of, in [`Coupled`].
pub(crate) const NONE: u32 = u32::MAX;

/// What is asked for, taken apart.
#[derive(Clone, Debug, Default)]
pub(crate) struct Plan {
    pub has_image: bool,
    /// Where the files are that parts are made of.
    pub files: Vec<Place>,
    /// In the schema's order. The member of each is one of the files.
    parts: Vec<Part>,
    /// Those that become fields.
    numbers: Vec<Part>,
}

/// Where a file is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// Beside the image, with one of these endings, in lower case.
    Beside(Vec<String>),
    At(Template),
}

impl Plan {
    /// What the configuration asks for, if it is anything but the image.
    ///
    /// # Errors
    /// [`SourceError`] for a part that no folder can have.
    pub fn new(config: &FolderConfig) -> Result<Option<Self>, SourceError> {
        let mut plan = Self { has_image: wants_image(&config.deliver), ..Self::default() };
        for wanted in config.deliver.iter().flatten().filter(|wanted| !wanted.is_own_image()) {
            let part = plan.part(wanted)?;
            let list = if wanted.is_part() { &mut plan.parts } else { &mut plan.numbers };
            list.push(part);
        }
        if plan.has_image && plan.files.is_empty() {
            return Ok(None);
        }
        if !plan.has_image && plan.endings().next().is_none() {
            return Err(SourceError::config(
                "none of the parts says which files are the records: ask for the image too, or for an ending like \
                 \"txt\""
                    .into(),
            ));
        }
        Ok(Some(plan))
    }

    fn part(&mut self, wanted: &Wanted) -> Result<Part, SourceError> {
        let text = wanted.part.as_str();
        let refuse = |why: &str| Err(SourceError::config(format!("part {text:?}: {why}")));
        // A template may have a colon in its braces.
        let begin = text.rfind('}').unwrap_or(0);
        let (file, path) = match text[begin..].split_once(':') {
            Some((before, path)) => (&text[..begin + before.len()], Some(path.to_owned())),
            None => (text, None),
        };
        let place = if template::is_template(file) {
            Place::At(Template::parse(file)?)
        } else {
            let ending = |ending: &str| ending.trim_start_matches('.').to_ascii_lowercase();
            let endings: Vec<String> = file.split(';').map(ending).collect();
            if endings.iter().any(|ending| ending.is_empty() || ending.contains('\0')) {
                return refuse("an ending is missing; write one like \"txt\", or several like \"jpg;png\"");
            }
            Place::Beside(endings)
        };
        let known = self.files.iter().position(|other| *other == place);
        let at = known.unwrap_or_else(|| {
            self.files.push(place);
            self.files.len() - 1
        });
        let end = |word: &str| {
            let ends = |name: &str| name == word || name.ends_with(&format!(".{word}"));
            match &self.files[at] {
                Place::Beside(endings) => endings.iter().all(|ending| ends(ending)),
                Place::At(_) => ends(file),
            }
        };
        Part::new(wanted, at, path, end)
    }

    fn all(&self) -> impl Iterator<Item = &Part> {
        self.parts.iter().chain(&self.numbers)
    }

    /// Files read for each record at most: its image, and those that parts are made of.
    pub fn stride(&self) -> u64 {
        u64::from(self.has_image) + self.files.len() as u64
    }

    fn endings(&self) -> impl Iterator<Item = &str> {
        let endings = self.files.iter().filter_map(|place| match place {
            Place::Beside(endings) => Some(endings),
            Place::At(_) => None,
        });
        endings.flatten().map(String::as_str)
    }

    pub fn templates(&self) -> impl Iterator<Item = (usize, &Template)> {
        self.files.iter().enumerate().filter_map(|(file, place)| match place {
            Place::At(template) => Some((file, template)),
            Place::Beside(_) => None,
        })
    }

    /// What records end in, for a message.
    pub fn records_end_in(&self) -> String {
        if self.has_image {
            return super::extensions();
        }
        self.endings().map(|ending| format!(".{ending}")).collect::<Vec<_>>().join(" ")
    }

    /// Bytes of the name of a part's file before the longest ending that was asked for. `None` for other files.
    pub fn stem_of_part(&self, name: &[u8]) -> Option<usize> {
        let before = |ending: &str| {
            let stem = name.len().checked_sub(ending.len() + 1).filter(|&stem| stem > 0)?;
            let is_it = name[stem] == b'.' && name[stem + 1..].eq_ignore_ascii_case(ending.as_bytes());
            is_it.then_some(stem)
        };
        self.endings().filter_map(before).min()
    }

    /// Whether a file may be a record, or belong to one by its ending.
    pub fn takes(&self, name: &[u8]) -> bool {
        self.stem_of_part(name).is_some() || (self.has_image && is_image(name))
    }

    /// Bytes of a record's path before its ending.
    pub fn stem(&self, path: &[u8]) -> usize {
        if !self.has_image {
            return self.stem_of_part(path).unwrap_or(path.len());
        }
        path.iter().rposition(|&byte| byte == b'.').unwrap_or(path.len())
    }

    /// How many endings of a file go before this one, if it is one of them.
    fn rank(&self, file: usize, ending: &[u8]) -> Option<usize> {
        match &self.files[file] {
            Place::Beside(endings) => {
                endings.iter().position(|other| other.as_bytes().eq_ignore_ascii_case(ending))
            }
            Place::At(_) => None,
        }
    }

    /// Puts the files of one folder together, of which each is [taken](Self::takes). The names are sorted.
    pub fn couple(&self, names: &[&[u8]]) -> Coupled {
        let mut coupled = Coupled::default();
        let stems: Vec<Option<usize>> = names.iter().map(|name| self.stem_of_part(name)).collect();
        let stem_of = |at: u32| &names[at as usize][..stems[at as usize].unwrap_or(0)];
        let numbers = 0..names.len() as u32;
        let mut parts: Vec<u32> = numbers.clone().filter(|&at| stems[at as usize].is_some()).collect();
        parts.sort_by_key(|&at| stem_of(at));
        // Of several, the first ending; of several spellings, the one that was asked for.
        let of = |group: &[u32], file: usize| {
            let rank = |&at: &u32| {
                let ending = &names[at as usize][stem_of(at).len() + 1..];
                let rank = self.rank(file, ending)?;
                Some((rank, ending.iter().any(u8::is_ascii_uppercase), at))
            };
            group.iter().filter_map(rank).min().map(|(.., at)| at)
        };
        if self.has_image {
            coupled.records = numbers.filter(|&at| stems[at as usize].is_none()).collect();
        } else {
            let groups = parts.chunk_by(|&a, &b| stem_of(a) == stem_of(b));
            let first = |group| (0..self.files.len()).find_map(|file| of(group, file));
            coupled.records = groups.filter_map(first).collect();
            coupled.records.sort_unstable();
        }
        let mut used = vec![false; names.len()];
        for &record in &coupled.records {
            let name = names[record as usize];
            let stem = &name[..self.stem(name)];
            let begin = parts.partition_point(|&at| stem_of(at) < stem);
            let end = begin + parts[begin..].partition_point(|&at| stem_of(at) == stem);
            for file in 0..self.files.len() {
                let found = of(&parts[begin..end], file);
                coupled.beside.push(found.unwrap_or(NONE));
                found.inspect(|&at| used[at as usize] = true);
            }
        }
        for &at in &parts {
            if !used[at as usize] {
                coupled.alone += 1;
            } else if self.has_image && is_image(names[at as usize]) {
                coupled.images += 1;
            }
        }
        coupled
    }
}

/// Which files of a folder belong together, by their numbers.
#[derive(Debug, Default)]
pub(crate) struct Coupled {
    pub records: Vec<u32>,
    /// For each record and each of the plan's files: its file, or [`NONE`].
    pub beside: Vec<u32>,
    /// Images that are parts of other images.
    pub images: u64,
    /// Files of parts that belong to no record.
    pub alone: u64,
}

/// One file of all records: how large it is, and what its ending is there.
#[derive(Clone, Debug, Default)]
pub(crate) struct Column {
    sizes: Vec<u32>,
    /// The endings as they are spelled.
    endings: Vec<Vec<u8>>,
    /// Which of them, once there are several.
    which: Vec<u16>,
}

impl Column {
    /// The next record's file: its size, and its ending (empty for one of a template).
    pub fn push(&mut self, found: Option<(u64, &[u8])>) {
        let Some((size, ending)) = found else { return self.add(ABSENT, 0) };
        let which = self.endings.iter().position(|other| other == ending).unwrap_or_else(|| {
            self.endings.push(ending.to_vec());
            self.endings.len() - 1
        });
        // So many spellings has an ending of more than 16 letters at least; the rest are as good as not there.
        match u16::try_from(which) {
            Ok(which) if size <= MAX_PART_BYTES => self.add(size as u32, which),
            Ok(which) => self.add(TOO_LARGE, which),
            Err(_) => self.add(ABSENT, 0),
        }
    }

    fn add(&mut self, size: u32, which: u16) {
        if which > 0 || !self.which.is_empty() {
            self.which.resize(self.sizes.len(), 0);
            self.which.push(which);
        }
        self.sizes.push(size);
    }

    /// Its size, if the record has it and it is not too large.
    fn size(&self, index: u64) -> Option<u64> {
        let size = self.sizes[index as usize];
        (size < TOO_LARGE).then_some(u64::from(size))
    }

    fn ending(&self, index: u64) -> &[u8] {
        let which = self.which.get(index as usize).copied().unwrap_or(0);
        self.endings.get(usize::from(which)).map_or(&[], Vec::as_slice)
    }

    fn is_there(&self) -> bool {
        self.sizes.iter().any(|&size| size != ABSENT)
    }

    fn hash(&self, hash: &mut Xxh3) {
        self.sizes.iter().for_each(|size| hash.update(&size.to_le_bytes()));
    }

    fn memory(&self) -> u64 {
        let endings: usize = self.endings.iter().map(|ending| ending.capacity() + size_of::<Vec<u8>>()).sum();
        (self.sizes.capacity() * 4 + self.which.capacity() * 2 + endings) as u64
    }
}

/// What belongs to the records of a list: equal for equal files.
pub(crate) fn state(columns: &[Column]) -> u128 {
    let mut hash = Xxh3::new();
    columns.iter().for_each(|column| column.hash(&mut hash));
    hash.digest128()
}

/// The parts of all records of an open folder.
#[derive(Debug)]
pub(crate) struct Parts {
    pub plan: Plan,
    pub schema: Schema,
    columns: Vec<Column>,
    fingerprint: Fingerprint,
    largest: u64,
}

/// What has to be asked of a place to know what its parts hold.
pub(crate) trait Look {
    /// The folder, as it is shown.
    fn place(&self) -> String;

    fn manifest(&self) -> &Manifest;

    /// The whole file of a record, which has this path and this size.
    fn read(&self, index: u64, file: usize, path: &[u8], size: u64) -> Option<Vec<u8>>;

    /// Why there may be no file of the plan at this path.
    fn missing(&self, file: usize, path: &[u8]) -> String;

    /// Endings of files that are neither images nor parts.
    fn others(&self) -> Vec<&str>;
}

impl Parts {
    /// Settles what the parts hold, and that there are some.
    ///
    /// # Errors
    /// When no record has one of them.
    pub fn new(plan: Plan, mut columns: Vec<Column>, look: &dyn Look) -> Result<Self, SourceError> {
        for column in &mut columns {
            column.sizes.shrink_to_fit();
            column.which.shrink_to_fit();
        }
        let schema = Schema::of(plan.has_image, Vec::new());
        let mut parts = Self { plan, schema, columns, fingerprint: Fingerprint(0), largest: 0 };
        for part in parts.plan.all() {
            if !parts.columns[part.file].is_there() && !part.wanted.optional {
                return Err(parts.nowhere(part, look));
            }
        }
        let learnt =
            parts.plan.parts.iter().map(|part| part.settle(|| parts.first(part, look), &look.place()));
        parts.schema.parts = learnt.collect::<Result<Vec<_>, _>>()?;
        let learnt = parts.plan.numbers.iter().map(|part| parts.settle(part, look));
        parts.schema.fields = learnt.collect::<Result<Vec<_>, _>>()?;
        parts.schema.check_shapes().map_err(SourceError::config)?;
        parts.fingerprint = parts.hash(look.manifest());
        let manifest = look.manifest();
        parts.largest = (0..manifest.len()).map(|index| parts.size(manifest, index)).max().unwrap_or(0);
        Ok(parts)
    }

    /// No record has the file of a part.
    fn nowhere(&self, part: &Part, look: &dyn Look) -> SourceError {
        let (name, place) = (&part.wanted.part, look.place());
        let what = if self.plan.has_image { "image" } else { "record" };
        match &self.plan.files[part.file] {
            Place::Beside(endings) => {
                let others = look.others();
                let near =
                    endings.iter().find_map(|ending| similar(&format!(".{ending}"), others.iter().copied()));
                let near = near.map_or(String::new(), |near| format!("; did you mean {:?}?", &near[1..]));
                let named = others.iter().take(MOST_NAMED).copied().collect::<Vec<_>>().join(" ");
                let there = if named.is_empty() {
                    String::new()
                } else {
                    format!("; other files there end in {named}")
                };
                SourceError::data(format!(
                    "part {name:?}: no {what} of {place} has a file beside it that ends in .{}{there}{near}",
                    endings.join(" or .")
                ))
            }
            Place::At(_) => {
                let mut path = Vec::new();
                let why = match self.path(look.manifest(), 0, part.file, &mut path) {
                    true => look.missing(part.file, &path),
                    false => "the name of the first makes no path in that folder".to_owned(),
                };
                SourceError::data(format!(
                    "part {name:?}: no {what} of {place} has this file; for the first, {why}"
                ))
            }
        }
    }

    /// The files that a part is made of, of the records that have one.
    fn first<'parts>(
        &'parts self,
        part: &'parts Part,
        look: &'parts dyn Look,
    ) -> impl Iterator<Item = Vec<u8>> + 'parts {
        let manifest = look.manifest();
        (0..manifest.len()).filter_map(move |index| {
            let size = self.columns[part.file].size(index)?;
            let mut path = Vec::new();
            self.path(manifest, index, part.file, &mut path);
            look.read(index, part.file, &path, size)
        })
    }

    /// What numbers of fixed shape are: in JSON, whole numbers if the first records have no others.
    fn settle(&self, part: &Part, look: &dyn Look) -> Result<FieldSpec, SourceError> {
        part.has_key(self.first(part, look), &look.place())?;
        let name = &part.wanted.part;
        let mut found: Option<(ElementType, Vec<u64>)> = None;
        for file in self.first(part, look).take(LOOKED_AT) {
            let Some((dtype, shape)) = numbers(part, &file) else { continue };
            match &mut found {
                None => found = Some((dtype, shape)),
                Some((known, _)) if part.path.is_some() && dtype == ElementType::F32 => *known = dtype,
                Some(_) => {}
            }
            if part.path.is_none() {
                break;
            }
        }
        let Some((dtype, shape)) = found else {
            return Err(SourceError::data(format!(
                "part {name:?}: none of the first {LOOKED_AT} records of {} that have it holds numbers of one shape \
                 there",
                look.place()
            )));
        };
        let dtype = part.wanted.dtype.filter(|_| part.path.is_some()).unwrap_or(dtype);
        tracing::info!("part {name:?}: {dtype} of shape {shape:?}, as the first records have it");
        Ok(FieldSpec { name: name.clone(), dtype, shape })
    }

    /// Appends the path of a record's file, relative to the root. False when there can be none.
    pub fn path(&self, manifest: &Manifest, index: u64, file: usize, path: &mut Vec<u8>) -> bool {
        let begin = path.len();
        manifest.path(index, path);
        let stem = self.plan.stem(&path[begin..]);
        match &self.plan.files[file] {
            Place::Beside(_) => {
                path.truncate(begin + stem);
                path.push(b'.');
                path.extend_from_slice(self.columns[file].ending(index));
                true
            }
            Place::At(template) => {
                let made = template.expand(&path[begin..], stem);
                path.truncate(begin);
                made.inspect(|made| path.extend_from_slice(made)).is_some()
            }
        }
    }

    /// Which file is read as number `at` of a record: `None` for its image.
    pub fn file(&self, at: u64) -> Option<usize> {
        (at as usize).checked_sub(usize::from(self.plan.has_image))
    }

    /// Bytes of a record's file, if it is to be read.
    pub fn file_size(&self, index: u64, file: usize) -> Option<u64> {
        self.columns[file].size(index)
    }

    /// Bytes of a record at most.
    pub fn size(&self, manifest: &Manifest, index: u64) -> u64 {
        let image = if self.plan.has_image { manifest.size(index) } else { 0 };
        let part = |part: &Part| self.columns[part.file].size(index).map_or(0, |size| part.most_bytes(size));
        image + self.plan.parts.iter().map(part).sum::<u64>() + self.schema.fixed_bytes() as u64
    }

    /// Bytes of the largest record.
    pub fn largest(&self) -> u64 {
        self.largest
    }

    /// Makes a record of its files.
    ///
    /// # Errors
    /// What is wrong with one, by the part's name.
    pub fn join(
        &self,
        index: u64,
        files: &[Buffer],
        key: impl Fn() -> String,
        room: &Room<'_>,
    ) -> Result<Buffer, ReadError> {
        let (image, files) = files.split_at(usize::from(self.plan.has_image));
        let bad = |why: String| ReadError::bad(key(), why);
        let parts = self.plan.parts.iter().zip(&self.schema.parts);
        let parts = parts.map(|(part, spec)| self.made(index, part, &spec.kind, files));
        let parts = parts.collect::<Result<Vec<_>, _>>().map_err(bad)?;
        let mut fields = Vec::with_capacity(self.schema.fields_bytes());
        for (part, spec) in self.plan.numbers.iter().zip(&self.schema.fields) {
            self.field(index, part, spec, files, &mut fields)
                .map_err(|why| bad(fault(&part.wanted.part, &why)))?;
        }
        let image: &[u8] = image.first().map_or(&[], |image| image);
        let lengths = parts.iter().map(|part| part.as_ref().map(|part| part.len()));
        let size = self.schema.record_bytes(image.len(), lengths);
        room.record(size as u64, |record| {
            self.schema.join(image, parts.iter().map(|part| part.as_deref()), &fields, record);
            Ok(())
        })
    }

    fn made<'file>(
        &self,
        index: u64,
        part: &Part,
        kind: &PartKind,
        files: &'file [Buffer],
    ) -> Result<Option<Cow<'file, [u8]>>, String> {
        let column = &self.columns[part.file];
        match column.size(index) {
            Some(_) => part.make(&files[part.file], kind),
            None if column.sizes[index as usize] == TOO_LARGE => {
                Err(fault(&part.wanted.part, &format!("is larger than {} MiB", MAX_PART_BYTES >> 20)))
            }
            None => Ok(None),
        }
    }

    /// Appends numbers of fixed shape.
    fn field(
        &self,
        index: u64,
        part: &Part,
        spec: &FieldSpec,
        files: &[Buffer],
        out: &mut Vec<u8>,
    ) -> Result<(), String> {
        if self.columns[part.file].size(index).is_none() {
            return Err("is missing".into());
        }
        let bytes = &files[part.file];
        if let Some(path) = &part.path {
            return part.value(bytes, path, |value| {
                out.extend(json::fixed(value.ok_or("is missing")?, spec.dtype, &spec.shape)?);
                Ok(())
            });
        }
        let header = NpyHeader::of(bytes)?;
        if (header.dtype, &header.shape) != (spec.dtype, &spec.shape) {
            return Err(format!(
                "is {} of shape {:?}; {} of shape {:?} is expected",
                header.dtype, header.shape, spec.dtype, spec.shape
            ));
        }
        out.extend_from_slice(&bytes[header.len as usize..]);
        Ok(())
    }

    pub fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    fn hash(&self, manifest: &Manifest) -> Fingerprint {
        let mut hash = Xxh3::new();
        hash.update(b"fuelrail folder with parts 1\0");
        hash.update(&manifest.fingerprint().0.to_le_bytes());
        hash.update(&serde_json::to_vec(&self.schema).expect("a schema is plain data"));
        self.columns.iter().for_each(|column| column.hash(&mut hash));
        Fingerprint(hash.digest128())
    }

    pub fn memory(&self) -> u64 {
        size_of::<Self>() as u64 + self.columns.iter().map(Column::memory).sum::<u64>()
    }

    /// What an opening made of the folder.
    pub fn notes(&self) -> Vec<String> {
        let note = |part: &Part| {
            let have = self.columns[part.file].sizes.iter().filter(|&&size| size != ABSENT).count();
            let all = self.columns[part.file].sizes.len();
            let lacking = match all - have {
                0 => String::new(),
                1 => " (1 record lacks it)".into(),
                count => format!(" ({count} records lack it)"),
            };
            format!("part {:?}{lacking}", part.wanted.part)
        };
        self.plan.all().map(note).collect()
    }
}

/// Type and shape of the numbers in a file.
fn numbers(part: &Part, bytes: &[u8]) -> Option<(ElementType, Vec<u64>)> {
    let Some(path) = &part.path else {
        let header = NpyHeader::of(bytes).ok()?;
        return Some((header.dtype, header.shape));
    };
    part.value(bytes, path, |value| Ok(value.and_then(json_numbers))).ok()?
}

fn json_numbers(value: &str) -> Option<(ElementType, Vec<u64>)> {
    let mut shape = Vec::new();
    if value.trim_ascii_start().starts_with('[') {
        let list: Vec<&serde_json::value::RawValue> = serde_json::from_str(value).ok()?;
        shape.push(list.len() as u64);
        shape.extend(json::shape_of_rows(value)?);
    }
    let digits = value.replace("true", "").replace("false", "");
    let dtype = if digits.contains(['.', 'e', 'E']) { ElementType::F32 } else { ElementType::I64 };
    json::fixed(value, dtype, &shape).ok()?;
    Some((dtype, shape))
}

/// How many files were put with others, or with none, for the log.
pub(crate) fn coupled_notes(images: u64, alone: u64, folders: &[String]) -> Vec<String> {
    let mut notes = Vec::new();
    if images > 0 {
        notes.push(format!("{images} images are parts of others, not records"));
    }
    if alone > 0 {
        notes.push(format!("{alone} files that are named like parts belong to no record and were skipped"));
    }
    for folder in folders {
        notes.push(format!("the folder {} holds parts and no records", shown(folder)));
    }
    notes
}

#[cfg(test)]
mod tests;
