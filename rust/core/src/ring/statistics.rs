//! What the ring counts. Nothing on the fast path: what can be told from the cursors is.

use crossbeam::utils::CachePadded;

use super::limits::Refusal;
use crate::sync::Count;

/// Counters off the fast path, away from the cursors.
#[derive(Debug, Default)]
pub(super) struct Counters(CachePadded<Fields>);

#[derive(Debug, Default)]
pub(super) struct Fields {
    pub(super) full: Count,
    pub(super) closed: Count,
    pub(super) too_large: Count,
    pub(super) timed_out: Count,
    pub(super) queued: Count,
    pub(super) cancelled: Count,
    pub(super) wakes: Count,
    pub(super) dropped: Count,
}

impl std::ops::Deref for Counters {
    type Target = Fields;

    fn deref(&self) -> &Fields {
        &self.0
    }
}

impl Fields {
    pub(super) fn refused(&self, reason: Refusal) {
        match reason {
            Refusal::Full => self.full.up(),
            Refusal::Closed => self.closed.up(),
            Refusal::TooLarge { .. } => self.too_large.up(),
            Refusal::TimedOut => self.timed_out.up(),
        }
    }
}

/// What happened in a ring so far. The numbers are read one after the other, not in one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Statistics {
    /// Entries that entered.
    pub appended: u64,
    /// Entries that were taken out and whose slots were given back.
    pub drained: u64,
    /// Entries inside.
    pub len: usize,
    /// Bytes claimed and not given back; 0 where the slots alone keep the limit.
    pub bytes: usize,
    /// Appends waiting for room now.
    pub waiting: usize,
    /// Appends refused for want of room, by a call that does not wait.
    pub refused_full: u64,
    /// Appends refused because the ring was closed.
    pub refused_closed: u64,
    /// Appends refused for a limit that waiting does not change.
    pub refused_too_large: u64,
    /// Appends whose deadline passed.
    pub refused_timed_out: u64,
    /// Appends that had to wait.
    pub queued: u64,
    /// Waiting appends that were cancelled.
    pub cancelled: u64,
    /// Times the consumer was woken.
    pub wakes: u64,
    /// Entries that were still inside when the consumer went away.
    pub dropped: u64,
    /// Completions of this ring that were dropped without an outcome.
    pub completions_dropped: u64,
    /// Outcomes that came after the first one and were ignored.
    pub outcomes_late: u64,
}
