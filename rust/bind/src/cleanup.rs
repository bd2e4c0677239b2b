//! What the binding leaves behind is cleaned by a worker, not by the event loop that lets go.
//!
//! One collector for the process. Letting go costs a push; a worker runs what was pushed, in
//! order and in batches, and goes away when nothing is left. What is pushed is plain Rust: a
//! worker never owns a Python object.
//!
//! | kind | let go of | what the worker does |
//! | --- | --- | --- |
//! | obligation | an append that was cancelled in line | frees the records it had reserved |
//! | waker | the port of a closed loop | deregisters it from every log; its descriptor closes |
//! | channel | a reader or follower | closes its backend, frees its buffers, has files removed |
//!
//! Where there is no room, no worker, or a fork in between, it is cleaned in the call itself.

use std::sync::{Arc, OnceLock};

use millrace_core::{
    Result,
    clock::{Clock, SystemClock},
    epoch::{Collector, Kind, Settings, Task},
    fork::Origin,
    sync::Wake,
};
use pyo3::Python;

use crate::jobs::{self, Answer};

struct Cleaner {
    origin: Origin,
    collector: Collector<Task>,
}

/// Wakes a worker when there is something to clean.
struct Begin(Collector<Task>);

impl Wake for Begin {
    fn wake(&self) {
        let collector = self.0.clone();
        let started = jobs::start(move || {
            run(&collector);
            Box::new(|py: Python<'_>| Ok(py.None())) as Answer
        });
        if started.is_err() {
            // No thread to be had. Nobody pins here: all of it is safe.
            run(&self.0);
        }
    }
}

/// Ticks until nothing is left.
fn run(collector: &Collector<Task>) {
    let clock = SystemClock::new();
    while collector.tick(clock.now()).is_some() {
        // A push is under way on another thread.
        std::thread::yield_now();
    }
}

fn cleaner() -> Option<&'static Cleaner> {
    static CLEANER: OnceLock<Option<Cleaner>> = OnceLock::new();
    let made = CLEANER.get_or_init(|| make().ok());
    made.as_ref()
        .filter(|cleaner| !cleaner.origin.is_forked_child())
}

fn make() -> Result<Cleaner> {
    let settings = Settings {
        assist: false,
        ..Settings::default()
    };
    let collector = Collector::new(settings, Arc::new(SystemClock::new()))?;
    collector.set_wake(Arc::new(Begin(collector.clone())));
    Ok(Cleaner {
        origin: Origin::here()?,
        collector,
    })
}

/// Has `work` done soon, elsewhere. `bytes` is what it holds until then.
pub fn later(kind: Kind, bytes: usize, work: impl FnOnce() + Send + 'static) {
    let task = Task::new(kind, move || {
        work();
        Ok(())
    });
    let Some(cleaner) = cleaner() else {
        return run_here(task);
    };
    if let Err(refused) = cleaner.collector.try_defer(task, bytes) {
        run_here(refused.work);
    }
}

/// There is no room, or no collector: whoever lets go cleans.
fn run_here(task: Task) {
    let failed = task.run_now();
    debug_assert!(failed.is_ok(), "cleanup failed: {failed:?}");
}
