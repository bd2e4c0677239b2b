//! The house rules, as far as a program can hold them.
//!
//! Every rule is a pure function from a source file to findings, so each has a bad sample in its
//! tests that it must catch. Lists of exceptions ([`doors::UNSAFE_FILES`], [`sizes::LONG`]) are
//! ratchets: an entry that is no longer needed is itself a finding.

mod doors;
mod floors;
mod layout;
mod links;
mod planted;
mod sizes;
mod supply;
mod words;

use std::path::Path;
use std::process::Command;

use crate::figures;
use crate::source::{Source, collect};

/// Something that breaks a rule, and where.
#[derive(Debug, PartialEq, Eq)]
pub struct Finding {
    pub path: String,
    pub line: usize,
    pub message: String,
}

impl Finding {
    fn new(source: &Source, offset: usize, message: impl Into<String>) -> Self {
        Self {
            path: source.path.clone(),
            line: source.line(offset),
            message: message.into(),
        }
    }

    fn of_file(path: &str, message: impl Into<String>) -> Self {
        Self {
            path: path.to_owned(),
            line: 1,
            message: message.into(),
        }
    }
}

const RULES: [fn(&Source) -> Vec<Finding>; 5] = [
    floors::check,
    doors::check,
    sizes::check,
    words::check,
    links::check_shape,
];

/// Checks the whole repository; true if nothing was found.
pub fn run(root: &Path) -> Result<bool, String> {
    let sources = collect(root).map_err(|error| format!("cannot read the repository: {error}"))?;
    let mut findings: Vec<Finding> = sources.iter().flat_map(check_file).collect();
    findings.extend(doors::check_lists(&sources));
    findings.extend(sizes::check_lists(&sources));
    findings.extend(links::check_targets(root, &sources));
    findings.extend(planted::check_table(root, &sources)?);
    findings.extend(supply::check(root));
    findings.extend(layout::check(root));
    findings.extend(core_knows_no_python(root)?);
    if !figures::is_current(root)? {
        let message = "the figures are not those of the report: cargo xtask figures";
        findings.push(Finding::of_file(figures::PAGE, message));
    }
    for finding in &findings {
        println!("{}:{}: {}", finding.path, finding.line, finding.message);
    }
    let count = findings.len();
    println!(
        "tidy: {} files, {count} finding{}",
        sources.len(),
        if count == 1 { "" } else { "s" }
    );
    Ok(findings.is_empty())
}

fn check_file(source: &Source) -> Vec<Finding> {
    RULES.iter().flat_map(|rule| rule(source)).collect()
}

/// The engine's dependency tree, tests and features included, must not show `PyO3`.
fn core_knows_no_python(root: &Path) -> Result<Vec<Finding>, String> {
    let output = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .current_dir(root)
        .args([
            "tree",
            "--locked",
            "--package",
            "millrace-core",
            "--all-features",
        ])
        .args(["--edges", "all", "--prefix", "none"])
        .output()
        .map_err(|error| format!("cannot run cargo tree: {error}"))?;
    if !output.status.success() {
        return Err(format!(
            "cargo tree failed: {}",
            String::from_utf8_lossy(&output.stderr)
        ));
    }
    Ok(tree_findings(&String::from_utf8_lossy(&output.stdout)))
}

fn tree_findings(tree: &str) -> Vec<Finding> {
    tree.lines()
        .filter(|line| line.starts_with("pyo3"))
        .map(|line| {
            Finding::of_file(
                "rust/core/Cargo.toml",
                format!("the engine depends on {line}"),
            )
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_engine_that_learns_python_is_caught() {
        // Belief: PyO3 anywhere in the tree of core is a finding.
        let found = tree_findings("millrace-core v0.1.0\ncrc32c v0.6.9\npyo3-ffi v0.30.1\n");
        assert_eq!(found.len(), 1);
        assert_eq!(tree_findings("millrace-core v0.1.0\nlibc v0.2\n"), vec![]);
    }

    #[test]
    fn a_finding_names_the_line() {
        // Belief: the line reported is where the word stands.
        let source = Source::new("a.md", "one\ntwo\nthree");
        assert_eq!(Finding::new(&source, 4, "x").line, 2);
    }
}
