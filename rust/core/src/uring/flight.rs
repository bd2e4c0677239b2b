//! One request on its way through the ring: which submission comes next, and what an answer means.
//!
//! ```text
//! move bytes --short--> move the rest --all--> [sync data] --> finished
//!     \--- error: finished                          \--- error: finished, never tried again
//! ```
//!
//! # Always true
//!
//! 1. File and buffer stay inside the flight until the last answer, so a submission may point at
//!    them; whoever drops a flight that the kernel knows breaks this (the table never does).
//! 2. Durability is claimed by one submission only if that submission moved every byte of the
//!    request; else a sync of its own follows once all bytes are counted.

use io_uring::{opcode, squeue, types};

use crate::{
    error::{Error, Result},
    io::{
        Answer, Buffer, Class, File, Finished, Op, Request, Token,
        execute::{TRANSFER_MAX, check_span, fd, no_progress},
    },
};

/// How often an answer "interrupted" or "try again" leads to another submission.
const TRIES_MAX: u32 = 16;

/// A request the ring carries out.
#[derive(Debug)]
pub(super) struct Flight {
    token: Token,
    work: Work,
    file: File,
    buffer: Option<Buffer>,
    offset: u64,
    length: usize,
    /// Bytes moved so far.
    moved: usize,
    background: bool,
    /// Carried out by a worker of the kernel from the start: it may block, or was told to wait.
    apart: bool,
    /// The submission under way asks for durability with the write.
    durable: bool,
    tries: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Work {
    Read,
    Write {
        sync: bool,
    },
    /// All bytes of a write with `sync` are moved; this makes them durable.
    SyncData,
    Sync,
    Allocate,
}

/// What an answer led to.
#[derive(Debug)]
pub(super) enum Step {
    /// Another submission is needed.
    Again,
    /// Over, with this outcome.
    Over(Result<Answer>),
    /// The kernel cannot have said this; nothing it knows can be trusted any more.
    Impossible(&'static str),
}

/// Who carries a request out.
pub(super) enum Way {
    /// The ring.
    Ring(Flight),
    /// Plain system calls.
    Calls(Request),
    /// Nobody needs to; or it cannot be done.
    Answered(Finished),
}

impl Flight {
    /// Sorts a request by who carries it out.
    pub(super) fn sort(request: Request) -> Way {
        let (work, file, offset, length) = match &request.op {
            Op::Read {
                file,
                offset,
                length,
                ..
            } => (Work::Read, file, *offset, *length),
            Op::Write {
                file,
                offset,
                length,
                sync,
                ..
            } => {
                let work = match (*length, *sync) {
                    (0, true) => Work::SyncData,
                    (_, sync) => Work::Write { sync },
                };
                (work, file, *offset, *length)
            }
            Op::Sync { file } | Op::SyncDir { dir: file } => (Work::Sync, file, 0, 0),
            Op::Allocate { file, length } => match usize::try_from(*length) {
                Ok(length) => (Work::Allocate, file, 0, length),
                Err(_) => return Way::Calls(request),
            },
            _ => return Way::Calls(request),
        };
        let file = file.clone();
        let flight = Self {
            token: request.token,
            work,
            file,
            offset,
            length,
            moved: 0,
            background: request.class == Class::Background,
            apart: request.class == Class::Background,
            durable: false,
            tries: 0,
            buffer: request.op.into_buffer(),
        };
        match flight.check() {
            Ok(()) if flight.is_empty() => {
                let answer = flight.answer();
                Way::Answered(flight.finish(Ok(answer)))
            }
            Ok(()) => Way::Ring(flight),
            Err(error) => Way::Answered(flight.finish(Err(error))),
        }
    }

    fn check(&self) -> Result<()> {
        fd(&self.file)?;
        match &self.buffer {
            Some(buffer) => check_span(self.offset, self.length, buffer),
            None => Ok(()),
        }
    }

    fn is_empty(&self) -> bool {
        let nothing = matches!(self.work, Work::Read | Work::Write { .. } | Work::Allocate);
        nothing && self.length == 0
    }

