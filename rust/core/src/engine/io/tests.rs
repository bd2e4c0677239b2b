use std::sync::atomic::{AtomicU64, Ordering};

use super::*;
use crate::{
    io::contract::{Place, in_own_process},
    ioloop::{Ask, Reply, tests::real::run_every_rule},
    uring::tests::deny,
};

fn auto(clock: Arc<dyn Clock>, size: usize) -> Box<dyn Backend> {
    choose(&clock, BackendSetting::Auto, false, size, None)
        .unwrap()
        .0
}

/// Waits for one answer.
#[derive(Default)]
struct Answer {
    result: Mutex<Option<Result<Reply>>>,
    came: Condvar,
}

impl Sink for Answer {
    fn answer(&self, answered: Answered) {
        *lock(&self.result) = Some(answered.result);
        self.came.notify_all();
    }
}

fn run(engine: &IoEngine, ask: Ask) -> Result<Reply> {
    let answer = Arc::new(Answer::default());
    engine.handle().submit(ask, None, answer.clone(), 1)?;
    if let Some(turnable) = engine.turnable() {
        turnable.turn_while(|| lock(&answer.result).is_none());
    }
    let mut result = lock(&answer.result);
    loop {
        if let Some(result) = result.take() {
            return result;
        }
        result = answer.came.wait(result).unwrap();
    }
}

fn stat_root() -> Ask {
    Ask::StatPath { path: "/".into() }
}

#[test]
fn every_backend_and_driver_can_be_asked_for() {
    // What is forced is what is used, by name; both drivers answer, and closing leaves nothing.
    let place = Place::new("ladder");
    for (backend, name) in [
        (BackendSetting::Uring, "uring"),
        (BackendSetting::UringPlain, "uring-plain"),
        (BackendSetting::Threads, "threads"),
    ] {
        for driver in [
            DriverSetting::Auto,
            DriverSetting::Thread,
            DriverSetting::Loop,
        ] {
            let settings = IoSettings {
                backend,
                driver,
                dir: Some(place.path().to_owned()),
                ..IoSettings::default()
            };
            let engine = open(&settings).unwrap();
            let is_loop = driver == DriverSetting::Loop;
            // Nothing but the plain ring can be turned by any thread.
            let expected = if is_loop && name == "uring" {
                "uring-plain"
            } else {
                name
            };
            assert_eq!(engine.backend().name, expected);
            assert_eq!(
                (&engine.backend().reason[..], engine.backend().hint),
                ("", "")
            );
            assert_eq!(engine.turnable().is_some(), is_loop);
            assert!(matches!(run(&engine, stat_root()), Ok(Reply::Status(_))));
            assert_eq!(engine.close(None).unwrap(), Leftovers::default());
            let refused = run(&engine, stat_root()).unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::Closed);
        }
    }
    assert_eq!(
        std::fs::read_dir(place.path()).unwrap().count(),
        0,
        "the probe tidied up"
    );
}

#[test]
fn the_environment_decides_what_the_settings_leave_open() {
    // A setting is stronger; a name nobody knows is an error, not a guess.
    use BackendSetting::{Auto, Threads, Uring, UringPlain};
    for (setting, variable, expected) in [
        (Auto, None, Auto),
        (Auto, Some(""), Auto),
        (Auto, Some("auto"), Auto),
        (Auto, Some("uring"), Uring),
        (Auto, Some("uring-plain"), UringPlain),
        (Auto, Some("threads"), Threads),
        (Uring, Some("threads"), Uring),
        (Threads, Some("nonsense"), Threads),
    ] {
        let variable = variable.map(str::to_owned);
        assert_eq!(setting.or_variable(variable).unwrap(), expected);
    }
    let error = Auto.or_variable(Some("epoll".to_owned())).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert!(error.to_string().contains("epoll"), "{error}");
}

#[test]
fn a_probe_that_fails_where_the_data_lies_leads_to_threads() {
    // The ring itself works; the directory does not go with it. Forced, that is an error.
    let settings = |backend| IoSettings {
        backend,
        dir: Some("/nowhere/at/all".into()),
        ..IoSettings::default()
    };
    let engine = open(&settings(BackendSetting::Auto)).unwrap();
    assert_eq!(engine.backend().name, "threads");
    assert!(!engine.backend().reason.is_empty() && !engine.backend().hint.is_empty());
    let refused = open(&settings(BackendSetting::Uring)).err().unwrap();
    assert_eq!(refused.kind(), ErrorKind::Unsupported);
}

#[test]
fn with_the_ring_denied_everything_works_on_threads() {
    // The whole list of behaviours again, where seccomp says no.
    in_own_process("engine::io::tests::own_process_denied");
}

