//! The values of a source's records that a condition is about, read once when the source is opened.
//!
//! The same files are opened a second time, asked for nothing but these values: of a table its columns, of tar shards
//! their JSON members. So a value has one name everywhere: that of the part which it would be as a field of a batch.

use std::sync::Arc;
use std::sync::mpsc;

use crate::opening::{self, Counted, Step};
use crate::recognised::grouped;
use crate::values::scalar::Scalar;
use crate::{
    Condition, IndexedSource, ReadError, ReadErrorKind, ReadRequest, ReaderConfig, Record, Schema,
    SourceConfig, SourceError, SubsetConfig, TableConfig, TarConfig, TokenMode, Wanted, WantedKind,
};

/// Records asked for at once.
const AHEAD: usize = 2048;

/// Refuses a source whose records have no values.
///
/// # Errors
/// That, with what to do instead.
pub(super) fn check(source: &SourceConfig, condition: &Condition) -> Result<(), SourceError> {
    view(source, condition, &|_| true).map(drop)
}

/// The source, asked for a condition's values. `may_lack`: whether all records may lack the value of a column.
fn view(
    source: &SourceConfig,
    condition: &Condition,
    may_lack: &dyn Fn(usize) -> bool,
) -> Result<SourceConfig, SourceError> {
    let wanted = |is_tar: bool| {
        let wanted = |(at, column): (usize, &String)| {
            // Keys in the JSON of tar records are written with a dot, too.
            let key = column.strip_prefix("json.").filter(|_| is_tar);
            let part = key.map_or_else(|| column.clone(), |key| format!("json:{key}"));
            Wanted { optional: may_lack(at), ..Wanted::new(&part, WantedKind::Value) }
        };
        Some(condition.columns().iter().enumerate().map(wanted).collect())
    };
    let refuse = |why: &str| Err(SourceError::config(format!("where: {why}")));
    let other = "where is for columns of tables and for JSON in the records of tar shards";
    match source {
        SourceConfig::Table(TableConfig { tokens: Some(tokens), .. }) if tokens.mode == TokenMode::Pack => {
            refuse(
                "a packed row of tokens is made of several records, so none can be left out: use mode \"pad\"",
            )
        }
        SourceConfig::Table(config) => Ok(SourceConfig::Table(TableConfig {
            image: None,
            label: Some(String::new()),
            fields: None,
            tokens: None,
            classes: None,
            deliver: wanted(false),
            ..config.clone()
        })),
        SourceConfig::Tar(config) => {
            Ok(SourceConfig::Tar(TarConfig { instead: wanted(true), classes: None, ..config.clone() }))
        }
        SourceConfig::Subset(config) => Ok(SourceConfig::Subset(SubsetConfig {
            source: Box::new(view(&config.source, condition, may_lack)?),
            ..config.clone()
        })),
        SourceConfig::Address(config) => view(&config.resolve()?, condition, may_lack),
        SourceConfig::Folder(_) => refuse(&format!(
            "an image folder has no values; {other}: list its images in a table (path, label, …) and give that"
        )),
        SourceConfig::Hdf5(_) | SourceConfig::Array(_) => refuse(&format!(
            "{other}; of arrays, choose the records yourself and give their numbers: order=numpy.flatnonzero(…)"
        )),
        SourceConfig::Synthetic(_) => refuse(&format!("synthetic images have no values; {other}")),
        SourceConfig::Kafka(_) | SourceConfig::Mix(_) => refuse(other),
    }
}

/// Opens a view. All there is to be said of the source, its own opening says.
fn open(view: &SourceConfig) -> Result<Arc<dyn IndexedSource>, SourceError> {
    let nobody = tracing::subscriber::NoSubscriber::default();
    let opened = tracing::subscriber::with_default(nobody, || crate::open(view));
    opened.map_err(|error| match error.is_config() {
        true => SourceError::config(format!("where: {error}")),
        false => error,
    })
}

