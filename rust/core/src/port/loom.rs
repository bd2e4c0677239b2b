//! Models: no interleaving loses an item or a wake-up. A lost one shows as a deadlock.

use loom::{model::Builder, sync::Arc as LoomArc, thread};
use std::sync::Arc;

use super::{Doorbell, Drained, Port, Watch};
use crate::sync::{AtomicU64, Ordering, Wake};

fn explore(model: impl Fn() + Send + Sync + 'static) {
    let mut builder = Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(model);
}

#[test]
fn every_posted_item_arrives() {
    // Two producers, one sleeper: whatever the interleaving, the sleeper gets both items.
    explore(|| {
        let port = LoomArc::new(Port::new().unwrap());
        let producers: Vec<_> = (0..2_u64)
            .map(|item| {
                let port = LoomArc::clone(&port);
                thread::spawn(move || port.post(item))
            })
            .collect();
        let mut seen = 0;
        while seen < 2 {
            port.bell().wait();
            port.drain(8, |_| seen += 1);
        }
        for producer in producers {
            producer.join().unwrap();
        }
    });
}

#[test]
fn a_drain_with_a_budget_comes_back() {
    // A budget of one with two items: the drain that leaves one behind has rung for itself.
    explore(|| {
        let port = LoomArc::new(Port::new().unwrap());
        let producer = {
            let port = LoomArc::clone(&port);
            thread::spawn(move || {
                port.post(1);
                port.post(2);
            })
        };
        let mut seen = Vec::new();
        while seen.len() < 2 {
            port.bell().wait();
            let drained = port.drain(1, |item| seen.push(item));
            assert!(drained == Drained::BudgetSpent || seen.len() != 1 || seen == [1]);
        }
        assert_eq!(seen, [1, 2], "one producer's items keep their order");
        producer.join().unwrap();
    });
}

struct LoomBell(LoomArc<Doorbell>);

impl Wake for LoomBell {
    fn wake(&self) {
        self.0.ring();
    }
}

#[test]
fn a_watermark_that_moves_is_heard_of() {
    // The owner moves the mark once; the watcher that found it unmoved is woken or sees it.
    explore(|| {
        let bell = LoomArc::new(Doorbell::new().unwrap());
        let mark = LoomArc::new(AtomicU64::new(0));
        let wake: Arc<dyn Wake> = Arc::new(LoomBell(LoomArc::clone(&bell)));
        let watch = LoomArc::new(Watch::new(wake));
        let owner = {
            let (mark, watch) = (LoomArc::clone(&mark), LoomArc::clone(&watch));
            thread::spawn(move || {
                mark.store(1, Ordering::Release);
                watch.notify();
            })
        };
        while !watch.arm_unless(|| mark.load(Ordering::Acquire) == 1) {
            bell.wait();
            bell.silence();
        }
        owner.join().unwrap();
    });
}

#[test]
fn a_mark_and_an_item_share_one_bell() {
    // An item and a moving mark ring the same bell: answering one never swallows the other.
    explore(|| {
        let port = LoomArc::new(Port::<u64>::new().unwrap());
        let mark = LoomArc::new(AtomicU64::new(0));
        let poster = {
            let port = LoomArc::clone(&port);
            thread::spawn(move || port.post(7))
        };
        let marker = {
            let (port, mark) = (LoomArc::clone(&port), LoomArc::clone(&mark));
            thread::spawn(move || {
                mark.store(1, Ordering::Release);
                port.wake();
            })
        };
        let (mut items, mut moved) = (0, false);
        while items == 0 || !moved {
            port.bell().wait();
            port.drain(8, |_| items += 1);
            moved = moved || mark.load(Ordering::Acquire) == 1;
        }
        poster.join().unwrap();
        marker.join().unwrap();
    });
}
