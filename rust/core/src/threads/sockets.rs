//! Sockets without a thread for each: requests wait in line beside their socket, and the thread
//! that turns does what can be done at once when the kernel says that a socket is ready.
//!
//! # Always true
//!
//! 1. A socket is in the watched set exactly while a request waits for it, under a descriptor that
//!    its line keeps open.
//! 2. Requests of one direction on one socket are served in the order they came.
//! 3. A receive asks the kernel only when the stash of its socket is empty, and what one had
//!    received that ends without it goes there.
//! 4. Who waits behind one that was taken out is served by the next turn, not at once: those that
//!    are given up together leave everything to those that stay.
//! 5. No call here waits. A turn serves a bounded number of ready sockets; the set stays readable
//!    for the rest.

use std::{
    collections::{HashMap, VecDeque},
    os::fd::{AsRawFd, OwnedFd, RawFd},
};

use crate::{
    error::{Error, Result},
    io::{
        Answer, Buffer, Cancelled, File, Finished, Op, Request, Token,
        execute::{fd, no_progress},
        program::{cancelled, peer_ended},
        sys::{self, Errno},
        tally::Tally,
        total,
        vectors::Vectors,
    },
};

/// Ready sockets served by one turn.
const READY_MAX: usize = 64;

/// Calls made for one direction of a socket before the next socket has its turn.
const CALLS_MAX: usize = 64;

/// See the module.
#[derive(Default)]
pub(super) struct Sockets {
    set: Option<OwnedFd>,
    lines: HashMap<RawFd, Line>,
    /// On which socket a request waits.
    places: HashMap<Token, RawFd>,
    /// Lines with bytes in the stash that no socket will tell of.
    roused: Vec<RawFd>,
    /// What it took; a wait for a socket is not a retry.
    tally: Tally,
}

struct Line {
    file: File,
    receives: VecDeque<Receive>,
    sends: VecDeque<Send>,
    /// What the set watches for now.
    watched: u32,
}

struct Receive {
    token: Token,
    buffer: Buffer,
    got: usize,
    exact: bool,
}

struct Send {
    token: Token,
    buffers: Vec<Buffer>,
    vectors: Vectors,
    sent: usize,
}

impl Receive {
    /// Takes what the stash has; whether that was all it wants, or `None` if there was nothing.
    fn take_kept(&mut self, file: &File) -> Option<bool> {
        let kept = file.stash()?.take(&mut self.buffer[self.got..]);
        self.got += kept;
        (kept > 0).then(|| !self.exact || self.got == self.buffer.len())
    }

    /// Receives once; what it came to, or `None` if there is nothing to receive.
    fn advance(&mut self, fd: RawFd, tally: &mut Tally) -> Option<Result<bool>> {
        match sys::recv_now(fd, &mut self.buffer[self.got..]) {
            Ok(0) => Some(Err(peer_ended(self.got, self.buffer.len()))),
            Ok(count) => {
                self.got += count;
                let is_over = !self.exact || self.got == self.buffer.len();
                tally.short += u64::from(!is_over);
                Some(Ok(is_over))
            }
            Err(errno) => refused(errno, "recv", self.got, tally),
        }
    }

    /// What it had goes to the next one.
    fn put_back(&self, file: &File) {
        if let (Some(stash), true) = (file.stash(), self.got > 0) {
            stash.put_back(&self.buffer[..self.got]);
        }
    }

    fn finish(self, result: Result<Answer>) -> Finished {
        Finished {
            token: self.token,
            buffer: Some(self.buffer),
            result,
        }
    }
}

impl Send {
    fn advance(&mut self, fd: RawFd, tally: &mut Tally) -> Option<Result<bool>> {
        let asked = self.vectors.show(&self.buffers, self.sent);
        let all = total(&self.buffers) as usize;
        match sys::send_now(fd, &mut self.vectors) {
            Ok(0) => Some(Err(no_progress(self.sent, all))),
            Ok(count) => {
                self.sent += count;
                tally.short += u64::from(count < asked);
                Some(Ok(self.sent == all))
            }
            Err(errno) => refused(errno, "send", self.sent, tally),
        }
    }

    fn finish(self, result: Result<Answer>) -> Finished {
        Finished {
            token: self.token,
            buffer: None,
            result,
        }
    }
}

/// A refusal for now is none; an interruption is tried again; everything else is the answer.
fn refused(
    Errno(errno): Errno,
    operation: &'static str,
    done: usize,
    tally: &mut Tally,
) -> Option<Result<bool>> {
    match errno {
        libc::EAGAIN => None,
        libc::EINTR => {
            tally.retried += 1;
            Some(Ok(false))
        }
        _ => Some(Err(
            Error::from_errno(errno, operation).with("done", done as i128)
        )),
    }
}

impl Sockets {
    /// Makes the watched set, if there is none yet.
    pub(super) fn prepare(&mut self) -> Result<()> {
        if self.set.is_none() {
            let set = sys::watch_set().map_err(|errno| Error::from_errno(errno.0, "epoll"))?;
            self.set = Some(set);
        }
        Ok(())
    }

