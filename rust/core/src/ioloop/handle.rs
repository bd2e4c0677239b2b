//! The loop as its callers see it: from any thread, never waiting.
//!
//! # Always true
//!
//! 1. A submission that was accepted is answered once, whatever happens to the loop.
//! 2. What is pushed before a wake is taken by the turn that this wake causes, or by the turn that
//!    is under way: a turn takes messages after it has looked at the wake word.
//! 3. What is pushed to a loop that has ended is answered by whoever pushed it.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU8, AtomicU64, Ordering, fence},
    },
    time::Duration,
};

use crossbeam::queue::SegQueue;

use super::{
    metrics::{Metrics, SlowOperation, Statistics},
    request::{Ask, Id},
    sink::{Answered, Sink},
    table::Waiter,
};
use crate::{
    clock::{Clock, Mono},
    error::{Error, ErrorKind, Result},
    fork::Origin,
    io::{Leftovers, Wake},
    sync::lock,
};

/// Takes submissions.
pub(super) const OPEN: u8 = 0;
/// Serves what it has.
pub(super) const CLOSING: u8 = 1;
/// Turns no more.
pub(super) const OVER: u8 = 2;

/// On its way to the loop.
pub(super) enum Message {
    Submit(Submission),
    Forget(Id),
    /// Serve what there is, for as long as this or as the settings say.
    Close(Option<Duration>),
}

pub(super) struct Submission {
    pub id: Id,
    pub ask: Ask,
    pub deadline: Option<Mono>,
    pub waiter: Waiter,
    pub at: Mono,
}

/// Shared by the handles and the loop.
pub(super) struct Shared {
    pub queue: SegQueue<Message>,
    pub state: AtomicU8,
    /// Why nothing is taken any more, if not because it was closed.
    pub poison: Mutex<Option<Error>>,
    /// Who wants to hear of the end, or what was left behind by it.
    pub ends: Mutex<Ends>,
    pub metrics: Metrics,
    pub origin: Origin,
    pub size: usize,
    clock: Arc<dyn Clock>,
    waker: Arc<dyn Wake>,
    next_id: AtomicU64,
    /// Submissions that have not gone into flight or ended.
    pub waiting: AtomicU64,
    /// Submissions that are not over, waiting and in flight; true at every moment.
    pub pending: AtomicU64,
}

/// See [`Shared::ends`].
#[derive(Default)]
pub(super) struct Ends {
    pub listeners: Vec<(Arc<dyn Sink>, u64)>,
    pub left: Option<Leftovers>,
}

impl Shared {
    pub(super) fn new(
        clock: Arc<dyn Clock>,
        waker: Arc<dyn Wake>,
        origin: Origin,
        size: usize,
    ) -> Self {
        Self {
            queue: SegQueue::new(),
            state: AtomicU8::new(OPEN),
            poison: Mutex::new(None),
            ends: Mutex::default(),
            metrics: Metrics::default(),
            origin,
            size,
            clock,
            waker,
            next_id: AtomicU64::new(1),
            waiting: AtomicU64::new(0),
            pending: AtomicU64::new(0),
        }
    }

    /// Why a submission is not taken.
    pub(super) fn refusal(&self) -> Error {
        match lock(&self.poison).clone() {
            Some(cause) => {
                Error::new(ErrorKind::Poisoned, "the I/O engine failed").caused_by(cause)
            }
            None => Error::new(ErrorKind::Closed, "the I/O engine is closed"),
        }
    }

    fn publish(&self, message: Message) {
        self.queue.push(message);
        self.look_after(true);
    }

    /// Sees to it that what was pushed is taken: by the loop, which is woken if wanted, or, if that
    /// is over, here.
    fn look_after(&self, wake: bool) {
        // Partner: the fence in `end`. The push is before it and the look at the state after it,
        // so either `end` finds the message or we find that it is over.
        fence(Ordering::SeqCst);
        if self.state.load(Ordering::Relaxed) == OVER && !planted!("ioloop_late_push_lost") {
            self.answer_queue();
        } else if wake {
            self.waker.wake();
        }
    }

    /// The loop turns no more; what is queued is answered, here or by whoever queues it.
    pub(super) fn end(&self, left: Leftovers) {
        self.state.store(OVER, Ordering::Relaxed);
        // Partner: the fence in `publish`.
        fence(Ordering::SeqCst);
        self.answer_queue();
        let mut ends = lock(&self.ends);
        ends.left = Some(left);
        let listeners = std::mem::take(&mut ends.listeners);
        drop(ends);
        for (sink, tag) in listeners {
            sink.closed(tag, left);
        }
    }

    fn answer_queue(&self) {
        while let Some(message) = self.queue.pop() {
            if let Message::Submit(submission) = message {
                self.waiting.fetch_sub(1, Ordering::Relaxed);
                self.pending.fetch_sub(1, Ordering::Relaxed);
                let Submission { id, waiter, .. } = submission;
                let result = Err(self.refusal());
                let tag = waiter.tag;
                waiter.sink.answer(Answered { id, tag, result });
            }
        }
    }

    fn begin_close(&self, budget: Option<Duration>) {
        // Whether it was open, or on its way to the end already, does not matter here.
        let _ = self
            .state
            .compare_exchange(OPEN, CLOSING, Ordering::Relaxed, Ordering::Relaxed);
        self.publish(Message::Close(budget));
    }
}

/// A way to the loop. Clones share it; the loop closes when the last one is dropped.
#[derive(Clone)]
pub struct Handle(Arc<Door>);

struct Door(Arc<Shared>);

