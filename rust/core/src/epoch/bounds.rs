//! How much may be deferred at once, in items and in bytes, exactly.
//!
//! One word holds both counts and three flags, so that a reservation is one exchange and nobody
//! ever sees it half done:
//!
//! ```text
//! bit  63       62     61    60 .. 40   39 .. 0
//!      waiting  armed  shut  items      bytes
//! ```
//!
//! # Always true
//!
//! 1. Room is reserved before work is pushed and given back after it ran, so neither count is
//!    ever above its limit, not by one and not for a moment.
//! 2. `armed` is set by the reservation that finds it clear, and cleared only while there are no
//!    items: whoever sets it wakes the owner of the tick, and no item is left without a tick.
//! 3. Whoever sets `waiting` looks for room once more after that; whoever gives room back sees
//!    the flag in the same word. No wake is lost.

use crossbeam::utils::CachePadded;

use crate::sync::{AtomicU64, Mutex, Ordering, Waker, lock};

const BYTES_BITS: u32 = 40;
const BYTES_MASK: u64 = (1 << BYTES_BITS) - 1;
const ITEM: u64 = 1 << BYTES_BITS;
const SHUT: u64 = 1 << 61;
const ARMED: u64 = 1 << 62;
const WAITING: u64 = 1 << 63;

/// Most items that can be allowed.
pub const ITEMS_MAX: usize = (1 << 21) - 1;
/// Most bytes that can be allowed.
pub const BYTES_MAX: usize = BYTES_MASK as usize;

/// What is deferred now: items and their bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Load {
    /// Pieces of work, from reservation to the end of their run.
    pub items: usize,
    /// What they said they hold.
    pub bytes: usize,
}

impl Load {
    fn of(word: u64) -> Self {
        Self {
            items: ((word & (SHUT - 1)) >> BYTES_BITS) as usize,
            bytes: (word & BYTES_MASK) as usize,
        }
    }
}

/// Why there is no reservation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NoRoom {
    Full,
    Shut,
}

/// A reservation was made.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reserved {
    /// The owner of the tick must be woken.
    pub(super) must_arm: bool,
    pub(super) load: Load,
}

/// The limits and what is held of them.
pub(super) struct Bounds {
    word: CachePadded<AtomicU64>,
    peak_items: AtomicU64,
    peak_bytes: AtomicU64,
    limit: Load,
    waiting: Mutex<Vec<Waker>>,
}

impl Bounds {
    pub(super) fn new(limit: Load) -> Self {
        Self {
            word: CachePadded::new(AtomicU64::new(0)),
            peak_items: AtomicU64::new(0),
            peak_bytes: AtomicU64::new(0),
            limit,
            waiting: Mutex::new(Vec::new()),
        }
    }

    /// What is held now.
    #[inline]
    pub(super) fn load(&self) -> Load {
        // Acquire: partner is the Release in `release`; who sees work gone sees what it did.
        Load::of(self.word.load(Ordering::Acquire))
    }

    /// The most that was ever held at once.
    pub(super) fn peak(&self) -> Load {
        Load {
            items: self.peak_items.load(Ordering::Relaxed) as usize,
            bytes: self.peak_bytes.load(Ordering::Relaxed) as usize,
        }
    }

    /// Whether four fifths of a limit are held.
    #[inline]
    pub(super) fn is_near(&self, load: Load) -> bool {
        load.items * 5 >= self.limit.items * 4 || load.bytes * 5 >= self.limit.bytes * 4
    }

