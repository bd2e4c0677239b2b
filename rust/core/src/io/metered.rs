//! A disk that keeps books on every request, around any other disk, and complains when they do not
//! balance.
//!
//! ```text
//! owner --- submit ---> entered: kind, bytes, when --> the disk inside
//! owner <-- poll ------ struck out, once, and timed <-- its answers
//! ```
//!
//! A backend that keeps the contract cannot be told from one without books. One that breaks it is
//! caught at the place where it does: the wrapper panics, as a test does.
//!
//! # Always true
//!
//! 1. Every request that was accepted is in the books until it was answered, and is answered once.
//! 2. A buffer comes back with its answer, as long as it was; an answer without one never has one.
//! 3. As many are in the books as the backend says are in flight, and never more than it takes.
//! 4. After `shutdown` nothing is taken, and what is left is what it said it leaves.

#![allow(
    clippy::panic,
    reason = "this belongs to the tests; it panics to say that a rule is broken"
)]

use std::{
    collections::HashMap,
    os::fd::{BorrowedFd, RawFd},
    sync::{Arc, Mutex},
    time::Duration,
};

use super::{
    Backend, Cancelled, Disk, Effort, File, Finished, Kind, Leftovers, Op, Request, Token, Wait,
    Wake,
};
use crate::{
    clock::Mono,
    error::Result,
    metrics::{Distribution, Histogram},
    sync::lock,
};

/// What became of the requests of one kind.
#[derive(Debug, Clone, Default)]
pub struct Account {
    /// Accepted.
    pub submitted: u64,
    /// Given back because the table was full, or the backend closed.
    pub refused: u64,
    /// Answered with success.
    pub done: u64,
    /// Answered with an error.
    pub failed: u64,
    /// Bytes of their buffers.
    pub bytes: u64,
    /// From submission to answer, in the time of the backend.
    pub took: Distribution,
}

#[derive(Default)]
struct Page {
    counts: Account,
    took: Histogram,
}

/// The books of a disk; clones share them.
#[derive(Clone, Default)]
pub struct Books(Arc<Mutex<Pages>>);

#[derive(Default)]
struct Pages {
    by_kind: HashMap<Kind, Page>,
    /// Left behind by shutdowns, which do not say what it was.
    left: u64,
}

impl Books {
    /// What became of the requests of `kind` so far, on all backends of the disk.
    pub fn account(&self, kind: Kind) -> Account {
        let pages = lock(&self.0);
        let read = |page: &Page| Account {
            took: page.took.snapshot(),
            ..page.counts.clone()
        };
        pages.by_kind.get(&kind).map(read).unwrap_or_default()
    }

    /// Requests that were accepted and have not come to any end.
    pub fn open(&self) -> u64 {
        let pages = lock(&self.0);
        let counts = pages.by_kind.values().map(|page| &page.counts);
        let open = counts.map(|of| of.submitted - of.done - of.failed);
        open.sum::<u64>() - pages.left
    }

    fn enter(&self, kind: Kind, change: impl FnOnce(&mut Page)) {
        change(lock(&self.0).by_kind.entry(kind).or_default());
    }
}

/// A disk around another one; see the module.
pub struct MeteredDisk<D> {
    inner: D,
    books: Books,
}

impl<D: Disk> MeteredDisk<D> {
    /// Wraps `inner`, with empty books.
    pub fn new(inner: D) -> Self {
        Self {
            inner,
            books: Books::default(),
        }
    }

    /// Where to read what happened.
    pub fn books(&self) -> Books {
        self.books.clone()
    }
}

impl<D: Disk> Disk for MeteredDisk<D> {
    fn backend(&self) -> Result<Box<dyn Backend>> {
        Ok(Box::new(Metered::new(
            self.inner.backend()?,
            self.books.clone(),
        )))
    }
}

/// What the books say about a request that is under way.
struct Entry {
    owner: Token,
    kind: Kind,
    /// Length of the buffer that has to come back.
    buffer: Option<usize>,
    bytes: u64,
    since: Mono,
}

/// A backend around another one; see the module.
pub struct Metered {
    inner: Box<dyn Backend>,
    books: Books,
    /// By the token given to the backend inside: owners may use theirs twice.
    under_way: HashMap<u64, Entry>,
    next: u64,
    /// Scratch for the answers of the backend inside.
    finished: Vec<Finished>,
    /// What the shutdown left behind; those stay in the table.
    left: Option<u64>,
}

impl Metered {
    /// Wraps `inner`.
    pub fn new(inner: Box<dyn Backend>, books: Books) -> Self {
        Self {
            inner,
            books,
            under_way: HashMap::new(),
            next: 0,
            finished: Vec::new(),
            left: None,
        }
    }

