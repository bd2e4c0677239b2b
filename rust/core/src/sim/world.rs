//! The world that the backends of one simulated disk share: files, handles, locks, requests in
//! flight, faults, and the sequence of events that crash points are counted by.
//!
//! # Always true
//!
//! 1. A request changes nothing before it is answered or, if its owner died, before it lands.
//! 2. Every submission, answer and landing is one event, and the hook sees the world right after
//!    it. The same seed and the same calls give the same events.
//! 3. A lock is free once nobody holds its handle open and no backend that was told to hold it
//!    has changes in flight.

use std::{fmt, time::Duration};

use super::{
    fault::{Faults, Kind},
    flight::{Flight, Late, Target, Zombies},
    random::{Random, mix},
    volume::{Ino, Volume},
};
use crate::{
    clock::{Clock, ManualClock, Mono},
    error::Result,
    io::{Access, Answer, File, Finished, Request},
};

/// How a simulated disk behaves.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// Chooses whatever is left to chance.
    pub seed: u64,
    /// Answers come in any order, not in that of submission.
    pub reorder: bool,
    /// Most answers per poll. One gives the owner a chance to act between any two.
    pub answers_per_poll: usize,
    /// Most requests in flight per backend.
    pub table: usize,
    /// How long a request takes.
    pub latency: Duration,
    /// Up to so much longer, by chance.
    pub jitter: Duration,
    /// Bytes that fit.
    pub capacity_bytes: u64,
    /// Direct I/O is offered.
    pub direct: bool,
    /// Reserving space is offered.
    pub allocate: bool,
    /// A wait for ever with nothing in flight waits for another thread's wake, instead of being
    /// reported as a deadlock.
    pub threaded: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            seed: 0,
            reorder: false,
            answers_per_poll: 1,
            table: 128,
            latency: Duration::ZERO,
            jitter: Duration::ZERO,
            capacity_bytes: u64::MAX,
            direct: true,
            allocate: true,
            threaded: false,
        }
    }
}

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// A request was submitted.
    Submitted,
    /// It was answered.
    Answered {
        /// Without an error.
        is_ok: bool,
    },
    /// A dead owner's request was carried out.
    Landed,
}

/// One event of the world: a crash point.
#[derive(Debug, Clone, Copy)]
pub struct Event {
    /// Its number, from one.
    pub number: u64,
    /// What happened.
    pub phase: Phase,
    /// Whose request.
    pub process: usize,
    /// Its kind.
    pub kind: Kind,
    /// What it is about.
    pub target: Target,
    /// Offset of a transfer.
    pub offset: u64,
    /// Length of a transfer.
    pub length: u64,
}

/// Sees the world right after each event.
pub type Hook = Box<dyn FnMut(&World, &Event) + Send>;

#[derive(Debug)]
pub(super) struct Handle {
    pub target: Target,
    pub write: bool,
    pub direct: bool,
    pub file: File,
}

#[derive(Debug, Clone)]
pub(super) struct Lock {
    pub ino: Ino,
    pub handle: usize,
    pub process: usize,
    pub is_shared: bool,
    pub file: File,
}

#[derive(Debug, Clone, Default)]
pub(super) struct Seat {
    pub process: usize,
    pub holds: Vec<File>,
}

/// See the module.
pub struct World {
    /// Files and directories.
    pub volume: Volume,
    /// Faults on order.
    pub faults: Faults,
    pub(super) settings: Settings,
    pub(super) clock: ManualClock,
    pub(super) flights: Vec<Flight>,
    pub(super) handles: Vec<Handle>,
    pub(super) locks: Vec<Lock>,
    pub(super) seats: Vec<Seat>,
    alive: Vec<bool>,
    pub(super) random: Random,
    events: u64,
    version: u64,
    digest: u64,
    hook: Option<Hook>,
    trace: Option<Vec<Event>>,
}

impl fmt::Debug for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (events, flights) = (self.events, &self.flights);
        write!(f, "World({events} events, in flight: {flights:?})")
    }
}

impl World {
    pub(super) fn new(settings: Settings, volume: Volume) -> Self {
        Self {
            volume,
            faults: Faults::default(),
            settings,
            clock: ManualClock::default(),
            flights: Vec::new(),
            handles: Vec::new(),
            locks: Vec::new(),
            seats: Vec::new(),
            alive: Vec::new(),
            random: Random::new(settings.seed),
            events: 0,
            version: 0,
            digest: settings.seed,
            hook: None,
            trace: None,
        }
    }

