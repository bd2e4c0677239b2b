//! The segments of a log as they are now, and the readers that hold back their removal.
//!
//! A reader holds a pin from its first look to its last. A segment that truncation drops is
//! retired to the log's collector, and its file goes when every pin that was taken before has
//! gone. A reader that stands above what was dropped wants none of it, however long it lives: its
//! pin is renewed for it, so that a follower that waits holds nothing back.
//!
//! # Always true
//!
//! 1. A pin is renewed only after the new one was taken and the reader was then seen at or above
//!    the mark. What is dropped later is retired later, and the new pin holds it.
//! 2. A reader's place only grows: an old value of it holds back more, never less.

use std::sync::{
    Arc, Weak,
    atomic::{AtomicU64, Ordering},
};

use crate::{
    clock::SystemClock,
    epoch::{BYTES_MAX, Collector, ITEMS_MAX, Kind, Load, OwnedPin, Statistics, Work},
    ids::{Lsn, SegmentId},
    sync::{Mutex, lock},
};

use super::{
    recovery::{Recovered, SegmentSummary},
    segment::End,
};

/// What truncation hands to the collector: everything up to the end of a dropped segment.
pub(super) struct Retired {
    /// The LSN after its last record.
    pub(super) end: Lsn,
}

impl Work for Retired {
    fn kind(&self) -> Kind {
        Kind::Region
    }
}

/// A reader's place and the pin that goes with it.
pub(super) struct Hold {
    position: AtomicU64,
    /// `None` once the reader has let go.
    pin: Mutex<Option<OwnedPin>>,
}

impl Hold {
    /// The reader has come this far.
    pub(super) fn moved_to(&self, position: Lsn) {
        // Relaxed: see 2 above.
        self.position.store(position.0, Ordering::Relaxed);
    }

    /// The reader wants nothing any more.
    pub(super) fn let_go(&self) {
        let pin = lock(&self.pin).take();
        drop(pin);
    }
}

impl std::fmt::Debug for Hold {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let position = self.position.load(Ordering::Relaxed);
        f.debug_struct("Hold")
            .field("position", &position)
            .finish_non_exhaustive()
    }
}

/// The segments of a log as they are now. The log keeps it, readers look places up in it.
pub struct Catalogue {
    segments: Mutex<Vec<SegmentSummary>>,
    readers: Mutex<Vec<Weak<Hold>>>,
    has_gaps: bool,
    /// Base of the oldest segment that was not dropped. Only grows.
    mark: AtomicU64,
    collector: Collector<Retired>,
}

impl std::fmt::Debug for Catalogue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Catalogue")
            .field("segments", &self.segments)
            .field("mark", &self.mark)
            .finish_non_exhaustive()
    }
}

impl Catalogue {
    /// What recovery found.
    pub fn new(recovered: &Recovered) -> Self {
        Self {
            segments: Mutex::new(recovered.segments.clone()),
            readers: Mutex::default(),
            has_gaps: !recovered.report.damage.is_empty(),
            mark: AtomicU64::new(0),
            collector: Collector::for_owner(
                Load {
                    items: ITEMS_MAX,
                    bytes: BYTES_MAX,
                },
                Arc::new(SystemClock::new()),
            ),
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

    /// Readers, the oldest of them, and the dropped segments that wait for them.
    pub fn statistics(&self) -> Statistics {
        self.collector.statistics(self.collector.now())
    }

    pub(super) fn collector(&self) -> &Collector<Retired> {
        &self.collector
    }

    /// Base of the oldest segment that was not dropped.
    pub(super) fn mark(&self) -> Lsn {
        Lsn(self.mark.load(Ordering::Relaxed))
    }

    /// Nothing below `mark` is found any more by a reader that comes now.
    pub(super) fn raise_mark(&self, mark: Lsn) {
        self.mark.fetch_max(mark.0, Ordering::Relaxed);
    }

    /// Renews the pins of readers that want nothing of what was dropped.
    pub(super) fn renew_holds(&self) {
        let mut readers = lock(&self.readers);
        readers.retain(|hold| hold.strong_count() > 0);
        let living: Vec<_> = readers.iter().filter_map(Weak::upgrade).collect();
        drop(readers);
        for hold in living.iter().filter(|_| !planted!("hold_never_renewed")) {
            let fresh = self.pin();
            // The pin is taken, with its fence; now the look. See 1 above.
            let position = hold.position.load(Ordering::Relaxed);
            if position >= self.mark.load(Ordering::Relaxed) || planted!("hold_renewed_blindly") {
                // One that has let go stays so.
                let before = lock(&hold.pin)
                    .as_mut()
                    .map(|pin| std::mem::replace(pin, fresh));
                drop(before);
            }
        }
    }

    fn pin(&self) -> OwnedPin {
        self.collector.pin(Some("log reader"))
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

    /// Holds back everything from `position` on, unless it was dropped before.
    pub(super) fn hold(&self, position: Lsn) -> Arc<Hold> {
        let hold = Arc::new(Hold {
            position: AtomicU64::new(position.0),
            pin: Mutex::new((!planted!("reader_holds_nothing")).then(|| self.pin())),
        });
        lock(&self.readers).push(Arc::downgrade(&hold));
        hold
    }
}
