//! A loop turned by whoever has the time: an event loop that sleeps on descriptors, and threads.

use std::{
    io::Write as _,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use super::{Make, filled, guest, pair, threads};
use crate::{
    clock::{Clock, SystemClock},
    error::ErrorKind,
    io::{File, contract::Place},
    ioloop::{
        Ask, Handle, IoLoop, Settings,
        driver::{Next, Turnable},
        tests::{Inbox, bytes, count, kind},
    },
};

/// An event loop as far as a loop needs one.
struct Host {
    turnable: Turnable,
    handle: Handle,
    inbox: Arc<Inbox>,
    clock: SystemClock,
    next: Next,
}

fn host(make: Make, size: usize) -> Host {
    let clock = SystemClock::new();
    let shared: Arc<dyn Clock> = Arc::new(clock.clone());
    let settings = Settings {
        size,
        ..Settings::default()
    };
    let backend = make(Arc::clone(&shared), size);
    let (engine, handle) = IoLoop::new(backend, shared, settings).unwrap();
    Host {
        turnable: Turnable::new(engine).unwrap(),
        handle,
        inbox: Arc::default(),
        clock,
        next: Next::Readable,
    }
}

impl Host {
    fn ask(&self, ask: Ask, timeout: Option<Duration>, tag: u64) {
        let deadline = timeout.map(|timeout| self.handle.now().after(timeout));
        self.handle
            .submit_quietly(ask, deadline, self.inbox.sink(), tag)
            .unwrap();
    }

    fn turn(&mut self) {
        self.next = self.turnable.turn();
    }

    /// Sleeps until a descriptor is readable or a turn is due; false if that took a minute.
    fn sleep(&self) -> bool {
        let wait = match self.next {
            Next::At(at) => at.since(self.clock.now()),
            _ => Duration::from_secs(60),
        };
        let mut polls: Vec<_> = self
            .turnable
            .watched()
            .iter()
            .map(|fd| libc::pollfd {
                fd: *fd,
                events: libc::POLLIN,
                revents: 0,
            })
            .collect();
        let millis = wait.as_micros().div_ceil(1000) as i32;
        // SAFETY: as many entries as told, alive during the call.
        let found = unsafe { libc::poll(polls.as_mut_ptr(), polls.len() as libc::nfds_t, millis) };
        found > 0 || matches!(self.next, Next::At(_))
    }

    /// Runs the event loop until `tag` is answered; only readiness and due times make it turn.
    fn wait(&mut self, tag: u64) {
        self.turn();
        while !self.inbox.has(tag) {
            assert!(self.sleep(), "nothing became readable");
            self.turnable.quiet();
            self.turn();
        }
    }
}

fn an_event_loop_learns_of_every_answer(make: Make) {
    let place = Place::new("host");
    let mut host = host(make, 4);
    let path = place.path().join("a");
    let file = File::from_fd(std::fs::File::create_new(&path).unwrap().into());
    for round in 0..50 {
        let buffers = vec![filled(100, round as u8), filled(28, 1)];
        let ask = Ask::Write {
            file: file.clone(),
            offset: round * 128,
            buffers,
            sync: round % 3 == 0,
        };
        host.ask(ask, None, round);
        host.wait(round);
        assert_eq!(count(host.inbox.take(round)), 128);
    }
    let (mut ours, socket) = pair();
    let recv = |exact| Ask::Recv {
        socket: socket.clone(),
        length: 4,
        exact,
    };
    host.ask(recv(true), None, 1000);
    host.turn();
    ours.write_all(b"ab").unwrap();
    let writer = std::thread::spawn(move || {
        ours.write_all(b"cd").unwrap();
        ours
    });
    host.wait(1000);
    assert_eq!(bytes(host.inbox.take(1000)), b"abcd");
    let _ours = writer.join().unwrap();
    host.ask(recv(true), Some(Duration::from_millis(10)), 1001);
    host.wait(1001);
    assert_eq!(kind(host.inbox.take(1001)), ErrorKind::Timeout);
    // More than the table takes: what ends makes room, and that is turned for, too.
    for tag in 2000..2100 {
        let path = place.path().to_owned();
        host.ask(Ask::StatPath { path }, None, tag);
    }
    for tag in 2000..2100 {
        host.wait(tag);
        host.inbox.take(tag).unwrap();
    }
}

fn another_thread_wakes_the_event_loop(make: Make) {
    let mut host = host(make, 8);
    host.turn();
    for tag in 0..200 {
        let (handle, sink) = (host.handle.clone(), host.inbox.sink());
        let other = std::thread::spawn(move || {
            let path = "/".into();
            handle
                .submit(Ask::StatPath { path }, None, sink, tag)
                .unwrap();
        });
        while !host.inbox.has(tag) {
            assert!(host.sleep(), "the submission was not heard of");
            host.turnable.quiet();
            host.turn();
        }
        other.join().unwrap();
    }
}

/// Whoever waits may turn: several threads, each for its own answer, and the event loop beside.
fn threads_that_wait_turn_it_themselves(make: Make) {
    const THREADS: u64 = 4;
    const EACH: u64 = 200;
    let host = host(make, 8);
    let failed = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (host, failed) = (&host, &failed);
            scope.spawn(move || {
                for round in 0..EACH {
                    let tag = thread * EACH + round;
                    let path = "/".into();
                    host.handle
                        .submit(Ask::StatPath { path }, None, host.inbox.sink(), tag)
                        .unwrap();
                    host.turnable.turn_while(|| !host.inbox.has(tag));
                    let good = host.inbox.take(tag).is_ok();
                    failed.fetch_add(u64::from(!good), Ordering::Relaxed);
                }
            });
        }
    });
    assert_eq!(failed.into_inner(), 0);
    assert_eq!(host.handle.statistics().completed, THREADS * EACH);
}

