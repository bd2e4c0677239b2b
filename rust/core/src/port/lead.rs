//! Whether somebody leads, who sees to what is published without being told of each.
//!
//! The leader looks once more after it has left; a publisher asks, after publishing, whether anybody
//! leads. A sequentially consistent fence on each side makes one of the two see the other.
//!
//! ```text
//! publisher   publish | fence | is anybody leading?  --> yes: nothing to do, no: see to it
//! leader      leave   | fence | look once more
//! ```

use crate::sync::{AtomicBool, Ordering, fence};

/// See the module.
#[derive(Debug)]
pub(crate) struct Lead {
    is_led: AtomicBool,
}

impl Lead {
    pub(crate) fn new() -> Self {
        Self {
            is_led: AtomicBool::new(false),
        }
    }

    /// From now on the caller sees to everything.
    pub(crate) fn take(&self) {
        self.is_led.store(true, Ordering::Relaxed);
    }

    /// No longer. Look once more after this.
    pub(crate) fn leave(&self) {
        self.is_led.store(false, Ordering::Relaxed);
        if !planted!("lead_leaves_unfenced") {
            // Partner: the fence in `sees_it`.
            fence(Ordering::SeqCst);
        }
    }

    /// Whether somebody leads; only a hint.
    #[inline]
    pub(crate) fn is_led(&self) -> bool {
        self.is_led.load(Ordering::Relaxed)
    }

    /// After publishing: whether whoever leads sees it, so that nobody else need.
    #[inline]
    pub(crate) fn sees_it(&self) -> bool {
        // Partner: the fence in `leave`.
        fence(Ordering::SeqCst);
        self.is_led()
    }
}
