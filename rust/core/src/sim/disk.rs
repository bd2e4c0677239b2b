//! [`SimDisk`]: the simulated disk as the engine sees it.
//!
//! Time is virtual: a wait moves the clock to the next thing that happens. A wait for ever with
//! nothing in flight and no wake pending would never end; it is an error that says so.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use super::{
    flight::Zombies,
    image::Image,
    volume::Volume,
    world::{Settings, World},
};
use crate::{
    clock::{Clock, ManualClock, Mono},
    error::{Error, ErrorKind, Result},
    io::{Backend, Disk, File, Finished, Leftovers, Request, Wait, Wake},
    sync::{Condvar, Mutex, lock},
};

#[derive(Debug)]
struct Shared {
    world: Mutex<World>,
    woken: Condvar,
    clock: ManualClock,
}

/// A simulated disk, as one process sees it. Clones are the same process.
#[derive(Debug, Clone)]
pub struct SimDisk {
    shared: Arc<Shared>,
    process: usize,
}

impl SimDisk {
    /// An empty disk.
    pub fn new(settings: Settings) -> Self {
        Self::of(World::new(settings, Volume::default()))
    }

    /// An empty disk with default settings.
    pub fn seeded(seed: u64) -> Self {
        Self::new(Settings {
            seed,
            ..Settings::default()
        })
    }

    /// The disk a power cut left.
    pub fn from_image(image: &Image, settings: Settings) -> Self {
        Self::of(World::new(settings, image.to_volume()))
    }

    fn of(mut world: World) -> Self {
        let process = world.new_process();
        let clock = world.clock.clone();
        let shared = Shared {
            world: Mutex::new(world),
            woken: Condvar::new(),
            clock,
        };
        Self {
            shared: Arc::new(shared),
            process,
        }
    }

    /// The same disk seen by a new process.
    #[must_use]
    pub fn new_process(&self) -> Self {
        let process = lock(&self.shared.world).new_process();
        Self {
            shared: self.shared.clone(),
            process,
        }
    }

    /// Kills this process: its locks go, except those its backends hold while changes are in
    /// flight, and those changes land as `zombies` says. Files stay as they are seen now.
    pub fn kill(&self, zombies: Zombies) {
        lock(&self.shared.world).kill(self.process, zombies);
        self.shared.woken.notify_all();
    }

    /// The world's clock, which polls move.
    pub fn clock(&self) -> ManualClock {
        self.shared.clock.clone()
    }

    /// Looks at the world, or changes it behind the engine's back. Not to be nested, and not to
    /// be called from a hook, which is given the world.
    pub fn with<R>(&self, f: impl FnOnce(&mut World) -> R) -> R {
        f(&mut lock(&self.shared.world))
    }
}

impl World {
    /// A copy of this world in which every process was just killed, seen by a new process.
    pub fn killed(&self, zombies: Zombies) -> SimDisk {
        SimDisk::of(self.fork(zombies))
    }
}

impl Disk for SimDisk {
    fn backend(&self) -> Result<Box<dyn Backend>> {
        let seat = lock(&self.shared.world).new_seat(self.process);
        Ok(Box::new(SimBackend {
            waker: Arc::new(SimWaker {
                shared: self.shared.clone(),
                is_rung: AtomicBool::new(false),
            }),
            process: self.process,
            seat,
            answered: Vec::new(),
            is_shut: false,
        }))
    }
}

struct SimWaker {
    shared: Arc<Shared>,
    is_rung: AtomicBool,
}

impl Wake for SimWaker {
    fn wake(&self) {
        // Under the lock, so that a poll that has just seen the flag unset is already waiting.
        let _world = lock(&self.shared.world);
        self.is_rung.store(true, Ordering::Relaxed);
        self.shared.woken.notify_all();
    }
}

struct SimBackend {
    waker: Arc<SimWaker>,
    process: usize,
    seat: usize,
    /// Finished by a shutdown, to be fetched.
    answered: Vec<Finished>,
    is_shut: bool,
}

impl SimBackend {
    fn shared(&self) -> &Shared {
        &self.waker.shared
    }

    fn take_wake(&self) -> bool {
        // Written and read under the world's lock, which orders it.
        self.waker.is_rung.swap(false, Ordering::Relaxed)
    }

    fn reap(&self, world: &mut World, out: &mut Vec<Finished>) -> usize {
        let mut count = 0;
        while count < world.settings.answers_per_poll {
            let Some(place) = world.next_due(self.seat) else {
                break;
            };
            out.push(world.answer(place));
            count += 1;
        }
        count
    }
}

impl Backend for SimBackend {
    fn submit(&mut self, request: Request) -> Result<(), Request> {
        let mut world = lock(&self.shared().world);
        if self.is_shut || !world.is_alive(self.process) {
            return Err(request);
        }
        world.submit(self.seat, request)
    }

    fn poll(&mut self, out: &mut Vec<Finished>, wait: Wait) -> Result<()> {
        if !self.answered.is_empty() {
            out.append(&mut self.answered);
            return Ok(());
        }
        let mut world = lock(&self.shared().world);
        loop {
            if !world.is_alive(self.process) {
                return Err(Error::new(ErrorKind::Io, "this process was killed"));
            }
            let is_woken = self.take_wake();
            if self.reap(&mut world, out) > 0 || is_woken {
                return Ok(());
            }
            let next = world.next_time(self.seat);
            match (wait, next) {
                (Wait::Never, _) => return Ok(()),
                (Wait::Until(until), Some(next)) if next <= until => world.advance_to(next),
                (Wait::Until(until), _) => {
                    world.advance_to(until);
                    return Ok(());
                }
                (Wait::Forever, Some(next)) => world.advance_to(next),
                (Wait::Forever, None) if world.settings.threaded => {
                    let woken = self.shared().woken.wait(world);
                    world = woken.unwrap_or_else(std::sync::PoisonError::into_inner);
                }
                (Wait::Forever, None) => return Err(deadlock(&world)),
            }
        }
    }

    fn waker(&self) -> Arc<dyn Wake> {
        self.waker.clone()
    }

    fn now(&self) -> Mono {
        self.shared().clock.now()
    }

    fn in_flight(&self) -> usize {
        self.answered.len() + lock(&self.shared().world).in_flight(self.seat)
    }

    fn hold(&mut self, file: &File) -> Result<()> {
        lock(&self.shared().world).hold(self.seat, file);
        Ok(())
    }

    fn let_go(&mut self) {
        lock(&self.shared().world).let_go(self.seat);
    }

    fn shutdown(&mut self, budget: Option<Duration>) -> Leftovers {
        self.is_shut = true;
        let waker = self.waker.clone();
        let mut world = lock(&waker.shared.world);
        if !world.is_alive(self.process) {
            return Leftovers::default();
        }
        world.finish(self.seat, &mut self.answered);
        let (requests, bytes) = world.leftovers(self.seat);
        if let Some(budget) = budget.filter(|_| requests > 0) {
            let until = world.clock.now().after(budget);
            world.advance_to(until);
        }
        Leftovers { requests, bytes }
    }
}

impl Drop for SimBackend {
    /// What is still in flight is carried out: nobody is left to be told.
    fn drop(&mut self) {
        let mut world = lock(&self.shared().world);
        if world.is_alive(self.process) {
            world.finish(self.seat, &mut Vec::new());
            world.let_go(self.seat);
        }
    }
}

fn deadlock(world: &World) -> Error {
    let message = format!("a wait that nothing can end: {world:?}");
    Error::new(ErrorKind::Abandoned, message)
}
