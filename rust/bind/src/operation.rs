//! What an asynchronous call returns: started already, awaited once.
//!
//! An operation follows the coroutine protocol, so that `create_task`, `TaskGroup`, `gather`,
//! `wait_for` and `shield` take it. Awaited directly, it hands out the iterator of a plain future
//! of the loop, and the interpreter's own fast path does the rest.
//!
//! # Always true
//!
//! 1. It is awaited once; a second time is a `RuntimeError`.
//! 2. Nothing is undone by dropping it. Only an append that still stands in line for the ring can
//!    be taken back, by cancelling the await.
//! 3. After [`FAIR`] awaits in a row that did not have to wait, or [`FAIR_TIME`], one yields to
//!    the loop.

use std::{
    cell::Cell,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use millrace_core::{
    epoch::Kind,
    fork::Origin,
    ids::Lsn,
    planted,
    sync::lock,
    wal::{
        Level,
        log::{Pending, PendingAppend},
    },
};
use pyo3::{
    PyTraverseError, PyVisit,
    exceptions::{PyRuntimeError, PyRuntimeWarning, PyStopIteration, PyTypeError},
    intern,
    prelude::*,
    types::{PyGenericAlias, PyType},
};

use crate::{
    cleanup, current, deliver, door, error,
    jobs::Answering,
    lines::{Queued, Value, Waiter, last},
    loops::LoopPort,
    shared::Shared,
};

/// Awaits in a row that may be done at once before one yields.
const FAIR: u32 = 128;

/// How long such a row may last: a loop that runs late by so much is late for everybody.
const FAIR_TIME: Duration = Duration::from_millis(1);

/// Awaits in a row that were done at once, and when the first of them was.
#[derive(Clone, Copy)]
struct Row {
    count: u32,
    since: Option<Instant>,
}

thread_local! {
    static ROW: Cell<Row> = const { Cell::new(NO_ROW) };
}

const NO_ROW: Row = Row {
    count: 0,
    since: None,
};

/// What is waited for.
pub enum Source {
    /// An LSN of a log.
    Mark {
        log: Arc<Shared>,
        level: Level,
        lsn: u64,
        value: Value,
    },
    /// An append that stands in line for the ring.
    InLine {
        log: Arc<Shared>,
        level: Level,
        pending: Arc<PendingAppend>,
        value: Value,
        /// Later calls have higher ones.
        number: u64,
    },
    /// Whatever answers, such as a job on a worker.
    Job(Arc<dyn Answering>),
    /// Nothing: the value is known.
    Known(Py<PyAny>),
}

impl Source {
    fn can_be_taken_back(&self) -> bool {
        match self {
            Self::InLine { .. } => true,
            Self::Job(job) => job.can_withdraw(),
            Self::Mark { .. } | Self::Known(_) => false,
        }
    }

    /// The job, if a value of it that finds nobody is to be given back.
    fn takes_back(&self) -> Option<Arc<dyn Answering>> {
        match self {
            Self::Job(job) if job.takes_back() => Some(Arc::clone(job)),
            _ => None,
        }
    }
}

/// An operation under way: started by the call that returned it, awaited once.
///
/// It is a coroutine as far as asyncio is concerned: await it, or give it to `create_task`,
/// `TaskGroup`, `gather`, `wait_for` or `shield`. Dropping it does not stop what it started.
#[pyclass(frozen, module = "millrace._core")]
pub struct Operation {
    name: &'static str,
    /// Where dropping it without an await deserves a warning: nowhere, or in this process.
    owed_in: Option<Origin>,
    state: Mutex<State>,
}

enum State {
    Fresh(Source),
    /// Awaited, and stepping itself, so that what is thrown reaches it.
    Begun(Source),
    /// A task steps us itself and waits for this future.
    Waiting {
        future: Py<PyAny>,
        hold: Option<Hold>,
    },
    /// Done, and the loop was yielded to first.
    Yielded(Py<PyAny>, Option<Arc<dyn Answering>>),
    Spent,
}

/// What can still be taken back.
enum Hold {
    Line(InLine),
    Job(Arc<dyn Answering>),
}

/// Where to take back an append.
struct InLine {
    log: Arc<Shared>,
    port: Arc<LoopPort>,
    pending: Arc<PendingAppend>,
    number: u64,
}

/// What starting to wait came to.
enum Step<'py> {
    Ready(Bound<'py, PyAny>),
    Wait(Bound<'py, PyAny>, Option<Hold>),
}

impl Operation {
    pub fn new(name: &'static str, source: Source) -> Self {
        Self::make(name, source, true)
    }

    /// One that changes nothing, so that nobody minds when it is dropped without an await.
    pub fn quiet(name: &'static str, source: Source) -> Self {
        Self::make(name, source, false)
    }

    fn make(name: &'static str, source: Source, is_owed: bool) -> Self {
        let state = Mutex::new(State::Fresh(source));
        Self {
            name,
            owed_in: Origin::here().ok().filter(|_| is_owed),
            state,
        }
    }

    fn take(&self) -> State {
        std::mem::replace(&mut *lock(&self.state), State::Spent)
    }

    fn put(&self, state: State) {
        *lock(&self.state) = state;
    }

    fn spent(&self) -> PyErr {
        PyRuntimeError::new_err(format!("cannot reuse already awaited {}()", self.name))
    }

    /// Advances like a coroutine: `Ok` is what the task shall wait for.
    fn step(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        match self.take() {
            State::Fresh(source) | State::Begun(source) => {
                let job = source.takes_back();
                match start(py, source)? {
                    Step::Ready(value) if is_fair() => Err(stop(value.unbind())),
                    Step::Ready(value) => {
                        self.put(State::Yielded(value.unbind(), job));
                        Ok(py.None())
                    }
                    Step::Wait(future, hold) => self.wait_for(future, hold),
                }
            }
            State::Waiting { future, hold } => {
                let waited = future.bind(py);
                if waited.call_method0(intern!(py, "done"))?.is_truthy()? {
                    let result = waited.call_method0(intern!(py, "result"))?;
                    return Err(stop(result.unbind()));
                }
                self.put(State::Waiting { future, hold });
                Err(PyRuntimeError::new_err("await wasn't used with future"))
            }
            State::Yielded(value, _) => Err(stop(value)),
            State::Spent => Err(self.spent()),
        }
    }

    fn wait_for(&self, future: Bound<'_, PyAny>, hold: Option<Hold>) -> PyResult<Py<PyAny>> {
        let py = future.py();
        future.setattr(intern!(py, "_asyncio_future_blocking"), true)?;
        let future = future.unbind();
        let waiting = future.clone_ref(py);
        self.put(State::Waiting {
            future: waiting,
            hold,
        });
        Ok(future)
    }

    /// Nobody waits any more; an append still in line is taken back, and what is there already goes
    /// back to where it came from.
    fn abandon(&self, py: Python<'_>) {
        match self.take() {
            State::Fresh(Source::InLine { pending, .. })
            | State::Begun(Source::InLine { pending, .. })
                if !planted!("bind_stays_in_line") && pending.cancel() =>
            {
                free(&pending);
            }
            State::Fresh(Source::Job(job)) | State::Begun(Source::Job(job)) => job.withdraw(),
            State::Waiting {
                hold: Some(Hold::Job(job)),
                future,
            } => match result_of(future.bind(py)) {
                Some(value) if job.takes_back() => job.take_back(&value),
                _ => job.withdraw(),
            },
            State::Yielded(value, Some(job)) => job.take_back(value.bind(py)),
            State::Waiting {
                hold: Some(Hold::Line(line)),
                ..
            } if !planted!("bind_stays_in_line") && line.pending.cancel() => {
                line.port.forget_admission(&line.log, line.number);
                free(&line.pending);
            }
            _ => {}
        }
    }
}

/// What a future was resolved with, if it was.
fn result_of<'py>(future: &Bound<'py, PyAny>) -> Option<Bound<'py, PyAny>> {
    let py = future.py();
    let says = |name| future.call_method0(name)?.is_truthy();
    let is_done = says(intern!(py, "done")).unwrap_or(false);
    let is_cancelled = says(intern!(py, "cancelled")).unwrap_or(true);
    if !is_done || is_cancelled {
        return None;
    }
    future.call_method0(intern!(py, "result")).ok()
}

