//! Crash states of the real log, enumerated until a count or a time budget is reached.
//!
//! A run is told by three numbers: the campaign (how the log is set up and what a power cut may
//! do), the seed, and the workload. Each failure is one line that says how to see it again.

use std::time::{Duration, Instant};

use millrace_core::{
    sim::{
        Explorer, Fault, Kind, Model, Names, Plan, Report, Settings, Torn, Trouble, Violation, mix,
        sequence, sequences_count,
    },
    wal::{
        open::Manner,
        trial::{Op, Trial},
    },
};

const EIO: i32 = 5;
const ENOSPC: i32 = 28;

/// Most operations of a workload.
const OPERATIONS: u32 = 6;

/// One way to run: the log's set-up and the rules of a power cut.
#[derive(Debug, Clone, Copy)]
pub struct Campaign {
    /// Its name on the command line.
    pub name: &'static str,
    /// Groups in flight.
    pub window: u32,
    /// Past the page cache.
    pub direct: bool,
    /// How names reach the device.
    pub names: Names,
    /// What happens to sectors that were being written.
    pub torn: Torn,
    /// Answers come in any order.
    pub reorder: bool,
    /// The lock file is varied too.
    pub vary_lock: bool,
    /// Truncated segments are written again, from the first life on.
    pub recycles: bool,
}

const BASE: Campaign = Campaign {
    name: "buffered",
    window: 1,
    direct: false,
    names: Names::Strict,
    torn: Torn::Never,
    reorder: false,
    vary_lock: false,
    recycles: false,
};

/// Every campaign. The window is part of every segment header, so that no two campaigns count the
/// same state.
pub const CAMPAIGNS: [Campaign; 8] = [
    BASE,
    Campaign {
        name: "direct",
        window: 4,
        direct: true,
        ..BASE
    },
    Campaign {
        name: "reordered",
        window: 3,
        direct: true,
        reorder: true,
        ..BASE
    },
    Campaign {
        name: "unreadable",
        window: 2,
        direct: true,
        torn: Torn::Unreadable,
        ..BASE
    },
    Campaign {
        name: "garbage",
        window: 5,
        direct: true,
        torn: Torn::Garbage,
        names: Names::Journal,
        ..BASE
    },
    Campaign {
        name: "lock",
        window: 6,
        direct: true,
        vary_lock: true,
        ..BASE
    },
    Campaign {
        name: "recycled",
        window: 7,
        direct: true,
        reorder: true,
        recycles: true,
        ..BASE
    },
    Campaign {
        name: "recycled-torn",
        window: 8,
        torn: Torn::Garbage,
        names: Names::Journal,
        recycles: true,
        ..BASE
    },
];

/// When to stop.
#[derive(Debug, Clone, Copy)]
pub enum Budget {
    /// After so many distinct states.
    States(u64),
    /// After so many workloads.
    Workloads(u64),
    /// After so much time.
    Time(Duration),
}

/// What came of a campaign.
#[derive(Debug)]
pub struct Summary {
    item: &'static str,
    campaign: Campaign,
    seed: u64,
    report: Report,
    elapsed: Duration,
}

impl Summary {
    /// The counts.
    pub fn report(&self) -> Report {
        self.report
    }

    /// One line.
    pub fn line(&self) -> String {
        let Report {
            workloads,
            moments,
            states,
            distinct,
            lives,
            kills,
            twice,
            faults,
            ..
        } = self.report;
        let rate = states as f64 / self.elapsed.as_secs_f64().max(1e-9);
        format!(
            "{} {}: {distinct} distinct states ({states} checked, {rate:.0}/s), {moments} \
             crash points of {workloads} workloads, {lives} nested lives, {kills} kills, {twice} \
             recovered twice, {faults} faults, seed {}, {:.1} s",
            self.item,
            self.campaign.name,
            self.seed,
            self.elapsed.as_secs_f64()
        )
    }
}

/// The plan of a campaign.
fn plan(campaign: Campaign, seed: u64) -> Plan {
    let ignored: &[&str] = if campaign.vary_lock { &[] } else { &["LOCK"] };
    Plan {
        model: Model {
            names: campaign.names,
            torn: campaign.torn,
            ignored,
            seed,
        },
        settings: Settings {
            seed,
            reorder: campaign.reorder,
            ..Settings::default()
        },
        depth: 3,
        nest_one_in: 24,
        kill_one_in: 16,
        kill_later_one_in: 16,
        twice_one_in: 16,
        ..Plan::default()
    }
}

/// The workload with this number. In a campaign that recycles: up to the truncation, up to the spare
/// made ready, and then as everywhere, after what it takes to write into it.
fn workload_of(campaign: Campaign, seed: u64, number: u64) -> Vec<Op> {
    let mut ops = Op::recycling();
    match number {
        _ if !campaign.recycles => return workload(seed, number),
        0 => ops.truncate(4),
        1 => {
            ops.truncate(5);
            ops.push(Op::Rest);
        }
        _ => ops.extend(workload(seed, number - 2)),
    }
    ops
}

