//! Plants known bugs one by one and requires the named test to fail.
//!
//! A bug stands in the engine behind `planted!("name")`; `rust/mutants.toml` says which test must
//! notice it. For each: name the bug to the process, run, and demand a failure within a bounded
//! time. A build that fails is an error, not a kill, and every killer must first pass in the same
//! build without a bug.
//!
//! The switch that compiles the bugs in reaches only the engine: this program stands in as the
//! workspace's rustc wrapper. Cargo keys its cache by the wrapper's path, so that build lies beside
//! the others, and one serves all bugs: the environment chooses among them. For a Python test the
//! extension is built in the same way.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Where the table stands, from the repository root.
pub const TABLE: &str = "rust/mutants.toml";

const WRAPPER_SWITCH: &str = "MILLRACE_PLANTED_BUG_WRAPPER";
/// Names the bug to the engine, see `rust/core/src/planted.rs`.
const BUG: &str = "MILLRACE_PLANTED_BUG";
const SECONDS_DEFAULT: u64 = 120;
/// The crates in which bugs are planted.
const ENGINE: [&str; 2] = ["millrace_core", "_core"];
/// What runs a Python killer; `make build` makes it.
const PYTHON: &str = ".venv/bin/python";

/// One planted bug and the test that must notice it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mutant {
    pub name: String,
    /// What is wrong in the world where this bug exists, in a few words.
    bug: String,
    /// Explored by loom instead of run.
    loom: bool,
    /// The killer is a Python test, run with an extension that has the bugs.
    python: bool,
    /// Arguments of `cargo test`, or of `pytest`, that select the killer.
    killer: String,
    /// How long the killer may take. Hanging counts as noticing only if `hangs` says so.
    seconds: u64,
    hangs: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Killed,
    Survived,
    TimedOut,
}

/// Reads the table; a missing one is an empty one.
pub fn read_table(root: &Path) -> Result<Vec<Mutant>, String> {
    match fs::read_to_string(root.join(TABLE)) {
        Ok(text) => parse(&text),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(format!("cannot read {TABLE}: {error}")),
    }
}

/// The few lines of TOML that the table uses: `[[mutant]]` and `key = value`.
fn parse(text: &str) -> Result<Vec<Mutant>, String> {
    let mut tables: Vec<BTreeMap<String, String>> = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if line == "[[mutant]]" {
            tables.push(BTreeMap::new());
            continue;
        }
        let complaint = || format!("{TABLE}:{}: not understood: {line}", index + 1);
        let (key, value) = line.split_once('=').ok_or_else(complaint)?;
        let table = tables.last_mut().ok_or_else(complaint)?;
        let value = value.trim().trim_matches('"').to_owned();
        if table.insert(key.trim().to_owned(), value).is_some() {
            return Err(format!("{TABLE}:{}: a second time: {line}", index + 1));
        }
    }
    tables.into_iter().map(from_table).collect()
}

fn from_table(mut table: BTreeMap<String, String>) -> Result<Mutant, String> {
    let mut need = |key: &str| {
        table
            .remove(key)
            .ok_or_else(|| format!("{TABLE}: an entry has no `{key}`"))
    };
    let (name, bug, killer) = (need("name")?, need("bug")?, need("killer")?);
    let seconds = match table.remove("seconds") {
        Some(text) => text
            .parse()
            .map_err(|_| format!("{TABLE}: {name}: seconds = {text}"))?,
        None => SECONDS_DEFAULT,
    };
    let mut flag = |key: &str| table.remove(key).is_some_and(|value| value == "true");
    let mutant = Mutant {
        name,
        bug,
        loom: flag("loom"),
        python: flag("python"),
        killer,
        seconds,
        hangs: flag("hangs"),
    };
    match table.keys().next() {
        Some(key) => Err(format!("{TABLE}: {}: unknown key `{key}`", mutant.name)),
        None => Ok(mutant),
    }
}

/// Runs the named bugs, or all; true if every one was killed.
pub fn run(root: &Path, names: &[String]) -> Result<bool, String> {
    let table = read_table(root)?;
    if let Some(unknown) = names
        .iter()
        .find(|name| !table.iter().any(|m| m.name == **name))
    {
        return Err(format!("`{unknown}` is not in {TABLE}"));
    }
    let chosen: Vec<&Mutant> = table
        .iter()
        .filter(|m| names.is_empty() || names.contains(&m.name))
        .collect();
    if chosen.is_empty() {
        return Err(format!("no planted bug to run: {TABLE} is empty"));
    }
    check_killers(root, &chosen)?;
    let width = chosen.iter().map(|m| m.name.len()).max().unwrap_or(0);
    let mut survivors = 0;
    for mutant in &chosen {
        let started = Instant::now();
        let verdict = execute(root, mutant, Some(&mutant.name))?;
        let killed = verdict == Verdict::Killed || (verdict == Verdict::TimedOut && mutant.hangs);
        survivors += usize::from(!killed);
        let word = match (killed, verdict) {
            (true, _) => "killed",
            (false, Verdict::TimedOut) => "TIMED OUT",
            (false, _) => "SURVIVED",
        };
        let seconds = started.elapsed().as_secs_f64();
        println!(
            "{:width$}  {word:9}  {seconds:6.1} s  {}",
            mutant.name, mutant.bug
        );
    }
    println!("mutants: {} planted, {survivors} not killed", chosen.len());
    Ok(survivors == 0)
}

