//! What keeps a slot in the caller's hands, and what a view of it points to.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};

use super::lines::Lines;
use crate::layout::Field;
use crate::protocol::{self, Request};
use crate::ring::Mapping;

/// The socket of a feed, shared with its leases, which send their releases over it, and with whoever waits for it.
///
/// Its two locks are held for a few instructions, never while anything waits: the socket does not block, and what it
/// does not take stays in the outbox until somebody waits for an answer. So a lease may be dropped anywhere, in the
/// middle of a garbage collection inside any call of ours, too.
#[derive(Debug)]
pub(super) struct Link {
    pub socket: UnixStream,
    pub pid: u32,
    outbox: Mutex<Vec<u8>>,
    pub leased: AtomicUsize,
    /// What the daemon logged, waited for along with the socket.
    pub lines: Arc<Lines>,
}

impl Link {
    pub fn new(socket: UnixStream, lines: Arc<Lines>) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        Ok(Self {
            socket,
            pid: std::process::id(),
            outbox: Mutex::new(Vec::new()),
            leased: AtomicUsize::new(0),
            lines,
        })
    }

    /// Sends a message; what the socket does not take now follows in [`wait`](Self::wait).
    pub fn send(&self, request: &Request) -> io::Result<()> {
        let mut outbox = self.outbox();
        outbox.extend(protocol::encode(request));
        self.flush(&mut outbox)
    }

    fn flush(&self, outbox: &mut Vec<u8>) -> io::Result<()> {
        let mut sent = 0;
        let result = loop {
            if sent == outbox.len() {
                break Ok(());
            }
            match protocol::send(self.socket.as_fd(), &outbox[sent..], None) {
                Ok(count) => sent += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break Ok(()),
                Err(error) => break Err(error),
            }
        };
        outbox.drain(..sent);
        result
    }

    fn outbox(&self) -> MutexGuard<'_, Vec<u8>> {
        self.outbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until something has arrived or `patience` is over, and sends what is left to send. A signal ends it early.
    pub fn wait(&self, patience: Duration) {
        let unsent = !self.outbox().is_empty();
        let events = if unsent { PollFlags::IN | PollFlags::OUT } else { PollFlags::IN };
        let mut fds = vec![PollFd::new(&self.socket, events)];
        fds.extend(self.lines.socket().map(|log| PollFd::new(log, PollFlags::IN)));
        let patience = Timespec { tv_sec: patience.as_secs() as _, tv_nsec: patience.subsec_nanos() as _ };
        let woken = rustix::event::poll(&mut fds, Some(&patience));
        if woken.is_ok() && fds[0].revents().contains(PollFlags::OUT) {
            // An error is met again by whoever reads.
            let _ = self.flush(&mut self.outbox());
        }
    }
}

/// The right to read one slot; dropping it gives the slot back.
#[derive(Debug)]
pub struct Lease {
    pub(super) link: Arc<Link>,
    pub(super) mapping: Arc<Mapping>,
    pub(super) slot: u32,
    pub(super) base: usize,
}

impl Drop for Lease {
    fn drop(&mut self) {
        if self.link.pid != std::process::id() {
            return;
        }
        self.link.leased.fetch_sub(1, Ordering::Relaxed);
        // A daemon that is gone needs no slot back.
        let _ = self.link.send(&Request::Release { slot: self.slot });
    }
}

/// Bytes of a batch's own fields (the image and what the source adds): in the slot, or an owned copy.
#[derive(Clone, Debug)]
pub enum Memory {
    /// A view of shared memory.
    Slot(Arc<Lease>),
    /// A copy, aligned to 64 bytes.
    Owned(Arc<AlignedBytes>),
}

impl Memory {
    /// A copy of bytes, in which the first field's offset is 0.
    pub fn of(bytes: &[u8]) -> Self {
        Self::Owned(Arc::new(AlignedBytes::with(bytes.len(), |copy| copy.copy_from_slice(bytes))))
    }

    /// No bytes.
    pub fn none() -> Self {
        Self::of(&[])
    }

    /// Address of the field's first byte; valid as long as this value or a clone of it lives.
    pub fn address(&self, field: &Field, len: usize) -> *mut u8 {
        match self {
            Self::Slot(lease) => lease.mapping.at(lease.base + field.offset as usize, len),
            Self::Owned(bytes) => bytes.address(field.offset as usize, len),
        }
    }

    /// Copies bytes of the field out, from `offset` on.
    ///
    /// # Panics
    /// When that lies outside the batch.
    pub fn copy_to(&self, field: &Field, offset: usize, out: &mut [u8]) {
        match self {
            Self::Slot(lease) => lease.mapping.copy_to(lease.base + field.offset as usize + offset, out),
            Self::Owned(bytes) => {
                let from = bytes.offset + field.offset as usize + offset;
                out.copy_from_slice(&bytes.bytes[from..][..out.len()]);
            }
        }
    }

    /// Address of bytes of the slot, columns too; `None` of an owned copy, which has fields alone.
    pub fn slot_address(&self, offset: usize, len: usize) -> Option<*mut u8> {
        match self {
            Self::Slot(lease) => Some(lease.mapping.at(lease.base + offset, len)),
            Self::Owned(_) => None,
        }
    }

    /// Whether it is a view of shared memory.
    pub fn is_view(&self) -> bool {
        matches!(self, Self::Slot(_))
    }
}

/// Owned bytes that begin on a 64-byte boundary, as DLPack consumers expect.
#[derive(Debug)]
pub struct AlignedBytes {
    bytes: Vec<u8>,
    offset: usize,
}

impl AlignedBytes {
    pub(super) fn copy(mapping: &Mapping, offset: usize, len: usize) -> Self {
        Self::with(len, |copy| mapping.copy_to(offset, copy))
    }

    fn with(len: usize, fill: impl FnOnce(&mut [u8])) -> Self {
        let mut bytes = vec![0u8; len + 64];
        let start = bytes.as_ptr().align_offset(64);
        fill(&mut bytes[start..start + len]);
        Self { bytes, offset: start }
    }

    fn address(&self, offset: usize, len: usize) -> *mut u8 {
        self.bytes[self.offset + offset..][..len].as_ptr().cast_mut()
    }
}
