//! One thread for what must not delay the owner of a backend: background requests that are
//! carried out with plain system calls, oldest first.
//!
//! # Always true
//!
//! 1. The thread starts with the first request and ends with [`Worker::shutdown`].
//! 2. A request belongs to the thread while it is carried out. A thread stuck in the kernel keeps
//!    file, buffer and lock alive; when the kernel lets go of it, so does the thread.
//! 3. A request is in exactly one of: waiting, being carried out, done, handed out.

use std::{
    collections::VecDeque,
    sync::{Arc, Condvar, Mutex},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use super::{
    File, Finished, Leftovers, Request,
    execute::{self, Durability},
    signal::Signal,
    sys,
};
use crate::{
    error::{Error, ErrorKind},
    fork::Origin,
    sync::lock,
};

/// See the module.
pub(crate) struct Worker {
    shared: Arc<Shared>,
    origin: Origin,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    state: Mutex<State>,
    /// Work came, or the thread ends.
    changed: Condvar,
    owner: Arc<Signal>,
    durability: Durability,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Request>,
    /// Bytes of the buffer of the request that is being carried out.
    busy: Option<u64>,
    done: Vec<Finished>,
    stop: bool,
    ended: bool,
    /// Kept for as long as the thread may still write; see `Backend::hold`.
    held: Option<File>,
}

impl Worker {
    /// No thread yet. `owner` is nudged when something is done.
    pub(crate) fn new(owner: Arc<Signal>, origin: Origin, durability: Durability) -> Self {
        Self {
            shared: Arc::new(Shared {
                state: Mutex::default(),
                changed: Condvar::new(),
                owner,
                durability,
            }),
            origin,
            thread: None,
        }
    }

    /// Takes a request, or gives it back if no thread could be started.
    pub(crate) fn submit(&mut self, request: Request) -> Result<(), Request> {
        if self.thread.is_none() {
            let shared = Arc::clone(&self.shared);
            let thread = std::thread::Builder::new()
                .name("millrace-io".to_owned())
                .spawn(move || shared.serve());
            match thread {
                Ok(thread) => self.thread = Some(thread),
                Err(_) => return Err(request),
            }
        }
        lock(&self.shared.state).waiting.push_back(request);
        self.shared.changed.notify_all();
        Ok(())
    }

    /// Moves what is done to the end of `out`.
    pub(crate) fn collect(&self, out: &mut Vec<Finished>) {
        if self.thread.is_some() {
            out.append(&mut lock(&self.shared.state).done);
        }
    }

    /// Keeps `file` with the thread's own writes.
    pub(crate) fn hold(&self, file: Option<File>) {
        lock(&self.shared.state).held = file;
    }

    /// Answers what waits, and waits up to `budget` for what is being carried out. What is done
    /// can still be collected.
    pub(crate) fn shutdown(&mut self, budget: Option<Duration>) -> Leftovers {
        let Some(thread) = self.thread.take() else {
            return Leftovers::default();
        };
        if self.origin.is_forked_child() {
            // The thread is in the parent, perhaps inside the lock of this copy.
            std::mem::forget((thread, Arc::clone(&self.shared)));
            return Leftovers::default();
        }
        let mut state = lock(&self.shared.state);
        state.stop = true;
        while let Some(request) = state.waiting.pop_front() {
            state.done.push(refused(request));
        }
        self.shared.changed.notify_all();
        let deadline = budget.and_then(|budget| Instant::now().checked_add(budget));
        while !state.ended {
            let Some(deadline) = deadline else {
                state = self
                    .shared
                    .changed
                    .wait(state)
                    .unwrap_or_else(std::sync::PoisonError::into_inner);
                continue;
            };
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Leftovers {
                    requests: u64::from(state.busy.is_some()),
                    bytes: state.busy.unwrap_or(0),
                };
            }
            let wait = self.shared.changed.wait_timeout(state, left);
            state = wait.unwrap_or_else(std::sync::PoisonError::into_inner).0;
        }
        drop(state);
        // It has left its last statement of ours; a panic there was answered already.
        let _ = thread.join();
        Leftovers::default()
    }

    /// What was done after the thread was given up, or before it ended.
    pub(crate) fn collect_rest(&self, out: &mut Vec<Finished>) {
        if !self.origin.is_forked_child() {
            out.append(&mut lock(&self.shared.state).done);
        }
    }
}

impl Shared {
    fn serve(&self) {
        sys::block_signals();
        let mut state = lock(&self.state);
        while !state.stop {
            let Some(request) = state.waiting.pop_front() else {
                let wait = self.changed.wait(state);
                state = wait.unwrap_or_else(std::sync::PoisonError::into_inner);
                continue;
            };
            state.busy = Some(request.op.buffer_bytes());
            drop(state);
            let finished = execute::run(request, self.durability);
            state = lock(&self.state);
            state.busy = None;
            state.done.push(finished);
            self.owner.nudge();
        }
        state.ended = true;
        state.held = None;
        self.changed.notify_all();
    }
}

/// The answer to a request that was never begun.
pub(crate) fn refused(request: Request) -> Finished {
    Finished {
        token: request.token,
        buffer: request.op.into_buffer(),
        result: Err(Error::new(
            ErrorKind::Closed,
            "the backend was shut down before this began",
        )),
    }
}
