//! Requests of a program: never carried out by the thread that turns, cancelled when asked, sockets
//! and lists of buffers among them. A simulated machine runs no programs.

use std::{
    ffi::CString,
    io::Write as _,
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::{ffi::OsStrExt, net::UnixStream},
    },
    path::Path,
    time::Duration,
};

use super::{World, filled, finish, request};
use crate::{
    error::ErrorKind,
    io::{
        Answer, BLOCK, Backend, Buffer, Cancelled, Class, File, Finished, Op, Token, Wait, execute,
        sys,
    },
};

fn submit(backend: &mut dyn Backend, token: u64, op: Op) {
    backend.submit(request(token, Class::Program, op)).unwrap();
}

fn run(backend: &mut dyn Backend, op: Op) -> Finished {
    submit(backend, 7, op);
    let mut out = finish(backend);
    assert_eq!(out.len(), 1);
    out.remove(0)
}

fn pair() -> (UnixStream, File) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    (ours, File::duplicate(theirs.as_raw_fd()).unwrap())
}

fn recv(socket: &File, length: usize, exact: bool) -> Op {
    Op::Recv {
        socket: socket.clone(),
        buffer: Buffer::zeroed(length),
        exact,
    }
}

/// A pipe with a name, whose opening waits for the other end.
pub(super) fn make_pipe(path: &Path) {
    let place = CString::new(path.as_os_str().as_bytes()).unwrap();
    // SAFETY: a terminated string that outlives the call.
    assert_eq!(unsafe { libc::mkfifo(place.as_ptr(), 0o600) }, 0);
}

/// Opens the other end for a moment, which ends the waiting of whoever opens this one.
fn open_other_end(path: &Path) -> OwnedFd {
    let place = CString::new(path.as_os_str().as_bytes()).unwrap();
    loop {
        // SAFETY: a terminated string that outlives the call.
        let fd = unsafe { libc::open(place.as_ptr(), libc::O_WRONLY | libc::O_NONBLOCK) };
        if fd >= 0 {
            // SAFETY: just made, and nobody else's.
            return unsafe { OwnedFd::from_raw_fd(fd) };
        }
        std::thread::yield_now();
    }
}

fn open(path: &Path, flags: i32) -> Op {
    Op::OpenPath {
        path: path.to_owned(),
        flags,
        mode: 0o600,
    }
}

/// A call that waits holds up neither the thread that turns nor other requests.
pub fn a_program_never_holds_up_the_owner(world: &World) {
    if !world.real {
        return;
    }
    let mut backend = world.backend();
    let place = world.path.join("pipe");
    make_pipe(&place);
    submit(&mut *backend, 1, open(&place, libc::O_RDONLY));
    let mut out = Vec::new();
    for token in 2..20 {
        let path = world.path.clone();
        submit(&mut *backend, token, Op::StatPath { path });
        while out.is_empty() {
            backend.poll(&mut out, Wait::Forever).unwrap();
        }
        let done = out.pop().unwrap();
        assert_eq!(done.token, Token(token));
        done.result.unwrap();
    }
    let _other = open_other_end(&place);
    assert!(matches!(
        finish(&mut *backend)[0].result,
        Ok(Answer::File(_))
    ));
}

/// A list of buffers is written one after the other, and a durable one is answered durable.
pub fn a_list_of_buffers_is_written_in_order(world: &World) {
    if !world.real {
        return;
    }
    let mut backend = world.backend();
    let file = world.file(&mut *backend, "f");
    for (sync, offset) in [(false, 0), (true, 3 * BLOCK)] {
        let op = Op::WriteMany {
            file: file.clone(),
            offset: offset as u64,
            buffers: vec![filled(5, 1), filled(0, 0), filled(BLOCK, 2), filled(1, 3)],
            sync,
        };
        let done = run(&mut *backend, op);
        assert!(matches!(done.result, Ok(Answer::Count(count)) if count == BLOCK + 6));
        assert!(done.buffer.is_none());
        let there = super::read(&mut *backend, &file, offset as u64, BLOCK + 6);
        let expected = [filled(5, 1), filled(BLOCK, 2), filled(1, 3)];
        assert_eq!(there, expected.map(|part| part.to_vec()).concat());
    }
    run(&mut *backend, Op::SyncData { file }).result.unwrap();
}

