//! The shared memory between daemon and client: one sealed memfd, cut into slots of equal size.
//!
//! It holds tensor bytes only: no header, no lock, no atomics, nothing a peer could corrupt to hurt the daemon. Who may
//! touch which slot is decided by messages (see [`crate::protocol`]) and, inside this process, by types:
//!
//! - daemon: [`Ring::slot`] lends a [`SlotWriter`]; [`SlotWriter::rows`] splits it into [`RowWriter`]s, one per worker
//!   at a time; the whole slot can be had again only when all rows are gone ([`SlotWriter::whole`]).
//! - client: a [`Mapping`] gives read access to a slot; the lease (in `client/lease.rs`) keeps the mapping alive.
//!
//! The memfd needs no /dev/shm (a container's 64 MB limit does not touch it), has no name that could leak, and is gone
//! with its last descriptor, kill -9 included. It is sealed against shrinking and growing, so a peer cannot truncate it
//! under us (which would be SIGBUS), and populated at start, so that a lack of memory shows there and not later.
#![allow(unsafe_code)]

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::{io, ptr, slice};

use rustix::fs::{FallocateFlags, MemfdFlags, SealFlags};
use rustix::mm::{Advice, MapFlags, ProtFlags};

/// Slots begin on page boundaries, so that each could be registered or advised alone.
pub const PAGE: usize = 4096;

/// The daemon's side: the memory, its mapping, and which slots are lent.
#[derive(Debug)]
pub struct Ring {
    memory: Arc<Memory>,
    fd: OwnedFd,
}

#[derive(Debug)]
struct Memory {
    base: *mut u8,
    slots: usize,
    slot_bytes: usize,
    lent: Box<[AtomicBool]>,
}

// SAFETY: `base` points to a mapping that lives as long as this value (unmapped only in `drop`), and every access to it
// goes through a SlotWriter or RowWriter, which are exclusive for their bytes (see `Ring::slot` and
// `SlotWriter::rows`).
unsafe impl Send for Memory {}
// SAFETY: as above; shared references give access to plain integers and atomics only.
unsafe impl Sync for Memory {}

/// What whoever gets the descriptor may do with the memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Map it for reading and writing: one client has it.
    ReadWrite,
    /// Map it for reading: several have it. The seal holds whatever they try.
    ReadOnly,
}

impl Ring {
    /// Makes, seals and populates a ring of `slots` slots of at least `slot_bytes` bytes.
    ///
    /// # Errors
    /// When the memory cannot be had: the kernel's answer, with the size that was asked for.
    pub fn create(slots: usize, slot_bytes: usize, access: Access) -> io::Result<Self> {
        let slot_bytes = slot_bytes.next_multiple_of(PAGE).max(PAGE);
        let total =
            slots.checked_mul(slot_bytes).ok_or_else(|| io::Error::other("the ring's size overflows"))?;
        let explain = |error: rustix::io::Errno| {
            let error = io::Error::from(error);
            io::Error::new(
                error.kind(),
                format!(
                    "shared memory of {slots} slots x {slot_bytes} bytes = {total} bytes could not be reserved ({error}); \
                     use a smaller batch_size or prefetch_factor"
                ),
            )
        };
        // Asked before it is tried: the kernel would hand out pages until the machine has none left.
        if total as u64 > crate::memory::available_memory().bytes {
            return Err(explain(rustix::io::Errno::NOMEM));
        }
        let fd = rustix::fs::memfd_create("fuelrail-ring", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)
            .map_err(explain)?;
        rustix::fs::ftruncate(&fd, total as u64).map_err(explain)?;
        rustix::fs::fallocate(&fd, FallocateFlags::empty(), 0, total as u64).map_err(explain)?;
        // Ours stays writable; the seal is on what is mapped after it.
        let base = map(fd.as_fd(), total, MapFlags::SHARED | MapFlags::POPULATE, Access::ReadWrite)
            .map_err(explain)?;
        let mut seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
        if access == Access::ReadOnly {
            seals |= SealFlags::FUTURE_WRITE;
        }
        if let Err(error) = rustix::fs::fcntl_add_seals(&fd, seals) {
            // SAFETY: the mapping just made, which nobody has.
            let _ = unsafe { rustix::mm::munmap(base.cast(), total) };
            return Err(explain(error));
        }
        let lent = (0..slots).map(|_| AtomicBool::new(false)).collect();
        Ok(Self { memory: Arc::new(Memory { base, slots, slot_bytes, lent }), fd })
    }

