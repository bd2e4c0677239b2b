//! The kernel's ring: made in steps of modesty, entered with care.
//!
//! # Always true
//!
//! 1. A tuned ring is entered only by the thread that made it (`SINGLE_ISSUER`); the owner asks
//!    [`Ring::is_here`] first.
//! 2. The maps are not inherited by a forked child, and the descriptor is replaced there.
//! 3. The kernel keeps completions that find no room (`NODROP`); entering flushes them.

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd, RawFd},
    thread::ThreadId,
    time::Duration,
};

use io_uring::{EnterFlags, IoUring, cqueue, squeue, types};

use crate::{
    error::{Error, Result},
    fork::{self, Guard},
};

/// Smallest ring asked for when memory is short.
const ENTRIES_MIN: u32 = 64;

/// Completion entries for each submission entry: flights, cancels and the bell.
const COMPLETIONS_PER_ENTRY: u32 = 4;

/// How the ring is made.
#[derive(Debug, Clone, Copy)]
pub(super) struct Setup {
    /// Submission entries asked for; fewer if memory is short.
    pub entries: u32,
    /// Leave out what only newer kernels have.
    pub plain: bool,
}

/// How long entering may take.
#[derive(Debug, Clone, Copy)]
pub(super) enum Patience {
    /// Submit, run what is left to do, come back.
    None,
    /// Until something completes, or for this long.
    For(Duration),
    /// Until something completes.
    Endless,
}

impl Patience {
    /// From what is left of a wait; nothing is for ever.
    pub(super) fn of(left: Option<Duration>) -> Self {
        left.map_or(Self::Endless, Self::For)
    }
}

/// See the module.
pub(super) struct Ring {
    /// Declared, and so dropped, before the descriptor it speaks of.
    _forsaken: Guard,
    kernel: IoUring,
    maker: ThreadId,
    plain: bool,
    holds_files: bool,
    /// An eventfd is raised for each answer.
    notifies: bool,
}

impl Ring {
    /// Makes a ring for the calling thread.
    pub(super) fn new(setup: Setup) -> io::Result<Self> {
        let (ring, plain) = match build_tuned(setup) {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => (build_plain(setup)?, true),
            other => (other?, setup.plain),
        };
        let forsaken =
            fork::forsake(ring.as_raw_fd()).map_err(|error| io::Error::other(error.to_string()))?;
        Ok(Self {
            _forsaken: forsaken,
            kernel: ring,
            maker: std::thread::current().id(),
            plain,
            holds_files: false,
            notifies: false,
        })
    }

    /// Whether the calling thread may enter.
    pub(super) fn is_here(&self) -> bool {
        self.plain || self.maker == std::thread::current().id()
    }

    pub(super) fn is_plain(&self) -> bool {
        self.plain
    }

    pub(super) fn kernel(&self) -> &IoUring {
        &self.kernel
    }

    /// Whether waiting in the ring with nothing in flight would be shown as waiting for a disk.
    pub(super) fn idles_visibly(&self) -> bool {
        self.plain || !self.kernel.params().is_feature_no_iowait()
    }

    /// Puts an entry in the queue; false if the queue is full.
    ///
    /// # Safety
    ///
    /// What the entry points at stays valid, and unmoved, until its last answer was reaped.
    pub(super) unsafe fn stage(&mut self, entry: &squeue::Entry) -> bool {
        // SAFETY: passed on to our caller.
        unsafe { self.kernel.submission().push(entry) }.is_ok()
    }

    /// How many entries the queue still takes.
    pub(super) fn room(&mut self) -> usize {
        let queue = self.kernel.submission();
        queue.capacity() - queue.len()
    }

    /// Whether the kernel has not taken all that was staged.
    pub(super) fn has_staged(&mut self) -> bool {
        !self.kernel.submission().is_empty()
    }

    /// Whether the kernel says that entering would bring answers.
    pub(super) fn has_hint(&mut self) -> bool {
        let queue = self.kernel.submission();
        queue.taskrun() || queue.cq_overflow()
    }

    /// Whether answers found no room and wait in the kernel.
    pub(super) fn has_overflowed(&mut self) -> bool {
        self.kernel.submission().cq_overflow()
    }

    /// Whether answers wait to be taken.
    pub(super) fn has_answers(&mut self) -> bool {
        !self.kernel.completion().is_empty()
    }

    /// Takes one answer.
    pub(super) fn reap(&mut self) -> Option<cqueue::Entry> {
        self.kernel.completion().next()
    }

