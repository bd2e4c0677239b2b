//! How the owner of a backend sleeps, and how everybody else ends that: the [`Handshake`] with the
//! bell behind it, an eventfd that is rung only if the owner announced sleep.
//!
//! An owner that waits elsewhere, in an event loop, gives a descriptor of that loop instead: the
//! first call after each of its looks raises it.
//!
//! The bell may ring late, for a sleep that is over. That costs one look at the word.

use std::{
    os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd},
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use super::sys;
use crate::{
    error::{Error, Result},
    port::handshake::{Call, Handshake, NUDGED, WOKEN},
    sync::{Count, Wake, lock},
};

struct Helper(Arc<dyn Wake>);

impl std::fmt::Debug for Helper {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Helper")
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Signal {
    word: Handshake,
    bell: OwnedFd,
    /// Where an owner waits that does not sleep here.
    elsewhere: Mutex<Option<OwnedFd>>,
    is_elsewhere: AtomicBool,
    /// Who hears of everything that is ready to be collected, wherever the owner is.
    helper: OnceLock<Helper>,
    rung: Count,
    coalesced: Count,
}

impl Signal {
    pub(crate) fn new() -> Result<Self> {
        let bell = sys::event().map_err(|errno| Error::from_errno(errno.0, "eventfd"))?;
        Ok(Self {
            word: Handshake::default(),
            bell,
            elsewhere: Mutex::default(),
            is_elsewhere: AtomicBool::new(false),
            helper: OnceLock::new(),
            rung: Count::default(),
            coalesced: Count::default(),
        })
    }

    /// Readable while the bell rings.
    pub(crate) fn bell(&self) -> RawFd {
        self.bell.as_raw_fd()
    }

    /// From now on calls are told to `bell`, an eventfd, too; or no longer.
    pub(crate) fn tell(&self, bell: Option<BorrowedFd<'_>>) -> Result<()> {
        let copy = bell.map(|bell| bell.try_clone_to_owned()).transpose();
        let copy = copy.map_err(|error| Error::from_io(&error, "dup"))?;
        // A caller that misses this came before the owner's next look, which is after the change;
        // a caller that comes after that look sees this: the word orders them.
        self.is_elsewhere.store(copy.is_some(), Ordering::Relaxed);
        *lock(&self.elsewhere) = copy;
        Ok(())
    }

    /// From now on `helper` is woken by every nudge. The first one stays.
    pub(crate) fn help(&self, helper: Arc<dyn Wake>) {
        let _first = self.helper.set(Helper(helper));
    }

    /// Silences the bell. Only a sleep that is over may be silenced.
    pub(crate) fn silence(&self) {
        sys::lower(self.bell());
    }

    /// Something of the backend's own is ready to be collected.
    pub(crate) fn nudge(&self) {
        self.call(NUDGED);
        if let Some(helper) = self.helper.get() {
            helper.0.wake();
        }
    }

    /// Whether a wake came; forgets it, and nudges too, because the caller looks now.
    pub(crate) fn take(&self) -> bool {
        self.word.take() & WOKEN != 0
    }

    /// Says that the owner is about to sleep; false if somebody called in the meantime.
    pub(crate) fn announce(&self) -> bool {
        self.word.announce()
    }

    /// Sleeps on the bell after [`announce`](Self::announce), and on `other` if there is one; for
    /// backends without a ring.
    pub(crate) fn sleep(&self, other: Option<RawFd>, timeout: Option<Duration>) {
        sys::wait_readable([self.bell(), other.unwrap_or(-1)], timeout);
        self.silence();
    }

    /// The sleep is over. True if a wake ended it.
    pub(crate) fn retract(&self) -> bool {
        self.take()
    }

    fn call(&self, bit: u32) {
        match self.word.call(bit) {
            Call::Ring => {
                self.rung.up();
                sys::raise(self.bell());
            }
            Call::First if self.is_elsewhere.load(Ordering::Relaxed) => {
                self.rung.up();
                if let Some(bell) = &*lock(&self.elsewhere) {
                    sys::raise(bell.as_raw_fd());
                }
            }
            Call::First | Call::Again => self.coalesced.up(),
        }
    }

    /// How often a sleep was ended, and how often that was not needed.
    pub(crate) fn counted(&self) -> (u64, u64) {
        (self.rung.get(), self.coalesced.get())
    }
}

impl Wake for Signal {
    fn wake(&self) {
        self.call(WOKEN);
    }
}
