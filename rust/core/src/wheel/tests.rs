//! The wheel against a sorted map, and what it promises at its edges.

use std::{
    collections::{BTreeMap, HashMap},
    rc::Rc,
    time::Duration,
};

use proptest::prelude::*;

use super::{
    Expired, Key, Scope, TimeoutWheel,
    level::{LEVELS, SLOT_BITS, SLOTS, place, slot_at, start_of},
};
use crate::clock::Mono;

/// Numbers that repeat in every run.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    /// As many small numbers as large ones, counted in bits.
    fn of_any_size(&mut self, bits: u32) -> u64 {
        let size = self.below(u64::from(bits)) as u32 + 1;
        self.next() >> (u64::BITS - size)
    }
}

fn wheel<T>(tick_ns: u64, now_ns: u64) -> TimeoutWheel<T> {
    TimeoutWheel::new(Duration::from_nanos(tick_ns), Mono(now_ns)).unwrap()
}

fn due<T>(wheel: &mut TimeoutWheel<T>, now_ns: u64) -> Vec<T> {
    let mut due = Vec::new();
    let count = wheel.advance(Mono(now_ns), &mut due);
    assert_eq!(count, due.len());
    due
}

/// The level as one would look for it by hand: the highest group of six bits that differs.
fn level_by_hand(elapsed: u64, tick: u64) -> usize {
    let group = |of: u64, level: usize| of >> (level as u32 * SLOT_BITS) & (SLOTS as u64 - 1);
    let differs = |&level: &usize| group(elapsed, level) != group(tick, level);
    (0..LEVELS).rev().find(differs).unwrap_or(0)
}

fn check_place(elapsed: u64, tick: u64) {
    let (level, slot) = place(elapsed, tick);
    assert_eq!(level, level_by_hand(elapsed, tick), "{elapsed} {tick}");
    assert_eq!(slot, slot_at(tick, level));
    let start = start_of(elapsed, level, slot);
    let width = 1_u128 << (level as u32 * SLOT_BITS);
    assert!(start <= tick, "{elapsed} {tick}");
    assert!(u128::from(tick) < u128::from(start) + width);
    if tick > elapsed {
        assert!(slot > slot_at(elapsed, level), "{elapsed} {tick}");
        assert!(level == 0 || start > elapsed, "{elapsed} {tick}");
    }
}

#[test]
fn a_tick_finds_its_level_and_slot() {
    // Belief: the place of every tick is the highest group of bits in which it differs, its slot
    // begins at or before it, and lies above the slot the wheel stands in.
    for elapsed in 0..5_000 {
        for tick in elapsed..elapsed + 5_000 {
            check_place(elapsed, tick);
        }
    }
    for high in 0..u64::BITS {
        for low in 0..=high {
            let (high, low) = (1_u64 << high, 1_u64 << low);
            for tick in [high, high - 1, high | low, high | (low - 1), u64::MAX] {
                for elapsed in [0, 1, low - 1, low, high - 1, tick.saturating_sub(1), tick] {
                    if elapsed <= tick {
                        check_place(elapsed, tick);
                    }
                }
            }
        }
    }
    let mut numbers = Numbers(1);
    for _ in 0..1_000_000 {
        let (one, other) = (numbers.of_any_size(64), numbers.of_any_size(64));
        check_place(one.min(other), one.max(other));
    }
}

#[test]
fn places_stay_valid_while_time_passes() {
    // Belief: until its slot begins, a timer's place is the same whatever the wheel's tick is, so
    // nobody has to remember it.
    let mut numbers = Numbers(2);
    for _ in 0..1_000_000 {
        let tick = numbers.of_any_size(64).max(1);
        let elapsed = numbers.below(tick);
        let (level, slot) = place(elapsed, tick);
        let start = start_of(elapsed, level, slot);
        if start > elapsed {
            let later = elapsed + numbers.below(start - elapsed);
            assert_eq!(
                place(later, tick),
                (level, slot),
                "{elapsed} {later} {tick}"
            );
        }
    }
}