    /// Submits what is staged, runs what the kernel left to do, and waits as told. `idle`: only the
    /// bell can end the wait, so it is nobody's disk that is waited for.
    pub(super) fn enter(&mut self, patience: Patience, idle: bool) -> io::Result<()> {
        let staged = self.kernel.submission().len() as u32;
        let mut flags = EnterFlags::GETEVENTS;
        if idle && !self.idles_visibly() {
            flags |= EnterFlags::NO_IOWAIT;
        }
        let submitter = self.kernel.submitter();
        let answer = if let Patience::For(limit) = patience {
            let limit = types::Timespec::from(limit);
            let arguments = types::SubmitArgs::new().timespec(&limit);
            let flags = (flags | EnterFlags::EXT_ARG).bits();
            // SAFETY: the arguments live during the call and are of the type the flag names;
            // what is staged was vouched for by the callers of `stage`.
            unsafe { submitter.enter(staged, 1, flags, Some(&arguments)) }
        } else {
            let want = u32::from(matches!(patience, Patience::Endless));
            // SAFETY: no arguments; what is staged was vouched for by the callers of `stage`.
            unsafe { submitter.enter::<libc::sigset_t>(staged, want, flags.bits(), None) }
        };
        match answer {
            // Without this, a kernel that takes nothing would be asked for ever.
            Ok(0) if staged > 0 => Err(io::Error::from_raw_os_error(libc::EAGAIN)),
            other => other.map(drop),
        }
    }

    /// Has the kernel keep `fd` open until this ring, and every request in it, is gone.
    pub(super) fn hold(&mut self, fd: RawFd) -> Result<()> {
        self.let_go();
        let registered = self.kernel.submitter().register_files(&[fd]);
        registered.map_err(|error| Error::from_io(&error, "io_uring_register of a file"))?;
        self.holds_files = true;
        Ok(())
    }

    /// Has the kernel raise `bell`, an eventfd, for each answer; or no longer any. For every answer,
    /// not only for those of the kernel's workers: a direct write is answered by an interrupt.
    pub(super) fn notify(&mut self, bell: Option<BorrowedFd<'_>>) -> Result<()> {
        let failed = |error| Error::from_io(&error, "io_uring_register of an eventfd");
        let submitter = self.kernel.submitter();
        if std::mem::take(&mut self.notifies) {
            submitter.unregister_eventfd().map_err(failed)?;
        }
        if let Some(bell) = bell {
            submitter
                .register_eventfd(bell.as_raw_fd())
                .map_err(failed)?;
            self.notifies = true;
        }
        Ok(())
    }

    /// Gives back what [`hold`](Self::hold) took. False if the kernel refused.
    pub(super) fn let_go(&mut self) -> bool {
        if self.holds_files {
            self.holds_files = self.kernel.submitter().unregister_files().is_err();
        }
        !self.holds_files
    }
}

fn build_tuned(setup: Setup) -> io::Result<IoUring> {
    if setup.plain {
        return build_plain(setup);
    }
    halving(setup.entries, |entries| {
        IoUring::builder()
            .dontfork()
            .setup_cqsize(entries * COMPLETIONS_PER_ENTRY)
            .setup_submit_all()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_taskrun_flag()
            .build(entries)
    })
}

fn build_plain(setup: Setup) -> io::Result<IoUring> {
    halving(setup.entries, |entries| {
        IoUring::builder()
            .dontfork()
            .setup_cqsize(entries * COMPLETIONS_PER_ENTRY)
            .build(entries)
    })
}

/// Asks for less while the kernel says that memory (which may be a limit on locked memory) is
/// short.
fn halving<T>(entries: u32, mut build: impl FnMut(u32) -> io::Result<T>) -> io::Result<T> {
    let mut entries = entries;
    loop {
        match build(entries) {
            Err(error)
                if error.raw_os_error() == Some(libc::ENOMEM) && entries / 2 >= ENTRIES_MIN =>
            {
                entries /= 2;
            }
            other => return other,
        }
    }
}

#[cfg(test)]
impl Ring {
    /// A ring that refuses every operation but these.
    pub(super) fn restricted(operations: &[u8]) -> Self {
        use io_uring::register::Restriction;

        let kernel = IoUring::builder().setup_r_disabled().build(8).unwrap();
        let mut allowed: Vec<Restriction> = operations
            .iter()
            .map(|operation| Restriction::sqe_op(*operation))
            .collect();
        let submitter = kernel.submitter();
        submitter.register_restrictions(&mut allowed).unwrap();
        submitter.register_enable_rings().unwrap();
        Self {
            _forsaken: fork::forsake(kernel.as_raw_fd()).unwrap(),
            kernel,
            maker: std::thread::current().id(),
            plain: true,
            holds_files: false,
            notifies: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_memory_makes_the_ring_smaller_down_to_a_bound() {
        // Half as much is asked for until it fits or would be too small to be of use.
        let out_of_memory = || io::Error::from_raw_os_error(libc::ENOMEM);
        let mut asked = Vec::new();
        let got = halving(512, |entries| {
            asked.push(entries);
            if entries > 128 {
                Err(out_of_memory())
            } else {
                Ok(entries)
            }
        });
        assert_eq!((got.unwrap(), &asked[..]), (128, &[512, 256, 128][..]));
        asked.clear();
        let refused = halving(256, |entries| {
            asked.push(entries);
            Err::<(), _>(out_of_memory())
        });
        assert_eq!(refused.unwrap_err().raw_os_error(), Some(libc::ENOMEM));
        assert_eq!(asked, [256, 128, 64]);
    }
}
