//! Sleeping threads, and how long to try before sleeping.

use std::time::{Duration, Instant};

use crate::{
    Error, Result,
    sync::{Condvar, Mutex, Wake, lock},
};

/// Puts one thread to sleep until it is woken. A wake that comes first is remembered.
#[derive(Debug, Default)]
pub struct Parker {
    woken: Mutex<bool>,
    bell: Condvar,
}

impl Parker {
    /// Nobody has called `wake` yet.
    pub fn new() -> Self {
        Self {
            woken: Mutex::new(false),
            bell: Condvar::new(),
        }
    }

    /// Sleeps until `wake` is called, at most for `timeout`. True if it was called since the last
    /// park.
    pub fn park(&self, timeout: Option<Duration>) -> bool {
        let mut woken = lock(&self.woken);
        // None for a timeout beyond the end of time, which is no timeout.
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        while !*woken {
            let Some(deadline) = deadline else {
                woken = self
                    .bell
                    .wait(woken)
                    .unwrap_or_else(std::sync::PoisonError::into_inner);
                continue;
            };
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            woken = self
                .bell
                .wait_timeout(woken, left)
                .unwrap_or_else(std::sync::PoisonError::into_inner)
                .0;
        }
        std::mem::take(&mut *woken)
    }
}

impl Wake for Parker {
    fn wake(&self) {
        *lock(&self.woken) = true;
        self.bell.notify_one();
    }
}

/// How a blocking append behaves while the ring is full: spin, yield, then sleep in the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backpressure {
    /// Spins before the second look; doubled at each further look.
    pub initial_spins: u32,
    /// Spins between two looks at most; past that the thread yields once and then sleeps.
    pub max_spins: u32,
    /// First sleep before the condition is checked again, in microseconds. A wake ends it at once.
    pub base_sleep_us: u64,
    /// Longest sleep before the condition is checked again, in microseconds.
    pub max_sleep_us: u64,
}

impl Default for Backpressure {
    fn default() -> Self {
        Self {
            initial_spins: 10,
            max_spins: 1000,
            base_sleep_us: 1,
            max_sleep_us: 1000,
        }
    }
}

impl Backpressure {
    /// Spins long before it sleeps, and looks often.
    pub const fn low_latency() -> Self {
        Self {
            initial_spins: 100,
            max_spins: 10_000,
            base_sleep_us: 1,
            max_sleep_us: 100,
        }
    }

    /// Leaves the processor to others early.
    pub const fn high_throughput() -> Self {
        Self {
            initial_spins: 5,
            max_spins: 100,
            base_sleep_us: 10,
            max_sleep_us: 10_000,
        }
    }

    /// Refuses settings that could not work.
    pub fn checked(self) -> Result<Self> {
        if self.initial_spins == 0 {
            return Err(Error::invalid(
                "initial_spins must be at least 1: doubling 0 would never make progress",
            ));
        }
        if self.max_spins < self.initial_spins {
            return Err(Error::invalid(
                "max_spins must not be below initial_spins, where the doubling starts",
            )
            .with("initial_spins", self.initial_spins)
            .with("max_spins", self.max_spins));
        }
        Ok(self)
    }

    /// How long to spin before each look, in order.
    pub(super) fn spins(&self) -> impl Iterator<Item = u32> {
        let most = self.max_spins;
        std::iter::successors(Some(self.initial_spins.max(1)), |spins| {
            spins.checked_mul(2)
        })
        .take_while(move |spins| *spins <= most)
    }

    /// How long to sleep before each look, in order; the last one is repeated.
    pub(super) fn sleeps(&self) -> impl Iterator<Item = Duration> {
        let most = self.max_sleep_us.max(1);
        std::iter::successors(Some(self.base_sleep_us.clamp(1, most)), move |sleep| {
            Some(sleep.saturating_mul(2).min(most))
        })
        .map(Duration::from_micros)
    }
}

/// Lets the processor breathe inside a spin; under loom, lets the other threads run.
#[inline]
pub(super) fn breathe() {
    #[cfg(loom)]
    crate::sync::thread::yield_now();
    #[cfg(not(loom))]
    std::hint::spin_loop();
}
