//! One call: how it runs, and what becomes of what it raises.

use millrace_core::{Error, ErrorKind, Result};
use pyo3::{
    PyTraverseError, PyVisit,
    exceptions::{PyKeyboardInterrupt, PySystemExit},
    intern,
    prelude::*,
    sync::PyOnceLock,
    types::{PyDict, PyTuple},
};

use crate::gate;

/// What was registered.
pub(super) struct Call {
    /// The function, then its arguments.
    pub(super) parts: Py<PyTuple>,
    pub(super) context: Py<PyAny>,
}

impl Call {
    pub(super) fn visit(&self, visit: &PyVisit<'_>) -> std::result::Result<(), PyTraverseError> {
        visit.call(&self.parts)?;
        visit.call(&self.context)
    }
}

/// Runs a call in its context: what to count, and what to pass on.
pub(super) fn perform(py: Python<'_>, call: &Call) -> (Result<()>, PyResult<()>) {
    let _inside = gate::enter(py);
    let context = call.context.bind(py);
    let run = context.getattr(intern!(py, "run"));
    let returned = run.and_then(|run| run.call1(call.parts.bind(py).clone()));
    let Err(raised) = returned else {
        return (Ok(()), Ok(()));
    };
    let failed = Error::new(
        ErrorKind::Abandoned,
        format!("a deferred call raised {raised}"),
    );
    // Anything else, a CancelledError too, would strike whoever happens to be near.
    if raised.is_instance_of::<PyKeyboardInterrupt>(py) || raised.is_instance_of::<PySystemExit>(py)
    {
        return (Err(failed), Err(raised));
    }
    if let Err(second) = log_failure(py, call, raised) {
        second.write_unraisable(py, None);
    }
    (Err(failed), Ok(()))
}

fn log_failure(py: Python<'_>, call: &Call, raised: PyErr) -> PyResult<()> {
    let function = call.parts.bind(py).get_item(0)?;
    let options = PyDict::new(py);
    options.set_item("exc_info", raised.into_value(py))?;
    let arguments = ("deferred call %r failed", function);
    logger(py)?.call_method(intern!(py, "error"), arguments, Some(&options))?;
    Ok(())
}

pub(super) fn logger(py: Python<'_>) -> PyResult<Bound<'_, PyAny>> {
    static LOGGER: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let logger = LOGGER.get_or_try_init(py, || {
        let get = py.import("logging")?.getattr("getLogger")?;
        PyResult::Ok(get.call1(("millrace.gc",))?.unbind())
    })?;
    Ok(logger.bind(py).clone())
}

/// The context of the caller, for a call that runs later.
pub(super) fn context(py: Python<'_>) -> PyResult<Py<PyAny>> {
    static COPY: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let copy = COPY.import(py, "contextvars", "copy_context")?;
    Ok(copy.call0()?.unbind())
}

/// Runs `work` in a destructor, where an exception may be on its way: that one comes out unharmed.
pub(super) fn unharmed(py: Python<'_>, work: impl FnOnce()) {
    let underway = PyErr::take(py);
    work();
    if let Some(error) = underway {
        error.restore(py);
    }
}
