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
    content::{Content, SECTOR, Sector},
    flight::Effect,
    image::{DirImage, Image, named},
    random::{Random, fingerprint, mix},
    volume::{Change, Entry, Ino},
    world::World,
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
pub struct Choice {
    what: What,
    /// The operation behind each option after the first, which is "nothing happened".
    groups: Vec<u64>,
}

#[derive(Debug, Clone)]
enum What {
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
struct DirPoint {
    path: Arc<Path>,
    durable: Vec<Entry>,
    changes: Vec<(u64, Change)>,
}

#[derive(Debug)]
struct FilePoint {
    /// The flushed bytes, with what lies beyond the flushed length.
    raw: Arc<Content>,
    /// The flushed bytes up to the flushed length.
    settled: Arc<Content>,
    /// Its choices, by place.
    choices: Vec<usize>,
}

/// One moment at which the power may go.
#[derive(Debug)]
pub struct CrashPoint {
    dirs: Vec<DirPoint>,
    files: Vec<FilePoint>,
    choices: Vec<Choice>,
    model: Model,
}

/// One digit per choice.
pub type Digits = [u16];

impl CrashPoint {
    /// What is certain and what is open in `world` right now.
    pub fn capture(world: &World, model: Model) -> Self {
        let mut point = Self {
            dirs: Vec::with_capacity(world.volume.dirs.len()),
            files: Vec::with_capacity(world.volume.inodes.len() + 1),
            choices: Vec::new(),
            model,
        };
        point.files.extend(
            world
                .volume
                .inodes
                .iter()
                .map(|inode| FilePoint::new(&inode.device)),
        );
        for dir in &world.volume.dirs {
            point.dirs.push(DirPoint {
                path: dir.path.clone(),
                durable: dir.durable.clone(),
                changes: dir.pending.clone(),
            });
        }
        let ignored = point.settle_ignored(world);
        point.names_in_flight(world);
        point.open_dirs(world);
        for ino in point.reachable() {
            if !ignored.contains(&ino) {
                point.open_file(world, ino);
            }
        }
        point
            .choices
            .sort_by_key(|choice| choice.groups.first().copied());
        for (place, choice) in point.choices.iter().enumerate() {
            if let What::Length { ino, .. } | What::Sector { ino, .. } = choice.what {
                point.files[ino].choices.push(place);
            }
        }
        point
    }

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

    /// Takes the files of ignored names as they are seen.
    fn settle_ignored(&mut self, world: &World) -> Vec<Ino> {
        let mut found = Vec::new();
        for (dir, seen) in self.dirs.iter_mut().zip(&world.volume.dirs) {
            let is_ignored = |entry: &&Entry| self.model.ignored.contains(&&*entry.0);
            for (name, ino) in seen.entries.iter().filter(is_ignored) {
                self.files[*ino] = FilePoint::new(&world.volume.inodes[*ino].cache);
                dir.changes.retain(|(_, change)| change.ino() != *ino);
                Change::Link(name.clone(), *ino).apply(&mut dir.durable);
                found.push(*ino);
            }
        }
        found
    }

    fn names_in_flight(&mut self, world: &World) {
        for flight in &world.flights {
            let (dir, change) = match &flight.effect {
                Effect::Open { dir, name, .. }
                    if flight.effect.is_change() && world.volume.lookup(*dir, name).is_none() =>
                {
                    self.files.push(FilePoint::new(&Arc::default()));
                    (
                        *dir,
                        Change::Link(name.as_str().into(), self.files.len() - 1),
                    )
                }
                Effect::Rename { dir, from, to } => match world.volume.lookup(*dir, from) {
                    Some(ino) => (
                        *dir,
                        Change::Rename(from.as_str().into(), to.as_str().into(), ino),
                    ),
                    None => continue,
                },
                Effect::Unlink { dir, name } => match world.volume.lookup(*dir, name) {
                    Some(ino) => (*dir, Change::Unlink(name.as_str().into(), ino)),
                    None => continue,
                },
                Effect::OpenDir { path, create: true } if world.volume.find_dir(path).is_none() => {
                    self.dirs.push(DirPoint {
                        path: path.as_path().into(),
                        durable: Vec::new(),
                        changes: Vec::new(),
                    });
                    self.choices.push(Choice {
                        what: What::Made {
                            dir: self.dirs.len() - 1,
                        },
                        groups: vec![flight.submitted],
                    });
                    continue;
                }
                _ => continue,
            };
            self.dirs[dir].changes.push((flight.submitted, change));
        }
    }

