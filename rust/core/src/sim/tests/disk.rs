use std::{sync::mpsc, time::Duration};

use super::{super::*, filled, open, sectors};
use crate::{
    clock::Clock,
    error::ErrorKind,
    io::{Access, Backend, Blocking, Buffer, Class, Disk, File, Op, Request, Token, Wait},
};

fn write(file: &File, token: u64, offset: u64, byte: u8, sync: bool) -> Request {
    Request {
        token: Token(token),
        class: Class::Foreground,
        op: Op::Write {
            file: file.clone(),
            offset,
            length: 1024,
            buffer: filled(1024, byte),
            sync,
        },
    }
}

fn tokens(backend: &mut dyn Backend) -> Vec<u64> {
    let mut out = Vec::new();
    while backend.in_flight() > 0 {
        backend.poll(&mut out, Wait::Forever).unwrap();
    }
    out.iter().map(|one| one.token.0).collect()
}

#[test]
fn a_file_reads_as_written() {
    // Bytes, lengths and names are what a filesystem would show.
    let disk = SimDisk::seeded(1);
    let (mut backend, dir) = open(&disk);
    let mut io = Blocking::new(&mut *backend);
    let file = io.open(&dir, "a", Access::CREATE).unwrap();
    io.write(&file, 700, 1000, filled(1000, 7), false).unwrap();
    io.rename(&dir, "a", "b").unwrap();
    assert_eq!(io.length(&file).unwrap(), 1700);
    assert_eq!(io.list(&dir).unwrap(), ["b"]);
    let (count, bytes) = io.read(&file, 600, 2000, Buffer::zeroed(2000)).unwrap();
    assert_eq!(count, 1100);
    assert!(bytes[..100].iter().all(|byte| *byte == 0));
    assert!(bytes[100..1100].iter().all(|byte| *byte == 7));
    let again = io.open(&dir, "b", Access::CREATE).unwrap_err();
    assert_eq!(again.errno(), Some(libc::EEXIST));
    let missing = io.open(&dir, "a", Access::READ).unwrap_err();
    assert_eq!(missing.errno(), Some(libc::ENOENT));
    io.truncate(&file, 800).unwrap();
    io.truncate(&file, 2048).unwrap();
    assert_eq!(sectors(&mut io, &file), [0, 0, 0, 0]);
    io.unlink(&dir, "b").unwrap();
    assert!(io.list(&dir).unwrap().is_empty());
}

#[test]
fn answers_come_in_order_unless_told_otherwise() {
    // In order by default; in another order, the same for the same seed, when reordering.
    let run = |seed, reorder| {
        let disk = SimDisk::new(Settings {
            seed,
            reorder,
            ..Settings::default()
        });
        let (mut backend, dir) = open(&disk);
        let file = Blocking::new(&mut *backend)
            .open(&dir, "a", Access::CREATE)
            .unwrap();
        for token in 0..16 {
            backend
                .submit(write(&file, token, token * 1024, 1, true))
                .unwrap();
        }
        (tokens(&mut *backend), disk.with(|world| world.digest()))
    };
    let in_order: Vec<u64> = (0..16).collect();
    assert_eq!(run(1, false).0, in_order);
    assert_ne!(run(1, true).0, in_order);
    assert_eq!(run(1, true), run(1, true));
    assert_ne!(run(1, true).1, run(2, true).1);
}

#[test]
fn a_wait_moves_the_clock() {
    // Time is virtual: a wait costs nothing and ends exactly when it should.
    let latency = Duration::from_millis(3);
    let disk = SimDisk::new(Settings {
        latency,
        ..Settings::default()
    });
    let (mut backend, dir) = open(&disk);
    let file = Blocking::new(&mut *backend)
        .open(&dir, "a", Access::CREATE)
        .unwrap();
    let begin = disk.clock().now();
    backend.submit(write(&file, 1, 0, 1, false)).unwrap();
    let mut out = Vec::new();
    backend.poll(&mut out, Wait::Never).unwrap();
    backend
        .poll(&mut out, Wait::Until(begin.after(latency / 2)))
        .unwrap();
    assert!(out.is_empty());
    assert_eq!(disk.clock().now(), begin.after(latency / 2));
    backend
        .poll(&mut out, Wait::Until(begin.after(2 * latency)))
        .unwrap();
    assert_eq!(out.len(), 1);
    assert_eq!(disk.clock().now(), begin.after(latency));
}

