//! Labels: which names they have, what they may be, and how raw values become class numbers. The same for every source.
//!
//! ```text
//!  raw value ── Raw ──▶ Collector ──▶ Run (one shard's, one row group's) ──▶ Labels::join ──▶ Labels
//!                                     numbers or texts, and bad rows                          numbers, classes, bad rows
//! ```
//!
//! # What a label may be
//!
//! | raw | label |
//! |---|---|
//! | a whole number, also one stored as a float (pandas makes floats of whole numbers with gaps) | that number |
//! | true, false | 1, 0 |
//! | a text | the place of its class among the sorted texts, or in `classes`. Space around it is not part of it |
//! | texts that are all whole numbers | these numbers, never texts in the order of texts ("10" before "2") |
//! | texts like "007", all of one length | classes: codes |
//! | null, NaN, an empty text; among numbers also NA, null, None and their like | none: the record is a bad one |
//!
//! Everything else under a name that is taken for a label (a fraction, a date, a list) is refused by [`refusal`]. So
//! are texts among numbers, for one odd cell would give all others another meaning. (Some numbers among more texts are
//! class names.)
//!
//! One bad row is one bad record ([`Labels::verdict`]); when more than half of them are, something else was meant, and
//! the source is refused.

use std::collections::{BTreeSet, HashMap};

use serde::{Deserialize, Deserializer};
use serde_json::Value;
use xxhash_rust::xxh3::Xxh3;

use crate::SourceError;
use crate::recognised::{self, grouped, printed};
use crate::verdicts::Verdicts;

/// Names that a label may have without being named, the likeliest first. Case does not matter.
pub(crate) const NAMES: [&str; 19] = [
    "label",
    "labels",
    "cls",
    "class",
    "target",
    "fine_label",
    "class_id",
    "class_name",
    "targets",
    "y",
    "category",
    "fine_labels",
    "label_id",
    "category_id",
    "class_label",
    "class_idx",
    "label_idx",
    "label_name",
    "category_name",
];

/// Arrays are called x and y first of all.
pub(crate) const OF_ARRAYS: [&str; 3] = ["y", "labels", "label"];

/// More different texts than this are no classes.
pub(crate) const MAX_CLASSES: usize = 1 << 20;

/// The longest class name.
pub(crate) const MAX_CLASS: usize = 1 << 10;

/// Stands for the text of a bad row.
const NO_TEXT: u32 = u32::MAX;

/// What labels are that one odd cell would give another meaning.
const MIXED: &str = "whole numbers and texts";

/// Why a record without a label is a bad one.
pub(crate) const MISSING: &str = "it has no label";

/// How a gap is written among numbers, beside nothing at all: what pandas takes for one.
const GAPS: [&str; 15] = [
    "na", "n/a", "nan", "-nan", "null", "none", "nil", "<na>", "#n/a", "#na", "#n/a n/a", "1.#ind",
    "-1.#ind", "1.#qnan", "-1.#qnan",
];

/// Whether a text is a list or a date, which were written as text for want of a type.
fn is_odd(text: &str) -> Option<&'static str> {
    let date = |text: &[u8]| {
        let digits = |text: &[u8]| text.iter().all(u8::is_ascii_digit);
        digits(&text[..4])
            && digits(&text[5..7])
            && digits(&text[8..10])
            && text[4] == b'-'
            && text[7] == b'-'
    };
    let bytes = text.as_bytes();
    if text.starts_with('[') && text.ends_with(']') {
        Some("lists")
    } else if bytes.len() >= 10 && date(bytes) && bytes.get(10).is_none_or(|next| b" T".contains(next)) {
        Some("dates")
    } else {
        None
    }
}

/// Whether a cell stands for a gap in a column of numbers.
pub(crate) fn is_gap(text: &str) -> bool {
    let text = text.trim();
    text.is_empty() || GAPS.iter().any(|gap| gap.eq_ignore_ascii_case(text))
}

/// Those of `given` that are called as labels are, the likeliest first; `first` go before the usual names.
pub(crate) fn candidates<'given>(
    given: impl Iterator<Item = &'given str> + Clone,
    first: &[&str],
) -> Vec<&'given str> {
    let mut found: Vec<&str> = Vec::new();
    for name in first.iter().chain(&NAMES) {
        let exact = given.clone().filter(|other| other == name);
        let alike = given.clone().filter(|other| other.eq_ignore_ascii_case(name));
        for other in exact.chain(alike) {
            if !found.contains(&other) {
                found.push(other);
            }
        }
    }
    found
}

/// How arrays are called that hold what a model sees, as a part of their names.
const SEEN: [&str; 8] = ["x", "images", "image", "imgs", "img", "data", "inputs", "pixels"];

