//! A limit for a block of a task, with the semantics of `asyncio.timeout`.
//!
//! ```text
//! created --enter--> active --time is up--> expiring --exit--> expired   (TimeoutError)
//!                      |  \--wheel closed--> closing --exit--> closed    (ClosedError)
//!                      \--exit--> finished
//! ```
//!
//! Who closes the wheel from inside of the block is not cancelled on the spot: it would hit the
//! first wait after the block, if there is none in it. The loop does it in its next iteration,
//! unless the block has been left by then.
//!
//! The block turns only its own cancellation into an error: at the exit it takes its request back
//! with `uncancel`, and if others are left, they are what the block ends with.

use std::sync::{Arc, Mutex, MutexGuard};

use millrace_core::{clock::Mono, sync::lock, wheel::Key};
use pyo3::{
    PyTraverseError, PyVisit,
    exceptions::{PyRuntimeError, PyStopIteration, PyTimeoutError},
    intern,
    prelude::*,
    sync::PyOnceLock,
    types::PyTuple,
};

use super::{Home, TimeoutWheel, Timer, closed, schedule, seconds, turn::Call};
use crate::{error, gate};

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Created,
    Active,
    Expiring,
    Closing,
    Expired,
    Closed,
    Finished,
}

impl Stage {
    fn name(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Active => "active",
            Self::Expiring => "expiring",
            Self::Closing => "closing",
            Self::Expired => "expired",
            Self::Closed => "closed",
            Self::Finished => "finished",
        }
    }
}

/// A limit on how long the block under it may take; made by `TimeoutWheel.timeout`.
#[pyclass(frozen, module = "millrace._core")]
pub struct Timeout {
    wheel: Py<TimeoutWheel>,
    inner: Mutex<Inner>,
}

struct Inner {
    stage: Stage,
    deadline: Option<Mono>,
    /// The deadline as it was given.
    when: Option<f64>,
    key: Option<Key>,
    /// A call asked of the loop: the deadline had passed already, or the wheel was closed inside.
    soon: Option<Py<PyAny>>,
    task: Option<Py<PyAny>>,
    /// The task was asked to cancel itself, by us.
    has_cancelled: bool,
    /// Requests to cancel the task that were there before us.
    cancelling: u64,
}

impl Timeout {
    pub fn new(wheel: Py<TimeoutWheel>, deadline: Option<Mono>) -> Self {
        let inner = Inner {
            stage: Stage::Created,
            deadline,
            when: deadline.map(seconds::of),
            key: None,
            soon: None,
            task: None,
            has_cancelled: false,
            cancelling: 0,
        };
        Self {
            wheel,
            inner: Mutex::new(inner),
        }
    }

    /// The time is up: what cancels the task, unless the block has been left.
    pub fn expire<'py>(&self, py: Python<'py>) -> PyResult<Option<Call<'py>>> {
        let Some(task) = self.interrupt(py, Stage::Expiring) else {
            return Ok(None);
        };
        let cancel = task.bind(py).getattr(intern!(py, "cancel"))?;
        Ok(Some((cancel, PyTuple::empty(py))))
    }

    /// The wheel was closed: nobody would end the block in time, so it ends now.
    pub fn abandon(slf: &Bound<'_, Self>, event_loop: &Bound<'_, PyAny>) -> PyResult<()> {
        let (py, this) = (slf.py(), slf.get());
        let running = task_of(event_loop)?;
        let mut inner = lock(&this.inner);
        let is_inside = inner.task.as_ref().is_some_and(|task| task.is(&running));
        if !is_inside || inner.stage != Stage::Active {
            drop(inner);
            return cancel(py, this.interrupt(py, Stage::Closing));
        }
        inner.stage = Stage::Closing;
        inner.key = None;
        drop(inner);
        this.call_soon(slf, event_loop)
    }

    /// The task that is to be cancelled.
    fn interrupt(&self, py: Python<'_>, stage: Stage) -> Option<Py<PyAny>> {
        let mut inner = lock(&self.inner);
        if inner.stage != Stage::Active {
            return None;
        }
        inner.stage = stage;
        inner.key = None;
        stopped(py, inner)
    }

    /// What was asked of the loop has come: the time is up, or the wheel closed.
    fn on_soon(&self, py: Python<'_>) -> PyResult<()> {
        let mut inner = lock(&self.inner);
        match inner.stage {
            Stage::Active => inner.stage = Stage::Expiring,
            Stage::Closing => {}
            _ => return Ok(()),
        }
        cancel(py, stopped(py, inner))
    }

    fn call_soon(&self, slf: &Bound<'_, Self>, event_loop: &Bound<'_, PyAny>) -> PyResult<()> {
        let py = slf.py();
        let _inside = gate::enter(py);
        let soon = Bound::new(py, Soon(slf.clone().unbind()))?;
        let handle = event_loop.call_method1(intern!(py, "call_soon"), (soon,))?;
        lock(&self.inner).soon = Some(handle.unbind());
        Ok(())
    }

    fn disarm(&self, py: Python<'_>) -> PyResult<()> {
        let mut inner = lock(&self.inner);
        let (key, soon) = (inner.key.take(), inner.soon.take());
        drop(inner);
        if let Some(key) = key {
            self.wheel.get().core.cancel(key);
        }
        if let Some(soon) = soon {
            let _inside = gate::enter(py);
            soon.call_method0(py, intern!(py, "cancel"))?;
        }
        Ok(())
    }

    /// Arms the deadline; one that has passed counts in the loop's next iteration.
    fn arm(slf: &Bound<'_, Self>, home: &Arc<Home>) -> PyResult<()> {
        let (py, this) = (slf.py(), slf.get());
        let Some(deadline) = lock(&this.inner).deadline else {
            return Ok(());
        };
        let now = home.now(py)?;
        if deadline <= now {
            return this.call_soon(slf, home.event_loop().bind(py));
        }
        let timer = Timer {
            what: slf.clone().into_any().unbind(),
            context: None,
        };
        let key = schedule(this.wheel.bind(py), home, (now, deadline), timer)?;
        lock(&this.inner).key = Some(key);
        Ok(())
    }

    /// Ends the block once its time was up or the wheel closed.
    fn conclude(&self, py: Python<'_>, stage: Stage, thrown: &Bound<'_, PyAny>) -> PyResult<()> {
        let mut inner = lock(&self.inner);
        inner.stage = match stage {
            Stage::Closing => Stage::Closed,
            _ => Stage::Expired,
        };
        let (task, before) = (inner.task.take(), inner.cancelling);
        let has_cancelled = inner.has_cancelled;
        drop(inner);
        let Some(task) = task.filter(|_| has_cancelled) else {
            return Ok(());
        };
        let left: u64 = task
            .call_method0(py, intern!(py, "uncancel"))?
            .extract(py)?;
        if left > before || thrown.is_none() {
            return Ok(());
        }
        if thrown.is_instance(cancelled_error(py)?)? {
            return Err(because(py, stage, thrown)?);
        }
        replace_cause(py, stage, thrown)
    }
}

