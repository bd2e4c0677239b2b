//! Named cursors: where consumers of the log are, durable.
//!
//! One file with two slots. A commit writes the whole set, one generation newer, into the slot
//! that does not hold the newest, with one synchronous write; a crash leaves at least one of them
//! whole. Names are data inside the image, never names of files.
//!
//! ```text
//! slot   0                         SLOT_BYTES
//!        | image, even generations | image, odd generations |
//! image  magic u32, version u32, generation u64, count u32, bytes u32, entries..., crc u32
//! entry  position u64, holds u8, name length u8, name
//! ```
//!
//! # Always true
//!
//! 1. A position that was answered is found after any crash, or a later one is.
//! 2. No position lies above what was durable when it was committed.

use std::collections::BTreeMap;

use crate::{
    codec::{align_up, crc32c, get_u32, get_u64, put},
    error::{Error, ErrorKind, Result},
    ids::Lsn,
    io::{Access, BLOCK, Blocking, Buffer, File},
};

use super::{scan::is_unreadable, segment::CURSORS_NAME};

/// Most cursors of one log.
pub const CURSORS_MAX: usize = 1024;
/// Longest name, in bytes of UTF-8.
pub const CURSOR_NAME_BYTES_MAX: usize = 255;

const MAGIC: u32 = u32::from_le_bytes(*b"MRCU");
const VERSION: u32 = 1;
const HEAD_BYTES: usize = 24;
const ENTRY_HEAD_BYTES: usize = 10;
const IMAGE_BYTES_MAX: usize =
    HEAD_BYTES + CURSORS_MAX * (ENTRY_HEAD_BYTES + CURSOR_NAME_BYTES_MAX) + 4;
/// Distance of the two slots.
const SLOT_BYTES: u64 = align_up(IMAGE_BYTES_MAX as u64, BLOCK as u64);

/// One named position.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    /// Everything up to here was consumed; zero at the beginning.
    pub position: Lsn,
    /// Truncation keeps what lies above.
    pub holds_truncation: bool,
}

/// All cursors of a log, as they are on disk.
#[derive(Debug, Clone, Default)]
pub(crate) struct Cursors {
    file: Option<File>,
    generation: u64,
    marks: BTreeMap<String, Mark>,
}

impl Cursors {
    /// Reads the newest whole image. A log without the file has no cursors.
    pub(crate) fn load(io: &mut Blocking<'_>, dir: &File, write: bool) -> Result<Self> {
        let access = if write { Access::WRITE } else { Access::READ };
        let file = match io.open(dir, CURSORS_NAME, access) {
            Ok(file) => file,
            Err(error) if error.errno() == Some(libc::ENOENT) => return Ok(Self::default()),
            Err(error) => return Err(error),
        };
        // An image that was read before it was durable could go back after a crash; nor may it come
        // from pages that a failed sync left in the cache.
        if write {
            io.sync(&file)?;
            io.drop_cache(&file)?;
        }
        let newest = [0, SLOT_BYTES]
            .into_iter()
            .filter_map(|offset| read_image(io, &file, offset).transpose())
            .collect::<Result<Vec<_>>>()?
            .into_iter()
            .max_by_key(|(generation, _)| *generation);
        let Some((generation, marks)) = newest else {
            return Err(Error::new(
                ErrorKind::Corrupt,
                "both images of the cursor file are damaged; remove it to start all cursors anew",
            )
            .with_text("file", CURSORS_NAME));
        };
        Ok(Self {
            file: Some(file),
            generation,
            marks,
        })
    }

    pub(crate) fn get(&self, name: &str) -> Option<Mark> {
        self.marks.get(name).copied()
    }

    /// The lowest LSN that some cursor still needs.
    pub(crate) fn held_from(&self) -> Option<Lsn> {
        self.marks
            .values()
            .filter(|mark| mark.holds_truncation)
            .map(|mark| mark.position.plus(1))
            .min()
    }

    /// Sets one cursor and makes the set durable. On failure the set in memory is unchanged.
    pub(crate) fn set(
        &mut self,
        io: &mut Blocking<'_>,
        dir: &File,
        name: &str,
        mark: Mark,
    ) -> Result<()> {
        let mut marks = self.marks.clone();
        marks.insert(name.to_owned(), mark);
        if marks.len() > CURSORS_MAX {
            return Err(Error::new(
                ErrorKind::TooLarge,
                format!("a log has at most {CURSORS_MAX} cursors"),
            ));
        }
        self.store(io, dir, marks)
    }

    /// Moves cursors that stand above `last`, the last record there is, back to it. Only a repair
    /// leaves such: it drops records, and their LSNs are given out again.
    pub(crate) fn hold_at(&mut self, io: &mut Blocking<'_>, dir: &File, last: Lsn) -> Result<()> {
        if self.marks.values().all(|mark| mark.position <= last) {
            return Ok(());
        }
        let mut marks = self.marks.clone();
        for mark in marks.values_mut() {
            mark.position = mark.position.min(last);
        }
        self.store(io, dir, marks)
    }

