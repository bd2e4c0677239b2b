//! What every backend owes, as tests: one function for each rule.
//!
//! A backend's own tests say how to make a [`World`] and let [`contract_tests!`] write one test
//! for each rule. The same suite runs on every backend, bare and wrapped.
//!
//! [`contract_tests!`]: crate::contract_tests

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "this is a test suite; it panics to say that a rule is broken"
)]

use std::{
    any::Any,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use super::{
    Access, Answer, BLOCK, Backend, Blocking, Buffer, Class, Disk, File, Finished, Op, Open,
    Request, Token, Wait,
};
use crate::error::{ErrorKind, Result};

/// A disk under test and an empty directory on it.
pub struct World {
    /// Makes the backends.
    pub disk: Box<dyn Disk>,
    /// The directory; it exists, and belongs to this world alone.
    pub path: PathBuf,
    /// Waits take real time, other threads may wake, and there is a kernel behind it.
    pub real: bool,
    /// Dropped last; removes the directory.
    pub keep: Box<dyn Any>,
}

impl World {
    fn backend(&self) -> Box<dyn Backend> {
        self.disk.backend().unwrap()
    }

    fn dir(&self, backend: &mut dyn Backend) -> File {
        Blocking::new(backend).open_dir(&self.path, false).unwrap()
    }

    fn file(&self, backend: &mut dyn Backend, name: &str) -> File {
        let dir = self.dir(backend);
        let access = Access {
            open: Open::Any,
            ..Access::WRITE
        };
        Blocking::new(backend).open(&dir, name, access).unwrap()
    }
}

/// A directory of the machine that is removed with the world; for the `keep` of a real one.
pub struct Place(PathBuf);

impl Place {
    /// Makes an empty directory with `name` in its name.
    pub fn new(name: &str) -> Self {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("millrace-{}-{count}-{name}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }

    /// Where it is.
    pub fn path(&self) -> &std::path::Path {
        &self.0
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Runs an ignored test of this test binary in a process of its own, for what changes a process
/// for good: limits, filters, deaths. Panics with its output if it fails.
pub fn in_own_process(test: &str) {
    let program = std::env::current_exe().unwrap();
    let output = std::process::Command::new(program)
        .args([
            "--exact",
            test,
            "--ignored",
            "--nocapture",
            "--test-threads=1",
        ])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let complained = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && said.contains("1 passed"),
        "{test} in its own process: {}\n{said}\n{complained}",
        output.status
    );
}

fn filled(length: usize, seed: u8) -> Buffer {
    let mut buffer = Buffer::zeroed(length);
    for (index, byte) in buffer.iter_mut().enumerate() {
        *byte = (index as u8).wrapping_mul(31).wrapping_add(seed);
    }
    buffer
}

fn write(file: &File, offset: u64, buffer: Buffer, sync: bool) -> Op {
    Op::Write {
        file: file.clone(),
        offset,
        length: buffer.len(),
        buffer,
        sync,
    }
}

fn request(token: u64, class: Class, op: Op) -> Request {
    Request {
        token: Token(token),
        class,
        op,
    }
}

fn foreground(token: u64, op: Op) -> Request {
    request(token, Class::Foreground, op)
}

/// Polls until nothing is in flight.
fn finish(backend: &mut dyn Backend) -> Vec<Finished> {
    let mut out = Vec::new();
    while backend.in_flight() > 0 {
        backend.poll(&mut out, Wait::Forever).unwrap();
    }
    out
}

fn run(backend: &mut dyn Backend, op: Op) -> Finished {
    backend.submit(foreground(7, op)).unwrap();
    let mut out = finish(backend);
    assert_eq!(out.len(), 1);
    assert_eq!(out[0].token, Token(7));
    out.remove(0)
}

fn refused_as(result: Result<Answer>, kind: ErrorKind) {
    let error = result.unwrap_err();
    assert_eq!(error.kind(), kind, "{error}");
}

fn read(backend: &mut dyn Backend, file: &File, offset: u64, length: usize) -> Vec<u8> {
    let buffer = Buffer::zeroed(length);
    let (count, buffer) = Blocking::new(backend)
        .read(file, offset, length, buffer)
        .unwrap();
    buffer[..count].to_vec()
}

/// What was written is read back, at any offset, with or without sync.
pub fn bytes_come_back_as_written(world: &World) {
    let mut backend = world.backend();
    let file = world.file(&mut *backend, "f");
    let mut expected = vec![0u8; 5 * BLOCK];
    for (offset, length, sync) in [
        (0, BLOCK, true),
        (3 * BLOCK, 2 * BLOCK, false),
        (BLOCK + 1, 100, true),
        (7, 3, false),
    ] {
        let bytes = filled(length, offset as u8);
        expected[offset..offset + length].copy_from_slice(&bytes);
        let done = run(&mut *backend, write(&file, offset as u64, bytes, sync));
        done.result.unwrap();
        assert_eq!(done.buffer.unwrap().len(), length);
    }
    assert_eq!(read(&mut *backend, &file, 0, expected.len()), expected);
}

/// A read ends early only at the end of the file, and says how much it got.
pub fn a_read_ends_early_only_at_the_end(world: &World) {
    let mut backend = world.backend();
    let file = world.file(&mut *backend, "f");
    let length = 3 * BLOCK + 5;
    run(&mut *backend, write(&file, 0, filled(length, 1), false))
        .result
        .unwrap();
    assert_eq!(read(&mut *backend, &file, 0, length).len(), length);
    assert_eq!(
        read(&mut *backend, &file, BLOCK as u64, 4 * BLOCK).len(),
        length - BLOCK
    );
    assert!(read(&mut *backend, &file, length as u64, BLOCK).is_empty());
    assert!(read(&mut *backend, &file, 1 << 40, BLOCK).is_empty());
}

/// Only `length` bytes of a buffer take part; the rest is left alone.
pub fn a_transfer_stays_inside_its_length(world: &World) {
    let mut backend = world.backend();
    let file = world.file(&mut *backend, "f");
    let op = Op::Write {
        file: file.clone(),
        offset: 0,
        length: 10,
        buffer: filled(BLOCK, 1),
        sync: false,
    };
    run(&mut *backend, op).result.unwrap();
    assert_eq!(Blocking::new(&mut *backend).length(&file).unwrap(), 10);
    let op = Op::Read {
        file,
        offset: 0,
        length: 4,
        buffer: filled(BLOCK, 9),
    };
    let buffer = run(&mut *backend, op).buffer.unwrap();
    assert_eq!(buffer[..4], filled(BLOCK, 1)[..4]);
    assert_eq!(buffer[4..], filled(BLOCK, 9)[4..]);
}

/// An empty transfer succeeds and moves nothing.
pub fn an_empty_transfer_is_no_error(world: &World) {
    let mut backend = world.backend();
    let file = world.file(&mut *backend, "f");
    for sync in [false, true] {
        let op = write(&file, 5, Buffer::zeroed(0), sync);
        run(&mut *backend, op).result.unwrap();
    }
    assert_eq!(Blocking::new(&mut *backend).length(&file).unwrap(), 0);
    assert!(read(&mut *backend, &file, 0, 0).is_empty());
}

/// A buffer comes back with an error too, and a refused transfer changed nothing.
pub fn a_buffer_comes_back_with_an_error(world: &World) {
    let mut backend = world.backend();
    let file = world.file(&mut *backend, "f");
    let dir = world.dir(&mut *backend);
    let outside = Op::Write {
        file: file.clone(),
        offset: 0,
        length: BLOCK + 1,
        buffer: filled(BLOCK, 1),
        sync: false,
    };
    let done = run(&mut *backend, outside);
    refused_as(done.result, ErrorKind::Invalid);
    assert_eq!(done.buffer.unwrap()[..], filled(BLOCK, 1)[..]);
    let beyond = Op::Read {
        file,
        offset: u64::MAX - 10,
        length: BLOCK,
        buffer: filled(BLOCK, 2),
    };
    let done = run(&mut *backend, beyond);
    refused_as(done.result, ErrorKind::Invalid);
    assert_eq!(done.buffer.unwrap().len(), BLOCK);
    let mut io = Blocking::new(&mut *backend);
    let read_only = io.open(&dir, "f", Access::READ).unwrap();
    for sync in [false, true] {
        let done = run(&mut *backend, write(&read_only, 0, filled(BLOCK, 3), sync));
        assert!(done.result.is_err());
        assert_eq!(done.buffer.unwrap()[..], filled(BLOCK, 3)[..]);
    }
    assert_eq!(Blocking::new(&mut *backend).length(&read_only).unwrap(), 0);
}

/// Every request is finished exactly once, whatever its class and however many there are.
pub fn every_request_is_finished_exactly_once(world: &World) {
    let mut backend = world.backend();
    let file = world.file(&mut *backend, "f");
    let mut tokens = Vec::new();
    let mut out = Vec::new();
    for token in 0..300u64 {
        let class = if token % 3 == 0 {
            Class::Background
        } else {
            Class::Foreground
        };
        let op = match token % 5 {
            0 => Op::Length { file: file.clone() },
            1 => Op::Sync { file: file.clone() },
            2 => Op::Truncate {
                file: file.clone(),
                length: token,
            },
            _ => write(&file, token * 16, filled(16, token as u8), token % 2 == 0),
        };
        let mut next = request(token, class, op);
        while let Err(back) = backend.submit(next) {
            assert_eq!(back.token, Token(token));
            next = back;
            backend.poll(&mut out, Wait::Forever).unwrap();
        }
    }
    while backend.in_flight() > 0 {
        backend.poll(&mut out, Wait::Forever).unwrap();
    }
    for finished in out {
        finished.result.unwrap();
        assert_eq!(finished.buffer.is_some(), finished.token.0 % 5 > 2);
        tokens.push(finished.token.0);
    }
    tokens.sort_unstable();
    assert_eq!(tokens, (0..300).collect::<Vec<_>>());
}

/// A full table gives the request back whole, and takes it once there is room.
pub fn a_full_table_gives_the_request_back(world: &World) {
    let mut backend = world.backend();
    let file = world.file(&mut *backend, "f");
    let mut taken = 0;
    let refused = loop {
        let op = write(&file, taken * 16, filled(16, 1), false);
        match backend.submit(foreground(taken, op)) {
            Ok(()) => taken += 1,
            Err(request) => break Some(request),
        }
        assert_eq!(backend.in_flight() as u64, taken);
        if taken == 20_000 {
            // A table without bounds keeps this rule by never being full.
            break None;
        }
    };
    let mut out = finish(&mut *backend);
    if let Some(request) = refused {
        assert_eq!(request.token, Token(taken));
        let Op::Write { buffer, length, .. } = &request.op else {
            panic!("another request came back: {request:?}");
        };
        assert_eq!(buffer[..*length], filled(16, 1)[..]);
        backend.submit(request).unwrap();
        out.append(&mut finish(&mut *backend));
        taken += 1;
    }
    assert_eq!(out.len() as u64, taken);
    assert!(out.iter().all(|finished| finished.result.is_ok()));
}

/// A request keeps its file open by itself.
pub fn a_request_keeps_its_file_open(world: &World) {
    let mut backend = world.backend();
    let file = world.file(&mut *backend, "f");
    for token in 0..8 {
        let op = write(&file, token * 4096, filled(BLOCK, token as u8), true);
        backend.submit(foreground(token, op)).unwrap();
    }
    drop(file);
    assert!(finish(&mut *backend).iter().all(|done| done.result.is_ok()));
    let file = world.file(&mut *backend, "f");
    assert_eq!(
        read(&mut *backend, &file, 7 * 4096, BLOCK),
        filled(BLOCK, 7)[..]
    );
}

/// A foreground request does not wait behind background ones.
pub fn background_never_delays_foreground(world: &World) {
    const COUNT: u64 = 24;
    const LENGTH: usize = 4 << 20;
    if !world.real {
        return;
    }
    let mut backend = world.backend();
    let bulk = world.file(&mut *backend, "bulk");
    let file = world.file(&mut *backend, "f");
    for token in 0..COUNT {
        let op = write(&bulk, token * LENGTH as u64, Buffer::zeroed(LENGTH), true);
        backend
            .submit(request(token, Class::Background, op))
            .unwrap();
    }
    let op = write(&file, 0, filled(BLOCK, 1), true);
    backend.submit(foreground(COUNT, op)).unwrap();
    let out = finish(&mut *backend);
    let place = out
        .iter()
        .position(|done| done.token == Token(COUNT))
        .unwrap();
    assert!(out.iter().all(|done| done.result.is_ok()));
    assert!(place < COUNT as usize / 2, "finished as number {place}");
}

/// `Wait::Never` returns at once, `Wait::Until` at its time and not before, in the backend's time.
pub fn a_wait_lasts_as_long_as_told(world: &World) {
    let mut backend = world.backend();
    let mut out = Vec::new();
    backend.poll(&mut out, Wait::Never).unwrap();
    let until = backend.now().after(Duration::from_millis(20));
    backend.poll(&mut out, Wait::Until(until)).unwrap();
    assert!(
        backend.now() >= until,
        "{:?} before {until:?}",
        backend.now()
    );
    backend.poll(&mut out, Wait::Until(until)).unwrap();
    assert!(out.is_empty());
}

/// A wait ends when something finishes.
pub fn a_wait_ends_when_something_finishes(world: &World) {
    let mut backend = world.backend();
    let file = world.file(&mut *backend, "f");
    for class in [Class::Foreground, Class::Background] {
        let op = write(&file, 0, filled(BLOCK, 1), true);
        backend.submit(request(1, class, op)).unwrap();
        let far = backend.now().after(Duration::from_secs(600));
        let mut out = Vec::new();
        while out.is_empty() {
            backend.poll(&mut out, Wait::Until(far)).unwrap();
            assert!(backend.now() < far);
        }
        assert_eq!(backend.in_flight(), 0);
    }
}

/// A wake before the poll ends it; the poll after that waits again.
pub fn a_wake_before_a_poll_is_kept_once(world: &World) {
    let mut backend = world.backend();
    let mut out = Vec::new();
    for wakes in [1, 3] {
        for _ in 0..wakes {
            backend.waker().wake();
        }
        let far = backend.now().after(Duration::from_secs(600));
        backend.poll(&mut out, Wait::Until(far)).unwrap();
        assert!(backend.now() < far);
        let until = backend.now().after(Duration::from_millis(5));
        backend.poll(&mut out, Wait::Until(until)).unwrap();
        assert!(backend.now() >= until, "a wake was counted twice");
    }
}

/// A wake during the poll ends it, and none is lost however the two race.
pub fn no_wake_is_lost_in_a_race(world: &World) {
    const ROUNDS: u64 = 20_000;
    if !world.real {
        return;
    }
    let mut backend = world.backend();
    let said = Arc::new(AtomicU64::new(0));
    let heard = Arc::new(AtomicU64::new(0));
    let talker = std::thread::spawn({
        let (said, heard, waker) = (said.clone(), heard.clone(), backend.waker());
        move || {
            for round in 1..=ROUNDS {
                said.store(round, Ordering::Release);
                waker.wake();
                // Sometimes a lone wake into a sleeping owner, sometimes a burst.
                while round % 3 == 0 && heard.load(Ordering::Acquire) < round {
                    std::hint::spin_loop();
                }
            }
        }
    });
    let far = backend.now().after(Duration::from_secs(60));
    let mut out = Vec::new();
    while heard.load(Ordering::Relaxed) < ROUNDS {
        backend.poll(&mut out, Wait::Until(far)).unwrap();
        assert!(backend.now() < far, "a wake was lost");
        heard.store(said.load(Ordering::Acquire), Ordering::Release);
    }
    talker.join().unwrap();
}

/// Wakes and answers do not hide each other.
pub fn wakes_and_answers_do_not_hide_each_other(world: &World) {
    if !world.real {
        return;
    }
    let mut backend = world.backend();
    let file = world.file(&mut *backend, "f");
    let stop = Arc::new(AtomicU64::new(0));
    let talker = std::thread::spawn({
        let (stop, waker) = (stop.clone(), backend.waker());
        move || {
            while stop.load(Ordering::Relaxed) == 0 {
                waker.wake();
                std::thread::yield_now();
            }
        }
    });
    let mut out = Vec::new();
    for token in 0..200 {
        let class = [Class::Foreground, Class::Background][token as usize % 2];
        let op = write(&file, 0, filled(16, token as u8), false);
        backend.submit(request(token, class, op)).unwrap();
        while backend.in_flight() > 0 {
            backend.poll(&mut out, Wait::Forever).unwrap();
        }
    }
    stop.store(1, Ordering::Relaxed);
    talker.join().unwrap();
    assert_eq!(out.len(), 200);
    assert!(out.iter().all(|done| done.result.is_ok()));
}

/// Signals that interrupt the owner's waits neither end them early nor lose an answer.
pub fn signals_do_not_disturb(world: &World) {
    extern "C" fn nothing(_signal: libc::c_int) {}
    if !world.real {
        return;
    }
    // SAFETY: installs a handler that does nothing, without SA_RESTART, for a signal that nothing
    // else here uses; the structure is plain numbers, so zeros are a valid beginning.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = nothing as *const () as usize;
        assert_eq!(
            libc::sigaction(libc::SIGUSR2, &raw const action, std::ptr::null_mut()),
            0
        );
    }
    let stop = Arc::new(AtomicU64::new(0));
    // SAFETY: asks for the calling thread's own name.
    let owner = unsafe { libc::pthread_self() } as usize;
    let disturber = std::thread::spawn({
        let stop = stop.clone();
        move || {
            while stop.load(Ordering::Acquire) == 0 {
                // SAFETY: the owner's thread lives until this one is joined.
                unsafe { libc::pthread_kill(owner as libc::pthread_t, libc::SIGUSR2) };
                std::thread::yield_now();
            }
        }
    });
    let mut backend = world.backend();
    let file = world.file(&mut *backend, "f");
    for token in 0..24 {
        let class = [Class::Foreground, Class::Background][token as usize % 2];
        let op = write(&file, token * 16, filled(16, token as u8), true);
        backend.submit(request(token, class, op)).unwrap();
    }
    let out = finish(&mut *backend);
    let until = backend.now().after(Duration::from_millis(20));
    backend.poll(&mut Vec::new(), Wait::Until(until)).unwrap();
    let in_time = backend.now() >= until;
    stop.store(1, Ordering::Release);
    disturber.join().unwrap();
    assert!(in_time, "a signal ended a wait");
    assert_eq!(out.len(), 24);
    assert!(out.iter().all(|done| done.result.is_ok()));
}

/// A name with a zero, a slash, or one that means a directory is refused before the disk sees it.
pub fn a_bad_name_is_refused(world: &World) {
    let mut backend = world.backend();
    let file = world.file(&mut *backend, "good");
    drop(file);
    let dir = world.dir(&mut *backend);
    for name in ["", ".", "..", "a/b", "a\0b", &"x".repeat(256)] {
        let name = || name.to_owned();
        for op in [
            Op::Open {
                dir: dir.clone(),
                name: name(),
                access: Access::CREATE,
            },
            Op::Unlink {
                dir: dir.clone(),
                name: name(),
            },
            Op::Rename {
                dir: dir.clone(),
                from: "good".into(),
                to: name(),
            },
            Op::Rename {
                dir: dir.clone(),
                from: name(),
                to: "better".into(),
            },
        ] {
            refused_as(run(&mut *backend, op).result, ErrorKind::Invalid);
        }
    }
    assert_eq!(Blocking::new(&mut *backend).list(&dir).unwrap(), ["good"]);
}

/// What must exist and does not, or the other way round, is an error that says which.
pub fn opening_keeps_to_what_was_asked(world: &World) {
    let mut backend = world.backend();
    let dir = world.dir(&mut *backend);
    let mut io = Blocking::new(&mut *backend);
    let any = Access {
        open: Open::Any,
        ..Access::WRITE
    };
    let missing = io.open(&dir, "f", Access::WRITE).unwrap_err();
    assert_eq!(missing.errno(), Some(libc::ENOENT));
    io.open(&dir, "f", Access::CREATE).unwrap();
    let there = io.open(&dir, "f", Access::CREATE).unwrap_err();
    assert_eq!(there.errno(), Some(libc::EEXIST));
    io.open(&dir, "f", any).unwrap();
    io.open(&dir, "g", any).unwrap();
    assert_eq!(io.list(&dir).unwrap(), ["f", "g"]);
    let gone = io.unlink(&dir, "h").unwrap_err();
    assert_eq!(gone.errno(), Some(libc::ENOENT));
    let gone = io.rename(&dir, "h", "f").unwrap_err();
    assert_eq!(gone.errno(), Some(libc::ENOENT));
}

/// A directory is made when asked for, found when there, and missed otherwise.
pub fn a_directory_is_made_when_asked_for(world: &World) {
    let mut backend = world.backend();
    let mut io = Blocking::new(&mut *backend);
    let path = world.path.join("inner");
    let missing = io.open_dir(&path, false).unwrap_err();
    assert_eq!(missing.errno(), Some(libc::ENOENT));
    let dir = io.open_dir(&path, true).unwrap();
    io.open(&dir, "f", Access::CREATE).unwrap();
    let again = io.open_dir(&path, true).unwrap();
    assert_eq!(io.list(&again).unwrap(), ["f"]);
    io.sync_dir(&again).unwrap();
}

/// A rename replaces what was there; an unlinked file lives as long as its handle.
pub fn names_move_and_files_stay(world: &World) {
    let mut backend = world.backend();
    let dir = world.dir(&mut *backend);
    let mut io = Blocking::new(&mut *backend);
    let old = io.open(&dir, "old", Access::CREATE).unwrap();
    let new = io.open(&dir, "new", Access::CREATE).unwrap();
    io.write(&old, 0, 8, filled(8, 1), true).unwrap();
    io.write(&new, 0, 8, filled(8, 2), true).unwrap();
    io.rename(&dir, "old", "new").unwrap();
    io.sync_dir(&dir).unwrap();
    assert_eq!(io.list(&dir).unwrap(), ["new"]);
    let found = io.open(&dir, "new", Access::READ).unwrap();
    let (_, bytes) = io.read(&found, 0, 8, Buffer::zeroed(8)).unwrap();
    assert_eq!(bytes[..], filled(8, 1)[..]);
    let (_, bytes) = io.read(&new, 0, 8, Buffer::zeroed(8)).unwrap();
    assert_eq!(bytes[..], filled(8, 2)[..]);
    io.unlink(&dir, "new").unwrap();
    assert!(io.list(&dir).unwrap().is_empty());
    let (count, _) = io.read(&found, 0, 8, Buffer::zeroed(8)).unwrap();
    assert_eq!(count, 8);
}

/// A file is cut, extended with zeros and reserved; a dropped cache loses nothing synced.
pub fn lengths_follow_their_orders(world: &World) {
    let mut backend = world.backend();
    let file = world.file(&mut *backend, "f");
    let mut io = Blocking::new(&mut *backend);
    io.write(&file, 0, BLOCK, filled(BLOCK, 1), false).unwrap();
    io.truncate(&file, 100).unwrap();
    io.truncate(&file, 3 * BLOCK as u64).unwrap();
    assert_eq!(io.length(&file).unwrap(), 3 * BLOCK as u64);
    io.allocate(&file, 2 * BLOCK as u64).unwrap();
    assert_eq!(io.length(&file).unwrap(), 3 * BLOCK as u64);
    io.sync(&file).unwrap();
    io.drop_cache(&file).unwrap();
    let bytes = read(&mut *backend, &file, 0, 3 * BLOCK);
    assert_eq!(bytes[..100], filled(BLOCK, 1)[..100]);
    assert!(bytes[100..].iter().all(|byte| *byte == 0));
}

/// One lock, one holder: given back by `unlock` or with the last handle.
pub fn a_lock_has_one_holder(world: &World) {
    let mut first = world.backend();
    let mut second = world.backend();
    let mine = world.file(&mut *first, "LOCK");
    let other = world.file(&mut *second, "LOCK");
    let lock = |backend: &mut dyn Backend, file: &File| Blocking::new(backend).lock(file);
    lock(&mut *first, &mine).unwrap();
    let refused = lock(&mut *second, &other).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Locked);
    Blocking::new(&mut *first).unlock(&mine).unwrap();
    lock(&mut *second, &other).unwrap();
    assert_eq!(
        lock(&mut *first, &mine).unwrap_err().kind(),
        ErrorKind::Locked
    );
    drop(other);
    lock(&mut *first, &mine).unwrap();
}

/// A held lock stays taken until it is let go, and is free at once after that.
pub fn a_held_lock_is_free_at_once_when_let_go(world: &World) {
    for round in 0..5 {
        let mut backend = world.backend();
        let lock = world.file(&mut *backend, "LOCK");
        let file = world.file(&mut *backend, "f");
        let mut io = Blocking::new(&mut *backend);
        io.lock(&lock).unwrap();
        io.hold(&lock).unwrap();
        io.write(&file, 0, 16, filled(16, round), true).unwrap();
        // Letting the handle go is not enough: the backend holds it.
        drop(lock);
        let mut other = world.backend();
        let again = world.file(&mut *other, "LOCK");
        let refused = Blocking::new(&mut *other).lock(&again).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Locked);
        backend.let_go();
        Blocking::new(&mut *other).lock(&again).unwrap();
        backend.let_go();
        backend.shutdown(None);
    }
}

/// Shutdown answers everything or says what it left behind, and takes nothing after.
pub fn shutdown_accounts_for_everything(world: &World) {
    for budget in [None, Some(Duration::ZERO), Some(Duration::from_secs(10))] {
        let mut backend = world.backend();
        let file = world.file(&mut *backend, "f");
        for token in 0..20 {
            let class = [Class::Foreground, Class::Background][token as usize % 2];
            let op = write(&file, token << 20, filled(1 << 18, 1), true);
            backend.submit(request(token, class, op)).unwrap();
        }
        let mut out = Vec::new();
        backend.poll(&mut out, Wait::Never).unwrap();
        let left = backend.shutdown(budget);
        if budget != Some(Duration::ZERO) {
            assert_eq!(left.requests, 0);
        }
        assert_eq!(left.bytes, left.requests << 18);
        let op = Op::Sync { file };
        assert!(backend.submit(foreground(99, op)).is_err());
        while backend.in_flight() > 0 {
            backend.poll(&mut out, Wait::Never).unwrap();
        }
        assert_eq!(out.len() as u64 + left.requests, 20);
        assert!(out.iter().all(|done| done.buffer.is_some()));
        backend.shutdown(budget);
    }
}

/// A backend that is dropped with work in flight leaves its disk usable.
pub fn a_dropped_backend_leaves_the_disk_usable(world: &World) {
    let mut backend = world.backend();
    let file = world.file(&mut *backend, "f");
    for token in 0..20 {
        let class = [Class::Foreground, Class::Background][token as usize % 2];
        let op = write(&file, token << 16, filled(1 << 16, 1), false);
        backend.submit(request(token, class, op)).unwrap();
    }
    backend.poll(&mut Vec::new(), Wait::Never).unwrap();
    let waker = backend.waker();
    drop(backend);
    waker.wake();
    let mut backend = world.backend();
    let file = world.file(&mut *backend, "g");
    run(&mut *backend, write(&file, 0, filled(16, 1), true))
        .result
        .unwrap();
}

/// A write that meets the limit of file sizes is answered with an error and its buffer, and what
/// fitted is written. Changes the limits of the process: run it with [`in_own_process`].
pub fn a_write_meets_the_size_limit(world: &World) {
    const LIMIT: usize = 3 * BLOCK;
    let limit = libc::rlimit {
        rlim_cur: LIMIT as u64,
        rlim_max: libc::RLIM_INFINITY,
    };
    let mut backend = world.backend();
    let file = world.file(&mut *backend, "f");
    // SAFETY: ignores a signal and sets a limit of this process, from plain values.
    unsafe {
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
        assert_eq!(libc::setrlimit(libc::RLIMIT_FSIZE, &raw const limit), 0);
    }
    for (sync, class) in [
        (false, Class::Foreground),
        (true, Class::Foreground),
        (true, Class::Background),
    ] {
        let op = write(&file, 0, filled(2 * LIMIT, 5), sync);
        backend.submit(request(1, class, op)).unwrap();
        let done = finish(&mut *backend).remove(0);
        let error = done.result.unwrap_err();
        assert_eq!(error.errno(), Some(libc::EFBIG), "{error}");
        assert_eq!(error.kind(), ErrorKind::NoSpace);
        assert_eq!(done.buffer.unwrap().len(), 2 * LIMIT);
        let there = read(&mut *backend, &file, 0, 2 * LIMIT);
        assert_eq!(there, filled(2 * LIMIT, 5)[..LIMIT]);
        Blocking::new(&mut *backend).truncate(&file, 0).unwrap();
    }
}

/// Writes one test for each rule; the argument is a function from a test's name to a
/// [`World`](crate::io::contract::World).
#[macro_export]
macro_rules! contract_tests {
    ($world:path) => {
        $crate::contract_tests! { @each $world:
            bytes_come_back_as_written
            a_read_ends_early_only_at_the_end
            a_transfer_stays_inside_its_length
            an_empty_transfer_is_no_error
            a_buffer_comes_back_with_an_error
            every_request_is_finished_exactly_once
            a_full_table_gives_the_request_back
            a_request_keeps_its_file_open
            background_never_delays_foreground
            a_wait_lasts_as_long_as_told
            a_wait_ends_when_something_finishes
            a_wake_before_a_poll_is_kept_once
            no_wake_is_lost_in_a_race
            wakes_and_answers_do_not_hide_each_other
            signals_do_not_disturb
            a_bad_name_is_refused
            opening_keeps_to_what_was_asked
            a_directory_is_made_when_asked_for
            names_move_and_files_stay
            lengths_follow_their_orders
            a_lock_has_one_holder
            a_held_lock_is_free_at_once_when_let_go
            shutdown_accounts_for_everything
            a_dropped_backend_leaves_the_disk_usable
        }
    };
    (@each $world:path: $($rule:ident)*) => {
        $(
            #[test]
            fn $rule() {
                // What is believed is said by the rule of this name.
                $crate::io::contract::$rule(&$world(stringify!($rule)));
            }
        )*
    };
}
