//! Reads a condition: signs first, then one function for each rule of the grammar.

use super::{Operand, Operator, Test};
use crate::values::scalar::Scalar;

/// A text may not be longer than this.
const MAX_TEXT: usize = 1 << 20;

/// Conditions within each other.
const MAX_DEPTH: usize = 100;

/// Words that are no names.
const WORDS: [&str; 9] = ["and", "or", "not", "in", "is", "null", "true", "false", "none"];

/// What people write out of habit, and what is meant here.
const HABITS: [(&str, &str); 12] = [
    ("&&", "and"),
    ("||", "or"),
    ("&", "and"),
    ("|", "or"),
    ("~", "not"),
    ("<>", "!="),
    ("=~", "== or in [\u{2026}]"),
    ("=", "=="),
    ("!", "not"),
    ("+", "a number: nothing is computed here"),
    ("*", "a number: nothing is computed here"),
    ("/", "a number: nothing is computed here"),
];

#[derive(Clone, Debug, PartialEq)]
enum Sign {
    /// A name, or a word in lower case.
    Name(String),
    Word(&'static str),
    Constant(Scalar<'static>),
    Operator(Operator),
    /// `(`, `)`, `[`, `]` or `,`.
    Mark(char),
    End,
}

/// Reads a condition, and numbers its columns.
pub(super) fn parse(text: &str) -> Result<(Test, Vec<String>), String> {
    if text.trim().is_empty() {
        return Err("it is empty; write a condition like \"score > 0.3 and lang == 'en'\"".into());
    }
    if text.len() > MAX_TEXT {
        return Err(format!("it is longer than {} MiB", MAX_TEXT >> 20));
    }
    let mut parser = Parser { text, signs: signs(text)?, at: 0, depth: 0, columns: Vec::new() };
    let test = parser.any()?;
    match parser.sign() {
        Sign::End => {}
        Sign::Mark('(' | '[') => {
            return Err(parser.wrong("nothing is called here, and nothing taken out of a value"));
        }
        Sign::Mark(mark) => return Err(parser.wrong(&format!("{mark:?} has no counterpart"))),
        _ => return Err(parser.wrong("\"and\" or \"or\" is missing")),
    }
    if parser.columns.is_empty() {
        return Err("it names no column".into());
    }
    Ok((test, parser.columns))
}

/// Whether a name needs no quotes.
pub(super) fn is_bare(name: &str) -> bool {
    let first = |c: char| c.is_alphabetic() || c == '_';
    name.chars().next().is_some_and(first)
        && name.chars().all(is_of_name)
        && !WORDS.iter().any(|word| word.eq_ignore_ascii_case(name))
}

fn is_of_name(c: char) -> bool {
    c.is_alphanumeric() || "_.:".contains(c)
}

/// Where something is wrong, in words.
fn place(text: &str, at: usize) -> String {
    let rest = text[at..].trim();
    if rest.is_empty() {
        return "at its end".into();
    }
    let shown: String = rest.chars().take(20).collect();
    let more = if shown.len() < rest.len() { "\u{2026}" } else { "" };
    format!("at \"{shown}{more}\"")
}

/// The signs of a text, each with its place.
fn signs(text: &str) -> Result<Vec<(Sign, usize)>, String> {
    let mut signs = Vec::new();
    let mut at = 0;
    while let Some(first) = text[at..].chars().next() {
        let rest = &text[at..];
        let refuse = |why: String| Err(format!("{why}, {}", place(text, at)));
        if first.is_whitespace() {
            at += first.len_utf8();
            continue;
        }
        let (sign, len) = if first.is_alphabetic() || first == '_' {
            let len = rest.find(|c| !is_of_name(c)).unwrap_or(rest.len());
            (name(&rest[..len]), len)
        } else if first == '`' {
            let Some(len) = rest[1..].find('`').filter(|len| *len > 0) else {
                return refuse("a name in back quotes does not end".into());
            };
            (Sign::Name(rest[1..=len].to_owned()), len + 2)
        } else if first == '\'' || first == '"' {
            match quoted(rest) {
                Ok((text, len)) => (Sign::Constant(Scalar::Text(text.into())), len),
                Err(why) => return refuse(why),
            }
        } else if "()[],".contains(first) {
            (Sign::Mark(first), 1)
        } else if let Some(len) = number(rest) {
            let digits = rest[..len].replace('_', "");
            match Scalar::number(digits.strip_prefix('+').unwrap_or(&digits)) {
                Some(Scalar::Real(real)) if !real.is_finite() => {
                    return refuse("a number is too large".into());
                }
                Some(number) => (Sign::Constant(number), len),
                None => return refuse("this is no number".into()),
            }
        } else if let Some((operator, sign)) =
            Operator::ALL.into_iter().find(|(_, sign)| rest.starts_with(sign) && !rest.starts_with("<>"))
        {
            (Sign::Operator(operator), sign.len())
        } else if let Some((habit, meant)) = HABITS.into_iter().find(|(habit, _)| rest.starts_with(habit)) {
            return refuse(format!("{habit:?} is not known; write {meant}"));
        } else {
            return refuse(format!("{first:?} is not known"));
        };
        signs.push((sign, at));
        at += len;
    }
    signs.push((Sign::End, text.len()));
    Ok(signs)
}

/// A name, or one of the words.
fn name(text: &str) -> Sign {
    let word = WORDS.into_iter().find(|word| word.eq_ignore_ascii_case(text));
    match word {
        Some("true") => Sign::Constant(Scalar::Truth(true)),
        Some("false") => Sign::Constant(Scalar::Truth(false)),
        // A column may be called so; only Python's own spelling of it is the word.
        Some("none") if text != "None" => Sign::Name(text.to_owned()),
        Some("none") => Sign::Word("null"),
        Some(word) => Sign::Word(word),
        None => Sign::Name(text.to_owned()),
    }
}

/// A text in quotes, and how long it is with them.
fn quoted(rest: &str) -> Result<(String, usize), String> {
    let mut chars = rest.char_indices();
    let (_, quote) = chars.next().expect("it begins with a quote");
    let mut text = String::new();
    while let Some((at, c)) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some((_, c @ ('\\' | '\'' | '"'))) => text.push(c),
                Some((_, 'n')) => text.push('\n'),
                Some((_, 't')) => text.push('\t'),
                _ => return Err("a backslash goes before a quote, a backslash, n or t".into()),
            },
            _ if c == quote => return Ok((text, at + 1)),
            _ => text.push(c),
        }
    }
    Err("a text does not end".into())
}