    fn store(
        &mut self,
        io: &mut Blocking<'_>,
        dir: &File,
        marks: BTreeMap<String, Mark>,
    ) -> Result<()> {
        let generation = self.generation + 1;
        let image = encode(generation, &marks);
        match &self.file {
            Some(file) => {
                let slot = if planted!("cursor_slot_fixed") {
                    0
                } else {
                    generation % 2
                };
                let offset = slot * SLOT_BYTES;
                let length = image.len();
                io.write(file, offset, length, image, true)?;
            }
            None => self.file = Some(create(io, dir, generation, image)?),
        }
        self.generation = generation;
        self.marks = marks;
        Ok(())
    }
}

/// Refuses names that cannot be stored.
pub(crate) fn check_name(name: &str) -> Result<()> {
    if name.is_empty() || name.len() > CURSOR_NAME_BYTES_MAX {
        return Err(Error::invalid(format!(
            "a cursor's name has 1 to {CURSOR_NAME_BYTES_MAX} bytes of UTF-8"
        ))
        .with("bytes", name.len() as i64));
    }
    Ok(())
}

/// The first image appears whole or not at all.
fn create(io: &mut Blocking<'_>, dir: &File, generation: u64, image: Buffer) -> Result<File> {
    let temporary = format!("{CURSORS_NAME}.tmp");
    let access = Access {
        open: crate::io::Open::Any,
        ..Access::CREATE
    };
    let file = io.open(dir, &temporary, access)?;
    io.truncate(&file, 2 * SLOT_BYTES)?;
    let length = image.len();
    let offset = (generation % 2) * SLOT_BYTES;
    io.write(&file, offset, length, image, true)?;
    io.sync(&file)?;
    io.rename(dir, &temporary, CURSORS_NAME)?;
    io.sync_dir(dir)?;
    Ok(file)
}

fn encode(generation: u64, marks: &BTreeMap<String, Mark>) -> Buffer {
    let names: usize = marks.keys().map(|name| ENTRY_HEAD_BYTES + name.len()).sum();
    let bytes = HEAD_BYTES + names + 4;
    let mut image = Buffer::zeroed(align_up(bytes as u64, BLOCK as u64) as usize);
    put(&mut image, 0, &MAGIC.to_le_bytes());
    put(&mut image, 4, &VERSION.to_le_bytes());
    put(&mut image, 8, &generation.to_le_bytes());
    put(&mut image, 16, &(marks.len() as u32).to_le_bytes());
    put(&mut image, 20, &(bytes as u32).to_le_bytes());
    let mut at = HEAD_BYTES;
    for (name, mark) in marks {
        put(&mut image, at, &mark.position.0.to_le_bytes());
        put(
            &mut image,
            at + 8,
            &[u8::from(mark.holds_truncation), name.len() as u8],
        );
        put(&mut image, at + ENTRY_HEAD_BYTES, name.as_bytes());
        at += ENTRY_HEAD_BYTES + name.len();
    }
    let crc = crc32c(0, &image[..at]);
    put(&mut image, at, &crc.to_le_bytes());
    image
}

type Image = (u64, BTreeMap<String, Mark>);

fn read_image(io: &mut Blocking<'_>, file: &File, offset: u64) -> Result<Option<Image>> {
    let length = SLOT_BYTES as usize;
    let (count, image) = match io.read(file, offset, length, Buffer::zeroed(length)) {
        Ok(read) => read,
        // A power cut may leave a slot that was being written unreadable; the other one counts.
        Err(error) if is_unreadable(&error) => return Ok(None),
        Err(error) => return Err(error),
    };
    let image = &image[..count];
    if get_u32(image, 0) == MAGIC && get_u32(image, 4) != VERSION {
        return Err(Error::new(
            ErrorKind::Format,
            format!(
                "the cursor file has version {}; this build knows version {VERSION}",
                get_u32(image, 4)
            ),
        ));
    }
    Ok(decode(image))
}

fn decode(image: &[u8]) -> Option<Image> {
    let bytes = get_u32(image, 20) as usize;
    let sized = bytes <= image.len() && bytes >= HEAD_BYTES + 4;
    if get_u32(image, 0) != MAGIC || !sized {
        return None;
    }
    if crc32c(0, &image[..bytes - 4]) != get_u32(image, bytes - 4) {
        return None;
    }
    let mut marks = BTreeMap::new();
    let mut at = HEAD_BYTES;
    for _ in 0..get_u32(image, 16) {
        let length = *image.get(at + 9)? as usize;
        let start = at + ENTRY_HEAD_BYTES;
        let name = std::str::from_utf8(image.get(start..start + length)?).ok()?;
        let mark = Mark {
            position: Lsn(get_u64(image, at)),
            holds_truncation: image[at + 8] != 0,
        };
        marks.insert(name.to_owned(), mark);
        at = start + length;
    }
    Some((get_u64(image, 8), marks))
}