#[derive(Debug, Clone)]
enum Step {
    Schedule { delay_ns: u64 },
    Cancel { which: usize },
    Advance { by_ns: u64 },
    AdvanceToNext,
    CancelResidue { modulus: u64 },
}

const TICK_NS: u64 = 1_000;

/// Durations around the borders of levels, whole revolutions of them, and everything in between.
fn durations() -> impl Strategy<Value = u64> {
    let borders =
        (0_u32..5, 0_u64..4, -2_i64..3, -2_i64..3).prop_map(|(level, times, ticks, ns)| {
            let ticks = (times << (level * SLOT_BITS)).saturating_add_signed(ticks);
            (ticks * TICK_NS).saturating_add_signed(ns)
        });
    prop_oneof![
        borders,
        0..70 * TICK_NS,
        0..70 * 64 * TICK_NS,
        0..70 * 64 * 64 * TICK_NS
    ]
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        8 => durations().prop_map(|delay_ns| Step::Schedule { delay_ns }),
        3 => any::<usize>().prop_map(|which| Step::Cancel { which }),
        2 => durations().prop_map(|by_ns| Step::Advance { by_ns }),
        2 => Just(Step::AdvanceToNext),
        1 => (2_u64..9).prop_map(|modulus| Step::CancelResidue { modulus }),
    ];
    prop::collection::vec(step, 1..120)
}

/// The wheel beside a sorted map from tick and order of scheduling to the timer's number.
struct Pair {
    wheel: TimeoutWheel<u64>,
    sorted: BTreeMap<(u64, u64), u64>,
    keys: Vec<(Key, u64, u64)>,
    origin_ns: u64,
    now_ns: u64,
    count: u64,
}

impl Pair {
    fn new(origin_ns: u64) -> Self {
        Self {
            wheel: wheel(TICK_NS, origin_ns),
            sorted: BTreeMap::new(),
            keys: Vec::new(),
            origin_ns,
            now_ns: origin_ns,
            count: 0,
        }
    }

    fn take(&mut self, step: &Step) {
        match *step {
            Step::Schedule { delay_ns } => self.schedule(delay_ns),
            Step::Cancel { which } if !self.keys.is_empty() => self.cancel(which),
            Step::Cancel { .. } => {}
            Step::Advance { by_ns } => self.advance(self.now_ns + by_ns),
            Step::AdvanceToNext => {
                if let Some(Mono(next)) = self.wheel.next_deadline() {
                    assert!(next > self.now_ns);
                    self.advance(next);
                }
            }
            Step::CancelResidue { modulus } => self.cancel_residue(modulus),
        }
        assert_eq!(self.wheel.len(), self.sorted.len());
        let first = self.sorted.keys().next();
        let next = self.wheel.next_deadline();
        assert_eq!(first.is_some(), next.is_some());
        if let (Some(&(tick, _)), Some(Mono(next))) = (first, next) {
            assert!(next <= self.origin_ns + tick * TICK_NS);
        }
    }

    fn schedule(&mut self, delay_ns: u64) {
        let deadline_ns = self.now_ns + delay_ns;
        self.count += 1;
        let number = self.count;
        match self.wheel.schedule(Mono(deadline_ns), number) {
            Ok(key) => {
                assert!(delay_ns > 0);
                let tick = (deadline_ns - self.origin_ns).div_ceil(TICK_NS);
                self.sorted.insert((tick, number), number);
                self.keys.push((key, tick, number));
            }
            Err(Expired(back)) => {
                assert_eq!(delay_ns, 0, "only what is not ahead has expired");
                assert_eq!(back, number);
            }
        }
    }

    /// Cancels any timer there ever was; most of them are gone by then.
    fn cancel(&mut self, which: usize) {
        let (key, tick, number) = self.keys[which % self.keys.len()];
        let expected = self.sorted.remove(&(tick, number));
        assert_eq!(self.wheel.cancel(key), expected);
    }

