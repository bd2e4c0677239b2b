//! The engine turned by event loops.
//!
//! A loop turns the engine when it has asked for something (at once if nothing else is under way
//! and nobody else was just answered, otherwise once for all that its tasks ask for in this
//! iteration: a first task that had its answers at once would leave the device to itself alone while
//! the others wait for their turn), when a descriptor of the
//! engine is readable, and when a deadline has come; and when one of its tasks begins to wait for
//! something that was asked for elsewhere. No thread of ours is involved.
//!
//! ```text
//! loop --selector--> Watch --strong--> Visit --weak--> engine
//!      \--timer----> Watch /             ^
//! LoopPort ------------------------------/   urged: turned by the next drain
//! ```
//!
//! # Always true
//!
//! 1. While a loop waits for a request, that loop watches the engine's descriptors, through
//!    duplicates that stay open as long as they are watched: a number in a selector must not be
//!    reused.
//! 2. A timer runs only while the engine has a deadline, and not later than it.
//! 3. The timer goes with the loop, whether it has fired or not.
//! 4. Nothing is called in Python while a lock is held.

use std::{
    os::fd::{AsRawFd, BorrowedFd, OwnedFd},
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicBool, Ordering},
    },
};

use millrace_core::{
    clock::Mono,
    engine::io::IoEngine,
    ioloop::driver::{Next, Turnable},
    planted,
    sync::lock,
};
use pyo3::{PyTraverseError, PyVisit, intern, prelude::*};

use super::shared::Shared;
use crate::{
    current::{self, Running},
    gate,
    loops::LoopPort,
};

/// One engine on one loop.
pub struct Visit {
    engine: Weak<Shared>,
    watched: Vec<OwnedFd>,
    /// To be turned by the next drain.
    is_urged: AtomicBool,
    timer: Mutex<Option<Timer>>,
}

struct Timer {
    due: Mono,
    handle: Py<PyAny>,
}

/// Who will have it carried out what is about to be asked for: the loop that runs here, if one does.
pub struct Host(Option<(Running, Arc<Visit>)>);

impl Host {
    /// Everything that may fail, so that nothing does once the request was accepted.
    pub fn find(py: Python<'_>, engine: &Arc<Shared>) -> PyResult<Self> {
        let Some(running) = current::running_loop(py)? else {
            return Ok(Self(None));
        };
        let visit = visit_of(py, engine, &running)?;
        Ok(Self(Some((running, visit))))
    }

    /// Has what was just asked for carried out; the loop that will.
    pub fn urge(self, py: Python<'_>, engine: &Arc<Shared>, alone: bool) -> Weak<LoopPort> {
        let Some((running, visit)) = self.0 else {
            // No loop here: it is begun now, and turned further by the loop that waits for it.
            turn_here(engine);
            return Weak::new();
        };
        // The loop could not be asked for its timer: its next drain tries again, and has somebody to
        // tell.
        let is_lone = alone && (!running.port().is_crowded() || planted!("bind_first_takes_all"));
        let has_turned = is_lone && visit.turn(py, &running).is_ok();
        if !has_turned && !visit.is_urged.swap(true, Ordering::Relaxed) {
            running.port().wake();
        }
        Arc::downgrade(running.port())
    }
}

/// A loop begins to wait for something that `turner` was to turn: if that is another one, or none,
/// it turns the engine from now on.
pub fn attend(py: Python<'_>, engine: &Arc<Shared>, turner: &Weak<LoopPort>) -> PyResult<()> {
    let Some(running) = current::running_loop(py)? else {
        return Ok(());
    };
    if std::ptr::eq(turner.as_ptr(), Arc::as_ptr(running.port())) {
        return Ok(());
    }
    let visit = visit_of(py, engine, &running)?;
    visit.turn(py, &running)
}

/// Turns on a thread that has no loop, or is busy with something else.
pub fn turn_here(engine: &Shared) {
    if engine.origin.is_forked_child() {
        return;
    }
    if let Some(turnable) = turnable(engine)
        && turnable.turn() == Next::Elsewhere
    {
        engine.handle().wake();
    }
}

fn turnable(engine: &Shared) -> Option<&Turnable> {
    engine.engine().and_then(IoEngine::turnable)
}

fn visit_of(py: Python<'_>, engine: &Arc<Shared>, running: &Running) -> PyResult<Arc<Visit>> {
    let _inside = gate::enter(py);
    if let Some(known) = running.port().visit(|visit| visit.is_of(engine)) {
        return Ok(known);
    }
    let numbers = turnable(engine).map_or(&[][..], Turnable::watched);
    let watched = numbers.iter().map(|number| {
        // SAFETY: the engine keeps the descriptor open as long as it lives, and we hold it.
        let borrowed = unsafe { BorrowedFd::borrow_raw(*number) };
        borrowed.try_clone_to_owned()
    });
    let watched: Vec<_> = watched.collect::<std::io::Result<_>>()?;
    let visit = Arc::new(Visit {
        engine: Arc::downgrade(engine),
        watched,
        is_urged: AtomicBool::new(false),
        timer: Mutex::new(None),
    });
    for fd in &visit.watched {
        let watch = Bound::new(py, Watch::new(&visit, running.port(), false))?;
        let event_loop = running.event_loop().bind(py);
        event_loop.call_method1(intern!(py, "add_reader"), (fd.as_raw_fd(), watch))?;
    }
    running.port().add_visit(Arc::clone(&visit));
    Ok(visit)
}

