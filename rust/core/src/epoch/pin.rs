//! Pins, and the epoch up to which nobody can be looking any more.
//!
//! ```text
//! reader      load global e | store slot = e | FENCE | look at what is linked
//! retirer     unlink | push .... collector: pop | FENCE | load global s: the bag's epoch
//! collector   load global g | FENCE | look at every slot --> safe = min(g, pins seen)
//! ```
//!
//! A bag sealed with `s` runs once `s < safe`.
//!
//! A participant has a slot, which the collector looks at. Owned pins may be many, so they stand
//! in a list, in the order of their epochs: the oldest is the first, and whoever leaves knows
//! whether anything can have become safe by that.
//!
//! # Always true
//!
//! 1. A reader that still sees what a bag unlinked keeps it from running. If the reader's fence
//!    comes after the sealing fence, the reader sees it unlinked. If it comes before, the reader
//!    loaded the global epoch before the sealer did, so `e <= s`; and the collector, which saw
//!    `s < g`, has its fence after the sealing one, so it sees the slot at `e` and `safe <= e`.
//! 2. Safe once is safe for ever: a pin the collector missed has its fence after the
//!    collector's, and so after the sealing fence of every bag below `g`.
//! 3. A slot that is read as empty or as pinned anew is read with everything its holder did
//!    under the pin before (Release in `clear` and `publish`, Acquire in `safe`).
//! 4. The global epoch starts at 1 and only grows; a slot of 0 means "not pinned".
//!
//! The global epoch moves whether or not somebody is pinned; what a stalled pin holds back is the
//! safe epoch. A timer is never a reason.

use std::{cell::Cell, collections::BTreeMap, sync::Arc, time::Duration};

use crossbeam::utils::CachePadded;

use super::{statistics::OldestPin, work::Books};
use crate::{
    clock::Mono,
    sync::{AtomicU64, Mutex, Ordering, Queue, fence, lock},
};

const NOT_PINNED: u64 = 0;

/// Where one holder publishes its pin.
pub(super) struct Slot {
    /// The epoch it saw, or [`NOT_PINNED`].
    epoch: AtomicU64,
    /// How often it was pinned, so that one long pin is told from many short ones.
    turns: AtomicU64,
    label: Mutex<Option<Arc<str>>>,
}

impl Slot {
    fn new() -> Self {
        Self {
            epoch: AtomicU64::new(NOT_PINNED),
            turns: AtomicU64::new(0),
            label: Mutex::new(None),
        }
    }

    #[inline]
    fn publish(&self, epoch: u64) {
        // One writer: the holder. Relaxed: only tells turns apart.
        let turns = self.turns.load(Ordering::Relaxed);
        self.turns.store(turns.wrapping_add(1), Ordering::Relaxed);
        // Release: partner is the Acquire in `safe`; see 3 above.
        self.epoch.store(epoch, Ordering::Release);
        fence_before_look();
    }

    #[inline]
    fn clear(&self) {
        let order = if planted!("epoch_unpin_relaxed") {
            Ordering::Relaxed
        } else {
            // Release: partner is the Acquire in `safe`.
            Ordering::Release
        };
        self.epoch.store(NOT_PINNED, order);
    }
}

#[inline]
fn fence_before_look() {
    if !planted!("epoch_pin_without_fence") {
        // Partners: the fences in `safe` and `seal_epoch`; see 1 above.
        fence(Ordering::SeqCst);
    }
}

/// A slot and what the last look at it saw.
struct Entry {
    slot: Arc<CachePadded<Slot>>,
    /// Turn and time at which this turn was first seen.
    seen: Option<(u64, Mono)>,
    /// The turn that was reported as stalled.
    reported: Option<u64>,
}

impl Entry {
    /// The pin, if there is one. Remembers when it was first seen.
    fn look(&mut self, now: Mono) -> Option<OldestPin> {
        let epoch = self.slot.epoch.load(Ordering::Relaxed);
        if epoch == NOT_PINNED {
            return None;
        }
        let turn = self.slot.turns.load(Ordering::Relaxed);
        let first_seen = match self.seen {
            Some((seen, at)) if seen == turn => at,
            _ => now,
        };
        self.seen = Some((turn, first_seen));
        Some(OldestPin {
            label: lock(&self.slot.label).clone(),
            epoch,
            age: now.since(first_seen),
        })
    }
}

