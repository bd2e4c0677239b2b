//! The producers' end: claim, publish, and the ways to wait for room.

use std::time::Instant;

use super::{
    completion::{Completion, Tally, Ticket},
    limits::{Entries, Limits, Refusal, Refused, Weigh},
    park::{Backpressure, Parker, breathe},
    queue::{self, Admission, AdmissionState},
    shared::Shared,
    slot::Shut,
    statistics::Statistics,
};
use crate::sync::{Arc, Waker, thread};

/// What became of an append that was willing to queue.
pub enum Claim<T> {
    /// It entered at once; this is the position of its first entry.
    Now(u64),
    /// It queues, and its waker is called when it leaves the queue.
    Later(Arc<Admission<T>>),
}

/// One of any number of ends through which entries come in.
pub struct Producer<T> {
    shared: Arc<Shared<T>>,
}

impl<T> Clone for Producer<T> {
    fn clone(&self) -> Self {
        Self {
            shared: Arc::clone(&self.shared),
        }
    }
}

impl<T: Weigh + Send> Producer<T> {
    pub(super) fn new(shared: Arc<Shared<T>>) -> Self {
        Self { shared }
    }

    /// Appends without waiting. Returns the position; a refusal gives the entry back. `Full` also
    /// while others queue, so that nobody is overtaken.
    #[inline]
    pub fn try_append(&self, entry: T) -> Result<u64, Refused<T>> {
        let bytes = entry.weight();
        match self.shared.limits.check_entry(bytes) {
            Ok(()) => self
                .enter_one(entry, bytes)
                .map_err(|(value, shut)| self.refuse(value, shut.into())),
            Err(reason) => Err(self.refuse(entry, reason)),
        }
    }

    /// Appends neighbours without waiting, all or none. Returns the position of the first.
    pub fn try_append_many(&self, entries: Vec<T>) -> Result<u64, Refused<Vec<T>>> {
        debug_assert!(!entries.is_empty(), "an empty batch has no position");
        let bytes = match self.shared.limits.check_batch(&entries) {
            Ok(bytes) => bytes,
            Err(reason) => return Err(self.refuse(entries, reason)),
        };
        self.enter(Entries::Many(entries), bytes)
            .map_err(|(value, shut)| self.refuse(value.into_vec(), shut.into()))
    }

    /// Appends, and queues if there is no room. `wake` is called once when the append leaves the
    /// queue other than by being cancelled; not at all if it need not queue.
    pub fn append_or_queue(
        &self,
        entries: Entries<T>,
        wake: Waker,
    ) -> Result<Claim<T>, Refused<Entries<T>>> {
        debug_assert!(!entries.is_empty(), "an empty batch has no position");
        let bytes = match self.shared.limits.check_batch(entries.as_slice()) {
            Ok(bytes) => bytes,
            Err(reason) => return Err(self.refuse(entries, reason)),
        };
        match self.enter(entries, bytes) {
            Ok(position) => Ok(Claim::Now(position)),
            Err((entries, Shut::Full)) => queue::join(&self.shared, entries, bytes, wake),
            Err((entries, Shut::Closed)) => Err(self.refuse(entries, Refusal::Closed)),
        }
    }

    /// Appends, and blocks this thread while there is no room: spins, yields once, then queues
    /// and sleeps. A wake ends the sleep as soon as the entries are in.
    pub fn append_blocking(
        &self,
        entries: Entries<T>,
        deadline: Option<Instant>,
        backpressure: &Backpressure,
    ) -> Result<u64, Refused<Entries<T>>> {
        let bytes = match self.shared.limits.check_batch(entries.as_slice()) {
            Ok(bytes) => bytes,
            Err(reason) => return Err(self.refuse(entries, reason)),
        };
        match self.enter_spinning(entries, bytes, deadline, backpressure) {
            Ok(position) => Ok(position),
            Err((value, Shut::Closed)) => Err(self.refuse(value, Refusal::Closed)),
            Err((value, Shut::Full)) => self.enter_sleeping(value, bytes, deadline, backpressure),
        }
    }

    /// Refuses an entry of so many bytes that waiting would not help, before anybody makes it.
    #[inline]
    pub fn check(&self, bytes: usize) -> Result<(), Refusal> {
        let checked = self.shared.limits.check_entry(bytes);
        checked.map_err(|reason| self.shared.refused(reason))
    }

    /// Refuses every later append, and those that queue. What is inside stays for the consumer.
    /// True for the first caller.
    pub fn close(&self) -> bool {
        self.shared.close()
    }