/// How long the number is that a text begins with, if it begins with one.
fn number(rest: &str) -> Option<usize> {
    let unsigned = rest.strip_prefix(['-', '+']).unwrap_or(rest);
    let begin = unsigned.strip_prefix('.').unwrap_or(unsigned);
    begin.chars().next().filter(char::is_ascii_digit)?;
    let mut last = ' ';
    let len = unsigned.find(|c: char| {
        let is_of_it = c.is_alphanumeric() || "._".contains(c) || "+-".contains(c) && "eE".contains(last);
        last = c;
        !is_of_it
    });
    Some(rest.len() - unsigned.len() + len.unwrap_or(unsigned.len()))
}

struct Parser<'text> {
    text: &'text str,
    signs: Vec<(Sign, usize)>,
    at: usize,
    depth: usize,
    columns: Vec<String>,
}

impl Parser<'_> {
    fn sign(&self) -> &Sign {
        &self.signs[self.at].0
    }

    /// Takes a sign if it comes next.
    fn takes(&mut self, sign: &Sign) -> bool {
        let is_next = self.sign() == sign;
        self.at += usize::from(is_next);
        is_next
    }

    fn wrong(&self, why: &str) -> String {
        format!("{why}, {}", place(self.text, self.signs[self.at].1))
    }

    fn any(&mut self) -> Result<Test, String> {
        let first = self.all()?;
        let mut tests = vec![first];
        while self.takes(&Sign::Word("or")) {
            tests.push(self.all()?);
        }
        Ok(if tests.len() == 1 { tests.remove(0) } else { Test::Any(tests) })
    }

    fn all(&mut self) -> Result<Test, String> {
        let first = self.one()?;
        let mut tests = vec![first];
        while self.takes(&Sign::Word("and")) {
            tests.push(self.one()?);
        }
        Ok(if tests.len() == 1 { tests.remove(0) } else { Test::All(tests) })
    }

    fn one(&mut self) -> Result<Test, String> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(self.wrong("conditions are nested too deep"));
        }
        let test = if self.takes(&Sign::Word("not")) {
            Test::Not(Box::new(self.one()?))
        } else if self.takes(&Sign::Mark('(')) {
            let test = self.any()?;
            if !self.takes(&Sign::Mark(')')) {
                return Err(self.wrong("a parenthesis is not closed"));
            }
            test
        } else {
            self.test()?
        };
        self.depth -= 1;
        Ok(test)
    }

    fn test(&mut self) -> Result<Test, String> {
        let value = self.value()?;
        let not = matches!(
            (self.sign(), &self.signs[(self.at + 1).min(self.signs.len() - 1)].0),
            (Sign::Word("not"), Sign::Word("in"))
        );
        self.at += usize::from(not);
        let test = match self.sign().clone() {
            Sign::Word("in") => {
                self.at += 1;
                Test::In { value, list: self.list()?, is_in: !not }
            }
            Sign::Word("is") => {
                self.at += 1;
                let is_null = !self.takes(&Sign::Word("not"));
                if !self.takes(&Sign::Word("null")) {
                    return Err(
                        self.wrong("after \"is\" comes null or not null; other values are compared with ==")
                    );
                }
                match value {
                    Operand::Column(column) => Test::Null { column, is_null },
                    Operand::Constant(value) => {
                        return Err(format!("{value} is no column that could be null"));
                    }
                }
            }
            Sign::Operator(operator) => {
                self.at += 1;
                let right = self.value()?;
                Test::Compare(value, operator, right)
            }
            _ => match value {
                Operand::Column(column) => Test::True(column),
                Operand::Constant(_) => {
                    return Err(self.wrong("a comparison (==, !=, <, <=, >, >=) is missing"));
                }
            },
        };
        if let Sign::Operator(operator) = self.sign() {
            let why = format!("comparisons in a row are not known; write a < b and b {} c", operator.sign());
            return Err(self.wrong(&why));
        }
        match &test {
            Test::Compare(Operand::Constant(_), _, Operand::Constant(_))
            | Test::In { value: Operand::Constant(_), .. } => {
                Err("a comparison names no column: names are written without quotes, or in `back quotes`"
                    .into())
            }
            _ => Ok(test),
        }
    }

    fn value(&mut self) -> Result<Operand, String> {
        let value = match self.sign().clone() {
            Sign::Name(name) => {
                let known = self.columns.iter().position(|column| *column == name);
                Operand::Column(known.unwrap_or_else(|| {
                    self.columns.push(name);
                    self.columns.len() - 1
                }))
            }
            Sign::Constant(value) => Operand::Constant(value),
            Sign::Word("null") => {
                return Err(self.wrong("nothing is equal to null; write \"is null\" or \"is not null\""));
            }
            _ => {
                return Err(self.wrong("a value is missing: a column, a number, a 'text', true or false"));
            }
        };
        self.at += 1;
        Ok(value)
    }

    fn list(&mut self) -> Result<Vec<Scalar<'static>>, String> {
        let close = match self.sign() {
            Sign::Mark('[') => ']',
            Sign::Mark('(') => ')',
            _ => return Err(self.wrong("after \"in\" comes a list like ['en', 'de']")),
        };
        self.at += 1;
        let mut list: Vec<Scalar<'static>> = Vec::new();
        while !self.takes(&Sign::Mark(close)) {
            let Sign::Constant(value) = self.sign().clone() else {
                return Err(self.wrong(match self.sign() {
                    Sign::End => "a list is not closed",
                    _ => "a list holds numbers, 'texts', true or false",
                }));
            };
            if let Some(first) = list.first().filter(|first| first.kind() != value.kind()) {
                let why = format!("a list holds {} and {}", first.kind(), value.kind());
                return Err(self.wrong(&why));
            }
            list.push(value);
            self.at += 1;
            if !self.takes(&Sign::Mark(',')) && *self.sign() != Sign::Mark(close) {
                return Err(self.wrong("a comma is missing in a list, or it is not closed"));
            }
        }
        if list.is_empty() {
            return Err(self.wrong("a list is empty, so nothing is in it"));
        }
        Ok(list)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::Condition;

    #[test]
    fn what_is_not_understood_is_refused_with_its_place_and_what_to_write() {
        for (text, expected) in [
            ("", "it is empty"),
            ("  ", "it is empty"),
            ("score >", "a value is missing: a column, a number, a 'text', true or false, at its end"),
            ("score > > 3", "a value is missing"),
            ("> 3", "a value is missing"),
            ("score = 3", "\"=\" is not known; write ==, at \"= 3\""),
            ("score <> 3", "write !="),
            ("a == 1 & b == 2", "\"&\" is not known; write and"),
            ("a == 1 && b == 2", "write and"),
            ("a == 1 | b == 2", "write or"),
            ("!a", "write not"),
            ("~a", "write not"),
            ("a == 1 b == 2", "\"and\" or \"or\" is missing, at \"b == 2\""),
            ("(a == 1", "a parenthesis is not closed, at its end"),
            ("a == 1)", "')' has no counterpart"),
            ("a == 'x", "a text does not end, at \"'x\""),
            ("`a == 1", "a name in back quotes does not end"),
            ("a == null", "write \"is null\" or \"is not null\", at \"null\""),
            ("a == None", "write \"is null\""),
            ("a is 3", "after \"is\" comes null"),
            ("3 is null", "no column"),
            ("a in []", "a list is empty"),
            ("a in 'en'", "after \"in\" comes a list"),
            ("a in [1, 'x']", "a list holds a number and a text"),
            ("a in [b]", "a list holds numbers"),
            ("a in [1 2]", "a comma is missing"),
            ("a in [1", "a comma is missing in a list, or it is not closed, at its end"),
            ("1 < a < 3", "comparisons in a row are not known; write a < b and b < c, at \"< 3\""),
            ("'a' == 'b'", "names no column"),
            ("1 == 1", "names no column"),
            ("a == 1 and", "a value is missing"),
            ("and a == 1", "a value is missing"),
            ("a + 1 > 3", "nothing is computed"),
            ("a == 1e999", "too large"),
            ("a == 1x", "no number"),
            ("a == 'x\\d'", "a backslash goes before"),
            ("a == {1}", "'{' is not known"),
            ("len(a) > 3", "nothing is called here"),
            ("a[0] > 3", "nothing taken out of a value"),
            ("__import__('os').system('ls')", "'.' is not known"),
            ("exit()", "nothing is called here"),
            ("a like 'x'", "\"and\" or \"or\" is missing"),
            ("true", "a comparison (==, !=, <, <=, >, >=) is missing"),
        ] {
            let error = Condition::parse(text).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
        let deep = format!("{}a{}", "(".repeat(5000), ")".repeat(5000));
        assert!(Condition::parse(&deep).unwrap_err().contains("nested too deep"));
        assert!(Condition::parse(&"not ".repeat(5000)).unwrap_err().contains("nested too deep"));
    }

    proptest! {
        #[test]
        fn any_text_is_a_condition_or_an_error(text in "[a-c0-9 .'\"`()\\[\\],<>=!&|~+*/\\\\-]{0,24}|\\PC{0,12}") {
            if let Ok(condition) = Condition::parse(&text) {
                let form = condition.to_string();
                prop_assert_eq!(Condition::parse(&form).unwrap().to_string(), form);
            }
        }
    }
}
