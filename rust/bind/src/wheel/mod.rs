//! The timeout wheel for an event loop: one kernel timer, however many deadlines.
//!
//! ```text
//! loop --its one timer--> Turn --strong--> TimeoutWheel --> Core: slab of callbacks, futures, timeouts
//!                                  what call_later returned --^  (a plain reference and a key)
//! ```
//!
//! # Always true
//!
//! 1. While something waits, the loop's timer is armed for no later than the first deadline, or a
//!    turn is under way. It is armed anew only when a deadline comes before it, after a turn, or
//!    when its time has passed and no turn has come; a cancel never touches it, so after one there
//!    may be a single wake-up in vain.
//! 2. No Python call is made, nothing is allocated in Python and no reference is dropped while
//!    the state is locked.
//! 3. Everything happens on the thread of the loop that the wheel belongs to: the one that used
//!    it first, until that one is closed.
//! 4. What `call_later` returned does not keep the wheel alive, so that the collector sees every
//!    cycle through a callback.

mod context;
mod home;
mod scope;
mod seconds;
mod timeout;
mod turn;

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use millrace_core::{
    Error, ErrorKind,
    clock::Mono,
    epoch::Collector,
    fork::Origin,
    planted,
    sync::lock,
    wheel::{self, Key},
};
use pyo3::{
    PyTraverseError, PyVisit,
    exceptions::PyTypeError,
    intern,
    prelude::*,
    types::{PyDict, PyTuple},
};

use crate::error;

use context::Captured;
use home::Home;
pub use scope::TimerScope;
pub use timeout::{Instant, Timeout};
use turn::Turn;

/// No timer of the loop is armed.
const UNARMED: Mono = Mono(u64::MAX);
/// A turn is under way and will arm the timer itself.
const TURNING: Mono = Mono(0);
/// How long a turn that was asked for again, because its time had passed, may stay away before it
/// is asked for once more.
const PATIENCE: Duration = Duration::from_secs(1);

/// What waits in the wheel.
struct Timer {
    /// With a context: a callable, or a tuple of one and its arguments. Without: a `Timeout`, or
    /// a future to be resolved.
    what: Py<PyAny>,
    context: Option<Py<PyAny>>,
}

/// The wheel behind `millrace.TimeoutWheel`.
#[pyclass(frozen, subclass, weakref, module = "millrace._core")]
pub struct TimeoutWheel {
    core: Arc<Core>,
}

struct Core {
    tick_ns: u64,
    origin: Origin,
    state: Mutex<State>,
    /// What closed scopes have left in the wheel.
    cleanup: Collector<scope::Ended>,
}

struct State {
    wheel: wheel::TimeoutWheel<Timer>,
    home: Option<Arc<Home>>,
    captured: Captured,
    /// For when the loop's timer is armed.
    armed: Mono,
    /// When a turn that stayed away was asked for again.
    missed_at: Option<Mono>,
    timer: Option<Py<PyAny>>,
    is_closed: bool,
    turns: u64,
    rearmed: u64,
    dropped: u64,
    failed: u64,
    /// Due after their scope had ended, so not run.
    outlived: u64,
    /// Taken out after their scope had ended.
    swept: u64,
    is_sweep_asked: bool,
}

/// A callback that waits; `cancel` takes it back.
#[pyclass(frozen, module = "millrace._core")]
pub struct Handle {
    core: Arc<Core>,
    key: Key,
}

#[pymethods]
impl Handle {
    /// Take the callback back; true if it would still have run.
    ///
    /// Its function and arguments are let go at once. Afterwards, and after it has run, this does
    /// nothing.
    fn cancel(&self, py: Python<'_>) -> bool {
        let taken = lock(&self.core.state).wheel.cancel(self.key);
        taken.is_some_and(|timer| !timer.has_ended(py))
    }

