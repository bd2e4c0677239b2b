//! Reading forward in batches: a worker reads the next one while Python looks at this one.

use std::{
    sync::{Arc, Mutex, PoisonError, TryLockError, Weak},
    time::Duration,
};

use millrace_core::{
    Error, ErrorKind, Result,
    epoch::Kind,
    ids::Lsn,
    io::Wanted,
    sync::lock,
    wal::{
        LogReader, Watch,
        reader::{Batch, READ_BYTES},
    },
};
use pyo3::prelude::*;

use crate::{
    cleanup, error,
    jobs::{self, Pigeonhole},
    operation::{Operation, Source},
    record,
    shared::Shared,
};

/// A place in a log, moving forward in batches.
#[pyclass(frozen, module = "millrace._core")]
pub struct Reader {
    inner: Arc<Inner>,
    wanted: Wanted,
}

impl Drop for Reader {
    /// Ends a look that may take long; nobody waits for it.
    fn drop(&mut self) {
        self.wanted.withdraw();
    }
}

/// Where the records come from.
pub enum Supply {
    /// The log that was opened.
    Log(Box<LogReader>),
    /// The files that another process writes.
    Files(Box<Watch>),
}

impl Supply {
    fn next_batch(&mut self, records_max: usize) -> Result<Option<Batch>> {
        match self {
            Self::Log(reader) => reader.next_batch(records_max),
            Self::Files(watch) => watch.next_batch(records_max),
        }
    }

    fn let_go(&self) {
        if let Self::Log(reader) = self {
            reader.let_go();
        }
    }

    /// LSN of the record that comes next; `None` at the stop.
    fn next_lsn(&self) -> Option<Lsn> {
        match self {
            Self::Log(reader) => (!reader.is_finished()).then(|| reader.position()),
            Self::Files(watch) => Some(watch.position()),
        }
    }

    /// How long to wait after no records came.
    fn rest(&self) -> Duration {
        match self {
            Self::Log(_) => Duration::ZERO,
            Self::Files(watch) => watch.rest(),
        }
    }

    /// Whether the next call may take as long as an open.
    fn is_slow(&self) -> bool {
        matches!(self, Self::Files(watch) if watch.is_lost())
    }
}

struct Inner {
    log: Arc<Shared>,
    reader: Mutex<Option<Supply>>,
    /// The batch that is read ahead of the one being looked at.
    ahead: Mutex<Option<Arc<Pigeonhole>>>,
    records_max: usize,
}

impl Reader {
    pub fn new(log: Arc<Shared>, reader: Supply, wanted: Wanted, records_max: usize) -> Self {
        let inner = Inner {
            log,
            reader: Mutex::new(Some(reader)),
            ahead: Mutex::default(),
            records_max,
        };
        Self {
            inner: Arc::new(inner),
            wanted,
        }
    }
}

#[pymethods]
impl Reader {
    /// Return the next records; `None` when there are none yet.
    fn batch(&self, py: Python<'_>) -> PyResult<Operation> {
        let ahead = lock(&self.inner.ahead).take();
        let hole = match ahead {
            Some(hole) => hole,
            None => fetch(&self.inner).map_err(|failed| error::raise(py, &failed))?,
        };
        Ok(Operation::quiet("read", Source::Job(hole)))
    }

    /// LSN of the record after the last batch; `None` at the stop.
    fn next_lsn(&self) -> Option<u64> {
        let reader = lock(&self.inner.reader);
        reader.as_ref()?.next_lsn().map(|lsn| lsn.0)
    }

    /// How long to wait before the next look, after `batch` gave `None`.
    fn rest_s(&self) -> f64 {
        let reader = lock(&self.inner.reader);
        reader
            .as_ref()
            .map_or(0.0, |reader| reader.rest().as_secs_f64())
    }
}

fn fetch(inner: &Arc<Inner>) -> Result<Arc<Pigeonhole>> {
    let inner = Arc::clone(inner);
    let is_slow = inner.is_slow();
    let work = move || {
        let batch = inner.read();
        // The reader keeps the answer that is read ahead: it must not be kept by it in turn.
        let inner = Arc::downgrade(&inner);
        jobs::answer(batch, move |py, batch| show(py, &inner, batch.as_ref()))
    };
    if is_slow {
        jobs::start_alone("millrace-look", work)
    } else {
        jobs::start(work)
    }
}

/// Called on the loop's thread: sends the worker ahead, then makes the objects.
fn show(py: Python<'_>, inner: &Weak<Inner>, batch: Option<&Batch>) -> PyResult<Py<PyAny>> {
    let Some(batch) = batch else {
        return Ok(py.None());
    };
    if let Some(inner) = inner.upgrade() {
        let ahead = fetch(&inner).map_err(|failed| error::raise(py, &failed))?;
        *lock(&inner.ahead) = Some(ahead);
    }
    Ok(record::list(py, batch)?.into_any().unbind())
}

impl Inner {
    fn is_slow(&self) -> bool {
        match self.reader.try_lock() {
            Ok(reader) => reader.as_ref().is_some_and(Supply::is_slow),
            Err(TryLockError::Poisoned(_)) => false,
            // A call that was given up is still at it.
            Err(TryLockError::WouldBlock) => true,
        }
    }

    fn read(&self) -> Result<Option<Batch>> {
        match lock(&self.reader).as_mut() {
            Some(reader) => reader.next_batch(self.records_max),
            None => Err(Error::new(ErrorKind::Closed, "the reader is closed")),
        }
    }
}

impl Drop for Inner {
    /// Lets go of the segments it held back, and has their files removed if that was all they
    /// waited for.
    fn drop(&mut self) {
        let reader = self.reader.get_mut();
        let reader = reader.unwrap_or_else(PoisonError::into_inner).take();
        if self.log.origin.is_forked_child() {
            // Its backend belongs to the parent.
            std::mem::forget(reader);
            return;
        }
        // At once, so that a close that follows finds nothing held; the rest takes its time.
        reader.iter().for_each(Supply::let_go);
        let log = Arc::clone(&self.log);
        cleanup::later(Kind::Channel, READ_BYTES, move || {
            drop(reader);
            // What cannot be removed now, the next truncation or the close removes.
            log.sweep()
        });
    }
}
