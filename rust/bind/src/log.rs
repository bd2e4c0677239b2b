//! The log's handle: every method extracts, calls, converts.

use std::{sync::Arc, time::Duration};

use millrace_core::{
    Result, engine,
    ids::Lsn,
    io::Wanted,
    planted,
    wal::{
        Level,
        cursor::Mark,
        log::{Claimed, Load},
    },
};
use pyo3::{
    exceptions::{PyTypeError, PyValueError},
    prelude::*,
    types::{PyBool, PyDict, PyInt},
};

use crate::{
    buffer, deliver, door, error,
    hand::Hand,
    jobs::{self, Answer},
    lines::{Value, last},
    open,
    operation::{Operation, Source},
    queue,
    reader::{Reader, Supply},
    report,
    shared::Shared,
    ticket::{self, Ticket},
};

/// The handle behind `millrace.Log`.
#[pyclass(frozen, subclass, module = "millrace._core")]
pub struct Log {
    shared: Arc<Shared>,
}

#[pymethods]
impl Log {
    /// Another handle of the same open log.
    #[new]
    fn new(log: &Bound<'_, Self>) -> Self {
        let shared = Arc::clone(&log.get().shared);
        Self { shared }
    }

    /// Append one record; the result of the await is its LSN.
    ///
    /// The record is copied and gets its LSN when this is called, so records are in the order
    /// of the calls. The await ends when the record is durable: it then survives the process,
    /// the kernel and the power supply. With *durability* `"committed"` it ends when the record
    /// is in the file, with `"appended"` when it is in memory. When as many records as the
    /// settings allow wait for the disk, the call joins a line, first come first served.
    ///
    /// Cancelling stops the waiting, not the write. Only a record that still stands in line is
    /// taken back and not written.
    ///
    /// Args:
    ///     data: Any contiguous bytes-like object; empty is allowed.
    ///
    ///     durability: How far the record must have come. Default: `"durable"`.
    ///
    /// Raises:
    ///     TypeError: If *data* is a `str` (encode it first) or not bytes-like.
    ///
    ///     TooLargeError: If it is larger than `record_bytes_max`.
    ///
    ///     LogPoisonedError: If the log failed; the record may or may not be durable.
    ///
    ///     ClosedError: If the log is closed.
    #[pyo3(signature = (data, *, durability = None))]
    fn append(
        &self,
        py: Python<'_>,
        data: &Bound<'_, PyAny>,
        durability: Option<&str>,
    ) -> PyResult<Operation> {
        let level = level(durability)?;
        let log = self.here(py)?;
        let payload = payload(py, log, data)?;
        let hand = Hand::of(py, log)?;
        let claimed = log.appender.append(payload, || log.herald.clone());
        hand.urge(log);
        claimed_by(py, log, "append", claimed, level, Value::Lsn)
    }

    /// Append several records as one; the result of the await is the range of their LSNs.
    ///
    /// They share a group, so after a crash either all of them are there or none. No items
    /// give an empty range, at once, if the log is open. Otherwise like `append`.
    ///
    /// Cancelling stops the waiting, not the write. Only a batch that still stands in line is
    /// taken back and not written.
    ///
    /// Raises:
    ///     TooLargeError: If they are more or larger than one group may be.
    #[pyo3(signature = (items, *, durability = None))]
    fn append_many(
        &self,
        py: Python<'_>,
        items: &Bound<'_, PyAny>,
        durability: Option<&str>,
    ) -> PyResult<Operation> {
        let level = level(durability)?;
        let log = self.here(py)?;
        let fit = |load: &mut Load, length| {
            let admitted = log.appender.admit(load, length);
            admitted.map_err(|failed| error::raise(py, &failed))
        };
        let records = buffer::batch(items, fit, |count, bytes| log.appender.batch(count, bytes))?;
        let Some(value) = batch(records.len())? else {
            let checked = log.appender.check_open();
            checked.map_err(|failed| error::raise(py, &failed))?;
            let next = log.appender.marks().appended.0 + 1;
            let empty = deliver::range(py, next, next)?.unbind();
            return Ok(Operation::quiet("append_many", Source::Known(empty)));
        };
        let hand = Hand::of(py, log)?;
        let claimed = log.appender.append_many(records, || log.herald.clone());
        hand.urge(log);
        claimed_by(py, log, "append_many", claimed, level, value)
    }

