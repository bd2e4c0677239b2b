//! Giving the directory back, and surviving panics: on the machine's own disk, with a thread.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use crate::{
    ErrorKind,
    clock::{Clock, Mono, SystemClock},
    error::Result,
    ids::{Lsn, StoreId},
    io::{
        Backend, Disk, File, Finished, Kind, Leftovers, Request, Wait, Wake, Wanted,
        contract::Place,
        faulty::{Fault, FaultyDisk},
    },
    sync::Arc,
    threads::ThreadsDisk,
    wal::{
        Level, Log, choose::Candidate, cursor::Mark, lock::ProcCensus, open::World,
        settings::CommitPath, settings::LogSettings, trial::Alone,
    },
};

type Hook = dyn Fn(Spot) + Send + Sync;

/// Where a hook is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Spot {
    Submit(Kind),
    Poll,
}

/// A disk that calls a hook before each submission and each poll.
struct Hooked<D> {
    inner: D,
    hook: Arc<Hook>,
}

impl<D: Disk> Disk for Hooked<D> {
    fn backend(&self) -> Result<Box<dyn Backend>> {
        let inner = self.inner.backend()?;
        let hook = Arc::clone(&self.hook);
        Ok(Box::new(HookedBackend { inner, hook }))
    }
}

struct HookedBackend {
    inner: Box<dyn Backend>,
    hook: Arc<Hook>,
}

impl Backend for HookedBackend {
    fn submit(&mut self, request: Request) -> Result<(), Request> {
        (self.hook)(Spot::Submit(Kind::of(&request.op)));
        self.inner.submit(request)
    }

