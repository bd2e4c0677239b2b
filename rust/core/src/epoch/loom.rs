//! What loom explores: pins against retirement against collection, room against waiting.
//!
//! The canary is a loom cell: reading it in a pin while a handler writes it, or after it without
//! an edge between, is reported as a race. The report is a panic, and the collector isolates
//! panics: so each model ends by asking whether a handler failed.

use std::sync::Arc as StdArc;
use std::time::Duration;

use super::{Budget, Collector, Kind, Overflow, Reason, Settings, Task};
use crate::{
    clock::ManualClock,
    sync::{Arc, AtomicBool, AtomicUsize, Ordering, UnsafeCell, Wake, thread},
};

fn explore(preemptions: usize, model: impl Fn() + Sync + Send + 'static) {
    let mut builder = ::loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.check(model);
}

fn collector(settings: Settings) -> Collector {
    Collector::new(settings, StdArc::new(ManualClock::default())).unwrap()
}

fn quiet() -> Collector {
    collector(Settings {
        assist: false,
        ..Settings::default()
    })
}

/// Loom reports a race inside a handler by a panic, which the collector counts.
fn no_handler_raced(collector: &Collector) {
    let seen = collector.statistics(crate::clock::Mono(0));
    assert_eq!(seen.failed, 0, "{:?}", seen.last_failure);
}

/// Something that is linked until it is retired, and whose handler writes it.
struct Canary {
    is_linked: AtomicBool,
    cell: UnsafeCell<u64>,
}

// SAFETY: the cell is written only by the handler of the one retirement, and read only under a
// pin while it is linked; that the two never meet is what the models are about.
unsafe impl Sync for Canary {}
// SAFETY: as above; a number.
unsafe impl Send for Canary {}

impl Canary {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            is_linked: AtomicBool::new(true),
            cell: UnsafeCell::new(1),
        })
    }

    /// What a reader does under a pin.
    fn look(&self) {
        if self.is_linked.load(Ordering::Relaxed) {
            // SAFETY: under a pin, seen linked: the handler does not run; loom checks it.
            let seen = self.cell.with(|cell| unsafe { *cell });
            assert_eq!(seen, 1, "reclaimed under a pin");
        }
    }

    /// Unlinks and hands the cleanup over.
    fn retire(this: &Arc<Self>, collector: &Collector) {
        this.is_linked.store(false, Ordering::Relaxed);
        let canary = Arc::clone(this);
        let task = Task::new(Kind::Region, move || {
            // SAFETY: nobody reads it any more; loom checks it.
            canary.cell.with_mut(|cell| unsafe { *cell = 2 });
            Ok(())
        });
        assert!(collector.try_defer(task, 1).is_ok());
    }
}

/// `read` runs on a thread of its own, while this one retires the canary and collects once.
fn read_beside_a_retirement(
    collector: &Collector,
    canary: &Arc<Canary>,
    read: impl FnOnce(&Canary) + Send + 'static,
) {
    let reader = {
        let canary = Arc::clone(canary);
        thread::spawn(move || read(&canary))
    };
    Canary::retire(canary, collector);
    collector.collect(Budget::ALL);
    reader.join().unwrap();
    no_handler_raced(collector);
}

#[test]
fn a_pin_against_retirement_against_advance() {
    // A reader pins and looks while another thread retires and collects twice.
    explore(3, || {
        let (collector, canary) = (quiet(), Canary::new());
        let reader = {
            let (participant, canary) = (collector.participant(None), Arc::clone(&canary));
            thread::spawn(move || {
                let _pin = participant.pin();
                canary.look();
            })
        };
        Canary::retire(&canary, &collector);
        collector.collect(Budget::ALL);
        collector.collect(Budget::ALL);
        reader.join().unwrap();
        collector.close();
        assert_eq!(collector.load().items, 0);
        no_handler_raced(&collector);
    });
}

#[test]
fn a_pin_against_a_retirer_and_a_collector_apart() {
    // Three threads: who retires is not who seals, advances and runs.
    explore(2, || {
        let (collector, canary) = (quiet(), Canary::new());
        let reader = {
            let (participant, canary) = (collector.participant(None), Arc::clone(&canary));
            thread::spawn(move || {
                let _pin = participant.pin();
                canary.look();
            })
        };
        let retirer = {
            let (collector, canary) = (collector.clone(), Arc::clone(&canary));
            thread::spawn(move || Canary::retire(&canary, &collector))
        };
        collector.collect(Budget::ALL);
        retirer.join().unwrap();
        collector.collect(Budget::ALL);
        reader.join().unwrap();
        no_handler_raced(&collector);
    });
}

