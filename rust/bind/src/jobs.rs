//! Slow operations, on a few worker threads of our own, and very slow ones, each on its own.
//!
//! A worker runs plain Rust: it never attaches to the interpreter and never owns a Python object.
//! What it leaves behind is an [`Answer`], which the event loop turns into a Python value in its
//! drain. Workers start when there is work and nobody idle, and then sleep without waking.
//!
//! # Always true
//!
//! 1. A job gives exactly one answer, also when it panics.
//! 2. An answer nobody takes is dropped as plain data, by whatever thread drops it last.
//! 3. A forked child starts its own pool; it never touches the parent's, whose locks may be held
//!    by threads that do not exist there.

use std::{
    collections::VecDeque,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicPtr, Ordering},
    },
    thread,
    time::Duration,
};

use millrace_core::{
    Error, Result,
    fork::Origin,
    sync::{Waker, lock},
};
use pyo3::{PyTraverseError, PyVisit, prelude::*};

use crate::error;

/// What a job leaves: plain data and how to show it to Python. Called on the loop's thread.
pub type Answer = Box<dyn FnOnce(Python<'_>) -> PyResult<Py<PyAny>> + Send>;

/// Something whose answer comes from elsewhere.
pub trait Answering: Send + Sync {
    /// The answer, if it is there. After a wake without an answer the waiter subscribes again.
    fn answer(&self) -> Option<Answer>;

    /// A loop begins to wait for the answer; called on its thread before it subscribes.
    fn on_wait(&self, _py: Python<'_>) -> PyResult<()> {
        Ok(())
    }

    /// Asks for one wake when the answer is there. False: it may be there already.
    fn subscribe(&self, waker: Waker) -> bool;

    /// Woken without an answer: there may be something to say meanwhile.
    fn on_wake(&self, _py: Python<'_>) {}

    /// Whether `withdraw` means anything now.
    fn can_withdraw(&self) -> bool {
        false
    }

    /// Nobody waits any more.
    fn withdraw(&self) {}

    /// For the collector: what of Python's is kept. Called by whoever owns it, and by one only.
    fn traverse(&self, _visit: &PyVisit<'_>) -> Result<(), PyTraverseError> {
        Ok(())
    }

    /// Whether `take_back` means anything.
    fn takes_back(&self) -> bool {
        false
    }

    /// The value of the answer has found nobody.
    fn take_back(&self, _value: &Bound<'_, PyAny>) {}
}

pub type Job = Box<dyn FnOnce() + Send>;

const WORKERS_MAX: usize = 4;

/// One job's answer, or who waits for it.
pub struct Pigeonhole {
    state: Mutex<State>,
    filled: Condvar,
}

enum State {
    Running(Option<Waker>),
    Filled(Answer),
    Taken,
}

impl Pigeonhole {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new(State::Running(None)),
            filled: Condvar::new(),
        })
    }

    /// The answer, if it is there and nobody has taken it.
    pub fn take(&self) -> Option<Answer> {
        let mut state = lock(&self.state);
        match std::mem::replace(&mut *state, State::Taken) {
            State::Filled(answer) => Some(answer),
            other => {
                *state = other;
                None
            }
        }
    }

    /// Waits on a plain thread. False: not filled in time.
    pub fn wait(&self, timeout: Duration) -> bool {
        let running = |state: &mut State| matches!(state, State::Running(_));
        let state = lock(&self.state);
        match self.filled.wait_timeout_while(state, timeout, running) {
            Ok((_, outcome)) => !outcome.timed_out(),
            Err(_) => true,
        }
    }

    fn fill(&self, answer: Answer) {
        let before = std::mem::replace(&mut *lock(&self.state), State::Filled(answer));
        self.filled.notify_all();
        if let State::Running(Some(waker)) = before {
            waker.wake();
        }
    }
}

impl Answering for Pigeonhole {
    fn answer(&self) -> Option<Answer> {
        self.take()
    }

    fn subscribe(&self, waker: Waker) -> bool {
        if let State::Running(subscriber) = &mut *lock(&self.state) {
            *subscriber = Some(waker);
            return true;
        }
        false
    }
}

