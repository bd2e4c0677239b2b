//! The I/O contract on the kernel's ring.
//!
//! Transfers, syncs and reservations go through the ring, and what a program asks about names as
//! far as the kernel answers at once ([`names`]). Other names (renaming, locks) are done by plain
//! calls: foreground ones by the thread that polls, background ones by a worker thread, those of a
//! program by a pool; the kernel would hand them to workers of its own.
//!
//! ```text
//! submit --> fresh --stage--> table, ring --enter--> kernel --reap--> finished
//!              \-- plain calls: this thread or a worker -------------/
//! ```
//!
//! Staged in this order: the watch on the bell, cancels, flights that need another submission in
//! the order they came to need it, fresh requests. Fresh ones leave room for the first two. Those
//! on one socket go one after the other ([`lines`]), large durable writes in several submissions
//! side by side (`flight/pieces.rs`).
//!
//! # Always true
//!
//! 1. The table owns file and buffer of a flight from before its first submission is staged until
//!    its last answer is reaped. On every other way out, including a panic, they are leaked.
//! 2. A ring is made by the thread that turns it first. Another thread may turn a tuned one only
//!    if nothing is in flight, and makes a new one; a plain one changes hands freely ([`guests`]).
//! 3. The lock given to `hold` is registered with the ring before any write is staged.
//! 4. An answer the kernel cannot have given, or a ring that cannot be entered, poisons the
//!    backend: everybody is answered with that cause, nothing is staged again, nothing the kernel
//!    knows is freed.
//! 5. In a forked child nothing here is touched but the origin.

use std::{
    collections::{HashMap, VecDeque},
    os::fd::BorrowedFd,
    sync::Arc,
    time::Duration,
};

use io_uring::opcode;

use crate::{
    clock::{Clock, Mono},
    error::{Error, ErrorKind, Result},
    fork::Origin,
    io::{
        Backend, Cancelled, Class, Durability, Effort, File, Finished, Leftovers, Request, Token,
        Wait, Wake, execute, signal::Signal, tally, worker::Workers,
    },
};

mod cancel;
mod disk;
mod flight;
mod guests;
mod lines;
mod names;
mod poison;
mod probe;
mod ring;
mod shutdown;
mod table;
#[cfg(test)]
pub(crate) mod tests;
mod work;

pub use disk::UringDisk;
use flight::{Flight, Step, Way};
use lines::Lines;
use names::Offer;
pub use probe::{Reason, Refusal};
use ring::{Patience, Ring, Setup};
use table::{BELL, CANCEL, Key, Table};

/// Entries of the queue that fresh requests leave free: one for a cancel, one for the bell.
const KEPT: usize = 2;

/// How often one turn enters the kernel before what has finished is handed out.
const ROUNDS_MAX: usize = 16;

/// How long a backend that was dropped without shutdown waits for the kernel.
const DROP_BUDGET: Duration = Duration::from_secs(5);

/// The ring's watch on the signal's bell.
#[derive(Debug, Default)]
struct Bell {
    armed: bool,
    /// This kernel watches once for each arming only.
    once: bool,
}

/// One owner's view of the disk.
struct UringBackend {
    clock: Arc<dyn Clock>,
    capacity: usize,
    setup: Setup,
    /// Writes may ask for durability themselves.
    dsync: bool,
    origin: Origin,
    /// Declared before the ring: the order does not matter to the kernel, which keeps what it
    /// needs of a closed ring; the table leaks what it still has.
    table: Table,
    ring: Option<Ring>,
    bell: Bell,
    /// For background requests.
    worker: Workers,
    /// For requests of a program.
    pool: Workers,
    signal: Arc<Signal>,
    /// Foreground requests, not yet sorted.
    fresh: VecDeque<Request>,
    /// Background requests, not yet sorted.
    background: VecDeque<Request>,
    /// A background request is in the table.
    background_in_ring: bool,
    /// In the table, not known to the kernel, waiting for another submission.
    again: VecDeque<Key>,
    /// As `again`, from an instant on: the kernel said to try later.
    later: Vec<(Mono, Key)>,
    /// Flights that the kernel is to be asked to cancel.
    cancels: VecDeque<Key>,
    /// Where the flights of a program are, so that they can be cancelled.
    keys: HashMap<Token, Key>,
    /// Flights that wait for another one on the same socket.
    lines: Lines,
    /// What the ring does about names.
    offer: Offer,
    /// Turned by threads that may end before the requests they submitted.
    guest: bool,
    /// This thread must not wait: neither for the kernel to have room, nor in plain calls.
    spares_caller: bool,
    /// A guest that is not to wait in this turn: an event loop turns it.
    hurries: bool,
    /// The last turn left something for a thread that may wait, or for later.
    has_left_over: bool,
    /// For this thread, by plain calls.
    calls: VecDeque<Request>,
    /// Finished and not yet handed out.
    ready: Vec<Finished>,
    /// Submitted and not yet handed out.
    in_flight: usize,
    /// How often in a row the kernel refused to be entered.
    refusals: u32,
    effort: Effort,
    held: Option<File>,
    poison: Option<Error>,
    closed: bool,
}

