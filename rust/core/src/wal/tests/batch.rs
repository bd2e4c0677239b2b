//! Batches: laid out once, written from there, and the memory they lie in.

use std::path::Path;

use super::rig::{Rig, small};
use crate::{
    error::{Error, ErrorKind},
    fork::Origin,
    ids::{Incarnation, Lsn, SegmentId, StoreId},
    io::{Blocking, Buffer, HUGE},
    sim::SimDisk,
    sync::Arc,
    wal::{
        frame::{FRAME_HEADER_BYTES, FrameWriter, Lay, Stamp},
        group::{Batch, Entry, in_place},
        log::Payload,
        recovery::{RecoveryMode, recover},
        segment::{SegmentHeader, SegmentLimits},
        settings::LogSettings,
        stock::Stock,
    },
};

fn stock(bytes_max: usize) -> Arc<Stock> {
    let stock = Stock::new(Origin::here().unwrap(), bytes_max);
    stock.rouse();
    stock
}

fn writer() -> FrameWriter {
    let header = SegmentHeader {
        store: StoreId([3; 16]),
        segment: SegmentId(1),
        incarnation: Incarnation(1),
        base: Lsn::FIRST,
        predecessor: None,
        limits: SegmentLimits {
            block_bytes: 512,
            window: 4,
            record_bytes_max: 4000,
            group_bytes_max: 60_000,
            segment_bytes: 100_000,
        },
        created_ns: 1,
        ro_compat: 0,
        is_recycled: false,
    };
    let (_, crc) = header.encode();
    FrameWriter::new(header, crc)
}

fn records(lengths: &[usize]) -> Vec<Payload> {
    let bytes = |(at, length): (usize, &usize)| vec![at as u8 + 1; *length].into();
    lengths.iter().enumerate().map(bytes).collect()
}

fn fill(batch: &mut Batch, records: &[Payload]) {
    for record in records {
        batch.push(record).unwrap();
    }
}

const STAMP: Stamp = Stamp {
    durable: Lsn(0),
    timestamp_ns: 9,
};

#[test]
fn a_frame_made_in_place_is_the_frame_made_by_copying() {
    // Whoever reads it cannot tell: same bytes, also where the memory held other bytes before.
    let stock = stock(1 << 20);
    for (lengths, old) in [
        (&[3000][..], 4 << 10),
        (&[900, 0, 3999, 7], 8 << 10),
        (&[500; 40], 32 << 10),
    ] {
        let records = records(lengths);
        let copied = writer().records(&records, STAMP, None).unwrap();
        let mut old = stock.take(old).unwrap();
        old.fill(0xA5);
        stock.keep(old);
        // No hint at all: it grows on the way.
        let mut batch = Batch::new(&stock, 0, 0).unwrap();
        fill(&mut batch, &records);
        let mut entries = batch.into_entries();
        let bytes: usize = entries.iter().map(Lay::frame_bytes).sum();
        let again = writer().records(&entries, STAMP, None).unwrap();
        assert_eq!(again.buffer[..again.length], copied.buffer[..copied.length]);
        let buffer = in_place(&mut entries, copied.length).unwrap();
        let count = records.len() as u32;
        let laid = writer().laid(buffer, bytes, count, STAMP).unwrap();
        assert_eq!((laid.length, laid.records), (copied.length, copied.records));
        assert_eq!(laid.buffer[..laid.length], copied.buffer[..copied.length]);
    }
}

#[test]
fn only_a_group_that_is_one_batch_with_room_is_made_in_place() {
    // Two batches in a group, or a buffer that ends before the padding, are copied.
    let stock = stock(1 << 20);
    let entries = |lengths: &[usize]| {
        let mut batch = Batch::new(&stock, 2, 100).unwrap();
        let records = records(lengths);
        fill(&mut batch, &records);
        batch.into_entries()
    };
    let mut two = entries(&[2000, 2000]);
    two.extend(entries(&[3000]));
    assert!(in_place(&mut two, 4096).is_none());
    let mut short = entries(&[2000, 2000]);
    assert!(in_place(&mut short, 1 << 20).is_none());
    assert!(in_place(&mut short, 4096).is_some());
    assert!(in_place(&mut [], 512).is_none());
}

#[test]
fn what_is_kept_is_bounded_and_the_largest_ask_for_huge_pages() {
    // A stock of 5 MiB keeps two buffers of 2 MiB, not three, and lends them again; a small wish
    // does not get a large buffer.
    let stock = stock(5 << 20);
    let lent: Vec<_> = (0..3).map(|_| stock.lend(1_000_000).unwrap()).collect();
    assert!(lent.iter().all(|one| one.len() == HUGE));
    drop(lent);
    assert_eq!(stock.kept_bytes(), 2 * HUGE);
    let first = stock.lend(1_000_000).unwrap();
    assert_eq!(stock.kept_bytes(), HUGE);
    assert_eq!(stock.take(100_000).unwrap().len(), 102_400);
    drop(first);
    stock.rest();
    assert_eq!(stock.kept_bytes(), 0);
}