    /// A copy in which every process is dead and what they had in flight is left to `zombies`.
    pub(super) fn fork(&self, zombies: Zombies) -> Self {
        let mut copy = Self::new(self.settings, self.volume.clone());
        copy.clock.advance(self.clock.now().since(Mono(0)));
        copy.clock.set_wall_ns(self.clock.wall_ns());
        copy.events = self.events;
        copy.version = self.version;
        copy.seats.clone_from(&self.seats);
        copy.alive = vec![false; self.alive.len()];
        let late = copy.late(zombies);
        let changes = self.flights.iter().filter(|one| one.effect.is_change());
        copy.flights = changes
            .enumerate()
            .filter(|(index, _)| zombies.lands >> (index % 64) & 1 == 1)
            .map(|(_, flight)| flight.orphaned(flight.late.unwrap_or(late)))
            .collect();
        // A lock that nobody holds must not be kept alive by a copy of its handle.
        let held = self.locks.iter().filter(|lock| copy.is_held(lock));
        copy.locks = held.cloned().collect();
        copy
    }

    /// Events so far.
    pub fn events(&self) -> u64 {
        self.events
    }

    /// Number of requests in flight that change files or names.
    pub fn changes_in_flight(&self) -> usize {
        self.flights
            .iter()
            .filter(|one| one.effect.is_change())
            .count()
    }

    /// Tells this history of events from others: the same seed and calls give the same value.
    pub fn digest(&self) -> u64 {
        self.digest
    }

    /// Changes when what a power cut or a kill may leave does.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Handles that somebody still keeps open.
    pub fn open_files(&self) -> usize {
        self.handles
            .iter()
            .filter(|handle| self.is_open(&handle.file))
            .count()
    }

    /// Begins to record events, or stops.
    pub fn record(&mut self, on: bool) {
        self.trace = on.then(Vec::new);
    }

    /// The recorded events.
    pub fn trace(&self) -> &[Event] {
        self.trace.as_deref().unwrap_or_default()
    }

    /// Installs what is to see every event.
    pub fn set_hook(&mut self, hook: Option<Hook>) {
        self.hook = hook;
    }

    pub(super) fn new_process(&mut self) -> usize {
        self.alive.push(true);
        self.alive.len() - 1
    }

    pub(super) fn new_seat(&mut self, process: usize) -> usize {
        self.seats.push(Seat {
            process,
            ..Seat::default()
        });
        self.seats.len() - 1
    }

    pub(super) fn is_alive(&self, process: usize) -> bool {
        self.alive.get(process) == Some(&true)
    }

    /// Ends a process at once.
    pub(super) fn kill(&mut self, process: usize, zombies: Zombies) {
        self.alive[process] = false;
        let late = self.late(zombies);
        let seats = &self.seats;
        let mut index = 0;
        self.flights.retain_mut(|flight| {
            if seats[flight.seat].process != process || flight.late.is_some() {
                return true;
            }
            let is_change = flight.effect.is_change();
            let lands = is_change && zombies.lands >> (index % 64) & 1 == 1;
            index += u64::from(is_change);
            *flight = flight.orphaned(late);
            lands
        });
        self.land();
    }

    fn late(&self, zombies: Zombies) -> Late {
        Late {
            at_event: self.events.saturating_add(zombies.after_events),
            at_time: self.clock.now().after(zombies.after),
        }
    }

    pub(super) fn in_flight(&self, seat: usize) -> usize {
        self.of_seat(seat).count()
    }

    fn of_seat(&self, seat: usize) -> impl Iterator<Item = &Flight> {
        let mine = move |one: &&Flight| one.seat == seat && one.late.is_none();
        self.flights.iter().filter(mine)
    }

    pub(super) fn hold(&mut self, seat: usize, lock: &File) {
        self.seats[seat].holds.push(lock.clone());
    }

    pub(super) fn let_go(&mut self, seat: usize) {
        self.seats[seat].holds.clear();
    }

    /// Takes a request from `seat`, or gives it back.
    pub(super) fn submit(&mut self, seat: usize, request: Request) -> Result<(), Request> {
        if self.in_flight(seat) >= self.settings.table {
            return Err(request);
        }
        let kind = Kind::of(&request.op);
        let (effect, buffer, file) = self.plan(request.op);
        let jitter = self
            .random
            .below(self.settings.jitter.as_nanos() as u64 + 1);
        let latency = self.settings.latency + Duration::from_nanos(jitter);
        self.flights.push(Flight {
            seat,
            token: request.token,
            kind,
            effect,
            buffer,
            _file: file,
            submitted: self.events + 1,
            due: self.clock.now().after(latency),
            trouble: self.faults.next(kind),
            late: None,
        });
        let flight = &self.flights[self.flights.len() - 1];
        let event = self.event(flight, Phase::Submitted);
        let mark = flight.effect.mark();
        self.tell(event, mark);
        self.land();
        Ok(())
    }

