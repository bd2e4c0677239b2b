//! A pin holds back what was retired after it, and nothing else does.

use super::*;
use crate::epoch::Budget;

#[test]
fn a_held_pin_blocks_reclamation_for_ever() {
    // Neither time, nor ticks, nor pressure from other work moves the safe epoch past a pin.
    let (collector, clock) = quiet();
    let diary = Diary::default();
    let pin = collector.pin(None);
    defer(&collector, diary.task(1));
    for round in 0..1000 {
        clock.advance(Duration::from_secs(60));
        collector.tick(clock.now());
        assert_eq!(collector.collect(Budget::ALL), 0, "round {round}");
    }
    assert!(diary.seen().is_empty());
    assert!(collector.statistics(clock.now()).safe_epoch <= pin.epoch());
    drop(pin);
    assert_eq!(collector.collect(Budget::ALL), 1);
    assert_eq!(diary.seen(), [1]);
}

#[test]
fn what_was_retired_before_a_pin_is_not_held_by_it() {
    // A stalled reader holds back only what it could have seen.
    let (collector, _clock) = quiet();
    let diary = Diary::default();
    let first = collector.pin(None);
    defer(&collector, diary.task(1));
    assert_eq!(collector.collect(Budget::ALL), 0);
    let _second = collector.pin(None);
    drop(first);
    defer(&collector, diary.task(2));
    assert_eq!(collector.collect(Budget::ALL), 1);
    assert_eq!(diary.seen(), [1]);
}

#[test]
fn a_bag_is_sealed_with_the_global_epoch_not_with_one_seen_before() {
    // The sealer has seen an old epoch; a reader pins at the present one; what is unlinked then
    // must not carry the old stamp, or it would run under the reader's eyes.
    let (collector, _clock) = quiet();
    let diary = Diary::default();
    defer(&collector, diary.task(1));
    assert_eq!(collector.collect(Budget::ALL), 1);
    let pin = collector.pin(None);
    defer(&collector, diary.task(2));
    assert_eq!(collector.collect(Budget::ALL), 0);
    drop(pin);
    assert_eq!(collector.collect(Budget::ALL), 1);
}

#[test]
fn only_the_outermost_of_nested_pins_counts() {
    // Dropping an inner pin publishes nothing: the outer one still holds.
    let (collector, _clock) = quiet();
    let diary = Diary::default();
    let participant = collector.participant(Some("reader"));
    let outer = participant.pin();
    let inner = participant.pin();
    defer(&collector, diary.task(1));
    drop(inner);
    assert!(participant.is_pinned());
    assert_eq!(collector.collect(Budget::ALL), 0);
    // And in the other order: the one taken first goes first, the pin stays.
    let inner = participant.pin();
    drop(outer);
    assert_eq!(collector.collect(Budget::ALL), 0);
    drop(inner);
    assert_eq!(collector.collect(Budget::ALL), 1);
}

#[test]
fn overlapping_pins_let_go_one_after_the_other() {
    // Readers that follow each other without a gap hold back only what each could have seen.
    let (collector, _clock) = quiet();
    let diary = Diary::default();
    let mut pin = collector.pin(None);
    for number in 0..100 {
        defer(&collector, diary.task(number));
        assert_eq!(collector.collect(Budget::ALL), 0);
        pin = collector.pin(None);
        assert_eq!(collector.collect(Budget::ALL), 1);
    }
    drop(pin);
    assert_eq!(diary.seen().len(), 100);
}

#[test]
fn an_owned_pin_may_end_on_another_thread() {
    // It goes where its holder goes.
    let (collector, _clock) = quiet();
    let diary = Diary::default();
    let pin = collector.pin(Some("traveller"));
    defer(&collector, diary.task(1));
    std::thread::spawn(move || drop(pin)).join().unwrap();
    assert_eq!(collector.collect(Budget::ALL), 1);
}

