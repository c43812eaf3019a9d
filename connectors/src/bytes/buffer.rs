//! The memory that records travel in: borrowed from a bounded pool, given back when dropped.
//!
//! Encoded images vary in size, so buffers come in classes (four per power of two, at most a quarter wasted). A class
//! is searched together with the ones up to twice as large; what does not fit is allocated. The pool bounds only *idle*
//! memory; memory in use is bounded by whoever submits reads.
//!
//! Buffers stay initialised over their whole length while they live, so that reading into one needs no unsafe code and
//! no clearing: only a fresh allocation is zeroed, once.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Deref;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// Idle memory a reader keeps for the next reads, in bytes. Part of a pipeline's budget, once per reader.
pub const POOL_BYTES: u64 = 32 << 20;

/// Bytes of one record. Reads as a slice; its memory goes back to the pool it came from when it is dropped.
pub struct Buffer {
    storage: Vec<u8>,
    start: usize,
    len: usize,
    pool: Weak<Pool>,
    /// Memory that others hold too, which then is the record; the storage is empty.
    shared: Option<Arc<[u8]>>,
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.shared {
            Some(bytes) => bytes,
            None => &self.storage[self.start..self.start + self.len],
        }
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buffer({} bytes)", self.deref().len())
    }
}

/// A buffer of its own, without a pool.
impl From<Vec<u8>> for Buffer {
    fn from(storage: Vec<u8>) -> Self {
        Self { start: 0, len: storage.len(), storage, pool: Weak::new(), shared: None }
    }
}

/// A record whose memory is shared, as with the window of a stream.
impl From<Arc<[u8]>> for Buffer {
    fn from(bytes: Arc<[u8]>) -> Self {
        Self { start: 0, len: 0, storage: Vec::new(), pool: Weak::new(), shared: Some(bytes) }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Some(pool) = self.pool.upgrade() {
            pool.give(std::mem::take(&mut self.storage));
        }
    }
}

impl Buffer {
    /// The whole storage, of which the first bytes become the record.
    pub(crate) fn storage(&mut self) -> &mut [u8] {
        &mut self.storage
    }

    /// Declares the first `len` bytes of the storage to be the record.
    pub(crate) fn set_len(&mut self, len: usize) {
        self.set_range(0, len);
    }

    /// Declares a part of the storage to be the record: what was read before it stays unseen, without a copy.
    pub(crate) fn set_range(&mut self, start: usize, len: usize) {
        let end = start.checked_add(len);
        assert!(end.is_some_and(|end| end <= self.storage.len()), "a record is not longer than its buffer");
        (self.start, self.len) = (start, len);
    }

    /// Bytes of memory the buffer holds, whatever the record's length.
    pub fn capacity(&self) -> usize {
        self.storage.len()
    }
}

/// Idle storage by size class.
pub(crate) struct Pool {
    idle: Mutex<Idle>,
    limit: u64,
}

#[derive(Default)]
struct Idle {
    classes: BTreeMap<usize, Vec<Vec<u8>>>,
    bytes: u64,
}

/// The smallest buffer, so that icons do not scatter over many classes.
const SMALLEST: usize = 16 << 10;

/// The size class that holds `len` bytes: `2^k * {1, 1.25, 1.5, 1.75}`.
fn class(len: usize) -> usize {
    if len <= SMALLEST {
        return SMALLEST;
    }
    let quarter = (1usize << (usize::BITS - 1 - (len - 1).leading_zeros())) / 4;
    len.checked_next_multiple_of(quarter).unwrap_or(len)
}

impl Pool {
    pub(crate) fn new(limit: u64) -> Arc<Self> {
        Arc::new(Self { idle: Mutex::default(), limit })
    }

    /// A buffer whose storage has at least `len` bytes (their content is left over from earlier records).
    /// `None` when the system has no memory for it.
    pub(crate) fn take(self: &Arc<Self>, len: usize) -> Option<Buffer> {
        let class = class(len);
        let idle = {
            let mut idle = self.lock();
            let found = idle.classes.range(class..=class.saturating_mul(2)).next().map(|(&found, _)| found);
            found.and_then(|found| idle.pop(found))
        };
        let storage = match idle {
            Some(storage) => storage,
            None => {
                let mut fresh = Vec::new();
                fresh.try_reserve_exact(class).ok()?;
                fresh.resize(class, 0);
                fresh
            }
        };
        Some(Buffer { storage, start: 0, len: 0, pool: Arc::downgrade(self), shared: None })
    }

    fn give(&self, storage: Vec<u8>) {
        let len = storage.len() as u64;
        if len > self.limit {
            return;
        }
        let mut evicted = Vec::new();
        let mut idle = self.lock();
        // Making room instead of refusing lets the pool follow a data set whose sizes drift.
        while idle.bytes + len > self.limit {
            let Some((&largest, _)) = idle.classes.last_key_value() else { break };
            evicted.extend(idle.pop(largest));
        }
        idle.bytes += len;
        idle.classes.entry(storage.len()).or_default().push(storage);
        drop(idle);
        // Large frees are system calls; they happen outside the lock.
        drop(evicted);
    }

    /// Bytes of idle memory.
    #[cfg(test)]
    pub(crate) fn idle_bytes(&self) -> u64 {
        self.lock().bytes
    }

    fn lock(&self) -> MutexGuard<'_, Idle> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Idle {
    fn pop(&mut self, class: usize) -> Option<Vec<u8>> {
        let list = self.classes.get_mut(&class)?;
        let storage = list.pop();
        if list.is_empty() {
            self.classes.remove(&class);
        }
        let storage = storage?;
        self.bytes -= storage.len() as u64;
        Some(storage)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_dropped_buffer_is_used_again() {
        let pool = Pool::new(1 << 20);
        let mut buffer = pool.take(100_000).unwrap();
        let address = buffer.storage().as_ptr();
        drop(buffer);
        assert_eq!(pool.take(90_000).unwrap().storage().as_ptr(), address);
        assert_eq!(pool.idle_bytes(), (class(100_000)) as u64);
    }

    #[test]
    fn a_buffer_outlives_its_pool() {
        let pool = Pool::new(1 << 20);
        let mut buffer = pool.take(3).unwrap();
        buffer.storage()[..3].copy_from_slice(b"abc");
        buffer.set_len(3);
        drop(pool);
        assert_eq!(&*buffer, b"abc");
    }

    #[test]
    fn the_pool_keeps_no_more_than_its_bound() {
        let pool = Pool::new(1 << 20);
        let buffers: Vec<_> = (0..200).map(|i| pool.take(1000 * i).unwrap()).collect();
        drop(buffers);
        assert!(pool.idle_bytes() <= 1 << 20, "{}", pool.idle_bytes());
        drop(pool.take(2 << 20));
        assert!(pool.idle_bytes() <= 1 << 20);
    }

    #[test]
    fn memory_that_does_not_exist_is_refused_and_not_a_crash() {
        assert!(Pool::new(1 << 20).take(isize::MAX as usize).is_none());
        assert!(Pool::new(1 << 20).take(usize::MAX).is_none());
    }

    proptest! {
        #[test]
        fn a_class_holds_its_length_and_wastes_at_most_a_quarter(len in 1usize..1 << 40) {
            let class = class(len);
            prop_assert!(class >= len);
            prop_assert!(class <= SMALLEST.max(len + len / 4));
            prop_assert_eq!(super::class(class), class);
        }
    }
}
