//! What an HDF5 file says about its datasets: shape and type; [`layout`](super::layout) finds where their elements are.
//!
//! The structures are read by the crate `hdf5-reader`, which is pure Rust, inside of three walls, since a crafted file
//! is what this format is known for:
//!
//! - **Everything it reads passes [`Budgeted`]**, which serves ranges of the file and nothing else, and stops at a
//!   number of bytes in proportion to the file's size. The crate allocates in proportion to what it has read, so this
//!   bounds its memory and its time, whatever a file says of itself.
//! - **It runs on a thread of its own** with a stack for its deepest recursion, and a panic ends that thread only.
//! - **It is asked for metadata only.** Numbers of chunks are checked against a limit before chunks are looked up;
//!   data, filters and heaps are read by this module's neighbours, within sizes known beforehand. External files and
//!   links are not followed.
//!
//! What it says is held against the file's size: every range lies in the file, every number fits.

use std::collections::{HashSet, VecDeque};
use std::io;
use std::sync::{Arc, Mutex};
use std::thread;

use hdf5_reader::error::Error;
use hdf5_reader::group::Group;
use hdf5_reader::messages::datatype::{StringSize, VarLenKind};
use hdf5_reader::storage::StorageBuffer;
use hdf5_reader::{ByteOrder, Datatype, Hdf5File, OpenOptions, Storage};

use super::chunk::{Chunked, MAX_SLAB};
use crate::ElementType;
use crate::bytes::shards::Shards;
use crate::column::{Stored, product};
use crate::opening;
use crate::workers::{lock, panic_text};

/// Bytes that may be read to understand a file: this many, and four times its size, but never more than the third.
const BUDGET: (u64, u64, u64) = (16 << 20, 4, 1 << 30);

/// What a read costs beside its bytes, so that empty ones end, too.
const READ_COST: u64 = 64;

/// Metadata lies scattered; it is fetched in blocks of this size, of which some are kept.
const BLOCK: u64 = 64 << 10;
const BLOCKS_KEPT: usize = 64;

/// More groups and datasets than this are not searched.
const MAX_OBJECTS: usize = 10_000;

/// Object headers larger than this are refused.
const MAX_HEADER: usize = 4 << 20;

/// Stack of the thread: the crate's deepest recursion is a B-tree of 256 levels.
const STACK: usize = 16 << 20;

/// What elements are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Numbers(Stored),
    /// Bytes of a fixed length: opaque, or text padded with zeros or blanks.
    Fixed {
        text: bool,
    },
    /// Bytes in the global heap.
    Heap {
        text: bool,
    },
    /// Numbers in the global heap.
    Sequence(Stored),
    /// Something else, named.
    Unread(String),
}

/// Where a dataset's elements are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Layout {
    /// From this byte of the file on.
    Contiguous(u64),
    /// In the header.
    Held(Vec<u8>),
    Chunked(Box<Chunked>),
    /// Not looked up, or nowhere: the reason.
    Unknown(String),
}

/// One dataset.
#[derive(Clone, Debug)]
pub(super) struct Dataset {
    /// Its path without the leading slash.
    pub path: String,
    /// Records, then the shape of one (with the axes of an array type).
    pub shape: Vec<u64>,
    pub kind: Kind,
    /// Bytes of one element.
    pub element: usize,
    pub layout: Layout,
}

/// What holds for a whole file.
#[derive(Clone, Copy, Debug)]
pub(super) struct Addresses {
    /// What addresses count from.
    pub base: u64,
    pub length_size: u8,
}

impl Dataset {
    /// Bytes of one row.
    pub(super) fn row_bytes(&self) -> Option<u64> {
        product(self.shape.get(1..)?)?.checked_mul(self.element as u64)
    }

    /// For errors: `train/x: u8 [60000, 28, 28]`.
    pub(super) fn describe(&self) -> String {
        let kind = match &self.kind {
            Kind::Numbers(stored) => stored.element.name(),
            Kind::Fixed { text: true } => "text of fixed length",
            Kind::Fixed { text: false } => "opaque",
            Kind::Heap { text: true } => "text",
            Kind::Heap { text: false } => "bytes of any length",
            Kind::Sequence(stored) => {
                let element = stored.element;
                return format!("{}: {element} of any length {:?}", self.path, self.shape);
            }
            Kind::Unread(what) => what,
        };
        format!("{}: {kind} {:?}", self.path, self.shape)
    }
}

