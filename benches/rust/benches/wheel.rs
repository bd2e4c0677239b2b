//! The timeout wheel against a `BTreeMap` from deadline to value, with as many timers alive.
//!
//! Three questions: what arming a timer and cancelling it at once costs (almost every timeout
//! lives like that), what cancelling in random order costs (cold memory), and what it costs to
//! let everything expire, each from a thousand to ten million live timers. Before anything is
//! measured, the bytes for each live timer are counted at the allocator.
//!
//! Random order has a control, `touch`: one number read and written for each timer, in memory as
//! large and in an order as random. No structure whose timers lie in memory can cost less, so its
//! growth from a thousand to ten million is the machine's, and what the wheel grows beyond it is
//! the wheel's.
//!
//! Deadlines are spread over a minute, in ticks of a millisecond. Rounds of the contenders take
//! turns; figures are medians of the rounds. Written as a table, for `benches/python/timers.py`.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    collections::BTreeMap,
    hint::black_box,
    sync::atomic::{AtomicIsize, Ordering},
    time::{Duration, Instant},
};

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
/// Filling a map takes longer than everything else here.
const MAP_MAX: u64 = 1_000_000;
const ROUNDS: usize = 3;
/// Operations of a round at least.
const OPERATIONS: u64 = 500_000;
const SPREAD_NS: u64 = 60_000_000_000;
const TICK: Duration = Duration::from_millis(1);

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
    let mut row = Vec::new();
    for live in LIVE {
        let before = TAKEN.load(Ordering::Relaxed);
        let mut numbers = Numbers(live);
        let mut wheel = wheel();
        for value in 0..live {
            arm(&mut wheel, numbers.deadline(), value);
        }
        let taken = (TAKEN.load(Ordering::Relaxed) - before) as f64;
        let each = taken / live as f64;
        assert!(each <= 64.0 || live < 10_000, "too much memory: {each:.1}");
        row.push(format!("{each:.1}"));
    }
    row.push("-".to_owned());
    print("wheel: bytes for each timer", &row);
}

/// A contender: runs at least so many operations on as many live timers, and says how many it ran
/// and how long they took.
type Run = fn(live: u64, operations: u64) -> (u64, Duration);

fn newest_of_wheel(live: u64, operations: u64) -> (u64, Duration) {
    let (mut wheel, _keys) = filled(live);
    let mut numbers = Numbers(3);
    let began = Instant::now();
    for value in 0..operations {
        let key = arm(&mut wheel, numbers.deadline(), value);
        black_box(wheel.cancel(key));
    }
    (operations, began.elapsed())
}

fn newest_of_map(live: u64, operations: u64) -> (u64, Duration) {
    let (mut map, _keys) = filled_map(live);
    let mut numbers = Numbers(3);
    let began = Instant::now();
    for value in 0..operations {
        let key = (numbers.deadline().0, live + value);
        map.insert(key, value);
        black_box(map.remove(&key));
    }
    (operations, began.elapsed())
}

/// Runs `once`, which takes every timer, until there were enough operations.
fn all_of(live: u64, operations: u64, once: impl Fn() -> Duration) -> (u64, Duration) {
    let times = operations.div_ceil(live);
    (times * live, (0..times).map(|_| once()).sum())
}

fn random_of_wheel(live: u64, operations: u64) -> (u64, Duration) {
    all_of(live, operations, || {
        let (mut wheel, mut keys) = filled(live);
        shuffle(&mut keys);
        let began = Instant::now();
        for key in &keys {
            black_box(wheel.cancel(*key));
        }
        began.elapsed()
    })
}

fn random_of_map(live: u64, operations: u64) -> (u64, Duration) {
    all_of(live, operations, || {
        let (mut map, mut keys) = filled_map(live);
        shuffle(&mut keys);
        let began = Instant::now();
        for key in &keys {
            black_box(map.remove(key));
        }
        began.elapsed()
    })
}

/// As many bytes as the wheel's, a key as long, and nothing to do but to find one number.
fn random_touch(live: u64, operations: u64) -> (u64, Duration) {
    all_of(live, operations, || {
        let mut entries = vec![[1_u64; 5]; live as usize];
        let mut keys: Vec<[u32; 3]> = (0..live as u32).map(|index| [index, 0, 0]).collect();
        shuffle(&mut keys);
        let began = Instant::now();
        for key in &keys {
            let entry = &mut entries[key[0] as usize];
            black_box(std::mem::take(&mut entry[0]));
        }
        began.elapsed()
    })
}

fn expiry_of_wheel(live: u64, operations: u64) -> (u64, Duration) {
    all_of(live, operations, || {
        let (mut wheel, _keys) = filled(live);
        let mut due = Vec::new();
        let began = Instant::now();
        while let Some(next) = wheel.next_deadline() {
            wheel.advance(next, &mut due);
            due.clear();
        }
        began.elapsed()
    })
}

fn expiry_of_map(live: u64, operations: u64) -> (u64, Duration) {
    all_of(live, operations, || {
        let (mut map, _keys) = filled_map(live);
        let began = Instant::now();
        while let Some(first) = map.pop_first() {
            black_box(first);
        }
        began.elapsed()
    })
}

/// Nanoseconds for each operation, one row for each contender: medians of rounds that take turns.
fn compare(what: &str, contenders: &[(&str, u64, Run)]) {
    let mut rows = vec![Vec::new(); contenders.len()];
    for live in LIVE {
        let mut seen = vec![Vec::new(); contenders.len()];
        for _ in 0..ROUNDS {
            for (at, (_, most, run)) in contenders.iter().enumerate() {
                if live <= *most {
                    let (count, spent) = run(live, OPERATIONS);
                    seen[at].push(spent.as_nanos() as f64 / count as f64);
                }
            }
        }
        for (row, mut seen) in rows.iter_mut().zip(seen) {
            seen.sort_by(f64::total_cmp);
            row.push(seen.get(seen.len() / 2).copied());
        }
    }
    for ((name, ..), row) in contenders.iter().zip(&rows) {
        let mut cells: Vec<String> = row.iter().map(|one| shown(*one, " ns")).collect();
        let growth = row[0].zip(row[LIVE.len() - 1]);
        cells.push(shown(growth.map(|(first, last)| last / first), " x"));
        print(&format!("{name}: {what}"), &cells);
    }
}

fn shown(value: Option<f64>, unit: &str) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{value:.1}{unit}"))
}

fn print(name: &str, cells: &[String]) {
    println!("| {name} | {} |", cells.join(" | "));
}

fn main() {
    let mut heads: Vec<String> = LIVE.iter().map(|live| format!("{live} live")).collect();
    heads.push("growth".to_owned());
    print("each operation", &heads);
    print("---", &vec!["---:".to_owned(); heads.len()]);
    bytes_per_timer();
    compare(
        "arm and cancel the newest",
        &[
            ("wheel", u64::MAX, newest_of_wheel),
            ("BTreeMap", MAP_MAX, newest_of_map),
        ],
    );
    compare(
        "cancel in random order",
        &[
            ("wheel", u64::MAX, random_of_wheel),
            ("BTreeMap", MAP_MAX, random_of_map),
            ("touch", u64::MAX, random_touch),
        ],
    );
    compare(
        "let all expire, tick by tick",
        &[
            ("wheel", u64::MAX, expiry_of_wheel),
            ("BTreeMap", MAP_MAX, expiry_of_map),
        ],
    );
}