impl Drop for Door {
    fn drop(&mut self) {
        if !self.0.origin.is_forked_child() {
            self.0.begin_close(None);
        }
    }
}

impl Handle {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self(Arc::new(Door(shared)))
    }

    pub(super) fn shared(&self) -> &Shared {
        &self.0.0
    }

    /// The loop's time; deadlines are instants of it.
    pub fn now(&self) -> Mono {
        self.shared().clock.now()
    }

    /// Asks for something. The answer goes to `sink`, with `tag`, once, on the thread that turns
    /// the loop; it may come before this returns. An error here means that nothing was accepted
    /// and no answer comes.
    ///
    /// At most [`Settings::size`](super::Settings::size) requests are in flight; the others wait
    /// their turn and hold no memory but their own arguments.
    pub fn submit(
        &self,
        ask: Ask,
        deadline: Option<Mono>,
        sink: Arc<dyn Sink>,
        tag: u64,
    ) -> Result<Id> {
        self.check(&ask)?;
        Ok(self.accept(ask, deadline, sink, tag, true))
    }

    /// As [`submit`](Self::submit), for callers who turn the loop right after it themselves: nobody
    /// is woken. If another thread turns it at that moment
    /// ([`Next::Elsewhere`](super::driver::Next)), [`wake`](Self::wake) has to follow.
    pub fn submit_quietly(
        &self,
        ask: Ask,
        deadline: Option<Mono>,
        sink: Arc<dyn Sink>,
        tag: u64,
    ) -> Result<Id> {
        self.check(&ask)?;
        Ok(self.accept(ask, deadline, sink, tag, false))
    }

    /// Makes whoever turns the loop look again.
    pub fn wake(&self) {
        self.shared().waker.wake();
    }

    /// As [`submit`](Self::submit), but gives the request back instead of letting more than
    /// [`Settings::size`](super::Settings::size) wait for admission.
    pub fn try_submit(
        &self,
        ask: Ask,
        deadline: Option<Mono>,
        sink: Arc<dyn Sink>,
        tag: u64,
    ) -> Result<Id, (Ask, Error)> {
        let shared = self.shared();
        if let Err(error) = self.check(&ask) {
            return Err((ask, error));
        }
        if shared.waiting.load(Ordering::Relaxed) >= shared.size as u64 {
            let full = Error::new(ErrorKind::Overloaded, "the I/O engine has enough to do");
            return Err((ask, full.with("size", shared.size as i128)));
        }
        Ok(self.accept(ask, deadline, sink, tag, true))
    }

    fn check(&self, ask: &Ask) -> Result<()> {
        let shared = self.shared();
        shared.origin.check()?;
        ask.check()?;
        if shared.state.load(Ordering::Relaxed) != OPEN {
            return Err(shared.refusal());
        }
        Ok(())
    }

    /// Past the door: whatever happens to the loop from here on, this is answered.
    pub(super) fn accept(
        &self,
        ask: Ask,
        deadline: Option<Mono>,
        sink: Arc<dyn Sink>,
        tag: u64,
        wake: bool,
    ) -> Id {
        let shared = self.shared();
        let id = Id(shared.next_id.fetch_add(1, Ordering::Relaxed));
        shared.waiting.fetch_add(1, Ordering::Relaxed);
        shared.pending.fetch_add(1, Ordering::Relaxed);
        shared.metrics.submitted.up();
        shared.queue.push(Message::Submit(Submission {
            id,
            ask,
            deadline,
            waiter: Waiter { sink, tag },
            at: shared.clock.now(),
        }));
        shared.look_after(wake);
        id
    }

    /// The waiter of `id` is not interested any more and will not be answered, unless an answer is
    /// on its way already. Reads, receives and stats are given up; everything that changes
    /// something goes on.
    pub fn forget(&self, id: Id) {
        let shared = self.shared();
        if !shared.origin.is_forked_child() {
            shared.publish(Message::Forget(id));
        }
    }

    /// Stops taking requests. What was accepted is served, for `budget` or as long as the settings
    /// say, whichever is shorter; a later call can shorten it. The listener hears of the end.
    pub fn close(&self, budget: Option<Duration>, listener: Option<(Arc<dyn Sink>, u64)>) {
        let shared = self.shared();
        if shared.origin.is_forked_child() {
            return;
        }
        if let Some((sink, tag)) = listener {
            let mut ends = lock(&shared.ends);
            match ends.left {
                None => ends.listeners.push((sink, tag)),
                Some(left) => {
                    drop(ends);
                    sink.closed(tag, left);
                }
            }
        }
        shared.begin_close(budget);
    }

    /// Whether submissions are refused.
    pub fn is_closed(&self) -> bool {
        self.shared().state.load(Ordering::Relaxed) != OPEN
    }

    /// Whether it turns no more, and everybody was answered.
    pub fn is_over(&self) -> bool {
        self.shared().state.load(Ordering::Relaxed) == OVER
    }

    /// Why the engine failed, if it did.
    pub fn poison(&self) -> Option<Error> {
        lock(&self.shared().poison).clone()
    }

    /// What was counted, as of now or of the loop's last turn. `pending` is of now: once it says
    /// that nothing is, the backend is done with all that was submitted before the call.
    pub fn statistics(&self) -> Statistics {
        let shared = self.shared();
        let pending = shared.pending.load(Ordering::Relaxed);
        shared.metrics.snapshot(pending, shared.clock.now())
    }

    /// Slow operations noted since the last call, oldest first; the newest hundred or so.
    pub fn slow_operations(&self) -> Vec<SlowOperation> {
        self.shared().metrics.take_events()
    }
}
