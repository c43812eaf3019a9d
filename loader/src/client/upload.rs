//! Copies of batches to a GPU: from the page-locked ring, on a stream of the caller's, and the wait before a slot goes
//! back.
//!
//! ```text
//!  Uploader::copy ──▶ cuMemcpyHtoDAsync per field ──▶ event ──▶ Copied (the consumer's stream waits for it)
//!                                                       └─────▶ thread: waits on the host ──▶ drops the slot's lease
//! ```
//!
//! Promises
//! - a slot goes back to the daemon only after a *host-side* wait for its copies: a wait on a stream does not hold back
//!   a writer on a CPU;
//! - nothing is needed at build time; the driver's library is loaded when the first uploader is opened;
//! - the ring is page-locked once, and unlocked before it is unmapped;
//! - a failed call leaves no copy that still reads a slot.
#![allow(unsafe_code)]

use std::ffi::c_void;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys;

use super::Memory;
use crate::ring::{Access, Mapping};

/// Page-locked memory that every context may use (`CU_MEMHOSTREGISTER_PORTABLE`).
const PORTABLE: u32 = 1;

/// Memory that is mapped for reading only (`CU_MEMHOSTREGISTER_READ_ONLY`).
const READ_ONLY: u32 = 8;

/// Whether the ring is page-locked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pin {
    /// Where it can be; else copies go through the driver's own staging memory.
    Auto,
    /// It must be.
    Require,
    /// No.
    Off,
}

/// What is copied: bytes of a batch to an address on the GPU.
#[derive(Clone, Copy, Debug)]
pub struct Part {
    /// First byte, on the host.
    pub from: *const u8,
    /// First byte, on the GPU.
    pub to: u64,
    /// How many.
    pub bytes: usize,
}

/// Sends batches to one GPU.
#[derive(Debug)]
pub struct Uploader {
    // In this order: the thread ends before the ring is unlocked, and both before the context goes.
    waiter: Waiter,
    locked: Option<Locked>,
    gpu: Arc<Gpu>,
    refused: Option<String>,
}

impl Uploader {
    /// Prepares for copies of a ring to a GPU, the `ordinal`th of those that the process sees. Takes about 0.1 s for a
    /// GiB of ring.
    ///
    /// # Errors
    /// When there is no such GPU, and when the ring must be page-locked and cannot.
    pub(super) fn open(ordinal: i32, mapping: &Arc<Mapping>, pin: Pin) -> Result<Self, String> {
        let gpu = Arc::new(Gpu::open(ordinal)?);
        let (locked, refused) = match pin {
            Pin::Off => (None, None),
            Pin::Auto | Pin::Require => match Locked::new(&gpu, mapping) {
                Ok(locked) => (Some(locked), None),
                Err(why) if pin == Pin::Auto => (None, Some(why)),
                Err(why) => return Err(why),
            },
        };
        let waiter = Waiter::start(&gpu).map_err(|error| format!("no thread can be started: {error}"))?;
        Ok(Self { waiter, locked, gpu, refused })
    }

    /// Seconds that page-locking took; `None` where the ring is not page-locked.
    pub fn locked(&self) -> Option<Duration> {
        self.locked.as_ref().map(|locked| locked.took)
    }

    /// Why it is not, if it was tried.
    pub fn refused(&self) -> Option<&str> {
        self.refused.as_deref()
    }

    /// Returns when all copies that were begun are done, and their slots have gone back.
    pub fn wait(&self) {
        self.waiter.wait();
    }

    /// Begins to copy a batch. Its slot goes back once that is done, and `memory` is not needed any more.
    ///
    /// # Safety
    /// Each `from` points to bytes that `memory` holds; each `to` to as many bytes on this GPU, which nobody
    /// else uses until `stream`, a stream of this GPU, has come past the copy.
    ///
    /// # Errors
    /// The driver's answer. No copy is under way then.
    pub unsafe fn copy(&self, memory: Memory, parts: &[Part], stream: usize) -> Result<Copied, String> {
        let stream = stream as sys::CUstream;
        let _current = self.gpu.enter()?;
        let event = Arc::new(Event::new(&self.gpu)?);
        let copied = parts
            .iter()
            .try_for_each(|part| {
                // SAFETY: the caller's promise; the bytes stay until the waiter has waited for the event behind this.
                unsafe {
                    let from = part.from.cast::<c_void>();
                    sys::cuMemcpyHtoDAsync_v2(part.to, from, part.bytes, stream).result()
                }
            })
            // SAFETY: both live, and are of this context.
            .and_then(|()| unsafe { result::event::record(event.0, stream) });
        if let Err(error) = copied {
            // SAFETY: a stream of this context, by the caller's promise. What was begun reads the slot.
            let _ = unsafe { result::stream::synchronize(stream) };
            return Err(said("a copy to the GPU", error));
        }
        self.waiter.wait_for(event.clone(), memory);
        Ok(Copied(event))
    }
}

