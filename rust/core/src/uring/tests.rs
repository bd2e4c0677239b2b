use std::io;

use super::*;
use crate::{
    clock::SystemClock,
    io::{
        Access, Answer, BLOCK, Blocking, Buffer, Op, Token,
        contract::{Place, World, in_own_process, transfer::a_write_meets_the_size_limit},
    },
};

mod names;

fn disk() -> UringDisk {
    UringDisk::probe(Arc::new(SystemClock::new()), None).unwrap()
}

fn world_of(disk: UringDisk, name: &str) -> World {
    let place = Place::new(name);
    World {
        disk: Box::new(disk),
        path: place.path().to_owned(),
        real: true,
        keep: Box::new(place),
    }
}

mod tuned {
    fn world(name: &str) -> super::World {
        super::world_of(super::disk(), name)
    }
    crate::contract_tests!(world);
}

mod plain {
    fn world(name: &str) -> super::World {
        super::world_of(super::disk().with_plain_ring(), name)
    }
    crate::contract_tests!(world);
}

/// As on a kernel that does not offer what is about names.
mod apart {
    fn world(name: &str) -> super::World {
        super::world_of(super::disk().without_names(), name)
    }
    crate::contract_tests!(world);
}

mod guests {
    fn world(name: &str) -> super::World {
        super::world_of(super::disk().for_guests(), name)
    }
    crate::contract_tests!(world);
}

