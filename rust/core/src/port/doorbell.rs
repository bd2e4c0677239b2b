//! A bell that is rung once however many people press it, until somebody has come.

use super::signal::Signal;
use crate::{
    error::Result,
    sync::{AtomicBool, Ordering, Wake},
};

/// An eventfd and a flag that says whether it has been rung and not answered yet.
pub struct Doorbell {
    pending: AtomicBool,
    signal: Signal,
}

impl Doorbell {
    /// Makes a silent bell.
    pub fn new() -> Result<Self> {
        Ok(Self {
            pending: AtomicBool::new(false),
            signal: Signal::new()?,
        })
    }

    /// Rings, unless a ring is still unanswered.
    ///
    /// What the caller stored before is seen by whoever answers.
    #[inline]
    pub fn ring(&self) {
        // AcqRel: partner is the swap in `silence`. Also the ring that finds the flag set must
        // release, because the answer to the earlier ring is what will show its caller's news.
        if !self.pending.swap(true, Ordering::AcqRel) {
            self.signal.raise();
        }
    }

    /// Keeps it silent until the next [`silence`](Self::silence), for somebody who will look in a
    /// moment anyway.
    pub fn hush(&self) {
        if planted!("doorbell_hush_stores") {
            self.pending.store(true, Ordering::Release);
            return;
        }
        // AcqRel: partner is the swap in `silence`. It must be a swap: a plain store would hide
        // what a ring before it released, and that ring may have found the flag set and been quiet.
        self.pending.swap(true, Ordering::AcqRel);
    }

    /// Answers: reads the descriptor, then lets the next ring through. Call before looking.
    #[inline]
    pub fn silence(&self) {
        self.signal.lower();
        // AcqRel: partner is the swap in `ring`. It must be a swap: a plain store would not read
        // from a ring that found the flag set, and so would not see what that caller stored.
        self.pending.swap(false, Ordering::AcqRel);
    }

    /// The descriptor to watch for reading.
    #[cfg(not(loom))]
    pub fn fd(&self) -> std::os::fd::RawFd {
        self.signal.fd()
    }

    /// The same, for those who raise it beside us, as the kernel can. Whoever is woken by that
    /// must look without having been rung for.
    #[cfg(not(loom))]
    pub fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.signal.as_fd()
    }

    /// Sleeps until the descriptor is readable.
    #[cfg(loom)]
    pub(super) fn wait(&self) {
        self.signal.wait();
    }
}

impl Wake for Doorbell {
    fn wake(&self) {
        self.ring();
    }
}
