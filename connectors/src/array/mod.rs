//! npy and npz files: arrays whose first axis is the record.
//!
//! ```text
//!  files ─▶ arrays (name, dtype, shape) ─▶ which is the image, which the label, which are fields ─▶ rows = byte ranges
//! ```
//!
//! What the arrays are called: a member of an npz file by its name, an npy file by its own without ending and without a
//! trailing number, so that `images-00.npy` and `images-01.npy` are two shards of `images`. Shards of one array have the
//! same type and row shape and are strung together along the first axis.
//!
//! What is taken for what, unless the configuration says:
//! - the **image**: the only array of u8 whose rows have the shape of pixels; of several, the one called `images`,
//!   `image` or `x`. Without one, records are fields alone;
//! - the **label**: an array called `y`, `labels` or `label` of one integer a record, which may be an npy file beside the
//!   only one named. Labels are held in memory, all else is read when asked for;
//! - the **fields**: all other arrays with a row for each record.
//!
//! # Promises
//! - A header is parsed by a grammar, never evaluated; pickled objects are refused by name and never loaded.
//! - A row is read straight from the file at its place. Deflated members of npz files are unpacked once into the cache.
//! - What the headers say is held against the sizes of the files before anything is allocated.
//!
//! # What it does not do
//! It reads no array in Fortran order with more than one axis (rows are not contiguous there), no structured types, no
//! texts.

mod npy;
mod unpack;
mod zip;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::Xxh3;

use crate::column::{self, Part, PixelLayout, Stored, product};
use crate::gather::{self, Parts, Place};
use crate::opening::{Counted, Step};
use crate::schema::{ElementType, Schema};
use crate::shards::{Ranges, Shards, ends_with};
use crate::{
    Blocks, Buffer, CacheConfig, Extent, FieldSpec, Fingerprint, IndexedSource, Reader, ReaderConfig,
    SourceError,
};
pub(crate) use npy::{MAX_HEADER, Npy, NpyError};
use zip::{Member, Method};

/// Configuration of arrays as records.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ArrayConfig {
    /// The files: paths or URLs with braces, `*` and `?`, or folders.
    pub files: Vec<String>,
    /// Name of the array of images.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// Name of the array of labels, one integer a record. An npy file may be named by its path, which starts where the
    /// first file is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// Names of the arrays that become fields, in this order; npy files as with `label`. Default: all that have a row for
    /// each record.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fields: Option<Vec<String>>,
    /// What the axes of the image array are.
    #[serde(skip_serializing_if = "PixelLayout::is_default")]
    pub layout: PixelLayout,
    /// Names of the classes, in label order; every label must be below their number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub classes: Option<Vec<String>>,
    /// The files hold one long line of tokens, to be cut into records.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens: Option<TokensConfig>,
    /// Where unpacked and remote files are kept.
    #[serde(skip_serializing_if = "CacheConfig::is_default")]
    pub cache: CacheConfig,
}

/// How a line of tokens is cut: record i is the tokens from `i * stride` on, `length` of them. What is left over at the end
/// of a file is not used; no record spans two files.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, expecting = "tokens to be keys with values, like {\"length\": 1024}")]
pub struct TokensConfig {
    /// Tokens of a record.
    pub length: u64,
    /// Tokens from the start of one record to the next; default `length`. A model that predicts the next token wants a
    /// length of one more than the stride.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stride: Option<u64>,
    /// Type of the tokens in `.bin` files, little-endian; default u16. An npy file says it itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stored: Option<ElementType>,
    /// Type of the tokens in records; default i64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dtype: Option<ElementType>,
}

impl ArrayConfig {
    pub(crate) fn locations(&self) -> Vec<String> {
        let paths = self.label.iter().chain(self.fields.iter().flatten()).filter(|name| is_path(name));
        let paths = paths.filter(|name| name.starts_with('/') || name.contains("://"));
        self.files.iter().chain(paths).cloned().collect()
    }
}

/// Whether a name in the configuration is a file's and not an array's.
fn is_path(name: &str) -> bool {
    name.contains('/') || ends_with(name, &[".npy"])
}

/// Bytes of an array in one block of a remote source.
const BLOCK_BYTES: u64 = 64 << 20;

/// Labels read at once.
const LABEL_PIECE: usize = 8 << 20;

/// Names that mean the label where nothing else was said.
const LABEL_NAMES: [&str; 3] = ["y", "labels", "label"];

/// Names that mean the image where several arrays could be it.
const IMAGE_NAMES: [&str; 3] = ["images", "image", "x"];