/// Those of `given` that are called as the image is, with a word for labels where it has one for images: `y_train`
/// beside
/// `x_train`, `train-labels` beside `train-images`.
pub(crate) fn beside<'given>(
    image: &str,
    given: impl Iterator<Item = &'given str> + Clone,
) -> Vec<&'given str> {
    let words = || image.split(|c: char| !c.is_ascii_alphanumeric());
    if words().count() < 2 {
        // A name that is the word alone has no partner but the usual ones.
        return Vec::new();
    }
    let mut found = Vec::new();
    let mut at = 0;
    for word in words() {
        let (before, after) = (&image[..at], &image[at + word.len()..]);
        at += word.len() + image[at + word.len()..].chars().next().map_or(0, char::len_utf8);
        if !SEEN.iter().any(|seen| seen.eq_ignore_ascii_case(word)) {
            continue;
        }
        for label in OF_ARRAYS.iter().chain(&NAMES) {
            let name = format!("{before}{label}{after}");
            let called = given.clone().find(|other| other.eq_ignore_ascii_case(&name));
            found.extend(called.filter(|other| !found.contains(other)));
        }
    }
    found
}

/// `label` in a configuration: a name, or `""` or null for none.
pub(crate) fn name_or_none<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    Ok(Some(Option::<String>::deserialize(deserializer)?.unwrap_or_default()))
}

/// `label` of a source whose labels cannot be chosen, where it may only be `""` or null for none.
pub(crate) fn only_none(label: Option<&str>, what: &str) -> Result<bool, SourceError> {
    match label {
        None => Ok(false),
        Some("" | "none") => Ok(true),
        Some(other) => Err(SourceError::config(format!(
            "label is {other:?}, but {what}; leave it out, or use the images without labels (label=None)"
        ))),
    }
}

/// Why `what` holds no labels. `field` is its name in `fields`, if it can be one.
pub(crate) fn refusal(what: &str, holds: &str, field: Option<&str>, other: &str) -> String {
    let deliver = match field {
        Some(name) => format!("Deliver it with fields=[{name:?}] and label=None"),
        None => "Use the records without labels (label=None)".into(),
    };
    format!("{what} holds {holds}; a label is a whole number or a class name. {deliver}, or {other}")
}

/// One value where a label should be.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Raw<'value> {
    Number(i64),
    /// Neither empty nor with space around it.
    Text(&'value str),
    Missing,
    /// A number with a fraction, or without end.
    Fraction(f64),
    /// Something else; what is wrong with the record.
    Wrong(String),
}

impl<'value> Raw<'value> {
    pub fn float(value: f64) -> Self {
        if value.is_nan() {
            Self::Missing
        } else if value.fract() == 0.0 && value.abs() < 9e15 {
            Self::Number(value as i64)
        } else {
            Self::Fraction(value)
        }
    }

    /// A whole number of any width.
    pub fn whole(value: i128) -> Self {
        match i64::try_from(value) {
            Ok(number) => Self::Number(number),
            Err(_) => Self::Wrong(format!("its label is {value}, which does not fit in 64 bits")),
        }
    }

    pub fn text(text: &'value str) -> Self {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let text = text.trim_matches(|c: char| c.is_whitespace() || c == '\0');
        match text.len() {
            0 => Self::Missing,
            1..=MAX_CLASS => Self::Text(text),
            len => Self::Wrong(format!(
                "its label has {} bytes; a class name has at most {MAX_CLASS}",
                grouped(len as u64)
            )),
        }
    }

    pub fn bytes(bytes: &'value [u8]) -> Self {
        match std::str::from_utf8(bytes) {
            Ok(text) => Self::text(text),
            Err(_) => Self::Wrong("its label is not UTF-8 text".into()),
        }
    }

    /// Text that holds a number wherever it looks like one, as in a file of its own or a header.
    pub fn plain(self) -> Self {
        match self {
            Self::Text(text) => text.parse().map_or(Self::Text(text), Self::Number),
            other => other,
        }
    }

    pub fn json(value: &'value Value) -> Self {
        match value {
            Value::Null => Self::Missing,
            Value::Bool(value) => Self::Number(i64::from(*value)),
            Value::Number(number) => match (number.as_i64(), number.as_u64()) {
                (Some(whole), _) => Self::Number(whole),
                (_, Some(whole)) => Self::whole(whole.into()),
                _ => Self::float(number.as_f64().unwrap_or(f64::INFINITY)),
            },
            Value::String(text) => Self::text(text),
            Value::Array(_) => Self::Wrong("its label is a list".into()),
            Value::Object(_) => Self::Wrong("its label is an object".into()),
        }
    }
}

