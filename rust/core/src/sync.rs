//! The one place that names atomics, locks, cells and threads.
//!
//! Lock-free code imports these names from here, so that under `--cfg loom` the same source is
//! explored by loom, and everywhere else it is plain `std`.
//!
//! Loom treats sequentially consistent *accesses* as acquire-release but supports sequentially
//! consistent *fences*; code that needs a total order says so with [`fence`].

#[cfg(not(loom))]
pub use std::{
    cell::UnsafeCell as StdUnsafeCell,
    sync::{
        Arc, Condvar, Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence},
    },
    thread,
};

#[cfg(loom)]
pub use loom::{
    sync::{
        Arc, Condvar, Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence},
    },
    thread,
};

#[cfg(loom)]
pub use loom::cell::UnsafeCell;

/// A cell with loom's closure interface over the standard one.
#[cfg(not(loom))]
#[derive(Debug)]
pub struct UnsafeCell<T>(StdUnsafeCell<T>);

#[cfg(not(loom))]
impl<T> UnsafeCell<T> {
    /// Wraps a value.
    pub const fn new(value: T) -> Self {
        Self(StdUnsafeCell::new(value))
    }

    /// Hands out a shared raw pointer; what is done with it is the caller's to justify.
    #[inline]
    pub fn with<R>(&self, f: impl FnOnce(*const T) -> R) -> R {
        f(self.0.get())
    }

    /// Hands out an exclusive raw pointer; what is done with it is the caller's to justify.
    #[inline]
    pub fn with_mut<R>(&self, f: impl FnOnce(*mut T) -> R) -> R {
        f(self.0.get())
    }
}

#[cfg(loom)]
pub use self::loom_queue::Queue;
/// An unbounded queue of many producers and consumers: crossbeam's, and under loom, which knows
/// nothing of that one, a locked deque with the same order and edges.
#[cfg(not(loom))]
pub use crossbeam::queue::SegQueue as Queue;

#[cfg(loom)]
mod loom_queue {
    use std::collections::VecDeque;

    use super::{Mutex, lock};

    /// The twin of crossbeam's `SegQueue`.
    #[derive(Debug)]
    pub struct Queue<T>(Mutex<VecDeque<T>>);

    impl<T> Default for Queue<T> {
        fn default() -> Self {
            Self::new()
        }
    }

    impl<T> Queue<T> {
        /// An empty queue.
        pub fn new() -> Self {
            Self(Mutex::new(VecDeque::new()))
        }

        /// Adds at the back.
        pub fn push(&self, item: T) {
            lock(&self.0).push_back(item);
        }

        /// Takes from the front.
        pub fn pop(&self) -> Option<T> {
            lock(&self.0).pop_front()
        }

        /// How many there are.
        pub fn len(&self) -> usize {
            lock(&self.0).len()
        }

        /// Whether there are none.
        pub fn is_empty(&self) -> bool {
            self.len() == 0
        }
    }
}

/// Locks a mutex even if a thread panicked while it held it.
///
/// Every structure behind our mutexes is valid between any two statements that may panic, so a
/// poisoned mutex carries no news; a panic in the engine is reported by its own poison state.
#[inline]
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Locks a mutex if nobody holds it; poison is no news, as in [`lock`].
#[inline]
pub fn try_lock<T>(mutex: &Mutex<T>) -> Option<MutexGuard<'_, T>> {
    match mutex.try_lock() {
        Ok(guard) => Some(guard),
        Err(std::sync::TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
        Err(std::sync::TryLockError::WouldBlock) => None,
    }
}

/// Ends another thread's wait. Cheap to call twice, safe to call from anywhere.
pub trait Wake: Send + Sync {
    /// Makes the next (or current) wait of the sleeper return.
    fn wake(&self);
}

/// A shared [`Wake`]. Counted by the standard library under loom as well: loom's `Arc` does not
/// coerce to a trait object, and who frees a waker last is not what the models are about.
pub type Waker = std::sync::Arc<dyn Wake>;

/// A number for statistics. It orders nothing, so loom does not explore it.
#[derive(Debug, Default)]
pub struct Count(std::sync::atomic::AtomicU64);

impl Count {
    /// Adds one.
    #[inline]
    pub fn up(&self) {
        self.add(1);
    }

    /// Adds `amount`.
    #[inline]
    pub fn add(&self, amount: u64) {
        self.0
            .fetch_add(amount, std::sync::atomic::Ordering::Relaxed);
    }

    /// What was counted so far.
    #[inline]
    pub fn get(&self) -> u64 {
        self.0.load(std::sync::atomic::Ordering::Relaxed)
    }
}
