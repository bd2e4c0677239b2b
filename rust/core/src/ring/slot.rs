//! The slots, the two cursors that share them out, and every unsafe line of the ring.
//!
//! A [`Run`] is the right to fill neighbouring slots, got by moving the claimed cursor with one
//! compare-and-swap. A [`Tap`] is the only reader and the only one who moves the released cursor.
//! [`Answer`] is a cell that is written once. Their users hold no pointers and write no unsafe.
//!
//! # Always true
//!
//! 1. `released <= claimed <= released + capacity`, as distances. So a position between the two
//!    owns its slot alone: no other such position maps to it.
//! 2. A slot of a claimed position is written by the holder of its run and by nobody else, until
//!    its stamp equals the position. From then until the position is released it belongs to the
//!    tap.
//! 3. A stamp equals a position only if that position was published. A fresh slot carries a stamp
//!    with bit 63 set, which is no position; an older stamp is a whole number of laps behind.
//! 4. Every claimed position is published: a run is filled before it is dropped.

use std::mem::MaybeUninit;

use crossbeam::utils::CachePadded;

use super::sequence::{CLOSED, ClaimWord, distance, step};
use crate::{
    Error, ErrorKind,
    sync::{Arc, AtomicU32, AtomicU64, Ordering, UnsafeCell},
};

/// Orders the payload before the stamp; partner: the acquire load in [`Slot::is_published`].
/// Killed by `loom::two_producers_against_the_consumer`.
#[inline]
fn publish() -> Ordering {
    if planted!("ring_release_relaxed") {
        Ordering::Relaxed
    } else {
        Ordering::Release
    }
}

/// Why a claim was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shut {
    Full,
    Closed,
}

/// How the released cursor is read before a claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Look {
    /// A load. May miss space that appears at this very moment; fit for callers that may be told
    /// "full" and leave.
    Glance,
    /// A read-modify-write that changes nothing. Either it sees the latest release, or that
    /// release sees everything its caller wrote before; fit for callers that will wait.
    Sure,
}

struct Slot<T> {
    stamp: AtomicU64,
    value: UnsafeCell<MaybeUninit<T>>,
}

// SAFETY: by invariant 2 the cell has one owner at a time, and ownership passes from thread to
// thread by the stamp and the released cursor; `T: Send` lets the value make that journey.
unsafe impl<T: Send> Sync for Slot<T> {}

impl<T> Slot<T> {
    fn vacant() -> Self {
        Self {
            stamp: AtomicU64::new(u64::MAX),
            value: UnsafeCell::new(MaybeUninit::uninit()),
        }
    }

    #[inline]
    fn is_published(&self, position: u64) -> bool {
        // Acquire: partner is the store by [`publish`] in `Run::put`; what was written before the
        // stamp is seen after it.
        self.stamp.load(Ordering::Acquire) == position
    }
}

fn no_memory(capacity: usize) -> Error {
    Error::new(
        ErrorKind::TooLarge,
        "no memory for a ring of this capacity; take a smaller one",
    )
    .with_text("limit", "capacity")
    .with("asked", capacity as u64)
}

/// The slots and the cursors over them.
pub(super) struct Slots<T> {
    /// Moved by producers.
    claimed: CachePadded<AtomicU64>,
    /// Moved by the tap.
    released: CachePadded<AtomicU64>,
    cells: Box<[Slot<T>]>,
    mask: u64,
}

