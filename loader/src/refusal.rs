//! Why something is refused, in the words that the client will read.

use fuelrail_connectors::{SourceError, printable};

use crate::protocol::ErrorKind;

/// Why something could not be started or continued, as the client will see it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// Whose fault.
    pub kind: ErrorKind,
    /// What and what to do.
    pub message: String,
}

impl Refusal {
    /// A refusal for the reason given. Names of files in it are shown so that no terminal or log obeys them.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: printable(&message.into()).into_owned() }
    }

    /// Why a source could not be opened.
    pub fn of_source(error: SourceError) -> Self {
        let kind = if error.is_config() { ErrorKind::Config } else { ErrorKind::Source };
        Self::new(kind, error.to_string())
    }
}
