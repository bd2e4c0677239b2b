//! What recovery makes of a directory: each row of the table, on bytes.

use super::{read_all, recover_in};
use crate::{
    error::ErrorKind,
    ids::{Incarnation, Lsn, SegmentId, StoreId},
    io::MemoryDisk,
    wal::{
        builder::{Builder, SMALL},
        recovery::{Recovered, RecoveryMode, Torn, WriteBar},
        segment::{SegmentHeader, SegmentLimits, prepared_name, segment_name},
    },
};

/// Three segments by two owners, several groups in each.
fn store() -> Builder {
    let mut builder = Builder::new(SMALL);
    builder.append(&[b"one".as_slice(), b"two"]);
    builder.append(&[vec![3; 1200]]);
    builder.watermark();
    builder.roll();
    builder.append(&[b"four"]);
    builder.reopen();
    builder.append(&[b"five".as_slice(), b"", b"seven"]);
    builder.append(&[vec![8; 700]]);
    builder
}

fn open(disk: &MemoryDisk) -> Recovered {
    recover_in(disk, RecoveryMode::Tail).unwrap()
}

/// Opens, checks that nothing was touched, and gives the refusal's kind, segment and offset.
fn refusal(disk: &MemoryDisk) -> (ErrorKind, u64, u64) {
    let before = disk.copy();
    let error = recover_in(disk, RecoveryMode::Tail).unwrap_err();
    assert_eq!(disk.changes(), 0);
    for name in before.names() {
        assert_eq!(disk.get(&name), before.get(&name));
    }
    let number = |key| {
        error
            .number(key)
            .map_or(u64::MAX, |value| value.try_into().unwrap())
    };
    (error.kind(), number("segment"), number("offset"))
}

#[test]
fn an_empty_directory_is_a_new_log() {
    // So is one in which only helpers and preparations were left.
    let disk = MemoryDisk::default();
    let empty = open(&disk);
    assert_eq!(
        (empty.store, empty.first, empty.next),
        (None, Lsn(1), Lsn(1))
    );
    assert_eq!(
        (empty.next_segment, empty.incarnation),
        (SegmentId(1), Incarnation(1))
    );
    disk.put("LOCK", b"");
    disk.put("cursors", b"?");
    disk.put("x.tmp", b"half");
    disk.put(&prepared_name(SegmentId(4)), &[0; 4096]);
    disk.put("notes.txt", b"mine");
    let left = open(&disk);
    assert_eq!(left.next_segment, SegmentId(5));
    assert_eq!(left.leftovers, ["0000000000000004.prep", "x.tmp"]);
    assert_eq!((left.store, left.end), (None, None));
}

#[test]
fn a_whole_store_is_read_back() {
    // Order, content, numbers and ends are those that were written, twice the same.
    let builder = store();
    let found = open(&builder.disk);
    assert_eq!(read_all(&builder.disk, &found).unwrap(), builder.records);
    assert_eq!((found.first, found.next), (Lsn(1), Lsn(9)));
    assert_eq!(found.end, Some(builder.end()));
    assert_eq!(
        (found.next_segment, found.incarnation),
        (SegmentId(4), Incarnation(3))
    );
    assert_eq!((found.report.records, found.report.segments), (8, 3));
    assert_eq!((found.report.cut_bytes, found.report.torn_at), (0, None));
    assert!(!found.report.clean_close && found.superseded.is_empty());
    assert_eq!(open(&builder.disk), found);
    assert_eq!(builder.disk.changes(), 0);
}

#[test]
fn a_close_frame_is_seen_also_when_the_file_was_cut_behind_it() {
    // Cutting the last segment at its close is legal; without the close it would be damage.
    let mut builder = store();
    let at = builder.close();
    let found = open(&builder.disk);
    assert!(found.report.clean_close);
    assert_eq!(found.next, Lsn(9));
    builder
        .disk
        .edit(&builder.name(), |bytes| bytes.truncate(at as usize + 512));
    assert_eq!(open(&builder.disk), found);
    builder
        .disk
        .edit(&builder.name(), |bytes| bytes.truncate(at as usize));
    assert_eq!(refusal(&builder.disk), (ErrorKind::Corrupt, 3, at));
}

