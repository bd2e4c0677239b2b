//! The one door between Rust and the interpreter: the only file that attaches or detaches.
//!
//! # Always true
//!
//! 1. No lock of ours is held while a thread attaches, detaches or calls into Python: Python may
//!    run anything then, also code that wants the same lock.
//! 2. Engine threads and workers never come here. They hold no Python object and learn nothing
//!    of the interpreter's state, so its end cannot hurt them. The one exception is the bridge of
//!    `bridge.rs`, which attaches by itself and is ended before the interpreter.

use std::{
    sync::atomic::{AtomicI64, Ordering},
    thread,
    time::Duration,
};

use pyo3::{exceptions::PyImportError, ffi, prelude::*};

use crate::gate;

/// How long a blocking call sleeps before it looks for a signal such as Ctrl-C.
const SIGNAL_CHECK: Duration = Duration::from_millis(100);

/// Lets the first interpreter of the process in and refuses every other.
///
/// What is kept in statics (classes, the registry of loops) belongs to one interpreter; another
/// one that used it would crash later and far from here.
pub fn admit(_attached: Python<'_>) -> PyResult<()> {
    const NOBODY: i64 = -1;
    static ADMITTED: AtomicI64 = AtomicI64::new(NOBODY);
    // SAFETY: the argument proves that this thread is attached, so there is a current interpreter.
    let caller = unsafe { ffi::PyInterpreterState_GetID(ffi::PyInterpreterState_Get()) };
    let before = ADMITTED.compare_exchange(NOBODY, caller, Ordering::Relaxed, Ordering::Relaxed);
    match before {
        Err(admitted) if admitted != caller => Err(PyImportError::new_err(
            "millrace can be used in one interpreter of a process, and another one was first",
        )),
        _ => Ok(()),
    }
}

/// Runs `work` without the interpreter, so that other Python threads go on.
pub fn detached<T: Send>(py: Python<'_>, work: impl FnOnce() -> T + Send) -> T {
    let _inside = gate::enter(py);
    py.detach(work)
}

/// Lets other Python threads go on for a while.
pub fn pause(py: Python<'_>, time: Duration) {
    py.detach(|| thread::sleep(time));
}

/// Waits in slices, so that Ctrl-C ends a blocking call.
///
/// `wait` gets the length of its slice and answers `None` when that has passed without an
/// outcome. `Ok(None)` means the whole timeout has passed.
pub fn wait_detached<T: Send>(
    py: Python<'_>,
    timeout: Option<Duration>,
    wait: impl Fn(Duration) -> Option<T> + Sync,
) -> PyResult<Option<T>> {
    let mut left = timeout;
    loop {
        let slice = left.map_or(SIGNAL_CHECK, |left| left.min(SIGNAL_CHECK));
        if let Some(outcome) = py.detach(|| wait(slice)) {
            return Ok(Some(outcome));
        }
        py.check_signals()?;
        left = left.map(|left| left.saturating_sub(slice));
        if left.is_some_and(|left| left.is_zero()) {
            return Ok(None);
        }
    }
}

/// Runs `work` attached, for destructors of Python objects, which already run attached.
pub fn attached(work: impl FnOnce(Python<'_>)) {
    Python::try_attach(work);
}
