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
//! 3. All of this happens on attached threads. So the cycle collector, which stops those, finds
//!    the locks free and everything the same in each of its passes.
//! 4. Nothing is lost: whoever holds something back holds this (a pin, a desk with calls), or
//!    comes by (a loop that closes). When nobody holds it, what is left is safe, and runs.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, Weak},
    thread::{self, ThreadId},
    time::Duration,
};

use millrace_core::{
    Error, ErrorKind, Result,
    clock::{Clock, Mono, SystemClock},
    epoch::{Budget, Charge, Clean, Collector, Kind, Observer, OldestPin, Settings, Slip, Work},
    fork::Origin,
    planted,
    sync::{Waker, lock},
};
use pyo3::{intern, prelude::*};

use super::{
    call::{Call, logger, perform, unharmed},
    desk::{Desk, Interest},
    inside::{self, Inside},
};
use crate::{current, door};

/// A number that stands for a call.
pub(super) struct Due {
    pub(super) number: u64,
    pub(super) desk: Option<Arc<Desk>>,
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
        let number = self.number;
        calls.route(self.desk.as_deref(), Ready { number, charge });
        Ok(())
    }
}

/// A call that is safe and has not run.
pub(super) struct Ready {
    number: u64,
    charge: Charge,
}

impl Ready {
    pub(super) fn number(&self) -> u64 {
        self.number
    }
}

/// A call that has not ended.
struct Live {
    /// `None` while it runs.
    call: Option<Call>,
    desk: Option<Arc<Desk>>,
}

/// Somebody who waits until no call below `target` is live.
struct Waiter {
    target: u64,
    id: u64,
    waker: Waker,
}

#[derive(Default)]
struct Register {
    next: u64,
    live: BTreeMap<u64, Live>,
    /// How many of them belong to no loop that runs them.
    plain: usize,
    next_waiter: u64,
    quiescing: Vec<Waiter>,
}

/// Everything behind one `EpochGC`.
pub(super) struct Calls {
    pub(super) collector: Collector<Due>,
    pub(super) clock: Arc<SystemClock>,
    pub(super) origin: Origin,
    register: Mutex<Register>,
    desks: Mutex<Vec<Arc<Desk>>>,
    loose: Mutex<BTreeMap<u64, Ready>>,
    /// How many pins each thread has entered that were not left.
    pinners: Mutex<HashMap<ThreadId, usize>>,
    stalls: Arc<Mutex<Vec<OldestPin>>>,
}

/// Keeps stalls until somebody can log them. Failures are logged where they happen.
struct Stalls(Arc<Mutex<Vec<OldestPin>>>);

impl Observer for Stalls {
    fn failed(&self, _: Kind, _: &Error) {}

    fn stalled(&self, pin: &OldestPin) {
        lock(&self.0).push(pin.clone());
    }
}

/// What a run came to.
#[derive(Default)]
pub(super) struct Ran {
    pub(super) count: usize,
    /// Ctrl-C or an exit out of a call, for whoever ran it.
    pub(super) raised: Option<PyErr>,
}

impl Ran {
    fn add(&mut self, other: Self) {
        self.count += other.count;
        self.raised = self.raised.take().or(other.raised);
    }

    pub(super) fn result(self) -> PyResult<usize> {
        self.raised.map_or(Ok(self.count), Err)
    }
}

impl Calls {
    pub(super) fn new(settings: Settings) -> Result<Arc<Self>> {
        let clock = Arc::new(SystemClock::new());
        let time: Arc<dyn Clock> = Arc::<SystemClock>::clone(&clock);
        let collector = Collector::new(settings, time)?;
        let stalls = Arc::new(Mutex::new(Vec::new()));
        collector.observe(Box::new(Stalls(Arc::clone(&stalls))));
        Ok(Arc::new(Self {
            collector,
            clock,
            origin: Origin::here()?,
            register: Mutex::default(),
            desks: Mutex::default(),
            loose: Mutex::default(),
            pinners: Mutex::default(),
            stalls,
        }))
    }

