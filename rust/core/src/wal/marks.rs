//! Watermarks, and how those who wait for them are told.
//!
//! `appended`, `committed` and `durable` never cross and never move back. The engine stores a
//! mark, then looks for waiters; a waiter announces itself, then looks at the mark. A sequentially
//! consistent fence on each side makes one of the two see the other, so no wake is lost.
//!
//! ```text
//! engine:  store mark | fence | read armed / waiting --> wake
//! waiter:  set armed  | fence | read mark            --> done already, or sleep
//! ```
//!
//! A [`Watch`] is one event loop: armed once, woken once per group at most, whatever the number of
//! tasks behind it. Plain threads wait on a condition that costs nothing while nobody waits.

use std::{
    sync::{OnceLock, Weak},
    time::{Duration, Instant},
};

use crossbeam::utils::CachePadded;

use crate::{
    error::{Error, ErrorKind, Result},
    ids::Lsn,
    port::Watch,
    sync::{Arc, AtomicU64, AtomicUsize, Condvar, Mutex, Ordering, Wake, fence, lock},
};

/// How long a thread without a deadline sleeps before it looks again.
const LONG_SLEEP: Duration = Duration::from_secs(3600);

/// How far an append has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Level {
    /// In memory.
    Appended,
    /// In the file; survives the process.
    Committed,
    /// Survives power loss.
    Durable,
}

/// The watermarks of one log.
pub(crate) struct Marks {
    committed: CachePadded<AtomicU64>,
    durable: CachePadded<AtomicU64>,
    failure: OnceLock<Error>,
    watches: Mutex<Vec<Weak<Watch>>>,
    waiting: AtomicUsize,
    gate: Mutex<()>,
    moved: Condvar,
}

impl Marks {
    pub(crate) fn new(durable: Lsn) -> Self {
        Self {
            committed: CachePadded::new(AtomicU64::new(durable.0)),
            durable: CachePadded::new(AtomicU64::new(durable.0)),
            failure: OnceLock::new(),
            watches: Mutex::new(Vec::new()),
            waiting: AtomicUsize::new(0),
            gate: Mutex::new(()),
            moved: Condvar::new(),
        }
    }

    /// The highest durable LSN. Acquire: pairs with the Release in `advance`, so that whoever sees
    /// an LSN also sees the segment list that holds it.
    pub(crate) fn durable(&self) -> Lsn {
        Lsn(self.durable.load(Ordering::Acquire))
    }

    /// The highest committed LSN; see [`durable`](Self::durable) for the ordering.
    pub(crate) fn committed(&self) -> Lsn {
        Lsn(self.committed.load(Ordering::Acquire))
    }

    /// Why nothing is acknowledged any more.
    pub(crate) fn failure(&self) -> Option<&Error> {
        self.failure.get()
    }

    /// Moves the marks up to `durable`. Every commit path of today makes a group durable with the
    /// very answer that commits it, so both move together. One caller: the committer.
    pub(crate) fn advance(&self, durable: Lsn) {
        debug_assert!(durable >= self.durable());
        self.committed.store(durable.0, Ordering::Release);
        self.durable.store(durable.0, Ordering::Release);
        self.announce();
    }

    /// Sets the final failure; the first one stays. Returns whether this was it.
    pub(crate) fn fail(&self, error: Error) -> bool {
        let first = self.failure.set(error).is_ok();
        self.announce();
        first
    }

    /// Adds a watch; it leaves by being dropped.
    pub(crate) fn watch(&self, wake: Arc<dyn Wake>) -> Arc<Watch> {
        let watch = Arc::new(Watch::new(wake));
        let mut watches = lock(&self.watches);
        watches.retain(|other| other.strong_count() > 0);
        watches.push(Arc::downgrade(&watch));
        watch
    }

    /// Waits on a plain thread until `level` reaches `lsn`.
    pub(crate) fn wait(&self, level: Level, lsn: Lsn, timeout: Option<Duration>) -> Result<()> {
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let mut gate = lock(&self.gate);
        self.waiting.fetch_add(1, Ordering::Relaxed);
        // Pairs with the fence in `nudge`.
        fence(Ordering::SeqCst);
        let outcome = loop {
            if let Some(outcome) = self.reached(level, lsn) {
                break outcome;
            }
            gate = match deadline {
                None => self
                    .moved
                    .wait(gate)
                    .unwrap_or_else(std::sync::PoisonError::into_inner),
                Some(deadline) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        break Err(timed_out(lsn));
                    }
                    self.moved
                        .wait_timeout(gate, left)
                        .unwrap_or_else(std::sync::PoisonError::into_inner)
                        .0
                }
            };
        };
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        drop(gate);
        outcome
    }

    /// Sleeps until a mark moves, [`nudge`](Self::nudge) is called or `limit` has passed, unless
    /// `instead` has something better to do. It is asked with the gate closed: whatever changes
    /// after it said no is followed by a nudge that ends the sleep.
    pub(crate) fn pause<T>(
        &self,
        limit: Option<Duration>,
        instead: impl FnOnce() -> Option<T>,
    ) -> Option<T> {
        let gate = lock(&self.gate);
        self.waiting.fetch_add(1, Ordering::Relaxed);
        // Pairs with the fence in `nudge`.
        fence(Ordering::SeqCst);
        let found = instead();
        if found.is_none() {
            // A sleep without end is cut into long ones, and the caller looks again in between.
            let woken = self.moved.wait_timeout(gate, limit.unwrap_or(LONG_SLEEP));
            drop(woken);
        }
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        found
    }

    /// Has those who sleep look again.
    pub(crate) fn nudge(&self) {
        // Pairs with the fences in `wait` and `pause`.
        fence(Ordering::SeqCst);
        if self.waiting.load(Ordering::Relaxed) > 0 {
            drop(lock(&self.gate));
            self.moved.notify_all();
        }
    }

    pub(crate) fn reached(&self, level: Level, lsn: Lsn) -> Option<Result<()>> {
        let mark = match level {
            Level::Appended => return Some(Ok(())),
            Level::Committed => self.committed(),
            Level::Durable => self.durable(),
        };
        if mark >= lsn {
            return Some(Ok(()));
        }
        self.failure().map(|error| Err(error.clone()))
    }

    fn announce(&self) {
        for watch in lock(&self.watches).iter().filter_map(Weak::upgrade) {
            watch.notify();
        }
        self.nudge();
    }
}

pub(crate) fn timed_out(lsn: Lsn) -> Error {
    Error::new(
        ErrorKind::Timeout,
        "the record is not durable yet; it is still being written, wait again to learn its fate",
    )
    .with("lsn", lsn.0)
}
