//! Which event loop runs on this thread, how it makes a future, and its port.
//!
//! Always true: loops are recognised by identity. The thread-local cache holds its loop, so that
//! the address cannot be reused while it is compared; it lets go when that loop closes or another
//! one runs on the thread.

use std::{cell::RefCell, sync::Arc};

use pyo3::{
    ffi, intern,
    prelude::*,
    sync::PyOnceLock,
    types::{PyDict, PyTuple},
};

use crate::loops::{self, LoopPort};

/// The loop that ran last on this thread.
struct Current {
    /// What `asyncio` stores in the thread's dictionary while this loop runs, if anything.
    witness: Option<Py<PyAny>>,
    event_loop: Py<PyAny>,
    maker: Maker,
    port: Arc<LoopPort>,
}

/// How this loop makes a future.
enum Maker {
    /// The loop takes asyncio's own `create_future`: make it directly.
    Direct {
        class: Py<PyAny>,
        keywords: Py<PyDict>,
    },
    /// The loop has its own.
    Method(Py<PyAny>),
}

thread_local! {
    static CURRENT: RefCell<Option<Arc<Current>>> = const { RefCell::new(None) };
}

/// A future of the running loop and the port that will resolve it.
pub struct Here<'py> {
    current: Arc<Current>,
    pub future: Bound<'py, PyAny>,
}

impl Here<'_> {
    pub fn port(&self) -> &Arc<LoopPort> {
        &self.current.port
    }
}

/// The loop that is running in this thread.
pub struct Running(Arc<Current>);

impl Running {
    pub fn port(&self) -> &Arc<LoopPort> {
        &self.0.port
    }

    pub fn event_loop(&self) -> &Py<PyAny> {
        &self.0.event_loop
    }
}

