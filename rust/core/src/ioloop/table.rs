//! The waiters: everything asked for and not yet over, each under a token that is used once.
//!
//! ```text
//!            expire, forget: freed
//!           /
//! arrived waiting --admit--> in flight --finish--> freed
//!                               |  \
//!                        expire,|   expire + one tick, forget
//!                        forget |    \
//!                               v     v
//!                           cancelled, nobody waits --finish--> freed
//! ```
//!
//! Two things end at different times. The *waiter* is answered once, by the first of: the answer,
//! the deadline, the end of the engine. The *row* stays until the backend handed the request back,
//! which is the kernel's last word about file and buffers.
//!
//! # Always true
//!
//! 1. A row holds a sink until its waiter was answered or lost interest, and never after.
//! 2. A token names one row for ever (until 2^32 reuses of one place), so what comes late, a
//!    deadline or an answer, hits nobody else.
//! 3. Every transition says what happened by name; nothing here calls anybody.

use std::sync::Arc;

use super::{
    request::{Ask, Id, Lane, Traits},
    sink::{Sink, Whereabouts},
};
use crate::{
    clock::Mono,
    io::{Stash, Token},
    wheel,
};

/// Who is to be answered, and by which number he knows the request.
pub(super) struct Waiter {
    pub sink: Arc<dyn Sink>,
    pub tag: u64,
}

/// One row.
pub(super) struct Row {
    pub id: Id,
    pub traits: Traits,
    pub waiter: Option<Waiter>,
    pub timer: Option<wheel::Key>,
    /// Of a receive in flight: where an answer goes that comes for nobody, unless the backend sees
    /// to that.
    pub stash: Option<Arc<Stash>>,
    /// Where it takes place, of one that went on when its waiter left.
    place: Option<Box<Whereabouts>>,
    /// When it was asked for.
    pub asked_at: Mono,
    state: State,
}

enum State {
    /// For a place in flight; the request is still ours.
    Waiting(Ask),
    /// With the backend.
    InFlight(Flight),
}

#[derive(Clone, Copy)]
struct Flight {
    since: Mono,
    /// The deadline passed: cancelled by us.
    timed_out: bool,
    /// Told of as slow already.
    slow: bool,
}

/// What a passed deadline led to.
pub(super) enum Expiry {
    /// It never began; its row is freed and its waiter is to be told.
    Left(Box<Row>),
    /// It is in flight and is to be cancelled.
    Cancel,
    /// Over or cancelled already.
    Nothing,
}

/// What a lost interest led to.
pub(super) enum Forgotten {
    /// It never began; its row is freed.
    Left(Box<Row>),
    /// It is in flight, nobody waits any more, and it changes nothing: to be cancelled.
    Cancel,
    /// It goes on without a waiter.
    GoesOn,
    /// Over already.
    Nothing,
}

#[derive(Default)]
struct Place {
    generation: u32,
    row: Option<Box<Row>>,
}

/// See the module.
#[derive(Default)]
pub(super) struct Table {
    places: Vec<Place>,
    free: Vec<u32>,
    in_flight: usize,
    waiting: usize,
}

impl Row {
    pub(super) fn waiting(
        id: Id,
        traits: Traits,
        ask: Ask,
        waiter: Option<Waiter>,
        asked_at: Mono,
    ) -> Self {
        Self {
            id,
            traits,
            waiter,
            timer: None,
            stash: None,
            place: None,
            asked_at,
            state: State::Waiting(ask),
        }
    }

    /// Since when the backend has it.
    pub(super) fn in_flight_since(&self) -> Option<Mono> {
        match &self.state {
            State::InFlight(flight) => Some(flight.since),
            State::Waiting(_) => None,
        }
    }

    /// The waiter leaves. If it waited for storage, which may take its time over the rest, it says
    /// where that is.
    pub(super) fn leave(&mut self) -> Option<Waiter> {
        let waiter = self.waiter.take()?;
        if self.traits.kind.is_storage() && !planted!("ioloop_slow_orphans_are_nowhere") {
            self.place = Some(Box::new(waiter.sink.whereabouts(waiter.tag)));
        }
        Some(waiter)
    }

