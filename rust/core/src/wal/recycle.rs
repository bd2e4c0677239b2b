//! Files of dropped segments, kept to become segments again.
//!
//! ```text
//! N.log --truncated, no reader wants it--> N.spare --next segment prepared--> M.log
//!         rename, directory synced                   header wiped, mark written, synced, renamed
//! ```
//!
//! Blocks that were written before are the fastest there are: no space to find, no extent to
//! convert, no zeros to write ahead. What they hold is of an earlier life, and no checksum of it
//! holds in the new one: the segment's number is in the seed of every frame.
//!
//! # Always true
//!
//! 1. A file is changed only under the name of a spare, and only after that name is durable.
//! 2. Who reads a segment's file holds it shared, from before the name was last seen in its place;
//!    who wipes it holds it alone. So nothing changes under a reader, in whatever process.
//! 3. Only files of this very opening are kept: a dead owner's writes may still be landing in
//!    others.
//! 4. Spares are bounded in number, and gone after an orderly close or the next open.

use crate::{
    codec::{crc32c, get_u32, get_u64, put},
    error::{Error, ErrorKind, Result},
    ids::{Incarnation, SegmentId, StoreId},
    io::{Access, Blocking, Buffer, File},
    sync::{Mutex, lock},
};

use super::{
    frame::Seed,
    recovery::SegmentSummary,
    segment::{SegmentHeader, segment_name, spare_name},
};

/// Spares kept at most. A consumer that truncates behind its reading drops one segment for each
/// that is filled; the second one covers a truncation that comes late. More would only be space
/// that somebody believes to be free.
const SPARES_MAX: usize = 2;

/// A file shorter than this share of a segment (3 / 4) is not worth keeping: most of it would have
/// to be made anew.
const WORTH: (u64, u64) = (3, 4);

/// A dropped segment's file under its spare name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Spare {
    /// The segment it was.
    pub(crate) was: SegmentId,
    /// Bytes of it that were written; what lies behind was cut off.
    pub(crate) bytes: u64,
}

impl Spare {
    pub(crate) fn name(&self) -> String {
        spare_name(self.was)
    }
}

/// The spares of an open log.
#[derive(Debug)]
pub(crate) struct Spares {
    /// The opening whose files may be kept, and the length that makes them worth it; `None` where
    /// nothing is.
    wanted: Option<(Incarnation, u64)>,
    kept: Mutex<Vec<Spare>>,
}

impl Spares {
    /// Keeps files of `incarnation` for segments of `bytes`.
    pub(crate) fn new(incarnation: Incarnation, bytes: u64) -> Self {
        Self {
            wanted: Some((incarnation, bytes)),
            kept: Mutex::default(),
        }
    }

    /// Keeps nothing.
    pub(crate) fn none() -> Self {
        Self {
            wanted: None,
            kept: Mutex::default(),
        }
    }

    /// Removes the file of a dropped segment, or keeps it; durable on return. One caller at a time.
    pub(crate) fn dispose(
        &self,
        io: &mut Blocking<'_>,
        dir: &File,
        segment: &SegmentSummary,
    ) -> Result<()> {
        let spare = self.worth_keeping(segment);
        let moved = match spare {
            Some(spare) => io.rename(dir, &segment.name(), &spare.name()),
            None => io.unlink(dir, &segment.name()),
        };
        let spare = match moved {
            Err(error) if error.errno() == Some(libc::ENOENT) => None,
            other => other.map(|()| spare)?,
        };
        io.sync_dir(dir)?;
        lock(&self.kept).extend(spare);
        Ok(())
    }

    fn worth_keeping(&self, segment: &SegmentSummary) -> Option<Spare> {
        let (incarnation, wanted) = self.wanted?;
        let end = segment.end?;
        let is_ours = end.incarnation == incarnation || planted!("spare_of_an_earlier_opening");
        let is_long = end.offset * WORTH.1 >= wanted * WORTH.0 && end.offset <= wanted;
        let has_room = lock(&self.kept).len() < SPARES_MAX;
        (is_ours && is_long && has_room).then_some(Spare {
            was: segment.id(),
            bytes: end.offset,
        })
    }