/// A receive is answered by what comes first or by exactly as much as was asked for.
pub fn sockets_deliver_what_was_asked_for(world: &World) {
    if !world.real {
        return;
    }
    let mut backend = world.backend();
    let (mut ours, socket) = pair();
    ours.write_all(b"abcdef").unwrap();
    let done = run(&mut *backend, recv(&socket, 4, false));
    assert!(matches!(done.result, Ok(Answer::Count(4))));
    assert_eq!(done.buffer.unwrap()[..], b"abcd"[..]);
    submit(&mut *backend, 1, recv(&socket, 4, true));
    let mut out = Vec::new();
    backend.poll(&mut out, Wait::Never).unwrap();
    assert!(out.is_empty());
    ours.write_all(b"gh").unwrap();
    let done = finish(&mut *backend).remove(0);
    assert_eq!(done.buffer.unwrap()[..], b"efgh"[..]);
    let op = Op::Send {
        socket: socket.clone(),
        buffers: vec![filled(3, 1), filled(4, 2)],
    };
    assert!(matches!(
        run(&mut *backend, op).result,
        Ok(Answer::Count(7))
    ));
    let mut seen = [0; 7];
    std::io::Read::read_exact(&mut ours, &mut seen).unwrap();
    assert_eq!(
        (&seen[..3], &seen[3..]),
        (&filled(3, 1)[..], &filled(4, 2)[..])
    );
    ours.write_all(b"x").unwrap();
    drop(ours);
    let done = run(&mut *backend, recv(&socket, 4, true));
    let error = done.result.unwrap_err();
    assert_eq!(
        (error.kind(), error.number("got")),
        (ErrorKind::EndOfStream, Some(1))
    );
    assert_eq!(done.buffer.unwrap()[..1], b"x"[..]);
}

/// Requests of one direction on one socket are served one after the other, as they came, however
/// small the pieces in which the bytes move.
pub fn a_stream_keeps_its_order(world: &World) {
    const LENGTH: usize = 1 << 20;
    if !world.real {
        return;
    }
    let mut backend = world.backend();
    let (mut ours, socket) = pair();
    for token in 0..3u8 {
        let mut buffer = Buffer::zeroed(LENGTH);
        buffer.fill(token);
        let (socket, buffers) = (socket.clone(), vec![buffer]);
        submit(&mut *backend, token.into(), Op::Send { socket, buffers });
    }
    let reading = std::thread::spawn(move || {
        let mut seen = vec![9; 3 * LENGTH];
        std::io::Read::read_exact(&mut ours, &mut seen).unwrap();
        (ours, seen)
    });
    assert_eq!(finish(&mut *backend).len(), 3);
    let (mut ours, seen) = reading.join().unwrap();
    assert!(seen.is_sorted(), "bytes of one send among those of another");
    let mut out = Vec::new();
    for token in 0..3 {
        submit(&mut *backend, token, recv(&socket, 10, true));
    }
    for piece in [&b"aaaaa"[..], b"aaaaabb", b"bbbbbbbbccccc", b"ccccc"] {
        ours.write_all(piece).unwrap();
        for _ in 0..10 {
            backend.poll(&mut out, Wait::Never).unwrap();
        }
    }
    out.extend(finish(&mut *backend));
    out.sort_by_key(|done| done.token);
    let got = out
        .iter()
        .map(|done| done.buffer.as_ref().unwrap().to_vec());
    assert_eq!(
        got.collect::<Vec<_>>(),
        [[b'a'; 10], [b'b'; 10], [b'c'; 10]]
    );
}

/// One that is cancelled in line, or at its head, lets those behind it go on.
pub fn a_cancel_leaves_the_line_in_order(world: &World) {
    if !world.real {
        return;
    }
    let mut backend = world.backend();
    let (mut ours, socket) = pair();
    for token in 1..=4 {
        submit(&mut *backend, token, recv(&socket, 2, true));
    }
    let mut out = Vec::new();
    backend.poll(&mut out, Wait::Never).unwrap();
    assert_eq!(backend.cancel(Token(3)), Cancelled::Taken);
    assert_ne!(backend.cancel(Token(1)), Cancelled::TooLate);
    while out.len() < 2 {
        backend.poll(&mut out, Wait::Forever).unwrap();
    }
    assert!(out.iter().all(is_cancelled));
    ours.write_all(b"2244").unwrap();
    let mut rest = finish(&mut *backend);
    rest.sort_by_key(|done| done.token);
    let got = rest
        .iter()
        .map(|done| (done.token.0, &**done.buffer.as_ref().unwrap()));
    assert_eq!(got.collect::<Vec<_>>(), [(2, &b"22"[..]), (4, b"44")]);
}

