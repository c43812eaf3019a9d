//! A table as a source: its units, the order they are read in, and records made of decoded rows.

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use xxhash_rust::xxh3::Xxh3;

use super::columns::{self, Choice, ImageKind};
use super::fetch::Trouble;
use super::label;
use super::named::{self, Made, Maker};
use super::root::Root;
use super::{
    CACHE_BYTES, File, LARGE_PART, MAX_LANES, Piece, RECORD, RUN_BYTES, Rows, TableConfig, UNIT_ROWS,
    parquet, paths, reader, root, tokens,
};
use crate::bytes::buffer::{Buffer, Pool};
use crate::bytes::shards::Shards;
use crate::labels::Labels;
use crate::opening::{self, Counted, Step};
use crate::recognised::Recognised;
use crate::{
    Blocks, Extent, FieldSpec, Fingerprint, IndexedSource, ReadError, Reader, ReaderConfig, Schema,
    SourceError,
};

/// Units that are looked through for a list with anything in it, beside those that are looked at anyway.
const SEARCHED_UNITS: usize = 64;

/// Rows of a unit whose files are looked at for their sizes, about.
const SAMPLED_FILES: usize = 64;

/// What is decoded at once.
#[derive(Clone, Copy, Debug)]
pub(super) struct Unit {
    pub file: u32,
    pub part: u32,
    /// Its first row in the part, in the file, and in the table.
    pub in_part: u64,
    pub in_file: u64,
    pub first: u64,
}

/// An open table whose records are made of its rows.
pub(super) struct Table {
    pub shards: Arc<Shards>,
    pub files: Vec<File>,
    pub units: Vec<Unit>,
    pub rows: u64,
    /// The image's column in the record view.
    pub image: Option<ImageKind>,
    /// Makes fields and named parts.
    maker: Maker,
    /// How many times as long as its decoded rows a unit's records may be, beside what is in files.
    growth: f64,
    /// Bytes of a record's images that are files of their own, about.
    in_files: u64,
    pub tokens: Option<tokens::Tokens>,
    pub labels: Labels,
    pub schema: Schema,
    pub blocks: Blocks,
    pub cache_bytes: u64,
    /// Units that may be decoded before anyone asks for them, and how many records ahead that is about.
    pub early_units: u64,
    pub horizon: u64,
    pub largest_unit: u64,
    pub root: Option<PathBuf>,
    pub fingerprint: Fingerprint,
}

impl Table {
    pub fn new(
        config: &TableConfig,
        shards: Arc<Shards>,
        files: Vec<File>,
        choice: Choice,
        labels: Labels,
        recognised: &mut Recognised,
    ) -> Result<Self, SourceError> {
        let (units, rows) = units(&shards, &files)?;
        let columns = choice.record_columns();
        let place = |name: &str| columns.iter().position(|column| column == name).expect("it is one of them");
        let mut specs: Vec<FieldSpec> = Vec::new();
        let mut table = Self {
            image: choice.image.as_ref().map(|image| image.kind),
            maker: Maker::new(&choice),
            growth: 1.0,
            in_files: 0,
            tokens: None,
            labels,
            schema: Schema::default(),
            blocks: Blocks::None,
            cache_bytes: 0,
            early_units: 0,
            horizon: 0,
            largest_unit: 0,
            root: config.root.clone(),
            fingerprint: Fingerprint(0),
            shards,
            files,
            units,
            rows,
        };
        if let (Some(wanted), Some(column)) = (&config.tokens, &choice.tokens) {
            let tokens = tokens::Tokens::open(wanted, place(column), &table, &config.cache)?;
            specs.extend(tokens.specs());
            if tokens.is_packed() && table.labels.is_some() {
                return Err(SourceError::config(
                    "label and tokens with mode \"pack\" exclude each other: a packed row is made of several records; leave \
                     out label, or use mode \"pad\""
                        .into(),
                ));
            }
            table.tokens = Some(tokens);
        }
        if table.maker.has_parts() {
            table.survey()?.into_iter().for_each(|fact| recognised.note(fact));
        }
        table.schema = table.maker.schema(choice.image.is_some(), specs);
        table
            .schema
            .check_for(&config.deliver, table.labels.is_some())
            .map_err(|why| SourceError::config(format!("{}: {why}", table.shards.describe())))?;
        table.plan();
        table.fingerprint = table.hash();
        Ok(table)
    }

