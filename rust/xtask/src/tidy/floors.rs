//! Who may use whom. Code uses only what stands below it; neighbours do not know each other.
//!
//! ```text
//! roof    9  cli, admin               anything public below, never millrace._core
//!         8  remote, metrics, testing the public names below
//!         7  store, log, io, parts    the composer: binding and decisions
//!         6  flow, sweep, opening     types, clock, settings only
//!         5  types, settings, errors, clock     standard library only
//! ------- the language line
//!         4  engine
//!         3  wal | blob
//!         2  uring | threads | sim
//!         1b io
//!         1a ring | wheel | epoch | port | gate | metrics
//! ground  0  sync, clock, ids, codec, error, fork, planted
//! ```

use super::Finding;
use crate::lexer::is_word;
use crate::source::{Language, Source};

pub fn check(source: &Source) -> Vec<Finding> {
    match source.language {
        Language::Rust => check_rust(source),
        Language::Python => check_python(source),
        Language::Other => Vec::new(),
    }
}

const CORE: &str = "rust/core/src/";

/// Height of a part of the engine, in tenths so that io stands between 1 and 2.
fn rust_floor(part: &str) -> Option<u32> {
    Some(match part {
        "sync" | "clock" | "ids" | "codec" | "error" | "fork" | "planted" => 0,
        "ring" | "wheel" | "epoch" | "port" | "gate" | "metrics" => 10,
        "io" => 15,
        "uring" | "threads" | "sim" => 20,
        "wal" | "blob" | "ioloop" => 30,
        "engine" => 40,
        _ => return None,
    })
}

fn check_rust(source: &Source) -> Vec<Finding> {
    let Some(inside) = source.path.strip_prefix(CORE) else {
        return Vec::new();
    };
    let part = inside.split(['/', '.']).next().unwrap_or_default();
    if part == "lib" {
        return Vec::new();
    }
    let Some(own) = rust_floor(part) else {
        return vec![Finding::of_file(
            &source.path,
            format!("`{part}` has no floor in tidy's table"),
        )];
    };
    let mut findings = Vec::new();
    for (offset, used) in paths_from_root(&source.production, depth(inside)) {
        let Some(floor) = rust_floor(&used) else {
            continue;
        };
        if used != part && floor >= own && own > 0 {
            findings.push(Finding::new(
                source,
                offset,
                format!("`{part}` uses `{used}`, which does not stand below it"),
            ));
        } else if own == 0 && floor > 0 {
            findings.push(Finding::new(
                source,
                offset,
                format!("the ground floor uses `{used}`"),
            ));
        }
    }
    findings
}

/// How many `super`s lead from this file to the crate's root.
fn depth(inside: &str) -> usize {
    let folders = inside.matches('/').count();
    if inside.ends_with("/mod.rs") {
        folders
    } else {
        folders + 1
    }
}

/// First names after `crate::` or after enough `super::`s, groups in braces included.
fn paths_from_root(code: &str, depth: usize) -> Vec<(usize, String)> {
    let up = "super::".repeat(depth);
    let mut found = Vec::new();
    for prefix in ["crate::", up.as_str()] {
        for (at, _) in code.match_indices(prefix) {
            let before = code[..at].bytes().next_back();
            if before.is_some_and(|byte| is_word(byte) || byte == b':') {
                continue;
            }
            found.extend(names_at(code, at + prefix.len()));
        }
    }
    found.sort();
    found
}

fn names_at(code: &str, start: usize) -> Vec<(usize, String)> {
    let rest = &code[start..];
    if !rest.starts_with('{') {
        return vec![(start, first_word(rest))];
    }
    let mut found = Vec::new();
    let mut level = 0;
    let mut expects_name = false;
    for (at, byte) in rest.bytes().enumerate() {
        match byte {
            b'{' => {
                level += 1;
                expects_name = level == 1;
            }
            b'}' => level -= 1,
            b',' if level == 1 => expects_name = true,
            _ if expects_name && is_word(byte) => {
                found.push((start + at, first_word(&rest[at..])));
                expects_name = false;
            }
            _ => {}
        }
        if level == 0 {
            break;
        }
    }
    found
}

