//! The port of an event loop: where completions turn into resolved futures.
//!
//! Each loop has one descriptor, watched with `add_reader`. Its drain is the only place that
//! resolves futures, on the loop's own thread.
//!
//! ```text
//! loop --selector--> Drain --strong--> LoopPort --strong--> core Port <--strong-- engine threads
//! ```
//!
//! # Always true
//!
//! 1. A loop's selector owns its port. When the loop closes, the selector drops the drain, the
//!    drain empties the port, and nobody has to be told: what engine threads post afterwards is
//!    plain data in a queue that goes when the last of them lets go.
//! 2. No Python call is made, and no reference is dropped, while the state is locked.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use millrace_core::{
    epoch::Kind,
    planted,
    port::Port,
    sync::{Wake, lock},
    wal::Level,
};
use pyo3::{PyTraverseError, PyVisit, intern, prelude::*, sync::PyOnceLock};

use crate::{
    cleanup, current, deliver, error, gate,
    io::Visit,
    jobs::Answering,
    lines::{Leaving, Lines, Queued, Waiter},
    shared::{Herald, Shared},
};

/// Futures resolved in one callback, so that a drain never holds up the loop for long.
const DRAIN_BUDGET: usize = 1024;

/// One loop's waiting operations.
pub struct LoopPort {
    port: Arc<Port<u64>>,
    state: Mutex<State>,
    /// Address of the log that was urged last. It is in `told`, whose weak reference keeps the
    /// address from being used again.
    last_urged: AtomicUsize,
    /// The last drain gave answers to several.
    crowded: AtomicBool,
    closed: AtomicBool,
}

#[derive(Default)]
struct State {
    lines: Vec<Lines>,
    /// Logs to be turned by the next drain.
    urged: Vec<Arc<Shared>>,
    /// Logs that may raise the bell of this port.
    told: Vec<Weak<Shared>>,
    /// Whose turn it is to be first, counted on for ever.
    turn: usize,
    jobs: HashMap<u64, (Arc<dyn Answering>, Py<PyAny>)>,
    next_job: u64,
    chores: Vec<Arc<dyn Chore>>,
    /// I/O engines that this loop turns.
    visits: Vec<Arc<Visit>>,
    /// Logs that know this port because appends of this loop stood in line.
    heralds: Vec<Weak<Herald>>,
}

