//! Sockets, on every backend.

use std::{
    io::Write as _,
    os::{fd::AsRawFd as _, unix::net::UnixStream},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use super::{Make, Rig, filled, on_every_backend, pair};
use crate::{
    error::ErrorKind,
    io::{File, Stash, Wait},
    ioloop::{
        Ask, Settings,
        tests::{bytes, count, is_indeterminate, kind},
    },
};

fn recv(socket: &File, length: usize, exact: bool) -> Ask {
    Ask::Recv {
        socket: socket.clone(),
        length,
        exact,
    }
}

/// A receive gives what comes first, or exactly as many bytes; a send gives all of them; the end
/// of the peer has a name.
fn sockets_send_and_receive(make: Make) {
    let mut rig = Rig::new(make, Settings::default());
    let (mut ours, socket) = pair();
    let recv = |length, exact| Ask::Recv {
        socket: socket.clone(),
        length,
        exact,
    };
    let (first, _) = rig.ask(recv(100, false), None);
    rig.engine.turn(Wait::Never);
    std::io::Write::write_all(&mut ours, b"hello").unwrap();
    assert_eq!(bytes(rig.wait(first)), b"hello");
    let (exact, _) = rig.ask(recv(10, true), None);
    for part in ["0123", "4567", "89"] {
        assert!(!rig.inbox.has(exact));
        std::io::Write::write_all(&mut ours, part.as_bytes()).unwrap();
        rig.engine.turn(Wait::Never);
    }
    assert_eq!(bytes(rig.wait(exact)), b"0123456789");
    let send = Ask::Send {
        socket: socket.clone(),
        buffers: vec![filled(1 << 20, 3), filled(100, 4)],
    };
    let (sent, _) = rig.ask(send, None);
    let reader = std::thread::spawn(move || {
        let mut seen = vec![0; (1 << 20) + 100];
        std::io::Read::read_exact(&mut ours, &mut seen).unwrap();
        seen
    });
    assert_eq!(count(rig.wait(sent)), (1 << 20) + 100);
    let seen = reader.join().unwrap();
    assert_eq!(seen[..1 << 20], filled(1 << 20, 3)[..]);
    assert_eq!(seen[1 << 20..], filled(100, 4)[..]);
    let ended = rig.run(recv(1, false)).unwrap_err();
    assert_eq!(ended.kind(), ErrorKind::EndOfStream);
}

/// What the kernel gives in pieces is told by a number, on threads as on the ring: an exact receive
/// that took two, and a read that had to look once more for the end of its file. What comes whole
/// is not counted.
fn answers_that_fell_short_are_counted(make: Make) {
    let mut rig = Rig::new(make, Settings::default());
    let (mut ours, socket) = pair();
    let (whole, _) = rig.ask(recv(&socket, 4, true), None);
    ours.write_all(b"0123").unwrap();
    assert_eq!(bytes(rig.wait(whole)), b"0123");
    assert_eq!(rig.handle.statistics().short, 0);
    let (exact, _) = rig.ask(recv(&socket, 10, true), None);
    ours.write_all(b"0123").unwrap();
    let begun = std::time::Instant::now();
    while rig.handle.statistics().short == 0 {
        assert!(begun.elapsed() < Duration::from_secs(60), "not counted");
        rig.engine.turn(Wait::Never);
    }
    ours.write_all(b"456789").unwrap();
    assert_eq!(bytes(rig.wait(exact)), b"0123456789");
    assert_eq!(rig.handle.statistics().short, 1);
    let file = rig.open("a", libc::O_RDWR | libc::O_CREAT);
    let write = Ask::Write {
        file: file.clone(),
        offset: 0,
        buffers: vec![filled(5, 1)],
        sync: false,
    };
    assert_eq!(count(rig.run(write)), 5);
    let read = Ask::Read {
        file,
        offset: 0,
        length: 100,
        partial: true,
    };
    assert_eq!(bytes(rig.run(read)).len(), 5);
    assert_eq!(rig.handle.statistics().short, 2);
}

/// A receive that nothing comes for is answered by its deadline, not before.
fn a_receive_ends_at_its_deadline(make: Make) {
    let mut rig = Rig::new(make, Settings::default());
    let (_ours, socket) = pair();
    let ask = Ask::Recv {
        socket,
        length: 1,
        exact: true,
    };
    let (tag, _) = rig.ask(ask, Some(rig.after(20)));
    for _ in 0..3 {
        rig.engine.turn(Wait::Never);
        rig.clock.advance(Duration::from_millis(6));
    }
    assert!(!rig.inbox.has(tag));
    rig.clock.advance(Duration::from_millis(10));
    assert_eq!(kind(rig.wait(tag)), ErrorKind::Timeout);
}

/// A deadline in the middle of an exact receive says how much had come.
fn a_deadline_in_an_exact_receive_says_how_far_it_was(make: Make) {
    let mut rig = Rig::new(make, Settings::default());
    let (mut ours, socket) = pair();
    let (tag, _) = rig.ask(recv(&socket, 10, true), Some(rig.after(20)));
    rig.engine.turn(Wait::Never);
    ours.write_all(b"abc").unwrap();
    // Once the socket is empty the three bytes are with the request.
    while is_readable(&socket) {
        rig.engine.turn(Wait::Never);
    }
    rig.engine.turn(Wait::Never);
    rig.clock.advance(Duration::from_millis(25));
    let error = rig.wait(tag).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout);
    assert_eq!(error.number("done"), Some(3));
    assert_eq!(error.number("indeterminate"), Some(0));
    // The socket itself is as good as before.
    let (tag, _) = rig.ask(recv(&socket, 2, true), None);
    ours.write_all(b"de").unwrap();
    assert_eq!(bytes(rig.wait(tag)), b"de");
}