/// A killer that fails on the code as it is proves nothing when it fails on a planted bug.
fn check_killers(root: &Path, chosen: &[&Mutant]) -> Result<(), String> {
    let mut seen = Vec::new();
    for (place, mutant) in chosen.iter().enumerate() {
        if place % 20 == 0 {
            println!("killers without a bug: {place} of {}", chosen.len());
        }
        let killer = (mutant.loom, mutant.python, mutant.killer.as_str());
        if seen.contains(&killer) {
            continue;
        }
        seen.push(killer);
        if execute(root, mutant, None)? != Verdict::Survived {
            return Err(format!(
                "the killer `{}` fails without any planted bug",
                mutant.killer
            ));
        }
    }
    Ok(())
}

fn execute(root: &Path, mutant: &Mutant, planted: Option<&str>) -> Result<Verdict, String> {
    let mut build = if mutant.python {
        extension_command(root)?
    } else {
        let mut build = killer_command(root, mutant, None)?;
        build.arg("--no-run");
        build
    };
    let built = build
        .output()
        .map_err(|error| format!("cannot run cargo: {error}"))?;
    if !built.status.success() {
        let why = String::from_utf8_lossy(&built.stderr).into_owned();
        return Err(format!("`{}` does not build:\n{why}", mutant.name));
    }
    let mut killer = if mutant.python {
        python_command(root, mutant, planted)?
    } else {
        killer_command(root, mutant, planted)?
    };
    let mut child = killer
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| format!("cannot run cargo: {error}"))?;
    let deadline = Instant::now() + Duration::from_secs(mutant.seconds);
    loop {
        if let Some(status) = child.try_wait().map_err(|error| error.to_string())? {
            return Ok(if status.success() {
                Verdict::Survived
            } else {
                Verdict::Killed
            });
        }
        if Instant::now() > deadline {
            end_group(&mut child);
            return Ok(Verdict::TimedOut);
        }
        sleep(Duration::from_millis(20));
    }
}

/// Ends cargo and the test it started: they share a process group of their own.
fn end_group(child: &mut std::process::Child) {
    let group = format!("-{}", child.id());
    let _ = Command::new("kill").args(["-KILL", "--", &group]).status();
    let _ = child.wait();
}

fn killer_command(root: &Path, mutant: &Mutant, planted: Option<&str>) -> Result<Command, String> {
    let mut command = cargo_command(root, "test", mutant.loom)?;
    command.args(mutant.killer.split_whitespace());
    if let Some(name) = planted {
        command.env(BUG, name);
    }
    Ok(command)
}

fn cargo_command(root: &Path, what: &str, loom: bool) -> Result<Command, String> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = in_its_own_group(root, cargo);
    command.args([what, "--quiet", "--locked", "--profile", "fast"]);
    let target = if loom {
        command.env("RUSTFLAGS", "--cfg loom");
        root.join("target/loom")
    } else {
        command.env_remove("RUSTFLAGS");
        root.join("target")
    };
    command
        .env("CARGO_TARGET_DIR", &target)
        .env("RUSTC_WORKSPACE_WRAPPER", wrapper(&target)?)
        .env(WRAPPER_SWITCH, "1")
        .env_remove(BUG);
    Ok(command)
}

fn in_its_own_group(root: &Path, program: impl AsRef<OsStr>) -> Command {
    use std::os::unix::process::CommandExt;
    let mut command = Command::new(program);
    command
        .current_dir(root)
        .process_group(0)
        .stdin(Stdio::null());
    command
}

/// Builds the extension with the bugs.
fn extension_command(root: &Path) -> Result<Command, String> {
    let mut command = cargo_command(root, "build", false)?;
    command
        .args(["--package", "millrace-bind", "--no-default-features"])
        .env("PYO3_PYTHON", root.join(PYTHON));
    Ok(command)
}