pub(crate) fn open(config: &ArrayConfig) -> Result<Arc<dyn IndexedSource>, SourceError> {
    let endings: &[&str] =
        if config.tokens.is_some() { &[".npy", ".npz", ".bin"] } else { &[".npy", ".npz"] };
    let mut patterns = config.files.clone();
    let shards = Shards::open(&patterns, endings, &config.cache)?;
    let first = shards.display(0);
    let folder = first.rsplit_once('/').map_or("", |(folder, _)| folder);
    for name in config.label.iter().chain(config.fields.iter().flatten()).filter(|name| is_path(name)) {
        let path = if name.starts_with('/') || name.contains("://") {
            name.clone()
        } else {
            format!("{folder}/{name}")
        };
        if !patterns.contains(&path) && !(0..shards.files().len()).any(|shard| shards.display(shard) == path)
        {
            patterns.push(path);
        }
    }
    let alone = shards.files().len() == 1 && config.tokens.is_none() && ends_with(&first, &[".npy"]);
    if alone && config.label.is_none() && shards.extent(0, 0, 0).is_some() {
        let beside = LABEL_NAMES.iter().map(|name| format!("{folder}/{name}.npy"));
        patterns.extend(beside.filter(|path| *path != first && Path::new(path).is_file()).take(1));
    }
    let shards = if patterns.len() > config.files.len() {
        Shards::open(&patterns, endings, &config.cache)?
    } else {
        shards
    };
    let arrays = Arrays::find(&shards, config)?;
    arrays.check_shards(&shards)?;
    Ok(Arc::new(Opened { shards, arrays, config }.choose()?))
}

/// One array in one file, or the part of one that the file holds.
struct Piece {
    /// The file, and the member in it.
    name: String,
    /// The file's name alone, without its ending.
    stem: String,
    shard: usize,
    npy: Npy,
    /// The first byte of the array in the file, unless it is deflated.
    at: Result<u64, Member>,
}

/// All arrays by name, in the order they were found.
struct Arrays(Vec<(String, Vec<Piece>)>);

impl Arrays {
    fn find(shards: &Shards, config: &ArrayConfig) -> Result<Self, SourceError> {
        let mut arrays = Vec::new();
        let mut places: BTreeMap<String, usize> = BTreeMap::new();
        let mut add = |name: String, piece: Piece| {
            let place = *places.entry(name.clone()).or_insert_with(|| {
                arrays.push((name, Vec::new()));
                arrays.len() - 1
            });
            arrays[place].1.push(piece);
        };
        for (shard, file) in shards.files().iter().enumerate() {
            let refuse = |why: String| SourceError::data(format!("{}: {why}", shards.display(shard)));
            let stem = stem(&file.name);
            let read = |offset: u64, buffer: &mut [u8]| shards.read_at(shard, offset, buffer);
            if ends_with(&file.name, &[".npz"]) {
                for member in zip::members(file.size, &read).map_err(&refuse)? {
                    let Some(name) = member.name.strip_suffix(".npy") else { continue };
                    let refuse = |why: String| refuse(format!("array {name:?}: {why}"));
                    let npy = match member.method {
                        Method::Stored => header(member.offset, member.size, &read),
                        Method::Deflated => unpack::header(&member, &read),
                        Method::Other(why) => Err(format!("it is {why}, which is not read")),
                    }
                    .map_err(&refuse)?;
                    check_size(&npy, member.size).map_err(&refuse)?;
                    let name = name.to_owned();
                    let at = if member.method == Method::Stored { Ok(member.offset) } else { Err(member) };
                    let piece = Piece {
                        name: format!("{}/{name}", file.name),
                        stem: stem.to_owned(),
                        shard,
                        npy,
                        at,
                    };
                    add(name, piece);
                }
                continue;
            }
            let npy = if ends_with(&file.name, &[".npy"]) {
                header(0, file.size, &read).map_err(&refuse)?
            } else if let Some(tokens) = &config.tokens {
                let element = tokens.stored.unwrap_or(ElementType::U16);
                let shape = vec![file.size / element.size() as u64];
                Npy { dtype: Ok(Stored { element, big: false }), fortran: false, shape, data: 0 }
            } else {
                return Err(refuse("its name ends neither in .npy nor in .npz".into()));
            };
            check_size(&npy, file.size).map_err(&refuse)?;
            let piece = Piece { name: file.name.clone(), stem: stem.to_owned(), shard, npy, at: Ok(0) };
            add(without_number(stem).to_owned(), piece);
        }
        Ok(Self(arrays))
    }

