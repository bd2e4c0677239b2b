//! Appends that wait: first come, first served; cancelled, closed, blocked.

use super::*;
use std::{
    thread,
    time::{Duration, Instant},
};

/// A ring of two slots, both taken.
fn full() -> (Producer<Item>, Consumer<Item>) {
    let (producer, consumer) = make(slots(2));
    producer.try_append_many(vec![item(0), item(1)]).unwrap();
    (producer, consumer)
}

fn one(number: u64) -> Entries<Item> {
    Entries::One(item(number))
}

#[test]
fn a_queued_append_enters_on_release_and_is_told_once() {
    // Room goes to whoever waits for it, and the waker is called once.
    let (producer, mut consumer) = full();
    let (bell, waker) = bell();
    let admission = queue_up(&producer, one(2), waker);
    assert_eq!(admission.state(), AdmissionState::Waiting);
    assert_eq!(drain_all(&mut consumer), [0, 1]);
    assert_eq!(admission.state(), AdmissionState::Admitted(2));
    assert_eq!(bell.rung(), 1);
    assert_eq!(drain_all(&mut consumer), [2]);
    assert_eq!(bell.rung(), 1);
}

#[test]
fn an_append_that_fits_does_not_queue() {
    // With room and nobody ahead the answer is immediate and the waker stays silent.
    let (producer, mut consumer) = make(slots(2));
    let (bell, waker) = bell();
    let claim = producer.append_or_queue(Entries::Many(vec![item(0), item(1)]), waker);
    assert!(matches!(claim, Ok(Claim::Now(0))));
    assert_eq!(drain_all(&mut consumer), [0, 1]);
    assert_eq!(bell.rung(), 0);
}

#[test]
fn the_queue_is_first_come_first_served() {
    // Waiting appends enter in the order they came, singles and batches alike.
    let (producer, mut consumer) = full();
    let (bell, waker) = bell();
    let second = Entries::Many(vec![item(3), item(4)]);
    let admissions = [
        queue_up(&producer, one(2), waker.clone()),
        queue_up(&producer, second, waker.clone()),
        queue_up(&producer, one(5), waker),
    ];
    let mut seen = Vec::new();
    for _ in 0..5 {
        seen.append(&mut drain_all(&mut consumer));
    }
    assert_eq!(seen, [0, 1, 2, 3, 4, 5]);
    let states = admissions.map(|admission| admission.state());
    assert_eq!(
        states,
        [2, 3, 5].map(AdmissionState::Admitted),
        "each knows the position of its first entry"
    );
    assert_eq!(bell.rung(), 3);
}

#[test]
fn nobody_overtakes_the_queue() {
    // While a large append waits, small ones that would fit wait behind it or are refused.
    let (producer, mut consumer) = make(slots(4));
    producer.try_append_many(vec![item(0); 3]).unwrap();
    let (_bell, waker) = bell();
    let large = queue_up(
        &producer,
        Entries::Many(vec![item(1), item(2)]),
        waker.clone(),
    );
    assert_eq!(
        producer.try_append(item(9)).unwrap_err().reason,
        Refusal::Full
    );
    let refused = producer.try_append_many(vec![item(9)]).unwrap_err();
    assert_eq!(refused.reason, Refusal::Full);
    let small = queue_up(&producer, one(3), waker);
    assert_eq!(drain_all(&mut consumer), [0, 0, 0]);
    assert_eq!(large.state(), AdmissionState::Admitted(3));
    assert_eq!(small.state(), AdmissionState::Admitted(5));
    assert_eq!(producer.try_append(item(4)), Ok(6));
    assert_eq!(drain_all(&mut consumer), [1, 2, 3, 4]);
}