#[test]
fn a_turn_ends_while_a_transfer_goes_on() {
    // An exact receive from a peer that is as fast as we are does not keep the thread that turns.
    const LENGTH: usize = 64 << 20;
    let (mut ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    let writing = std::thread::spawn(move || {
        let part = [7; 4096];
        for _ in 0..LENGTH / part.len() {
            std::io::Write::write_all(&mut ours, &part).unwrap();
        }
        ours
    });
    let mut backend = disk().for_guests().open().unwrap();
    let op = Op::Recv {
        socket: File::duplicate(std::os::fd::AsRawFd::as_raw_fd(&theirs)).unwrap(),
        buffer: Buffer::zeroed(LENGTH),
        exact: true,
    };
    let (token, class) = (Token(1), Class::Program);
    backend.submit(Request { token, class, op }).unwrap();
    let mut out = Vec::new();
    while out.is_empty() {
        let before = backend.effort().enters;
        backend.poll(&mut out, Wait::Never).unwrap();
        assert!(backend.effort().enters - before <= 2 * ROUNDS_MAX as u64);
    }
    assert!(
        out[0]
            .buffer
            .as_ref()
            .unwrap()
            .iter()
            .all(|byte| *byte == 7)
    );
    writing.join().unwrap();
}

/// A queue much smaller than the table: full queues and overflowing completions all the time.
mod crowded {
    fn world(name: &str) -> super::World {
        let mut disk = super::disk().with_capacity(512);
        disk.setup.entries = 4;
        super::world_of(disk.with_durability(super::Durability::Fdatasync), name)
    }
    crate::contract_tests!(world);
}

mod faulty {
    use crate::io::faulty::FaultyDisk;

    fn world(name: &str) -> super::World {
        let world = super::world_of(super::disk(), name);
        let disk = Box::new(FaultyDisk::new(super::disk()));
        super::World { disk, ..world }
    }
    crate::contract_tests!(world);
}

mod metered {
    use crate::io::metered::MeteredDisk;

    fn world(name: &str) -> super::World {
        let world = super::world_of(super::disk(), name);
        let disk = Box::new(MeteredDisk::new(super::disk()));
        super::World { disk, ..world }
    }
    crate::contract_tests!(world);
}

fn foreground(token: u64, op: Op) -> Request {
    Request {
        token: Token(token),
        class: Class::Foreground,
        op,
    }
}

fn finish(backend: &mut UringBackend) -> Vec<Finished> {
    let mut out = Vec::new();
    while backend.in_flight() > 0 {
        backend.poll(&mut out, Wait::Forever).unwrap();
    }
    out
}

/// A read that is not answered until something is written to the other end, which is returned.
fn endless_read(length: usize) -> (Op, io::PipeWriter) {
    let (reader, writer) = io::pipe().unwrap();
    let op = Op::Read {
        file: File::from_fd(reader.into()),
        offset: 0,
        length,
        buffer: Buffer::zeroed(length),
    };
    (op, writer)
}

fn file_in(place: &Place, backend: &mut UringBackend, name: &str, access: Access) -> File {
    let mut io = Blocking::new(backend);
    let dir = io.open_dir(place.path(), false).unwrap();
    io.open(&dir, name, access).unwrap()
}

fn write(file: &File, length: usize) -> Op {
    Op::Write {
        file: file.clone(),
        offset: 0,
        length,
        buffer: Buffer::zeroed(length),
        sync: true,
    }
}

#[test]
fn the_probe_accepts_this_machine() {
    // Where these tests run the ring works, also with a page written in a directory, and the
    // page's file is not left behind.
    let place = Place::new("probe");
    let disk = UringDisk::probe(Arc::new(SystemClock::new()), Some(place.path())).unwrap();
    assert!(["uring", "uring-plain"].contains(&disk.variant()));
    assert_eq!(disk.with_plain_ring().variant(), "uring-plain");
    assert_eq!(std::fs::read_dir(place.path()).unwrap().count(), 0);
}

#[test]
fn a_probe_that_cannot_write_says_so() {
    // The last step of the probe is a page in the directory the log will live in.
    let clock = Arc::new(SystemClock::new());
    let refusal = UringDisk::probe(clock, Some("/nowhere/at/all".as_ref())).unwrap_err();
    assert_eq!(refusal.reason, Reason::Failed);
    assert_eq!(refusal.error.errno(), Some(libc::ENOENT));
}

#[test]
fn a_write_beyond_the_size_limit_is_an_error() {
    // The ring answers short and then refuses; the owner sees one error and has its buffer back.
    in_own_process("uring::tests::own_process_size_limit");
}

#[test]
#[ignore = "changes the limits of the process; run by the test above"]
fn own_process_size_limit() {
    // See `a_write_beyond_the_size_limit_is_an_error`.
    a_write_meets_the_size_limit(&world_of(disk(), "limit"));
    a_write_meets_the_size_limit(&world_of(disk().with_plain_ring(), "limit"));
    let synced = disk().with_durability(Durability::Fdatasync);
    a_write_meets_the_size_limit(&world_of(synced, "limit"));
}

#[test]
fn one_request_without_answer_delays_no_other() {
    // While a read waits, other requests go round, and waits end at their time.
    let place = Place::new("endless");
    let mut backend = disk().open().unwrap();
    let file = file_in(&place, &mut backend, "f", Access::CREATE);
    let (op, writer) = endless_read(1);
    backend.submit(foreground(1, op)).unwrap();
    for token in 2..10 {
        backend.submit(foreground(token, write(&file, 16))).unwrap();
        let mut out = Vec::new();
        backend.poll(&mut out, Wait::Forever).unwrap();
        assert_eq!(out[0].token, Token(token));
    }
    let until = backend.now().after(Duration::from_millis(5));
    let mut out = Vec::new();
    backend.poll(&mut out, Wait::Until(until)).unwrap();
    assert!(out.is_empty() && backend.now() >= until);
    io::Write::write_all(&mut &writer, b"x").unwrap();
    let out = finish(&mut backend);
    assert!(matches!(out[0].result, Ok(Answer::Count(1))));
    assert_eq!(out[0].buffer.as_deref(), Some(&b"x"[..]));
}

#[test]
fn more_answers_than_room_are_all_taken() {
    // The kernel keeps what finds no room among the completions; and as an overflow ends the
    // watch on the bell, a wake must still be heard after it.
    const COUNT: u64 = 300;
    let mut disk = disk().with_capacity(512);
    disk.setup.entries = 4;
    let mut backend = disk.open().unwrap();
    let mut writers = Vec::new();
    for token in 0..COUNT {
        let (op, writer) = endless_read(1);
        backend.submit(foreground(token, op)).unwrap();
        writers.push(writer);
    }
    let mut out = Vec::new();
    for _ in 0..3 {
        backend.poll(&mut out, Wait::Never).unwrap();
        backend.waker().wake();
    }
    for writer in &mut writers {
        io::Write::write_all(writer, b"x").unwrap();
        backend.waker().wake();
    }
    out.append(&mut finish(&mut backend));
    assert_eq!(out.len() as u64, COUNT);
    assert!(out.iter().all(|done| done.result.is_ok()));
    for _ in 0..3 {
        let far = backend.now().after(Duration::from_secs(60));
        let waker = backend.waker();
        let talker = std::thread::spawn(move || waker.wake());
        backend.poll(&mut out, Wait::Until(far)).unwrap();
        assert!(backend.now() < far);
        talker.join().unwrap();
    }
}

#[test]
fn a_killed_writer_is_over_once_its_lock_is_free() {
    // After SIGKILL and wait, the kernel may still carry out the dead process's writes; the lock
    // its ring held stays taken until the last of them, so who gets the lock is alone.
    const LENGTH: usize = 1 << 20;
    let clock = Arc::new(SystemClock::new());
    for _ in 0..3 {
        let place = Place::new("zombie");
        let mut child = std::process::Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "uring::tests::own_process_endless_writer",
                "--ignored",
            ])
            .arg("--nocapture")
            .env("MILLRACE_TEST_DIRECTORY", place.path())
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let mut backend = UringDisk::new(clock.clone()).open().unwrap();
        let mut io = Blocking::new(&mut backend);
        let dir = io.open_dir(place.path(), false).unwrap();
        let deadline = io.now().after(Duration::from_secs(30));
        while !place.path().join("busy").exists() {
            assert!(io.now() < deadline && child.try_wait().unwrap().is_none());
            io.sleep(Duration::from_millis(1)).unwrap();
        }
        child.kill().unwrap();
        child.wait().unwrap();
        let lock = io.open(&dir, "LOCK", Access::WRITE).unwrap();
        while let Err(error) = io.lock(&lock) {
            assert_eq!(error.kind(), ErrorKind::Locked);
            assert!(io.now() < deadline, "the lock is never given back");
            io.sleep(Duration::from_millis(1)).unwrap();
        }
        let file = io.open(&dir, "f", Access::WRITE).unwrap();
        let mut mine = Buffer::zeroed(8 * LENGTH);
        mine.fill(0x11);
        let mine = io.write(&file, 0, 8 * LENGTH, mine, true).unwrap();
        io.sleep(Duration::from_millis(50)).unwrap();
        io.drop_cache(&file).unwrap();
        let (_, there) = io
            .read(&file, 0, 8 * LENGTH, Buffer::zeroed(8 * LENGTH))
            .unwrap();
        assert!(
            there[..] == mine[..],
            "a dead process wrote after its lock was free"
        );
    }
}

