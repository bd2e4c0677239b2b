//! The port's own promises on the real descriptor.

use std::{
    os::fd::RawFd,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};

use super::{Drained, Port, Watch};
use crate::sync::Wake;

fn is_readable(fd: RawFd, timeout_ms: i32) -> bool {
    let mut poll = libc::pollfd {
        fd,
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: the pointer is to one pollfd that outlives the call.
    unsafe { libc::poll(&raw mut poll, 1, timeout_ms) == 1 }
}

#[test]
fn an_idle_port_is_silent() {
    // Nobody posted, nobody is woken.
    let port = Port::<u64>::new().unwrap();
    assert!(!is_readable(port.bell().fd(), 0));
}

#[test]
fn many_posts_ring_once_and_come_in_order() {
    // A hundred posts before a drain are one ring and one drain.
    let port = Port::new().unwrap();
    (0..100).for_each(|item| port.post(item));
    assert!(is_readable(port.bell().fd(), 0));
    let mut seen = Vec::new();
    assert_eq!(port.drain(1000, |item| seen.push(item)), Drained::All);
    assert_eq!(seen, (0..100).collect::<Vec<_>>());
    assert!(!is_readable(port.bell().fd(), 0));
}

#[test]
fn a_spent_budget_rings_again() {
    // What a budget leaves behind is not forgotten.
    let port = Port::new().unwrap();
    (0..3).for_each(|item| port.post(item));
    assert_eq!(port.drain(2, drop), Drained::BudgetSpent);
    assert!(is_readable(port.bell().fd(), 0));
    assert_eq!(port.drain(2, drop), Drained::All);
    assert!(!is_readable(port.bell().fd(), 0));
}

#[test]
fn a_drain_without_a_ring_still_takes() {
    // Readiness that turns out to be nothing is ordinary: the drain looks all the same.
    let port = Port::<u64>::new().unwrap();
    assert_eq!(port.drain(8, drop), Drained::All);
    port.post(1);
    assert_eq!(port.drain(8, drop), Drained::All);
}

#[test]
fn four_threads_lose_nothing() {
    // A sleeper that waits for the descriptor alone gets every item of four busy threads.
    const EACH: u64 = 20_000;
    let port = Arc::new(Port::new().unwrap());
    let threads: Vec<_> = (0..4)
        .map(|_| {
            let port = Arc::clone(&port);
            thread::spawn(move || (0..EACH).for_each(|item| port.post(item)))
        })
        .collect();
    let mut count = 0;
    while count < 4 * EACH {
        assert!(is_readable(port.bell().fd(), 10_000), "lost after {count}");
        port.drain(64, |_| count += 1);
    }
    for thread in threads {
        thread.join().unwrap();
    }
}

#[test]
fn a_watch_fires_once_per_arming() {
    // Two moves after one arming are one ring; none comes without arming.
    struct Count(AtomicU64);
    impl Wake for Count {
        fn wake(&self) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }
    let count = Arc::new(Count(AtomicU64::new(0)));
    let wake: Arc<dyn Wake> = Arc::<Count>::clone(&count);
    let watch = Watch::new(wake);
    watch.notify();
    assert_eq!(count.0.load(Ordering::Relaxed), 0);
    assert!(!watch.arm_unless(|| false));
    watch.notify();
    watch.notify();
    assert_eq!(count.0.load(Ordering::Relaxed), 1);
    assert!(watch.arm_unless(|| true));
}

#[test]
fn a_panic_in_a_drain_loses_nothing_behind_it() {
    // The item that was being taken is gone with the panic; the bell rings for those behind it,
    // and the next drain has them.
    let port = Port::new().unwrap();
    for item in 0..4 {
        port.post(item);
    }
    let mut taken = Vec::new();
    let drained = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        port.drain(10, |item| {
            assert_ne!(item, 1, "injected");
            taken.push(item);
        })
    }));
    assert!(drained.is_err());
    let fd = port.bell().fd();
    assert!(is_readable(fd, 0), "nobody would come for the rest");
    assert_eq!(port.drain(10, |item| taken.push(item)), Drained::All);
    assert_eq!(taken, [0, 2, 3]);
}
