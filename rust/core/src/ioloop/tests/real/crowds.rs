//! Many requests, many threads, on every backend.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use super::{Make, Rig, filled, on_every_backend, pair};
use crate::{
    clock::{Clock, SystemClock},
    error::ErrorKind,
    io::{BLOCK, File, Wait},
    ioloop::{
        Answered, Ask, IoLoop, Settings, Sink, driver,
        tests::{bytes, count, kind},
    },
    sync::lock,
};

fn settings(size: usize) -> Settings {
    Settings {
        size,
        ..Settings::default()
    }
}

/// Ten thousand receives on sixty-four sockets, deadlines spread over two seconds: every one is a
/// timeout, none comes early, and each at most two ticks late.
fn ten_thousand_receives_all_expire(make: Make) {
    const COUNT: u64 = 10_000;
    const SPREAD_MS: u64 = 2000;
    const TICK_MS: u64 = 5;
    let mut rig = Rig::new(make, settings(16_384));
    let sockets: Vec<_> = (0..64).map(|_| pair()).collect();
    let mut due = Vec::new();
    for number in 0..COUNT {
        let ask = Ask::Recv {
            socket: sockets[number as usize % 64].1.clone(),
            length: 1,
            exact: true,
        };
        let at = 1 + number * SPREAD_MS / COUNT;
        let (tag, _) = rig.ask(ask, Some(rig.after(at)));
        due.push((tag, at));
    }
    let mut seen = 0;
    for now in (0..=SPREAD_MS + 4 * TICK_MS).step_by(TICK_MS as usize) {
        let early = |(_, at): &&(u64, u64)| *at > now;
        let first_early = due.iter().find(early);
        assert!(first_early.is_none_or(|(tag, _)| !rig.inbox.has(*tag)));
        // Everything that is due is answered before time goes on.
        let must = due.iter().filter(|(_, at)| at + 2 * TICK_MS <= now).count();
        rig.until(|inbox| inbox.len() >= must);
        seen = seen.max(must);
        rig.clock.advance(Duration::from_millis(TICK_MS));
        rig.engine.turn(Wait::Never);
    }
    rig.until(|inbox| inbox.len() == COUNT as usize);
    for (tag, _) in due {
        assert_eq!(kind(rig.inbox.take(tag)), ErrorKind::Timeout);
    }
    let statistics = rig.handle.statistics();
    assert_eq!((statistics.timed_out, seen), (COUNT, COUNT as usize));
    while rig.handle.statistics().pending > 0 {
        rig.engine.turn(Wait::Never);
    }
}

/// A storm of cancels, of resubmissions and of fresh requests at once, through a small queue: each
/// is answered once, and what was sent arrives.
fn a_storm_of_cancels_and_resubmissions_loses_nothing(make: Make) {
    const COUNT: usize = 200;
    let mut rig = Rig::new(make, settings(512));
    let file = rig.open("a", libc::O_RDWR | libc::O_CREAT);
    let mut pairs: Vec<_> = (0..COUNT).map(|_| pair()).collect();
    let mut kept = Vec::new();
    let mut gone = Vec::new();
    for (at, (_, socket)) in pairs.iter().enumerate() {
        let (tag, id) = rig.ask(exact(socket, 4), None);
        if at % 2 == 0 {
            kept.push((at, tag));
        } else {
            gone.push((tag, id));
        }
    }
    rig.engine.turn(Wait::Never);
    for round in 0..4u8 {
        for (at, _) in &kept {
            std::io::Write::write_all(&mut pairs[*at].0, &[round]).unwrap();
        }
        if round == 1 {
            for (_, id) in &gone {
                rig.handle.forget(*id);
            }
        }
        let writes: Vec<_> = (0..COUNT as u64)
            .map(|at| {
                let ask = Ask::Write {
                    file: file.clone(),
                    offset: at * 16,
                    buffers: vec![filled(16, round)],
                    sync: false,
                };
                rig.ask(ask, None).0
            })
            .collect();
        for tag in writes {
            assert_eq!(count(rig.wait(tag)), 16);
        }
    }
    for (_, tag) in kept {
        assert_eq!(bytes(rig.wait(tag)), [0, 1, 2, 3]);
    }
    while rig.handle.statistics().pending > 0 {
        rig.engine.turn(Wait::Never);
    }
    assert!(gone.iter().all(|(tag, _)| !rig.inbox.has(*tag)));
}

