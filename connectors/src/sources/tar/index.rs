//! What one shard holds: its records as columns, made by walking over its members once.
//!
//! Members belong together by WebDataset's rule: the *key* is the member's name up to the first dot of its last part,
//! the
//! *ending* is what follows, in lower case; members of one key stand one after the other. Names that begin with a dot,
//! and those under `__name__`, are nobody's.
//!
//! ```text
//!  n01440764/0001.cls  n01440764/0001.emb.npy  n01440764/0001.jpg     one record, named after its image
//!  ╰───── key ──────╯╰ ending
//! ```

use std::collections::HashSet;

use serde_json::Value;
use xxhash_rust::xxh3::xxh3_64;

use super::archive::{Archive, Bytes, Fault, Member, Notes};
use super::fields::Field;
use super::options::{From, Label, Options};
use super::parts::Members;
use super::proof::{Piece, Pieces, digest, seal};
use super::values::{Numbers, find};
use crate::json::parse as json;
use crate::labels::{self, Collector, Raw, Run};
use crate::recognised::grouped;
use crate::sources::manifest::escape;
use crate::values::npy::{MAX_NPY_HEADER, NpyHeader};
use crate::verdicts::Verdicts;

/// A `cls` or `txt` member may not be larger.
const MAX_TEXT: u64 = 4 << 10;

/// A `json` member may not be larger.
const MAX_JSON: u64 = 1 << 20;

/// The numbers that records have in JSON are kept in memory, so there may not be many.
pub(super) const MAX_JSON_FIELDS: u64 = 4 << 10;

/// What else can be done about something that is no label.
pub(super) const OTHER: &str = "name another place (label=\"cls\", \"json:key\", \"folder\")";

/// Marks a size that does not fit in its column.
const LARGE: u32 = u32::MAX;

/// Why a record is bad whose members lie among those of others.
const APART: &str = "its members are not next to each other; pack the shard again with its members sorted by \
                     name (tar --sort=name), or set label = \"none\" if only images are wanted";

/// What a record is that has reasons of its own beyond those that are kept apart.
pub(super) const UNUSABLE: &str = "a field of it cannot be used";

/// Endings and keys of a record that a refusal lists.
const MOST_LISTED: usize = 20;

/// The records of one shard: 20 bytes each, their names, and what was asked for beside the image.
#[derive(Debug, Default, PartialEq)]
pub(super) struct ShardIndex {
    pub names: Vec<u8>,
    /// End of each name.
    pub name_ends: Vec<u32>,
    /// First byte of each image.
    pub offsets: Vec<u64>,
    pub sizes: Vec<u32>,
    /// (record, size) of the images of 4 GiB and more, ascending.
    pub large: Vec<(u32, u64)>,
    /// Where that lies of which each record was made: the headers of its image, then its label's member, its json
    /// member and its arrays, as far as they are asked for.
    pub pieces: Vec<Pieces>,
    /// A hash of these.
    pub checks: Vec<u32>,
    /// Absent where none are wanted.
    pub labels: Option<Run>,
    pub fields: Vec<Field>,
    /// Where the members lie that named parts are made of.
    pub members: Vec<Members>,
    /// Records that lack a field, or whose members contradict each other.
    pub bad: Verdicts,
    /// What is worth saying of the shard whenever it is opened.
    pub notes: Notes,
}

impl ShardIndex {
    pub fn len(&self) -> usize {
        self.offsets.len()
    }

    /// A record's name, as stored.
    pub fn name(&self, record: usize) -> &[u8] {
        let begin = if record == 0 { 0 } else { self.name_ends[record - 1] as usize };
        &self.names[begin..self.name_ends[record] as usize]
    }

    /// Bytes of a record's image.
    pub fn size(&self, record: usize) -> u64 {
        match self.sizes[record] {
            LARGE => {
                let found = self.large.binary_search_by_key(&(record as u32), |&(record, _)| record);
                // A file from outside was checked when it was read.
                self.large[found.expect("a size marked large is in the list")].1
            }
            size => u64::from(size),
        }
    }

