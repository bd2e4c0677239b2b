//! The ring against `ArrayQueue`, moving the same owned payload of 128 bytes.
//!
//! Three questions: what one producer pays for append and drain, what a completion adds, and what
//! two producers get through while somebody drains. `ArrayQueue` does less (no positions, no
//! close, no byte limit, no wakes), so it is the floor and not the peer.
//!
//! Before anything is measured, the append path is run under a counting allocator: after the ring
//! is made, append and drain allocate nothing.

#![allow(
    clippy::result_large_err,
    reason = "a refused entry is given back whole"
)]

use std::{
    alloc::{GlobalAlloc, Layout, System},
    hint::black_box,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use criterion::{Criterion, Throughput};
use crossbeam::queue::ArrayQueue;
use millrace_core::ring::{Completion, Consumer, Limits, Producer, Weigh, ring};

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);
static COUNTING: AtomicBool = AtomicBool::new(false);

/// Counts allocations while it is asked to, and leaves them to the system.
struct Counting;

// SAFETY: every call is passed on to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if COUNTING.load(Ordering::Relaxed) {
            ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        }
        // SAFETY: the caller keeps the contract of `alloc`, which is the system's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: as above; the memory came from the system's allocator.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const SLOTS: usize = 1024;
const BURST: u64 = 64;

/// 128 bytes that are moved as they are.
#[derive(Clone, Copy)]
struct Payload([u64; 16]);

impl Weigh for Payload {
    fn weight(&self) -> usize {
        size_of::<Self>()
    }
}

/// The same bytes with a completion.
struct Answered(Payload, Completion<u64>);

impl Weigh for Answered {
    fn weight(&self) -> usize {
        self.0.weight()
    }
}

fn payload(number: u64) -> Payload {
    Payload([number; 16])
}

/// With `counted`, the bytes are counted one by one; otherwise the slots alone keep the limit.
fn make<T: Weigh + Send>(counted: bool) -> (Producer<T>, Consumer<T>) {
    let entry_bytes_max = if counted { 1 << 24 } else { 128 };
    let made = ring(Limits {
        capacity: SLOTS,
        capacity_bytes: 1 << 26,
        entry_bytes_max,
        bytes_outlive_slots: false,
    });
    made.expect("the limits are fine")
}

fn append<T: Weigh + Send>(producer: &Producer<T>, entry: T) {
    assert!(producer.try_append(entry).is_ok(), "there is room");
}

fn append_allocates_nothing() {
    let (producer, mut consumer) = make::<Payload>(true);
    let mut rounds = |count: u64| {
        for number in 0..count {
            append(&producer, payload(number));
            if number % BURST == 0 {
                consumer.drain(SLOTS, |entry| {
                    black_box(entry);
                });
            }
        }
    };
    rounds(10_000);
    COUNTING.store(true, Ordering::Relaxed);
    rounds(100_000);
    COUNTING.store(false, Ordering::Relaxed);
    let allocations = ALLOCATIONS.load(Ordering::Relaxed);
    assert_eq!(allocations, 0, "the append path allocates");
}

fn one_by_one(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("ring/append and drain one by one");
    group.throughput(Throughput::Elements(1));
    let queue = ArrayQueue::new(SLOTS);
    group.bench_function("ArrayQueue", |bencher| {
        bencher.iter(|| {
            assert!(queue.push(black_box(payload(1))).is_ok());
            queue.pop()
        });
    });
    for (name, counted) in [("ring", false), ("ring, bytes counted", true)] {
        let (producer, mut consumer) = make::<Payload>(counted);
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                append(&producer, black_box(payload(1)));
                let entry = consumer.pop();
                consumer.release();
                entry
            });
        });
    }
    group.finish();
}

fn in_bursts(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("ring/append and drain in bursts of 64");
    group.throughput(Throughput::Elements(BURST));
    let queue = ArrayQueue::new(SLOTS);
    group.bench_function("ArrayQueue", |bencher| {
        bencher.iter(|| {
            for number in 0..BURST {
                assert!(queue.push(black_box(payload(number))).is_ok());
            }
            while let Some(entry) = queue.pop() {
                black_box(entry);
            }
        });
    });
    for (name, counted) in [("ring", false), ("ring, bytes counted", true)] {
        let (producer, mut consumer) = make::<Payload>(counted);
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                for number in 0..BURST {
                    append(&producer, black_box(payload(number)));
                }
                consumer.drain(SLOTS, |entry| {
                    black_box(entry);
                });
            });
        });
    }
    let (producer, mut consumer) = make::<Answered>(false);
    group.bench_function("ring, a completion each", |bencher| {
        bencher.iter(|| {
            for number in 0..BURST {
                let (completion, ticket) = producer.completion();
                append(&producer, Answered(black_box(payload(number)), completion));
                black_box(ticket);
            }
            consumer.drain(SLOTS, |entry| {
                entry.1.done(black_box(entry.0).0[0]);
            });
        });
    });
    group.finish();
}

/// Runs two producers of `each` entries and drains here until all have come; returns the time.
fn two_producers(
    each: u64,
    push: impl Fn(Payload) -> Result<(), Payload> + Sync,
    mut drain: impl FnMut() -> u64,
) -> Duration {
    let start = Instant::now();
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                for number in 0..each {
                    let mut refused = push(payload(number));
                    while let Err(entry) = refused {
                        thread::yield_now();
                        refused = push(entry);
                    }
                }
            });
        }
        let mut left = 2 * each;
        while left > 0 {
            match drain() {
                0 => thread::yield_now(),
                drained => left -= drained,
            }
        }
    });
    start.elapsed()
}

fn concurrently(criterion: &mut Criterion) {
    const EACH: u64 = 100_000;
    let mut group = criterion.benchmark_group("ring/two producers, concurrent drain");
    group.throughput(Throughput::Elements(2 * EACH));
    group.sample_size(20);
    group.bench_function("ArrayQueue", |bencher| {
        let queue = ArrayQueue::new(SLOTS);
        let drain = || {
            (0..)
                .take_while(|_| queue.pop().map(black_box).is_some())
                .fold(0, |count: u64, _: u64| count + 1)
        };
        bencher.iter_custom(|rounds| {
            (0..rounds)
                .map(|_| two_producers(EACH, |entry| queue.push(entry), drain))
                .sum()
        });
    });
    for (name, counted) in [("ring", false), ("ring, bytes counted", true)] {
        let (producer, mut consumer) = make::<Payload>(counted);
        group.bench_function(name, |bencher| {
            bencher.iter_custom(|rounds| {
                (0..rounds)
                    .map(|_| {
                        let push = |entry| match producer.try_append(entry) {
                            Ok(_) => Ok(()),
                            Err(refused) => Err(refused.value),
                        };
                        two_producers(EACH, push, || {
                            consumer.drain(SLOTS, |entry| {
                                black_box(entry);
                            }) as u64
                        })
                    })
                    .sum()
            });
        });
    }
    group.finish();
}

fn main() {
    append_allocates_nothing();
    let mut criterion = Criterion::default().configure_from_args();
    one_by_one(&mut criterion);
    in_bursts(&mut criterion);
    concurrently(&mut criterion);
    criterion.final_summary();
}
