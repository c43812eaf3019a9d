//! HDF5 files: datasets whose first axis is the record.
//!
//! | dataset | becomes |
//! |---|---|
//! | bytes of any length, `h5py.special_dtype(vlen=np.uint8)`, one a record | encoded images |
//! | opaque bytes of a fixed length, one a record | encoded images |
//! | u8 of (records, height, width) or with 1, 3 or 4 channels | images, as PNM |
//! | integers, booleans, floats | fields |
//! | whole numbers (also as floats) or texts, one a record | labels |
//! | what is asked for by name | named parts ([`named`]) |
//!
//! What is taken for what, unless the configuration says: the image is the only dataset that could be one; the label
//! has a usual name ([`crate::labels`]) and lies in the same group; the fields are the other numbers of that group with
//! a row for each record. Several files hold the same datasets, strung together along the first axis.
//!
//! # How a crafted file is kept from doing harm
//!
//! No C library is involved. The file's structures are read by `hdf5-reader` within the three walls that [`meta`]
//! describes: a budget of bytes, a thread of its own, and questions that have bounded answers. A helper process was
//! considered and is not needed: the crate asks for memory only in proportion to bytes it has read, which the budget
//! bounds. 100,000 mutations of files by h5py and of those on the HDF5 library's CVE list, opened and read in one
//! process, gave no panic, no abort, no wait, and a peak of 164 MB (`FUELRAIL_HDF5_MUTATIONS=100000`,
//! `connectors/tests/hdf5.rs`). Data is read by this module itself: [`chunk`] undoes filters in memory of a known size,
//! [`heap`] finds objects in a bounded number of steps.
//!
//! # Promises
//! - A record's place is known when the source is open: 16 bytes a record for objects of the heap and 16 bytes a chunk,
//!   plus 8 bytes a label.
//! - A damaged chunk or object makes its own records bad, and none else. A file that has changed since it was opened is
//!   not judged: that is an error of its own.
//! - Unpacked chunks are kept within [`IndexedSource::reader_memory`], and [`IndexedSource::blocks`] makes an epoch
//!   unpack each about once.
//!
//! # What it does not do
//! Filters other than gzip, lzf, shuffle and fletcher32; compound types; virtual datasets; external files and links.

mod chunk;
mod heap;
mod layout;
mod meta;
mod named;
mod read;

use std::collections::HashMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::Xxh3;

use crate::bytes::shards::Shards;
use crate::column::{self, Part, PixelLayout};
use crate::labels::{self, Collector, Context, Labels, MAX_CLASS, OF_ARRAYS, Raw, Run, refusal};
use crate::opening::{self, Counted, Step};
use crate::recognised::Recognised;
use crate::schema::{Schema, wants_image};
use crate::settings::similar;
use crate::{
    Blocks, CacheConfig, Extent, Fingerprint, IndexedSource, Reader, ReaderConfig, SourceError, Wanted,
    WantedKind,
};
use heap::{Heap, HeapError, Ref};
use meta::{Dataset, Kind, Layout};
use named::Named;
use read::{Column, File, Place, Records};

/// Configuration of HDF5 datasets as records.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Hdf5Config {
    /// The files: paths or URLs with braces, `*` and `?`, or folders.
    #[serde(deserialize_with = "crate::texts::list")]
    pub files: Vec<String>,
    /// Path of the dataset of images within the file, such as `train/images`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// Path of the dataset of labels: whole numbers or texts; `""` or null for none.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "labels::name_or_none")]
    pub label: Option<String>,
    /// Paths of the datasets that become fields, in this order; a field's name is the last part of the path.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "crate::texts::optional")]
    pub fields: Option<Vec<String>>,
    /// What the axes of the image dataset are, if it holds pixels.
    #[serde(skip_serializing_if = "PixelLayout::is_default")]
    pub layout: PixelLayout,
    /// Names of the classes, in label order; every label must be one of them, or below their number.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "crate::texts::optional")]
    pub classes: Option<Vec<String>>,
    /// What records are to hold, by part. Filled in by a pipeline's fields.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deliver: crate::Deliver,
    /// Where copies of remote files are kept.
    #[serde(skip_serializing_if = "CacheConfig::is_default")]
    pub cache: CacheConfig,
}