#[test]
fn a_torn_tail_is_cut_and_reported() {
    // The last group, half arrived in any way, is dropped as a whole.
    let builder = store();
    let (segment, offset, length, _) = *builder.frames.last().unwrap();
    for sector in 0..length / 512 {
        let disk = builder.disk.copy();
        let at = offset as usize + sector * 512;
        disk.edit(&builder.name(), |bytes| bytes[at..at + 512].fill(0));
        let found = open(&disk);
        assert_eq!(found.next, Lsn(8));
        let next = Lsn(8);
        assert_eq!(
            found.report.torn_at,
            Some(Torn {
                segment,
                offset,
                next
            })
        );
        assert!(found.report.cut_bytes > 0);
        assert_eq!(read_all(&disk, &found).unwrap(), builder.records[..7]);
        assert_eq!(open(&disk), found);
        let error = recover_in(&disk, RecoveryMode::Strict).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt);
    }
}

#[test]
fn damage_before_a_frame_that_says_so_is_refused() {
    // A later frame that was written after the missing one was durable proves the damage.
    let mut builder = Builder::new(SMALL);
    let first = builder.append(&[b"one"]);
    builder.append(&[b"two"]);
    builder.append(&[b"three"]);
    for at in [first, first + 20, first + 64, first + 511] {
        let disk = builder.disk.copy();
        disk.edit(&builder.name(), |bytes| bytes[at as usize] ^= 1);
        assert_eq!(refusal(&disk), (ErrorKind::Corrupt, 1, first));
    }
    let disk = builder.disk.copy();
    disk.edit(&builder.name(), |bytes| bytes[first as usize] ^= 1);
    let error = recover_in(&disk, RecoveryMode::Tail).unwrap_err();
    assert_eq!(
        (error.number("first_lsn"), error.number("last_lsn")),
        (Some(1), Some(1))
    );
}

#[test]
fn frames_in_flight_together_prove_nothing() {
    // With a window of two the second may arrive without the first; a third may not.
    let mut builder = Builder::new(SMALL);
    builder.append(&[b"zero"]);
    let first = builder.append(&[b"one"]);
    builder.append_after(&[b"two"], Lsn(1));
    let disk = builder.disk.copy();
    disk.edit(&builder.name(), |bytes| bytes[first as usize] ^= 1);
    let found = open(&disk);
    assert_eq!(found.next, Lsn(2));
    assert_eq!(found.report.torn_at.unwrap().offset, first);
    builder.append_after(&[b"three"], Lsn(1));
    let disk = builder.disk.copy();
    disk.edit(&builder.name(), |bytes| bytes[first as usize] ^= 1);
    assert_eq!(refusal(&disk), (ErrorKind::Corrupt, 1, first));
}

#[test]
fn a_watermark_and_a_close_guard_the_last_group() {
    // With either behind it, damage to the last group is no torn tail.
    for close in [false, true] {
        let mut builder = Builder::new(SMALL);
        let at = builder.append(&[b"only"]);
        if close {
            builder.close()
        } else {
            builder.watermark()
        };
        builder
            .disk
            .edit(&builder.name(), |bytes| bytes[at as usize + 70] ^= 1);
        assert_eq!(refusal(&builder.disk), (ErrorKind::Corrupt, 1, at));
    }
}

#[test]
fn a_file_between_two_others_is_missed() {
    // Removing the oldest is truncation, removing one in the middle is damage.
    let builder = store();
    let disk = builder.disk.copy();
    disk.remove(&segment_name(SegmentId(2)));
    assert_eq!(refusal(&disk), (ErrorKind::Corrupt, 2, 0));
    let disk = builder.disk.copy();
    disk.remove(&segment_name(SegmentId(1)));
    let found = open(&disk);
    assert_eq!((found.first, found.next), (Lsn(4), Lsn(9)));
    assert_eq!(read_all(&disk, &found).unwrap(), builder.records[3..]);
    disk.remove(&segment_name(SegmentId(2)));
    assert_eq!(open(&disk).first, Lsn(5));
}

