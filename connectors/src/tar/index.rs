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

use std::collections::{HashMap, HashSet};

use serde_json::Value;
use xxhash_rust::xxh3::xxh3_64;

use super::archive::{Archive, Bytes, Fault, Member, Notes};
use super::options::{From, Label, Options};
use super::values::{MAX_NPY_HEADER, NpyHeader, Numbers, RawLabel, find};
use crate::manifest::escape;
use crate::{ElementType, FieldSpec};

/// A `cls` or `txt` member may not be larger.
const MAX_TEXT: u64 = 4 << 10;

/// A `json` member may not be larger.
const MAX_JSON: u64 = 1 << 20;

/// The numbers that records have in JSON are kept in memory, so there may not be many.
pub(super) const MAX_JSON_FIELDS: u64 = 4 << 10;

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
    pub labels: RawLabels,
    pub fields: Vec<Field>,
    /// What is worth saying of the shard whenever it is opened.
    pub notes: Notes,
}

/// Labels of one shard.
#[derive(Debug, Default, PartialEq)]
pub(super) enum RawLabels {
    /// All 0.
    #[default]
    Zero,
    Numbers(Vec<i64>),
    /// Class names of this shard, and which one each record has.
    Names(Vec<String>, Vec<u32>),
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
        let labels = match &self.labels {
            RawLabels::Zero => 0,
            RawLabels::Numbers(numbers) => numbers.capacity() * 8,
            RawLabels::Names(names, of) => {
                names.iter().map(|name| name.capacity() + size_of::<String>()).sum::<usize>()
                    + of.capacity() * 4
            }
        };
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
/// What is wrong with the archive up to there.
pub(super) fn detect(bytes: &dyn Bytes, options: &Options) -> Result<Option<Label>, Fault> {
    let mut groups = Groups::new(bytes, options)?;
    while let Some(group) = groups.next()? {
        if group.image(options).is_none() {
            continue;
        }
        let json = |key: &str| group.json.as_ref().and_then(|json| json.get(key)).is_some();
        return Ok(Some(if group.members.iter().any(|(ending, _)| ending == b"cls") {
            Label::Text("cls".into())
        } else if json("label") {
            Label::Json(vec!["label".into()])
        } else if json("cls") {
            Label::Json(vec!["cls".into()])
        } else {
            Label::Absent
        }));
    }
    Ok(None)
}

/// An index, and what was passed over.
pub(super) struct Built {
    pub index: ShardIndex,
    /// Keys without an image, and an example of their members.
    pub imageless: u64,
    pub example: Option<String>,
}

/// Walks over a shard.
///
/// # Errors
/// The first thing that is wrong, with its place.
pub(super) fn build(bytes: &dyn Bytes, options: &Options) -> Result<Built, Fault> {
    let mut builder = Builder { options, index: ShardIndex::default(), names: HashMap::new() };
    builder.index.labels = match options.label {
        Some(Label::None | Label::Absent) => RawLabels::Zero,
        _ => RawLabels::Numbers(Vec::new()),
    };
    let mut without: HashSet<u64> = HashSet::new();
    let mut keys: Vec<u64> = Vec::new();
    let (mut imageless, mut example) = (0, None);
    let mut groups = Groups::new(bytes, options)?;
    while let Some(group) = groups.next()? {
        match group.image(options) {
            Some(image) => {
                keys.push(xxh3_64(&group.key));
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
    Ok(Built { index, imageless, example })
}

/// Members of one key.
struct Group {
    key: Vec<u8>,
    /// Ending and member.
    members: Vec<(Vec<u8>, Member)>,
    label: Option<Vec<u8>>,
    json: Option<Value>,
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
}

/// Cuts the members of an archive into groups.
struct Groups<'a> {
    archive: Archive<'a>,
    ahead: Option<(usize, Member)>,
    options: &'a Options,
    reads_json: bool,
}

impl<'a> Groups<'a> {
    fn new(bytes: &'a dyn Bytes, options: &'a Options) -> Result<Self, Fault> {
        Ok(Self { archive: Archive::open(bytes)?, ahead: None, options, reads_json: options.reads_json() })
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
            bounded(MAX_TEXT)?;
            group.label = Some(self.archive.data(&member)?.to_vec());
        }
        if self.reads_json && ending == b"json" {
            bounded(MAX_JSON)?;
            let json = serde_json::from_slice(self.archive.data(&member)?);
            group.json = Some(json.map_err(|error| fault(format!("it is no JSON: {error}")))?);
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
    /// Number of each class name of this shard.
    names: HashMap<String, u32>,
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
        let label = match self.options.label.as_ref().expect("found out before") {
            Label::None | Label::Absent => return Ok(()),
            Label::Folder => {
                let name = image.name.strip_prefix(b"./").unwrap_or(&image.name);
                let folder = name.iter().position(|&b| b == b'/').map(|slash| &name[..slash]);
                RawLabel::name(&escape(
                    folder.ok_or("it lies in no folder, so label = \"folder\" finds no class for it")?,
                ))?
            }
            Label::Text(ending) => {
                let text = group.label.as_deref().ok_or_else(|| {
                    format!(
                        "it has no member with the ending \"{ending}\", where its label should be; set label to where \
                         labels are (\"cls\", \"json:key\", \"folder\", \"none\")"
                    )
                })?;
                RawLabel::from_text(text)?
            }
            Label::Json(path) => {
                let value = group.json.as_ref().and_then(|json| find(json, path));
                let value = value.ok_or_else(|| {
                    format!(
                        "its json member is missing or has no \"{}\", where its label should be",
                        path.join(".")
                    )
                })?;
                RawLabel::from_json(value)?
            }
        };
        if let (RawLabels::Numbers(numbers), RawLabel::Name(_)) = (&self.index.labels, &label) {
            // One name makes names of all of them.
            let numbers = numbers.clone();
            self.index.labels = RawLabels::Names(Vec::new(), Vec::new());
            numbers.into_iter().for_each(|number| self.name(number.to_string()));
        }
        match (&mut self.index.labels, label) {
            (RawLabels::Numbers(numbers), RawLabel::Number(number)) => numbers.push(number),
            (_, RawLabel::Number(number)) => self.name(number.to_string()),
            (_, RawLabel::Name(name)) => self.name(name),
        }
        Ok(())
    }

    fn name(&mut self, name: String) {
        let RawLabels::Names(names, of) = &mut self.index.labels else {
            unreachable!("names are added to names")
        };
        let next = names.len() as u32;
        let number = *self.names.entry(name).or_insert_with_key(|name| {
            names.push(name.clone());
            next
        });
        of.push(number);
    }

    fn fields(&mut self, group: &Group) -> Result<(), String> {
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
                    let value = group.json.as_ref().and_then(|json| find(json, path));
                    let value =
                        value.ok_or_else(|| missing(format!("\"{}\" in a json member", path.join("."))))?;
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
