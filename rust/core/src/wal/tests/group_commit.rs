//! Which records share a sync, when a group waits for company, and what rest looks like.

use std::time::Duration;

use super::rig::{Rig, small};
use crate::{
    ErrorKind,
    clock::Clock,
    ids::Lsn,
    io::Wait,
    sim::SimDisk,
    wal::{commit::Next, settings::LogSettings},
};

#[test]
fn records_that_are_ready_together_share_one_sync() {
    // Group commit: ten records, one synchronous write.
    let disk = SimDisk::seeded(1);
    let mut rig = Rig::open(&disk, small(), 1).unwrap();
    for _ in 0..10 {
        rig.submit(b"r").unwrap();
    }
    rig.settle();
    let counts = rig.opened.appender.counts();
    assert_eq!((counts.groups, counts.syncs, counts.records), (1, 1, 10));
    assert_eq!(rig.opened.appender.marks().durable, Lsn(10));
}

#[test]
fn a_batch_is_never_split_over_two_frames() {
    // Three batches of 3 KiB do not fit one group of 8 KiB: two go, then one.
    let disk = SimDisk::seeded(1);
    let mut rig = Rig::open(&disk, small(), 1).unwrap();
    for _ in 0..3 {
        let batch = vec![
            vec![1; 1000].into(),
            vec![2; 1000].into(),
            vec![3; 1000].into(),
        ];
        rig.opened.appender.submit_many(&batch).unwrap();
    }
    rig.settle();
    let counts = rig.opened.appender.counts();
    assert_eq!((counts.groups, counts.group_records_max), (2, 6));
}

#[test]
fn a_group_lingers_as_long_as_told_and_no_longer() {
    // With linger, the committer asks to wait until first record plus linger, then writes.
    let disk = SimDisk::seeded(1);
    let linger = Duration::from_millis(5);
    let settings = LogSettings { linger, ..small() };
    let mut rig = Rig::open(&disk, settings, 1).unwrap();
    rig.submit(b"early").unwrap();
    let began = disk.clock().now();
    let next = rig.opened.committer.turn(&mut *rig.backend);
    assert_eq!(next, Next::Wait(Wait::Until(began.after(linger))));
    disk.clock().advance(Duration::from_millis(3));
    rig.submit(b"company").unwrap();
    rig.opened.committer.turn(&mut *rig.backend);
    assert_eq!(rig.opened.appender.counts().groups, 0);
    disk.clock().advance(Duration::from_millis(2));
    rig.settle();
    assert_eq!(rig.opened.appender.counts().groups, 1);
    assert_eq!(rig.opened.appender.marks().durable, Lsn(2));
}

#[test]
fn two_groups_keep_the_least_interval() {
    // The second group is submitted no earlier than the interval after the first.
    let disk = SimDisk::seeded(1);
    let interval = Duration::from_millis(10);
    let settings = LogSettings {
        sync_interval_min: interval,
        ..small()
    };
    let mut rig = Rig::open(&disk, settings, 1).unwrap();
    rig.submit(b"one").unwrap();
    let began = disk.clock().now();
    rig.settle();
    rig.submit(b"two").unwrap();
    rig.opened.committer.turn(&mut *rig.backend);
    assert_eq!(rig.opened.appender.counts().groups, 1);
    disk.clock().advance(interval);
    rig.settle();
    assert_eq!(rig.opened.appender.counts().groups, 2);
    assert!(disk.clock().now() >= began.after(interval));
}

#[test]
fn a_resting_log_states_its_watermark_once_and_then_sleeps() {
    // One watermark frame after 50 ms of rest, and no timer after that: idle costs nothing.
    let disk = SimDisk::seeded(1);
    let mut rig = Rig::open(&disk, small(), 1).unwrap();
    assert_eq!(
        rig.opened.committer.turn(&mut *rig.backend),
        Next::Wait(Wait::Forever)
    );
    rig.submit(b"r").unwrap();
    rig.settle();
    let next = rig.opened.committer.turn(&mut *rig.backend);
    assert!(matches!(next, Next::Wait(Wait::Until(_))), "{next:?}");
    assert_eq!(rig.opened.appender.counts().marks, 0);
    disk.clock().advance(Duration::from_millis(60));
    rig.settle();
    assert_eq!(rig.opened.appender.counts().marks, 1);
    assert_eq!(
        rig.opened.committer.turn(&mut *rig.backend),
        Next::Wait(Wait::Forever)
    );
}

