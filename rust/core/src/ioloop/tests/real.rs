//! The same behaviours on every backend this machine offers.

use std::{
    os::{fd::AsRawFd, unix::net::UnixStream},
    path::PathBuf,
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use super::{Inbox, bytes, count, kind};
use crate::{
    clock::{Clock, ManualClock, Mono},
    error::ErrorKind,
    io::{BLOCK, Backend, Buffer, Disk, File, Wait, contract::Place},
    ioloop::{Ask, Handle, Id, IoLoop, Reply, Settings, Turned},
    threads::ThreadsDisk,
    uring::UringDisk,
};

/// Makes the backend of a flavour, for a table of this size.
type Make = fn(Arc<dyn Clock>, usize) -> Box<dyn Backend>;

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
        let backend = make(Arc::clone(&shared), settings.size);
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
    Buffer::copy_of(&bytes)
}

pub(super) fn pair() -> (UnixStream, File) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let socket = File::duplicate(theirs.as_raw_fd()).unwrap();
    (ours, socket)
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

const CREATE: i32 = libc::O_RDWR | libc::O_CREAT;

/// What was written is read back; the end of a file has a name unless the caller expects it.
fn every_file_operation_does_what_it_says(make: Make) {
    let mut rig = Rig::new(make, Settings::default());
    let file = rig.open("a", CREATE);
    let write = Ask::Write {
        file: file.clone(),
        offset: 10,
        buffers: vec![filled(BLOCK, 1), filled(0, 0), filled(5, 2)],
        sync: true,
    };
    assert_eq!(count(rig.run(write)), BLOCK as u64 + 5);
    for data_only in [true, false] {
        let file = file.clone();
        assert!(matches!(
            rig.run(Ask::Sync { file, data_only }),
            Ok(Reply::Done)
        ));
    }
    let read = |offset, length, partial| Ask::Read {
        file: file.clone(),
        offset,
        length,
        partial,
    };
    let all = bytes(rig.run(read(10, BLOCK + 5, false)));
    assert_eq!(all[..BLOCK], filled(BLOCK, 1)[..]);
    assert_eq!(all[BLOCK..], filled(5, 2)[..]);
    let short = rig.run(read(10, BLOCK + 6, false)).unwrap_err();
    assert_eq!(short.kind(), ErrorKind::ShortRead);
    assert_eq!(short.number("got"), Some(BLOCK as i128 + 5));
    assert_eq!(short.number("wanted"), Some(BLOCK as i128 + 6));
    assert_eq!(bytes(rig.run(read(10, BLOCK + 6, true))).len(), BLOCK + 5);
    assert!(bytes(rig.run(read(1 << 30, 8, true))).is_empty());
}

/// Names and metadata: cut, reserved, measured, renamed, made durable, closed, removed.
fn names_and_lengths_follow_their_orders(make: Make) {
    let mut rig = Rig::new(make, Settings::default());
    let file = rig.open("a", CREATE);
    rig.run(Ask::Truncate {
        file: file.clone(),
        length: 100,
    })
    .unwrap();
    rig.run(Ask::Allocate {
        file: file.clone(),
        length: 4096,
    })
    .unwrap();
    let Reply::Status(status) = rig.run(Ask::Stat { file: file.clone() }).unwrap() else {
        panic!("no status");
    };
    assert_eq!((status.length, status.mode & 0o777), (4096, 0o600));
    rig.run(Ask::Rename {
        from: rig.path("a"),
        to: rig.path("b"),
    })
    .unwrap();
    rig.run(Ask::SyncDirectory {
        path: rig.place.path().to_owned(),
    })
    .unwrap();
    let Reply::Status(there) = rig
        .run(Ask::StatPath {
            path: rig.path("b"),
        })
        .unwrap()
    else {
        panic!("no status");
    };
    assert_eq!((there.inode, there.length), (status.inode, status.length));
    rig.run(Ask::Close { file }).unwrap();
    rig.run(Ask::Unlink {
        path: rig.path("b"),
    })
    .unwrap();
    let gone = rig
        .run(Ask::StatPath {
            path: rig.path("b"),
        })
        .unwrap_err();
    assert_eq!(gone.errno(), Some(libc::ENOENT));
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

macro_rules! on_every_backend {
    ($($rule:ident)*) => {
        on_every_backend! { @one tuned: $($rule)* }
        on_every_backend! { @one plain: $($rule)* }
        on_every_backend! { @one guest: $($rule)* }
        on_every_backend! { @one threads: $($rule)* }
    };
    (@one $make:ident: $($rule:ident)*) => {
        mod $make {
            $(
                #[test]
                fn $rule() {
                    // What is believed is said by the rule of this name.
                    super::$rule(super::$make);
                }
            )*
        }
    };
}

on_every_backend! {
    every_file_operation_does_what_it_says
    names_and_lengths_follow_their_orders
    sockets_send_and_receive
    a_receive_ends_at_its_deadline
}
