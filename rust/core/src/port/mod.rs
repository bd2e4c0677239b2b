//! The completion port: how engine threads hand results to a thread that sleeps in `epoll`.
//!
//! An event loop watches one file descriptor. Engine threads push plain data and ring; the loop
//! wakes, silences the bell and takes what is there. A thousand completions that arrive while
//! the loop is busy cost one system call.
//!
//! ```text
//! engine thread                      loop thread
//!   push                               (asleep on the descriptor)
//!   pending: false -> true  --ring-->  1 read the descriptor
//!   push                               2 pending: true -> false
//!   pending is true: no ring           3 take items, at most a budget
//!                                      4 budget spent: ring for itself
//! ```
//!
//! # Always true
//!
//! 1. An item pushed before a ring, or while a ring is pending, is seen by the drain that this
//!    ring causes: the drain takes only after it has cleared `pending`.
//! 2. `pending` is cleared after the descriptor is read, so a ring that comes in between is never
//!    swallowed while `pending` stays set.
//! 3. A drain that leaves items behind has rung for itself.
//! 4. Nobody waits and nobody locks on the way in.
//!
//! # Not here
//!
//! What the items mean, and who watches the descriptor: that is the language binding's side.

mod doorbell;
pub mod handshake;
mod lead;
mod signal;
mod told;
mod watch;

#[cfg(all(test, loom))]
mod loom;
#[cfg(all(test, not(loom)))]
mod tests;

pub use doorbell::Doorbell;
#[cfg(not(loom))]
pub(crate) use lead::Lead;
#[cfg(not(loom))]
pub(crate) use told::Told;
pub use watch::Watch;

use std::sync::Arc;

use crate::{
    error::Result,
    sync::{Queue, Wake},
};

/// A queue of finished things with a bell. Shared by `Arc`; drained by one thread.
pub struct Port<T> {
    queue: Queue<T>,
    bell: Arc<Doorbell>,
}

/// What a drain left behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Drained {
    /// Nothing: the next item rings.
    All,
    /// Perhaps something: the bell has been rung, so the drain will be called again.
    BudgetSpent,
}

impl<T: Send> Port<T> {
    /// Opens a port with a descriptor of its own.
    pub fn new() -> Result<Self> {
        Ok(Self {
            queue: Queue::new(),
            bell: Arc::new(Doorbell::new()?),
        })
    }

    /// Hands over one item from any thread.
    pub fn post(&self, item: T) {
        self.queue.push(item);
        self.bell.ring();
    }

    /// The bell, for those who have nothing to hand over but news elsewhere.
    pub fn bell(&self) -> &Arc<Doorbell> {
        &self.bell
    }

    /// Silences the bell, then takes at most `budget` items in the order they were pushed.
    pub fn drain(&self, budget: usize, mut take: impl FnMut(T)) -> Drained {
        if !planted!("port_clear_after_take") {
            self.bell.silence();
        }
        let unfinished = Unfinished(&self.bell);
        let drained = self.take(budget, &mut take);
        std::mem::forget(unfinished);
        if planted!("port_clear_after_take") {
            self.bell.silence();
        }
        if drained == Drained::BudgetSpent && !planted!("port_no_rering") {
            self.bell.ring();
        }
        drained
    }

    fn take(&self, budget: usize, take: &mut impl FnMut(T)) -> Drained {
        for _ in 0..budget {
            match self.queue.pop() {
                Some(item) => take(item),
                None => return Drained::All,
            }
        }
        Drained::BudgetSpent
    }
}

/// A drain that has not come to its end. Dropped by a panic in what it called, it rings for what
/// was not taken.
struct Unfinished<'a>(&'a Doorbell);

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        self.0.ring();
    }
}

impl<T: Send> Wake for Port<T> {
    fn wake(&self) {
        self.bell.ring();
    }
}
