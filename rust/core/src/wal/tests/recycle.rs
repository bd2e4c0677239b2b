//! Truncated segments that are written again: what they held is never shown, and never mistaken.

use std::{path::Path, sync::Arc};

use super::rig::{Rig, small};
use crate::{
    ErrorKind,
    ids::{Lsn, SegmentId},
    io::{Access, Blocking, Buffer, Disk, File},
    sim::{Fault, Kind, SimDisk, Trouble, Zombies},
    wal::{
        reader::{Catalogue, Reader},
        recovery::{Recovered, RecoveryMode, recover},
        recycle::Mark,
        segment::segment_name,
        settings::LogSettings,
    },
};

const RECORD_BYTES: usize = 1000;

/// The record with this LSN.
fn record(lsn: u64) -> Vec<u8> {
    let mut bytes = vec![lsn as u8; RECORD_BYTES];
    bytes[..8].copy_from_slice(&lsn.to_le_bytes());
    bytes
}

fn with_dir<R>(disk: &SimDisk, run: impl FnOnce(&mut Blocking, &File) -> R) -> R {
    let mut backend = disk.backend().unwrap();
    let mut io = Blocking::new(&mut *backend);
    let dir = io.open_dir(Path::new("/log"), false).unwrap();
    run(&mut io, &dir)
}

fn names(disk: &SimDisk) -> Vec<String> {
    with_dir(disk, |io, dir| io.list(dir).unwrap())
}

fn spares(disk: &SimDisk) -> usize {
    let is_spare = |name: &String| name.ends_with(".spare");
    names(disk).iter().filter(|name| is_spare(name)).count()
}

/// Segments of one size.
fn even() -> LogSettings {
    LogSettings {
        segment_first_bytes: small().segment_bytes,
        ..small()
    }
}

fn append(rig: &mut Rig, count: u64) {
    for _ in 0..count {
        let next = rig.opened.appender.marks().appended.plus(1);
        rig.submit(&record(next.0)).unwrap();
        rig.settle();
    }
}

/// Appends one record at a time until the active segment is one that was used before, dropping
/// what can be dropped; how many segments that took.
fn until_recycled(rig: &mut Rig) -> u64 {
    for rotations in 0..10 {
        if header_is_recycled(&rig.disk) {
            return rotations;
        }
        let before = rig.opened.appender.counts().rotations;
        while rig.opened.appender.counts().rotations == before {
            append(rig, 1);
        }
        rig.truncate_before(Lsn(u64::MAX)).unwrap();
    }
    panic!("no segment was used again: {:?}", names(&rig.disk));
}

fn found(disk: &SimDisk, mode: RecoveryMode) -> crate::Result<Recovered> {
    with_dir(disk, |io, dir| recover(io, dir, mode))
}

fn header_is_recycled(disk: &SimDisk) -> bool {
    let found = found(disk, RecoveryMode::Tail).unwrap();
    found
        .segments
        .last()
        .is_some_and(|last| last.header.is_recycled)
}

/// Everything that can be read, from a catalogue of one's own.
fn read(disk: &SimDisk, recovered: &Recovered) -> crate::Result<Vec<Vec<u8>>> {
    with_dir(disk, |io, dir| {
        let catalogue = Arc::new(Catalogue::new(recovered));
        let mut reader = Reader::new(catalogue, dir.clone(), recovered.first, None)?;
        let mut records = Vec::new();
        while let Some(batch) = reader.next_batch(io, recovered.next.previous(), 3)? {
            records.extend(batch.payloads().map(<[u8]>::to_vec));
        }
        Ok(records)
    })
}

fn check(disk: &SimDisk, mode: RecoveryMode) -> Recovered {
    let recovered = found(disk, mode).unwrap();
    let expected: Vec<_> = (recovered.first.0..recovered.next.0).map(record).collect();
    assert_eq!(read(disk, &recovered).unwrap(), expected);
    recovered
}

fn edit(disk: &SimDisk, id: SegmentId, at: u64, bytes: &[u8]) {
    with_dir(disk, |io, dir| {
        let file = io.open(dir, &segment_name(id), Access::WRITE).unwrap();
        let mut buffer = Buffer::zeroed(bytes.len());
        buffer.copy_from_slice(bytes);
        io.write(&file, at, bytes.len(), buffer, true).unwrap();
    });
}

