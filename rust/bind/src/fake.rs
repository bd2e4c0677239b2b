//! A stand-in for the log while the engine is being built: same names, records in memory.
#![allow(missing_docs)]

use std::{
    sync::{
        Arc, Condvar, Mutex, OnceLock, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use millrace_core::{
    Error, ErrorKind, Result,
    ids::Lsn,
    port::Watch,
    sync::{Wake, lock},
};

pub type Payload = Box<[u8]>;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Level {
    Appended,
    Committed,
    Durable,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Watermarks {
    pub appended: Lsn,
    pub committed: Lsn,
    pub durable: Lsn,
}

pub enum Claimed {
    Now(Lsn),
    Later(PendingAppend),
}

#[derive(Debug, Clone)]
pub enum Pending {
    Waiting,
    Admitted(Lsn),
    Failed(Error),
}

pub struct PendingAppend;
impl PendingAppend {
    pub fn state(&self) -> Pending {
        Pending::Waiting
    }
    pub fn cancel(&self) -> bool {
        true
    }
}

struct Inner {
    records: Mutex<Vec<Payload>>,
    appended: AtomicU64,
    durable: AtomicU64,
    failure: OnceLock<Error>,
    watches: Mutex<Vec<Weak<Watch>>>,
    sleeping: AtomicBool,
    gate: Mutex<()>,
    bell: Condvar,
    moved: Condvar,
    commit: Duration,
}

#[derive(Clone)]
pub struct Log(Arc<Inner>);

impl Log {
    pub fn open() -> Self {
        let commit = std::env::var("FAKE_COMMIT_US")
            .ok()
            .and_then(|v| v.parse().ok())
            .unwrap_or(150);
        let inner = Arc::new(Inner {
            records: Mutex::default(),
            appended: AtomicU64::new(0),
            durable: AtomicU64::new(0),
            failure: OnceLock::new(),
            watches: Mutex::default(),
            sleeping: AtomicBool::new(false),
            gate: Mutex::default(),
            bell: Condvar::new(),
            moved: Condvar::new(),
            commit: Duration::from_micros(commit),
        });
        let mine = Arc::clone(&inner);
        thread::spawn(move || drive(&mine));
        Self(inner)
    }

    pub fn submit(&self, payload: Payload) -> Result<Lsn> {
        self.submit_many([payload])
    }

    pub fn submit_many(&self, payloads: impl IntoIterator<Item = Payload, IntoIter: ExactSizeIterator>) -> Result<Lsn> {
        let inner = &self.0;
        if let Some(error) = inner.failure.get() {
            return Err(error.clone());
        }
        let mut records = lock(&inner.records);
        let first = inner.appended.load(Ordering::Relaxed) + 1;
        let payloads = payloads.into_iter();
        let count = payloads.len() as u64;
        records.extend(payloads);
        inner.appended.store(first + count - 1, Ordering::SeqCst);
        drop(records);
        if inner.sleeping.load(Ordering::SeqCst) {
            let _gate = lock(&inner.gate);
            inner.bell.notify_one();
        }
        Ok(Lsn(first))
    }

    pub fn append(
        &self,
        payload: Payload,
        _wake: impl FnOnce() -> Arc<dyn Wake>,
    ) -> Result<Claimed> {
        self.submit(payload).map(Claimed::Now)
    }

    pub fn append_many(
        &self,
        payloads: Vec<Payload>,
        _wake: impl FnOnce() -> Arc<dyn Wake>,
    ) -> Result<Claimed> {
        self.submit_many(payloads).map(Claimed::Now)
    }

    pub fn marks(&self) -> Watermarks {
        let durable = Lsn(self.0.durable.load(Ordering::Acquire));
        Watermarks {
            appended: Lsn(self.0.appended.load(Ordering::Acquire)).max(durable),
            committed: durable,
            durable,
        }
    }

    pub fn failure(&self) -> Option<Error> {
        self.0.failure.get().cloned()
    }

    pub fn watch(&self, wake: Arc<dyn Wake>) -> Arc<Watch> {
        let watch = Arc::new(Watch::new(wake));
        lock(&self.0.watches).push(Arc::downgrade(&watch));
        watch
    }

    pub fn wait(&self, _level: Level, lsn: Lsn, timeout: Option<Duration>) -> Result<()> {
        let deadline = timeout.map(|t| Instant::now() + t);
        let mut gate = lock(&self.0.gate);
        while self.marks().durable < lsn {
            if let Some(error) = self.failure() {
                return Err(error);
            }
            let left = deadline.map_or(Duration::from_millis(50), |d| {
                d.saturating_duration_since(Instant::now())
            });
            if left.is_zero() {
                return Err(Error::new(ErrorKind::Timeout, "not durable yet"));
            }
            gate = self.0.moved.wait_timeout(gate, left).unwrap().0;
        }
        Ok(())
    }

    pub fn first_lsn(&self) -> Lsn {
        Lsn(1)
    }

    pub fn close(&self) -> Result<()> {
        let error = Error::new(ErrorKind::Closed, "the log is closed; open it again");
        let _ = self.0.failure.set(error);
        let _gate = lock(&self.0.gate);
        self.0.bell.notify_one();
        Ok(())
    }
}

fn drive(inner: &Inner) {
    loop {
        let target = inner.appended.load(Ordering::SeqCst);
        if target > inner.durable.load(Ordering::Relaxed) {
            let taken = std::mem::take(&mut *lock(&inner.records));
            thread::sleep(inner.commit);
            drop(taken);
            inner.durable.store(target, Ordering::Release);
            for watch in lock(&inner.watches).iter().filter_map(Weak::upgrade) {
                watch.notify();
            }
            inner.moved.notify_all();
            continue;
        }
        if inner.failure.get().is_some() {
            for watch in lock(&inner.watches).iter().filter_map(Weak::upgrade) {
                watch.notify();
            }
            return;
        }
        let gate = lock(&inner.gate);
        inner.sleeping.store(true, Ordering::SeqCst);
        if inner.appended.load(Ordering::SeqCst) == target && inner.failure.get().is_none() {
            drop(inner.bell.wait(gate));
        }
        inner.sleeping.store(false, Ordering::SeqCst);
    }
}