impl Visit {
    fn is_of(&self, engine: &Arc<Shared>) -> bool {
        std::ptr::eq(self.engine.as_ptr(), Arc::as_ptr(engine))
    }

    /// The loop is gone, and with it what would have run the timer. The timer holds the loop, and
    /// us by way of its callback: a ring that would keep all of it for ever.
    pub fn lose_timer(&self) {
        if !planted!("bind_timer_outlives_loop") {
            let timer = lock(&self.timer).take();
            drop(timer);
        }
    }

    /// For the collector, to which the timer shows the loop.
    pub fn traverse(&self, visit: &PyVisit<'_>) -> Result<(), PyTraverseError> {
        // It runs on a thread that may hold the timer; then nothing is garbage yet.
        match self.timer.try_lock().as_deref() {
            Ok(Some(timer)) => visit.call(&timer.handle),
            _ => Ok(()),
        }
    }

    /// What is found from here on rings again.
    fn quiet(&self) {
        let engine = self.engine.upgrade();
        if let Some(turnable) = engine.as_deref().and_then(turnable) {
            turnable.quiet();
        }
    }

    /// For the drain: turns if somebody asked for something in this iteration.
    pub fn turn_if_urged(&self, py: Python<'_>) -> PyResult<()> {
        if !self.is_urged.swap(false, Ordering::Relaxed) {
            return Ok(());
        }
        match current::running_loop(py)? {
            Some(running) => self.turn(py, &running),
            None => Ok(()),
        }
    }

    fn turn(&self, py: Python<'_>, running: &Running) -> PyResult<()> {
        let _inside = gate::enter(py);
        let Some(engine) = self.engine.upgrade() else {
            return self.retire(py, running);
        };
        let Some(turnable) = turnable(&engine) else {
            return Ok(());
        };
        let due = match turnable.turn() {
            Next::Over => return self.retire(py, running),
            Next::Elsewhere => {
                // Whoever turns it now may have looked before we asked.
                engine.handle().wake();
                return Ok(());
            }
            Next::Readable => None,
            Next::At(due) => Some(due),
        };
        self.time(py, running, due, engine.handle().now())
    }

    /// Has the loop come back when the engine's next deadline is there.
    fn time(
        &self,
        py: Python<'_>,
        running: &Running,
        due: Option<Mono>,
        now: Mono,
    ) -> PyResult<()> {
        let armed = lock(&self.timer).as_ref().map(|timer| timer.due);
        match (armed, due) {
            (None, None) => return Ok(()),
            (Some(armed), Some(due)) if armed <= due => return Ok(()),
            _ => self.stop_timer(py)?,
        }
        let Some(due) = due else { return Ok(()) };
        let Some(this) = running.port().visit(|visit| std::ptr::eq(visit, self)) else {
            return Ok(());
        };
        let watch = Bound::new(py, Watch::new(&this, running.port(), true))?;
        let delay = due.since(now).as_secs_f64();
        let event_loop = running.event_loop().bind(py);
        let handle = event_loop.call_method1(intern!(py, "call_later"), (delay, watch))?;
        let handle = handle.unbind();
        *lock(&self.timer) = Some(Timer { due, handle });
        Ok(())
    }

    fn stop_timer(&self, py: Python<'_>) -> PyResult<()> {
        let timer = lock(&self.timer).take();
        if let Some(timer) = timer {
            timer.handle.bind(py).call_method0(intern!(py, "cancel"))?;
        }
        Ok(())
    }

    /// The engine is no more.
    fn retire(&self, py: Python<'_>, running: &Running) -> PyResult<()> {
        self.stop_timer(py)?;
        let gone = running.port().remove_visit(self);
        if gone.is_some() {
            let event_loop = running.event_loop().bind(py);
            for fd in &self.watched {
                event_loop.call_method1(intern!(py, "remove_reader"), (fd.as_raw_fd(),))?;
            }
        }
        Ok(())
    }
}

/// What the loop calls when a descriptor is readable, or when a deadline has come.
#[pyclass(frozen, module = "millrace._core")]
pub struct Watch {
    visit: Arc<Visit>,
    port: Weak<LoopPort>,
    is_timer: bool,
}

impl Watch {
    fn new(visit: &Arc<Visit>, port: &Arc<LoopPort>, is_timer: bool) -> Self {
        Self {
            visit: Arc::clone(visit),
            port: Arc::downgrade(port),
            is_timer,
        }
    }
}

#[pymethods]
impl Watch {
    fn __call__(&self, py: Python<'_>) -> PyResult<()> {
        let _inside = gate::enter(py);
        if self.is_timer {
            let fired = lock(&self.visit.timer).take();
            drop(fired);
        }
        let (Some(port), Some(running)) = (self.port.upgrade(), current::running_loop(py)?) else {
            return Ok(());
        };
        // Whatever rings during the turn is answered right behind it.
        port.hush();
        self.visit.quiet();
        let turned = self.visit.turn(py, &running);
        port.drain(py)?;
        turned
    }
}
