//! The segments of an open log, oldest first, and how they go.
//!
//! A segment leaves the list when everything in it lies below the truncation mark. Its file goes
//! when the last reader that may still need it lets go of its `Arc`, oldest first, each removal
//! durable before the next one begins, so that no crash leaves a hole in the middle.

use std::{collections::VecDeque, sync::OnceLock};

use crate::{
    ids::{Lsn, SegmentId},
    sync::{Arc, Mutex, lock},
};

use super::segment::{End, SegmentHeader};

/// One segment of an open log. Holding the `Arc` keeps its file in the directory.
#[derive(Debug)]
pub struct Segment {
    /// Its header.
    pub header: SegmentHeader,
    end: OnceLock<End>,
}

impl Segment {
    pub(crate) fn new(header: SegmentHeader, end: Option<End>) -> Arc<Self> {
        let cell = OnceLock::new();
        if let Some(end) = end {
            let _first = cell.set(end);
        }
        Arc::new(Self { header, end: cell })
    }

    /// Its number.
    pub fn id(&self) -> SegmentId {
        self.header.segment
    }

    /// Where it ended; `None` while it is the active one.
    pub fn end(&self) -> Option<&End> {
        self.end.get()
    }
}

#[derive(Debug, Default)]
struct Lists {
    live: VecDeque<Arc<Segment>>,
    doomed: VecDeque<Arc<Segment>>,
}

/// The list. Its lock is held for moments only, never across I/O.
#[derive(Debug, Default)]
pub(crate) struct Segments(Mutex<Lists>);

impl Segments {
    pub(crate) fn new(live: impl IntoIterator<Item = Arc<Segment>>) -> Self {
        Self(Mutex::new(Lists {
            live: live.into_iter().collect(),
            doomed: VecDeque::new(),
        }))
    }

    /// The active segment ended and `next` follows.
    pub(crate) fn rotated(&self, end: &End, next: &SegmentHeader) {
        let mut lists = lock(&self.0);
        if let Some(last) = lists.live.back() {
            let _first = last.end.set(*end);
        }
        lists.live.push_back(Segment::new(next.clone(), None));
    }

    /// The first LSN that is still there.
    pub(crate) fn first(&self) -> Lsn {
        let lists = lock(&self.0);
        lists.live.front().map_or(Lsn::FIRST, |s| s.header.base)
    }

    /// How many segments are readable, and how many wait for a reader to let go.
    pub(crate) fn count(&self) -> (usize, usize) {
        let lists = lock(&self.0);
        (lists.live.len(), lists.doomed.len())
    }

    /// Every live segment that may hold an LSN at or above `start`, oldest first.
    pub(crate) fn from(&self, start: Lsn) -> Vec<Arc<Segment>> {
        let lists = lock(&self.0);
        let ended = |s: &Arc<Segment>| s.end().is_some_and(|end| end.next <= start);
        lists
            .live
            .iter()
            .skip_while(|s| ended(s))
            .cloned()
            .collect()
    }

    /// The segment after `id`, if there is one by now.
    pub(crate) fn after(&self, id: SegmentId) -> Option<Arc<Segment>> {
        let lists = lock(&self.0);
        lists.live.iter().find(|s| s.id() > id).cloned()
    }

    /// Takes whole segments below `lsn` out of the list and returns the first LSN left.
    pub(crate) fn truncate(&self, lsn: Lsn) -> Lsn {
        let mut lists = lock(&self.0);
        while let Some(front) = lists.live.front() {
            if front.end().is_none_or(|end| end.next > lsn) {
                break;
            }
            if let Some(gone) = lists.live.pop_front() {
                lists.doomed.push_back(gone);
            }
        }
        lists.live.front().map_or(lsn, |s| s.header.base)
    }

    /// The oldest doomed segment, if nobody reads it any more.
    pub(crate) fn next_to_remove(&self) -> Option<SegmentId> {
        let lists = lock(&self.0);
        let oldest = lists.doomed.front()?;
        (Arc::strong_count(oldest) == 1).then(|| oldest.id())
    }

    /// Its file is gone.
    pub(crate) fn removed(&self, id: SegmentId) {
        let mut lists = lock(&self.0);
        if lists.doomed.front().is_some_and(|s| s.id() == id) {
            lists.doomed.pop_front();
        }
    }
}
