//! One thread, one step at a time.

use super::*;
use crate::clock::Mono;
use std::time::Duration;

/// The last position before the wrap.
const LAST: u64 = u64::MAX >> 1;

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
    assert!(!consumer.is_published(usize::MAX));
    assert_eq!(drain_all(&mut consumer), [0, 1, 2, 3, 4]);
    assert_eq!(consumer.position(), 5);
    assert_eq!(consumer.peek(), None);
    assert!(consumer.is_published(0));
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
    let refused = producer.try_append(item(2)).unwrap_err();
    assert_eq!(refused.reason, Refusal::Full);
    assert_eq!(producer.len(), 2);
    consumer.release();
    assert_eq!(producer.try_append(item(2)), Ok(2));
    assert_eq!(drain_all(&mut consumer), [1, 2]);
}

#[test]
fn a_capacity_of_one_still_drains() {
    // With a single slot "published" and "free on the next lap" would be one mark; two are made.
    let (producer, mut consumer) = make(slots(1));
    assert_eq!(producer.limits().capacity, 2);
    for number in 0..10 {
        assert_eq!(producer.try_append(item(number)), Ok(number));
        assert_eq!(drain_all(&mut consumer), [number]);
    }
}

#[test]
fn capacities_round_up_to_powers_of_two() {
    // The limits in force are those the ring keeps.
    for (asked, given) in [(1, 2), (2, 2), (3, 4), (5, 8), (64, 64), (65, 128)] {
        assert_eq!(make(slots(asked)).0.limits().capacity, given);
    }
}

#[test]
fn impossible_limits_are_refused() {
    // A ring that could never hold anything, or never be allocated, is an invalid argument.
    for limits in [
        slots(0),
        slots(usize::MAX),
        Limits {
            capacity_bytes: 0,
            ..slots(2)
        },
    ] {
        assert_eq!(
            ring::<Item>(limits).err().unwrap().kind(),
            ErrorKind::Invalid
        );
    }
}

#[test]
fn the_wrap_of_the_position_changes_nothing() {
    // Order, fullness, length and batches are right on both sides of the wrap.
    for before in 0..5 {
        let (producer, mut consumer) = ring_at(slots(4), LAST - before).unwrap();
        let mut expected = LAST - before;
        for lap in 0..6 {
            let batch = vec![item(lap), item(lap + 100)];
            assert_eq!(producer.try_append_many(batch), Ok(expected));
            assert_eq!(producer.len(), 2);
            producer.try_append_many(vec![item(0), item(0)]).unwrap();
            assert_eq!(
                producer.try_append(item(1)).unwrap_err().reason,
                Refusal::Full
            );
            assert_eq!(drain_all(&mut consumer), [lap, lap + 100, 0, 0]);
            expected = (expected + 4) & LAST;
            assert_eq!(consumer.position(), expected);
            assert!(producer.is_empty());
        }
        let counts = producer.statistics();
        assert_eq!((counts.appended, counts.drained), (24, 24));
        producer.close();
        assert_eq!(consumer.final_position(), Some(expected));
        assert!(consumer.is_finished());
    }
}

#[test]
fn a_batch_enters_whole_or_not_at_all() {
    // With room for one, a batch of two leaves everything as it was and gets its entries back.
    let (producer, mut consumer) = make(slots(4));
    producer.try_append_many(vec![item(0); 3]).unwrap();
    let refused = producer
        .try_append_many(vec![item(1), item(2)])
        .unwrap_err();
    assert_eq!(refused.reason, Refusal::Full);
    assert_eq!(refused.value, [item(1), item(2)]);
    assert_eq!(producer.claimed(), 3);
    drain_all(&mut consumer);
    assert_eq!(producer.try_append_many(refused.value), Ok(3));
}

