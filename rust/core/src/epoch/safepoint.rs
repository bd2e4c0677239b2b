//! Collecting: where what has become safe is run, within a budget.
//!
//! One collection at a time holds the limbo. It seals what was pushed, moves the global epoch on,
//! looks at the pins once, and runs what is safe in batches until the budget is spent. Others
//! that come meanwhile go away again: the work is being done.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Duration,
};

use super::{
    Collector, Inner, OPEN, Runner,
    bag::{Item, Limbo},
    bounds::Load,
    work::{Books, Clean, Kind, Slip, Work},
};
use crate::{
    clock::Mono,
    error::{Error, ErrorKind, Result},
    sync::{Ordering, lock, thread, try_lock},
};

#[cfg(not(loom))]
use super::{Deferred, Overflow, Reason, Refused};
#[cfg(not(loom))]
use crate::sync::{Condvar, Mutex, Wake};

/// What one collection may cost.
#[derive(Debug, Clone, Copy)]
pub struct Budget {
    /// Most pieces of work.
    pub items: usize,
    /// Most time, running included; the piece that runs when it is spent is finished.
    pub time: Duration,
}

impl Budget {
    /// Everything that is safe, however long it takes.
    pub const ALL: Self = Self {
        items: usize::MAX,
        time: Duration::MAX,
    };
}

/// Looks for pushes in flight before `close` gives up on them.
const TRANSIT_LOOKS: usize = 1000;

/// A number for this thread, never 0.
fn this_thread() -> usize {
    thread_local! {
        static HERE: u8 = const { 0 };
    }
    HERE.with(|here| std::ptr::from_ref(here).addr())
}

impl<W: Clean + 'static> Collector<W> {
    /// Runs what is safe within `budget`. Returns how many pieces ran; 0 also if another thread
    /// is collecting.
    pub fn collect(&self, budget: Budget) -> usize {
        self.collect_by(budget, W::clean)
    }

    /// One turn of the owner's timer: reports stalls, runs what is safe for at most one batch's
    /// time. Returns when to come again: at once if there is more, after `advance_interval` if a
    /// pin holds it back, never (until woken) if nothing is deferred.
    pub fn tick(&self, now: Mono) -> Option<Mono> {
        self.tick_by(now, W::clean)
    }
}

