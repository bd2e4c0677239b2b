//! A committer without a thread of its own: whoever appends or waits turns it.
//!
//! The committer and its backend lie behind one lock, the *engine*. Who holds it turns; who does
//! not get it leaves word and goes on.
//!
//! ```text
//! loop's thread   append --> urge --> turn --> ...epoll... --> bell --> turn --> answered
//! plain thread    append --> wait: lead = turn, sleep in the backend, turn ... until answered
//!                              \-- somebody leads already: sleep until that one is done
//! steward         sleeps; turns for a loop that is busy, stopped or closed; closes the log
//! ```
//!
//! A turner for either is told by every answer whether few or many append ([`Crowd`]). While they
//! are many the steward leads, like a plain thread that is never answered, and callers only publish:
//! whoever leads announces its sleep on the ring, and publishing ends it.
//!
//! The kernel raises the bell of the loop that submitted last while nothing was in flight, so a
//! lone task is answered without a hand-over between threads. Other loops and threads are told by
//! the watermarks, as ever.
//!
//! # Always true
//!
//! 1. Committer and backend are touched only under the lock, so by one thread at a time. That is
//!    all they ask for: the backend was made for any thread (`UringDisk::for_guests`), and
//!    nothing in it belongs to a thread.
//! 2. The threads of loops never wait for the lock, and never for the disk under it. Who finds it
//!    taken has set `wanted` before; who gives it back looks at `wanted` after. A sequentially
//!    consistent fence on each side makes one of the two see the other.
//! 3. Whatever is published, in flight or due is known to somebody who will come: the holder of
//!    the lock, the bell, or the steward, who is never asleep without an instant while there is
//!    work (invariant 2 of [`Steward`]).
//! 4. A panic in a turn poisons the log. The committer is not touched again; what the kernel may
//!    still write to is leaked by the steward.
//! 5. Once the log is closing or has failed, only the steward turns: it takes the engine out.
//! 6. A steward that stops leading looks once more after it has said so; who publishes asks after
//!    that. One of the two sees the other ([`Lead`]).

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::TryLockError,
    time::Duration,
};

use crate::{
    clock::{Clock, Mono},
    error::{Error, ErrorKind},
    ids::Lsn,
    io::{Backend, Wait},
    port::{Doorbell, Lead, Told},
    sync::{
        Arc, AtomicBool, AtomicU64, AtomicUsize, Mutex, MutexGuard, Ordering, Wake, fence, lock,
    },
};

use super::{
    commit::{Committer, Next},
    crowd::Crowd,
    log::Shared,
    steward::Steward,
};

/// Records that are worth a group of their own while others are in flight, at least.
const WORTH_A_GROUP: u64 = 64;

/// How soon to come back for a committer that wants another turn at once, but could not go on in
/// this one: a producer was interrupted between claim and publish.
const SOON: Duration = Duration::from_micros(100);

/// What is turned.
pub(crate) struct Engine {
    pub(crate) committer: Committer,
    pub(crate) backend: Box<dyn Backend>,
    /// The bell that the backend raises now.
    raised: Option<Arc<Doorbell>>,
    pub(crate) has_panicked: bool,
    /// Tells few from many, if that decides who turns.
    crowd: Option<Crowd>,
}

/// See the module.
pub(crate) struct Turner {
    engine: Mutex<Option<Engine>>,
    /// Somebody who did not get the lock has something for the one who holds it.
    wanted: AtomicBool,
    /// How many turns there were.
    turns: AtomicU64,
    /// Groups in flight after the last turn.
    groups: AtomicUsize,
    /// Whether there was room for another one.
    has_room: AtomicBool,
    /// Whether what was on the ring waited on purpose.
    is_held: AtomicBool,
    /// LSN of the first record that had not been gathered.
    next: AtomicU64,
    /// Records that were answered together when some were last.
    expected: AtomicU64,
    /// Records under way when some were last answered, those included.
    under_way: AtomicU64,
    /// The bell that shall be raised, unless the steward leads.
    told: Told<Doorbell>,
    /// Many append: the steward shall lead.
    is_many: AtomicBool,
    /// Whether it does.
    lead: Lead,
    /// A thread has come to wait beside a loop.
    is_mixed: AtomicBool,
    pub(crate) steward: Arc<Steward>,
    clock: Arc<dyn Clock>,
    /// Ends the sleep of a thread that leads.
    sleeper: Arc<dyn Wake>,
}

