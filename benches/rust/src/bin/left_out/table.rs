//! Samples of the ways of one case, and the table of them.

use std::{
    collections::BTreeMap,
    fmt,
    time::{Duration, Instant},
};

/// What one way did in one round.
#[derive(Clone, Copy)]
pub struct Sample {
    pub per_s: f64,
    /// Processor time for each.
    pub cpu_us: f64,
}

/// Measures from here on.
pub struct Meter {
    begun: Instant,
    spent: Duration,
}

impl Meter {
    pub fn start() -> Self {
        Self {
            begun: Instant::now(),
            spent: spent(),
        }
    }

    pub fn elapsed(&self) -> Duration {
        self.begun.elapsed()
    }

    pub fn stop(self, done: u64) -> Sample {
        let elapsed = self.begun.elapsed().as_secs_f64();
        let spent = spent().saturating_sub(self.spent).as_secs_f64();
        Sample {
            per_s: done as f64 / elapsed,
            cpu_us: spent / done as f64 * 1e6,
        }
    }
}

/// Processor time of this process.
fn spent() -> Duration {
    // SAFETY: plain data, for which zeros are a value.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: the struct is ours and lives during the call.
    let answer = unsafe { libc::getrusage(libc::RUSAGE_SELF, &raw mut usage) };
    assert_eq!(answer, 0);
    let of = |time: libc::timeval| {
        Duration::from_secs(time.tv_sec as u64) + Duration::from_micros(time.tv_usec as u64)
    };
    of(usage.ru_utime) + of(usage.ru_stime)
}

/// One case.
pub struct Group {
    title: String,
    ways: Vec<&'static str>,
    samples: Vec<BTreeMap<usize, Sample>>,
}

impl Group {
    pub fn new(title: &str, ways: impl Iterator<Item = &'static str>) -> Self {
        let ways: Vec<_> = ways.collect();
        Self {
            title: title.to_owned(),
            samples: vec![BTreeMap::new(); ways.len()],
            ways,
        }
    }

    pub fn add(&mut self, way: usize, round: usize, sample: Option<Sample>) {
        if let Some(sample) = sample {
            self.samples[way].insert(round, sample);
        }
    }

    /// A figure of a way, relative to the first way, round by round.
    fn ratio(&self, way: usize, figure: fn(&Sample) -> f64) -> String {
        let rounds = self.samples[way].iter().filter_map(|(round, sample)| {
            let ours = self.samples[0].get(round)?;
            Some(figure(sample) / figure(ours))
        });
        let found = sorted(rounds);
        match (found.first(), found.last()) {
            (Some(low), Some(high)) => format!("{:.2} ({low:.2} to {high:.2})", middle(&found)),
            _ => "-".to_owned(),
        }
    }
}

impl fmt::Display for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "## {}\n", self.title)?;
        writeln!(f, "| way | per second | x | CPU for each | x |")?;
        writeln!(f, "| --- | ---: | ---: | ---: | ---: |")?;
        for (at, name) in self.ways.iter().enumerate() {
            if self.samples[at].is_empty() {
                writeln!(f, "| {name} | refused by this kernel | | | |")?;
                continue;
            }
            let rates = sorted(self.samples[at].values().map(|sample| sample.per_s));
            let costs = sorted(self.samples[at].values().map(|sample| sample.cpu_us));
            let (rate, cost) = (middle(&rates), middle(&costs));
            if at == 0 {
                writeln!(f, "| **{name}** | {rate:.0} | | {cost:.2} us | |")?;
                continue;
            }
            let (faster, dearer) = (
                self.ratio(at, |sample| sample.per_s),
                self.ratio(at, |sample| sample.cpu_us),
            );
            writeln!(
                f,
                "| {name} | {rate:.0} | {faster} | {cost:.2} us | {dearer} |"
            )?;
        }
        writeln!(f)
    }
}

fn sorted(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values
}

fn middle(sorted: &[f64]) -> f64 {
    let half = sorted.len() / 2;
    if sorted.len() % 2 == 1 {
        return sorted[half];
    }
    f64::midpoint(sorted[half - 1], sorted[half])
}
