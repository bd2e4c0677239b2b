//! What is still open when the process ends, and what nobody holds any more.
//!
//! A close may wait for a device or a peer. So an engine that was dropped is closed by a thread of
//! its own, a log that was dropped by the thread it has; and at the exit each that is not over is
//! closed by a thread of its own: all at the same time, because they, and the bridge, have one
//! bound together. What stands still on a dead device keeps nobody else from ending well.
//!
//! # Always true
//!
//! 1. Every engine, and every log opened for writing, of this process is listed from its making on,
//!    until it is over.
//! 2. Nothing is dropped while a list is locked. The lists are locked by threads that are attached
//!    to the interpreter, as the one that forks is; the one of dropped logs by any thread, and so
//!    nobody ever waits for it.

use std::{
    sync::{Arc, Mutex, Weak},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use millrace_core::{engine::io::IoEngine, fork::Origin, planted, sync::lock};
use pyo3::prelude::*;

use crate::{
    bridge, door,
    jobs::{self, Pigeonhole},
    ticket::{Seconds, timeout},
};

/// How long everything that is left has at the exit.
const BOUND_S: f64 = 5.0;
/// What a close takes beyond its budget, to cancel what is left, on a machine that is busy.
const GRACE: Duration = Duration::from_secs(1);
/// How often the exit looks after the threads of dropped logs.
const PAUSE: Duration = Duration::from_micros(500);

static OPEN: Mutex<Vec<Weak<dyn Closes>>> = Mutex::new(Vec::new());
static CLOSINGS: Mutex<Vec<Closing>> = Mutex::new(Vec::new());
static DROPPED: Mutex<Vec<(Origin, JoinHandle<()>)>> = Mutex::new(Vec::new());

/// What the exit has to close.
pub trait Closes: Send + Sync {
    /// The process that has to.
    fn origin(&self) -> Origin;

    /// Whether there is nothing to be done any more. Waits for nobody.
    fn is_over(&self) -> bool;

    /// Closes, on a plain thread, which waits.
    fn end_within(&self, budget: Duration);
}

/// A thread that closes something.
struct Closing {
    origin: Origin,
    over: Arc<Pigeonhole>,
}

impl Closing {
    fn is_mine(&self) -> bool {
        !self.origin.is_forked_child()
    }
}

/// From now on the exit waits for it.
pub fn enlist<T: Closes + 'static>(one: &Arc<T>) {
    let one: Weak<dyn Closes> = Arc::<T>::downgrade(one);
    let mut open = lock(&OPEN);
    open.retain(|one| one.strong_count() > 0);
    open.push(one);
}

/// Has an engine closed that was dropped; returns at once.
pub fn entrust(engine: IoEngine, origin: Origin) {
    // The engine's own drop waits for a bounded time. If no thread can be had, that is here.
    closing(origin, move || drop(engine));
}

/// The exit waits for the thread of a log that was dropped.
pub fn wait_for(thread: JoinHandle<()>, origin: Origin) {
    // Where somebody else is at it just now: this log is not waited for, as its owner wished.
    if let Ok(mut dropped) = DROPPED.try_lock() {
        let over: Vec<_> = dropped
            .extract_if(.., |(_, one)| one.is_finished())
            .collect();
        dropped.push((origin, thread));
        std::mem::drop(dropped);
        std::mem::drop(over);
    }
}

fn closing(origin: Origin, close: impl FnOnce() + Send + 'static) {
    let started = jobs::start_alone("millrace-close", move || {
        close();
        jobs::answer(Ok(()), |py, ()| Ok(py.None()))
    });
    let Ok(over) = started else { return };
    let mut closings = lock(&CLOSINGS);
    closings.retain(|one| one.is_mine() && !one.over.wait(Duration::ZERO));
    closings.push(Closing { origin, over });
}

/// Has the exit close what is left, behind the handlers of those who imported us.
pub fn build(module: &Bound<'_, PyModule>) -> PyResult<()> {
    let close = module.getattr("close_everything")?;
    let atexit = module.py().import("atexit")?;
    atexit.call_method1("register", (close, BOUND_S))?;
    Ok(())
}

/// Close every log and every I/O engine of this process that is not over, and end the bridge.
///
/// Waits for them and for those that were dropped: *timeout_s* for all together, and a little for
/// what is cancelled then.
#[pyfunction]
pub fn close_everything(py: Python<'_>, timeout_s: f64) -> PyResult<()> {
    let budget = timeout(Some(Seconds(timeout_s)))?.unwrap_or(Duration::MAX);
    let begun = Instant::now();
    let listed = std::mem::take(&mut *lock(&OPEN));
    for one in listed.iter().filter_map(Weak::upgrade) {
        let origin = one.origin();
        if !origin.is_forked_child() && !one.is_over() {
            closing(origin, move || one.end_within(budget));
            if planted!("exit_closes_one_by_one") {
                wait(py, begun, budget);
            }
        }
    }
    bridge::end(py, budget);
    wait(py, begun, budget);
    Ok(())
}

/// Waits for the closings under way until `budget` after `begun`.
fn wait(py: Python<'_>, begun: Instant, budget: Duration) {
    let closings = std::mem::take(&mut *lock(&CLOSINGS));
    let dropped = match DROPPED.try_lock() {
        Ok(mut dropped) => std::mem::take(&mut *dropped),
        Err(_) => Vec::new(),
    };
    door::detached(py, || {
        let left = |budget: Duration| budget.saturating_sub(begun.elapsed());
        for one in closings.iter().filter(|one| one.is_mine()) {
            one.over.wait(left(budget.saturating_add(GRACE)));
        }
        for (origin, thread) in dropped {
            while !origin.is_forked_child() && !thread.is_finished() && !left(budget).is_zero() {
                thread::sleep(PAUSE);
            }
        }
    });
}
