//! Requests that are given up, and flights that wait for another submission: both live between two
//! answers of the kernel.

use std::time::Duration;

use super::{Key, UringBackend, flight::Flight};
use crate::{
    clock::Mono,
    io::{
        Cancelled, Token,
        worker::{take, withdrawn},
    },
};

/// When an event loop comes back to a kernel that was short of memory or room.
const REFUSED_PAUSE: Duration = Duration::from_millis(1);

impl UringBackend {
    /// Flights whose pause is over join those that need another submission.
    pub(super) fn wake_retries(&mut self) {
        if self.later.is_empty() {
            return;
        }
        let now = self.clock.now();
        let again = &mut self.again;
        self.later.retain(|(due, key)| {
            let waits = *due > now;
            if !waits {
                again.push_back(*key);
            }
            waits
        });
    }

    /// Shortens a wait to the next flight that is to be tried again.
    pub(super) fn until_retry(&self, now: Mono, left: Option<Duration>) -> Option<Duration> {
        let next = self.later.iter().map(|(due, _)| due.since(now)).min();
        match (left, next) {
            (Some(left), Some(next)) => Some(left.min(next)),
            (left, next) => left.or(next),
        }
    }

    /// See [`Backend::due`](crate::io::Backend::due).
    pub(super) fn next_attempt(&self) -> Option<Mono> {
        if self.closed || self.origin.is_forked_child() || planted!("uring_retries_unannounced") {
            return None;
        }
        let retry = self.later.iter().map(|(due, _)| *due).min();
        let refused = self.has_left_over && self.hurries;
        let calls = !self.calls.is_empty() && !self.spares_caller;
        let pause = match (calls, refused) {
            (true, _) => Some(Duration::ZERO),
            (false, true) => Some(REFUSED_PAUSE),
            (false, false) => None,
        };
        let soon = pause.map(|pause| self.clock.now().after(pause));
        [retry, soon].into_iter().flatten().min()
    }

    /// See [`Backend::disown`](crate::io::Backend::disown).
    pub(super) fn lose_owner(&mut self, token: Token) -> bool {
        if self.origin.is_forked_child() {
            return false;
        }
        let key = self.keys.get(&token).copied();
        let flight = key.and_then(|key| self.table.get(key));
        flight.map(Flight::disown).is_some()
    }

    /// Gives up a request of a program, wherever it is.
    pub(super) fn give_up(&mut self, token: Token) -> Cancelled {
        let waiting = take(&mut self.fresh, token).or_else(|| take(&mut self.calls, token));
        if let Some(request) = waiting {
            self.ready.push(withdrawn(request));
            return Cancelled::Taken;
        }
        if let Some(flight) = self.lines.take(token) {
            self.ready.push(flight.withdraw());
            return Cancelled::Taken;
        }
        let Some(key) = self.keys.get(&token).copied() else {
            return self.pool.cancel(token).unwrap_or(Cancelled::TooLate);
        };
        if let Some(flight) = self.table.get(key) {
            flight.give_up();
        }
        let parked = self.leave_parking(key) || planted!("uring_frees_on_cancel");
        if parked && let Some(flight) = self.let_off(key) {
            self.ready.push(flight.withdraw());
            return Cancelled::Taken;
        }
        if self.table.get(key).is_some() {
            self.cancels.push_back(key);
        }
        Cancelled::Asked
    }

    /// Takes a flight out of those the kernel does not know; false if it is not among them.
    fn leave_parking(&mut self, key: Key) -> bool {
        if let Some(at) = self.again.iter().position(|parked| *parked == key) {
            self.again.remove(at);
            return true;
        }
        let before = self.later.len();
        self.later.retain(|(_, parked)| *parked != key);
        self.later.len() < before
    }
}
