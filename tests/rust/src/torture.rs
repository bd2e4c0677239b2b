//! Crash states of the real log, enumerated until a count or a time budget is reached.
//!
//! A run is told by three numbers: the campaign (how the log is set up and what a power cut may
//! do), the seed, and the workload. Each failure is one line that says how to see it again.

use std::time::{Duration, Instant};

use millrace_core::{
    sim::{
        Explorer, Fault, Kind, Model, Names, Plan, Report, Settings, Torn, Trouble, Verdict,
        Violation, Watch, mix, sequence, sequences_count,
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
/// All workloads of at most so many operations are run, before others are drawn.
const SHORT: u32 = 2;

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
    /// After the workload with which there are so many distinct states.
    States(u64),
    /// After so many workloads.
    Workloads(u64),
    /// After so much time, in the middle of a workload; how far it is, is told now and then.
    Time(Duration, fn(&str)),
}

/// How often a run for a time tells how far it is.
const TELL_EVERY: Duration = Duration::from_secs(20);

/// What came of a campaign.
#[derive(Debug)]
pub struct Summary {
    item: &'static str,
    campaign: Campaign,
    seed: u64,
    report: Report,
    elapsed: Duration,
    /// The workload in which it was stopped.
    stopped_in: Option<u64>,
}

impl Summary {
    /// The counts.
    pub fn report(&self) -> Report {
        self.report
    }

    /// How long it took.
    pub fn elapsed(&self) -> Duration {
        self.elapsed
    }

    /// Whether time was over in the middle of a workload.
    pub fn is_cut(&self) -> bool {
        self.stopped_in.is_some()
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
            tried,
            known,
            ..
        } = self.report;
        let rate = states as f64 / self.elapsed.as_secs_f64().max(1e-9);
        let cut = match self.stopped_in {
            Some(number) => format!(
                ", cut in workload {number} ({} are of at most {SHORT} operations) with {tried} of \
                 {known} known states tried",
                sequences_count(Op::alphabet().len(), SHORT)
            ),
            None => String::new(),
        };
        format!(
            "{} {}: {distinct} distinct states ({states} checked, {rate:.0}/s), {moments} \
             crash points of {workloads} workloads, {lives} nested lives, {kills} kills, {twice} \
             recovered twice, {faults} faults, seed {}, {:.1} s{cut}",
            self.item,
            self.campaign.name,
            self.seed,
            self.elapsed.as_secs_f64()
        )
    }
}

/// The sum of several campaigns, in one line.
pub fn together(summaries: &[Summary]) -> String {
    let mut sum = Report::default();
    summaries.iter().for_each(|one| sum.add(one.report));
    let elapsed: Duration = summaries.iter().map(|one| one.elapsed).sum();
    format!(
        "together: {} campaigns, {} distinct states ({} checked), {} of {} known states tried, {} \
         kills, {} faults, {} cut by the clock, {:.1} s",
        summaries.len(),
        sum.distinct,
        sum.states,
        sum.tried,
        sum.known,
        sum.kills,
        sum.faults,
        summaries.iter().filter(|one| one.is_cut()).count(),
        elapsed.as_secs_f64()
    )
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
    let short = sequences_count(alphabet.len(), SHORT);
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
            Self::Time(time, _) => begin.elapsed() >= time,
        }
    }
}

/// Asked by the explorer before each state: keeps it to its time, and tells how far it is.
fn watch(item: &'static str, campaign: Campaign, begin: Instant, budget: Budget) -> Watch<'static> {
    let Budget::Time(share, tell) = budget else {
        return Box::new(|_| true);
    };
    let mut told = begin;
    Box::new(move |report| {
        let elapsed = begin.elapsed();
        if told.elapsed() >= TELL_EVERY {
            told = Instant::now();
            tell(&format!(
                "{item} {}: {} s of {}, {} workloads, {} distinct states, {} of {} known states",
                campaign.name,
                elapsed.as_secs(),
                share.as_secs(),
                report.workloads,
                report.distinct,
                report.tried,
                report.known,
            ));
        }
        elapsed < share
    })
}

fn failure(item: &str, campaign: Campaign, seed: u64, number: u64, error: &Violation) -> String {
    let name = campaign.name;
    format!(
        "{item} {name}: {error}; again: cargo run --profile fast -p millrace-tests --bin torture \
         -- {item} {name} seed={seed} workload={number}"
    )
}

/// A campaign that is being run.
struct Run<'a> {
    item: &'static str,
    campaign: Campaign,
    seed: u64,
    begin: Instant,
    budget: Budget,
    explorer: Explorer<'a, Trial>,
    /// Workloads gone through.
    done: u64,
}

impl<'a> Run<'a> {
    fn new(
        item: &'static str,
        trial: &'a Trial,
        plan: Plan,
        (campaign, seed, budget): (Campaign, u64, Budget),
    ) -> Self {
        let begin = Instant::now();
        let watch = watch(item, campaign, begin, budget);
        Self {
            item,
            campaign,
            seed,
            begin,
            budget,
            explorer: Explorer::new(trial, plan).watched(watch),
            done: 0,
        }
    }

    fn is_spent(&self) -> bool {
        let report = &self.explorer.report;
        self.explorer.is_stopped() || self.budget.is_spent(self.begin, report, self.done)
    }

    /// Goes through workloads from number `first` on, each as `one` says.
    fn go(
        mut self,
        first: u64,
        mut one: impl FnMut(&mut Self, u64) -> Verdict,
    ) -> Result<Summary, String> {
        while !self.is_spent() {
            let number = first + self.done;
            one(&mut self, number)
                .map_err(|error| failure(self.item, self.campaign, self.seed, number, &error))?;
            self.done += u64::from(!self.explorer.is_stopped());
        }
        Ok(Summary {
            item: self.item,
            campaign: self.campaign,
            seed: self.seed,
            report: self.explorer.report,
            elapsed: self.begin.elapsed(),
            stopped_in: self.explorer.is_stopped().then_some(first + self.done),
        })
    }
}

/// T1 and T2: workloads from number `first` on, until the budget is spent. The error is one line
/// that says what broke and how to see it again.
pub fn crashes(
    campaign: Campaign,
    seed: u64,
    first: u64,
    budget: Budget,
) -> Result<Summary, String> {
    let trial = trial(campaign);
    let plan = plan(campaign, seed);
    Run::new("crashes", &trial, plan, (campaign, seed, budget)).go(first, |run, number| {
        run.explorer.workload(&workload_of(campaign, seed, number))
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
    let trial = trial(campaign);
    // Few moments lie between a fault and the end of its life, unless it is long: each is also a
    // kill.
    let plan = Plan {
        kill_one_in: if campaign.recycles { 0 } else { 1 },
        kill_later_one_in: 64,
        ..plan(campaign, seed)
    };
    Run::new("faults", &trial, plan, (campaign, seed, budget)).go(first, |run, number| {
        let ops = match campaign.recycles {
            true => workload_of(campaign, seed, number),
            false => fault_workload(seed, number),
        };
        every_fault(run, &ops)
    })
}

/// The n-th operation of each kind fails in each way, until it no longer happens.
fn every_fault(run: &mut Run<'_>, ops: &[Op]) -> Verdict {
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
                while !run.is_spent() && run.explorer.fault(ops, fault(nth))? {
                    nth += 1;
                }
            }
        }
    }
    Ok(())
}
