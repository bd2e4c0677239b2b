//! The ring's own promises: what a single thread can see, and what a crowd must not break.

mod answers;
mod basics;
mod crowd;
mod model;
mod queue;
mod rest;

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use super::{
    Admission, AdmissionState, Backpressure, Bound, Claim, Consumer, Entries, Limits, Parker,
    Producer, Refusal, Rest, Weigh, completion, ring, ring_at,
};
use crate::{
    Error, ErrorKind,
    sync::{Wake, Waker},
};

/// An entry that weighs what it is told to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Item {
    number: u64,
    bytes: usize,
}

impl Weigh for Item {
    fn weight(&self) -> usize {
        self.bytes
    }
}

/// An entry of one byte.
fn item(number: u64) -> Item {
    Item { number, bytes: 1 }
}

fn heavy(number: u64, bytes: usize) -> Item {
    Item { number, bytes }
}

/// Limits under which only slots matter.
fn slots(capacity: usize) -> Limits {
    Limits {
        capacity,
        capacity_bytes: 1 << 30,
        entry_bytes_max: 1 << 10,
        bytes_outlive_slots: false,
    }
}

/// Limits under which bytes matter first.
fn bytes(capacity_bytes: usize) -> Limits {
    Limits {
        capacity: 64,
        capacity_bytes,
        entry_bytes_max: capacity_bytes,
        bytes_outlive_slots: false,
    }
}

fn make(limits: Limits) -> (Producer<Item>, Consumer<Item>) {
    ring(limits).unwrap()
}

/// Counts how often it is woken.
#[derive(Default)]
struct Bell(AtomicUsize);

impl Bell {
    fn rung(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

impl Wake for Bell {
    fn wake(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

fn bell() -> (Arc<Bell>, Waker) {
    let bell = Arc::new(Bell::default());
    let waker: Waker = Arc::clone(&bell) as Waker;
    (bell, waker)
}

fn drain_all(consumer: &mut Consumer<Item>) -> Vec<u64> {
    let mut drained = Vec::new();
    consumer.drain(usize::MAX, |item| drained.push(item.number));
    drained
}

/// Queues behind a full ring.
fn queue_up(
    producer: &Producer<Item>,
    entries: Entries<Item>,
    waker: Waker,
) -> Arc<Admission<Item>> {
    match producer.append_or_queue(entries, waker) {
        Ok(Claim::Later(admission)) => admission,
        Ok(Claim::Now(position)) => panic!("entered at {position} instead of queueing"),
        Err(refused) => panic!("refused: {}", refused.reason),
    }
}
