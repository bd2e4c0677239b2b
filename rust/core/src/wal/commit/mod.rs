//! Group commit: one write and one sync answer many writers.
//!
//! Writers publish records on the ring and go on. The committer takes every record that is ready,
//! encodes them as one frame, submits one synchronous write, and moves the durable watermark when
//! it is answered. While a group syncs, the next one gathers; nobody has to tune a batch size.
//!
//! ```text
//! writer     claim --> publish --> wait ..................................> answered
//! committer               gather --> encode --> submit --> settle --> watermark
//!                    appended                        committed, durable
//! ```
//!
//! It is a state machine: [`Committer::turn`] does what can be done now and says how long to wait.
//! It reads the clock of its backend once per turn, starts no thread and takes no lock of a caller.
//!
//! # Always true
//!
//! 1. `durable <= committed <= appended`, and none of them ever moves back.
//! 2. A group is settled only when it and all groups before it were answered with success, so the
//!    watermark never passes a hole, however many groups are in flight.
//! 3. Which records a group holds is decided before its bytes are encoded, and they are settled by
//!    that very write: nobody is answered by a flush that began before their bytes were written.
//! 4. After one failed write nothing is acknowledged until the log is reopened. The kernel may
//!    already have dropped the pages it could not write, so a second sync that succeeds would
//!    prove nothing.
//! 5. A segment receives its first frame only after its header is durable, and its header is
//!    written only after every frame of its predecessor is durable.
//! 6. No block is written twice.

mod company;
mod encode;
mod prepare;
mod rest;
mod rotate;
mod step;

use std::{collections::VecDeque, time::Duration};

use crate::{
    clock::{Clock, Mono},
    error::{Error, ErrorKind},
    ids::Lsn,
    io::{Backend, Buffer, Class, File, Finished, Op, Request, Token, Wait},
    ring::{Consumer, Rest},
    sync::Arc,
};

use super::{
    frame::{self, Encoded, FrameKind, FrameWriter, Stamp},
    group::{Entry, Gathered, gather},
    log::Shared,
};
use company::{Company, LOOK_EVERY};
use prepare::Preparer;

/// A log that was written to and then rests states its last durable LSN after this long, so that
/// later damage to its last group is told from a torn tail.
const IDLE_MARK_AFTER: Duration = Duration::from_millis(50);

/// The next segment is prepared once this share of the active one is used (1 / 8): early enough to
/// be ready under load, late enough that a short-lived log never pays for it.
const PREPARE_AFTER_SHARE: u64 = 8;

/// Groups at least this large are not worth zero-filling for: the fill would cost more bandwidth
/// than the extent conversion it saves.
const FILL_BELOW_GROUP_BYTES: u64 = 256 << 10;

/// Larger groups do not wait for company: their bytes cost more than their sync.
const PATIENT_BELOW_GROUP_BYTES: u64 = 128 << 10;

/// How long to sleep when a producer was interrupted between claim and publish: it is on a run
/// queue, and a scheduler's time slice is of this order.
const NAP: Duration = Duration::from_micros(100);

/// What the committer wants next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Wait for an answer, a wake or an instant, then turn again.
    Wait(Wait),
    /// Closed and drained, or failed and drained: nothing is in flight and nothing will be.
    Done,
}

/// Where frames go.
#[derive(Debug)]
pub(crate) struct Active {
    pub(crate) file: File,
    pub(crate) writer: FrameWriter,
}

impl Active {
    fn segment_bytes(&self) -> u64 {
        self.writer.header().limits.segment_bytes
    }
}

/// Why a request is in flight, from its token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Purpose {
    Frame,
    Header,
    Prepare,
    Cut,
}

impl Purpose {
    fn token(self, number: u64) -> Token {
        Token((self as u64) << 56 | number)
    }

    fn of(token: Token) -> (Self, u64) {
        let purpose = match token.0 >> 56 {
            0 => Self::Frame,
            1 => Self::Header,
            2 => Self::Prepare,
            _ => Self::Cut,
        };
        (purpose, token.0 & ((1 << 56) - 1))
    }
}

/// A frame in flight.
#[derive(Debug)]
struct Flight {
    number: u64,
    /// What is durable once this and all before it are.
    last: Lsn,
    /// Ring bytes to give back.
    weight: usize,
    records: usize,
    submitted: Mono,
    /// It has been answered with success.
    landed: bool,
    kind: FrameKind,
    /// Its buffer is the stock's.
    from_stock: bool,
}

