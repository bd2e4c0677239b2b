//! A turn for those who must not wait, and what they may know of the committer between turns.

use std::time::Duration;

use super::{Committer, Next};
use crate::{
    clock::Clock,
    ids::Lsn,
    io::{Backend, Wait},
    sync::Arc,
};

/// What a committer is about, looked at between two turns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Outlook {
    /// Groups in flight.
    pub(crate) groups: usize,
    /// Whether another group could be submitted.
    pub(crate) has_room: bool,
    /// Whether what is on the ring waits on purpose, for company or an instant.
    pub(crate) is_held: bool,
    /// LSN of the next record to be gathered.
    pub(crate) next: Lsn,
    /// Smoothed size of a group's frame.
    pub(crate) group_bytes: u64,
}

impl Committer {
    /// Takes answers, settles, gathers and submits, all without waiting. At the end of an orderly
    /// close nothing is left but the tidying up, which is for a [`turn`](Self::turn) of a thread
    /// that may wait.
    pub(crate) fn step(&mut self, backend: &mut dyn Backend) -> Next {
        self.wait(backend, Wait::Never);
        loop {
            let next = self.go_on(backend);
            if next == Next::Done {
                return next;
            }
            // What was staged is submitted here; some of it may be answered already.
            self.wait(backend, Wait::Never);
            if self.finished.is_empty() {
                return next;
            }
        }
    }

    /// Whether a group waits a moment for company. Only for who has nothing else to do.
    pub(crate) fn be_patient(&mut self, yes: bool) {
        let most = self.shared.settings.patience_max;
        self.company.limit(if yes { most } else { Duration::ZERO });
    }

    pub(crate) fn clock(&self) -> Arc<dyn Clock> {
        Arc::clone(&self.clock)
    }

    pub(crate) fn outlook(&self) -> Outlook {
        Outlook {
            groups: self.flights.len(),
            has_room: self.rotation.is_none() && self.flights.len() < self.window,
            is_held: self.gathering_since.is_some() || self.is_patient,
            next: self.next,
            group_bytes: self.group_bytes,
        }
    }
}