    pub(super) fn now(&self) -> Mono {
        self.clock.now()
    }

    /// Keeps a call and gives it a number.
    pub(super) fn enter(&self, call: Call, desk: Option<Arc<Desk>>) -> u64 {
        let mut register = lock(&self.register);
        let number = register.next;
        register.next += 1;
        match &desk {
            Some(desk) => desk.add_live(),
            None => register.plain += 1,
        }
        let call = Some(call);
        register.live.insert(number, Live { call, desk });
        number
    }

    /// Takes a call out that was not deferred after all, or that is about to run inline.
    pub(super) fn withdraw(&self, number: u64) -> Option<Call> {
        let call = self.take_call(number);
        self.leave(number);
        call
    }

    fn take_call(&self, number: u64) -> Option<Call> {
        let mut register = lock(&self.register);
        register.live.get_mut(&number)?.call.take()
    }

    /// A call has ended; whoever waits for quiet may go on.
    fn leave(&self, number: u64) {
        let (ended, woken) = {
            let mut register = lock(&self.register);
            let Some(ended) = register.live.remove(&number) else {
                return;
            };
            if !ended.desk.as_ref().is_some_and(|desk| desk.end_live()) {
                register.plain = register.plain.saturating_sub(1);
            }
            (ended, register.reached())
        };
        drop(ended);
        for waiter in woken {
            waiter.waker.wake();
        }
    }

    /// The next call's number, and one for somebody who waits.
    pub(super) fn next_numbers(&self) -> (u64, u64) {
        let mut register = lock(&self.register);
        register.next_waiter += 1;
        (register.next, register.next_waiter)
    }

    pub(super) fn is_quiet_below(&self, target: u64) -> bool {
        let register = lock(&self.register);
        let first = register.live.first_key_value();
        first.is_none_or(|(first, _)| *first >= target)
    }

    pub(super) fn wait_quiet(&self, target: u64, id: u64, waker: Waker) {
        let before = self.stop_waiting(id);
        lock(&self.register)
            .quiescing
            .push(Waiter { target, id, waker });
        drop(before);
    }

    pub(super) fn stop_waiting(&self, id: u64) -> Option<Waker> {
        let waiting = &mut lock(&self.register).quiescing;
        let at = waiting.iter().position(|waiter| waiter.id == id)?;
        Some(waiting.swap_remove(at).waker)
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
        drop(desks);
        desk.ask();
        Ok(Some(desk))
    }

    /// Somebody waits on the loop of this thread, if there is one.
    pub(super) fn interest(self: &Arc<Self>, py: Python<'_>) -> PyResult<Option<Interest>> {
        Ok(self.desk(py)?.as_ref().map(Interest::new))
    }

    /// A call was deferred: sees to it that the tick goes on, on its loop, or on any.
    pub(super) fn arm(&self, desk: Option<&Arc<Desk>>) {
        if let Some(desk) = desk {
            desk.arm();
            return;
        }
        let desks = lock(&self.desks).clone();
        for desk in desks {
            desk.arm();
        }
    }

    fn route(self: &Arc<Self>, desk: Option<&Desk>, ready: Ready) {
        let left = match desk.filter(|_| !planted!("gc_route_to_nobody")) {
            Some(desk) => desk.take(ready, self).err(),
            None => Some(ready),
        };
        if let Some(ready) = left {
            lock(&self.loose).insert(ready.number, ready);
        }
    }

    /// What was on the desks of closed loops becomes loose.
    pub(super) fn adopt(&self) {
        let closed: Vec<_> = lock(&self.desks)
            .extract_if(.., |desk| !desk.is_open())
            .collect();
        for desk in closed {
            let (mut orphans, keep) = desk.clear_away();
            if planted!("gc_adopt_forgets") {
                orphans.clear();
            }
            {
                let mut register = lock(&self.register);
                register.plain += desk.give_up_live();
            }
            lock(&self.loose).extend(orphans.into_iter().map(|ready| (ready.number, ready)));
            drop(keep);
        }
    }

