//! Appends that wait for room: first come, first served, for threads and event loops alike.
//!
//! The queue is used only when the ring is full. Whoever makes room (the consumer that releases,
//! an append that gives reserved bytes back, a head of the queue that is cancelled) lets waiting
//! appends in, as long as the head fits: claims for it, publishes, and wakes it.
//!
//! # Always true
//!
//! 1. A waiting append is in the map; it leaves exactly once: admitted, refused by `close`, or
//!    cancelled. It leaves and changes its state under the queue's lock.
//! 2. While the map is not empty, `Shared::queued` is not 0 and other appends are refused.
//! 3. Wakers are called and payloads dropped outside the lock.

use std::collections::BTreeMap;

use super::{
    limits::{Entries, Refusal, Refused, Weigh},
    producer::Claim,
    shared::Shared,
    slot::{Run, Shut},
};
use crate::sync::{Arc, AtomicU32, AtomicU64, Mutex, Ordering, Waker, lock};

const WAITING: u32 = 0;
const ADMITTED: u32 = 1;
const CLOSED: u32 = 2;
const CANCELLED: u32 = 3;

/// Where a queued append stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AdmissionState {
    /// Still in the queue.
    Waiting,
    /// In the ring; this is the position of its first entry.
    Admitted(u64),
    /// The ring was closed first; nothing was written.
    Closed,
    /// Cancelled in time; nothing was written.
    Cancelled,
}

/// A queued append, as its caller holds it. Dropping it changes nothing: the append stays queued.
pub struct Admission<T> {
    shared: Arc<Shared<T>>,
    number: u64,
    state: AtomicU32,
    position: AtomicU64,
    /// What was not written after all.
    returned: Mutex<Option<Entries<T>>>,
}

impl<T: Weigh + Send> Admission<T> {
    /// Where it stands now.
    pub fn state(&self) -> AdmissionState {
        // Acquire: partner is the release store in `settle`; the position was written before.
        match self.state.load(Ordering::Acquire) {
            WAITING => AdmissionState::Waiting,
            ADMITTED => AdmissionState::Admitted(self.position.load(Ordering::Relaxed)),
            CLOSED => AdmissionState::Closed,
            _ => AdmissionState::Cancelled,
        }
    }

    /// Leaves the queue. True if it was still waiting: then it will never be written.
    pub fn cancel(&self) -> bool {
        let told = {
            let mut queue = lock(&self.shared.queue);
            let Some(waiter) = queue.waiters.remove(&self.number) else {
                return false;
            };
            self.give_back(waiter.entries);
            self.settle(CANCELLED);
            self.shared.counters.cancelled.up();
            // A smaller append behind a large head may fit now.
            queue.admit(&self.shared)
        };
        self.shared.tell(&told);
        true
    }

    /// The entries, if they were not written: after `cancel` or when the ring was closed. Once.
    pub fn take_back(&self) -> Option<Entries<T>> {
        lock(&self.returned).take()
    }

    fn give_back(&self, entries: Entries<T>) {
        *lock(&self.returned) = Some(entries);
    }

    fn settle(&self, state: u32) {
        // Release: partner is the load in `state`.
        self.state.store(state, Ordering::Release);
    }
}

/// Somebody who left the queue other than by cancelling, to be woken.
pub(super) struct Left {
    number: u64,
    wake: Waker,
}

impl Left {
    pub(super) fn wake(&self) {
        self.wake.wake();
    }
}

struct Waiter<T> {
    entries: Entries<T>,
    bytes: usize,
    wake: Waker,
    admission: Arc<Admission<T>>,
}

/// The waiting appends, by number of arrival.
pub(super) struct Queue<T> {
    waiters: BTreeMap<u64, Waiter<T>>,
    arrivals: u64,
}

impl<T: Weigh + Send> Queue<T> {
    pub(super) fn new() -> Self {
        Self {
            waiters: BTreeMap::new(),
            arrivals: 0,
        }
    }

    /// Lets in from the head whoever fits. Returns whom to wake.
    pub(super) fn admit(&mut self, shared: &Shared<T>) -> Vec<Left> {
        let mut left = Vec::new();
        while let Some(head) = self.waiters.first_entry() {
            let waiter = head.get();
            match shared.claim_as_head(waiter.entries.len() as u64, waiter.bytes) {
                Ok(run) => {
                    let (number, waiter) = head.remove_entry();
                    let admission = waiter.admission;
                    admission.position.store(run.position(), Ordering::Relaxed);
                    fill(run, waiter.entries);
                    admission.settle(ADMITTED);
                    left.push(Left {
                        number,
                        wake: waiter.wake,
                    });
                }
                Err(Shut::Full) => break,
                Err(Shut::Closed) => {
                    left.append(&mut self.refuse_all(shared));
                    break;
                }
            }
        }
        shared.set_queued(self.waiters.len());
        left
    }

    /// Refuses everybody: the ring is closed. Returns whom to wake.
    pub(super) fn refuse_all(&mut self, shared: &Shared<T>) -> Vec<Left> {
        let mut left = Vec::with_capacity(self.waiters.len());
        while let Some((number, waiter)) = self.waiters.pop_first() {
            waiter.admission.give_back(waiter.entries);
            waiter.admission.settle(CLOSED);
            shared.refused(Refusal::Closed);
            left.push(Left {
                number,
                wake: waiter.wake,
            });
        }
        shared.set_queued(0);
        left
    }
}

/// Joins the queue; or, if there is room after all and nobody ahead, enters at once.
pub(super) fn join<T: Weigh + Send>(
    shared: &Arc<Shared<T>>,
    entries: Entries<T>,
    bytes: usize,
    wake: Waker,
) -> Result<Claim<T>, Refused<Entries<T>>> {
    let mut queue = lock(&shared.queue);
    let number = queue.arrivals;
    queue.arrivals += 1;
    let admission = Arc::new(Admission {
        shared: Arc::clone(shared),
        number,
        state: AtomicU32::new(WAITING),
        position: AtomicU64::new(0),
        returned: Mutex::new(None),
    });
    let waiter = Waiter {
        entries,
        bytes,
        wake,
        admission: Arc::clone(&admission),
    };
    queue.waiters.insert(number, waiter);
    // Before the sure look inside `admit`: whoever makes room after that look sees it.
    shared.set_queued(queue.waiters.len());
    let mut left = queue.admit(shared);
    // Our own answer is given here, not through our waker.
    left.retain(|gone| gone.number != number);
    let state = admission.state();
    drop(queue);
    shared.tell(&left);
    match state {
        AdmissionState::Admitted(position) => {
            shared.rouse();
            Ok(Claim::Now(position))
        }
        AdmissionState::Closed => match admission.take_back() {
            Some(value) => Err(Refused {
                value,
                reason: Refusal::Closed,
            }),
            None => Ok(Claim::Later(admission)),
        },
        AdmissionState::Waiting | AdmissionState::Cancelled => {
            shared.counters.queued.up();
            Ok(Claim::Later(admission))
        }
    }
}

/// Fills a run with everything an append brings.
#[inline]
pub(super) fn fill<T>(mut run: Run<'_, T>, entries: Entries<T>) {
    match entries {
        Entries::One(entry) => run.put(entry),
        Entries::Many(entries) => entries.into_iter().for_each(|entry| run.put(entry)),
    }
}
