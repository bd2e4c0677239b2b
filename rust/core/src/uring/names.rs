//! What the ring does about names and descriptors for a program: what the kernel can do at once.
//!
//! ```text
//! open    from the kernel's cache of names, if it makes nothing; else a thread
//! stat    the same way, to look at what was found; an open file is looked at without the ring
//! close   of a file that was only read and still has a name; else a thread
//! ```
//!
//! The kernel would do more, and more of these, by workers of its own. They are not faster than
//! threads of ours, end with the thread that submitted, and an opening that they finish after
//! everybody gave it up puts a descriptor into the process that nobody knows. So an opening asks
//! for what is in the cache (`RESOLVE_CACHED`), and the kernel answers while it is entered.
//!
//! A look that asks nobody is as good as any on a filesystem that has a device of its own. Others
//! may have to ask a server, and are left to threads, for closing too.
//!
//! # Always true
//!
//! 1. A path, and what else a submission points at, has its own place on the heap, and stays there
//!    until the kernel's last word: the table owns it with the flight.
//! 2. A descriptor belongs to the flight until the kernel has taken it, and is closed once.
//! 3. What the ring did not do is done by a thread, and nothing of it was done before.

use std::{
    ffi::CString,
    os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd, RawFd},
};

use io_uring::{Probe, opcode, squeue, types};

use super::{
    Key, UringBackend,
    flight::{Flight, Step, Way},
    ring::{Patience, Ring},
};
use crate::{
    error::Result,
    io::{
        Answer, Class, File, Finished, Op, Request, Token,
        execute::told,
        program::{about, cancelled, settle, status_of, terminated},
        sys::{self, Errno, Sys},
        worker,
    },
};

const HERE: types::Fd = types::Fd(libc::AT_FDCWD);

/// What the ring of this kernel is asked to do about names.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Offer {
    pub open: bool,
    pub close: bool,
}

impl Offer {
    /// Looks at what the kernel says that it offers, and tries it: a ring may be restricted.
    pub(super) fn of(ring: &mut Ring, offer: &Probe) -> Self {
        let mut allows = |code, entry: squeue::Entry, expected: i32| {
            offer.is_supported(code) && answer_to(ring, &entry) == Some(-expected)
        };
        // Both are refused for what they are given, before anything is done.
        let nothing = opcode::OpenAt2::new(HERE, c"".as_ptr(), &raw const FROM_CACHE).build();
        let nobody = opcode::Close::new(types::Fd(-1)).build();
        Self {
            open: allows(opcode::OpenAt2::CODE, nothing, libc::ENOENT),
            close: allows(opcode::Close::CODE, nobody, libc::EBADF),
        }
    }

    fn has(self, op: &Op) -> bool {
        match op {
            Op::OpenPath { .. } | Op::StatPath { .. } => self.open,
            Op::Close { .. } | Op::Stat { .. } => self.close,
            _ => false,
        }
    }
}

static FROM_CACHE: types::OpenHow = from_cache(libc::O_RDONLY);

/// Open what the kernel has in its cache, or say `EAGAIN`.
const fn from_cache(flags: i32) -> types::OpenHow {
    types::OpenHow::new()
        .flags((flags | libc::O_CLOEXEC).cast_unsigned() as u64)
        .resolve(libc::RESOLVE_CACHED)
}

/// Runs one entry by itself.
fn answer_to(ring: &mut Ring, entry: &squeue::Entry) -> Option<i32> {
    // SAFETY: the entries of `Offer::of` point at what lives for ever, or at nothing.
    let staged = unsafe { ring.stage(entry) };
    let limit = std::time::Duration::from_secs(5);
    ring.enter(Patience::For(limit), false).ok()?;
    let answer = ring.reap()?;
    staged.then(|| answer.result())
}

/// See the module.
#[derive(Debug)]
pub(super) struct Named {
    /// What was asked for; a closing is its errand.
    op: Option<Op>,
    errand: Errand,
}

/// What is submitted, and what it points at.
#[derive(Debug)]
enum Errand {
    Open {
        place: CString,
        how: types::OpenHow,
    },
    Close {
        /// Until the kernel has taken it.
        fd: Option<OwnedFd>,
    },
}

/// Sorts a request that is for threads unless it can be done at once.
pub(super) fn sort(request: Request, offer: Offer) -> Way {
    if request.class != Class::Program || !offer.has(&request.op) {
        return Way::Calls(request);
    }
    let Request { token, class, op } = request;
    let answered = |result| {
        Way::Answered(Finished {
            token,
            buffer: None,
            result,
        })
    };
    let (how, path) = match &op {
        Op::OpenPath { path, flags, .. } if opens_at_once(*flags) => {
            (from_cache(*flags | libc::O_NOCTTY), path)
        }
        Op::StatPath { path } => (from_cache(libc::O_PATH), path),
        Op::Stat { file } => {
            return match file.fd().and_then(sys::status_at_once) {
                Some(status) => answered(Ok(status_of(&status))),
                None => Way::Calls(Request { token, class, op }),
            };
        }
        Op::Close { file } if closes_at_once(file) => return sort_close(token, class, op),
        _ => return Way::Calls(Request { token, class, op }),
    };
    match terminated(path) {
        Ok(place) => {
            let errand = Errand::Open { place, how };
            let op = Some(op);
            Way::Ring(Flight::of_name(
                token,
                class,
                Box::new(Named { op, errand }),
            ))
        }
        Err(error) => answered(Err(error)),
    }
}

