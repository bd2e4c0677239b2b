//! The flights the kernel may know, each under a key that is used once.
//!
//! # Always true
//!
//! 1. A flight is taken out only by the answer that ends it, or given up by
//!    [`Table::abandon`], which leaks it. Dropping the table leaks what is in it: nothing here
//!    ever frees memory the kernel may write to.
//! 2. A key names one flight for ever (until 2^31 reuses of one slot), so a late answer to an old
//!    flight cannot hit a new one.

use super::flight::Flight;

/// Marks the answer to a cancel request; its other bits say whom it was for.
pub(super) const CANCEL: u64 = 1 << 63;

/// The answer of the poll on the bell.
pub(super) const BELL: u64 = u64::MAX;

/// Slot in the low half, generation above it; never sets [`CANCEL`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Key(pub u64);

impl Key {
    fn new(slot: usize, generation: u32) -> Self {
        Self(u64::from(generation & (u32::MAX >> 1)) << 32 | slot as u64)
    }

    fn slot(self) -> usize {
        self.0 as u32 as usize
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Table {
    slots: Vec<Slot>,
    free: Vec<usize>,
}

#[derive(Debug, Default)]
struct Slot {
    generation: u32,
    flight: Option<Flight>,
}

impl Table {
    pub(super) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(super) fn insert(&mut self, flight: Flight) -> Key {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot::default());
            self.slots.len() - 1
        });
        let place = &mut self.slots[slot];
        place.generation = place.generation.wrapping_add(1);
        place.flight = Some(flight);
        Key::new(slot, place.generation)
    }

    pub(super) fn get(&mut self, key: Key) -> Option<&mut Flight> {
        let slot = self.slots.get_mut(key.slot())?;
        if Key::new(key.slot(), slot.generation) != key {
            return None;
        }
        slot.flight.as_mut()
    }

    pub(super) fn remove(&mut self, key: Key) -> Option<Flight> {
        self.get(key)?;
        let flight = self.slots[key.slot()].flight.take();
        self.free.push(key.slot());
        flight
    }

    pub(super) fn keys(&self) -> Vec<Key> {
        let taken = |(index, slot): (usize, &Slot)| {
            let generation = slot.flight.as_ref().map(|_| slot.generation)?;
            Some(Key::new(index, generation))
        };
        self.slots.iter().enumerate().filter_map(taken).collect()
    }
}

impl Drop for Table {
    fn drop(&mut self) {
        for slot in &mut self.slots {
            let flight = slot.flight.take();
            if !planted!("uring_frees_at_shutdown") {
                std::mem::forget(flight);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::{Class, File, Op, Request, Token};

    fn flight(token: u64) -> Flight {
        let file = File::from_fd(std::fs::File::open("/dev/null").unwrap().into());
        let request = Request {
            token: Token(token),
            class: Class::Foreground,
            op: Op::Sync { file },
        };
        match Flight::sort(request, false) {
            super::super::flight::Way::Ring(flight) => flight,
            _ => panic!("not for the ring"),
        }
    }

    #[test]
    fn an_old_key_does_not_reach_a_new_flight() {
        // A slot is reused under another key, and neither key looks like a cancel or the bell.
        let mut table = Table::default();
        let old = table.insert(flight(1));
        assert!(table.remove(old).is_some());
        let new = table.insert(flight(2));
        assert_eq!(old.slot(), new.slot());
        assert!(table.get(old).is_none() && table.remove(old).is_none());
        assert!(table.get(new).is_some());
        assert_eq!(table.keys(), [new]);
        assert_eq!((old.0 | new.0) & CANCEL, 0);
        table.remove(new).unwrap();
        assert!(table.is_empty());
    }
}
