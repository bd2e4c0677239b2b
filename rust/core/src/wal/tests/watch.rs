//! A log followed by another process: nothing lost, nothing twice, and no more read than is new.

use std::{
    cell::RefCell,
    path::{Path, PathBuf},
    time::Duration,
};

use super::{
    rig::{Rig, small, world},
    trust::{one_of_two_groups, write_group},
};
use crate::{
    ErrorKind,
    ids::Lsn,
    io::{Access, Blocking, Buffer, Disk, Wait},
    sim::{CrashPoint, Fault, Kind, Model, Seen, SimDisk, Trouble, Zombies},
    wal::{
        Watch,
        commit::Next,
        recovery::{RecoveryMode, recover},
        segment::segment_name,
        settings::LogSettings,
        watch::rest_after,
    },
};

/// The record with this LSN.
fn record(lsn: u64) -> Vec<u8> {
    let mut bytes = vec![lsn as u8; 600 + lsn as usize % 500];
    bytes[..8].copy_from_slice(&lsn.to_le_bytes());
    bytes
}

fn append(rig: &mut Rig, count: u64) {
    for _ in 0..count {
        let next = rig.opened.appender.marks().appended.plus(1);
        rig.submit(&record(next.0)).unwrap();
        rig.settle();
    }
}

fn durable(rig: &Rig) -> u64 {
    rig.opened.appender.marks().durable.0
}

/// Segments of one size, so that the files are used again.
fn even() -> LogSettings {
    LogSettings {
        segment_first_bytes: small().segment_bytes,
        ..small()
    }
}

struct Follower {
    watch: Watch,
    disk: SimDisk,
    seen: u64,
}

impl Follower {
    fn new(disk: &SimDisk, start: u64) -> Self {
        let disk = disk.new_process();
        let mode = RecoveryMode::Tail;
        let watch = Watch::new(&world(&disk), PathBuf::from("/log"), mode, Lsn(start)).unwrap();
        let seen = start - 1;
        Self { watch, disk, seen }
    }

    /// Takes what there is now: whole records in line, and no other.
    fn take(&mut self) -> crate::Result<u64> {
        while let Some(batch) = self.watch.next_batch(7)? {
            assert_eq!(batch.first().0, self.seen + 1);
            for payload in batch.payloads() {
                self.seen += 1;
                assert_eq!(payload, record(self.seen));
            }
            assert_eq!(self.watch.position().0, self.seen + 1);
        }
        Ok(self.seen)
    }

    /// Looks until a record that nobody says is durable was synced here.
    fn take_all(&mut self) -> u64 {
        for _ in 0..3 {
            self.take().unwrap();
            self.pass(Duration::from_millis(100));
        }
        self.take().unwrap()
    }

    fn pass(&self, time: Duration) {
        self.disk.clock().advance(time);
    }

    /// How many operations of a kind there were so far.
    fn count(&self, kind: Kind) -> u64 {
        self.disk.with(|world| world.faults.count(kind))
    }
}

#[test]
fn everything_is_seen_once_over_rotations_and_files_used_again() {
    // Whatever lies between two looks: nothing, a record, a rotation, a truncation of all that was
    // seen. The frontier is never lost: a look anew would find what is spoilt behind it.
    let disk = SimDisk::seeded(1);
    let mut rig = Rig::open(&disk, even(), 2).unwrap();
    let mut follower = Follower::new(&disk, 1);
    follower.take().unwrap();
    for round in 0..200 {
        append(&mut rig, round % 13);
        let seen = follower.take().unwrap();
        assert!(
            seen + 1 >= durable(&rig),
            "only the last record has no later frame"
        );
        assert!(!follower.watch.is_lost(), "round {round}");
        rig.truncate_before(Lsn(seen + 1)).unwrap();
    }
    assert_eq!(follower.take_all(), durable(&rig));
    assert!(rig.opened.appender.counts().rotations > 20);
}

