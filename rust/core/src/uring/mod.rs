//! The I/O contract on the kernel's ring.
//!
//! Reads, writes, syncs and reservations go through the ring; what the ring does not offer
//! everywhere (opening, renaming, locks) is done by plain calls, foreground ones by the thread
//! that polls, background ones by a worker thread.
//!
//! ```text
//! submit --> fresh --stage--> table, ring --enter--> kernel --reap--> finished
//!              \-- plain calls: this thread or the worker ------------/
//! ```
//!
//! # Always true
//!
//! 1. The table owns file and buffer of a flight from before its first submission is staged until
//!    its last answer is reaped. On every other way out, including a panic, they are leaked.
//! 2. A tuned ring is made by the thread that turns it, at its first poll. It may be turned by
//!    another thread later only if nothing is in flight; then a new ring is made there. A plain
//!    ring may change threads at any time; what that takes is in [`anywhere`].
//! 3. The lock given to `hold` is registered with the ring before any write is staged.
//! 4. An answer the kernel cannot have given, or a ring that cannot be entered, poisons the
//!    backend: everybody is answered with that cause, nothing is staged again, nothing the kernel
//!    knows is freed.
//! 5. In a forked child nothing here is touched but the origin.

use std::{collections::VecDeque, io, os::fd::BorrowedFd, sync::Arc, time::Duration};

use io_uring::opcode;

use crate::{
    clock::{Clock, Mono},
    error::{Error, ErrorKind, Result},
    fork::Origin,
    io::{
        Backend, Class, Disk, Durability, File, Finished, Leftovers, Request, Wait, Wake, execute,
        signal::Signal,
        worker::{Worker, refused},
    },
};

mod anywhere;
mod flight;
mod probe;
mod ring;
mod shutdown;
mod table;
#[cfg(test)]
mod tests;

use flight::{Step, Way};
pub use probe::{Reason, Refusal};
use ring::{Patience, Ring, Setup};
use table::{BELL, CANCEL, Key, Table};

/// How many requests a backend takes before it gives one back, unless told otherwise.
const CAPACITY: usize = 128;

/// How long a backend that was dropped without shutdown waits for the kernel.
const DROP_BUDGET: Duration = Duration::from_secs(5);

/// How often in a row entering may be refused for want of memory or room, a millisecond apart.
const ENTER_TRIES_MAX: u32 = 1000;

/// The machine's disk through the kernel's ring.
#[derive(Debug, Clone)]
pub struct UringDisk {
    clock: Arc<dyn Clock>,
    capacity: usize,
    setup: Setup,
    durability: Durability,
    any_thread: bool,
}

impl UringDisk {
    fn new(clock: Arc<dyn Clock>) -> Self {
        Self {
            clock,
            capacity: CAPACITY,
            setup: Setup {
                entries: CAPACITY as u32,
                plain: false,
            },
            durability: Durability::Dsync,
            any_thread: false,
        }
    }

    /// Leaves out what only newer kernels offer.
    #[must_use]
    pub fn with_plain_ring(mut self) -> Self {
        self.setup.plain = true;
        self
    }

    /// How many requests a backend takes before it gives one back; 1 to 4096.
    #[must_use]
    pub fn with_capacity(mut self, capacity: usize) -> Self {
        self.capacity = capacity.clamp(1, 4096);
        self.setup.entries = (self.capacity as u32).next_power_of_two();
        self
    }

    /// How a write with `sync` becomes durable.
    #[must_use]
    pub fn with_durability(self, durability: Durability) -> Self {
        Self { durability, ..self }
    }

    fn open(&self) -> Result<UringBackend> {
        let origin = Origin::here()?;
        let signal = Arc::new(Signal::new()?);
        Ok(UringBackend {
            clock: Arc::clone(&self.clock),
            capacity: self.capacity,
            setup: self.setup,
            dsync: self.durability == Durability::Dsync,
            any_thread: self.any_thread,
            origin,
            table: Table::default(),
            ring: None,
            bell: Bell::default(),
            worker: Worker::new(Arc::clone(&signal), origin, Durability::Fdatasync),
            signal,
            fresh: VecDeque::new(),
            background: VecDeque::new(),
            background_in_ring: false,
            again: VecDeque::new(),
            calls: VecDeque::new(),
            ready: Vec::new(),
            in_flight: 0,
            refusals: 0,
            held: None,
            poison: None,
            closed: false,
        })
    }
}