/// What no peer will ever change is refused at once, instead of waiting for one: the opening of a
/// pipe that has no other end, if told so, and a receive on a socket that listens.
pub fn what_would_wait_for_ever_is_refused(world: &World) {
    if !world.real {
        return;
    }
    let mut backend = world.backend();
    let errno = |done: Finished| done.result.unwrap_err().errno();
    let place = world.path.join("pipe");
    make_pipe(&place);
    for flags in [libc::O_RDONLY, libc::O_WRONLY, libc::O_RDWR] {
        let done = run(&mut *backend, open(&place, flags | libc::O_NONBLOCK));
        assert_eq!(errno(done), Some(libc::ESPIPE));
    }
    world.file(&mut *backend, "f");
    let place = world.path.join("f");
    let done = run(&mut *backend, open(&place, libc::O_RDWR | libc::O_NONBLOCK));
    let Ok(Answer::File(file)) = done.result else {
        panic!("{:?}", done.result);
    };
    let flags = crate::io::sys::flags(file.fd().unwrap());
    assert_eq!(flags.unwrap() & libc::O_NONBLOCK, 0);
    let listener = std::os::unix::net::UnixListener::bind(world.path.join("l")).unwrap();
    let socket = File::duplicate(listener.as_raw_fd()).unwrap();
    let done = run(&mut *backend, recv(&socket, 1, false));
    assert!(matches!(errno(done), Some(libc::EINVAL | libc::ENOTCONN)));
}

/// What is found at a path, or not, and what is known of it, is what plain calls find: whoever looked
/// it up, and whether the kernel knew the name already.
pub fn names_are_answered_as_by_plain_calls(world: &World) {
    if !world.real {
        return;
    }
    let mut backend = world.backend();
    let at = |name: &str| world.path.join(name);
    std::fs::write(at("f"), b"abc").unwrap();
    std::fs::create_dir(at("d")).unwrap();
    make_pipe(&at("pipe"));
    let _listener = std::os::unix::net::UnixListener::bind(at("s")).unwrap();
    for (link, to) in [("link", "f"), ("dangling", "no"), ("round", "round")] {
        std::os::unix::fs::symlink(to, at(link)).unwrap();
    }
    let long = "x".repeat(300);
    let names = [
        "f",
        "d",
        "pipe",
        "s",
        "link",
        "dangling",
        "round",
        "no",
        "f/",
        "f/g",
        "d/..",
        "",
        "a\0b",
        long.as_str(),
    ];
    let ways = [
        libc::O_RDONLY,
        libc::O_RDWR,
        libc::O_RDONLY | libc::O_DIRECTORY,
        libc::O_RDONLY | libc::O_NOFOLLOW,
        libc::O_PATH,
    ];
    for (name, _again) in names.iter().flat_map(|name| [(name, 0), (name, 1)]) {
        let path = world.path.join(name);
        for way in ways {
            let op = || open(&path, way | libc::O_NONBLOCK);
            assert_eq!(told(run(&mut *backend, op())), told(plainly(op())));
        }
        let op = || Op::StatPath { path: path.clone() };
        assert_eq!(told(run(&mut *backend, op())), told(plainly(op())));
    }
}

fn plainly(op: Op) -> Finished {
    execute::run(
        request(7, Class::Program, op),
        execute::Durability::default(),
    )
}

/// What an answer says: of a file, how it is open and on what.
fn told(done: Finished) -> String {
    match done.result {
        Ok(Answer::File(file)) => {
            let fd = file.fd().unwrap();
            let stat = sys::stat(fd).unwrap();
            format!("{} {} {:?}", stat.st_dev, stat.st_ino, sys::flags(fd))
        }
        other => format!("{other:?}"),
    }
}

/// A descriptor is closed once, with the last who holds it, whoever closes it; an opening that
/// nobody wants any more leaves none.
pub fn descriptors_are_closed_once(world: &World) {
    if !world.real {
        return;
    }
    let mut backend = world.backend();
    let path = world.path.join("f");
    std::fs::write(&path, b"abc").unwrap();
    for way in [libc::O_RDONLY, libc::O_RDWR, libc::O_WRONLY | libc::O_CREAT] {
        let done = run(&mut *backend, open(&path, way | libc::O_NONBLOCK));
        let Ok(Answer::File(file)) = done.result else {
            panic!("{:?}", done.result);
        };
        let is_open = |fd| sys::stat(fd).is_ok_and(|stat| stat.st_size == 3);
        let fd = file.fd().unwrap();
        let other = file.clone();
        run(&mut *backend, Op::Close { file }).result.unwrap();
        assert!(is_open(fd));
        let stat = Op::Stat {
            file: other.clone(),
        };
        let done = run(&mut *backend, stat).result.unwrap();
        assert!(matches!(done, Answer::Status(status) if status.length == 3));
        // A lock is free when the closing has been answered.
        sys::lock(fd).unwrap();
        run(&mut *backend, Op::Close { file: other })
            .result
            .unwrap();
        let again = std::fs::File::open(&path).unwrap();
        sys::lock(again.as_raw_fd()).unwrap();
    }
}

