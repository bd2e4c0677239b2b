//! What a log must show after a crash, told by somebody who never looks into its files.
//!
//! A [`Ledger`] is kept outside the engine: which value was given to the log under which LSN, and
//! what was acknowledged. After a crash, whatever the log shows is held against it.
//!
//! | Oracle | Says |
//! | --- | --- |
//! | O1 | what was acknowledged is shown |
//! | O2 | what is shown is a run without a hole |
//! | O3 | every value shown was given under that LSN, byte for byte |
//! | O4 | what a recovery showed is shown for ever; what it dropped never comes back |
//! | O5 | a batch is shown whole or not at all |
//! | O6 | after a failure nothing is acknowledged until the log is opened again |
//! | O11 | nothing is acknowledged before it is durable, and no sector that holds acknowledged bytes is written again |

use std::{collections::HashSet, fmt};

use super::{
    content::{Content, SECTOR},
    fault::Kind,
    flight::Target,
    random::mix,
    volume::Ino,
    world::{Event, Phase, World},
};

/// A promise that was broken.
#[derive(Debug, Clone)]
pub struct Violation {
    /// Which oracle says so.
    pub oracle: &'static str,
    /// What it saw; the innermost place first.
    pub text: String,
}

impl Violation {
    /// Makes one.
    pub fn new(oracle: &'static str, text: impl Into<String>) -> Self {
        Self {
            oracle,
            text: text.into(),
        }
    }

    /// Adds where it was seen.
    #[must_use]
    pub fn at(mut self, place: impl fmt::Display) -> Self {
        self.text = format!("{} <- {place}", self.text);
        self
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.oracle, self.text)
    }
}

/// Shorthand.
pub type Verdict<T = ()> = Result<T, Violation>;

/// Bytes before the filling: serial number, length, checksum.
const VALUE_HEADER: usize = 16;

