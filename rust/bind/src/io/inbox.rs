//! One request between the engine and whoever waits for it.
//!
//! ```text
//! engine's thread                      loop's thread
//! row --strong--> Inbox <--strong-- Waiting --strong--> Shared --strong--> engine
//! ```
//!
//! # Always true
//!
//! 1. An [`Inbox`] holds plain data, so the engine's threads may drop the last reference to it.
//!    What belongs to Python, and the engine itself, is held by [`Waiting`], on the loop's side.
//! 2. An inbox is filled at most once and emptied at most once.
//! 3. What comes to a receive that nobody waits for goes to the stash of its socket, whoever finds
//!    out: [`Inbox::disown`], what fills it after that, or the core.
//! 4. A request counts as under way from its submission until it was answered or given up.

use std::sync::{
    Arc, Mutex, Weak,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

use millrace_core::{
    Result,
    io::{self, Leftovers},
    ioloop::{Answered, Id, Reply, Sink, Whereabouts},
    planted,
    sync::{Waker, lock},
};

use pyo3::{PyTraverseError, PyVisit, prelude::*, types::PyBytes};

use super::{
    guest,
    outcome::{Place, Wanted},
    report,
    shared::Shared,
};
use crate::{
    error,
    jobs::{Answer, Answering},
    loops::LoopPort,
};

/// What the engine says.
pub enum News {
    /// The answer to a request.
    Answer(Result<Reply>),
    /// The engine has ended.
    Ended(Leftovers),
}

enum State {
    Empty(Option<Waker>),
    Full(News),
    Taken,
    /// A receive that nobody waits for: bytes go to the stash of its socket.
    Unwanted(Id, io::File),
}

/// Puts back what a receive brought for nobody.
fn put_back(id: Id, socket: &io::File, news: &News) {
    if let (Some(stash), News::Answer(Ok(Reply::Bytes { buffer, length }))) = (socket.stash(), news)
    {
        // Too late if another receive was begun: those were asked for together, and each has what
        // came in its turn.
        if !planted!("bind_answers_are_lost") {
            let _ = stash.put_back_answer(id.0, &buffer[..*length]);
        }
    }
}

/// Where the engine puts an answer.
pub struct Inbox {
    state: Mutex<State>,
    /// How many requests are under way, this one included until `counted` is taken back.
    under_way: Arc<AtomicUsize>,
    counted: AtomicBool,
    was_slow: AtomicBool,
    /// Where it takes place, for errors and for the engine's reports.
    place: Place,
}

impl Inbox {
    /// An empty one, counted as under way.
    pub fn new(under_way: &Arc<AtomicUsize>, place: Place) -> Arc<Self> {
        under_way.fetch_add(1, Ordering::Relaxed);
        Arc::new(Self {
            state: Mutex::new(State::Empty(None)),
            under_way: Arc::clone(under_way),
            counted: AtomicBool::new(true),
            was_slow: AtomicBool::new(false),
            place,
        })
    }

    /// One with the answer in it.
    pub fn full(under_way: &Arc<AtomicUsize>, place: Place, answer: Result<Reply>) -> Arc<Self> {
        let inbox = Self::new(under_way, place);
        inbox.fill(News::Answer(answer));
        inbox
    }

    /// Where it takes place.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// Not under way any more.
    pub fn discount(&self) {
        if self.counted.swap(false, Ordering::Relaxed) {
            self.under_way.fetch_sub(1, Ordering::Relaxed);
        }
    }

    fn fill(&self, news: News) {
        self.discount();
        let mut state = lock(&self.state);
        if let State::Unwanted(id, socket) = &*state {
            put_back(*id, socket, &news);
            *state = State::Taken;
            return;
        }
        let before = std::mem::replace(&mut *state, State::Full(news));
        drop(state);
        if let State::Empty(Some(waker)) = before {
            waker.wake();
        }
    }

    /// Nobody waits any more for what a receive brings; who was to be woken.
    fn disown(&self, id: Id, socket: &io::File) -> Option<Waker> {
        let mut state = lock(&self.state);
        match std::mem::replace(&mut *state, State::Taken) {
            State::Full(news) => {
                put_back(id, socket, &news);
                None
            }
            State::Empty(waker) => {
                *state = State::Unwanted(id, socket.clone());
                waker
            }
            State::Unwanted(..) | State::Taken => None,
        }
    }

    /// Has whoever subscribed look, though there is nothing in it.
    fn rouse(&self) {
        let waker = match &mut *lock(&self.state) {
            State::Empty(waker) => waker.take(),
            State::Full(_) | State::Taken | State::Unwanted(..) => None,
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    fn take(&self) -> Option<News> {
        let mut state = lock(&self.state);
        match std::mem::replace(&mut *state, State::Taken) {
            State::Full(news) => Some(news),
            other => {
                *state = other;
                None
            }
        }
    }

    fn subscribe(&self, waker: Waker) -> bool {
        match &mut *lock(&self.state) {
            State::Empty(subscriber) => *subscriber = Some(waker),
            State::Unwanted(..) => {}
            State::Full(_) | State::Taken => return false,
        }
        true
    }
}

impl Sink for Inbox {
    fn answer(&self, answered: Answered) {
        self.fill(News::Answer(answered.result));
    }

    fn closed(&self, _tag: u64, left: Leftovers) {
        self.fill(News::Ended(left));
    }

    fn slow(&self, _tag: u64) {
        self.was_slow.store(true, Ordering::Relaxed);
        self.rouse();
    }

    fn whereabouts(&self, _tag: u64) -> Whereabouts {
        self.place.whereabouts()
    }
}

/// The loop's side of a request.
pub struct Waiting {
    /// What was called.
    call: &'static str,
    engine: Arc<Shared>,
    inbox: Arc<Inbox>,
    /// The request, if it can be given up: it changes nothing.
    idle: Option<Id>,
    /// What shall become of the answer; gone once it was handed out.
    wanted: Mutex<Option<Wanted>>,
    /// Of a receive: where what nobody takes goes back to.
    socket: Option<io::File>,
    /// The loop that turns a guest engine for this, if it was asked for on one.
    turner: Weak<LoopPort>,
}

impl Waiting {
    pub fn new(
        call: &'static str,
        engine: Arc<Shared>,
        inbox: Arc<Inbox>,
        idle: Option<Id>,
        wanted: Wanted,
    ) -> Self {
        let socket = match &wanted {
            Wanted::Received(socket) => Some(socket.clone()),
            _ => None,
        };
        Self {
            call,
            engine,
            inbox,
            idle,
            socket,
            wanted: Mutex::new(Some(wanted)),
            turner: Weak::new(),
        }
    }

    /// The loop that will turn a guest engine for this.
    pub fn turned_by(&mut self, turner: Weak<LoopPort>) {
        self.turner = turner;
    }

    fn disown(&self) -> Option<Waker> {
        let (id, socket) = (self.idle?, self.socket.as_ref()?);
        self.inbox.disown(id, socket)
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let was_waiting = lock(&self.wanted).is_some();
        let receives = self.socket.is_some() && was_waiting;
        if receives
            && let Some(id) = self.idle
            && !self.engine.origin.is_forked_child()
        {
            self.inbox.discount();
            self.disown();
            // It would stand before the next one on its socket. Whoever turns the engine gives it
            // up before that: nothing is turned in the middle of a deallocation.
            self.engine.handle().forget(id);
        }
    }
}

impl Answering for Waiting {
    fn answer(&self) -> Option<Answer> {
        if let Err(forked) = self.engine.origin.check() {
            // Whoever would answer is in the parent, and may have held what is locked here.
            return Some(Box::new(move |py| Err(error::raise_io(py, &forked))));
        }
        let news = self.inbox.take()?;
        let wanted = lock(&self.wanted).take();
        let (engine, inbox) = (Arc::clone(&self.engine), Arc::clone(&self.inbox));
        let call = self.call;
        Some(Box::new(move |py| {
            if inbox.was_slow.load(Ordering::Relaxed) {
                report::log_slow(py, &engine);
            }
            match wanted {
                Some(wanted) => wanted.show(py, &engine, (call, &inbox.place), news),
                None => Err(error::panicked("an answer that nobody wants any more")),
            }
        }))
    }

    fn on_wake(&self, py: Python<'_>) {
        if self.inbox.was_slow.load(Ordering::Relaxed) {
            report::log_slow(py, &self.engine);
        }
    }

    fn on_wait(&self, py: Python<'_>) -> PyResult<()> {
        if self.engine.is_guest {
            guest::attend(py, &self.engine, &self.turner)?;
        }
        Ok(())
    }

    fn subscribe(&self, waker: Waker) -> bool {
        self.inbox.subscribe(waker)
    }

    fn can_withdraw(&self) -> bool {
        self.idle.is_some()
    }

    fn withdraw(&self) {
        if let Some(id) = self.idle
            && !self.engine.origin.is_forked_child()
        {
            // What it would have filled is free again.
            let wanted = lock(&self.wanted).take();
            drop(wanted);
            self.inbox.discount();
            let waker = self.disown();
            self.engine.forget(id);
            // The loop lets go of it.
            self.inbox.rouse();
            if let Some(waker) = waker {
                waker.wake();
            }
        }
    }

    fn traverse(&self, visit: &PyVisit<'_>) -> Result<(), PyTraverseError> {
        // It runs on a thread that may hold what is wanted; then nothing is garbage yet.
        match self.wanted.try_lock().as_deref() {
            Ok(Some(Wanted::Copied(into))) => visit.call(into),
            _ => Ok(()),
        }
    }

    fn takes_back(&self) -> bool {
        self.socket.is_some()
    }

    fn take_back(&self, value: &Bound<'_, PyAny>) {
        let stash = self.socket.as_ref().and_then(io::File::stash);
        if let (Some(id), Some(stash), Ok(bytes)) = (self.idle, stash, value.cast::<PyBytes>())
            && !self.engine.origin.is_forked_child()
        {
            // Too late if another receive was begun, as in `put_back`.
            let _ = stash.put_back_answer(id.0, bytes.as_bytes());
        }
    }
}