    pub(super) fn has_plain(&self) -> bool {
        lock(&self.register).plain > 0
    }

    pub(super) fn has_loose(&self) -> bool {
        !lock(&self.loose).is_empty()
    }

    /// Routes and runs within the budget: no more is routed than may be run.
    pub(super) fn collect(&self, py: Python<'_>, desk: Option<&Desk>, budget: Budget) -> Ran {
        let mut ran = Ran::default();
        if inside::is_inside(self) {
            return ran;
        }
        let begun = self.now();
        self.adopt();
        while ran.raised.is_none() {
            let took = self.now().since(begun);
            let left = Budget {
                items: budget.items.saturating_sub(ran.count),
                time: budget.time.saturating_sub(took),
            };
            if left.items == 0 || left.time.is_zero() {
                break;
            }
            let now = self.run(py, desk, left);
            let is_idle = now.count == 0;
            ran.add(now);
            let some = Budget {
                items: left.items.min(self.collector.settings().max_batch),
                time: left.time,
            };
            if is_idle && self.collector.collect(some) == 0 {
                break;
            }
        }
        ran
    }

    /// Runs what lies on `desk`, and what is loose, within the budget. Nothing inside a call:
    /// the run under way goes on when it has ended.
    pub(super) fn run(&self, py: Python<'_>, desk: Option<&Desk>, budget: Budget) -> Ran {
        if inside::is_inside(self) {
            return Ran::default();
        }
        let inside = Inside::enter(self);
        let mut ran = self.batches(py, desk, budget);
        if inside.must_finish() {
            ran.add(self.finish(py, desk));
        }
        ran
    }

    /// Runs everything that was routed, also if one of the calls is interrupted. Inside a call
    /// that is left to the run under way.
    pub(super) fn run_all(&self, py: Python<'_>, desk: Option<&Desk>) -> Ran {
        if inside::finish_later(self) {
            return Ran::default();
        }
        let _inside = Inside::enter(self);
        self.finish(py, desk)
    }

    fn finish(&self, py: Python<'_>, desk: Option<&Desk>) -> Ran {
        let mut all = Ran::default();
        loop {
            let ran = self.batches(py, desk, Budget::ALL);
            let is_over = ran.raised.is_none();
            all.add(ran);
            if is_over {
                return all;
            }
        }
    }

    /// Batch after batch within the budget, until one of the calls is interrupted.
    fn batches(&self, py: Python<'_>, desk: Option<&Desk>, budget: Budget) -> Ran {
        let settings = self.collector.settings();
        let mut all = Ran::default();
        let mut spent = Duration::ZERO;
        while all.raised.is_none() && all.count < budget.items && spent < budget.time {
            let items = settings.max_batch.min(budget.items - all.count);
            let time = settings
                .max_batch_time
                .min(budget.time.saturating_sub(spent));
            let (ran, took) = self.batch(py, desk, Budget { items, time });
            if ran.count == 0 {
                break;
            }
            self.collector.note_batch(ran.count, took);
            spent += took;
            all.add(ran);
        }
        all
    }

    fn batch(&self, py: Python<'_>, desk: Option<&Desk>, budget: Budget) -> (Ran, Duration) {
        let begun = self.now();
        let (mut ran, mut took) = (Ran::default(), Duration::ZERO);
        while ran.raised.is_none() && ran.count < budget.items && took < budget.time {
            let Some((ready, keep)) = self.next(desk) else {
                break;
            };
            ran.raised = self.run_one(py, ready).err();
            drop(keep);
            ran.count += 1;
            took = self.now().since(begun);
        }
        (ran, took)
    }

    /// What was deferred first of what this thread may run.
    fn next(&self, desk: Option<&Desk>) -> Option<(Ready, Option<Arc<Self>>)> {
        let loose = lock(&self.loose).first_key_value().map(|(first, _)| *first);
        let housed = desk.and_then(Desk::first);
        if loose.is_none_or(|loose| housed.is_some_and(|housed| housed < loose)) {
            return desk?.next();
        }
        let (_, ready) = lock(&self.loose).pop_first()?;
        Some((ready, None))
    }

