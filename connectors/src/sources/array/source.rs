//! Arrays as a source: a record is a row of each.

use std::borrow::Cow;
use std::sync::Arc;

use super::npy::Texts;

use crate::bytes::shards::{Ranges, Shards};
use crate::column::Part;
use crate::gather::{self, Parts, Place, Room};
use crate::labels::Labels;
use crate::recognised::Recognised;
use crate::schema::Schema;
use crate::values::{Value, fault};
use crate::{
    Blocks, Buffer, Extent, FieldSpec, Fingerprint, IndexedSource, ReadError, Reader, ReaderConfig,
    SourceError,
};

/// npy and npz files, opened.
pub(super) struct Array {
    pub stores: Vec<Arc<Shards>>,
    pub rows: Arc<Rowed>,
    pub len: u64,
    pub schema: Schema,
    pub labels: Labels,
    pub blocks: Blocks,
    pub fingerprint: Fingerprint,
    pub recognised: Recognised,
    /// Why an array that may have been meant for images is not taken for them.
    pub no_image: Option<String>,
}

/// Where every record's rows lie.
pub(super) struct Rowed {
    pub columns: Vec<Column>,
    /// Names of the first column's runs, for keys.
    pub names: Vec<String>,
    /// Bytes of a record, at most.
    pub size: u64,
    /// Named parts, if there are any.
    pub parts: Option<Named>,
}

/// What becomes of the columns where records have named parts.
pub(super) struct Named {
    pub schema: Schema,
    /// The column of each of the schema's parts; `None` for one that no record has.
    pub parts: Vec<Option<usize>>,
}

pub(super) struct Column {
    pub runs: Vec<Run>,
    pub form: Form,
}

/// How rows lie, and what becomes of them.
#[derive(Clone)]
pub(super) enum Form {
    Rows {
        step: u64,
        part: Part,
    },
    /// Texts, by run: those of one file are as wide as its longest.
    Texts {
        runs: Vec<Texts>,
        /// A text without a letter is no value.
        is_json: bool,
    },
}

impl Form {
    /// Bytes of a row in a run.
    fn stored(&self, run: usize) -> u64 {
        match self {
            Self::Rows { part, .. } => part.stored() as u64,
            Self::Texts { runs, .. } => runs[run].size(),
        }
    }

    /// Bytes from one row of a run to the next.
    fn step(&self, run: usize) -> u64 {
        match self {
            Self::Rows { step, .. } => *step,
            Self::Texts { .. } => self.stored(run),
        }
    }

    /// Bytes of a row in a record, at most.
    pub fn written(&self) -> u64 {
        match self {
            Self::Rows { part, .. } => part.written() as u64,
            Self::Texts { runs, .. } => runs.iter().map(|texts| texts.size()).max().unwrap_or(0),
        }
    }

    pub fn rows(&self) -> Option<&Part> {
        match self {
            Self::Rows { part, .. } => Some(part),
            Self::Texts { .. } => None,
        }
    }
}

/// Rows of one array that lie in one file.
pub(super) struct Run {
    /// The record of the first row.
    pub first: u64,
    pub store: u32,
    pub shard: u32,
    /// The first byte of the first row.
    pub offset: u64,
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
        let at = column.run(index);
        let run = &column.runs[at];
        let offset = run.offset + (index - run.first) * column.form.step(at);
        Place { store: run.store as usize, shard: run.shard as usize, offset, len: column.form.stored(at) }
    }

    fn has(&self, index: u64, part: usize) -> bool {
        // Texts that are all empty have no bytes.
        self.columns[part].form.rows().is_some() || self.locate_len(index, part) > 0
    }

    fn join(&self, index: u64, parts: &[Buffer], room: &Room<'_>) -> Result<Buffer, ReadError> {
        if let Some(named) = &self.parts {
            return self.join_named(named, index, parts, room);
        }
        room.record(self.size, |mut record| {
            for (column, row) in self.columns.iter().zip(parts) {
                let part = column.form.rows().expect("texts are named parts");
                let (body, rest) = record.split_at_mut(part.written());
                part.write(row, body)?;
                record = rest;
            }
            Ok(())
        })
    }

    fn key(&self, index: u64) -> String {
        let run = self.columns[0].run(index);
        format!("{}/{}", self.names[run], index - self.columns[0].runs[run].first)
    }
}

impl Rowed {
    fn locate_len(&self, index: u64, part: usize) -> u64 {
        let column = &self.columns[part];
        column.form.stored(column.run(index))
    }

    fn join_named(
        &self,
        named: &Named,
        index: u64,
        rows: &[Buffer],
        room: &Room<'_>,
    ) -> Result<Buffer, ReadError> {
        let bad = |why: String| ReadError::bad(Parts::key(self, index), why);
        let made = |at: usize| self.made(at, index, &rows[at]);
        let schema = &named.schema;
        let image = if schema.image { made(0).map_err(bad)?.unwrap_or_default() } else { Cow::default() };
        let mut parts = Vec::with_capacity(named.parts.len());
        for (spec, column) in schema.parts.iter().zip(&named.parts) {
            let part = column.map_or(Ok(None), made);
            parts.push(part.map_err(|why| bad(fault(&spec.name, &why)))?);
        }
        let mut fields = Vec::with_capacity(schema.fields_bytes());
        for at in self.columns.len() - schema.fields.len()..self.columns.len() {
            fields.extend_from_slice(&made(at).map_err(bad)?.unwrap_or_default());
        }
        let lengths = parts.iter().map(|part| part.as_ref().map(|part| part.len()));
        let size = schema.record_bytes(image.len(), lengths);
        room.record(size as u64, |record| {
            schema.join(&image, parts.iter().map(|part| part.as_deref()), &fields, record);
            Ok(())
        })
    }

    /// What becomes of a row of a column.
    fn made<'row>(&self, at: usize, index: u64, row: &'row [u8]) -> Result<Value<'row>, String> {
        let column = &self.columns[at];
        match &column.form {
            Form::Rows { part, .. } => {
                let mut made = vec![0; part.written()];
                part.write(row, &mut made)?;
                Ok(Some(Cow::Owned(made)))
            }
            Form::Texts { runs, is_json } => {
                let text = runs[column.run(index)].bytes(row)?;
                Ok(Some(text).filter(|text| !is_json || !text.trim_ascii().is_empty()))
            }
        }
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
        self.rows.columns.len() == 1
            && self.rows.parts.is_none()
            && column.form.rows().is_some_and(Part::is_plain)
            && column.runs.iter().all(|run| run.store == 0)
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

    fn no_image(&self) -> Option<String> {
        self.no_image.clone()
    }

    fn image_size(&self) -> Option<(u32, u32)> {
        self.rows.columns.first().filter(|_| self.schema.image)?.form.rows()?.image_size()
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
        let texts = self.rows.names.iter();
        let texts: usize = texts.map(|text| text.capacity() + size_of::<String>()).sum();
        let blocks = match &self.blocks {
            Blocks::Lengths { lengths, .. } => lengths.len() * size_of::<u64>(),
            Blocks::None => 0,
        };
        let fields = self.schema.fields.len() * size_of::<FieldSpec>();
        let stores: u64 = self.stores.iter().map(|store| store.memory()).sum();
        (size_of::<Self>() + runs + texts + blocks + fields) as u64 + self.labels.memory() + stores
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