#[test]
fn limits_that_waiting_will_not_change_are_refused_by_name() {
    // TooLarge names the limit; the log is usable after.
    let disk = SimDisk::seeded(1);
    let mut rig = Rig::open(&disk, small(), 1).unwrap();
    let appender = rig.opened.appender.clone();
    let record = appender.submit(vec![0; 5000].into()).unwrap_err();
    let batch = appender
        .submit_many(&vec![vec![0; 4000].into(); 3])
        .unwrap_err();
    let many = appender
        .submit_many(&vec![vec![0; 1].into(); 65])
        .unwrap_err();
    for (error, limit) in [
        (record, "record_bytes_max"),
        (batch, "group_bytes_max"),
        (many, "ring_entries"),
    ] {
        assert_eq!(error.kind(), ErrorKind::TooLarge);
        assert!(error.to_string().contains(limit), "{error}");
    }
    let empty = appender.submit_many(&[]).unwrap_err();
    assert_eq!(empty.kind(), ErrorKind::Invalid);
    assert_eq!(rig.submit(b"").unwrap(), Lsn(1));
    rig.settle();
    assert_eq!(appender.marks().durable, Lsn(1));
}

#[test]
fn when_the_ring_is_full_submit_refuses_and_append_stands_in_line() {
    // First come, first served: nobody overtakes the line, a cancelled one is never written.
    use crate::wal::log::{Claimed, Pending};
    struct Deaf;
    impl crate::sync::Wake for Deaf {
        fn wake(&self) {}
    }
    let deaf = || -> crate::sync::Waker { crate::sync::Arc::new(Deaf) };
    let disk = SimDisk::seeded(1);
    let mut rig = Rig::open(&disk, small(), 1).unwrap();
    let appender = rig.opened.appender.clone();
    for _ in 0..64 {
        rig.submit(b"fill").unwrap();
    }
    assert_eq!(rig.submit(b"no").unwrap_err().kind(), ErrorKind::Overloaded);
    let line: Vec<_> = (0..3)
        .map(
            |n: u8| match appender.append(vec![n].into(), deaf).unwrap() {
                Claimed::Later(pending) => pending,
                Claimed::Now(lsn) => panic!("overtook the full ring at {lsn}"),
            },
        )
        .collect();
    assert!(line[1].cancel());
    assert_eq!(rig.submit(b"no").unwrap_err().kind(), ErrorKind::Overloaded);
    rig.settle();
    let admitted = |at: usize| match line[at].state() {
        Pending::Admitted(lsn) => Some(lsn),
        Pending::Waiting | Pending::Failed(_) => None,
    };
    assert_eq!(admitted(0), Some(Lsn(65)));
    assert_eq!(admitted(1), None);
    assert_eq!(admitted(2), Some(Lsn(66)));
    assert_eq!(rig.submit(b"yes").unwrap(), Lsn(67));
}

#[test]
fn the_watermark_never_passes_a_hole_whatever_order_answers_come_in() {
    // Four groups in flight, answered in random order: a durable LSN means all before it are.
    for seed in 0..50 {
        let settings = crate::sim::Settings {
            seed,
            reorder: true,
            ..crate::sim::Settings::default()
        };
        let disk = SimDisk::new(settings);
        let mut rig = Rig::open(&disk, small(), 4).unwrap();
        for step in 0..40_u64 {
            rig.submit(&[step as u8; 900]).unwrap();
            let next = rig.opened.committer.turn(&mut *rig.backend);
            let durable = rig.opened.appender.marks().durable;
            let landed = disk.with(|world| super::rig::durable_prefix(world));
            assert!(
                durable <= landed,
                "seed {seed}: {durable} acknowledged, {landed} on disk"
            );
            if let (Next::Wait(wait), true) = (next, step % 3 == 0) {
                rig.opened.committer.wait(&mut *rig.backend, wait);
            }
        }
    }
}
