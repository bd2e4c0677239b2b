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
//! What was done and what failed is counted; `millrace.cleanup_statistics` shows it.
//!
//! The entries of a closed scope of a timeout wheel are Python's, so the wheel's own loop cleans
//! them: see `wheel/scope.rs`.

use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicBool, Ordering},
};

use millrace_core::{
    Result,
    clock::SystemClock,
    epoch::{Collector, Kind, Settings, Task},
    fork::Origin,
    sync::Wake,
};
use pyo3::{exceptions::PyRuntimeError, prelude::*, types::PyDict};

use crate::{
    gc,
    jobs::{self, Answer},
    operation::{Operation, Source},
};

struct Cleaner {
    origin: Origin,
    collector: Collector<Task>,
}

/// Wakes a worker when there is something to clean, unless one is under way.
struct Begin {
    collector: Collector<Task>,
    is_under_way: Arc<AtomicBool>,
}

impl Wake for Begin {
    fn wake(&self) {
        // AcqRel: partner is the store in `run`. Who finds it set knows that the worker will look
        // again after it, and see what was pushed before.
        if self.is_under_way.swap(true, Ordering::AcqRel) {
            return;
        }
        let (collector, is_under_way) = (self.collector.clone(), Arc::clone(&self.is_under_way));
        let started = jobs::start(move || {
            run(&collector, &is_under_way);
            Box::new(|py: Python<'_>| Ok(py.None())) as Answer
        });
        if started.is_err() {
            // No thread to be had. Nobody pins here: all of it is safe.
            run(&self.collector, &self.is_under_way);
        }
    }
}

/// Ticks until nothing is left.
fn run(collector: &Collector<Task>, is_under_way: &AtomicBool) {
    loop {
        while collector.tick(collector.now()).is_some() {
            // A push is under way on another thread.
            std::thread::yield_now();
        }
        // AcqRel: partner is the swap in `wake`.
        is_under_way.swap(false, Ordering::AcqRel);
        // Something was pushed meanwhile, and its wake found a worker under way: us.
        if collector.load().items == 0 || is_under_way.swap(true, Ordering::AcqRel) {
            return;
        }
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
    collector.set_wake(Arc::new(Begin {
        collector: collector.clone(),
        is_under_way: Arc::default(),
    }));
    Ok(Cleaner {
        origin: Origin::here()?,
        collector,
    })
}

/// Has `work` done soon, elsewhere. `bytes` is what it holds until then.
pub fn later(kind: Kind, bytes: usize, work: impl FnOnce() -> Result<()> + Send + 'static) {
    let task = Task::new(kind, work);
    let Some(cleaner) = cleaner() else {
        // A fork, or no collector. There is nobody to tell of a failure.
        let _nobody_asks = task.run_now();
        return;
    };
    if let Err(refused) = cleaner.collector.try_defer(task, bytes) {
        // There is no room: whoever lets go cleans.
        let outcome = refused.work.run_now();
        cleaner.collector.note_inline(kind, outcome);
    }
}

/// Return the fields of `GcStatistics` for what the engine itself cleans up in this process.
#[pyfunction]
pub fn cleanup_report(py: Python<'_>) -> PyResult<Bound<'_, PyDict>> {
    match cleaner() {
        Some(cleaner) => {
            let collector = &cleaner.collector;
            gc::report(py, &collector.statistics(collector.now()))
        }
        None => Err(PyRuntimeError::new_err(
            "there is no collector in this process",
        )),
    }
}

/// Wait until everything that was let go of before this call has been cleaned up.
#[pyfunction]
pub fn cleanup_done() -> Operation {
    // Work runs in the order in which it was pushed.
    let (job, hole) = jobs::job(|| Box::new(|py: Python<'_>| Ok(py.None())));
    later(Kind::Call, 0, move || {
        job();
        Ok(())
    });
    Operation::quiet("cleanup_done", Source::Job(hole))
}
