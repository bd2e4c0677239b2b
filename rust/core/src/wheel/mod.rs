//! Deadlines: armed and cancelled in constant time, by the million, without garbage.
//!
//! Levels of 64 slots. Level 0 has a slot for each tick, each level above is 64 times coarser. A
//! timer waits on the level on which its tick first differs from the wheel's, and moves down as
//! time comes nearer, at most once for each level.
//!
//! ```text
//! level 2   |  |  |  |##|  |  |  ...   a slot is 4096 ticks
//! level 1   |  |##|  |  |##|  |  ...   a slot is 64 ticks
//! level 0   |  |  |##|  |##|##|  ...   a slot is one tick
//!              ^ the wheel stands here; what is behind it is empty
//! ```
//!
//! # Always true
//!
//! 1. Deadlines are rounded up to a tick, now is rounded down. So nothing is due early, and a
//!    caller that advances at [`next_deadline`](TimeoutWheel::next_deadline) is late by less than
//!    a tick, one that advances every tick by less than two.
//! 2. Eleven levels cover every tick that 64 bits can name: no deadline is too far.
//! 3. On each level the occupied slots lie above the one the wheel stands in, and everything on a
//!    level is due before anything on the level above it.
//! 4. Where a timer lies follows from its tick and the wheel's; nobody has to remember it.
//! 5. Timers are due in the order of their ticks, those of one tick in the order in which they
//!    were scheduled.
//! 6. A cancelled or expired timer leaves nothing behind: its place is free at once.
//!
//! # Not here
//!
//! The wheel reads no clock and wakes nobody: time comes in as a number, what is due goes out.
//!
//! The scheme is that of Varghese and Lauck, "Hashed and hierarchical timing wheels" (1987).

mod entry;
mod level;
mod scope;
#[cfg(test)]
mod tests;

use std::time::Duration;

pub use entry::Key;
use entry::Slab;
use level::{LEVELS, Level, NONE, place, start_of};
pub use scope::Scope;

use crate::{Error, ErrorKind, Result, clock::Mono};

/// The deadline had come already; the value is given back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Expired<T>(pub T);

/// What happened in a wheel so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Statistics {
    /// Timers armed; those that had expired at the call are not among them.
    pub armed: u64,
    /// Timers cancelled in time.
    pub cancelled: u64,
    /// Timers handed out because they were due.
    pub expired: u64,
    /// Moves of a timer to a finer level.
    pub cascaded: u64,
    /// Timers that wait now.
    pub live: usize,
    /// Bytes the wheel has taken from the allocator.
    pub memory_bytes: usize,
}

/// Values, each with a deadline, handed out when it has come.
#[derive(Debug)]
pub struct TimeoutWheel<T> {
    origin: Mono,
    tick_ns: u64,
    now: Mono,
    /// The tick the wheel stands in: `now`, rounded down.
    elapsed: u64,
    levels: Box<[Level; LEVELS]>,
    /// A bit for each level that holds something.
    occupied: u32,
    slab: Slab<T>,
    armed: u64,
    cancelled: u64,
    expired: u64,
    cascaded: u64,
}

impl<T> TimeoutWheel<T> {
    /// Makes an empty wheel that stands at `now`.
    pub fn new(tick: Duration, now: Mono) -> Result<Self> {
        let Some(tick_ns) = u64::try_from(tick.as_nanos()).ok().filter(|&ns| ns > 0) else {
            return Err(Error::new(
                ErrorKind::Invalid,
                "a tick must last between a nanosecond and 584 years",
            ));
        };
        Ok(Self {
            origin: now,
            tick_ns,
            now,
            elapsed: 0,
            levels: Box::new([Level::EMPTY; LEVELS]),
            occupied: 0,
            slab: Slab::new(),
            armed: 0,
            cancelled: 0,
            expired: 0,
            cascaded: 0,
        })
    }

