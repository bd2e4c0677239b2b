//! One thread, one step at a time.

use super::*;

#[test]
fn positions_count_up_and_come_out_in_order() {
    // The position an append returns is its place in the drain.
    let (producer, mut consumer) = make(slots(8));
    for number in 0..5 {
        assert_eq!(producer.try_append(item(number)), Ok(number));
    }
    assert_eq!(producer.claimed(), 5);
    assert_eq!(consumer.peek(), Some(&item(0)));
    assert!(consumer.is_published(5));
    assert!(!consumer.is_published(6));
    assert_eq!(drain_all(&mut consumer), [0, 1, 2, 3, 4]);
    assert_eq!(consumer.position(), 5);
    assert_eq!(consumer.peek(), None);
}

#[test]
fn full_gives_the_entry_back() {
    // A refused append leaves the caller with its entry and the ring as it was.
    let (producer, mut consumer) = make(slots(2));
    assert_eq!(producer.try_append(item(0)), Ok(0));
    assert_eq!(producer.try_append(item(1)), Ok(1));
    let refused = producer.try_append(item(2)).unwrap_err();
    assert_eq!(refused.reason, Refusal::Full);
    assert_eq!(refused.value, item(2));
    assert_eq!(drain_all(&mut consumer), [0, 1]);
    assert_eq!(producer.try_append(refused.value), Ok(2));
}

#[test]
fn popped_slots_are_free_only_after_release() {
    // Taking an entry does not make room; giving its slot back does.
    let (producer, mut consumer) = make(slots(2));
    producer.try_append_many(vec![item(0), item(1)]).unwrap();
    assert_eq!(consumer.pop(), Some(item(0)));
    assert_eq!(
        producer.try_append(item(2)).unwrap_err().reason,
        Refusal::Full
    );
    consumer.release();
    assert_eq!(producer.try_append(item(2)), Ok(2));
    assert_eq!(drain_all(&mut consumer), [1, 2]);
}

#[test]
fn a_queued_append_enters_on_release_and_is_told_once() {
    // Room goes to whoever waits for it, and the waker is called once.
    let (producer, mut consumer) = make(slots(2));
    producer.try_append_many(vec![item(0), item(1)]).unwrap();
    let (bell, waker) = bell();
    let claim = producer.append_or_queue(Entries::One(item(2)), waker);
    let Ok(super::super::Claim::Later(admission)) = claim else {
        panic!("a full ring queues");
    };
    assert_eq!(drain_all(&mut consumer), [0, 1]);
    assert_eq!(admission.state(), super::super::AdmissionState::Admitted(2));
    assert_eq!(bell.rung(), 1);
    assert_eq!(drain_all(&mut consumer), [2]);
}
