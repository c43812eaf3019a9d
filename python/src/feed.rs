//! A feed and its batches.

use std::cell::RefCell;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use fuelrail_loader::bagging;
use fuelrail_loader::client::{
    self, Address, Caller, ClientError, Feed as Inner, INTERRUPT_PERIOD, Memory, News, Next, Steps, Waiting,
    Wanted, until,
};
use fuelrail_loader::plan::Cursor;
use fuelrail_loader::protocol::{Attach, Attached, Member, PipelineRef};
use fuelrail_loader::token::{Allow, Token};
use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyByteArray, PyBytes, PyDict, PyString};

use crate::dlpack::Tensor;
use crate::error::exception;
use crate::upload::{self, Uploader};

fn seconds(timeout: Option<f64>) -> PyResult<Option<Duration>> {
    match timeout {
        None => Ok(None),
        Some(timeout) => Duration::try_from_secs_f64(timeout)
            .map(Some)
            .map_err(|_| PyValueError::new_err(format!("timeout={timeout} is not a number of seconds"))),
    }
}

/// What the threads and signal handlers of a process share of a loader.
struct State {
    inner: Inner,
    /// Where the next iteration begins.
    start: Cursor,
    /// Where the caller stands: behind the last batch that reached it. What a token says.
    stood: Cursor,
    /// Number of the iteration that may take batches; whatever moves the feed elsewhere ends it by counting on.
    iteration: u64,
}

impl State {
    fn end_iteration(&mut self) {
        self.iteration += 1;
    }

    fn check(&self, iteration: u64) -> Result<(), ClientError> {
        if self.iteration == iteration {
            return Ok(());
        }
        Err(ClientError::Misuse(
            "this iterator was ended by a later iter(), set_epoch() or load_state_dict() on its Loader; iterate over the \
             Loader again"
                .into(),
        ))
    }
}

/// One loader's attachment to a daemon, for any number of threads and for signal handlers, which interrupt any of them.
///
/// A call takes *steps*: with the lock, and without the interpreter. A step does not wait, and runs no Python. Between
/// two steps nothing is held: there the [`Call`] waits for the socket, and there signal handlers run. So foreign code
/// never meets a lock of ours, whatever it calls.
#[pyclass(module = "fuelrail._native", frozen)]
pub struct Feed {
    state: Mutex<State>,
    waiting: Waiting,
    /// Calls that are under way.
    calls: AtomicUsize,
    /// Two of them were under way at once: one may take in what the other waits for, which then does not hear of it.
    shared: AtomicBool,
    /// Takes lines of the daemon's log.
    log: Option<Py<PyAny>>,
    attached: Attached,
    daemon_pid: u32,
    /// The process that made it.
    pid: u32,
}

/// Where calls share a socket, one that waits looks this often whether another took in what it waits for.
const SHARED_PERIOD: Duration = Duration::from_millis(5);

/// A call that waits, for the whole of which it is counted.
struct Call<'a, 'py> {
    feed: &'a Feed,
    py: Python<'py>,
}

impl Caller for Call<'_, '_> {
    type Of = Inner;
    type Error = PyErr;

    fn step<T: Send>(
        &mut self,
        step: impl FnOnce(&mut Inner) -> Result<T, ClientError> + Send,
    ) -> PyResult<T> {
        self.feed.step(self.py, |state| step(&mut state.inner))
    }

    fn tell(&mut self) -> PyResult<()> {
        self.feed.tell(self.py)
    }

    fn wait(&mut self, patience: Duration) -> Duration {
        let shared = self.feed.shared.load(Ordering::Relaxed);
        let patience = patience.min(if shared { SHARED_PERIOD } else { INTERRUPT_PERIOD });
        // Until the interpreter is back: the caller waits for that, too.
        let began = Instant::now();
        self.py.detach(|| self.feed.waiting.wait(patience));
        began.elapsed()
    }

    fn interrupted(&mut self) -> PyResult<()> {
        self.py.check_signals()
    }
}

