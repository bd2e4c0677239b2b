//! The event loop a wheel belongs to: its clock, and how its one timer is armed.

use std::{sync::Arc, time::Duration};

use millrace_core::{clock::Mono, sync::lock};
use pyo3::{
    PyTraverseError, PyVisit,
    exceptions::PyRuntimeError,
    intern,
    prelude::*,
    sync::PyOnceLock,
    types::{PyDict, PyType},
};

use super::{Core, Turn, seconds};
use crate::current;

const MILLI: u64 = 1_000_000;

/// A loop, and what was found out about it.
pub struct Home {
    event_loop: Py<PyAny>,
    /// What tells without a call that this loop runs here.
    witness: Option<Py<PyAny>>,
    clock: Clock,
    /// The loop's timers count whole milliseconds and round to the nearest.
    is_coarse: bool,
    /// An empty context for our own calls, so that the loop does not hold on to somebody's.
    keywords: Py<PyDict>,
}

enum Clock {
    /// The loop's time is that of `CLOCK_MONOTONIC`, perhaps seen once for each iteration.
    Monotonic,
    /// The loop has a clock of its own, for example one that a test moves.
    Method(Py<PyAny>),
}

impl Home {
    fn new(event_loop: Bound<'_, PyAny>) -> PyResult<Self> {
        let py = event_loop.py();
        let time = event_loop.getattr(intern!(py, "time"))?;
        let is_coarse = is_uvloop(&event_loop)?;
        let clock = if is_coarse || is_stock(&time)? {
            Clock::Monotonic
        } else {
            Clock::Method(time.unbind())
        };
        let keywords = PyDict::new(py);
        let context = py.import("contextvars")?.getattr("Context")?.call0()?;
        keywords.set_item(intern!(py, "context"), context)?;
        Ok(Self {
            witness: current::witness(py),
            clock,
            is_coarse,
            keywords: keywords.unbind(),
            event_loop: event_loop.unbind(),
        })
    }

    pub fn event_loop(&self) -> &Py<PyAny> {
        &self.event_loop
    }

    /// Whether it is certain that this loop is the one running in this thread.
    #[inline]
    pub fn is_running(&self, py: Python<'_>) -> PyResult<bool> {
        current::runs(py, self.witness.as_ref(), &self.event_loop)
    }

    #[inline]
    pub fn now(&self, py: Python<'_>) -> PyResult<Mono> {
        match &self.clock {
            Clock::Monotonic => Ok(monotonic()),
            Clock::Method(time) => Ok(seconds::mono(time.bind(py).call0()?.extract()?)),
        }
    }

    /// The time at a turn that was asked for at `armed`.
    ///
    /// Beyond 104 days a float has no room for every nanosecond. A clock that tells floats has
    /// come to `armed` when it shows the float that the loop was asked for; by nanoseconds alone
    /// it might stand just before it for ever.
    pub fn now_at(&self, py: Python<'_>, armed: Mono) -> PyResult<Mono> {
        let now = self.now(py)?;
        let is_float = matches!(self.clock, Clock::Method(_));
        let has_come = is_float && seconds::of(now) >= seconds::of(armed);
        Ok(if has_come { now.max(armed) } else { now })
    }

    /// Asks the loop for `run(turn)` at `next`, or in its next iteration if that has come.
    pub fn call_at<'py>(
        &self,
        next: Mono,
        now: Mono,
        run: &Bound<'py, PyAny>,
        turn: Bound<'py, Turn>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let py = turn.py();
        let event_loop = self.event_loop.bind(py);
        let keywords = Some(self.keywords.bind(py));
        if next <= now {
            return event_loop.call_method(intern!(py, "call_soon"), (run, turn), keywords);
        }
        if self.is_coarse {
            // Never early: up to the next whole millisecond, from the last one.
            let millis = next.0.div_ceil(MILLI) - now.0 / MILLI;
            let delay_s = Duration::from_millis(millis).as_secs_f64();
            let args = (delay_s, run, turn);
            return event_loop.call_method(intern!(py, "call_later"), args, keywords);
        }
        let when = seconds::of(next);
        event_loop.call_method(intern!(py, "call_at"), (when, run, turn), keywords)
    }

    /// Asks the loop for a call in its next iteration.
    pub fn call_soon(&self, callable: &Bound<'_, PyAny>) -> PyResult<()> {
        let py = callable.py();
        let keywords = Some(self.keywords.bind(py));
        let event_loop = self.event_loop.bind(py);
        event_loop.call_method(intern!(py, "call_soon"), (callable,), keywords)?;
        Ok(())
    }

    pub fn traverse(&self, visit: &PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.event_loop)?;
        visit.call(&self.witness)?;
        if let Clock::Method(time) = &self.clock {
            visit.call(time)?;
        }
        visit.call(&self.keywords)
    }
}