#[test]
fn the_oldest_pin_is_shown_with_age_and_label() {
    // Who stalls reclamation is a question with an answer.
    let (collector, clock) = quiet();
    let _old = collector.pin(Some("backup"));
    clock.advance(MILLI * 30);
    let _young = collector.pin(Some("query"));
    clock.advance(MILLI * 5);
    let seen = collector.statistics(clock.now());
    let oldest = seen.oldest_pin.unwrap();
    assert_eq!(seen.pins, 2);
    assert_eq!(oldest.label.as_deref(), Some("backup"));
    assert_eq!(oldest.age, MILLI * 35);
}

#[test]
fn a_participants_pin_ages_from_when_it_was_first_seen() {
    // Many short pins of one participant are not one long one.
    let (collector, clock) = quiet();
    let participant = collector.participant(Some("worker"));
    let pin = participant.pin();
    collector.tick(clock.now());
    clock.advance(MILLI * 7);
    let age = |collector: &Collector| collector.statistics(clock.now()).oldest_pin.unwrap().age;
    assert_eq!(age(&collector), MILLI * 7);
    drop(pin);
    let _again = participant.pin();
    assert_eq!(age(&collector), Duration::ZERO);
}

#[test]
fn nothing_is_kept_for_pins_that_are_gone() {
    // Ten thousand pins at once leave nothing behind, not even a label.
    let (collector, clock) = quiet();
    let pins: Vec<_> = (0..10_000).map(|_| collector.pin(Some("short"))).collect();
    assert_eq!(collector.0.domain.kept(), 10_000);
    drop(pins);
    assert_eq!(collector.0.domain.kept(), 0);
    let _pin = collector.pin(None);
    let seen = collector.statistics(clock.now());
    assert_eq!(seen.pins, 1);
    assert_eq!(seen.oldest_pin.unwrap().label, None);
}

#[test]
fn slots_of_participants_are_used_again() {
    // Ten thousand participants one after the other need one slot, and its label does not stay.
    let (collector, clock) = quiet();
    for _ in 0..10_000 {
        drop(collector.participant(Some("short")));
    }
    let participant = collector.participant(None);
    let _pin = participant.pin();
    let seen = collector.statistics(clock.now());
    assert_eq!(seen.oldest_pin.unwrap().label, None);
    assert_eq!(collector.0.domain.kept(), 1);
}

/// Counts how often it is read: once and more for each collection.
#[derive(Debug, Default)]
struct Counting(std::sync::atomic::AtomicU64);

impl Clock for Counting {
    fn now(&self) -> Mono {
        self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        Mono(0)
    }

    fn wall_ns(&self) -> i64 {
        0
    }
}

#[test]
fn only_the_last_of_the_oldest_pins_collects_when_it_leaves() {
    // A thousand readers leave one after the other while work waits for the last: the others
    // cannot have made anything safe, so they do not look.
    let clock = Arc::new(Counting::default());
    let looks = || clock.0.load(std::sync::atomic::Ordering::Relaxed);
    let settings = Settings {
        min_batch: 1,
        ..Settings::default()
    };
    let collector = Collector::new(settings, Arc::<Counting>::clone(&clock)).unwrap();
    let diary = Diary::default();
    let mut pins: Vec<_> = (0..1000).map(|_| collector.pin(None)).collect();
    defer(&collector, diary.task(1));
    collector.seal();
    pins.extend((0..1000).map(|_| collector.pin(None)));
    let before = looks();
    let last = pins.swap_remove(7);
    drop(pins);
    assert_eq!((looks(), diary.seen()), (before, vec![]));
    drop(last);
    assert_eq!(diary.seen(), [1]);
}

#[test]
fn a_pin_taken_after_the_seal_does_not_hold_back_what_came_before() {
    // Whoever seals before it pins cannot have found what was retired before.
    let (collector, _clock) = quiet();
    let diary = Diary::default();
    defer(&collector, diary.task(1));
    collector.seal();
    let _late = collector.pin(None);
    defer(&collector, diary.task(2));
    assert_eq!(collector.collect(Budget::ALL), 1);
    assert_eq!(diary.seen(), [1]);
}
