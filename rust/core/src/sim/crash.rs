//! Every state in which a power cut may leave the disk.
//!
//! At an event of the world, what was flushed is certain; everything else is a [`Choice`]: each
//! sector written since its last flush holds its flushed bytes or any later version, a length is
//! the flushed one or any later one or between, and each change of names happened or not. A state
//! is one digit per choice.
//!
//! # Always true
//!
//! 1. Up to [`COMPLETE`] combinations all are visited; beyond, a list of telling ones and 256 by
//!    chance. No state is visited twice for one point if the caller passes one set.
//! 2. An [`Image`] never changes; states share all sectors but those that make them different.

use std::{
    cell::RefCell,
    collections::HashSet,
    hash::{BuildHasherDefault, Hasher},
    path::Path,
    sync::Arc,
};

use super::{
    content::{Content, Sector},
    image::{DirImage, Image, named},
    random::{Random, fingerprint, mix},
    volume::{Change, Entry, Ino},
};

/// Points with at most so many combinations are enumerated completely.
pub const COMPLETE: u64 = 1 << 12;

/// States chosen by chance where there are more.
const BY_CHANCE: usize = 256;

/// How changes of names reach the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Names {
    /// Each for itself.
    Strict,
    /// In the order of the changes, as through a journal.
    Journal,
}

/// What a power cut does to a sector that was being written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Torn {
    /// It is old or new.
    Never,
    /// Or it cannot be read.
    Unreadable,
    /// Or it holds anything.
    Garbage,
}

/// The rules of a power cut.
#[derive(Debug, Clone, Copy)]
pub struct Model {
    /// For names.
    pub names: Names,
    /// For sectors.
    pub torn: Torn,
    /// Names whose files carry no promise: they are left as they are seen, and so not varied.
    pub ignored: &'static [&'static str],
    /// For what is left to chance.
    pub seed: u64,
}

impl Default for Model {
    fn default() -> Self {
        Self {
            names: Names::Strict,
            torn: Torn::Never,
            ignored: &[],
            seed: 0,
        }
    }
}

/// A set of fingerprints. They are well spread already, so they are not hashed again.
pub type Seen = HashSet<u64, BuildHasherDefault<Verbatim>>;

/// Hashes a fingerprint to itself.
#[derive(Debug, Default, Clone)]
pub struct Verbatim(u64);

impl Hasher for Verbatim {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        self.0 = fingerprint(bytes);
    }

    fn write_u64(&mut self, value: u64) {
        self.0 = value;
    }
}

/// Something a power cut leaves open.
#[derive(Debug, Clone)]
pub(super) struct Choice {
    pub what: What,
    /// The operation behind each option after the first, which is "nothing happened".
    pub groups: Vec<u64>,
}

#[derive(Debug, Clone)]
pub(super) enum What {
    /// A directory is there or not.
    Made { dir: usize },
    /// One change of names.
    Name { dir: usize, change: usize },
    /// How many changes of names.
    Names { dir: usize },
    /// A length of a file.
    Length { ino: Ino, lengths: Vec<u64> },
    /// A version of a sector.
    Sector {
        ino: Ino,
        index: usize,
        versions: Vec<Sector>,
    },
}

#[derive(Debug)]
pub(super) struct DirPoint {
    pub path: Arc<Path>,
    pub durable: Vec<Entry>,
    pub changes: Vec<(u64, Change)>,
}

#[derive(Debug)]
pub(super) struct FilePoint {
    /// The flushed bytes, with what lies beyond the flushed length.
    pub raw: Arc<Content>,
    /// The flushed bytes up to the flushed length.
    pub settled: Arc<Content>,
    /// Its choices, by place.
    pub choices: Vec<usize>,
}

/// One moment at which the power may go.
#[derive(Debug)]
pub struct CrashPoint {
    pub(super) dirs: Vec<DirPoint>,
    pub(super) files: Vec<FilePoint>,
    pub(super) choices: Vec<Choice>,
    pub(super) model: Model,
}

/// One digit per choice.
pub type Digits = [u16];

impl CrashPoint {
    /// Number of things left open.
    pub fn choices_count(&self) -> usize {
        self.choices.len()
    }

    /// Number of combinations; saturates.
    pub fn combinations(&self) -> u64 {
        let options = self
            .choices
            .iter()
            .map(|choice| choice.groups.len() as u64 + 1);
        options.fold(1, u64::saturating_mul)
    }

    /// The disk in the state that `digits` say.
    pub fn image(&self, digits: &Digits) -> Image {
        let mut dirs = Vec::with_capacity(self.dirs.len());
        for (number, dir) in self.dirs.iter().enumerate() {
            let mut entries = dir.durable.clone();
            let mut is_made = true;
            for (choice, digit) in self.choices.iter().zip(digits) {
                match choice.what {
                    What::Made { dir } if dir == number => is_made = *digit > 0,
                    What::Name { dir: of, change } if of == number && *digit > 0 => {
                        dir.changes[change].1.apply(&mut entries);
                    }
                    What::Names { dir: of } if of == number => {
                        let done = dir.changes.iter().take(*digit as usize);
                        done.for_each(|(_, change)| change.apply(&mut entries));
                    }
                    _ => {}
                }
            }
            if is_made {
                dirs.push(DirImage {
                    path: dir.path.clone(),
                    entries: named(&entries, |ino| self.content(ino, digits)),
                });
            }
        }
        Image { dirs }
    }