    /// Refuses arrays whose shards differ: leaving one out would go unseen.
    fn check_shards(&self, shards: &Shards) -> Result<(), SourceError> {
        for (name, pieces) in &self.0 {
            let first = &pieces[0];
            let row =
                |piece: &Piece| (piece.npy.dtype.clone(), piece.npy.shape.get(1..).map(<[u64]>::to_vec));
            if let Some(other) = pieces.iter().find(|piece| row(piece) != row(first)) {
                let describe = |piece: &Piece| match &piece.npy.dtype {
                    Ok(stored) => format!("{} {:?}", stored.element, piece.npy.shape),
                    Err(unread) => unread.to_string(),
                };
                return Err(SourceError::data(format!(
                    "{}: the files of the array {name:?} do not go together: {} in {}, but {} in {}; shards of one array have \
                     the same type and row shape, and other arrays another name",
                    shards.display(other.shard),
                    describe(first),
                    first.name,
                    describe(other),
                    other.name
                )));
            }
        }
        Ok(())
    }

    /// What there is, for errors.
    fn list(&self) -> String {
        let one = |(name, pieces): &(String, Vec<Piece>)| {
            let dtype = match &pieces[0].npy.dtype {
                Ok(stored) => stored.element.name().to_owned(),
                Err(unread) => unread.to_string(),
            };
            let more = if pieces.len() > 1 { format!(" x {} files", pieces.len()) } else { String::new() };
            format!("{name:?}: {dtype} {:?}{more}", pieces[0].npy.shape)
        };
        self.0.iter().take(30).map(one).collect::<Vec<_>>().join("; ")
    }
}

/// The last part of a name without its ending.
fn stem(name: &str) -> &str {
    let file = name.rsplit_once('/').map_or(name, |(_, file)| file);
    file.rsplit_once('.').map_or(file, |(stem, _)| stem)
}

/// `images` of `images-03`; names that are numbers alone stay.
fn without_number(stem: &str) -> &str {
    let name = stem.trim_end_matches(|c: char| c.is_ascii_digit());
    match name.strip_suffix(['-', '_', '.']) {
        Some(rest) if name.len() < stem.len() && !rest.is_empty() => rest,
        _ => stem,
    }
}

/// Reads the header of the array that begins at `start` and has `size` bytes.
fn header(start: u64, size: u64, read: &zip::ReadAt<'_>) -> Result<Npy, String> {
    let mut wanted = 4096.min(size) as usize;
    loop {
        let mut bytes = vec![0; wanted];
        read(start, &mut bytes).map_err(|error| error.to_string())?;
        match Npy::parse(&bytes) {
            Ok(npy) => return Ok(npy),
            Err(NpyError::Short(needed)) if needed as u64 <= size => wanted = needed,
            Err(NpyError::Short(_)) => return Err("it ends within its header".into()),
            Err(NpyError::Wrong(why)) => return Err(why),
        }
    }
}

/// Holds the header against the bytes that are there. Arrays of refused kinds have sizes that need not be known.
fn check_size(npy: &Npy, size: u64) -> Result<(), String> {
    if npy.dtype.is_err() || npy.data == 0 {
        return Ok(());
    }
    let expected = npy.data_bytes().and_then(|bytes| bytes.checked_add(npy.data));
    if expected == Some(size) {
        return Ok(());
    }
    Err(format!(
        "its header promises shape {:?}, which takes {} bytes with the header, but {size} are there; it was cut off, or \
         something follows the array",
        npy.shape,
        expected.map_or("more than 2^64".into(), |bytes| bytes.to_string())
    ))
}

/// Opened files on their way to a source.
struct Opened<'config> {
    shards: Arc<Shards>,
    arrays: Arrays,
    config: &'config ArrayConfig,
}

