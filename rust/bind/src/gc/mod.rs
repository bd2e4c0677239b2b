//! The collector offered alone: pins, deferred calls, and where they run.

mod call;
mod calls;
mod desk;
mod inside;
mod pin;
mod wait;

use std::{sync::Arc, time::Duration};

use millrace_core::{
    Error, Result,
    epoch::{Budget, Kind, Load, Overflow, Reason, Settings, Statistics},
    planted,
    sync::Waker,
};
use pyo3::{
    PyTraverseError, PyVisit,
    exceptions::{PyOverflowError, PyTypeError, PyValueError},
    intern,
    prelude::*,
    types::{PyDict, PyTuple},
};

use crate::{
    door, error,
    operation::{Operation, Source},
    queue::Sleeper,
};
use call::{Call, context, logger, perform, unharmed};
use calls::{Calls, Due, Ran};
use desk::Desk;
use inside::Inside;
use wait::{Quiet, Room, no_loop, waits_for_itself};

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
    fn pin(slf: &Bound<'_, Self>, label: Option<String>) -> PyResult<EpochPin> {
        slf.get().here(slf.py())?;
        Ok(EpochPin::new(slf, label))
    }

    /// Call `fn(*args)` once nobody is pinned who was pinned when this was called.
    ///
    /// It runs in the context of this call: in the event loop that runs now, or, if none does,
    /// at the next `collect` or `close`, or in a loop that uses this collector. What it raises is
    /// logged and counted; `KeyboardInterrupt` and `SystemExit` go on to whoever ran it.
    /// *cost_bytes* is what it holds until then; it counts towards `max_bytes`.
    ///
    /// When there is no room it runs one batch of what is safe, then does what the overflow
    /// policy says. It never waits for itself: inside a call of this collector, and on a thread
    /// that has entered one of its pins, it raises instead of waiting.
    ///
    /// Raises:
    ///     OverloadedError: If there is no room and the overflow policy found no way. Nothing
    ///         was deferred; `defer_async` waits instead.
    ///
    ///     TooLargeError: If *cost_bytes* alone is more than `max_bytes`, and it cannot run now:
    ///         somebody is pinned, or the overflow policy is not `inline`.
    ///
    ///     ClosedError: If the collector is closed.
    #[pyo3(
        signature = (fn_, /, *args, cost_bytes = Cost(0)),
        text_signature = "($self, fn_, /, *args, cost_bytes=0)"
    )]
    fn defer(
        &self,
        py: Python<'_>,
        fn_: &Bound<'_, PyAny>,
        args: &Bound<'_, PyTuple>,
        cost_bytes: Cost,
    ) -> PyResult<()> {
        self.put(py, fn_, args, cost_bytes, false).map(|_| ())
    }

    /// Do what `defer` does; false, and nothing is counted, if room may come.
    fn _try_defer(
        &self,
        py: Python<'_>,
        fn_: &Bound<'_, PyAny>,
        args: &Bound<'_, PyTuple>,
        cost_bytes: Cost,
    ) -> PyResult<bool> {
        self.put(py, fn_, args, cost_bytes, true)
    }

    /// Wait until everything that was deferred before this call has run.
    ///
    /// A pin that is held meanwhile holds this up too; do not await it inside one.
    ///
    /// Cancelling stops the waiting and nothing else.
    fn quiesce(&self, py: Python<'_>) -> PyResult<Operation> {
        let calls = self.here(py)?;
        let Some(interest) = calls.interest(py)? else {
            return Err(no_loop("quiesce()"));
        };
        let quiet = Quiet::new(calls, interest);
        Ok(Operation::quiet("quiesce", Source::Job(Arc::new(quiet))))
    }

    /// Wait until there may be room for a call of *cost_bytes*, or there will never be.
    fn wait_room(&self, py: Python<'_>, cost_bytes: Cost) -> PyResult<Operation> {
        let calls = self.here(py)?;
        let room = Room::new(calls, cost_bytes.0, calls.interest(py)?);
        Ok(Operation::quiet("wait_room", Source::Job(Arc::new(room))))
    }

    /// Run what is safe within a budget; return how many calls ran.
    ///
    /// At most *max_items* calls and *max_micros* microseconds. Runs calls that belong to no
    /// loop, or to the loop of this thread. Those of other loops are handed to them. The call
    /// that runs when the time is up is finished. Inside a call nothing runs: the run under way
    /// goes on when that has ended.
    fn collect(&self, py: Python<'_>, max_items: usize, max_micros: u64) -> PyResult<usize> {
        let calls = self.here(py)?;
        let budget = Budget {
            items: max_items,
            time: Duration::from_micros(max_micros),
        };
        let desk = calls.desk(py)?;
        let ran = calls.collect(py, desk.as_deref(), budget);
        calls.report_stalls(py)?;
        ran.result()
    }

    /// Take no more calls; run what is safe. From then on `defer` runs what is safe at once.
    ///
    /// Returns how many calls are left: held back by a pin, or handed to another loop. They run
    /// there, or when the last pin is left.
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
    /// there, or when the last pin is left.
    fn close(&self, py: Python<'_>) -> PyResult<usize> {
        self.shut(py, |calls| calls.collector.close().load)
    }

    /// Whether calls are refused for good.
    #[getter]
    fn is_closed(&self) -> bool {
        self.calls.collector.is_closed()
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
        // Held by desks or waiters as well, the calls are not ours alone to declare garbage. All
        // of those come and go on attached threads, so each pass sees the same.
        if Arc::strong_count(&self.calls) > 1 && !planted!("gc_traverse_what_others_hold") {
            return Ok(());
        }
        self.calls.visit(&visit)
    }

    fn __clear__(&self) {
        let lost = self.calls.forget_all();
        if lost == 0 || self.calls.origin.is_forked_child() {
            return;
        }
        door::attached(|py| {
            unharmed(py, || {
                let text = "%d deferred calls were garbage together with a pin that was never \
                            left; they did not run";
                let told =
                    logger(py).and_then(|it| it.call_method1(intern!(py, "warning"), (text, lost)));
                if let Err(raised) = told {
                    raised.write_unraisable(py, None);
                }
            });
        });
    }
}

