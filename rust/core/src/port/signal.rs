//! The descriptor behind the bell, and its twin for loom.

#[cfg(not(loom))]
pub(super) use self::eventfd::Signal;
#[cfg(loom)]
pub(super) use self::twin::Signal;

#[cfg(not(loom))]
mod eventfd {
    use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

    use crate::error::{Error, Result};

    /// A nonblocking eventfd.
    pub(in crate::port) struct Signal(OwnedFd);

    impl Signal {
        pub(in crate::port) fn new() -> Result<Self> {
            // SAFETY: a plain system call without pointers; the result is checked below.
            let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
            if fd < 0 {
                let error = std::io::Error::last_os_error();
                return Err(Error::from_io(&error, "eventfd"));
            }
            // SAFETY: the kernel just made this descriptor and nobody else knows it.
            Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
        }

        pub(in crate::port) fn raise(&self) {
            let one = 1_u64.to_ne_bytes();
            // SAFETY: the pointer and length describe `one`, which outlives the call. The counter
            // cannot overflow: `Doorbell` raises once per answer.
            unsafe { libc::write(self.fd(), one.as_ptr().cast(), one.len()) };
        }

        pub(in crate::port) fn lower(&self) {
            let mut count = [0_u8; 8];
            // SAFETY: the pointer and length describe `count`, which outlives the call. EAGAIN
            // (nothing to read) is no news: the drain looks at its queue in any case.
            unsafe { libc::read(self.fd(), count.as_mut_ptr().cast(), count.len()) };
        }

        pub(in crate::port) fn fd(&self) -> RawFd {
            self.0.as_raw_fd()
        }

        pub(in crate::port) fn as_fd(&self) -> BorrowedFd<'_> {
            self.0.as_fd()
        }
    }
}

#[cfg(loom)]
mod twin {
    use crate::{
        error::Result,
        sync::{Condvar, Mutex, lock},
    };

    /// What an eventfd is to those who use it: a counter that can be waited for.
    pub(in crate::port) struct Signal {
        count: Mutex<u64>,
        readable: Condvar,
    }

    impl Signal {
        pub(in crate::port) fn new() -> Result<Self> {
            Ok(Self {
                count: Mutex::new(0),
                readable: Condvar::new(),
            })
        }

        pub(in crate::port) fn raise(&self) {
            *lock(&self.count) += 1;
            self.readable.notify_one();
        }

        pub(in crate::port) fn lower(&self) {
            *lock(&self.count) = 0;
        }

        pub(in crate::port) fn wait(&self) {
            let mut count = lock(&self.count);
            while *count == 0 {
                count = self
                    .readable
                    .wait(count)
                    .unwrap_or_else(std::sync::PoisonError::into_inner);
            }
        }
    }
}