#[test]
fn what_was_seen_is_not_read_again() {
    // Frames that were passed may become unreadable: a follower goes on, and reads a handful of
    // times for one new record.
    let disk = SimDisk::seeded(1);
    let settings = LogSettings {
        segment_bytes: 4 << 20,
        segment_first_bytes: 4 << 20,
        ..small()
    };
    let mut rig = Rig::open(&disk, settings, 2).unwrap();
    append(&mut rig, 500);
    let mut follower = Follower::new(&disk, 1);
    follower.take_all();
    disk.with(|world| {
        let dir = world.volume.find_dir(Path::new("/log")).unwrap();
        let is_segment = |name: &str| name.ends_with(".log");
        let entries = world.volume.dirs[dir].entries.clone();
        for (_, ino) in entries.iter().filter(|(name, _)| is_segment(name)) {
            for sector in 1..64 {
                world.volume.spoil(*ino, sector);
            }
        }
    });
    for _ in 0..10 {
        append(&mut rig, 1);
        let before = follower.count(Kind::Read);
        follower.take_all();
        let reads = follower.count(Kind::Read) - before;
        assert!(reads <= 12, "{reads} reads for one record in four looks");
    }
    assert_eq!(follower.seen, durable(&rig));
}

#[test]
fn nothing_is_seen_that_a_power_cut_takes_back() {
    // At every moment of a group's life: what a follower has shown is in every state that a power
    // cut may leave.
    let disk = SimDisk::seeded(1);
    let mut rig = Rig::open(&disk, small(), 2).unwrap();
    let mut follower = Follower::new(&disk, 1);
    let mut states = 0;
    for _ in 0..12 {
        let next = rig.opened.appender.marks().appended.plus(1);
        rig.submit(&record(next.0)).unwrap();
        loop {
            let next = rig.opened.committer.turn(&mut *rig.backend);
            let seen = follower.take().unwrap();
            follower.pass(Duration::from_millis(60));
            let point = disk.with(|world| CrashPoint::capture(world, Model::default()));
            let book = RefCell::new(Seen::default());
            point.states(0, &book, &mut |image, _, _| {
                let after = SimDisk::from_image(image, crate::sim::Settings::default());
                let mut backend = after.backend().unwrap();
                let mut io = Blocking::new(&mut *backend);
                let dir = io.open_dir(Path::new("/log"), false).unwrap();
                let found = recover(&mut io, &dir, RecoveryMode::Tail).unwrap();
                assert!(found.next.0 > seen, "{seen} was shown");
                states += 1;
                true
            });
            if next != Next::Wait(Wait::Never) && rig.backend.in_flight() == 0 {
                break;
            }
            let committer = &mut rig.opened.committer;
            committer.wait(&mut *rig.backend, Wait::Forever);
        }
    }
    assert!(states > 100, "{states} states");
    assert!(follower.seen > 6);
}

#[test]
fn a_frame_that_is_written_and_not_synced_is_synced_before_it_is_shown() {
    // It lies in the cache, and its owner says nothing more: a power cut would take it. Once it is
    // shown, it is in every state that a power cut may leave.
    let disk = SimDisk::seeded(1);
    let mut backend = disk.backend().unwrap();
    let mut io = Blocking::new(&mut *backend);
    let (file, at, bytes) = one_of_two_groups(&mut io, "/log");
    let mut follower = Follower::new(&disk, 1);
    let next = |follower: &mut Follower| {
        let batch = follower.watch.next_batch(7).unwrap();
        batch.map(|batch| batch.first().0)
    };
    assert_eq!(next(&mut follower), Some(1));
    assert_eq!(next(&mut follower), None);
    write_group(&mut io, &file, at, &bytes);
    let mut looks = 0;
    while next(&mut follower).is_none() {
        follower.pass(Duration::from_millis(60));
        looks += 1;
    }
    assert!((2..5).contains(&looks), "shown after {looks} looks");
    let point = disk.with(|world| CrashPoint::capture(world, Model::default()));
    let book = RefCell::new(Seen::default());
    point.states(0, &book, &mut |image, _, _| {
        let after = SimDisk::from_image(image, crate::sim::Settings::default());
        let mut backend = after.backend().unwrap();
        let mut io = Blocking::new(&mut *backend);
        let dir = io.open_dir(Path::new("/log"), false).unwrap();
        let found = recover(&mut io, &dir, RecoveryMode::Tail).unwrap();
        assert_eq!(found.next, Lsn(3));
        true
    });
}