impl EpochGC {
    fn here(&self, py: Python<'_>) -> PyResult<&Arc<Calls>> {
        match self.calls.origin.check() {
            Ok(()) => Ok(&self.calls),
            Err(failed) => Err(error::raise(py, &failed)),
        }
    }

    fn calls(&self) -> &Arc<Calls> {
        &self.calls
    }

    /// Attached all along, like everything that routes; see `calls`.
    fn shut(&self, py: Python<'_>, how: impl Fn(&Calls) -> Load) -> PyResult<usize> {
        let calls = self.here(py)?;
        how(calls);
        calls.adopt();
        let desk = calls.desk(py)?;
        let ran = calls.run_all(py, desk.as_deref());
        calls.report_stalls(py)?;
        ran.result()?;
        Ok(calls.collector.load().items)
    }

    /// Defers `fn(*args)`. False: there is no room, and who is patient may wait for it.
    fn put(
        &self,
        py: Python<'_>,
        function: &Bound<'_, PyAny>,
        args: &Bound<'_, PyTuple>,
        cost: Cost,
        is_patient: bool,
    ) -> PyResult<bool> {
        let calls = self.here(py)?;
        if !function.is_callable() {
            let kind = function.get_type().name()?;
            return Err(PyTypeError::new_err(format!(
                "defer() needs a callable, not {kind}"
            )));
        }
        let desk = calls.desk(py)?;
        let mut parts = vec![function.clone()];
        parts.extend(args.iter());
        let call = Call {
            parts: PyTuple::new(py, parts)?.unbind(),
            context: context(py)?,
        };
        let mut offer = Offer {
            number: calls.enter(call, desk.clone()),
            bytes: cost.0,
            desk,
            struck: None,
        };
        let taken = self.take_in(py, &mut offer);
        let taken = self.settle(py, &offer, taken, is_patient);
        calls.arm(offer.desk.as_ref());
        // Whatever became of the call: Ctrl-C out of another one, which made room, goes on.
        offer.struck.map_or(taken, Err)
    }

    /// What became of an offer, as its caller sees it.
    fn settle(
        &self,
        py: Python<'_>,
        offer: &Offer,
        taken: std::result::Result<(), Refusal>,
        is_patient: bool,
    ) -> PyResult<bool> {
        let Err(refusal) = taken else {
            return Ok(true);
        };
        // Dropped here, with no lock held. `None`: it ran, and raised.
        let given_back = self.calls.withdraw(offer.number);
        let collector = &self.calls.collector;
        let may_wait = collector.settings().overflow != Overflow::Refuse;
        let is_full = matches!(refusal, Refusal::For(Reason::Full));
        if is_patient && is_full && may_wait {
            return Ok(false);
        }
        if given_back.is_some() {
            collector.note_refused();
        }
        Err(match refusal {
            Refusal::For(reason) => error::raise(py, &reason.into()),
            Refusal::Raised(raised) => raised,
        })
    }

