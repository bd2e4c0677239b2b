//! Requests that are given up, and flights that wait for another submission: both live between two
//! answers of the kernel.

use super::{Key, UringBackend};
use crate::io::{
    Cancelled, Token,
    worker::{take, withdrawn},
};

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
