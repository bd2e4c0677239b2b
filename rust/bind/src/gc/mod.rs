//! The collector offered alone: pins, deferred calls, and where they run.

mod calls;
mod desk;
mod pin;

use std::{sync::Arc, time::Duration};

use millrace_core::{
    Error, Result,
    epoch::{Budget, Kind, Load, Overflow, Reason, Settings, Statistics},
    sync::Waker,
};
use pyo3::{
    PyTraverseError, PyVisit,
    exceptions::{PyTypeError, PyValueError},
    prelude::*,
    types::{PyDict, PyTuple},
};

use crate::{
    door, error,
    jobs::Answering,
    operation::{Operation, Source},
    queue::Sleeper,
};
use calls::{Call, Calls, Due, Hold, Quiet, Room, context, no_loop};

pub use pin::EpochPin;

/// The numbers of `millrace.GcSettings`.
#[derive(FromPyObject)]
struct Numbers {
    max_items: usize,
    max_bytes: usize,
    min_batch: usize,
    max_batch: usize,
    max_batch_time_us: u64,
    advance_interval_ms: u64,
    overflow: String,
    stall_after_s: f64,
}

impl Numbers {
    fn settings(&self) -> Result<Settings> {
        Ok(Settings {
            max_items: self.max_items,
            max_bytes: self.max_bytes,
            min_batch: self.min_batch,
            max_batch: self.max_batch,
            max_batch_time: Duration::from_micros(self.max_batch_time_us),
            advance_interval: Duration::from_millis(self.advance_interval_ms),
            overflow: match self.overflow.as_str() {
                "inline" => Overflow::Inline,
                "wait" => Overflow::Wait,
                "refuse" => Overflow::Refuse,
                other => return Err(Error::invalid(format!("no overflow policy {other:?}"))),
            },
            stall_after: Duration::try_from_secs_f64(self.stall_after_s).unwrap_or(Duration::MAX),
            assist: true,
        })
    }
}

/// The collector behind `millrace.EpochGC`.
#[pyclass(frozen, subclass, module = "millrace._core")]
pub struct EpochGC {
    calls: Arc<Calls>,
}

#[pymethods]
impl EpochGC {
    #[new]
    fn new(py: Python<'_>, settings: &Bound<'_, PyAny>) -> PyResult<Self> {
        let numbers: Numbers = settings.extract()?;
        let calls = numbers.settings().and_then(Calls::new);
        let calls = calls.map_err(|failed| error::raise(py, &failed))?;
        Ok(Self { calls })
    }

    /// Make a pin: a context manager, sync or async, that may be entered again while it is held.
    ///
    /// While it is entered, nothing that is deferred after that runs. It may be held across
    /// awaits and left on another thread.
    #[pyo3(signature = (label = None))]
    fn pin(&self, py: Python<'_>, label: Option<String>) -> PyResult<EpochPin> {
        Ok(EpochPin::new(self.here(py)?, label))
    }

    /// Call `fn(*args)` once nobody is pinned who was pinned when this was called.
    ///
    /// It runs in the context of this call: in the event loop that runs now, or, if none does,
    /// at the next `collect`, `quiesce` or `close`. What it raises is logged and counted.
    /// *cost_bytes* is what it holds until then; it counts towards `max_bytes`.
    ///
    /// Raises:
    ///     OverloadedError: If there is no room and the overflow policy found no way. Nothing
    ///         was deferred; `defer_async` waits instead.
    ///
    ///     TooLargeError: If *cost_bytes* alone is more than `max_bytes`, and it is not safe
    ///         now.
    ///
    ///     ClosedError: If the collector is closed.
    #[pyo3(signature = (fn_, /, *args, cost_bytes = 0))]
    fn defer(
        &self,
        py: Python<'_>,
        fn_: &Bound<'_, PyAny>,
        args: &Bound<'_, PyTuple>,
        cost_bytes: i128,
    ) -> PyResult<()> {
        let calls = self.here(py)?;
        if !fn_.is_callable() {
            let kind = fn_.get_type().name()?;
            return Err(PyTypeError::new_err(format!(
                "defer() needs a callable, not {kind}"
            )));
        }
        let bytes = usize::try_from(cost_bytes).map_err(|_| {
            PyValueError::new_err(format!("cost_bytes must be 0 or more, not {cost_bytes}"))
        })?;
        let desk = calls.desk(py)?;
        let mut parts = vec![fn_.clone()];
        parts.extend(args.iter());
        let call = Call {
            parts: PyTuple::new(py, parts)?.unbind(),
            context: context(py)?,
            desk: desk.clone(),
        };
        let number = calls.enter(call);
        // What a call that ran meanwhile passes on, after this one was deferred or given back.
        let mut passed_on = Ok(());
        let taken = self.take_in(py, number, bytes, desk.is_some(), &mut passed_on);
        if taken.is_err() {
            // Dropped here, with no lock held. `None`: it ran, and raised.
            let given_back = calls.withdraw(number);
            if given_back.is_some() {
                calls.collector.note_refused();
            }
        }
        if let Some(desk) = desk {
            calls.expect_on(&desk);
        }
        taken.and(passed_on)
    }

