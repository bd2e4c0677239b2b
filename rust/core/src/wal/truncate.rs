//! Dropping whole segments from the old end.
//!
//! A segment is dropped when everything in it lies below the truncation mark. Its file goes when
//! no reader that began before wants it any more, oldest first, each removal durable before the
//! next one begins, so that no crash leaves a hole in the middle.

use crate::{
    error::{Error, ErrorKind, Result},
    ids::Lsn,
    io::{Blocking, File},
    sync::{Arc, AtomicU64, Ordering},
};

use super::{
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
    /// Base of the oldest segment that was not dropped. Only grows.
    mark: AtomicU64,
}

impl Segments {
    pub(crate) fn new(catalogue: Catalogue, spares: Spares) -> Self {
        let segments = Self {
            catalogue: Arc::new(catalogue),
            spares,
            mark: AtomicU64::new(0),
        };
        let first = segments.first();
        segments.mark.store(first.0, Ordering::Relaxed);
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
        let mark = Lsn(self.mark.load(Ordering::Relaxed));
        let list = self.catalogue.list();
        list.iter()
            .map(SegmentSummary::base)
            .find(|base| *base >= mark)
            .unwrap_or(Lsn::FIRST)
    }

    /// How many segments can be read.
    pub(crate) fn count(&self) -> usize {
        let mark = Lsn(self.mark.load(Ordering::Relaxed));
        let list = self.catalogue.list();
        list.iter().filter(|one| one.base() >= mark).count()
    }

    /// Drops whole segments below `lsn` and returns the first LSN left. No file goes here.
    pub(crate) fn drop_below(&self, lsn: Lsn) -> Lsn {
        let list = self.catalogue.list();
        let kept = list
            .iter()
            .find(|one| one.end.is_none_or(|end| end.next > lsn));
        if let Some(kept) = kept {
            self.mark.fetch_max(kept.base().0, Ordering::Relaxed);
        }
        self.first()
    }

    /// Removes the files of dropped segments that no reader wants, or keeps them as spares. One
    /// caller at a time. Returns how many went.
    pub(crate) fn remove_files(&self, io: &mut Blocking<'_>, dir: &File) -> Result<u64> {
        let mut gone = 0;
        while let Some(oldest) = self.next_to_remove() {
            self.spares.dispose(io, dir, &oldest)?;
            self.catalogue.remove(oldest.id());
            gone += 1;
        }
        Ok(gone)
    }

    /// Whether [`remove_files`](Self::remove_files) would remove something.
    pub(crate) fn is_removal_due(&self) -> bool {
        self.next_to_remove().is_some()
    }

    fn next_to_remove(&self) -> Option<SegmentSummary> {
        let oldest = self.catalogue.list().into_iter().next()?;
        let dropped = oldest.base().0 < self.mark.load(Ordering::Relaxed);
        let end = oldest.end?.next;
        let wanted = self
            .catalogue
            .lowest_reader()
            .is_some_and(|reader| reader < end);
        (dropped && !wanted).then_some(oldest)
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