    /// A second handle to the same memory, for whoever sends the descriptor.
    ///
    /// # Errors
    /// When no descriptor is left.
    pub fn share(&self) -> io::Result<Self> {
        Ok(Self { memory: self.memory.clone(), fd: self.fd.try_clone()? })
    }

    /// Number of slots.
    pub fn slots(&self) -> usize {
        self.memory.slots
    }

    /// Bytes of a slot, a multiple of the page size.
    pub fn slot_bytes(&self) -> usize {
        self.memory.slot_bytes
    }

    /// All bytes.
    pub fn bytes(&self) -> usize {
        self.memory.slots * self.memory.slot_bytes
    }

    /// Lends a slot for writing; `None` while it is lent already.
    pub fn slot(&self, slot: usize) -> Option<SlotWriter> {
        assert!(slot < self.memory.slots, "slot {slot} of {}", self.memory.slots);
        if self.memory.lent[slot].swap(true, Ordering::Acquire) {
            return None;
        }
        Some(SlotWriter { span: Arc::new(Span { memory: self.memory.clone(), slot }) })
    }
}

impl AsFd for Ring {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: `base` is the start of a mapping of exactly this length made in `Ring::create`; all writers hold an
        // Arc of this value, so none is left.
        let _ = unsafe { rustix::mm::munmap(self.base.cast(), self.slots * self.slot_bytes) };
    }
}

/// A lent slot; dropping it (and its rows) gives it back to the ring.
#[derive(Debug)]
pub struct SlotWriter {
    span: Arc<Span>,
}

#[derive(Debug)]
struct Span {
    memory: Arc<Memory>,
    slot: usize,
}

impl Drop for Span {
    fn drop(&mut self) {
        self.memory.lent[self.slot].store(false, Ordering::Release);
    }
}

impl Span {
    fn start(&self) -> *mut u8 {
        // SAFETY: slot < slots (checked in `Ring::slot`), so the offset lies inside the mapping.
        unsafe { self.memory.base.add(self.slot * self.memory.slot_bytes) }
    }
}

impl SlotWriter {
    /// Which slot this is.
    pub fn slot(&self) -> usize {
        self.span.slot
    }

    /// The whole slot; `None` while a row of it is still out.
    pub fn whole(&mut self) -> Option<&mut [u8]> {
        let span = Arc::get_mut(&mut self.span)?;
        // SAFETY: the slot's bytes lie inside the mapping, which the span keeps alive. Nobody else in this process has
        // them: the ring lends a slot once at a time, and `get_mut` proves that no RowWriter (each holds a clone of
        // the Arc) exists. The client's process reads or writes its own mapping of these pages; the protocol gives it
        // the slot only after this writer is gone, and bytes have no invalid values, so a client that breaks the
        // protocol can spoil its own data only.
        Some(unsafe { slice::from_raw_parts_mut(span.start(), span.memory.slot_bytes) })
    }

    /// Splits `count` rows into writers that may go to different threads; `None` while rows of an earlier split are
    /// still out. A row has one part in each of `fields` (offset of the field in the slot, bytes of a row), which must
    /// be in ascending order and not overlap.
    pub fn rows(&mut self, fields: &[(usize, usize)], count: usize) -> Option<Vec<RowWriter>> {
        let span = Arc::get_mut(&mut self.span)?;
        let mut free_from = 0;
        for &(offset, row_bytes) in fields {
            let end = row_bytes.checked_mul(count).and_then(|bytes| bytes.checked_add(offset));
            assert!(
                offset >= free_from && end.is_some_and(|end| end <= span.memory.slot_bytes),
                "{count} rows of {row_bytes} bytes at {offset} exceed the slot or the field before them"
            );
            free_from = offset + row_bytes * count;
        }
        let fields: Arc<[(usize, usize)]> = fields.into();
        let row = |row| RowWriter { span: self.span.clone(), fields: fields.clone(), row };
        Some((0..count).map(row).collect())
    }
}