/// What else can be done about a dataset that holds no labels.
const OTHER: &str = "name another dataset (label=\"…\")";

/// How a file begins.
const MAGIC: &[u8] = b"\x89HDF";

/// Labels are held in memory, and compression makes a few bytes of a file into many of them: this many, and one for
/// each byte of the file, are believed.
const MAX_LABELS: u64 = 16 << 20;

/// As above for references to the heap, where each object takes at least 16 bytes of the file.
const MAX_REFS: u64 = 1 << 20;

pub(crate) fn open(config: &Hdf5Config) -> Result<Arc<dyn IndexedSource>, SourceError> {
    let shards = Shards::open(&config.files, &[".h5", ".hdf5"], &config.cache)?;
    let choice = Choice::make(config, &shards)?;
    let mut recognised = choice.recognised();
    let place = choice.label.as_ref().map(|path| format!("dataset {path}"));
    let source = choice.build(config, shards.clone())?;
    recognised.note(source.labels.recognised(place.as_deref()));
    recognised.say(&shards.describe(), source.records.len);
    Ok(Arc::new(source))
}

fn clean(path: &str) -> String {
    path.split('/').filter(|part| !part.is_empty()).collect::<Vec<_>>().join("/")
}

/// The group that a dataset lies in.
fn group(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(group, _)| group)
}

/// Which datasets are used for what.
struct Choice {
    image: Option<String>,
    label: Option<String>,
    /// Fields, or what is asked for by name and there.
    fields: Vec<String>,
    /// What is asked for by name: the parts, then the numbers, each with its place among the fields.
    wanted: Option<Vec<(Wanted, Option<usize>)>>,
}