#[test]
fn a_truncated_segment_is_written_again() {
    // A consumer that truncates behind its reading uses the same few files for ever, and reads
    // back what was appended.
    let disk = SimDisk::seeded(1);
    let mut rig = Rig::open(&disk, even(), 2).unwrap();
    let took = until_recycled(&mut rig);
    assert!(took <= 4, "{took} segments");
    for _ in 0..20 {
        append(&mut rig, 20);
        let last = rig.opened.appender.marks().durable;
        rig.truncate_before(Lsn(last.0 - 5)).unwrap();
        check(&disk, RecoveryMode::Tail);
        assert!(spares(&disk) <= 2, "{:?}", names(&disk));
    }
    let used = disk.with(|world| world.volume.used_bytes());
    assert!(used <= 6 * even().segment_bytes, "{used}");
    rig.close().unwrap();
    assert_eq!(spares(&disk), 0, "{:?}", names(&disk));
    check(&disk, RecoveryMode::Strict);
}

#[test]
fn spares_of_a_killed_owner_go_with_the_next_open() {
    // They never pile up, whatever the number of kills.
    let disk = SimDisk::seeded(1);
    let mut killed = disk.clone();
    for _ in 0..4 {
        let mut rig = Rig::open(&killed, even(), 2).unwrap();
        until_recycled(&mut rig);
        append(&mut rig, 70);
        rig.truncate_before(Lsn(u64::MAX)).unwrap();
        assert_eq!(spares(&killed), 2, "{:?}", names(&killed));
        killed = killed.with(|world| world.killed(Zombies::default()));
    }
    let rig = Rig::open(&killed, even(), 2).unwrap();
    assert_eq!(spares(&killed), 0, "{:?}", names(&killed));
    drop(rig);
}

#[test]
fn a_segment_of_an_earlier_opening_is_removed() {
    // The writes of its owner may still be on their way to the file.
    let disk = SimDisk::seeded(1);
    let mut rig = Rig::open(&disk, even(), 1).unwrap();
    append(&mut rig, 28);
    rig.close().unwrap();
    let mut rig = Rig::open(&disk, even(), 1).unwrap();
    append(&mut rig, 1);
    rig.truncate_before(Lsn(u64::MAX)).unwrap();
    assert_eq!(spares(&disk), 0, "{:?}", names(&disk));
}

#[test]
fn what_an_earlier_segment_left_is_no_torn_tail() {
    // Behind the tail lie old frames: strict recovery does not refuse them, and nothing is cut.
    let disk = SimDisk::seeded(1);
    let mut rig = Rig::open(&disk, even(), 2).unwrap();
    until_recycled(&mut rig);
    append(&mut rig, 3);
    let killed = disk.with(|world| world.killed(Zombies::default()));
    let recovered = check(&killed, RecoveryMode::Strict);
    let end = recovered.end.unwrap();
    assert!(recovered.segments.last().unwrap().header.is_recycled);
    assert_eq!(recovered.report.torn_at, None);
    // What follows are frames indeed; a header of this segment among them is a torn tail.
    append(&mut rig, 1);
    let sectors = |disk: &SimDisk, count: usize| {
        with_dir(disk, |io, dir| {
            let name = segment_name(end.segment);
            let file = io.open(dir, &name, Access::READ).unwrap();
            let buffer = Buffer::zeroed(count * 512);
            io.read(&file, end.offset, count * 512, buffer).unwrap().1
        })
    };
    let is_old_frame = |sector: &[u8]| &sector[..4] == b"MRfr";
    assert!(sectors(&killed, 8).chunks(512).any(is_old_frame));
    edit(&killed, end.segment, end.offset, &sectors(&disk, 1));
    let error = found(&killed, RecoveryMode::Strict).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    let torn = check(&killed, RecoveryMode::Tail);
    assert_eq!(torn.next, recovered.next);
    assert_eq!(torn.report.cut_bytes, 1536, "a frame of one record");
}

