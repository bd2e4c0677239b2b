//! The loop's promises: against a backend that a test plays by hand, and against every real one.

mod puppet;
pub(crate) mod real;

use std::{
    collections::HashMap,
    path::Path,
    sync::{Arc, Mutex},
};

use super::{Answered, Handle, Id, Reply, Sink, Whereabouts};
use crate::{
    error::{Error, ErrorKind},
    io::Leftovers,
    sync::lock,
};

/// Keeps every answer, and complains of a second one.
#[derive(Default)]
struct Inbox {
    answers: Mutex<HashMap<u64, Result<Reply, Error>>>,
    ids: Mutex<HashMap<Id, u64>>,
    order: Mutex<Vec<u64>>,
    ends: Mutex<Vec<(u64, Leftovers)>>,
}

impl Sink for Inbox {
    fn answer(&self, answered: Answered) {
        let Answered { id, tag, result } = answered;
        assert!(
            lock(&self.ids).insert(id, tag).is_none(),
            "a second answer to {id:?}"
        );
        assert!(lock(&self.answers).insert(tag, result).is_none());
        lock(&self.order).push(tag);
    }

    fn closed(&self, tag: u64, left: Leftovers) {
        lock(&self.ends).push((tag, left));
    }

    fn whereabouts(&self, tag: u64) -> Whereabouts {
        Whereabouts {
            path: Some(Path::new(&format!("/of/{tag}")).into()),
            offset: Some(tag),
        }
    }
}

impl Inbox {
    fn sink(self: &Arc<Self>) -> Arc<dyn Sink> {
        Arc::<Self>::clone(self)
    }

    fn len(&self) -> usize {
        lock(&self.answers).len()
    }

    fn has(&self, tag: u64) -> bool {
        lock(&self.answers).contains_key(&tag)
    }

    fn take(&self, tag: u64) -> Result<Reply, Error> {
        let answer = lock(&self.answers).remove(&tag);
        answer.unwrap_or_else(|| panic!("{tag} was not answered"))
    }

    /// Tags in the order they were answered.
    fn order(&self) -> Vec<u64> {
        lock(&self.order).clone()
    }

    fn ended(&self) -> Option<Leftovers> {
        lock(&self.ends).first().map(|(_, left)| *left)
    }
}

fn bytes(reply: Result<Reply, Error>) -> Vec<u8> {
    match reply {
        Ok(Reply::Bytes { buffer, length }) => buffer[..length].to_vec(),
        other => panic!("no bytes: {other:?}"),
    }
}

fn count(reply: Result<Reply, Error>) -> u64 {
    match reply {
        Ok(Reply::Count(count)) => count,
        other => panic!("no count: {other:?}"),
    }
}

fn kind(reply: Result<Reply, Error>) -> ErrorKind {
    reply.unwrap_err().kind()
}

/// A timeout's say about whether it may have been done.
fn is_indeterminate(reply: Result<Reply, Error>) -> bool {
    let error = reply.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
    error.number("indeterminate") == Some(1)
}

const fn goes_to_any_thread<T: Send>() {}
const fn is_shared_by_threads<T: Sync>() {}

// What callers hold is shared between threads; what turns moves to the one that turns it.
const _: () = is_shared_by_threads::<Handle>();
const _: () = goes_to_any_thread::<Handle>();
const _: () = goes_to_any_thread::<super::IoLoop>();