/// Takes the descriptor, if nobody else holds the file.
fn sort_close(token: Token, class: Class, op: Op) -> Way {
    let Op::Close { file } = op else {
        return Way::Calls(Request { token, class, op });
    };
    let Some(fd) = file.into_fd() else {
        return Way::Answered(Finished {
            token,
            buffer: None,
            result: Ok(Answer::Done),
        });
    };
    let errand = Errand::Close { fd: Some(fd) };
    let named = Box::new(Named { op: None, errand });
    Way::Ring(Flight::of_name(token, class, named))
}

/// Whether an opening waits for nobody and makes nothing. Without `O_NONBLOCK` a pipe waits for its
/// other end, which the ring does not do.
fn opens_at_once(flags: i32) -> bool {
    let makes = libc::O_CREAT | libc::O_TRUNC | (libc::O_TMPFILE & !libc::O_DIRECTORY);
    let waits = flags & libc::O_NONBLOCK == 0 && !planted!("uring_opens_for_waiters");
    !waits && flags & makes == 0
}

/// Whether the last close of `file` has nothing to write, to free, or to tell a server.
fn closes_at_once(file: &File) -> bool {
    let Some(fd) = file.fd() else {
        return false;
    };
    let reads = sys::flags(fd).is_ok_and(|flags| flags & libc::O_ACCMODE == libc::O_RDONLY);
    reads && sys::status_at_once(fd).is_some_and(|status| status.stx_nlink > 0)
}

impl UringBackend {
    /// The ring could not do it without waiting.
    pub(super) fn leave_to_threads(&mut self, key: Key) {
        let request = self.let_off(key).and_then(Flight::into_request);
        match request {
            Some(request) if self.closed => self.ready.push(worker::refused(request)),
            Some(request) => self.call(request),
            None => {}
        }
    }
}

impl Named {
    /// What a thread is asked for in its place.
    pub(super) fn into_op(self) -> Option<Op> {
        match self.errand {
            Errand::Close { fd } => fd.map(|fd| Op::Close {
                file: File::from_fd(fd),
            }),
            Errand::Open { .. } => self.op,
        }
    }

    /// The submission. It points at what is inside, which stays where it is.
    pub(super) fn entry(&self) -> squeue::Entry {
        match &self.errand {
            Errand::Open { place, how } => {
                opcode::OpenAt2::new(HERE, place.as_ptr(), &raw const *how).build()
            }
            Errand::Close { fd } => {
                let fd = fd.as_ref().map_or(-1, AsRawFd::as_raw_fd);
                opcode::Close::new(types::Fd(fd)).build()
            }
        }
    }

    /// Takes the kernel's answer. `given_up`: nobody wants it to go on.
    pub(super) fn on_answer(&mut self, answer: i32, given_up: bool) -> Step {
        let answered = match answer {
            0.. => Ok(answer),
            refused => Err(Errno(-refused)),
        };
        let begun = answered != Err(Errno(libc::ECANCELED));
        match &mut self.errand {
            _ if !begun && given_up => Step::Over(Err(cancelled(0))),
            Errand::Open { .. } => self.on_opened(answered.map(adopt)),
            Errand::Close { .. } if answer > 0 => {
                Step::Impossible("a count where none was asked for")
            }
            Errand::Close { .. } if !begun => Step::Calls,
            Errand::Close { fd } => {
                // Whatever the kernel says about the closing, the number is no longer ours.
                if !planted!("uring_closes_twice") {
                    let _number = fd.take().map(IntoRawFd::into_raw_fd);
                }
                Step::Over(told(answered, "close").map(|_| Answer::Done))
            }
        }
    }

    /// What was found, or that nothing is there; everything else is for a thread to find out: it is
    /// not in the cache, somebody has a lease on it, nobody is at the other end of a pipe.
    fn on_opened(&self, opened: Sys<OwnedFd>) -> Step {
        match (&self.op, opened) {
            (Some(Op::OpenPath { path, flags, .. }), Ok(fd)) => {
                let flags = if planted!("uring_open_unsettled") {
                    0
                } else {
                    *flags
                };
                Step::Over(settle(fd, path, flags).map(Answer::File))
            }
            (Some(Op::StatPath { .. }), Ok(fd)) => match sys::status_at_once(fd.as_raw_fd()) {
                Some(status) => Step::Over(Ok(status_of(&status))),
                None => Step::Calls,
            },
            (Some(Op::OpenPath { path, .. }), Err(errno)) if is_plain(errno) => {
                Step::Over(refused(errno, "open", path))
            }
            (Some(Op::StatPath { path }), Err(errno)) if is_plain(errno) => {
                Step::Over(refused(errno, "stat", path))
            }
            _ => Step::Calls,
        }
    }
}

fn refused(errno: Errno, operation: &'static str, path: &std::path::Path) -> Result<Answer> {
    about(Err(errno), operation, path)
}

/// Whether this says that there is no such thing, however it is asked for.
fn is_plain(errno: Errno) -> bool {
    matches!(errno.0, libc::ENOENT | libc::ENOTDIR)
}

fn adopt(number: RawFd) -> OwnedFd {
    // SAFETY: the kernel just put the file at this number, for this request, and its answer is
    // taken once.
    unsafe { OwnedFd::from_raw_fd(number) }
}