#[test]
fn the_owner_says_what_is_durable() {
    // Beside an owner that appends, a follower syncs nothing; the last record of one that is gone
    // is synced before it is shown.
    let disk = SimDisk::seeded(1);
    let mut rig = Rig::open(&disk, small(), 2).unwrap();
    append(&mut rig, 1);
    let mut follower = Follower::new(&disk, 1);
    follower.take().unwrap();
    for _ in 0..50 {
        append(&mut rig, 1);
        let before = follower.count(Kind::Sync);
        follower.take().unwrap();
        assert_eq!(follower.count(Kind::Sync), before);
        assert_eq!(follower.seen, durable(&rig) - 1);
    }
    let before = follower.count(Kind::Sync);
    assert_eq!(follower.take_all(), durable(&rig));
    assert_eq!(follower.count(Kind::Sync), before + 1);
}

#[test]
fn the_next_owners_are_followed() {
    // Killed owners, with a frame on its way or an empty segment, and orderly ones: each next one
    // goes on, and so does the follower.
    let disk = SimDisk::seeded(1);
    let mut follower = Follower::new(&disk, 1);
    let mut process = disk.clone();
    for round in 0..24 {
        let mut rig = Rig::open(&process, small(), 2).unwrap();
        append(&mut rig, [0, 3, 40][round % 3]);
        if round % 2 == 0 {
            follower.take().unwrap();
        }
        let expected = durable(&rig);
        if round % 4 == 3 {
            rig.close().unwrap();
        } else {
            let next = rig.opened.appender.marks().appended.plus(1);
            rig.submit(&record(next.0)).unwrap();
            rig.opened.committer.turn(&mut *rig.backend);
            process.kill(Zombies::default());
            std::mem::forget(rig);
            process = disk.new_process();
        }
        assert!(follower.take_all() >= expected);
    }
    let mut rig = Rig::open(&process, small(), 2).unwrap();
    append(&mut rig, 1);
    assert_eq!(follower.take_all(), durable(&rig));
}

#[test]
fn a_calm_log_is_hardly_looked_at() {
    // After a second without news most looks read nothing; a record, and another owner, are seen
    // all the same.
    let disk = SimDisk::seeded(1);
    let mut rig = Rig::open(&disk, small(), 2).unwrap();
    append(&mut rig, 3);
    let mut follower = Follower::new(&disk, 1);
    let calm = |follower: &mut Follower| {
        for _ in 0..20 {
            follower.take_all();
        }
        let before = follower.count(Kind::Read);
        for _ in 0..40 {
            follower.take().unwrap();
        }
        assert!(follower.count(Kind::Read) - before <= 40);
    };
    calm(&mut follower);
    append(&mut rig, 1);
    assert_eq!(follower.take_all(), 4);
    calm(&mut follower);
    rig.close().unwrap();
    calm(&mut follower);
    let mut rig = Rig::open(&disk.new_process(), small(), 2).unwrap();
    append(&mut rig, 1);
    assert_eq!(follower.take_all(), 5);
}

#[test]
fn a_log_that_is_not_there_yet_is_waited_for() {
    // A directory without a log shows nothing, and then the log that is made in it.
    let disk = SimDisk::seeded(1);
    let mut backend = disk.backend().unwrap();
    Blocking::new(&mut *backend)
        .open_dir(Path::new("/log"), true)
        .unwrap();
    let mut follower = Follower::new(&disk, 1);
    assert_eq!(follower.take().unwrap(), 0);
    assert!(
        !follower.watch.is_lost(),
        "an empty directory is looked at at leisure"
    );
    let mut rig = Rig::open(&disk, small(), 2).unwrap();
    append(&mut rig, 30);
    assert_eq!(follower.take_all(), 30);
}

/// Destroys the frame that begins at `at` in the newest segment in use.
fn spoil_frame(disk: &SimDisk, at: u64) {
    let mut backend = disk.backend().unwrap();
    let mut io = Blocking::new(&mut *backend);
    let dir = io.open_dir(Path::new("/log"), false).unwrap();
    let id = recover(&mut io, &dir, RecoveryMode::Tail)
        .unwrap()
        .end
        .unwrap()
        .segment;
    let file = io.open(&dir, &segment_name(id), Access::WRITE).unwrap();
    let mut bytes = Buffer::zeroed(512);
    bytes.fill(0xa5);
    io.write(&file, at, 512, bytes, true).unwrap();
}

fn end_offset(disk: &SimDisk) -> u64 {
    let mut backend = disk.backend().unwrap();
    let mut io = Blocking::new(&mut *backend);
    let dir = io.open_dir(Path::new("/log"), false).unwrap();
    recover(&mut io, &dir, RecoveryMode::Tail)
        .unwrap()
        .end
        .unwrap()
        .offset
}