    fn content(&self, ino: Ino, digits: &Digits) -> Arc<Content> {
        let file = &self.files[ino];
        if file.choices.iter().all(|place| digits[*place] == 0) {
            return file.settled.clone();
        }
        let mut content = (*file.raw).clone();
        let mut length = content.length();
        for place in &file.choices {
            let Some(option) = (digits[*place] as usize).checked_sub(1) else {
                continue;
            };
            match &self.choices[*place].what {
                What::Length { lengths, .. } => length = lengths[option],
                What::Sector {
                    index, versions, ..
                } => content.set(*index, versions[option].clone()),
                _ => {}
            }
        }
        content.cut(length);
        Arc::new(content)
    }

    /// Visits every legal state whose image is not in `seen`, with the image's fingerprint; stops
    /// when `visit` says so. How many it came to and had done with, seen or not.
    /// `salt` is mixed into the fingerprints, for callers to whom equal images may differ.
    pub fn states(
        &self,
        salt: u64,
        seen: &RefCell<Seen>,
        visit: &mut dyn FnMut(&Image, u64, &Digits) -> bool,
    ) -> u64 {
        let mut tried = 0;
        let mut fresh = |digits: &Digits| {
            let image = self.image(digits);
            let mark = image.fingerprint();
            let goes_on =
                !seen.borrow_mut().insert(mark ^ mix(salt)) || visit(&image, mark, digits);
            tried += u64::from(goes_on);
            goes_on
        };
        if self.combinations() <= COMPLETE {
            self.all(&mut fresh);
            return tried;
        }
        let plans = [
            Self::extremes as fn(&Self, &mut dyn FnMut(&Digits) -> bool) -> bool,
            Self::singles,
            Self::prefixes,
            Self::operations,
            Self::by_chance,
        ];
        plans.iter().all(|plan| plan(self, &mut fresh));
        tried
    }

    /// How many [`states`](Self::states) comes to when nobody stops it.
    pub fn states_count(&self) -> u64 {
        let combinations = self.combinations();
        if combinations <= COMPLETE {
            return combinations;
        }
        let choices = self.choices.len();
        let singles: usize = (0..choices)
            .map(|place| 2 * usize::from(self.options(place)))
            .sum();
        let operations = 1 << self.latest_operations().len();
        (2 + singles + choices + operations + BY_CHANCE) as u64
    }

    fn options(&self, place: usize) -> u16 {
        self.choices[place].groups.len() as u16
    }

    fn all(&self, visit: &mut dyn FnMut(&Digits) -> bool) -> bool {
        let mut digits = vec![0; self.choices.len()];
        loop {
            if !visit(&digits) {
                return false;
            }
            let Some(place) = (0..digits.len()).find(|place| digits[*place] < self.options(*place))
            else {
                return true;
            };
            digits[..place].fill(0);
            digits[place] += 1;
        }
    }

    fn newest(&self) -> Vec<u16> {
        (0..self.choices.len())
            .map(|place| self.options(place))
            .collect()
    }

    fn extremes(&self, visit: &mut dyn FnMut(&Digits) -> bool) -> bool {
        visit(&vec![0; self.choices.len()]) && visit(&self.newest())
    }

    fn singles(&self, visit: &mut dyn FnMut(&Digits) -> bool) -> bool {
        let (mut present, mut missing) = (vec![0; self.choices.len()], self.newest());
        (0..self.choices.len()).all(|place| {
            let newest = missing[place];
            let go_on = (0..newest).all(|digit| {
                missing[place] = digit;
                present[place] = digit + 1;
                visit(&missing) && visit(&present)
            });
            missing[place] = newest;
            present[place] = 0;
            go_on
        })
    }

    fn prefixes(&self, visit: &mut dyn FnMut(&Digits) -> bool) -> bool {
        let mut digits = vec![0; self.choices.len()];
        (0..digits.len()).all(|place| {
            digits[place] = self.options(place);
            visit(&digits)
        })
    }

    fn latest_operations(&self) -> Vec<u64> {
        let mut groups: Vec<u64> = self
            .choices
            .iter()
            .flat_map(|one| one.groups.clone())
            .collect();
        groups.sort_unstable();
        groups.dedup();
        groups.split_off(groups.len().saturating_sub(8))
    }

    /// Every subset of the latest eight operations, each done entirely or not at all.
    fn operations(&self, visit: &mut dyn FnMut(&Digits) -> bool) -> bool {
        let latest = self.latest_operations();
        (0..1_u32 << latest.len()).all(|subset| {
            let is_done = |group: &u64| match latest.iter().position(|one| one == group) {
                Some(place) => subset >> place & 1 == 1,
                None => true,
            };
            let newest_done = |one: &Choice| one.groups.iter().rposition(is_done);
            let digits = self
                .choices
                .iter()
                .map(|one| newest_done(one).map_or(0, |at| at as u16 + 1));
            visit(&digits.collect::<Vec<_>>())
        })
    }

    fn by_chance(&self, visit: &mut dyn FnMut(&Digits) -> bool) -> bool {
        let mut random = Random::new(self.model.seed ^ mix(self.choices.len() as u64));
        (0..BY_CHANCE).all(|_| {
            let digits = (0..self.choices.len())
                .map(|place| random.below(u64::from(self.options(place)) + 1) as u16);
            visit(&digits.collect::<Vec<_>>())
        })
    }
}
