//! The timeout wheel against a `BTreeMap` from deadline to value, with as many timers alive.
//!
//! Three questions: what arming a timer and cancelling it at once costs (almost every timeout
//! lives like that), what cancelling in random order costs (cold memory), and what it costs to
//! let everything expire, each from a thousand to ten million live timers. Before anything is
//! measured, the bytes for each live timer are counted at the allocator.
//!
//! Deadlines are spread over a minute, in ticks of a millisecond.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    collections::BTreeMap,
    hint::black_box,
    sync::atomic::{AtomicIsize, Ordering},
    time::{Duration, Instant},
};

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput};
use millrace_core::{
    clock::Mono,
    wheel::{Key, TimeoutWheel},
};

static TAKEN: AtomicIsize = AtomicIsize::new(0);

/// Counts the bytes that are in use, and leaves the rest to the system.
struct Counting;

// SAFETY: every call is passed on to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        TAKEN.fetch_add(layout.size() as isize, Ordering::Relaxed);
        // SAFETY: the caller keeps the contract of `alloc`, which is the system's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        TAKEN.fetch_sub(layout.size() as isize, Ordering::Relaxed);
        // SAFETY: as above; the memory came from the system's allocator.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const LIVE: [u64; 5] = [1_000, 10_000, 100_000, 1_000_000, 10_000_000];
const SPREAD_NS: u64 = 60_000_000_000;
const TICK: Duration = Duration::from_millis(1);
/// Timers armed and cancelled between two looks at the clock.
const BURST: u64 = 64;

/// Numbers that repeat in every run.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn deadline(&mut self) -> Mono {
        Mono(1 + self.next() % SPREAD_NS)
    }
}

fn wheel() -> TimeoutWheel<u64> {
    TimeoutWheel::new(TICK, Mono(0)).expect("a tick of a millisecond")
}

fn arm(wheel: &mut TimeoutWheel<u64>, deadline: Mono, value: u64) -> Key {
    wheel.schedule(deadline, value).expect("it lies ahead")
}

fn filled(live: u64) -> (TimeoutWheel<u64>, Vec<Key>) {
    let mut numbers = Numbers(live);
    let mut wheel = wheel();
    let keys = (0..live)
        .map(|value| arm(&mut wheel, numbers.deadline(), value))
        .collect();
    (wheel, keys)
}

/// Deadline and number.
type Place = (u64, u64);

fn filled_map(live: u64) -> (BTreeMap<Place, u64>, Vec<Place>) {
    let mut numbers = Numbers(live);
    let keys: Vec<_> = (0..live)
        .map(|value| (numbers.deadline().0, value))
        .collect();
    (keys.iter().map(|key| (*key, key.1)).collect(), keys)
}

fn shuffle<T>(items: &mut [T]) {
    let mut numbers = Numbers(7);
    for index in (1..items.len()).rev() {
        items.swap(index, numbers.next() as usize % (index + 1));
    }
}

fn bytes_per_timer() {
    for live in LIVE {
        let before = TAKEN.load(Ordering::Relaxed);
        let mut numbers = Numbers(live);
        let mut wheel = wheel();
        for value in 0..live {
            arm(&mut wheel, numbers.deadline(), value);
        }
        let taken = (TAKEN.load(Ordering::Relaxed) - before) as f64;
        let each = taken / live as f64;
        println!("wheel/bytes for each of {live} live timers: {each:.1}");
        assert!(each <= 64.0 || live < 10_000, "too much memory: {each:.1}");
        drop(wheel);
    }
}

fn newest(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("wheel/arm and cancel the newest");
    group.throughput(Throughput::Elements(BURST));
    for live in LIVE {
        let (mut wheel, keys) = filled(live);
        let mut numbers = Numbers(3);
        group.bench_function(BenchmarkId::new("wheel", live), |bencher| {
            bencher.iter(|| {
                for value in 0..BURST {
                    let key = arm(&mut wheel, numbers.deadline(), value);
                    black_box(wheel.cancel(key));
                }
            });
        });
        drop((wheel, keys));
        let (mut map, keys) = filled_map(live);
        group.bench_function(BenchmarkId::new("BTreeMap", live), |bencher| {
            bencher.iter(|| {
                for value in 0..BURST {
                    let key = (numbers.deadline().0, live + value);
                    map.insert(key, value);
                    black_box(map.remove(&key));
                }
            });
        });
        drop((map, keys));
    }
    group.finish();
}

/// Cancels all of them in an order that has nothing to do with where they lie.
fn random(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("wheel/cancel in random order");
    group.sample_size(10);
    for live in LIVE {
        group.throughput(Throughput::Elements(live));
        group.bench_function(BenchmarkId::new("wheel", live), |bencher| {
            bencher.iter_custom(|rounds| {
                let mut spent = Duration::ZERO;
                for _ in 0..rounds {
                    let (mut wheel, mut keys) = filled(live);
                    shuffle(&mut keys);
                    let began = Instant::now();
                    for key in &keys {
                        black_box(wheel.cancel(*key));
                    }
                    spent += began.elapsed();
                }
                spent
            });
        });
        group.bench_function(BenchmarkId::new("BTreeMap", live), |bencher| {
            bencher.iter_custom(|rounds| {
                let mut spent = Duration::ZERO;
                for _ in 0..rounds {
                    let (mut map, mut keys) = filled_map(live);
                    shuffle(&mut keys);
                    let began = Instant::now();
                    for key in &keys {
                        black_box(map.remove(key));
                    }
                    spent += began.elapsed();
                }
                spent
            });
        });
    }
    group.finish();
}

fn expire(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("wheel/let all expire, tick by tick");
    group.sample_size(10);
    for live in [1_000, 100_000, 1_000_000] {
        group.throughput(Throughput::Elements(live));
        group.bench_function(BenchmarkId::new("wheel", live), |bencher| {
            bencher.iter_batched(
                || filled(live).0,
                |mut wheel| {
                    let mut due = Vec::new();
                    while let Some(next) = wheel.next_deadline() {
                        wheel.advance(next, &mut due);
                        due.clear();
                    }
                    wheel
                },
                BatchSize::PerIteration,
            );
        });
        group.bench_function(BenchmarkId::new("BTreeMap", live), |bencher| {
            bencher.iter_batched(
                || filled_map(live).0,
                |mut map| {
                    while let Some(first) = map.pop_first() {
                        black_box(first);
                    }
                    map
                },
                BatchSize::PerIteration,
            );
        });
    }
    group.finish();
}

fn main() {
    bytes_per_timer();
    let mut criterion = Criterion::default().configure_from_args();
    newest(&mut criterion);
    random(&mut criterion);
    expire(&mut criterion);
    criterion.final_summary();
}