impl Choice {
    fn make(config: &Hdf5Config, shards: &Arc<Shards>) -> Result<Self, SourceError> {
        let file = shards.display(0);
        let refuse = |why: String| SourceError::data(format!("{file}: {why}"));
        let image = match config.deliver {
            None => config.image.as_deref().map(clean),
            Some(_) if !wants_image(&config.deliver) => Some(String::new()),
            Some(_) => config.image.as_deref().map(clean).filter(|image| !image.is_empty()),
        };
        let label = config.label.as_deref().map(clean);
        let asked_for = asked_for(config)?;
        let fields: Option<Vec<String>> = match &asked_for {
            Some(wanted) => Some(wanted.iter().map(|wanted| clean(&wanted.part)).collect()),
            None => config.fields.as_ref().map(|fields| fields.iter().map(|path| clean(path)).collect()),
        };
        let (datasets, failed) = match meta::list(shards, 0) {
            Ok(found) => found,
            // Whoever names all that is to be read does not depend on the rest.
            Err(why) if image.is_some() || fields.is_some() => {
                tracing::info!("{file}: {why}; only the datasets named are looked at");
                (Vec::new(), Vec::new())
            }
            Err(why) => return Err(shards.explain(0, MAGIC, refuse(why))),
        };
        let listed = || {
            let list = datasets.iter().take(40).map(Dataset::describe).chain(failed.iter().take(5).cloned());
            let list = list.collect::<Vec<_>>().join("; ");
            if list.is_empty() {
                "there are none; links to other files are not followed".into()
            } else {
                list
            }
        };
        let (fields, wanted) = match asked_for {
            None => (fields, None),
            Some(asked_for) => {
                let (there, wanted) = there(asked_for, &datasets).map_err(|(wanted, near)| {
                    let part = &wanted.part;
                    refuse(format!("part {part:?}: there is no such dataset; there are {}{near}", listed()))
                })?;
                (Some(there), Some(wanted))
            }
        };
        let asked =
            |path: &str| label.as_deref() == Some(path) || fields.iter().flatten().any(|field| field == path);
        let image = match image {
            // Asked for: numbers alone.
            Some(image) if image.is_empty() => {
                if fields.as_ref().is_none_or(Vec::is_empty) {
                    return Err(refuse(format!(
                        "image is \"\", so records have no image; name the datasets of numbers that they hold with fields ({})",
                        listed()
                    )));
                }
                None
            }
            Some(image) => Some(image),
            None => {
                let may_lack = fields.as_ref().is_some_and(|fields| !fields.is_empty()) && wanted.is_none();
                guess_image(&datasets, config.layout, &asked, may_lack)
                    .map_err(|why| refuse(why.replacen("()", &format!("({})", listed()), 1)))?
            }
        };
        let base = image.clone().or_else(|| fields.as_ref()?.first().cloned()).unwrap_or_default();
        let rows = datasets.iter().find(|dataset| dataset.path == base).and_then(|base| base.shape.first());
        let beside = |dataset: &&Dataset| {
            group(&dataset.path) == group(&base)
                && dataset.shape.first() == rows
                && rows.is_some()
                && Some(&dataset.path) != image.as_ref()
        };
        let is_unwanted = label.as_deref() == Some("");
        let label = match label {
            Some(label) => Some(label).filter(|label| !label.is_empty()),
            None => {
                let is_asked = |path: &str| fields.iter().flatten().any(|field| field == path);
                let found: Vec<&Dataset> = datasets
                    .iter()
                    .filter(|dataset| {
                        group(&dataset.path) == group(&base) && Some(&dataset.path) != image.as_ref()
                    })
                    .filter(|dataset| !is_asked(&dataset.path))
                    .collect();
                guess_label(&found, image.as_deref(), rows, &refuse)?
            }
        };
        // What would have been the label is not wanted as a field either, unless it is asked for.
        let name = |dataset: &Dataset| dataset.path.rsplit('/').next().unwrap_or_default().to_owned();
        let names: Vec<String> = datasets.iter().filter(beside).map(name).collect();
        let unwanted = labels::candidates(names.iter().map(String::as_str), &OF_ARRAYS);
        let unwanted = unwanted.first().filter(|_| is_unwanted).copied();
        let fields = fields.unwrap_or_else(|| {
            let numbers = |dataset: &&Dataset| {
                let small =
                    dataset.row_bytes().is_some_and(|bytes| (1..=crate::MAX_FIELD_BYTES).contains(&bytes));
                let is_free =
                    Some(&dataset.path) != label.as_ref() && unwanted != Some(name(dataset).as_str());
                matches!(dataset.kind, Kind::Numbers(_)) && small && is_free
            };
            datasets.iter().filter(beside).filter(numbers).map(|dataset| dataset.path.clone()).collect()
        });
        Ok(Self { image, label, fields, wanted })
    }

    /// What was chosen, but for the label.
    fn recognised(&self) -> Recognised {
        let mut recognised = Recognised::default();
        self.image.iter().for_each(|path| recognised.note(format!("image = dataset {path}")));
        let parts =
            self.wanted.iter().flatten().filter(|(wanted, at)| wanted.is_part() && at.is_some()).count();
        for (at, path) in self.fields.iter().enumerate() {
            let what = if at < parts { "part" } else { "field" };
            recognised.note(format!("{what} = dataset {path}"));
        }
        recognised
    }

    fn build(self, config: &Hdf5Config, shards: Arc<Shards>) -> Result<Hdf5, SourceError> {
        let paths: Vec<String> = self.image.iter().chain(&self.fields).chain(&self.label).cloned().collect();
        let mut found =
            Found { schema: Schema { image: self.image.is_some(), ..Schema::default() }, ..Found::default() };
        let step =
            Step::begin("reading the structures of files", Counted::Files, Some(shards.files().len() as u64));
        for shard in 0..shards.files().len() {
            opening::check()?;
            step.reached(shard as u64);
            let refuse = |why: String| SourceError::data(format!("{}: {why}", shards.display(shard)));
            let (addresses, datasets) = meta::locate(&shards, shard, &paths)
                .map_err(|why| shards.explain(shard, MAGIC, refuse(why)))?;
            if found.first.is_empty() {
                self.columns(config.layout, &datasets, &mut found).map_err(refuse)?;
            } else {
                continues(&found.first, &datasets, &shards).map_err(refuse)?;
            }
            let file = File { shard, size: shards.files()[shard].size, addresses, first: found.len };
            found.add(&shards, file, datasets).map_err(refuse)?;
        }
        let Found { schema, columns, files, first, runs, len, named, .. } = found;
        if len == 0 {
            return Err(SourceError::data(format!("{}: there are no records", shards.display(0))));
        }
        let mut records = Records { shards, files, columns, path: paths[0].clone(), len, named };
        let largest = || (0..len).map(|index| records.size(index)).max().unwrap_or(0);
        let largest = records.named.as_ref().map(|_| largest());
        if let (Some(named), Some(largest)) = (&mut records.named, largest) {
            named.largest = largest;
        }
        let labels = self.labels(config, runs, &first, &records)?;
        let blocks = records.blocks();
        let mut source =
            Hdf5 { records: Arc::new(records), schema, labels, blocks, fingerprint: Fingerprint(0) };
        source.fingerprint = source.identity(&first);
        Ok(source)
    }