/// Who turns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Who {
    /// Perhaps the thread of a loop: what could make it wait is left to the steward.
    Guest,
    /// A thread that may wait for the disk.
    Thread,
}

type Held<'a> = MutexGuard<'a, Option<Engine>>;

impl Turner {
    /// `for_either`: the steward leads while many append.
    pub(crate) fn new(
        mut committer: Committer,
        mut backend: Box<dyn Backend>,
        for_either: bool,
    ) -> Self {
        // Patience is a matter of when a loop turns; see `urge`.
        committer.be_patient(false);
        let outlook = committer.outlook();
        let clock = committer.clock();
        let steward = Arc::new(Steward::new(Arc::clone(&clock)));
        backend.answer_to(Arc::new(Answered(Arc::clone(&steward))));
        Self {
            steward,
            clock,
            sleeper: backend.waker(),
            engine: Mutex::new(Some(Engine {
                committer,
                backend,
                raised: None,
                has_panicked: false,
                crowd: for_either.then(Crowd::default),
            })),
            wanted: AtomicBool::new(false),
            turns: AtomicU64::new(0),
            groups: AtomicUsize::new(0),
            has_room: AtomicBool::new(true),
            is_held: AtomicBool::new(false),
            next: AtomicU64::new(outlook.next.0),
            expected: AtomicU64::new(0),
            under_way: AtomicU64::new(0),
            told: Told::new(),
            is_many: AtomicBool::new(false),
            lead: Lead::new(),
            is_mixed: AtomicBool::new(false),
        }
    }

    /// Whether the steward leads, so that nobody else need turn.
    #[inline]
    pub(crate) fn is_led(&self) -> bool {
        self.lead.is_led()
    }

    /// Something was published on the thread of a loop with this bell. Turns now if that is worth
    /// it; true: turn when the loop has run everybody else who is ready.
    ///
    /// With nothing in flight, those who were answered together are expected back together: the
    /// last of them, so a lone one at once, does the submitting.
    pub(crate) fn urge(&self, shared: &Shared, bell: &Arc<Doorbell>) -> bool {
        if self.lead.sees_it() {
            // Whom to tell if it stops leading.
            self.told.tell(bell, false);
            return false;
        }
        self.want();
        let groups = self.groups.load(Ordering::Relaxed);
        // If this loop is about to be alone with its group, or nobody is told at all.
        self.told.tell(bell, groups == 0);
        // Others turn meanwhile: what was claimed may have been gathered since we looked.
        let next = self.next.load(Ordering::Relaxed);
        let waiting = shared.claimed().0.saturating_sub(next);
        let has_room = self.has_room.load(Ordering::Relaxed);
        if !has_room && groups > 0 {
            // The next answer brings a turn; with `wanted` set, so does one that is under way.
            self.steward.stay_awake();
            return false;
        }
        let crowd = self.under_way.load(Ordering::Relaxed);
        let worth = match groups {
            // No room though nothing is in flight: the next segment is awaited, step by step.
            0 if !has_room => 0,
            0 if planted!("company_not_awaited") => 1,
            0 => self
                .expected
                .load(Ordering::Relaxed)
                .clamp(1, WORTH_A_GROUP.max(crowd)),
            // A smaller one would take as much of the loop's time as one for all of them.
            _ => WORTH_A_GROUP.max(crowd),
        };
        if waiting < worth {
            self.steward.stay_awake();
            return true;
        }
        self.turn_now(shared, Who::Guest);
        false
    }

