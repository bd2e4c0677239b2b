//! The numbers of a collector, checked where they come in.

use std::time::Duration;

use super::bounds::{BYTES_MAX, ITEMS_MAX};
use crate::error::{Error, Result};

/// What happens to work when the limits are reached and helping has not made room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Overflow {
    /// Run it now if nothing is pinned; otherwise as `Wait`.
    Inline,
    /// Whoever may wait waits for room; after its timeout, or if it may not, as `Refuse`.
    Wait,
    /// Give it back at once.
    Refuse,
}

/// The settings of a collector.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// Most pieces of work deferred at once.
    pub max_items: usize,
    /// Most bytes they may say they hold, together.
    pub max_bytes: usize,
    /// Fewer waiting pieces than this are left to the tick by whoever unpins.
    pub min_batch: usize,
    /// Most pieces run as one batch.
    pub max_batch: usize,
    /// Longest that one batch may run; the piece that runs then is finished.
    pub max_batch_time: Duration,
    /// How long the tick rests while work is deferred and cannot run.
    pub advance_interval: Duration,
    /// What happens at the limits.
    pub overflow: Overflow,
    /// A pin held longer is reported, once.
    pub stall_after: Duration,
    /// Whether pushes near the limits and unpins run work themselves. If not, only the owner of
    /// the tick does, for handlers that must not run just anywhere.
    pub assist: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            max_items: 10_000,
            max_bytes: 64 << 20,
            min_batch: 10,
            max_batch: 100,
            max_batch_time: Duration::from_millis(5),
            advance_interval: Duration::from_millis(100),
            overflow: Overflow::Inline,
            stall_after: Duration::from_secs(10),
            assist: true,
        }
    }
}

impl Settings {
    /// The settings, or what is wrong with them.
    pub fn checked(self) -> Result<Self> {
        check("max_items", self.max_items, ITEMS_MAX)?;
        check("max_bytes", self.max_bytes, BYTES_MAX)?;
        check("max_batch", self.max_batch, ITEMS_MAX)?;
        check("min_batch", self.min_batch, self.max_batch)?;
        let no_time = self.max_batch_time.is_zero() || self.advance_interval.is_zero();
        if no_time {
            return Err(Error::invalid(
                "max_batch_time and advance_interval must not be zero",
            ));
        }
        Ok(self)
    }
}

fn check(name: &'static str, value: usize, most: usize) -> Result<()> {
    if (1..=most).contains(&value) {
        return Ok(());
    }
    let text = format!("{name} must lie between 1 and {most}, not {value}");
    Err(Error::invalid(text))
}
