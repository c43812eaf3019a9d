//! What is wanted of a record: which member is its image, where its label is, which fields it has.

use std::fmt;

use xxhash_rust::xxh3::Xxh3;

use super::TarConfig;
use super::parts::Parts;
use crate::SourceError;
use crate::names::IMAGES;
use crate::schema::{wanted_numbers, wanted_parts, wants_image};

/// The configuration, checked. Two equal ones give the same index of the same shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Options {
    /// Endings of the member that a record is named after: its image, or where none is wanted the first of its parts.
    pub images: Vec<String>,
    /// Whether that member is delivered as the image.
    pub has_image: bool,
    /// Whether a record without such a member is named after any of its members.
    pub is_any_member: bool,
    /// `None`: not yet known, as the data has to be looked at.
    pub label: Option<Label>,
    pub fields: Vec<Wanted>,
    pub parts: Parts,
}

/// Where labels are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Label {
    None,
    /// The first record has none that could be found.
    Absent,
    /// The first folder of the member's name.
    Folder,
    /// The text of a member with this ending.
    Text(String),
    /// A place in the `json` member.
    Json(Vec<String>),
}

/// A field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    pub name: String,
    pub from: From,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum From {
    /// A number or lists of numbers in the `json` member.
    Json(Vec<String>),
    /// An array in a member with this ending.
    Npy(String),
}

impl Options {
    /// Checks a configuration.
    ///
    /// # Errors
    /// [`SourceError`] that names the key.
    pub fn new(config: &TarConfig) -> Result<Self, SourceError> {
        let ending = |key: &str, text: &str| {
            let text = text.trim().trim_start_matches('.').to_lowercase();
            if text.is_empty() || text.contains(['/', ':', ';']) {
                return Err(SourceError::config(format!(
                    "{key}: \"{text}\" is not the ending of a member; write one like \"jpg\" or \"seg.png\""
                )));
            }
            Ok(text)
        };
        let mut parts = Parts::default();
        for wanted in wanted_parts(&config.deliver) {
            parts.push(wanted, |text| ending("part", text))?;
        }
        let has_image = wants_image(&config.deliver);
        let images = match &config.image {
            None if !has_image => parts.members.concat(),
            // One that is asked for by its ending is no candidate.
            None => {
                let is_own = |image: &&str| parts.images().all(|other| other != *image);
                IMAGES.into_iter().filter(is_own).map(str::to_owned).collect()
            }
            Some(list) => {
                let endings = list.iter().flat_map(|text| text.split(';'));
                endings.map(|text| ending("image", text)).collect::<Result<Vec<_>, _>>()?
            }
        };
        if images.is_empty() && has_image {
            return Err(SourceError::config("image: name at least one ending, like [\"jpg\"]".into()));
        }
        let label = match config.label.as_deref() {
            None => None,
            Some("" | "none") => Some(Label::None),
            Some("folder") => Some(Label::Folder),
            Some(text) => Some(match text.strip_prefix("json:") {
                Some(path) => Label::Json(place("label", path)?),
                None => Label::Text(ending("label", text)?),
            }),
        };
        let mut fields = Vec::new();
        let listed = config.fields.iter().flatten().map(|text| match text.split_once('=') {
            Some((name, from)) => (Some(name.trim()), from, text.as_str()),
            None => (None, text.as_str(), text.as_str()),
        });
        let asked = wanted_numbers(&config.deliver).map(|part| (Some(part), part, part));
        for (name, from, text) in listed.chain(asked) {
            let from = match from.strip_prefix("json:") {
                Some(path) => From::Json(place("fields", path)?),
                None => {
                    let ending = ending("fields", from)?;
                    if ending != "npy" && !ending.ends_with(".npy") {
                        return Err(SourceError::config(format!(
                            "fields: \"{text}\" is neither a place in the json member (\"json:box\") nor an array \
                             (\"emb.npy\")"
                        )));
                    }
                    From::Npy(ending)
                }
            };
            let own = match &from {
                From::Json(path) => path.last().expect("a place has a part").as_str(),
                From::Npy(ending) => ending.strip_suffix(".npy").unwrap_or(ending),
            };
            fields.push(Wanted { name: name.unwrap_or(own).to_owned(), from });
        }
        if config.instead.is_none() {
            return Ok(Self { images, has_image, is_any_member: !has_image, label, fields, parts });
        }
        let mut instead = Parts::default();
        for wanted in wanted_parts(&config.instead) {
            instead.push(wanted, |text| ending("part", text))?;
        }
        Ok(Self {
            images,
            has_image: false,
            is_any_member: !has_image,
            label: Some(Label::None),
            fields: Vec::new(),
            parts: instead,
        })
    }

    /// Whether the `json` member has to be read.
    pub fn reads_json(&self) -> bool {
        matches!(self.label, Some(Label::Json(_)))
            || self.fields.iter().any(|field| matches!(field.from, From::Json(_)))
    }

    /// How many members of a record are read beside its image: its label's, its json member, its arrays.
    pub fn asked(&self) -> usize {
        let is_text = matches!(self.label, Some(Label::Text(_)));
        usize::from(is_text) + usize::from(self.reads_json()) + self.arrays().count()
    }

    /// The endings of the arrays, in the order of the fields.
    pub fn arrays(&self) -> impl Iterator<Item = &str> {
        self.fields.iter().filter_map(|field| match &field.from {
            From::Npy(ending) => Some(ending.as_str()),
            From::Json(_) => None,
        })
    }

    /// Identity of the options, for indices kept on disk.
    pub fn hash(&self) -> u128 {
        let mut hash = Xxh3::new();
        let Self { images, has_image, is_any_member, label, fields, parts } = self;
        // As it was before there were parts, so that indices of then are still of use.
        hash.update(
            format!("Options {{ images: {images:?}, label: {label:?}, fields: {fields:?} }}").as_bytes(),
        );
        if !parts.members.is_empty() || !has_image {
            hash.update(format!("{has_image} {:?}", parts.members).as_bytes());
        }
        if is_any_member == has_image {
            hash.update(b"named after its image");
        }
        hash.digest128()
    }
}

/// A place in a JSON object: keys with dots between them.
fn place(key: &str, path: &str) -> Result<Vec<String>, SourceError> {
    let parts: Vec<String> = path.split('.').map(str::to_owned).collect();
    if parts.iter().any(String::is_empty) {
        return Err(SourceError::config(format!(
            "{key}: \"json:{path}\" is not a place in a JSON object; write one like \"json:annotation.box\""
        )));
    }
    Ok(parts)
}

impl Label {
    /// Where labels are, in words; `None` where there are none.
    pub fn place(&self) -> Option<String> {
        match self {
            Self::None | Self::Absent => None,
            Self::Folder => Some("first folder of the name".into()),
            Self::Text(ending) => Some(format!("member \".{ending}\"")),
            Self::Json(path) => Some(format!("\"{}\" in member \".json\"", path.join("."))),
        }
    }
}

impl fmt::Display for From {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Json(path) => write!(f, "\"{}\" in member \".json\"", path.join(".")),
            Self::Npy(ending) => write!(f, "member \".{ending}\""),
        }
    }
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None | Self::Absent => f.write_str("none"),
            Self::Folder => f.write_str("folder"),
            Self::Text(ending) => f.write_str(ending),
            Self::Json(path) => write!(f, "json:{}", path.join(".")),
        }
    }
}