    /// Append one record without waiting at all.
    ///
    /// Usable from any thread. The ticket tells the LSN at once and the outcome later.
    ///
    /// Raises:
    ///     OverloadedError: If as many records as the settings allow wait for the disk, or
    ///         others stand in line. Nothing was written.
    fn submit(&self, py: Python<'_>, data: &Bound<'_, PyAny>) -> PyResult<Ticket> {
        let log = self.here(py)?;
        let payload = payload(py, log, data)?;
        let hand = Hand::of(py, log)?;
        let submitted = log.appender.submit(payload);
        let lsn = submitted.map_err(|failed| error::raise(py, &failed))?;
        hand.urge(log);
        Ok(Ticket::new(Arc::clone(log), lsn))
    }

    /// Append one record from a plain thread and wait until it is durable.
    ///
    /// Other threads go on meanwhile. On the thread of an event loop it stops that loop for as
    /// long; await `append` there.
    ///
    /// Raises:
    ///     IoTimeout: If *timeout_s* passed first. The message says whether the record is still
    ///         being written or was not written at all.
    #[pyo3(signature = (data, *, timeout_s = None))]
    fn append_sync(
        &self,
        py: Python<'_>,
        data: &Bound<'_, PyAny>,
        timeout_s: Option<ticket::Seconds>,
    ) -> PyResult<u64> {
        let timeout = ticket::timeout(timeout_s)?;
        let log = self.here(py)?;
        let payload = payload(py, log, data)?;
        let (lsn, left) = queue::append(py, log, payload, timeout)?;
        ticket::wait(py, log, Level::Durable, lsn, left)?;
        Ok(lsn.0)
    }

    /// Wait until everything appended before this call is durable; the result is the durable LSN.
    ///
    /// Cancelling stops the waiting and nothing else.
    fn flush(&self, py: Python<'_>) -> PyResult<Operation> {
        let log = self.here(py)?;
        let source = Source::Mark {
            log: Arc::clone(log),
            level: Level::Durable,
            lsn: log.appender.marks().appended.0,
            value: Value::Durable,
        };
        Ok(Operation::new("flush", source))
    }

    /// Wait until *lsn* is durable, also if nobody has appended it yet.
    #[pyo3(name = "_reached")]
    fn reached(
        &self,
        py: Python<'_>,
        #[pyo3(from_py_with = position)] lsn: u64,
    ) -> PyResult<Operation> {
        let log = Arc::clone(self.here(py)?);
        let (level, value) = (Level::Durable, Value::Durable);
        Ok(Operation::quiet(
            "reached",
            Source::Mark {
                log,
                level,
                lsn,
                value,
            },
        ))
    }

    /// Return a reader from *start* up to, not including, *stop*.
    #[pyo3(name = "_reader", signature = (start, stop, records_max))]
    fn reader(
        &self,
        py: Python<'_>,
        start: u64,
        stop: Option<u64>,
        records_max: usize,
    ) -> PyResult<Reader> {
        let log = self.here(py)?;
        let opened = log.reader(Lsn(start), stop.map(Lsn));
        let reader = opened.map_err(|failed| error::raise(py, &failed))?;
        let from = Supply::Log(Box::new(reader));
        Ok(Reader::new(
            Arc::clone(log),
            from,
            Wanted::default(),
            records_max,
        ))
    }

