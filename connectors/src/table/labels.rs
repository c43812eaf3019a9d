//! The label column, read as a whole when a table is opened.

use std::collections::HashMap;
use std::sync::Arc;

use xxhash_rust::xxh3::Xxh3;

use super::columns::{Choice, bytes_at, integer_at};
use super::{File, LABEL, TableConfig, UNIT_ROWS, in_parallel};
use crate::SourceError;
use crate::buffer::Pool;
use crate::opening::{Counted, Step};
use crate::shards::Shards;

/// Labels are classes of things; a column with more different texts than this is something else.
const MAX_CLASSES: usize = 1 << 20;

/// The labels of all rows.
#[derive(Debug)]
pub(super) struct Labels {
    values: Values,
    pub classes: Vec<String>,
}

#[derive(Debug)]
enum Values {
    None,
    Narrow(Vec<i32>),
    Wide(Vec<i64>),
}

/// The labels of one run of rows.
enum Part {
    Numbers(Vec<i64>),
    /// Texts, each once, and for each row which.
    Texts(Vec<String>, Vec<u32>),
}

impl Labels {
    /// Reads the label column of all files.
    pub(super) fn read(
        shards: &Arc<Shards>,
        files: &[File],
        choice: &Choice,
        config: &TableConfig,
    ) -> Result<Self, SourceError> {
        check_classes(config)?;
        let Some(column) = &choice.label else {
            if config.classes.is_some() {
                return Err(SourceError::config(
                    "classes are given, but no column holds labels; name it (label), or leave out classes"
                        .into(),
                ));
            }
            return Ok(Self { values: Values::None, classes: Vec::new() });
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
        let step = Step::begin("reading labels", Counted::Rows, Some(total));
        let parts = in_parallel(&step, runs.len(), |at| {
            let (file, part, rows, in_file) = runs[at].clone();
            let count = rows.end - rows.start;
            let name = shards.display(file);
            let refuse = |row: u64, why: &str| {
                SourceError::data(format!(
                    "{name}, row {}: the label {column:?} {why}; every record needs a label, or use the table without \
                     (label=\"\")",
                    in_file + row
                ))
            };
            let pieces = files[file].decode(shards, file, LABEL, part, rows, &pool);
            let pieces = pieces.map_err(|trouble| trouble.at_open(&name))?;
            let mut numbers = Vec::new();
            let (mut texts, mut places, mut known) = (Vec::new(), Vec::new(), HashMap::new());
            for piece in pieces {
                let columns = piece
                    .columns
                    .map_err(|why| refuse(piece.rows.start, &format!("cannot be read: {why}")))?;
                let array = columns[0].as_ref();
                for row in 0..array.len() {
                    if let Some(number) = integer_at(array, row) {
                        numbers.push(number);
                    } else if let Some(bytes) = bytes_at(array, row) {
                        let text = std::str::from_utf8(bytes)
                            .map_err(|_| refuse(piece.rows.start + row as u64, "is not UTF-8"))?;
                        let place = match known.get(text) {
                            Some(&place) => place,
                            None => {
                                let place = texts.len() as u32;
                                if texts.len() >= MAX_CLASSES {
                                    return Err(refuse(
                                        piece.rows.start + row as u64,
                                        "has too many different texts for classes",
                                    ));
                                }
                                texts.push(text.to_owned());
                                known.insert(text.to_owned(), place);
                                place
                            }
                        };
                        places.push(place);
                    } else {
                        let why =
                            if array.is_null(row) { "is null" } else { "is no integer that fits in 64 bits" };
                        return Err(refuse(piece.rows.start + row as u64, why));
                    }
                }
            }
            step.add(count);
            Ok(if places.is_empty() { Part::Numbers(numbers) } else { Part::Texts(texts, places) })
        })?;
        let key = |row: u64| key(shards, files, row);
        Self::join(parts, column, choice, config, &key)
    }

    fn join(
        parts: Vec<Part>,
        column: &str,
        choice: &Choice,
        config: &TableConfig,
        key: &dyn Fn(u64) -> String,
    ) -> Result<Self, SourceError> {
        let mut classes = config.classes.clone();
        let of_texts = parts.iter().any(|part| matches!(part, Part::Texts(..)));
        if of_texts && classes.is_none() {
            let texts = parts.iter().flat_map(|part| match part {
                Part::Texts(texts, _) => texts.as_slice(),
                Part::Numbers(_) => &[],
            });
            let mut all: Vec<String> = texts.cloned().collect();
            all.sort_unstable();
            all.dedup();
            if all.len() > MAX_CLASSES {
                return Err(SourceError::data(format!(
                    "the label {column:?} has {} different texts, too many for classes; name another column (label)",
                    all.len()
                )));
            }
            classes = Some(all);
        }
        let place: HashMap<&str, i64> =
            classes.iter().flatten().enumerate().map(|(place, name)| (name.as_str(), place as i64)).collect();
        let mut values = Vec::with_capacity(
            parts
                .iter()
                .map(|part| match part {
                    Part::Numbers(numbers) => numbers.len(),
                    Part::Texts(_, places) => places.len(),
                })
                .sum(),
        );
        for part in parts {
            match part {
                Part::Numbers(numbers) => values.extend(numbers),
                Part::Texts(texts, places) => {
                    let labels: Vec<Option<i64>> =
                        texts.iter().map(|text| place.get(text.as_str()).copied()).collect();
                    for at in places {
                        let label = labels[at as usize].ok_or_else(|| {
                            SourceError::data(format!(
                                "{}: the label {:?} is not in the list of classes; add it to classes",
                                key(values.len() as u64),
                                texts[at as usize]
                            ))
                        })?;
                        values.push(label);
                    }
                }
            }
        }
        if !of_texts {
            let names = classes.clone().or_else(|| choice.label_names.clone());
            if let Some(names) = names {
                let outside = |label: i64| !(0..names.len() as i64).contains(&label);
                match values.iter().position(|&label| outside(label)) {
                    None => classes = Some(names),
                    Some(row) if values[row] != -1 || config.classes.is_some() => {
                        return Err(SourceError::data(format!(
                            "{}: the label {column:?} is {}, but there are {} classes",
                            key(row as u64),
                            values[row],
                            names.len()
                        )));
                    }
                    Some(_) => tracing::warn!(
                        "the label {column:?} is -1 in some rows, which stands for an unknown class; labels are delivered as \
                         they are, without the names of classes"
                    ),
                }
            }
        }
        let narrow: Option<Vec<i32>> = values.iter().map(|&label| i32::try_from(label).ok()).collect();
        let values = match narrow {
            Some(narrow) => Values::Narrow(narrow),
            None => Values::Wide(values),
        };
        Ok(Self { values, classes: classes.unwrap_or_default() })
    }

    pub(super) fn get(&self, row: u64) -> i64 {
        match &self.values {
            Values::None => 0,
            Values::Narrow(values) => i64::from(values[row as usize]),
            Values::Wide(values) => values[row as usize],
        }
    }

    pub(super) fn memory(&self) -> u64 {
        let classes: usize = self.classes.iter().map(|class| class.capacity() + size_of::<String>()).sum();
        let values = match &self.values {
            Values::None => 0,
            Values::Narrow(values) => values.capacity() * 4,
            Values::Wide(values) => values.capacity() * 8,
        };
        (classes + values) as u64
    }

    pub(super) fn hash(&self, hash: &mut Xxh3) {
        hash.update(&(self.classes.len() as u64).to_le_bytes());
        for class in &self.classes {
            hash.update(&(class.len() as u64).to_le_bytes());
            hash.update(class.as_bytes());
        }
        match &self.values {
            Values::None => {}
            Values::Narrow(values) => {
                values.iter().for_each(|&label| hash.update(&i64::from(label).to_le_bytes()))
            }
            Values::Wide(values) => values.iter().for_each(|&label| hash.update(&label.to_le_bytes())),
        }
    }
}

fn check_classes(config: &TableConfig) -> Result<(), SourceError> {
    let mut seen = std::collections::HashSet::new();
    match config.classes.iter().flatten().find(|class| !seen.insert(*class)) {
        Some(twice) => Err(SourceError::config(format!("classes lists {twice:?} twice; remove one"))),
        None => Ok(()),
    }
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