    fn poll(&mut self, out: &mut Vec<Finished>, wait: Wait) -> Result<()> {
        (self.hook)(Spot::Poll);
        self.inner.poll(out, wait)
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

    fn hold(&mut self, lock: &File) -> Result<()> {
        self.inner.hold(lock)
    }

    fn let_go(&mut self) {
        self.inner.let_go();
    }

    fn shutdown(&mut self, budget: Option<Duration>) -> Leftovers {
        self.inner.shutdown(budget)
    }
}

fn threads() -> ThreadsDisk {
    ThreadsDisk::new(Arc::new(SystemClock::new()))
}

fn settings() -> LogSettings {
    LogSettings {
        segment_bytes: 1 << 20,
        segment_first_bytes: 64 << 10,
        record_bytes_max: 4 << 10,
        group_bytes_max: 32 << 10,
        ..LogSettings::default()
    }
}

fn world(disk: impl Disk + 'static) -> World {
    World {
        disk: Arc::new(disk),
        clock: Arc::new(SystemClock::new()),
        census: Box::new(ProcCensus),
        fresh_id: StoreId([7; 16]),
        wanted: Wanted::default(),
    }
}

/// Opens the log in `place`; records are committed through `disk`.
fn open(world: &World, place: &Place, disk: impl Disk + 'static) -> Result<Log> {
    let way = Candidate::new(CommitPath::Pwrite, Arc::new(disk), "threads");
    Log::open(world, place.path(), settings(), &[way])
}

/// The log opens again, has everything up to `durable`, and takes a record.
fn goes_on(place: &Place, durable: Lsn) {
    let log = open(&world(threads()), place, threads()).unwrap();
    assert!(log.appender().marks().durable >= durable);
    let mut reader = log.reader(Lsn::FIRST, Some(durable.plus(1))).unwrap();
    let mut seen = 0;
    while seen < durable.0 {
        seen += reader.next_batch(100).unwrap().unwrap().len() as u64;
    }
    let next = log.appender().submit(Box::from(*b"next")).unwrap();
    log.appender().wait(Level::Durable, next, None).unwrap();
    log.close().unwrap();
}

/// Looks until it is so, for at most this long.
fn comes_true(within: Duration, is_so: impl Fn() -> bool) -> bool {
    let began = Instant::now();
    while !is_so() {
        if began.elapsed() > within {
            return false;
        }
        thread::yield_now();
    }
    true
}

const LONG: Duration = Duration::from_secs(30);

#[test]
fn the_lock_is_kept_while_a_cursor_is_committed() {
    // A log that failed gives its directory back only when the cursor commit that was under way
    // has ended: until then nobody else can open it, and what the commit wrote is found by whoever
    // does afterwards.
    let place = Place::new("handback");
    let begun = Arc::new(AtomicBool::new(false));
    let shut = Arc::new(AtomicBool::new(false));
    let gate = {
        let (begun, shut) = (Arc::clone(&begun), Arc::clone(&shut));
        move |spot: Spot| {
            if matches!(spot, Spot::Submit(Kind::WriteSync)) && shut.load(Ordering::Acquire) {
                begun.store(true, Ordering::Release);
                assert!(comes_true(LONG, || !shut.load(Ordering::Acquire)));
            }
        }
    };
    let tools = Hooked {
        inner: threads(),
        hook: Arc::new(gate),
    };
    let disk = FaultyDisk::new(threads());
    let faults = disk.faults();
    let log = Arc::new(open(&world(tools), &place, disk).unwrap());
    let first = log.appender().submit(Box::from(*b"first")).unwrap();
    log.appender().wait(Level::Durable, first, None).unwrap();

    shut.store(true, Ordering::Release);
    let committing = thread::spawn({
        let log = Arc::clone(&log);
        let mark = Mark {
            position: first,
            holds_truncation: false,
        };
        move || log.commit_cursor("c", mark)
    });
    assert!(comes_true(LONG, || begun.load(Ordering::Acquire)));
    faults.set(Fault::next(Kind::WriteSync, libc::EIO));
    log.appender().submit(Box::from(*b"second")).unwrap();
    assert!(comes_true(LONG, || log.appender().failure().is_some()));
    // Time enough for a thread that does not wait to be gone; one that waits is still there.
    let is_gone = comes_true(Duration::from_millis(300), || log.is_stopped());
    let other = open(&world(threads()), &place, threads());
    shut.store(false, Ordering::Release);
    committing.join().unwrap().unwrap();
    assert!(
        !is_gone,
        "the lock was given back before the cursor was written"
    );
    assert_eq!(other.map(drop).unwrap_err().kind(), ErrorKind::Locked);
    assert_eq!(log.close().unwrap_err().kind(), ErrorKind::Poisoned);

    let log = open(&world(threads()), &place, threads()).unwrap();
    let found = log.cursor("c").unwrap().map(|mark| mark.position);
    assert_eq!(found, Some(first));
    log.close().unwrap();
}

/// A clock that panics when told to: read by the committer for each frame.
#[derive(Debug)]
struct Trap {
    clock: SystemClock,
    is_set: Arc<AtomicBool>,
}

impl Clock for Trap {
    fn now(&self) -> Mono {
        self.clock.now()
    }

    fn wall_ns(&self) -> i64 {
        assert!(!self.is_set.load(Ordering::Acquire), "injected: clock");
        self.clock.wall_ns()
    }
}

/// Three wait while the trap goes off: all of them fail with the one cause, later calls too, the
/// close says so, and the next open finds what had been durable.
fn everybody_learns_of_the_panic(place: &Place, log: Log, is_set: &AtomicBool) {
    let log = Arc::new(log);
    let durable = log.appender().submit(Box::from(*b"durable")).unwrap();
    log.appender().wait(Level::Durable, durable, None).unwrap();
    is_set.store(true, Ordering::Release);
    let waiters: Vec<_> = (0..3)
        .map(|_| {
            let log = Arc::clone(&log);
            thread::spawn(move || {
                // Whoever comes after the panic is refused at once, with the same cause.
                let lsn = log.appender().submit(Box::from(*b"lost"))?;
                log.appender().wait(Level::Durable, lsn, Some(LONG))
            })
        })
        .collect();
    for waiter in waiters {
        let failed = waiter.join().unwrap().unwrap_err();
        assert_eq!(failed.kind(), ErrorKind::Poisoned);
        assert!(failed.cause().unwrap().to_string().contains("panicked"));
    }
    let late = log.appender().submit(Box::from(*b"late"));
    let refused = late.and_then(|lsn| log.appender().wait(Level::Durable, lsn, Some(LONG)));
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::Poisoned);
    assert_eq!(log.close().unwrap_err().kind(), ErrorKind::Poisoned);
    goes_on(place, durable);
}