/// Names of classes that were given.
#[derive(Debug, Default)]
pub(crate) struct Known {
    pub names: Vec<String>,
    by_name: HashMap<String, i64>,
}

impl Known {
    /// # Errors
    /// When a name is given twice.
    pub fn new(names: &[String]) -> Result<Self, SourceError> {
        let mut by_name = HashMap::new();
        for (label, name) in names.iter().enumerate() {
            if by_name.insert(name.clone(), label as i64).is_some() {
                return Err(SourceError::config(format!("classes lists {name:?} twice; remove one")));
            }
        }
        Ok(Self { names: names.to_vec(), by_name })
    }

    /// The label that a text means: a class, or a number in decimal digits.
    pub fn label(&self, text: &str) -> Result<i64, String> {
        if let Some(&label) = self.by_name.get(text) {
            return Ok(label);
        }
        match text.parse() {
            Ok(number) => self.number(number),
            Err(_) => {
                Err(format!("its label {text:?} is not one of the {}", recognised::classes(&self.names)))
            }
        }
    }

    pub fn number(&self, number: i64) -> Result<i64, String> {
        if (0..self.names.len() as i64).contains(&number) {
            return Ok(number);
        }
        let (are, plural) = if self.names.len() == 1 { ("is", "") } else { ("are", "es") };
        let count = grouped(self.names.len() as u64);
        Err(format!("its label is {number}, but there {are} {count} class{plural}"))
    }
}

/// The labels of some records in a row, before the classes are known.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Run {
    pub column: Column,
    /// Rows without a label that is of use.
    pub bad: Verdicts,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Column {
    /// 0 in bad rows.
    Numbers(Vec<i64>),
    /// Different texts, and which one each row has.
    Texts(Vec<String>, Vec<u32>),
}

impl Default for Run {
    fn default() -> Self {
        Self { column: Column::Numbers(Vec::new()), bad: Verdicts::default() }
    }
}

impl Run {
    pub fn len(&self) -> usize {
        match &self.column {
            Column::Numbers(numbers) => numbers.len(),
            Column::Texts(_, of) => of.len(),
        }
    }

    pub fn memory(&self) -> u64 {
        let texts =
            |texts: &[String]| texts.iter().map(|text| text.capacity() + size_of::<String>()).sum::<usize>();
        let column = match &self.column {
            Column::Numbers(numbers) => numbers.capacity() * 8,
            Column::Texts(names, of) => texts(names) + of.capacity() * 4,
        };
        column as u64 + self.bad.memory()
    }

    /// Whether it is what a [`Collector`] could have made: it may come from a file.
    pub fn is_sound(&self) -> bool {
        let rows = self.len() as u64;
        self.bad.is_sound(rows)
            && match &self.column {
                Column::Numbers(_) => true,
                Column::Texts(names, of) => {
                    let known = |(row, &name): (usize, &u32)| {
                        (name as usize) < names.len() || self.bad.get(row as u64).is_some()
                    };
                    of.iter().enumerate().all(known)
                }
            }
    }
}

/// Collects a [`Run`] row by row.
#[derive(Debug, Default)]
pub(crate) struct Collector {
    run: Run,
    known: HashMap<String, u32>,
}

impl Collector {
    /// Rows so far.
    pub fn len(&self) -> usize {
        self.run.len()
    }

    /// Takes the next row.
    ///
    /// # Errors
    /// What all of the labels are, seen by this one: floats. Not a verdict on the row but on what was taken for labels.
    pub fn push(&mut self, raw: Raw<'_>) -> Result<(), String> {
        match raw {
            Raw::Number(number) => match &mut self.run.column {
                Column::Numbers(numbers) => numbers.push(number),
                Column::Texts(..) => self.text(&number.to_string())?,
            },
            Raw::Text(text) => {
                if let Column::Numbers(_) = self.run.column {
                    self.make_texts()?;
                }
                self.text(text)?;
            }
            Raw::Missing => self.bad(MISSING),
            Raw::Wrong(why) => self.bad(&why),
            Raw::Fraction(number) => return Err(not_whole(number)),
        }
        Ok(())
    }

    /// A row whose record has no label, for a reason of its own.
    pub fn bad(&mut self, why: &str) {
        self.run.bad.push(self.run.len() as u64, why, "its label cannot be used");
        match &mut self.run.column {
            Column::Numbers(numbers) => numbers.push(0),
            Column::Texts(_, of) => of.push(NO_TEXT),
        }
    }

    pub fn finish(self) -> Run {
        self.run
    }

