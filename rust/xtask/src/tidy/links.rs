//! Links between our own pages lead somewhere.

use std::path::{Component, Path, PathBuf};

use super::Finding;
use crate::source::Source;

/// A relative link in a Markdown page, outside code blocks.
fn links(source: &Source) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let mut offset = 0;
    let mut in_code = false;
    for line in source.text.split_inclusive('\n') {
        if line.trim_start().starts_with("```") {
            in_code = !in_code;
        } else if !in_code {
            for (at, _) in line.match_indices("](") {
                let target = line[at + 2..].split(')').next().unwrap_or_default();
                found.push((offset + at, target.to_owned()));
            }
        }
        offset += line.len();
    }
    found
}

fn is_page(source: &Source) -> bool {
    source.path.ends_with(".md")
}

/// A link must not be empty or absolute; a machine's root is nobody else's.
pub fn check_shape(source: &Source) -> Vec<Finding> {
    if !is_page(source) {
        return Vec::new();
    }
    links(source)
        .into_iter()
        .filter(|(_, target)| target.is_empty() || target.starts_with('/'))
        .map(|(at, target)| Finding::new(source, at, format!("a link to nowhere: `{target}`")))
        .collect()
}

/// A relative link must name a file or folder of the repository.
pub fn check_targets(root: &Path, sources: &[Source]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for source in sources.iter().filter(|source| is_page(source)) {
        for (at, target) in links(source) {
            let Some(path) = local_target(&source.path, &target) else {
                continue;
            };
            if !root.join(&path).exists() {
                findings.push(Finding::new(
                    source,
                    at,
                    format!("the link `{target}` leads nowhere"),
                ));
            }
        }
    }
    findings
}

/// The repository path a link names; none for addresses and for anchors in the same page.
fn local_target(page: &str, target: &str) -> Option<PathBuf> {
    let file = target.split('#').next().unwrap_or_default();
    if file.is_empty() || target.contains("://") || target.starts_with("mailto:") {
        return None;
    }
    let folder = Path::new(page).parent().unwrap_or(Path::new(""));
    let mut clean = PathBuf::new();
    for part in folder.join(file).components() {
        match part {
            Component::ParentDir => {
                clean.pop();
            }
            Component::CurDir => {}
            other => clean.push(other),
        }
    }
    Some(clean)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_that_leads_nowhere_is_caught() {
        // Belief: relative targets are resolved from the page, anchors and addresses are left alone.
        let text = "[a](missing.md) [b](../Cargo.toml#x) [c](#here) [d](https://example.org)\n```\n[e](no.md)\n```\n";
        let page = Source::new("docs/a.md", text);
        let root = Path::new(env!("CARGO_MANIFEST_DIR"))
            .ancestors()
            .nth(2)
            .unwrap();
        let found = check_targets(root, std::slice::from_ref(&page));
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].message.contains("missing.md"));
    }

    #[test]
    fn an_absolute_or_empty_link_is_caught() {
        // Belief: such a link works on nobody's machine.
        let page = Source::new("docs/a.md", "[a]() [b](/etc/x) [c](d.md)");
        assert_eq!(check_shape(&page).len(), 2);
    }
}
