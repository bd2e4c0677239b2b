//! What it costs to come back to an event loop, with nothing done in between.
//!
//! For `benches/python/ways.py`, which compares the two ways, and for tests of what a panic on
//! the other side turns into.

use millrace_core::io::Wanted;
use pyo3::prelude::*;

use crate::{
    bridge, error,
    jobs::{self, Answer},
    operation::{Operation, Source},
};

/// Go to another thread and come back by the bridge.
#[pyfunction]
#[pyo3(signature = (*, panics = false))]
pub fn come_back_by_bridge(py: Python<'_>, panics: bool) -> PyResult<Bound<'_, PyAny>> {
    bridge::start(py, Wanted::default(), move || nothing(panics))
}

/// Go to another thread and come back by the port of the loop.
#[pyfunction]
#[pyo3(signature = (*, panics = false))]
pub fn come_back_by_port(py: Python<'_>, panics: bool) -> PyResult<Operation> {
    let hole = jobs::start(move || nothing(panics)).map_err(|failed| error::raise(py, &failed))?;
    Ok(Operation::new("come_back_by_port", Source::Job(hole)))
}

fn nothing(panics: bool) -> Answer {
    assert!(!panics, "a panic that was asked for");
    Box::new(|py| Ok(py.None()))
}
