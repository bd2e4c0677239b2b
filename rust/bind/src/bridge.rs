//! Long, rare operations as futures of a tokio runtime, by way of `pyo3-async-runtimes`.
//!
//! The work itself blocks, so it runs on one of the runtime's threads for such work; a task waits
//! for it and hands the answer to the event loop with `call_soon_threadsafe`. That takes the
//! interpreter lock for each operation, and more threads than a port needs: nothing where an
//! operation reads a whole log, far too much for an append.
//!
//! ```text
//! loop      call --> future .....................................> answered, or cancelled
//! task             spawn --> wait for the work --> attach, answer          |
//! thread                     work, plain Rust                 <-- withdrawn
//! ```
//!
//! # Always true
//!
//! 1. The runtime starts at the first call and never at import. Each process may start one;
//!    a child of a process that had started it is refused, for the threads are not there.
//! 2. When the future of a call is cancelled, or the runtime ends, its work is withdrawn.
//! 3. A call gives exactly one answer as long as the runtime lives, also when the work or the
//!    making of the answer panics.
//! 4. After [`end`] nothing starts, and nothing attaches but an answer that was just being
//!    given when the bound ran out. It waits detached, so that such an answer needs no bound.
//!
//! This is the one exception to the rule that only `door.rs` attaches: the bridge does, where it
//! gives an answer, on threads that hold no lock of ours.