fn is_readable(socket: &File) -> bool {
    let mut poll = libc::pollfd {
        fd: socket.fd().unwrap(),
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: one entry that outlives the call.
    unsafe { libc::poll(&raw mut poll, 1, 0) == 1 }
}

/// Bytes that were there before the deadline win, if the kernel had them in time.
fn a_receive_that_was_quicker_wins(make: Make) {
    let mut rig = Rig::new(make, Settings::default());
    let (mut ours, socket) = pair();
    let (tag, _) = rig.ask(recv(&socket, 3, true), Some(rig.after(20)));
    rig.engine.turn(Wait::Never);
    ours.write_all(b"abc").unwrap();
    while is_readable(&socket) {
        rig.engine.turn(Wait::Never);
    }
    rig.clock.advance(Duration::from_millis(25));
    assert_eq!(bytes(rig.wait(tag)), b"abc");
}

/// A send into a full socket waits for room, ends at its deadline, and says how far it was.
fn a_send_ends_at_its_deadline(make: Make) {
    let mut rig = Rig::new(make, Settings::default());
    let (_ours, socket) = pair();
    let ask = Ask::Send {
        socket,
        buffers: vec![filled(8 << 20, 1), filled(1, 2)],
    };
    let (tag, _) = rig.ask(ask, Some(rig.after(20)));
    for _ in 0..20 {
        rig.engine.turn(Wait::Never);
    }
    rig.clock.advance(Duration::from_millis(25));
    rig.until(|inbox| inbox.has(tag));
    assert!(is_indeterminate(rig.inbox.take(tag)));
}

/// A peer that is gone is an error of the send, not a signal to the program.
fn a_send_to_nobody_is_an_error(make: Make) {
    let mut rig = Rig::new(make, Settings::default());
    for buffers in [vec![filled(8, 1)], vec![filled(8, 1), filled(8, 2)]] {
        let (ours, socket) = pair();
        drop(ours);
        let error = rig.run(Ask::Send { socket, buffers }).unwrap_err();
        assert_eq!(error.errno(), Some(libc::EPIPE), "{error}");
    }
}

/// The program may close its own socket at once: the request has a descriptor of its own.
fn the_programs_descriptor_may_go_at_once(make: Make) {
    let mut rig = Rig::new(make, Settings::default());
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    let number = std::os::fd::AsRawFd::as_raw_fd(&theirs);
    let socket = File::duplicate(number).unwrap();
    let (tag, _) = rig.ask(recv(&socket, 2, true), None);
    drop((socket, theirs));
    rig.engine.turn(Wait::Never);
    // Whatever gets the old number now is not what is received from.
    let other = std::fs::File::open("/dev/zero").unwrap();
    ours.write_all(b"ok").unwrap();
    assert_eq!(bytes(rig.wait(tag)), b"ok");
    drop(other);
}

/// A socket in non-blocking mode, as event loops have them, is waited for all the same.
fn a_nonblocking_socket_is_waited_for(make: Make) {
    let mut rig = Rig::new(make, Settings::default());
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    theirs.set_nonblocking(true).unwrap();
    let number = std::os::fd::AsRawFd::as_raw_fd(&theirs);
    let socket = File::duplicate(number).unwrap();
    let (tag, _) = rig.ask(recv(&socket, 4, true), None);
    for _ in 0..20 {
        rig.engine.turn(Wait::Never);
    }
    assert!(!rig.inbox.has(tag));
    ours.write_all(b"wait").unwrap();
    assert_eq!(bytes(rig.wait(tag)), b"wait");
}

/// Nobody waits for a receive any more: it is cancelled, and what comes later goes to the next.
fn a_forgotten_receive_leaves_the_bytes_to_the_next(make: Make) {
    let mut rig = Rig::new(make, Settings::default());
    let (mut ours, socket) = pair();
    let (tag, id) = rig.ask(recv(&socket, 4, true), None);
    rig.engine.turn(Wait::Never);
    rig.handle.forget(id);
    while rig.handle.statistics().pending > 0 {
        rig.engine.turn(Wait::Never);
    }
    assert!(!rig.inbox.has(tag));
    let (tag, _) = rig.ask(recv(&socket, 4, true), None);
    ours.write_all(b"next").unwrap();
    assert_eq!(bytes(rig.wait(tag)), b"next");
}

/// Turns until the kernel has nothing left for the socket: what came is with the request.
fn swallow(rig: &mut Rig, socket: &File) {
    while is_readable(socket) {
        rig.engine.turn(Wait::Never);
    }
    rig.engine.turn(Wait::Never);
}

fn settle(rig: &mut Rig) {
    while rig.handle.statistics().pending > 0 {
        rig.engine.turn(Wait::Never);
    }
}

/// What came to a receive that was given up, by a deadline or because nobody waits any more, is for
/// the next one on the socket: before what the kernel has, in order, each byte once.
fn what_came_for_nobody_is_for_the_next(make: Make) {
    let mut rig = Rig::new(make, Settings::default());
    let (mut ours, socket) = stream();
    // A part, cut short by a deadline.
    let (late, _) = rig.ask(recv(&socket, 8, true), Some(rig.after(20)));
    ours.write_all(b"abc").unwrap();
    swallow(&mut rig, &socket);
    rig.clock.advance(Duration::from_millis(30));
    assert_eq!(kind(rig.wait(late)), ErrorKind::Timeout);
    settle(&mut rig);
    ours.write_all(b"de").unwrap();
    assert_eq!(bytes(rig.run(recv(&socket, 2, false))), b"ab");
    assert_eq!(bytes(rig.run(recv(&socket, 3, true))), b"cde");
    // A part that nobody waits for, with others in line behind it.
    let (first, id) = rig.ask(recv(&socket, 8, true), None);
    let (second, _) = rig.ask(recv(&socket, 2, false), None);
    let (third, _) = rig.ask(recv(&socket, 4, true), None);
    ours.write_all(b"abc").unwrap();
    swallow(&mut rig, &socket);
    rig.handle.forget(id);
    assert_eq!(bytes(rig.wait(second)), b"ab");
    ours.write_all(b"def").unwrap();
    assert_eq!(bytes(rig.wait(third)), b"cdef");
    assert!(!rig.inbox.has(first));
    // All of it, when the bytes were quicker than the loss of interest.
    for _ in 0..20 {
        let (_, id) = rig.ask(recv(&socket, 4, true), None);
        rig.engine.turn(Wait::Never);
        ours.write_all(b"full").unwrap();
        rig.handle.forget(id);
        settle(&mut rig);
        assert_eq!(bytes(rig.run(recv(&socket, 4, true))), b"full");
    }
    assert!(socket.stash().is_some_and(|stash| stash.is_empty()));
}

fn stream() -> (UnixStream, File) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let number = std::os::fd::AsRawFd::as_raw_fd(&theirs);
    let socket = File::duplicate_socket(number, Arc::default()).unwrap();
    (ours, socket)
}

