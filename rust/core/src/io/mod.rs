//! The I/O contract: what the engine asks of a disk, and what every backend owes.
//!
//! A [`Backend`] takes [`Request`]s and later gives back [`Finished`] ones. It is a state machine
//! turned by its owner: one owner, one thread at a time. Three backends answer the contract: the
//! kernel's ring (`uring`), plain system calls (`threads`), and a simulated disk (`sim`). The log
//! runs unchanged on all three.
//!
//! ```text
//! owner --- submit(request) ---> backend ---> kernel
//! owner <-- poll(out, wait) ---- backend <--- kernel
//! any thread --- Wake::wake --------^   (ends a wait early)
//! ```
//!
//! # Always true
//!
//! 1. A request owns its file and its buffer until the kernel's last word about it. Nothing the
//!    kernel may still touch is freed: not on error, not on shutdown, not on a panic.
//! 2. Every submitted request is finished exactly once, with its buffer if it had one.
//! 3. A transfer is finished when all bytes are, or with the error that stopped it. Short
//!    transfers, `EINTR` and `EAGAIN` never reach the owner; a write that makes no progress does.
//! 4. A `Write` with `sync` answers only when the bytes are durable. A failed sync is never
//!    retried: the kernel may have dropped the pages it could not write.
//! 5. The first poll after `wake` returns without waiting, however the two race.
//!
//! Nothing here orders two requests in flight at the same time; owners wait for an answer first.

use std::{
    os::fd::{BorrowedFd, RawFd},
    sync::Arc,
    time::Duration,
};

use crate::{
    clock::Mono,
    error::{Error, ErrorKind, Result},
};

pub use crate::sync::Wake;

mod blocking;
mod buffer;
#[cfg(any(test, feature = "testing"))]
pub mod contract;
pub(crate) mod execute;
#[cfg(any(test, feature = "testing"))]
pub mod faulty;
mod file;
#[cfg(any(test, feature = "testing"))]
mod kind;
#[cfg(any(test, feature = "testing"))]
mod memory;
#[cfg(any(test, feature = "testing"))]
pub mod metered;
pub(crate) mod program;
mod request;
pub(crate) mod signal;
mod stash;
pub(crate) mod sys;
pub(crate) mod tally;
pub(crate) mod vectors;
pub(crate) mod worker;

pub use blocking::{Blocking, Wanted};
pub use buffer::{BLOCK, Buffer, HUGE};
pub use execute::{Alignment, Durability, direct_alignment};
pub use file::{Access, File, Open, WeakFile};
#[cfg(any(test, feature = "testing"))]
pub use kind::Kind;
#[cfg(any(test, feature = "testing"))]
pub use memory::MemoryDisk;
pub(crate) use request::total;
pub use request::{Answer, Cancelled, Class, Finished, Op, Request, Status, Token};
pub use stash::Stash;
pub(crate) use sys::wake_on_time;

/// How long [`Backend::poll`] may wait when nothing has finished yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// Not at all.
    Never,
    /// Until something finishes, a wake, or this instant of the backend's clock.
    Until(Mono),
    /// Until something finishes or a wake.
    Forever,
}

impl Wait {
    /// How long a sleep that begins `now` may last; `None` is for ever.
    pub(crate) fn left(self, now: Mono) -> Option<Duration> {
        match self {
            Self::Never => Some(Duration::ZERO),
            Self::Until(until) => Some(until.since(now)),
            Self::Forever => None,
        }
    }
}

/// What it took to carry requests out, counted since a backend was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Effort {
    /// System calls that entered the ring.
    pub enters: u64,
    /// Times a wait was ended from outside by ringing the bell.
    pub wakes_rung: u64,
    /// Wakes that found the owner awake, or woken already.
    pub wakes_coalesced: u64,
    /// Times the kernel said that answers found no room.
    pub overflows: u64,
    /// Submissions repeated because they were interrupted or told to try again.
    pub retried: u64,
    /// Answers that moved less than was asked for.
    pub short: u64,
}

/// What is left behind by [`Backend::shutdown`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Leftovers {
    /// Requests the kernel did not answer within the budget; their memory is leaked on purpose.
    pub requests: u64,
    /// Bytes of those buffers.
    pub bytes: u64,
}