impl<T> Slots<T> {
    /// Makes `capacity` vacant slots, a power of two and at least 2, and their only tap. `origin`
    /// is the first position.
    pub(super) fn new(capacity: usize, origin: u64) -> crate::Result<(Arc<Self>, Tap<T>)> {
        debug_assert!(capacity.is_power_of_two() && capacity >= 2);
        let origin = step(origin, 0);
        // A program chooses the number, so that there is no memory for it is an error.
        let mut cells = Vec::new();
        let reserved = cells.try_reserve_exact(capacity);
        reserved.map_err(|_| no_memory(capacity))?;
        cells.extend((0..capacity).map(|_| Slot::vacant()));
        let slots = Arc::new(Self {
            claimed: CachePadded::new(AtomicU64::new(origin)),
            released: CachePadded::new(AtomicU64::new(origin)),
            cells: cells.into_boxed_slice(),
            mask: capacity as u64 - 1,
        });
        let tap = Tap {
            slots: Arc::clone(&slots),
            next: origin,
            released: origin,
        };
        Ok((slots, tap))
    }

    /// The claimed cursor and the closed mark, now.
    #[inline]
    pub(super) fn word(&self) -> ClaimWord {
        // Acquire: partner is the release half of `close`, for callers that then ask what the
        // closing thread did before.
        ClaimWord(self.claimed.load(Ordering::Acquire))
    }

    /// The released cursor, now.
    #[inline]
    pub(super) fn released(&self, look: Look) -> u64 {
        match look {
            // The planted bug joins the queue without looking again.
            // Killed by `loom::a_queued_append_is_woken_by_released_slots`.
            Look::Sure if planted!("ring_queue_without_recheck") => {
                self.released.load(Ordering::Acquire)
            }
            // Acquire: partner is the release half of `Tap::release`; the tap has moved the old
            // payload out before we overwrite it.
            Look::Glance => self.released.load(Ordering::Acquire),
            // AcqRel: partner is the swap in `Tap::release`. Both are read-modify-writes of one
            // word, so one of them comes second and sees what the other thread did before.
            Look::Sure => self.released.fetch_add(0, Ordering::AcqRel),
        }
    }

    /// Whether a claim of `count` slots would be refused now.
    #[inline]
    pub(super) fn refuses(&self, count: u64, look: Look) -> Option<Shut> {
        self.refuses_at(self.word(), count, look)
    }

    #[inline]
    fn refuses_at(&self, word: ClaimWord, count: u64, look: Look) -> Option<Shut> {
        if word.is_closed() {
            return Some(Shut::Closed);
        }
        // Negative when `word` is stale and the cursor has passed it: then there is room as far
        // as we can tell, and the compare-and-swap fails and brings the present word.
        let used = distance(self.released(look), word.position());
        (used + count.cast_signed() > self.capacity().cast_signed()).then_some(Shut::Full)
    }

    /// Claims `count` neighbouring slots, all or none.
    #[inline]
    pub(super) fn claim(&self, count: u64, look: Look) -> Result<Run<'_, T>, Shut> {
        let mut word = ClaimWord(self.claimed.load(Ordering::Relaxed));
        let mut first_look = true;
        loop {
            match self.refuses_at(word, count, look) {
                // The planted bug looks at the closed mark once and then insists.
                // Killed by `tests::crowd::close_storm` and `loom::append_against_close_and_drain`.
                Some(Shut::Closed) if planted!("ring_close_loses") && !first_look => {}
                Some(shut) => return Err(shut),
                None => {}
            }
            if planted!("ring_close_loses") {
                first_look = false;
                crate::sync::thread::yield_now();
            }
            let next = word.advanced(count);
            // Acquire on success: partner is the read-modify-write in `Tap::look_ahead`; whoever
            // claims after it sees the announcement made before it. The slot itself was acquired
            // with the released cursor.
            match self.claimed.compare_exchange_weak(
                word.0,
                next.0,
                Ordering::Acquire,
                Ordering::Relaxed,
            ) {
                Ok(_) => {
                    return Ok(Run {
                        slots: self,
                        next: word.position(),
                        left: count,
                    });
                }
                Err(present) => word = ClaimWord(present),
            }
        }
    }

    /// Sets the closed mark and returns the word before.
    pub(super) fn close(&self) -> ClaimWord {
        // AcqRel: release pairs with `word` and `look_ahead`, acquire with `look_ahead`, as for a
        // claim: either the consumer sees the mark or we see its announcement.
        ClaimWord(self.claimed.fetch_or(CLOSED, Ordering::AcqRel))
    }

    #[inline]
    pub(super) fn capacity(&self) -> u64 {
        self.mask + 1
    }

    #[inline]
    fn slot(&self, position: u64) -> &Slot<T> {
        let index = (position & self.mask) as usize;
        debug_assert!(index < self.cells.len());
        // SAFETY: `mask` is `cells.len() - 1` and the length is a power of two (`Slots::new`), so
        // the masked index is in bounds.
        unsafe { self.cells.get_unchecked(index) }
    }
}

