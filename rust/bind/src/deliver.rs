//! Futures get their results here, on the thread of their loop.
//!
//! # Always true
//!
//! A future is resolved or failed once, whatever happens while its value is made.

use std::panic::{AssertUnwindSafe, catch_unwind};

use pyo3::{
    exceptions::PyRuntimeError,
    intern,
    prelude::*,
    sync::PyOnceLock,
    types::{PyList, PyModule},
};

use crate::{
    error,
    jobs::Answer,
    lines::{Leaving, Outcome, Value},
};

/// Resolves the futures of waiters who leave their line, each kind in one call.
pub fn leaving(py: Python<'_>, leaving: Leaving) -> PyResult<()> {
    if leaving.is_empty() {
        return Ok(());
    }
    let (futures, values) = (PyList::empty(py), PyList::empty(py));
    let (failed, errors) = (PyList::empty(py), PyList::empty(py));
    for (future, outcome) in leaving {
        match outcome {
            Outcome::Reached {
                lsn,
                value,
                durable,
            } => {
                futures.append(future)?;
                values.append(show(py, lsn, value, durable)?)?;
            }
            Outcome::Failed(cause) => {
                failed.append(future)?;
                errors.append(error::raise(py, &cause).into_value(py))?;
            }
        }
    }
    let helper = helper(py)?;
    if !futures.is_empty() {
        helper.call_method1(intern!(py, "resolve"), (futures, values))?;
    }
    if !failed.is_empty() {
        helper.call_method1(intern!(py, "fail"), (failed, errors))?;
    }
    Ok(())
}

/// What a waiter gets for reaching `lsn`.
pub fn show(py: Python<'_>, lsn: u64, value: Value, durable: u64) -> PyResult<Bound<'_, PyAny>> {
    match value {
        Value::Lsn => Ok(lsn.into_pyobject(py)?.into_any()),
        Value::Durable => Ok(durable.into_pyobject(py)?.into_any()),
        Value::Range(count) => range(py, lsn + 1 - u64::from(count), lsn + 1),
    }
}

/// `range(start, stop)`.
pub fn range(py: Python<'_>, start: u64, stop: u64) -> PyResult<Bound<'_, PyAny>> {
    static RANGE: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    RANGE.import(py, "builtins", "range")?.call1((start, stop))
}

/// Whether a future is done: answered, or cancelled by who waited.
pub fn is_done(future: &Bound<'_, PyAny>) -> PyResult<bool> {
    future
        .call_method0(intern!(future.py(), "done"))?
        .is_truthy()
}

/// Gives the answer of a job to its future.
pub fn answer(py: Python<'_>, answer: Answer, future: &Bound<'_, PyAny>) -> PyResult<()> {
    // An answer is given, whatever happens while it is made: nobody else would give one.
    let made = catch_unwind(AssertUnwindSafe(|| answer(py)))
        .unwrap_or_else(|_| Err(error::panicked("an answer")));
    match made {
        Ok(value) => future.call_method1(intern!(py, "set_result"), (value,))?,
        Err(error) => future.call_method1(intern!(py, "set_exception"), (error.into_value(py),))?,
    };
    Ok(())
}

/// The lines of Python that resolve futures.
fn helper(py: Python<'_>) -> PyResult<&Bound<'_, PyModule>> {
    static HELPER: PyOnceLock<Py<PyModule>> = PyOnceLock::new();
    let helper = HELPER.get_or_try_init(py, || {
        let code = concat!(include_str!("resolve.py"), "\0");
        let code = std::ffi::CStr::from_bytes_with_nul(code.as_bytes())
            .map_err(|_| PyRuntimeError::new_err("resolve.py holds a NUL"))?;
        PyModule::from_code(py, code, c"millrace/resolve.py", c"millrace._resolve")
            .map(Bound::unbind)
    })?;
    Ok(helper.bind(py))
}
