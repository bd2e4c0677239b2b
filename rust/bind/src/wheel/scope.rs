//! Callbacks that end together: ended at once, cleaned up between other tasks.
//!
//! ```text
//! close --flag--> none of them runs any more
//!      '--bundles of keys--> collector --Sweep, a millisecond at a time--> cancelled, let go of
//! ```
//!
//! # Always true
//!
//! 1. Once `close` has returned no callback of the scope runs, whatever is still in the wheel:
//!    each carries the flag of its scope beside its context.
//! 2. Functions and arguments are let go of on the loop's thread, as everything in a wheel.
//! 3. While a bundle waits and the loop goes on, a sweep is on its way. A loop that is closed
//!    takes its wheel's timers along, and stale keys cancel nothing.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use millrace_core::{
    Error, ErrorKind,
    clock::SystemClock,
    epoch::{BYTES_MAX, Budget, Collector, ITEMS_MAX, Kind, Load, Work},
    sync::lock,
    wheel::{self, Key},
};
use pyo3::{PyTraverseError, PyVisit, prelude::*, types::PyTuple};

use super::{Core, Handle, TimeoutWheel, Timer};
use crate::{error, gate};

/// How long a sweep keeps the loop.
const SWEEP: Duration = Duration::from_millis(1);

/// Keys of an ended scope; the timers of those that are not stale are cancelled.
pub struct Ended(Vec<Key>);

impl Work for Ended {
    fn kind(&self) -> Kind {
        Kind::Timer
    }
}

/// What a wheel has to clean up after its scopes. The loop's thread runs it.
pub fn cleanup() -> Collector<Ended> {
    let limit = Load {
        items: ITEMS_MAX,
        bytes: BYTES_MAX,
    };
    Collector::for_owner(limit, Arc::new(SystemClock::new()))
}

/// The context of a callback that belongs to a scope. Callbacks of one context share it.
#[pyclass(frozen, module = "millrace._core", name = "ScopedContext")]
pub struct Scoped {
    context: Py<PyAny>,
    has_ended: Arc<AtomicBool>,
}

impl Scoped {
    /// The context to run in; `None` if the scope has ended.
    pub fn context<'a, 'py>(this: &'a Bound<'py, Self>) -> Option<&'a Bound<'py, PyAny>> {
        let scoped = this.get();
        // Relaxed: set on this very thread.
        let has_ended = scoped.has_ended.load(Ordering::Relaxed);
        (!has_ended).then(|| scoped.context.bind(this.py()))
    }
}

#[pymethods]
impl Scoped {
    #[allow(clippy::needless_pass_by_value)]
    fn __traverse__(&self, visit: PyVisit<'_>) -> std::result::Result<(), PyTraverseError> {
        visit.call(&self.context)
    }
}

impl Timer {
    /// Whether it belongs to a scope that has ended.
    pub fn has_ended(&self, py: Python<'_>) -> bool {
        let scoped = self.context.as_ref();
        let scoped = scoped.and_then(|context| context.bind(py).cast_exact::<Scoped>().ok());
        scoped.is_some_and(|scoped| Scoped::context(scoped).is_none())
    }
}

/// Callbacks of a wheel that end together; made by `TimeoutWheel.scope`.
#[pyclass(frozen, weakref, module = "millrace._core")]
pub struct TimerScope {
    wheel: Py<TimeoutWheel>,
    has_ended: Arc<AtomicBool>,
    members: Mutex<Members>,
}

#[derive(Default)]
struct Members {
    keys: wheel::Scope,
    /// The context used last, wrapped.
    scoped: Option<Py<Scoped>>,
}

impl TimerScope {
    pub fn new(wheel: Py<TimeoutWheel>) -> Self {
        Self {
            wheel,
            has_ended: Arc::default(),
            members: Mutex::default(),
        }
    }

    fn wrapped(&self, py: Python<'_>, context: Py<PyAny>) -> PyResult<Py<PyAny>> {
        if let Some(known) = &lock(&self.members).scoped
            && known.get().context.is(&context)
        {
            return Ok(known.clone_ref(py).into_any());
        }
        let scoped = Scoped {
            context,
            has_ended: Arc::clone(&self.has_ended),
        };
        let scoped = Py::new(py, scoped)?;
        let before = lock(&self.members).scoped.replace(scoped.clone_ref(py));
        drop(before);
        Ok(scoped.into_any())
    }
}

#[pymethods]
impl TimerScope {
    /// Call *callback* with *args* once *delay_s* seconds have passed, unless the scope ends first.
    ///
    /// Otherwise as `TimeoutWheel.call_later`.
    ///
    /// Raises:
    ///     ClosedError: If the scope or the wheel is closed.
    ///
    ///     RuntimeError: If no loop runs here, or the wheel belongs to another one.
    #[pyo3(signature = (delay_s, callback, /, *args))]
    fn call_later(
        &self,
        py: Python<'_>,
        delay_s: &Bound<'_, PyAny>,
        callback: &Bound<'_, PyAny>,
        args: &Bound<'_, PyTuple>,
    ) -> PyResult<Handle> {
        if self.is_closed() {
            let closed = Error::new(ErrorKind::Closed, "the scope is closed; make a new one");
            return Err(error::raise(py, &closed));
        }
        let wheel = self.wheel.bind(py);
        let wrap = |context| self.wrapped(py, context);
        let handle = super::arm_call(wheel, delay_s, callback, args, wrap)?;
        let core = &wheel.get().core;
        // The order of these locks is the same everywhere: members, then state.
        let mut members = lock(&self.members);
        let state = lock(&core.state);
        members.keys.add(&state.wheel, handle.key);
        drop(state);
        drop(members);
        Ok(handle)
    }