/// The right to fill neighbouring slots that were claimed together.
#[must_use = "a claimed slot that is never filled stops the consumer for good"]
pub(super) struct Run<'a, T> {
    slots: &'a Slots<T>,
    next: u64,
    left: u64,
}

impl<T> Run<'_, T> {
    /// The next position to be filled.
    #[inline]
    pub(super) fn position(&self) -> u64 {
        self.next
    }

    /// Moves one entry into the next slot and makes it visible.
    #[inline]
    pub(super) fn put(&mut self, value: T) {
        debug_assert!(
            self.left > 0,
            "a run is filled with as many entries as it claimed"
        );
        if self.left == 0 {
            return;
        }
        let slot = self.slots.slot(self.next);
        slot.value.with_mut(|cell| {
            // SAFETY: invariant 2: the position is claimed by this run and not published yet, so
            // nobody else touches the cell; the old value was moved out before its release, which
            // `Slots::claim` acquired. `Slots::claim` alone makes runs, each position once.
            unsafe { (*cell).write(value) };
        });
        slot.stamp.store(self.next, publish());
        self.next = step(self.next, 1);
        self.left -= 1;
    }
}

impl<T> Drop for Run<'_, T> {
    #[inline]
    fn drop(&mut self) {
        debug_assert!(self.left == 0, "a run was dropped with unfilled slots");
    }
}

/// What lies at the claimed cursor, looked at with a read-modify-write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ahead {
    /// The next entry can be taken.
    Published,
    /// The next entry is claimed and on its way.
    Claimed,
    /// Nothing was claimed; later claims see what the caller did before.
    Nothing,
    /// Nothing was claimed and nothing ever will be.
    End,
}

/// The only reader of the slots.
pub(super) struct Tap<T> {
    slots: Arc<Slots<T>>,
    /// The next position to be taken.
    next: u64,
    /// What the shared cursor says; only this tap moves it.
    released: u64,
}

impl<T> Tap<T> {
    #[inline]
    pub(super) fn position(&self) -> u64 {
        self.next
    }

    /// Whether the next `count` entries are all published.
    pub(super) fn is_published(&self, count: u64) -> bool {
        // Slots taken and not yet released are not claimed again, so a run cannot reach past them.
        let held = distance(self.released, self.next).cast_unsigned();
        count <= self.slots.capacity() - held
            && (0..count)
                .rev()
                .map(|ahead| step(self.next, ahead))
                .all(|position| self.slots.slot(position).is_published(position))
    }

    /// The next entry, left where it is.
    #[inline]
    pub(super) fn peek(&mut self) -> Option<&T> {
        let slot = self.slots.slot(self.next);
        slot.is_published(self.next).then(|| {
            slot.value.with(|cell| {
                // SAFETY: the stamp says published at our position, so the value is initialised
                // and the slot is the tap's (invariant 2). The reference borrows the only tap
                // mutably, so it is gone before `take` or `release` can be called.
                unsafe { (*cell).assume_init_ref() }
            })
        })
    }

