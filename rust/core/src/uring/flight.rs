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

use std::time::Duration;

use io_uring::{opcode, squeue, types};

use super::{
    lines::Place,
    names::Named,
    work::{self, Work},
};
use crate::{
    error::{Error, Result},
    io::{
        Answer, Buffer, Class, File, Finished, Op, Request, Token,
        execute::{TRANSFER_MAX, check_span, fd, no_progress},
        program::{cancelled, check_many, peer_ended},
        total,
        vectors::Vectors,
    },
};

mod pieces;

/// How often in a row an answer "interrupted" or "try again" leads to another submission.
const TRIES_MAX: u32 = 16;

/// The pause before a second try that is left to us; it doubles up to a bound.
const PAUSE: Duration = Duration::from_micros(100);
const PAUSE_DOUBLINGS_MAX: u32 = 7;

/// A request the ring carries out.
#[derive(Debug)]
pub(super) struct Flight {
    token: Token,
    work: Work,
    /// What the work is on; what is asked about names has its own in `named`.
    file: Option<File>,
    named: Option<Box<Named>>,
    buffer: Option<Buffer>,
    /// Of a transfer from several places, with what the kernel is shown of them.
    many: Option<(Vec<Buffer>, Vectors)>,
    offset: u64,
    length: usize,
    /// Bytes moved so far.
    moved: usize,
    /// Bytes of the submission under way.
    asked: usize,
    /// That one may be several, side by side.
    pieces: pieces::Pieces,
    class: Class,
    /// Asked to be given up: no further submission follows.
    cancelled: bool,
    /// Nobody is there for what it brings.
    disowned: bool,
    /// The submission under way waits until the socket is ready; the transfer comes after it.
    until_ready: bool,
    /// Carried out by a worker of the kernel from the start: it may block, or was told to wait.
    apart: bool,
    /// The submission under way asks for durability with the write.
    durable: bool,
    tries: u32,
}

/// What an answer led to.
#[derive(Debug)]
pub(super) enum Step {
    /// Another submission is needed.
    Again,
    /// Another submission is needed, but not at once: the last was told to try again.
    Later(Duration),
    /// Nothing was done, and a thread has to do it.
    Calls,
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
    /// Sorts a request by who carries it out. `guest`: the thread that turns the ring may end
    /// before its requests do, so nothing is left to workers of the kernel, which end with it.
    pub(super) fn sort(request: Request, guest: bool) -> Way {
        let Some((work, file, offset, length)) = work::plan(&request.op) else {
            return Way::Calls(request);
        };
        if guest && request.class == Class::Background && !planted!("uring_orphans") {
            return Way::Calls(request);
        }
        let of_program = request.class == Class::Program;
        let is_long = of_program && work.is_long_copy(&file, length, guest);
        let through_cache = matches!(work, Work::Write { .. }) && !file.is_direct();
        if guest && of_program && (work.is_for_workers() || through_cache || is_long) {
            return Way::Calls(request);
        }
        let mut flight = Self {
            file: Some(file),
            offset,
            length,
            ..Self::new(request.token, request.class, work)
        };
        flight.apart |= is_long;
        match request.op {
            Op::WriteMany { buffers, .. } | Op::Send { buffers, .. } => {
                flight.many = Some((buffers, Vectors::new()));
            }
            other => flight.buffer = other.into_buffer(),
        }
        match flight.check() {
            Ok(()) if flight.is_empty() => {
                let answer = flight.answer();
                Way::Answered(flight.finish(Ok(answer)))
            }
            Ok(()) => Way::Ring(flight),
            Err(error) => Way::Answered(flight.finish(Err(error))),
        }
    }

    /// A request about names.
    pub(super) fn of_name(token: Token, class: Class, named: Box<Named>) -> Self {
        Self {
            named: Some(named),
            ..Self::new(token, class, Work::Name)
        }
    }

    fn new(token: Token, class: Class, work: Work) -> Self {
        Self {
            token,
            work,
            file: None,
            named: None,
            buffer: None,
            many: None,
            offset: 0,
            length: 0,
            moved: 0,
            asked: 0,
            pieces: pieces::Pieces::default(),
            class,
            cancelled: false,
            disowned: false,
            until_ready: false,
            apart: class == Class::Background,
            durable: false,
            tries: 0,
        }
    }

    fn check(&self) -> Result<()> {
        if let Some(file) = &self.file {
            fd(file)?;
        }
        match (&self.buffer, &self.many) {
            (Some(buffer), _) => check_span(self.offset, self.length, buffer),
            (None, Some((buffers, _))) => check_many(self.offset, buffers),
            (None, None) => Ok(()),
        }
    }