/// A thread whose own answer never comes does not keep others from theirs.
fn a_thread_that_waits_long_keeps_nobody_from_his_answer(make: Make) {
    let host = host(make, 8);
    let (mut ours, socket) = pair();
    let ask = Ask::Recv {
        socket,
        length: 1,
        exact: true,
    };
    host.handle.submit(ask, None, host.inbox.sink(), 0).unwrap();
    std::thread::scope(|scope| {
        let patient = scope.spawn(|| host.turnable.turn_while(|| !host.inbox.has(0)));
        for tag in 1..200 {
            let path = "/".into();
            host.handle
                .submit(Ask::StatPath { path }, None, host.inbox.sink(), tag)
                .unwrap();
            host.turnable.turn_while(|| !host.inbox.has(tag));
        }
        ours.write_all(b"x").unwrap();
        patient.join().unwrap();
    });
    assert_eq!(host.inbox.len(), 200);
}

/// What a thread submitted and turned is finished after it ended, by whoever turns then.
fn what_an_ended_thread_submitted_is_finished(make: Make) {
    let place = Place::new("host");
    let mut host = host(make, 64);
    let path = place.path().join("a");
    let file = File::from_fd(std::fs::File::create_new(&path).unwrap().into());
    for round in 0..10 {
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for tag in 0..32 {
                    let ask = Ask::Write {
                        file: file.clone(),
                        offset: tag * 4096,
                        buffers: vec![filled(4096, round)],
                        sync: true,
                    };
                    host.ask(ask, None, tag);
                }
                host.turnable.turn();
            });
        });
        for tag in 0..32 {
            host.wait(tag);
            assert_eq!(count(host.inbox.take(tag)), 4096);
        }
        *crate::sync::lock(&host.inbox.ids) = std::collections::HashMap::default();
    }
}

macro_rules! on_every_guest {
    ($($rule:ident)*) => {
        mod on_guest {
            $(
                #[test]
                fn $rule() {
                    // What is believed is said by the rule of this name.
                    super::$rule(super::guest);
                }
            )*
        }
        mod on_threads {
            $(
                #[test]
                fn $rule() {
                    // What is believed is said by the rule of this name.
                    super::$rule(super::threads);
                }
            )*
        }
    };
}

on_every_guest! {
    an_event_loop_learns_of_every_answer
    another_thread_wakes_the_event_loop
    threads_that_wait_turn_it_themselves
    a_thread_that_waits_long_keeps_nobody_from_his_answer
    what_an_ended_thread_submitted_is_finished
}