    /// Moves the next entry out. Its slot stays ours until `release`.
    #[inline]
    pub(super) fn take(&mut self) -> Option<T> {
        let slot = self.slots.slot(self.next);
        if !slot.is_published(self.next) {
            return None;
        }
        let value = slot.value.with_mut(|cell| {
            // SAFETY: as in `peek`; the value is read once, because `next` moves past it here and
            // never comes back to this position.
            unsafe { (*cell).assume_init_read() }
        });
        self.next = step(self.next, 1);
        Some(value)
    }

    /// Gives every taken slot back. Says whether there was any.
    #[inline]
    pub(super) fn release(&mut self) -> bool {
        if self.released == self.next {
            return false;
        }
        self.released = self.next;
        // AcqRel: release pairs with both reads in `Slots::released`; acquire with `Look::Sure`,
        // so that an append that queued up before we came is seen by our caller.
        self.slots.released.swap(self.next, Ordering::AcqRel);
        true
    }

    /// Looks past the taken entries for the last time before a sleep.
    pub(super) fn look_ahead(&self) -> Ahead {
        // AcqRel: partner is the compare-and-swap of `Slots::claim` and the mark of `close`. Both
        // sides modify one word, so one comes second: either we see the claim, or the claimant
        // sees what we announced before this line.
        let word = ClaimWord(self.slots.claimed.fetch_add(0, Ordering::AcqRel));
        if word.position() == self.next {
            return if word.is_closed() {
                Ahead::End
            } else {
                Ahead::Nothing
            };
        }
        if self.slots.slot(self.next).is_published(self.next) {
            Ahead::Published
        } else {
            Ahead::Claimed
        }
    }
}

/// Nobody has offered a value.
const OPEN: u32 = 0;
/// Somebody is about to write the value.
const TAKEN: u32 = 1;
/// The value is there for good.
const SET: u32 = 2;
/// Somebody asked to be told.
const WATCHED: u32 = 4;

/// A cell that is written once and then read by everybody.
pub(super) struct Answer<V> {
    state: AtomicU32,
    value: UnsafeCell<Option<V>>,
}

// SAFETY: the value is written by the one thread that turned `OPEN` into `TAKEN`, before `SET`,
// and only read afterwards; it crosses threads (`Send`) and is then shared (`Sync`).
unsafe impl<V: Send + Sync> Sync for Answer<V> {}

impl<V> Answer<V> {
    pub(super) fn new() -> Self {
        Self {
            state: AtomicU32::new(OPEN),
            value: UnsafeCell::new(None),
        }
    }

    /// Offers a value. The first offer wins: `Ok` says whether somebody asked to be told. A later
    /// one is given back.
    #[inline]
    pub(super) fn set(&self, value: V) -> Result<bool, V> {
        // Relaxed: this only elects the writer; the value is ordered by the next line.
        if self.state.fetch_or(TAKEN, Ordering::Relaxed) & TAKEN != 0 {
            return Err(value);
        }
        self.value.with_mut(|cell| {
            // SAFETY: exactly one caller sees `TAKEN` clear, and readers wait for `SET`.
            unsafe { *cell = Some(value) };
        });
        // AcqRel: release pairs with `get`; acquire with `watch`, so that whoever watched before
        // us is seen.
        Ok(self.state.fetch_or(SET, Ordering::AcqRel) & WATCHED != 0)
    }

    /// The value, once it is there.
    #[inline]
    pub(super) fn get(&self) -> Option<&V> {
        // Acquire: partner is the second step of `set`.
        if self.state.load(Ordering::Acquire) & SET == 0 {
            return None;
        }
        self.value.with(|cell| {
            // SAFETY: after `SET` nobody writes any more, so shared reads are free of races.
            unsafe { (*cell).as_ref() }
        })
    }

    /// Asks to be told; false if the value is already there and nobody will tell.
    pub(super) fn watch(&self) -> bool {
        // AcqRel: partner is the second step of `set`. Both modify one word: either we see `SET`,
        // or the setter sees `WATCHED` and what we did before.
        self.state.fetch_or(WATCHED, Ordering::AcqRel) & SET == 0
    }
}