#[test]
#[ignore = "writes until it is killed; run by the test above"]
fn own_process_endless_writer() {
    // See `a_killed_writer_is_over_once_its_lock_is_free`.
    const LENGTH: usize = 1 << 20;
    let Some(path) = std::env::var_os("MILLRACE_TEST_DIRECTORY") else {
        return;
    };
    let mut backend = disk().open().unwrap();
    let mut io = Blocking::new(&mut backend);
    let dir = io.open_dir(path.as_ref(), false).unwrap();
    let lock = io.open(&dir, "LOCK", Access::CREATE).unwrap();
    io.lock(&lock).unwrap();
    io.hold(&lock).unwrap();
    let file = match io.open(&dir, "f", Access::CREATE.direct(true)) {
        Ok(file) => file,
        Err(_) => io.open(&dir, "f", Access::CREATE).unwrap(),
    };
    let mut out = Vec::new();
    for token in 0..1_000_000 {
        let op = Op::Write {
            file: file.clone(),
            offset: (token % 8) * LENGTH as u64,
            length: LENGTH,
            buffer: Buffer::zeroed(LENGTH),
            sync: false,
        };
        backend.submit(foreground(token, op)).unwrap();
        if token == 64 {
            std::fs::write(std::path::Path::new(&path).join("busy"), b"").unwrap();
        }
        while backend.in_flight() >= 64 {
            backend.poll(&mut out, Wait::Forever).unwrap();
            out.clear();
        }
    }
}

#[test]
fn shutdown_cancels_what_would_never_be_answered() {
    // Without a budget shutdown waits for the kernel, and cancelling makes the kernel answer.
    let mut backend = disk().open().unwrap();
    let mut writers = Vec::new();
    for token in 0..100 {
        let (op, writer) = endless_read(64);
        backend.submit(foreground(token, op)).unwrap();
        writers.push(writer);
    }
    backend.poll(&mut Vec::new(), Wait::Never).unwrap();
    assert_eq!(backend.shutdown(None), Leftovers::default());
    let out = finish(&mut backend);
    assert_eq!(out.len(), 100);
    for done in out {
        assert_eq!(done.result.unwrap_err().errno(), Some(libc::ECANCELED));
        assert_eq!(done.buffer.unwrap().len(), 64);
    }
}

/// Whether every page from `start` on is mapped.
fn is_mapped(start: usize, length: usize) -> bool {
    let mut pages = vec![0u8; length / BLOCK];
    let address = std::ptr::with_exposed_provenance_mut(start);
    // SAFETY: only looks up the range, and writes one byte for each page of it.
    unsafe { libc::mincore(address, length, pages.as_mut_ptr()) == 0 }
}