    /// One text makes texts of all of them.
    fn make_texts(&mut self) -> Result<(), String> {
        let texts = Column::Texts(Vec::new(), Vec::new());
        let Column::Numbers(numbers) = std::mem::replace(&mut self.run.column, texts) else { return Ok(()) };
        let mut bad = self.run.bad.rows.clone().into_iter().peekable();
        for (row, number) in numbers.into_iter().enumerate() {
            if bad.next_if(|bad| bad.0 == row as u64).is_some() {
                let Column::Texts(_, of) = &mut self.run.column else { unreachable!("just made") };
                of.push(NO_TEXT);
            } else {
                self.text(&number.to_string())?;
            }
        }
        Ok(())
    }

    fn text(&mut self, text: &str) -> Result<(), String> {
        let Column::Texts(names, of) = &mut self.run.column else { unreachable!("texts are added to texts") };
        let number = match self.known.get(text) {
            Some(&number) => number,
            None => {
                if names.len() >= MAX_CLASSES {
                    return Err(format!("more than {} different texts", grouped(MAX_CLASSES as u64)));
                }
                let number = names.len() as u32;
                names.push(text.to_owned());
                self.known.insert(text.to_owned(), number);
                number
            }
        };
        of.push(number);
        Ok(())
    }
}

fn not_whole(number: f64) -> String {
    let what =
        if number.is_finite() && number.fract() == 0.0 { "numbers too large for labels" } else { "floats" };
    format!("{what} such as {number}")
}

/// What is known beside the values.
pub(crate) struct Context<'source> {
    /// What holds the labels, as in `the column "label" of x.csv`.
    pub what: String,
    /// The name that it would have as a field, if it can be one.
    pub field: Option<&'source str>,
    /// What else could be done, as in `name another column (label="…")`.
    pub other: &'source str,
    /// Classes that the user gave.
    pub classes: Option<&'source [String]>,
    /// Names of numbers that the data itself knows.
    pub names: Option<Vec<String>>,
    /// Whether whole numbers from 0 on that are written as texts keep them as names.
    pub names_of_numbers: bool,
    /// The name of a row.
    pub key: &'source dyn Fn(u64) -> String,
}

impl Context<'_> {
    fn refuse(&self, holds: &str) -> SourceError {
        SourceError::data(refusal(&self.what, holds, self.field, self.other))
    }
}

/// The labels of all records of a source.
#[derive(Debug, Default)]
pub(crate) struct Labels {
    values: Values,
    /// Names in label order.
    pub classes: Vec<String>,
    /// Rows without a label that is of use.
    bad: Verdicts,
}

#[derive(Debug, Default)]
enum Values {
    #[default]
    None,
    Narrow(Vec<i32>),
    Wide(Vec<i64>),
}

impl Labels {
    /// Makes one column of runs and settles the classes.
    ///
    /// # Errors
    /// [`SourceError`] when these are no labels, or most of them are of no use.
    pub fn join(runs: Vec<Run>, context: &Context<'_>) -> Result<Self, SourceError> {
        let known = context.classes.map(Known::new).transpose()?;
        let total: usize = runs.iter().map(Run::len).sum();
        let mut joined = Joined { values: Vec::with_capacity(total), bad: Verdicts::default() };
        let classes = if runs.iter().any(|run| matches!(run.column, Column::Texts(..))) {
            joined.texts(runs, known, context)?
        } else {
            joined.numbers(runs, known, context)
        };
        joined.check(context)?;
        let Joined { values, bad } = joined;
        let narrow: Option<Vec<i32>> = values.iter().map(|&label| i32::try_from(label).ok()).collect();
        let values = narrow.map_or(Values::Wide(values), Values::Narrow);
        Ok(Self { values, classes, bad })
    }

    /// Whether records have labels.
    pub fn is_some(&self) -> bool {
        !matches!(self.values, Values::None)
    }

    /// The label of a row; 0 where there is none.
    pub fn get(&self, row: u64) -> i64 {
        match &self.values {
            Values::None => 0,
            Values::Narrow(values) => i64::from(values[row as usize]),
            Values::Wide(values) => values[row as usize],
        }
    }

    /// Why a row's record is a bad one, if it is.
    pub fn verdict(&self, row: u64) -> Option<String> {
        self.bad.get(row).map(str::to_owned)
    }

    pub fn memory(&self) -> u64 {
        let texts: usize = self.classes.iter().map(|text| text.capacity() + size_of::<String>()).sum();
        let values = match &self.values {
            Values::None => 0,
            Values::Narrow(values) => values.capacity() * 4,
            Values::Wide(values) => values.capacity() * 8,
        };
        (texts + values) as u64 + self.bad.memory()
    }

    /// Adds the values to a fingerprint.
    pub fn hash(&self, hash: &mut Xxh3) {
        match &self.values {
            Values::None => {}
            Values::Narrow(values) => {
                values.iter().for_each(|&label| hash.update(&i64::from(label).to_le_bytes()));
            }
            Values::Wide(values) => values.iter().for_each(|&label| hash.update(&label.to_le_bytes())),
        }
        self.hash_bad(hash);
    }

