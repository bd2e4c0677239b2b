//! Sockets: one request of a direction at a time.
//!
//! A stream has one order. The kernel serves what it was given together in any order, and goes
//! from one to the other in the middle of each; so it knows only the first of those that want the
//! same direction of a socket, and the others wait here.
//!
//! # Always true
//!
//! 1. A direction of a socket has a line exactly while a flight on it is in the table.
//! 2. The next one follows when the kernel has given its last answer to the one before: what was
//!    cancelled may still move bytes until then.
//! 3. The next one on a socket begins when what the one before had received for nobody is in the
//!    stash, and takes that first.
//! 4. The kernel knows nothing of a flight in line, so it may be dropped.

use std::{
    collections::{HashMap, VecDeque},
    os::fd::RawFd,
};

use super::{Key, UringBackend, flight::Flight};
use crate::io::{Class, Token};

/// A direction of a socket. The flights on it keep the descriptor's number from being reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Place {
    pub fd: RawFd,
    pub sends: bool,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Lines {
    lines: HashMap<Place, VecDeque<Flight>>,
    /// Where the flights of a program wait, so that they can be cancelled.
    places: HashMap<Token, Place>,
}

impl Lines {
    /// The flight, if it may begin; else it stands in line now.
    fn enter(&mut self, flight: Flight) -> Option<Flight> {
        let Some(place) = flight.place() else {
            return Some(flight);
        };
        match self.lines.get_mut(&place) {
            Some(_) if planted!("uring_streams_mixed") => Some(flight),
            Some(line) => {
                if flight.class() == Class::Program {
                    self.places.insert(flight.token(), place);
                }
                line.push_back(flight);
                None
            }
            None => {
                self.lines.insert(place, VecDeque::new());
                Some(flight)
            }
        }
    }

    /// The one before is over: who follows it?
    fn follow(&mut self, place: Place) -> Option<Flight> {
        let Some(next) = self.lines.get_mut(&place)?.pop_front() else {
            self.lines.remove(&place);
            return None;
        };
        self.places.remove(&next.token());
        Some(next)
    }

    /// Takes one out of its line.
    pub(super) fn take(&mut self, token: Token) -> Option<Flight> {
        let place = self.places.remove(&token)?;
        let line = self.lines.get_mut(&place)?;
        let at = line.iter().position(|flight| flight.token() == token)?;
        line.remove(at)
    }

    /// Ends all lines; those who stood there.
    pub(super) fn clear(&mut self) -> Vec<Flight> {
        self.places.clear();
        self.lines.drain().flat_map(|(_, line)| line).collect()
    }
}

impl UringBackend {
    /// Gives a flight its place in the table, unless it has to wait for another one.
    pub(super) fn board(&mut self, flight: Flight) -> Option<Key> {
        let flight = self.lines.enter(flight)?;
        self.begin(flight)
    }

    /// Gives a place in the table to the first of a line, or of those behind it, that needs the
    /// kernel: some may have all they want from the stash of their socket.
    fn begin(&mut self, first: Flight) -> Option<Key> {
        let mut next = Some(first);
        while let Some(mut flight) = next {
            let Some(answer) = flight.begin() else {
                return Some(self.seat(flight));
            };
            let place = flight.place();
            self.ready.push(flight.finish(Ok(answer)));
            next = place.and_then(|place| self.lines.follow(place));
        }
        None
    }

    fn seat(&mut self, flight: Flight) -> Key {
        self.background_in_ring |= flight.is_background();
        let (token, named) = (flight.token(), flight.class() == Class::Program);
        let key = self.table.insert(flight);
        if named {
            self.keys.insert(token, key);
        }
        key
    }

    /// Takes a flight out of the table that the kernel has let go of, and lets the next one on its
    /// socket begin.
    pub(super) fn let_off(&mut self, key: Key) -> Option<Flight> {
        let flight = self.table.remove(key)?;
        self.background_in_ring &= !flight.is_background();
        if flight.class() == Class::Program {
            self.keys.remove(&flight.token());
        }
        flight.put_back();
        if let Some(next) = flight.place().and_then(|place| self.lines.follow(place))
            && let Some(key) = self.begin(next)
        {
            self.again.push_back(key);
        }
        Some(flight)
    }
}
