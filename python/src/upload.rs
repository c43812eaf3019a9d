//! Copies of batches to a GPU, for whoever has a place there and a stream.
#![allow(unsafe_code)]

use fuelrail_loader::client::{self, Part, Pin};
use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;

use crate::feed::Batch;

/// How pinning is asked for.
pub fn pin(name: &str) -> PyResult<Pin> {
    match name {
        "auto" => Ok(Pin::Auto),
        "require" => Ok(Pin::Require),
        "off" => Ok(Pin::Off),
        other => Err(PyValueError::new_err(format!("pin={other:?} is not \"auto\", \"require\" or \"off\""))),
    }
}

/// Sends batches of a feed to one GPU.
#[pyclass(module = "fuelrail._native", frozen)]
pub struct Uploader(pub client::Uploader);

#[pymethods]
impl Uploader {
    /// Seconds that page-locking the ring took; None where it is not page-locked.
    #[getter]
    fn locked(&self) -> Option<f64> {
        self.0.locked().map(|took| took.as_secs_f64())
    }

    /// Why the ring is not page-locked, if that was tried.
    #[getter]
    fn refused(&self) -> Option<&str> {
        self.0.refused()
    }

    /// Returns when no copy reads shared memory any more.
    fn wait(&self, py: Python<'_>) {
        py.detach(|| self.0.wait());
    }

    /// Begins to copy fields and columns of a batch, each given as (its number, address on the GPU, bytes there), on a
    /// stream. The batch's slot goes back by itself.
    ///
    /// The addresses and the stream are the caller's word: they are those of tensors that stay until the stream has
    /// come past the copy.
    fn copy(
        &self,
        py: Python<'_>,
        batch: &Batch,
        fields: Vec<(usize, u64, usize)>,
        columns: Vec<(usize, u64, usize)>,
        stream: usize,
    ) -> PyResult<Copied> {
        let mut parts = Vec::with_capacity(fields.len() + columns.len());
        let room = |bytes: usize, room: usize| match bytes == room {
            true => Ok(()),
            false => Err(PyValueError::new_err(format!("{bytes} bytes do not fit in {room} on the GPU"))),
        };
        for (at, to, bytes) in fields {
            let (from, len) = batch.field_place(at)?;
            room(len, bytes)?;
            parts.push(Part { from, to, bytes });
        }
        for (at, to, bytes) in columns {
            let (from, len) = batch.column_place(at)?;
            room(len, bytes)?;
            parts.push(Part { from, to, bytes });
        }
        parts.retain(|part| part.bytes > 0);
        let parts = Parts(parts);
        let memory = batch.memory().clone();
        py.detach(move || {
            let parts = parts;
            // SAFETY: the sources are bytes of `memory`; the rest is the promise of the package's own callers, as the
            // description above says it.
            unsafe { self.0.copy(memory, &parts.0, stream) }
        })
        .map(Copied)
        .map_err(PyRuntimeError::new_err)
    }
}

/// Parts on their way into a closure without the interpreter.
struct Parts(Vec<Part>);

// SAFETY: the pointers are read by the copies only, which may be begun from any thread.
unsafe impl Send for Parts {}

/// A copy under way, or done.
#[pyclass(module = "fuelrail._native", frozen)]
pub struct Copied(client::Copied);

#[pymethods]
impl Copied {
    /// Lets a stream of this GPU wait for the copy.
    fn before(&self, py: Python<'_>, stream: usize) -> PyResult<()> {
        // SAFETY: the stream is the word of the package's own callers.
        py.detach(|| unsafe { self.0.before(stream) }).map_err(PyRuntimeError::new_err)
    }

    /// Whether it is done.
    #[getter]
    fn done(&self) -> bool {
        self.0.is_done()
    }
}
