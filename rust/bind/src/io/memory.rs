//! Memory of the engine that Python may look at.
//!
//! A read moves its own memory in here when it is done, so no byte is copied; what lay here before
//! is freed then, unless somebody looks at it.
//!
//! # Always true
//!
//! 1. The bytes a view shows never change and are not freed while it lives: reads fill memory
//!    that is not yet here, and nothing is moved in while there are views.
//! 2. While a read is under way, no view can be taken, and no second read can begin.

use std::{
    ffi::c_int,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use millrace_core::{io, planted, sync::lock};
use pyo3::{exceptions::PyBufferError, ffi, prelude::*};

use crate::{buffer, error};

/// The bytes and who is at them.
struct State {
    memory: io::Buffer,
    /// How many of them the last read brought.
    filled: usize,
    views: usize,
    is_reading: bool,
}

/// Shared by the buffer and the read that will fill it.
struct Cell {
    state: Mutex<State>,
    size: usize,
    pinned: Arc<AtomicUsize>,
}

/// A read-only buffer over memory of the engine, to be filled by `read_into` without a copy.
///
/// `memoryview(buffer)` shows what the last read brought. While such a view lives the memory is
/// pinned: a read into the buffer is a `BufferError`.
#[pyclass(frozen, weakref, module = "millrace._core")]
pub struct EngineBuffer(Arc<Cell>);

impl EngineBuffer {
    pub fn new(py: Python<'_>, size: usize, pinned: &Arc<AtomicUsize>) -> PyResult<Self> {
        let memory = io::Buffer::try_zeroed(size).map_err(|full| error::raise_io(py, &full))?;
        let state = State {
            memory,
            filled: size,
            views: 0,
            is_reading: false,
        };
        Ok(Self(Arc::new(Cell {
            state: Mutex::new(state),
            size,
            pinned: Arc::clone(pinned),
        })))
    }

    pub fn size(&self) -> usize {
        self.0.size
    }

    /// Keeps it for one read.
    pub fn reserve(&self) -> PyResult<Reservation> {
        let mut state = lock(&self.0.state);
        if state.views > 0 && !planted!("bind_fills_under_views") {
            return Err(PyBufferError::new_err(
                "a view of this buffer is alive; release it before reading into the buffer",
            ));
        }
        if state.is_reading {
            return Err(PyBufferError::new_err(
                "another read into this buffer is under way",
            ));
        }
        state.is_reading = true;
        Ok(Reservation(Arc::clone(&self.0)))
    }
}

/// A read is under way. Ends when dropped, with or without bytes.
pub struct Reservation(Arc<Cell>);

impl Reservation {
    /// Moves in what was read.
    pub fn fill(self, memory: io::Buffer, filled: usize) {
        let mut state = lock(&self.0.state);
        let before = std::mem::replace(&mut state.memory, memory);
        state.filled = filled;
        drop(state);
        drop(before);
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        lock(&self.0.state).is_reading = false;
    }
}

#[pymethods]
impl EngineBuffer {
    fn __len__(&self) -> usize {
        self.0.size
    }

    /// How many bytes a view shows: all, or what the last read brought.
    #[getter]
    fn filled(&self) -> usize {
        lock(&self.0.state).filled
    }

    /// Whether a view of it lives.
    #[getter]
    fn is_pinned(&self) -> bool {
        lock(&self.0.state).views > 0
    }

    // SAFETY: called by the interpreter with a `Py_buffer` of its own to fill in.
    unsafe fn __getbuffer__(
        slf: Bound<'_, Self>,
        view: *mut ffi::Py_buffer,
        flags: c_int,
    ) -> PyResult<()> {
        let cell = &slf.get().0;
        let mut state = lock(&cell.state);
        if state.is_reading {
            return Err(PyBufferError::new_err(
                "a read into this buffer is under way; await it first",
            ));
        }
        let (start, length) = (state.memory.as_ptr(), state.filled);
        state.views += 1;
        drop(state);
        // SAFETY: `view` is the interpreter's, see above. The memory stays where it is and as it
        // is while `views` is not zero (invariant 1, kept by `reserve`), and `slf`, which the
        // view will hold, keeps the cell.
        let shown = unsafe { buffer::expose(slf.as_any(), view, start, length, flags) };
        if shown.is_err() {
            lock(&cell.state).views -= 1;
        } else {
            cell.pinned.fetch_add(cell.size, Ordering::Relaxed);
        }
        shown
    }

    // SAFETY: called by the interpreter, once for each view that `__getbuffer__` filled in.
    unsafe fn __releasebuffer__(&self, _view: *mut ffi::Py_buffer) {
        lock(&self.0.state).views -= 1;
        self.0.pinned.fetch_sub(self.0.size, Ordering::Relaxed);
    }

    fn __repr__(&self) -> String {
        let state = lock(&self.0.state);
        let doing = match (state.is_reading, state.views) {
            (true, _) => "reading",
            (false, 0) => "idle",
            (false, _) => "pinned",
        };
        format!(
            "<millrace.EngineBuffer size={} filled={} {doing}>",
            self.0.size, state.filled
        )
    }
}