/// The task under a timeout, which is told to end from now on.
fn stopped(py: Python<'_>, mut inner: MutexGuard<'_, Inner>) -> Option<Py<PyAny>> {
    let soon = inner.soon.take();
    inner.has_cancelled = true;
    let task = inner.task.as_ref().map(|task| task.clone_ref(py));
    drop(inner);
    drop(soon);
    task
}

fn cancel(py: Python<'_>, task: Option<Py<PyAny>>) -> PyResult<()> {
    if let Some(task) = task {
        let _inside = gate::enter(py);
        task.call_method0(py, intern!(py, "cancel"))?;
    }
    Ok(())
}

#[pymethods]
impl Timeout {
    /// The deadline as a time of the loop; `None` if there is no limit.
    fn when(&self) -> Option<f64> {
        lock(&self.inner).when
    }

    /// Whether the time was up while the block was running.
    fn expired(&self) -> bool {
        matches!(lock(&self.inner).stage, Stage::Expiring | Stage::Expired)
    }

    /// Move the deadline to *when*, a time of the loop; `None` takes the limit away.
    ///
    /// Raises:
    ///     RuntimeError: Outside of the block, and once the time was up.
    fn reschedule(slf: &Bound<'_, Self>, when: Option<&Bound<'_, PyAny>>) -> PyResult<()> {
        let (py, this) = (slf.py(), slf.get());
        let when = when.map(seconds::instant).transpose()?;
        let stage = lock(&this.inner).stage;
        if stage != Stage::Active {
            return Err(PyRuntimeError::new_err(match stage {
                Stage::Created => "the timeout has not been entered".to_owned(),
                stage => format!("the timeout is {} and cannot be changed", stage.name()),
            }));
        }
        let home = this.wheel.get().core.home(py)?;
        this.disarm(py)?;
        let mut inner = lock(&this.inner);
        inner.deadline = when.map(seconds::mono);
        inner.when = when;
        drop(inner);
        Self::arm(slf, &home)
    }

    fn __aenter__<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, Instant>> {
        let (py, this) = (slf.py(), slf.get());
        if lock(&this.inner).stage != Stage::Created {
            return Err(PyRuntimeError::new_err("a timeout is entered once"));
        }
        let home = this.wheel.get().core.home(py)?;
        let task = current_task(py)?;
        let cancelling = task.call_method0(intern!(py, "cancelling"))?.extract()?;
        let mut inner = lock(&this.inner);
        inner.task = Some(task.unbind());
        inner.cancelling = cancelling;
        inner.stage = Stage::Active;
        drop(inner);
        if let Err(failed) = Self::arm(slf, &home) {
            lock(&this.inner).stage = Stage::Finished;
            return Err(failed);
        }
        let value = Some(slf.clone().into_any().unbind());
        Bound::new(py, Instant(value))
    }

