//! The engine raises the floors in order: it knows which disks this machine offers and hands them
//! to the log, which does not.

pub mod io;

use std::{path::Path, time::Duration};

use crate::{
    clock::{Clock, SystemClock},
    error::{Error, ErrorKind, Result},
    ids::{Lsn, StoreId},
    io::{Durability, Wanted},
    sync::Arc,
    threads::ThreadsDisk,
    uring::{self, UringDisk},
    wal::{
        Log, Watch,
        choose::Candidate,
        lock::ProcCensus,
        open::World,
        settings::{CommitPath, Driver, LogSettings, RecoveryMode},
    },
};

/// Which way to the disk a log shall take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum WaySetting {
    /// Measure, and take the quickest.
    #[default]
    Auto,
    /// This one, or an error that says why not.
    Forced(CommitPath),
}

impl WaySetting {
    fn admits(self, path: CommitPath) -> bool {
        match self {
            Self::Auto => true,
            Self::Forced(wanted) => wanted == path,
        }
    }
}

/// The environment variable that forces a backend, of logs and I/O engines alike, where their
/// settings leave it open.
pub const BACKEND_VARIABLE: &str = "MILLRACE_BACKEND";

/// Which backend may be used; [`BACKEND_VARIABLE`] decides where this is `Auto`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum BackendSetting {
    /// The ring where the kernel allows it, else threads.
    #[default]
    Auto,
    /// The ring, or an error that says why not.
    Uring,
    /// The ring without what only newer kernels have.
    UringPlain,
    /// Plain system calls.
    Threads,
}

impl BackendSetting {
    /// The backend of this name.
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "auto" => Some(Self::Auto),
            "uring" => Some(Self::Uring),
            "uring-plain" => Some(Self::UringPlain),
            "threads" => Some(Self::Threads),
            _ => None,
        }
    }

    /// This setting, or what the environment says where it is `Auto`.
    pub fn or_environment(self) -> Result<Self> {
        // One that is not text is no name of a backend either.
        let variable = std::env::var_os(BACKEND_VARIABLE);
        self.or_variable(variable.map(|value| value.to_string_lossy().into_owned()))
    }

    fn or_variable(self, variable: Option<String>) -> Result<Self> {
        let Some(name) = variable.filter(|name| self == Self::Auto && !name.is_empty()) else {
            return Ok(self);
        };
        Self::named(&name).ok_or_else(|| {
            Error::invalid(format!(
                "{BACKEND_VARIABLE} must be auto, uring, uring-plain or threads"
            ))
            .with_text("value", name)
        })
    }
}

/// Who shall turn the committer of a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DriverSetting {
    /// Whoever appends or waits while they are few, a thread of the log's own while they are many
    /// and where callers cannot.
    #[default]
    Auto,
    /// A thread of the log's own.
    Thread,
    /// Whoever appends or waits, or an error that says why not.
    Loop,
}

/// Which backend is used, and why not the ring.
#[derive(Debug, Clone)]
pub struct BackendInfo {
    /// `uring`, `uring-plain` or `threads`.
    pub name: &'static str,
    /// Why the ring is not used; empty if it is, or if it was not asked for.
    pub reason: String,
    /// What helps against that.
    pub hint: &'static str,
}

/// A group waits for writers who were just answered for a quarter of a sync, and never longer
/// than this: half of what one event loop needs to run a few dozen tasks once.
const PATIENCE_MAX: Duration = Duration::from_micros(100);

/// Opens a log on the machine's own disk, creating it if needed, as long as it is `wanted`.
pub fn open_log(
    path: &Path,
    mut settings: LogSettings,
    way: WaySetting,
    backend: BackendSetting,
    driver: DriverSetting,
    wanted: &Wanted,
) -> Result<Log> {
    let backend = backend.or_environment()?;
    let world = world_while(wanted)?;
    settings.patience_max = PATIENCE_MAX;
    if driver == DriverSetting::Loop {
        check_loop_driver(way, backend)?;
        let candidate = loop_candidate(&world)?;
        return Log::open(&world, path, settings, &[candidate]).map_err(without_direct);
    }
    let candidates = candidates(&world, way, backend, driver)?;
    Log::open(&world, path, settings, &candidates)
}

/// Refuses what cannot work with the loop driver on any machine.
pub fn check_loop_driver(way: WaySetting, backend: BackendSetting) -> Result<()> {
    if let WaySetting::Forced(path @ (CommitPath::Pwrite | CommitPath::RingDsync)) = way {
        return Err(Error::invalid(format!(
            "driver 'loop' and commit_path '{}' contradict each other: on the thread of an event \
             loop only direct writes never block; take commit_path 'direct' or 'auto'",
            path.name()
        )));
    }
    if backend == BackendSetting::Threads {
        return Err(Error::invalid(
            "driver 'loop' and backend 'threads' contradict each other: an event loop can only be \
             told of completions by io_uring; take backend 'auto' or 'uring', which \
             MILLRACE_BACKEND must not contradict",
        ));
    }
    Ok(())
}

/// Direct writes on a ring that every thread may turn: callers, or a thread.
fn for_either(disk: UringDisk) -> Candidate {
    let disk = disk.for_guests();
    let name = disk.variant();
    Candidate {
        driver: Driver::Either,
        ..Candidate::new(CommitPath::Direct, Arc::new(disk), name)
    }
}

/// Direct writes on a ring that every thread may turn, by callers only.
fn loop_candidate(world: &World) -> Result<Candidate> {
    let clock = Arc::clone(&world.clock);
    match UringDisk::probe(clock, None) {
        Ok(disk) => Ok(Candidate {
            driver: Driver::Loop,
            ..for_either(disk)
        }),
        Err(refusal) => Err(without_loop(&unavailable(&refusal))),
    }
}