/// A copy under way, or done.
#[derive(Clone, Debug)]
pub struct Copied(Arc<Event>);

impl Copied {
    /// Lets a stream wait for it; the caller's thread does not.
    ///
    /// # Safety
    /// `stream` is a stream of the copy's GPU.
    ///
    /// # Errors
    /// The driver's answer.
    pub unsafe fn before(&self, stream: usize) -> Result<(), String> {
        let _current = self.0.1.enter()?;
        let flags = sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
        // SAFETY: the event lives in `self`; the stream is the caller's promise.
        unsafe { result::stream::wait_event(stream as sys::CUstream, self.0.0, flags) }
            .map_err(|error| said("a wait for a copy", error))
    }

    /// Whether it is done.
    pub fn is_done(&self) -> bool {
        let Ok(_current) = self.0.1.enter() else { return true };
        // SAFETY: the event lives in `self`. An error is no promise of anything to come.
        unsafe { sys::cuEventQuery(self.0.0) != sys::CUresult::CUDA_ERROR_NOT_READY }
    }
}

/// The primary context of a GPU, which frameworks use too.
#[derive(Debug)]
struct Gpu {
    device: sys::CUdevice,
    context: sys::CUcontext,
}

// SAFETY: handles of the driver, which may be used from any thread.
unsafe impl Send for Gpu {}
// SAFETY: as above.
unsafe impl Sync for Gpu {}

impl Gpu {
    fn open(ordinal: i32) -> Result<Self, String> {
        static PRESENT: OnceLock<bool> = OnceLock::new();
        // SAFETY: loads a library, the initialisers of which are the driver's.
        if !PRESENT.get_or_init(|| unsafe { sys::is_culib_present() }) {
            return Err("there is no NVIDIA driver here (libcuda.so.1)".into());
        }
        result::init().map_err(|error| said("the NVIDIA driver", error))?;
        let device = result::device::get(ordinal).map_err(|error| said(&format!("GPU {ordinal}"), error))?;
        // SAFETY: a device that the driver has just named; released in `drop`.
        let context = unsafe { result::primary_ctx::retain(device) }
            .map_err(|error| said(&format!("GPU {ordinal}"), error))?;
        Ok(Self { device, context })
    }

    /// Makes it the current one of this thread, until the guard goes: whoever had another keeps it.
    fn enter(&self) -> Result<Current, String> {
        // SAFETY: the context is retained as long as `self` lives.
        unsafe { sys::cuCtxPushCurrent_v2(self.context).result() }
            .map_err(|error| said("the GPU's context", error))?;
        Ok(Current)
    }
}

impl Drop for Gpu {
    fn drop(&mut self) {
        // SAFETY: retained once in `open`.
        let _ = unsafe { result::primary_ctx::release(self.device) };
    }
}

struct Current;

impl Drop for Current {
    fn drop(&mut self) {
        let mut context = std::ptr::null_mut();
        // SAFETY: pops what `enter` pushed on this thread.
        let _ = unsafe { sys::cuCtxPopCurrent_v2(&raw mut context) };
    }
}

/// A ring whose pages are locked.
#[derive(Debug)]
struct Locked {
    mapping: Arc<Mapping>,
    gpu: Arc<Gpu>,
    took: Duration,
}

impl Locked {
    fn new(gpu: &Arc<Gpu>, mapping: &Arc<Mapping>) -> Result<Self, String> {
        let _current = gpu.enter()?;
        let began = Instant::now();
        let base = mapping.at(0, mapping.len()).cast::<c_void>();
        let flags = match mapping.access() {
            Access::ReadWrite => PORTABLE,
            Access::ReadOnly => PORTABLE | READ_ONLY,
        };
        // SAFETY: exactly the mapping, which this value keeps alive until it is unregistered.
        unsafe { sys::cuMemHostRegister_v2(base, mapping.len(), flags).result() }.map_err(|error| {
            said(&format!("the ring of {} MiB cannot be page-locked", mapping.len() >> 20), error)
        })?;
        Ok(Self { mapping: mapping.clone(), gpu: gpu.clone(), took: began.elapsed() })
    }
}