#[test]
fn what_can_never_fit_names_its_limit() {
    // Waiting would not help, so the refusal says which setting would.
    let limits = Limits {
        capacity: 4,
        capacity_bytes: 100,
        entry_bytes_max: 60,
        bytes_outlive_slots: false,
    };
    let (producer, _consumer) = make(limits);
    let too_large = |bound, asked, allowed| Refusal::TooLarge {
        bound,
        asked,
        allowed,
    };
    let one = producer.try_append(heavy(0, 61)).unwrap_err();
    assert_eq!(one.reason, too_large(Bound::EntryBytes, 61, 60));
    let many = producer.try_append_many(vec![item(0); 5]).unwrap_err();
    assert_eq!(many.reason, too_large(Bound::Entries, 5, 4));
    let sum = producer.try_append_many(vec![heavy(0, 51); 2]).unwrap_err();
    assert_eq!(sum.reason, too_large(Bound::Bytes, 102, 100));
    let error = Error::from(sum);
    assert_eq!(error.kind(), ErrorKind::TooLarge);
    assert_eq!(error.number("allowed"), Some(100));
    let (bell, waker) = bell();
    let queued = producer.append_or_queue(Entries::Many(vec![item(0); 5]), waker);
    assert_eq!(queued.err().unwrap().reason, many.reason);
    let blocked =
        producer.append_blocking(Entries::One(heavy(0, 61)), None, &Backpressure::default());
    assert_eq!(blocked.unwrap_err().reason, one.reason);
    assert_eq!(bell.rung(), 0);
    assert_eq!(producer.claimed(), 0);
    assert_eq!(producer.statistics().refused_too_large, 5);
}

