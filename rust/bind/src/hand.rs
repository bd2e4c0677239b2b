//! Who has it written what a thread puts on the ring of a log.
//!
//! It is asked for before a record is claimed. Behind the claim nothing may fail: the record will
//! be written, and a caller who was told otherwise appends it twice.

use std::sync::Arc;

use pyo3::{exceptions::PyException, prelude::*};

use crate::{current, loops::LoopPort, shared::Shared};

/// See the module.
pub enum Hand {
    /// The log's own thread.
    Driver,
    /// The loop running here, now or at the end of this iteration.
    Loop(Arc<LoopPort>),
    /// The caller, now.
    Caller,
}

impl Hand {
    /// For an append to `log` in this thread. Fails only if the caller was interrupted.
    #[inline]
    pub fn of(py: Python<'_>, log: &Shared) -> PyResult<Self> {
        if !log.appender.is_turned_by_callers() {
            return Ok(Self::Driver);
        }
        match current::port_here(py) {
            Ok(Some(port)) => Ok(Self::Loop(port)),
            Ok(None) => Ok(Self::Caller),
            // A loop that cannot be told, for want of a descriptor say, does not keep a record
            // from being written; the steward sees to what this turn leaves.
            Err(failed) if failed.is_instance_of::<PyException>(py) => Ok(Self::Caller),
            Err(interrupted) => Err(interrupted),
        }
    }

    /// Something was put on the ring: has it written, if nobody else sees to it.
    #[inline]
    pub fn urge(&self, log: &Arc<Shared>) {
        match self {
            Self::Driver => {}
            Self::Loop(port) => port.urge(log),
            Self::Caller => log.appender.turn(),
        }
    }
}
