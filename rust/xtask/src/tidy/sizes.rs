//! How long a file or a function may get before somebody has to look again.
//!
//! A ratchet, not a wall: what is long for a reason stands in [`LONG`] with the reason.

use super::Finding;
use crate::lexer::{brace_end, is_word, words};
use crate::source::{Language, Source};

/// Production lines of a file, comments included.
const FILE_LINES_MAX: usize = 600;
/// Lines of code of a function, comments and blank lines left out.
const FUNCTION_LINES_MAX: usize = 70;

/// `(path, function or "" for the whole file, reason)`.
#[rustfmt::skip] // one line for each, so that two changes do not meet
pub const LONG: &[(&str, &str, &str)] = &[
    ("python/millrace/_core.pyi", "", "one stub for one extension, and it is the manual"),
    ("rust/core/src/sim/carry.rs", "plan", "one match over every operation of the contract"),
];

pub fn check(source: &Source) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (offset, name, lines) in long_things(source) {
        if !LONG
            .iter()
            .any(|(path, listed, _)| *path == source.path && *listed == name)
        {
            let what = if name.is_empty() {
                "the file".to_owned()
            } else {
                format!("`{name}`")
            };
            findings.push(Finding::new(
                source,
                offset,
                format!("{what} has {lines} lines"),
            ));
        }
    }
    findings
}

/// An entry for something that is no longer long leaves the list.
pub fn check_lists(sources: &[Source]) -> Vec<Finding> {
    LONG.iter()
        .filter(|(path, name, _)| {
            !sources.iter().any(|source| {
                source.path == *path
                    && long_things(source)
                        .iter()
                        .any(|(_, found, _)| found == name)
            })
        })
        .map(|(path, name, _)| {
            Finding::of_file(
                path,
                format!("listed as long in tidy/sizes.rs and is not: {name}"),
            )
        })
        .collect()
}

fn long_things(source: &Source) -> Vec<(usize, String, usize)> {
    let mut found = Vec::new();
    let lines = match source.language {
        Language::Rust => rust_lines(source),
        Language::Python => source.production.lines().count(),
        Language::Other => 0,
    };
    if lines > FILE_LINES_MAX {
        found.push((0, String::new(), lines));
    }
    let functions = match source.language {
        Language::Rust => rust_functions(&source.production),
        Language::Python => python_functions(&source.production),
        Language::Other => Vec::new(),
    };
    found.extend(
        functions
            .into_iter()
            .filter(|(_, _, lines)| *lines > FUNCTION_LINES_MAX),
    );
    found
}

/// All lines minus those that belong to test items.
fn rust_lines(source: &Source) -> usize {
    if source.production.is_empty() {
        return 0;
    }
    let tests = source
        .code
        .lines()
        .zip(source.production.lines())
        .filter(|(code, production)| !code.trim().is_empty() && production.trim().is_empty())
        .count();
    source.text.lines().count().saturating_sub(tests)
}

fn lines_of_code(code: &str) -> usize {
    code.lines().filter(|line| !line.trim().is_empty()).count()
}

fn rust_functions(code: &str) -> Vec<(usize, String, usize)> {
    let mut found = Vec::new();
    for at in words(code, "fn") {
        let rest = code[at + 2..].trim_start();
        let name: String = rest
            .bytes()
            .take_while(|b| is_word(*b))
            .map(char::from)
            .collect();
        if name.is_empty() {
            continue;
        }
        if let Some(open) = body_start(code, at) {
            found.push((at, name, lines_of_code(&code[at..brace_end(code, open)])));
        }
    }
    found
}

/// The opening brace of a function's body; none for a declaration.
fn body_start(code: &str, from: usize) -> Option<usize> {
    let mut level = 0i32;
    for (at, byte) in code.bytes().enumerate().skip(from) {
        match byte {
            b'(' | b'[' => level += 1,
            b')' | b']' => level -= 1,
            b'{' if level == 0 => return Some(at),
            b';' if level == 0 => return None,
            _ => {}
        }
    }
    None
}

fn python_functions(code: &str) -> Vec<(usize, String, usize)> {
    let lines: Vec<&str> = code.split_inclusive('\n').collect();
    let indent = |line: &str| line.len() - line.trim_start().len();
    let mut found = Vec::new();
    let mut offset = 0;
    for (index, line) in lines.iter().enumerate() {
        let statement = line.trim_start();
        let definition = statement.strip_prefix("async ").unwrap_or(statement);
        if let Some(rest) = definition.strip_prefix("def ") {
            let name = rest.split('(').next().unwrap_or_default().to_owned();
            let body = lines[index + 1..].iter().take_while(|next| {
                let text = next.trim();
                text.is_empty() || text.starts_with(')') || indent(next) > indent(line)
            });
            let count = 1 + body.filter(|next| !next.trim().is_empty()).count();
            found.push((offset, name, count));
        }
        offset += line.len();
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(path: &str, text: &str) -> usize {
        check(&Source::new(path, text)).len()
    }

    #[test]
    fn a_long_file_is_caught_and_long_tests_are_not() {
        // Belief: 601 production lines are too many, any number of test lines is not.
        assert_eq!(
            count("rust/core/src/a.rs", &"const A: u8 = 1;\n".repeat(601)),
            1
        );
        assert_eq!(count("python/millrace/log.py", &"A = 1\n".repeat(601)), 1);
        let tests = format!(
            "fn a() {{}}\n#[cfg(test)]\nmod tests {{\n{}}}\n",
            "const A: u8 = 1;\n".repeat(900)
        );
        assert_eq!(count("rust/core/src/a.rs", &tests), 0);
    }

    #[test]
    fn a_long_function_is_caught() {
        // Belief: code counts, comments do not, in both languages.
        let long = format!("fn f(a: [u8; 4]) -> u8 {{\n{}}}\n", "    g();\n".repeat(70));
        assert_eq!(count("rust/core/src/a.rs", &long), 1);
        let comments = format!("fn f() {{\n{}}}\n", "    // g();\n".repeat(90));
        assert_eq!(count("rust/core/src/a.rs", &comments), 0);
        let python = format!(
            "async def f(\n    a,\n):\n{}\nx = 1\n",
            "    g()\n".repeat(70)
        );
        assert_eq!(count("python/millrace/log.py", &python), 1);
        let two = format!("def f():\n{0}\ndef g():\n{0}", "    h()\n".repeat(50));
        assert_eq!(count("python/millrace/log.py", &two), 0);
    }
}
