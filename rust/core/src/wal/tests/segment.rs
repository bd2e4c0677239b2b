//! Segment headers: what is written is read, and nothing else is believed.

use crate::{
    ids::{Incarnation, Lsn, SegmentId, StoreId},
    wal::segment::{
        End, HeaderFault, IDENTITY_BYTES, Name, SEGMENT_HEADER_BYTES, SegmentHeader, SegmentLimits,
        prepared_name, segment_name,
    },
};

fn header() -> SegmentHeader {
    SegmentHeader {
        store: StoreId(*b"0123456789abcdef"),
        segment: SegmentId(9),
        incarnation: Incarnation(4),
        base: Lsn(1001),
        predecessor: Some(End {
            segment: SegmentId(7),
            incarnation: Incarnation(3),
            next: Lsn(1001),
            offset: 8192,
            chain: 0xdead_beef,
        }),
        limits: SegmentLimits {
            block_bytes: 512,
            window: 4,
            record_bytes_max: 1000,
            group_bytes_max: 4000,
            segment_bytes: 32768,
        },
        created_ns: -5,
        ro_compat: 0,
        is_recycled: false,
    }
}

#[test]
fn a_header_is_read_as_it_was_written() {
    // Every field survives, with and without a predecessor.
    for predecessor in [header().predecessor, None] {
        let written = SegmentHeader {
            predecessor,
            ..header()
        };
        let (block, crc) = written.encode();
        assert_eq!(block.len(), 512);
        assert_eq!(SegmentHeader::decode(&block), Ok((written, crc)));
    }
}

#[test]
fn every_flipped_bit_of_a_header_is_noticed() {
    // No single bit of the header is outside a checksum, and none turns into an unknown version.
    let (block, _) = header().encode();
    for bit in 0..SEGMENT_HEADER_BYTES * 8 {
        let mut bad = block.to_vec();
        bad[bit / 8] ^= 1 << (bit % 8);
        assert!(
            matches!(SegmentHeader::decode(&bad), Err(HeaderFault::Damaged(_))),
            "bit {bit}"
        );
    }
}

#[test]
fn an_unknown_version_is_named_and_a_damaged_one_is_not() {
    // A newer version says so under a valid checksum; only then is it called unknown.
    let (mut block, _) = header().encode();
    block[8] = 2;
    assert!(matches!(
        SegmentHeader::decode(&block),
        Err(HeaderFault::Damaged(_))
    ));
    let crc = crate::codec::crc32c(0, &block[..IDENTITY_BYTES - 4]);
    block[IDENTITY_BYTES - 4..IDENTITY_BYTES].copy_from_slice(&crc.to_le_bytes());
    let fault = SegmentHeader::decode(&block).unwrap_err();
    assert_eq!(
        fault,
        HeaderFault::Unknown {
            version: 2,
            incompat: 0
        }
    );
    let error = fault.into_error(SegmentId(9));
    assert_eq!(
        (error.number("found"), error.number("known")),
        (Some(2), Some(1))
    );
}

#[test]
fn zeros_are_an_unused_file_and_a_stub_is_damage() {
    // A prepared file is told from a damaged one.
    assert_eq!(SegmentHeader::decode(&[0; 512]), Err(HeaderFault::Empty));
    for length in [0, 1, 511] {
        let (block, _) = header().encode();
        assert!(matches!(
            SegmentHeader::decode(&block[..length]),
            Err(HeaderFault::Damaged(_))
        ));
    }
}

#[test]
fn limits_that_contradict_each_other_are_refused() {
    // What no writer would state is not believed even under a valid checksum.
    let good = header().limits;
    let bad = [
        SegmentLimits {
            block_bytes: 513,
            ..good
        },
        SegmentLimits {
            block_bytes: 256,
            ..good
        },
        SegmentLimits { window: 0, ..good },
        SegmentLimits {
            record_bytes_max: 3993,
            ..good
        },
        SegmentLimits {
            group_bytes_max: u32::MAX,
            ..good
        },
        SegmentLimits {
            segment_bytes: 32767,
            ..good
        },
        SegmentLimits {
            segment_bytes: 1024,
            ..good
        },
    ];
    assert!(good.check().is_ok());
    assert!(
        SegmentLimits {
            record_bytes_max: 3992,
            ..good
        }
        .check()
        .is_ok()
    );
    for limits in bad {
        assert!(limits.check().is_err(), "{limits:?}");
    }
}

#[test]
fn only_our_own_spelling_of_a_name_is_ours() {
    // Two names never stand for the same segment.
    let number = SegmentId(0xab);
    assert_eq!(Name::parse(&segment_name(number)), Name::Segment(number));
    assert_eq!(Name::parse(&prepared_name(number)), Name::Prepared(number));
    assert_eq!(Name::parse("LOCK"), Name::Lock);
    assert_eq!(Name::parse("cursors"), Name::Cursors);
    assert_eq!(Name::parse("cursors.tmp"), Name::Temporary);
    for strange in [
        "00000000000000AB.log",
        "ab.log",
        "+0000000000000ab.log",
        "00000000000000ab.log.broken",
        "00000000000000000ab.log",
        ".log",
        "",
    ] {
        assert_eq!(Name::parse(strange), Name::Other, "{strange}");
    }
}