    fn __repr__(&self, py: Python<'_>) -> String {
        let locked = lock(&self.core.state);
        let found = locked.wheel.get(self.key);
        let waits = found.is_some_and(|timer| !timer.has_ended(py));
        drop(locked);
        let state = if waits { "waiting" } else { "done" };
        format!("<millrace.Handle {state}>")
    }
}

#[pymethods]
impl TimeoutWheel {
    #[new]
    #[pyo3(signature = (*, tick_s = 0.001))]
    fn new(py: Python<'_>, tick_s: f64) -> PyResult<Self> {
        let tick = seconds::tick(tick_s)?;
        let wheel = wheel::TimeoutWheel::new(tick, Mono(0));
        let origin = Origin::here().map_err(|failed| error::raise(py, &failed))?;
        let state = State {
            wheel: wheel.map_err(|failed| error::raise(py, &failed))?,
            home: None,
            captured: Captured::default(),
            armed: UNARMED,
            missed_at: None,
            timer: None,
            is_closed: false,
            turns: 0,
            rearmed: 0,
            dropped: 0,
            failed: 0,
            outlived: 0,
            swept: 0,
            is_sweep_asked: false,
        };
        Ok(Self {
            core: Arc::new(Core {
                tick_ns: tick.as_nanos() as u64,
                origin,
                state: Mutex::new(state),
                cleanup: scope::cleanup(),
            }),
        })
    }

    /// Call *callback* with *args* once *delay_s* seconds have passed, never earlier.
    ///
    /// It runs on the loop's thread, in the context of this call. If it raises, the loop's
    /// exception handler hears of it, and the others run all the same.
    ///
    /// Raises:
    ///     ClosedError: If the wheel is closed.
    ///
    ///     RuntimeError: If no loop runs here, or the wheel belongs to another one.
    #[pyo3(signature = (delay_s, callback, /, *args))]
    fn call_later(
        slf: &Bound<'_, Self>,
        delay_s: &Bound<'_, PyAny>,
        callback: &Bound<'_, PyAny>,
        args: &Bound<'_, PyTuple>,
    ) -> PyResult<Handle> {
        arm_call(slf, delay_s, callback, args, Ok)
    }

    /// Make a scope: callbacks that end together, all at once, however many they are.
    ///
    /// Use it as a context manager, or call `close`.
    fn scope(slf: Bound<'_, Self>) -> TimerScope {
        TimerScope::new(slf.unbind())
    }

    /// Limit how long a block may take: `async with wheel.timeout(5.0): ...`.
    ///
    /// When *delay_s* seconds have passed, the task inside is cancelled, and the block raises
    /// `TimeoutError` in place of that cancellation. `None` sets no limit; `reschedule` can.
    ///
    /// Raises:
    ///     ClosedError: If the wheel is closed; also inside of the block, at its next wait, when
    ///         it is closed there.
    #[pyo3(signature = (delay_s))]
    fn timeout(slf: &Bound<'_, Self>, delay_s: Option<&Bound<'_, PyAny>>) -> PyResult<Timeout> {
        let py = slf.py();
        let delay = delay_s.map(seconds::delay).transpose()?;
        let home = slf.get().core.home(py)?;
        let now = home.now(py)?;
        let deadline = delay.map(|delay| now.after(delay));
        Ok(Timeout::new(slf.clone().unbind(), deadline))
    }