    /// Arms a timer. A deadline that is not after the last `advance` gives the value back.
    #[inline]
    pub fn schedule(&mut self, deadline: Mono, value: T) -> std::result::Result<Key, Expired<T>> {
        if deadline <= self.now {
            return Err(Expired(value));
        }
        // Rounded up from after `now`, so after `elapsed`, which is rounded down from it.
        let tick = self.tick_up(deadline);
        let key = self.slab.insert(tick, value);
        self.link(key.index(), tick);
        self.armed += 1;
        Ok(key)
    }

    /// Disarms a timer and returns its value; `None` if it was due or cancelled before.
    #[inline]
    pub fn cancel(&mut self, key: Key) -> Option<T> {
        let index = self.slab.find(key)?;
        self.cancelled += 1;
        self.drop_out(index)
    }

    /// Disarms the timers of `keys` that still wait; their values join `out`.
    pub fn cancel_all(&mut self, keys: &[Key], out: &mut Vec<T>) -> usize {
        let before = out.len();
        out.extend(keys.iter().filter_map(|key| self.cancel(*key)));
        out.len() - before
    }

    /// Disarms all timers whose value is wanted, in one pass; their values join `out`.
    pub fn cancel_where(&mut self, which: impl FnMut(&T) -> bool, out: &mut Vec<T>) -> usize {
        let found = self.slab.select(which);
        self.cancelled += found.len() as u64;
        let count = found.len();
        out.extend(found.into_iter().filter_map(|index| self.drop_out(index)));
        count
    }

    /// Moves the wheel to `now`; the values of all timers that are due join `due`, in order.
    ///
    /// Returns how many. Time that runs backwards is ignored.
    pub fn advance(&mut self, now: Mono, due: &mut Vec<T>) -> usize {
        self.now = self.now.max(now);
        let before = due.len();
        while let Some(slot) = self.come_to_due() {
            let head = self.levels[0].take(slot);
            self.note(0);
            self.expire(head, due);
        }
        let count = due.len() - before;
        self.expired += count as u64;
        count
    }

    /// Moves the wheel to `now`, but only up to the first timer that is due, and hands that out.
    ///
    /// For a caller that runs foreign code for each: what is due and not handed out yet can still
    /// be cancelled, and `next_deadline` says that it is late.
    pub fn pop(&mut self, now: Mono) -> Option<T> {
        self.now = self.now.max(now);
        let slot = self.come_to_due()?;
        self.expired += 1;
        self.drop_out(self.levels[0].slot(slot).head)
    }

    /// When to call `advance` next; `None` if there is nothing to wait for.
    ///
    /// Exact, unless the timer that was to be first has been cancelled: then it may be too early,
    /// and that `advance` finds the right one.
    #[inline]
    pub fn next_deadline(&self) -> Option<Mono> {
        let (level, slot) = self.first()?;
        let tick = self.levels[level].slot(slot).earliest;
        let since = tick.saturating_mul(self.tick_ns);
        Some(Mono(self.origin.0.saturating_add(since)))
    }

    /// Begins anew at `now`, perhaps on another clock; returns the values of all timers.
    ///
    /// Keys from before stay stale.
    pub fn restart(&mut self, now: Mono) -> Vec<T> {
        let mut left = Vec::new();
        self.cancel_where(|_| true, &mut left);
        (self.origin, self.now, self.elapsed) = (now, now, 0);
        left
    }

    /// Whether the key's timer still waits.
    pub fn contains(&self, key: Key) -> bool {
        self.slab.find(key).is_some()
    }

    /// What waits under `key`.
    pub fn get(&self, key: Key) -> Option<&T> {
        self.slab.at(self.slab.find(key)?).value()
    }

    /// The values of all timers that wait, in no particular order.
    pub fn values(&self) -> impl Iterator<Item = &T> {
        self.slab.values()
    }

    /// The latest instant the wheel has been told of.
    pub fn now(&self) -> Mono {
        self.now
    }

