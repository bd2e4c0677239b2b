//! Work between push and run: pushed by anybody, sealed and run by one.
//!
//! ```text
//! push --> inbox --seal: fence, then the global epoch--> bag | bag | bag --safe--> run, in order
//! ```
//!
//! A bag is sealed by whoever collects, after everything in it was pushed. Its epoch is therefore
//! at least the one in which each of its items was unlinked, and bags stand in the order of their
//! epochs: if the first is not safe, none is.

use std::collections::VecDeque;

/// One piece of deferred work.
pub(super) struct Item<W> {
    pub(super) work: W,
    pub(super) bytes: usize,
}

/// Items that were sealed together; the items themselves stand in one line for all bags.
struct Bag {
    epoch: u64,
    items: usize,
}

/// What was sealed and has not run. Behind the collector's lock.
pub(super) struct Limbo<W> {
    items: VecDeque<Item<W>>,
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
            items: VecDeque::new(),
            bags: VecDeque::new(),
            ready: 0,
            unsealed: 0,
            sealed_at: 0,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.items.len()
    }

    pub(super) fn ready(&self) -> usize {
        self.ready
    }

    /// Adds an item that was pushed; it stands in no bag yet.
    pub(super) fn add(&mut self, item: Item<W>) {
        self.items.push_back(item);
        self.unsealed += 1;
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
                    self.items.rotate_left(usize::from(self.items.len() > 1));
                } else {
                    self.bags.push_front(bag);
                }
                return;
            }
            self.ready += bag.items;
        }
    }

    /// The next safe item.
    pub(super) fn take(&mut self) -> Option<Item<W>> {
        self.ready = self.ready.checked_sub(1)?;
        self.items.pop_front()
    }
}