/// More fresh requests in one turn than the queue takes are all submitted.
fn a_queue_full_of_fresh_requests_is_emptied(make: Make) {
    let mut rig = Rig::new(make, settings(256));
    let file = rig.open("a", libc::O_RDWR | libc::O_CREAT);
    let writes: Vec<_> = (0..200)
        .map(|at| {
            let ask = Ask::Write {
                file: file.clone(),
                offset: at * 16,
                buffers: vec![filled(16, at as u8)],
                sync: false,
            };
            rig.ask(ask, None).0
        })
        .collect();
    for tag in writes {
        assert_eq!(count(rig.wait(tag)), 16);
    }
}

fn exact(socket: &File, length: usize) -> Ask {
    Ask::Recv {
        socket: socket.clone(),
        length,
        exact: true,
    }
}

/// More cancels in one turn than the queue takes are all sent.
fn a_queue_full_of_cancels_is_emptied(make: Make) {
    let mut rig = Rig::new(make, settings(256));
    let pairs: Vec<_> = (0..200).map(|_| pair()).collect();
    let asked: Vec<_> = pairs
        .iter()
        .map(|(_, socket)| rig.ask(exact(socket, 1), None).1)
        .collect();
    // All of them are with the kernel, not in a line before it.
    while rig.handle.statistics().in_flight < 200 {
        rig.engine.turn(Wait::Never);
    }
    for _ in 0..200 {
        rig.engine.turn(Wait::Never);
    }
    for id in asked {
        rig.handle.forget(id);
    }
    let begun = std::time::Instant::now();
    while rig.handle.statistics().pending > 0 {
        assert!(
            begun.elapsed() < Duration::from_secs(20),
            "a cancel was lost"
        );
        rig.engine.turn(Wait::Never);
    }
    assert_eq!(rig.inbox.len(), 0);
}

/// More requests that need another submission in one turn than the queue takes all get it.
fn a_queue_full_of_resubmissions_is_emptied(make: Make) {
    let mut rig = Rig::new(make, settings(256));
    let mut pairs: Vec<_> = (0..200).map(|_| pair()).collect();
    let asked: Vec<_> = pairs
        .iter()
        .map(|(_, socket)| rig.ask(exact(socket, 3), None).0)
        .collect();
    for _ in 0..200 {
        rig.engine.turn(Wait::Never);
    }
    for part in [b"a", b"b", b"c"] {
        for (ours, _) in &mut pairs {
            std::io::Write::write_all(ours, part).unwrap();
        }
        for _ in 0..20 {
            rig.engine.turn(Wait::Never);
        }
    }
    for tag in asked {
        assert_eq!(bytes(rig.wait(tag)), b"abc");
    }
}

/// What is counted adds up: every submission ends once, and every answer was timed once.
fn the_numbers_add_up(make: Make) {
    let mut rig = Rig::new(make, settings(8));
    let file = rig.open("a", libc::O_RDWR | libc::O_CREAT);
    let (mut ours, socket) = pair();
    let (received, _) = rig.ask(exact(&socket, 4), None);
    let (_, gone) = rig.ask(exact(&pair().1, 1), None);
    let (late, _) = rig.ask(exact(&pair().1, 1), Some(rig.after(10)));
    rig.handle.forget(gone);
    for part in [b"ab", b"cd"] {
        std::io::Write::write_all(&mut ours, part).unwrap();
        for _ in 0..20 {
            rig.engine.turn(Wait::Never);
        }
    }
    rig.wait(received).unwrap();
    let writes: Vec<_> = (0..20)
        .map(|_| {
            let ask = Ask::Write {
                file: file.clone(),
                offset: 0,
                buffers: vec![filled(16, 1)],
                sync: true,
            };
            rig.ask(ask, None).0
        })
        .collect();
    for tag in writes {
        rig.wait(tag).unwrap();
    }
    rig.clock.advance(Duration::from_millis(20));
    let _ended_or_late = rig.wait(late);
    while rig.handle.statistics().pending > 0 {
        rig.engine.turn(Wait::Never);
    }
    let seen = rig.handle.statistics();
    assert_eq!((seen.submitted, seen.in_flight, seen.orphaned), (24, 0, 1));
    assert_eq!(seen.submitted, seen.completed + seen.cancelled_before);
    let timed: u64 = seen.device_time.iter().map(|(_, times)| times.count).sum();
    assert_eq!(timed, seen.completed);
    let waited: u64 = seen.queue_wait.iter().map(|(_, times)| times.count).sum();
    assert_eq!(waited, seen.completed);
    assert_eq!(
        (seen.leaked_requests, seen.abandoned, seen.overflows),
        (0, 0, 0)
    );
}

