//! Whatever the bytes, decoding ends with a value or a named fault: no panic, no hang, and no memory
//! for a length that nothing vouches for.
//!
//! Random bytes never pass a checksum, so most cases here are forged: random fields under checksums
//! that match.

use millrace_core::{
    codec::crc32c,
    error::ErrorKind,
    io::MemoryDisk,
    wal::{
        frame::{FrameHeader, Seed},
        recovery::RecoveryMode,
        segment::{SegmentHeader, segment_name},
    },
};
use millrace_tests::store;
use proptest::{collection::vec, prelude::*, sample::Index};

/// Opens in every mode and reads what there is; errors are fine, and are of the right kind.
fn survive(disk: &MemoryDisk) {
    for mode in [
        RecoveryMode::Tail,
        RecoveryMode::Strict,
        RecoveryMode::Salvage,
    ] {
        match store::open(disk, mode) {
            Ok(recovered) => {
                let (_, error) = store::read(disk, &recovered);
                assert!(error.is_none_or(|error| error.kind() == ErrorKind::Corrupt));
            }
            Err(error) => {
                assert!(
                    matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::Format),
                    "{error}"
                );
            }
        }
    }
    assert_eq!(disk.changes(), 0);
}

/// Numbers that sit on the edges as often as inside.
fn edges() -> impl Strategy<Value = u64> {
    prop_oneof![
        Just(0),
        Just(1),
        Just(u64::MAX),
        Just(1 << 62),
        Just(u64::from(u32::MAX)),
        (0_u32..20).prop_map(|shift| 1 << shift),
        0_u64..5000,
        any::<u64>(),
    ]
}

fn seal_header(bytes: &mut [u8]) {
    let identity = crc32c(0, &bytes[..28]);
    bytes[28..32].copy_from_slice(&identity.to_le_bytes());
    let crc = crc32c(0, &bytes[..252]);
    bytes[252..256].copy_from_slice(&crc.to_le_bytes());
}

fn seal_frame(bytes: &mut [u8], at: usize, header: &SegmentHeader) {
    let seed = Seed::new(header).at(at as u64);
    let whole = u32::from_le_bytes(bytes[at + 8..at + 12].try_into().unwrap()) as usize;
    if (64..=bytes.len() - at).contains(&whole) {
        let body = crc32c(seed, &bytes[at + 64..at + whole]);
        bytes[at + 52..at + 56].copy_from_slice(&body.to_le_bytes());
    }
    let crc = crc32c(seed, &bytes[at..at + 60]);
    bytes[at + 60..at + 64].copy_from_slice(&crc.to_le_bytes());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_bytes_are_never_believed(
        files in vec((1_u64..4, vec(any::<u8>(), 0..3000)), 0..3),
    ) {
        // Noise under the name of a segment is refused or unused, never read.
        let disk = MemoryDisk::default();
        for (id, bytes) in &files {
            disk.put(&segment_name(millrace_core::ids::SegmentId(*id)), bytes);
            prop_assert!(SegmentHeader::decode(bytes).is_err());
        }
        survive(&disk);
    }

    #[test]
    fn forged_segment_headers_lead_nowhere(
        fields in vec((32_usize..252, edges()), 1..6),
        target in any::<Index>(),
    ) {
        // Numbers that no writer writes, under checksums that match.
        let disk = store::killed().disk;
        let names = disk.names();
        disk.edit(&names[target.index(names.len())], |bytes| {
            for (at, value) in &fields {
                let at = at & !3;
                let end = (at + 8).min(252);
                bytes[at..end].copy_from_slice(&value.to_le_bytes()[..end - at]);
            }
            seal_header(bytes);
        });
        survive(&disk);
    }

    #[test]
    fn forged_frames_lead_nowhere(
        fields in vec((0_usize..100, edges()), 1..5),
        target in any::<Index>(),
    ) {
        // Lengths, counts and LSNs that no writer writes, under checksums that match.
        let store = store::killed();
        let (segment, offset, ..) = *target.get(&store.frames);
        let name = segment_name(segment);
        let bytes = store.disk.get(&name).unwrap();
        let (header, _) = SegmentHeader::decode(&bytes).unwrap();
        let at = offset as usize;
        store.disk.edit(&name, |bytes| {
            for (field, value) in &fields {
                let start = at + 4 + (field & !3);
                bytes[start..start + 4].copy_from_slice(&value.to_le_bytes()[..4]);
            }
            seal_frame(bytes, at, &header);
        });
        let bytes = store.disk.get(&name).unwrap();
        let seed = Seed::new(&header).at(offset);
        if let Ok(frame) = FrameHeader::decode(&bytes[at..], seed, &header.limits) {
            for record in frame.records(&bytes[at..]).flatten() {
                prop_assert!(record.offset as usize + record.bytes as usize <= bytes.len() - at);
            }
        }
        survive(&store.disk);
    }
}

#[test]
fn numbers_at_the_end_of_the_world_are_refused() {
    // Counting on from what is found must not overflow.
    let disk = store::killed().disk;
    let bytes = disk.get("0000000000000003.log").unwrap();
    disk.put("ffffffffffffffff.log", &bytes);
    assert_eq!(
        store::open(&disk, RecoveryMode::Tail).unwrap_err().kind(),
        ErrorKind::Corrupt
    );
    let disk = MemoryDisk::default();
    disk.put("ffffffffffffffff.prep", &[]);
    assert_eq!(
        store::open(&disk, RecoveryMode::Tail).unwrap_err().kind(),
        ErrorKind::Corrupt
    );
}
