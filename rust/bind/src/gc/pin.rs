//! A pin as Python holds it: a context manager, entered as often as one likes.

use std::{
    sync::{Arc, Mutex},
    thread::ThreadId,
};

use millrace_core::{epoch::OwnedPin, planted, sync::lock};
use pyo3::{
    PyTraverseError, PyVisit,
    exceptions::{PyResourceWarning, PyRuntimeError},
    prelude::*,
    types::PyTuple,
};

use super::{EpochGC, call::unharmed, calls::Calls};
use crate::{door, error, wheel::Instant};

/// While it is entered, nothing deferred after that runs. Made by `EpochGC.pin`.
#[pyclass(frozen, module = "millrace._core")]
pub struct EpochPin {
    gc: Py<EpochGC>,
    label: Option<String>,
    held: Mutex<Held>,
}

#[derive(Default)]
struct Held {
    /// How often it was entered and not yet left.
    depth: usize,
    pin: Option<(OwnedPin, ThreadId)>,
}

impl EpochPin {
    pub(super) fn new(gc: &Bound<'_, EpochGC>, label: Option<String>) -> Self {
        Self {
            gc: gc.clone().unbind(),
            label,
            held: Mutex::default(),
        }
    }

    fn calls(&self) -> &Arc<Calls> {
        self.gc.get().calls()
    }

    fn checked(&self, py: Python<'_>) -> PyResult<&Arc<Calls>> {
        let calls = self.calls();
        let checked = calls.origin.check();
        checked.map_err(|failed| error::raise(py, &failed))?;
        Ok(calls)
    }

    fn enter(&self, py: Python<'_>) -> PyResult<()> {
        let calls = self.checked(py)?;
        let mut held = lock(&self.held);
        if held.depth == 0 {
            // What was deferred before has been unlinked before: we cannot find it.
            if !planted!("gc_pin_without_seal") {
                calls.collector.seal();
            }
            let pin = calls.collector.pin(self.label.as_deref());
            held.pin = Some((pin, calls.note_pinner()));
        }
        held.depth += 1;
        Ok(())
    }

    fn leave(&self, py: Python<'_>) -> PyResult<()> {
        let calls = self.checked(py)?;
        let ended = {
            let mut held = lock(&self.held);
            let Some(depth) = held.depth.checked_sub(1) else {
                return Err(PyRuntimeError::new_err("the pin is not entered"));
            };
            held.depth = depth;
            if depth == 0 { held.pin.take() } else { None }
        };
        ended.map_or(Ok(()), |ended| end(py, calls, ended))
    }
}

fn end(py: Python<'_>, calls: &Arc<Calls>, (pin, thread): (OwnedPin, ThreadId)) -> PyResult<()> {
    calls.forget_pinner(thread);
    drop(pin);
    calls.after_unpin(py)
}

#[pymethods]
impl EpochPin {
    fn __enter__(slf: Bound<'_, Self>) -> PyResult<Bound<'_, Self>> {
        slf.get().enter(slf.py())?;
        Ok(slf)
    }

    #[pyo3(signature = (*exc_info))]
    fn __exit__(&self, py: Python<'_>, exc_info: &Bound<'_, PyTuple>) -> PyResult<()> {
        let _ = exc_info;
        self.leave(py)
    }

    /// Does not let others run: a cancellation in between would leave it entered for ever.
    fn __aenter__(slf: Bound<'_, Self>) -> PyResult<Bound<'_, Instant>> {
        slf.get().enter(slf.py())?;
        let py = slf.py();
        Bound::new(py, Instant::of(slf.into_any().unbind()))
    }

    #[pyo3(signature = (*exc_info))]
    fn __aexit__(&self, py: Python<'_>, exc_info: &Bound<'_, PyTuple>) -> PyResult<Py<Instant>> {
        let _ = exc_info;
        self.leave(py)?;
        Instant::nothing(py)
    }

    /// What `statistics()` calls it.
    #[getter]
    fn label(&self) -> Option<&str> {
        self.label.as_deref()
    }

    /// How often it was entered and not yet left.
    #[getter]
    fn depth(&self) -> usize {
        lock(&self.held).depth
    }

    fn __repr__(&self) -> String {
        let label = self.label.as_deref().unwrap_or("");
        let held = lock(&self.held);
        match &held.pin {
            Some((pin, _)) => format!("<millrace.EpochPin {label:?} epoch={}>", pin.epoch()),
            None => format!("<millrace.EpochPin {label:?} not entered>"),
        }
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.gc)
    }
}

impl Drop for EpochPin {
    /// Dropped while it is entered it lets go, and says so, like a file.
    fn drop(&mut self) {
        let Some(held) = lock(&self.held).pin.take() else {
            return;
        };
        if self.calls().origin.is_forked_child() {
            // It is the parent's.
            std::mem::forget(held);
            return;
        }
        door::attached(|py| {
            let text = format!(
                "a pin was dropped without being left: {:?}",
                self.label.as_deref().unwrap_or("")
            );
            error::warn(py, &py.get_type::<PyResourceWarning>(), text);
            unharmed(py, || {
                if let Err(raised) = end(py, self.calls(), held) {
                    raised.write_unraisable(py, None);
                }
            });
        });
    }
}
