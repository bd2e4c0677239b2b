//! A turn of the wheel: what the loop's one timer calls.

use std::{sync::Arc, time::Duration};

use millrace_core::{clock::Mono, sync::lock};
use pyo3::{
    PyTraverseError, PyVisit,
    exceptions::{PyKeyboardInterrupt, PyRuntimeError, PySystemExit},
    intern,
    prelude::*,
    types::{PyDict, PyTuple},
};

use super::{
    Core, Home, TURNING, Timeout, TimeoutWheel, Timer, UNARMED, closed, home, scope::Scoped,
};
use crate::error;

/// How long one turn may hand out timers; then the loop sees to others first.
const BUDGET: Duration = Duration::from_millis(1);
/// The same as a number of timers, for a loop whose clock stands still.
const COUNT: usize = 1024;

/// What the loop calls. The loop keeps it, and it keeps the wheel, until the timer has fired.
#[pyclass(frozen, module = "millrace._core", name = "WheelTurn")]
pub struct Turn(Py<TimeoutWheel>);

#[pymethods]
impl Turn {
    fn __call__(&self, py: Python<'_>) -> PyResult<()> {
        turn(self.0.bind(py))
    }

    #[allow(clippy::needless_pass_by_value)]
    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.0)
    }
}

fn turn(slf: &Bound<'_, TimeoutWheel>) -> PyResult<()> {
    let (py, core) = (slf.py(), &slf.get().core);
    if core.origin.is_forked_child() {
        return Ok(());
    }
    let mut state = lock(&core.state);
    let Some(home) = state.home.clone().filter(|_| !state.is_closed) else {
        return Ok(());
    };
    state.turns += 1;
    let armed = std::mem::replace(&mut state.armed, TURNING);
    let fired = state.timer.take();
    drop(state);
    drop(fired);
    let ran = home
        .now_at(py, armed)
        .and_then(|now| hand_out(py, core, &home, now));
    let again = arm(slf, &home);
    ran.and(again)
}

/// Runs what is due, at least one, for as long as the budget lasts and no interrupt comes; the rest
/// stays in the wheel. Time is the loop's own: it is about what others on it have to wait.
fn hand_out(py: Python<'_>, core: &Core, home: &Home, now: Mono) -> PyResult<()> {
    let until = now.after(BUDGET);
    for _ in 0..COUNT {
        let due = lock(&core.state).wheel.pop(now);
        let Some(timer) = due else { break };
        if timer.has_ended(py) {
            lock(&core.state).outlived += 1;
            continue;
        }
        run(py, core, home, timer)?;
        if home.now(py)? >= until {
            break;
        }
    }
    Ok(())
}

/// Runs one timer; what goes wrong in it is the loop's to report, but for an interrupt.
fn run(py: Python<'_>, core: &Core, home: &Home, timer: Timer) -> PyResult<()> {
    let Err(failed) = fire(py, timer) else {
        return Ok(());
    };
    if failed.is_instance_of::<PySystemExit>(py) || failed.is_instance_of::<PyKeyboardInterrupt>(py)
    {
        return Err(failed);
    }
    lock(&core.state).failed += 1;
    report(py, home, failed)
}

/// Arms the loop's timer for the first deadline, in place of the one armed before.
pub fn arm(slf: &Bound<'_, TimeoutWheel>, home: &Arc<Home>) -> PyResult<()> {
    let (py, core) = (slf.py(), &slf.get().core);
    let mut state = lock(&core.state);
    let next = state.wheel.next_deadline();
    let before = state.timer.take();
    let idle = match next {
        Some(_) => None,
        None => Some(std::mem::take(&mut state.captured)),
    };
    state.armed = next.unwrap_or(UNARMED);
    let now = state.wheel.now();
    drop(state);
    drop(idle);
    if let Some(before) = before {
        before.call_method0(py, intern!(py, "cancel"))?;
    }
    let Some(next) = next else { return Ok(()) };
    let asked = home.now(py).and_then(|read| {
        let turn = Bound::new(py, Turn(slf.clone().unbind()))?;
        home.call_at(next, read.max(now), turn)
    });
    let mut state = lock(&core.state);
    match asked {
        Ok(timer) => {
            state.timer = Some(timer.unbind());
            state.rearmed += 1;
            Ok(())
        }
        Err(failed) => {
            state.armed = UNARMED;
            Err(failed)
        }
    }
}

