//! The models that loom explores: every interleaving and every stale value it allows.
//!
//! Each model is as small as its question: two or three threads, two or three entries.

use super::{
    Admission, AdmissionState, Claim, Consumer, Entries, Limits, Parker, Producer, Refusal, Rest,
    Weigh, completion, ring_at,
};
use crate::{
    Error,
    sync::{Arc, Waker, thread},
};

/// Explores with a limited number of preemptions, for models too large to explore in full.
fn bounded(preemptions: usize, model: impl Fn() + Sync + Send + 'static) {
    let mut builder = ::loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.check(model);
}

struct Item(u64);

impl Weigh for Item {
    fn weight(&self) -> usize {
        1
    }
}

/// Bytes are counted only if `capacity_bytes` is the tighter limit.
fn small(capacity: usize, capacity_bytes: usize, origin: u64) -> (Producer<Item>, Consumer<Item>) {
    ring_at(
        Limits {
            capacity,
            capacity_bytes,
            entry_bytes_max: 1,
            bytes_outlive_slots: false,
        },
        origin,
    )
    .unwrap()
}

/// Pops `count` entries, letting the producers run while there are none.
fn pop(consumer: &mut Consumer<Item>, count: usize) -> Vec<u64> {
    let mut popped = Vec::new();
    while popped.len() < count {
        match consumer.pop() {
            Some(item) => popped.push(item.0),
            None => thread::yield_now(),
        }
    }
    popped
}

/// Sleeps as a consumer should until something may be there. Loom reports a lost wake as a
/// deadlock.
fn rest(consumer: &mut Consumer<Item>, parker: &Parker) {
    match consumer.announce() {
        Rest::Awake => {}
        Rest::Nap => thread::yield_now(),
        Rest::Sleep => {
            parker.park(None);
        }
    }
    consumer.retract();
}

fn parker_and_waker() -> (std::sync::Arc<Parker>, Waker) {
    let parker = std::sync::Arc::new(Parker::new());
    let waker: Waker = std::sync::Arc::clone(&parker) as Waker;
    (parker, waker)
}

#[test]
fn two_producers_against_the_consumer() {
    // Two producers fill the ring while the consumer drains: each entry comes out once, whole.
    ::loom::model(|| {
        let (producer, mut consumer) = small(2, 2, 0);
        let other = producer.clone();
        let first = thread::spawn(move || producer.try_append(Item(1)).is_ok());
        let second = thread::spawn(move || other.try_append(Item(2)).is_ok());
        let mut popped = pop(&mut consumer, 2);
        assert!(first.join().unwrap() && second.join().unwrap());
        popped.sort_unstable();
        assert_eq!(popped, [1, 2]);
    });
}

#[test]
fn append_against_close_and_drain() {
    // Whatever append returned success is seen by the drain that runs to the final position.
    ::loom::model(|| {
        let (producer, mut consumer) = small(2, 2, 0);
        let appending = thread::spawn(move || {
            u64::from(producer.try_append(Item(1)).is_ok())
                + u64::from(producer.try_append(Item(2)).is_ok())
        });
        assert!(consumer.close());
        let mut seen = 0;
        while !consumer.is_finished() {
            match consumer.pop() {
                Some(_) => seen += 1,
                None => thread::yield_now(),
            }
        }
        assert_eq!(appending.join().unwrap(), seen);
        assert!(consumer.pop().is_none());
    });
}

#[test]
fn capacity_two_over_several_laps() {
    // Slots are reused for three laps, across the wrap of the position, and nothing is mixed up.
    bounded(3, || {
        let (producer, mut consumer) = small(2, 2, u64::MAX >> 1);
        let appending = thread::spawn(move || {
            for number in 0..5 {
                let mut item = Item(number);
                while let Err(refused) = producer.try_append(item) {
                    assert_eq!(refused.reason, Refusal::Full);
                    item = refused.value;
                    thread::yield_now();
                }
            }
        });
        let mut seen = Vec::new();
        while seen.len() < 5 {
            match consumer.pop() {
                Some(item) => {
                    seen.push(item.0);
                    consumer.release();
                }
                None => thread::yield_now(),
            }
        }
        appending.join().unwrap();
        assert_eq!(seen, [0, 1, 2, 3, 4]);
    });
}