    /// Where it takes place.
    pub(super) fn whereabouts(&self) -> Whereabouts {
        match (&self.waiter, &self.place) {
            (Some(waiter), _) => waiter.sink.whereabouts(waiter.tag),
            (None, Some(place)) => Whereabouts::clone(place),
            (None, None) => Whereabouts::default(),
        }
    }

    pub(super) fn timed_out(&self) -> bool {
        matches!(&self.state, State::InFlight(flight) if flight.timed_out)
    }

    /// Marks a slow one; false if it was told of before.
    pub(super) fn mark_slow(&mut self) -> bool {
        match &mut self.state {
            State::InFlight(flight) => !std::mem::replace(&mut flight.slow, true),
            State::Waiting(_) => false,
        }
    }

    pub(super) fn is_slow(&self) -> bool {
        matches!(&self.state, State::InFlight(flight) if flight.slow)
    }
}

fn token(place: u32, generation: u32) -> Token {
    if planted!("ioloop_no_generation") {
        return Token(u64::from(place));
    }
    Token(u64::from(generation) << 32 | u64::from(place))
}

impl Table {
    pub(super) fn in_flight(&self) -> usize {
        self.in_flight
    }

    pub(super) fn waiting(&self) -> usize {
        self.waiting
    }

    pub(super) fn is_empty(&self) -> bool {
        self.in_flight + self.waiting == 0
    }

    /// Takes in a waiting row.
    pub(super) fn insert(&mut self, row: Row) -> Token {
        let at = self.free.pop().unwrap_or_else(|| {
            self.places.push(Place::default());
            (self.places.len() - 1) as u32
        });
        let place = &mut self.places[at as usize];
        place.generation = place.generation.wrapping_add(1);
        place.row = Some(Box::new(row));
        self.waiting += 1;
        token(at, place.generation)
    }

    fn place(&mut self, key: Token) -> Option<&mut Place> {
        let place = self.places.get_mut(key.0 as u32 as usize)?;
        let same = token(key.0 as u32, place.generation) == key;
        (same && place.row.is_some()).then_some(place)
    }

    pub(super) fn get(&mut self, key: Token) -> Option<&mut Row> {
        self.place(key)?.row.as_deref_mut()
    }

    fn free(&mut self, key: Token) -> Option<Box<Row>> {
        let row = self.place(key)?.row.take()?;
        match row.state {
            State::Waiting(_) => self.waiting -= 1,
            State::InFlight(_) => self.in_flight -= 1,
        }
        self.free.push(key.0 as u32);
        Some(row)
    }

    /// A waiting row goes into flight; what it asked for is handed out. `None` if it waits no
    /// longer.
    pub(super) fn admit(&mut self, key: Token, now: Mono) -> Option<Ask> {
        let row = self.get(key)?;
        let State::Waiting(_) = row.state else {
            return None;
        };
        let flight = State::InFlight(Flight {
            since: now,
            timed_out: false,
            slow: false,
        });
        let State::Waiting(ask) = std::mem::replace(&mut row.state, flight) else {
            return None;
        };
        self.waiting -= 1;
        self.in_flight += 1;
        Some(ask)
    }

    /// The backend handed the request back.
    pub(super) fn finish(&mut self, key: Token) -> Option<Box<Row>> {
        self.get(key)?.in_flight_since()?;
        self.free(key)
    }

    /// The deadline passed.
    pub(super) fn expire(&mut self, key: Token) -> Expiry {
        let Some(row) = self.get(key) else {
            return Expiry::Nothing;
        };
        row.timer = None;
        match &mut row.state {
            State::Waiting(_) => self.free(key).map_or(Expiry::Nothing, Expiry::Left),
            State::InFlight(flight) if flight.timed_out || row.waiter.is_none() => Expiry::Nothing,
            State::InFlight(flight) => {
                flight.timed_out = true;
                Expiry::Cancel
            }
        }
    }