    /// The columns of a record, which the first file's datasets decide.
    fn columns(&self, layout: PixelLayout, datasets: &[Dataset], found: &mut Found) -> Result<(), String> {
        let paths = self.image.iter().chain(&self.fields);
        let mut made = HashMap::new();
        for (number, (path, dataset)) in paths.zip(datasets).enumerate() {
            let unfit = |why: String| format!("dataset {path}: {why} ({})", dataset.describe());
            let row = dataset.shape.get(1..).unwrap_or_default();
            let part = if number == 0 && self.image.is_some() {
                image_part(dataset, layout).ok_or_else(|| {
                    unfit(match dataset.kind {
                        Kind::Numbers(stored) => column::no_pixels(path, stored, row),
                        _ => "it holds no images: bytes of any length, opaque bytes, or uint8 pixels are"
                            .into(),
                    })
                })?
            } else if let Some(wanted) = self.part(number) {
                let fits = named::form(dataset, wanted, layout).map_err(|why| {
                    format!("part {:?}: the dataset {why} ({})", wanted.part, dataset.describe())
                });
                let (part, finish, spec) = fits?;
                made.insert(number, (finish, spec));
                part
            } else {
                let Kind::Numbers(stored) = dataset.kind else {
                    return Err(unfit("it holds no numbers, and only numbers can be fields".into()));
                };
                let name = match &self.wanted {
                    Some(_) => path,
                    None => path.rsplit('/').next().unwrap_or(path),
                };
                let (part, spec) = Part::field(name, stored, row).map_err(unfit)?;
                found.schema.fields.push(spec);
                Some(part)
            };
            found.columns.push(Column { part, places: Vec::new() });
        }
        let Some(wanted) = &self.wanted else { return found.schema.check(self.label.is_some()) };
        let mut parts = Vec::new();
        for (wanted, field) in wanted.iter().filter(|(wanted, _)| wanted.is_part()) {
            let column = field.map(|field| field + usize::from(self.image.is_some()));
            let (spec, part) = match column.and_then(|column| Some((column, made.remove(&column)?))) {
                Some((column, (finish, spec))) => (spec, Some((column, finish))),
                None => {
                    let dtype = wanted.dtype.unwrap_or(crate::ElementType::F32);
                    (wanted.spec(dtype, wanted.row.as_deref().unwrap_or_default()), None)
                }
            };
            found.schema.parts.push(spec);
            parts.push(part);
        }
        // As the part is called, and not its dataset.
        let numbers = wanted.iter().filter(|(wanted, _)| !wanted.is_part());
        for (spec, (wanted, _)) in found.schema.fields.iter_mut().zip(numbers) {
            spec.name = wanted.part.clone();
        }
        found.named = Some(Named { schema: found.schema.clone(), parts, largest: 0 });
        found.schema.check_shapes()
    }

    /// The part of variable length that a column is, if it is one.
    fn part(&self, column: usize) -> Option<&Wanted> {
        let field = column.checked_sub(usize::from(self.image.is_some()))?;
        let mut wanted = self.wanted.iter().flatten();
        wanted.find(|(wanted, at)| *at == Some(field) && wanted.is_part()).map(|(wanted, _)| wanted)
    }

