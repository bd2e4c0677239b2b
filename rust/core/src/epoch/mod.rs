//! Reclamation by epochs: cleanup that must not happen while somebody may still look, and should
//! not happen where somebody waits for it.
//!
//! Whoever looks at something shared pins first. Whoever takes something away unlinks it, then
//! defers its cleanup here and goes on. The cleanup runs when nobody can be looking any more, in
//! batches, on the thread of whoever collects.
//!
//! ```text
//! reader    pin --> look ......................... unpin ----.
//! retirer   unlink --> reserve --> push                      v
//! collector             seal with the global epoch --> safe? run in order --> give room back
//! ```
//!
//! Work that fails or panics is counted and reported and stops nothing. Work counts as done after
//! its handler returned, or after its [`Charge`] was settled if the handler carried it off.
//!
//! # Always true
//!
//! 1. Work runs only after every pin that was taken before it was deferred has gone, however
//!    long that takes. See `pin` for why.
//! 2. Order is kept: work runs in the order it was pushed, one piece at a time. One piece that
//!    is not safe never holds up a safe one, because nothing behind it is safe either.
//! 3. The limits hold exactly; see `bounds`. Work is never dropped: it is run, or given back to
//!    its caller, or still deferred.
//! 4. `disable` and `close` strand nothing: what a pin still holds back is reported, and runs
//!    when the pin goes. The last handle and the last pin gone, what is left is safe and runs.
//! 5. Nothing here starts a thread or reads a clock of its own. While something is deferred its
//!    owner calls [`Collector::tick`]; while nothing is, nobody has to.
//!
//! # Not here
//!
//! What is cleaned: a [`Task`] brings a closure; a collector made with
//! [`Collector::for_owner`] leaves its handler to the one who calls [`Collector::collect_by`].

mod bag;
mod bounds;
mod pin;
mod safepoint;
mod settings;
mod statistics;
mod work;

#[cfg(all(test, loom))]
mod loom;
#[cfg(all(test, not(loom)))]
mod tests;

use std::{sync::Arc, sync::OnceLock};

pub use bounds::{BYTES_MAX, ITEMS_MAX, Load};
pub use pin::{OwnedPin, Participant, Pin};
pub use safepoint::Budget;
pub use settings::{Overflow, Settings};
pub use statistics::{Observer, OldestPin, Statistics};
pub use work::{Charge, Clean, Kind, Slip, Task, Work};

use crate::{
    clock::{Clock, Mono},
    error::{Error, ErrorKind, Result},
    sync::{AtomicU64, AtomicUsize, Mutex, Ordering, Waker, lock, try_lock},
};
use bag::{Inbox, Item, Limbo};
use bounds::{Bounds, NoRoom};
use pin::Domain;
use statistics::Counters;
use work::Books;

/// How a collector takes work in.
const OPEN: u64 = 0;
const DISABLED: u64 = 1;
const CLOSED: u64 = 2;

/// Runs one piece of work; `None` in a collector whose owner runs it.
type Runner<W> = fn(W, &mut Slip<'_>) -> Result<()>;

/// Where work is deferred. Cheap to clone; usable from any thread.
pub struct Collector<W: Work = Task>(Arc<Inner<W>>);

impl<W: Work> Clone for Collector<W> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

pub(super) struct Inner<W: Work> {
    settings: Settings,
    clock: Arc<dyn Clock>,
    domain: Arc<Domain>,
    bounds: Bounds,
    inbox: Inbox<W>,
    limbo: Mutex<Limbo<W>>,
    /// The thread that runs a batch, so that a handler that comes back here does not wait for
    /// itself; 0 if nobody does.
    running: AtomicUsize,
    /// Work whose handler carried it off.
    carried: AtomicUsize,
    mode: AtomicU64,
    runner: Option<Runner<W>>,
    wake: Mutex<Option<Waker>>,
    observer: OnceLock<Box<dyn Observer>>,
    counters: Counters,
    last_failure: Mutex<Option<Error>>,
}

/// How work was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deferred {
    /// It runs when it is safe.
    Queued,
    /// It was safe and has run, because there was no room or the collector is disabled.
    RanInline,
}

