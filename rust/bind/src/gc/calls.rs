//! Users' callables: kept here from `defer` to the end of their run, and run where they belong.
//!
//! The engine's collector holds numbers only. When a number is safe it is *routed*: to the desk
//! of the loop that registered the call, which runs it in its drain, or, if there is no such loop
//! (any more), to the loose ones, which the next collect runs.
//!
//! ```text
//! defer --number--> collector --safe--> route --> desk of its loop --drain--> run in its context
//!   '--call, context--> live  .................'--> loose --next collect--> run in its context
//! ```
//!
//! # Always true
//!
//! 1. A call is in `live` from before its number is deferred until it has run; `quiesce` waits
//!    for exactly that. Its room is given back then, and not when it was routed.
//! 2. No Python call is made, no object is made or dropped, while a lock of ours is held: any of
//!    them may run a finalizer that comes back here.
//! 3. Routing handles plain data, so it may happen on any thread that unpins or collects.
//! 4. Every loop with something to wait for ticks for itself: none depends on another one's going
//!    on. Who leaves the last pin of a collector that takes nothing more runs what is loose.
//! 5. A running call holds its room. So inside of one, nobody waits for room and nobody runs
//!    other calls to make some.

use std::{
    cell::RefCell,
    collections::{BTreeMap, VecDeque},
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use millrace_core::{
    Error, ErrorKind, Result,
    clock::{Clock, Mono, SystemClock},
    epoch::{Budget, Charge, Clean, Collector, Kind, Observer, OldestPin, Settings, Slip, Work},
    fork::Origin,
    sync::{Wake, Waker, lock},
};
use pyo3::{
    exceptions::{PyKeyboardInterrupt, PyRuntimeError, PySystemExit},
    intern,
    prelude::*,
    sync::PyOnceLock,
    types::{PyDict, PyTuple},
};

use super::desk::Desk;
use crate::{
    current,
    jobs::{Answer, Answering},
    loops::LoopPort,
};

/// A number that stands for a call.
pub(super) struct Due {
    pub(super) number: u64,
    pub(super) calls: Weak<Calls>,
}

impl Work for Due {
    fn kind(&self) -> Kind {
        Kind::Call
    }
}

impl Clean for Due {
    fn clean(self, slip: &mut Slip<'_>) -> Result<()> {
        let lost = || Error::new(ErrorKind::Abandoned, "the collector of this call is gone");
        let calls = self.calls.upgrade().ok_or_else(lost)?;
        let charge = slip.carry().ok_or_else(lost)?;
        calls.route(Ready {
            number: self.number,
            charge,
        });
        Ok(())
    }
}

/// A call that is safe and has not run.
pub(super) struct Ready {
    number: u64,
    charge: Charge,
}

/// What was registered.
pub(super) struct Call {
    /// The function, then its arguments.
    pub(super) parts: Py<PyTuple>,
    pub(super) context: Py<PyAny>,
    pub(super) desk: Option<Arc<Desk>>,
}

#[derive(Default)]
struct Register {
    next: u64,
    /// `None` while it runs.
    live: BTreeMap<u64, Option<Call>>,
    quiescing: Vec<(u64, Waker)>,
}

/// Everything behind one `EpochGC`.
pub(super) struct Calls {
    pub(super) collector: Collector<Due>,
    pub(super) clock: Arc<SystemClock>,
    pub(super) origin: Origin,
    register: Mutex<Register>,
    desks: Mutex<Vec<Arc<Desk>>>,
    loose: Mutex<VecDeque<Ready>>,
    /// The desk whose loop is woken for calls that belong to none.
    ticker: Mutex<Weak<Desk>>,
    stalls: Arc<Mutex<Vec<OldestPin>>>,
    /// How many hold on to it besides the `EpochGC`. Changes only attached.
    holds: AtomicUsize,
    /// Who entered the pins that are held: a number for the thread, and how many.
    pinners: Mutex<Vec<(usize, usize)>>,
}

/// Keeps the calls alive for a pin or a waiter.
pub(super) struct Hold(Arc<Calls>);

impl Hold {
    pub(super) fn new(calls: &Arc<Calls>) -> Self {
        // Relaxed: a number, read by the same interpreter's cycle collector.
        calls.holds.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(calls))
    }
}

