//! Segments over time: restarts, truncation, readers, cursors, who may open.

use std::{path::Path, time::Duration};

use super::rig::{Rig, small, world};
use crate::{
    ErrorKind,
    clock::Clock,
    ids::Lsn,
    io::{Blocking, Disk},
    sim::SimDisk,
    sync::Arc,
    wal::{
        cursor::{Cursors, Mark},
        lock::{Census, Holder},
        open::{self, Manner},
        reader::Reader,
        recovery::{RecoveryMode, recover},
    },
};

fn log_files(disk: &SimDisk) -> Vec<String> {
    let mut backend = disk.backend().unwrap();
    let mut io = Blocking::new(&mut *backend);
    let dir = io.open_dir(Path::new("/log"), false).unwrap();
    let mut names = io.list(&dir).unwrap();
    names.retain(|name| name.ends_with(".log") || name.ends_with(".prep"));
    names
}

#[test]
fn restarts_do_not_fill_the_disk() {
    // A hundred opens without an append leave one segment, with one record each a cut one each.
    let disk = SimDisk::seeded(1);
    for _ in 0..100 {
        Rig::open(&disk, small(), 1).unwrap().close().unwrap();
    }
    assert!(log_files(&disk).len() <= 2, "{:?}", log_files(&disk));
    for _ in 0..10 {
        let mut rig = Rig::open(&disk, small(), 1).unwrap();
        rig.submit(b"r").unwrap();
        rig.settle();
        rig.close().unwrap();
    }
    let used = disk.with(|world| world.volume.used_bytes());
    assert!(used < 64 << 10, "{used} bytes for ten records");
}

#[test]
fn truncation_drops_whole_segments_and_a_reader_keeps_its_own() {
    // Files go oldest first; one that a reader may still need stays until the reader lets go.
    let disk = SimDisk::seeded(1);
    let mut rig = Rig::open(&disk, small(), 1).unwrap();
    for _ in 0..100 {
        rig.submit(&[7; 1000]).unwrap();
        rig.settle();
    }
    let before = log_files(&disk).len();
    let segments = Arc::clone(rig.opened.appender.0.segments.catalogue());
    let reader = Reader::new(segments, rig.opened.dir.clone(), Lsn(1), None).unwrap();
    let first = rig.truncate_before(Lsn(60)).unwrap();
    assert!(first > Lsn(1) && first <= Lsn(60), "{first}");
    assert_eq!(rig.opened.appender.first_lsn(), first);
    assert_eq!(log_files(&disk).len(), before, "a reader holds them");
    drop(reader);
    rig.truncate_before(Lsn(60)).unwrap();
    assert!(log_files(&disk).len() < before);
    rig.close().unwrap();
    let rig = Rig::open(&disk, small(), 1).unwrap();
    assert_eq!(rig.opened.appender.first_lsn(), first);
    assert_eq!(rig.opened.appender.marks().durable, Lsn(100));
}

#[test]
fn a_follower_that_waits_holds_nothing_back() {
    // It stands above what is dropped and lives on: the files go, and it reads what comes next.
    let disk = SimDisk::seeded(1);
    let mut rig = Rig::open(&disk, small(), 1).unwrap();
    for _ in 0..100 {
        rig.submit(&[7; 1000]).unwrap();
        rig.settle();
    }
    let segments = Arc::clone(rig.opened.appender.0.segments.catalogue());
    let dir = rig.opened.dir.clone();
    let mut follower = Reader::new(segments, dir, Lsn(1), None).unwrap();
    let mut backend = disk.backend().unwrap();
    let mut io = Blocking::new(&mut *backend);
    while follower
        .next_batch(&mut io, Lsn(100), 64)
        .unwrap()
        .is_some()
    {}
    let before = log_files(&disk).len();
    rig.truncate_before(Lsn(60)).unwrap();
    assert!(log_files(&disk).len() < before, "held by a follower above");
    for _ in 0..100 {
        rig.submit(&[8; 1000]).unwrap();
        rig.settle();
    }
    // What came after it stands is its own again, dropped or not.
    rig.truncate_before(Lsn(190)).unwrap();
    rig.truncate_before(Lsn(190)).unwrap();
    let mut next = Lsn(101);
    while let Some(batch) = follower.next_batch(&mut io, Lsn(200), 64).unwrap() {
        assert_eq!(batch.first(), next);
        next = next.plus(batch.len() as u64);
    }
    assert_eq!(next, Lsn(201));
    let before = log_files(&disk).len();
    rig.truncate_before(Lsn(190)).unwrap();
    assert!(log_files(&disk).len() < before);
}

#[test]
fn truncation_never_touches_the_active_segment() {
    // Truncating above everything leaves the LSNs going on where they were, also after a restart.
    let disk = SimDisk::seeded(1);
    let mut rig = Rig::open(&disk, small(), 1).unwrap();
    for _ in 0..50 {
        rig.submit(&[7; 1000]).unwrap();
        rig.settle();
    }
    rig.truncate_before(Lsn(u64::MAX)).unwrap();
    assert_eq!(rig.submit(b"next").unwrap(), Lsn(51));
    rig.settle();
    rig.close().unwrap();
    let rig = Rig::open(&disk, small(), 1).unwrap();
    assert_eq!(rig.submit(b"next").unwrap(), Lsn(52));
}