impl Drop for Call<'_, '_> {
    fn drop(&mut self) {
        self.feed.calls.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Feed {
    /// One step.
    fn step<T: Send>(
        &self,
        py: Python<'_>,
        step: impl FnOnce(&mut State) -> Result<T, ClientError> + Send,
    ) -> PyResult<T> {
        py.detach(|| step(&mut *self.lock()?)).map_err(|error| exception(py, &error))
    }

    fn lock(&self) -> Result<MutexGuard<'_, State>, ClientError> {
        if self.pid == std::process::id() {
            return Ok(self.state.lock().unwrap_or_else(PoisonError::into_inner));
        }
        // In a forked child the lock may be that of a thread which exists in the parent only.
        match self.state.try_lock() {
            Ok(guard) => Ok(guard),
            Err(TryLockError::Poisoned(poisoned)) => Ok(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => Err(ClientError::forked()),
        }
    }

    /// Hands the lines of the daemon's log that have arrived to Python, with nothing held.
    fn tell(&self, py: Python<'_>) -> PyResult<()> {
        self.waiting.tell(|level, text| match &self.log {
            Some(log) => log.call1(py, (level, text)).map(drop),
            None => Ok(()),
        })
    }

    /// A call that waits begins.
    fn call<'a, 'py>(&'a self, py: Python<'py>) -> Call<'a, 'py> {
        if self.calls.fetch_add(1, Ordering::Relaxed) > 0 {
            self.shared.store(true, Ordering::Relaxed);
        }
        Call { feed: self, py }
    }

    /// What Python gets of a batch, behind which the run stands at `after`.
    fn batch(&self, batch: client::Batch, after: Cursor, iteration: u64) -> Batch {
        let ready = batch.ready;
        let fields = &self.attached.layout.fields;
        let tensors =
            fields.iter().map(|field| Tensor::new(batch.memory.clone(), field.clone(), ready.rows)).collect();
        Batch {
            rows: ready.rows,
            epoch: ready.cursor.epoch,
            position: ready.cursor.position,
            substituted: ready.substituted,
            dropped: ready.dropped,
            memory: batch.memory,
            tensors,
            columns: batch.columns,
            column_offsets: self
                .attached
                .layout
                .columns
                .iter()
                .map(|column| column.offset as usize)
                .collect(),
            after,
            iteration,
        }
    }

    /// A stream without an end has one epoch: iterating again goes on where the last iteration was left.
    fn endless(&self) -> bool {
        self.attached.stream.as_ref().is_some_and(|stream| !stream.bounded)
    }
}

#[pymethods]
impl Feed {
    /// `pipeline` is JSON (a private daemon's, or a listening one's where its roots allow) or the name of a pipeline.
    /// With a `job` the daemon is that of the job's processes on this node, of which this is the `member` (its number,
    /// how many there are, how many here, which of its Loaders).
    /// While the source is being opened, `progress(what, done, total, counted)` is called now and then; then and in
    /// every other call that waits, `log(level, text)` with lines of the daemon's log.
    #[new]
    #[pyo3(signature = (*, binary=None, socket=None, pipeline=None, name=None, rank=0, world_size=1, timeout=None, job=None, member=None, progress=None, log=None))]
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
        job: Option<String>,
        member: Option<(u64, u64, u64, Option<u64>)>,
        progress: Option<Py<PyAny>>,
        log: Option<Py<PyAny>>,
    ) -> PyResult<Self> {
        let address = match (socket, binary, job) {
            (Some(path), ..) => Address::Socket(path),
            (None, Some(binary), Some(job)) => Address::Job(binary, job),
            (None, Some(binary), None) => Address::Private(binary),
            (None, None, _) => return Err(PyValueError::new_err("neither a socket nor a binary was given")),
        };
        let pipeline = match (name, pipeline) {
            (Some(name), _) => PipelineRef::Name(name),
            (None, Some(json)) => PipelineRef::Inline(
                serde_json::from_str(json).map_err(|error| PyValueError::new_err(error.to_string()))?,
            ),
            (None, None) => return Err(PyValueError::new_err("neither a pipeline nor its name was given")),
        };
        let member =
            member.map(|(process, processes, here, loader)| Member { process, processes, here, loader });
        let attach = Attach { pipeline, rank, world_size, start: Cursor::default(), member };
        let timeout = seconds(timeout)?;
        // What a callback or a signal handler raises ends the opening.
        let mut raised: Option<PyErr> = None;
        let attached = py.detach(|| {
            let failed = RefCell::new(&mut raised);
            let mut interrupt = || {
                let mut failed = failed.borrow_mut();
                if failed.is_none() {
                    **failed = Python::attach(|py| py.check_signals()).err();
                }
                failed.is_some()
            };
            Inner::attach(&address, attach, timeout, &mut interrupt, &mut |news| {
                let told = Python::attach(|py| match (news, &progress, &log) {
                    (News::Progress(now), Some(progress), _) => {
                        progress.call1(py, (&now.what, now.done, now.total, &now.counted)).map(drop)
                    }
                    (News::Log { level, text }, _, Some(log)) => log.call1(py, (level, text)).map(drop),
                    _ => Ok(()),
                });
                if let Err(error) = told {
                    failed.borrow_mut().get_or_insert(error);
                }
            })
        });
        let inner = match raised {
            Some(error) => return Err(error),
            None => attached.map_err(|error| exception(py, &error))?,
        };
        let (attached, daemon_pid) = (inner.attached().clone(), inner.daemon_pid());
        let waiting = inner.waiting();
        // Of a shared feed, the epoch that it joins with.
        let begin = inner.cursor();
        Ok(Self {
            state: Mutex::new(State { inner, start: begin, stood: begin, iteration: 0 }),
            waiting,
            calls: AtomicUsize::new(0),
            shared: AtomicBool::new(false),
            log,
            attached,
            daemon_pid,
            pid: std::process::id(),
        })
    }

    /// What the daemon told about the feed, as JSON.
    fn attached(&self) -> String {
        serde_json::to_string(&self.attached).expect("plain data")
    }

    /// Poisson(1) weights of rows for a client, as f32; `positions` are theirs, as i64.
    fn bagging<'py>(
        &self,
        py: Python<'py>,
        client: u64,
        epoch: u64,
        positions: &[u8],
    ) -> Bound<'py, PyByteArray> {
        let seed = self.attached.identity.seed;
        let weight = |position: &[u8; 8]| {
            f32::from(bagging::weight(seed, client, epoch, u64::from_le_bytes(*position))).to_le_bytes()
        };
        let weights: Vec<u8> = positions.as_chunks::<8>().0.iter().flat_map(weight).collect();
        PyByteArray::new(py, &weights)
    }

    /// Process id of the daemon.
    #[getter]
    fn daemon_pid(&self) -> u32 {
        self.daemon_pid
    }

    /// Begins an iteration, which ends the one under way: (its number, its epoch).
    fn begin(&self, py: Python<'_>) -> PyResult<(u64, u64)> {
        self.step(py, |state| {
            let at = if self.endless() { state.stood } else { state.start };
            state.inner.seek(at)?;
            state.end_iteration();
            state.stood = at;
            state.start = Cursor { epoch: at.epoch + 1, position: 0 };
            Ok((state.iteration, at.epoch))
        })
    }

    /// The next batch of an iteration, or None at its end. The caller has it once it says `took`.
    fn next(&self, py: Python<'_>, iteration: u64, timeout: Option<f64>) -> PyResult<Option<Batch>> {
        let batch = until(&mut self.call(py), Wanted::Batch, seconds(timeout)?, |_| {
            self.step(py, |state| {
                state.check(iteration)?;
                Ok(match state.inner.try_next()? {
                    Next::Batch(batch) => Some(Some((batch, state.inner.cursor()))),
                    Next::End => {
                        state.stood = Cursor { epoch: state.inner.cursor().epoch + 1, position: 0 };
                        Some(None)
                    }
                    Next::Pending => None,
                })
            })
        })?;
        Ok(batch.map(|(batch, after)| self.batch(*batch, after, iteration)))
    }

    /// The next batch of an iteration if it is there already. It is the next one to take, as after `next`; the end of
    /// the epoch is for `next` to say.
    fn poll(&self, py: Python<'_>, iteration: u64) -> PyResult<Option<Batch>> {
        let mut call = self.call(py);
        call.step(Steps::look)?;
        call.tell()?;
        let found = self.step(py, |state| {
            state.check(iteration)?;
            Ok(match state.inner.try_next()? {
                Next::Batch(batch) => Some((batch, state.inner.cursor())),
                Next::End | Next::Pending => None,
            })
        })?;
        Ok(found.map(|(batch, after)| self.batch(*batch, after, iteration)))
    }

    /// A way to GPU number `ordinal` for the batches of this feed; `pin` is "auto", "require" or "off".
    fn uploader(&self, py: Python<'_>, ordinal: i32, pin: &str) -> PyResult<Uploader> {
        let pin = upload::pin(pin)?;
        let made = py.detach(|| self.lock().map(|mut state| state.inner.uploader(ordinal, pin)));
        made.map_err(|error| exception(py, &error))?.map(Uploader).map_err(PyRuntimeError::new_err)
    }

    /// A batch has reached the caller: the run stands behind it. Not earlier, or a handler that saves the state while a
    /// batch is on its way would save that the caller has had it.
    fn took(&self, py: Python<'_>, batch: &Batch) -> PyResult<()> {
        self.step(py, |state| {
            // What ended the iteration meanwhile ended it before this batch.
            state.check(batch.iteration)?;
            state.inner.usable()?;
            // A signal handler may have taken the one after it.
            if (state.stood.epoch, state.stood.position) < (batch.after.epoch, batch.after.position) {
                state.stood = batch.after;
            }
            Ok(())
        })
    }

    /// Makes the next iteration begin with an epoch, and ends the one under way; where it would have begun.
    fn set_epoch(&self, py: Python<'_>, epoch: u64) -> PyResult<(u64, u64)> {
        self.step(py, |state| {
            let Cursor { epoch: was, position } = state.start;
            if was != epoch {
                state.end_iteration();
                state.start = Cursor { epoch, position: 0 };
                state.stood = state.start;
            }
            Ok((was, position))
        })
    }

    /// (epoch, position) behind the last batch that reached the caller.
    fn stood(&self, py: Python<'_>) -> PyResult<(u64, u64)> {
        self.step(py, |state| Ok((state.stood.epoch, state.stood.position)))
    }

    /// Batches left in an iteration; None when nobody knows (a stream that has not ended).
    fn batches_left(&self, py: Python<'_>, iteration: u64) -> PyResult<Option<u64>> {
        self.step(py, |state| {
            if state.iteration != iteration {
                return Ok(Some(0));
            }
            Ok(state.inner.batches_left())
        })
    }

    /// The token of where the run stands, as JSON.
    fn token(&self, py: Python<'_>) -> PyResult<String> {
        self.step(py, |state| Ok(state.inner.token(state.stood)?.to_json()))
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
        self.step(py, |state| {
            // The daemon begins at once, not at the next iteration.
            let cursor = state.inner.load(token, &allowed)?;
            state.end_iteration();
            (state.start, state.stood) = (cursor, cursor);
            Ok((cursor.epoch, cursor.position))
        })
    }

    /// A checkpoint with this token is safe.
    fn saved(&self, py: Python<'_>, token: &str) -> PyResult<()> {
        let token = Token::from_json(token).map_err(|error| exception(py, &error.into()))?;
        self.step(py, |state| state.inner.saved(token))
    }

    /// Keys of records.
    fn keys(&self, py: Python<'_>, indices: Vec<i64>, timeout: Option<f64>) -> PyResult<Vec<String>> {
        client::keys(&mut self.call(py), &indices, seconds(timeout)?)
    }

    /// The daemon's counters and the verdict, as JSON.
    fn stats(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<String> {
        let stats = client::stats(&mut self.call(py), seconds(timeout)?)?;
        Ok(serde_json::to_string(&stats).expect("plain data"))
    }

    /// What was counted on this side.
    fn counters<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let (counters, leased) = self.step(py, |state| Ok((state.inner.counters(), state.inner.leased())))?;
        let dict = PyDict::new(py);
        dict.set_item("data_wait_s", counters.data_wait_ns as f64 / 1e9)?;
        dict.set_item("iteration_s", counters.iteration_ns as f64 / 1e9)?;
        dict.set_item("batches", counters.batches)?;
        dict.set_item("images", counters.rows)?;
        dict.set_item("copied_batches", counters.copies)?;
        dict.set_item("leased_slots", leased)?;
        Ok(dict)
    }

    /// Ends the feed; views of batches stay readable. What the daemon said before is told.
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        // In a forked child there is nothing to end.
        py.detach(|| self.lock().map(|mut state| state.inner.close()).unwrap_or_default());
        self.tell(py)
    }
}

