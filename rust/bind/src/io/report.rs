//! What an engine says about itself, and what it says about files.

use std::{path::Path, sync::Arc, time::Duration};

use millrace_core::{
    io::{Leftovers, Status},
    ioloop::{Kind, SlowOperation},
    metrics::Distribution,
    planted,
};
use pyo3::{
    intern,
    prelude::*,
    sync::PyOnceLock,
    types::{PyDict, PyTuple},
};

use super::shared::Shared;

/// What an engine left behind when it ended.
#[pyclass(frozen, eq, module = "millrace._core")]
#[derive(PartialEq, Eq)]
pub struct CloseReport {
    /// Requests the kernel did not answer in time; their memory is kept for ever.
    #[pyo3(get)]
    requests: u64,
    /// The bytes of that memory.
    #[pyo3(get)]
    bytes: u64,
}

impl CloseReport {
    pub fn of(left: Leftovers) -> Self {
        Self {
            requests: left.requests,
            bytes: left.bytes,
        }
    }
}

#[pymethods]
impl CloseReport {
    fn __repr__(&self) -> String {
        format!(
            "CloseReport(requests={}, bytes={})",
            self.requests, self.bytes
        )
    }
}

/// What is known about a file.
#[pyclass(frozen, module = "millrace._core")]
pub struct FileStatus(pub Status);

#[pymethods]
impl FileStatus {
    /// Length in bytes.
    #[getter]
    fn length_bytes(&self) -> u64 {
        self.0.length
    }

    /// Kind and permissions, as in `os.stat_result.st_mode`.
    #[getter]
    fn mode(&self) -> u32 {
        self.0.mode
    }

    /// Number of the inode.
    #[getter]
    fn inode(&self) -> u64 {
        self.0.inode
    }

    /// Device of the filesystem.
    #[getter]
    fn device(&self) -> u64 {
        self.0.device
    }

    /// How many names it has.
    #[getter]
    fn links(&self) -> u64 {
        self.0.links
    }

    /// Owner.
    #[getter]
    fn user(&self) -> u32 {
        self.0.user
    }

    /// Group.
    #[getter]
    fn group(&self) -> u32 {
        self.0.group
    }

    /// Bytes that are allocated for it.
    #[getter]
    fn allocated_bytes(&self) -> u64 {
        self.0.blocks.saturating_mul(512)
    }

    /// Last read, in nanoseconds since 1970.
    #[getter]
    fn accessed_ns(&self) -> i64 {
        self.0.accessed_ns
    }

    /// Last write, in nanoseconds since 1970.
    #[getter]
    fn modified_ns(&self) -> i64 {
        self.0.modified_ns
    }

    /// Last change of any of this, in nanoseconds since 1970.
    #[getter]
    fn changed_ns(&self) -> i64 {
        self.0.changed_ns
    }

    fn __repr__(&self) -> String {
        format!(
            "FileStatus(length_bytes={}, mode={:#o}, inode={})",
            self.0.length, self.0.mode, self.0.inode
        )
    }
}