#[test]
fn a_cursor_is_found_again_and_a_torn_commit_leaves_the_last_one() {
    // Two alternating images: whichever slot a crash tears, the other one answers.
    let disk = SimDisk::seeded(1);
    let mut rig = Rig::open(&disk, small(), 1).unwrap();
    let mark = |lsn| Mark {
        position: Lsn(lsn),
        holds_truncation: true,
    };
    for lsn in 1..=5 {
        rig.commit_cursor("shipper", mark(lsn)).unwrap();
        rig.commit_cursor("other\0/..", mark(9)).unwrap();
    }
    let mut backend = disk.backend().unwrap();
    let mut io = Blocking::new(&mut *backend);
    let dir = rig.opened.dir.clone();
    let loaded = Cursors::load(&mut io, &dir, true).unwrap();
    assert_eq!(loaded.get("shipper"), Some(mark(5)));
    assert_eq!(loaded.held_from(), Some(Lsn(6)));
    let file = io.open(&dir, "cursors", crate::io::Access::WRITE).unwrap();
    for slot in [0, 1] {
        let at = slot * io.length(&file).unwrap() / 2;
        let (_, image) = io
            .read(&file, at, 4096, crate::io::Buffer::zeroed(4096))
            .unwrap();
        io.write(&file, at, 4096, crate::io::Buffer::zeroed(4096), true)
            .unwrap();
        let left = Cursors::load(&mut io, &dir, true).unwrap();
        assert!(left.get("shipper").unwrap().position >= Lsn(4));
        io.write(&file, at, 4096, image, true).unwrap();
    }
    io.write(&file, 0, 4096, crate::io::Buffer::zeroed(4096), true)
        .unwrap();
    let at = io.length(&file).unwrap() / 2;
    io.write(&file, at, 4096, crate::io::Buffer::zeroed(4096), true)
        .unwrap();
    let error = Cursors::load(&mut io, &dir, true).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
}

#[test]
fn a_cursor_above_the_last_record_stands_at_it_after_an_open() {
    // A repair drops records and their LSNs are given out again: a cursor that had passed them
    // must not pass over the new ones, now or after another restart.
    let disk = SimDisk::seeded(1);
    let mark = |lsn, holds_truncation| Mark {
        position: Lsn(lsn),
        holds_truncation,
    };
    let mut rig = Rig::open(&disk, small(), 1).unwrap();
    rig.submit(b"r").unwrap();
    rig.settle();
    rig.commit_cursor("ahead", mark(9, true)).unwrap();
    rig.commit_cursor("at", mark(1, false)).unwrap();
    rig.close().unwrap();
    let rig = Rig::open(&disk, small(), 1).unwrap();
    let mut backend = disk.backend().unwrap();
    let mut io = Blocking::new(&mut *backend);
    let loaded = Cursors::load(&mut io, &rig.opened.dir.clone(), true).unwrap();
    assert_eq!(loaded.get("ahead"), Some(mark(1, true)));
    assert_eq!(loaded.get("at"), Some(mark(1, false)));
}

/// Everybody is alive.
struct Crowd;

impl Census for Crowd {
    fn myself(&self) -> Holder {
        Holder {
            pid: 42,
            started: 1,
            boot: "sim".to_owned(),
        }
    }

    fn is_alive(&self, _: &Holder) -> bool {
        true
    }
}

#[test]
fn a_living_owner_is_an_error_at_once_and_a_dead_one_is_waited_for() {
    // The lock decides; whether to wait for it depends on whether its holder is shown to be alive.
    let disk = SimDisk::seeded(1);
    let manner = Manner {
        window: 1,
        direct: false,
    };
    let owner = Rig::open(&disk, small(), 1).unwrap();
    let mut crowded = world(&disk.new_process());
    crowded.census = Box::new(Crowd);
    let began = disk.clock().now();
    let open = |world| open::open(world, Path::new("/log"), small(), || Ok(manner));
    let error = open(&crowded).map(drop).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Locked);
    assert_eq!(error.number("pid"), Some(1));
    assert!(disk.clock().now().since(began) < Duration::from_secs(1));
    let alone = world(&disk.new_process());
    let error = open(&alone).map(drop).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Locked);
    assert!(disk.clock().now().since(began) >= small().lock_timeout);
    owner.close().unwrap();
    open(&alone).map(drop).unwrap();
}

#[test]
fn a_refused_open_changes_nothing() {
    // Bad settings and a forced way that does not exist are found before anything is made.
    let disk = SimDisk::seeded(1);
    Rig::open(&disk, small(), 1).unwrap().close().unwrap();
    let before = log_files(&disk);
    let refuse = || Err(crate::Error::invalid("no such way"));
    let world = world(&disk.new_process());
    let error = open::open(&world, Path::new("/log"), small(), refuse)
        .map(drop)
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    let bad = crate::wal::settings::LogSettings {
        record_bytes_max: 0,
        ..small()
    };
    let error = open::open(&world, Path::new("/elsewhere"), bad, refuse)
        .map(drop)
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert_eq!(log_files(&disk), before);
    let mut backend = disk.backend().unwrap();
    let mut io = Blocking::new(&mut *backend);
    assert!(io.open_dir(Path::new("/elsewhere"), false).is_err());
    let dir = io.open_dir(Path::new("/log"), false).unwrap();
    assert!(
        recover(&mut io, &dir, RecoveryMode::Strict)
            .unwrap()
            .report
            .clean_close
    );
}
