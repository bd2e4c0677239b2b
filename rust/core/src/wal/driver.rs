//! The thread behind an open log.
//!
//! Under [`Driver::Thread`] it turns the committer until it is done. Under [`Driver::Loop`] it is
//! the steward of a [`Turner`], and turns only what nobody else does; under [`Driver::Either`] it
//! also turns while many append. In all cases it makes the backend and brings the log to its end.
//!
//! It never takes the interpreter lock and never waits for anything but its backend. A panic in it
//! poisons the log and answers every waiter; what the kernel may still touch is leaked, and the
//! process lives on.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::mpsc::SyncSender,
    thread::{self, JoinHandle},
};

use crate::{
    error::{Error, ErrorKind, Result},
    io::{self, Backend, Blocking, Disk, File},
    sync::{Arc, lock},
};

use super::{
    choose::Candidate,
    commit::{Committer, Next},
    log::{Appender, closed},
    settings::Driver,
    steward,
    turner::{Alarm, Turner},
};

/// Starts the thread. Returns when its backend is up and holds the lock, or with the reason why
/// it could not be.
pub(crate) fn spawn(
    committer: Committer,
    appender: Appender,
    candidate: &Candidate,
    lock: File,
) -> Result<JoinHandle<()>> {
    let (disk, driver) = (Arc::clone(&candidate.disk), candidate.driver);
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
            if driver != Driver::Thread {
                let turner = Turner::new(committer, backend, driver == Driver::Either);
                return attend(turner, &appender, ready, &lock);
            }
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

/// Lends committer and backend to whoever appends or waits, until the log is closing or has failed.
fn attend(turner: Turner, appender: &Appender, ready: SyncSender<Result<()>>, lock: &File) {
    let shared = &appender.0;
    let turner = Arc::new(turner);
    shared.attach_driver(Arc::new(Alarm(Arc::clone(&turner))));
    shared.attach_turner(Arc::clone(&turner));
    let _told = ready.send(Ok(()));
    drop(ready);
    steward::serve(shared, &turner);
    let Some(mut engine) = turner.take() else {
        return;
    };
    if engine.has_panicked {
        return end(engine.committer, appender, &mut engine.backend, lock);
    }
    run(engine.committer, appender, &mut engine.backend, lock);
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
        return end(committer, appender, backend, lock);
    }
    drop(committer);
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

/// After a panic, which has poisoned the log.
fn end(committer: Committer, appender: &Appender, backend: &mut Box<dyn Backend>, lock: &File) {
    // The committer's buffers may still be in flight: they are never freed.
    std::mem::forget(committer);
    give_back(appender, backend, lock);
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