    fn open_dirs(&mut self, world: &World) {
        for (number, dir) in self.dirs.iter().enumerate() {
            let known = world.volume.dirs.get(number);
            if known.is_some_and(|known| !known.is_durable) {
                let what = What::Made { dir: number };
                self.choices.push(Choice {
                    what,
                    groups: vec![0],
                });
            }
            let groups = dir.changes.iter().map(|(seq, _)| *seq);
            if self.model.names == Names::Strict {
                self.choices
                    .extend(groups.enumerate().map(|(change, seq)| Choice {
                        what: What::Name {
                            dir: number,
                            change,
                        },
                        groups: vec![seq],
                    }));
            } else if !dir.changes.is_empty() {
                let what = What::Names { dir: number };
                self.choices.push(Choice {
                    what,
                    groups: groups.collect(),
                });
            }
        }
    }

    /// The files that have a name in some state.
    fn reachable(&self) -> Vec<Ino> {
        let durable = self
            .dirs
            .iter()
            .flat_map(|dir| dir.durable.iter().map(|(_, ino)| *ino));
        let changes = self
            .dirs
            .iter()
            .flat_map(|dir| dir.changes.iter().map(|one| one.1.ino()));
        let mut inos: Vec<_> = durable.chain(changes).collect();
        inos.sort_unstable();
        inos.dedup();
        inos
    }

    fn open_file(&mut self, world: &World, ino: Ino) {
        let Some(inode) = world.volume.inodes.get(ino) else {
            return;
        };
        let mut lengths = Lengths::new(inode.device.length());
        for (seq, length) in &inode.lengths {
            lengths.to(*seq, *length);
        }
        let mut versions: Vec<(usize, u64, Sector)> = Vec::new();
        versions.extend(
            inode
                .lost
                .iter()
                .map(|(index, sector)| (*index, 0, sector.clone())),
        );
        let pending = inode.pending.iter();
        versions.extend(pending.map(|one| (one.index, one.seq, one.sector.clone())));
        for flight in &world.flights {
            match &flight.effect {
                Effect::Write {
                    ino: target,
                    pieces,
                    offset,
                    length,
                    ..
                } if *target == ino && *length > 0 => {
                    lengths.at_least(flight.submitted, *offset + *length as u64);
                    for piece in pieces {
                        let latest = versions.iter().rev().find(|one| one.0 == piece.index);
                        let old = match latest {
                            Some((_, _, sector)) => sector.clone(),
                            None => inode.cache.sector(piece.index),
                        };
                        let new = piece.over(&old);
                        if !new.same(&old) {
                            versions.push((piece.index, flight.submitted, new));
                        }
                    }
                }
                Effect::Resize {
                    ino: target,
                    length,
                    may_cut,
                } if *target == ino => {
                    if *may_cut {
                        lengths.to(flight.submitted, *length);
                    } else {
                        lengths.at_least(flight.submitted, *length);
                    }
                }
                _ => {}
            }
        }
        self.add_length(ino, lengths);
        self.add_sectors(ino, &inode.device, versions);
    }

    fn add_length(&mut self, ino: Ino, lengths: Lengths) {
        if !lengths.values.is_empty() {
            let what = What::Length {
                ino,
                lengths: lengths.values,
            };
            self.choices.push(Choice {
                what,
                groups: lengths.groups,
            });
        }
    }

