//! Where answers go.

use std::{path::Path, sync::Arc};

use super::request::{Id, Reply};
use crate::{error::Result, io::Leftovers};

/// An answer, given once for each submission that was accepted.
#[derive(Debug)]
pub struct Answered {
    /// Which submission.
    pub id: Id,
    /// The number the submitter gave it.
    pub tag: u64,
    /// What came of it.
    pub result: Result<Reply>,
}

/// Where a request takes place.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Whereabouts {
    /// The file or directory.
    pub path: Option<Arc<Path>>,
    /// From where on in it.
    pub offset: Option<u64>,
}

/// Takes answers, on the thread that turns the loop. Never waits, never panics, and does not call
/// the loop: a queue with a bell is the usual sink.
pub trait Sink: Send + Sync {
    /// One request is over for its waiter.
    fn answer(&self, answered: Answered);

    /// The loop has ended, and this is what it left behind. `tag` is the number given to
    /// [`Handle::close`](super::Handle::close).
    fn closed(&self, tag: u64, left: Leftovers) {
        let _ = (tag, left);
    }

    /// The request with this number has become slow and goes on; see
    /// [`Handle::slow_operations`](super::Handle::slow_operations).
    fn slow(&self, tag: u64) {
        let _ = tag;
    }

    /// Where the request with this number takes place. Nobody asks before it has become slow, or
    /// its waiter leaves while it goes on.
    fn whereabouts(&self, tag: u64) -> Whereabouts {
        let _ = tag;
        Whereabouts::default()
    }
}