impl UringBackend {
    /// One poll's work. An error poisons. What is staged is submitted by the same call that waits,
    /// if there is anything to wait for.
    fn turn(&mut self, wait: Wait) -> Result<()> {
        self.prepare_ring()?;
        self.has_left_over = false;
        self.hurries = self.guest && wait == Wait::Never;
        loop {
            // In this order: what is nudged about after the take is seen by the announcement.
            let woken = self.signal.take();
            self.reap()?;
            self.stage();
            self.work_here()?;
            let now = self.clock.now();
            let left = wait.left(now);
            let over = woken || !self.ready.is_empty() || left == Some(Duration::ZERO);
            let left = self.until_retry(now, left);
            if over || self.has_more() || !self.signal.announce() {
                self.advance()?;
                if over || !self.ready.is_empty() {
                    return Ok(());
                }
                continue;
            }
            let slept = self.sleep(left);
            let woken = self.signal.retract();
            slept?;
            if woken {
                self.advance()?;
                self.collect();
                return Ok(());
            }
        }
    }

    /// What the threads did.
    fn collect(&mut self) {
        self.worker.collect(&mut self.ready, &mut self.effort);
        self.pool.collect(&mut self.ready, &mut self.effort);
    }

    /// Carries out one plain call, after what is staged is on its way, and collects what the
    /// worker did.
    fn work_here(&mut self) -> Result<()> {
        if self.spares_caller {
            self.has_left_over |= !self.calls.is_empty();
        } else if let Some(request) = self.calls.pop_front() {
            self.advance()?;
            self.ready
                .push(execute::run(request, Durability::Fdatasync));
            tally::take().count_in(&mut self.effort);
        }
        self.collect();
        Ok(())
    }

    /// Whether there is something to do before a sleep.
    fn has_more(&self) -> bool {
        let background = !self.background_in_ring && !self.background.is_empty();
        let staging = self.fresh.is_empty() && self.again.is_empty() && self.cancels.is_empty();
        background || !staging || !self.calls.is_empty()
    }

    /// Stages, submits and reaps until there is nothing to do but wait, or somebody else has waited
    /// long enough: a transfer whose peer is as fast as we are would go on and on here.
    fn advance(&mut self) -> Result<()> {
        let mut fruitful = true;
        for _ in 0..ROUNDS_MAX {
            fruitful |= self.reap()?;
            self.stage();
            let Some(ring) = self.ring.as_mut() else {
                return Ok(());
            };
            // A hint alone is followed only while it leads to answers: the kernel may raise its
            // flag just after the work it speaks of was done, and then nothing lowers it.
            let worth_it = ring.has_staged() || (fruitful && ring.has_hint());
            if !worth_it {
                return Ok(());
            }
            fruitful = false;
            if !self.enter(Patience::None)? {
                return Ok(());
            }
        }
        // Whoever turns comes back at once.
        self.signal.nudge();
        Ok(())
    }

    /// Makes the ring, or makes it anew if another thread turns it now.
    fn prepare_ring(&mut self) -> Result<()> {
        if self.ring.as_ref().is_some_and(Ring::is_here) {
            return Ok(());
        }
        if self.ring.is_some() && self.table.len() > self.again.len() {
            return Err(Error::invalid(
                "a ring with requests in flight was turned by another thread",
            ));
        }
        let mut ring =
            Ring::new(self.setup).map_err(|error| Error::from_io(&error, "io_uring_setup"))?;
        if let Some(held) = &self.held {
            ring.hold(execute::fd(held)?)?;
        }
        // The old ring goes after the new one holds the lock.
        self.ring = Some(ring);
        self.bell = Bell::default();
        Ok(())
    }

    /// Puts in the queue, as far as there is room: the watch on the bell, cancels, flights that
    /// need another submission, fresh requests.
    fn stage(&mut self) {
        self.stage_bell();
        while let Some(key) = self.cancels.pop_front() {
            if !self.stage_cancel(key) {
                if !planted!("uring_full_queue_loses_cancels") {
                    self.cancels.push_front(key);
                }
                return;
            }
        }
        self.wake_retries();
        while let Some(key) = self.again.pop_front() {
            if !self.stage_flight(key) {
                return;
            }
        }
        while let Some(request) = self.next_fresh() {
            let way = match Flight::sort(request, self.guest) {
                Way::Calls(request) => names::sort(request, self.offer),
                other => other,
            };
            match way {
                Way::Answered(finished) => self.ready.push(finished),
                Way::Calls(request) => self.call(request),
                Way::Ring(flight) => {
                    let Some(key) = self.board(flight) else {
                        continue;
                    };
                    if !self.has_room() {
                        self.again.push_front(key);
                        return;
                    }
                    if !self.stage_flight(key) {
                        return;
                    }
                }
            }
        }
    }

