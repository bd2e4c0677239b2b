//! The word between an owner that sleeps and everybody who may end its sleep.
//!
//! ```text
//! owner    announce: 0 -> SLEEPING, or refuse   -- sleep --   take: swap 0
//! others   set WOKEN or NUDGED; ring if SLEEPING was there and nobody rang yet
//! ```
//!
//! # Always true
//!
//! 1. A bit set before the owner announces makes it refuse to sleep; a bit set after makes its
//!    setter ring. Both happen on one word, so there is no third case.
//! 2. Who takes a bit sees what its setter stored before; who sets one sees what the owner stored
//!    before its last take.
//! 3. Of those who set bits between two takes, one rings at most; with an owner that is away, the
//!    first.
//!
//! A bit, not a count of what was published: the owner looks at everything after each take, so how
//! often it was called says nothing that it would not find.

use crate::sync::{AtomicU32, Ordering};

const SLEEPING: u32 = 1;

/// Something of the owner's own is ready to be collected.
pub const NUDGED: u32 = 2;

/// Somebody outside wants the sleep to end.
pub const WOKEN: u32 = 4;

/// What a setter has to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    /// The owner sleeps here, and this is the first call of its sleep: ring.
    Ring,
    /// The owner does not sleep here, and this is the first call since its last look: tell it where
    /// it waits, if it waits elsewhere.
    First,
    /// Somebody has called already.
    Again,
}

/// See the module.
#[derive(Debug)]
pub struct Handshake {
    word: AtomicU32,
}

impl Default for Handshake {
    fn default() -> Self {
        Self {
            word: AtomicU32::new(0),
        }
    }
}

impl Handshake {
    /// What was called since the last take; forgets it, and that the owner sleeps. Look at
    /// everything after this.
    pub fn take(&self) -> u32 {
        let ordering = if planted!("handshake_relaxed_take") {
            Ordering::Acquire
        } else {
            Ordering::AcqRel
        };
        // Acquire pairs with the release in `call`: who sees the bit sees what was published
        // before it. Release pairs with the acquire there: who calls after this look sees where
        // the owner waits from now on.
        self.word.swap(0, ordering) & !SLEEPING
    }

    /// Says that the owner is about to sleep; false if somebody called in the meantime.
    pub fn announce(&self) -> bool {
        if planted!("handshake_announce_blind") {
            self.word.store(SLEEPING, Ordering::Relaxed);
            return true;
        }
        // Acquire on failure pairs with `call`, as in `take`. On success nothing was published.
        self.word
            .compare_exchange(0, SLEEPING, Ordering::Relaxed, Ordering::Acquire)
            .is_ok()
    }

    /// Calls the owner.
    pub fn call(&self, bit: u32) -> Call {
        let ordering = if planted!("handshake_relaxed_call") {
            Ordering::Relaxed
        } else {
            Ordering::AcqRel
        };
        // Release pairs with the acquires of the owner, acquire with the release of its take. The
        // word shows whether somebody called since the owner looked.
        match self.word.fetch_or(bit, ordering) {
            SLEEPING => Call::Ring,
            0 => Call::First,
            _ => Call::Again,
        }
    }
}