/// Asks asyncio which loop runs here, and makes the wheel belong to it if it may.
#[cold]
pub fn settle(py: Python<'_>, core: &Core) -> PyResult<Arc<Home>> {
    static ASK: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let event_loop = ASK.import(py, "asyncio", "get_running_loop")?.call0()?;
    let known = lock(&core.state).home.clone();
    if let Some(known) = &known {
        if known.event_loop.is(&event_loop) {
            return refresh(py, core, known, event_loop);
        }
        if !is_closed(known.event_loop.bind(py))? {
            return Err(PyRuntimeError::new_err(
                "the wheel belongs to another event loop; make one for each loop",
            ));
        }
    }
    let home = Arc::new(Home::new(event_loop)?);
    let now = home.now(py)?;
    // Ticks begin at whole multiples of their length, so that they agree with a coarse loop's.
    let origin = Mono(now.0 - now.0 % core.tick_ns);
    let mut state = lock(&core.state);
    let left = state.wheel.restart(origin);
    state.dropped += left.len() as u64;
    state.armed = super::UNARMED;
    // Asked of a loop that is closed: it will not come. Keys of before are stale.
    state.is_sweep_asked = false;
    let before = (state.home.replace(Arc::clone(&home)), state.timer.take());
    drop(state);
    drop((left, before));
    Ok(home)
}

/// The same loop; it may have been stopped and started, which changes what tells that it runs.
fn refresh(
    py: Python<'_>,
    core: &Core,
    known: &Arc<Home>,
    event_loop: Bound<'_, PyAny>,
) -> PyResult<Arc<Home>> {
    if current::witness(py).is_none() {
        return Ok(Arc::clone(known));
    }
    let home = Arc::new(Home::new(event_loop)?);
    let before = lock(&core.state).home.replace(Arc::clone(&home));
    drop(before);
    Ok(home)
}

/// Whether this very loop runs in this thread, as asyncio sees it.
pub fn runs_here(event_loop: &Bound<'_, PyAny>) -> PyResult<bool> {
    let running = current::ask(event_loop.py())?;
    Ok(running.is_some_and(|running| running.is(event_loop)))
}

pub fn is_closed(event_loop: &Bound<'_, PyAny>) -> PyResult<bool> {
    let name = intern!(event_loop.py(), "is_closed");
    event_loop.call_method0(name)?.is_truthy()
}

/// Whether a bound `time` is the one that every loop of asyncio has: `time.monotonic`.
fn is_stock(time: &Bound<'_, PyAny>) -> PyResult<bool> {
    let py = time.py();
    let base = py.import("asyncio")?.getattr("BaseEventLoop")?;
    let stock = base.getattr(intern!(py, "time"))?;
    let function = time.getattr(intern!(py, "__func__")).ok();
    Ok(function.is_some_and(|function| function.is(&stock)))
}

fn is_uvloop(event_loop: &Bound<'_, PyAny>) -> PyResult<bool> {
    let time = event_loop
        .get_type()
        .getattr(intern!(event_loop.py(), "time"))?;
    for class in event_loop.get_type().mro() {
        let class = class.cast_into::<PyType>()?;
        let is_theirs = class.module()?.to_string_lossy().starts_with("uvloop");
        if is_theirs && class.getattr("time").is_ok_and(|own| own.is(&time)) {
            return Ok(true);
        }
    }
    Ok(false)
}

#[inline]
fn monotonic() -> Mono {
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the kernel fills a struct that is ours; this clock always exists.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    Mono(now.tv_sec.cast_unsigned() * 1_000_000_000 + now.tv_nsec.cast_unsigned())
}
