//! Many threads at once.

use super::*;
use std::{sync::Barrier, thread};

const PRODUCERS: u64 = 8;

/// Which producer an entry is from, and its number there.
fn tagged(producer: u64, number: u64) -> Item {
    item(producer << 32 | number)
}

/// Checks that what each producer appended came out once and in order; returns how many each.
fn check_order(drained: &[u64]) -> Vec<u64> {
    let mut next = vec![0; PRODUCERS as usize];
    for entry in drained {
        let expected = &mut next[(entry >> 32) as usize];
        assert_eq!(entry & 0xffff_ffff, *expected);
        *expected += 1;
    }
    next
}

/// Runs one thread per producer against a drain that ends when all are done and the ring closed.
fn contend(limits: Limits, append: impl Fn(&Producer<Item>, u64) + Sync) -> Vec<u64> {
    let (producer, mut consumer) = make(limits);
    let start = Barrier::new(PRODUCERS as usize + 1);
    let mut drained = Vec::new();
    thread::scope(|scope| {
        let crowd: Vec<_> = (0..PRODUCERS)
            .map(|name| {
                let (producer, start, append) = (producer.clone(), &start, &append);
                scope.spawn(move || {
                    start.wait();
                    append(&producer, name);
                })
            })
            .collect();
        let closing = scope.spawn(move || {
            for thread in crowd {
                thread.join().unwrap();
            }
            producer.close();
        });
        start.wait();
        while !consumer.is_finished() {
            if consumer.drain(usize::MAX, |item| drained.push(item.number)) == 0 {
                thread::yield_now();
            }
        }
        closing.join().unwrap();
    });
    drained
}

#[test]
fn eight_producers_on_sixteen_slots() {
    // Trying, blocking and queueing producers: every entry comes out once, in its own order.
    const EACH: u64 = 10_000;
    let drained = contend(slots(16), |producer, name| {
        for number in 0..EACH {
            let mut entry = tagged(name, number);
            if name % 2 == 0 {
                while let Err(refused) = producer.try_append(entry) {
                    assert_eq!(refused.reason, Refusal::Full);
                    entry = refused.value;
                    thread::yield_now();
                }
            } else {
                let settings = Backpressure::high_throughput();
                let entered = producer.append_blocking(Entries::One(entry), None, &settings);
                assert!(entered.is_ok());
            }
        }
    });
    assert_eq!(check_order(&drained), [EACH; PRODUCERS as usize]);
}

#[test]
fn eight_producers_short_of_bytes() {
    // The same when bytes run out before slots, with entries of different weight and batches.
    const EACH: u64 = 3_000;
    let limits = Limits {
        capacity: 16,
        ..bytes(40)
    };
    let drained = contend(limits, |producer, name| {
        let settings = Backpressure::high_throughput();
        for first in (0..EACH).step_by(3) {
            let entries = (first..first + 3)
                .map(|number| Item {
                    bytes: (number % 13) as usize,
                    ..tagged(name, number)
                })
                .collect();
            let entered = producer.append_blocking(Entries::Many(entries), None, &settings);
            assert!(entered.is_ok());
        }
    });
    assert_eq!(check_order(&drained), [EACH; PRODUCERS as usize]);
    let batches: Vec<_> = drained.chunks(3).collect();
    assert!(
        batches
            .iter()
            .all(|batch| batch[0] + 1 == batch[1] && batch[1] + 1 == batch[2]),
        "a batch lies together"
    );
}

#[test]
fn close_storm() {
    // In three thousand shutdowns under load, no append that returned success is lost.
    for round in 0..3000 {
        let (producer, mut consumer) = make(slots(64));
        let (accepted, drained) = thread::scope(|scope| {
            let crowd: Vec<_> = (0..2)
                .map(|name| {
                    let producer = producer.clone();
                    scope.spawn(move || append_until_closed(&producer, name))
                })
                .collect();
            let mut drained = 0;
            while drained <= round % 50 {
                drained += drain_or_yield(&mut consumer);
            }
            producer.close();
            while !consumer.is_finished() {
                drained += drain_or_yield(&mut consumer);
            }
            let accepted: u64 = crowd.into_iter().map(|one| one.join().unwrap()).sum();
            (accepted, drained)
        });
        assert_eq!(accepted, drained);
        assert!(consumer.pop().is_none(), "nothing appears after the end");
    }
}

/// Returns how many appends returned success.
fn append_until_closed(producer: &Producer<Item>, name: u64) -> u64 {
    let mut accepted = 0;
    loop {
        match producer.try_append(tagged(name, accepted)) {
            Ok(_) => accepted += 1,
            Err(refused) if refused.reason == Refusal::Closed => return accepted,
            Err(_) => thread::yield_now(),
        }
    }
}

fn drain_or_yield(consumer: &mut Consumer<Item>) -> u64 {
    let drained = consumer.drain(usize::MAX, drop) as u64;
    if drained == 0 {
        thread::yield_now();
    }
    drained
}

#[test]
fn close_refuses_a_crowd_that_blocks() {
    // Threads asleep in the queue all return when the ring is closed: admitted or refused.
    for _ in 0..100 {
        let (producer, mut consumer) = make(slots(2));
        let (accepted, drained) = thread::scope(|scope| {
            let crowd: Vec<_> = (0..4)
                .map(|name| {
                    let producer = producer.clone();
                    scope.spawn(move || {
                        let settings = Backpressure::high_throughput();
                        let entered = |number| {
                            let entry = Entries::One(tagged(name, number));
                            producer.append_blocking(entry, None, &settings).is_ok()
                        };
                        let mut accepted = 0;
                        while entered(accepted) {
                            accepted += 1;
                        }
                        accepted
                    })
                })
                .collect();
            let mut drained = 0;
            while drained < 20 {
                drained += drain_or_yield(&mut consumer);
            }
            producer.close();
            while !consumer.is_finished() {
                drained += drain_or_yield(&mut consumer);
            }
            let accepted: u64 = crowd.into_iter().map(|one| one.join().unwrap()).sum();
            (accepted, drained)
        });
        assert_eq!(accepted, drained);
    }
}

#[test]
fn cancelled_appends_are_written_never_or_once() {
    // Producers that cancel at once: what cancel denied came out, what it granted did not.
    const EACH: u64 = 2_000;
    let written = AtomicUsize::new(0);
    let drained = contend(slots(4), |producer, name| {
        let (_bell, waker) = bell();
        for number in 0..EACH {
            let entry = Entries::One(tagged(name, number));
            match producer.append_or_queue(entry, waker.clone()) {
                Ok(Claim::Now(_)) => drop(written.fetch_add(1, Ordering::Relaxed)),
                Ok(Claim::Later(admission)) => {
                    if !admission.cancel() {
                        written.fetch_add(1, Ordering::Relaxed);
                    }
                }
                Err(refused) => panic!("refused: {}", refused.reason),
            }
        }
    });
    assert_eq!(drained.len(), written.into_inner());
    let mut once = drained.clone();
    once.sort_unstable();
    once.dedup();
    assert_eq!(once.len(), drained.len());
}