use std::{
    future::Future,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::{
        Mutex, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use millrace_core::{Error, ErrorKind, Result, fork::Origin, io::Wanted, sync::lock};
use pyo3::{
    exceptions::PyRuntimeError,
    intern,
    prelude::*,
    types::{PyDict, PyTuple},
};
use pyo3_async_runtimes::{
    TaskLocals,
    generic::{self, ContextExt},
};
use tokio::{
    runtime::{Builder, Handle, Runtime},
    task::{JoinError, JoinHandle},
};

use crate::{
    door, error,
    jobs::{self, Answer},
};

static BRIDGE: OnceLock<Bridge> = OnceLock::new();
static ENDED: AtomicBool = AtomicBool::new(false);

struct Bridge {
    origin: Origin,
    /// None once it has ended. Locked only by attached threads, and never while one detaches, so
    /// that a fork, which an attached thread makes, finds it free.
    runtime: Mutex<Option<Runtime>>,
}

impl Bridge {
    fn start() -> Result<Self> {
        // One thread is enough: tasks only wait.
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("millrace-bridge")
            .build()
            .map_err(|refused| Error::from_io(&refused, "starting the bridge's threads"))?;
        Ok(Self {
            origin: Origin::here()?,
            runtime: Mutex::new(Some(runtime)),
        })
    }
}

/// The runtime's handle; starts it if this is the first call.
fn handle() -> Result<Handle> {
    // Relaxed: the flag carries nothing but itself.
    if ENDED.load(Ordering::Relaxed) {
        return Err(ended());
    }
    let bridge = if let Some(bridge) = BRIDGE.get() {
        bridge
    } else {
        let fresh = Bridge::start()?;
        BRIDGE.get_or_init(|| fresh)
    };
    if bridge.origin.is_forked_child() {
        return Err(Error::new(
            ErrorKind::Forked,
            "this process was forked from one that had checked or repaired a log, without the \
             threads that do it; do it there, or in a process that was started afresh",
        )
        .with("pid", std::process::id()));
    }
    let runtime = lock(&bridge.runtime);
    runtime
        .as_ref()
        .map(|runtime| runtime.handle().clone())
        .ok_or_else(ended)
}

fn ended() -> Error {
    Error::new(ErrorKind::Closed, "the interpreter is ending")
}

/// Starts `work` beside the running loop; the result is a future of that loop. Cancelling it
/// withdraws `wanted`.
pub fn start(
    py: Python<'_>,
    wanted: Wanted,
    work: impl FnOnce() -> Answer + Send + 'static,
) -> PyResult<Bound<'_, PyAny>> {
    let handle = handle().map_err(|failed| error::raise(py, &failed))?;
    let event_loop = pyo3_async_runtimes::get_running_loop(py)?.unbind();
    let locals = TaskLocals::new(Bound::new(py, Gentle(event_loop))?.into_any());
    let _inside = handle.enter();
    let waiting = async move {
        let _withdrawn = WithdrawnOnDrop(wanted);
        let answer = Handle::current().spawn_blocking(|| jobs::guarded(work));
        let answer = answer.await;
        Ok(Shown(answer.unwrap_or_else(|_| {
            Box::new(|py| Err(error::raise(py, &ended())))
        })))
    };
    generic::future_into_py_with_locals::<Tokio, _, _>(py, locals, waiting)
}

/// Withdraws what runs, waits for it at most so long, and starts nothing any more.
pub fn end(py: Python<'_>, timeout: Duration) {
    ENDED.store(true, Ordering::Relaxed);
    // What a forked child inherited has no threads here that could be waited for.
    let mine = BRIDGE
        .get()
        .filter(|bridge| !bridge.origin.is_forked_child());
    if let Some(runtime) = mine.and_then(|bridge| lock(&bridge.runtime).take()) {
        // Detached, so that an answer that is just being given gets its turn.
        door::detached(py, || runtime.shutdown_timeout(timeout));
    }
}

struct WithdrawnOnDrop(Wanted);

impl Drop for WithdrawnOnDrop {
    fn drop(&mut self) {
        self.0.withdraw();
    }
}

/// An answer that becomes a Python value where the bridge is attached.
struct Shown(Answer);

impl<'py> IntoPyObject<'py> for Shown {
    type Target = PyAny;
    type Output = Bound<'py, PyAny>;
    type Error = PyErr;

    fn into_pyobject(self, py: Python<'py>) -> PyResult<Self::Output> {
        // A panic here would end the thread that answers, and nobody would be answered.
        let made = catch_unwind(AssertUnwindSafe(|| (self.0)(py)));
        let made = made.unwrap_or_else(|_| Err(error::panicked("an answer")));
        made.map(|value| value.into_bound(py))
    }
}

/// What the bridge sees of an event loop. An answer for a loop that is closed is nobody's, and
/// nothing to complain about.
#[pyclass(frozen, module = "millrace._core")]
struct Gentle(Py<PyAny>);

#[pymethods]
impl Gentle {
    fn create_future<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.0.bind(py).call_method0(intern!(py, "create_future"))
    }

    #[pyo3(signature = (*arguments, **keywords))]
    fn call_soon_threadsafe(
        &self,
        py: Python<'_>,
        arguments: &Bound<'_, PyTuple>,
        keywords: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<()> {
        let (event_loop, name) = (self.0.bind(py), intern!(py, "call_soon_threadsafe"));
        match event_loop.call_method(name, arguments, keywords) {
            Err(refused) if refused.is_instance_of::<PyRuntimeError>(py) => {
                let is_closed = event_loop.call_method0(intern!(py, "is_closed"))?;
                if is_closed.is_truthy()? {
                    Ok(())
                } else {
                    Err(refused)
                }
            }
            called => called.map(|_| ()),
        }
    }
}

/// The runtime as the bridge wants it: whichever one the thread is in, so that no static is
/// looked at from its threads.
struct Tokio;

impl generic::Runtime for Tokio {
    type JoinError = JoinError;
    type JoinHandle = JoinHandle<()>;

    fn spawn<F>(future: F) -> Self::JoinHandle
    where
        F: Future<Output = ()> + Send + 'static,
    {
        Handle::current().spawn(future)
    }

    fn spawn_blocking<F>(work: F) -> Self::JoinHandle
    where
        F: FnOnce() + Send + 'static,
    {
        Handle::current().spawn_blocking(work)
    }
}

impl ContextExt for Tokio {
    /// Nothing of ours awaits Python, so no task has to know its loop.
    fn scope<F, R>(_: TaskLocals, future: F) -> Pin<Box<dyn Future<Output = R> + Send>>
    where
        F: Future<Output = R> + Send + 'static,
    {
        Box::pin(future)
    }

    fn get_task_locals() -> Option<TaskLocals> {
        None
    }
}
