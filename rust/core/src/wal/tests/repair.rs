//! Verify finds what is damaged and touches nothing; repair keeps what is before it, copies first.

use super::{read_all, recover_in, with_dir};
use crate::{
    error::ErrorKind,
    ids::{Lsn, SegmentId},
    io::MemoryDisk,
    wal::{
        builder::{Builder, SMALL},
        recovery::RecoveryMode,
        repair::{Repair, repair},
        segment::segment_name,
        verify::{Verification, verify},
    },
};

/// Four segments of two groups each.
fn store() -> Builder {
    let mut builder = Builder::new(SMALL);
    for segment in 0..4_u8 {
        builder.append(&[vec![segment; 10], vec![segment; 700]]);
        builder.append(&[vec![segment; 3]]);
        if segment < 3 {
            builder.reopen();
            builder.cut_predecessor();
        }
    }
    builder
}

fn verified(disk: &MemoryDisk) -> Verification {
    let changes = disk.changes();
    let found = with_dir(disk, verify).unwrap();
    assert_eq!(disk.changes(), changes);
    found
}

fn repaired(disk: &MemoryDisk) -> Repair {
    with_dir(disk, repair).unwrap()
}

#[test]
fn a_sound_log_is_verified_and_left_alone() {
    // Every record is counted, and a repair of nothing changes nothing.
    let builder = store();
    let found = verified(&builder.disk);
    assert!(found.is_sound());
    assert_eq!(
        (found.first, found.next, found.report.records),
        (Lsn(1), Lsn(13), 12)
    );
    let counts: Vec<_> = found.segments.iter().map(|check| check.records).collect();
    assert_eq!(counts, [3, 3, 3, 3]);
    let report = repaired(&builder.disk);
    assert_eq!(
        (report.records, report.dropped, report.copies.len()),
        (12, 0, 0)
    );
    assert_eq!(builder.disk.changes(), 0);
}

#[test]
fn damage_deep_inside_is_found_by_verify_alone() {
    // Opening reads only the last segment through; verify reads all of them.
    let builder = store();
    let (segment, offset, ..) = builder.frames[2];
    builder.disk.edit(&segment_name(segment), |bytes| {
        bytes[offset as usize + 200] ^= 1;
    });
    assert!(recover_in(&builder.disk, RecoveryMode::Tail).is_ok());
    let found = verified(&builder.disk);
    assert_eq!(found.report.damage.len(), 1);
    let damage = &found.segments[1].damage[0];
    assert_eq!((damage.segment, damage.offset), (segment, offset));
    assert_eq!((damage.first, damage.last), (Lsn(4), Some(Lsn(5))));
}

#[test]
fn a_repaired_log_ends_before_the_damage_and_goes_on() {
    // Wherever the damage is: a prefix is left, the rest is in the copies, and the log opens.
    for (at, kept) in [(1, 2), (2, 3), (3, 5), (4, 6), (5, 8), (6, 9)] {
        let builder = store();
        let disk = &builder.disk;
        let (segment, offset, ..) = builder.frames[at];
        disk.edit(&segment_name(segment), |bytes| {
            bytes[offset as usize + 70] ^= 1;
        });
        let before = disk.copy();
        let report = repaired(disk);
        assert_eq!(
            (report.records, report.next),
            (kept, Lsn(kept + 1)),
            "frame {at}"
        );
        assert!(report.dropped < 12 - kept);
        for copy in &report.copies {
            let original = copy.strip_suffix(".broken").unwrap();
            assert_eq!(disk.get(copy), before.get(original));
        }
        assert!(
            report
                .copies
                .contains(&format!("{}.broken", segment_name(segment)))
        );
        let found = recover_in(disk, RecoveryMode::Strict).unwrap();
        assert_eq!(
            read_all(disk, &found).unwrap(),
            builder.records[..kept as usize]
        );
        assert!(verified(disk).is_sound());
        assert_eq!(repaired(disk).copies.len(), 0);
    }
}

#[test]
fn a_lost_beginning_costs_only_itself() {
    // A header lost in the oldest segment leaves the later ones, as truncation would.
    let builder = store();
    builder
        .disk
        .edit(&segment_name(SegmentId(1)), |bytes| bytes[..512].fill(0));
    assert!(recover_in(&builder.disk, RecoveryMode::Tail).is_err());
    let report = repaired(&builder.disk);
    assert_eq!(
        (report.first, report.next, report.records),
        (Lsn(4), Lsn(13), 9)
    );
    let found = recover_in(&builder.disk, RecoveryMode::Tail).unwrap();
    assert_eq!(
        read_all(&builder.disk, &found).unwrap(),
        builder.records[3..]
    );
}

