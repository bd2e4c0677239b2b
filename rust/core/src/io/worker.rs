//! Threads for what must not delay the owner of a backend: requests that are carried out with
//! plain system calls, urgent ones first, else oldest first.
//!
//! # Always true
//!
//! 1. A thread starts when a request finds none idle and there may be more of them; all end with
//!    [`Workers::shutdown`].
//! 2. A request belongs to the thread while it is carried out. A thread stuck in the kernel keeps
//!    file, buffer and lock alive; when the kernel lets go of it, so does the thread.
//! 3. A request is in exactly one of: waiting, being carried out, done, handed out.
//! 4. With two threads or more, bulk transfers never occupy all of them: whoever waits for
//!    durability finds one free, or waits only behind others of his kind. Neither do these, while
//!    bulk waits.

use std::{
    collections::VecDeque,
    sync::{Arc, Condvar, Mutex},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use super::{
    Cancelled, Effort, File, Finished, Leftovers, Request, Token,
    execute::{self, Durability},
    program::cancelled,
    signal::Signal,
    sys,
    tally::{self, Tally},
};
use crate::{
    error::{Error, ErrorKind},
    fork::Origin,
    sync::lock,
};

/// See the module.
pub(crate) struct Workers {
    shared: Arc<Shared>,
    origin: Origin,
    threads_max: usize,
    threads: Vec<JoinHandle<()>>,
}

struct Shared {
    state: Mutex<State>,
    /// Work came, or the threads end.
    changed: Condvar,
    owner: Arc<Signal>,
    durability: Durability,
    /// How many threads bulk transfers may occupy.
    bulk_max: usize,
}

#[derive(Default)]
struct State {
    urgent: VecDeque<Request>,
    bulk: VecDeque<Request>,
    /// What is being carried out: whose, bytes of its buffers, and whether it is bulk.
    busy: Vec<(Token, u64, bool)>,
    done: Vec<Finished>,
    /// What it took to carry them out.
    tally: Tally,
    /// Threads that wait for work.
    idle: usize,
    /// Threads that have not ended.
    alive: usize,
    stop: bool,
    /// Kept for as long as a thread may still write; see `Backend::hold`.
    held: Option<File>,
}

impl State {
    /// The next request that a free thread may begin.
    fn next(&mut self, bulk_max: usize) -> Option<Request> {
        let bulk = self.busy.iter().filter(|(_, _, bulk)| *bulk).count();
        let urgent = self.busy.len() - bulk;
        let yields = urgent >= bulk_max && !self.bulk.is_empty();
        if !(yields && bulk < bulk_max && !planted!("workers_urgent_takes_all"))
            && let Some(request) = self.urgent.pop_front()
        {
            return Some(request);
        }
        if bulk < bulk_max || planted!("workers_no_reserve") {
            return self.bulk.pop_front();
        }
        None
    }

    fn begin(&mut self, request: &Request) {
        let bulk = !request.op.is_urgent();
        self.busy
            .push((request.token, request.op.buffer_bytes(), bulk));
    }

    fn end(&mut self, finished: Finished) {
        let mine = |(token, ..): &(Token, u64, bool)| *token == finished.token;
        if let Some(at) = self.busy.iter().position(mine) {
            self.busy.swap_remove(at);
        }
        self.done.push(finished);
    }
}

impl Workers {
    /// No thread yet. `owner` is nudged when something is done.
    pub(crate) fn new(
        owner: Arc<Signal>,
        origin: Origin,
        durability: Durability,
        threads_max: usize,
    ) -> Self {
        Self {
            shared: Arc::new(Shared {
                state: Mutex::default(),
                changed: Condvar::new(),
                owner,
                durability,
                bulk_max: threads_max.saturating_sub(1).max(1),
            }),
            origin,
            threads_max: threads_max.max(1),
            threads: Vec::new(),
        }
    }

    /// Takes a request, or gives it back if no thread could be started.
    pub(crate) fn submit(&mut self, request: Request) -> Result<(), Request> {
        let mut state = lock(&self.shared.state);
        let waiting = state.urgent.len() + state.bulk.len();
        if state.idle <= waiting && self.threads.len() < self.threads_max {
            let shared = Arc::clone(&self.shared);
            let thread = std::thread::Builder::new()
                .name("millrace-io".to_owned())
                .spawn(move || shared.serve());
            match thread {
                Ok(thread) => {
                    state.alive += 1;
                    self.threads.push(thread);
                }
                Err(_) if self.threads.is_empty() => return Err(request),
                // Those there are will come to it.
                Err(_) => {}
            }
        }
        if request.op.is_urgent() {
            state.urgent.push_back(request);
        } else {
            state.bulk.push_back(request);
        }
        drop(state);
        self.shared.changed.notify_one();
        Ok(())
    }

    /// Whether a thread was ever needed.
    #[cfg(test)]
    pub(crate) fn has_begun(&self) -> bool {
        !self.threads.is_empty()
    }

    /// Takes a waiting request back; its answer can be collected.
    pub(crate) fn cancel(&mut self, token: Token) -> Option<Cancelled> {
        if self.threads.is_empty() {
            return None;
        }
        let mut state = lock(&self.shared.state);
        if state.busy.iter().any(|(busy, ..)| *busy == token) {
            return Some(Cancelled::TooLate);
        }
        let request = take(&mut state.urgent, token).or_else(|| take(&mut state.bulk, token))?;
        state.done.push(withdrawn(request));
        Some(Cancelled::Taken)
    }

    /// Moves what is done to the end of `out`, and what it took to `effort`.
    pub(crate) fn collect(&self, out: &mut Vec<Finished>, effort: &mut Effort) {
        if !self.threads.is_empty() {
            let mut state = lock(&self.shared.state);
            out.append(&mut state.done);
            std::mem::take(&mut state.tally).count_in(effort);
        }
    }

    /// Keeps `file` with the threads' own writes.
    pub(crate) fn hold(&self, file: Option<File>) {
        lock(&self.shared.state).held = file;
    }

    /// Answers what waits, waits up to `budget` for what is being carried out, and puts everything
    /// that is done into `out`. What is done later is answered by nobody: it was left behind.
    pub(crate) fn shutdown(
        &mut self,
        budget: Option<Duration>,
        out: &mut Vec<Finished>,
    ) -> Leftovers {
        let threads = std::mem::take(&mut self.threads);
        if self.origin.is_forked_child() {
            // The threads are in the parent, perhaps inside the lock of this copy.
            std::mem::forget((threads, Arc::clone(&self.shared)));
            return Leftovers::default();
        }
        if threads.is_empty() {
            out.append(&mut lock(&self.shared.state).done);
            return Leftovers::default();
        }
        let mut state = lock(&self.shared.state);
        state.stop = true;
        while let Some(request) = state.urgent.pop_front().or_else(|| state.bulk.pop_front()) {
            state.done.push(refused(request));
        }
        self.shared.changed.notify_all();
        let deadline = budget.and_then(|budget| Instant::now().checked_add(budget));
        while state.alive > 0 {
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
                // Under one lock with the count: nothing is both answered and left behind.
                out.append(&mut state.done);
                return Leftovers {
                    requests: state.busy.len() as u64,
                    bytes: state.busy.iter().map(|(_, bytes, _)| bytes).sum(),
                };
            }
            let wait = self.shared.changed.wait_timeout(state, left);
            state = wait.unwrap_or_else(std::sync::PoisonError::into_inner).0;
        }
        out.append(&mut state.done);
        drop(state);
        for thread in threads {
            // It has left its last statement of ours; a panic there was answered already.
            let _ = thread.join();
        }
        Leftovers::default()
    }
}