#[test]
fn a_wait_that_nothing_ends_is_an_error() {
    // A deadlock is reported; a wake that came first, or from another thread, ends the wait.
    let disk = SimDisk::seeded(1);
    let mut backend = disk.backend().unwrap();
    let mut out = Vec::new();
    let error = backend.poll(&mut out, Wait::Forever).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Abandoned);
    backend.waker().wake();
    backend.poll(&mut out, Wait::Forever).unwrap();

    let disk = SimDisk::new(Settings {
        threaded: true,
        ..Settings::default()
    });
    let mut backend = disk.backend().unwrap();
    let waker = backend.waker();
    let (go, wait) = mpsc::channel();
    let thread = std::thread::spawn(move || {
        wait.recv().unwrap();
        waker.wake();
    });
    go.send(()).unwrap();
    backend.poll(&mut out, Wait::Forever).unwrap();
    thread.join().unwrap();
}

#[test]
fn a_full_table_gives_the_request_back() {
    // Nothing is lost or blocked when too much is in flight.
    let disk = SimDisk::new(Settings {
        table: 2,
        ..Settings::default()
    });
    let (mut backend, dir) = open(&disk);
    let file = Blocking::new(&mut *backend)
        .open(&dir, "a", Access::CREATE)
        .unwrap();
    backend.submit(write(&file, 1, 0, 1, false)).unwrap();
    backend.submit(write(&file, 2, 0, 1, false)).unwrap();
    let back = backend.submit(write(&file, 3, 0, 1, false)).unwrap_err();
    assert_eq!(back.token, Token(3));
    assert_eq!(tokens(&mut *backend), [1, 2]);
}

#[test]
fn a_failed_sync_lies_afterwards() {
    // The second sync succeeds, cached reads show the new bytes, the device has the old ones.
    let disk = SimDisk::seeded(1);
    let (mut backend, dir) = open(&disk);
    let mut io = Blocking::new(&mut *backend);
    let file = io.open(&dir, "a", Access::CREATE).unwrap();
    io.write(&file, 0, 512, filled(512, 1), true).unwrap();
    let order = Fault {
        kind: Kind::Sync,
        nth: 1,
        forever: false,
        trouble: Trouble::Drops(libc::EIO),
    };
    disk.with(|world| world.faults.order(order));
    io.write(&file, 0, 512, filled(512, 2), false).unwrap();
    assert_eq!(io.sync(&file).unwrap_err().errno(), Some(libc::EIO));
    io.sync(&file).unwrap();
    assert_eq!(sectors(&mut io, &file), [2]);
    let direct = io.open(&dir, "a", Access::READ.direct(true)).unwrap();
    assert_eq!(sectors(&mut io, &direct), [1]);
    io.drop_cache(&file).unwrap();
    assert_eq!(sectors(&mut io, &file), [1]);
}

#[test]
fn the_nth_operation_fails_once_or_for_ever() {
    // Faults hit the operation that was ordered, and no other.
    let disk = SimDisk::seeded(1);
    let (mut backend, dir) = open(&disk);
    let mut io = Blocking::new(&mut *backend);
    let file = io.open(&dir, "a", Access::CREATE).unwrap();
    let mut run = |forever| {
        let trouble = Trouble::Fails(libc::ENOSPC);
        let order = Fault {
            kind: Kind::Write,
            nth: 2,
            forever,
            trouble,
        };
        disk.with(|world| world.faults.order(order));
        let outcomes = (0..4).map(|at| io.write(&file, at * 512, 512, filled(512, 1), false));
        outcomes
            .map(|one| one.map_err(|error| error.kind()).is_ok())
            .collect::<Vec<_>>()
    };
    assert_eq!(run(false), [true, false, true, true]);
    assert_eq!(run(true), [true, false, false, false]);
}

#[test]
fn a_stalled_request_is_never_answered() {
    // Deadlines can fire, and shutdown says what it left behind.
    let disk = SimDisk::seeded(1);
    let (mut backend, dir) = open(&disk);
    let file = Blocking::new(&mut *backend)
        .open(&dir, "a", Access::CREATE)
        .unwrap();
    let order = Fault {
        kind: Kind::Write,
        nth: 1,
        forever: false,
        trouble: Trouble::Stalls,
    };
    disk.with(|world| world.faults.order(order));
    backend.submit(write(&file, 1, 0, 1, false)).unwrap();
    backend.submit(write(&file, 2, 1024, 1, false)).unwrap();
    let mut out = Vec::new();
    backend.poll(&mut out, Wait::Forever).unwrap();
    assert_eq!(out[0].token, Token(2));
    let until = backend.now().after(Duration::from_secs(9));
    backend.poll(&mut out, Wait::Until(until)).unwrap();
    assert_eq!((out.len(), backend.now()), (1, until));
    assert!(backend.poll(&mut out, Wait::Forever).is_err());
    let left = backend.shutdown(Some(Duration::from_secs(1)));
    assert_eq!((left.requests, left.bytes), (1, 1024));
}

