//! Makes a damaged log usable again: it ends at the last record before the damage.
//!
//! ```text
//! copy aside, durable --> new segment says where the log ends, durable --> remove what it ends before
//! ```
//!
//! # Always true
//!
//! 1. Nothing is removed or cut before a copy of it under another name is durable.
//! 2. Nothing is ever appended to an old segment. A new one states where the last good one ended,
//!    as after any crash.
//! 3. Stopped at any point, it leaves a log that can be repaired again, or is repaired.

use std::{path::Path, time::Duration};

use crate::{
    error::{Error, ErrorKind, Result},
    ids::{Lsn, SegmentId},
    io::{Access, Blocking, Buffer, Disk, File, Wanted},
};

use super::{
    lock::{self, Census},
    recovery::{Damage, Recovered, RecoveryMode, SegmentSummary, recover},
    scan::{CHUNK_BYTES, is_unreadable},
    segment::{End, Name, SegmentHeader, prepared_name, segment_name},
};

/// What a repair did.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Repair {
    /// The damage that was there.
    pub damage: Vec<Damage>,
    /// Copies that were made, under their new names.
    pub copies: Vec<String>,
    /// LSN of the oldest record left.
    pub first: Lsn,
    /// The LSN that is given out next: records from it on were dropped and are in the copies.
    pub next: Lsn,
    /// Records left.
    pub records: u64,
    /// Whole records that were dropped because they lie behind the damage.
    pub dropped: u64,
}

/// Repairs the log in `dir`, whose lock the caller holds. Without damage it changes nothing: a torn
/// tail is the business of the next opening.
pub fn repair(io: &mut Blocking, dir: &File) -> Result<Repair> {
    let found = recover(io, dir, RecoveryMode::Salvage)?;
    let whole: u64 = found.segments.iter().map(records).sum();
    let mut report = Repair {
        damage: found.report.damage.clone(),
        copies: Vec::new(),
        first: found.first,
        next: found.next,
        records: whole,
        dropped: 0,
    };
    if report.damage.is_empty() {
        return Ok(report);
    }
    let kept = first_run(&found.segments);
    let Some((last, end)) = kept.last().and_then(|last| Some((last, last.end?))) else {
        return Err(Error::new(
            ErrorKind::Corrupt,
            "no whole record is left; nothing was changed",
        ));
    };
    io.to_the_end();
    report.first = kept[0].base();
    report.next = end.next;
    report.records = kept.iter().map(records).sum();
    report.dropped = whole - report.records;
    let condemned = condemned(io, dir, &found, kept)?;
    let is_hurt = found
        .report
        .damage
        .iter()
        .any(|damage| damage.segment == end.segment);
    for id in condemned.iter().chain(is_hurt.then_some(&end.segment)) {
        report.copies.push(copy_aside(io, dir, *id)?);
    }
    io.sync_dir(dir)?;
    begin_anew(io, dir, &found, &last.header, end)?;
    for id in condemned {
        io.unlink(dir, &segment_name(id))?;
        io.sync_dir(dir)?;
    }
    let file = io.open(dir, &segment_name(end.segment), Access::WRITE)?;
    io.truncate(&file, end.offset)?;
    io.sync(&file)?;
    Ok(report)
}

/// Repairs the log in the directory `path`, holding its lock meanwhile. Ends early only if it is no
/// longer `wanted` before anything was changed.
pub fn repair_path(
    disk: &dyn Disk,
    path: &Path,
    lock_timeout: Duration,
    census: &dyn Census,
    wanted: &Wanted,
) -> Result<Repair> {
    let mut backend = disk.backend()?;
    let mut io = Blocking::new(&mut *backend).while_wanted(wanted);
    let repaired = locked(&mut io, path, lock_timeout, census);
    drop(io);
    backend.let_go();
    backend.shutdown(None);
    repaired
}

fn locked(
    io: &mut Blocking,
    path: &Path,
    lock_timeout: Duration,
    census: &dyn Census,
) -> Result<Repair> {
    let dir = io.open_dir(path, false)?;
    let held = lock::acquire(io, &dir, lock_timeout, census)?;
    let repaired = io.hold(&held).and_then(|()| repair(io, &dir));
    io.to_the_end();
    io.unlock(&held)?;
    repaired
}