#[test]
fn what_shutdown_leaves_behind_is_never_reused() {
    // Direct reads go on after the ring is closed. Their buffers are leaked and counted: the
    // memory stays where it is, nobody else gets it, and what others get keeps its bytes.
    const LENGTH: usize = 1 << 20;
    const COUNT: usize = 48;
    let place = Place::new("leak");
    let mut backend = disk().open().unwrap();
    let file = file_in(&place, &mut backend, "f", Access::CREATE);
    backend
        .submit(foreground(0, write(&file, COUNT * LENGTH)))
        .unwrap();
    finish(&mut backend);
    let mut io = Blocking::new(&mut backend);
    let dir = io.open_dir(place.path(), false).unwrap();
    let Ok(file) = io.open(&dir, "f", Access::READ.direct(true)) else {
        return;
    };
    let mut left = 0;
    for _round in 0..20 {
        left += leave_reads_behind(&file, COUNT, LENGTH);
        if left > 0 {
            return;
        }
    }
    panic!("the kernel was too fast for this test to say anything");
}

fn leave_reads_behind(file: &File, count: usize, length: usize) -> u64 {
    let mut backend = disk().open().unwrap();
    let mut places = Vec::new();
    for index in 0..count {
        let buffer = Buffer::zeroed(length);
        places.push(buffer.as_ptr() as usize);
        let op = Op::Read {
            file: file.clone(),
            offset: (index * length) as u64,
            length,
            buffer,
        };
        backend.submit(foreground(index as u64, op)).unwrap();
    }
    let mut out = Vec::new();
    backend.poll(&mut out, Wait::Never).unwrap();
    let left = backend.shutdown(Some(Duration::ZERO));
    backend.poll(&mut out, Wait::Never).unwrap();
    assert_eq!(out.len() as u64 + left.requests, count as u64);
    assert_eq!(left.bytes, left.requests * length as u64);
    for done in &out {
        let back = done.buffer.as_ref().unwrap().as_ptr() as usize;
        places.retain(|place| *place != back);
    }
    drop((backend, out));
    let mut expected = Buffer::zeroed(length);
    expected.fill(0xa5);
    let mut fresh: Vec<Buffer> = (0..count).map(|_| Buffer::zeroed(length)).collect();
    for buffer in &mut fresh {
        buffer.copy_from_slice(&expected);
        let start = buffer.as_ptr() as usize;
        let apart = |place: &usize| place.abs_diff(start) >= length;
        assert!(
            places.iter().all(apart),
            "a buffer in flight was given away"
        );
    }
    for place in places {
        assert!(is_mapped(place, length), "a buffer in flight was unmapped");
    }
    // By the time the same bytes were read once more, the reads left behind are over.
    let mut other = disk().open().unwrap();
    let buffer = Buffer::zeroed(count * length);
    let mut io = Blocking::new(&mut other);
    io.read(file, 0, count * length, buffer).unwrap();
    let kept = fresh.iter().all(|buffer| buffer[..] == expected[..]);
    assert!(kept, "memory was written after the shutdown");
    left.requests
}

#[test]
fn an_answer_to_nothing_poisons() {
    // A key nobody has: everybody is answered with the cause, and the memory that the kernel
    // knows does not come back.
    let mut backend = disk().open().unwrap();
    let (op, _writer) = endless_read(64);
    backend.submit(foreground(1, op)).unwrap();
    backend.poll(&mut Vec::new(), Wait::Never).unwrap();
    let entry = opcode::Nop::new().build().user_data(77);
    // SAFETY: the entry points at nothing.
    assert!(unsafe { backend.ring.as_mut().unwrap().stage(&entry) });
    let mut out = Vec::new();
    backend.poll(&mut out, Wait::Forever).unwrap();
    assert_eq!(out.len(), 1);
    assert!(out[0].buffer.is_none());
    let error = out[0].result.as_ref().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Poisoned);
    assert_eq!(error.cause().unwrap().number("key"), Some(77));
    let (op, _writer) = endless_read(64);
    backend.submit(foreground(2, op)).unwrap();
    let out = finish(&mut backend);
    assert!(out[0].buffer.is_some() && out[0].result.is_err());
    assert!(backend.poll(&mut Vec::new(), Wait::Forever).is_err());
    assert_eq!(backend.shutdown(None), Leftovers::default());
}

#[test]
fn a_poisoned_ring_is_kept_with_what_it_carries() {
    // Counts the rings of its process, so it needs one without other tests.
    in_own_process("uring::tests::own_process_poisoned_ring");
}

