//! What we build from: locked, and above the versions that advisories warn about.

use std::path::Path;

use super::Finding;

/// Oldest version of a crate that we accept, with the reason.
const FLOORS: &[(&str, [u64; 3], &str)] = &[
    ("pyo3", [0, 29, 0], "RUSTSEC advisories below"),
    ("crossbeam-epoch", [0, 9, 20], "RUSTSEC-2026-0204"),
    ("crossbeam-channel", [0, 5, 15], "double free on drop below"),
    ("bytes", [1, 11, 1], "RUSTSEC advisory below"),
    ("lru", [0, 18, 2], "RUSTSEC advisory below"),
    ("memmap2", [0, 9, 11], "RUSTSEC advisory below"),
];

const LOCKS: [&str; 3] = [
    "Cargo.lock",
    "requirements/dev.lock",
    "requirements/bench.lock",
];

pub fn check(root: &Path) -> Vec<Finding> {
    let mut findings = Vec::new();
    for lock in LOCKS {
        match std::fs::read_to_string(root.join(lock)) {
            Err(_) => findings.push(Finding::of_file(lock, "is missing: locks are committed")),
            Ok(text) if lock == "Cargo.lock" => findings.extend(below_floor(&text)),
            Ok(text) => findings.extend(unhashed(lock, &text)),
        }
    }
    findings
}

fn below_floor(lock: &str) -> Vec<Finding> {
    let field = |line: &str, key: &str| {
        let value = line.strip_prefix(key)?.strip_prefix(" = \"")?;
        value.strip_suffix('"').map(str::to_owned)
    };
    let mut findings = Vec::new();
    let mut name = String::new();
    for line in lock.lines() {
        if let Some(found) = field(line, "name") {
            name = found;
        } else if let Some(version) = field(line, "version") {
            for (krate, floor, why) in FLOORS {
                if name == *krate && numbers(&version) < *floor {
                    let message = format!("{krate} {version} is below {floor:?}: {why}");
                    findings.push(Finding::of_file("Cargo.lock", message));
                }
            }
        }
    }
    findings
}

fn numbers(version: &str) -> [u64; 3] {
    let mut parts = version
        .split(['.', '-', '+'])
        .map(|part| part.parse().unwrap_or(0));
    std::array::from_fn(|_| parts.next().unwrap_or(0))
}

/// Every pinned package of a Python lock must come with its hashes.
fn unhashed(path: &str, lock: &str) -> Vec<Finding> {
    let text = lock.replace("\\\n", " ");
    text.lines()
        .filter(|line| line.contains("==") && !line.trim_start().starts_with('#'))
        .filter(|line| !line.contains("--hash=sha256:"))
        .map(|line| Finding::of_file(path, format!("has no hash: {}", line.trim())))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crate_below_its_floor_is_caught() {
        // Belief: versions compare by number, not by letter, and only the named crate counts.
        let lock = |version: &str| {
            format!("[[package]]\nname = \"crossbeam-epoch\"\nversion = \"{version}\"\n")
        };
        assert_eq!(below_floor(&lock("0.9.18")).len(), 1);
        assert_eq!(below_floor(&lock("0.9.9")).len(), 1);
        assert_eq!(below_floor(&lock("0.9.20")).len(), 0);
        assert_eq!(below_floor(&lock("0.10.0")).len(), 0);
        assert_eq!(
            below_floor("name = \"other\"\nversion = \"0.0.1\"\n").len(),
            0
        );
    }

    #[test]
    fn a_python_pin_without_hash_is_caught() {
        // Belief: continuation lines belong to their pin.
        let good = "click==8.5.1 \\\n    --hash=sha256:ab \\\n    --hash=sha256:cd\n    # via x\n";
        assert_eq!(unhashed("x.lock", good).len(), 0);
        assert_eq!(
            unhashed(
                "x.lock",
                "click==8.5.1\nrich==15.0.0 \\\n    --hash=sha256:ab\n"
            )
            .len(),
            1
        );
    }

    #[test]
    fn a_missing_lock_is_caught() {
        // Belief: an empty folder lacks all three.
        assert_eq!(check(Path::new("no-such-folder")).len(), LOCKS.len());
    }
}
