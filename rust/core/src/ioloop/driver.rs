//! Who turns a loop: a thread of ours, or whoever has the time.

use std::{
    os::fd::RawFd,
    sync::{Arc, Mutex, TryLockError},
    thread::JoinHandle,
};

use super::{IoLoop, Turned};
use crate::{
    error::{Error, Result},
    io::{self, Wait, sys},
};

/// Starts a thread that turns `engine` until it is over. The thread takes no signals and never
/// waits for anything but the backend.
pub fn spawn(mut engine: IoLoop) -> Result<JoinHandle<()>> {
    std::thread::Builder::new()
        .name("millrace-loop".to_owned())
        .spawn(move || {
            sys::block_signals();
            io::wake_on_time();
            while engine.turn(Wait::Forever) == Turned::On {}
        })
        .map_err(|error| Error::from_io(&error, "start of a thread"))
}

/// A loop that anybody may turn, one at a time: an event loop when one of the watched descriptors
/// is readable or after it submitted, and any thread that waits for an answer.
#[derive(Clone)]
pub struct Turnable {
    inner: Arc<Mutex<IoLoop>>,
    watched: Arc<[RawFd]>,
}

impl Turnable {
    /// Wraps a loop whose backend may be turned by any thread.
    pub fn new(engine: IoLoop) -> Self {
        let watched = engine.watched().into();
        Self {
            inner: Arc::new(Mutex::new(engine)),
            watched,
        }
    }

    /// Descriptors that become readable when a turn would find something. They stay readable
    /// until a turn.
    pub fn watched(&self) -> &[RawFd] {
        &self.watched
    }

    /// Turns once, without waiting; `None` if another thread turns it now.
    pub fn try_turn(&self) -> Option<Turned> {
        match self.inner.try_lock() {
            Ok(mut engine) => Some(engine.turn(Wait::Never)),
            Err(TryLockError::WouldBlock) => None,
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner().turn(Wait::Never)),
        }
    }

    /// Turns as long as `go_on`, waiting for what there is to wait for. For threads that have
    /// nothing else to do.
    pub fn turn_while(&self, go_on: impl Fn() -> bool) {
        while go_on() {
            let mut engine = crate::sync::lock(&self.inner);
            if go_on() && engine.turn(Wait::Forever) == Turned::Over {
                return;
            }
        }
    }
}
