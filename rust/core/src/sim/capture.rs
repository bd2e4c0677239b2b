//! What a power cut leaves open, read off the world at one event.

use std::sync::Arc;

use super::{
    content::{Content, SECTOR, Sector},
    crash::{Choice, CrashPoint, DirPoint, FilePoint, Model, Names, Torn, What},
    flight::Effect,
    random::{Random, mix},
    volume::{Change, Entry, Ino},
    world::World,
};

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
