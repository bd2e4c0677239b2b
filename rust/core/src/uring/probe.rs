//! What this kernel offers; why the ring was refused, in words, and what helps.

use std::{
    fmt, io,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use io_uring::{Probe, opcode};

use super::{
    UringDisk,
    names::Offer,
    ring::{Patience, Ring, Setup},
};
use crate::{
    clock::Clock,
    error::{Error, ErrorKind, Result},
    io::{Access, BLOCK, Backend, Blocking, Buffer},
};

/// Why the ring is not used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reason {
    /// `ENOSYS`: the kernel does not know the call, or a filter answers so.
    Unknown,
    /// `EPERM`: switched off for this process.
    Forbidden,
    /// `ENOMEM`: even a small ring did not fit.
    Memory,
    /// Another refusal of the setup.
    Setup,
    /// An operation or a property that we need is missing.
    Missing,
    /// The ring was made and then did not do what it should.
    Failed,
}

/// The ring was refused: why, and what helps.
#[derive(Debug, Clone)]
pub struct Refusal {
    /// By kind.
    pub reason: Reason,
    /// What happened.
    pub error: Error,
    /// What to do about it.
    pub hint: &'static str,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.error, self.hint)
    }
}

impl std::error::Error for Refusal {}

const HINT_UNKNOWN: &str =
    "Linux 5.11 or later has it, unless a container's seccomp profile answers as if it had not";
const HINT_SYSCTL: &str = "set kernel.io_uring_disabled to 0 to allow it";
const HINT_SECCOMP: &str =
    "allow io_uring_setup, io_uring_enter and io_uring_register in the container's seccomp profile";
const HINT_MEMORY: &str = "raise the limit on locked memory (ulimit -l, LimitMEMLOCK)";
const HINT_SETUP: &str = "see the errno; a limit on open files is the usual cause";
const HINT_MISSING: &str = "use Linux 5.11 or later";
const HINT_FAILED: &str = "the directory may be on a filesystem that does not go with io_uring, or a filter is in the way";

/// Operations without which we do not begin, by name.
const NEEDED: [(u8, &str); 9] = [
    (opcode::Read::CODE, "read"),
    (opcode::Write::CODE, "write"),
    (opcode::Fsync::CODE, "fsync"),
    (opcode::Fallocate::CODE, "fallocate"),
    (opcode::PollAdd::CODE, "poll"),
    (opcode::AsyncCancel::CODE, "cancel"),
    (opcode::Writev::CODE, "writev"),
    (opcode::SendMsg::CODE, "sendmsg"),
    (opcode::Recv::CODE, "recv"),
];

impl UringDisk {
    /// Finds out whether the ring works here: makes one, looks at what it offers, runs a request,
    /// and in `dir`, if given, writes a page durably and reads it back.
    pub fn probe(clock: Arc<dyn Clock>, dir: Option<&Path>) -> Result<Self, Refusal> {
        let mut disk = Self::new(clock);
        let mut ring = Ring::new(disk.setup).map_err(|error| refused_setup(&error))?;
        let offer = check_offer(&ring)?;
        run_nothing(&mut ring).map_err(failed)?;
        disk.offer = Offer::of(&mut ring, &offer);
        drop(ring);
        if let Some(dir) = dir {
            write_and_read(&disk, dir).map_err(failed)?;
        }
        Ok(disk)
    }

    /// Which ring this kernel gives: "uring", or "uring-plain" without what only newer ones have.
    pub fn variant(&self) -> &'static str {
        let setup = Setup {
            entries: 8,
            ..self.setup
        };
        match Ring::new(setup) {
            Ok(ring) if !ring.is_plain() => "uring",
            _ => "uring-plain",
        }
    }
}

impl Refusal {
    /// The probe's ring could be made, and the one that was to be used could not.
    pub fn of_ring(error: Error) -> Self {
        let (reason, hint) = setup_hint(error.errno());
        Self {
            reason,
            error,
            hint,
        }
    }
}

fn refused_setup(error: &io::Error) -> Refusal {
    let (reason, hint) = setup_hint(error.raw_os_error());
    Refusal {
        reason,
        error: Error::from_io(error, "io_uring_setup"),
        hint,
    }
}

fn setup_hint(errno: Option<i32>) -> (Reason, &'static str) {
    match errno {
        Some(libc::ENOSYS) => (Reason::Unknown, HINT_UNKNOWN),
        Some(libc::EPERM | libc::EACCES) => (Reason::Forbidden, hint_forbidden()),
        Some(libc::ENOMEM) => (Reason::Memory, HINT_MEMORY),
        _ => (Reason::Setup, HINT_SETUP),
    }
}

/// The sysctl answers as a filter does; its value tells them apart.
fn hint_forbidden() -> &'static str {
    match std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled") {
        Ok(value) if value.trim() != "0" => HINT_SYSCTL,
        _ => HINT_SECCOMP,
    }
}

fn missing(what: &str) -> Refusal {
    let message = format!("this kernel's io_uring lacks {what}");
    Refusal {
        reason: Reason::Missing,
        error: Error::new(ErrorKind::Unsupported, message),
        hint: HINT_MISSING,
    }
}

fn failed(error: Error) -> Refusal {
    Refusal {
        reason: Reason::Failed,
        error,
        hint: HINT_FAILED,
    }
}

fn check_offer(ring: &Ring) -> Result<Probe, Refusal> {
    let kernel = ring.kernel();
    if !kernel.params().is_feature_nodrop() {
        return Err(missing("the promise to keep every completion"));
    }
    if !kernel.params().is_feature_ext_arg() {
        return Err(missing("waiting with a timeout"));
    }
    let mut offer = Probe::new();
    let asked = kernel.submitter().register_probe(&mut offer);
    asked.map_err(|error| failed(Error::from_io(&error, "io_uring_register")))?;
    for (code, name) in NEEDED {
        if !offer.is_supported(code) {
            return Err(missing(name));
        }
    }
    Ok(offer)
}

fn run_nothing(ring: &mut Ring) -> Result<()> {
    const MARK: u64 = 0x6d69_6c6c;
    let entry = opcode::Nop::new().build().user_data(MARK);
    // SAFETY: the entry points at nothing.
    let staged = unsafe { ring.stage(&entry) };
    let limit = std::time::Duration::from_secs(5);
    ring.enter(Patience::For(limit), false)
        .map_err(|error| Error::from_io(&error, "io_uring_enter"))?;
    match ring.reap() {
        Some(answer) if staged && answer.user_data() == MARK && answer.result() == 0 => Ok(()),
        _ => Err(Error::new(
            ErrorKind::Io,
            "a request that does nothing was not answered",
        )),
    }
}

fn write_and_read(disk: &UringDisk, dir: &Path) -> Result<()> {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let name = format!("probe-{}-{count}.tmp", std::process::id());
    let mut backend = disk.open()?;
    let mut io = Blocking::new(&mut backend);
    let dir = io.open_dir(dir, false)?;
    let file = io.open(&dir, &name, Access::CREATE)?;
    io.unlink(&dir, &name)?;
    let mut page = Buffer::zeroed(BLOCK);
    page.fill(0x5a);
    let page = io.write(&file, 0, BLOCK, page, true)?;
    let (count, back) = io.read(&file, 0, BLOCK, Buffer::zeroed(BLOCK))?;
    backend.shutdown(None);
    if count != BLOCK || back[..] != page[..] {
        return Err(Error::new(
            ErrorKind::Io,
            "a page was not read back as it was written",
        ));
    }
    Ok(())
}