    fn cancel_residue(&mut self, modulus: u64) {
        let mut out = Vec::new();
        let wanted = |number: &u64| number.is_multiple_of(modulus);
        let count = self.wheel.cancel_where(wanted, &mut out);
        assert_eq!(count, out.len());
        out.sort_unstable();
        let mut expected: Vec<u64> = self.sorted.values().copied().filter(wanted).collect();
        expected.sort_unstable();
        assert_eq!(out, expected);
        self.sorted.retain(|_, number| !wanted(number));
    }

    fn advance(&mut self, now_ns: u64) {
        self.now_ns = now_ns;
        let tick = (now_ns - self.origin_ns) / TICK_NS;
        let later = self.sorted.split_off(&(tick + 1, 0));
        let expected: Vec<u64> = std::mem::replace(&mut self.sorted, later)
            .into_values()
            .collect();
        // Some of them one by one, the rest at once.
        if let Some((some, rest)) = expected.split_at_checked(self.count as usize % 4) {
            for number in some {
                assert_eq!(self.wheel.pop(Mono(now_ns)), Some(*number));
            }
            assert_eq!(due(&mut self.wheel, now_ns), rest, "the same, in order");
            return;
        }
        assert_eq!(due(&mut self.wheel, now_ns), expected, "the same, in order");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_wheel_agrees_with_a_sorted_map(steps in steps(), origin_ns in 0_u64..1 << 40) {
        // Belief: whatever is scheduled, cancelled and jumped over, the same timers come out in
        // the same order as from a sorted map.
        let mut pair = Pair::new(origin_ns);
        for step in &steps {
            pair.take(step);
        }
        while let Some(Mono(next)) = pair.wheel.next_deadline() {
            pair.advance(next);
        }
        prop_assert!(pair.sorted.is_empty());
        prop_assert_eq!(pair.wheel.statistics().live, 0);
    }
}

#[test]
fn nothing_is_due_early_and_nothing_is_late() {
    // Belief: in a million random cases no timer comes out before its deadline; a caller that
    // sleeps until the next deadline is late by less than a tick, one that looks now and then by
    // less than its own delay and a tick.
    let mut numbers = Numbers(3);
    let mut cases = 0;
    while cases < 1_000_000 {
        let tick_ns = numbers.of_any_size(24).max(1);
        let origin_ns = numbers.of_any_size(60);
        let mut wheel = wheel::<u64>(tick_ns, origin_ns);
        let mut now_ns = origin_ns;
        for _ in 0..200 {
            for _ in 0..numbers.below(20) {
                let deadline_ns = now_ns + numbers.of_any_size(40);
                let armed = wheel.schedule(Mono(deadline_ns), deadline_ns);
                assert_eq!(armed.is_err(), deadline_ns <= now_ns);
                cases += 1;
            }
            let before_ns = now_ns;
            let sleeps = numbers.below(2) == 0;
            now_ns = match wheel.next_deadline() {
                Some(Mono(next)) if sleeps => next,
                _ => now_ns + numbers.of_any_size(36),
            };
            for deadline_ns in due(&mut wheel, now_ns) {
                assert!(deadline_ns <= now_ns, "early by {}", deadline_ns - now_ns);
                let slept_ns = if sleeps { 0 } else { now_ns - before_ns };
                assert!(now_ns - deadline_ns < tick_ns + slept_ns.max(1));
            }
        }
    }
}

#[test]
fn a_caller_that_looks_every_tick_is_late_by_less_than_two() {
    // Belief: the bound for whoever advances with a clock that is not aligned to the ticks.
    let mut numbers = Numbers(4);
    for _ in 0..2_000 {
        let mut wheel = wheel::<u64>(TICK_NS, 0);
        let deadline_ns = 1 + numbers.below(300 * TICK_NS);
        wheel.schedule(Mono(deadline_ns), 0).unwrap();
        let mut now_ns = numbers.below(TICK_NS);
        while due(&mut wheel, now_ns).is_empty() {
            now_ns += TICK_NS;
        }
        assert!(now_ns >= deadline_ns && now_ns - deadline_ns < 2 * TICK_NS);
    }
}

#[test]
fn what_is_not_ahead_has_expired() {
    // Belief: a deadline at or before the last advance is refused with its value; one nanosecond
    // later is armed, although it may lie in the tick the wheel stands in.
    let mut wheel = wheel::<&str>(TICK_NS, 500);
    assert_eq!(wheel.schedule(Mono(0), "past"), Err(Expired("past")));
    assert_eq!(wheel.schedule(Mono(500), "now"), Err(Expired("now")));
    assert!(due(&mut wheel, 1_700).is_empty());
    assert_eq!(wheel.schedule(Mono(1_700), "now"), Err(Expired("now")));
    assert!(wheel.schedule(Mono(1_701), "ahead").is_ok());
    assert_eq!(wheel.next_deadline(), Some(Mono(2_500)));
    assert!(due(&mut wheel, 2_499).is_empty());
    assert_eq!(due(&mut wheel, 2_500), ["ahead"]);
}

#[test]
fn no_deadline_is_too_far() {
    // Belief: centuries ahead, in nanosecond ticks, a timer comes out at its tick and not before.
    for days in [1_u64, 50, 365, 10_000, 200_000] {
        let deadline_ns = days * 86_400 * 1_000_000_000 + 7;
        let mut wheel = wheel::<u64>(1, 3);
        wheel.schedule(Mono(deadline_ns), days).unwrap();
        assert_eq!(wheel.next_deadline(), Some(Mono(deadline_ns)));
        assert!(due(&mut wheel, deadline_ns - 1).is_empty());
        assert_eq!(due(&mut wheel, deadline_ns), [days]);
    }
    let mut last = wheel::<u64>(1, 0);
    last.schedule(Mono(u64::MAX), 1).unwrap();
    assert_eq!(due(&mut last, u64::MAX), [1]);
}

#[test]
fn timers_of_a_tick_keep_their_order() {
    // Belief: also when some came down from coarser levels and others were scheduled late.
    let mut wheel = wheel::<u64>(1, 0);
    let deadline = Mono(64 * 64 * 3 + 64 * 5 + 9);
    for (order, now_ns) in [0, 4_096, 12_288, 12_608, 12_610].into_iter().enumerate() {
        assert!(due(&mut wheel, now_ns).is_empty());
        wheel.schedule(deadline, order as u64).unwrap();
    }
    assert_eq!(due(&mut wheel, deadline.0), [0, 1, 2, 3, 4]);
}

#[test]
fn what_is_due_can_be_cancelled_until_it_is_handed_out() {
    // Belief: handed out one by one, timers that are due stay cancellable, and new ones may be
    // armed in between; nothing is lost and the order holds.
    let mut wheel = wheel::<u64>(10, 0);
    let keys: Vec<Key> = [10, 10, 25, 700, 710, 5_000]
        .into_iter()
        .enumerate()
        .map(|(number, at)| wheel.schedule(Mono(at), number as u64).unwrap())
        .collect();
    assert_eq!(wheel.pop(Mono(705)), Some(0));
    assert_eq!(wheel.next_deadline(), Some(Mono(10)), "late");
    assert!(wheel.contains(keys[1]));
    assert_eq!(wheel.cancel(keys[1]), Some(1));
    assert_eq!(wheel.schedule(Mono(700), 9), Err(Expired(9)));
    wheel.schedule(Mono(706), 6).unwrap();
    assert_eq!(wheel.pop(Mono(705)), Some(2));
    assert_eq!(wheel.pop(Mono(705)), Some(3));
    assert_eq!(wheel.pop(Mono(705)), None);
    assert_eq!(wheel.next_deadline(), Some(Mono(710)));
    assert_eq!(due(&mut wheel, 6_000), [4, 6, 5]);
}

#[test]
fn a_stale_key_is_harmless() {
    // Belief: a key whose timer is gone cancels nothing, also when its place is taken again, and
    // when its whole chunk was given back and made anew.
    let mut wheel = wheel::<u64>(1, 0);
    let first = wheel.schedule(Mono(10), 1).unwrap();
    assert_eq!(wheel.cancel(first), Some(1));
    assert_eq!(wheel.cancel(first), None);
    let second = wheel.schedule(Mono(10), 2).unwrap();
    assert_eq!(second.index(), first.index(), "the place is used again");
    assert_ne!(first, second);
    assert_eq!(wheel.cancel(first), None);
    assert_eq!(due(&mut wheel, 10), [2]);
    assert_eq!(wheel.cancel(second), None, "expired");

    let many = 5_000;
    let keys: Vec<Key> = (0..many)
        .map(|number| wheel.schedule(Mono(1_000), number).unwrap())
        .collect();
    for key in &keys {
        assert!(wheel.cancel(*key).is_some());
    }
    for number in 0..many {
        wheel.schedule(Mono(1_000), number).unwrap();
    }
    assert!(keys.iter().all(|key| wheel.cancel(*key).is_none()));
    assert_eq!(wheel.len(), many as usize);
}

#[test]
fn a_place_is_free_at_once() {
    // Belief: memory follows the timers that live, not how many there were: it does not grow
    // under churn, holds at most 64 bytes for each, and is given back.
    let mut wheel = wheel::<u64>(1_000_000, 0);
    let empty = wheel.statistics().memory_bytes;
    let mut keys: HashMap<u64, Key> = HashMap::new();
    for number in 0..100_000 {
        keys.insert(number, wheel.schedule(Mono(1 << 50), number).unwrap());
    }
    let full = wheel.statistics().memory_bytes;
    assert!(full <= 100_000 * 64, "{full} bytes");
    let mut numbers = Numbers(5);
    for _ in 0..1_000_000 {
        let number = numbers.below(100_000);
        assert_eq!(wheel.cancel(keys[&number]), Some(number));
        let deadline_ns = 1 + numbers.of_any_size(50);
        keys.insert(number, wheel.schedule(Mono(deadline_ns), number).unwrap());
    }
    assert_eq!(wheel.statistics().memory_bytes, full);
    for key in keys.values() {
        assert!(wheel.cancel(*key).is_some());
    }
    let left = wheel.statistics().memory_bytes;
    assert!(left <= empty + 60_000, "{left} bytes after {full}");
    assert_eq!(wheel.next_deadline(), None);
}

#[test]
fn a_wheel_sleeps_until_something_is_due() {
    // Belief: an empty wheel asks for no wake-up, a far timer for exactly one, and one that was
    // cancelled for at most one in vain for each level.
    let mut wheel = wheel::<u64>(1_000_000, 0);
    assert_eq!(wheel.next_deadline(), None);
    let far_ns = 86_400_000_000_000;
    wheel.schedule(Mono(far_ns), 1).unwrap();
    assert_eq!(wheel.next_deadline(), Some(Mono(far_ns)));
    let sooner = wheel.schedule(Mono(far_ns - 5_000_000), 2).unwrap();
    assert_eq!(wheel.cancel(sooner), Some(2));
    let mut wakes = 0;
    while !wheel.is_empty() {
        let next = wheel.next_deadline().unwrap();
        assert!(next.0 >= far_ns - 5_000_000);
        due(&mut wheel, next.0);
        wakes += 1;
    }
    assert!(wakes <= 2, "{wakes} wake-ups");
}

#[test]
fn time_that_runs_backwards_is_ignored() {
    // Belief: an older now moves nothing, and the wheel goes on from where it was.
    let mut wheel = wheel::<u64>(1, 100);
    wheel.schedule(Mono(200), 1).unwrap();
    assert!(due(&mut wheel, 150).is_empty());
    assert!(due(&mut wheel, 20).is_empty());
    assert!(wheel.schedule(Mono(150), 2).is_err());
    assert_eq!(due(&mut wheel, 200), [1]);
}

#[test]
fn a_wheel_can_begin_anew_on_another_clock() {
    // Belief: a restart hands everything out, forgets its time, and makes no old key valid.
    let mut wheel = wheel::<u64>(1, 1_000);
    let old = wheel.schedule(Mono(5_000), 1).unwrap();
    wheel.schedule(Mono(6_000), 2).unwrap();
    due(&mut wheel, 2_000);
    let mut left = wheel.restart(Mono(0));
    left.sort_unstable();
    assert_eq!(left, [1, 2]);
    let new = wheel.schedule(Mono(10), 3).unwrap();
    assert_eq!(wheel.next_deadline(), Some(Mono(10)));
    assert!(!wheel.contains(old) && wheel.contains(new));
    assert_eq!(due(&mut wheel, 10), [3]);
}

#[test]
fn values_are_dropped_once() {
    // Belief: cancelled, due and left in the wheel, each value is dropped exactly once, and at
    // the moment it leaves.
    let value = Rc::new(());
    let mut wheel = wheel::<Rc<()>>(1, 0);
    let keys: Vec<Key> = (1..=9)
        .map(|at| wheel.schedule(Mono(at), Rc::clone(&value)).unwrap())
        .collect();
    assert_eq!(Rc::strong_count(&value), 10);
    assert!(wheel.cancel(keys[8]).is_some());
    assert_eq!(Rc::strong_count(&value), 9);
    assert_eq!(due(&mut wheel, 4).len(), 4);
    assert_eq!(Rc::strong_count(&value), 5);
    drop(wheel);
    assert_eq!(Rc::strong_count(&value), 1);
}

#[test]
fn a_scope_ends_its_own_timers_and_no_others() {
    // Belief: what it hands over cancels every timer of it that still waits, each once; one that
    // took the place of a timer of it is left alone.
    let mut wheel = wheel::<u64>(1, 0);
    let mut scope = Scope::new();
    for number in 0..1000 {
        let key = wheel.schedule(Mono(10 + number), number).unwrap();
        if number % 2 == 0 {
            scope.add(&wheel, key);
        }
    }
    assert_eq!(due(&mut wheel, 109).len(), 100);
    let stranger = wheel.schedule(Mono(5000), 5000).unwrap();
    let mut gone = Vec::new();
    for keys in scope.end() {
        let counted = wheel.cancel_all(&keys, &mut gone);
        assert!(counted <= keys.len());
    }
    let even: Vec<u64> = (100..1000).filter(|number| number % 2 == 0).collect();
    assert_eq!(gone, even);
    assert_eq!(wheel.get(stranger), Some(&5000));
    assert_eq!(wheel.len(), 451);
    assert!(scope.end().is_empty());
}

#[test]
fn a_scope_does_not_grow_with_timers_that_are_gone() {
    // Belief: a million timers armed and cancelled one after the other leave a handful of keys,
    // and those that live are never forgotten.
    let mut wheel = wheel::<u64>(1, 0);
    let mut scope = Scope::new();
    for number in 0..100 {
        let key = wheel.schedule(Mono(1 << 40), number).unwrap();
        scope.add(&wheel, key);
    }
    for number in 0..1_000_000 {
        let key = wheel.schedule(Mono(1 << 40), number).unwrap();
        scope.add(&wheel, key);
        wheel.cancel(key);
        assert!(scope.keys() <= 256, "{} keys", scope.keys());
    }
    let mut gone = Vec::new();
    for keys in scope.end() {
        wheel.cancel_all(&keys, &mut gone);
    }
    assert_eq!(gone, (0..100).collect::<Vec<_>>());
}

#[test]
fn statistics_count_what_happened() {
    // Belief: armed = cancelled + expired + live, at every moment.
    let mut wheel = wheel::<u64>(1, 0);
    let keys: Vec<Key> = (1..=300)
        .map(|at| wheel.schedule(Mono(at), at).unwrap())
        .collect();
    for key in &keys[..50] {
        wheel.cancel(*key);
    }
    due(&mut wheel, 200);
    let seen = wheel.statistics();
    assert_eq!((seen.armed, seen.cancelled), (300, 50));
    assert_eq!((seen.expired, seen.live), (150, 100));
    assert!(seen.cascaded > 0);
}

#[test]
fn a_tick_of_nothing_is_refused() {
    // Belief: a wheel that could not turn is not made.
    assert!(TimeoutWheel::<u64>::new(Duration::ZERO, Mono(0)).is_err());
    assert!(TimeoutWheel::<u64>::new(Duration::MAX, Mono(0)).is_err());
}
