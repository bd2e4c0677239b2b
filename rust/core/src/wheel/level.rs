//! Where a tick belongs: pure arithmetic on ticks, and one level of 64 slots.
//!
//! Level n looks at bits `6n..6n+6` of a tick. A timer lies on the level of the highest bit in
//! which its tick differs from the wheel's own, in the slot that its tick names there. Eleven
//! levels cover all 64 bits, so there is no horizon, and no slot is ever reached by wrapping
//! around: on each level the occupied slots lie above the one the wheel stands in.

/// Bits of a tick that one level looks at.
pub const SLOT_BITS: u32 = 6;
/// Slots of a level: as many as its bit field has bits.
pub const SLOTS: usize = 1 << SLOT_BITS;
/// Levels it takes to look at every bit of a tick.
pub const LEVELS: usize = u64::BITS.div_ceil(SLOT_BITS) as usize;
/// No entry.
pub const NONE: u32 = u32::MAX;

const _: () = assert!(SLOTS == u64::BITS as usize, "a bit for each slot");
const _: () = assert!(LEVELS == 11, "the highest level sees the last four bits");

/// Level and slot of `tick` as seen from `elapsed`; `tick` is not before it.
#[inline]
pub fn place(elapsed: u64, tick: u64) -> (usize, usize) {
    let differing = (elapsed ^ tick) | 1;
    let level = (differing.ilog2() / SLOT_BITS) as usize;
    (level, slot_at(tick, level))
}

/// The slot that `tick` names on `level`.
#[inline]
pub fn slot_at(tick: u64, level: usize) -> usize {
    let slot = (tick >> shift(level)) as usize & (SLOTS - 1);
    if planted!("wheel_slot_of_level_below") && level > 1 {
        return (tick >> shift(level - 1)) as usize & (SLOTS - 1);
    }
    slot
}

/// The first tick that belongs to `slot` of `level`, as seen from `elapsed`.
#[inline]
pub fn start_of(elapsed: u64, level: usize, slot: usize) -> u64 {
    let shift = shift(level);
    // On the highest level no bit is left above; a plain shift by 66 would overflow.
    let above = elapsed.checked_shr(shift + SLOT_BITS).unwrap_or(0);
    let kept = above.checked_shl(shift + SLOT_BITS).unwrap_or(0);
    kept | (slot as u64) << shift
}

#[inline]
fn shift(level: usize) -> u32 {
    level as u32 * SLOT_BITS
}

/// The ends of a list of entries, and a bound on when the first of them is due.
#[derive(Debug, Clone, Copy)]
pub struct Slot {
    pub head: u32,
    pub tail: u32,
    /// No entry of the slot is due before this tick. Exact until an entry is cancelled.
    pub earliest: u64,
}

impl Slot {
    pub const EMPTY: Self = Self {
        head: NONE,
        tail: NONE,
        earliest: u64::MAX,
    };
}

/// 64 slots and a bit for each that holds something.
#[derive(Debug)]
pub struct Level {
    occupied: u64,
    slots: [Slot; SLOTS],
}

impl Level {
    pub const EMPTY: Self = Self {
        occupied: 0,
        slots: [Slot::EMPTY; SLOTS],
    };

    /// The lowest slot that holds something.
    #[inline]
    pub fn first(&self) -> Option<usize> {
        (self.occupied != 0).then(|| self.occupied.trailing_zeros() as usize)
    }

    #[inline]
    pub fn is_empty(&self) -> bool {
        self.occupied == 0
    }

    #[inline]
    pub fn slot(&self, slot: usize) -> &Slot {
        &self.slots[slot]
    }

    /// Puts an entry at the end of a slot; returns the one that was the last.
    #[inline]
    pub fn append(&mut self, slot: usize, index: u32, tick: u64) -> u32 {
        self.occupied |= 1 << slot;
        let ends = &mut self.slots[slot];
        let last = ends.tail;
        if last == NONE {
            ends.head = index;
        }
        ends.tail = index;
        ends.earliest = ends.earliest.min(tick);
        last
    }

    /// Takes an entry between `prev` and `next` out of a slot's ends, as far as it is one.
    #[inline]
    pub fn unlink(&mut self, slot: usize, prev: u32, next: u32) {
        let ends = &mut self.slots[slot];
        if prev == NONE {
            ends.head = next;
        }
        if next == NONE {
            ends.tail = prev;
        }
        if ends.head == NONE {
            self.clear(slot);
        }
    }

    /// Empties a slot and returns the first entry of the list it held.
    #[inline]
    pub fn take(&mut self, slot: usize) -> u32 {
        let head = self.slots[slot].head;
        self.clear(slot);
        head
    }

    fn clear(&mut self, slot: usize) {
        self.slots[slot] = Slot::EMPTY;
        self.occupied &= !(1 << slot);
    }
}