    /// How many timers wait.
    pub fn len(&self) -> usize {
        self.slab.len()
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What happened so far.
    pub fn statistics(&self) -> Statistics {
        Statistics {
            armed: self.armed,
            cancelled: self.cancelled,
            expired: self.expired,
            cascaded: self.cascaded,
            live: self.len(),
            memory_bytes: self.slab.memory_bytes() + size_of_val(&*self.levels),
        }
    }

    /// The first tick that is not before `deadline`.
    #[inline]
    fn tick_up(&self, deadline: Mono) -> u64 {
        let since = deadline.0.saturating_sub(self.origin.0);
        if planted!("wheel_deadline_rounds_down") {
            return since / self.tick_ns;
        }
        since.div_ceil(self.tick_ns)
    }

    /// The last tick that is not after `now`.
    #[inline]
    fn tick_down(&self, now: Mono) -> u64 {
        let since = now.0.saturating_sub(self.origin.0);
        if planted!("wheel_now_rounds_up") {
            return since.div_ceil(self.tick_ns);
        }
        since / self.tick_ns
    }

    /// The slot that is due first: the lowest of the lowest level.
    #[inline]
    fn first(&self) -> Option<(usize, usize)> {
        let level = self.occupied.trailing_zeros() as usize;
        let slot = self.levels.get(level)?.first()?;
        Some((level, slot))
    }

    /// Puts an entry where it belongs, behind those that are there.
    #[inline]
    fn link(&mut self, index: u32, tick: u64) {
        let (level, slot) = place(self.elapsed, tick);
        self.occupied |= 1 << level;
        let last = self.levels[level].append(slot, index, tick);
        if last != NONE {
            self.slab.at_mut(last).next = index;
        }
        let entry = self.slab.at_mut(index);
        entry.prev = last;
        entry.next = NONE;
    }

    /// Takes an entry out of its list and out of the slab.
    #[inline]
    fn drop_out(&mut self, index: u32) -> Option<T> {
        let entry = self.slab.at(index);
        let (tick, prev, next) = (entry.tick, entry.prev, entry.next);
        let (level, slot) = place(self.elapsed, tick);
        if prev != NONE {
            self.slab.at_mut(prev).next = next;
        }
        if next != NONE {
            self.slab.at_mut(next).prev = prev;
        }
        self.levels[level].unlink(slot, prev, next);
        self.note(level);
        self.slab.remove(index)
    }

    /// Clears a level's bit if nothing is left on it.
    #[inline]
    fn note(&mut self, level: usize) {
        if self.levels[level].is_empty() && !planted!("wheel_level_bit_stays") {
            self.occupied &= !(1 << level);
        }
    }

    /// Lets time pass up to the first tick with timers that are due; returns their slot.
    ///
    /// If there is none, the wheel stands at `now` afterwards.
    fn come_to_due(&mut self) -> Option<usize> {
        let target = self.tick_down(self.now);
        while let Some((level, slot)) = self.first() {
            let start = start_of(self.elapsed, level, slot);
            if start > target {
                break;
            }
            self.elapsed = start;
            if level == 0 {
                return Some(slot);
            }
            let head = self.levels[level].take(slot);
            self.note(level);
            self.cascade(head);
        }
        self.elapsed = target;
        None
    }

    /// Hands out a whole list.
    fn expire(&mut self, head: u32, due: &mut Vec<T>) {
        let mut index = head;
        while index != NONE {
            let next = self.slab.at(index).next;
            due.extend(self.slab.remove(index));
            index = next;
        }
    }

    /// Moves a list to the levels below, in order, so that a tick keeps its sequence.
    fn cascade(&mut self, head: u32) {
        let mut index = head;
        while index != NONE {
            let entry = self.slab.at_mut(index);
            if planted!("wheel_cascade_skipped") {
                entry.tick = self.elapsed;
            }
            let (tick, next) = (entry.tick, entry.next);
            self.link(index, tick);
            self.cascaded += 1;
            index = next;
        }
    }
}