/// One batch: what its records hold as tensors, and the columns beside them.
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
    memory: Memory,
    tensors: Vec<Tensor>,
    columns: Vec<Vec<u8>>,
    /// Where each begins in the slot.
    column_offsets: Vec<usize>,
    /// Where the run stands behind it.
    after: Cursor,
    iteration: u64,
}

impl Batch {
    /// The bytes of its fields.
    pub fn memory(&self) -> &Memory {
        &self.memory
    }

    /// Where the rows of field `at` begin, and how many bytes they are.
    pub fn field_place(&self, at: usize) -> PyResult<(*const u8, usize)> {
        self.tensors
            .get(at)
            .map(Tensor::bytes)
            .ok_or_else(|| PyValueError::new_err(format!("there is no tensor {at}")))
    }

    /// Where column `at` lies in the slot, and how many bytes it is.
    pub fn column_place(&self, at: usize) -> PyResult<(*const u8, usize)> {
        let len = self.column_bytes(at)?.len();
        let offset = self.column_offsets.get(at).copied();
        let place = offset.and_then(|offset| self.memory.slot_address(offset, len));
        Ok((place.ok_or_else(|| PyValueError::new_err("the batch has no slot"))?, len))
    }

    /// The bytes of column `at`.
    fn column_bytes(&self, at: usize) -> PyResult<&[u8]> {
        self.columns
            .get(at)
            .map(Vec::as_slice)
            .ok_or_else(|| PyValueError::new_err(format!("there is no column {at}")))
    }