    /// Adds which rows have none, which changes nothing where all of them have one.
    pub fn hash_bad(&self, hash: &mut Xxh3) {
        self.bad.hash(hash, b"without labels");
    }

    /// What was found at `place` (`column "label"`), for the log.
    pub fn recognised(&self, place: Option<&str>) -> String {
        let Some(place) = place.filter(|_| self.is_some()) else { return "no label".into() };
        let what = if self.classes.is_empty() {
            let rows = match &self.values {
                Values::None => 0,
                Values::Narrow(values) => values.len(),
                Values::Wide(values) => values.len(),
            };
            let good = || (0..rows as u64).filter(|&row| self.bad.get(row).is_none());
            let range = good().map(|row| self.get(row)).fold(None, |range, label| {
                let (least, most) = range.unwrap_or((label, label));
                Some((label.min(least), label.max(most)))
            });
            range.map_or("whole numbers".into(), |(least, most)| format!("whole numbers {least} to {most}"))
        } else {
            recognised::classes(&self.classes)
        };
        let without = match self.bad.len() {
            0 => String::new(),
            count => format!("; {} without a usable label", grouped(count as u64)),
        };
        format!("label = {place} ({what}{without})")
    }
}

/// Labels on their way.
struct Joined {
    values: Vec<i64>,
    bad: Verdicts,
}

impl Joined {
    fn bad(&mut self, why: &str) {
        self.bad.push(self.values.len() as u64, why, "its label is not one of the classes");
        self.values.push(0);
    }

    fn push(&mut self, label: &Result<i64, String>) {
        match label {
            Ok(label) => self.values.push(*label),
            Err(why) => self.bad(why),
        }
    }

    fn numbers(&mut self, runs: Vec<Run>, known: Option<Known>, context: &Context<'_>) -> Vec<String> {
        let is_given = known.is_some();
        let mut known = known.or_else(|| Known::new(context.names.as_deref()?).ok());
        if let Some(names) = known.as_ref().filter(|_| !is_given) {
            // In data sets of the Hub, -1 is the label of a test set that nobody may know.
            let outside = |label: i64| names.number(label).is_err();
            let numbers = || {
                runs.iter().flat_map(|run| match &run.column {
                    Column::Numbers(numbers) => numbers.as_slice(),
                    Column::Texts(..) => &[],
                })
            };
            if numbers().any(|&label| label == -1) && numbers().all(|&label| label == -1 || !outside(label)) {
                tracing::warn!(
                    "{} holds -1 in some rows, which stands for an unknown class; labels are delivered as they are, without \
                     the names of classes",
                    context.what
                );
                known = None;
            }
        }
        for run in runs {
            let Column::Numbers(numbers) = run.column else { continue };
            let mut bad = run.bad.iter().peekable();
            for (row, number) in numbers.into_iter().enumerate() {
                match bad.next_if(|bad| bad.0 == row as u64) {
                    Some((_, why)) => self.bad(why),
                    None => self.push(&known.as_ref().map_or(Ok(number), |known| known.number(number))),
                }
            }
        }
        known.map(|known| known.names).unwrap_or_default()
    }

    fn texts(
        &mut self,
        runs: Vec<Run>,
        known: Option<Known>,
        context: &Context<'_>,
    ) -> Result<Vec<String>, SourceError> {
        let runs: Vec<Run> = runs.into_iter().map(as_texts).collect();
        let texts = |run: &Run| match &run.column {
            Column::Texts(texts, _) => texts.clone(),
            Column::Numbers(_) => Vec::new(),
        };
        let all: BTreeSet<String> = runs.iter().flat_map(texts).collect();
        if all.len() > MAX_CLASSES {
            return Err(context.refuse(&format!("{} different texts", grouped(all.len() as u64))));
        }
        let meaning = match &known {
            Some(known) => {
                Meaning { classes: known.names.clone(), label: Box::new(|text| known.label(text)) }
            }
            None => Meaning::of(&all, context.names_of_numbers).map_err(|odd| {
                let holds = odd.at(&runs, context.key);
                let other = match odd.holds {
                    MIXED => format!("{}, or list the classes (classes=[…])", context.other),
                    _ => context.other.to_owned(),
                };
                SourceError::data(refusal(&context.what, &holds, context.field, &other))
            })?,
        };
        for run in &runs {
            let Column::Texts(texts, of) = &run.column else { continue };
            let labels: Vec<Result<i64, String>> = texts.iter().map(|text| (meaning.label)(text)).collect();
            let mut bad = run.bad.iter().peekable();
            for (row, &text) in of.iter().enumerate() {
                match bad.next_if(|bad| bad.0 == row as u64) {
                    Some((_, why)) => self.bad(why),
                    None => self.push(&labels[text as usize]),
                }
            }
        }
        Ok(meaning.classes)
    }

