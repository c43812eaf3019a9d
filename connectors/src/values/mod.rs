//! The bytes of a named part, made of a value as it is stored: JSON, a row of an Arrow column, or a whole file.
//!
//! | wanted | JSON | Arrow |
//! |---|---|---|
//! | text, bytes | a text, its escapes undone | texts and bytes as they are |
//! | JSON | the value as it is written | texts as they are, for they hold JSON; other values written as JSON |
//! | ragged numbers | a list of them, or of lists of one shape | lists of them; a text that is such a list in JSON |
//!
//! A null is no value: the record lacks the part. What cannot be what was asked for is a sentence without a subject
//! ("is a number; a text is expected"), for whoever knows the part's name.

pub(crate) mod arrow;
pub(crate) mod file;
pub(crate) mod json;
pub(crate) mod npy;
pub(crate) mod scalar;
pub(crate) mod yolo;

use std::borrow::Cow;

/// A part's bytes; `None` where the record has no such value.
pub(crate) type Value<'stored> = Option<Cow<'stored, [u8]>>;

/// What is left of a path once its first name is one of `names`: a name may have dots in it, and the longest is meant.
pub(crate) fn step(path: &str, has: impl Fn(&str) -> bool) -> Option<(&str, &str)> {
    if has(path) {
        return Some((path, ""));
    }
    path.rmatch_indices('.').map(|(at, _)| (&path[..at], &path[at + 1..])).find(|(name, _)| has(name))
}

/// What is wrong with the part of this name.
pub(crate) fn fault(name: &str, why: &str) -> String {
    format!("part {name:?}: it {why}")
}