/// The fields of `IoStatistics`. Whoever asks also has told what is slow and nobody waits for.
pub fn statistics<'py>(py: Python<'py>, engine: &Arc<Shared>) -> PyResult<Bound<'py, PyDict>> {
    if !planted!("bind_slow_orphans_are_untold") {
        log_slow(py, engine);
    }
    let seen = engine.handle().statistics();
    let dict = PyDict::new(py);
    dict.set_item("state", engine.state())?;
    dict.set_item("backend", engine.backend().name)?;
    dict.set_item("driver", if engine.is_guest { "loop" } else { "thread" })?;
    dict.set_item(
        "pinned_bytes",
        engine.pinned.load(std::sync::atomic::Ordering::Relaxed),
    )?;
    dict.set_item("kept_bytes", engine.sockets.kept_bytes())?;
    for (name, count) in [
        ("pending", seen.pending),
        ("in_flight", seen.in_flight),
        ("submitted", seen.submitted),
        ("completed", seen.completed),
        ("failed", seen.failed),
        ("retried", seen.retried),
        ("short", seen.short),
        ("cancelled_before", seen.cancelled_before),
        ("cancelled_stopped", seen.cancelled_stopped),
        ("cancelled_late", seen.cancelled_late),
        ("timed_out", seen.timed_out),
        ("orphaned", seen.orphaned),
        ("abandoned", seen.abandoned),
        ("cached_hits", seen.cached_hits),
        ("cached_misses", seen.cached_misses),
        ("enters", seen.enters),
        ("wakes_rung", seen.wakes_rung),
        ("wakes_coalesced", seen.wakes_coalesced),
        ("overflows", seen.overflows),
        ("leaked_requests", seen.leaked_requests),
        ("leaked_bytes", seen.leaked_bytes),
        ("slow_now", seen.slow_now),
        ("slow", seen.slow),
    ] {
        dict.set_item(name, count)?;
    }
    dict.set_item("oldest_s", seen.oldest.as_secs_f64())?;
    dict.set_item("queue_wait", distributions(py, &seen.queue_wait)?)?;
    dict.set_item("device_time", distributions(py, &seen.device_time)?)?;
    Ok(dict)
}

fn distributions<'py>(
    py: Python<'py>,
    kinds: &[(Kind, Distribution)],
) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    for (kind, one) in kinds {
        let row = PyDict::new(py);
        row.set_item("count", one.count)?;
        row.set_item("sum_s", seconds(one.sum_ns))?;
        row.set_item("max_s", seconds(one.max_ns))?;
        let buckets = one.buckets.iter();
        let buckets = buckets.map(|(upper, count)| (seconds(*upper), *count));
        row.set_item("buckets", PyTuple::new(py, buckets.collect::<Vec<_>>())?)?;
        dict.set_item(kind.name(), row)?;
    }
    Ok(dict)
}

/// Tells the log of operations that take long, or took long and are over.
pub fn log_slow(py: Python<'_>, engine: &Shared) {
    for slow in engine.handle().slow_operations() {
        if let Err(failed) = log(py, &slow) {
            // A handler of the program failed; its own operation did not.
            failed.write_unraisable(py, None);
        }
    }
}

fn log(py: Python<'_>, slow: &SlowOperation) -> PyResult<()> {
    let (kind, age) = (slow.kind.name(), slow.age.as_secs_f64());
    let state = if slow.over { "is over" } else { "goes on" };
    let path = slow.place.path.as_deref().map(Path::as_os_str);
    let extra = PyDict::new(py);
    extra.set_item("operation", kind)?;
    extra.set_item("path", path)?;
    extra.set_item("offset", slow.place.offset)?;
    extra.set_item("age_s", age)?;
    extra.set_item("is_over", slow.over)?;
    let options = PyDict::new(py);
    options.set_item("extra", extra)?;
    let warning = intern!(py, "warning");
    let _ = if let Some(path) = path {
        let arguments = ("slow %s on %r: %.3f s, and it %s", kind, path, age, state);
        logger(py)?.call_method(warning, arguments, Some(&options))?
    } else {
        let arguments = ("slow %s: %.3f s, and it %s", kind, age, state);
        logger(py)?.call_method(warning, arguments, Some(&options))?
    };
    Ok(())
}

fn logger(py: Python<'_>) -> PyResult<&Bound<'_, PyAny>> {
    static LOGGER: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let logger = LOGGER.get_or_try_init(py, || {
        let logging = py.import("logging")?;
        let logger = logging.call_method1("getLogger", ("millrace.io",))?;
        Ok::<_, PyErr>(logger.unbind())
    })?;
    Ok(logger.bind(py))
}

fn seconds(ns: u64) -> f64 {
    Duration::from_nanos(ns).as_secs_f64()
}
