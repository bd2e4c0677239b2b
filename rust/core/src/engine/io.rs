//! The I/O engine of a program: the backend chosen by a real probe, or forced; the loop started on
//! the driver that was asked for.
//!
//! ```text
//! uring --refused--> uring-plain --refused--> threads
//! ```
//!
//! Which rung was taken, and why not a higher one, is kept in words: [`IoEngine::backend`].

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Condvar, Mutex},
    thread::JoinHandle,
    time::Duration,
};

use super::{BackendInfo, BackendSetting};
use crate::{
    clock::{Clock, SystemClock},
    error::{Error, ErrorKind, Result},
    fork::Origin,
    io::{Backend, Disk, Leftovers},
    ioloop::{
        Answered, Handle, IoLoop, Settings, Sink,
        driver::{self, Turnable},
    },
    sync::lock,
    threads::ThreadsDisk,
    uring::{Refusal, UringDisk},
};

/// How long the engine's drop waits: the program ends, or forgot to close it.
const DROP_BUDGET: Duration = Duration::from_secs(5);

/// Who turns the loop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DriverSetting {
    /// A thread.
    #[default]
    Auto,
    /// A thread of ours.
    Thread,
    /// Whoever calls [`Turnable::turn`]: the program's event loop.
    Loop,
}

/// How an engine is opened.
#[derive(Debug, Clone, Default)]
pub struct IoSettings {
    /// Numbers of the loop.
    pub numbers: Settings,
    /// Which backend; [`BACKEND_VARIABLE`](super::BACKEND_VARIABLE) decides where this is `Auto`.
    pub backend: BackendSetting,
    /// Who turns the loop.
    pub driver: DriverSetting,
    /// Where the probe writes a page and reads it back; nowhere if `None`.
    pub dir: Option<PathBuf>,
}

/// An open engine. Dropping it closes it and waits a few seconds for what is in flight.
pub struct IoEngine {
    handle: Handle,
    backend: BackendInfo,
    driver: Driver,
    origin: Origin,
}

enum Driver {
    Thread(Mutex<Option<JoinHandle<()>>>),
    Guest(Turnable),
}

/// Opens an engine on this machine.
pub fn open(settings: &IoSettings) -> Result<IoEngine> {
    let numbers = settings.numbers.checked()?;
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let wanted = settings.backend.or_environment()?;
    let guest = settings.driver == DriverSetting::Loop;
    let dir = settings.dir.as_deref();
    let (backend, info) = choose(&clock, wanted, guest, numbers.size, dir)?;
    let on_ring = info.name != THREADS;
    let started = start(backend, &clock, guest, numbers);
    let ((driver, handle), info) = match started {
        Ok(started) => (started, info),
        // The probe's ring was small, and gone before this one was made.
        Err(error) if on_ring && wanted == BackendSetting::Auto => {
            let refusal = Refusal::of_ring(error);
            let (backend, info) = on_threads(&clock, numbers.size, Some(&refusal))?;
            (start(backend, &clock, guest, numbers)?, info)
        }
        Err(error) if on_ring => return Err(super::unavailable(&Refusal::of_ring(error))),
        Err(error) => return Err(error),
    };
    Ok(IoEngine {
        handle,
        backend: info,
        driver,
        origin: Origin::here()?,
    })
}

/// Makes the loop, and whoever turns it. The ring stands when this returns, or this fails.
fn start(
    backend: Box<dyn Backend>,
    clock: &Arc<dyn Clock>,
    guest: bool,
    numbers: Settings,
) -> Result<(Driver, Handle)> {
    let (made, handle) = IoLoop::new(backend, Arc::clone(clock), numbers)?;
    let driver = if guest {
        Driver::Guest(Turnable::new(made)?)
    } else {
        Driver::Thread(Mutex::new(Some(driver::spawn(made)?)))
    };
    Ok((driver, handle))
}

/// The name of the rung that needs no ring.
const THREADS: &str = "threads";

fn info(name: &'static str, refusal: Option<&Refusal>) -> BackendInfo {
    BackendInfo {
        name,
        reason: refusal.map_or_else(String::new, |refusal| refusal.error.to_string()),
        hint: refusal.map_or("", |refusal| refusal.hint),
    }
}

