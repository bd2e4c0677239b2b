//! Readers: every record once, in order, whole, and never above what is durable.

use super::{recover_in, with_dir};
use crate::{
    error::{ErrorKind, Result},
    ids::{Lsn, SegmentId},
    io::MemoryDisk,
    wal::{
        builder::{Builder, SMALL},
        reader::{Catalogue, Reader},
        recovery::{Recovered, RecoveryMode, SegmentSummary, WriteBar},
        segment::{SegmentLimits, segment_name},
    },
};
use std::sync::Arc;

fn many(limits: SegmentLimits) -> Builder {
    let mut builder = Builder::new(limits);
    for group in 0..40_usize {
        let records: Vec<Vec<u8>> = (0..=(group % 5))
            .map(|record| vec![(group * 7 + record) as u8; (group * 37 + record * 11) % 900])
            .collect();
        let total: usize = records.iter().map(|record| record.len() + 8).sum();
        let count = if total > 3000 { 1 } else { records.len() };
        builder.append(&records[..count]);
        if group % 9 == 8 {
            builder.watermark();
        }
    }
    builder
}

fn catalogue(disk: &MemoryDisk) -> (Arc<Catalogue>, Recovered) {
    let recovered = recover_in(disk, RecoveryMode::Tail).unwrap();
    (Arc::new(Catalogue::new(&recovered)), recovered)
}

#[test]
fn every_start_stop_and_batch_size_gives_the_same_records() {
    // Batches cut frames anywhere; the records do not depend on it.
    let builder = many(SMALL);
    let (catalogue, recovered) = catalogue(&builder.disk);
    let durable = recovered.next.previous();
    with_dir(&builder.disk, |io, dir| {
        for records_max in [1, 2, 3, 1000] {
            for start in 1..=durable.0 {
                for stop in [None, Some(Lsn(start + 1)), Some(Lsn(start + 7))] {
                    let mut reader =
                        Reader::new(catalogue.clone(), dir.clone(), Lsn(start), stop).unwrap();
                    reader = reader.with_chunk(4096);
                    let mut next = Lsn(start);
                    while let Some(batch) = reader.next_batch(io, durable, records_max).unwrap() {
                        assert_eq!(batch.first(), next);
                        assert!(batch.len() <= records_max && !batch.is_empty());
                        let groups: u32 = batch.groups().iter().map(|group| group.records).sum();
                        assert_eq!(groups as usize, batch.len());
                        for payload in batch.payloads() {
                            assert_eq!(payload, builder.records[next.0 as usize - 1]);
                            next = next.plus(1);
                        }
                    }
                    let end = stop.map_or(recovered.next, |stop| stop.min(recovered.next));
                    assert_eq!(next, end);
                }
            }
        }
    });
}

#[test]
fn a_chunk_is_used_again_once_no_batch_holds_it() {
    // While one batch is looked at, the next is read into the memory of the one before it, which is
    // larger than what is left of a segment; a batch that is still held keeps its bytes.
    const CHUNK: usize = 8192;
    // Two for each of two segments; from then on both chunks are as large as they get.
    const WARM: usize = 4;
    let builder = many(SMALL);
    let (catalogue, recovered) = catalogue(&builder.disk);
    let durable = recovered.next.previous();
    with_dir(&builder.disk, |io, dir| {
        let reader = Reader::new(catalogue, dir.clone(), Lsn(1), None).unwrap();
        let mut reader = reader.with_chunk(CHUNK);
        let mut batches = 0;
        // Held as the binding does it: until the next one is there.
        let mut held = Vec::new();
        while let Some(batch) = reader.next_batch(io, durable, usize::MAX).unwrap() {
            batches += 1;
            let length = batch.bytes().len();
            assert!(batches <= WARM || length == CHUNK, "{batches}: {length}");
            let first = batch.first().0 as usize - 1;
            assert!(
                batch
                    .payloads()
                    .eq(&builder.records[first..first + batch.len()])
            );
            held.push(batch);
            held.drain(..held.len() - 1);
        }
        assert!(batches > WARM + 2);
    });
}