/// A pin that somebody owns.
struct Owned {
    epoch: u64,
    since: Mono,
    label: Option<Arc<str>>,
    is_reported: bool,
}

impl Owned {
    fn look(&self, now: Mono) -> OldestPin {
        OldestPin {
            label: self.label.clone(),
            epoch: self.epoch,
            age: now.since(self.since),
        }
    }
}

/// The owned pins, oldest first.
struct List {
    next: u64,
    pins: BTreeMap<u64, Owned>,
}

impl List {
    fn oldest(&self) -> Option<&Owned> {
        self.pins.first_key_value().map(|(_, pin)| pin)
    }
}

/// The global epoch and everybody who may be pinned.
pub(super) struct Domain {
    epoch: CachePadded<AtomicU64>,
    registry: Mutex<Vec<Entry>>,
    owned: Mutex<List>,
    free: Queue<Arc<CachePadded<Slot>>>,
}

impl Domain {
    pub(super) fn new() -> Self {
        Self {
            epoch: CachePadded::new(AtomicU64::new(1)),
            registry: Mutex::new(Vec::new()),
            owned: Mutex::new(List {
                next: 0,
                pins: BTreeMap::new(),
            }),
            free: Queue::new(),
        }
    }

    pub(super) fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Relaxed)
    }

    /// The epoch to seal with: the global one, read after everything in the bag was unlinked.
    pub(super) fn seal_epoch(&self) -> u64 {
        // Partner: the fence in `publish`.
        fence(Ordering::SeqCst);
        self.epoch.load(Ordering::Relaxed)
    }

    /// Moves the global epoch on, so that what was sealed in this one can become safe. Only the
    /// holder of the limbo calls it.
    pub(super) fn advance(&self) {
        self.epoch.fetch_add(1, Ordering::Relaxed);
    }

    /// The oldest epoch that a live pin may have seen.
    pub(super) fn safe(&self) -> u64 {
        let now = self.epoch.load(Ordering::Relaxed);
        let registry = lock(&self.registry);
        // Partner: the fence in `publish`.
        fence(Ordering::SeqCst);
        if planted!("epoch_advance_past_pin") {
            return now;
        }
        let pinned = registry
            .iter()
            // Acquire: partners are the Releases in `publish` and `clear`.
            .map(|entry| entry.slot.epoch.load(Ordering::Acquire))
            .filter(|epoch| *epoch != NOT_PINNED);
        let owned = lock(&self.owned).oldest().map(|pin| pin.epoch);
        pinned.chain(owned).min().map_or(now, |pin| pin.min(now))
    }

    /// Whether nobody is pinned who could see what the caller has just unlinked.
    pub(super) fn is_clear(&self) -> bool {
        let registry = lock(&self.registry);
        // Partner: the fence in `publish`.
        fence(Ordering::SeqCst);
        let mut slots = registry.iter();
        // Acquire: partners are the Releases in `publish` and `clear`.
        slots.all(|entry| entry.slot.epoch.load(Ordering::Acquire) == NOT_PINNED)
            && lock(&self.owned).pins.is_empty()
    }

    /// Pins held now, and the oldest of them.
    pub(super) fn pins(&self, now: Mono) -> (usize, Option<OldestPin>) {
        let mut registry = lock(&self.registry);
        let mut pins: Vec<_> = registry.iter_mut().filter_map(|e| e.look(now)).collect();
        let count = pins.len();
        let owned = lock(&self.owned);
        pins.extend(owned.oldest().map(|pin| pin.look(now)));
        let oldest = pins.into_iter().max_by_key(|pin| pin.age);
        (count + owned.pins.len(), oldest)
    }

    /// Pins held for `after` or longer that were not reported yet.
    pub(super) fn stalled(&self, now: Mono, after: Duration) -> Vec<OldestPin> {
        let mut registry = lock(&self.registry);
        let mut found = Vec::new();
        for entry in registry.iter_mut() {
            let Some(pin) = entry.look(now) else { continue };
            let turn = entry.seen.map(|(turn, _)| turn);
            if pin.age >= after && entry.reported != turn {
                entry.reported = turn;
                found.push(pin);
            }
        }
        let mut owned = lock(&self.owned);
        for pin in owned.pins.values_mut() {
            let seen = pin.look(now);
            if seen.age < after {
                break;
            }
            if !std::mem::replace(&mut pin.is_reported, true) {
                found.push(seen);
            }
        }
        found
    }

    /// What is kept for pins, held or not.
    #[cfg(all(test, not(loom)))]
    pub(super) fn kept(&self) -> usize {
        lock(&self.registry).len() + lock(&self.owned).pins.len()
    }

    /// Adds an owned pin: its number and epoch.
    fn enter(&self, since: Mono, label: Option<&str>) -> (u64, u64) {
        let label = label.map(Arc::from);
        let mut owned = lock(&self.owned);
        let (number, epoch) = (owned.next, self.epoch());
        owned.next += 1;
        owned.pins.insert(
            number,
            Owned {
                epoch,
                since,
                label,
                is_reported: false,
            },
        );
        drop(owned);
        fence_before_look();
        (number, epoch)
    }

    /// Takes an owned pin out. Returns whether anything can have become safe by that: it was the
    /// last one of the oldest epoch.
    fn leave(&self, number: u64) -> bool {
        let mut owned = lock(&self.owned);
        let gone = owned.pins.remove(&number);
        let oldest = owned.oldest().map(|pin| pin.epoch);
        drop(owned);
        gone.is_some_and(|gone| oldest.is_none_or(|oldest| gone.epoch < oldest))
    }

    fn take_slot(&self) -> Arc<CachePadded<Slot>> {
        if let Some(slot) = self.free.pop() {
            return slot;
        }
        let slot = Arc::new(CachePadded::new(Slot::new()));
        // A collector that does not see this entry let go of the registry before: its fence
        // comes before that of the slot's first pin.
        lock(&self.registry).push(Entry {
            slot: Arc::clone(&slot),
            seen: None,
            reported: None,
        });
        slot
    }
}

