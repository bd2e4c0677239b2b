//! What may lie in the repository's top folder: nothing that a trial left behind is committed.

use std::{path::Path, process::Command};

use super::Finding;

/// Every name there is, folders and files.
const TOP: [&str; 21] = [
    ".cargo",
    ".ci",
    ".github",
    ".gitignore",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE-APACHE",
    "LICENSE-MIT",
    "Makefile",
    "README.md",
    "SECURITY.md",
    "benches",
    "clippy.toml",
    "docs",
    "pyproject.toml",
    "python",
    "requirements",
    "rust",
    "tests",
];

/// Checks what is committed; an unpacked source package, which knows no commits, has nothing to say.
pub fn check(root: &Path) -> Vec<Finding> {
    let listed = Command::new("git")
        .current_dir(root)
        .args(["ls-files"])
        .output();
    match listed {
        Ok(output) if output.status.success() => {
            strangers(&String::from_utf8_lossy(&output.stdout))
        }
        _ => Vec::new(),
    }
}

fn strangers(tracked: &str) -> Vec<Finding> {
    let top = |path: &str| path.split('/').next().unwrap_or(path).to_owned();
    let mut names: Vec<String> = tracked.lines().map(top).collect();
    names.dedup();
    names.retain(|name| !TOP.contains(&name.as_str()));
    names
        .iter()
        .map(|name| Finding::of_file(name, "does not belong into the top folder"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::strangers;

    #[test]
    fn what_a_trial_left_behind_is_found() {
        // Once for a folder, however much lies in it; what belongs there is no finding.
        let tracked = "README.md\nauto/1.log\nauto/LOCK\nrust/core/src/lib.rs\nnotes.txt\n";
        let found: Vec<String> = strangers(tracked).into_iter().map(|one| one.path).collect();
        assert_eq!(found, ["auto", "notes.txt"]);
    }
}