/// Why work was given back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// No room, and the policy or the timeout says not to wait.
    Full,
    /// It alone is larger than `max_bytes`; waiting will not change that.
    TooLarge,
    /// Disabled, and somebody is pinned: the caller cleans it when the pins are gone.
    Disabled,
    /// Closed.
    Closed,
}

/// Work that was not taken, given back.
#[derive(Debug)]
pub struct Refused<W> {
    /// The work itself, untouched.
    pub work: W,
    /// Why.
    pub reason: Reason,
}

/// What `disable` or `close` could not run because somebody is pinned. It is not lost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Left {
    /// What is still deferred.
    pub load: Load,
    /// Who holds it back.
    pub oldest_pin: Option<OldestPin>,
}

/// Room for one piece of work. Dropped unused, it is given back.
pub struct Permit<'a, W: Work> {
    collector: &'a Collector<W>,
    bytes: usize,
    reserved: bounds::Reserved,
    is_used: bool,
}

impl<W: Work + 'static> Permit<'_, W> {
    /// Hands the work over. Whatever it cleans must be unlinked by now.
    pub fn push(mut self, work: W) {
        self.is_used = true;
        self.collector.push(work, self.bytes, self.reserved);
    }
}

impl<W: Work> Drop for Permit<'_, W> {
    fn drop(&mut self) {
        if !self.is_used {
            self.collector.0.bounds.release(self.bytes);
        }
    }
}

impl<W: Clean + 'static> Collector<W> {
    /// A collector of work that brings its own handler.
    pub fn new(settings: Settings, clock: Arc<dyn Clock>) -> Result<Self> {
        Ok(Self::make(settings.checked()?, clock, Some(W::clean)))
    }
}

