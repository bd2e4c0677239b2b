//! The end of a loop, on every backend.

use std::{os::unix::fs::OpenOptionsExt, time::Duration};

use super::{Make, Rig, filled, on_every_backend, pair};
use crate::{
    error::ErrorKind,
    io::{Buffer, File, Leftovers, Wait},
    ioloop::{
        Ask, Settings, Turned,
        tests::{count, kind},
    },
};

fn with_budget(budget: Option<Duration>, size: usize) -> Settings {
    Settings {
        size,
        shutdown_timeout: budget,
        ..Settings::default()
    }
}

fn close(rig: &Rig) {
    rig.handle.close(None, Some((rig.inbox.sink(), 0)));
}

/// Turns until the loop is over, with time passing.
fn finish(rig: &mut Rig) -> Leftovers {
    let begun = std::time::Instant::now();
    while rig.engine.turn(Wait::Never) == Turned::On {
        assert!(begun.elapsed() < Duration::from_secs(60), "no end");
        std::thread::yield_now();
    }
    rig.inbox.ended().unwrap()
}

/// Without a budget everything that was accepted is done, through a full table.
fn closing_serves_what_was_accepted(make: Make) {
    let mut rig = Rig::new(make, with_budget(None, 4));
    let file = rig.open("a", libc::O_RDWR | libc::O_CREAT);
    let tags: Vec<_> = (0..64)
        .map(|at| {
            let ask = Ask::Write {
                file: file.clone(),
                offset: at * 64,
                buffers: vec![filled(32, 1), filled(32, 2)],
                sync: at % 8 == 0,
            };
            rig.ask(ask, (at % 2 == 0).then(|| rig.after(10_000))).0
        })
        .collect();
    close(&rig);
    assert_eq!(finish(&mut rig), Leftovers::default());
    for tag in tags {
        assert_eq!(count(rig.inbox.take(tag)), 64);
    }
}

/// Without a budget a receive that nothing comes for ends by its deadline, and the loop with it.
fn closing_waits_for_deadlines(make: Make) {
    let mut rig = Rig::new(make, with_budget(None, 4));
    let (_ours, socket) = pair();
    let ask = Ask::Recv {
        socket,
        length: 1,
        exact: true,
    };
    let (tag, _) = rig.ask(ask, Some(rig.after(100)));
    close(&rig);
    for _ in 0..20 {
        assert_eq!(rig.engine.turn(Wait::Never), Turned::On);
    }
    rig.clock.advance(Duration::from_millis(110));
    assert_eq!(finish(&mut rig), Leftovers::default());
    assert_eq!(kind(rig.inbox.take(tag)), ErrorKind::Timeout);
}

/// With a budget, receives that nothing comes for are cancelled when it is spent: in flight,
/// begun and to be submitted again, and waiting behind a full table.
fn a_spent_budget_ends_what_would_never_end(make: Make) {
    let mut rig = Rig::new(make, with_budget(Some(Duration::from_millis(50)), 4));
    let mut pairs: Vec<_> = (0..8).map(|_| pair()).collect();
    let tags: Vec<_> = pairs
        .iter()
        .map(|(_, socket)| {
            let ask = Ask::Recv {
                socket: socket.clone(),
                length: 4,
                exact: true,
            };
            rig.ask(ask, None).0
        })
        .collect();
    std::io::Write::write_all(&mut pairs[0].0, b"a").unwrap();
    rig.engine.turn(Wait::Never);
    close(&rig);
    for _ in 0..20 {
        assert_eq!(rig.engine.turn(Wait::Never), Turned::On);
    }
    assert_eq!(rig.inbox.len(), 0);
    rig.clock.advance(Duration::from_millis(60));
    assert_eq!(finish(&mut rig), Leftovers::default());
    for tag in tags {
        assert_eq!(kind(rig.inbox.take(tag)), ErrorKind::Abandoned);
    }
}

/// What a spent budget stops half-way says so, and how far it was; so does what had not begun.
fn a_spent_budget_says_how_far_it_was(make: Make) {
    let mut rig = Rig::new(make, with_budget(Some(Duration::from_millis(50)), 4));
    let (mut ours, theirs) = pair();
    let receive = Ask::Recv {
        socket: theirs.clone(),
        length: 4,
        exact: true,
    };
    let (receive, _) = rig.ask(receive, None);
    std::io::Write::write_all(&mut ours, b"abc").unwrap();
    let send = || Ask::Send {
        socket: theirs.clone(),
        buffers: vec![super::filled(4 << 20, 1)],
    };
    let (begun, _) = rig.ask(send(), None);
    let (in_line, _) = rig.ask(send(), None);
    for _ in 0..20 {
        rig.engine.turn(Wait::Never);
    }
    close(&rig);
    rig.engine.turn(Wait::Never);
    rig.clock.advance(Duration::from_millis(60));
    assert_eq!(finish(&mut rig), Leftovers::default());
    let told = |tag| {
        let error = rig.inbox.take(tag).unwrap_err();
        assert_eq!((error.kind(), error.errno()), (ErrorKind::Abandoned, None));
        let done = error.number("done").unwrap();
        (error.number("indeterminate"), done)
    };
    assert_eq!(told(receive), (Some(0), 3));
    let (indeterminate, sent) = told(begun);
    assert!(indeterminate == Some(1) && sent > 0, "{sent}");
    assert_eq!(told(in_line), (Some(1), 0));
    assert_eq!(rig.handle.statistics().abandoned, 3);
}

/// Closed with direct reads in flight and no time at all: what the kernel still writes goes to
/// memory that nobody else was given since. Fresh buffers of the same size keep their pattern.
fn nothing_the_kernel_may_write_to_is_given_away(make: Make) {
    const LENGTH: usize = 1 << 20;
    const COUNT: usize = 16;
    const PATTERN: u8 = 0xa5;
    let place = crate::io::contract::Place::new("guard");
    let path = place.path().join("a");
    std::fs::write(&path, vec![0x11; LENGTH * COUNT]).unwrap();
    for _ in 0..4 {
        let Ok(file) = std::fs::File::options()
            .read(true)
            .custom_flags(libc::O_DIRECT)
            .open(&path)
        else {
            // A filesystem without direct reads finishes them at once.
            return;
        };
        let file = File::from_fd(file.into());
        let mut rig = Rig::new(make, with_budget(Some(Duration::ZERO), 128));
        for at in 0..COUNT {
            let ask = Ask::Read {
                file: file.clone(),
                offset: (at * LENGTH) as u64,
                length: LENGTH,
                partial: false,
            };
            rig.ask(ask, None);
        }
        rig.engine.turn(Wait::Never);
        close(&rig);
        // The budget is spent at once and the grace a moment later.
        rig.engine.turn(Wait::Never);
        rig.clock.advance(Duration::from_secs(1));
        let left = finish(&mut rig);
        assert_eq!(left.bytes, left.requests * LENGTH as u64);
        assert_eq!(rig.inbox.len(), COUNT, "every waiter was told");
        drop(rig);
        let mut guards: Vec<_> = (0..2 * COUNT).map(|_| Buffer::zeroed(LENGTH)).collect();
        for guard in &mut guards {
            guard.fill(PATTERN);
        }
        let pattern = vec![PATTERN; LENGTH];
        for _ in 0..20 {
            for guard in &guards {
                assert!(guard[..] == pattern[..], "written by the kernel");
            }
        }
    }
}

on_every_backend! {
    closing_serves_what_was_accepted
    closing_waits_for_deadlines
    a_spent_budget_ends_what_would_never_end
    a_spent_budget_says_how_far_it_was
    nothing_the_kernel_may_write_to_is_given_away
}