#[test]
#[ignore = "filters system calls; run by the test above"]
fn own_process_denied() {
    // See `with_the_ring_denied_everything_works_on_threads`. The filter is of this thread and
    // those it starts.
    let denied = std::thread::spawn(|| {
        deny(libc::SYS_io_uring_setup, libc::EPERM);
        let engine = open(&IoSettings::default()).unwrap();
        assert_eq!(engine.backend().name, "threads");
        assert!(engine.backend().reason.contains("io_uring_setup"));
        assert!(engine.backend().hint.contains("seccomp"));
        for backend in [BackendSetting::Uring, BackendSetting::UringPlain] {
            let settings = IoSettings {
                backend,
                ..IoSettings::default()
            };
            let refused = open(&settings).err().unwrap();
            assert_eq!(refused.kind(), ErrorKind::Unsupported);
            assert!(refused.to_string().contains("seccomp"), "{refused}");
        }
        run_every_rule(auto);
    });
    denied.join().unwrap();
}

#[test]
fn a_dropped_engine_closes_and_waits_a_while() {
    // What was submitted is answered, whoever still holds a handle learns that it is closed.
    let engine = open(&IoSettings::default()).unwrap();
    let handle = engine.handle().clone();
    let answer = Arc::new(Answer::default());
    handle.submit(stat_root(), None, answer.clone(), 1).unwrap();
    drop(engine);
    assert!(lock(&answer.result).take().unwrap().is_ok());
    let refused = handle.submit(stat_root(), None, answer, 2).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Closed);
}

#[test]
fn threads_that_race_the_close_are_answered_or_refused() {
    // Nobody who was accepted waits for ever, and nobody is answered who was refused.
    struct Count(AtomicU64);
    impl Sink for Count {
        fn answer(&self, _answered: Answered) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }
    for _ in 0..50 {
        let engine = open(&IoSettings::default()).unwrap();
        let count = Arc::new(Count(0.into()));
        let accepted: u64 = std::thread::scope(|scope| {
            let submitters: Vec<_> = (0..3)
                .map(|_| {
                    let (handle, count) = (engine.handle().clone(), Arc::clone(&count));
                    scope.spawn(move || {
                        let mut accepted = 0;
                        while handle.submit(stat_root(), None, count.clone(), 0).is_ok() {
                            accepted += 1;
                        }
                        accepted
                    })
                })
                .collect();
            engine.close(None).unwrap();
            submitters.into_iter().map(|one| one.join().unwrap()).sum()
        });
        // A submission that came after the end is answered by its own submitter.
        assert_eq!(count.0.load(Ordering::Relaxed), accepted);
    }
}

#[test]
fn a_forked_child_is_told_and_the_parent_goes_on() {
    // A process without other tests, because a child has only the thread that forked.
    in_own_process("engine::io::tests::own_process_fork");
}

#[test]
#[ignore = "forks; run by the test above"]
fn own_process_fork() {
    // See `a_forked_child_is_told_and_the_parent_goes_on`.
    for backend in [
        BackendSetting::Uring,
        BackendSetting::UringPlain,
        BackendSetting::Threads,
    ] {
        for driver in [DriverSetting::Thread, DriverSetting::Loop] {
            let settings = IoSettings {
                backend,
                driver,
                ..IoSettings::default()
            };
            let engine = open(&settings).unwrap();
            run(&engine, stat_root()).unwrap();
            // SAFETY: the child uses what is said to be usable there, and ends at once.
            let pid = unsafe { libc::fork() };
            if pid == 0 {
                let kind = run(&engine, stat_root()).unwrap_err().kind();
                let closed = engine.close(None).unwrap_err().kind();
                let turned = engine.turnable().map(Turnable::turn);
                engine.handle().forget(crate::ioloop::Id(1));
                drop(engine);
                let forked = (kind, closed) == (ErrorKind::Forked, ErrorKind::Forked);
                let still = turned.is_none_or(|next| next == crate::ioloop::driver::Next::Over);
                // SAFETY: ends the child without running what belongs to the parent.
                unsafe { libc::_exit(i32::from(!(forked && still))) }
            }
            let mut status = 0;
            // SAFETY: our own child, and a place for its status.
            unsafe { libc::waitpid(pid, &raw mut status, 0) };
            assert_eq!(libc::WEXITSTATUS(status), 0);
            assert!(libc::WIFEXITED(status), "{status}");
            for _ in 0..10 {
                run(&engine, stat_root()).unwrap();
            }
            assert_eq!(engine.close(None).unwrap(), Leftovers::default());
        }
    }
}
