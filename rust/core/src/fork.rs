//! What a child of `fork` must not inherit, and how an object finds out that it lives in one.
//!
//! A child shares the open file descriptions of its parent: a lock stays taken and a ring stays
//! alive for as long as the child lives. So every such descriptor is listed here, and in the
//! child each one is *replaced* by a harmless descriptor of the same number. Replaced, not
//! closed: the number stays taken, so that the owner's own `close` in the child can never hit a
//! file that was opened later.
//!
//! Only what keeps others out is listed: a lock that is held alone, and a ring, which may hold
//! one. Shared locks are as many as there are open segments, and one that lives on in a child
//! costs an owner elsewhere a file it would have used again, nothing more.
//!
//! # Always true
//!
//! 1. The handler in the child reads atomics and calls `dup3`, nothing else: another thread may
//!    have held any lock at the moment of the fork.
//! 2. A descriptor is listed for less time than it is open: its [`Guard`] goes first.
//! 3. The parent's descriptors and locks are never touched by the child.
//!
//! Not here: a child made by a bare `clone` runs no handlers and is not noticed.

use std::{
    os::fd::RawFd,
    sync::{
        OnceLock,
        atomic::{AtomicI32, AtomicU32, Ordering},
    },
};

use crate::error::{Error, ErrorKind, Result};

/// How many descriptors can be listed: one ring for each engine, and for each log that is open for
/// writing its lock and that of a file it makes ready.
const SLOTS: usize = 512;

/// An empty slot.
const NONE: i32 = -1;

/// How many forks lie between this process and the one that started.
static GENERATION: AtomicU32 = AtomicU32::new(0);
static LISTED: [AtomicI32; SLOTS] = [const { AtomicI32::new(NONE) }; SLOTS];
/// What takes the place of a listed descriptor; written once before anything is listed.
static STAND_IN: AtomicI32 = AtomicI32::new(NONE);
static READY: OnceLock<Result<(), i32>> = OnceLock::new();

/// Remembers in which process something was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Origin(u32);

impl Origin {
    /// This process.
    pub fn here() -> Result<Self> {
        get_ready()?;
        Ok(Self(GENERATION.load(Ordering::Relaxed)))
    }

    /// Whether `fork` lies between the making and now.
    pub fn is_forked_child(self) -> bool {
        // A forked child has one thread, which ran the handler itself: program order is enough.
        GENERATION.load(Ordering::Relaxed) != self.0
    }

    /// Fails with `Forked` in a child.
    pub fn check(self) -> Result<()> {
        if self.is_forked_child() {
            return Err(Error::new(
                ErrorKind::Forked,
                "opened before a fork; open it again in this process",
            )
            .with("pid", std::process::id()));
        }
        Ok(())
    }
}

/// Keeps a descriptor on the list. Dropped before the descriptor is closed.
#[derive(Debug)]
pub struct Guard {
    slot: usize,
}

impl Drop for Guard {
    fn drop(&mut self) {
        LISTED[self.slot].store(NONE, Ordering::Relaxed);
    }
}

/// Lists `fd`: from now on a forked child does not keep its open file description.
pub fn forsake(fd: RawFd) -> Result<Guard> {
    get_ready()?;
    for (slot, listed) in LISTED.iter().enumerate() {
        // Relaxed: the handler runs in a copy of this memory made by the kernel, which sees
        // every store made before the fork by the forking thread; for a store of another thread
        // the fork came first.
        let taken = listed.compare_exchange(NONE, fd, Ordering::Relaxed, Ordering::Relaxed);
        if taken.is_ok() {
            return Ok(Guard { slot });
        }
    }
    Err(Error::new(
        ErrorKind::Overloaded,
        "too many descriptors are kept from forked children",
    )
    .with("limit", SLOTS as i128))
}

fn get_ready() -> Result<()> {
    let ready = READY.get_or_init(|| {
        // SAFETY: eventfd takes plain numbers.
        let stand_in = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        if stand_in < 0 {
            return Err(errno());
        }
        STAND_IN.store(stand_in, Ordering::Relaxed);
        // SAFETY: the handler is a plain function that lives as long as the program, and does
        // only what is allowed in a forked child (invariant 1, kept by `in_child`).
        match unsafe { libc::pthread_atfork(None, None, Some(in_child)) } {
            0 => Ok(()),
            refused => Err(refused),
        }
    });
    ready.map_err(|errno| Error::from_errno(errno, "pthread_atfork"))
}

