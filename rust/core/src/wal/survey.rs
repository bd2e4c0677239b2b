//! What lies in a log directory: names and headers, before anything is judged.

use crate::{
    error::{Error, ErrorKind, Result},
    ids::SegmentId,
    io::{Blocking, Buffer, File},
};

use super::{
    frame,
    recycle::{MARK_BYTES, Mark, open_shared},
    scan::{CHUNK_BYTES, Source, is_unreadable, is_zero},
    segment::{BLOCK_BYTES_MIN, HeaderFault, Name, SEGMENT_HEADER_READ, SegmentHeader},
};

/// A file with the name of a segment.
#[derive(Debug, Clone)]
pub struct Found {
    /// The number in its name.
    pub id: SegmentId,
    /// Its length.
    pub length: u64,
    /// Its header and the checksum of it.
    pub header: Result<(SegmentHeader, u32), HeaderFault>,
}

impl Found {
    /// The header, if it has one.
    pub fn valid(&self) -> Option<&SegmentHeader> {
        self.header.as_ref().ok().map(|(header, _)| header)
    }
}

/// Everything in a log directory that recovery looks at.
#[derive(Debug, Default)]
pub struct Survey {
    /// Files named as segments, by number.
    pub found: Vec<Found>,
    /// The highest number in any name.
    pub highest: u64,
    /// Names of half-made and prepared files.
    pub leftovers: Vec<String>,
}

impl Survey {
    /// Lists the directory and reads all headers. Fails, with nothing touched, if any segment has
    /// a version or a feature that is not known.
    ///
    /// The directory, and the segments from the last valid one on, are synced before they are
    /// read: what a killed owner left in the cache must not be shown and then lost.
    pub fn of(io: &mut Blocking, dir: &File) -> Result<Self> {
        io.sync_dir(dir)?;
        let mut survey = Self::default();
        let mut ids = Vec::new();
        for name in io.list(dir)? {
            match Name::parse(&name) {
                Name::Segment(id) => ids.push(id),
                Name::Prepared(id) => {
                    survey.highest = survey.highest.max(id.0);
                    survey.leftovers.push(name);
                }
                Name::Spare(_) if planted!("spares_stay") => {}
                Name::Spare(_) | Name::Temporary => survey.leftovers.push(name),
                Name::Lock | Name::Cursors | Name::Other => {}
            }
        }
        ids.sort_unstable();
        survey.highest = ids.last().map_or(0, |id| id.0).max(survey.highest);
        if survey.highest == u64::MAX {
            return Err(Error::new(
                ErrorKind::Corrupt,
                "a file has the highest segment number there is; no log comes that far",
            )
            .with("segment", u64::MAX));
        }
        let mut trusted = false;
        for id in ids.into_iter().rev() {
            let found = examine(io, dir, id, trusted)?;
            if let Err(fault @ HeaderFault::Unknown { .. }) = &found.header {
                return Err(fault.clone().into_error(id));
            }
            trusted |= found.header.is_ok();
            survey.found.push(found);
        }
        survey.found.reverse();
        Ok(survey)
    }

    /// The file of a segment.
    pub fn get(&self, id: SegmentId) -> Option<&Found> {
        let at = self
            .found
            .binary_search_by_key(&id, |found| found.id)
            .ok()?;
        self.found.get(at)
    }
}

fn examine(io: &mut Blocking, dir: &File, id: SegmentId, trusted: bool) -> Result<Found> {
    let file = open_shared(io, dir, id)?;
    if !trusted {
        if !planted!("recovery_without_sync") {
            io.sync(&file)?;
        }
        if !planted!("recovery_from_cache") {
            io.drop_cache(&file)?;
        }
    }
    let length = io.length(&file)?;
    let buffer = Buffer::zeroed(SEGMENT_HEADER_READ);
    let header = match io.read(&file, 0, SEGMENT_HEADER_READ, buffer) {
        Ok((count, buffer)) => SegmentHeader::decode(&buffer[..count]),
        Err(error) if is_unreadable(&error) => {
            Err(HeaderFault::Damaged("the device cannot read it"))
        }
        Err(error) => return Err(error),
    };
    Ok(Found { id, length, header })
}

/// Whether a file without a valid header may hold anything, or may have: a byte behind the header
/// that is not zero or cannot be read, or a length that no prepared file has. An unreadable header
/// proves nothing: a power cut while it is written can leave it so, and no frame is there before
/// it is durable.
///
/// A file that is marked as used again holds bytes of an earlier segment: there, a frame of the
/// segment it was to become is what counts. While it was made ready the segment before it was being
/// written, by the opening that marked it: without that one, or with another opening's, it counts
/// as used.
pub fn has_trace(io: &mut Blocking, dir: &File, survey: &Survey, found: &Found) -> Result<bool> {
    if found.length < SEGMENT_HEADER_READ as u64 {
        return Ok(true);
    }
    let file = open_shared(io, dir, found.id)?;
    let mut source = Source::new(file, found.length, CHUNK_BYTES);
    let mut at = u64::from(BLOCK_BYTES_MIN);
    while at < source.length() {
        match source.at(io, at, 1)? {
            Ok(bytes) if is_zero(bytes) => at += bytes.len() as u64,
            Ok(_) => {
                let before = survey.get(SegmentId(found.id.0.saturating_sub(1)));
                let due = before
                    .and_then(Found::valid)
                    .map(|active| Mark::new(active, found.id));
                let is_its = |mark: &Mark| due == Some(*mark);
                return match mark(io, &mut source)?.filter(is_its) {
                    Some(_) if planted!("mark_hides_frames") => Ok(false),
                    Some(mark) => has_frame(io, &mut source, &mark),
                    None => Ok(true),
                };
            }
            Err(_) => return Ok(true),
        }
    }
    Ok(false)
}

/// The mark in the last sector, if there is one.
fn mark(io: &mut Blocking, source: &mut Source) -> Result<Option<Mark>> {
    let at = source.length().saturating_sub(MARK_BYTES as u64);
    let sector = source.at(io, at, MARK_BYTES)?;
    Ok(sector.ok().and_then(Mark::decode))
}

/// Whether a frame of the marked segment, or what cannot be read, lies behind the header.
fn has_frame(io: &mut Blocking, source: &mut Source, mark: &Mark) -> Result<bool> {
    let seed = mark.seed();
    let sector = u64::from(BLOCK_BYTES_MIN);
    let mut at = sector;
    while at < source.length() {
        match source.at(io, at, sector as usize)? {
            Ok(bytes) if !frame::is_header(bytes, seed.at(at)) => at += sector,
            Ok(_) | Err(_) => return Ok(true),
        }
    }
    Ok(false)
}
