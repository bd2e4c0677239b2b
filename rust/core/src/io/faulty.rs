//! A disk that fails when told to, around any other disk.
//!
//! ```text
//! owner --- submit ---> count it; is it the one?  --no---> the disk inside
//!                              |                               |
//!                              +-- before: never done --+      |
//! owner <-- poll ------ errno in place of the answer <--+------+ after: done all the same
//! ```
//!
//! Short transfers are below the contract, so they are not here; a power cut is the simulated
//! disk's business.

use std::{
    collections::HashMap,
    os::fd::{BorrowedFd, RawFd},
    sync::{Arc, Mutex},
    time::Duration,
};

use super::{
    Backend, Cancelled, Disk, Effort, File, Finished, Kind, Leftovers, Request, Token, Wait, Wake,
};
use crate::{
    clock::Mono,
    error::{Error, Result},
    sync::lock,
};

/// One way to fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault {
    /// Which requests.
    pub kind: Kind,
    /// How many of them succeed first, counted from when the fault was set.
    pub after: u64,
    /// What is answered.
    pub errno: i32,
    /// Every later one fails too.
    pub lasting: bool,
    /// The request is carried out all the same: an answer that says less than what happened.
    pub done: bool,
}

impl Fault {
    /// The next request of `kind` fails with `errno` and is not carried out.
    pub const fn next(kind: Kind, errno: i32) -> Self {
        Self {
            kind,
            after: 0,
            errno,
            lasting: false,
            done: false,
        }
    }

    /// The same after `count` that succeed.
    #[must_use]
    pub const fn after(self, count: u64) -> Self {
        Self {
            after: count,
            ..self
        }
    }

    /// The same, from then on for ever.
    #[must_use]
    pub const fn lasting(self) -> Self {
        Self {
            lasting: true,
            ..self
        }
    }

    /// The same, but the request is carried out and only its answer is an error.
    #[must_use]
    pub const fn done(self) -> Self {
        Self { done: true, ..self }
    }
}

/// The faults of a disk; clones share them. Set before or while it is used, from any thread.
#[derive(Debug, Clone, Default)]
pub struct Faults(Arc<Mutex<Plan>>);

#[derive(Debug, Default)]
struct Plan {
    faults: Vec<Fault>,
    seen: HashMap<Kind, u64>,
    failed: u64,
}

impl Faults {
    /// Adds a fault.
    pub fn set(&self, fault: Fault) {
        lock(&self.0).faults.push(fault);
    }

    /// Takes all faults back.
    pub fn clear(&self) {
        lock(&self.0).faults.clear();
    }

    /// How many requests of `kind` were submitted.
    pub fn seen(&self, kind: Kind) -> u64 {
        lock(&self.0).seen.get(&kind).copied().unwrap_or(0)
    }

    /// How many requests were made to fail.
    pub fn failed(&self) -> u64 {
        lock(&self.0).failed
    }

    /// Counts a request and says whether, and how, it fails.
    fn meet(&self, kind: Kind) -> Option<Fault> {
        let mut plan = lock(&self.0);
        *plan.seen.entry(kind).or_default() += 1;
        let mut hit = None;
        for fault in plan.faults.iter_mut().filter(|fault| fault.kind == kind) {
            match fault.after.checked_sub(1) {
                Some(after) => fault.after = after,
                None => hit = hit.or(Some(*fault)),
            }
        }
        let fault = hit?;
        plan.failed += 1;
        if !fault.lasting
            && let Some(place) = plan.faults.iter().position(|other| *other == fault)
        {
            plan.faults.remove(place);
        }
        Some(fault)
    }
}

/// A disk around another one; see the module.
pub struct FaultyDisk<D> {
    inner: D,
    faults: Faults,
}

impl<D: Disk> FaultyDisk<D> {
    /// Wraps `inner`, without faults so far.
    pub fn new(inner: D) -> Self {
        Self {
            inner,
            faults: Faults::default(),
        }
    }

    /// Where faults are set.
    pub fn faults(&self) -> Faults {
        self.faults.clone()
    }

    /// The disk inside.
    pub fn inner(&self) -> &D {
        &self.inner
    }
}

impl<D: Disk> Disk for FaultyDisk<D> {
    fn backend(&self) -> Result<Box<dyn Backend>> {
        Ok(Box::new(FaultyBackend {
            inner: self.inner.backend()?,
            faults: self.faults.clone(),
            under_way: HashMap::new(),
            next: 0,
            ready: Vec::new(),
            finished: Vec::new(),
            closed: false,
        }))
    }
}

struct FaultyBackend {
    inner: Box<dyn Backend>,
    faults: Faults,
    /// By the token given to the backend inside: the owner's token, and the errno to answer.
    under_way: HashMap<u64, (Token, Option<i32>)>,
    next: u64,
    /// Answered without being carried out.
    ready: Vec<Finished>,
    /// Scratch for the answers of the backend inside.
    finished: Vec<Finished>,
    closed: bool,
}

fn injected(errno: i32) -> Error {
    Error::from_errno(errno, "injected fault")
}

impl Backend for FaultyBackend {
    fn submit(&mut self, request: Request) -> Result<(), Request> {
        if self.closed {
            return Err(request);
        }
        let fault = self.faults.meet(Kind::of(&request.op));
        if let Some(fault) = fault.filter(|fault| !fault.done) {
            self.ready.push(Finished {
                token: request.token,
                buffer: request.op.into_buffer(),
                result: Err(injected(fault.errno)),
            });
            return Ok(());
        }
        let token = request.token;
        let (inside, errno) = (self.next, fault.map(|fault| fault.errno));
        let request = Request {
            token: Token(inside),
            ..request
        };
        self.inner
            .submit(request)
            .map_err(|request| Request { token, ..request })?;
        self.next += 1;
        self.under_way.insert(inside, (token, errno));
        Ok(())
    }

