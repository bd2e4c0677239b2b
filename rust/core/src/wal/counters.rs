//! What the log did, counted where it happened.

use crossbeam::utils::CachePadded;

use crate::sync::{AtomicU64, Ordering};

use super::frame::FrameKind;

/// Counters of one log. Written by the committer alone, read by anybody.
#[derive(Debug, Default)]
pub(crate) struct Counters(CachePadded<Cells>);

#[derive(Debug, Default)]
struct Cells {
    records: AtomicU64,
    bytes: AtomicU64,
    groups: AtomicU64,
    group_records_max: AtomicU64,
    syncs: AtomicU64,
    marks: AtomicU64,
    rotations: AtomicU64,
    cuts: AtomicU64,
    cuts_failed: AtomicU64,
}

/// A snapshot of the counters since the log was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Records written to the file.
    pub records: u64,
    /// Their bytes, record headers included.
    pub bytes: u64,
    /// Groups written.
    pub groups: u64,
    /// Records of the largest group.
    pub group_records_max: u64,
    /// Synchronous writes of frames that were answered with success.
    pub syncs: u64,
    /// Watermark and close frames among them.
    pub marks: u64,
    /// Segments begun, the one of the open not included.
    pub rotations: u64,
    /// Files cut or removed to save space.
    pub cuts: u64,
    /// The same, refused by the system. They cost space, nothing else.
    pub cuts_failed: u64,
}

impl Counters {
    pub(crate) fn group(&self, records: usize, bytes: usize) {
        let cells = &self.0;
        cells.records.fetch_add(records as u64, Ordering::Relaxed);
        cells.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        cells.groups.fetch_add(1, Ordering::Relaxed);
        cells
            .group_records_max
            .fetch_max(records as u64, Ordering::Relaxed);
    }

    pub(crate) fn settled(&self, kind: FrameKind) {
        self.0.syncs.fetch_add(1, Ordering::Relaxed);
        if kind != FrameKind::Records {
            self.0.marks.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(crate) fn rotated(&self) {
        self.0.rotations.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn cut(&self, done: bool) {
        let cell = if done {
            &self.0.cuts
        } else {
            &self.0.cuts_failed
        };
        cell.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn removed(&self, files: u64) {
        self.0.cuts.fetch_add(files, Ordering::Relaxed);
    }

    pub(crate) fn snapshot(&self) -> Counts {
        let read = |cell: &AtomicU64| cell.load(Ordering::Relaxed);
        let cells = &self.0;
        Counts {
            records: read(&cells.records),
            bytes: read(&cells.bytes),
            groups: read(&cells.groups),
            group_records_max: read(&cells.group_records_max),
            syncs: read(&cells.syncs),
            marks: read(&cells.marks),
            rotations: read(&cells.rotations),
            cuts: read(&cells.cuts),
            cuts_failed: read(&cells.cuts_failed),
        }
    }
}
