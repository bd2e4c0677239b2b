//! The thread behind a log that is turned by its callers: asleep while they do, there when they
//! do not.
//!
//! It turns for a loop that is busy, stopped or closed, keeps the appointments of the committer (a
//! linger, the watermark of a log that rests), and closes the log. If either may turn, it leads
//! while many append. While there is work it looks
//! every few milliseconds whether anybody has turned; with none it sleeps without end.
//!
//! # Always true
//!
//! 1. It sleeps no longer than until the next appointment.
//! 2. Before it sleeps without end it says so, then looks for work once more; who makes work looks
//!    whether it said so. A sequentially consistent fence on each side makes one see the other.

use std::time::Duration;

use crate::{
    clock::Clock,
    ring::Parker,
    sync::{Arc, AtomicBool, AtomicU64, Ordering, Wake, fence},
};

use super::{
    log::Shared,
    turner::{Turner, Who},
};

/// How long work may lie untouched before the steward does it. Short enough for a waiter whose
/// loop is busy elsewhere, long enough to cost nothing.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// How long it leaves an appointment to the thread that holds the lock.
const SOON: Duration = Duration::from_micros(50);

/// No appointment; asleep without end.
const NEVER: u64 = u64::MAX;
/// Awake.
const AWAKE: u64 = 0;

/// What others may know of the steward, and tell it.
pub(crate) struct Steward {
    clock: Arc<dyn Clock>,
    /// Until when it sleeps.
    sleeps_until: AtomicU64,
    /// The next appointment of the committer.
    due: AtomicU64,
    /// Whether requests are in flight.
    is_busy: AtomicBool,
    /// It shall turn, whoever has turned lately.
    is_called: AtomicBool,
    parker: Parker,
}

impl Steward {
    pub(super) fn new(clock: Arc<dyn Clock>) -> Self {
        Self {
            clock,
            sleeps_until: AtomicU64::new(AWAKE),
            due: AtomicU64::new(NEVER),
            is_busy: AtomicBool::new(false),
            is_called: AtomicBool::new(false),
            parker: Parker::new(),
        }
    }

    fn now(&self) -> u64 {
        self.clock.now().0
    }

    /// What the committer wants after a turn: to be turned within `due`; `busy`: requests are in
    /// flight.
    pub(super) fn plan(&self, busy: bool, due: Option<Duration>) {
        let due = due.map_or(NEVER, |due| self.now().saturating_add(nanos(due)));
        self.is_busy.store(busy, Ordering::Relaxed);
        self.due.store(due, Ordering::Relaxed);
    }

    /// Wakes it if it would come too late for what was planned. The caller has fenced since.
    pub(super) fn come_in_time(&self) {
        let until = self.sleeps_until.load(Ordering::Relaxed);
        let busy = self.is_busy.load(Ordering::Relaxed);
        if self.due.load(Ordering::Relaxed) < until || (busy && until == NEVER) {
            self.wake();
        }
    }

    /// There is work: it shall not sleep without end.
    #[inline]
    pub(super) fn stay_awake(&self) {
        // Partner: the fence in `sleep`.
        fence(Ordering::SeqCst);
        if self.sleeps_until.load(Ordering::Relaxed) == NEVER {
            self.wake();
        }
    }

    /// Has it turn at once.
    pub(super) fn call(&self) {
        self.is_called
            .store(!planted!("steward_deaf"), Ordering::Relaxed);
        // The lock of the parker shows it the flag.
        self.wake();
    }

    pub(super) fn wake(&self) {
        self.sleeps_until.store(AWAKE, Ordering::Relaxed);
        self.parker.wake();
    }

    /// Whether it sleeps without end.
    #[cfg(test)]
    pub(super) fn is_resting(&self) -> bool {
        self.sleeps_until.load(Ordering::Relaxed) == NEVER
    }

    /// Sleeps as the last turn allows. True: to its end.
    fn sleep(&self, shared: &Shared, turner: &Turner) -> bool {
        let until = self.until(shared, turner);
        self.sleeps_until.store(until, Ordering::Relaxed);
        // Partner: the fences in `stay_awake` and before `come_in_time`.
        fence(Ordering::SeqCst);
        let mut woken = true;
        if self.until(shared, turner) >= until && !shared.is_winding_down() {
            let left = Duration::from_nanos(until.saturating_sub(self.now()));
            woken = self.parker.park((until != NEVER).then_some(left));
        }
        self.sleeps_until.store(AWAKE, Ordering::Relaxed);
        !woken
    }

    fn until(&self, shared: &Shared, turner: &Turner) -> u64 {
        // An appointment that has passed is being kept by who holds the lock.
        let soonest = self.now().saturating_add(nanos(SOON));
        let due = self.due.load(Ordering::Relaxed).max(soonest);
        let is_busy = self.is_busy.load(Ordering::Relaxed) || planted!("steward_never_rests");
        let has_work = is_busy || turner.has_news(shared);
        if has_work {
            due.min(self.now().saturating_add(nanos(LOOK_EVERY)))
        } else {
            due
        }
    }
}

/// Serves until the log is closing or has failed.
pub(super) fn serve(shared: &Shared, turner: &Turner) {
    let steward = &turner.steward;
    while !shared.is_winding_down() {
        let seen = turner.turns();
        let slept = steward.sleep(shared, turner);
        let is_due = steward.due.load(Ordering::Relaxed) <= steward.now();
        let is_neglected = slept && turner.turns() == seen;
        let is_called = steward.is_called.swap(false, Ordering::Relaxed);
        if turner.wants_a_leader() && !shared.is_winding_down() {
            turner.lead_the_many(shared);
        } else if (is_due || is_neglected || is_called) && !planted!("steward_idles") {
            turner.turn_now(shared, Who::Thread);
        }
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(NEVER)
}