    /// Refuses labels most of which are of no use.
    fn check(&self, context: &Context<'_>) -> Result<(), SourceError> {
        let (bad, total) = (self.bad.len(), self.values.len());
        match self.bad.iter().next() {
            Some((row, why)) if bad * 2 > total => Err(SourceError::data(format!(
                "{} gives no usable label to {} of {} records; the first: {}: {}. Use the records without labels (label=None), \
                 or {}",
                context.what,
                grouped(bad as u64),
                grouped(total as u64),
                (context.key)(row),
                why,
                context.other
            ))),
            _ => Ok(()),
        }
    }
}

/// The same labels as texts.
fn as_texts(run: Run) -> Run {
    if matches!(run.column, Column::Texts(..)) {
        return run;
    }
    let mut collector = Collector { run, known: HashMap::new() };
    // Numbers that are all different are more than classes; they are counted with the other texts.
    match collector.make_texts() {
        Ok(()) => collector.finish(),
        Err(_) => {
            Run { column: Column::Texts(vec![String::new(); MAX_CLASSES + 1], Vec::new()), ..Run::default() }
        }
    }
}

/// What texts mean as labels.
struct Meaning<'classes> {
    classes: Vec<String>,
    label: Box<Numbering<'classes>>,
}

/// The label of a text, or why it is none.
type Numbering<'classes> = dyn Fn(&str) -> Result<i64, String> + 'classes;

/// A text that does not go with the others, and what all of them are then.
struct Odd {
    text: String,
    holds: &'static str,
}

impl Odd {
    /// Says where the text is first.
    fn at(&self, runs: &[Run], key: &dyn Fn(u64) -> String) -> String {
        let mut first = 0;
        for run in runs {
            if let Column::Texts(texts, of) = &run.column
                && let Some(number) = texts.iter().position(|text| *text == self.text)
                && let Some(row) = of.iter().position(|&text| text as usize == number)
            {
                let key = key(first + row as u64);
                return format!("{} ({key} is {:?})", self.holds, printed(&self.text));
            }
            first += run.len() as u64;
        }
        format!("{} ({:?})", self.holds, printed(&self.text))
    }
}

