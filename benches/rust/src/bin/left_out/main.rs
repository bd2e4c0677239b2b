//! Ways of the ring that the engine does not take, each against the way it takes.
//!
//! ```text
//! cargo run --release --package millrace-benches --bin left_out -- [--quick] [--names] [--out FILE] [--work DIR]
//! ```
//!
//! Reads and writes are direct and of 4 KiB, so a device answers each of them. Ways take turns;
//! each figure is a median over the rounds, each ratio is taken within a round. What was read is
//! checked. `--names` leaves out everything but names, of which the engine leaves only some. The processor time is that of the whole process, with the kernel's threads for it.

mod cells;
mod names;
mod sends;
mod table;

use std::{fs, path::PathBuf, time::Duration};

use cells::{DurableWrites, Reads, Ring};
use names::{Names, What};
use sends::Sends;
use table::{Group, Sample};

/// How long and how large everything is.
struct Plan {
    rounds: usize,
    time: Duration,
    file_bytes: u64,
}

const FULL: Plan = Plan {
    rounds: 7,
    time: Duration::from_millis(1000),
    file_bytes: 2 << 30,
};

const QUICK: Plan = Plan {
    rounds: 3,
    time: Duration::from_millis(300),
    file_bytes: 256 << 20,
};

fn main() {
    let options: Vec<String> = std::env::args().collect();
    let value = |name: &str| {
        let at = options.iter().position(|option| option == name)?;
        options.get(at + 1).cloned()
    };
    let plan = if options.iter().any(|option| option == "--quick") {
        QUICK
    } else {
        FULL
    };
    let here = || concat!(env!("CARGO_MANIFEST_DIR"), "/../../target").to_owned();
    let work = PathBuf::from(value("--work").unwrap_or_else(here))
        .join(format!("left-out-{}", std::process::id()));
    fs::create_dir_all(&work).unwrap();
    let text = if options.iter().any(|option| option == "--names") {
        head(&plan) + &measure_names(&plan, &work)
    } else {
        measure(&plan, &work)
    };
    fs::remove_dir_all(&work).unwrap();
    println!("{text}");
    if let Some(out) = value("--out") {
        fs::write(out, text).unwrap();
    }
}

fn measure(plan: &Plan, work: &std::path::Path) -> String {
    let mut text = head(plan);
    for depth in [1, 16, 64] {
        let reads = Reads::new(work, plan.file_bytes, depth);
        let title = format!("Direct random reads of 4 KiB, {depth} in flight");
        text += &run(plan, &title, &Ring::WAYS, |way| {
            reads.sample(way, plan.time)
        });
    }
    let writes = DurableWrites::new(work);
    let title = "Durable direct writes of 4 KiB, one after the other";
    text += &run(plan, title, &Ring::WAYS, |way| {
        writes.sample(way, plan.time)
    });
    for length in [4 << 10, 64 << 10, 1 << 20] {
        let title = format!("Sends of {} KiB over loopback, 4 in flight", length >> 10);
        text += &run(plan, &title, &Sends::WAYS, |way| {
            Sends::sample(*way, length, plan.time)
        });
    }
    text + &measure_names(plan, work)
}

fn measure_names(plan: &Plan, work: &std::path::Path) -> String {
    let mut text = String::new();
    for depth in [1, 16, 64] {
        for what in What::ALL {
            let title = format!("Names: {}, {depth} under way", what.name());
            text += &run(plan, &title, &Names::WAYS, |way| {
                Names::new(work, depth).sample(*way, what, plan.time)
            });
        }
    }
    text
}

/// Runs the ways in turns; the first is the engine's.
fn run<W: Named>(
    plan: &Plan,
    title: &str,
    ways: &[W],
    mut sample: impl FnMut(&W) -> Option<Sample>,
) -> String {
    let mut group = Group::new(title, ways.iter().map(Named::name));
    for round in 0..plan.rounds {
        for turn in 0..ways.len() {
            let at = (round + turn) % ways.len();
            group.add(at, round, sample(&ways[at]));
        }
    }
    eprintln!("{group}");
    group.to_string()
}

/// What a row is called.
trait Named {
    fn name(&self) -> &'static str;
}

fn head(plan: &Plan) -> String {
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load = load.split(' ').next().unwrap_or_default();
    let processors = std::thread::available_parallelism().map_or(0, usize::from);
    format!(
        "# Measured and left out\n\n\
         Written by `make bench-left-out{}`. {} rounds of {} ms, ways taking turns; medians, with the \
         range of the ratios in brackets. The first row of each table is the engine's way; ratios \
         of rates above 1 would speak for the other one.\n\n\
         - Machine: {processors} processors, kernel {}\n\
         - Load when it began: {load}; much above 0.5, others were busy here, and only ratios say \
         something\n\n",
        if plan.rounds < FULL.rounds {
            " BENCH_ARGS=--quick"
        } else {
            ""
        },
        plan.rounds,
        plan.time.as_millis(),
        kernel.trim(),
    )
}
