//! Time comes in as an argument, or from a [`Clock`] that a test can hold still.

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

/// A monotonic instant: nanoseconds since the clock's own beginning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mono(pub u64);

impl Mono {
    /// The instant `duration` later; saturates at the end of time.
    #[must_use]
    pub fn after(self, duration: Duration) -> Self {
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        Self(self.0.saturating_add(nanos))
    }

    /// How long ago `earlier` was; zero if it lies ahead.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

/// Where the engine gets its time.
pub trait Clock: Send + Sync + std::fmt::Debug {
    /// Monotonic time, for deadlines and ages.
    fn now(&self) -> Mono;
    /// Nanoseconds since the Unix epoch, UTC; may step back.
    fn wall_ns(&self) -> i64;
}

/// The machine's clocks.
#[derive(Debug, Clone)]
pub struct SystemClock {
    origin: Instant,
}

impl SystemClock {
    /// Starts counting now.
    pub fn new() -> Self {
        Self {
            origin: Instant::now(),
        }
    }
}

impl Default for SystemClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for SystemClock {
    fn now(&self) -> Mono {
        Mono(0).after(self.origin.elapsed())
    }

    fn wall_ns(&self) -> i64 {
        match SystemTime::now().duration_since(UNIX_EPOCH) {
            Ok(since) => i64::try_from(since.as_nanos()).unwrap_or(i64::MAX),
            Err(before) => -i64::try_from(before.duration().as_nanos()).unwrap_or(i64::MAX),
        }
    }
}

/// A clock that moves only when told to. Clones share one time.
#[derive(Debug, Clone, Default)]
pub struct ManualClock(Arc<Hands>);

#[derive(Debug, Default)]
struct Hands {
    mono_ns: AtomicU64,
    wall_ns: AtomicI64,
}

impl ManualClock {
    /// Moves both clocks forward.
    pub fn advance(&self, duration: Duration) {
        let nanos = duration.as_nanos() as u64;
        self.0.mono_ns.fetch_add(nanos, Ordering::Relaxed);
        self.0
            .wall_ns
            .fetch_add(nanos.cast_signed(), Ordering::Relaxed);
    }

    /// Sets the wall clock alone, backwards too.
    pub fn set_wall_ns(&self, wall_ns: i64) {
        self.0.wall_ns.store(wall_ns, Ordering::Relaxed);
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Mono {
        Mono(self.0.mono_ns.load(Ordering::Relaxed))
    }

    fn wall_ns(&self) -> i64 {
        self.0.wall_ns.load(Ordering::Relaxed)
    }
}