    /// Strikes an answer out, and gives it the owner's token.
    fn settle(&mut self, mut finished: Finished) -> Finished {
        let now = self.inner.now();
        let Some(entry) = self.under_way.remove(&finished.token.0) else {
            panic!("answered twice, or never asked: {finished:?}");
        };
        let back = finished.buffer.as_ref().map(|buffer| buffer.len());
        assert_eq!(back, entry.buffer, "the buffer of {finished:?}");
        let is_done = finished.result.is_ok();
        self.books.enter(entry.kind, |page| {
            page.counts.done += u64::from(is_done);
            page.counts.failed += u64::from(!is_done);
            page.took.record(now.since(entry.since));
        });
        finished.token = entry.owner;
        finished
    }

    fn check_balance(&self) {
        let (told, known) = (self.inner.in_flight(), self.under_way.len());
        let left = self.left.unwrap_or(0) as usize;
        assert_eq!(told + left, known, "in flight");
        assert!(told <= self.inner.capacity(), "more than it takes");
    }
}

fn buffer_of(op: &Op) -> Option<usize> {
    match op {
        Op::Read { buffer, .. } | Op::Write { buffer, .. } | Op::Recv { buffer, .. } => {
            Some(buffer.len())
        }
        _ => None,
    }
}

impl Backend for Metered {
    fn submit(&mut self, request: Request) -> Result<(), Request> {
        let (owner, kind) = (request.token, Kind::of(&request.op));
        let entry = Entry {
            owner,
            kind,
            buffer: buffer_of(&request.op),
            bytes: request.op.buffer_bytes(),
            since: self.inner.now(),
        };
        let inside = Token(self.next);
        let taken = self.inner.submit(Request {
            token: inside,
            ..request
        });
        if let Err(back) = taken {
            assert_eq!(back.token, inside, "another request was given back");
            assert_eq!(buffer_of(&back.op), entry.buffer, "without its buffer");
            self.books.enter(kind, |page| page.counts.refused += 1);
            return Err(Request {
                token: owner,
                ..back
            });
        }
        assert!(self.left.is_none(), "{kind:?} was taken after the shutdown");
        self.next += 1;
        self.books.enter(kind, |page| {
            page.counts.submitted += 1;
            page.counts.bytes += entry.bytes;
        });
        self.under_way.insert(inside.0, entry);
        self.check_balance();
        Ok(())
    }

    fn cancel(&mut self, token: Token) -> Cancelled {
        let mine = |(inside, entry): (&u64, &Entry)| (entry.owner == token).then_some(*inside);
        match self.under_way.iter().find_map(mine) {
            Some(inside) => self.inner.cancel(Token(inside)),
            None => Cancelled::TooLate,
        }
    }

    fn disown(&mut self, token: Token) -> bool {
        let mine = |(inside, entry): (&u64, &Entry)| (entry.owner == token).then_some(*inside);
        let inside = self.under_way.iter().find_map(mine);
        inside.is_some_and(|inside| self.inner.disown(Token(inside)))
    }

    fn poll(&mut self, out: &mut Vec<Finished>, wait: Wait) -> Result<()> {
        let mut finished = std::mem::take(&mut self.finished);
        let polled = self.inner.poll(&mut finished, wait);
        for one in finished.drain(..) {
            out.push(self.settle(one));
        }
        self.finished = finished;
        polled?;
        self.check_balance();
        Ok(())
    }

    fn waker(&self) -> Arc<dyn Wake> {
        self.inner.waker()
    }

    fn now(&self) -> Mono {
        self.inner.now()
    }

    fn in_flight(&self) -> usize {
        self.inner.in_flight()
    }

    fn capacity(&self) -> usize {
        self.inner.capacity()
    }

    fn due(&self) -> Option<Mono> {
        self.inner.due()
    }

    fn prepare(&mut self) -> Result<()> {
        self.inner.prepare()
    }

    fn effort(&self) -> Effort {
        self.inner.effort()
    }

    fn watched(&self) -> Vec<RawFd> {
        self.inner.watched()
    }

    fn notify(&mut self, bell: Option<BorrowedFd<'_>>) -> Result<()> {
        self.inner.notify(bell)
    }

    fn answer_to(&mut self, helper: Arc<dyn Wake>) {
        self.inner.answer_to(helper);
    }

    fn spare_caller(&mut self, yes: bool) {
        self.inner.spare_caller(yes);
    }

    fn has_left_over(&self) -> bool {
        self.inner.has_left_over()
    }

    fn hold(&mut self, lock: &File) -> Result<()> {
        self.inner.hold(lock)
    }

    fn let_go(&mut self) {
        self.inner.let_go();
    }

