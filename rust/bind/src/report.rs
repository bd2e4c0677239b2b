//! What a log says about itself, as dictionaries from which Python makes frozen dataclasses.

use millrace_core::{
    ErrorKind,
    wal::{
        recovery::{Damage, RecoveryReport},
        settings::Driver,
    },
};
use pyo3::{
    prelude::*,
    types::{PyDict, PyTuple},
};

use crate::shared::Shared;

/// `open`, `read_only`, `closed` or `failed`.
pub fn state(log: &Shared) -> &'static str {
    if log.is_read_only() {
        return if log.is_closed() {
            "closed"
        } else {
            "read_only"
        };
    }
    match log.appender.failure().map(|error| error.kind()) {
        None => "open",
        Some(ErrorKind::Closed) => "closed",
        Some(_) => "failed",
    }
}

/// What recovery found.
pub fn recovery<'py>(py: Python<'py>, report: &RecoveryReport) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("records", report.records)?;
    dict.set_item("bytes", report.bytes)?;
    dict.set_item("segments", report.segments)?;
    dict.set_item("cut_bytes", report.cut_bytes)?;
    dict.set_item("is_clean", report.clean_close)?;
    dict.set_item("elapsed_s", report.elapsed.as_secs_f64())?;
    dict.set_item("damage", damage(py, &report.damage)?)?;
    Ok(dict)
}

/// A tuple with a row for each damage.
pub fn damage<'py>(py: Python<'py>, found: &[Damage]) -> PyResult<Bound<'py, PyTuple>> {
    let rows = found.iter().map(|damage| row(py, damage));
    PyTuple::new(py, rows.collect::<PyResult<Vec<_>>>()?)
}

fn row<'py>(py: Python<'py>, damage: &Damage) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("segment", damage.segment.0)?;
    dict.set_item("offset", damage.offset)?;
    dict.set_item("first_lsn", damage.first.0)?;
    dict.set_item("last_lsn", damage.last.map(|lsn| lsn.0))?;
    dict.set_item("what", damage.what)?;
    Ok(dict)
}

/// What it did since it was opened.
pub fn statistics<'py>(py: Python<'py>, log: &Shared) -> PyResult<Bound<'py, PyDict>> {
    let (marks, counts) = (log.appender.marks(), log.appender.counts());
    let dict = PyDict::new(py);
    dict.set_item("state", state(log))?;
    dict.set_item("records", counts.records)?;
    dict.set_item("bytes", counts.bytes)?;
    dict.set_item("groups", counts.groups)?;
    dict.set_item("group_records_max", counts.group_records_max)?;
    dict.set_item("syncs", counts.syncs)?;
    dict.set_item("rotations", counts.rotations)?;
    dict.set_item("first_lsn", log.appender.first_lsn().0)?;
    dict.set_item("appended_lsn", marks.appended.0)?;
    dict.set_item("committed_lsn", marks.committed.0)?;
    dict.set_item("durable_lsn", marks.durable.0)?;
    dict.set_item("commit_path", log.way().map(|way| way.path.name()))?;
    dict.set_item("commit_paths", measured(py, log)?)?;
    dict.set_item("driver", driver(log).map(Driver::name))?;
    let seen = log.appender.reclamation();
    let oldest = seen.oldest_pin.map(|pin| pin.age.as_secs_f64());
    dict.set_item("readers", seen.pins)?;
    dict.set_item("oldest_reader_age_s", oldest)?;
    dict.set_item("segments_held", seen.queue.items)?;
    dict.set_item("segments_released", seen.processed)?;
    Ok(dict)
}

/// Who turns it now.
fn driver(log: &Shared) -> Option<Driver> {
    let way = log.way()?;
    Some(log.appender.turned_by().unwrap_or(way.driver))
}

/// What each way to the disk cost in seconds, or why it was refused.
fn measured<'py>(py: Python<'py>, log: &Shared) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    for measured in log.way().iter().flat_map(|way| &way.measured) {
        match &measured.outcome {
            Ok(cost) => dict.set_item(measured.path.name(), cost.as_secs_f64())?,
            Err(reason) => dict.set_item(measured.path.name(), reason)?,
        }
    }
    Ok(dict)
}