impl std::ops::Deref for Hold {
    type Target = Arc<Calls>;

    fn deref(&self) -> &Arc<Calls> {
        &self.0
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.0.holds.fetch_sub(1, Ordering::Relaxed);
    }
}

thread_local! {
    /// The collectors whose calls run on this thread, the innermost last.
    static RUNNING: RefCell<Vec<usize>> = const { RefCell::new(Vec::new()) };
}

/// While it lives, this thread runs a call of `Calls`.
struct Inside;

impl Inside {
    fn of(calls: &Calls) -> Self {
        RUNNING.with_borrow_mut(|running| running.push(std::ptr::from_ref(calls).addr()));
        Self
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        RUNNING.with_borrow_mut(Vec::pop);
    }
}

/// A number for this thread.
fn this_thread() -> usize {
    thread_local!(static HERE: u8 = const { 0 });
    HERE.with(|here| std::ptr::from_ref(here).addr())
}

/// Wakes a loop, for calls that belong to none.
struct Alarm(Weak<Calls>);

impl Wake for Alarm {
    fn wake(&self) {
        if let Some(calls) = self.0.upgrade() {
            let ticker = lock(&calls.ticker).upgrade();
            if let Some(desk) = ticker {
                desk.ask();
            }
        }
    }
}

/// Keeps stalls until a drain can log them. Failures are logged where they happen.
struct Stalls(Arc<Mutex<Vec<OldestPin>>>);

impl Observer for Stalls {
    fn failed(&self, _: Kind, _: &Error) {}

    fn stalled(&self, pin: &OldestPin) {
        lock(&self.0).push(pin.clone());
    }
}

impl Calls {
    pub(super) fn new(settings: Settings) -> Result<Arc<Self>> {
        let clock = Arc::new(SystemClock::new());
        let time: Arc<dyn Clock> = Arc::<SystemClock>::clone(&clock);
        let collector = Collector::new(settings, time)?;
        let stalls = Arc::new(Mutex::new(Vec::new()));
        collector.observe(Box::new(Stalls(Arc::clone(&stalls))));
        let calls = Arc::new(Self {
            collector,
            clock,
            origin: Origin::here()?,
            register: Mutex::default(),
            desks: Mutex::default(),
            loose: Mutex::default(),
            ticker: Mutex::default(),
            stalls,
            holds: AtomicUsize::new(0),
            pinners: Mutex::default(),
        });
        let alarm = Alarm(Arc::downgrade(&calls));
        calls.collector.set_wake(Arc::new(alarm));
        Ok(calls)
    }

    pub(super) fn now(&self) -> Mono {
        self.clock.now()
    }

    /// Keeps a call and gives it a number.
    pub(super) fn enter(&self, call: Call) -> u64 {
        let mut register = lock(&self.register);
        let number = register.next;
        register.next += 1;
        register.live.insert(number, Some(call));
        number
    }

    /// Takes a call out that was not deferred after all, or that is about to run inline.
    pub(super) fn withdraw(&self, number: u64) -> Option<Call> {
        let call = lock(&self.register).live.get_mut(&number)?.take();
        self.leave(number);
        call
    }

    /// A call has ended; whoever waits for quiet may go on.
    fn leave(&self, number: u64) {
        let woken: Vec<_> = {
            let mut register = lock(&self.register);
            register.live.remove(&number);
            if register.quiescing.is_empty() {
                return;
            }
            let first = register.live.first_key_value().map(|(first, _)| *first);
            let reached = |target: u64| first.is_none_or(|first| first >= target);
            register
                .quiescing
                .extract_if(.., |(target, _)| reached(*target))
                .collect()
        };
        for (_, waker) in woken {
            waker.wake();
        }
    }

