//! Every crash within bounded workloads, every legal state of the disk after it, three lives deep:
//! the log shows what was acknowledged, nothing else, and goes on.
//!
//! `make test` visits more than a million distinct states. The ignored test goes on for half of
//! `MILLRACE_TORTURE_SECONDS`; `MILLRACE_SEED` sets what it draws.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use millrace_tests::torture::{Budget, CAMPAIGNS, crashes, faults, together};

/// Distinct states per campaign, in the order of [`CAMPAIGNS`]; more than a million together.
const STATES: [u64; CAMPAIGNS.len()] = [
    250_000, 300_000, 200_000, 100_000, 100_000, 100_000, 60_000, 60_000,
];

fn enumerate(campaigns: std::ops::Range<usize>) {
    for place in campaigns {
        let budget = Budget::States(STATES[place]);
        match crashes(CAMPAIGNS[place], 1, 0, budget) {
            Ok(summary) => println!("{}", summary.line()),
            Err(line) => panic!("{line}"),
        }
    }
}

#[test]
fn no_power_cut_or_kill_breaks_a_promise() {
    // Through the page cache with one group in flight, and past it with four.
    enumerate(0..2);
}

#[test]
fn no_torn_sector_or_late_answer_breaks_a_promise() {
    // Answers out of order, sectors unreadable or garbage, names through a journal, and the lock
    // file varied as well.
    enumerate(2..6);
}

#[test]
fn no_crash_around_a_segment_that_is_used_again_breaks_a_promise() {
    // What an earlier segment left behind the tail, and in a file whose header is not there yet, is
    // never shown and never taken for damage.
    enumerate(6..CAMPAIGNS.len());
}

#[test]
#[ignore = "runs for MILLRACE_TORTURE_SECONDS"]
fn torture() {
    // The same, for as long as there is time, with another seed each time.
    let number = |name: &str| {
        std::env::var(name)
            .ok()
            .and_then(|text| text.parse::<u64>().ok())
    };
    let seconds = number("MILLRACE_TORTURE_SECONDS").unwrap_or(60);
    let clock = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(1, |now| now.as_secs());
    let seed = number("MILLRACE_SEED").unwrap_or(clock);
    // Half of the time is for the crash states; two items for each campaign share it.
    let share = Duration::from_secs(seconds) / 2 / (2 * CAMPAIGNS.len() as u32);
    let mut summaries = Vec::new();
    for campaign in CAMPAIGNS {
        for run in [crashes, faults] {
            match run(campaign, seed, 0, Budget::Time(share, tell)) {
                Ok(summary) => summaries.push(summary),
                Err(line) => panic!("{line}"),
            }
            println!("{}", summaries[summaries.len() - 1].line());
        }
    }
    println!("{}", together(&summaries));
}

fn tell(line: &str) {
    println!("{line}");
}

#[test]
fn a_campaign_that_is_out_of_time_stops_where_it_is() {
    // In the middle of a workload, and says how much of what it knew it has tried. One fault of
    // this campaign alone has hundreds of thousands of states behind it.
    for run in [crashes, faults] {
        let share = Duration::from_millis(1);
        let summary = run(CAMPAIGNS[3], 1, 60, Budget::Time(share, |_| {})).unwrap();
        let report = summary.report();
        assert!(report.workloads == 0 || summary.is_cut(), "{report:?}");
        assert!(
            report.workloads == 0 || report.known == 0 || report.tried < report.known,
            "{report:?}"
        );
    }
}

#[test]
fn no_crash_after_a_fault_breaks_a_promise() {
    // The n-th operation of each kind fails, lies or stalls; then every crash: nothing that was
    // acknowledged is lost, and a log that failed acknowledges nothing more.
    for campaign in [CAMPAIGNS[0], CAMPAIGNS[1]] {
        match faults(campaign, 1, 0, Budget::Workloads(1)) {
            Ok(summary) => println!("{}", summary.line()),
            Err(line) => panic!("{line}"),
        }
    }
}

#[test]
fn the_same_seed_gives_the_same_history() {
    // Otherwise no failure could be seen again.
    for campaign in [CAMPAIGNS[1], CAMPAIGNS[2]] {
        let run = || crashes(campaign, 7, 140, Budget::States(1000)).map(|one| one.report());
        assert_eq!(run(), run());
    }
}
