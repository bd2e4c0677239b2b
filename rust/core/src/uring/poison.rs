//! When the ring itself fails: what passes is waited out, what does not poisons the backend.

use std::{io, time::Duration};

use super::{Ring, UringBackend};
use crate::{
    error::{Error, ErrorKind, Result},
    io::{Finished, worker::refused},
};

/// How often in a row entering may be refused for want of memory or room, a millisecond apart.
const ENTER_TRIES_MAX: u32 = 1000;

impl UringBackend {
    /// Interrupted and out of time are no refusals. Short of memory or room passes, mostly by
    /// reaping, which our caller does next. False: it passes later, and who turns must not wait.
    pub(super) fn on_enter_refused(&mut self, error: &io::Error) -> Result<bool> {
        match error.raw_os_error() {
            Some(libc::EINTR | libc::ETIME) => Ok(true),
            // Not counted: it may come any number of times before somebody has waited.
            Some(libc::EAGAIN | libc::EBUSY | libc::ENOMEM)
                if self.spares_caller || self.hurries =>
            {
                self.has_left_over = true;
                Ok(false)
            }
            Some(libc::EAGAIN | libc::EBUSY | libc::ENOMEM) if self.refusals < ENTER_TRIES_MAX => {
                self.refusals += 1;
                if !self.ring.as_mut().is_some_and(Ring::has_answers) {
                    std::thread::sleep(Duration::from_millis(1));
                }
                Ok(true)
            }
            _ => Err(Error::from_io(error, "io_uring_enter")),
        }
    }

    /// Answers everybody with `cause`. What the kernel knows is leaked, with the ring and the
    /// lock, so that nobody writes beside it.
    pub(super) fn fail(&mut self, cause: Error) {
        let told = || {
            Error::new(
                ErrorKind::Poisoned,
                "the ring failed; its outcomes are unknown",
            )
            .caused_by(cause.clone())
        };
        let in_line = self.lines.clear().into_iter();
        self.ready
            .extend(in_line.map(|flight| flight.finish(Err(told()))));
        let parked = std::mem::take(&mut self.later);
        let parked = parked.into_iter().map(|(_, key)| key);
        for key in std::mem::take(&mut self.again).into_iter().chain(parked) {
            if let Some(flight) = self.table.remove(key) {
                self.ready.push(flight.finish(Err(told())));
            }
        }
        let leaked = !self.table.is_empty();
        for key in self.table.keys() {
            if let Some(flight) = self.table.remove(key) {
                self.ready.push(flight.abandon(told()));
            }
        }
        if leaked && !planted!("uring_closes_poisoned_ring") {
            std::mem::forget((self.ring.take(), self.held.clone()));
        } else {
            self.ring = None;
        }
        self.keys.clear();
        self.cancels.clear();
        self.poison.get_or_insert(cause);
    }

    /// Answers what came in after the failure.
    pub(super) fn refuse_all(&mut self, cause: &Error) {
        let fresh = self.fresh.drain(..).chain(self.background.drain(..));
        let waiting = fresh.chain(self.calls.drain(..));
        self.ready.extend(waiting.map(|request| {
            Finished {
                result: Err(
                    Error::new(ErrorKind::Poisoned, "the ring failed before this")
                        .caused_by(cause.clone()),
                ),
                ..refused(request)
            }
        }));
        self.collect();
    }
}
