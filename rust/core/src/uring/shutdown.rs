//! The end of a backend: cancel, wait for the kernel's last word, leak what did not answer.
//!
//! Closing a ring does not stop it: the kernel goes on writing into the buffers of what is in
//! flight. So whatever has not answered when the budget is spent is leaked for good and counted,
//! and the lock that the ring holds stays taken until the kernel is done.

use std::time::{Duration, Instant};

use io_uring::opcode;

use super::{CANCEL, Flight, Key, Patience, Table, UringBackend};
use crate::{
    error::{Error, ErrorKind, Result},
    io::{Leftovers, worker::refused},
};

impl UringBackend {
    /// See [`Backend::shutdown`](crate::io::Backend::shutdown). What was answered can still be
    /// polled for.
    pub(super) fn stop(&mut self, budget: Option<Duration>) -> Leftovers {
        let first = !std::mem::replace(&mut self.closed, true);
        if self.origin.is_forked_child() {
            // The maps are not there; unmapping them would hit something else.
            std::mem::forget(self.ring.take());
            self.pool.shutdown(budget, &mut self.ready);
            return self.worker.shutdown(budget, &mut self.ready);
        }
        if !first {
            return Leftovers::default();
        }
        let begun = Instant::now();
        let left = || budget.map(|budget| budget.saturating_sub(begun.elapsed()));
        self.ready.extend(self.fresh.drain(..).map(refused));
        self.ready.extend(self.background.drain(..).map(refused));
        self.ready.extend(self.calls.drain(..).map(refused));
        self.answer_unknown_to_kernel();
        if self.can_turn()
            && let Err(cause) = self.drain(left)
        {
            self.fail(cause);
        }
        let mut leftovers = Leftovers::default();
        for workers in [&mut self.worker, &mut self.pool] {
            let left_behind = workers.shutdown(left(), &mut self.ready);
            if left_behind.requests == 0 {
                workers.hold(None);
            }
            leftovers.add(left_behind);
        }
        let leaked = self.leak();
        leftovers.add(leaked);
        self.close_ring(leaked.requests > 0);
        self.in_flight = self.ready.len();
        leftovers
    }

    fn can_turn(&self) -> bool {
        self.ring.as_ref().is_some_and(super::Ring::is_here)
    }

    /// Answers flights that wait for another submission, or in line: the kernel has let go of
    /// them, or never knew them.
    fn answer_unknown_to_kernel(&mut self) {
        let ended = |flight: Flight| {
            flight.finish(Err(Error::new(
                ErrorKind::Abandoned,
                "the backend was shut down before this was finished",
            )))
        };
        self.ready.extend(self.lines.clear().into_iter().map(ended));
        self.again.extend(self.later.drain(..).map(|(_, key)| key));
        while let Some(key) = self.again.pop_front() {
            if let Some(flight) = self.let_off(key) {
                self.ready.push(ended(flight));
            }
        }
    }

    /// Asks the kernel to cancel everything, and waits for the answers.
    fn drain(&mut self, left: impl Fn() -> Option<Duration>) -> Result<()> {
        let mut cancels = self.table.keys();
        let mut over = false;
        loop {
            self.reap()?;
            self.answer_unknown_to_kernel();
            if self.table.is_empty() || over {
                return Ok(());
            }
            while let Some(key) = cancels.last().copied() {
                if !self.stage_cancel(key) {
                    break;
                }
                cancels.pop();
            }
            // With the time over, one last look at what the kernel has done already.
            let left = left();
            over = left == Some(Duration::ZERO);
            let patience = if over || !cancels.is_empty() {
                Patience::None
            } else {
                Patience::of(left)
            };
            self.enter(patience)?;
        }
    }

    /// Asks the kernel to cancel a flight, unless it is over or was never submitted; false if the
    /// queue is full.
    pub(super) fn stage_cancel(&mut self, key: Key) -> bool {
        if self.table.get(key).is_none() {
            return true;
        }
        let entry = opcode::AsyncCancel::new(key.0).build();
        let entry = entry.user_data(CANCEL | key.0);
        let Some(ring) = self.ring.as_mut() else {
            return true;
        };
        // SAFETY: the entry points at nothing.
        unsafe { ring.stage(&entry) }
    }

    /// Gives up what is still in the table; dropping a table leaks it.
    fn leak(&mut self) -> Leftovers {
        let mut leaked = Leftovers::default();
        for key in self.table.keys() {
            if let Some(flight) = self.table.get(key) {
                leaked.requests += 1;
                leaked.bytes += flight.bytes();
            }
        }
        drop::<Table>(std::mem::take(&mut self.table));
        leaked
    }

    /// Takes the lock out of the ring before it goes, so that the lock is free at once; with
    /// requests left behind it goes with the last of them.
    fn close_ring(&mut self, leaked: bool) {
        let here = self.can_turn();
        if let Some(ring) = self.ring.as_mut()
            && here
            && !leaked
        {
            ring.let_go();
        }
        self.ring = None;
        self.held = None;
    }
}
