//! What may enter: limits, weights, and the reasons for a refusal.

use std::fmt;

use crate::{Error, ErrorKind, Result};

/// How many bytes an entry counts for. The answer must not change while the entry is in a ring.
pub trait Weigh {
    /// Bytes this entry counts for.
    fn weight(&self) -> usize;
}

impl Weigh for Vec<u8> {
    fn weight(&self) -> usize {
        self.len()
    }
}

impl Weigh for Box<[u8]> {
    fn weight(&self) -> usize {
        self.len()
    }
}

/// How much a ring holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Entries. Rounded up to a power of two, and to at least 2.
    pub capacity: usize,
    /// Bytes of all entries that are claimed and not given back.
    pub capacity_bytes: usize,
    /// Bytes of one entry.
    pub entry_bytes_max: usize,
    /// The consumer gives bytes back later than slots, through `Consumer::release_bytes`. Then
    /// they are counted even where the slots alone would keep them within the limit.
    pub bytes_outlive_slots: bool,
}

impl Limits {
    /// Largest capacity: positions are compared by distance, which needs room to spare.
    const CAPACITY_MAX: usize = 1 << 40;

    /// Checks the numbers and rounds the capacity.
    pub(super) fn checked(mut self) -> Result<Self> {
        if self.capacity == 0 {
            return Err(Error::invalid(
                "a ring needs a capacity of at least 1; with 0 no append would ever succeed",
            ));
        }
        if self.capacity > Self::CAPACITY_MAX {
            return Err(
                Error::invalid("the capacity is larger than any ring can be made")
                    .with("capacity", self.capacity as u64)
                    .with("allowed", Self::CAPACITY_MAX as u64),
            );
        }
        if self.capacity_bytes == 0 {
            return Err(Error::invalid(
                "a ring needs capacity_bytes of at least 1; with 0 it would hold empty entries only",
            ));
        }
        self.capacity = self.capacity.next_power_of_two().max(2);
        self.entry_bytes_max = self.entry_bytes_max.min(self.capacity_bytes);
        Ok(self)
    }

    /// Whether the slots alone do not keep the bytes within their limit.
    pub(super) fn count_bytes(&self) -> bool {
        self.bytes_outlive_slots
            || self
                .capacity
                .checked_mul(self.entry_bytes_max)
                .is_none_or(|most| most > self.capacity_bytes)
    }

    /// Refuses an entry that waiting would not help.
    #[inline]
    pub(super) fn check_entry(&self, bytes: usize) -> Result<(), Refusal> {
        if bytes > self.entry_bytes_max {
            return Err(Refusal::TooLarge {
                bound: Bound::EntryBytes,
                asked: bytes,
                allowed: self.entry_bytes_max,
            });
        }
        Ok(())
    }

    /// Refuses a batch that waiting would not help; returns its bytes.
    pub(super) fn check_batch<T: Weigh>(&self, entries: &[T]) -> Result<usize, Refusal> {
        if entries.len() > self.capacity {
            return Err(Refusal::TooLarge {
                bound: Bound::Entries,
                asked: entries.len(),
                allowed: self.capacity,
            });
        }
        let mut total: usize = 0;
        for entry in entries {
            let bytes = entry.weight();
            self.check_entry(bytes)?;
            total = total.saturating_add(bytes);
        }
        if total > self.capacity_bytes {
            return Err(Refusal::TooLarge {
                bound: Bound::Bytes,
                asked: total,
                allowed: self.capacity_bytes,
            });
        }
        Ok(total)
    }
}

/// The limit that an append runs into however long it waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bound {
    /// Entries of the whole ring.
    Entries,
    /// Bytes of the whole ring.
    Bytes,
    /// Bytes of one entry.
    EntryBytes,
}

impl Bound {
    /// The setting's name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Entries => "capacity",
            Self::Bytes => "capacity_bytes",
            Self::EntryBytes => "entry_bytes_max",
        }
    }
}

/// Why an append was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// No room now, or others are waiting for it already.
    Full,
    /// Closed; no append will ever succeed.
    Closed,
    /// Beyond a limit that waiting will not change.
    TooLarge {
        /// Which limit.
        bound: Bound,
        /// What was asked for.
        asked: usize,
        /// What the limit is.
        allowed: usize,
    },
    /// The deadline passed before there was room.
    TimedOut,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full => f.write_str("the ring is full"),
            Self::Closed => f.write_str("the ring is closed"),
            Self::TooLarge {
                bound,
                asked,
                allowed,
            } => write!(
                f,
                "{asked} is more than {} allows, which is {allowed}",
                bound.name()
            ),
            Self::TimedOut => f.write_str("no room in the ring before the deadline"),
        }
    }
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Self {
        let message = refusal.to_string();
        match refusal {
            Refusal::Full => Self::new(ErrorKind::Overloaded, message),
            Refusal::Closed => Self::new(ErrorKind::Closed, message),
            Refusal::TimedOut => Self::new(ErrorKind::Timeout, message),
            Refusal::TooLarge {
                bound,
                asked,
                allowed,
            } => Self::new(ErrorKind::TooLarge, message)
                .with_text("limit", bound.name())
                .with("asked", asked as u64)
                .with("allowed", allowed as u64),
        }
    }
}

/// A refused append: the reason, and what was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refused<V> {
    /// What the caller wanted to append.
    pub value: V,
    /// Why it was not.
    pub reason: Refusal,
}

impl<V> From<Refused<V>> for Error {
    fn from(refused: Refused<V>) -> Self {
        refused.reason.into()
    }
}

/// What one append brings: a single entry, or neighbours that enter together or not at all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entries<T> {
    /// A single entry.
    One(T),
    /// Neighbours, in order.
    Many(Vec<T>),
}

impl<T> Entries<T> {
    /// How many entries.
    pub fn len(&self) -> usize {
        match self {
            Self::One(_) => 1,
            Self::Many(entries) => entries.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The entries as a list.
    pub fn into_vec(self) -> Vec<T> {
        match self {
            Self::One(entry) => vec![entry],
            Self::Many(entries) => entries,
        }
    }

    pub(super) fn as_slice(&self) -> &[T] {
        match self {
            Self::One(entry) => std::slice::from_ref(entry),
            Self::Many(entries) => entries,
        }
    }
}