impl Shared {
    fn serve(&self) {
        sys::block_signals();
        let mut state = lock(&self.state);
        while !state.stop {
            let Some(request) = state.next(self.bulk_max) else {
                state.idle += 1;
                let wait = self.changed.wait(state);
                state = wait.unwrap_or_else(std::sync::PoisonError::into_inner);
                state.idle -= 1;
                continue;
            };
            state.begin(&request);
            drop(state);
            let finished = execute::run(request, self.durability);
            let took = tally::take();
            state = lock(&self.state);
            state.tally.add(took);
            state.end(finished);
            self.owner.nudge();
        }
        state.alive -= 1;
        if state.alive == 0 {
            state.held = None;
        }
        self.changed.notify_all();
    }
}

/// Takes the request with `token` out of a queue.
pub(crate) fn take(queue: &mut VecDeque<Request>, token: Token) -> Option<Request> {
    let at = queue.iter().position(|request| request.token == token)?;
    queue.remove(at)
}

/// The answer to a request that was taken back before it began.
pub(crate) fn withdrawn(request: Request) -> Finished {
    Finished {
        result: Err(cancelled(0)),
        ..refused(request)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::{Class, Op};

    fn read(token: u64) -> Request {
        let op = Op::Stat {
            file: File::from_number(1),
        };
        request(token, op)
    }

    fn sync(token: u64) -> Request {
        let file = File::from_number(1);
        request(token, Op::SyncData { file })
    }

    fn request(token: u64, op: Op) -> Request {
        Request {
            token: Token(token),
            class: Class::Program,
            op,
        }
    }

    #[test]
    fn bulk_never_occupies_every_thread() {
        // With four threads the fourth is for those who wait for durability, who go first anyway.
        let mut state = State::default();
        state.bulk.extend((0..10).map(read));
        for _ in 0..3 {
            let request = state.next(3).unwrap();
            state.begin(&request);
        }
        assert!(state.next(3).is_none());
        state.urgent.push_back(sync(20));
        let urgent = state.next(3).unwrap();
        assert_eq!(urgent.token, Token(20));
        state.begin(&urgent);
        state.end(refused(read(0)));
        assert_eq!(state.next(3).map(|request| request.token), Some(Token(3)));
    }

    #[test]
    fn syncs_never_occupy_every_thread_while_bulk_waits() {
        // However many wait for durability, one thread of four goes on with the rest.
        let mut state = State::default();
        state.urgent.extend((0..10).map(sync));
        state.bulk.push_back(read(20));
        let mut taken = Vec::new();
        for _ in 0..5 {
            let request = state.next(3).unwrap();
            state.begin(&request);
            taken.push(request.token.0);
        }
        // Without bulk that waits, there is nobody to leave a thread to.
        assert_eq!(taken, [0, 1, 2, 20, 3]);
    }
}
