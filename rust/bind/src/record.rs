//! Records as Python sees them, made a batch at a time.

use std::iter;

use millrace_core::wal::reader::Batch;
use pyo3::{
    ffi,
    prelude::*,
    types::{PyBytes, PyList, PyTuple},
};

// A scan makes millions, and lets go of a batch when it has the next: the list holds about as many
// as a batch has. What comes from it does not count as new for the collector of cycles.
/// One record of a log.
#[pyclass(frozen, freelist = 4096, module = "millrace._core")]
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
    let timestamps = batch
        .groups()
        .iter()
        .flat_map(|group| iter::repeat_n(group.timestamp_ns, group.records as usize));
    let rows = batch.payloads().zip(timestamps).zip(batch.first().0..);
    let rows = rows.map(|((data, timestamp), lsn)| Row {
        lsn,
        data,
        timestamp,
    });
    PyList::new(
        py,
        Exactly {
            rows,
            left: batch.len(),
        },
    )
}

/// A record that becomes an object when its place in the list is filled.
struct Row<'a> {
    lsn: u64,
    data: &'a [u8],
    timestamp: i64,
}

impl<'py> IntoPyObject<'py> for Row<'_> {
    type Target = Record;
    type Output = Bound<'py, Record>;
    type Error = PyErr;

    fn into_pyobject(self, py: Python<'py>) -> PyResult<Self::Output> {
        let record = Bound::new(
            py,
            Record {
                lsn: self.lsn,
                data: PyBytes::new(py, self.data).unbind(),
                timestamp: self.timestamp,
            },
        )?;
        // SAFETY: a live object that is tracked, which we own. It holds numbers and `bytes`, so it
        // can be in no cycle, and the collector need not look at it: a scan makes millions. The
        // destructor untracks once more, which is allowed.
        unsafe { ffi::PyObject_GC_UnTrack(record.as_ptr().cast()) };
        Ok(record)
    }
}

/// Rows whose number is known.
struct Exactly<I> {
    rows: I,
    left: usize,
}

impl<I: Iterator> Iterator for Exactly<I> {
    type Item = I::Item;

    fn next(&mut self) -> Option<I::Item> {
        self.left = self.left.checked_sub(1)?;
        self.rows.next()
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl<I: Iterator> ExactSizeIterator for Exactly<I> {}
