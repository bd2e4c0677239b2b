//! The collector: what deferring saves, what it costs, and what the others cost.
//!
//! `benches/python/epoch.py` runs each cell in a process of its own and writes the page:
//! `make bench-epoch`. `cargo bench --bench epoch` runs all of them once and prints the figures;
//! `cargo bench --bench epoch -- CELL CONTENDER` runs one. A figure is a line of JSON. Every
//! comparison does the same real work on both sides and checks by side effect that it was done.
//!
//! | cell | what is done |
//! | --- | --- |
//! | storm | 100 000 operations, each holding a reservation, an entry in a timer wheel, a pooled buffer of 4 KiB and a place in an ordered index, are cancelled inline, or by unlinking and deferring. The time of each cancel is taken; the deferred work is then run to the end, and both sides must have given everything back. The first storm finds cold memory, on both sides; then come warm ones |
//! | load | two threads go on deferring while a third turns the tick; how full the batches are that come of it. `behind`: a piece takes longer to run than to defer, so a queue builds up. `ahead`: each thread works for a microsecond between two pieces, so nothing waits for long. `ahead, with pins`: under a pin, and every pin that goes is a chance to collect |
//! | idle | the same operation with and without a pin, nothing deferred, in interleaved pairs, with the 95 % interval of the ratio |
//! | count | one arm of `idle` alone, for callgrind |
//! | sustained | defer and run on one thread, on two, and by `crossbeam-epoch` and `seize`, until all has run |
//! | pin | a pin taken and let go |
//! | stall | what is held while a reader stalls and others retire a million pieces |

use std::{
    cell::RefCell,
    collections::BTreeMap,
    hint::black_box,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    thread::{self, Thread},
    time::{Duration, Instant},
};

use crossbeam::epoch as peer;
use millrace_core::{
    Result,
    clock::{Mono, SystemClock},
    epoch::{Budget, Clean, Collector, Kind, Settings, Slip, Work},
    sync::Wake,
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

/// Prints a figure of a cell.
fn tell(cell: &str, contender: &str, figures: &[(&str, f64)]) {
    let mut line = format!("{{\"workload\": \"{cell}\", \"contender\": \"{contender}\"");
    for (name, value) in figures {
        line += &format!(", \"{name}\": {value:e}");
    }
    println!("{line}}}");
}

const STORM: usize = 100_000;
const WARM_STORMS: usize = 5;

/// Times of each cancel in seconds, sorted, and of everything.
fn storm(mut cancel: impl FnMut(Operation), finish: impl FnOnce()) -> (Vec<f64>, f64) {
    let operations: Vec<_> = (0..STORM as u64).map(Operation::start).collect();
    let begun = Instant::now();
    let mut times: Vec<f64> = operations
        .into_iter()
        .map(|operation| {
            let begun = Instant::now();
            cancel(operation);
            begun.elapsed().as_secs_f64()
        })
        .collect();
    finish();
    let took = begun.elapsed().as_secs_f64();
    assert!(all_given_back(STORM), "something was not given back");
    times.sort_unstable_by(f64::total_cmp);
    (times, took)
}

fn at(sorted: &[f64], share: f64) -> f64 {
    sorted[((sorted.len() - 1) as f64 * share) as usize]
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    at(&values, 0.5)
}

fn cancel_storm(contender: &str) {
    let settings = Settings {
        max_items: STORM + 1,
        max_bytes: 1 << 32,
        // The owner of the loop runs the work, between the cancels of its tasks.
        assist: false,
        ..Settings::default()
    };
    let collector = collector::<Operation>(settings);
    let one = || match contender {
        "inline" => storm(Operation::clean_up, || {}),
        _ => storm(
            |operation| {
                let bytes = operation.bytes;
                assert!(collector.try_defer(operation, bytes).is_ok());
            },
            || while collector.collect(Budget::ALL) > 0 {},
        ),
    };
    let first = one();
    let warm: Vec<_> = (0..WARM_STORMS).map(|_| one()).collect();
    let over = |figure: fn(&(Vec<f64>, f64)) -> f64| median(warm.iter().map(figure).collect());
    let figures = [
        ("first_p99_s", at(&first.0, 0.99)),
        ("p50_s", over(|storm| at(&storm.0, 0.5))),
        ("p99_s", over(|storm| at(&storm.0, 0.99))),
        ("max_s", over(|storm| at(&storm.0, 1.0))),
        ("total_s", over(|storm| storm.1)),
    ];
    if contender != "inline" {
        let seen = collector.statistics(Mono(0));
        assert_eq!(seen.processed, (STORM * (1 + WARM_STORMS)) as u64);
    }
    tell("storm", contender, &figures);
}

/// A buffer that leaves nothing of its last user behind, and what else there is to do.
struct Wipe {
    buffer: Box<[u8; 4096]>,
    index: Option<Arc<BTreeMap<u64, u64>>>,
    trace: Arc<AtomicU64>,
}

impl Work for Wipe {
    fn kind(&self) -> Kind {
        Kind::Region
    }
}

impl Clean for Wipe {
    fn clean(mut self, _: &mut Slip<'_>) -> Result<()> {
        self.buffer.fill(0);
        black_box(&self.buffer);
        let seed = self.trace.fetch_add(1, Ordering::Relaxed);
        if let Some(index) = &self.index {
            for step in 0..4 {
                black_box(look_up(index, seed ^ step));
            }
        }
        Ok(())
    }
}

/// Wakes the thread that turns the tick.
struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(&self) {
        self.0.unpark();
    }
}

