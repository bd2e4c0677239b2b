//! The ring as a disk: its settings, and the backends made with them.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use super::{Bell, Lines, Offer, Setup, Table, UringBackend};
use crate::{
    clock::Clock,
    error::Result,
    fork::Origin,
    io::{Backend, Disk, Durability, Effort, signal::Signal, worker::Workers},
};

/// How many requests a backend takes before it gives one back, unless told otherwise.
const CAPACITY: usize = 128;

/// Threads for requests of a program that the ring is not asked to do.
const THREADS_MAX: usize = 8;

/// The machine's disk through the kernel's ring.
#[derive(Debug, Clone)]
pub struct UringDisk {
    clock: Arc<dyn Clock>,
    capacity: usize,
    pub(super) setup: Setup,
    durability: Durability,
    pub(super) offer: Offer,
    guest: bool,
}

impl UringDisk {
    pub(super) fn new(clock: Arc<dyn Clock>) -> Self {
        Self {
            clock,
            capacity: CAPACITY,
            setup: Setup {
                entries: CAPACITY as u32,
                plain: false,
            },
            durability: Durability::Dsync,
            offer: Offer::default(),
            guest: false,
        }
    }

    /// Leaves out what only newer kernels offer.
    #[must_use]
    pub fn with_plain_ring(mut self) -> Self {
        self.setup.plain = true;
        self
    }

    /// How many requests a backend takes before it gives one back; 1 to 32768. A full queue is
    /// submitted and filled again, so it may be smaller than this.
    #[must_use]
    pub fn with_capacity(mut self, capacity: usize) -> Self {
        self.capacity = capacity.clamp(1, 32_768);
        self.setup.entries = (self.capacity as u32).next_power_of_two().clamp(8, 4096);
        self
    }

    /// For backends turned by threads that may end before the requests they submitted: a ring that
    /// any thread may enter, and nothing left to workers of the kernel, which end with the thread
    /// that gave them their work.
    #[must_use]
    pub fn for_guests(mut self) -> Self {
        self.guest = true;
        self.with_plain_ring()
    }

    /// Leaves everything about names to threads, as where the kernel does not offer it.
    #[cfg(any(test, feature = "testing"))]
    #[must_use]
    pub fn without_names(mut self) -> Self {
        self.offer = Offer::default();
        self
    }

    /// A queue of so few entries, whatever the table takes: full all the time.
    #[cfg(test)]
    #[must_use]
    pub(crate) fn with_entries(mut self, entries: u32) -> Self {
        self.setup.entries = entries;
        self
    }

    /// How a write with `sync` becomes durable.
    #[must_use]
    pub fn with_durability(self, durability: Durability) -> Self {
        Self { durability, ..self }
    }

    pub(super) fn open(&self) -> Result<UringBackend> {
        let origin = Origin::here()?;
        let signal = Arc::new(Signal::new()?);
        Ok(UringBackend {
            clock: Arc::clone(&self.clock),
            capacity: self.capacity,
            setup: self.setup,
            dsync: self.durability == Durability::Dsync,
            origin,
            table: Table::default(),
            ring: None,
            bell: Bell::default(),
            worker: Workers::new(Arc::clone(&signal), origin, Durability::Fdatasync, 1),
            pool: Workers::new(
                Arc::clone(&signal),
                origin,
                Durability::Fdatasync,
                THREADS_MAX,
            ),
            signal,
            fresh: VecDeque::new(),
            background: VecDeque::new(),
            background_in_ring: false,
            again: VecDeque::new(),
            later: Vec::new(),
            cancels: VecDeque::new(),
            keys: HashMap::new(),
            lines: Lines::default(),
            offer: self.offer,
            guest: self.guest,
            calls: VecDeque::new(),
            ready: Vec::new(),
            in_flight: 0,
            refusals: 0,
            spares_caller: false,
            hurries: false,
            has_left_over: false,
            effort: Effort::default(),
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
