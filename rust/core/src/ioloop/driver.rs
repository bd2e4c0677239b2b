//! Who turns a loop: a thread of ours, or whoever has the time.

use std::{
    os::fd::{AsFd, AsRawFd, OwnedFd, RawFd},
    sync::{Arc, Condvar, Mutex, PoisonError, mpsc},
    thread::JoinHandle,
};

use super::{IoLoop, Turned};
use crate::{
    error::{Error, ErrorKind, Result},
    io::{self, Wait, sys},
    sync::lock,
};

/// Starts a thread that turns `engine` until it is over. The thread takes no signals and never
/// waits for anything but the backend. When this returns the backend has what it needs there.
pub fn spawn(mut engine: IoLoop) -> Result<JoinHandle<()>> {
    let (tell, told) = mpsc::sync_channel(1);
    let thread = std::thread::Builder::new()
        .name("millrace-loop".to_owned())
        .spawn(move || {
            sys::block_signals();
            io::wake_on_time();
            let prepared = engine.prepare();
            let is_ready = prepared.is_ok();
            // Who asked is waiting for it.
            let _ = tell.send(prepared);
            while is_ready && engine.turn(Wait::Forever) == Turned::On {}
        })
        .map_err(|error| Error::from_io(&error, "start of a thread"))?;
    let lost = || Error::new(ErrorKind::Poisoned, "the I/O loop ended before it began");
    match told.recv().unwrap_or_else(|_| Err(lost())) {
        Ok(()) => Ok(thread),
        Err(failed) => {
            // Nothing was asked of it, so it ends at once.
            let _ = thread.join();
            Err(failed)
        }
    }
}

/// A loop that anybody may turn, one at a time: an event loop when one of the watched descriptors
/// is readable or right after it submitted, and any thread that waits for an answer.
///
/// For an event loop:
///
/// ```text
/// watch each of watched() for reading; when one is: quiet(), then turn()
/// after submissions (Handle::submit_quietly): turn()
/// turn() says when to turn again at the latest, if nothing becomes readable before
/// ```
#[derive(Clone)]
pub struct Turnable(Arc<Inner>);

struct Inner {
    place: Mutex<Place>,
    /// A turn is over.
    turned: Condvar,
    /// Raised by the backend; watched by the event loop.
    bell: OwnedFd,
    watched: Vec<RawFd>,
}

struct Place {
    /// The loop, while nobody turns it.
    engine: Option<Box<IoLoop>>,
    /// Threads that wait for a turn to end: without one, the end of a turn costs no system call.
    waiting: usize,
}

/// When to turn again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// When a watched descriptor is readable.
    Readable,
    /// The same, or at this instant of the loop's clock.
    At(crate::clock::Mono),
    /// Another thread turns it now, and will see what was submitted.
    Elsewhere,
    /// Never: it is over.
    Over,
}

impl Turnable {
    /// Wraps a loop whose backend may be turned by any thread.
    pub fn new(mut engine: IoLoop) -> Result<Self> {
        let bell = sys::event().map_err(|errno| Error::from_errno(errno.0, "eventfd"))?;
        let mut watched = engine.notify(bell.as_fd())?;
        watched.insert(0, bell.as_raw_fd());
        Ok(Self(Arc::new(Inner {
            place: Mutex::new(Place {
                engine: Some(Box::new(engine)),
                waiting: 0,
            }),
            turned: Condvar::new(),
            bell,
            watched,
        })))
    }

    /// Descriptors that are readable when a turn would find something.
    pub fn watched(&self) -> &[RawFd] {
        &self.0.watched
    }

    /// Makes the bell silent again; turn after this, not before.
    pub fn quiet(&self) {
        sys::lower(self.0.bell.as_raw_fd());
    }

    /// Turns once, without waiting.
    pub fn turn(&self) -> Next {
        let Some(mut engine) = lock(&self.0.place).engine.take() else {
            return Next::Elsewhere;
        };
        let next = match engine.turn(Wait::Never) {
            Turned::Over => Next::Over,
            Turned::On => engine.next_deadline().map_or(Next::Readable, Next::At),
        };
        self.put_back(engine);
        next
    }

    /// Turns as long as `go_on`, waiting for what there is to wait for; while another thread turns,
    /// waits for its turns to end. For threads that have nothing else to do.
    /// [`Handle::submit`](super::Handle::submit) ends their wait.
    pub fn turn_while(&self, go_on: impl Fn() -> bool) {
        let mut place = lock(&self.0.place);
        while go_on() {
            let Some(mut engine) = place.engine.take() else {
                place.waiting += 1;
                let wait = self.0.turned.wait(place);
                place = wait.unwrap_or_else(PoisonError::into_inner);
                place.waiting -= 1;
                continue;
            };
            drop(place);
            let turned = engine.turn(Wait::Forever);
            self.put_back(engine);
            if turned == Turned::Over {
                return;
            }
            place = lock(&self.0.place);
        }
    }

    fn put_back(&self, engine: Box<IoLoop>) {
        let mut place = lock(&self.0.place);
        place.engine = Some(engine);
        let is_awaited = place.waiting > 0 && !planted!("ioloop_turn_ends_unheard");
        drop(place);
        if is_awaited {
            self.0.turned.notify_all();
        }
    }
}
