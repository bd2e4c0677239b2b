//! One turn: take what came in, let deadlines pass, admit, let the backend work, hand out answers.

use std::{
    collections::{HashMap, VecDeque},
    os::fd::{BorrowedFd, RawFd},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use super::{
    Settings,
    end::abandoned,
    handle::{Handle, Message, Shared, Submission},
    request::{Ask, Id, Lane, Reply, reply},
    sink::Answered,
    table::{Expiry, Forgotten, Lanes, Row, Table, Waiter},
};
use crate::{
    clock::{Clock, Mono},
    error::{Error, ErrorKind, Result},
    fork::Origin,
    io::{Backend, Cancelled, Class, Finished, Request, Token, Wait},
    wheel::{Expired, TimeoutWheel},
};

/// What is left to do after a turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turned {
    /// Turn again.
    On,
    /// Nothing: everybody is answered and the backend is shut down.
    Over,
}

/// What a timer is about.
#[derive(Debug, Clone, Copy)]
pub(super) enum Due {
    /// The deadline of a request.
    Deadline(Token),
    /// One tick after a cancel: the waiter is answered, whatever the kernel does.
    Answer(Token),
    /// A storage operation may have become slow.
    Slow,
}

/// How far the end is.
pub(super) enum Phase {
    Open,
    /// Serves what it has; until then, if there is a budget.
    Draining(Option<Mono>),
    /// Everything is cancelled; waits for answers until then.
    Cancelling(Mono),
    Over,
}

/// See the module and [`super`].
pub struct IoLoop {
    /// `None` once it was shut down, or given up for good.
    pub(super) backend: Option<Box<dyn Backend>>,
    pub(super) shared: Arc<Shared>,
    pub(super) table: Table,
    pub(super) phase: Phase,
    pub(super) settings: Settings,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) lanes: Lanes,
    pub(super) wheel: TimeoutWheel<Due>,
    /// Where the requests are that somebody may lose interest in.
    tokens: HashMap<Id, Token>,
    /// Rows of the bulk lane in flight.
    bulk_in_flight: usize,
    /// Who went into flight last.
    last_lane: Lane,
    /// A timer for slow operations is armed.
    pub(super) watching: bool,
    pub(super) slow_now: u64,
    /// Storage operations in the order they went into flight; those that are over are skipped.
    pub(super) oldest: VecDeque<(Mono, Token)>,
    due: Vec<Due>,
    finished: Vec<Finished>,
}

impl IoLoop {
    /// A loop over a backend with nothing in flight, and the way to it.
    pub fn new(
        backend: Box<dyn Backend>,
        clock: Arc<dyn Clock>,
        settings: Settings,
    ) -> Result<(Self, Handle)> {
        let settings = settings.checked()?;
        let shared = Arc::new(Shared::new(
            Arc::clone(&clock),
            backend.waker(),
            Origin::here()?,
            settings.size,
        ));
        let handle = Handle::new(Arc::clone(&shared));
        let made = Self {
            wheel: TimeoutWheel::new(settings.tick, clock.now())?,
            backend: Some(backend),
            shared,
            table: Table::default(),
            phase: Phase::Open,
            settings,
            clock,
            lanes: Lanes::default(),
            tokens: HashMap::new(),
            bulk_in_flight: 0,
            last_lane: Lane::Bulk,
            watching: false,
            slow_now: 0,
            oldest: VecDeque::new(),
            due: Vec::new(),
            finished: Vec::new(),
        };
        Ok((made, handle))
    }

    /// Does what there is to do, then waits as told, or until a deadline. A defect or a backend
    /// that failed poisons the engine: everybody is answered, and nothing that the kernel may
    /// touch is freed.
    pub fn turn(&mut self, wait: Wait) -> Turned {
        if matches!(self.phase, Phase::Over) || self.shared.origin.is_forked_child() {
            return Turned::Over;
        }
        match catch_unwind(AssertUnwindSafe(|| self.step(wait))) {
            Ok(Ok(turned)) => turned,
            Ok(Err(cause)) => self.fail(cause),
            Err(_) => self.fail(Error::new(
                ErrorKind::Poisoned,
                "a defect of ours: the I/O loop panicked",
            )),
        }
    }

    /// See [`Backend::notify`]; returns what is to be watched beside the bell.
    pub(super) fn notify(&mut self, bell: BorrowedFd<'_>) -> Result<Vec<RawFd>> {
        let Some(backend) = self.backend.as_mut() else {
            return Ok(Vec::new());
        };
        backend.notify(Some(bell))?;
        Ok(backend.watched())
    }