    /// Wait until everything that was deferred before this call has run.
    ///
    /// A pin that is held meanwhile holds this up too; do not await it inside one.
    ///
    /// Cancelling stops the waiting and nothing else.
    fn quiesce(&self, py: Python<'_>) -> PyResult<Operation> {
        let calls = self.here(py)?;
        let Some(desk) = calls.desk(py)? else {
            return Err(no_loop("quiesce()"));
        };
        calls.expect_on(&desk);
        desk.ask();
        Ok(Operation::quiet(
            "quiesce",
            Source::Job(Arc::new(Quiet::new(calls))),
        ))
    }

    /// Wait until there may be room for a call of *cost_bytes*, or there will never be.
    fn wait_room(&self, py: Python<'_>, cost_bytes: usize) -> PyResult<Operation> {
        let room: Arc<dyn Answering> = Arc::new(Room {
            calls: Hold::new(self.here(py)?),
            bytes: cost_bytes,
        });
        Ok(Operation::quiet("wait_room", Source::Job(room)))
    }

    /// Run what is safe within a budget; return how many calls ran.
    ///
    /// At most *max_items* calls and *max_micros* microseconds. Runs calls that belong to no
    /// loop, or to the loop of this thread. Those of other loops are handed to them. The call
    /// that runs when the time is up is finished.
    fn collect(&self, py: Python<'_>, max_items: usize, max_micros: u64) -> PyResult<usize> {
        let calls = self.here(py)?;
        let budget = Budget {
            items: max_items,
            time: Duration::from_micros(max_micros),
        };
        calls.route_within(budget);
        let desk = calls.desk(py)?;
        let ran = calls.run(py, desk.as_deref(), budget);
        calls.collector.look_for_stalls(calls.now());
        calls.report_stalls(py)?;
        ran
    }

    /// Take no more calls; run what is safe. From then on `defer` runs what is safe at once.
    ///
    /// Returns how many calls are left: held back by a pin, or handed to another loop. They run
    /// when they can.
    fn disable(&self, py: Python<'_>) -> PyResult<usize> {
        self.shut(py, |calls| calls.collector.disable().load)
    }

    /// Take calls again after `disable`.
    fn enable(&self, py: Python<'_>) -> PyResult<()> {
        self.here(py)?.collector.enable();
        Ok(())
    }

    /// Take no more calls, for good; run what is safe.
    ///
    /// Returns how many calls are left: held back by a pin, or handed to another loop. They run
    /// when they can.
    fn close(&self, py: Python<'_>) -> PyResult<usize> {
        self.shut(py, |calls| calls.collector.close().load)
    }

    /// Whether calls are refused for good.
    #[getter]
    fn is_closed(&self) -> bool {
        self.calls.collector.is_closed()
    }

    /// Whether there may be room later: the policy says wait, and it is open.
    #[getter]
    fn _can_wait(&self) -> bool {
        let collector = &self.calls.collector;
        collector.is_open() && collector.settings().overflow != Overflow::Refuse
    }

    /// Whether calls wait here, in this process, and nobody closed it.
    #[getter]
    fn _is_orphaned(&self) -> bool {
        let collector = &self.calls.collector;
        let is_ours = !self.calls.origin.is_forked_child();
        is_ours && !collector.is_closed() && collector.load().items > 0
    }

    fn __len__(&self) -> usize {
        self.calls.collector.load().items
    }

    /// Return the fields of `GcStatistics`.
    fn statistics_report<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let calls = self.here(py)?;
        report(py, &calls.collector.statistics(calls.now()))
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> std::result::Result<(), PyTraverseError> {
        // Held by pins or waiters as well, the calls are not ours alone to declare garbage.
        if self.calls.is_held() {
            return Ok(());
        }
        self.calls.visit(&visit)
    }

    fn __clear__(&self) {
        self.calls.forget_all();
    }
}

impl EpochGC {
    fn here(&self, py: Python<'_>) -> PyResult<&Arc<Calls>> {
        match self.calls.origin.check() {
            Ok(()) => Ok(&self.calls),
            Err(failed) => Err(error::raise(py, &failed)),
        }
    }

    fn shut(&self, py: Python<'_>, how: impl Fn(&Calls) -> Load + Send + Sync) -> PyResult<usize> {
        let calls = self.here(py)?;
        door::detached(py, || how(calls));
        calls.adopt();
        let desk = calls.desk(py)?;
        let outcome = calls.run_out(py, desk.as_deref());
        calls.keep_handed_out();
        calls.collector.look_for_stalls(calls.now());
        calls.report_stalls(py)?;
        outcome.map(|()| calls.collector.load().items)
    }

