//! One answer per entry: what producers hold, and what the consumer gives.

use std::sync::Arc;

use millrace_core::{
    Error, ErrorKind,
    ring::{self, Completion, Weigh},
    sync::Waker,
};
use pyo3::{
    exceptions::{PyBaseException, PyTypeError},
    prelude::*,
    sync::PyOnceLock,
    types::PyBytes,
};

use crate::{
    buffer, door, error,
    jobs::{Answer, Answering},
    operation::{self, Source},
    ticket,
};

/// What the ring carries.
pub(super) struct Item {
    pub(super) data: Box<[u8]>,
    pub(super) completion: Completion<()>,
    pub(super) verdict: Verdict,
}

/// The exception an entry was failed with. The ring itself holds none: this is empty until then.
pub(super) type Verdict = Arc<PyOnceLock<Py<PyBaseException>>>;

impl Weigh for Item {
    fn weight(&self) -> usize {
        self.data.len()
    }
}

/// A ticket whose entry has no position yet.
#[derive(Clone)]
pub(super) struct Slip {
    pub(super) answer: ring::Ticket<()>,
    pub(super) verdict: Verdict,
}

impl Slip {
    pub(super) fn at(&self, position: u64) -> RingTicket {
        RingTicket {
            slip: self.clone(),
            position,
        }
    }

    /// The answer, if it is there.
    fn outcome(&self, py: Python<'_>, position: u64) -> Option<PyResult<u64>> {
        let outcome = self.answer.try_get()?;
        Some(match (outcome, self.verdict.get(py)) {
            (Ok(()), _) => Ok(position),
            (Err(_), Some(verdict)) => Err(PyErr::from_value(verdict.bind(py).clone().into_any())),
            (Err(failed), None) => Err(error::raise(py, failed)),
        })
    }
}

/// An entry that was appended. Look at it, wait for its answer, or await it, repeatedly.
#[pyclass(frozen, module = "millrace._core")]
pub struct RingTicket {
    slip: Slip,
    position: u64,
}

#[pymethods]
impl RingTicket {
    /// The position of the entry; the first one is 0.
    #[getter]
    fn position(&self) -> u64 {
        self.position
    }

    /// Whether the consumer has answered.
    fn done(&self) -> bool {
        self.slip.answer.is_done()
    }

    /// Wait on a plain thread for the answer; return the position.
    ///
    /// Raises:
    ///     IoTimeout: If *timeout_s* passed first.
    ///
    ///     AbandonedError: If the consumer let go of the entry without an answer. An exception
    ///         given to `Entry.fail` is raised as it is.
    #[pyo3(signature = (timeout_s = None))]
    fn wait(&self, py: Python<'_>, timeout_s: Option<ticket::Seconds>) -> PyResult<u64> {
        let timeout = ticket::timeout(timeout_s)?;
        let wait = |slice| self.slip.answer.wait(Some(slice)).map(|_| ());
        door::wait_detached(py, timeout, wait)?;
        self.slip.outcome(py, self.position).unwrap_or_else(|| {
            let late = Error::new(ErrorKind::Timeout, "the entry has not been answered yet");
            Err(error::raise(py, &late))
        })
    }

    fn __await__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let (slip, position) = (self.slip.clone(), self.position);
        operation::iterate(py, Source::Job(Arc::new(Verdicts { slip, position })))
    }

    fn __repr__(&self) -> String {
        let state = match self.slip.answer.try_get() {
            None => "pending",
            Some(Ok(())) => "done",
            Some(Err(_)) => "failed",
        };
        format!("<millrace.RingTicket position={} {state}>", self.position)
    }
}

/// Somebody waits for the answer to an entry.
struct Verdicts {
    slip: Slip,
    position: u64,
}

impl Answering for Verdicts {
    fn answer(&self) -> Option<Answer> {
        let (slip, position) = (self.slip.clone(), self.position);
        self.slip.answer.is_done().then(|| -> Answer {
            Box::new(move |py| match slip.outcome(py, position) {
                Some(outcome) => Ok(outcome?.into_pyobject(py)?.into_any().unbind()),
                None => Ok(py.None()),
            })
        })
    }

    fn subscribe(&self, waker: Waker) -> bool {
        self.slip.answer.subscribe(waker)
    }
}

/// An entry that was drained and wants one answer.
#[pyclass(frozen, module = "millrace._core")]
pub struct Entry {
    /// Its position in the ring; the first one is 0.
    #[pyo3(get)]
    position: u64,
    /// Its bytes.
    #[pyo3(get)]
    data: Py<PyBytes>,
    completion: Completion<()>,
    verdict: Verdict,
}

impl Entry {
    pub(super) fn new(py: Python<'_>, position: u64, item: Item) -> PyResult<Py<Self>> {
        let Item {
            data,
            completion,
            verdict,
        } = item;
        let data = buffer::shown(py, &data)?.unbind();
        Py::new(
            py,
            Self {
                position,
                data,
                completion,
                verdict,
            },
        )
    }
}

#[pymethods]
impl Entry {
    /// Answer that it has been dealt with. Only the first answer counts.
    fn complete(&self) {
        self.completion.done(());
    }

    /// Answer with an exception, which whoever waits for the entry gets.
    fn fail(&self, py: Python<'_>, exception: &Bound<'_, PyAny>) -> PyResult<()> {
        let Ok(exception) = exception.cast::<PyBaseException>() else {
            return Err(PyTypeError::new_err("fail() needs an exception instance"));
        };
        if !self.completion.is_done() {
            // The first verdict stays, like the first answer.
            let _first = self.verdict.set(py, exception.clone().unbind());
        }
        let failed = Error::new(ErrorKind::Abandoned, "failed by the consumer");
        self.completion.failed(failed);
        Ok(())
    }

    fn __repr__(&self) -> String {
        let state = if self.completion.is_done() {
            "answered"
        } else {
            "waiting"
        };
        format!("<millrace.Entry position={} {state}>", self.position)
    }
}
