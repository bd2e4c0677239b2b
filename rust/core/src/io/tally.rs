//! What plain calls took beyond one each, noted on the thread that makes them.
//!
//! Always true: what is noted belongs to the request that this thread carries out, or carried out
//! last; [`take`] after it hands it to whoever adds it up.

use std::cell::Cell;

use super::Effort;

/// See the module.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    /// Calls begun again because the kernel said "interrupted" or "try again".
    pub retried: u64,
    /// Calls that moved less than was asked for, and were followed by another.
    pub short: u64,
}

thread_local! {
    static HERE: Cell<Tally> = const { Cell::new(NOTHING) };
}

const NOTHING: Tally = Tally {
    retried: 0,
    short: 0,
};

impl Tally {
    /// Counts `more` too.
    pub(crate) fn add(&mut self, more: Self) {
        self.retried += more.retried;
        self.short += more.short;
    }

    /// Adds this to what else it took.
    pub(crate) fn count_in(self, effort: &mut Effort) {
        effort.retried += self.retried;
        effort.short += self.short;
    }
}

/// A call is begun again.
pub(super) fn retried() {
    let now = HERE.get();
    HERE.set(Tally {
        retried: now.retried + 1,
        ..now
    });
}

/// A call moved `count` of the bytes it was asked for, and did not find the end.
pub(super) fn moved(count: usize, asked: usize) {
    if count < asked {
        let now = HERE.get();
        HERE.set(Tally {
            short: now.short + 1,
            ..now
        });
    }
}

/// What was noted on this thread since the last call.
pub(crate) fn take() -> Tally {
    HERE.replace(NOTHING)
}