/// The workload with this number: all short ones first, then ones drawn by the seed.
pub fn workload(seed: u64, number: u64) -> Vec<Op> {
    let alphabet = Op::alphabet();
    let short = sequences_count(alphabet.len(), 2);
    if number < short {
        return sequence(&alphabet, number);
    }
    let all = sequences_count(alphabet.len(), OPERATIONS);
    let drawn = short + mix(seed ^ mix(number)) % (all - short);
    sequence(&alphabet, drawn)
}

fn trial(campaign: Campaign) -> Trial {
    let trial = Trial::new(Manner {
        window: campaign.window,
        direct: campaign.direct,
    });
    if campaign.recycles {
        trial.with_small_segments()
    } else {
        trial
    }
}

impl Budget {
    fn is_spent(self, begin: Instant, report: &Report, workloads: u64) -> bool {
        match self {
            Self::Workloads(count) => workloads >= count,
            Self::States(count) => report.distinct >= count,
            Self::Time(time) => begin.elapsed() >= time,
        }
    }
}

fn failure(item: &str, campaign: Campaign, seed: u64, number: u64, error: &Violation) -> String {
    let name = campaign.name;
    format!(
        "{item} {name}: {error}; again: cargo run --profile fast -p millrace-tests --bin torture \
         -- {item} {name} seed={seed} workload={number}"
    )
}

/// T1 and T2: workloads from number `first` on, until the budget is spent. The error is one line
/// that says what broke and how to see it again.
pub fn crashes(
    campaign: Campaign,
    seed: u64,
    first: u64,
    budget: Budget,
) -> Result<Summary, String> {
    const ITEM: &str = "crashes";
    let begin = Instant::now();
    let trial = trial(campaign);
    let mut explorer = Explorer::new(&trial, plan(campaign, seed));
    let mut number = first;
    while !budget.is_spent(begin, &explorer.report, number - first) {
        explorer
            .workload(&workload_of(campaign, seed, number))
            .map_err(|error| failure(ITEM, campaign, seed, number, &error))?;
        number += 1;
    }
    let (report, elapsed) = (explorer.report, begin.elapsed());
    Ok(Summary {
        item: ITEM,
        campaign,
        seed,
        report,
        elapsed,
    })
}

/// The workload with this number when operations are to fail: first a few in which much can, then
/// as [`workload`].
pub fn fault_workload(seed: u64, number: u64) -> Vec<Op> {
    let append = || Op::Append(440);
    match number {
        0 => vec![append(), Op::Cursor, append(), Op::Cursor, append()],
        1 => vec![
            Op::Pair(439, 441),
            Op::Rotate,
            append(),
            Op::Reopen,
            append(),
        ],
        2 => vec![Op::Rotate, Op::Rest, Op::Truncate, append()],
        _ => workload(seed, number - 3),
    }
}

/// Every fault that the n-th operation of a kind can have.
fn troubles(kind: Kind) -> Vec<Trouble> {
    let mut troubles = vec![Trouble::Fails(EIO), Trouble::Fails(ENOSPC), Trouble::Stalls];
    if matches!(kind, Kind::Sync | Kind::Write | Kind::WriteSync) {
        troubles.push(Trouble::Drops(EIO));
    }
    troubles
}

/// T4 on top of T1: in workloads from number `first` on, the n-th operation of each kind fails,
/// lies or stalls, once and for ever, n = 1, 2, ... until it no longer happens; after each, every
/// crash. Until the budget is spent.
pub fn faults(
    campaign: Campaign,
    seed: u64,
    first: u64,
    budget: Budget,
) -> Result<Summary, String> {
    const ITEM: &str = "faults";
    let begin = Instant::now();
    let trial = trial(campaign);
    // Few moments lie between a fault and the end of its life, unless it is long: each is also a
    // kill.
    let plan = Plan {
        kill_one_in: if campaign.recycles { 0 } else { 1 },
        kill_later_one_in: 64,
        ..plan(campaign, seed)
    };
    let mut explorer = Explorer::new(&trial, plan);
    let mut number = first;
    while !budget.is_spent(begin, &explorer.report, number - first) {
        let ops = match campaign.recycles {
            true => workload_of(campaign, seed, number),
            false => fault_workload(seed, number),
        };
        for kind in Kind::ALL {
            for trouble in troubles(kind) {
                for forever in [false, true] {
                    let fault = |nth| Fault {
                        kind,
                        nth,
                        forever,
                        trouble,
                    };
                    let mut nth = 1;
                    while !budget.is_spent(begin, &explorer.report, number - first)
                        && explorer
                            .fault(&ops, fault(nth))
                            .map_err(|error| failure(ITEM, campaign, seed, number, &error))?
                    {
                        nth += 1;
                    }
                }
            }
        }
        number += 1;
    }
    let (report, elapsed) = (explorer.report, begin.elapsed());
    Ok(Summary {
        item: ITEM,
        campaign,
        seed,
        report,
        elapsed,
    })
}
