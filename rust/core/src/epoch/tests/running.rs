//! How work runs: in order, isolated, counted when done, drained at the end.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::*;
use crate::{
    epoch::{Budget, Charge, Load, Observer, OldestPin, Overflow},
    error::{Error, ErrorKind},
    sync::Wake,
};

#[derive(Default)]
struct Bell(AtomicU64);

impl Wake for Bell {
    fn wake(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

#[derive(Clone, Default)]
struct Notes(Arc<Mutex<Vec<String>>>);

impl Observer for Notes {
    fn failed(&self, kind: Kind, error: &Error) {
        let line = format!("{} failed: {}", kind.name(), error.message());
        self.0.lock().unwrap().push(line);
    }

    fn stalled(&self, pin: &OldestPin) {
        let label = pin.label.as_deref().unwrap_or("?");
        let line = format!("{label} stalls for {:?}", pin.age);
        self.0.lock().unwrap().push(line);
    }
}

#[test]
fn a_handler_runs_and_only_then_counts_as_processed() {
    // E1: handlers that only logged were counted as work done. Here the effect comes first.
    let (collector, clock) = quiet();
    let counted = Arc::new(AtomicU64::new(u64::MAX));
    let (seen, inside, time) = (Arc::clone(&counted), collector.clone(), clock.clone());
    defer(
        &collector,
        Task::new(Kind::Region, move || {
            seen.store(inside.statistics(time.now()).processed, Ordering::Relaxed);
            Ok(())
        }),
    );
    collector.collect(Budget::ALL);
    assert_eq!(counted.load(Ordering::Relaxed), 0, "not before it returned");
    let seen = collector.statistics(clock.now());
    assert_eq!((seen.enqueued, seen.processed, seen.failed), (1, 1, 0));
    assert_eq!(seen.done_by_kind[Kind::Region as usize], 1);
}

#[test]
fn work_runs_in_the_order_it_was_pushed_and_nothing_unsafe_is_rotated() {
    // E4: an unsafe head was rotated to the tail and the loop stopped.
    let (collector, _clock) = quiet();
    let diary = Diary::default();
    let mut held = Vec::new();
    for number in 0..50 {
        if number % 5 == 0 {
            held.push(collector.pin(None));
        }
        defer(&collector, diary.task(number));
        collector.collect(Budget::ALL);
    }
    assert!(diary.seen().is_empty());
    for (index, pin) in held.into_iter().enumerate() {
        drop(pin);
        collector.collect(Budget::ALL);
        let upto = (index as u64 + 1) * 5;
        assert_eq!(diary.seen(), (0..upto).collect::<Vec<_>>());
    }
}

#[test]
fn one_collection_is_not_held_to_one_batch() {
    // E6: 100 items per 100 ms tick was a ceiling of about 933 items a second.
    let (collector, clock) = quiet();
    let diary = Diary::default();
    (0..5000).for_each(|number| defer(&collector, diary.task(number)));
    assert_eq!(collector.tick(clock.now()), None);
    assert_eq!(diary.seen().len(), 5000);
    let seen = collector.statistics(clock.now());
    assert_eq!((seen.batches, seen.batch_items_max), (50, 100));
}

#[test]
fn a_panic_and_an_error_stop_nothing() {
    // E10: one panicking handler killed the cycle and poisoned its mutex.
    let (collector, clock) = quiet();
    let (diary, notes) = (Diary::default(), Notes::default());
    collector.observe(Box::new(notes.clone()));
    defer(&collector, diary.task(1));
    defer(&collector, Task::new(Kind::Waker, || panic!("on purpose")));
    defer(
        &collector,
        Task::new(Kind::Timer, || Err(Error::invalid("no such timer"))),
    );
    defer(&collector, diary.task(2));
    assert_eq!(collector.collect(Budget::ALL), 4);
    assert_eq!(diary.seen(), [1, 2]);
    let seen = collector.statistics(clock.now());
    assert_eq!((seen.processed, seen.failed), (2, 2));
    assert_eq!(seen.queue.items, 0);
    assert_eq!(seen.last_failure.unwrap().message(), "no such timer");
    let lines = notes.0.lock().unwrap();
    assert_eq!(
        lines[0],
        "waker failed: a cleanup handler panicked: on purpose"
    );
    assert_eq!(lines[1], "timer failed: no such timer");
}

#[test]
fn room_is_given_back_after_the_run_not_before() {
    // While a handler runs its work is still inside the limits.
    let (collector, _clock) = quiet();
    let (inside, held) = (collector.clone(), Arc::new(Mutex::new(None)));
    let seen = Arc::clone(&held);
    let task = Task::new(Kind::Call, move || {
        *seen.lock().unwrap() = Some(inside.load());
        Ok(())
    });
    collector.try_defer(task, 77).unwrap();
    collector.collect(Budget::ALL);
    let during = held.lock().unwrap().unwrap();
    assert_eq!((during.items, during.bytes), (1, 77));
    assert_eq!(collector.load().items, 0);
}

#[test]
fn close_drains_and_reports_what_a_pin_holds_back() {
    // E9: close and drop stranded what was queued. What is left here runs with the last unpin.
    let (collector, _clock) = with(Settings::default());
    let diary = Diary::default();
    let early = collector.pin(None);
    defer(&collector, diary.task(1));
    collector.collect(Budget::ALL);
    let pin = collector.pin(Some("reader"));
    drop(early);
    defer(&collector, diary.task(2));
    let left = collector.close();
    assert_eq!(diary.seen(), [1]);
    assert_eq!((left.load.items, left.load.bytes), (1, 1));
    assert_eq!(left.oldest_pin.unwrap().label.as_deref(), Some("reader"));
    assert_eq!(
        reason(collector.try_defer(diary.task(3), 0)),
        Reason::Closed
    );
    drop(pin);
    assert_eq!(diary.seen(), [1, 2]);
    assert_eq!(collector.close().load.items, 0);
    collector.enable();
    assert!(collector.is_closed(), "closing is for good");
}

#[test]
fn disable_drains_and_then_callers_clean_directly() {
    // E9, E8: after `disable` safe work runs in the call; unsafe work is given back, not dropped.
    let (collector, clock) = quiet();
    let diary = Diary::default();
    defer(&collector, diary.task(1));
    assert_eq!(collector.disable().load.items, 0);
    assert_eq!(diary.seen(), [1]);
    let taken = collector.try_defer(diary.task(2), 0);
    assert!(matches!(taken, Ok(Deferred::RanInline)));
    assert_eq!(diary.seen(), [1, 2]);
    let pin = collector.pin(None);
    let given_back = collector.try_defer(diary.task(3), 0).err().unwrap();
    assert_eq!(given_back.reason, Reason::Disabled);
    assert_eq!(diary.seen(), [1, 2]);
    collector.enable();
    collector.try_defer(given_back.work, 0).unwrap();
    drop(pin);
    collector.collect(Budget::ALL);
    assert_eq!(diary.seen(), [1, 2, 3]);
    let seen = collector.statistics(clock.now());
    assert_eq!((seen.ran_inline, seen.refused, seen.processed), (1, 1, 2));
}

#[test]
fn the_last_handle_and_the_last_pin_gone_nothing_is_left() {
    // A collector that nobody closed still runs what it holds, and not while a pin lives.
    let (collector, _clock) = quiet();
    let diary = Diary::default();
    let pin = collector.pin(None);
    (0..3).for_each(|number| defer(&collector, diary.task(number)));
    drop(collector);
    assert!(diary.seen().is_empty());
    drop(pin);
    assert_eq!(diary.seen(), [0, 1, 2]);
}

#[test]
fn the_tick_is_armed_only_while_something_is_deferred() {
    // Its owner is woken by the first push, and sent to sleep when all is done.
    let (collector, clock) = quiet();
    let (bell, diary) = (Arc::new(Bell::default()), Diary::default());
    collector.set_wake(Arc::<Bell>::clone(&bell));
    let rings = || bell.0.load(Ordering::Relaxed);
    assert_eq!((rings(), collector.tick(clock.now())), (0, None));
    (0..20).for_each(|number| defer(&collector, diary.task(number)));
    assert_eq!(rings(), 1);
    assert_eq!(collector.tick(clock.now()), None);
    defer(&collector, diary.task(20));
    assert_eq!(rings(), 2);
}

#[test]
fn a_stall_is_reported_once_for_each_pin() {
    // The event comes past the threshold, with label and age, and does not repeat.
    let (collector, clock) = quiet();
    let notes = Notes::default();
    collector.observe(Box::new(notes.clone()));
    let pin = collector.pin(Some("report"));
    clock.advance(Duration::from_secs(9));
    collector.tick(clock.now());
    assert!(notes.0.lock().unwrap().is_empty());
    clock.advance(Duration::from_secs(2));
    collector.tick(clock.now());
    collector.tick(clock.now());
    assert_eq!(*notes.0.lock().unwrap(), ["report stalls for 11s"]);
    drop(pin);
    let _next = collector.pin(Some("other"));
    clock.advance(Duration::from_secs(10));
    collector.tick(clock.now());
    assert_eq!(notes.0.lock().unwrap().len(), 2);
}

#[test]
fn a_handler_may_come_back() {
    // It defers, pins, collects, even closes, and waits for nobody, least of all for itself.
    let (collector, _clock) = with(Settings {
        max_items: 2,
        overflow: Overflow::Wait,
        ..Settings::default()
    });
    let diary = Diary::default();
    let (inside, inner) = (collector.clone(), diary.clone());
    defer(
        &collector,
        Task::new(Kind::Call, move || {
            defer(&inside, inner.task(2));
            let long = Duration::from_secs(3600);
            assert_eq!(reason(inside.defer(inner.task(9), 1, long)), Reason::Full);
            drop(inside.pin(None));
            assert_eq!(inside.collect(Budget::ALL), 0);
            inside.close();
            inner.note(1);
            Ok(())
        }),
    );
    collector.collect(Budget::ALL);
    assert_eq!(diary.seen(), [1, 2]);
}

#[test]
fn work_carried_off_counts_when_it_is_settled() {
    // Its room is held until then; one that is forgotten counts as failed, not as done.
    let (collector, clock) = quiet();
    let desk: Arc<Mutex<Vec<Charge>>> = Arc::default();
    for _ in 0..2 {
        let desk = Arc::clone(&desk);
        let task = Task::carried(Kind::Call, move |slip| {
            desk.lock().unwrap().extend(slip.carry());
            assert!(slip.carry().is_none(), "there is one account");
            Ok(())
        });
        collector.try_defer(task, 10).unwrap();
    }
    assert_eq!(collector.collect(Budget::ALL), 2);
    assert_eq!(collector.load().bytes, 20);
    assert_eq!(collector.statistics(clock.now()).processed, 0);
    let charge = desk.lock().unwrap().pop().unwrap();
    charge.settle(Ok(()));
    assert_eq!(collector.load().bytes, 10);
    desk.lock().unwrap().clear();
    let seen = collector.statistics(clock.now());
    assert_eq!((seen.processed, seen.failed, seen.queue.items), (1, 1, 0));
    assert_eq!(seen.last_failure.unwrap().kind(), ErrorKind::Abandoned);
    assert_eq!(seen.batches, 0, "what was only carried off is not a batch");
    collector.note_batch(2, MILLI);
    let seen = collector.statistics(clock.now());
    assert_eq!((seen.batches, seen.batch_items_max), (1, 2));
}

#[test]
fn an_owner_that_brings_the_handler_runs_it_with_what_it_borrows() {
    // Nobody else runs anything: not a push near the limit, not an unpin, not the drop.
    struct Number(u64);
    impl crate::epoch::Work for Number {
        fn kind(&self) -> Kind {
            Kind::Region
        }
    }
    let limit = Load {
        items: 4,
        bytes: usize::MAX,
    };
    let collector = Collector::for_owner(limit, Arc::new(ManualClock::default()));
    let bell = Arc::new(Bell::default());
    collector.set_wake(Arc::<Bell>::clone(&bell));
    for number in 0..4 {
        assert!(collector.try_defer(Number(number), 0).is_ok());
    }
    let refused = collector.try_defer(Number(4), 0).err().unwrap();
    assert_eq!((refused.work.0, refused.reason), (4, Reason::Full));
    assert!(bell.0.load(Ordering::Relaxed) > 0, "the owner was told");
    assert!(collector.is_ready());
    let mut borrowed = Vec::new();
    collector.collect_by(Budget::ALL, |work, _| {
        borrowed.push(work.0);
        Ok(())
    });
    assert_eq!(borrowed, [0, 1, 2, 3]);
    assert!(!collector.is_ready());
}

#[test]
fn the_last_pin_of_a_closed_collector_waits_for_who_collects() {
    // Another thread looked at the pins before this one left, and is not done: nobody comes
    // after us, so what we held back is ours to run.
    let (collector, _clock) = quiet();
    let (diary, pin) = (Diary::default(), collector.pin(None));
    defer(&collector, diary.task(1));
    collector.close();
    let limbo = collector.0.limbo.lock().unwrap();
    let leaver = std::thread::spawn(move || drop(pin));
    while collector.statistics(Mono(0)).pins > 0 {
        std::thread::yield_now();
    }
    drop(limbo);
    leaver.join().unwrap();
    assert_eq!(diary.seen(), [1]);
}

#[test]
fn unpinning_collects_without_a_next_push_or_tick() {
    // What a pin held back does not wait for the next user.
    let (collector, _clock) = with(Settings {
        min_batch: 1,
        ..Settings::default()
    });
    let (diary, participant) = (Diary::default(), collector.participant(None));
    let pin = participant.pin();
    defer(&collector, diary.task(1));
    drop(pin);
    assert_eq!(diary.seen(), [1]);
    let pin = collector.pin(None);
    defer(&collector, diary.task(2));
    drop(pin);
    assert_eq!(diary.seen(), [1, 2]);
}

#[test]
fn a_panic_with_a_panicking_payload_stays_inside() {
    // Dropping what was thrown may throw again.
    struct Twice(Arc<AtomicBool>);
    impl Drop for Twice {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
            panic!("again");
        }
    }
    let (collector, clock) = quiet();
    let dropped = Arc::new(AtomicBool::new(false));
    let payload = Arc::clone(&dropped);
    defer(
        &collector,
        Task::new(Kind::Call, move || std::panic::panic_any(Twice(payload))),
    );
    assert_eq!(collector.collect(Budget::ALL), 1);
    assert!(dropped.load(Ordering::Relaxed));
    assert_eq!(collector.statistics(clock.now()).failed, 1);
}