    fn is_empty(&self) -> bool {
        let nothing = self.work.is_transfer() || self.work == Work::Allocate;
        nothing && self.length == 0
    }

    fn answer(&self) -> Answer {
        match self.work {
            Work::Sync | Work::Allocate => Answer::Done,
            Work::SyncData if self.buffer.is_none() && self.many.is_none() => Answer::Done,
            _ => Answer::Count(self.moved),
        }
    }

    pub(super) fn token(&self) -> Token {
        self.token
    }

    pub(super) fn class(&self) -> Class {
        self.class
    }

    /// Which direction of a socket it needs for itself, if any.
    pub(super) fn place(&self) -> Option<Place> {
        let fd = self.file.as_ref()?.fd()?;
        match self.work {
            Work::Send => Some(Place { fd, sends: true }),
            Work::Recv { .. } => Some(Place { fd, sends: false }),
            _ => None,
        }
    }

    /// The request, for a thread to carry out; none if it is over.
    pub(super) fn into_request(self) -> Option<Request> {
        let op = self.named.and_then(|named| named.into_op())?;
        Some(Request {
            token: self.token,
            class: self.class,
            op,
        })
    }

    pub(super) fn is_background(&self) -> bool {
        self.class == Class::Background
    }

    /// From now on nothing follows the submission under way.
    pub(super) fn give_up(&mut self) {
        self.cancelled = true;
    }

    /// Nobody is there any more, whatever it brings.
    pub(super) fn disown(&mut self) {
        self.disowned = !planted!("uring_disowned_are_lost");
    }

    /// What the stash of its socket had for a receive: the answer, if that was enough.
    pub(super) fn begin(&mut self) -> Option<Answer> {
        let Work::Recv { exact } = self.work else {
            return None;
        };
        let (stash, buffer) = (self.file.as_ref()?.stash()?, self.buffer.as_mut()?);
        let kept = stash.take(&mut buffer[self.moved..]);
        self.moved += kept;
        let is_over = kept > 0 && (!exact || self.moved == self.length);
        is_over.then(|| self.answer())
    }

    /// What a receive has moved and nobody will get goes to the stash of its socket. Before the
    /// next one begins there.
    pub(super) fn put_back(&self) {
        let Work::Recv { exact } = self.work else {
            return;
        };
        let is_answer = self.moved > 0 && (!exact || self.moved == self.length);
        let cut_short = !is_answer && !planted!("uring_parts_are_lost");
        let lost = self.disowned || cut_short;
        if let (true, Some(stash), Some(buffer)) =
            (lost, self.file.as_ref().and_then(File::stash), &self.buffer)
            && self.moved > 0
        {
            stash.put_back(&buffer[..self.moved]);
        }
    }

    /// Ends a flight that was given up between two submissions.
    pub(super) fn withdraw(self) -> Finished {
        let moved = self.moved;
        self.finish(Err(cancelled(moved)))
    }

