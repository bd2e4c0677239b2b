//! What every handle of one open log shares.

use std::{
    ops::Deref,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use millrace_core::{
    Result,
    fork::Origin,
    port::Port,
    sync::{Wake, lock},
    wal::{Log, log::Appender},
};

use crate::exit::{self, Closes};

/// An open log, where it was opened, and who waits for room on its ring.
pub struct Shared {
    pub appender: Appender,
    pub herald: Arc<Herald>,
    pub origin: Origin,
    log: Arc<Log>,
    calls: AtomicU64,
}

impl Shared {
    pub fn new(log: Log) -> Result<Arc<Self>> {
        Ok(Arc::new(Self {
            appender: log.appender().clone(),
            herald: Arc::default(),
            origin: Origin::here()?,
            log: Arc::new(log),
            calls: AtomicU64::new(0),
        }))
    }

    /// A number for an append that stands in line; later calls get higher ones.
    pub fn next_call(&self) -> u64 {
        self.calls.fetch_add(1, Ordering::Relaxed)
    }
}

impl Deref for Shared {
    type Target = Log;

    fn deref(&self) -> &Log {
        &self.log
    }
}

impl Drop for Shared {
    /// The last handle is gone: the log is asked to close, and nobody waits for it. In a forked
    /// child nothing is touched: threads, locks and rings belong to the parent.
    fn drop(&mut self) {
        if self.origin.is_forked_child() {
            std::mem::forget((self.appender.clone(), Arc::clone(&self.log)));
            return;
        }
        self.log.request_close();
        if let Some(thread) = self.log.take_thread() {
            exit::wait_for(thread, self.origin);
        }
    }
}

impl Closes for Shared {
    fn origin(&self) -> Origin {
        self.origin
    }

    fn is_over(&self) -> bool {
        self.log.is_over()
    }

    fn end_within(&self, _budget: Duration) {
        // One that failed meanwhile: nobody is left to tell. Who waits for this thread has a bound.
        let _ = self.log.close();
    }
}

/// Tells every loop with an append in line that the line has moved.
#[derive(Default)]
pub struct Herald {
    ports: Mutex<Vec<Arc<Port<u64>>>>,
}

impl Herald {
    /// Adds a loop; it stays, since a loop that once found the ring full may do so again.
    pub fn tell(&self, port: &Arc<Port<u64>>) {
        let mut ports = lock(&self.ports);
        if !ports.iter().any(|known| Arc::ptr_eq(known, port)) {
            // A port that only we hold belongs to a loop that is gone.
            ports.retain(|known| Arc::strong_count(known) > 1);
            ports.push(Arc::clone(port));
        }
    }
}

impl Herald {
    /// The loop is gone.
    pub fn forget(&self, port: &Arc<Port<u64>>) {
        let forgotten: Vec<_> = {
            let mut ports = lock(&self.ports);
            ports
                .extract_if(.., |known| Arc::ptr_eq(known, port))
                .collect()
        };
        drop(forgotten);
    }
}

impl Wake for Herald {
    fn wake(&self) {
        for port in lock(&self.ports).iter() {
            port.wake();
        }
    }
}
