//! The engine raises the floors in order: it knows which disks this machine offers and hands them
//! to the log, which does not.

use std::path::Path;

use crate::{
    clock::SystemClock,
    error::{Error, Result},
    ids::StoreId,
    sync::Arc,
    threads::ThreadsDisk,
    wal::{
        Log,
        choose::Candidate,
        lock::ProcCensus,
        open::World,
        settings::{CommitPath, LogSettings},
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

/// Opens a log on the machine's own disk, creating it if needed.
pub fn open_log(path: &Path, settings: LogSettings, way: WaySetting) -> Result<Log> {
    let world = world()?;
    let candidates = candidates(&world, way)?;
    Log::open(&world, path, settings, &candidates)
}

/// Opens a log to read: no lock, nothing in the directory changes.
pub fn open_log_read_only(path: &Path, settings: LogSettings) -> Result<Log> {
    Log::open_read_only(&world()?, path, settings)
}

/// The machine as the log sees it.
pub fn world() -> Result<World> {
    let clock = Arc::new(SystemClock::new());
    Ok(World {
        disk: Arc::new(ThreadsDisk::new(clock.clone())),
        clock,
        census: Box::new(ProcCensus),
        fresh_id: random_id()?,
    })
}

/// The ways this machine offers, or the forced one.
fn candidates(world: &World, way: WaySetting) -> Result<Vec<Candidate>> {
    let pwrite = Candidate {
        path: CommitPath::Pwrite,
        disk: Arc::clone(&world.disk),
    };
    match way {
        WaySetting::Auto | WaySetting::Forced(CommitPath::Pwrite) => Ok(vec![pwrite]),
        WaySetting::Forced(_) => Err(Error::new(
            crate::ErrorKind::Unsupported,
            "io_uring is not available",
        )),
    }
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