    /// The watched set.
    pub(super) fn set(&self) -> Option<RawFd> {
        self.set.as_ref().map(AsRawFd::as_raw_fd)
    }

    /// Readable while a socket that is waited for is ready; `None` while none is waited for.
    pub(super) fn readable(&self) -> Option<RawFd> {
        let waited_for = !self.lines.is_empty();
        let set = self.set.as_ref().filter(|_| waited_for);
        set.map(AsRawFd::as_raw_fd)
    }

    /// Puts a request in line. What can be done at once is, by the next [`serve`](Self::serve).
    pub(super) fn submit(&mut self, request: Request, out: &mut Vec<Finished>) {
        let (token, op) = (request.token, request.op);
        let mut answer = |buffer, result| {
            out.push(Finished {
                token,
                buffer,
                result,
            });
        };
        match op {
            Op::Recv { buffer, .. } if buffer.is_empty() => {
                answer(Some(buffer), Ok(Answer::Count(0)));
            }
            Op::Send { buffers, .. } if total(&buffers) == 0 => {
                answer(None, Ok(Answer::Count(0)));
            }
            Op::Recv {
                socket,
                buffer,
                exact,
            } => match self.line(&socket) {
                Ok((number, line)) => {
                    line.receives.push_back(Receive {
                        token,
                        buffer,
                        got: 0,
                        exact,
                    });
                    self.wait_for(token, number);
                    self.begin(number, out);
                }
                Err(error) => answer(Some(buffer), Err(error)),
            },
            Op::Send { socket, buffers } => match self.line(&socket) {
                Ok((number, line)) => {
                    line.sends.push_back(Send {
                        token,
                        buffers,
                        vectors: Vectors::new(),
                        sent: 0,
                    });
                    self.wait_for(token, number);
                }
                Err(error) => answer(None, Err(error)),
            },
            other => answer(
                other.into_buffer(),
                Err(Error::invalid("the operation is not about a socket")),
            ),
        }
    }

    fn line(&mut self, socket: &File) -> Result<(RawFd, &mut Line)> {
        let number = fd(socket)?;
        self.prepare()?;
        let line = self.lines.entry(number).or_insert_with(|| Line {
            file: socket.clone(),
            receives: VecDeque::new(),
            sends: VecDeque::new(),
            watched: 0,
        });
        Ok((number, line))
    }

    /// The first receive in line is tried at once. Most of all it may be refused: what a socket that
    /// listens says to it, the watched set would not tell.
    fn begin(&mut self, number: RawFd, out: &mut Vec<Finished>) {
        let first = |line: &Line| line.receives.len() == 1;
        if self.lines.get(&number).is_some_and(first) {
            self.serve_one(number, libc::EPOLLIN.cast_unsigned(), out);
            if self.lines.get(&number).is_some_and(Line::is_forgotten) {
                self.lines.remove(&number);
            }
        }
    }

    fn wait_for(&mut self, token: Token, number: RawFd) {
        self.places.insert(token, number);
    }

    /// Does what can be done at once.
    pub(super) fn serve(&mut self, out: &mut Vec<Finished>) {
        for number in std::mem::take(&mut self.roused) {
            self.serve_one(number, libc::EPOLLIN.cast_unsigned(), out);
            self.tidy(number, out);
        }
        let Some(set) = self.readable() else {
            return;
        };
        self.watch_all(set, out);
        let mut ready = [libc::epoll_event { events: 0, u64: 0 }; READY_MAX];
        let found = sys::ready(set, &mut ready).unwrap_or(0);
        for event in &ready[..found] {
            let (number, events) = (event.u64 as RawFd, event.events);
            self.serve_one(number, events, out);
            self.watch_one(set, number, out);
        }
    }

    /// Brings the set up to date with the lines that are new or changed.
    fn watch_all(&mut self, set: RawFd, out: &mut Vec<Finished>) {
        let stale =
            |(number, line): (&RawFd, &Line)| (line.watched != line.wanted()).then_some(*number);
        let changed: Vec<RawFd> = self.lines.iter().filter_map(stale).collect();
        for number in changed {
            self.watch_one(set, number, out);
        }
    }

    /// A line that cannot be watched is answered with the reason.
    fn watch_one(&mut self, set: RawFd, number: RawFd, out: &mut Vec<Finished>) {
        let Some(line) = self.lines.get_mut(&number) else {
            return;
        };
        let wanted = line.wanted();
        if wanted == line.watched {
            return;
        }
        let how = match (line.watched, wanted) {
            (0, _) => libc::EPOLL_CTL_ADD,
            (_, 0) => libc::EPOLL_CTL_DEL,
            _ => libc::EPOLL_CTL_MOD,
        };
        let answer = sys::watch(set, how, number, wanted);
        line.watched = wanted;
        if let Err(errno) = answer
            && wanted != 0
        {
            let told = || Error::from_errno(errno.0, "epoll");
            line.fail(&told, out);
            self.forget_answered(out);
        }
        if self.lines.get(&number).is_some_and(Line::is_empty) {
            self.lines.remove(&number);
        }
    }

