//! One answer per entry: a completion for the worker, tickets for whoever waits.
//!
//! ```text
//! pending --done(value)----> done
//!         --failed(error)--> failed
//!         --dropped--------> failed, "dropped before flush"
//! ```
//!
//! # Always true
//!
//! 1. The first outcome wins and never changes; a later one is ignored and counted.
//! 2. Every completion gets an outcome, if only by being dropped.
//! 3. Whoever watches is woken: it either saw the outcome, or the one who set it saw the watcher.
//!
//! Waiters pay for waiting: an answer that nobody watches costs two writes to one word.

use std::time::Duration;

use super::{park::Parker, slot::Answer};
use crate::{
    Error, ErrorKind,
    sync::{Arc, Count, Mutex, Waker, lock},
};

/// What became of an entry.
pub type Outcome<V> = Result<V, Error>;

/// Counts what went wrong with the completions of one ring.
#[derive(Debug, Default)]
pub struct Tally {
    dropped: Count,
    late: Count,
}

impl Tally {
    /// Makes a completion that is counted here, and its first ticket.
    pub fn completion<V>(tally: &std::sync::Arc<Self>) -> (Completion<V>, Ticket<V>) {
        pair(Some(std::sync::Arc::clone(tally)))
    }

    /// Completions that were dropped without an outcome.
    pub fn dropped(&self) -> u64 {
        self.dropped.get()
    }

    /// Outcomes that came after the first.
    pub fn late(&self) -> u64 {
        self.late.get()
    }
}

/// Makes a completion that nobody counts, and its first ticket.
pub fn completion<V>() -> (Completion<V>, Ticket<V>) {
    pair(None)
}

fn pair<V>(tally: Option<std::sync::Arc<Tally>>) -> (Completion<V>, Ticket<V>) {
    let cell = Arc::new(Cell {
        answer: Answer::new(),
        watchers: Mutex::new(Vec::new()),
        tally,
    });
    let ticket = Ticket {
        cell: Arc::clone(&cell),
    };
    (Completion { cell }, ticket)
}

struct Cell<V> {
    answer: Answer<Outcome<V>>,
    watchers: Mutex<Vec<Waker>>,
    tally: Option<std::sync::Arc<Tally>>,
}

impl<V> Cell<V> {
    fn settle(&self, outcome: Outcome<V>) -> bool {
        match self.answer.set(outcome) {
            Ok(watched) => {
                if watched {
                    self.wake_watchers();
                }
                true
            }
            Err(_late) => {
                if let Some(tally) = &self.tally {
                    tally.late.up();
                }
                false
            }
        }
    }

    #[cold]
    fn wake_watchers(&self) {
        let watchers = std::mem::take(&mut *lock(&self.watchers));
        for watcher in watchers {
            watcher.wake();
        }
    }
}

/// The worker's side: gives the one answer.
pub struct Completion<V> {
    cell: Arc<Cell<V>>,
}

impl<V> Completion<V> {
    /// Answers with a value. False if there was an answer already; this one is then ignored.
    pub fn done(&self, value: V) -> bool {
        self.cell.settle(Ok(value))
    }

    /// Answers with an error. False if there was an answer already; this one is then ignored.
    pub fn failed(&self, error: Error) -> bool {
        self.cell.settle(Err(error))
    }

    /// Whether there is an answer.
    pub fn is_done(&self) -> bool {
        self.cell.answer.get().is_some()
    }

    /// One more ticket for the same answer.
    pub fn ticket(&self) -> Ticket<V> {
        Ticket {
            cell: Arc::clone(&self.cell),
        }
    }
}

impl<V> Drop for Completion<V> {
    fn drop(&mut self) {
        if self.is_done() {
            return;
        }
        if let Some(tally) = &self.cell.tally {
            tally.dropped.up();
        }
        let error = Error::new(ErrorKind::Abandoned, "dropped before flush");
        self.cell.settle(Err(error));
    }
}

/// A waiter's side. Clones wait for the same answer.
pub struct Ticket<V> {
    cell: Arc<Cell<V>>,
}

impl<V> Clone for Ticket<V> {
    fn clone(&self) -> Self {
        Self {
            cell: Arc::clone(&self.cell),
        }
    }
}

impl<V> Ticket<V> {
    /// Whether there is an answer.
    pub fn is_done(&self) -> bool {
        self.try_get().is_some()
    }

    /// The answer, if there is one.
    pub fn try_get(&self) -> Option<&Outcome<V>> {
        self.cell.answer.get()
    }

    /// Blocks this thread until there is an answer, at most for `timeout`.
    pub fn wait(&self, timeout: Option<Duration>) -> Option<&Outcome<V>> {
        if let Some(outcome) = self.try_get() {
            return Some(outcome);
        }
        let parker = std::sync::Arc::new(Parker::new());
        let watcher: Waker = std::sync::Arc::clone(&parker) as Waker;
        if self.subscribe(std::sync::Arc::clone(&watcher)) {
            parker.park(timeout);
            if self.try_get().is_none() {
                self.unsubscribe(&watcher);
            }
        }
        self.try_get()
    }

    /// Asks for `watcher` to be woken once when the answer comes. False if it is there already:
    /// then nobody will be woken.
    #[must_use = "false says that no wake will come"]
    pub fn subscribe(&self, watcher: Waker) -> bool {
        let kept = std::sync::Arc::clone(&watcher);
        lock(&self.cell.watchers).push(watcher);
        if self.cell.answer.watch() {
            return true;
        }
        // The answer may have come between the push and the watch, seen an earlier watcher, and
        // taken ours along: then ours was woken, which does no harm.
        self.unsubscribe(&kept);
        false
    }

    /// Takes a subscription back. Without effect once the answer is there.
    pub fn unsubscribe(&self, watcher: &Waker) {
        let mut watchers = lock(&self.cell.watchers);
        let found = watchers
            .iter()
            .position(|one| std::sync::Arc::ptr_eq(one, watcher));
        let gone = found.map(|index| watchers.swap_remove(index));
        drop(watchers);
        drop(gone);
    }

    /// How many watchers are waiting.
    #[cfg(test)]
    pub(super) fn watchers(&self) -> usize {
        lock(&self.cell.watchers).len()
    }
}
