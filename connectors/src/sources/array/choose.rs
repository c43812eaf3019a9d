//! Which array is the image, which the label, which are fields; and the ranges of their rows.

use crate::sources::array::Npy;
use std::sync::Arc;

use xxhash_rust::xxh3::Xxh3;

use super::find::{Arrays, Piece};
use super::source::{Array, Column, Form, Named, Rowed, Run};
use super::{ArrayConfig, BLOCK_BYTES, IMAGE_NAMES, LABEL_PIECE, TokensConfig, is_path, unpack};
use crate::bytes::shards::{Shards, ends_with};
use crate::column::{self, Part, Stored, product};
use crate::labels::{self, Collector, Context, Labels, OF_ARRAYS, Raw, refusal};
use crate::names::shown;
use crate::opening::{Counted, Step};
use crate::recognised::Recognised;
use crate::schema::{ElementType, Schema};
use crate::{Blocks, CacheConfig, Fingerprint, SourceError};

/// What else can be done about an array that holds no labels.
const OTHER: &str = "name another array (label=\"…\")";

/// Opened files on their way to a source.
pub(super) struct Opened<'config> {
    pub shards: Arc<Shards>,
    pub arrays: Arrays,
    pub config: &'config ArrayConfig,
}

impl Opened<'_> {
    pub(super) fn refuse(&self, why: String) -> SourceError {
        let more = match self.shards.files().len() {
            1 => String::new(),
            n => format!(" and {} more", n - 1),
        };
        SourceError::data(format!("{}{more}: {why}", self.shards.display(0)))
    }

    /// The arrays chosen, with the ranges of their rows.
    pub fn choose(self) -> Result<Array, SourceError> {
        if let Some(tokens) = &self.config.tokens {
            return self.tokens(tokens);
        }
        if let Some(wanted) = &self.config.deliver {
            return self.deliver(wanted);
        }
        let config = self.config;
        let named = config.label.as_deref().filter(|name| !name.is_empty());
        let label = named.map(|name| self.named(name)).transpose()?;
        let fields: Option<Vec<Chosen<'_>>> = config
            .fields
            .as_ref()
            .map(|names| names.iter().map(|name| self.named(name)).collect())
            .transpose()?;
        let image = match config.image.as_deref() {
            // Asked for: numbers alone.
            Some("") => None,
            Some(name) => Some(self.named(name)?),
            None => self.guess_image(&label, fields.as_deref().unwrap_or_default())?,
        };
        let all = self.arrays.0.iter().map(|(name, pieces)| Chosen { name, pieces: pieces.iter().collect() });

        let mut columns = Vec::new();
        let mut schema = Schema::of(image.is_some(), Vec::new());
        if let Some(image) = &image {
            columns.push(self.pixels(image)?);
        }
        let label = match label {
            None if config.label.is_none() => {
                let fields = fields.as_deref().unwrap_or_default();
                let free: Vec<Chosen<'_>> = all
                    .clone()
                    .filter(|array| !image.iter().chain(fields).any(|taken| taken.same(array)))
                    .collect();
                self.guess_label(free, image.as_ref(), columns.first().map(|(rows, _)| rows.count))?
            }
            label => label,
        };
        // What would have been the label is not wanted as a field either, unless it is asked for.
        let unwanted = config.label.as_deref().filter(|label| label.is_empty()).and_then(|_| {
            let named = labels::candidates(all.clone().map(|array| array.name), &OF_ARRAYS);
            named.first().and_then(|name| all.clone().find(|array| array.name == *name))
        });
        let taken =
            |array: &Chosen<'_>| image.iter().chain(&label).chain(&unwanted).any(|taken| taken.same(array));
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
                            "{} rows of {:?} do not match the images and are left out",
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
            let is_line = |array: &Chosen<'_>| {
                let npy = &array.pieces[0].npy;
                npy.dtype.is_ok() && npy.shape.len() == 1 && self.arrays.0.len() > 1
            };
            let others = all.clone().filter(|array| !is_line(array));
            let reasons: Vec<String> = others.filter_map(|array| self.why_not(&array)).take(5).collect();
            return Err(self.refuse(format!(
                "no array there can be a record's image or field ({}): {}",
                self.arrays.list(),
                reasons.join("; ")
            )));
        }
        for array in &chosen {
            let rows = self.rows(array)?;
            let (part, spec) = Part::field(array.name, rows.stored, rows.shape)
                .map_err(|why| self.refuse(format!("the array {:?}: {why}", array.name)))?;
            schema.fields.push(spec);
            columns.push((rows, part));
        }
        let columns: Vec<_> = columns
            .into_iter()
            .map(|(rows, part)| {
                let step = rows.step;
                (rows, Form::Rows { step, part })
            })
            .collect();
        let len = self.one_length(&columns)?;
        schema.check(label.is_some()).map_err(|why| self.refuse(why))?;
        let labels = self.labels_of(label.as_ref(), len, &columns[0].0)?;
        let label = label.map(|label| format!("array {:?}", label.name));
        self.build(columns, None, schema, labels, label.as_deref())
    }

    /// The rows of the array of images.
    pub(super) fn pixels<'arrays>(
        &self,
        image: &Chosen<'arrays>,
    ) -> Result<(Rows<'arrays>, Part), SourceError> {
        let rows = self.rows(image)?;
        let part = Part::pixels(rows.stored.element, rows.shape, self.config.layout).ok_or_else(|| {
            self.refuse(format!(
                "the array {:?} holds no images: {}; or set image to another array ({})",
                image.name,
                column::no_pixels(image.name, rows.stored, rows.shape),
                self.arrays.list()
            ))
        })?;
        Ok((rows, part))
    }

    /// The number of rows that all columns have.
    pub(super) fn one_length(&self, columns: &[(Rows<'_>, Form)]) -> Result<u64, SourceError> {
        let len = columns[0].0.count;
        match columns.iter().find(|(rows, _)| rows.count != len) {
            None => Ok(len),
            Some((rows, _)) => Err(self.refuse(format!(
                "the array {:?} has {} rows and {:?} has {len}; a record is one row of each: name the arrays that belong \
                 together with image and fields ({})",
                rows.name,
                rows.count,
                columns[0].0.name,
                self.arrays.list()
            ))),
        }
    }

    pub(super) fn labels_of(
        &self,
        label: Option<&Chosen<'_>>,
        len: u64,
        records: &Rows<'_>,
    ) -> Result<Labels, SourceError> {
        match label {
            Some(label) => self.labels(label, len, records),
            None if self.config.classes.is_some() => Err(SourceError::config(
                "classes are given, but no array holds labels; name it (label), or leave out classes".into(),
            )),
            None => Ok(Labels::default()),
        }
    }

    fn tokens(&self, config: &TokensConfig) -> Result<Array, SourceError> {
        let is_set = |name: &Option<String>| name.as_ref().is_some_and(|name| !name.is_empty());
        let other = [("image", is_set(&self.config.image)), ("label", is_set(&self.config.label))];
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
                "the array {:?} is not a line of tokens: {} of shape {:?} (as {to}), where one axis of integers \
                 is expected",
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
        let form = Form::Rows { step: rows.step, part };
        self.build(vec![(rows, form)], None, Schema::of(false, vec![spec]), Labels::default(), None)
    }

    /// The array of a name in the configuration: of an array, of one file of several, or a path.
    pub(super) fn named<'arrays>(&'arrays self, name: &str) -> Result<Chosen<'arrays>, SourceError> {
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

    pub(super) fn guess_image<'arrays>(
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
        if candidates.is_empty() && self.config.fields.is_none() {
            // Left out in silence it would be a data set without images.
            let all = self.arrays.0.iter();
            let turned =
                all.filter(|(_, pieces)| pieces[0].npy.is_image_in_fortran_order(self.config.layout));
            for (name, pieces) in turned {
                self.rows(&Chosen { name, pieces: pieces.iter().collect() })?;
            }
        }
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

    /// Why an array gives no images; `None` if it does.
    pub(super) fn why_not(&self, array: &Chosen<'_>) -> Option<String> {
        let why = match self.checked(array) {
            Err(why) => return Some(format!("the array {:?} {why}", array.name)),
            Ok(rows) if Part::pixels(rows.stored.element, rows.shape, self.config.layout).is_some() => None,
            Ok(rows) => Some(column::no_pixels(array.name, rows.stored, rows.shape)),
        };
        why.map(|why| format!("{:?}: {why}", array.name))
    }

    /// The label by name: one whose type leaves no doubt, else one of floats, which may be whole numbers; beside images
    /// called arr_0 the whole numbers called arr_1.
    pub(super) fn guess_label<'arrays>(
        &self,
        free: Vec<Chosen<'arrays>>,
        image: Option<&Chosen<'_>>,
        len: Option<u64>,
    ) -> Result<Option<Chosen<'arrays>>, SourceError> {
        let names = free.iter().map(|array| array.name);
        let called = image.map_or(Vec::new(), |image| labels::beside(image.name, names.clone()));
        let named: Vec<&Chosen<'_>> = called
            .into_iter()
            .chain(labels::candidates(names, &OF_ARRAYS))
            .filter_map(|name| free.iter().find(|array| array.name == name))
            .collect();
        let stored = |array: &Chosen<'_>| {
            let rows = self.rows(array).ok()?;
            let fits = rows.shape.iter().product::<u64>() == 1
                && rows.stored.is_label()
                && len.is_none_or(|len| len == rows.count);
            fits.then_some(rows.stored)
        };
        let is_sure = |array: &Chosen<'_>| {
            stored(array).is_some_and(|stored| !stored.is_float())
                || text_rows(array).is_some_and(|rows| len.is_none_or(|len| len == rows))
        };
        let found = named
            .iter()
            .find(|array| is_sure(array))
            .or_else(|| named.iter().find(|array| stored(array).is_some()));
        if let Some(array) = found {
            return Ok(Some((**array).clone()));
        }
        match named.first() {
            Some(array) => Err(self.unlabelled(array, len)),
            None if image.is_some_and(|image| image.name == "arr_0") => {
                Ok(free.iter().find(|array| array.name == "arr_1" && is_sure(array)).cloned())
            }
            None => Ok(None),
        }
    }

    /// Why an array holds no labels.
    fn unlabelled(&self, array: &Chosen<'_>, len: Option<u64>) -> SourceError {
        let first = &array.pieces[0].npy;
        let shape = first.shape.get(1..).unwrap_or_default();
        let what = format!("the array {:?}", array.name);
        let (holds, field) = match (&first.dtype, self.rows(array)) {
            (Err(unread), _) => match (text_rows(array), len) {
                (Some(rows), Some(len)) => (format!("{rows} texts, not one for each of {len} records"), None),
                _ => (unread.to_string(), None),
            },
            (_, Err(error)) => return error,
            (Ok(_), Ok(rows)) if len.is_some_and(|len| len != rows.count) => {
                let len = len.unwrap_or_default();
                (format!("{} rows, not one for each of {len} records", rows.count), None)
            }
            (Ok(stored), _) => {
                (format!("{} of shape {shape:?} for each record", stored.element), Some(array.name))
            }
        };
        self.refuse(refusal(&what, &holds, field, OTHER))
    }

    /// An array's rows, checked: numbers in C order, the same in all its files.
    pub(super) fn rows<'arrays>(&self, array: &Chosen<'arrays>) -> Result<Rows<'arrays>, SourceError> {
        self.checked(array).map_err(|why| self.refuse(format!("the array {:?} {why}", array.name)))
    }

    /// As [`rows`](Self::rows), with the end of a sentence about the array.
    fn checked<'arrays>(&self, array: &Chosen<'arrays>) -> Result<Rows<'arrays>, String> {
        let refuse = |why: String| why;
        let first = array.pieces[0];
        let mut counts = Vec::with_capacity(array.pieces.len());
        for piece in &array.pieces {
            let npy = &piece.npy;
            let stored = match &npy.dtype {
                Ok(stored) => *stored,
                Err(unread) => {
                    return Err(refuse(format!("holds {unread}; only numbers are read{}", unread.remedy())));
                }
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

    /// Reads the labels: one for each of `len` records, whose names `records` knows.
    fn labels(&self, array: &Chosen<'_>, len: u64, records: &Rows<'_>) -> Result<Labels, SourceError> {
        if let Some(rows) = text_rows(array) {
            if rows != len {
                return Err(self.unlabelled(array, Some(len)));
            }
        } else {
            if array.pieces.iter().any(|piece| piece.npy.dtype.is_err()) {
                return Err(self.unlabelled(array, None));
            }
            let rows = self.rows(array)?;
            let one_each = rows.shape.iter().all(|&n| n == 1);
            if !rows.stored.is_label() || !one_each || rows.count != len {
                return Err(self.unlabelled(array, Some(len)));
            }
        }
        let mut collector = Collector::default();
        self.each_label(array, len, |npy, one| {
            let row = collector.len();
            let pushed = match (&npy.dtype, npy.texts()) {
                (Ok(stored), _) => collector.push(stored.raw(one)),
                (Err(_), Some(texts)) => match texts.text(one) {
                    Ok(text) => collector.push(Raw::text(&text)),
                    Err(why) => collector.push(Raw::Wrong(why.into())),
                },
                (Err(unread), None) => Err(unread.to_string()),
            };
            pushed.map_err(|holds| {
                let (what, holds) = (format!("the array {:?}", array.name), format!("{holds} (row {row})"));
                self.refuse(refusal(&what, &holds, Some(array.name), OTHER))
            })
        })?;
        let context = Context {
            what: format!("the array {:?} of {}", array.name, self.shards.describe()),
            field: Some(array.name),
            other: OTHER,
            classes: self.config.classes.as_deref(),
            names: None,
            names_of_numbers: true,
            key: &|row| records.key(row),
        };
        Labels::join(vec![collector.finish()], &context)
    }

    /// Reads an array of one element per row, and hands out each with its file's header.
    fn each_label(
        &self,
        array: &Chosen<'_>,
        len: u64,
        mut take: impl FnMut(&Npy, &[u8]) -> Result<(), SourceError>,
    ) -> Result<(), SourceError> {
        let mut buffer = Vec::new();
        let step = Step::begin("reading labels", Counted::Rows, Some(len));
        for piece in &array.pieces {
            let npy = &piece.npy;
            let rows = npy.shape.first().copied().unwrap_or(0);
            let Some(element) = npy.data_bytes().and_then(|bytes| bytes.checked_div(rows)) else { continue };
            let copy = match self.unpacked(piece)? {
                Some(path) => Some(open_copies(&[path])?),
                None => None,
            };
            let (shards, shard) = copy.as_ref().map_or((&self.shards, piece.shard), |copy| (copy, 0));
            let mut at = piece.data();
            let end = at + rows * element;
            let most = (LABEL_PIECE as u64 / element).max(1) * element;
            while at < end {
                buffer.resize(most.min(end - at) as usize, 0);
                shards
                    .read_at(shard, at, &mut buffer)
                    .map_err(|error| SourceError::data(error.to_string()))?;
                at += buffer.len() as u64;
                step.add(buffer.len() as u64 / element);
                for one in buffer.chunks_exact(element as usize) {
                    take(npy, one)?;
                }
            }
        }
        Ok(())
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
            SourceError::config(format!("the cache folder's path must be UTF-8: {}", shown(&path)))
        })?;
        Ok(Some(path.to_owned()))
    }

    pub(super) fn build(
        &self,
        columns: Vec<(Rows<'_>, Form)>,
        parts: Option<Named>,
        schema: Schema,
        labels: Labels,
        label: Option<&str>,
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
        for (at, (rows, form)) in columns.iter().enumerate() {
            text(&format!("{} {} {:?} {}", rows.name, rows.stored.element, rows.whole_shape(), rows.step));
            if parts.is_some() {
                text(&form.written().to_string());
            }
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
            built.push(Column { runs, form: form.clone() });
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
        labels.classes.iter().for_each(|name| text(name));
        labels.hash(&mut hash);
        let lengths = if parts.is_some() { schema.parts.len() * 4 } else { 0 };
        let size = built.iter().map(|column| column.form.written()).sum::<u64>() + lengths as u64;
        let blocks = if local { Blocks::None } else { blocks(&built[0], len, size) };
        let fingerprint = Fingerprint(hash.digest128());
        let mut recognised = Recognised::default();
        for (at, (rows, _)) in columns.iter().enumerate() {
            let part = match () {
                () if at == 0 && schema.image => "image",
                () if at < columns.len() - schema.fields.len() => "part",
                () => "field",
            };
            recognised.note(format!("{part} = array {:?}", rows.name));
        }
        let mut no_image = None;
        if !schema.image && self.config.tokens.is_none() && parts.is_none() {
            let all = || {
                let all = self.arrays.0.iter().filter(|(_, pieces)| pieces[0].npy.shape.len() > 1);
                all.map(|(name, pieces)| Chosen { name, pieces: pieces.iter().collect() })
            };
            // What has the name of images, or else the shape of some.
            let meant = all()
                .find(|array| IMAGE_NAMES.contains(&array.name))
                .or_else(|| all().find(|array| array.pieces[0].npy.shape.len() > 2));
            no_image = meant.and_then(|array| self.why_not(&array));
            recognised.note(no_image.as_ref().map_or("no image".into(), |why| format!("no image ({why})")));
        }
        recognised.note(labels.recognised(label));
        Ok(Array {
            stores,
            rows: Rowed { columns: built, names, size, parts }.into(),
            len,
            schema,
            labels,
            blocks,
            fingerprint,
            recognised,
            no_image,
        })
    }
}

fn open_copies(paths: &[String]) -> Result<Arc<Shards>, SourceError> {
    // Copies of our own: the opening depends on what they were made of.
    Shards::find(paths, &[".npy"], &CacheConfig::default())
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
pub(super) struct Chosen<'arrays> {
    pub name: &'arrays str,
    pub pieces: Vec<&'arrays Piece>,
}

impl Chosen<'_> {
    pub fn same(&self, other: &Chosen<'_>) -> bool {
        self.pieces.iter().any(|piece| other.pieces.iter().any(|other| std::ptr::eq(*piece, *other)))
    }
}

