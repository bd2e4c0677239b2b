//! The sleep handshake between the owner of a backend and everybody who may end its wait.
//!
//! One word holds who said what; the bell (an eventfd) is rung only if the owner announced sleep.
//!
//! ```text
//! owner    announce: 0 -> SLEEPING, or refuse   -- wait for the bell --   retract: swap 0
//! others   set WOKEN or NUDGED; ring the bell if SLEEPING was there and nobody rang yet
//! ```
//!
//! # Always true
//!
//! 1. A bit set before the owner announces makes it refuse to sleep; a bit set after rings the
//!    bell. Both happen on one word, so there is no third case.
//! 2. The bell may ring late, for a sleep that is over. That costs one look at the word.
//!
//! A *wake* is from outside and ends the poll. A *nudge* is from a thread of ours: there is
//! something to collect, look again.

use std::{
    os::fd::{AsRawFd, OwnedFd, RawFd},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use super::sys;
use crate::{
    error::{Error, Result},
    sync::Wake,
};

const SLEEPING: u32 = 1;
const NUDGED: u32 = 2;
const WOKEN: u32 = 4;

/// See the module.
#[derive(Debug)]
pub(crate) struct Signal {
    word: AtomicU32,
    bell: OwnedFd,
}

impl Signal {
    pub(crate) fn new() -> Result<Self> {
        let bell = sys::event().map_err(|errno| Error::from_errno(errno.0, "eventfd"))?;
        Ok(Self {
            word: AtomicU32::new(0),
            bell,
        })
    }

    /// Readable while the bell rings.
    pub(crate) fn bell(&self) -> RawFd {
        self.bell.as_raw_fd()
    }

    /// Silences the bell. Only a sleep that is over may be silenced.
    pub(crate) fn silence(&self) {
        sys::lower(self.bell());
    }

    /// Something of the backend's own is ready to be collected.
    pub(crate) fn nudge(&self) {
        self.set(NUDGED);
    }

    /// Whether a wake came; forgets it, and nudges too, because the caller looks now.
    pub(crate) fn take(&self) -> bool {
        // Acquire pairs with the release in `set`: who sees the bit sees what was published
        // before it.
        self.word.swap(0, Ordering::Acquire) & WOKEN != 0
    }

    /// Says that the owner is about to sleep; false if somebody called in the meantime.
    pub(crate) fn announce(&self) -> bool {
        // Acquire on failure pairs with `set`, as in `take`. On success nothing was published.
        self.word
            .compare_exchange(0, SLEEPING, Ordering::Relaxed, Ordering::Acquire)
            .is_ok()
    }

    /// Sleeps on the bell after [`announce`](Self::announce), and on `other` if there is one; for
    /// backends without a ring.
    pub(crate) fn sleep(&self, other: Option<RawFd>, timeout: Option<Duration>) {
        sys::wait_readable([self.bell(), other.unwrap_or(-1)], timeout);
        self.silence();
    }

    /// The sleep is over. True if a wake ended it.
    pub(crate) fn retract(&self) -> bool {
        self.take()
    }

    fn set(&self, bit: u32) {
        // Release pairs with the acquires of the owner. The bell is for the first caller only:
        // the word shows whether somebody rang during this sleep.
        let before = self.word.fetch_or(bit, Ordering::AcqRel);
        if before == SLEEPING {
            sys::raise(self.bell());
        }
    }
}

impl Wake for Signal {
    fn wake(&self) {
        self.set(WOKEN);
    }
}