impl Opened<'_> {
    fn refuse(&self, why: String) -> SourceError {
        let more = match self.shards.files().len() {
            1 => String::new(),
            n => format!(" and {} more", n - 1),
        };
        SourceError::data(format!("{}{more}: {why}", self.shards.display(0)))
    }

    /// The arrays chosen, with the ranges of their rows.
    fn choose(self) -> Result<Array, SourceError> {
        if let Some(tokens) = &self.config.tokens {
            return self.tokens(tokens);
        }
        let config = self.config;
        let label = config.label.as_deref().map(|name| self.named(name)).transpose()?;
        let fields: Option<Vec<Chosen<'_>>> = config
            .fields
            .as_ref()
            .map(|names| names.iter().map(|name| self.named(name)).collect())
            .transpose()?;
        let image = match &config.image {
            Some(name) => Some(self.named(name)?),
            None => self.guess_image(&label, fields.as_deref().unwrap_or_default())?,
        };
        let all = self.arrays.0.iter().map(|(name, pieces)| Chosen { name, pieces: pieces.iter().collect() });

        let mut columns = Vec::new();
        let mut schema = Schema { image: image.is_some(), fields: Vec::new() };
        if let Some(image) = &image {
            let rows = self.rows(image)?;
            let part = Part::pixels(rows.stored.element, rows.shape, config.layout).ok_or_else(|| {
                self.refuse(format!(
                    "the array {:?} holds no images: {} of shape {:?}, where u8 of (records, height, width) or with 1, 3 or 4 \
                     channels is expected; set layout to hw, hwc or chw, or image to another array ({})",
                    image.name,
                    rows.stored.element,
                    rows.whole_shape(),
                    self.arrays.list()
                ))
            })?;
            columns.push((rows, part));
        }
        let guessed_label = || {
            LABEL_NAMES.iter().find_map(|name| {
                all.clone().find(|array| array.name == *name && !image.iter().any(|image| image.same(array)))
            })
        };
        let candidate = if label.is_none() { guessed_label() } else { None };
        let fits = |array: &Chosen<'_>, len: Option<u64>| {
            self.rows(array).is_ok_and(|rows| {
                rows.shape.is_empty() && rows.stored.is_integer() && len.is_none_or(|len| len == rows.count)
            })
        };
        let candidate = candidate.filter(|array| {
            let asked = fields.iter().flatten().any(|field| field.same(array));
            !asked && fits(array, columns.first().map(|(rows, _)| rows.count))
        });
        let label = label.or(candidate);
        let taken = |array: &Chosen<'_>| image.iter().chain(&label).any(|taken| taken.same(array));
        let chosen: Vec<Chosen<'_>> = match fields {
            Some(fields) => fields,
            None => {
                let mut chosen: Vec<Chosen<'_>> = Vec::new();
                for array in all.clone().filter(|array| !taken(array)) {
                    // A length that differs is a table beside the records only if there are images to tell which.
                    let len = columns.first().map(|(rows, _)| rows.count);
                    match self.rows(&array) {
                        Ok(rows) if len.is_none_or(|len| len == rows.count) => chosen.push(array),
                        Ok(rows) => tracing::info!(
                            "{} rows of {:?} do not go with the images and are left out",
                            rows.count,
                            array.name
                        ),
                        Err(error) => tracing::info!("left out: {error}"),
                    }
                }
                chosen
            }
        };
        if image.is_none() && chosen.is_empty() {
            return Err(self.refuse(format!(
                "no array there can be a record's image or field: {}; texts and Python objects are not read",
                self.arrays.list()
            )));
        }
        for array in &chosen {
            let rows = self.rows(array)?;
            let (part, spec) = Part::field(array.name, rows.stored, rows.shape)
                .map_err(|why| self.refuse(format!("the array {:?}: {why}", array.name)))?;
            schema.fields.push(spec);
            columns.push((rows, part));
        }
        let len = columns[0].0.count;
        if let Some((rows, _)) = columns.iter().find(|(rows, _)| rows.count != len) {
            return Err(self.refuse(format!(
                "the array {:?} has {} rows and {:?} has {len}; a record is one row of each: name the arrays that belong \
                 together with image and fields ({})",
                rows.name,
                rows.count,
                columns[0].0.name,
                self.arrays.list()
            )));
        }
        schema.check().map_err(|why| self.refuse(why))?;
        let labels = match &label {
            Some(label) => Some(self.labels(label, len)?),
            None => None,
        };
        self.build(columns, schema, labels)
    }

    fn tokens(&self, config: &TokensConfig) -> Result<Array, SourceError> {
        let other = [("image", self.config.image.is_some()), ("label", self.config.label.is_some())];
        if let Some((key, _)) = other.iter().find(|(_, set)| *set) {
            return Err(SourceError::config(format!(
                "{key} and tokens cannot both be set: a line of tokens has none"
            )));
        }
        let stride = config.stride.unwrap_or(config.length);
        if config.length == 0 || stride == 0 {
            return Err(SourceError::config("tokens.length and tokens.stride must be at least 1".into()));
        }
        let array = match self.config.fields.as_deref() {
            Some([name]) => self.named(name)?,
            None if self.arrays.0.len() == 1 => {
                let (name, pieces) = &self.arrays.0[0];
                Chosen { name, pieces: pieces.iter().collect() }
            }
            _ => {
                return Err(self.refuse(format!(
                    "tokens come from one array; name it with fields, or name only its files ({})",
                    self.arrays.list()
                )));
            }
        };
        let mut rows = self.rows(&array)?;
        let to = config.dtype.unwrap_or(ElementType::I64);
        if !rows.shape.is_empty()
            || !rows.stored.is_integer()
            || !(Stored { element: to, big: false }).is_integer()
        {
            return Err(self.refuse(format!(
                "the array {:?} is no line of tokens: {} of shape {:?} (as {to}), where one axis of integers is expected",
                array.name,
                rows.stored.element,
                rows.whole_shape()
            )));
        }
        let (part, spec) = Part::tokens(config.length, rows.stored, to)
            .map_err(|why| SourceError::config(format!("tokens: {why}")))?;
        rows.step = stride * rows.stored.element.size() as u64;
        rows.count = 0;
        for (piece, count) in rows.pieces.iter().zip(&mut rows.counts) {
            *count = piece.npy.shape[0].checked_sub(config.length).map_or(0, |rest| rest / stride + 1);
            rows.count += *count;
        }
        if rows.count == 0 {
            return Err(self.refuse(format!("it holds fewer than tokens.length = {} tokens", config.length)));
        }
        self.build(vec![(rows, part)], Schema { image: false, fields: vec![spec] }, None)
    }

    /// The array of a name in the configuration: of an array, of one file of several, or a path.
    fn named<'arrays>(&'arrays self, name: &str) -> Result<Chosen<'arrays>, SourceError> {
        let exact = self.arrays.0.iter().find(|(array, _)| array == name);
        if let Some((name, pieces)) = exact {
            return Ok(Chosen { name, pieces: pieces.iter().collect() });
        }
        let pieces = || self.arrays.0.iter().flat_map(|(_, pieces)| pieces);
        let wanted = name.trim_start_matches("./");
        let found = if is_path(name) {
            let shards = &self.shards;
            let path = |piece: &&Piece| {
                let full = shards.display(piece.shard);
                full == name || full.strip_suffix(wanted).is_some_and(|before| before.ends_with('/'))
            };
            pieces().find(path)
        } else {
            pieces().find(|piece| piece.stem == wanted && ends_with(&piece.name, &[".npy"]))
        };
        match found {
            Some(piece) => Ok(Chosen { name: &piece.stem, pieces: vec![piece] }),
            None => Err(self.refuse(format!("there is no array {name:?}; there are {}", self.arrays.list()))),
        }
    }

    fn guess_image<'arrays>(
        &'arrays self,
        label: &Option<Chosen<'_>>,
        fields: &[Chosen<'_>],
    ) -> Result<Option<Chosen<'arrays>>, SourceError> {
        let all = self.arrays.0.iter().map(|(name, pieces)| Chosen { name, pieces: pieces.iter().collect() });
        let mut candidates: Vec<Chosen<'_>> = all
            .filter(|array| !label.iter().chain(fields).any(|taken| taken.same(array)))
            .filter(|array| {
                self.rows(array).is_ok_and(|rows| {
                    Part::pixels(rows.stored.element, rows.shape, self.config.layout).is_some()
                })
            })
            .collect();
        if candidates.len() < 2 {
            return Ok(candidates.pop());
        }
        let named =
            IMAGE_NAMES.iter().find_map(|name| candidates.iter().position(|array| array.name == *name));
        match named {
            Some(at) => Ok(Some(candidates.swap_remove(at))),
            None => Err(self.refuse(format!(
                "several arrays could be the images; say which with image ({})",
                self.arrays.list()
            ))),
        }
    }

    /// An array's rows, checked: numbers in C order, the same in all its files.
    fn rows<'arrays>(&self, array: &Chosen<'arrays>) -> Result<Rows<'arrays>, SourceError> {
        let refuse = |why: String| self.refuse(format!("the array {:?} {why}", array.name));
        let first = array.pieces[0];
        let mut counts = Vec::with_capacity(array.pieces.len());
        for piece in &array.pieces {
            let npy = &piece.npy;
            let stored = match &npy.dtype {
                Ok(stored) => *stored,
                Err(unread) => return Err(refuse(format!("holds {unread}; only numbers are read"))),
            };
            if npy.fortran && npy.shape.len() > 1 {
                return Err(refuse(
                    "is in Fortran order; save it with np.save(path, np.ascontiguousarray(array))".into(),
                ));
            }
            let Some((&count, shape)) = npy.shape.split_first() else {
                return Err(refuse("is a single number; its first axis would be the records".into()));
            };
            let row = product(shape).and_then(|row| row.checked_mul(stored.element.size() as u64));
            if row.is_none_or(|row| row == 0) {
                return Err(refuse(format!("has rows of no bytes: shape {:?}", npy.shape)));
            }
            counts.push(count);
        }
        let stored = first.npy.dtype.clone().expect("checked above, and the same in all pieces");
        let count = counts.iter().try_fold(0u64, |sum, &count| sum.checked_add(count));
        let count = count.filter(|&count| count > 0).ok_or_else(|| refuse("has no rows".into()))?;
        let shape = &first.npy.shape[1..];
        let row = product(shape).expect("checked above") * stored.element.size() as u64;
        let pieces = array.pieces.clone();
        Ok(Rows { name: array.name, pieces, counts, stored, shape, count, step: row })
    }

    fn labels(&self, array: &Chosen<'_>, len: u64) -> Result<Vec<i64>, SourceError> {
        let rows = self.rows(array)?;
        let column_of_one = rows.shape.iter().all(|&n| n == 1);
        if !rows.stored.is_integer() || !column_of_one || rows.count != len {
            return Err(self.refuse(format!(
                "the array {:?} holds no labels: {} of shape {:?}, where one integer for each of {len} records is expected; \
                 name numbers of another kind with fields",
                array.name,
                rows.stored.element,
                rows.whole_shape()
            )));
        }
        let classes = self.config.classes.as_deref().unwrap_or_default();
        let mut labels: Vec<i64> = Vec::new();
        labels
            .try_reserve_exact(usize::try_from(len).unwrap_or(usize::MAX))
            .map_err(|_| self.refuse(format!("{len} labels do not fit in memory")))?;
        let element = rows.stored.element.size();
        let mut buffer = Vec::new();
        let step = Step::begin("reading labels", Counted::Rows, Some(len));
        for (piece, &count) in rows.pieces.iter().zip(&rows.counts) {
            let copy = match self.unpacked(piece)? {
                Some(path) => Some(open_copies(&[path])?),
                None => None,
            };
            let (shards, shard) = copy.as_ref().map_or((&self.shards, piece.shard), |copy| (copy, 0));
            let mut at = piece.data();
            let end = at + count * element as u64;
            while at < end {
                buffer.resize(LABEL_PIECE.min((end - at) as usize), 0);
                shards
                    .read_at(shard, at, &mut buffer)
                    .map_err(|error| SourceError::data(error.to_string()))?;
                at += buffer.len() as u64;
                step.add((buffer.len() / element) as u64);
                let what = format!("the labels in {}, from row {} on", piece.name, labels.len());
                labels.extend(column::labels(rows.stored, &buffer, classes, &what)?);
            }
        }
        Ok(labels)
    }

    /// The unpacked copy of a deflated piece, as a path; `None` when it is read where it is.
    fn unpacked(&self, piece: &Piece) -> Result<Option<String>, SourceError> {
        let Err(member) = &piece.at else { return Ok(None) };
        let file = &self.shards.files()[piece.shard];
        let display = self.shards.display(piece.shard);
        let identity = format!("{display}\n{}\n{}\n{member:?}", file.size, file.version);
        let what = format!("{display}: array {:?}", member.name);
        let path = unpack::unpack(&self.config.cache, &identity, &what, member, &|offset, buffer| {
            self.shards.read_at(piece.shard, offset, buffer)
        })?;
        let path = path.to_str().ok_or_else(|| {
            SourceError::config(format!("the cache folder's path must be UTF-8: {}", path.display()))
        })?;
        Ok(Some(path.to_owned()))
    }

    fn build(
        &self,
        columns: Vec<(Rows<'_>, Part)>,
        schema: Schema,
        labels: Option<Vec<i64>>,
    ) -> Result<Array, SourceError> {
        let mut hash = Xxh3::new();
        let mut text = |text: &str| {
            hash.update(&(text.len() as u64).to_le_bytes());
            hash.update(text.as_bytes());
        };
        text("fuelrail array 1");
        text(&serde_json::to_string(&schema).expect("plain data"));
        let mut stores = vec![self.shards.clone()];
        let mut built = Vec::new();
        let mut names = Vec::new();
        let mut copies: Vec<String> = Vec::new();
        for (at, (rows, part)) in columns.iter().enumerate() {
            text(&format!("{} {} {:?} {}", rows.name, rows.stored.element, rows.whole_shape(), rows.step));
            let (mut runs, mut first) = (Vec::new(), 0);
            for (piece, &count) in rows.pieces.iter().zip(&rows.counts) {
                text(&format!("{} {count}", piece.name));
                if count == 0 {
                    continue;
                }
                let copy = self.unpacked(piece)?.map(|path| {
                    copies.iter().position(|copy| *copy == path).unwrap_or_else(|| {
                        copies.push(path);
                        copies.len() - 1
                    })
                });
                let (store, shard) = copy.map_or((0, piece.shard), |copy| (1, copy));
                runs.push(Run { first, store, shard: shard as u32, offset: piece.data() });
                if at == 0 {
                    names.push(piece.name.clone());
                }
                first += count;
            }
            built.push(Column { runs, step: rows.step, part: part.clone() });
        }
        if !copies.is_empty() {
            stores.push(open_copies(&copies)?);
        }
        let len = columns[0].0.count;
        let local = stores.iter().enumerate().all(|(store, shards)| {
            let mut shards_used =
                built.iter().flat_map(|column| &column.runs).filter(|run| run.store as usize == store);
            shards_used.all(|run| shards.extent(run.shard as usize, 0, 0).is_some())
        });
        let classes = self.config.classes.clone().unwrap_or_default();
        classes.iter().for_each(|name| text(name));
        for label in labels.iter().flatten() {
            hash.update(&label.to_le_bytes());
        }
        let size = built.iter().map(|column| column.part.written() as u64).sum();
        let blocks = if local { Blocks::None } else { blocks(&built[0], len, size) };
        let fingerprint = Fingerprint(hash.digest128());
        Ok(Array {
            stores,
            rows: Rowed { columns: built, names, size }.into(),
            len,
            schema,
            labels,
            classes,
            blocks,
            fingerprint,
        })
    }
}

