//! What the ring does about names: by itself, or not at all.

use std::{
    os::fd::{AsRawFd, IntoRawFd},
    path::Path,
    sync::Arc,
};

use io_uring::{Probe, opcode};

use crate::{
    clock::SystemClock,
    error::ErrorKind,
    io::{
        Answer, Backend, Cancelled, Class, File, Finished, Op, Request, Status, Token, Wait,
        contract::{Place, in_own_process},
        sys,
    },
    uring::{
        Key, Ring, UringBackend, UringDisk,
        flight::Way,
        names::{self, Offer},
    },
};

fn disk() -> UringDisk {
    UringDisk::probe(Arc::new(SystemClock::new()), None).unwrap()
}

fn open(path: &Path, flags: i32) -> Op {
    Op::OpenPath {
        path: path.to_owned(),
        flags: flags | libc::O_NONBLOCK,
        mode: 0o600,
    }
}

fn request(op: Op) -> Request {
    Request {
        token: Token(1),
        class: Class::Program,
        op,
    }
}

fn finish(backend: &mut UringBackend) -> Finished {
    let mut out = Vec::new();
    while backend.in_flight() > 0 {
        backend.poll(&mut out, Wait::Forever).unwrap();
    }
    assert_eq!(out.len(), 1);
    out.remove(0)
}

fn run(backend: &mut UringBackend, op: Op) -> crate::Result<Answer> {
    backend.submit(request(op)).unwrap();
    finish(backend).result
}

fn file(answer: crate::Result<Answer>) -> File {
    match answer {
        Ok(Answer::File(file)) => file,
        other => panic!("{other:?}"),
    }
}

fn status(answer: crate::Result<Answer>) -> Status {
    match answer {
        Ok(Answer::Status(status)) => *status,
        other => panic!("{other:?}"),
    }
}

/// A file whose name the kernel knows, on a filesystem that has a device; its directory first.
fn known(name: &str) -> (Place, std::path::PathBuf) {
    let place = Place::new(name);
    let path = place.path().join("f");
    std::fs::write(&path, b"abc").unwrap();
    (place, path)
}

/// Puts a request in the table, as if its submission were under way.
fn flown(backend: &mut UringBackend, op: Op) -> Key {
    let Way::Ring(flight) = names::sort(request(op), backend.offer) else {
        panic!("not for the ring");
    };
    backend.in_flight += 1;
    backend.board(flight).unwrap()
}

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

#[test]
fn names_that_are_known_need_no_thread() {
    // Opening to read, looking and closing are done while the ring is entered, whoever turns it:
    // no thread is started, nothing is counted as tried again, and what is told is the same.
    let (_place, path) = known("known");
    let mut apart = disk().without_names().open().unwrap();
    let stat = || Op::StatPath { path: path.clone() };
    let expected = status(run(&mut apart, stat()));
    assert!(apart.pool.has_begun());
    for disk in [disk(), disk().with_plain_ring(), disk().for_guests()] {
        let mut backend = disk.open().unwrap();
        assert_eq!(status(run(&mut backend, stat())), expected);
        let opened = file(run(&mut backend, open(&path, libc::O_RDONLY)));
        let fd = opened.fd().unwrap();
        let look = Op::Stat {
            file: opened.clone(),
        };
        assert_eq!(status(run(&mut backend, look)), expected);
        if sys::status_at_once(fd).is_none() {
            return;
        }
        run(&mut backend, Op::Close { file: opened }).unwrap();
        let missing = path.with_file_name("no");
        assert!(!missing.exists());
        let missing = run(&mut backend, open(&missing, libc::O_RDONLY));
        assert_eq!(missing.unwrap_err().errno(), Some(libc::ENOENT));
        assert!(!backend.pool.has_begun());
        assert_eq!(backend.effort().retried, 0);
    }
}

