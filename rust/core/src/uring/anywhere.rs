//! A backend that one thread turns now and another one later, whatever becomes of the first.
//!
//! Its ring is a plain one. It may be turned by any thread, one at a time: `&mut` is the one at a
//! time, and the kernel asks for no more, because it guards its own side with a lock per ring and
//! finishes what a thread submitted also when that thread has ended. There are two exceptions, and
//! both concern requests that a worker of the kernel has taken over, which come back cancelled
//! when the thread that submitted them ends:
//!
//! 1. Background requests would all take that way. Here a thread of ours carries them out.
//! 2. The kernel may take it for a foreground transfer that would block. One that comes back
//!    cancelled, and nobody asked for that, had not begun; it is submitted again.

use super::{
    UringDisk,
    flight::{Flight, Way},
};
use crate::{
    io::{Class, Request},
    uring::UringBackend,
};

impl UringDisk {
    /// Backends for any thread; see [`anywhere`](self).
    #[must_use]
    pub fn for_any_thread(mut self) -> Self {
        self.setup.plain = true;
        self.any_thread = true;
        self
    }
}

impl UringBackend {
    /// Who carries `request` out.
    pub(super) fn sort(&self, request: Request) -> Way {
        let apart = self.any_thread && !cfg!(mutant = "uring_orphans");
        if apart && request.class == Class::Background {
            return Way::Calls(request);
        }
        Flight::sort(request)
    }
}

/// Whether `flight` was cancelled because a thread ended, and may be submitted again.
pub(super) fn is_orphan(is_for_any_thread: bool, flight: &mut Flight, answer: i32) -> bool {
    let cancelled = answer == -libc::ECANCELED && !cfg!(mutant = "uring_orphans");
    is_for_any_thread && cancelled && flight.may_begin_again()
}