#[test]
fn cancelling_before_admission_removes_the_waiter_only() {
    // The cancelled append is never written and has its entries back; the others keep their turn.
    let (producer, mut consumer) = full();
    let (bell, waker) = bell();
    let (silent, silent_waker) = super::bell();
    let first = queue_up(&producer, one(2), waker.clone());
    let second = queue_up(&producer, one(3), silent_waker);
    let third = queue_up(&producer, one(4), waker);
    assert!(second.cancel());
    assert!(!second.cancel());
    assert_eq!(second.state(), AdmissionState::Cancelled);
    assert_eq!(second.take_back(), Some(one(3)));
    assert_eq!(second.take_back(), None);
    assert_eq!(drain_all(&mut consumer), [0, 1]);
    assert_eq!(drain_all(&mut consumer), [2, 4]);
    assert_eq!(first.state(), AdmissionState::Admitted(2));
    assert_eq!(third.state(), AdmissionState::Admitted(3));
    assert_eq!((bell.rung(), silent.rung()), (2, 0));
}

#[test]
fn cancelling_after_admission_changes_nothing() {
    // Once in the ring, the entry stays, and cancel says that it came too late.
    let (producer, mut consumer) = full();
    let (_bell, waker) = bell();
    let admission = queue_up(&producer, one(2), waker);
    drain_all(&mut consumer);
    assert!(!admission.cancel());
    assert_eq!(admission.state(), AdmissionState::Admitted(2));
    assert_eq!(admission.take_back(), None);
    assert_eq!(drain_all(&mut consumer), [2]);
}

#[test]
fn cancelling_a_large_head_lets_smaller_ones_in() {
    // Only the head held them back; they need not wait for the consumer.
    let (producer, mut consumer) = make(slots(4));
    producer.try_append_many(vec![item(0); 3]).unwrap();
    let (bell, waker) = bell();
    let large = queue_up(&producer, Entries::Many(vec![item(1); 2]), waker.clone());
    let small = queue_up(&producer, one(2), waker);
    assert!(large.cancel());
    assert_eq!(small.state(), AdmissionState::Admitted(3));
    assert_eq!(bell.rung(), 1);
    assert_eq!(drain_all(&mut consumer), [0, 0, 0, 2]);
}

#[test]
fn released_bytes_let_the_queue_in() {
    // Slots are plenty; the queue moves when bytes are given back, not before.
    let limits = Limits {
        bytes_outlive_slots: true,
        ..bytes(10)
    };
    let (producer, mut consumer) = make(limits);
    producer.try_append(heavy(0, 10)).unwrap();
    let (bell, waker) = bell();
    let admission = queue_up(&producer, Entries::One(heavy(1, 10)), waker);
    consumer.pop().unwrap();
    consumer.release_slots();
    assert_eq!(admission.state(), AdmissionState::Waiting);
    consumer.release_bytes(9);
    assert_eq!(admission.state(), AdmissionState::Waiting);
    consumer.release_bytes(1);
    assert_eq!(admission.state(), AdmissionState::Admitted(1));
    assert_eq!(bell.rung(), 1);
}

#[test]
fn close_refuses_who_waits() {
    // Everybody in the queue is told once, nothing of theirs is written, and they have it back.
    let (producer, mut consumer) = full();
    let (bell, waker) = bell();
    let first = queue_up(&producer, one(2), waker.clone());
    let second = queue_up(&producer, one(3), waker.clone());
    producer.close();
    for (admission, number) in [(&first, 2), (&second, 3)] {
        assert_eq!(admission.state(), AdmissionState::Closed);
        assert!(!admission.cancel());
        assert_eq!(admission.take_back(), Some(one(number)));
    }
    assert_eq!(bell.rung(), 2);
    let late = producer.append_or_queue(one(4), waker).err().unwrap();
    assert_eq!((late.reason, late.value), (Refusal::Closed, one(4)));
    assert_eq!(drain_all(&mut consumer), [0, 1]);
    assert!(consumer.is_finished());
}

