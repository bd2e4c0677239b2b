//! House tasks, run as `cargo xtask NAME`.
//!
//! `tidy` holds the house rules that a compiler or a linter cannot see; `mutants` plants known
//! bugs one by one and requires the test that should notice to notice; `figures` copies measured
//! figures to where they are read. None needs a crate beyond the standard library, so that they
//! build in a second.

mod figures;
mod lexer;
mod mutants;
mod source;
mod tidy;

use std::path::PathBuf;
use std::process::ExitCode;

const USAGE: &str = "\
usage: cargo xtask tidy              hold the house rules
       cargo xtask figures           copy the figures of the benchmark report into the README
       cargo xtask mutants [NAME..]  plant each bug, require its test to fail";

fn main() -> ExitCode {
    if let Some(code) = mutants::wrapped_rustc() {
        return code;
    }
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let root = repository_root();
    let outcome = match arguments.split_first() {
        Some((task, [])) if task == "tidy" => tidy::run(&root),
        Some((task, [])) if task == "figures" => figures::run(&root),
        Some((task, names)) if task == "mutants" => mutants::run(&root, names),
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(problem) => {
            eprintln!("xtask: {problem}");
            ExitCode::FAILURE
        }
    }
}

/// The folder that holds the workspace manifest, wherever the command was started.
fn repository_root() -> PathBuf {
    let here = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).map_or(here.clone(), PathBuf::from)
}