/// How full the batches are while work keeps coming in.
fn load(contender: &str) {
    const PRODUCERS: u64 = 2;
    const EACH: u64 = 200_000;
    let settings = Settings::default();
    let collector = collector::<Wipe>(settings);
    collector.set_wake(Arc::new(Unpark(thread::current())));
    let (index, trace) = (Arc::new(idle_index()), Arc::new(AtomicU64::new(0)));
    let is_behind = contender == "behind";
    let working = AtomicU64::new(PRODUCERS);
    let produce = || {
        let participant = collector.participant(None);
        for seed in 0..EACH {
            if !is_behind {
                let pin = contender.ends_with("pins").then(|| participant.pin());
                black_box(look_up(&index, black_box(seed)));
                drop(pin);
            }
            let work = Wipe {
                buffer: Box::new([1; 4096]),
                index: is_behind.then(|| Arc::clone(&index)),
                trace: Arc::clone(&trace),
            };
            let taken = collector.defer(work, 4096, Duration::from_secs(60));
            assert!(taken.is_ok());
        }
        working.fetch_sub(1, Ordering::Relaxed);
    };
    let mut seen = None;
    let took = timed(|| {
        thread::scope(|scope| {
            (0..PRODUCERS).for_each(|_| drop(scope.spawn(produce)));
            while working.load(Ordering::Relaxed) > 0 {
                let now = collector.now();
                let next = collector.tick(now);
                let rest = next.map_or(settings.advance_interval, |next| next.since(now));
                thread::park_timeout(rest);
            }
            // What is left has no load behind it.
            seen = Some(collector.statistics(Mono(0)));
        });
    });
    let seen = seen.expect("set above");
    assert_eq!(collector.close().load.items, 0);
    assert_eq!(trace.load(Ordering::Relaxed), PRODUCERS * EACH);
    let most = seen.batches as f64 * settings.max_batch as f64;
    let figures = [
        ("efficiency", (seen.processed as f64) / most),
        ("batches", seen.batches as f64),
        ("items_per_s", seen.processed as f64 / took),
    ];
    tell("load", contender, &figures);
}

/// An operation of about a microsecond that defers nothing.
fn look_up(index: &BTreeMap<u64, u64>, seed: u64) -> u64 {
    (0..8).fold(seed, |key, step| {
        let found = index.range(scattered(key ^ step)..).next();
        found.map_or(key, |(key, value)| key ^ value)
    })
}

/// Operations under one pin: each alone, or a turn of an event loop.
fn under_a_pin(contender: &str) -> u64 {
    if contender.contains("turn") { 64 } else { 1 }
}

fn idle_index() -> BTreeMap<u64, u64> {
    (0..50_000).map(|key| (scattered(key), key)).collect()
}

/// Both arms: what `enter` returns is held for `under` operations each.
#[inline(never)]
fn arm<P>(index: &BTreeMap<u64, u64>, operations: u64, under: u64, enter: impl Fn() -> P) {
    for turn in 0..operations / under {
        let held = enter();
        for seed in turn * under..(turn + 1) * under {
            black_box(look_up(index, black_box(seed)));
        }
        drop(held);
    }
}

