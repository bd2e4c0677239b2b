//! The ring against a `VecDeque`: any sequence of calls, every capacity from 1 to 64.

use std::collections::VecDeque;

use super::*;
use proptest::prelude::*;

#[derive(Debug, Clone)]
enum Step {
    Append(usize),
    AppendMany(Vec<usize>),
    Queue(Vec<usize>),
    Cancel(usize),
    Pop(usize),
    Release,
    Close,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let batch = || prop::collection::vec(0..12_usize, 1..6);
    let step = prop_oneof![
        8 => (0..12_usize).prop_map(Step::Append),
        3 => batch().prop_map(Step::AppendMany),
        4 => batch().prop_map(Step::Queue),
        2 => (0..4_usize).prop_map(Step::Cancel),
        6 => (1..8_usize).prop_map(Step::Pop),
        6 => Just(Step::Release),
        1 => Just(Step::Close),
    ];
    prop::collection::vec(step, 1..150)
}

/// What the ring should do, said the slow way.
struct Model {
    capacity: usize,
    capacity_bytes: usize,
    inside: VecDeque<Item>,
    /// Weights of what was popped and not released.
    popped: Vec<usize>,
    waiting: VecDeque<(u64, Vec<Item>)>,
    claimed: u64,
    closed: bool,
}

impl Model {
    fn fits(&self, entries: &[Item]) -> bool {
        let bytes: usize = self.inside.iter().map(|item| item.bytes).sum();
        let held: usize = self.popped.iter().sum();
        let more: usize = entries.iter().map(|item| item.bytes).sum();
        self.inside.len() + self.popped.len() + entries.len() <= self.capacity
            && bytes + held + more <= self.capacity_bytes
    }

    fn is_too_large(&self, entries: &[Item]) -> bool {
        let bytes: usize = entries.iter().map(|item| item.bytes).sum();
        entries.len() > self.capacity || bytes > self.capacity_bytes
    }

    fn enter(&mut self, entries: &[Item]) -> u64 {
        let position = self.claimed;
        self.inside.extend(entries);
        self.claimed += entries.len() as u64;
        position
    }

    fn try_enter(&mut self, entries: &[Item]) -> Option<u64> {
        let enters = !self.closed
            && self.waiting.is_empty()
            && !self.is_too_large(entries)
            && self.fits(entries);
        enters.then(|| self.enter(entries))
    }

    /// Lets in who waits; returns ticket and position of each.
    fn admit(&mut self) -> Vec<(u64, u64)> {
        let mut admitted = Vec::new();
        while let Some((_, entries)) = self.waiting.front() {
            if !self.fits(entries) {
                break;
            }
            let Some((ticket, entries)) = self.waiting.pop_front() else {
                break;
            };
            admitted.push((ticket, self.enter(&entries)));
        }
        admitted
    }
}

/// The ring, its model, and the appends that queued.
struct Pair {
    producer: Producer<Item>,
    consumer: Consumer<Item>,
    model: Model,
    admissions: Vec<(Arc<Admission<Item>>, AdmissionState)>,
    numbers: u64,
}

impl Pair {
    fn new(capacity: usize, capacity_bytes: usize) -> Self {
        let limits = Limits {
            capacity,
            capacity_bytes,
            entry_bytes_max: 12,
            bytes_outlive_slots: false,
        };
        let (producer, consumer) = make(limits);
        let model = Model {
            capacity: producer.limits().capacity,
            capacity_bytes,
            inside: VecDeque::new(),
            popped: Vec::new(),
            waiting: VecDeque::new(),
            claimed: 0,
            closed: false,
        };
        Self {
            producer,
            consumer,
            model,
            admissions: Vec::new(),
            numbers: 0,
        }
    }

    fn entries(&mut self, weights: &[usize]) -> Vec<Item> {
        let first = self.numbers;
        self.numbers += weights.len() as u64;
        (first..)
            .zip(weights)
            .map(|(number, bytes)| heavy(number, *bytes))
            .collect()
    }

    fn admitted(&mut self) {
        for (ticket, position) in self.model.admit() {
            self.admissions[ticket as usize].1 = AdmissionState::Admitted(position);
        }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Append(weight) => {
                let entries = self.entries(&[weight]);
                let entered = self.producer.try_append(entries[0]).ok();
                assert_eq!(entered, self.model.try_enter(&entries));
            }
            Step::AppendMany(weights) => {
                let entries = self.entries(&weights);
                let entered = self.producer.try_append_many(entries.clone()).ok();
                assert_eq!(entered, self.model.try_enter(&entries));
            }
            Step::Queue(weights) => self.queue(&weights),
            Step::Cancel(index) => self.cancel(index),
            Step::Pop(count) => {
                for _ in 0..count {
                    let expected = self.model.inside.pop_front();
                    assert_eq!(self.consumer.pop(), expected);
                    self.model.popped.extend(expected.map(|item| item.bytes));
                }
            }
            Step::Release => {
                self.consumer.release();
                self.model.popped.clear();
                self.admitted();
            }
            Step::Close => {
                self.producer.close();
                self.model.closed = true;
                for (ticket, _) in self.model.waiting.drain(..) {
                    self.admissions[ticket as usize].1 = AdmissionState::Closed;
                }
            }
        }
        self.agree();
    }

    fn queue(&mut self, weights: &[usize]) {
        let entries = self.entries(weights);
        let expected = self.model.try_enter(&entries);
        let (_bell, waker) = bell();
        match self
            .producer
            .append_or_queue(Entries::Many(entries.clone()), waker)
        {
            Ok(Claim::Now(position)) => assert_eq!(Some(position), expected),
            Ok(Claim::Later(admission)) => {
                assert_eq!(expected, None);
                assert!(!self.model.closed && !self.model.is_too_large(&entries));
                let ticket = self.admissions.len() as u64;
                self.admissions.push((admission, AdmissionState::Waiting));
                self.model.waiting.push_back((ticket, entries));
            }
            Err(refused) => {
                assert!(self.model.closed || self.model.is_too_large(&entries));
                assert_eq!(refused.value.into_vec(), entries);
            }
        }
    }

    fn cancel(&mut self, index: usize) {
        let Some((ticket, _)) = self.model.waiting.get(index) else {
            return;
        };
        let ticket = *ticket;
        self.model.waiting.remove(index);
        self.admissions[ticket as usize].1 = AdmissionState::Cancelled;
        assert!(self.admissions[ticket as usize].0.cancel());
        self.admitted();
    }

    fn agree(&mut self) {
        assert_eq!(self.consumer.peek(), self.model.inside.front());
        assert!(self.consumer.is_published(self.model.inside.len()));
        assert!(!self.consumer.is_published(self.model.inside.len() + 1));
        let len = self.model.inside.len() + self.model.popped.len();
        assert_eq!(self.producer.len(), len);
        assert_eq!(self.producer.claimed(), self.model.claimed);
        assert_eq!(self.producer.statistics().waiting, self.model.waiting.len());
        for (admission, state) in &self.admissions {
            assert_eq!(admission.state(), *state);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_ring_behaves_like_a_queue(steps in steps(), bytes in 1..200_usize) {
        // Whatever is called in whatever order, ring and model agree, for every capacity.
        for capacity in 1..=64 {
            let mut pair = Pair::new(capacity, bytes);
            for step in steps.clone() {
                pair.step(step);
            }
        }
    }
}