    /// Whether the queue takes a fresh submission and still has room for what must not wait.
    fn has_room(&mut self) -> bool {
        let ring = self.ring.as_mut();
        ring.is_none_or(|ring| ring.room() > KEPT)
    }

    fn stage_bell(&mut self) {
        let Some(ring) = self.ring.as_mut() else {
            return;
        };
        if !self.bell.armed {
            let bell = io_uring::types::Fd(self.signal.bell());
            let watch = opcode::PollAdd::new(bell, libc::POLLIN as u32);
            let entry = watch.multi(!self.bell.once).build().user_data(BELL);
            // SAFETY: the entry points at nothing; the bell's descriptor lives as long as we do.
            self.bell.armed = unsafe { ring.stage(&entry) };
        }
    }

    /// Hands a request to who makes plain calls: this thread, or a worker. If no thread can be
    /// started for it, it is done here too.
    fn call(&mut self, request: Request) {
        let here = match request.class {
            Class::Foreground => Some(request),
            Class::Background if planted!("background_on_the_turner") => Some(request),
            Class::Background => self.worker.submit(request).err(),
            Class::Program => self.pool.submit(request).err(),
        };
        self.calls.extend(here);
    }

    /// The next request to sort: foreground ones first, and a background one only if the ring has
    /// none. A kernel that writes back much for the one would let the other wait for it.
    fn next_fresh(&mut self) -> Option<Request> {
        self.fresh.pop_front().or_else(|| {
            let free = !self.background_in_ring || planted!("background_crowds_the_ring");
            free.then(|| self.background.pop_front()).flatten()
        })
    }

    /// Takes every answer there is; true if there was one.
    fn reap(&mut self) -> Result<bool> {
        let mut any = false;
        while let Some(answer) = self.ring.as_mut().and_then(Ring::reap) {
            any = true;
            match answer.user_data() {
                BELL => self.on_bell(answer.result(), io_uring::cqueue::more(answer.flags()))?,
                // Whether it could be cancelled is told by the answer of the flight itself.
                cancel if cancel & CANCEL != 0 => {}
                key => self.on_answer(Key(key), answer.result())?,
            }
        }
        Ok(any)
    }

    fn on_bell(&mut self, answer: i32, more: bool) -> Result<()> {
        self.bell.armed = more;
        // Nobody sleeps now, so the bell has done its work; the word says what it was about.
        self.signal.silence();
        if answer == -libc::EINVAL && !self.bell.once {
            self.bell.once = true;
            return Ok(());
        }
        if answer < 0 && answer != -libc::ECANCELED {
            return Err(Error::from_errno(-answer, "poll of the wake event"));
        }
        Ok(())
    }

    fn on_answer(&mut self, key: Key, answer: i32) -> Result<()> {
        let Some(flight) = self.table.get(key) else {
            return Err(impossible(
                "an answer to nothing that was asked",
                key,
                answer,
            ));
        };
        let Some(answer) = flight.gather(answer) else {
            return Ok(());
        };
        if flight.refuses_dsync(answer) {
            self.dsync = false;
        }
        if Self::is_orphan(self.closed, flight, answer) {
            self.effort.retried += 1;
            self.again.push_back(key);
            return Ok(());
        }
        let fell_short = flight.fell_short(answer);
        let step = flight.on_answer(answer);
        let goes_on = matches!(step, Step::Again | Step::Later(_));
        self.effort.short += u64::from(goes_on && fell_short);
        self.effort.retried += u64::from(goes_on && answer < 0);
        match step {
            Step::Again => self.again.push_back(key),
            Step::Later(pause) => self.later.push((self.clock.now().after(pause), key)),
            Step::Calls => self.leave_to_threads(key),
            Step::Over(result) => {
                if let Some(flight) = self.let_off(key) {
                    self.ready.push(flight.finish(result));
                }
            }
            Step::Impossible(what) => return Err(impossible(what, key, answer)),
        }
        Ok(())
    }

    /// Waits for an answer, a wake or a nudge. The sleep was announced.
    fn sleep(&mut self, left: Option<Duration>) -> Result<()> {
        let idle = self.table.is_empty();
        if idle && self.ring.as_ref().is_none_or(Ring::idles_visibly) {
            self.signal.sleep(None, left);
            return Ok(());
        }
        self.enter(Patience::of(left)).map(drop)
    }

