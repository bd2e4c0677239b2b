//! What both ends hold: slots, the byte count, the queue, and the consumer's bed.
//!
//! The way in has two steps, bytes and then slots. Bytes are reserved with one compare-and-swap
//! that never exceeds the limit. If the slots are gone by then, the bytes are given back, and as
//! that makes room, whoever queues is looked at.

use crossbeam::utils::CachePadded;

use super::{
    completion::Tally,
    limits::{Limits, Refusal, Weigh},
    queue::{Left, Queue},
    sequence::distance,
    slot::{Look, Run, Shut, Slots, Tap},
    statistics::{Counters, Statistics},
};
use crate::sync::{Arc, AtomicBool, AtomicUsize, Mutex, Ordering, Waker, lock};

impl From<Shut> for Refusal {
    fn from(shut: Shut) -> Self {
        match shut {
            Shut::Full => Self::Full,
            Shut::Closed => Self::Closed,
        }
    }
}

/// Flags that producers read at every append and that change rarely.
struct Flags {
    /// How many appends queue.
    queued: AtomicUsize,
    /// The consumer sleeps, or is about to.
    sleeping: AtomicBool,
}

pub(super) struct Shared<T> {
    pub(super) slots: Arc<Slots<T>>,
    pub(super) limits: Limits,
    pub(super) counters: Counters,
    pub(super) tally: std::sync::Arc<Tally>,
    pub(super) queue: Mutex<Queue<T>>,
    /// First position of this ring.
    origin: u64,
    count_bytes: bool,
    /// Bytes claimed and not given back.
    bytes: CachePadded<AtomicUsize>,
    flags: CachePadded<Flags>,
    wake: Mutex<Option<Waker>>,
}

impl<T: Weigh + Send> Shared<T> {
    /// `limits` have been checked.
    pub(super) fn new(limits: Limits, origin: u64) -> crate::Result<(Arc<Self>, Tap<T>)> {
        let (slots, tap) = Slots::new(limits.capacity, origin)?;
        let shared = Self {
            slots,
            limits,
            counters: Counters::default(),
            tally: std::sync::Arc::default(),
            queue: Mutex::new(Queue::new()),
            origin: tap.position(),
            count_bytes: limits.count_bytes(),
            bytes: CachePadded::new(AtomicUsize::new(0)),
            flags: CachePadded::new(Flags {
                queued: AtomicUsize::new(0),
                sleeping: AtomicBool::new(false),
            }),
            wake: Mutex::new(None),
        };
        Ok((Arc::new(shared), tap))
    }

    /// Whether bytes are counted one by one.
    #[inline]
    pub(super) fn counts_bytes(&self) -> bool {
        self.count_bytes
    }