/// Exclusive access to one row of a slot: its part in each field.
#[derive(Debug)]
pub struct RowWriter {
    span: Arc<Span>,
    fields: Arc<[(usize, usize)]>,
    row: usize,
}

impl RowWriter {
    /// The row's bytes in a field.
    ///
    /// # Panics
    /// When there is no such field.
    pub fn bytes(&mut self, field: usize) -> &mut [u8] {
        let (offset, row_bytes) = self.fields[field];
        // SAFETY: this is a field's range, and `&mut self` makes this the only access through this writer.
        unsafe { self.range(offset, row_bytes) }
    }

    /// The row's bytes in every field.
    pub fn all(&mut self) -> Vec<&mut [u8]> {
        let field = |&(offset, row_bytes): &(usize, usize)| {
            // SAFETY: these are the fields' ranges, each once, and `&mut self` is borrowed while any of them lives.
            unsafe { self.range(offset, row_bytes) }
        };
        self.fields.iter().map(field).collect()
    }

    /// The row's bytes in the field at `offset`.
    ///
    /// # Safety
    /// They are those of one of `fields`, and nobody has them from this writer while they are used.
    #[expect(clippy::mut_from_ref, reason = "the caller holds the writer for itself")]
    unsafe fn range(&self, offset: usize, row_bytes: usize) -> &mut [u8] {
        // SAFETY: offset + (row + 1) x row_bytes lies inside the slot, and no two fields overlap (both asserted in
        // `SlotWriter::rows`, for rows up to its count). So the parts of different rows and fields are disjoint, a
        // second split or `whole` is impossible while any writer lives (`Arc::get_mut` fails), and of this writer the
        // caller has no other access to these bytes.
        unsafe { slice::from_raw_parts_mut(self.span.start().add(offset + self.row * row_bytes), row_bytes) }
    }
}

/// The client's side: the whole ring of one feed, mapped read and write (torch ignores a read-only mark), or to read
/// where others read it too: then nobody outside gets an address in it but to copy from.
#[derive(Debug)]
pub struct Mapping {
    base: *mut u8,
    len: usize,
    access: Access,
    /// The process that made it: a forked child does not have it.
    pid: u32,
}

// SAFETY: the mapping is plain memory that lives until `drop`; who may use which bytes is decided by leases.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps a ring received from a daemon.
    ///
    /// # Errors
    /// When the descriptor is not a sealed memfd of at least `len` bytes, or cannot be mapped.
    pub fn new(fd: BorrowedFd<'_>, len: usize, access: Access) -> io::Result<Self> {
        let seals = rustix::fs::fcntl_get_seals(fd)?;
        if !seals.contains(SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL) {
            return Err(io::Error::other(
                "the daemon sent shared memory that is not sealed against resizing",
            ));
        }
        let size = rustix::fs::fstat(fd)?.st_size as usize;
        if size < len || len == 0 {
            return Err(io::Error::other(format!(
                "the daemon sent {size} bytes of shared memory and announced {len}"
            )));
        }
        let base = map(fd, len, MapFlags::SHARED, access)?;
        // SAFETY: the range is the mapping just made. DONTFORK: a forked child has no business with the ring, and
        // copying its page tables would slow every fork of a training script.
        unsafe { rustix::mm::madvise(base.cast(), len, Advice::LinuxDontFork)? };
        Ok(Self { base, len, access, pid: std::process::id() })
    }

    /// What may be done with its bytes.
    pub fn access(&self) -> Access {
        self.access
    }

    /// The address of a byte, for a lease to hand out.
    ///
    /// # Panics
    /// When `offset + len` lies outside.
    pub fn at(&self, offset: usize, len: usize) -> *mut u8 {
        assert!(
            offset.checked_add(len).is_some_and(|end| end <= self.len),
            "{len} bytes at {offset} of {}",
            self.len
        );
        // SAFETY: checked just above.
        unsafe { self.base.add(offset) }
    }

    /// Copies bytes out.
    ///
    /// # Panics
    /// When `offset + out.len()` lies outside.
    pub fn copy_to(&self, offset: usize, out: &mut [u8]) {
        let from = self.at(offset, out.len());
        // SAFETY: `at` checked the source range; `out` is exclusive and cannot overlap foreign mapped memory that is
        // only reachable through this value. The daemon does not write a slot between `ready` and `release`, and this
        // is called on leased slots; were it to break that, bytes have no invalid values.
        unsafe { ptr::copy_nonoverlapping(from, out.as_mut_ptr(), out.len()) };
    }

    /// Bytes mapped.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Never: a mapping has at least one byte.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        if self.pid != std::process::id() {
            // A forked child: DONTFORK left this range out, and something else may live there by now.
            return;
        }
        // SAFETY: exactly the mapping made in `new`; leases hold an Arc of this value, so nobody points into it.
        let _ = unsafe { rustix::mm::munmap(self.base.cast(), self.len) };
    }
}

