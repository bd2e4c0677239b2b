//! Enumerates crash states of the log for as long as it is told.
//!
//! `torture [ITEM] [CAMPAIGN] [seed=N] [workload=N] [seconds=N]`: the item is `crashes` (the
//! default) or `faults`; all campaigns in turn unless one is named; one workload only if it is
//! numbered. The campaigns share the seconds evenly, and none overruns its share. Each prints one
//! line, and how far it is meanwhile; at the end stands their sum. The first failure is printed
//! with the command that repeats it, and ends the run.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "this is a program"
)]

use std::{process::ExitCode, time::Duration};

use millrace_tests::torture::{Budget, CAMPAIGNS, Campaign, crashes, faults, together};

struct Wish {
    campaigns: Vec<Campaign>,
    seed: u64,
    workload: Option<u64>,
    seconds: u64,
    faults: bool,
}

fn wish() -> Result<Wish, String> {
    let mut wish = Wish {
        campaigns: CAMPAIGNS.to_vec(),
        seed: 1,
        workload: None,
        seconds: 60,
        faults: false,
    };
    for word in std::env::args().skip(1) {
        let number = |text: &str| {
            text.parse::<u64>()
                .map_err(|error| format!("{word}: {error}"))
        };
        match word.split_once('=') {
            Some(("seed", text)) => wish.seed = number(text)?,
            Some(("workload", text)) => wish.workload = Some(number(text)?),
            Some(("seconds", text)) => wish.seconds = number(text)?,
            Some(_) => return Err(format!("{word}: not an option")),
            None if word == "crashes" => wish.faults = false,
            None if word == "faults" => wish.faults = true,
            None => {
                wish.campaigns.retain(|campaign| campaign.name == word);
                if wish.campaigns.is_empty() {
                    return Err(format!("{word}: not a campaign"));
                }
            }
        }
    }
    Ok(wish)
}

fn torture() -> Result<(), String> {
    let wish = wish()?;
    let share = Duration::from_secs(wish.seconds) / wish.campaigns.len() as u32;
    let run = if wish.faults { faults } else { crashes };
    let mut summaries = Vec::new();
    for campaign in &wish.campaigns {
        let summary = match wish.workload {
            Some(number) => run(*campaign, wish.seed, number, Budget::Workloads(1)),
            None => run(*campaign, wish.seed, 0, Budget::Time(share, tell)),
        };
        summaries.push(summary?);
        println!("{}", summaries[summaries.len() - 1].line());
    }
    println!("{}", together(&summaries));
    Ok(())
}

fn tell(line: &str) {
    eprintln!("{line}");
}

fn main() -> ExitCode {
    match torture() {
        Ok(()) => ExitCode::SUCCESS,
        Err(line) => {
            eprintln!("{line}");
            ExitCode::FAILURE
        }
    }
}