    fn is_quiet_below(&self, target: u64) -> bool {
        let register = lock(&self.register);
        let first = register.live.first_key_value();
        first.is_none_or(|(first, _)| *first >= target)
    }

    /// The desk of the loop that runs on this thread, if one does.
    pub(super) fn desk(self: &Arc<Self>, py: Python<'_>) -> PyResult<Option<Arc<Desk>>> {
        let Some(port) = current::port_here(py)? else {
            return Ok(None);
        };
        let mut desks = lock(&self.desks);
        if let Some(desk) = desks.iter().find(|desk| desk.is_of(&port)) {
            return Ok(Some(Arc::clone(desk)));
        }
        let desk = Desk::new(self, &port);
        desks.push(Arc::clone(&desk));
        Ok(Some(desk))
    }

    /// Something was deferred, or is waited for, on this loop.
    pub(super) fn expect_on(&self, desk: &Arc<Desk>) {
        *lock(&self.ticker) = Arc::downgrade(desk);
        desk.expect();
    }

    /// How many calls of this collector this thread is running, one inside of the other.
    pub(super) fn depth_here(&self) -> usize {
        let here = std::ptr::from_ref(self).addr();
        RUNNING.with_borrow(|running| running.iter().filter(|one| **one == here).count())
    }

    /// A pin was entered on this thread; returns the thread's number.
    pub(super) fn note_pinned(&self) -> usize {
        let (here, mut pinners) = (this_thread(), lock(&self.pinners));
        match pinners.iter_mut().find(|(thread, _)| *thread == here) {
            Some((_, pins)) => *pins += 1,
            None => pinners.push((here, 1)),
        }
        here
    }

    /// A pin that was entered on `thread` was left.
    pub(super) fn note_unpinned(&self, thread: usize) {
        let mut pinners = lock(&self.pinners);
        if let Some((_, pins)) = pinners.iter_mut().find(|(one, _)| *one == thread) {
            *pins -= 1;
        }
        pinners.retain(|(_, pins)| *pins > 0);
    }

    /// Whether this thread, if it waited for room, might wait for itself: it runs a call, or it
    /// entered a pin that is still held.
    pub(super) fn is_in_its_own_way(&self) -> bool {
        let here = this_thread();
        let is_pinner = lock(&self.pinners).iter().any(|(one, _)| *one == here);
        is_pinner || self.depth_here() > 0
    }

    /// After the last pin of a collector that takes nothing more: nobody else may come.
    pub(super) fn run_left(self: &Arc<Self>, py: Python<'_>) -> PyResult<()> {
        if self.collector.is_open() || self.collector.load().items == 0 {
            return Ok(());
        }
        self.adopt();
        let desk = self.desk(py)?;
        let outcome = self.run_out(py, desk.as_deref());
        self.keep_handed_out();
        outcome
    }

    /// Runs everything that lies here; what a call passes on is passed on after the last one.
    pub(super) fn run_out(&self, py: Python<'_>, desk: Option<&Desk>) -> PyResult<()> {
        let mut outcome = Ok(());
        loop {
            match self.run(py, desk, Budget::ALL) {
                Ok(_) => return outcome,
                Err(passed_on) => outcome = outcome.and(Err(passed_on)),
            }
        }
    }

    /// What lies on the desks of other loops runs there, even if the `EpochGC` goes now.
    pub(super) fn keep_handed_out(self: &Arc<Self>) {
        let desks = lock(&self.desks).clone();
        for desk in desks {
            desk.keep(self);
        }
    }

    /// Whether something besides the `EpochGC` may still use the calls.
    pub(super) fn is_held(&self) -> bool {
        self.holds.load(Ordering::Relaxed) > 0
    }

    fn route(&self, ready: Ready) {
        let desk = {
            let register = lock(&self.register);
            let call = register.live.get(&ready.number).and_then(Option::as_ref);
            call.and_then(|call| call.desk.clone())
        };
        match desk.filter(|desk| desk.is_open()) {
            Some(desk) => desk.take(ready),
            None => lock(&self.loose).push_back(ready),
        }
    }