#[test]
fn what_makes_or_may_wait_is_left_to_threads() {
    // Openings that make a file, or wait for a peer, and closings that may write or free what was
    // in the file; and nothing is the ring's where it was not offered.
    let (_place, path) = known("left");
    let offer = disk().offer;
    let rings = |op, offer| matches!(names::sort(request(op), offer), Way::Ring(_));
    assert!(rings(open(&path, libc::O_RDWR), offer));
    assert!(!rings(open(&path, libc::O_RDWR), Offer::default()));
    for flags in [libc::O_CREAT, libc::O_TRUNC, libc::O_TMPFILE] {
        assert!(!rings(open(&path, libc::O_RDWR | flags), offer));
    }
    let waits = Op::OpenPath {
        path: path.clone(),
        flags: libc::O_RDONLY,
        mode: 0,
    };
    assert!(!rings(waits, offer));
    let close = |file: std::fs::File| Op::Close {
        file: File::from_fd(file.into()),
    };
    let read = || std::fs::File::open(&path).unwrap();
    if sys::status_at_once(read().as_raw_fd()).is_some() {
        assert!(rings(close(read()), offer));
    }
    assert!(!rings(close(read()), Offer::default()));
    let write = std::fs::File::options().write(true).open(&path).unwrap();
    assert!(!rings(close(write), offer));
    // A filesystem without a device of its own may have to ask somebody.
    let elsewhere = std::fs::File::open("/proc/self/status").unwrap();
    assert!(!rings(close(elsewhere), offer));
    let last = read();
    std::fs::remove_file(&path).unwrap();
    assert!(!rings(close(last), offer));
    let foreground = Request {
        class: Class::Foreground,
        ..request(open(&path, libc::O_RDONLY))
    };
    assert!(matches!(names::sort(foreground, offer), Way::Calls(_)));
}

#[test]
fn a_ring_that_may_not_leaves_names_to_threads() {
    // The kernel says that it offers an operation also where a ring is not allowed to do it; so it
    // is tried.
    let mut probe = Probe::new();
    let ring = io_uring::IoUring::new(8).unwrap();
    ring.submitter().register_probe(&mut probe).unwrap();
    let (open, close) = (opcode::OpenAt2::CODE, opcode::Close::CODE);
    for (allowed, offer) in [
        (vec![opcode::Nop::CODE], (false, false)),
        (vec![open], (true, false)),
        (vec![close], (false, true)),
        (vec![open, close], (true, true)),
    ] {
        let mut ring = Ring::restricted(&allowed);
        let (open, close) = offer;
        assert_eq!(Offer::of(&mut ring, &probe), Offer { open, close });
        // An old kernel does not offer it.
        assert_eq!(Offer::of(&mut ring, &Probe::new()), Offer::default());
    }
}

#[test]
fn what_the_cache_does_not_have_is_found_by_a_thread() {
    // The kernel says so instead of waiting, or that it does not know the flags; the thread that
    // does it is told of as if the ring had not been asked, and nothing is counted.
    let (_place, path) = known("uncached");
    for answer in [
        libc::EAGAIN,
        libc::EINVAL,
        libc::EINTR,
        libc::ENXIO,
        libc::EACCES,
    ] {
        let mut backend = disk().open().unwrap();
        for op in [
            open(&path, libc::O_RDONLY),
            Op::StatPath { path: path.clone() },
        ] {
            let key = flown(&mut backend, op);
            backend.on_answer(key, -answer).unwrap();
            finish(&mut backend).result.unwrap();
        }
        assert!(backend.pool.has_begun());
        assert_eq!(backend.effort().retried, 0);
        assert!(backend.keys.is_empty() && backend.table.is_empty());
    }
}

#[test]
fn a_cancelled_opening_leaves_no_descriptor() {
    // Counts the descriptors of its process, so it needs one without other tests.
    in_own_process("uring::tests::names::own_process_cancelled_openings");
}

