//! E11: settings that did not do what they said. Each here has a test that fails if it is ignored.

use super::*;
use crate::epoch::{BYTES_MAX, Budget, ITEMS_MAX, Overflow};

/// Work that takes `took` of the test's time.
fn slow(clock: &ManualClock, took: Duration) -> Task {
    let clock = clock.clone();
    Task::new(Kind::Call, move || {
        clock.advance(took);
        Ok(())
    })
}

#[test]
fn max_items_is_the_limit() {
    // One more than `max_items` is given back.
    let (collector, _clock) = with(Settings {
        max_items: 3,
        overflow: Overflow::Refuse,
        assist: false,
        ..Settings::default()
    });
    let diary = Diary::default();
    (0..3).for_each(|number| defer(&collector, diary.task(number)));
    assert_eq!(reason(collector.try_defer(diary.task(3), 1)), Reason::Full);
}

#[test]
fn max_bytes_is_the_limit() {
    // One byte more than `max_bytes` is given back; what fits only alone says so.
    let (collector, _clock) = with(Settings {
        max_bytes: 100,
        overflow: Overflow::Refuse,
        assist: false,
        ..Settings::default()
    });
    let diary = Diary::default();
    assert!(collector.try_defer(diary.task(1), 60).is_ok());
    assert_eq!(reason(collector.try_defer(diary.task(2), 41)), Reason::Full);
    assert_eq!(
        reason(collector.try_defer(diary.task(2), 101)),
        Reason::TooLarge
    );
    assert!(collector.try_defer(diary.task(3), 40).is_ok());
    assert!(collector.try_defer(diary.task(4), 0).is_ok());
}

#[test]
fn min_batch_leaves_few_to_the_tick() {
    // An unpin runs nothing for fewer pieces than that, and everything from there on.
    let (collector, _clock) = with(Settings {
        min_batch: 5,
        ..Settings::default()
    });
    let diary = Diary::default();
    for (pieces, ran) in [(4, 0), (1, 5)] {
        let pin = collector.pin(None);
        (0..pieces).for_each(|number| defer(&collector, diary.task(number)));
        drop(pin);
        assert_eq!(diary.seen().len(), ran);
    }
}

#[test]
fn max_batch_is_the_size_of_a_batch() {
    // 70 pieces are ten batches of seven.
    let (collector, clock) = with(Settings {
        max_batch: 7,
        min_batch: 7,
        assist: false,
        ..Settings::default()
    });
    let diary = Diary::default();
    (0..70).for_each(|number| defer(&collector, diary.task(number)));
    collector.collect(Budget::ALL);
    let seen = collector.statistics(clock.now());
    assert_eq!((seen.batches, seen.batch_items_max), (10, 7));
}

#[test]
fn max_batch_time_covers_running() {
    // Pieces of 2 ms: a batch of 5 ms ends with the third, and the tick comes back at once.
    let (collector, clock) = with(Settings {
        max_batch_time: MILLI * 5,
        assist: false,
        ..Settings::default()
    });
    (0..4).for_each(|_| defer(&collector, slow(&clock, MILLI * 2)));
    assert_eq!(collector.tick(clock.now()), Some(Mono(0)));
    let seen = collector.statistics(clock.now());
    assert_eq!((seen.processed, seen.batch_time_max), (3, MILLI * 6));
    assert_eq!(collector.tick(clock.now()), None);
}

#[test]
fn a_budget_covers_items_and_running_time() {
    // What a caller gives to `collect` is kept, across batches.
    let (collector, clock) = quiet();
    (0..250).for_each(|_| defer(&collector, slow(&clock, Duration::from_micros(10))));
    let collect = |items, micros| {
        collector.collect(Budget {
            items,
            time: Duration::from_micros(micros),
        })
    };
    assert_eq!(collect(150, 1_000_000), 150);
    assert_eq!(collect(1000, 45), 5);
    assert_eq!(collect(0, 1000), 0);
    assert_eq!(collect(1000, 0), 0);
    assert_eq!(collect(1000, 1_000_000), 95);
}

#[test]
fn advance_interval_is_the_rest_between_ticks() {
    // Held back by a pin, the tick comes again after the interval.
    let (collector, clock) = with(Settings {
        advance_interval: MILLI * 42,
        assist: false,
        ..Settings::default()
    });
    let pin = collector.pin(None);
    defer(&collector, Diary::default().task(1));
    clock.advance(MILLI);
    let now = clock.now();
    assert_eq!(collector.tick(now), Some(now.after(MILLI * 42)));
    drop(pin);
    assert_eq!(collector.tick(now), None);
}