    /// Return a reader from *start* on of what another process writes to the directory.
    #[pyo3(name = "_watch")]
    fn watch(
        &self,
        py: Python<'_>,
        start: u64,
        recovery: &str,
        records_max: usize,
    ) -> PyResult<Reader> {
        let log = self.here(py)?;
        let wanted = Wanted::default();
        let watch = open::mode(recovery)
            .and_then(|mode| engine::watch_log(log.location(), mode, Lsn(start), &wanted))
            .map_err(|failed| error::raise(py, &failed))?;
        let from = Supply::Files(Box::new(watch));
        Ok(Reader::new(Arc::clone(log), from, wanted, records_max))
    }

    /// Drop whole segments below *lsn*; the result is the first LSN left.
    ///
    /// Never drops what a cursor holds back. The file of a segment goes when its last reader
    /// lets go, or at the close.
    ///
    /// Cancelling stops the waiting, not the truncation.
    fn truncate_before(
        &self,
        py: Python<'_>,
        #[pyo3(from_py_with = position)] lsn: u64,
    ) -> PyResult<Operation> {
        self.job(py, "truncate_before", move |log| {
            let first = log.truncate_before(Lsn(lsn));
            jobs::answer(first, number)
        })
    }

    /// Return position and hold of a cursor; 0 if it was never committed.
    fn cursor(&self, py: Python<'_>, name: &str) -> PyResult<(u64, bool)> {
        let found = self.here(py)?.cursor(name);
        let mark = found.map_err(|failed| error::raise(py, &failed))?;
        Ok(mark.map_or((0, false), |mark| (mark.position.0, mark.holds_truncation)))
    }

    /// Make a cursor's position durable.
    #[pyo3(name = "_commit_cursor")]
    fn commit_cursor(
        &self,
        py: Python<'_>,
        name: String,
        #[pyo3(from_py_with = position)] lsn: u64,
        holds_truncation: bool,
    ) -> PyResult<Operation> {
        let position = Lsn(lsn);
        self.job(py, "commit", move |log| {
            let mark = Mark {
                position,
                holds_truncation,
            };
            jobs::answer(log.commit_cursor(&name, mark), |py, ()| Ok(py.None()))
        })
    }

    /// Write what was appended, mark the end, and release the directory.
    ///
    /// Closing twice is fine. Cancelling stops the waiting, not the closing.
    ///
    /// Raises:
    ///     LogPoisonedError: If the log had failed; the first cause is in `__cause__`.
    fn close(&self, py: Python<'_>) -> PyResult<Operation> {
        self.job(py, "close", |log| {
            jobs::answer(log.close(), |py, ()| Ok(py.None()))
        })
    }

    /// Close from a plain thread; false if it is still closing after *timeout_s*.
    #[pyo3(name = "_close_within")]
    fn close_within(&self, py: Python<'_>, timeout_s: f64) -> PyResult<bool> {
        let timeout = ticket::timeout(Some(ticket::Seconds(timeout_s)))?.unwrap_or(Duration::MAX);
        let log = Arc::clone(self.here(py)?);
        let closing = jobs::start(move || {
            let closed = log.close();
            jobs::answer(closed, |py, ()| Ok(py.None()))
        });
        let hole = closing.map_err(|failed| error::raise(py, &failed))?;
        if !door::detached(py, || hole.wait(timeout)) {
            return Ok(false);
        }
        hole.take()
            .map_or(Ok(true), |answer| answer(py).map(|_| true))
    }

    /// The directory.
    #[getter]
    fn path(&self) -> std::path::PathBuf {
        self.shared.location().to_owned()
    }

    /// LSN of the first record that can be read.
    #[getter]
    fn first_lsn(&self) -> u64 {
        self.shared.appender.first_lsn().0
    }

    /// LSN of the last record that was appended, durable or not; 0 if there is none.
    #[getter]
    fn last_lsn(&self) -> u64 {
        self.shared.appender.marks().appended.0
    }

    /// LSN of the last record that survives power loss.
    #[getter]
    fn durable_lsn(&self) -> u64 {
        self.shared.appender.marks().durable.0
    }

