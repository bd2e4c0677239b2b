//! The I/O contract on plain system calls.
//!
//! A foreground request is carried out by the thread that polls, oldest first, one for each
//! poll: no hop to another thread lies between a group commit and its `fdatasync`. A background
//! request goes to one worker thread, so that filling the next segment with zeros never delays
//! a commit.
//!
//! ```text
//! submit --- foreground ---> queue ---> carried out inside poll ---> finished
//!        \-- background ---> worker thread --- done, nudge --------/
//! ```
//!
//! # Always true
//!
//! 1. System calls are synchronous: once one returned, the kernel has let go of its memory. Only
//!    a worker stuck in a call can outlive the backend, and it owns what it works on.
//! 2. A poll that finds a queued foreground request carries it out, even if it may not wait:
//!    that is this backend's way of making progress.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use crate::{
    clock::{Clock, Mono},
    error::Result,
    fork::Origin,
    io::{
        Backend, Class, Disk, Durability, File, Finished, Leftovers, Request, Wait, Wake, execute,
        signal::Signal,
        worker::{Worker, refused},
    },
};

#[cfg(test)]
mod tests;

pub use crate::io::{Alignment, direct_alignment};

/// How many requests a backend takes before it gives one back, unless told otherwise.
const CAPACITY: usize = 256;

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
            worker: Worker::new(Arc::clone(&signal), origin, self.durability),
            signal,
            origin,
            foreground: VecDeque::new(),
            ready: Vec::new(),
            in_flight: 0,
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
    worker: Worker,
    signal: Arc<Signal>,
    origin: Origin,
    foreground: VecDeque<Request>,
    /// Finished and not yet handed out.
    ready: Vec<Finished>,
    /// Submitted and not yet handed out.
    in_flight: usize,
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
        }
        self.worker.collect(&mut self.ready);
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
        // In a forked child the worker is not there; the poll says so.
        let here = self.origin.is_forked_child() || request.class == Class::Foreground;
        let left = if here {
            Some(request)
        } else {
            self.worker.submit(request).err()
        };
        // Without a thread for it, a background request is carried out like any other.
        self.foreground.extend(left);
        Ok(())
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
            self.signal.sleep(left);
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

    fn hold(&mut self, lock: &File) -> Result<()> {
        self.origin.check()?;
        execute::fd(lock)?;
        self.worker.hold(Some(lock.clone()));
        self.held = Some(lock.clone());
        Ok(())
    }

    fn let_go(&mut self) {
        self.held = None;
        if !self.origin.is_forked_child() && !self.leaked {
            self.worker.hold(None);
        }
    }

    fn shutdown(&mut self, budget: Option<Duration>) -> Leftovers {
        self.closed = true;
        if self.origin.is_forked_child() {
            return self.worker.shutdown(budget);
        }
        self.ready.extend(self.foreground.drain(..).map(refused));
        let leftovers = self.worker.shutdown(budget);
        self.leaked |= leftovers.requests > 0;
        self.let_go();
        self.worker.collect_rest(&mut self.ready);
        self.in_flight = self.ready.len();
        leftovers
    }
}

impl Drop for ThreadsBackend {
    fn drop(&mut self) {
        self.shutdown(Some(DROP_BUDGET));
    }
}
