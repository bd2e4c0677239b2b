//! Models: no interleaving loses an item or a wake-up. A lost one shows as a deadlock.

use loom::{model::Builder, sync::Arc as LoomArc, thread};
use std::sync::Arc;

use super::{
    Doorbell, Drained, Port, Watch,
    handshake::{Call, Handshake, NUDGED, WOKEN},
    lead::Lead,
    signal::Signal,
    told::Told,
};
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

/// An owner that looks, then sleeps if nobody called, as a backend's owner does.
fn serve(word: &Handshake, bell: &Signal, mut look: impl FnMut() -> bool) {
    // What is published before a call is looked for before the call is taken, too: the turn takes
    // messages first and the word after, so a call may be for something already seen.
    while !look() {
        if word.take() != 0 || !word.announce() {
            continue;
        }
        bell.wait();
        bell.lower();
        word.take();
    }
}

#[test]
fn a_call_reaches_an_owner_that_sleeps_or_is_about_to() {
    // Two callers publish and call; the owner sees both, however looking, announcing, sleeping and
    // calling interleave. What is published is plain memory: only the word orders it.
    explore(|| {
        let word = LoomArc::new(Handshake::default());
        let bell = LoomArc::new(Signal::new().unwrap());
        let published: Vec<_> = (0..2).map(|_| LoomArc::new(AtomicU64::new(0))).collect();
        let callers: Vec<_> = published
            .iter()
            .zip([WOKEN, NUDGED])
            .map(|(place, bit)| {
                let (word, bell, place) = (word.clone(), bell.clone(), place.clone());
                thread::spawn(move || {
                    place.store(1, Ordering::Relaxed);
                    if word.call(bit) == Call::Ring {
                        bell.raise();
                    }
                })
            })
            .collect();
        serve(&word, &bell, || {
            published
                .iter()
                .all(|place| place.load(Ordering::Relaxed) == 1)
        });
        for caller in callers {
            caller.join().unwrap();
        }
    });
}

#[test]
fn a_call_reaches_an_owner_that_waits_elsewhere() {
    // The owner does not sleep on the word but in an event loop: the first call after each look
    // raises the loop's own bell.
    explore(|| {
        let word = LoomArc::new(Handshake::default());
        let elsewhere = LoomArc::new(Signal::new().unwrap());
        let published = LoomArc::new(AtomicU64::new(0));
        let callers: Vec<_> = (0..2)
            .map(|_| {
                let (word, elsewhere) = (word.clone(), elsewhere.clone());
                let published = published.clone();
                thread::spawn(move || {
                    published.fetch_add(1, Ordering::Relaxed);
                    if word.call(WOKEN) == Call::First {
                        elsewhere.raise();
                    }
                })
            })
            .collect();
        let mut seen = 0;
        while seen < 2 {
            elsewhere.wait();
            elsewhere.lower();
            word.take();
            seen = published.load(Ordering::Relaxed);
        }
        for caller in callers {
            caller.join().unwrap();
        }
    });
}

#[test]
fn what_is_published_while_a_leader_leaves_is_seen_by_one_of_the_two() {
    // The publisher finds somebody leading and goes, or sees to it itself; in the first case the
    // leader's last look finds it. Never does each leave it to the other.
    explore(|| {
        let lead = LoomArc::new(Lead::new());
        let published = LoomArc::new(AtomicU64::new(0));
        lead.take();
        let publisher = {
            let (lead, published) = (lead.clone(), published.clone());
            thread::spawn(move || {
                published.store(1, Ordering::Relaxed);
                lead.sees_it()
            })
        };
        lead.leave();
        let found = published.load(Ordering::Relaxed) == 1;
        let left_to_leader = publisher.join().unwrap();
        assert!(found || !left_to_leader);
        assert!(!lead.is_led());
    });
}

#[test]
fn a_hushed_bell_loses_nobody() {
    // The owner hushes the bell, does something else, and answers: of two who publish and ring
    // meanwhile, neither is missed, whichever of them found the flag set. What they publish is
    // plain memory: only the flag orders it.
    explore(|| {
        let bell = LoomArc::new(Doorbell::new().unwrap());
        let published: Vec<_> = (0..2).map(|_| LoomArc::new(AtomicU64::new(0))).collect();
        let callers: Vec<_> = published
            .iter()
            .map(|place| {
                let (bell, place) = (bell.clone(), place.clone());
                thread::spawn(move || {
                    place.store(1, Ordering::Relaxed);
                    bell.ring();
                })
            })
            .collect();
        let all = || {
            let seen = |place: &LoomArc<AtomicU64>| place.load(Ordering::Relaxed) == 1;
            published.iter().all(seen)
        };
        bell.hush();
        bell.silence();
        while !all() {
            bell.wait();
            bell.silence();
        }
        for caller in callers {
            caller.join().unwrap();
        }
    });
}

#[test]
fn a_call_finds_an_owner_that_has_just_moved() {
    // The owner goes to wait elsewhere, says so, and looks once more: a caller that comes after
    // that look sees where it waits. The notice is plain memory: only the word orders it.
    explore(|| {
        let word = LoomArc::new(Handshake::default());
        let elsewhere = LoomArc::new(Signal::new().unwrap());
        let moved = LoomArc::new(AtomicU64::new(0));
        let published = LoomArc::new(AtomicU64::new(0));
        let caller = {
            let (word, elsewhere) = (word.clone(), elsewhere.clone());
            let (moved, published) = (moved.clone(), published.clone());
            thread::spawn(move || {
                published.store(1, Ordering::Relaxed);
                if word.call(WOKEN) == Call::First && moved.load(Ordering::Relaxed) == 1 {
                    elsewhere.raise();
                }
            })
        };
        moved.store(1, Ordering::Relaxed);
        word.take();
        while published.load(Ordering::Relaxed) == 0 {
            elsewhere.wait();
            elsewhere.lower();
            word.take();
        }
        caller.join().unwrap();
    });
}

#[test]
fn a_loop_that_comes_while_nobody_is_told_any_more_leaves_no_half() {
    // One loop asks to be told while another is forgotten and a thread stops all telling: bell and
    // address still belong together, so the next loop is not taken for one that is told.
    explore(|| {
        let told = LoomArc::new(Told::new());
        let (gone, here) = (Arc::new(1), Arc::new(2));
        told.tell(&gone, true);
        let stopping = {
            let told = LoomArc::clone(&told);
            thread::spawn(move || told.stop())
        };
        let coming = {
            let (told, here) = (LoomArc::clone(&told), Arc::clone(&here));
            thread::spawn(move || told.tell(&here, true))
        };
        told.forget(&gone);
        stopping.join().unwrap();
        coming.join().unwrap();
        assert!(told.is_consistent());
        told.tell(&here, false);
        assert_eq!(told.get(), Some(here));
    });
}
