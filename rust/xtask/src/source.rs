//! The files a rule may look at, each with its code told apart from its comments.

use std::path::Path;
use std::{fs, io};

use crate::lexer::{blank_python, blank_rust, brace_end};

/// Folders that hold what was built, fetched or generated, never what we wrote.
const SKIPPED: [&str; 12] = [
    "target",
    ".git",
    ".venv",
    "dist",
    "build",
    "__pycache__",
    ".hypothesis",
    ".pytest_cache",
    ".mypy_cache",
    ".ruff_cache",
    "requirements",
    "node_modules",
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Language {
    Rust,
    Python,
    Other,
}

/// One file of the repository.
#[derive(Debug)]
pub struct Source {
    /// Path from the repository root, with forward slashes.
    pub path: String,
    pub language: Language,
    pub text: String,
    /// The text with comments and literals blanked.
    pub code: String,
    /// The code with test modules blanked as well; empty for a file that is all tests.
    pub production: String,
}

impl Source {
    pub fn new(path: &str, text: &str) -> Self {
        let language = match path.rsplit('.').next() {
            Some("rs") => Language::Rust,
            Some("py" | "pyi") => Language::Python,
            _ => Language::Other,
        };
        let code = match language {
            Language::Rust => blank_rust(text),
            Language::Python => blank_python(text),
            Language::Other => text.to_owned(),
        };
        let production = match language {
            _ if is_test_file(path) => String::new(),
            Language::Rust => blank_test_items(&code),
            _ => code.clone(),
        };
        Self {
            path: path.to_owned(),
            language,
            text: text.to_owned(),
            code,
            production,
        }
    }

    /// The line that holds this byte, counted from one.
    pub fn line(&self, offset: usize) -> usize {
        self.text.as_bytes()[..offset.min(self.text.len())]
            .iter()
            .filter(|byte| **byte == b'\n')
            .count()
            + 1
    }
}

/// Tests stand in sibling files, in `tests` folders, or in the suites run by every backend.
fn is_test_file(path: &str) -> bool {
    let mut parts = path.split('/');
    let name = parts.next_back().unwrap_or_default();
    matches!(name, "tests.rs" | "loom.rs")
        || parts.any(|part| matches!(part, "tests" | "benches" | "contract"))
}

/// Blanks every item that stands behind `#[cfg(test)]` or `#[cfg(all(test, ...))]`.
fn blank_test_items(code: &str) -> String {
    let mut out = code.as_bytes().to_vec();
    for marker in ["#[cfg(test)]", "#[cfg(all(test"] {
        for (start, _) in code.match_indices(marker) {
            let after = start + marker.len();
            let Some(found) = code[after..].find(['{', ';']).map(|at| at + after) else {
                continue;
            };
            let end = if code.as_bytes()[found] == b'{' {
                brace_end(code, found)
            } else {
                found + 1
            };
            for byte in &mut out[start..end] {
                if *byte != b'\n' {
                    *byte = b' ';
                }
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// Reads every file below `root` that we wrote and that is text.
pub fn collect(root: &Path) -> io::Result<Vec<Source>> {
    let mut found = Vec::new();
    walk(root, root, &mut found)?;
    found.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(found)
}

fn walk(root: &Path, folder: &Path, found: &mut Vec<Source>) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if entry.file_type()?.is_dir() {
            if !SKIPPED.contains(&name.as_ref()) && !name.ends_with(".egg-info") {
                walk(root, &entry.path(), found)?;
            }
        } else if is_ours(&name) {
            let path = entry.path();
            let relative = path
                .strip_prefix(root)
                .unwrap_or(&path)
                .to_string_lossy()
                .into_owned();
            found.push(Source::new(&relative, &fs::read_to_string(&path)?));
        }
    }
    Ok(())
}

fn is_ours(name: &str) -> bool {
    let known = [".rs", ".py", ".pyi", ".md", ".toml", ".txt", ".sh", ".yml"];
    known.iter().any(|end| name.ends_with(end)) || name == "Makefile" || name == "run"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_modules_do_not_count_as_production() {
        // Belief: an inline test module vanishes, a declared one too, and what follows stays.
        let text = "fn a() {}\n#[cfg(test)]\nmod tests;\nfn b() {}\n#[cfg(test)]\nmod inner { fn c() { {} } }\nfn d() {}\n";
        let source = Source::new("rust/core/src/x.rs", text);
        for kept in ["fn a", "fn b", "fn d"] {
            assert!(source.production.contains(kept));
        }
        assert!(!source.production.contains("fn c"));
        assert!(source.code.contains("fn c"));
    }

    #[test]
    fn test_files_have_no_production_lines() {
        // Belief: sibling test files, loom models and backend suites are tests as a whole.
        for path in [
            "rust/core/src/ring/tests.rs",
            "rust/core/src/wal/tests/crash.rs",
            "tests/rust/src/lib.rs",
        ] {
            assert_eq!(Source::new(path, "fn a() {}").production, "", "{path}");
        }
        assert_ne!(
            Source::new("rust/core/src/ring/slot.rs", "fn a() {}").production,
            ""
        );
    }
}
