//! A request to be woken once, when a watermark moves.
//!
//! The owner of the watermark stores it and calls [`Watch::notify`]; the watcher calls
//! [`Watch::arm_unless`] and sleeps. Either the watcher sees the new watermark, or the owner sees
//! the watch armed: each writes, fences, then reads what the other writes.

use std::sync::Arc;

use crate::sync::{AtomicBool, Ordering, Wake, fence};

/// One watcher's bell and whether it wants to hear it.
pub struct Watch {
    armed: AtomicBool,
    wake: Arc<dyn Wake>,
}

impl Watch {
    /// A watch that is not armed.
    pub fn new(wake: Arc<dyn Wake>) -> Self {
        Self {
            armed: AtomicBool::new(false),
            wake,
        }
    }

    /// Asks for one wake-up, unless `ready` holds already.
    ///
    /// `ready` is looked at again after arming; without that look a watermark that moved just
    /// before would never be heard of. Returns whether `ready` held.
    #[inline]
    pub fn arm_unless(&self, ready: impl Fn() -> bool) -> bool {
        if ready() {
            return true;
        }
        self.arm();
        if planted!("port_no_recheck") {
            return false;
        }
        ready()
    }

    /// Asks for one wake-up. The caller must look at the watermark after this.
    #[inline]
    pub fn arm(&self) {
        self.armed.store(true, Ordering::Relaxed);
        // Partner: the fence in `notify`. The store above is before every later read here, or the
        // owner's store is before this fence and those reads see it.
        fence(Ordering::SeqCst);
    }

    /// Takes the wish back: the watcher is about to look anyway. A wake-up may still be on its way.
    #[inline]
    pub fn disarm(&self) {
        self.armed.store(false, Ordering::Relaxed);
    }

    /// Wakes the watcher if it asked. Call after the watermark was stored.
    #[inline]
    pub fn notify(&self) {
        // Partner: the fence in `arm`.
        fence(Ordering::SeqCst);
        if self.armed.load(Ordering::Relaxed) && self.armed.swap(false, Ordering::Relaxed) {
            self.wake.wake();
        }
    }
}
