//! The log's handle: every method extracts, calls, converts.

use std::sync::Arc;

use pyo3::{exceptions::PyValueError, prelude::*};

use crate::{
    buffer,
    engine::{Claimed, Level, Log as Engine},
    error,
    fork::Origin,
    lines::{Value, last},
    loops,
    operation::{Operation, Source},
    shared::Shared,
};

/// An open log.
#[pyclass(frozen, subclass, module = "millrace._core")]
pub struct Log {
    shared: Arc<Shared>,
}

#[pymethods]
impl Log {
    #[staticmethod]
    fn fake(py: Python<'_>) -> PyResult<Self> {
        let origin = Origin::here().map_err(|failed| error::raise(py, &failed))?;
        Ok(Self { shared: Shared::new(Engine::open(), origin) })
    }

    #[pyo3(signature = (data, *, durability = None))]
    fn append(
        &self,
        py: Python<'_>,
        data: &Bound<'_, PyAny>,
        durability: Option<&str>,
    ) -> PyResult<Operation> {
        let level = level(durability)?;
        let log = self.open(py)?;
        let payload = buffer::payload(data)?;
        let claimed = log.log.append(payload, || log.herald.clone());
        self.claimed(py, "append", claimed, level, Value::Lsn)
    }

    #[pyo3(signature = (items, *, durability = None))]
    fn append_many(
        &self,
        py: Python<'_>,
        items: &Bound<'_, PyAny>,
        durability: Option<&str>,
    ) -> PyResult<Operation> {
        let level = level(durability)?;
        let log = self.open(py)?;
        let payloads = buffer::payloads(items)?;
        if payloads.is_empty() {
            let next = log.log.marks().appended.0 + 1;
            let empty = loops::range(py, next, next)?;
            return Ok(Operation::new("append_many", Source::Known(empty.unbind())));
        }
        let value = Value::Range(payloads.len() as u32);
        let claimed = log.log.append_many(payloads, || log.herald.clone());
        self.claimed(py, "append_many", claimed, level, value)
    }
}

impl Log {
    /// The log, unless it was opened by a parent of this process.
    #[inline]
    fn open(&self, py: Python<'_>) -> PyResult<&Arc<Shared>> {
        match self.shared.origin.check() {
            Ok(()) => Ok(&self.shared),
            Err(failed) => Err(error::raise(py, &failed)),
        }
    }

    #[inline]
    fn claimed(
        &self,
        py: Python<'_>,
        name: &'static str,
        claimed: millrace_core::Result<Claimed>,
        level: Level,
        value: Value,
    ) -> PyResult<Operation> {
        let log = Arc::clone(&self.shared);
        let source = match claimed {
            Ok(Claimed::Now(first)) => {
                let lsn = last(first.0, value);
                Source::Mark { log, level, lsn, value }
            }
            Ok(Claimed::Later(pending)) => {
                let pending = Arc::new(pending);
                Source::InLine { log, level, pending, value }
            }
            Err(failed) => return Err(error::raise(py, &failed)),
        };
        Ok(Operation::new(name, source))
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
