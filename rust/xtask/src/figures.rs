//! Copies what the benchmark report says first into the README, so that no figure is typed.
//!
//! The README keeps a region between two markers. `cargo xtask figures` fills it from the
//! committed report; `tidy` compares, so that neither can move without the other.

use std::fs;
use std::path::Path;

/// The report, from the repository root.
pub const REPORT: &str = "benches/report/report.md";
/// The page that shows figures.
pub const PAGE: &str = "README.md";

const BEGIN: &str = "<!-- generated:figures -->\n";
const END: &str = "<!-- end -->\n";
const SHORT: &str = "## Beside what is used today\n";
/// Where the links of the report begin.
const PLOTS: &str = "benches/report/";

/// Fills the region; true always, or an error if there is nothing to fill it from.
pub fn run(root: &Path) -> Result<bool, String> {
    let report = read(root, REPORT)?;
    let page = read(root, PAGE)?;
    let filled = filled(&page, &report)?;
    fs::write(root.join(PAGE), filled).map_err(|error| format!("cannot write {PAGE}: {error}"))?;
    println!("{PAGE}: figures taken from {REPORT}");
    Ok(true)
}

/// Is the region what the report says? Nothing to say while there is no report.
pub fn is_current(root: &Path) -> Result<bool, String> {
    if !root.join(REPORT).exists() {
        return Ok(true);
    }
    let page = read(root, PAGE)?;
    Ok(filled(&page, &read(root, REPORT)?)? == page)
}

fn read(root: &Path, path: &str) -> Result<String, String> {
    fs::read_to_string(root.join(path)).map_err(|error| format!("cannot read {path}: {error}"))
}

fn filled(page: &str, report: &str) -> Result<String, String> {
    let no_region = || format!("{PAGE} has no region for figures");
    let (before, rest) = page.split_once(BEGIN).ok_or_else(no_region)?;
    let (_, after) = rest.split_once(END).ok_or_else(no_region)?;
    let text = summary(report)?;
    Ok(format!("{before}{BEGIN}{text}{END}{after}"))
}

/// The facts at the head of the report and its short section, with a link to the rest.
fn summary(report: &str) -> Result<String, String> {
    let no_table = || format!("{REPORT} has no section `{}`", SHORT.trim());
    let (head, rest) = report.split_once(SHORT).ok_or_else(no_table)?;
    let facts = head
        .split_once('\n')
        .map_or("", |(_title, facts)| facts)
        .trim();
    let short = rest.split("\n## ").next().unwrap_or_default().trim();
    let short = short.replace("](overview", &format!("]({PLOTS}overview"));
    Ok(format!(
        "{short}\n\n{facts}\n\nEvery cell, every aim and the plots: [report]({REPORT}). What the \
         controls\nmean: [benches/README.md](benches/README.md).\n"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLE: &str = "# Benchmarks\n\nWritten by x.\n\n- Machine: y\n\n\
                          ## Beside what is used today\n\n![p](overview.svg)\n\n| a |\n| - |\n\n## One task\n\nno\n";

    #[test]
    fn the_region_takes_the_head_and_the_short_section() {
        // Belief: facts and table come over, other sections do not, and filling twice is the same.
        let page = format!("before\n{BEGIN}old\n{END}after\n");
        let once = filled(&page, SAMPLE).unwrap();
        assert!(once.starts_with("before\n") && once.ends_with("after\n"));
        assert!(once.contains("- Machine: y") && once.contains("| a |"));
        assert!(once.contains("(benches/report/overview.svg)"));
        assert!(!once.contains("old") && !once.contains("One task") && !once.contains("# Bench"));
        assert_eq!(filled(&once, SAMPLE).unwrap(), once);
    }

    #[test]
    fn a_page_without_region_or_a_report_without_aims_is_refused() {
        // Belief: nothing is written where nobody looks for it.
        assert!(filled("no region", SAMPLE).is_err());
        assert!(filled(&format!("{BEGIN}{END}"), "# Benchmarks\n").is_err());
    }
}
