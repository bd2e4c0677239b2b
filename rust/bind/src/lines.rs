//! Who waits for which LSN of which log, on one event loop.
//!
//! Awaits mostly come in LSN order, so each durability level has a plain queue; one that comes
//! out of order goes to a small heap beside it. Appends that found the ring full have no LSN yet
//! and stand in the order of their calls until they are admitted.
//!
//! # Always true
//!
//! 1. While anybody waits, the log's watch is armed or a drain is on its way.
//! 2. A waiter leaves exactly once: resolved, failed, or dropped with its loop.
//! 3. Nothing here calls into Python; futures that leave are handed to the caller, who has let
//!    go of the lock.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap, VecDeque},
    sync::{Arc, Weak},
};

use millrace_core::{
    Error,
    port::Watch,
    sync::Wake,
    wal::{
        Level,
        log::{Pending, PendingAppend, Watermarks},
    },
};
use pyo3::prelude::*;

use crate::shared::Shared;

/// What a waiter is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Value {
    /// The LSN it waited for.
    Lsn,
    /// The LSNs of a batch that ends at the one it waited for.
    Range(u32),
    /// The durable mark.
    Durable,
}

/// A future that wants to hear of an LSN.
pub struct Waiter {
    pub lsn: u64,
    pub value: Value,
    pub future: Py<PyAny>,
}

/// A future whose append stands in line for the ring.
pub struct Queued {
    pub pending: Arc<PendingAppend>,
    pub level: Level,
    pub value: Value,
    pub future: Py<PyAny>,
}

/// How a waiter leaves.
pub enum Outcome {
    Reached {
        lsn: u64,
        value: Value,
        durable: u64,
    },
    Failed(Error),
}

pub type Leaving = Vec<(Py<PyAny>, Outcome)>;

#[derive(Default)]
struct Line {
    queue: VecDeque<Waiter>,
    stragglers: BinaryHeap<Reverse<Straggler>>,
}

struct Straggler(Waiter);

impl PartialEq for Straggler {
    fn eq(&self, other: &Self) -> bool {
        self.0.lsn == other.0.lsn
    }
}

impl Eq for Straggler {}

impl PartialOrd for Straggler {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Straggler {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.lsn.cmp(&other.0.lsn)
    }
}

impl Line {
    fn push(&mut self, waiter: Waiter) {
        match self.queue.back() {
            Some(last) if last.lsn > waiter.lsn => {
                self.stragglers.push(Reverse(Straggler(waiter)));
            }
            _ => self.queue.push_back(waiter),
        }
    }

    fn is_empty(&self) -> bool {
        self.queue.is_empty() && self.stragglers.is_empty()
    }

    /// The lowest LSN anybody waits for.
    fn first(&self) -> Option<u64> {
        let queued = self.queue.front().map(|waiter| waiter.lsn);
        let straggler = self.stragglers.peek().map(|Reverse(s)| s.0.lsn);
        queued.into_iter().chain(straggler).min()
    }

    /// The next waiter at or below `mark`.
    fn pop(&mut self, mark: u64) -> Option<Waiter> {
        if self.queue.front().is_some_and(|front| front.lsn <= mark) {
            return self.queue.pop_front();
        }
        match self.stragglers.peek() {
            Some(Reverse(straggler)) if straggler.0.lsn <= mark => {
                self.stragglers.pop().map(|Reverse(straggler)| straggler.0)
            }
            _ => None,
        }
    }

    fn futures(&self) -> impl Iterator<Item = &Py<PyAny>> {
        let queued = self.queue.iter().map(|waiter| &waiter.future);
        let stragglers = self.stragglers.iter().map(|Reverse(s)| &s.0.future);
        queued.chain(stragglers)
    }
}

/// The waiters of one log on one loop.
pub struct Lines {
    log: Weak<Shared>,
    /// Held only while somebody waits, so that a log nobody waits for can go.
    held: Option<Arc<Shared>>,
    watch: Arc<Watch>,
    is_armed: bool,
    committed: Line,
    durable: Line,
    queued: BTreeMap<u64, Queued>,
}

impl Lines {
    pub fn new(log: &Arc<Shared>, wake: Arc<dyn Wake>) -> Self {
        Self {
            watch: log.appender.watch(wake),
            log: Arc::downgrade(log),
            held: None,
            is_armed: false,
            committed: Line::default(),
            durable: Line::default(),
            queued: BTreeMap::new(),
        }
    }

    #[inline]
    pub fn is_of(&self, log: &Arc<Shared>) -> bool {
        std::ptr::eq(self.log.as_ptr(), Arc::as_ptr(log))
    }

    /// Whether the log is gone and the lines with it.
    pub fn is_stale(&self) -> bool {
        self.held.is_none() && self.log.strong_count() == 0
    }

