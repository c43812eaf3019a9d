//! What opening a source made of its data, said once in one line of the log.
//!
//! Whatever is found out by name or content instead of being told (which column is the image, where labels are, which
//! delimiter a file has) is noted here by whoever finds it out, so that a guess is never silent:
//!
//! ```text
//!  list.csv: 1,200 records; image = column "path" (paths), label = column "label" (10 classes: cat, dog, …), delimiter ";"
//! ```

use crate::names::printable;

/// The target of these lines, so that a program can show them without the other lines of their level.
pub const RECOGNISED: &str = "fuelrail::recognised";

/// Class names that are written out.
const NAMED: usize = 3;

/// The facts about one source, in the order in which they were noted.
#[derive(Debug, Default)]
pub(crate) struct Recognised(Vec<String>);

impl Recognised {
    /// Notes a fact, such as `delimiter ";"`.
    pub fn note(&mut self, fact: impl Into<String>) {
        self.0.push(fact.into());
    }

    /// Says everything, once the source is open. `name` is how the source's errors begin.
    pub fn say(&self, name: &str, records: u64) {
        tracing::info!(target: RECOGNISED, "{}", self.line(name, records));
    }

    /// As [`say`](Self::say), of a stream, whose records nobody has counted.
    pub fn say_of_stream(&self, name: &str) {
        tracing::info!(target: RECOGNISED, "{}: a stream; {}", printed(name), self.0.join(", "));
    }

    fn line(&self, name: &str, records: u64) -> String {
        let plural = if records == 1 { "" } else { "s" };
        let counted = format!("{}: {} record{plural}", printed(name), grouped(records));
        if self.0.is_empty() { counted } else { format!("{counted}; {}", self.0.join(", ")) }
    }
}

/// `label = column "label" (10 classes: cat, dog, emu, …)`, or that there is none.
pub(crate) fn label(place: Option<&str>, names: &[String]) -> String {
    match place {
        None => "no label".into(),
        Some(place) if names.is_empty() => format!("label = {place} (whole numbers)"),
        Some(place) => format!("label = {place} ({})", classes(names)),
    }
}

/// `10 classes: cat, dog, emu, …`
pub(crate) fn classes(names: &[String]) -> String {
    let plural = if names.len() == 1 { "" } else { "es" };
    let shown = names.iter().take(NAMED).map(|name| printed(name)).collect::<Vec<_>>().join(", ");
    let more = if names.len() > NAMED { ", …" } else { "" };
    format!("{} class{plural}: {shown}{more}", grouped(names.len() as u64))
}

/// A name of the data's as one line of text.
pub(crate) fn printed(name: &str) -> String {
    printable(name).into_owned()
}

/// `1234567` as `1,234,567`.
pub(crate) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_everything_that_was_noted() {
        let mut found = Recognised::default();
        assert_eq!(found.line("a\nb.csv", 1), "a\\nb.csv: 1 record");
        found.note("image = column \"path\" (paths)");
        found.note("delimiter \";\"");
        assert_eq!(
            found.line("list.csv", 1_200_000),
            "list.csv: 1,200,000 records; image = column \"path\" (paths), delimiter \";\""
        );
    }

    #[test]
    fn classes_are_counted_and_the_first_are_named() {
        let names = |names: &[&str]| classes(&names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>());
        assert_eq!(names(&["cat"]), "1 class: cat");
        assert_eq!(names(&["a", "b", "c"]), "3 classes: a, b, c");
        assert_eq!(names(&["a", "b", "c", "d"]), "4 classes: a, b, c, …");
        assert_eq!([7, 999, 1000, 12_345_678].map(grouped), ["7", "999", "1,000", "12,345,678"]);
    }
}