/// All datasets of a file, without their chunks, and what could not be looked at.
///
/// # Errors
/// A sentence without the file's name.
pub(super) fn list(shards: &Arc<Shards>, shard: usize) -> Result<(Vec<Dataset>, Vec<String>), String> {
    contained(shards, shard, |file, _| {
        let (mut found, mut failed) = (Vec::new(), Vec::new());
        let mut seen = HashSet::new();
        let root = file.root_group().map_err(text)?;
        let mut groups = VecDeque::from([(root, String::new())]);
        while let Some((group, path)) = groups.pop_front() {
            if !seen.insert(group.address()) {
                continue;
            }
            let members = match group.members() {
                Ok(members) => members,
                Err(error) => {
                    failed.push(format!("the group /{path} cannot be read: {}", plain(&error.to_string())));
                    continue;
                }
            };
            if seen.len() + groups.len() + found.len() + members.0.len() + members.1.len() > MAX_OBJECTS {
                return Err(format!(
                    "it has more than {MAX_OBJECTS} groups and datasets; name the datasets to read"
                ));
            }
            let under = |name: &str| if path.is_empty() { name.to_owned() } else { format!("{path}/{name}") };
            for dataset in members.1 {
                let path = under(dataset.name());
                match describe(file, &dataset, path.clone()) {
                    Ok(dataset) => found.push(dataset),
                    Err(error) => failed.push(format!("the dataset {path} cannot be read: {error}")),
                }
            }
            groups.extend(members.0.into_iter().map(|group: Group| {
                let path = under(group.name());
                (group, path)
            }));
        }
        found.sort_by(|a, b| a.path.cmp(&b.path));
        Ok((found, failed))
    })
}

/// Some datasets of a file by their paths, with all their chunks.
///
/// # Errors
/// A sentence without the file's name, but with the dataset's.
pub(super) fn locate(
    shards: &Arc<Shards>,
    shard: usize,
    paths: &[String],
) -> Result<(Addresses, Vec<Dataset>), String> {
    let paths = paths.to_vec();
    contained(shards, shard, move |file, size| {
        let superblock = file.superblock();
        let addresses = Addresses { base: superblock.base_address, length_size: superblock.length_size };
        let one = |path: &String| {
            let refuse = |why: String| format!("dataset {path}: {why}");
            let dataset = file.dataset(path).map_err(|error| match error {
                Error::DatasetNotFound(_) => refuse("there is no such dataset in the file".into()),
                error => refuse(plain(&error.to_string())),
            })?;
            let mut described = describe(file, &dataset, path.clone()).map_err(refuse)?;
            described.layout = super::layout::find(file, &dataset, &described, size).map_err(refuse)?;
            Ok(described)
        };
        Ok((addresses, paths.iter().map(one).collect::<Result<_, String>>()?))
    })
}

/// Runs `work` on an opened file, inside of the walls.
fn contained<T: Send + 'static>(
    shards: &Arc<Shards>,
    shard: usize,
    work: impl FnOnce(&Hdf5File, u64) -> Result<T, String> + Send + 'static,
) -> Result<T, String> {
    let storage = Arc::new(Budgeted::new(shards.clone(), shard));
    let size = storage.size;
    let opening = opening::current().unwrap_or_default();
    let run = move || {
        let options = OpenOptions::default()
            .with_chunk_cache_bytes(0)
            .with_max_chunk_bytes(MAX_SLAB as usize)
            .with_max_read_bytes(1 << 20)
            .with_max_object_header_bytes(MAX_HEADER);
        let file = Hdf5File::from_storage_with_options(storage, options).map_err(text)?;
        work(&file, size)
    };
    let thread =
        thread::Builder::new().name("fuelrail-hdf5".into()).stack_size(STACK).spawn(move || opening.run(run));
    let thread = thread.map_err(|error| format!("no thread could be started to read it: {error}"))?;
    thread.join().unwrap_or_else(|panic| {
        Err(format!("understanding it panicked ({}); its structures are damaged", panic_text(&*panic)))
    })
}

pub(super) fn text(error: Error) -> String {
    format!("its structures cannot be read: {}", plain(&error.to_string()))
}

