//! The I/O contract on plain system calls.
//!
//! A foreground request is carried out by the thread that polls, oldest first, one for each
//! poll: no hop to another thread lies between a group commit and its `fdatasync`. A background
//! request goes to one worker thread, so that filling the next segment with zeros never delays
//! a commit. Requests of a program go to a pool of threads, except those about sockets: these
//! wait for their socket, not for a thread.
//!
//! ```text
//! submit --- foreground ---> queue ---> carried out inside poll ---> finished
//!        \-- background ---> worker thread --- done, nudge --------/
//!         \- program -------> pool of threads -- done, nudge -----/
//!          \ about sockets -> line, until ready -----------------/
//! ```
//!
//! # Always true
//!
//! 1. System calls are synchronous: once one returned, the kernel has let go of its memory. Only
//!    a worker stuck in a call can outlive the backend, and it owns what it works on.
//! 2. A poll that finds a queued foreground request carries it out, even if it may not wait:
//!    that is this backend's way of making progress.

use std::{
    collections::VecDeque,
    os::fd::{BorrowedFd, RawFd},
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{
    clock::{Clock, Mono},
    error::{Error, ErrorKind, Result},
    fork::Origin,
    io::{
        Backend, Cancelled, Class, Disk, Durability, Effort, File, Finished, Leftovers, Op,
        Request, Token, Wait, Wake, execute,
        signal::Signal,
        tally,
        worker::{Workers, refused, take, withdrawn},
    },
};

mod sockets;

#[cfg(test)]
mod tests;

use sockets::Sockets;

pub use crate::io::{Alignment, direct_alignment};

/// How many requests a backend takes before it gives one back, unless told otherwise.
const CAPACITY: usize = 256;

/// Threads for requests of a program. More do not read faster: a device that serves more at once
/// is used better by the ring.
const THREADS_MAX: usize = 32;

/// How long a backend that was dropped without shutdown waits for its worker.
const DROP_BUDGET: Duration = Duration::from_secs(5);

/// The machine's disk through plain system calls.
#[derive(Debug, Clone)]
pub struct ThreadsDisk {
    clock: Arc<dyn Clock>,
    capacity: usize,
    durability: Durability,
}

impl ThreadsDisk {
    /// Waits are measured by `clock`.
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Self {
            clock,
            capacity: CAPACITY,
            durability: Durability::default(),
        }
    }

    /// How many requests a backend takes before it gives one back; at least one.
    #[must_use]
    pub fn with_capacity(self, capacity: usize) -> Self {
        let capacity = capacity.max(1);
        Self { capacity, ..self }
    }

    /// How a write with `sync` becomes durable.
    #[must_use]
    pub fn with_durability(self, durability: Durability) -> Self {
        Self { durability, ..self }
    }
}

impl Disk for ThreadsDisk {
    fn backend(&self) -> Result<Box<dyn Backend>> {
        let origin = Origin::here()?;
        let signal = Arc::new(Signal::new()?);
        Ok(Box::new(ThreadsBackend {
            clock: Arc::clone(&self.clock),
            capacity: self.capacity,
            durability: self.durability,
            worker: Workers::new(Arc::clone(&signal), origin, self.durability, 1),
            pool: Workers::new(
                Arc::clone(&signal),
                origin,
                self.durability,
                THREADS_MAX.min(self.capacity),
            ),
            sockets: Sockets::default(),
            signal,
            origin,
            foreground: VecDeque::new(),
            ready: Vec::new(),
            in_flight: 0,
            effort: Effort::default(),
            held: None,
            closed: false,
            leaked: false,
        }))
    }
}

/// One owner's view of the disk.
struct ThreadsBackend {
    clock: Arc<dyn Clock>,
    capacity: usize,
    durability: Durability,
    /// For background requests.
    worker: Workers,
    /// For requests of a program.
    pool: Workers,
    sockets: Sockets,
    signal: Arc<Signal>,
    origin: Origin,
    foreground: VecDeque<Request>,
    /// Finished and not yet handed out.
    ready: Vec<Finished>,
    /// Submitted and not yet handed out.
    in_flight: usize,
    /// Of calls; there is no queue of the kernel's here that could overflow.
    effort: Effort,
    held: Option<File>,
    closed: bool,
    /// The worker was given up while it carried something out; it keeps the lock until it ends.
    leaked: bool,
}

