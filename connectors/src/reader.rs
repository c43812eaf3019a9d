//! What fetches the records of a source.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{Buffer, ReadError, SourceError};

/// How a reader fetches bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ReaderConfig {
    /// Which kernel interface to use. Sources that read no files ignore it.
    pub backend: Backend,
    /// Reads in flight at once, 1 to 1024. More hides more latency of a cold disk; warm files need few.
    pub depth: u32,
}

impl Default for ReaderConfig {
    fn default() -> Self {
        Self { backend: Backend::Auto, depth: 32 }
    }
}

impl ReaderConfig {
    /// Refuses a depth that is zero or that no kernel queue would hold.
    ///
    /// # Errors
    /// A sentence with the key.
    pub fn check(&self) -> Result<(), SourceError> {
        if (1..=1024).contains(&self.depth) {
            return Ok(());
        }
        Err(SourceError::config(format!("depth = {} is not between 1 and 1024 (default 32)", self.depth)))
    }
}

/// The kernel interface of a disk reader.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Backend {
    /// io_uring, or threads where the kernel refuses it (said once in the log).
    Auto,
    /// io_uring or an error.
    IoUring,
    /// A pool of threads with plain system calls.
    Threads,
}

/// What happens when a request has ended.
pub type Done = Box<dyn FnOnce(Result<Record, ReadError>) + Send>;

/// One record to fetch.
pub struct ReadRequest {
    /// Index of the record in the source.
    pub index: u64,
    /// Called once, on a thread of the reader, as soon as the request has ended; so it should hand over and return. It
    /// may submit more. A panic in it is logged and goes no further.
    pub done: Done,
}

impl fmt::Debug for ReadRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReadRequest").field("index", &self.index).finish_non_exhaustive()
    }
}

/// One sample as stored.
#[derive(Debug)]
pub struct Record {
    /// Index of the record in the source.
    pub index: u64,
    /// The image, the parts and the numbers; [`Schema::cut`](crate::Schema::cut) takes them apart. The memory goes
    /// back to the reader's pool when this is dropped.
    pub bytes: Buffer,
}

/// Fetches records in the background.
///
/// Dropping a reader cancels what is outstanding and joins its threads: reads in flight are awaited or cancelled,
/// within milliseconds unless the kernel itself hangs on a dead disk, and requests not done are dropped uncalled.
pub trait Reader: Send + Sync {
    /// Asks for records, in this order of urgency. Returns at once; the caller bounds what is outstanding.
    fn submit(&self, requests: Vec<ReadRequest>);

    /// How many records beyond those submitted [`expect`](Self::expect) is of use for; 0, the default, for readers that
    /// fetch records one by one.
    fn horizon(&self) -> u64 {
        0
    }

    /// Says what will be submitted soon, in this order: a reader that decodes blocks may begin with theirs. A hint that
    /// binds nobody. Returns at once.
    fn expect(&self, indices: &[u64]) {
        let _ = indices;
    }

    /// What the reader has done so far.
    fn stats(&self) -> ReadStats;
}

/// What a reader has done since it was started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct ReadStats {
    /// `"io_uring"`, `"threads"`, `"remote"` or `"synthetic"`.
    pub backend: &'static str,
    /// Times the kernel was entered to hand over work: `io_uring_enter` calls, or one per read with threads.
    pub submissions: u64,
    /// Records read.
    pub reads: u64,
    /// Bytes of these records.
    pub bytes: u64,
    /// Nanoseconds in which at least one request was in hand. Close to the elapsed time, and the disk is the limit.
    pub busy_ns: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_backends_have_the_names_that_users_write() {
        for (name, backend) in
            [("auto", Backend::Auto), ("io_uring", Backend::IoUring), ("threads", Backend::Threads)]
        {
            assert_eq!(serde_json::to_string(&backend).unwrap(), format!("\"{name}\""));
            assert_eq!(serde_json::from_str::<Backend>(&format!("\"{name}\"")).unwrap(), backend);
        }
    }
}