impl Piece {
    /// The first byte of its data, in the file or in the unpacked copy.
    fn data(&self) -> u64 {
        self.at.as_ref().map_or(0, |at| *at) + self.npy.data
    }
}

fn open_copies(paths: &[String]) -> Result<Arc<Shards>, SourceError> {
    Shards::open(paths, &[".npy"], &CacheConfig::default())
}

/// Stretches of about [`BLOCK_BYTES`] of each file.
fn blocks(column: &Column, len: u64, size: u64) -> Blocks {
    let most = (BLOCK_BYTES / size.max(1)).max(1);
    let ends = column.runs[1..].iter().map(|run| run.first).chain([len]);
    let runs = column.runs.iter().zip(ends).map(|(run, end)| end - run.first);
    Blocks::seekable(
        runs.flat_map(|count| (0..count.div_ceil(most)).map(move |block| most.min(count - block * most))),
    )
}

/// An array of the configuration's choice.
#[derive(Clone)]
struct Chosen<'arrays> {
    name: &'arrays str,
    pieces: Vec<&'arrays Piece>,
}

impl Chosen<'_> {
    fn same(&self, other: &Chosen<'_>) -> bool {
        self.pieces.iter().any(|piece| other.pieces.iter().any(|other| std::ptr::eq(*piece, *other)))
    }
}