fn fire(py: Python<'_>, timer: Timer) -> PyResult<()> {
    let what = timer.what.into_bound(py);
    let Some(context) = timer.context else {
        return match what.cast_exact::<Timeout>() {
            Ok(timeout) => Timeout::expire(timeout),
            Err(_) => resolve(&what),
        };
    };
    let context = context.into_bound(py);
    let scoped = context.cast_exact::<Scoped>().ok();
    let context = scoped.and_then(Scoped::context).unwrap_or(&context);
    // Shared with other timers, so each runs in a copy.
    let context = context.call_method0(intern!(py, "copy"))?;
    let run = intern!(py, "run");
    match what.cast_exact::<PyTuple>() {
        Ok(call) => context.getattr(run)?.call1(call)?,
        Err(_) => context.call_method1(run, (what,))?,
    };
    Ok(())
}

fn resolve(future: &Bound<'_, PyAny>) -> PyResult<()> {
    let py = future.py();
    if !is_done(future)? {
        future.call_method1(intern!(py, "set_result"), (py.None(),))?;
    }
    Ok(())
}

fn is_done(future: &Bound<'_, PyAny>) -> PyResult<bool> {
    let name = intern!(future.py(), "done");
    future.call_method0(name)?.is_truthy()
}

fn report(py: Python<'_>, home: &Home, failed: PyErr) -> PyResult<()> {
    let context = PyDict::new(py);
    context.set_item("message", "Exception in a callback of a TimeoutWheel")?;
    context.set_item("exception", failed.into_value(py))?;
    let handler = intern!(py, "call_exception_handler");
    home.event_loop().call_method1(py, handler, (context,))?;
    Ok(())
}

/// Closes the wheel and tells everybody who waits.
pub fn close(py: Python<'_>, core: &Core) -> PyResult<()> {
    let home = lock(&core.state).home.clone();
    let is_gone = match &home {
        Some(home) => check_owner(py, home)?,
        None => true,
    };
    let mut left = Vec::new();
    let mut state = lock(&core.state);
    state.is_closed = true;
    state.wheel.cancel_where(|_| true, &mut left);
    state.dropped += left.len() as u64;
    let timer = state.timer.take();
    let captured = std::mem::take(&mut state.captured);
    drop(state);
    drop(captured);
    let Some(home) = home.filter(|_| !is_gone) else {
        return Ok(());
    };
    if let Some(timer) = timer {
        timer.call_method0(py, intern!(py, "cancel"))?;
    }
    let mut outcome = Ok(());
    for timer in left {
        if timer.context.is_none() {
            outcome = outcome.and(refuse(&home, timer.what.bind(py)));
        }
    }
    outcome
}

/// Whether the loop is closed; an error if it runs elsewhere.
fn check_owner(py: Python<'_>, home: &Home) -> PyResult<bool> {
    let event_loop = home.event_loop().bind(py);
    if home::is_closed(event_loop)? {
        return Ok(true);
    }
    let is_running = event_loop.call_method0(intern!(py, "is_running"))?;
    if is_running.is_truthy()? && !home.is_running(py)? && !home::runs_here(event_loop)? {
        return Err(PyRuntimeError::new_err(
            "the wheel's loop is running in another thread; close it there",
        ));
    }
    Ok(false)
}

fn refuse(home: &Home, what: &Bound<'_, PyAny>) -> PyResult<()> {
    let py = what.py();
    if let Ok(timeout) = what.cast_exact::<Timeout>() {
        return Timeout::abandon(timeout, home.event_loop().bind(py));
    }
    if !is_done(what)? {
        let failed = error::raise(py, &closed()).into_value(py);
        what.call_method1(intern!(py, "set_exception"), (failed,))?;
    }
    Ok(())
}