/// Something else to do in a drain, once for each time it was asked for.
pub trait Chore: Send + Sync {
    /// Does it, on the loop's thread.
    fn run(&self, py: Python<'_>) -> PyResult<()>;

    /// The loop has closed before it was done.
    fn lost(&self) {}
}

/// Tells a port which of its jobs to look at.
struct Knock {
    port: Arc<Port<u64>>,
    id: u64,
}

impl Wake for Knock {
    fn wake(&self) {
        self.port.post(self.id);
    }
}

fn registry(py: Python<'_>) -> PyResult<&Bound<'_, PyAny>> {
    static REGISTRY: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let registry = REGISTRY.get_or_try_init(py, || {
        let class = py.import("weakref")?.getattr("WeakKeyDictionary")?;
        class.call0().map(Bound::unbind)
    })?;
    Ok(registry.bind(py))
}

pub fn port_of(py: Python<'_>, event_loop: &Bound<'_, PyAny>) -> PyResult<Arc<LoopPort>> {
    let _inside = gate::enter(py);
    let registry = registry(py)?;
    let known = registry.call_method1(intern!(py, "get"), (event_loop,))?;
    if let Ok(known) = known.cast::<Entry>()
        && let Some(port) = known.get().0.upgrade()
        && !port.closed.load(Ordering::Relaxed)
    {
        return Ok(port);
    }
    let port = LoopPort::new(py)?;
    let drain = Bound::new(py, Drain(Arc::clone(&port)))?;
    let fd = port.port.bell().fd();
    event_loop.call_method1(intern!(py, "add_reader"), (fd, drain))?;
    registry.set_item(event_loop, Bound::new(py, Entry(Arc::downgrade(&port)))?)?;
    Ok(port)
}

impl LoopPort {
    fn new(py: Python<'_>) -> PyResult<Arc<Self>> {
        let port = Port::new().map_err(|failed| error::raise(py, &failed))?;
        Ok(Arc::new(Self {
            port: Arc::new(port),
            state: Mutex::default(),
            last_urged: AtomicUsize::new(0),
            crowded: AtomicBool::new(false),
            closed: AtomicBool::new(false),
        }))
    }

    /// Has what was just put on the ring of `log` written, now or at the end of this iteration.
    #[inline]
    pub fn urge(&self, log: &Arc<Shared>) {
        self.remember(log);
        if log.appender.urge(self.port.bell()) {
            let mut state = lock(&self.state);
            if !state.urged.iter().any(|urged| Arc::ptr_eq(urged, log)) {
                state.urged.push(Arc::clone(log));
            }
            drop(state);
            // Rung behind everybody who is ready now.
            self.port.wake();
        }
    }

    /// Keeps in mind that `log` may raise our bell, until the loop is gone.
    #[inline]
    fn remember(&self, log: &Arc<Shared>) {
        let address = Arc::as_ptr(log) as usize;
        if self.last_urged.swap(address, Ordering::Relaxed) == address {
            return;
        }
        let mut state = lock(&self.state);
        let log = Arc::downgrade(log);
        if !state.told.iter().any(|told| told.ptr_eq(&log)) {
            state.told.retain(|told| told.strong_count() > 0);
            state.told.push(log);
        }
    }

    /// Turns what this loop turns: logs that somebody here waits for, and logs that were urged.
    fn turn(&self) {
        let mut logs = std::mem::take(&mut lock(&self.state).urged);
        for log in lock(&self.state).lines.iter().filter_map(Lines::turned) {
            if !logs.iter().any(|other| Arc::ptr_eq(other, &log)) {
                logs.push(log);
            }
        }
        for log in &logs {
            log.appender.turn();
        }
    }

    /// Resolves `waiter` once `level` of `log` has reached its LSN.
    #[inline]
    pub fn wait_mark(&self, log: &Arc<Shared>, level: Level, waiter: Waiter) {
        let mut state = lock(&self.state);
        let is_ready = state.lines_of(log, &self.port).push(log, level, waiter);
        drop(state);
        if is_ready {
            self.port.wake();
        }
    }

    /// Resolves `queued` once it has been admitted and reached its level.
    pub fn wait_admission(&self, log: &Arc<Shared>, number: u64, queued: Queued) {
        log.herald.tell(&self.port);
        let mut state = lock(&self.state);
        let herald = Arc::downgrade(&log.herald);
        if !state.heralds.iter().any(|known| known.ptr_eq(&herald)) {
            state.heralds.push(herald);
        }
        state
            .lines_of(log, &self.port)
            .push_queued(log, number, queued);
        drop(state);
        // It may have been admitted before the herald knew of us.
        self.port.wake();
    }

    /// Forgets an append that was cancelled in line.
    pub fn forget_admission(&self, log: &Arc<Shared>, number: u64) {
        let forgotten = lock(&self.state)
            .lines_of(log, &self.port)
            .remove_queued(number);
        drop(forgotten);
        // One behind it may have been admitted already and not been looked at.
        self.port.wake();
    }

    /// Resolves `future` once `job` has answered.
    pub fn wait_job(&self, job: &Arc<dyn Answering>, future: Py<PyAny>) {
        let mut state = lock(&self.state);
        let id = state.next_job;
        state.next_job += 1;
        state.jobs.insert(id, (Arc::clone(job), future));
        drop(state);
        self.subscribe(&**job, id);
    }

    fn subscribe(&self, job: &dyn Answering, id: u64) {
        let port = Arc::clone(&self.port);
        if !job.subscribe(Arc::new(Knock { port, id })) {
            self.port.post(id);
        }
    }

    /// Has the drain do `chore`; from any thread.
    pub fn ask(&self, chore: Arc<dyn Chore>) {
        lock(&self.state).chores.push(chore);
        self.port.wake();
    }

    /// Whether its loop still drains it.
    pub fn is_open(&self) -> bool {
        !self.closed.load(Ordering::Relaxed)
    }

    /// The job was woken without an answer: it waits on.
    fn wait_on(&self, id: u64, job: Arc<dyn Answering>, future: Py<PyAny>) {
        let again = Arc::clone(&job);
        lock(&self.state).jobs.insert(id, (job, future));
        self.subscribe(&*again, id);
    }

    /// The engine on this loop that `is_it`.
    pub fn visit(&self, is_it: impl Fn(&Visit) -> bool) -> Option<Arc<Visit>> {
        let state = lock(&self.state);
        state.visits.iter().find(|visit| is_it(visit)).cloned()
    }

    pub fn add_visit(&self, visit: Arc<Visit>) {
        lock(&self.state).visits.push(visit);
    }

    pub fn remove_visit(&self, visit: &Visit) -> Option<Arc<Visit>> {
        let mut state = lock(&self.state);
        let visits = &mut state.visits;
        let at = visits
            .iter()
            .position(|one| std::ptr::eq(&raw const **one, visit))?;
        Some(visits.swap_remove(at))
    }

    fn turn_visits(&self, py: Python<'_>) -> PyResult<()> {
        let visits = lock(&self.state).visits.clone();
        visits.iter().try_for_each(|visit| visit.turn_if_urged(py))
    }

    /// Whether several tasks of this loop are about to run, each of which may ask for something.
    pub fn is_crowded(&self) -> bool {
        self.crowded.load(Ordering::Relaxed)
    }

    /// Rings the bell.
    pub fn wake(&self) {
        self.port.wake();
    }

    /// A drain follows at once: until then there is no need to ring.
    pub fn hush(&self) {
        self.port.bell().hush();
    }

    pub fn drain(&self, py: Python<'_>) -> PyResult<()> {
        let mut ids = Vec::new();
        self.port.drain(DRAIN_BUDGET, |id| ids.push(id));
        self.turn();
        let turned = self.turn_visits(py);
        let mut leaving = Vec::new();
        let (ring, idle, jobs) = self.collect(&ids, &mut leaving);
        if ring || planted!("bind_rings_for_nothing") {
            self.port.wake();
        }
        drop(idle);
        let crowded = leaving.len() + jobs.len() > 1;
        self.crowded.store(crowded, Ordering::Relaxed);
        // What goes wrong with one answer keeps nobody else from theirs.
        let mut outcome = turned.and(deliver::leaving(py, leaving));
        for (id, job, future) in jobs {
            let answered = self.answer(py, id, job, future);
            outcome = outcome.and(answered);
        }
        let chores = std::mem::take(&mut lock(&self.state).chores);
        for chore in chores {
            outcome = outcome.and(chore.run(py));
        }
        outcome
    }

    fn answer(
        &self,
        py: Python<'_>,
        id: u64,
        job: Arc<dyn Answering>,
        future: Py<PyAny>,
    ) -> PyResult<()> {
        if deliver::is_done(future.bind(py))? {
            return Ok(());
        }
        if let Some(answer) = job.answer() {
            return deliver::answer(py, answer, future.bind(py));
        }
        job.on_wake(py);
        self.wait_on(id, job, future);
        Ok(())
    }

    #[allow(clippy::type_complexity)]
    fn collect(
        &self,
        ids: &[u64],
        leaving: &mut Leaving,
    ) -> (
        bool,
        Vec<Arc<Shared>>,
        Vec<(u64, Arc<dyn Answering>, Py<PyAny>)>,
    ) {
        let mut state = lock(&self.state);
        let (mut ring, mut idle) = (false, Vec::new());
        // Each log gets an equal share of what is left of the budget, and what it does not need is
        // for those behind it; the first in turn changes, so that no log lives on leftovers.
        let count = state.lines.len();
        state.turn = state.turn.wrapping_add(1);
        let first = state.turn % count.max(1);
        let (before, after) = state.lines.split_at_mut(first);
        for (place, lines) in after.iter_mut().chain(before).enumerate() {
            let left = DRAIN_BUDGET.saturating_sub(leaving.len());
            let share = left.div_ceil(count - place);
            let (more, released) = lines.take(leaving.len() + share, leaving);
            ring |= more;
            idle.extend(released);
        }
        let jobs = ids
            .iter()
            .filter_map(|id| {
                state
                    .jobs
                    .remove(id)
                    .map(|(job, future)| (*id, job, future))
            })
            .collect();
        (ring, idle, jobs)
    }

    /// The loop is gone; so is everybody who waited on it.
    fn shut(&self) {
        self.closed.store(true, Ordering::Relaxed);
        let mut state = std::mem::take(&mut *lock(&self.state));
        for log in state.told.iter().filter_map(Weak::upgrade) {
            log.appender.forget(self.port.bell());
        }
        for (job, _) in state.jobs.values() {
            if job.can_withdraw() {
                job.withdraw();
            }
        }
        for visit in &state.visits {
            visit.lose_timer();
        }
        let heralds = std::mem::take(&mut state.heralds);
        let chores = std::mem::take(&mut state.chores);
        drop(state);
        for chore in chores {
            chore.lost();
        }
        if !heralds.is_empty() {
            let port = Arc::clone(&self.port);
            cleanup::later(Kind::Waker, 0, move || {
                for herald in heralds.iter().filter_map(Weak::upgrade) {
                    herald.forget(&port);
                }
                Ok(())
            });
        }
    }
}

impl State {
    #[inline]
    fn lines_of(&mut self, log: &Arc<Shared>, port: &Arc<Port<u64>>) -> &mut Lines {
        let found = self.lines.iter().position(|lines| lines.is_of(log));
        let index = found.unwrap_or_else(|| {
            self.lines.retain(|lines| !lines.is_stale());
            let wake: Arc<dyn Wake> = Arc::<Port<u64>>::clone(port);
            self.lines.push(Lines::new(log, wake));
            self.lines.len() - 1
        });
        &mut self.lines[index]
    }
}

/// The callback the selector owns.
#[pyclass(frozen, module = "millrace._core")]
struct Drain(Arc<LoopPort>);

#[pymethods]
impl Drain {
    fn __call__(&self, py: Python<'_>) -> PyResult<()> {
        let _inside = gate::enter(py);
        self.0.drain(py)
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        // Locked only by attached threads that make no Python call meanwhile, and the cycle
        // collector stops those elsewhere: so this never fails. It must not: who is shown in one
        // pass and not in the next looks like garbage.
        let Ok(state) = self.0.state.try_lock() else {
            return Ok(());
        };
        let waiting = state.lines.iter().flat_map(Lines::futures);
        let futures = state.jobs.values().map(|(_, future)| future);
        waiting
            .chain(futures)
            .try_for_each(|future| visit.call(future))?;
        let mut jobs = state.jobs.values();
        jobs.try_for_each(|(job, _)| job.traverse(&visit))?;
        let mut visits = state.visits.iter();
        visits.try_for_each(|one| one.traverse(&visit))
    }

    fn __clear__(&self) {
        self.0.shut();
    }
}

impl Drop for Drain {
    fn drop(&mut self) {
        self.0.shut();
        current::let_go(&self.0);
    }
}

/// The registry's value: does not keep the port.
#[pyclass(frozen, module = "millrace._core")]
struct Entry(Weak<LoopPort>);
