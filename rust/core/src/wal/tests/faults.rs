//! Every operation of every kind fails once: nothing acknowledged is lost, nothing is invented,
//! and after a failed write of the log nothing more is acknowledged.

use std::path::Path;

use super::rig::{Rig, small};
use crate::{
    ErrorKind, Result,
    ids::Lsn,
    io::{Blocking, Disk},
    sim::{Fault, Kind, SimDisk, Trouble, Zombies},
    wal::{
        cursor::Mark,
        reader::{Catalogue, Reader},
        recovery::{RecoveryMode, recover},
    },
};

/// The record with this LSN: its length varies, its bytes name it.
fn record(lsn: u64) -> Vec<u8> {
    let length = [1, 300, 1200, 40, 2500][lsn as usize % 5] + 8;
    let mut bytes = vec![lsn as u8; length];
    bytes[..8].copy_from_slice(&lsn.to_le_bytes());
    bytes
}

/// What a workload could say when it ended: the highest acknowledged LSN, and how it ended.
struct Told {
    durable: Lsn,
    outcome: Result<()>,
}

/// Two opens, rotations, a rest, a truncation, a cursor, a clean close.
fn workload(disk: &SimDisk) -> Told {
    let mut durable = Lsn::ZERO;
    let outcome = attempt(disk, &mut durable);
    Told { durable, outcome }
}

fn attempt(disk: &SimDisk, durable: &mut Lsn) -> Result<()> {
    for window in [1, 3] {
        let mut rig = Rig::open(disk, small(), window)?;
        for _ in 0..30 {
            let lsn = rig.opened.appender.marks().appended.plus(1);
            rig.submit(&record(lsn.0))?;
            rig.settle();
            *durable = (*durable).max(rig.opened.appender.marks().durable);
        }
        disk.clock().advance(std::time::Duration::from_millis(60));
        rig.settle();
        rig.commit_cursor(
            "c",
            Mark {
                position: Lsn(5),
                holds_truncation: false,
            },
        )?;
        rig.truncate_before(Lsn(8))?;
        let failure = rig.opened.appender.failure();
        let closed = rig.close();
        if let Some(error) = failure {
            return Err(error);
        }
        closed?;
    }
    Ok(())
}

/// Everything readable after a reopen without faults.
fn read_back(disk: &SimDisk) -> (Lsn, Vec<(u64, Vec<u8>)>) {
    let mut backend = disk.backend().unwrap();
    let mut io = Blocking::new(&mut *backend);
    let dir = io.open_dir(Path::new("/log"), true).unwrap();
    let found = recover(&mut io, &dir, RecoveryMode::Tail).unwrap();
    let catalogue = crate::sync::Arc::new(Catalogue::new(&found));
    let mut reader = Reader::new(catalogue, dir, found.first, None).unwrap();
    let mut records = Vec::new();
    while let Some(batch) = reader
        .next_batch(&mut io, found.next.previous(), 100)
        .unwrap()
    {
        let first = batch.first().0;
        let payloads = batch.payloads().map(<[u8]>::to_vec);
        records.extend((first..).zip(payloads));
    }
    (found.next, records)
}

fn check(disk: &SimDisk, told: &Told, what: &str) {
    let (next, records) = read_back(disk);
    assert!(
        next > told.durable,
        "{what}: acknowledged {:?}, found up to {next:?}",
        told.durable
    );
    for (lsn, bytes) in records {
        assert_eq!(bytes, record(lsn), "{what}: LSN {lsn} holds other bytes");
    }
}

#[test]
fn any_single_failure_loses_nothing_that_was_acknowledged() {
    // N-th fault loop: n = 1, 2, ... until the workload runs clean, for each kind and errno,
    // once and for ever.
    let mut runs = 0;
    for kind in Kind::ALL {
        for errno in [libc::EIO, libc::ENOSPC] {
            for forever in [false, true] {
                runs += fail_each(kind, Trouble::Fails(errno), forever);
            }
        }
    }
    for kind in [Kind::Sync, Kind::WriteSync] {
        runs += fail_each(kind, Trouble::Drops(libc::EIO), false);
    }
    println!("{runs} runs");
    assert!(runs > 300, "the loops must reach every operation");
}

fn fail_each(kind: Kind, trouble: Trouble, forever: bool) -> u64 {
    for nth in 1..1000 {
        let disk = SimDisk::seeded(nth);
        let fault = Fault {
            kind,
            nth,
            forever,
            trouble,
        };
        disk.with(|world| world.faults.order(fault));
        let told = workload(&disk);
        let hit = disk.with(|world| {
            world.faults.clear();
            world.faults.hits > 0
        });
        let after = disk.with(|world| world.killed(Zombies::default()));
        check(
            &after,
            &told,
            &format!("{kind:?} number {nth}: {trouble:?}, forever {forever}"),
        );
        if !hit {
            assert!(told.outcome.is_ok(), "{:?}", told.outcome);
            return nth;
        }
    }
    panic!("{kind:?} never ran clean")
}

#[test]
fn after_a_failed_write_nothing_is_acknowledged_and_the_cause_stays() {
    // Fail-stop: even though the disk works again, the log stays failed until reopened.
    for trouble in [Trouble::Fails(libc::EIO), Trouble::Drops(libc::EIO)] {
        let disk = SimDisk::seeded(3);
        let mut rig = Rig::open(&disk, small(), 1).unwrap();
        rig.submit(&record(1)).unwrap();
        rig.settle();
        disk.with(|world| {
            let kind = Kind::WriteSync;
            world.faults.order(Fault {
                kind,
                nth: 1,
                forever: false,
                trouble,
            });
        });
        rig.submit(&record(2)).unwrap();
        rig.settle();
        for _ in 0..3 {
            let error = rig.submit(&record(3)).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Poisoned);
            assert_eq!(error.errno(), Some(libc::EIO));
            rig.settle();
            assert_eq!(rig.opened.appender.marks().durable, Lsn(1));
        }
    }
}

#[test]
fn a_full_disk_during_rotation_poisons_with_the_reason_and_reopens_when_there_is_room() {
    // The next segment cannot be prepared: what was acknowledged stays, the error names the cause.
    let disk = SimDisk::seeded(4);
    let mut rig = Rig::open(&disk, small(), 1).unwrap();
    disk.with(|world| {
        let (kind, trouble) = (Kind::Allocate, Trouble::Fails(libc::ENOSPC));
        world.faults.order(Fault {
            kind,
            nth: 1,
            forever: true,
            trouble,
        });
    });
    let mut acknowledged = Lsn::ZERO;
    let error = loop {
        let lsn = rig.opened.appender.marks().appended.plus(1);
        match rig.submit(&record(lsn.0)) {
            Ok(_) => {}
            Err(error) => break error,
        }
        rig.settle();
        acknowledged = rig.opened.appender.marks().durable;
    };
    assert_eq!(error.kind(), ErrorKind::Poisoned);
    assert_eq!(
        error.cause().map(crate::Error::kind),
        Some(ErrorKind::NoSpace)
    );
    assert!(acknowledged > Lsn(3));
    drop(rig);
    disk.with(|world| world.faults.clear());
    let told = Told {
        durable: acknowledged,
        outcome: Ok(()),
    };
    let after = disk.with(|world| world.killed(Zombies::default()));
    check(&after, &told, "after the disk was full");
    let mut rig = Rig::open(&after, small(), 1).unwrap();
    rig.submit(b"again").unwrap();
    rig.settle();
    rig.close().unwrap();
}
