//! Where the calls of one event loop lie until its drain runs them.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicBool, Ordering},
    },
};

use millrace_core::{epoch::Budget, sync::lock};
use pyo3::{intern, prelude::*, sync::PyOnceLock};

use super::calls::{Calls, Hold, Ready, is_living};
use crate::loops::{Chore, LoopPort};

/// One loop's calls of one collector.
pub(super) struct Desk {
    calls: Weak<Calls>,
    port: Weak<LoopPort>,
    due: Mutex<VecDeque<Ready>>,
    /// The drain has been asked to come by.
    is_asked: AtomicBool,
    /// A timer will ask.
    is_timed: AtomicBool,
    myself: Weak<Self>,
    /// After a close.
    kept: Mutex<Option<Hold>>,
}

impl Desk {
    pub(super) fn new(calls: &Arc<Calls>, port: &Arc<LoopPort>) -> Arc<Self> {
        Arc::new_cyclic(|myself| Self {
            calls: Arc::downgrade(calls),
            port: Arc::downgrade(port),
            due: Mutex::default(),
            is_asked: AtomicBool::new(false),
            is_timed: AtomicBool::new(false),
            myself: Weak::clone(myself),
            kept: Mutex::default(),
        })
    }

    pub(super) fn is_of(&self, port: &Arc<LoopPort>) -> bool {
        std::ptr::eq(self.port.as_ptr(), Arc::as_ptr(port))
    }

    pub(super) fn is_open(&self) -> bool {
        is_living(&self.port)
    }

    /// Asks the loop's drain to come by; from any thread.
    pub(super) fn ask(&self) {
        // AcqRel: partner is the swap in `run`. Who finds it set knows that a drain is on its
        // way which will see what was put here before.
        if self.is_asked.swap(true, Ordering::AcqRel) {
            return;
        }
        if let (Some(port), Some(myself)) = (self.port.upgrade(), self.myself.upgrade()) {
            port.ask(myself);
        }
    }

    pub(super) fn take(&self, ready: Ready) {
        lock(&self.due).push_back(ready);
        self.ask();
    }

    /// Keeps the calls until everything here has run, whatever becomes of the `EpochGC`.
    pub(super) fn keep(&self, calls: &Arc<Calls>) {
        if self.has_some() {
            *lock(&self.kept) = Some(Hold::new(calls));
        }
    }

    pub(super) fn next(&self) -> Option<Ready> {
        lock(&self.due).pop_front()
    }

    pub(super) fn has_some(&self) -> bool {
        !lock(&self.due).is_empty()
    }

    /// Everything that lies here; the loop is closed.
    pub(super) fn clear_away(&self) -> VecDeque<Ready> {
        std::mem::take(&mut *lock(&self.due))
    }

    /// Asks for a drain, unless one is foreseen.
    pub(super) fn expect(&self) {
        // Relaxed: set and cleared on the loop's own thread, where this is called.
        if !self.is_timed.load(Ordering::Relaxed) {
            self.ask();
        }
    }

    /// Turns the collector's tick, and comes again while anything is deferred.
    fn tick(&self, py: Python<'_>, calls: &Calls) -> PyResult<()> {
        let now = calls.now();
        let Some(next) = calls.collector.tick(now) else {
            return Ok(());
        };
        if next <= now {
            self.ask();
        } else if !self.is_timed.swap(true, Ordering::Relaxed) {
            let timer = Timer(Weak::clone(&self.myself));
            let wait = next.since(now).as_secs_f64();
            running_loop(py)?.call_method1(intern!(py, "call_later"), (wait, timer))?;
        }
        Ok(())
    }
}

impl Chore for Desk {
    /// In the drain of its loop: at most one batch, so that the loop goes on with other things.
    fn run(&self, py: Python<'_>) -> PyResult<()> {
        // AcqRel: partner is the swap in `ask`.
        self.is_asked.swap(false, Ordering::AcqRel);
        let Some(calls) = self.calls.upgrade() else {
            return Ok(());
        };
        if calls.origin.is_forked_child() {
            return Ok(());
        }
        calls.adopt();
        self.tick(py, &calls)?;
        let settings = calls.collector.settings();
        let budget = Budget {
            items: settings.max_batch,
            time: settings.max_batch_time,
        };
        let ran = calls.run(py, Some(self), budget);
        if calls.has_ready(self) {
            self.ask();
        } else {
            let kept = lock(&self.kept).take();
            drop(kept);
        }
        calls.report_stalls(py)?;
        ran.map(|_| ())
    }
}

/// What `call_later` calls.
#[pyclass(frozen, module = "millrace._core")]
struct Timer(Weak<Desk>);

#[pymethods]
impl Timer {
    fn __call__(&self, py: Python<'_>) -> PyResult<()> {
        let Some(desk) = self.0.upgrade() else {
            return Ok(());
        };
        desk.is_timed.store(false, Ordering::Relaxed);
        desk.run(py)
    }
}

fn running_loop(py: Python<'_>) -> PyResult<Bound<'_, PyAny>> {
    static ASK: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    ASK.import(py, "asyncio", "get_running_loop")?.call0()
}