/// Records that will never be written are given back to the allocator by a worker.
fn free(pending: &PendingAppend) {
    if let Some((records, bytes)) = pending.take_back() {
        cleanup::later(Kind::Obligation, bytes, move || {
            drop(records);
            Ok(())
        });
    }
}

/// What `await` iterates over: the loop's own future, or an iterator that is done.
pub fn iterate(py: Python<'_>, source: Source) -> PyResult<Bound<'_, PyAny>> {
    match start(py, source)? {
        Step::Ready(value) => {
            let done = Done {
                value: value.unbind(),
                must_yield: !is_fair(),
                yielded: AtomicBool::new(false),
            };
            Ok(Bound::new(py, done)?.into_any())
        }
        Step::Wait(future, _) => Ok(future.try_iter()?.into_any()),
    }
}

fn start(py: Python<'_>, source: Source) -> PyResult<Step<'_>> {
    let step = begin(py, source)?;
    if let Step::Wait(..) = step {
        ROW.set(NO_ROW);
    }
    Ok(step)
}

fn begin(py: Python<'_>, source: Source) -> PyResult<Step<'_>> {
    match source {
        Source::Mark {
            log,
            level,
            lsn,
            value,
        } => start_mark(py, &log, level, lsn, value),
        Source::InLine {
            log,
            level,
            pending,
            value,
            number,
        } => start_line(py, log, level, pending, value, number),
        Source::Job(job) => {
            if let Some(answer) = job.answer() {
                return Ok(Step::Ready(answer(py)?.into_bound(py)));
            }
            let here = current::here(py)?;
            job.on_wait(py)?;
            let future = here.future.clone().unbind();
            here.port().wait_job(&job, future);
            let hold = job.can_withdraw().then_some(Hold::Job(job));
            Ok(Step::Wait(here.future, hold))
        }
        Source::Known(value) => Ok(Step::Ready(value.into_bound(py))),
    }
}

#[inline]
fn start_mark<'py>(
    py: Python<'py>,
    log: &Arc<Shared>,
    level: Level,
    lsn: u64,
    value: Value,
) -> PyResult<Step<'py>> {
    let marks = log.appender.marks();
    let mark = match level {
        Level::Appended => Lsn(lsn),
        Level::Committed => marks.committed,
        Level::Durable => marks.durable,
    };
    if mark.0 >= lsn {
        return deliver::show(py, lsn, value, marks.durable.0).map(Step::Ready);
    }
    let here = current::here(py)?;
    let future = here.future.clone().unbind();
    here.port()
        .wait_mark(log, level, Waiter { lsn, value, future });
    Ok(Step::Wait(here.future, None))
}

fn start_line(
    py: Python<'_>,
    log: Arc<Shared>,
    level: Level,
    pending: Arc<PendingAppend>,
    value: Value,
    number: u64,
) -> PyResult<Step<'_>> {
    match pending.state() {
        Pending::Admitted(first) => start_mark(py, &log, level, last(first.0, value), value),
        Pending::Failed(failed) => Err(error::raise(py, &failed)),
        Pending::Waiting => {
            let here = current::here(py)?;
            let port = Arc::clone(here.port());
            let future = here.future.clone().unbind();
            let queued = Queued {
                pending: Arc::clone(&pending),
                level,
                value,
                future,
            };
            port.wait_admission(&log, number, queued);
            Ok(Step::Wait(
                here.future,
                Some(Hold::Line(InLine {
                    log,
                    port,
                    pending,
                    number,
                })),
            ))
        }
    }
}

