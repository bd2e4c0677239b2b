//! Every crash within bounded workloads, every legal state of the disk after it, three lives deep:
//! the log shows what was acknowledged, nothing else, and goes on.
//!
//! `make test` visits more than a million distinct states. `MILLRACE_TORTURE_SECONDS` sets the
//! length of the ignored test, `MILLRACE_SEED` what it draws.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use millrace_tests::torture::{Budget, CAMPAIGNS, crashes, faults};

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
    let share = Duration::from_secs(seconds) / CAMPAIGNS.len() as u32;
    let share = share / 2;
    for campaign in CAMPAIGNS {
        for run in [crashes, faults] {
            match run(campaign, seed, 0, Budget::Time(share)) {
                Ok(summary) => println!("{}", summary.line()),
                Err(line) => panic!("{line}"),
            }
        }
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