/// Moving to the next segment.
#[derive(Debug)]
enum Rotation {
    /// Waiting for frames in flight and for the prepared segment.
    Waiting,
    /// Its header is being written.
    Header(Active),
}

/// How far an orderly close has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Closing {
    No,
    Draining,
    Marking,
    Marked,
}

/// The one consumer of the ring and the one writer of the active segment.
pub struct Committer {
    shared: Arc<Shared>,
    consumer: Consumer<Entry>,
    clock: Arc<dyn Clock>,
    dir: File,
    active: Active,
    window: usize,
    direct: bool,
    flights: VecDeque<Flight>,
    flight_number: u64,
    rotation: Option<Rotation>,
    preparer: Preparer,
    /// Cuts of earlier segments in flight.
    cuts: usize,
    closing: Closing,
    /// The backend itself failed: it is not asked again.
    broken: bool,
    /// A failed preparation is tried once more when its segment is needed.
    prepare_retried: bool,
    /// LSN of the next record to be gathered.
    next: Lsn,
    /// Highest durable LSN that a frame on disk states.
    stated: Lsn,
    /// When the ring was first seen non-empty since the last group.
    gathering_since: Option<Mono>,
    company: Company,
    /// What is on the ring waits for company or for groups in flight; publishing rings nobody.
    is_patient: bool,
    patient_until: Option<Mono>,
    submitted_at: Option<Mono>,
    settled_at: Mono,
    /// Smoothed size of a group's frame, in bytes.
    group_bytes: u64,
    finished: Vec<Finished>,
    spare: Vec<Buffer>,
}

impl Committer {
    pub(crate) fn new(
        shared: Arc<Shared>,
        consumer: Consumer<Entry>,
        clock: Arc<dyn Clock>,
        dir: File,
        active: Active,
        direct: bool,
    ) -> Self {
        let next = active.writer.header().base;
        let now = clock.now();
        let company = Company::new(shared.settings.patience_max);
        Self {
            window: active.writer.header().limits.window as usize,
            preparer: Preparer::new(dir.clone()),
            shared,
            consumer,
            clock,
            dir,
            active,
            direct,
            flights: VecDeque::new(),
            flight_number: 0,
            rotation: None,
            cuts: 0,
            closing: Closing::No,
            broken: false,
            prepare_retried: false,
            next,
            stated: next.previous(),
            gathering_since: None,
            company,
            is_patient: false,
            patient_until: None,
            submitted_at: None,
            settled_at: now,
            group_bytes: 0,
            finished: Vec::new(),
            spare: Vec::new(),
        }
    }

    /// Lets producers end the waits of `backend`. Once, before the first turn.
    pub fn attach(&self, backend: &dyn Backend) {
        self.consumer.set_wake(Some(backend.waker()));
        self.shared.attach_driver(backend.waker());
    }

    /// Does everything that can be done without waiting; once the end is marked, tidies up, which
    /// may wait for the disk.
    pub fn turn(&mut self, backend: &mut dyn Backend) -> Next {
        let next = self.go_on(backend);
        if next == Next::Done && self.shared.failure().is_none() {
            self.remove_leftovers(backend);
        }
        next
    }

    /// A turn without the tidying up.
    fn go_on(&mut self, backend: &mut dyn Backend) -> Next {
        self.take_answers(backend);
        self.settle();
        if self.shared.failure().is_some() {
            return self.wind_down(backend);
        }
        let now = backend.now();
        self.stage(backend, now);
        if self.shared.failure().is_some() {
            return self.wind_down(backend);
        }
        if self.closing == Closing::Marked && backend.in_flight() == 0 {
            return Next::Done;
        }
        Next::Wait(self.wait_for(backend, now))
    }