#[test]
fn a_ring_that_no_memory_holds_is_refused() {
    // Whoever chose the number gets an error, and not the end of the process. The slots of this one
    // have more bytes than there are addresses.
    struct Broad(#[expect(dead_code, reason = "only its size counts")] [u64; 1 << 20]);
    impl Weigh for Broad {
        fn weight(&self) -> usize {
            0
        }
    }
    let limits = Limits {
        capacity: 1 << 40,
        ..bytes(100)
    };
    let refused = ring::<Broad>(limits).err().unwrap();
    assert_eq!(refused.kind(), ErrorKind::TooLarge);
    assert_eq!(refused.number("asked"), Some(1 << 40));
    assert!(
        refused.message().contains("take a smaller one"),
        "{refused}"
    );
}

#[test]
fn bytes_are_bounded_apart_from_slots() {
    // The sum of what is inside never exceeds the limit, and is free again after release.
    let (producer, mut consumer) = make(bytes(100));
    producer.try_append(heavy(0, 60)).unwrap();
    producer.try_append(heavy(1, 40)).unwrap();
    assert_eq!(
        producer.try_append(item(2)).unwrap_err().reason,
        Refusal::Full
    );
    assert_eq!(producer.try_append(heavy(2, 0)), Ok(2));
    assert_eq!(producer.statistics().bytes, 100);
    assert_eq!(consumer.pop(), Some(heavy(0, 60)));
    consumer.release();
    assert_eq!(producer.statistics().bytes, 40);
    assert_eq!(producer.try_append(heavy(3, 60)), Ok(3));
}

#[test]
fn bytes_may_be_given_back_later_than_slots() {
    // The slots are free while the bytes stay claimed, until they are given back by number.
    let limits = Limits {
        capacity: 2,
        capacity_bytes: 10,
        entry_bytes_max: 5,
        bytes_outlive_slots: true,
    };
    let (producer, mut consumer) = make(limits);
    producer.try_append_many(vec![heavy(0, 5); 2]).unwrap();
    consumer.pop().unwrap();
    consumer.pop().unwrap();
    consumer.release_slots();
    assert!(producer.is_empty());
    assert_eq!(
        producer.try_append(item(1)).unwrap_err().reason,
        Refusal::Full
    );
    consumer.release_bytes(4);
    assert_eq!(producer.try_append(heavy(1, 4)), Ok(2));
    consumer.release();
    assert_eq!(
        producer.statistics().bytes,
        10,
        "release must not return bytes twice"
    );
}

#[test]
fn close_refuses_appends_and_keeps_entries() {
    // What is inside can be drained; nothing enters; the end is known.
    let (producer, mut consumer) = make(slots(4));
    producer.try_append(item(0)).unwrap();
    assert_eq!(consumer.final_position(), None);
    assert!(producer.close());
    assert!(!producer.close());
    assert!(!consumer.close());
    assert!(producer.is_closed());
    for refused in [
        producer.try_append(item(1)).unwrap_err().reason,
        producer.try_append_many(vec![item(1)]).unwrap_err().reason,
    ] {
        assert_eq!(refused, Refusal::Closed);
    }
    assert_eq!(consumer.final_position(), Some(1));
    assert!(!consumer.is_finished());
    assert_eq!(drain_all(&mut consumer), [0]);
    assert!(consumer.is_finished());
    assert_eq!(producer.statistics().refused_closed, 2);
}

#[test]
fn a_full_closed_ring_says_closed() {
    // Closed is for good and full is not, so closed is said first.
    let (producer, _consumer) = make(slots(2));
    producer.try_append_many(vec![item(0), item(1)]).unwrap();
    producer.close();
    assert_eq!(
        producer.try_append(item(2)).unwrap_err().reason,
        Refusal::Closed
    );
}

#[test]
fn drain_stops_at_its_maximum() {
    // A drain takes no more than it was told, and what it leaves comes next time.
    let (producer, mut consumer) = make(slots(8));
    producer
        .try_append_many((0..6).map(item).collect())
        .unwrap();
    let mut seen = Vec::new();
    assert_eq!(consumer.drain(4, |item| seen.push(item.number)), 4);
    assert_eq!(consumer.drain(0, |item| seen.push(item.number)), 0);
    assert_eq!(consumer.drain(4, |item| seen.push(item.number)), 2);
    assert_eq!(seen, [0, 1, 2, 3, 4, 5]);
}

#[test]
fn length_stays_within_the_capacity() {
    // An estimate may be old; it is never negative and never more than fits.
    let (producer, mut consumer) = make(slots(4));
    assert_eq!((producer.len(), consumer.len()), (0, 0));
    producer.try_append_many(vec![item(0); 4]).unwrap();
    assert_eq!((producer.len(), consumer.len()), (4, 4));
    drain_all(&mut consumer);
    assert!(producer.is_empty() && consumer.is_empty());
}

#[test]
fn a_stalled_claim_has_an_age() {
    // A claim that is not published stops the drain, and its age counts from the first question.
    let (producer, mut consumer) = make(slots(4));
    let at = |nanos| Mono(nanos);
    assert_eq!(consumer.stalled_claim_age(at(5)), None);
    let run = producer.claim_for_test(2);
    assert_eq!(consumer.pop(), None);
    assert_eq!(consumer.stalled_claim_age(at(10)), Some(Duration::ZERO));
    assert_eq!(
        consumer.stalled_claim_age(at(17)),
        Some(Duration::from_nanos(7))
    );
    assert_eq!(consumer.announce(), Rest::Nap);
    consumer.retract();
    let mut run = run;
    run.put(item(0));
    assert_eq!(consumer.stalled_claim_age(at(20)), None);
    assert_eq!(consumer.pop(), Some(item(0)));
    assert_eq!(consumer.stalled_claim_age(at(30)), Some(Duration::ZERO));
    run.put(item(1));
    assert_eq!(drain_all(&mut consumer), [1]);
    assert_eq!(consumer.stalled_claim_age(at(40)), None);
}

#[test]
fn an_entry_behind_a_stalled_claim_waits() {
    // Order is claim order, even when a later entry is published first.
    let (producer, mut consumer) = make(slots(4));
    let mut run = producer.claim_for_test(1);
    producer.try_append(item(1)).unwrap();
    assert_eq!(consumer.pop(), None);
    assert!(!consumer.is_published(2));
    run.put(item(0));
    assert!(consumer.is_published(2));
    assert_eq!(drain_all(&mut consumer), [0, 1]);
}

#[test]
fn dropping_the_consumer_drops_and_counts_what_is_inside() {
    // Nobody will ever drain those entries: they are dropped, counted, and the ring is closed.
    let (producer, mut consumer) = ring::<Held>(slots(4)).unwrap();
    let alive = Arc::new(());
    for _ in 0..3 {
        producer.try_append(Held(Arc::clone(&alive))).ok().unwrap();
    }
    drop(consumer.pop());
    drop(consumer);
    assert_eq!(Arc::strong_count(&alive), 1);
    assert_eq!(producer.statistics().dropped, 2);
    assert_eq!(
        producer
            .try_append(Held(Arc::clone(&alive)))
            .err()
            .unwrap()
            .reason,
        Refusal::Closed
    );
}

struct Held(#[allow(dead_code)] Arc<()>);

impl Weigh for Held {
    fn weight(&self) -> usize {
        0
    }
}

#[test]
fn statistics_tell_what_happened() {
    // Each number counts its own events and no others.
    let (producer, mut consumer) = make(slots(2));
    producer.try_append_many(vec![item(0), item(1)]).unwrap();
    producer.try_append(item(2)).unwrap_err();
    let (_bell, waker) = bell();
    let first = queue_up(&producer, Entries::One(item(3)), waker.clone());
    let _second = queue_up(&producer, Entries::One(item(4)), waker);
    assert!(first.cancel());
    assert_eq!(producer.statistics().waiting, 1);
    drain_all(&mut consumer);
    drain_all(&mut consumer);
    let counts = consumer.statistics();
    assert_eq!(counts, producer.statistics());
    assert_eq!(counts.appended, 3);
    assert_eq!(counts.drained, 3);
    assert_eq!(counts.refused_full, 1);
    assert_eq!(counts.queued, 2);
    assert_eq!(counts.cancelled, 1);
    assert_eq!((counts.waiting, counts.len, counts.dropped), (0, 0, 0));
}

#[test]
fn backpressure_settings_are_checked() {
    // Settings that would never make progress are refused with the reason; presets pass.
    for fine in [
        Backpressure::default(),
        Backpressure::low_latency(),
        Backpressure::high_throughput(),
    ] {
        assert_eq!(fine.checked().unwrap(), fine);
    }
    let never = Backpressure {
        initial_spins: 0,
        ..Backpressure::default()
    };
    let error = never.checked().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert!(error.message().contains("never make progress"));
    let backwards = Backpressure {
        max_spins: 9,
        ..Backpressure::default()
    };
    let error = backwards.checked().unwrap_err();
    assert_eq!(error.number("initial_spins"), Some(10));
}

#[test]
fn spins_and_sleeps_double_up_to_their_limits() {
    // The first and the longest are as set; nothing sleeps for no time at all or overflows.
    let spins: Vec<u32> = Backpressure::default().spins().collect();
    assert_eq!(spins, [10, 20, 40, 80, 160, 320, 640]);
    let micros = |settings: Backpressure| -> Vec<u128> {
        let sleeps = settings.sleeps().take(4);
        sleeps.map(|sleep| sleep.as_micros()).collect()
    };
    assert_eq!(
        micros(Backpressure {
            base_sleep_us: 100,
            ..Backpressure::default()
        }),
        [100, 200, 400, 800]
    );
    assert_eq!(
        micros(Backpressure {
            base_sleep_us: 0,
            max_sleep_us: 0,
            ..Backpressure::default()
        }),
        [1, 1, 1, 1]
    );
    let extreme = Backpressure {
        initial_spins: u32::MAX,
        max_spins: u32::MAX,
        base_sleep_us: u64::MAX,
        max_sleep_us: u64::MAX,
    };
    assert_eq!(extreme.spins().collect::<Vec<_>>(), [u32::MAX]);
    assert_eq!(extreme.sleeps().take(3).count(), 3);
}
