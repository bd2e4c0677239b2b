//! E7: a limit that was checked first and acted on later was exceeded, and its counter wrapped.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::*;
use crate::epoch::{Budget, Load, Overflow};

/// Counts how many of it are alive, by a counter of its own.
struct Alive(Arc<AtomicUsize>, usize);

impl Alive {
    fn new(now: &Arc<AtomicUsize>, most: &AtomicUsize, weight: usize) -> Self {
        let alive = now.fetch_add(weight, Ordering::SeqCst) + weight;
        most.fetch_max(alive, Ordering::SeqCst);
        Self(Arc::clone(now), weight)
    }
}

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.fetch_sub(self.1, Ordering::SeqCst);
    }
}

/// Eight producers push with `weight` each while two threads collect; returns the most that was
/// reserved at once, as seen from outside, and the collector.
fn storm(limit: Load, weight: usize) -> (usize, Collector) {
    const EACH: usize = 4000;
    let settings = Settings {
        max_items: limit.items,
        max_bytes: limit.bytes,
        overflow: Overflow::Refuse,
        assist: false,
        ..Settings::default()
    };
    let (collector, _clock) = with(settings);
    let (now, most) = (Arc::new(AtomicUsize::new(0)), AtomicUsize::new(0));
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    collector.collect(Budget::ALL);
                    std::thread::yield_now();
                }
            });
        }
        let producers: Vec<_> = (0..8)
            .map(|_| {
                scope.spawn(|| {
                    for _ in 0..EACH {
                        let permit = loop {
                            match collector.reserve(weight) {
                                Ok(permit) => break permit,
                                Err(_) => std::thread::yield_now(),
                            }
                        };
                        // Counted after the reservation, and gone before it is given back.
                        let alive = Alive::new(&now, &most, weight.max(1));
                        permit.push(Task::new(Kind::Call, move || {
                            drop(alive);
                            Ok(())
                        }));
                    }
                })
            })
            .collect();
        for producer in producers {
            producer.join().unwrap();
        }
        is_over.store(true, Ordering::Relaxed);
    });
    collector.collect(Budget::ALL);
    let seen = collector.statistics(Mono(0));
    assert_eq!(seen.processed, 8 * EACH as u64);
    assert_eq!(seen.queue, Load::default());
    assert_eq!(now.load(Ordering::SeqCst), 0);
    (most.load(Ordering::SeqCst), collector)
}

#[test]
fn the_item_limit_is_never_exceeded_by_one_under_eight_producers() {
    // Seen from outside and in the peak.
    let limit = Load {
        items: 37,
        bytes: 1 << 30,
    };
    let (most, collector) = storm(limit, 0);
    assert!(most <= 37, "{most} alive at once");
    let peak = collector.statistics(Mono(0)).peak.items;
    assert!(peak <= 37 && peak >= most, "peak {peak}, seen {most}");
}

#[test]
fn the_byte_limit_is_never_exceeded_by_one_under_eight_producers() {
    // 1000 bytes and pieces of 7: 142 fit, not 143.
    let limit = Load {
        items: 100_000,
        bytes: 1000,
    };
    let (most, collector) = storm(limit, 7);
    assert!(most <= 994, "{most} bytes alive at once");
    let peak = collector.statistics(Mono(0)).peak.bytes;
    assert!(peak <= 994 && peak >= most, "peak {peak}, seen {most}");
}

#[test]
fn peak_and_current_are_exact() {
    // Three in, one out, one in: the peak is three, and stays.
    let (collector, clock) = quiet();
    let diary = Diary::default();
    for bytes in [10, 20, 30] {
        collector.try_defer(diary.task(0), bytes).unwrap();
    }
    let one = Budget {
        items: 1,
        ..Budget::ALL
    };
    collector.collect(one);
    let seen = collector.statistics(clock.now());
    assert_eq!((seen.queue.items, seen.queue.bytes), (2, 50));
    assert_eq!((seen.peak.items, seen.peak.bytes), (3, 60));
}

#[test]
fn near_capacity_is_four_fifths() {
    // Of the items or of the bytes, whichever comes first.
    let (collector, clock) = with(Settings {
        max_items: 10,
        max_bytes: 1000,
        assist: false,
        ..Settings::default()
    });
    let is_near = || collector.statistics(clock.now()).is_near_capacity;
    let diary = Diary::default();
    (0..7).for_each(|number| defer(&collector, diary.task(number)));
    assert!(!is_near());
    defer(&collector, diary.task(7));
    assert!(is_near());
    collector.collect(Budget::ALL);
    collector.try_defer(diary.task(8), 799).unwrap();
    assert!(!is_near());
    defer(&collector, diary.task(9));
    assert!(is_near());
}

#[test]
fn a_permit_that_is_not_used_gives_its_room_back() {
    // Also when somebody waits for it.
    let (collector, _clock) = with(Settings {
        max_items: 1,
        overflow: Overflow::Wait,
        ..Settings::default()
    });
    let permit = collector.reserve(5).ok().unwrap();
    assert_eq!(collector.load(), Load { items: 1, bytes: 5 });
    let waiter = {
        let collector = collector.clone();
        let hour = Duration::from_secs(3600);
        std::thread::spawn(move || collector.defer(Diary::default().task(1), 0, hour).is_ok())
    };
    while collector.0.bounds.waiters() == 0 {
        std::thread::yield_now();
    }
    drop(permit);
    assert!(waiter.join().unwrap());
}