/// The rows of an array, checked.
struct Rows<'arrays> {
    name: &'arrays str,
    pieces: Vec<&'arrays Piece>,
    /// Rows in each piece.
    counts: Vec<u64>,
    stored: Stored,
    /// Shape of one row.
    shape: &'arrays [u64],
    /// Rows of all pieces.
    count: u64,
    /// Bytes from the start of one row to the next.
    step: u64,
}

impl Rows<'_> {
    fn whole_shape(&self) -> Vec<u64> {
        [&[self.count], self.shape].concat()
    }
}

/// npy and npz files, opened.
struct Array {
    stores: Vec<Arc<Shards>>,
    rows: Arc<Rowed>,
    len: u64,
    schema: Schema,
    labels: Option<Vec<i64>>,
    classes: Vec<String>,
    blocks: Blocks,
    fingerprint: Fingerprint,
}

/// Where every record's rows lie.
struct Rowed {
    columns: Vec<Column>,
    /// Names of the first column's runs, for keys.
    names: Vec<String>,
    /// Bytes of a record.
    size: u64,
}

struct Column {
    runs: Vec<Run>,
    step: u64,
    part: Part,
}

/// Rows of one array that lie in one file.
struct Run {
    /// The record of the first row.
    first: u64,
    store: u32,
    shard: u32,
    /// The first byte of the first row.
    offset: u64,
}

