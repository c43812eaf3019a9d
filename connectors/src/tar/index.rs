//! What one shard holds: its records as columns, made by walking over its members once.
//!
//! Members belong together by WebDataset's rule: the *key* is the member's name up to the first dot of its last part, the
//! *ending* is what follows, in lower case; members of one key stand one after the other. Names that begin with a dot, and
//! those under `__name__`, are nobody's.
//!
//! ```text
//!  n01440764/0001.cls  n01440764/0001.emb.npy  n01440764/0001.jpg     one record, named after its image
//!  ╰───── key ──────╯╰ ending
//! ```

use std::collections::HashSet;

use serde_json::Value;
use xxhash_rust::xxh3::xxh3_64;

use super::archive::{Archive, Bytes, Fault, Member, Notes};
use super::options::{From, Label, Options};
use super::values::{MAX_NPY_HEADER, NpyHeader, Numbers, find};
use crate::json::parse as json;
use crate::labels::{self, Collector, Raw, Run};
use crate::manifest::escape;
use crate::{ElementType, FieldSpec};

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

/// The records of one shard: 24 bytes each, their names, and what was asked for beside the image.
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
    /// A hash of the header before each image.
    pub checks: Vec<u32>,
    /// Absent where none are wanted.
    pub labels: Option<Run>,
    pub fields: Vec<Field>,
    /// What is worth saying of the shard whenever it is opened.
    pub notes: Notes,
}

/// One field of one shard.
#[derive(Debug, PartialEq)]
pub(super) struct Field {
    pub dtype: ElementType,
    pub shape: Vec<u64>,
    pub place: Place,
}

/// Where the values of a field are.
#[derive(Debug, PartialEq)]
pub(super) enum Place {
    /// Here, one record after the other.
    Here(Vec<u8>),
    /// In the shard, at these offsets.
    Shard(Vec<u64>),
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

    /// Whether sizes marked large are exactly the ones in the list.
    pub fn large_is_whole(&self) -> bool {
        let marked =
            (0..self.len()).filter(|&record| self.sizes[record] == LARGE).map(|record| record as u32);
        marked.eq(self.large.iter().map(|&(record, _)| record))
    }

    pub fn memory(&self) -> u64 {
        let labels = self.labels.as_ref().map_or(0, Run::memory) as usize;
        let fields = self.fields.iter().map(|field| match &field.place {
            Place::Here(bytes) => bytes.capacity(),
            Place::Shard(offsets) => offsets.capacity() * 8,
        });
        (size_of::<Self>()
            + self.names.capacity()
            + self.name_ends.capacity() * 4
            + self.offsets.capacity() * 8
            + self.sizes.capacity() * 4
            + self.large.capacity() * 16
            + self.checks.capacity() * 4
            + labels
            + fields.sum::<usize>()
            + self.fields.capacity() * size_of::<Field>()) as u64
    }

    fn shrink(&mut self) {
        self.names.shrink_to_fit();
        self.name_ends.shrink_to_fit();
        self.offsets.shrink_to_fit();
        self.sizes.shrink_to_fit();
        self.checks.shrink_to_fit();
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

/// An index, and what was passed over.
pub(super) struct Built {
    pub index: ShardIndex,
    /// Keys without an image, and an example of their members.
    pub imageless: u64,
    pub example: Option<String>,
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
    let mut builder = Builder { options, index: ShardIndex::default(), labels };
    let mut late = None;
    let mut without: HashSet<u64> = HashSet::new();
    let mut keys: Vec<u64> = Vec::new();
    let (mut imageless, mut example) = (0, None);
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
                    example = example.or(Some(image));
                }
            }
            None => {
                imageless += 1;
                without.insert(xxh3_64(&group.key));
                let name = || group.members.first().map(|(_, member)| escape(&member.name));
                example = example.or_else(name);
            }
        }
    }
    let mut index = builder.index;
    index.notes = groups.archive.notes;
    index.labels = builder.labels.map(Collector::finish);
    // An image here and its label somewhere else: WebDataset's readers would silently make two records of them.
    let is_needed = options.label != Some(Label::None) || !options.fields.is_empty();
    let apart = keys.iter().position(|key| without.contains(key));
    if let Some(at) = apart.filter(|_| is_needed) {
        return Err(Fault::new(
            index.offsets[at],
            format!(
                "the members of record \"{}\" do not stand one after the other; pack the shard again with its \
                 members sorted by name (tar --sort=name), or set label = \"none\" if only images are wanted",
                escape(index.name(at))
            ),
        ));
    }
    rename_repeated(&mut index);
    index.shrink();
    Ok(Built { index, imageless, example, late })
}