impl<W: Work + 'static> Collector<W> {
    /// A collector whose owner brings the handler to [`collect_by`](Self::collect_by). Nobody
    /// else runs anything, and dropping it drops what is left. Limits beyond what can be counted
    /// are cut to that.
    pub fn for_owner(limit: Load, clock: Arc<dyn Clock>) -> Self {
        let settings = Settings {
            max_items: limit.items.clamp(1, ITEMS_MAX),
            max_bytes: limit.bytes.clamp(1, BYTES_MAX),
            overflow: Overflow::Refuse,
            assist: false,
            ..Settings::default()
        };
        Self::make(settings, clock, None)
    }

    fn make(settings: Settings, clock: Arc<dyn Clock>, runner: Option<Runner<W>>) -> Self {
        Self(Arc::new(Inner {
            bounds: Bounds::new(Load {
                items: settings.max_items,
                bytes: settings.max_bytes,
            }),
            settings,
            clock,
            domain: Arc::new(Domain::new()),
            inbox: Inbox::new(),
            limbo: Mutex::new(Limbo::new()),
            running: AtomicUsize::new(0),
            carried: AtomicUsize::new(0),
            mode: AtomicU64::new(OPEN),
            runner,
            wake: Mutex::new(None),
            observer: OnceLock::new(),
            counters: Counters::default(),
            last_failure: Mutex::new(None),
        }))
    }

    fn books(&self) -> Arc<dyn Books> {
        Arc::<Inner<W>>::clone(&self.0)
    }

    /// Who to wake when the tick has to begin, or when something may have become safe that
    /// nobody else runs.
    pub fn set_wake(&self, wake: Waker) {
        *lock(&self.0.wake) = Some(wake);
    }

    /// Who hears of failures and stalls; the first one stays.
    pub fn observe(&self, observer: Box<dyn Observer>) {
        let _first_stays = self.0.observer.set(observer);
    }

    /// A place for one thread to pin from.
    pub fn participant(&self, label: Option<&str>) -> Participant {
        Participant::new(self.books(), Arc::clone(&self.0.domain), label)
    }

    /// A pin that may be held across threads and awaits.
    pub fn pin(&self, label: Option<&str>) -> OwnedPin {
        let domain = Arc::clone(&self.0.domain);
        OwnedPin::new(self.books(), domain, label, self.0.clock.now())
    }

    /// Seals what was pushed, so that pins taken from now on do not hold it back. Does nothing
    /// while another thread collects, which does the same.
    pub fn seal(&self) {
        let inner = &*self.0;
        if inner.bounds.load().items > 0
            && let Some(mut limbo) = try_lock(&inner.limbo)
        {
            inner.seal(&mut limbo);
        }
    }

    /// Defers `work`, which says it holds `bytes`. What it cleans must be unlinked by now. Never
    /// waits; at the limits it does what the overflow policy says, short of waiting.
    pub fn try_defer(&self, work: W, bytes: usize) -> Result<Deferred, Refused<W>> {
        let outcome = self.attempt(work, bytes);
        if outcome.is_err() {
            self.note_refused();
        }
        outcome
    }

    /// [`try_defer`](Self::try_defer) that does not count a refusal.
    #[inline]
    fn attempt(&self, work: W, bytes: usize) -> Result<Deferred, Refused<W>> {
        match self.reserve_or_help(bytes) {
            Ok(reserved) => {
                self.push(work, bytes, reserved);
                Ok(Deferred::Queued)
            }
            Err(reason) => self.overflow(work, reason),
        }
    }

    /// Counts work that its caller kept after [`reserve`](Self::reserve) found no room.
    pub fn note_refused(&self) {
        self.0.counters.refused.up();
    }

    /// Room for one piece of work of `bytes`, reserved before anything is unlinked. A refusal is
    /// not counted; see [`note_refused`](Self::note_refused).
    pub fn reserve(&self, bytes: usize) -> Result<Permit<'_, W>, Reason> {
        Ok(Permit {
            reserved: self.reserve_or_help(bytes)?,
            collector: self,
            bytes,
            is_used: false,
        })
    }

    #[inline]
    fn reserve_or_help(&self, bytes: usize) -> Result<bounds::Reserved, Reason> {
        let inner = &*self.0;
        match inner.bounds.reserve(bytes) {
            Ok(reserved) => Ok(reserved),
            Err(NoRoom::Shut) => Err(inner.shut_reason()),
            Err(NoRoom::Full) if bytes > inner.settings.max_bytes => Err(Reason::TooLarge),
            Err(NoRoom::Full) => {
                self.help();
                inner
                    .bounds
                    .reserve(bytes)
                    .map_err(|refused| match refused {
                        NoRoom::Full => Reason::Full,
                        NoRoom::Shut => inner.shut_reason(),
                    })
            }
        }
    }

    #[inline]
    fn push(&self, work: W, bytes: usize, reserved: bounds::Reserved) {
        let inner = &*self.0;
        inner.counters.enqueued.up();
        inner.inbox.push(Item { work, bytes });
        if reserved.must_arm {
            inner.wake();
        }
        if inner.bounds.is_near(reserved.load) {
            self.help();
        }
    }

    /// No room, or not taking any: runs it now if that is the policy and it is safe.
    #[cold]
    fn overflow(&self, work: W, reason: Reason) -> Result<Deferred, Refused<W>> {
        let inner = &*self.0;
        let wants_inline = match reason {
            Reason::Full | Reason::TooLarge => inner.settings.overflow == Overflow::Inline,
            Reason::Disabled => true,
            Reason::Closed => false,
        };
        if let (true, Some(runner)) = (wants_inline && inner.domain.is_clear(), inner.runner) {
            inner.run_inline(runner, work);
            return Ok(Deferred::RanInline);
        }
        Err(Refused { work, reason })
    }

    /// Whether nobody is pinned: what the caller has unlinked it may clean itself.
    pub fn is_clear(&self) -> bool {
        self.0.domain.is_clear()
    }

    /// Whether `bytes` more would be taken now, or never will be: either way there is news for
    /// who waits.
    pub fn is_worth_a_try(&self, bytes: usize) -> bool {
        self.0.bounds.would_answer(bytes)
    }

    /// Wakes `waker` once when room was given back or the collector was shut. The caller tries
    /// again after this call, and after the wake.
    pub fn wait_room(&self, waker: Waker) {
        self.0.bounds.wait(waker);
    }

    /// Takes back a [`wait_room`](Self::wait_room) whose waker was not woken yet.
    pub fn forget_room(&self, waker: &Waker) {
        self.0.bounds.forget(waker);
    }

    /// Takes no more work in; runs what is safe. From then on callers clean directly: work that
    /// is safe runs in the call, other work is given back. What is left runs when its pins go.
    pub fn disable(&self) -> Left {
        self.shut(DISABLED)
    }

    /// Takes work in again after `disable`.
    pub fn enable(&self) {
        let inner = &*self.0;
        // SeqCst here and in `shut`: of an `enable` and a `close` at the same time one sees the
        // other, and the close stays.
        let order = Ordering::SeqCst;
        let opened = inner.mode.compare_exchange(DISABLED, OPEN, order, order);
        if opened.is_ok() {
            inner.bounds.reopen();
            if inner.mode.load(order) != OPEN {
                inner.bounds.shut();
            }
        }
    }

    /// Takes no more work in, for good; runs what is safe and says what is left.
    pub fn close(&self) -> Left {
        self.shut(CLOSED)
    }

    fn shut(&self, mode: u64) -> Left {
        let inner = &*self.0;
        // SeqCst: partner is `enable`.
        inner.mode.fetch_max(mode, Ordering::SeqCst);
        inner.bounds.shut();
        if let Some(runner) = inner.runner {
            self.drain(runner);
        }
        let (_, oldest_pin) = inner.domain.pins(inner.clock.now());
        Left {
            load: inner.bounds.load(),
            oldest_pin,
        }
    }

    /// Whether it takes work in.
    pub fn is_open(&self) -> bool {
        self.0.mode.load(Ordering::Relaxed) == OPEN
    }

    /// Whether it was closed.
    pub fn is_closed(&self) -> bool {
        self.0.mode.load(Ordering::Relaxed) == CLOSED
    }

    /// What its clock shows.
    pub fn now(&self) -> Mono {
        self.0.clock.now()
    }

    /// What is deferred now.
    pub fn load(&self) -> Load {
        self.0.bounds.load()
    }

    /// The settings in force.
    pub fn settings(&self) -> &Settings {
        &self.0.settings
    }

    /// What was done so far, and how it stands at `now`.
    pub fn statistics(&self, now: Mono) -> Statistics {
        let inner = &*self.0;
        let counters = &inner.counters;
        let (pins, oldest_pin) = inner.domain.pins(now);
        let queue = inner.bounds.load();
        Statistics {
            enqueued: counters.enqueued.get(),
            processed: counters.processed.get(),
            failed: counters.failed.get(),
            refused: counters.refused.get(),
            ran_inline: counters.ran_inline.get(),
            batches: counters.batches.get(),
            batch_items_max: counters.batch_items_max.get(),
            batch_time: std::time::Duration::from_nanos(counters.batch_time_ns.get()),
            batch_time_max: std::time::Duration::from_nanos(counters.batch_time_max_ns.get()),
            queue,
            peak: inner.bounds.peak(),
            is_near_capacity: inner.bounds.is_near(queue),
            epoch: inner.domain.epoch(),
            safe_epoch: inner.domain.safe(),
            pins,
            oldest_pin,
            done_by_kind: std::array::from_fn(|at| counters.by_kind[at].get()),
            last_failure: lock(&inner.last_failure).clone(),
        }
    }
}

impl<W: Work> Inner<W> {
    fn shut_reason(&self) -> Reason {
        match self.mode.load(Ordering::Relaxed) {
            CLOSED => Reason::Closed,
            _ => Reason::Disabled,
        }
    }

    fn wake(&self) {
        let wake = lock(&self.wake).clone();
        if let Some(wake) = wake {
            wake.wake();
        }
    }
}

impl From<Reason> for Error {
    fn from(reason: Reason) -> Self {
        match reason {
            Reason::Full => Self::new(
                ErrorKind::Overloaded,
                "as much work as allowed is deferred; wait for room, or raise the limits",
            ),
            Reason::TooLarge => Self::new(
                ErrorKind::TooLarge,
                "the work alone is larger than max_bytes, and waiting will not change that",
            )
            .with_text("limit", "max_bytes"),
            Reason::Disabled => Self::new(
                ErrorKind::Overloaded,
                "the collector is disabled and somebody is pinned; clean it when the pins are gone",
            ),
            Reason::Closed => Self::new(ErrorKind::Closed, "the collector is closed"),
        }
    }
}
