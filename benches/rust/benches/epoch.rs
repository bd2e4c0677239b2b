//! The collector: what deferring saves, what it costs, and what the others cost.
//!
//! Run all: `cargo bench --package millrace-benches --bench epoch`. Every comparison does the same
//! real work on both sides and checks by side effect that it was done.
//!
//! 1. Cancel storm: 100 000 operations, each holding a reservation, an entry in a timer wheel, a
//!    pooled buffer of 4 KiB and a place in an ordered index. Cancelled inline, and cancelled by
//!    unlinking and deferring. The time of each cancel is taken; the deferred work is then run to
//!    the end, and both sides must have given everything back.
//! 2. Batching efficiency, under that load.
//! 3. Overhead where nothing is deferred: the same operation with a pin and without a collector,
//!    in interleaved pairs, with the 95 % interval of the ratio.
//! 4. Sustained defer and run on one thread, memory bounded by the limits.
//! 5. Against `crossbeam-epoch` and `seize`: a pin, a defer with its run, and what is held while
//!    a reader stalls.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    hint::black_box,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use criterion::{Criterion, Throughput};
use crossbeam::epoch as peer;
use millrace_core::{
    Result,
    clock::{Mono, SystemClock},
    epoch::{Budget, Clean, Collector, Kind, Settings, Slip, Work},
    wheel::{Key, TimeoutWheel},
};

/// Thread-bound resources; the storm runs on one thread, as an event loop does.
struct Held {
    reserved_bytes: usize,
    wheel: TimeoutWheel<u64>,
    pool: Vec<Box<[u8; 4096]>>,
    index: BTreeMap<u64, usize>,
}

thread_local! {
    static HELD: RefCell<Option<Held>> = const { RefCell::new(None) };
}

struct Operation {
    number: u64,
    bytes: usize,
    timer: Key,
    buffer: Box<[u8; 4096]>,
}

impl Operation {
    fn start(number: u64) -> Self {
        with_held(|held| {
            let bytes = 64 + (number as usize % 512);
            held.reserved_bytes += bytes;
            held.index.insert(scattered(number), bytes);
            let deadline = Mono(1_000_000_000 + scattered(number) % 1_000_000_000_000);
            let timer = held.wheel.schedule(deadline, number);
            Self {
                number,
                bytes,
                timer: timer.unwrap_or_else(|_| unreachable!("deadlines lie ahead")),
                buffer: held.pool.pop().unwrap_or_else(|| Box::new([0; 4096])),
            }
        })
    }

    /// Gives everything back.
    fn clean_up(mut self) {
        with_held(|held| {
            held.reserved_bytes -= self.bytes;
            assert!(held.index.remove(&scattered(self.number)).is_some());
            assert!(held.wheel.cancel(self.timer).is_some());
            // A pooled buffer leaves nothing of its last user behind.
            self.buffer.fill(0);
            held.pool.push(self.buffer);
        });
    }
}

impl Work for Operation {
    fn kind(&self) -> Kind {
        Kind::Obligation
    }
}

impl Clean for Operation {
    fn clean(self, _: &mut Slip<'_>) -> Result<()> {
        self.clean_up();
        Ok(())
    }
}

fn with_held<R>(work: impl FnOnce(&mut Held) -> R) -> R {
    HELD.with_borrow_mut(|held| {
        let held = held.get_or_insert_with(|| Held {
            reserved_bytes: 0,
            wheel: TimeoutWheel::new(Duration::from_millis(1), Mono(0))
                .unwrap_or_else(|_| unreachable!("a millisecond is a tick")),
            pool: Vec::new(),
            index: BTreeMap::new(),
        });
        work(held)
    })
}

fn scattered(number: u64) -> u64 {
    number.wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

fn all_given_back(operations: usize) -> bool {
    with_held(|held| {
        held.reserved_bytes == 0 && held.index.is_empty() && held.pool.len() >= operations
    })
}

fn collector<W: Clean + 'static>(settings: Settings) -> Collector<W> {
    Collector::new(settings, Arc::new(SystemClock::new())).expect("the settings are fine")
}

const STORM: usize = 100_000;

/// Times of each cancel, sorted, and of everything.
fn storm(mut cancel: impl FnMut(Operation), finish: impl FnOnce()) -> (Vec<u64>, Duration) {
    let operations: Vec<_> = (0..STORM as u64).map(Operation::start).collect();
    let begun = Instant::now();
    let mut times: Vec<u64> = operations
        .into_iter()
        .map(|operation| {
            let begun = Instant::now();
            cancel(operation);
            begun.elapsed().as_nanos() as u64
        })
        .collect();
    finish();
    let took = begun.elapsed();
    assert!(all_given_back(STORM), "something was not given back");
    times.sort_unstable();
    (times, took)
}

fn quantile(sorted: &[u64], share: f64) -> u64 {
    sorted[((sorted.len() - 1) as f64 * share) as usize]
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values[values.len() / 2]
}