fn timed(work: impl FnOnce()) -> f64 {
    let begun = Instant::now();
    work();
    begun.elapsed().as_secs_f64()
}

fn idle(contender: &str) {
    const EACH: u64 = 1024;
    const PAIRS: usize = 2401;
    let (index, under) = (idle_index(), under_a_pin(contender));
    let collector = collector::<Trace>(Settings::default());
    let participant = collector.participant(None);
    let base = || timed(|| arm(&index, EACH, under, || ()));
    let with = || timed(|| arm(&index, EACH, under, || participant.pin()));
    let mut ratios: Vec<f64> = (0..PAIRS)
        .map(|pair| {
            if pair % 2 == 0 {
                let base = base();
                with() / base
            } else {
                with() / base()
            }
        })
        .collect();
    ratios.sort_unstable_by(f64::total_cmp);
    // Order statistics give the interval of a median without a word about its distribution.
    let margin = 1.96 * 0.5 / (PAIRS as f64).sqrt();
    let figures = [
        ("overhead", at(&ratios, 0.5) - 1.0),
        ("overhead_low", at(&ratios, 0.5 - margin) - 1.0),
        ("overhead_high", at(&ratios, 0.5 + margin) - 1.0),
        ("pairs", PAIRS as f64),
    ];
    tell("idle", contender, &figures);
}

