//! One door for each dangerous thing.
//!
//! `unsafe` stands in listed files, the interpreter is entered in one, atomics and threads of the
//! lock-free parts are named in one, the clock is read in one, and nothing in the Python package
//! can turn bytes into code.

use super::Finding;
use crate::lexer::words;
use crate::source::{Language, Source};

/// Production files that may say `unsafe`, each with the reason it has to.
#[rustfmt::skip] // one line for each, so that two changes do not meet
pub const UNSAFE_FILES: &[(&str, &str)] = &[
    ("rust/bind/src/buffer.rs", "copies out of an exported Python buffer"),
    ("rust/bind/src/door.rs", "asks which interpreter this thread is attached to"),
    ("rust/bind/src/io/guest.rs", "duplicates a descriptor that the engine keeps open"),
    ("rust/bind/src/io/memory.rs", "memory of the engine behind Python's buffer protocol"),
    ("rust/bind/src/io/sockets.rs", "asks the kernel which socket a descriptor is"),
    ("rust/bind/src/jobs.rs", "one pool of workers per process, never freed"),
    ("rust/bind/src/current.rs", "compares what the thread's dictionary says about the running loop"),
    ("rust/bind/src/record.rs", "takes records, which can be in no cycle, from the collector"),
    ("rust/bind/src/wheel/context.rs", "asks a context which mapping it refers to"),
    ("rust/bind/src/wheel/home.rs", "reads the monotonic clock that event loops count in"),
    ("rust/core/src/engine/mod.rs", "asks the kernel for the random id of a new log"),
    ("rust/core/src/fork.rs", "registers and runs the handler of a forked child"),
    ("rust/core/src/io/buffer.rs", "aligned memory that the kernel reads and writes"),
    ("rust/core/src/io/sys.rs", "system calls on files, each wrapped once"),
    ("rust/core/src/io/vectors.rs", "shows the kernel several buffers of one transfer"),
    ("rust/core/src/port/signal.rs", "an eventfd: created, rung and read"),
    ("rust/core/src/ring/slot.rs", "the cell that a producer fills and the consumer empties"),
    ("rust/core/src/uring/flight/pieces.rs", "stages entries that point into the buffer of a flight"),
    ("rust/core/src/uring/mod.rs", "arms the bell: an entry of the kernel's queue that points at nothing"),
    ("rust/core/src/uring/names.rs", "takes descriptors that the kernel opened, and tries what a ring may do"),
    ("rust/core/src/uring/probe.rs", "asks the kernel what it offers, with an entry that points at nothing"),
    ("rust/core/src/uring/ring.rs", "stages entries, enters the kernel, registers descriptors"),
    ("rust/core/src/uring/shutdown.rs", "asks the kernel to cancel, with an entry that points at nothing"),
];

/// A name that only some files may use.
struct Door {
    names: &'static [&'static str],
    /// Where the rule holds.
    within: &'static [&'static str],
    /// Where the name may stand all the same.
    except: &'static [&'static str],
    why: &'static str,
}

const RUST_DOORS: [Door; 6] = [
    Door {
        names: &[
            "Python::attach",
            "Python::try_attach",
            "Python::with_gil",
            "Python::assume_attached",
            ".detach",
            ".allow_threads",
        ],
        within: &["rust/bind/src/"],
        except: &["rust/bind/src/door.rs"],
        why: "only door.rs attaches to or detaches from the interpreter",
    },
    Door {
        names: &[
            "std::sync::atomic",
            "std::thread",
            "std::cell::UnsafeCell",
            "std::sync::Mutex",
        ],
        within: &[
            "rust/core/src/ring/",
            "rust/core/src/port/",
            "rust/core/src/epoch/",
        ],
        except: &[],
        why: "lock-free code takes atomics, locks and threads from crate::sync, so that loom sees them",
    },
    Door {
        names: &["Instant::now", "SystemTime::now"],
        within: &[
            "rust/core/src/wal/",
            "rust/core/src/sim/",
            "rust/core/src/codec.rs",
        ],
        // A plain thread that waits measures its own patience.
        except: &["rust/core/src/wal/marks.rs"],
        why: "time comes in from a Clock, so that a simulated run repeats",
    },
    Door {
        names: &["io_uring::"],
        within: &["rust/core/src/"],
        except: &["rust/core/src/uring/"],
        why: "only the uring backend knows the kernel's rings",
    },
    Door {
        names: &["pyo3_async_runtimes::", "tokio::"],
        within: &["rust/bind/src/", "rust/core/src/"],
        except: &["rust/bind/src/bridge.rs"],
        why: "only bridge.rs knows a second runtime",
    },
    Door {
        names: &["loom::"],
        within: &["rust/core/src/"],
        except: &["rust/core/src/sync.rs"],
        why: "only sync.rs names loom",
    },
];

const PYTHON_BANNED: [&str; 8] = [
    "pickle",
    "cPickle",
    "marshal",
    "shelve",
    "dill",
    "eval",
    "exec",
    "__import__",
];

pub fn check(source: &Source) -> Vec<Finding> {
    match source.language {
        Language::Rust => check_rust(source),
        Language::Python => check_python(source),
        Language::Other => Vec::new(),
    }
}

fn check_rust(source: &Source) -> Vec<Finding> {
    let mut findings = Vec::new();
    for door in &RUST_DOORS {
        let listed = |paths: &[&str]| paths.iter().any(|path| source.path.starts_with(path));
        if listed(door.within) && !listed(door.except) {
            for name in door.names {
                findings.extend(
                    uses(&source.production, name)
                        .into_iter()
                        .map(|at| Finding::new(source, at, format!("`{name}`: {}", door.why))),
                );
            }
        }
    }
    let places = words(&source.production, "unsafe");
    if let Some(first) = places.first()
        && !UNSAFE_FILES.iter().any(|(path, _)| *path == source.path)
    {
        let count = places.len();
        let message = format!("says `unsafe` {count} times and is not listed in tidy/doors.rs");
        findings.push(Finding::new(source, *first, message));
    }
    findings
}

