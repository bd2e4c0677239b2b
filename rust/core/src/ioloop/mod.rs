//! The I/O loop: file and socket operations for a program, awaitable, cancellable, bounded by
//! deadlines, on any [`Backend`](crate::io::Backend).
//!
//! An [`IoLoop`] is a state machine with [`turn`](IoLoop::turn). Who turns it is somebody else's
//! choice: a [thread of ours](driver::spawn), or the program's own event loop
//! ([`driver::Turnable`]). Callers hold a [`Handle`], from any thread, and never wait.
//!
//! # For callers
//!
//! ```text
//! let engine = engine::io::open(&settings)?;                backend chosen, loop started
//! let handle = engine.handle();                             clones are cheap
//! let deadline = Some(handle.now().after(timeout));         or None
//! let id = handle.submit(Ask::Read { .. }, deadline, sink, tag)?;
//! sink.answer(Answered { id, tag, result })                 once, on the thread that turns
//! handle.forget(id);                                        nobody waits any more
//! handle.close(budget, Some((sink, tag)));                  sink.closed(tag, leftovers), once
//! ```
//!
//! Cached reads need no loop: [`cached::Warmth::read`] tries the page cache on the caller's thread.
//!
//! # A turn
//!
//! ```text
//! take messages --> pass deadlines --> admit --> backend: stage, enter once, reap --> hand out
//!  submit, forget    expired: cancel    urgent, then bulk; at most `size` in flight
//! ```
//!
//! # Deadlines
//!
//! Past when it arrives, or while it waits for admission: `Timeout`, never submitted. In flight:
//! the kernel is asked to cancel, and the request's own answer decides: a full success that was
//! quicker wins; what was stopped, or moved only a part, is a `Timeout`. Whoever waits is answered
//! at the latest one tick after the cancel. File, buffers and place stay with the engine until the
//! kernel's last word, however long that takes. A timeout carries the fact `indeterminate`: 1 if
//! the operation changes something and may have been done, or done in part.
//!
//! # Always true
//!
//! 1. Every accepted submission is answered exactly once.
//! 2. At most `size` requests are with the backend; an eighth of them (at least one, from two on)
//!    is kept for those who wait for durability, and another for all others while some wait. With
//!    a `size` of one they take turns.
//! 3. Requests of a lane go into flight in the order they came.
//! 4. No clock is read while there is nothing to time, and nothing wakes an idle loop.
//! 5. An answer of the backend frees the request's row; nothing else frees a row in flight.
//!
//! # Liveness
//!
//! If everything in flight waits for something that waits for admission, only deadlines free it.
//! With `size` 2, two receives on a socket pair fill the table, and the two sends that would feed
//! them wait behind. Give receives a deadline, or let `size` exceed what may wait for peers.

use std::time::Duration;

pub mod cached;
pub mod driver;
mod end;
mod handle;
mod metrics;
mod request;
mod sink;
mod slow;
mod table;
mod turn;

#[cfg(test)]
pub(crate) mod tests;

pub use handle::Handle;
pub use metrics::{SlowOperation, Statistics};
pub use request::{Ask, Id, Kind, Reply, short_read};
pub use sink::{Answered, Sink, Whereabouts};
pub use turn::{IoLoop, Turned};

use crate::error::{Error, Result};

/// Largest table: what a ring takes.
const SIZE_MAX: usize = 32_768;

/// Numbers of a loop.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// Requests in flight at most; rounded up to a power of two.
    pub size: usize,
    /// The unit of deadlines.
    pub tick: Duration,
    /// How long closing may take; `None` waits for everything.
    pub shutdown_timeout: Option<Duration>,
    /// From when on a storage operation is told of as slow.
    pub slow_after: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            size: 128,
            tick: Duration::from_millis(5),
            shutdown_timeout: None,
            slow_after: Duration::from_secs(1),
        }
    }
}

impl Settings {
    /// Refuses what makes no sense; rounds `size` up to a power of two.
    pub fn checked(self) -> Result<Self> {
        if self.size == 0 || self.size > SIZE_MAX {
            return Err(Error::invalid(format!("size must be from 1 to {SIZE_MAX}"))
                .with("size", self.size as i128));
        }
        if self.tick.is_zero() {
            return Err(Error::invalid("the timeout tick must be more than zero"));
        }
        if self.slow_after.is_zero() {
            return Err(Error::invalid("slow_after must be more than zero"));
        }
        Ok(Self {
            size: self.size.next_power_of_two(),
            ..self
        })
    }

    /// Places kept for those who wait for durability.
    fn reserved(&self) -> usize {
        if planted!("ioloop_no_reserve") || self.size < 2 {
            return 0;
        }
        (self.size / 8).max(1)
    }
}