    /// What was on the desks of closed loops becomes loose.
    pub(super) fn adopt(&self) {
        let closed: Vec<_> = lock(&self.desks)
            .extract_if(.., |desk| !desk.is_open())
            .collect();
        for desk in closed {
            let mut orphans = desk.clear_away();
            lock(&self.loose).append(&mut orphans);
        }
    }

    /// Routes what is safe now, within the budget.
    pub(super) fn route_within(&self, budget: Budget) {
        self.adopt();
        self.collector.collect(budget);
    }

    /// Runs what lies on `desk`, and what is loose, within the budget.
    pub(super) fn run(
        &self,
        py: Python<'_>,
        desk: Option<&Desk>,
        budget: Budget,
    ) -> PyResult<usize> {
        let begun = self.now();
        let most = self.collector.settings().max_batch;
        let (mut ran, mut took) = (0, Duration::ZERO);
        // The calls of this batch, and when it began.
        let (mut batch, mut batch_begun) = (0, Duration::ZERO);
        let mut outcome = Ok(());
        while outcome.is_ok() && ran < budget.items && took < budget.time {
            let next = desk.and_then(Desk::next);
            let Some(ready) = next.or_else(|| lock(&self.loose).pop_front()) else {
                break;
            };
            outcome = self.run_one(py, ready);
            (ran, batch) = (ran + 1, batch + 1);
            took = self.now().since(begun);
            if batch == most {
                self.collector
                    .note_batch(batch, took.saturating_sub(batch_begun));
                (batch, batch_begun) = (0, took);
            }
        }
        if batch > 0 {
            self.collector
                .note_batch(batch, took.saturating_sub(batch_begun));
        }
        outcome.map(|()| ran)
    }

    /// Whether [`run`](Self::run) would find something.
    pub(super) fn has_ready(&self, desk: &Desk) -> bool {
        desk.has_some() || !lock(&self.loose).is_empty()
    }

    /// Runs a call in its context: what to count, and what to pass on.
    pub(super) fn perform(&self, py: Python<'_>, call: &Call) -> (Result<()>, PyResult<()>) {
        let _inside = Inside::of(self);
        perform(py, call)
    }

    /// What it raises is logged and counted; Ctrl-C and an exit go on to the caller.
    fn run_one(&self, py: Python<'_>, ready: Ready) -> PyResult<()> {
        let Ready { number, charge } = ready;
        let call = {
            let mut register = lock(&self.register);
            register.live.get_mut(&number).and_then(Option::take)
        };
        let Some(call) = call else {
            charge.settle(Ok(()));
            return Ok(());
        };
        let (outcome, passed_on) = self.perform(py, &call);
        drop(call);
        charge.settle(outcome);
        self.leave(number);
        passed_on
    }

    /// Logs pins that stall.
    pub(super) fn report_stalls(&self, py: Python<'_>) -> PyResult<()> {
        let stalls = std::mem::take(&mut *lock(&self.stalls));
        for pin in stalls {
            let label = pin.label.as_deref().unwrap_or("without a label");
            let age = pin.age.as_secs_f64();
            logger(py)?.call_method1(
                intern!(py, "warning"),
                ("a pin holds back cleanup for %.1f s: %s", age, label),
            )?;
        }
        Ok(())
    }

    /// The Python objects of waiting calls, for the cycle collector.
    ///
    /// Every pass of one collection must hear the same. So this waits for the register, which
    /// nobody holds while waiting for the interpreter, and which changes only attached.
    pub(super) fn visit(
        &self,
        visit: &pyo3::PyVisit<'_>,
    ) -> std::result::Result<(), pyo3::PyTraverseError> {
        let register = lock(&self.register);
        for call in register.live.values().flatten() {
            visit.call(&call.parts)?;
            visit.call(&call.context)?;
        }
        Ok(())
    }