#[test]
fn a_recycled_segment_that_lost_its_header_is_damage() {
    // A file that was never used, and one whose header was lost, hold the same old frames: frames
    // of the new segment tell them apart, and without the mark or the segment before it everything
    // counts.
    let disk = SimDisk::seeded(1);
    let mut rig = Rig::open(&disk, even(), 2).unwrap();
    until_recycled(&mut rig);
    append(&mut rig, 25);
    let used = disk.with(|world| world.killed(Zombies::default()));
    let recovered = check(&used, RecoveryMode::Tail);
    let last = recovered.segments.last().unwrap();
    let (header, end) = (last.header.clone(), last.end.unwrap().offset);
    assert!(header.is_recycled && recovered.segments.len() == 2);
    let refused = || {
        let error = found(&used, RecoveryMode::Tail).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt);
        assert_eq!(error.number("segment"), Some(i128::from(header.segment.0)));
    };
    edit(&used, header.segment, 0, &[0; 512]);
    refused();
    for at in (512..end).step_by(512) {
        edit(&used, header.segment, at, &[0xa5; 512]);
    }
    // The cut of the segment before it tells, too: it waits for this header.
    let error = found(&used, RecoveryMode::Tail).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    with_dir(&used, |io, dir| {
        let name = recovered.segments[0].name();
        let file = io.open(dir, &name, Access::WRITE).unwrap();
        io.truncate(&file, header.limits.segment_bytes).unwrap();
    });
    let unused = found(&used, RecoveryMode::Tail).unwrap();
    assert_eq!(unused.next, header.base, "no frame of it is left");
    let other = Mark::new(&header, SegmentId(header.segment.0 + 1));
    let mark = Mark::new(&header, header.segment);
    let at = header.limits.segment_bytes - 512;
    edit(&used, header.segment, at, &other.encode(512));
    refused();
    let (mut of_another_log, mut of_another_opening) = (mark, mark);
    of_another_log.store.0[0] ^= 1;
    of_another_opening.incarnation.0 += 1;
    for other in [of_another_log, of_another_opening] {
        edit(&used, header.segment, at, &other.encode(512));
        refused();
    }
    edit(&used, header.segment, at, &mark.encode(512));
    assert_eq!(found(&used, RecoveryMode::Tail).unwrap(), unused);
    with_dir(&used, |io, dir| {
        io.unlink(dir, &recovered.segments[0].name()).unwrap();
    });
    refused();
}

#[test]
fn a_reader_elsewhere_keeps_the_segment_it_reads() {
    // A reader that the owner knows nothing of, as in another process, stands in a segment that is
    // truncated; the owner goes on through more segments than there are spares.
    let disk = SimDisk::seeded(1);
    let mut rig = Rig::open(&disk, even(), 2).unwrap();
    append(&mut rig, 40);
    let elsewhere = disk.new_process();
    let recovered = found(&elsewhere, RecoveryMode::Tail).unwrap();
    let mut backend = elsewhere.backend().unwrap();
    let mut io = Blocking::new(&mut *backend);
    let dir = io.open_dir(Path::new("/log"), false).unwrap();
    let catalogue = Arc::new(Catalogue::new(&recovered));
    let mut reader = Reader::new(catalogue, dir, Lsn(1), None)
        .unwrap()
        .with_chunk(4096);
    let up_to = recovered.next.previous();
    let first = reader.next_batch(&mut io, up_to, 1).unwrap().unwrap();
    assert_eq!(first.payloads().next(), Some(&*record(1)));
    for _ in 0..6 {
        rig.truncate_before(Lsn(u64::MAX)).unwrap();
        append(&mut rig, 30);
    }
    let end = recovered.segments[0].end.unwrap().next;
    for lsn in 2..end.0 {
        let batch = reader.next_batch(&mut io, up_to, 1).unwrap().unwrap();
        assert_eq!(batch.payloads().next(), Some(&*record(lsn)), "LSN {lsn}");
    }
    let error = reader.next_batch(&mut io, up_to, 1).unwrap_err();
    assert_eq!(error.errno(), Some(libc::ENOENT), "{error}");
    check(&disk, RecoveryMode::Tail);
}

#[test]
fn a_spare_that_cannot_be_used_is_given_up() {
    // Whatever fails about it, a full disk included, a new file takes its place and nobody notices.
    for kind in [
        Kind::Open,
        Kind::Lock,
        Kind::Allocate,
        Kind::Write,
        Kind::Sync,
    ] {
        for nth in 1..4 {
            let disk = SimDisk::seeded(1);
            let mut rig = Rig::open(&disk, even(), 2).unwrap();
            append(&mut rig, 70);
            rig.truncate_before(Lsn(u64::MAX)).unwrap();
            assert_eq!(spares(&disk), 2);
            let fault = |nth| Fault {
                kind,
                nth,
                forever: false,
                trouble: Trouble::Fails(libc::ENOSPC),
            };
            disk.with(|world| world.faults.order(fault(nth)));
            append(&mut rig, 90);
            disk.with(|world| world.faults.clear());
            check(&disk, RecoveryMode::Tail);
            rig.close().unwrap();
            assert_eq!(spares(&disk), 0, "{kind:?} {nth}: {:?}", names(&disk));
        }
    }
}
