//! A thread of our own that turns a committer until it is done.
//!
//! It never takes the interpreter lock and never waits for anything but its backend. A panic in it
//! poisons the log and answers every waiter; what the kernel may still touch is leaked, and the
//! process lives on.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    thread::{self, JoinHandle},
};

use crate::{
    error::{Error, ErrorKind, Result},
    io::{self, Backend, Blocking, Disk, File},
    sync::{Arc, lock},
};

use super::{
    commit::{Committer, Next},
    log::{Appender, closed},
};

/// Starts the thread. Returns when its backend is up and holds the lock, or with the reason why
/// it could not be.
pub(crate) fn spawn(
    committer: Committer,
    appender: Appender,
    disk: Arc<dyn Disk>,
    lock: File,
) -> Result<JoinHandle<()>> {
    let (ready, started) = std::sync::mpsc::sync_channel(1);
    let thread = thread::Builder::new()
        .name("millrace-log".to_owned())
        .spawn(move || {
            io::wake_on_time();
            let mut backend = match begin(&*disk, &committer, &lock) {
                Ok(backend) => backend,
                Err(error) => {
                    let _told = ready.send(Err(error));
                    return;
                }
            };
            let _told = ready.send(Ok(()));
            drop(ready);
            run(committer, &appender, &mut backend, &lock);
        })
        .map_err(|error| Error::from_io(&error, "start the log's thread"))?;
    match started.recv() {
        Ok(Ok(())) => Ok(thread),
        Ok(Err(error)) => Err(error),
        Err(_) => Err(Error::new(
            ErrorKind::Io,
            "the log's thread ended before it began",
        )),
    }
}

fn begin(disk: &dyn Disk, committer: &Committer, lock: &File) -> Result<Box<dyn Backend>> {
    let mut backend = disk.backend()?;
    backend.hold(lock)?;
    committer.attach(&*backend);
    Ok(backend)
}

fn run(mut committer: Committer, appender: &Appender, backend: &mut Box<dyn Backend>, lock: &File) {
    let turned = catch_unwind(AssertUnwindSafe(|| {
        drive(&mut committer, &mut **backend);
    }));
    if turned.is_err() {
        appender.0.poison(Error::new(
            ErrorKind::Poisoned,
            "the log's thread panicked; this is a bug in millrace",
        ));
        // The committer's buffers may still be in flight: they are never freed.
        std::mem::forget(committer);
    }
    give_back(appender, backend, lock);
}

/// Gives the directory back. Whatever else still changes it is waited for, however the log ended:
/// once the lock is free, the directory may be somebody else's.
fn give_back(appender: &Appender, backend: &mut Box<dyn Backend>, held: &File) {
    let upkeep = lock(&appender.0.upkeep);
    release(backend, held);
    // A closed log has the same face as a failed one: every later call learns why at once.
    appender.0.marks.fail(closed());
    drop(upkeep);
}

fn drive(committer: &mut Committer, backend: &mut dyn Backend) {
    while let Next::Wait(wait) = committer.turn(backend) {
        committer.wait(backend, wait);
    }
}

/// In this order: nothing in flight, the ring lets go, the lock is given back explicitly (else it
/// stays busy until the kernel has torn the ring down), then the ring goes. What the kernel may
/// still write keeps the lock: nobody else may open the log before it has landed.
fn release(backend: &mut Box<dyn Backend>, lock: &File) {
    if backend.in_flight() == 0 {
        backend.let_go();
        // A process that is being started by another thread may hold a copy of the descriptor.
        let _only_a_hint = Blocking::new(&mut **backend).unlock(lock);
        backend.shutdown(None);
        return;
    }
    let leftovers = backend.shutdown(None);
    if leftovers.requests == 0 {
        backend.let_go();
    }
}