    /// Whether appends are refused for good.
    pub fn is_closed(&self) -> bool {
        self.shared.slots.word().is_closed()
    }

    /// Entries inside: an estimate, between 0 and the capacity.
    pub fn len(&self) -> usize {
        self.shared.len()
    }

    /// Whether nothing is inside; an estimate as well.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The next position to be claimed.
    pub fn claimed(&self) -> u64 {
        self.shared.slots.word().position()
    }

    /// The limits in force, with the capacity rounded up.
    pub fn limits(&self) -> Limits {
        self.shared.limits
    }

    /// What happened so far.
    pub fn statistics(&self) -> Statistics {
        self.shared.statistics()
    }

    /// A completion to put into an entry, counted in this ring's statistics, and its ticket.
    pub fn completion<V>(&self) -> (Completion<V>, Ticket<V>) {
        Tally::completion(&self.shared.tally)
    }

    /// Claims slots and leaves them unpublished, as a producer does that is interrupted there.
    #[cfg(test)]
    pub(super) fn claim_for_test(&self, count: u64) -> super::slot::Run<'_, T> {
        match self.shared.claim_behind_queue(count, 0) {
            Ok(run) => run,
            Err(shut) => panic!("no room for the test: {shut:?}"),
        }
    }

    #[inline]
    fn enter_one(&self, entry: T, bytes: usize) -> Result<u64, (T, Shut)> {
        match self.shared.claim_behind_queue(1, bytes) {
            Ok(mut run) => {
                let position = run.position();
                run.put(entry);
                drop(run);
                self.shared.rouse();
                Ok(position)
            }
            Err(shut) => Err((entry, shut)),
        }
    }

    fn enter(&self, entries: Entries<T>, bytes: usize) -> Result<u64, (Entries<T>, Shut)> {
        match self.shared.claim_behind_queue(entries.len() as u64, bytes) {
            Ok(run) => {
                let position = run.position();
                queue::fill(run, entries);
                self.shared.rouse();
                Ok(position)
            }
            Err(shut) => Err((entries, shut)),
        }
    }

    /// Tries at growing distances. Gives up at once when others queue: joining them is all that
    /// would help.
    fn enter_spinning(
        &self,
        entries: Entries<T>,
        bytes: usize,
        deadline: Option<Instant>,
        backpressure: &Backpressure,
    ) -> Result<u64, (Entries<T>, Shut)> {
        let mut refused = match self.enter(entries, bytes) {
            Err((value, Shut::Full)) => value,
            other => return other,
        };
        for spins in backpressure.spins() {
            if self.shared.queued() != 0 || deadline.is_some_and(|at| Instant::now() >= at) {
                return Err((refused, Shut::Full));
            }
            (0..spins).for_each(|_| breathe());
            refused = match self.enter(refused, bytes) {
                Err((value, Shut::Full)) => value,
                other => return other,
            };
        }
        thread::yield_now();
        self.enter(refused, bytes)
    }

    fn enter_sleeping(
        &self,
        entries: Entries<T>,
        bytes: usize,
        deadline: Option<Instant>,
        backpressure: &Backpressure,
    ) -> Result<u64, Refused<Entries<T>>> {
        let parker = std::sync::Arc::new(Parker::new());
        let wake: Waker = std::sync::Arc::clone(&parker) as Waker;
        let admission = match queue::join(&self.shared, entries, bytes, wake)? {
            Claim::Now(position) => return Ok(position),
            Claim::Later(admission) => admission,
        };
        let mut sleeps = backpressure.sleeps();
        let reason = loop {
            match admission.state() {
                AdmissionState::Admitted(position) => return Ok(position),
                AdmissionState::Closed => break Refusal::Closed,
                AdmissionState::Cancelled => break self.shared.refused(Refusal::TimedOut),
                AdmissionState::Waiting => {}
            }
            let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                // If this comes too late, the next look at the state finds the position.
                admission.cancel();
                continue;
            }
            let sleep = sleeps.next().unwrap_or_default();
            parker.park(Some(left.map_or(sleep, |left| left.min(sleep))));
        };
        Err(Refused {
            // Only we hold the admission, so what was given back is still there.
            value: admission
                .take_back()
                .unwrap_or_else(|| Entries::Many(Vec::new())),
            reason,
        })
    }

    #[cold]
    fn refuse<V>(&self, value: V, reason: Refusal) -> Refused<V> {
        Refused {
            value,
            reason: self.shared.refused(reason),
        }
    }
}