impl Drop for Locked {
    fn drop(&mut self) {
        let Ok(_current) = self.gpu.enter() else { return };
        let base = self.mapping.at(0, self.mapping.len()).cast::<c_void>();
        // SAFETY: registered in `new`. Copies are over: the waiter, which ends first, has waited for each.
        let _ = unsafe { sys::cuMemHostUnregister(base).result() };
    }
}

/// An event, which says when the copies before it are done.
#[derive(Debug)]
struct Event(sys::CUevent, Arc<Gpu>);

// SAFETY: a handle of the driver, which may be used from any thread.
unsafe impl Send for Event {}
// SAFETY: as above.
unsafe impl Sync for Event {}

impl Event {
    fn new(gpu: &Arc<Gpu>) -> Result<Self, String> {
        // Bit flags: no time stamps, and a thread that waits sleeps.
        let flags = sys::CUevent_flags::CU_EVENT_DISABLE_TIMING as u32
            | sys::CUevent_flags::CU_EVENT_BLOCKING_SYNC as u32;
        let mut event = std::ptr::null_mut();
        // SAFETY: writes a handle into the variable; the context is current (the callers enter it).
        unsafe { sys::cuEventCreate(&raw mut event, flags).result() }
            .map_err(|error| said("an event", error))?;
        Ok(Self(event, gpu.clone()))
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        let Ok(_current) = self.1.enter() else { return };
        // SAFETY: made in `new`, and nobody else has it. The driver waits with the rest if it is still pending.
        let _ = unsafe { result::event::destroy(self.0) };
    }
}

/// What is kept until an event; or who wants to know that all before it is done.
enum Kept {
    Until(Arc<Event>, Memory),
    Mark(Sender<()>),
}

/// The thread that gives slots back.
#[derive(Debug)]
struct Waiter {
    queue: Option<Sender<Kept>>,
    thread: Option<JoinHandle<()>>,
    pid: u32,
}

impl Waiter {
    fn start(gpu: &Arc<Gpu>) -> std::io::Result<Self> {
        let (queue, kept) = channel();
        let gpu = gpu.clone();
        let thread = std::thread::Builder::new()
            .name("fuelrail-upload".into())
            .spawn(move || give_back(&gpu, &kept))?;
        Ok(Self { queue: Some(queue), thread: Some(thread), pid: std::process::id() })
    }

    fn wait(&self) {
        let (done, reached) = channel();
        let queue = self.queue.as_ref().expect("a queue until it is dropped");
        // A forked child has no thread that would answer.
        if self.pid == std::process::id() && queue.send(Kept::Mark(done)).is_ok() {
            let _ = reached.recv();
        }
    }

    fn wait_for(&self, until: Arc<Event>, memory: Memory) {
        // The thread ends after the queue only.
        let queue = self.queue.as_ref().expect("a queue until it is dropped");
        let _ = queue.send(Kept::Until(until, memory));
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        drop(self.queue.take());
        // A forked child has no such thread.
        if let Some(thread) = self.thread.take().filter(|_| self.pid == std::process::id()) {
            let _ = thread.join();
        }
    }
}

fn give_back(gpu: &Gpu, kept: &Receiver<Kept>) {
    for kept in kept {
        let (until, memory) = match kept {
            Kept::Until(until, memory) => (until, memory),
            Kept::Mark(done) => {
                let _ = done.send(());
                continue;
            }
        };
        if let Ok(_current) = gpu.enter() {
            // SAFETY: the event lives in `until`. An error means that the context is lost, and its copies with it.
            let _ = unsafe { result::event::synchronize(until.0) };
        }
        // The copy has been waited for: only now.
        drop(memory);
    }
}

/// The driver's answer in a sentence.
fn said(what: &str, error: DriverError) -> String {
    let words = error.error_string().ok().and_then(|text| text.to_str().ok());
    format!("{what}: the driver says {:?} ({})", error.0, words.unwrap_or_default())
}