    /// Looks at the first records for the shape of ragged rows, and at a few units for how long named parts are beside
    /// what the file says of them. Returns what it learnt.
    fn survey(&mut self) -> Result<Vec<String>, SourceError> {
        let pool = Pool::new(32 << 20);
        let step = Step::begin("looking at records", Counted::Rows, None);
        let mut said = Vec::new();
        let last = self.units.len() - 1;
        let mut looked = vec![0, last / 2, last];
        looked.dedup();
        let searched: Vec<usize> =
            (0..=last).take(SEARCHED_UNITS).filter(|unit| !looked.contains(unit)).collect();
        let (mut bytes, mut announced) = (0u64, 0u64);
        let (mut in_files, mut sampled) = (0u64, 0u64);
        for unit in looked.iter().copied().chain(searched) {
            let is_sample = looked.contains(&unit);
            if !is_sample && self.maker.open().is_none() {
                break;
            }
            let shard = self.units[unit].file as usize;
            let root = if self.reads_files() {
                Some(paths::root(self.root.as_ref(), &self.shards, shard)?)
            } else {
                None
            };
            let root = root.as_deref().map(Root::open).transpose()?;
            let file = self.shards.display(shard);
            let pieces = step.run(|| self.decode(unit, &pool).map_err(|trouble| trouble.at_open(&file)))?;
            if unit == 0 {
                let good = pieces.iter().filter_map(|piece| piece.columns.as_ref().ok());
                self.maker.check_keys(good, &self.shards.describe())?;
            }
            for Piece { columns, .. } in &pieces {
                // What is damaged makes bad records when it is their turn.
                let Ok(columns) = columns else { continue };
                let rows = columns.first().map_or(0, |column| column.len());
                for row in 0..rows {
                    opening::check()?;
                    step.add(1);
                    if self.maker.open().is_some() {
                        said.extend(self.maker.learn(columns, row)?);
                    }
                    let Some(parts) = self.maker.parts(columns, row).ok().filter(|_| is_sample) else {
                        continue;
                    };
                    bytes += parts.iter().filter_map(Made::bytes).map(|part| part.len() as u64).sum::<u64>();
                    if let Some(root) = root.as_ref().filter(|_| row % (rows / SAMPLED_FILES + 1) == 0) {
                        let own = (self.image == Some(ImageKind::Path)).then_some(&columns[0]);
                        let own = own.and_then(|column| columns::bytes_at(column.as_ref(), row));
                        let part = Made::file;
                        let paths = own.into_iter().chain(parts.iter().filter_map(part));
                        in_files += paths.filter_map(|path| Some(root.find(path).ok()?.size)).sum::<u64>();
                        sampled += 1;
                    }
                }
            }
            announced += if is_sample { self.unit_bytes(unit) } else { 0 };
        }
        if let Some(name) = self.maker.open()
            && self.units.len() > SEARCHED_UNITS
        {
            return Err(named::no_rows(name, &self.shards.describe()));
        }
        // Units differ.
        self.growth = (1.25 * bytes as f64 / announced.max(1) as f64).max(1.0);
        self.in_files = (in_files * 5 / 4).div_ceil(sampled.max(1));
        Ok(said)
    }

    /// Whether some of the images are files of their own.
    fn reads_files(&self) -> bool {
        self.image == Some(ImageKind::Path) || self.maker.files().next().is_some()
    }

    /// One row past the unit's last, in the table.
    pub fn unit_end(&self, unit: usize) -> u64 {
        self.units.get(unit + 1).map_or(self.rows, |next| next.first)
    }

    pub fn unit_rows(&self, unit: usize) -> u64 {
        self.unit_end(unit) - self.units[unit].first
    }