/// One thread's place to pin from, again and again. Pinning costs a store and a fence.
pub struct Participant {
    books: Arc<dyn Books>,
    domain: Arc<Domain>,
    slot: Arc<CachePadded<Slot>>,
    depth: Cell<usize>,
}

impl Participant {
    pub(super) fn new(books: Arc<dyn Books>, domain: Arc<Domain>, label: Option<&str>) -> Self {
        let slot = domain.take_slot();
        *lock(&slot.label) = label.map(Arc::from);
        Self {
            books,
            domain,
            slot,
            depth: Cell::new(0),
        }
    }

    /// Pins. What is retired from now on is not reclaimed before the pin goes. Pins nest: the
    /// outermost one counts.
    #[inline]
    pub fn pin(&self) -> Pin<'_> {
        let depth = self.depth.get();
        if depth == 0 {
            self.slot.publish(self.domain.epoch());
        }
        self.depth.set(depth + 1);
        Pin { participant: self }
    }

    /// Whether it holds a pin.
    pub fn is_pinned(&self) -> bool {
        self.depth.get() > 0
    }

    #[inline]
    fn unpin(&self) {
        let depth = self.depth.get() - 1;
        self.depth.set(depth);
        if depth == 0 || planted!("epoch_nested_unpin_publishes") {
            self.slot.clear();
            self.books.on_unpin(&self.books);
        }
    }
}

impl Drop for Participant {
    fn drop(&mut self) {
        // No `Pin` can be left; one that was forgotten ends here.
        self.slot.clear();
        *lock(&self.slot.label) = None;
        self.domain.free.push(Arc::clone(&self.slot));
    }
}

/// While it lives, nothing retired after it was taken is reclaimed. Stays on its thread.
pub struct Pin<'a> {
    participant: &'a Participant,
}

impl Drop for Pin<'_> {
    #[inline]
    fn drop(&mut self) {
        self.participant.unpin();
    }
}

/// A pin that may go from thread to thread and be held across awaits.
pub struct OwnedPin {
    books: Arc<dyn Books>,
    domain: Arc<Domain>,
    number: u64,
    epoch: u64,
}

impl OwnedPin {
    pub(super) fn new(
        books: Arc<dyn Books>,
        domain: Arc<Domain>,
        label: Option<&str>,
        since: Mono,
    ) -> Self {
        let (number, epoch) = domain.enter(since, label);
        Self {
            books,
            domain,
            number,
            epoch,
        }
    }

    /// The epoch it saw.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }
}

impl Drop for OwnedPin {
    fn drop(&mut self) {
        if self.domain.leave(self.number) {
            self.books.on_unpin(&self.books);
        }
    }
}
