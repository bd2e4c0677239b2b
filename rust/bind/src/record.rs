//! Records as Python sees them, made a batch at a time.

use millrace_core::wal::reader::Batch;
use pyo3::{
    exceptions::PyTypeError,
    prelude::*,
    types::{PyBytes, PyList, PyTuple},
};

/// One record of a log.
#[pyclass(frozen, module = "millrace._core")]
pub struct Record {
    /// Its position in the log; the first record is 1.
    #[pyo3(get)]
    lsn: u64,
    /// Its bytes.
    #[pyo3(get)]
    data: Py<PyBytes>,
    /// When its group was written, in nanoseconds since 1970, UTC. May step back.
    #[pyo3(get)]
    timestamp: i64,
}

#[pymethods]
impl Record {
    #[new]
    fn new(lsn: u64, data: Py<PyBytes>, timestamp: i64) -> Self {
        Self {
            lsn,
            data,
            timestamp,
        }
    }

    #[classattr]
    fn __match_args__(py: Python<'_>) -> PyResult<Bound<'_, PyTuple>> {
        PyTuple::new(py, ["lsn", "data", "timestamp"])
    }

    fn __eq__(&self, py: Python<'_>, other: &Bound<'_, PyAny>) -> PyResult<Py<PyAny>> {
        let Ok(other) = other.cast::<Self>() else {
            return Ok(py.NotImplemented());
        };
        let other = other.get();
        let is_same = (self.lsn, self.timestamp) == (other.lsn, other.timestamp)
            && self.data.bind(py).as_bytes() == other.data.bind(py).as_bytes();
        Ok(is_same.into_pyobject(py)?.to_owned().into_any().unbind())
    }

    fn __hash__(&self, py: Python<'_>) -> PyResult<isize> {
        (self.lsn, &self.data, self.timestamp)
            .into_pyobject(py)?
            .hash()
    }

    fn __reduce__<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyTuple>> {
        let py = slf.py();
        let this = slf.get();
        let arguments = (this.lsn, &this.data, this.timestamp).into_pyobject(py)?;
        (slf.get_type(), arguments).into_pyobject(py)
    }

    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        const SHOWN: usize = 32;
        let data = self.data.bind(py);
        let length = data.as_bytes().len();
        let shown = if length <= SHOWN {
            data.repr()?.to_string()
        } else {
            let head = PyBytes::new(py, &data.as_bytes()[..SHOWN])
                .repr()?
                .to_string();
            format!("{head}... ({length} bytes)")
        };
        Ok(format!(
            "Record(lsn={}, data={shown}, timestamp={})",
            self.lsn, self.timestamp
        ))
    }
}

/// A list of the batch's records.
pub fn list<'py>(py: Python<'py>, batch: &Batch) -> PyResult<Bound<'py, PyList>> {
    let mut records = Vec::with_capacity(batch.len());
    let mut payloads = batch.payloads();
    let mut lsn = batch.first().0;
    for group in batch.groups() {
        for data in payloads.by_ref().take(group.records as usize) {
            let data = PyBytes::new(py, data).unbind();
            let timestamp = group.timestamp_ns;
            records.push(Bound::new(
                py,
                Record {
                    lsn,
                    data,
                    timestamp,
                },
            )?);
            lsn += 1;
        }
    }
    if records.len() != batch.len() {
        return Err(PyTypeError::new_err("a batch whose groups do not add up"));
    }
    PyList::new(py, records)
}