    /// Hands the number to the collector, as the overflow policy says.
    fn take_in(
        &self,
        py: Python<'_>,
        number: u64,
        bytes: usize,
        on_loop: bool,
        passed_on: &mut PyResult<()>,
    ) -> PyResult<()> {
        let calls = &self.calls;
        let Err(mut reason) = self.offer(number, bytes) else {
            return Ok(());
        };
        let depth = calls.depth_here();
        if reason == Reason::Full && depth == 0 {
            *passed_on = self.help(py);
            match self.offer(number, bytes) {
                Ok(()) => return Ok(()),
                Err(again) => reason = again,
            }
        }
        let policy = calls.collector.settings().overflow;
        let is_full = matches!(reason, Reason::Full | Reason::TooLarge);
        let may_run = reason == Reason::Disabled || (is_full && policy == Overflow::Inline);
        if may_run && depth < DEPTH_MAX && calls.collector.is_clear() {
            return self.run_inline(py, number);
        }
        let may_wait = policy != Overflow::Refuse && !on_loop && !calls.is_in_its_own_way();
        if reason == Reason::Full && may_wait && passed_on.is_ok() {
            return self.wait_in(py, number, bytes);
        }
        Err(error::raise(py, &reason.into()))
    }

    /// Runs a batch of what is safe, to make room.
    fn help(&self, py: Python<'_>) -> PyResult<()> {
        let calls = &self.calls;
        let settings = calls.collector.settings();
        let budget = Budget {
            items: settings.max_batch,
            time: settings.max_batch_time,
        };
        calls.route_within(budget);
        let desk = calls.desk(py)?;
        calls.run(py, desk.as_deref(), budget)?;
        Ok(())
    }

    fn offer(&self, number: u64, bytes: usize) -> std::result::Result<(), Reason> {
        let calls = Arc::downgrade(&self.calls);
        let permit = self.calls.collector.reserve(bytes)?;
        permit.push(Due { number, calls });
        Ok(())
    }

    fn run_inline(&self, py: Python<'_>, number: u64) -> PyResult<()> {
        let Some(call) = self.calls.withdraw(number) else {
            return Ok(());
        };
        let (outcome, passed_on) = self.calls.perform(py, &call);
        self.calls.collector.note_inline(Kind::Call, outcome);
        passed_on
    }

    /// On a plain thread: waits for room, so that other threads go on and Ctrl-C is heard.
    fn wait_in(&self, py: Python<'_>, number: u64, bytes: usize) -> PyResult<()> {
        loop {
            let sleeper = Arc::new(Sleeper::default());
            let waker: Waker = Arc::<Sleeper>::clone(&sleeper);
            self.calls.collector.wait_room(waker);
            // Pins may have gone, and what is loose is ours to run.
            self.help(py)?;
            self.calls.collector.look_for_stalls(self.calls.now());
            self.calls.report_stalls(py)?;
            match self.offer(number, bytes) {
                Ok(()) => return Ok(()),
                Err(Reason::Full) => {}
                Err(other) => return Err(error::raise(py, &other.into())),
            }
            door::wait_detached(py, Some(WAIT_SLICE), |slice| {
                sleeper.sleep(slice);
                None::<()>
            })?;
        }
    }
}

/// How deep calls may run inside of one another because there is no room for them.
const DEPTH_MAX: usize = 16;

/// How long a waiting thread sleeps before it looks for what only it can run.
const WAIT_SLICE: Duration = Duration::from_millis(20);

/// The fields of `GcStatistics`.
pub fn report<'py>(py: Python<'py>, seen: &Statistics) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("enqueued", seen.enqueued)?;
    dict.set_item("processed", seen.processed)?;
    dict.set_item("failed", seen.failed)?;
    dict.set_item("refused", seen.refused)?;
    dict.set_item("ran_inline", seen.ran_inline)?;
    dict.set_item("batches", seen.batches)?;
    dict.set_item("batch_items_max", seen.batch_items_max)?;
    dict.set_item("batch_time_s", seen.batch_time.as_secs_f64())?;
    dict.set_item("batch_time_max_s", seen.batch_time_max.as_secs_f64())?;
    dict.set_item("items", seen.queue.items)?;
    dict.set_item("items_peak", seen.peak.items)?;
    dict.set_item("bytes", seen.queue.bytes)?;
    dict.set_item("bytes_peak", seen.peak.bytes)?;
    dict.set_item("is_near_capacity", seen.is_near_capacity)?;
    dict.set_item("epoch", seen.epoch)?;
    dict.set_item("safe_epoch", seen.safe_epoch)?;
    dict.set_item("pins", seen.pins)?;
    let oldest = seen.oldest_pin.as_ref();
    dict.set_item("oldest_pin_age_s", oldest.map(|pin| pin.age.as_secs_f64()))?;
    dict.set_item(
        "oldest_pin_label",
        oldest.and_then(|pin| pin.label.as_deref()),
    )?;
    let failure = seen.last_failure.as_ref().map(Error::message);
    dict.set_item("last_failure", failure)?;
    let by_kind = PyDict::new(py);
    for (kind, done) in Kind::ALL.iter().zip(seen.done_by_kind) {
        by_kind.set_item(kind.name(), done)?;
    }
    dict.set_item("done_by_kind", by_kind)?;
    Ok(dict)
}
