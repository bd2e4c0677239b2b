//! Work between push and run: pushed by anybody, sealed and run by one.
//!
//! ```text
//! push --> open tray --full--> queue of trays --seal: fence, then the global epoch--.
//!               ^                                                                   v
//!               '------ emptied trays, used again <--safe, run in order-- bag | bag | bag
//! ```
//!
//! A bag is sealed by whoever collects, after everything in it was pushed. Its epoch is therefore
//! at least the one in which each of its items was unlinked, and bags stand in the order of their
//! epochs: if the first is not safe, none is.
//!
//! Items lie in trays that are used again, so that a burst finds memory that was touched before:
//! where each block of a queue is fresh from the allocator, one push in a hundred pays for a page
//! fault, and that one is a caller's p99. Emptied trays go when the collector goes.
//!
//! # Always true
//!
//! 1. An item pushed after another lies behind it: trays are queued under the lock of the open
//!    one, and whoever takes them all takes the open one last, under the same lock.
//! 2. No tray in the line is empty, and of two neighbours the items do not fit into one: many
//!    small bags do not take many trays.

use std::collections::VecDeque;

use crate::sync::{Mutex, Queue, lock};

/// Items in a tray: few enough to be filled and emptied within the processor's own cache.
const TRAY: usize = if cfg!(loom) { 2 } else { 128 };

/// One piece of deferred work.
pub(super) struct Item<W> {
    pub(super) work: W,
    pub(super) bytes: usize,
}

type Tray<W> = VecDeque<Item<W>>;

/// What was pushed and not sealed.
pub(super) struct Inbox<W> {
    open: Mutex<Tray<W>>,
    full: Queue<Tray<W>>,
    spare: Queue<Tray<W>>,
}

impl<W> Inbox<W> {
    pub(super) fn new() -> Self {
        Self {
            open: Mutex::new(Tray::new()),
            full: Queue::new(),
            spare: Queue::new(),
        }
    }

    #[inline]
    pub(super) fn push(&self, item: Item<W>) {
        let mut open = lock(&self.open);
        open.push_back(item);
        if open.len() >= TRAY {
            let full = std::mem::replace(&mut *open, self.fresh());
            self.full.push(full);
        }
    }

    /// Hands everything that was pushed to `limbo`. Returns whether there was anything.
    pub(super) fn empty_into(&self, limbo: &mut Limbo<W>) -> bool {
        let before = limbo.len();
        // Most of it without holding pushes up.
        for _ in 0..self.full.len() {
            let Some(tray) = self.full.pop() else { break };
            self.keep(limbo.add(tray));
        }
        let mut open = lock(&self.open);
        while let Some(tray) = self.full.pop() {
            self.keep(limbo.add(tray));
        }
        if !open.is_empty() && !limbo.add_few(&mut open) {
            let tray = std::mem::replace(&mut *open, self.fresh());
            drop(open);
            self.keep(limbo.add(tray));
        }
        limbo.len() > before
    }

    /// A tray that was emptied is used again.
    #[inline]
    pub(super) fn keep(&self, emptied: Option<Tray<W>>) {
        if let Some(tray) = emptied {
            self.spare.push(tray);
        }
    }

    fn fresh(&self) -> Tray<W> {
        let spare = self.spare.pop();
        spare.unwrap_or_else(|| Tray::with_capacity(TRAY))
    }
}

/// Items that were sealed together; the items themselves stand in one line for all bags.
struct Bag {
    epoch: u64,
    items: usize,
}

/// What was sealed and has not run. Behind the collector's lock.
pub(super) struct Limbo<W> {
    line: VecDeque<Tray<W>>,
    items: usize,
    bags: VecDeque<Bag>,
    /// How many items at the front are known to be safe; safe once is safe for ever.
    ready: usize,
    /// How many at the back stand in no bag yet.
    unsealed: usize,
    /// The epoch the last bag was sealed with.
    pub(super) sealed_at: u64,
}

impl<W> Limbo<W> {
    pub(super) fn new() -> Self {
        Self {
            line: VecDeque::new(),
            items: 0,
            bags: VecDeque::new(),
            ready: 0,
            unsealed: 0,
            sealed_at: 0,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.items
    }

    pub(super) fn ready(&self) -> usize {
        self.ready
    }

    /// Adds what was pushed; it stands in no bag yet. Returns the tray if it was emptied.
    fn add(&mut self, mut tray: Tray<W>) -> Option<Tray<W>> {
        if self.add_few(&mut tray) {
            return Some(tray);
        }
        self.items += tray.len();
        self.unsealed += tray.len();
        self.line.push_back(tray);
        None
    }

    /// Empties `tray` into the last one of the line, if they fit there.
    fn add_few(&mut self, tray: &mut Tray<W>) -> bool {
        let few = tray.len();
        let last = self.line.back_mut();
        let Some(last) = last.filter(|last| last.len() + few <= TRAY) else {
            return false;
        };
        last.append(tray);
        self.items += few;
        self.unsealed += few;
        true
    }

    /// Seals everything that stands in no bag. Epochs only grow.
    pub(super) fn seal(&mut self, epoch: u64) {
        let items = std::mem::take(&mut self.unsealed);
        self.sealed_at = epoch;
        match self.bags.back_mut() {
            Some(last) if last.epoch == epoch => last.items += items,
            _ => self.bags.push_back(Bag { epoch, items }),
        }
    }

    /// Opens every bag sealed before `safe`.
    pub(super) fn open_below(&mut self, safe: u64) {
        while let Some(bag) = self.bags.pop_front() {
            if bag.epoch >= safe {
                if planted!("epoch_rotate_unsafe") {
                    self.bags.push_back(bag);
                    self.rotate();
                } else {
                    self.bags.push_front(bag);
                }
                return;
            }
            self.ready += bag.items;
        }
    }

    /// A planted bug: what is not safe goes to the back.
    fn rotate(&mut self) {
        let first = self.line.front_mut().and_then(Tray::pop_front);
        if let (Some(item), Some(last)) = (first, self.line.back_mut()) {
            last.push_back(item);
        }
    }

    /// The next safe item, and the tray it lay in if that was the last one there.
    #[inline]
    pub(super) fn take(&mut self) -> Option<(Item<W>, Option<Tray<W>>)> {
        self.ready = self.ready.checked_sub(1)?;
        self.items -= 1;
        let first = self.line.front_mut()?;
        let item = first.pop_front()?;
        let is_empty = first.is_empty();
        let emptied = is_empty.then(|| self.line.pop_front()).flatten();
        Some((item, emptied))
    }
}