    #[pyo3(signature = (_kind, thrown, _traceback, /))]
    fn __aexit__(
        &self,
        py: Python<'_>,
        _kind: &Bound<'_, PyAny>,
        thrown: &Bound<'_, PyAny>,
        _traceback: &Bound<'_, PyAny>,
    ) -> PyResult<Py<Instant>> {
        self.disarm(py)?;
        let mut inner = lock(&self.inner);
        if let stage @ (Stage::Expiring | Stage::Closing) = inner.stage {
            drop(inner);
            self.conclude(py, stage, thrown)?;
        } else {
            inner.stage = Stage::Finished;
            let task = inner.task.take();
            drop(inner);
            drop(task);
        }
        Instant::nothing(py)
    }

    fn __repr__(&self) -> String {
        let inner = lock(&self.inner);
        let stage = inner.stage.name();
        match inner.when.filter(|_| inner.stage == Stage::Active) {
            Some(when) => format!("<millrace.Timeout {stage} when={when:.3}>"),
            None => format!("<millrace.Timeout {stage}>"),
        }
    }

    #[allow(clippy::needless_pass_by_value)]
    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.wheel)?;
        let Ok(inner) = self.inner.try_lock() else {
            return Ok(());
        };
        visit.call(&inner.task)?;
        visit.call(&inner.soon)
    }

    fn __clear__(&self) {
        let mut inner = lock(&self.inner);
        let held = (inner.task.take(), inner.soon.take());
        drop(inner);
        drop(held);
    }
}

/// What the loop calls for a timeout that does not wait in the wheel.
#[pyclass(frozen, module = "millrace._core", name = "TimeoutSoon")]
struct Soon(Py<Timeout>);

#[pymethods]
impl Soon {
    fn __call__(&self, py: Python<'_>) -> PyResult<()> {
        self.0.get().on_soon(py)
    }

    #[allow(clippy::needless_pass_by_value)]
    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.0)
    }
}

/// An awaitable that is done: its value, or nothing.
#[pyclass(frozen, module = "millrace._core")]
pub struct Instant(Option<Py<PyAny>>);

impl Instant {
    pub fn of(value: Py<PyAny>) -> Self {
        Self(Some(value))
    }

    pub fn nothing(py: Python<'_>) -> PyResult<Py<Self>> {
        static NOTHING: PyOnceLock<Py<Instant>> = PyOnceLock::new();
        let nothing = NOTHING.get_or_try_init(py, || Py::new(py, Self(None)))?;
        Ok(nothing.clone_ref(py))
    }
}

#[pymethods]
impl Instant {
    fn __await__(slf: Bound<'_, Self>) -> Bound<'_, Self> {
        slf
    }

    fn __iter__(slf: Bound<'_, Self>) -> Bound<'_, Self> {
        slf
    }

    fn __next__(&self, py: Python<'_>) -> PyResult<Option<Py<PyAny>>> {
        match &self.0 {
            Some(value) => Err(PyStopIteration::new_err((value.clone_ref(py),))),
            None => Ok(None),
        }
    }
}

/// The task that a loop is running at this moment, or `None`.
fn task_of<'py>(event_loop: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
    static ASK: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let ask = ASK.import(event_loop.py(), "asyncio", "current_task")?;
    ask.call1((event_loop,))
}

fn current_task(py: Python<'_>) -> PyResult<Bound<'_, PyAny>> {
    static ASK: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let task = ASK.import(py, "asyncio", "current_task")?.call0()?;
    if task.is_none() {
        return Err(PyRuntimeError::new_err(
            "a timeout wants to be used in a task",
        ));
    }
    Ok(task)
}

fn cancelled_error(py: Python<'_>) -> PyResult<&Bound<'_, PyAny>> {
    static CLASS: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    CLASS.import(py, "asyncio", "CancelledError")
}

/// The error that stands for our own cancellation, caused by it.
fn because(py: Python<'_>, stage: Stage, thrown: &Bound<'_, PyAny>) -> PyResult<PyErr> {
    let failed = match stage {
        Stage::Closing => error::raise(py, &closed()),
        _ => PyTimeoutError::new_err(()),
    };
    failed.set_cause(py, Some(PyErr::from_value(thrown.clone())));
    let context = intern!(py, "__context__");
    failed.value(py).setattr(context, thrown)?;
    Ok(failed)
}

/// Another error was raised while our cancellation was handled: it then stems from the timeout,
/// as it does under `asyncio.timeout` from Python 3.13 on.
fn replace_cause(py: Python<'_>, stage: Stage, thrown: &Bound<'_, PyAny>) -> PyResult<()> {
    let name = intern!(py, "__context__");
    let mut error = thrown.clone();
    loop {
        let context = error.getattr(name)?;
        if context.is_none() {
            return Ok(());
        }
        if context.is_instance(cancelled_error(py)?)? {
            return error.setattr(name, because(py, stage, &context)?.into_value(py));
        }
        error = context;
    }
}