/// Makes a future on the loop that is running in this thread.
pub fn here(py: Python<'_>) -> PyResult<Here<'_>> {
    let current = match cached(py)? {
        Some(current) => current,
        None => look_up(py)?,
    };
    let future = current.maker.make(py)?;
    Ok(Here { current, future })
}

/// The port of the loop that is running in this thread, if one is.
pub fn port_here(py: Python<'_>) -> PyResult<Option<Arc<LoopPort>>> {
    Ok(running_loop(py)?.map(|running| Arc::clone(running.port())))
}

/// The loop that is running in this thread, if one is.
pub fn running_loop(py: Python<'_>) -> PyResult<Option<Running>> {
    if let Some(current) = cached(py)? {
        return Ok(Some(Running(current)));
    }
    if ask(py)?.is_none() {
        return Ok(None);
    }
    Ok(Some(Running(look_up(py)?)))
}

/// The cached loop, if it is certain that it is the one running now.
#[inline]
fn cached(py: Python<'_>) -> PyResult<Option<Arc<Current>>> {
    // Not borrowed while asyncio is asked.
    let Some(current) = CURRENT.with_borrow(Option::clone) else {
        return Ok(None);
    };
    let is_here =
        current.port.is_open() && runs(py, current.witness.as_ref(), &current.event_loop)?;
    Ok(is_here.then_some(current))
}

/// Whether this loop is the one running in this thread, as far as its witness can tell: with a
/// stale one, the answer is no.
///
/// # Errors
///
/// What asyncio raises.
#[inline]
pub fn runs(py: Python<'_>, witness: Option<&Py<PyAny>>, event_loop: &Py<PyAny>) -> PyResult<bool> {
    match witness {
        Some(witness) => Ok(std::ptr::eq(running(py), witness.as_ptr())),
        None => Ok(ask(py)?.is_some_and(|running| running.is(event_loop))),
    }
}

/// Asks asyncio which loop runs in this thread.
///
/// # Errors
///
/// What asyncio raises.
pub fn ask(py: Python<'_>) -> PyResult<Option<Bound<'_, PyAny>>> {
    static ASK: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let running = ASK.import(py, "asyncio", "_get_running_loop")?.call0()?;
    Ok((!running.is_none()).then_some(running))
}

/// What the thread's dictionary says about the running loop; null if it says nothing.
///
/// Up to 3.11 that is a holder made anew each time a loop starts to run, in 3.12 the loop itself,
/// later nothing. It is only compared by identity with what was there when `asyncio` was asked,
/// and saves asking (a system call up to 3.11).
#[inline]
fn running(py: Python<'_>) -> *mut ffi::PyObject {
    static KEY: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let key = KEY.get_or_init(py, || {
        intern!(py, "__asyncio_running_event_loop__")
            .clone()
            .into_any()
            .unbind()
    });
    // SAFETY: we are attached, as `py` proves. The dictionary is borrowed from the thread state;
    // it is null only when none could be made.
    unsafe {
        let dict = ffi::PyThreadState_GetDict();
        if dict.is_null() {
            return std::ptr::null_mut();
        }
        // Borrowed, compared, never used; a failed look-up of an interned string leaves no
        // exception behind with this function.
        ffi::PyDict_GetItem(dict, key.as_ptr())
    }
}

/// What tells that the loop running now is running, until it stops; none if nothing does.
pub fn witness(py: Python<'_>) -> Option<Py<PyAny>> {
    // SAFETY: null or a borrowed reference to a live object, which is made our own.
    let witness = unsafe { Bound::from_borrowed_ptr_or_opt(py, running(py)) };
    witness
        .filter(|witness| !witness.is_none())
        .map(Bound::unbind)
}

/// Asks asyncio which loop is running, and finds or makes its port.
#[cold]
fn look_up(py: Python<'_>) -> PyResult<Arc<Current>> {
    static ASK: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let event_loop = ASK.import(py, "asyncio", "get_running_loop")?.call0()?;
    let known = CURRENT.with_borrow(|current| {
        let current = current.as_ref()?;
        let is_same = current.event_loop.is(&event_loop);
        let is_open = current.port.is_open();
        (is_same && is_open).then(|| Arc::clone(&current.port))
    });
    let port = match known {
        Some(port) => port,
        None => loops::port_of(py, &event_loop)?,
    };
    let current = Arc::new(Current {
        witness: witness(py),
        maker: Maker::of(py, &event_loop)?,
        event_loop: event_loop.unbind(),
        port,
    });
    let before = CURRENT.replace(Some(Arc::clone(&current)));
    drop(before);
    Ok(current)
}

impl Maker {
    fn of(py: Python<'_>, event_loop: &Bound<'_, PyAny>) -> PyResult<Self> {
        let name = intern!(py, "create_future");
        let base = py
            .import("asyncio")?
            .getattr("BaseEventLoop")?
            .getattr(name)?;
        let method = event_loop.getattr(name)?;
        let function = method.getattr(intern!(py, "__func__")).ok();
        if !function.is_some_and(|function| function.is(&base)) {
            return Ok(Self::Method(method.unbind()));
        }
        let keywords = PyDict::new(py);
        keywords.set_item(intern!(py, "loop"), event_loop)?;
        let class = py.import("asyncio")?.getattr("Future")?.unbind();
        let keywords = keywords.unbind();
        Ok(Self::Direct { class, keywords })
    }

    #[inline]
    fn make<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        match self {
            Self::Direct { class, keywords } => class
                .bind(py)
                .call(PyTuple::empty(py), Some(keywords.bind(py))),
            Self::Method(method) => method.bind(py).call0(),
        }
    }
}

/// Lets go of the loop of `port` if it was the one that ran on this thread.
pub fn let_go(port: &Arc<LoopPort>) {
    let gone = CURRENT.try_with(|current| {
        let mut current = current.try_borrow_mut().ok()?;
        current.take_if(|current| Arc::ptr_eq(&current.port, port))
    });
    drop(gone);
}
