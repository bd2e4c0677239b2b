//! Waiting and waking: how long a poll lasts and what ends it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use super::{World, filled, finish, request, write};
use crate::io::{BLOCK, Class, Wait};

/// `Wait::Never` returns at once, `Wait::Until` at its time and not before, in the backend's time.
pub fn a_wait_lasts_as_long_as_told(world: &World) {
    let mut backend = world.backend();
    let mut out = Vec::new();
    backend.poll(&mut out, Wait::Never).unwrap();
    let until = backend.now().after(Duration::from_millis(20));
    backend.poll(&mut out, Wait::Until(until)).unwrap();
    assert!(
        backend.now() >= until,
        "{:?} before {until:?}",
        backend.now()
    );
    backend.poll(&mut out, Wait::Until(until)).unwrap();
    assert!(out.is_empty());
}

/// A wait ends when something finishes.
pub fn a_wait_ends_when_something_finishes(world: &World) {
    let mut backend = world.backend();
    let file = world.file(&mut *backend, "f");
    for class in [Class::Foreground, Class::Background] {
        let op = write(&file, 0, filled(BLOCK, 1), true);
        backend.submit(request(1, class, op)).unwrap();
        let far = backend.now().after(Duration::from_secs(600));
        let mut out = Vec::new();
        while out.is_empty() {
            backend.poll(&mut out, Wait::Until(far)).unwrap();
            assert!(backend.now() < far);
        }
        assert_eq!(backend.in_flight(), 0);
    }
}

/// A wake before the poll ends it; the poll after that waits again.
pub fn a_wake_before_a_poll_is_kept_once(world: &World) {
    let mut backend = world.backend();
    let mut out = Vec::new();
    for wakes in [1, 3] {
        for _ in 0..wakes {
            backend.waker().wake();
        }
        let far = backend.now().after(Duration::from_secs(600));
        backend.poll(&mut out, Wait::Until(far)).unwrap();
        assert!(backend.now() < far);
        let until = backend.now().after(Duration::from_millis(5));
        backend.poll(&mut out, Wait::Until(until)).unwrap();
        assert!(backend.now() >= until, "a wake was counted twice");
    }
}

/// A wake during the poll ends it, and none is lost however the two race.
pub fn no_wake_is_lost_in_a_race(world: &World) {
    const ROUNDS: u64 = 20_000;
    if !world.real {
        return;
    }
    let mut backend = world.backend();
    let said = Arc::new(AtomicU64::new(0));
    let heard = Arc::new(AtomicU64::new(0));
    let talker = std::thread::spawn({
        let (said, heard, waker) = (said.clone(), heard.clone(), backend.waker());
        move || {
            for round in 1..=ROUNDS {
                said.store(round, Ordering::Release);
                waker.wake();
                // Sometimes a lone wake into a sleeping owner, sometimes a burst.
                while round % 3 == 0 && heard.load(Ordering::Acquire) < round {
                    std::hint::spin_loop();
                }
            }
        }
    });
    let far = backend.now().after(Duration::from_secs(60));
    let mut out = Vec::new();
    while heard.load(Ordering::Relaxed) < ROUNDS {
        backend.poll(&mut out, Wait::Until(far)).unwrap();
        assert!(backend.now() < far, "a wake was lost");
        heard.store(said.load(Ordering::Acquire), Ordering::Release);
    }
    talker.join().unwrap();
}

/// Wakes and answers do not hide each other.
pub fn wakes_and_answers_do_not_hide_each_other(world: &World) {
    if !world.real {
        return;
    }
    let mut backend = world.backend();
    let file = world.file(&mut *backend, "f");
    let stop = Arc::new(AtomicU64::new(0));
    let talker = std::thread::spawn({
        let (stop, waker) = (stop.clone(), backend.waker());
        move || {
            while stop.load(Ordering::Relaxed) == 0 {
                waker.wake();
                std::thread::yield_now();
            }
        }
    });
    let mut out = Vec::new();
    for token in 0..200 {
        let class = [Class::Foreground, Class::Background][token as usize % 2];
        let op = write(&file, 0, filled(16, token as u8), false);
        backend.submit(request(token, class, op)).unwrap();
        while backend.in_flight() > 0 {
            backend.poll(&mut out, Wait::Forever).unwrap();
        }
    }
    stop.store(1, Ordering::Relaxed);
    talker.join().unwrap();
    assert_eq!(out.len(), 200);
    assert!(out.iter().all(|done| done.result.is_ok()));
}

/// Signals that interrupt the owner's waits neither end them early nor lose an answer.
pub fn signals_do_not_disturb(world: &World) {
    extern "C" fn nothing(_signal: libc::c_int) {}
    if !world.real {
        return;
    }
    // SAFETY: installs a handler that does nothing, without SA_RESTART, for a signal that nothing
    // else here uses; the structure is plain numbers, so zeros are a valid beginning.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = nothing as *const () as usize;
        assert_eq!(
            libc::sigaction(libc::SIGUSR2, &raw const action, std::ptr::null_mut()),
            0
        );
    }
    let stop = Arc::new(AtomicU64::new(0));
    // SAFETY: asks for the calling thread's own name.
    let owner = unsafe { libc::pthread_self() } as usize;
    let disturber = std::thread::spawn({
        let stop = stop.clone();
        move || {
            while stop.load(Ordering::Acquire) == 0 {
                // SAFETY: the owner's thread lives until this one is joined.
                unsafe { libc::pthread_kill(owner as libc::pthread_t, libc::SIGUSR2) };
                std::thread::yield_now();
            }
        }
    });
    let mut backend = world.backend();
    let file = world.file(&mut *backend, "f");
    for token in 0..24 {
        let class = [Class::Foreground, Class::Background][token as usize % 2];
        let op = write(&file, token * 16, filled(16, token as u8), true);
        backend.submit(request(token, class, op)).unwrap();
    }
    let out = finish(&mut *backend);
    let until = backend.now().after(Duration::from_millis(20));
    backend.poll(&mut Vec::new(), Wait::Until(until)).unwrap();
    let in_time = backend.now() >= until;
    stop.store(1, Ordering::Release);
    disturber.join().unwrap();
    assert!(in_time, "a signal ended a wait");
    assert_eq!(out.len(), 24);
    assert!(out.iter().all(|done| done.result.is_ok()));
}