/// What the library says of what it does not read, as users know it.
fn plain(error: &str) -> String {
    if error.contains("layout class 3") {
        return "a virtual dataset, made of parts of other files, which is not read: copy it into one".into();
    }
    if error.contains("magic bytes") { "it is no HDF5 file".into() } else { error.into() }
}

/// Shape and type of a dataset.
fn describe(file: &Hdf5File, dataset: &hdf5_reader::Dataset, path: String) -> Result<Dataset, String> {
    let superblock = file.superblock();
    let heap = super::heap::Ref::stored(superblock.offset_size);
    let mut shape = dataset.shape().to_vec();
    let dtype = match dataset.dtype() {
        Datatype::Array { base, dims } => {
            shape.extend(dims);
            base
        }
        dtype => dtype,
    };
    let (mut kind, element) = match dtype {
        Datatype::FixedPoint { size, signed, byte_order } => number(integer(*size, *signed), *byte_order),
        Datatype::FloatingPoint { size, byte_order } => number(float(*size), *byte_order),
        Datatype::Enum { base, members } => match &**base {
            Datatype::FixedPoint { size, signed, byte_order } => {
                // How h5py stores booleans.
                let boolean = members.iter().map(|member| member.name.as_str()).eq(["FALSE", "TRUE"]);
                let element =
                    if boolean && *size == 1 { Some(ElementType::Bool) } else { integer(*size, *signed) };
                number(element, *byte_order)
            }
            _ => (Kind::Unread("an enumeration".into()), 0),
        },
        Datatype::String { size: StringSize::Fixed(size), .. } => {
            (Kind::Fixed { text: true }, *size as usize)
        }
        Datatype::Opaque { size, .. } => (Kind::Fixed { text: false }, *size as usize),
        Datatype::String { size: StringSize::Variable, .. }
        | Datatype::VarLen { kind: VarLenKind::String, .. } => (Kind::Heap { text: true }, heap),
        Datatype::VarLen { base, .. } => match &**base {
            Datatype::FixedPoint { size: 1, .. } => (Kind::Heap { text: false }, heap),
            base => (sequence(base).unwrap_or(Kind::Unread("sequences of any length".into())), heap),
        },
        Datatype::Compound { .. } => (Kind::Unread("a compound type (records with named columns)".into()), 0),
        Datatype::Array { .. } => (Kind::Unread("arrays of arrays".into()), 0),
        Datatype::Reference { .. } => (Kind::Unread("references".into()), 0),
        Datatype::Bitfield { .. } => (Kind::Unread("bit fields".into()), 0),
    };
    let raw = dataset.raw_datatype().unwrap_or_default();
    let is_ordinary = match kind {
        Kind::Numbers(_) => ordinary(&raw),
        // | class and version | flags x3 | size u32 | what the elements are
        Kind::Sequence(_) => ordinary(raw.get(8..).unwrap_or_default()),
        _ => true,
    };
    if !is_ordinary {
        kind = Kind::Unread("numbers of an unusual format".into());
    }
    if let Kind::Unread(_) = kind {
        return Ok(Dataset { path, shape, kind, element, layout: Layout::Unknown("it is not read".into()) });
    }
    if element == 0 || element > 1 << 30 {
        return Err(format!("its elements have {element} bytes"));
    }
    Ok(Dataset { path, shape, kind, element, layout: Layout::Unknown("not looked up".into()) })
}

fn number(element: Option<ElementType>, order: ByteOrder) -> (Kind, usize) {
    match element {
        Some(element) => {
            let big = matches!(order, ByteOrder::BigEndian);
            (Kind::Numbers(Stored { element, big }), element.size())
        }
        None => (Kind::Unread("numbers of an unusual size".into()), 0),
    }
}

/// Numbers of any length.
fn sequence(base: &Datatype) -> Option<Kind> {
    let (element, order) = match base {
        Datatype::FixedPoint { size, signed, byte_order } => (integer(*size, *signed)?, byte_order),
        Datatype::FloatingPoint { size, byte_order } => (float(*size)?, byte_order),
        _ => return None,
    };
    Some(Kind::Sequence(Stored { element, big: matches!(order, ByteOrder::BigEndian) }))
}

fn integer(size: u8, signed: bool) -> Option<ElementType> {
    use ElementType::*;
    Some(match (size, signed) {
        (1, false) => U8,
        (1, true) => I8,
        (2, false) => U16,
        (2, true) => I16,
        (4, false) => U32,
        (4, true) => I32,
        (8, false) => U64,
        (8, true) => I64,
        _ => return None,
    })
}

