//! The end of a loop: drain, then cancel, then leave behind; and the sudden end, by poison.
//!
//! ```text
//! open --close--> draining --empty--> over
//!                    | budget spent
//!                    v
//!                 cancelling --empty--> over
//!                    | grace spent: what the kernel still has is leaked, counted, reported
//!                    v
//!                   over
//! ```

use std::{sync::atomic::Ordering, time::Duration};

use super::{
    table::Row,
    turn::{IoLoop, Phase, Turned},
};
use crate::{
    error::{Error, ErrorKind},
    io::Leftovers,
};

/// How long cancelled requests have to answer once the budget is spent. The kernel answers a
/// cancel that can be honoured within a turn; what takes longer cannot be cancelled.
const GRACE: Duration = Duration::from_millis(100);

impl IoLoop {
    /// Intake is over. What was accepted is served until the shortest of the budgets that were
    /// given is spent.
    pub(super) fn drain_within(&mut self, budget: Option<Duration>) {
        let budgets = [budget, self.settings.shutdown_timeout];
        let mine = budgets.into_iter().flatten().min();
        let mine = mine.map(|budget| self.now().after(budget));
        self.phase = match self.phase {
            Phase::Open => Phase::Draining(mine),
            Phase::Draining(until) => Phase::Draining([until, mine].into_iter().flatten().min()),
            Phase::Cancelling(until) => Phase::Cancelling(until),
            Phase::Over => Phase::Over,
        };
    }

    /// Moves the end forward as far as it goes.
    pub(super) fn follow_phase(&mut self) {
        loop {
            match self.phase {
                Phase::Draining(_) | Phase::Cancelling(_) if self.table.is_empty() => {
                    self.finish(Some(Duration::ZERO));
                }
                Phase::Draining(Some(until)) if self.now() >= until => self.cancel_everything(),
                Phase::Cancelling(until) if self.now() >= until => {
                    self.finish(Some(Duration::ZERO));
                }
                _ => return,
            }
        }
    }

    fn cancel_everything(&mut self) {
        for mut row in self.table.drain_waiting() {
            self.depart(&row);
            let told = abandoned("the engine was shut down before this began", false);
            self.answer(row.id, row.waiter.take(), Err(told));
        }
        for key in self.table.tokens() {
            self.cancel(key);
        }
        self.phase = Phase::Cancelling(self.now().after(GRACE));
    }

    /// Shuts the backend down, which leaks what the kernel still has, and answers everybody.
    fn finish(&mut self, budget: Option<Duration>) {
        let left = self.shut_backend_down(budget);
        self.answer_all(|row| abandoned("the kernel did not answer in time", row.traits.changes));
        self.over(left);
    }

    /// Whether this says no more than that we asked for an end.
    pub(super) fn is_cut_short(&self, error: &Error) -> bool {
        let stopped = error.errno() == Some(libc::ECANCELED);
        let refused = matches!(error.kind(), ErrorKind::Closed | ErrorKind::Abandoned);
        matches!(self.phase, Phase::Cancelling(_))
            && (stopped || refused)
            && !planted!("ioloop_shutdown_tells_errno")
    }

    fn shut_backend_down(&mut self, budget: Option<Duration>) -> Leftovers {
        let Some(mut backend) = self.backend.take() else {
            return Leftovers::default();
        };
        let left = backend.shutdown(budget);
        // The last answers, which the shutdown waited for.
        let mut finished = Vec::new();
        while backend.in_flight() > 0 && backend.poll(&mut finished, crate::io::Wait::Never).is_ok()
        {
            if finished.is_empty() {
                break;
            }
            let now = self.now();
            for one in finished.drain(..) {
                self.on_finished(one, now);
            }
        }
        left
    }

    fn over(&mut self, left: Leftovers) {
        self.shared.metrics.leaked_requests.add(left.requests);
        self.shared.metrics.leaked_bytes.add(left.bytes);
        self.phase = Phase::Over;
        self.tell();
        self.shared.end(left);
    }

    /// Everybody is answered with `cause`. The backend's memory goes the way a shutdown without
    /// patience goes: what the kernel may still touch is leaked.
    pub(super) fn fail(&mut self, cause: Error) -> Turned {
        crate::sync::lock(&self.shared.poison).get_or_insert_with(|| cause.clone());
        // A panic may have left the backend anywhere: nothing of it is used again, and nothing
        // of it is freed.
        let backend = self.backend.take();
        if !planted!("ioloop_frees_after_a_panic") {
            std::mem::forget(backend);
        }
        let told =
            || Error::new(ErrorKind::Poisoned, "the I/O engine failed").caused_by(cause.clone());
        let requests = self.table.in_flight() as u64;
        self.answer_all(|_| told());
        self.over(Leftovers { requests, bytes: 0 });
        Turned::Over
    }

    /// Frees every row; who still waits is told.
    fn answer_all(&mut self, told: impl Fn(&Row) -> Error) {
        for mut row in self.table.drain_all() {
            self.shared.pending.fetch_sub(1, Ordering::Relaxed);
            let error = told(&row);
            self.answer(row.id, row.waiter.take(), Err(error));
        }
    }
}

pub(super) fn abandoned(why: &'static str, indeterminate: bool) -> Error {
    Error::new(ErrorKind::Abandoned, why).with("indeterminate", i128::from(indeterminate))
}
