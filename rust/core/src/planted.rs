//! Bugs that a test must notice, each planted by name behind the macro `planted!`.
//!
//! Everywhere else the macro is `false` before anything is compiled. Only `make mutants` builds
//! with `--cfg planted`; in that build the environment says which bug a process has, so that one
//! build serves all of them. The binding plants its bugs in the same way.

/// Where a process of that build finds the name of its bug.
const BUG: &str = "MILLRACE_PLANTED_BUG";

/// Whether this process has the bug of that name.
#[macro_export]
macro_rules! planted {
    ($name:literal) => {
        cfg!(planted) && $crate::planted::is_chosen($name)
    };
}

/// Whether the environment names that bug. Read once: a test that clears the environment of its
/// children changes nothing here.
#[doc(hidden)]
pub fn is_chosen(name: &str) -> bool {
    // Not of the loom facade: no model may explore how it is read.
    static CHOSEN: std::sync::OnceLock<Option<String>> = std::sync::OnceLock::new();
    let chosen = CHOSEN.get_or_init(|| std::env::var(BUG).ok());
    chosen.as_deref() == Some(name)
}
