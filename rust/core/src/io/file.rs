//! Files and directories as the contract sees them: a shared handle that stays open while any
//! request in flight holds it, so that a descriptor's number is never reused under the kernel.

use std::{
    os::fd::{AsRawFd, OwnedFd, RawFd},
    sync::{Arc, OnceLock, Weak},
};

use super::{stash::Stash, sys};
use crate::{
    error::{Error, Result},
    fork::{self, Guard},
};

/// An open file or directory.
#[derive(Debug, Clone)]
pub struct File(Arc<Handle>);

#[derive(Debug)]
enum Handle {
    Os {
        /// Declared, and so dropped, before the descriptor it speaks of.
        forsaken: OnceLock<Guard>,
        /// Whether it bypasses the page cache; asked for once.
        direct: OnceLock<bool>,
        /// See [`File::is_written`].
        written: OnceLock<()>,
        /// Of a socket.
        stash: Option<Arc<Stash>>,
        fd: OwnedFd,
    },
    Virtual(u64),
}

impl File {
    /// Wraps a descriptor of the operating system.
    pub fn from_fd(fd: OwnedFd) -> Self {
        Self::wrap(fd, None)
    }

    fn wrap(fd: OwnedFd, stash: Option<Arc<Stash>>) -> Self {
        let (forsaken, direct) = (OnceLock::new(), OnceLock::new());
        let written = OnceLock::new();
        Self(Arc::new(Handle::Os {
            forsaken,
            direct,
            written,
            stash,
            fd,
        }))
    }

    /// As [`duplicate`](Self::duplicate), of a socket: what comes to receives that were given up
    /// goes to `stash`, and from there to the next.
    pub fn duplicate_socket(fd: RawFd, stash: Arc<Stash>) -> Result<Self> {
        let copy = sys::duplicate(fd).map_err(|errno| Error::from_errno(errno.0, "dup"))?;
        Ok(Self::wrap(copy, Some(stash)))
    }

    /// Where the bytes wait that nobody has taken.
    pub fn stash(&self) -> Option<&Arc<Stash>> {
        match &*self.0 {
            Handle::Os { stash, .. } => stash.as_ref(),
            Handle::Virtual(_) => None,
        }
    }

    /// What leads to this file as long as somebody else holds it.
    pub fn downgrade(&self) -> WeakFile {
        WeakFile(Arc::downgrade(&self.0))
    }

    /// A descriptor of our own for what `fd` is open on, so that its number cannot be reused
    /// under the kernel when the caller closes his.
    pub fn duplicate(fd: RawFd) -> Result<Self> {
        let copy = sys::duplicate(fd);
        copy.map(Self::from_fd)
            .map_err(|errno| Error::from_errno(errno.0, "dup"))
    }

    /// The descriptor itself, if nobody else holds the file and it stays with no lock.
    pub(crate) fn into_fd(self) -> Option<OwnedFd> {
        match Arc::into_inner(self.0)? {
            Handle::Os { fd, .. } => Some(fd),
            Handle::Virtual(_) => None,
        }
    }

    /// Wraps a number that only the backend which made it understands.
    pub fn from_number(number: u64) -> Self {
        Self(Arc::new(Handle::Virtual(number)))
    }

    /// The descriptor, if the operating system made this file.
    pub fn fd(&self) -> Option<RawFd> {
        match &*self.0 {
            Handle::Os { fd, .. } => Some(fd.as_raw_fd()),
            Handle::Virtual(_) => None,
        }
    }

    /// Whether it bypasses the page cache.
    pub fn is_direct(&self) -> bool {
        match &*self.0 {
            Handle::Os { direct, fd, .. } => *direct.get_or_init(|| {
                let flags = sys::flags(fd.as_raw_fd());
                flags.is_ok_and(|flags| flags & libc::O_DIRECT != 0)
            }),
            Handle::Virtual(_) => false,
        }
    }

    /// For tests of what is decided by it.
    #[cfg(test)]
    pub(crate) fn claim_direct(&self) {
        if let Handle::Os { direct, .. } = &*self.0 {
            let _ = direct.set(true);
        }
    }

    /// All of its space was written to before. Who knows that says so before the file is used.
    pub fn note_written(&self) {
        if let Handle::Os { written, .. } = &*self.0 {
            let _ = written.set(());
        }
    }

    /// Whether all of its space is known to have been written to: a durable write then changes
    /// bytes only, and none of what the filesystem knows about them.
    pub fn is_written(&self) -> bool {
        match &*self.0 {
            Handle::Os { written, .. } => written.get().is_some(),
            Handle::Virtual(_) => false,
        }
    }

    /// How many clones of this handle there are: how a simulated backend learns of a close.
    #[cfg(any(test, feature = "testing"))]
    pub fn holders(&self) -> usize {
        Arc::strong_count(&self.0)
    }

    /// The number, if a simulated backend made this file.
    pub fn number(&self) -> Option<u64> {
        match &*self.0 {
            Handle::Os { .. } => None,
            Handle::Virtual(number) => Some(*number),
        }
    }

    /// From now on a forked child does not keep this open, and with it its lock.
    pub(crate) fn forsake_in_children(&self) -> Result<()> {
        if let Handle::Os { forsaken, fd, .. } = &*self.0
            && forsaken.get().is_none()
        {
            // Who loses a race drops a second entry for the same descriptor: harmless.
            let _ = forsaken.set(fork::forsake(fd.as_raw_fd())?);
        }
        Ok(())
    }
}

/// Does not keep a file open.
#[derive(Debug, Clone, Default)]
pub struct WeakFile(Weak<Handle>);

impl WeakFile {
    /// The file, if somebody still holds it.
    pub fn upgrade(&self) -> Option<File> {
        self.0.upgrade().map(File)
    }

    /// Whether it was closed.
    pub fn is_gone(&self) -> bool {
        self.0.strong_count() == 0
    }
}

/// Whether a file must exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Open {
    /// It must be there.
    Existing,
    /// It must not be there; it is made with mode 0600.
    New,
    /// Either.
    Any,
}

/// How a file is opened. Always close-on-exec and never through a symbolic link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Access {
    /// Must it exist.
    pub open: Open,
    /// Open for writing too.
    pub write: bool,
    /// Bypass the page cache (`O_DIRECT`); `Unsupported` where the filesystem does not say,
    /// through `STATX_DIOALIGN`, that it really does.
    pub direct: bool,
}

impl Access {
    /// An existing file, to read.
    pub const READ: Self = Self {
        open: Open::Existing,
        write: false,
        direct: false,
    };
    /// An existing file, to read and write.
    pub const WRITE: Self = Self {
        open: Open::Existing,
        write: true,
        direct: false,
    };
    /// A new file, to read and write.
    pub const CREATE: Self = Self {
        open: Open::New,
        write: true,
        direct: false,
    };

    /// The same, bypassing the page cache.
    #[must_use]
    pub const fn direct(self, direct: bool) -> Self {
        Self { direct, ..self }
    }
}