    /// The stretches of the shard that a record was made of.
    pub fn proof(&self, record: usize) -> impl Iterator<Item = (u64, u64)> {
        let offset = self.offsets[record];
        self.pieces.iter().filter_map(move |pieces| pieces.get(record).range(offset))
    }

    /// Whether sizes marked large are exactly the ones in the list.
    pub fn large_is_whole(&self) -> bool {
        let marked =
            (0..self.len()).filter(|&record| self.sizes[record] == LARGE).map(|record| record as u32);
        marked.eq(self.large.iter().map(|&(record, _)| record))
    }

    pub fn memory(&self) -> u64 {
        let labels = self.labels.as_ref().map_or(0, Run::memory) + self.bad.memory();
        (size_of::<Self>()
            + self.names.capacity()
            + self.name_ends.capacity() * 4
            + self.offsets.capacity() * 8
            + self.sizes.capacity() * 4
            + self.large.capacity() * 16
            + self.checks.capacity() * 4
            + labels as usize
            + self.pieces.iter().map(Pieces::memory).sum::<usize>()
            + self.members.iter().map(Members::memory).sum::<usize>()
            + self.fields.iter().map(Field::memory).sum::<usize>()) as u64
    }

    fn shrink(&mut self) {
        self.names.shrink_to_fit();
        self.name_ends.shrink_to_fit();
        self.offsets.shrink_to_fit();
        self.sizes.shrink_to_fit();
        self.checks.shrink_to_fit();
        self.pieces.iter_mut().for_each(Pieces::shrink);
        self.fields.iter_mut().for_each(Field::shrink);
        self.members.iter_mut().for_each(Members::shrink);
    }
}

/// Finds out where labels are when nothing was said: as the first record has them. `None` when there is no record.
///
/// # Errors
/// What is wrong with the archive up to there, or with what is called as labels are.
pub(super) fn detect(bytes: &dyn Bytes, options: &Options) -> Result<Option<Label>, Fault> {
    let mut groups = Groups::new(bytes, options)?;
    while let Some(group) = groups.next()? {
        if let Some(image) = group.image(options) {
            let found = group.label_place().map_err(|why| {
                Fault::new(image.offset, format!("record \"{}\": {why}", escape(&image.name)))
            })?;
            return Ok(Some(found.unwrap_or(Label::Absent)));
        }
    }
    Ok(None)
}

/// What the members of one record are, in words: for those who asked for something it does not have. `None` when there
/// is no record with its image at `offset`.
///
/// # Errors
/// What is wrong with the archive up to there.
pub(super) fn describe(bytes: &dyn Bytes, options: &Options, offset: u64) -> Result<Option<String>, Fault> {
    // Without a place for labels, every json member is read.
    let options = Options { label: None, fields: Vec::new(), ..options.clone() };
    let mut groups = Groups::new(bytes, &options)?;
    while let Some(group) = groups.next()? {
        if group.image(&options).is_none_or(|image| image.offset != offset) {
            continue;
        }
        let endings = group.members.iter().map(|(ending, _)| format!(".{}", escape(ending)));
        let mut text = endings.take(MOST_LISTED).collect::<Vec<_>>().join(", ");
        if let Some(Ok(Value::Object(object))) = group.parsed() {
            let keys: Vec<_> = object.keys().take(MOST_LISTED).map(|key| format!("{key:?}")).collect();
            text.push_str(&format!(" (the keys of its json are {})", keys.join(", ")));
        }
        return Ok(Some(text));
    }
    Ok(None)
}

/// An index, and what was found out beside it.
pub(super) struct Built {
    pub index: ShardIndex,
    /// Where a later record has its label, when the first one had none.
    pub late: Option<Label>,
}