/// Whether an await that is done at once may go on at once. False ends the row: it yields.
fn is_fair() -> bool {
    let row = ROW.get();
    let (count, now) = (row.count + 1, Instant::now());
    let since = row.since.unwrap_or(now);
    let is_fair =
        count < FAIR && now.duration_since(since) < FAIR_TIME || planted!("bind_row_never_ends");
    let row = Row {
        count,
        since: Some(since),
    };
    ROW.set(if is_fair { row } else { NO_ROW });
    is_fair
}

fn stop(value: Py<PyAny>) -> PyErr {
    PyStopIteration::new_err((value,))
}

#[pymethods]
impl Operation {
    fn __await__<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        let (py, this) = (slf.py(), slf.get());
        let source = match this.take() {
            State::Fresh(source) if source.can_be_taken_back() => {
                this.put(State::Begun(source));
                return Ok(slf.clone().into_any());
            }
            State::Fresh(source) => source,
            other => {
                this.put(other);
                return Err(this.spent());
            }
        };
        iterate(py, source)
    }

    /// Advance one step, as a task does; the result is what to wait for.
    #[pyo3(signature = (value, /))]
    fn send(&self, py: Python<'_>, value: &Bound<'_, PyAny>) -> PyResult<Py<PyAny>> {
        if !value.is_none() {
            return Err(PyTypeError::new_err("can't send a value into an operation"));
        }
        self.step(py)
    }

    fn __next__(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        self.step(py)
    }

    /// Stop waiting with an exception, as a cancelled task does.
    #[pyo3(signature = (kind, value = None, traceback = None))]
    fn throw(
        &self,
        py: Python<'_>,
        kind: Bound<'_, PyAny>,
        value: Option<Bound<'_, PyAny>>,
        traceback: Option<Bound<'_, PyAny>>,
    ) -> PyResult<Py<PyAny>> {
        let _ = traceback;
        self.abandon(py);
        Err(PyErr::from_value(
            value.filter(|v| !v.is_none()).unwrap_or(kind),
        ))
    }

    /// Stop waiting. What can still be taken back is.
    fn close(&self, py: Python<'_>) {
        self.abandon(py);
    }

    #[classmethod]
    #[pyo3(signature = (item, /))]
    fn __class_getitem__<'py>(
        class: &Bound<'py, PyType>,
        item: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyGenericAlias>> {
        PyGenericAlias::new(class.py(), class.as_any(), item)
    }

    /// A task that steps an operation is held by it, by way of the future: a cycle when the loop
    /// is gone.
    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        // Locked only by attached threads, and never across a Python call: this never fails.
        let Ok(state) = self.state.try_lock() else {
            return Ok(());
        };
        match &*state {
            State::Fresh(Source::Known(held))
            | State::Begun(Source::Known(held))
            | State::Waiting { future: held, .. }
            | State::Yielded(held, _) => visit.call(held),
            // Nobody else has it yet. From the moment a loop waits for it, that loop shows it.
            State::Fresh(Source::Job(job)) | State::Begun(Source::Job(job)) => job.traverse(&visit),
            State::Fresh(_) | State::Begun(_) | State::Spent => Ok(()),
        }
    }

    fn __clear__(&self) {
        drop(self.take());
    }

    /// What asyncio shows in the representation of a task.
    #[getter]
    fn __name__(&self) -> &'static str {
        self.name
    }

    /// The same.
    #[getter]
    fn __qualname__(&self) -> &'static str {
        self.name
    }

    fn __repr__(&self) -> String {
        let state = match &*lock(&self.state) {
            State::Fresh(_) => "not awaited",
            State::Begun(_) | State::Waiting { .. } | State::Yielded(..) => "awaited",
            State::Spent => "spent",
        };
        format!("<millrace operation {}() {state}>", self.name)
    }
}

impl Drop for Operation {
    fn drop(&mut self) {
        // What a forked child inherited is its parent's to await.
        let is_owed = self.owed_in.is_some_and(|origin| !origin.is_forked_child());
        if !is_owed || !matches!(&*lock(&self.state), State::Fresh(_)) {
            return;
        }
        let name = self.name;
        door::attached(|py| warn_unawaited(py, name));
    }
}

fn warn_unawaited(py: Python<'_>, name: &str) {
    let text = format!(
        "{name}() was never awaited: it was started, but nobody learns whether it succeeded"
    );
    error::warn(py, &py.get_type::<PyRuntimeWarning>(), text);
}

/// The iterator of an await that had nothing to wait for.
#[pyclass(frozen, module = "millrace._core")]
struct Done {
    value: Py<PyAny>,
    must_yield: bool,
    yielded: AtomicBool,
}

#[pymethods]
impl Done {
    fn __iter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __next__(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        let yielded = self.yielded.swap(true, Ordering::Relaxed);
        if self.must_yield && !yielded {
            return Ok(py.None());
        }
        Err(stop(self.value.clone_ref(py)))
    }
}
