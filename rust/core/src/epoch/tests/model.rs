//! The collector against a model that is obviously right.

use std::collections::VecDeque;

use proptest::prelude::*;

use super::*;
use crate::epoch::{Budget, OwnedPin};

#[derive(Debug, Clone)]
enum Step {
    Pin,
    Unpin(usize),
    Defer(usize),
    Collect(usize),
    Tick,
    Disable,
    Enable,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        2 => Just(Step::Pin),
        2 => (0..8_usize).prop_map(Step::Unpin),
        6 => (0..40_usize).prop_map(Step::Defer),
        3 => (0..6_usize).prop_map(Step::Collect),
        1 => Just(Step::Tick),
        1 => Just(Step::Disable),
        1 => Just(Step::Enable),
    ]
}

struct Piece {
    number: u64,
    bytes: usize,
    /// The pins that were live when a collection first looked at it.
    held_by: Option<Vec<u64>>,
}

/// A piece may run when the pins that were live when it was sealed are gone. That is exact: it
/// is held neither shorter nor longer.
#[derive(Default)]
struct Model {
    queue: VecDeque<Piece>,
    ready: usize,
    pins: Vec<u64>,
    ran: Vec<u64>,
    is_disabled: bool,
}

const ITEMS: usize = 6;
const BYTES: usize = 100;

impl Model {
    fn bytes(&self) -> usize {
        self.queue.iter().map(|piece| piece.bytes).sum()
    }

    /// Runs from the front while it is safe, at most `items`.
    fn collect(&mut self, items: usize) {
        for _ in 0..items {
            if self.ready == 0 {
                self.look();
            }
            if self.ready == 0 {
                return;
            }
            self.ready -= 1;
            self.ran
                .extend(self.queue.pop_front().map(|piece| piece.number));
        }
    }

    fn look(&mut self) {
        let pins = &self.pins;
        for piece in &mut self.queue {
            piece.held_by.get_or_insert_with(|| pins.clone());
        }
        let is_safe = |piece: &&Piece| {
            let held_by = piece.held_by.iter().flatten();
            !held_by.into_iter().any(|pin| pins.contains(pin))
        };
        self.ready = self.queue.iter().take_while(is_safe).count();
    }

    /// Whether it is taken.
    fn defer(&mut self, number: u64, bytes: usize) -> bool {
        let is_full = self.queue.len() >= ITEMS || self.bytes() + bytes > BYTES;
        if !self.is_disabled && !is_full {
            self.queue.push_back(Piece {
                number,
                bytes,
                held_by: None,
            });
            return true;
        }
        let is_inline = self.pins.is_empty();
        if is_inline {
            self.ran.push(number);
        }
        is_inline
    }
}

proptest! {
    #[test]
    fn it_does_what_the_model_does(steps in prop::collection::vec(step(), 1..120)) {
        // Same pieces run, in the same order, at the same step; same load, same refusals.
        let (collector, clock) = with(Settings {
            max_items: ITEMS,
            max_bytes: BYTES,
            assist: false,
            ..Settings::default()
        });
        let (diary, mut model) = (Diary::default(), Model::default());
        let mut pins: Vec<OwnedPin> = Vec::new();
        for (number, step) in steps.into_iter().enumerate() {
            let number = number as u64;
            match step {
                Step::Pin => {
                    pins.push(collector.pin(None));
                    model.pins.push(number);
                }
                Step::Unpin(at) if at < pins.len() => {
                    drop(pins.remove(at));
                    model.pins.remove(at);
                    if model.is_disabled {
                        model.collect(usize::MAX);
                    }
                }
                Step::Unpin(_) => {}
                Step::Defer(bytes) => {
                    let taken = collector.try_defer(diary.task(number), bytes).is_ok();
                    prop_assert_eq!(taken, model.defer(number, bytes));
                }
                Step::Collect(items) => {
                    let budget = Budget { items, ..Budget::ALL };
                    collector.collect(budget);
                    model.collect(items);
                }
                Step::Tick => {
                    collector.tick(clock.now());
                    model.collect(usize::MAX);
                }
                Step::Disable => {
                    collector.disable();
                    model.is_disabled = true;
                    model.collect(usize::MAX);
                }
                Step::Enable => {
                    collector.enable();
                    model.is_disabled = false;
                }
            }
            prop_assert_eq!(diary.seen(), model.ran.clone());
            prop_assert_eq!(collector.load().items, model.queue.len());
            prop_assert_eq!(collector.load().bytes, model.bytes());
        }
    }
}