    /// The request of `seat` that is answered next, if one is due.
    pub(super) fn next_due(&mut self, seat: usize) -> Option<usize> {
        let now = self.clock.now();
        let mine = |one: &Flight| one.seat == seat && one.late.is_none() && !one.is_stalled();
        let due = |one: &Flight| mine(one) && (self.settings.reorder || one.due <= now);
        let count = self.flights.iter().filter(|one| due(one)).count();
        if count == 0 {
            return None;
        }
        let places = self.flights.iter().enumerate().filter(|(_, one)| due(one));
        if self.settings.reorder {
            let chosen = self.random.below(count as u64) as usize;
            return places.map(|(place, _)| place).nth(chosen);
        }
        places
            .min_by_key(|(_, one)| one.due)
            .map(|(place, _)| place)
    }

    /// When something happens next that a wait of `seat` would see.
    pub(super) fn next_time(&self, seat: usize) -> Option<Mono> {
        let answers = self
            .of_seat(seat)
            .filter(|one| !one.is_stalled())
            .map(|one| one.due);
        let landings = self
            .flights
            .iter()
            .filter_map(|one| one.late.map(|late| late.at_time));
        answers.chain(landings).min()
    }

    pub(super) fn advance_to(&mut self, time: Mono) {
        self.clock.advance(time.since(self.clock.now()));
        self.land();
    }

    /// Answers the request at `place`.
    pub(super) fn answer(&mut self, place: usize) -> Finished {
        let mut flight = self.flights.remove(place);
        let seq = self.events + 1;
        let mut buffer = flight.buffer.take();
        let result = match flight.trouble {
            Some(trouble) => Err(self.suffer(&flight, trouble, seq)),
            None => self.carry_out(&flight, buffer.as_mut(), seq),
        };
        let phase = Phase::Answered {
            is_ok: result.is_ok(),
        };
        let event = self.event(&flight, phase);
        self.tell(event, result_mark(&result));
        self.land();
        Finished {
            token: flight.token,
            buffer,
            result,
        }
    }

    /// Carries out what is left in flight by a backend that is shut down.
    pub(super) fn finish(&mut self, seat: usize, out: &mut Vec<Finished>) {
        while let Some(place) = self.next_due(seat).or_else(|| {
            let mine = |one: &Flight| one.seat == seat && one.late.is_none() && !one.is_stalled();
            self.flights.iter().position(mine)
        }) {
            let answer = self.answer(place);
            out.push(answer);
        }
    }

    /// What a backend leaves in flight at its end, in requests and bytes.
    pub(super) fn leftovers(&self, seat: usize) -> (u64, u64) {
        let bytes = |one: &Flight| one.buffer.as_ref().map_or(0, |buffer| buffer.len() as u64);
        self.of_seat(seat)
            .fold((0, 0), |(count, sum), one| (count + 1, sum + bytes(one)))
    }

    /// Carries out the late changes whose time has come.
    fn land(&mut self) {
        let now = self.clock.now();
        let is_due = |late: Late, events| late.at_event <= events || late.at_time <= now;
        while let Some(place) = self
            .flights
            .iter()
            .position(|one| one.late.is_some_and(|late| is_due(late, self.events)))
        {
            let flight = self.flights.remove(place);
            let _ = self.carry_out(&flight, None, self.events + 1);
            let event = self.event(&flight, Phase::Landed);
            self.tell(event, 0);
        }
    }

    fn event(&self, flight: &Flight, phase: Phase) -> Event {
        let (offset, length) = flight.effect.range();
        Event {
            number: self.events + 1,
            phase,
            process: self.seats[flight.seat].process,
            kind: flight.kind,
            target: flight.effect.target(),
            offset,
            length,
        }
    }

    fn tell(&mut self, event: Event, mark: u64) {
        self.events = event.number;
        self.version += u64::from(event.kind.is_change());
        let phase = match event.phase {
            Phase::Submitted => 1,
            Phase::Answered { is_ok } => 2 + u64::from(is_ok),
            Phase::Landed => 4,
        };
        let words = [phase, event.kind as u64, event.offset, event.length, mark];
        self.digest = words
            .iter()
            .fold(self.digest, |sum, word| mix(sum ^ mix(*word)));
        if let Some(trace) = &mut self.trace {
            trace.push(event);
        }
        if let Some(mut hook) = self.hook.take() {
            hook(self, &event);
            self.hook = Some(hook);
        }
    }

    fn is_open(&self, file: &File) -> bool {
        let kept = self
            .locks
            .iter()
            .filter(|lock| lock.file.number() == file.number())
            .count();
        file.holders() > 1 + kept
    }

    pub(super) fn new_handle(&mut self, target: Target, access: Access) -> Answer {
        let file = File::from_number(self.handles.len() as u64);
        self.handles.push(Handle {
            target,
            write: access.write,
            direct: access.direct,
            file: file.clone(),
        });
        Answer::File(file)
    }
}

fn result_mark(result: &Result<Answer>) -> u64 {
    match result {
        Ok(Answer::Count(count)) => *count as u64,
        Ok(Answer::Length(length)) => *length,
        Ok(_) => 0,
        Err(error) => error.errno().unwrap_or(1).unsigned_abs() as u64 | 1 << 32,
    }
}
