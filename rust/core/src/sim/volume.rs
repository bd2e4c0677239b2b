//! Files and directories with two faces: what a reader sees now, and what the device would still
//! have after a power cut.
//!
//! # Always true
//!
//! 1. A file's cache is its device's content with the lost and the pending sectors written over
//!    it in order, at the last length asked for.
//! 2. Pending changes are kept in the order in which they were carried out; only a flush that was
//!    submitted after a change makes it durable.
//! 3. An inode's number is never used again, so a late write finds its file and no other.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use super::content::{Content, Piece, SECTOR, Sector};

/// Number of a file.
pub type Ino = usize;

/// A name in a directory and the file it leads to.
pub type Entry = (Arc<str>, Ino);

/// A sector that was written and not yet flushed.
#[derive(Debug, Clone)]
pub struct Pending {
    /// When it was written.
    pub seq: u64,
    /// Which sector.
    pub index: usize,
    /// Its new content.
    pub sector: Sector,
}

/// A file.
#[derive(Debug, Clone, Default)]
pub struct Inode {
    /// What a power cut leaves for certain.
    pub device: Arc<Content>,
    /// What a reader sees.
    pub cache: Arc<Content>,
    /// Written and not yet flushed.
    pub pending: Vec<Pending>,
    /// Lengths not yet flushed: when, and the length.
    pub lengths: Vec<(u64, u64)>,
    /// Pages that a failed flush dropped: cached reads show them, no flush will write them.
    pub lost: Vec<(usize, Sector)>,
}

/// A change of names.
#[derive(Debug, Clone)]
pub enum Change {
    /// A new name.
    Link(Arc<str>, Ino),
    /// From the first name to the second.
    Rename(Arc<str>, Arc<str>, Ino),
    /// A name removed.
    Unlink(Arc<str>, Ino),
}

impl Change {
    /// Carries the change out, if what it starts from is there.
    pub fn apply(&self, entries: &mut Vec<Entry>) {
        match self {
            Self::Link(name, ino) => link(entries, name, *ino),
            Self::Rename(from, to, ino) => {
                unlink(entries, from, *ino);
                link(entries, to, *ino);
            }
            Self::Unlink(name, ino) => unlink(entries, name, *ino),
        }
    }

    /// The file it is about.
    pub fn ino(&self) -> Ino {
        match self {
            Self::Link(_, ino) | Self::Rename(_, _, ino) | Self::Unlink(_, ino) => *ino,
        }
    }
}

fn link(entries: &mut Vec<Entry>, name: &Arc<str>, ino: Ino) {
    match entries.iter_mut().find(|(known, _)| known == name) {
        Some(entry) => entry.1 = ino,
        None => entries.push((name.clone(), ino)),
    }
}

fn unlink(entries: &mut Vec<Entry>, name: &str, ino: Ino) {
    entries.retain(|(known, target)| &**known != name || *target != ino);
}

/// A directory.
#[derive(Debug, Clone)]
pub struct Directory {
    /// Where it is.
    pub path: Arc<Path>,
    /// Its own name survives a power cut.
    pub is_durable: bool,
    /// What a reader sees.
    pub entries: Vec<Entry>,
    /// What a power cut leaves for certain.
    pub durable: Vec<Entry>,
    /// Changes not yet flushed: when, and the change.
    pub pending: Vec<(u64, Change)>,
}

/// All files and directories of a disk.
#[derive(Debug, Clone, Default)]
pub struct Volume {
    /// By number.
    pub inodes: Vec<Inode>,
    /// In order of their making.
    pub dirs: Vec<Directory>,
}

impl Inode {
    fn write(&mut self, pieces: &[Piece], end: u64, seq: u64) {
        let before = self.cache.length();
        if before < end && !pieces.is_empty() {
            self.resize(end, seq);
        }
        for piece in pieces {
            let old = self.cache.sector(piece.index);
            let new = piece.over(&old);
            let is_lost = self.lost.iter().any(|(index, _)| *index == piece.index);
            if new.same(&old) && !is_lost {
                continue;
            }
            Arc::make_mut(&mut self.cache).set(piece.index, new.clone());
            self.lost.retain(|(index, _)| *index != piece.index);
            self.pending.push(Pending {
                seq,
                index: piece.index,
                sector: new,
            });
        }
    }