#[test]
fn what_is_not_durable_is_not_looked_at() {
    // A frame above the mark may be half written: it is read when the mark has passed it.
    let mut builder = Builder::new(SMALL);
    let header = builder.header().clone();
    let (_, crc) = header.encode();
    let (catalogue, _) = catalogue(&MemoryDisk::default());
    catalogue.push(SegmentSummary::new(header, crc, None));
    builder.append(&[b"one"]);
    builder.append(&[b"two"]);
    let at = builder.append(&[b"three"]);
    with_dir(&builder.disk.clone(), |io, dir| {
        let mut reader = Reader::new(catalogue.clone(), dir.clone(), Lsn(1), None).unwrap();
        let whole = builder.disk.get(&builder.name()).unwrap();
        builder
            .disk
            .edit(&builder.name(), |bytes| bytes[at as usize + 3..].fill(9));
        assert!(reader.next_batch(io, Lsn(0), 100).unwrap().is_none());
        let batch = reader.next_batch(io, Lsn(2), 100).unwrap().unwrap();
        assert_eq!(batch.len(), 2);
        assert!(reader.next_batch(io, Lsn(2), 100).unwrap().is_none());
        builder.disk.put(&builder.name(), &whole);
        let batch = reader.next_batch(io, Lsn(3), 100).unwrap().unwrap();
        assert_eq!(batch.payloads().collect::<Vec<_>>(), [b"three"]);
        // The log rolls on under the reader.
        catalogue.seal(builder.end());
        builder.roll();
        let (_, crc) = builder.header().encode();
        catalogue.push(SegmentSummary::new(builder.header().clone(), crc, None));
        assert!(reader.next_batch(io, Lsn(3), 100).unwrap().is_none());
        builder.append(&[b"four"]);
        let batch = reader.next_batch(io, Lsn(4), 100).unwrap().unwrap();
        assert_eq!((batch.first(), batch.len()), (Lsn(4), 1));
        assert_eq!(catalogue.statistics().pins, 1);
        drop(reader);
        assert_eq!(catalogue.statistics().pins, 0);
    });
}

#[test]
fn a_segment_removed_under_a_reader_stays_readable() {
    // The open file keeps it; only a reader that comes later is told.
    let builder = many(SMALL);
    let (catalogue, recovered) = catalogue(&builder.disk);
    let durable = recovered.next.previous();
    with_dir(&builder.disk, |io, dir| {
        let mut reader = Reader::new(catalogue.clone(), dir.clone(), Lsn(1), None).unwrap();
        reader.next_batch(io, durable, 1).unwrap().unwrap();
        catalogue.remove(SegmentId(1));
        builder.disk.remove(&segment_name(SegmentId(1)));
        let mut next = Lsn(2);
        while let Some(batch) = reader.next_batch(io, durable, 10).unwrap() {
            assert_eq!(batch.first(), next);
            next = next.plus(batch.len() as u64);
        }
        assert_eq!(next, recovered.next);
        let error = Reader::new(catalogue.clone(), dir.clone(), Lsn(1), None).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
    });
}

#[test]
fn damage_is_told_after_everything_whole_before_it() {
    // Records before the bad frame come out, then the error, and then the same error again.
    let builder = many(SMALL);
    let (catalogue, recovered) = catalogue(&builder.disk);
    let durable = recovered.next.previous();
    let (segment, offset, _, next) = builder.frames[7];
    let name = segment_name(segment);
    let spoil: [fn(&MemoryDisk, &str, u64); 2] = [
        |disk, name, offset| disk.edit(name, |bytes| bytes[offset as usize + 100] ^= 4),
        |disk, name, offset| disk.spoil(name, offset + 300),
    ];
    for spoil in spoil {
        let disk = builder.disk.copy();
        spoil(&disk, &name, offset);
        with_dir(&disk, |io, dir| {
            let mut reader = Reader::new(catalogue.clone(), dir.clone(), Lsn(1), None).unwrap();
            let mut read = 0;
            let error = loop {
                match reader.next_batch(io, durable, 1000) {
                    Ok(Some(batch)) => read += batch.len() as u64,
                    Ok(None) => panic!("the damage was left out"),
                    Err(error) => break error,
                }
            };
            assert_eq!(read, builder.frames[6].3.previous().0);
            assert!(read < next.0);
            assert_ne!(error.kind(), ErrorKind::Invalid);
            let again = reader.next_batch(io, durable, 1000).unwrap_err();
            assert_eq!(again.to_string(), error.to_string());
        });
    }
}

#[test]
fn a_salvaged_log_is_read_over_its_gaps() {
    // Each batch says where it starts, and none spans a gap.
    let builder = many(SMALL);
    let (_, offset, ..) = builder.frames[2];
    builder.disk.edit(&segment_name(SegmentId(1)), |bytes| {
        bytes[offset as usize] ^= 1;
    });
    let recovered = recover_in(&builder.disk, RecoveryMode::Salvage).unwrap();
    assert_eq!(recovered.write_bar, Some(WriteBar::Salvage));
    let catalogue = Arc::new(Catalogue::new(&recovered));
    let read: Result<Vec<(u64, Vec<u8>)>> = with_dir(&builder.disk, |io, dir| {
        let mut reader = Reader::new(catalogue, dir.clone(), Lsn(1), None)?;
        let mut read = Vec::new();
        while let Some(batch) = reader.next_batch(io, recovered.next.previous(), 100)? {
            let lsns = batch.first().0..;
            read.extend(lsns.zip(batch.payloads().map(<[u8]>::to_vec)));
        }
        Ok(read)
    });
    let lost = builder.frames[1].3.0..builder.frames[2].3.0;
    let all = (1..).zip(builder.records.iter().cloned());
    let left: Vec<_> = all.filter(|(lsn, _)| !lost.contains(lsn)).collect();
    assert_eq!(read.unwrap(), left);
}