    /// The unit that holds a row.
    pub fn unit_of(&self, row: u64) -> usize {
        self.units.partition_point(|unit| unit.first <= row) - 1
    }

    /// Bytes that a unit takes once decoded, as far as its file says.
    fn unit_bytes(&self, unit: usize) -> u64 {
        let at = self.units[unit];
        let part = self.files[at.file as usize].part(RECORD, at.part as usize);
        (u128::from(part.bytes) * u128::from(self.unit_rows(unit)) / u128::from(part.rows.max(1))) as u64
    }

    /// Decodes a unit's columns of a record.
    pub fn decode(&self, unit: usize, pool: &Arc<Pool>) -> Result<Vec<Piece>, Trouble> {
        let at = self.units[unit];
        let rows = at.in_part..at.in_part + self.unit_rows(unit);
        self.files[at.file as usize].decode(
            &self.shards,
            at.file as usize,
            RECORD,
            at.part as usize,
            rows,
            pool,
        )
    }

    /// The key of a row: its file and its number in it, counted from 0.
    pub fn row_key(&self, row: u64) -> String {
        let unit = self.units[self.unit_of(row)];
        format!("{}:{}", self.shards.files()[unit.file as usize].name, unit.in_file + (row - unit.first))
    }

    /// Chooses lanes and window such that what is needed at one time fits in the cache: see [`Blocks`].
    fn plan(&mut self) {
        let bytes: Vec<u64> = (0..self.units.len()).map(|unit| self.unit_bytes(unit).max(1)).collect();
        let total: u64 = bytes.iter().sum();
        self.largest_unit = bytes.iter().copied().max().unwrap_or(0);
        let lengths = self.lengths();
        let records: u64 = lengths.iter().sum();
        // A table that fits is shuffled as a whole.
        let slack = |bytes: u64| bytes + bytes / 4 + (1 << 20);
        let mut sorted = lengths.clone();
        sorted.sort_unstable();
        let usual = sorted.get(sorted.len() / 2).copied().unwrap_or(0);
        let (lanes, window, cache) = if slack(total) <= CACHE_BYTES {
            // All of it stays: what is decoded early is never in the way.
            self.early_units = u64::from(reader::DECODERS);
            (1, records, slack(total))
        } else {
            // With a window of half a unit a lane touches two units at a time, and where there is room a third may
            // linger.
            let fit = CACHE_BYTES / slack(self.largest_unit);
            let most = (fit / 3).clamp(1, MAX_LANES).min(lengths.len() as u64);
            let lanes = 1 << most.ilog2();
            // What is left over goes into wider windows.
            let per_lane = (fit / lanes).max(2);
            // Beside the two units that a lane touches there is room for the next one.
            self.early_units = if per_lane >= 3 { lanes } else { 0 };
            let window = if per_lane > 3 { (per_lane - 2) * usual } else { (usual / 2).max(1) };
            (lanes, window, (lanes * per_lane * slack(self.largest_unit)).max(slack(self.largest_unit)))
        };
        self.cache_bytes = cache;
        self.horizon = (self.early_units * usual).min(records);
        self.blocks = Blocks::Lengths { lengths: lengths.into(), lanes, window };
    }

    /// Records of each unit; a record belongs to the unit in which it begins. None is 0.
    fn lengths(&self) -> Vec<u64> {
        match &self.tokens {
            Some(tokens) => tokens.lengths(self),
            None => (0..self.units.len()).map(|unit| self.unit_rows(unit)).collect(),
        }
    }

    /// The units that a record is made of.
    pub fn units_of(&self, record: u64) -> Range<usize> {
        let rows = match &self.tokens {
            Some(tokens) => tokens.rows(record),
            None => record..record + 1,
        };
        self.unit_of(rows.start)..self.unit_of(rows.end - 1) + 1
    }