    /// The log if somebody waits for it here and its callers turn it now. The turn need not ring for
    /// us: we look behind it.
    pub fn turned(&self) -> Option<Arc<Shared>> {
        let log = self.held.as_ref()?;
        if !log.appender.needs_turns() {
            return None;
        }
        self.watch.disarm();
        Some(Arc::clone(log))
    }

    /// Adds a waiter. True: ring, for it may be ready already.
    #[inline]
    pub fn push(&mut self, log: &Arc<Shared>, level: Level, waiter: Waiter) -> bool {
        match level {
            Level::Durable => self.durable.push(waiter),
            Level::Committed | Level::Appended => self.committed.push(waiter),
        }
        if self.is_armed {
            return false;
        }
        self.held = Some(Arc::clone(log));
        self.arm()
    }

    /// Adds an append that stands in line. Ring afterwards: it may have been admitted already.
    pub fn push_queued(&mut self, log: &Arc<Shared>, number: u64, queued: Queued) {
        self.queued.insert(number, queued);
        self.held = Some(Arc::clone(log));
    }

    /// Takes one out that was cancelled.
    pub fn remove_queued(&mut self, number: u64) -> Option<Queued> {
        self.queued.remove(&number)
    }

    /// Moves waiters to `leaving` until there are `budget` in it. True: more may be ready, ring.
    pub fn take(&mut self, budget: usize, leaving: &mut Leaving) -> (bool, Option<Arc<Shared>>) {
        let Some(log) = self.held.clone() else {
            return (false, None);
        };
        self.is_armed = false;
        self.admit(&log, budget, leaving);
        // The failure is read before the marks: what became durable before the log failed is
        // answered with success.
        let failure = log.appender.failure();
        let marks = log.appender.marks();
        while leaving.len() < budget {
            let next = self
                .durable
                .pop(marks.durable.0)
                .or_else(|| self.committed.pop(marks.committed.0));
            match (next, &failure) {
                (Some(waiter), _) => leaving.push(reached(waiter, &marks)),
                (None, Some(error)) => match self.pop_any() {
                    Some(waiter) => leaving.push((waiter.future, Outcome::Failed(error.clone()))),
                    None => break,
                },
                (None, None) => break,
            }
        }
        if leaving.len() >= budget {
            return (true, None);
        }
        if self.durable.is_empty() && self.committed.is_empty() {
            if self.queued.is_empty() {
                return (false, self.held.take());
            }
            return (false, None);
        }
        (self.arm(), None)
    }

    /// Every future, for the garbage collector.
    pub fn futures(&self) -> impl Iterator<Item = &Py<PyAny>> {
        let queued = self.queued.values().map(|queued| &queued.future);
        self.committed
            .futures()
            .chain(self.durable.futures())
            .chain(queued)
    }

    fn arm(&mut self) -> bool {
        let Some(log) = &self.held else { return false };
        let durable = self.durable.first().unwrap_or(u64::MAX);
        let committed = self.committed.first().unwrap_or(u64::MAX);
        self.is_armed = true;
        self.watch.arm_unless(|| {
            let marks = log.appender.marks();
            marks.durable.0 >= durable
                || marks.committed.0 >= committed
                || log.appender.failure().is_some()
        })
    }

    fn pop_any(&mut self) -> Option<Waiter> {
        self.durable
            .pop(u64::MAX)
            .or_else(|| self.committed.pop(u64::MAX))
    }

    /// Moves what was admitted to the ring from the line of calls to the line of LSNs.
    fn admit(&mut self, log: &Arc<Shared>, budget: usize, leaving: &mut Leaving) {
        while leaving.len() < budget
            && let Some(first) = self.queued.first_entry()
        {
            let state = first.get().pending.state();
            if matches!(state, Pending::Waiting) {
                return;
            }
            let Queued {
                level,
                value,
                future,
                ..
            } = first.remove();
            match state {
                Pending::Waiting => {}
                Pending::Failed(error) => leaving.push((future, Outcome::Failed(error))),
                Pending::Admitted(lsn) => {
                    let lsn = last(lsn.0, value);
                    let waiter = Waiter { lsn, value, future };
                    match level {
                        Level::Appended => leaving.push(reached(waiter, &log.appender.marks())),
                        Level::Committed => self.committed.push(waiter),
                        Level::Durable => self.durable.push(waiter),
                    }
                }
            }
        }
    }
}

/// The last LSN of an append whose first one is known.
pub fn last(first: u64, value: Value) -> u64 {
    match value {
        Value::Range(count) => first + u64::from(count) - 1,
        Value::Lsn | Value::Durable => first,
    }
}

fn reached(waiter: Waiter, marks: &Watermarks) -> (Py<PyAny>, Outcome) {
    let Waiter { lsn, value, future } = waiter;
    let durable = marks.durable.0;
    (
        future,
        Outcome::Reached {
            lsn,
            value,
            durable,
        },
    )
}