    /// Lets go of every call without running it: the objects are garbage.
    pub(super) fn forget_all(&self) {
        let gone = std::mem::take(&mut lock(&self.register).live);
        drop(gone);
    }
}

fn perform(py: Python<'_>, call: &Call) -> (Result<()>, PyResult<()>) {
    let context = call.context.bind(py);
    let run = context.getattr(intern!(py, "run"));
    let returned = run.and_then(|run| run.call1(call.parts.bind(py).clone()));
    let Err(raised) = returned else {
        return (Ok(()), Ok(()));
    };
    let failed = Error::new(
        ErrorKind::Abandoned,
        format!("a deferred call raised {raised}"),
    );
    // A `CancelledError` is no word to whoever happens to be near.
    let is_for_all = raised.is_instance_of::<PyKeyboardInterrupt>(py)
        || raised.is_instance_of::<PySystemExit>(py);
    if is_for_all {
        return (Err(failed), Err(raised));
    }
    if let Err(second) = log_failure(py, call, raised) {
        second.write_unraisable(py, None);
    }
    (Err(failed), Ok(()))
}

fn log_failure(py: Python<'_>, call: &Call, raised: PyErr) -> PyResult<()> {
    let function = call.parts.bind(py).get_item(0)?;
    let options = PyDict::new(py);
    options.set_item("exc_info", raised.into_value(py))?;
    let arguments = ("deferred call %r failed", function);
    logger(py)?.call_method(intern!(py, "error"), arguments, Some(&options))?;
    Ok(())
}

fn logger(py: Python<'_>) -> PyResult<Bound<'_, PyAny>> {
    static LOGGER: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let logger = LOGGER.get_or_try_init(py, || {
        let get = py.import("logging")?.getattr("getLogger")?;
        PyResult::Ok(get.call1(("millrace.gc",))?.unbind())
    })?;
    Ok(logger.bind(py).clone())
}

/// The context of the caller, for a call that runs later.
pub(super) fn context(py: Python<'_>) -> PyResult<Py<PyAny>> {
    static COPY: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let copy = COPY.import(py, "contextvars", "copy_context")?;
    Ok(copy.call0()?.unbind())
}

/// Somebody waits until everything deferred so far has run.
pub(super) struct Quiet {
    calls: Hold,
    target: u64,
}

impl Quiet {
    pub(super) fn new(calls: &Arc<Calls>) -> Self {
        let target = lock(&calls.register).next;
        Self {
            calls: Hold::new(calls),
            target,
        }
    }
}

impl Answering for Quiet {
    fn answer(&self) -> Option<Answer> {
        let is_quiet = self.calls.is_quiet_below(self.target);
        is_quiet.then(|| -> Answer { Box::new(|py| Ok(py.None())) })
    }

    fn subscribe(&self, waker: Waker) -> bool {
        lock(&self.calls.register)
            .quiescing
            .push((self.target, waker));
        !self.calls.is_quiet_below(self.target)
    }
}

/// Somebody waits for room.
pub(super) struct Room {
    pub(super) calls: Hold,
    pub(super) bytes: usize,
}

impl Answering for Room {
    fn answer(&self) -> Option<Answer> {
        let there = self.calls.collector.is_worth_a_try(self.bytes);
        there.then(|| -> Answer { Box::new(|py| Ok(py.None())) })
    }

    fn subscribe(&self, waker: Waker) -> bool {
        self.calls.collector.wait_room(waker);
        !self.calls.collector.is_worth_a_try(self.bytes)
    }
}

/// The error for a loop that was asked for something it cannot do.
pub(super) fn no_loop(what: &str) -> PyErr {
    PyRuntimeError::new_err(format!("{what} needs a running event loop"))
}

/// Used by the desk: a port that is still drained.
pub(super) fn is_living(port: &Weak<LoopPort>) -> bool {
    port.upgrade().is_some_and(|port| port.is_open())
}