/// The rows of an array, checked.
pub(super) struct Rows<'arrays> {
    pub name: &'arrays str,
    pub pieces: Vec<&'arrays Piece>,
    /// Rows in each piece.
    pub counts: Vec<u64>,
    pub stored: Stored,
    /// Shape of one row.
    pub shape: &'arrays [u64],
    /// Rows of all pieces.
    pub count: u64,
    /// Bytes from the start of one row to the next.
    pub step: u64,
}

impl Rows<'_> {
    /// The name of a record, as [`super::source`] has it.
    fn key(&self, mut row: u64) -> String {
        for (piece, &count) in self.pieces.iter().zip(&self.counts) {
            if row < count {
                return format!("{}/{row}", piece.name);
            }
            row -= count;
        }
        format!("row {row}")
    }

    pub fn whole_shape(&self) -> Vec<u64> {
        [&[self.count], self.shape].concat()
    }
}
/// Rows of an array of texts, one for each.
pub(super) fn text_rows(array: &Chosen<'_>) -> Option<u64> {
    array.pieces.iter().try_fold(0u64, |sum, piece| {
        piece.npy.texts()?;
        let (&rows, row) = piece.npy.shape.split_first()?;
        row.iter().all(|&n| n == 1).then(|| sum.checked_add(rows))?
    })
}