    fn resize(&mut self, length: u64, seq: u64) {
        let before = self.cache.length();
        if length == before {
            return;
        }
        if length > before {
            self.zero_beyond(before, length, seq);
        }
        Arc::make_mut(&mut self.cache).cut(length);
        self.lengths.push((seq, length));
    }

    /// A file that grows again over what was cut off reads zeros there.
    fn zero_beyond(&mut self, from: u64, to: u64, seq: u64) {
        let first = from.div_ceil(SECTOR as u64) as usize;
        let end = to.div_ceil(SECTOR as u64) as usize;
        let pending = self.pending.iter().map(|one| one.index);
        let used = (first..self.device.sectors_count()).filter(|index| self.device.is_used(*index));
        let mut beyond: Vec<_> = used
            .chain(pending)
            .filter(|index| (first..end).contains(index))
            .collect();
        beyond.sort_unstable();
        beyond.dedup();
        for index in beyond {
            self.pending.push(Pending {
                seq,
                index,
                sector: Sector::Zero,
            });
        }
    }

    /// Makes everything carried out up to `upto` durable.
    fn flush(&mut self, upto: u64) {
        if self.pending.is_empty() && self.lengths.is_empty() {
            return;
        }
        if self.lost.is_empty() && self.is_all_before(upto) {
            self.device = self.cache.clone();
            self.pending.clear();
            self.lengths.clear();
            return;
        }
        let lengths: Vec<_> = self
            .lengths
            .extract_if(.., |(seq, _)| *seq <= upto)
            .collect();
        let pending: Vec<_> = self.pending.extract_if(.., |one| one.seq <= upto).collect();
        let device = Arc::make_mut(&mut self.device);
        let mut pending = pending.into_iter().peekable();
        for (seq, length) in lengths {
            while let Some(one) = pending.next_if(|one| one.seq < seq) {
                device.set(one.index, one.sector);
            }
            if length < device.length() {
                device.cut(length);
            } else {
                device.set_length(length);
            }
        }
        for one in pending {
            device.set(one.index, one.sector);
        }
    }

    fn is_all_before(&self, upto: u64) -> bool {
        self.pending.last().is_none_or(|one| one.seq <= upto)
            && self.lengths.last().is_none_or(|(seq, _)| *seq <= upto)
    }

    /// Makes the sectors of one write durable, and the length that shows them.
    fn flush_range(&mut self, pieces: &[Piece], upto: u64) {
        let (Some(first), Some(last)) = (pieces.first(), pieces.last()) else {
            return;
        };
        let range = first.index..=last.index;
        if self.pending.iter().all(|one| range.contains(&one.index)) {
            return self.flush(upto);
        }
        let device = Arc::make_mut(&mut self.device);
        for one in self
            .pending
            .extract_if(.., |one| range.contains(&one.index))
        {
            device.set(one.index, one.sector);
        }
        if let Some((_, length)) = self.lengths.last() {
            device.set_length(*length);
            self.lengths.clear();
        }
    }

    /// A failed flush: what was to be written is only in memory from now on.
    fn lose(&mut self) {
        let lost = self.pending.drain(..).map(|one| (one.index, one.sector));
        self.lost.extend(lost);
    }

    fn drop_cache(&mut self) {
        if self.lost.is_empty() {
            return;
        }
        self.lost.clear();
        self.cache = Arc::new(self.uncached());
    }

    /// The content without the pages that only memory has.
    pub fn uncached(&self) -> Content {
        let mut content = (*self.device).clone();
        content.cut(self.cache.length());
        for one in &self.pending {
            content.set(one.index, one.sector.clone());
        }
        content.cut(self.cache.length());
        content
    }
}

impl Volume {
    /// Finds a directory, or makes it; whether it was made. The error is an errno.
    pub fn open_dir(&mut self, path: &Path, create: bool) -> Result<(usize, bool), i32> {
        if let Some(found) = self.find_dir(path) {
            return Ok((found, false));
        }
        if !create {
            return Err(libc::ENOENT);
        }
        let has_parent = match path.parent() {
            None => true,
            Some(parent) => parent.parent().is_none() || self.find_dir(parent).is_some(),
        };
        if !has_parent {
            return Err(libc::ENOENT);
        }
        self.dirs.push(Directory {
            path: path.into(),
            is_durable: false,
            entries: Vec::new(),
            durable: Vec::new(),
            pending: Vec::new(),
        });
        Ok((self.dirs.len() - 1, true))
    }