    /// The loop with this bell is gone.
    pub(crate) fn forget(&self, shared: &Shared, bell: &Arc<Doorbell>) {
        // A child of a fork may find the lock taken by a thread that it does not have.
        if !shared.process.is_forked_child() || planted!("child_takes_locks") {
            self.told.forget(bell);
        }
    }

    /// Does what can be done without waiting, unless another thread is at it and will see to what
    /// we came for.
    pub(crate) fn turn_now(&self, shared: &Shared, who: Who) {
        if shared.process.is_forked_child() {
            return;
        }
        self.want();
        while self.wanted.load(Ordering::Relaxed) && !shared.is_winding_down() {
            let Some(mut held) = self.try_engine() else {
                return;
            };
            if let Some(engine) = held.as_mut() {
                self.step(shared, engine, who);
            }
            drop(held);
            self.after(shared);
        }
        if shared.is_winding_down() {
            self.steward.wake();
        }
    }

    /// Waits until `is_over` or `timeout`: leads if nobody else does, else sleeps until that one
    /// is done.
    pub(crate) fn wait(
        &self,
        shared: &Shared,
        timeout: Option<Duration>,
        is_over: &dyn Fn() -> bool,
    ) {
        let deadline = timeout.map(|timeout| self.clock.now().after(timeout));
        if self.told.address() != 0 {
            self.is_mixed.store(true, Ordering::Relaxed);
        }
        self.steward.stay_awake();
        while !is_over() && !self.has_passed(deadline) {
            let left = deadline.map(|at| at.since(self.clock.now()));
            let led = shared.marks.pause(left, || {
                if is_over() {
                    return Some(None);
                }
                // Closing and failing are the steward's; it announces the end of them.
                let free = !shared.is_winding_down();
                free.then(|| self.try_engine()).flatten().map(Some)
            });
            if let Some(Some(mut held)) = led {
                if let Some(engine) = held.as_mut() {
                    self.lead(shared, engine, deadline, is_over);
                }
                drop(held);
                self.after(shared);
                if self.wanted.load(Ordering::Relaxed) {
                    self.turn_now(shared, Who::Thread);
                }
            }
        }
    }

    fn has_passed(&self, deadline: Option<Mono>) -> bool {
        deadline.is_some_and(|at| at <= self.clock.now())
    }

    fn lead(
        &self,
        shared: &Shared,
        engine: &mut Engine,
        deadline: Option<Mono>,
        is_over: &dyn Fn() -> bool,
    ) {
        if self.groups.load(Ordering::Relaxed) == 0 {
            // A loop need not be told of what is ours; it asks again when it comes back.
            self.told.stop();
        }
        while let Next::Wait(wait) = self.step(shared, engine, Who::Thread) {
            let must_stop = shared.is_winding_down();
            let is_late = self.has_passed(deadline) && !planted!("leader_outstays");
            if is_over() || must_stop || is_late {
                break;
            }
            let left = deadline.map(|at| at.since(self.clock.now()));
            let wait = match (left.map(|left| engine.backend.now().after(left)), wait) {
                (Some(end), Wait::Until(until)) => Wait::Until(until.min(end)),
                (Some(end), Wait::Forever) => Wait::Until(end),
                (_, wait) => wait,
            };
            self.guarded(shared, engine, |engine| {
                engine.committer.wait(&mut *engine.backend, wait);
            });
        }
        if !self.is_raised(engine) && !shared.is_winding_down() {
            // A loop has asked to be told; what is answered before it is would not ring.
            self.step(shared, engine, Who::Thread);
        }
    }