#[test]
fn huge_pages_that_round_up_are_limited_however_many_are_lent() {
    // Half a megabyte in a page of two: 16 of them, and the others as large as asked for; when
    // they are gone there is room again.
    let stock = stock(0);
    for _ in 0..2 {
        let lent: Vec<_> = (0..20).map(|_| stock.lend(600 << 10).unwrap()).collect();
        let huge = lent.iter().filter(|one| one.len() == HUGE).count();
        assert_eq!(huge, 16);
        assert!(
            lent.iter()
                .filter(|one| one.len() != HUGE)
                .all(|one| one.len() == 600 << 10)
        );
    }
}

#[test]
fn a_small_batch_holds_little_more_than_its_records() {
    // What waits on the ring is bounded by its bytes, also where a much larger buffer was lent;
    // the frame is the same.
    let stock = stock(1 << 20);
    for lengths in [&[0][..], &[1], &[1; 40], &[900, 0, 3999, 7], &[500; 40]] {
        stock.keep(Buffer::zeroed(64 << 10));
        let records = records(lengths);
        let mut batch = Batch::new(&stock, 0, 0).unwrap();
        fill(&mut batch, &records);
        let entries = batch.into_entries();
        let bytes: usize = entries.iter().map(Lay::frame_bytes).sum();
        let held: usize = entries.iter().map(Entry::held_bytes).sum();
        assert!(
            held <= 2 * (FRAME_HEADER_BYTES + bytes),
            "{held} for {bytes}"
        );
        let copied = writer().records(&records, STAMP, None).unwrap();
        let again = writer().records(&entries, STAMP, None).unwrap();
        assert_eq!(again.buffer[..again.length], copied.buffer[..copied.length]);
    }
}

#[test]
fn a_buffer_that_is_too_large_leaves_the_others_and_one_of_the_largest_group_is_not() {
    // Rounding up to huge pages takes a batch near the limit above it; that empties no stock.
    let stock = stock(4 << 20);
    drop((stock.lend(1_000_000).unwrap(), stock.lend(200_000).unwrap()));
    let before = stock.kept_bytes();
    drop(stock.lend((4 << 20) + 100).unwrap());
    assert_eq!(stock.kept_bytes(), before);

    for (group, record, pages) in [(4 << 20, (1 << 20) - 6, 3), (1 << 20, (1 << 18) - 6, 1)] {
        let disk = SimDisk::seeded(1);
        let settings = LogSettings {
            group_bytes_max: group,
            ..large()
        };
        let mut rig = Rig::open(&disk, settings, 4).unwrap();
        let appender = rig.opened.appender.clone();
        appender.submit_many(&records(&[record; 4])).unwrap();
        rig.settle();
        assert_eq!(appender.0.stock.kept_bytes(), pages * HUGE);
    }
}

#[test]
fn huge_pages_that_were_refused_are_small_ones_and_count_for_nothing() {
    // What there is no memory for takes no place from those that come later.
    let stock = stock(0);
    assert!(stock.take(1 << 50).is_err());
    for wanted in [600 << 10, HUGE] {
        let refused = Buffer::try_huge(usize::MAX);
        let small = stock.huge_or_small(refused, wanted).unwrap();
        assert!(small.len() >= wanted && !small.len().is_multiple_of(HUGE));
    }
    let lent: Vec<_> = (0..16).map(|_| stock.lend(600 << 10).unwrap()).collect();
    assert!(lent.iter().all(|one| one.len() == HUGE));
}

/// Frames of a few hundred kilobytes.
fn large() -> LogSettings {
    LogSettings {
        segment_bytes: 8 << 20,
        segment_first_bytes: 8 << 20,
        record_bytes_max: 1 << 20,
        group_bytes_max: 4 << 20,
        ring_bytes: 16 << 20,
        ..small()
    }
}

#[test]
fn large_batches_get_a_group_each_where_several_may_be_in_flight() {
    // Each is written from where it lies; with one in flight a sync for all of them is cheaper.
    for (window, groups) in [(4, 4), (1, 1)] {
        let disk = SimDisk::seeded(1);
        let mut rig = Rig::open(&disk, large(), window).unwrap();
        let appender = rig.opened.appender.clone();
        rig.submit(b"before").unwrap();
        appender.submit_many(&records(&[200 << 10; 2])).unwrap();
        appender.submit_many(&records(&[300 << 10; 1])).unwrap();
        rig.submit(b"behind").unwrap();
        rig.settle();
        assert_eq!(appender.counts().groups, groups);
        assert_eq!(appender.marks().durable, Lsn(5));
    }
}

#[test]
fn buffers_of_batches_come_back_and_a_log_that_rests_keeps_none() {
    // After the answer the memory waits for the next batch; after a pause it is given back.
    let disk = SimDisk::seeded(1);
    let mut rig = Rig::open(&disk, large(), 4).unwrap();
    let appender = rig.opened.appender.clone();
    for _ in 0..5 {
        appender.submit_many(&records(&[300 << 10; 2])).unwrap();
        rig.settle();
        assert_eq!(appender.0.stock.kept_bytes(), HUGE);
    }
    disk.clock().advance(std::time::Duration::from_millis(60));
    rig.settle();
    assert_eq!(appender.counts().marks, 1);
    assert_eq!(appender.0.stock.kept_bytes(), 0);
}