fn cancel_storm() {
    let settings = Settings {
        max_items: STORM + 1,
        max_bytes: 1 << 32,
        // The owner of the loop runs the work, between the cancels of its tasks.
        assist: false,
        ..Settings::default()
    };
    let (mut ratios, mut totals, mut efficiency) = (Vec::new(), Vec::new(), Vec::new());
    let (mut inline_p99, mut deferred_p99) = (Vec::new(), Vec::new());
    for round in 0..9 {
        let inline = storm(Operation::clean_up, || {});
        let collector = collector::<Operation>(settings);
        let deferred = storm(
            |operation| {
                let bytes = operation.bytes;
                assert!(collector.try_defer(operation, bytes).is_ok());
            },
            || {
                while collector.collect(Budget::ALL) > 0 {}
            },
        );
        let seen = collector.statistics(Mono(0));
        assert_eq!(seen.processed, STORM as u64);
        if round == 0 {
            continue; // warm caches and pools on both sides
        }
        let (plain, later) = (quantile(&inline.0, 0.99), quantile(&deferred.0, 0.99));
        inline_p99.push(plain as f64);
        deferred_p99.push(later as f64);
        ratios.push(later as f64 / plain as f64);
        totals.push(deferred.1.as_secs_f64() / inline.1.as_secs_f64());
        let most = settings.max_batch as f64;
        efficiency.push(seen.processed as f64 / (seen.batches as f64 * most));
    }
    let lower = 100.0 * (1.0 - median(ratios));
    println!(
        "epoch/cancel storm of {STORM}: p99 inline {:.0} ns, deferred {:.0} ns: {lower:.1} % lower \
         (aim 80 %); all of the work, deferred against inline: {:.2} x",
        median(inline_p99),
        median(deferred_p99),
        median(totals),
    );
    println!(
        "epoch/batching efficiency: {:.1} % (aim above 90 %)",
        100.0 * median(efficiency)
    );
}

/// An operation of about a microsecond that defers nothing.
fn look_up(index: &BTreeMap<u64, u64>, seed: u64) -> u64 {
    (0..8).fold(seed, |key, step| {
        let found = index.range(scattered(key ^ step)..).next();
        found.map_or(key, |(key, value)| key ^ value)
    })
}

fn overhead_when_idle() {
    const EACH: u64 = 40_000;
    const PAIRS: usize = 60;
    let index: BTreeMap<u64, u64> = (0..50_000).map(|key| (scattered(key), key)).collect();
    let collector = collector::<Operation>(Settings::default());
    let participant = collector.participant(None);
    let plain = || {
        let begun = Instant::now();
        for seed in 0..EACH {
            black_box(look_up(&index, black_box(seed)));
        }
        begun.elapsed().as_secs_f64()
    };
    // One pin covers a turn of the loop: 64 operations.
    let pinned = || {
        let begun = Instant::now();
        for turn in 0..EACH / 64 {
            let _pin = participant.pin();
            for seed in turn * 64..(turn + 1) * 64 {
                black_box(look_up(&index, black_box(seed)));
            }
        }
        begun.elapsed().as_secs_f64()
    };
    let mut ratios = Vec::new();
    for pair in 0..PAIRS {
        let (base, with) = if pair % 2 == 0 {
            let base = plain();
            (base, pinned())
        } else {
            let with = pinned();
            (plain(), with)
        };
        ratios.push(with / base * EACH as f64 / (EACH / 64 * 64) as f64);
    }
    let mean = ratios.iter().sum::<f64>() / PAIRS as f64;
    let variance = ratios.iter().map(|r| (r - mean).powi(2)).sum::<f64>() / (PAIRS - 1) as f64;
    let margin = 2.0 * (variance / PAIRS as f64).sqrt();
    let (low, high) = (100.0 * (mean - margin - 1.0), 100.0 * (mean + margin - 1.0));
    let verdict = if high < 1.0 { "below 1 %" } else { "not shown" };
    println!(
        "epoch/overhead where nothing is deferred: {low:+.2} % to {high:+.2} % ({verdict}, {PAIRS} \
         interleaved pairs)"
    );
}

/// The smallest work that leaves a trace.
struct Trace(Arc<AtomicU64>);

impl Work for Trace {
    fn kind(&self) -> Kind {
        Kind::Obligation
    }
}