/// Walks over a shard.
///
/// # Errors
/// The first thing that is wrong, with its place.
pub(super) fn build(bytes: &dyn Bytes, options: &Options) -> Result<Built, Fault> {
    let labels = if matches!(options.label, Some(Label::None | Label::Absent)) {
        None
    } else {
        Some(Collector::default())
    };
    let index = ShardIndex {
        pieces: vec![Pieces::default(); 1 + options.asked() + options.parts.members.len()],
        fields: options.fields.iter().map(Field::new).collect(),
        members: vec![Members::default(); options.parts.members.len()],
        ..ShardIndex::default()
    };
    let mut builder = Builder { options, index, labels };
    let mut late = None;
    let mut without: HashSet<u64> = HashSet::new();
    let mut keys: Vec<u64> = Vec::new();
    let (mut imageless, mut example) = (0, String::new());
    let mut groups = Groups::new(bytes, options)?;
    while let Some(group) = groups.next()? {
        match group.image(options) {
            Some(image) => {
                keys.push(xxh3_64(&group.key));
                if options.label == Some(Label::Absent) && late.is_none() {
                    // What a later record has there and cannot be a label, the first one is asked about.
                    late = group.label_place().unwrap_or_default();
                }
                builder.record(&group, image).map_err(|why| {
                    Fault::new(image.offset, format!("record \"{}\": {why}", escape(&image.name)))
                })?;
            }
            // What a record of this key would need is a link or the like.
            None if group.members.is_empty() => {
                if let Some(image) = group.unread {
                    imageless += 1;
                    if example.is_empty() {
                        example = image;
                    }
                }
            }
            None => {
                imageless += 1;
                without.insert(xxh3_64(&group.key));
                if example.is_empty() {
                    example = escape(&group.members[0].1.name);
                }
            }
        }
    }
    let mut index = builder.index;
    index.notes = Notes { imageless, imageless_example: example, ..groups.archive.notes };
    index.labels = builder.labels.map(Collector::finish);
    // An image here and its label somewhere else: WebDataset's readers would silently make two records of them.
    let is_needed = options.label != Some(Label::None) || !options.fields.is_empty();
    if is_needed && keys.iter().any(|key| without.contains(key)) {
        let others = std::mem::take(&mut index.bad);
        for (record, key) in keys.iter().enumerate() {
            let why = if without.contains(key) { Some(APART) } else { others.get(record as u64) };
            if let Some(why) = why {
                index.bad.push(record as u64, why, UNUSABLE);
            }
        }
    }
    rename_repeated(&mut index);
    index.shrink();
    Ok(Built { index, late })
}

/// Members of one key.
struct Group {
    key: Vec<u8>,
    /// Ending and member.
    members: Vec<(Vec<u8>, Member)>,
    /// The label's member, or what is wrong with it.
    label: Option<Result<Vec<u8>, String>>,
    /// The json member, unparsed: what nobody asks for need not be right.
    json: Option<Result<Vec<u8>, String>>,
    /// The header of each array and where its numbers begin.
    arrays: Vec<Option<Result<(NpyHeader, u64), String>>>,
    /// What was read of the members that were asked for, in the order of [`ShardIndex::pieces`]: begin, end, hash.
    seen: Vec<Option<(u64, u64, u64)>>,
    /// The members that parts are made of: how many endings go before this one, and its place among the members.
    wanted: Vec<Option<(usize, usize)>>,
    /// Why nobody knows which of its members is meant.
    twice: Option<String>,
    /// An image that is a link or the like.
    unread: Option<String>,
}

impl Group {
    /// The member that the record is named after, if this is one: its image, or where records need none any member.
    fn image(&self, options: &Options) -> Option<&Member> {
        let found = options.images.iter().find_map(|wanted| {
            self.members.iter().find(|(ending, _)| ending == wanted.as_bytes()).map(|(_, member)| member)
        });
        let any = || self.members.first().filter(|_| options.is_any_member).map(|(_, member)| member);
        found.or_else(any)
    }

    /// What its json member says, or what is wrong with that.
    fn parsed(&self) -> Option<Result<Value, String>> {
        Some(match self.json.as_ref()? {
            Ok(bytes) => json(bytes).map_err(|why| format!("its json member is not JSON: {why}")),
            Err(why) => Err(why.clone()),
        })
    }