/// The runs that can stay: whole segments, one after the other, and of the one before the first gap
/// its beginning. A run that begins inside its segment has lost what its chain hangs on.
fn first_run(runs: &[SegmentSummary]) -> &[SegmentSummary] {
    let whole = |run: &SegmentSummary| run.offset == u64::from(run.header.limits.block_bytes);
    let start = runs.iter().position(whole).unwrap_or(runs.len());
    let runs = &runs[start..];
    let joins = |pair: &[SegmentSummary]| {
        whole(&pair[1]) && pair[0].end.is_some_and(|end| end.next == pair[1].base())
    };
    let gap = runs.windows(2).position(|pair| !joins(pair));
    &runs[..gap.map_or(runs.len(), |at| at + 1)]
}

/// Segments that cannot stay, oldest first: what lies before or behind the runs that are kept, and
/// what is damaged and not among them.
fn condemned(
    io: &mut Blocking,
    dir: &File,
    found: &Recovered,
    kept: &[SegmentSummary],
) -> Result<Vec<SegmentId>> {
    let is_kept = |id| kept.iter().any(|run| run.id() == id);
    let is_between = |id| kept[0].id() < id && id < kept[kept.len() - 1].id();
    let is_damaged = |id| {
        found
            .report
            .damage
            .iter()
            .any(|damage| damage.segment == id)
    };
    let mut condemned = Vec::new();
    for name in io.list(dir)? {
        if let Name::Segment(id) = Name::parse(&name)
            && !is_kept(id)
            && (!is_between(id) || is_damaged(id))
        {
            condemned.push(id);
        }
    }
    condemned.sort_unstable();
    Ok(condemned)
}

/// Copies a segment to a name that nothing else uses; durable on return, but for its name.
fn copy_aside(io: &mut Blocking, dir: &File, id: SegmentId) -> Result<String> {
    let name = segment_name(id);
    let source = io.open(dir, &name, Access::READ)?;
    let (copy, copy_name) = create_aside(io, dir, &name)?;
    let length = io.length(&source)?;
    let mut buffer = Buffer::zeroed(CHUNK_BYTES);
    let mut at = 0;
    while at < length {
        let (count, read) = match io.read(&source, at, CHUNK_BYTES, buffer) {
            Ok(done) => done,
            Err(error) if is_unreadable(&error) => read_around(io, &source, at, length)?,
            Err(error) => return Err(error),
        };
        if count == 0 {
            break;
        }
        buffer = io.write(&copy, at, count, read, false)?;
        at += count as u64;
    }
    io.sync(&copy)?;
    Ok(copy_name)
}

/// Reads a stretch sector by sector; what the device cannot give becomes zeros.
fn read_around(io: &mut Blocking, file: &File, at: u64, length: u64) -> Result<(usize, Buffer)> {
    const SECTOR: usize = 512;
    let mut whole = Buffer::zeroed(CHUNK_BYTES);
    let count = usize::try_from(length - at)
        .unwrap_or(CHUNK_BYTES)
        .min(CHUNK_BYTES);
    for start in (0..count).step_by(SECTOR) {
        let wanted = SECTOR.min(count - start);
        match io.read(file, at + start as u64, wanted, Buffer::zeroed(SECTOR)) {
            Ok((_, sector)) => whole[start..start + wanted].copy_from_slice(&sector[..wanted]),
            Err(error) if is_unreadable(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok((count, whole))
}

fn create_aside(io: &mut Blocking, dir: &File, name: &str) -> Result<(File, String)> {
    let mut attempt = 0_u32;
    loop {
        let copy_name = match attempt {
            0 => format!("{name}.broken"),
            attempt => format!("{name}.broken.{attempt}"),
        };
        match io.open(dir, &copy_name, Access::CREATE) {
            Ok(file) => return Ok((file, copy_name)),
            Err(error) if error.errno() == Some(libc::EEXIST) => attempt += 1,
            Err(error) => return Err(error),
        }
    }
}

/// A new segment that states where the log ended, durable with its name.
fn begin_anew(
    io: &mut Blocking,
    dir: &File,
    found: &Recovered,
    model: &SegmentHeader,
    end: End,
) -> Result<()> {
    let header = SegmentHeader {
        segment: found.next_segment,
        incarnation: found.incarnation,
        base: end.next,
        predecessor: Some(end),
        is_recycled: false,
        ..model.clone()
    };
    let (block, _) = header.encode();
    let prepared = prepared_name(header.segment);
    let file = io.open(dir, &prepared, Access::CREATE)?;
    let length = block.len();
    io.truncate(&file, header.limits.segment_bytes)?;
    io.write(&file, 0, length, block, true)?;
    io.sync(&file)?;
    io.rename(dir, &prepared, &segment_name(header.segment))?;
    io.sync_dir(dir)
}

fn records(run: &SegmentSummary) -> u64 {
    run.end
        .map_or(0, |end| end.next.0.saturating_sub(run.base().0))
}
