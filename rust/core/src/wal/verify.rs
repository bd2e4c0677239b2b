//! Every byte of a log, checked, beside a living owner or alone. Changes nothing.
//!
//! Each segment is read to its end: where its successor says it ended, or, for the last one, as
//! far as a chain of whole frames goes. What a living owner has in flight looks like a torn tail
//! and is none of our business; only what later frames prove to have been durable can be missing.

use std::{path::Path, time::Duration};

use crate::{
    error::Result,
    ids::{Incarnation, Lsn, SegmentId, StoreId},
    io::{Blocking, Disk, File, Wanted},
};

use super::{
    recovery::{Damage, Recovered, RecoveryMode, RecoveryReport, SegmentSummary, recover},
    segment::segment_name,
};

/// One segment, as it was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SegmentCheck {
    /// Its number.
    pub segment: SegmentId,
    /// Its file.
    pub file: String,
    /// Which opening of the log made it; `None` if its header is lost.
    pub incarnation: Option<Incarnation>,
    /// LSN of its first whole record, or the next one if it has none.
    pub first: Lsn,
    /// Whole records in it.
    pub records: u64,
    /// Bytes of whole frames in it.
    pub bytes: u64,
    /// What is wrong with it.
    pub damage: Vec<Damage>,
}

/// What a check of a whole log found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Verification {
    /// The log's identity; `None` if there is no log.
    pub store: Option<StoreId>,
    /// Each segment, by number.
    pub segments: Vec<SegmentCheck>,
    /// LSN of the oldest whole record; the next LSN if there is none.
    pub first: Lsn,
    /// The LSN after the last whole record.
    pub next: Lsn,
    /// Counts, a torn tail, a clean close, and all damage.
    pub report: RecoveryReport,
}

impl Verification {
    /// Whether everything promised is there.
    pub fn is_sound(&self) -> bool {
        self.report.damage.is_empty()
    }

    /// How long it took.
    pub fn elapsed(&self) -> Duration {
        self.report.elapsed
    }
}

/// Checks the log in `dir`. `Format` if it was written by a version that is not known.
pub fn verify(io: &mut Blocking, dir: &File) -> Result<Verification> {
    Ok(collect(&recover(io, dir, RecoveryMode::Salvage)?))
}

/// Checks the log in the directory `path`, as long as it is `wanted`.
pub fn verify_path(disk: &dyn Disk, path: &Path, wanted: &Wanted) -> Result<Verification> {
    let mut backend = disk.backend()?;
    let mut io = Blocking::new(&mut *backend).while_wanted(wanted);
    let dir = io.open_dir(path, false)?;
    let verification = verify(&mut io, &dir);
    drop(io);
    backend.shutdown(None);
    verification
}

fn collect(found: &Recovered) -> Verification {
    let mut segments: Vec<SegmentCheck> = Vec::new();
    for run in &found.segments {
        let check = entry(&mut segments, run.id(), run.base());
        check.incarnation = Some(run.header.incarnation);
        check.records += records(run);
        check.bytes += run.bytes();
    }
    for damage in &found.report.damage {
        entry(&mut segments, damage.segment, damage.first)
            .damage
            .push(damage.clone());
    }
    segments.sort_by_key(|check| check.segment);
    Verification {
        store: found.store,
        segments,
        first: found.first,
        next: found.next,
        report: found.report.clone(),
    }
}

fn entry(segments: &mut Vec<SegmentCheck>, segment: SegmentId, first: Lsn) -> &mut SegmentCheck {
    let at = segments
        .iter()
        .position(|check| check.segment == segment)
        .unwrap_or_else(|| {
            segments.push(SegmentCheck {
                segment,
                file: segment_name(segment),
                incarnation: None,
                first,
                records: 0,
                bytes: 0,
                damage: Vec::new(),
            });
            segments.len() - 1
        });
    &mut segments[at]
}

fn records(run: &SegmentSummary) -> u64 {
    run.end
        .map_or(0, |end| end.next.0.saturating_sub(run.base().0))
}
