//! The ring offered alone: any number of producers, one consumer, one answer per entry.

mod answer;

use std::{
    sync::{Arc, Mutex, TryLockError},
    time::Duration,
};

use millrace_core::{
    Error,
    fork::Origin,
    ring::{
        self, Admission, AdmissionState, Backpressure, Claim, Consumer, Entries, Limits, Producer,
        Refusal, Refused, Rest,
    },
    sync::{Wake, Waker, lock},
};
use pyo3::{
    exceptions::PyRuntimeError,
    prelude::*,
    sync::PyOnceLock,
    types::{PyDict, PyList},
};

use crate::{
    buffer, door, error,
    jobs::{Answer, Answering},
    operation::{Operation, Source},
    queue::Sleeper,
    ticket,
};

pub use answer::{Entry, RingTicket};
use answer::{Item, Slip, Verdict};

/// The numbers of `millrace.Backpressure`.
#[derive(FromPyObject)]
struct Patience {
    initial_spins: u32,
    max_spins: u32,
    base_sleep_us: u64,
    max_sleep_us: u64,
}

/// The ring behind `millrace.Ring`.
#[pyclass(frozen, subclass, module = "millrace._core")]
pub struct Ring {
    core: Arc<Core>,
}

struct Core {
    producer: Producer<Item>,
    consumer: Mutex<Consumer<Item>>,
    backpressure: Backpressure,
    bells: Arc<Bells>,
    origin: Origin,
}

/// Everybody who waits for an entry.
#[derive(Default)]
struct Bells(Mutex<Vec<Waker>>);

impl Wake for Bells {
    fn wake(&self) {
        let waiting = std::mem::take(&mut *lock(&self.0));
        for one in waiting {
            one.wake();
        }
    }
}

#[pymethods]
impl Ring {
    #[new]
    #[pyo3(signature = (capacity, capacity_bytes, entry_bytes_max, backpressure))]
    fn new(
        py: Python<'_>,
        capacity: usize,
        capacity_bytes: usize,
        entry_bytes_max: usize,
        backpressure: &Bound<'_, PyAny>,
    ) -> PyResult<Self> {
        let limits = Limits {
            capacity,
            capacity_bytes,
            entry_bytes_max,
            bytes_outlive_slots: false,
        };
        let core = Core::new(limits, &backpressure.extract()?);
        let core = core.map_err(|failed| error::raise(py, &failed))?;
        Ok(Self {
            core: Arc::new(core),
        })
    }

    /// Append *data* without waiting.
    ///
    /// Raises:
    ///     OverloadedError: If the ring is full, or others stand in line. Nothing was appended.
    ///
    ///     TooLargeError: If waiting would not help.
    ///
    ///     ClosedError: If the ring is closed.
    fn try_append(&self, py: Python<'_>, data: &Bound<'_, PyAny>) -> PyResult<RingTicket> {
        let core = self.here(py)?;
        let (item, ticket) = core.item(data)?;
        match core.producer.try_append(item) {
            Ok(position) => Ok(ticket.at(position)),
            Err(refused) => Err(error::raise(py, &refusal(&refused))),
        }
    }

    /// Append *data*, waiting in line while the ring is full; the result is the ticket.
    ///
    /// The line is first come, first served, for all loops and threads together.
    ///
    /// Cancelling takes the entry back if it still stands in line; it is then never seen by the
    /// consumer.
    fn append(&self, py: Python<'_>, data: &Bound<'_, PyAny>) -> PyResult<Operation> {
        let core = self.here(py)?;
        let (item, ticket) = core.item(data)?;
        let relay = Arc::new(Relay::default());
        let wake: Waker = Arc::<Relay>::clone(&relay);
        let claim = core.producer.append_or_queue(Entries::One(item), wake);
        let source = match claim.map_err(|refused| error::raise(py, &refusal(&refused)))? {
            Claim::Now(position) => Source::Known(Py::new(py, ticket.at(position))?.into_any()),
            Claim::Later(admission) => Source::Job(Arc::new(InLine {
                admission,
                relay,
                ticket,
            })),
        };
        Ok(Operation::new("append", source))
    }

    /// Append *data* from a plain thread, waiting while the ring is full.
    ///
    /// First spins, as the ring's `Backpressure` says, then waits in line. Other threads go on.
    ///
    /// Raises:
    ///     IoTimeout: If there was no room for *timeout_s*. Nothing was appended.
    #[pyo3(signature = (data, timeout_s = None))]
    fn append_blocking(
        &self,
        py: Python<'_>,
        data: &Bound<'_, PyAny>,
        timeout_s: Option<ticket::Seconds>,
    ) -> PyResult<RingTicket> {
        let timeout = ticket::timeout(timeout_s)?;
        let core = self.here(py)?;
        let (item, ticket) = core.item(data)?;
        let position = core.enter_blocking(py, item, timeout)?;
        Ok(ticket.at(position))
    }

