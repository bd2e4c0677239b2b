//! Crash states of the real log, enumerated until a count or a time budget is reached.
//!
//! A run is told by three numbers: the campaign (how the log is set up and what a power cut may
//! do), the seed, and the workload. Each failure is one line that says how to see it again.

use std::time::{Duration, Instant};

use millrace_core::{
    sim::{Explorer, Model, Names, Plan, Report, Settings, Torn, mix, sequence, sequences_count},
    wal::{
        open::Manner,
        trial::{Op, Trial},
    },
};

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
}

const BASE: Campaign = Campaign {
    name: "buffered",
    window: 1,
    direct: false,
    names: Names::Strict,
    torn: Torn::Never,
    reorder: false,
    vary_lock: false,
};

/// Every campaign. The window is part of every segment header, so that no two campaigns count the
/// same state.
pub const CAMPAIGNS: [Campaign; 6] = [
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
];

/// When to stop.
#[derive(Debug, Clone, Copy)]
pub enum Budget {
    /// After so many distinct states.
    States(u64),
    /// After so much time.
    Time(Duration),
}

/// What came of a campaign.
#[derive(Debug)]
pub struct Summary {
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
        } = self.report;
        let rate = states as f64 / self.elapsed.as_secs_f64().max(1e-9);
        format!(
            "T1/T2 {}: {distinct} distinct states ({states} checked, {rate:.0}/s), {moments} \
             crash points of {workloads} workloads, {lives} nested lives, {kills} kills, {twice} \
             recovered twice, seed {}, {:.1} s",
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
        twice_one_in: 16,
        ..Plan::default()
    }
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

/// Runs workloads from number `first` on, every `step`-th, until the budget is spent. The error
/// is one line that says what broke and how to see it again.
pub fn run(
    campaign: Campaign,
    seed: u64,
    first: u64,
    step: u64,
    budget: Budget,
) -> Result<Summary, String> {
    let begin = Instant::now();
    let manner = Manner {
        window: campaign.window,
        direct: campaign.direct,
    };
    let trial = Trial::new(manner);
    let mut explorer = Explorer::new(&trial, plan(campaign, seed));
    let mut number = first;
    loop {
        let is_spent = match budget {
            Budget::States(count) => explorer.report.distinct >= count,
            Budget::Time(time) => begin.elapsed() >= time,
        };
        if is_spent {
            break;
        }
        explorer.workload(&workload(seed, number)).map_err(|error| {
            let name = campaign.name;
            format!(
                "T1/T2 {name}: {error}; again: cargo run --profile fast -p millrace-tests --bin \
                 torture -- {name} seed={seed} workload={number}"
            )
        })?;
        number += step;
    }
    Ok(Summary {
        campaign,
        seed,
        report: explorer.report,
        elapsed: begin.elapsed(),
    })
}
