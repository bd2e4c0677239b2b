//! Dropping whole segments from the old end.
//!
//! A segment is dropped when everything in it lies below the truncation mark. It is retired to the
//! log's collector, and its file goes when no reader that began before wants it any more, oldest
//! first, each removal durable before the next one begins, so that no crash leaves a hole in the
//! middle. A removal that fails is tried again by the next one.

use crate::{
    epoch::Budget,
    error::{Error, ErrorKind, Result},
    ids::Lsn,
    io::{Blocking, File},
    sync::{Arc, AtomicU64, Mutex, Ordering, lock},
};

use super::{
    catalogue::Retired,
    reader::Catalogue,
    recovery::SegmentSummary,
    recycle::Spares,
    segment::{End, SegmentHeader},
};

/// The segments of an open log and where they begin to count.
#[derive(Debug)]
pub(crate) struct Segments {
    catalogue: Arc<Catalogue>,
    spares: Spares,
    /// Everything below was handed to the collector.
    retired: Mutex<Lsn>,
    /// The files of everything below may go: no reader wants them.
    released: AtomicU64,
}

impl Segments {
    pub(crate) fn new(catalogue: Catalogue, spares: Spares) -> Self {
        let segments = Self {
            catalogue: Arc::new(catalogue),
            spares,
            retired: Mutex::new(Lsn(0)),
            released: AtomicU64::new(0),
        };
        segments.catalogue.raise_mark(segments.first());
        segments
    }

    pub(crate) fn catalogue(&self) -> &Arc<Catalogue> {
        &self.catalogue
    }

    pub(crate) fn spares(&self) -> &Spares {
        &self.spares
    }

    /// The active segment ended and `next` follows.
    pub(crate) fn rotated(&self, end: End, next: SegmentHeader, next_crc: u32) {
        self.catalogue.seal(end);
        self.catalogue
            .push(SegmentSummary::new(next, next_crc, None));
    }

    /// The first LSN that counts as there.
    pub(crate) fn first(&self) -> Lsn {
        let mark = self.catalogue.mark();
        let list = self.catalogue.list();
        list.iter()
            .map(SegmentSummary::base)
            .find(|base| *base >= mark)
            .unwrap_or(Lsn::FIRST)
    }

    /// How many segments can be read.
    pub(crate) fn count(&self) -> usize {
        let mark = self.catalogue.mark();
        let list = self.catalogue.list();
        list.iter().filter(|one| one.base() >= mark).count()
    }

    /// Drops whole segments below `lsn` and returns the first LSN left. No file goes here.
    pub(crate) fn drop_below(&self, lsn: Lsn) -> Lsn {
        let list = self.catalogue.list();
        let kept = list
            .iter()
            .find(|one| one.end.is_none_or(|end| end.next > lsn));
        let kept = if planted!("truncates_too_much") {
            list.last()
        } else {
            kept
        };
        if let Some(kept) = kept {
            self.catalogue.raise_mark(kept.base());
        }
        self.retire(&list);
        self.first()
    }

    /// Hands what lies below the mark to the collector, each segment once, oldest first.
    fn retire(&self, list: &[SegmentSummary]) {
        let mark = self.catalogue.mark();
        let mut retired = lock(&self.retired);
        let dropped = list.iter().filter(|one| one.base() < mark);
        for end in dropped.filter_map(|one| one.end) {
            if end.next <= *retired {
                continue;
            }
            // Without room the next truncation hands it over.
            let Ok(permit) = self.catalogue.collector().reserve(0) else {
                return;
            };
            permit.push(Retired { end: end.next });
            *retired = end.next;
        }
    }

    /// Removes the files of dropped segments that no reader wants, or keeps them as spares. One
    /// caller at a time. Returns how many went.
    pub(crate) fn remove_files(&self, io: &mut Blocking<'_>, dir: &File) -> Result<u64> {
        let (mut gone, mut failure) = (0, None);
        self.seal();
        self.catalogue
            .collector()
            .collect_by(Budget::ALL, |region, _| {
                self.released.fetch_max(region.end.0, Ordering::Relaxed);
                let outcome = match &failure {
                    None => self.remove_released(io, dir, &mut gone),
                    Some(error) => Err(Error::clone(error)),
                };
                if let Err(error) = &outcome {
                    failure.get_or_insert_with(|| error.clone());
                }
                outcome
            });
        match failure {
            Some(error) => Err(error),
            // What an earlier call could not remove.
            None => self.remove_released(io, dir, &mut gone).map(|()| gone),
        }
    }

    /// Does not wait for readers any more. One that has the file of a dropped segment open reads it
    /// to its end; after that it is told that the next one was removed.
    pub(crate) fn release_dropped(&self) {
        self.released
            .fetch_max(self.catalogue.mark().0, Ordering::Relaxed);
    }

    /// Whether [`remove_files`](Self::remove_files) would remove something.
    pub(crate) fn is_removal_due(&self) -> bool {
        self.seal();
        self.catalogue.collector().is_ready() || self.next_to_remove().is_some()
    }

    /// Seals what was retired, and only then renews the pins of readers that do not want it: a
    /// pin that is younger than the seal does not hold it.
    fn seal(&self) {
        self.catalogue.collector().is_ready();
        self.catalogue.renew_holds();
    }

    fn remove_released(&self, io: &mut Blocking<'_>, dir: &File, gone: &mut u64) -> Result<()> {
        while let Some(oldest) = self.next_to_remove() {
            self.spares.dispose(io, dir, &oldest)?;
            self.catalogue.remove(oldest.id());
            *gone += 1;
        }
        Ok(())
    }

    fn next_to_remove(&self) -> Option<SegmentSummary> {
        let oldest = self.catalogue.list().into_iter().next()?;
        let end = oldest.end?.next;
        (end.0 <= self.released.load(Ordering::Relaxed)).then_some(oldest)
    }
}

/// The error for a reader that starts below what is left.
pub(crate) fn truncated(start: Lsn, first: Lsn) -> Error {
    Error::new(
        ErrorKind::Invalid,
        "the log was truncated above this LSN; start at first_lsn",
    )
    .with("lsn", start.0)
    .with("first_lsn", first.0)
}
