//! A backend that one thread turns now and another one later, whatever becomes of the first.
//!
//! Its ring is a plain one. It may be turned by any thread, one at a time: `&mut` is the one at a
//! time, and the kernel asks for no more, because it guards its own side with a lock per ring and
//! finishes what a thread submitted also when that thread has ended. There are two exceptions, and
//! both concern requests that a worker of the kernel has taken over, which come back cancelled
//! when the thread that submitted them ends:
//!
//! 1. Background requests, and what a program asks for that would block, would all take that way.
//!    Threads of ours carry them out ([`Flight::sort`](super::flight::Flight::sort)).
//! 2. The kernel may take it for a foreground transfer that would block. One that comes back
//!    cancelled, and nobody asked for that, had not begun; it is submitted again.
//!
//! The second happens to every ring, also where no thread ends: a kernel that cannot start a worker,
//! because a signal for the submitting thread comes in between, cancels what waits for one
//! (`create_worker_cont` in its `io_uring/io-wq.c`).

use super::{UringBackend, flight::Flight};

impl UringBackend {
    /// Whether a flight was cancelled for want of a worker, and may be submitted again.
    pub(super) fn is_orphan(closed: bool, flight: &mut Flight, answer: i32) -> bool {
        let cancelled = answer == -libc::ECANCELED && !planted!("uring_orphans");
        cancelled && !closed && flight.may_begin_again()
    }
}
