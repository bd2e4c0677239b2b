//! One process owns a log: a held advisory lock, and a note of who holds it.
//!
//! The lock decides; the note only explains. A holder that is shown to be alive is an error at
//! once, naming it. A dead or unknown holder is waited for: after a process died, its ring may
//! still be carrying out writes, and the kernel keeps the lock for exactly as long, because the
//! ring holds the lock's descriptor too.

use std::time::Duration;

use crate::{
    error::{Error, ErrorKind, Result},
    io::{Access, Blocking, Buffer, File, Open},
};

use super::segment::LOCK_NAME;

/// The note is one page at most.
const NOTE_BYTES: usize = 4096;
/// First and longest pause between two attempts.
const RETRY_FIRST: Duration = Duration::from_millis(5);
const RETRY_MAX: Duration = Duration::from_millis(250);

/// Identifies a process across reuse of its pid: pid, start time in clock ticks, boot id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// Process id.
    pub pid: u32,
    /// When it started, in ticks since boot.
    pub started: u64,
    /// The boot it ran in.
    pub boot: String,
}

impl Holder {
    fn encode(&self) -> Buffer {
        let mut note = Buffer::zeroed(NOTE_BYTES);
        let text = format!("{} {} {}\n", self.pid, self.started, self.boot);
        let length = text.len().min(NOTE_BYTES);
        note[..length].copy_from_slice(&text.as_bytes()[..length]);
        note
    }

    fn decode(note: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(note).ok()?;
        let mut words = text.trim_matches(['\0', '\n']).split(' ');
        Some(Self {
            pid: words.next()?.parse().ok()?,
            started: words.next()?.parse().ok()?,
            boot: words.next()?.to_owned(),
        })
    }
}

/// Who we are, and whether somebody else still runs.
pub trait Census: Send + Sync {
    /// This process.
    fn myself(&self) -> Holder;
    /// Whether `holder` is running now. A dead process that nobody has waited for is not.
    fn is_alive(&self, holder: &Holder) -> bool;
}

/// Reads `/proc`.
#[derive(Debug, Clone, Copy, Default)]
pub struct ProcCensus;

impl ProcCensus {
    fn boot() -> String {
        std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
            .map_or_else(|_| "unknown".to_owned(), |text| text.trim().to_owned())
    }

    /// State letter and start time (fields 3 and 22 of `/proc/PID/stat`, proc(5)). The command
    /// name, field 2, may hold spaces and brackets, so fields are counted after its last bracket.
    fn stat(pid: u32) -> Option<(char, u64)> {
        let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let mut fields = text[text.rfind(')')? + 1..].split_whitespace();
        let state = fields.next()?.chars().next()?;
        let started = fields.nth(18)?.parse().ok()?;
        Some((state, started))
    }
}

impl Census for ProcCensus {
    fn myself(&self) -> Holder {
        let pid = std::process::id();
        Holder {
            pid,
            started: Self::stat(pid).map_or(0, |(_, started)| started),
            boot: Self::boot(),
        }
    }

    fn is_alive(&self, holder: &Holder) -> bool {
        holder.boot == Self::boot()
            && Self::stat(holder.pid).is_some_and(|(state, started)| {
                started == holder.started && !matches!(state, 'Z' | 'X' | 'x')
            })
    }
}

/// Takes the lock of `dir`, waiting up to `timeout` for an owner that is not shown to be alive.
pub(crate) fn acquire(
    io: &mut Blocking<'_>,
    dir: &File,
    timeout: Duration,
    census: &dyn Census,
) -> Result<File> {
    let access = Access {
        open: Open::Any,
        ..Access::WRITE
    };
    let file = io.open(dir, LOCK_NAME, access)?;
    let deadline = io.now().after(timeout);
    let mut pause = RETRY_FIRST;
    loop {
        match io.lock(&file) {
            Ok(()) => break,
            Err(error) if error.kind() != ErrorKind::Locked => return Err(error),
            Err(_) => {}
        }
        let holder = read_note(io, &file)?;
        let alive = holder
            .as_ref()
            .is_some_and(|holder| census.is_alive(holder) && !planted!("living_owner_waited_for"));
        if alive || planted!("dead_owner_not_waited_for") || io.now() >= deadline {
            return Err(locked(holder.as_ref(), alive));
        }
        io.sleep(pause)?;
        pause = (pause * 2).min(RETRY_MAX);
    }
    let note = census.myself().encode();
    io.write(&file, 0, NOTE_BYTES, note, false)?;
    Ok(file)
}

fn read_note(io: &mut Blocking<'_>, file: &File) -> Result<Option<Holder>> {
    let (count, note) = io.read(file, 0, NOTE_BYTES, Buffer::zeroed(NOTE_BYTES))?;
    Ok(Holder::decode(&note[..count]))
}

fn locked(holder: Option<&Holder>, alive: bool) -> Error {
    let pid = holder.map_or(0, |holder| holder.pid);
    let message = match (holder, alive) {
        (Some(_), true) => format!("the log is open in process {pid}; close it there first"),
        (Some(_), false) => format!(
            "the log is still locked after its owner, process {pid}, ended; its last writes may \
             still be on their way or a child of it holds the lock: try again later"
        ),
        (None, _) => "the log is locked by an unknown process".to_owned(),
    };
    Error::new(ErrorKind::Locked, message).with("pid", pid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_is_read_back_and_noise_is_not() {
        // A note that cannot be read must never stop or allow anything: the lock decides.
        let me = ProcCensus.myself();
        assert_eq!(Holder::decode(&me.encode()), Some(me));
        for noise in [&b""[..], b"\0\0\0", b"12", b"x y z", b"1 2", &[0xff; 64]] {
            assert_eq!(Holder::decode(noise), None);
        }
    }

    #[test]
    fn we_are_alive_and_our_pid_in_another_life_is_not() {
        // A pid alone does not identify a process: start time and boot must match.
        let me = ProcCensus.myself();
        assert!(ProcCensus.is_alive(&me));
        let earlier = Holder {
            started: me.started + 1,
            ..me.clone()
        };
        assert!(!ProcCensus.is_alive(&earlier));
        let other_boot = Holder {
            boot: "another".to_owned(),
            ..me
        };
        assert!(!ProcCensus.is_alive(&other_boot));
    }
}