    /// The labels of all files as one.
    fn labels(
        &self,
        config: &Hdf5Config,
        runs: Vec<Run>,
        first: &[Dataset],
        records: &Records,
    ) -> Result<Labels, SourceError> {
        let Some(label) = &self.label else {
            if config.classes.is_some() {
                return Err(SourceError::config(
                    "classes are given, but no dataset holds labels; name it (label), or leave out classes"
                        .into(),
                ));
            }
            return Ok(Labels::default());
        };
        let field = first.last().filter(|label| matches!(label.kind, Kind::Numbers(_)));
        let context = Context {
            what: format!("the dataset {label} of {}", records.shards.describe()),
            field: field.map(|label| label.path.as_str()),
            other: OTHER,
            classes: config.classes.as_deref(),
            names: None,
            names_of_numbers: true,
            key: &|row| records.key(row),
        };
        Labels::join(runs, &context)
    }
}

/// What is asked for by name: the parts, then the numbers.
fn asked_for(config: &Hdf5Config) -> Result<Option<Vec<Wanted>>, SourceError> {
    let Some(list) = &config.deliver else { return Ok(None) };
    let parts = list.iter().filter(|wanted| wanted.is_part());
    let numbers = list.iter().filter(|wanted| wanted.kind == WantedKind::Numbers);
    Ok(Some(parts.chain(numbers).cloned().collect()))
}

/// The datasets of what is asked for, and which of them each is in. Where nobody knows what there is, all are.
///
/// # Errors
/// The first that is not there, and what is like it.
#[expect(clippy::type_complexity, reason = "said once")]
fn there(
    asked_for: Vec<Wanted>,
    datasets: &[Dataset],
) -> Result<(Vec<String>, Vec<(Wanted, Option<usize>)>), (Wanted, String)> {
    let (mut there, mut all) = (Vec::new(), Vec::new());
    for wanted in asked_for {
        let path = clean(&wanted.part);
        if datasets.is_empty() || datasets.iter().any(|dataset| dataset.path == path) {
            all.push((wanted, Some(there.len())));
            there.push(path);
        } else if wanted.optional && wanted.is_part() {
            all.push((wanted, None));
        } else {
            let near = similar(&path, datasets.iter().map(|dataset| dataset.path.as_str()));
            let near = near.map_or(String::new(), |near| format!("; did you mean {near:?}?"));
            return Err((wanted, near));
        }
    }
    Ok((there, all))
}

/// Refuses the datasets of a further file that do not continue those of the first.
fn continues(first: &[Dataset], datasets: &[Dataset], shards: &Shards) -> Result<(), String> {
    for (one, other) in first.iter().zip(datasets) {
        let same = |a: &Dataset, b: &Dataset| {
            (&a.kind, a.element, a.shape.get(1..)) == (&b.kind, b.element, b.shape.get(1..))
        };
        if !same(one, other) {
            return Err(format!(
                "it does not continue {}: there {}, here {}",
                shards.display(0),
                one.describe(),
                other.describe()
            ));
        }
    }
    Ok(())
}

/// What is known of the files, as they are read.
#[derive(Default)]
struct Found {
    schema: Schema,
    named: Option<Named>,
    columns: Vec<Column>,
    files: Vec<File>,
    /// The first file's datasets.
    first: Vec<Dataset>,
    runs: Vec<Run>,
    len: u64,
    chunks: u64,
}