impl Clean for Trace {
    fn clean(self, _: &mut Slip<'_>) -> Result<()> {
        self.0.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

fn sustained(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("epoch/sustained defer and run, one thread");
    group.throughput(Throughput::Elements(1));
    let collector = collector::<Trace>(Settings::default());
    let trace = Arc::new(AtomicU64::new(0));
    let before = trace.load(Ordering::Relaxed);
    let mut pushed = 0_u64;
    group.bench_function("millrace", |bencher| {
        bencher.iter(|| {
            pushed += 1;
            assert!(collector.try_defer(Trace(Arc::clone(&trace)), 64).is_ok());
        });
    });
    let seen = collector.statistics(Mono(0));
    collector.close();
    let ran = trace.load(Ordering::Relaxed) - before;
    assert_eq!(ran, pushed, "not all of the work was run");
    assert!(seen.peak.items <= Settings::default().max_items);
    println!(
        "epoch/sustained: peak {} items of {}",
        seen.peak.items,
        Settings::default().max_items
    );
    let trace = Arc::new(AtomicU64::new(0));
    let peer_collector = peer::Collector::new();
    let handle = peer_collector.register();
    group.bench_function("crossbeam-epoch", |bencher| {
        bencher.iter(|| {
            let guard = handle.pin();
            let trace = Arc::clone(&trace);
            guard.defer(move || {
                trace.fetch_add(1, Ordering::Relaxed);
            });
        });
    });
    let seize = seize::Collector::new();
    group.bench_function("seize", |bencher| {
        bencher.iter(|| {
            let boxed = Box::into_raw(Box::new(Arc::clone(&trace)));
            // SAFETY: made above, known to nobody else, retired once, freed by `count_and_free`.
            unsafe { seize.retire(boxed, count_and_free) };
        });
    });
    group.finish();
}

/// What seize calls for a retired counter.
unsafe fn count_and_free(boxed: *mut Arc<AtomicU64>, _: &seize::Collector) {
    // SAFETY: seize calls this once for each retired pointer, when nobody can be looking.
    let trace = unsafe { Box::from_raw(boxed) };
    trace.fetch_add(1, Ordering::Relaxed);
}

fn pins(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("epoch/pin and unpin");
    let collector = collector::<Trace>(Settings::default());
    let participant = collector.participant(None);
    group.bench_function("millrace, participant", |bencher| {
        bencher.iter(|| drop(black_box(participant.pin())));
    });
    let outer = participant.pin();
    group.bench_function("millrace, nested", |bencher| {
        bencher.iter(|| drop(black_box(participant.pin())));
    });
    drop(outer);
    group.bench_function("millrace, owned", |bencher| {
        bencher.iter(|| drop(black_box(collector.pin(None))));
    });
    let peer_collector = peer::Collector::new();
    let handle = peer_collector.register();
    group.bench_function("crossbeam-epoch", |bencher| {
        bencher.iter(|| drop(black_box(handle.pin())));
    });
    let seize = seize::Collector::new();
    group.bench_function("seize", |bencher| {
        use seize::Guard as _;
        bencher.iter(|| {
            let guard = seize.enter();
            black_box(guard.collector());
        });
    });
    group.finish();
}

/// How much is held when a reader stalls and others go on retiring.
fn held_under_a_stall() {
    const RETIRED: usize = 1_000_000;
    static FREED: AtomicUsize = AtomicUsize::new(0);
    struct Garbage;
    impl Drop for Garbage {
        fn drop(&mut self) {
            FREED.fetch_add(1, Ordering::Relaxed);
        }
    }
    impl Work for Garbage {
        fn kind(&self) -> Kind {
            Kind::Region
        }
    }
    impl Clean for Garbage {
        fn clean(self, _: &mut Slip<'_>) -> Result<()> {
            Ok(())
        }
    }
    let held = |retired: usize| retired - FREED.swap(0, Ordering::Relaxed);

    let collector = collector::<Garbage>(Settings::default());
    let stalled = collector.pin(Some("stalled"));
    let mut refused = 0;
    for _ in 0..RETIRED {
        refused += usize::from(collector.try_defer(Garbage, 64).is_err());
    }
    // What was refused was given back and dropped by its caller, which is not reclamation.
    let ours = held(RETIRED);
    drop(stalled);
    collector.close();
    FREED.store(0, Ordering::Relaxed);

    let peer_collector = peer::Collector::new();
    let (reader, writer) = (peer_collector.register(), peer_collector.register());
    let stalled = reader.pin();
    for _ in 0..RETIRED {
        let garbage = Garbage;
        writer.pin().defer(move || drop(garbage));
    }
    let crossbeam = held(RETIRED);
    drop(stalled);
    drop((reader, writer, peer_collector));
    FREED.store(0, Ordering::Relaxed);

    let seize = seize::Collector::new();
    let stalled = seize.enter();
    for _ in 0..RETIRED {
        let garbage = Box::into_raw(Box::new(Garbage));
        // SAFETY: made above and retired once.
        unsafe { seize.retire(garbage, seize::reclaim::boxed) };
    }
    let seize_held = held(RETIRED);
    drop(stalled);
    println!(
        "epoch/held under a stalled reader, {RETIRED} retired: millrace {ours} ({refused} given \
         back to the caller), crossbeam-epoch {crossbeam}, seize {seize_held}"
    );
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    cancel_storm();
    overhead_when_idle();
    held_under_a_stall();
    sustained(&mut criterion);
    pins(&mut criterion);
    criterion.final_summary();
}
