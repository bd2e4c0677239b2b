//! Requests about names and descriptors that the ring carries out for a program.
//!
//! ```text
//! open, close            at once, by the thread that turns: only if nothing is waited for
//! stat, rename,          by a worker of the kernel: only so many at a time, and only where the
//!   unlink, truncate       thread that turns lives as long as the ring
//! everything else        by plain calls on threads of ours
//! ```
//!
//! An opening asks for what the kernel has in its cache of names (`RESOLVE_CACHED`). What is not
//! there, or makes the file, is left to a thread; so nothing that is cancelled, or left behind at
//! the end, can put a descriptor into the process that nobody knows. A closing goes to the ring if
//! the file was only read and still has a name: the last close of another may write, or free what
//! was in it.
//!
//! # Always true
//!
//! 1. Paths and the place for an answer have their own places on the heap, and stay there until
//!    the kernel's last word: the table owns them with the flight.
//! 2. A descriptor belongs to the flight until the kernel has closed it, and is never closed twice.
//! 3. Kernel's workers with names are fewer than those the kernel starts at least, so whoever
//!    waits for durability finds one.

use std::{
    ffi::CString,
    mem::MaybeUninit,
    os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd, RawFd},
};

use io_uring::{Probe, opcode, squeue, types};

use super::{
    flight::{Flight, Step, Way},
    ring::{Patience, Ring},
};
use crate::{
    error::Result,
    io::{
        Answer, Class, File, Finished, Op, Request,
        execute::{fd, told},
        program::{about, cancelled, settle, status_of, terminated},
        sys::{self, Errno, Sys},
    },
};

/// How many workers of the kernel may be busy with names at a time. It starts four for each
/// processor.
pub(super) const WORKERS_MAX: usize = 3;

const HERE: types::Fd = types::Fd(libc::AT_FDCWD);

/// What the ring of this kernel is asked to do about names.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Offer {
    pub open: bool,
    pub close: bool,
    pub stat: bool,
    pub rename: bool,
    pub unlink: bool,
    pub truncate: bool,
}

impl Offer {
    /// Looks at what the kernel says that it offers, and tries each: a ring may be restricted.
    pub(super) fn of(ring: &mut Ring, offer: &Probe) -> Self {
        let mut allows = |code, entry: squeue::Entry, expected: i32| {
            offer.is_supported(code) && answer_to(ring, &entry) == Some(-expected)
        };
        let empty = c"".as_ptr();
        let nowhere = types::Fd(-1);
        // Each is refused for its argument, before anything is done.
        Self {
            open: allows(
                opcode::OpenAt2::CODE,
                opcode::OpenAt2::new(HERE, empty, &raw const CACHED).build(),
                libc::ENOENT,
            ),
            close: allows(
                opcode::Close::CODE,
                opcode::Close::new(nowhere).build(),
                libc::EBADF,
            ),
            stat: allows(
                opcode::Statx::CODE,
                opcode::Statx::new(HERE, empty, std::ptr::null_mut()).build(),
                libc::ENOENT,
            ),
            rename: allows(
                opcode::RenameAt::CODE,
                opcode::RenameAt::new(HERE, empty, HERE, empty).build(),
                libc::ENOENT,
            ),
            unlink: allows(
                opcode::UnlinkAt::CODE,
                opcode::UnlinkAt::new(HERE, empty).build(),
                libc::ENOENT,
            ),
            truncate: allows(
                opcode::Ftruncate::CODE,
                opcode::Ftruncate::new(nowhere, 0).build(),
                libc::EBADF,
            ),
        }
    }

    /// Leaves out what goes to workers of the kernel, which end with the thread that submitted.
    pub(super) fn without_workers(self) -> Self {
        Self {
            open: self.open,
            close: self.close,
            ..Self::default()
        }
    }

    fn has(self, op: &Op) -> bool {
        match op {
            Op::OpenPath { .. } => self.open,
            Op::Close { .. } => self.close,
            Op::Stat { .. } | Op::StatPath { .. } => self.stat,
            Op::RenamePath { .. } => self.rename,
            Op::UnlinkPath { .. } => self.unlink,
            Op::Truncate { .. } => self.truncate,
            _ => false,
        }
    }
}

static CACHED: types::OpenHow = how(0);

const fn how(flags: i32) -> types::OpenHow {
    let flags = flags | libc::O_CLOEXEC | libc::O_NOCTTY;
    types::OpenHow::new()
        .flags(flags.cast_unsigned() as u64)
        .resolve(libc::RESOLVE_CACHED)
}