    /// End all callbacks that wait; from now on none of them runs.
    ///
    /// Takes the same short time for a few and for a hundred thousand: they are taken out of the
    /// wheel, and their functions and arguments let go of, in the loop's next iterations, for at
    /// most a millisecond in each. Where the wheel's loop does not run, that is done at once.
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        let _inside = gate::enter(py);
        let wheel = self.wheel.bind(py);
        wheel.get().core.here(py)?;
        // Relaxed: read on this very thread.
        if self.has_ended.swap(true, Ordering::Relaxed) {
            return Ok(());
        }
        let (bundles, scoped) = {
            let mut members = lock(&self.members);
            (members.keys.end(), members.scoped.take())
        };
        drop(scoped);
        end(wheel, bundles)
    }

    /// Whether it has ended.
    #[getter]
    fn is_closed(&self) -> bool {
        self.has_ended.load(Ordering::Relaxed)
    }

    fn __enter__(slf: Bound<'_, Self>) -> Bound<'_, Self> {
        slf
    }

    #[pyo3(signature = (*exc_info))]
    fn __exit__(&self, py: Python<'_>, exc_info: &Bound<'_, PyTuple>) -> PyResult<()> {
        let _ = exc_info;
        self.close(py)
    }

    fn __repr__(&self) -> String {
        let state = if self.is_closed() { "closed" } else { "open" };
        format!("<millrace.TimerScope {state}>")
    }

    #[allow(clippy::needless_pass_by_value)]
    fn __traverse__(&self, visit: PyVisit<'_>) -> std::result::Result<(), PyTraverseError> {
        visit.call(&self.wheel)?;
        visit.call(&lock(&self.members).scoped)
    }

    fn __clear__(&self) {
        let scoped = lock(&self.members).scoped.take();
        drop(scoped);
    }
}

/// Hands the keys of an ended scope over, and asks the loop for a sweep.
fn end(wheel: &Bound<'_, TimeoutWheel>, bundles: Vec<Vec<Key>>) -> PyResult<()> {
    let (py, core) = (wheel.py(), &wheel.get().core);
    if bundles.is_empty() {
        return Ok(());
    }
    for keys in bundles {
        let bytes = size_of_val(keys.as_slice());
        if let Err(refused) = core.cleanup.try_defer(Ended(keys), bytes) {
            // No room for two million bundles.
            cancel(core, &refused.work);
        }
    }
    let home = lock(&core.state).home.clone();
    match home {
        Some(home) if home.is_running(py)? => ask(wheel),
        _ => {
            sweep(core, Budget::ALL);
            Ok(())
        }
    }
}

/// Asks the loop for a sweep, unless one is on its way.
fn ask(wheel: &Bound<'_, TimeoutWheel>) -> PyResult<()> {
    let (py, core) = (wheel.py(), &wheel.get().core);
    let mut state = lock(&core.state);
    let is_asked = std::mem::replace(&mut state.is_sweep_asked, true);
    let home = state.home.clone().filter(|_| !is_asked);
    drop(state);
    let Some(home) = home else { return Ok(()) };
    let sweep = Bound::new(py, Sweep(wheel.clone().unbind()))?;
    let asked = home.call_soon(sweep.as_any());
    if asked.is_err() {
        lock(&core.state).is_sweep_asked = false;
    }
    asked
}

/// Runs what scopes have left, within the budget.
pub fn sweep(core: &Core, budget: Budget) {
    core.cleanup.collect_by(budget, |ended, _| {
        cancel(core, &ended);
        Ok::<_, Error>(())
    });
}

/// Takes what is not stale out of the wheel, then lets go of it.
fn cancel(core: &Core, ended: &Ended) {
    let mut gone = Vec::new();
    let mut state = lock(&core.state);
    state.wheel.cancel_all(&ended.0, &mut gone);
    state.swept += gone.len() as u64;
    drop(state);
    drop(gone);
}

/// What the loop calls after a scope was closed.
#[pyclass(frozen, module = "millrace._core", name = "WheelSweep")]
struct Sweep(Py<TimeoutWheel>);

#[pymethods]
impl Sweep {
    fn __call__(&self, py: Python<'_>) -> PyResult<()> {
        let _inside = gate::enter(py);
        let wheel = self.0.bind(py);
        let core = &wheel.get().core;
        if core.origin.is_forked_child() {
            return Ok(());
        }
        lock(&core.state).is_sweep_asked = false;
        let budget = Budget {
            items: usize::MAX,
            time: SWEEP,
        };
        sweep(core, budget);
        if core.cleanup.load().items > 0 {
            return ask(wheel);
        }
        Ok(())
    }

    #[allow(clippy::needless_pass_by_value)]
    fn __traverse__(&self, visit: PyVisit<'_>) -> std::result::Result<(), PyTraverseError> {
        visit.call(&self.0)
    }
}