    /// Reserves one item of `bytes`.
    #[inline]
    pub(super) fn reserve(&self, bytes: usize) -> Result<Reserved, NoRoom> {
        let mut word = self.word.load(Ordering::Relaxed);
        loop {
            if word & SHUT != 0 {
                return Err(NoRoom::Shut);
            }
            let held = Load::of(word);
            let is_full = held.items >= self.limit.items
                || bytes > self.limit.bytes.saturating_sub(held.bytes);
            if is_full && !planted!("epoch_limit_unchecked") {
                return Err(NoRoom::Full);
            }
            let next = (word + ITEM + bytes as u64) | ARMED;
            // Acquire: partner is the Release in `release`. What was given back is gone.
            let swapped =
                self.word
                    .compare_exchange_weak(word, next, Ordering::Acquire, Ordering::Relaxed);
            match swapped {
                Ok(_) => {
                    let load = Load::of(next);
                    self.note_peak(load);
                    let must_arm = word & ARMED == 0;
                    return Ok(Reserved { must_arm, load });
                }
                Err(seen) => word = seen,
            }
        }
    }

    #[inline]
    fn note_peak(&self, load: Load) {
        for (peak, now) in [
            (&self.peak_items, load.items as u64),
            (&self.peak_bytes, load.bytes as u64),
        ] {
            if now > peak.load(Ordering::Relaxed) {
                peak.fetch_max(now, Ordering::Relaxed);
            }
        }
    }

    /// Gives one item of `bytes` back, and wakes those who wait for room.
    #[inline]
    pub(super) fn release(&self, bytes: usize) {
        // Release: partners are the Acquires in `reserve` and `load`.
        let before = self.word.fetch_sub(ITEM + bytes as u64, Ordering::Release);
        if before & WAITING != 0 && !planted!("epoch_waiter_unheard") {
            self.wake_waiting();
        }
    }

    #[cold]
    fn wake_waiting(&self) {
        let waiting = {
            let mut waiting = lock(&self.waiting);
            self.word.fetch_and(!WAITING, Ordering::Relaxed);
            std::mem::take(&mut *waiting)
        };
        for waker in waiting {
            waker.wake();
        }
    }

    /// Whether a reservation of `bytes` would not find it full.
    pub(super) fn would_answer(&self, bytes: usize) -> bool {
        let word = self.word.load(Ordering::Relaxed);
        let held = Load::of(word);
        let is_full =
            held.items >= self.limit.items || bytes > self.limit.bytes.saturating_sub(held.bytes);
        word & SHUT != 0 || !is_full || bytes > self.limit.bytes
    }

    /// Wakes `waker` once when room was given back. The caller looks for room after this.
    pub(super) fn wait(&self, waker: Waker) {
        let mut waiting = lock(&self.waiting);
        waiting.push(waker);
        self.word.fetch_or(WAITING, Ordering::Relaxed);
    }

    /// `waker` does not wait any more.
    pub(super) fn forget(&self, waker: &Waker) {
        lock(&self.waiting).retain(|waiting| !std::sync::Arc::ptr_eq(waiting, waker));
    }

    /// How many wait for room.
    #[cfg(all(test, not(loom)))]
    pub(super) fn waiters(&self) -> usize {
        lock(&self.waiting).len()
    }

    /// Takes no reservation from now on; those who wait for room are woken to hear it.
    pub(super) fn shut(&self) {
        // SeqCst: partner is `reopen`; see `Collector::enable`.
        self.word.fetch_or(SHUT, Ordering::SeqCst);
        self.wake_waiting();
    }

    /// Takes reservations again.
    pub(super) fn reopen(&self) {
        // SeqCst: partner is `shut`; see `Collector::enable`.
        self.word.fetch_and(!SHUT, Ordering::SeqCst);
    }

    /// The tick goes to sleep, unless something is deferred. Returns whether it may.
    pub(super) fn disarm_if_empty(&self) -> bool {
        let mut word = self.word.load(Ordering::Relaxed);
        while Load::of(word).items == 0 || planted!("epoch_tick_sleeps_early") {
            let swapped = self.word.compare_exchange_weak(
                word,
                word & !ARMED,
                Ordering::Relaxed,
                Ordering::Relaxed,
            );
            match swapped {
                Ok(_) => return true,
                Err(seen) => word = seen,
            }
        }
        false
    }
}
