//! The label column, read as a whole when a table is opened.

use std::sync::Arc;

use xxhash_rust::xxh3::Xxh3;

use super::columns::{Choice, bytes_at, dictionary_at, integer_at};
use super::{File, LABEL, TableConfig, UNIT_ROWS, in_parallel};
use crate::SourceError;
use crate::arrow::array::{Array, AsArray};
use crate::arrow::datatypes::{self as types, DataType};
use crate::bytes::buffer::Pool;
use crate::bytes::shards::Shards;
use crate::labels::{Collector, Context, Labels, Raw, refusal};
use crate::opening::{Counted, Step};

/// What else can be done about a column that holds no labels.
const OTHER: &str = "name another column (label=\"…\")";

/// Reads the label column of all files.
pub(super) fn read(
    shards: &Arc<Shards>,
    files: &[File],
    choice: &Choice,
    config: &TableConfig,
) -> Result<Labels, SourceError> {
    let Some(column) = &choice.label else {
        if config.classes.is_some() {
            return Err(SourceError::config(
                "classes are given, but no column holds labels; name it (label), or leave out classes".into(),
            ));
        }
        return Ok(Labels::default());
    };
    let mut runs = Vec::new();
    for (file, opened) in files.iter().enumerate() {
        let mut in_file = 0;
        for part in 0..opened.parts() {
            let what = opened.part(LABEL, part);
            let step = if what.divisible { UNIT_ROWS } else { what.rows.max(1) };
            let mut row = 0;
            while row < what.rows {
                let end = (row + step).min(what.rows);
                runs.push((file, part, row..end, in_file));
                row = end;
            }
            in_file += what.rows;
        }
    }
    let pool = Pool::new(32 << 20);
    let total = runs.iter().map(|(_, _, rows, _)| rows.end - rows.start).sum();
    let what = format!("the column {column:?} of {}", shards.describe());
    let field = choice.label_is_number.then_some(column.as_str());
    let step = Step::begin("reading labels", Counted::Rows, Some(total));
    let parts = in_parallel(&step, runs.len(), |at| {
        let (file, part, rows, in_file) = runs[at].clone();
        let count = rows.end - rows.start;
        let name = shards.display(file);
        let pieces = files[file].decode(shards, file, LABEL, part, rows, &pool);
        let pieces = pieces.map_err(|trouble| trouble.at_open(&name))?;
        let mut collector = Collector::default();
        for piece in pieces {
            let row = |row: u64| format!("{name}, row {}", in_file + row);
            let columns = piece.columns.map_err(|why| {
                SourceError::data(format!(
                    "{}: the label {column:?} cannot be read: {why}",
                    row(piece.rows.start)
                ))
            })?;
            let array = columns[0].as_ref();
            for at in 0..array.len() {
                collector.push(raw_at(array, at)).map_err(|holds| {
                    let holds = format!("{holds} ({})", row(piece.rows.start + at as u64));
                    SourceError::data(refusal(&what, &holds, field, OTHER))
                })?;
            }
        }
        step.add(count);
        Ok(collector.finish())
    })?;
    let context = Context {
        what,
        field,
        other: OTHER,
        classes: config.classes.as_deref(),
        names: choice.label_names.clone(),
        names_of_numbers: true,
        key: &|row| key(shards, files, row),
    };
    Labels::join(parts, &context)
}

/// What stands in a row of a column that may hold labels.
pub(crate) fn raw_at(array: &dyn Array, row: usize) -> Raw<'_> {
    if array.is_null(row) {
        return Raw::Missing;
    }
    if let Some(number) = integer_at(array, row) {
        return Raw::Number(number);
    }
    if let Some(bytes) = bytes_at(array, row) {
        return Raw::bytes(bytes);
    }
    match array.data_type() {
        DataType::UInt64 => Raw::whole(array.as_primitive::<types::UInt64Type>().value(row).into()),
        DataType::Float16 => Raw::float(array.as_primitive::<types::Float16Type>().value(row).into()),
        DataType::Float32 => Raw::float(array.as_primitive::<types::Float32Type>().value(row).into()),
        DataType::Float64 => Raw::float(array.as_primitive::<types::Float64Type>().value(row)),
        DataType::Dictionary(..) => match dictionary_at(array, row) {
            Some((values, key)) => raw_at(values, key),
            None => Raw::Wrong("its label is not one of the column's categories".into()),
        },
        other => Raw::Wrong(format!("its label is of type {other}")),
    }
}

/// Adds classes and labels to a fingerprint.
pub(super) fn hash(labels: &Labels, hash: &mut Xxh3) {
    hash.update(&(labels.classes.len() as u64).to_le_bytes());
    for class in &labels.classes {
        hash.update(&(class.len() as u64).to_le_bytes());
        hash.update(class.as_bytes());
    }
    labels.hash(hash);
}

/// The file and number of a row of the table.
pub(super) fn key(shards: &Shards, files: &[File], mut row: u64) -> String {
    for (shard, file) in files.iter().enumerate() {
        let rows: u64 = (0..file.parts()).map(|part| file.part(LABEL, part).rows).sum();
        if row < rows {
            return format!("{}, row {row}", shards.display(shard));
        }
        row -= rows;
    }
    format!("row {row}")
}