    /// One turn, and what others may know of it.
    fn step(&self, shared: &Shared, engine: &mut Engine, who: Who) -> Next {
        // Whoever wants something from here on sets it again. Acquire: partner is `want`; what was
        // published before it is seen below.
        self.wanted.swap(false, Ordering::Acquire);
        let durable = shared.durable();
        let turned = self.guarded(shared, engine, |engine| {
            self.raise(engine);
            engine.backend.spare_caller(who == Who::Guest);
            engine.committer.step(&mut *engine.backend)
        });
        engine.backend.spare_caller(false);
        let next = turned.unwrap_or(Next::Done);
        self.note(engine, next);
        let answered = shared.durable().0 - durable.0;
        if answered > 0 {
            self.expected.store(answered, Ordering::Relaxed);
            let under_way = shared.claimed().0 - durable.0 - 1;
            self.under_way.store(under_way, Ordering::Relaxed);
            self.count(engine, under_way);
        }
        next
    }

    /// Some of so many were answered: does that make few or many?
    fn count(&self, engine: &mut Engine, under_way: u64) {
        let Some(crowd) = engine.crowd.as_mut() else {
            return;
        };
        let group_bytes = engine.committer.outlook().group_bytes;
        let is_mixed = self.is_mixed.swap(false, Ordering::Relaxed);
        let is_many = crowd.answered(under_way, group_bytes, is_mixed);
        if is_many && !self.is_many.swap(is_many, Ordering::Relaxed) {
            self.steward.call();
        }
        self.is_many.store(is_many, Ordering::Relaxed);
    }

    fn note(&self, engine: &Engine, next: Next) {
        if !engine.has_panicked {
            let outlook = engine.committer.outlook();
            self.groups.store(outlook.groups, Ordering::Relaxed);
            self.has_room.store(outlook.has_room, Ordering::Relaxed);
            self.is_held.store(outlook.is_held, Ordering::Relaxed);
            self.next.store(outlook.next.0, Ordering::Relaxed);
        }
        let busy = !engine.has_panicked && engine.backend.in_flight() > 0;
        let due = match next {
            _ if engine.backend.has_left_over() => Some(Duration::ZERO),
            Next::Done => Some(Duration::ZERO),
            Next::Wait(Wait::Never) => Some(SOON),
            Next::Wait(Wait::Until(until)) => Some(until.since(engine.backend.now())),
            Next::Wait(Wait::Forever) => None,
        };
        self.steward.plan(busy, due);
        self.turns.fetch_add(1, Ordering::Relaxed);
    }

    /// After the lock was given back: those who wait may lead now, and the steward may have to
    /// come earlier than it meant to.
    fn after(&self, shared: &Shared) {
        // Partner: the fence in `want`.
        fence(Ordering::SeqCst);
        shared.marks.nudge();
        self.steward.come_in_time();
    }

    fn want(&self) {
        // Release: partner is the swap in `step`.
        self.wanted.store(true, Ordering::Release);
        // Partner: the fence in `after`. The holder of the lock sees the flag after it gave the
        // lock back, or we find the lock free.
        fence(Ordering::SeqCst);
    }

