//! Verify and repair: a log in a directory nobody here has open.

use std::{path::PathBuf, time::Duration};

use millrace_core::{
    engine,
    io::Wanted,
    wal::{
        repair::{self, Repair},
        verify::{self, SegmentCheck, Verification},
    },
};
use pyo3::{
    prelude::*,
    types::{PyDict, PyTuple},
};

use crate::{
    bridge, jobs, report,
    ticket::{Seconds, timeout_called},
};

/// Read every byte of a log; the result has the fields of `VerifyReport`.
#[pyfunction]
pub fn verify_log(py: Python<'_>, path: PathBuf) -> PyResult<Bound<'_, PyAny>> {
    let wanted = Wanted::default();
    bridge::start(py, wanted.clone(), move || {
        let world = engine::world();
        let found = world.and_then(|world| verify::verify_path(&*world.disk, &path, &wanted));
        jobs::answer(found, |py, found| {
            Ok(verification(py, &found)?.into_any().unbind())
        })
    })
}

/// Repair a log; the result has the fields of `RepairReport`.
#[pyfunction]
pub fn repair_log(
    py: Python<'_>,
    path: PathBuf,
    lock_timeout_s: Seconds,
) -> PyResult<Bound<'_, PyAny>> {
    let wanted = Wanted::default();
    // Without an end it waits as long as there are numbers for.
    let timeout = timeout_called("lock_timeout_s", Some(lock_timeout_s))?;
    let timeout = timeout.unwrap_or(Duration::MAX);
    bridge::start(py, wanted.clone(), move || {
        let done = engine::world().and_then(|world| {
            repair::repair_path(&*world.disk, &path, timeout, &*world.census, &wanted)
        });
        jobs::answer(done, |py, done| {
            Ok(repaired(py, &done)?.into_any().unbind())
        })
    })
}

fn verification<'py>(py: Python<'py>, found: &Verification) -> PyResult<Bound<'py, PyDict>> {
    let segments = found.segments.iter().map(|check| segment(py, check));
    let segments: Vec<_> = segments.collect::<PyResult<_>>()?;
    let dict = PyDict::new(py);
    dict.set_item("is_sound", found.is_sound())?;
    dict.set_item("store", found.store.map(|store| store.to_string()))?;
    dict.set_item("first_lsn", found.first.0)?;
    dict.set_item("last_lsn", found.next.previous().0)?;
    dict.set_item("records", found.report.records)?;
    dict.set_item("bytes", found.report.bytes)?;
    dict.set_item("torn_bytes", found.report.cut_bytes)?;
    dict.set_item("elapsed_s", found.elapsed().as_secs_f64())?;
    dict.set_item("damage", report::damage(py, &found.report.damage)?)?;
    dict.set_item("segments", PyTuple::new(py, segments)?)?;
    Ok(dict)
}

fn segment<'py>(py: Python<'py>, check: &SegmentCheck) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("segment", check.segment.0)?;
    dict.set_item("file", &check.file)?;
    dict.set_item("first_lsn", check.first.0)?;
    dict.set_item("records", check.records)?;
    dict.set_item("bytes", check.bytes)?;
    dict.set_item("damage", report::damage(py, &check.damage)?)?;
    Ok(dict)
}

fn repaired<'py>(py: Python<'py>, done: &Repair) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("damage", report::damage(py, &done.damage)?)?;
    dict.set_item("copies", PyTuple::new(py, &done.copies)?)?;
    dict.set_item("first_lsn", done.first.0)?;
    dict.set_item("last_lsn", done.next.previous().0)?;
    dict.set_item("records", done.records)?;
    dict.set_item("dropped", done.dropped)?;
    Ok(dict)
}