#[test]
fn nested_pins_against_advance() {
    // E15: an inner unpin published a safe point although the outer pin was held.
    explore(3, || {
        let (collector, canary) = (quiet(), Canary::new());
        let participant = collector.participant(None);
        read_beside_a_retirement(&collector, &canary, move |canary| {
            let _outer = participant.pin();
            drop(participant.pin());
            canary.look();
        });
    });
}

#[test]
fn a_pin_taken_again_against_advance() {
    // Unpinned and pinned anew: what the first pin looked at is finished before the handler.
    explore(3, || {
        let (collector, canary) = (quiet(), Canary::new());
        let participant = collector.participant(None);
        read_beside_a_retirement(&collector, &canary, move |canary| {
            let first = participant.pin();
            canary.look();
            drop(first);
            let _second = participant.pin();
            canary.look();
        });
    });
}

#[test]
fn a_new_owned_pin_against_advance() {
    // Its slot enters the registry while a collector looks.
    explore(2, || {
        let (collector, canary) = (quiet(), Canary::new());
        let pins = collector.clone();
        read_beside_a_retirement(&collector, &canary, move |canary| {
            let _pin = pins.pin(None);
            canary.look();
        });
    });
}

struct Flag(Arc<AtomicUsize>);

impl Wake for Flag {
    fn wake(&self) {
        self.0.fetch_add(1, Ordering::Release);
    }
}

#[test]
fn who_waits_for_room_is_woken() {
    // Room for one. The waiter asks to be woken, tries once more, and then only waits: either
    // the try succeeds or the wake comes.
    explore(3, || {
        let collector = collector(Settings {
            max_items: 1,
            overflow: Overflow::Refuse,
            assist: false,
            ..Settings::default()
        });
        let empty = || Task::new(Kind::Call, || Ok(()));
        assert!(collector.try_defer(empty(), 0).is_ok());
        let other = {
            let collector = collector.clone();
            thread::spawn(move || {
                collector.collect(Budget::ALL);
            })
        };
        let woken = Arc::new(AtomicUsize::new(0));
        collector.wait_room(StdArc::new(Flag(Arc::clone(&woken))));
        match collector.try_defer(empty(), 0) {
            Ok(_) => {}
            Err(refused) => {
                assert_eq!(refused.reason, Reason::Full);
                while woken.load(Ordering::Acquire) == 0 {
                    thread::yield_now();
                }
                assert!(collector.try_defer(refused.work, 0).is_ok());
            }
        }
        other.join().unwrap();
    });
}

#[test]
fn a_push_arms_the_tick_or_the_tick_stays_armed() {
    // The tick goes to sleep while somebody pushes: the piece is run by this tick, or the tick
    // does not sleep, or the pusher wakes its owner.
    explore(3, || {
        let collector = quiet();
        let rings = Arc::new(AtomicUsize::new(0));
        collector.set_wake(StdArc::new(Flag(Arc::clone(&rings))));
        let ran = Arc::new(AtomicUsize::new(0));
        let task = |ran: &Arc<AtomicUsize>| {
            let ran = Arc::clone(ran);
            Task::new(Kind::Call, move || {
                ran.fetch_add(1, Ordering::Relaxed);
                Ok(())
            })
        };
        assert!(collector.try_defer(task(&ran), 0).is_ok());
        let pusher = {
            let (collector, second) = (collector.clone(), task(&ran));
            thread::spawn(move || assert!(collector.try_defer(second, 0).is_ok()))
        };
        let now = crate::clock::Mono(0).after(Duration::from_secs(1));
        let sleeps = collector.tick(now).is_none();
        pusher.join().unwrap();
        let all_ran = ran.load(Ordering::Relaxed) == 2;
        let woken = rings.load(Ordering::Acquire) == 2;
        assert!(all_ran || !sleeps || woken, "a piece without a tick");
    });
}

#[test]
fn close_waits_for_a_push_under_way() {
    // A piece that was accepted before the close is run by it, or by the last handle's drop.
    explore(2, || {
        let collector = quiet();
        let ran = Arc::new(AtomicUsize::new(0));
        let pusher = {
            let (collector, ran) = (collector.clone(), Arc::clone(&ran));
            thread::spawn(move || {
                let inside = Arc::clone(&ran);
                let task = Task::new(Kind::Call, move || {
                    inside.fetch_add(1, Ordering::Relaxed);
                    Ok(())
                });
                if collector.try_defer(task, 0).is_err() {
                    ran.fetch_add(1, Ordering::Relaxed);
                }
            })
        };
        collector.close();
        pusher.join().unwrap();
        drop(collector);
        assert_eq!(ran.load(Ordering::Relaxed), 1);
    });
}