    /// Where this record has its label, if it has one.
    ///
    /// # Errors
    /// When something in its json member is called as labels are and is none.
    fn label_place(&self) -> Result<Option<Label>, String> {
        if self.members.iter().any(|(ending, _)| ending == b"cls") {
            return Ok(Some(Label::Text("cls".into())));
        }
        let Some(Ok(Value::Object(object))) = self.parsed() else { return Ok(None) };
        // Beside an x that is a number, y is a coordinate.
        let is_place = object.get("x").is_some_and(Value::is_number);
        let names = object.keys().map(String::as_str).filter(|key| !(is_place && *key == "y"));
        let names = labels::candidates(names, &[]);
        let fits = |key: &&&str| matches!(Raw::json(&object[**key]), Raw::Number(_) | Raw::Text(_));
        match (names.iter().find(fits), names.first()) {
            (Some(key), _) => Ok(Some(Label::Json(vec![(*key).to_owned()]))),
            (None, None) => Ok(None),
            // A gap: what the others have there shows.
            (None, Some(key)) if Raw::json(&object[*key]) == Raw::Missing => {
                Ok(Some(Label::Json(vec![(*key).to_owned()])))
            }
            (None, Some(key)) => {
                let holds = match &object[*key] {
                    Value::Array(_) => "a list",
                    Value::Object(_) => "an object",
                    _ => "a float",
                };
                let field = format!("json:{key}");
                let what = format!("the key {key:?} of its json member");
                let other = "name another place (label=\"json:…\")";
                Err(labels::refusal(&what, holds, Some(&field), other))
            }
        }
    }
}

/// Cuts the members of an archive into groups.
struct Groups<'a> {
    archive: Archive<'a>,
    ahead: Option<(usize, Member)>,
    options: &'a Options,
    /// Whether a json member may show where labels are.
    looks_at_json: bool,
}

impl<'a> Groups<'a> {
    fn new(bytes: &'a dyn Bytes, options: &'a Options) -> Result<Self, Fault> {
        let looks_at_json = matches!(options.label, None | Some(Label::Absent));
        Ok(Self { archive: Archive::open(bytes)?, ahead: None, options, looks_at_json })
    }

    fn next(&mut self) -> Result<Option<Group>, Fault> {
        let Some((dot, first)) = self.take()? else { return Ok(None) };
        let mut group = Group {
            key: first.name[..dot].to_vec(),
            members: Vec::new(),
            label: None,
            json: None,
            arrays: vec![None; self.options.arrays().count()],
            seen: vec![None; self.options.asked()],
            wanted: vec![None; self.options.parts.members.len()],
            twice: None,
            unread: None,
        };
        self.add(&mut group, dot, first)?;
        while let Some((dot, member)) = self.take()? {
            if member.name[..dot] != group.key {
                self.ahead = Some((dot, member));
                break;
            }
            self.add(&mut group, dot, member)?;
        }
        Ok(Some(group))
    }

    /// The next member that belongs to somebody, and where its ending begins.
    fn take(&mut self) -> Result<Option<(usize, Member)>, Fault> {
        if let Some(ahead) = self.ahead.take() {
            return Ok(Some(ahead));
        }
        while let Some(member) = self.archive.next()? {
            if let Some(dot) = dot(&member.name) {
                return Ok(Some((dot, member)));
            }
        }
        Ok(None)
    }