    /// False: refused, and our caller must not wait until that passes.
    fn enter(&mut self, patience: Patience) -> Result<bool> {
        let idle = self.table.is_empty();
        let Some(ring) = self.ring.as_mut() else {
            return Ok(true);
        };
        self.effort.enters += 1;
        self.effort.overflows += u64::from(ring.has_overflowed());
        match ring.enter(patience, idle) {
            Ok(()) => {
                self.refusals = 0;
                Ok(true)
            }
            Err(error) => self.on_enter_refused(&error),
        }
    }

    fn hand_out(&mut self, out: &mut Vec<Finished>) {
        self.in_flight = self.in_flight.saturating_sub(self.ready.len());
        out.append(&mut self.ready);
    }
}

impl Backend for UringBackend {
    fn submit(&mut self, request: Request) -> Result<(), Request> {
        if self.closed || self.in_flight >= self.capacity {
            return Err(request);
        }
        self.in_flight += 1;
        match request.class {
            Class::Foreground | Class::Program => self.fresh.push_back(request),
            Class::Background => self.background.push_back(request),
        }
        Ok(())
    }

    fn cancel(&mut self, token: Token) -> Cancelled {
        if self.closed || self.poison.is_some() || self.origin.is_forked_child() {
            return Cancelled::TooLate;
        }
        self.give_up(token)
    }

    fn disown(&mut self, token: Token) -> bool {
        self.lose_owner(token)
    }

    fn poll(&mut self, out: &mut Vec<Finished>, wait: Wait) -> Result<()> {
        self.origin.check()?;
        if self.closed {
            self.hand_out(out);
            return Ok(());
        }
        if self.poison.is_none()
            && let Err(cause) = self.turn(wait)
        {
            self.fail(cause);
        }
        if let Some(cause) = self.poison.clone() {
            self.refuse_all(&cause);
            if self.ready.is_empty() {
                return Err(cause);
            }
        }
        self.hand_out(out);
        Ok(())
    }

    fn waker(&self) -> Arc<dyn Wake> {
        Arc::clone(&self.signal) as Arc<dyn Wake>
    }

    fn now(&self) -> Mono {
        self.clock.now()
    }

    fn in_flight(&self) -> usize {
        self.in_flight
    }

    fn capacity(&self) -> usize {
        self.capacity
    }

    fn answer_to(&mut self, helper: Arc<dyn Wake>) {
        self.signal.help(helper);
    }

    fn spare_caller(&mut self, yes: bool) {
        self.spares_caller = yes;
    }

    fn has_left_over(&self) -> bool {
        self.has_left_over
    }

    fn notify(&mut self, bell: Option<BorrowedFd<'_>>) -> Result<()> {
        self.origin.check()?;
        self.prepare_ring()?;
        self.signal.tell(bell)?;
        match self.ring.as_mut() {
            Some(ring) => ring.notify(bell),
            None => Ok(()),
        }
    }

    fn due(&self) -> Option<Mono> {
        self.next_attempt()
    }

    fn prepare(&mut self) -> Result<()> {
        self.origin.check()?;
        self.prepare_ring()
    }

    fn effort(&self) -> Effort {
        let (wakes_rung, wakes_coalesced) = self.signal.counted();
        Effort {
            wakes_rung,
            wakes_coalesced,
            ..self.effort
        }
    }

    fn hold(&mut self, lock: &File) -> Result<()> {
        self.origin.check()?;
        let fd = execute::fd(lock)?;
        match self.ring.as_mut() {
            Some(ring) if ring.is_here() => ring.hold(fd)?,
            // The ring of the thread that polls next takes it up before it stages anything.
            _ => {}
        }
        self.worker.hold(Some(lock.clone()));
        self.pool.hold(Some(lock.clone()));
        self.held = Some(lock.clone());
        Ok(())
    }

    fn let_go(&mut self) {
        if self.origin.is_forked_child() || !self.table.is_empty() {
            return;
        }
        self.held = None;
        self.worker.hold(None);
        self.pool.hold(None);
        let gone = self
            .ring
            .as_mut()
            .is_none_or(|ring| ring.is_here() && ring.let_go());
        if !gone {
            // The kernel lets go of a closed ring's files, if a little later.
            self.ring = None;
        }
    }

    fn shutdown(&mut self, budget: Option<Duration>) -> Leftovers {
        self.stop(budget)
    }
}

impl Drop for UringBackend {
    fn drop(&mut self) {
        self.stop(Some(DROP_BUDGET));
    }
}

fn impossible(what: &'static str, key: Key, answer: i32) -> Error {
    Error::new(ErrorKind::Io, format!("the kernel gave {what}"))
        .with("key", key.0)
        .with("answer", answer)
}