impl Found {
    /// Adds a file's rows: where they are, and their labels, which are what is behind the columns.
    fn add(&mut self, shards: &Shards, file: File, mut datasets: Vec<Dataset>) -> Result<(), String> {
        let rows = datasets[0].shape.first().copied().unwrap_or(0);
        if let Some(other) = datasets.iter().find(|dataset| dataset.shape.first() != Some(&rows)) {
            return Err(format!(
                "a record is one row of each dataset, and they have different numbers of rows: {}; {}",
                datasets[0].describe(),
                other.describe()
            ));
        }
        if rows > 0 {
            let of = |path: &str, why: String| format!("dataset {path}: {why}");
            let (of_records, label) = datasets.split_at_mut(self.columns.len());
            for (dataset, column) in of_records.iter_mut().zip(&mut self.columns) {
                let place = place(shards, &file, dataset).map_err(|why| of(&dataset.path, why))?;
                if let Place::Chunked(chunked) = &place {
                    self.chunks += chunked.chunks.len() as u64;
                }
                column.places.push(place);
            }
            if self.chunks > 4 * layout::MAX_CHUNKS {
                return Err(
                    "all files together have too many chunks; store them again with larger ones".into()
                );
            }
            for dataset in label {
                let mut collector = Collector::default();
                read_labels(shards, &file, dataset, &mut collector).map_err(|why| of(&dataset.path, why))?;
                self.runs.push(collector.finish());
            }
            self.len = self.len.checked_add(rows).ok_or("it has too many records")?;
            self.files.push(file);
        }
        if self.first.is_empty() {
            self.first = datasets;
        }
        Ok(())
    }
}

/// The only dataset that could hold the images; none is fine where records may lack one.
///
/// # Errors
/// Why none is found, with `()` for the list of what there is.
fn guess_image(
    datasets: &[Dataset],
    layout: PixelLayout,
    asked: &dyn Fn(&str) -> bool,
    may_lack: bool,
) -> Result<Option<String>, String> {
    let fits = |dataset: &&Dataset| image_part(dataset, layout).is_some() && !asked(&dataset.path);
    let mut candidates = datasets.iter().filter(fits);
    match (candidates.next(), candidates.next()) {
        (Some(only), None) => Ok(Some(only.path.clone())),
        (None, _) if may_lack => Ok(None),
        (None, _) => {
            let why = datasets.iter().find_map(|dataset| match dataset.kind {
                Kind::Numbers(stored) if dataset.shape.len() > 2 => {
                    Some(column::no_pixels(&dataset.path, stored, &dataset.shape[1..]))
                }
                _ => None,
            });
            let why = why.map_or(String::new(), |why| format!("; {why}"));
            Err(format!(
                "no dataset there holds images; name one with image, or datasets of numbers with fields (){why}"
            ))
        }
        _ => Err("several datasets could be the images; say which with image ()".into()),
    }
}

/// The label by name: one whose type leaves no doubt, else one of floats, which may be whole numbers.
fn guess_label(
    datasets: &[&Dataset],
    image: Option<&str>,
    rows: Option<&u64>,
    refuse: &dyn Fn(String) -> SourceError,
) -> Result<Option<String>, SourceError> {
    // What the records are is not there: that is said instead.
    if rows.is_none() {
        return Ok(None);
    }
    let name = |dataset: &Dataset| dataset.path.rsplit('/').next().unwrap_or_default().to_owned();
    let names: Vec<String> = datasets.iter().map(|dataset| name(dataset)).collect();
    let given = names.iter().map(String::as_str);
    let image = image.and_then(|image| image.rsplit('/').next());
    let called = image.map_or(Vec::new(), |image| labels::beside(image, given.clone()));
    let named = called.into_iter().chain(labels::candidates(given, &OF_ARRAYS));
    let named = named.filter_map(|name| datasets.iter().zip(&names).find(|(_, other)| **other == name));
    let named: Vec<&Dataset> = named.map(|(dataset, _)| *dataset).collect();
    let is_float = |dataset: &Dataset| matches!(dataset.kind, Kind::Numbers(stored) if stored.is_float());
    let fits = |dataset: &&&Dataset| rows.is_some() && dataset.shape.first() == rows && is_label(dataset);
    let sure = named.iter().find(|dataset| fits(dataset) && !is_float(dataset));
    if let Some(found) = sure.or_else(|| named.iter().find(fits)) {
        return Ok(Some(found.path.clone()));
    }
    match named.first() {
        None => Ok(None),
        Some(dataset) => {
            let holds = match rows {
                Some(rows) if dataset.shape.first() != Some(rows) => {
                    format!("no label for each of {rows} records ({})", dataset.describe())
                }
                _ => format!("something else ({})", dataset.describe()),
            };
            let field = matches!(dataset.kind, Kind::Numbers(_)).then_some(dataset.path.as_str());
            Err(refuse(refusal(&format!("the dataset {}", dataset.path), &holds, field, OTHER)))
        }
    }
}