    fn serve_one(&mut self, number: RawFd, events: u32, out: &mut Vec<Finished>) {
        let Some(line) = self.lines.get_mut(&number) else {
            return;
        };
        let (before, tally) = (out.len(), &mut self.tally);
        let broken = (libc::EPOLLERR | libc::EPOLLHUP).cast_unsigned();
        if events & (libc::EPOLLIN.cast_unsigned() | broken) != 0 {
            line.receive(number, tally, out);
        }
        if events & (libc::EPOLLOUT.cast_unsigned() | broken) != 0 {
            line.send(number, tally, out);
        }
        for finished in &out[before..] {
            self.places.remove(&finished.token);
        }
    }

    /// What it took since the last call.
    pub(super) fn take_tally(&mut self) -> Tally {
        std::mem::take(&mut self.tally)
    }

    fn forget_answered(&mut self, out: &[Finished]) {
        for finished in out {
            self.places.remove(&finished.token);
        }
    }

    /// Takes a request out of its line.
    pub(super) fn cancel(&mut self, token: Token, out: &mut Vec<Finished>) -> Option<Cancelled> {
        let number = self.places.remove(&token)?;
        let line = self.lines.get_mut(&number)?;
        if let Some(at) = line.receives.iter().position(|one| one.token == token) {
            let receive = line.receives.remove(at)?;
            let got = receive.got;
            receive.put_back(&line.file);
            out.push(receive.finish(Err(cancelled(got))));
            if got > 0 && !line.receives.is_empty() && !planted!("threads_stash_unseen") {
                // What was put back makes no socket readable.
                self.roused.push(number);
                if planted!("threads_stash_served_at_once") {
                    self.serve_one(number, libc::EPOLLIN.cast_unsigned(), out);
                }
            }
        } else {
            let at = line.sends.iter().position(|one| one.token == token)?;
            let send = line.sends.remove(at)?;
            let sent = send.sent;
            out.push(send.finish(Err(cancelled(sent))));
        }
        self.tidy(number, out);
        Some(Cancelled::Taken)
    }

    fn tidy(&mut self, number: RawFd, out: &mut Vec<Finished>) {
        if let Some(set) = self.set.as_ref().map(AsRawFd::as_raw_fd) {
            self.watch_one(set, number, out);
        }
        if self.lines.get(&number).is_some_and(Line::is_empty) {
            self.lines.remove(&number);
        }
    }

    /// Answers everything that waits.
    pub(super) fn shutdown(&mut self, told: &dyn Fn() -> Error, out: &mut Vec<Finished>) {
        for (_, mut line) in self.lines.drain() {
            line.fail(told, out);
        }
        self.places.clear();
        self.roused.clear();
        self.set = None;
    }
}

impl Line {
    fn wanted(&self) -> u32 {
        let receives = if self.receives.is_empty() {
            0
        } else {
            libc::EPOLLIN
        };
        let sends = if self.sends.is_empty() {
            0
        } else {
            libc::EPOLLOUT
        };
        (receives | sends).cast_unsigned()
    }

    /// Empty, and not in the watched set.
    fn is_forgotten(&self) -> bool {
        self.is_empty() && self.watched == 0
    }

    fn is_empty(&self) -> bool {
        self.receives.is_empty() && self.sends.is_empty()
    }

    fn receive(&mut self, number: RawFd, tally: &mut Tally, out: &mut Vec<Finished>) {
        debug_assert_eq!(self.file.fd(), Some(number));
        let mut calls = 0;
        while let Some(front) = self.receives.front_mut() {
            // Not counted: it ends with the stash or the line, and nobody tells of the rest.
            let kept = front.take_kept(&self.file);
            let counts = kept.is_none() || planted!("threads_stash_counts");
            if counts && calls == CALLS_MAX {
                return;
            }
            calls += usize::from(counts);
            let advanced = kept.map(Ok).or_else(|| front.advance(number, tally));
            let result = match advanced {
                None => return,
                Some(Ok(false)) => continue,
                Some(Ok(true)) => Ok(Answer::Count(front.got)),
                Some(Err(error)) => {
                    front.put_back(&self.file);
                    Err(error)
                }
            };
            if let Some(receive) = self.receives.pop_front() {
                out.push(receive.finish(result));
            }
        }
    }

    fn send(&mut self, number: RawFd, tally: &mut Tally, out: &mut Vec<Finished>) {
        for _ in 0..CALLS_MAX {
            let Some(front) = self.sends.front_mut() else {
                return;
            };
            let result = match front.advance(number, tally) {
                None => return,
                Some(Ok(false)) => continue,
                Some(Ok(true)) => Ok(Answer::Count(front.sent)),
                Some(Err(error)) => Err(error),
            };
            if let Some(send) = self.sends.pop_front() {
                out.push(send.finish(result));
            }
        }
    }

    fn fail(&mut self, told: &dyn Fn() -> Error, out: &mut Vec<Finished>) {
        out.extend(self.receives.drain(..).map(|one| one.finish(Err(told()))));
        out.extend(self.sends.drain(..).map(|one| one.finish(Err(told()))));
    }
}