#[test]
fn a_panic_in_the_committer_fails_everybody_and_nothing_else() {
    // Its thread ends, nobody waits for ever, the process lives on, the log opens again.
    let place = Place::new("committer");
    let is_set = Arc::new(AtomicBool::new(false));
    let world = World {
        clock: Arc::new(Trap {
            clock: SystemClock::new(),
            is_set: Arc::clone(&is_set),
        }),
        ..world(threads())
    };
    let log = open(&world, &place, threads()).unwrap();
    everybody_learns_of_the_panic(&place, log, &is_set);
}

#[test]
fn a_panic_in_a_poll_fails_everybody_and_nothing_else() {
    // The same when the backend itself panics, with a write that was submitted.
    let place = Place::new("poll");
    let is_set = Arc::new(AtomicBool::new(false));
    let hook = {
        let is_set = Arc::clone(&is_set);
        let written = AtomicBool::new(false);
        move |spot: Spot| {
            if is_set.load(Ordering::Acquire) {
                match spot {
                    Spot::Submit(Kind::WriteSync) => written.store(true, Ordering::Relaxed),
                    Spot::Poll => assert!(!written.swap(false, Ordering::Relaxed), "injected"),
                    Spot::Submit(_) => {}
                }
            }
        }
    };
    let disk = Hooked {
        inner: threads(),
        hook: Arc::new(hook),
    };
    let log = open(&world(threads()), &place, disk).unwrap();
    everybody_learns_of_the_panic(&place, log, &is_set);
}

#[test]
fn a_panic_in_recovery_locks_nobody_out() {
    // Wherever an open panics while it reads, the caller gets the panic, and the lock is free. Each
    // round leaves a segment more to read, so that there are as many places as rounds.
    let place = Place::new("recovery");
    goes_on(&place, Lsn::ZERO);
    for after in 0..10 {
        let left = std::sync::atomic::AtomicU64::new(after);
        let hook = move |spot: Spot| {
            if matches!(spot, Spot::Submit(Kind::Read)) {
                let before = left.fetch_sub(1, Ordering::Relaxed);
                assert_ne!(before, 0, "injected");
            }
        };
        let disk = Hooked {
            inner: threads(),
            hook: Arc::new(hook),
        };
        let opened = catch_unwind(AssertUnwindSafe(|| {
            open(&world(disk), &place, threads()).map(|log| log.close())
        }));
        assert!(opened.is_err(), "no read number {after} in an open");
        goes_on(&place, Lsn(1));
    }
}

#[test]
fn a_withdrawn_open_ends_while_it_waits_for_the_lock() {
    // Nobody knows who holds the lock, so it is waited for, but not by an open that is no longer
    // wanted; one that nobody wants from the beginning touches nothing.
    let place = Place::new("withdrawn");
    let holder = open(&world(threads()), &place, threads()).unwrap();
    let patient = || World {
        census: Box::new(Alone),
        ..world(threads())
    };
    for early in [true, false] {
        let world = patient();
        let wanted = world.wanted.clone();
        if early {
            wanted.withdraw();
        }
        let waiting = thread::scope(|scope| {
            let waiting = scope.spawn(|| open(&world, &place, threads()).map(drop));
            if !early {
                thread::yield_now();
                wanted.withdraw();
            }
            waiting.join().unwrap()
        });
        assert_eq!(waiting.unwrap_err().kind(), ErrorKind::Abandoned);
    }
    holder.close().unwrap();
    goes_on(&place, Lsn::ZERO);
}
