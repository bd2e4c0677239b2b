//! Opening a log on a thread of its own: settings in, handle out.

use std::{path::PathBuf, sync::Arc, time::Duration};

use millrace_core::{
    Error, Result,
    engine::{self, BackendSetting, DriverSetting, WaySetting},
    io::Wanted,
    planted,
    sync::Waker,
    wal::settings::{CommitPath, LogSettings, RecoveryMode},
};
use pyo3::{exceptions::PyValueError, prelude::*};

use crate::{
    error, exit,
    jobs::{self, Answer, Answering, Pigeonhole},
    log::Log,
    operation::{Operation, Source},
    shared::Shared,
};

/// The attributes of `millrace.LogSettings`, which has checked their types.
#[derive(FromPyObject)]
struct Numbers {
    segment_bytes: u64,
    segment_first_bytes: u64,
    record_bytes_max: usize,
    group_bytes_max: usize,
    ring_entries: usize,
    ring_bytes: usize,
    block_bytes: usize,
    linger_s: f64,
    min_sync_interval_s: f64,
    lock_timeout_s: f64,
    recovery: String,
    commit_path: String,
    driver: String,
    backend: String,
}

type Checked = (LogSettings, WaySetting, BackendSetting, DriverSetting);

/// An open under way. Cancelled while it waits for the lock or reads, it ends.
struct Opening {
    hole: Arc<Pigeonhole>,
    wanted: Wanted,
}

impl Answering for Opening {
    fn answer(&self) -> Option<Answer> {
        self.hole.answer()
    }

    fn subscribe(&self, waker: Waker) -> bool {
        self.hole.subscribe(waker)
    }

    fn can_withdraw(&self) -> bool {
        true
    }

    fn withdraw(&self) {
        self.wanted.withdraw();
    }
}

impl Drop for Opening {
    /// Nobody can get the log any more. After the answer this says nothing new.
    fn drop(&mut self) {
        self.wanted.withdraw();
    }
}

/// Open the log in *path* on a thread of its own.
#[pyfunction]
pub fn open_log(
    py: Python<'_>,
    path: PathBuf,
    settings: &Bound<'_, PyAny>,
    read_only: bool,
) -> PyResult<Operation> {
    let numbers = settings.extract::<Numbers>()?;
    let checked = numbers
        .check()
        .map_err(|failed| error::raise(py, &failed))?;
    let wanted = Wanted::default();
    let theirs = wanted.clone();
    // It may wait half a minute for the lock of an owner that died.
    let work = move || open(&path, checked, read_only, &theirs);
    let started = if planted!("bind_opens_on_the_workers") {
        jobs::start(work)
    } else {
        jobs::start_alone("millrace-open", work)
    };
    let hole = started.map_err(|failed| error::raise(py, &failed))?;
    let opening = Opening { hole, wanted };
    Ok(Operation::new("open", Source::Job(Arc::new(opening))))
}

fn open(
    path: &std::path::Path,
    (settings, way, backend, driver): Checked,
    read_only: bool,
    wanted: &Wanted,
) -> Answer {
    let opened = if read_only {
        engine::open_log_read_only(path, settings, wanted)
    } else {
        engine::open_log(path, settings, way, backend, driver, wanted)
    };
    jobs::answer(opened.and_then(Shared::new), show)
}

fn show(py: Python<'_>, shared: Arc<Shared>) -> PyResult<Py<PyAny>> {
    exit::enlist(&shared);
    Ok(Py::new(py, Log::of(shared))?.into_any())
}

/// Return the backend that would be used, why it is not the ring, and what helps.
#[pyfunction]
pub fn backend_info(name: &str) -> PyResult<(&'static str, String, &'static str)> {
    let info = backend(name).and_then(engine::backend_info);
    let info = info.map_err(|failed| PyValueError::new_err(failed.message().to_owned()))?;
    Ok((info.name, info.reason, info.hint))
}

/// Check numbers against each other as an open would.
#[pyfunction]
pub fn check_settings(py: Python<'_>, settings: &Bound<'_, PyAny>) -> PyResult<()> {
    let numbers = settings.extract::<Numbers>()?;
    let checked = numbers.check().map(|_| ());
    checked.map_err(|failed| error::raise(py, &failed))
}

impl Numbers {
    fn check(self) -> Result<Checked> {
        let settings = LogSettings {
            segment_bytes: self.segment_bytes,
            segment_first_bytes: self.segment_first_bytes,
            record_bytes_max: self.record_bytes_max,
            group_bytes_max: self.group_bytes_max,
            ring_entries: self.ring_entries,
            ring_bytes: self.ring_bytes,
            block_bytes: self.block_bytes,
            linger: duration("linger_s", self.linger_s)?,
            sync_interval_min: duration("min_sync_interval_s", self.min_sync_interval_s)?,
            recovery: mode(&self.recovery)?,
            lock_timeout: duration("lock_timeout_s", self.lock_timeout_s)?,
            ..LogSettings::default()
        };
        settings.validate()?;
        let (way, backend) = (way(&self.commit_path)?, backend(&self.backend)?);
        let driver = driver(&self.driver)?;
        if driver == DriverSetting::Loop {
            engine::check_loop_driver(way, backend)?;
        }
        Ok((settings, way, backend, driver))
    }
}

fn duration(name: &str, seconds: f64) -> Result<Duration> {
    Duration::try_from_secs_f64(seconds).map_err(|_| {
        Error::invalid(format!(
            "{name} must be a finite number of seconds, 0 or more"
        ))
    })
}

pub fn mode(name: &str) -> Result<RecoveryMode> {
    match name {
        "tail" => Ok(RecoveryMode::Tail),
        "strict" => Ok(RecoveryMode::Strict),
        "salvage" => Ok(RecoveryMode::Salvage),
        _ => Err(Error::invalid(
            "recovery must be 'tail', 'strict' or 'salvage'",
        )),
    }
}

fn way(name: &str) -> Result<WaySetting> {
    match name {
        "auto" => Ok(WaySetting::Auto),
        "pwrite" => Ok(WaySetting::Forced(CommitPath::Pwrite)),
        "ring_dsync" => Ok(WaySetting::Forced(CommitPath::RingDsync)),
        "direct" => Ok(WaySetting::Forced(CommitPath::Direct)),
        _ => Err(Error::invalid(
            "commit_path must be 'auto', 'pwrite', 'ring_dsync' or 'direct'",
        )),
    }
}

pub fn backend(name: &str) -> Result<BackendSetting> {
    BackendSetting::named(name).ok_or_else(|| {
        Error::invalid("backend must be 'auto', 'uring', 'uring-plain' or 'threads'")
    })
}

fn driver(name: &str) -> Result<DriverSetting> {
    match name {
        "auto" => Ok(DriverSetting::Auto),
        "thread" => Ok(DriverSetting::Thread),
        "loop" => Ok(DriverSetting::Loop),
        _ => Err(Error::invalid("driver must be 'auto', 'thread' or 'loop'")),
    }
}
