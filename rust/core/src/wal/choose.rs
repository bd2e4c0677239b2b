//! Which way to the disk: measured once per open, in the log's own directory, and reported.
//!
//! The candidates overwrite blocks of a small zero-filled scratch file, synchronously and in turns.
//! Direct I/O is preferred unless another way takes less than two thirds of it in so many rounds that
//! chance does not explain it; a close race goes on for a while, and one that nobody wins by then is direct
//! I/O's. So a disk that is busy with something else does not decide. What the machine does not
//! offer is left out, with the reason.

use std::time::Duration;

use crate::{
    error::{Error, ErrorKind, Result},
    io::{Access, Backend, Blocking, Buffer, Disk, File, Open},
    sync::Arc,
};

use super::settings::{CommitPath, Driver};

/// Rounds before the first verdict, and all there are of a race that has nothing to decide...
const ROUNDS_MIN: usize = 6;
/// ...and those of a race that stays close: a few milliseconds more.
const ROUNDS_MAX: usize = 24;
/// On a slow disk a close race ends after this long.
const RACE_MAX: Duration = Duration::from_millis(100);
/// Blocks of the scratch file for each candidate.
const PLACES: usize = 8;
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
    let scratch = make_scratch(&mut io, &dir, candidates.len() * PLACES * block);
    let scratch = scratch.or_else(|error| io.give_back(&dir, SCRATCH_NAME, error))?;
    let mut racers: Vec<_> = candidates
        .iter()
        .map(|candidate| Racer::line_up(candidate, &dir, block))
        .collect();
    let direct = candidates
        .iter()
        .position(|one| one.path == CommitPath::Direct);
    let began = io.now();
    let race = race(&mut racers, direct, || io.now().since(began));
    let mut measured = Vec::new();
    let mut first_error = None;
    for (at, (candidate, racer)) in candidates.iter().zip(racers).enumerate() {
        let outcome = racer.map(|racer| {
            racer.retire();
            race.median(at)
        });
        measured.push(Measured {
            path: candidate.path,
            outcome: outcome.as_ref().copied().map_err(Error::to_string),
        });
        first_error = first_error.or(outcome.err());
    }
    drop(scratch);
    io.unlink(&dir, SCRATCH_NAME)?;
    match (race.winner(), first_error) {
        (Some(at), _) => Ok((at, measured)),
        (None, Some(error)) => Err(error),
        (None, None) => Err(Error::new(
            ErrorKind::Unsupported,
            "no way to the disk to choose from",
        )),
    }
}

/// What the writes of each candidate took, round by round; nothing of one that was refused.
struct Race {
    took: Vec<Vec<Duration>>,
    /// Which of them is direct I/O.
    direct: Option<usize>,
}

impl Race {
    fn new(candidates: usize, direct: Option<usize>) -> Self {
        Self {
            took: vec![Vec::with_capacity(ROUNDS_MAX); candidates],
            direct,
        }
    }

    fn median(&self, at: usize) -> Duration {
        let mut took = self.took[at].clone();
        took.sort_unstable();
        took.get(took.len() / 2).copied().unwrap_or_default()
    }

    /// Whether direct I/O is beaten; `None` while that is open.
    fn is_direct_beaten(&self) -> Option<bool> {
        let direct = self.direct.map_or(&[][..], |at| &self.took[at]);
        if direct.is_empty() {
            return Some(true);
        }
        let rivals = (0..self.took.len()).filter(|at| Some(*at) != self.direct);
        let mut verdict = Some(false);
        for rival in rivals.map(|at| &self.took[at]) {
            match is_beaten(direct, rival) {
                Some(true) => return Some(true),
                Some(false) => {}
                None => verdict = None,
            }
        }
        verdict
    }

    fn is_over(&self, rounds: usize, elapsed: Duration) -> bool {
        let is_close = self.is_direct_beaten().is_none();
        let goes_on = is_close && rounds < ROUNDS_MAX && elapsed < RACE_MAX;
        rounds >= ROUNDS_MIN && !goes_on
    }

    /// Direct I/O unless it was beaten: it alone keeps several groups in flight, which a lone write
    /// cannot show. Else the quickest of the others.
    fn winner(&self) -> Option<usize> {
        self.direct
            .filter(|_| self.is_direct_beaten() != Some(true))
            .or_else(|| {
                let ran = (0..self.took.len()).filter(|at| !self.took[*at].is_empty());
                let others = ran.filter(|at| Some(*at) != self.direct);
                others.min_by_key(|at| self.median(*at))
            })
    }
}

/// Whether `rival` took less than two thirds in more rounds than a coin would explain, three
/// deviations off the half; `None`: in more than half of them, but not in so many.
fn is_beaten(direct: &[Duration], rival: &[Duration]) -> Option<bool> {
    let rounds = direct.len().min(rival.len());
    let pairs = direct.iter().zip(rival);
    let lost = pairs.filter(|(own, other)| **own * 2 > **other * 3).count();
    let ahead = (2 * lost).saturating_sub(rounds);
    if planted!("one_look_decides") {
        return Some(ahead > 0);
    }
    if ahead == 0 {
        return Some(false);
    }
    (ahead * ahead >= 9 * rounds).then_some(true)
}