impl Meaning<'_> {
    fn of(all: &BTreeSet<String>, names_of_numbers: bool) -> Result<Self, Odd> {
        let is_number = |text: &&String| text.parse::<f64>().is_ok_and(|number| !number.is_nan());
        let numbers: Vec<&String> = all.iter().filter(is_number).collect();
        let other: Vec<&String> = all.iter().filter(|text| !is_number(text) && !is_gap(text)).collect();
        let is_code =
            |text: &&String| text.len() == numbers[0].len() && text.bytes().all(|b| b.is_ascii_digit());
        let is_padded = |text: &&String| text.len() > 1 && text.starts_with('0');
        if numbers.len() < other.len().max(1)
            || (other.is_empty() && numbers.iter().all(is_code) && numbers.iter().any(is_padded))
        {
            return match other.first().and_then(|text| is_odd(text)) {
                Some(holds) if other.iter().all(|text| is_odd(text) == Some(holds)) => {
                    Err(Odd { text: other[0].clone(), holds })
                }
                _ => Ok(Self::names(all.iter().cloned().collect())),
            };
        }
        if let Some(text) = other.first() {
            return Err(Odd { text: (*text).clone(), holds: MIXED });
        }
        let value = |text: &str| match text.parse::<i64>() {
            Ok(number) => Raw::Number(number),
            Err(_) => text.parse().map_or(Raw::Missing, Raw::float),
        };
        let is_whole = |text: &&&String| matches!(value(text), Raw::Number(_));
        if let Some(text) = numbers.iter().find(|text| !is_whole(text)) {
            return Err(Odd { text: (*text).clone(), holds: "floats" });
        }
        let label = move |text: &str| match value(text) {
            Raw::Number(number) => Ok(number),
            _ => Err(MISSING.to_owned()),
        };
        let count = numbers.len() as u64;
        let from_zero = (0..count).all(|number| all.contains(&number.to_string()));
        let classes = if names_of_numbers && from_zero {
            (0..count).map(|number| number.to_string()).collect()
        } else {
            Vec::new()
        };
        Ok(Self { classes, label: Box::new(label) })
    }

    fn names(classes: Vec<String>) -> Self {
        let mut folded: Vec<String> = classes.iter().map(|name| name.to_lowercase()).collect();
        folded.sort_unstable();
        if let Some(pair) = folded.windows(2).find(|pair| pair[0] == pair[1]) {
            let alike: Vec<&String> = classes.iter().filter(|name| name.to_lowercase() == pair[0]).collect();
            tracing::warn!(
                "the classes {alike:?} differ only in upper and lower case; they are different labels"
            );
        }
        let places: HashMap<String, i64> =
            classes.iter().enumerate().map(|(label, name)| (name.clone(), label as i64)).collect();
        Self { classes, label: Box::new(move |text| Ok(places[text])) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn run(raw: &[Raw<'_>]) -> Result<Run, String> {
        let mut collector = Collector::default();
        raw.iter().try_for_each(|raw| collector.push(raw.clone()))?;
        Ok(collector.finish())
    }

    fn joined(runs: &[&[Raw<'_>]], classes: Option<&[&str]>) -> Result<Labels, String> {
        let runs: Vec<Run> = runs.iter().map(|raw| run(raw)).collect::<Result<_, _>>()?;
        let classes: Option<Vec<String>> =
            classes.map(|classes| classes.iter().map(|&class| class.to_owned()).collect());
        let context = Context {
            what: "the column \"label\" of x.csv".into(),
            field: Some("label"),
            other: "name another column (label=\"…\")",
            classes: classes.as_deref(),
            names: None,
            names_of_numbers: true,
            key: &|row| format!("row {row}"),
        };
        Labels::join(runs, &context).map_err(|error| error.to_string())
    }

    fn texts(texts: &[&str]) -> Result<(Vec<i64>, Vec<String>), String> {
        let raw: Vec<Raw<'_>> = texts.iter().map(|text| Raw::text(text)).collect();
        let labels = joined(&[&raw], None)?;
        Ok(((0..texts.len() as u64).map(|row| labels.get(row)).collect(), labels.classes))
    }

    #[test]
    fn a_label_is_found_by_any_usual_name_in_any_case() {
        let find =
            |names: &[&str]| candidates(names.iter().copied(), &[]).first().map(|&name| name.to_owned());
        for name in ["label", "Labels", "TARGET", "y", "targets", "category", "fine_label", "class_name"] {
            assert_eq!(find(&["path", name]).as_deref(), Some(name));
        }
        assert_eq!(find(&["Label", "label", "y"]).as_deref(), Some("label"), "the same case goes before");
        assert_eq!(find(&["image", "price"]), None);
        assert_eq!(candidates(["labels", "y"].into_iter(), &OF_ARRAYS), ["y", "labels"]);
    }

    #[test]
    fn a_label_may_be_called_as_its_image_is() {
        let given = ["x_train", "y_train", "x_test", "y_test", "train-labels", "Y", "train_label_names"];
        for (image, expected) in [
            ("x_train", &["y_train"][..]),
            ("X_test", &["y_test"]),
            ("train-images", &["train-labels"]),
            ("x", &[]),
            ("train", &[]),
            ("x_train_x", &[]),
            ("_é_x_", &[]),
        ] {
            assert_eq!(beside(image, given.into_iter()), expected, "{image}");
        }
    }

    #[test]
    fn texts_are_classes_in_order_of_their_names() {
        assert_eq!(
            texts(&["dog", " cat\r\n", "dog"]).unwrap(),
            (vec![1, 0, 1], vec!["cat".into(), "dog".into()])
        );
        let (labels, classes) = texts(&["911", "a4", "civic"]).unwrap();
        assert_eq!((labels, classes.len()), (vec![0, 1, 2], 3), "a number among names is a name");
    }

    #[test]
    fn texts_that_are_numbers_are_these_numbers() {
        assert_eq!(texts(&["0", "2", "10", "1"]).unwrap(), (vec![0, 2, 10, 1], vec![]));
        assert_eq!(texts(&["1", "0"]).unwrap(), (vec![1, 0], vec!["0".into(), "1".into()]));
        assert_eq!(texts(&["2.0", "10.0"]).unwrap(), (vec![2, 10], vec![]));
        assert_eq!(texts(&["001", "010", "100"]).unwrap().0, [0, 1, 2], "codes are names");
    }

    #[test]
    fn one_odd_cell_gives_no_other_its_meaning() {
        for gap in ["NA", "nan", "null", "None", "", "  ", "N/A"] {
            let raw: Vec<Raw<'_>> = ["0", "2", gap, "10"].iter().map(|text| Raw::text(text)).collect();
            let labels = joined(&[&raw], None).unwrap();
            assert_eq!([0, 1, 3].map(|row| labels.get(row)), [0, 2, 10], "{gap}");
            assert_eq!(labels.verdict(2).as_deref(), Some(MISSING), "{gap}");
            assert_eq!(labels.verdict(1), None);
        }
        let error = texts(&["0", "2", "unknown", "10"]).unwrap_err();
        assert!(error.contains("numbers and texts (row 2 is \"unknown\")"), "{error}");
        let error = texts(&["0", "2", "2.5"]).unwrap_err();
        assert!(
            error.contains("floats (row 2 is \"2.5\")") && error.contains("fields=[\"label\"]"),
            "{error}"
        );
    }

    #[test]
    fn lists_and_dates_that_are_written_as_texts_are_no_classes() {
        assert!(texts(&["[1, 2]", "[3]"]).unwrap_err().contains("holds lists (row 0 is \"[1, 2]\")"));
        assert!(texts(&["2020-01-02", "2020-01-03 10:00", ""]).unwrap_err().contains("holds dates"));
        assert_eq!(texts(&["[1]", "dog", "2020-01-02x", "2020"]).unwrap().1.len(), 4);
    }

    #[test]
    fn whole_numbers_may_be_stored_as_floats_and_fractions_are_refused() {
        let floats: Vec<Raw<'_>> = [3.0, f64::NAN, -0.0].map(Raw::float).into();
        let labels = joined(&[&floats], None).unwrap();
        assert_eq!((labels.get(0), labels.get(2), labels.verdict(1)), (3, 0, Some(MISSING.into())));
        for fraction in [0.5, f64::INFINITY, 1e300] {
            assert!(run(&[Raw::Number(1), Raw::float(fraction)]).unwrap_err().contains("such as"));
        }
    }

    #[test]
    fn classes_that_are_given_decide_and_what_is_not_among_them_is_bad() {
        let raw = [Raw::text("dog"), Raw::text("emu"), Raw::text("cat"), Raw::text("1")];
        let labels = joined(&[&raw], Some(&["dog", "cat"])).unwrap();
        assert_eq!([0, 2, 3].map(|row| labels.get(row)), [0, 1, 1]);
        let why = labels.verdict(1).unwrap();
        assert!(why.contains("\"emu\"") && why.contains("2 classes: dog, cat"), "{why}");
        let labels = joined(&[&[1, 0, 7].map(Raw::Number)], Some(&["a", "b"])).unwrap();
        assert!(labels.verdict(2).unwrap().contains("7, but there are 2 classes"));
        let error = joined(&[&[7, 8, 1].map(Raw::Number)], Some(&["a", "b"])).unwrap_err();
        assert!(error.contains("2 of 3 records") && error.contains("row 0"), "{error}");
        assert!(joined(&[], Some(&["a", "a"])).unwrap_err().contains("twice"));
    }

    #[test]
    fn runs_of_numbers_and_of_texts_go_together() {
        let numbers = [Raw::Number(3), Raw::Missing];
        let labels = joined(&[&numbers, &[Raw::text("a"), Raw::text("b")]], None).unwrap();
        assert_eq!((labels.classes.join(" "), labels.get(0), labels.get(3)), ("3 a b".into(), 0, 2));
        assert_eq!(labels.verdict(1).as_deref(), Some(MISSING));
    }

    #[test]
    fn rows_without_labels_change_a_fingerprint_and_nothing_else_does() {
        let hash = |raw: &[Raw<'_>]| {
            let mut hash = Xxh3::new();
            joined(&[raw], None).unwrap().hash(&mut hash);
            hash.digest128()
        };
        let mut plain = Xxh3::new();
        [1i64, 0].iter().for_each(|label| plain.update(&label.to_le_bytes()));
        assert_eq!(hash(&[Raw::Number(1), Raw::Number(0)]), plain.digest128());
        assert_ne!(hash(&[Raw::Number(1), Raw::Missing]), plain.digest128());
    }

    proptest! {
        #[test]
        fn where_runs_are_cut_makes_no_difference(
            cells in prop::collection::vec(prop_oneof!["[a-c]", "[0-9]{1,2}", Just(String::new())], 0..30), cut in 0usize..30,
        ) {
            let raw: Vec<Raw<'_>> = cells.iter().map(|cell| Raw::text(cell)).collect();
            let cut = cut.min(raw.len());
            let one = joined(&[&raw], None);
            let two = joined(&[&raw[..cut], &raw[cut..]], None);
            match (one, two) {
                (Ok(one), Ok(two)) => {
                    prop_assert_eq!(&one.classes, &two.classes);
                    for row in 0..raw.len() as u64 {
                        prop_assert_eq!(one.get(row), two.get(row));
                        prop_assert_eq!(one.verdict(row), two.verdict(row));
                    }
                }
                (one, two) => prop_assert_eq!(one.err(), two.err()),
            }
        }
    }
}