    /// `open`, `read_only`, `closed`, or `failed` after a failed write.
    #[getter(_state)]
    fn state(&self) -> &'static str {
        report::state(&self.shared)
    }

    /// Return the fields of `RecoveryReport`.
    #[pyo3(name = "_recovery_report")]
    fn recovery_report<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        report::recovery(py, self.shared.appender.report())
    }

    /// Return the fields of `LogStatistics`.
    #[pyo3(name = "_statistics_report")]
    fn statistics_report<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        report::statistics(py, &self.shared)
    }
}

impl Log {
    pub fn of(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// The log, unless it was opened by a parent of this process.
    #[inline]
    fn here(&self, py: Python<'_>) -> PyResult<&Arc<Shared>> {
        match self.shared.origin.check() {
            Ok(()) => Ok(&self.shared),
            Err(_) if planted!("bind_inherited_is_used") => Ok(&self.shared),
            Err(failed) => Err(error::raise(py, &failed)),
        }
    }

    fn job(
        &self,
        py: Python<'_>,
        name: &'static str,
        work: impl FnOnce(&Shared) -> Answer + Send + 'static,
    ) -> PyResult<Operation> {
        let log = Arc::clone(self.here(py)?);
        let hole = jobs::start(move || work(&log)).map_err(|failed| error::raise(py, &failed))?;
        Ok(Operation::new(name, Source::Job(hole)))
    }
}

#[inline]
fn claimed_by(
    py: Python<'_>,
    log: &Arc<Shared>,
    name: &'static str,
    claimed: Result<Claimed>,
    level: Level,
    value: Value,
) -> PyResult<Operation> {
    let log = Arc::clone(log);
    let source = match claimed {
        Ok(Claimed::Now(first)) => {
            let lsn = last(first.0, value);
            Source::Mark {
                log,
                level,
                lsn,
                value,
            }
        }
        Ok(Claimed::Later(pending)) => {
            let (pending, number) = (Arc::new(pending), log.next_call());
            Source::InLine {
                log,
                level,
                pending,
                value,
                number,
            }
        }
        Err(failed) => return Err(error::raise(py, &failed)),
    };
    Ok(Operation::new(name, source))
}

/// Copies a record that is not too large.
#[inline]
fn payload(py: Python<'_>, log: &Shared, data: &Bound<'_, PyAny>) -> PyResult<Box<[u8]>> {
    buffer::payload(data, |length| {
        let admitted = log.appender.admit(&mut Load::default(), length);
        admitted.map_err(|failed| error::raise(py, &failed))
    })
}

/// An LSN as an argument. `True` is not a number here, and no number is out of Rust's range.
fn position(lsn: &Bound<'_, PyAny>) -> PyResult<u64> {
    if lsn.is_instance_of::<PyBool>() || !lsn.is_instance_of::<PyInt>() {
        let class = lsn.get_type().name()?.to_string();
        return Err(PyTypeError::new_err(format!(
            "lsn must be an int, not {class}"
        )));
    }
    lsn.extract().map_err(|_| {
        PyValueError::new_err(format!("lsn must lie between 0 and 2**64 - 1, not {lsn}"))
    })
}

fn number(py: Python<'_>, lsn: Lsn) -> PyResult<Py<PyAny>> {
    Ok(lsn.0.into_pyobject(py)?.into_any().unbind())
}

/// What a batch of `count` records is answered with; nothing for an empty one.
fn batch(count: usize) -> PyResult<Option<Value>> {
    match u32::try_from(count) {
        Ok(0) => Ok(None),
        Ok(count) => Ok(Some(Value::Range(count))),
        Err(_) => Err(PyValueError::new_err(
            "a batch of more than 4294967295 records",
        )),
    }
}

fn level(name: Option<&str>) -> PyResult<Level> {
    match name {
        None | Some("durable") => Ok(Level::Durable),
        Some("committed") => Ok(Level::Committed),
        Some("appended") => Ok(Level::Appended),
        Some(other) => Err(PyValueError::new_err(format!(
            "durability must be 'durable', 'committed' or 'appended', not {other:?}"
        ))),
    }
}