fn first_word(text: &str) -> String {
    text.bytes()
        .take_while(|byte| is_word(*byte))
        .map(char::from)
        .collect()
}

const PACKAGE: &str = "python/millrace/";

/// Only these may import the extension.
const CORE_IMPORTERS: [&str; 6] = ["store", "namespace", "log", "io", "parts", "opening"];

fn python_floor(module: &str) -> Option<u32> {
    let top = module.split('.').next().unwrap_or_default();
    Some(match top {
        "types" | "settings" | "errors" | "clock" => 5,
        "sweep" if module.starts_with("sweep.sweeper") => 7,
        "flow" | "sweep" | "opening" => 6,
        "store" | "namespace" | "log" | "io" | "parts" => 7,
        "remote" | "metrics" | "testing" => 8,
        "cli" | "admin" => 9,
        "__init__" | "__main__" => 10,
        _ => return None,
    })
}

fn check_python(source: &Source) -> Vec<Finding> {
    let Some(inside) = source.path.strip_prefix(PACKAGE) else {
        return Vec::new();
    };
    if inside.ends_with(".pyi") {
        return Vec::new();
    }
    let own_name = inside.trim_end_matches(".py").replace('/', ".");
    let Some(own) = python_floor(&own_name) else {
        let message = format!("`{own_name}` has no floor in tidy's table");
        return vec![Finding::of_file(&source.path, message)];
    };
    python_imports(&source.code, &own_name)
        .into_iter()
        .filter_map(|(offset, used)| {
            judge_import(&own_name, own, &used).map(|why| Finding::new(source, offset, why))
        })
        .collect()
}

fn judge_import(own_name: &str, own: u32, used: &str) -> Option<String> {
    let top = |name: &str| name.split('.').next().unwrap_or_default().to_owned();
    let (own_top, used_top) = (top(own_name), top(used));
    if used_top == "_core" {
        let allowed = CORE_IMPORTERS.contains(&own_top.as_str()) || own == 10;
        return (!allowed).then(|| format!("`{own_name}` imports millrace._core"));
    }
    if used_top.is_empty() {
        // The public names of the package itself: only for those who stand above all of them.
        return (own < 8).then(|| format!("`{own_name}` imports the package that contains it"));
    }
    let floor = python_floor(used)?;
    let same_package = own_top == used_top && (own_name.contains('.') || used.contains('.'));
    let composer = own_top == "store" && floor == 7;
    (floor >= own && !same_package && !composer)
        .then(|| format!("`{own_name}` imports `{used}`, which does not stand below it"))
}

/// What a module imports from `millrace`, as names below the package ("" is the package).
fn python_imports(code: &str, own_name: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let mut offset = 0;
    for line in code.split_inclusive('\n') {
        let statement = line.trim();
        if let Some(rest) = statement.strip_prefix("from ") {
            let (module, names) = rest.split_once(" import ").unwrap_or((rest, ""));
            if let Some(base) = below_package(module.trim(), own_name) {
                found.extend(named(&base, names).into_iter().map(|name| (offset, name)));
            }
        } else if let Some(rest) = statement.strip_prefix("import ") {
            for name in rest.split(',') {
                let module = name.trim().split(' ').next().unwrap_or_default();
                if let Some(base) = below_package(module, own_name) {
                    found.push((offset, base));
                }
            }
        }
        offset += line.len();
    }
    found
}

/// `millrace.flow.ewma` or `..flow.ewma` as `flow.ewma`; nothing for somebody else's module.
fn below_package(module: &str, own_name: &str) -> Option<String> {
    if let Some(rest) = module.strip_prefix("millrace") {
        return (rest.is_empty() || rest.starts_with('.'))
            .then(|| rest.trim_start_matches('.').into());
    }
    let dots = module.bytes().take_while(|byte| *byte == b'.').count();
    if dots == 0 {
        return None;
    }
    let mut parts: Vec<&str> = own_name.split('.').collect();
    parts.truncate(parts.len().saturating_sub(dots));
    let rest = &module[dots..];
    if !rest.is_empty() {
        parts.push(rest);
    }
    Some(parts.join("."))
}