#[test]
#[ignore = "counts descriptors; run by the test above"]
fn own_process_cancelled_openings() {
    // Given up before it began, on its way to the kernel, when it is for a thread, and too late;
    // and left to a backend that ends. What is on its way keeps its path until the answer.
    let (_place, path) = known("cancelled");
    let op = || open(&path, libc::O_RDONLY);
    let is_cancelled = |done: &Finished| {
        let errno = done.result.as_ref().err().and_then(crate::Error::errno);
        errno == Some(libc::ECANCELED)
    };
    for disk in [disk(), disk().for_guests()] {
        let mut backend = disk.open().unwrap();
        run(&mut backend, op()).unwrap();
        let before = descriptors();
        backend.submit(request(op())).unwrap();
        assert_eq!(backend.cancel(Token(1)), Cancelled::Taken);
        assert!(is_cancelled(&finish(&mut backend)));
        backend.submit(request(op())).unwrap();
        backend.stage();
        assert_eq!(backend.cancel(Token(1)), Cancelled::Asked);
        assert_eq!(backend.table.len(), 1);
        file(finish(&mut backend).result);
        let key = flown(&mut backend, op());
        assert_eq!(backend.cancel(Token(1)), Cancelled::Asked);
        backend.on_answer(key, -libc::EAGAIN).unwrap();
        assert!(is_cancelled(&finish(&mut backend)));
        assert!(!backend.pool.has_begun());
        assert_eq!(descriptors(), before);
        backend.submit(request(op())).unwrap();
        backend.stage();
        backend.shutdown(None);
        drop(backend);
        assert!(descriptors() < before);
    }
}

#[test]
fn a_closed_number_is_not_closed_again() {
    // The number is free from the kernel's answer on; whoever gets it next keeps it. Cancelled
    // before it began, the closing is done after all.
    let (_place, path) = known("once");
    let mut backend = disk().open().unwrap();
    let other = std::fs::File::open("/dev/null").unwrap();
    for errno in [0, libc::EIO] {
        let opened = std::fs::File::open(&path).unwrap();
        let number = opened.as_raw_fd();
        if sys::status_at_once(number).is_none() {
            return;
        }
        let file = File::from_fd(opened.into());
        let key = flown(&mut backend, Op::Close { file });
        // SAFETY: plain numbers; as the kernel closes it, and somebody else opens something.
        assert_eq!(unsafe { libc::dup2(other.as_raw_fd(), number) }, number);
        backend.on_answer(key, -errno).unwrap();
        let told = finish(&mut backend).result.map_err(|error| error.errno());
        assert_eq!(told.is_err(), errno != 0);
        sys::close(std::os::fd::OwnedFd::from(
            // SAFETY: the number belongs to this test since dup2.
            unsafe { <std::fs::File as std::os::fd::FromRawFd>::from_raw_fd(number) },
        ))
        .unwrap();
    }
    let number = std::fs::File::open(&path).unwrap().into_raw_fd();
    let file = {
        // SAFETY: just given up.
        let opened =
            unsafe { <std::os::fd::OwnedFd as std::os::fd::FromRawFd>::from_raw_fd(number) };
        File::from_fd(opened)
    };
    let key = flown(&mut backend, Op::Close { file });
    backend.closed = true;
    backend.on_answer(key, -libc::ECANCELED).unwrap();
    assert_eq!(
        backend.ready.pop().unwrap().result.unwrap_err().kind(),
        ErrorKind::Closed
    );
}

#[test]
fn an_answer_that_no_closing_has_poisons() {
    // More than nothing was never asked for.
    let (_place, path) = known("poison");
    let opened = std::fs::File::open(&path).unwrap();
    if sys::status_at_once(opened.as_raw_fd()).is_none() {
        return;
    }
    let mut backend = disk().open().unwrap();
    let file = File::from_fd(opened.into());
    let key = flown(&mut backend, Op::Close { file });
    assert!(backend.on_answer(key, 1).is_err());
}
