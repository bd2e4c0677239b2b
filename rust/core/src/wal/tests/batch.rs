//! Batches: laid out once, written from there, and the memory they lie in.

use std::path::Path;

use super::rig::{Rig, small};
use crate::{
    fork::Origin,
    ids::{Incarnation, Lsn, SegmentId, StoreId},
    io::{Blocking, HUGE},
    sim::SimDisk,
    sync::Arc,
    wal::{
        frame::{FrameWriter, Lay, Stamp},
        group::{Batch, in_place},
        log::Payload,
        recovery::{RecoveryMode, recover},
        segment::{SegmentHeader, SegmentLimits},
        settings::LogSettings,
        stock::Stock,
    },
};

fn stock(bytes_max: usize) -> Arc<Stock> {
    Stock::new(Origin::here().unwrap(), bytes_max)
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
    for lengths in [&[0][..], &[1], &[900, 0, 3999, 7], &[500; 40]] {
        let records = records(lengths);
        let copied = writer().records(&records, STAMP, None).unwrap();
        let mut old = stock.take(60_000).unwrap();
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
    let mut two = entries(&[5, 6]);
    two.extend(entries(&[7]));
    assert!(in_place(&mut two, 512).is_none());
    let mut short = entries(&[5, 6]);
    assert!(in_place(&mut short, 1 << 20).is_none());
    assert!(in_place(&mut short, 512).is_some());
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
    stock.clear();
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