#[test]
#[ignore = "run by a_poisoned_ring_is_kept_with_what_it_carries, in a process of its own"]
fn own_process_poisoned_ring() {
    // A ring that failed with a request in flight outlives its backend, and with it the lock that
    // it holds; one that carried nothing is closed.
    for carries in [true, false] {
        let disk = disk();
        let before = open_rings();
        let mut backend = disk.open().unwrap();
        let (op, writer) = endless_read(1);
        backend.submit(foreground(1, op)).unwrap();
        backend.poll(&mut Vec::new(), Wait::Never).unwrap();
        if !carries {
            io::Write::write_all(&mut &writer, b"x").unwrap();
            assert!(finish(&mut backend)[0].result.is_ok());
        }
        assert_eq!(open_rings() - before, 1);
        let entry = opcode::Nop::new().build().user_data(77);
        // SAFETY: the entry points at nothing.
        assert!(unsafe { backend.ring.as_mut().unwrap().stage(&entry) });
        let mut out = Vec::new();
        while backend.poison.is_none() {
            let _ = backend.poll(&mut out, Wait::Never);
        }
        backend.shutdown(None);
        drop(backend);
        assert_eq!(open_rings() - before, usize::from(carries));
    }
}

fn open_rings() -> usize {
    std::fs::read_dir("/proc/self/fd")
        .unwrap()
        .filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok())
        .filter(|target| target.as_os_str() == "anon_inode:[io_uring]")
        .count()
}

#[test]
fn a_late_cancel_answer_is_no_news() {
    // The answer to a cancel never ends a flight, whatever it says.
    let mut backend = disk().open().unwrap();
    let (op, writer) = endless_read(1);
    backend.submit(foreground(1, op)).unwrap();
    backend.poll(&mut Vec::new(), Wait::Never).unwrap();
    let entry = opcode::Nop::new().build().user_data(CANCEL | 1);
    // SAFETY: the entry points at nothing.
    assert!(unsafe { backend.ring.as_mut().unwrap().stage(&entry) });
    backend.poll(&mut Vec::new(), Wait::Never).unwrap();
    assert_eq!(backend.in_flight(), 1);
    io::Write::write_all(&mut &writer, b"x").unwrap();
    assert!(finish(&mut backend)[0].result.is_ok());
}

#[test]
fn the_ring_itself_holds_the_lock() {
    // With every handle of the process gone the lock stays taken, as after a death with writes in
    // flight: the kernel keeps what is registered with a ring.
    let place = Place::new("ring-holds");
    let mut backend = disk().open().unwrap();
    let lock = file_in(&place, &mut backend, "LOCK", Access::CREATE);
    Blocking::new(&mut backend).lock(&lock).unwrap();
    backend.hold(&lock).unwrap();
    backend.held = None;
    backend.worker.hold(None);
    drop(lock);
    let mut other = disk().open().unwrap();
    let again = file_in(&place, &mut other, "LOCK", Access::WRITE);
    let refused = Blocking::new(&mut other).lock(&again).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Locked);
    backend.let_go();
    Blocking::new(&mut other).lock(&again).unwrap();
}

#[test]
fn another_thread_may_turn_an_idle_backend() {
    // A ring belongs to a thread; a backend that moves without work in flight gets a new one, and
    // the lock is held without a gap.
    let place = Place::new("move");
    let mut backend = disk().open().unwrap();
    let lock = file_in(&place, &mut backend, "LOCK", Access::CREATE);
    Blocking::new(&mut backend).lock(&lock).unwrap();
    backend.hold(&lock).unwrap();
    drop(lock);
    let (mut backend, place) = std::thread::spawn(move || {
        let file = file_in(&place, &mut backend, "f", Access::CREATE);
        backend.submit(foreground(1, write(&file, BLOCK))).unwrap();
        assert!(finish(&mut backend)[0].result.is_ok());
        (backend, place)
    })
    .join()
    .unwrap();
    let file = file_in(&place, &mut backend, "f", Access::WRITE);
    backend.submit(foreground(1, write(&file, BLOCK))).unwrap();
    assert!(finish(&mut backend)[0].result.is_ok());
    let mut other = disk().open().unwrap();
    let again = file_in(&place, &mut other, "LOCK", Access::WRITE);
    let refused = Blocking::new(&mut other).lock(&again).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Locked);
    backend.shutdown(None);
    // The rings of other threads could not be told to let go; the kernel closes them a bit later.
    let mut io = Blocking::new(&mut other);
    let deadline = io.now().after(Duration::from_secs(20));
    while io.lock(&again).is_err() {
        assert!(io.now() < deadline, "the lock is never given back");
        io.sleep(Duration::from_millis(1)).unwrap();
    }
}

