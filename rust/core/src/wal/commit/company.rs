//! Whether a group waits a moment for those who were just answered.
//!
//! When a group is answered its writers wake up one after another, and most of them append again
//! at once. Without a moment's patience the writers fall into two halves that take turns, each
//! waiting for the sync of the other: two syncs where one would do. So those who were just answered
//! and those who are there already are expected together, and a group that is much smaller waits
//! for the rest, for at most a share of what a sync costs. A lone writer never waits: one was
//! answered, and one is there.
//!
//! The idea of a delay in proportion to the measured sync is old: the manual page of `PostgreSQL`'s
//! "commit delay" setting advises half of a sync. A quarter is enough here, because the writers run
//! on the other side of one wake-up.

use std::time::Duration;

use crate::clock::Mono;

/// Patience, as a share of the smoothed time of a synchronous write (1 / 4).
const PATIENCE_SHARE: u32 = 4;
/// Weight of the newest sync in the smoothed time (1 / 8).
const SMOOTHING: u32 = 8;
/// How often a waiting committer looks: about what a sleep of the shortest kind takes.
pub(super) const LOOK_EVERY: Duration = Duration::from_micros(10);

/// Remembers how many were answered together, when, and how long a sync takes.
#[derive(Debug)]
pub(super) struct Company {
    patience_max: Duration,
    expected: usize,
    answered_at: Mono,
    sync: Duration,
}

impl Company {
    /// Waits at most `patience_max`, whatever a sync costs; zero switches it off.
    pub(super) fn new(patience_max: Duration) -> Self {
        Self {
            patience_max,
            expected: 0,
            answered_at: Mono(0),
            sync: Duration::ZERO,
        }
    }

    /// From now on waits at most `patience_max`.
    pub(super) fn limit(&mut self, patience_max: Duration) {
        self.patience_max = patience_max;
    }

    /// `records` were answered together, after a sync of `took`, while `present` wait already.
    pub(super) fn answered(&mut self, records: usize, present: usize, took: Duration, now: Mono) {
        self.expected = records + present;
        self.answered_at = now;
        self.sync = if self.sync.is_zero() {
            took
        } else {
            (self.sync * (SMOOTHING - 1) + took) / SMOOTHING
        };
    }

    /// Until when a group of `present` records should wait, if it should. With other groups in
    /// flight it waits for them instead: their writers are not back yet.
    pub(super) fn wait_until(&self, present: usize, now: Mono) -> Option<Mono> {
        let few = present * 4 < self.expected * 3;
        let until = self.answered_at.after(self.patience());
        (few && now < until).then_some(until)
    }

    fn patience(&self) -> Duration {
        (self.sync / PATIENCE_SHARE).min(self.patience_max)
    }

    /// Whether a group of `present` records is worth a second place in flight.
    pub(super) fn is_worth_another(&self, present: usize) -> bool {
        self.patience_max.is_zero() || present * 2 >= self.expected
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const US: Duration = Duration::from_micros(1);

    #[test]
    fn a_lone_writer_never_waits() {
        // One was answered, one is there.
        let mut company = Company::new(100 * US);
        company.answered(1, 0, 200 * US, Mono(0));
        assert_eq!(company.wait_until(1, Mono(1)), None);
    }

    #[test]
    fn few_of_many_wait_a_quarter_of_a_sync_and_no_longer() {
        // Eight were answered, eight more are expected, two are there: wait up to 50 of 200 us; then go.
        let mut company = Company::new(100 * US);
        company.answered(8, 8, 200 * US, Mono(1000));
        let until = Mono(1000).after(50 * US);
        assert_eq!(company.wait_until(2, Mono(2000)), Some(until));
        assert_eq!(company.wait_until(12, Mono(2000)), None);
        assert_eq!(company.wait_until(2, until), None);
    }

    #[test]
    fn patience_is_bounded_and_can_be_switched_off() {
        // A slow disk does not make it endless; zero means never.
        let mut company = Company::new(100 * US);
        company.answered(16, 0, Duration::from_secs(1), Mono(0));
        assert_eq!(
            company.wait_until(2, Mono(0)),
            Some(Mono(0).after(100 * US))
        );
        let mut off = Company::new(Duration::ZERO);
        off.answered(16, 0, Duration::from_secs(1), Mono(0));
        assert_eq!(off.wait_until(2, Mono(0)), None);
        assert!(off.is_worth_another(1));
    }
}
