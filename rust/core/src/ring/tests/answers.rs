//! One answer per entry.

use super::*;
use std::{thread, time::Duration};

/// An entry that carries its completion.
struct Carrier(#[allow(dead_code)] super::super::Completion<u64>);

impl Weigh for Carrier {
    fn weight(&self) -> usize {
        8
    }
}

#[test]
fn the_first_outcome_wins_and_later_ones_are_counted() {
    // An error followed by a success stays an error, and the other way round.
    let (producer, _consumer) = make(slots(2));
    let (worker, ticket) = producer.completion::<u64>();
    assert!(!ticket.is_done() && ticket.try_get().is_none());
    assert!(worker.failed(Error::invalid("first")));
    assert!(!worker.done(1));
    assert!(!worker.failed(Error::invalid("third")));
    let outcome = ticket.try_get().unwrap();
    assert_eq!(outcome.as_ref().unwrap_err().message(), "first");
    drop(worker);
    let (worker, ticket) = producer.completion::<u64>();
    assert!(worker.done(7));
    assert!(!worker.failed(Error::invalid("late")));
    assert_eq!(*ticket.wait(None).unwrap().as_ref().unwrap(), 7);
    drop(worker);
    let counts = producer.statistics();
    assert_eq!((counts.outcomes_late, counts.completions_dropped), (3, 0));
}

#[test]
fn a_dropped_completion_fails() {
    // A worker that goes away leaves nobody waiting: the answer is "dropped before flush".
    let (producer, _consumer) = make(slots(2));
    let (worker, ticket) = producer.completion::<u64>();
    let (bell, waker) = bell();
    assert!(ticket.subscribe(waker));
    drop(worker);
    let error = ticket.try_get().unwrap().as_ref().unwrap_err();
    assert_eq!(error.message(), "dropped before flush");
    assert_eq!(error.kind(), ErrorKind::Abandoned);
    assert_eq!(bell.rung(), 1);
    assert_eq!(producer.statistics().completions_dropped, 1);
}

#[test]
fn entries_dropped_with_the_ring_fail_their_completions() {
    // Inside, refused, queued, drained and forgotten: every ticket is answered.
    let (producer, mut consumer) = ring::<Carrier>(slots(2)).unwrap();
    let (workers, tickets): (Vec<_>, Vec<_>) = (0..5).map(|_| producer.completion()).unzip();
    let mut workers = workers.into_iter().map(Carrier);
    let mut next = || workers.next().unwrap();
    producer.try_append_many(vec![next(), next()]).ok().unwrap();
    drop(producer.try_append(next()).err().unwrap());
    let (_bell, waker) = bell();
    let Ok(Claim::Later(admission)) = producer.append_or_queue(Entries::One(next()), waker) else {
        panic!("a full ring queues");
    };
    drop(consumer.pop());
    drop(consumer);
    drop(admission);
    drop(next());
    assert!(
        tickets
            .iter()
            .all(|ticket| ticket.try_get().unwrap().is_err())
    );
    assert_eq!(producer.statistics().completions_dropped, 5);
    assert_eq!(producer.statistics().dropped, 1);
}

#[test]
fn any_number_of_waiters_share_one_answer() {
    // Four threads asleep, a subscriber, and a look: all see the same value.
    let (worker, ticket) = completion::<String>();
    let (bell, waker) = bell();
    assert!(ticket.subscribe(waker.clone()));
    let waiting: Vec<_> = (0..4)
        .map(|_| {
            let ticket = ticket.clone();
            thread::spawn(move || ticket.wait(None).unwrap().as_ref().unwrap().clone())
        })
        .collect();
    worker.done("flushed".to_owned());
    for waiter in waiting {
        assert_eq!(waiter.join().unwrap(), "flushed");
    }
    assert_eq!(bell.rung(), 1);
    assert!(
        !ticket.subscribe(waker),
        "nobody tells what is known already"
    );
    assert_eq!(bell.rung(), 1);
    assert!(worker.ticket().is_done());
}

#[test]
fn a_wait_that_times_out_leaves_nothing_behind() {
    // Whoever polls with short waits does not pile up watchers.
    let (worker, ticket) = completion::<u64>();
    for _ in 0..10 {
        assert!(ticket.wait(Some(Duration::from_micros(10))).is_none());
    }
    assert!(ticket.wait(Some(Duration::ZERO)).is_none());
    assert_eq!(ticket.watchers(), 0);
    worker.done(1);
    assert!(ticket.wait(Some(Duration::ZERO)).unwrap().is_ok());
}

#[test]
fn an_unsubscribed_watcher_is_not_woken() {
    // Taking a subscription back leaves the other ones.
    let (worker, ticket) = completion::<u64>();
    let (gone, gone_waker) = bell();
    let (kept, kept_waker) = bell();
    assert!(ticket.subscribe(gone_waker.clone()));
    assert!(ticket.subscribe(kept_waker));
    ticket.unsubscribe(&gone_waker);
    ticket.unsubscribe(&gone_waker);
    worker.done(1);
    assert_eq!((gone.rung(), kept.rung()), (0, 1));
}

#[test]
fn competing_outcomes_elect_one() {
    // Of two workers that answer at the same time exactly one is believed, a thousand times.
    for round in 0..1000 {
        let (worker, ticket) = completion::<u64>();
        let wins: Vec<bool> = thread::scope(|scope| {
            let other = scope.spawn(|| worker.failed(Error::invalid("other")));
            let mine = worker.done(round);
            vec![mine, other.join().unwrap()]
        });
        assert_eq!(wins.iter().filter(|won| **won).count(), 1);
        assert_eq!(ticket.try_get().unwrap().is_ok(), wins[0]);
    }
}
