//! A limit for a block of a task, with the semantics of `asyncio.timeout`.
//!
//! ```text
//! created --enter--> active --time is up--> expiring --exit--> expired   (TimeoutError)
//!                      |  \--wheel closed--> closing --exit--> expired   (ClosedError)
//!                      \--exit--> finished
//! ```
//!
//! The block turns only its own cancellation into an error: at the exit it takes its request back
//! with `uncancel`, and if others are left, they are what the block ends with.

use std::sync::{Arc, Mutex};

use millrace_core::{clock::Mono, sync::lock, wheel::Key};
use pyo3::{
    PyTraverseError, PyVisit,
    exceptions::{PyRuntimeError, PyStopIteration, PyTimeoutError},
    intern,
    prelude::*,
    sync::PyOnceLock,
};

use super::{Home, TimeoutWheel, Timer, closed, schedule, seconds};
use crate::error;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Created,
    Active,
    Expiring,
    Closing,
    Expired,
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
    key: Option<Key>,
    /// A call asked of the loop because the deadline had passed already.
    soon: Option<Py<PyAny>>,
    task: Option<Py<PyAny>>,
    /// Requests to cancel the task that were there before us.
    cancelling: u64,
}

impl Timeout {
    pub fn new(wheel: Py<TimeoutWheel>, deadline: Option<Mono>) -> Self {
        let inner = Inner {
            stage: Stage::Created,
            deadline,
            key: None,
            soon: None,
            task: None,
            cancelling: 0,
        };
        Self {
            wheel,
            inner: Mutex::new(inner),
        }
    }

    /// The time is up: cancels the task, unless the block has been left.
    pub fn expire(slf: &Bound<'_, Self>) -> PyResult<()> {
        slf.get().interrupt(slf.py(), Stage::Expiring)
    }

    /// The wheel was closed: nobody would end the block in time, so it ends now.
    pub fn abandon(slf: &Bound<'_, Self>) -> PyResult<()> {
        slf.get().interrupt(slf.py(), Stage::Closing)
    }

    fn interrupt(&self, py: Python<'_>, stage: Stage) -> PyResult<()> {
        let mut inner = lock(&self.inner);
        if inner.stage != Stage::Active {
            return Ok(());
        }
        inner.stage = stage;
        inner.key = None;
        let soon = inner.soon.take();
        let task = inner.task.as_ref().map(|task| task.clone_ref(py));
        drop(inner);
        drop(soon);
        if let Some(task) = task {
            task.call_method0(py, intern!(py, "cancel"))?;
        }
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
        if deadline <= home.now(py)? {
            let expire = Bound::new(py, Expiry(slf.clone().unbind()))?;
            let name = intern!(py, "call_soon");
            let soon = home.event_loop().call_method1(py, name, (expire,))?;
            lock(&this.inner).soon = Some(soon);
            return Ok(());
        }
        let timer = Timer {
            what: slf.clone().into_any().unbind(),
            context: None,
        };
        let key = schedule(this.wheel.bind(py), home, deadline, timer)?;
        lock(&this.inner).key = Some(key);
        Ok(())
    }

    /// Ends the block after we have cancelled its task.
    fn conclude(&self, py: Python<'_>, stage: Stage, thrown: &Bound<'_, PyAny>) -> PyResult<()> {
        let mut inner = lock(&self.inner);
        inner.stage = Stage::Expired;
        let (task, before) = (inner.task.take(), inner.cancelling);
        drop(inner);
        let Some(task) = task else { return Ok(()) };
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

#[pymethods]
impl Timeout {
    /// The deadline as a time of the loop; `None` if there is no limit.
    fn when(&self) -> Option<f64> {
        lock(&self.inner).deadline.map(seconds::of)
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
        let deadline = when.map(seconds::instant).transpose()?;
        let stage = lock(&this.inner).stage;
        if stage != Stage::Active {
            return Err(PyRuntimeError::new_err(match stage {
                Stage::Created => "the timeout has not been entered".to_owned(),
                stage => format!("the timeout is {} and cannot be changed", stage.name()),
            }));
        }
        let home = this.wheel.get().core.home(py)?;
        this.disarm(py)?;
        lock(&this.inner).deadline = deadline;
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
        match inner.deadline.filter(|_| inner.stage == Stage::Active) {
            Some(when) => format!("<millrace.Timeout {stage} when={:.3}>", seconds::of(when)),
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

/// What the loop calls when a deadline had passed before it was set.
#[pyclass(frozen, module = "millrace._core", name = "TimeoutExpiry")]
struct Expiry(Py<Timeout>);

#[pymethods]
impl Expiry {
    fn __call__(&self, py: Python<'_>) -> PyResult<()> {
        Timeout::expire(self.0.bind(py))
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