#[test]
fn without_a_whole_record_nothing_is_changed() {
    // There is nothing to go on from, so it is left to salvage by hand.
    let mut builder = Builder::new(SMALL);
    let at = builder.append(&[b"only"]);
    builder.watermark();
    builder
        .disk
        .edit(&builder.name(), |bytes| bytes[at as usize] ^= 1);
    let error = with_dir(&builder.disk, repair).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert_eq!(builder.disk.changes(), 0);
}

#[test]
fn a_second_repair_does_not_overwrite_the_first_copy() {
    // Copies get names of their own, and unreadable sectors become zeros in them.
    let builder = store();
    let disk = &builder.disk;
    let name = segment_name(SegmentId(2));
    disk.put(&format!("{name}.broken"), b"of an earlier repair");
    disk.spoil(&name, 512);
    let report = repaired(disk);
    assert_eq!(report.copies[0], format!("{name}.broken.1"));
    assert_eq!(
        disk.get(&format!("{name}.broken")).unwrap(),
        b"of an earlier repair"
    );
    assert!(
        disk.get(&report.copies[0]).unwrap()[512..1024]
            .iter()
            .all(|byte| *byte == 0)
    );
    assert_eq!(report.records, 3);
    assert!(recover_in(disk, RecoveryMode::Tail).is_ok());
}

#[test]
fn frames_without_records_behind_the_last_record_promise_nothing() {
    // Found by damage at random: a reader tripped over a damaged watermark at the end of a segment
    // that it had read to its last record, and a file that lacked only a watermark was refused.
    let mut builder = Builder::new(SMALL);
    builder.append(&[b"one"]);
    let at = builder.watermark();
    builder.reopen();
    builder.cut_predecessor();
    builder.append(&[b"two"]);
    let first = segment_name(SegmentId(1));
    let hurts: [fn(&mut Vec<u8>, usize); 3] = [
        |bytes, at| bytes[at + 9] ^= 1,
        |bytes, at| bytes[at..].fill(0),
        |bytes, at| bytes.truncate(at),
    ];
    for hurt in hurts {
        let disk = builder.disk.copy();
        disk.edit(&first, |bytes| hurt(bytes, at as usize));
        let found = recover_in(&disk, RecoveryMode::Strict).unwrap();
        assert_eq!(read_all(&disk, &found).unwrap(), builder.records);
        assert!(verified(&disk).is_sound());
        assert_eq!(repaired(&disk).copies.len(), 0);
    }
}

#[test]
fn what_is_left_of_a_segment_without_its_beginning_is_not_kept() {
    // Found by damage at random: repair kept frames whose chain hangs on a frame that is gone, and
    // removed a whole segment because the gap before it was noted under its number.
    let builder = store();
    let disk = builder.disk.copy();
    let (_, offset, ..) = builder.frames[0];
    disk.edit(&segment_name(SegmentId(1)), |bytes| {
        bytes[offset as usize] ^= 1;
    });
    let report = repaired(&disk);
    assert_eq!(
        (report.first, report.records, report.dropped),
        (Lsn(4), 9, 1)
    );
    let found = recover_in(&disk, RecoveryMode::Strict).unwrap();
    assert_eq!(read_all(&disk, &found).unwrap(), builder.records[3..]);
    let disk = builder.disk.copy();
    disk.remove(&segment_name(SegmentId(2)));
    let (first, last) = {
        let damage = &verified(&disk).report.damage[0];
        assert_eq!(damage.segment, SegmentId(2));
        (damage.first, damage.last)
    };
    assert_eq!((first, last), (Lsn(4), Some(Lsn(6))));
    assert_eq!(repaired(&disk).records, 3);
}

#[test]
fn a_stray_with_an_absurd_number_is_copied_aside_too() {
    // Numbers are listed, not counted up to: the gap may be as wide as the number.
    let builder = store();
    let disk = &builder.disk;
    let stray = segment_name(SegmentId(1 << 60));
    disk.put(&stray, &disk.get(&builder.name()).unwrap());
    assert!(recover_in(disk, RecoveryMode::Tail).is_err());
    let report = repaired(disk);
    assert_eq!(report.copies, [format!("{stray}.broken")]);
    assert_eq!(report.records, 12);
    assert!(verified(disk).is_sound());
}