/// The value with this serial number and length. From 16 bytes on it carries its serial, its
/// length and its own checksum; a shorter one is as much of its serial's hash as fits.
pub fn value(serial: u64, length: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(length + 8);
    if length >= VALUE_HEADER {
        bytes.extend(serial.to_le_bytes());
        bytes.extend((length as u32).to_le_bytes());
        bytes.extend((mix(serial ^ mix(length as u64)) as u32).to_le_bytes());
    }
    let mut word = serial;
    while bytes.len() < length {
        word = mix(word.wrapping_add(0x9e37_79b9_7f4a_7c15));
        bytes.extend(word.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

#[derive(Debug, Clone, Copy)]
struct Attempt {
    serial: u64,
    length: usize,
    batch: u64,
}

/// What was given to a log and what it said about it.
#[derive(Debug, Clone, Default)]
pub struct Ledger {
    /// By LSN less one. Only the latest value of an LSN can be there: an earlier one was dropped
    /// by the recovery that made the LSN free again.
    attempts: Vec<Attempt>,
    acknowledged: u64,
    truncated: u64,
    /// The position last acknowledged of a named cursor, and the one last asked for.
    cursor: (u64, u64),
    serials: u64,
    batches: u64,
    has_failed: bool,
}

impl Ledger {
    /// The LSN that the next value gets.
    pub fn next_lsn(&self) -> u64 {
        self.attempts.len() as u64 + 1
    }

    /// Every LSN up to here must be shown.
    pub fn acknowledged(&self) -> u64 {
        self.acknowledged
    }

    /// Writes down a batch of values about to be given to the log, and returns their bytes.
    pub fn give(&mut self, lengths: &[usize]) -> Vec<Vec<u8>> {
        self.batches += 1;
        let attempts = lengths.iter().map(|length| {
            self.serials += 1;
            Attempt {
                serial: self.serials,
                length: *length,
                batch: self.batches,
            }
        });
        let attempts: Vec<_> = attempts.collect();
        self.attempts.extend(&attempts);
        attempts
            .iter()
            .map(|one| value(one.serial, one.length))
            .collect()
    }

    /// The log refused the last `count` values: they got no LSN.
    pub fn take_back(&mut self, count: usize) {
        let kept = self.attempts.len().saturating_sub(count);
        self.attempts.truncate(kept);
    }

    /// The log acknowledged everything up to `lsn`.
    pub fn acknowledge(&mut self, lsn: u64) -> Verdict {
        if lsn > self.acknowledged && self.has_failed {
            let text = format!("LSN {lsn} was acknowledged after a failure");
            return Err(Violation::new("O6", text));
        }
        if lsn > self.attempts.len() as u64 {
            let text = format!("LSN {lsn} was acknowledged but never given");
            return Err(Violation::new("O3", text));
        }
        self.acknowledged = self.acknowledged.max(lsn);
        Ok(())
    }

    /// An append or a flush failed.
    pub fn fail(&mut self) {
        self.has_failed = true;
    }

    /// The log was asked to forget what lies below `lsn`.
    pub fn truncate(&mut self, lsn: u64) {
        self.truncated = self.truncated.max(lsn);
    }

    /// A cursor is about to be moved to `position`.
    pub fn move_cursor(&mut self, position: u64) {
        self.cursor.1 = position;
    }

    /// The cursor's move was acknowledged.
    pub fn cursor_moved(&mut self) {
        self.cursor.0 = self.cursor.1;
    }

    /// Holds the position of the cursor that a recovery shows against the ledger; zero if it shows
    /// no cursor. From then on exactly that must be shown.
    pub fn cursor_recovered(&mut self, position: u64) -> Verdict {
        let (acknowledged, asked) = self.cursor;
        if position != acknowledged && position != asked {
            let text = format!("the cursor is at {position}, not at {acknowledged} or {asked}");
            return Err(Violation::new("O1", text));
        }
        if position > self.acknowledged {
            let text = format!(
                "the cursor is at {position}, the log ends at {}",
                self.acknowledged
            );
            return Err(Violation::new("O2", text));
        }
        self.cursor = (position, position);
        Ok(())
    }

    /// The bytes last given under `lsn`.
    pub fn expected(&self, lsn: u64) -> Option<Vec<u8>> {
        let attempt = self.attempts.get(lsn.checked_sub(1)? as usize)?;
        Some(value(attempt.serial, attempt.length))
    }

    /// Holds what a recovery shows, records from LSN `first` on, against the ledger; from then on
    /// exactly that must be shown.
    pub fn recovered<'a>(
        &mut self,
        first: u64,
        shown: impl IntoIterator<Item = (u64, &'a [u8])>,
        next: u64,
    ) -> Verdict {
        if first > self.truncated.max(1) {
            let text = format!("begins at {first}, truncated below {}", self.truncated);
            return Err(Violation::new("O1", text));
        }
        let mut at = first;
        for (lsn, bytes) in shown {
            if lsn != at {
                let text = format!("LSN {lsn} is shown where {at} was due");
                return Err(Violation::new("O2", text));
            }
            self.check_value(lsn, bytes)?;
            at += 1;
        }
        if at != next {
            let text = format!("records end at {at}, the log says {next}");
            return Err(Violation::new("O2", text));
        }
        self.check_end(at)?;
        self.attempts.truncate(at as usize - 1);
        self.acknowledged = at - 1;
        self.has_failed = false;
        Ok(())
    }

    fn check_value(&self, lsn: u64, bytes: &[u8]) -> Verdict {
        let Some(attempt) = self.attempts.get(lsn as usize - 1) else {
            let text = format!(
                "LSN {lsn} is shown, {} bytes; it was never given or was dropped",
                bytes.len()
            );
            return Err(Violation::new("O4", text));
        };
        if bytes.len() != attempt.length || bytes != value(attempt.serial, attempt.length) {
            let text = format!(
                "LSN {lsn} shows {} other bytes than value {attempt:?}",
                bytes.len()
            );
            return Err(Violation::new("O3", text));
        }
        Ok(())
    }

    fn check_end(&self, next: u64) -> Verdict {
        if next <= self.acknowledged {
            let text = format!(
                "ends before LSN {next}, acknowledged up to {}",
                self.acknowledged
            );
            return Err(Violation::new("O1", text));
        }
        let batch = |lsn: u64| {
            self.attempts
                .get(lsn.checked_sub(1)? as usize)
                .map(|one| one.batch)
        };
        match (batch(next - 1), batch(next)) {
            (Some(last), Some(dropped)) if last == dropped => {
                let text = format!("a batch is cut before LSN {next}");
                Err(Violation::new("O5", text))
            }
            _ => Ok(()),
        }
    }

    /// Tells what this ledger expects from what another does.
    pub fn fingerprint(&self) -> u64 {
        let cursor = mix(self.cursor.0 ^ mix(self.cursor.1));
        let begin = mix(self.acknowledged ^ mix(self.truncated ^ mix(self.serials ^ cursor)));
        self.attempts.iter().fold(begin, |sum, one| {
            mix(sum ^ one.serial << 40 ^ one.batch << 20 ^ one.length as u64)
        })
    }
}

/// O11: watches what is written where.
#[derive(Debug, Default)]
pub struct Monitor {
    /// Sectors that hold acknowledged bytes.
    held: HashSet<(Ino, usize)>,
    /// Files of an earlier life, which nobody may write to.
    sealed: Vec<Ino>,
    fault: Option<Violation>,
}

impl Monitor {
    /// From now on the segments that are there are not to be written to.
    pub fn seal(&mut self, world: &World) {
        self.sealed = segments(world).map(|(_, ino)| ino).collect();
    }

    /// For the world's hook.
    pub fn see(&mut self, world: &World, event: &Event) {
        let (Target::File(ino), Phase::Submitted) = (event.target, event.phase) else {
            return;
        };
        let sectors = (event.offset / SECTOR as u64) as usize
            ..(event.offset + event.length).div_ceil(SECTOR as u64) as usize;
        let is_write = matches!(event.kind, Kind::Write | Kind::WriteSync);
        if is_write && !segments(world).any(|(_, target)| target == ino) {
            // A segment no longer: what it held was truncated. O1 says whether it could be.
            self.held.retain(|(file, _)| *file != ino);
            return;
        }
        let is_held = match event.kind {
            Kind::Write | Kind::WriteSync => sectors
                .into_iter()
                .any(|index| self.held.contains(&(ino, index))),
            Kind::Truncate => {
                let mut held = self.held.iter();
                held.any(|(file, index)| *file == ino && *index >= sectors.end)
            }
            _ => return,
        };
        if !(is_held || is_write && self.sealed.contains(&ino)) {
            return;
        }
        if let Some((name, _)) = segments(world).find(|(_, target)| *target == ino) {
            let what = if is_held {
                "acknowledged sectors"
            } else {
                "a segment of an earlier life"
            };
            let text = format!("{event:?} touches {what} of {name}");
            self.fault.get_or_insert(Violation::new("O11", text));
        }
    }

    /// The log acknowledged `value`: it must be durable, and stay where it is.
    pub fn acknowledged(&mut self, world: &World, value: &[u8]) -> Verdict {
        if value.len() < VALUE_HEADER {
            return Ok(());
        }
        for (_, ino) in segments(world) {
            if let Some(at) = find(&world.volume.inodes[ino].device, value) {
                let last = (at + value.len() - 1) / SECTOR;
                self.held
                    .extend((at / SECTOR..=last).map(|index| (ino, index)));
                return Ok(());
            }
        }
        let text = format!(
            "{} bytes were acknowledged before they were durable",
            value.len()
        );
        Err(Violation::new("O11", text))
    }

    /// What was seen, if something was wrong.
    pub fn verdict(&mut self) -> Verdict {
        self.fault.take().map_or(Ok(()), Err)
    }
}

fn segments(world: &World) -> impl Iterator<Item = (&str, Ino)> {
    let entries = world.volume.dirs.iter().flat_map(|dir| &dir.entries);
    let named = entries.map(|(name, ino)| (&**name, *ino));
    named.filter(|(name, _)| name.rsplit('.').next() == Some("log"))
}

/// Where `wanted` begins, looking only into runs of sectors that are not zero.
fn find(content: &Content, wanted: &[u8]) -> Option<usize> {
    let first: [u8; VALUE_HEADER] = *wanted.first_chunk()?;
    let mut index = 0;
    while index < content.sectors_count() {
        let run = (index..content.sectors_count())
            .take_while(|at| content.is_used(*at))
            .count();
        let mut bytes = vec![0; run * SECTOR];
        let count = content
            .read((index * SECTOR) as u64, &mut bytes)
            .unwrap_or(0);
        let mut windows = bytes[..count].windows(VALUE_HEADER).enumerate();
        let found =
            windows.find(|(at, window)| **window == first && bytes[*at..count].starts_with(wanted));
        if let Some((at, _)) = found {
            return Some(index * SECTOR + at);
        }
        index += run + 1;
    }
    None
}