/// Members of one key.
struct Group {
    key: Vec<u8>,
    /// Ending and member.
    members: Vec<(Vec<u8>, Member)>,
    /// The label's member, or what is wrong with it.
    label: Option<Result<Vec<u8>, String>>,
    /// The json member, unparsed: what nobody asks for need not be right.
    json: Option<Vec<u8>>,
    arrays: Vec<Option<(NpyHeader, u64)>>,
    /// An image that is a link or the like.
    unread: Option<String>,
}

impl Group {
    fn image(&self, options: &Options) -> Option<&Member> {
        options.images.iter().find_map(|wanted| {
            self.members.iter().find(|(ending, _)| ending == wanted.as_bytes()).map(|(_, member)| member)
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
        let Some(Value::Object(object)) = self.json.as_deref().and_then(|bytes| json(bytes).ok()) else {
            return Ok(None);
        };
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
        let fault =
            |why: String| Fault::new(member.offset, format!("member \"{}\": {why}", escape(&member.name)));
        if group.members.iter().any(|(other, _)| *other == ending) {
            return Err(fault(format!(
                "its record has two members with the ending \"{}\"; pack the shard again with one of them",
                escape(&ending)
            )));
        }
        let bounded = |limit: u64| {
            if member.size > limit {
                return Err(fault(format!(
                    "it has {} bytes; to be read for labels and fields it may have {limit}",
                    member.size
                )));
            }
            Ok(())
        };
        if let Some(Label::Text(wanted)) = &self.options.label
            && ending == wanted.as_bytes()
        {
            group.label = Some(if member.size > MAX_TEXT {
                Err(format!("its label has {} bytes, where {MAX_TEXT} are the most", member.size))
            } else {
                Ok(self.archive.data(&member)?.to_vec())
            });
        }
        let is_asked = self.options.reads_json();
        if ending == b"json" && (is_asked || (self.looks_at_json && member.size <= MAX_JSON)) {
            if is_asked {
                bounded(MAX_JSON)?;
            }
            group.json = Some(self.archive.data(&member)?.to_vec());
            // Of records without a place for labels, the first that has a json member may show one.
            self.looks_at_json = self.options.label.is_none();
        }
        for (place, wanted) in self.options.arrays().enumerate() {
            if ending == wanted.as_bytes() {
                let start = self.archive.part(&member, MAX_NPY_HEADER)?;
                let header = NpyHeader::parse(start, member.size).map_err(fault)?;
                let data = member.offset + header.len;
                group.arrays[place] = Some((header, data));
            }
        }
        group.members.push((ending, member));
        Ok(())
    }
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
        index.checks.push(image.check);
        self.label(group, image)?;
        self.fields(group)
    }

    fn label(&mut self, group: &Group, image: &Member) -> Result<(), String> {
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
                match group.json.as_deref().map(json) {
                    None => Raw::Wrong(format!(
                        "it has no json member with \"{place}\", where its label should be"
                    )),
                    Some(Err(why)) => Raw::Wrong(format!("its json member is no JSON: {why}")),
                    Some(Ok(value)) => {
                        parsed = value;
                        match find(&parsed, path) {
                            Some(value) => Raw::json(value),
                            None => Raw::Wrong(format!(
                                "its json member has no \"{place}\", where its label should be"
                            )),
                        }
                    }
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

    fn fields(&mut self, group: &Group) -> Result<(), String> {
        let asks_json = self.options.fields.iter().any(|field| matches!(field.from, From::Json(_)));
        let value = match group.json.as_deref().filter(|_| asks_json).map(json) {
            Some(Err(why)) => return Err(format!("its json member is no JSON: {why}")),
            value => value.and_then(Result::ok),
        };
        let first = self.index.fields.len() < self.options.fields.len();
        let (mut array, mut here) = (0, 0);
        for (at, wanted) in self.options.fields.iter().enumerate() {
            let missing = |what: String| format!("it has no {what}, so no field \"{}\"", wanted.name);
            match &wanted.from {
                From::Npy(ending) => {
                    let found = group.arrays[array].as_ref();
                    array += 1;
                    let (header, offset) =
                        found.ok_or_else(|| missing(format!("member ending in \"{ending}\"")))?;
                    if first {
                        self.index.fields.push(Field {
                            dtype: header.dtype,
                            shape: header.shape.clone(),
                            place: Place::Shard(Vec::new()),
                        });
                    }
                    let field = &mut self.index.fields[at];
                    same(field, header.dtype, &header.shape, &wanted.name)?;
                    if let Place::Shard(offsets) = &mut field.place {
                        offsets.push(*offset);
                    }
                }
                From::Json(path) => {
                    let found = value.as_ref().and_then(|json| find(json, path));
                    let value =
                        found.ok_or_else(|| missing(format!("\"{}\" in a json member", path.join("."))))?;
                    let numbers = Numbers::from_json(value)
                        .map_err(|why| format!("field \"{}\": {why}", wanted.name))?;
                    here += numbers.whole.len() as u64 * 8;
                    if here > MAX_JSON_FIELDS {
                        return Err(format!(
                            "the fields in its json member have more than {} numbers, which are kept in memory; store \
                             large ones as arrays (\"{}.npy\")",
                            MAX_JSON_FIELDS / 8,
                            wanted.name
                        ));
                    }
                    let dtype = if numbers.is_whole { ElementType::I64 } else { ElementType::F32 };
                    if first {
                        self.index.fields.push(Field {
                            dtype,
                            shape: numbers.shape.clone(),
                            place: Place::Here(Vec::new()),
                        });
                    }
                    let field = &mut self.index.fields[at];
                    same(field, field.dtype, &numbers.shape, &wanted.name)?;
                    if dtype == ElementType::F32 {
                        field.make_real();
                    }
                    let dtype = field.dtype;
                    if let Place::Here(bytes) = &mut field.place {
                        match dtype {
                            ElementType::I64 => {
                                bytes.extend(numbers.whole.iter().flat_map(|n| n.to_le_bytes()))
                            }
                            _ => bytes.extend(numbers.real.iter().flat_map(|n| n.to_le_bytes())),
                        }
                    }
                }
            }
        }
        Ok(())
    }
}

impl Field {
    /// Whole numbers become `f32`: one value with a fraction makes the field one of fractions.
    pub fn make_real(&mut self) {
        if self.dtype == ElementType::I64
            && let Place::Here(bytes) = &mut self.place
        {
            self.dtype = ElementType::F32;
            let numbers =
                bytes.chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().expect("eight bytes")));
            *bytes = numbers.flat_map(|number| (number as f32).to_le_bytes()).collect();
        }
    }

    pub fn spec(&self, name: &str) -> FieldSpec {
        FieldSpec { name: name.to_owned(), dtype: self.dtype, shape: self.shape.clone() }
    }

    /// Bytes of one record's value.
    pub fn bytes(&self) -> usize {
        self.shape.iter().product::<u64>() as usize * self.dtype.size()
    }
}

fn same(field: &Field, dtype: ElementType, shape: &[u64], name: &str) -> Result<(), String> {
    if field.dtype == dtype && field.shape == shape {
        return Ok(());
    }
    Err(format!(
        "field \"{name}\" is {dtype} of shape {shape:?} here and {} of shape {:?} in the records before; all must be alike",
        field.dtype, field.shape
    ))
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
