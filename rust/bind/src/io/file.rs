//! An open file as Python sees it: a place in the engine, not a descriptor to be shared around.

use std::{
    os::fd::RawFd,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use millrace_core::{
    Error, ErrorKind, Result, io,
    ioloop::{Ask, cached::Warmth},
    sync::lock,
};
use pyo3::{exceptions::PyResourceWarning, prelude::*};

use super::{
    outcome::{Place, Wanted},
    shared::Shared,
};
use crate::{
    door, error,
    operation::{Operation, Source},
};

/// What all who use one open file share.
pub struct OpenFile {
    pub engine: Arc<Shared>,
    file: Mutex<Option<io::File>>,
    pub warmth: Warmth,
    path: Arc<Path>,
}

impl OpenFile {
    pub fn new(engine: Arc<Shared>, file: io::File, path: Arc<Path>) -> Self {
        Self {
            engine,
            file: Mutex::new(Some(file)),
            warmth: Warmth::default(),
            path,
        }
    }

    /// The file for one request, which keeps it open until it is over.
    pub fn lend(&self) -> Result<io::File> {
        lock(&self.file).clone().ok_or_else(|| self.closed())
    }

    fn closed(&self) -> Error {
        Error::new(ErrorKind::Closed, "the file is closed").with_path(&*self.path)
    }

    fn is_open(&self) -> bool {
        lock(&self.file).is_some()
    }

    /// Where a request on it takes place.
    pub fn place(&self, offset: Option<u64>, requested: Option<u64>) -> Place {
        Place {
            path: Some(Arc::clone(&self.path)),
            offset,
            requested,
        }
    }
}

/// A file opened by an engine, to be read and written at positions.
///
/// Close it, or use it with `async with`. Operations under way keep it open until they are over.
#[pyclass(frozen, weakref, module = "millrace._core")]
pub struct File {
    open: OpenFile,
    /// Somebody has it. Until then a cancelled await may drop it, which is nobody's fault.
    is_owed: AtomicBool,
}

impl File {
    pub fn new(open: OpenFile) -> Self {
        let is_owed = AtomicBool::new(false);
        Self { open, is_owed }
    }

    pub fn open(&self) -> &OpenFile {
        &self.open
    }
}

#[pymethods]
impl File {
    /// Where it was opened.
    #[getter]
    fn path(&self) -> PathBuf {
        self.open.path.to_path_buf()
    }

    /// Whether it was closed.
    #[getter]
    fn is_closed(&self) -> bool {
        !self.open.is_open()
    }

    /// Return the descriptor, for calls that only look, such as `os.posix_fadvise`.
    ///
    /// It stays the engine's: never close it, and do not keep it beyond the file.
    ///
    /// Raises:
    ///     ClosedError: If the file is closed.
    fn fileno(&self, py: Python<'_>) -> PyResult<RawFd> {
        let lent = self
            .open
            .lend()
            .map_err(|refused| error::raise_io(py, &refused))?;
        lent.fd()
            .ok_or_else(|| error::panicked("a file without a descriptor"))
    }

    /// Close the file; returns when the kernel has answered, for the last error may come then.
    ///
    /// What is under way goes on, and keeps the descriptor until it is over; then the await ends at
    /// once, and an error of the closing is lost. Closing twice is fine. Cancelling stops the
    /// waiting, not the closing.
    fn close(&self, py: Python<'_>) -> PyResult<Operation> {
        let engine = &self.open.engine;
        if let Err(forked) = engine.origin.check() {
            return Err(error::raise_io(py, &forked));
        }
        let Some(file) = lock(&self.open.file).take() else {
            return Ok(Operation::new("close", Source::Known(py.None())));
        };
        if engine.handle().is_closed() {
            // The engine takes nothing any more; the kernel does.
            door::detached(py, move || drop(file));
            return Ok(Operation::new("close", Source::Known(py.None())));
        }
        let place = self.open.place(None, None);
        engine.start(
            py,
            "close",
            Ask::Close { file },
            None,
            (Wanted::Done, place),
        )
    }

    /// Somebody has it now: dropping it without a close deserves a warning.
    fn _hand_over(&self) {
        self.is_owed.store(true, Ordering::Relaxed);
    }

    fn __aenter__(slf: Py<Self>) -> Operation {
        Operation::quiet("__aenter__", Source::Known(slf.into_any()))
    }

    #[pyo3(signature = (kind, value, traceback))]
    fn __aexit__(
        &self,
        py: Python<'_>,
        kind: &Bound<'_, PyAny>,
        value: &Bound<'_, PyAny>,
        traceback: &Bound<'_, PyAny>,
    ) -> PyResult<Operation> {
        let _ = (kind, value, traceback);
        self.close(py)
    }

    fn __repr__(&self) -> String {
        let state = if self.open.is_open() {
            "open"
        } else {
            "closed"
        };
        format!(
            "<millrace.File path='{}' {state}>",
            self.open.path.display()
        )
    }
}

impl Drop for File {
    /// Somebody forgot to close it. The engine does, so that no thread of Python waits for it.
    fn drop(&mut self) {
        let Some(file) = lock(&self.open.file).take() else {
            return;
        };
        let engine = &self.open.engine;
        if engine.origin.is_forked_child() {
            // The parent's to close and to be told off for; this is only a copy.
            return;
        }
        if !engine.handle().is_closed() {
            engine.entrust(Ask::Close { file });
        }
        if !self.is_owed.load(Ordering::Relaxed) {
            return;
        }
        let text = format!("unclosed file '{}'", self.open.path.display());
        door::attached(|py| error::warn(py, &py.get_type::<PyResourceWarning>(), text));
    }
}
