//! A pin as Python holds it: a context manager, entered as often as one likes.

use std::sync::{Arc, Mutex, PoisonError};

use millrace_core::{epoch::OwnedPin, sync::lock};
use pyo3::{exceptions::PyRuntimeError, prelude::*, types::PyTuple};

use super::calls::{Calls, Hold};
use crate::{door::attached, error, wheel::Instant};

/// While it is entered, nothing deferred after that runs. Made by `EpochGC.pin`.
#[pyclass(frozen, module = "millrace._core")]
pub struct EpochPin {
    calls: Hold,
    label: Option<String>,
    held: Mutex<Held>,
}

#[derive(Default)]
struct Held {
    /// How often it was entered and not yet left.
    depth: usize,
    pin: Option<OwnedPin>,
    /// The thread that entered it first.
    thread: usize,
}

impl EpochPin {
    pub(super) fn new(calls: &Arc<Calls>, label: Option<String>) -> Self {
        Self {
            calls: Hold::new(calls),
            label,
            held: Mutex::default(),
        }
    }

    fn enter(&self, py: Python<'_>) -> PyResult<()> {
        let checked = self.calls.origin.check();
        checked.map_err(|failed| error::raise(py, &failed))?;
        let mut held = lock(&self.held);
        if held.depth == 0 {
            let collector = &self.calls.collector;
            if collector.load().items > 0 {
                // What was deferred before is sealed before: this pin does not hold it back.
                collector.is_ready();
            }
            held.pin = Some(collector.pin(self.label.as_deref()));
            held.thread = self.calls.note_pinned();
        }
        held.depth += 1;
        Ok(())
    }

    fn leave(&self, py: Python<'_>) -> PyResult<()> {
        let checked = self.calls.origin.check();
        checked.map_err(|failed| error::raise(py, &failed))?;
        let ended = {
            let mut held = lock(&self.held);
            let Some(depth) = held.depth.checked_sub(1) else {
                return Err(PyRuntimeError::new_err("the pin is not entered"));
            };
            held.depth = depth;
            if depth > 0 {
                return Ok(());
            }
            self.calls.note_unpinned(held.thread);
            held.pin.take()
        };
        drop(ended);
        self.calls.run_left(py)
    }
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
            Some(pin) => format!("<millrace.EpochPin {label:?} epoch={}>", pin.epoch()),
            None => format!("<millrace.EpochPin {label:?} not entered>"),
        }
    }
}

impl Drop for EpochPin {
    fn drop(&mut self) {
        let held = self.held.get_mut();
        let held = held.unwrap_or_else(PoisonError::into_inner);
        let Some(pin) = held.pin.take() else { return };
        if self.calls.origin.is_forked_child() {
            // Its slot is registered with threads that do not exist here.
            std::mem::forget(pin);
            return;
        }
        self.calls.note_unpinned(held.thread);
        drop(pin);
        attached(|py| {
            if let Err(raised) = self.calls.run_left(py) {
                raised.write_unraisable(py, None);
            }
        });
    }
}