/// One arm alone, with the pin or without, and how many operations.
fn count(contender: &str, with: bool, operations: u64) {
    let (index, under) = (idle_index(), under_a_pin(contender));
    let collector = collector::<Trace>(Settings::default());
    let participant = collector.participant(None);
    if with {
        arm(&index, operations, under, || participant.pin());
    } else {
        arm(&index, operations, under, || ());
    }
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

const SUSTAINED: u64 = 2_000_000;

fn sustained(contender: &str) {
    let trace = Arc::new(AtomicU64::new(0));
    let has_run = || trace.load(Ordering::Relaxed);
    let mut figures = Vec::new();
    let took = match contender {
        "crossbeam-epoch" => {
            let collector = peer::Collector::new();
            let handle = collector.register();
            timed(|| {
                for _ in 0..SUSTAINED {
                    let trace = Arc::clone(&trace);
                    handle.pin().defer(move || {
                        trace.fetch_add(1, Ordering::Relaxed);
                    });
                }
                while has_run() < SUSTAINED {
                    handle.pin().flush();
                }
            })
        }
        "seize" => timed(|| {
            let collector = seize::Collector::new();
            for _ in 0..SUSTAINED {
                let boxed = Box::into_raw(Box::new(Arc::clone(&trace)));
                // SAFETY: made above, known to nobody else, retired once, freed by
                // `count_and_free`.
                unsafe { collector.retire(boxed, count_and_free) };
            }
        }),
        ours => {
            let collector = collector::<Trace>(Settings::default());
            let threads = if ours.ends_with("two threads") { 2 } else { 1 };
            let took = timed(|| sustain(&collector, threads, &trace));
            let peak = collector.statistics(Mono(0)).peak.items;
            assert!(peak <= Settings::default().max_items);
            figures.push(("peak_items", peak as f64));
            took
        }
    };
    assert_eq!(has_run(), SUSTAINED, "not all of the work was run");
    figures.push(("items_per_s", SUSTAINED as f64 / took));
    tell("sustained", contender, &figures);
}

/// Defers from so many threads; whoever comes near the limit runs a batch.
fn sustain(collector: &Collector<Trace>, threads: u64, trace: &Arc<AtomicU64>) {
    let push = || {
        for _ in 0..SUSTAINED / threads {
            let work = Trace(Arc::clone(trace));
            let taken = collector.defer(work, 64, Duration::from_secs(60));
            assert!(taken.is_ok());
        }
    };
    thread::scope(|scope| {
        for _ in 1..threads {
            scope.spawn(push);
        }
        push();
    });
    assert_eq!(collector.close().load.items, 0);
}

/// What seize calls for a retired counter.
unsafe fn count_and_free(boxed: *mut Arc<AtomicU64>, _: &seize::Collector) {
    // SAFETY: seize calls this once for each retired pointer, when nobody can be looking.
    let trace = unsafe { Box::from_raw(boxed) };
    trace.fetch_add(1, Ordering::Relaxed);
}

fn pin(contender: &str) {
    use seize::Guard as _;
    const PINS: u32 = 1_000_000;
    let each = |one: &dyn Fn()| timed(|| (0..PINS).for_each(|_| one())) / f64::from(PINS);
    let collector = collector::<Trace>(Settings::default());
    let participant = collector.participant(None);
    let each_s = match contender {
        "millrace, nested" => {
            let _outer = participant.pin();
            each(&|| drop(black_box(participant.pin())))
        }
        "millrace, owned" => each(&|| drop(black_box(collector.pin(None)))),
        "crossbeam-epoch" => {
            let handle = peer::Collector::new().register();
            each(&|| drop(black_box(handle.pin())))
        }
        "seize" => {
            let collector = seize::Collector::new();
            each(&|| {
                black_box(collector.enter().collector());
            })
        }
        _ => each(&|| drop(black_box(participant.pin()))),
    };
    tell("pin", contender, &[("each_s", each_s)]);
}

/// Tells when it goes.
struct Garbage;

static FREED: AtomicUsize = AtomicUsize::new(0);

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

/// How much is held when a reader stalls and others go on retiring.
fn stall(contender: &str) {
    const RETIRED: usize = 1_000_000;
    // What is given back to its caller is dropped there, which is not reclamation.
    let mut given_back = 0;
    let freed = || FREED.load(Ordering::Relaxed);
    let held = match contender {
        "crossbeam-epoch" => {
            let collector = peer::Collector::new();
            let (reader, writer) = (collector.register(), collector.register());
            let _stalled = reader.pin();
            for _ in 0..RETIRED {
                let garbage = Garbage;
                writer.pin().defer(move || drop(garbage));
            }
            RETIRED - freed()
        }
        "seize" => {
            let collector = seize::Collector::new();
            let _stalled = collector.enter();
            for _ in 0..RETIRED {
                let garbage = Box::into_raw(Box::new(Garbage));
                // SAFETY: made above and retired once.
                unsafe { collector.retire(garbage, seize::reclaim::boxed) };
            }
            RETIRED - freed()
        }
        _ => {
            let collector = collector::<Garbage>(Settings::default());
            let _stalled = collector.pin(Some("stalled"));
            for _ in 0..RETIRED {
                given_back += usize::from(collector.try_defer(Garbage, 64).is_err());
            }
            assert_eq!(freed(), given_back, "reclaimed under a pin");
            RETIRED - freed()
        }
    };
    let figures = [("held", held as f64), ("given_back", given_back as f64)];
    tell("stall", contender, &figures);
}

/// A cell: its name, its arms, and what runs one of them.
type Cell = (&'static str, &'static [&'static str], fn(&str));

const CELLS: [Cell; 6] = [
    ("storm", &["inline", "millrace"], cancel_storm),
    ("load", &["behind", "ahead", "ahead, with pins"], load),
    ("idle", &["pin", "pin for a turn"], idle),
    (
        "sustained",
        &[
            "millrace",
            "millrace, two threads",
            "crossbeam-epoch",
            "seize",
        ],
        sustained,
    ),
    (
        "pin",
        &[
            "millrace",
            "millrace, nested",
            "millrace, owned",
            "crossbeam-epoch",
            "seize",
        ],
        pin,
    ),
    ("stall", &["millrace", "crossbeam-epoch", "seize"], stall),
];

fn main() {
    let arguments: Vec<_> = std::env::args()
        .skip(1)
        .filter(|one| one != "--bench")
        .collect();
    let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["count", contender, with, operations] => {
            let operations = operations.parse().expect("a number of operations");
            count(contender, with == "with", operations);
        }
        [cell, contender] => {
            let found = CELLS.iter().find(|(name, _, _)| *name == cell);
            let (_, contenders, run) = found.expect("a cell");
            assert!(contenders.contains(&contender), "one of {contenders:?}");
            run(contender);
        }
        _ => {
            for (_, contenders, run) in CELLS {
                contenders.iter().for_each(|contender| {
                    FREED.store(0, Ordering::Relaxed);
                    run(contender);
                });
            }
        }
    }
}
