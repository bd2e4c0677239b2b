//! What was done, counted when it was done.

use std::sync::Arc;
use std::time::Duration;

use super::{bounds::Load, work::Kind};
use crate::{
    error::Error,
    sync::{AtomicU64, Count, Ordering},
};

/// The oldest pin that is held.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OldestPin {
    /// What its holder called it.
    pub label: Option<Arc<str>>,
    /// The epoch it saw.
    pub epoch: u64,
    /// How long it has been held; for a participant's pin, how long it has been seen held.
    pub age: Duration,
}

/// Hears of what nobody waits for. Called on whatever thread collects; must not block.
pub trait Observer: Send + Sync {
    /// A handler failed or panicked.
    fn failed(&self, kind: Kind, error: &Error);
    /// A pin has been held for longer than `stall_after`.
    fn stalled(&self, pin: &OldestPin);
}

/// A snapshot.
#[derive(Debug, Clone)]
pub struct Statistics {
    /// Pieces of work taken in.
    pub enqueued: u64,
    /// Pieces whose handler returned with success, inline ones not included.
    pub processed: u64,
    /// Pieces whose handler failed or panicked.
    pub failed: u64,
    /// Pieces given back because there was no room, or because of `disable` or `close`.
    pub refused: u64,
    /// Pieces run by their caller, because there was no room or the collector is disabled.
    pub ran_inline: u64,
    /// Batches run.
    pub batches: u64,
    /// Pieces in the largest batch.
    pub batch_items_max: u64,
    /// How long all batches ran.
    pub batch_time: Duration,
    /// How long the longest ran.
    pub batch_time_max: Duration,
    /// What is deferred now.
    pub queue: Load,
    /// The most that was deferred at once.
    pub peak: Load,
    /// Whether four fifths of a limit are held now.
    pub is_near_capacity: bool,
    /// The global epoch.
    pub epoch: u64,
    /// The oldest epoch a live pin may have seen: work sealed before it may run.
    pub safe_epoch: u64,
    /// Pins held now.
    pub pins: usize,
    /// The oldest of them.
    pub oldest_pin: Option<OldestPin>,
    /// Pieces that ran, deferred or inline, failures included, by kind as in [`Kind::ALL`].
    pub done_by_kind: [u64; 6],
    /// The last failure.
    pub last_failure: Option<Error>,
}

/// The counters behind it.
#[derive(Default)]
pub(super) struct Counters {
    pub(super) enqueued: Count,
    pub(super) processed: Count,
    pub(super) failed: Count,
    pub(super) refused: Count,
    pub(super) ran_inline: Count,
    pub(super) batches: Count,
    pub(super) batch_time_ns: Count,
    pub(super) batch_items_max: Highest,
    pub(super) batch_time_max_ns: Highest,
    pub(super) by_kind: [Count; 6],
}

impl Counters {
    pub(super) fn batch(&self, items: usize, took: Duration) {
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.batches.up();
        self.batch_time_ns.add(nanos);
        self.batch_items_max.see(items as u64);
        self.batch_time_max_ns.see(nanos);
    }
}

/// The highest number seen.
pub(super) struct Highest(AtomicU64);

impl Default for Highest {
    fn default() -> Self {
        Self(AtomicU64::new(0))
    }
}

impl Highest {
    fn see(&self, value: u64) {
        self.0.fetch_max(value, Ordering::Relaxed);
    }

    pub(super) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