#[test]
fn overflow_inline_runs_what_is_safe_and_waits_for_the_rest() {
    // E8: a flag that promised direct cleanup was never read, and the work dropped.
    let full = |overflow| {
        let (collector, clock) = with(Settings {
            max_items: 1,
            overflow,
            assist: false,
            ..Settings::default()
        });
        defer(&collector, Diary::default().task(0));
        (collector, clock)
    };
    let diary = Diary::default();
    let (collector, clock) = full(Overflow::Inline);
    let taken = collector.try_defer(diary.task(1), 0);
    assert!(matches!(taken, Ok(Deferred::RanInline)));
    assert_eq!(collector.statistics(clock.now()).ran_inline, 1);
    let pin = collector.pin(None);
    assert_eq!(reason(collector.try_defer(diary.task(2), 0)), Reason::Full);
    drop(pin);
    for overflow in [Overflow::Wait, Overflow::Refuse] {
        let (collector, clock) = full(overflow);
        assert_eq!(reason(collector.try_defer(diary.task(3), 0)), Reason::Full);
        assert_eq!(collector.statistics(clock.now()).refused, 1);
    }
    assert_eq!(diary.seen(), [1]);
}

#[test]
fn overflow_wait_waits_for_room_and_refuse_does_not() {
    // A thread that waits is let in by the collection that makes room.
    let settings = |overflow| Settings {
        max_items: 1,
        overflow,
        assist: false,
        ..Settings::default()
    };
    let diary = Diary::default();
    let (collector, _clock) = with(settings(Overflow::Wait));
    defer(&collector, diary.task(0));
    let waiter = {
        let (collector, diary) = (collector.clone(), diary.clone());
        std::thread::spawn(move || {
            let hour = Duration::from_secs(3600);
            collector.defer(diary.task(1), 0, hour).is_ok()
        })
    };
    while collector.statistics(Mono(0)).enqueued < 2 {
        collector.collect(Budget::ALL);
        std::thread::yield_now();
    }
    assert!(waiter.join().unwrap());
    let (collector, _clock) = with(settings(Overflow::Refuse));
    defer(&collector, diary.task(2));
    let hour = Duration::from_secs(3600);
    assert_eq!(
        reason(collector.defer(diary.task(3), 0, hour)),
        Reason::Full
    );
}

#[test]
fn assist_decides_who_runs_work() {
    // With it, a push near the limit runs a batch; without it, the owner is left to do so.
    for (assist, expected) in [(true, 8), (false, 0)] {
        let (collector, _clock) = with(Settings {
            max_items: 10,
            assist,
            ..Settings::default()
        });
        let diary = Diary::default();
        (0..8).for_each(|number| defer(&collector, diary.task(number)));
        assert_eq!(diary.seen().len(), expected);
    }
}

#[test]
fn stall_after_is_the_threshold() {
    // See `a_stall_is_reported_once_for_each_pin`; here the number itself.
    struct Hears(Arc<Mutex<usize>>);
    impl crate::epoch::Observer for Hears {
        fn failed(&self, _: Kind, _: &crate::Error) {}
        fn stalled(&self, _: &crate::epoch::OldestPin) {
            *self.0.lock().unwrap() += 1;
        }
    }
    let (collector, clock) = with(Settings {
        stall_after: MILLI * 3,
        ..Settings::default()
    });
    let heard = Arc::new(Mutex::new(0));
    collector.observe(Box::new(Hears(Arc::clone(&heard))));
    let _pin = collector.pin(None);
    for expected in [0, 0, 0, 1, 1] {
        collector.tick(clock.now());
        assert_eq!(*heard.lock().unwrap(), expected);
        clock.advance(MILLI);
    }
}

#[test]
fn numbers_out_of_range_are_refused() {
    // Each limit of the packed word, and each zero, is an error that names the setting.
    let good = Settings::default();
    for (bad, name) in [
        (
            Settings {
                max_items: 0,
                ..good
            },
            "max_items",
        ),
        (
            Settings {
                max_items: ITEMS_MAX + 1,
                ..good
            },
            "max_items",
        ),
        (
            Settings {
                max_bytes: 0,
                ..good
            },
            "max_bytes",
        ),
        (
            Settings {
                max_bytes: BYTES_MAX + 1,
                ..good
            },
            "max_bytes",
        ),
        (
            Settings {
                max_batch: 0,
                ..good
            },
            "max_batch",
        ),
        (
            Settings {
                min_batch: 101,
                ..good
            },
            "min_batch",
        ),
        (
            Settings {
                min_batch: 0,
                ..good
            },
            "min_batch",
        ),
        (
            Settings {
                max_batch_time: Duration::ZERO,
                ..good
            },
            "max_batch_time",
        ),
        (
            Settings {
                advance_interval: Duration::ZERO,
                ..good
            },
            "advance_interval",
        ),
    ] {
        let error = bad.checked().unwrap_err();
        assert!(error.message().contains(name), "{error}");
    }
    assert!(good.checked().is_ok());
}
