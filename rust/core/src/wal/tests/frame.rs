//! Frames: what is written is read, in order and in place, and nothing else is believed.

use crate::{
    error::ErrorKind,
    ids::{Incarnation, Lsn, SegmentId, StoreId},
    io::Buffer,
    wal::{
        frame::{
            Expected, FrameFault, FrameHeader, FrameKind, FrameWriter, RECORD_DATA, Seed, Stamp,
            peek_incarnation,
        },
        segment::{SegmentHeader, SegmentLimits},
    },
};

fn header() -> SegmentHeader {
    SegmentHeader {
        store: StoreId(*b"0123456789abcdef"),
        segment: SegmentId(2),
        incarnation: Incarnation(4),
        base: Lsn(10),
        predecessor: None,
        limits: SegmentLimits {
            block_bytes: 512,
            window: 4,
            record_bytes_max: 1000,
            group_bytes_max: 4000,
            segment_bytes: 8192,
        },
        created_ns: 0,
        ro_compat: 0,
        is_recycled: false,
    }
}

const STAMP: Stamp = Stamp {
    durable: Lsn(9),
    timestamp_ns: 77,
};

fn writer() -> FrameWriter {
    FrameWriter::new(header(), 123)
}

fn decode(bytes: &[u8], offset: u64) -> Result<FrameHeader, FrameFault> {
    let seed = Seed::new(&header()).at(offset);
    let frame = FrameHeader::decode(bytes, seed, &header().limits)?;
    frame.check_body(bytes, seed)?;
    Ok(frame)
}

#[test]
fn frames_are_read_as_they_were_written() {
    // Records of every size around a block come back whole, chained, and padded with zeros.
    let mut writer = writer();
    let mut expected = Expected::first(&header(), 123);
    let mut spare = Some(Buffer::zeroed(8192));
    if let Some(spare) = &mut spare {
        spare.fill(0xaa);
    }
    for sizes in [
        vec![0],
        vec![1, 2, 3],
        vec![440],
        vec![441],
        vec![0, 1000, 0],
    ] {
        let records: Vec<Vec<u8>> = sizes.iter().map(|size| vec![7; *size]).collect();
        let encoded = writer.records(&records, STAMP, spare.take()).unwrap();
        let bytes = &encoded.buffer[..encoded.length];
        let frame = decode(bytes, encoded.offset).unwrap();
        assert_eq!((frame.kind, frame.timestamp_ns), (FrameKind::Records, 77));
        assert_eq!(frame.frame_bytes as usize % 512, 0);
        expected.follow(&frame).unwrap();
        let read: Vec<_> = frame.records(bytes).map(Result::unwrap).collect();
        assert!(read.iter().all(|record| record.kind == RECORD_DATA));
        let read: Vec<_> = read
            .iter()
            .map(|record| bytes[record.offset as usize..][..record.bytes as usize].to_vec())
            .collect();
        assert_eq!(read, records);
        let used = 64 + frame.payload_bytes as usize;
        assert!(bytes[used..].iter().all(|byte| *byte == 0));
        spare = Some(encoded.buffer);
    }
    let end = writer.end();
    assert_eq!((end.next, end.chain), (expected.next, expected.chain));
    assert_eq!(writer.frames(), 5);
}

#[test]
fn every_flipped_bit_of_a_frame_is_noticed() {
    // Header, records and padding all lie under a checksum.
    let encoded = writer().records(&[b"abc"], STAMP, None).unwrap();
    for bit in 0..encoded.length * 8 {
        let mut bad = encoded.buffer.to_vec();
        bad[bit / 8] ^= 1 << (bit % 8);
        assert!(decode(&bad, encoded.offset).is_err(), "bit {bit}");
    }
}

#[test]
fn a_frame_counts_only_where_and_when_it_was_written() {
    // Another offset, segment, opening or log makes the same bytes worthless.
    let encoded = writer().records(&[b"abc"], STAMP, None).unwrap();
    let limits = header().limits;
    let others = [
        (header(), encoded.offset + 512),
        (
            SegmentHeader {
                segment: SegmentId(3),
                ..header()
            },
            encoded.offset,
        ),
        (
            SegmentHeader {
                incarnation: Incarnation(5),
                ..header()
            },
            encoded.offset,
        ),
        (
            SegmentHeader {
                store: StoreId([0; 16]),
                ..header()
            },
            encoded.offset,
        ),
    ];
    for (other, offset) in others {
        let seed = Seed::new(&other).at(offset);
        let fault = FrameHeader::decode(&encoded.buffer, seed, &limits).unwrap_err();
        assert_eq!(fault, FrameFault::HeaderChecksum);
    }
    assert_eq!(peek_incarnation(&encoded.buffer), Some(4));
}