    fn add_sectors(&mut self, ino: Ino, device: &Content, mut found: Vec<(usize, u64, Sector)>) {
        found.sort_by_key(|(index, _, _)| *index);
        for run in found.chunk_by(|one, next| one.0 == next.0) {
            let index = run[0].0;
            let mut last = device.sector(index);
            let mut versions = Vec::with_capacity(run.len() + 1);
            let mut groups = Vec::with_capacity(run.len() + 1);
            for (_, group, sector) in run {
                if !sector.same(&last) {
                    last = sector.clone();
                    versions.push(last.clone());
                    groups.push(*group);
                }
            }
            let (Some(group), Some(extra)) = (groups.last().copied(), self.torn(ino, index)) else {
                if !versions.is_empty() {
                    let what = What::Sector {
                        ino,
                        index,
                        versions,
                    };
                    self.choices.push(Choice { what, groups });
                }
                continue;
            };
            versions.push(extra);
            groups.push(group);
            let what = What::Sector {
                ino,
                index,
                versions,
            };
            self.choices.push(Choice { what, groups });
        }
    }

    fn torn(&self, ino: Ino, index: usize) -> Option<Sector> {
        match self.model.torn {
            Torn::Never => None,
            Torn::Unreadable => Some(Sector::Bad),
            Torn::Garbage => {
                let mut random = Random::new(self.model.seed ^ mix((ino << 32 | index) as u64));
                let words: Vec<u8> = (0..SECTOR / 8)
                    .flat_map(|_| random.draw().to_le_bytes())
                    .collect();
                Some(Sector::new(&words))
            }
        }
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
    /// when `visit` says so.
    /// `salt` is mixed into the fingerprints, for callers to whom equal images may differ.
    pub fn states(
        &self,
        salt: u64,
        seen: &RefCell<Seen>,
        visit: &mut dyn FnMut(&Image, u64, &Digits) -> bool,
    ) -> bool {
        let mut fresh = |digits: &Digits| {
            let image = self.image(digits);
            let mark = image.fingerprint();
            !seen.borrow_mut().insert(mark ^ mix(salt)) || visit(&image, mark, digits)
        };
        if self.combinations() <= COMPLETE {
            return self.all(&mut fresh);
        }
        let plans = [
            Self::extremes as fn(&Self, &mut dyn FnMut(&Digits) -> bool) -> bool,
            Self::singles,
            Self::prefixes,
            Self::operations,
            Self::by_chance,
        ];
        plans.iter().all(|plan| plan(self, &mut fresh))
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

    /// Every subset of the latest eight operations, each done entirely or not at all.
    fn operations(&self, visit: &mut dyn FnMut(&Digits) -> bool) -> bool {
        let mut groups: Vec<u64> = self
            .choices
            .iter()
            .flat_map(|one| one.groups.clone())
            .collect();
        groups.sort_unstable();
        groups.dedup();
        let latest = groups.split_off(groups.len().saturating_sub(8));
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

impl FilePoint {
    fn new(device: &Arc<Content>) -> Self {
        let length = device.length();
        let visible = length.div_ceil(SECTOR as u64) as usize;
        let has_more = (visible..device.sectors_count()).any(|index| device.is_used(index));
        let settled = if has_more {
            let mut cut = (**device).clone();
            cut.cut(length);
            Arc::new(cut)
        } else {
            device.clone()
        };
        Self {
            raw: device.clone(),
            settled,
            choices: Vec::new(),
        }
    }
}

/// The lengths a file may have, after the flushed one.
struct Lengths {
    latest: u64,
    values: Vec<u64>,
    groups: Vec<u64>,
}

impl Lengths {
    fn new(flushed: u64) -> Self {
        Self {
            latest: flushed,
            values: Vec::new(),
            groups: Vec::new(),
        }
    }

    /// Also the length itself and, on the way up, one sector and half of the way.
    fn to(&mut self, group: u64, length: u64) {
        let before = self.latest;
        let sector = SECTOR as u64;
        let one = (before / sector + 1) * sector;
        let half = u64::midpoint(before, length) / sector * sector;
        let between = [one, half]
            .into_iter()
            .filter(|value| (before + 1..length).contains(value));
        for value in between.chain([length]) {
            if self.values.last() != Some(&value) && value != self.latest {
                self.values.push(value);
                self.groups.push(group);
            }
        }
        self.latest = length;
    }

    fn at_least(&mut self, group: u64, length: u64) {
        if length > self.latest {
            self.to(group, length);
        }
    }
}