/// Runs one entry by itself.
fn answer_to(ring: &mut Ring, entry: &squeue::Entry) -> Option<i32> {
    // SAFETY: the entries of `Offer::of` point at nothing, or at what lives for ever.
    let staged = unsafe { ring.stage(entry) };
    let limit = std::time::Duration::from_secs(5);
    ring.enter(Patience::For(limit), false).ok()?;
    let answer = ring.reap()?;
    staged.then(|| answer.result())
}

/// See the module.
#[derive(Debug)]
pub(super) struct Named {
    /// What was asked for, with the file; a closing has its descriptor below.
    op: Option<Op>,
    errand: Errand,
}

/// One submission, and what it points at.
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
    Stat {
        /// Empty for an open file.
        place: CString,
        fd: RawFd,
        into: MaybeUninit<libc::statx>,
    },
    Rename {
        from: CString,
        to: CString,
    },
    Unlink {
        place: CString,
    },
    Truncate {
        fd: RawFd,
        length: u64,
    },
}

/// What is done about a request.
enum Plan {
    Ring(Box<Named>),
    Calls(Op),
    Done,
}

/// Sorts a request that is for threads unless the ring can do it. `workers`: how many of the
/// kernel's are busy with names.
pub(super) fn sort(request: Request, offer: Offer, workers: usize) -> Way {
    let offered = request.class == Class::Program && offer.has(&request.op);
    if !offered || (needs_worker(&request.op) && workers >= WORKERS_MAX) {
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
    match Named::plan(op) {
        Ok(Plan::Ring(named)) => Way::Ring(Flight::of_name(token, class, named)),
        Ok(Plan::Calls(op)) => Way::Calls(Request { token, class, op }),
        Ok(Plan::Done) => answered(Ok(Answer::Done)),
        Err(error) => answered(Err(error)),
    }
}

/// Whether the kernel hands it to one of its workers, whatever it finds.
fn needs_worker(op: &Op) -> bool {
    !matches!(op, Op::OpenPath { .. } | Op::Close { .. })
}

/// Whether an opening waits for nobody and makes nothing. Without `O_NONBLOCK` a pipe is waited
/// for, which the ring does not do when it looks into the cache.
fn opens_at_once(flags: i32) -> bool {
    let makes = libc::O_CREAT | libc::O_TRUNC | (libc::O_TMPFILE & !libc::O_DIRECTORY);
    flags & libc::O_NONBLOCK != 0 && flags & makes == 0
}

/// Whether the last close of `file` has nothing to write or to free.
fn closes_at_once(file: &File) -> bool {
    let Some(fd) = file.fd() else {
        return false;
    };
    let reads = sys::flags(fd).is_ok_and(|flags| flags & libc::O_ACCMODE == libc::O_RDONLY);
    reads && sys::links(fd).is_some_and(|links| links > 0)
}

impl Named {
    fn plan(op: Op) -> Result<Plan> {
        let errand = match &op {
            Op::OpenPath { path, flags, .. } if opens_at_once(*flags) => Errand::Open {
                place: terminated(path)?,
                how: how(*flags),
            },
            Op::Close { file } if closes_at_once(file) => return Ok(Self::plan_close(op)),
            Op::StatPath { path } => Errand::Stat {
                place: terminated(path)?,
                fd: libc::AT_FDCWD,
                into: MaybeUninit::zeroed(),
            },
            Op::Stat { file } => Errand::Stat {
                place: CString::default(),
                fd: fd(file)?,
                into: MaybeUninit::zeroed(),
            },
            Op::RenamePath { from, to } => Errand::Rename {
                from: terminated(from)?,
                to: terminated(to)?,
            },
            Op::UnlinkPath { path } => Errand::Unlink {
                place: terminated(path)?,
            },
            Op::Truncate { file, length } if i64::try_from(*length).is_ok() => Errand::Truncate {
                fd: fd(file)?,
                length: *length,
            },
            _ => return Ok(Plan::Calls(op)),
        };
        let op = Some(op);
        Ok(Plan::Ring(Box::new(Self { op, errand })))
    }

    /// Takes the descriptor, if nobody else holds the file.
    fn plan_close(op: Op) -> Plan {
        let Op::Close { file } = op else {
            return Plan::Calls(op);
        };
        match file.into_fd() {
            Some(fd) => Plan::Ring(Box::new(Self {
                op: None,
                errand: Errand::Close { fd: Some(fd) },
            })),
            None => Plan::Done,
        }
    }

    /// Whether a worker of the kernel has it.
    pub(super) fn has_worker(&self) -> bool {
        self.op.as_ref().is_some_and(needs_worker)
    }

    /// What a thread is asked for in its place.
    pub(super) fn into_op(self) -> Option<Op> {
        match self.errand {
            Errand::Close { fd } => fd.map(|fd| Op::Close {
                file: File::from_fd(fd),
            }),
            _ => self.op,
        }
    }

    /// The submission. It points at what is inside, which stays where it is.
    pub(super) fn entry(&mut self) -> squeue::Entry {
        match &mut self.errand {
            Errand::Open { place, how } => {
                opcode::OpenAt2::new(HERE, place.as_ptr(), &raw const *how).build()
            }
            Errand::Close { fd } => {
                let fd = fd.as_ref().map_or(-1, AsRawFd::as_raw_fd);
                opcode::Close::new(types::Fd(fd)).build()
            }
            Errand::Stat { place, fd, into } => {
                // As stat(2) and fstat(2) do it.
                let how = if place.is_empty() {
                    libc::AT_EMPTY_PATH
                } else {
                    libc::AT_NO_AUTOMOUNT
                };
                let into = into.as_mut_ptr().cast();
                let stat = opcode::Statx::new(types::Fd(*fd), place.as_ptr(), into);
                stat.flags(how).mask(libc::STATX_BASIC_STATS).build()
            }
            Errand::Rename { from, to } => {
                opcode::RenameAt::new(HERE, from.as_ptr(), HERE, to.as_ptr()).build()
            }
            Errand::Unlink { place } => opcode::UnlinkAt::new(HERE, place.as_ptr()).build(),
            Errand::Truncate { fd, length } => {
                opcode::Ftruncate::new(types::Fd(*fd), *length).build()
            }
        }
    }

    /// Takes the kernel's answer. `given_up`: nobody wants it to go on.
    pub(super) fn on_answer(&mut self, answer: i32, given_up: bool) -> Step {
        if answer > 0 && !matches!(self.errand, Errand::Open { .. }) {
            return Step::Impossible("a count where none was asked for");
        }
        let begun = answer != -libc::ECANCELED;
        if let Errand::Close { fd } = &mut self.errand
            && begun
        {
            // Whatever the kernel says about the closing, the number is its own again.
            let _number = fd.take().map(IntoRawFd::into_raw_fd);
        }
        match answer {
            _ if !begun && given_up => Step::Over(Err(cancelled(0))),
            refused if self.is_for_a_thread(-refused) => Step::Calls,
            _ => Step::Over(self.outcome(answer)),
        }
    }

    /// Whether a thread finds out what the kernel did not say, or would have to wait for. Nothing
    /// was done then, or it may be done twice.
    fn is_for_a_thread(&self, errno: i32) -> bool {
        let passing = matches!(errno, libc::EAGAIN | libc::EINTR) || is_restart(errno);
        match self.errand {
            // Not in the cache, or leased; flags that only open(2) takes; nobody at the other end
            // of a pipe, or a socket.
            Errand::Open { .. } => passing || matches!(errno, libc::EINVAL | libc::ENXIO),
            Errand::Close { .. } => errno == libc::ECANCELED,
            Errand::Stat { .. } => passing,
            Errand::Truncate { .. } => passing || errno == libc::EINVAL,
            Errand::Rename { .. } | Errand::Unlink { .. } => false,
        }
    }

    fn outcome(&mut self, answer: i32) -> Result<Answer> {
        let answered = match answer {
            number if number >= 0 => Ok(number),
            refused if is_restart(-refused) => Err(Errno(libc::EINTR)),
            refused => Err(Errno(-refused)),
        };
        let done = |_| Answer::Done;
        match &self.op {
            Some(Op::OpenPath { path, flags, .. }) => {
                let opened = about(answered.map(adopt), "open", path)?;
                settle(opened, path, *flags).map(Answer::File)
            }
            Some(Op::Stat { .. }) => told(self.status(answered), "fstat"),
            Some(Op::StatPath { path }) => about(self.status(answered), "stat", path),
            Some(Op::RenamePath { from, .. }) => about(answered, "rename", from).map(done),
            Some(Op::UnlinkPath { path }) => about(answered, "unlink", path).map(done),
            Some(Op::Truncate { .. }) => told(answered, "ftruncate").map(done),
            _ => told(answered, "close").map(done),
        }
    }

    fn status(&self, answered: Sys<i32>) -> Sys<Answer> {
        answered.map(|_| match &self.errand {
            // SAFETY: plain numbers, zeroed before the kernel filled them.
            Errand::Stat { into, .. } => status_of(unsafe { into.assume_init_ref() }),
            _ => Answer::Done,
        })
    }
}

/// What a wait inside the kernel ends with when a signal comes, where no system call is there to
/// make it `EINTR`.
fn is_restart(errno: i32) -> bool {
    (512..=516).contains(&errno)
}

fn adopt(number: RawFd) -> OwnedFd {
    // SAFETY: the kernel just put the file at this number, for this request, and its answer is
    // taken once.
    unsafe { OwnedFd::from_raw_fd(number) }
}