/// Runs a Python test with that extension, which stands beside the package's own files.
fn python_command(root: &Path, mutant: &Mutant, planted: Option<&str>) -> Result<Command, String> {
    let site = lay_out(root).map_err(|error| format!("cannot lay out the package: {error}"))?;
    let mut command = in_its_own_group(root, root.join(PYTHON));
    command
        .args(["-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"])
        .args(mutant.killer.split_whitespace())
        .env("PYTHONPATH", site)
        .env_remove(BUG);
    if let Some(name) = planted {
        command.env(BUG, name);
    }
    Ok(command)
}

/// A directory to import the package from: links to its files, and the extension just built.
fn lay_out(root: &Path) -> std::io::Result<PathBuf> {
    let site = root.join("target/planted-site");
    let package = site.join("millrace");
    fs::create_dir_all(&site)?;
    if package.exists() {
        fs::remove_dir_all(&package)?;
    }
    fs::create_dir(&package)?;
    for entry in fs::read_dir(root.join("python/millrace"))? {
        let entry = entry?;
        let name = entry.file_name();
        if !name.to_string_lossy().starts_with("_core.") {
            std::os::unix::fs::symlink(entry.path(), package.join(name))?;
        }
    }
    fs::copy(
        root.join("target/fast/lib_core.so"),
        package.join("_core.so"),
    )?;
    Ok(site)
}

/// A link to this program, so that the build has a path of its own.
fn wrapper(target: &Path) -> Result<PathBuf, String> {
    let place = || -> std::io::Result<PathBuf> {
        fs::create_dir_all(target)?;
        let link = target.join("planted-engine");
        let own = std::env::current_exe()?;
        if fs::read_link(&link).is_ok_and(|there| there == own) {
            return Ok(link);
        }
        if fs::symlink_metadata(&link).is_ok() {
            fs::remove_file(&link)?;
        }
        std::os::unix::fs::symlink(own, &link)?;
        Ok(link)
    };
    place().map_err(|error| format!("cannot prepare the rustc wrapper: {error}"))
}

/// If cargo started this program as a wrapper: run rustc, with the bugs compiled into the engine.
pub fn wrapped_rustc() -> Option<ExitCode> {
    std::env::var_os(WRAPPER_SWITCH)?;
    let mut arguments = std::env::args_os().skip(1);
    let rustc = arguments.next()?;
    let arguments = planted_arguments(arguments.collect());
    let status = Command::new(rustc).args(arguments).status().ok()?;
    Some(
        status
            .code()
            .and_then(|code| u8::try_from(code).ok())
            .map_or(ExitCode::FAILURE, ExitCode::from),
    )
}

fn planted_arguments(mut arguments: Vec<OsString>) -> Vec<OsString> {
    let is_engine = arguments
        .windows(2)
        .any(|w| w[0] == "--crate-name" && ENGINE.iter().any(|krate| w[1] == *krate));
    if is_engine {
        arguments.push("--cfg".into());
        arguments.push("planted".into());
    }
    arguments
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_read() {
        // Belief: defaults are filled in, flags and numbers are understood.
        let text = "# c\n[[mutant]]\nname = \"a\"\nbug = \"b = c\"\nkiller = \"-p x y\"\n\n\
                    [[mutant]]\nname = \"d\"\nbug = \"e\"\nkiller = \"f\"\nloom = true\nhangs = true\nseconds = 9\n";
        let table = parse(text).unwrap();
        assert_eq!(table.len(), 2);
        assert_eq!(
            (table[0].bug.as_str(), table[0].loom, table[0].seconds),
            ("b = c", false, 120)
        );
        assert_eq!(
            (table[1].loom, table[1].hangs, table[1].seconds),
            (true, true, 9)
        );
    }

    #[test]
    fn a_bad_table_is_refused() {
        // Belief: a missing, unknown or repeated key, and a line of something else, stop the run.
        let twice = "[[mutant]]\nname = \"a\"\nbug = \"b\"\nkiller = \"c\"\nkiller = \"d\"\n";
        assert!(parse(twice).is_err());
        assert!(parse("[[mutant]]\nname = \"a\"\nbug = \"b\"\n").is_err());
        assert!(
            parse("[[mutant]]\nname = \"a\"\nbug = \"b\"\nkiller = \"c\"\nkilller = \"d\"\n")
                .is_err()
        );
        assert!(parse("name = \"a\"\n").is_err());
        assert!(parse("[[mutant]]\nname\n").is_err());
    }

    #[test]
    fn only_the_engine_is_built_with_the_bugs() {
        // Belief: dependencies, tests and this program are compiled as they are.
        let plain = |krate: &str| vec![OsString::from("--crate-name"), krate.into()];
        assert_eq!(planted_arguments(plain("crossbeam")), plain("crossbeam"));
        for krate in ["millrace_core", "_core"] {
            let engine = planted_arguments(plain(krate));
            assert_eq!(engine[2..], [OsString::from("--cfg"), "planted".into()]);
        }
    }
}