    /// Takes a member in; reads it if it is one that is understood here.
    fn add(&mut self, group: &mut Group, dot: usize, member: Member) -> Result<(), Fault> {
        let ending = member.name[dot + 1..].to_ascii_lowercase();
        if let Some(what) = member.unread {
            if self.options.images.iter().any(|image| ending == image.as_bytes()) {
                group.unread.get_or_insert_with(|| format!("{}, {what}", escape(&member.name)));
            }
            return Ok(());
        }
        if group.members.iter().any(|(other, _)| *other == ending) {
            group.twice.get_or_insert_with(|| {
                format!(
                    "it has two members with the ending \"{}\" (the second is \"{}\"); pack the shard again with \
                     one of them",
                    escape(&ending),
                    escape(&member.name)
                )
            });
            return Ok(());
        }
        let mut asked = 0;
        if let Some(Label::Text(wanted)) = &self.options.label {
            if ending == wanted.as_bytes() {
                group.label = Some(if member.size > MAX_TEXT {
                    Err(format!("its label has {} bytes; the maximum is {MAX_TEXT}", member.size))
                } else {
                    Ok(self.read(group, 0, &member)?)
                });
            }
            asked += 1;
        }
        let is_asked = self.options.reads_json();
        if ending == b"json" && (is_asked || self.looks_at_json) {
            group.json = if member.size > MAX_JSON {
                let size = grouped(member.size);
                Some(Err(format!("its json member has {size} bytes; the maximum is {}", grouped(MAX_JSON))))
            } else if is_asked {
                Some(Ok(self.read(group, asked, &member)?))
            } else {
                Some(Ok(
                    self.archive.blocks(&member, MAX_JSON)?[data(&member)..][..member.size as usize].to_vec()
                ))
            };
            // Of records without a place for labels, the first that has a json member may show one.
            self.looks_at_json = self.options.label.is_none();
        }
        asked += usize::from(is_asked);
        for (place, wanted) in self.options.arrays().enumerate() {
            if ending == wanted.as_bytes() {
                let start = &self.archive.blocks(&member, MAX_NPY_HEADER)?[data(&member)..];
                let len = start.len().min(MAX_NPY_HEADER.min(member.size) as usize);
                let header = NpyHeader::parse(&start[..len], member.size);
                if let Ok(header) = &header {
                    let blocks = self.archive.blocks(&member, header.len)?;
                    let end = member.start + blocks.len() as u64;
                    group.seen[asked + place] = Some((member.start, end, digest(blocks)));
                }
                group.arrays[place] = Some(header.map(|header| {
                    let data = member.offset + header.len;
                    (header, data)
                }));
            }
        }
        for (place, rank) in self.options.parts.members_of(&ending) {
            let wanted = &mut group.wanted[place];
            if wanted.is_none_or(|(other, _)| rank < other) {
                *wanted = Some((rank, group.members.len()));
            }
        }
        group.members.push((ending, member));
        Ok(())
    }

    /// The whole content of a member that was asked for, which is noted as seen.
    fn read(&mut self, group: &mut Group, asked: usize, member: &Member) -> Result<Vec<u8>, Fault> {
        let blocks = self.archive.blocks(member, member.size)?;
        group.seen[asked] = Some((member.start, member.start + blocks.len() as u64, digest(blocks)));
        Ok(blocks[data(member)..][..member.size as usize].to_vec())
    }
}

/// Where a member's data begin among its blocks.
fn data(member: &Member) -> usize {
    (member.offset - member.start) as usize
}

/// Where a name's ending begins; `None` for names that are nobody's.
fn dot(name: &[u8]) -> Option<usize> {
    let first = name.split(|&b| b == b'/').next().unwrap_or_default();
    if first.len() >= 4 && first.starts_with(b"__") && first.ends_with(b"__") {
        return None;
    }
    let base = name.iter().rposition(|&b| b == b'/').map_or(0, |slash| slash + 1);
    let dot = name[base..].iter().position(|&b| b == b'.')?;
    (dot > 0).then_some(base + dot)
}

/// Collects records.
struct Builder<'a> {
    options: &'a Options,
    index: ShardIndex,
    labels: Option<Collector>,
}

