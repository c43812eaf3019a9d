//! The two errors of this crate: a wrong configuration, and a sample that cannot be used.

use std::fmt;

/// Whose fault a refused sample is; a pure function of the sample's bytes and of the chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SampleErrorKind {
    /// The bytes are not what their format says: truncated, corrupt, or no image at all.
    Malformed,
    /// A sound file of a kind this crate does not decode, or too small for a transform of the chain.
    Unsupported,
    /// Decoding it would take more memory or work than [`Limits`](crate::Limits) allows.
    TooLarge,
}

impl fmt::Display for SampleErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            SampleErrorKind::Malformed => "malformed",
            SampleErrorKind::Unsupported => "unsupported",
            SampleErrorKind::TooLarge => "too large",
        })
    }
}

/// A sample that cannot become a row. It says what is wrong with the bytes; the caller knows their path and adds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SampleError {
    kind: SampleErrorKind,
    message: String,
}

impl SampleError {
    pub(crate) fn malformed(message: impl Into<String>) -> Self {
        SampleError { kind: SampleErrorKind::Malformed, message: message.into() }
    }

    pub(crate) fn unsupported(message: impl Into<String>) -> Self {
        SampleError { kind: SampleErrorKind::Unsupported, message: message.into() }
    }

    pub(crate) fn too_large(message: impl Into<String>) -> Self {
        SampleError { kind: SampleErrorKind::TooLarge, message: message.into() }
    }

    /// Whose fault it is.
    pub fn kind(&self) -> SampleErrorKind {
        self.kind
    }

    /// What is wrong, without the kind.
    pub fn message(&self) -> &str {
        &self.message
    }
}

impl fmt::Display for SampleError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.kind, self.message)
    }
}

impl std::error::Error for SampleError {}

/// A transform chain or output that cannot be run. The text names the transform by position and name, the argument,
/// and what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(pub(crate) String);
