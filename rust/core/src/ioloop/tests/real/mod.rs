//! The same behaviours on every backend this machine offers.

mod crowds;
mod drivers;
mod ends;
mod files;
mod sockets;

use std::{
    os::{fd::AsRawFd, unix::net::UnixStream},
    path::PathBuf,
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use super::Inbox;
use crate::{
    clock::{Clock, ManualClock, Mono},
    io::{
        Backend, Buffer, Disk, File, Wait,
        contract::Place,
        metered::{Books, Metered},
    },
    ioloop::{Ask, Handle, Id, IoLoop, Reply, Settings, Turned},
    threads::ThreadsDisk,
    uring::UringDisk,
};

/// Makes the backend of a flavour, for a table of this size.
pub(crate) type Make = fn(Arc<dyn Clock>, usize) -> Box<dyn Backend>;

/// A loop on a real backend, turned by the test, in a time that only the test moves.
pub(super) struct Rig {
    pub engine: IoLoop,
    pub handle: Handle,
    pub inbox: Arc<Inbox>,
    pub clock: ManualClock,
    pub place: Place,
    next: AtomicU64,
}

impl Rig {
    pub(super) fn new(make: Make, settings: Settings) -> Self {
        let clock = ManualClock::default();
        let shared: Arc<dyn Clock> = Arc::new(clock.clone());
        // The books notice what no rule here looks at: an answer too many, a buffer that is lost.
        let backend = make(Arc::clone(&shared), settings.size);
        let backend = Box::new(Metered::new(backend, Books::default()));
        let (engine, handle) = IoLoop::new(backend, shared, settings).unwrap();
        Self {
            engine,
            handle,
            inbox: Arc::default(),
            clock,
            place: Place::new("ioloop"),
            next: 0.into(),
        }
    }

    pub(super) fn ask(&self, ask: Ask, deadline: Option<Mono>) -> (u64, Id) {
        let tag = self.next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let id = self
            .handle
            .submit(ask, deadline, self.inbox.sink(), tag)
            .unwrap();
        (tag, id)
    }

    pub(super) fn after(&self, millis: u64) -> Mono {
        self.handle.now().after(Duration::from_millis(millis))
    }

    /// Turns until `tag` is answered.
    pub(super) fn wait(&mut self, tag: u64) -> Result<Reply, crate::Error> {
        self.until(|inbox| inbox.has(tag));
        self.inbox.take(tag)
    }

    pub(super) fn until(&mut self, done: impl Fn(&Inbox) -> bool) {
        let begun = std::time::Instant::now();
        while !done(&self.inbox) {
            assert!(begun.elapsed() < Duration::from_secs(60), "nothing came");
            assert_eq!(self.engine.turn(Wait::Never), Turned::On);
            std::thread::yield_now();
        }
    }

    pub(super) fn run(&mut self, ask: Ask) -> Result<Reply, crate::Error> {
        let (tag, _) = self.ask(ask, None);
        self.wait(tag)
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.place.path().join(name)
    }

    pub(super) fn open(&mut self, name: &str, flags: i32) -> File {
        let ask = Ask::Open {
            path: self.path(name),
            flags,
            mode: 0o600,
        };
        match self.run(ask).unwrap() {
            Reply::File(file) => file,
            other => panic!("not a file: {other:?}"),
        }
    }
}

pub(super) fn filled(length: usize, seed: u8) -> Buffer {
    let bytes: Vec<u8> = (0..length)
        .map(|at| (at as u8).wrapping_mul(31).wrapping_add(seed))
        .collect();
    Buffer::try_copy_of(&bytes).unwrap()
}

pub(super) fn pair() -> (UnixStream, File) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let socket = File::duplicate(theirs.as_raw_fd()).unwrap();
    (ours, socket)
}

/// Every rule, on the backend of this flavour.
pub(crate) fn run_every_rule(make: Make) {
    for rules in [files::RULES, sockets::RULES, crowds::RULES, ends::RULES] {
        for (name, rule) in rules {
            println(name);
            rule(make);
        }
    }
}

/// Says where we are, for whoever reads the output of a failed process.
#[allow(clippy::print_stdout, reason = "the output of a test")]
fn println(line: &str) {
    println!("{line}");
}

fn tuned(clock: Arc<dyn Clock>, size: usize) -> Box<dyn Backend> {
    let disk = UringDisk::probe(clock, None).unwrap();
    disk.with_capacity(size).backend().unwrap()
}

fn plain(clock: Arc<dyn Clock>, size: usize) -> Box<dyn Backend> {
    let disk = UringDisk::probe(clock, None).unwrap();
    disk.with_capacity(size)
        .with_plain_ring()
        .backend()
        .unwrap()
}

/// A queue much smaller than the table: full queues and overflowing completions all the time.
fn crowded(clock: Arc<dyn Clock>, size: usize) -> Box<dyn Backend> {
    let disk = UringDisk::probe(clock, None).unwrap();
    let disk = disk.with_capacity(size).with_entries(4);
    disk.backend().unwrap()
}

fn guest(clock: Arc<dyn Clock>, size: usize) -> Box<dyn Backend> {
    let disk = UringDisk::probe(clock, None).unwrap();
    disk.with_capacity(size).for_guests().backend().unwrap()
}

fn threads(clock: Arc<dyn Clock>, size: usize) -> Box<dyn Backend> {
    ThreadsDisk::new(clock)
        .with_capacity(size)
        .backend()
        .unwrap()
}

macro_rules! on_every_backend {
    ($($rule:ident)*) => {
        /// The rules by name, for worlds that are entered on purpose.
        pub(super) const RULES: &[(&str, fn(super::Make))] = &[$((stringify!($rule), $rule)),*];
        on_every_backend! { @one tuned: $($rule)* }
        on_every_backend! { @one plain: $($rule)* }
        on_every_backend! { @one crowded: $($rule)* }
        on_every_backend! { @one guest: $($rule)* }
        on_every_backend! { @one threads: $($rule)* }
    };
    (@one $make:ident: $($rule:ident)*) => {
        mod $make {
            $(
                #[test]
                fn $rule() {
                    // What is believed is said by the rule of this name.
                    super::$rule(super::super::$make);
                }
            )*
        }
    };
}

use on_every_backend;