impl Builder<'_> {
    fn record(&mut self, group: &Group, image: &Member) -> Result<(), String> {
        let index = &mut self.index;
        let end = u32::try_from(index.names.len() + image.name.len());
        let end = end.map_err(|_| "the names of this shard's members have more than 4 GiB".to_owned())?;
        let record =
            u32::try_from(index.offsets.len()).map_err(|_| "more than 4 billion records".to_owned())?;
        index.names.extend_from_slice(&image.name);
        index.name_ends.push(end);
        index.offsets.push(image.offset);
        if image.size >= u64::from(LARGE) {
            index.large.push((record, image.size));
        }
        index.sizes.push(image.size.min(u64::from(LARGE)) as u32);
        let parsed = if self.options.reads_json() { group.parsed() } else { None };
        self.label(group, image, parsed.as_ref())?;
        let mut wrong = self.fields(group, parsed.as_ref());
        for (members, wanted) in self.index.members.iter_mut().zip(&group.wanted) {
            let member = wanted.map(|(_, at)| &group.members[at].1);
            if let Err(why) = members.push(image.offset, member) {
                let name = member.map_or_else(String::new, |member| escape(&member.name));
                wrong = wrong.or(Some(format!("its member \"{name}\" {why}")));
            }
        }
        wrong = self.seal(group, image).err().or(wrong);
        if let Some(why) = group.twice.clone().or(wrong) {
            self.index.bad.push(u64::from(record), &why, UNUSABLE);
        }
        Ok(())
    }

    /// Notes what the record was made of.
    ///
    /// # Errors
    /// When that lies too far apart.
    fn seal(&mut self, group: &Group, image: &Member) -> Result<(), String> {
        let own = Some((image.start, image.offset, image.digest));
        let mut digests = Vec::with_capacity(self.index.pieces.len());
        let mut is_far = false;
        let headers = group.wanted.iter().map(|wanted| {
            let member = &group.members[(*wanted)?.1].1;
            Some((member.start, member.offset, member.digest))
        });
        let all = std::iter::once(own).chain(group.seen.iter().copied()).chain(headers);
        for (pieces, seen) in self.index.pieces.iter_mut().zip(all) {
            let piece = seen.map(|(start, end, digest)| (Piece::new(image.offset, start, end), digest));
            is_far |= matches!(piece, Some((None, _)));
            pieces.all.push(piece.and_then(|(piece, _)| piece).unwrap_or_default());
            digests.extend(piece.and_then(|(piece, digest)| piece.map(|_| digest)));
        }
        self.index.checks.push(seal(digests));
        if is_far {
            Err(format!("its members lie more than {} bytes apart", grouped(1 << 40)))
        } else {
            Ok(())
        }
    }

    fn label(
        &mut self,
        group: &Group,
        image: &Member,
        json: Option<&Result<Value, String>>,
    ) -> Result<(), String> {
        let Some(labels) = &mut self.labels else { return Ok(()) };
        let parsed;
        let raw = match self.options.label.as_ref().expect("found out before") {
            Label::None | Label::Absent => return Ok(()),
            Label::Folder => {
                let name = image.name.strip_prefix(b"./").unwrap_or(&image.name);
                match name.iter().position(|&b| b == b'/') {
                    Some(slash) => {
                        parsed = Value::String(escape(&name[..slash]));
                        Raw::json(&parsed)
                    }
                    None => {
                        Raw::Wrong("it lies in no folder, so label = \"folder\" finds no class for it".into())
                    }
                }
            }
            Label::Text(ending) => match &group.label {
                Some(Ok(text)) => Raw::bytes(text).plain(),
                Some(Err(why)) => Raw::Wrong(why.clone()),
                None => Raw::Wrong(format!(
                    "it has no member with the ending \"{ending}\", where its label should be"
                )),
            },
            Label::Json(path) => {
                let place = path.join(".");
                match json {
                    None => Raw::Wrong(format!(
                        "it has no json member with \"{place}\", where its label should be"
                    )),
                    Some(Err(why)) => Raw::Wrong(why.clone()),
                    Some(Ok(value)) => match find(value, path) {
                        Some(value) => Raw::json(value),
                        None => Raw::Wrong(format!(
                            "its json member has no \"{place}\", where its label should be"
                        )),
                    },
                }
            }
        };
        labels.push(raw).map_err(|holds| {
            let (what, field) = match &self.options.label {
                Some(Label::Json(path)) => {
                    let field = format!("json:{}", path.join("."));
                    (format!("the key \"{}\" of its json member", path.join(".")), Some(field))
                }
                _ => ("its label".into(), None),
            };
            labels::refusal(&what, &holds, field.as_deref(), OTHER)
        })
    }

    /// Takes the fields in; what is wrong with the first that is.
    fn fields(&mut self, group: &Group, json: Option<&Result<Value, String>>) -> Option<String> {
        let (mut arrays, mut here) = (group.arrays.iter(), 0);
        let mut wrong = None;
        for (field, wanted) in self.index.fields.iter_mut().zip(&self.options.fields) {
            let missing = |what: String| format!("it has no {what}, so no field \"{}\"", wanted.name);
            let odd = |why: String| format!("field \"{}\" ({}): {why}", wanted.name, wanted.from);
            let taken = match &wanted.from {
                From::Npy(ending) => match arrays.next().expect("one for each array") {
                    None => Err(missing(format!("member ending in \"{ending}\""))),
                    Some(Err(why)) => Err(odd(why.clone())),
                    Some(Ok((header, offset))) => Ok(field.array(header, *offset).map_err(odd)),
                },
                From::Json(path) => {
                    let found = match json {
                        Some(Err(why)) => Err(odd(why.clone())),
                        json => json
                            .and_then(|json| find(json.as_ref().ok()?, path))
                            .ok_or_else(|| missing(format!("\"{}\" in a json member", path.join(".")))),
                    };
                    let numbers = found.and_then(|value| Numbers::from_json(value).map_err(odd));
                    numbers.and_then(|numbers| {
                        let len = numbers.whole.len() as u64 * 8;
                        if here + len > MAX_JSON_FIELDS {
                            return Err(odd(format!(
                                "the fields in its json member have more than {} numbers, which are kept in memory; store \
                                 large ones as arrays (\"{}.npy\")",
                                MAX_JSON_FIELDS / 8,
                                wanted.name
                            )));
                        }
                        here += len;
                        Ok(field.numbers(&numbers).map_err(odd))
                    })
                }
            };
            let taken = taken.unwrap_or_else(|why| {
                field.nothing();
                Err(why)
            });
            wrong = wrong.or(taken.err());
        }
        wrong
    }
}