impl Column {
    fn run(&self, index: u64) -> usize {
        self.runs.partition_point(|run| run.first <= index) - 1
    }
}

impl Parts for Rowed {
    fn parts(&self) -> usize {
        self.columns.len()
    }

    fn locate(&self, index: u64, part: usize) -> Place {
        let column = &self.columns[part];
        let run = &column.runs[column.run(index)];
        let offset = run.offset + (index - run.first) * column.step;
        Place {
            store: run.store as usize,
            shard: run.shard as usize,
            offset,
            len: column.part.stored() as u64,
        }
    }

    fn size(&self, _index: u64) -> u64 {
        self.size
    }

    fn join(&self, _index: u64, parts: &[Buffer], mut record: &mut [u8]) -> Result<(), String> {
        for (column, row) in self.columns.iter().zip(parts) {
            let (body, rest) = record.split_at_mut(column.part.written());
            column.part.write(row, body)?;
            record = rest;
        }
        Ok(())
    }

    fn key(&self, index: u64) -> String {
        let run = self.columns[0].run(index);
        format!("{}/{}", self.names[run], index - self.columns[0].runs[run].first)
    }
}

/// Records that are one range each, as they lie in the first store.
impl Ranges for Rowed {
    fn locate(&self, index: u64) -> (usize, u64, u64) {
        let place = Parts::locate(self, index, 0);
        (place.shard, place.offset, place.len)
    }