    /// Arm a sleep; return the future to wait for and what takes the sleep back.
    fn start_sleep<'py>(
        slf: &Bound<'py, Self>,
        delay_s: &Bound<'py, PyAny>,
    ) -> PyResult<(Option<Bound<'py, PyAny>>, Option<Handle>)> {
        let py = slf.py();
        let delay = seconds::delay(delay_s)?;
        let core = &slf.get().core;
        let home = core.home(py)?;
        if delay.is_zero() {
            return Ok((None, None));
        }
        let now = home.now(py)?;
        let create = intern!(py, "create_future");
        let future = home.event_loop().bind(py).call_method0(create)?;
        let timer = Timer {
            what: future.clone().unbind(),
            context: None,
        };
        let key = schedule(slf, &home, (now, now.after(delay)), timer)?;
        let core = Arc::clone(core);
        Ok((Some(future), Some(Handle { core, key })))
    }

    /// Stop the wheel.
    ///
    /// Sleeps fail with `ClosedError`, blocks under a timeout are cancelled and raise it,
    /// callbacks are dropped and counted.
    ///
    /// Raises:
    ///     RuntimeError: If the wheel's loop is running in another thread.
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        self.core.here(py)?;
        turn::close(py, &self.core)
    }

    /// Whether the wheel refuses everything.
    #[getter]
    fn is_closed(&self) -> bool {
        lock(&self.core.state).is_closed
    }

    /// The time of the loop at which the wheel looks next; `None` if nothing waits.
    ///
    /// Nothing is due before. It may be too early once the timer that was to be first has been
    /// cancelled.
    #[getter]
    fn next_deadline(&self) -> Option<f64> {
        let next = lock(&self.core.state).wheel.next_deadline();
        next.map(seconds::of)
    }

    /// How long a tick lasts.
    #[getter]
    fn tick_s(&self) -> f64 {
        seconds::of(Mono(self.core.tick_ns))
    }

    /// Return the fields of `WheelStatistics`.
    fn statistics_report<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let dict = PyDict::new(py);
        let state = lock(&self.core.state);
        let seen = state.wheel.statistics();
        let (turns, rearmed) = (state.turns, state.rearmed);
        let (dropped, failed) = (state.dropped, state.failed);
        let (outlived, swept) = (state.outlived, state.swept);
        drop(state);
        let cleanup = self.core.cleanup.statistics(self.core.cleanup.now());
        dict.set_item("armed", seen.armed)?;
        dict.set_item("cancelled", seen.cancelled - dropped + outlived)?;
        dict.set_item("expired", seen.expired - outlived)?;
        dict.set_item("dropped", dropped)?;
        dict.set_item("failed", failed)?;
        dict.set_item("live", seen.live)?;
        dict.set_item("turns", turns)?;
        dict.set_item("rearmed", rearmed)?;
        dict.set_item("memory_bytes", seen.memory_bytes)?;
        dict.set_item("swept", swept)?;
        dict.set_item("sweeps", cleanup.batches)?;
        dict.set_item("sweep_time_max_s", cleanup.batch_time_max.as_secs_f64())?;
        dict.set_item("to_sweep", cleanup.queue.bytes / size_of::<Key>())?;
        Ok(dict)
    }

    #[allow(clippy::needless_pass_by_value)]
    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        // Locked only by a thread that is about to change it: nothing is garbage then.
        let Ok(state) = self.core.state.try_lock() else {
            return Ok(());
        };
        if let Some(home) = &state.home
            && Arc::strong_count(home) == 1
        {
            home.traverse(&visit)?;
        }
        state.captured.traverse(&visit)?;
        visit.call(&state.timer)?;
        for timer in state.wheel.values() {
            visit.call(&timer.what)?;
            visit.call(&timer.context)?;
        }
        Ok(())
    }

    fn __clear__(&self) {
        self.core.let_go();
    }
}

impl Drop for TimeoutWheel {
    fn drop(&mut self) {
        self.core.let_go();
    }
}

impl State {
    /// Whether the time of the loop's timer has passed and no turn has come: the loop is late, or
    /// an interrupt has hit it between the timer and the turn. The turn is asked for again then.
    #[inline]
    fn is_missed(&mut self, now: Mono) -> bool {
        if now < self.armed || self.armed == TURNING || planted!("bind_missed_turns_stay_away") {
            return false;
        }
        let is_asked = self.missed_at.is_some_and(|at| now < at.after(PATIENCE));
        if !is_asked {
            self.missed_at = Some(now);
        }
        !is_asked
    }
}

impl Core {
    fn here(&self, py: Python<'_>) -> PyResult<()> {
        self.origin
            .check()
            .map_err(|failed| error::raise(py, &failed))
    }