#[test]
fn another_thread_may_not_turn_a_busy_one() {
    // It would see no answer for ever; so it is told, and nothing is freed.
    let mut backend = disk().open().unwrap();
    let (op, _writer) = endless_read(64);
    backend.submit(foreground(1, op)).unwrap();
    backend.poll(&mut Vec::new(), Wait::Never).unwrap();
    std::thread::spawn(move || {
        let mut out = Vec::new();
        backend.poll(&mut out, Wait::Forever).unwrap();
        assert!(out[0].buffer.is_none() && out[0].result.is_err());
    })
    .join()
    .unwrap();
}

#[test]
fn a_forked_child_has_no_part_in_the_ring() {
    // The child is refused, may drop what it inherited, and keeps neither ring nor lock alive:
    // when the parent is done, the lock is free although the child lives.
    let place = Place::new("fork");
    let mut backend = disk().open().unwrap();
    let lock = file_in(&place, &mut backend, "LOCK", Access::CREATE);
    let mut io = Blocking::new(&mut backend);
    io.lock(&lock).unwrap();
    io.hold(&lock).unwrap();
    let (op, writer) = endless_read(1);
    backend.submit(foreground(1, op)).unwrap();
    backend.poll(&mut Vec::new(), Wait::Never).unwrap();
    let (mut told, tell) = io::pipe().unwrap();
    let (mut wait, end) = io::pipe().unwrap();
    // SAFETY: the child polls and drops the backend, which by this test's claim touches nothing of
    // the parent's there, uses two pipes, and exits without running anything of the harness.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        drop(end);
        let refused = backend.poll(&mut Vec::new(), Wait::Forever).unwrap_err();
        drop(backend);
        let code = u8::from(refused.kind() == ErrorKind::Forked);
        let _ = io::Write::write_all(&mut &tell, &[code]);
        let _ = io::Read::read(&mut wait, &mut [0]);
        // SAFETY: see above.
        unsafe { libc::_exit(0) }
    }
    let mut code = [0];
    io::Read::read_exact(&mut told, &mut code).unwrap();
    assert_eq!(code, [1]);
    io::Write::write_all(&mut &writer, b"x").unwrap();
    assert!(finish(&mut backend)[0].result.is_ok());
    backend.shutdown(None);
    drop((backend, lock));
    let mut other = disk().open().unwrap();
    let again = file_in(&place, &mut other, "LOCK", Access::WRITE);
    Blocking::new(&mut other).lock(&again).unwrap();
    // A byte, not the end of the pipe: the child of another test may hold this end as well.
    io::Write::write_all(&mut &end, b"x").unwrap();
    // SAFETY: `pid` is our child; no status is asked for.
    unsafe { libc::waitpid(pid, std::ptr::null_mut(), 0) };
}

#[test]
fn a_forked_child_does_not_keep_a_dead_ring() {
    // The parent's ring goes without being told to let go, as when the parent is killed; a child
    // that lives on must not keep the ring, and with it the lock.
    let place = Place::new("fork-ring");
    let mut backend = disk().open().unwrap();
    let lock = file_in(&place, &mut backend, "LOCK", Access::CREATE);
    Blocking::new(&mut backend).lock(&lock).unwrap();
    backend.hold(&lock).unwrap();
    let (mut told, tell) = io::pipe().unwrap();
    let (mut wait, end) = io::pipe().unwrap();
    // SAFETY: the child uses two pipes and exits without running anything of the harness.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        drop(end);
        let _ = io::Write::write_all(&mut &tell, b"x");
        let _ = io::Read::read(&mut wait, &mut [0]);
        // SAFETY: see above.
        unsafe { libc::_exit(0) }
    }
    io::Read::read_exact(&mut told, &mut [0]).unwrap();
    backend.ring = None;
    drop((backend, lock));
    let mut other = disk().open().unwrap();
    let again = file_in(&place, &mut other, "LOCK", Access::WRITE);
    let mut io = Blocking::new(&mut other);
    let deadline = io.now().after(Duration::from_secs(10));
    while io.lock(&again).is_err() {
        assert!(io.now() < deadline, "the child keeps the ring");
        io.sleep(Duration::from_millis(1)).unwrap();
    }
    // A byte, not the end of the pipe: the child of another test may hold this end as well.
    io::Write::write_all(&mut &end, b"x").unwrap();
    // SAFETY: `pid` is our child; no status is asked for.
    unsafe { libc::waitpid(pid, std::ptr::null_mut(), 0) };
}