fn is_cancelled(done: &Finished) -> bool {
    let errno = done.result.as_ref().err().and_then(crate::Error::errno);
    errno == Some(libc::ECANCELED)
}

/// A request is cancelled wherever it is: not begun, waiting, or waiting again after a part; its
/// answer comes once, with its buffer, and nothing comes after it.
pub fn a_cancelled_request_is_answered_once(world: &World) {
    if !world.real {
        return;
    }
    let mut backend = world.backend();
    for begun in [false, true] {
        let (mut ours, socket) = pair();
        submit(&mut *backend, 1, recv(&socket, 4, true));
        submit(&mut *backend, 2, recv(&pair().1, 4, true));
        if begun {
            ours.write_all(b"ab").unwrap();
            let mut none = Vec::new();
            for _ in 0..10 {
                backend.poll(&mut none, Wait::Never).unwrap();
            }
            // The second one's peer is gone, so it has ended; the first waits for the rest.
            assert_eq!(none.len(), 1);
            assert_eq!(backend.in_flight(), 1);
            submit(&mut *backend, 2, recv(&socket, 0, false));
        }
        assert_ne!(backend.cancel(Token(1)), Cancelled::TooLate);
        let mut out = finish(&mut *backend);
        out.sort_by_key(|done| done.token);
        assert_eq!(out.len(), 2);
        assert!(is_cancelled(&out[0]), "{:?}", out[0].result);
        assert_eq!(out[0].buffer.as_ref().unwrap().len(), 4);
        let done = out[0].result.as_ref().unwrap_err().number("done");
        assert_eq!(done, Some(if begun { 2 } else { 0 }));
        assert!(!is_cancelled(&out[1]));
        // The token means nothing any more, to nobody.
        assert_eq!(backend.cancel(Token(1)), Cancelled::TooLate);
        submit(
            &mut *backend,
            1,
            Op::StatPath {
                path: world.path.clone(),
            },
        );
        assert!(finish(&mut *backend)[0].result.is_ok());
    }
}

/// A cancel that comes when the answer is there already changes nothing, and hits nobody else.
pub fn a_cancel_that_is_late_is_ignored(world: &World) {
    if !world.real {
        return;
    }
    let mut backend = world.backend();
    let (mut ours, socket) = pair();
    for round in 0..50u8 {
        submit(&mut *backend, 1, recv(&socket, 1, true));
        backend.poll(&mut Vec::new(), Wait::Never).unwrap();
        ours.write_all(&[round]).unwrap();
        backend.cancel(Token(1));
        let done = finish(&mut *backend).remove(0);
        if is_cancelled(&done) {
            // Then the byte is still there, for the next.
            let next = run(&mut *backend, recv(&socket, 1, true));
            assert_eq!(next.buffer.unwrap()[0], round);
        } else {
            assert_eq!(done.buffer.unwrap()[0], round);
        }
        // An answer to the cancel itself may come now; the next request does not hear of it.
        submit(&mut *backend, 1, recv(&socket, 1, true));
        for _ in 0..3 {
            backend.poll(&mut Vec::new(), Wait::Never).unwrap();
        }
        assert_eq!(backend.in_flight(), 1);
        ours.write_all(&[round]).unwrap();
        assert_eq!(finish(&mut *backend)[0].buffer.as_ref().unwrap()[0], round);
    }
}

/// What a stuck call of a program holds is left behind at the end and counted, not waited for.
pub fn a_stuck_call_does_not_hold_up_the_end(world: &World) {
    if !world.real {
        return;
    }
    let mut backend = world.backend();
    let place = world.path.join("pipe");
    make_pipe(&place);
    submit(&mut *backend, 1, open(&place, libc::O_RDONLY));
    submit(&mut *backend, 2, recv(&pair().1, 4, true));
    submit(&mut *backend, 3, open(&world.path, libc::O_RDONLY));
    let mut out = Vec::new();
    while out.len() < 2 {
        backend.poll(&mut out, Wait::Forever).unwrap();
    }
    let left = backend.shutdown(Some(Duration::ZERO));
    assert_eq!((left.requests, left.bytes), (1, 0));
    assert_eq!(backend.in_flight(), 0);
    // Lets the thread go.
    drop(open_other_end(&place));
}