/// Whole words. A name that begins with a dot is a method, one that ends in `::` is a crate.
fn uses(code: &str, name: &str) -> Vec<usize> {
    if let Some(method) = name.strip_prefix('.') {
        let dotted = |at: &usize| code[..*at].ends_with('.');
        return words(code, method).into_iter().filter(dotted).collect();
    }
    if let Some(krate) = name.strip_suffix("::") {
        let entered = |at: &usize| code[at + krate.len()..].starts_with("::");
        let of_another = |at: &usize| code[..*at].ends_with("::");
        return words(code, krate)
            .into_iter()
            .filter(|at| entered(at) && !of_another(at))
            .collect();
    }
    words(code, name)
}

fn check_python(source: &Source) -> Vec<Finding> {
    if !source.path.starts_with("python/") {
        return Vec::new();
    }
    let mut findings = Vec::new();
    for name in PYTHON_BANNED {
        findings.extend(words(&source.code, name).into_iter().map(|at| {
            Finding::new(
                source,
                at,
                format!("`{name}`: nothing here may turn bytes into code"),
            )
        }));
    }
    findings
}

/// A listed file that no longer says `unsafe`, or no longer exists, leaves the list.
pub fn check_lists(sources: &[Source]) -> Vec<Finding> {
    stale(UNSAFE_FILES, sources)
}

fn stale(list: &[(&str, &str)], sources: &[Source]) -> Vec<Finding> {
    list.iter()
        .filter(|(path, _)| {
            !sources.iter().any(|source| {
                source.path == *path && !words(&source.production, "unsafe").is_empty()
            })
        })
        .map(|(path, _)| {
            Finding::of_file(path, "listed for `unsafe` in tidy/doors.rs and has none")
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(path: &str, text: &str) -> usize {
        check(&Source::new(path, text)).len()
    }

    #[test]
    fn unlisted_unsafe_is_caught_and_a_comment_about_it_is_not() {
        // Belief: the word counts only as code, and only outside of tests.
        assert_eq!(
            count("rust/core/src/ring/mod.rs", "fn f() { unsafe { g() } }"),
            1
        );
        assert_eq!(
            count("rust/core/src/ring/tests.rs", "unsafe impl Send for X {}"),
            0
        );
        assert_eq!(
            count(
                "rust/core/src/ring/mod.rs",
                "// unsafe\n#![deny(unsafe_code)]"
            ),
            0
        );
    }

    #[test]
    fn a_stale_entry_of_the_list_is_caught() {
        // Belief: the list can only shrink or be justified.
        let list = [("rust/core/src/a.rs", "")];
        assert_eq!(
            stale(&list, &[Source::new("rust/core/src/a.rs", "fn f() {}")]).len(),
            1
        );
        assert_eq!(
            stale(
                &list,
                &[Source::new("rust/core/src/a.rs", "unsafe fn f() {}")]
            )
            .len(),
            0
        );
    }

    #[test]
    fn entering_the_interpreter_elsewhere_is_caught() {
        // Belief: both directions, by function and by method; the door itself is allowed.
        let text = "fn f(py: Python<'_>) { py.detach(|| ()); Python::attach(|py| ()); }";
        assert_eq!(count("rust/bind/src/log.rs", text), 2);
        assert_eq!(count("rust/bind/src/door.rs", text), 0);
        assert_eq!(
            count("rust/bind/src/log.rs", "fn f() { door::detach(py, || ()) }"),
            0
        );
    }

    #[test]
    fn a_second_runtime_elsewhere_is_caught() {
        // Belief: the crate of the bridge and its runtime are named in one file.
        let text = "use pyo3_async_runtimes::generic;\nfn f() { tokio::spawn(g()) }";
        assert_eq!(count("rust/bind/src/check.rs", text), 2);
        assert_eq!(count("rust/core/src/wal/verify.rs", text), 2);
        assert_eq!(count("rust/bind/src/bridge.rs", text), 0);
    }

    #[test]
    fn raw_atomics_in_the_ring_are_caught() {
        // Belief: loom would not see them.
        assert_eq!(
            count(
                "rust/core/src/ring/slot.rs",
                "use std::sync::atomic::AtomicU64;"
            ),
            1
        );
        assert_eq!(
            count("rust/core/src/ring/slot.rs", "use crate::sync::AtomicU64;"),
            0
        );
        assert_eq!(
            count(
                "rust/core/src/ring/slot.rs",
                "#[cfg(loom)]\nuse loom::thread;"
            ),
            1
        );
    }

    #[test]
    fn reading_a_clock_below_is_caught() {
        // Belief: the log and the simulated world are told the time.
        let text = "let t = std::time::Instant::now();";
        assert_eq!(count("rust/core/src/wal/commit.rs", text), 1);
        assert_eq!(count("rust/core/src/threads/mod.rs", text), 0);
    }

    #[test]
    fn bytes_into_code_is_caught() {
        // Belief: imports and calls are seen; words that merely contain the name are not.
        assert_eq!(
            count("python/millrace/log.py", "import pickle\nx = eval(y)\n"),
            2
        );
        let fine = "p = await create_subprocess_exec(a)\n# eval(\ns = 'exec('\n";
        assert_eq!(count("python/millrace/log.py", fine), 0);
    }
}
