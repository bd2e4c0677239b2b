//! The ring: a bounded queue from many producers to one consumer. Every write enters here.
//!
//! ```text
//! slot      vacant --claim--> claimed --publish--> published --pop--> taken --release--> vacant
//! who       producer, 1 CAS   producer, 1 store    consumer           consumer, 1 swap
//!
//! position  0 ........ released ........ next ......... claimed ........ released + capacity
//!           free again |  taken by the   |  published,  |  free to claim |
//!                      |  consumer       |  or on its   |                |
//!                      |                 |  way         |                |
//! ```
//!
//! The position of an entry is its sequence number; there is no other allocator. The claimed
//! cursor carries the closed mark, so after [`Producer::close`] no claim succeeds and a drain up
//! to [`Consumer::final_position`] sees every entry whose append returned success.
//!
//! The way of an append: weigh, look whether others queue, reserve the bytes (if they are
//! counted), claim, move the payload in, publish, wake the consumer if it said that it sleeps.
//! Between claim and publish there is the move of the payload and nothing else: no allocation, no
//! lock, no foreign code.
//!
//! # Always true
//!
//! 1. An entry is popped exactly once, in claim order, or dropped with the ring and counted.
//! 2. A caller whose append was refused has its entry back.
//! 3. While appends queue, nobody who comes later claims before them.
//! 4. What is claimed and not given back stays within the limits, in entries and in bytes.
//! 5. A sleeper is woken: whoever changes what it waits for either sees that it sleeps, or is
//!    seen by the sleeper's last look. Both sides modify one word, and one of them comes second;
//!    the claimed cursor for the consumer, the released cursor or the byte count for the queue.
//! 6. After the consumer is gone the ring is closed and empty and nobody queues.
//!
//! # Where things are
//!
//! `slot` cells, cursors and all unsafe code; `sequence` positions modulo 2^63; `shared` what
//! both ends hold; `producer`, `consumer` the two ends; `queue` appends that wait; `completion`
//! one answer per entry; `park` sleeping threads and how long to spin first; `statistics` counts.

mod completion;
mod consumer;
mod limits;
#[cfg(loom)]
#[cfg(test)]
mod loom;
mod park;
mod producer;
mod queue;
mod sequence;
mod shared;
mod slot;
mod statistics;
#[cfg(not(loom))]
#[cfg(test)]
mod tests;

pub use completion::{Completion, Outcome, Tally, Ticket, completion};
pub use consumer::{Consumer, Rest};
pub use limits::{Bound, Entries, Limits, Refusal, Refused, Weigh};
pub use park::{Backpressure, Parker};
pub use producer::{Claim, Producer};
pub use queue::{Admission, AdmissionState};
pub use statistics::Statistics;

use crate::Result;

/// Makes a ring and hands out its two ends.
pub fn ring<T: Weigh + Send>(limits: Limits) -> Result<(Producer<T>, Consumer<T>)> {
    ring_from(limits, 0)
}

/// Makes a ring whose first position is `origin`, to test what happens at the wrap.
#[cfg(any(test, feature = "testing"))]
pub fn ring_at<T: Weigh + Send>(limits: Limits, origin: u64) -> Result<(Producer<T>, Consumer<T>)> {
    ring_from(limits, origin)
}

fn ring_from<T: Weigh + Send>(limits: Limits, origin: u64) -> Result<(Producer<T>, Consumer<T>)> {
    let (shared, tap) = shared::Shared::new(limits.checked()?, origin)?;
    Ok((
        Producer::new(crate::sync::Arc::clone(&shared)),
        Consumer::new(shared, tap),
    ))
}