/// Whether rows of a dataset can be images, and how they are written: `None` inside for objects of the heap.
fn image_part(dataset: &Dataset, layout: PixelLayout) -> Option<Option<Part>> {
    match (&dataset.kind, &dataset.shape[..]) {
        (Kind::Heap { text: false }, [_]) => Some(None),
        (Kind::Fixed { text: false }, [_]) => Some(Some(Part::encoded(dataset.element))),
        (Kind::Numbers(stored), [_, shape @ ..]) => Part::pixels(stored.element, shape, layout).map(Some),
        _ => None,
    }
}

/// Whether a dataset has an integer or a text for each record.
fn is_label(dataset: &Dataset) -> bool {
    let single = dataset.shape.get(1..).is_some_and(|shape| shape.iter().all(|&n| n == 1));
    single
        && match dataset.kind {
            Kind::Numbers(stored) => stored.is_label(),
            Kind::Fixed { text } | Kind::Heap { text } => text,
            Kind::Sequence(_) | Kind::Unread(_) => false,
        }
}

/// Where a dataset's rows are, taken out of it; references to the heap are read.
fn place(shards: &Shards, file: &File, dataset: &mut Dataset) -> Result<Place, String> {
    let layout = std::mem::replace(&mut dataset.layout, Layout::Unknown("taken".into()));
    let place = match layout {
        Layout::Contiguous(start) => Place::Contiguous(start),
        Layout::Held(bytes) => Place::Held(bytes),
        Layout::Chunked(chunked) => Place::Chunked(chunked),
        Layout::Unknown(why) => return Err(why),
    };
    let row = dataset.row_bytes().filter(|&row| row > 0).ok_or("its rows hold no bytes")?;
    let element = match dataset.kind {
        Kind::Heap { .. } => 1,
        Kind::Sequence(stored) => stored.element.size() as u32,
        _ => return Ok(place),
    };
    let rows = dataset.shape[0];
    if dataset.shape.len() > 1 {
        return Err(format!("objects of any length are read one per record ({})", dataset.describe()));
    }
    if rows > MAX_REFS + file.size / 16 {
        return Err(format!("it has {rows} rows, more than a file of this size can hold"));
    }
    let mut refs = Vec::new();
    refs.try_reserve_exact(rows as usize).map_err(|_| format!("{rows} references do not fit in memory"))?;
    read::scan(shards, file.shard, &place, rows * row, row, &mut |bytes| {
        for stored in bytes.chunks_exact(row as usize) {
            let found = Ref::parse(stored, element, file.addresses.base, file.size);
            refs.push(found.map_err(|why| format!("row {}: {why}", refs.len()))?);
        }
        Ok(())
    })?;
    Ok(Place::Heap(refs))
}

/// Appends a file's labels.
fn read_labels(
    shards: &Shards,
    file: &File,
    dataset: &mut Dataset,
    labels: &mut Collector,
) -> Result<(), String> {
    let rows = dataset.shape[0];
    let path = dataset.path.clone();
    let name = path.as_str();
    if rows > MAX_LABELS + file.size {
        return Err(format!("it has {rows} rows, more than a file of this size can hold"));
    }
    if !is_label(dataset) {
        let holds = format!("something else ({})", dataset.describe());
        let field = matches!(dataset.kind, Kind::Numbers(_)).then_some(name);
        return Err(refusal("it", &holds, field, OTHER));
    }
    let place = place(shards, file, dataset)?;
    let element = dataset.element;
    if let Place::Heap(refs) = &place {
        let (mut heap, mut text) = (Heap::all(), Vec::new());
        for object in refs {
            if object.len as usize > MAX_CLASS {
                labels.bad(&format!("its label is longer than {MAX_CLASS} bytes"));
                continue;
            }
            text.clear();
            text.resize(object.len as usize, 0);
            let mut read = |offset: u64, buffer: &mut [u8]| shards.read_at(file.shard, offset, buffer);
            match heap.read(*object, file.addresses.length_size, file.size, &mut text, &mut read) {
                Ok(()) => labels.push(Raw::bytes(&text))?,
                Err(HeapError::Bad(why)) => labels.bad(&format!("its label cannot be read: {why}")),
                Err(HeapError::Io(error)) => return Err(error.to_string()),
            }
        }
        return Ok(());
    }
    let (shard, bytes, row) = (file.shard, rows * element as u64, element as u64);
    read::scan(shards, shard, &place, bytes, row, &mut |bytes| {
        bytes.chunks_exact(element).try_for_each(|one| {
            let row = labels.len();
            let raw = match dataset.kind {
                Kind::Numbers(stored) => stored.raw(one),
                // Padded with zeros, or with blanks.
                _ => Raw::bytes(one.split(|&byte| byte == 0).next().unwrap_or_default()),
            };
            labels
                .push(raw)
                .map_err(|holds| refusal("it", &format!("{holds} (row {row})"), Some(name), OTHER))
        })
    })
}

