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

use std::{collections::VecDeque, sync::Mutex};

use crate::sync::lock;

/// See the module. One for each socket, however often that is duplicated.
#[derive(Debug, Default)]
pub struct Stash(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    bytes: VecDeque<u8>,
    /// Who was handed to the backend last.
    last: u64,
}

impl Stash {
    /// Whether nothing is here.
    pub fn is_empty(&self) -> bool {
        lock(&self.0).bytes.is_empty()
    }

    /// The receive with this number goes to the backend.
    pub(crate) fn begin(&self, number: u64) {
        lock(&self.0).last = number;
    }

    /// Puts back what a receive brought that is the last one begun, or still stands before all
    /// others.
    pub(crate) fn put_back(&self, bytes: &[u8]) {
        let mut state = lock(&self.0);
        state.put_back(bytes);
    }

    /// Puts back what the receive with this number was answered with. False: another one was begun
    /// after it, and it is too late.
    pub fn put_back_answer(&self, number: u64, bytes: &[u8]) -> bool {
        let mut state = lock(&self.0);
        let in_time = state.last == number;
        if in_time {
            state.put_back(bytes);
        }
        in_time
    }

    /// Moves what is here to the front of `into`; how much that was.
    pub(crate) fn take(&self, into: &mut [u8]) -> usize {
        let mut state = lock(&self.0);
        let count = into.len().min(state.bytes.len());
        for (place, byte) in into.iter_mut().zip(state.bytes.drain(..count)) {
            *place = byte;
        }
        if state.bytes.is_empty() {
            state.bytes = VecDeque::new();
        }
        count
    }
}

impl State {
    fn put_back(&mut self, bytes: &[u8]) {
        let behind = std::mem::replace(&mut self.bytes, bytes.iter().copied().collect());
        self.bytes.extend(behind);
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
