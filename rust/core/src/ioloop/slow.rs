//! Storage that takes its time is told of while it does: one timer for the oldest operation, however
//! many there are.

use std::time::Duration;

use super::{
    metrics::{Now, SlowOperation},
    table::Row,
    turn::{Due, IoLoop},
};
use crate::{clock::Mono, sync::lock};

/// Finished operations that a list of them may carry along before it is swept.
const KEPT_MIN: usize = 64;

impl IoLoop {
    /// One timer watches for the oldest storage operation to become slow.
    pub(super) fn watch_for_slow(&mut self, since: Mono) {
        if self.watching {
            return;
        }
        let at = since.after(self.settings.slow_after);
        self.watching = self.wheel.schedule(at, Due::Slow).is_ok();
    }

    pub(super) fn look_for_slow(&mut self) {
        self.watching = false;
        let now = self.clock.now();
        for key in self.table.tokens() {
            let Some(row) = self.table.get(key) else {
                continue;
            };
            let since = row
                .in_flight_since()
                .filter(|_| row.traits.kind.is_storage());
            let slow = since.is_some_and(|since| now.since(since) >= self.settings.slow_after);
            if slow && row.mark_slow() {
                self.slow_now += 1;
                self.shared.metrics.slow.up();
                let (id, kind) = (row.id, row.traits.kind);
                let age = since.map_or(Duration::ZERO, |since| now.since(since));
                self.shared.metrics.note(SlowOperation {
                    id,
                    kind,
                    place: row.whereabouts(),
                    age,
                    over: false,
                    at: now,
                });
                if let Some(waiter) = &row.waiter {
                    waiter.sink.slow(waiter.tag);
                }
            }
        }
        if let Some(since) = self.table.oldest_quiet() {
            self.watch_for_slow(since);
        }
    }

    pub(super) fn note_slow(&self, row: &Row, now: Mono, over: bool) {
        let since = row.in_flight_since().unwrap_or(now);
        self.shared.metrics.note(SlowOperation {
            id: row.id,
            kind: row.traits.kind,
            place: row.whereabouts(),
            age: now.since(since),
            over,
            at: now,
        });
    }

    /// Since when the oldest storage operation has been in flight.
    fn oldest(&mut self) -> Option<Mono> {
        let table = &mut self.table;
        while let Some((_, key)) = self.oldest.front()
            && table.get(*key).is_none()
        {
            self.oldest.pop_front();
        }
        // Behind one that hangs, others come and go.
        if self.oldest.len() > 2 * table.in_flight() + KEPT_MIN {
            self.oldest.retain(|(_, key)| table.get(*key).is_some());
        }
        self.oldest.front().map(|(since, _)| *since)
    }

    /// Lets others see how things stand.
    pub(super) fn tell(&mut self) {
        let oldest = self.oldest();
        let effort = self.backend.as_ref().map(|backend| backend.effort());
        let mut told = lock(&self.shared.metrics.now);
        *told = Now {
            in_flight: self.table.in_flight() as u64,
            slow: self.slow_now,
            oldest,
            backend: effort.unwrap_or(told.backend),
        };
    }
}
