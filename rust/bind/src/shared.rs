//! What every handle of one open log shares.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicU64, Ordering},
};

use millrace_core::{
    port::Port,
    sync::{Wake, lock},
};

use crate::{engine::Log, fork::Origin};

/// An open log, where it was opened, and who waits for room on its ring.
pub struct Shared {
    pub log: Log,
    pub origin: Origin,
    pub herald: Arc<Herald>,
    calls: AtomicU64,
}

impl Shared {
    pub fn new(log: Log, origin: Origin) -> Arc<Self> {
        Arc::new(Self {
            log,
            origin,
            herald: Arc::default(),
            calls: AtomicU64::new(0),
        })
    }

    /// A number for an append that stands in line; later calls get higher ones.
    pub fn next_call(&self) -> u64 {
        self.calls.fetch_add(1, Ordering::Relaxed)
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

impl Wake for Herald {
    fn wake(&self) {
        for port in lock(&self.ports).iter() {
            port.wake();
        }
    }
}