    fn key(&self, index: u64) -> String {
        Parts::key(self, index)
    }
}

impl Array {
    /// Whether a record is its bytes in the files as they are.
    fn plain(&self) -> bool {
        let column = &self.rows.columns[0];
        self.rows.columns.len() == 1 && column.part.is_plain() && column.runs.iter().all(|run| run.store == 0)
    }

    fn check(&self, index: u64) {
        assert!(index < self.len, "record {index} of {}", self.len);
    }
}

impl IndexedSource for Array {
    fn len(&self) -> u64 {
        self.len
    }

    fn key(&self, index: u64) -> String {
        self.check(index);
        Parts::key(&*self.rows, index)
    }

    fn label(&self, index: u64) -> i64 {
        self.check(index);
        self.labels.as_ref().map_or(0, |labels| labels[index as usize])
    }

    fn classes(&self) -> &[String] {
        &self.classes
    }

    fn schema(&self) -> Schema {
        self.schema.clone()
    }

    fn size(&self, index: u64) -> u64 {
        self.check(index);
        self.rows.size
    }

    fn extent(&self, index: u64) -> Option<Extent> {
        self.check(index);
        let place = Parts::locate(&*self.rows, index, 0);
        let extent = || self.stores[place.store].extent(place.shard, place.offset, place.len);
        self.plain().then(extent).flatten()
    }

    fn blocks(&self) -> Blocks {
        self.blocks.clone()
    }

    fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    fn memory(&self) -> u64 {
        let runs: usize =
            self.rows.columns.iter().map(|column| column.runs.capacity() * size_of::<Run>()).sum();
        let texts = self.rows.names.iter().chain(&self.classes);
        let texts: usize = texts.map(|text| text.capacity() + size_of::<String>()).sum();
        let labels = self.labels.as_ref().map_or(0, |labels| labels.capacity() * size_of::<i64>());
        let blocks = match &self.blocks {
            Blocks::Lengths { lengths, .. } => lengths.len() * size_of::<u64>(),
            Blocks::None => 0,
        };
        let fields = self.schema.fields.len() * size_of::<FieldSpec>();
        let stores: u64 = self.stores.iter().map(|store| store.memory()).sum();
        (size_of::<Self>() + runs + texts + labels + blocks + fields) as u64 + stores
    }

    fn reader_memory(&self) -> u64 {
        let remote: u64 = self.stores.iter().map(|store| store.reader_memory()).max().unwrap_or(0);
        remote + if self.plain() { 0 } else { gather::memory(self.rows.size) }
    }

    fn reader(self: Arc<Self>, config: &ReaderConfig) -> Result<Box<dyn Reader>, SourceError> {
        if self.plain() {
            return self.stores[0].clone().reader(self.rows.clone(), config);
        }
        gather::open(self.rows.clone(), &self.stores, config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_of_a_shard_is_no_part_of_its_arrays_name() {
        for (name, expected) in [
            ("a/images-003.npy", "images"),
            ("tokens_000001.bin", "tokens"),
            ("x1.npy", "x1"),
            ("x_train.npy", "x_train"),
            ("007.npy", "007"),
            ("-1.npy", "-1"),
            ("data.v2.npy", "data.v2"),
        ] {
            assert_eq!(without_number(stem(name)), expected, "{name}");
        }
    }
}
