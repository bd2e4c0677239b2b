//! The segments of a log as they are now, and how far its readers have come.

use std::sync::{
    Arc, Weak,
    atomic::{AtomicU64, Ordering},
};

use crate::{
    ids::{Lsn, SegmentId},
    sync::{Mutex, lock},
};

use super::{
    recovery::{Recovered, SegmentSummary},
    segment::End,
};

/// The segments of a log as they are now. The log keeps it, readers look places up in it.
#[derive(Debug)]
pub struct Catalogue {
    segments: Mutex<Vec<SegmentSummary>>,
    readers: Mutex<Vec<Weak<AtomicU64>>>,
    has_gaps: bool,
}

impl Catalogue {
    /// What recovery found.
    pub fn new(recovered: &Recovered) -> Self {
        Self {
            segments: Mutex::new(recovered.segments.clone()),
            readers: Mutex::default(),
            has_gaps: !recovered.report.damage.is_empty(),
        }
    }

    /// Adds the segment that is written from now on.
    pub fn push(&self, segment: SegmentSummary) {
        lock(&self.segments).push(segment);
    }

    /// States where a segment ended.
    pub fn seal(&self, end: End) {
        let mut segments = lock(&self.segments);
        if let Some(found) = segments.iter_mut().find(|found| found.id() == end.segment) {
            found.end = Some(end);
        }
    }

    /// Forgets a segment that is removed.
    pub fn remove(&self, id: SegmentId) {
        lock(&self.segments).retain(|found| found.id() != id);
    }

    /// A copy of the list, oldest first.
    pub fn list(&self) -> Vec<SegmentSummary> {
        lock(&self.segments).clone()
    }

    /// The lowest LSN that a living reader still wants.
    pub fn lowest_reader(&self) -> Option<Lsn> {
        let mut readers = lock(&self.readers);
        readers.retain(|reader| reader.strong_count() > 0);
        let positions = readers.iter().filter_map(Weak::upgrade);
        // Relaxed: a reader's place only grows, so an old value holds back more, never less.
        positions
            .map(|place| Lsn(place.load(Ordering::Relaxed)))
            .min()
    }

    /// Whether records may be missing between its segments: the log was salvaged.
    pub(super) fn has_gaps(&self) -> bool {
        self.has_gaps
    }

    /// LSN of the oldest record that can be read.
    pub(super) fn oldest(&self) -> Option<Lsn> {
        lock(&self.segments).first().map(SegmentSummary::base)
    }

    /// The segment that holds `lsn`, or the first one above it.
    pub(super) fn find(&self, lsn: Lsn) -> Option<SegmentSummary> {
        let segments = lock(&self.segments);
        let at = segments.partition_point(|found| found.end.is_some_and(|end| end.next <= lsn));
        segments.get(at).cloned()
    }

    pub(super) fn register(&self, position: &Arc<AtomicU64>) {
        lock(&self.readers).push(Arc::downgrade(position));
    }
}