/// Answers counted, with a wake for whoever waits.
#[derive(Default)]
struct Counter {
    good: AtomicU64,
    bad: std::sync::Mutex<Vec<crate::Error>>,
}

impl Sink for Counter {
    fn answer(&self, answered: Answered) {
        match answered.result {
            Ok(_) => {
                self.good.fetch_add(1, Ordering::Release);
            }
            Err(error) => lock(&self.bad).push(error),
        }
    }
}

/// Threads that submit now and then to a loop that sleeps now and then: no wake is lost, whatever
/// races. A lost one would leave its request unanswered for ever.
fn a_storm_of_wakes_loses_none(make: Make) {
    const THREADS: u64 = 4;
    const EACH: u64 = 2000;
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let place = crate::io::contract::Place::new("storm");
    let path = place.path().join("a");
    std::fs::write(&path, vec![7; BLOCK]).unwrap();
    let file = File::from_fd(std::fs::File::open(&path).unwrap().into());
    let backend = make(Arc::clone(&clock), 16);
    let (engine, handle) = IoLoop::new(backend, clock, settings(16)).unwrap();
    let thread = driver::spawn(engine).unwrap();
    let counter = Arc::new(Counter::default());
    let answered = || counter.good.load(Ordering::Acquire) + lock(&counter.bad).len() as u64;
    std::thread::scope(|scope| {
        for number in 0..THREADS {
            let (handle, file, counter) = (handle.clone(), file.clone(), Arc::clone(&counter));
            scope.spawn(move || {
                for round in 0..EACH {
                    let ask = Ask::Read {
                        file: file.clone(),
                        offset: 0,
                        length: 16,
                        partial: false,
                    };
                    let sink: Arc<dyn Sink> = counter.clone();
                    handle
                        .submit(ask, None, sink, number * EACH + round)
                        .unwrap();
                    // Sometimes one at a time into a sleeping loop, sometimes a burst.
                    if round % 3 == 0 {
                        std::thread::yield_now();
                    }
                }
            });
        }
    });
    let begun = std::time::Instant::now();
    while answered() < THREADS * EACH {
        assert!(
            begun.elapsed() < Duration::from_secs(60),
            "lost after {}",
            answered()
        );
        std::thread::yield_now();
    }
    assert!(lock(&counter.bad).is_empty());
    // One at a time, each into a loop that had time to fall asleep or just had not.
    for round in 0..2000 {
        let before = answered();
        let ask = Ask::Read {
            file: file.clone(),
            offset: 0,
            length: 16,
            partial: false,
        };
        handle
            .submit(ask, None, counter.clone(), 1 << 32 | round)
            .unwrap();
        while answered() == before {
            assert!(
                begun.elapsed() < Duration::from_secs(120),
                "lost in round {round}"
            );
            std::thread::yield_now();
        }
    }
    drop(handle);
    thread.join().unwrap();
}

on_every_backend! {
    ten_thousand_receives_all_expire
    a_storm_of_cancels_and_resubmissions_loses_nothing
    a_queue_full_of_fresh_requests_is_emptied
    a_queue_full_of_cancels_is_emptied
    a_queue_full_of_resubmissions_is_emptied
    the_numbers_add_up
    a_storm_of_wakes_loses_none
}