fn without_direct(error: Error) -> Error {
    if error.kind() == ErrorKind::Unsupported {
        return without_loop(&error);
    }
    error
}

fn without_loop(error: &Error) -> Error {
    Error::new(
        ErrorKind::Unsupported,
        format!(
            "driver 'loop' needs io_uring and a filesystem with direct I/O: {}; driver 'thread' \
             works without",
            error.message()
        ),
    )
    .caused_by(error.clone())
}

/// Opens a log to read: no lock, nothing in the directory changes.
pub fn open_log_read_only(path: &Path, settings: LogSettings, wanted: &Wanted) -> Result<Log> {
    Log::open_read_only(&world_while(wanted)?, path, settings)
}

/// Follows a log from outside, from `start` on, until `wanted` is withdrawn.
pub fn watch_log(path: &Path, mode: RecoveryMode, start: Lsn, wanted: &Wanted) -> Result<Watch> {
    Watch::new(&world_while(wanted)?, path.to_owned(), mode, start)
}

/// Which backend a log would use here.
pub fn backend_info(backend: BackendSetting) -> Result<BackendInfo> {
    let backend = backend.or_environment()?;
    Ok(match ring_disk(Arc::new(SystemClock::new()), backend) {
        Ok(Some((_, name))) => BackendInfo {
            name,
            reason: String::new(),
            hint: "",
        },
        Ok(None) => BackendInfo {
            name: "threads",
            reason: String::new(),
            hint: "",
        },
        Err(refusal) => BackendInfo {
            name: "threads",
            reason: refusal.error.to_string(),
            hint: refusal.hint,
        },
    })
}

/// The machine as the log sees it.
pub fn world() -> Result<World> {
    let clock = Arc::new(SystemClock::new());
    Ok(World {
        disk: Arc::new(ThreadsDisk::new(clock.clone())),
        clock,
        census: Box::new(ProcCensus),
        fresh_id: random_id()?,
        wanted: Wanted::default(),
    })
}

fn world_while(wanted: &Wanted) -> Result<World> {
    let wanted = wanted.clone();
    Ok(World { wanted, ..world()? })
}

/// A disk behind the kernel's ring, and the name of its variant.
type RingDisk = (UringDisk, &'static str);

/// The ring, if it was asked for and works.
fn ring_disk(
    clock: Arc<dyn Clock>,
    backend: BackendSetting,
) -> Result<Option<RingDisk>, uring::Refusal> {
    if backend == BackendSetting::Threads {
        return Ok(None);
    }
    let disk = UringDisk::probe(clock, None)?;
    let disk = match backend {
        BackendSetting::UringPlain => disk.with_plain_ring(),
        BackendSetting::Auto | BackendSetting::Uring | BackendSetting::Threads => disk,
    };
    let name = disk.variant();
    Ok(Some((disk, name)))
}

/// The ways this machine offers, cheapest machinery first.
fn candidates(
    world: &World,
    way: WaySetting,
    backend: BackendSetting,
    driver: DriverSetting,
) -> Result<Vec<Candidate>> {
    let ring = match ring_disk(Arc::clone(&world.clock), backend) {
        Ok(ring) => ring,
        Err(refusal) if backend == BackendSetting::Auto => {
            if way == WaySetting::Forced(CommitPath::RingDsync) {
                return Err(unavailable(&refusal));
            }
            None
        }
        Err(refusal) => return Err(unavailable(&refusal)),
    };
    let mut all = vec![Candidate::new(
        CommitPath::Pwrite,
        Arc::clone(&world.disk),
        "threads",
    )];
    if let Some((disk, name)) = ring {
        // Who asks for the tuned ring by name gets the one thread that can turn it.
        let either = driver == DriverSetting::Auto && backend != BackendSetting::Uring;
        let direct = if either {
            for_either(disk.clone())
        } else {
            Candidate::new(CommitPath::Direct, Arc::new(disk.clone()), name)
        };
        let buffered = Candidate::new(CommitPath::RingDsync, Arc::new(disk), name);
        all.extend([buffered, direct]);
    } else {
        let clock = Arc::clone(&world.clock);
        let disk = ThreadsDisk::new(clock).with_durability(Durability::Dsync);
        let direct = Candidate::new(CommitPath::Direct, Arc::new(disk), "threads");
        // One thread writes one group at a time.
        all.push(Candidate {
            window: 1,
            ..direct
        });
    }
    let on_ring_only = matches!(backend, BackendSetting::Uring | BackendSetting::UringPlain);
    all.retain(|one| way.admits(one.path) && !(on_ring_only && one.backend == "threads"));
    if all.is_empty() {
        return Err(Error::invalid(
            "commit_path and backend (a setting, or MILLRACE_BACKEND) contradict each other: \
             ring_dsync needs the ring, pwrite needs threads",
        ));
    }
    Ok(all)
}

fn unavailable(refusal: &uring::Refusal) -> Error {
    Error::new(
        ErrorKind::Unsupported,
        format!("io_uring is not available: {refusal}"),
    )
    .caused_by(refusal.error.clone())
}

/// Sixteen bytes from the kernel's generator (getrandom(2)).
fn random_id() -> Result<StoreId> {
    let mut id = [0_u8; 16];
    // SAFETY: the buffer is valid for writes of its own length for the duration of the call.
    let count = unsafe { libc::getrandom(id.as_mut_ptr().cast(), id.len(), 0) };
    if count != id.len().cast_signed() {
        let error = std::io::Error::last_os_error();
        return Err(Error::from_io(&error, "getrandom"));
    }
    Ok(StoreId(id))
}