/// Starts `work` on a worker. For what ends soon: everybody else's work waits behind it.
pub fn start(work: impl FnOnce() -> Answer + Send + 'static) -> Result<Arc<Pigeonhole>> {
    let (job, hole) = job(work);
    pool()?.run(job)?;
    Ok(hole)
}

/// Starts `work` on a thread of its own called `name`. For what may wait long, and not for the
/// disk: on the few workers it would keep reads waiting.
pub fn start_alone(
    name: &str,
    work: impl FnOnce() -> Answer + Send + 'static,
) -> Result<Arc<Pigeonhole>> {
    let (job, hole) = job(work);
    let spawned = thread::Builder::new().name(name.to_owned()).spawn(job);
    spawned.map_err(|refused| Error::from_io(&refused, "starting a thread"))?;
    Ok(hole)
}

/// `work` for whoever runs it, and where its answer will be.
pub fn job(work: impl FnOnce() -> Answer + Send + 'static) -> (Job, Arc<Pigeonhole>) {
    let hole = Pigeonhole::new();
    let mine = Arc::clone(&hole);
    let job = move || mine.fill(guarded(work));
    (Box::new(job), hole)
}

/// Does `work`; a panic is an answer, too.
pub fn guarded(work: impl FnOnce() -> Answer) -> Answer {
    catch_unwind(AssertUnwindSafe(work))
        .unwrap_or_else(|_| Box::new(|_| Err(error::panicked("a worker"))))
}

/// An answer that is an engine result.
pub fn answer<T: Send + 'static>(
    result: Result<T>,
    show: impl FnOnce(Python<'_>, T) -> PyResult<Py<PyAny>> + Send + 'static,
) -> Answer {
    Box::new(move |py| match result {
        Ok(value) => show(py, value),
        Err(failed) => Err(error::raise(py, &failed)),
    })
}

struct Pool {
    origin: Origin,
    queue: Mutex<Queue>,
    work: Condvar,
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    workers: usize,
    idle: usize,
}

static POOL: AtomicPtr<Pool> = AtomicPtr::new(std::ptr::null_mut());

/// This process's pool. One that was inherited through `fork` is left alone for ever.
fn pool() -> Result<&'static Pool> {
    loop {
        // Acquire: partner is the successful exchange below, which publishes the pool.
        let current = POOL.load(Ordering::Acquire);
        // SAFETY: null, or a pool that was leaked below and is never freed.
        if let Some(pool) = unsafe { current.as_ref() }
            && pool.origin.check().is_ok()
        {
            return Ok(pool);
        }
        let fresh = Box::into_raw(Box::new(Pool {
            origin: Origin::here()?,
            queue: Mutex::default(),
            work: Condvar::new(),
        }));
        // AcqRel: publishes the pool to the load above.
        let swapped = POOL.compare_exchange(current, fresh, Ordering::AcqRel, Ordering::Relaxed);
        if swapped.is_err() {
            // SAFETY: made above and shown to nobody, because the exchange failed.
            drop(unsafe { Box::from_raw(fresh) });
        }
    }
}

impl Pool {
    fn run(&'static self, job: Job) -> Result<()> {
        let mut queue = lock(&self.queue);
        queue.jobs.push_back(job);
        if queue.idle >= queue.jobs.len() || queue.workers >= WORKERS_MAX {
            self.work.notify_one();
            return Ok(());
        }
        let name = format!("millrace-work-{}", queue.workers);
        let spawned = thread::Builder::new()
            .name(name)
            .spawn(move || self.serve());
        match spawned {
            Ok(_) => queue.workers += 1,
            Err(refused) if queue.workers == 0 => {
                queue.jobs.pop_back();
                return Err(Error::from_io(&refused, "starting a worker thread"));
            }
            // Somebody else will come to it.
            Err(_) => {}
        }
        Ok(())
    }

    fn serve(&self) {
        let mut queue = lock(&self.queue);
        loop {
            if let Some(job) = queue.jobs.pop_front() {
                drop(queue);
                job();
                queue = lock(&self.queue);
                continue;
            }
            queue.idle += 1;
            queue = self
                .work
                .wait(queue)
                .unwrap_or_else(std::sync::PoisonError::into_inner);
            queue.idle -= 1;
        }
    }
}
