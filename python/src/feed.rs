//! A feed and its batches.

use std::cell::Cell;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use fuelrail_loader::client::{Address, ClientError, Feed as Inner, News};
use fuelrail_loader::plan::{Cursor, UNKNOWN_LEN};
use fuelrail_loader::protocol::{Attach, Attached, PipelineRef};
use fuelrail_loader::token::{Allow, Token};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyByteArray, PyDict};

use crate::dlpack::Tensor;
use crate::error::exception;

/// Runs `call` without the interpreter lock; a pending signal (ctrl-C) interrupts it with that signal's exception.
fn detached<T: Send>(
    py: Python<'_>,
    call: impl FnOnce(&mut (dyn FnMut() -> bool + Send)) -> Result<T, ClientError> + Send,
) -> PyResult<T> {
    let mut signal = None;
    let result = py.detach(|| {
        call(&mut || match Python::attach(|py| py.check_signals()) {
            Ok(()) => false,
            Err(raised) => {
                signal = Some(raised);
                true
            }
        })
    });
    result.map_err(|error| match signal {
        Some(raised) => raised,
        None => exception(py, &error),
    })
}

fn seconds(timeout: Option<f64>) -> PyResult<Option<Duration>> {
    match timeout {
        None => Ok(None),
        Some(timeout) => Duration::try_from_secs_f64(timeout)
            .map(Some)
            .map_err(|_| PyValueError::new_err(format!("timeout={timeout} is not a number of seconds"))),
    }
}

/// One loader's attachment to a daemon. Several threads may use it: one that waits for a batch lets the others in
/// (a progress display that asks for `stats()`, a handler that calls `close()`) and then waits on.
#[pyclass(module = "fuelrail._native", frozen)]
pub struct Feed {
    inner: Mutex<Inner>,
    /// Threads that want `inner`.
    wanted: AtomicUsize,
    attached: Attached,
    daemon_pid: u32,
}

impl Feed {
    /// To be called without the interpreter lock: whoever has `inner` may be waiting for that.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.wanted.fetch_add(1, Ordering::Relaxed);
        let guard = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        self.wanted.fetch_sub(1, Ordering::Relaxed);
        guard
    }

    fn is_wanted(&self) -> bool {
        self.wanted.load(Ordering::Relaxed) > 0
    }

    fn with<T: Send>(&self, py: Python<'_>, call: impl FnOnce(&mut Inner) -> T + Send) -> T {
        py.detach(|| call(&mut self.lock()))
    }
}

#[pymethods]
impl Feed {
    /// `pipeline` is JSON (a private daemon's, or a listening one's where its roots allow) or the name of a pipeline.
    /// While the source is being opened, `progress(what, done, total, counted)` is called now and then, and `log(level, text)` with
    /// lines of the daemon's log.
    #[new]
    #[pyo3(signature = (*, binary=None, socket=None, pipeline=None, name=None, rank=0, world_size=1, timeout=None, progress=None, log=None))]
    #[expect(clippy::too_many_arguments, reason = "keyword arguments of one call")]
    fn new(
        py: Python<'_>,
        binary: Option<PathBuf>,
        socket: Option<PathBuf>,
        pipeline: Option<&str>,
        name: Option<String>,
        rank: u64,
        world_size: u64,
        timeout: Option<f64>,
        progress: Option<Py<PyAny>>,
        log: Option<Py<PyAny>>,
    ) -> PyResult<Self> {
        let address = match (socket, binary) {
            (Some(path), _) => Address::Socket(path),
            (None, Some(binary)) => Address::Private(binary),
            (None, None) => return Err(PyValueError::new_err("neither a socket nor a binary was given")),
        };
        let pipeline = match (name, pipeline) {
            (Some(name), _) => PipelineRef::Name(name),
            (None, Some(json)) => PipelineRef::Inline(
                serde_json::from_str(json).map_err(|error| PyValueError::new_err(error.to_string()))?,
            ),
            (None, None) => return Err(PyValueError::new_err("neither a pipeline nor its name was given")),
        };
        let attach = Attach { pipeline, rank, world_size, start: Cursor::default() };
        let timeout = seconds(timeout)?;
        // What it raises ends the opening, like ctrl-C.
        let mut raised = None;
        let attached = detached(py, |interrupt| {
            let failed = Cell::new(false);
            Inner::attach(&address, attach, timeout, &mut || failed.get() || interrupt(), &mut |news| {
                let told = Python::attach(|py| match (news, &progress, &log) {
                    (News::Progress(now), Some(progress), _) => {
                        progress.call1(py, (&now.what, now.done, now.total, &now.counted)).map(drop)
                    }
                    (News::Log { level, text }, _, Some(log)) => log.call1(py, (level, text)).map(drop),
                    _ => Ok(()),
                });
                if let Err(error) = told {
                    failed.set(true);
                    raised.get_or_insert(error);
                }
            })
        });
        let inner = match raised {
            Some(error) => return Err(error),
            None => attached?,
        };
        let (attached, daemon_pid) = (inner.attached().clone(), inner.daemon_pid());
        Ok(Self { inner: Mutex::new(inner), wanted: AtomicUsize::new(0), attached, daemon_pid })
    }

