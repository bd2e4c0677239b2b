//! The end of the interpreter, and the threads that are inside of ours then.
//!
//! Up to CPython 3.13 a daemon thread ends where it asks for the interpreter's lock after the end
//! has begun: by unwinding its stack. A frame of Rust on that stack ends the process instead. So
//! who calls from Rust what is written in Python, where a thread may lose the lock, is counted, and
//! the exit waits until nobody is inside. From then on a thread keeps the lock for longer before it has to pass it on: who comes
//! in afterwards, for a handler of the exit that runs after ours, leaves before he loses it.
//!
//! # Always true
//!
//! 1. Who is inside is attached when he comes and when he leaves, so whoever holds the
//!    interpreter's lock sees a count that stands still.
//! 2. The exit waits for a bounded time. Code of the program that we call (a deferred call, a
//!    destructor) may take longer; a daemon thread that is in it then ends the process the hard
//!    way.

use std::{
    sync::{
        OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use millrace_core::fork::Origin;
use pyo3::prelude::*;

use crate::door;

/// How long the exit waits for those who are inside.
const PATIENCE: Duration = Duration::from_secs(1);
/// How often it looks.
const PAUSE: Duration = Duration::from_micros(200);
/// How long a thread keeps the interpreter's lock at the end, in seconds: longer than anybody is
/// inside without code of the program, and short for a person who waits.
const KEEP_S: f64 = 0.1;

static INSIDE: AtomicUsize = AtomicUsize::new(0);
/// The process whose threads are counted.
static HERE: OnceLock<Origin> = OnceLock::new();

/// Somebody is inside.
pub struct Inside(());

impl Drop for Inside {
    #[inline]
    fn drop(&mut self) {
        INSIDE.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Comes in, until the answer is dropped; the argument says that the interpreter's lock is held.
#[inline]
pub fn enter(_attached: Python<'_>) -> Inside {
    INSIDE.fetch_add(1, Ordering::Relaxed);
    Inside(())
}

/// Has the exit wait for those who are inside, behind everything else of ours that is done then.
pub fn build(module: &Bound<'_, PyModule>) -> PyResult<()> {
    if let Ok(here) = Origin::here() {
        HERE.get_or_init(|| here);
    }
    let wait = module.getattr("wait_for_insiders")?;
    module
        .py()
        .import("atexit")?
        .call_method1("register", (wait,))?;
    Ok(())
}

/// Wait until no other thread calls into Python from here.
///
/// Nobody loses the interpreter's lock while he does so later.
#[pyfunction]
pub fn wait_for_insiders(py: Python<'_>) -> PyResult<()> {
    let sys = py.import("sys")?;
    let kept: f64 = sys.call_method0("getswitchinterval")?.extract()?;
    sys.call_method1("setswitchinterval", (kept.max(KEEP_S),))?;
    if HERE.get().is_some_and(|here| here.is_forked_child()) {
        // Those who were counted are in the parent.
        return Ok(());
    }
    let begun = Instant::now();
    while INSIDE.load(Ordering::Relaxed) > 0 && begun.elapsed() < PATIENCE {
        door::pause(py, PAUSE);
    }
    Ok(())
}
