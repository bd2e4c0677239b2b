//! The consumer's sleep.

use super::*;
use std::thread;

#[test]
fn an_idle_ring_lets_the_consumer_sleep_and_an_append_wakes_it_once() {
    // Only the first append after an announcement calls the waker.
    let (producer, mut consumer) = make(slots(4));
    let (bell, waker) = bell();
    consumer.set_wake(Some(waker));
    producer.try_append(item(0)).unwrap();
    assert_eq!(bell.rung(), 0, "nobody announced a sleep");
    assert_eq!(consumer.announce(), Rest::Awake, "something is there");
    drain_all(&mut consumer);
    assert_eq!(consumer.announce(), Rest::Sleep);
    producer.try_append(item(1)).unwrap();
    producer.try_append(item(2)).unwrap();
    assert_eq!(bell.rung(), 1);
    consumer.retract();
    producer.try_append(item(3)).unwrap();
    assert_eq!(bell.rung(), 1, "the consumer said that it is awake");
    assert_eq!(producer.statistics().wakes, 1);
}

#[test]
fn taken_but_unreleased_entries_do_not_keep_the_consumer_awake() {
    // What was popped is not news.
    let (producer, mut consumer) = make(slots(4));
    producer.try_append(item(0)).unwrap();
    consumer.pop().unwrap();
    assert_eq!(consumer.announce(), Rest::Sleep);
    consumer.retract();
}

#[test]
fn close_wakes_the_consumer_and_keeps_it_awake() {
    // A closed ring is news once, and never again a reason to sleep.
    let (producer, mut consumer) = make(slots(4));
    let (bell, waker) = bell();
    consumer.set_wake(Some(waker));
    assert_eq!(consumer.announce(), Rest::Sleep);
    producer.close();
    assert_eq!(bell.rung(), 1);
    consumer.retract();
    assert_eq!(consumer.announce(), Rest::Awake);
}

#[test]
fn the_waker_can_be_changed_and_taken_away() {
    // The one that is set when something enters is the one that is called.
    let (producer, mut consumer) = make(slots(4));
    let (old, old_waker) = bell();
    let (new, new_waker) = bell();
    consumer.set_wake(Some(old_waker));
    consumer.set_wake(Some(new_waker));
    assert_eq!(consumer.announce(), Rest::Sleep);
    producer.try_append(item(0)).unwrap();
    assert_eq!((old.rung(), new.rung()), (0, 1));
    drain_all(&mut consumer);
    consumer.set_wake(None);
    assert_eq!(consumer.announce(), Rest::Sleep);
    producer.try_append(item(1)).unwrap();
    assert_eq!(new.rung(), 1);
}

#[test]
fn an_admission_wakes_a_sleeping_consumer() {
    // Entries that come in through the queue are news as well, here let in by a cancelled head.
    let (producer, mut consumer) = make(bytes(10));
    let (bell, waker) = bell();
    consumer.set_wake(Some(waker));
    producer.try_append(heavy(0, 5)).unwrap();
    consumer.pop().unwrap();
    let (_other, other_waker) = super::bell();
    let large = queue_up(&producer, Entries::One(heavy(1, 10)), other_waker.clone());
    let _small = queue_up(&producer, Entries::One(heavy(2, 5)), other_waker);
    assert_eq!(consumer.announce(), Rest::Sleep);
    large.cancel();
    assert_eq!(bell.rung(), 1);
}

#[test]
fn ping_pong_loses_no_wake() {
    // Twenty thousand sleeps on either side, none of them bounded: a lost wake hangs the test.
    const ROUNDS: u64 = 20_000;
    let (producer, mut consumer) = make(slots(2));
    let parker = Arc::new(Parker::new());
    consumer.set_wake(Some(Arc::clone(&parker) as Waker));
    let appending = thread::spawn(move || {
        for number in 0..ROUNDS {
            let sleeper = Arc::new(Parker::new());
            let waker = Arc::clone(&sleeper) as Waker;
            match producer.append_or_queue(Entries::One(item(number)), waker) {
                Ok(Claim::Now(position)) => assert_eq!(position, number),
                Ok(Claim::Later(admission)) => {
                    sleeper.park(None);
                    assert_eq!(admission.state(), AdmissionState::Admitted(number));
                }
                Err(refused) => panic!("refused: {}", refused.reason),
            }
        }
        producer.close();
    });
    let mut next = 0;
    while !consumer.is_finished() {
        consumer.drain(usize::MAX, |item| {
            assert_eq!(item.number, next);
            next += 1;
        });
        match consumer.announce() {
            Rest::Sleep => drop(parker.park(None)),
            Rest::Nap => thread::yield_now(),
            Rest::Awake => {}
        }
        consumer.retract();
    }
    assert_eq!(next, ROUNDS);
    appending.join().unwrap();
}
