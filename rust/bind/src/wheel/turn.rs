//! A turn of the wheel: what the loop's one timer calls.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use millrace_core::{clock::Mono, sync::lock};
use pyo3::{
    PyTraverseError, PyVisit, exceptions::PyRuntimeError, intern, prelude::*, sync::PyOnceLock,
    types::PyTuple,
};

use super::{
    Core, Home, TURNING, Timeout, TimeoutWheel, Timer, UNARMED, closed, home, scope::Scoped,
};
use crate::{error, gate};

/// How long one turn may hand out timers; then the loop sees to others first.
const BUDGET: Duration = Duration::from_millis(1);
/// The same as a number of timers, for a loop whose clock stands still.
const COUNT: usize = 1024;

/// What the loop's timer hands to `run`. The loop keeps it, and it keeps the wheel, until the timer
/// has fired.
///
/// The callbacks are called by `run`, a few lines of Python, so that code of the program never runs
/// above a frame of ours: see [`gate`].
#[pyclass(frozen, module = "millrace._core", name = "WheelTurn")]
pub struct Turn {
    wheel: Py<TimeoutWheel>,
    has_begun: AtomicBool,
    batch: Mutex<Option<Batch>>,
}

/// What one turn hands out: what is due, at least one, for as long as the budget lasts and no
/// interrupt comes; the rest stays in the wheel. Time is the loop's own: it is about what others on
/// it have to wait.
struct Batch {
    home: Arc<Home>,
    now: Mono,
    until: Mono,
    left: usize,
}

/// What to call, and with what.
pub type Call<'py> = (Bound<'py, PyAny>, Bound<'py, PyTuple>);

#[pymethods]
impl Turn {
    /// Whether there is something to hand out.
    fn begin(&self, py: Python<'_>) -> PyResult<bool> {
        let _inside = gate::enter(py);
        self.has_begun.store(true, Ordering::Relaxed);
        let slf = self.wheel.bind(py);
        let core = &slf.get().core;
        if core.origin.is_forked_child() {
            return Ok(false);
        }
        let mut state = lock(&core.state);
        let Some(home) = state.home.clone().filter(|_| !state.is_closed) else {
            return Ok(false);
        };
        state.turns += 1;
        let armed = std::mem::replace(&mut state.armed, TURNING);
        state.missed_at = None;
        let fired = state.timer.take();
        drop(state);
        drop(fired);
        let now = match home.now_at(py, armed) {
            Ok(now) => now,
            Err(failed) => return arm(slf, &home).and(Err(failed)),
        };
        let batch = Batch {
            home,
            now,
            until: now.after(BUDGET),
            left: COUNT,
        };
        *lock(&self.batch) = Some(batch);
        Ok(true)
    }

    fn __iter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __next__<'py>(&self, py: Python<'py>) -> PyResult<Option<Call<'py>>> {
        let _inside = gate::enter(py);
        let mut place = lock(&self.batch);
        let Some(batch) = place.as_mut() else {
            return Ok(None);
        };
        let (home, now, until) = (Arc::clone(&batch.home), batch.now, batch.until);
        let is_first = batch.left == COUNT;
        let left = batch.left;
        batch.left = left.saturating_sub(1);
        drop(place);
        if left == 0 || (!is_first && home.now(py)? >= until) {
            return Ok(None);
        }
        next_due(py, &self.wheel.get().core, now)
    }

    /// One of them raised; the loop that is to hear of it.
    fn failed(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        lock(&self.wheel.get().core.state).failed += 1;
        let home = lock(&self.batch)
            .as_ref()
            .map(|batch| Arc::clone(&batch.home));
        home.map(|home| home.event_loop().clone_ref(py))
            .ok_or_else(|| PyRuntimeError::new_err("no turn is under way"))
    }

    /// Arms the timer for what comes next, also if an interrupt kept the turn from beginning.
    fn end(&self, py: Python<'_>) -> PyResult<()> {
        let wheel = self.wheel.bind(py);
        let mut home = lock(&self.batch).take().map(|batch| batch.home);
        if !self.has_begun.load(Ordering::Relaxed) {
            let state = lock(&wheel.get().core.state);
            home = state.home.clone().filter(|_| !state.is_closed);
        }
        home.map_or(Ok(()), |home| arm(wheel, &home))
    }

    #[allow(clippy::needless_pass_by_value)]
    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.wheel)
    }
}

/// Takes the next timer out of the wheel that somebody still waits for.
fn next_due<'py>(py: Python<'py>, core: &Core, now: Mono) -> PyResult<Option<Call<'py>>> {
    loop {
        let due = lock(&core.state).wheel.pop(now);
        let Some(timer) = due else {
            return Ok(None);
        };
        if timer.has_ended(py) {
            lock(&core.state).outlived += 1;
        } else if let Some(call) = call_of(py, timer)? {
            return Ok(Some(call));
        }
    }
}

/// What a timer comes to; nothing, if that has become pointless.
fn call_of(py: Python<'_>, timer: Timer) -> PyResult<Option<Call<'_>>> {
    let what = timer.what.into_bound(py);
    let Some(context) = timer.context else {
        return match what.cast_exact::<Timeout>() {
            Ok(timeout) => timeout.get().expire(py),
            Err(_) if is_done(&what)? => Ok(None),
            Err(_) => {
                let resolve = what.getattr(intern!(py, "set_result"))?;
                Ok(Some((resolve, PyTuple::new(py, [py.None()])?)))
            }
        };
    };
    let context = context.into_bound(py);
    let scoped = context.cast_exact::<Scoped>().ok();
    let context = scoped.and_then(Scoped::context).unwrap_or(&context);
    // Shared with other timers, so each runs in a copy.
    let context = context.call_method0(intern!(py, "copy"))?;
    let arguments = match what.cast_into_exact::<PyTuple>() {
        Ok(call) => call,
        Err(other) => PyTuple::new(py, [other.into_inner()])?,
    };
    Ok(Some((context.getattr(intern!(py, "run"))?, arguments)))
}

fn is_done(future: &Bound<'_, PyAny>) -> PyResult<bool> {
    let name = intern!(future.py(), "done");
    future.call_method0(name)?.is_truthy()
}

/// The lines of Python that call what is due.
fn runner(py: Python<'_>) -> PyResult<&Bound<'_, PyAny>> {
    static RUN: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let run = RUN.get_or_try_init(py, || {
        let code = concat!(include_str!("turn.py"), "\0");
        let code = std::ffi::CStr::from_bytes_with_nul(code.as_bytes())
            .map_err(|_| PyRuntimeError::new_err("turn.py holds a NUL"))?;
        let module = PyModule::from_code(py, code, c"millrace/turn.py", c"millrace._turn")?;
        module.getattr("run").map(Bound::unbind)
    })?;
    Ok(run.bind(py))
}

/// Arms the loop's timer for the first deadline, in place of the one armed before.
pub fn arm(slf: &Bound<'_, TimeoutWheel>, home: &Arc<Home>) -> PyResult<()> {
    let (py, core) = (slf.py(), &slf.get().core);
    let _inside = gate::enter(py);
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
        let turn = Turn {
            wheel: slf.clone().unbind(),
            has_begun: AtomicBool::new(false),
            batch: Mutex::new(None),
        };
        home.call_at(next, read.max(now), runner(py)?, Bound::new(py, turn)?)
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
