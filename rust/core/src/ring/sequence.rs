//! Positions and the claim word: where the ring is, modulo 2^63.
//!
//! A position counts entries since the ring was made. It shares its 64-bit word with the closed
//! mark, so it has 63 bits and wraps; two positions are compared by their signed distance, which
//! is right as long as they are less than 2^62 apart. The ring keeps them within its capacity.
//!
//! ```text
//! claim word   [closed:1][position:63]      next position to be claimed
//! released     [0:1]     [position:63]      everything below may be claimed again
//! ```

/// The bit of the claim word that says no claim may succeed any more.
pub(super) const CLOSED: u64 = 1 << 63;

/// The bits of a word that hold a position.
const POSITION: u64 = CLOSED - 1;

/// The position `count` entries after `position`.
#[inline]
pub(super) const fn step(position: u64, count: u64) -> u64 {
    position.wrapping_add(count) & POSITION
}

/// How far `to` lies ahead of `from`; negative if it lies behind.
#[inline]
pub(super) const fn distance(from: u64, to: u64) -> i64 {
    // Shifting the 63-bit difference to the top and back copies its sign into bit 63.
    (to.wrapping_sub(from) << 1).cast_signed() >> 1
}

/// The claimed cursor and the closed mark, as they were in one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ClaimWord(pub(super) u64);

impl ClaimWord {
    /// The next position to be claimed; once closed, the final one.
    #[inline]
    pub(super) const fn position(self) -> u64 {
        self.0 & POSITION
    }

    /// Whether claims are refused for good.
    #[inline]
    pub(super) const fn is_closed(self) -> bool {
        self.0 & CLOSED != 0
    }

    /// The same mark, `count` positions later.
    #[inline]
    pub(super) const fn advanced(self, count: u64) -> Self {
        Self(step(self.0, count) | (self.0 & CLOSED))
    }
}