/// `from millrace import _core` names a module, `from millrace import Log` a public name.
fn named(base: &str, names: &str) -> Vec<String> {
    if !base.is_empty() {
        return vec![base.to_owned()];
    }
    names
        .split([',', '(', ')'])
        .filter_map(|name| name.split_whitespace().next())
        .map(|name| {
            let is_module = name == "_core" || python_floor(name).is_some();
            if is_module {
                name.to_owned()
            } else {
                String::new()
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn messages(path: &str, text: &str) -> Vec<String> {
        check(&Source::new(path, text))
            .into_iter()
            .map(|finding| finding.message)
            .collect()
    }

    #[test]
    fn a_rust_part_that_looks_up_is_caught() {
        // Belief: every way to spell a path from the crate's root is seen.
        for text in [
            "use crate::wal::Log;",
            "use crate::{error::Error, wal::{Log, Lsn}};",
            "fn f() { crate::wal::open() }",
            "use super::wal::Log;",
        ] {
            assert_eq!(
                messages("rust/core/src/ring/mod.rs", text),
                ["`ring` uses `wal`, which does not stand below it"],
                "{text}"
            );
        }
        assert_eq!(
            messages("rust/core/src/ring/slot.rs", "use super::super::wal;").len(),
            1
        );
    }

    #[test]
    fn neighbours_on_a_floor_are_caught() {
        // Belief: ring and port, uring and threads must be introduced from above.
        assert_eq!(
            messages("rust/core/src/ring/park.rs", "use crate::port::Doorbell;").len(),
            1
        );
        assert_eq!(
            messages("rust/core/src/uring/mod.rs", "use crate::threads;").len(),
            1
        );
        assert_eq!(
            messages("rust/core/src/codec.rs", "use crate::ring;"),
            ["the ground floor uses `ring`"]
        );
    }

    #[test]
    fn looking_down_is_fine_and_tests_may_look_anywhere() {
        // Belief: the rule binds production code, and only upward or sideways.
        assert!(
            messages(
                "rust/core/src/wal/mod.rs",
                "use crate::{ring, io::Disk, error::Error};"
            )
            .is_empty()
        );
        assert!(
            messages(
                "rust/core/src/wal/commit.rs",
                "use super::frame; use crate::wal::segment;"
            )
            .is_empty()
        );
        let tested = "fn a() {}\n#[cfg(test)]\nmod tests { use crate::wal; }";
        assert!(messages("rust/core/src/ring/mod.rs", tested).is_empty());
    }

    #[test]
    fn a_part_without_a_floor_is_caught() {
        // Belief: a new folder must be given a place before it is used.
        assert_eq!(
            messages("rust/core/src/attic.rs", ""),
            ["`attic` has no floor in tidy's table"]
        );
        assert_eq!(
            messages("python/millrace/attic.py", ""),
            ["`attic` has no floor in tidy's table"]
        );
    }

    #[test]
    fn a_python_module_that_looks_up_is_caught() {
        // Belief: absolute and relative imports are both seen.
        for text in [
            "from millrace.log import Log\n",
            "from .log import Log\n",
            "import millrace.log\n",
        ] {
            assert_eq!(
                messages("python/millrace/settings.py", text),
                ["`settings` imports `log`, which does not stand below it"],
                "{text}"
            );
        }
        assert_eq!(
            messages("python/millrace/flow/ewma.py", "from ..log import Log\n").len(),
            1
        );
        assert_eq!(
            messages("python/millrace/log.py", "from millrace import Log\n").len(),
            1
        );
        assert_eq!(
            messages("python/millrace/log.py", "from .parts import Ring\n").len(),
            1
        );
    }

    #[test]
    fn the_extension_has_few_importers() {
        // Belief: however it is spelled, `_core` is seen, and only five modules may say it.
        for text in [
            "from millrace import _core\n",
            "import millrace._core as c\n",
            "from .._core import Log\n",
        ] {
            assert_eq!(
                messages("python/millrace/cli/demo.py", text),
                ["`cli.demo` imports millrace._core"],
                "{text}"
            );
        }
        assert!(
            messages(
                "python/millrace/log.py",
                "from millrace._core import LogHandle\n"
            )
            .is_empty()
        );
        assert!(
            messages(
                "python/millrace/cli/log.py",
                "from millrace import Log\nfrom . import demo\n"
            )
            .is_empty()
        );
    }
}