#[test]
fn batches_are_neighbours() {
    // Two entries that enter together lie next to each other, whoever else appends.
    ::loom::model(|| {
        let (producer, mut consumer) = small(4, 4, 0);
        let other = producer.clone();
        let batch = thread::spawn(move || {
            producer
                .try_append_many(vec![Item(1), Item(2)])
                .map_err(|refused| refused.reason)
        });
        let single = thread::spawn(move || other.try_append(Item(3)).is_ok());
        let popped = pop(&mut consumer, 3);
        assert!(single.join().unwrap());
        let first = batch.join().unwrap().unwrap() as usize;
        assert_eq!(popped[first..first + 2], [1, 2]);
    });
}

#[test]
fn a_sleeping_consumer_is_woken() {
    // A consumer that announced and looked once more sleeps only until the next append.
    ::loom::model(|| {
        let (producer, mut consumer) = small(2, 2, 0);
        let (parker, waker) = parker_and_waker();
        consumer.set_wake(Some(waker));
        let appending = thread::spawn(move || producer.try_append(Item(1)).is_ok());
        while consumer.pop().is_none() {
            rest(&mut consumer, &parker);
        }
        assert!(appending.join().unwrap());
    });
}

#[test]
fn close_wakes_a_sleeping_consumer() {
    // A consumer that sleeps through a close would never learn that it is finished.
    ::loom::model(|| {
        let (producer, mut consumer) = small(2, 2, 0);
        let (parker, waker) = parker_and_waker();
        consumer.set_wake(Some(waker));
        let closing = thread::spawn(move || producer.close());
        while !consumer.is_finished() {
            rest(&mut consumer, &parker);
        }
        assert!(closing.join().unwrap());
    });
}

#[test]
fn a_consumer_that_sleeps_twice_is_woken_twice() {
    // The waker of the first sleep may be late; it must not use up the wake of the second.
    bounded(2, || {
        let (producer, mut consumer) = small(2, 2, 0);
        let (parker, waker) = parker_and_waker();
        consumer.set_wake(Some(waker));
        let appending = thread::spawn(move || {
            assert!(producer.try_append(Item(1)).is_ok());
            assert!(producer.try_append(Item(2)).is_ok());
        });
        let mut seen = 0;
        while seen < 2 {
            match consumer.pop() {
                Some(_) => seen += 1,
                None => rest(&mut consumer, &parker),
            }
        }
        appending.join().unwrap();
    });
}

#[test]
fn a_queued_append_is_woken_by_released_slots() {
    // An append that queues because the slots are gone gets in when the consumer releases, and
    // its thread sleeps no longer than that.
    ::loom::model(|| {
        let (producer, mut consumer) = small(2, 2, 0);
        assert!(producer.try_append_many(vec![Item(0), Item(1)]).is_ok());
        let queueing = thread::spawn(move || append_asleep(&producer, Item(2)));
        assert_eq!(pop(&mut consumer, 1), [0]);
        consumer.release();
        assert_eq!(queueing.join().unwrap(), 2);
        assert_eq!(pop(&mut consumer, 2), [1, 2]);
    });
}

#[test]
fn a_queued_append_is_woken_by_released_bytes() {
    // The same for bytes, which are given back apart from the slots.
    ::loom::model(|| {
        let (producer, mut consumer) = ring_at(
            Limits {
                capacity: 4,
                capacity_bytes: 1,
                entry_bytes_max: 1,
                bytes_outlive_slots: true,
            },
            0,
        )
        .unwrap();
        assert!(producer.try_append(Item(0)).is_ok());
        assert_eq!(pop(&mut consumer, 1), [0]);
        consumer.release_slots();
        let queueing = thread::spawn(move || append_asleep(&producer, Item(1)));
        consumer.release_bytes(1);
        assert_eq!(queueing.join().unwrap(), 1);
        assert_eq!(pop(&mut consumer, 1), [1]);
    });
}

/// Appends, asleep without a bound while the append queues.
fn append_asleep(producer: &Producer<Item>, item: Item) -> u64 {
    let (parker, waker) = parker_and_waker();
    let admission = match producer.append_or_queue(Entries::One(item), waker) {
        Ok(Claim::Now(position)) => return position,
        Ok(Claim::Later(admission)) => admission,
        Err(refused) => panic!("refused: {}", refused.reason),
    };
    assert!(parker.park(None));
    position(&admission)
}

fn position(admission: &Admission<Item>) -> u64 {
    match admission.state() {
        AdmissionState::Admitted(position) => position,
        other => panic!("woken in state {other:?}"),
    }
}

/// An entry that weighs what it says.
struct Heavy(usize);

impl Weigh for Heavy {
    fn weight(&self) -> usize {
        self.0
    }
}