    fn try_engine(&self) -> Option<Held<'_>> {
        match self.engine.try_lock() {
            Ok(held) => Some(held),
            // A panic in a turn is caught inside; it says so by `has_panicked`.
            Err(TryLockError::Poisoned(held)) => Some(held.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    fn is_raised(&self, engine: &Engine) -> bool {
        let raised = engine.raised.as_ref();
        let wished = if self.is_led() {
            0
        } else {
            self.told.address()
        };
        raised.map_or(0, |bell| Arc::as_ptr(bell) as usize) == wished
    }

    /// Has the backend raise the bell that was asked for. Before it is polled: an answer from
    /// before is seen by that poll, one from after rings.
    fn raise(&self, engine: &mut Engine) {
        if self.is_raised(engine) {
            return;
        }
        let wished = if self.is_led() { None } else { self.told.get() };
        let before = std::mem::replace(&mut engine.raised, wished);
        drop(before);
        let bell = engine.raised.as_ref().map(|bell| bell.as_fd());
        let bell = bell.filter(|_| !planted!("bell_not_raised"));
        // Where it cannot be raised, the steward sees to what the loop would have seen to.
        let _slower = engine.backend.notify(bell);
    }

    /// Runs a part of a turn. A panic poisons the log and leaves the engine to the steward.
    fn guarded<T>(
        &self,
        shared: &Shared,
        engine: &mut Engine,
        part: impl FnOnce(&mut Engine) -> T,
    ) -> Option<T> {
        if engine.has_panicked {
            return None;
        }
        let done = catch_unwind(AssertUnwindSafe(|| part(engine)));
        if done.is_err() && !planted!("turn_panic_swallowed") {
            engine.has_panicked = true;
            shared.poison(Error::new(
                ErrorKind::Poisoned,
                "a turn of the log panicked; this is a bug in millrace",
            ));
            self.steward.wake();
        }
        done.ok()
    }

    #[cfg(test)]
    pub(super) fn tells(&self, bell: &Arc<Doorbell>) -> bool {
        self.told.address() == Arc::as_ptr(bell) as usize
    }

    // ---- for the steward ----------------------------------------------------------------------

    pub(super) fn turns(&self) -> u64 {
        self.turns.load(Ordering::Relaxed)
    }

    /// Whether something was published that no turn has looked at.
    pub(super) fn has_news(&self, shared: &Shared) -> bool {
        let next = Lsn(self.next.load(Ordering::Relaxed));
        shared.claimed() > next && !self.is_held.load(Ordering::Relaxed)
    }

    /// Whether many append, so that the steward shall lead.
    pub(super) fn wants_a_leader(&self) -> bool {
        self.is_many.load(Ordering::Relaxed) && !planted!("nobody_leads_the_many")
    }

    /// Turns, sleeping in the backend, while many append.
    pub(super) fn lead_the_many(&self, shared: &Shared) {
        // A loop holds the lock for one turn, another thread until it is answered.
        let mut held = lock(&self.engine);
        if let Some(engine) = held.as_mut() {
            self.lead.take();
            engine.committer.be_patient(true);
            while let Next::Wait(wait) = self.step(shared, engine, Who::Thread) {
                if self.has_dispersed(engine, wait) || shared.is_winding_down() {
                    break;
                }
                self.guarded(shared, engine, |engine| {
                    engine.committer.wait(&mut *engine.backend, wait);
                });
            }
            self.stop_leading(shared, engine);
        }
        drop(held);
        self.after(shared);
        if self.wanted.load(Ordering::Relaxed) {
            self.turn_now(shared, Who::Thread);
        }
    }

    /// Whether those who append are few again, or nobody has for so long that the log rests.
    fn has_dispersed(&self, engine: &mut Engine, wait: Wait) -> bool {
        let rests = wait == Wait::Forever && engine.backend.in_flight() == 0;
        if rests {
            engine.crowd.as_mut().map(Crowd::disperse);
            self.is_many.store(false, Ordering::Relaxed);
        }
        !self.wants_a_leader()
    }

    /// What is published from here on is its publisher's; what was before is looked for, and the
    /// loop that was to be told is told again of what is in flight.
    fn stop_leading(&self, shared: &Shared, engine: &mut Engine) {
        if !engine.has_panicked {
            engine.committer.be_patient(false);
        }
        self.lead.leave();
        if !shared.is_winding_down() {
            self.step(shared, engine, Who::Thread);
        }
    }

    /// Takes the engine for good.
    pub(super) fn take(&self) -> Option<Engine> {
        self.told.stop();
        lock(&self.engine).take()
    }
}

/// Ends every sleep: a close was requested.
pub(crate) struct Alarm(pub(crate) Arc<Turner>);

impl Wake for Alarm {
    fn wake(&self) {
        self.0.steward.wake();
        self.0.sleeper.wake();
    }
}

/// A thread of the backend's own has finished something: the steward turns at once. It may be a
/// step of the next segment, and a loop that is told of it may be busy.
struct Answered(Arc<Steward>);

impl Wake for Answered {
    fn wake(&self) {
        self.0.call();
    }
}
