//! Words that must not be left behind, in any file.

use super::Finding;
use crate::lexer::words;
use crate::source::Source;

/// Each is spelled in two halves, so that this file does not find itself.
const MARKERS: [(&str, &str); 7] = [
    ("TO", "DO"),
    ("FIX", "ME"),
    ("X", "XX"),
    ("HA", "CK"),
    ("unimpl", "emented!"),
    ("to", "do!"),
    ("db", "g!"),
];

const MACHINE_PATHS: [(&str, &str); 4] = [
    ("/wo", "rk/"),
    ("/ro", "ot/"),
    ("/ho", "me/"),
    ("bash_", "jobs"),
];

pub fn check(source: &Source) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (head, tail) in MARKERS {
        let marker = format!("{head}{tail}");
        for at in words(&source.text, marker.trim_end_matches('!')) {
            if source.text[at..].starts_with(&marker) {
                findings.push(Finding::new(
                    source,
                    at,
                    format!("leftover marker {marker}"),
                ));
            }
        }
    }
    for (head, tail) in MACHINE_PATHS {
        let path = format!("{head}{tail}");
        findings.extend(source.text.match_indices(&path).map(|(at, _)| {
            Finding::new(source, at, format!("names a path of one machine: {path}"))
        }));
    }
    if let Some(at) = source.text.bytes().position(|byte| !byte.is_ascii()) {
        findings.push(Finding::new(source, at, "a character that is not ASCII"));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(text: &str) -> usize {
        check(&Source::new("docs/a.md", text)).len()
    }

    #[test]
    fn every_marker_and_path_is_caught() {
        // Belief: the halves are joined rightly, for each entry of both lists.
        for (head, tail) in MARKERS.iter().chain(&MACHINE_PATHS) {
            assert_eq!(count(&format!("a {head}{tail} b")), 1, "{head}{tail}");
        }
    }

    #[test]
    fn words_that_contain_a_marker_are_fine() {
        // Belief: `todos`, `hacking` and `a todo list` are English.
        assert_eq!(count("todos, hacking, a todo list, dbg"), 0);
    }

    #[test]
    fn a_character_outside_ascii_is_caught() {
        // Belief: one finding per file, on the line of the first.
        let source = Source::new("docs/a.md", "plain\nna\u{ef}ve \u{2014}\n");
        let found = check(&source);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].line, 2);
    }
}
