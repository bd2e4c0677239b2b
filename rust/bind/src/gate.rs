//! The end of the interpreter, and the threads that are inside of ours then.
//!
//! Up to CPython 3.13 a daemon thread ends where it asks for the interpreter's lock after the end
//! has begun: by unwinding its stack. A frame of Rust on that stack ends the process instead. So
//! what a loop calls passes a gate before it calls into Python itself. At the exit the gate is shut
//! while the interpreter is whole, and those who are inside are waited for: they are about to leave,
//! because code of the program, which may take any time, is not run from inside.
//!
//! # Always true
//!
//! 1. Who is inside was counted before the gate was shut, or is on the thread that shut it.
//! 2. Shutting waits for a bounded time.

use std::{
    sync::{
        OnceLock,
        atomic::{AtomicUsize, Ordering, fence},
    },
    thread::{self, ThreadId},
    time::{Duration, Instant},
};

use millrace_core::fork::Origin;
use pyo3::prelude::*;

use crate::door;

/// How long the exit waits for those who are inside.
const PATIENCE: Duration = Duration::from_secs(1);
/// How often it looks.
const PAUSE: Duration = Duration::from_micros(200);

static INSIDE: AtomicUsize = AtomicUsize::new(0);
/// Who shut the gate, and in which process.
static SHUT: OnceLock<(ThreadId, Option<Origin>)> = OnceLock::new();
/// The process whose threads are counted.
static HERE: OnceLock<Origin> = OnceLock::new();

/// Somebody is inside.
pub struct Inside(());

impl Drop for Inside {
    fn drop(&mut self) {
        INSIDE.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Passes the gate; `None` at the end of the interpreter, when nothing is to be called any more.
#[inline]
pub fn enter() -> Option<Inside> {
    INSIDE.fetch_add(1, Ordering::Relaxed);
    // Partner: the fence in `shut_gate`. Whoever does not see the gate shut is seen inside.
    fence(Ordering::SeqCst);
    let inside = Inside(());
    is_open().then_some(inside)
}

#[inline]
fn is_open() -> bool {
    SHUT.get().is_none_or(|(by, origin)| {
        let elsewhere = origin.is_some_and(Origin::is_forked_child);
        elsewhere || *by == thread::current().id()
    })
}

/// Has the exit of this process shut the gate, behind everything else that is done then.
pub fn build(module: &Bound<'_, PyModule>) -> PyResult<()> {
    if let Ok(here) = Origin::here() {
        HERE.get_or_init(|| here);
    }
    let shut = module.getattr("shut_gate")?;
    module
        .py()
        .import("atexit")?
        .call_method1("register", (shut,))?;
    Ok(())
}

/// Let nobody but this thread call into Python from here any more; wait for those who do.
#[pyfunction]
pub fn shut_gate(py: Python<'_>) {
    let origin = Origin::here().ok();
    if SHUT.set((thread::current().id(), origin)).is_err() {
        return;
    }
    // Partner: the fence in `enter`.
    fence(Ordering::SeqCst);
    if HERE.get().is_some_and(|here| here.is_forked_child()) {
        // Those who were counted are in the parent.
        return;
    }
    door::detached(py, || {
        let begun = Instant::now();
        while INSIDE.load(Ordering::Relaxed) > 0 && begun.elapsed() < PATIENCE {
            thread::sleep(PAUSE);
        }
    });
}
