//! The bytes of a file as a disk keeps them: sectors that are whole, zero, or unreadable.
//!
//! Sectors are shared between all the states they appear in, so that a crash state costs no more
//! than what makes it different.
//!
//! # Always true
//!
//! 1. `sum` is the sum of the places of all sectors, so a fingerprint costs nothing to read.
//! 2. A sector of zeros is always `Zero`, so equal contents have equal sectors.

use std::sync::Arc;

use super::random::{fingerprint, mix};

/// The unit in which a disk writes entirely or not at all, in bytes.
pub const SECTOR: usize = 512;

/// One sector.
#[derive(Debug, Clone, Default)]
pub enum Sector {
    /// Zeros, or never written.
    #[default]
    Zero,
    /// These bytes.
    Bytes(Arc<Block>),
    /// Reading it is an error; writing heals it.
    Bad,
}

/// A sector's bytes and their fingerprint.
#[derive(Debug)]
pub struct Block {
    mark: u64,
    bytes: [u8; SECTOR],
}

impl Sector {
    /// A sector with these bytes; `bytes` is at most a sector, the rest is zero.
    pub fn new(bytes: &[u8]) -> Self {
        if is_zero(bytes) {
            return Self::Zero;
        }
        let mut whole = [0; SECTOR];
        whole[..bytes.len()].copy_from_slice(bytes);
        let mark = fingerprint(&whole);
        Self::Bytes(Arc::new(Block { mark, bytes: whole }))
    }

    /// The same sector with `bytes` written at `at`.
    #[must_use]
    pub fn patched(&self, at: usize, bytes: &[u8]) -> Self {
        let mut whole = [0; SECTOR];
        if let Self::Bytes(block) = self {
            whole = block.bytes;
        }
        whole[at..at + bytes.len()].copy_from_slice(bytes);
        Self::new(&whole)
    }

    fn mark(&self) -> u64 {
        match self {
            Self::Zero => 0,
            Self::Bad => 1,
            Self::Bytes(block) => block.mark,
        }
    }

    /// Whether both read the same.
    pub fn same(&self, other: &Self) -> bool {
        self.mark() == other.mark()
    }
}

fn is_zero(bytes: &[u8]) -> bool {
    let (words, rest) = bytes.as_chunks::<8>();
    words.iter().all(|word| u64::from_le_bytes(*word) == 0) && rest.iter().all(|byte| *byte == 0)
}

/// A file's length and sectors.
#[derive(Debug, Clone, Default)]
pub struct Content {
    length: u64,
    sectors: Vec<Sector>,
    sum: u64,
}

fn place(index: usize, sector: &Sector) -> u64 {
    match sector.mark() {
        0 => 0,
        mark => mix(mark ^ mix(index as u64 + 1)),
    }
}

impl Content {
    /// In bytes.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// Sets the length alone. Sectors beyond it stay, unseen, until [`cut`](Self::cut).
    pub fn set_length(&mut self, length: u64) {
        self.length = length;
    }

    /// The sector at `index`; zero where none was written.
    pub fn sector(&self, index: usize) -> Sector {
        self.sectors.get(index).cloned().unwrap_or_default()
    }

    /// Whether the sector at `index` is not zero.
    pub fn is_used(&self, index: usize) -> bool {
        !matches!(self.sectors.get(index), None | Some(Sector::Zero))
    }

    /// Number of sectors up to the last one written.
    pub fn sectors_count(&self) -> usize {
        self.sectors.len()
    }

    /// Replaces the sector at `index`.
    pub fn set(&mut self, index: usize, sector: Sector) {
        if index >= self.sectors.len() {
            if matches!(sector, Sector::Zero) {
                return;
            }
            self.sectors.resize(index + 1, Sector::Zero);
        }
        let old = std::mem::replace(&mut self.sectors[index], sector);
        self.sum = self
            .sum
            .wrapping_sub(place(index, &old))
            .wrapping_add(place(index, &self.sectors[index]));
    }

    /// Sets the length and forgets everything beyond it.
    pub fn cut(&mut self, length: u64) {
        self.length = length;
        let whole = (length / SECTOR as u64) as usize;
        let rest = (length % SECTOR as u64) as usize;
        if rest > 0
            && let Sector::Bytes(block) = self.sector(whole)
        {
            self.set(whole, Sector::new(&block.bytes[..rest]));
        }
        for index in whole + usize::from(rest > 0)..self.sectors.len() {
            self.set(index, Sector::Zero);
        }
    }

    /// Tells this content from others of another length or other bytes. Only meaningful after
    /// [`cut`](Self::cut).
    pub fn fingerprint(&self) -> u64 {
        mix(self.sum ^ mix(self.length + 1))
    }

    /// Fills `out` from `offset` up to the end of the file; the number of bytes, or the index of
    /// the sector that cannot be read.
    pub fn read(&self, offset: u64, out: &mut [u8]) -> Result<usize, usize> {
        let count = self.length.saturating_sub(offset).min(out.len() as u64) as usize;
        let mut done = 0;
        while done < count {
            let at = offset + done as u64;
            let index = (at / SECTOR as u64) as usize;
            let from = (at % SECTOR as u64) as usize;
            let size = (SECTOR - from).min(count - done);
            let target = &mut out[done..done + size];
            match self.sectors.get(index) {
                None | Some(Sector::Zero) => target.fill(0),
                Some(Sector::Bytes(block)) => {
                    target.copy_from_slice(&block.bytes[from..from + size]);
                }
                Some(Sector::Bad) => return Err(index),
            }
            done += size;
        }
        Ok(count)
    }
}

/// What one write does to one sector.
#[derive(Debug, Clone)]
pub struct Piece {
    /// Which sector.
    pub index: usize,
    at: usize,
    bytes: Option<Box<[u8]>>,
    whole: Sector,
}

impl Piece {
    /// Splits a write of `bytes` at `offset` at the sectors' borders.
    pub fn split(offset: u64, bytes: &[u8]) -> Vec<Self> {
        let mut pieces = Vec::with_capacity(bytes.len() / SECTOR + 2);
        let mut done = 0;
        while done < bytes.len() {
            let here = offset + done as u64;
            let at = (here % SECTOR as u64) as usize;
            let size = (SECTOR - at).min(bytes.len() - done);
            let part = &bytes[done..done + size];
            let is_whole = size == SECTOR;
            pieces.push(Self {
                index: (here / SECTOR as u64) as usize,
                at,
                bytes: (!is_whole).then(|| part.into()),
                whole: if is_whole {
                    Sector::new(part)
                } else {
                    Sector::Zero
                },
            });
            done += size;
        }
        pieces
    }

    /// Tells what is written from other bytes.
    pub fn mark(&self) -> u64 {
        match &self.bytes {
            Some(bytes) => fingerprint(bytes),
            None => self.whole.mark(),
        }
    }

    /// The sector after this piece was written over `old`.
    pub fn over(&self, old: &Sector) -> Sector {
        match &self.bytes {
            Some(bytes) => old.patched(self.at, bytes),
            None => self.whole.clone(),
        }
    }
}