    /// The waiter is not interested any more.
    pub(super) fn forget(&mut self, key: Token) -> Forgotten {
        let Some(row) = self.get(key) else {
            return Forgotten::Nothing;
        };
        let changes = row.traits.changes && !planted!("ioloop_forget_drops_writes");
        if matches!(row.state, State::Waiting(_)) && !changes {
            return self.free(key).map_or(Forgotten::Nothing, Forgotten::Left);
        }
        match (row.leave(), changes) {
            (_, true) => Forgotten::GoesOn,
            (Some(_), false) => Forgotten::Cancel,
            (None, false) => Forgotten::Nothing,
        }
    }

    /// Every row there is.
    pub(super) fn tokens(&self) -> Vec<Token> {
        let taken = |(at, place): (usize, &Place)| {
            let row = place.row.as_ref().map(|_| place.generation)?;
            Some(token(at as u32, row))
        };
        self.places.iter().enumerate().filter_map(taken).collect()
    }

    /// Those of a lane that never began, freed.
    pub(super) fn drain_waiting(&mut self) -> Vec<Row> {
        let waits = |table: &mut Self, key: &Token| {
            table
                .get(*key)
                .is_some_and(|row| row.in_flight_since().is_none())
        };
        let mut keys = self.tokens();
        keys.retain(|key| waits(self, key));
        keys.into_iter()
            .filter_map(|key| self.free(key))
            .map(|row| *row)
            .collect()
    }

    /// All of them, freed.
    pub(super) fn drain_all(&mut self) -> Vec<Row> {
        let keys = self.tokens();
        keys.into_iter()
            .filter_map(|key| self.free(key))
            .map(|row| *row)
            .collect()
    }

    /// The oldest request in flight that waits for storage and was not yet told of as slow.
    pub(super) fn oldest_quiet(&self) -> Option<Mono> {
        let rows = self.places.iter().filter_map(|place| place.row.as_deref());
        rows.filter(|row| row.traits.kind.is_storage() && !row.is_slow())
            .filter_map(Row::in_flight_since)
            .min()
    }
}

/// Requests that wait for admission, in the order they came, one line for each lane. Rows that
/// left in the meantime are skipped, and swept out before they are the most.
#[derive(Default)]
pub(super) struct Lanes {
    urgent: std::collections::VecDeque<Token>,
    bulk: std::collections::VecDeque<Token>,
}

impl Lanes {
    pub(super) fn push(&mut self, lane: Lane, key: Token) {
        match lane {
            Lane::Urgent => self.urgent.push_back(key),
            Lane::Bulk => self.bulk.push_back(key),
        }
    }

    pub(super) fn push_front(&mut self, lane: Lane, key: Token) {
        match lane {
            Lane::Urgent => self.urgent.push_front(key),
            Lane::Bulk => self.bulk.push_front(key),
        }
    }

    pub(super) fn pop(&mut self, lane: Lane) -> Option<Token> {
        match lane {
            Lane::Urgent => self.urgent.pop_front(),
            Lane::Bulk => self.bulk.pop_front(),
        }
    }

    pub(super) fn has_urgent(&self) -> bool {
        !self.urgent.is_empty()
    }

    /// Tokens kept, of rows that wait and of rows that left.
    pub(super) fn len(&self) -> usize {
        self.urgent.len() + self.bulk.len()
    }

    pub(super) fn has_bulk(&self) -> bool {
        !self.bulk.is_empty()
    }

    /// Nothing waits: what is left are tokens of rows that left.
    pub(super) fn clear(&mut self) {
        self.urgent.clear();
        self.bulk.clear();
    }

    /// Forgets tokens of rows that left, if they are many; `live` is how many rows wait.
    pub(super) fn sweep(&mut self, live: usize, mut waits: impl FnMut(Token) -> bool) {
        const FEW: usize = 64;
        if self.len() <= 2 * live + FEW {
            return;
        }
        self.urgent.retain(|key| waits(*key));
        self.bulk.retain(|key| waits(*key));
    }
}
