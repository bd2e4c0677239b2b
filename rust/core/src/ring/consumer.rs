//! The consumer's end: take in claim order, give back, and sleep without missing a claim.
//!
//! An idle consumer sleeps like this; whatever ends its sleep is its own business:
//!
//! ```text
//! loop {
//!     drain, release
//!     if is_finished            leave
//!     match announce
//!         Awake                 go on
//!         Nap                   sleep until woken, for a millisecond at most
//!         Sleep                 sleep until woken
//!     retract
//! }
//! ```

use std::time::Duration;

use super::{
    limits::{Limits, Weigh},
    shared::Shared,
    slot::{Ahead, Tap},
    statistics::Statistics,
};
use crate::{
    clock::Mono,
    sync::{Arc, Waker, thread},
};

/// How long the consumer may sleep, as far as the ring is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rest {
    /// Something is there, or the ring is closed: do not sleep.
    Awake,
    /// The next entry is claimed and not published: its producer was interrupted between the two.
    /// It will probably wake us, but it may have looked before we announced; sleep briefly.
    Nap,
    /// Nothing is there, and whoever claims next wakes us.
    Sleep,
}

/// The one end through which entries leave. It cannot be cloned; dropping it closes the ring and
/// drops what is inside.
pub struct Consumer<T: Weigh + Send> {
    shared: Arc<Shared<T>>,
    tap: Tap<T>,
    /// Bytes of the entries taken and not given back by `release`.
    held_bytes: usize,
    /// The claimed position that was found unpublished, and since when.
    stalled: Option<(u64, Mono)>,
}

impl<T: Weigh + Send> Consumer<T> {
    pub(super) fn new(shared: Arc<Shared<T>>, tap: Tap<T>) -> Self {
        Self {
            shared,
            tap,
            held_bytes: 0,
            stalled: None,
        }
    }

    /// The next entry, left where it is.
    #[inline]
    pub fn peek(&mut self) -> Option<&T> {
        self.tap.peek()
    }

    /// Takes the next entry, in claim order; stops at the first that is not published. Its slot
    /// and bytes stay claimed until they are released.
    #[inline]
    pub fn pop(&mut self) -> Option<T> {
        let entry = self.tap.take()?;
        if self.shared.counts_bytes() {
            self.held_bytes += entry.weight();
        }
        Some(entry)
    }

    /// Whether the next `count` entries are all there.
    pub fn is_published(&self, count: usize) -> bool {
        self.tap.is_published(count as u64)
    }

    /// Takes up to `max` entries, hands them to `each` and releases them. Returns how many.
    pub fn drain(&mut self, max: usize, mut each: impl FnMut(T)) -> usize {
        let mut count = 0;
        while count < max {
            let Some(entry) = self.pop() else { break };
            count += 1;
            each(entry);
        }
        self.release();
        count
    }

    /// Gives the slots and bytes of all taken entries back, then lets in who waits for room.
    #[inline]
    pub fn release(&mut self) {
        let bytes = std::mem::take(&mut self.held_bytes);
        self.shared.give_back(bytes);
        if self.tap.release() || bytes != 0 {
            self.shared.admit_queued();
        }
    }

    /// Gives the slots of all taken entries back, not their bytes: those are due later, through
    /// [`Self::release_bytes`].
    pub fn release_slots(&mut self) {
        debug_assert!(
            self.shared.limits.bytes_outlive_slots,
            "the limits must say that bytes outlive slots"
        );
        self.held_bytes = 0;
        if self.tap.release() {
            self.shared.admit_queued();
        }
    }

    /// Gives `bytes` back that were left out by [`Self::release_slots`].
    pub fn release_bytes(&mut self, bytes: usize) {
        self.shared.give_back(bytes);
        self.shared.admit_queued();
    }

    /// The next position to be taken.
    pub fn position(&self) -> u64 {
        self.tap.position()
    }

    /// How long the next entry has been claimed without being published, as far as this was
    /// asked before: the first question about a position starts its age at zero.
    pub fn stalled_claim_age(&mut self, now: Mono) -> Option<Duration> {
        let position = self.tap.position();
        let claimed = self.shared.slots.word().position();
        if claimed == position || self.tap.is_published(1) {
            self.stalled = None;
            return None;
        }
        match self.stalled {
            Some((seen, since)) if seen == position => Some(now.since(since)),
            _ => {
                self.stalled = Some((position, now));
                Some(Duration::ZERO)
            }
        }
    }

    /// Refuses every later append, and those that queue. True for the first caller.
    pub fn close(&self) -> bool {
        self.shared.close()
    }

    /// Where the entries end; known once the ring is closed.
    pub fn final_position(&self) -> Option<u64> {
        let word = self.shared.slots.word();
        word.is_closed().then(|| word.position())
    }

    /// Whether the ring is closed and everything that ever entered was taken.
    pub fn is_finished(&self) -> bool {
        self.final_position() == Some(self.tap.position())
    }

    /// Entries inside, taken ones included until they are released.
    pub fn len(&self) -> usize {
        self.shared.len()
    }

    /// Whether nothing is inside.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The limits in force, with the capacity rounded up.
    pub fn limits(&self) -> Limits {
        self.shared.limits
    }

    /// What happened so far.
    pub fn statistics(&self) -> Statistics {
        self.shared.statistics()
    }

    /// Sets what is called when something enters while the consumer sleeps.
    pub fn set_wake(&self, wake: Option<Waker>) {
        self.shared.set_wake(wake);
    }

    /// Says that the consumer is about to sleep and looks at the ring for the last time. After
    /// `Nap` or `Sleep`, whoever publishes or closes calls the waker once.
    #[must_use = "the answer says whether sleeping is safe"]
    pub fn announce(&mut self) -> Rest {
        self.shared.set_sleeping(true);
        // Killed by `loom::a_sleeping_consumer_is_woken`.
        if planted!("ring_park_without_recheck") {
            return Rest::Sleep;
        }
        match self.tap.look_ahead() {
            Ahead::Nothing => Rest::Sleep,
            Ahead::Claimed => Rest::Nap,
            Ahead::Published | Ahead::End => {
                self.retract();
                Rest::Awake
            }
        }
    }

    /// Says that the consumer is awake: nobody needs to call its waker.
    pub fn retract(&mut self) {
        self.shared.set_sleeping(false);
    }
}

impl<T: Weigh + Send> Drop for Consumer<T> {
    fn drop(&mut self) {
        self.shared.close();
        while !self.is_finished() {
            match self.tap.take() {
                Some(entry) => {
                    self.shared.counters.dropped.up();
                    drop(entry);
                }
                // Claimed, and its producer is about to publish it.
                None => thread::yield_now(),
            }
        }
        self.tap.release();
    }
}
