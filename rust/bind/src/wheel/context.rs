//! The context of a call, captured without a copy for each timer.
//!
//! `copy_context` makes an object of 64 bytes. A thousand timers armed in a row by one task find
//! the same variables, so they share one copy: two contexts whose mapping is the same object hold
//! the same variables, because that mapping never changes. Each callback runs in a copy of its
//! own, made when it runs.

use std::{
    ffi::{c_int, c_void},
    ptr,
};

use millrace_core::sync::lock;
use pyo3::{PyTraverseError, PyVisit, ffi, prelude::*, sync::PyOnceLock};

use super::Core;

/// The context captured last, and the address of its mapping.
#[derive(Default)]
pub struct Captured(Option<(Py<PyAny>, usize)>);

impl Captured {
    pub fn traverse(&self, visit: &PyVisit<'_>) -> Result<(), PyTraverseError> {
        match &self.0 {
            Some((context, _)) => visit.call(context),
            None => Ok(()),
        }
    }
}

/// The context of the caller, or one that holds the very same variables.
#[inline]
pub fn capture(py: Python<'_>, core: &Core) -> PyResult<Py<PyAny>> {
    static COPY: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let fresh = COPY.import(py, "contextvars", "copy_context")?.call0()?;
    let mapping = mapping_of(&fresh);
    let mut state = lock(&core.state);
    if let Some((shared, known)) = &state.captured.0
        && *known == mapping
        && mapping != 0
    {
        return Ok(shared.clone_ref(py));
    }
    let fresh = fresh.unbind();
    let before = state.captured.0.replace((fresh.clone_ref(py), mapping));
    drop(state);
    drop(before);
    Ok(fresh)
}

/// What a context tells the collector that it refers to.
struct Seen {
    count: usize,
    last: *mut ffi::PyObject,
}

/// Address of the mapping of a context that nobody has entered: all that it refers to. Zero if
/// it refers to something else as well; then nothing is shared.
///
/// The captured context keeps its mapping alive, so the address is not used again meanwhile.
#[inline]
fn mapping_of(context: &Bound<'_, PyAny>) -> usize {
    let mut seen = Seen {
        count: 0,
        last: ptr::null_mut(),
    };
    // SAFETY: the type of a live object; a traverse function only calls the visitor, which keeps
    // to the numbers in `seen`, and `seen` outlives the call.
    unsafe {
        let slot = ffi::PyType_GetSlot(ffi::Py_TYPE(context.as_ptr()), ffi::Py_tp_traverse);
        if slot.is_null() {
            return 0;
        }
        let traverse = std::mem::transmute::<*mut c_void, ffi::traverseproc>(slot);
        traverse(context.as_ptr(), visit, (&raw mut seen).cast());
    }
    if seen.count == 1 {
        seen.last as usize
    } else {
        0
    }
}

extern "C" fn visit(object: *mut ffi::PyObject, seen: *mut c_void) -> c_int {
    // SAFETY: `mapping_of` passes a `Seen` that lives as long as the traversal.
    let seen = unsafe { &mut *seen.cast::<Seen>() };
    seen.count += 1;
    seen.last = object;
    0
}