/// Leaves of the candidates those that fulfil a condition. Returns what is to be said of records that could not be
/// tested.
///
/// # Errors
/// When a column does not exist, values of different kinds are compared, or the data cannot be read.
pub(super) fn select(
    source: &SourceConfig,
    condition: &Condition,
    records: u64,
    candidates: &mut Vec<u32>,
) -> Result<Option<String>, SourceError> {
    let values = open(&view(source, condition, &|_| true)?)?;
    if values.len() != records {
        return Err(SourceError::data(format!(
            "where: {} has {} records with values and {records} without; it changed while it was opened, try again",
            source.locations().join(", "),
            values.len(),
        )));
    }
    let mut tests = Tests {
        condition,
        schema: values.schema(),
        seen: vec![false; condition.columns().len()],
        untested: 0,
        example: String::new(),
    };
    let holds = tests.run(&values, candidates)?;
    if tests.seen.contains(&false) {
        // All nulls, or nothing is called so: the source knows, once it is asked for what must be there.
        open(&view(source, condition, &|column| tests.seen[column])?)?;
    }
    let mut holds = holds.into_iter();
    candidates.retain(|_| holds.next().expect("one for each"));
    let Tests { untested, example, .. } = tests;
    Ok((untested > 0).then(|| {
        let untested = grouped(untested);
        format!("the condition of where could not be tested on {untested} records, which are left out (the first: {example})")
    }))
}

/// A condition, tested record by record.
struct Tests<'condition> {
    condition: &'condition Condition,
    schema: Schema,
    /// Columns that had a value.
    seen: Vec<bool>,
    /// Bad records, and what is wrong with the first.
    untested: u64,
    example: String,
}

impl Tests<'_> {
    /// Reads the candidates and tests each.
    fn run(&mut self, values: &Arc<dyn IndexedSource>, candidates: &[u32]) -> Result<Vec<bool>, SourceError> {
        let mut holds = vec![false; candidates.len()];
        let step =
            Step::begin("testing the condition of where", Counted::Rows, Some(candidates.len() as u64));
        let reader = values.clone().reader(&ReaderConfig::default())?;
        let (sender, receiver) = mpsc::channel();
        let (mut asked, mut answered) = (0, 0);
        while answered < candidates.len() {
            opening::check()?;
            let until = candidates.len().min(answered + AHEAD);
            // Many at a time, so that a reader sees which are neighbours.
            if asked == answered || until - asked >= AHEAD / 2 {
                let requests = (asked..until).map(|at| {
                    let sender = sender.clone();
                    let done = move |read: Result<Record, ReadError>| drop(sender.send((at, read)));
                    ReadRequest { index: candidates[at].into(), done: Box::new(done) }
                });
                reader.submit(requests.collect());
                asked = until;
            }
            let (at, read) = receiver.recv().expect("a sender is here");
            answered += 1;
            step.add(1);
            holds[at] = self.test(values.as_ref(), candidates[at].into(), read)?;
        }
        Ok(holds)
    }

    fn test(
        &mut self,
        values: &dyn IndexedSource,
        index: u64,
        read: Result<Record, ReadError>,
    ) -> Result<bool, SourceError> {
        let record = match read {
            Ok(record) => record,
            Err(error) if error.kind() == ReadErrorKind::Bad => {
                if self.untested == 0 {
                    self.example = error.to_string();
                }
                self.untested += 1;
                return Ok(false);
            }
            Err(error) => return Err(SourceError::data(format!("where: {error}"))),
        };
        let cut = self.schema.cut(&record.bytes).expect("a reader makes records of its schema");
        let row: Vec<Option<Scalar<'_>>> = cut.parts.iter().map(|part| part.map(Scalar::decode)).collect();
        self.seen.iter_mut().zip(&row).for_each(|(seen, value)| *seen |= value.is_some());
        self.condition
            .holds(&row)
            .map_err(|why| SourceError::config(format!("where: in the record {}, {why}", values.key(index))))
    }
}
