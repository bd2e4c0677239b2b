//! Appending from a plain thread that waits in line when the ring is full.

use std::{
    sync::{Arc, Condvar, Mutex},
    time::{Duration, Instant},
};

use millrace_core::{
    Error, ErrorKind,
    ids::Lsn,
    sync::{Wake, lock},
    wal::log::{Claimed, Payload, Pending, PendingAppend},
};
use pyo3::prelude::*;

use crate::{door, error, gate, shared::Shared};

/// A thread that sleeps until its append leaves the line.
#[derive(Default)]
pub struct Sleeper {
    is_awake: Mutex<bool>,
    woken: Condvar,
}

impl Wake for Sleeper {
    fn wake(&self) {
        *lock(&self.is_awake) = true;
        self.woken.notify_all();
    }
}

impl Sleeper {
    pub fn is_awake(&self) -> bool {
        *lock(&self.is_awake)
    }

    pub fn sleep(&self, timeout: Duration) {
        let is_awake = lock(&self.is_awake);
        drop(
            self.woken
                .wait_timeout_while(is_awake, timeout, |awake| !*awake),
        );
    }
}

/// Appends, waiting for room if there is none. Returns the LSN and what is left of the timeout.
pub fn append(
    py: Python<'_>,
    log: &Arc<Shared>,
    payload: Payload,
    timeout: Option<Duration>,
) -> PyResult<(Lsn, Option<Duration>)> {
    // The exit closes the log, which ends this wait, and then there is an error to be made.
    let _inside = gate::enter(py);
    let started = Instant::now();
    let sleeper = Arc::new(Sleeper::default());
    let wake: Arc<dyn Wake> = Arc::<Sleeper>::clone(&sleeper);
    let claimed = log.appender.append(payload, move || wake);
    let lsn = match claimed.map_err(|failed| error::raise(py, &failed))? {
        Claimed::Now(lsn) => lsn,
        Claimed::Later(pending) => {
            let waited =
                door::wait_detached(py, timeout, |slice| outcome(log, &sleeper, &pending, slice));
            settle(py, &pending, waited)?
        }
    };
    let left = timeout.map(|timeout| timeout.saturating_sub(started.elapsed()));
    Ok((lsn, left))
}

fn outcome(
    log: &Shared,
    sleeper: &Sleeper,
    pending: &PendingAppend,
    slice: Duration,
) -> Option<Result<Lsn, Error>> {
    // Room comes by turning; if that is ours to do, there is nobody to wait for.
    let is_out = || !matches!(pending.state(), Pending::Waiting);
    if !log.appender.assist(slice, &is_out) {
        sleeper.sleep(slice);
    }
    match pending.state() {
        Pending::Waiting => None,
        Pending::Admitted(lsn) => Some(Ok(lsn)),
        Pending::Failed(failed) => Some(Err(failed)),
    }
}

/// Leaves the line after a timeout or Ctrl-C; if it was admitted meanwhile, it counts as admitted.
fn settle(
    py: Python<'_>,
    pending: &PendingAppend,
    waited: PyResult<Option<Result<Lsn, Error>>>,
) -> PyResult<Lsn> {
    let is_over = matches!(&waited, Ok(Some(_)));
    if !is_over && pending.cancel() {
        waited?;
        return Err(error::raise(py, &not_written()));
    }
    match (waited?, pending.state()) {
        (Some(outcome), _) => outcome.map_err(|failed| error::raise(py, &failed)),
        (None, Pending::Admitted(lsn)) => Ok(lsn),
        (None, Pending::Failed(failed)) => Err(error::raise(py, &failed)),
        (None, Pending::Waiting) => Err(error::raise(py, &not_written())),
    }
}

fn not_written() -> Error {
    Error::new(
        ErrorKind::Timeout,
        "no room in the ring before the timeout; the record was not written",
    )
}