#[test]
fn a_log_that_rests_keeps_nothing_of_a_batch_that_is_not_written() {
    // Refused before the first group, or after a pause: no rest to come would free it.
    let disk = SimDisk::seeded(1);
    let mut rig = Rig::open(&disk, large(), 4).unwrap();
    let appender = rig.opened.appender.clone();
    let given_up = || {
        let mut batch = appender.batch(2, 600 << 10).unwrap();
        fill(&mut batch, &records(&[300 << 10; 2]));
        drop(batch);
        appender.0.stock.kept_bytes()
    };
    for _ in 0..2 {
        assert_eq!(given_up(), 0);
        appender.submit_many(&records(&[300 << 10; 2])).unwrap();
        rig.settle();
        assert_eq!(given_up(), HUGE);
        disk.clock().advance(std::time::Duration::from_millis(60));
        rig.settle();
    }
    assert_eq!(given_up(), 0);
}

#[test]
fn a_closed_or_failed_log_keeps_nothing_and_makes_no_room() {
    // Neither what it had nor what comes back; a batch that it would refuse is not copied first.
    for fails in [false, true] {
        let disk = SimDisk::seeded(1);
        let mut rig = Rig::open(&disk, large(), 4).unwrap();
        let appender = rig.opened.appender.clone();
        appender.submit_many(&records(&[300 << 10; 2])).unwrap();
        rig.settle();
        let late = appender.batch(2, 600 << 10).unwrap();
        drop(appender.batch(2, 600 << 10).unwrap());
        assert_eq!(appender.0.stock.kept_bytes(), HUGE);
        if fails {
            appender.0.poison(Error::invalid("for a test"));
        } else {
            appender.request_close();
        }
        assert_eq!(appender.0.stock.kept_bytes(), 0);
        drop(late);
        rig.settle();
        assert_eq!(appender.0.stock.kept_bytes(), 0);
        let refused = appender.batch(2, 600 << 10).unwrap_err().kind();
        let reason = [ErrorKind::Closed, ErrorKind::Poisoned][usize::from(fails)];
        assert_eq!(refused, reason);
    }
}

#[test]
fn a_batch_that_breaks_a_limit_is_refused_before_there_is_room_for_it() {
    // Its sum may be gigabytes; no memory is asked for, and none that is kept has to go.
    let disk = SimDisk::seeded(1);
    let mut rig = Rig::open(&disk, large(), 4).unwrap();
    let appender = rig.opened.appender.clone();
    appender.submit_many(&records(&[300 << 10; 2])).unwrap();
    rig.settle();
    for lengths in [&[1 << 20; 5][..], &[1; 65]] {
        let refused = appender.submit_many(&records(lengths)).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::TooLarge);
        assert_eq!(appender.0.stock.kept_bytes(), HUGE);
    }
}

#[test]
fn a_batch_that_waits_in_line_is_written_whole_or_given_back() {
    // Admitted later, from the same memory; cancelled, its memory returns to the stock.
    use crate::wal::log::{Claimed, Pending};
    struct Deaf;
    impl crate::sync::Wake for Deaf {
        fn wake(&self) {}
    }
    let disk = SimDisk::seeded(1);
    let settings = LogSettings {
        ring_bytes: 4 << 20,
        ..large()
    };
    let mut rig = Rig::open(&disk, settings, 1).unwrap();
    let appender = rig.opened.appender.clone();
    let all = records(&[1 << 19; 4]);
    let batch = |from: &[Payload]| {
        let mut batch = appender.batch(0, 0).unwrap();
        fill(&mut batch, from);
        batch
    };
    let line: Vec<_> = (0..4)
        .map(|_| {
            appender
                .append_many(batch(&all), || Arc::new(Deaf))
                .unwrap()
        })
        .filter_map(|claimed| match claimed {
            Claimed::Later(pending) => Some(pending),
            Claimed::Now(_) => None,
        })
        .collect();
    assert_eq!(line.len(), 3);
    assert!(line[2].cancel());
    let (records, bytes) = line[2].take_back().unwrap();
    assert_eq!(bytes, 4 * ((1 << 19) + 8));
    drop(records);
    rig.settle();
    assert!(matches!(line[1].state(), Pending::Admitted(Lsn(9))));
    assert_eq!(appender.marks().durable, Lsn(12));
    drop(rig);
    let mut backend = crate::io::Disk::backend(&disk).unwrap();
    let mut io = Blocking::new(&mut *backend);
    let dir = io.open_dir(Path::new("/log"), false).unwrap();
    let found = recover(&mut io, &dir, RecoveryMode::Tail).unwrap();
    assert_eq!(found.next, Lsn(13));
}