    /// Makes a record of its decoded units.
    pub fn record(
        &self,
        record: u64,
        units: &[Arc<reader::Decoded>],
        pool: &Arc<Pool>,
    ) -> Result<Buffer, ReadError> {
        let bad = |why: String| ReadError::bad(self.key(record), why);
        let mut fields = Vec::with_capacity(self.schema.fields_bytes());
        let mut parts: Vec<Made<'_>> = Vec::new();
        let mut image: &[u8] = &[];
        let mut file = Vec::new();
        if let Some(tokens) = &self.tokens {
            tokens.append(self, record, units, &mut fields).map_err(bad)?;
        } else {
            let (columns, row) = units[0].row(record).map_err(|why| bad(why.to_string()))?;
            match self.image {
                Some(ImageKind::Struct) => match struct_image(columns[0].as_ref(), row).map_err(&bad)? {
                    Ok(bytes) => image = bytes,
                    Err(path) => {
                        file = self.file(record, path, "it holds no image, only a path")?;
                        image = &file;
                    }
                },
                Some(ImageKind::Path) => {
                    let path = columns::bytes_at(columns[0].as_ref(), row);
                    let path = path.ok_or_else(|| bad("the path of its image is missing".into()))?;
                    file = self.file(record, path, "its image is not there")?;
                    image = &file;
                }
                Some(_) => {
                    image = columns::bytes_at(columns[0].as_ref(), row)
                        .ok_or_else(|| bad("its image is null".into()))?;
                }
                None => {}
            }
            self.maker.fields(columns, row, &mut fields).map_err(&bad)?;
            parts = self.maker.parts(columns, row).map_err(&bad)?;
            for (part, spec) in parts.iter_mut().zip(&self.schema.parts) {
                if let Made::File(path) = part {
                    let bytes = self.file(record, path, &format!("part {:?} is not there", spec.name))?;
                    *part = Made::Bytes(bytes.into());
                }
            }
        }
        let lengths = parts.iter().map(|part| part.bytes().map(<[u8]>::len));
        let len = self.schema.record_bytes(image.len(), lengths);
        let mut buffer = pool.take(len).ok_or_else(|| {
            ReadError::io(self.key(record), format!("there is no memory for its {len} bytes"), true)
        })?;
        let storage = &mut buffer.storage()[..len];
        self.schema.join(image, parts.iter().map(Made::bytes), &fields, storage);
        buffer.set_len(len);
        drop(file);
        Ok(buffer)
    }

    /// An image that a row of the table names.
    fn file(&self, record: u64, path: &[u8], what: &str) -> Result<Vec<u8>, ReadError> {
        let shard = self.units[self.unit_of(record)].file as usize;
        let folder = paths::root(self.root.as_ref(), &self.shards, shard)
            .map_err(|error| ReadError::io(self.key(record), error.to_string(), false))?;
        root::read(&folder, path, what, || self.key(record))
    }

    fn hash(&self) -> Fingerprint {
        let mut hash = Xxh3::new();
        let number = |hash: &mut Xxh3, value: u64| hash.update(&value.to_le_bytes());
        hash.update(b"fuelrail table 1\0");
        number(&mut hash, self.shards.files().len() as u64);
        for (shard, file) in self.shards.files().iter().zip(&self.files) {
            number(&mut hash, shard.name.len() as u64);
            hash.update(shard.name.as_bytes());
            number(&mut hash, shard.size);
            for part in 0..file.parts() {
                number(&mut hash, file.part(RECORD, part).rows);
            }
        }
        label::hash(&self.labels, &mut hash);
        let schema = serde_json::to_vec(&self.schema).expect("a schema is plain data");
        hash.update(&schema);
        if let Some(tokens) = &self.tokens {
            tokens.hash(&mut hash);
        }
        Fingerprint(hash.digest128())
    }
}

/// The bytes of Hugging Face's struct, or the path where they are null.
fn struct_image(array: &dyn crate::arrow::array::Array, row: usize) -> Result<Result<&[u8], &[u8]>, String> {
    use crate::arrow::array::AsArray;
    let image = array.as_struct();
    if array.is_null(row) {
        return Err("its image is null".into());
    }
    if let Some(bytes) =
        image.column_by_name("bytes").and_then(|column| columns::bytes_at(column.as_ref(), row))
    {
        return Ok(Ok(bytes));
    }
    match image.column_by_name("path").and_then(|column| columns::bytes_at(column.as_ref(), row)) {
        Some(path) => Ok(Err(path)),
        None => Err("its image has neither bytes nor a path".into()),
    }
}