impl<W: Work + 'static> Collector<W> {
    /// [`collect`](Collector::collect) with the owner's handler.
    pub fn collect_by(
        &self,
        budget: Budget,
        mut run: impl FnMut(W, &mut Slip<'_>) -> Result<()>,
    ) -> usize {
        let Some(mut limbo) = try_lock(&self.0.limbo) else {
            return 0;
        };
        let books = self.books();
        self.0.collect(&mut limbo, Some(&books), budget, &mut run)
    }

    /// Seals what was pushed and looks whether anything is safe. Runs nothing. False also if
    /// another thread is collecting.
    pub fn is_ready(&self) -> bool {
        try_lock(&self.0.limbo)
            .is_some_and(|mut limbo| limbo.ready() > 0 || self.0.open_bags(&mut limbo))
    }

    /// [`tick`](Collector::tick) with the owner's handler.
    pub fn tick_by(
        &self,
        now: Mono,
        run: impl FnMut(W, &mut Slip<'_>) -> Result<()>,
    ) -> Option<Mono> {
        let inner = &*self.0;
        self.look_for_stalls(now);
        let budget = Budget {
            items: usize::MAX,
            time: inner.settings.max_batch_time,
        };
        self.collect_by(budget, run);
        if inner.bounds.disarm_if_empty() {
            return None;
        }
        let has_more = try_lock(&inner.limbo).is_none_or(|limbo| limbo.ready() > 0);
        Some(if has_more {
            now
        } else {
            now.after(inner.settings.advance_interval)
        })
    }

    /// Tells the observer of pins held for too long, each once. The tick does it by itself.
    pub fn look_for_stalls(&self, now: Mono) {
        let inner = &*self.0;
        // Looked at without an observer, too: a participant's pin ages from when it was first seen.
        let stalled = inner.domain.stalled(now, inner.settings.stall_after);
        let Some(observer) = inner.observer.get() else {
            return;
        };
        for pin in stalled {
            observer.stalled(&pin);
        }
    }

    /// Counts a batch of work that was carried off and run elsewhere.
    pub fn note_batch(&self, items: usize, took: Duration) {
        self.0.counters.batch(items, took);
    }

    /// Counts work that its caller ran after [`is_clear`](Self::is_clear), because there was no
    /// room for it.
    pub fn note_inline(&self, kind: Kind, outcome: Result<()>) {
        self.0.note_inline(kind, outcome);
    }

    /// One batch by whoever is here, if that is wanted; else its owner is told.
    pub(super) fn help(&self) {
        self.0.help(Some(&self.books()));
    }

    /// Runs everything that is safe, waiting for others that collect and for pushes under way.
    pub(super) fn drain(&self, runner: Runner<W>) {
        let inner = &*self.0;
        // Relaxed: this very thread wrote it, or it is another's number.
        if inner.running.load(Ordering::Relaxed) == this_thread() {
            return;
        }
        let books = self.books();
        for _ in 0..TRANSIT_LOOKS {
            let in_transit = {
                let mut limbo = lock(&inner.limbo);
                let mut run = runner;
                inner.collect(&mut limbo, Some(&books), Budget::ALL, &mut run);
                let known = limbo.len() + inner.carried.load(Ordering::Relaxed);
                inner.bounds.load().items > known
            };
            if !in_transit {
                return;
            }
            thread::yield_now();
        }
    }
}

impl<W: Work> Inner<W> {
    fn help(&self, books: Option<&Arc<dyn Books>>) {
        let Some(mut run) = self.runner.filter(|_| self.settings.assist) else {
            return self.wake();
        };
        if let Some(mut limbo) = try_lock(&self.limbo) {
            let budget = Budget {
                items: self.settings.max_batch,
                time: self.settings.max_batch_time,
            };
            self.collect(&mut limbo, books, budget, &mut run);
        }
    }

    #[cold]
    fn after_unpin(&self, load: Load, books: &Arc<dyn Books>) {
        // Relaxed: a flag on its own.
        let is_open = self.mode.load(Ordering::Relaxed) == OPEN;
        if !is_open && let Some(mut run) = self.runner {
            // Nobody may come after us. A collection under way may have looked at the pins
            // before this one went, so it is waited for; unless it is our own, which looks again.
            if self.running.load(Ordering::Relaxed) != this_thread() {
                let mut limbo = lock(&self.limbo);
                self.collect(&mut limbo, Some(books), Budget::ALL, &mut run);
            }
        } else if load.items >= self.settings.min_batch
            || self.bounds.is_near(load)
            || !self.settings.assist
        {
            self.help(Some(books));
        }
    }

    pub(super) fn collect(
        &self,
        limbo: &mut Limbo<W>,
        books: Option<&Arc<dyn Books>>,
        budget: Budget,
        run: &mut impl FnMut(W, &mut Slip<'_>) -> Result<()>,
    ) -> usize {
        self.running.store(this_thread(), Ordering::Relaxed);
        let begun = self.clock.now();
        let (mut now, mut done) = (begun, 0);
        while done < budget.items && now.since(begun) < budget.time {
            if limbo.ready() == 0 && !self.open_bags(limbo) {
                break;
            }
            let left = Budget {
                items: budget.items - done,
                time: budget.time.saturating_sub(now.since(begun)),
            };
            let batch = self.batch(limbo, books, left, now, run);
            done += batch.0;
            now = batch.1;
        }
        self.running.store(0, Ordering::Relaxed);
        done
    }

    /// Seals what was pushed and finds out what is safe. Returns whether anything is.
    fn open_bags(&self, limbo: &mut Limbo<W>) -> bool {
        self.seal(limbo);
        if limbo.len() == 0 {
            return false;
        }
        limbo.open_below(self.domain.safe());
        limbo.ready() > 0
    }

    /// Seals what was pushed, and moves the global epoch past it.
    pub(super) fn seal(&self, limbo: &mut Limbo<W>) {
        let early = planted!("epoch_seal_local").then_some(limbo.sealed_at);
        if self.inbox.empty_into(limbo) {
            let epoch = self.domain.seal_epoch();
            limbo.seal(early.unwrap_or(epoch));
        }
        if limbo.len() > 0 && self.domain.epoch() <= limbo.sealed_at {
            self.domain.advance();
        }
    }

    /// Runs one batch of what is ready. Returns how many ran, and the time after.
    fn batch(
        &self,
        limbo: &mut Limbo<W>,
        books: Option<&Arc<dyn Books>>,
        budget: Budget,
        begun: Mono,
        run: &mut impl FnMut(W, &mut Slip<'_>) -> Result<()>,
    ) -> (usize, Mono) {
        let most = budget.items.min(self.settings.max_batch);
        let time = budget.time.min(self.settings.max_batch_time);
        let (mut ran, mut carried, mut now) = (0, 0, begun);
        while ran < most && now.since(begun) < time {
            let Some((item, emptied)) = limbo.take() else {
                break;
            };
            self.inbox.keep(emptied);
            carried += usize::from(self.run_one(books, item, run));
            ran += 1;
            now = self.clock.now();
        }
        let finished = ran - carried;
        if finished > 0 {
            self.counters.batch(finished, now.since(begun));
        }
        (ran, now)
    }

    /// Returns whether the handler carried the work off.
    fn run_one(
        &self,
        books: Option<&Arc<dyn Books>>,
        item: Item<W>,
        run: &mut impl FnMut(W, &mut Slip<'_>) -> Result<()>,
    ) -> bool {
        let Item { work, bytes } = item;
        let kind = work.kind();
        let mut slip = Slip {
            books,
            kind,
            bytes,
            is_carried: false,
        };
        if planted!("epoch_release_before_run") {
            self.bounds.release(bytes);
        }
        let outcome = caught(|| run(work, &mut slip));
        if !slip.is_carried {
            self.settle(kind, outcome);
            if !planted!("epoch_release_before_run") {
                self.bounds.release(bytes);
            }
        }
        slip.is_carried
    }

    /// Runs work that was never queued, on its caller's thread.
    pub(super) fn run_inline(&self, runner: Runner<W>, work: W) {
        let kind = work.kind();
        let mut slip = Slip {
            // It holds no room, so there is nothing to carry off.
            books: None,
            kind,
            bytes: 0,
            is_carried: false,
        };
        let outcome = caught(|| runner(work, &mut slip));
        self.note_inline(kind, outcome);
    }

    pub(super) fn note_inline(&self, kind: Kind, outcome: Result<()>) {
        self.counters.ran_inline.up();
        self.note(kind, outcome, false);
    }

    fn settle(&self, kind: Kind, outcome: Result<()>) {
        self.note(kind, outcome, true);
    }

    fn note(&self, kind: Kind, outcome: Result<()>, is_deferred: bool) {
        self.counters.by_kind[kind as usize].up();
        match outcome {
            Ok(()) if is_deferred => self.counters.processed.up(),
            Ok(()) => {}
            Err(error) => {
                self.counters.failed.up();
                if let Some(observer) = self.observer.get() {
                    observer.failed(kind, &error);
                }
                *lock(&self.last_failure) = Some(error);
            }
        }
    }
}

/// Runs `work`; a panic is an error like any other.
fn caught(work: impl FnOnce() -> Result<()>) -> Result<()> {
    if planted!("epoch_panic_escapes") {
        return work();
    }
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(outcome) => outcome,
        Err(payload) => {
            let text = payload
                .downcast_ref::<&str>()
                .map(|text| (*text).to_owned())
                .or_else(|| payload.downcast_ref::<String>().cloned())
                .unwrap_or_else(|| "no message".to_owned());
            // A payload may panic again when it is dropped.
            let _gone = catch_unwind(AssertUnwindSafe(|| drop(payload)));
            Err(Error::new(
                ErrorKind::Abandoned,
                format!("a cleanup handler panicked: {text}"),
            ))
        }
    }
}

impl<W: Work> Books for Inner<W> {
    /// The last pin of somebody is gone: what it held back may be safe.
    #[inline]
    fn on_unpin(&self, books: &Arc<dyn Books>) {
        let load = self.bounds.load();
        if load.items > 0 {
            self.after_unpin(load, books);
        }
    }

    fn carry(&self) {
        self.carried.fetch_add(1, Ordering::Relaxed);
    }

    fn settle_carried(&self, kind: Kind, bytes: usize, outcome: Result<()>) {
        self.carried.fetch_sub(1, Ordering::Relaxed);
        self.settle(kind, outcome);
        self.bounds.release(bytes);
    }
}

impl<W: Work> Drop for Inner<W> {
    /// Every pin holds the collector, so nobody is pinned: everything left is safe.
    fn drop(&mut self) {
        if let Some(mut run) = self.runner {
            let mut limbo = lock(&self.limbo);
            self.collect(&mut limbo, None, Budget::ALL, &mut run);
        }
    }
}

#[cfg(not(loom))]
#[derive(Default)]
struct Sleeper {
    is_awake: Mutex<bool>,
    woken: Condvar,
}

#[cfg(not(loom))]
impl Sleeper {
    fn sleep(&self, timeout: Duration) {
        let is_awake = lock(&self.is_awake);
        drop(
            self.woken
                .wait_timeout_while(is_awake, timeout, |awake| !*awake),
        );
    }
}

#[cfg(not(loom))]
impl Wake for Sleeper {
    fn wake(&self) {
        *lock(&self.is_awake) = true;
        self.woken.notify_all();
    }
}

#[cfg(not(loom))]
impl<W: Work + 'static> Collector<W> {
    /// [`try_defer`](Self::try_defer), waiting on this plain thread for room, as long as the
    /// policy allows. Called from a handler it does not wait.
    pub fn defer(&self, work: W, bytes: usize, timeout: Duration) -> Result<Deferred, Refused<W>> {
        let outcome = self.attempt(work, bytes);
        let outcome = outcome.or_else(|refused| self.wait_in(refused, bytes, timeout));
        if outcome.is_err() {
            self.note_refused();
        }
        outcome
    }

    fn wait_in(
        &self,
        mut refused: Refused<W>,
        bytes: usize,
        timeout: Duration,
    ) -> Result<Deferred, Refused<W>> {
        let inner = &*self.0;
        let is_handler = inner.running.load(Ordering::Relaxed) == this_thread();
        let may_wait = inner.settings.overflow != Overflow::Refuse && !is_handler;
        let deadline = inner.clock.now().after(timeout);
        while refused.reason == Reason::Full && may_wait {
            let sleeper = Arc::new(Sleeper::default());
            self.wait_room(Arc::<Sleeper>::clone(&sleeper));
            // Once more, after asking to be woken.
            refused = match self.attempt(refused.work, bytes) {
                Ok(taken) => return Ok(taken),
                Err(refused) => refused,
            };
            let left = deadline.since(inner.clock.now());
            if refused.reason != Reason::Full || left.is_zero() {
                break;
            }
            sleeper.sleep(left);
        }
        Err(refused)
    }
}
