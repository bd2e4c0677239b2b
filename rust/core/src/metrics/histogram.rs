//! Durations in buckets that widen with the duration: 8 for each doubling, so that a value read
//! back is at most an eighth too large, from nanoseconds to hours in 2.6 KiB.
//!
//! ```text
//! value    0 1 2 .. 7 | 8 9 .. 15 | 16 18 .. 30 | 32 36 .. 60 | ...
//! bucket   0 1 2 .. 7 | 8 9 .. 15 | 16 17 .. 23 | 24 25 .. 31 | ...
//! ```

use std::{sync::atomic::Ordering, time::Duration};

/// Buckets for each doubling: a power of two.
const FINE: u32 = 8;
const FINE_BITS: u32 = FINE.ilog2();

/// The last bucket takes everything from 2^43 ns (two and a half hours) on.
const BUCKETS: usize = (FINE * (43 - FINE_BITS + 1)) as usize + 1;

/// Counts durations. Any thread may record and take snapshots.
#[derive(Debug)]
pub struct Histogram {
    buckets: Box<[std::sync::atomic::AtomicU64]>,
    sum_ns: std::sync::atomic::AtomicU64,
    max_ns: std::sync::atomic::AtomicU64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self {
            buckets: (0..BUCKETS).map(|_| 0.into()).collect(),
            sum_ns: 0.into(),
            max_ns: 0.into(),
        }
    }
}

impl Histogram {
    /// Counts one.
    pub fn record(&self, duration: Duration) {
        let ns = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        self.buckets[bucket(ns)].fetch_add(1, Ordering::Relaxed);
        self.sum_ns.fetch_add(ns, Ordering::Relaxed);
        if ns > self.max_ns.load(Ordering::Relaxed) {
            self.max_ns.fetch_max(ns, Ordering::Relaxed);
        }
    }

    /// What was counted so far.
    pub fn snapshot(&self) -> Distribution {
        let buckets: Vec<_> = (self.buckets.iter().enumerate())
            .map(|(at, count)| (upper(at), count.load(Ordering::Relaxed)))
            .filter(|(_, count)| *count > 0)
            .collect();
        Distribution {
            count: buckets.iter().map(|(_, count)| count).sum(),
            sum_ns: self.sum_ns.load(Ordering::Relaxed),
            max_ns: self.max_ns.load(Ordering::Relaxed),
            buckets,
        }
    }
}

/// What a histogram had counted.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Distribution {
    /// How many.
    pub count: u64,
    /// Their sum.
    pub sum_ns: u64,
    /// The largest.
    pub max_ns: u64,
    /// Largest duration of a bucket and how many fell into it, ascending, without empty buckets.
    pub buckets: Vec<(u64, u64)>,
}

impl Distribution {
    /// The duration that `share` (0 to 1) of all do not exceed, at most an eighth too large; zero
    /// if nothing was counted.
    #[allow(
        clippy::cast_precision_loss,
        clippy::cast_sign_loss,
        reason = "a share of a count, neither negative nor so large that a rank more or less matters"
    )]
    pub fn quantile_ns(&self, share: f64) -> u64 {
        let wanted = (self.count as f64 * share.clamp(0.0, 1.0)).ceil().max(1.0) as u64;
        let mut seen = 0;
        for (upper, count) in &self.buckets {
            seen += count;
            if seen >= wanted {
                return (*upper).min(self.max_ns);
            }
        }
        0
    }
}

fn bucket(ns: u64) -> usize {
    if ns < u64::from(FINE) {
        return ns as usize;
    }
    let doubling = ns.ilog2() - FINE_BITS;
    let within = (ns >> doubling) as u32 - FINE;
    ((FINE * (doubling + 1) + within) as usize).min(BUCKETS - 1)
}

/// The largest value that falls into a bucket.
fn upper(bucket: usize) -> u64 {
    let bucket = bucket as u64;
    let fine = u64::from(FINE);
    if bucket < fine {
        return bucket;
    }
    if bucket as usize == BUCKETS - 1 {
        return u64::MAX;
    }
    let doubling = bucket / fine - 1;
    ((fine + bucket % fine + 1) << doubling) - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_falls_into_the_bucket_that_covers_it() {
        // Buckets follow each other without gap or overlap, and are an eighth wide at most.
        let mut before = 0;
        for at in 1..BUCKETS - 1 {
            let (lower, upper) = (upper(at - 1) + 1, upper(at));
            assert_eq!((bucket(lower), bucket(upper)), (at, at));
            assert!(lower > before && upper - lower <= lower / u64::from(FINE));
            before = upper;
        }
        assert_eq!(bucket(before + 1), BUCKETS - 1);
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn quantiles_are_at_most_an_eighth_too_large() {
        // A thousand evenly spread durations: each quantile is where it should be.
        let histogram = Histogram::default();
        assert_eq!(histogram.snapshot().quantile_ns(0.5), 0);
        for micros in 1..=1000 {
            histogram.record(Duration::from_micros(micros));
        }
        let seen = histogram.snapshot();
        assert_eq!((seen.count, seen.max_ns), (1000, 1_000_000));
        for (share, exact) in [
            (0.0, 1000),
            (0.5, 500_000),
            (0.99, 990_000),
            (1.0, 1_000_000),
        ] {
            let told = seen.quantile_ns(share);
            assert!(
                told >= exact && told <= exact + exact / 8,
                "{share}: {told}"
            );
        }
        assert_eq!(seen.sum_ns, 500_500_000);
    }
}