fn map(fd: BorrowedFd<'_>, len: usize, flags: MapFlags, access: Access) -> rustix::io::Result<*mut u8> {
    let protection = match access {
        Access::ReadWrite => ProtFlags::READ | ProtFlags::WRITE,
        Access::ReadOnly => ProtFlags::READ,
    };
    // SAFETY: a fresh mapping at an address of the kernel's choice touches no existing memory.
    let base = unsafe { rustix::mm::mmap(ptr::null_mut(), len, protection, flags, fd, 0)? };
    Ok(base.cast())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_daemon_writes_the_client_reads() {
        let ring = Ring::create(2, 100, Access::ReadWrite).unwrap();
        let client = Mapping::new(ring.as_fd(), ring.bytes(), Access::ReadWrite).unwrap();
        let mut slot = ring.slot(1).unwrap();
        for (at, row) in slot.rows(&[(64, 8)], 4).unwrap().iter_mut().enumerate() {
            row.bytes(0).fill(at as u8 + 1);
        }
        let mut seen = [0; 32];
        client.copy_to(PAGE + 64, &mut seen);
        assert_eq!(seen[0..8], [1; 8]);
        assert_eq!(seen[24..32], [4; 8]);
    }

    #[test]
    fn a_slot_is_lent_once_and_whole_only_without_rows() {
        let ring = Ring::create(1, 100, Access::ReadWrite).unwrap();
        let mut slot = ring.slot(0).unwrap();
        assert!(ring.slot(0).is_none());
        let rows = slot.rows(&[(0, 10), (20, 3)], 2).unwrap();
        assert!(slot.whole().is_none() && slot.rows(&[(0, 10)], 2).is_none());
        drop(slot);
        assert!(ring.slot(0).is_none(), "a row still out keeps the slot lent");
        drop(rows);
        assert!(ring.slot(0).is_some());
    }

    #[test]
    fn a_peer_cannot_resize_or_unseal_the_ring() {
        let ring = Ring::create(1, 100, Access::ReadWrite).unwrap();
        assert!(rustix::fs::ftruncate(ring.as_fd(), 0).is_err());
        assert!(rustix::fs::ftruncate(ring.as_fd(), 1 << 20).is_err());
        assert!(rustix::fs::fcntl_add_seals(ring.as_fd(), SealFlags::WRITE).is_err());
    }

    #[test]
    fn an_unsealed_or_short_memory_is_refused_by_the_client() {
        let fd = rustix::fs::memfd_create("plain", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
        rustix::fs::ftruncate(&fd, 4096).unwrap();
        assert!(Mapping::new(fd.as_fd(), 4096, Access::ReadWrite).is_err());
        let ring = Ring::create(1, 100, Access::ReadWrite).unwrap();
        assert!(Mapping::new(ring.as_fd(), 2 * PAGE, Access::ReadWrite).is_err());
    }

    #[test]
    fn memory_that_cannot_be_had_is_an_error_at_start() {
        assert!(
            Ring::create(1 << 20, 1 << 40, Access::ReadWrite).unwrap_err().to_string().contains("batch_size")
        );
    }
}