    fn answer(&self) -> Answer {
        match self.work {
            Work::Read | Work::Write { .. } | Work::SyncData => Answer::Count(self.moved),
            Work::Sync | Work::Allocate => Answer::Done,
        }
    }

    pub(super) fn is_background(&self) -> bool {
        self.background
    }

    /// The bytes that are pinned while this is under way.
    pub(super) fn bytes(&self) -> u64 {
        self.buffer.as_ref().map_or(0, |buffer| buffer.len() as u64)
    }

    /// Ends the flight; the kernel must have let go of it.
    pub(super) fn finish(self, result: Result<Answer>) -> Finished {
        Finished {
            token: self.token,
            buffer: self.buffer,
            result,
        }
    }

    /// Ends the flight while the kernel may still use its memory, which is leaked.
    pub(super) fn abandon(self, error: Error) -> Finished {
        let token = self.token;
        std::mem::forget(self);
        Finished {
            token,
            buffer: None,
            result: Err(error),
        }
    }

    /// The next submission. `dsync`: a write may ask for durability itself.
    ///
    /// It points into the buffer, which has its place on the heap and does not move with the
    /// flight.
    pub(super) fn entry(&mut self, dsync: bool) -> squeue::Entry {
        let fd = types::Fd(self.file.fd().unwrap_or(-1));
        let at = self.offset + self.moved as u64;
        let count = (self.length - self.moved).min(TRANSFER_MAX);
        self.durable = false;
        let entry = match (self.work, self.buffer.as_mut()) {
            (Work::Read, Some(buffer)) => {
                let start = buffer[self.moved..].as_mut_ptr();
                opcode::Read::new(fd, start, count as u32)
                    .offset(at)
                    .build()
            }
            (Work::Write { sync }, Some(buffer)) => {
                let start = buffer[self.moved..].as_ptr();
                self.durable = sync && dsync && count == self.length;
                let flags = if self.durable { libc::RWF_DSYNC } else { 0 };
                let write = opcode::Write::new(fd, start, count as u32);
                write.offset(at).rw_flags(flags).build()
            }
            (Work::Allocate, _) => opcode::Fallocate::new(fd, self.length as u64).build(),
            (Work::SyncData, _) => {
                let sync = opcode::Fsync::new(fd);
                sync.flags(types::FsyncFlags::DATASYNC).build()
            }
            // A transfer always has a buffer, so this is a sync.
            _ => opcode::Fsync::new(fd).build(),
        };
        if self.apart {
            entry.flags(squeue::Flags::ASYNC)
        } else {
            entry
        }
    }

    /// Takes the kernel's answer to the last submission.
    pub(super) fn on_answer(&mut self, answer: i32) -> Step {
        match self.work {
            Work::Read | Work::Write { .. } => match usize::try_from(answer) {
                Ok(count) => self.on_moved(count),
                Err(_) => self.on_refused(-answer),
            },
            _ if answer == 0 => Step::Over(Ok(self.answer())),
            _ if answer > 0 => Step::Impossible("a count where none was asked for"),
            Work::Allocate => self.on_refused(-answer),
            // A sync that failed may have lost what it should have kept; it is never repeated.
            _ => self.failed(-answer),
        }
    }

    /// Whether a submission that was cancelled before it began may be made again: a transfer may,
    /// a bounded number of times. A sync may not, for nobody knows how far it came.
    pub(super) fn may_begin_again(&mut self) -> bool {
        let is_transfer = matches!(self.work, Work::Read | Work::Write { .. });
        self.tries += u32::from(is_transfer);
        is_transfer && self.tries <= TRIES_MAX
    }

    fn on_moved(&mut self, count: usize) -> Step {
        let left = self.length - self.moved;
        if count > left.min(TRANSFER_MAX) {
            return Step::Impossible("more bytes than were asked for");
        }
        self.moved += count;
        match self.work {
            Work::Read if count == 0 || count == left => Step::Over(Ok(self.answer())),
            Work::Write { .. } if count == 0 => {
                Step::Over(Err(no_progress(self.moved, self.length)))
            }
            Work::Write { sync } if count == left => {
                if !sync || self.durable {
                    return Step::Over(Ok(self.answer()));
                }
                self.work = Work::SyncData;
                Step::Again
            }
            _ => Step::Again,
        }
    }

