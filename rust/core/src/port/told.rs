//! Whose bell is raised by somebody who raises one at a time.
//!
//! # Always true
//!
//! 1. Bell and address change together, under the lock. The address alone says, without the lock,
//!    whether there is anything to change; who takes the lock compares once more.

use std::sync::Arc;

use crate::sync::{AtomicUsize, Mutex, Ordering, lock};

/// See the module.
pub(crate) struct Told<T> {
    bell: Mutex<Option<Arc<T>>>,
    /// Of the bell; 0 without one.
    address: AtomicUsize,
}

impl<T> Told<T> {
    pub(crate) fn new() -> Self {
        Self {
            bell: Mutex::new(None),
            address: AtomicUsize::new(0),
        }
    }

    pub(crate) fn address(&self) -> usize {
        self.address.load(Ordering::Relaxed)
    }

    pub(crate) fn get(&self) -> Option<Arc<T>> {
        lock(&self.bell).clone()
    }

    /// From now on `bell`, if nobody is told or another one `may_be_replaced`.
    pub(crate) fn tell(&self, bell: &Arc<T>, may_be_replaced: bool) {
        let mine = address_of(bell);
        let is_due = |told| told != mine && (told == 0 || may_be_replaced);
        self.change(is_due, || Some(Arc::clone(bell)));
    }

    /// No longer `bell`.
    pub(crate) fn forget(&self, bell: &Arc<T>) {
        let mine = address_of(bell);
        self.change(|told| told == mine, || None);
    }

    /// Nobody any more.
    pub(crate) fn stop(&self) {
        self.change(|told| told != 0, || None);
    }

    fn change(&self, is_due: impl Fn(usize) -> bool, next: impl FnOnce() -> Option<Arc<T>>) {
        if !is_due(self.address()) {
            return;
        }
        let next = next();
        let address = next.as_ref().map_or(0, address_of);
        let in_two_steps = planted!("told_in_two_steps");
        if in_two_steps {
            self.address.store(address, Ordering::Relaxed);
        }
        let mut bell = lock(&self.bell);
        if !in_two_steps {
            if !is_due(self.address()) {
                return;
            }
            self.address.store(address, Ordering::Relaxed);
        }
        let before = std::mem::replace(&mut *bell, next);
        drop(bell);
        // Perhaps the last reference, which closes a descriptor: not under the lock.
        drop(before);
    }

    /// Whether bell and address belong together.
    #[cfg(all(test, loom))]
    pub(super) fn is_consistent(&self) -> bool {
        let bell = lock(&self.bell);
        bell.as_ref().map_or(0, address_of) == self.address()
    }
}

fn address_of<T>(bell: &Arc<T>) -> usize {
    Arc::as_ptr(bell) as usize
}