    /// When a turn is due at the latest.
    pub(super) fn next_deadline(&self) -> Option<Mono> {
        if self.can_admit() {
            return Some(self.now());
        }
        let mine = match self.shortened(Wait::Forever) {
            Wait::Until(until) => Some(until),
            Wait::Never => return Some(self.now()),
            Wait::Forever => None,
        };
        let backend = self.backend.as_deref().and_then(Backend::due);
        [mine, backend].into_iter().flatten().min()
    }

    /// See [`Backend::prepare`].
    pub(super) fn prepare(&mut self) -> Result<()> {
        self.backend.as_mut().map_or(Ok(()), |one| one.prepare())
    }

    #[cfg(test)]
    pub(super) fn lanes_kept(&self) -> usize {
        self.lanes.len()
    }

    pub(super) fn now(&self) -> Mono {
        self.clock.now()
    }

    fn step(&mut self, wait: Wait) -> Result<Turned> {
        self.take_messages();
        self.pass_deadlines();
        self.follow_phase();
        if matches!(self.phase, Phase::Over) {
            return Ok(Turned::Over);
        }
        self.admit();
        let wait = self.shortened(wait);
        if wait != Wait::Never {
            // Others look while we sleep.
            self.tell();
        }
        if let Some(backend) = self.backend.as_mut() {
            backend.poll(&mut self.finished, wait)?;
        }
        self.hand_out();
        self.tell();
        // What was in flight may have been all there was.
        if self.table.is_empty() && !matches!(self.phase, Phase::Open) {
            self.take_messages();
            self.follow_phase();
        }
        Ok(match self.phase {
            Phase::Over => Turned::Over,
            _ => Turned::On,
        })
    }

    fn take_messages(&mut self) {
        // What is pushed from now on wakes the poll, which is where it will be taken after.
        for _ in 0..self.shared.queue.len() {
            let Some(message) = self.shared.queue.pop() else {
                break;
            };
            match message {
                Message::Submit(submission) => self.arrive(submission),
                Message::Forget(id) => self.forget(id),
                Message::Close(budget) => self.drain_within(budget),
            }
        }
    }

    fn arrive(&mut self, submission: Submission) {
        let Submission {
            id,
            ask,
            deadline,
            waiter,
            at,
        } = submission;
        let traits = ask.traits();
        if deadline.is_some() {
            // The wheel may have stood still while it was empty.
            self.advance_wheel();
        }
        let key = self
            .table
            .insert(Row::waiting(id, traits, ask, Some(waiter), at));
        if let Some(deadline) = deadline
            && !self.arm(key, deadline)
            && !planted!("ioloop_submits_the_past")
        {
            self.on_deadline(key);
            return;
        }
        self.tokens.insert(id, key);
        self.lanes.push(traits.lane, key);
    }

    /// Arms the deadline of a row; false if it lies in the past.
    fn arm(&mut self, key: Token, deadline: Mono) -> bool {
        match self.wheel.schedule(deadline, Due::Deadline(key)) {
            Ok(timer) => {
                if let Some(row) = self.table.get(key) {
                    row.timer = Some(timer);
                }
                true
            }
            Err(Expired(_)) => false,
        }
    }

    fn forget(&mut self, id: Id) {
        let Some(key) = self.tokens.get(&id).copied() else {
            return;
        };
        match self.table.forget(key) {
            Forgotten::Left(row) => {
                self.shared.metrics.orphaned.up();
                self.shared.metrics.cancelled_before.up();
                self.depart(&row);
            }
            Forgotten::Cancel => {
                self.shared.metrics.orphaned.up();
                self.disown(key);
                self.cancel(key);
            }
            Forgotten::GoesOn => self.shared.metrics.orphaned.up(),
            Forgotten::Nothing => {}
        }
    }

    /// What every row leaves behind that never went into flight.
    pub(super) fn depart(&mut self, row: &Row) {
        self.tokens.remove(&row.id);
        self.shared.waiting.fetch_sub(1, Ordering::Relaxed);
        self.shared.pending.fetch_sub(1, Ordering::Relaxed);
        if let Some(timer) = row.timer {
            self.wheel.cancel(timer);
        }
    }

    fn advance_wheel(&mut self) {
        let now = self.clock.now();
        self.wheel.advance(now, &mut self.due);
    }

    /// Reads no clock while no deadline is live.
    fn pass_deadlines(&mut self) {
        if !self.wheel.is_empty() {
            self.advance_wheel();
        }
        let mut due = std::mem::take(&mut self.due);
        for one in due.drain(..) {
            match one {
                Due::Deadline(key) => self.on_deadline(key),
                Due::Answer(key) => self.on_patience_spent(key),
                Due::Slow => self.look_for_slow(),
            }
        }
        self.due = due;
    }