#[test]
fn dropping_the_consumer_refuses_who_waits() {
    // Without a consumer there will never be room: nobody is left waiting, nothing leaks.
    let (producer, consumer) = full();
    let (bell, waker) = bell();
    let admission = queue_up(&producer, one(2), waker);
    drop(consumer);
    assert_eq!(admission.state(), AdmissionState::Closed);
    assert_eq!(bell.rung(), 1);
}

#[test]
fn a_forgotten_admission_is_written_all_the_same() {
    // Dropping the handle stops watching, not the append.
    let (producer, mut consumer) = full();
    let (_bell, waker) = bell();
    drop(queue_up(&producer, one(2), waker));
    drain_all(&mut consumer);
    assert_eq!(drain_all(&mut consumer), [2]);
}

#[test]
fn a_blocking_append_with_room_returns_at_once() {
    // The common case takes no spin and no sleep, even with a deadline long past.
    let (producer, _consumer) = make(slots(2));
    let past = Some(Instant::now());
    assert_eq!(
        producer.append_blocking(one(0), past, &Backpressure::default()),
        Ok(0)
    );
}

#[test]
fn a_blocking_append_gives_up_at_its_deadline() {
    // The deadline bounds it, the entries come back, and the queue is empty again.
    let (producer, mut consumer) = full();
    let deadline = Instant::now() + Duration::from_millis(5);
    let refused = producer
        .append_blocking(one(2), Some(deadline), &Backpressure::low_latency())
        .unwrap_err();
    assert!(Instant::now() >= deadline);
    assert_eq!((refused.reason, refused.value), (Refusal::TimedOut, one(2)));
    assert_eq!(Error::from(refused.reason).kind(), ErrorKind::Timeout);
    let counts = producer.statistics();
    assert_eq!((counts.waiting, counts.refused_timed_out), (0, 1));
    assert_eq!(drain_all(&mut consumer), [0, 1]);
    assert_eq!(drain_all(&mut consumer), []);
}

#[test]
fn a_blocking_append_is_woken_by_room() {
    // It sleeps in the queue with no deadline and enters as soon as there is room: a lost wake
    // would show as a sleep of an hour.
    let patient = Backpressure {
        base_sleep_us: 3_600_000_000,
        max_sleep_us: 3_600_000_000,
        ..Backpressure::high_throughput()
    };
    let (producer, mut consumer) = full();
    let other = producer.clone();
    let blocked = thread::spawn(move || other.append_blocking(one(2), None, &patient));
    wait_until(|| producer.statistics().waiting == 1);
    drain_all(&mut consumer);
    assert_eq!(blocked.join().unwrap(), Ok(2));
    assert_eq!(drain_all(&mut consumer), [2]);
}

#[test]
fn a_blocking_append_is_woken_by_close() {
    // A closed ring answers those who sleep in its queue.
    let (producer, _consumer) = full();
    let other = producer.clone();
    let blocked =
        thread::spawn(move || other.append_blocking(one(2), None, &Backpressure::default()));
    wait_until(|| producer.statistics().waiting == 1);
    producer.close();
    let refused = blocked.join().unwrap().unwrap_err();
    assert_eq!((refused.reason, refused.value), (Refusal::Closed, one(2)));
}

#[test]
fn blocking_appends_and_tasks_share_one_queue() {
    // A task that queued first enters before the thread that blocked second.
    let (producer, mut consumer) = full();
    let (_bell, waker) = bell();
    let task = queue_up(&producer, one(2), waker);
    let other = producer.clone();
    let blocked =
        thread::spawn(move || other.append_blocking(one(3), None, &Backpressure::default()));
    wait_until(|| producer.statistics().waiting == 2);
    consumer.pop().unwrap();
    consumer.release();
    assert_eq!(task.state(), AdmissionState::Admitted(2));
    drain_all(&mut consumer);
    assert_eq!(blocked.join().unwrap(), Ok(3));
}

/// Lets other threads run until `condition` holds.
fn wait_until(condition: impl Fn() -> bool) {
    while !condition() {
        thread::yield_now();
    }
}
