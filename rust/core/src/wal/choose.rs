//! Which way to the disk: measured once per open, in the log's own directory, and reported.
//!
//! The candidates overwrite blocks of a small zero-filled scratch file, synchronously, in turns and a
//! few times each; the medians are compared, and direct I/O is preferred if it is not a quarter
//! slower. What the machine does not offer is left out, with the reason.

use std::time::Duration;

use crate::{
    error::{Error, ErrorKind, Result},
    io::{Access, Backend, Blocking, Buffer, Disk, File, Open},
    sync::Arc,
};

use super::settings::{CommitPath, Driver};

/// Synchronous writes per candidate: enough for a median, few enough to cost milliseconds.
const SAMPLES: usize = 5;
const SCRATCH_BYTES: usize = 64 << 10;
const SCRATCH_NAME: &str = "probe.tmp";

/// One way that could be taken: its name and the disk that goes it.
#[derive(Clone)]
pub struct Candidate {
    /// The way.
    pub path: CommitPath,
    /// Backends for it.
    pub disk: Arc<dyn Disk>,
    /// The name of those backends.
    pub backend: &'static str,
    /// Groups that may be in flight at once.
    pub window: u32,
    /// Who turns the committer.
    pub driver: Driver,
}

impl Candidate {
    /// A way with its usual window.
    pub fn new(path: CommitPath, disk: Arc<dyn Disk>, backend: &'static str) -> Self {
        Self {
            path,
            disk,
            backend,
            window: path.window(),
            driver: Driver::Thread,
        }
    }
}

/// What one way cost, or why it was left out.
#[derive(Debug, Clone)]
pub struct Measured {
    /// The way.
    pub path: CommitPath,
    /// Median of one synchronous block write, or the reason it was refused.
    pub outcome: std::result::Result<Duration, String>,
}

/// Measures `candidates` in `dir` and returns the index of the best, with all outcomes. A
/// single candidate is forced: it is only tried.
pub fn choose(
    tools: &dyn Disk,
    path: &std::path::Path,
    candidates: &[Candidate],
    block: usize,
) -> Result<(usize, Vec<Measured>)> {
    let mut backend = tools.backend()?;
    let mut io = Blocking::new(&mut *backend);
    let dir = io.open_dir(path, true)?;
    let scratch = make_scratch(&mut io, &dir)?;
    let mut racers: Vec<_> = candidates
        .iter()
        .map(|candidate| Racer::line_up(candidate, &dir, block))
        .collect();
    race(&mut racers);
    let mut measured = Vec::new();
    let mut first_error = None;
    for (candidate, racer) in candidates.iter().zip(racers) {
        let outcome = racer.map(Racer::retire);
        measured.push(Measured {
            path: candidate.path,
            outcome: outcome.as_ref().copied().map_err(Error::to_string),
        });
        first_error = first_error.or(outcome.err());
    }
    drop(scratch);
    io.unlink(&dir, SCRATCH_NAME)?;
    let quickest = pick(&measured);
    match (quickest, first_error) {
        (Some(at), _) => Ok((at, measured)),
        (None, Some(error)) => Err(error),
        (None, None) => Err(Error::new(
            ErrorKind::Unsupported,
            "no way to the disk to choose from",
        )),
    }
}

/// The quickest, except that direct I/O wins a close race: it alone keeps several groups in flight,
/// which a lone write cannot show.
fn pick(measured: &[Measured]) -> Option<usize> {
    let took = |at: usize| measured[at].outcome.as_ref().ok().copied();
    let quickest = (0..measured.len())
        .filter(|at| took(*at).is_some())
        .min_by_key(|at| took(*at))?;
    let direct = measured
        .iter()
        .position(|one| one.path == CommitPath::Direct);
    match direct.and_then(|at| Some((at, took(at)?))) {
        Some((at, cost)) if Some(cost * 4) <= took(quickest).map(|best| best * 5) => Some(at),
        _ => Some(quickest),
    }
}

fn make_scratch(io: &mut Blocking<'_>, dir: &File) -> Result<File> {
    let access = Access {
        open: Open::Any,
        ..Access::CREATE
    };
    let file = io.open(dir, SCRATCH_NAME, access)?;
    io.allocate(&file, SCRATCH_BYTES as u64)?;
    io.write(&file, 0, SCRATCH_BYTES, Buffer::zeroed(SCRATCH_BYTES), true)?;
    io.sync(&file)?;
    Ok(file)
}

/// A candidate that takes part.
struct Racer {
    backend: Box<dyn Backend>,
    file: File,
    buffer: Option<Buffer>,
    took: Vec<Duration>,
}

impl Racer {
    fn line_up(candidate: &Candidate, dir: &File, block: usize) -> Result<Self> {
        let mut backend = candidate.disk.backend()?;
        let direct = candidate.path == CommitPath::Direct;
        let access = Access::WRITE.direct(direct);
        let file = Blocking::new(&mut *backend).open(dir, SCRATCH_NAME, access)?;
        Ok(Self {
            backend,
            file,
            buffer: Some(Buffer::zeroed(block)),
            took: Vec::with_capacity(SAMPLES),
        })
    }

    fn write(&mut self, place: usize) -> Result<()> {
        let Some(buffer) = self.buffer.take() else {
            return Ok(());
        };
        let mut io = Blocking::new(&mut *self.backend);
        let (began, block) = (io.now(), buffer.len());
        let offset = (place * block % SCRATCH_BYTES) as u64;
        let buffer = io.write(&self.file, offset, block, buffer, true)?;
        self.took.push(io.now().since(began));
        self.buffer = Some(buffer);
        Ok(())
    }

    /// Leaves with its median.
    fn retire(mut self) -> Duration {
        self.backend.shutdown(None);
        self.took.sort_unstable();
        self.took[SAMPLES / 2]
    }
}

/// In turns, so that a slow moment of the disk hits them all; each in blocks of its own, because a
/// direct write of what another one left in the page cache would pay for that.
fn race(racers: &mut [Result<Racer>]) {
    let count = racers.len();
    for round in 0..SAMPLES {
        for (at, racer) in racers.iter_mut().enumerate() {
            let outcome = racer.as_mut().map(|racer| racer.write(round * count + at));
            if let Ok(Err(failed)) = outcome {
                *racer = Err(failed);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn took(path: CommitPath, micros: u64) -> Measured {
        Measured {
            path,
            outcome: Ok(Duration::from_micros(micros)),
        }
    }

    #[test]
    fn direct_wins_a_close_race_and_loses_a_clear_one() {
        // Up to a quarter slower it is taken all the same; beyond that, or refused, it is not.
        let race = |micros| {
            pick(&[
                took(CommitPath::Pwrite, 200),
                took(CommitPath::Direct, micros),
            ])
        };
        assert_eq!(race(250), Some(1));
        assert_eq!(race(251), Some(0));
        let refused = Measured {
            path: CommitPath::Direct,
            outcome: Err("no".to_owned()),
        };
        assert_eq!(pick(&[refused, took(CommitPath::Pwrite, 200)]), Some(1));
        assert_eq!(pick(&[]), None);
    }
}