/// From now on the system call `number` answers `errno` in this process.
pub(crate) fn deny(number: libc::c_long, errno: i32) {
    let step = |code: u32, jt, jf, k| libc::sock_filter {
        code: code as u16,
        jt,
        jf,
        k,
    };
    let refuse = libc::SECCOMP_RET_ERRNO | errno.cast_unsigned();
    // The number of the call lies at the beginning of what a filter looks at.
    let mut filter = [
        step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        step(
            libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K,
            0,
            1,
            u32::try_from(number).unwrap(),
        ),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, refuse),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog {
        len: filter.len() as u16,
        filter: filter.as_mut_ptr(),
    };
    let mode = libc::SECCOMP_MODE_FILTER;
    // SAFETY: the program and its filter live during the calls, which copy them.
    unsafe {
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        assert_eq!(
            libc::prctl(libc::PR_SET_SECCOMP, mode, &raw const program),
            0
        );
    }
}

fn probe_without(number: libc::c_long, errno: i32) -> Refusal {
    let filtered = std::thread::spawn(move || {
        // A filter binds the thread that sets it.
        deny(number, errno);
        UringDisk::probe(Arc::new(SystemClock::new()), None)
    });
    filtered.join().unwrap().unwrap_err()
}

#[test]
fn every_refusal_has_its_reason_and_hint() {
    // What a filter, an old kernel or a limit answers is told apart, each with its own advice.
    in_own_process("uring::tests::own_process_refusals");
}

#[test]
#[ignore = "filters system calls; run by the test above"]
fn own_process_refusals() {
    // See `every_refusal_has_its_reason_and_hint`.
    let setup = libc::SYS_io_uring_setup;
    let mut hints = Vec::new();
    for (number, errno, reason) in [
        (setup, libc::ENOSYS, Reason::Unknown),
        (setup, libc::EPERM, Reason::Forbidden),
        (setup, libc::ENOMEM, Reason::Memory),
        (setup, libc::EMFILE, Reason::Setup),
        (libc::SYS_io_uring_enter, libc::EPERM, Reason::Failed),
        (libc::SYS_io_uring_register, libc::EPERM, Reason::Failed),
    ] {
        let refusal = probe_without(number, errno);
        assert_eq!(refusal.reason, reason, "{refusal}");
        assert_eq!(refusal.error.errno(), Some(errno), "{refusal}");
        assert!(refusal.to_string().contains(refusal.hint));
        hints.push(refusal.hint);
    }
    hints.dedup();
    assert_eq!(hints.len(), 5);
    assert!(hints[1].contains("seccomp"), "{}", hints[1]);
}

#[test]
fn a_ring_denied_after_the_probe_answers_everybody() {
    // Nobody waits for ever when the kernel changes its mind: every request is answered.
    let disk = disk();
    let filtered = std::thread::spawn(move || {
        deny(libc::SYS_io_uring_setup, libc::EPERM);
        let mut backend = disk.open().unwrap();
        let (op, _writer) = endless_read(64);
        backend.submit(foreground(1, op)).unwrap();
        let out = finish(&mut backend);
        assert!(out[0].buffer.is_some());
        assert_eq!(
            out[0].result.as_ref().unwrap_err().errno(),
            Some(libc::EPERM)
        );
    });
    filtered.join().unwrap();
}

#[test]
fn the_ring_carries_out_one_background_request_at_a_time() {
    // A kernel that writes back much for the one would let a group wait for it.
    let place = Place::new("one-at-a-time");
    let mut backend = disk().open().unwrap();
    let file = file_in(&place, &mut backend, "f", Access::CREATE.direct(true));
    for number in 0..8 {
        let op = Op::Write {
            file: file.clone(),
            offset: number << 20,
            length: 1 << 20,
            buffer: Buffer::zeroed(1 << 20),
            sync: true,
        };
        let (token, class) = (Token(number), Class::Background);
        backend.submit(Request { token, class, op }).unwrap();
    }
    let mut out = Vec::new();
    while backend.in_flight() > 0 {
        backend.poll(&mut out, Wait::Never).unwrap();
        assert!(backend.table.len() <= 1);
    }
    assert!(out.iter().all(|finished| finished.result.is_ok()));
}