#[test]
fn a_full_disk_and_a_bad_sector_are_reported() {
    // What does not fit is refused; what cannot be read is an error until it is written again.
    let disk = SimDisk::new(Settings {
        capacity_bytes: 2048,
        ..Settings::default()
    });
    let (mut backend, dir) = open(&disk);
    let mut io = Blocking::new(&mut *backend);
    let file = io.open(&dir, "a", Access::CREATE).unwrap();
    io.write(&file, 0, 2048, filled(2048, 1), false).unwrap();
    let full = io
        .write(&file, 2048, 512, filled(512, 1), false)
        .err()
        .unwrap();
    assert_eq!(full.kind(), ErrorKind::NoSpace);
    io.write(&file, 0, 2048, filled(2048, 2), true).unwrap();
    disk.with(|world| world.volume.spoil(0, 1));
    let error = io.read(&file, 0, 2048, Buffer::zeroed(2048)).err().unwrap();
    assert_eq!(error.errno(), Some(libc::EIO));
    assert_eq!(
        io.read(&file, 1024, 1024, Buffer::zeroed(1024)).unwrap().0,
        1024
    );
    io.write(&file, 512, 512, filled(512, 3), false).unwrap();
    assert_eq!(sectors(&mut io, &file), [2, 3, 2, 2]);
}

#[test]
fn a_lock_lives_as_long_as_its_handle() {
    // Closing frees it, a second handle is refused, and giving it back frees it at once.
    let disk = SimDisk::seeded(1);
    let (mut backend, dir) = open(&disk);
    let mut io = Blocking::new(&mut *backend);
    let first = io.open(&dir, "LOCK", Access::CREATE).unwrap();
    let second = io.open(&dir, "LOCK", Access::WRITE).unwrap();
    io.lock(&first).unwrap();
    io.lock(&first).unwrap();
    assert_eq!(io.lock(&second).unwrap_err().kind(), ErrorKind::Locked);
    io.unlock(&first).unwrap();
    io.lock(&second).unwrap();
    assert_eq!(io.lock(&first).unwrap_err().kind(), ErrorKind::Locked);
    drop(second);
    io.lock(&first).unwrap();
    assert_eq!(disk.with(|world| world.open_files()), 2);
}

/// Kills an owner with a write in flight and takes its lock; what the file holds once the lock is
/// there, and a moment later.
fn zombie(hold: bool, zombies: Zombies) -> (Vec<u8>, Vec<u8>) {
    let disk = SimDisk::seeded(1);
    let (mut backend, dir) = open(&disk);
    let mut io = Blocking::new(&mut *backend);
    let lock = io.open(&dir, "LOCK", Access::CREATE).unwrap();
    io.lock(&lock).unwrap();
    if hold {
        io.hold(&lock).unwrap();
    }
    let file = io.open(&dir, "a", Access::CREATE).unwrap();
    io.write(&file, 0, 1024, filled(1024, 1), true).unwrap();
    backend.submit(write(&file, 1, 0, 2, false)).unwrap();
    disk.kill(zombies);
    assert!(backend.poll(&mut Vec::new(), Wait::Never).is_err());

    let (mut backend, dir) = open(&disk.new_process());
    let mut io = Blocking::new(&mut *backend);
    let lock = io.open(&dir, "LOCK", Access::WRITE).unwrap();
    while let Err(error) = io.lock(&lock) {
        assert_eq!(error.kind(), ErrorKind::Locked);
        io.sleep(Duration::from_millis(1)).unwrap();
    }
    let file = io.open(&dir, "a", Access::WRITE).unwrap();
    let first = sectors(&mut io, &file);
    io.sleep(Duration::from_secs(1)).unwrap();
    (first, sectors(&mut io, &file))
}

#[test]
fn a_dead_owner_writes_late_unless_its_backend_holds_the_lock() {
    // With the lock held by the backend the next owner waits until the last write landed.
    assert_eq!(zombie(false, Zombies::default()), (vec![1, 1], vec![2, 2]));
    assert_eq!(zombie(true, Zombies::default()), (vec![2, 2], vec![2, 2]));
    let never = Zombies {
        lands: 0,
        ..Zombies::default()
    };
    assert_eq!(zombie(true, never), (vec![1, 1], vec![1, 1]));
}

#[test]
fn a_fork_of_the_world_does_not_touch_the_first() {
    // Enumerations try many futures of one moment.
    let disk = SimDisk::seeded(1);
    let (mut backend, dir) = open(&disk);
    let file = Blocking::new(&mut *backend)
        .open(&dir, "a", Access::CREATE)
        .unwrap();
    backend.submit(write(&file, 1, 0, 5, false)).unwrap();
    let fork = disk.with(|world| world.killed(Zombies::default()));
    let (mut other, dir) = open(&fork);
    let mut io = Blocking::new(&mut *other);
    let file = io.open(&dir, "a", Access::READ).unwrap();
    assert!(sectors(&mut io, &file).is_empty());
    io.sleep(Duration::from_secs(1)).unwrap();
    assert_eq!(sectors(&mut io, &file), [5, 5]);
    assert_eq!(tokens(&mut *backend), [1]);
}