    fn on_refused(&mut self, errno: i32) -> Step {
        let passing = matches!(errno, libc::EINTR | libc::EAGAIN);
        if passing && self.tries < TRIES_MAX {
            self.tries += 1;
            self.apart = true;
            return Step::Again;
        }
        self.failed(errno)
    }

    fn failed(&self, errno: i32) -> Step {
        let operation = match self.work {
            Work::Read => "read",
            Work::Write { .. } => "write",
            Work::SyncData => "fdatasync",
            Work::Sync => "fsync",
            Work::Allocate => "fallocate",
        };
        Step::Over(Err(Error::from_errno(errno, operation)))
    }

    /// Whether the answer says that durability cannot be asked for with the write.
    pub(super) fn refuses_dsync(&self, answer: i32) -> bool {
        self.durable && answer == -libc::EOPNOTSUPP
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::BLOCK;

    const PAGE: i32 = 4096;

    fn file() -> File {
        File::from_fd(std::fs::File::open("/dev/null").unwrap().into())
    }

    fn flight(op: Op) -> Flight {
        let request = Request {
            token: Token(3),
            class: Class::Foreground,
            op,
        };
        match Flight::sort(request) {
            Way::Ring(flight) => flight,
            _ => panic!("not for the ring"),
        }
    }

    fn write(sync: bool) -> Flight {
        flight(Op::Write {
            file: file(),
            offset: 0,
            length: BLOCK,
            buffer: Buffer::zeroed(BLOCK),
            sync,
        })
    }

    #[test]
    fn a_durable_write_of_one_submission_needs_no_sync() {
        // RWF_DSYNC over every byte is enough.
        let mut flight = write(true);
        flight.entry(true);
        assert!(matches!(flight.on_answer(PAGE), Step::Over(Ok(_))));
    }

    #[test]
    fn a_short_durable_write_is_followed_by_a_sync() {
        // The rest is written without the flag, and one sync covers the whole, not its last part.
        let mut flight = write(true);
        flight.entry(true);
        assert!(matches!(flight.on_answer(100), Step::Again));
        flight.entry(true);
        assert!(!flight.durable);
        assert!(matches!(flight.on_answer(PAGE - 100), Step::Again));
        assert_eq!(flight.work, Work::SyncData);
        assert!(matches!(
            flight.on_answer(0),
            Step::Over(Ok(Answer::Count(BLOCK)))
        ));
    }

    #[test]
    fn a_failed_sync_is_an_answer_whatever_the_errno() {
        // Even "interrupted" and "try again": the pages may be marked clean already.
        for errno in [libc::EIO, libc::EINTR, libc::EAGAIN, libc::ECANCELED] {
            let mut flight = write(true);
            flight.entry(false);
            assert!(matches!(flight.on_answer(PAGE), Step::Again));
            flight.entry(false);
            let Step::Over(Err(error)) = flight.on_answer(-errno) else {
                panic!("{errno} was taken for something else");
            };
            assert_eq!(error.errno(), Some(errno));
        }
    }

    #[test]
    fn passing_refusals_are_retried_within_a_bound() {
        // A write told to try again is tried again, not for ever.
        let mut flight = write(false);
        let mut submissions = 1;
        while let Step::Again = flight.on_answer(-libc::EAGAIN) {
            submissions += 1;
        }
        assert_eq!(submissions, TRIES_MAX + 1);
    }

    #[test]
    fn no_progress_and_impossible_counts_are_told_apart() {
        // A write of nothing is an error of the world; more than asked for is a broken kernel.
        assert!(matches!(write(false).on_answer(0), Step::Over(Err(_))));
        let more = PAGE + 1;
        assert!(matches!(write(false).on_answer(more), Step::Impossible(_)));
        let mut sync = flight(Op::Sync { file: file() });
        assert!(matches!(sync.on_answer(1), Step::Impossible(_)));
    }
}