    /// Claims room for `count` entries of `bytes` together, ahead of nobody who queues.
    #[inline]
    pub(super) fn claim_behind_queue(&self, count: u64, bytes: usize) -> Result<Run<'_, T>, Shut> {
        // Killed by `tests::queue::nobody_overtakes_the_queue`.
        if self.queued() != 0 && !planted!("ring_overtake") {
            return Err(if self.slots.word().is_closed() {
                Shut::Closed
            } else {
                Shut::Full
            });
        }
        if !self.count_bytes {
            return self.slots.claim(count, Look::Glance);
        }
        self.claim_counted(count, bytes, Look::Glance)
            .map_err(|(shut, undone)| {
                // Killed by `loom::reserved_bytes_given_back_let_the_queue_in`.
                if undone && !planted!("ring_undo_is_silent") {
                    self.admit_queued();
                }
                shut
            })
    }

    /// Claims room with a sure look; the caller holds the queue and is its head.
    pub(super) fn claim_as_head(&self, count: u64, bytes: usize) -> Result<Run<'_, T>, Shut> {
        if self.count_bytes {
            // Bytes that we reserve and give back can have been missed by nobody but other
            // appends, and those look again once they hold the queue.
            self.claim_counted(count, bytes, Look::Sure)
                .map_err(|(shut, _)| shut)
        } else {
            self.slots.claim(count, Look::Sure)
        }
    }

    /// On refusal also says whether bytes were reserved and given back.
    #[inline]
    fn claim_counted(
        &self,
        count: u64,
        bytes: usize,
        look: Look,
    ) -> Result<Run<'_, T>, (Shut, bool)> {
        // Slots first, so that a ring that is short of slots never touches the byte count.
        if let Some(shut) = self.slots.refuses(count, look) {
            return Err((shut, false));
        }
        if !self.reserve(bytes, look) {
            return Err((Shut::Full, false));
        }
        self.slots.claim(count, look).map_err(|shut| {
            // AcqRel: partner is `Look::Sure` in `reserve`, as for the consumer's `give_back`.
            self.bytes.fetch_sub(bytes, Ordering::AcqRel);
            (shut, true)
        })
    }

    #[inline]
    fn reserve(&self, bytes: usize, look: Look) -> bool {
        let mut used = match look {
            Look::Glance => self.bytes.load(Ordering::Relaxed),
            // AcqRel: partner is `give_back`. Both modify one word: either we see the bytes, or
            // the giver sees that we queue.
            Look::Sure => self.bytes.fetch_add(0, Ordering::AcqRel),
        };
        loop {
            let Some(next) = used
                .checked_add(bytes)
                .filter(|next| *next <= self.limits.capacity_bytes)
            else {
                return false;
            };
            // Relaxed: the count guards a number, not memory; as a read-modify-write it passes on
            // what a sure look released.
            match self
                .bytes
                .compare_exchange_weak(used, next, Ordering::Relaxed, Ordering::Relaxed)
            {
                Ok(_) => return true,
                Err(present) => used = present,
            }
        }
    }

    /// Gives bytes back without looking at the queue.
    #[inline]
    pub(super) fn give_back(&self, bytes: usize) {
        if self.count_bytes && bytes != 0 {
            // AcqRel: partner is `Look::Sure` in `reserve`.
            let before = self.bytes.fetch_sub(bytes, Ordering::AcqRel);
            debug_assert!(before >= bytes, "more bytes given back than were claimed");
        }
    }

    /// How many appends queue.
    #[inline]
    pub(super) fn queued(&self) -> usize {
        // Relaxed: a caller that must not miss a queued append has come second on a word that
        // the queued one modified first, and so sees the store in `set_queued`.
        self.flags.queued.load(Ordering::Relaxed)
    }

    /// Says how many appends queue. Only under the queue's lock.
    pub(super) fn set_queued(&self, count: usize) {
        self.flags.queued.store(count, Ordering::Relaxed);
    }

    /// Room has appeared: lets in who waits for it.
    #[inline]
    pub(super) fn admit_queued(&self) {
        if self.queued() != 0 {
            self.admit_queued_slow();
        }
    }

    #[cold]
    fn admit_queued_slow(&self) {
        let told = {
            let mut queue = lock(&self.queue);
            queue.admit(self)
        };
        self.tell(&told);
    }

    /// Wakes appends that left the queue, and the consumer if entries came in with them.
    pub(super) fn tell(&self, left: &[Left]) {
        if !left.is_empty() {
            self.rouse();
        }
        left.iter().for_each(Left::wake);
    }

    /// Wakes the consumer if it announced that it sleeps. Called after every publish.
    #[inline]
    pub(super) fn rouse(&self) {
        // Relaxed: the claim before was a read-modify-write of the word on which the consumer
        // took its last look; if ours came second, this load sees the announcement.
        if self.flags.sleeping.load(Ordering::Relaxed) {
            self.rouse_slow();
        }
    }

    #[cold]
    fn rouse_slow(&self) {
        // Relaxed: this elects one waker; the wake itself orders what the sleeper sees.
        if self.flags.sleeping.swap(false, Ordering::Relaxed) {
            self.counters.wakes.up();
            let wake = lock(&self.wake).clone();
            if let Some(wake) = wake {
                wake.wake();
            }
        }
    }

    /// Says that the consumer sleeps, or that it does not.
    pub(super) fn set_sleeping(&self, sleeping: bool) {
        // Relaxed: released to claimants by the last look that follows. A swap, because every
        // change of this flag is one: then each sees the one before, for loom as for the machine.
        self.flags.sleeping.swap(sleeping, Ordering::Relaxed);
    }

    pub(super) fn set_wake(&self, wake: Option<Waker>) {
        let old = std::mem::replace(&mut *lock(&self.wake), wake);
        drop(old);
    }

    /// Refuses every later claim and everybody who queues. True for the first caller.
    pub(super) fn close(&self) -> bool {
        if self.slots.close().is_closed() {
            return false;
        }
        let left = lock(&self.queue).refuse_all(self);
        left.iter().for_each(Left::wake);
        self.rouse();
        true
    }

    /// Entries claimed and not given back; an estimate while others work.
    pub(super) fn len(&self) -> usize {
        // `released` is read first: the claimed cursor can only have moved further since.
        let released = self.slots.released(Look::Glance);
        let used = distance(released, self.slots.word().position());
        (used.max(0).cast_unsigned()).min(self.slots.capacity()) as usize
    }

    pub(super) fn statistics(&self) -> Statistics {
        let released = self.slots.released(Look::Glance);
        let claimed = self.slots.word().position();
        let counters = &self.counters;
        Statistics {
            appended: distance(self.origin, claimed).cast_unsigned(),
            drained: distance(self.origin, released).cast_unsigned(),
            len: self.len(),
            bytes: self.bytes.load(Ordering::Relaxed),
            waiting: self.queued(),
            refused_full: counters.full.get(),
            refused_closed: counters.closed.get(),
            refused_too_large: counters.too_large.get(),
            refused_timed_out: counters.timed_out.get(),
            queued: counters.queued.get(),
            cancelled: counters.cancelled.get(),
            wakes: counters.wakes.get(),
            dropped: counters.dropped.get(),
            completions_dropped: self.tally.dropped(),
            outcomes_late: self.tally.late(),
        }
    }

    /// Counts a refusal and passes it on.
    #[cold]
    pub(super) fn refused(&self, reason: Refusal) -> Refusal {
        self.counters.refused(reason);
        reason
    }
}