#[test]
fn a_segment_that_was_continued_must_reach_its_end() {
    // The successor says where it ended: longer is ignored, shorter is damage.
    let mut builder = store();
    builder.reopen();
    builder.cut_predecessor();
    let found = open(&builder.disk);
    assert_eq!(found.next, Lsn(9));
    assert_eq!(read_all(&builder.disk, &found).unwrap(), builder.records);
    let third = segment_name(SegmentId(3));
    builder
        .disk
        .edit(&third, |bytes| bytes.truncate(bytes.len() - 1));
    assert_eq!(refusal(&builder.disk), (ErrorKind::Corrupt, 3, 0));
}

#[test]
fn a_segment_without_records_is_superseded() {
    // Opening and closing again and again leaves one such file, not many.
    let mut builder = store();
    let end = builder.end();
    builder.reopen();
    let found = open(&builder.disk);
    assert_eq!((found.next, found.end), (Lsn(9), Some(end)));
    assert_eq!(found.superseded, [segment_name(SegmentId(4))]);
    assert_eq!(found.next_segment, SegmentId(5));
    builder.close();
    builder.reopen();
    let found = open(&builder.disk);
    assert_eq!(found.end, Some(end));
    assert_eq!(
        found.superseded,
        [segment_name(SegmentId(4)), segment_name(SegmentId(5))]
    );
    builder.append(&[b"nine"]);
    let found = open(&builder.disk);
    assert_eq!(found.superseded, [segment_name(SegmentId(4))]);
    assert_eq!(read_all(&builder.disk, &found).unwrap(), builder.records);
}

#[test]
fn a_prepared_file_with_a_segments_name_is_never_used() {
    // It has no header and no trace of a frame: the segment before it is the last.
    let builder = store();
    let name = segment_name(SegmentId(4));
    builder.disk.put(&name, &vec![0; 16384]);
    let found = open(&builder.disk);
    assert_eq!(found.leftovers, std::slice::from_ref(&name));
    assert_eq!((found.next, found.next_segment), (Lsn(9), SegmentId(5)));
    builder
        .disk
        .edit(&name, |bytes| bytes[..9].copy_from_slice(b"scribbled"));
    assert_eq!(open(&builder.disk).leftovers, std::slice::from_ref(&name));
    builder.disk.put(&name, b"cut");
    assert_eq!(refusal(&builder.disk), (ErrorKind::Corrupt, 4, 0));
    let mut bytes = builder.disk.get(&segment_name(SegmentId(3))).unwrap();
    bytes[..512].fill(0);
    builder.disk.put(&name, &bytes);
    assert_eq!(refusal(&builder.disk), (ErrorKind::Corrupt, 4, 0));
}

#[test]
fn a_lost_header_is_damage_if_anything_is_behind_it() {
    // In the middle always, at the end if something was written.
    let builder = store();
    for segment in 1..=3 {
        let disk = builder.disk.copy();
        disk.edit(&segment_name(SegmentId(segment)), |bytes| {
            bytes[..512].fill(0);
        });
        assert_eq!(refusal(&disk), (ErrorKind::Corrupt, segment, 0));
    }
}

#[test]
fn a_file_of_another_log_or_under_another_name_is_refused() {
    // Copies and strays are not taken for segments.
    let builder = store();
    let disk = builder.disk.copy();
    disk.put(
        &segment_name(SegmentId(4)),
        &disk.get(&segment_name(SegmentId(3))).unwrap(),
    );
    assert_eq!(refusal(&disk).0, ErrorKind::Corrupt);
    let mut other = Builder::with_store(SMALL, StoreId([7; 16]));
    other.append(&[b"theirs"]);
    for segment in [1, 4] {
        let disk = builder.disk.copy();
        let name = segment_name(SegmentId(segment));
        disk.put(&name, &other.disk.get(&segment_name(SegmentId(1))).unwrap());
        assert_eq!(refusal(&disk).0, ErrorKind::Corrupt);
    }
}

