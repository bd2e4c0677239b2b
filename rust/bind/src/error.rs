//! The one error map: engine errors become exceptions of `millrace.errors`.
//!
//! The classes are defined in Python, because the stable ABI below 3.12 cannot derive exceptions
//! from built-in ones. The match has no wildcard: a new kind does not compile until it has a home.

use millrace_core::{Error, ErrorKind, error::Fact, planted};
use pyo3::{
    exceptions::{PyRuntimeError, PyValueError},
    prelude::*,
    sync::PyOnceLock,
    types::{PyDict, PyModule, PyType},
};

static MODULE: PyOnceLock<Py<PyModule>> = PyOnceLock::new();

/// The exception for an error of the log, with its facts as attributes and its cause as
/// `__cause__`.
pub fn raise(py: Python<'_>, error: &Error) -> PyErr {
    convert(py, error, "LogPoisonedError")
}

/// The same for an error of the I/O engine.
pub fn raise_io(py: Python<'_>, error: &Error) -> PyErr {
    convert(py, error, "PoisonedError")
}

fn convert(py: Python<'_>, error: &Error, poisoned: &'static str) -> PyErr {
    let exception = match name(error.kind(), poisoned) {
        Home::Tree(name) => build(py, name, error).unwrap_or_else(|failed| failed),
        Home::Value => PyValueError::new_err(error.message().to_owned()),
    };
    if let Some(cause) = error.cause() {
        let cause = convert(py, cause, poisoned);
        exception.set_cause(py, Some(cause));
    }
    exception
}

/// The exception for a panic that was caught at the line.
pub fn panicked(what: &str) -> PyErr {
    PyRuntimeError::new_err(format!(
        "bug in millrace: {what} panicked; please report it"
    ))
}

/// Warns from a destructor, which may run while an exception is on its way: that one must come
/// out unharmed.
pub fn warn(py: Python<'_>, class: &Bound<'_, PyType>, text: String) {
    let underway = PyErr::take(py);
    if let Ok(text) = std::ffi::CString::new(text)
        && let Err(error) = PyErr::warn(py, class, &text, 1)
    {
        error.write_unraisable(py, None);
    }
    if let Some(error) = underway {
        error.restore(py);
    }
}

enum Home {
    /// A class of `millrace.errors`.
    Tree(&'static str),
    /// A mistake in the call: Python's own `ValueError`.
    Value,
}

fn name(kind: ErrorKind, poisoned: &'static str) -> Home {
    Home::Tree(match kind {
        ErrorKind::Invalid => return Home::Value,
        ErrorKind::Closed => "ClosedError",
        ErrorKind::Poisoned => poisoned,
        ErrorKind::Corrupt => "CorruptionError",
        ErrorKind::Overloaded => "OverloadedError",
        ErrorKind::TooLarge => "TooLargeError",
        ErrorKind::Unsupported => "BackendUnavailable",
        ErrorKind::Timeout => "IoTimeout",
        ErrorKind::ShortRead => "ShortReadError",
        ErrorKind::EndOfStream => "EndOfStream",
        ErrorKind::NoSpace => "NoSpaceError",
        ErrorKind::Locked => "LockedError",
        ErrorKind::Forked => "ForkedError",
        ErrorKind::Format => "FormatVersionError",
        ErrorKind::Abandoned => "AbandonedError",
        ErrorKind::Io => "IoError",
    })
}

fn build(py: Python<'_>, name: &str, error: &Error) -> PyResult<PyErr> {
    let _inside = crate::gate::enter(py);
    let facts = PyDict::new(py);
    for (key, fact) in error.facts() {
        match fact {
            Fact::Number(value) => facts.set_item(key, value)?,
            Fact::Text(value) => facts.set_item(key, value)?,
            Fact::Path(value) if planted!("bind_paths_are_text") => {
                facts.set_item(key, value.to_string_lossy())?;
            }
            // As `os.fsdecode` shows it, so that `os.fsencode` gives it back.
            Fact::Path(value) => facts.set_item(key, value.as_os_str())?,
        }
    }
    if let Some(errno) = error.errno() {
        facts.set_item("errno", errno)?;
    }
    let class = class(py, name)?;
    let exception = class.call((error.message(),), Some(&facts))?;
    Ok(PyErr::from_value(exception))
}

fn class<'py>(py: Python<'py>, name: &str) -> PyResult<Bound<'py, PyType>> {
    let module = MODULE.get_or_try_init(py, || py.import("millrace.errors").map(Bound::unbind))?;
    Ok(module.bind(py).getattr(name)?.cast_into::<PyType>()?)
}