fn make_scratch(io: &mut Blocking<'_>, dir: &File, bytes: usize) -> Result<File> {
    let access = Access {
        open: Open::Any,
        ..Access::CREATE
    };
    let file = io.open(dir, SCRATCH_NAME, access)?;
    io.allocate(&file, bytes as u64)?;
    io.write(&file, 0, bytes, Buffer::zeroed(bytes), true)?;
    io.sync(&file)?;
    Ok(file)
}

/// A candidate that takes part.
struct Racer {
    backend: Box<dyn Backend>,
    file: File,
    buffer: Option<Buffer>,
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
        })
    }

    fn write(&mut self, place: usize) -> Result<Duration> {
        let Some(buffer) = self.buffer.take() else {
            return Ok(Duration::ZERO);
        };
        let mut io = Blocking::new(&mut *self.backend);
        let (began, block) = (io.now(), buffer.len());
        let buffer = io.write(&self.file, (place * block) as u64, block, buffer, true)?;
        self.buffer = Some(buffer);
        Ok(io.now().since(began))
    }

    fn retire(mut self) {
        self.backend.shutdown(None);
    }
}

/// In turns, so that a slow moment of the disk hits them all, and in every order, so that nobody
/// always comes after the same one; each in blocks of its own, because a direct write of what
/// another one left in the page cache would pay for that.
fn race(
    racers: &mut [Result<Racer>],
    direct: Option<usize>,
    elapsed: impl Fn() -> Duration,
) -> Race {
    let count = racers.len();
    let mut race = Race::new(count, direct);
    let mut rounds = 0;
    while !race.is_over(rounds, elapsed()) {
        let mut order: Vec<_> = (0..count).map(|at| (at + rounds / 2) % count).collect();
        if rounds % 2 == 1 {
            order.reverse();
        }
        for at in order {
            let place = at * PLACES + rounds % PLACES;
            match racers[at].as_mut().map(|racer| racer.write(place)) {
                Ok(Ok(took)) => race.took[at].push(took),
                Ok(Err(failed)) => {
                    race.took[at].clear();
                    racers[at] = Err(failed);
                }
                Err(_refused) => {}
            }
        }
        rounds += 1;
    }
    race
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::Random;

    const NOTHING: Duration = Duration::ZERO;

    /// A race to its end: pwrite, and direct I/O that costs `percent` of it, each write slower by a
    /// chance that `noise` draws.
    fn run(percent: u64, mut noise: impl FnMut() -> u64) -> Race {
        let mut race = Race::new(2, Some(1));
        let mut rounds = 0;
        while !race.is_over(rounds, NOTHING) {
            for (at, cost) in [100, percent].into_iter().enumerate() {
                let micros = 2 * cost + cost * noise() / 100;
                race.took[at].push(Duration::from_micros(micros));
            }
            rounds += 1;
        }
        race
    }

    /// Of a thousand races under load, how many direct I/O won. The load adds from nothing to five
    /// times a write to each, large delays being rare.
    fn won_by_direct(percent: u64) -> usize {
        let mut random = Random::new(percent);
        let mut noise = || random.below(1000) * random.below(1000) / 1000;
        (0..1000)
            .filter(|_| run(percent, &mut noise).winner() == Some(1))
            .count()
    }

    #[test]
    fn on_a_quiet_disk_direct_wins_a_close_race_and_loses_a_clear_one() {
        // Up to half as much again is taken all the same, more is not; both soon.
        for (percent, winner) in [(50, 1), (150, 1), (151, 0), (300, 0)] {
            let race = run(percent, || 0);
            assert_eq!(race.winner(), Some(winner), "{percent} %");
            assert!(race.took[0].len() < ROUNDS_MAX / 2, "{percent} %");
        }
    }

    #[test]
    fn a_busy_disk_does_not_decide() {
        // Where direct I/O costs the same it is practically always taken, where it costs several
        // times as much it hardly ever is, whatever the load does to single writes.
        let (same, slower) = (won_by_direct(100), won_by_direct(400));
        assert!(same >= 990, "{same}");
        assert!(slower <= 50, "{slower}");
    }

    #[test]
    fn a_close_race_ends_in_time() {
        // Neither rounds nor time go on for ever; six rounds there are in any case.
        let mut race = Race::new(2, Some(1));
        for lost in [1, 1, 1, 1, 0, 0] {
            race.took[0].push(Duration::from_micros(100));
            race.took[1].push(Duration::from_micros(100 + 100 * lost));
        }
        assert_eq!(race.is_direct_beaten(), None);
        assert!(!race.is_over(ROUNDS_MIN, NOTHING));
        assert!(race.is_over(ROUNDS_MIN, RACE_MAX));
        assert!(!race.is_over(ROUNDS_MIN - 1, RACE_MAX));
        assert!(race.is_over(ROUNDS_MAX, NOTHING));
        assert_eq!(race.winner(), Some(1));
    }

    #[test]
    fn one_that_was_refused_wins_nothing() {
        // Direct I/O that is not there is not chosen, nor is anything else; the quickest that ran is.
        let mut race = Race::new(3, Some(2));
        assert_eq!(race.winner(), None);
        race.took[0].push(Duration::from_micros(300));
        race.took[1].push(Duration::from_micros(200));
        assert_eq!(race.winner(), Some(1));
        race.took[2].push(Duration::from_micros(900));
        race.took[0].clear();
        race.took[1].clear();
        assert_eq!(race.winner(), Some(2));
    }
}