    /// What counts of each row of a field.
    fn rows_of(&self, at: usize) -> PyResult<Vec<Vec<u8>>> {
        let [Some(values), Some(lengths)] = [self.tensors.get(at), self.tensors.get(at + 1)] else {
            return Err(PyValueError::new_err(format!("there are no lengths of tensor {at}")));
        };
        if values.rows().min(lengths.rows()) < self.rows {
            return Err(PyValueError::new_err(format!("the rows of tensor {at} were not kept")));
        }
        (0..self.rows as usize)
            .map(|row| {
                let length = i64::from_le_bytes(lengths.row(row, 8).try_into().expect("8 bytes"));
                let length = usize::try_from(length).ok().filter(|&length| length <= values.row_bytes());
                let length = length.ok_or_else(|| PyValueError::new_err("a row is longer than its field"))?;
                Ok(values.row(row, length))
            })
            .collect()
    }
}

#[pymethods]
impl Batch {
    /// The same rows, of which the fields called by their numbers are copies and no others are there: it holds no slot.
    fn held(&self, fields: Vec<usize>) -> Self {
        let keep = |(at, tensor): (usize, &Tensor)| match fields.contains(&at) {
            true => tensor.owned(),
            false => tensor.none(),
        };
        let tensors = self.tensors.iter().enumerate().map(keep).collect();
        Self {
            memory: Memory::none(),
            tensors,
            columns: self.columns.clone(),
            column_offsets: Vec::new(),
            ..*self
        }
    }

