//! What goes wrong with sources and reads, in words a user can act on.

use std::fmt;
use std::io;
use std::path::Path;

use crate::names::{missing, printable, shown};

/// A source cannot be opened or read at all: the configuration or the environment is wrong.
///
/// The text names the folder or the key and says what to do.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub struct SourceError {
    kind: SourceErrorKind,
    message: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SourceErrorKind {
    Config,
    Data,
    Backend,
    Cancelled,
}

impl SourceError {
    /// Names of files in it are shown so that no terminal or log obeys them.
    fn new(kind: SourceErrorKind, message: &str) -> Self {
        Self { kind, message: printable(message).into_owned() }
    }

    /// A value in the configuration makes no sense.
    pub fn config(message: String) -> Self {
        Self::new(SourceErrorKind::Config, &message)
    }

    /// The data is missing, unreadable, or not what the configuration says.
    pub fn data(message: String) -> Self {
        Self::new(SourceErrorKind::Data, &message)
    }

    pub(crate) fn backend(message: String) -> Self {
        Self::new(SourceErrorKind::Backend, &message)
    }

    /// Whoever asked for the source does not want it any more.
    pub(crate) fn cancelled() -> Self {
        Self { kind: SourceErrorKind::Cancelled, message: "opening the source was cancelled".into() }
    }

    /// The folder or a part of it cannot be read, for a reason the system gives.
    pub(crate) fn folder(path: &Path, error: &io::Error) -> Self {
        let folder = shown(path);
        Self::data(match error.kind() {
            io::ErrorKind::NotFound => missing(path),
            io::ErrorKind::NotADirectory => {
                format!("{folder} is not a directory; give the folder that holds the class folders")
            }
            io::ErrorKind::PermissionDenied => {
                format!(
                    "folder {folder} cannot be read ({error}); allow this user to read and enter it, or move it away"
                )
            }
            _ => format!("folder {folder} cannot be read: {error}"),
        })
    }

    /// The same with more to say.
    pub(crate) fn with(self, more: &str) -> Self {
        Self::new(self.kind, &format!("{}{more}", self.message))
    }

    /// A value in the configuration makes no sense.
    pub fn is_config(&self) -> bool {
        self.kind == SourceErrorKind::Config
    }

    /// The data is missing, unreadable, or not what the configuration says.
    pub fn is_data(&self) -> bool {
        self.kind == SourceErrorKind::Data
    }

    /// The reading backend asked for is not available here.
    pub fn is_backend(&self) -> bool {
        self.kind == SourceErrorKind::Backend
    }

    /// Opening was cancelled ([`crate::Opening::cancel`]); nothing is wrong with the source.
    pub fn is_cancelled(&self) -> bool {
        self.kind == SourceErrorKind::Cancelled
    }
}

/// A record could not be fetched, after the retries that could have helped.
///
/// The text names the record's key (and, through the root in the source's configuration, the file).
#[derive(Clone, Debug, thiserror::Error)]
#[error("{}: {}", printable(key), printable(detail))]
pub struct ReadError {
    key: String,
    kind: ReadErrorKind,
    detail: String,
    transient: bool,
}

/// What kind of failure a read met.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ReadErrorKind {
    /// The file is not there any more.
    Gone,
    /// The file is there but has another size than when the source was opened.
    Changed,
    /// The system could not read it.
    Io,
    /// The bytes are there and hold no such record: a null, a wrong length, a damaged page. A verdict on bytes, the
    /// same at every attempt.
    Bad,
}

impl fmt::Display for ReadErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Gone => "gone",
            Self::Changed => "changed",
            Self::Io => "io",
            Self::Bad => "bad",
        })
    }
}

impl ReadError {
    pub(crate) fn gone(key: String, path: &Path) -> Self {
        let detail = format!(
            "{} was listed when the source was opened and is gone now; keep the data set unchanged while it is in use, or \
             start again",
            shown(path)
        );
        Self { key, kind: ReadErrorKind::Gone, detail, transient: false }
    }

    pub(crate) fn changed(key: String, path: &Path, expected: u64, found: &str) -> Self {
        let detail = format!(
            "{} has changed since the source was opened: {expected} bytes were expected, {found} found; keep the data set \
             unchanged while it is in use, or start again",
            shown(path)
        );
        Self { key, kind: ReadErrorKind::Changed, detail, transient: false }
    }

    /// As [`changed`](Self::changed), found out by content instead of length.
    pub(crate) fn replaced(key: String, detail: String) -> Self {
        Self { key, kind: ReadErrorKind::Changed, detail, transient: false }
    }

    pub(crate) fn io(key: String, detail: String, transient: bool) -> Self {
        Self { key, kind: ReadErrorKind::Io, detail, transient }
    }

    /// What became of a remote read, if the error is of one: it has been retried, and knows whether the object is gone
    /// or has changed.
    pub(crate) fn of_remote(key: &str, error: &io::Error) -> Option<Self> {
        let fault = error.get_ref()?.downcast_ref::<Fault>()?;
        Some(Self::remote(key.to_owned(), fault.clone()))
    }

    /// What became of a remote read.
    pub(crate) fn remote(key: String, fault: Fault) -> Self {
        Self { key, kind: fault.kind, detail: fault.detail, transient: fault.transient }
    }

    /// The record itself is bad, for a reason that every attempt would find again.
    pub(crate) fn bad(key: String, detail: String) -> Self {
        Self { key, kind: ReadErrorKind::Bad, detail, transient: false }
    }

    /// What is wrong, without the key.
    pub fn detail(&self) -> &str {
        &self.detail
    }

    /// The record's key.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// What kind of failure it was.
    pub fn kind(&self) -> ReadErrorKind {
        self.kind
    }

    /// Whether the cause may pass (a disk error, too many open files). The reader has already retried; the same request
    /// may succeed later, without any change to the data.
    pub fn is_transient(&self) -> bool {
        self.transient
    }
}

/// Why bytes did not come, as whoever asked for them is told.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{detail}")]
pub(crate) struct Fault {
    pub kind: ReadErrorKind,
    pub detail: String,
    pub transient: bool,
}

impl Fault {
    pub(crate) fn io(detail: String, transient: bool) -> Self {
        Self { kind: ReadErrorKind::Io, detail, transient }
    }
}

impl From<Fault> for SourceError {
    fn from(fault: Fault) -> Self {
        SourceError::data(fault.detail)
    }
}

impl From<Fault> for std::io::Error {
    fn from(fault: Fault) -> Self {
        let kind = match fault.kind {
            ReadErrorKind::Gone => std::io::ErrorKind::NotFound,
            ReadErrorKind::Changed => std::io::ErrorKind::StaleNetworkFileHandle,
            ReadErrorKind::Io | ReadErrorKind::Bad => std::io::ErrorKind::Other,
        };
        Self::new(kind, fault)
    }
}
