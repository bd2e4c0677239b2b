//! A claim that can be looked at, waited for from a thread, and awaited as often as one likes.

use std::{sync::Arc, time::Duration};

use millrace_core::{Error, ErrorKind, ids::Lsn, planted, wal::Level};
use pyo3::{
    exceptions::{PyTypeError, PyValueError},
    prelude::*,
    types::PyBool,
};

use crate::{
    door, error, gate,
    lines::Value,
    operation::{self, Source},
    shared::Shared,
};

/// A record that was submitted: look at it, wait for it, or await it as often as you like.
#[pyclass(frozen, module = "millrace._core")]
pub struct Ticket {
    log: Arc<Shared>,
    lsn: u64,
}

impl Ticket {
    pub fn new(log: Arc<Shared>, lsn: Lsn) -> Self {
        Self { log, lsn: lsn.0 }
    }

    fn is_durable(&self) -> bool {
        self.log.appender.marks().durable.0 >= self.lsn
    }
}

#[pymethods]
impl Ticket {
    /// The LSN of the record.
    #[getter]
    fn lsn(&self) -> u64 {
        self.lsn
    }

    /// Whether it is durable, or will never be because the log failed.
    fn done(&self) -> bool {
        if !self.is_durable() {
            // Who only asks and never waits is answered too.
            self.log.appender.turn();
        }
        self.is_durable() || self.log.appender.failure().is_some()
    }

    /// Wait on a plain thread until the record is durable; return its LSN.
    ///
    /// Raises:
    ///     IoTimeout: If *timeout_s* passed first; the record is still being written.
    ///
    ///     LogPoisonedError: If the log failed; the record may or may not be durable.
    #[pyo3(signature = (timeout_s = None))]
    fn wait(&self, py: Python<'_>, timeout_s: Option<Seconds>) -> PyResult<u64> {
        wait(
            py,
            &self.log,
            Level::Durable,
            Lsn(self.lsn),
            timeout(timeout_s)?,
        )?;
        Ok(self.lsn)
    }

    fn __await__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let source = Source::Mark {
            log: Arc::clone(&self.log),
            level: Level::Durable,
            lsn: self.lsn,
            value: Value::Lsn,
        };
        operation::iterate(py, source)
    }

    fn __repr__(&self) -> String {
        let state = match (self.is_durable(), self.log.appender.failure()) {
            (true, _) => "durable",
            (false, None) => "pending",
            (false, Some(_)) => "failed",
        };
        format!("<millrace.Ticket lsn={} {state}>", self.lsn)
    }
}

/// Waits on a plain thread, without the interpreter, until `lsn` has reached `level`.
pub fn wait(
    py: Python<'_>,
    log: &Arc<Shared>,
    level: Level,
    lsn: Lsn,
    timeout: Option<Duration>,
) -> PyResult<()> {
    // The exit closes the log, which ends this wait, and then there is an error to be made.
    let _inside = (!planted!("bind_waits_uncounted")).then(|| gate::enter(py));
    let is_over = |outcome: &millrace_core::Result<()>| !matches!(outcome, Err(error) if error.kind() == ErrorKind::Timeout);
    let outcome = door::wait_detached(py, timeout, |slice| {
        let outcome = Some(log.appender.wait(level, lsn, Some(slice))).filter(is_over);
        if planted!("bind_waits_uncounted") {
            // And so late that the exit has gone on.
            std::thread::sleep(Duration::from_millis(300));
        }
        outcome
    })?;
    match outcome {
        Some(Ok(())) => Ok(()),
        Some(Err(failed)) => Err(error::raise(py, &failed)),
        None => Err(error::raise(py, &late(lsn))),
    }
}

fn late(lsn: Lsn) -> Error {
    Error::new(
        ErrorKind::Timeout,
        "the record is not durable yet; it is still being written, wait again to learn its fate",
    )
    .with("lsn", lsn.0)
}

/// A number of seconds as an argument. `True` is not a number here.
pub struct Seconds(pub f64);

impl<'py> FromPyObject<'_, 'py> for Seconds {
    type Error = PyErr;

    fn extract(given: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        if given.is_instance_of::<PyBool>() {
            return Err(PyTypeError::new_err("must be real number, not bool"));
        }
        given.extract().map(Self)
    }
}

/// A timeout in seconds; none and infinity wait for ever.
pub fn timeout(seconds: Option<Seconds>) -> PyResult<Option<Duration>> {
    match seconds.map(|Seconds(seconds)| seconds) {
        None => Ok(None),
        Some(seconds) if seconds.is_nan() || seconds < 0.0 => Err(PyValueError::new_err(format!(
            "timeout_s must not be negative or NaN, got {seconds}"
        ))),
        Some(seconds) => Ok(Duration::try_from_secs_f64(seconds).ok()),
    }
}