    /// Take what is there, at most *max* entries, in the order of their positions.
    ///
    /// Never waits. Each entry wants an answer: `complete` or `fail`.
    ///
    /// Raises:
    ///     RuntimeError: If another drain is under way; a ring has one consumer.
    #[pyo3(signature = (max = None))]
    fn drain<'py>(&self, py: Python<'py>, max: Option<usize>) -> PyResult<Bound<'py, PyList>> {
        let items = self.here(py)?.drain(max.unwrap_or(usize::MAX))?;
        let entries = items
            .into_iter()
            .map(|(position, item)| Entry::new(py, position, item));
        PyList::new(py, entries.collect::<PyResult<Vec<_>>>()?)
    }

    /// Wait until there is something to drain; false once the ring is closed and empty.
    ///
    /// Cancelling stops the waiting and nothing else.
    fn wait(&self, py: Python<'_>) -> PyResult<Operation> {
        let core = Arc::clone(self.here(py)?);
        Ok(Operation::quiet(
            "wait",
            Source::Job(Arc::new(Arrival(core))),
        ))
    }

    /// Refuse every later append, also those in line. What is inside stays to be drained.
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        self.here(py)?.producer.close();
        Ok(())
    }

    /// Whether appends are refused for good.
    #[getter]
    fn is_closed(&self) -> bool {
        self.core.producer.is_closed()
    }

    /// How many entries fit; the requested capacity rounded up to a power of two.
    #[getter]
    fn capacity(&self) -> usize {
        self.core.producer.limits().capacity
    }

    fn __len__(&self) -> usize {
        self.core.producer.len()
    }

    /// Return the fields of `RingStatistics`.
    #[pyo3(name = "_statistics_report")]
    fn statistics_report<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let seen = self.core.producer.statistics();
        let dict = PyDict::new(py);
        dict.set_item("appended", seen.appended)?;
        dict.set_item("drained", seen.drained)?;
        dict.set_item("entries", seen.len)?;
        dict.set_item("waiting", seen.waiting)?;
        dict.set_item("refused_full", seen.refused_full)?;
        dict.set_item("refused_closed", seen.refused_closed)?;
        dict.set_item("refused_too_large", seen.refused_too_large)?;
        dict.set_item("refused_timed_out", seen.refused_timed_out)?;
        dict.set_item("queued", seen.queued)?;
        dict.set_item("cancelled", seen.cancelled)?;
        dict.set_item("wakes", seen.wakes)?;
        dict.set_item("dropped", seen.completions_dropped)?;
        dict.set_item("late", seen.outcomes_late)?;
        Ok(dict)
    }
}

impl Ring {
    fn here(&self, py: Python<'_>) -> PyResult<&Arc<Core>> {
        match self.core.origin.check() {
            Ok(()) => Ok(&self.core),
            Err(failed) => Err(error::raise(py, &failed)),
        }
    }
}

impl Core {
    fn new(limits: Limits, patience: &Patience) -> millrace_core::Result<Self> {
        let backpressure = Backpressure {
            initial_spins: patience.initial_spins,
            max_spins: patience.max_spins,
            base_sleep_us: patience.base_sleep_us,
            max_sleep_us: patience.max_sleep_us,
        };
        let (producer, consumer) = ring::ring(limits)?;
        let bells = Arc::<Bells>::default();
        let wake: Waker = Arc::<Bells>::clone(&bells);
        consumer.set_wake(Some(wake));
        Ok(Self {
            producer,
            consumer: Mutex::new(consumer),
            backpressure: backpressure.checked()?,
            bells,
            origin: Origin::here()?,
        })
    }

    fn item(&self, data: &Bound<'_, PyAny>) -> PyResult<(Item, Slip)> {
        let py = data.py();
        let data = buffer::payload(data, |length| {
            let checked = self.producer.check(length);
            checked.map_err(|reason| error::raise(py, &reason.into()))
        })?;
        let (completion, answer) = self.producer.completion();
        let verdict = Verdict::new(PyOnceLock::new());
        let slip = Slip {
            answer,
            verdict: Arc::clone(&verdict),
        };
        Ok((
            Item {
                data,
                completion,
                verdict,
            },
            slip,
        ))
    }