    /// The loop this wheel belongs to, if it is the one running here.
    #[inline]
    fn home(&self, py: Python<'_>) -> PyResult<Arc<Home>> {
        self.here(py)?;
        let state = lock(&self.state);
        let (is_closed, home) = (state.is_closed, state.home.clone());
        // Not locked while asyncio is asked.
        drop(state);
        if is_closed {
            return Err(error::raise(py, &closed()));
        }
        match home {
            Some(home) if home.is_running(py)? => Ok(home),
            _ => home::settle(py, self),
        }
    }

    /// Forgets everything; nobody can reach the wheel any more.
    fn let_go(&self) {
        let mut left = Vec::new();
        let mut state = lock(&self.state);
        state.is_closed = true;
        state.wheel.cancel_where(|_| true, &mut left);
        state.dropped += left.len() as u64;
        let rest = (
            state.home.take(),
            state.timer.take(),
            std::mem::take(&mut state.captured),
        );
        drop(state);
        drop((left, rest));
    }

    fn cancel(&self, key: Key) {
        let taken = lock(&self.state).wheel.cancel(key);
        drop(taken);
    }
}

/// Arms a callback; `wrap` may put something around its context.
fn arm_call(
    slf: &Bound<'_, TimeoutWheel>,
    delay_s: &Bound<'_, PyAny>,
    callback: &Bound<'_, PyAny>,
    args: &Bound<'_, PyTuple>,
    wrap: impl FnOnce(Py<PyAny>) -> PyResult<Py<PyAny>>,
) -> PyResult<Handle> {
    let py = slf.py();
    let delay = seconds::delay(delay_s)?;
    let what = with_arguments(callback, args)?;
    let core = &slf.get().core;
    let home = core.home(py)?;
    let now = home.now(py)?;
    let context = Some(wrap(context::capture(py, core)?)?);
    let timer = Timer { what, context };
    let key = schedule(slf, &home, (now, now.after(delay)), timer)?;
    Ok(Handle {
        core: Arc::clone(core),
        key,
    })
}

/// Puts a timer into the wheel, and arms the loop's timer if this one comes first.
#[inline]
fn schedule(
    slf: &Bound<'_, TimeoutWheel>,
    home: &Arc<Home>,
    (now, deadline): (Mono, Mono),
    timer: Timer,
) -> PyResult<Key> {
    let core = &slf.get().core;
    let mut state = lock(&core.state);
    if state.is_closed {
        drop(state);
        drop(timer);
        return Err(error::raise(slf.py(), &closed()));
    }
    // What is due at once is due at the next tick, so that a callback which arms itself again
    // does not keep the loop.
    let ahead = state.wheel.now().after(Duration::from_nanos(1));
    let armed = state.wheel.schedule(deadline.max(ahead), timer);
    let is_first = state
        .wheel
        .next_deadline()
        .is_some_and(|next| next < state.armed);
    let is_first = is_first || state.is_missed(now);
    drop(state);
    let key = armed.map_err(|_| error::raise(slf.py(), &end_of_time()))?;
    if is_first && let Err(failed) = turn::arm(slf, home) {
        core.cancel(key);
        return Err(failed);
    }
    Ok(key)
}

fn with_arguments(callback: &Bound<'_, PyAny>, args: &Bound<'_, PyTuple>) -> PyResult<Py<PyAny>> {
    if !callback.is_callable() {
        let kind = callback.get_type().name()?;
        return Err(PyTypeError::new_err(format!(
            "callback must be callable, not {kind}"
        )));
    }
    if args.is_empty() {
        return Ok(callback.clone().unbind());
    }
    let all = std::iter::once(callback.clone()).chain(args.iter());
    let all: Vec<_> = all.collect();
    Ok(PyTuple::new(callback.py(), all)?.into_any().unbind())
}

fn closed() -> Error {
    Error::new(ErrorKind::Closed, "the wheel is closed; make a new one")
}

fn end_of_time() -> Error {
    Error::new(ErrorKind::Invalid, "the clock has come to its end")
}