    /// Field `at`, as a DLPack producer.
    fn tensor(&self, at: usize) -> PyResult<Tensor> {
        self.tensors.get(at).cloned().ok_or_else(|| PyValueError::new_err(format!("there is no tensor {at}")))
    }

    /// The rows of field `at`, whose lengths are the field behind it, as text.
    fn texts<'py>(&self, py: Python<'py>, at: usize) -> PyResult<Vec<Bound<'py, PyString>>> {
        let text = |bytes: &[u8]| match std::str::from_utf8(bytes) {
            Ok(text) => Ok(PyString::new(py, text)),
            Err(_) => {
                Err(PyValueError::new_err("a row of text is not UTF-8: the daemon is of another version"))
            }
        };
        self.rows_of(at)?.iter().map(|row| text(row)).collect()
    }

    /// The rows of field `at`, whose lengths are the field behind it, as bytes.
    fn blobs<'py>(&self, py: Python<'py>, at: usize) -> PyResult<Vec<Bound<'py, PyBytes>>> {
        Ok(self.rows_of(at)?.iter().map(|row| PyBytes::new(py, row)).collect())
    }

    /// The bytes of column `at`, as a fresh bytearray.
    fn column<'py>(&self, py: Python<'py>, at: usize) -> PyResult<Bound<'py, PyByteArray>> {
        self.column_bytes(at).map(|bytes| PyByteArray::new(py, bytes))
    }
}
