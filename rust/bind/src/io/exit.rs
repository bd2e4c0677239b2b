//! Engines that nobody holds any more, and the end of the process.
//!
//! A close may wait for a device or a peer. So an engine that was dropped is closed by a thread of
//! its own, and at the exit so is each that is not over yet: all of them at the same time, because
//! they have one bound together.
//!
//! # Always true
//!
//! 1. Every engine of this process is listed from its making on, until it is over.
//! 2. Nothing is dropped while a list is locked. The lists are locked by threads that are attached
//!    to the interpreter, as the one that forks is.

use std::{
    sync::{Arc, Mutex, Weak},
    time::{Duration, Instant},
};

use millrace_core::{engine::io::IoEngine, fork::Origin, sync::lock};
use pyo3::prelude::*;

use super::shared::Shared;
use crate::{
    door,
    jobs::{self, Pigeonhole},
    ticket::{Seconds, timeout},
};

/// What a close takes beyond its budget, to cancel what is left, on a machine that is busy.
const GRACE: Duration = Duration::from_secs(1);

static ENGINES: Mutex<Vec<Weak<Shared>>> = Mutex::new(Vec::new());
static CLOSINGS: Mutex<Vec<Closing>> = Mutex::new(Vec::new());

/// A thread that closes an engine.
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
pub fn enlist(engine: &Arc<Shared>) {
    let mut engines = lock(&ENGINES);
    engines.retain(|one| one.strong_count() > 0);
    engines.push(Arc::downgrade(engine));
}

/// Has an engine closed that was dropped; returns at once.
pub fn entrust(engine: IoEngine, origin: Origin) {
    // The engine's own drop waits for a bounded time. If no thread can be had, that is here.
    closing(origin, move || drop(engine));
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

/// Close every I/O engine of this process that is not over.
///
/// Waits for them and for those that were dropped: *timeout_s* for all together, and a little for
/// what is cancelled then.
#[pyfunction]
pub fn close_engines(py: Python<'_>, timeout_s: f64) -> PyResult<()> {
    let budget = timeout(Some(Seconds(timeout_s)))?.unwrap_or(Duration::MAX);
    let listed = std::mem::take(&mut *lock(&ENGINES));
    let engines: Vec<_> = listed.iter().filter_map(Weak::upgrade).collect();
    for engine in engines {
        if !engine.origin.is_forked_child() && !engine.handle().is_over() {
            closing(engine.origin, move || engine.end_within(budget));
        }
    }
    let closings = std::mem::take(&mut *lock(&CLOSINGS));
    door::detached(py, || {
        let begun = Instant::now();
        for one in closings.iter().filter(|one| one.is_mine()) {
            one.over
                .wait(budget.saturating_add(GRACE).saturating_sub(begun.elapsed()));
        }
    });
    Ok(())
}