    fn shutdown(&mut self, budget: Option<Duration>) -> Leftovers {
        let left = self.inner.shutdown(budget);
        if self.left.is_none() {
            self.left = Some(left.requests);
            lock(&self.books.0).left += left.requests;
        }
        self.check_balance();
        left
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        clock::SystemClock,
        error::{Error, ErrorKind},
        io::{Access, BLOCK, Blocking, Buffer, Class, contract::Place},
        threads::ThreadsDisk,
    };

    #[test]
    fn the_books_say_what_happened() {
        // Belief: every request is counted under its kind, with its bytes, its time and its end.
        let place = Place::new("metered");
        let disk = MeteredDisk::new(ThreadsDisk::new(Arc::new(SystemClock::new())));
        let mut backend = disk.backend().unwrap();
        let mut io = Blocking::new(&mut *backend);
        let dir = io.open_dir(place.path(), false).unwrap();
        let file = io.open(&dir, "f", Access::CREATE).unwrap();
        for block in 0..3 {
            let buffer = Buffer::zeroed(BLOCK);
            io.write(&file, block * BLOCK as u64, BLOCK, buffer, true)
                .unwrap();
        }
        io.open(&dir, "absent", Access::READ).unwrap_err();
        let books = disk.books();
        let written = books.account(Kind::WriteSync);
        assert_eq!((written.submitted, written.done, written.failed), (3, 3, 0));
        assert_eq!(written.bytes, 3 * BLOCK as u64);
        assert_eq!(written.took.count, 3);
        let opened = books.account(Kind::Open);
        assert_eq!((opened.done, opened.failed), (1, 1));
        assert_eq!(books.open(), 0);
    }

    /// Breaks one rule, around nothing.
    #[derive(Default)]
    struct Liar {
        answers: Vec<Finished>,
        taken: usize,
        lie: Lie,
    }

    #[derive(Default, PartialEq)]
    enum Lie {
        #[default]
        Twice,
        NoBuffer,
        Miscounted,
        TakesAfterTheEnd,
    }

    struct Deaf;

    impl Wake for Deaf {
        fn wake(&self) {}
    }

    impl Backend for Liar {
        fn submit(&mut self, request: Request) -> Result<(), Request> {
            let token = request.token;
            let buffer = request.op.into_buffer();
            let mut answer = |buffer| {
                self.answers.push(Finished {
                    token,
                    buffer,
                    result: Err(Error::new(ErrorKind::Closed, "a lie")),
                });
            };
            answer(buffer.filter(|_| self.lie != Lie::NoBuffer));
            if self.lie == Lie::Twice {
                answer(None);
            }
            self.taken += 1 + usize::from(self.lie == Lie::Miscounted);
            Ok(())
        }

        fn poll(&mut self, out: &mut Vec<Finished>, _wait: Wait) -> Result<()> {
            out.append(&mut self.answers);
            self.taken = 0;
            Ok(())
        }

        fn waker(&self) -> Arc<dyn Wake> {
            Arc::new(Deaf)
        }

        fn now(&self) -> Mono {
            Mono(0)
        }

        fn in_flight(&self) -> usize {
            self.taken
        }

        fn hold(&mut self, _lock: &File) -> Result<()> {
            Ok(())
        }

        fn let_go(&mut self) {}

        fn shutdown(&mut self, _budget: Option<Duration>) -> Leftovers {
            Leftovers::default()
        }
    }

    fn tell(lie: Lie) {
        let file = File::from_number(1);
        let inner = Liar {
            lie,
            ..Liar::default()
        };
        let ends = inner.lie == Lie::TakesAfterTheEnd;
        let mut backend = Metered::new(Box::new(inner), Books::default());
        if ends {
            backend.shutdown(None);
        }
        let op = Op::Read {
            file,
            offset: 0,
            length: BLOCK,
            buffer: Buffer::zeroed(BLOCK),
        };
        let request = Request {
            token: Token(1),
            class: Class::Program,
            op,
        };
        backend.submit(request).unwrap();
        backend.poll(&mut Vec::new(), Wait::Never).unwrap();
    }

    #[test]
    #[should_panic(expected = "answered twice")]
    fn an_answer_that_comes_twice_is_noticed() {
        // Belief: see the name.
        tell(Lie::Twice);
    }

    #[test]
    #[should_panic(expected = "the buffer of")]
    fn a_buffer_that_does_not_come_back_is_noticed() {
        // Belief: see the name.
        tell(Lie::NoBuffer);
    }

    #[test]
    #[should_panic(expected = "in flight")]
    fn a_wrong_count_of_requests_in_flight_is_noticed() {
        // Belief: see the name.
        tell(Lie::Miscounted);
    }

    #[test]
    #[should_panic(expected = "after the shutdown")]
    fn what_is_taken_after_the_end_is_noticed() {
        // Belief: see the name.
        tell(Lie::TakesAfterTheEnd);
    }
}