#[test]
fn what_an_ended_thread_submitted_is_finished() {
    // Requests that wait for a worker of the kernel come back cancelled when the thread that
    // submitted them ends; background requests of a backend for any thread never go there.
    const WRITES: u64 = 64;
    const LENGTH: usize = 16 * BLOCK;
    let place = Place::new("orphans");
    for round in 0..20 {
        let mut backend = disk().for_guests().open().unwrap();
        let access = Access::CREATE.direct(true);
        let file = file_in(&place, &mut backend, &format!("f{round}"), access);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for number in 0..WRITES {
                    let op = Op::Write {
                        file: file.clone(),
                        offset: number * LENGTH as u64,
                        length: LENGTH,
                        buffer: Buffer::zeroed(LENGTH),
                        sync: true,
                    };
                    let class = Class::Background;
                    let token = Token(number);
                    backend.submit(Request { token, class, op }).unwrap();
                }
                backend.poll(&mut Vec::new(), Wait::Never).unwrap();
            });
        });
        for finished in finish(&mut backend) {
            finished.result.unwrap();
        }
    }
}

#[test]
fn a_write_that_was_cancelled_for_nobody_is_made_again() {
    // The kernel may hand a foreground write to a worker, too. Cancelled because its thread ended,
    // or because no worker could be started, it had not begun. A cancelled sync is an error.
    let place = Place::new("cancelled");
    let cancelled = |name: &str, disk: UringDisk, op: fn(&File) -> Op| {
        let mut backend = disk.open().unwrap();
        let file = file_in(&place, &mut backend, name, Access::CREATE);
        backend.submit(foreground(1, op(&file))).unwrap();
        let request = backend.next_fresh().unwrap();
        let Way::Ring(flight) = flight::Flight::sort(request, true) else {
            panic!("not for the ring");
        };
        let key = backend.table.insert(flight);
        backend.on_answer(key, -libc::ECANCELED).unwrap();
        finish(&mut backend).pop().unwrap().result
    };
    let one = |file: &File| write(file, BLOCK);
    let sync = |file: &File| Op::Sync { file: file.clone() };
    assert!(cancelled("a", disk().for_guests(), one).is_ok());
    assert!(cancelled("b", disk(), one).is_ok());
    assert!(cancelled("c", disk().for_guests(), sync).is_err());
}

#[test]
fn an_event_loop_is_told_when_to_come_back() {
    // Nothing becomes readable when a pause is over. And a kernel short of memory is not waited for
    // by the loop's thread, however often that happens.
    let place = Place::new("retry");
    let mut backend = disk().for_guests().open().unwrap();
    let file = file_in(&place, &mut backend, "f", Access::CREATE);
    assert_eq!(backend.due(), None);
    let read = Op::Read {
        file,
        offset: 0,
        length: 1,
        buffer: Buffer::zeroed(1),
    };
    let class = Class::Program;
    let token = Token(1);
    let op = read;
    backend.submit(Request { token, class, op }).unwrap();
    let request = backend.next_fresh().unwrap();
    let Way::Ring(flight) = flight::Flight::sort(request, true) else {
        panic!("not for the ring");
    };
    let key = backend.board(flight).unwrap();
    let now = backend.now();
    backend.on_answer(key, -libc::EAGAIN).unwrap();
    let due = backend.due().unwrap();
    assert!(due.since(now) <= Duration::from_millis(20), "{due:?}");
    backend.give_up(token);
    let mut out = Vec::new();
    backend.poll(&mut out, Wait::Never).unwrap();
    assert_eq!((out.len(), backend.due()), (1, None));
    let refused = io::Error::from_raw_os_error(libc::ENOMEM);
    let begun = std::time::Instant::now();
    for _ in 0..2000 {
        assert!(!backend.on_enter_refused(&refused).unwrap());
    }
    assert!(begun.elapsed() < Duration::from_secs(1));
    assert!(backend.due().is_some());
}

#[test]
fn a_thread_that_must_not_wait_leaves_what_might() {
    // Such a thread makes no plain call and sleeps on no refusal, however often it comes; it says
    // that something is left, and a thread that may wait does it.
    let place = Place::new("spared");
    let mut backend = disk().for_guests().open().unwrap();
    let file = file_in(&place, &mut backend, "f", Access::CREATE);
    backend.spare_caller(true);
    backend.submit(foreground(1, Op::Lock { file })).unwrap();
    let mut out = Vec::new();
    backend.poll(&mut out, Wait::Never).unwrap();
    assert!(out.is_empty() && backend.has_left_over());
    let refused = io::Error::from_raw_os_error(libc::EAGAIN);
    for _ in 0..2000 {
        assert!(!backend.on_enter_refused(&refused).unwrap());
    }
    backend.spare_caller(false);
    let finished = finish(&mut backend).pop().unwrap();
    assert!(finished.result.is_ok() && !backend.has_left_over());
    assert!(backend.on_enter_refused(&refused).unwrap());
}
