//! What a task may wait for: that everything has run, or that there is room.

use std::sync::{Arc, Mutex};

use millrace_core::{
    Error, ErrorKind,
    sync::{Waker, lock},
};
use pyo3::{Python, exceptions::PyRuntimeError, prelude::*};

use super::{calls::Calls, desk::Interest};
use crate::jobs::{Answer, Answering};

/// Somebody waits until everything deferred so far has run.
pub(super) struct Quiet {
    calls: Arc<Calls>,
    target: u64,
    id: u64,
    /// Keeps the loop that waits turning the tick.
    _interest: Interest,
}

impl Quiet {
    pub(super) fn new(calls: &Arc<Calls>, interest: Interest) -> Self {
        let (target, id) = calls.next_numbers();
        Self {
            calls: Arc::clone(calls),
            target,
            id,
            _interest: interest,
        }
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        self.calls.stop_waiting(self.id);
    }
}

impl Answering for Quiet {
    fn answer(&self) -> Option<Answer> {
        let is_quiet = self.calls.is_quiet_below(self.target);
        is_quiet.then(|| -> Answer { Box::new(|py| Ok(py.None())) })
    }

    fn subscribe(&self, waker: Waker) -> bool {
        self.calls.wait_quiet(self.target, self.id, waker);
        !self.calls.is_quiet_below(self.target)
    }

    fn can_withdraw(&self) -> bool {
        true
    }

    /// Woken, the loop forgets who waited.
    fn withdraw(&self) {
        if let Some(waker) = self.calls.stop_waiting(self.id) {
            waker.wake();
        }
    }
}

/// Somebody waits for room.
pub(super) struct Room {
    calls: Arc<Calls>,
    bytes: usize,
    waker: Mutex<Option<Waker>>,
    /// Keeps the loop that waits turning the tick.
    _interest: Option<Interest>,
}

impl Room {
    pub(super) fn new(calls: &Arc<Calls>, bytes: usize, interest: Option<Interest>) -> Self {
        Self {
            calls: Arc::clone(calls),
            bytes,
            waker: Mutex::default(),
            _interest: interest,
        }
    }

    fn forget(&self) -> Option<Waker> {
        let waker = lock(&self.waker).take()?;
        self.calls.collector.forget_room(&waker);
        Some(waker)
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.forget();
    }
}

impl Answering for Room {
    fn answer(&self) -> Option<Answer> {
        let there = self.calls.collector.is_worth_a_try(self.bytes);
        there.then(|| -> Answer { Box::new(|py| Ok(py.None())) })
    }

    fn subscribe(&self, waker: Waker) -> bool {
        *lock(&self.waker) = Some(Waker::clone(&waker));
        self.calls.collector.wait_room(waker);
        !self.calls.collector.is_worth_a_try(self.bytes)
    }

    fn can_withdraw(&self) -> bool {
        true
    }

    fn withdraw(&self) {
        if let Some(waker) = self.forget() {
            waker.wake();
        }
    }
}

/// The error for a loop that was asked for something it cannot do.
pub(super) fn no_loop(what: &str) -> PyErr {
    PyRuntimeError::new_err(format!("{what} needs a running event loop"))
}

/// The error for who would wait for itself.
pub(super) fn waits_for_itself(py: Python<'_>, why: &str) -> PyErr {
    let text = format!("as much work as allowed is deferred, and {why}");
    crate::error::raise(py, &Error::new(ErrorKind::Overloaded, text))
}
