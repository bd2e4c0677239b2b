//! Ends: shutdown, and a backend that is dropped while it works.

use std::time::Duration;

use super::{World, filled, foreground, request, run, write};
use crate::io::{Class, Op, Wait};

/// Shutdown answers everything or says what it left behind, and takes nothing after.
pub fn shutdown_accounts_for_everything(world: &World) {
    for budget in [None, Some(Duration::ZERO), Some(Duration::from_secs(10))] {
        let mut backend = world.backend();
        let file = world.file(&mut *backend, "f");
        for token in 0..20 {
            let class = [Class::Foreground, Class::Background][token as usize % 2];
            let op = write(&file, token << 20, filled(1 << 18, 1), true);
            backend.submit(request(token, class, op)).unwrap();
        }
        let mut out = Vec::new();
        backend.poll(&mut out, Wait::Never).unwrap();
        let left = backend.shutdown(budget);
        if budget != Some(Duration::ZERO) {
            assert_eq!(left.requests, 0);
        }
        assert_eq!(left.bytes, left.requests << 18);
        let op = Op::Sync { file };
        assert!(backend.submit(foreground(99, op)).is_err());
        while backend.in_flight() > 0 {
            backend.poll(&mut out, Wait::Never).unwrap();
        }
        assert_eq!(out.len() as u64 + left.requests, 20);
        assert!(out.iter().all(|done| done.buffer.is_some()));
        backend.shutdown(budget);
    }
}

/// A backend that is dropped with work in flight leaves its disk usable.
pub fn a_dropped_backend_leaves_the_disk_usable(world: &World) {
    let mut backend = world.backend();
    let file = world.file(&mut *backend, "f");
    for token in 0..20 {
        let class = [Class::Foreground, Class::Background][token as usize % 2];
        let op = write(&file, token << 16, filled(1 << 16, 1), false);
        backend.submit(request(token, class, op)).unwrap();
    }
    backend.poll(&mut Vec::new(), Wait::Never).unwrap();
    let waker = backend.waker();
    drop(backend);
    waker.wake();
    let mut backend = world.backend();
    let file = world.file(&mut *backend, "g");
    run(&mut *backend, write(&file, 0, filled(16, 1), true))
        .result
        .unwrap();
}