    /// Waits as [`turn`](Self::turn) asked. A write published before or during the wait ends it,
    /// if there is room for another group; while there is none, producers ring nobody.
    pub fn wait(&mut self, backend: &mut dyn Backend, wait: Wait) {
        let open = self.rotation.is_none() && self.flights.len() < self.window;
        let held = self.gathering_since.is_some() || self.is_patient;
        let wanted = open && !held && self.closing == Closing::No;
        let sleeps = wait != Wait::Never && wanted && self.shared.failure().is_none();
        let wait = match sleeps.then(|| self.consumer.announce()) {
            None | Some(Rest::Sleep) => wait,
            Some(Rest::Awake) => Wait::Never,
            Some(Rest::Nap) => Wait::Until(backend.now().after(NAP)),
        };
        let polled = backend.poll(&mut self.finished, wait);
        if sleeps {
            self.consumer.retract();
        }
        if let Err(error) = polled {
            self.broken = true;
            self.fail(error);
        }
    }

    /// The engine could not go on (a panic, a lost thread): everybody learns.
    pub fn fail(&mut self, cause: Error) {
        self.shared.poison(cause);
    }

    // ---- answers ----------------------------------------------------------------------------

    fn take_answers(&mut self, backend: &mut dyn Backend) {
        let mut finished = std::mem::take(&mut self.finished);
        for one in finished.drain(..) {
            let (purpose, number) = Purpose::of(one.token);
            match purpose {
                Purpose::Frame => self.on_frame(number, one),
                Purpose::Header => self.on_header(backend, one),
                Purpose::Prepare => {
                    self.preparer
                        .on_finished(one, backend, Purpose::Prepare.token(0));
                }
                // Cutting a sealed segment only saves space: its end is stated in its successor.
                Purpose::Cut => {
                    self.cuts -= 1;
                    self.shared.counters.cut(one.result.is_ok());
                }
            }
        }
        self.finished = finished;
    }

    fn on_frame(&mut self, number: u64, finished: Finished) {
        let landed = finished.result.is_ok() || planted!("failed_sync_taken_for_success");
        if let Some(flight) = self.flights.iter_mut().find(|f| f.number == number) {
            flight.landed = landed;
            let from_stock = flight.from_stock;
            self.take_back(finished.buffer, from_stock);
        }
        if let (Err(error), false) = (finished.result, landed) {
            self.fail(error);
        }
    }

    fn on_header(&mut self, backend: &mut dyn Backend, finished: Finished) {
        self.spare.extend(finished.buffer);
        if let Err(error) = finished.result {
            return self.fail(error);
        }
        if let Some(Rotation::Header(fresh)) = self.rotation.take() {
            self.switch_to(fresh, backend);
        }
    }

    /// Moves the watermark over every group that has landed with nothing missing before it.
    fn settle(&mut self) {
        if self.shared.failure().is_some() {
            return;
        }
        if planted!("settle_out_of_order") {
            self.flights.make_contiguous().sort_by_key(|f| !f.landed);
        }
        let mut durable = None;
        let mut weight = 0;
        let mut records = 0;
        let mut submitted = None;
        while let Some(flight) = self.flights.front().filter(|flight| flight.landed) {
            durable = durable.max(Some(flight.last));
            weight += flight.weight;
            records += flight.records;
            submitted = submitted.or(Some(flight.submitted));
            self.shared.counters.settled(flight.kind);
            self.flights.pop_front();
        }
        let Some(durable) = durable else { return };
        self.settled_at = self.clock.now();
        if let (Some(submitted), true) = (submitted, records > 0) {
            let took = self.settled_at.since(submitted);
            let present = self.consumer.len();
            self.company
                .answered(records, present, took, self.settled_at);
        }
        if durable > self.shared.durable() {
            self.shared.advance(durable);
        }
        self.consumer.release_bytes(weight);
        if self.closing == Closing::Marking && self.flights.is_empty() {
            self.closing = Closing::Marked;
        }
    }

    // ---- staging ----------------------------------------------------------------------------

    fn stage(&mut self, backend: &mut dyn Backend, now: Mono) {
        loop {
            if self.rotation.is_some() {
                self.rotate(backend);
                break;
            }
            if self.flights.len() >= self.window || self.is_held(now) || self.is_patient(now) {
                break;
            }
            let (room, alone_from) = (self.room(), self.alone_from());
            match gather(&mut self.consumer, room, alone_from) {
                Gathered::Nothing => break,
                Gathered::NoRoom => self.rotation = Some(Rotation::Waiting),
                Gathered::Group { entries, bytes } => {
                    self.submit_group(backend, entries, bytes, now);
                }
            }
            if self.shared.failure().is_some() {
                return;
            }
        }
        self.prepare_ahead(backend);
        self.state_watermark(backend, now);
        self.step_close(backend);
    }

