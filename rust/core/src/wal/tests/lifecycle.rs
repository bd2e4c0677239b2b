//! Open, append, rotate, close, open again.

use std::path::Path;

use super::rig::{Rig, small};
use crate::{
    ids::Lsn,
    io::{Blocking, Disk, Wait},
    sim::SimDisk,
    wal::{
        commit::Next,
        recovery::{RecoveryMode, recover},
    },
};

#[test]
fn what_was_submitted_becomes_durable_in_order_and_is_found_again() {
    // The whole path: open, append over several segments, close, open again.
    let disk = SimDisk::seeded(1);
    let mut next = 1;
    for round in 0..4_u64 {
        let mut rig = Rig::open(&disk, small(), 1 + round as u32 % 4).unwrap();
        for step in 0..100_u64 {
            let lsn = rig.submit(&[step as u8; 700]).unwrap();
            assert_eq!(lsn, Lsn(next));
            next += 1;
            if step % 7 == 0 {
                rig.settle();
                assert_eq!(rig.opened.appender.marks().durable, lsn);
            }
        }
        rig.close().unwrap();
        let mut backend = disk.backend().unwrap();
        let mut io = Blocking::new(&mut *backend);
        let dir = io.open_dir(Path::new("/log"), false).unwrap();
        let found = recover(&mut io, &dir, RecoveryMode::Strict).unwrap();
        assert_eq!(found.next, Lsn(next));
        assert!(found.report.clean_close, "{:?}", found.report);
    }
}

#[test]
fn a_step_of_a_closing_log_leaves_the_tidying_up_to_a_turn() {
    // Removing what the next open would remove anyway waits for the disk; whoever steps does not.
    let disk = SimDisk::seeded(1);
    let names = || {
        let mut backend = disk.backend().unwrap();
        let mut io = Blocking::new(&mut *backend);
        let dir = io.open_dir(Path::new("/log"), false).unwrap();
        io.list(&dir).unwrap().len()
    };
    let mut rig = Rig::open(&disk, small(), 1).unwrap();
    for _ in 0..3 {
        rig.submit(&[1; 700]).unwrap();
        rig.settle();
    }
    let before = names();
    rig.opened.appender.request_close();
    let committer = &mut rig.opened.committer;
    while committer.step(&mut *rig.backend) != Next::Done {
        committer.wait(&mut *rig.backend, Wait::Forever);
    }
    assert_eq!(names(), before);
    assert_eq!(committer.turn(&mut *rig.backend), Next::Done);
    assert_eq!(names(), before - 1, "the prepared segment is gone");
}