    fn drain(&self, max: usize) -> PyResult<Vec<(u64, Item)>> {
        let mut consumer = match self.consumer.try_lock() {
            Ok(consumer) => consumer,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => {
                return Err(PyRuntimeError::new_err("another drain is under way"));
            }
        };
        let mut position = consumer.position();
        let mut items = Vec::new();
        consumer.drain(max, |item| {
            items.push((position, item));
            position += 1;
        });
        consumer.release();
        Ok(items)
    }

    /// Spins for a moment, then stands in line and keeps its place until there is room.
    fn enter_blocking(
        &self,
        py: Python<'_>,
        item: Item,
        timeout: Option<Duration>,
    ) -> PyResult<u64> {
        const SPINNING: Duration = Duration::from_millis(1);
        let spinning = timeout.map_or(SPINNING, |timeout| timeout.min(SPINNING));
        let deadline = std::time::Instant::now() + spinning;
        let entered = door::detached(py, || {
            let entries = Entries::One(item);
            self.producer
                .append_blocking(entries, Some(deadline), &self.backpressure)
        });
        let entries = match entered {
            Ok(position) => return Ok(position),
            Err(Refused {
                value,
                reason: Refusal::TimedOut,
            }) => value,
            Err(refused) => return Err(error::raise(py, &refusal(&refused))),
        };
        let sleeper = Arc::new(Sleeper::default());
        let wake: Waker = Arc::<Sleeper>::clone(&sleeper);
        let claim = self.producer.append_or_queue(entries, wake);
        match claim.map_err(|refused| error::raise(py, &refusal(&refused)))? {
            Claim::Now(position) => Ok(position),
            Claim::Later(admission) => {
                let left = timeout.map(|timeout| timeout.saturating_sub(spinning));
                sleep_in_line(py, &sleeper, &admission, left)
            }
        }
    }
}

fn sleep_in_line(
    py: Python<'_>,
    sleeper: &Sleeper,
    admission: &Admission<Item>,
    timeout: Option<Duration>,
) -> PyResult<u64> {
    let waited = door::wait_detached(py, timeout, |slice| {
        sleeper.sleep(slice);
        (admission.state() != AdmissionState::Waiting).then_some(())
    });
    if !matches!(waited, Ok(Some(()))) {
        admission.cancel();
    }
    let outcome = match admission.state() {
        AdmissionState::Admitted(position) => return Ok(position),
        AdmissionState::Closed => Refusal::Closed,
        AdmissionState::Waiting | AdmissionState::Cancelled => Refusal::TimedOut,
    };
    waited?;
    Err(error::raise(py, &outcome.into()))
}

fn refusal<V>(refused: &Refused<V>) -> Error {
    refused.reason.into()
}

/// An append that stands in line; the answer is its ticket.
struct InLine {
    admission: Arc<Admission<Item>>,
    relay: Arc<Relay>,
    ticket: Slip,
}

impl Answering for InLine {
    fn answer(&self) -> Option<Answer> {
        let ticket = self.ticket.clone();
        match self.admission.state() {
            AdmissionState::Waiting => None,
            AdmissionState::Admitted(position) => Some(Box::new(move |py| {
                Ok(Py::new(py, ticket.at(position))?.into_any())
            })),
            AdmissionState::Closed | AdmissionState::Cancelled => Some(Box::new(|py| {
                Err(error::raise(py, &Refusal::Closed.into()))
            })),
        }
    }

    fn subscribe(&self, waker: Waker) -> bool {
        self.relay.pass_on(waker);
        self.admission.state() == AdmissionState::Waiting
    }

    fn can_withdraw(&self) -> bool {
        true
    }

    fn withdraw(&self) {
        self.admission.cancel();
    }
}

/// Passes a wake on to somebody who is known only later.
#[derive(Default)]
struct Relay(Mutex<Option<Waker>>);

impl Relay {
    fn pass_on(&self, waker: Waker) {
        *lock(&self.0) = Some(waker);
    }
}

impl Wake for Relay {
    fn wake(&self) {
        let waker = lock(&self.0).take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

/// Somebody waits for something to drain.
struct Arrival(Arc<Core>);

impl Answering for Arrival {
    fn answer(&self) -> Option<Answer> {
        let consumer = lock(&self.0.consumer);
        let there = match (consumer.is_published(1), consumer.is_finished()) {
            (true, _) => true,
            (false, true) => false,
            (false, false) => return None,
        };
        Some(Box::new(move |py| {
            Ok(there.into_pyobject(py)?.to_owned().into_any().unbind())
        }))
    }

    fn subscribe(&self, waker: Waker) -> bool {
        lock(&self.0.bells.0).push(waker);
        // A nap (claimed, not published yet) is looked at again by the loop's next turn.
        lock(&self.0.consumer).announce() == Rest::Sleep
    }
}