#[test]
fn reserved_bytes_given_back_let_the_queue_in() {
    // An append reserves the only byte, finds its slot taken, and gives the byte back. If slots
    // were released in between, an append that queues for both is let in by nobody else.
    bounded(3, || {
        let limits = Limits {
            capacity: 2,
            capacity_bytes: 1,
            entry_bytes_max: 1,
            bytes_outlive_slots: false,
        };
        let (producer, mut consumer) = ring_at(limits, 0).unwrap();
        assert!(producer.try_append(Heavy(0)).is_ok());
        let other = producer.clone();
        let trying = thread::spawn(move || other.try_append(Heavy(1)).is_ok());
        let _ = producer.try_append(Heavy(0));
        let (_parker, waker) = parker_and_waker();
        let queued = producer.append_or_queue(Entries::One(Heavy(1)), waker);
        assert!(consumer.pop().is_some());
        consumer.release();
        if trying.join().unwrap() {
            // It kept the byte, which comes back when its entry is drained.
            consumer.drain(2, drop);
        }
        match queued {
            Ok(Claim::Now(_)) => {}
            Ok(Claim::Later(admission)) => {
                assert!(matches!(admission.state(), AdmissionState::Admitted(_)));
            }
            Err(refused) => panic!("refused: {}", refused.reason),
        }
    });
}

#[test]
fn cancel_against_admission() {
    // A cancelled append either was never written, or was in the ring before: never both, never
    // neither.
    ::loom::model(|| {
        let (producer, mut consumer) = small(2, 2, 0);
        assert!(producer.try_append_many(vec![Item(0), Item(1)]).is_ok());
        let (_parker, waker) = parker_and_waker();
        let Ok(Claim::Later(admission)) = producer.append_or_queue(Entries::One(Item(2)), waker)
        else {
            panic!("a full ring queues");
        };
        let cancelling = {
            let admission = Arc::clone(&admission);
            thread::spawn(move || admission.cancel())
        };
        assert_eq!(pop(&mut consumer, 2), [0, 1]);
        consumer.release();
        let cancelled = cancelling.join().unwrap();
        assert_eq!(consumer.pop().is_none(), cancelled);
        assert_eq!(admission.take_back().is_some(), cancelled);
        assert_eq!(admission.state() == AdmissionState::Cancelled, cancelled);
    });
}

#[test]
fn two_outcomes_and_two_waiters() {
    // Two answers compete: exactly one wins, and both waiters, asleep without a bound, see it.
    bounded(3, || {
        let (worker, ticket) = completion::<u32>();
        let worker = Arc::new(worker);
        let other = ticket.clone();
        let failing = {
            let worker = Arc::clone(&worker);
            thread::spawn(move || worker.failed(Error::invalid("planned")))
        };
        let waiting = thread::spawn(move || other.wait(None).unwrap().is_ok());
        let done = worker.done(7);
        let here = ticket.wait(None).unwrap().is_ok();
        let there = waiting.join().unwrap();
        let failed = failing.join().unwrap();
        assert_ne!(done, failed);
        assert_eq!(here, done);
        assert_eq!(there, done);
    });
}

#[test]
fn a_dropped_completion_wakes_its_waiter() {
    // A worker that goes away without an answer leaves nobody asleep.
    ::loom::model(|| {
        let (worker, ticket) = completion::<u32>();
        let dropping = thread::spawn(move || drop(worker));
        assert!(ticket.wait(None).unwrap().is_err());
        dropping.join().unwrap();
    });
}

#[test]
fn parking_remembers_a_wake_that_came_first() {
    // A wake before the park, during it, or at the same moment ends it.
    ::loom::model(|| {
        let (parker, waker) = parker_and_waker();
        let waking = thread::spawn(move || waker.wake());
        assert!(parker.park(None));
        waking.join().unwrap();
    });
}

#[test]
fn dropping_the_consumer_waits_for_claims() {
    // The consumer goes away while an append is between claim and publish: the entry is dropped
    // with the ring or refused, and its completion answers.
    ::loom::model(|| {
        struct Answering(#[allow(dead_code)] super::Completion<()>);
        impl Weigh for Answering {
            fn weight(&self) -> usize {
                1
            }
        }
        let limits = Limits {
            capacity: 2,
            capacity_bytes: 2,
            entry_bytes_max: 1,
            bytes_outlive_slots: false,
        };
        let (producer, consumer) = ring_at::<Answering>(limits, 0).unwrap();
        let (worker, ticket) = completion::<()>();
        let appending = thread::spawn(move || {
            let _ = producer.try_append(Answering(worker));
            // The producer outlives the consumer; the answer may not wait for it.
            producer
        });
        drop(consumer);
        let producer = appending.join().unwrap();
        assert!(ticket.is_done());
        drop(producer);
    });
}