fn on_threads(
    clock: &Arc<dyn Clock>,
    size: usize,
    refusal: Option<&Refusal>,
) -> Result<(Box<dyn Backend>, BackendInfo)> {
    let disk = ThreadsDisk::new(Arc::clone(clock)).with_capacity(size);
    Ok((disk.backend()?, info(THREADS, refusal)))
}

/// Climbs down the ladder until something works, or fails where a rung is forced.
fn choose(
    clock: &Arc<dyn Clock>,
    wanted: BackendSetting,
    guest: bool,
    size: usize,
    dir: Option<&Path>,
) -> Result<(Box<dyn Backend>, BackendInfo)> {
    if wanted == BackendSetting::Threads {
        return on_threads(clock, size, None);
    }
    match UringDisk::probe(Arc::clone(clock), dir) {
        Ok(disk) => {
            let disk = disk.with_capacity(size);
            let disk = match (guest, wanted) {
                (true, _) => disk.for_guests(),
                (false, BackendSetting::UringPlain) => disk.with_plain_ring(),
                (false, _) => disk,
            };
            let name = disk.variant();
            if wanted == BackendSetting::Uring && name != "uring" && !guest {
                return Err(Error::new(
                    ErrorKind::Unsupported,
                    "this kernel offers only the plain ring; ask for uring-plain or auto",
                ));
            }
            Ok((disk.backend()?, info(name, None)))
        }
        Err(refusal) if wanted == BackendSetting::Auto => on_threads(clock, size, Some(&refusal)),
        Err(refusal) => Err(super::unavailable(&refusal)),
    }
}

#[cfg(test)]
mod tests;

/// Hears of the end of a loop.
#[derive(Default)]
struct End {
    left: Mutex<Option<Leftovers>>,
    came: Condvar,
}

impl Sink for End {
    fn answer(&self, _answered: Answered) {}

    fn closed(&self, _tag: u64, left: Leftovers) {
        *lock(&self.left) = Some(left);
        self.came.notify_all();
    }
}

impl IoEngine {
    /// The way to the loop; clones are cheap and may go to any thread.
    pub fn handle(&self) -> &Handle {
        &self.handle
    }

    /// Which backend is used, and why not a better one.
    pub fn backend(&self) -> &BackendInfo {
        &self.backend
    }

    /// The loop, if it is turned by whoever has the time.
    pub fn turnable(&self) -> Option<&Turnable> {
        match &self.driver {
            Driver::Guest(turnable) => Some(turnable),
            Driver::Thread(_) => None,
        }
    }

    /// Closes and waits for the end, for `budget` or as long as the settings say. What the kernel
    /// did not answer is left behind. For plain threads; an event loop uses
    /// [`Handle::close`] with a listener.
    pub fn close(&self, budget: Option<Duration>) -> Result<Leftovers> {
        self.origin.check()?;
        let end = Arc::new(End::default());
        let listener: Arc<dyn Sink> = end.clone();
        self.handle.close(budget, Some((listener, 0)));
        match &self.driver {
            Driver::Guest(turnable) => turnable.turn_while(|| lock(&end.left).is_none()),
            Driver::Thread(thread) => {
                let mut left = lock(&end.left);
                while left.is_none() {
                    let wait = end.came.wait(left);
                    left = wait.unwrap_or_else(std::sync::PoisonError::into_inner);
                }
                drop(left);
                if let Some(thread) = lock(thread).take() {
                    // It has left its last statement of ours.
                    let _ = thread.join();
                }
            }
        }
        Ok(lock(&end.left).unwrap_or_default())
    }
}

impl Drop for IoEngine {
    fn drop(&mut self) {
        if self.origin.is_forked_child() {
            if let Driver::Thread(thread) = &mut self.driver {
                // The thread is in the parent.
                std::mem::forget(std::mem::take(thread));
            }
            return;
        }
        // Nothing is left to do with an error.
        let _ = self.close(Some(DROP_BUDGET));
    }
}