/// Two receives on one socket that are given up before the loop turned again, as the end of a
/// handler does it: the second never had what the first leaves behind, and the next one gets it.
fn two_that_are_given_up_together_leave_all_they_had(make: Make) {
    let mut rig = Rig::new(make, Settings::default());
    let (mut ours, socket) = stream();
    let (_, first) = rig.ask(recv(&socket, 8, true), None);
    let (_, second) = rig.ask(recv(&socket, 8, false), None);
    ours.write_all(b"abcd").unwrap();
    swallow(&mut rig, &socket);
    rig.handle.forget(first);
    rig.handle.forget(second);
    settle(&mut rig);
    ours.write_all(b"efgh").unwrap();
    assert_eq!(bytes(rig.run(recv(&socket, 8, true))), b"abcdefgh");
    // With a third behind them, which may have its answer when the second is given up.
    let (_, first) = rig.ask(recv(&socket, 8, true), None);
    let (_, second) = rig.ask(recv(&socket, 8, false), None);
    let (third, _) = rig.ask(recv(&socket, 8, false), None);
    ours.write_all(b"abcd").unwrap();
    swallow(&mut rig, &socket);
    rig.handle.forget(first);
    rig.handle.forget(second);
    assert_eq!(bytes(rig.wait(third)), b"abcd");
}

