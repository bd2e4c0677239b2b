//! Many threads at once: nothing is reclaimed under a reader, nothing is lost.

use std::{
    sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    thread,
};

use super::*;
use crate::{clock::SystemClock, epoch::Budget};

const ALIVE: u64 = 0x00a1_17e0_00a1_17e0;
const POISON: u64 = 0xdead_dead_dead_dead;
const HOUR: Duration = Duration::from_secs(3600);

fn machine(settings: Settings) -> Collector {
    Collector::new(settings, Arc::new(SystemClock::new())).unwrap()
}

#[test]
fn no_reader_ever_sees_the_poison_that_a_handler_writes() {
    // E2, E3: a safe epoch that ignored its readers. Four readers look through four places, four
    // writers replace and retire what stands there, everybody collects. The canaries stay in
    // their nest, so that a reader that comes too late finds poison, not somebody else's memory.
    const ROUNDS: usize = 15_000;
    let collector = machine(Settings {
        min_batch: 1,
        max_items: 64,
        ..Settings::default()
    });
    let nest: Arc<Vec<AtomicU64>> = Arc::new((0..4 * ROUNDS + 4).map(|_| ALIVE.into()).collect());
    let places: Vec<_> = (0..4).map(AtomicUsize::new).collect();
    let is_over = AtomicBool::new(false);
    let look = |place: &AtomicUsize| {
        let participant = collector.participant(None);
        let mut looks = 0_u64;
        while !is_over.load(Ordering::Relaxed) {
            let outer = participant.pin();
            let inner = participant.pin();
            let at = place.load(Ordering::Acquire);
            drop(inner);
            for _ in 0..20 {
                let seen = nest[at].load(Ordering::Relaxed);
                assert_eq!(seen, ALIVE, "reclaimed under a pin");
            }
            drop(outer);
            looks += 1;
            if looks.is_multiple_of(64) {
                thread::yield_now();
            }
        }
        looks
    };
    let replace = |number: usize| {
        for round in 0..ROUNDS {
            let at = 4 + number * ROUNDS + round;
            let old = places[number].swap(at, Ordering::AcqRel);
            let nest = Arc::clone(&nest);
            let task = Task::new(Kind::Region, move || {
                nest[old].store(POISON, Ordering::Relaxed);
                Ok(())
            });
            assert!(collector.defer(task, 8, HOUR).is_ok());
        }
    };
    thread::scope(|scope| {
        let readers: Vec<_> = places.iter().map(|p| scope.spawn(|| look(p))).collect();
        let writers: Vec<_> = (0..4)
            .map(|n| {
                scope.spawn({
                    let replace = &replace;
                    move || replace(n)
                })
            })
            .collect();
        let fates: Vec<_> = writers
            .into_iter()
            .map(thread::ScopedJoinHandle::join)
            .collect();
        is_over.store(true, Ordering::Relaxed);
        assert!(fates.iter().all(Result::is_ok));
        let looks: u64 = readers.into_iter().map(|r| r.join().unwrap()).sum();
        assert!(looks > 0);
    });
    collector.close();
    let alive: Vec<_> = (0..nest.len())
        .filter(|at| nest[*at].load(Ordering::Relaxed) == ALIVE)
        .collect();
    let places: Vec<_> = places.iter().map(|p| p.load(Ordering::Relaxed)).collect();
    assert_eq!(
        alive, places,
        "only what was never retired was never cleaned"
    );
}

#[test]
fn nothing_is_lost_across_close_disable_and_panics() {
    // Every piece leaves exactly one trace: run, run inline, or given back to its caller.
    const EACH: usize = 5000;
    for end_with_close in [true, false] {
        let collector = machine(Settings {
            max_items: 50,
            ..Settings::default()
        });
        let traces: Arc<Vec<AtomicUsize>> =
            Arc::new((0..4 * EACH).map(|_| AtomicUsize::new(0)).collect());
        let begun = Arc::new(AtomicUsize::new(0));
        let producers: Vec<_> = (0..4)
            .map(|number| {
                let (collector, traces, begun) =
                    (collector.clone(), Arc::clone(&traces), Arc::clone(&begun));
                thread::spawn(move || {
                    for index in 0..EACH {
                        begun.fetch_add(1, Ordering::Relaxed);
                        let at = number * EACH + index;
                        let inside = Arc::clone(&traces);
                        let task = Task::new(Kind::Call, move || {
                            inside[at].fetch_add(1, Ordering::Relaxed);
                            assert!(!at.is_multiple_of(7), "every seventh handler panics");
                            Ok(())
                        });
                        let _pin = (index % 3 == 0).then(|| collector.pin(None));
                        if collector.try_defer(task, 1).is_err() {
                            traces[at].fetch_add(1, Ordering::Relaxed);
                        }
                    }
                })
            })
            .collect();
        while begun.load(Ordering::Relaxed) < 2 * EACH {
            collector.collect(Budget::ALL);
        }
        if end_with_close {
            collector.close();
        } else {
            collector.disable();
            collector.enable();
        }
        for producer in producers {
            producer.join().unwrap();
        }
        drop(collector);
        let left: Vec<_> = (0..4 * EACH)
            .filter(|at| traces[*at].load(Ordering::Relaxed) != 1)
            .collect();
        assert!(left.is_empty(), "not exactly once: {left:?}");
    }
}

#[test]
fn a_crowd_that_waits_for_room_is_let_in() {
    // No wake is lost: eight threads squeeze through room for two.
    let collector = machine(Settings {
        max_items: 2,
        min_batch: 1,
        overflow: crate::epoch::Overflow::Wait,
        ..Settings::default()
    });
    let ran = Arc::new(AtomicUsize::new(0));
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..500 {
                    let pin = collector.pin(None);
                    let ran = Arc::clone(&ran);
                    let task = Task::new(Kind::Call, move || {
                        ran.fetch_add(1, Ordering::Relaxed);
                        Ok(())
                    });
                    drop(pin);
                    assert!(collector.defer(task, 0, HOUR).is_ok());
                }
            });
        }
    });
    collector.close();
    assert_eq!(ran.load(Ordering::Relaxed), 4000);
}