    fn on_deadline(&mut self, key: Token) {
        match self.table.expire(key) {
            Expiry::Left(mut row) => {
                self.shared.metrics.cancelled_before.up();
                self.depart(&row);
                self.answer(row.id, row.waiter.take(), Err(timeout(false)));
            }
            Expiry::Cancel => {
                self.cancel(key);
                let tick = if planted!("ioloop_answers_at_the_cancel") {
                    Duration::ZERO
                } else {
                    self.settings.tick
                };
                let patience = self.clock.now().after(tick);
                let told = self.wheel.schedule(patience, Due::Answer(key));
                match told {
                    Ok(timer) => {
                        if let Some(row) = self.table.get(key) {
                            row.timer = Some(timer);
                        }
                    }
                    Err(Expired(_)) => self.on_patience_spent(key),
                }
            }
            Expiry::Nothing => {}
        }
    }

    /// The kernel took its time over a cancel. The waiter is answered; the row stays.
    fn on_patience_spent(&mut self, key: Token) {
        if let Some(row) = self.table.get(key) {
            row.timer = None;
            let (id, waiter, changes) = (row.id, row.leave(), row.traits.changes);
            if planted!("ioloop_frees_at_the_timeout") {
                self.table.finish(key);
            }
            self.disown(key);
            self.answer(id, waiter, Err(timeout(changes)));
        }
    }

    /// Nobody waits for it any more, and it goes on.
    fn disown(&mut self, key: Token) {
        if let Some(backend) = self.backend.as_mut()
            && backend.disown(key)
            && let Some(row) = self.table.get(key)
        {
            row.stash = None;
        }
    }

    pub(super) fn cancel(&mut self, key: Token) {
        let Some(backend) = self.backend.as_mut() else {
            return;
        };
        if backend.cancel(key) == Cancelled::Taken {
            self.shared.metrics.cancelled_before.up();
        }
    }

    /// Admits what waits as far as there is room.
    fn admit(&mut self) {
        if self.table.waiting() == 0 {
            self.lanes.clear();
            return;
        }
        let now = self.clock.now();
        while let Some(lane) = self.next_lane() {
            let Some(key) = self.lanes.pop(lane) else {
                break;
            };
            if !self.launch(key, lane, now) {
                return;
            }
        }
        let table = &mut self.table;
        self.lanes.sweep(table.waiting(), |key| {
            let waits = |row: &mut Row| row.in_flight_since().is_none();
            table.get(key).is_some_and(waits)
        });
    }

    /// The lane whose first request has the next place. Bulk always leaves some to those who wait
    /// for durability; these leave as many to bulk, while some of it waits.
    fn next_lane(&self) -> Option<Lane> {
        let in_flight = self.table.in_flight();
        if in_flight >= self.settings.size {
            return None;
        }
        let most = self.settings.size - self.settings.reserved();
        let (urgent, bulk) = (self.lanes.has_urgent(), self.lanes.has_bulk());
        let bulk_fits = bulk && self.bulk_in_flight < most;
        let turns = if self.settings.size == 1 {
            self.last_lane == Lane::Urgent
        } else {
            in_flight - self.bulk_in_flight >= most
        };
        let yields = bulk_fits && turns && !planted!("ioloop_urgent_takes_all");
        if urgent && !yields {
            return Some(Lane::Urgent);
        }
        bulk_fits.then_some(Lane::Bulk)
    }

    /// Whether a turn would find room for something that waits: what has just ended made it.
    fn can_admit(&self) -> bool {
        self.table.waiting() > 0 && self.next_lane().is_some() && !self.is_backend_full()
    }

    /// Hands one waiting request to the backend; false if it takes no more now.
    fn launch(&mut self, key: Token, lane: Lane, now: Mono) -> bool {
        if self.is_backend_full() {
            self.lanes.push_front(lane, key);
            return false;
        }
        let Some(ask) = self.table.admit(key, now) else {
            return true;
        };
        if let (Ask::Recv { socket, .. }, Some(row)) = (&ask, self.table.get(key))
            && let Some(stash) = socket.stash()
        {
            stash.begin(row.id.0);
            row.stash = Some(Arc::clone(stash));
        }
        self.bulk_in_flight += usize::from(lane == Lane::Bulk);
        self.last_lane = lane;
        self.shared.waiting.fetch_sub(1, Ordering::Relaxed);
        if let Some(row) = self.table.get(key) {
            let waited = now.since(row.asked_at);
            self.shared.metrics.on_admitted(row.traits.kind, waited);
            if row.traits.kind.is_storage() {
                self.oldest.push_back((now, key));
                self.watch_for_slow(now);
            }
        }
        let request = ask.into_op().map(|op| Request {
            token: key,
            class: Class::Program,
            op,
        });
        let refused = match (request, self.backend.as_mut()) {
            (Ok(request), Some(backend)) => backend.submit(request).err().map(|_| full()),
            (Err(error), _) => Some(error),
            (Ok(_), None) => Some(self.shared.refusal()),
        };
        if let Some(error) = refused {
            self.finished.push(Finished {
                token: key,
                buffer: None,
                result: Err(error),
            });
        }
        true
    }