/// The same under a peer that never pauses, many times over: no hole in the stream.
fn no_hole_while_a_peer_never_pauses(make: Make) {
    let mut rig = Rig::new(make, Settings::default());
    let (mut ours, socket) = stream();
    // As much as the socket has room for goes with each call; the rest is told by the count.
    ours.set_nonblocking(true).unwrap();
    let mut sent = 0_u64;
    let mut feed = || {
        let piece: Vec<u8> = (sent..sent + 97).map(|n| (n % 251) as u8).collect();
        sent += ours.write(&piece).unwrap_or(0) as u64;
    };
    let mut next = 0_u64;
    for _ in 0..300 {
        let (_, first) = rig.ask(recv(&socket, 1 << 16, true), None);
        let (_, second) = rig.ask(recv(&socket, 1 << 15, false), None);
        for _ in 0..2 {
            feed();
            rig.engine.turn(Wait::Never);
        }
        rig.handle.forget(first);
        rig.handle.forget(second);
        feed();
        for byte in bytes(rig.run(recv(&socket, 1 << 16, false))) {
            assert_eq!(u64::from(byte), next % 251, "a hole at {next}");
            next += 1;
        }
    }
}

/// Receives of all sizes, several in line, given up at every stage while the peer sends more than
/// anybody takes: what is kept is never more than before or than one of them asked for, so at most
/// what the largest asked for that was ever given up.
fn a_stash_holds_no_more_than_a_receive_asked_for(make: Make) {
    let mut rig = Rig::new(make, Settings::default());
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    let kept = Arc::new(AtomicUsize::new(0));
    let stash = Arc::new(Stash::counted(&kept));
    let socket = File::duplicate_socket(theirs.as_raw_fd(), stash).unwrap();
    ours.set_nonblocking(true).unwrap();
    let mut seed = 7_usize;
    let mut below = |limit: usize| {
        seed = seed
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) % limit
    };
    let mut most = 0;
    for _ in 0..600 {
        let mut bound = kept.load(Ordering::Relaxed);
        let mut asked = Vec::new();
        for _ in 0..=below(3) {
            let bits = below(12);
            let length = 1 + below(1 << bits);
            let (_, id) = rig.ask(recv(&socket, length, below(3) > 0), None);
            asked.push((id, length));
        }
        for _ in 0..below(3) {
            let _ = ours.write(&[7; 2000][..=below(2000)]);
            rig.engine.turn(Wait::Never);
        }
        for (id, length) in asked {
            rig.handle.forget(id);
            bound = bound.max(length);
        }
        for _ in 0..below(3) {
            rig.engine.turn(Wait::Never);
        }
        let now = kept.load(Ordering::Relaxed);
        assert!(now <= bound, "{now} bytes kept of at most {bound}");
        most = most.max(now);
    }
    assert!(most > 100, "only {most} bytes were ever kept");
}

