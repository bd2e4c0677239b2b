//! Every planted bug has a line in the table that names its killer, and every line has its bug.

use std::collections::BTreeSet;
use std::path::Path;

use super::Finding;
use crate::mutants::{self, TABLE};
use crate::source::{Language, Source};

/// Where bugs are planted.
const ENGINE: [&str; 2] = ["rust/core/", "rust/bind/"];

pub fn check_table(root: &Path, sources: &[Source]) -> Result<Vec<Finding>, String> {
    let listed = mutants::read_table(root)?
        .into_iter()
        .map(|mutant| mutant.name)
        .collect();
    let engine: Vec<&Source> = sources
        .iter()
        .filter(|source| source.language == Language::Rust)
        .filter(|source| ENGINE.iter().any(|place| source.path.starts_with(place)))
        .collect();
    Ok(compare(&listed, &engine))
}

fn compare(listed: &BTreeSet<String>, engine: &[&Source]) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut planted = BTreeSet::new();
    for source in engine {
        for (at, name) in planted_in(&source.text) {
            if !listed.contains(&name) {
                findings.push(Finding::new(
                    source,
                    at,
                    format!("`{name}` has no killer in {TABLE}"),
                ));
            }
            planted.insert(name);
        }
    }
    findings.extend(
        listed
            .difference(&planted)
            .map(|name| Finding::of_file(TABLE, format!("`{name}` is listed and planted nowhere"))),
    );
    findings
}

fn planted_in(text: &str) -> Vec<(usize, String)> {
    let marker = "planted!(\"";
    text.match_indices(marker)
        .map(|(at, _)| {
            let name = text[at + marker.len()..]
                .split('"')
                .next()
                .unwrap_or_default();
            (at, name.to_owned())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bug_without_a_killer_and_a_killer_without_a_bug_are_caught() {
        // Belief: table and code are compared both ways.
        let source = Source::new(
            "rust/core/src/a.rs",
            "if planted!(\"a\") || planted!(\"b\") {}",
        );
        let listed = BTreeSet::from(["b".to_owned(), "c".to_owned()]);
        let found = compare(&listed, &[&source]);
        assert_eq!(found.len(), 2);
        assert!(found[0].message.contains("`a` has no killer"));
        assert!(found[1].message.contains("`c` is listed"));
    }
}