impl Leftovers {
    /// Counts `more` too.
    pub(crate) fn add(&mut self, more: Self) {
        self.requests += more.requests;
        self.bytes += more.bytes;
    }
}

/// A disk, seen by one owner. See the module for what every implementation owes.
pub trait Backend: Send {
    /// Takes a request, or gives it back when the table is full (poll first, then try again).
    /// Never blocks, except for a backend that executes a request on the turning thread: that
    /// one does it in `poll`, not here.
    fn submit(&mut self, request: Request) -> Result<(), Request>;

    /// Asks that the request with `token` be given up. Its own answer still comes, and is the only
    /// thing that ends it: a full success that was quicker stays one, and what moved only a part
    /// is answered with `ECANCELED`. Tokens of requests in flight must differ for this.
    fn cancel(&mut self, token: Token) -> Cancelled {
        let _ = token;
        Cancelled::TooLate
    }

    /// Nobody is there any more for what the receive with `token` brings, not even for a success:
    /// all of it goes to the [`Stash`] of its socket before the next receive there begins. False:
    /// the request is not where that could be done, and a success of it is the owner's. What a
    /// receive had moved when it was answered with an error goes there in any case.
    fn disown(&mut self, token: Token) -> bool {
        let _ = token;
        false
    }

    /// Moves finished requests to the end of `out`; waits as told if there are none yet.
    fn poll(&mut self, out: &mut Vec<Finished>, wait: Wait) -> Result<()>;

    /// Something that ends a wait of this backend from another thread.
    fn waker(&self) -> Arc<dyn Wake>;

    /// The time this backend's waits are measured in.
    fn now(&self) -> Mono;

    /// Requests submitted and not yet finished.
    fn in_flight(&self) -> usize;

    /// How many requests it takes before it gives one back.
    fn capacity(&self) -> usize {
        usize::MAX
    }

    /// When a poll would find something to do that no descriptor tells of, such as a request that
    /// is to be tried again after a pause.
    fn due(&self) -> Option<Mono> {
        None
    }

    /// Makes what the thread that turns it needs, by that thread: what fails here has accepted
    /// nothing yet.
    fn prepare(&mut self) -> Result<()> {
        Ok(())
    }

    /// What it took so far to carry requests out.
    fn effort(&self) -> Effort {
        Effort::default()
    }

    /// Descriptors that an owner who waits elsewhere watches beside the bell of
    /// [`notify`](Self::notify): readable when a poll would find something.
    fn watched(&self) -> Vec<RawFd> {
        Vec::new()
    }

    /// Raises `bell`, an eventfd, whenever something finishes or the backend was woken, so that a
    /// thread that sleeps elsewhere learns that polling is worth it; `None` ends that. What
    /// finished before the call is not told. Only a backend that any thread may turn offers it.
    fn notify(&mut self, bell: Option<BorrowedFd<'_>>) -> Result<()> {
        let _ = bell;
        Err(Error::new(
            ErrorKind::Unsupported,
            "this backend cannot wake an event loop",
        ))
    }

    /// Wakes `helper` whenever a thread of the backend's own has finished something, also while
    /// nobody sleeps in a poll. Once, before the first request.
    fn answer_to(&mut self, helper: Arc<dyn Wake>) {
        let _ = helper;
    }

    /// The polls from now on are made by a thread that must not wait, with [`Wait::Never`]: what
    /// might wait is left for a poll that may.
    fn spare_caller(&mut self, yes: bool) {
        let _ = yes;
    }

    /// Whether the last poll left something for one that may wait.
    fn has_left_over(&self) -> bool {
        false
    }

    /// Keeps `lock` open for as long as the kernel may still carry out writes of this backend,
    /// even after the process died. A ring registers the descriptor with itself.
    fn hold(&mut self, lock: &File) -> Result<()>;

    /// Lets go of what [`hold`](Self::hold) was given. Called after the last request finished.
    fn let_go(&mut self);

    /// Cancels what can be cancelled, waits up to `budget` (`None`: as long as it takes) for the
    /// kernel's last word, and leaks what did not answer.
    fn shutdown(&mut self, budget: Option<Duration>) -> Leftovers;
}

/// Makes backends. One value stands for one world: the machine's disk, or a simulated one.
pub trait Disk: Send + Sync {
    /// A new backend for one owner.
    fn backend(&self) -> Result<Box<dyn Backend>>;
}
