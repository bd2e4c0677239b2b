//! The collector's promises, by name.

// Helpers of tests fail as tests do.
#![allow(clippy::unwrap_used)]

mod bounds;
mod crowd;
mod model;
mod pins;
mod running;
mod settings;

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use super::{Collector, Deferred, Kind, Reason, Refused, Settings, Task};
use crate::clock::{Clock, ManualClock, Mono};

/// What ran, in order.
#[derive(Clone, Default)]
struct Diary(Arc<Mutex<Vec<u64>>>);

impl Diary {
    fn note(&self, number: u64) {
        self.0.lock().unwrap().push(number);
    }

    fn seen(&self) -> Vec<u64> {
        self.0.lock().unwrap().clone()
    }

    fn task(&self, number: u64) -> Task {
        let diary = self.clone();
        Task::new(Kind::Call, move || {
            diary.note(number);
            Ok(())
        })
    }
}

/// A collector in which nobody but the test runs anything, with a clock the test moves.
fn quiet() -> (Collector, ManualClock) {
    with(Settings {
        assist: false,
        ..Settings::default()
    })
}

fn with(settings: Settings) -> (Collector, ManualClock) {
    let clock = ManualClock::default();
    let collector = Collector::new(settings, Arc::new(clock.clone())).unwrap();
    (collector, clock)
}

fn defer(collector: &Collector, task: Task) {
    assert!(matches!(collector.try_defer(task, 1), Ok(Deferred::Queued)));
}

fn reason(refused: Result<Deferred, Refused<Task>>) -> Reason {
    match refused {
        Err(refused) => refused.reason,
        Ok(taken) => panic!("taken: {taken:?}"),
    }
}

const MILLI: Duration = Duration::from_millis(1);
