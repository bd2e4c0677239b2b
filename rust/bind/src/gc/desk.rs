//! Where the calls of one event loop lie until its drain runs them.
//!
//! # Always true
//!
//! 1. An open desk that somebody counts on is asked or timed: its own loop turns the tick for
//!    it, whatever other loops do. Counted on is a desk with live calls or with somebody who
//!    waits there, and every desk while there are calls that belong to no loop.
//! 2. What lies here keeps the collector alive, so that it runs also when nobody else holds it.
//! 3. Once it was cleared away it takes nothing: whoever brings something keeps it.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use millrace_core::{clock::Mono, epoch::Budget, sync::lock};
use pyo3::{intern, prelude::*, sync::PyOnceLock};

use super::calls::{Calls, Ready};
use crate::{
    gate,
    loops::{Chore, LoopPort},
};

/// One loop's calls of one collector.
pub(super) struct Desk {
    calls: Weak<Calls>,
    port: Weak<LoopPort>,
    due: Mutex<Due>,
    /// Calls of this loop, from `defer` to the end of their run.
    live: AtomicUsize,
    /// Those who wait on this loop for quiet or for room.
    waiting: AtomicUsize,
    /// The drain has been asked to come by.
    is_asked: AtomicBool,
    /// A timer will ask.
    is_timed: AtomicBool,
    myself: Weak<Self>,
}

#[derive(Default)]
struct Due {
    queue: VecDeque<Ready>,
    keep: Option<Arc<Calls>>,
    is_gone: bool,
}

impl Desk {
    pub(super) fn new(calls: &Arc<Calls>, port: &Arc<LoopPort>) -> Arc<Self> {
        Arc::new_cyclic(|myself| Self {
            calls: Arc::downgrade(calls),
            port: Arc::downgrade(port),
            due: Mutex::default(),
            live: AtomicUsize::new(0),
            waiting: AtomicUsize::new(0),
            is_asked: AtomicBool::new(false),
            is_timed: AtomicBool::new(false),
            myself: Weak::clone(myself),
        })
    }

    pub(super) fn is_of(&self, port: &Arc<LoopPort>) -> bool {
        std::ptr::eq(self.port.as_ptr(), Arc::as_ptr(port))
    }

    pub(super) fn is_open(&self) -> bool {
        self.port.upgrade().is_some_and(|port| port.is_open())
    }

    /// A call of this loop was deferred. Counted behind the lock of the register.
    pub(super) fn add_live(&self) {
        self.live.fetch_add(1, Ordering::Relaxed);
    }

    /// A call of this loop has ended. False: it is not counted here any more.
    pub(super) fn end_live(&self) -> bool {
        let before = self
            .live
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |live| {
                live.checked_sub(1)
            });
        before.is_ok()
    }

    /// Its calls are counted elsewhere from now on.
    pub(super) fn give_up_live(&self) -> usize {
        self.live.swap(0, Ordering::Relaxed)
    }

    /// Sees to it that the tick goes on here.
    pub(super) fn arm(&self) {
        let is_first = self.live.load(Ordering::Relaxed) == 1;
        if is_first || !self.is_timed.load(Ordering::Relaxed) {
            self.ask();
        }
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

    /// Lays a call down, or gives it back: the loop is closed.
    pub(super) fn take(&self, ready: Ready, calls: &Arc<Calls>) -> Result<(), Ready> {
        if !self.is_open() {
            return Err(ready);
        }
        let mut due = lock(&self.due);
        if due.is_gone {
            return Err(ready);
        }
        due.queue.push_back(ready);
        if due.keep.is_none() {
            due.keep = Some(Arc::clone(calls));
        }
        drop(due);
        self.ask();
        Ok(())
    }

    /// The number of the next call.
    pub(super) fn first(&self) -> Option<u64> {
        lock(&self.due).queue.front().map(Ready::number)
    }

    /// The next call, and, with the last one, what kept the collector: dropped by the caller,
    /// who holds it as well.
    pub(super) fn next(&self) -> Option<(Ready, Option<Arc<Calls>>)> {
        let mut due = lock(&self.due);
        let ready = due.queue.pop_front()?;
        let is_last = due.queue.is_empty();
        Some((ready, due.keep.take_if(|_| is_last)))
    }

    /// Everything that lies here; the loop is closed.
    pub(super) fn clear_away(&self) -> (VecDeque<Ready>, Option<Arc<Calls>>) {
        let mut due = lock(&self.due);
        due.is_gone = true;
        (std::mem::take(&mut due.queue), due.keep.take())
    }

    fn is_counted_on(&self, calls: &Calls) -> bool {
        self.live.load(Ordering::Relaxed) > 0
            || self.waiting.load(Ordering::Relaxed) > 0
            || calls.has_plain()
    }

    /// Comes again: at once if there is more to run, or when the collector says.
    fn go_on(&self, py: Python<'_>, calls: &Calls, next: Option<Mono>) -> PyResult<()> {
        let now = calls.now();
        if self.first().is_some() || calls.has_loose() || next.is_some_and(|next| next <= now) {
            self.ask();
            return Ok(());
        }
        let Some(next) = next.filter(|_| self.is_counted_on(calls)) else {
            return Ok(());
        };
        if !self.is_timed.swap(true, Ordering::Relaxed) {
            let _inside = gate::enter(py);
            let timer = Timer(Weak::clone(&self.myself));
            let wait = next.since(now).as_secs_f64();
            let set = running_loop(py)
                .and_then(|it| it.call_method1(intern!(py, "call_later"), (wait, timer)));
            if set.is_err() {
                self.is_timed.store(false, Ordering::Relaxed);
            }
            set?;
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
        let next = calls.collector.tick(calls.now());
        let settings = calls.collector.settings();
        let budget = Budget {
            items: settings.max_batch,
            time: settings.max_batch_time,
        };
        let ran = calls.run(py, Some(self), budget);
        let outcome = ran.raised.map_or(Ok(()), Err);
        outcome
            .and(self.go_on(py, &calls, next))
            .and(calls.report_stalls(py))
    }

    /// What lies here belongs to no loop any more; it runs now if nobody else holds it.
    fn lost(&self) {
        let calls = self.calls.upgrade();
        if let Some(calls) = calls.filter(|calls| !calls.origin.is_forked_child()) {
            calls.adopt();
        }
    }
}

/// Somebody waits on the loop of a desk.
pub(super) struct Interest(Arc<Desk>);

impl Interest {
    pub(super) fn new(desk: &Arc<Desk>) -> Self {
        desk.waiting.fetch_add(1, Ordering::Relaxed);
        desk.ask();
        Self(Arc::clone(desk))
    }
}

impl Drop for Interest {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What `call_later` calls.
#[pyclass(frozen, module = "millrace._core")]
struct Timer(Weak<Desk>);

#[pymethods]
impl Timer {
    fn __call__(&self, py: Python<'_>) -> PyResult<()> {
        let _inside = gate::enter(py);
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