    /// A backend may be smaller than the table.
    fn is_backend_full(&self) -> bool {
        let room = |backend: &dyn Backend| backend.in_flight() < backend.capacity();
        !self.backend.as_deref().is_some_and(room)
    }

    /// A wait ends at the next deadline, and at the end of a phase.
    fn shortened(&self, wait: Wait) -> Wait {
        if !self.finished.is_empty() {
            return Wait::Never;
        }
        let phase = match self.phase {
            Phase::Draining(until) => until,
            Phase::Cancelling(until) => Some(until),
            Phase::Open | Phase::Over => None,
        };
        let limits = [phase, self.wheel.next_deadline()];
        let Some(limit) = limits.into_iter().flatten().min() else {
            return wait;
        };
        match wait {
            Wait::Never => Wait::Never,
            Wait::Until(until) => Wait::Until(until.min(limit)),
            Wait::Forever => Wait::Until(limit),
        }
    }

    fn hand_out(&mut self) {
        if self.finished.is_empty() {
            return;
        }
        let now = self.clock.now();
        let mut finished = std::mem::take(&mut self.finished);
        for one in finished.drain(..) {
            self.on_finished(one, now);
        }
        self.finished = finished;
    }

    pub(super) fn on_finished(&mut self, finished: Finished, now: Mono) {
        let Some(mut row) = self.table.finish(finished.token) else {
            // A backend answers what it was given; anything else is not about us.
            return;
        };
        // Before the answer: whoever hears of it finds it over.
        self.shared.pending.fetch_sub(1, Ordering::Relaxed);
        self.bulk_in_flight -= usize::from(row.traits.lane == Lane::Bulk);
        self.tokens.remove(&row.id);
        if let Some(timer) = row.timer.take() {
            self.wheel.cancel(timer);
        }
        let took = row
            .in_flight_since()
            .map_or(Duration::ZERO, |since| now.since(since));
        self.shared.metrics.on_answered(row.traits.kind, took);
        if row.is_slow() {
            self.slow_now -= 1;
            self.note_slow(&row, now, true);
        }
        let stash = row.stash.take();
        let result = self.settle(&row, finished);
        if let (Some(stash), None, Ok(Reply::Bytes { buffer, length })) =
            (stash, &row.waiter, &result)
            && !planted!("ioloop_orphans_are_lost")
        {
            // Too late if another receive was begun, which may have had what comes behind this.
            let _ = stash.put_back_answer(row.id.0, &buffer[..*length]);
        }
        self.answer(row.id, row.waiter.take(), result);
    }

    /// The backend's answer, seen with what we did to the request.
    fn settle(&self, row: &Row, finished: Finished) -> Result<Reply> {
        let metrics = &self.shared.metrics;
        metrics.completed.up();
        let result = reply(&row.traits, finished);
        let asked_to_stop = row.timed_out() || row.waiter.is_none();
        let stopped = result
            .as_ref()
            .is_err_and(|error| error.errno() == Some(libc::ECANCELED));
        if asked_to_stop && stopped {
            metrics.cancelled_stopped.up();
        } else if asked_to_stop {
            metrics.cancelled_late.up();
        }
        match result {
            Ok(_) if row.timed_out() && planted!("ioloop_cancel_beats_success") => {
                Err(timeout(row.traits.changes))
            }
            Err(error) if stopped && row.timed_out() => {
                let done = error.number("done").unwrap_or(0);
                Err(timeout(row.traits.changes).with("done", done))
            }
            Err(error) if self.is_cut_short(&error) => {
                let done = error.number("done").unwrap_or(0);
                let told = abandoned("the engine was shut down", row.traits.changes);
                Err(told.with("done", done))
            }
            Err(error) => {
                metrics.failed.up();
                Err(error)
            }
            done => done,
        }
    }

    pub(super) fn answer(&self, id: Id, waiter: Option<Waiter>, result: Result<Reply>) {
        let Some(Waiter { sink, tag }) = waiter else {
            return;
        };
        match &result {
            Err(error) if error.kind() == ErrorKind::Timeout => self.shared.metrics.timed_out.up(),
            Err(error) if error.kind() == ErrorKind::Abandoned => {
                self.shared.metrics.abandoned.up();
            }
            _ => {}
        }
        sink.answer(Answered { id, tag, result });
    }
}

/// `indeterminate`: it may have been done, or done in part.
fn timeout(indeterminate: bool) -> Error {
    Error::new(ErrorKind::Timeout, "the deadline passed").with(
        "indeterminate",
        i128::from(indeterminate && !planted!("ioloop_timeouts_are_certain")),
    )
}

fn full() -> Error {
    Error::new(ErrorKind::Overloaded, "the backend took no more requests")
}