    /// A spare, to be made a segment or removed.
    pub(crate) fn take(&self) -> Option<Spare> {
        let spare = lock(&self.kept).pop();
        spare.filter(|_| !planted!("spare_never_used"))
    }
}

/// The last sector of a file that is used again. It tells a file whose header was not written yet,
/// which holds what an earlier segment left, from one that has lost its header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    /// The log.
    pub store: StoreId,
    /// The segment that the file is to become.
    pub segment: SegmentId,
    /// The opening that prepared it and will write its frames.
    pub incarnation: Incarnation,
}

const MAGIC: [u8; 8] = *b"MILLREUS";

/// Bytes of a mark: one sector.
pub const MARK_BYTES: usize = 512;

/// Where each field of a mark lies. Each offset is the end of the field before it.
mod at {
    pub const MAGIC: usize = 0;
    pub const STORE: usize = MAGIC + 8;
    pub const SEGMENT: usize = STORE + 16;
    pub const INCARNATION: usize = SEGMENT + 8;
    pub const RESERVED: usize = INCARNATION + 8;
    pub const CRC: usize = super::MARK_BYTES - 4;
    const _: () = assert!(RESERVED <= CRC);
}

impl Mark {
    /// For the segment with this number that will continue `active`.
    pub fn new(active: &SegmentHeader, segment: SegmentId) -> Self {
        Self {
            store: active.store,
            segment,
            incarnation: active.incarnation,
        }
    }

    /// The last block of a file.
    pub fn encode(&self, block_bytes: usize) -> Buffer {
        let mut block = Buffer::zeroed(block_bytes);
        let sector = &mut block[block_bytes - MARK_BYTES..];
        put(sector, at::MAGIC, &MAGIC);
        put(sector, at::STORE, &self.store.0);
        put(sector, at::SEGMENT, &self.segment.0.to_le_bytes());
        put(sector, at::INCARNATION, &self.incarnation.0.to_le_bytes());
        let crc = crc32c(0, &sector[..at::CRC]);
        put(sector, at::CRC, &crc.to_le_bytes());
        block
    }

    /// Reads a mark from the last sector of a file.
    pub fn decode(sector: &[u8]) -> Option<Self> {
        let sector = sector.get(..MARK_BYTES)?;
        let whole = sector[..at::STORE] == MAGIC
            && get_u32(sector, at::CRC) == crc32c(0, &sector[..at::CRC]);
        let mut store = [0; 16];
        store.copy_from_slice(&sector[at::STORE..at::SEGMENT]);
        whole.then(|| Self {
            store: StoreId(store),
            segment: SegmentId(get_u64(sector, at::SEGMENT)),
            incarnation: Incarnation(get_u64(sector, at::INCARNATION)),
        })
    }

    /// The seed of the frames that the file holds once it is in use.
    pub fn seed(&self) -> Seed {
        Seed::of(self.store, self.segment, self.incarnation)
    }
}

/// Opens the file of a segment to read it, shared. A segment that an owner has dropped meanwhile
/// is not found, like one that was removed.
pub(super) fn open_shared(io: &mut Blocking, dir: &File, id: SegmentId) -> Result<File> {
    let name = segment_name(id);
    let file = io.open(dir, &name, Access::READ)?;
    match io.share(&file) {
        Ok(()) => {}
        // Held alone: it is being wiped, and its name is gone.
        Err(error) if error.kind() == ErrorKind::Locked => {
            return Err(Error::from_errno(libc::ENOENT, "open").with_text("name", name));
        }
        // Where there are no locks, no log can be open for writing.
        Err(error) if error.kind() == ErrorKind::Unsupported => {}
        Err(error) => return Err(error),
    }
    // Names are never used again: if this one is still there, it is this file's, and whoever wants
    // to wipe it later finds it shared.
    io.open(dir, &name, Access::READ)?;
    Ok(file)
}