    /// Hands the number to the collector, as the overflow policy says.
    fn take_in(&self, py: Python<'_>, offer: &mut Offer) -> std::result::Result<(), Refusal> {
        let calls = &self.calls;
        let Err(mut reason) = self.offer(offer) else {
            return Ok(());
        };
        let depth = inside::depth(calls);
        if reason == Reason::Full && depth == 0 {
            let Err(again) = self.help(py, offer)? else {
                return Ok(());
            };
            reason = again;
        }
        let policy = calls.collector.settings().overflow;
        let mut sleeper = None;
        loop {
            let is_full = matches!(reason, Reason::Full | Reason::TooLarge);
            let may_run = reason == Reason::Disabled || (is_full && policy == Overflow::Inline);
            if may_run && depth < DEPTH_MAX && calls.collector.is_clear() {
                return Ok(self.run_inline(py, offer.number)?);
            }
            if reason != Reason::Full || policy == Overflow::Refuse || offer.desk.is_some() {
                return Err(Refusal::For(reason));
            }
            if depth > 0 {
                let why = "a call that is being run cannot wait for room";
                return Err(waits_for_itself(py, why).into());
            }
            if calls.is_pinner() {
                let why = "this thread has entered a pin, so it would wait for itself";
                return Err(waits_for_itself(py, why).into());
            }
            let Err(again) = self.wait_in(py, offer, &mut sleeper)? else {
                return Ok(());
            };
            reason = again;
        }
    }

    /// Runs a batch of what is safe, to make room, and tries again.
    fn help(&self, py: Python<'_>, offer: &mut Offer) -> PyResult<std::result::Result<(), Reason>> {
        let settings = self.calls.collector.settings();
        let budget = Budget {
            items: settings.max_batch,
            time: settings.max_batch_time,
        };
        let ran: Ran = self.calls.collect(py, offer.desk.as_deref(), budget);
        offer.struck = offer.struck.take().or(ran.raised);
        self.calls.report_stalls(py)?;
        Ok(self.offer(offer))
    }

    fn offer(&self, offer: &Offer) -> std::result::Result<(), Reason> {
        let permit = self.calls.collector.reserve(offer.bytes)?;
        permit.push(Due {
            number: offer.number,
            desk: offer.desk.clone(),
            calls: Arc::downgrade(&self.calls),
        });
        Ok(())
    }

    fn run_inline(&self, py: Python<'_>, number: u64) -> PyResult<()> {
        let Some(call) = self.calls.withdraw(number) else {
            return Ok(());
        };
        let inside = Inside::enter(&self.calls);
        let (outcome, passed_on) = perform(py, &call);
        let must_finish = inside.must_finish();
        drop(inside);
        self.calls.collector.note_inline(Kind::Call, outcome);
        if must_finish {
            passed_on.and(self.calls.after_unpin(py))
        } else {
            passed_on
        }
    }

    /// On a plain thread: waits for room, so that other threads go on and Ctrl-C is heard. Comes
    /// back after a while in any case: pins may have gone, and what is loose is ours to run.
    fn wait_in(
        &self,
        py: Python<'_>,
        offer: &mut Offer,
        sleeper: &mut Option<Arc<Sleeper>>,
    ) -> PyResult<std::result::Result<(), Reason>> {
        // One request to be woken at a time.
        let asleep = sleeper.take().filter(|sleeper| !sleeper.is_awake());
        let asleep = asleep.unwrap_or_else(|| {
            let fresh = Arc::new(Sleeper::default());
            self.calls
                .collector
                .wait_room(Arc::<Sleeper>::clone(&fresh));
            fresh
        });
        let outcome = self.help(py, offer);
        if matches!(outcome, Ok(Err(Reason::Full))) && offer.struck.is_none() {
            let slept = door::wait_detached(py, Some(WAIT_SLICE), |slice| {
                asleep.sleep(slice);
                None::<()>
            });
            if slept.is_ok() {
                *sleeper = Some(asleep);
                return outcome;
            }
            let waker: Waker = asleep;
            self.calls.collector.forget_room(&waker);
            return slept.and(outcome);
        }
        let waker: Waker = asleep;
        self.calls.collector.forget_room(&waker);
        match offer.struck.take() {
            Some(struck) if matches!(outcome, Ok(Err(_))) => Err(struck),
            struck => {
                offer.struck = struck;
                outcome
            }
        }
    }
}

/// A call on its way into the collector.
struct Offer {
    number: u64,
    bytes: usize,
    desk: Option<Arc<Desk>>,
    /// Ctrl-C or an exit out of a call that was run to make room.
    struck: Option<PyErr>,
}

/// Why a call was not taken in.
enum Refusal {
    For(Reason),
    Raised(PyErr),
}

impl From<PyErr> for Refusal {
    fn from(raised: PyErr) -> Self {
        Self::Raised(raised)
    }
}

/// What a call says it holds, in bytes.
struct Cost(usize);

impl<'py> FromPyObject<'_, 'py> for Cost {
    type Error = PyErr;

    fn extract(given: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        match given.extract::<usize>() {
            Ok(bytes) => Ok(Self(bytes)),
            Err(failed) if failed.is_instance_of::<PyOverflowError>(given.py()) => {
                Err(PyValueError::new_err(format!(
                    "cost_bytes must lie between 0 and {}, not {}",
                    usize::MAX,
                    given.str()?
                )))
            }
            Err(failed) => Err(failed),
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