#[test]
fn an_unknown_version_anywhere_is_refused_untouched() {
    // Both versions are named; the rest of the log is not looked at.
    let builder = store();
    for segment in 1..=3 {
        for (field, value) in [(8, 2_u32), (20, 0x10)] {
            let disk = builder.disk.copy();
            disk.edit(&segment_name(SegmentId(segment)), |bytes| {
                bytes[field..field + 4].copy_from_slice(&value.to_le_bytes());
                let crc = crate::codec::crc32c(0, &bytes[..28]);
                bytes[28..32].copy_from_slice(&crc.to_le_bytes());
            });
            assert_eq!(refusal(&disk).0, ErrorKind::Format);
        }
    }
}

#[test]
fn a_feature_that_forbids_writing_is_told() {
    // The log is read, and the owner is told not to write.
    let builder = Builder::new(SMALL);
    let header = SegmentHeader {
        ro_compat: 8,
        ..builder.header().clone()
    };
    let (block, _) = header.encode();
    builder.disk.edit(&builder.name(), |bytes| {
        bytes[..512].copy_from_slice(&block);
    });
    assert_eq!(open(&builder.disk).write_bar, Some(WriteBar::Features(8)));
}

#[test]
fn an_unreadable_sector_is_weighed_like_a_missing_frame() {
    // In the last frame it is a torn tail, before proof it is damage, far behind it is damage.
    let builder = store();
    let (_, offset, ..) = *builder.frames.last().unwrap();
    let disk = builder.disk.copy();
    disk.spoil(&builder.name(), offset + 600);
    assert_eq!(open(&disk).report.torn_at.unwrap().offset, offset);
    let disk = builder.disk.copy();
    disk.spoil(&builder.name(), 512);
    assert_eq!(refusal(&disk), (ErrorKind::Corrupt, 3, 512));
    let disk = builder.disk.copy();
    disk.spoil(&builder.name(), 16383);
    assert_eq!(refusal(&disk).0, ErrorKind::Corrupt);
    let disk = builder.disk.copy();
    disk.spoil(&builder.name(), 0);
    assert_eq!(refusal(&disk).0, ErrorKind::Corrupt);
}

#[test]
fn rubbish_behind_the_end_is_cut() {
    // Garbage in the last block and behind the file's stated length changes no record.
    let builder = store();
    builder.disk.edit(&builder.name(), |bytes| {
        bytes[16000] = 7;
        bytes.extend_from_slice(b"trailing");
    });
    let found = open(&builder.disk);
    assert_eq!(found.next, Lsn(9));
    assert!(found.report.torn_at.is_some());
}

#[test]
fn limits_of_the_writer_count_when_reading() {
    // A store written with other block sizes and larger limits is read as it is.
    let limits = SegmentLimits {
        block_bytes: 4096,
        window: 1,
        record_bytes_max: 100_000,
        group_bytes_max: 200_000,
        segment_bytes: 1 << 20,
    };
    let mut builder = Builder::new(limits);
    builder.append(&[vec![1; 100_000], vec![2; 99_000]]);
    builder.limits = SMALL;
    builder.reopen();
    builder.append(&[b"small"]);
    let found = open(&builder.disk);
    assert_eq!(read_all(&builder.disk, &found).unwrap(), builder.records);
}

#[test]
fn salvage_shows_what_is_whole_and_reports_the_rest() {
    // A hole in the middle costs its records only, and the log may not be written.
    let builder = store();
    let (_, offset, ..) = builder.frames[1];
    builder.disk.edit(&segment_name(SegmentId(1)), |bytes| {
        bytes[offset as usize + 80] ^= 1;
    });
    builder.disk.edit(&builder.name(), |bytes| bytes[512] ^= 1);
    assert!(recover_in(&builder.disk, RecoveryMode::Tail).is_err());
    let found = recover_in(&builder.disk, RecoveryMode::Salvage).unwrap();
    assert_eq!(found.write_bar, Some(WriteBar::Salvage));
    let damage: Vec<_> = found
        .report
        .damage
        .iter()
        .map(|damage| {
            (
                damage.segment.0,
                damage.first.0,
                damage.last.map(|last| last.0),
            )
        })
        .collect();
    assert_eq!(damage, [(1, 3, Some(3)), (3, 5, Some(7))]);
    let mut whole = builder.records.clone();
    whole.drain(4..7);
    whole.remove(2);
    assert_eq!(read_all(&builder.disk, &found).unwrap(), whole);
}