/// Cuts all parts into units. Returns them with the number of rows.
fn units(shards: &Shards, files: &[File]) -> Result<(Vec<Unit>, u64), SourceError> {
    let mut units = Vec::new();
    let mut first = 0;
    for (number, file) in files.iter().enumerate() {
        let mut in_file = 0;
        for part in 0..file.parts() {
            let Rows { rows, bytes, divisible } = file.part(RECORD, part);
            let share = |some: u64| (u128::from(bytes) * u128::from(some) / u128::from(rows.max(1))) as u64;
            let mut starts = vec![0];
            if divisible {
                let mut run = rows;
                if bytes > LARGE_PART {
                    run = (u128::from(rows) * u128::from(RUN_BYTES) / u128::from(bytes)).max(1) as u64;
                }
                starts = file.starts(part, rows, run.min(UNIT_ROWS));
            }
            for (at, &in_part) in starts.iter().enumerate() {
                let end = starts.get(at + 1).copied().unwrap_or(rows);
                parquet::check_unit(&shards.display(number), part, share(end - in_part))?;
                units.push(Unit {
                    file: number as u32,
                    part: part as u32,
                    in_part,
                    in_file: in_file + in_part,
                    first: first + in_part,
                });
            }
            in_file += rows;
            first += rows;
        }
    }
    units.shrink_to_fit();
    Ok((units, first))
}

impl IndexedSource for Table {
    fn len(&self) -> u64 {
        self.tokens.as_ref().map_or(self.rows, |tokens| tokens.len(self.rows))
    }

    fn key(&self, index: u64) -> String {
        assert!(index < self.len(), "record {index} of a source of {}", self.len());
        match &self.tokens {
            Some(tokens) => tokens.key(self, index),
            None => self.row_key(index),
        }
    }

    fn label(&self, index: u64) -> i64 {
        assert!(index < self.len(), "record {index} of a source of {}", self.len());
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

    fn size(&self, index: u64) -> u64 {
        assert!(index < self.len(), "record {index} of a source of {}", self.len());
        let fixed = self.schema.fixed_bytes() as u64;
        if self.image.is_none() && !self.maker.has_parts() {
            return fixed;
        }
        // The average of its unit: the sizes of single images are known only once it is decoded. What a reader holds is
        // bounded all the same (see `IndexedSource::size`).
        let unit = self.unit_of(index);
        let mean = self.unit_bytes(unit).div_ceil(self.unit_rows(unit).max(1));
        if !self.maker.has_parts() {
            return mean.max(fixed + 1);
        }
        (mean as f64 * self.growth).ceil() as u64 + fixed + self.in_files
    }

    fn extent(&self, _: u64) -> Option<Extent> {
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
            Blocks::Lengths { lengths, .. } => size_of_val(&**lengths),
            Blocks::None => 0,
        };
        let files: u64 = self.files.iter().map(|file| size_of::<File>() as u64 + file.memory()).sum();
        size_of::<Self>() as u64
            + self.shards.memory()
            + files
            + (self.units.capacity() * size_of::<Unit>() + blocks) as u64
            + self.labels.memory()
            + self.tokens.as_ref().map_or(0, tokens::Tokens::memory)
    }

    fn reader_memory(&self) -> u64 {
        // Buffers of many sizes come and go on several threads: a third more is what the allocator was seen to hold.
        (self.cache_bytes + reader::in_hand(self.largest_unit)) * 4 / 3 + self.shards.reader_memory()
    }

    fn reader(self: Arc<Self>, config: &ReaderConfig) -> Result<Box<dyn Reader>, SourceError> {
        config.check()?;
        Ok(Box::new(reader::UnitReader::start(self, config.depth)?))
    }
}