    /// The bytes that are pinned while this is under way.
    pub(super) fn bytes(&self) -> u64 {
        let one = self.buffer.as_ref().map_or(0, |buffer| buffer.len() as u64);
        one + self.many.as_ref().map_or(0, |(many, _)| total(many))
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
    /// It points into the buffers, which have their places on the heap and do not move with the
    /// flight.
    pub(super) fn entry(&mut self, dsync: bool) -> squeue::Entry {
        self.durable = false;
        self.asked = 0;
        let entry = match self.work {
            _ if self.until_ready => self.readiness_entry(),
            Work::Allocate => opcode::Fallocate::new(self.fd(), self.length as u64).build(),
            Work::SyncData => {
                let sync = opcode::Fsync::new(self.fd());
                sync.flags(types::FsyncFlags::DATASYNC).build()
            }
            Work::Sync => opcode::Fsync::new(self.fd()).build(),
            Work::Name => match self.named.as_ref() {
                Some(named) => named.entry(),
                None => opcode::Nop::new().build(),
            },
            Work::Read | Work::Write { .. } | Work::Send | Work::Recv { .. } => {
                self.transfer_entry(dsync)
            }
        };
        if self.apart {
            entry.flags(squeue::Flags::ASYNC)
        } else {
            entry
        }
    }

    fn fd(&self) -> types::Fd {
        types::Fd(self.file.as_ref().and_then(File::fd).unwrap_or(-1))
    }

    fn readiness_entry(&self) -> squeue::Entry {
        let events = match self.work {
            Work::Recv { .. } => libc::POLLIN,
            _ => libc::POLLOUT,
        };
        opcode::PollAdd::new(self.fd(), u32::from(events.cast_unsigned())).build()
    }

    fn transfer_entry(&mut self, dsync: bool) -> squeue::Entry {
        let fd = self.fd();
        let at = self.offset + self.moved as u64;
        if let Some((buffers, vectors)) = self.many.as_mut() {
            self.asked = vectors.show(buffers, self.moved);
            if self.work == Work::Send {
                let flags = libc::MSG_NOSIGNAL.cast_unsigned();
                return opcode::SendMsg::new(fd, vectors.message())
                    .flags(flags)
                    .build();
            }
            let flags = self.durability_flag(dsync);
            let Some((_, vectors)) = self.many.as_ref() else {
                return opcode::Nop::new().build();
            };
            let write = opcode::Writev::new(fd, vectors.as_ptr(), vectors.len() as u32);
            return write.offset(at).rw_flags(flags).build();
        }
        self.asked = (self.length - self.moved).min(TRANSFER_MAX);
        let count = self.asked as u32;
        let flags = self.durability_flag(dsync);
        let Some(buffer) = self.buffer.as_mut() else {
            // A transfer always has memory; this keeps the answer honest if it had none.
            return opcode::Nop::new().build();
        };
        let start = buffer[self.moved..].as_mut_ptr();
        match self.work {
            Work::Write { .. } => {
                let write = opcode::Write::new(fd, start, count);
                write.offset(at).rw_flags(flags).build()
            }
            Work::Recv { .. } => opcode::Recv::new(fd, start, count).build(),
            _ => opcode::Read::new(fd, start, count).offset(at).build(),
        }
    }

    /// Asks for durability with a write that moves everything in one submission.
    fn durability_flag(&mut self, dsync: bool) -> i32 {
        let sync = matches!(self.work, Work::Write { sync: true });
        self.durable = sync && dsync && self.asked == self.length;
        if self.durable { libc::RWF_DSYNC } else { 0 }
    }

    /// Takes the kernel's answer to the last submission.
    pub(super) fn on_answer(&mut self, answer: i32) -> Step {
        let step = self.on_answer_of_work(answer);
        match step {
            Step::Again | Step::Later(_) | Step::Calls if self.cancelled => {
                Step::Over(Err(cancelled(self.moved)))
            }
            other => other,
        }
    }

    /// Whether the kernel moved some of the bytes of the submission under way, but not all.
    pub(super) fn fell_short(&self, answer: i32) -> bool {
        usize::try_from(answer).is_ok_and(|count| count > 0 && count < self.asked)
    }

    fn on_answer_of_work(&mut self, answer: i32) -> Step {
        if self.until_ready {
            return self.on_ready(answer);
        }
        if self.refuses_dsync(answer) {
            return Step::Again;
        }
        if let Some(named) = self.named.as_mut() {
            return named.on_answer(answer, self.cancelled);
        }
        match self.work {
            work if work.is_transfer() => match usize::try_from(answer) {
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

    /// Whether a submission that was cancelled before it began may be made again: a transfer, or
    /// what is about names, that nobody gave up may, a bounded number of times. A sync may not, for nobody knows how far it
    /// came.
    pub(super) fn may_begin_again(&mut self) -> bool {
        let may = (self.work.is_transfer() || self.work == Work::Name) && !self.cancelled;
        self.tries += u32::from(may);
        may && self.tries <= TRIES_MAX
    }

    /// The socket is ready, or waiting for that was refused.
    fn on_ready(&mut self, answer: i32) -> Step {
        self.until_ready = false;
        if answer < 0 {
            return self.on_refused(-answer);
        }
        Step::Again
    }

    fn on_moved(&mut self, count: usize) -> Step {
        if count > self.asked {
            return Step::Impossible("more bytes than were asked for");
        }
        let left = self.length - self.moved;
        self.moved += count;
        self.tries = 0;
        match self.work {
            Work::Recv { .. } if count == 0 => Step::Over(Err(peer_ended(self.moved, self.length))),
            Work::Recv { exact: false } => Step::Over(Ok(self.answer())),
            Work::Read if count == 0 => Step::Over(Ok(self.answer())),
            Work::Write { .. } | Work::Send if count == 0 => {
                Step::Over(Err(no_progress(self.moved, self.length)))
            }
            Work::Write { sync: true } if count == left && !self.durable => {
                self.work = Work::SyncData;
                Step::Again
            }
            _ if count == left => Step::Over(Ok(self.answer())),
            _ => Step::Again,
        }
    }

    /// Told to try again, a socket waits until it is ready; everything else tries again within a
    /// bound, by a worker of the kernel if it has one, later if not.
    fn on_refused(&mut self, errno: i32) -> Step {
        let passing = matches!(errno, libc::EINTR | libc::EAGAIN);
        if !passing || self.tries >= TRIES_MAX {
            return self.failed(errno);
        }
        self.tries += 1;
        if errno == libc::EINTR {
            return Step::Again;
        }
        if matches!(self.work, Work::Send | Work::Recv { .. }) {
            self.until_ready = true;
            return Step::Again;
        }
        if self.class != Class::Program {
            self.apart = true;
            return Step::Again;
        }
        Step::Later(PAUSE * (1 << (self.tries - 1).min(PAUSE_DOUBLINGS_MAX)))
    }

    fn failed(&self, errno: i32) -> Step {
        let operation = match self.work {
            Work::Read => "read",
            Work::Write { .. } => "write",
            Work::SyncData => "fdatasync",
            Work::Sync => "fsync",
            Work::Allocate => "fallocate",
            Work::Send => "send",
            Work::Recv { .. } => "recv",
            Work::Name => "name",
        };
        let error = Error::from_errno(errno, operation);
        if self.work.is_transfer() && self.moved > 0 {
            return Step::Over(Err(error.with("done", self.moved as i128)));
        }
        Step::Over(Err(error))
    }

    /// Whether the answer says that durability cannot be asked for with the write.
    pub(super) fn refuses_dsync(&self, answer: i32) -> bool {
        self.durable && answer == -libc::EOPNOTSUPP
    }
}

#[cfg(test)]
mod tests {
    use super::{
        work::{COPY_MAX, GUEST_COPY_MAX},
        *,
    };
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
        match Flight::sort(request, false) {
            Way::Ring(flight) => flight,
            _ => panic!("not for the ring"),
        }
    }

    fn flight_of(op: Op) -> Flight {
        let request = Request {
            token: Token(1),
            class: Class::Program,
            op,
        };
        match Flight::sort(request, false) {
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
    fn a_program_that_must_try_again_does_so_later_and_later() {
        // No worker of the kernel takes it over, so the pause between two tries doubles; progress
        // starts the count anew.
        let mut flight = flight_of(Op::Read {
            file: file(),
            offset: 0,
            length: BLOCK,
            buffer: Buffer::zeroed(BLOCK),
        });
        let mut before = Duration::ZERO;
        for _ in 0..3 {
            flight.entry(true);
            let Step::Later(pause) = flight.on_answer(-libc::EAGAIN) else {
                panic!("not later");
            };
            assert!(pause > before);
            before = pause;
        }
        flight.entry(true);
        assert!(matches!(flight.on_answer(10), Step::Again));
        flight.entry(true);
        assert!(matches!(
            flight.on_answer(-libc::EAGAIN),
            Step::Later(PAUSE)
        ));
        flight.give_up();
        flight.entry(true);
        let Step::Over(Err(error)) = flight.on_answer(-libc::EAGAIN) else {
            panic!("given up and tried again");
        };
        assert_eq!(error.number("done"), Some(10));
    }

    #[test]
    fn a_long_copy_is_made_by_somebody_else() {
        // What a program reads or writes through the page cache holds up nobody for longer than a
        // hop takes: beyond that a worker of the kernel copies, or a thread where none may. What
        // is short, and what the log writes, begins at once.
        let sort = |length, class, guest| {
            let file = file();
            let buffer = Buffer::zeroed(length);
            let op = Op::Read {
                file,
                offset: 0,
                length,
                buffer,
            };
            let token = Token(1);
            Flight::sort(Request { token, class, op }, guest)
        };
        let is_apart = |length, class| match sort(length, class, false) {
            Way::Ring(flight) => Some(flight.apart),
            _ => None,
        };
        assert_eq!(is_apart(COPY_MAX, Class::Program), Some(false));
        assert_eq!(is_apart(COPY_MAX + 1, Class::Program), Some(true));
        assert_eq!(is_apart(COPY_MAX + 1, Class::Foreground), Some(false));
        let guest = |length| sort(length, Class::Program, true);
        assert!(matches!(guest(GUEST_COPY_MAX), Way::Ring(_)));
        assert!(matches!(guest(GUEST_COPY_MAX + 1), Way::Calls(_)));
    }

    #[test]
    fn a_socket_that_says_try_again_is_waited_for() {
        // Kernels that do not wait for sockets in non-blocking mode: readiness first, then again.
        let mut flight = flight_of(Op::Recv {
            socket: file(),
            buffer: Buffer::zeroed(8),
            exact: true,
        });
        flight.entry(true);
        assert!(matches!(flight.on_answer(-libc::EAGAIN), Step::Again));
        assert!(flight.until_ready);
        flight.entry(true);
        assert!(matches!(flight.on_answer(libc::POLLIN.into()), Step::Again));
        assert!(!flight.until_ready);
        flight.entry(true);
        assert!(matches!(
            flight.on_answer(8),
            Step::Over(Ok(Answer::Count(8)))
        ));
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