impl Disk for UringDisk {
    fn backend(&self) -> Result<Box<dyn Backend>> {
        Ok(Box::new(self.open()?))
    }
}

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
    /// Threads that come and go turn it.
    any_thread: bool,
    origin: Origin,
    /// Declared before the ring: the order does not matter to the kernel, which keeps what it
    /// needs of a closed ring; the table leaks what it still has.
    table: Table,
    ring: Option<Ring>,
    bell: Bell,
    worker: Worker,
    signal: Arc<Signal>,
    /// Foreground requests, not yet sorted.
    fresh: VecDeque<Request>,
    /// Background requests, not yet sorted.
    background: VecDeque<Request>,
    /// A background request is in the table.
    background_in_ring: bool,
    /// In the table, not known to the kernel, waiting for another submission.
    again: VecDeque<Key>,
    /// For this thread, by plain calls.
    calls: VecDeque<Request>,
    /// Finished and not yet handed out.
    ready: Vec<Finished>,
    /// Submitted and not yet handed out.
    in_flight: usize,
    /// How often in a row the kernel refused to be entered.
    refusals: u32,
    held: Option<File>,
    poison: Option<Error>,
    closed: bool,
}

impl UringBackend {
    /// One poll's work. An error poisons. What is staged is submitted by the same call that waits,
    /// if there is anything to wait for.
    fn turn(&mut self, wait: Wait) -> Result<()> {
        self.prepare_ring()?;
        loop {
            // In this order: what is nudged about after the take is seen by the announcement.
            let woken = self.signal.take();
            self.reap()?;
            self.stage();
            self.work_here()?;
            let left = wait.left(self.clock.now());
            let over = woken || !self.ready.is_empty() || left == Some(Duration::ZERO);
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
                self.worker.collect(&mut self.ready);
                return Ok(());
            }
        }
    }

    /// Carries out one plain call, after what is staged is on its way, and collects what the
    /// worker did.
    fn work_here(&mut self) -> Result<()> {
        if let Some(request) = self.calls.pop_front() {
            self.advance()?;
            self.ready
                .push(execute::run(request, Durability::Fdatasync));
        }
        self.worker.collect(&mut self.ready);
        Ok(())
    }

    /// Whether there is something to do before a sleep.
    fn has_more(&self) -> bool {
        let background = !self.background_in_ring && !self.background.is_empty();
        background || !(self.fresh.is_empty() && self.again.is_empty() && self.calls.is_empty())
    }

    /// Stages, submits and reaps until there is nothing to do but wait.
    fn advance(&mut self) -> Result<()> {
        let mut fruitful = true;
        loop {
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
            self.enter(Patience::None)?;
        }
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

    /// Puts in the queue, as far as there is room: the watch on the bell, flights that need
    /// another submission, fresh requests.
    fn stage(&mut self) {
        self.stage_bell();
        while let Some(key) = self.again.pop_front() {
            if !self.stage_flight(key) {
                return;
            }
        }
        while let Some(request) = self.next_fresh() {
            match self.sort(request) {
                Way::Answered(finished) => self.ready.push(finished),
                Way::Calls(request) => self.call(request),
                Way::Ring(flight) => {
                    self.background_in_ring |= flight.is_background();
                    let key = self.table.insert(flight);
                    if !self.stage_flight(key) {
                        return;
                    }
                }
            }
        }
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

    /// Stages the next submission of a flight in the table; if the queue is full it is the first
    /// to be tried again.
    fn stage_flight(&mut self, key: Key) -> bool {
        let (Some(ring), Some(flight)) = (self.ring.as_mut(), self.table.get(key)) else {
            return true;
        };
        let entry = flight.entry(self.dsync).user_data(key.0);
        // SAFETY: the entry points into the flight's buffer, which stays where it is on the heap
        // until the table lets the flight go: at its last answer, or never (the table's
        // invariant 1).
        let staged = unsafe { ring.stage(&entry) };
        if !staged {
            self.again.push_front(key);
        }
        staged
    }

    /// Hands a request to who makes plain calls: this thread, or the worker. Without a worker for
    /// it, a background request is done here too.
    fn call(&mut self, request: Request) {
        let here = match request.class {
            Class::Foreground => Some(request),
            Class::Background => self.worker.submit(request).err(),
        };
        self.calls.extend(here);
    }

    /// The next request to sort: foreground ones first, and a background one only if the ring has
    /// none. A kernel that writes back much for the one would let the other wait for it.
    fn next_fresh(&mut self) -> Option<Request> {
        self.fresh.pop_front().or_else(|| {
            let free = !self.background_in_ring;
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
        if flight.refuses_dsync(answer) {
            self.dsync = false;
            self.again.push_back(key);
            return Ok(());
        }
        if anywhere::is_orphan(self.any_thread && !self.closed, flight, answer) {
            self.again.push_back(key);
            return Ok(());
        }
        match flight.on_answer(answer) {
            Step::Again => self.again.push_back(key),
            Step::Over(result) => {
                if let Some(flight) = self.table.remove(key) {
                    self.background_in_ring &= !flight.is_background();
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
            self.signal.sleep(left);
            return Ok(());
        }
        self.enter(Patience::of(left))
    }

    fn enter(&mut self, patience: Patience) -> Result<()> {
        let idle = self.table.is_empty();
        let Some(ring) = self.ring.as_mut() else {
            return Ok(());
        };
        match ring.enter(patience, idle) {
            Ok(()) => self.refusals = 0,
            Err(error) => self.on_enter_refused(&error)?,
        }
        Ok(())
    }

    /// Interrupted and out of time are no refusals. Short of memory or room passes, mostly by
    /// reaping, which our caller does next.
    fn on_enter_refused(&mut self, error: &io::Error) -> Result<()> {
        match error.raw_os_error() {
            Some(libc::EINTR | libc::ETIME) => Ok(()),
            Some(libc::EAGAIN | libc::EBUSY | libc::ENOMEM) if self.refusals < ENTER_TRIES_MAX => {
                self.refusals += 1;
                if !self.ring.as_mut().is_some_and(Ring::has_answers) {
                    std::thread::sleep(Duration::from_millis(1));
                }
                Ok(())
            }
            _ => Err(Error::from_io(error, "io_uring_enter")),
        }
    }

    /// Answers everybody with `cause`. What the kernel knows is leaked, with the ring and the
    /// lock, so that nobody writes beside it.
    fn fail(&mut self, cause: Error) {
        let told = || {
            Error::new(
                ErrorKind::Poisoned,
                "the ring failed; its outcomes are unknown",
            )
            .caused_by(cause.clone())
        };
        for key in std::mem::take(&mut self.again) {
            if let Some(flight) = self.table.remove(key) {
                self.ready.push(flight.finish(Err(told())));
            }
        }
        let leaked = !self.table.is_empty();
        for key in self.table.keys() {
            if let Some(flight) = self.table.remove(key) {
                self.ready.push(flight.abandon(told()));
            }
        }
        if leaked {
            std::mem::forget((self.ring.take(), self.held.clone()));
        } else {
            self.ring = None;
        }
        self.poison.get_or_insert(cause);
    }

    /// Answers what came in after the failure.
    fn refuse_all(&mut self, cause: &Error) {
        let fresh = self.fresh.drain(..).chain(self.background.drain(..));
        let waiting = fresh.chain(self.calls.drain(..));
        self.ready.extend(waiting.map(|request| {
            Finished {
                result: Err(
                    Error::new(ErrorKind::Poisoned, "the ring failed before this")
                        .caused_by(cause.clone()),
                ),
                ..refused(request)
            }
        }));
        self.worker.collect(&mut self.ready);
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
            Class::Foreground => self.fresh.push_back(request),
            Class::Background => self.background.push_back(request),
        }
        Ok(())
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

    fn hold(&mut self, lock: &File) -> Result<()> {
        self.origin.check()?;
        let fd = execute::fd(lock)?;
        match self.ring.as_mut() {
            Some(ring) if ring.is_here() => ring.hold(fd)?,
            // The ring of the thread that polls next takes it up before it stages anything.
            _ => {}
        }
        self.worker.hold(Some(lock.clone()));
        self.held = Some(lock.clone());
        Ok(())
    }

    fn let_go(&mut self) {
        if self.origin.is_forked_child() || !self.table.is_empty() {
            return;
        }
        self.held = None;
        self.worker.hold(None);
        let gone = self
            .ring
            .as_mut()
            .is_none_or(|ring| ring.is_here() && ring.let_go());
        if !gone {
            // The kernel lets go of a closed ring's files, if a little later.
            self.ring = None;
        }
    }

    fn notify(&mut self, bell: Option<BorrowedFd<'_>>) -> Result<()> {
        self.origin.check()?;
        self.prepare_ring()?;
        match self.ring.as_mut() {
            Some(ring) => ring.notify(bell),
            None => Ok(()),
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
