//! The engine's handle: every method extracts, asks, converts.
//!
//! ```text
//! mod, file, memory        what Python calls
//! open, sockets            what is made of its arguments
//! shared                   what the handles of one engine have in common
//! inbox, outcome, report   how an answer comes back
//! guest                    the engine turned by event loops
//! ```

mod file;
mod guest;
mod inbox;
mod memory;
mod open;
mod outcome;
mod report;
mod shared;
mod sockets;

use std::{path::PathBuf, sync::Arc};

use millrace_core::{
    ioloop::{Ask, Reply},
};
use pyo3::{
    exceptions::{PyTypeError, PyValueError},
    prelude::*,
    types::{PyBool, PyDict, PyInt},
};

use crate::{
    buffer, door, error,
    jobs,
    operation::{Operation, Source},
    ticket::timeout,
};
use outcome::{Place, Wanted};
use shared::Shared;

pub use file::File;
pub use guest::Watch;
pub use memory::EngineBuffer;
pub use report::{CloseReport, FileStatus};

/// Permissions of files that are made.
const MODE_MAX: u64 = 0o7777;

/// The engine behind `millrace.IoEngine`.
#[pyclass(frozen, subclass, weakref, module = "millrace._core")]
pub struct IoEngine {
    shared: Arc<Shared>,
}

#[pymethods]
impl IoEngine {
    #[new]
    fn new(py: Python<'_>, settings: &Bound<'_, PyAny>) -> PyResult<Self> {
        let numbers: open::Numbers = settings.extract()?;
        let opened = door::detached(py, || numbers.open().and_then(Shared::new));
        let shared = opened.map_err(|failed| error::raise_io(py, &failed))?;
        Ok(Self { shared })
    }
}
