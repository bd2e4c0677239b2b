//! A log that its callers turn, on the machine's own disk: several threads, a close, a panic.

use std::{
    os::fd::BorrowedFd,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use crate::{
    ErrorKind, Result,
    clock::{Mono, SystemClock},
    ids::{Lsn, StoreId},
    io::{
        Backend, Blocking, Class, Disk, File, Finished, Leftovers, Op, Request, Token, Wait, Wake,
        Wanted, contract::Place,
    },
    port::Doorbell,
    threads::ThreadsDisk,
    uring::UringDisk,
    wal::{
        Level, Log,
        choose::Candidate,
        open::World,
        settings::{CommitPath, Driver, LogSettings},
        trial::Alone,
    },
};

const LONG: Option<Duration> = Some(Duration::from_secs(60));

fn world() -> World {
    let clock = Arc::new(SystemClock::new());
    World {
        disk: Arc::new(ThreadsDisk::new(clock.clone())),
        clock,
        census: Box::new(Alone),
        fresh_id: StoreId([7; 16]),
        wanted: Wanted::default(),
    }
}

/// The ring, where this machine has it; else plain calls, which any thread may make.
fn disk() -> Arc<dyn Disk> {
    let clock = Arc::new(SystemClock::new());
    match UringDisk::probe(clock.clone(), None) {
        Ok(disk) => Arc::new(disk.for_guests()),
        Err(_) => Arc::new(ThreadsDisk::new(clock)),
    }
}

fn has_ring() -> bool {
    UringDisk::probe(Arc::new(SystemClock::new()), None).is_ok()
}

fn small() -> LogSettings {
    LogSettings {
        segment_bytes: 256 << 10,
        segment_first_bytes: 64 << 10,
        record_bytes_max: 16 << 10,
        group_bytes_max: 64 << 10,
        ring_entries: 64,
        ring_bytes: 256 << 10,
        ..LogSettings::default()
    }
}

fn open_with(place: &Place, disk: Arc<dyn Disk>, settings: LogSettings) -> Log {
    open_driven(Driver::Loop, place, disk, settings)
}

/// Loops and waiting threads turn it, or the steward leads while there are many or both kinds.
const DRIVERS: [Driver; 2] = [Driver::Loop, Driver::Either];

fn open_driven(driver: Driver, place: &Place, disk: Arc<dyn Disk>, settings: LogSettings) -> Log {
    let way = Candidate {
        driver,
        ..Candidate::new(CommitPath::Direct, disk, "test")
    };
    Log::open(&world(), &place.path().join("log"), settings, &[way]).unwrap()
}

fn open(place: &Place) -> Log {
    open_with(place, disk(), small())
}

fn payload(stream: u64, number: u64) -> Box<[u8]> {
    let mut bytes = vec![0; 16 + (number as usize * 37) % 300];
    bytes[..8].copy_from_slice(&stream.to_le_bytes());
    bytes[8..16].copy_from_slice(&number.to_le_bytes());
    bytes.into()
}

/// Every record of a closed log, opened once more.
fn read_back(place: &Place) -> Vec<Vec<u8>> {
    let log = open(place);
    let stop = log.appender().marks().durable.plus(1);
    let mut reader = log.reader(Lsn::FIRST, Some(stop)).unwrap();
    let mut found = Vec::new();
    while let Some(batch) = reader.next_batch(100).unwrap() {
        found.extend(batch.payloads().map(<[u8]>::to_vec));
    }
    log.close().unwrap();
    found
}

/// Looks until `holds`, for ten seconds at most.
fn soon(holds: impl Fn() -> bool) -> bool {
    within(Duration::from_secs(10), holds)
}

fn within(limit: Duration, holds: impl Fn() -> bool) -> bool {
    let begun = Instant::now();
    while begun.elapsed() < limit {
        if holds() {
            return true;
        }
        thread::yield_now();
    }
    false
}

fn is_readable(bell: &Doorbell, timeout: Duration) -> bool {
    let mut watched = libc::pollfd {
        fd: bell.fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: one entry, which lives during the call.
    (unsafe { libc::poll(&raw mut watched, 1, timeout.as_millis() as i32) }) == 1
}

/// What a loop does: append, urge, and turn at the bell, until `lsn` is durable.
fn append_as_a_loop(log: &Log, bell: &Arc<Doorbell>, payload: Box<[u8]>) -> Result<Lsn> {
    let appender = log.appender();
    let lsn = loop {
        match appender.submit(payload.clone()) {
            Err(error) if error.kind() == ErrorKind::Overloaded => appender.turn(),
            other => break other?,
        }
    };
    if appender.urge(bell) {
        bell.ring();
    }
    while appender.marks().durable < lsn && appender.failure().is_none() {
        is_readable(bell, Duration::from_millis(1));
        bell.silence();
        appender.turn();
    }
    appender.wait(Level::Durable, lsn, LONG).map(|()| lsn)
}

#[test]
fn threads_that_turn_one_log_lose_nothing_and_repeat_nothing() {
    // Two threads wait, two behave like loops, all turn the same committer; over several segments
    // each record is there once, at its LSN.
    for driver in DRIVERS {
        turned_by_many(driver);
    }
}

fn turned_by_many(driver: Driver) {
    let place = Place::new("turned-by-many");
    let log = open_driven(driver, &place, disk(), small());
    let told: Vec<Vec<(Lsn, Box<[u8]>)>> = thread::scope(|scope| {
        let workers: Vec<_> = (0..4_u64)
            .map(|stream| {
                let log = &log;
                scope.spawn(move || {
                    let bell = Arc::new(Doorbell::new().unwrap());
                    let append = |number| {
                        let bytes = payload(stream, number);
                        let lsn = if stream % 2 == 0 {
                            append_as_a_loop(log, &bell, bytes.clone()).unwrap()
                        } else {
                            let lsn = log.appender().submit(bytes.clone()).unwrap();
                            log.appender().wait(Level::Durable, lsn, LONG).unwrap();
                            lsn
                        };
                        (lsn, bytes)
                    };
                    (0..250).map(append).collect()
                })
            })
            .collect();
        workers.into_iter().map(|w| w.join().unwrap()).collect()
    });
    assert!(log.appender().counts().rotations > 0);
    log.close().unwrap();
    let found = read_back(&place);
    assert_eq!(found.len(), 1000);
    for (lsn, bytes) in told.iter().flatten() {
        assert_eq!(found[lsn.0 as usize - 1], **bytes, "{lsn:?}");
    }
}

#[test]
fn a_close_while_others_turn_ends_all_of_them() {
    // Whoever turns when the close comes lets go; whoever was told success finds the record.
    for round in 0..20 {
        let place = Place::new("closed-while-turned");
        let driver = DRIVERS[round as usize % 2];
        let log = open_driven(driver, &place, disk(), small());
        let told = thread::scope(|scope| {
            let workers: Vec<_> = (0..3_u64)
                .map(|stream| {
                    let log = &log;
                    scope.spawn(move || {
                        let bell = Arc::new(Doorbell::new().unwrap());
                        let mut told = Lsn::ZERO;
                        for number in 0.. {
                            let bytes = payload(stream, number);
                            let outcome = if stream == 0 {
                                append_as_a_loop(log, &bell, bytes)
                            } else {
                                let appended = log.appender().submit(bytes);
                                let wait = |lsn| log.appender().wait(Level::Durable, lsn, LONG);
                                appended.and_then(|lsn| wait(lsn).map(|()| lsn))
                            };
                            match outcome {
                                Ok(lsn) => told = lsn,
                                Err(error) => {
                                    assert_eq!(error.kind(), ErrorKind::Closed, "{error}");
                                    break;
                                }
                            }
                        }
                        told
                    })
                })
                .collect();
            let goal = Lsn(round * 3);
            assert!(soon(|| log.appender().marks().durable >= goal));
            log.close().unwrap();
            workers.into_iter().map(|w| w.join().unwrap()).max()
        });
        let found = read_back(&place).len() as u64;
        assert!(told.is_some_and(|told| told.0 <= found), "{told:?} {found}");
        assert_eq!(found, log.appender().marks().durable.0);
    }
}

#[test]
fn a_record_nobody_waits_for_is_written_and_the_log_rests() {
    // The steward sees to what no loop and no thread does, states the watermark, and then sleeps
    // without an appointment.
    let place = Place::new("nobody-waits");
    let log = open(&place);
    let lsn = log.appender().submit(payload(0, 0)).unwrap();
    assert!(soon(|| log.appender().marks().durable == lsn));
    assert!(soon(|| log.appender().counts().marks == 1));
    let steward = &log.appender().0.turner().unwrap().steward;
    assert!(soon(|| steward.is_resting()));
    let turns = log.appender().0.turner().unwrap().turns();
    // Longer than any appointment it could have kept.
    assert!(!within(Duration::from_millis(120), || {
        log.appender().0.turner().unwrap().turns() != turns
    }));
    let lsn = log.appender().submit(payload(0, 1)).unwrap();
    assert!(soon(|| log.appender().marks().durable == lsn));
    log.close().unwrap();
}

#[test]
fn the_kernel_raises_the_bell_of_the_loop() {
    // A direct write ends by an interrupt; the loop that submitted it hears of it without anybody
    // else turning, and one turn then moves the watermark.
    if !has_ring() {
        return;
    }
    let place = Place::new("bell");
    let log = open(&place);
    let bell = Arc::new(Doorbell::new().unwrap());
    for number in 0..50 {
        bell.silence();
        let lsn = log.appender().submit(payload(0, number)).unwrap();
        assert!(!log.appender().urge(&bell), "a lone append goes at once");
        while log.appender().marks().durable < lsn {
            assert!(is_readable(&bell, Duration::from_secs(10)));
            bell.silence();
            log.appender().turn();
        }
    }
    log.close().unwrap();
}

#[test]
fn those_who_were_answered_together_are_awaited_together() {
    // After sixteen were answered by one write, the first fifteen that come back defer, and the
    // sixteenth submits them all.
    let place = Place::new("together");
    let log = open(&place);
    let bell = Arc::new(Doorbell::new().unwrap());
    let appender = log.appender();
    let batch: Vec<_> = (0..16).map(|number| payload(0, number)).collect();
    let first = appender.submit_many(&batch).unwrap();
    appender.wait(Level::Durable, first.plus(15), LONG).unwrap();
    let groups = appender.counts().groups;
    let deferred: Vec<bool> = (0..16)
        .map(|number| {
            appender.submit(payload(1, number)).unwrap();
            appender.urge(&bell)
        })
        .collect();
    let mut expected = vec![true; 16];
    expected[15] = false;
    // The steward may have come in between on a machine that stood still for some milliseconds.
    if appender.counts().groups == groups + 1 {
        assert_eq!(deferred, expected);
    }
    appender.wait(Level::Durable, first.plus(31), LONG).unwrap();
    log.close().unwrap();
}

#[test]
fn the_threads_that_submitted_may_end() {
    // Each record is submitted by a thread that ends at once; none is lost and none is poisoned.
    let place = Place::new("threads-end");
    let log = open(&place);
    let mut last = Lsn::ZERO;
    for number in 0..64 {
        last = thread::scope(|scope| {
            let submit = scope.spawn(|| {
                let bell = Arc::new(Doorbell::new().unwrap());
                let lsn = log.appender().submit(vec![number; 9000].into()).unwrap();
                log.appender().urge(&bell);
                log.appender().turn();
                log.appender().forget(&bell);
                lsn
            });
            submit.join().unwrap()
        });
        if number % 16 == 15 {
            log.appender().wait(Level::Durable, last, LONG).unwrap();
        }
    }
    log.appender().wait(Level::Durable, last, LONG).unwrap();
    log.close().unwrap();
    assert_eq!(read_back(&place).len(), 64);
}

#[test]
fn a_timeout_of_a_thread_that_leads_leaves_the_log_to_others() {
    // A wait that is over before the record is durable hands the turning on.
    let place = Place::new("timeout");
    let settings = LogSettings {
        linger: Duration::from_millis(30),
        ..small()
    };
    let log = open_with(&place, disk(), settings);
    let lsn = log.appender().submit(payload(0, 0)).unwrap();
    let waited = log
        .appender()
        .wait(Level::Durable, lsn, Some(Duration::from_millis(1)));
    assert_eq!(waited.unwrap_err().kind(), ErrorKind::Timeout);
    assert!(soon(|| log.appender().marks().durable == lsn));
    log.close().unwrap();
}

/// Backends that panic in a poll once, when they have been polled often enough.
struct Trap {
    disk: Arc<dyn Disk>,
    left: Arc<AtomicU64>,
}

impl Disk for Trap {
    fn backend(&self) -> Result<Box<dyn Backend>> {
        Ok(Box::new(Trapped {
            backend: self.disk.backend()?,
            left: Arc::clone(&self.left),
        }))
    }
}

struct Trapped {
    backend: Box<dyn Backend>,
    left: Arc<AtomicU64>,
}

impl Backend for Trapped {
    fn submit(&mut self, request: Request) -> Result<(), Request> {
        self.backend.submit(request)
    }

    fn poll(&mut self, out: &mut Vec<Finished>, wait: Wait) -> Result<()> {
        let armed = self.left.load(Ordering::Relaxed) > 0;
        let sprung = armed && self.left.fetch_sub(1, Ordering::Relaxed) == 1;
        assert!(!sprung, "planted");
        self.backend.poll(out, wait)
    }

    fn waker(&self) -> Arc<dyn Wake> {
        self.backend.waker()
    }

    fn now(&self) -> Mono {
        self.backend.now()
    }

    fn in_flight(&self) -> usize {
        self.backend.in_flight()
    }

    fn hold(&mut self, lock: &File) -> Result<()> {
        self.backend.hold(lock)
    }

    fn let_go(&mut self) {
        self.backend.let_go();
    }

    fn notify(&mut self, bell: Option<BorrowedFd<'_>>) -> Result<()> {
        self.backend.notify(bell)
    }

    fn answer_to(&mut self, helper: Arc<dyn Wake>) {
        self.backend.answer_to(helper);
    }

    fn spare_caller(&mut self, yes: bool) {
        self.backend.spare_caller(yes);
    }

    fn has_left_over(&self) -> bool {
        self.backend.has_left_over()
    }

    fn shutdown(&mut self, budget: Option<Duration>) -> Leftovers {
        self.backend.shutdown(budget)
    }
}

#[test]
fn a_panic_in_a_turn_poisons_the_log_and_nothing_else() {
    // Whoever turned lives on and is told, whoever waits is told, and the log closes and opens.
    for polls in 1..24 {
        let place = Place::new("panic");
        let left = Arc::new(AtomicU64::new(0));
        let disk = Arc::new(Trap {
            disk: disk(),
            left: Arc::clone(&left),
        });
        let log = open_driven(DRIVERS[polls as usize % 2], &place, disk, small());
        let appender = log.appender();
        let lsn = appender.submit(payload(0, 0)).unwrap();
        appender.wait(Level::Durable, lsn, LONG).unwrap();
        left.store(polls, Ordering::Relaxed);
        let told = thread::scope(|scope| {
            let other = scope.spawn(|| wait_for_poison(&log));
            let bell = Arc::new(Doorbell::new().unwrap());
            while appender.failure().is_none() {
                appender.urge(&bell);
                appender.turn();
            }
            other.join().unwrap()
        });
        assert_eq!(told, ErrorKind::Poisoned);
        assert_eq!(log.close().unwrap_err().kind(), ErrorKind::Poisoned);
        assert!(!read_back(&place).is_empty());
    }
}

fn wait_for_poison(log: &Log) -> ErrorKind {
    loop {
        let appended = log.appender().submit(payload(1, 1));
        let waited = appended.and_then(|lsn| log.appender().wait(Level::Durable, lsn, LONG));
        match waited {
            Err(error) if error.kind() != ErrorKind::Overloaded => return error.kind(),
            _ => {}
        }
    }
}

#[test]
fn what_a_thread_of_the_backend_finished_calls_the_steward() {
    // Preparing a segment is a chain of such answers; the steward takes each at once, also if
    // somebody turned lately and nobody is told by a bell.
    let place = Place::new("called");
    let log = open(&place);
    let turner = Arc::clone(log.appender().0.turner().unwrap());
    let steward = &turner.steward;
    assert!(soon(|| steward.is_resting()));
    let turns = turner.turns();
    steward.call();
    assert!(soon(|| turner.turns() > turns));
    log.close().unwrap();
}

#[test]
fn the_answers_of_threads_reach_a_helper_while_nobody_polls() {
    // Whoever waits elsewhere without a bell hears of them.
    struct Heard(AtomicU64);
    impl Wake for Heard {
        fn wake(&self) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }
    let place = Place::new("helper");
    let mut backend = disk().backend().unwrap();
    let heard = Arc::new(Heard(AtomicU64::new(0)));
    backend.answer_to(heard.clone());
    let dir = Blocking::new(&mut *backend)
        .open_dir(place.path(), false)
        .unwrap();
    assert_eq!(heard.0.load(Ordering::Relaxed), 0);
    let request = Request {
        token: Token(1),
        class: Class::Background,
        op: Op::SyncDir { dir },
    };
    backend.submit(request).unwrap();
    backend.poll(&mut Vec::new(), Wait::Never).unwrap();
    assert!(soon(|| heard.0.load(Ordering::Relaxed) == 1));
}

#[test]
fn a_loop_that_goes_in_a_forked_child_touches_no_lock() {
    // The child has a copy of the lock, perhaps taken by a thread it does not have; its loop ends
    // all the same.
    let place = Place::new("forgotten-by-a-child");
    let log = open(&place);
    let bell = Arc::new(Doorbell::new().unwrap());
    let turner = Arc::clone(log.appender().0.turner().unwrap());
    log.appender().submit(payload(0, 0)).unwrap();
    log.appender().urge(&bell);
    assert!(turner.tells(&bell));
    // SAFETY: the child calls nothing that allocates or locks, and leaves by `_exit`.
    let child = unsafe { libc::fork() };
    if child == 0 {
        log.appender().forget(&bell);
        let code = i32::from(!turner.tells(&bell));
        // SAFETY: ends the child without running anything of ours.
        unsafe { libc::_exit(code) };
    }
    let mut status = 0;
    // SAFETY: waits for the child just made.
    assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
    assert_eq!(status, 0, "the child changed what it must not touch");
    log.appender().forget(&bell);
    assert!(!turner.tells(&bell));
    log.close().unwrap();
}

/// Room for many.
fn roomy() -> LogSettings {
    LogSettings {
        ring_entries: 1024,
        ..small()
    }
}

fn turned_by(log: &Log) -> Driver {
    log.appender().turned_by().unwrap()
}

/// What a loop with `count` tasks does: they append, and then it turns until all are answered.
fn append_as_tasks(log: &Log, bell: &Arc<Doorbell>, stream: u64, first: u64, count: u64) {
    let appender = log.appender();
    let mut last = Lsn::ZERO;
    for number in first..first + count {
        last = appender.submit(payload(stream, number)).unwrap();
        if appender.urge(bell) {
            bell.ring();
        }
    }
    while appender.marks().durable < last {
        is_readable(bell, Duration::from_millis(1));
        bell.silence();
        appender.turn();
    }
}

#[test]
fn many_are_led_by_the_steward_and_few_are_not() {
    // However often the load changes: a crowd of tasks is led soon, a lone one is not for long, and
    // every record is there once, at its place.
    let place = Place::new("many-and-few");
    let log = open_driven(Driver::Either, &place, disk(), roomy());
    let bell = Arc::new(Doorbell::new().unwrap());
    let told = AtomicU64::new(0);
    let append = |count: u64| {
        append_as_tasks(&log, &bell, 0, told.load(Ordering::Relaxed), count);
        told.fetch_add(count, Ordering::Relaxed);
    };
    for _ in 0..5 {
        assert_eq!(turned_by(&log), Driver::Loop);
        assert!(soon(|| {
            append(300);
            turned_by(&log) == Driver::Thread
        }));
        assert!(soon(|| {
            append(1);
            turned_by(&log) == Driver::Loop
        }));
    }
    log.close().unwrap();
    let expected: Vec<_> = (0..told.into_inner()).map(|n| payload(0, n)).collect();
    let found = read_back(&place);
    assert_eq!(found.len(), expected.len());
    assert!(expected.iter().zip(&found).all(|(a, b)| **a == **b));
}

#[test]
fn a_crowd_that_is_gone_is_led_no_more() {
    // When the log rests nobody leads, the steward sleeps without end, and the next lone append is
    // answered through the loop's bell.
    let place = Place::new("crowd-gone");
    let log = open_driven(Driver::Either, &place, disk(), roomy());
    let bell = Arc::new(Doorbell::new().unwrap());
    let mut told = 0;
    assert!(soon(|| turned_by(&log) == Driver::Loop));
    while turned_by(&log) == Driver::Loop {
        append_as_tasks(&log, &bell, 0, told, 300);
        told += 300;
    }
    let turner = Arc::clone(log.appender().0.turner().unwrap());
    assert!(soon(
        || turned_by(&log) == Driver::Loop && turner.steward.is_resting()
    ));
    append_as_tasks(&log, &bell, 0, told, 1);
    assert_eq!(turned_by(&log), Driver::Loop);
    log.close().unwrap();
}

#[test]
fn a_thread_that_waits_beside_a_loop_is_led_too() {
    // A loop may be stuck in a call of its own; a waiting thread shall not depend on it.
    let place = Place::new("mixed");
    let log = open_driven(Driver::Either, &place, disk(), roomy());
    let bell = Arc::new(Doorbell::new().unwrap());
    let mut number = 0;
    assert!(soon(|| turned_by(&log) == Driver::Loop));
    for _ in 0..1000 {
        if turned_by(&log) == Driver::Thread {
            break;
        }
        append_as_tasks(&log, &bell, 0, number, 1);
        let lsn = log.appender().submit(payload(1, number)).unwrap();
        log.appender().wait(Level::Durable, lsn, LONG).unwrap();
        number += 1;
    }
    assert_eq!(turned_by(&log), Driver::Thread);
    // The loop does nothing at all meanwhile.
    for _ in 0..10 {
        let lsn = log.appender().submit(payload(1, number)).unwrap();
        log.appender().wait(Level::Durable, lsn, LONG).unwrap();
    }
    log.close().unwrap();
}