#[test]
fn a_frame_out_of_line_contradicts_the_chain() {
    // Left out, repeated or from another history: no frame follows another by accident.
    let mut writer = writer();
    let mut frames = Vec::new();
    for _ in 0..3 {
        let encoded = writer.records(&[b"x"], STAMP, None).unwrap();
        frames.push(decode(&encoded.buffer, encoded.offset).unwrap());
    }
    let mut expected = Expected::first(&header(), 123);
    expected.follow(&frames[0]).unwrap();
    let before = expected;
    for wrong in [frames[0], frames[2]] {
        assert!(matches!(
            expected.follow(&wrong),
            Err(FrameFault::Contradiction(_))
        ));
        assert_eq!(expected, before, "a refused frame moves nothing");
    }
    let other = FrameHeader {
        previous_crc: 1,
        ..frames[1]
    };
    assert!(expected.follow(&other).is_err());
    let gap = FrameHeader {
        first: Lsn(99),
        ..frames[1]
    };
    assert!(expected.follow(&gap).is_err());
    let back = FrameHeader {
        durable: Lsn(8),
        ..frames[1]
    };
    assert!(expected.follow(&back).is_err());
    expected.follow(&frames[1]).unwrap();
}

#[test]
fn limits_are_named_and_nothing_moves() {
    // A refused group leaves the writer where it was.
    let mut writer = writer();
    let before = writer.end();
    let big = vec![0_u8; 1001];
    let error = writer.records(&[&big], STAMP, None).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TooLarge);
    assert!(error.to_string().contains("record_bytes_max"));
    let error = writer.records(&[&big[..1000]; 4], STAMP, None).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TooLarge);
    assert!(error.to_string().contains("group_bytes_max"));
    let none: [&[u8]; 0] = [];
    assert_eq!(
        writer.records(&none, STAMP, None).unwrap_err().kind(),
        ErrorKind::Invalid
    );
    assert_eq!(writer.end(), before);
}

#[test]
fn a_full_segment_still_closes() {
    // Records and watermarks leave the last block to the closing frame.
    let mut writer = writer();
    while writer.fits(9) {
        writer.records(&[b"x"], STAMP, None).unwrap();
    }
    assert_eq!(writer.room(), 512);
    assert_eq!(
        writer.records(&[b"x"], STAMP, None).unwrap_err().kind(),
        ErrorKind::NoSpace
    );
    assert_eq!(
        writer.watermark(STAMP, None).unwrap_err().kind(),
        ErrorKind::NoSpace
    );
    let close = writer.close(STAMP, None).unwrap();
    assert_eq!(close.offset + close.length as u64, 8192);
    assert_eq!(
        decode(&close.buffer, close.offset).unwrap().kind,
        FrameKind::Close
    );
    assert_eq!(
        writer.close(STAMP, None).unwrap_err().kind(),
        ErrorKind::NoSpace
    );
}

#[test]
fn a_claim_of_durability_never_covers_the_frame_itself() {
    // Whatever the committer passes, recovery must not read it as proof about this very frame.
    let mut writer = writer();
    let stamp = Stamp {
        durable: Lsn(99),
        ..STAMP
    };
    let encoded = writer.records(&[b"x"], stamp, None).unwrap();
    assert_eq!(
        decode(&encoded.buffer, encoded.offset).unwrap().durable,
        Lsn(9)
    );
    let stamp = Stamp {
        durable: Lsn(0),
        ..STAMP
    };
    let encoded = writer.watermark(stamp, None).unwrap();
    assert_eq!(
        decode(&encoded.buffer, encoded.offset).unwrap().durable,
        Lsn(9)
    );
}

#[test]
fn untrusted_lengths_stay_inside_the_slice() {
    // A frame cut short anywhere, or a record that claims too much, is a fault and not a panic.
    let encoded = writer().records(&[b"abc", b"def"], STAMP, None).unwrap();
    let frame = decode(&encoded.buffer, encoded.offset).unwrap();
    for length in 0..encoded.length {
        assert!(decode(&encoded.buffer[..length], encoded.offset).is_err());
        let _ = frame.records(&encoded.buffer[..length]).count();
    }
    let mut bad = encoded.buffer.to_vec();
    bad[64..68].copy_from_slice(&u32::MAX.to_le_bytes());
    let faults: Vec<_> = frame.records(&bad).collect();
    assert!(matches!(faults[..], [Err(FrameFault::Contradiction(_))]));
}
