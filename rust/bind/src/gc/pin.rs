//! A pin as Python holds it: a context manager, entered as often as one likes.

use std::sync::{Arc, Mutex};

use millrace_core::{epoch::OwnedPin, sync::lock};
use pyo3::{exceptions::PyRuntimeError, prelude::*, types::PyTuple};

use super::calls::Calls;
use crate::{
    error,
    operation::{Operation, Source},
};

/// While it is entered, nothing deferred after that runs. Made by `EpochGC.pin`.
#[pyclass(frozen, module = "millrace._core")]
pub struct EpochPin {
    calls: Arc<Calls>,
    label: Option<String>,
    held: Mutex<Held>,
}

#[derive(Default)]
struct Held {
    /// How often it was entered and not yet left.
    depth: usize,
    pin: Option<OwnedPin>,
}

impl EpochPin {
    pub(super) fn new(calls: &Arc<Calls>, label: Option<String>) -> Self {
        Self {
            calls: Arc::clone(calls),
            label,
            held: Mutex::default(),
        }
    }

    fn enter(&self, py: Python<'_>) -> PyResult<()> {
        let checked = self.calls.origin.check();
        checked.map_err(|failed| error::raise(py, &failed))?;
        let mut held = lock(&self.held);
        if held.depth == 0 {
            held.pin = Some(self.calls.collector.pin(self.label.as_deref()));
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
            if depth == 0 { held.pin.take() } else { None }
        };
        drop(ended);
        Ok(())
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

    fn __aenter__(slf: Bound<'_, Self>) -> PyResult<Operation> {
        slf.get().enter(slf.py())?;
        let known = Source::Known(slf.into_any().unbind());
        Ok(Operation::quiet("pin", known))
    }

    #[pyo3(signature = (*exc_info))]
    fn __aexit__(&self, py: Python<'_>, exc_info: &Bound<'_, PyTuple>) -> PyResult<Operation> {
        let _ = exc_info;
        self.leave(py)?;
        Ok(Operation::quiet("pin", Source::Known(py.None())))
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
        if self.calls.origin.is_forked_child() {
            // Its slot is registered with threads that do not exist here.
            std::mem::forget(lock(&self.held).pin.take());
        }
    }
}