/// More receives in line than a turn makes calls, and what was put back is enough for all of them:
/// none waits for the peer to send more.
fn all_in_line_are_served_from_what_was_put_back(make: Make) {
    let mut rig = Rig::new(make, Settings::default());
    let (mut ours, socket) = stream();
    let (_, first) = rig.ask(recv(&socket, 200, true), None);
    let ask = |_| rig.ask(recv(&socket, 1, false), None).0;
    let behind: Vec<_> = (0..100).map(ask).collect();
    ours.write_all(&[7; 100]).unwrap();
    swallow(&mut rig, &socket);
    rig.handle.forget(first);
    for tag in behind {
        assert_eq!(bytes(rig.wait(tag)), [7]);
    }
}

/// An exact receive that meets the end of its stream leaves its part, and what it had from those
/// before it, to the next that is content with less.
fn the_end_takes_nothing_with_it(make: Make) {
    let mut rig = Rig::new(make, Settings::default());
    let (mut ours, socket) = stream();
    let (late, _) = rig.ask(recv(&socket, 8, true), Some(rig.after(20)));
    ours.write_all(b"abc").unwrap();
    swallow(&mut rig, &socket);
    rig.clock.advance(Duration::from_millis(30));
    assert_eq!(kind(rig.wait(late)), ErrorKind::Timeout);
    settle(&mut rig);
    ours.write_all(b"de").unwrap();
    drop(ours);
    for _ in 0..2 {
        let ended = rig.run(recv(&socket, 8, true)).unwrap_err();
        assert_eq!(ended.kind(), ErrorKind::EndOfStream);
        assert_eq!(ended.number("got"), Some(5));
    }
    assert_eq!(bytes(rig.run(recv(&socket, 8, false))), b"abcde");
    let ended = rig.run(recv(&socket, 8, false)).unwrap_err();
    assert_eq!(ended.number("got"), Some(0));
}

/// The documented limit: with everything in flight waiting for what waits for admission, only a
/// deadline frees it; and it does.
fn a_deadline_frees_a_table_that_waits_for_itself(make: Make) {
    let settings = Settings {
        size: 2,
        ..Settings::default()
    };
    let mut rig = Rig::new(make, settings);
    let (left, right) = UnixStream::pair().unwrap();
    let [left, right] =
        [left, right].map(|end| File::duplicate(std::os::fd::AsRawFd::as_raw_fd(&end)).unwrap());
    let deadline = Some(rig.after(50));
    let receives = [&left, &right].map(|end| rig.ask(recv(end, 2, true), deadline).0);
    let sends = [&left, &right].map(|end| {
        let socket = end.clone();
        let buffers = vec![filled(2, 1)];
        rig.ask(Ask::Send { socket, buffers }, None).0
    });
    for _ in 0..50 {
        rig.engine.turn(Wait::Never);
    }
    assert!(
        receives
            .iter()
            .chain(&sends)
            .all(|tag| !rig.inbox.has(*tag))
    );
    rig.clock.advance(Duration::from_millis(60));
    assert_eq!(kind(rig.wait(receives[0])), ErrorKind::Timeout);
    for tag in sends {
        assert_eq!(count(rig.wait(tag)), 2);
    }
}

on_every_backend! {
    sockets_send_and_receive
    answers_that_fell_short_are_counted
    a_receive_ends_at_its_deadline
    a_deadline_in_an_exact_receive_says_how_far_it_was
    a_receive_that_was_quicker_wins
    a_send_ends_at_its_deadline
    a_send_to_nobody_is_an_error
    the_programs_descriptor_may_go_at_once
    a_nonblocking_socket_is_waited_for
    a_forgotten_receive_leaves_the_bytes_to_the_next
    what_came_for_nobody_is_for_the_next
    two_that_are_given_up_together_leave_all_they_had
    no_hole_while_a_peer_never_pauses
    a_stash_holds_no_more_than_a_receive_asked_for
    all_in_line_are_served_from_what_was_put_back
    the_end_takes_nothing_with_it
    a_deadline_frees_a_table_that_waits_for_itself
}