/// HDF5 files, opened.
struct Hdf5 {
    records: Arc<Records>,
    schema: Schema,
    labels: Labels,
    blocks: Blocks,
    fingerprint: Fingerprint,
}

impl Hdf5 {
    fn identity(&self, datasets: &[Dataset]) -> Fingerprint {
        let mut hash = Xxh3::new();
        let mut text = |text: &str| {
            hash.update(&(text.len() as u64).to_le_bytes());
            hash.update(text.as_bytes());
        };
        text("fuelrail hdf5 1");
        text(&serde_json::to_string(&self.schema).expect("plain data"));
        for dataset in datasets {
            text(&format!("{} {:?} {:?}", dataset.path, dataset.kind, &dataset.shape[1..]));
        }
        for file in &self.records.files {
            text(&self.records.shards.files()[file.shard].name);
            text(&file.first.to_string());
        }
        self.labels.classes.iter().for_each(|name| text(name));
        hash.update(&self.records.len.to_le_bytes());
        for place in self.records.columns.iter().flat_map(|column| &column.places) {
            if let Place::Heap(refs) = place {
                refs.iter().for_each(|object| hash.update(&object.len.to_le_bytes()));
            }
        }
        self.labels.hash(&mut hash);
        Fingerprint(hash.digest128())
    }
}

impl IndexedSource for Hdf5 {
    fn len(&self) -> u64 {
        self.records.len
    }

    fn key(&self, index: u64) -> String {
        self.records.key(index)
    }

    fn label(&self, index: u64) -> i64 {
        assert!(index < self.records.len, "record {index} of {}", self.records.len);
        self.labels.get(index)
    }

    fn is_labelled(&self) -> bool {
        self.labels.is_some()
    }

    fn verdict(&self, index: u64) -> Option<String> {
        self.labels.verdict(index)
    }

    fn classes(&self) -> &[String] {
        &self.labels.classes
    }

    fn schema(&self) -> Schema {
        self.schema.clone()
    }

    fn image_size(&self) -> Option<(u32, u32)> {
        let image = self.records.columns.first().filter(|_| self.schema.image)?;
        image.part.as_ref()?.image_size()
    }

    fn size(&self, index: u64) -> u64 {
        self.records.size(index)
    }

    fn extent(&self, index: u64) -> Option<Extent> {
        // Records are made of rows, references and chunks; the few that are one range need no path of their own.
        self.records.locate(index);
        None
    }

    fn blocks(&self) -> Blocks {
        self.blocks.clone()
    }

    fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    fn memory(&self) -> u64 {
        let blocks = match &self.blocks {
            Blocks::Lengths { lengths, .. } => lengths.len() * size_of::<u64>(),
            Blocks::None => 0,
        };
        (size_of::<Self>() + blocks) as u64 + self.labels.memory() + self.records.memory()
    }

    fn reader_memory(&self) -> u64 {
        self.records.reader_memory()
    }

    fn reader(self: Arc<Self>, config: &ReaderConfig) -> Result<Box<dyn Reader>, SourceError> {
        Ok(Box::new(self.records.clone().reader(config)?))
    }
}
