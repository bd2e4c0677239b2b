//! Where answers go.

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
}