impl ThreadsBackend {
    /// Carries out the oldest foreground request and collects what the worker did.
    fn work(&mut self) {
        if let Some(request) = self.foreground.pop_front() {
            self.ready.push(execute::run(request, self.durability));
            tally::take().count_in(&mut self.effort);
        }
        self.sockets.serve(&mut self.ready);
        self.sockets.take_tally().count_in(&mut self.effort);
        self.worker.collect(&mut self.ready, &mut self.effort);
        self.pool.collect(&mut self.ready, &mut self.effort);
    }

    fn hand_out(&mut self, out: &mut Vec<Finished>) {
        self.in_flight = self.in_flight.saturating_sub(self.ready.len());
        out.append(&mut self.ready);
    }
}

impl Backend for ThreadsBackend {
    fn submit(&mut self, request: Request) -> Result<(), Request> {
        if self.closed || self.in_flight >= self.capacity {
            return Err(request);
        }
        self.in_flight += 1;
        let about_a_socket = matches!(request.op, Op::Send { .. } | Op::Recv { .. });
        // Without a thread for it, a request is carried out like one of the foreground.
        let left = match request.class {
            // In a forked child the threads are not there; the poll says so.
            _ if self.origin.is_forked_child() => Some(request),
            _ if about_a_socket => {
                self.sockets.submit(request, &mut self.ready);
                None
            }
            Class::Foreground => Some(request),
            Class::Background if planted!("background_on_the_turner") => Some(request),
            Class::Background => self.worker.submit(request).err(),
            Class::Program => self.pool.submit(request).err(),
        };
        self.foreground.extend(left);
        Ok(())
    }

    fn cancel(&mut self, token: Token) -> Cancelled {
        if self.closed || self.origin.is_forked_child() {
            return Cancelled::TooLate;
        }
        if let Some(request) = take(&mut self.foreground, token) {
            self.ready.push(withdrawn(request));
            return Cancelled::Taken;
        }
        let in_line = self.sockets.cancel(token, &mut self.ready);
        in_line
            .or_else(|| self.pool.cancel(token))
            .unwrap_or(Cancelled::TooLate)
    }

    fn poll(&mut self, out: &mut Vec<Finished>, wait: Wait) -> Result<()> {
        self.origin.check()?;
        loop {
            // In this order: what is nudged about after the take is seen by the announcement.
            let woken = self.signal.take();
            self.work();
            let left = wait.left(self.clock.now());
            if woken || !self.ready.is_empty() || left == Some(Duration::ZERO) {
                break;
            }
            if !self.signal.announce() {
                continue;
            }
            self.signal.sleep(self.sockets.readable(), left);
            if self.signal.retract() {
                self.work();
                break;
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

    fn notify(&mut self, bell: Option<BorrowedFd<'_>>) -> Result<()> {
        self.origin.check()?;
        if bell.is_some() {
            self.sockets.prepare()?;
        }
        self.signal.tell(bell)
    }

    fn watched(&self) -> Vec<RawFd> {
        self.sockets.set().into_iter().collect()
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
        execute::fd(lock)?;
        self.worker.hold(Some(lock.clone()));
        self.pool.hold(Some(lock.clone()));
        self.held = Some(lock.clone());
        Ok(())
    }

    fn let_go(&mut self) {
        self.held = None;
        if !self.origin.is_forked_child() && !self.leaked {
            self.worker.hold(None);
            self.pool.hold(None);
        }
    }

    fn shutdown(&mut self, budget: Option<Duration>) -> Leftovers {
        self.closed = true;
        if self.origin.is_forked_child() {
            self.pool.shutdown(budget, &mut self.ready);
            return self.worker.shutdown(budget, &mut self.ready);
        }
        self.ready.extend(self.foreground.drain(..).map(refused));
        let told = || Error::new(ErrorKind::Closed, "the backend was shut down before this");
        self.sockets.shutdown(&told, &mut self.ready);
        let begun = Instant::now();
        let mut leftovers = self.worker.shutdown(budget, &mut self.ready);
        let left = budget.map(|budget| budget.saturating_sub(begun.elapsed()));
        leftovers.add(self.pool.shutdown(left, &mut self.ready));
        self.leaked |= leftovers.requests > 0;
        self.let_go();
        self.in_flight = self.ready.len();
        leftovers
    }
}

impl Drop for ThreadsBackend {
    fn drop(&mut self) {
        self.shutdown(Some(DROP_BUDGET));
    }
}