    fn cancel(&mut self, token: Token) -> Cancelled {
        let mine = |(inside, (owner, _)): (&u64, &(Token, _))| (*owner == token).then_some(*inside);
        match self.under_way.iter().find_map(mine) {
            Some(inside) => self.inner.cancel(Token(inside)),
            None => Cancelled::TooLate,
        }
    }

    fn disown(&mut self, token: Token) -> bool {
        let mine = |(inside, (owner, _)): (&u64, &(Token, _))| (*owner == token).then_some(*inside);
        let inside = self.under_way.iter().find_map(mine);
        inside.is_some_and(|inside| self.inner.disown(Token(inside)))
    }

    fn poll(&mut self, out: &mut Vec<Finished>, wait: Wait) -> Result<()> {
        let wait = if self.ready.is_empty() {
            wait
        } else {
            Wait::Never
        };
        self.inner.poll(&mut self.finished, wait)?;
        out.append(&mut self.ready);
        for mut finished in self.finished.drain(..) {
            if let Some((token, errno)) = self.under_way.remove(&finished.token.0) {
                finished.token = token;
                if let Some(errno) = errno {
                    finished.result = Err(injected(errno));
                }
            }
            out.push(finished);
        }
        Ok(())
    }

    fn waker(&self) -> Arc<dyn Wake> {
        self.inner.waker()
    }

    fn now(&self) -> Mono {
        self.inner.now()
    }

    fn in_flight(&self) -> usize {
        self.inner.in_flight() + self.ready.len()
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

    fn watched(&self) -> Vec<RawFd> {
        self.inner.watched()
    }

    fn hold(&mut self, lock: &File) -> Result<()> {
        self.inner.hold(lock)
    }

    fn let_go(&mut self) {
        self.inner.let_go();
    }

    fn shutdown(&mut self, budget: Option<Duration>) -> Leftovers {
        self.closed = true;
        self.inner.shutdown(budget)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        clock::SystemClock,
        io::{
            Access, BLOCK, Blocking, Buffer,
            contract::{Place, World},
        },
        threads::ThreadsDisk,
    };

    fn disk() -> FaultyDisk<ThreadsDisk> {
        FaultyDisk::new(ThreadsDisk::new(Arc::new(SystemClock::new())))
    }

    mod without_faults {
        use super::{Place, World};

        fn world(name: &str) -> World {
            let place = Place::new(name);
            World {
                disk: Box::new(super::disk()),
                path: place.path().to_owned(),
                real: true,
                keep: Box::new(place),
            }
        }
        crate::contract_tests!(world);
    }

    fn write(io: &mut Blocking, file: &File, seed: u8, sync: bool) -> Result<()> {
        let mut buffer = Buffer::zeroed(BLOCK);
        buffer.fill(seed);
        io.write(file, 0, BLOCK, buffer, sync).map(drop)
    }

    fn first_byte(io: &mut Blocking, file: &File) -> u8 {
        let (count, bytes) = io.read(file, 0, 1, Buffer::zeroed(1)).unwrap();
        if count == 0 { 0 } else { bytes[0] }
    }

    #[test]
    fn the_chosen_request_fails_and_no_other() {
        // Counted by kind: once or from then on, carried out or not.
        let place = Place::new("faulty");
        let disk = disk();
        let faults = disk.faults();
        let mut backend = disk.backend().unwrap();
        let mut io = Blocking::new(&mut *backend);
        let dir = io.open_dir(place.path(), false).unwrap();
        let file = io.open(&dir, "f", Access::CREATE).unwrap();

        faults.set(Fault::next(Kind::WriteSync, libc::EIO).after(1));
        write(&mut io, &file, 1, false).unwrap();
        write(&mut io, &file, 2, true).unwrap();
        let error = write(&mut io, &file, 3, true).unwrap_err();
        assert_eq!(error.errno(), Some(libc::EIO));
        assert_eq!(first_byte(&mut io, &file), 2);
        write(&mut io, &file, 4, true).unwrap();

        faults.set(Fault::next(Kind::Write, libc::ENOSPC).lasting().done());
        for seed in [5, 6] {
            let error = write(&mut io, &file, seed, false).unwrap_err();
            assert_eq!(error.errno(), Some(libc::ENOSPC));
            assert_eq!(first_byte(&mut io, &file), seed);
        }
        faults.clear();
        write(&mut io, &file, 7, false).unwrap();
        assert_eq!(faults.failed(), 3);
        assert_eq!(
            (faults.seen(Kind::Write), faults.seen(Kind::WriteSync)),
            (4, 3)
        );
    }

    #[test]
    fn two_faults_of_a_kind_count_on_their_own() {
        // The second and the third fail, each with its own errno.
        let disk = disk();
        let faults = disk.faults();
        faults.set(Fault::next(Kind::OpenDir, libc::EIO).after(1));
        faults.set(Fault::next(Kind::OpenDir, libc::EMFILE).after(2));
        let mut backend = disk.backend().unwrap();
        let mut io = Blocking::new(&mut *backend);
        let said: Vec<_> = (0..4)
            .map(|_| {
                io.open_dir("/".as_ref(), false)
                    .err()
                    .and_then(|e| e.errno())
            })
            .collect();
        assert_eq!(said, [None, Some(libc::EIO), Some(libc::EMFILE), None]);
    }
}
