//! What the loop counts about itself, and the snapshot of it.

use std::{collections::VecDeque, sync::Mutex, time::Duration};

use super::{
    request::{Id, Kind},
    sink::Whereabouts,
};
use crate::{
    clock::Mono,
    metrics::{Distribution, Histogram},
    sync::{Count, lock},
};

/// Slow operations kept for whoever asks.
const EVENTS_MAX: usize = 128;

/// An operation that took longer than the settings call slow, or still does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlowOperation {
    /// Which submission.
    pub id: Id,
    /// Its kind.
    pub kind: Kind,
    /// Which file it is about, as far as its sink knows.
    pub place: Whereabouts,
    /// How long the backend had it when this was noted.
    pub age: Duration,
    /// It is over; before that it was noted once as under way.
    pub over: bool,
    /// When this was noted.
    pub at: Mono,
}

/// Plain numbers, taken at one moment. See [`Handle::statistics`](super::Handle::statistics).
#[derive(Debug, Clone, Default)]
pub struct Statistics {
    /// Accepted and not yet over: waiting for admission or in flight.
    pub pending: u64,
    /// Of these, with the backend as of the last turn.
    pub in_flight: u64,
    /// Accepted.
    pub submitted: u64,
    /// Over, with success or an error of the operation.
    pub completed: u64,
    /// Of these, with an error.
    pub failed: u64,
    /// Submissions to the kernel repeated because it said "interrupted" or "try again".
    pub retried: u64,
    /// Answers of the kernel that moved less than was asked for.
    pub short: u64,
    /// Requests taken back before the kernel knew them, or between two submissions.
    pub cancelled_before: u64,
    /// Cancels that stopped the operation.
    pub cancelled_stopped: u64,
    /// Cancels that came too late: the operation was answered otherwise.
    pub cancelled_late: u64,
    /// Waiters answered with a timeout.
    pub timed_out: u64,
    /// Requests whose waiter lost interest.
    pub orphaned: u64,
    /// Waiters answered because the engine gave up waiting for the kernel.
    pub abandoned: u64,
    /// Reads answered from the page cache on the caller's own thread.
    pub cached_hits: u64,
    /// Such reads that found the page cache without them.
    pub cached_misses: u64,
    /// System calls that entered the ring.
    pub enters: u64,
    /// Times a sleeping loop was woken.
    pub wakes_rung: u64,
    /// Wakes that found the loop awake or woken already.
    pub wakes_coalesced: u64,
    /// Times completions found no room in the kernel's queue.
    pub overflows: u64,
    /// Requests left behind for good because the kernel did not answer.
    pub leaked_requests: u64,
    /// Bytes of their buffers.
    pub leaked_bytes: u64,
    /// Storage operations under way for longer than the settings call slow.
    pub slow_now: u64,
    /// Slow storage operations so far.
    pub slow: u64,
    /// Age of the oldest storage operation in flight.
    pub oldest: Duration,
    /// Time between submission and admission, by kind.
    pub queue_wait: Vec<(Kind, Distribution)>,
    /// Time between admission and answer, by kind.
    pub device_time: Vec<(Kind, Distribution)>,
}

/// See the module.
#[derive(Default)]
pub(super) struct Metrics {
    pub submitted: Count,
    pub completed: Count,
    pub failed: Count,
    pub cancelled_before: Count,
    pub cancelled_stopped: Count,
    pub cancelled_late: Count,
    pub timed_out: Count,
    pub orphaned: Count,
    pub abandoned: Count,
    pub cached_hits: Count,
    pub cached_misses: Count,
    pub leaked_requests: Count,
    pub leaked_bytes: Count,
    pub slow: Count,
    queue_wait: [Histogram; Kind::ALL.len()],
    device_time: [Histogram; Kind::ALL.len()],
    /// What only the loop's thread knows, as of its last turn.
    pub now: Mutex<Now>,
    events: Mutex<VecDeque<SlowOperation>>,
}

/// As of the last turn.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Now {
    pub in_flight: u64,
    pub slow: u64,
    /// Since when the oldest storage operation has been in flight.
    pub oldest: Option<Mono>,
    pub backend: crate::io::Effort,
}

impl Metrics {
    pub(super) fn on_admitted(&self, kind: Kind, waited: Duration) {
        self.queue_wait[kind as usize].record(waited);
    }

    pub(super) fn on_answered(&self, kind: Kind, took: Duration) {
        self.device_time[kind as usize].record(took);
    }

    pub(super) fn note(&self, event: SlowOperation) {
        let mut events = lock(&self.events);
        if events.len() == EVENTS_MAX {
            events.pop_front();
        }
        events.push_back(event);
    }

    /// Hands out what was noted since the last call.
    pub(super) fn take_events(&self) -> Vec<SlowOperation> {
        lock(&self.events).drain(..).collect()
    }

    pub(super) fn snapshot(&self, pending: u64, now: Mono) -> Statistics {
        let seen = *lock(&self.now);
        let by_kind = |histograms: &[Histogram]| {
            let each = Kind::ALL.iter().zip(histograms);
            each.map(|(kind, one)| (*kind, one.snapshot())).collect()
        };
        Statistics {
            pending,
            in_flight: seen.in_flight.min(pending),
            submitted: self.submitted.get(),
            completed: self.completed.get(),
            failed: self.failed.get(),
            retried: seen.backend.retried,
            short: seen.backend.short,
            cancelled_before: self.cancelled_before.get(),
            cancelled_stopped: self.cancelled_stopped.get(),
            cancelled_late: self.cancelled_late.get(),
            timed_out: self.timed_out.get(),
            orphaned: self.orphaned.get(),
            abandoned: self.abandoned.get(),
            cached_hits: self.cached_hits.get(),
            cached_misses: self.cached_misses.get(),
            enters: seen.backend.enters,
            wakes_rung: seen.backend.wakes_rung,
            wakes_coalesced: seen.backend.wakes_coalesced,
            overflows: seen.backend.overflows,
            leaked_requests: self.leaked_requests.get(),
            leaked_bytes: self.leaked_bytes.get(),
            slow_now: seen.slow,
            slow: self.slow.get(),
            oldest: seen.oldest.map_or(Duration::ZERO, |since| now.since(since)),
            queue_wait: by_kind(&self.queue_wait),
            device_time: by_kind(&self.device_time),
        }
    }
}
