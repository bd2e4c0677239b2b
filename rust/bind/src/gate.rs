//! The end of the interpreter, and the threads that are inside of ours then.
//!
//! Up to CPython 3.13 a daemon thread ends where it asks for the interpreter's lock after the end
//! has begun: by unwinding its stack. A frame of Rust on that stack ends the process instead. So
//! who calls from Rust what is written in Python, where a thread may lose the lock, is counted, and
//! the exit waits until nobody is inside. If another thread than the one that exits ever was, a
//! thread keeps the lock for longer from then on before it has to pass it on: who comes in
//! afterwards, for a handler of the exit that runs after ours, leaves before he loses it.
//!
//! # Always true
//!
//! 1. Who is inside is attached when he comes and when he leaves, so whoever holds the
//!    interpreter's lock sees a count that stands still.
//! 2. The exit waits for a bounded time. Code of the program that we call (a deferred call, a
//!    destructor) may take longer; a daemon thread that is in it then ends the process the hard
//!    way.

use std::{
    cell::Cell,
    sync::{
        OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use millrace_core::{fork::Origin, planted};
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
/// Threads that ever were.
static CAME: AtomicUsize = AtomicUsize::new(0);
/// The process whose threads are counted.
static HERE: OnceLock<Origin> = OnceLock::new();

thread_local! {
    /// Whether this thread is one of them.
    static HAS_COME: Cell<bool> = const { Cell::new(false) };
}

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
    if !HAS_COME.replace(true) {
        CAME.fetch_add(1, Ordering::Relaxed);
    }
    Inside(())
}

/// Whether a thread other than this one ever was inside.
fn others_came() -> bool {
    CAME.load(Ordering::Relaxed) > usize::from(HAS_COME.get()) || planted!("bind_exit_slows_all")
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
/// Where other threads ever did, nobody loses the interpreter's lock while he does so later.
#[pyfunction]
pub fn wait_for_insiders(py: Python<'_>) -> PyResult<()> {
    if others_came() {
        let sys = py.import("sys")?;
        let kept: f64 = sys.call_method0("getswitchinterval")?.extract()?;
        sys.call_method1("setswitchinterval", (kept.max(KEEP_S),))?;
    }
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