    /// A linger or a least interval asks this group to wait for company.
    fn is_held(&mut self, now: Mono) -> bool {
        let settings = &self.shared.settings;
        if settings.linger.is_zero() && settings.sync_interval_min.is_zero() {
            return false;
        }
        if self.consumer.peek().is_none() {
            self.gathering_since = None;
            return false;
        }
        let since = *self.gathering_since.get_or_insert(now);
        self.hold_until(since).is_some_and(|until| now < until) && self.closing == Closing::No
    }

    /// A moment's patience, by what [`Company`] knows.
    fn is_patient(&mut self, now: Mono) -> bool {
        let present = self.consumer.len();
        self.patient_until = None;
        self.is_patient = present > 0
            && self.group_bytes < PATIENT_BELOW_GROUP_BYTES
            && self.closing == Closing::No
            && if self.flights.is_empty() {
                self.patient_until = self.company.wait_until(present, now);
                self.patient_until.is_some()
            } else {
                !self.company.is_worth_another(present)
            };
        self.is_patient
    }

    fn hold_until(&self, since: Mono) -> Option<Mono> {
        let settings = &self.shared.settings;
        let interval = self
            .submitted_at
            .map(|at| at.after(settings.sync_interval_min));
        interval.max(Some(since.after(settings.linger)))
    }

    /// Frame bytes that the next group may hold in the active segment. One block is kept back for
    /// the close marker.
    fn room(&self) -> usize {
        let limits = &self.active.writer.header().limits;
        let kept_back = u64::from(limits.block_bytes) + frame::FRAME_HEADER_BYTES as u64;
        let room = self.active.writer.room().saturating_sub(kept_back) as usize;
        room.min(limits.group_bytes_max as usize)
    }

    fn stamp(&mut self, records: usize) -> Stamp {
        let durable = if planted!("durable_stated_too_high") {
            self.next.plus(records as u64)
        } else {
            self.shared.durable()
        };
        self.stated = durable;
        Stamp {
            durable,
            timestamp_ns: self.clock.wall_ns(),
        }
    }

    fn submit_frame(
        &mut self,
        backend: &mut dyn Backend,
        kind: FrameKind,
        encoded: Encoded,
        weight: usize,
        from_stock: bool,
    ) {
        self.flight_number += 1;
        let number = self.flight_number;
        self.flights.push_back(Flight {
            number,
            last: self.next.previous(),
            weight,
            records: encoded.records as usize,
            submitted: self.clock.now(),
            landed: false,
            kind,
            from_stock,
        });
        self.write(backend, Purpose::Frame.token(number), encoded);
    }

    fn write(&mut self, backend: &mut dyn Backend, token: Token, encoded: Encoded) {
        let op = Op::Write {
            file: self.active.file.clone(),
            offset: encoded.offset,
            length: encoded.length,
            buffer: encoded.buffer,
            sync: !planted!("acknowledge_before_sync"),
        };
        self.submit(backend, token, Class::Foreground, op);
    }

    fn submit(&mut self, backend: &mut dyn Backend, token: Token, class: Class, op: Op) {
        if backend.submit(Request { token, class, op }).is_err() {
            self.fail(Error::new(
                ErrorKind::Io,
                "the I/O backend had no room for a write of the log",
            ));
        }
    }

    fn wait_for(&self, backend: &dyn Backend, now: Mono) -> Wait {
        let held = self
            .gathering_since
            .and_then(|since| self.hold_until(since));
        let due = match (held, self.rest_until()) {
            (Some(held), Some(rest)) => Some(held.min(rest)),
            (held, rest) => held.or(rest),
        };
        if let Some(until) = self.patient_until {
            return Wait::Until(until.min(now.after(LOOK_EVERY)));
        }
        let stalled = self.closing == Closing::Draining && backend.in_flight() == 0;
        match due {
            // A claim is not published yet; its producer was interrupted.
            _ if stalled => Wait::Until(now.after(NAP)),
            Some(due) if due <= now && backend.in_flight() == 0 => Wait::Never,
            Some(due) => Wait::Until(due),
            None => Wait::Forever,
        }
    }
}
