//! The keys of timers that end together.
//!
//! Timers come and go by themselves; their keys stay here until there are twice as many as lived
//! at the last look, and those that are stale are then dropped. So a scope keeps at most about
//! two keys for each timer that lives, and adding one takes constant time, in the long run.
//!
//! Keys lie in bundles, each of them a piece of work: the end of a scope hands them over as they
//! are, and whoever cancels them does so bundle by bundle.

use super::{Key, TimeoutWheel};

/// Keys of a bundle: what is cancelled in one go.
const BUNDLE: usize = 256;
/// With so few keys nobody looks for stale ones.
const FEW: usize = 64;

/// Timers of one wheel that are cancelled together.
#[derive(Debug)]
pub struct Scope {
    bundles: Vec<Vec<Key>>,
    keys: usize,
    look_at: usize,
}

impl Scope {
    /// Nothing belongs to it yet.
    pub const fn new() -> Self {
        Self {
            bundles: Vec::new(),
            keys: 0,
            look_at: FEW,
        }
    }

    /// The timer of `key` belongs to it.
    pub fn add<T>(&mut self, wheel: &TimeoutWheel<T>, key: Key) {
        if self.keys >= self.look_at {
            self.forget_stale(wheel);
        }
        self.keys += 1;
        match self.bundles.last_mut() {
            Some(last) if last.len() < BUNDLE => last.push(key),
            _ => self.bundles.push(vec![key]),
        }
    }

    fn forget_stale<T>(&mut self, wheel: &TimeoutWheel<T>) {
        let keys = self.bundles.iter().flatten().copied();
        let living: Vec<_> = keys.filter(|key| wheel.contains(*key)).collect();
        self.keys = living.len();
        self.look_at = FEW.max(2 * living.len());
        self.bundles = living.chunks(BUNDLE).map(<[Key]>::to_vec).collect();
    }

    /// How many keys are kept, stale ones included.
    pub fn keys(&self) -> usize {
        self.keys
    }

    /// The keys, to be cancelled; nothing belongs to it any more.
    pub fn end(&mut self) -> Vec<Vec<Key>> {
        std::mem::take(self).bundles
    }
}

impl Default for Scope {
    fn default() -> Self {
        Self::new()
    }
}