    /// What the daemon told about the feed, as JSON.
    fn attached(&self) -> String {
        serde_json::to_string(&self.attached).expect("plain data")
    }

    /// Process id of the daemon.
    #[getter]
    fn daemon_pid(&self) -> u32 {
        self.daemon_pid
    }

    /// The next batch of the current epoch, or None at its end.
    fn next(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<Option<Batch>> {
        let timeout = seconds(timeout)?;
        let asked = Instant::now();
        let batch = detached(py, |interrupt| {
            loop {
                let left = timeout.map(|timeout| timeout.saturating_sub(asked.elapsed()));
                let mut signalled = false;
                let result = self.lock().next(left, &mut || {
                    signalled = interrupt();
                    signalled || self.is_wanted()
                });
                match result {
                    // Another thread wants in: it goes first.
                    Err(ClientError::Interrupted) if !signalled => {
                        while self.is_wanted() {
                            std::thread::sleep(Duration::from_millis(1));
                        }
                    }
                    result => return result,
                }
            }
        })?;
        let Some(batch) = batch else { return Ok(None) };
        let ready = batch.ready;
        let own = &self.attached.fields[..self.attached.payload as usize];
        let tensors =
            own.iter().map(|field| Tensor::new(batch.memory.clone(), field.clone(), ready.rows)).collect();
        Ok(Some(Batch {
            rows: ready.rows,
            epoch: ready.cursor.epoch,
            position: ready.cursor.position,
            substituted: ready.substituted,
            dropped: ready.dropped,
            tensors,
            small: batch.small,
        }))
    }

    /// Makes the next batch begin at (epoch, position).
    fn seek(&self, py: Python<'_>, epoch: u64, position: u64) -> PyResult<()> {
        detached(py, |_| self.lock().seek(Cursor { epoch, position }))
    }

    /// (epoch, position) of the next row to hand out.
    fn cursor(&self, py: Python<'_>) -> (u64, u64) {
        let Cursor { epoch, position } = self.with(py, |inner| inner.cursor());
        (epoch, position)
    }

    /// Batches left in the current epoch; None when nobody knows (a stream that has not ended).
    fn batches_left(&self, py: Python<'_>) -> Option<u64> {
        self.with(py, |inner| {
            let known = inner.batching(inner.cursor().epoch).len != UNKNOWN_LEN;
            known.then(|| inner.batches_left())
        })
    }

    /// The token of a place in this run, as JSON.
    fn token(&self, py: Python<'_>, epoch: u64, position: u64) -> PyResult<String> {
        let token = self.with(py, |inner| inner.token(Cursor { epoch, position }));
        token.map(|token| token.to_json()).map_err(|error| exception(py, &error))
    }

    /// Goes to where a token says, after checking that it continues this run; returns its (epoch, position).
    fn load(&self, py: Python<'_>, token: &str, allow: Vec<String>) -> PyResult<(u64, u64)> {
        let mut allowed = Vec::new();
        for name in allow {
            match name.as_str() {
                "pixels" => allowed.push(Allow::Pixels),
                other => {
                    return Err(PyValueError::new_err(format!(
                        "allow={other:?} is not known; \"pixels\" can be allowed to differ"
                    )));
                }
            }
        }
        let token = Token::from_json(token).map_err(|error| exception(py, &error.into()))?;
        let cursor = detached(py, |_| self.lock().load(token, &allowed))?;
        Ok((cursor.epoch, cursor.position))
    }

    /// A checkpoint with this token is safe.
    fn saved(&self, py: Python<'_>, token: &str) -> PyResult<()> {
        let token = Token::from_json(token).map_err(|error| exception(py, &error.into()))?;
        detached(py, |_| self.lock().saved(token))
    }

    /// Keys of records.
    fn keys(&self, py: Python<'_>, indices: Vec<i64>, timeout: Option<f64>) -> PyResult<Vec<String>> {
        let timeout = seconds(timeout)?;
        detached(py, |interrupt| self.lock().keys(indices, timeout, interrupt))
    }

    /// The daemon's counters and the verdict, as JSON.
    fn stats(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<String> {
        let timeout = seconds(timeout)?;
        let stats = detached(py, |interrupt| self.lock().stats(timeout, interrupt))?;
        Ok(serde_json::to_string(&stats).expect("plain data"))
    }

    /// What was counted on this side.
    fn counters<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let (counters, leased) = self.with(py, |inner| (inner.counters(), inner.leased()));
        let dict = PyDict::new(py);
        dict.set_item("data_wait_s", counters.data_wait_ns as f64 / 1e9)?;
        dict.set_item("iteration_s", counters.iteration_ns as f64 / 1e9)?;
        dict.set_item("batches", counters.batches)?;
        dict.set_item("images", counters.rows)?;
        dict.set_item("copied_batches", counters.copies)?;
        dict.set_item("leased_slots", leased)?;
        Ok(dict)
    }

    /// Log lines of the daemon since the last call: (level, text).
    fn take_logs(&self, py: Python<'_>) -> Vec<(String, String)> {
        self.with(py, Inner::take_logs)
    }

    /// Ends the feed; views of batches stay readable.
    fn close(&self, py: Python<'_>) {
        self.with(py, Inner::close);
    }
}

/// One batch: the records' own fields as tensors, and the small fields.
#[pyclass(module = "fuelrail._native", frozen)]
pub struct Batch {
    #[pyo3(get)]
    rows: u32,
    #[pyo3(get)]
    epoch: u64,
    #[pyo3(get)]
    position: u64,
    #[pyo3(get)]
    substituted: u32,
    #[pyo3(get)]
    dropped: u32,
    tensors: Vec<Tensor>,
    small: Vec<Vec<u8>>,
}

#[pymethods]
impl Batch {
    /// Field `at` of the records' own, as a DLPack producer.
    fn tensor(&self, at: usize) -> PyResult<Tensor> {
        self.tensors.get(at).cloned().ok_or_else(|| PyValueError::new_err(format!("there is no tensor {at}")))
    }

    /// The bytes of small field `at` (0 is the first behind the records' own), as a fresh bytearray.
    fn small<'py>(&self, py: Python<'py>, at: usize) -> PyResult<Bound<'py, PyByteArray>> {
        match self.small.get(at) {
            Some(bytes) => Ok(PyByteArray::new(py, bytes)),
            None => Err(PyValueError::new_err(format!("there is no small field {at}"))),
        }
    }
}