fn float(size: u8) -> Option<ElementType> {
    match size {
        2 => Some(ElementType::F16),
        4 => Some(ElementType::F32),
        8 => Some(ElementType::F64),
        _ => None,
    }
}

/// Whether a number's bits are laid out as in memory: no padding, and IEEE's exponent and mantissa. A bfloat16 has the
/// size of an f16 and would be read as nonsense.
fn ordinary(raw: &[u8]) -> bool {
    // | class and version | flags x3 | size u32 | offset u16 | precision u16 | exponent at, bits | mantissa at, bits | …
    let Some(&class) = raw.first() else { return false };
    let field = |at: usize| raw.get(at..at + 2).map(|two| u16::from_le_bytes([two[0], two[1]]));
    let size = raw.get(4..8).map(|four| u32::from_le_bytes(four.try_into().expect("four bytes")));
    match (class & 15, size, field(8), field(10)) {
        (0, Some(size), Some(0), Some(precision)) => u32::from(precision) == 8 * size,
        (1, Some(size), Some(0), Some(precision)) if u32::from(precision) == 8 * size => {
            let bits = raw.get(12..16);
            matches!(
                (size, bits),
                (2, Some([10, 5, 0, 10])) | (4, Some([23, 8, 0, 23])) | (8, Some([52, 11, 0, 52]))
            )
        }
        (0 | 1, ..) => false,
        // Numbers within an array or enumeration: their own description follows, and h5py writes none that differ.
        _ => true,
    }
}

/// A file as `hdf5-reader` sees it: ranges, until the budget is used up.
struct Budgeted {
    shards: Arc<Shards>,
    shard: usize,
    size: u64,
    state: Mutex<State>,
}

struct State {
    left: u64,
    /// Blocks by number, the one fetched last at the back.
    blocks: VecDeque<(u64, Arc<[u8]>)>,
}

impl Budgeted {
    fn new(shards: Arc<Shards>, shard: usize) -> Self {
        let size = shards.files()[shard].size;
        let left = size.saturating_mul(BUDGET.1).saturating_add(BUDGET.0).min(BUDGET.2);
        Self { shards, shard, size, state: Mutex::new(State { left, blocks: VecDeque::new() }) }
    }

    fn block(&self, number: u64) -> io::Result<Arc<[u8]>> {
        if let Some((_, block)) = lock(&self.state).blocks.iter().rev().find(|(held, _)| *held == number) {
            return Ok(block.clone());
        }
        let start = number * BLOCK;
        let mut bytes = vec![0; BLOCK.min(self.size - start) as usize];
        self.shards.read_at(self.shard, start, &mut bytes)?;
        let block: Arc<[u8]> = bytes.into();
        let mut state = lock(&self.state);
        if state.blocks.len() == BLOCKS_KEPT {
            state.blocks.pop_front();
        }
        state.blocks.push_back((number, block.clone()));
        Ok(block)
    }
}

impl Storage for Budgeted {
    fn len(&self) -> u64 {
        self.size
    }

    fn read_range(&self, offset: u64, len: usize) -> Result<StorageBuffer, Error> {
        let end = offset.checked_add(len as u64).filter(|&end| end <= self.size);
        let Some(end) = end else {
            let available = self.size.saturating_sub(offset);
            return Err(Error::UnexpectedEof { offset, needed: len as u64, available });
        };
        {
            let mut state = lock(&self.state);
            let left = state.left.checked_sub(len as u64 + READ_COST);
            state.left = left.ok_or_else(|| {
                Error::ResourceLimit("its structures are larger than a file of this size can need".into())
            })?;
        }
        if len as u64 > BLOCK {
            let mut bytes = vec![0; len];
            self.shards.read_at(self.shard, offset, &mut bytes)?;
            return Ok(StorageBuffer::from_vec(bytes));
        }
        let first = offset / BLOCK;
        let from = (offset - first * BLOCK) as usize;
        let block = self.block(first)?;
        if end <= (first + 1) * BLOCK {
            return StorageBuffer::from_shared(block, from, len);
        }
        let mut bytes = block[from..].to_vec();
        bytes.extend_from_slice(&self.block(first + 1)?[..(end - (first + 1) * BLOCK) as usize]);
        Ok(StorageBuffer::from_vec(bytes))
    }
}
