//! The Python face of the engine: extract, call, convert.
//!
//! ```text
//! log, open, check, reader, ring, io, gc, ticket   what Python calls
//! bridge                         long, rare operations, by way of a runtime of their own
//! toll                           what the way back to a loop costs, for a benchmark
//! operation                      what an asynchronous call returns
//! current, loops, lines, jobs, queue   who waits for what, and where
//! cleanup                        what is let go of, and who cleans it
//! shared                         what the handles of one log have in common
//! wheel                          deadlines of an event loop, all on its one timer
//! record, report, buffer, error  values across the line
//! exit                           what is still open when the process ends
//! gate                           who is inside when the interpreter ends
//! door                           the only way in and out of the interpreter
//! ```

// Documentation of what Python sees is written the way Python writes it.
#![allow(clippy::doc_markdown)]

mod bridge;
mod buffer;
mod check;
mod cleanup;
mod current;
mod deliver;
mod door;
mod error;
mod exit;
mod gate;
mod gc;
mod hand;
mod io;
mod jobs;
mod lines;
mod log;
mod loops;
mod open;
mod operation;
mod queue;
mod reader;
mod record;
mod report;
mod ring;
mod shared;
mod ticket;
mod toll;
mod wheel;

/// The compiled half of Millrace; import `millrace` instead.
#[pyo3::pymodule(gil_used = false)]
mod _core {
    #[pymodule_export]
    use super::{
        check::{repair_log, verify_log},
        cleanup::{cleanup_done, cleanup_report},
        exit::close_everything,
        gate::wait_for_insiders,
        gc::{EpochGC, EpochPin},
        io::{CloseReport, EngineBuffer, File, FileStatus, IoEngine},
        log::Log,
        open::{backend_info, check_settings, open_log},
        operation::Operation,
        reader::Reader,
        record::Record,
        ring::{Entry, Ring, RingTicket},
        ticket::Ticket,
        toll::{come_back_by_bridge, come_back_by_port},
        wheel::{Handle, Timeout, TimeoutWheel, TimerScope},
    };

    use pyo3::prelude::*;

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        super::door::admit(module.py())?;
        // Handlers of the exit run in the opposite order.
        super::gate::build(module)?;
        super::exit::build(module)?;
        module.add("__version__", env!("CARGO_PKG_VERSION"))
    }
}