/// Takes the inherited descriptors away and counts the fork.
///
/// # Safety
///
/// Called only by the C library, in the child, before `fork` returns there: in any other process
/// it would take the descriptors of logs that are open. [`get_ready`], the only place that names
/// it, hands it to `pthread_atfork` and does not call it.
unsafe extern "C" fn in_child() {
    GENERATION.fetch_add(1, Ordering::Relaxed);
    let stand_in = STAND_IN.load(Ordering::Relaxed);
    for listed in &LISTED {
        let fd = listed.load(Ordering::Relaxed);
        if fd >= 0 {
            // SAFETY: dup3 takes plain numbers and may be called in a forked child. The listed
            // number is open here, because its guard still lives (invariant 2, kept by the
            // guard's owner).
            unsafe { libc::dup3(stand_in, fd, libc::O_CLOEXEC) };
        }
    }
}

fn errno() -> i32 {
    std::io::Error::last_os_error()
        .raw_os_error()
        .unwrap_or(libc::EIO)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use super::*;

    /// Runs `child` in a forked child and returns its exit code.
    fn in_fork(child: impl FnOnce() -> i32) -> i32 {
        // SAFETY: the child only calls what is allowed after a fork of a threaded process: the
        // closures below make system calls and read atomics.
        match unsafe { libc::fork() } {
            0 => {
                let code = child();
                // SAFETY: ends the child without running destructors of the test harness.
                unsafe { libc::_exit(code) }
            }
            pid => {
                let mut status = 0;
                // SAFETY: `status` outlives the call; `pid` is our child.
                assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
                assert!(libc::WIFEXITED(status), "status {status}");
                libc::WEXITSTATUS(status)
            }
        }
    }

    fn flock(fd: RawFd) -> i32 {
        // SAFETY: flock takes plain numbers.
        unsafe { libc::flock(fd, libc::LOCK_EX | libc::LOCK_NB) }
    }

    #[test]
    fn a_child_knows_it_is_one_and_the_parent_does_not() {
        // An origin made before the fork is foreign in the child and stays good in the parent.
        let origin = Origin::here().unwrap();
        assert_eq!(in_fork(|| i32::from(origin.is_forked_child())), 1);
        assert!(!origin.is_forked_child());
        assert!(origin.check().is_ok());
    }

    #[test]
    fn a_listed_lock_does_not_survive_in_a_child() {
        // Another test that starts a program holds every descriptor for a moment, so this one
        // needs a process without other tests.
        crate::io::contract::in_own_process("fork::tests::own_process_listed_lock");
    }

    #[test]
    #[ignore = "run by a_listed_lock_does_not_survive_in_a_child, in a process of its own"]
    fn own_process_listed_lock() {
        // A lock whose descriptor is listed is free once the parent closes it, although a child
        // still lives; one that is not listed stays taken.
        let path = std::env::temp_dir().join(format!("millrace-fork-{}", std::process::id()));
        for listed in [true, false] {
            let file = std::fs::File::create(&path).unwrap();
            assert_eq!(flock(file.as_raw_fd()), 0);
            let guard = listed.then(|| forsake(file.as_raw_fd()).unwrap());
            let (mut started, start) = std::io::pipe().unwrap();
            let (reader, writer) = std::io::pipe().unwrap();
            // SAFETY: the child only uses two pipes and exits.
            let pid = unsafe { libc::fork() };
            if pid == 0 {
                let mut byte = 0u8;
                // SAFETY: plain system calls; the parent's end of the pipe ends the wait.
                unsafe {
                    libc::close(writer.as_raw_fd());
                    libc::write(start.as_raw_fd(), (&raw const byte).cast(), 1);
                    libc::read(reader.as_raw_fd(), (&raw mut byte).cast(), 1);
                    libc::_exit(0)
                }
            }
            // Before the child begins, its handlers have not run yet.
            std::io::Read::read_exact(&mut started, &mut [0]).unwrap();
            drop(guard);
            drop(file);
            let again = std::fs::File::create(&path).unwrap();
            assert_eq!(flock(again.as_raw_fd()) == 0, listed);
            drop(writer);
            // SAFETY: `pid` is our child; no status is asked for.
            unsafe { libc::waitpid(pid, std::ptr::null_mut(), 0) };
        }
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn a_child_keeps_the_number_taken() {
        // The number of a listed descriptor stays open in the child, as something else.
        let (reader, _writer) = std::io::pipe().unwrap();
        let _guard = forsake(reader.as_raw_fd()).unwrap();
        let code = in_fork(|| {
            let mut byte = 0u8;
            // SAFETY: reads at most one byte into a live variable; an eventfd refuses that.
            let got = unsafe { libc::read(reader.as_raw_fd(), (&raw mut byte).cast(), 1) };
            i32::from(got < 0 && errno() == libc::EINVAL)
        });
        assert_eq!(code, 1);
    }
}