    /// An exception is logged and counted; Ctrl-C and exits go on to the caller.
    fn run_one(&self, py: Python<'_>, ready: Ready) -> PyResult<()> {
        let Ready { number, charge } = ready;
        let _leaving = Leaving(self, number);
        let Some(call) = self.take_call(number) else {
            charge.settle(Ok(()));
            return Ok(());
        };
        let (outcome, passed_on) = perform(py, &call);
        drop(call);
        charge.settle(outcome);
        passed_on
    }

    /// A pin was left. Nobody may come after it to a collector that takes no more calls.
    pub(super) fn after_unpin(self: &Arc<Self>, py: Python<'_>) -> PyResult<()> {
        if self.collector.is_open() || self.collector.load().items == 0 {
            return Ok(());
        }
        self.adopt();
        let desk = self.desk(py)?;
        self.run_all(py, desk.as_deref()).result().map(|_| ())
    }

    /// This thread has entered a pin.
    pub(super) fn note_pinner(&self) -> ThreadId {
        let here = thread::current().id();
        *lock(&self.pinners).entry(here).or_default() += 1;
        here
    }

    /// A pin was left that `thread` had entered.
    pub(super) fn forget_pinner(&self, thread: ThreadId) {
        let mut pinners = lock(&self.pinners);
        if let Some(count) = pinners.get_mut(&thread) {
            *count -= 1;
            if *count == 0 {
                pinners.remove(&thread);
            }
        }
    }

    /// Whether a pin is held that this thread has entered.
    pub(super) fn is_pinner(&self) -> bool {
        lock(&self.pinners).contains_key(&thread::current().id())
    }

    /// Logs pins that stall.
    pub(super) fn report_stalls(&self, py: Python<'_>) -> PyResult<()> {
        self.collector.look_for_stalls(self.now());
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

    /// The Python objects of waiting calls, for the cycle collector. The register is free then:
    /// see 3 above.
    pub(super) fn visit(
        &self,
        visit: &pyo3::PyVisit<'_>,
    ) -> std::result::Result<(), pyo3::PyTraverseError> {
        let Ok(register) = self.register.try_lock() else {
            return Ok(());
        };
        for call in register.live.values().filter_map(|live| live.call.as_ref()) {
            call.visit(visit)?;
        }
        Ok(())
    }

    /// Lets go of every call without running it: the objects are garbage. Returns how many.
    pub(super) fn forget_all(&self) -> usize {
        let live = std::mem::take(&mut lock(&self.register).live);
        live.values().filter(|live| live.call.is_some()).count()
    }
}

impl Register {
    /// Those who need not wait any more.
    fn reached(&mut self) -> Vec<Waiter> {
        if self.quiescing.is_empty() {
            return Vec::new();
        }
        let first = self.live.first_key_value().map(|(first, _)| *first);
        let is_over = !planted!("gc_leave_unheard");
        let reached = |target: u64| is_over && first.is_none_or(|first| first >= target);
        self.quiescing
            .extract_if(.., |waiter| reached(waiter.target))
            .collect()
    }
}

/// Ends a call, however its run ends.
struct Leaving<'a>(&'a Calls, u64);

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        self.0.leave(self.1);
    }
}

impl Drop for Calls {
    /// Nobody holds it, so nobody is pinned and no loop has anything of it: what is left is safe,
    /// and this is the last place where it can run.
    fn drop(&mut self) {
        let left = std::mem::take(&mut lock(&self.register).live);
        let calls: Vec<_> = left.into_values().filter_map(|live| live.call).collect();
        if calls.is_empty() || self.origin.is_forked_child() {
            return;
        }
        door::attached(|py| {
            unharmed(py, || {
                for call in calls {
                    if let (_, Err(raised)) = perform(py, &call) {
                        raised.write_unraisable(py, None);
                    }
                }
            });
        });
    }
}