/// Records of one name (a shard that was appended to) get a number: the second "a.jpg" is "a.jpg#2".
fn rename_repeated(index: &mut ShardIndex) {
    let mut order: Vec<u32> = (0..index.len() as u32).collect();
    order.sort_by(|&a, &b| index.name(a as usize).cmp(index.name(b as usize)));
    let mut renamed: Vec<(usize, Vec<u8>)> = Vec::new();
    let mut taken: HashSet<Vec<u8>> = HashSet::new();
    for run in order.chunk_by(|&a, &b| index.name(a as usize) == index.name(b as usize)) {
        let mut number = 2u64;
        for &record in &run[1..] {
            let name = loop {
                let name = [index.name(record as usize), format!("#{number}").as_bytes()].concat();
                number += 1;
                let place = order.binary_search_by(|&other| index.name(other as usize).cmp(&name));
                if place.is_err() && taken.insert(name.clone()) {
                    break name;
                }
            };
            renamed.push((record as usize, name));
        }
    }
    if renamed.is_empty() {
        return;
    }
    renamed.sort_unstable();
    let (mut names, mut ends) = (Vec::with_capacity(index.names.len()), Vec::with_capacity(index.len()));
    let mut next = renamed.iter().peekable();
    for record in 0..index.len() {
        match next.next_if(|(at, _)| *at == record) {
            Some((_, name)) => names.extend_from_slice(name),
            None => names.extend_from_slice(index.name(record)),
        }
        ends.push(names.len() as u32);
    }
    (index.names, index.name_ends) = (names, ends);
}