#[test]
fn damage_ahead_is_reported_and_never_stepped_over() {
    // A frame that is destroyed before it was seen: soon reported where more is written to the
    // same segment, and reported where another segment follows. Nothing behind it is shown.
    for more in [5, 60] {
        let disk = SimDisk::seeded(1);
        let mut rig = Rig::open(&disk, even(), 2).unwrap();
        append(&mut rig, 5);
        let mut follower = Follower::new(&disk, 1);
        assert_eq!(follower.take_all(), 5);
        let at = end_offset(&disk);
        append(&mut rig, 2);
        spoil_frame(&disk, at);
        append(&mut rig, more);
        let error = (0..40).find_map(|_| {
            follower.pass(Duration::from_millis(100));
            follower.take().err()
        });
        let error = error.expect("damage was not reported");
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
        assert_eq!(error.number("first_lsn"), Some(6));
        assert_eq!(error.number("offset"), Some(i128::from(at)));
    }
}

#[test]
fn records_that_were_dropped_unseen_are_an_error() {
    // What truncation has taken is said to be gone, with the first record left; from there on it
    // can be followed.
    let disk = SimDisk::seeded(1);
    let mut rig = Rig::open(&disk, even(), 2).unwrap();
    let mut follower = Follower::new(&disk, 1);
    append(&mut rig, 5);
    follower.take().unwrap();
    append(&mut rig, 300);
    let first = rig.truncate_before(Lsn(u64::MAX)).unwrap();
    append(&mut rig, 100);
    rig.truncate_before(Lsn(u64::MAX)).unwrap();
    let error = loop {
        if let Err(error) = follower.take() {
            break error;
        }
    };
    assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
    let left = u64::try_from(error.number("first_lsn").unwrap()).unwrap();
    assert!(left >= first.0 && follower.seen < left);
    let mut follower = Follower::new(&disk, left);
    assert_eq!(follower.take_all(), durable(&rig));
}

#[test]
fn a_trouble_is_told_and_the_next_call_looks_anew() {
    // A read that fails is an error once; nothing is lost or given twice by it.
    let disk = SimDisk::seeded(1);
    let mut rig = Rig::open(&disk, small(), 2).unwrap();
    let mut follower = Follower::new(&disk, 1);
    let mut troubles = 0;
    for round in 0..100_u64 {
        append(&mut rig, 3);
        let kind = [Kind::Read, Kind::Sync][round as usize % 2];
        follower.disk.with(|world| {
            let nth = 1 + round % 5;
            let trouble = Trouble::Fails(libc::EMFILE);
            world.faults.order(Fault {
                kind,
                nth,
                forever: false,
                trouble,
            });
        });
        troubles += u64::from(follower.take().is_err());
        follower.disk.with(|world| world.faults.clear());
        follower.take_all();
        assert_eq!(follower.seen, durable(&rig));
    }
    assert!(troubles > 10, "{troubles}");
}

#[test]
fn looking_takes_a_twentieth_of_the_time() {
    // A pause is in proportion to the look before it, up to a longest one.
    let ms = Duration::from_millis;
    assert_eq!(rest_after(ms(0), ms(5)), ms(5));
    assert_eq!(rest_after(ms(1), ms(5)), ms(19));
    assert_eq!(rest_after(ms(50), ms(100)), ms(950));
    assert_eq!(rest_after(ms(10_000), ms(5)), ms(2000));
}

#[test]
fn looks_come_soon_after_news_and_seldom_without() {
    // 5 ms after something came, ten times a second when nothing does.
    let disk = SimDisk::seeded(1);
    let mut rig = Rig::open(&disk, small(), 2).unwrap();
    let mut follower = Follower::new(&disk, 1);
    append(&mut rig, 1);
    follower.take_all();
    for _ in 0..10 {
        follower.take().unwrap();
    }
    assert_eq!(follower.watch.rest(), Duration::from_millis(100));
    append(&mut rig, 2);
    follower.take().unwrap();
    assert!(follower.watch.rest() < Duration::from_millis(100));
    append(&mut rig, 2);
    follower.take().unwrap();
    append(&mut rig, 2);
    assert!(follower.watch.rest() <= Duration::from_millis(10));
}