    /// A directory by path.
    pub fn find_dir(&self, path: &Path) -> Option<usize> {
        self.dirs.iter().position(|dir| *dir.path == *path)
    }

    /// How many names a file has.
    pub fn links(&self, ino: Ino) -> u64 {
        let names = self.dirs.iter().flat_map(|dir| &dir.entries);
        names.filter(|(_, its)| *its == ino).count() as u64
    }

    /// A file by name.
    pub fn lookup(&self, dir: usize, name: &str) -> Option<Ino> {
        let entries = &self.dirs[dir].entries;
        entries
            .iter()
            .find(|(known, _)| &**known == name)
            .map(|(_, ino)| *ino)
    }

    /// The path and the inode of every file that has a name.
    pub fn files(&self) -> impl Iterator<Item = (PathBuf, Ino)> + '_ {
        self.dirs.iter().flat_map(|dir| {
            let named = dir.entries.iter();
            named.map(|(name, ino)| (dir.path.join(&**name), *ino))
        })
    }

    /// The bytes of all files that have a name.
    pub fn used_bytes(&self) -> u64 {
        let entries = self.dirs.iter().flat_map(|dir| &dir.entries);
        entries
            .map(|(_, ino)| self.inodes[*ino].cache.length())
            .sum()
    }

    pub(super) fn create(&mut self, dir: usize, name: &str, seq: u64) -> Ino {
        self.inodes.push(Inode::default());
        let ino = self.inodes.len() - 1;
        self.change(dir, Change::Link(name.into(), ino), seq);
        ino
    }

    pub(super) fn rename(&mut self, dir: usize, from: &str, to: &str, seq: u64) -> Result<(), i32> {
        let ino = self.lookup(dir, from).ok_or(libc::ENOENT)?;
        self.change(dir, Change::Rename(from.into(), to.into(), ino), seq);
        Ok(())
    }

    pub(super) fn unlink(&mut self, dir: usize, name: &str, seq: u64) -> Result<(), i32> {
        let ino = self.lookup(dir, name).ok_or(libc::ENOENT)?;
        self.change(dir, Change::Unlink(name.into(), ino), seq);
        Ok(())
    }

    fn change(&mut self, dir: usize, change: Change, seq: u64) {
        let dir = &mut self.dirs[dir];
        change.apply(&mut dir.entries);
        dir.pending.push((seq, change));
    }

    pub(super) fn sync_dir(&mut self, dir: usize, upto: u64) {
        let dir = &mut self.dirs[dir];
        for (_, change) in dir.pending.extract_if(.., |(seq, _)| *seq <= upto) {
            change.apply(&mut dir.durable);
        }
    }

    pub(super) fn write(&mut self, ino: Ino, pieces: &[Piece], end: u64, seq: u64) {
        self.inodes[ino].write(pieces, end, seq);
    }

    pub(super) fn resize(&mut self, ino: Ino, length: u64, seq: u64) {
        self.inodes[ino].resize(length, seq);
    }

    pub(super) fn flush(&mut self, ino: Ino, upto: u64) {
        self.inodes[ino].flush(upto);
    }

    pub(super) fn flush_range(&mut self, ino: Ino, pieces: &[Piece], upto: u64) {
        self.inodes[ino].flush_range(pieces, upto);
    }

    pub(super) fn lose(&mut self, ino: Ino) {
        self.inodes[ino].lose();
    }

    pub(super) fn drop_cache(&mut self, ino: Ino) {
        self.inodes[ino].drop_cache();
    }

    /// Makes a sector unreadable, on the device and in the cache.
    pub fn spoil(&mut self, ino: Ino, index: usize) {
        let inode = &mut self.inodes[ino];
        Arc::make_mut(&mut inode.device).set(index, Sector::Bad);
        Arc::make_mut(&mut inode.cache).set(index, Sector::Bad);
    }
}
