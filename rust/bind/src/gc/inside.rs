//! Which collectors run a call on this thread right now.
//!
//! Always true: inside a call of a collector nothing else of that collector is run on the same
//! thread, except a call that is run inline. So calls do not pile up on the stack, and nobody
//! waits for room that only their own end gives back.

use std::{cell::RefCell, marker::PhantomData};

use millrace_core::planted;

use super::calls::Calls;

struct Frame {
    /// Address of the collector, which the run under way keeps alive.
    calls: usize,
    must_finish: bool,
}

thread_local! {
    static FRAMES: RefCell<Vec<Frame>> = const { RefCell::new(Vec::new()) };
}

/// Calls are being run on this thread.
pub(super) struct Inside {
    /// How many frames are below this one.
    below: usize,
    stays_on_its_thread: PhantomData<*const ()>,
}

impl Inside {
    pub(super) fn enter(calls: &Calls) -> Self {
        let below = FRAMES.with_borrow_mut(|frames| {
            frames.push(Frame {
                calls: address(calls),
                must_finish: false,
            });
            frames.len() - 1
        });
        Self {
            below,
            stays_on_its_thread: PhantomData,
        }
    }

    /// Whether one of the calls asked for everything to be run.
    pub(super) fn must_finish(&self) -> bool {
        FRAMES.with_borrow(|frames| {
            frames
                .get(self.below)
                .is_some_and(|frame| frame.must_finish)
        })
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        FRAMES.with_borrow_mut(Vec::pop);
    }
}

/// Whether this thread runs a call of `calls`.
pub(super) fn is_inside(calls: &Calls) -> bool {
    depth(calls) > 0 && !planted!("gc_calls_nest")
}

/// How many calls of `calls` this thread runs, one inside of the other.
pub(super) fn depth(calls: &Calls) -> usize {
    let frames = |frames: &Vec<Frame>| {
        let ours = frames.iter().filter(|frame| frame.calls == address(calls));
        ours.count()
    };
    FRAMES.with_borrow(frames)
}

/// Has the run under way on this thread run everything when the present call has ended. False:
/// there is none.
pub(super) fn finish_later(calls: &Calls) -> bool {
    FRAMES.with_borrow_mut(|frames| {
        let mut frames = frames.iter_mut();
        let outermost = frames.find(|frame| frame.calls == address(calls));
        outermost.map(|frame| frame.must_finish = true).is_some()
    })
}

fn address(calls: &Calls) -> usize {
    std::ptr::from_ref(calls).addr()
}
