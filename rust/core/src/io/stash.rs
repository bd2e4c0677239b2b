//! Bytes of a stream that were taken from the kernel for a receive which nobody waits for any more.
//!
//! A stream cannot be put back into its socket. So what came to a receive that was given up waits
//! here, first in line for the next one, as if it had not been received yet.
//!
//! ```text
//! kernel --> receive --answered--> whoever waits
//!   ^           |  \--given up--> Stash --> the next receive, before it asks the kernel
//!   |           v
//!   +--- only when the stash is empty
//! ```
//!
//! # Always true
//!
//! 1. What is put back came before everything that is here: a backend puts back what a receive
//!    brought before it lets the next one on that socket begin.
//! 2. An answer that was given and then found nobody is put back only if no later receive was
//!    begun: its bytes would come in the wrong place.
//! 3. It holds at most as many bytes as the largest receive asked for that was given up: a receive
//!    takes what is here before it asks the kernel, and gives back at most what it asked for.
//!
//! So there is no limit of our own. What is kept lay in the memory of that receive just before, and
//! to drop some of it would be a hole in the stream. All stashes together are bounded by the
//! sockets that are open, as are the buffers that the kernel has for them.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicUsize, Ordering},
};

use crate::sync::lock;

/// See the module. One for each socket, however often that is duplicated.
#[derive(Debug, Default)]
pub struct Stash {
    state: Mutex<State>,
    /// How many bytes all stashes hold that count together.
    kept: Arc<AtomicUsize>,
}

#[derive(Debug, Default)]
struct State {
    memory: Vec<u8>,
    /// How much of the front of `memory` was taken already.
    taken: usize,
    /// Who was handed to the backend last.
    last: u64,
}

impl Stash {
    /// An empty one, whose bytes are counted in `kept`.
    pub fn counted(kept: &Arc<AtomicUsize>) -> Self {
        Self {
            kept: Arc::clone(kept),
            state: Mutex::default(),
        }
    }

    /// Whether nothing is here.
    pub fn is_empty(&self) -> bool {
        lock(&self.state).bytes().is_empty()
    }

    /// The receive with this number goes to the backend.
    pub(crate) fn begin(&self, number: u64) {
        lock(&self.state).last = number;
    }

    /// Puts back what a receive brought that is the last one begun, or still stands before all
    /// others.
    pub(crate) fn put_back(&self, bytes: &[u8]) {
        self.put_back_if(|_| true, bytes);
    }

    /// Puts back what the receive with this number was answered with. False: another one was begun
    /// after it, and it is too late.
    pub fn put_back_answer(&self, number: u64, bytes: &[u8]) -> bool {
        self.put_back_if(|state| state.last == number, bytes)
    }

    fn put_back_if(&self, in_time: impl Fn(&State) -> bool, bytes: &[u8]) -> bool {
        let mut state = lock(&self.state);
        let in_time = in_time(&state);
        if in_time {
            state.put_back(bytes);
            // A number to look at: it orders nothing.
            self.kept.fetch_add(bytes.len(), Ordering::Relaxed);
        }
        in_time
    }

    /// Moves what is here to the front of `into`; how much that was.
    pub(crate) fn take(&self, into: &mut [u8]) -> usize {
        let mut state = lock(&self.state);
        let count = into.len().min(state.bytes().len());
        into[..count].copy_from_slice(&state.bytes()[..count]);
        state.taken += count;
        if state.bytes().is_empty() {
            (state.memory, state.taken) = (Vec::new(), 0);
        }
        self.kept.fetch_sub(count, Ordering::Relaxed);
        count
    }
}

impl Drop for Stash {
    fn drop(&mut self) {
        let left = lock(&self.state).bytes().len();
        self.kept.fetch_sub(left, Ordering::Relaxed);
    }
}

impl State {
    fn bytes(&self) -> &[u8] {
        &self.memory[self.taken..]
    }

    fn put_back(&mut self, bytes: &[u8]) {
        if let Some(start) = self.taken.checked_sub(bytes.len()) {
            self.memory[start..self.taken].copy_from_slice(bytes);
            self.taken = start;
        } else {
            self.memory = [bytes, self.bytes()].concat();
            self.taken = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_put_back_comes_first_and_once() {
        // In front of what is there; taken in pieces, each byte once.
        let stash = Stash::default();
        stash.put_back(b"later");
        stash.put_back(b"first");
        let mut piece = [0; 7];
        assert_eq!((stash.take(&mut piece), &piece), (7, b"firstla"));
        let mut rest = [0; 7];
        assert_eq!((stash.take(&mut rest), &rest[..3]), (3, &b"ter"[..]));
        assert!(stash.is_empty());
        assert_eq!(stash.take(&mut rest), 0);
    }

    #[test]
    fn all_that_is_kept_is_counted() {
        // By all stashes together, whatever becomes of the bytes; room in front is used again.
        let kept = Arc::default();
        let (first, second) = (Stash::counted(&kept), Stash::counted(&kept));
        let count = || kept.load(Ordering::Relaxed);
        first.put_back(b"abcd");
        second.put_back(b"xy");
        assert_eq!(count(), 6);
        let mut piece = [0; 3];
        assert_eq!(first.take(&mut piece), 3);
        first.put_back(b"BC");
        assert_eq!((first.take(&mut piece), &piece), (3, b"BCd"));
        assert_eq!(count(), 2);
        drop((first, second));
        assert_eq!(count(), 0);
    }

    #[test]
    fn an_answer_comes_back_only_before_the_next_receive_begins() {
        // Behind the bytes of a later receive it would be in the wrong place.
        let stash = Stash::default();
        stash.begin(1);
        assert!(stash.put_back_answer(1, b"ab"));
        stash.begin(2);
        assert!(!stash.put_back_answer(1, b"ab"));
        let mut all = [0; 4];
        assert_eq!(stash.take(&mut all), 2);
    }
}
